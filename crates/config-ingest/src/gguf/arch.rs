//! One row per architecture that llama.cpp knows: which rule says what its metadata leaves out.
//!
//! Read from llama.cpp 0c1e57098 and b12032, `src/models/*.cpp:load_arch_hparams` and
//! `llama-model.cpp:create_memory`. What a layer *is* (its projections, experts, norms) is read from its tensors; a row
//! only says which layers keep what.

/// How a file says which layers attend through a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowRule {
    /// No layer does, whatever the metadata say.
    Never,
    /// Every `period`th layer attends to everything, the others through a window.
    Every {
        /// Layers per period, where the file's own pattern does not say otherwise.
        period: u64,
        /// Whether the layer that attends to everything is the first of its period (else the last).
        full_first: bool,
        /// Window length where the file has none: `None` when there are no windows then, `Some(0)` when the file must
        /// say.
        default: Option<u64>,
        /// A window length that holds whatever the file says.
        fixed: Option<u64>,
        /// Only models of this many layers have windows.
        only_layers: Option<u64>,
        /// What kind of window.
        kind: WindowKind,
    },
    /// The file lists the layers.
    Listed,
    /// Every layer with attention.
    Attending,
}

/// What kind of window a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowKind {
    /// The last tokens.
    Sliding,
    /// The tokens of the same chunk.
    Chunked,
    /// Tokens around.
    Symmetric,
}

/// Which layers keep a recurrent state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecurrentRule {
    /// None.
    Never,
    /// All, beside or instead of attention.
    Always,
    /// Those without key-value heads.
    WithoutKvHeads,
    /// Those without key-value heads and without a feed-forward (Nemotron-H: one block is a mixer or a feed-forward).
    WithoutKvHeadsAndFeedForward,
    /// As `attention.recurrent_layers` lists, else all but every nth (`full_attention_interval`, with this default).
    AllButEvery(u64),
}

/// What a recurrent layer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing: there are no recurrent layers.
    None,
    /// Mamba 1.
    Mamba1,
    /// Mamba 2.
    Mamba2,
    /// Mamba 2 beside attention, in every layer.
    Mamba2BesideAttention,
    /// Gated DeltaNet.
    GatedDeltaNet,
    /// Kimi delta attention.
    KimiDelta,
    /// Lightning attention.
    Lightning,
    /// RWKV 6.
    Rwkv6,
    /// RWKV 7.
    Rwkv7,
    /// A short convolution.
    ShortConv,
}

/// How attention layers attend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attending {
    /// Heads with keys and values of their own; latent attention where the tensors and `key_length_mla` say so.
    ByTensors,
    /// Compressed tokens (DeepSeek V4).
    Compressed,
}

/// Which layers have an indexer and so a cache of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IndexerRule {
    /// None.
    Never,
    /// Every attending layer.
    Always,
    /// Those after the leading dense ones, with one key head (MiniMax M3).
    AfterDense,
    /// As `attention.indexer.types` lists, else all.
    ListedElseAll,
    /// As `attention.indexer.types` lists, else none.
    ListedElseNone,
    /// As listed; else all below a training context of 2^20, and the pattern of GLM-5.2 from there on.
    Glm,
}

/// Whose keys and values layers keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheRule {
    /// Their own.
    Own,
    /// Nobody's: the model sees its whole input at once.
    None,
    /// The first layers' (a fixed number of them keep a cache), the rest read theirs (Gemma 3n).
    First(u64),
    /// All but the last `attention.shared_kv_layers` (Gemma 4).
    AllButShared,
    /// Those that `attention.kv_source_map` names.
    SourceMap,
}

/// How layers of the computation map to layers in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeats {
    /// One to one.
    Once,
    /// All layers again, `num_loops` times in all (Nanbeige).
    Loops,
    /// A low and a high stack that take turns (HRM).
    TwoStacks,
    /// One layer more, a router with one head and no weights in a layer (Granite switch).
    Router,
}

/// A row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arch {
    /// `general.architecture`.
    pub(super) name: &'static str,
    pub(super) window: WindowRule,
    pub(super) recurrent: RecurrentRule,
    pub(super) state: State,
    pub(super) attending: Attending,
    pub(super) indexer: IndexerRule,
    pub(super) cache: CacheRule,
    pub(super) repeats: Repeats,
    /// Attention is bidirectional whatever the file says.
    pub(super) bidirectional: bool,
    /// Without an output matrix the embedding is used again.
    pub(super) tied_head: bool,
}

const PLAIN: Arch = Arch {
    name: "",
    window: WindowRule::Never,
    recurrent: RecurrentRule::Never,
    state: State::None,
    attending: Attending::ByTensors,
    indexer: IndexerRule::Never,
    cache: CacheRule::Own,
    repeats: Repeats::Once,
    bidirectional: false,
    tied_head: true,
};

/// Attention in every layer, all keys and values cached.
const fn plain(name: &'static str) -> Arch {
    Arch { name, ..PLAIN }
}

/// An encoder that keeps nothing.
const fn encoder(name: &'static str) -> Arch {
    Arch { name, cache: CacheRule::None, tied_head: false, ..PLAIN }
}

/// A model that fills in a whole text by and by and keeps nothing.
const fn diffusion(name: &'static str) -> Arch {
    Arch { name, cache: CacheRule::None, bidirectional: true, ..PLAIN }
}

/// Windows but on every `period`th layer; without `attention.sliding_window` there are none.
const fn optional(name: &'static str, period: u64, full_first: bool) -> Arch {
    let window =
        WindowRule::Every { period, full_first, default: None, fixed: None, only_layers: None, kind: WindowKind::Sliding };
    Arch { name, window, ..PLAIN }
}

/// Windows but on every `period`th layer; of this length unless the file says otherwise, 0 when it must.
const fn windowed(name: &'static str, period: u64, full_first: bool, default: u64) -> Arch {
    let window = WindowRule::Every {
        period,
        full_first,
        default: Some(default),
        fixed: None,
        only_layers: None,
        kind: WindowKind::Sliding,
    };
    Arch { name, window, ..PLAIN }
}

/// Windows on the layers that the file lists.
const fn listed(name: &'static str) -> Arch {
    Arch { name, window: WindowRule::Listed, ..PLAIN }
}

/// Recurrent layers where there are no key-value heads.
const fn hybrid(name: &'static str, state: State) -> Arch {
    Arch { name, recurrent: RecurrentRule::WithoutKvHeads, state, ..PLAIN }
}

/// Gated DeltaNet but on every fourth layer.
const fn delta_net(name: &'static str) -> Arch {
    Arch { name, recurrent: RecurrentRule::AllButEvery(4), state: State::GatedDeltaNet, ..PLAIN }
}

/// Recurrent layers only.
const fn recurrent(name: &'static str, state: State) -> Arch {
    Arch { name, recurrent: RecurrentRule::Always, state, ..PLAIN }
}

const fn symmetric(name: &'static str, period: u64, full_first: bool, default: Option<u64>) -> Arch {
    let window = WindowRule::Every { period, full_first, default, fixed: None, only_layers: None, kind: WindowKind::Symmetric };
    Arch { window, ..encoder(name) }
}

/// The rows, by name.
pub(super) static ALL: &[Arch] = &[
    // Phi 3's window is switched off in the engine (`phi3.cpp`): its row is a plain one.
    plain("apertus"),
    plain("arcee"),
    plain("arctic"),
    plain("baichuan"),
    plain("bailingmoe"),
    plain("bailingmoe2"),
    plain("bitnet"),
    plain("bloom"),
    plain("chameleon"),
    plain("chatglm"),
    plain("codeshell"),
    plain("cogvlm"),
    plain("command-r"),
    plain("dbrx"),
    plain("deci"),
    plain("deepseek"),
    plain("deepseek2"),
    plain("deepseek2-ocr"),
    plain("dots1"),
    plain("eagle3"),
    plain("ernie4_5"),
    plain("ernie4_5-moe"),
    plain("exaone"),
    plain("falcon"),
    plain("gemma"),
    plain("glm4"),
    plain("glm4moe"),
    plain("gpt2"),
    plain("gptj"),
    plain("gptneox"),
    plain("granite"),
    plain("granitemoe"),
    plain("grok"),
    plain("grovemoe"),
    plain("hunyuan-dense"),
    plain("hunyuan-moe"),
    plain("hunyuan_vl"),
    plain("hy_v3"),
    plain("internlm2"),
    plain("jais"),
    plain("jais2"),
    plain("k2-horizon"),
    plain("llama"),
    plain("llama-embed"),
    plain("maincoder"),
    plain("minicpm"),
    plain("minicpm3"),
    plain("minimax-m2"),
    plain("mistral3"),
    plain("mistral4"),
    plain("mpt"),
    plain("nemotron"),
    plain("olmo"),
    plain("olmoe"),
    plain("openelm"),
    plain("orion"),
    plain("paddleocr"),
    plain("pangu-embedded"),
    plain("phi2"),
    plain("phi3"),
    plain("phimoe"),
    plain("plamo"),
    plain("plm"),
    plain("pockettts"),
    plain("qwen"),
    plain("qwen2"),
    plain("qwen2moe"),
    plain("qwen2vl"),
    plain("qwen3"),
    plain("qwen3moe"),
    plain("qwen3tts"),
    plain("qwen3vl"),
    plain("qwen3vlmoe"),
    plain("refact"),
    plain("seed_oss"),
    plain("sensenova_u1"),
    plain("smollm3"),
    plain("stablelm"),
    plain("starcoder"),
    plain("starcoder2"),
    plain("t5"),
    plain("talkie"),
    plain("vllm-decision2"),
    plain("xverse"),
    Arch { tied_head: false, ..plain("t5encoder") },
    Arch { repeats: Repeats::Loops, ..plain("nanbeige") },
    Arch { repeats: Repeats::TwoStacks, ..plain("hrm_text") },
    Arch { repeats: Repeats::Router, ..plain("graniteswitch") },
    // Encoders, and models that fill in text: no cache.
    encoder("bert"),
    encoder("eurobert"),
    encoder("jina-bert-v2"),
    encoder("jina-bert-v3"),
    encoder("neo-bert"),
    encoder("nomic-bert"),
    encoder("nomic-bert-moe"),
    encoder("wavtokenizer-dec"),
    symmetric("modern-bert", 3, true, None),
    Arch { bidirectional: true, ..symmetric("gemma-embedding", 6, false, Some(0)) },
    Arch { bidirectional: true, ..symmetric("gemma-embedding2", 6, false, Some(0)) },
    diffusion("dream"),
    diffusion("llada"),
    diffusion("llada-moe"),
    diffusion("rnd1"),
    // Windows.
    optional("afmoe", 4, false),
    optional("gemma3", 6, false),
    optional("laguna", 4, true),
    optional("mellum", 4, false),
    optional("olmo2", 4, false),
    optional("plamo3", 8, false),
    windowed("cohere2", 4, false, 0),
    windowed("cohere2moe", 4, true, 0),
    windowed("exaone-moe", 4, false, 128),
    windowed("gemma2", 2, false, 4096),
    windowed("gpt-oss", 2, false, 0),
    windowed("limite", 4, false, 0),
    windowed("muse-glimmer", 4, false, 0),
    Arch { cache: CacheRule::First(20), ..windowed("gemma3n", 5, false, 0) },
    Arch {
        window: WindowRule::Every {
            period: 4,
            full_first: false,
            default: Some(4096),
            fixed: None,
            only_layers: Some(64),
            kind: WindowKind::Sliding,
        },
        ..plain("exaone4")
    },
    Arch {
        window: WindowRule::Every {
            period: 4,
            full_first: true,
            default: None,
            fixed: Some(4096),
            only_layers: None,
            kind: WindowKind::Sliding,
        },
        ..plain("smallthinker")
    },
    Arch {
        window: WindowRule::Every {
            period: 4,
            full_first: false,
            default: Some(8192),
            fixed: Some(8192),
            only_layers: None,
            kind: WindowKind::Chunked,
        },
        ..plain("llama4")
    },
    listed("beam"),
    listed("flint"),
    listed("granite_swa"),
    listed("kolibri1"),
    listed("maion-coder"),
    listed("maple"),
    listed("mimo2"),
    listed("muse-spark"),
    listed("spark2_5"),
    listed("step35"),
    listed("dflash"),
    Arch { cache: CacheRule::AllButShared, ..listed("gemma4") },
    Arch { cache: CacheRule::None, ..listed("gemma4-assistant") },
    Arch { indexer: IndexerRule::ListedElseNone, ..listed("dots3note") },
    // Selectors of sparse attention.
    Arch { indexer: IndexerRule::Always, ..plain("deepseek32") },
    Arch { indexer: IndexerRule::Glm, ..plain("glm-dsa") },
    Arch { indexer: IndexerRule::ListedElseNone, ..plain("hy_v4") },
    Arch { indexer: IndexerRule::AfterDense, ..plain("minimax-m3") },
    Arch { indexer: IndexerRule::ListedElseAll, cache: CacheRule::SourceMap, ..plain("mistral-large4") },
    Arch { attending: Attending::Compressed, indexer: IndexerRule::Always, ..plain("deepseek4") },
    // Recurrent and hybrid models.
    recurrent("mamba", State::Mamba1),
    recurrent("mamba2", State::Mamba2),
    recurrent("rwkv6", State::Rwkv6),
    recurrent("rwkv6qwen2", State::Rwkv6),
    recurrent("rwkv7", State::Rwkv7),
    recurrent("arwkv7", State::Rwkv7),
    Arch { recurrent: RecurrentRule::Always, state: State::Mamba2BesideAttention, ..plain("falcon-h1") },
    hybrid("jamba", State::Mamba1),
    hybrid("plamo2", State::Mamba2),
    hybrid("granitehybrid", State::Mamba2),
    Arch { recurrent: RecurrentRule::WithoutKvHeadsAndFeedForward, ..hybrid("nemotron_h", State::Mamba2) },
    Arch { recurrent: RecurrentRule::WithoutKvHeadsAndFeedForward, ..hybrid("nemotron_h_moe", State::Mamba2) },
    Arch { window: WindowRule::Attending, ..hybrid("lfm2", State::ShortConv) },
    hybrid("lfm2moe", State::ShortConv),
    Arch { window: WindowRule::Listed, ..hybrid("lfm3", State::ShortConv) },
    hybrid("kimi-linear", State::KimiDelta),
    hybrid("kimi-k3", State::KimiDelta),
    hybrid("bailingmoe3", State::KimiDelta),
    Arch { indexer: IndexerRule::ListedElseAll, ..hybrid("glm5-next", State::KimiDelta) },
    delta_net("qwen3next"),
    delta_net("qwen35"),
    delta_net("qwen35moe"),
    Arch { cache: CacheRule::None, ..delta_net("clef") },
    Arch { indexer: IndexerRule::Always, ..delta_net("qwen4exp") },
    Arch { recurrent: RecurrentRule::AllButEvery(8), state: State::Lightning, ..plain("minimax-01") },
];

/// The row with this name.
pub(super) fn find(name: &str) -> Option<&'static Arch> {
    ALL.iter().find(|arch| arch.name == name)
}

/// The row that stands in for an unknown architecture.
pub(super) static GENERIC: Arch = PLAIN;

#[cfg(test)]
mod tests {
    use super::{ALL, find};

    #[test]
    fn every_name_has_one_row() {
        for arch in ALL {
            assert_eq!(ALL.iter().filter(|other| other.name == arch.name).count(), 1, "{}", arch.name);
            assert!(find(arch.name).is_some_and(|found| core::ptr::eq(found, arch)));
        }
    }
}
