//! DeepSeek-VL2 and DeepSeek-OCR: a DeepSeek V2 without latent attention beside towers of several encoders.

use plimsoll_math::spec::ModelSpec;
use plimsoll_math::tensor::Shape;

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::towers::{self, Draft};

/// The rows.
pub const FAMILIES: &[Family] = &[Family {
    model_types: &["deepseek_vl_v2"],
    architectures: &["DeepseekVLV2ForCausalLM", "DeepseekOCRForCausalLM", "DeepseekOCR2ForCausalLM", "UnlimitedOCRForCausalLM"],
    llama_cpp: Some("deepseek2-ocr"),
    is_wrapper: true,
    defaults: "",
    build: deepseek_vl,
}];

const VISION: &[&str] = &["vision_config"];

fn deepseek_vl(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = r.language_model(&["language_config", "text_config"], "deepseek_v2", None)?;
    let d_model = spec.d_model;
    // The OCR models keep a table of encoders where the others keep a width.
    let encoders = match r.child(VISION).and_then(|vision| vision.config.raw(&["width"])) {
        Some((serde_json::Value::Object(encoders), _)) => Some(encoders),
        _ => None,
    };
    let is_second = encoders.is_some_and(|encoders| encoders.contains_key("qwen2-0-5b"));
    let mut found: [Option<Draft>; 2] = if encoders.is_none() {
        let mut eye = towers::read_as(r, VISION, "deepseek_vl2_siglip")?;
        // Two by two patches become one token.
        let square = eye.d_model().saturating_mul(4);
        eye.mlp("mm", [square, d_model, d_model], true);
        [Some(eye), None]
    } else {
        let sam = towers::read_as(r, VISION, "deepseek_ocr_sam")?;
        let second = if is_second { "deepseek_ocr_qwen2" } else { "deepseek_ocr_clip" };
        let mut second = towers::read_as(r, VISION, second)?;
        // The first model puts the outputs of both encoders side by side.
        let width = if is_second { second.d_model() } else { sam.d_output.saturating_add(second.d_model()) };
        second.linear("mm", width, d_model, true);
        [Some(sam), Some(second)]
    };
    if let Some(eye) = found.iter_mut().flatten().last() {
        eye.tensor("view_separator", Shape::vector(d_model));
        if !is_second {
            eye.tensor("image_newline", Shape::vector(d_model));
        }
    }
    let _ = r.has(&["projector_config"]);
    spec.towers.extend(found.into_iter().flatten().map(|draft| draft.tower));
    Ok(spec)
}
