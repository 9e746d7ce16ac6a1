//! What a model in `generate` allocates: parameters, cache, and what a step needs beside them.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::cache::{CacheClass, CacheRequest, Kept, LayerBytes, ModelClass, layers};
use crate::allocation::{Allocation, PlaceAllocation, Term, TermKind};
use crate::engine::activations::{Widths, widths};
use crate::engine::terms::{between, exact, sum};
use crate::error::MathError;
use crate::spec::ModelSpec;
use crate::tensor::{Counts, TensorTable};
use crate::units::{Bytes, add, mul};

const CACHE_SOURCE: &str = "Transformers 5.23.0: src/transformers/cache_utils.py; checked against its classes";

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The cache.
    pub cache: CacheRequest,
    /// What the model's class decides.
    pub class: ModelClass,
    /// Whether a CUDA device does the work.
    pub cuda: bool,
    /// Whether there is a device beside the host at all.
    pub device: bool,
}

/// Weights as they are loaded.
#[derive(Debug, Clone, Copy)]
pub enum Loaded<'a> {
    /// Every parameter in the type the model computes in.
    Plain(&'a TensorTable),
    /// The tensors of a quantized checkpoint as its files store them.
    Stored(&'a TensorTable),
    /// A quantized checkpoint of which the config alone is known, or which the library may expand while it loads: no
    /// element in less than `bits`, none in more than the type the model computes in.
    Between {
        /// The parameters.
        table: &'a TensorTable,
        /// Bits of the narrowest element.
        bits: u64,
    },
}

/// Plans the cache of a batch and everything beside it.
///
/// # Errors
/// [`MathError::Unsupported`] for a mechanism that is not followed, [`MathError::Refused`], [`MathError::Overflow`].
pub fn allocate(spec: &ModelSpec, loaded: Loaded<'_>, request: &Request) -> Result<Allocation, MathError> {
    let kept = layers(spec, request.class, request.cache.class)?;
    let mut device = Vec::from([weights(loaded, request)?]);
    let mut host = Vec::new();
    cache_terms(&kept, &request.cache, &mut device, &mut host)?;
    device.push(work(spec, &kept, request)?);
    if request.cuda {
        device.push(between(
            TermKind::DriverContext,
            "CUDA context and cuBLAS",
            (300 << 20, 768 << 20),
            "300 to 768 MiB for the first process on a device".to_string(),
            "range seen in public logs; depends on driver and architecture",
        )?);
    }
    let mut out = Allocation::default();
    if request.device {
        out.devices.push(PlaceAllocation { terms: device });
        out.host = PlaceAllocation { terms: host };
    } else {
        device.extend(host);
        out.host = PlaceAllocation { terms: device };
    }
    Ok(out)
}

fn weights(loaded: Loaded<'_>, request: &Request) -> Result<Term, MathError> {
    let source = "Transformers 5.23.0: PreTrainedModel.from_pretrained; checked against parameters of its classes";
    match loaded {
        Loaded::Plain(table) => {
            let count = table.total_params()?.get();
            let bytes = mul(count, request.cache.dtype.block_bytes())?;
            let formula = format!("{count} parameters x {} B ({})", request.cache.dtype.block_bytes(), request.cache.dtype);
            exact(TermKind::Weights, "weights", bytes, formula, source)
        }
        Loaded::Between { table, bits } => {
            let count = table.total_params()?.get();
            let most = mul(count, request.cache.dtype.block_bytes())?;
            let formula =
                format!("{count} parameters, all of them in {bits} bits at least and in {} at most", request.cache.dtype);
            between(TermKind::Weights, "weights", (mul(count, bits)? / 8, most), formula, "the config's quantization")
        }
        Loaded::Stored(table) => {
            let bytes = table.bytes_where(|tensor| tensor.counts != Counts::MultiTokenPrediction)?.get();
            let formula = "the checkpoint's tensors as stored, kept packed".to_string();
            exact(TermKind::Weights, "weights", bytes, formula, "the headers of the checkpoint's files")
        }
    }
}

/// Groups of equal layers become one term each.
fn cache_terms(kept: &[Kept], request: &CacheRequest, device: &mut Vec<Term>, host: &mut Vec<Term>) -> Result<(), MathError> {
    let mut groups: Vec<(Kept, u64)> = Vec::new();
    for layer in kept {
        match groups.iter_mut().find(|(other, _)| other == layer) {
            Some((_, count)) => *count = add(*count, 1)?,
            None => groups.push((*layer, 1)),
        }
    }
    let (mut caches, mut states, mut behind) = (Vec::new(), Vec::new(), (0, 0));
    for (layer, count) in groups {
        let bytes = request.bytes(layer)?;
        if bytes.kv > 0 {
            caches.push(cache_term(layer, count, bytes, request)?);
        }
        if bytes.state > 0 {
            let formula = format!(
                "{count} layers x {} sequences x ({} of convolution x {} B + {} of state x 4 B)",
                request.sequences,
                layer.conv,
                request.dtype.block_bytes(),
                layer.recurrent
            );
            let all = mul(count, bytes.state)?;
            states.push(exact(TermKind::RecurrentState, "states", all, formula, CACHE_SOURCE)?);
        }
        behind = (add(behind.0, mul(count, bytes.behind)?)?, add(behind.1, mul(count, bytes.behind_at_most)?)?);
    }
    if matches!(request.class, CacheClass::Offloaded | CacheClass::OffloadedStatic) {
        offload(kept, request, caches, device, host)?;
    } else {
        device.extend(sum("KV cache", "sum of layers", CACHE_SOURCE, caches)?);
    }
    device.extend(sum("recurrent state", "sum of layers", CACHE_SOURCE, states)?);
    if behind.1 > 0 {
        let formula = "windows are views: what they were cut from stays allocated, one token after a generated one, the \
                       whole prompt after a prompt"
            .to_string();
        device.push(between(TermKind::Other, "memory behind window views", behind, formula, CACHE_SOURCE)?);
    }
    Ok(())
}

fn cache_term(layer: Kept, count: u64, bytes: LayerBytes, request: &CacheRequest) -> Result<Term, MathError> {
    let stored = if request.class == CacheClass::Fp8 { "8-bit floats".to_string() } else { request.dtype.to_string() };
    let label = match (layer.window, layer.per_token) {
        (Some(window), _) => format!("{count} layers with a window of {window}"),
        (None, _) if layer.conv > 0 => format!("{count} layers beside a state"),
        (None, _) => format!("{count} full-attention layers"),
    };
    let tokens = match layer.window {
        Some(window) if request.class.is_static() => format!("at most {window} of {}", request.context),
        Some(window) => format!("at most {} of {}", window.saturating_sub(1), request.context),
        None => request.context.to_string(),
    };
    let selector = if layer.selector > 0 { format!(" + {} of selector keys", layer.selector) } else { String::new() };
    let formula = format!(
        "{count} layers x {} elements{selector} x {tokens} tokens x {} sequences, {stored}",
        layer.per_token, request.sequences
    );
    exact(TermKind::KvCache, &label, mul(count, bytes.kv)?, formula, CACHE_SOURCE)
}

/// The layer that works and the one that is fetched for it are on the device (`Cache.update`); the others wait on the
/// host.
fn offload(
    kept: &[Kept],
    request: &CacheRequest,
    caches: Vec<Term>,
    device: &mut Vec<Term>,
    host: &mut Vec<Term>,
) -> Result<(), MathError> {
    let stays = |layer: &Kept| request.class == CacheClass::OffloadedStatic && layer.window.is_some();
    let mut on_device = 0;
    let mut away = Vec::new();
    for layer in kept {
        let bytes = request.bytes(*layer)?.kv;
        if stays(layer) {
            on_device = add(on_device, bytes)?;
        } else {
            away.push(bytes);
        }
    }
    away.sort_unstable_by(|a, b| b.cmp(a));
    let all = away.iter().try_fold(0, |sum, bytes| add(sum, *bytes))?;
    let two = away.iter().take(2).try_fold(0, |sum, bytes| add(sum, *bytes))?;
    let one = away.first().copied().unwrap_or(0);
    let high = add(on_device, two)?;
    let formula = format!("the layer at work and the next one{}", if on_device > 0 { ", and all windows" } else { "" });
    device.push(between(TermKind::KvCache, "KV cache", (add(on_device, one)?, high), formula, CACHE_SOURCE)?);
    let mut term = between(
        TermKind::KvCache,
        "KV cache on the host",
        (all.saturating_sub(two), all),
        "the layers that wait".to_string(),
        CACHE_SOURCE,
    )?;
    if on_device == 0 {
        term.children = caches;
    }
    host.push(term);
    Ok(())
}

/// What a step needs beside weights and cache, between a step of one token and a prompt as long as the context.
fn work(spec: &ModelSpec, kept: &[Kept], request: &Request) -> Result<Term, MathError> {
    let element = request.cache.dtype.block_bytes();
    let sequences = request.cache.sequences;
    let Widths { widest, layer, rotary } = widths(spec, 1)?;
    // The logits of one token, in the model's type and in single precision (`GenerationMixin._sample`).
    let logits = mul(mul(sequences, spec.embedding.n_vocab)?, add(element, 4)?)?;
    let low = add(logits, mul(mul(sequences, widest)?, element)?)?;
    let tokens = mul(sequences, request.cache.context)?;
    // A dynamic layer is copied as it grows; rotary tables are kept in single precision.
    let copied = kept.iter().try_fold(0, |most: u64, layer| Ok::<u64, MathError>(most.max(request.cache.bytes(*layer)?.kv)))?;
    let tables = mul(mul(request.cache.context, rotary)?, 8)?;
    let mut high = add(mul(mul(tokens, layer)?, mul(2, element)?)?, logits)?;
    high = add(add(high, copied)?, tables)?;
    // Buffers of modules, rounding of torch's allocator (2 MiB a segment).
    high = add(high, 64 << 20)?;
    let mut term = between(
        TermKind::Compute,
        "activations and logits",
        (low, high.max(low)),
        "at least one token's widest buffer and logits, at most two layers' buffers over a prompt of the whole context, the \
         copy of a growing layer and rotary tables"
            .to_string(),
        "derived from the widths of the layers; torch's allocator decides",
    )?;
    term.bytes = Bytes::new(high.max(low))?;
    Ok(term)
}

/// Bytes that one more token of every sequence adds once windows are full.
///
/// # Errors
/// As [`layers`].
pub fn cache_bytes_per_token(spec: &ModelSpec, class: ModelClass, request: &CacheRequest) -> Result<u64, MathError> {
    let of = |context: u64| -> Result<u64, MathError> {
        let request = CacheRequest { context, sequences: 1, ..*request };
        layers(spec, class, request.class)?.iter().try_fold(0, |sum, layer| add(sum, request.bytes(*layer)?.kv))
    };
    // Longer than any window.
    Ok(of((1 << 40) + 1)?.saturating_sub(of(1 << 40)?))
}
