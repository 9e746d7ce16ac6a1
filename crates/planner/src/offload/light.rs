//! Bytes by layer: enough to find a promising placement in microseconds. What it finds is always checked by a plan.

use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::engine::ideal::layer_caches;
use plimsoll_math::tensor::{Component, Place};
use plimsoll_math::throughput::float;

use crate::engine::Question;
use crate::error::PlanError;

/// What one layer weighs; the last entry of [`Light::layers`] is the output.
#[derive(Debug, Clone, Copy, Default)]
struct LayerBytes {
    dense: u64,
    experts: u64,
    /// Its share of the caches, in millionths.
    cache: u64,
}

/// A model as the search sees it.
#[derive(Debug)]
pub(super) struct Light {
    layers: Vec<LayerBytes>,
    /// Bytes of caches and states of all layers.
    cache: u64,
}

/// What is put where, before the engine's own words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Layers that stay on the host, the first ones; as many as layers and one leaves nothing on devices.
    pub(super) first: u64,
    /// First layers whose routed experts stay on the host.
    pub(super) experts: u64,
    /// Whether caches lie where their layers are.
    pub(super) kv_offload: bool,
}

impl Light {
    /// `cache` is what all caches and states take.
    pub(super) fn new(question: &Question<'_>, cache: u64) -> Result<Self, PlanError> {
        let spec = question.converted();
        let mut layers = vec![LayerBytes::default(); spec.layers.len() + 1];
        let output = spec.layers.len();
        let tied = !question.tensors().tensors.iter().any(|tensor| tensor.component == Component::LmHead);
        for tensor in &question.tensors().tensors {
            let at = match tensor.place {
                Place::Layer(index) => usize::try_from(index).unwrap_or(usize::MAX),
                Place::Output => output,
                // A head that is the input embedding is loaded once more where the output is.
                Place::Input if tied && tensor.name == "token_embd.weight" => output,
                _ => continue,
            };
            let Some(layer) = layers.get_mut(at) else { continue };
            let bytes = tensor.bytes()?.get();
            if tensor.component == Component::Experts {
                layer.experts = layer.experts.saturating_add(bytes);
            } else {
                layer.dense = layer.dense.saturating_add(bytes);
            }
        }
        let context = match question.effective.deployment.context {
            plimsoll_math::deployment::ContextRequest::PerSequence(tokens) => tokens,
            plimsoll_math::deployment::ContextRequest::Total(tokens) => tokens,
            plimsoll_math::deployment::ContextRequest::ModelMaximum => spec.max_context,
        };
        // A recurrent state is no larger than a window's worth of keys: it counts as one token of each.
        let mut kept = Vec::new();
        for layer in &spec.layers {
            let caches = layer_caches(&layer.mixer)?;
            let rows = |cache: &plimsoll_math::engine::ideal::LayerCache| {
                let seen = cache.window.map_or(context, |window| context.min(window.saturating_add(512)));
                (cache.k.saturating_add(cache.v)).saturating_mul(seen / cache.ratio.max(1))
            };
            kept.push(caches.iter().map(rows).fold(0, u64::saturating_add).max(1));
        }
        let all = kept.iter().fold(0_u64, |sum, one| sum.saturating_add(*one)).max(1);
        for (layer, kept) in layers.iter_mut().zip(&kept) {
            let share = u128::from(*kept).saturating_mul(1_000_000) / u128::from(all);
            layer.cache = u64::try_from(share).unwrap_or(1_000_000);
        }
        Ok(Self { layers, cache })
    }

    /// Layers with the output.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.layers.len()).unwrap_or(0)
    }

    /// Whether any layer routes tokens to experts.
    pub(super) fn routes(&self) -> bool {
        self.layers.iter().any(|layer| layer.experts > 0)
    }

    /// Bytes that each layer puts on its device.
    fn costs(&self, cut: Cut) -> Vec<u64> {
        (0_u64..)
            .zip(&self.layers)
            .skip(usize::try_from(cut.first).unwrap_or(usize::MAX))
            .map(|(index, layer)| {
                let experts = if index >= cut.experts { layer.experts } else { 0 };
                let cache = u128::from(self.cache) * u128::from(layer.cache) / 1_000_000;
                let cache = if cut.kv_offload { u64::try_from(cache).unwrap_or(u64::MAX) } else { 0 };
                layer.dense.saturating_add(experts).saturating_add(cache)
            })
            .collect()
    }

    /// How many layers each device gets so that reading them takes least time: `rooms` bytes on each at most, `speeds` their
    /// bandwidths. Layers stay in order, as the engine divides them. `None` when they do not fit.
    pub(super) fn divide(&self, cut: Cut, rooms: &[u64], speeds: &[f64]) -> Option<Vec<u64>> {
        let costs = self.costs(cut);
        if let [room] = rooms {
            let sum = costs.iter().fold(0_u64, |sum, cost| sum.saturating_add(*cost));
            return (sum <= *room).then(|| vec![u64::try_from(costs.len()).unwrap_or(0)]);
        }
        let mut prefix = vec![0_u64];
        for cost in &costs {
            prefix.push(prefix.last().copied().unwrap_or(0).saturating_add(*cost));
        }
        let between = |from: usize, to: usize| -> u64 {
            prefix.get(to).copied().unwrap_or(u64::MAX).saturating_sub(prefix.get(from).copied().unwrap_or(0))
        };
        // best[j]: the least time for the first j layers on the devices so far, and how many the last of these took.
        let mut best: Vec<Option<f64>> = vec![None; prefix.len()];
        if let Some(none) = best.first_mut() {
            *none = Some(0.0);
        }
        let mut taken: Vec<Vec<usize>> = Vec::new();
        for (room, speed) in rooms.iter().zip(speeds) {
            let mut next: Vec<Option<f64>> = vec![None; prefix.len()];
            let mut took = vec![0; prefix.len()];
            for from in 0..prefix.len() {
                let Some(so_far) = best.get(from).copied().flatten() else { continue };
                for to in from..prefix.len() {
                    let bytes = between(from, to);
                    if bytes > *room {
                        break;
                    }
                    let time = so_far + float(bytes) / speed.max(1.0);
                    if let (Some(slot), Some(count)) = (next.get_mut(to), took.get_mut(to))
                        && slot.is_none_or(|other| time < other)
                    {
                        *slot = Some(time);
                        *count = to - from;
                    }
                }
            }
            best = next;
            taken.push(took);
        }
        let mut at = prefix.len().saturating_sub(1);
        best.get(at).copied().flatten()?;
        let mut counts = Vec::new();
        for took in taken.iter().rev() {
            let count = took.get(at).copied().unwrap_or(0);
            counts.push(u64::try_from(count).unwrap_or(0));
            at = at.saturating_sub(count);
        }
        counts.reverse();
        Some(counts)
    }
}
