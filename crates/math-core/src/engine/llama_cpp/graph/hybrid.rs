//! Graphs of recurrent models and of hybrids with attention (`src/models/*.cpp`), one row of facts per architecture for
//! what the model's mechanisms do not say.

use super::decoder::{extras_are_known, has_norm, has_weight, rope_factors, ssm_shape};
use super::delta::{KimiDecay, KimiForm};
use super::experts::{Activation, Asks, Routing};
use super::latent;
use super::lightning::DecayInputs;
use super::ops::Node;
use super::parts::Parts;
use super::recurrent::StateInputs;
use super::rows::{PLAIN, Row, SOFTMAX};
use super::trunk::{Caches, HasWindow, Trunk, attended};
use crate::error::MathError;
use crate::spec::{Attention, FeedForward, KvSource, Layer, LmHead, Mixer, ModelSpec, OutputGate, QkvLayout};

/// What an architecture's graph does where its mechanisms leave a choice.
#[derive(Debug, Clone, Copy)]
pub(super) struct HybridRow {
    /// What it shares with decoders.
    row: Row,
    /// Numbers that a position is made of.
    positions: u64,
    /// A layer's first norm is computed before anything else of the layer.
    norm_first: bool,
    /// The residual is the first operand where halves join it.
    residual_first: bool,
    /// Halves join what they have read, scaled, rather than the layer's input (MiniMax).
    joins_normed: bool,
    /// Hidden states are banked (Kimi K3).
    banks: bool,
    /// How Kimi's delta attention makes its decay.
    kimi_decay: KimiDecay,
    /// Queries and keys of a delta rule are repeated to the value heads.
    repeats_keys: bool,
}

const RECURRENT: HybridRow = HybridRow {
    row: Row { no_rope_every: 1, ..PLAIN },
    positions: 1,
    norm_first: false,
    residual_first: false,
    joins_normed: false,
    banks: false,
    kimi_decay: KimiDecay::Softplus,
    repeats_keys: false,
};

const ROTATED: HybridRow = HybridRow { row: PLAIN, ..RECURRENT };

const ROWS: &[HybridRow] = &[
    HybridRow { row: Row { archs: &["mamba", "mamba2"], ..RECURRENT.row }, ..RECURRENT },
    HybridRow {
        row: Row { archs: &["jamba"], routing: Routing { normed: false, ..SOFTMAX }, ..RECURRENT.row },
        residual_first: true,
        ..RECURRENT
    },
    HybridRow { row: Row { archs: &["falcon-h1"], ..PLAIN }, ..ROTATED },
    HybridRow {
        row: Row {
            archs: &["granitehybrid"],
            scales_embedding: true,
            scales_residual: true,
            scales_logits: true,
            ..RECURRENT.row
        },
        ..RECURRENT
    },
    HybridRow {
        row: Row {
            archs: &["nemotron_h"],
            activation: Activation::Squared,
            chooses_late: true,
            routing: Routing { scaled: true, asks: Asks::NormAndScale, ..SOFTMAX },
            ..RECURRENT.row
        },
        ..RECURRENT
    },
    HybridRow {
        row: Row {
            archs: &["nemotron_h_moe"],
            activation: Activation::Squared,
            chooses_late: true,
            routing: Routing { scaled: true, asks: Asks::NormAndScale, ..SOFTMAX },
            ..RECURRENT.row
        },
        ..RECURRENT
    },
    HybridRow { row: Row { archs: &["plamo2"], ..PLAIN }, ..ROTATED },
    HybridRow {
        row: Row { archs: &["lfm2", "lfm2moe"], leaves_logits: true, routing: Routing { asks: Asks::Scale, ..SOFTMAX }, ..PLAIN },
        residual_first: true,
        ..ROTATED
    },
    HybridRow {
        row: Row { archs: &["lfm3"], gates_attention: true, factors_on_full_layers: true, norms_before_rows: true, ..PLAIN },
        residual_first: true,
        ..ROTATED
    },
    HybridRow {
        row: Row { archs: &["qwen3next"], chooses_late: true, ..PLAIN },
        norm_first: true,
        repeats_keys: true,
        ..ROTATED
    },
    HybridRow {
        row: Row { archs: &["qwen35", "qwen35moe"], chooses_late: true, ..PLAIN },
        positions: 4,
        norm_first: true,
        ..ROTATED
    },
    HybridRow {
        row: Row { archs: &["minimax-01"], routing: Routing { asks: Asks::Scale, ..SOFTMAX }, ..PLAIN },
        joins_normed: true,
        ..ROTATED
    },
    HybridRow {
        row: Row { archs: &["kimi-linear"], routing: Routing { scaled: true, asks: Asks::Scale, ..SOFTMAX }, ..RECURRENT.row },
        norm_first: true,
        ..RECURRENT
    },
    HybridRow {
        row: Row {
            archs: &["bailingmoe3"],
            chooses_late: true,
            sections_allowed: true,
            limits_apart: true,
            routing: Routing { scaled: true, asks: Asks::NormAndScale, ..SOFTMAX },
            ..PLAIN
        },
        kimi_decay: KimiDecay::Sigmoid,
        ..ROTATED
    },
    HybridRow {
        row: Row {
            archs: &["kimi-k3"],
            activation: Activation::Capped,
            routing: Routing { scaled: true, asks: Asks::NormAndScale, ..SOFTMAX },
            ..RECURRENT.row
        },
        norm_first: true,
        banks: true,
        kimi_decay: KimiDecay::NegatedSigmoid,
        ..RECURRENT
    },
];

/// The row of an architecture, where its graph is known.
pub(super) fn row(arch: &str) -> Option<&'static HybridRow> {
    ROWS.iter().find(|row| row.row.archs.contains(&arch))
}

fn attends(attention: &Attention, row: &Row) -> bool {
    let gated = match attention.gate {
        OutputGate::None => true,
        OutputGate::InQuery => attention.layout == QkvLayout::Split,
        OutputGate::Own { .. } => row.gates_attention,
    };
    gated
        && attention.indexer.is_none()
        && matches!(attention.kv_source, KvSource::Own)
        && matches!(attention.layout, QkvLayout::Split | QkvLayout::Fused)
}

/// Whether a layer is made of this file's mechanisms alone.
fn fits(layer: &Layer, row: &Row) -> bool {
    let mixes = |mixer: &Mixer| {
        matches!(
            mixer,
            Mixer::Mamba1(_)
                | Mixer::Mamba2(_)
                | Mixer::GatedDeltaNet(_)
                | Mixer::KimiDelta(_)
                | Mixer::LightningAttention(_)
                | Mixer::ShortConv(_)
                | Mixer::None
        )
    };
    let mixer = match &layer.mixer {
        Mixer::Attention(attention) => attends(attention, row),
        Mixer::Mla(mla) => latent::fits(mla) && mla.indexer.is_none(),
        Mixer::Parallel(parallel) => attends(&parallel.attention, row) && mixes(&parallel.state),
        other => mixes(other),
    };
    let feeds = match &layer.feed_forward {
        FeedForward::Moe(moe) => moe.beside.is_none(),
        FeedForward::Dense(_) | FeedForward::None => true,
        FeedForward::ChannelMix { .. } => false,
    };
    mixer && feeds && layer.cross_attention.is_none() && extras_are_known(layer, &[]) && layer.weights_of.is_none()
}

/// Heads whose decay is an input, 0 without lightning attention.
fn decay_heads(spec: &ModelSpec) -> u64 {
    let heads = spec.layers.iter().filter_map(|layer| match &layer.mixer {
        Mixer::LightningAttention(lightning) => Some(lightning.n_heads),
        _ => None,
    });
    heads.max().unwrap_or(0)
}

/// Builds the whole graph; `false` when some layer is none of this file's.
pub(super) fn build(
    parts: &mut Parts,
    spec: &ModelSpec,
    hybrid: &HybridRow,
    caches: &Caches,
    window: HasWindow<'_>,
) -> Result<bool, MathError> {
    if !spec.layers.iter().all(|layer| fits(layer, &hybrid.row)) || spec.encoder.is_some() || spec.embedding.n_positions > 0 {
        return Ok(false);
    }
    // Convolutions of models that read a whole text at once look ahead, in a graph that is not known here.
    if !spec.causal && spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::ShortConv(_))) {
        return Ok(false);
    }
    let row = &hybrid.row.told(spec.operations);
    let factors = rope_factors(parts, spec);
    let mut current = parts.embed(spec.d_model, spec.embedding.n_vocab)?;
    if row.scales_embedding && spec.operations.scales_embedding != Some(false) {
        current = parts.scale_embedded(current)?;
        // The embeddings are complete before any state is read.
        parts.graph.expand(current)?;
    }
    let states = parts.state_inputs()?;
    let (mut full, mut sliding) = attended(parts, spec, caches, window)?;
    if let (Some(sliding), false) = (&mut sliding, parts.setting.cached_rotations) {
        // Hybrids with windows rotate nothing where rotations are inputs (`build_inp_mem_hybrid_iswa`).
        for inputs in [&mut full, sliding] {
            (inputs.k_rotation, inputs.v_rotation) = (None, None);
        }
    }
    let decays = match decay_heads(spec) {
        0 => None,
        heads => Some(parts.decay_inputs(heads)?),
    };
    let sectioned = row.sections_allowed && parts.setting.sections && spec.operations.sectioned_positions == Some(true);
    let positions = parts.positions(if sectioned { 4 } else { hybrid.positions })?;
    let rows = parts.output_rows()?;
    let trunk = Trunk { factors, ..Trunk::new(spec, row, caches, window, [positions, rows], (full, sliding)) };
    let last = spec.layers.len().saturating_sub(1);
    let late = row.chooses_late && parts.setting.rows_after_layers;
    let mut layers = Hybrid { hybrid, states, decays, bank: None, trunk };
    // What has been banked grows from layer to layer, so that no two are alike.
    let block = spec.operations.banked_layers.filter(|every| hybrid.banks && *every > 0);
    let steps = parts.layers(spec.layers.iter(), |index| (!row.rotates(index), block.map(|_| index)));
    for step in &steps {
        let Some(layer) = spec.layers.get(step.layer) else { continue };
        parts.begin_layer(step, layer);
        if let Some(every) = block {
            let banks = u64::try_from(step.layer).unwrap_or(u64::MAX).is_multiple_of(every);
            current = layers.banking_layer(parts, layer, spec.d_model, banks, current)?;
            continue;
        }
        let chooses = step.layer == last && !late;
        current = layers.layer(parts, layer, spec.d_model, step.layer, current, chooses)?;
    }
    if block.is_some() {
        current = parts.mix_banked(layers.bank, current)?;
        current = parts.graph.get_rows(current, rows)?;
    }
    parts.begin_output();
    let norm_bias = spec.head.norm.as_ref().is_some_and(|norm| norm.bias);
    current = parts.norm(current, row.norm, norm_bias, false)?;
    if late {
        // The normed hidden state of all tokens is handed out as well (`t_h_nextn`).
        parts.graph.output(current)?;
        current = parts.graph.get_rows(current, rows)?;
    }
    let embedded = current;
    if row.leaves_logits && parts.setting.pooling.is_some() {
        parts.finish(&spec.head, embedded, None)?;
        return Ok(true);
    }
    let outputs = spec.head.n_outputs.unwrap_or(spec.embedding.n_vocab);
    current = parts.linear_bias(current, outputs, spec.head.lm_head == LmHead::Own { bias: true })?;
    if row.scales_logits {
        current = parts.scale(current)?;
    }
    parts.finish(&spec.head, embedded, Some(current))?;
    Ok(true)
}

struct Hybrid<'a> {
    hybrid: &'a HybridRow,
    states: StateInputs,
    decays: Option<DecayInputs>,
    /// States that have been banked.
    bank: Option<Node>,
    trunk: Trunk<'a>,
}

impl Hybrid<'_> {
    fn layer(
        &mut self,
        parts: &mut Parts,
        layer: &Layer,
        d_model: u64,
        index: usize,
        input: Node,
        chooses: bool,
    ) -> Result<Node, MathError> {
        let row = self.trunk.row;
        let bias = has_norm(layer, "attn_norm").unwrap_or(false);
        let normed = parts.norm(input, row.norm, bias, true)?;
        if self.hybrid.norm_first {
            parts.graph.expand(normed)?;
        }
        if matches!(layer.mixer, Mixer::None) {
            // Nemotron-H: the whole layer is a feed-forward.
            let mut fed = self.trunk.feed_forward(parts, layer, d_model, normed)?;
            let mut residual = input;
            if chooses {
                fed = parts.graph.get_rows(fed, self.trunk.rows)?;
                residual = parts.graph.get_rows(residual, self.trunk.rows)?;
            }
            return parts.graph.sum(fed, residual);
        }
        let mut joined = if let Mixer::Parallel(parallel) = &layer.mixer {
            // The engine computes the norm once for each half, and chooses rows after the halves have joined.
            let attended = self.trunk.attention(parts, layer, &parallel.attention, d_model, index, normed)?;
            let again = parts.again(|parts| parts.norm(input, row.norm, bias, true))?;
            let state = self.state(parts, layer, &parallel.state, again)?;
            let both = parts.graph.sum(attended, state)?;
            let joined = parts.graph.sum(both, input)?;
            if chooses { parts.graph.get_rows(joined, self.trunk.rows)? } else { joined }
        } else {
            let mut mixed = match &layer.mixer {
                Mixer::Attention(attention) => self.trunk.attention(parts, layer, attention, d_model, index, normed)?,
                Mixer::Mla(mla) => {
                    let positions = (row.no_rope_every != 1).then_some(self.trunk.positions);
                    let told = latent::Told { positions, scale: None, norms_rope_key: false, sinks: false };
                    latent::attention(parts, mla, &self.trunk.full, None, told, d_model, normed)?
                }
                Mixer::Mamba2(mamba) if ssm_shape(layer, "ssm_dt_norm").is_some() => {
                    let rank = ssm_shape(layer, "ssm_dt_norm").unwrap_or(0);
                    parts.mamba2_with_ranks(mamba, rank, &self.states, normed)?
                }
                Mixer::KimiDelta(delta) => parts.kimi_delta(delta, self.kimi_form(layer), &self.states, normed)?,
                other => self.state(parts, layer, other, normed)?,
            };
            let after = has_norm(layer, "ffn_norm").and_then(|_| has_norm(layer, "post_attention_norm"));
            if let Some(bias) = after.filter(|_| row.norms_before_rows) {
                mixed = parts.norm(mixed, row.norm, bias, true)?;
            }
            let mut residual = if self.hybrid.joins_normed { normed } else { input };
            if chooses {
                mixed = parts.graph.get_rows(mixed, self.trunk.rows)?;
                residual = parts.graph.get_rows(residual, self.trunk.rows)?;
            }
            if self.hybrid.joins_normed {
                residual = parts.scale(residual)?;
            }
            if let Some(bias) = after.filter(|_| !row.norms_before_rows) {
                mixed = parts.norm(mixed, row.norm, bias, true)?;
            }
            if row.scales_residual {
                mixed = parts.scale(mixed)?;
            }
            self.join(parts, mixed, residual)?
        };
        if !matches!(layer.feed_forward, FeedForward::None) {
            let before = has_norm(layer, "ffn_norm").or_else(|| has_norm(layer, "post_attention_norm"));
            let normed = parts.norm(joined, row.norm, before.unwrap_or(false), true)?;
            let mut fed = self.trunk.feed_forward(parts, layer, d_model, normed)?;
            if let Some(bias) = has_norm(layer, "post_ffw_norm") {
                fed = parts.norm(fed, row.norm, bias, true)?;
            }
            if row.scales_residual {
                fed = parts.scale(fed)?;
            }
            let residual = if self.hybrid.joins_normed { parts.scale(normed)? } else { joined };
            joined = self.join(parts, fed, residual)?;
        }
        Ok(joined)
    }

    fn kimi_form(&self, layer: &Layer) -> KimiForm {
        let has = |name: &str| has_weight(layer, name);
        KimiForm { decay: self.hybrid.kimi_decay, low_rank_decay: has("ssm_f_b.weight"), low_rank_gate: has("ssm_g_b.weight") }
    }

    /// A layer of Kimi K3 (`kimi-k3.cpp:graph`): every so many layers the state is banked and starts anew, and each half
    /// reads a mix of what has been banked and the state.
    fn banking_layer(
        &mut self,
        parts: &mut Parts,
        layer: &Layer,
        d_model: u64,
        banks: bool,
        input: Node,
    ) -> Result<Node, MathError> {
        let row = self.trunk.row;
        let mixed = parts.mix_banked(self.bank, input)?;
        if banks {
            self.bank = Some(parts.bank(self.bank, input)?);
        }
        let normed = parts.norm(mixed, row.norm, false, true)?;
        parts.graph.expand(normed)?;
        let half = match &layer.mixer {
            Mixer::Mla(mla) => {
                let told = latent::Told { positions: None, scale: None, norms_rope_key: false, sinks: false };
                latent::attention(parts, mla, &self.trunk.full, None, told, d_model, normed)?
            }
            Mixer::KimiDelta(delta) => parts.kimi_delta(delta, self.kimi_form(layer), &self.states, normed)?,
            _ => return Ok(input),
        };
        let state = if banks { half } else { parts.graph.sum(input, half)? };
        let mixed = parts.mix_banked(self.bank, state)?;
        let normed = parts.norm(mixed, row.norm, false, true)?;
        let fed = self.trunk.feed_forward(parts, layer, d_model, normed)?;
        parts.graph.sum(state, fed)
    }

    fn join(&self, parts: &mut Parts, half: Node, residual: Node) -> Result<Node, MathError> {
        if self.hybrid.residual_first { parts.graph.sum(residual, half) } else { parts.graph.sum(half, residual) }
    }

    fn state(&self, parts: &mut Parts, layer: &Layer, mixer: &Mixer, x: Node) -> Result<Node, MathError> {
        match mixer {
            Mixer::Mamba1(mamba) => parts.mamba1(mamba, &self.states, x),
            Mixer::Mamba2(mamba) => parts.mamba2(mamba, &self.states, x),
            Mixer::LightningAttention(lightning) => match &self.decays {
                Some(decays) => parts.lightning_attention(lightning, &self.states, decays, x),
                None => Ok(x),
            },
            Mixer::ShortConv(conv) => parts.short_convolution(conv, &self.states, x),
            Mixer::GatedDeltaNet(delta) => {
                parts.gated_delta_net(delta, &self.states, self.hybrid.repeats_keys, layer.told.one_matrix, x)
            }
            _ => Ok(x),
        }
    }
}
