//! How people write sizes, and how sizes are shown to them.

use alloc::format;
use alloc::string::{String, ToString};

use plimsoll_math::units::MAX_EXACT;

use crate::error::PlanError;

/// What a size may look like, for error messages.
pub const SIZE_GRAMMAR: &str = "a size such as 24GiB (2^30), 24GB (10^9) or a number of bytes";
/// What a number of tokens may look like, for error messages.
pub const TOKENS_GRAMMAR: &str = "a number of tokens such as 8192, 32k (32768) or 1m (1048576)";

/// Bytes from `24GiB`, `24 GB`, `512MiB`, `23.5GiB` or a bare number.
///
/// # Errors
/// [`PlanError::Request`] for anything else and for sizes that are no whole number of bytes or above 2^53 - 1.
///
/// ```
/// use plimsoll_planner::size::parse_bytes;
/// assert_eq!(parse_bytes("memory", "24GiB").unwrap(), 24 << 30);
/// assert_eq!(parse_bytes("memory", "24 GB").unwrap(), 24_000_000_000);
/// assert_eq!(parse_bytes("memory", "1.5 KiB").unwrap(), 1536);
/// assert!(parse_bytes("memory", "24G").is_err(), "binary or decimal? not for us to guess");
/// ```
pub fn parse_bytes(field: &'static str, text: &str) -> Result<u64, PlanError> {
    let refuse = || PlanError::request(field, quoted(text), SIZE_GRAMMAR);
    let trimmed = text.trim();
    let split = trimmed.find(|character: char| character.is_ascii_alphabetic()).unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(split);
    let factor: u64 = match suffix.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(refuse()),
    };
    scaled(number.trim(), factor).ok_or_else(refuse)
}

/// Tokens from `8192`, `32k` or `1m` (binary, as model cards count them).
///
/// # Errors
/// [`PlanError::Request`] for anything else, and for zero.
///
/// ```
/// use plimsoll_planner::size::parse_tokens;
/// assert_eq!(parse_tokens("context", "32k").unwrap(), 32768);
/// assert_eq!(parse_tokens("context", "1m").unwrap(), 1_048_576);
/// assert!(parse_tokens("context", "lots").is_err());
/// ```
pub fn parse_tokens(field: &'static str, text: &str) -> Result<u64, PlanError> {
    let refuse = || PlanError::request(field, quoted(text), TOKENS_GRAMMAR);
    let trimmed = text.trim();
    let (number, factor) = match trimmed.chars().last().map(|last| last.to_ascii_lowercase()) {
        Some('k') => (trimmed.get(..trimmed.len().saturating_sub(1)), 1 << 10),
        Some('m') => (trimmed.get(..trimmed.len().saturating_sub(1)), 1 << 20),
        _ => (Some(trimmed), 1),
    };
    number.and_then(|number| scaled(number.trim(), factor)).filter(|tokens| *tokens > 0).ok_or_else(refuse)
}

/// `number` (digits, maybe with a decimal point) times `factor`, when that is a whole number in the exact range.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() > 12 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let mut value = u128::from(whole.parse::<u64>().ok()?).checked_mul(u128::from(factor))?;
    if !fraction.is_empty() {
        let unit = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = u128::from(fraction.parse::<u64>().ok()?).checked_mul(u128::from(factor))?;
        // A tenth of a GiB is no whole number of bytes; nobody means the fraction of a byte.
        value = value.checked_add(part / unit)?;
    }
    u64::try_from(value).ok().filter(|bytes| *bytes <= MAX_EXACT)
}

/// A text from outside, shortened and without control characters, in quotes.
#[must_use]
pub fn quoted(text: &str) -> String {
    let clean: String = text.chars().filter(|character| !character.is_control()).collect();
    if clean.chars().count() > 60 {
        format!("\"{}…\"", clean.chars().take(60).collect::<String>())
    } else {
        format!("\"{clean}\"")
    }
}

/// A count with thousands separators: `25,341,132,800`.
#[must_use]
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count and what is counted: `1 sequence`, `1,024 sequences`.
///
/// ```
/// use plimsoll_planner::size::counted;
/// assert_eq!(counted(1, "sequence"), "1 sequence");
/// assert_eq!(counted(1024, "block"), "1,024 blocks");
/// ```
#[must_use]
pub fn counted(value: u64, one: &str) -> String {
    format!("{} {one}{}", grouped(value), if value == 1 { "" } else { "s" })
}

/// A size to one decimal in the largest binary unit that leaves it at 1 or more: `23.6 GiB`.
///
/// ```
/// use plimsoll_planner::size::short;
/// assert_eq!(short(25_341_132_800), "23.6 GiB");
/// assert_eq!(short(1023), "1023 B");
/// assert_eq!(short((1 << 30) - 1), "1.0 GiB", "rounded up past the unit's end");
/// ```
#[must_use]
pub fn short(bytes: u64) -> String {
    const UNITS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    // Below the first unit a size is whole as it is.
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    for (unit, shift) in UNITS {
        // Tenths, rounded half up; a value that rounds to 1.0 of a unit is shown in that unit.
        let tenths = (u128::from(bytes) * 10 + (1_u128 << (shift - 1))) >> shift;
        if tenths >= 10 {
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// A size as text surfaces print it: `23.6 GiB (25,341,132,800 B)`.
#[must_use]
pub fn long(bytes: u64) -> String {
    if bytes < 1024 { short(bytes) } else { format!("{} ({} B)", short(bytes), grouped(bytes)) }
}

/// A large count in words' units: `8.03 B` parameters, `131,072` stays as it is.
#[must_use]
pub fn count(value: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("T", 1_000_000_000_000), ("B", 1_000_000_000), ("M", 1_000_000)];
    for (unit, scale) in UNITS {
        let hundredths = (u128::from(value) * 100 + u128::from(scale) / 2) / u128::from(scale);
        if hundredths >= 100 {
            return format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100);
        }
    }
    grouped(value)
}
