//! What llama.cpp does differently from one architecture to the next, where the model's own mechanisms do not say it.
//!
//! The caches follow from the mixers of a [`ModelSpec`]. This table holds only what the engine decides by
//! architecture name: whether it honours sliding windows, whether it keeps a cache at all, which models it unrolls.

use alloc::string::ToString;

use crate::engine::llama_cpp::build::Build;
use crate::error::MathError;
use crate::spec::{Layer, ModelSpec, Window};

/// Architectures that v0.5.0 loads (`llama-arch.cpp:LLM_ARCH_NAMES`).
#[rustfmt::skip]
const KNOWN: &[&str] = &[
    "llama", "llama4", "deci", "falcon", "grok", "gpt2", "gptj", "gptneox", "mpt", "baichuan", "starcoder", "refact",
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
    "bloom", "stablelm", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3next", "qwen3vl",
    "qwen3vlmoe", "qwen35", "qwen35moe", "qwen4exp", "phi2", "phi3", "phimoe", "plamo", "plamo2", "plamo3",
    "codeshell", "orion", "internlm2", "minicpm", "minicpm3", "gemma", "gemma2", "gemma3", "gemma3n", "gemma4",
    "gemma4-assistant", "gemma-embedding", "starcoder2", "mamba", "mamba2", "maple", "jamba", "falcon-h1", "xverse",
    "command-r", "cohere2", "cohere2moe", "dbrx", "olmo", "olmo2", "olmoe", "muse-glimmer", "openelm", "arctic",
    "deepseek", "deepseek2", "deepseek2-ocr", "deepseek32", "deepseek4", "chatglm", "glm4", "glm4moe", "glm-dsa",
    "bitnet", "t5", "t5encoder", "eagle3", "dflash", "jais", "jais2", "nemotron", "nemotron_h", "nemotron_h_moe", "exaone", "exaone4",
    "exaone-moe", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "granite", "granitemoe", "granitehybrid", "graniteswitch",
    "granite_swa", "chameleon", "wavtokenizer-dec", "plm", "bailingmoe", "bailingmoe2", "bailingmoe3", "dots1",
    "dots3note", "arcee", "afmoe", "laguna", "ernie4_5", "ernie4_5-moe", "hunyuan-moe", "hunyuan-dense", "hunyuan_vl",
    "hy_v3", "hy_v4", "smollm3", "gpt-oss", "lfm2", "lfm2moe", "dream", "smallthinker", "llada", "llada-moe",
    "seed_oss", "grovemoe", "apertus", "minimax-01", "hrm_text", "minimax-m2", "minimax-m3", "cogvlm", "rnd1",
    "pangu-embedded", "mistral3", "eagle3", "dflash", "mistral4", "paddleocr", "mimo2", "step35", "spark2_5",
    "llama-embed", "maincoder", "kimi-linear", "kimi-k3", "talkie", "mellum", "nanbeige", "qwen3tts",
    "pockettts",
];

/// Architectures that came with 0c1e57098.
const SINCE_0C1E57098: &[&str] = &["glm5-next"];

/// Architectures that came with b12032.
#[rustfmt::skip]
const SINCE_B12032: &[&str] = &[
    "sensenova_u1", "flint", "clef", "vllm-decision2", "gemma-embedding2", "muse-spark", "deepseek41", "lfm3",
    "limite", "mistral-large4", "maion-coder", "k2-horizon", "beam", "kolibri1",
];

/// Architectures without any memory (`llama-model.cpp:create_memory`): encoders and diffusion models.
#[rustfmt::skip]
const WITHOUT_MEMORY: &[&str] = &[
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "wavtokenizer-dec",
    "modern-bert", "gemma-embedding", "gemma-embedding2", "dream", "llada", "llada-moe", "rnd1", "clef",
];

/// Architectures whose loader sets a window type (`models/*.cpp:load_arch_hparams`). Every other one keeps the whole
/// context for all layers, whatever the model's configuration says (Mistral 7B, Phi 3, Qwen2).
#[rustfmt::skip]
const HONOURS_WINDOWS: &[&str] = &[
    "afmoe", "beam", "cohere2", "cohere2moe", "deepseek4", "deepseek41", "dflash", "dots3note", "exaone-moe",
    "exaone4", "flint", "gemma2", "gemma3", "gemma3n", "gemma4", "gemma4-assistant", "gpt-oss", "granite_swa",
    "kolibri1", "laguna", "lfm2", "lfm3", "limite", "llama4", "maion-coder", "maple", "mellum", "mimo2",
    "muse-glimmer", "muse-spark", "olmo2", "plamo3", "smallthinker", "spark2_5", "step35",
];

/// Recurrent models that can roll back by snapshots (`llama-arch.cpp:llm_arch_supports_rs_rollback`).
#[rustfmt::skip]
const ROLLS_BACK: &[&str] = &[
    "kimi-k3", "qwen35", "qwen35moe", "qwen4exp", "deepseek4", "deepseek41", "glm5-next", "nemotron_h",
    "nemotron_h_moe", "lfm2", "lfm2moe", "lfm3", "bailingmoe3",
];

/// Recurrent models without an attention cache (`llama-arch.cpp:llm_arch_is_recurrent`).
#[rustfmt::skip]
const RECURRENT_ONLY: &[&str] = &[
    "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7",
];

/// Models with both kinds of memory (`llama-arch.cpp:llm_arch_is_hybrid`); they make a recurrent module even when
/// no layer needs it.
#[rustfmt::skip]
const HYBRID: &[&str] = &[
    "jamba", "falcon-h1", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "lfm3", "nemotron_h", "nemotron_h_moe",
    "qwen3next", "kimi-linear", "bailingmoe3", "kimi-k3", "glm5-next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01",
];

/// Hybrid models that gather a recurrent layer's state before they finish the layer before it (`models/*.cpp`).
#[rustfmt::skip]
const GATHERS_STATES_EARLY: &[&str] = &[
    "jamba", "falcon-h1", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "lfm3", "nemotron_h", "nemotron_h_moe", "bailingmoe3",
];

/// Models whose lightning indexer rotates its keys in any format (`llama-kv-cache.cpp:llama_kv_cache`).
#[rustfmt::skip]
const ROTATES_INDEXER: &[&str] = &[
    "deepseek32", "deepseek4", "glm-dsa", "dots3note", "mistral-large4",
];

/// Hybrid and sparse models whose attention filter does not leave out multi-token-prediction layers
/// (`llama-model.cpp:create_memory`: no filter, and the cache loops over all layers of the file).
#[rustfmt::skip]
const CACHES_MTP_LAYERS: &[&str] = &[
    "bailingmoe3", "hy_v4", "minimax-m3", "nemotron_h_moe", "deepseek4",
];

/// Architectures with an encoder: every batch row may be an output (`llama-model.cpp:llama_model_has_encoder`).
#[rustfmt::skip]
const WITH_ENCODER: &[&str] = &[
    "t5", "t5encoder", "eagle3", "dflash",
];

/// Architectures whose scores are biased by distance (`hparams.f_max_alibi_bias`).
#[rustfmt::skip]
const WITH_ALIBI: &[&str] = &[
    "bloom", "mpt", "refact", "jais", "jina-bert-v2",
];

/// Diffusion models attend to all tokens, so the batch is not limited by the context.
#[rustfmt::skip]
const DIFFUSION: &[&str] = &[
    "dream", "llada", "llada-moe", "rnd1",
];

/// One architecture under one build.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// The architecture's name in GGUF files.
    pub(crate) arch: &'a str,
    /// The build.
    pub(crate) build: Build,
    n_layers: usize,
}

impl<'a> Facts<'a> {
    /// The facts for a model.
    ///
    /// # Errors
    /// [`MathError::Unsupported`] when this build does not load the architecture.
    pub(crate) fn new(spec: &'a ModelSpec, build: Build) -> Result<Self, MathError> {
        let unsupported =
            |mechanism: &str| MathError::Unsupported { engine: build.engine().to_string(), mechanism: mechanism.to_string() };
        let Some(arch) = spec.llama_cpp_arch.as_deref() else {
            return Err(unsupported(&spec.architecture));
        };
        let known = KNOWN.contains(&arch)
            || (build >= Build::C0c1e57098 && SINCE_0C1E57098.contains(&arch))
            || (build >= Build::B12032 && SINCE_B12032.contains(&arch));
        if known { Ok(Self { arch, build, n_layers: spec.layers.len() }) } else { Err(unsupported(arch)) }
    }
    pub(crate) fn has_memory(self) -> bool {
        !WITHOUT_MEMORY.contains(&self.arch)
    }
    /// Whether the layer's window shrinks its cache. EXAONE 4 has windows only at its 64-layer size, by the loader.
    pub(crate) fn window(self, window: Window) -> Option<u64> {
        let honours = HONOURS_WINDOWS.contains(&self.arch) && (self.arch != "exaone4" || self.n_layers == 64);
        if honours { window.tokens() } else { None }
    }
    pub(crate) fn rolls_back(self) -> bool {
        ROLLS_BACK.contains(&self.arch)
    }
    pub(crate) fn is_recurrent_only(self) -> bool {
        RECURRENT_ONLY.contains(&self.arch)
    }
    pub(crate) fn is_hybrid(self) -> bool {
        HYBRID.contains(&self.arch)
    }
    /// Whether a recurrent layer's state is gathered before the output of the attention layer before it is computed: the
    /// graph is expanded by the state first (`llama-graph.cpp:build_rs`), where others expand it by a projection or by each
    /// layer's end.
    pub(crate) fn gathers_states_early(self) -> bool {
        GATHERS_STATES_EARLY.contains(&self.arch)
    }
    pub(crate) fn rotates_indexer(self) -> bool {
        ROTATES_INDEXER.contains(&self.arch)
    }
    pub(crate) fn caches_mtp_layers(self) -> bool {
        CACHES_MTP_LAYERS.contains(&self.arch)
    }
    pub(crate) fn has_encoder(self) -> bool {
        WITH_ENCODER.contains(&self.arch)
    }
    pub(crate) fn has_alibi(self) -> bool {
        WITH_ALIBI.contains(&self.arch)
    }
    pub(crate) fn is_causal(self, spec: &ModelSpec) -> bool {
        spec.causal && !DIFFUSION.contains(&self.arch)
    }
    /// Whether attention reads compressed tokens (`models/deepseek4.cpp`).
    pub(crate) fn compresses_tokens(self) -> bool {
        self.arch == "deepseek4"
    }
    /// Whether a graph of all tokens in one sequence is reserved too: decay within a micro-batch grows with the square of a
    /// sequence's tokens (`llama-context.cpp:sched_reserve`).
    pub(crate) fn reserves_one_sequence(self) -> bool {
        matches!(self.arch, "kimi-linear" | "minimax-01")
    }
    /// Grok's soft-capped attention has no flash kernel (`llama-context.cpp:llama_init_from_model`).
    pub(crate) fn forbids_flash_attention(self) -> bool {
        self.arch == "grok"
    }
    /// Rows that a pooling indexer keeps for every token (`llama-memory-hybrid-idx.cpp`).
    pub(crate) fn indexer_rows(self) -> u64 {
        match self.arch {
            "glm5-next" => 3,
            "qwen4exp" => self.build.qwen4exp_indexer_rows(),
            _ => 1,
        }
    }
    /// Whether the indexer cache is separate from a hybrid's attention cache under the name `idx`.
    pub(crate) fn indexer_tag(self) -> &'static str {
        match self.arch {
            "glm5-next" | "qwen4exp" | "minimax-m3" => "idx",
            _ => "lid",
        }
    }
}

/// The layers that the engine's attention cache walks through.
pub(crate) fn cached_layers<'a>(spec: &'a ModelSpec, facts: Facts<'_>) -> impl Iterator<Item = &'a Layer> + use<'a> {
    let mtp = facts.caches_mtp_layers();
    // Nemotron's filter passes layers without a feed-forward only (`llama-model.cpp:create_memory`); a prediction layer
    // has both halves.
    let halves = facts.arch == "nemotron_h_moe";
    let cached = move |mtp_layer: &&crate::spec::MtpLayer| {
        mtp && (!halves || matches!(mtp_layer.layer.feed_forward, crate::spec::FeedForward::None))
    };
    spec.layers.iter().chain(spec.mtp.iter().filter(cached).map(|mtp| &mtp.layer))
}
