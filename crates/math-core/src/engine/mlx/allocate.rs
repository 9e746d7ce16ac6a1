//! What MLX-LM allocates: arrays of weights, caches, and what a step needs beside them.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use super::cache::{CacheRequest, Grows, Kept, ModelClass, PROMPT_STEP, STEP, layers};
use crate::allocation::{Allocation, PlaceAllocation, Term, TermKind};
use crate::engine::activations::{Widths, widths};
use crate::engine::terms::{between, exact, sum};
use crate::error::MathError;
use crate::spec::ModelSpec;
use crate::units::{add, mul};

const CACHE_SOURCE: &str = "MLX-LM 0.32.2: mlx_lm/models/cache.py; checked against its classes";
/// Prompts that are read at a time (`BatchGenerator`, `prefill_batch_size`).
const PROMPTS: u64 = 8;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The caches.
    pub cache: CacheRequest,
    /// Bytes of the weights, at least and at most.
    pub weights: (u64, u64),
    /// How they are stored, in words.
    pub stored: alloc::string::String,
    /// Whether a GPU does the work.
    pub device: bool,
}

/// Plans a batch.
///
/// # Errors
/// [`MathError::Unsupported`] for what is not followed, [`MathError::Refused`], [`MathError::Overflow`].
pub fn allocate(spec: &ModelSpec, class: Option<ModelClass>, request: &Request) -> Result<Allocation, MathError> {
    let kept = layers(spec, class)?;
    let mut terms = Vec::from([between(
        TermKind::Weights,
        "weights",
        request.weights,
        request.stored.clone(),
        "MLX-LM 0.32.2: utils.py:load, quantize_model; towers are left out",
    )?]);
    cache_terms(&kept, &request.cache, &mut terms)?;
    terms.push(work(spec, &request.cache)?);
    let place = PlaceAllocation { terms };
    let mut out = Allocation::default();
    if request.device {
        out.devices.push(place);
    } else {
        out.host = place;
    }
    Ok(out)
}

fn cache_terms(kept: &[Kept], request: &CacheRequest, terms: &mut Vec<Term>) -> Result<(), MathError> {
    let mut groups: Vec<(Kept, u64)> = Vec::new();
    for layer in kept {
        match groups.iter_mut().find(|(other, _)| other == layer) {
            Some((_, count)) => *count = add(*count, 1)?,
            None => groups.push((*layer, 1)),
        }
    }
    let (mut caches, mut states, mut reading) = (Vec::new(), Vec::new(), 0);
    for (layer, count) in groups {
        let bytes = request.bytes(layer)?;
        if bytes.kv.1 > 0 {
            let (label, tokens) = match layer.grows {
                Grows::Steps => ("layers that keep every token", format!("{} in steps of {STEP}", request.context)),
                Grows::Rotating { tokens } => {
                    ("layers with a rotating window", format!("at most {tokens} of {}", request.context))
                }
                Grows::Chunked { tokens } => {
                    ("layers with chunks", format!("at most {tokens} and a step of {}", request.context))
                }
            };
            let stored = request.bits.map_or_else(|| request.dtype.to_string(), |bits| format!("{bits} bits"));
            let formula = format!(
                "{count} layers x {} heads x ({} + {}) x {tokens} tokens x {} sequences, {stored}",
                layer.heads, layer.k, layer.v, request.sequences
            );
            let span = (mul(count, bytes.kv.0)?, mul(count, bytes.kv.1)?);
            caches.push(between(TermKind::KvCache, &format!("{count} {label}"), span, formula, CACHE_SOURCE)?);
        }
        if bytes.state > 0 {
            let formula = format!(
                "{count} layers x {} sequences x ({} x {} B + {} x 4 B)",
                request.sequences,
                layer.plain_state,
                request.dtype.block_bytes(),
                layer.single_state
            );
            states.push(exact(TermKind::RecurrentState, "states", mul(count, bytes.state)?, formula, CACHE_SOURCE)?);
        }
        reading = add(reading, mul(count, bytes.while_reading)?)?;
    }
    terms.extend(sum("KV cache", "sum of layers", CACHE_SOURCE, caches)?);
    terms.extend(sum("recurrent state", "sum of layers", CACHE_SOURCE, states)?);
    if reading > 0 {
        let formula = format!("a window holds up to {PROMPT_STEP} tokens more while a prompt is read");
        terms.push(between(TermKind::Other, "windows while a prompt is read", (0, reading), formula, CACHE_SOURCE)?);
    }
    Ok(())
}

/// What a step needs, between a step of one token and one of a whole part of the prompts.
fn work(spec: &ModelSpec, request: &CacheRequest) -> Result<Term, MathError> {
    let element = request.dtype.block_bytes();
    let Widths { widest, layer, .. } = widths(spec, 1)?;
    let logits = mul(mul(request.sequences, spec.embedding.n_vocab)?, element)?;
    let low = add(logits, mul(mul(request.sequences, widest)?, element)?)?;
    let tokens = mul(request.sequences.min(PROMPTS), request.context.min(PROMPT_STEP))?;
    let all_logits = mul(mul(tokens, spec.embedding.n_vocab)?, element)?;
    let high = add(add(mul(mul(tokens, layer)?, mul(2, element)?)?, all_logits)?, mul(4, logits)?)?;
    between(
        TermKind::Compute,
        "activations and logits",
        (low, high.max(low)),
        format!(
            "at least one token's widest buffer and logits, at most two layers' buffers and the logits of {PROMPT_STEP} tokens \
             of {PROMPTS} prompts"
        ),
        "derived from the widths of the layers; MLX keeps freed buffers until they are cleared",
    )
}

/// Bytes that one more token of a sequence adds once windows are full: a step's share.
///
/// # Errors
/// As [`layers`].
pub fn cache_bytes_per_token(spec: &ModelSpec, class: Option<ModelClass>, request: &CacheRequest) -> Result<u64, MathError> {
    let of = |context: u64| -> Result<u64, MathError> {
        let request = CacheRequest { context, sequences: 1, ..*request };
        layers(spec, class)?.iter().try_fold(0, |sum, layer| add(sum, request.bytes(*layer)?.kv.1))
    };
    // Longer than any window.
    Ok(of((1 << 40) + STEP)?.saturating_sub(of(1 << 40)?) / STEP)
}
