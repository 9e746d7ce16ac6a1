//! Sets of two kinds of devices: what is at hand, put together, where either kind alone would take more of it.
//!
//! Only among devices that were named, and only for llama.cpp, which puts layers on devices of any size; engines that split every
//! matrix want ranks alike. Not considered: three kinds or more, several hosts, slots and power of a host, and what stands between the
//! devices: layers are handed on over a link that is taken to cost nothing beside them.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::device::Device;
use plimsoll_math::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::change::plan_unless_refused;
use crate::engine::Question;
use crate::error::PlanError;
use crate::prices::Prices;
use crate::request::Engine;
use crate::speed::Rate;
use crate::which_device::{Judged, Set, Target, judge};

/// Kinds that are put together at most.
const MOST_KINDS: usize = 8;

/// So many of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The device.
    pub device: String,
    /// How many.
    pub count: u64,
}

/// A set of two kinds that is enough.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MixedSet {
    /// What it is made of.
    pub parts: Vec<Part>,
    /// Memory of all of them.
    pub usable: Bytes,
    /// Used on all of them, upper bounds taken.
    pub used: Bytes,
    /// Bytes left on the fullest.
    pub headroom: Bytes,
    /// Tokens per second of one sequence, half way through its context.
    pub decode_tokens_per_s: Option<Rate>,
    /// Tokens per second of a prompt.
    pub prefill_tokens_per_s: Option<Rate>,
    /// Cents for all of them, where every kind has a price.
    pub cents: Option<u64>,
}

/// For every pair of named kinds the smallest sets that are enough, fewest devices first, then by memory.
///
/// # Errors
/// [`PlanError`] for what is wrong with the question itself.
pub fn mixed(
    base: &Question<'_>,
    devices: &[Device],
    alone: &[Set],
    target: &Target,
    prices: &Prices,
) -> Result<Vec<MixedSet>, PlanError> {
    let asked = !target.devices.is_empty() && (2..=MOST_KINDS).contains(&devices.len());
    if !asked || !matches!(base.effective.engine, Engine::LlamaCpp(_)) || base.model.generic {
        return Ok(Vec::new());
    }
    let enough: BTreeMap<&str, u64> = alone.iter().map(|set| (set.device.as_str(), set.count)).collect();
    let most = target.most.unwrap_or(8);
    let mut sets = Vec::new();
    for (index, one) in devices.iter().enumerate() {
        for other in devices.iter().skip(index + 1).filter(|other| other.name != one.name) {
            // As many of one kind alone would be enough: then the other is not needed.
            let fewer = |device: &Device| enough.get(device.name.as_str()).copied().unwrap_or(u64::MAX);
            'pair: for total in 2..=most {
                let mut found = false;
                for count in 1..total {
                    let rest = total - count;
                    if count >= fewer(one) || rest >= fewer(other) {
                        continue;
                    }
                    if let Some(set) = try_set(base, [(one, count), (other, rest)], target, prices)? {
                        sets.push(set);
                        found = true;
                    }
                }
                if found {
                    break 'pair;
                }
            }
        }
    }
    let size = |set: &MixedSet| set.parts.iter().map(|part| part.count).sum::<u64>();
    sets.sort_by_key(|set| (size(set), set.usable));
    Ok(sets)
}

fn try_set(
    base: &Question<'_>,
    parts: [(&Device, u64); 2],
    target: &Target,
    prices: &Prices,
) -> Result<Option<MixedSet>, PlanError> {
    let price = |(device, count): (&Device, u64)| prices.of(device).and_then(|price| price.cents.checked_mul(count));
    let [one, other] = parts;
    let cents = price(one).zip(price(other)).and_then(|(one, other)| one.checked_add(other));
    if target.max_cents.is_some_and(|most| cents.is_none_or(|cents| cents > most)) {
        return Ok(None);
    }
    let many = |(device, count): (&Device, u64)| alloc::format!("{} x{count}", device.name);
    let changed = base.changed(|options| {
        options.device = Some(many(one));
        options.devices = Some(Vec::from([many(other)]));
        options.memory = None;
        options.tensor_split = None;
    });
    let question = match changed {
        Ok(question) => question,
        Err(PlanError::Request { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(planned) = plan_unless_refused(&question)? else { return Ok(None) };
    let Judged::Enough { headroom, used, decode, prefill } = judge(&question, &planned, target)? else { return Ok(None) };
    Ok(Some(MixedSet {
        parts: parts.map(|(device, count)| Part { device: device.name.to_string(), count }).to_vec(),
        usable: Bytes::sum(question.effective.devices.iter().map(|device| device.usable.bytes))?,
        used,
        headroom,
        decode_tokens_per_s: decode,
        prefill_tokens_per_s: prefill,
        cents,
    }))
}
