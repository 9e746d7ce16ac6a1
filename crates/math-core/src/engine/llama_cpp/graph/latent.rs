//! Attention whose cache holds a latent (`src/models/deepseek2.cpp`, `llm_graph_context::build_attn` with keys only).

use super::attention::CacheInputs;
use super::ops::Node;
use super::parts::{NormKind, Parts, Setting};
use super::scales::Matrix;
use super::selector::SelectorInputs;
use crate::error::MathError;
use crate::spec::{Mixer, Mla, ModelSpec, OutputGate};
use crate::units::{Bytes, add, mul};

/// Sparse attention: what its selectors read, and the choice of the last one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sparse {
    pub(super) inputs: SelectorInputs,
    pub(super) chosen: Option<Node>,
}

/// What attention is told about every token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    /// Its position; `None` where the engine applies no rotary embedding.
    pub(super) positions: Option<Node>,
    /// A factor for its queries, where models have one.
    pub(super) scale: Option<Node>,
    /// The rope part of its key is normed before it is rotated.
    pub(super) norms_rope_key: bool,
    /// Every head has a sink.
    pub(super) sinks: bool,
}

/// Whether a mixer is built by [`attention`].
pub(super) fn fits(mla: &Mla) -> bool {
    !mla.expanded && mla.gate != OutputGate::InQuery && !mla.bias && mla.extra.is_empty()
}

/// Whether no layer caches values: the latent is both.
pub(super) fn keys_only(spec: &ModelSpec) -> bool {
    spec.layers.iter().all(|layer| match &layer.mixer {
        Mixer::Mla(mla) => !mla.expanded,
        mixer => mixer.attention().is_none(),
    })
}

/// Latent attention with absorbed expansions: every head reads the same latent as key and, in part, as value.
pub(super) fn attention(
    parts: &mut Parts,
    mla: &Mla,
    inputs: &CacheInputs,
    sparse: Option<&mut Sparse>,
    told: Told,
    d_model: u64,
    x: Node,
) -> Result<Node, MathError> {
    let Setting { tokens, streams, k_format, cache_device, .. } = parts.setting;
    let (rank, nope, rope, heads) = (mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.n_heads);
    let head = add(nope, rope)?;
    let mut q = x;
    if let Some(q_rank) = mla.q_lora_rank {
        q = parts.linear(q, q_rank)?;
        q = parts.norm(q, NormKind::Rms, false, true)?;
    }
    let mut choice = None;
    if let (Some(sparse), Some(indexer)) = (sparse, &mla.indexer) {
        // A layer without a selector of its own attends to the choice of an earlier one.
        if indexer.own {
            sparse.chosen = Some(parts.select(indexer, &sparse.inputs, told.positions, q, x)?);
        }
        choice = sparse.chosen.map(|chosen| (sparse.inputs, chosen));
    }
    q = parts.linear(q, mul(head, heads)?)?;
    q = parts.graph.reshape(q, [head, heads, tokens, 1])?;

    let both = parts.linear(x, add(rank, rope)?)?;
    let row = mul(4, add(rank, rope)?)?;
    let latent = parts.graph.view_2d(both, rank, tokens, row)?;
    let mut k_rope = parts.graph.view_3d(both, [rope, 1, tokens], row, row)?;
    let [_, s1, s2, _] = parts.graph.strides(q)?;
    let q_nope = parts.graph.view_3d(q, [nope, heads, tokens], s1, s2)?;
    let mut q_rope = parts.graph.view_3d(q, [rope, heads, tokens], s1, s2)?;
    if told.norms_rope_key {
        k_rope = parts.norm(k_rope, NormKind::Rms, false, true)?;
    }
    if let Some(positions) = told.positions {
        k_rope = parts.graph.rope(k_rope, positions, None)?;
        q_rope = parts.graph.rope(q_rope, positions, None)?;
    }
    let latent = parts.norm(latent, NormKind::Rms, false, true)?;
    let by_head = parts.graph.permute(q_nope, [0, 2, 1, 3])?;
    let absorb = parts.weight(&[nope, rank, heads])?;
    let absorbed = parts.graph.mul_mat(absorb, by_head)?;
    let absorbed = parts.graph.permute(absorbed, [0, 2, 1, 3])?;
    let q = parts.graph.concat(absorbed, q_rope, 0)?;
    let v = parts.graph.reshape(latent, [rank, 1, tokens, 1])?;
    let k = parts.graph.concat(v, k_rope, 0)?;
    let q = match told.scale {
        Some(scale) => parts.graph.product(q, scale)?,
        None => q,
    };

    parts.graph.expand(q)?;
    parts.graph.expand(v)?;
    parts.graph.expand(k)?;
    let cells = inputs.cells;
    let width = add(rank, rope)?;
    let cache = parts.graph.cache(k_format, [width, cells, streams, 1], cache_device)?;
    if let Some(rows) = inputs.k_rows {
        let stored = parts.store_rows(k, cache, rows)?;
        parts.graph.expand(stored)?;
    }
    let mask = match choice {
        Some((selector, chosen)) => parts.mask_of_chosen(inputs, &selector, chosen)?,
        None => inputs.mask,
    };
    let stride = k_format.row_bytes(width).map(Bytes::get)?;
    let strides = [stride, stride, mul(stride, cells)?];
    let k = parts.graph.view(cache, [width, 1, cells, streams], strides)?;
    let v = parts.graph.view(k, [rank, 1, cells, streams], strides)?;
    let expand = parts.weight(&[rank, mla.v_head_dim, heads])?;
    if let Some((_, chosen)) = choice {
        let [top, ..] = parts.graph.dims(chosen)?;
        parts.most_cells = top;
    }
    let sinks = if told.sinks { Some(parts.weight(&[heads])?) } else { None };
    let attended = parts.attend_views(q, k, v, mask, sinks, false, Some(expand))?;
    let gated = match mla.gate {
        OutputGate::None | OutputGate::InQuery => attended,
        // One factor for every head (Ling 3).
        OutputGate::Own { width } if width == heads => {
            let mut gate = parts.linear(x, heads)?;
            if told.norms_rope_key {
                gate = parts.unary(gate)?;
            }
            gate = parts.graph.reshape(gate, [1, heads, tokens, 1])?;
            if !told.norms_rope_key {
                gate = parts.unary(gate)?;
            }
            let by_head = parts.graph.reshape(attended, [mla.v_head_dim, heads, tokens, 1])?;
            let gated = parts.graph.product(by_head, gate)?;
            let flat = [mul(mla.v_head_dim, heads)?, tokens, 1, 1];
            // Ling copies what is flat already, dots3.note only shows it as such.
            if told.norms_rope_key { parts.graph.reshape(gated, flat)? } else { parts.graph.cont(gated, flat)? }
        }
        OutputGate::Own { width } => {
            let gate = parts.linear(x, width)?;
            let gate = parts.unary(gate)?;
            parts.graph.product(attended, gate)?
        }
    };
    parts.project(gated, d_model, Matrix::AttentionOutput, false)
}
