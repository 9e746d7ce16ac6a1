//! Which devices are enough: the smallest and the cheapest sets that hold a deployment and reach a speed.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::device::{Class, Device, DeviceKind, Driver, Vendor};
use plimsoll_math::throughput::float;
use plimsoll_math::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::change::{is_refusal, room_of};
use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::fit::{engine_brief, model_brief};
use crate::mixed::MixedSet;
use crate::model::Model;
use crate::pace::Pace;
use crate::prices::{Asked, Price, Prices};
use crate::request::{Engine, Options};
use crate::response::{EngineBrief, ModelBrief};
use crate::speed::{PerSecond, Rate};

/// Schema name of [`WhichDevice`].
pub const WHICH_DEVICE_SCHEMA: &str = "plimsoll.which-device/1";

/// What has to be reached, and with what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    /// Tokens per second of one sequence, half way through its context.
    pub min_decode: Option<PerSecond>,
    /// Tokens per second of a prompt.
    pub min_prefill: Option<PerSecond>,
    /// Only these devices; all of the catalogue when left out.
    pub devices: Vec<String>,
    /// At most so many devices of a kind; 8 when left out.
    pub most: Option<u64>,
    /// At most so many cents for all of them.
    pub max_cents: Option<u64>,
    /// What devices cost; there are no other prices.
    pub prices: Vec<Asked>,
}

/// A set of devices that is enough.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// The device.
    pub device: String,
    /// How many.
    pub count: u64,
    /// Who makes it.
    pub vendor: Vendor,
    /// What it is sold as.
    pub class: Class,
    /// Whether the memory is the host's as well.
    pub unified: bool,
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
    /// Power they may draw together, watts.
    pub tdp_w: Option<u64>,
    /// The price of one.
    pub price: Option<Price>,
    /// Cents for all of them.
    pub cents: Option<u64>,
}

/// Why devices are not among the sets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Left {
    /// Too little memory, with as many as were allowed.
    pub too_small: u64,
    /// Enough memory, and too slow.
    pub too_slow: u64,
    /// Too expensive, or without a price where one was asked for.
    pub too_expensive: u64,
    /// The engine does not run there, or refuses the deployment there.
    pub refused: u64,
}

/// Answer of `which-device`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhichDevice {
    /// [`WHICH_DEVICE_SCHEMA`].
    pub schema: String,
    /// The model.
    pub model: ModelBrief,
    /// The engine.
    pub engine: EngineBrief,
    /// Tokens per sequence.
    pub context: u64,
    /// Concurrent sequences.
    pub sequences: u64,
    /// What was asked for.
    pub target: Target,
    /// For every device the smallest number that is enough, those with least memory first.
    pub smallest: Vec<Set>,
    /// The same sets that have a price, the cheapest first.
    pub cheapest: Vec<Set>,
    /// Two of the named kinds together, where that takes fewer devices of either than it does alone.
    pub mixed: Vec<MixedSet>,
    /// Why the others are not there.
    pub left_out: Left,
    /// What was assumed.
    pub notes: Vec<String>,
}

/// Plans by what they depend on: rules of a backend and how many devices share, not how much memory each has.
struct Plans<'a> {
    base: Question<'a>,
    known: BTreeMap<String, Option<Planned>>,
}

impl<'a> Plans<'a> {
    fn of(&mut self, device: &Device, count: u64) -> Result<Option<(Question<'a>, Planned)>, PlanError> {
        let question = match self.base.on_devices(device, count) {
            Ok(question) => question,
            Err(PlanError::Request { .. }) => return Ok(None),
            Err(other) => return Err(other),
        };
        // Defaults of servers with a pool, and of Ollama, depend on a device's memory; llama.cpp's plan on its backend alone.
        let key = match question.effective.engine {
            engine if engine.has_pool() || engine == Engine::Ollama => alloc::format!("{}x{count}", device.name),
            _ => alloc::format!("{}x{count}", device.backend_name()),
        };
        if let Some(planned) = self.known.get(&key) {
            return Ok(planned.clone().map(|planned| (question, planned)));
        }
        let planned = match question.plan() {
            Ok(planned) => Some(planned),
            Err(error) if is_refusal(&error) => None,
            Err(error) => return Err(error),
        };
        self.known.insert(key, planned.clone());
        Ok(planned.map(|planned| (question, planned)))
    }
}

/// What a device's sets came to.
enum Found {
    Set(Box<Set>),
    TooSmall,
    TooSlow,
    TooExpensive,
    Refused,
}

/// Whether devices are enough for what was asked.
pub(crate) enum Judged {
    /// They are.
    Enough {
        /// Bytes left on the fullest.
        headroom: Bytes,
        /// Used on all of them, upper bounds taken.
        used: Bytes,
        /// Tokens per second of one sequence, half way through its context.
        decode: Option<Rate>,
        /// Tokens per second of a prompt.
        prefill: Option<Rate>,
    },
    /// They hold too little.
    TooSmall,
    /// They hold it, and are too slow.
    TooSlow,
}

/// Holds a plan beside the target.
pub(crate) fn judge(question: &Question<'_>, planned: &Planned, target: &Target) -> Result<Judged, PlanError> {
    let Ok(headroom) = room_of(question, planned)? else { return Ok(Judged::TooSmall) };
    let pace = Pace::new(question, planned)?;
    let context = float(planned.resolved.context_per_sequence);
    let decode = pace.as_ref().map(|pace| pace.decode(1.0, context / 2.0));
    let prefill = pace.as_ref().map(|pace| pace.prefill(context.clamp(1.0, 512.0), 0.0));
    let reached =
        |least: Option<PerSecond>, rate: Option<Rate>| least.is_none_or(|least| rate.is_some_and(|rate| rate.expected >= least));
    if !reached(target.min_decode, decode) || !reached(target.min_prefill, prefill) {
        return Ok(Judged::TooSlow);
    }
    let mut used = Bytes::ZERO;
    for place in &planned.allocation.devices {
        used = used.plus(place.used()?)?;
    }
    Ok(Judged::Enough { headroom, used, decode, prefill })
}

fn smallest_set(plans: &mut Plans<'_>, device: &Device, target: &Target, prices: &Prices) -> Result<Found, PlanError> {
    let mut outcome = Found::Refused;
    for count in 1..=target.most.unwrap_or(8) {
        let price = prices.of(device).cloned();
        let cents = price.as_ref().and_then(|price| price.cents.checked_mul(count));
        if target.max_cents.is_some_and(|most| cents.is_none_or(|cents| cents > most)) {
            // More of them cost more: what was found wanting before stays the reason.
            return Ok(if count == 1 { Found::TooExpensive } else { outcome });
        }
        let Some((question, planned)) = plans.of(device, count)? else { continue };
        let (headroom, used, decode, prefill) = match judge(&question, &planned, target)? {
            Judged::Enough { headroom, used, decode, prefill } => (headroom, used, decode, prefill),
            Judged::TooSmall => {
                outcome = Found::TooSmall;
                continue;
            }
            Judged::TooSlow => {
                outcome = Found::TooSlow;
                continue;
            }
        };
        return Ok(Found::Set(Box::new(Set {
            device: device.name.clone(),
            count,
            vendor: device.vendor,
            class: device.class,
            unified: device.unified,
            usable: device.usable.bytes.times(count)?,
            used,
            headroom,
            decode_tokens_per_s: decode,
            prefill_tokens_per_s: prefill,
            tdp_w: device.tdp_w.map(|watts| u64::from(watts).saturating_mul(count)),
            price,
            cents,
        })));
    }
    Ok(outcome)
}

/// Devices to choose among: GPUs of the catalogue, in every size they are sold with, or those that were named.
fn candidates(target: &Target) -> Result<Vec<Device>, PlanError> {
    if !target.devices.is_empty() {
        let named = |name: &String| -> Result<Device, PlanError> {
            Device::named(name).map_err(|error| match error {
                plimsoll_math::error::MathError::Invalid { found, expected, .. } => {
                    PlanError::Request { field: "device".to_string(), found, expected }
                }
                other => PlanError::Math(other),
            })
        };
        return target.devices.iter().map(named).collect();
    }
    Ok(Device::all()?.into_iter().filter(|device| device.kind == DeviceKind::Gpu && device.driver != Driver::Cpu).collect())
}

/// The question on a device that the engine runs on, CUDA first.
fn base<'a>(model: &'a Model, options: &Options, devices: &[Device]) -> Result<Question<'a>, PlanError> {
    let mut refused = None;
    let (first, then): (Vec<&Device>, Vec<&Device>) = devices.iter().partition(|device| device.driver == Driver::Cuda);
    let mut drivers: Vec<Driver> = Vec::new();
    for device in first.into_iter().chain(then) {
        // One of each driver: the others are refused alike.
        if drivers.contains(&device.driver) {
            continue;
        }
        drivers.push(device.driver);
        match Question::new(model, &Options { device: Some(device.name.clone()), ..options.clone() }) {
            Ok(question) => return Ok(question),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| PlanError::request("devices", "nothing", "devices to choose among")))
}

/// Which devices are enough for a deployment.
///
/// # Errors
/// [`PlanError`] for what is wrong with the question.
pub fn which_device(model: &Model, options: &Options, target: &Target) -> Result<WhichDevice, PlanError> {
    if options.device.is_some() || options.memory.is_some() {
        return Err(PlanError::request("device", "a value", "none here: devices names those to choose among"));
    }
    match target.most {
        Some(0) => return Err(PlanError::request("most", "0", "1 or more")),
        Some(count) if count > 16 => return Err(PlanError::request("most", count, "at most 16")),
        _ => {}
    }
    if target.min_decode == Some(PerSecond::default()) || target.min_prefill == Some(PerSecond::default()) {
        return Err(PlanError::request("speed", "0", "tokens per second above 0"));
    }
    let devices = candidates(target)?;
    let base = base(model, options, &devices)?;
    // What the engine refuses everywhere is said once, in its words.
    let planned = base.plan()?;
    let prices = Prices::new(&target.prices)?;
    let (context, engine, brief) = (planned.resolved.context_per_sequence, engine_brief(&base), model_brief(&base)?);
    let sequences = base.effective.deployment.sequences;
    let mut notes = base.notes.clone();
    let mut plans = Plans { base: base.clone(), known: BTreeMap::new() };
    let (mut smallest, mut left_out) = (Vec::new(), Left::default());
    for device in &devices {
        match smallest_set(&mut plans, device, target, &prices)? {
            Found::Set(set) => smallest.push(*set),
            Found::TooSmall => left_out.too_small += 1,
            Found::TooSlow => left_out.too_slow += 1,
            Found::TooExpensive => left_out.too_expensive += 1,
            Found::Refused => left_out.refused += 1,
        }
    }
    smallest.sort_by_key(|set| (set.usable, set.count));
    let mixed = crate::mixed::mixed(&base, &devices, &smallest, target, &prices)?;
    let mut cheapest: Vec<Set> = smallest.iter().filter(|set| set.cents.is_some()).cloned().collect();
    cheapest.sort_by_key(|set| (set.cents, set.usable));
    let unpriced = smallest.len().saturating_sub(cheapest.len());
    if unpriced > 0 {
        let which = if cheapest.is_empty() {
            "none of the sets has a price".to_string()
        } else {
            alloc::format!("{unpriced} of the sets have no price and are not among the cheapest")
        };
        notes.push(alloc::format!("{which}: no prices are built in, price NAME=PRICE@YYYY-MM-DD gives yours"));
    }
    Ok(WhichDevice {
        schema: WHICH_DEVICE_SCHEMA.to_string(),
        model: brief,
        engine,
        context,
        sequences,
        target: target.clone(),
        smallest,
        cheapest,
        mixed,
        left_out,
        notes,
    })
}
