//! The combinators that rows are made of: dimensions, windows, where experts sit, and the assembly of a decoder.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::format::StorageFormat;
use plimsoll_math::spec::{
    Attention, AttentionBias, Dense, Embedding, FeedForward, Head, Layer, LayerOperations, LmHead, Mixer, ModelSpec, Moe, Norm,
    QkNorm, Weight, Window,
};
use plimsoll_math::tensor::{Component, Counts, Shape};

use super::reader::{HeadKind, Reader};
use crate::error::IngestError;

/// Spellings of the hidden size.
pub const D_MODEL: &[&str] = &["hidden_size", "n_embd", "d_model", "model_dim"];
/// Spellings of the number of layers.
pub const N_LAYERS: &[&str] = &["num_hidden_layers", "n_layer", "num_layers", "n_layers"];
/// Spellings of the number of query heads.
pub const N_HEADS: &[&str] = &["num_attention_heads", "n_head", "n_heads", "num_heads"];
/// Spellings of the number of key-value heads.
pub const N_KV_HEADS: &[&str] = &["num_key_value_heads", "n_head_kv", "num_kv_heads", "n_kv_heads"];
/// Spellings of the head dimension.
pub const HEAD_DIM: &[&str] = &["head_dim", "attention_head_dim"];
/// Spellings of the feed-forward's width.
pub const D_FF: &[&str] = &["intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff", "ff_dim"];
/// Spellings of the vocabulary's size.
pub const N_VOCAB: &[&str] = &["vocab_size", "n_vocab", "padded_vocab_size"];
/// Spellings of the trained context length.
pub const MAX_CONTEXT: &[&str] =
    &["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length", "model_max_length"];
/// Spellings of the number of routed experts.
pub const N_EXPERTS: &[&str] = &["num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts", "num_routed_experts"];
/// Spellings of the number of routed experts a token passes.
pub const TOP_K: &[&str] = &[
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "moe_top_k",
    "moe_router_topk",
    "num_experts_per_topk",
];

/// The sizes that nearly every decoder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Hidden elements.
    pub d_model: u64,
    /// Layers.
    pub n_layers: u64,
    /// Vocabulary.
    pub n_vocab: u64,
    /// Query heads.
    pub n_heads: u64,
    /// Key-value heads.
    pub n_kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Feed-forward elements.
    pub d_ff: u64,
    /// Trained context length; 0 when the config does not say.
    pub max_context: u64,
}

impl Dims {
    /// Reads all of them: key-value heads default to query heads, the head dimension to `d_model / n_heads`.
    #[must_use]
    pub fn read(r: &Reader<'_>) -> Self {
        Self { d_ff: r.need(D_FF), ..Self::without_ff(r) }
    }
    /// Reads all of them; the feed-forward is four times as wide as the hidden state unless the config says.
    #[must_use]
    pub fn read_times_four(r: &Reader<'_>) -> Self {
        let dims = Self::without_ff(r);
        let d_ff = r.opt_below(D_FF, r.limits().width).unwrap_or_else(|| dims.d_model.saturating_mul(4));
        Self { d_ff, ..dims }
    }
    /// Reads all but the feed-forward's width, which some families compute.
    #[must_use]
    pub fn without_ff(r: &Reader<'_>) -> Self {
        let limits = r.limits();
        let d_model = r.need(D_MODEL);
        let n_heads = r.need_below(N_HEADS, limits.heads);
        let n_kv_heads = r.opt_below(N_KV_HEADS, limits.heads).unwrap_or(n_heads);
        if n_heads > 0 && (n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads)) {
            r.invalid("num_key_value_heads", n_kv_heads, format!("a divisor of {n_heads} query heads"));
        }
        let head_dim = match r.opt_below(HEAD_DIM, limits.width) {
            Some(0) => {
                r.invalid(r.config.named(HEAD_DIM), 0, "at least 1");
                0
            }
            Some(explicit) => explicit,
            None => head_dim(r, d_model, n_heads),
        };
        Self {
            d_model,
            n_layers: r.need_below(N_LAYERS, limits.layers),
            n_vocab: r.need_below(N_VOCAB, limits.vocab),
            n_heads,
            n_kv_heads,
            head_dim,
            d_ff: 0,
            max_context: r.opt(MAX_CONTEXT).unwrap_or(0),
        }
    }
    /// Plain attention with these heads.
    #[must_use]
    pub const fn attention(&self) -> Attention {
        Attention::new(self.n_heads, self.n_kv_heads, self.head_dim)
    }
    /// Indices of the layers.
    #[must_use]
    pub const fn layers(&self) -> core::ops::Range<u64> {
        0..self.n_layers
    }
}

/// The head dimension where the config says none: the hidden state's share, rounded down as engines and model classes
/// do, with a note where it does not divide.
#[must_use]
pub fn head_dim(r: &Reader<'_>, d_model: u64, n_heads: u64) -> u64 {
    let Some(share) = d_model.checked_div(n_heads) else { return 0 };
    if share == 0 {
        r.invalid(r.config.named(N_HEADS), n_heads, format!("at most the hidden size, {d_model}"));
    } else if !d_model.is_multiple_of(n_heads) {
        r.note(format!(
            "{}.head_dim: missing, and {n_heads} heads do not divide the hidden size {d_model}; {share} is taken, rounded down",
            r.config.path()
        ));
    }
    share
}

/// A norm without bias.
#[must_use]
pub fn norm(name: &str, width: u64) -> Norm {
    Norm { name: name.to_owned(), width, bias: false }
}
/// A norm with bias.
#[must_use]
pub fn layer_norm(name: &str, width: u64) -> Norm {
    Norm { name: name.to_owned(), width, bias: true }
}
/// Norms before attention and before the feed-forward.
#[must_use]
pub fn pre_norms(d_model: u64, bias: bool) -> Vec<Norm> {
    ["attn_norm", "ffn_norm"].map(|name| Norm { name: name.to_owned(), width: d_model, bias }).to_vec()
}
/// Norms after attention and after the feed-forward.
#[must_use]
pub fn post_norms(d_model: u64) -> Vec<Norm> {
    ["post_attention_norm", "post_ffw_norm"].map(|name| norm(name, d_model)).to_vec()
}
/// Norms on both sides of both halves.
#[must_use]
pub fn sandwich_norms(d_model: u64) -> Vec<Norm> {
    ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"].map(|name| norm(name, d_model)).to_vec()
}
/// One norm, for layers that run both halves beside each other.
#[must_use]
pub fn one_norm(d_model: u64, bias: bool) -> Vec<Norm> {
    vec![Norm { name: "attn_norm".to_owned(), width: d_model, bias }]
}

/// `attention_bias` for queries, keys, values and the output.
#[must_use]
pub fn bias_on_all(r: &Reader<'_>, otherwise: bool) -> AttentionBias {
    if r.flag(&["attention_bias"], otherwise) { AttentionBias::ALL } else { AttentionBias::NONE }
}
/// `attention_bias` for queries, keys and values.
#[must_use]
pub fn bias_on_qkv(r: &Reader<'_>, otherwise: bool) -> AttentionBias {
    if r.flag(&["attention_bias"], otherwise) { AttentionBias::QKV } else { AttentionBias::NONE }
}

/// Norms on queries and keys, per head.
#[must_use]
pub const fn qk_norm_per_head(head_dim: u64) -> QkNorm {
    QkNorm { q: [head_dim, 1], k: [head_dim, 1], bias: false }
}
/// Norms over the whole of queries and keys.
#[must_use]
pub const fn qk_norm_whole(dims: &Dims) -> QkNorm {
    QkNorm {
        q: [dims.n_heads.saturating_mul(dims.head_dim), 1],
        k: [dims.n_kv_heads.saturating_mul(dims.head_dim), 1],
        bias: false,
    }
}

/// A layer.
#[must_use]
pub const fn layer(mixer: Mixer, feed_forward: FeedForward, norms: Vec<Norm>) -> Layer {
    Layer {
        mixer,
        cross_attention: None,
        feed_forward,
        norms,
        extra: Vec::new(),
        hash_history: 0,
        told: LayerOperations::NONE,
        weights_of: None,
    }
}

/// A tensor that counts as a parameter.
#[must_use]
pub fn weight(name: &str, shape: Shape, component: Component) -> Weight {
    Weight { name: name.to_owned(), shape, component, counts: Counts::Parameter }
}

/// Gated experts without anything beside them.
#[must_use]
pub const fn experts(n_experts: u64, n_experts_per_token: u64, d_ff_expert: u64) -> Moe {
    Moe {
        n_experts,
        n_experts_per_token,
        d_ff_expert,
        gated: true,
        fused_gate_up: false,
        expert_bias: false,
        router_bias: false,
        correction_bias: None,
        n_router_rows: None,
        latent: None,
        shared: None,
        shared_component: Component::SharedExperts,
        shared_gate: false,
        beside: None,
        extra: Vec::new(),
    }
}
/// Number of routed experts and of those a token passes.
#[must_use]
pub fn expert_counts(r: &Reader<'_>) -> (u64, u64) {
    let limit = r.limits().experts;
    let n_experts = r.need_below(N_EXPERTS, limit);
    let top_k = r.need_below(TOP_K, limit);
    if n_experts > 0 && top_k > n_experts {
        r.invalid("num_experts_per_tok", top_k, format!("at most {n_experts} experts"));
    }
    (n_experts, top_k)
}
/// Shared experts as one feed-forward of `width`; none when it is 0.
#[must_use]
pub fn shared_experts(width: u64) -> Option<Dense> {
    (width > 0).then(|| Dense::gated(width))
}

/// One truth value per layer: true from layer `first` on.
#[must_use]
pub fn from_layer(n_layers: u64, first: u64) -> Vec<bool> {
    (0..n_layers).map(|index| index >= first).collect()
}
/// One truth value per layer: every `period`-th, counting `offset` as the first.
#[must_use]
pub fn every(n_layers: u64, period: u64, offset: u64) -> Vec<bool> {
    (0..n_layers).map(|index| period > 0 && index % period == offset % period).collect()
}
/// One truth value per layer: the listed ones.
#[must_use]
pub fn listed(n_layers: u64, indices: &[u64]) -> Vec<bool> {
    (0..n_layers).map(|index| indices.contains(&index)).collect()
}
/// Which layers have experts, by `first_k_dense_replace` and `moe_layer_freq` (a period, or a list of 0 and 1).
#[must_use]
pub fn moe_after_dense(r: &Reader<'_>, n_layers: u64) -> Vec<bool> {
    let first = r.opt(&["first_k_dense_replace", "num_dense_layers", "n_dense_layers"]).unwrap_or(0);
    match r.config.raw(&["moe_layer_freq"]) {
        Some((serde_json::Value::Array(_), _)) => per_layer(r, "moe_layer_freq", r.flags(&["moe_layer_freq"]), n_layers),
        _ => {
            let period = r.opt(&["moe_layer_freq"]).unwrap_or(1).max(1);
            (0..n_layers).map(|index| index >= first && index % period == 0).collect()
        }
    }
}
/// Which layers have experts, by `mlp_layer_types` (`dense` or `sparse`), else by the older keys of
/// [`moe_after_dense`].
#[must_use]
pub fn moe_by_types(r: &Reader<'_>, n_layers: u64) -> Vec<bool> {
    match r.texts(&["mlp_layer_types"]) {
        Some(types) => per_layer(r, "mlp_layer_types", Some(types), n_layers).into_iter().map(|kind| kind != "dense").collect(),
        None => moe_after_dense(r, n_layers),
    }
}
/// Which layers have experts, by `decoder_sparse_step` and `mlp_only_layers`.
#[must_use]
pub fn moe_by_sparse_step(r: &Reader<'_>, n_layers: u64) -> Vec<bool> {
    let step = r.opt(&["decoder_sparse_step"]).unwrap_or(1);
    let dense = r.list(&["mlp_only_layers"]).unwrap_or_default();
    (0..n_layers).map(|index| !dense.contains(&index) && step > 0 && (index + 1) % step == 0).collect()
}
/// The first `n_layers` items of a per-layer list; written down as an error when there are fewer.
#[must_use]
pub fn per_layer<T: Clone + Default>(r: &Reader<'_>, name: &str, list: Option<Vec<T>>, n_layers: u64) -> Vec<T> {
    let mut list = list.unwrap_or_default();
    let wanted = usize::try_from(n_layers).unwrap_or(usize::MAX);
    if list.len() < wanted {
        r.invalid(name, format!("{} items", list.len()), format!("one for each of {n_layers} layers"));
        list.clear();
    }
    list.resize(wanted.min(usize::try_from(r.limits().layers).unwrap_or(usize::MAX)), T::default());
    list
}
/// `layer_types`, one name per layer, if it is there.
#[must_use]
pub fn layer_types<'a>(r: &Reader<'a>, n_layers: u64) -> Option<Vec<&'a str>> {
    let types = r.texts(&["layer_types"])?;
    Some(per_layer(r, "layer_types", Some(types), n_layers))
}

/// How window layers alternate when the config holds no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alternation {
    /// Every layer has the window.
    All,
    /// Every `period`-th layer sees everything, the others have the window: the last of each group.
    FullLast {
        /// Length of a group.
        period: u64,
    },
    /// Every `period`-th layer sees everything, the others have the window: the first of each group.
    FullFirst {
        /// Length of a group.
        period: u64,
    },
}

/// The window of each layer: `layer_types` where it is there, else `otherwise`.
#[must_use]
pub fn windows(r: &Reader<'_>, n_layers: u64, tokens: Option<u64>, otherwise: Alternation) -> Vec<Window> {
    let Some(tokens) = tokens.filter(|tokens| *tokens > 0) else {
        // Still read, so that a list that is there is checked.
        let _ = layer_types(r, n_layers);
        return (0..n_layers).map(|_| Window::Full).collect();
    };
    let sliding = Window::Sliding { tokens };
    if let Some(types) = layer_types(r, n_layers) {
        return types
            .into_iter()
            .map(|kind| match kind {
                "sliding_attention" | "local_attention" | "local" => sliding,
                "chunked_attention" => Window::Chunked { tokens },
                _ => Window::Full,
            })
            .collect();
    }
    (0..n_layers)
        .map(|index| {
            let full = match otherwise {
                Alternation::All => false,
                Alternation::FullLast { period } => period > 0 && (index + 1) % period == 0,
                Alternation::FullFirst { period } => period > 0 && index % period == 0,
            };
            if full { Window::Full } else { sliding }
        })
        .collect()
}

/// The kind of rope scaling (`llama3`, `longrope`, `yarn` …), in the old and the new spelling.
#[must_use]
pub fn rope_type(r: &Reader<'_>) -> Option<alloc::string::String> {
    let rope = r.child(&["rope_scaling", "rope_parameters"])?;
    rope.text(&["rope_type", "type"]).map(ToString::to_string)
}
/// The factor tensors that llama.cpp's converter derives from the rope scaling: `llama3` frequencies, or the long and
/// short factors of `longrope`. `rope_dims` is the number of rotated elements.
#[must_use]
pub fn rope_factors(r: &Reader<'_>, rope_dims: u64) -> Vec<Weight> {
    let names: &[&str] = match rope_type(r).as_deref() {
        Some("llama3") => &["rope_freqs.weight"],
        Some("longrope" | "su") => &["rope_factors_long.weight", "rope_factors_short.weight"],
        _ => &[],
    };
    let derived = |name: &&str| Weight {
        name: (*name).to_owned(),
        shape: Shape::vector(rope_dims / 2),
        component: Component::Other,
        counts: Counts::Derived,
    };
    names.iter().map(derived).collect()
}
/// The number of rotated elements of a head: `partial_rotary_factor` of it.
#[must_use]
pub fn rotated(r: &Reader<'_>, head_dim: u64, otherwise: f64) -> u64 {
    let aliases = ["partial_rotary_factor", "rotary_pct", "rope_pct"];
    let nested = r.child(&["rope_parameters"]).and_then(|rope| rope.keep(rope.config.f64(&aliases)));
    let share = r.keep(r.config.f64(&aliases)).or(nested).unwrap_or(otherwise);
    // Truncated like Python's `int()`. A float prints without exponent, so its digits before the point are that.
    let product = format!("{}", as_f64(head_dim) * share);
    product.split('.').next().and_then(|digits| digits.parse().ok()).unwrap_or(0).min(head_dim)
}
fn as_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// `int(count * factor)` of Python.
#[must_use]
pub fn truncated(count: u64, factor: f64) -> Option<u64> {
    let exact = f64::from(u32::try_from(count).ok()?) * factor;
    // Rounded in decimal, so that no cast can lose anything; one too many is taken back.
    let rounded: u64 = format!("{exact:.0}").parse().ok()?;
    let back = f64::from(u32::try_from(rounded).ok()?);
    if back > exact { rounded.checked_sub(1) } else { Some(rounded) }
}

/// How the config says weights are stored: here, else in the document around; bfloat16, with a note, where neither
/// says. A name that no framework has is an error, since every size that follows would be guessed.
#[must_use]
pub fn weight_dtype(r: &Reader<'_>) -> StorageFormat {
    let keys = ["dtype", "torch_dtype"];
    let said = r.config.raw(&keys).or_else(|| r.root.raw(&keys));
    let silent = || {
        r.note(format!("{}.torch_dtype: missing; weights are taken to be bfloat16", r.config.path()));
        StorageFormat::Bf16
    };
    let Some((value, place)) = said else { return silent() };
    match value.as_str().map(|name| name.strip_prefix("torch.").unwrap_or(name)) {
        Some("bfloat16") => StorageFormat::Bf16,
        Some("float16" | "half") => StorageFormat::F16,
        Some("float32" | "float") => StorageFormat::F32,
        Some("float8_e4m3fn" | "fp8") => StorageFormat::F8E4M3,
        Some("float8_e5m2") => StorageFormat::F8E5M2,
        Some("auto") => silent(),
        _ => {
            let expected = "one of bfloat16, float16, float32, float8_e4m3fn, float8_e5m2, auto".to_owned();
            r.error(IngestError::Field { place, found: super::config::describe(value), expected });
            StorageFormat::Bf16
        }
    }
}

/// Whether the output matrix is the embedding; `otherwise` applies when neither config nor defaults say.
#[must_use]
pub fn tied(r: &Reader<'_>, otherwise: bool) -> bool {
    let said = r.flag(&["tie_word_embeddings", "tie_embeddings"], otherwise);
    r.tied.unwrap_or(said)
}

/// Number of classes of a classifier, as transformers counts them.
#[must_use]
pub fn n_labels(r: &Reader<'_>) -> u64 {
    let listed = match r.root.raw(&["id2label"]) {
        Some((serde_json::Value::Object(labels), _)) => u64::try_from(labels.len()).ok(),
        _ => None,
    };
    r.keep(r.root.u64(&["num_labels"])).or(listed).unwrap_or(2).min(r.limits().vocab)
}

/// A decoder whose layers are all alike.
#[must_use]
pub fn uniform(r: &Reader<'_>, dims: &Dims, mixer: Mixer, feed_forward: FeedForward, norms: Vec<Norm>) -> ModelSpec {
    let layer = layer(mixer, feed_forward, norms);
    decoder(r, dims, dims.layers().map(|_| layer.clone()).collect())
}

/// A decoder: embeddings, layers, a last norm without bias, and the head that the class names.
#[must_use]
pub fn decoder(r: &Reader<'_>, dims: &Dims, layers: Vec<Layer>) -> ModelSpec {
    let mut head = Head { norm: Some(norm("output_norm", dims.d_model)), ..Head::default() };
    head.lm_head = match r.head {
        HeadKind::LanguageModel if tied(r, false) => LmHead::Tied,
        HeadKind::LanguageModel => LmHead::Own { bias: false },
        HeadKind::Nothing | HeadKind::Classes | HeadKind::Answer => LmHead::None,
    };
    let classes = match r.head {
        HeadKind::LanguageModel | HeadKind::Nothing => None,
        HeadKind::Classes => Some((n_labels(r), r.class.ends_with("ForTokenClassification"))),
        HeadKind::Answer => Some((2, true)),
    };
    if let Some((rows, bias)) = classes {
        head.extra.push(weight("cls.output.weight", Shape::matrix(dims.d_model, rows), Component::Other));
        if bias {
            head.extra.push(weight("cls.output.bias", Shape::vector(rows), Component::Other));
        }
    }
    ModelSpec {
        name: r.name(),
        architecture: if r.class.is_empty() { r.family.name().to_owned() } else { r.class.clone() },
        llama_cpp_arch: r.family.llama_cpp.map(ToOwned::to_owned),
        d_model: dims.d_model,
        max_context: dims.max_context,
        weight_dtype: weight_dtype(r),
        embedding: Embedding { n_vocab: dims.n_vocab, ..Embedding::default() },
        layers,
        head,
        encoder: None,
        towers: Vec::new(),
        mtp: Vec::new(),
        mtp_is_left_out: false,
        causal: true,
        operations: plimsoll_math::spec::Operations::default(),
    }
}

/// Gives each layer's attention its window.
pub fn set_windows(spec: &mut ModelSpec, windows: Vec<Window>) {
    for (layer, window) in spec.layers.iter_mut().zip(windows) {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            attention.window = window;
        }
    }
}

/// A bias on the output matrix, also where the matrix is the embedding.
pub fn add_head_bias(spec: &mut ModelSpec) {
    match &mut spec.head.lm_head {
        LmHead::Own { bias } => *bias = true,
        LmHead::Tied => {
            let rows = spec.head.n_outputs.unwrap_or(spec.embedding.n_vocab);
            spec.head.extra.push(weight("output.bias", Shape::vector(rows), Component::LmHead));
        }
        LmHead::None => {}
    }
}

/// What joins a multi-token-prediction layer to the trunk when embedding and head are the trunk's.
pub fn nextn(d_model: u64) -> Vec<Weight> {
    vec![
        weight("nextn.eh_proj.weight", Shape::matrix(d_model.saturating_mul(2), d_model), Component::Other),
        weight("nextn.enorm.weight", Shape::vector(d_model), Component::Norms),
        weight("nextn.hnorm.weight", Shape::vector(d_model), Component::Norms),
        weight("nextn.shared_head_norm.weight", Shape::vector(d_model), Component::Norms),
    ]
}
