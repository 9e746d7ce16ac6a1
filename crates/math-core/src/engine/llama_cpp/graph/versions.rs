//! Models that keep several versions of the hidden state around latent attention (`src/models/hy-v4.cpp`): each half reads a
//! weighted sum of them, and its result is added to each by a weight of its own.

use super::decoder::{extras_are_known, has_weight};
use super::latent::{self, Sparse};
use super::parts::{NormKind, Parts};
use super::rows::Row;
use super::selector::SelectorCache;
use super::trunk::{Caches, HasWindow, Trunk, attended};
use crate::error::MathError;
use crate::spec::{FeedForward, Layer, Mixer, ModelSpec};

/// How many versions there are: the mixes of a layer are a weight before and one after each.
fn count(spec: &ModelSpec) -> Option<u64> {
    let mixes = spec.layers.first()?.extra.iter().find(|weight| weight.name == "hc_attn_base.weight")?;
    Some(mixes.shape.row() / 2).filter(|count| *count > 0)
}

/// Builds the whole graph; `false` when some layer is none of this file's, or several places share the work.
pub(super) fn build(
    parts: &mut Parts,
    spec: &ModelSpec,
    row: &Row,
    caches: &Caches,
    window: HasWindow<'_>,
) -> Result<bool, MathError> {
    let Some(versions) = count(spec).filter(|_| parts.places.is_single() && spec.encoder.is_none()) else { return Ok(false) };
    let fits = |layer: &Layer| {
        matches!(&layer.mixer, Mixer::Mla(mla) if latent::fits(mla) && mla.indexer.is_some() == caches.selector.is_some())
            && matches!(&layer.feed_forward, FeedForward::Dense(_) | FeedForward::Moe(_))
            && layer.cross_attention.is_none()
            && extras_are_known(layer, row.extras)
    };
    if !spec.layers.iter().all(fits) {
        return Ok(false);
    }
    let embedded = parts.embed(spec.d_model, spec.embedding.n_vocab)?;
    let positions = parts.positions(1)?;
    let (full, sliding) = attended(parts, spec, caches, window)?;
    let sparse = match caches.selector {
        // Its queries and keys are compared as they are, whatever the cache knows of rotations.
        Some(cache) => {
            let inputs = parts.selector_inputs(SelectorCache { rotation: 0, ..cache })?;
            Some(Sparse { inputs, chosen: None })
        }
        None => None,
    };
    let rows = parts.output_rows()?;
    let mut trunk = Trunk { sparse, ..Trunk::new(spec, row, caches, window, [positions, rows], (full, sliding)) };
    let mut current = parts.versions(embedded, versions)?;
    let steps = parts.layers(spec.layers.iter(), |_| ());
    for step in &steps {
        let Some(layer) = spec.layers.get(step.layer) else { continue };
        let Mixer::Mla(mla) = &layer.mixer else { continue };
        parts.begin_layer(step, layer);
        let [x, post] = parts.gate_versions(current)?;
        let normed = parts.norm(x, NormKind::Rms, false, true)?;
        let sinks = has_weight(layer, "attn_sinks.weight");
        let told = latent::Told { positions: Some(positions), scale: None, norms_rope_key: false, sinks };
        let half = latent::attention(parts, mla, &trunk.full, trunk.sparse.as_mut(), told, spec.d_model, normed)?;
        current = parts.add_to_versions(half, current, post)?;
        let [x, post] = parts.gate_versions(current)?;
        let normed = parts.norm(x, NormKind::Rms, false, true)?;
        let half = trunk.feed_forward(parts, layer, spec.d_model, normed)?;
        current = parts.add_to_versions(half, current, post)?;
    }
    parts.begin_output();
    current = parts.choose_versions(current, rows)?;
    current = parts.reduce_versions(current)?;
    current = parts.norm(current, NormKind::Rms, false, false)?;
    let outputs = spec.head.n_outputs.unwrap_or(spec.embedding.n_vocab);
    let logits = parts.linear(current, outputs)?;
    parts.finish(&spec.head, current, Some(logits))?;
    Ok(true)
}
