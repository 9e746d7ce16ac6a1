//! What a backend can compute, and what its buffers add to a result: `supports_op` and `get_alloc_size` of each backend.

use super::op::Op;
use super::ops::Built;
use super::tensors::{Graph, GraphTensor};
use crate::deployment::Backend;
use crate::engine::llama_cpp::cache::BufferRules;
use crate::engine::llama_cpp::flash::{CudaAttention, Heads, has_kernel};
use crate::engine::llama_cpp::placement::cuda_gathers;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::{add, mul, round_up};

fn source<'a>(graph: &'a Graph, tensor: &GraphTensor, position: usize) -> Option<(usize, &'a GraphTensor)> {
    let index = usize::try_from(*graph.sources(tensor).get(position)?).ok()?;
    Some((index, graph.tensors.get(index)?))
}

fn format(built: &[Built], index: usize) -> StorageFormat {
    built.get(index).map_or(StorageFormat::F32, |built| built.format)
}

/// Bytes from one element to the next and so on, as if nothing were between them (`ggml.c:ggml_is_contiguous_n`), the
/// first `n` dimensions apart.
fn is_contiguous(tensor: &GraphTensor, format: StorageFormat, n: usize) -> bool {
    let layout = &tensor.layout;
    let Some(mut next) = (layout.dims[0] / format.block_len()).checked_mul(format.block_bytes()) else { return false };
    if layout.dims[0] != format.block_len() && layout.strides[0] != format.block_bytes() {
        return false;
    }
    for (dimension, (n_elements, stride)) in layout.dims.iter().zip(layout.strides).enumerate().skip(1) {
        if *n_elements != 1 {
            if dimension > n {
                if stride != next {
                    return false;
                }
                next = next.saturating_mul(*n_elements);
            } else {
                next = stride.saturating_mul(*n_elements);
            }
        }
    }
    true
}

/// What differs between builds' kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernels {
    /// Whether CUDA's functions of elements read rows that lie apart (`build.rs:unary_kernels_read_strided`).
    pub(super) strided_unary: bool,
    /// For how many heads CUDA scores a lightning indexer (`build.rs:indexer_heads_on_cuda`).
    pub(super) indexer_heads: &'static [u64],
}

/// Whether a backend has a kernel for a node; its sources' places apart.
pub(super) fn runs(graph: &Graph, built: &[Built], index: usize, backend: Backend, kernels: Kernels) -> bool {
    match backend {
        Backend::Cpu => true,
        Backend::Cuda { .. } => on_cuda(graph, built, index, kernels),
        Backend::Metal => on_metal(graph, built, index),
    }
}

/// Heads of a flash-attention node, with what else its kernel is chosen by.
fn attention(graph: &Graph, built: &[Built], tensor: &GraphTensor) -> Option<(Heads, (StorageFormat, StorageFormat), bool)> {
    let ((_, q), (k_index, k), (v_index, v)) = (source(graph, tensor, 0)?, source(graph, tensor, 1)?, source(graph, tensor, 2)?);
    let shared = q.layout.dims[2].checked_div(k.layout.dims[2])?;
    let heads = Heads { k: k.layout.dims[0], v: v.layout.dims[0], shared };
    let grouped = source(graph, tensor, 3).is_some() && k.layout.dims[1].is_multiple_of(256);
    Some((heads, (format(built, k_index), format(built, v_index)), grouped))
}

/// `ggml-cuda.cu:ggml_backend_cuda_device_supports_op`, for the operations that language models are made of.
fn on_cuda(graph: &Graph, built: &[Built], index: usize, kernels: Kernels) -> bool {
    let (Some(tensor), Some(node)) = (graph.tensors.get(index), built.get(index)) else { return true };
    let first = source(graph, tensor, 0);
    let contiguous_from = |n: usize| first.is_none_or(|(index, tensor)| is_contiguous(tensor, format(built, index), n));
    match node.op {
        Op::FlashAttention => attention(graph, built, tensor).is_some_and(|(heads, formats, grouped)| {
            has_kernel(Backend::Cuda { compute_capability: 0 }, heads, formats, grouped)
        }),
        Op::SsmConv => first.is_some_and(|(_, window)| window.layout.dims[1].is_multiple_of(128)),
        Op::SsmScan => first.is_some_and(|(_, states)| {
            let [d_state, head, heads, _] = states.layout.dims;
            let per_head = source(graph, tensor, 3).is_some_and(|(_, decay)| decay.layout.dims[0] == 1);
            if per_head {
                matches!(d_state, 96 | 128 | 256) && head.is_multiple_of(16)
            } else {
                let groups = source(graph, tensor, 4).map_or(0, |(_, b)| b.layout.dims[1]);
                d_state == 16 && head == 1 && heads.is_multiple_of(128) && groups == 1
            }
        }),
        Op::LightningIndexer => scores_selector(graph, built, tensor, kernels.indexer_heads),
        Op::Unary => kernels.strided_unary || contiguous_from(0),
        Op::Glu => contiguous_from(1),
        Op::Im2Col => {
            contiguous_from(0) && source(graph, tensor, 1).is_none_or(|(index, _)| is_contiguous_at(graph, built, index))
        }
        Op::Add | Op::Sub | Op::Mul | Op::Div => adds_formats(graph, built, tensor, node.format),
        Op::Rope | Op::RopeBack => contiguous_from(2),
        Op::GetRows => first.is_none_or(|(index, rows)| cuda_gathers(format(built, index), rows.layout.dims[0])),
        Op::MulMatId if node.repacked => false,
        Op::MulMat | Op::MulMatId => first.is_none_or(|(index, _)| {
            let format = format(built, index);
            !matches!(format, StorageFormat::Tq1_0 | StorageFormat::Tq2_0 | StorageFormat::Q8_1)
        }),
        Op::SetRows => matches!(
            node.format,
            StorageFormat::F32
                | StorageFormat::F16
                | StorageFormat::Bf16
                | StorageFormat::Q4_0
                | StorageFormat::Q4_1
                | StorageFormat::Q5_0
                | StorageFormat::Q5_1
                | StorageFormat::Q8_0
                | StorageFormat::Iq4Nl
                | StorageFormat::I32
        ),
        _ => true,
    }
}

fn is_contiguous_at(graph: &Graph, built: &[Built], index: usize) -> bool {
    graph.tensors.get(index).is_none_or(|tensor| is_contiguous(tensor, format(built, index), 0))
}

/// Whether CUDA's sums and products take these formats.
fn adds_formats(graph: &Graph, built: &[Built], tensor: &GraphTensor, result: StorageFormat) -> bool {
    use StorageFormat::{Bf16, F16, F32};
    let of = |position: usize| source(graph, tensor, position).map_or(F32, |(index, _)| format(built, index));
    let (first, second) = (of(0), of(1));
    if [first, second, result].contains(&Bf16) {
        return first == Bf16 && result == Bf16 && matches!(second, Bf16 | F32);
    }
    [first, second, result].iter().all(|format| matches!(format, F32 | F16))
}

/// `ggml-metal-device.m:ggml_metal_device_supports_op`, likewise.
fn on_metal(graph: &Graph, built: &[Built], index: usize) -> bool {
    let (Some(tensor), Some(node)) = (graph.tensors.get(index), built.get(index)) else { return true };
    match node.op {
        Op::FlashAttention => attention(graph, built, tensor)
            .is_some_and(|(heads, formats, grouped)| has_kernel(Backend::Metal, heads, formats, grouped)),
        Op::LightningIndexer => scores_selector(graph, built, tensor, &[64]),
        Op::Cont | Op::Copy => source(graph, tensor, 0).is_none_or(|(index, _)| metal_copies(format(built, index), node.format)),
        Op::Im2Col => source(graph, tensor, 1).is_none_or(|(index, _)| is_contiguous_at(graph, built, index)),
        Op::GatedDeltaNet => source(graph, tensor, 2).is_some_and(|(_, v)| v.layout.dims[0].is_multiple_of(32)),
        _ => true,
    }
}

/// Whether Metal copies from one format to another.
const fn metal_copies(from: StorageFormat, to: StorageFormat) -> bool {
    use StorageFormat as F;
    match from {
        F::F32 => matches!(
            to,
            F::F32 | F::F16 | F::Bf16 | F::Q8_0 | F::Q4_0 | F::Q4_1 | F::Q5_0 | F::Q5_1 | F::Iq4Nl | F::Tq2_0 | F::I32
        ),
        F::Bf16 => matches!(to, F::F32 | F::Bf16),
        F::F16 | F::Q4_0 | F::Q4_1 | F::Q5_0 | F::Q5_1 | F::Q8_0 | F::Tq2_0 => matches!(to, F::F32 | F::F16),
        F::I32 => matches!(to, F::F32 | F::I32),
        _ => false,
    }
}

/// Whether a device scores a selector with so many heads (`ggml-cuda/lightning-indexer.cu:ggml_cuda_lightning_indexer_supported`,
/// `ggml-metal-device.m:ggml_metal_device_supports_op`).
fn scores_selector(graph: &Graph, built: &[Built], tensor: &GraphTensor, heads: &[u64]) -> bool {
    let (Some((_, q)), Some((keys, _))) = (source(graph, tensor, 0), source(graph, tensor, 1)) else { return true };
    let reads = matches!(
        format(built, keys),
        StorageFormat::F32
            | StorageFormat::F16
            | StorageFormat::Bf16
            | StorageFormat::Q8_0
            | StorageFormat::Q5_1
            | StorageFormat::Q5_0
            | StorageFormat::Q4_1
            | StorageFormat::Q4_0
    );
    reads && q.layout.dims[0] == 128 && heads.contains(&q.layout.dims[1])
}

/// Bytes that a backend's buffer adds to a tensor.
pub(super) fn extra_bytes(graph: &Graph, built: &[Built], index: usize, backend: Backend) -> Result<u64, MathError> {
    let (Some(tensor), Some(node)) = (graph.tensors.get(index), built.get(index)) else { return Ok(0) };
    match backend {
        Backend::Cpu => Ok(0),
        Backend::Cuda { compute_capability } => {
            if node.op == Op::FlashAttention {
                return attention_copies(graph, built, tensor, compute_capability);
            }
            if tensor.view_of().is_none() && node.format.is_quantized() {
                return BufferRules::of(backend).row_extra(node.format, tensor.layout.dims[0]);
            }
            Ok(0)
        }
        Backend::Metal => on_metal_extra(graph, node, tensor),
    }
}

/// CUDA's flash attention keeps f16 copies of keys and values that are stored otherwise behind its result
/// (`ggml-cuda/fattn-common.cuh:ggml_cuda_flash_attn_ext_get_f16_extra_data`), unless the kernel for one or two tokens
/// reads them as they are.
fn attention_copies(graph: &Graph, built: &[Built], node: &GraphTensor, compute_capability: u32) -> Result<u64, MathError> {
    let (Some((_, q)), Some((k_index, k)), Some((v_index, v))) =
        (source(graph, node, 0), source(graph, node, 1), source(graph, node, 2))
    else {
        return Ok(0);
    };
    let ([head, tokens, heads, streams], [_, cells, kv_heads, _]) = (q.layout.dims, k.layout.dims);
    let formats = (format(built, k_index), format(built, v_index));
    let shared = heads / kv_heads.max(1);
    if (CudaAttention { compute_capability, head, shared, tokens, streams, cells, formats }).reads_cache_as_stored() {
        return Ok(0);
    }
    let mut end = node.bytes;
    let shows_keys = v.view_of().is_some() && v.view_of() == k.view_of();
    for (tensor, format, skipped) in [(k, formats.0, false), (v, formats.1, shows_keys)] {
        if format != StorageFormat::F16 && !skipped {
            end = add(round_up(end, 128)?, mul(2, elements(tensor)?)?)?;
        }
    }
    Ok(end.saturating_sub(node.bytes))
}

fn elements(tensor: &GraphTensor) -> Result<u64, MathError> {
    tensor.layout.dims.iter().try_fold(1, |product, n| mul(product, *n))
}

/// `ggml-metal-device.m:ggml_backend_metal_buffer_type_get_alloc_size`.
fn on_metal_extra(graph: &Graph, node: &Built, tensor: &GraphTensor) -> Result<u64, MathError> {
    match node.op {
        Op::MulMatId => {
            let (Some((_, stack)), Some((_, ids))) = (source(graph, tensor, 0), source(graph, tensor, 2)) else { return Ok(0) };
            let (experts, tokens) = (stack.layout.dims[2], ids.layout.dims[1]);
            // Tokens of each expert, their numbers, and scales of partial products.
            add(add(mul(4, experts)?, mul(4, mul(experts, tokens)?)?)?, 8 + 256 * 4)
        }
        Op::FlashAttention => metal_attention(graph, tensor, u64::from(node.most_cells)),
        Op::CumSum | Op::ArgSort => Ok(tensor.bytes),
        Op::TopK => {
            let Some((_, all)) = source(graph, tensor, 0) else { return Ok(0) };
            Ok(mul(8, elements(all)?)?.saturating_sub(tensor.bytes))
        }
        _ => Ok(0),
    }
}

/// Cells that Metal lists for a token.
const MOST_LISTED: u64 = 4096;

/// Whether Metal's attention works from lists of cells for these widths of heads
/// (`ggml-metal-ops.cpp:ggml_metal_op_flash_attn_ext_n_kv_max_sparse`).
const fn lists_cells(k: u64, v: u64) -> bool {
    matches!((k, v), (32, 32) | (64, 64) | (96, 96 | 64) | (128, 128) | (192, 128 | 192) | (256 | 320, 256) | (512 | 576, 512))
}

/// Padding of the last cells, blocks of the mask, partial results and f16 copies of keys and values
/// (`ggml-metal-ops.cpp:ggml_metal_op_flash_attn_ext_extra_*`): Metal reserves all of them always.
fn metal_attention(graph: &Graph, tensor: &GraphTensor, most_cells: u64) -> Result<u64, MathError> {
    let (Some((_, q)), Some((_, k)), Some((_, v))) =
        (source(graph, tensor, 0), source(graph, tensor, 1), source(graph, tensor, 2))
    else {
        return Ok(0);
    };
    let mask = source(graph, tensor, 3).map(|(_, mask)| mask.layout.dims);
    let ([head, tokens, heads, streams], k_dims, v_dims) = (q.layout.dims, k.layout.dims, v.layout.dims);
    let shows_keys = v.view_of().is_some() && v.view_of() == k.view_of();
    let as_f16 = tokens >= 32
        && matches!(
            StorageFormat::from_ggml_id(k.layout.type_id),
            Some(StorageFormat::Q4_0 | StorageFormat::Q4_1 | StorageFormat::Q5_0 | StorageFormat::Q5_1 | StorageFormat::Q8_0)
        );
    let (k_row, v_row) = if as_f16 {
        (mul(2, k_dims[0])?, mul(2, if shows_keys { k_dims[0] } else { v_dims[0] })?)
    } else {
        (k.layout.strides[1], v.layout.strides[1])
    };
    let mut padded = add(mul(k_row, mul(k_dims[2], k_dims[3])?)?, mul(v_row, mul(v_dims[2], v_dims[3])?)?)?;
    let (mut blocks, mut listed) = (0, 0);
    if let Some([cells, rows, m2, m3]) = mask {
        padded = add(padded, mul(2, mul(rows, mul(m2, m3)?)?)?)?;
        let by_vector = tokens < 20 && head.is_multiple_of(32);
        let (queries, width) = if by_vector { (1, 32) } else { (8, 64) };
        // Lists of the cells that each token reads, where it chooses few enough.
        if (1..=MOST_LISTED).contains(&most_cells) && lists_cells(k_dims[0], v_dims[0]) {
            listed = round_up(mul(mul(4, round_up(most_cells, 32)?)?, mul(rows, mul(m2, m3)?)?)?, 16)?;
        }
        blocks = round_up(mul(mul(cells.div_ceil(width), tokens.div_ceil(queries))?, mul(m2, m3)?)?, 32)?;
    }
    let partial = mul(4, mul(mul(tokens.min(32), mul(heads, streams)?)?, mul(32, add(v_dims[0], 2)?)?)?)?;
    let k_copy = round_up(mul(2, elements(k)?)?, 16)?;
    let v_copy = if shows_keys { 0 } else { round_up(mul(2, elements(v)?)?, 16)? };
    add(add(mul(64, padded)?, add(blocks, listed)?)?, add(partial, add(k_copy, v_copy)?)?)
}
