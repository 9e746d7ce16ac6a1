//! MLX-LM behind the planner's door: `mlx_lm.server`, or `mlx_lm.generate` for one sequence.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_ingest::mlx::{Quantization, stored_table};
use plimsoll_math::deployment::Backend;
use plimsoll_math::engine::mlx::allocate::{Request, allocate, cache_bytes_per_token};
use plimsoll_math::engine::mlx::cache::{CacheRequest, PROMPT_STEP, QUANTIZED_FROM};
use plimsoll_math::error::MathError;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::tensor::{Component, Counts, Place, TensorTable};
use plimsoll_math::units::{add, mul};

use crate::engine::{Planned, Question, Resolved};
use crate::error::PlanError;
use crate::request::{Engine, Options};
use crate::served::{Served, context, dtype, one_device, reads_checkpoints, reference, torch_name};
use crate::size::quoted;

/// Whether the question is something for MLX-LM.
///
/// # Errors
/// [`PlanError`] naming what is not.
pub fn check(question: &Question<'_>) -> Result<(), PlanError> {
    reads_checkpoints(Engine::Mlx, question.model)?;
    one_device(Engine::Mlx, &question.effective.devices)?;
    if matches!(question.effective.device.backend, Backend::Cuda { .. }) {
        return Err(PlanError::request(
            "device",
            "a device with CUDA",
            "an Apple device such as \"M4 Max\", or cpu: mlx is followed there",
        ));
    }
    let bits = bits("kv_type", question.options.kv_type.as_deref())?;
    if bits.is_some() && question.effective.deployment.sequences > 1 {
        return Err(PlanError::request("kv_type", "a quantized cache for several sequences", "auto: batches are not quantized"));
    }
    weights_bits(&question.options)?;
    dtype(question)?;
    Ok(())
}

/// `8bit` and kin.
fn bits(field: &str, text: Option<&str>) -> Result<Option<u64>, PlanError> {
    let Some(text) = text.filter(|text| *text != "auto") else { return Ok(None) };
    let number = text.strip_suffix("bit").and_then(|number| number.trim_end_matches('-').parse().ok());
    number
        .filter(|bits| [2, 3, 4, 5, 6, 8].contains(bits))
        .map(Some)
        .ok_or_else(|| PlanError::request(field, quoted(text), "2bit, 3bit, 4bit, 5bit, 6bit or 8bit"))
}

fn weights_bits(options: &Options) -> Result<Option<u64>, PlanError> {
    bits("quant", options.quant.as_deref())
}

/// The arrays that MLX-LM's class has: no towers, no prediction layers, no padding of decay rates.
#[must_use]
pub fn language_model(table: &TensorTable, dtype: StorageFormat) -> TensorTable {
    let mut table = table.clone();
    table.tensors.retain(|tensor| {
        let kept = tensor.counts.is_parameter() || tensor.counts == Counts::Buffer;
        kept && tensor.place != Place::Tower && !tensor.name.ends_with("ssm_a_padding")
    });
    for tensor in &mut table.tensors {
        tensor.format = dtype;
    }
    table
}

/// The bytes of the language model, at least and at most, and how it is stored.
fn weights(question: &Question<'_>) -> Result<((u64, u64), String), PlanError> {
    let model = question.model;
    let language = |table: &TensorTable| table.bytes_where(|tensor| tensor.place != Place::Tower).map(|bytes| bytes.get());
    if let Some(published) = model.published.as_ref().filter(|_| model.quantization.is_some()) {
        let bytes = language(published)?;
        return Ok(((bytes, bytes), "the checkpoint's tensors as stored".to_string()));
    }
    let dtype = dtype(question)?;
    let table = language_model(&model.tensors, dtype);
    if let (Some(layout), None) = (&model.quantization, &question.options.quant) {
        let count = table.total_params()?.get();
        let bits = model.checkpoint.least_bits().unwrap_or(1);
        let stored = format!("{layout}, known by the config alone: in {bits} bits at least, {} at most", torch_name(dtype));
        return Ok(((mul(count, bits)? / 8, mul(count, dtype.block_bytes())?), stored));
    }
    // Corrections of routers are arrays too, and stay in single precision where the checkpoint has them so.
    let corrections = table.params_where(|tensor| tensor.counts.is_buffer())?.get();
    let single = mul(corrections, StorageFormat::F32.block_bytes().saturating_sub(dtype.block_bytes()))?;
    let Some(bits) = weights_bits(&question.options)? else {
        let bytes = language(&table)?;
        return Ok(((bytes, add(bytes, single)?), format!("every array of the language model, {}", torch_name(dtype))));
    };
    let quantized = |bits: u64, routers: u64| -> Result<u64, PlanError> {
        let read = |bits: u64| -> Result<Quantization, PlanError> {
            let value = serde_json::json!({ "quantization": { "group_size": 64, "bits": bits } });
            Ok(Quantization::from_config(&value)?.ok_or(MathError::Overflow { quantity: "groups" })?)
        };
        let (plain, more) = (stored_table(&table, &read(bits)?)?, stored_table(&table, &read(routers)?)?);
        let gate = |name: &str, component| component == Component::Router || name.contains("ffn_gate_inp_shexp");
        let rest = plain.bytes_where(|tensor| !gate(&tensor.name, tensor.component))?;
        Ok(rest.plus(more.bytes_where(|tensor| gate(&tensor.name, tensor.component))?)?.get())
    };
    // Several classes ask for 8 bits in routers and gates of shared experts (`quant_predicate`).
    let mut span = (quantized(bits, bits)?, add(quantized(bits, bits.max(8))?, single)?);
    // 8-bit floats are expanded before they are quantized again; what is narrower stays as it is, where the class reads it.
    if let Some(least) = model.checkpoint.least_bits().filter(|least| *least < 8) {
        span = (mul(table.total_params()?.get(), least.min(bits))? / 8, add(quantized(bits.max(8), bits.max(8))?, single)?);
    }
    Ok((span, format!("matrices in {bits} bits with groups of 64, routers in {bits} or 8, the rest {}", torch_name(dtype))))
}

/// Plans a question.
///
/// # Errors
/// [`PlanError::Math`] for what is not followed.
pub fn plan(question: &Question<'_>) -> Result<Planned, PlanError> {
    let deployment = &question.effective.deployment;
    let (model, context) = (question.model, context(question));
    let bits = bits("kv_type", question.options.kv_type.as_deref())?;
    let cache = CacheRequest { dtype: dtype(question)?, bits, context, sequences: deployment.sequences };
    let (weights, stored) = weights(question)?;
    let backend = question.effective.device.backend;
    let request = Request { cache, weights, stored, device: !matches!(backend, Backend::Cpu) };
    let class = model.checkpoint.mlx;
    let allocation = allocate(&model.spec, class, &request)?;
    let kv_type = bits.map_or_else(|| torch_name(cache.dtype).to_string(), |bits| format!("{bits}bit"));
    let mut settings = BTreeMap::new();
    settings.insert("dtype".to_string(), torch_name(cache.dtype).to_string());
    settings.insert("prefill_step_size".to_string(), PROMPT_STEP.to_string());
    if let Some(quant) = &question.options.quant {
        settings.insert("quant".to_string(), quant.clone());
    }
    let mut notes = Vec::new();
    if bits.is_some() && context < QUANTIZED_FROM {
        notes.push(format!("caches are quantized from {QUANTIZED_FROM} tokens on: this one stays as it is"));
    }
    let usable = question.effective.device.usable.bytes.get();
    if request.device && weights.1 > usable / 10 * 9 {
        notes.push(
            "weights of more than nine tenths of the recommended working set are slow: raise it with sysctl iogpu.wired_limit_mb"
                .to_string(),
        );
    }
    let served = Served { kv_type, settings, notes, command: command(question, bits), ..Served::default() };
    Ok(Planned {
        allocation,
        resolved: Resolved {
            context_per_sequence: context,
            total_context: mul(context, deployment.sequences)?,
            batch: PROMPT_STEP,
            ubatch: PROMPT_STEP,
            flash_attention: true,
        },
        cache_bytes_per_token: cache_bytes_per_token(&model.spec, class, &CacheRequest { bits: None, ..cache })?,
        vllm: None,
        served: Some(Box::new(served)),
        checkpoint_bytes: 0,
    })
}

fn command(question: &Question<'_>, bits: Option<u64>) -> Vec<String> {
    let sequences = question.effective.deployment.sequences;
    let mut out: Vec<String> = ["mlx_lm.server", "--model"].iter().map(ToString::to_string).collect();
    out.push(reference(question));
    for (name, value) in [("--decode-concurrency", sequences), ("--prompt-concurrency", sequences.min(8))] {
        out.extend([name.to_string(), value.to_string()]);
    }
    if let Some(bits) = bits {
        out.extend(["--kv-bits".to_string(), bits.to_string(), "--kv-group-size".to_string(), "64".to_string()]);
    }
    out
}
