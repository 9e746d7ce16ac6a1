//! DeepSeek-VL2 and DeepSeek-OCR: a DeepSeek V2 without latent attention beside towers whose sizes their configs do
//! not hold.

use plimsoll_math::spec::ModelSpec;

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;

/// The rows.
pub const FAMILIES: &[Family] = &[Family {
    model_types: &["deepseek_vl_v2"],
    architectures: &["DeepseekVLV2ForCausalLM", "DeepseekOCRForCausalLM", "DeepseekOCR2ForCausalLM", "UnlimitedOCRForCausalLM"],
    llama_cpp: Some("deepseek2-ocr"),
    is_wrapper: true,
    defaults: "",
    build: language_model,
}];

fn language_model(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = r.language_model(&["language_config", "text_config"], "deepseek_v2", None)?;
    let _ = r.has(&["vision_config", "projector_config"]);
    r.note("$.vision_config: the towers' sizes follow from code, not from the config; only the language model is counted");
    Ok(spec)
}
