//! A cursor over a config that knows its path, so that every error names the field.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;

use serde_json::{Map, Value};

use crate::error::IngestError;

/// One object of a config, and which of its keys were asked for so far.
///
/// Every getter takes a list of aliases and answers with the first that is present and not null.
#[derive(Debug, Clone)]
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    defaults: Option<&'a Map<String, Value>>,
    path: String,
    asked: Rc<RefCell<BTreeSet<String>>>,
}

impl<'a> Config<'a> {
    /// The root object.
    ///
    /// # Errors
    /// [`IngestError::Field`] when `value` is no object.
    pub fn root(value: &'a Value) -> Result<Self, IngestError> {
        match value {
            Value::Object(map) => Ok(Self { map, defaults: None, path: "$".to_owned(), asked: Rc::default() }),
            other => Err(IngestError::Field { place: "$".to_owned(), found: describe(other), expected: "an object".to_owned() }),
        }
    }

    /// An object inside a list, whose place the caller knows.
    ///
    /// # Errors
    /// [`IngestError::Field`] when `value` is no object.
    pub fn root_at(value: &'a Value, path: String) -> Result<Self, IngestError> {
        match value {
            Value::Object(map) => Ok(Self { map, defaults: None, path, asked: Rc::default() }),
            other => Err(wrong(path, other, "an object")),
        }
    }

    /// The raw value of the first alias that is present and not null, with its path.
    #[must_use]
    pub fn raw(&self, aliases: &[&str]) -> Option<(&'a Value, String)> {
        for alias in aliases {
            self.asked.borrow_mut().insert(format!("{}.{alias}", self.path));
        }
        let found = first(self.map, aliases, &self.path);
        // An explicit null is a statement of its own ("no window") and keeps the default from applying.
        if found.is_some() || aliases.iter().any(|alias| self.map.contains_key(*alias)) {
            return found;
        }
        first(self.defaults?, aliases, &self.path)
    }

    /// Whether none of the aliases is in the config, so that a getter answers with the family's default, if any.
    #[must_use]
    pub fn is_default(&self, aliases: &[&str]) -> bool {
        !aliases.iter().any(|alias| self.map.contains_key(*alias))
    }

    /// The same object, with values for keys that it does not hold.
    #[must_use]
    pub fn with_defaults(self, defaults: &'a Map<String, Value>) -> Self {
        Self { defaults: Some(defaults), ..self }
    }

    /// The spelling that the config uses, or the first one where it uses none.
    #[must_use]
    pub fn named<'b>(&self, aliases: &[&'b str]) -> &'b str {
        let used = aliases.iter().find(|alias| self.map.get(**alias).is_some_and(|value| !value.is_null()));
        used.or(aliases.first()).copied().unwrap_or_default()
    }

    /// Whether any alias is present and not null.
    #[must_use]
    pub fn has(&self, aliases: &[&str]) -> bool {
        self.raw(aliases).is_some()
    }

    /// A nested object.
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is there and no object.
    pub fn child(&self, aliases: &[&str]) -> Result<Option<Self>, IngestError> {
        match self.raw(aliases) {
            None => Ok(None),
            Some((Value::Object(map), path)) => {
                let defaults = self.defaults.and_then(|all| aliases.iter().find_map(|alias| all.get(*alias)?.as_object()));
                Ok(Some(Self { map, defaults, path, asked: Rc::clone(&self.asked) }))
            }
            Some((other, place)) => Err(wrong(place, other, "an object")),
        }
    }

    /// A nested object, or one that holds `nothing` where there is none.
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is there and no object.
    pub fn child_or(&self, aliases: &[&str], nothing: &'a Map<String, Value>) -> Result<Self, IngestError> {
        let name = aliases.first().copied().unwrap_or_default();
        let path = format!("{}.{name}", self.path);
        let empty = || Self { map: nothing, defaults: None, path, asked: Rc::clone(&self.asked) };
        Ok(self.child(aliases)?.unwrap_or_else(empty))
    }

    /// A count. Floats that are whole numbers and digits in a string are accepted, as configs in the wild hold them.
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is there and no count.
    pub fn u64(&self, aliases: &[&str]) -> Result<Option<u64>, IngestError> {
        match self.raw(aliases) {
            None => Ok(None),
            Some((value, place)) => {
                count(value).map(Some).ok_or_else(|| wrong(place, value, "a whole number from 0 to 2^53 - 1"))
            }
        }
    }

    /// A count that must be there.
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is missing or no count.
    pub fn need_u64(&self, aliases: &[&str]) -> Result<u64, IngestError> {
        self.u64(aliases)?.ok_or_else(|| self.missing(aliases, "a whole number"))
    }

    /// A truth value; numbers 0 and 1 are accepted.
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is there and no truth value.
    pub fn bool(&self, aliases: &[&str]) -> Result<Option<bool>, IngestError> {
        match self.raw(aliases) {
            None => Ok(None),
            Some((Value::Bool(value), _)) => Ok(Some(*value)),
            Some((value, place)) => match count(value) {
                Some(0) => Ok(Some(false)),
                Some(1) => Ok(Some(true)),
                _ => Err(wrong(place, value, "true or false")),
            },
        }
    }

    /// A number of any kind.
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is there and no number.
    pub fn f64(&self, aliases: &[&str]) -> Result<Option<f64>, IngestError> {
        match self.raw(aliases) {
            None => Ok(None),
            Some((value, place)) => value.as_f64().map(Some).ok_or_else(|| wrong(place, value, "a number")),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is there and no text.
    pub fn str(&self, aliases: &[&str]) -> Result<Option<&'a str>, IngestError> {
        match self.raw(aliases) {
            None => Ok(None),
            Some((Value::String(text), _)) => Ok(Some(text)),
            Some((value, place)) => Err(wrong(place, value, "a text")),
        }
    }

    /// A list of counts.
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is there and no list of counts.
    pub fn u64_list(&self, aliases: &[&str]) -> Result<Option<Vec<u64>>, IngestError> {
        self.list(aliases, "a whole number", count)
    }

    /// A list of numbers, with 0 where it says null.
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is there and no such list.
    pub fn numbers(&self, aliases: &[&str]) -> Result<Option<Vec<f64>>, IngestError> {
        self.list(aliases, "a number", |value| if value.is_null() { Some(0.0) } else { value.as_f64() })
    }

    /// A list of truth values (0 and 1 accepted).
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is there and no such list.
    pub fn bool_list(&self, aliases: &[&str]) -> Result<Option<Vec<bool>>, IngestError> {
        self.list(aliases, "true or false", |value| match value {
            Value::Bool(value) => Some(*value),
            other => match count(other) {
                Some(0) => Some(false),
                Some(1) => Some(true),
                _ => None,
            },
        })
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`IngestError::Field`] when it is there and no list of texts.
    pub fn str_list(&self, aliases: &[&str]) -> Result<Option<Vec<&'a str>>, IngestError> {
        self.list(aliases, "a text", Value::as_str)
    }

    fn list<T>(
        &self,
        aliases: &[&str],
        expected: &str,
        item: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, IngestError> {
        match self.raw(aliases) {
            None => Ok(None),
            Some((Value::Array(values), place)) => values
                .iter()
                .enumerate()
                .map(|(index, value)| item(value).ok_or_else(|| wrong(format!("{place}[{index}]"), value, expected)))
                .collect::<Result<Vec<T>, _>>()
                .map(Some),
            Some((value, place)) => Err(wrong(place, value, &format!("a list, each item {expected}"))),
        }
    }

    /// The error for a missing field.
    #[must_use]
    pub fn missing(&self, aliases: &[&str], expected: &str) -> IngestError {
        let name = aliases.first().copied().unwrap_or_default();
        IngestError::Field { place: format!("{}.{name}", self.path), found: "nothing".to_owned(), expected: expected.to_owned() }
    }

    /// The error for a field whose value cannot be.
    #[must_use]
    pub fn invalid(&self, name: &str, found: impl ToString, expected: impl ToString) -> IngestError {
        IngestError::Field { place: format!("{}.{name}", self.path), found: found.to_string(), expected: expected.to_string() }
    }

    /// Path of this object.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The keys of this object.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.map.keys().cloned().collect()
    }

    /// Keys of this object that nobody asked for, with their paths.
    #[must_use]
    pub fn unasked(&self) -> Vec<String> {
        let asked = self.asked.borrow();
        self.map.keys().map(|key| format!("{}.{key}", self.path)).filter(|path| !asked.contains(path)).collect()
    }
}

fn first<'a>(map: &'a Map<String, Value>, aliases: &[&str], path: &str) -> Option<(&'a Value, String)> {
    aliases.iter().find_map(|alias| match map.get(*alias) {
        None | Some(Value::Null) => None,
        Some(value) => Some((value, format!("{path}.{alias}"))),
    })
}

fn count(value: &Value) -> Option<u64> {
    let number = match value {
        Value::Number(number) => match number.as_u64() {
            Some(whole) => Some(whole),
            None => number
                .as_f64()
                .filter(|float| *float % 1.0 == 0.0 && *float >= 0.0)
                .and_then(|float| format!("{float:.0}").parse().ok()),
        },
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number| *number <= plimsoll_math::units::MAX_EXACT)
}

fn wrong(place: String, found: &Value, expected: &str) -> IngestError {
    IngestError::Field { place, found: describe(found), expected: expected.to_owned() }
}

/// A short rendering of a value for error messages.
pub(super) fn describe(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { format!("{}…", text.chars().take(60).collect::<String>()) } else { text }
}
