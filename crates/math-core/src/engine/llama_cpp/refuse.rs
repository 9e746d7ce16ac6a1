//! Combinations that the engine refuses or aborts on.

use alloc::format;
use alloc::string::{String, ToString};

use crate::deployment::Deployment;
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::flash::cached_heads;
use crate::engine::llama_cpp::nodes::node_budget;
use crate::engine::llama_cpp::resolve::Resolved;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Attends, Mixer, ModelSpec, Pooling};

/// What a model cannot do under some effective parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusals {
    pub(crate) build: Build,
    /// The relative position bias of a T5 has no stream dimension (`models/t5.cpp`).
    one_stream_only: bool,
    /// The third reserve graph is built with one sequence, over a micro-batch that its streams then divide
    /// (`llama-context.cpp:sched_reserve`, TAG_RESERVE_DIAG_DECAY).
    micro_batch_divides_into_streams: bool,
    /// Embeddings are means over all tokens of the graph, of which each has to be an output (`llama-graph.cpp:build_pooling`).
    averages_outputs: bool,
    /// Whether the graph overflows the scheduler's table with one stream, and with several.
    table_overflows: [bool; 2],
}

/// The engine's refusal.
pub(crate) fn refused(build: Build, reason: String) -> MathError {
    MathError::Refused { engine: build.engine().to_string(), reason }
}

impl Refusals {
    /// Refuses at once what no context or number of sequences could cure, and keeps the rest.
    ///
    /// # Errors
    /// [`MathError::Refused`] with the engine's reason.
    pub(crate) fn new(
        spec: &ModelSpec,
        facts: Facts<'_>,
        deployment: &Deployment,
        resolved: &Resolved,
    ) -> Result<Self, MathError> {
        if spec.operations.lacks_a_key && facts.build.asks_for_widths_of_heads(facts.arch) {
            let reason = "key not found in model: the file lacks one that the loader insists on";
            return Err(refused(facts.build, reason.to_string()));
        }
        if spec.operations.unscored_experts && facts.build.asks_how_experts_are_scored(facts.arch) {
            let reason = "the file does not say how experts are scored (expert_gating_func): build_moe_ffn aborts";
            return Err(refused(facts.build, reason.to_string()));
        }
        let (k, v) = (deployment.kv_type_k, deployment.kv_type_v);
        if k != v && spec.layers.iter().any(|layer| keeps_latents(&layer.mixer)) {
            let reason = format!("model does not support different K ({k}) and V ({v}) cache types");
            return Err(refused(facts.build, reason));
        }
        if resolved.flash_attention {
            for (which, format, keys) in [("K", k, true), ("V", v, false)] {
                if let Some(reason) = block_mismatch(spec, facts, which, format, keys)? {
                    return Err(refused(facts.build, reason));
                }
            }
        }
        let mut table_overflows = [false; 2];
        for (overflows, streams) in table_overflows.iter_mut().zip([1, 2]) {
            let several = Resolved { streams, ..*resolved };
            *overflows = node_budget(spec, facts, deployment, &several)?.is_some_and(|budget| budget.needed > budget.slots);
        }
        // Attention then yields a few tokens too few to be added to the residual; the last layer only adds the rows that
        // are asked for.
        let before_last = spec.layers.split_last().map_or(&[][..], |(_, before)| before);
        Ok(Self {
            build: facts.build,
            one_stream_only: facts.arch == "t5",
            micro_batch_divides_into_streams: matches!(facts.arch, "kimi-linear" | "minimax-01")
                && before_last.iter().any(|layer| matches!(layer.mixer, Mixer::Attention(_) | Mixer::Mla(_))),
            averages_outputs: deployment.embeddings && spec.operations.pooling.is_some_and(averages),
            table_overflows,
        })
    }

    /// Why the engine does not start with these parameters.
    pub(crate) fn reason(&self, resolved: &Resolved) -> Option<&'static str> {
        let several = resolved.streams > 1;
        let [one, many] = self.table_overflows;
        if self.one_stream_only && several {
            Some("a T5 aborts with more than one stream: use a unified cache")
        } else if if several { many } else { one } {
            Some("the graph has more tensors than the scheduler's table has room for: it aborts at start")
        } else if self.averages_outputs && resolved.graph_tokens != resolved.outputs() {
            Some("GGML_ASSERT(ggml_can_mul_mat(a, b)): means are taken of micro-batches that the sequences divide")
        } else if self.micro_batch_divides_into_streams && !resolved.n_ctx.min(resolved.n_ubatch).is_multiple_of(resolved.streams)
        {
            Some("the model aborts when the micro-batch is not a multiple of the streams")
        } else {
            None
        }
    }
}

/// Refuses what the engine refuses.
///
/// # Errors
/// [`MathError::Refused`] with the engine's reason.
pub(crate) fn check(spec: &ModelSpec, facts: Facts<'_>, deployment: &Deployment, resolved: &Resolved) -> Result<(), MathError> {
    match Refusals::new(spec, facts, deployment, resolved)?.reason(resolved) {
        None => Ok(()),
        Some(reason) => Err(refused(facts.build, reason.to_string())),
    }
}

/// Whether tokens become an embedding by their mean.
const fn averages(pooling: Pooling) -> bool {
    matches!(pooling, Pooling::Mean | Pooling::Rank { mean: true })
}

/// Whether a layer caches one vector for keys and values.
const fn keeps_latents(mixer: &Mixer) -> bool {
    match mixer.attends() {
        Attends::Latent(mla) => !mla.expanded,
        Attends::Compressed(_) => true,
        Attends::Heads(_) | Attends::Never => false,
    }
}

/// Flash attention reads whole blocks of every head (`llama-context.cpp:llama_init_from_model`).
fn block_mismatch(
    spec: &ModelSpec,
    facts: Facts<'_>,
    which: &str,
    format: StorageFormat,
    keys: bool,
) -> Result<Option<String>, MathError> {
    if !format.is_quantized() {
        return Ok(None);
    }
    let block = format.block_len();
    for layer in &spec.layers {
        let Some(heads) = cached_heads(&layer.mixer)? else { continue };
        let width = match layer.mixer.attends() {
            _ if keys => heads.k,
            // Kimi Linear's files give the width of a plain head for values (`conversion/kimi_linear.py`), the other
            // latent models the latent's.
            Attends::Latent(mla) if facts.arch == "kimi-linear" && !mla.expanded => {
                spec.d_model.checked_div(mla.n_heads).unwrap_or(0)
            }
            _ => heads.v,
        };
        if !width.is_multiple_of(block) {
            let lower = which.to_lowercase();
            return Ok(Some(format!(
                "{which} cache type {format} with block size {block} does not divide n_embd_head_{lower}={width}"
            )));
        }
    }
    Ok(None)
}
