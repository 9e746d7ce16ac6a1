//! Rows of the truth where several places share the work: what was asked, and the models with their tensors.

use std::io::Read;

use plimsoll_ingest::gguf;
use plimsoll_math::deployment::{
    Accelerator, Backend, ContextRequest, Deployment, FlashAttention, Location, Share, TensorOverride,
};
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::spec::ModelSpec;
use plimsoll_math::tensor::TensorTable;
use serde_json::Value;

/// The deployment of a row of partial offload or of two GPUs.
pub(crate) fn request(row: &Value) -> Option<(Deployment, Build)> {
    let params = &row["params"];
    let card = Accelerator { backend: Backend::Cuda { compute_capability: 890 }, free: 24 << 30 };
    let devices = match row["backend"].as_str()? {
        "cuda-cc890-partial" => vec![card],
        "2xcuda-cc890" => vec![card, card],
        _ => return None,
    };
    let number = |key: &str| params.get(key).map(|value| value.as_u64().unwrap());
    let format = |key: &str| params[key].as_str().map_or(StorageFormat::F16, |name| StorageFormat::from_name(name).unwrap());
    let stays = |pattern: &Value| TensorOverride { pattern: pattern.as_str().unwrap().into(), place: Location::Host };
    let flag = |key: &str| params.get(key).and_then(Value::as_bool);
    let share = |value: &Value| Share::try_from(f32::from(u8::try_from(value.as_u64().unwrap()).unwrap())).unwrap();
    let deployment = Deployment {
        devices,
        sequences: number("parallel").unwrap_or(1),
        ubatch: number("n_ubatch").unwrap_or(512),
        kv_type_k: format("type_k"),
        kv_type_v: format("type_v"),
        flash_attention: match params["fa"].as_str()? {
            "on" => FlashAttention::On,
            "off" => FlashAttention::Off,
            _ => FlashAttention::Auto,
        },
        kv_unified: flag("kv_unified").unwrap_or(false),
        gpu_layers: number("ngl"),
        cpu_moe: flag("cpu_moe").unwrap_or(false),
        n_cpu_moe: number("n_cpu_moe").unwrap_or(0),
        kv_offload: flag("offload_kqv").unwrap_or(true),
        op_offload: flag("op_offload").unwrap_or(true),
        tensor_overrides: params["ot"].as_array().map_or_else(Vec::new, |patterns| patterns.iter().map(stays).collect()),
        tensor_split: params["tensor_split"].as_array().map_or_else(Vec::new, |shares| shares.iter().map(share).collect()),
        ..Deployment::new(ContextRequest::Total(number("n_ctx").unwrap()), card.backend)
    };
    Some((deployment, Build::parse(row["engine"].as_str()?).unwrap()))
}

/// The model of a row with its tensors as the row's file stores them, where that header is among the fixtures.
pub(crate) fn model(row: &Value) -> Option<(ModelSpec, TensorTable)> {
    let name: String = row["model"].as_str()?.chars().map(|c| if "/() ".contains(c) { '_' } else { c }).collect();
    let path = super::fixture(&format!("truth/llama.cpp/gguf/{name}.{}.gguf.header.gz", row["quant"].as_str()?));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).ok()?).read_to_end(&mut bytes).unwrap();
    let ingested = gguf::ingest(&bytes.as_slice(), &gguf::Options::default()).unwrap();
    Some((ingested.spec, ingested.tensors))
}
