//! Weights that a loader accepts and an architecture's graph leaves (`models/*.cpp`: `create_tensor` beside what
//! `build_arch_graph` passes on). They lie in memory like all others; nothing reads them.

/// Architectures whose graphs pass no bias to attention's output projection, though files may have one.
const LEAVES_OUTPUT_PROJECTION: &[&str] = &["ernie4_5", "ernie4_5-moe", "falcon-h1", "llada", "refact"];

/// Those that project queries, keys and values by their matrices alone.
const LEAVES_QUERIES_KEYS_VALUES: &[&str] = &["bailingmoe3", "kimi-k3", "kimi-linear", "mimo2", "openelm", "plamo3"];

/// Those that norm queries and keys without a bias.
const LEAVES_QUERY_KEY_NORMS: &[&str] = &["apertus"];

/// Those whose feed-forwards have no biases.
const LEAVES_FEED_FORWARD: &[&str] = &["llada", "refact"];

/// Those that make logits without a bias.
const LEAVES_OUTPUT: &[&str] = &["dream", "qwen2vl"];

/// Which biases an architecture's graph leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unread {
    pub(super) output_projection: bool,
    pub(super) queries_keys_values: bool,
    pub(super) query_key_norms: bool,
    pub(super) feed_forward: bool,
    pub(super) output: bool,
}

/// Blends that a graph reads one by one where the file does not have them together (`rwkv6-base.cpp:build_rwkv6_time_mix`).
const TOGETHER: (&str, &[&str]) = (
    "time_mix_lerp_fused.weight",
    &[
        "time_mix_lerp_w.weight",
        "time_mix_lerp_k.weight",
        "time_mix_lerp_v.weight",
        "time_mix_lerp_r.weight",
        "time_mix_lerp_g.weight",
    ],
);

impl Unread {
    /// Whether a weight says again what another one of its layer says, which is read instead.
    pub(super) fn is_repeated(base: &str, has: impl FnOnce(&str) -> bool) -> bool {
        let (together, single) = TOGETHER;
        single.contains(&base) && has(together)
    }

    pub(super) fn of(arch: &str) -> Self {
        Self {
            output_projection: LEAVES_OUTPUT_PROJECTION.contains(&arch),
            queries_keys_values: LEAVES_QUERIES_KEYS_VALUES.contains(&arch),
            query_key_norms: LEAVES_QUERY_KEY_NORMS.contains(&arch),
            feed_forward: LEAVES_FEED_FORWARD.contains(&arch),
            output: LEAVES_OUTPUT.contains(&arch),
        }
    }

    /// Whether the graph leaves a weight, by its name without the layer's number. What quantizers keep about inputs of
    /// matrices is read by no graph.
    pub(super) fn leaves(self, base: &str) -> bool {
        let Some(stem) = base.strip_suffix(".bias") else { return base.ends_with(".input_scale") };
        match stem {
            "attn_output" => self.output_projection,
            "attn_qkv" | "attn_q" | "attn_k" | "attn_v" => self.queries_keys_values,
            "attn_q_norm" | "attn_k_norm" => self.query_key_norms,
            "ffn_up" | "ffn_gate" | "ffn_down" => self.feed_forward,
            "output" => self.output,
            _ => false,
        }
    }
}
