//! What goes where on one host: layers, experts, caches and shares that fit and decode fastest, beside llama.cpp's own choice.
//!
//! Candidates come from bytes by layer (`light`); each is planned as `fit` plans it before it counts, so that whatever is
//! offered verifies. Speeds are predictions with intervals, and the search compares their expected values.

mod light;
mod search;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::allocation::TermKind;
use plimsoll_math::engine::llama_cpp::fit::{Aim, choose};
use plimsoll_math::throughput::float;
use plimsoll_math::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::command::command;
use crate::engine::Question;
use crate::error::PlanError;
use crate::fit::{deployment_brief, engine_brief, model_brief};
use crate::model::Model;
use crate::place;
use crate::request::{Engine, Options};
use crate::response::{DeploymentBrief, EngineBrief, ModelBrief};
use crate::size::{grouped, short};
use crate::speed::Rate;
use search::{Search, Tried};

/// Schema name of [`Offload`].
pub const OFFLOAD_SCHEMA: &str = "plimsoll.offload/1";

/// One device of a placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedDevice {
    /// Name.
    pub name: String,
    /// Weights there.
    pub weights: Bytes,
    /// Everything there, upper bounds taken.
    pub used: Bytes,
    /// What one program can get.
    pub usable: Bytes,
    /// Bytes left beyond the margin, negative for bytes missing.
    pub headroom: i64,
}

/// A placement, planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The engine's own arguments.
    pub arguments: Vec<String>,
    /// The same as options of `plimsoll fit`.
    pub options: Vec<String>,
    /// Whether it fits.
    pub fits: bool,
    /// The devices.
    pub devices: Vec<PlacedDevice>,
    /// Everything on the host.
    pub host_used: Bytes,
    /// Weights on the host.
    pub host_weights: Bytes,
    /// Tokens per second of one sequence, half way through its context.
    pub decode_tokens_per_s: Option<Rate>,
    /// Tokens per second of a prompt.
    pub prefill_tokens_per_s: Option<Rate>,
}

/// What the engine would choose itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnChoice {
    /// Bytes that it leaves free on every device.
    pub margin: Bytes,
    /// Why it gives up, where it does.
    pub gives_up: Option<String>,
    /// Whether all figures that it decides by are exact here.
    pub exact: bool,
    /// Its placement, planned; `fits` says whether the driver's share fits as well.
    pub placement: Option<Placement>,
}

/// Answer of `offload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offload {
    /// [`OFFLOAD_SCHEMA`].
    pub schema: String,
    /// The model.
    pub model: ModelBrief,
    /// The engine.
    pub engine: EngineBrief,
    /// The deployment with the best placement; as asked where none fits.
    pub deployment: DeploymentBrief,
    /// Bytes that the search leaves free on every device beyond the upper bounds.
    pub margin: Bytes,
    /// What the host has, where that was said.
    pub host_memory: Option<Bytes>,
    /// The fastest placement that fits.
    pub best: Option<Placement>,
    /// Everything on devices as the engine divides it by itself.
    pub all_on_devices: Option<Placement>,
    /// What the engine would choose itself.
    pub own_choice: OwnChoice,
    /// Why the two differ, one sentence each.
    pub differences: Vec<String>,
    /// Plans that were made.
    pub plans: u64,
    /// How to run it.
    pub command: Vec<String>,
    /// What was assumed.
    pub notes: Vec<String>,
}

impl Offload {
    /// Whether the best placement leaves nothing of the layers to the host.
    #[must_use]
    pub fn deployment_stays_on_devices(&self) -> bool {
        let deployment = &self.deployment;
        self.best.is_some()
            && deployment.gpu_layers.is_none()
            && !deployment.cpu_moe
            && deployment.n_cpu_moe == 0
            && deployment.kv_offload
            && deployment.override_tensor.is_empty()
    }
}

/// The options of `plimsoll fit` that make a placement.
fn as_options(tried: &Tried<'_>) -> Vec<String> {
    let deployment = tried.deployment();
    let mut out = Vec::new();
    let mut option = |name: &str, value: String| {
        out.push(name.to_string());
        if !value.is_empty() {
            out.push(value);
        }
    };
    if let Some(layers) = deployment.gpu_layers {
        option("--gpu-layers", layers.to_string());
    }
    if !deployment.tensor_split.is_empty() {
        let shares: Vec<String> = deployment.tensor_split.iter().map(|share| share.get().to_string()).collect();
        option("--tensor-split", shares.join(","));
    }
    if deployment.cpu_moe {
        option("--cpu-moe", String::new());
    }
    if deployment.n_cpu_moe > 0 {
        option("--n-cpu-moe", deployment.n_cpu_moe.to_string());
    }
    for pattern in place::overrides(deployment) {
        option("--override-tensor", pattern);
    }
    if !deployment.kv_offload {
        option("--no-kv-offload", String::new());
    }
    out
}

fn placement(tried: &Tried<'_>) -> Result<Placement, PlanError> {
    let signed = |bytes: Bytes| i64::try_from(bytes.get()).unwrap_or(i64::MAX);
    let mut devices = Vec::new();
    let places = tried.question.effective.devices.iter().zip(&tried.planned.allocation.devices).zip(&tried.rooms);
    for ((device, held), room) in places {
        devices.push(PlacedDevice {
            name: device.name.clone(),
            weights: held.of(TermKind::Weights)?,
            used: held.used()?,
            usable: device.usable.bytes,
            headroom: match room {
                Ok(left) => signed(*left),
                Err(missing) => signed(*missing).saturating_neg(),
            },
        });
    }
    let context = tried.planned.resolved.context_per_sequence;
    let rate = |of: fn(&crate::pace::Pace, f64) -> Rate| tried.pace.as_ref().map(|pace| of(pace, float(context)));
    Ok(Placement {
        arguments: place::arguments(tried.deployment()),
        options: as_options(tried),
        fits: tried.fits,
        devices,
        host_used: tried.host,
        host_weights: tried.planned.allocation.host.of(TermKind::Weights)?,
        decode_tokens_per_s: rate(|pace, context| pace.decode(1.0, context / 2.0)),
        prefill_tokens_per_s: rate(|pace, context| pace.prefill(context.clamp(1.0, 512.0), 0.0)),
    })
}

/// What the search was asked to leave to others.
fn check(question: &Question<'_>, options: &Options) -> Result<(), PlanError> {
    if !matches!(question.effective.engine, Engine::LlamaCpp(_)) || question.model.generic {
        let found = if question.model.generic { "an unknown model" } else { question.effective.engine.name() };
        return Err(PlanError::request(
            "offload",
            found,
            "llama.cpp and a model that is known: only it divides a model like that",
        ));
    }
    if question.effective.deployment.devices.is_empty() {
        return Err(PlanError::request("device", "cpu", "a GPU: there is nothing to divide"));
    }
    let set = [
        ("gpu_layers", options.gpu_layers.is_some()),
        ("tensor_split", options.tensor_split.is_some()),
        ("n_cpu_moe", options.n_cpu_moe.is_some()),
        ("cpu_moe", options.cpu_moe.is_some()),
        ("override_tensor", options.override_tensor.is_some()),
        ("kv_offload", options.kv_offload.is_some()),
        ("split_mode", options.split_mode.is_some()),
        ("like_engine", options.like_engine == Some(true)),
    ];
    match set.into_iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(PlanError::request(field, "a value", "none: finding it is what offload is for")),
        None => Ok(()),
    }
}

/// The best placement alone, for who asks often: the arguments of `fit` that make it, with its figures. `None` when nothing fits.
///
/// # Errors
/// As [`offload`].
pub fn best_placement(question: &Question<'_>, margin: u64, host_memory: Option<u64>) -> Result<Option<Placement>, PlanError> {
    let mut search = Search::new(question.clone(), margin, host_memory)?;
    search.run()?;
    search.best.as_ref().map(placement).transpose()
}

/// Finds the placement of `model` on the devices of `options` that fits and decodes fastest. `host_memory` is what the host has, where
/// that is known; [`Options::fit_margin`] is what to leave free on every device beyond the upper bounds, nothing when left out.
///
/// # Errors
/// [`PlanError`] for what is wrong with the question, and for engines that divide no model.
pub fn offload(model: &Model, options: &Options, host_memory: Option<u64>) -> Result<Offload, PlanError> {
    let question = Question::new(model, options)?;
    check(&question, options)?;
    if host_memory == Some(0) {
        return Err(PlanError::request("host_memory", "0", "1 byte or more"));
    }
    // What the engine refuses wherever things lie is no matter of places.
    let whole = question.plan()?;
    let margin = options.fit_margin.unwrap_or(0);
    let mut search = Search::new(question, margin, host_memory)?;
    let all = search.attempt(search.base().effective.deployment.clone())?.map(|tried| placement(&tried)).transpose()?;
    search.run()?;
    let own = own_choice(&mut search, options)?;
    let best = search.best.as_ref().map(placement).transpose()?;
    let base = search.base();
    let chosen = search.best.as_ref().map_or(base, |best| &best.question);
    let planned = search.best.as_ref().map_or(&whole, |best| &best.planned);
    let mut notes = base.effective.notes.clone();
    notes.extend(base.notes.iter().cloned());
    if let Some(pace) = search.best.as_ref().and_then(|best| best.pace.as_ref()) {
        notes.extend(pace.assumptions.iter().cloned());
    }
    if host_memory.is_none() {
        notes.push("how much memory the host has was not said: what is left to it is taken to fit".to_string());
    }
    Ok(Offload {
        schema: OFFLOAD_SCHEMA.to_string(),
        model: model_brief(base)?,
        engine: engine_brief(base),
        deployment: deployment_brief(chosen, planned),
        margin: Bytes::new(margin)?,
        host_memory: host_memory.map(Bytes::new).transpose()?,
        differences: differences(search.best.as_ref(), &own, margin),
        best,
        all_on_devices: all,
        own_choice: own,
        plans: search.tried,
        command: if search.best.is_some() { command(chosen, planned) } else { Vec::new() },
        notes,
    })
}

/// What `llama-server --fit` would do with the same context.
fn own_choice(search: &mut Search<'_>, options: &Options) -> Result<OwnChoice, PlanError> {
    let base = search.base().clone();
    let Engine::LlamaCpp(build) = base.effective.engine else {
        return Err(PlanError::request("engine", base.effective.engine.name(), "llama.cpp"));
    };
    let default = Aim::default();
    let aim = Aim { margin: options.fit_margin.unwrap_or(default.margin), chooses_context: false, ..default };
    let asked = &base.effective.deployment;
    let choice = choose(&base.converted(), base.tensors(), asked, build, aim)?;
    // Its context is the one that was asked for, in its own words.
    let mut deployment = choice.apply(asked)?;
    deployment.context = asked.context;
    let tried = if choice.failure.is_none() { search.attempt(deployment)? } else { None };
    if let Some(tried) = &tried {
        // Whatever the engine finds and fits is a candidate as well.
        search.consider(tried.clone());
    }
    Ok(OwnChoice {
        margin: Bytes::new(aim.margin)?,
        gives_up: choice.failure,
        exact: choice.is_exact,
        placement: tried.as_ref().map(placement).transpose()?,
    })
}

/// Why the engine's choice is another one.
fn differences(best: Option<&Tried<'_>>, own: &OwnChoice, margin: u64) -> Vec<String> {
    if let Some(reason) = &own.gives_up {
        return vec![format!("llama.cpp's own --fit gives up and starts as asked: {reason}")];
    }
    let (Some(best), Some(theirs)) = (best, &own.placement) else { return Vec::new() };
    let ours = as_options(best);
    if ours == theirs.options {
        return vec!["llama.cpp's own --fit places everything alike".to_string()];
    }
    let mut out = Vec::new();
    if own.margin.get() > margin {
        out.push(format!(
            "llama.cpp leaves {} free on every device for what it does not count; here the driver's share is counted at its upper bound, \
             and {} are left beyond it",
            short(own.margin.get()),
            short(margin)
        ));
    }
    if !theirs.fits {
        out.push("its choice does not leave room for the driver's share at its upper bound".to_string());
    }
    let deployment = best.deployment();
    if !deployment.kv_offload {
        out.push("the cache goes to the host here, which llama.cpp's --fit never tries".to_string());
    }
    let held = |placement: &Placement| placement.devices.iter().map(|device| device.weights.get()).fold(0, u64::saturating_add);
    if let Ok(ours) = placement(best) {
        let (here, there) = (held(&ours), held(theirs));
        if here > there {
            out.push(format!("{} more of the weights are on devices here", short(here - there)));
        } else if there > here {
            out.push(format!("{} fewer of the weights are on devices here", short(there - here)));
        }
        if ours.devices.len() > 1 && ours.devices.iter().zip(&theirs.devices).any(|(one, other)| one.weights != other.weights) {
            out.push(
                "llama.cpp fills devices from the last to the first; here the layers go where reading them takes least time"
                    .to_string(),
            );
        }
        if let (Some(ours), Some(theirs)) = (&ours.decode_tokens_per_s, &theirs.decode_tokens_per_s) {
            let rate = |rate: &Rate| format!("{:.1}", rate.expected.get());
            out.push(format!("predicted decoding: {} tokens/s here, {} as llama.cpp would choose", rate(ours), rate(theirs)));
        }
    }
    if !own.exact {
        out.push(
            "some figures that llama.cpp decides by are bounds here: it measures more finely and may choose otherwise"
                .to_string(),
        );
    }
    let layers = best.planned.resolved.context_per_sequence;
    if out.is_empty() {
        out.push(format!("both fit {} tokens; the arguments differ, the bytes do not", grouped(layers)));
    }
    out
}
