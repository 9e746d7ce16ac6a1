//! What a tensor is, told by its name.

use plimsoll_math::tensor::{Component, Counts, Place};

/// A name taken apart: where the tensor sits, and the rest of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    pub(super) place: Place,
    /// The name inside its layer (`attn_q.weight`), or the whole name outside layers.
    pub(super) inner: &'a str,
}

/// Takes `blk.3.attn_q.weight` and its kin apart.
pub(super) fn parts(name: &str) -> Parts<'_> {
    let layer = |prefix: &str| {
        let (index, inner) = name.strip_prefix(prefix)?.split_once('.')?;
        Some((index.parse::<u32>().ok()?, inner))
    };
    if let Some((index, inner)) = layer("blk.").or_else(|| layer("dec.blk.")) {
        return Parts { place: Place::Layer(index), inner };
    }
    if let Some((index, inner)) = layer("enc.blk.") {
        return Parts { place: Place::EncoderLayer(index), inner };
    }
    let tower = ["v.", "a.", "mm.", "resampler.", "adapter."].iter().any(|prefix| name.starts_with(prefix));
    let output = ["output", "cls", "dec.output", "enc.output", "dense_", "altup_", "rope_f", "hrm.", "fc.", "d2t"];
    let place = if tower {
        Place::Tower
    } else if output.iter().any(|prefix| name.starts_with(prefix)) {
        Place::Output
    } else {
        Place::Input
    };
    Parts { place, inner: name }
}

/// The part of the model a tensor belongs to, by its name inside its layer.
pub(super) fn component(parts: Parts<'_>) -> Component {
    let inner = parts.inner;
    // The name without what kind of tensor it is.
    let stem = inner.rsplit_once('.').map_or(inner, |(stem, _)| stem);
    match parts.place {
        Place::Tower => Component::VisionAudio,
        Place::Input | Place::Output => outside(stem),
        Place::Layer(_) | Place::EncoderLayer(_) => inside(stem),
        _ => Component::Other,
    }
}

fn outside(stem: &str) -> Component {
    match stem {
        "token_embd" | "position_embd" | "token_types" => Component::Embeddings,
        "output" => Component::LmHead,
        "per_layer_token_embd" => Component::PerLayerEmbeddings,
        "per_layer_model_proj" | "per_layer_proj_norm" => Component::PerLayerOther,
        _ if stem.contains("norm") => Component::Norms,
        _ => Component::Other,
    }
}

/// `ffn_down.7`: one expert's matrix, as files of the first mixtures hold them.
fn is_separate_expert(stem: &str) -> bool {
    let number = ["ffn_gate.", "ffn_up.", "ffn_down."].iter().find_map(|prefix| stem.strip_prefix(prefix));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn inside(stem: &str) -> Component {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| stem.starts_with(prefix));
    let stem_is = |names: &[&str]| names.contains(&stem);
    if starts(&["indexer"]) {
        Component::AttnIndexer
    } else if starts(&["time_mix", "ssm_", "shortconv"]) {
        Component::SsmLinear
    } else if starts(&["ffn_latent", "ffn_routed"]) {
        if stem.ends_with("norm") { Component::Norms } else { Component::ExpertsLatentProj }
    } else if starts(&["ffn_gate_inp", "exp_probs_b", "ffn_gate_tid2eid"]) {
        // The gate of the shared experts too.
        Component::Router
    } else if stem.ends_with("_shexp") {
        Component::SharedExperts
    } else if stem.ends_with("_norm_exps") {
        Component::Norms
    } else if stem.ends_with("exps") || is_separate_expert(stem) {
        Component::Experts
    } else if starts(&["vis_"]) {
        Component::Attention
    } else if stem_is(&["inp_gate", "proj", "post_norm"]) {
        Component::PerLayerOther
    } else if starts(&["altup", "laurel", "hc_", "ple_", "nextn", "layer_output_scale"]) || stem.ends_with("_res_score") {
        Component::Other
    } else if starts(&["attn_q_norm", "attn_k_norm", "attn_q_a_norm", "attn_kv_a_norm", "attn_sub_norm"])
        || stem_is(&["attn_compressor_norm"])
    {
        // Norms of queries, keys and latents belong to the attention they are part of.
        Component::Attention
    } else if stem.contains("norm") {
        Component::Norms
    } else if starts(&["attn_", "cross_attn_"]) {
        Component::Attention
    } else if starts(&["ffn", "channel_mix"]) {
        Component::Mlp
    } else {
        Component::Other
    }
}

/// How a tensor counts, by its name alone.
pub(super) fn counts(parts: Parts<'_>) -> Counts {
    let inner = parts.inner;
    if inner.starts_with("rope_freqs") || inner.starts_with("rope_factors") || inner.starts_with("attn_rot_embd") {
        return Counts::Derived;
    }
    // Scales of number formats that keep them apart (NVFP4), and the router's correction.
    let scales = [".scale", ".input_scale"].iter().any(|suffix| inner.ends_with(suffix));
    let learned = ["hc_", "output_hc", "ffn_gate_inp", "layer_output_scale", "altup"];
    if inner.starts_with("exp_probs_b") || (scales && !learned.iter().any(|prefix| inner.starts_with(prefix))) {
        return Counts::Buffer;
    }
    Counts::Parameter
}
