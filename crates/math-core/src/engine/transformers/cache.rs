//! Cache classes (`src/transformers/cache_utils.py`): which tensors each layer keeps.

use crate::engine::kept::{Recurrence, rows, selector, state};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Layer, Mixer, ModelSpec, Window};
use crate::units::{add, mul};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use super::VERSION;

/// Which cache `generate` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum CacheClass {
    /// Grows with every token (`DynamicCache`).
    #[default]
    Dynamic,
    /// Has its final size from the first token on (`StaticCache`).
    Static,
    /// Grows, with keys and values of all but one layer on the host (`cache_implementation="offloaded"`).
    Offloaded,
    /// Has its final size, with keys and values of all but one full-attention layer on the host (`"offloaded_static"`).
    OffloadedStatic,
    /// Grows in 8-bit floats with one scale a tensor (`QuantizedCache("fp8")`).
    Fp8,
}

impl CacheClass {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::Dynamic, Self::Static, Self::Offloaded, Self::OffloadedStatic, Self::Fp8];

    /// The name `cache_implementation` takes, as far as it has one.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Static => "static",
            Self::Offloaded => "offloaded",
            Self::OffloadedStatic => "offloaded_static",
            Self::Fp8 => "quantized",
        }
    }

    /// Whether tensors have their final size from the start.
    #[must_use]
    pub const fn is_static(self) -> bool {
        matches!(self, Self::Static | Self::OffloadedStatic)
    }
}

/// What the model's class in the library decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct ModelClass {
    /// Whether windows are only masked, and every token stays in the cache.
    pub masks_windows: bool,
    /// Tokens that the config's window is longer than the model's.
    pub longer_window: u64,
    /// Whether it brings a cache of its own, which is not followed.
    pub own_cache: bool,
}

/// The tensors that one layer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Kept {
    /// Elements of keys and values of one token.
    pub per_token: u64,
    /// The window, where the layer keeps the last tokens only.
    pub window: Option<u64>,
    /// Elements of a selector's key of one token.
    pub selector: u64,
    /// Elements of one sequence's convolution states.
    pub conv: u64,
    /// Elements of one sequence's recurrent states.
    pub recurrent: u64,
}

fn unknown(mechanism: &str) -> MathError {
    MathError::Unsupported { engine: VERSION.to_string(), mechanism: mechanism.to_string() }
}

/// What a layer keeps.
///
/// # Errors
/// [`MathError::Unsupported`] for a mechanism whose class is not followed, [`MathError::Overflow`].
pub fn kept(layer: &Layer, class: ModelClass, d_model: u64) -> Result<Kept, MathError> {
    if class.own_cache {
        return Err(unknown("the cache that this model's class brings along"));
    }
    if layer.hash_history > 0 {
        return Err(unknown("histories of hash embeddings"));
    }
    let mut out = match &layer.mixer {
        // Latents are cached before they are expanded: one compressed vector and one rope key.
        Mixer::Mla(mla) => Kept {
            per_token: add(mla.kv_lora_rank, mla.qk_rope_head_dim)?,
            window: mla.window.tokens(),
            selector: selector(mla.indexer.as_ref()),
            ..Kept::default()
        },
        Mixer::CompressedAttention(_) => return Err(unknown("attention over compressed tokens")),
        mixer => match rows(mixer) {
            Some(rows) => Kept {
                per_token: rows.per_token()?,
                // The class of a chunk is the class of a window; only its mask differs.
                window: if matches!(rows.window, Window::Symmetric { .. }) { None } else { rows.window.tokens() },
                selector: rows.selector,
                ..Kept::default()
            },
            None => Kept::default(),
        },
    };
    out.window = out.window.filter(|_| !class.masks_windows).map(|window| add(window, class.longer_window)).transpose()?;
    if let Some(state) = state(&layer.mixer, d_model)? {
        match state.recurrence {
            Recurrence::Mamba1 | Recurrence::Mamba2 | Recurrence::GatedDelta | Recurrence::ShortConv => {}
            Recurrence::KimiDelta | Recurrence::Lightning | Recurrence::Rwkv | Recurrence::Rglru => {
                return Err(unknown(state.recurrence.name()));
            }
        }
        // A convolution state holds the kernel's full length: its last column is the newest token.
        out.conv = mul(state.width, state.taps)?;
        out.recurrent = state.recurrent;
    }
    Ok(out)
}

/// Bytes of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerBytes {
    /// Keys, values and selectors' keys.
    pub kv: u64,
    /// Convolution and recurrent states.
    pub state: u64,
    /// What the memory behind the tensors holds beyond them once a token was generated.
    pub behind: u64,
    /// The most it may hold: after a prompt as long as the context.
    pub behind_at_most: u64,
}

/// What is asked of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheRequest {
    /// Which cache.
    pub class: CacheClass,
    /// The type the model computes in.
    pub dtype: StorageFormat,
    /// Tokens in the cache of every sequence.
    pub context: u64,
    /// Sequences of the batch.
    pub sequences: u64,
}

impl CacheRequest {
    /// Bytes of a layer.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn bytes(&self, layer: Kept) -> Result<LayerBytes, MathError> {
        let element = self.dtype.block_bytes();
        let rows = |tokens: u64| mul(mul(layer.per_token, tokens)?, self.sequences);
        let mut out = LayerBytes::default();
        let stored = if self.class == CacheClass::Fp8 { 1 } else { element };
        let kept = match layer.window {
            // A window counts the token that is being read: the last one less is kept (`DynamicSlidingWindowLayer.update`).
            Some(window) if !self.class.is_static() => self.context.min(window.saturating_sub(1)),
            Some(window) => self.context.min(window),
            None => self.context,
        };
        out.kv = mul(rows(kept)?, stored)?;
        if layer.window.is_some() && !self.class.is_static() {
            // The kept part is a view of the concatenation it was cut from.
            let held = layer.window.map_or(kept, |window| self.context.min(window));
            out.behind = mul(rows(held.saturating_sub(kept))?, stored)?;
            out.behind_at_most = mul(rows(self.context.saturating_sub(kept))?, stored)?;
        }
        if layer.selector > 0 {
            let keys = mul(mul(layer.selector, self.context)?, self.sequences)?;
            out.kv = add(out.kv, mul(keys, element)?)?;
        }
        let conv = mul(mul(layer.conv, element)?, self.sequences)?;
        // Scans return their states in single precision.
        let recurrent = mul(mul(layer.recurrent, 4)?, self.sequences)?;
        out.state = add(conv, recurrent)?;
        Ok(out)
    }
}

/// What all layers keep, in order.
///
/// # Errors
/// As [`kept`], and [`MathError::Refused`] for a cache that the model's layers do not allow.
pub fn layers(spec: &ModelSpec, model: ModelClass, class: CacheClass) -> Result<Vec<Kept>, MathError> {
    if spec.encoder.is_some() || spec.layers.iter().any(|layer| layer.cross_attention.is_some()) {
        return Err(unknown("caches of encoder-decoders and cross attention"));
    }
    let mut out = Vec::new();
    for layer in &spec.layers {
        out.push(kept(layer, model, spec.d_model)?);
    }
    if class == CacheClass::Fp8
        && let Some(odd) =
            out.iter().find(|layer| layer.window.is_some() || layer.conv > 0 || layer.selector > 0 || layer.per_token == 0)
    {
        let kind = match odd {
            Kept { window: Some(_), .. } => "sliding_attention",
            Kept { selector: 1.., .. } => "indexed_attention",
            _ => "linear_attention",
        };
        let reason = format!("`QuantizedCache` is only supported for models with only full attention layers, not {kind}");
        return Err(MathError::Refused { engine: VERSION.to_string(), reason });
    }
    Ok(out)
}
