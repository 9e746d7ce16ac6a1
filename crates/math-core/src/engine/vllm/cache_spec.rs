//! What one layer keeps for past tokens, in pages of a shared pool (`vllm/v1/kv_cache_interface.py`).

use alloc::string::String;

use crate::error::MathError;
use crate::units::{add, mul, round_up};

use super::VERSION;

/// How much of a request a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(tag = "kind", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum CacheKind {
    /// Every token (`FullAttentionSpec`).
    Full,
    /// One latent for every token (`MLAAttentionSpec`), or the key vector of a sparse-attention selector.
    Latent,
    /// The last tokens (`SlidingWindowSpec`).
    SlidingWindow {
        /// Window in tokens.
        tokens: u64,
    },
    /// Latents or compressor states of the last tokens (`SlidingWindowMLASpec`).
    SlidingWindowLatent {
        /// Window in tokens.
        tokens: u64,
    },
    /// The tokens of the current chunk (`ChunkedLocalAttentionSpec`).
    ChunkedLocal {
        /// Chunk in tokens.
        tokens: u64,
    },
    /// An encoder's output (`CrossAttentionSpec`).
    Cross,
    /// A state of fixed size (`MambaSpec`).
    State {
        /// Blocks for drafted tokens (`num_speculative_blocks`).
        speculative_blocks: u64,
        /// Blocks for states exported in the middle of a prefill (`num_prefill_checkpoint_blocks`).
        checkpoint_blocks: u64,
    },
}

impl CacheKind {
    /// vLLM's class of specs.
    #[must_use]
    pub const fn class(self) -> &'static str {
        match self {
            Self::Full => "FullAttentionSpec",
            Self::Latent => "MLAAttentionSpec",
            Self::SlidingWindow { .. } => "SlidingWindowSpec",
            Self::SlidingWindowLatent { .. } => "SlidingWindowMLASpec",
            Self::ChunkedLocal { .. } => "ChunkedLocalAttentionSpec",
            Self::Cross => "CrossAttentionSpec",
            Self::State { .. } => "MambaSpec",
        }
    }

    /// Whether every token of a request stays (`FullAttentionSpec` and its subclasses).
    #[must_use]
    pub const fn keeps_everything(self) -> bool {
        matches!(self, Self::Full | Self::Latent)
    }

    /// Whether it holds keys and values of tokens, not a state.
    #[must_use]
    pub const fn is_attention(self) -> bool {
        !matches!(self, Self::State { .. })
    }
}

/// Bytes between blocks have to be a multiple of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum StrideAlignment {
    /// Anything goes.
    #[default]
    Any,
    /// A number of bytes.
    Bytes(u64),
    /// Whole kernel blocks of up to so many tokens.
    KernelBlock(u64),
}

/// The cache of one layer: what a page of it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CacheSpec {
    /// What it holds.
    pub kind: CacheKind,
    /// Tokens of a block.
    pub block_tokens: u64,
    /// Key-value heads of this rank; twice as many where keys and values are packed apart.
    pub head_slots: u64,
    /// Bytes of one head and one stored state (a token's key and value, a latent); for a recurrent state all of it.
    pub state_bytes: u64,
    /// Tokens that one stored state stands for.
    pub tokens_per_state: u64,
    /// The page rounded or padded up, where it is.
    pub padded_page: Option<u64>,
    /// Alignment of a page that is applied again whenever the block grows.
    pub page_alignment: u64,
    /// Alignment between blocks.
    pub stride_alignment: StrideAlignment,
    /// Whether decode context parallelism splits its tokens.
    pub context_sharded: bool,
    /// Distinct shards over tensor parallel ranks, where it is known (1 for latents).
    pub tensor_shards: Option<u64>,
    /// Tokens kept below the window for drafts of several modules.
    pub extra_retained: u64,
    /// What else keeps two caches apart: element type, head dimensions, role. Two specs merge only when it is equal.
    pub identity: Identity,
}

/// Properties that do not change a page's bytes and still keep layers from sharing a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Identity {
    /// Elements of a key head.
    pub head_size: u64,
    /// Elements of a value head.
    pub head_size_v: u64,
    /// Bytes of an element.
    pub element_bytes: u64,
    /// Format of the stored elements, as a number that only has to differ between formats.
    pub quantization: u64,
    /// Role of a latent cache: 0 for none, others as the layers that create them number them.
    pub role: u64,
    /// Width of the buffer of selected tokens.
    pub selected: u64,
    /// Shape of a recurrent state, as a number that only has to differ between shapes.
    pub shape: u64,
    /// Window of a layer whose cache was promoted to hold everything.
    pub promoted_window: Option<u64>,
}

/// What blocks per request depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RequestShape {
    /// Tokens of the longest request (`max_model_len`).
    pub max_tokens: u64,
    /// Tokens that may be scheduled and not settled (`max_in_flight_tokens`).
    pub in_flight_tokens: u64,
    /// Tokens of an encoder's output (`max_num_encoder_input_tokens`).
    pub encoder_tokens: u64,
    /// Ranks that share a request's tokens (`decode_context_parallel_size`).
    pub context_parallel: u64,
    /// Whether states are kept at block boundaries for prefix caching (`mamba_cache_mode = "align"`).
    pub states_aligned: bool,
}

fn cannot(reason: String) -> MathError {
    MathError::Refused { engine: VERSION.into(), reason }
}

impl CacheSpec {
    /// Stored states of a block.
    #[must_use]
    pub fn states(&self) -> u64 {
        match self.kind {
            CacheKind::State { .. } => 1,
            _ => self.block_tokens.checked_div(self.tokens_per_state).unwrap_or(1),
        }
    }

    /// Bytes of a page before it is padded (`unpadded_page_size_bytes`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn bare_page(&self) -> Result<u64, MathError> {
        mul(mul(self.head_slots, self.states())?, self.state_bytes)
    }

    /// Bytes of a page (`page_size_bytes`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn page(&self) -> Result<u64, MathError> {
        match self.padded_page {
            Some(padded) => Ok(padded),
            None => round_up(self.bare_page()?, self.page_alignment),
        }
    }

    /// The same with another number of tokens in a block.
    #[must_use]
    pub const fn with_block(self, tokens: u64) -> Self {
        Self { block_tokens: tokens, ..self }
    }

    /// Bytes that the distance between blocks is a multiple of (`get_block_stride_alignment`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn stride(&self) -> Result<u64, MathError> {
        match self.stride_alignment {
            StrideAlignment::Any => Ok(1),
            StrideAlignment::Bytes(bytes) => Ok(bytes.max(1)),
            StrideAlignment::KernelBlock(most) => {
                let tokens = gcd(most, self.block_tokens);
                if tokens == self.block_tokens { Ok(1) } else { self.with_block(tokens).page() }
            }
        }
    }

    /// Blocks that one request of full length takes (`max_memory_usage_bytes` in pages).
    ///
    /// # Errors
    /// [`MathError::Overflow`], or [`MathError::Refused`] for a window that would have to be shared between ranks.
    pub fn blocks_per_request(&self, request: &RequestShape) -> Result<u64, MathError> {
        let block = self.block_tokens.max(1);
        match self.kind {
            CacheKind::Full | CacheKind::Latent => {
                let ranks = if self.context_sharded { request.context_parallel.max(1) } else { 1 };
                Ok(request.max_tokens.div_ceil(ranks).div_ceil(block))
            }
            CacheKind::SlidingWindow { tokens } | CacheKind::SlidingWindowLatent { tokens } => {
                if self.context_sharded && request.context_parallel > 1 {
                    return Err(cannot("DCP not support sliding window.".into()));
                }
                let held = add(add(tokens.saturating_sub(1), self.extra_retained)?, request.in_flight_tokens)?;
                // A window rarely starts where a block does.
                add(held.min(request.max_tokens).div_ceil(block), 1)
            }
            CacheKind::ChunkedLocal { tokens } => {
                Ok(add(tokens, request.in_flight_tokens)?.min(request.max_tokens).div_ceil(block))
            }
            CacheKind::Cross => Ok(request.encoder_tokens.div_ceil(block)),
            CacheKind::State { speculative_blocks, checkpoint_blocks } => {
                if request.states_aligned {
                    add(add(2, speculative_blocks)?, checkpoint_blocks)
                } else {
                    add(1, speculative_blocks)
                }
            }
        }
    }

    /// Whether layers with these two specs may share one spec (`merge`): equal, but for full attention that differs in
    /// the window it computes with.
    #[must_use]
    pub fn merges_with(&self, other: &Self) -> bool {
        if !matches!(self.kind, CacheKind::Full) {
            return self == other;
        }
        let without = |spec: &Self| Self { identity: Identity { promoted_window: None, ..spec.identity }, ..*spec };
        let windows = (self.identity.promoted_window, other.identity.promoted_window);
        without(self) == without(other) && !matches!(windows, (Some(one), Some(two)) if one != two)
    }

    /// Whether both always need the same number of token slots (`is_uniform_with_collection`, with the checks of
    /// `UniformTypeKVCacheSpecs.is_uniform_type`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn same_type(&self, other: &Self) -> Result<bool, MathError> {
        if self.block_tokens != other.block_tokens || self.context_sharded != other.context_sharded {
            return Ok(false);
        }
        Ok(match (self.kind, other.kind) {
            (CacheKind::Full | CacheKind::Latent, CacheKind::Full | CacheKind::Latent) => true,
            (CacheKind::Cross, CacheKind::Cross) => true,
            (
                CacheKind::SlidingWindow { tokens: a },
                CacheKind::SlidingWindow { tokens: b } | CacheKind::SlidingWindowLatent { tokens: b },
            )
            | (CacheKind::SlidingWindowLatent { tokens: a }, CacheKind::SlidingWindowLatent { tokens: b })
            | (CacheKind::ChunkedLocal { tokens: a }, CacheKind::ChunkedLocal { tokens: b }) => a == b,
            (CacheKind::State { .. }, CacheKind::State { .. }) => self.kind == other.kind && self.page()? == other.page()?,
            _ => false,
        })
    }
}

/// Greatest common divisor.
#[must_use]
pub const fn gcd(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Least common multiple.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn lcm(a: u64, b: u64) -> Result<u64, MathError> {
    match gcd(a, b) {
        0 => Ok(0),
        common => mul(a / common, b),
    }
}
