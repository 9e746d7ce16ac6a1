//! Where a tensor sits and what it is, by its name.
//!
//! Checkpoints spell names as their training code did. The words in them are few, so a table of words per part is
//! enough; a name of which no word is known counts as a parameter of component `other`.

use plimsoll_math::tensor::{Component, Counts, Place};

/// What the names alone do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Context {
    /// Layers of the trunk, where a config says so: layers from this number on are multi-token prediction.
    pub n_layers: Option<u32>,
    /// Whether the output matrix is the embedding, where a config says so: a stored copy is not used.
    pub tied: bool,
    /// Whether the checkpoint has a decoder, so that `encoder` is the other half of it.
    pub has_decoder: bool,
}

/// What a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The part of the model.
    pub component: Component,
    /// Where it sits.
    pub place: Place,
    /// How it counts.
    pub counts: Counts,
}

/// Words whose next segment is a layer's number.
const CONTAINERS: &[&str] = &["layers", "layer", "h", "blocks", "block"];

const TOWERS: &[&str] = &[
    "visual",
    "vit",
    "image_newline",
    "multi_modal_projector",
    "mm_projector",
    "embed_vision",
    "embed_audio",
    "aligner",
    "connector",
    "projector",
    "resampler",
    "perceiver",
    "modality_projection",
    "speech_encoder",
    "sound_encoder",
    "sam_model",
    "mlp1",
    "view_seperator",
    "img_processor",
    "pad_embed",
];
const TOWER_PREFIXES: &[&str] = &["vision", "audio", "image_", "patch_embed", "mm_", "sound_", "speech_"];

const EMBEDDINGS: &[&str] = &[
    "embed_tokens",
    "tok_embeddings",
    "word_embeddings",
    "word_embedding",
    "position_embeddings",
    "token_type_embeddings",
    "embed_positions",
    "embed_in",
    "embeddings",
    "embedding",
    "embed",
    "wte",
    "wpe",
    "shared",
    "token_embd",
];
const HEADS: &[&str] = &["lm_head", "embed_out", "output", "head", "lm_head_decoder", "ff_out"];
const ATTENTION: &[&str] = &[
    "self_attn",
    "attn",
    "attention",
    "self_attention",
    "cross_attn",
    "encoder_attn",
    "selfattention",
    "encdecattention",
    "crossattention",
    "norm_attn_norm",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "qkv_proj",
    "wq",
    "wk",
    "wv",
    "wo",
    "att_proj",
    "attn_out",
    "sinks",
];
const ATTENTION_NORMS: &[&str] = &[
    "q_norm",
    "k_norm",
    "q_layernorm",
    "k_layernorm",
    "q_a_layernorm",
    "kv_a_layernorm",
    "q_a_norm",
    "kv_a_norm",
    "query_norm",
    "key_norm",
];
const MLP: &[&str] = &[
    "mlp",
    "feed_forward",
    "feedforward",
    "ffn",
    "fc1",
    "fc2",
    "intermediate",
    "output",
    "densereludense",
    "gate_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj",
    "ff_proj",
    "ff_out",
    "w1",
    "w2",
    "w3",
    "c_fc",
    "mlp_linear",
];
const STATE: &[&str] = &[
    "mamba",
    "mixer",
    "linear_attn",
    "ssm",
    "conv",
    "short_conv",
    "recurrent_block",
    "temporal_block",
    "time_mixing",
    "a_log",
    "conv1d",
    "dt_bias",
    "dt_proj",
    "x_proj",
    "in_proj",
    "out_proj",
];
const ROUTERS: &[&str] = &["gate", "router", "router_gate", "e_score_correction_bias", "expert_bias"];
/// Stored by old training code, recomputed or ignored by every loader.
const BUFFERS: &[&str] = &["inv_freq", "masked_bias", "position_ids", "e_score_correction_bias", "expert_bias"];

/// Classifies a tensor by its name and number of dimensions.
#[must_use]
pub fn classify(name: &str, dimensions: usize, context: &Context) -> Position {
    let tower = any(name, |word| TOWERS.contains(&word) || TOWER_PREFIXES.iter().any(|prefix| word.starts_with(prefix)));
    let number = layer_number(name);
    let mtp = any(name, |word| word == "mtp" || word.starts_with("mtp_") || word == "nextn")
        || matches!((number, context.n_layers), (Some(layer), Some(n_layers)) if layer >= n_layers && !tower);
    let encoder = context.has_decoder && has(name, &["encoder"]);
    let component = if tower { Component::VisionAudio } else { component(name, number.is_some()) };
    let place = match (tower, number) {
        (true, _) => Place::Tower,
        (false, Some(layer)) if encoder => Place::EncoderLayer(layer),
        (false, Some(layer)) if mtp && name.split('.').any(|word| word == "mtp") => {
            Place::Layer(context.n_layers.unwrap_or_default().saturating_add(layer))
        }
        (false, Some(layer)) => Place::Layer(layer),
        (false, None) => match component {
            Component::Embeddings | Component::PerLayerEmbeddings => Place::Input,
            _ => Place::Output,
        },
    };
    let mask = dimensions == 4 && (name.ends_with("attn.bias") || name.ends_with("attention.bias"));
    let counts = if mtp {
        Counts::MultiTokenPrediction
    } else if mask || BUFFERS.iter().any(|buffer| name.ends_with(buffer)) {
        Counts::Buffer
    } else if context.tied && component == Component::LmHead {
        Counts::Unused
    } else {
        Counts::Parameter
    };
    Position { component, place, counts }
}

fn component(name: &str, in_layer: bool) -> Component {
    if has(name, &["indexer"]) {
        return Component::AttnIndexer;
    }
    if any(name, |word| word.contains("per_layer")) {
        let embeds = !in_layer && any(name, |word| word.starts_with("embed"));
        return if embeds { Component::PerLayerEmbeddings } else { Component::PerLayerOther };
    }
    if !in_layer {
        return if has(name, HEADS) {
            Component::LmHead
        } else if is_norm(name) {
            Component::Norms
        } else if has(name, EMBEDDINGS) {
            Component::Embeddings
        } else {
            Component::Other
        };
    }
    if any(name, |word| word.starts_with("shared_expert") || word == "shared_mlp" || word == "share_expert") {
        return Component::SharedExperts;
    }
    if has(name, &["experts"]) && !has(name, &["router"]) {
        return if has(name, &["e_score_correction_bias"]) { Component::Router } else { Component::Experts };
    }
    let state = has(name, STATE) && !has(name, ATTENTION);
    if has(name, ROUTERS) && !has(name, ATTENTION) && !has(name, &["linear_attn", "mamba"]) {
        return Component::Router;
    }
    if has(name, ATTENTION_NORMS) && !has(name, &["linear_attn", "mamba"]) {
        return Component::Attention;
    }
    if is_norm(name) && !(state && has(name, &["mixer", "mamba", "linear_attn"]) && in_mixer_norm(name)) {
        return Component::Norms;
    }
    if has(name, &["linear_attn", "mamba", "a_log"]) || state && !has(name, MLP) {
        return Component::SsmLinear;
    }
    if has(name, ATTENTION) {
        return Component::Attention;
    }
    if has(name, MLP) {
        return Component::Mlp;
    }
    Component::Other
}

/// `mixer.norm.weight` and `linear_attn.norm.weight` belong to the mixer, `layers.3.norm.weight` to the layer.
fn in_mixer_norm(name: &str) -> bool {
    let mut words = name.split('.').skip_while(|word| !matches!(*word, "mixer" | "mamba" | "linear_attn"));
    words.next().is_some() && words.any(|word| word.contains("norm"))
}

fn is_norm(name: &str) -> bool {
    any(name, |word| word.contains("norm") || word.starts_with("ln_") || matches!(word, "ln" | "ln1" | "ln2" | "ln_f"))
}

fn layer_number(name: &str) -> Option<u32> {
    let mut words = name.split('.');
    while let Some(word) = words.next() {
        if CONTAINERS.iter().any(|container| word.eq_ignore_ascii_case(container))
            && let Some(number) = words.clone().next().and_then(|next| next.parse().ok())
        {
            return Some(number);
        }
    }
    None
}

fn has(name: &str, words: &[&str]) -> bool {
    any(name, |word| words.contains(&word))
}

/// Whether any dot-separated word of the name, in lower case, satisfies `test`.
fn any(name: &str, test: impl Fn(&str) -> bool) -> bool {
    name.split('.').any(|word| {
        if word.bytes().any(|byte| byte.is_ascii_uppercase()) { test(&word.to_ascii_lowercase()) } else { test(word) }
    })
}
