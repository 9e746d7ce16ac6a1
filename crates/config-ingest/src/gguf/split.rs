//! Split sets: `name-00001-of-00003.gguf` and its siblings (`llama-model-loader.cpp`).

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};

use super::limits::Limits;
use super::reader::Header;
use super::value::Value;
use crate::error::IngestError;
use crate::source::RangeSource;

/// A file name of a split set taken apart: `prefix-00001-of-00003.gguf`.
fn parts(name: &str) -> Option<(&str, u64, u64)> {
    let (stem, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, number) = stem.rsplit_once('-')?;
    let five_digits = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !five_digits(number) || !five_digits(count) {
        return None;
    }
    Some((prefix, number.parse().ok()?, count.parse().ok()?))
}

/// The last part of a path.
fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// Adds the tensors of all siblings to the first file's.
pub(super) fn join(
    header: &mut Header,
    name: &str,
    limits: &Limits,
    mut open: impl FnMut(&str) -> Result<Box<dyn RangeSource>, IngestError>,
) -> Result<(), IngestError> {
    let number = |header: &Header, key: &str| -> Result<Option<u64>, IngestError> {
        header
            .get(key)
            .map(|value| {
                value.as_u64().ok_or_else(|| IngestError::Field {
                    place: key.to_string(),
                    found: value.describe(),
                    expected: "a whole number".to_string(),
                })
            })
            .transpose()
    };
    let count = number(header, "split.count")?.unwrap_or(0);
    if count <= 1 {
        return Ok(());
    }
    if count > limits.shards {
        return Err(IngestError::Limit {
            format: super::FORMAT,
            what: "split.count".to_string(),
            found: count,
            limit: limits.shards,
        });
    }
    let file = file_name(name);
    let of_set = parts(file);
    let sibling = |prefix: &str, number: u64| format!("{prefix}-{number:05}-of-{count:05}.gguf");
    let index = number(header, "split.no")?.unwrap_or(0);
    if index != 0 {
        let first = of_set.map_or_else(|| "the first file".to_string(), |(prefix, _, _)| sibling(prefix, 1));
        return Err(IngestError::UnsupportedSource {
            found: file.to_string(),
            why: format!("it is file {} of a split set of {count}; use {first}", index.saturating_add(1)),
        });
    }
    let Some((prefix, _, _)) = of_set else {
        return Err(IngestError::UnsupportedSource {
            found: file.to_string(),
            why: format!("it is the first of {count} files, but its name is not of the form name-00001-of-{count:05}.gguf"),
        });
    };
    let mut names: BTreeSet<String> = header.tensors.iter().map(|tensor| tensor.name.clone()).collect();
    for number_of_file in 2..=count {
        let name = sibling(prefix, number_of_file);
        let missing = |error: IngestError| match error {
            IngestError::Unavailable { why, .. } => IngestError::Unavailable {
                what: name.clone(),
                why: format!("file {number_of_file} of {count} of the split set is missing: {why}"),
            },
            other => other,
        };
        let source = open(&name).map_err(missing)?;
        let shard = Header::read(source.as_ref(), limits)?;
        let position = number(&shard, "split.no")?;
        if position != Some(number_of_file.saturating_sub(1)) {
            return Err(IngestError::Field {
                place: format!("{name}: split.no"),
                found: position.map_or_else(|| "nothing".to_string(), |position| position.to_string()),
                expected: number_of_file.saturating_sub(1).to_string(),
            });
        }
        for tensor in shard.tensors {
            if !names.insert(tensor.name.clone()) {
                return Err(IngestError::Field {
                    place: format!("{name}: {}", tensor.name),
                    found: "a tensor that an earlier file of the set holds too".to_string(),
                    expected: "each name once".to_string(),
                });
            }
            header.tensors.push(tensor);
        }
        header.notes.extend(shard.notes.iter().map(|note| format!("{name}: {note}")));
    }
    let total = header.get("split.tensors.count").and_then(Value::as_u64);
    let found = u64::try_from(header.tensors.len()).unwrap_or(u64::MAX);
    if let Some(total) = total.filter(|total| *total != found) {
        return Err(IngestError::Field {
            place: "split.tensors.count".to_string(),
            found: format!("{total}, but the {count} files hold {found} tensors"),
            expected: found.to_string(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn names_of_split_files_are_taken_apart() {
        assert_eq!(parts("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        assert_eq!(parts("a-2-of-3.gguf"), None);
        assert_eq!(parts("a.gguf"), None);
    }
}
