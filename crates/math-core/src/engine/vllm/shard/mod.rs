//! Which part of a tensor a rank holds.
//!
//! Named by role, in the vocabulary of the tensor table: projections into heads and hidden elements are split by their
//! outputs, those out of them by their inputs, key and value heads are repeated when there are fewer than ranks, and
//! norms, routers, compressing projections and selectors are on every rank.

mod matrix;
mod split;

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::VERSION;
use super::class::ModelClass;
use super::facts::Checkpoint;
use super::modules::Names;
use super::options::Knobs;
use super::quantization::WeightScheme;
use super::weights::is_created;
use crate::error::MathError;
use crate::spec::{Attention, FeedForward, Layer, Mamba2, Mixer, ModelSpec, QkvLayout};
use crate::tensor::{Counts, Place, Tensor};
use crate::units::{add, mul, round_up};
pub(super) use split::{Split, role};

/// A rank's part of a matrix, or of a stack of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Inputs.
    pub n_in: u64,
    /// Outputs.
    pub n_out: u64,
    /// Matrices.
    pub stack: u64,
    /// Whether ranks share its inputs.
    pub inputs_split: bool,
    /// Whether ranks share its outputs.
    pub outputs_split: bool,
}

impl Part {
    /// One matrix that no rank shares.
    #[must_use]
    pub const fn whole(n_in: u64, n_out: u64) -> Self {
        Self { n_in, n_out, stack: 1, inputs_split: false, outputs_split: false }
    }
}

/// What decides about a model's tensors.
#[derive(Debug)]
pub struct Rules<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) class: &'a ModelClass,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) names: Names<'a>,
    ranks: u64,
    /// Ranks that divide an expert's hidden layer: those of all replicas together (`FusedMoEParallelConfig.make`).
    hidden_ranks: u64,
    experts_whole: bool,
    expert_ranks: u64,
    whole_shared: bool,
    fewer_experts: bool,
    rounding: (u64, u64),
    rounds_experts: bool,
    expert_tile: u64,
    single_routers: bool,
}

fn refused(count: u64, ranks: u64, what: &str) -> MathError {
    MathError::Refused { engine: VERSION.to_string(), reason: format!("{count} is not divisible by {ranks} ({what})") }
}

fn experts_of(spec: &ModelSpec) -> bool {
    spec.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Moe(_)))
}

/// Exact division, as the engine's `divide`.
pub(super) fn divide(count: u64, ranks: u64, what: &str) -> Result<u64, MathError> {
    if count.is_multiple_of(ranks) { Ok(count / ranks) } else { Err(refused(count, ranks, what)) }
}

impl<'a> Rules<'a> {
    /// Rules of a model under options.
    ///
    /// # Errors
    /// [`MathError::Unsupported`] for lists of layers that are not understood.
    pub fn new(spec: &'a ModelSpec, checkpoint: &'a Checkpoint, knobs: &Knobs) -> Result<Self, MathError> {
        let ranks = knobs.parallelism.tensor.max(1);
        Ok(Self {
            spec,
            class: &checkpoint.class,
            checkpoint,
            names: Names::of(checkpoint)?,
            ranks,
            hidden_ranks: if experts_of(spec) { ranks.saturating_mul(knobs.parallelism.data.max(1)) } else { ranks },
            experts_whole: knobs.parallelism.expert,
            fewer_experts: knobs.fewer_experts,
            // Ranks then take turns with the tokens of shared experts, which are whole on each
            // (`config/parallel.py:use_sequence_parallel_moe`).
            whole_shared: knobs.parallelism.expert && ranks > 1 && knobs.parallelism.data > 1,
            expert_ranks: ranks.saturating_mul(knobs.parallelism.data.max(1)),
            rounds_experts: checkpoint.experts_scheme.or(checkpoint.scheme).is_some_and(WeightScheme::experts_only),
            // Hopper's and data-centre Blackwell's kernels compute in single precision from the model's type
            // (`fused_moe/router/gate_linear.py:GateLinear`).
            single_routers: checkpoint.class.router.single_precision
                || (checkpoint.class.router.single_without_kernels && knobs.gpu.capability != 90 && knobs.gpu.major() != 10),
            expert_tile: if checkpoint.class.tiled_experts && checkpoint.scheme.is_none() && knobs.gpu.major() == 10 {
                128
            } else {
                1
            },
            // Triton's kernels on Hopper take tiles of 64; Marlin, CUTLASS and TRT-LLM round both sides.
            rounding: if knobs.gpu.major() == 9 { (64, 64) } else { (128, 256) },
        })
    }

    pub(super) fn layer(&self, tensor: &Tensor) -> Option<&'a Layer> {
        match tensor.place {
            Place::Layer(index) => {
                let index = usize::try_from(index).ok()?;
                let draft = || self.spec.mtp.get(index.checked_sub(self.spec.layers.len())?).map(|module| &module.layer);
                self.spec.layers.get(index).or_else(draft)
            }
            _ => None,
        }
    }

    /// The layer of a tower that a tensor belongs to; towers' layers are alike.
    fn tower_layer(&self, tensor: &Tensor) -> Option<&'a Layer> {
        let in_layer = matches!(tensor.place, Place::Tower) && tensor.name.contains("blk.");
        self.spec.towers.first().filter(|_| in_layer)?.layers.first()
    }

    /// Whether the model class creates it.
    #[must_use]
    pub fn loads(&self, tensor: &Tensor) -> bool {
        let created = match tensor.counts {
            // Router corrections are parameters to the engine; other buffers stay buffers.
            Counts::Buffer => match role(&tensor.name) {
                "exp_probs_b.bias" => !self.class.router.buffered_correction,
                name => name == "ffn_gate_tid2eid.weight",
            },
            counts => is_created(counts),
        };
        // Padding of decay rates exists in the model's own library only.
        let left_out =
            self.class.two_norms && ["attn_q_norm", "attn_k_norm"].iter().any(|norm| role(&tensor.name).starts_with(norm));
        created && !left_out && !self.above_the_features(tensor) && role(&tensor.name) != "ssm_a_padding" && !self.pools(tensor)
    }

    /// Poolers of encoders are left to whoever takes the vectors.
    fn pools(&self, tensor: &Tensor) -> bool {
        self.class.divided_embeddings && tensor.name.starts_with("pooler.")
    }

    /// Whether a tensor is an embedding that is filled up to whole tiles and divided over ranks.
    #[must_use]
    pub fn is_vocabulary(&self, name: &str) -> bool {
        match name {
            "token_embd.weight" | "output.weight" => !self.class.plain_vocabulary,
            "position_embd.weight" | "token_types.weight" => self.class.divided_embeddings,
            _ => false,
        }
    }

    /// Whether it belongs to what is above the features that are read.
    fn above_the_features(&self, tensor: &Tensor) -> bool {
        if !matches!(tensor.place, Place::Tower) || !self.class.tower.without_last_layer {
            return false;
        }
        let layers = self.spec.towers.first().map_or(0, |tower| tower.layers.len());
        let last = format!("v.blk.{}.", layers.saturating_sub(1));
        tensor.name.starts_with(&last) || tensor.name.starts_with("v.post_ln")
    }

    /// Whether it is used after the last layer, wherever files put it.
    #[must_use]
    pub fn belongs_to_the_end(&self, name: &str) -> bool {
        name == "token_embd_norm.weight" && self.class.embedding_norm_last
    }

    /// Whether a class builds a part of the model's ends on every pipeline stage.
    #[must_use]
    pub fn on_every_stage(&self, name: &str) -> bool {
        let ends = self.class.ends;
        match name {
            "token_embd.weight" | "token_embd.placeholders.weight" => ends.embedding,
            "output_norm.weight" | "output_norm.bias" => ends.norm,
            "output.weight" => ends.head,
            _ => false,
        }
    }

    /// The parts of a tensor on one rank.
    ///
    /// # Errors
    /// [`MathError::Refused`] where it cannot be split.
    pub fn parts(&self, tensor: &Tensor) -> Result<Vec<Part>, MathError> {
        let (mut n_in, mut n_out, mut stack) = (tensor.shape.row(), 1, 1);
        let [_, b, c, d] = tensor.shape.0;
        // A convolution is a matrix of taps, however many dimensions it is written with, and groups of output
        // projections are one matrix.
        if tensor.shape.n_dims() <= 2 || role(&tensor.name).contains("conv") || role(&tensor.name) == "attn_output_a.weight" {
            n_out = mul(mul(b, c)?, d)?;
        } else {
            n_out = mul(n_out, b)?;
            stack = mul(c, d)?;
        }
        let is_vector = tensor.shape.n_dims() == 1;
        let name = tensor.name.as_str();
        let ranks = self.ranks;
        let split = self.split(tensor);
        // A vector of outputs (a bias, a rate) is divided like outputs.
        let outputs = |n_in: u64, n_out: u64, part: u64, whole: u64| -> (u64, u64) {
            if is_vector { (n_in / whole.max(1) * part, n_out) } else { (n_in, part) }
        };
        match split {
            Split::Whole => {}
            Split::Outputs if self.whole_rates(tensor) => {}
            Split::Outputs => {
                let whole = if is_vector { n_in } else { n_out };
                let mut part = divide(whole, ranks, name)?;
                if role(name) == "ssm_beta.weight" {
                    // The matrix it is fused into may have tiles.
                    part = round_up(part, self.class.rate_tile.max(1))?;
                }
                if role(name) == "attn_sinks.weight" && self.compresses(tensor) {
                    // The decoding kernel takes 64 or 128 heads (`get_padded_num_q_heads`).
                    part = if part <= 64 { 64 } else { 128 };
                }
                (n_in, n_out) = outputs(n_in, n_out, part, whole);
            }
            Split::Inputs => n_in = divide(n_in, ranks, name)?,
            Split::KvHeads => {
                let whole = if is_vector { n_in } else { n_out };
                let heads = self.kv_heads(tensor);
                let part = mul(whole.checked_div(heads).unwrap_or(whole), self.kv_share(heads)?)?;
                (n_in, n_out) = outputs(n_in, n_out, part, whole);
            }
            Split::ExpertBias { outputs } => {
                // One row for every expert.
                if self.experts_whole {
                    n_out = self.experts_here(n_out);
                } else if outputs {
                    n_in = divide(n_in, self.hidden_ranks, name)?;
                }
                if self.rounds_experts {
                    let (hidden, model) = self.rounding;
                    n_in = round_up(n_in, if outputs { hidden } else { model })?;
                }
            }
            Split::ExpertOutputs | Split::ExpertInputs if self.experts_whole => {
                stack = self.experts_here(stack);
            }
            Split::ExpertOutputs => n_out = self.expert_part(n_out, name)?,
            Split::ExpertInputs => n_in = self.expert_part(n_in, name)?,
            Split::Fused => {
                let whole = if is_vector { n_in } else { n_out };
                let (queries, keys, heads) = self.fused(tensor, whole);
                let kv = mul(keys.checked_div(heads).unwrap_or(0), self.kv_share(heads)?)?;
                let part = add(divide(queries, ranks, name)?, kv)?;
                (n_in, n_out) = outputs(n_in, n_out, part, whole);
            }
            Split::Mamba2In | Split::Mamba2Conv => {
                if let Some(mamba) = self.mamba2(tensor) {
                    let groups = if mamba.n_groups.is_multiple_of(ranks) { mamba.n_groups } else { ranks };
                    let shared = mul(mul(2, groups)?, mamba.d_state)?;
                    let mut whole = add(mamba.d_inner, shared)?;
                    if matches!(split, Split::Mamba2In) {
                        whole = add(add(whole, mamba.d_inner)?, mamba.n_heads)?;
                    }
                    let part = divide(whole, ranks, name)?;
                    if is_vector { n_in = part } else { n_out = part }
                }
            }
        }
        let inputs_split = ranks > 1 && matches!(split, Split::Inputs);
        let outputs_split = ranks > 1 && matches!(split, Split::Outputs | Split::KvHeads | Split::Fused | Split::Mamba2In);
        let part = Part { n_in, n_out, stack, inputs_split, outputs_split };
        // Several matrices of one shape are a linear layer each.
        let layers = if name.starts_with("altup_") { usize::try_from(stack).unwrap_or(1) } else { 1 };
        let mut parts = if layers > 1 { vec![Part { stack: 1, ..part }; layers] } else { vec![part] };
        let twice = match role(name) {
            // Values are read from the keys, and yet have a matrix.
            "attn_k.weight" => self.attention(tensor).is_some_and(|attention| matches!(attention.layout, QkvLayout::ValueIsKey)),
            // A fused projection has biases for all of its parts.
            "attn_v.bias" | "cross_attn_v.bias" => self.class.fused_biases,
            _ => false,
        };
        if twice {
            parts.push(part);
        }
        Ok(parts)
    }

    /// Rates that are not divided (`mamba/gdn/qwen_gdn_linear_attn.py:maybe_disable_tp`).
    fn whole_rates(&self, tensor: &Tensor) -> bool {
        let rates = matches!(role(&tensor.name), "ssm_alpha.weight" | "ssm_beta.weight" | "ssm_ba.weight");
        rates && self.class.whole_rates && matches!(self.checkpoint.scheme, Some(WeightScheme::Grouped { .. }))
    }

    /// A rank's share of an expert's hidden layer (`min_moe_intermediate_per_partition`).
    fn expert_part(&self, hidden: u64, name: &str) -> Result<u64, MathError> {
        let part = divide(hidden, self.hidden_ranks, name)?;
        round_up(if self.hidden_ranks > 1 { part.max(self.class.least_expert_share) } else { part }, self.expert_tile)
    }

    /// Experts of a rank: the first ranks have one more where they do not divide (`expert_map_manager.py`).
    const fn experts_here(&self, experts: u64) -> u64 {
        if self.fewer_experts { experts / self.expert_ranks } else { experts.div_ceil(self.expert_ranks) }
    }

    /// Key-value heads of a rank: a share of them, or one of them on several ranks.
    fn kv_share(&self, heads: u64) -> Result<u64, MathError> {
        if heads >= self.ranks {
            divide(heads, self.ranks, "key-value heads by tensor parallel size")
        } else {
            divide(self.ranks, heads, "tensor parallel size by key-value heads, which are replicated").map(|_| 1)
        }
    }

    fn kv_heads(&self, tensor: &Tensor) -> u64 {
        let attention = self.attention(tensor);
        attention.map_or(self.ranks, |attention| attention.n_kv_heads).max(1)
    }

    fn attention(&self, tensor: &Tensor) -> Option<&'a Attention> {
        let layer = self.layer(tensor)?;
        if role(&tensor.name).starts_with("cross_attn")
            && let Some(cross) = &layer.cross_attention
        {
            return Some(cross);
        }
        match &layer.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::Parallel(parallel) => Some(&parallel.attention),
            _ => None,
        }
    }

    fn mamba2(&self, tensor: &Tensor) -> Option<&'a Mamba2> {
        match &self.layer(tensor)?.mixer {
            Mixer::Mamba2(mamba) => Some(mamba),
            Mixer::Parallel(parallel) => match parallel.state.as_ref() {
                Mixer::Mamba2(mamba) => Some(mamba),
                _ => None,
            },
            _ => None,
        }
    }

    /// Query outputs, key and value outputs and their heads in a fused matrix.
    fn fused(&self, tensor: &Tensor, whole: u64) -> (u64, u64, u64) {
        match self.attention(tensor) {
            Some(attention) => {
                let kv = attention.n_kv_heads.saturating_mul(attention.k_head_dim.saturating_add(attention.v_head_dim));
                (whole.saturating_sub(kv), kv, attention.n_kv_heads.max(1))
            }
            None => (whole, 0, 1),
        }
    }
}
