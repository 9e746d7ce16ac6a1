//! Building blocks of text output: colours, columns, wrapping, the width of the terminal.

use anstyle::{AnsiColor, Style};

/// Width when nobody is looking at a terminal, or it does not say.
const PIPED_WIDTH: usize = 100;
/// Below this, lines are allowed to be wider than the terminal.
const NARROWEST: usize = 48;
/// Beyond this, long lines are harder to read, not easier.
const WIDEST: usize = 140;

/// Columns to fill.
pub(crate) fn width() -> usize {
    terminal_size::terminal_size_of(std::io::stdout())
        .map_or(PIPED_WIDTH, |(width, _)| usize::from(width.0))
        .clamp(NARROWEST, WIDEST)
}

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const MAYBE: Style = AnsiColor::Yellow.on_default().bold();

/// `text` in `style`; the stream drops the codes where they are not wanted.
pub(crate) fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Characters of `text` (every one that is printed here is one column wide).
pub(crate) fn columns(text: &str) -> usize {
    text.chars().count()
}

/// `text` filled up with spaces on the right.
pub(crate) fn left(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(columns(text))))
}

/// `text` filled up with spaces on the left.
pub(crate) fn right(text: &str, width: usize) -> String {
    format!("{}{text}", " ".repeat(width.saturating_sub(columns(text))))
}

/// `text` cut to `width` columns, the end marked.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.truncate(short.trim_end().len());
    format!("{short}…")
}

/// A device's name in `width` columns: without its maker where it is too wide with it, cut where that is not enough.
pub(crate) fn device_name(name: &str, width: usize) -> String {
    const MAKERS: [&str; 5] = ["NVIDIA GeForce ", "NVIDIA ", "AMD Radeon ", "AMD ", "Intel "];
    if columns(name) <= width {
        return name.to_owned();
    }
    // A number of devices stays before the name.
    let (count, bare) = match name.split_once("x ") {
        Some((count, bare)) if !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()) => {
            (name.get(..count.len() + 2).unwrap_or(""), bare)
        }
        _ => ("", name),
    };
    let bare = MAKERS.iter().find_map(|maker| bare.strip_prefix(maker)).unwrap_or(bare);
    cut(&format!("{count}{bare}"), width)
}

/// Words of `text` on lines of at most `width` columns, each after `indent`.
pub(crate) fn wrap(text: &str, width: usize, indent: &str) -> Vec<String> {
    flow(text.split_whitespace().map(str::to_owned), " ", width, indent)
}

/// `parts` on lines of at most `width` columns, joined by `joint`, each line after `indent`.
pub(crate) fn flow(parts: impl Iterator<Item = String>, joint: &str, width: usize, indent: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for part in parts {
        if !line.is_empty() && columns(indent) + columns(&line) + columns(joint) + columns(&part) > width {
            lines.push(format!("{indent}{}", line.trim_end()));
            line.clear();
        }
        if !line.is_empty() {
            line.push_str(joint);
        }
        line.push_str(&part);
    }
    if !line.is_empty() {
        lines.push(format!("{indent}{line}"));
    }
    lines
}

/// A sentence whose first words, `lead`, stand out.
pub(crate) fn headline(style: Style, lead: &str, rest: &str, width: usize) -> Vec<String> {
    let mut lines = wrap(&format!("{lead}{rest}"), width, "");
    // The lead is short: it never reaches a second line.
    if let Some(first) = lines.first_mut()
        && let Some(after) = first.strip_prefix(lead)
    {
        *first = format!("{}{after}", paint(style, lead));
    }
    lines
}

/// An argument as a shell reads it.
pub(crate) fn shell(argument: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./:=@+,%".contains(character);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

/// A command to paste, broken before options where it is wider than `width`.
pub(crate) fn command(arguments: &[String], width: usize, indent: &str) -> Vec<String> {
    let mut groups: Vec<String> = Vec::new();
    for argument in arguments {
        let text = shell(argument);
        match groups.last_mut() {
            Some(last) if !argument.starts_with('-') => {
                last.push(' ');
                last.push_str(&text);
            }
            _ => groups.push(text),
        }
    }
    let mut lines = flow(groups.into_iter(), " ", width.saturating_sub(2), indent);
    let last = lines.len().saturating_sub(1);
    for (index, line) in lines.iter_mut().enumerate() {
        if index > 0 {
            *line = format!("{indent}  {}", line.trim_start());
        }
        if index < last {
            line.push_str(" \\");
        }
    }
    lines
}
