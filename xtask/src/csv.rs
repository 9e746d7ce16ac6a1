//! Comma-separated values as the fixtures hold them: quoted fields, one record per line.

use std::collections::BTreeMap;

/// A record by column name.
pub(crate) type Record = BTreeMap<String, String>;

/// The records of a file with a header line.
pub(crate) fn records(text: &str) -> Result<Vec<Record>, String> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let header = fields(lines.next().ok_or("no header line")?);
    lines
        .enumerate()
        .map(|(index, line)| {
            let values = fields(line);
            if values.len() == header.len() {
                Ok(header.iter().cloned().zip(values).collect())
            } else {
                Err(format!("line {}: found {} fields, expected {}", index + 2, values.len(), header.len()))
            }
        })
        .collect()
}

fn fields(line: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                push(&mut out, '"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(String::new()),
            other => push(&mut out, other),
        }
    }
    out
}

fn push(out: &mut [String], character: char) {
    if let Some(last) = out.last_mut() {
        last.push(character);
    }
}

/// A text field, empty when the column is missing.
pub(crate) fn text<'a>(record: &'a Record, column: &str) -> &'a str {
    record.get(column).map_or("", String::as_str).trim()
}

/// A number, `None` when the field is empty.
pub(crate) fn number(record: &Record, column: &str) -> Result<Option<f64>, String> {
    let field = text(record, column);
    if field.is_empty() {
        return Ok(None);
    }
    match field.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Some(value)),
        _ => Err(format!("{column}: found {field:?}, expected a number")),
    }
}
