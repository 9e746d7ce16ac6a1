//! One row of facts per architecture for what a model's mechanisms do not say about its graph (`src/models/*.cpp`).

pub(super) use super::choices::{Beside, BuiltBy, Caps, Gate, QkNorming, Scaled, Together};
use super::experts::{Activation, Asks, Choice, Routing};
use super::parts::NormKind;
use crate::spec::{Moe, Operations};

/// What an architecture's graph does where its mechanisms leave a choice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Names in GGUF files.
    pub(super) archs: &'static [&'static str],
    /// What builds it.
    pub(super) built_by: BuiltBy,
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
    /// When logits go through a soft cap.
    pub(super) caps_logits: Caps,
    /// Both halves read the same input and join the residual together.
    pub(super) parallel: Option<Together>,
    /// Norms follow the sums of each half with the residual (BERT).
    pub(super) norms_sums: bool,
    /// A layer's sum names the residual before the feed-forward's result: the former's memory is tried first.
    pub(super) residual_first: bool,
    /// Only layers with a window rotate queries and keys, where there are any.
    pub(super) rotates_windows_only: bool,
    /// Only models of this many layers rotate queries and keys, 0 for all.
    pub(super) rotates_at_depth: usize,
    /// Norms have no weights (OLMo).
    pub(super) bare_norms: bool,
    /// The norm of attention's output comes before rows are chosen.
    pub(super) norms_before_rows: bool,
    /// Attention's output is the second operand where it joins the residual.
    pub(super) residual_leads: bool,
    /// Whether halves run in parallel is said by the model.
    pub(super) parallel_where_told: bool,
    /// Attention is among the tokens of the batch, and nothing but the last hidden state is computed.
    pub(super) embeds_batches: bool,
    /// Of so many layers the first rotates nothing, where there are windows; 0 for none.
    pub(super) unrotated_first_of: u64,
    /// Norms of what the halves yield belong to the layer (`build_norm` with its number).
    pub(super) pins_last_norm: bool,
    /// A dense feed-forward beside the experts.
    pub(super) beside: Beside,
    /// The router reads the layer's input.
    pub(super) routes_input: bool,
    /// Limits of feed-forwards are operations of their own, not part of the gate's.
    pub(super) limits_apart: bool,
    /// Attention's output has a gate of its own.
    pub(super) gates_attention: bool,
    /// Values are normed without weights.
    pub(super) norms_values: bool,
    /// Only layers that see everything have factors of rotary frequencies.
    pub(super) factors_on_full_layers: bool,
    /// The last norm comes before rows are chosen, where they are chosen late.
    pub(super) norms_before_choosing: bool,
    /// Rows of logits are chosen after the last layer instead of inside it.
    pub(super) chooses_late: bool,
    /// Layers without rotary embedding: every so many, 0 for none.
    pub(super) no_rope_every: u64,
    /// How queries and keys are normed and rotated.
    pub(super) qk_norm: QkNorming,
    /// Embedded tokens are normed without weights.
    pub(super) norms_embedding: bool,
    /// Every layer adds the normed embedding again, times a number of its own (Talkie).
    pub(super) adds_embedding: bool,
    /// Layers without experts rotate queries and keys whatever they see.
    pub(super) rotates_dense: bool,
    /// The sum of routed and shared experts is halved.
    pub(super) averages_shared: bool,
    /// Both sides of every residual sum are scaled (Beam).
    pub(super) scales_sums: bool,
    /// Layers with an indexer attend to the blocks that it chooses (MiniMax M3).
    pub(super) attends_blocks: bool,
    /// The gate on attention's output.
    pub(super) gate: Gate,
    /// Logits are products with the table of embeddings, where that is stored (BitNet).
    pub(super) reads_table: bool,
    /// The last matrix makes embeddings, not logits.
    pub(super) projects_embedding: bool,
    /// No logits are made, though there may be a matrix for them; of a model with recurrent layers, none in a context for
    /// embeddings.
    pub(super) leaves_logits: bool,
    /// Latents are expanded before they are cached (MiniCPM3, PLM).
    pub(super) expands_latents: bool,
    /// The rope part of a latent's key is normed (dots3.note).
    pub(super) norms_rope_key: bool,
    /// What the output matrix reads is scaled, not what it yields.
    pub(super) scales_before_logits: bool,
    /// Two states pass through two stacks of layers in turn (HRM).
    pub(super) two_stacks: bool,
    /// Logits are made of all tokens.
    pub(super) keeps_rows: bool,
    /// Tensors of layers beyond those of their mechanisms that the graph reads or that it may leave.
    pub(super) extras: &'static [&'static str],
    /// Queries are scaled by how far into the text they are.
    pub(super) scales_by_position: Scaled,
    /// A model's own sections of its rotary embedding decide about [`Row::positions_per_token`].
    pub(super) sections_allowed: bool,
    /// Positions of a token: 4 where the rotary embedding has sections for time and place.
    pub(super) positions_per_token: u64,
    /// Embedded tokens are added to learned positions, not the other way round.
    pub(super) adds_to_positions: bool,
    /// Both norms follow their halves; nothing is normed before them.
    pub(super) norms_after: bool,
    /// The gate of shared experts is a SiLU divided by its input.
    pub(super) divides_gate: bool,
    /// How experts are chosen.
    pub(super) routing: Routing,
}

pub(super) const SOFTMAX: Routing = Routing {
    softmax_after: false,
    normed: true,
    scaled: false,
    choice: Choice::Weights,
    sigmoid: None,
    weighted_first: false,
    two_steps: false,
    looked_up: None,
    asks: Asks::Nothing,
    groups: 0,
    groups_kept: 0,
};

/// As the model says.
const TOLD: Routing = Routing { asks: Asks::NormAndScale, ..SOFTMAX };

/// Tensors of layers with embeddings of their own.
const PER_LAYER: &[&str] = &[
    "inp_gate.weight",
    "proj.weight",
    "post_norm.weight",
    "layer_output_scale.weight",
    "ffn_gate_inp.scale",
    "ffn_down_exps.scale",
];

/// Tensors of layers that mix several versions of the hidden state.
const VERSIONS: &[&str] = &[
    "attn_sinks.weight",
    "hc_attn_base.weight",
    "hc_attn_fn.weight",
    "hc_attn_scale.weight",
    "hc_ffn_base.weight",
    "hc_ffn_fn.weight",
    "hc_ffn_scale.weight",
];

/// Matrices for the tokens of images, which a graph of text leaves.
const IMAGE_EXPERTS: &[&str] =
    &["vis_attn_qkv.weight", "vis_attn_output.weight", "vis_gate.weight", "vis_down.weight", "vis_up.weight"];

pub(super) const PLAIN: Row = Row {
    archs: &[],
    built_by: BuiltBy::Layers,
    norm: NormKind::Rms,
    activation: Activation::Single,
    scales_embedding: false,
    scales_queries: false,
    scales_residual: false,
    scales_logits: false,
    caps_scores: false,
    caps_logits: Caps::Never,
    parallel: None,
    norms_sums: false,
    residual_first: false,
    rotates_windows_only: false,
    rotates_at_depth: 0,
    bare_norms: false,
    norms_before_rows: false,
    residual_leads: false,
    parallel_where_told: false,
    embeds_batches: false,
    unrotated_first_of: 0,
    pins_last_norm: false,
    beside: Beside::Ignored,
    routes_input: false,
    limits_apart: false,
    gates_attention: false,
    norms_values: false,
    factors_on_full_layers: false,
    norms_before_choosing: false,
    chooses_late: false,
    no_rope_every: 0,
    qk_norm: QkNorming::First,
    norms_embedding: false,
    adds_embedding: false,
    rotates_dense: false,
    averages_shared: false,
    scales_sums: false,
    attends_blocks: false,
    gate: Gate::Sigmoid,
    reads_table: false,
    projects_embedding: false,
    leaves_logits: false,
    expands_latents: false,
    norms_rope_key: false,
    scales_before_logits: false,
    two_stacks: false,
    keeps_rows: false,
    extras: &[],
    scales_by_position: Scaled::Never,
    sections_allowed: false,
    positions_per_token: 1,
    adds_to_positions: false,
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
            "internlm2",
            "xverse",
            "ernie4_5",
            "seed_oss",
            "pangu-embedded",
            "qwen",
            "chatglm",
            "nanbeige",
            "exaone",
            "deci",
            "mellum",
        ],
        ..PLAIN
    },
    Row { archs: &["ernie4_5-moe", "minimax-m2", "mimo2"], routing: Routing { asks: Asks::NeverScales, ..SOFTMAX }, ..PLAIN },
    Row { archs: &["hunyuan-moe", "hunyuan-dense", "maincoder"], qk_norm: QkNorming::Last, ..PLAIN },
    Row { archs: &["gpt2", "starcoder", "bloom", "jais"], norm: NormKind::Layer, no_rope_every: 1, ..PLAIN },
    Row {
        archs: &["mpt"],
        norm: NormKind::Layer,
        no_rope_every: 1,
        extras: &["ffn.act.scales", "attn_k_norm.weight", "attn_k_norm.bias"],
        ..PLAIN
    },
    Row { archs: &["falcon"], norm: NormKind::Layer, parallel: Some(Together::ResidualLast), ..PLAIN },
    Row { archs: &["phi2"], norm: NormKind::Layer, parallel: Some(Together::AttentionFirst), scales_queries: true, ..PLAIN },
    Row {
        archs: &["bert", "jina-bert-v2"],
        norm: NormKind::Layer,
        norms_sums: true,
        adds_to_positions: true,
        no_rope_every: 1,
        routing: Routing { normed: false, ..SOFTMAX },
        ..PLAIN
    },
    Row {
        archs: &["nomic-bert", "nomic-bert-moe", "jina-bert-v3"],
        norm: NormKind::Layer,
        norms_sums: true,
        routing: Routing { normed: false, ..SOFTMAX },
        ..PLAIN
    },
    Row { archs: &["modern-bert"], norm: NormKind::Layer, ..PLAIN },
    Row { archs: &["neo-bert", "eurobert", "dream", "llada"], ..PLAIN },
    Row { archs: &["gemma-embedding"], leaves_logits: true, scales_embedding: true, scales_queries: true, ..PLAIN },
    Row { archs: &["mistral3"], scales_by_position: Scaled::WhereTold, ..PLAIN },
    Row { archs: &["glm4"], sections_allowed: true, ..PLAIN },
    Row { archs: &["t5", "t5encoder"], built_by: BuiltBy::EncoderDecoder, ..PLAIN },
    Row { archs: &["rwkv6", "rwkv7"], built_by: BuiltBy::Rwkv, norm: NormKind::Layer, ..PLAIN },
    Row { archs: &["rwkv6qwen2", "arwkv7"], built_by: BuiltBy::Rwkv, ..PLAIN },
    Row {
        archs: &["gemma3n"],
        built_by: BuiltBy::AltUp,
        scales_embedding: true,
        norms_values: true,
        caps_logits: Caps::Always,
        extras: PER_LAYER,
        ..PLAIN
    },
    Row {
        archs: &["gemma4"],
        beside: Beside::Normed,
        scales_embedding: true,
        norms_values: true,
        extras: PER_LAYER,
        factors_on_full_layers: true,
        caps_logits: Caps::UnlessTold,
        norms_before_choosing: true,
        chooses_late: true,
        ..PLAIN
    },
    Row {
        archs: &["cohere2"],
        norm: NormKind::Layer,
        parallel: Some(Together::ResidualFirst),
        rotates_windows_only: true,
        scales_logits: true,
        ..PLAIN
    },
    Row { archs: &["exaone-moe"], rotates_windows_only: true, routing: TOLD, ..PLAIN },
    Row { archs: &["qwen3vl", "qwen3vlmoe"], positions_per_token: 4, ..PLAIN },
    Row {
        archs: &["gptneox"],
        norm: NormKind::Layer,
        parallel: Some(Together::ResidualFirst),
        parallel_where_told: true,
        ..PLAIN
    },
    Row { archs: &["olmo"], norm: NormKind::Layer, bare_norms: true, ..PLAIN },
    Row { archs: &["smallthinker"], unrotated_first_of: 4, routes_input: true, ..PLAIN },
    Row { archs: &["plamo3"], pins_last_norm: true, ..PLAIN },
    Row {
        archs: &["grok"],
        scales_embedding: true,
        caps_scores: true,
        scales_logits: true,
        caps_logits: Caps::WhereTold,
        pins_last_norm: true,
        beside: Beside::Averaged,
        ..PLAIN
    },
    Row { archs: &["arctic"], beside: Beside::PastAttention, ..PLAIN },
    Row { archs: &["dbrx"], norm: NormKind::Layer, ..PLAIN },
    Row { archs: &["apertus", "rnd1"], ..PLAIN },
    Row { archs: &["refact"], no_rope_every: 1, ..PLAIN },
    Row { archs: &["baichuan"], rotates_at_depth: 32, ..PLAIN },
    Row { archs: &["bailingmoe", "bailingmoe2", "dots1"], routing: TOLD, ..PLAIN },
    Row { archs: &["llada-moe"], routing: Routing { normed: false, ..SOFTMAX }, ..PLAIN },
    Row { archs: &["llama-embed"], embeds_batches: true, ..PLAIN },
    Row { archs: &["openelm"], residual_leads: true, ..PLAIN },
    Row { archs: &["plamo"], parallel: Some(Together::ResidualLast), ..PLAIN },
    Row { archs: &["hy_v3"], norms_before_choosing: true, chooses_late: true, routing: TOLD, ..PLAIN },
    Row {
        archs: &["step35"],
        gates_attention: true,
        chooses_late: true,
        routing: TOLD,
        factors_on_full_layers: true,
        limits_apart: true,
        ..PLAIN
    },
    Row { archs: &["laguna"], gates_attention: true, routing: TOLD, ..PLAIN },
    Row {
        archs: &["afmoe"],
        pins_last_norm: true,
        gates_attention: true,
        scales_embedding: true,
        no_rope_every: 4,
        norms_before_rows: true,
        routing: TOLD,
        ..PLAIN
    },
    Row { archs: &["hy_v4"], built_by: BuiltBy::Versions, routing: TOLD, extras: VERSIONS, ..PLAIN },
    Row { archs: &["minimax-m3"], attends_blocks: true, routing: TOLD, ..PLAIN },
    Row { archs: &["olmo2", "exaone4"], norms_after: true, ..PLAIN },
    Row { archs: &["qwen2vl", "qwen3tts", "paddleocr"], positions_per_token: 4, ..PLAIN },
    Row { archs: &["deepseek"], routing: Routing { normed: false, asks: Asks::Scale, ..SOFTMAX }, ..PLAIN },
    Row { archs: &["olmoe"], routing: Routing { normed: false, ..SOFTMAX }, ..PLAIN },
    Row { archs: &["hunyuan_vl"], positions_per_token: 4, qk_norm: QkNorming::Last, ..PLAIN },
    Row { archs: &["qwen2moe"], divides_gate: true, routing: Routing { normed: false, ..SOFTMAX }, ..PLAIN },
    Row { archs: &["arcee"], activation: Activation::Squared, ..PLAIN },
    Row { archs: &["gemma"], scales_embedding: true, scales_queries: true, ..PLAIN },
    Row { archs: &["nemotron", "jais2"], activation: Activation::Squared, norm: NormKind::Layer, ..PLAIN },
    Row { archs: &["minicpm"], scales_embedding: true, scales_residual: true, scales_logits: true, ..PLAIN },
    Row { archs: &["stablelm", "orion", "codeshell", "starcoder2", "pockettts"], norm: NormKind::Layer, ..PLAIN },
    Row { archs: &["smollm3"], no_rope_every: 4, ..PLAIN },
    Row { archs: &["phi3", "phimoe"], scales_queries: true, residual_first: true, ..PLAIN },
    Row {
        archs: &["gemma2"],
        scales_embedding: true,
        scales_queries: true,
        caps_scores: true,
        caps_logits: Caps::Always,
        ..PLAIN
    },
    Row { archs: &["gemma3"], scales_embedding: true, scales_queries: true, caps_logits: Caps::WhereTold, ..PLAIN },
    Row { archs: &["gpt-oss"], chooses_late: true, routing: Routing { softmax_after: true, normed: false, ..SOFTMAX }, ..PLAIN },
    Row {
        archs: &["deepseek2", "deepseek2-ocr", "deepseek32", "glm-dsa", "mistral4"],
        scales_by_position: Scaled::WhereTold,
        routing: Routing { normed: false, asks: Asks::NormAndScale, ..SOFTMAX },
        ..PLAIN
    },
    Row { archs: &["command-r"], norm: NormKind::Layer, parallel: Some(Together::ResidualFirst), scales_logits: true, ..PLAIN },
    Row {
        archs: &["glm4moe"],
        sections_allowed: true,
        routing: Routing { scaled: true, asks: Asks::NormAndScale, ..SOFTMAX },
        ..PLAIN
    },
    Row { archs: &["granite", "granitemoe"], scales_embedding: true, scales_residual: true, scales_logits: true, ..PLAIN },
    Row {
        archs: &["gemma-embedding2"],
        scales_embedding: true,
        norms_values: true,
        projects_embedding: true,
        extras: PER_LAYER,
        ..PLAIN
    },
    Row { archs: &["granite_swa"], scales_embedding: true, scales_residual: true, scales_logits: true, ..PLAIN },
    Row { archs: &["flint"], routing: TOLD, ..PLAIN },
    Row { archs: &["spark2_5"], gates_attention: true, ..PLAIN },
    Row { archs: &["maple"], rotates_windows_only: true, ..PLAIN },
    Row {
        archs: &["talkie"],
        bare_norms: true,
        norms_embedding: true,
        adds_embedding: true,
        qk_norm: QkNorming::QueryLast,
        scales_logits: true,
        extras: &["layer_output_scale.weight"],
        ..PLAIN
    },
    Row {
        archs: &["muse-glimmer"],
        norms_embedding: true,
        gates_attention: true,
        rotates_windows_only: true,
        norms_before_rows: true,
        scales_logits: true,
        caps_logits: Caps::UnlessTold,
        ..PLAIN
    },
    Row {
        archs: &["kolibri1"],
        rotates_windows_only: true,
        norms_before_rows: true,
        pins_last_norm: true,
        routing: Routing { choice: Choice::Logits, asks: Asks::NormOnly, ..SOFTMAX },
        ..PLAIN
    },
    Row { archs: &["maion-coder"], rotates_windows_only: true, pins_last_norm: true, ..PLAIN },
    Row {
        archs: &["beam"],
        gates_attention: true,
        gate: Gate::Biased,
        rotates_windows_only: true,
        norms_before_rows: true,
        pins_last_norm: true,
        scales_sums: true,
        scales_by_position: Scaled::UnrotatedLayers,
        caps_logits: Caps::WhereTold,
        routing: TOLD,
        extras: &["attn_gate.bias"],
        ..PLAIN
    },
    Row {
        archs: &["cohere2moe"],
        parallel: Some(Together::ResidualFirst),
        rotates_windows_only: true,
        rotates_dense: true,
        averages_shared: true,
        scales_logits: true,
        norms_before_choosing: true,
        chooses_late: true,
        routing: Routing { sigmoid: Some(true), ..TOLD },
        ..PLAIN
    },
    Row {
        archs: &["minicpm3"],
        expands_latents: true,
        scales_embedding: true,
        scales_residual: true,
        scales_before_logits: true,
        ..PLAIN
    },
    Row { archs: &["plm"], expands_latents: true, activation: Activation::Squared, ..PLAIN },
    Row { archs: &["dots3note"], norms_rope_key: true, routing: TOLD, extras: &["attn_k_norm.weight"], ..PLAIN },
    Row { archs: &["hrm_text"], two_stacks: true, scales_embedding: true, bare_norms: true, gates_attention: true, ..PLAIN },
    Row { archs: &["graniteswitch"], built_by: BuiltBy::Adapters, scales_embedding: true, ..PLAIN },
    Row { archs: &["sensenova_u1"], positions_per_token: 4, qk_norm: QkNorming::Halves, ..PLAIN },
    Row { archs: &["k2-horizon"], gates_attention: true, gate: Gate::Softplus, routing: TOLD, ..PLAIN },
    Row { archs: &["bitnet"], reads_table: true, extras: &["attn_sub_norm.weight", "ffn_sub_norm.weight"], ..PLAIN },
    Row { archs: &["cogvlm"], keeps_rows: true, extras: IMAGE_EXPERTS, ..PLAIN },
    Row {
        archs: &["grovemoe"],
        routing: Routing { choice: Choice::Sigmoids, ..SOFTMAX },
        extras: &["ffn_gate_chexps.weight", "ffn_up_chexps.weight", "ffn_down_chexps.weight"],
        ..PLAIN
    },
    Row {
        archs: &["llama4"],
        no_rope_every: 4,
        scales_by_position: Scaled::UnrotatedLayers,
        qk_norm: QkNorming::BareLast,
        routing: Routing { normed: false, choice: Choice::Logits, weighted_first: true, ..SOFTMAX },
        ..PLAIN
    },
];

impl Row {
    /// With weights of experts as the model says.
    pub(super) const fn asking(&self) -> Self {
        Self { routing: Routing { asks: Asks::NormAndScale, ..self.routing }, ..*self }
    }

    /// With what the model says about scales where the architecture asks it.
    pub(super) fn told(self, operations: Operations) -> Self {
        Self {
            scales_residual: self.scales_residual && operations.scales_residual != Some(false),
            scales_logits: self.scales_logits && operations.scales_logits != Some(false),
            ..self
        }
    }

    /// What a layer's feed-forward, or its routed experts, do between their projections.
    pub(super) const fn activation(&self, limited: bool) -> Activation {
        if limited && self.limits_apart { Activation::Limited } else { self.activation }
    }

    /// Whether a layer rotates queries and keys.
    ///
    /// Windows aside: see [`Row::rotates_windows_only`].
    pub(super) fn rotates(&self, index: usize) -> bool {
        let number = u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1);
        self.no_rope_every == 0 || !number.is_multiple_of(self.no_rope_every)
    }
}

/// How a layer's experts are chosen: those with a correction bias have their weights divided by the sum and scaled, unless
/// the model says otherwise and the architecture asks it.
pub(super) fn routing(row: &Row, moe: &Moe, operations: Operations) -> Routing {
    let corrected = moe.correction_bias.is_some();
    let told = |asks: bool, said: Option<bool>| said.filter(|_| asks);
    let (asks_norm, asks_scale) = match row.routing.asks {
        Asks::Nothing | Asks::NeverScales => (false, false),
        Asks::NormOnly => (true, false),
        Asks::Scale => (false, true),
        Asks::NormAndScale => (true, true),
    };
    Routing {
        normed: told(asks_norm, operations.norms_expert_weights).unwrap_or(row.routing.normed || corrected),
        scaled: told(asks_scale, operations.scales_expert_weights)
            .unwrap_or(row.routing.scaled || corrected && !matches!(row.routing.asks, Asks::NormOnly | Asks::NeverScales)),
        sigmoid: operations.scores_experts_by_sigmoid.or(row.routing.sigmoid),
        groups: operations.n_expert_groups,
        groups_kept: operations.n_expert_groups_per_token,
        ..row.routing
    }
}

/// The row of an architecture, where its graph is known.
pub(super) fn row(arch: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.archs.contains(&arch))
}
