//! What a config says about operations that no weight shows.

use plimsoll_math::spec::{FeedForward, Mixer, ModelSpec};

use super::reader::Reader;

/// Notes what the config says, where the family's row has not.
pub(super) fn read(r: &Reader<'_>, spec: &mut ModelSpec) {
    let has_experts = spec.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Moe(_)));
    let is_granite = spec.llama_cpp_arch.as_deref() == Some("granitehybrid");
    let has_states = spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::Mamba2(_)));
    let operations = &mut spec.operations;
    if has_experts {
        let norms = r.keep(r.config.bool(&["norm_topk_prob", "moe_renormalize", "route_norm"]));
        let factor = r.keep(r.config.f64(&["routed_scaling_factor", "route_scale", "moe_router_topk_scaling_factor"]));
        operations.norms_expert_weights = operations.norms_expert_weights.or(norms);
        // A factor of 0 stands for none, and 1 changes nothing: neither is in the graph.
        operations.scales_expert_weights =
            operations.scales_expert_weights.or(factor.map(|factor| factor != 0.0 && (factor - 1.0).abs() > f64::EPSILON));
        if let (0, Some(groups)) = (operations.n_expert_groups, r.opt_below(&["n_group"], r.limits().experts)) {
            operations.n_expert_groups = groups;
            operations.n_expert_groups_per_token = r.opt_below(&["topk_group"], r.limits().experts).unwrap_or(0);
        }
    }
    if operations.banked_layers.is_none() {
        operations.banked_layers = r.opt_below(&["attn_res_block_size"], r.limits().layers);
    }
    if is_granite && operations.rotates.is_none() {
        // The converter's rule: Bamba, and models without state spaces (`conversion/granite.py`).
        operations.rotates = Some(r.class == "BambaForCausalLM" || !has_states);
    }
}
