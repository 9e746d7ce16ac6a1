//! `ModelSpec` to tensor table: every weight tensor a model has, by its mechanisms alone.
//!
//! Names follow GGUF. Shapes are those that llama.cpp's converter writes, which hold exactly as many elements as
//! the published checkpoint's.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{
    Attention, CompressedAttention, Dense, FeedForward, GatedDeltaNet, Indexer, KimiDelta, KvSource, Layer, LightningAttention,
    LmHead, Mamba1, Mamba2, Mixer, Mla, ModelSpec, Moe, Norm, OutputGate, QkvLayout, Rglru, Rwkv, ShortConv, Weight,
};
use crate::tensor::{Component, Counts, Place, Shape, Tensor, TensorTable};
use crate::units::{add, mul};

/// Where the builder writes, and what every tensor of the current layer shares.
struct Builder {
    tensors: Vec<Tensor>,
    format: StorageFormat,
    prefix: String,
    place: Place,
    /// Overrides how everything counts (multi-token prediction).
    counts: Option<Counts>,
    /// Overrides the component (towers).
    component: Option<Component>,
}

impl Builder {
    const fn new(format: StorageFormat, place: Place) -> Self {
        Self { tensors: Vec::new(), format, prefix: String::new(), place, counts: None, component: None }
    }
    fn push(&mut self, name: &str, component: Component, shape: Shape, counts: Counts) {
        self.tensors.push(Tensor {
            name: format!("{}{}", self.prefix, name),
            shape,
            format: self.format,
            component: self.component.unwrap_or(component),
            place: self.place,
            counts: match (self.counts, counts) {
                (Some(over), Counts::Parameter | Counts::Buffer) => over,
                (_, own) => own,
            },
            opaque_bytes: None,
        });
    }
    fn param(&mut self, name: &str, component: Component, shape: Shape) {
        self.push(name, component, shape, Counts::Parameter);
    }
    fn linear(&mut self, name: &str, component: Component, n_in: u64, n_out: u64, bias: bool) {
        self.param(&format!("{name}.weight"), component, Shape::matrix(n_in, n_out));
        if bias {
            self.param(&format!("{name}.bias"), component, Shape::vector(n_out));
        }
    }
    fn norm(&mut self, norm: &Norm) {
        self.param(&format!("{}.weight", norm.name), Component::Norms, Shape::vector(norm.width));
        if norm.bias {
            self.param(&format!("{}.bias", norm.name), Component::Norms, Shape::vector(norm.width));
        }
    }
    fn weights(&mut self, weights: &[Weight]) {
        for weight in weights {
            self.push(&weight.name, weight.component, weight.shape, weight.counts);
        }
    }
    fn at(&mut self, prefix: String, place: Place) {
        self.prefix = prefix;
        self.place = place;
    }
}

/// Every weight tensor of `spec`, stored as `spec.weight_dtype`.
///
/// # Errors
/// [`MathError::Overflow`] when a shape leaves the exact range.
pub fn tensor_table(spec: &ModelSpec) -> Result<TensorTable, MathError> {
    table_with_layers(spec, &spec.layers)
}

/// The weights of one layer of `spec`'s trunk.
pub(crate) fn tensors_of_layer(spec: &ModelSpec, layer: &Layer) -> Result<Vec<Tensor>, MathError> {
    let mut out = Builder::new(spec.weight_dtype, Place::Layer(0));
    layer_tensors(&mut out, layer, spec.d_model)?;
    Ok(out.tensors)
}

/// The table of `spec` if its trunk had these layers.
pub(crate) fn table_with_layers(spec: &ModelSpec, layers: &[Layer]) -> Result<TensorTable, MathError> {
    let mut out = Builder::new(spec.weight_dtype, Place::Input);
    let embedding = &spec.embedding;
    let d_embedding = embedding.d_embedding.unwrap_or(spec.d_model);
    if embedding.n_vocab > 0 {
        out.param("token_embd.weight", Component::Embeddings, Shape::matrix(d_embedding, embedding.n_vocab));
    }
    if embedding.n_positions > 0 {
        out.param("position_embd.weight", Component::Embeddings, Shape::matrix(spec.d_model, embedding.n_positions));
    }
    if embedding.n_token_types > 0 {
        out.param("token_types.weight", Component::Embeddings, Shape::matrix(spec.d_model, embedding.n_token_types));
    }
    if let Some(norm) = &embedding.norm {
        out.norm(norm);
    }
    out.weights(&embedding.extra);

    if let Some(encoder) = &spec.encoder {
        for (index, layer) in (0_u32..).zip(&encoder.layers) {
            out.at(format!("enc.blk.{index}."), Place::EncoderLayer(index));
            layer_tensors(&mut out, layer, encoder.d_model)?;
        }
        out.at("enc.".to_string(), Place::Output);
        if let Some(norm) = &encoder.norm {
            out.norm(norm);
        }
        out.prefix.clear();
        out.weights(&encoder.extra);
    }

    let trunk = if spec.encoder.is_some() { "dec.blk" } else { "blk" };
    let mut next: u32 = 0;
    for layer in layers {
        out.at(format!("{trunk}.{next}."), Place::Layer(next));
        layer_tensors(&mut out, layer, spec.d_model)?;
        next = next.saturating_add(1);
    }
    out.counts = Some(Counts::MultiTokenPrediction);
    for mtp in &spec.mtp {
        out.at(format!("{trunk}.{next}."), Place::Layer(next));
        layer_tensors(&mut out, &mtp.layer, spec.d_model)?;
        out.weights(&mtp.extra);
        next = next.saturating_add(1);
    }
    out.counts = None;

    out.at(if spec.encoder.is_some() { "dec.".to_string() } else { String::new() }, Place::Output);
    if let Some(norm) = &spec.head.norm {
        out.norm(norm);
    }
    out.prefix.clear();
    if let LmHead::Own { bias } = spec.head.lm_head {
        let rows = spec.head.n_outputs.unwrap_or(embedding.n_vocab);
        out.linear("output", Component::LmHead, d_embedding, rows, bias);
    }
    out.weights(&spec.head.extra);

    for tower in &spec.towers {
        out.component = Some(Component::VisionAudio);
        let prefix = match tower.kind {
            crate::spec::TowerKind::Vision => "v",
            crate::spec::TowerKind::Audio => "a",
        };
        for (index, layer) in tower.layers.iter().enumerate() {
            out.at(format!("{prefix}.blk.{index}."), Place::Tower);
            layer_tensors(&mut out, layer, tower.d_model)?;
        }
        out.at(String::new(), Place::Tower);
        out.weights(&tower.extra);
        out.component = None;
    }
    Ok(TensorTable { tensors: out.tensors })
}

fn layer_tensors(out: &mut Builder, layer: &Layer, d_model: u64) -> Result<(), MathError> {
    if layer.weights_of.is_none() {
        for norm in &layer.norms {
            out.norm(norm);
        }
        mixer_tensors(out, &layer.mixer, d_model)?;
        if let Some(cross) = &layer.cross_attention {
            attention_tensors(out, "cross_attn", cross, d_model)?;
        }
        feed_forward_tensors(out, layer, d_model)?;
    } else if let Mixer::Parallel(parallel) = &layer.mixer {
        mixer_tensors(out, &parallel.state, d_model)?;
    }
    out.weights(&layer.extra);
    Ok(())
}

fn mixer_tensors(out: &mut Builder, mixer: &Mixer, d_model: u64) -> Result<(), MathError> {
    match mixer {
        Mixer::Attention(attention) => attention_tensors(out, "attn", attention, d_model),
        Mixer::Mla(mla) => mla_tensors(out, mla, d_model),
        Mixer::CompressedAttention(CompressedAttention { weights, indexer, .. }) => {
            out.weights(weights);
            indexer_tensors(out, indexer.as_ref());
            Ok(())
        }
        Mixer::Mamba1(mamba) => mamba1_tensors(out, mamba, d_model),
        Mixer::Mamba2(mamba) => mamba2_tensors(out, mamba, d_model),
        Mixer::GatedDeltaNet(delta) => gated_delta_net_tensors(out, delta, d_model),
        Mixer::KimiDelta(delta) => kimi_delta_tensors(out, delta, d_model),
        Mixer::LightningAttention(LightningAttention { weights, .. })
        | Mixer::Rwkv(Rwkv { weights, .. })
        | Mixer::Rglru(Rglru { weights, .. }) => {
            out.weights(weights);
            Ok(())
        }
        Mixer::ShortConv(ShortConv { d_conv, bias }) => {
            out.param("shortconv.conv.weight", Component::SsmLinear, Shape::matrix(*d_conv, d_model));
            if *bias {
                out.param("shortconv.conv.bias", Component::SsmLinear, Shape::vector(d_model));
            }
            out.linear("shortconv.in_proj", Component::SsmLinear, d_model, mul(3, d_model)?, *bias);
            out.linear("shortconv.out_proj", Component::SsmLinear, d_model, d_model, *bias);
            Ok(())
        }
        Mixer::Parallel(parallel) => {
            attention_tensors(out, "attn", &parallel.attention, d_model)?;
            mixer_tensors(out, &parallel.state, d_model)
        }
        Mixer::None => Ok(()),
    }
}

fn attention_tensors(out: &mut Builder, name: &str, attention: &Attention, d_model: u64) -> Result<(), MathError> {
    let component = Component::Attention;
    let d_input = attention.d_input.unwrap_or(d_model);
    let d_kv_input = attention.d_kv_input.unwrap_or(d_input);
    let d_output = attention.d_output.unwrap_or(d_model);
    let q_width = mul(attention.n_heads, attention.k_head_dim)?;
    let k_width = mul(attention.n_kv_heads, attention.k_head_dim)?;
    let v_width = mul(attention.n_kv_heads, attention.v_head_dim)?;
    let q_out = match attention.gate {
        OutputGate::InQuery => mul(2, q_width)?,
        OutputGate::None | OutputGate::Own { .. } => q_width,
    };
    // Weights for keys and values that another layer's cache makes useless are in the files all the same.
    let kv_counts = match attention.kv_source {
        KvSource::Layer { .. } => Counts::Unused,
        KvSource::Own | KvSource::NotCached => Counts::Parameter,
    };
    let bias = attention.bias;
    match attention.layout {
        QkvLayout::Fused => {
            out.linear(&format!("{name}_qkv"), component, d_input, add(q_out, add(k_width, v_width)?)?, bias.q);
        }
        QkvLayout::Listed => {}
        QkvLayout::Split | QkvLayout::ValueIsKey | QkvLayout::QueryOnly => {
            out.linear(&format!("{name}_q"), component, d_input, q_out, bias.q);
            let keys = (attention.layout != QkvLayout::QueryOnly).then_some(("k", k_width, bias.k));
            let values = (attention.layout == QkvLayout::Split).then_some(("v", v_width, bias.v));
            for (suffix, width, has_bias) in keys.into_iter().chain(values) {
                out.push(&format!("{name}_{suffix}.weight"), component, Shape::matrix(d_kv_input, width), kv_counts);
                if has_bias {
                    out.push(&format!("{name}_{suffix}.bias"), component, Shape::vector(width), kv_counts);
                }
            }
        }
    }
    // T5's converter shortens the name in both of its stacks (`gguf-py` constants, `LLM_TENSOR_DEC_ATTN_OUT`).
    let is_two_stacks = out.prefix.starts_with("enc.") || out.prefix.starts_with("dec.");
    let output = if name == "attn" && !is_two_stacks { "attn_output".to_string() } else { format!("{name}_o") };
    if attention.layout != QkvLayout::Listed {
        out.linear(&output, component, mul(attention.n_heads, attention.v_head_dim)?, d_output, bias.o);
    }
    for (which, [width, heads], counts) in
        [("q_norm", attention.qk_norm.q, Counts::Parameter), ("k_norm", attention.qk_norm.k, kv_counts)]
    {
        if width > 0 {
            let shape = Shape::matrix(width, heads.max(1));
            out.push(&format!("{name}_{which}.weight"), component, shape, counts);
            if attention.qk_norm.bias {
                out.push(&format!("{name}_{which}.bias"), component, shape, counts);
            }
        }
    }
    if attention.sinks {
        out.param(&format!("{name}_sinks.weight"), component, Shape::vector(attention.n_heads));
    }
    if let OutputGate::Own { width } = attention.gate {
        out.linear(&format!("{name}_gate"), component, d_input, width, false);
    }
    if attention.relative_buckets > 0 {
        out.param(&format!("{name}_rel_b.weight"), component, Shape::matrix(attention.n_heads, attention.relative_buckets));
    }
    indexer_tensors(out, attention.indexer.as_ref());
    out.weights(&attention.extra);
    Ok(())
}

fn indexer_tensors(out: &mut Builder, indexer: Option<&Indexer>) {
    if let Some(indexer) = indexer {
        out.weights(&indexer.weights);
    }
}

fn mla_tensors(out: &mut Builder, mla: &Mla, d_model: u64) -> Result<(), MathError> {
    let component = Component::Attention;
    let q_width = mul(mla.n_heads, add(mla.qk_nope_head_dim, mla.qk_rope_head_dim)?)?;
    if let Some(rank) = mla.q_lora_rank {
        out.linear("attn_q_a", component, d_model, rank, mla.bias);
        out.param("attn_q_a_norm.weight", component, Shape::vector(rank));
        out.linear("attn_q_b", component, rank, q_width, false);
    } else {
        out.linear("attn_q", component, d_model, q_width, false);
    }
    out.linear("attn_kv_a_mqa", component, d_model, add(mla.kv_lora_rank, mla.qk_rope_head_dim)?, mla.bias);
    out.param("attn_kv_a_norm.weight", component, Shape::vector(mla.kv_lora_rank));
    if mla.expanded {
        let width = mul(mla.n_heads, add(mla.qk_nope_head_dim, mla.v_head_dim)?)?;
        out.linear("attn_kv_b", component, mla.kv_lora_rank, width, false);
    } else {
        out.param("attn_k_b.weight", component, Shape::stack(mla.qk_nope_head_dim, mla.kv_lora_rank, mla.n_heads));
        out.param("attn_v_b.weight", component, Shape::stack(mla.kv_lora_rank, mla.v_head_dim, mla.n_heads));
    }
    out.linear("attn_output", component, mul(mla.n_heads, mla.v_head_dim)?, d_model, mla.bias);
    if let OutputGate::Own { width } = mla.gate {
        out.linear("attn_gate", component, d_model, width, false);
    }
    indexer_tensors(out, mla.indexer.as_ref());
    out.weights(&mla.extra);
    Ok(())
}

fn mamba1_tensors(out: &mut Builder, mamba: &Mamba1, d_model: u64) -> Result<(), MathError> {
    let component = Component::SsmLinear;
    let Mamba1 { d_inner, d_state, d_conv, dt_rank, .. } = *mamba;
    out.linear("ssm_in", component, d_model, mul(2, d_inner)?, mamba.proj_bias);
    out.param("ssm_conv1d.weight", component, Shape::matrix(d_conv, d_inner));
    if mamba.conv_bias {
        out.param("ssm_conv1d.bias", component, Shape::vector(d_inner));
    }
    out.linear("ssm_x", component, d_inner, add(dt_rank, mul(2, d_state)?)?, false);
    if mamba.dt_b_c_norm {
        out.param("ssm_dt_norm.weight", component, Shape::vector(dt_rank));
        out.param("ssm_b_norm.weight", component, Shape::vector(d_state));
        out.param("ssm_c_norm.weight", component, Shape::vector(d_state));
    }
    out.linear("ssm_dt", component, dt_rank, d_inner, true);
    out.param("ssm_a", component, Shape::matrix(d_state, d_inner));
    out.param("ssm_d", component, Shape::vector(d_inner));
    out.linear("ssm_out", component, d_inner, d_model, mamba.proj_bias);
    out.weights(&mamba.extra);
    Ok(())
}

fn mamba2_tensors(out: &mut Builder, mamba: &Mamba2, d_model: u64) -> Result<(), MathError> {
    let component = Component::SsmLinear;
    let Mamba2 { d_inner, d_state, d_conv, n_heads, n_groups, .. } = *mamba;
    let conv = add(d_inner, mul(mul(2, n_groups)?, d_state)?)?;
    out.linear("ssm_in", component, d_model, add(add(d_inner, conv)?, n_heads)?, mamba.proj_bias);
    out.param("ssm_conv1d.weight", component, Shape::matrix(d_conv, conv));
    if mamba.conv_bias {
        out.param("ssm_conv1d.bias", component, Shape::vector(conv));
    }
    out.param("ssm_dt.bias", component, Shape::vector(n_heads));
    out.param("ssm_a", component, Shape::matrix(1, n_heads));
    out.param("ssm_d", component, Shape::matrix(1, n_heads));
    if mamba.norm {
        out.param("ssm_norm.weight", component, Shape::matrix(d_inner / n_groups.max(1), n_groups));
    }
    out.linear("ssm_out", component, d_inner, d_model, mamba.proj_bias);
    out.weights(&mamba.extra);
    Ok(())
}

fn gated_delta_net_tensors(out: &mut Builder, delta: &GatedDeltaNet, d_model: u64) -> Result<(), MathError> {
    let component = Component::SsmLinear;
    let keys = mul(delta.n_k_heads, delta.k_head_dim)?;
    let values = mul(delta.n_v_heads, delta.v_head_dim)?;
    let conv = add(mul(2, keys)?, values)?;
    out.linear("attn_qkv", component, d_model, conv, false);
    out.linear("attn_gate", component, d_model, values, false);
    out.param("ssm_conv1d.weight", component, Shape::matrix(delta.d_conv, conv));
    out.param("ssm_dt.bias", component, Shape::vector(delta.n_v_heads));
    out.param("ssm_a", component, Shape::vector(delta.n_v_heads));
    if delta.fused_beta_alpha {
        out.linear("ssm_ba", component, d_model, mul(2, delta.n_v_heads)?, false);
    } else {
        out.linear("ssm_beta", component, d_model, delta.n_v_heads, false);
        out.linear("ssm_alpha", component, d_model, delta.n_v_heads, false);
    }
    out.param("ssm_norm.weight", component, Shape::vector(delta.v_head_dim));
    out.linear("ssm_out", component, values, d_model, false);
    out.weights(&delta.extra);
    Ok(())
}

fn kimi_delta_tensors(out: &mut Builder, delta: &KimiDelta, d_model: u64) -> Result<(), MathError> {
    let component = Component::SsmLinear;
    let width = mul(delta.n_heads, delta.head_dim)?;
    for which in ["q", "k", "v"] {
        out.linear(&format!("attn_{which}"), component, d_model, width, false);
        out.param(&format!("ssm_conv1d_{which}.weight"), component, Shape::stack(delta.d_conv, 1, width));
    }
    out.linear("attn_output", component, width, d_model, false);
    out.weights(&delta.extra);
    Ok(())
}

fn dense_tensors(out: &mut Builder, dense: &Dense, d_model: u64, suffix: &str, component: Component) -> Result<(), MathError> {
    let d_ff = dense.d_ff;
    if dense.gated && !dense.fused_gate_up {
        out.linear(&format!("ffn_gate{suffix}"), component, d_model, d_ff, dense.up_bias);
    }
    let up = if dense.gated && dense.fused_gate_up { mul(2, d_ff)? } else { d_ff };
    out.linear(&format!("ffn_up{suffix}"), component, d_model, up, dense.up_bias);
    out.linear(&format!("ffn_down{suffix}"), component, d_ff, d_model, dense.down_bias);
    out.weights(&dense.extra);
    Ok(())
}

fn feed_forward_tensors(out: &mut Builder, layer: &Layer, d_model: u64) -> Result<(), MathError> {
    match &layer.feed_forward {
        FeedForward::Dense(dense) => dense_tensors(out, dense, d_model, "", Component::Mlp),
        FeedForward::Moe(moe) => {
            // Hunyuan 3 names the correction without a suffix, and its own name is among the layer's other tensors.
            let named_apart = layer.extra.iter().any(|weight| weight.name == "exp_probs_b");
            moe_tensors(out, moe, d_model, named_apart)
        }
        FeedForward::ChannelMix { weights } => {
            out.weights(weights);
            Ok(())
        }
        FeedForward::None => Ok(()),
    }
}

fn moe_tensors(out: &mut Builder, moe: &Moe, d_model: u64, correction_named_apart: bool) -> Result<(), MathError> {
    let rows = moe.n_router_rows.unwrap_or(moe.n_experts);
    // No rows: the router is no plain matrix, its tensors are listed in `extra`.
    if rows > 0 {
        out.linear("ffn_gate_inp", Component::Router, d_model, rows, moe.router_bias);
    }
    if let Some(counts) = moe.correction_bias.filter(|_| !correction_named_apart) {
        out.push("exp_probs_b.bias", Component::Router, Shape::vector(rows), counts);
    }
    let width = moe.latent.unwrap_or(d_model);
    let stacks: &[(&str, u64, u64)] = &if moe.gated && moe.fused_gate_up {
        [("gate_up", width, mul(2, moe.d_ff_expert)?), ("down", moe.d_ff_expert, width), ("", 0, 0)]
    } else if moe.gated {
        [("gate", width, moe.d_ff_expert), ("up", width, moe.d_ff_expert), ("down", moe.d_ff_expert, width)]
    } else {
        [("up", width, moe.d_ff_expert), ("down", moe.d_ff_expert, width), ("", 0, 0)]
    };
    for &(which, n_in, n_out) in stacks.iter().filter(|(which, ..)| !which.is_empty()) {
        out.param(&format!("ffn_{which}_exps.weight"), Component::Experts, Shape::stack(n_in, n_out, moe.n_experts));
        if moe.expert_bias {
            out.param(&format!("ffn_{which}_exps.bias"), Component::Experts, Shape::matrix(n_out, moe.n_experts));
        }
    }
    if let Some(shared) = &moe.shared {
        dense_tensors(out, shared, d_model, "_shexp", moe.shared_component)?;
        if moe.shared_gate {
            out.param("ffn_gate_inp_shexp.weight", Component::Router, Shape::vector(d_model));
        }
    }
    if let Some(beside) = &moe.beside {
        dense_tensors(out, beside, d_model, "", Component::Mlp)?;
    }
    out.weights(&moe.extra);
    Ok(())
}
