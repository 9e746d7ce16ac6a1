//! Wrappers: a language model with vision or audio towers beside it.

use alloc::vec::Vec;

use plimsoll_math::spec::{Dense, FeedForward, KvSource, Layer, Mixer, ModelSpec, Tower};
use plimsoll_math::tensor::{Component, Counts, Shape};
use serde_json::Value;

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::{self, Dims};
use crate::hf::towers::{self, Draft};

const TEXT: &[&str] = &["text_config", "language_config", "llm_config"];
const VISION: &[&str] = &["vision_config", "vit_config"];
const AUDIO: &[&str] = &["audio_config", "audio_encoder_config"];

/// A wrapper whose language model and towers sit in nested objects. Missing objects take the class's defaults.
macro_rules! wrapper {
    ($types:expr, $classes:expr, $defaults:expr, $build:expr) => {
        Family {
            model_types: $types,
            architectures: $classes,
            llama_cpp: None,
            is_wrapper: true,
            defaults: $defaults,
            build: $build,
        }
    };
}

/// The rows. Where a wrapper's class keeps flat configs readable, it has no `text_config` among its defaults.
pub const FAMILIES: &[Family] = &[
    wrapper!(&["gemma3"], &["Gemma3ForConditionalGeneration"], NESTED_TIED, gemma3),
    wrapper!(&["gemma3n"], &["Gemma3nForConditionalGeneration"], NESTED_TIED, gemma3n),
    wrapper!(&["gemma4"], &["Gemma4ForConditionalGeneration"], NESTED_TIED, gemma4),
    wrapper!(&["gemma4_unified"], &["Gemma4UnifiedForConditionalGeneration"], NESTED_TIED, gemma4_unified),
    wrapper!(&["paligemma"], &["PaliGemmaForConditionalGeneration"], NESTED_TIED, paligemma),
    wrapper!(&["llava"], &["LlavaForConditionalGeneration"], NESTED, llava),
    wrapper!(&["vipllava"], &["VipLlavaForConditionalGeneration"], NESTED, llava),
    wrapper!(&["llava_next"], &["LlavaNextForConditionalGeneration"], NESTED, llava_next),
    wrapper!(&["llava_next_video"], &["LlavaNextVideoForConditionalGeneration"], NESTED, llava_next),
    wrapper!(&["llava_onevision"], &["LlavaOnevisionForConditionalGeneration"], NESTED, llava_onevision),
    wrapper!(&["internvl"], &["InternVLForConditionalGeneration"], NESTED_TIED, internvl),
    wrapper!(&["aya_vision"], &["AyaVisionForConditionalGeneration"], NESTED_TIED, aya),
    wrapper!(&["cohere2_vision"], &["Cohere2VisionForConditionalGeneration"], NESTED_TIED, cohere2),
    wrapper!(&["idefics3"], &["Idefics3ForConditionalGeneration"], NESTED, idefics3),
    wrapper!(&["smolvlm"], &["SmolVLMForConditionalGeneration"], NESTED, idefics3),
    wrapper!(&["mistral3"], &["Mistral3ForConditionalGeneration"], NESTED_TIED, mistral3),
    wrapper!(&["voxtral"], &["VoxtralForConditionalGeneration"], NESTED, voxtral),
    wrapper!(&["qwen2_audio"], &["Qwen2AudioForConditionalGeneration"], NESTED, qwen2_audio),
    wrapper!(&["qwen2_vl"], &["Qwen2VLForConditionalGeneration"], FLAT, qwen2_vl),
    wrapper!(&["qwen2_5_vl"], &["Qwen2_5_VLForConditionalGeneration"], FLAT, qwen2_5_vl),
    wrapper!(&["qwen3_vl"], &["Qwen3VLForConditionalGeneration"], NESTED, qwen3_vl),
    wrapper!(&["qwen3_vl_moe"], &["Qwen3VLMoeForConditionalGeneration"], NESTED, qwen3_vl_moe),
    wrapper!(&["qwen3_5"], &["Qwen3_5ForConditionalGeneration"], NESTED, qwen3_5),
    wrapper!(&["qwen3_5_moe"], &["Qwen3_5MoeForConditionalGeneration"], NESTED, qwen3_5_moe),
    wrapper!(&["exaone4_5"], &["Exaone4_5_ForConditionalGeneration"], NESTED, exaone4_5),
    wrapper!(&["lfm2_vl"], &["Lfm2VlForConditionalGeneration"], NESTED_TIED, lfm2),
    wrapper!(&["lfm3_vl"], &["Lfm3VlForConditionalGeneration"], NESTED_TIED, lfm3),
    wrapper!(&["granite_docling"], &["GraniteDoclingForConditionalGeneration"], NESTED_TIED, granite_docling),
    wrapper!(&["kimi_k25"], &["KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration"], NESTED_TIED, kimi),
    wrapper!(&["kimi_vl"], &["KimiVLForConditionalGeneration"], NESTED, kimi),
    wrapper!(&["llama4"], &["Llama4ForConditionalGeneration"], NESTED, llama4),
    wrapper!(&["mllama"], &["MllamaForConditionalGeneration"], NESTED, mllama),
    wrapper!(&["glm4v"], &["Glm4vForConditionalGeneration"], NESTED, glm4v),
    wrapper!(&["glm4v_moe"], &["Glm4vMoeForConditionalGeneration"], NESTED, glm4v_moe),
    wrapper!(&["glm46v", "glmga"], &["Glm46VForConditionalGeneration"], NESTED, glm4v),
    wrapper!(&["glm_ocr"], &["GlmOcrForConditionalGeneration"], NESTED, glm_ocr),
    wrapper!(&["deepseek_vl"], &["DeepseekVLForConditionalGeneration"], NESTED_TIED, deepseek_vl),
    wrapper!(&["fuyu"], &["FuyuForCausalLM"], FLAT, fuyu),
    wrapper!(&["phi3_v"], &["Phi3VForCausalLM"], FLAT, phi3_v),
    wrapper!(
        &["step3p7"],
        &["Step3p7ForConditionalGeneration", "Step3p7FlashForCausalLM"],
        r#"{"text_config": {"model_type": "step3p7_text"}, "tie_word_embeddings": false}"#,
        step3p7
    ),
    wrapper!(
        &["ernie4_5_vl_moe", "ernie4_5_moe_vl"],
        &["Ernie4_5_VLMoeForConditionalGeneration", "Ernie4_5_VLForConditionalGeneration"],
        r#"{"text_config": {}, "tie_word_embeddings": true}"#,
        ernie
    ),
    Family::new(
        &["glm4v_text"],
        &[],
        Some("glm4"),
        r#"{"vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
            "num_attention_heads": 32, "num_key_value_heads": 2, "max_position_embeddings": 32768,
            "attention_bias": true}"#,
        super::glm::glm4,
    ),
    Family::new(
        &["glm_ocr_text"],
        &[],
        Some("glm4"),
        r#"{"vocab_size": 59392, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16,
            "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "attention_bias": false}"#,
        super::glm::glm4,
    ),
    Family::new(
        &["glm4v_moe_text"],
        &[],
        Some("glm4moe"),
        r#"{"vocab_size": 151424, "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 46,
            "num_attention_heads": 96, "num_key_value_heads": 8, "max_position_embeddings": 65536,
            "attention_bias": true, "moe_intermediate_size": 1408, "num_experts_per_tok": 8, "n_shared_experts": 1,
            "n_routed_experts": 128, "first_k_dense_replace": 1}"#,
        super::glm::glm4_moe,
    ),
    Family::new(
        &["ernie4_5_vl_moe_text", "ernie4_5_moe_vl_text"],
        &[],
        None,
        r#"{"vocab_size": 103424, "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28,
            "num_attention_heads": 20, "num_key_value_heads": 4, "max_position_embeddings": 131072,
            "moe_intermediate_size": [1536, 512], "moe_k": 6, "moe_num_experts": 64, "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1, "use_bias": false}"#,
        ernie_text,
    ),
    Family::new(&["qwen2_vl_text"], &[], Some("qwen2vl"), QWEN2_VL, super::qwen::qwen2),
    Family::new(&["qwen2_5_vl_text"], &[], Some("qwen2vl"), QWEN2_VL, super::qwen::qwen2),
    Family::new(
        &["qwen3_vl_text"],
        &[],
        Some("qwen3vl"),
        r#"{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 128000}"#,
        super::qwen::qwen3,
    ),
    Family::new(
        &["qwen3_vl_moe_text"],
        &[],
        Some("qwen3vlmoe"),
        r#"{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 128000,
            "decoder_sparse_step": 1, "moe_intermediate_size": 1408, "num_experts_per_tok": 4, "num_experts": 60}"#,
        super::qwen::qwen3_moe,
    ),
    Family::new(
        &["mllama_text_model"],
        &["MllamaForCausalLM"],
        None,
        r#"{"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 40,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38]}"#,
        mllama_text,
    ),
];

const NESTED: &str = r#"{"text_config": {}, "tie_word_embeddings": false}"#;
const NESTED_TIED: &str = r#"{"text_config": {}, "tie_word_embeddings": true}"#;
const FLAT: &str = r#"{"tie_word_embeddings": false}"#;
const QWEN2_VL: &str = r#"{"vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 32768, "use_sliding_window": false,
    "sliding_window": 4096, "max_window_layers": 80}"#;

/// The language model. The wrapper decides whether its embedding is the output matrix.
fn text(r: &Reader<'_>, otherwise: &str) -> Result<ModelSpec, IngestError> {
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"]));
    r.language_model(TEXT, otherwise, tied)
}

/// The same for classes that wrap a whole language model with its own output matrix: only the nested object decides.
fn text_alone_decides(r: &Reader<'_>, otherwise: &str) -> Result<ModelSpec, IngestError> {
    let _ = r.flag(&["tie_word_embeddings"], false);
    r.language_model(TEXT, otherwise, None)
}

/// The same for classes that also listen to the nested object, where files of their first years say it.
fn text_decides(r: &Reader<'_>, otherwise: &str) -> Result<ModelSpec, IngestError> {
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"])).filter(|tied| *tied);
    if r.config.has(TEXT) { r.language_model(TEXT, otherwise, tied) } else { r.language_model_here(otherwise, tied) }
}

/// The tower of a wrapper that builds only one kind, whatever the nested `model_type` says.
fn vision(r: &Reader<'_>, model_type: &str) -> Result<Draft, IngestError> {
    towers::read_as(r, VISION, model_type)
}

fn with(mut spec: ModelSpec, drafts: impl IntoIterator<Item = Draft>) -> ModelSpec {
    let towers: Vec<Tower> = drafts.into_iter().map(|draft| draft.tower).collect();
    spec.towers.extend(towers);
    spec
}

fn gemma3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "gemma3_text")?;
    let mut tower = towers::read(r, VISION, "siglip_vision_model", "")?;
    let d = tower.d_model();
    tower.vector("soft_emb_norm", d).linear("input_projection", d, spec.d_model, false);
    Ok(with(spec, [tower]))
}

fn gemma3n(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "gemma3n_text")?;
    let mut eye = vision(r, "gemma3n_vision")?;
    let mut ear = towers::read_as(r, AUDIO, "gemma3n_audio")?;
    for (tower, keys) in [(&mut eye, VISION), (&mut ear, AUDIO)] {
        let d = tower.d_model();
        let rows = r.child(keys).and_then(|nested| nested.opt(&["vocab_size"])).unwrap_or(128);
        tower.linear("embedding", d, rows, false).vector("hard_emb_norm", d).vector("soft_emb_norm", d);
        tower.linear("input_projection", d, spec.d_model, false);
    }
    Ok(with(spec, [eye, ear]))
}

fn gemma4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "gemma4_text")?;
    let mut found = Vec::new();
    if r.has(VISION) {
        found.push(vision(r, "gemma4_vision")?);
    }
    if r.has(AUDIO) {
        found.push(towers::read_as(r, AUDIO, "gemma4_audio")?);
    }
    for tower in &mut found {
        let d_in = tower.d_output;
        tower.linear("input_projection", d_in, spec.d_model, false);
    }
    Ok(with(spec, found))
}

/// No towers: patches and frames of sound enter through projections.
fn gemma4_unified(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "gemma4_unified_text")?;
    let mut found = Vec::new();
    if r.has(VISION) {
        let (nested, width) = (r.child(VISION), |key: &str, otherwise: u64| {
            r.child(VISION).and_then(|nested| nested.opt_below(&[key], nested.limits().width)).unwrap_or(otherwise)
        });
        let side = width("patch_size", 16).saturating_mul(width("pooling_kernel_size", 3));
        let side = nested.and_then(|nested| nested.opt(&["model_patch_size"])).unwrap_or(side);
        let patch = side.saturating_mul(side).saturating_mul(3);
        let d = width("mm_embed_dim", 3840);
        let mut eye = Draft::vision(d);
        eye.norm("patch_ln1", patch, true).linear("patch_embd", patch, d, true).norm("patch_ln2", d, true);
        eye.tensor("position_embd.weight", Shape::stack(d, 2, width("mm_posemb_size", 1120))).norm("pos_norm", d, true);
        eye.linear("input_projection", width("output_proj_dims", 3840), spec.d_model, false);
        found.push(eye);
    }
    if r.has(AUDIO) {
        let nested = r.child(AUDIO);
        let width = |key: &str| nested.as_ref().and_then(|nested| nested.opt_below(&[key], nested.limits().width));
        let d = width("output_proj_dims").or_else(|| width("audio_embed_dim")).unwrap_or(640);
        let mut ear = Draft::audio(d);
        ear.linear("input_projection", d, spec.d_model, false);
        found.push(ear);
    }
    Ok(with(spec, found))
}

fn paligemma(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "gemma")?;
    let instead = r#"{"hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14, "num_hidden_layers": 27,
        "num_attention_heads": 16, "vision_use_head": false}"#;
    let mut tower = towers::read(r, VISION, "siglip_vision_model", instead)?;
    let (d, nested) = (tower.d_model(), r.child(VISION));
    // The wrapper's width outranks the tower's (PaliGemmaConfig).
    let d_out = r.opt(&["projection_dim"]).or_else(|| nested.and_then(|vision| vision.opt(&["projection_dim"]))).unwrap_or(2048);
    tower.linear("mm", d, d_out, true);
    Ok(with(spec, [tower]))
}

/// How many layers' features the projector reads side by side.
fn feature_layers(r: &Reader<'_>) -> u64 {
    match r.config.raw(&["vision_feature_layer", "vision_feature_layers"]) {
        Some((Value::Array(layers), _)) => u64::try_from(layers.len()).unwrap_or(u64::MAX),
        _ => 1,
    }
}

fn llava_parts(r: &Reader<'_>) -> Result<(ModelSpec, Draft), IngestError> {
    let listens = r.family.name() == "llava";
    let flat = !r.has(TEXT);
    let spec = if listens || flat { text_decides(r, "llama")? } else { text(r, "llama")? };
    let instead = r#"{"hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14, "image_size": 336,
        "num_hidden_layers": 24, "num_attention_heads": 16}"#;
    let mut tower = towers::read(r, VISION, "clip_vision_model", instead)?;
    let d = tower.d_model();
    let bias = r.flag(&["multimodal_projector_bias"], true);
    if r.family.name() == "vipllava" {
        // Features of five layers, normed together.
        let layers = if r.has(&["vision_feature_layers"]) { feature_layers(r) } else { 5 };
        let wide = d.saturating_mul(layers);
        tower.norm("mm.norm", wide, true).mlp("mm", [wide, spec.d_model, spec.d_model], true);
    } else {
        tower.mlp("mm", [d.saturating_mul(feature_layers(r)), spec.d_model, spec.d_model], bias);
    }
    Ok((spec, tower))
}

fn llava(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let (spec, tower) = llava_parts(r)?;
    Ok(with(spec, [tower]))
}

fn llava_next(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let (spec, mut tower) = llava_parts(r)?;
    tower.vector("image_newline", spec.d_model);
    Ok(with(spec, [tower]))
}

fn llava_onevision(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text_decides(r, "qwen2")?;
    let instead = r#"{"hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14, "image_size": 384,
        "num_hidden_layers": 26, "num_attention_heads": 16, "vision_use_head": false}"#;
    let mut tower = towers::read(r, VISION, "siglip_vision_model", instead)?;
    let d = tower.d_model().saturating_mul(feature_layers(r));
    tower.mlp("mm", [d, spec.d_model, spec.d_model], r.flag(&["multimodal_projector_bias"], true));
    tower.vector("image_newline", spec.d_model);
    Ok(with(spec, [tower]))
}

fn internvl(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "qwen2")?;
    let mut tower = towers::read(r, VISION, "internvl_vision", "")?;
    // Half of each side: four patches become one.
    let ratio = r.keep(r.config.f64(&["downsample_ratio"])).unwrap_or(0.5);
    let joined = if ratio == 0.25 { 16 } else { 4 };
    let wide = tower.d_model().saturating_mul(joined);
    tower.norm("mm.norm", wide, true).mlp("mm", [wide, spec.d_model, spec.d_model], true);
    Ok(with(spec, [tower]))
}

/// Patches that become one, by the factor along each side.
fn joined(r: &Reader<'_>, name: &str, otherwise: u64, d: u64) -> u64 {
    let factor = r.opt(&[name]).unwrap_or(otherwise);
    d.saturating_mul(factor).saturating_mul(factor)
}

fn aya(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "cohere2")?;
    let instead = r#"{"hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14, "image_size": 384,
        "num_hidden_layers": 26, "num_attention_heads": 14, "vision_use_head": false}"#;
    let mut tower = towers::read(r, VISION, "siglip_vision_model", instead)?;
    let wide = joined(r, "downsample_factor", 2, tower.d_model());
    let aligned = r.opt(&["alignment_intermediate_size"]).unwrap_or(spec.d_model);
    tower.norm("mm.norm", wide, true).linear("mm.0", wide, aligned, true).linear("mm.2", aligned / 2, spec.d_model, true);
    Ok(with(spec, [tower]))
}

fn cohere2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "cohere2")?;
    let instead = r#"{"hidden_size": 1152, "intermediate_size": 3072, "image_size": 512, "num_hidden_layers": 27,
        "num_attention_heads": 12}"#;
    let mut tower = towers::read(r, VISION, "siglip_vision_model", instead)?;
    let wide = joined(r, "downsample_factor", 2, tower.d_model());
    let aligned = r.opt(&["alignment_intermediate_size"]).unwrap_or(36_864);
    tower.linear("mm.0", wide, aligned, true).linear("mm.2", aligned / 2, spec.d_model, true);
    Ok(with(spec, [tower]))
}

fn idefics3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "llama")?;
    let mut tower = vision(r, "idefics3_vision")?;
    let wide = joined(r, "scale_factor", 2, tower.d_model());
    tower.linear("mm", wide, spec.d_model, false);
    Ok(with(spec, [tower]))
}

fn mistral3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "mistral")?;
    let instead = r#"{"image_size": 1540, "patch_size": 14}"#;
    let mut tower = towers::read(r, VISION, "pixtral", instead)?;
    let d = tower.d_model();
    let merged = joined(r, "spatial_merge_size", 2, d);
    tower.vector("mm.norm", d).linear("mm.patch_merger", merged, d, false);
    let wide = d.saturating_mul(feature_layers(r));
    tower.mlp("mm", [wide, spec.d_model, spec.d_model], r.flag(&["multimodal_projector_bias"], false));
    Ok(with(spec, [tower]))
}

fn voxtral(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "llama")?;
    let mut tower = towers::read(r, AUDIO, "voxtral_encoder", "")?;
    let wide = tower.d_output;
    tower.mlp("mm", [wide, spec.d_model, spec.d_model], false);
    Ok(with(spec, [tower]))
}

fn qwen2_audio(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text_alone_decides(r, "qwen2")?;
    let mut tower = towers::read(r, AUDIO, "qwen2_audio_encoder", "")?;
    let d = tower.d_model();
    tower.linear("mm", d, spec.d_model, true);
    Ok(with(spec, [tower]))
}

fn qwen2_vl(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with(text_decides(r, "qwen2_vl_text")?, [vision(r, "qwen2_vl_vision")?]))
}

fn qwen2_5_vl(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with(text_decides(r, "qwen2_5_vl_text")?, [vision(r, "qwen2_5_vl_vision")?]))
}

fn qwen3_vl(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with(text(r, "qwen3_vl_text")?, [vision(r, "qwen3_vl_vision")?]))
}

fn qwen3_vl_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with(text(r, "qwen3_vl_moe_text")?, [vision(r, "qwen3_vl_vision")?]))
}

fn qwen3_5(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with(text(r, "qwen3_5_text")?, [vision(r, "qwen3_5_vision")?]))
}

fn qwen3_5_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with(text(r, "qwen3_5_moe_text")?, [vision(r, "qwen3_5_vision")?]))
}

fn exaone4_5(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with(text(r, "exaone4")?, [vision(r, "exaone4_5_vision")?]))
}

fn glm4v(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with(text_decides(r, "glm4v_text")?, [vision(r, "glm4v_vision")?]))
}

fn glm4v_moe(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with(text_decides(r, "glm4v_moe_text")?, [vision(r, "glm4v_vision")?]))
}

fn glm_ocr(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    Ok(with(text(r, "glm_ocr_text")?, [vision(r, "glm_ocr_vision")?]))
}

fn lfm2(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "lfm2")?;
    let mut tower = towers::read(r, VISION, "siglip2_vision_model", "")?;
    let wide = joined(r, "downsample_factor", 2, tower.d_model());
    if r.flag(&["projector_use_layernorm"], true) {
        tower.norm("mm.norm", wide, true);
    }
    let hidden = r.opt(&["projector_hidden_size"]).unwrap_or(2560);
    tower.mlp("mm", [wide, hidden, spec.d_model], r.flag(&["projector_bias"], true));
    Ok(with(spec, [tower]))
}

fn lfm3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "lfm3")?;
    let mut tower = vision(r, "lfm3_vl_vision")?;
    let (d, wide) = (tower.d_model(), tower.d_output);
    let hidden = r.opt_below(&["projector_hidden_size"], r.limits().width).unwrap_or(4096);
    tower.norm("mm.norm", d, true).mlp("mm", [wide, hidden, spec.d_model], r.flag(&["projector_bias"], true));
    Ok(with(spec, [tower]))
}

fn granite_docling(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "granite_docling_text")?;
    let mut tower = vision(r, "granite_docling_vision")?;
    let d = tower.d_model();
    if let Some(hidden) = r.opt_below(&["density_router_hidden_size"], r.limits().width) {
        tower.linear("density_router.0", d, hidden, true).linear("density_router.2", hidden, 1, true);
    }
    Ok(with(spec, [tower]))
}

fn kimi(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "deepseek_v3")?;
    let mut tower = vision(r, "kimi_k25_vision")?;
    let (d, wide) = (tower.d_model(), tower.d_output);
    tower.norm("mm.norm", d, true).mlp("mm", [wide, wide, spec.d_model], true);
    Ok(with(spec, [tower]))
}

fn llama4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text_alone_decides(r, "llama4_text")?;
    let mut tower = vision(r, "llama4_vision_model")?;
    let d = tower.d_output;
    tower.linear("mm", d, spec.d_model, false);
    Ok(with(spec, [tower]))
}

fn mllama(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text_alone_decides(r, "mllama_text_model")?;
    let mut tower = vision(r, "mllama_vision_model")?;
    let d = tower.d_output;
    tower.linear("mm", d, spec.d_model, true);
    Ok(with(spec, [tower]))
}

/// Llama with layers that attend to the image instead of to the text.
fn mllama_text(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let crossing = r.list(&["cross_attention_layers"]).unwrap_or_default();
    let own = recipe::layer(
        Mixer::Attention(dims.attention()),
        FeedForward::Dense(Dense::gated(dims.d_ff)),
        recipe::pre_norms(dims.d_model, false),
    );
    let mut attention = dims.attention();
    attention.qk_norm = recipe::qk_norm_per_head(dims.head_dim);
    attention.kv_source = KvSource::NotCached;
    let gate = |name| recipe::weight(name, Shape::vector(1), Component::Attention);
    let cross = Layer {
        mixer: Mixer::None,
        cross_attention: Some(attention),
        extra: [gate("cross_attn_attn_gate"), gate("cross_attn_mlp_gate")].to_vec(),
        ..own.clone()
    };
    let layers = dims.layers().map(|index| if crossing.contains(&index) { cross.clone() } else { own.clone() });
    let mut spec = recipe::decoder(r, &dims, layers.collect());
    // Eight more rows than tokens: placeholders of images, which are never predicted.
    spec.embedding.n_vocab = dims.n_vocab.saturating_add(8);
    spec.head.n_outputs = Some(dims.n_vocab);
    Ok(spec)
}

fn deepseek_vl(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "llama")?;
    let mut tower = towers::read(r, VISION, "siglip_vision_model", "")?;
    let d = tower.d_model();
    tower.mlp("mm", [d, spec.d_model, spec.d_model], true);
    Ok(with(spec, [tower]))
}

/// No tower: patches enter the language model through one matrix.
fn fuyu(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let flat = r.keep(r.config.u64(&["num_hidden_layers"])).is_some();
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"]));
    let spec = if flat { r.language_model_here("persimmon", tied)? } else { r.language_model(TEXT, "persimmon", tied)? };
    let side = r.opt(&["patch_size"]).unwrap_or(30);
    let patch = side.saturating_mul(side).saturating_mul(r.opt(&["num_channels"]).unwrap_or(3));
    let mut eye = Draft::vision(spec.d_model);
    eye.linear("patch_embd", patch, spec.d_model, true);
    Ok(with(spec, [eye]))
}

/// Phi-3 with the CLIP tower that its code names (`clip-vit-large-patch14-336`) and a projector of two matrices.
fn phi3_v(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = r.language_model_here("phi3", None)?;
    let instead = r#"{"hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14, "image_size": 336,
        "num_hidden_layers": 24, "num_attention_heads": 16}"#;
    let mut tower = towers::read(r, VISION, "clip_vision_model", instead)?;
    // Four patches become one; learned separators end rows and images.
    let wide = tower.d_model().saturating_mul(4);
    tower.vector("glb_gn", wide).vector("sub_gn", wide).mlp("mm", [wide, spec.d_model, spec.d_model], true);
    Ok(with(spec, [tower]))
}

/// The nested objects' defaults stand in for a flattened copy's keys, as the model's own class reads it.
fn step3p7(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    if r.config.is_default(TEXT) {
        r.note("$.text_config: missing; the class then takes its defaults, whatever the document says beside it");
    }
    let spec = text(r, "step3p7_text")?;
    let mut tower = vision(r, "step3p7_vision")?;
    let d = tower.d_output;
    tower.linear("mm", d, spec.d_model, r.flag(&["projector_bias"], false));
    Ok(with(spec, [tower]))
}

fn ernie(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = text(r, "ernie4_5_vl_moe_text")?;
    let mut tower = vision(r, "ernie4_5_vl_moe_vision")?;
    let d = tower.d_output;
    tower.linear("mm", d, spec.d_model, true).vector("mm.norm", spec.d_model);
    Ok(with(spec, [tower]))
}

/// Two sets of experts, one for text and one for images, with shared ones beside both.
fn ernie_text(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let dims = Dims::read(r);
    let limit = r.limits().experts;
    let two = |name: &str| match r.config.raw(&[name]) {
        Some((Value::Array(_), _)) => match r.list(&[name]).as_deref() {
            Some([text, image, ..]) => [*text, *image],
            Some([both]) => [*both, *both],
            _ => [0, 0],
        },
        _ => [r.need_below(&[name], r.limits().width); 2],
    };
    let [width, image_width] = two("moe_intermediate_size");
    let [n_experts, n_image_experts] = two("moe_num_experts").map(|n| n.min(limit));
    let [first, _] = two("moe_layer_start_index");
    let shared = width.saturating_mul(r.opt(&["moe_num_shared_experts"]).unwrap_or(0));
    let mut moe = recipe::experts(n_experts, r.need_below(&["moe_k"], limit), width);
    moe.correction_bias = Some(Counts::Parameter);
    moe.shared = recipe::shared_experts(shared);
    let stack = |name: &str, n_in, n_out| recipe::weight(name, Shape::stack(n_in, n_out, n_image_experts), Component::Experts);
    let d = dims.d_model;
    moe.extra = Vec::from([
        recipe::weight("ffn_gate_inp_image.weight", Shape::matrix(d, n_image_experts), Component::Router),
        recipe::weight("exp_probs_b_image.bias", Shape::vector(n_image_experts), Component::Router),
        stack("ffn_gate_image_exps.weight", d, image_width),
        stack("ffn_up_image_exps.weight", d, image_width),
        stack("ffn_down_image_exps.weight", image_width, d),
    ]);
    let has_experts: Vec<bool> = match r.texts(&["mlp_layer_types"]) {
        Some(types) => {
            recipe::per_layer(r, "mlp_layer_types", Some(types), dims.n_layers).into_iter().map(|kind| kind == "sparse").collect()
        }
        None => recipe::from_layer(dims.n_layers, first),
    };
    let layers = has_experts.into_iter().map(|sparse| {
        let feed_forward = if sparse { FeedForward::Moe(moe.clone()) } else { FeedForward::Dense(Dense::gated(dims.d_ff)) };
        recipe::layer(Mixer::Attention(dims.attention()), feed_forward, recipe::pre_norms(d, false))
    });
    Ok(recipe::decoder(r, &dims, layers.collect()))
}
