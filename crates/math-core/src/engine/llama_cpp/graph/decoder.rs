//! Graphs of decoders whose layers are attention and a feed-forward (`src/models/*.cpp`), one row of facts per
//! architecture for what the model's mechanisms do not say.

use alloc::vec::Vec;

use super::latent;
use super::op::Op;
use super::ops::Node;
use super::parts::{Activation, Attend, CacheInputs, NormKind, Parts, Routing};
use crate::error::MathError;
use crate::spec::{Attention, FeedForward, KvSource, Layer, LmHead, Mixer, ModelSpec, Moe, OutputGate, QkvLayout};
use crate::units::mul;

/// What an architecture's graph does where its mechanisms leave a choice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Names in GGUF files.
    pub(super) archs: &'static [&'static str],
    pub(super) norm: NormKind,
    pub(super) activation: Activation,
    /// Embeddings are scaled.
    pub(super) scales_embedding: bool,
    /// Queries are scaled before attention rather than inside it.
    pub(super) scales_queries: bool,
    /// Both halves are scaled before they join the residual.
    pub(super) scales_residual: bool,
    /// Logits are scaled.
    pub(super) scales_logits: bool,
    /// Attention scores go through a soft cap.
    pub(super) caps_scores: bool,
    /// Logits go through a soft cap.
    pub(super) caps_logits: bool,
    /// Both halves read the same norm and join the residual together.
    pub(super) parallel: bool,
    /// A layer's sum names the residual before the feed-forward's result: the former's memory is tried first.
    pub(super) residual_first: bool,
    /// Rows of logits are chosen after the last layer instead of inside it.
    pub(super) chooses_late: bool,
    /// Layers without rotary embedding: every so many, 0 for none.
    pub(super) no_rope_every: u64,
    /// Norms of queries and keys come after the rotary embedding and have no weights (Llama 4).
    pub(super) bare_qk_norm: bool,
    /// Positions of a token: 4 where the rotary embedding has sections for time and place.
    pub(super) positions_per_token: u64,
    /// Both norms follow their halves; nothing is normed before them.
    pub(super) norms_after: bool,
    /// The gate of shared experts is a SiLU divided by its input.
    pub(super) divides_gate: bool,
    /// How experts are chosen.
    pub(super) routing: Routing,
}

pub(super) const SOFTMAX: Routing =
    Routing { softmax_after: false, normed: true, scaled: false, choose_on_logits: false, weighted_first: false, groups: 0 };

pub(super) const PLAIN: Row = Row {
    archs: &[],
    norm: NormKind::Rms,
    activation: Activation::Single,
    scales_embedding: false,
    scales_queries: false,
    scales_residual: false,
    scales_logits: false,
    caps_scores: false,
    caps_logits: false,
    parallel: false,
    residual_first: false,
    chooses_late: false,
    no_rope_every: 0,
    bare_qk_norm: false,
    positions_per_token: 1,
    norms_after: false,
    divides_gate: false,
    routing: SOFTMAX,
};

const ROWS: &[Row] = &[
    Row {
        archs: &[
            "llama",
            "qwen2",
            "qwen3",
            "qwen3moe",
            "mistral3",
            "internlm2",
            "xverse",
            "dots1",
            "ernie4_5",
            "ernie4_5-moe",
            "hunyuan-moe",
            "hunyuan-dense",
            "seed_oss",
            "bailingmoe",
            "glm4",
            "pangu-embedded",
            "maincoder",
            "qwen",
            "chatglm",
            "nanbeige",
            "minimax-m2",
            "exaone",
            "deci",
            "mellum",
            "mimo2",
        ],
        ..PLAIN
    },
    Row { archs: &["olmo2", "exaone4"], norms_after: true, ..PLAIN },
    Row { archs: &["qwen2vl", "qwen3tts", "hunyuan_vl", "paddleocr"], positions_per_token: 4, ..PLAIN },
    Row { archs: &["deepseek", "olmoe"], routing: Routing { normed: false, ..SOFTMAX }, ..PLAIN },
    Row { archs: &["qwen2moe"], divides_gate: true, routing: Routing { normed: false, ..SOFTMAX }, ..PLAIN },
    Row { archs: &["arcee"], activation: Activation::Squared, ..PLAIN },
    Row { archs: &["gemma"], scales_embedding: true, scales_queries: true, ..PLAIN },
    Row { archs: &["nemotron", "jais2"], activation: Activation::Squared, norm: NormKind::Layer, ..PLAIN },
    Row { archs: &["minicpm"], scales_embedding: true, scales_residual: true, scales_logits: true, ..PLAIN },
    Row { archs: &["stablelm", "orion", "codeshell", "starcoder2"], norm: NormKind::Layer, ..PLAIN },
    Row { archs: &["smollm3"], no_rope_every: 4, ..PLAIN },
    Row { archs: &["phi3", "phimoe"], scales_queries: true, residual_first: true, ..PLAIN },
    Row { archs: &["gemma2"], scales_embedding: true, scales_queries: true, caps_scores: true, caps_logits: true, ..PLAIN },
    Row { archs: &["gemma3"], scales_embedding: true, scales_queries: true, ..PLAIN },
    Row { archs: &["gpt-oss"], chooses_late: true, routing: Routing { softmax_after: true, normed: false, ..SOFTMAX }, ..PLAIN },
    Row { archs: &["deepseek2"], routing: Routing { normed: false, ..SOFTMAX }, ..PLAIN },
    Row { archs: &["command-r"], norm: NormKind::Layer, parallel: true, scales_logits: true, ..PLAIN },
    Row { archs: &["glm4moe"], routing: Routing { scaled: true, ..SOFTMAX }, ..PLAIN },
    Row { archs: &["granite", "granitemoe"], scales_embedding: true, scales_residual: true, scales_logits: true, ..PLAIN },
    Row {
        archs: &["llama4"],
        no_rope_every: 4,
        bare_qk_norm: true,
        routing: Routing { normed: false, choose_on_logits: true, weighted_first: true, ..SOFTMAX },
        ..PLAIN
    },
];

impl Row {
    /// Whether a layer rotates queries and keys.
    pub(super) fn rotates(&self, index: usize) -> bool {
        let number = u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1);
        self.no_rope_every == 0 || !number.is_multiple_of(self.no_rope_every)
    }
}

/// How a layer's experts are chosen: those with a correction bias have their weights divided by the sum and scaled.
const fn routing(row: &Row, moe: &Moe) -> Routing {
    let corrected = moe.correction_bias.is_some();
    Routing { normed: row.routing.normed || corrected, scaled: row.routing.scaled || corrected, ..row.routing }
}

/// The row of an architecture, where its graph is known.
pub(super) fn row(arch: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.archs.contains(&arch))
}

/// The caches of a decoder: full-length, and for sliding-window layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caches {
    /// Cells of the window cache; `None` when there is one cache for all layers.
    pub(super) window_cells: Option<u64>,
    /// Widest row of values, of the full and of the window cache.
    pub(super) v_widths: [u64; 2],
    /// Sides of the matrices that rotate keys and values, of the full and of the window cache; 0 for none.
    pub(super) rotations: [[u64; 2]; 2],
}

/// Which layers have windows that the engine honours.
pub(super) type HasWindow<'a> = &'a dyn Fn(&Attention) -> bool;

/// Builds the whole graph; `false` when some layer is none of this file's.
pub(super) fn build(
    parts: &mut Parts,
    spec: &ModelSpec,
    row: &Row,
    caches: &Caches,
    window: HasWindow<'_>,
) -> Result<bool, MathError> {
    let mixes = |layer: &Layer| match &layer.mixer {
        Mixer::Attention(attention) => {
            attention.gate == OutputGate::None
                && attention.indexer.is_none()
                && matches!(attention.kv_source, KvSource::Own)
                && attention.layout != QkvLayout::QueryOnly
                && attention.layout != QkvLayout::ValueIsKey
        }
        Mixer::Mla(mla) => {
            !mla.expanded && mla.gate == OutputGate::None && mla.indexer.is_none() && !mla.bias && mla.extra.is_empty()
        }
        _ => false,
    };
    let feeds = |layer: &Layer| match &layer.feed_forward {
        FeedForward::Dense(_) => true,
        FeedForward::Moe(moe) => moe.beside.is_none() && moe.latent.is_none(),
        FeedForward::ChannelMix { .. } | FeedForward::None => false,
    };
    let fits = |layer: &Layer| {
        mixes(layer)
            && feeds(layer)
            && (row.parallel
                || row.norms_after
                || has_norm(layer, "ffn_norm").is_some()
                || has_norm(layer, "post_attention_norm").is_some())
            && layer.cross_attention.is_none()
            && layer.extra.is_empty()
    };
    if !spec.layers.iter().all(fits) || spec.encoder.is_some() || spec.embedding.n_positions > 0 {
        return Ok(false);
    }
    let mut current = parts.embed(spec.d_model, spec.embedding.n_vocab)?;
    if row.scales_embedding {
        current = parts.scale_embedded(current)?;
    }
    let positions = parts.positions(row.positions_per_token)?;
    let [full_rotation, window_rotation] = caches.rotations;
    let [full_width, window_width] = caches.v_widths;
    // A cache of latents alone keeps no values.
    let keys_only = spec.layers.iter().all(|layer| matches!(&layer.mixer, Mixer::Mla(mla) if !mla.expanded));
    let values = if keys_only { None } else { Some(full_width) };
    let full = parts.cache_inputs(parts.setting.cells, values, full_rotation)?;
    let sliding = match caches.window_cells {
        Some(cells) => Some(parts.cache_inputs(cells, Some(window_width), window_rotation)?),
        None => None,
    };
    let factors = spec.embedding.extra.iter().find(|weight| weight.name.starts_with("rope_f"));
    let factors = match factors {
        Some(weight) => Some(parts.weight(&[weight.shape.row()])?),
        None => None,
    };
    let attention_scale =
        if row.bare_qk_norm { Some(parts.graph.input(Parts::F32, [1, 1, parts.setting.tokens, 1])?) } else { None };
    let rows = parts.output_rows()?;
    let late = row.chooses_late && parts.setting.rows_after_layers;
    let last = spec.layers.len().saturating_sub(1);
    let steps = parts.layers(spec.layers.iter(), |index| !row.rotates(index));
    let mut trunk = Trunk { row, positions, factors, attention_scale, rows, full, sliding, caches: *caches, window };
    for step in &steps {
        let Some(layer) = spec.layers.get(step.layer) else { continue };
        parts.begin_layer(step);
        let chooses = step.layer == last && !late;
        current = trunk.layer(parts, layer, spec.d_model, step.layer, current, chooses)?;
    }
    if row.chooses_late {
        // The hidden state of all tokens is handed out as well (`t_h_nextn`).
        parts.graph.output(current)?;
        if late {
            current = parts.graph.get_rows(current, rows)?;
        }
    }
    let norm_bias = spec.head.norm.as_ref().is_some_and(|norm| norm.bias);
    current = parts.norm(current, row.norm, norm_bias, false)?;
    parts.graph.output(current)?;
    let outputs = spec.head.n_outputs.unwrap_or(spec.embedding.n_vocab);
    current = parts.linear_bias(current, outputs, spec.head.lm_head == LmHead::Own { bias: true })?;
    if row.scales_logits {
        current = parts.scale(current)?;
    }
    if row.caps_logits {
        current = parts.soft_cap(current)?;
    }
    parts.graph.output(current)?;
    parts.graph.expand(current)?;
    Ok(true)
}

/// Whether queries and keys are normed over all heads together, before they are split.
const fn normed_flat(attention: &Attention) -> bool {
    let [width, rows] = attention.qk_norm.q;
    attention.n_heads > 1 && rows <= 1 && width > attention.k_head_dim
}

/// What all layers read.
pub(super) struct Trunk<'a> {
    pub(super) row: &'a Row,
    pub(super) positions: Node,
    pub(super) factors: Option<Node>,
    pub(super) attention_scale: Option<Node>,
    pub(super) rows: Node,
    pub(super) full: CacheInputs,
    pub(super) sliding: Option<CacheInputs>,
    pub(super) caches: Caches,
    pub(super) window: HasWindow<'a>,
}

pub(super) fn has_norm(layer: &Layer, name: &str) -> Option<bool> {
    layer.norms.iter().find(|norm| norm.name == name).map(|norm| norm.bias)
}

impl Trunk<'_> {
    fn layer(
        &mut self,
        parts: &mut Parts,
        layer: &Layer,
        d_model: u64,
        index: usize,
        input: Node,
        chooses: bool,
    ) -> Result<Node, MathError> {
        let row = self.row;
        let mut normed = input;
        if let Some(bias) = has_norm(layer, "attn_norm") {
            normed = parts.norm(input, row.norm, bias, true)?;
        }
        let mut mixed = match &layer.mixer {
            Mixer::Attention(attention) => self.attention(parts, attention, d_model, index, normed)?,
            Mixer::Mla(mla) => latent::attention(parts, mla, &self.full, Some(self.positions), d_model, normed)?,
            _ => return Ok(input),
        };
        let mut residual = input;
        if chooses {
            mixed = parts.graph.get_rows(mixed, self.rows)?;
            residual = parts.graph.get_rows(residual, self.rows)?;
        }
        if row.parallel {
            if chooses {
                normed = parts.graph.get_rows(normed, self.rows)?;
            }
            let fed = self.feed_forward(parts, layer, d_model, normed)?;
            let with_residual = parts.graph.sum(fed, residual)?;
            return parts.graph.sum(with_residual, mixed);
        }
        let sandwich = row.norms_after || has_norm(layer, "ffn_norm").is_some();
        if sandwich && let Some(bias) = has_norm(layer, "post_attention_norm") {
            mixed = parts.norm(mixed, row.norm, bias, true)?;
        }
        if row.scales_residual {
            mixed = parts.scale(mixed)?;
        }
        let joined = parts.graph.sum(mixed, residual)?;
        // A layer without `ffn_norm` names the norm before its feed-forward `post_attention_norm`.
        let before =
            has_norm(layer, "ffn_norm").or_else(|| if row.norms_after { None } else { has_norm(layer, "post_attention_norm") });
        let normed = match before {
            Some(bias) => parts.norm(joined, row.norm, bias, true)?,
            None => joined,
        };
        let mut fed = self.feed_forward(parts, layer, d_model, normed)?;
        if let Some(bias) = has_norm(layer, "post_ffw_norm") {
            fed = parts.norm(fed, row.norm, bias, false)?;
        }
        if row.scales_residual {
            fed = parts.scale(fed)?;
        }
        let (first, second) = if row.residual_first { (joined, fed) } else { (fed, joined) };
        parts.graph.sum(first, second)
    }

    pub(super) fn feed_forward(&self, parts: &mut Parts, layer: &Layer, d_model: u64, x: Node) -> Result<Node, MathError> {
        match &layer.feed_forward {
            FeedForward::Dense(dense) => parts.feed_forward(x, dense, d_model, self.row.activation),
            FeedForward::Moe(moe) => {
                let routed = parts.experts(x, moe, routing(self.row, moe), self.row.activation)?;
                match &moe.shared {
                    Some(shared) => {
                        let mut shared = parts.feed_forward(x, shared, d_model, self.row.activation)?;
                        if moe.shared_gate {
                            let logit = parts.linear(x, 1)?;
                            let mut gate = parts.unary(logit)?;
                            if self.row.divides_gate {
                                // A sigmoid, written as SiLU over its own input (`src/models/qwen2moe.cpp`).
                                gate = parts.graph.apply(Op::Div, gate, &[logit])?;
                            }
                            shared = parts.graph.product(shared, gate)?;
                        }
                        parts.graph.sum(routed, shared)
                    }
                    None => Ok(routed),
                }
            }
            FeedForward::ChannelMix { .. } | FeedForward::None => Ok(x),
        }
    }

    pub(super) fn attention(
        &self,
        parts: &mut Parts,
        attention: &Attention,
        d_model: u64,
        index: usize,
        x: Node,
    ) -> Result<Node, MathError> {
        let row = self.row;
        let tokens = parts.setting.tokens;
        let [full, mut k, v] = self.queries_keys_values(parts, attention, x, tokens)?;
        let (mut q, gate) = match attention.gate {
            OutputGate::InQuery => {
                let [width, heads, ..] = parts.graph.dims(full)?;
                let [_, s1, s2, _] = parts.graph.strides(full)?;
                let half = [width / 2, heads, tokens];
                (parts.graph.view_3d(full, half, s1, s2)?, Some(parts.graph.view_3d(full, half, s1, s2)?))
            }
            OutputGate::None | OutputGate::Own { .. } => (full, None),
        };
        let [q_norm, _] = attention.qk_norm.q;
        if q_norm > 0 && !normed_flat(attention) {
            q = parts.norm(q, row.norm, attention.qk_norm.bias, true)?;
            k = parts.norm(k, row.norm, attention.qk_norm.bias, true)?;
        }
        if row.rotates(index) {
            q = parts.graph.rope(q, self.positions, self.factors)?;
            k = parts.graph.rope(k, self.positions, self.factors)?;
            if row.bare_qk_norm {
                q = parts.bare_norm(q, NormKind::Rms)?;
                k = parts.bare_norm(k, NormKind::Rms)?;
            }
        } else if let Some(scale) = self.attention_scale {
            q = parts.graph.product(q, scale)?;
        }
        if row.scales_queries {
            q = parts.scale(q)?;
        }
        let sinks = if attention.sinks { Some(parts.weight(&[attention.n_heads])?) } else { None };
        let (inputs, v_width) = match (&self.sliding, (self.window)(attention)) {
            (Some(sliding), true) => (sliding, self.caches.v_widths[1]),
            _ => (&self.full, self.caches.v_widths[0]),
        };
        let attend = Attend {
            q,
            k,
            v,
            n_kv_heads: attention.n_kv_heads,
            k_head: attention.k_head_dim,
            v_head: attention.v_head_dim,
            v_width,
            sinks,
            soft_cap: row.caps_scores,
        };
        let mut attended = parts.attend(inputs, &attend)?;
        if let Some(gate) = gate {
            let dims = parts.graph.dims(attended)?;
            let flat = parts.graph.cont(gate, dims)?;
            let gate = parts.unary(flat)?;
            attended = parts.graph.product(attended, gate)?;
        }
        parts.linear_bias(attended, d_model, attention.bias.o)
    }

    /// Projections (`build_qkv`), each `[head, heads, tokens]`.
    fn queries_keys_values(
        &self,
        parts: &mut Parts,
        attention: &Attention,
        x: Node,
        tokens: u64,
    ) -> Result<[Node; 3], MathError> {
        let q_head = if attention.gate == OutputGate::InQuery { mul(2, attention.k_head_dim)? } else { attention.k_head_dim };
        let shapes = [
            (q_head, attention.n_heads, attention.bias.q),
            (attention.k_head_dim, attention.n_kv_heads, attention.bias.k),
            (attention.v_head_dim, attention.n_kv_heads, attention.bias.v),
        ];
        let mut out: Vec<Node> = Vec::new();
        if attention.layout == QkvLayout::Fused {
            let mut width = 0_u64;
            for (head, heads, _) in shapes {
                width = width.saturating_add(mul(head, heads)?);
            }
            let fused = parts.linear_bias(x, width, attention.bias.q)?;
            let row = mul(4, width)?;
            for (head, heads, _) in shapes {
                out.push(parts.graph.view_3d(fused, [head, heads, tokens], mul(4, head)?, row)?);
            }
        } else {
            for (head, heads, bias) in shapes {
                let mut flat = parts.linear_bias(x, mul(head, heads)?, bias)?;
                if normed_flat(attention) && out.len() < 2 {
                    flat = parts.norm(flat, self.row.norm, attention.qk_norm.bias, true)?;
                }
                out.push(parts.graph.reshape(flat, [head, heads, tokens, 1])?);
            }
        }
        match out.as_slice() {
            [q, k, v] => Ok([*q, *k, *v]),
            _ => Err(MathError::Overflow { quantity: "projections" }),
        }
    }
}
