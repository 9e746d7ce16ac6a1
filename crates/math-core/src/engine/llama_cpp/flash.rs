//! Whether a device has a flash-attention kernel for a model: what `--flash-attn auto` decides.
//!
//! The engine builds the graph with the fused node and looks where the scheduler put it: on another processor than its
//! layer means no (`llama-context.cpp:resolve_fused_ops`).

use crate::deployment::{Backend, Deployment, Location};
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::layout::Layout;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Attends, Layer, Mixer, ModelSpec};
use crate::units::add;

/// Batches below this size stay where the weights are (`op_offload_min_batch_size`).
pub(super) const OFFLOADED_BATCH: u64 = 32;

/// Heads of one attention layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// Width of a key head.
    pub(super) k: u64,
    /// Width of a value head.
    pub(super) v: u64,
    /// Query heads per key head.
    pub(super) shared: u64,
}

/// Whether attention adds relative positions to its scores, which no fused kernel does (`models/t5.cpp`): only what reads an
/// encoder's output is fused then.
const fn scores_are_biased(spec: &ModelSpec) -> bool {
    spec.encoder.is_some()
}

/// Whether every attention layer of the model runs fused on the one device, or on the processor.
pub(crate) fn runs_fused(spec: &ModelSpec, facts: Facts<'_>, deployment: &Deployment) -> Result<bool, MathError> {
    spec.layers
        .iter()
        .try_fold(true, |all, layer| Ok(all && layer_runs_fused(spec, layer, facts, deployment, deployment.backend())?))
}

/// Whether the scheduler puts every layer's fused attention where the layer is: otherwise `auto` means off for all of them.
pub(crate) fn stays_with_its_layers(
    spec: &ModelSpec,
    facts: Facts<'_>,
    deployment: &Deployment,
    layout: &Layout,
) -> Result<bool, MathError> {
    for (index, layer) in (0_u32..).zip(&spec.layers) {
        if matches!(layer.mixer.attends(), Attends::Never) || (scores_are_biased(spec) && layer.cross_attention.is_none()) {
            continue;
        }
        // Keys and values of an encoder's output are many rows, which a device takes over from the host.
        let takes_over = layout.offloads_operations() && layout.layer(index) == Location::Host;
        if layer.cross_attention.is_some() && takes_over && spec.max_context >= OFFLOADED_BATCH {
            return Ok(false);
        }
        let place = fused_place(spec, facts, layout, index);
        let backend = layout.backend(place);
        let supported = layer_runs_fused(spec, layer, facts, deployment, backend)?;
        let lands = if supported { place } else { Location::Host };
        if lands != layout.layer(index) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where the scheduler puts a layer's fused attention, if it runs there: with the cache that is written before it, when that
/// is a device's; else with the operation of known place that follows, when that is a device's
/// (`ggml-backend.cpp:ggml_backend_sched_split_graph`, pass 2).
fn fused_place(spec: &ModelSpec, facts: Facts<'_>, layout: &Layout, index: u32) -> Location {
    let cache = layout.cache(index);
    if cache != Location::Host {
        return cache;
    }
    // Some models gather the next recurrent layer's state before they finish this one's output.
    let layers = spec.layers.iter().zip(0_u32..);
    let own = |layer: &Layer| matches!(layer.mixer, Mixer::Parallel(_));
    let next = if facts.gathers_states_early() {
        let from = usize::try_from(index).unwrap_or(usize::MAX);
        layers.skip(from).find(|(layer, at)| if *at == index { own(layer) } else { !matches!(layer.mixer, Mixer::None) })
    } else {
        None
    };
    match next {
        Some((layer, at)) if own(layer) || matches!(layer.mixer.attends(), Attends::Never) => layout.cache(at),
        // The projection of its output, which may have been sent elsewhere.
        Some(_) | None => {
            let projection = alloc::format!("blk.{index}.attn_output.weight");
            layout.overridden(&projection).unwrap_or(layout.layer(index))
        }
    }
}

/// The heads of a layer that attends, as its cache has them.
pub(super) fn cached_heads(mixer: &Mixer) -> Result<Option<Heads>, MathError> {
    Ok(match mixer.attends() {
        Attends::Heads(attention) => Some(Heads {
            k: attention.k_head_dim,
            v: attention.v_head_dim,
            shared: attention.n_heads.checked_div(attention.n_kv_heads).unwrap_or(0),
        }),
        Attends::Latent(mla) if mla.expanded => {
            Some(Heads { k: add(mla.qk_nope_head_dim, mla.qk_rope_head_dim)?, v: mla.v_head_dim, shared: 1 })
        }
        Attends::Latent(mla) => {
            Some(Heads { k: add(mla.kv_lora_rank, mla.qk_rope_head_dim)?, v: mla.kv_lora_rank, shared: mla.n_heads })
        }
        Attends::Compressed(attention) => Some(Heads { k: attention.head_dim, v: attention.head_dim, shared: attention.n_heads }),
        Attends::Never => None,
    })
}

/// Whether a layer's attention runs fused on a backend; true without attention.
fn layer_runs_fused(
    spec: &ModelSpec,
    layer: &Layer,
    facts: Facts<'_>,
    deployment: &Deployment,
    backend: Backend,
) -> Result<bool, MathError> {
    // The graph casts F32 before the node (`llama-graph.cpp:build_attn_mha`).
    let read = |format| if format == StorageFormat::F32 { StorageFormat::F16 } else { format };
    let formats = (read(deployment.kv_type_k), read(deployment.kv_type_v));
    let Some(heads) = cached_heads(&layer.mixer)?.filter(|heads| heads.shared > 0) else { return Ok(true) };
    // Models without a cache attend to fresh keys and values, which are cast to F16; so does all fused attention of a T5.
    let fresh = !facts.has_memory() || scores_are_biased(spec);
    let formats = if fresh { (StorageFormat::F16, StorageFormat::F16) } else { formats };
    Ok(has_kernel(backend, heads, formats, facts.has_memory() && !facts.has_alibi()))
}

/// Whether a backend has a kernel for such heads with keys and values in these formats.
pub(super) fn has_kernel(backend: Backend, heads: Heads, formats: (StorageFormat, StorageFormat), groups: bool) -> bool {
    match backend {
        Backend::Cpu => true,
        Backend::Cuda { .. } => on_cuda(heads, formats, groups),
        Backend::Metal => on_metal(heads, formats),
    }
}

/// `ggml-cuda/fattn.cu:ggml_cuda_get_best_fattn_kernel`. `groups`: whether query heads that share a key head may be
/// worked on together, which needs a cache of whole 256 cells and no ALiBi.
const fn on_cuda(heads: Heads, (k, v): (StorageFormat, StorageFormat), groups: bool) -> bool {
    let grouped = groups && heads.shared >= 2;
    let sizes = match heads.k {
        40 | 64 | 72 | 80 | 96 | 112 | 128 | 256 => heads.v == heads.k,
        192 => heads.v == 128 && grouped && heads.shared.is_multiple_of(8),
        320 => heads.v == 256 && grouped && heads.shared.is_multiple_of(32),
        512 => heads.v == 512 && grouped,
        576 => heads.v == 512 && grouped,
        _ => false,
    };
    sizes && cuda_reads(k) && cuda_reads(v)
}

const fn cuda_reads(format: StorageFormat) -> bool {
    matches!(
        format,
        StorageFormat::F32
            | StorageFormat::F16
            | StorageFormat::Bf16
            | StorageFormat::Q4_0
            | StorageFormat::Q4_1
            | StorageFormat::Q5_0
            | StorageFormat::Q5_1
            | StorageFormat::Q8_0
    )
}

/// A node of flash attention as CUDA looks at it to choose a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct CudaAttention {
    pub(super) compute_capability: u32,
    /// Width of a key head.
    pub(super) head: u64,
    /// Query heads per key head.
    pub(super) shared: u64,
    /// Tokens of each stream.
    pub(super) tokens: u64,
    pub(super) streams: u64,
    /// Cells of each stream.
    pub(super) cells: u64,
    /// Formats of keys and values.
    pub(super) formats: (StorageFormat, StorageFormat),
}

impl CudaAttention {
    /// Whether the vector kernel takes the node and was built for its formats: it is chosen for one or two tokens
    /// (`ggml-cuda/fattn.cu:ggml_cuda_get_best_fattn_kernel`), and by default built for four formats, keys and values
    /// alike (`GGML_CUDA_FA_QUANTS`).
    pub(super) fn reads_cache_as_stored(&self) -> bool {
        let Self { compute_capability, head, shared, tokens, streams, cells, formats: (k, v) } = *self;
        let built = k == v
            && matches!(k, StorageFormat::F16 | StorageFormat::Bf16 | StorageFormat::Q4_0 | StorageFormat::Q8_0)
            && matches!(head, 64 | 128 | 256)
            && cells.is_multiple_of(256);
        let quantized = k.is_quantized() || v.is_quantized();
        let grouped = shared >= 2;
        let chosen = match compute_capability {
            750.. => {
                let newest = compute_capability >= 890;
                let wide = shared > 4 && (head >= 256 || cells >= 8192);
                match (tokens, quantized) {
                    (1, true) => true,
                    (2, true) => newest,
                    (1, false) => !grouped || (newest && streams == 1 && !wide),
                    _ => false,
                }
            }
            // Tensor cores of the first generation work on query heads that share a key head together, up to eight.
            700.. => tokens.saturating_mul(1 << shared.trailing_zeros().min(3)) <= 2,
            _ if quantized => tokens <= 2,
            _ => tokens == 1 && !grouped,
        };
        built && chosen
    }
}

/// `ggml-metal-device.m:ggml_metal_device_supports_op`.
fn on_metal(heads: Heads, (k, v): (StorageFormat, StorageFormat)) -> bool {
    let sizes = matches!(heads.k, 32 | 40 | 48 | 64 | 72 | 80 | 96 | 112 | 128 | 192 | 256 | 320 | 512 | 576)
        && heads.k >= heads.v
        && (heads.k != 72 || heads.v == 72);
    let known = matches!(
        k,
        StorageFormat::F32
            | StorageFormat::F16
            | StorageFormat::Bf16
            | StorageFormat::Q4_0
            | StorageFormat::Q4_1
            | StorageFormat::Q5_0
            | StorageFormat::Q5_1
            | StorageFormat::Q8_0
    );
    sizes && k == v && known
}
