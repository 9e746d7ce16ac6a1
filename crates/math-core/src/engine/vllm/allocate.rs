//! What every rank allocates: weights, the pool of blocks, and what a step needs beside them.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::VERSION;
use super::drafter::drafter;
use super::facts::Checkpoint;
use super::layers::{Settled, cache_plan};
use super::lora::buffers;
use super::options::{Knobs, MaxLength};
use super::plan::{CachePlan, Capacity};
use super::weights::{RankWeights, draft_weights, weights};
use crate::allocation::{Allocation, Certainty, PlaceAllocation, Term, TermKind};
use crate::engine::activations::{Widths, widths};
use crate::engine::ranks::{replicated_caches, replicated_projections};
use crate::error::MathError;
use crate::spec::{FeedForward, Mixer, ModelSpec};
use crate::tensor::TensorTable;
use crate::units::{Bytes, add, mul};

/// What may be used of every GPU for weights, work and cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Budget {
    /// A share of the GPU's memory in millionths (`--gpu-memory-utilization`), rounded up to a byte.
    Utilization {
        /// Millionths.
        millionths: u64,
    },
    /// So many bytes for the cache alone (`--kv-cache-memory-bytes`).
    Cache {
        /// Bytes.
        bytes: u64,
    },
}

/// The engine's default share (`vllm/config/cache.py:gpu_memory_utilization`).
pub const DEFAULT_UTILIZATION: u64 = 920_000;

/// Everything known about a deployment.
#[derive(Debug, Clone)]
pub struct Allocated {
    /// Terms, rank by rank: stage by stage, the ranks of a stage one after the other, replicas after that.
    pub allocation: Allocation,
    /// The cache.
    pub plan: CachePlan,
    /// What the engine settled on.
    pub settled: Settled,
    /// Blocks and what they serve; the reason where the engine would not start.
    pub capacity: Result<Capacity, MathError>,
    /// The same where everything beside the cache takes no more than its least.
    pub capacity_at_best: Result<Capacity, MathError>,
    /// Bytes missing on the fullest rank, where it would not start.
    pub short_by: Option<u64>,
    /// Weights of the first rank of every stage.
    pub weights: Vec<RankWeights>,
}

/// Bytes that work needs on a rank, at least and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work {
    low: u64,
    high: u64,
}

/// What a rank holds beside the model's own weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Beside {
    draft: Work,
    adapters: u64,
}

impl Beside {
    fn terms(&self, knobs: &Knobs) -> Result<Vec<Term>, MathError> {
        let mut terms = Vec::new();
        if self.draft.high > 0 {
            let (low, high) = (Bytes::new(self.draft.low)?, Bytes::new(self.draft.high)?);
            let certainty = if low == high { Certainty::Exact } else { Certainty::Bounded { low, high } };
            terms.push(Term {
                component: TermKind::Draft,
                label: match &knobs.drafter {
                    Some(drafter) => format!("{} that drafts", drafter.spec.architecture),
                    None => "the model's own draft module".to_string(),
                },
                bytes: high,
                certainty,
                formula: match &knobs.drafter {
                    Some(_) => {
                        "all of its weights; embedding and output matrix are the model's where a file has the same or none"
                    }
                    None => "its layers and what joins them; embedding and output matrix are the model's",
                }
                .to_string(),
                source: source("v1/worker/gpu/spec_decode, model_executor/models/*_mtp.py, llama_eagle.py, llama_eagle3.py"),
                children: Vec::new(),
            });
        }
        if let (Some(adapters), true) = (knobs.adapters, self.adapters > 0) {
            terms.push(Term {
                component: TermKind::Other,
                label: "buffers of LoRA adapters".to_string(),
                bytes: Bytes::new(self.adapters)?,
                certainty: Certainty::Exact,
                formula: format!("{} adapters x rank {} x (inputs + outputs) of every matrix", adapters.count, adapters.rank),
                source: source("lora/layers/base_linear.py, column_parallel_linear.py:create_lora_weights"),
                children: Vec::new(),
            });
        }
        Ok(terms)
    }
}

/// The draft module on the last stage, and adapters on all of them.
fn beside(
    spec: &ModelSpec,
    table: &TensorTable,
    checkpoint: &Checkpoint,
    knobs: &Knobs,
    stages: usize,
) -> Result<Vec<Beside>, MathError> {
    let adapters = buffers(spec, table, checkpoint, knobs)?;
    let mut draft = Work { low: 0, high: 0 };
    if let Some((drafter, method)) = drafter(knobs)? {
        let held = draft_weights(spec, table, checkpoint, knobs)?;
        draft.high = held.bytes();
        draft.low = draft.high - drafter.shareable(method, spec, &held, knobs)?;
    } else if knobs.speculation.is_some() {
        // Modules around latent attention quantize what the model's layers do. Which matrices others quantize is their
        // class's own business: none of them, or all in a quarter of the model's type, which no scheme goes below.
        let followed = checkpoint.scheme.is_none() || spec.mtp.iter().all(|module| matches!(module.layer.mixer, Mixer::Mla(_)));
        let plain = Checkpoint { scheme: None, experts_scheme: None, layer_schemes: Vec::new(), ..checkpoint.clone() };
        draft.high = draft_weights(spec, table, if followed { checkpoint } else { &plain }, knobs)?.bytes();
        draft.low = if followed { draft.high } else { draft.high / 4 };
    }
    let last = stages.saturating_sub(1);
    Ok((0..stages)
        .map(|stage| Beside {
            draft: if stage == last { draft } else { Work { low: 0, high: 0 } },
            adapters: adapters.get(stage).copied().unwrap_or(0),
        })
        .collect())
}

/// Plans all ranks.
///
/// # Errors
/// [`MathError::Refused`] for what the engine refuses whatever the memory, [`MathError::Unsupported`] for what is not
/// followed.
pub fn allocate(
    spec: &ModelSpec,
    table: &TensorTable,
    checkpoint: &Checkpoint,
    knobs: &Knobs,
    budget: Budget,
) -> Result<Allocated, MathError> {
    let (plan, settled) = cache_plan(spec, checkpoint, knobs)?;
    let ranks = weights(spec, table, checkpoint, knobs)?;
    let work = work(spec, knobs, &settled)?;
    let beside = beside(spec, table, checkpoint, knobs, ranks.len())?;
    let mut least = Vec::new();
    let mut most = Vec::new();
    for (rank, beside) in ranks.iter().zip(&beside) {
        let (low, high) = match budget {
            Budget::Cache { bytes } => (bytes, bytes),
            Budget::Utilization { millionths } => {
                let requested = mul(knobs.gpu.memory, millionths)?.div_ceil(1_000_000);
                let left = requested.saturating_sub(rank.bytes()).saturating_sub(beside.adapters);
                (
                    left.saturating_sub(work.high).saturating_sub(beside.draft.high),
                    left.saturating_sub(work.low).saturating_sub(beside.draft.low),
                )
            }
        };
        least.push(low);
        most.push(high);
    }
    let fit_length = matches!(knobs.max_length, MaxLength::Fit);
    let capacity = plan.capacity(&least, knobs, fit_length);
    let capacity_at_best = plan.capacity(&most, knobs, fit_length);
    let blocks_low = plan.blocks_in(&least, knobs);
    let blocks_high = plan.blocks_in(&most, knobs);
    let mut short_by = None;
    if capacity.is_err() {
        let mut short = 0;
        for (stage, bytes) in (0_u64..).zip(&least) {
            let block = plan.block_bytes.get(usize::try_from(stage).unwrap_or(usize::MAX)).copied().unwrap_or(0);
            let needed = add(plan.request_bytes(&plan.request, stage)?, block)?;
            short = short.max(needed.saturating_sub(*bytes));
        }
        short_by = Some(short.max(1));
    }
    let mut allocation = Allocation::default();
    let fewer = match left_over_experts(spec, knobs) {
        0 => None,
        _ => Some(weights(spec, table, checkpoint, &Knobs { fewer_experts: true, ..knobs.clone() })?),
    };
    let (tensor, first) = (knobs.parallelism.tensor.max(1), left_over_experts(spec, knobs));
    for replica in 0..knobs.parallelism.data.max(1) {
        for (((stage, rank), beside), index) in (0_u64..).zip(&ranks).zip(&beside).zip(0_usize..) {
            for of_stage in 0..tensor {
                let share = replica.saturating_mul(tensor).saturating_add(of_stage);
                let own = fewer.as_ref().filter(|_| share >= first).and_then(|ranks| ranks.get(index)).unwrap_or(rank);
                let mut terms = terms(spec, knobs, &plan, budget, own, work, (blocks_low, blocks_high), stage)?;
                terms.extend(beside.terms(knobs)?);
                allocation.devices.push(PlaceAllocation { terms });
            }
        }
    }
    Ok(Allocated { allocation, plan, settled, capacity, capacity_at_best, short_by, weights: ranks })
}

/// Ranks that have one expert more than the others; 0 where all have the same.
fn left_over_experts(spec: &ModelSpec, knobs: &Knobs) -> u64 {
    let ranks = knobs.parallelism.tensor.max(1).saturating_mul(knobs.parallelism.data.max(1));
    let experts = spec.layers.iter().find_map(|layer| match &layer.feed_forward {
        FeedForward::Moe(moe) if knobs.parallelism.expert => Some(moe.n_experts),
        _ => None,
    });
    experts.map_or(0, |experts| experts % ranks)
}

#[expect(clippy::too_many_arguments, reason = "one rank's numbers, once")]
fn terms(
    spec: &ModelSpec,
    knobs: &Knobs,
    plan: &CachePlan,
    budget: Budget,
    rank: &RankWeights,
    work: Work,
    (blocks_low, blocks_high): (u64, u64),
    stage: u64,
) -> Result<Vec<Term>, MathError> {
    let mut children = Vec::new();
    for (format, bytes) in &rank.by_type {
        children.push(Term {
            component: TermKind::Weights,
            label: format!("stored as {}", format.name()),
            bytes: Bytes::new(*bytes)?,
            certainty: Certainty::Exact,
            formula: format!("{bytes} B"),
            source: source("model_executor/layers"),
            children: Vec::new(),
        });
    }
    let mut terms = vec![Term {
        component: TermKind::Weights,
        label: "weights".to_string(),
        bytes: Bytes::new(rank.bytes())?,
        certainty: Certainty::Exact,
        formula: format!("this rank's part of every matrix{}", replicated_projections(spec, &knobs.parallelism)),
        source: source("model_executor/layers/linear.py, vocab_parallel_embedding.py, fused_moe"),
        children,
    }];
    let block = plan.block_bytes.get(usize::try_from(stage).unwrap_or(usize::MAX)).copied().unwrap_or(0);
    if block > 0 {
        let exact = blocks_low == blocks_high;
        let bytes = Bytes::new(mul(block, blocks_low)?)?;
        terms.push(Term {
            component: TermKind::KvCache,
            label: "pool of cache blocks".to_string(),
            bytes,
            certainty: if exact {
                Certainty::Exact
            } else {
                Certainty::Bounded { low: bytes, high: Bytes::new(mul(block, blocks_high)?)? }
            },
            formula: format!("{blocks_low} blocks x {block} B{}", replicated_caches(spec, &knobs.parallelism)),
            source: source("v1/core/kv_cache_planning.py:get_kv_cache_configs"),
            children: Vec::new(),
        });
    }
    let label = match budget {
        Budget::Cache { .. } => "activations, graphs and tables",
        Budget::Utilization { .. } => "activations, graphs and tables, inside the utilization",
    };
    terms.push(Term {
        component: TermKind::Compute,
        label: label.to_string(),
        bytes: Bytes::new(work.high)?,
        certainty: Certainty::Bounded { low: Bytes::new(work.low)?, high: Bytes::new(work.high)? },
        formula: "at least one layer's widest buffers and the logits, at most all buffers of a layer, captured graphs and \
                  rotary tables"
            .to_string(),
        source: source("v1/worker/gpu_worker.py:determine_available_memory measures it on the device"),
        children: Vec::new(),
    });
    terms.push(Term {
        component: TermKind::DriverContext,
        label: "CUDA context, cuBLAS and NCCL".to_string(),
        bytes: Bytes::new(mul(if knobs.parallelism.tensor > 1 { 1536 } else { 768 }, 1 << 20)?)?,
        certainty: Certainty::Bounded {
            low: Bytes::new(mul(300, 1 << 20)?)?,
            high: Bytes::new(mul(if knobs.parallelism.tensor > 1 { 1536 } else { 768 }, 1 << 20)?)?,
        },
        formula: "taken before the engine looks at free memory, outside the utilization".to_string(),
        source: source("v1/worker/gpu_worker.py:init_device takes its snapshot after them"),
        children: Vec::new(),
    });
    Ok(terms)
}

fn source(path: &str) -> String {
    format!("{VERSION}: vllm/{path}")
}

/// What a step needs beside weights and cache, between two bounds that follow from the largest buffers.
fn work(spec: &ModelSpec, knobs: &Knobs, settled: &Settled) -> Result<Work, MathError> {
    const MIB: u64 = 1 << 20;
    let tensor = knobs.parallelism.tensor.max(1);
    let tokens = settled.max_batched_tokens;
    let element = settled.dtype.block_bytes();
    let Widths { widest, layer: all, rotary } = widths(spec, tensor)?;
    let vocabulary = spec.embedding.n_vocab.div_ceil(tensor);
    let logits = mul(settled.max_sequences, spec.embedding.n_vocab)?;
    let low = mul(mul(tokens, widest)?, element)?.max(mul(mul(settled.max_sequences, vocabulary)?, element)?);
    let tables = mul(mul(spec.max_context, rotary)?, mul(2, element)?)?;
    let mut high = add(mul(mul(tokens, all)?, mul(2, element)?)?, mul(logits, 12)?)?;
    // Captured graphs, persistent inputs, workspaces; and a multimodal profile where there are towers.
    high = add(add(high, tables)?, mul(2048, MIB)?)?;
    if !spec.towers.is_empty() {
        high = add(high, mul(2048, MIB)?)?;
    }
    Ok(Work { low, high })
}
