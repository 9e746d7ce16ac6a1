//! vLLM's model classes, where one differs from what most of them do: one row for a class, with the file of
//! `vllm/model_executor/models` (0.33.0) that says so. A class takes the row of the longest name that it begins with.

use super::config::Config;
use plimsoll_math::engine::vllm::class::{
    Built, CacheRule, DraftModule, EveryStage, ExpertsModule, ModelClass, Router, SplitNorms, TowerClass,
};

/// What a class decides about a model; most decide nothing.
pub(super) fn class_of(architecture: &str) -> ModelClass {
    let rows = CLASSES.iter().filter(|row| architecture.starts_with(row.class));
    let mut facts = rows.max_by_key(|row| row.class.len()).map_or(PLAIN, |row| row.facts);
    facts.library = !super::vllm_registry::registered(architecture);
    facts.adapts_head = ADAPTED_VOCABULARY.contains(&architecture);
    facts.adapts_embedding = facts.adapts_head || LIBRARY_DENSE.contains(&architecture);
    // Every class that ends in no head of a language model (`config/model.py:_get_default_runner_type`).
    facts.pooling = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "RewardModel"]
        .iter()
        .any(|end| architecture.ends_with(end))
        && !["LMHeadModel", "ChatGLMModel"].iter().any(|end| architecture.ends_with(end));
    facts
}

/// What a class decides about a model with this config.
pub(super) fn class_of_config(architecture: &str, root: &Config<'_>) -> ModelClass {
    let mut facts = class_of(architecture);
    let text = root.child(super::lookup::LANGUAGE_MODEL_KEYS).ok().flatten();
    let text = text.as_ref().unwrap_or(root);
    // Only a config that names the method has corrections (`deepseek_v2.py:DeepseekV2MoE`).
    if CORRECTED_BY_NAME.iter().any(|name| architecture.starts_with(name)) {
        facts.router.buffered_correction |= text.str(&["topk_method"]).ok().flatten() != Some("noaux_tc");
    }
    // Code that a checkpoint brings may make up for what is missing.
    facts.built = match super::vllm_registry::built(architecture) {
        Built::Never if root.has(&["auto_map"]) => Built::Yes,
        built => built,
    };
    facts.without_pipeline = !super::vllm_registry::divides_into_stages(architecture);
    let activation = text.str(&["hidden_act", "hidden_activation", "mlp_hidden_act"]).ok().flatten().unwrap_or("silu");
    let renormalizes = text.bool(&["norm_topk_prob"]).ok().flatten().unwrap_or(true);
    facts.tiled_experts = ["silu", "relu2"].contains(&activation) && renormalizes;
    facts.lends_embedding = LENDS_EMBEDDING.contains(&architecture);
    facts.hides_experts = !EXPERT_KEYS.iter().any(|key| text.has(&[key]));
    facts
}

/// Classes around `llama.py:LlamaModel`, `qwen2.py:Qwen2Model` and `sarvam.py`.
const LENDS_EMBEDDING: [&str; 5] =
    ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SarvamMoEForCausalLM"];
/// Classes of `deepseek_v2.py`.
const CORRECTED_BY_NAME: [&str; 3] = ["DeepseekV2", "DeepseekV3", "KimiK25"];
/// Where the engine looks for the number of experts (`transformers_utils/config.py:CONFIG_FIELD_ALIASES`).
const EXPERT_KEYS: [&str; 5] = ["num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts", "block_configs"];

/// A class and its facts.
struct Row {
    /// The class, or what its siblings begin with.
    class: &'static str,
    /// Where the engine says so.
    #[cfg_attr(not(test), expect(dead_code, reason = "the source of a row is for readers and for the test of the table"))]
    file: &'static str,
    facts: ModelClass,
}

const fn row(class: &'static str, file: &'static str, facts: ModelClass) -> Row {
    Row { class, file, facts }
}

const PLAIN: ModelClass = ModelClass {
    linear_biases: false,
    expands_latents: false,
    plain_cache: false,
    without_cache_scales: false,
    attention_first: false,
    draft: DraftModule::Named,
    cache_rule: CacheRule::AsAsked,
    ends: EveryStage { embedding: false, norm: false, head: false },
    router: Router::PLAIN,
    experts: ExpertsModule::Mlp,
    embedding_norm_last: false,
    plain_vocabulary: false,
    fused_biases: false,
    model_type_decay: false,
    keeps_states: false,
    bounded_gates: false,
    rate_tile: 0,
    least_expert_share: 0,
    split_norms: SplitNorms::None,
    library: false,
    pooling: false,
    adapts_embedding: false,
    adapts_head: false,
    divided_embeddings: false,
    two_norms: false,
    whole_rates: false,
    without_pipeline: false,
    hides_experts: false,
    tiled_experts: false,
    lends_embedding: false,
    built: Built::Yes,
    tower: TOWER,
};
const TOWER: TowerClass = TowerClass {
    whole: false,
    whole_if_uneven: false,
    whole_projector: false,
    unquantized: false,
    quantized_projector: false,
    whole_tiles: false,
    split_patches: false,
    without_last_layer: false,
    visual: false,
};
const ALL: ModelClass = ModelClass { ends: EveryStage::ALL, ..PLAIN };
const VOCABULARY: ModelClass = ModelClass { ends: EveryStage::VOCABULARY, ..PLAIN };
const EMBEDDING: ModelClass = ModelClass { ends: EveryStage::EMBEDDING, ..PLAIN };
const SINGLE: ModelClass = ModelClass { router: Router::SINGLE, ..PLAIN };
const ALL_QUANTIZED: ModelClass = ModelClass { router: Router::QUANTIZED, ..ALL };

const CLASSES: &[Row] = &[
    row("BaiChuanForCausalLM", "baichuan.py", ModelClass { linear_biases: true, ..PLAIN }),
    row("Bert", "bert.py", ModelClass { divided_embeddings: true, ..PLAIN }),
    row("Bloom", "bloom.py", ModelClass { linear_biases: true, ..VOCABULARY }),
    row("ChatGLM", "chatglm.py", ALL),
    row("Cohere", "commandr.py", ModelClass { split_norms: SplitNorms::Matrices, ends: EveryStage::WITHOUT_HEAD, ..PLAIN }),
    row("Dbrx", "dbrx.py", ALL),
    row("DeepseekV32", "config.py", ModelClass { cache_rule: CacheRule::Bfloat16IsAuto, ..PLAIN }),
    row("DeepseekV4", "../../models/deepseek_v4", ModelClass { cache_rule: CacheRule::PackedLatents, ..PLAIN }),
    row("Dots1", "transformers/moe.py", ModelClass { router: Router { buffered_correction: true, ..PLAIN.router }, ..PLAIN }),
    row("Ernie4_5", "ernie45_moe.py", SINGLE),
    row("Falcon", "falcon.py", ModelClass { plain_cache: true, ..ALL }),
    row("FalconH1", "falcon_h1.py", PLAIN),
    row("FalconMamba", "mamba.py", ALL),
    row("Gemma2", "gemma2.py", ModelClass { ends: EveryStage::WITHOUT_HEAD, ..PLAIN }),
    row("Gemma3", "gemma3_mm.py", ModelClass { tower: TowerClass { whole_tiles: true, ..TOWER }, ..ALL }),
    row("Gemma4", "gemma4.py", ModelClass { tower: TowerClass { whole: true, quantized_projector: true, ..TOWER }, ..ALL }),
    row("GemmaForCausalLM", "gemma.py", ALL),
    row("Glm4Moe", "glm4_moe.py", SINGLE),
    row("Glm4v", "glm4_1v.py", ModelClass { tower: VISUAL.tower, ..EMBEDDING }),
    row("GlmMoeDsa", "config.py", ModelClass { cache_rule: CacheRule::Fp8OnBlackwell, ..PLAIN }),
    row("GPT2", "gpt2.py", ALL),
    row("GPTJ", "gpt_j.py", ALL),
    row("GptOss", "gpt_oss.py", ALL),
    row("GraniteMoe", "granitemoe.py", ALL),
    row("HYV3", "hy_v3.py", ALL),
    row("InternLM2", "internlm2.py", ALL),
    row("JAISLMHeadModel", "jais.py", ModelClass { linear_biases: true, ..PLAIN }),
    row("Jamba", "jamba.py", ALL),
    row("Kimi", "kimi_linear.py", KIMI),
    row(
        "KimiK25",
        "kimi_k25.py",
        ModelClass { tower: TowerClass { whole_projector: true, whole_if_uneven: true, unquantized: true, ..TOWER }, ..PLAIN },
    ),
    row("KimiK3", "kimi_k3.py", ModelClass { bounded_gates: true, rate_tile: 16, ..KIMI }),
    row("Lfm2", "lfm2.py", LFM2),
    row("Lfm2Moe", "lfm2_moe.py", ModelClass { router: Router::QUANTIZED, ..LFM2 }),
    row("Lfm2Vl", "lfm2_vl.py", ModelClass { tower: TowerClass { whole_projector: true, ..TOWER }, ..LFM2 }),
    row("Llama4", "mllama4.py", ModelClass { tower: TowerClass { split_patches: true, unquantized: true, ..TOWER }, ..PLAIN }),
    row("Llava", "llava.py", ModelClass { tower: TowerClass { without_last_layer: true, ..TOWER }, ..PLAIN }),
    row("Mamba", "mamba.py", ALL),
    row("Mamba2", "mamba2.py", PLAIN),
    row("MiMoV2", "mimo_v2.py", SINGLE),
    row("MiMoV2FlashForCausalLM", "mimo_v2.py", ModelClass { draft: DraftModule::FirstNamed, ..SINGLE }),
    row("MiniCPM3", "minicpm3.py", ModelClass { expands_latents: true, ..ALL }),
    row("MiniCPMForCausalLM", "minicpm.py", ALL),
    row(
        "MiniMaxM2",
        "minimax_m2.py",
        ModelClass { experts: ExpertsModule::BlockSparseMoe, split_norms: SplitNorms::Vectors, ..SINGLE },
    ),
    row("Mixtral", "mixtral.py", ModelClass { experts: ExpertsModule::BlockSparseMoe, ..ALL }),
    row("Molmo", "molmo.py", ALL),
    row("MPTForCausalLM", "mpt.py", ModelClass { linear_biases: true, ..PLAIN }),
    row("MptForCausalLM", "mpt.py", ModelClass { linear_biases: true, ..PLAIN }),
    row("NemotronH", "nemotron_h.py", ModelClass { router: Router::SINGLE_WITHOUT_KERNELS, ..ALL }),
    row("OlmoHybrid", "olmo_hybrid.py", ModelClass { model_type_decay: true, keeps_states: true, ..ALL }),
    row("Olmoe", "olmoe.py", ALL),
    row("OPT", "opt.py", ALL),
    row("Orion", "orion.py", VOCABULARY),
    row("Phi3V", "phi3v.py", EMBEDDING),
    row("PhiMoE", "phimoe.py", VOCABULARY),
    row("Plamo3", "plamo3.py", ALL),
    row("Qwen2Moe", "qwen2_moe.py", ALL),
    row("Qwen2VL", "qwen2_vl.py", VISUAL),
    row("Qwen2_5_VL", "qwen2_5_vl.py", VISUAL),
    row("Qwen3VL", "qwen3_vl.py", VISUAL),
    row("Qwen3VLMoe", "qwen3_vl_moe.py", ModelClass { router: Router::QUANTIZED, tower: VISUAL.tower, ..ALL }),
    row("Qwen3Moe", "qwen3_moe.py", ALL_QUANTIZED),
    row("Qwen3Next", "qwen3_next.py", ModelClass { draft: DraftModule::LastAttention, ..VOCABULARY }),
    row("Qwen3_5", "qwen3_5.py", ModelClass { tower: VISUAL.tower, whole_rates: true, ..EMBEDDING }),
    row("Rnj1", "gemma3.py", ALL),
    row("Roberta", "roberta.py", ModelClass { divided_embeddings: true, ..PLAIN }),
    row("StableLm", "stablelm.py", ModelClass { two_norms: true, ..ALL }),
    row("Whisper", "whisper.py", ModelClass { plain_vocabulary: true, fused_biases: true, ..PLAIN }),
    row("XLMRoberta", "roberta.py", ModelClass { divided_embeddings: true, ..PLAIN }),
    row("Zamba2", "zamba2.py", ModelClass { attention_first: true, ..PLAIN }),
];

/// The tower's module is `visual`.
const VISUAL: ModelClass = ModelClass { tower: TowerClass { visual: true, ..TOWER }, ..PLAIN };
const LFM2: ModelClass = ModelClass { embedding_norm_last: true, without_cache_scales: true, ..EMBEDDING };
const KIMI: ModelClass = ModelClass {
    least_expert_share: 256,
    tower: TowerClass { whole_projector: true, whole_if_uneven: true, unquantized: true, ..TOWER },
    ..PLAIN
};

/// Dense classes that name their embedding and output matrix in `embedding_modules`.
const ADAPTED_VOCABULARY: &[&str] = &[
    "ApertusForCausalLM",
    "DeciLMForCausalLM",
    "Exaone4ForCausalLM",
    "ExaoneForCausalLM",
    "GraniteForCausalLM",
    "InternLM3ForCausalLM",
    "LLaMAForCausalLM",
    "LlamaForCausalLM",
    "MiniCPM3ForCausalLM",
    "MiniCPMForCausalLM",
    "NemotronForCausalLM",
    "Phi3ForCausalLM",
    "Qwen3ForCausalLM",
    "SolarForCausalLM",
    "MixtralForCausalLM",
    "PhiMoEForCausalLM",
    "Qwen3MoeForCausalLM",
];

/// Dense classes that the engine builds from the Transformers library's modules (`_TRANSFORMERS_SUPPORTED_MODELS`).
const LIBRARY_DENSE: &[&str] = &[
    "ArceeForCausalLM",
    "CwmForCausalLM",
    "GPTNeoXForCausalLM",
    "GlmForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "Jais2ForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "OlmoForCausalLM",
    "PhiForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
    "Starcoder2ForCausalLM",
    "VaultGemmaForCausalLM",
];

#[cfg(test)]
mod tests {
    use super::{CLASSES, class_of};

    #[test]
    fn a_class_takes_the_row_of_the_longest_name_it_begins_with() {
        assert!(class_of("FalconForCausalLM").plain_cache);
        assert!(!class_of("FalconH1ForCausalLM").plain_cache);
        assert!(!class_of("SomethingElse").linear_biases);
    }

    #[test]
    fn every_row_has_a_name_and_a_source_of_its_own() {
        for (index, row) in CLASSES.iter().enumerate() {
            assert!(row.file.ends_with(".py") || row.file.contains("models/"), "{}", row.class);
            assert!(CLASSES.iter().skip(index + 1).all(|other| other.class != row.class), "{} twice", row.class);
        }
    }
}
