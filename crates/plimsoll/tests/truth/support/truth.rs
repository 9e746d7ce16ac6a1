//! Rows of the truth: what was asked of the engine.

use plimsoll_math::deployment::{Backend, ContextRequest, Deployment, FlashAttention};
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::format::StorageFormat;
use serde_json::Value;

/// The backend of a row, `None` for those of several devices or partial offload.
pub(crate) fn backend(name: &str) -> Option<Backend> {
    Some(match name {
        "cpu" | "cpu+repack" => Backend::Cpu,
        "metal" => Backend::Metal,
        "cuda-cc890" => Backend::Cuda { compute_capability: 890 },
        "cuda-cc750" => Backend::Cuda { compute_capability: 750 },
        "cuda-cc610" => Backend::Cuda { compute_capability: 610 },
        _ => return None,
    })
}

/// The deployment and build that a row was measured with.
pub(crate) fn request(row: &Value) -> Option<(Deployment, Build)> {
    let params = &row["params"];
    let backend = backend(row["backend"].as_str()?)?;
    let number = |key: &str, default: u64| params.get(key).map_or(default, |value| value.as_u64().unwrap());
    let flag = |key: &str| params.get(key).is_some_and(|value| value.as_bool().unwrap());
    let format = |key: &str| {
        params.get(key).map_or(StorageFormat::F16, |value| StorageFormat::from_name(value.as_str().unwrap()).unwrap())
    };
    let deployment = Deployment {
        sequences: number("parallel", 1),
        batch: number("n_batch", 2048),
        ubatch: number("n_ubatch", 512),
        kv_type_k: format("type_k"),
        kv_type_v: format("type_v"),
        flash_attention: match params.get("fa").and_then(Value::as_str) {
            Some("on") => FlashAttention::On,
            Some("off") => FlashAttention::Off,
            _ => FlashAttention::Auto,
        },
        kv_unified: flag("kv_unified"),
        swa_full: flag("swa_full"),
        logits_for_all: params.get("server").is_some_and(|value| !value.as_bool().unwrap()),
        ..Deployment::new(ContextRequest::Total(number("n_ctx", 4096)), backend)
    };
    Some((deployment, Build::parse(row["engine"].as_str()?).unwrap()))
}

/// A row's settings on one line.
pub(crate) fn describe(row: &Value) -> String {
    format!("{} {} {} {}", row["model"], row["engine"], row["backend"], row["params"])
}
