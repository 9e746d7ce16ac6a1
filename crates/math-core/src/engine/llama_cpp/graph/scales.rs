//! Numbers that products with matrices are multiplied by: files quantized to NVFP4 keep one for each matrix, and one for
//! each expert of a stack (`src/llama-model.cpp:load_tensors`, `src/llama-graph.cpp:build_lora_mm`, `build_lora_mm_id`).

use super::op::Op;
use super::ops::Node;
use super::parts::Parts;
use crate::engine::llama_cpp::facts::Facts;
use crate::error::MathError;
use crate::spec::{FeedForward, Layer, Weight};

/// A matrix of a layer that may have a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matrix {
    Query,
    Key,
    Value,
    QueryKeyValue,
    AttentionGate,
    AttentionOutput,
    Gate,
    Up,
    Down,
    SharedGate,
    SharedUp,
    SharedDown,
    ExpertGate,
    ExpertUp,
    ExpertDown,
    StateInput,
    StateOutput,
    StateAlpha,
    StateBeta,
}

/// Every one, with the name of its scale.
const NAMES: [(Matrix, &str); 19] = [
    (Matrix::Query, "attn_q.scale"),
    (Matrix::Key, "attn_k.scale"),
    (Matrix::Value, "attn_v.scale"),
    (Matrix::QueryKeyValue, "attn_qkv.scale"),
    (Matrix::AttentionGate, "attn_gate.scale"),
    (Matrix::AttentionOutput, "attn_output.scale"),
    (Matrix::Gate, "ffn_gate.scale"),
    (Matrix::Up, "ffn_up.scale"),
    (Matrix::Down, "ffn_down.scale"),
    (Matrix::SharedGate, "ffn_gate_shexp.scale"),
    (Matrix::SharedUp, "ffn_up_shexp.scale"),
    (Matrix::SharedDown, "ffn_down_shexp.scale"),
    (Matrix::ExpertGate, "ffn_gate_exps.scale"),
    (Matrix::ExpertUp, "ffn_up_exps.scale"),
    (Matrix::ExpertDown, "ffn_down_exps.scale"),
    (Matrix::StateInput, "ssm_in.scale"),
    (Matrix::StateOutput, "ssm_out.scale"),
    (Matrix::StateAlpha, "ssm_alpha.scale"),
    (Matrix::StateBeta, "ssm_beta.scale"),
];

/// Whether a weight is a scale of a matrix, or of its input, which no graph reads.
pub(super) fn is_scale(weight: &Weight) -> bool {
    weight.name.ends_with(".input_scale") || NAMES.iter().any(|(_, name)| *name == weight.name)
}

/// Architectures whose graphs multiply by the scales of experts, of feed-forwards, and of shared experts. All others load
/// them and leave them (`models/*.cpp`, calls of `build_moe_ffn` and `build_ffn`).
#[rustfmt::skip]
const READS_EXPERTS: &[&str] = &[
    "cohere2moe", "deepseek32", "dots3note", "flint", "gemma4", "glm-dsa", "hy_v3", "llama", "llama-embed", "mellum",
    "mistral-large4", "mistral3", "nemotron_h", "nemotron_h_moe", "qwen35moe", "qwen3moe", "qwen3next", "qwen4exp",
];
#[rustfmt::skip]
const READS_DENSE: &[&str] = &[
    "bitnet", "clef", "cohere2", "cohere2moe", "deepseek32", "dflash", "dots3note", "flint", "gemma-embedding2", "gemma4",
    "glm-dsa", "hy_v3", "llama", "llama-embed", "mistral-large4", "mistral3", "nanbeige", "nemotron_h", "nemotron_h_moe",
    "qwen3", "qwen35", "qwen35moe", "sensenova_u1", "talkie",
];
#[rustfmt::skip]
const READS_SHARED: &[&str] = &[
    "cohere2moe", "deepseek32", "dots3note", "flint", "glm-dsa", "hy_v3", "mistral-large4", "nemotron_h", "nemotron_h_moe",
    "qwen35moe", "qwen3next", "qwen4exp",
];

/// Architectures whose graphs multiply queries, keys and values by their matrices alone.
const LEAVES_QUERIES: &[&str] = &["mimo2"];

/// Architectures whose recurrent mixers multiply by their matrices alone.
const LEAVES_STATES: &[&str] = &["plamo2", "qwen3next"];

/// Architectures whose graphs project what attention yields by the matrix alone.
const LEAVES_OUTPUTS: &[&str] = &["bailingmoe3", "hy_v4", "kimi-k3"];

/// Architectures whose graphs multiply gates by their matrix's scale.
const READS_GATES: &[&str] = &["clef", "k2-horizon", "qwen35", "qwen35moe", "qwen4exp"];

/// Which scales an architecture's graph reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reads {
    queries: bool,
    states: bool,
    gates: bool,
    outputs: bool,
    experts: bool,
    dense: bool,
    shared: bool,
}

impl Reads {
    /// What an architecture's graph reads in a build.
    pub(super) fn of(facts: Facts<'_>) -> Self {
        let newly = facts.build.reads_scales(facts.arch);
        let reads = |list: &[&str]| newly || list.contains(&facts.arch);
        Self {
            queries: !LEAVES_QUERIES.contains(&facts.arch),
            states: !LEAVES_STATES.contains(&facts.arch),
            outputs: !LEAVES_OUTPUTS.contains(&facts.arch),
            gates: READS_GATES.contains(&facts.arch),
            experts: reads(READS_EXPERTS),
            dense: reads(READS_DENSE),
            shared: reads(READS_SHARED),
        }
    }
    /// Whether the graph leaves a weight that is a scale, by its name without the layer's number.
    pub(super) fn leaves(self, base: &str) -> bool {
        NAMES.iter().any(|(matrix, name)| *name == base && !self.matrix(*matrix))
    }
    const fn matrix(self, matrix: Matrix) -> bool {
        match matrix {
            Matrix::ExpertGate | Matrix::ExpertUp | Matrix::ExpertDown => self.experts,
            Matrix::Gate | Matrix::Up | Matrix::Down => self.dense,
            Matrix::SharedGate | Matrix::SharedUp | Matrix::SharedDown => self.shared,
            Matrix::Query | Matrix::Key | Matrix::Value => self.queries,
            Matrix::QueryKeyValue => self.queries && self.states,
            Matrix::AttentionGate => self.gates,
            Matrix::StateInput | Matrix::StateOutput | Matrix::StateAlpha | Matrix::StateBeta => self.states,
            Matrix::AttentionOutput => self.outputs,
        }
    }
}

/// Which matrices of a layer have scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Scales([bool; NAMES.len()]);

impl Scales {
    /// Those of a layer that the graph reads.
    pub(super) fn of(layer: &Layer, reads: Reads) -> Self {
        let of_experts: &[Weight] = match &layer.feed_forward {
            FeedForward::Moe(moe) => &moe.extra,
            FeedForward::Dense(_) | FeedForward::ChannelMix { .. } | FeedForward::None => &[],
        };
        let mut out = Self::default();
        for weight in layer.extra.iter().chain(of_experts).filter(|weight| weight.name.ends_with(".scale")) {
            for (slot, (matrix, name)) in out.0.iter_mut().zip(NAMES) {
                *slot |= weight.name == name && reads.matrix(matrix);
            }
        }
        out
    }
    pub(super) fn has(self, matrix: Matrix) -> bool {
        self.0.iter().zip(NAMES).any(|(has, (known, _))| *has && known == matrix)
    }
}

impl Parts {
    /// A product with a matrix, times the matrix's scale if it has one.
    pub(super) fn scaled(&mut self, product: Node, matrix: Matrix) -> Result<Node, MathError> {
        if !self.scales.has(matrix) {
            return Ok(product);
        }
        let scale = self.weight(&[1])?;
        self.graph.product(product, scale)
    }
    /// A projection by a matrix that may have a scale, with its bias if it has one.
    pub(super) fn project(&mut self, x: Node, width: u64, matrix: Matrix, bias: bool) -> Result<Node, MathError> {
        let product = self.linear(x, width)?;
        let scaled = self.scaled(product, matrix)?;
        if bias { self.bias(scaled) } else { Ok(scaled) }
    }
    /// A projection of a feed-forward, whose bias comes before the scale (`build_ffn`).
    pub(super) fn project_biased(&mut self, x: Node, width: u64, matrix: Matrix, bias: bool) -> Result<Node, MathError> {
        let product = self.linear_bias(x, width, bias)?;
        self.scaled(product, matrix)
    }
    /// Products with the chosen experts' matrices, each times its expert's scale.
    pub(super) fn scaled_by_expert(
        &mut self,
        product: Node,
        ids: Node,
        n_experts: u64,
        matrix: Matrix,
    ) -> Result<Node, MathError> {
        if !self.scales.has(matrix) {
            return Ok(product);
        }
        let [_, tokens, ..] = self.graph.dims(ids)?;
        let scales = self.weight(&[n_experts])?;
        let scales = self.graph.reshape(scales, [1, n_experts, 1, 1])?;
        let scales = self.graph.result(Op::Repeat, Self::F32, [1, n_experts, tokens, 1], &[scales])?;
        let scales = self.graph.get_rows(scales, ids)?;
        self.graph.product(product, scales)
    }
}
