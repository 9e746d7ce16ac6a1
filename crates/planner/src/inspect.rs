//! What is in a model: parameters by part and by layer.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;

use plimsoll_math::engine::llama_cpp::recurrent::state_elements;
use plimsoll_math::spec::{Attention, FeedForward, KvSource, Layer, Mixer};
use plimsoll_math::tensor::{Component, Counts, Place};
use plimsoll_math::units::{Bytes, Params, add, mul};

use crate::error::PlanError;
use crate::model::Model;
use crate::response::{INSPECT_SCHEMA, Inspect, InspectModel, InspectParameters, LayerBrief};

/// The mixer's kind as the vocabulary names it.
#[must_use]
pub const fn mixer_name(mixer: &Mixer) -> &'static str {
    match mixer {
        Mixer::Attention(_) => "attention",
        Mixer::Mla(_) => "mla",
        Mixer::CompressedAttention(_) => "compressed_attention",
        Mixer::Mamba1(_) => "mamba1",
        Mixer::Mamba2(_) => "mamba2",
        Mixer::GatedDeltaNet(_) => "gated_delta_net",
        Mixer::KimiDelta(_) => "kimi_delta",
        Mixer::LightningAttention(_) => "lightning_attention",
        Mixer::Rwkv(_) => "rwkv",
        Mixer::ShortConv(_) => "short_conv",
        Mixer::Rglru(_) => "rglru",
        Mixer::Parallel(_) => "parallel",
        Mixer::None => "none",
        _ => "other",
    }
}

/// The feed-forward's kind as the vocabulary names it.
#[must_use]
pub const fn feed_forward_name(feed_forward: &FeedForward) -> &'static str {
    match feed_forward {
        FeedForward::Dense(_) => "dense",
        FeedForward::Moe(_) => "moe",
        FeedForward::ChannelMix { .. } => "channel_mix",
        FeedForward::None => "none",
        _ => "other",
    }
}

/// Elements of a token's cached key and value, and the window.
fn cached(mixer: &Mixer) -> (u64, u64, Option<u64>) {
    let of = |attention: &Attention| match attention.kv_source {
        KvSource::Own => (
            attention.n_kv_heads.saturating_mul(attention.k_head_dim),
            attention.n_kv_heads.saturating_mul(attention.v_head_dim),
            attention.window.tokens(),
        ),
        KvSource::Layer { .. } | KvSource::NotCached => (0, 0, attention.window.tokens()),
    };
    match mixer {
        Mixer::Attention(attention) => of(attention),
        Mixer::Parallel(parallel) => of(&parallel.attention),
        // One latent and one rope key; values are read from the latent.
        Mixer::Mla(mla) => (mla.kv_lora_rank.saturating_add(mla.qk_rope_head_dim), 0, mla.window.tokens()),
        Mixer::CompressedAttention(compressed) => (compressed.head_dim, 0, Some(compressed.window)),
        _ => (0, 0, None),
    }
}

fn brief(index: u32, layer: &Layer, model: &Model) -> Result<LayerBrief, PlanError> {
    let (kv_dim_k, kv_dim_v, window) = cached(&layer.mixer);
    let parameters = model.tensors.params_where(|tensor| tensor.counts.is_parameter() && tensor.place == Place::Layer(index))?;
    let (convolution, recurrence) = state_elements(&layer.mixer, model.spec.d_model)?.unwrap_or((0, 0));
    Ok(LayerBrief {
        index,
        mixer: mixer_name(&layer.mixer).to_string(),
        feed_forward: feed_forward_name(&layer.feed_forward).to_string(),
        parameters,
        kv_dim_k,
        kv_dim_v,
        window,
        state_bytes: Bytes::new(mul(4, add(convolution, recurrence)?)?)?,
    })
}

/// Takes a model apart.
///
/// # Errors
/// [`PlanError::Math`] on overflow.
pub fn inspect(model: &Model) -> Result<Inspect, PlanError> {
    let counts = model.parameters()?;
    let mut by_component: BTreeMap<Component, Params> = BTreeMap::new();
    for tensor in model.tensors.tensors.iter().filter(|tensor| tensor.counts.is_parameter()) {
        let entry = by_component.entry(tensor.component).or_insert(Params::ZERO);
        *entry = entry.plus(tensor.params()?)?;
    }
    let layers: Result<Vec<LayerBrief>, PlanError> =
        (0_u32..).zip(&model.spec.layers).map(|(index, layer)| brief(index, layer, model)).collect();
    Ok(Inspect {
        schema: INSPECT_SCHEMA.to_string(),
        model: InspectModel {
            name: model.name.clone(),
            architecture: model.spec.architecture.clone(),
            max_context: model.spec.max_context,
            llama_cpp_arch: model.spec.llama_cpp_arch.clone(),
            quantization: model.quantization.clone(),
            d_model: model.spec.d_model,
            n_vocab: model.spec.embedding.n_vocab,
        },
        parameters: InspectParameters {
            total: counts.total,
            active: counts.active,
            by_component,
            multi_token_prediction: model.tensors.params_where(|tensor| tensor.counts == Counts::MultiTokenPrediction)?,
            buffers: model.tensors.params_where(|tensor| tensor.counts.is_buffer())?,
        },
        layers: layers?,
        tensors: u64::try_from(model.tensors.tensors.len()).unwrap_or(u64::MAX),
        // What the files hold, where their headers were read.
        weight_bytes: model
            .published
            .as_ref()
            .unwrap_or(&model.tensors)
            .bytes_where(|tensor| tensor.counts != Counts::Derived)
            .ok(),
        notes: model.notes.clone(),
    })
}
