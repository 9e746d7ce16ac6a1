//! What the metadata say about operations that no weight shows.

use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::spec::{LayerOperations, Operations, Pooling};

use super::hparams::Hparams;
use super::keys::Keys;
use super::layers::Builder;
use crate::error::IngestError;

/// Below this a limit is none (`llama-graph.cpp:build_ffn`, `eps`).
const NO_LIMIT: f64 = 1e-6;

/// What every layer is told.
pub(super) fn of_layers(keys: &Keys<'_>, hparams: &Hparams) -> Result<Vec<LayerOperations>, IngestError> {
    let n = hparams.n_layers;
    let every = |name: &str| -> Result<u64, IngestError> { Ok(keys.u64(name)?.unwrap_or(0)) };
    // Only these loaders read limits (`models/*.cpp:load_arch_hparams`).
    let reads = matches!(keys.architecture, "bailingmoe3" | "deepseek4" | "glm5-next" | "hy_v4" | "maple" | "step35");
    let limits = |name: &str| if reads { keys.above(name, NO_LIMIT, n) } else { vec![false; n] };
    let (experts, dense) = (limits("swiglu_clamp_exp"), limits("swiglu_clamp_shexp"));
    // ERNIE's graph takes every so many layers' experts; its loader takes all that the file has (`ernie4-5-moe.cpp:graph`).
    let step = if keys.architecture == "ernie4_5-moe" { keys.need("interleave_moe_layer_step")? } else { 1 };
    // Refact's graph knows no experts (`refact.cpp:graph`).
    let none = keys.architecture == "refact";
    let halved = if keys.architecture == "rwkv6" { every("rescale_every_n_layers")? } else { 0 };
    // Nanbeige norms the state after every pass but the last, unless told otherwise (`nanbeige.cpp:graph`).
    let passes = keys.architecture == "nanbeige" && !keys.bool("skip_loop_final_norm")?.unwrap_or(false);
    let pass = if passes { every("block_count")? } else { 0 };
    let at = |flags: &[bool], il: usize| flags.get(il).copied().unwrap_or(false);
    let ends = |number: u64, length: u64| length > 0 && number.is_multiple_of(length);
    let layers = (1_u64..).zip(0..n).map(|(number, il)| LayerOperations {
        limits_experts: at(&experts, il),
        limits_dense: at(&dense, il),
        skips_experts: none || !number.is_multiple_of(step),
        halves_state: ends(number, halved),
        one_matrix: false,
        norms_state: ends(number, pass) && il.saturating_add(1) < hparams.n_trunk,
    });
    Ok(layers.collect())
}

/// How many of an image encoder's layers a Granite file maps to layers (`granite.cpp:load_arch_hparams`).
fn mapped_features(keys: &Keys<'_>, hparams: &Hparams) -> u64 {
    if !matches!(keys.architecture, "granite" | "granite_swa") {
        return 0;
    }
    // No number of a feature is above how many there are.
    let is_above = |least: u32| keys.above("deepstack_mapping", f64::from(least) - 0.5, hparams.n_layers).contains(&true);
    (0_u32..512).take_while(|number| is_above(*number)).map(|_| 1).sum()
}

/// Whether the file asks for operations that no mechanism stands for.
fn others(keys: &Keys<'_>, hparams: &Hparams) -> Result<bool, IngestError> {
    // Features of an image encoder that layers of the file's choice add (`granite.cpp:graph`).
    let maps_features = mapped_features(keys, hparams) > 0;
    // How weights of experts are made: by softmax or sigmoid, and DeepSeek V4's by the root of softplus
    // (`llama-hparams.h:llama_expert_gating_func_type`).
    let gating = keys.u64("expert_gating_func")?.unwrap_or(0);
    let gates_otherwise = if keys.architecture == "deepseek4" { gating != 4 } else { gating > 2 };
    // Kimi K3's decay without a lower bound is another one, and so are its gates without a bound of the up projection
    // (`kimi-k3.cpp:graph`).
    let decays_otherwise = keys.architecture == "kimi-k3"
        && (!keys.has("kda.gate_lower_bound") || !keys.is_above("activation.situ_linear_beta", 0.0));
    Ok(maps_features || gates_otherwise || decays_otherwise)
}

/// Keys that loaders insist on and nothing else here reads (`models/*.cpp:load_arch_hparams`).
const REQUIRED: &[(&str, &[&str])] = &[
    ("glm5-next", &["hyper_connection.epsilon", "hyper_connection.sinkhorn_iterations"]),
    (
        "muse-spark",
        &["post_norm_epsilon", "final_logit_softcapping", "logit_scale", "expert_weights_scale", "expert_weights_norm"],
    ),
];

/// The key that the engine's loader would miss; `None` when it has all that it asks for.
pub(super) fn missing_key(keys: &Keys<'_>) -> Option<&'static str> {
    // A draft model with latents is told how wide its heads are.
    let latents: &[&str] = &["attention.key_length_mla", "attention.value_length_mla"];
    let of_drafts = if keys.architecture == "dflash" && keys.has("attention.kv_lora_rank") { latents } else { &[] };
    let listed = REQUIRED.iter().filter(|(name, _)| *name == keys.architecture).flat_map(|(_, names)| *names);
    listed.chain(of_drafts).copied().find(|name| !keys.has(name))
}

/// Elements of an embedding (`llama-hparams.cpp:n_embd_out`): some hand out all versions of the hidden state
/// (`deepseek4.cpp:load_arch_hparams`, `qwen4exp.cpp:load_arch_hparams`), some a number.
fn d_embedding(builder: &Builder<'_>) -> Result<Option<u64>, IngestError> {
    let keys = &builder.keys;
    Ok(match keys.architecture {
        "deepseek4" | "qwen4exp" => {
            keys.u64("hyper_connection.count")?.map(|versions| versions.saturating_mul(builder.hparams.d_model))
        }
        "deepseek41" => None,
        "clef" | "vllm-decision2" => Some(1),
        _ => keys.u64("embedding_length_out")?.filter(|width| *width > 0),
    })
}

/// Architectures whose graphs ask the file how logits of experts become weights (`models/*.cpp`, `expert_gating_func`).
const ASK_FOR_GATING: &[&str] = &[
    "afmoe",
    "bailingmoe2",
    "bailingmoe3",
    "beam",
    "cohere2moe",
    "deepseek2",
    "deepseek2-ocr",
    "deepseek32",
    "dots1",
    "dots3note",
    "exaone-moe",
    "flint",
    "glm-dsa",
    "glm4moe",
    "glm5-next",
    "hy_v3",
    "hy_v4",
    "k2-horizon",
    "kimi-k3",
    "kimi-linear",
    "kolibri1",
    "laguna",
    "lfm2moe",
    "mellum",
    "minimax-m2",
    "minimax-m3",
    "mistral-large4",
    "muse-spark",
    "smallthinker",
    "step35",
];

/// Those that take sigmoids where a file does not say.
const SIGMOID_UNLESS_TOLD: &[&str] =
    &["afmoe", "beam", "cohere2moe", "glm-dsa", "glm4moe", "glm5-next", "hy_v3", "k2-horizon", "laguna", "step35"];

/// Those that take a softmax, but for one size that they know (`deepseek2.cpp:load_arch_hparams`).
const SOFTMAX_UNLESS_TOLD: &[&str] = &["deepseek2", "deepseek2-ocr"];

/// Whether experts are scored by sigmoids, where the graph asks the file (`llama-hparams.h:llama_expert_gating_func_type`).
fn scores_by_sigmoid(builder: &Builder<'_>) -> Result<Option<bool>, IngestError> {
    let keys = &builder.keys;
    if !asks_for_gating(keys) {
        return Ok(None);
    }
    Ok(match keys.u64("expert_gating_func")? {
        Some(1) => Some(false),
        Some(2) => Some(true),
        _ => SIGMOID_UNLESS_TOLD.contains(&keys.architecture).then_some(true),
    })
}

fn asks_for_gating(keys: &Keys<'_>) -> bool {
    ASK_FOR_GATING.contains(&keys.architecture)
}

/// Whether nothing says how experts are scored: neither the file nor a loader that knows what old files mean.
fn unscored_experts(builder: &Builder<'_>) -> Result<bool, IngestError> {
    let keys = &builder.keys;
    let says = keys.or_zero("expert_gating_func")? > 0
        || SIGMOID_UNLESS_TOLD.contains(&keys.architecture)
        || SOFTMAX_UNLESS_TOLD.contains(&keys.architecture);
    Ok(asks_for_gating(keys) && keys.or_zero("expert_count")? > 0 && !says)
}

/// How the file says to pool (`llama.h:llama_pooling_type`); a file that does not say leaves every token its own.
fn pooling(keys: &Keys<'_>) -> Result<Option<Pooling>, IngestError> {
    Ok(match keys.u64("pooling_type")? {
        None | Some(0) => Some(Pooling::None),
        Some(1) => Some(Pooling::Mean),
        Some(2) => Some(Pooling::First),
        Some(3) => Some(Pooling::Last),
        Some(4) => {
            let of = keys.u64("classifier.pooling_type")?;
            // ModernBERT's classifier reads the mean unless the file says otherwise (`modern-bert.cpp:load_arch_hparams`).
            Some(Pooling::Rank { mean: of == Some(1) || of.is_none() && keys.architecture == "modern-bert" })
        }
        // Minus one stands for none given; anything else the engine does not know.
        Some(other) => (other == u64::from(u32::MAX)).then_some(Pooling::None),
    })
}

/// What the metadata say about operations that no weight shows.
pub(super) fn of_model(builder: &Builder<'_>) -> Result<Operations, IngestError> {
    let keys = &builder.keys;
    // Sections for height and width make positions of four parts (`llama-hparams.cpp:use_mrope`).
    let sections = keys.per_layer("rope.dimension_sections", 2)?;
    let sectioned = |sections: Vec<u64>| sections.iter().all(|section| *section > 0);
    Ok(Operations {
        n_missing_layers: 0,
        sectioned_positions: sections.map(sectioned),
        scales_by_position: keys.is_set("attention.temperature_scale"),
        // A file of a Granite model that does not say so does not (`llama-graph.cpp:build_inp_embd`).
        scales_embedding: match keys.architecture {
            "hrm_text" => Some(keys.is_set("embedding_scale") == Some(true)),
            // Their loaders have numbers of their own for files that say nothing.
            "minicpm" | "grok" => keys.is_set("embedding_scale"),
            name => name.starts_with("granite").then_some(keys.is_set("embedding_scale") == Some(true)),
        },
        caps_logits: keys.is_set("final_logit_softcapping"),
        parallel_residual: keys.bool("use_parallel_residual")?,
        // A file that does not say so does neither (`llama-hparams.h`).
        norms_expert_weights: Some(keys.bool("expert_weights_norm")?.unwrap_or(false)),
        scales_expert_weights: Some(keys.scales("expert_weights_scale")),
        lacks_a_key: missing_key(keys).is_some(),
        unscored_experts: unscored_experts(builder)?,
        d_embedding: d_embedding(builder)?,
        scores_experts_by_sigmoid: scores_by_sigmoid(builder)?,
        n_expert_groups: keys.or_zero("expert_group_count")?,
        banked_layers: keys.u64("attn_res.block_size")?,
        n_expert_groups_per_token: keys.or_zero("expert_group_used_count")?,
        // A file of a Granite model that does not say so rotates (`granite-hybrid.cpp:load_arch_hparams`).
        rotates: matches!(keys.architecture, "granite" | "granitehybrid" | "graniteswitch")
            .then_some(keys.bool("rope.scaling.finetuned")?.unwrap_or(true)),
        n_deepstack_layers: keys.or_zero("n_deepstack_layers")?.max(mapped_features(keys, builder.hparams)),
        // K2 Horizon alone norms its hidden state in groups (`k2-horizon.cpp:k2_horizon_group_rms_norm`).
        n_norm_groups: if keys.architecture == "k2-horizon" { keys.or_zero("attention.group_norm_groups")?.max(1) } else { 0 },
        pooling: pooling(keys)?,
        norms_by_root_mean_square: keys.is_set("attention.layer_norm_rms_epsilon"),
        // `llama-graph.cpp:build_qkv`; no other loader reads the limit.
        limits_projections: matches!(keys.architecture, "dbrx" | "mpt" | "olmo") && keys.is_above("attention.clamp_kqv", 0.0),
        // `mimo2.cpp:load_arch_hparams`.
        scales_attention: keys.architecture == "mimo2" && keys.scales("attention.value_scale"),
        // A Granite file that does not say so scales neither; MiniCPM's loader has a number of its own.
        scales_residual: match keys.architecture {
            "granite" | "granitemoe" | "granite_swa" | "granitehybrid" | "graniteswitch" => {
                Some(keys.is_set("residual_scale") == Some(true))
            }
            "minicpm" => keys.is_set("residual_scale"),
            _ => None,
        },
        scales_logits: matches!(keys.architecture, "command-r" | "cohere2" | "cohere2moe" | "granitehybrid")
            .then_some(keys.is_set("logit_scale") == Some(true)),
        others: others(keys, builder.hparams)?,
    })
}
