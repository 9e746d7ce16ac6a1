//! Effective parameters: what llama-server makes of the request before anything is allocated.

use alloc::format;
use alloc::string::ToString;

use crate::deployment::{ContextRequest, Deployment, FlashAttention};
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::flash::stays_with_its_layers;
use crate::engine::llama_cpp::layout::Layout;
use crate::error::MathError;
use crate::spec::ModelSpec;
use crate::units::{add, mul, round_up};

/// Sequences an engine build can be compiled for (`llama-cparams.h:LLAMA_MAX_SEQ`).
pub const MAX_SEQUENCES: u64 = 256;

/// Contexts are rounded up to this many cells (`llama-context.cpp:llama_context`).
pub const CONTEXT_PAD: u64 = 256;

/// The engine's parameters after its own rules (`llama-context.cpp:llama_context`, `tools/server/server-context.cpp`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Resolved {
    /// Cells of the whole pool.
    pub n_ctx: u64,
    /// Cells one sequence can use.
    pub n_ctx_seq: u64,
    /// Sequences.
    pub n_seq_max: u64,
    /// Logical batch.
    pub n_batch: u64,
    /// Micro-batch.
    pub n_ubatch: u64,
    /// Rows of logits that one batch may ask for.
    pub n_outputs_max: u64,
    /// Snapshots for rolling a recurrent state back.
    pub n_rs_seq: u64,
    /// Tokens of the largest graph.
    pub graph_tokens: u64,
    /// Streams of an ordinary attention cache: one, or one per sequence.
    pub streams: u64,
    /// Whether flash attention is on.
    pub flash_attention: bool,
    /// Whether all sequences share one pool.
    pub kv_unified: bool,
}

impl Resolved {
    /// Rows that the largest graph yields: limited before the micro-batch is rounded up to whole sequences
    /// (`llama-context.cpp:sched_reserve`).
    pub(crate) fn outputs(&self) -> u64 {
        self.n_outputs_max.min(self.n_ubatch).min(self.n_ctx)
    }
}

/// Facts of a model that the parameters depend on, small enough to keep for many calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResolveFacts {
    pub(crate) build: Build,
    pub(crate) max_context: u64,
    pub(crate) causal: bool,
    pub(crate) has_encoder: bool,
    pub(crate) rolls_back: bool,
    pub(crate) forbids_flash_attention: bool,
    /// Whether every layer's attention runs fused, and where its layer is.
    pub(crate) runs_fused: bool,
}

impl ResolveFacts {
    pub(crate) fn new(spec: &ModelSpec, facts: Facts<'_>, deployment: &Deployment) -> Result<Self, MathError> {
        Ok(Self {
            build: facts.build,
            max_context: spec.max_context,
            causal: facts.is_causal(spec),
            has_encoder: facts.has_encoder(),
            rolls_back: facts.rolls_back(),
            forbids_flash_attention: facts.forbids_flash_attention(),
            runs_fused: stays_with_its_layers(spec, facts, deployment, &Layout::of(spec, deployment)?)?,
        })
    }

    /// Flash attention as the engine goes into the constructor with it: what cannot be is off, quantised values need
    /// it (`llama-context.cpp:llama_init_from_model`).
    pub(crate) const fn wanted(&self, deployment: &Deployment) -> FlashAttention {
        match deployment.flash_attention {
            _ if self.forbids_flash_attention => FlashAttention::Off,
            FlashAttention::Auto if deployment.kv_type_v.is_quantized() => FlashAttention::On,
            asked => asked,
        }
    }

    /// Whether values are cached transposed. That is decided before `auto` is: a cache made for flash attention stays
    /// as it is when the device then turns out not to have it.
    pub(crate) const fn transposes_values(&self, deployment: &Deployment) -> bool {
        matches!(self.wanted(deployment), FlashAttention::Off)
    }
}

/// The effective parameters of a deployment.
///
/// # Errors
/// [`MathError::Unsupported`] for an architecture the build does not load, [`MathError::Refused`] where the engine
/// does not start, [`MathError::Invalid`] for a request outside the engine's 32-bit range.
pub fn resolve(spec: &ModelSpec, deployment: &Deployment, build: Build) -> Result<Resolved, MathError> {
    let facts = Facts::new(spec, build)?;
    resolve_with(&ResolveFacts::new(spec, facts, deployment)?, deployment, deployment.context, deployment.sequences)
}

pub(crate) fn resolve_with(
    facts: &ResolveFacts,
    deployment: &Deployment,
    context: ContextRequest,
    sequences: u64,
) -> Result<Resolved, MathError> {
    let build = facts.build;
    let refused = |reason: &str| MathError::Refused { engine: build.engine().to_string(), reason: reason.to_string() };
    let n_seq_max = sequences.max(1);
    if n_seq_max > MAX_SEQUENCES {
        return Err(refused("n_seq_max must be <= 256"));
    }
    if deployment.batch == 0 && deployment.ubatch == 0 {
        return Err(refused("n_batch and n_ubatch cannot both be zero"));
    }
    let asked = match context {
        ContextRequest::Total(tokens) => tokens,
        ContextRequest::PerSequence(tokens) => mul(tokens, n_seq_max)?,
        ContextRequest::ModelMaximum => mul(facts.max_context, n_seq_max)?,
    };
    // `-c 0` means the model's own length, for the whole pool.
    let asked = if asked == 0 { facts.max_context } else { asked };
    if asked == 0 {
        return Err(refused("n_ctx and model->hparams.n_ctx_train cannot both be zero"));
    }
    let largest = u64::from(u32::MAX) - CONTEXT_PAD * MAX_SEQUENCES;
    if asked.max(deployment.batch).max(deployment.ubatch) > largest {
        for (field, value) in [("context", asked), ("batch", deployment.batch), ("ubatch", deployment.ubatch)] {
            if value <= largest {
                continue;
            }
            return Err(MathError::Invalid {
                field: field.to_string(),
                found: format!("{value}"),
                expected: format!("at most {largest}: the engine counts tokens in 32 bits"),
            });
        }
    }
    // An embedding server processes a prompt in one micro-batch (`tools/server/server.cpp`).
    let batch = if deployment.embeddings { deployment.batch.min(deployment.ubatch) } else { deployment.batch };
    let n_batch = if facts.causal { asked.min(batch) } else { batch };
    let n_ubatch = n_batch.min(if deployment.ubatch == 0 { batch } else { deployment.ubatch });
    let padded = round_up(asked, CONTEXT_PAD)?;
    let (n_ctx, n_ctx_seq) = if deployment.kv_unified {
        (padded, padded)
    } else {
        // Most often there is one sequence, and nothing to divide.
        let each = if n_seq_max == 1 { padded } else { round_up(padded / n_seq_max, CONTEXT_PAD)? };
        (mul(each, n_seq_max)?, each)
    };
    let n_outputs_max = if facts.has_encoder || deployment.logits_for_all {
        n_batch
    } else if deployment.embeddings {
        batch
    } else {
        mul(n_seq_max, add(1, deployment.draft_tokens)?)?.clamp(1, batch.max(1))
    };
    if n_outputs_max < n_seq_max {
        return Err(refused("GGML_ASSERT(n_outputs_max <= cparams.n_outputs_max): the batch holds fewer tokens than sequences"));
    }
    let quantized_v = deployment.kv_type_v.is_quantized();
    let wanted = facts.wanted(deployment);
    if quantized_v && wanted == FlashAttention::Off {
        return Err(refused("quantized V cache requires flash_attn to be enabled"));
    }
    let tokens = n_ctx.min(n_ubatch);
    Ok(Resolved {
        n_ctx,
        n_ctx_seq,
        n_seq_max,
        n_batch,
        n_ubatch,
        n_outputs_max,
        n_rs_seq: if facts.rolls_back && deployment.load_mtp { deployment.draft_tokens } else { 0 },
        graph_tokens: round_up(tokens.max(n_seq_max), n_seq_max)?,
        streams: if deployment.kv_unified { 1 } else { n_seq_max },
        flash_attention: match wanted {
            FlashAttention::On => true,
            FlashAttention::Auto => facts.runs_fused,
            FlashAttention::Off => false,
        },
        kv_unified: deployment.kv_unified,
    })
}
