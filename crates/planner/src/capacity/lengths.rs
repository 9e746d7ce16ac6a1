//! How long prompts and answers are, and when they come: drawn from a seed, the same every time.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::throughput::simulate::Arrival;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::PlanError;
use crate::random::Random;
use crate::size::quoted;

/// A distribution of lengths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lengths {
    /// Always the same.
    Fixed(u32),
    /// Anything between the two, both included.
    Uniform(u32, u32),
    /// Exponential around a mean.
    Exponential(f64),
    /// Log-normal with this median and 95th percentile.
    LogNormal(f64, f64),
}

/// What a distribution may look like.
pub const LENGTHS_GRAMMAR: &str =
    "a number of tokens, uniform:LOW,HIGH, exponential:MEAN or lognormal:MEDIAN,P95, all from 1 to 10000000";

impl Lengths {
    /// Reads a distribution.
    ///
    /// # Errors
    /// [`PlanError::Request`] for anything else.
    pub fn parse(field: &str, text: &str) -> Result<Self, PlanError> {
        let refuse = || PlanError::request(field, quoted(text), LENGTHS_GRAMMAR);
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|value| (1.0..=1e7).contains(value)).ok_or_else(refuse);
        let whole =
            |text: &str| text.trim().parse::<u32>().ok().filter(|value| (1..=10_000_000).contains(value)).ok_or_else(refuse);
        let pair = |text: &str| text.split_once(',').map(|(one, other)| (one.to_string(), other.to_string())).ok_or_else(refuse);
        match text.trim().split_once(':') {
            None => whole(text).map(Self::Fixed),
            Some(("uniform", rest)) => {
                let (low, high) = pair(rest)?;
                let (low, high) = (whole(&low)?, whole(&high)?);
                if low <= high { Ok(Self::Uniform(low, high)) } else { Err(refuse()) }
            }
            Some(("exponential", rest)) => number(rest).map(Self::Exponential),
            Some(("lognormal", rest)) => {
                let (median, high) = pair(rest)?;
                let (median, high) = (number(&median)?, number(&high)?);
                if median <= high { Ok(Self::LogNormal(median, high)) } else { Err(refuse()) }
            }
            Some(_) => Err(refuse()),
        }
    }

    fn draw(self, random: &mut Random) -> u32 {
        let length = match self {
            Self::Fixed(length) => return length,
            Self::Uniform(low, high) => f64::from(low) + libm::floor(random.uniform() * (f64::from(high - low) + 1.0)),
            Self::Exponential(mean) => -libm::log(1.0 - random.uniform()) * mean,
            Self::LogNormal(median, high) => {
                // The 95th percentile of a normal distribution lies 1.645 deviations above its middle.
                let deviation = libm::log(high / median) / 1.644_853_626_951_472_7;
                let normal =
                    libm::sqrt(-2.0 * libm::log(1.0 - random.uniform())) * libm::cos(core::f64::consts::TAU * random.uniform());
                median * libm::exp(deviation * normal)
            }
        };
        format!("{:.0}", length.clamp(1.0, 1e7)).parse().unwrap_or(1)
    }

    /// As it is written.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Fixed(length) => length.to_string(),
            Self::Uniform(low, high) => format!("uniform:{low},{high}"),
            Self::Exponential(mean) => format!("exponential:{mean}"),
            Self::LogNormal(median, high) => format!("lognormal:{median},{high}"),
        }
    }
}

impl Serialize for Lengths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Lengths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u32),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        Self::parse("lengths", &text).map_err(serde::de::Error::custom)
    }
}

/// `count` requests that come at random, `rate` a second on average.
///
/// # Errors
/// [`PlanError::Request`] for a rate that is not above nothing.
pub fn arrivals(seed: u64, rate: f64, count: u32, prompt: Lengths, output: Lengths) -> Result<Vec<Arrival>, PlanError> {
    if !(rate > 0.0 && rate <= 1e6) {
        return Err(PlanError::request("rate", rate, "a number of requests per second above 0, at most 1000000"));
    }
    let mut random = Random::new(seed ^ 0x2545_f491_4f6c_dd1d);
    let mut at = 0.0;
    Ok((0..count)
        .map(|_| {
            at += -libm::log(1.0 - random.uniform()) / rate;
            Arrival { at, prompt: prompt.draw(&mut random), output: output.draw(&mut random) }
        })
        .collect())
}

#[cfg(test)]
#[allow(clippy::allow_attributes, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_figures_they_are_named_by() {
        let quantile = |lengths: &str, share: f64| {
            let lengths = Lengths::parse("prompt", lengths).unwrap();
            let mut drawn: Vec<u32> =
                arrivals(5, 1.0, 40_000, lengths, Lengths::Fixed(1)).unwrap().iter().map(|one| one.prompt).collect();
            drawn.sort_unstable();
            f64::from(drawn[format!("{:.0}", 39_999.0 * share).parse::<usize>().unwrap()])
        };
        assert!((quantile("lognormal:500,4000", 0.5) / 500.0 - 1.0).abs() < 0.05);
        assert!((quantile("lognormal:500,4000", 0.95) / 4000.0 - 1.0).abs() < 0.05);
        assert!((quantile("uniform:100,300", 0.5) - 200.0).abs() < 5.0);
        assert!((quantile("exponential:100", 0.5) - 69.3).abs() < 3.0);
        assert_eq!(quantile("77", 0.1), 77.0);
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for text in
            ["", "0", "-4", "x", "uniform:5,2", "uniform:1", "lognormal:10,5", "exponential:nan", "gauss:1,2", "1e99", "inf"]
        {
            assert!(Lengths::parse("prompt", text).is_err(), "{text}");
        }
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(arrivals(1, rate, 1, Lengths::Fixed(1), Lengths::Fixed(1)).is_err());
        }
    }
}
