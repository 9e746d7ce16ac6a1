//! Lists of values as people write them: `4k,8k,32k`, `4k..128k*2`, `1k..16k+1k`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::error::PlanError;
use crate::size::{parse_tokens, quoted};

/// The most values of one axis.
pub const MOST_VALUES: usize = 10_000_000;

/// Numbers: single ones, and ranges that grow by a factor (`A..B*F`) or by a step (`A..B+S`), ends included.
///
/// # Errors
/// [`PlanError::Request`] naming the part that is neither.
///
/// ```
/// use plimsoll_planner::axis::numbers;
/// assert_eq!(numbers("contexts", "4k..32k*2").unwrap(), [4096, 8192, 16384, 32768]);
/// assert_eq!(numbers("sequences", "1,2..8+3").unwrap(), [1, 2, 5, 8]);
/// assert!(numbers("contexts", "8k..4k*2").is_err());
/// ```
pub fn numbers(field: &'static str, text: &str) -> Result<Vec<u64>, PlanError> {
    const EXPECTED: &str = "numbers such as 4k,8k or ranges such as 4k..128k*2 and 1k..16k+1k";
    let mut out = Vec::new();
    for part in text.split(',').map(str::trim) {
        let refuse = || PlanError::request(field, quoted(part), EXPECTED);
        let Some((first, rest)) = part.split_once("..") else {
            out.push(parse_tokens(field, part).map_err(|_| refuse())?);
            continue;
        };
        let (last, step, by_factor) = match (rest.split_once('*'), rest.split_once('+')) {
            (Some((last, factor)), None) => (last, factor, true),
            (None, Some((last, step))) => (last, step, false),
            (None, None) => (rest, "2", true),
            (Some(_), Some(_)) => return Err(refuse()),
        };
        let number = |text: &str| parse_tokens(field, text.trim()).map_err(|_| refuse());
        let (first, last, step) = (number(first)?, number(last)?, number(step)?);
        if last < first || (by_factor && step < 2) {
            return Err(refuse());
        }
        let mut value = first;
        while value <= last {
            if out.len() >= MOST_VALUES {
                return Err(PlanError::request(field, quoted(part), format!("at most {MOST_VALUES} values")));
            }
            out.push(value);
            let next = if by_factor { value.checked_mul(step) } else { value.checked_add(step) };
            let Some(next) = next else { break };
            value = next;
        }
    }
    Ok(out)
}

/// Names, separated by commas.
///
/// # Errors
/// [`PlanError::Request`] for an empty one.
pub fn names(field: &'static str, text: &str) -> Result<Vec<String>, PlanError> {
    text.split(',')
        .map(|part| match part.trim() {
            "" => Err(PlanError::request(field, quoted(text), "names, separated by commas")),
            name => Ok(String::from(name)),
        })
        .collect()
}
