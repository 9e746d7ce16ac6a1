//! Language models with ears: Phi-4 multimodal, the thinkers of Qwen's Omni models, Granite Speech; and Muse Glimmer,
//! which only sees.

use alloc::format;

use plimsoll_math::spec::{FeedForward, Mixer, ModelSpec, Weight};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::Family;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe::weight;
use crate::hf::towers::{self, Draft, added};

/// The rows.
pub const FAMILIES: &[Family] = &[
    Family {
        model_types: &["phi4_multimodal"],
        architectures: &["Phi4MultimodalForCausalLM"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"tie_word_embeddings": false}"#,
        build: phi4,
    },
    Family {
        model_types: &["phi4mm"],
        architectures: &["Phi4MMForCausalLM"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"tie_word_embeddings": true, "vision_lora": {"r": 256}, "speech_lora": {"r": 320},
            "audio_config": {"bias_max_distance": 500}}"#,
        build: phi4_with_adapters,
    },
    Family {
        model_types: &["qwen2_5_omni_thinker"],
        architectures: &["Qwen2_5OmniThinkerForConditionalGeneration"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: THINKER,
        build: qwen2_5,
    },
    Family {
        model_types: &["qwen2_5_omni"],
        architectures: &["Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniModel"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"thinker_config": {}}"#,
        build: qwen2_5_whole,
    },
    Family {
        model_types: &["qwen3_omni_moe_thinker"],
        architectures: &["Qwen3OmniMoeThinkerForConditionalGeneration"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: THINKER,
        build: qwen3,
    },
    Family {
        model_types: &["qwen3_omni_moe"],
        architectures: &["Qwen3OmniMoeForConditionalGeneration"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"thinker_config": {}}"#,
        build: qwen3_whole,
    },
    Family::new(
        &["phi4_multimodal_text"],
        &[],
        Some("phi3"),
        r#"{"vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072}"#,
        super::phi::phi3,
    ),
    Family::new(
        &["qwen2_5_omni_text"],
        &[],
        Some("qwen2vl"),
        r#"{"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
            "use_sliding_window": false, "sliding_window": 32768, "max_window_layers": 28}"#,
        super::qwen::qwen2,
    ),
    Family::new(
        &["qwen3_omni_moe_text"],
        &[],
        Some("qwen3vlmoe"),
        r#"{"vocab_size": 3584, "hidden_size": 2048, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
            "decoder_sparse_step": 1, "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128}"#,
        super::qwen::qwen3_moe,
    ),
    Family {
        model_types: &["granite_speech", "granite_speech_plus"],
        architectures: &["GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"text_config": {}, "tie_word_embeddings": true, "downsample_rate": 5, "window_size": 15}"#,
        build: granite_speech,
    },
    Family {
        model_types: &["muse_glimmer"],
        architectures: &["MuseGlimmerForConditionalGeneration"],
        llama_cpp: None,
        is_wrapper: true,
        defaults: r#"{"text_config": {}, "tie_word_embeddings": false, "out_hidden_size": 6144,
            "projector_hidden_size": 4096}"#,
        build: muse,
    },
];

const THINKER: &str = r#"{"text_config": {}, "tie_word_embeddings": false}"#;
const TEXT: &[&str] = &["text_config"];
const VISION: &[&str] = &["vision_config"];
const AUDIO: &[&str] = &["audio_config"];

fn with<const N: usize>(mut spec: ModelSpec, drafts: [Draft; N]) -> ModelSpec {
    spec.towers.extend(drafts.map(|draft| draft.tower));
    spec
}

fn phi4(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let spec = r.language_model_here("phi4_multimodal_text", r.keep(r.config.bool(&["tie_word_embeddings"])))?;
    let mut eye = towers::read_as(r, VISION, "phi4_multimodal_vision")?;
    let mut ear = towers::read_as(r, AUDIO, "phi4_multimodal_audio")?;
    // Learned separators of the whole image and of its parts.
    let d_eye = eye.d_model();
    eye.vector("global_separator", d_eye).vector("part_separator", d_eye).mlp("mm", [d_eye, spec.d_model, spec.d_model], true);
    // One projector for sound alone and one for sound beside images.
    let d_ear = ear.d_model();
    for name in ["mm.speech", "mm.vision_speech"] {
        ear.mlp(name, [d_ear, spec.d_model, spec.d_model], true);
    }
    Ok(with(spec, [eye, ear]))
}

/// The released checkpoint, in the spelling of its own class: low-rank adapters for images and for speech stand beside
/// every matrix of the language model.
fn phi4_with_adapters(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let mut spec = phi4(r)?;
    let rank = |key: &str| r.child(&[key]).map_or(0, |adapter| adapter.need(&["r"]));
    let ranks = [("vision", rank("vision_lora")), ("speech", rank("speech_lora"))];
    let d = spec.d_model;
    for layer in &mut spec.layers {
        let (Mixer::Attention(attention), FeedForward::Dense(dense)) = (&layer.mixer, &layer.feed_forward) else { continue };
        let queries = attention.n_heads.saturating_mul(attention.k_head_dim);
        let keys = attention.n_kv_heads.saturating_mul(attention.k_head_dim);
        let matrices = [
            ("attn_qkv", d, added(queries, keys.saturating_mul(2)), Component::Attention),
            ("attn_output", queries, d, Component::Attention),
            ("ffn_gate_up", d, dense.d_ff.saturating_mul(2), Component::Mlp),
            ("ffn_down", dense.d_ff, d, Component::Mlp),
        ];
        for (adapter, rank) in ranks {
            for (name, n_in, n_out, component) in matrices {
                for (half, shape) in [("a", Shape::matrix(n_in, rank)), ("b", Shape::matrix(rank, n_out))] {
                    let name = format!("{name}.lora_{half}.{adapter}.weight");
                    layer.extra.push(Weight { counts: Counts::Unconverted, ..weight(&name, shape, component) });
                }
            }
        }
    }
    Ok(spec)
}

fn thinker(r: &Reader<'_>, text: &str, eye: &str, ear: &str) -> Result<ModelSpec, IngestError> {
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"]));
    let spec = r.language_model(TEXT, text, tied)?;
    Ok(with(spec, [towers::read_as(r, VISION, eye)?, towers::read_as(r, AUDIO, ear)?]))
}

fn qwen2_5(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    thinker(r, "qwen2_5_omni_text", "qwen2_5_vl_vision", "qwen2_5_omni_audio_encoder")
}

fn qwen3(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    thinker(r, "qwen3_omni_moe_text", "qwen3_vl_vision", "qwen3_omni_moe_audio_encoder")
}

/// The part of a whole Omni model that reads and writes text.
fn thinker_of<'a>(r: &Reader<'a>) -> Result<Reader<'a>, IngestError> {
    r.note("the model's talker and vocoder are not counted: engines load the thinker, which reads and writes text");
    r.child(&["thinker_config"]).ok_or_else(|| r.config.missing(&["thinker_config"], "an object"))
}

fn qwen2_5_whole(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    qwen2_5(&thinker_of(r)?)
}

fn qwen3_whole(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    qwen3(&thinker_of(r)?)
}

/// A conformer that classifies characters on the way, and a querying transformer that condenses windows of it.
fn granite_speech(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"]));
    let spec = r.language_model(TEXT, "granite", tied)?;
    let mut ear = towers::read_as(r, &["encoder_config"], "granite_speech_encoder")?;
    let windows = r.need(&["window_size"]);
    let queries = windows.checked_div(r.need(&["downsample_rate"])).unwrap_or(0);
    let condenser = towers::read_as(r, &["projector_config"], "blip_2_qformer")?;
    let d = condenser.d_model();
    ear.tower.extra.extend(condenser.tower.extra);
    ear.vector("mm.query", d.saturating_mul(queries)).linear("mm", d, spec.d_model, true);
    Ok(with(spec, [ear]))
}

fn muse(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    let tied = r.keep(r.config.bool(&["tie_word_embeddings"]));
    let spec = r.language_model(TEXT, "muse_glimmer_text", tied)?;
    let mut eye = towers::read_as(r, VISION, "muse_glimmer_vision")?;
    let (wide, hidden) = (r.need(&["out_hidden_size"]), r.need(&["projector_hidden_size"]));
    eye.mlp("adapter", [wide, hidden, hidden], false).linear("mm", hidden, spec.d_model, false);
    Ok(with(spec, [eye]))
}
