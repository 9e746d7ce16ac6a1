//! Transformers behind the planner's door: `model.generate` with one of its caches.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;

use plimsoll_math::deployment::Backend;
use plimsoll_math::engine::transformers::allocate::{Loaded, Request, allocate, cache_bytes_per_token};
use plimsoll_math::engine::transformers::cache::{CacheClass, CacheRequest};
use plimsoll_math::units::mul;

use crate::engine::{Planned, Question, Resolved};
use crate::error::PlanError;
use crate::request::{Engine, Options};
use crate::served::{Served, context, dtype, one_device, reads_checkpoints, reference, torch_name};
use crate::size::quoted;

/// Whether the question is something for Transformers.
///
/// # Errors
/// [`PlanError`] naming what is not.
pub fn check(question: &Question<'_>) -> Result<(), PlanError> {
    reads_checkpoints(Engine::Transformers, question.model)?;
    one_device(Engine::Transformers, &question.effective.devices)?;
    cache_class(&question.options)?;
    dtype(question)?;
    Ok(())
}

fn cache_class(options: &Options) -> Result<CacheClass, PlanError> {
    let class = match options.cache.as_deref() {
        None => CacheClass::Dynamic,
        Some(text) => CacheClass::ALL.iter().copied().find(|class| class.name() == text.replace('-', "_")).ok_or_else(|| {
            PlanError::request("cache", quoted(text), "dynamic, static, offloaded, offloaded_static or quantized")
        })?,
    };
    match (class, options.kv_type.as_deref()) {
        (CacheClass::Fp8, Some("fp8")) | (CacheClass::Dynamic, None | Some("auto")) => Ok(class),
        (CacheClass::Dynamic, Some("fp8")) if options.cache.is_none() => Ok(CacheClass::Fp8),
        (CacheClass::Fp8, None) => Err(PlanError::request(
            "kv_type",
            "nothing",
            "fp8 beside cache quantized: other backends of QuantizedCache are not followed",
        )),
        (_, None | Some("auto")) => Ok(class),
        (_, Some(text)) => Err(PlanError::request("kv_type", quoted(text), "auto, or fp8 with cache quantized")),
    }
}

/// Plans a question.
///
/// # Errors
/// [`PlanError::Math`] for what is not followed.
pub fn plan(question: &Question<'_>) -> Result<Planned, PlanError> {
    let deployment = &question.effective.deployment;
    let model = question.model;
    let context = context(question);
    let class = cache_class(&question.options)?;
    let cache = CacheRequest { class, dtype: dtype(question)?, context, sequences: deployment.sequences };
    let backend = question.effective.device.backend;
    let cuda = matches!(backend, Backend::Cuda { .. });
    let class_facts = model.checkpoint.transformers;
    let request = Request { cache, class: class_facts, cuda, device: !matches!(backend, Backend::Cpu) };
    let mut quantized = None;
    let loaded = match (&model.quantization, &model.published) {
        (Some(_), Some(published)) if cuda => Loaded::Stored(published),
        // Without CUDA the library may expand them; without headers the sizes of scales and exceptions are not known.
        (Some(layout), published) => {
            let why = if published.is_some() { "may be expanded without CUDA" } else { "are known by the config alone" };
            quantized =
                Some(format!("{layout} weights {why}: bounds; point at the checkpoint's files for exact figures on CUDA"));
            Loaded::Between { table: &model.tensors, bits: model.checkpoint.least_bits().unwrap_or(1) }
        }
        (None, _) => Loaded::Plain(&model.tensors),
    };
    let allocation = allocate(&model.spec, loaded, &request)?;
    let per_token = mul(cache_bytes_per_token(&model.spec, class_facts, &cache)?, deployment.sequences.min(1))?;
    let mut settings = BTreeMap::new();
    settings.insert("cache_implementation".to_string(), class.name().to_string());
    settings.insert("dtype".to_string(), torch_name(cache.dtype).to_string());
    let kv_type = if class == CacheClass::Fp8 { "fp8".to_string() } else { torch_name(cache.dtype).to_string() };
    let mut notes =
        alloc::vec![format!("one batch of {} prompts in model.generate: Transformers keeps no pool", deployment.sequences)];
    notes.extend(quantized);
    if class == CacheClass::Offloaded || class == CacheClass::OffloadedStatic {
        notes.push("states and convolutions stay on the device; keys and values travel layer by layer".to_string());
    }
    let served = Served { kv_type, settings, notes, command: command(question, &cache), ..Served::default() };
    Ok(Planned {
        allocation,
        resolved: Resolved {
            context_per_sequence: context,
            total_context: mul(context, deployment.sequences)?,
            batch: context,
            ubatch: context,
            flash_attention: true,
        },
        cache_bytes_per_token: per_token,
        vllm: None,
        served: Some(Box::new(served)),
        checkpoint_bytes: 0,
    })
}

/// `transformers serve` has no cache options: the call that makes the plan true.
fn command(question: &Question<'_>, cache: &CacheRequest) -> alloc::vec::Vec<alloc::string::String> {
    let model = reference(question);
    let extra = match cache.class {
        CacheClass::Fp8 => ", cache_implementation=\"quantized\", cache_config={\"backend\": \"fp8\"}".to_string(),
        CacheClass::Dynamic => alloc::string::String::new(),
        class => format!(", cache_implementation=\"{}\"", class.name()),
    };
    let place = if matches!(question.effective.device.backend, Backend::Cpu) { "cpu" } else { "auto" };
    let dtype = torch_name(cache.dtype);
    let program = format!(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\
         model = AutoModelForCausalLM.from_pretrained({model:?}, dtype={dtype:?}, device_map={place:?})\n\
         tokens = AutoTokenizer.from_pretrained({model:?})([\"...\"] * {}, return_tensors=\"pt\").to(model.device)\n\
         model.generate(**tokens, max_length={}{extra})",
        cache.sequences, cache.context
    );
    alloc::vec!["python".to_string(), "-c".to_string(), program]
}
