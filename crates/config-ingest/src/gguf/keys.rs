//! Metadata of one architecture, read with the architecture's prefix.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::reader::Header;
use super::value::Value;
use crate::error::IngestError;

/// The metadata under `<architecture>.`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) header: &'a Header,
    pub(super) architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.header.get(&self.key(name))
    }

    fn wrong(&self, name: &str, found: impl ToString, expected: &str) -> IngestError {
        IngestError::Field { place: self.key(name), found: found.to_string(), expected: expected.to_string() }
    }

    /// A count.
    pub(super) fn u64(&self, name: &str) -> Result<Option<u64>, IngestError> {
        self.get(name).map(|value| self.count(name, value)).transpose()
    }

    fn count(&self, name: &str, value: &Value) -> Result<u64, IngestError> {
        // The engine holds every one of them in 32 bits (`llama-hparams.h`).
        value
            .as_u64()
            .filter(|number| *number <= u32::MAX.into())
            .ok_or_else(|| self.wrong(name, value.describe(), "a whole number from 0 to 2^32 - 1"))
    }

    /// A count, 0 where there is none.
    pub(super) fn or_zero(&self, name: &str) -> Result<u64, IngestError> {
        Ok(self.u64(name)?.unwrap_or(0))
    }

    /// A count that must be there and not be 0.
    pub(super) fn need(&self, name: &str) -> Result<u64, IngestError> {
        match self.u64(name)? {
            Some(0) => Err(self.wrong(name, 0, "a number above 0")),
            Some(number) => Ok(number),
            None => Err(self.wrong(name, "nothing", "a whole number")),
        }
    }

    /// A count that must be there.
    pub(super) fn must(&self, name: &str) -> Result<u64, IngestError> {
        self.u64(name)?.ok_or_else(|| self.wrong(name, "nothing", "a whole number"))
    }

    /// A text.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name).and_then(Value::as_text)
    }

    /// A list of counts, empty where there is none.
    pub(super) fn list(&self, name: &str) -> Result<Vec<u64>, IngestError> {
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let wrong = || self.wrong(name, value.describe(), "a short list of whole numbers");
        value.as_list().ok_or_else(wrong)?.iter().map(|value| self.count(name, value)).collect()
    }

    /// A truth value.
    pub(super) fn bool(&self, name: &str) -> Result<Option<bool>, IngestError> {
        self.get(name).map(|value| value.as_bool().ok_or_else(|| self.wrong(name, value.describe(), "true or false"))).transpose()
    }

    /// Whether a factor is there and not 0; `None` where the file does not say.
    pub(super) fn is_set(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(Value::as_f64).map(|factor| factor != 0.0)
    }

    /// Whether a factor is there and changes what it is multiplied by: neither 0, which stands for none, nor 1.
    pub(super) fn scales(&self, name: &str) -> bool {
        self.get(name).and_then(Value::as_f64).is_some_and(|factor| factor != 0.0 && factor != 1.0)
    }

    /// Whether the file has the key at all.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether a number is there and above `least`.
    pub(super) fn is_above(&self, name: &str, least: f64) -> bool {
        self.get(name).and_then(Value::as_f64).is_some_and(|number| number > least)
    }

    /// For each layer whether its number is above `least`: one number per layer, or one for all of them.
    pub(super) fn above(&self, name: &str, least: f64, n: usize) -> Vec<bool> {
        let Some(Value::Array { values, .. }) = self.get(name) else { return alloc::vec![self.is_above(name, least); n] };
        let is_above = |value: &Value| value.as_f64().is_some_and(|number| number > least);
        let mut flags: Vec<bool> = values.iter().flatten().take(n).map(is_above).collect();
        flags.resize(n, false);
        flags
    }

    /// One count per layer, or one for all of them.
    pub(super) fn per_layer(&self, name: &str, n: usize) -> Result<Option<Vec<u64>>, IngestError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let Value::Array { len, values, .. } = value else {
            return Ok(Some(core::iter::repeat_n(self.count(name, value)?, n).collect()));
        };
        let values = values.as_deref().unwrap_or_default();
        if values.len() < n {
            return Err(self.wrong(name, format!("a list of {len} numbers"), &format!("one for each of {n} layers")));
        }
        let counts = values.iter().take(n).map(|value| match value {
            Value::Bool(flag) => Ok(u64::from(*flag)),
            other => self.count(name, other),
        });
        counts.collect::<Result<Vec<u64>, _>>().map(Some)
    }

    /// One flag per layer, when the file lists them; layers beyond the list have none set.
    pub(super) fn flags(&self, name: &str, n: usize) -> Result<Option<Vec<bool>>, IngestError> {
        let Some(Value::Array { values: Some(values), .. }) = self.get(name) else { return Ok(None) };
        let mut flags = Vec::with_capacity(n);
        for value in values.iter().take(n) {
            flags.push(match value {
                Value::Bool(flag) => *flag,
                other => self.count(name, other)? != 0,
            });
        }
        flags.resize(n, false);
        Ok(Some(flags))
    }
}
