//! `model.safetensors.index.json`: which tensor lies in which shard.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::shown;
use crate::error::IngestError;

const FORMAT: &str = "safetensors index";

/// What an index may hold before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexLimits {
    /// Longest file in bytes. The largest published indexes (one row per expert) are below 20 MB.
    pub bytes: u64,
    /// Most shards.
    pub shards: usize,
}

impl Default for IndexLimits {
    fn default() -> Self {
        Self { bytes: 64 << 20, shards: 10_000 }
    }
}

/// What the index says about the sum of all bytes. Never trusted, always compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TotalSize {
    /// A whole number (also one that was written as a float or a text).
    Bytes(u64),
    /// Nothing, zero, or something that is no byte count.
    Unusable,
}

/// An index file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Tensor name to position in [`Index::shards`], in file order.
    pub weight_map: Vec<(String, usize)>,
    /// Shard file names, sorted, each once.
    pub shards: Vec<String>,
    /// `metadata.total_size`.
    pub total_size: TotalSize,
    /// `metadata.total_parameters`, where it is there. Counts tied matrices twice in many files.
    pub total_parameters: Option<u64>,
    /// What was unusual.
    pub notes: Vec<String>,
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// [`IngestError::Malformed`], [`IngestError::Limit`], [`IngestError::Field`] for a tensor that stands twice or a
    /// shard name that leads out of the folder.
    pub fn parse(bytes: &[u8], limits: &IndexLimits) -> Result<Self, IngestError> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if length > limits.bytes {
            return Err(IngestError::Limit {
                format: FORMAT,
                what: "its length".to_string(),
                found: length,
                limit: limits.bytes,
            });
        }
        let raw: RawIndex = serde_json::from_slice(bytes).map_err(|error| IngestError::Malformed {
            format: FORMAT,
            offset: u64::try_from(error.column()).unwrap_or(0),
            problem: format!("broken JSON: {error}"),
        })?;
        let rows = raw.weight_map.0;
        let names: BTreeSet<&str> = rows.iter().map(|(_, shard)| shard.as_str()).collect();
        if names.len() > limits.shards {
            let found = u64::try_from(names.len()).unwrap_or(u64::MAX);
            let limit = u64::try_from(limits.shards).unwrap_or(u64::MAX);
            return Err(IngestError::Limit { format: FORMAT, what: "the number of shards".to_string(), found, limit });
        }
        for name in &names {
            check_shard_name(name)?;
        }
        let shards: Vec<String> = names.into_iter().map(ToString::to_string).collect();
        let mut tensors: Vec<&str> = rows.iter().map(|(tensor, _)| tensor.as_str()).collect();
        tensors.sort_unstable();
        if let Some(twice) = tensors.windows(2).find_map(|pair| match pair {
            [a, b] if a == b => Some(*a),
            _ => None,
        }) {
            return Err(IngestError::Field {
                place: format!("$.weight_map[{}]", shown(twice)),
                found: "the tensor twice".to_string(),
                expected: "each tensor once".to_string(),
            });
        }
        if shards.is_empty() {
            return Err(IngestError::Field {
                place: "$.weight_map".to_string(),
                found: "no tensors".to_string(),
                expected: "at least one".to_string(),
            });
        }
        let weight_map = rows
            .iter()
            .filter_map(|(tensor, shard)| shards.binary_search(shard).ok().map(|position| (tensor.clone(), position)))
            .collect();
        let mut notes = Vec::new();
        let total_size = total_size(raw.metadata.as_ref(), &mut notes);
        let total_parameters =
            raw.metadata.as_ref().and_then(|metadata| metadata.get("total_parameters")).and_then(Value::as_u64);
        Ok(Self { weight_map, shards, total_size, total_parameters, notes })
    }

    /// The first shard that is a PyTorch pickle, whose shapes cannot be read without running it.
    #[must_use]
    pub fn pickle(&self) -> Option<&str> {
        self.shards.iter().map(String::as_str).find(|name| super::is_pickle(name))
    }
}

fn total_size(metadata: Option<&Value>, notes: &mut Vec<String>) -> TotalSize {
    let Some(value) = metadata.and_then(|metadata| metadata.get("total_size")) else {
        notes.push("the index states no total_size".to_string());
        return TotalSize::Unusable;
    };
    let whole = match value {
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().and_then(whole_number)),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    match whole {
        Some(0) | None => {
            notes.push(format!("the index states total_size {}, which is no byte count", shown(&value.to_string())));
            TotalSize::Unusable
        }
        Some(bytes) => TotalSize::Bytes(bytes),
    }
}

fn whole_number(float: f64) -> Option<u64> {
    let text = format!("{float:.0}");
    // Rounding must not have changed it.
    (text.parse::<f64>().ok() == Some(float)).then(|| text.parse().ok()).flatten()
}

fn check_shard_name(name: &str) -> Result<(), IngestError> {
    let safe = !name.is_empty()
        && !name.starts_with('/')
        && !name.contains(['\\', '\0', ':'])
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if safe {
        Ok(())
    } else {
        Err(IngestError::Field {
            place: "$.weight_map".to_string(),
            found: format!("shard name {}", shown(name)),
            expected: "the name of a file beside the index".to_string(),
        })
    }
}

#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    metadata: Option<Value>,
    weight_map: Pairs,
}

/// A map of texts that keeps its order and what stands twice.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object from tensor names to shard names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                const LONGEST: usize = 4096;
                let mut pairs = Vec::new();
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    if tensor.len() > LONGEST || shard.len() > LONGEST {
                        return Err(A::Error::custom(format_args!("a name is longer than {LONGEST} bytes")));
                    }
                    pairs.push((tensor, shard));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}
