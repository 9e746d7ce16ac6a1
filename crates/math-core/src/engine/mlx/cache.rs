//! Cache classes (`mlx_lm/models/cache.py`) and which of them each layer gets (`make_cache` of the model classes).

use alloc::string::ToString;
use alloc::vec::Vec;

use super::VERSION;
use crate::engine::kept::{Recurrence, rows, state};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Indexer, Layer, Mixer, ModelSpec, Window};
use crate::units::{add, mul, round_up};

/// Tokens by which a cache grows (`KVCache.step`).
pub const STEP: u64 = 256;
/// Tokens of a prompt that are read at a time (`generate_step`, `prefill_step_size`).
pub const PROMPT_STEP: u64 = 2048;
/// Tokens from which on a cache is quantized (`DEFAULT_QUANTIZED_KV_START`).
pub const QUANTIZED_FROM: u64 = 5000;
/// Elements that share a scale and a bias in a quantized cache.
pub const GROUP: u64 = 64;

/// What the model class in `mlx_lm/models` decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct ModelClass {
    /// Whether layers with a window get a rotating cache; they keep every token otherwise.
    pub rotates: bool,
    /// Whether layers with chunks get a cache that drops what lies before the chunk.
    pub chunks: bool,
    /// Whether latents are cached, instead of the keys and values that every head makes of them.
    pub latents: bool,
}

/// How many tokens a layer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Grows {
    /// All, in steps (`KVCache`).
    #[default]
    Steps,
    /// The last `tokens` (`RotatingKVCache`).
    Rotating {
        /// Window in tokens.
        tokens: u64,
    },
    /// The last `tokens` and a step beyond (`ChunkedKVCache`).
    Chunked {
        /// Chunk in tokens.
        tokens: u64,
    },
}

/// The arrays that one layer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Kept {
    /// Heads of keys and values.
    pub heads: u64,
    /// Elements of a key head.
    pub k: u64,
    /// Elements of a value head.
    pub v: u64,
    /// How they grow.
    pub grows: Grows,
    /// Elements of a selector's key, in a cache of its own.
    pub selector: u64,
    /// Elements of a state in the model's type.
    pub plain_state: u64,
    /// Elements of a state in single precision.
    pub single_state: u64,
}

fn unknown(mechanism: &str) -> MathError {
    MathError::Unsupported { engine: VERSION.to_string(), mechanism: mechanism.to_string() }
}

/// Every layer of a class with selectors has one, also where the model reuses another layer's choice.
fn selector(indexer: Option<&Indexer>) -> u64 {
    indexer.map_or(0, |indexer| indexer.head_dim)
}

/// What a layer keeps.
///
/// # Errors
/// [`MathError::Unsupported`] for a mechanism whose class is not followed, [`MathError::Overflow`].
pub fn kept(layer: &Layer, class: ModelClass, d_model: u64) -> Result<Kept, MathError> {
    if layer.hash_history > 0 {
        return Err(unknown("histories of hash embeddings"));
    }
    let mut out = match &layer.mixer {
        Mixer::Mla(mla) if class.latents => Kept {
            heads: 1,
            k: mla.kv_lora_rank,
            v: mla.qk_rope_head_dim,
            selector: selector(mla.indexer.as_ref()),
            ..Kept::default()
        },
        Mixer::Mla(mla) => Kept {
            heads: mla.n_heads,
            k: add(mla.qk_nope_head_dim, mla.qk_rope_head_dim)?,
            v: mla.v_head_dim,
            selector: selector(mla.indexer.as_ref()),
            ..Kept::default()
        },
        Mixer::CompressedAttention(_) => return Err(unknown("attention over compressed tokens")),
        mixer => match rows(mixer) {
            Some(rows) => Kept {
                heads: rows.heads,
                k: rows.k,
                v: rows.v,
                grows: match rows.window {
                    Window::Sliding { tokens } if class.rotates => Grows::Rotating { tokens },
                    Window::Chunked { tokens } if class.chunks => Grows::Chunked { tokens },
                    _ => Grows::Steps,
                },
                selector: rows.selector,
                ..Kept::default()
            },
            None => Kept::default(),
        },
    };
    if let Some(state) = state(&layer.mixer, d_model)? {
        // A convolution keeps its past inputs only; the newest one comes with the step.
        let history = mul(state.width, state.taps.saturating_sub(1))?;
        match state.recurrence {
            Recurrence::Mamba1 | Recurrence::Rwkv | Recurrence::ShortConv => out.plain_state = add(history, state.recurrent)?,
            Recurrence::Mamba2 | Recurrence::GatedDelta | Recurrence::KimiDelta => {
                out.plain_state = history;
                out.single_state = state.recurrent;
            }
            Recurrence::Lightning | Recurrence::Rglru => return Err(unknown(state.recurrence.name())),
        }
    }
    Ok(out)
}

/// What is asked of the caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheRequest {
    /// The type the model computes in.
    pub dtype: StorageFormat,
    /// Bits of a quantized cache (`--kv-bits`).
    pub bits: Option<u64>,
    /// Tokens of every sequence.
    pub context: u64,
    /// Sequences of the batch.
    pub sequences: u64,
}

/// Bytes of a layer, at least and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerBytes {
    /// Keys and values once tokens are generated.
    pub kv: (u64, u64),
    /// What windows hold beyond that while a prompt is read.
    pub while_reading: u64,
    /// States.
    pub state: u64,
}

impl CacheRequest {
    /// Tokens that a layer has room for, at least and at most: how a prompt ended decides within a step.
    fn room(&self, grows: Grows) -> Result<(u64, u64), MathError> {
        let context = self.context;
        let stepped = round_up(context, STEP)?;
        let within_a_step = add(context, STEP - 1)?;
        Ok(match grows {
            // A batch begins with the prompts' own lengths and grows by steps from there (`BatchKVCache.merge`).
            Grows::Steps if self.sequences > 1 => (context, within_a_step),
            Grows::Steps => (stepped, stepped),
            Grows::Rotating { tokens } => (context.min(tokens), within_a_step.min(tokens)),
            Grows::Chunked { tokens } if context <= tokens => (stepped, stepped),
            Grows::Chunked { tokens } => {
                let beyond = add(tokens, STEP)?;
                (beyond, beyond)
            }
        })
    }

    /// Bytes of a head's row of `elements`.
    fn row(&self, elements: u64, quantized: bool) -> Result<u64, MathError> {
        let number = self.dtype.block_bytes();
        match self.bits.filter(|_| quantized) {
            None => mul(elements, number),
            Some(bits) => add(mul(elements, bits)? / 8, mul(mul(2, elements / GROUP)?, number)?),
        }
    }

    /// Bytes of a layer.
    ///
    /// # Errors
    /// [`MathError::Refused`] where a cache cannot be quantized, [`MathError::Overflow`].
    pub fn bytes(&self, layer: Kept) -> Result<LayerBytes, MathError> {
        let quantized = self.bits.is_some() && self.context >= QUANTIZED_FROM && layer.heads > 0;
        if quantized && matches!(layer.grows, Grows::Rotating { .. }) {
            let reason = "RotatingKVCache Quantization NYI".to_string();
            return Err(MathError::Refused { engine: VERSION.to_string(), reason });
        }
        if quantized && (!layer.k.is_multiple_of(GROUP) || !layer.v.is_multiple_of(GROUP)) {
            let reason = alloc::format!("the last dimension of keys ({}) has to be a multiple of {GROUP}", layer.k);
            return Err(MathError::Refused { engine: VERSION.to_string(), reason });
        }
        // Chunked caches and those of selectors' layers have no `to_quantized`.
        let quantized = quantized && layer.selector == 0 && !matches!(layer.grows, Grows::Chunked { .. });
        let (low, high) = self.room(layer.grows)?;
        let row = add(self.row(layer.k, quantized)?, self.row(layer.v, quantized)?)?;
        let token = mul(mul(layer.heads, row)?, self.sequences)?;
        let mut kv = (mul(token, low)?, mul(token, high)?);
        if layer.selector > 0 {
            // Its keys stand in for the values that a cache has to have.
            let key = mul(mul(mul(2, layer.selector)?, self.dtype.block_bytes())?, self.sequences)?;
            let (low, high) = self.room(Grows::Steps)?;
            kv = (add(kv.0, mul(key, low)?)?, add(kv.1, mul(key, high)?)?);
        }
        let while_reading = match layer.grows {
            Grows::Steps => 0,
            Grows::Rotating { tokens } => {
                let held = self.context.min(add(tokens.saturating_sub(1), PROMPT_STEP)?);
                mul(token, held.saturating_sub(high))?
            }
            Grows::Chunked { tokens } => {
                let held = round_up(self.context.min(add(tokens, PROMPT_STEP)?), STEP)?;
                mul(token, held.saturating_sub(high))?
            }
        };
        let plain = mul(layer.plain_state, self.dtype.block_bytes())?;
        let state = mul(add(plain, mul(layer.single_state, 4)?)?, self.sequences)?;
        Ok(LayerBytes { kv, while_reading, state })
    }
}

/// What all layers keep, in order.
///
/// # Errors
/// As [`kept`], and [`MathError::Unsupported`] where MLX-LM has no class for the model.
pub fn layers(spec: &ModelSpec, class: Option<ModelClass>) -> Result<Vec<Kept>, MathError> {
    let Some(class) = class else {
        return Err(unknown(&alloc::format!("{}: its models have no such class", spec.architecture)));
    };
    if spec.encoder.is_some() || spec.layers.iter().any(|layer| layer.cross_attention.is_some()) {
        return Err(unknown("caches of encoder-decoders and cross attention"));
    }
    spec.layers.iter().map(|layer| kept(layer, class, spec.d_model)).collect()
}
