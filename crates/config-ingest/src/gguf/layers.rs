//! One layer: its mixer and its feed-forward, from the metadata and the tensors it has.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use plimsoll_math::spec::{
    Attention, AttentionBias, CompressedAttention, Dense, FeedForward, GatedDeltaNet, Indexer, KimiDelta, KvSource, Layer,
    LayerOperations, LightningAttention, Mamba1, Mamba2, Mixer, Mla, Moe, Norm, OutputGate, Parallel, QkNorm, QkvLayout, Rwkv,
    RwkvVersion, ShortConv, Window,
};
use plimsoll_math::tensor::{Component, Counts, Place, Shape};

use super::arch::{Arch, Attending, CacheRule, IndexerRule, State};
use super::hparams::Hparams;
use super::keys::Keys;
use super::names::{self, Parts};
use crate::error::IngestError;

/// The tensors of one layer, by their names inside it.
#[derive(Debug, Default, Clone)]
pub(super) struct LayerTensors<'a> {
    shapes: BTreeMap<&'a str, Shape>,
}

impl<'a> LayerTensors<'a> {
    pub(super) fn insert(&mut self, inner: &'a str, shape: Shape) {
        self.shapes.insert(inner, shape);
    }
    fn get(&self, inner: &str) -> Option<Shape> {
        self.shapes.get(inner).copied()
    }
    fn has(&self, inner: &str) -> bool {
        self.shapes.contains_key(inner)
    }
    fn weight(&self, stem: &str) -> Option<Shape> {
        self.get(&format!("{stem}.weight"))
    }
    fn bias(&self, stem: &str) -> bool {
        self.has(&format!("{stem}.bias"))
    }
    fn norms(&self) -> Vec<Norm> {
        let place = Place::Layer(0);
        self.shapes
            .iter()
            .filter(|(inner, _)| names::component(Parts { place, inner }) == Component::Norms)
            .filter_map(|(inner, shape)| Some((inner.strip_suffix(".weight")?, shape)))
            .filter(|(_, shape)| shape.n_dims() == 1)
            .map(|(name, shape)| Norm { name: name.to_string(), width: shape.row(), bias: self.bias(name) })
            .collect()
    }
}

/// Columns of a matrix: how many elements it yields.
fn n_out(shape: Shape) -> u64 {
    let [_, n_out, _, _] = shape.0;
    n_out
}

/// What every layer of a model is built from.
pub(super) struct Builder<'a> {
    pub(super) keys: Keys<'a>,
    pub(super) arch: &'static Arch,
    pub(super) hparams: &'a Hparams,
}

impl Builder<'_> {
    /// Layer `il` with the tensors `tensors`.
    pub(super) fn layer(&self, il: usize, tensors: &LayerTensors<'_>) -> Result<Layer, IngestError> {
        let cross_attention = tensors.weight("cross_attn_q").map(|_| self.plain_attention(il, tensors, "cross_attn"));
        Ok(Layer {
            mixer: self.mixer(il, tensors)?,
            cross_attention,
            feed_forward: self.feed_forward(il, tensors)?,
            norms: tensors.norms(),
            extra: Vec::new(),
            hash_history: self.hash_history(tensors)?,
            // A matrix that is there beside the others is loaded and not read (`qwen3next.cpp:build_qkvz`).
            told: LayerOperations {
                one_matrix: tensors.weight("ssm_in").is_some() && tensors.weight("attn_qkv").is_none(),
                ..LayerOperations::NONE
            },
            weights_of: None,
        })
    }

    /// The convolution over hash embeddings reaches back as far as its kernel, spread by the length of the n-grams
    /// (`llama-hparams.cpp:ple_conv_state`).
    fn hash_history(&self, tensors: &LayerTensors<'_>) -> Result<u64, IngestError> {
        let Some(kernel) = tensors.weight("ple_conv1d") else { return Ok(0) };
        let [taps, width, ..] = kernel.0;
        let spread = self.keys.u64("ple.ngram_size")?.unwrap_or(0);
        Ok(taps.saturating_sub(1).saturating_mul(spread).saturating_mul(width))
    }

    fn at<T: Copy + Default>(values: &[T], il: usize) -> T {
        values.get(il).copied().unwrap_or_default()
    }

    fn mixer(&self, il: usize, tensors: &LayerTensors<'_>) -> Result<Mixer, IngestError> {
        let h = self.hparams;
        let recurrent = Self::at(&h.recurrent, il);
        if self.arch.state == State::Mamba2BesideAttention && recurrent {
            let attention = self.plain_attention(il, tensors, "attn");
            let state = Box::new(Mixer::Mamba2(self.mamba2(tensors)?));
            return Ok(Mixer::Parallel(Parallel { attention, state }));
        }
        if recurrent {
            return self.state(tensors);
        }
        if Self::at(&h.mixerless, il) || Self::at(&h.n_kv_heads, il) == 0 {
            return Ok(Mixer::None);
        }
        if self.arch.attending == Attending::Compressed {
            return self.compressed(il, tensors);
        }
        if tensors.weight("attn_kv_a_mqa").is_some() {
            return self.latent(il, tensors).map(Mixer::Mla);
        }
        let mut attention = self.plain_attention(il, tensors, "attn");
        attention.indexer = self.indexer(il)?;
        Ok(Mixer::Attention(attention))
    }

    fn window(&self, il: usize) -> Window {
        Self::at(&self.hparams.windows, il)
    }

    /// Elements of a query or key head, and of a value head (`llama-hparams.cpp:n_embd_head_k`).
    fn head_dims(&self, il: usize) -> (u64, u64) {
        let h = self.hparams;
        if matches!(self.window(il), Window::Full) {
            (h.k_head_dim, h.v_head_dim)
        } else {
            (h.k_head_dim_window, h.v_head_dim_window)
        }
    }

    fn plain_attention(&self, il: usize, tensors: &LayerTensors<'_>, name: &str) -> Attention {
        let h = self.hparams;
        let (k_head_dim, v_head_dim) = self.head_dims(il);
        let n_heads = Self::at(&h.n_heads, il);
        let weight = |suffix: &str| tensors.weight(&format!("{name}_{suffix}"));
        let bias = |suffix: &str| tensors.bias(&format!("{name}_{suffix}"));
        let fused = weight("qkv");
        let layout = match (fused, weight("k"), weight("v")) {
            (Some(_), _, _) => QkvLayout::Fused,
            (None, Some(_), None) => QkvLayout::ValueIsKey,
            (None, None, _) if weight("q").is_some() => QkvLayout::QueryOnly,
            (None, _, _) => QkvLayout::Split,
        };
        let q_width = n_heads.saturating_mul(k_head_dim);
        let output = weight("output").or_else(|| weight("o"));
        let gate = match (weight("gate"), weight("q")) {
            (Some(gate), _) => OutputGate::Own { width: if gate.n_dims() == 1 { 1 } else { n_out(gate) } },
            (None, Some(query)) if q_width > 0 && n_out(query) == q_width.saturating_mul(2) => OutputGate::InQuery,
            (None, _) => OutputGate::None,
        };
        let other_width = |width: u64| Some(width).filter(|width| *width != h.d_model);
        let norm = |suffix: &str| {
            weight(suffix).map_or([0, 0], |shape| {
                let [width, heads, _, _] = shape.0;
                [width, heads]
            })
        };
        let is_cross = name != "attn";
        Attention {
            n_heads,
            n_kv_heads: Self::at(&h.n_kv_heads, il),
            k_head_dim,
            v_head_dim,
            d_input: fused.or_else(|| weight("q")).and_then(|shape| other_width(shape.row())),
            d_kv_input: None,
            d_output: output.and_then(|shape| other_width(n_out(shape))),
            window: self.window(il),
            sinks: weight("sinks").is_some(),
            kv_source: if is_cross || self.arch.cache == CacheRule::None {
                KvSource::NotCached
            } else {
                Self::at(&h.kv_source, il).map_or(KvSource::Own, |layer| KvSource::Layer { layer })
            },
            layout,
            bias: AttentionBias {
                q: bias("q") || bias("qkv"),
                k: bias("k") || bias("qkv"),
                v: bias("v") || bias("qkv"),
                o: bias("output") || bias("o"),
            },
            qk_norm: QkNorm { q: norm("q_norm"), k: norm("k_norm"), bias: bias("q_norm") },
            gate,
            relative_buckets: weight("rel_b").map_or(0, n_out),
            indexer: None,
            bidirectional: !h.causal || is_cross,
            rotates: h.rotates.as_ref().map(|rotates| Self::at(rotates, il)),
            extra: Vec::new(),
        }
    }

    fn indexer(&self, il: usize) -> Result<Option<Indexer>, IngestError> {
        let head_dim = self.keys.or_zero("attention.indexer.key_length")?;
        let attends_sparsely = self.hparams.indexer.iter().any(|own| *own);
        // Leading dense layers have none at all; later ones without their own reuse an earlier one's choice.
        let own = Self::at(&self.hparams.indexer, il);
        let follows = self.hparams.indexer.iter().take(il).any(|own| *own);
        if head_dim == 0 || !attends_sparsely || il >= self.hparams.n_trunk || !(own || follows) {
            return Ok(None);
        }
        let blocks = self.arch.indexer == IndexerRule::AfterDense;
        let block = if blocks { self.keys.need("attention.indexer.block_size")? } else { 1 };
        Ok(Some(Indexer {
            n_heads: self.keys.or_zero("attention.indexer.head_count")?,
            head_dim,
            // Files that choose blocks count blocks (`minimax-m3.cpp:load_arch_hparams`).
            top_k: self.keys.or_zero("attention.indexer.top_k")?.saturating_mul(block),
            block,
            own,
            weights: Vec::new(),
        }))
    }

    /// Latent attention. Where the file says how long a head's key and value are before compression, the engine caches
    /// latents (`llama-hparams.cpp:is_mla`); else it expands them and caches keys and values of every head.
    fn latent(&self, il: usize, tensors: &LayerTensors<'_>) -> Result<Mla, IngestError> {
        let h = self.hparams;
        let keys = &self.keys;
        let (k_head_dim, v_head_dim) = self.head_dims(il);
        let windowed = !matches!(self.window(il), Window::Full);
        let variant = |name: &str| -> Result<u64, IngestError> {
            let of_window = if windowed { keys.u64(&format!("{name}_swa"))? } else { None };
            Ok(of_window.or(keys.u64(name)?).unwrap_or(0))
        };
        let kv_lora_rank = variant("attention.kv_lora_rank")?;
        let key_length = variant("attention.key_length_mla")?;
        let value_length = variant("attention.value_length_mla")?;
        let expanded = key_length == 0 || value_length == 0;
        let (rope, key, value) = if expanded {
            (keys.u64("rope.dimension_count")?.unwrap_or(k_head_dim), k_head_dim, v_head_dim)
        } else {
            // The cached row is the latent with the rope part behind it.
            let rope = k_head_dim.checked_sub(kv_lora_rank).ok_or_else(|| IngestError::Field {
                place: format!("{}.attention.key_length", keys.architecture),
                found: k_head_dim.to_string(),
                expected: format!("at least kv_lora_rank {kv_lora_rank}"),
            })?;
            (rope, key_length, value_length)
        };
        Ok(Mla {
            n_heads: Self::at(&h.n_heads, il),
            q_lora_rank: tensors.weight("attn_q_a").map(n_out),
            kv_lora_rank,
            qk_nope_head_dim: key.saturating_sub(rope),
            qk_rope_head_dim: rope,
            v_head_dim: value,
            window: self.window(il),
            bias: tensors.bias("attn_kv_a_mqa"),
            expanded,
            gate: tensors
                .weight("attn_gate")
                .map_or(OutputGate::None, |gate| OutputGate::Own { width: if gate.n_dims() == 1 { 1 } else { n_out(gate) } }),
            indexer: self.indexer(il)?,
            extra: Vec::new(),
        })
    }

    fn compressed(&self, il: usize, tensors: &LayerTensors<'_>) -> Result<Mixer, IngestError> {
        let h = self.hparams;
        let ratios = self.keys.per_layer("attention.compress_ratios", h.n_layers)?.unwrap_or_default();
        let indexer = self.indexer(il)?.filter(|_| tensors.weight("indexer.attn_q_b").is_some());
        Ok(Mixer::CompressedAttention(CompressedAttention {
            n_heads: Self::at(&h.n_heads, il),
            head_dim: h.k_head_dim,
            window: self.keys.need("attention.sliding_window")?,
            ratio: Self::at(&ratios, il),
            indexer: indexer.map(|indexer| Indexer { own: true, ..indexer }),
            weights: Vec::new(),
        }))
    }

    fn state(&self, tensors: &LayerTensors<'_>) -> Result<Mixer, IngestError> {
        let keys = &self.keys;
        let h = self.hparams;
        let first_heads = h.n_heads.first().copied().unwrap_or(0);
        Ok(match self.arch.state {
            State::None => Mixer::None,
            State::Mamba1 => Mixer::Mamba1(Mamba1 {
                d_inner: keys.need("ssm.inner_size")?,
                d_state: keys.need("ssm.state_size")?,
                d_conv: keys.need("ssm.conv_kernel")?,
                dt_rank: keys.need("ssm.time_step_rank")?,
                conv_bias: tensors.bias("ssm_conv1d"),
                proj_bias: tensors.bias("ssm_in"),
                dt_b_c_norm: tensors.weight("ssm_dt_norm").is_some(),
                bare_dt_b_c_norm: keys.bool("ssm.dt_b_c_rms")?.unwrap_or(false),
                extra: Vec::new(),
            }),
            State::Mamba2 | State::Mamba2BesideAttention => Mixer::Mamba2(self.mamba2(tensors)?),
            State::GatedDeltaNet => {
                let n_v_heads = keys.need("ssm.time_step_rank")?;
                let d_inner = keys.need("ssm.inner_size")?;
                Mixer::GatedDeltaNet(GatedDeltaNet {
                    n_k_heads: keys.need("ssm.group_count")?,
                    n_v_heads,
                    k_head_dim: keys.need("ssm.state_size")?,
                    v_head_dim: d_inner / n_v_heads.max(1),
                    d_conv: keys.need("ssm.conv_kernel")?,
                    fused_beta_alpha: tensors.weight("ssm_ba").is_some(),
                    extra: Vec::new(),
                })
            }
            // The engine sizes every layer's state by the first layer's heads (`llama-hparams.cpp:n_embd_s`).
            State::KimiDelta => Mixer::KimiDelta(KimiDelta {
                n_heads: first_heads,
                head_dim: keys.need("kda.head_dim")?,
                d_conv: keys.need("ssm.conv_kernel")?,
                extra: Vec::new(),
            }),
            State::Lightning => Mixer::LightningAttention(LightningAttention {
                n_heads: first_heads,
                head_dim: h.k_head_dim,
                weights: Vec::new(),
            }),
            State::Rwkv6 | State::Rwkv7 => Mixer::Rwkv(Rwkv {
                version: if self.arch.state == State::Rwkv6 { RwkvVersion::V6 } else { RwkvVersion::V7 },
                head_dim: keys.need("wkv.head_size")?,
                token_shifts: keys.u64("token_shift_count")?.unwrap_or(2),
                weights: Vec::new(),
            }),
            State::ShortConv => {
                Mixer::ShortConv(ShortConv { d_conv: keys.need("shortconv.l_cache")?, bias: tensors.bias("shortconv.in_proj") })
            }
        })
    }

    fn mamba2(&self, tensors: &LayerTensors<'_>) -> Result<Mamba2, IngestError> {
        let keys = &self.keys;
        Ok(Mamba2 {
            d_inner: keys.need("ssm.inner_size")?,
            d_state: keys.need("ssm.state_size")?,
            d_conv: keys.need("ssm.conv_kernel")?,
            n_heads: keys.need("ssm.time_step_rank")?,
            n_groups: keys.or_zero("ssm.group_count")?,
            conv_bias: tensors.bias("ssm_conv1d"),
            proj_bias: tensors.bias("ssm_in"),
            norm: tensors.weight("ssm_norm").is_some(),
            extra: Vec::new(),
        })
    }

    fn feed_forward(&self, il: usize, tensors: &LayerTensors<'_>) -> Result<FeedForward, IngestError> {
        if tensors.weight("channel_mix_key").is_some() {
            return Ok(FeedForward::ChannelMix { weights: Vec::new() });
        }
        if let Some(moe) = self.separate_experts(il, tensors) {
            return Ok(FeedForward::Moe(moe));
        }
        let dense = dense(tensors, "");
        let Some(down) = tensors.weight("ffn_down_exps") else {
            return Ok(dense.map_or(FeedForward::None, FeedForward::Dense));
        };
        let [d_ff_expert, width, n_experts, _] = down.0;
        let router = tensors.weight("ffn_gate_inp");
        let n_per_token = Self::at(&self.hparams.n_experts_per_token, il);
        if n_per_token > n_experts {
            return Err(IngestError::Field {
                place: format!("{}.expert_used_count", self.keys.architecture),
                found: n_per_token.to_string(),
                expected: format!("at most the {n_experts} experts of layer {il}"),
            });
        }
        let fused = tensors.weight("ffn_gate_up_exps").is_some();
        Ok(FeedForward::Moe(Moe {
            n_experts,
            n_experts_per_token: n_per_token,
            d_ff_expert,
            gated: fused || tensors.weight("ffn_gate_exps").is_some(),
            fused_gate_up: fused,
            expert_bias: tensors.bias("ffn_down_exps"),
            router_bias: tensors.bias("ffn_gate_inp"),
            correction_bias: (tensors.bias("exp_probs_b") || tensors.has("exp_probs_b")).then_some(Counts::Buffer),
            n_router_rows: router.map_or(Some(0), |shape| Some(n_out(shape)).filter(|rows| *rows != n_experts)),
            latent: Some(width).filter(|width| *width != self.hparams.d_model),
            shared: self::dense(tensors, "_shexp"),
            // Granite calls them a feed-forward of its own.
            shared_component: if self.keys.architecture.starts_with("granite") {
                Component::Mlp
            } else {
                Component::SharedExperts
            },
            shared_gate: tensors.weight("ffn_gate_inp_shexp").is_some(),
            beside: dense,
            extra: Vec::new(),
        }))
    }
}

impl Builder<'_> {
    /// Experts as files of the first mixtures hold them: a matrix of each, not a stack of all.
    fn separate_experts(&self, il: usize, tensors: &LayerTensors<'_>) -> Option<Moe> {
        let down = tensors.weight("ffn_down.0")?;
        let n_experts = (0_u64..).take_while(|expert| tensors.weight(&format!("ffn_down.{expert}")).is_some()).count();
        Some(Moe {
            n_experts: u64::try_from(n_experts).ok()?,
            n_experts_per_token: Self::at(&self.hparams.n_experts_per_token, il),
            d_ff_expert: down.row(),
            gated: tensors.weight("ffn_gate.0").is_some(),
            fused_gate_up: false,
            expert_bias: false,
            router_bias: tensors.bias("ffn_gate_inp"),
            correction_bias: None,
            n_router_rows: None,
            latent: None,
            shared: None,
            shared_component: Component::SharedExperts,
            shared_gate: false,
            beside: None,
            extra: Vec::new(),
        })
    }
}

fn dense(tensors: &LayerTensors<'_>, suffix: &str) -> Option<Dense> {
    let down = tensors.weight(&format!("ffn_down{suffix}"))?;
    let up = tensors.weight(&format!("ffn_up{suffix}"))?;
    let d_ff = down.row();
    let split = tensors.weight(&format!("ffn_gate{suffix}")).is_some();
    let fused = !split && n_out(up) == d_ff.saturating_mul(2);
    Some(Dense {
        d_ff,
        gated: split || fused,
        fused_gate_up: fused,
        up_bias: tensors.bias(&format!("ffn_up{suffix}")),
        down_bias: tensors.bias(&format!("ffn_down{suffix}")),
        extra: Vec::new(),
    })
}
