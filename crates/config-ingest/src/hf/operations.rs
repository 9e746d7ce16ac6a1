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
    if spec.llama_cpp_arch.as_deref().is_some_and(|arch| matches!(arch, "deepseek4" | "qwen4exp")) {
        // All versions of the hidden state are handed out (`deepseek4.cpp:load_arch_hparams`).
        let versions = r.opt_below(&["hc_mult"], r.limits().heads);
        operations.d_embedding = versions.map(|versions| versions.saturating_mul(spec.d_model));
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
    if spec.llama_cpp_arch.as_deref().is_some_and(|arch| matches!(arch, "dbrx" | "mpt" | "olmo")) {
        // `conversion/dbrx.py`, `mpt.py`, `olmo.py`.
        let nested = r.child(&["attn_config"]);
        let limit = r.keep(nested.as_ref().unwrap_or(r).config.f64(&["clip_qkv"]));
        operations.limits_projections = limit.is_some_and(|limit| limit > 0.0);
    }
    if spec.llama_cpp_arch.as_deref() == Some("mimo2") {
        let factor = r.keep(r.config.f64(&["attention_value_scale"]));
        operations.scales_attention = factor.is_some_and(|factor| factor != 0.0 && (factor - 1.0).abs() > f64::EPSILON);
    }
    if is_granite && operations.rotates.is_none() {
        // The converter's rule: Bamba, and models without state spaces (`conversion/granite.py`).
        operations.rotates = Some(r.class == "BambaForCausalLM" || !has_states);
    }
    of_layers(r, spec);
}

/// What the config says about every layer.
fn of_layers(r: &Reader<'_>, spec: &mut ModelSpec) {
    // `conversion/step3.py`, `bailingmoe3.py`: lists that may be shorter than the layers, with nothing for no limit.
    let (experts, dense): (&[&str], &[&str]) = match spec.llama_cpp_arch.as_deref() {
        Some("step35") => (&["swiglu_limits"], &["swiglu_limits_shared"]),
        Some("bailingmoe3") => (&["expert_swiglu_limit_list"], &["share_expert_swiglu_limit_list"]),
        _ => (&[], &[]),
    };
    let limits = |names: &[&str]| r.keep(r.config.numbers(names)).unwrap_or_default();
    let (experts, dense) = (limits(experts), limits(dense));
    // `conversion/rwkv.py`.
    let is_rwkv = spec.llama_cpp_arch.as_deref() == Some("rwkv6");
    let halved = if is_rwkv { r.opt_below(&["rescale_every"], r.limits().layers).unwrap_or(0) } else { 0 };
    // `nanbeige.cpp:graph`: between passes over the same layers.
    let is_nanbeige = spec.llama_cpp_arch.as_deref() == Some("nanbeige");
    let passes = is_nanbeige && !r.keep(r.config.bool(&["skip_loop_final_norm"])).unwrap_or(false);
    let own = spec.layers.iter().filter(|layer| layer.weights_of.is_none()).count();
    let limited = |limits: &[f64], il: usize| limits.get(il).is_some_and(|limit| *limit > 1e-6);
    let n = spec.layers.len();
    for ((il, number), layer) in (0..).zip(1_u64..).zip(&mut spec.layers) {
        layer.told.limits_experts = limited(&experts, il);
        layer.told.limits_dense = limited(&dense, il);
        layer.told.halves_state = halved > 0 && number.is_multiple_of(halved);
        let last_of_pass = own > 0 && il.saturating_add(1).is_multiple_of(own) && il.saturating_add(1) < n;
        layer.told.norms_state = passes && last_of_pass;
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
