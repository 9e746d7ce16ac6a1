//! Recurrent state: a fixed number of F32 elements per layer and sequence, whatever the context.

use alloc::vec::Vec;

use crate::deployment::Location;
use crate::engine::llama_cpp::cache::{BufferRules, CSA_RATIO, HCA_RATIO};
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::layout::Layout;
use crate::engine::llama_cpp::resolve::Resolved;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Mixer, ModelSpec};
use crate::units::{add, mul};

/// Layers of one place with equally large state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateGroup {
    /// How many layers.
    pub layers: u64,
    /// Elements of convolution or token-shift state per sequence (`llama-hparams.cpp:n_embd_r`).
    pub n_r: u64,
    /// Elements of recurrent state per sequence (`llama-hparams.cpp:n_embd_s`).
    pub n_s: u64,
    /// Elements of the history of hash embeddings per sequence (`llama-hparams.cpp:ple_conv_state`).
    pub n_p: u64,
    /// Where they lie.
    pub place: Location,
}

/// The recurrent module (`llama-memory-recurrent.cpp:llama_memory_recurrent`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecurrentPlan {
    /// Its layers.
    pub groups: Vec<StateGroup>,
}

/// What the recurrent module costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecurrentBytes {
    /// Rows: one per sequence and snapshot.
    pub rows: u64,
    /// Layers.
    pub layers: u64,
    /// Bytes of convolution state.
    pub r: u64,
    /// Bytes of recurrent state.
    pub s: u64,
    /// Bytes of histories of hash embeddings.
    pub p: u64,
    /// Bytes as allocated, padding included.
    pub allocated: u64,
}

impl RecurrentPlan {
    /// The part of the module that lies in one place.
    #[must_use]
    pub fn at(&self, place: Location) -> Self {
        Self { groups: self.groups.iter().filter(|group| group.place == place).copied().collect() }
    }

    pub(crate) fn bytes(&self, resolved: &Resolved, layout: &Layout) -> Result<RecurrentBytes, MathError> {
        let rows = mul(resolved.n_seq_max.max(1), add(1, resolved.n_rs_seq)?)?;
        let mut out = RecurrentBytes { rows, ..RecurrentBytes::default() };
        for group in &self.groups {
            let rules = BufferRules::of(layout.backend(group.place));
            out.layers = add(out.layers, group.layers)?;
            out.r = add(out.r, mul(group.layers, mul(4, mul(group.n_r, rows)?)?)?)?;
            out.s = add(out.s, mul(group.layers, mul(4, mul(group.n_s, rows)?)?)?)?;
            out.p = add(out.p, mul(group.layers, mul(4, mul(group.n_p, rows)?)?)?)?;
            for width in [group.n_r, group.n_s, group.n_p] {
                let tensor = rules.tensor_bytes(StorageFormat::F32, width, rows)?;
                out.allocated = add(out.allocated, mul(group.layers, tensor)?)?;
            }
        }
        Ok(out)
    }
}

/// The elements of state that one layer keeps for a sequence: convolution and recurrence.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn state_elements(mixer: &Mixer, d_model: u64) -> Result<Option<(u64, u64)>, MathError> {
    Ok(match mixer {
        Mixer::Mamba1(mamba) => Some((mul(mamba.d_conv.saturating_sub(1), mamba.d_inner)?, mul(mamba.d_state, mamba.d_inner)?)),
        Mixer::Mamba2(mamba) => {
            let width = add(mamba.d_inner, mul(2, mul(mamba.n_groups, mamba.d_state)?)?)?;
            Some((mul(mamba.d_conv.saturating_sub(1), width)?, mul(mamba.d_state, mamba.d_inner)?))
        }
        Mixer::GatedDeltaNet(delta) => {
            let values = mul(delta.n_v_heads, delta.v_head_dim)?;
            let width = add(values, mul(2, mul(delta.n_k_heads, delta.k_head_dim)?)?)?;
            Some((mul(delta.d_conv.saturating_sub(1), width)?, mul(delta.k_head_dim, values)?))
        }
        Mixer::KimiDelta(delta) => {
            let width = mul(delta.n_heads, delta.head_dim)?;
            Some((mul(3, mul(delta.d_conv.saturating_sub(1), width)?)?, mul(delta.head_dim, width)?))
        }
        Mixer::LightningAttention(lightning) => Some((0, mul(lightning.head_dim, mul(lightning.head_dim, lightning.n_heads)?)?)),
        Mixer::Rwkv(rwkv) => Some((mul(rwkv.token_shifts, d_model)?, mul(d_model, rwkv.head_dim)?)),
        Mixer::ShortConv(conv) => Some((mul(d_model, conv.d_conv.saturating_sub(1))?, 0)),
        Mixer::Rglru(unit) => Some((mul(unit.d_inner, unit.d_conv.saturating_sub(1))?, unit.d_inner)),
        Mixer::Parallel(parallel) => state_elements(&parallel.state, d_model)?,
        Mixer::Attention(_) | Mixer::Mla(_) | Mixer::CompressedAttention(_) | Mixer::None => None,
    })
}

/// The recurrent module the engine makes for a model, if it makes one.
///
/// # Errors
/// [`MathError::Overflow`].
pub(crate) fn recurrent_plan(spec: &ModelSpec, facts: Facts<'_>, layout: &Layout) -> Result<Option<RecurrentPlan>, MathError> {
    if !facts.has_memory() || !(facts.is_hybrid() || facts.is_recurrent_only()) {
        return Ok(None);
    }
    let mut groups: Vec<StateGroup> = Vec::new();
    for (index, layer) in (0_u32..).zip(&spec.layers) {
        if let Some((n_r, n_s)) = state_elements(&layer.mixer, spec.d_model)? {
            let (place, n_p) = (layout.cache(index), layer.hash_history);
            let same = |group: &&mut StateGroup| (group.n_r, group.n_s, group.n_p, group.place) == (n_r, n_s, n_p, place);
            match groups.iter_mut().find(same) {
                Some(group) => group.layers = group.layers.saturating_add(1),
                None => groups.push(StateGroup { layers: 1, n_r, n_s, n_p, place }),
            }
        }
    }
    Ok(Some(RecurrentPlan { groups }))
}

/// The running sums of DeepSeek V4's compressors (`llama-kv-cache-dsv4.cpp:llama_dsv4_comp_state`): keys and scores
/// in F32, a plane per sequence and snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CompressorPlan {
    /// The engine's name (`csa_state`, `hca_state`, `lid_state`).
    pub tag: &'static str,
    /// The place of every layer.
    pub layers: Vec<Location>,
    /// Rows of a plane.
    pub rows: u64,
    /// Elements of a row.
    pub width: u64,
}

impl CompressorPlan {
    /// The part of the states that lies in one place.
    #[must_use]
    pub fn at(&self, place: Location) -> Self {
        Self { layers: self.layers.iter().filter(|layer| **layer == place).copied().collect(), ..*self }
    }

    pub(crate) fn bytes(&self, resolved: &Resolved, layout: &Layout) -> Result<u64, MathError> {
        let planes = mul(resolved.n_seq_max, add(1, resolved.n_rs_seq)?)?;
        let rows = mul(self.rows, planes)?;
        self.layers.iter().try_fold(0, |sum, place| {
            let tensor = BufferRules::of(layout.backend(*place)).tensor_bytes(StorageFormat::F32, self.width, rows)?;
            add(sum, mul(2, tensor)?)
        })
    }
}

/// The compressors of a model, none for most.
///
/// # Errors
/// [`MathError::Overflow`].
pub(crate) fn compressor_plans(spec: &ModelSpec, layout: &Layout) -> Result<Vec<CompressorPlan>, MathError> {
    let mut plans = [
        CompressorPlan { tag: "csa_state", layers: Vec::new(), rows: 2 * CSA_RATIO, width: 0 },
        CompressorPlan { tag: "hca_state", layers: Vec::new(), rows: HCA_RATIO, width: 0 },
        CompressorPlan { tag: "lid_state", layers: Vec::new(), rows: 2 * CSA_RATIO, width: 0 },
    ];
    let mut any = false;
    let [csa, hca, lid] = &mut plans;
    for (index, layer) in (0_u32..).zip(&spec.layers) {
        let place = layout.cache(index);
        let Mixer::CompressedAttention(attention) = &layer.mixer else { continue };
        any = true;
        match attention.ratio {
            CSA_RATIO => {
                csa.layers.push(place);
                csa.width = mul(2, attention.head_dim)?;
                if let Some(indexer) = &attention.indexer {
                    lid.layers.push(place);
                    lid.width = mul(2, indexer.head_dim)?;
                }
            }
            HCA_RATIO => {
                hca.layers.push(place);
                hca.width = attention.head_dim;
            }
            _ => {}
        }
    }
    Ok(if any { Vec::from(plans) } else { Vec::new() })
}
