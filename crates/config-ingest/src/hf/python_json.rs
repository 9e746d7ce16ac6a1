//! Configs are written by Python, whose JSON has three numbers that JSON has not: `NaN`, `Infinity`, `-Infinity`.

use alloc::borrow::Cow;
use alloc::vec::Vec;

const NUMBERS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// The same document with `null` for those numbers. Text inside strings stays as it is.
pub(super) fn plain(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Option<Vec<u8>> = None;
    let mut in_string = false;
    let mut rest = bytes;
    let mut seen: usize = 0;
    while let Some((first, after)) = rest.split_first() {
        let number = (!in_string).then(|| NUMBERS.iter().find(|number| rest.starts_with(number))).flatten();
        if let Some(number) = number {
            out.get_or_insert_with(|| bytes.get(..seen).unwrap_or_default().to_vec()).extend_from_slice(b"null");
            rest = rest.get(number.len()..).unwrap_or_default();
            seen = seen.saturating_add(number.len());
            continue;
        }
        // A backslash and what it escapes belong together, so that an escaped quote ends no string.
        let length = if in_string && *first == b'\\' { rest.len().min(2) } else { 1 };
        if *first == b'"' {
            in_string = !in_string;
        }
        if let Some(out) = &mut out {
            out.extend_from_slice(rest.get(..length).unwrap_or_default());
        }
        seen = seen.saturating_add(length);
        rest = if length == 1 { after } else { rest.get(length..).unwrap_or_default() };
    }
    out.map_or(Cow::Borrowed(bytes), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn numbers_of_python_become_null_outside_strings() {
        let read = |text: &str| String::from_utf8(plain(text.as_bytes()).into_owned()).unwrap();
        assert_eq!(read(r#"{"a": [0.0, Infinity], "b": -Infinity, "c": NaN}"#), r#"{"a": [0.0, null], "b": null, "c": null}"#);
        let quoted = r#"{"a": "NaN \" Infinity", "b\\": 1}"#;
        assert_eq!(read(quoted), quoted);
        assert_eq!(read(r#"{"a\\": NaN}"#), r#"{"a\\": null}"#);
    }
}
