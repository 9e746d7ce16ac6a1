//! Arguments of `compare`: two sides, each a model with options of its own.

use clap::{Args, Parser};
use plimsoll::planner::{Options, PlanError};

use super::Asked;

/// One side of a comparison: a model and what is asked of it alone.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) model: String,
    pub(crate) options: Options,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    plimsoll compare org/name --with \"--kv-type q8_0\" --device 4090 --context 32k\n  \
    plimsoll compare \"org/name --quant Q4_K_M\" \"org/name --engine vllm\" --device h100-sxm --context 8k")]
pub(crate) struct CompareArgs {
    /// The first: a MODEL, or "MODEL OPTIONS" in quotes
    #[arg(value_name = "A")]
    a: String,
    /// The second, in the same way; the first's model when left out
    #[arg(value_name = "B")]
    b: Option<String>,
    /// Options of the second alone, in quotes
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    with: Option<String>,
    /// Take an unknown architecture for a generic decoder: bounds instead of exact figures
    #[arg(long)]
    pub(crate) assume_generic: bool,
    #[command(flatten)]
    asked: Asked,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options in one text.
#[derive(Debug, Parser)]
#[command(name = "options", no_binary_name = true, disable_help_flag = true, disable_version_flag = true)]
struct Text {
    #[command(flatten)]
    asked: Asked,
}

fn options(field: &'static str, words: &[String]) -> Result<Options, PlanError> {
    let parsed = Text::try_parse_from(words).map_err(|error| {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let first = first.strip_suffix(" found").unwrap_or(first);
        PlanError::request(field, first, "options of `plimsoll fit`")
    })?;
    parsed.asked.options()
}

/// Words as a shell separates them: spaces, with quotes around what has some.
fn words(field: &'static str, text: &str) -> Result<Vec<String>, PlanError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for letter in text.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err(PlanError::request(field, format!("{text:?}"), "a closing quote"));
    }
    words.extend(word);
    Ok(words)
}

/// A model, and options where the text is more than the name of something that is there.
fn side(field: &'static str, text: &str) -> Result<Side, PlanError> {
    if std::path::Path::new(text).exists() {
        return Ok(Side { model: text.to_owned(), options: Options::default() });
    }
    let words = words(field, text)?;
    let Some((model, rest)) = words.split_first() else {
        return Err(PlanError::request(field, "nothing", "a MODEL"));
    };
    Ok(Side { model: model.clone(), options: options(field, rest)? })
}

impl CompareArgs {
    /// Both sides, with what is asked of both.
    pub(crate) fn sides(&self) -> Result<(Side, Side), PlanError> {
        let generic = self.assume_generic.then_some(true);
        let common = Options { assume_generic: generic, ..self.asked.options()? };
        let mut a = side("A", &self.a)?;
        let mut b = match &self.b {
            Some(text) => side("B", text)?,
            None => Side { model: a.model.clone(), options: Options::default() },
        };
        if let Some(text) = &self.with {
            b.options = options("with", &words("with", text)?)?.over(&b.options);
        } else if self.b.is_none() {
            return Err(PlanError::request("B", "nothing", "a second MODEL, or --with OPTIONS for the same one"));
        }
        a.options = a.options.over(&common);
        b.options = b.options.over(&common);
        Ok((a, b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: &[&str]) {
        assert_eq!(words("A", text).unwrap(), expect, "{text}");
    }

    #[test]
    fn words_are_separated_as_a_shell_does() {
        check("a --device 'RTX 4090'  -c 8k", &["a", "--device", "RTX 4090", "-c", "8k"]);
        check("", &[]);
        check("x\"y z\"w ''", &["xy zw", ""]);
        assert!(words("A", "a 'b").is_err());
    }
}
