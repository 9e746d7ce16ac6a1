//! What bounds of compute buffers depend on, folded from the layers of a model.

use super::{Bounds, ComputeShape};
use crate::deployment::{Backend, Deployment};
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::flash::runs_fused;
use crate::engine::llama_cpp::recurrent::state_elements;
use crate::error::MathError;
use crate::spec::{FeedForward, LmHead, Mixer, ModelSpec, Window};
use crate::tensor::Component;
use crate::units::{add, mul};

/// Architectures whose selector reads the keys of all cells in every graph and pools them into blocks
/// (`models/glm5-next.cpp:build_kpool_select`, `models/qwen4exp.cpp:build_qsa_top_k`).
const POOLS_KEYS: &[&str] = &["glm5-next", "qwen4exp"];

impl ComputeShape {
    pub(crate) fn new(spec: &ModelSpec, facts: Facts<'_>, deployment: &Deployment) -> Result<Self, MathError> {
        let d_model = spec.d_model;
        let mut out = Self {
            build: facts.build,
            d_model,
            output: add(spec.embedding.n_vocab, d_model)?,
            linear: Bounds { low: mul(2, d_model)?, high: mul(3, d_model)? },
            linear_with_masks: mul(2, d_model)?,
            // A reserved graph reads as much as the encoder was trained for (`llama-graph.cpp:build_inp_cross_embd`).
            encoded: spec.encoder.as_ref().map_or(0, |_| spec.max_context),
            absorbs_queries: spec.layers.iter().any(|layer| matches!(&layer.mixer, Mixer::Mla(mla) if !mla.expanded)),
            embeds_itself: facts.arch == "graniteswitch",
            scores_blocks: facts.arch == "qwen4exp",
            pooled_key: 0,
            scan_falls: matches!(deployment.backend(), Backend::Cuda { .. })
                && spec.layers.iter().any(|layer| !scans_on_cuda(&layer.mixer)),
            attention: Bounds::default(),
            queries: 0,
            n_heads: 0,
            v_head: 0,
            state: 0,
            decay_heads: 0,
            selector: (0, 0),
            per_layer_embeddings: 0,
            deep: spec.operations.n_deepstack_layers,
            learned_positions: spec.embedding.n_positions > 0,
            biased_scores: spec.encoder.is_some(),
            // Embedders of these kinds make a cache and then attend without it.
            whole_batch: !facts.has_memory() || matches!(facts.arch, "llama-embed" | "t5encoder"),
            runs_fused: runs_fused(spec, facts, deployment)?,
            compressed: false,
            has_logits: spec.head.lm_head != LmHead::None,
            parallel: false,
        };
        for weight in &spec.embedding.extra {
            if weight.component == Component::PerLayerEmbeddings {
                out.per_layer_embeddings = out.per_layer_embeddings.max(weight.shape.row());
            }
        }
        // A mask is freed behind the last layer that reads it; there are two kinds, with and without a window.
        let until = last_masked_layer(spec);
        for (index, layer) in spec.layers.iter().enumerate() {
            out.mixer(&layer.mixer, spec.d_model)?;
            if until.is_none_or(|until| index <= until) {
                out.linear_with_masks = out.linear.low;
            }
        }
        for layer in spec.encoder.iter().flat_map(|encoder| &encoder.layers) {
            out.mixer(&layer.mixer, spec.d_model)?;
        }
        // The feed-forward of the last layer works on the rows of the output alone (`inp_out_ids`).
        let last = spec.layers.len().saturating_sub(1);
        for (index, layer) in spec.layers.iter().enumerate() {
            let low = out.linear.low;
            out.feed_forward(&layer.feed_forward)?;
            // Refact loads experts and builds its graph without them (`models/refact.cpp`).
            let is_built = facts.arch != "refact" || !matches!(layer.feed_forward, FeedForward::Moe(_));
            if index == last || !is_built {
                out.linear.low = low;
            }
            if until.is_none_or(|until| index < until) && index != last && is_built {
                let mut alone = Self { linear: Bounds::default(), ..out.clone() };
                alone.feed_forward(&layer.feed_forward)?;
                out.linear_with_masks = out.linear_with_masks.max(alone.linear.low);
            }
        }
        for layer in spec.encoder.iter().flat_map(|encoder| &encoder.layers) {
            out.feed_forward(&layer.feed_forward)?;
        }
        if POOLS_KEYS.contains(&facts.arch) {
            let indexers = spec.layers.iter().filter_map(|layer| match &layer.mixer {
                Mixer::Mla(mla) => mla.indexer.as_ref(),
                mixer => mixer.attention()?.indexer.as_ref(),
            });
            out.pooled_key = indexers.map(|indexer| indexer.head_dim).max().unwrap_or(0);
        }
        if out.parallel {
            out.linear.high = add(out.linear.high, out.attention.high)?;
        }
        Ok(out)
    }

    fn mixer(&mut self, mixer: &Mixer, d_model: u64) -> Result<(), MathError> {
        let residual = mul(2, d_model)?;
        if let Some((n_r, n_s)) = state_elements(mixer, d_model)? {
            self.state = self.state.max(add(n_s, mul(4, n_r)?)?);
        }
        if let Some(attention) = mixer.attention() {
            let queries = mul(attention.n_heads, attention.k_head_dim)?;
            self.heads(attention.n_heads, queries, attention.v_head_dim);
            // Queries, keys and values before and after rope, the output, beside the residual.
            let high = add(add(residual, d_model)?, mul(4, queries)?)?;
            self.attention = self.attention.max(Bounds { low: add(d_model, queries)?, high });
            if let Some(indexer) = &attention.indexer {
                self.selector = (self.selector.0.max(indexer.n_heads), self.selector.1.max(indexer.top_k));
            }
        }
        match mixer {
            Mixer::Mla(mla) => {
                let latent = add(mla.kv_lora_rank, mla.qk_rope_head_dim)?;
                let plain = add(mla.qk_nope_head_dim, mla.qk_rope_head_dim)?;
                let queries = mul(mla.n_heads, if mla.expanded { plain } else { latent })?;
                self.heads(mla.n_heads, queries, if mla.expanded { mla.v_head_dim } else { mla.kv_lora_rank });
                // Queries absorbed into the latent space, twice while they are joined with their rope part, beside
                // the plain ones they come from.
                let low = add(residual, if mla.expanded { queries } else { mul(2, queries)? })?;
                let more = mul(mla.n_heads, add(plain, mla.kv_lora_rank)?)?;
                let high = add(add(residual, residual)?, add(mul(2, queries)?, more)?)?;
                self.attention = self.attention.max(Bounds { low, high });
                if let Some(indexer) = &mla.indexer {
                    self.selector = (self.selector.0.max(indexer.n_heads), self.selector.1.max(indexer.top_k));
                }
            }
            Mixer::CompressedAttention(attention) => {
                self.compressed = true;
                let queries = mul(attention.n_heads, attention.head_dim)?;
                self.heads(attention.n_heads, queries, attention.head_dim);
                let low = add(residual, mul(2, queries)?)?;
                let high = add(mul(8, d_model)?, mul(4, queries)?)?;
                self.attention = self.attention.max(Bounds { low, high });
                if let Some(indexer) = &attention.indexer {
                    self.selector = (self.selector.0.max(indexer.n_heads), self.selector.1.max(indexer.top_k));
                }
            }
            Mixer::Mamba1(mamba) => {
                // Input projection, convolution in and out, scan output.
                let inner = mamba.d_inner;
                self.recurrent(residual, add(mul(2, inner)?, inner)?, mul(4, inner)?)?;
            }
            Mixer::Mamba2(mamba) => {
                let conv = add(mamba.d_inner, mul(2, mul(mamba.n_groups, mamba.d_state)?)?)?;
                let projected = add(add(mamba.d_inner, conv)?, mamba.n_heads)?;
                self.recurrent(residual, add(projected, conv)?, add(conv, mul(2, mamba.d_inner)?)?)?;
            }
            Mixer::GatedDeltaNet(delta) => {
                let values = mul(delta.n_v_heads, delta.v_head_dim)?;
                let conv = add(values, mul(2, mul(delta.n_k_heads, delta.k_head_dim)?)?)?;
                self.recurrent(residual, add(conv, values)?, add(mul(2, conv)?, mul(3, values)?)?)?;
            }
            Mixer::KimiDelta(delta) => {
                let width = mul(delta.n_heads, delta.head_dim)?;
                self.recurrent(residual, mul(3, width)?, mul(9, width)?)?;
            }
            Mixer::LightningAttention(lightning) => {
                let width = mul(lightning.n_heads, lightning.head_dim)?;
                self.decay_heads = self.decay_heads.max(lightning.n_heads);
                self.recurrent(residual, mul(3, width)?, mul(8, width)?)?;
            }
            Mixer::Rwkv(_) => self.recurrent(0, mul(8, d_model)?, mul(14, d_model)?)?,
            Mixer::ShortConv(_) => self.recurrent(residual, mul(3, d_model)?, mul(3, d_model)?)?,
            Mixer::Rglru(unit) => self.recurrent(residual, mul(3, unit.d_inner)?, mul(4, unit.d_inner)?)?,
            Mixer::Parallel(parallel) => {
                self.parallel = true;
                self.mixer(&parallel.state, d_model)?;
            }
            Mixer::Attention(_) | Mixer::None => {}
        }
        Ok(())
    }

    fn heads(&mut self, n_heads: u64, queries: u64, v_head: u64) {
        self.n_heads = self.n_heads.max(n_heads);
        self.queries = self.queries.max(queries);
        self.v_head = self.v_head.max(v_head);
    }

    fn recurrent(&mut self, residual: u64, low: u64, more: u64) -> Result<(), MathError> {
        let low = add(residual, low)?;
        self.linear = self.linear.max(Bounds { low, high: add(add(low, more)?, self.d_model)? });
        Ok(())
    }

    fn feed_forward(&mut self, feed_forward: &FeedForward) -> Result<(), MathError> {
        let residual = mul(2, self.d_model)?;
        match feed_forward {
            FeedForward::Dense(dense) => {
                // Gate, up and their product; the input waits, and so may the queries' slot.
                let (low, high) = if dense.gated { (3, 3) } else { (1, 2) };
                let low = add(self.d_model, mul(low, dense.d_ff)?)?;
                let high = add(add(residual, self.d_model)?, add(self.queries, mul(high, dense.d_ff)?)?)?;
                self.linear = self.linear.max(Bounds { low, high });
            }
            FeedForward::Moe(moe) => {
                let width = moe.latent.unwrap_or(self.d_model);
                let hidden = mul(moe.n_experts_per_token, moe.d_ff_expert)?;
                let outputs = mul(moe.n_experts_per_token, width)?;
                // Outputs of the experts fit where gate and up were, or come on top.
                let beside = if outputs > mul(2, hidden)? { outputs } else { 0 };
                let shared = moe.shared.as_ref().map_or(0, |shared| shared.d_ff);
                let side = moe.beside.as_ref().map_or(0, |beside| beside.d_ff);
                let least = add(hidden, outputs)?;
                let low = if moe.gated { least.max(mul(3, hidden)?) } else { least };
                let high = add(mul(3, hidden)?, add(beside, mul(3, self.d_model)?)?)?;
                let high = add(high, add(self.queries, add(shared, moe.n_experts)?)?)?;
                self.linear = self.linear.max(Bounds { low: add(self.d_model, low)?, high });
                for d_ff in [shared, side] {
                    let low = add(self.d_model, d_ff)?;
                    let high = add(add(mul(4, self.d_model)?, self.queries)?, mul(3, d_ff)?)?;
                    self.linear = self.linear.max(Bounds { low, high });
                }
            }
            FeedForward::ChannelMix { .. } | FeedForward::None => {}
        }
        Ok(())
    }
}

/// The last layer in which every kind of mask that the model has is still read; `None` when it has none.
fn last_masked_layer(spec: &ModelSpec) -> Option<usize> {
    let last = |windowed: bool| {
        spec.layers.iter().rposition(|layer| match &layer.mixer {
            Mixer::Mla(_) | Mixer::CompressedAttention(_) => !windowed,
            mixer => mixer.attention().is_some_and(|attention| (attention.window != Window::Full) == windowed),
        })
    };
    match (last(false), last(true)) {
        (Some(full), Some(windowed)) => Some(full.min(windowed)),
        (only, None) | (None, only) => only,
    }
}

/// Whether CUDA has a kernel for a layer's scan (`ggml-cuda.cu:ggml_backend_cuda_device_supports_op`, `SSM_SCAN`): states
/// of 16 elements in whole blocks of 128 channels for Mamba 1.
fn scans_on_cuda(mixer: &Mixer) -> bool {
    match mixer {
        Mixer::Mamba1(mamba) => mamba.d_state == 16 && mamba.d_inner.is_multiple_of(128),
        _ => true,
    }
}
