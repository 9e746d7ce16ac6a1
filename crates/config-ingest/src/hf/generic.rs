//! A structural guess for an unknown architecture, on request only.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use plimsoll_math::spec::{Dense, FeedForward, Mixer, ModelSpec};

use super::config::Config;
use super::families::Family;
use super::lookup::LANGUAGE_MODEL_KEYS;
use super::reader::{HeadKind, Reader, Shared};
use super::recipe::{self, Dims, N_EXPERTS};
use crate::error::IngestError;

/// The row that stands in for an unknown family: it has no names and no defaults.
static GENERIC: Family =
    Family { model_types: &[], architectures: &[], llama_cpp: None, is_wrapper: false, defaults: "", build: decoder };

/// A plain decoder with what the config names: grouped-query attention in every layer, a gated feed-forward or experts.
pub(super) fn build(root: Config<'_>, shared: &Shared, name: &str) -> Result<ModelSpec, IngestError> {
    shared.note(format!("{name} is unknown: read as a generic decoder, so every figure is a rough estimate"));
    let nested = root.child(LANGUAGE_MODEL_KEYS)?;
    if let Some(nested) = &nested {
        shared.note(format!("only {} is counted, not the towers around it", nested.path()));
    }
    let config = nested.unwrap_or_else(|| root.clone());
    let class: String = name.to_owned();
    decoder(&Reader { config, root, family: &GENERIC, class, head: HeadKind::LanguageModel, tied: None, shared })
}

fn decoder(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let n_experts = r.opt(N_EXPERTS).unwrap_or(0);
    let dims = if n_experts > 1 { Dims::without_ff(r) } else { Dims::read(r) };
    let moe = recipe::moe_after_dense(r, if n_experts > 1 { dims.n_layers } else { 0 });
    let d_ff = if n_experts > 1 { r.opt(recipe::D_FF).unwrap_or(0) } else { dims.d_ff };
    let routed = (n_experts > 1).then(|| {
        let (n, k) = recipe::expert_counts(r);
        let width = r.opt(&["moe_intermediate_size", "expert_ffn_hidden_size"]).unwrap_or(d_ff);
        let shared = r.opt(&["n_shared_experts", "num_shared_experts"]).unwrap_or(0).saturating_mul(width);
        let mut moe = recipe::experts(n, k, width);
        moe.shared = recipe::shared_experts(r.opt(&["shared_expert_intermediate_size"]).unwrap_or(shared));
        moe
    });
    let layers = dims
        .layers()
        .zip(moe.into_iter().chain(core::iter::repeat(false)))
        .map(|(_, has_experts)| {
            let feed_forward = match (&routed, has_experts) {
                (Some(moe), true) => FeedForward::Moe(moe.clone()),
                _ => FeedForward::Dense(Dense::gated(d_ff)),
            };
            recipe::layer(Mixer::Attention(dims.attention()), feed_forward, recipe::pre_norms(dims.d_model, false))
        })
        .collect();
    Ok(recipe::decoder(r, &dims, layers))
}
