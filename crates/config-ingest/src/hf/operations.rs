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
    let rope = r.child(&["rope_parameters", "rope_scaling"]);
    if let Some(rope) = &rope {
        // What `conversion/base.py:set_gguf_parameters` writes as sections of positions, and the door for files reads back.
        if let (None, Some(sections)) = (operations.sectioned_positions, rope.list(&["mrope_section"])) {
            operations.sectioned_positions = Some(sections.len() > 1 && sections.iter().take(2).all(|section| *section > 0));
        }
        // `conversion/mistral3.py:set_gguf_parameters`.
        if operations.scales_by_position.is_none() {
            operations.scales_by_position = rope.keep(rope.config.f64(&["llama_4_scaling_beta"])).map(|beta| beta != 0.0);
        }
    }
    if operations.caps_logits.is_none() {
        operations.caps_logits = r.keep(r.config.f64(&["final_logit_softcapping"])).map(|cap| cap != 0.0);
    }
    if operations.parallel_residual.is_none() {
        operations.parallel_residual = r.keep(r.config.bool(&["use_parallel_residual"]));
    }
    if spec.llama_cpp_arch.as_deref().is_some_and(|arch| matches!(arch, "qwen3vl" | "qwen3vlmoe")) {
        operations.n_deepstack_layers = deepstack_layers(r);
    }
    if operations.banked_layers.is_none() {
        operations.banked_layers = r.opt_below(&["attn_res_block_size"], r.limits().layers);
    }
    if is_granite && operations.rotates.is_none() {
        // The converter's rule: Bamba, and models without state spaces (`conversion/granite.py`).
        operations.rotates = Some(r.class == "BambaForCausalLM" || !has_states);
    }
}

/// Layers of the image encoder whose features are added to the first layers of the language model
/// (`conversion/qwen3vl.py:set_gguf_parameters`).
fn deepstack_layers(r: &Reader<'_>) -> u64 {
    let wrapper = r.keep(r.root.child(&["thinker_config"])).unwrap_or_else(|| r.root.clone());
    let vision = r.keep(wrapper.child(&["vision_config"]));
    let indexes = vision.and_then(|vision| r.keep(vision.u64_list(&["deepstack_visual_indexes"])));
    indexes.map_or(0, |indexes| u64::try_from(indexes.len()).unwrap_or(u64::MAX).min(r.limits().layers))
}
