//! What a tool read, value by value.

use serde::{Serialize, Serializer};

/// The most devices that are believed.
pub const MAX_DEVICES: usize = 256;
/// The longest text that is kept.
const MAX_TEXT: usize = 120;

/// A value, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<T> {
    /// The value.
    Known(T),
    /// Why there is none.
    Unavailable(String),
}

/// Why something cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl<T> Reading<T> {
    /// No value, and why.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable(reason.into())
    }

    /// A value if there is one, the reason otherwise.
    pub fn of(value: Option<T>, reason: impl Into<String>) -> Self {
        value.map_or_else(|| Self::unavailable(reason), Self::Known)
    }

    /// The value, if there is one.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unavailable(_) => None,
        }
    }
}

impl<T: Serialize> Serialize for Reading<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Reason<'a> {
            unavailable: &'a str,
        }
        match self {
            Self::Known(value) => value.serialize(serializer),
            Self::Unavailable(reason) => Reason { unavailable: reason }.serialize(serializer),
        }
    }
}

/// Whose devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Maker {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Intel.
    Intel,
    /// Apple.
    Apple,
    /// Somebody else, or not known.
    Other,
}

/// What a tool read of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The tool.
    pub source: &'static str,
    /// Who makes it.
    pub maker: Maker,
    /// Its name.
    pub name: Reading<String>,
    /// Bytes of memory, as the driver reports them.
    pub total: Reading<u64>,
    /// Bytes that nobody holds at the moment.
    pub free: Reading<u64>,
    /// Bytes of the host's memory that the driver lets the device have.
    pub shared: Reading<u64>,
    /// Whether it shares the host's memory, where the tool tells.
    pub unified: Option<bool>,
    /// Its instruction set, such as `sm_89` or `gfx1100`.
    pub isa: Reading<String>,
    /// Cores of the GPU, where its name leaves them open.
    pub cores: Reading<u32>,
    /// Whether a display hangs on it.
    pub displays: Reading<bool>,
    /// The driver's version.
    pub driver: Reading<String>,
    /// The power it may draw, watts.
    pub power_limit_w: Reading<u32>,
}

impl Facts {
    /// Nothing read yet.
    pub(crate) fn new(source: &'static str, maker: Maker) -> Self {
        fn not_asked<T>(source: &str) -> Reading<T> {
            Reading::Unavailable(format!("{source} does not say"))
        }
        Self {
            source,
            maker,
            name: not_asked(source),
            total: not_asked(source),
            free: not_asked(source),
            shared: not_asked(source),
            unified: None,
            isa: not_asked(source),
            cores: not_asked(source),
            displays: not_asked(source),
            driver: not_asked(source),
            power_limit_w: not_asked(source),
        }
    }
}

/// A text from a tool: one line, of bounded length; `None` for what tools write where they know nothing.
pub(crate) fn text(raw: &str) -> Option<String> {
    let clean: String =
        raw.chars().map(|character| if character.is_control() { ' ' } else { character }).take(MAX_TEXT).collect();
    let clean = clean.trim();
    let bare = clean.trim_matches(['[', ']']).trim();
    let nothing = ["", "n/a", "not supported", "unknown", "unknown error", "none", "null", "not available"];
    if nothing.iter().any(|word| bare.eq_ignore_ascii_case(word)) { None } else { Some(clean.to_owned()) }
}

/// Bytes from a number of units, within what is believed of a memory: above nothing, at most 2^50.
pub(crate) fn bytes(count: u64, unit: u64) -> Option<u64> {
    count.checked_mul(unit).filter(|bytes| (1..=1 << 50).contains(bytes))
}

/// The number at the start of a text such as `24564 MiB`.
pub(crate) fn leading_number(raw: &str) -> Option<u64> {
    let raw = raw.trim();
    let digits = raw.split(|character: char| !character.is_ascii_digit()).next().unwrap_or("");
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tools_write_for_nothing_is_nothing() {
        for raw in ["", " ", "N/A", "[N/A]", "[Not Supported]", "Not Supported", "[Unknown Error]", "\u{7}"] {
            assert_eq!(text(raw), None, "{raw:?}");
        }
        assert_eq!(text(" NVIDIA\tA30 ").as_deref(), Some("NVIDIA A30"));
        assert_eq!(text(&"x".repeat(1000)).map(|text| text.len()), Some(MAX_TEXT));
    }

    #[test]
    fn sizes_that_no_memory_has_are_not_believed() {
        assert_eq!(bytes(0, 1024), None);
        assert_eq!(bytes(u64::MAX, 1024), None);
        assert_eq!(bytes(1 << 31, 1 << 20), None);
        assert_eq!(bytes(24_564, 1 << 20), Some(25_757_220_864));
    }
}
