//! What devices cost: the user's own prices, or the price at launch in the United States with its date.
//!
//! Launch prices are what makers announced, without taxes; a street price may be far from them, which is why every figure
//! carries its date, and why the user's own always counts first.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::device::Device;
use serde::{Deserialize, Serialize};

use crate::error::PlanError;
use crate::size::quoted;

/// A price in cents, with when and where it was one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// US cents, or cents of whatever the user counts in.
    pub cents: u64,
    /// The day of the price, `as asked` for the user's own.
    pub date: String,
    /// Where it comes from.
    pub origin: String,
}

/// Name, US dollars, day of launch.
const LAUNCH: &[(&str, u64, &str)] = &[
    ("RTX 2060", 349, "2019-01-15"),
    ("RTX 2070", 499, "2018-10-17"),
    ("RTX 2080 Ti", 999, "2018-09-27"),
    ("RTX 3050 8GB", 249, "2022-01-27"),
    ("RTX 3060 12GB", 329, "2021-02-25"),
    ("RTX 3060 Ti", 399, "2020-12-02"),
    ("RTX 3070", 499, "2020-10-29"),
    ("RTX 3070 Ti", 599, "2021-06-10"),
    ("RTX 3080 10GB", 699, "2020-09-17"),
    ("RTX 3080 Ti", 1199, "2021-06-03"),
    ("RTX 3090", 1499, "2020-09-24"),
    ("RTX 3090 Ti", 1999, "2022-03-29"),
    ("RTX 4060", 299, "2023-06-29"),
    ("RTX 4060 Ti 8GB", 399, "2023-05-24"),
    ("RTX 4060 Ti 16GB", 499, "2023-07-18"),
    ("RTX 4070", 599, "2023-04-13"),
    ("RTX 4070 Super", 599, "2024-01-17"),
    ("RTX 4070 Ti", 799, "2023-01-05"),
    ("RTX 4070 Ti Super", 799, "2024-01-24"),
    ("RTX 4080", 1199, "2022-11-16"),
    ("RTX 4080 Super", 999, "2024-01-31"),
    ("RTX 4090", 1599, "2022-10-12"),
    ("RTX 5060", 299, "2025-05-19"),
    ("RTX 5060 Ti 16GB", 429, "2025-04-16"),
    ("RTX 5070", 549, "2025-03-05"),
    ("RTX 5070 Ti", 749, "2025-02-20"),
    ("RTX 5080", 999, "2025-01-30"),
    ("RTX 5090", 1999, "2025-01-30"),
    ("RX 6800", 579, "2020-11-18"),
    ("RX 6800 XT", 649, "2020-11-18"),
    ("RX 6900 XT", 999, "2020-12-08"),
    ("RX 7600 XT", 329, "2024-01-24"),
    ("RX 7800 XT", 499, "2023-09-06"),
    ("RX 7900 XT", 899, "2022-12-13"),
    ("RX 7900 XTX", 999, "2022-12-13"),
    ("RX 9070", 549, "2025-03-06"),
    ("RX 9070 XT", 599, "2025-03-06"),
    ("Arc A770 16GB", 349, "2022-10-12"),
    ("Arc B580", 249, "2024-12-13"),
];

/// A price that the user gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The device, by any of its names.
    pub device: String,
    /// Cents of the user's own currency.
    pub cents: u64,
}

/// `NAME=PRICE`, the price with up to two decimals.
///
/// # Errors
/// [`PlanError::Request`] for anything else.
///
/// ```
/// use plimsoll_planner::prices::parse;
/// let price = parse("RTX 3090=699.50").unwrap();
/// assert_eq!((price.device.as_str(), price.cents), ("RTX 3090", 69_950));
/// assert!(parse("RTX 3090=-1").is_err() && parse("RTX 3090=nan").is_err());
/// ```
pub fn parse(text: &str) -> Result<Asked, PlanError> {
    let refuse = || PlanError::request("price", quoted(text), "NAME=PRICE, such as \"RTX 3090=700\"");
    let (name, amount) = text.rsplit_once('=').ok_or_else(refuse)?;
    let (whole, fraction) = amount.trim().split_once('.').unwrap_or((amount.trim(), ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if name.trim().is_empty() || whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 2 {
        return Err(refuse());
    }
    let whole: u64 = whole.parse().map_err(|_| refuse())?;
    let fraction: u64 = alloc::format!("{fraction:0<2}").parse().map_err(|_| refuse())?;
    let cents = whole.checked_mul(100).and_then(|cents| cents.checked_add(fraction)).filter(|cents| *cents <= 1 << 50);
    Ok(Asked { device: name.trim().to_string(), cents: cents.ok_or_else(refuse)? })
}

/// Prices by device name.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    known: Vec<(String, Price)>,
}

impl Prices {
    /// The user's prices first, launch prices for the rest.
    ///
    /// # Errors
    /// [`PlanError`] for a device that nobody knows.
    pub fn new(asked: &[Asked]) -> Result<Self, PlanError> {
        let mut known = Vec::new();
        for one in asked {
            let device = Device::named(&one.device).map_err(|error| match error {
                plimsoll_math::error::MathError::Invalid { found, expected, .. } => {
                    PlanError::Request { field: "price".to_string(), found, expected }
                }
                other => PlanError::Math(other),
            })?;
            let price = Price { cents: one.cents, date: "as asked".to_string(), origin: "the request".to_string() };
            known.push((device.name, price));
        }
        for (name, dollars, date) in LAUNCH {
            let Ok(device) = Device::named(name) else { continue };
            let price = Price {
                cents: dollars.saturating_mul(100),
                date: (*date).to_string(),
                origin: "launch price in the United States".to_string(),
            };
            known.push((device.name, price));
        }
        Ok(Self { known })
    }

    /// The price of one device.
    #[must_use]
    pub fn of(&self, device: &Device) -> Option<&Price> {
        self.known.iter().find(|(name, _)| *name == device.name).map(|(_, price)| price)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_launch_price_is_of_a_device_that_is_known() {
        for (name, dollars, date) in LAUNCH {
            assert!(Device::named(name).is_ok(), "{name}: {:?}", Device::named(name).err());
            assert!(*dollars > 0 && date.len() == 10, "{name}");
        }
    }
}
