//! Files without data: metadata and tensor infos as in a real file, and a hole where the weights would be.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use plimsoll::ingest::gguf::{Header, Limits};
use plimsoll::math::format::StorageFormat;
use serde_json::Value;

const ALIGNMENT: u64 = 32;

/// Writes `header` as a file whose tensor data is a hole of the right length.
pub(crate) fn write_sparse(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let name = path.display();
    let header = Header::read(&bytes, &Limits::default()).map_err(|error| format!("{name}: {error}"))?;
    let mut end = header.data_offset;
    for tensor in &header.tensors {
        let bytes = tensor.bytes.ok_or_else(|| format!("{name}: {} is of an unknown type", tensor.name))?;
        let last = tensor.offset.checked_add(bytes.next_multiple_of(header.alignment));
        let last = last.and_then(|last| last.checked_add(header.data_offset));
        end = end.max(last.ok_or_else(|| format!("{name}: {} ends beyond any file", tensor.name))?);
    }
    let mut file = File::create(path).map_err(|error| format!("{name}: {error}"))?;
    file.write_all(bytes).and_then(|()| file.set_len(end)).map_err(|error| format!("{name}: {error}"))
}

/// The header of a made-up model, from a row with its metadata (`kv`) and its tensors' shapes. Matrices are stored as
/// `matrices` where their rows are whole blocks, everything else as f32.
pub(crate) fn header(row: &Value, matrices: StorageFormat) -> Result<Vec<u8>, String> {
    let metadata = row.get("kv").and_then(Value::as_object).ok_or("a made-up model without metadata")?;
    let tensors = row.get("tensors").and_then(Value::as_array).ok_or("a made-up model without tensors")?;
    // The rows list every tensor that a loader would take; the scales are those of files quantized to NVFP4.
    let name_of = |tensor: &Value| tensor.get(0).and_then(Value::as_str).unwrap_or_default().to_owned();
    let is_scale = |name: &str| name.ends_with(".input_scale") || (name.ends_with(".scale") && !name.contains("ffn_gate_inp"));
    let tensors: Vec<&Value> = tensors.iter().filter(|tensor| !is_scale(&name_of(tensor))).collect();
    let mut out = Writer { bytes: b"GGUF".to_vec() };
    out.u32(3);
    out.count(tensors.len())?;
    let architecture = metadata.get("general.architecture").and_then(|entry| entry.get(1)).and_then(Value::as_str);
    let architecture = architecture.ok_or("a made-up model without an architecture")?;
    let left_out: Vec<String> = left_out(architecture).into_iter().filter(|key| !metadata.contains_key(key)).collect();
    out.count(metadata.len().saturating_add(left_out.len()))?;
    for key in &left_out {
        out.text(key)?;
        out.entry("f32", &serde_json::json!(0.001))?;
    }
    for (key, entry) in metadata {
        let kind = entry.get(0).and_then(Value::as_str).ok_or_else(|| format!("{key}: no type"))?;
        let value = entry.get(1).ok_or_else(|| format!("{key}: no value"))?;
        out.text(key)?;
        out.entry(kind, value).map_err(|problem| format!("{key}: {problem}"))?;
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        let name = tensor.get(0).and_then(Value::as_str).ok_or("a tensor without a name")?;
        let shape = tensor.get(1).and_then(Value::as_array).ok_or_else(|| format!("{name}: no shape"))?;
        let shape: Vec<u64> = shape.iter().filter_map(Value::as_u64).collect();
        let row_len = shape.first().copied().unwrap_or(1);
        let packs = shape.len() > 1 && name.ends_with(".weight") && row_len % matrices.block_len() == 0;
        // Small convolutions and tables that the engine reads element by element.
        let plain = ["norm", "conv", "ssm_", "time_mix", "_inp", "token_types", "position_embd", "scale", "shift", "rel_b"];
        let format = if packs && !plain.iter().any(|part| name.contains(part)) { matrices } else { StorageFormat::F32 };
        out.text(name)?;
        out.u32(u32::try_from(shape.len()).map_err(|error| error.to_string())?);
        for dim in &shape {
            out.u64(*dim);
        }
        out.u32(format.ggml_id().ok_or_else(|| format!("{format} has no number in GGUF files"))?);
        out.u64(offset);
        let row_bytes = format.row_bytes(row_len).map_err(|error| error.to_string())?.get();
        let bytes = shape.iter().skip(1).try_fold(row_bytes, |bytes, dim| bytes.checked_mul(*dim));
        let bytes = bytes.ok_or_else(|| format!("{name}: too large"))?;
        offset = offset.checked_add(bytes.next_multiple_of(ALIGNMENT)).ok_or_else(|| format!("{name}: too large"))?;
    }
    Ok(out.bytes)
}

/// Keys that the rows leave out because no size depends on them, and that loaders want.
fn left_out(architecture: &str) -> Vec<String> {
    let mut keys: Vec<String> = ["layer_norm_rms_epsilon", "layer_norm_epsilon", "group_norm_epsilon"]
        .iter()
        .map(|name| format!("{architecture}.attention.{name}"))
        .collect();
    match architecture {
        "apertus" => keys.extend(["alpha_n", "alpha_p", "beta", "eps"].map(|name| format!("xielu.{name}"))),
        "talkie" | "muse-glimmer" | "muse-spark" | "graniteswitch" | "granite" | "granitemoe" | "granite_swa" | "cohere2"
        | "cohere2moe" => {
            keys.push(format!("{architecture}.logit_scale"));
        }
        "maple" => keys.extend(["exp", "shexp"].map(|part| format!("{architecture}.swiglu_clamp_{part}"))),
        "deepseek4" => keys.extend(
            ["swiglu_clamp_exp", "swiglu_clamp_shexp", "hyper_connection.epsilon"].map(|key| format!("{architecture}.{key}")),
        ),
        "hy_v4" => keys.push(format!("{architecture}.hyper_connection.epsilon")),
        _ => {}
    }
    keys
}

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }
    fn count(&mut self, value: usize) -> Result<(), String> {
        self.u64(u64::try_from(value).map_err(|error| error.to_string())?);
        Ok(())
    }
    fn text(&mut self, text: &str) -> Result<(), String> {
        self.count(text.len())?;
        self.bytes.extend(text.as_bytes());
        Ok(())
    }
    fn entry(&mut self, kind: &str, value: &Value) -> Result<(), String> {
        if let Some(element) = kind.strip_prefix('a') {
            let values = value.as_array().ok_or("no list")?;
            self.u32(9);
            self.u32(number(element)?);
            self.count(values.len())?;
            return values.iter().try_for_each(|value| self.value(element, value));
        }
        self.u32(number(kind)?);
        self.value(kind, value)
    }
    fn value(&mut self, kind: &str, value: &Value) -> Result<(), String> {
        let text = value.to_string();
        let wrong = || format!("{value} is no {kind}");
        match kind {
            "u8" => self.bytes.extend(text.parse::<u8>().map_err(|_| wrong())?.to_le_bytes()),
            "u32" => self.bytes.extend(text.parse::<u32>().map_err(|_| wrong())?.to_le_bytes()),
            "i32" => self.bytes.extend(text.parse::<i32>().map_err(|_| wrong())?.to_le_bytes()),
            "u64" => self.bytes.extend(text.parse::<u64>().map_err(|_| wrong())?.to_le_bytes()),
            "f32" => self.bytes.extend(text.parse::<f32>().map_err(|_| wrong())?.to_le_bytes()),
            "bool" => self.bytes.push(u8::from(value.as_bool().ok_or_else(wrong)?)),
            _ => self.text(value.as_str().ok_or_else(wrong)?)?,
        }
        Ok(())
    }
}

/// The number of a metadata type in GGUF files.
fn number(kind: &str) -> Result<u32, String> {
    Ok(match kind {
        "u8" => 0,
        "u32" => 4,
        "i32" => 5,
        "f32" => 6,
        "bool" => 7,
        "str" => 8,
        "u64" => 10,
        other => return Err(format!("{other} is no metadata type")),
    })
}
