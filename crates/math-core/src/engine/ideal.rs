//! The textbook: no rounding, no alignment, no workspace. What a model would take if engines were free of cost.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::allocation::{Allocation, Certainty, PlaceAllocation, Term, TermKind};
use crate::deployment::{Backend, ContextRequest, Deployment};
use crate::engine::llama_cpp::recurrent::state_elements;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Attends, Attention, Indexer, KvSource, Mixer, ModelSpec};
use crate::tensor::{Counts, TensorTable};
use crate::units::{Bytes, add, mul};

/// What one layer keeps for past tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerCache {
    /// Elements of keys per kept token.
    pub k: u64,
    /// Elements of values per kept token.
    pub v: u64,
    /// At most so many tokens are kept.
    pub window: Option<u64>,
    /// Tokens that share an entry.
    pub ratio: u64,
}

impl LayerCache {
    fn tokens(&self, context: u64) -> u64 {
        let seen = self.window.map_or(context, |window| context.min(window));
        seen / self.ratio.max(1)
    }
}

fn own_cache(attention: &Attention) -> Result<Option<LayerCache>, MathError> {
    if attention.kv_source != KvSource::Own {
        return Ok(None);
    }
    Ok(Some(LayerCache {
        k: mul(attention.n_kv_heads, attention.k_head_dim)?,
        v: mul(attention.n_kv_heads, attention.v_head_dim)?,
        window: attention.window.tokens(),
        ratio: 1,
    }))
}

fn selector_cache(indexer: Option<&Indexer>, ratio: u64) -> Option<LayerCache> {
    indexer.filter(|indexer| indexer.own).map(|indexer| LayerCache { k: indexer.head_dim, v: 0, window: None, ratio })
}

/// What the mixer of a layer keeps: none, one or several caches.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn layer_caches(mixer: &Mixer) -> Result<Vec<LayerCache>, MathError> {
    let mut out = Vec::new();
    match mixer.attends() {
        Attends::Heads(attention) => {
            out.extend(own_cache(attention)?);
            out.extend(selector_cache(attention.indexer.as_ref(), 1));
        }
        Attends::Latent(mla) => {
            let k = add(mla.kv_lora_rank, mla.qk_rope_head_dim)?;
            out.push(LayerCache { k, v: 0, window: mla.window.tokens(), ratio: 1 });
            out.extend(selector_cache(mla.indexer.as_ref(), 1));
        }
        Attends::Compressed(attention) => {
            out.push(LayerCache { k: attention.head_dim, v: 0, window: Some(attention.window), ratio: 1 });
            if attention.ratio > 0 {
                out.push(LayerCache { k: attention.head_dim, v: 0, window: None, ratio: attention.ratio });
                out.extend(selector_cache(attention.indexer.as_ref(), attention.ratio));
            }
        }
        Attends::Never => {}
    }
    Ok(out)
}

/// Bytes of `elements` in a format, a started block counted in full.
fn bytes_of(format: StorageFormat, elements: u64) -> Result<u64, MathError> {
    mul(elements.div_ceil(format.block_len()), format.block_bytes())
}

/// Tokens of one sequence.
fn tokens_per_sequence(spec: &ModelSpec, deployment: &Deployment) -> u64 {
    match deployment.context {
        ContextRequest::PerSequence(tokens) => tokens,
        ContextRequest::Total(tokens) => tokens / deployment.sequences.max(1),
        ContextRequest::ModelMaximum => spec.max_context,
    }
}

/// The textbook's allocation: weights once, keys and values of every token a layer can see, one state a sequence.
///
/// # Errors
/// [`MathError::Overflow`] or [`MathError::PartialBlock`].
pub fn allocate(spec: &ModelSpec, table: &TensorTable, deployment: &Deployment) -> Result<Allocation, MathError> {
    let context = tokens_per_sequence(spec, deployment);
    let sequences = deployment.sequences.max(1);
    let keep =
        |counts: Counts| !matches!(counts, Counts::Unused) && (deployment.load_mtp || counts != Counts::MultiTokenPrediction);
    let weights = table.bytes_where(|tensor| keep(tensor.counts))?;
    let (mut full, mut bounded, mut state): (u64, u64, u64) = (0, 0, 0);
    for layer in &spec.layers {
        for cache in layer_caches(&layer.mixer)? {
            let tokens = mul(cache.tokens(context), sequences)?;
            let bytes = add(
                bytes_of(deployment.kv_type_k, mul(cache.k, tokens)?)?,
                bytes_of(deployment.kv_type_v, mul(cache.v, tokens)?)?,
            )?;
            let sum = if cache.window.is_some() { &mut bounded } else { &mut full };
            *sum = add(*sum, bytes)?;
        }
        if let Some((r, s)) = state_elements(&layer.mixer, spec.d_model)? {
            state = add(state, mul(4, mul(add(r, s)?, sequences)?)?)?;
        }
    }
    let term = |component: TermKind, label: &str, bytes: Bytes, formula: String| Term {
        component,
        label: label.to_string(),
        bytes,
        certainty: Certainty::Exact,
        formula,
        source: "textbook".to_string(),
        children: Vec::new(),
    };
    let mut terms = Vec::from([term(TermKind::Weights, "weights", weights, "every tensor as stored".to_string())]);
    let mut caches = Vec::new();
    let layers = "keys and values of each layer";
    if full > 0 {
        let formula = format!("{layers} x {context} tokens x {sequences} sequences");
        caches.push(term(TermKind::KvCache, "full-attention layers", Bytes::new(full)?, formula));
    }
    if bounded > 0 {
        let formula = format!("{layers} x at most its window of {context} tokens x {sequences} sequences");
        caches.push(term(TermKind::KvCache, "sliding-window layers", Bytes::new(bounded)?, formula));
    }
    if !caches.is_empty() {
        let mut sum = term(TermKind::KvCache, "KV cache", Bytes::new(add(full, bounded)?)?, "sum of layers".to_string());
        sum.children = caches;
        terms.push(sum);
    }
    if state > 0 {
        let formula = format!("state of each layer x 4 B (f32) x {sequences} sequences");
        terms.push(term(TermKind::RecurrentState, "recurrent state", Bytes::new(state)?, formula));
    }
    let place = PlaceAllocation { terms };
    let mut out = Allocation::default();
    match deployment.backend() {
        Backend::Cpu => out.host = place,
        Backend::Cuda { .. } | Backend::Metal => out.devices.push(place),
    }
    Ok(out)
}

/// Bytes that one more token adds once every window is full, rounded down.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn cache_bytes_per_token(spec: &ModelSpec, deployment: &Deployment) -> Result<u64, MathError> {
    let mut parts = 0;
    for layer in &spec.layers {
        for cache in layer_caches(&layer.mixer)?.iter().filter(|cache| cache.window.is_none()) {
            let each = add(bytes_of(deployment.kv_type_k, cache.k)?, bytes_of(deployment.kv_type_v, cache.v)?)?;
            parts = add(parts, mul(each, 128)? / cache.ratio.max(1))?;
        }
    }
    Ok(parts / 128)
}
