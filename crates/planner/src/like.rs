//! What the engine itself would choose (`llama-server --fit`), and whether something better fits.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::allocation::TermKind;
use plimsoll_math::deployment::{ContextRequest, Deployment};
use plimsoll_math::engine::llama_cpp::LoaderFacts;
use plimsoll_math::engine::llama_cpp::fit::{Aim, choose};
use plimsoll_math::engine::llama_cpp::weights::weight_places;
use plimsoll_math::error::MathError;
use plimsoll_math::spec::FeedForward;
use plimsoll_math::tensor::Place;
use plimsoll_math::units::{Bytes, mul};
use serde::{Deserialize, Serialize};

use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::request::{Engine, Options};

/// The engine's own choice, and a better one where there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LikeEngine {
    /// The whole pool of tokens that it chooses (`-c`).
    pub total_context: u64,
    /// Layers that it puts on devices; `null` for all.
    pub gpu_layers: Option<u64>,
    /// Layers of each device, where it divides them itself.
    pub tensor_split: Vec<u64>,
    /// Tensors that it puts elsewhere, `PATTERN=DEVICE` each.
    pub override_tensor: Vec<String>,
    /// Bytes that it leaves free on every device.
    pub margin: Bytes,
    /// Why it gives up, where it does: it then starts with the request as it was.
    pub gives_up: Option<String>,
    /// Whether all figures that it decides by are exact here. Where they are bounds, the engine may choose otherwise.
    pub exact: bool,
    /// What fits beside the same margin and is better, where something is.
    pub better: Option<Better>,
}

/// A better choice than the engine's: more context, or less that a token has to read from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Better {
    /// What is better, in words.
    pub change: String,
    /// Why the engine does not find it.
    pub why: String,
    /// Bytes that a token reads from the host with a full context: weights, routed experts by their share, and caches.
    pub read_from_host: Bytes,
    /// The same with the engine's choice.
    pub read_as_chosen: Bytes,
    /// The options that make it.
    pub options: Vec<String>,
    /// The whole pool of tokens.
    pub total_context: u64,
    /// Bytes of weights on devices.
    pub weights_on_devices: Bytes,
    /// Bytes of weights that the engine's choice has there.
    pub weights_as_chosen: Bytes,
}

impl Question<'_> {
    /// Takes the engine's own choice as the deployment.
    ///
    /// # Errors
    /// [`PlanError`] where the engine has no such choice or the question no figures.
    pub(crate) fn choose_like_engine(&mut self, options: &Options) -> Result<LikeEngine, PlanError> {
        let Engine::LlamaCpp(build) = self.effective.engine else {
            return Err(PlanError::request(
                "like_engine",
                self.effective.engine.name(),
                "llama.cpp: others choose nothing themselves",
            ));
        };
        if self.model.generic || self.effective.deployment.devices.is_empty() {
            return Err(PlanError::request(
                "like_engine",
                "no device, or an unknown model",
                "a device and a model that is known",
            ));
        }
        let default = Aim::default();
        let aim = Aim {
            margin: options.fit_margin.unwrap_or(default.margin),
            projector: self.projector.map_or(Ok(0), |projector| projector.projected(self, build))?,
            least_context: options.fit_context.unwrap_or(default.least_context),
            chooses_context: matches!(self.effective.deployment.context, ContextRequest::ModelMaximum),
        };
        let asked = self.effective.deployment.clone();
        let spec = self.converted();
        let choice = choose(&spec, self.tensors(), &asked, build, aim)?;
        let chosen = choice.apply(&asked)?;
        let mut question = self.clone();
        question.effective.deployment = chosen.clone();
        let better = better(&question, &asked, aim)?;
        self.effective.deployment = chosen;
        Ok(LikeEngine {
            total_context: choice.context,
            gpu_layers: choice.gpu_layers,
            tensor_split: choice.tensor_split,
            override_tensor: crate::place::overrides(&question.effective.deployment),
            margin: Bytes::new(aim.margin)?,
            gives_up: choice.failure,
            exact: choice.is_exact,
            better,
        })
    }
}

/// What a deployment puts where, as far as one is better than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    /// Bytes of weights on devices.
    weights: Bytes,
    /// Bytes that a token reads from the host with a full context.
    read: Bytes,
}

impl Standing {
    fn of(question: &Question<'_>, planned: &Planned) -> Result<Self, PlanError> {
        let mut weights = Bytes::ZERO;
        for place in &planned.allocation.devices {
            weights = weights.plus(place.of(TermKind::Weights)?)?;
        }
        let host = &planned.allocation.host;
        let mut read = host.of(TermKind::KvCache)?.plus(host.of(TermKind::RecurrentState)?)?;
        let Engine::LlamaCpp(build) = question.effective.engine else { return Ok(Self { weights, read }) };
        let spec = question.converted();
        // Experts are chosen: a token reads so many of them.
        let chosen = spec.layers.iter().find_map(|layer| match &layer.feed_forward {
            FeedForward::Moe(moe) => Some((moe.n_experts_per_token, moe.n_experts)),
            _ => None,
        });
        let facts = LoaderFacts::of(&spec, build)?;
        let deployment = &question.effective.deployment;
        for (name, place) in weight_places(build, &facts, question.tensors(), deployment)? {
            let Some(tensor) = question.tensors().get(name) else { continue };
            // Embeddings are looked up, a row for a token.
            if place.is_device() || matches!(tensor.place, Place::Input) {
                continue;
            }
            let bytes = tensor.bytes()?.get();
            let routed = name.contains("_exps.") || name.contains("_chexps.");
            let share = match chosen {
                Some((used, all)) if routed => mul(bytes, used)?.checked_div(all).unwrap_or(bytes),
                _ => bytes,
            };
            read = read.plus(Bytes::new(share)?)?;
        }
        Ok(Self { weights, read })
    }
}

/// What a deployment comes to if it leaves the margin free on every device.
fn standing_if_fits(question: &Question<'_>, aim: Aim) -> Result<Option<Standing>, PlanError> {
    let planned = match question.plan() {
        Ok(planned) => planned,
        Err(PlanError::Math(MathError::Refused { .. } | MathError::Unsupported { .. })) => return Ok(None),
        Err(other) => return Err(other),
    };
    for (place, device) in planned.allocation.devices.iter().zip(&question.effective.deployment.devices) {
        // What the driver takes is not the engine's business: it looks at what is free.
        let taken = place.used()?.minus(place.of(TermKind::DriverContext)?).unwrap_or(Bytes::ZERO);
        if taken.get().saturating_add(aim.margin) > device.free {
            return Ok(None);
        }
    }
    Standing::of(question, &planned).map(Some)
}

/// The largest value in `1..=cap` that `fits` takes, by bisection: what fits with more fits with less.
fn largest(cap: u64, mut fits: impl FnMut(u64) -> Result<bool, PlanError>) -> Result<u64, PlanError> {
    let (mut good, mut bad) = (0, cap.saturating_add(1));
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle)? { good = middle } else { bad = middle }
    }
    Ok(good)
}

/// Why the engine misses more context: it takes memory to grow along a straight line between the least and the most.
const STRAIGHT_LINE: &str =
    "the engine draws a straight line between what two contexts take, with room for layers that do not fit evenly";

/// Why it misses a division by layers.
const EXPERTS_FIRST: &str = "the engine leaves experts to the host and tries no smaller number of whole layers beside that";

/// Why it misses fewer experts on the host.
const BY_PROJECTION: &str =
    "the engine goes by its projection of every device, layer by layer from the back, and keeps what it placed first";

/// A small search: more context where the engine cut it, fewer layers or experts on the host where it left some there.
fn better(chosen: &Question<'_>, asked: &Deployment, aim: Aim) -> Result<Option<Better>, PlanError> {
    let planned = chosen.plan()?;
    let total = planned.resolved.total_context;
    let now = Standing::of(chosen, &planned)?;
    let with = |deployment: Deployment| {
        let mut question = chosen.clone();
        question.effective.deployment = deployment;
        question
    };
    let whole = |context: u64| Deployment { context: ContextRequest::Total(context), ..asked.clone() };
    let found = |deployment: &Deployment, (change, why): (String, &str), context: u64, standing: Standing| Better {
        change,
        why: why.to_string(),
        read_from_host: standing.read,
        read_as_chosen: now.read,
        options: crate::place::arguments(deployment),
        total_context: context,
        weights_on_devices: standing.weights,
        weights_as_chosen: now.weights,
    };
    let fits = |deployment: Deployment| standing_if_fits(&with(deployment), aim);
    // Everything on devices, with as much context as goes.
    let streams = if asked.kv_unified { 1 } else { asked.sequences.max(1) };
    let most = if aim.chooses_context { chosen.model.spec.max_context.saturating_mul(streams) } else { total };
    let step = streams.saturating_mul(256);
    let least = if aim.chooses_context { aim.least_context.saturating_mul(streams) } else { total };
    if fits(whole(least.min(most)))?.is_some() {
        let steps = largest(most / step, |steps| Ok(fits(whole(steps * step))?.is_some()))?;
        let context = if aim.chooses_context { (steps * step).min(most) } else { total };
        let deployment = whole(context);
        let Some(standing) = fits(deployment.clone())? else { return Ok(None) };
        let change = match context.checked_sub(total) {
            Some(more) if more > 0 => alloc::format!("all layers on devices with {more} more tokens of context"),
            Some(_) if standing.read < now.read => "all layers on devices".to_string(),
            _ => return Ok(None),
        };
        return Ok(Some(found(&deployment, (change, STRAIGHT_LINE), context, standing)));
    }
    // A part on the host, with the context that the engine chose.
    let layers = u64::try_from(chosen.model.spec.layers.len()).unwrap_or(0);
    let routes = chosen.model.spec.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Moe(_)));
    let mut candidates = Vec::new();
    if routes {
        let experts = |kept: u64| Deployment { n_cpu_moe: layers.saturating_sub(kept), ..whole(total) };
        let kept = largest(layers, |kept| Ok(fits(experts(kept))?.is_some()))?;
        if kept > 0 {
            let change = alloc::format!("experts of only {} layers on the host", layers - kept);
            candidates.push((experts(kept), change, BY_PROJECTION));
        }
    }
    let part = |on_devices: u64| Deployment { gpu_layers: Some(on_devices), ..whole(total) };
    let on_devices = largest(layers + 1, |count| Ok(fits(part(count))?.is_some()))?;
    if on_devices > 0 {
        let why = if routes { EXPERTS_FIRST } else { BY_PROJECTION };
        candidates.push((part(on_devices), alloc::format!("{on_devices} layers on devices"), why));
    }
    let mut best: Option<Better> = None;
    for (deployment, change, why) in candidates {
        let Some(standing) = fits(deployment.clone())? else { continue };
        if standing.read < best.as_ref().map_or(now.read, |best| best.read_from_host) {
            best = Some(found(&deployment, (change, why), total, standing));
        }
    }
    Ok(best)
}
