//! Combinations that the engine refuses or aborts on.

use alloc::format;
use alloc::string::{String, ToString};

use crate::deployment::Deployment;
use crate::engine::llama_cpp::facts::{Facts, attention_of};
use crate::engine::llama_cpp::nodes::node_budget;
use crate::engine::llama_cpp::resolve::Resolved;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Mixer, ModelSpec};
use crate::units::add;

/// Refuses what the engine refuses.
///
/// # Errors
/// [`MathError::Refused`] with the engine's reason.
pub(crate) fn check(spec: &ModelSpec, facts: Facts<'_>, deployment: &Deployment, resolved: &Resolved) -> Result<(), MathError> {
    let refused = |reason: String| Err(MathError::Refused { engine: facts.build.engine().to_string(), reason });
    let (k, v) = (deployment.kv_type_k, deployment.kv_type_v);
    let latent = spec.layers.iter().any(|layer| match &layer.mixer {
        Mixer::Mla(mla) => !mla.expanded,
        Mixer::CompressedAttention(_) => true,
        Mixer::Attention(_)
        | Mixer::Mamba1(_)
        | Mixer::Mamba2(_)
        | Mixer::GatedDeltaNet(_)
        | Mixer::KimiDelta(_)
        | Mixer::LightningAttention(_)
        | Mixer::Rwkv(_)
        | Mixer::ShortConv(_)
        | Mixer::Rglru(_)
        | Mixer::Parallel(_)
        | Mixer::None => false,
    });
    if latent && k != v {
        return refused(format!("model does not support different K ({k}) and V ({v}) cache types"));
    }
    if resolved.flash_attention {
        for (which, format, width) in [("K", k, true), ("V", v, false)] {
            if let Some(reason) = block_mismatch(spec, facts, which, format, width)? {
                return refused(reason);
            }
        }
    }
    // The relative position bias of a T5 has no stream dimension (`models/t5.cpp`).
    if facts.arch == "t5" && resolved.streams > 1 {
        return refused("a T5 aborts with more than one stream: use a unified cache".to_string());
    }
    if let Some(budget) = node_budget(spec, facts, deployment, resolved)?.filter(|budget| budget.needed > budget.slots) {
        return refused(format!(
            "the graph has {} tensors, the scheduler's table has room for {}: it aborts at start",
            budget.needed, budget.slots
        ));
    }
    // The third reserve graph is built with one sequence, over a micro-batch that its streams then divide
    // (`llama-context.cpp:sched_reserve`, TAG_RESERVE_DIAG_DECAY).
    let tokens = resolved.n_ctx.min(resolved.n_ubatch);
    if matches!(facts.arch, "kimi-linear" | "minimax-01") && !tokens.is_multiple_of(resolved.streams) {
        return refused(format!(
            "{} aborts when the micro-batch ({tokens}) is not a multiple of the streams ({})",
            facts.arch, resolved.streams
        ));
    }
    Ok(())
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
        let width = match &layer.mixer {
            Mixer::Mla(mla) if mla.expanded => {
                if keys {
                    add(mla.qk_nope_head_dim, mla.qk_rope_head_dim)?
                } else {
                    mla.v_head_dim
                }
            }
            Mixer::Mla(mla) if keys => add(mla.kv_lora_rank, mla.qk_rope_head_dim)?,
            // Kimi Linear's files give the width of a plain head for values (`conversion/kimi_linear.py`), the other
            // latent models the latent's.
            Mixer::Mla(mla) if facts.arch == "kimi-linear" => spec.d_model.checked_div(mla.n_heads).unwrap_or(0),
            Mixer::Mla(mla) => mla.kv_lora_rank,
            Mixer::CompressedAttention(attention) => attention.head_dim,
            Mixer::Attention(_)
            | Mixer::Parallel(_)
            | Mixer::Mamba1(_)
            | Mixer::Mamba2(_)
            | Mixer::GatedDeltaNet(_)
            | Mixer::KimiDelta(_)
            | Mixer::LightningAttention(_)
            | Mixer::Rwkv(_)
            | Mixer::ShortConv(_)
            | Mixer::Rglru(_)
            | Mixer::None => match attention_of(&layer.mixer) {
                Some(attention) => {
                    if keys {
                        attention.k_head_dim
                    } else {
                        attention.v_head_dim
                    }
                }
                None => continue,
            },
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
