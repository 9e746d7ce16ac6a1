//! The few facts about a model that llama.cpp's quantizer and loader decide by, beside the tensors themselves.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::build::Build;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Attends, FeedForward, Layer, Mixer, ModelSpec};

/// Sizes of the state space, which decide whether a device can scan it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScanFacts {
    /// State elements a channel.
    pub d_state: u64,
    /// Channels.
    pub d_inner: u64,
    /// Groups that share B and C; 0 counts as one.
    pub n_groups: u64,
}

/// What the quantizer and the loader know of a model from its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LoaderFacts {
    /// The architecture's name in GGUF files.
    pub arch: String,
    /// Layers of the trunk.
    pub n_layers: u32,
    /// Layers with those of multi-token prediction.
    pub n_layers_all: u32,
    /// Routed experts; 0 for a dense model.
    pub n_experts: u64,
    /// Query heads of the first layer.
    pub n_heads: u64,
    /// Key and value heads of the first layer; 0 where it has no attention.
    pub n_kv_heads: u64,
    /// The state space, if there is one.
    pub scan: Option<ScanFacts>,
    /// Whether each layer of the trunk takes the file's table of rotation factors; empty when all do.
    pub takes_rope_factors: Vec<bool>,
    /// The block format in which the checkpoint holds its experts and the converter copies them; `None` where it holds
    /// plain numbers.
    pub packed_experts: Option<StorageFormat>,
}

/// Architectures whose files give one number of heads for all layers, recurrent ones included.
const ONE_HEAD_COUNT: &[&str] = &["qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01"];

impl LoaderFacts {
    /// The facts of `spec`.
    ///
    /// # Errors
    /// [`MathError::Unsupported`] when llama.cpp does not know the architecture, [`MathError::Overflow`] when there are
    /// more layers than a file can number.
    pub fn of(spec: &ModelSpec, build: Build) -> Result<Self, MathError> {
        let Some(arch) = spec.llama_cpp_arch.clone() else {
            return Err(MathError::Unsupported {
                engine: build.engine().to_string(),
                mechanism: alloc::format!("the architecture {}", spec.architecture),
            });
        };
        let count = |n: usize| u32::try_from(n).map_err(|_| MathError::Overflow { quantity: "layers" });
        // Encoder-decoder files number their blocks by the encoder (`block_count`).
        let trunk = spec.encoder.as_ref().map_or(&spec.layers, |encoder| &encoder.layers);
        let n_layers = count(trunk.len())?;
        let n_layers_all = n_layers
            .checked_add(count(spec.mtp.len())?)
            .and_then(|layers| layers.checked_add(spec.operations.n_missing_layers))
            .ok_or(MathError::Overflow { quantity: "layers" })?;
        let (n_heads, n_kv_heads) = heads(&arch, trunk);
        let n_experts = spec
            .layers
            .iter()
            .filter_map(|layer| match &layer.feed_forward {
                FeedForward::Moe(moe) => Some(moe.n_experts),
                FeedForward::Dense(_) | FeedForward::ChannelMix { .. } | FeedForward::None => None,
            })
            .max()
            .unwrap_or(0);
        let scan = spec.layers.iter().find_map(|layer| scan(&layer.mixer));
        let packed_experts = packed_experts(&arch);
        let takes_rope_factors = takes_rope_factors(&arch, trunk);
        Ok(Self { takes_rope_factors, arch, n_layers, n_layers_all, n_experts, n_heads, n_kv_heads, scan, packed_experts })
    }

    /// Whether a layer takes the file's table of rotation factors.
    #[must_use]
    pub fn takes_rope_factors(&self, layer: u32) -> bool {
        layer < self.n_layers
            && usize::try_from(layer).ok().and_then(|layer| self.takes_rope_factors.get(layer)).copied().unwrap_or(true)
    }

    /// Query heads per key and value head in the first layer (`llama-hparams.cpp:n_gqa`).
    #[must_use]
    pub const fn n_gqa(&self) -> u64 {
        match self.n_heads.checked_div(self.n_kv_heads) {
            Some(ratio) => ratio,
            None => 0,
        }
    }

    /// Whether the loader classes the model as a 70B one, which the quantizer treats on its own
    /// (`src/models/*.cpp:load_arch_hparams`, by the number of layers).
    #[must_use]
    pub fn is_70b(&self) -> bool {
        match self.arch.as_str() {
            "llama" => self.n_layers == 80 && self.n_heads != self.n_kv_heads,
            "qwen2" | "deci" | "olmo" => self.n_layers == 80,
            "jais2" => self.n_layers == 68,
            _ => false,
        }
    }
}

/// Gemma 4 and LFM 3 rotate by the file's table in their full-attention layers only (`models/gemma4.cpp`, `models/lfm3.cpp`),
/// the others in all layers that have weights of their own. Empty for all layers.
fn takes_rope_factors(arch: &str, layers: &[Layer]) -> Vec<bool> {
    let sees_everything = |layer: &Layer| layer.mixer.attention().map(|attention| attention.window.tokens().is_none());
    let takes = |layer: &Layer| {
        layer.weights_of.is_none()
            && match arch {
                "gemma4" | "gemma4-assistant" => sees_everything(layer).unwrap_or(true),
                "lfm3" => sees_everything(layer).unwrap_or(false),
                _ => true,
            }
    };
    if layers.iter().all(takes) { Vec::new() } else { layers.iter().map(takes).collect() }
}

/// gpt-oss is published with its experts in MXFP4, which the converter copies block by block
/// (`conversion/gpt_oss.py:generate_extra_tensors`).
#[must_use]
pub fn packed_experts(arch: &str) -> Option<StorageFormat> {
    (arch == "gpt-oss").then_some(StorageFormat::Mxfp4)
}

/// Heads of the first layer as the file's metadata has them.
fn heads(arch: &str, layers: &[Layer]) -> (u64, u64) {
    let of = |mixer: &Mixer| match mixer.attends() {
        Attends::Heads(attention) => Some((attention.n_heads, attention.n_kv_heads)),
        // The converter writes a cached latent as one key and value head that all queries share.
        Attends::Latent(mla) => Some((mla.n_heads, if mla.expanded { mla.n_heads } else { 1 })),
        Attends::Compressed(attention) => Some((attention.n_heads, 1)),
        Attends::Never => None,
    };
    let first = if ONE_HEAD_COUNT.contains(&arch) {
        layers.iter().find_map(|layer| of(&layer.mixer))
    } else {
        layers.first().and_then(|layer| of(&layer.mixer))
    };
    first.unwrap_or((0, 0))
}

fn scan(mixer: &Mixer) -> Option<ScanFacts> {
    match mixer {
        Mixer::Mamba1(mamba) => Some(ScanFacts { d_state: mamba.d_state, d_inner: mamba.d_inner, n_groups: 0 }),
        Mixer::Mamba2(mamba) => Some(ScanFacts { d_state: mamba.d_state, d_inner: mamba.d_inner, n_groups: mamba.n_groups }),
        Mixer::Parallel(parallel) => scan(&parallel.state),
        Mixer::Attention(_)
        | Mixer::Mla(_)
        | Mixer::CompressedAttention(_)
        | Mixer::GatedDeltaNet(_)
        | Mixer::KimiDelta(_)
        | Mixer::LightningAttention(_)
        | Mixer::Rwkv(_)
        | Mixer::ShortConv(_)
        | Mixer::Rglru(_)
        | Mixer::None => None,
    }
}
