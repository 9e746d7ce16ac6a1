//! What devices cost: the user's own prices, each with its day. None is built in: a price without a source and a day is no answer.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::device::Device;
use serde::{Deserialize, Serialize};

use crate::error::PlanError;
use crate::size::quoted;

/// A price in cents, with when and where it was one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Cents of whatever the user counts in.
    pub cents: u64,
    /// The day of the price, `as asked` where the user named none.
    pub date: String,
    /// Where it comes from.
    pub origin: String,
}

/// A price that the user gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The device, by any of its names.
    pub device: String,
    /// Cents of the user's own currency.
    pub cents: u64,
    /// The day on which it was the price, `YYYY-MM-DD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

/// Whether a text is a day as `YYYY-MM-DD`.
fn is_day(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut part = |length: usize, most: u32| {
        parts.next().is_some_and(|part| {
            part.len() == length
                && part.bytes().all(|byte| byte.is_ascii_digit())
                && part.parse::<u32>().is_ok_and(|number| (1..=most).contains(&number))
        })
    };
    part(4, 9999) && part(2, 12) && part(2, 31) && parts.next().is_none()
}

/// `NAME=PRICE` or `NAME=PRICE@YYYY-MM-DD`, the price with up to two decimals.
///
/// # Errors
/// [`PlanError::Request`] for anything else.
///
/// ```
/// use plimsoll_planner::prices::parse;
/// let price = parse("RTX 3090=699.50").unwrap();
/// assert_eq!((price.device.as_str(), price.cents), ("RTX 3090", 69_950));
/// assert_eq!(parse("RTX 3090=700@2026-11-20").unwrap().date.as_deref(), Some("2026-11-20"));
/// assert!(parse("RTX 3090=-1").is_err() && parse("RTX 3090=nan").is_err() && parse("RTX 3090=1@yesterday").is_err());
/// ```
pub fn parse(text: &str) -> Result<Asked, PlanError> {
    let refuse =
        || PlanError::request("price", quoted(text), "NAME=PRICE, such as \"RTX 3090=700\" or \"RTX 3090=700@2026-11-20\"");
    let (name, amount) = text.rsplit_once('=').ok_or_else(refuse)?;
    let (amount, date) = match amount.split_once('@') {
        Some((amount, date)) if is_day(date.trim()) => (amount, Some(date.trim().to_string())),
        Some(_) => return Err(refuse()),
        None => (amount, None),
    };
    let (whole, fraction) = amount.trim().split_once('.').unwrap_or((amount.trim(), ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if name.trim().is_empty() || whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 2 {
        return Err(refuse());
    }
    let whole: u64 = whole.parse().map_err(|_| refuse())?;
    let fraction: u64 = alloc::format!("{fraction:0<2}").parse().map_err(|_| refuse())?;
    let cents = whole.checked_mul(100).and_then(|cents| cents.checked_add(fraction)).filter(|cents| *cents <= 1 << 50);
    Ok(Asked { device: name.trim().to_string(), cents: cents.ok_or_else(refuse)?, date })
}

/// Prices by device name.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    known: Vec<(String, Price)>,
}

impl Prices {
    /// The user's prices.
    ///
    /// # Errors
    /// [`PlanError`] for a device that nobody knows, and for a date that is no day.
    pub fn new(asked: &[Asked]) -> Result<Self, PlanError> {
        let mut known = Vec::new();
        for one in asked {
            let device = Device::named(&one.device).map_err(|error| match error {
                plimsoll_math::error::MathError::Invalid { found, expected, .. } => {
                    PlanError::Request { field: "price".to_string(), found, expected }
                }
                other => PlanError::Math(other),
            })?;
            if let Some(date) = one.date.as_deref().filter(|date| !is_day(date)) {
                return Err(PlanError::request("price", quoted(date), "a day as YYYY-MM-DD"));
            }
            let date = one.date.clone().unwrap_or_else(|| "as asked".to_string());
            known.push((device.name, Price { cents: one.cents, date, origin: "the request".to_string() }));
        }
        Ok(Self { known })
    }

    /// The price of one device.
    #[must_use]
    pub fn of(&self, device: &Device) -> Option<&Price> {
        self.known.iter().find(|(name, _)| *name == device.name).map(|(_, price)| price)
    }
}
