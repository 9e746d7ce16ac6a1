//! What the engines beside llama.cpp and vLLM have in common behind the planner's door: which options each has, and the
//! parts of an answer that only it knows.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use plimsoll_math::deployment::ContextRequest;
use plimsoll_math::device::Device;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::units::Bytes;

use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::model::{Basis, Model};
use crate::request::{Engine, Options};
use crate::response::{CacheBrief, Limits};
use crate::size::quoted;

/// What only the engine knows about a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Served {
    /// The cache, for engines with a pool.
    pub cache: Option<CacheBrief>,
    /// How cached keys and values are stored, in the engine's words.
    pub kv_type: String,
    /// Values in effect, in the engine's own words.
    pub settings: BTreeMap<String, String>,
    /// Bytes missing beside what the devices lack, where the engine would not start or some sequences would wait.
    pub short_by: Option<Bytes>,
    /// Bytes of the pool that are left where everything beside it takes no more than its least, when it lacks some
    /// otherwise and that is enough.
    pub at_best: Option<Bytes>,
    /// What is reachable, for engines with a pool; searched for where it is left out.
    pub limits: Option<Limits>,
    /// What was assumed or refused.
    pub notes: Vec<String>,
    /// The engine's own command line.
    pub command: Vec<String>,
}

impl Planned {
    /// What the cache costs.
    ///
    /// # Errors
    /// [`PlanError::Math`] on overflow.
    pub(crate) fn cache(&self) -> Result<CacheBrief, PlanError> {
        let own = self.vllm.as_ref().map(|answer| &answer.cache);
        if let Some(cache) = own.or_else(|| self.served.as_ref().and_then(|served| served.cache.as_ref())) {
            return Ok(cache.clone());
        }
        Ok(CacheBrief {
            bytes_per_token: Bytes::new(self.cache_bytes_per_token)?,
            blocks: None,
            block_tokens: None,
            max_concurrency: None,
            tokens: None,
            block_bytes: None,
            groups: None,
        })
    }

    /// Bytes that the engine itself misses.
    pub(crate) fn short_by(&self) -> Option<Bytes> {
        let own = self.vllm.as_ref().and_then(|answer| answer.short_by);
        own.or_else(|| self.served.as_ref().and_then(|served| served.short_by))
    }
}

impl Planned {
    /// Bytes that are left of the engine's pool where everything beside it takes no more than its least; `None` where the
    /// pool is large enough anyway, or too small even then.
    pub(crate) fn pool_at_best(&self) -> Option<Bytes> {
        let own = self.vllm.as_ref().and_then(|answer| answer.at_best);
        own.or_else(|| self.served.as_ref().and_then(|served| served.at_best))
    }
}

impl Question<'_> {
    /// What a pool of fixed size reaches; `None` for engines that take memory as they need it.
    ///
    /// # Errors
    /// As [`Question::plan`].
    pub(crate) fn served_limits(&self) -> Result<Option<Limits>, PlanError> {
        if !self.effective.engine.has_pool() {
            return Ok(None);
        }
        Ok(self.plan()?.served.and_then(|served| served.limits))
    }
}

/// Options that every engine takes.
const COMMON: &[&str] = &["engine", "context", "sequences", "device", "displays", "memory", "assume_generic", "skip_limits"];

/// Options of servers that divide a model among ranks.
const RANKED: &[&str] = &[
    "devices",
    "tensor_parallel",
    "pipeline_parallel",
    "data_parallel",
    "expert_parallel",
    "context_parallel",
    "memory_utilization",
    "kv_memory",
    "max_batched_tokens",
    "max_sequences",
    "block_size",
    "prefix_caching",
    "kv_type",
];

/// Options that an engine has beside [`COMMON`]; `None` for engines that check their own.
fn own(engine: Engine) -> Option<&'static [&'static str]> {
    match engine {
        Engine::Sglang | Engine::TensorRtLlm => Some(RANKED),
        Engine::Ollama => Some(&["quant", "batch", "kv_type", "flash_attention", "gpu_layers", "devices", "mmap"]),
        Engine::Mlx => Some(&["dtype", "quant", "kv_type"]),
        Engine::Transformers => Some(&["dtype", "cache", "kv_type"]),
        Engine::LlamaCpp(_) | Engine::Vllm | Engine::Ideal => None,
    }
}

/// Refuses options that the engine does not have, by name.
///
/// # Errors
/// [`PlanError::Request`] for the first of them.
pub(crate) fn refuse_others(engine: Engine, options: &Options) -> Result<(), PlanError> {
    let Some(own) = own(engine) else { return Ok(()) };
    let Ok(serde_json::Value::Object(given)) = serde_json::to_value(options) else { return Ok(()) };
    for (name, value) in &given {
        if !value.is_null() && !COMMON.contains(&name.as_str()) && !own.contains(&name.as_str()) {
            let expected = format!("none with {}, which has no such option", engine.name());
            return Err(PlanError::request(name, value, expected));
        }
    }
    Ok(())
}

/// Refuses several devices of an engine that is followed on one.
///
/// # Errors
/// [`PlanError::Request`].
pub(crate) fn one_device(engine: Engine, devices: &[Device]) -> Result<(), PlanError> {
    if devices.len() > 1 {
        let expected = format!("one: {} is followed on one device", engine.name());
        return Err(PlanError::request("device", format!("{} devices", devices.len()), expected));
    }
    Ok(())
}

/// Refuses files that the engine does not read.
///
/// # Errors
/// [`PlanError::Request`].
pub(crate) fn reads_checkpoints(engine: Engine, model: &Model) -> Result<(), PlanError> {
    if model.basis == Basis::Gguf {
        let expected = format!("a checkpoint or its config: {} is followed with those", engine.name());
        return Err(PlanError::request("model", "a GGUF file", expected));
    }
    Ok(())
}

/// Tokens per sequence that were asked for.
pub(crate) fn context(question: &Question<'_>) -> u64 {
    match question.effective.deployment.context {
        ContextRequest::PerSequence(tokens) | ContextRequest::Total(tokens) => tokens,
        ContextRequest::ModelMaximum => question.model.spec.max_context,
    }
}

/// The number type that the model runs in: as asked, or as its config says.
///
/// # Errors
/// [`PlanError::Request`] for a name that is none.
pub(crate) fn dtype(question: &Question<'_>) -> Result<StorageFormat, PlanError> {
    let Some(text) = question.options.dtype.as_deref() else { return Ok(question.model.spec.weight_dtype) };
    match text {
        "auto" => Ok(question.model.spec.weight_dtype),
        "float32" | "f32" => Ok(StorageFormat::F32),
        "float16" | "f16" | "half" => Ok(StorageFormat::F16),
        "bfloat16" | "bf16" => Ok(StorageFormat::Bf16),
        _ => Err(PlanError::request("dtype", quoted(text), "auto, bfloat16, float16 or float32")),
    }
}

/// The name that torch gives a number type.
pub(crate) const fn torch_name(format: StorageFormat) -> &'static str {
    match format {
        StorageFormat::F32 => "float32",
        StorageFormat::F16 => "float16",
        StorageFormat::Bf16 => "bfloat16",
        other => other.name(),
    }
}

/// The model as an engine is pointed at it.
pub(crate) fn reference(question: &Question<'_>) -> String {
    question.model.reference.clone().unwrap_or_else(|| question.model.name.clone())
}
