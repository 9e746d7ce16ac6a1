//! Values out of a tool's JSON, whatever it makes of them: numbers as numbers or as texts, with and without units.

use serde_json::Value;

use crate::facts::{Unavailable, bytes, leading_number, text};

/// A tool's JSON: it may stand after warnings.
pub(crate) fn parse(tool: &str, raw: &str) -> Result<Value, Unavailable> {
    let start = raw.find(['{', '[']).unwrap_or(0);
    let body = raw.get(start..).unwrap_or("");
    serde_json::Deserializer::from_str(body)
        .into_iter::<Value>()
        .next()
        .and_then(Result::ok)
        .ok_or_else(|| Unavailable(format!("{tool}: its answer is no JSON")))
}

/// The first of `keys` that says something, in letters of any case.
pub(crate) fn get<'a>(object: &'a Value, keys: &[&str]) -> Option<&'a Value> {
    let map = object.as_object()?;
    keys.iter().find_map(|key| {
        map.iter().find(|(there, _)| there.eq_ignore_ascii_case(key)).map(|(_, value)| value).filter(|value| !value.is_null())
    })
}

/// A text.
pub(crate) fn string(object: &Value, keys: &[&str]) -> Option<String> {
    match get(object, keys)? {
        Value::String(raw) => text(raw),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A whole number, from a number or a text that starts with one.
pub(crate) fn number(object: &Value, keys: &[&str]) -> Option<u64> {
    whole(get(object, keys)?)
}

fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(raw) => leading_number(raw),
        _ => None,
    }
}

/// Bytes from `{"value": 65520, "unit": "MB"}`, where these tools mean 2^20, or from a number of `unit` bytes.
pub(crate) fn size(object: &Value, keys: &[&str], unit: u64) -> Option<u64> {
    let value = get(object, keys)?;
    if value.is_object() {
        let unit = match string(value, &["unit"])?.to_ascii_lowercase().as_str() {
            "b" => 1,
            "kb" | "kib" => 1 << 10,
            "mb" | "mib" => 1 << 20,
            "gb" | "gib" => 1 << 30,
            _ => return None,
        };
        return number(value, &["value"]).and_then(|count| bytes(count, unit));
    }
    whole(value).and_then(|count| bytes(count, unit))
}
