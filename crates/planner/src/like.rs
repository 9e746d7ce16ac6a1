//! What the engine itself would choose (`llama-server --fit`), and whether something better fits.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::allocation::TermKind;
use plimsoll_math::deployment::{ContextRequest, Deployment};
use plimsoll_math::engine::llama_cpp::fit::{Aim, choose};
use plimsoll_math::error::MathError;
use plimsoll_math::spec::FeedForward;
use plimsoll_math::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::engine::Question;
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

/// A better choice than the engine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Better {
    /// What is better, in words.
    pub change: String,
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

/// Whether a deployment leaves the margin free on every device, and the weights it then has there.
fn weights_if_fits(question: &Question<'_>, aim: Aim) -> Result<Option<Bytes>, PlanError> {
    let planned = match question.plan() {
        Ok(planned) => planned,
        Err(PlanError::Math(MathError::Refused { .. } | MathError::Unsupported { .. })) => return Ok(None),
        Err(other) => return Err(other),
    };
    let mut weights = Bytes::ZERO;
    for (place, device) in planned.allocation.devices.iter().zip(&question.effective.deployment.devices) {
        // What the driver takes is not the engine's business: it looks at what is free.
        let taken = place.used()?.minus(place.of(TermKind::DriverContext)?).unwrap_or(Bytes::ZERO);
        if taken.get().saturating_add(aim.margin) > device.free {
            return Ok(None);
        }
        weights = weights.plus(place.of(TermKind::Weights)?)?;
    }
    Ok(Some(weights))
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

/// A small search: more context where the engine cut it, fewer layers or experts on the host where it left some there.
fn better(chosen: &Question<'_>, asked: &Deployment, aim: Aim) -> Result<Option<Better>, PlanError> {
    let planned = chosen.plan()?;
    let total = planned.resolved.total_context;
    let mut as_chosen = Bytes::ZERO;
    for place in &planned.allocation.devices {
        as_chosen = as_chosen.plus(place.of(TermKind::Weights)?)?;
    }
    let with = |deployment: Deployment| {
        let mut question = chosen.clone();
        question.effective.deployment = deployment;
        question
    };
    let whole = |context: u64| Deployment { context: ContextRequest::Total(context), ..asked.clone() };
    let found = |deployment: &Deployment, change: String, context: u64, weights: Bytes| Better {
        change,
        options: crate::place::arguments(deployment),
        total_context: context,
        weights_on_devices: weights,
        weights_as_chosen: as_chosen,
    };
    // Everything on devices, with as much context as goes.
    let streams = if asked.kv_unified { 1 } else { asked.sequences.max(1) };
    let most = if aim.chooses_context { chosen.model.spec.max_context.saturating_mul(streams) } else { total };
    let step = streams.saturating_mul(256);
    let least = if aim.chooses_context { aim.least_context.saturating_mul(streams) } else { total };
    if weights_if_fits(&with(whole(least.min(most))), aim)?.is_some() {
        let steps = largest(most / step, |steps| Ok(weights_if_fits(&with(whole(steps * step)), aim)?.is_some()))?;
        let context = if aim.chooses_context { (steps * step).min(most) } else { total };
        let deployment = whole(context);
        let weights = weights_if_fits(&with(deployment.clone()), aim)?.unwrap_or(Bytes::ZERO);
        if context > total {
            let change = alloc::format!("all layers on devices with {} more tokens of context", context - total);
            return Ok(Some(found(&deployment, change, context, weights)));
        }
        if weights > as_chosen && context == total {
            return Ok(Some(found(&deployment, "all layers on devices".to_string(), context, weights)));
        }
        return Ok(None);
    }
    // A part on the host, with the context that the engine chose.
    let layers = u64::try_from(chosen.model.spec.layers.len()).unwrap_or(0);
    let routes = chosen.model.spec.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Moe(_)));
    let mut candidates = Vec::new();
    if routes {
        let experts = |kept: u64| Deployment { n_cpu_moe: layers.saturating_sub(kept), ..whole(total) };
        let kept = largest(layers, |kept| Ok(weights_if_fits(&with(experts(kept)), aim)?.is_some()))?;
        if kept > 0 {
            candidates.push((experts(kept), alloc::format!("experts of only {} layers on the host", layers - kept)));
        }
    }
    let part = |on_devices: u64| Deployment { gpu_layers: Some(on_devices), ..whole(total) };
    let on_devices = largest(layers + 1, |count| Ok(weights_if_fits(&with(part(count)), aim)?.is_some()))?;
    if on_devices > 0 {
        candidates.push((part(on_devices), alloc::format!("{on_devices} layers on devices")));
    }
    let mut best: Option<Better> = None;
    for (deployment, change) in candidates {
        let Some(weights) = weights_if_fits(&with(deployment.clone()), aim)? else { continue };
        if weights > best.as_ref().map_or(as_chosen, |best| best.weights_on_devices) {
            best = Some(found(&deployment, change, total, weights));
        }
    }
    Ok(best)
}
