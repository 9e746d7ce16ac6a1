//! Pools of tokens and states (`sglang/srt/model_executor/pool_configurator.py`, `mem_cache/kv_cache_configurator.py`).

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use super::VERSION;
use crate::engine::kept::{Rows, rows, selector};
use crate::engine::vllm::facts::Checkpoint;
use crate::engine::vllm::options::Knobs;
use crate::engine::vllm::states::{StateContext, state_of};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Mixer, ModelSpec, Window};
use crate::units::{add, mul, round_up};

/// Tokens of the window pool for those of the full pool (`--swa-full-tokens-ratio` 0.8).
pub const WINDOW_SHARE: (u64, u64) = (4, 5);
/// Share of what is left that goes to states: 0.9 parts to one for tokens (`--mamba-full-memory-ratio`).
const STATE_SHARE: (u64, u64) = (9, 19);
/// Slots of states that a running request may hold (`MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO`).
const STATE_SLOTS: u64 = 3;
/// Tokens between evictions from a window pool (`SGLANG_SWA_EVICTION_INTERVAL`).
const EVICTION_INTERVAL: u64 = 128;

/// Formats of cached keys and values (`--kv-cache-dtype`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum CacheType {
    /// As the model computes.
    Auto,
    /// 8-bit floats.
    Fp8,
}

/// What SGLang's class of a model decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct ModelClass {
    /// Whether layers with windows have a pool of their own.
    pub windows: bool,
    /// Whether states have one; a class that keeps states elsewhere is not followed.
    pub states: bool,
}

/// What a token and a request cost on one rank, all layers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Costs {
    /// Bytes of a token in the full pool.
    pub full: u64,
    /// Bytes of a token in the pool of windows; 0 without one.
    pub windows: u64,
    /// The widest sliding window, with a pool of windows.
    pub window: u64,
    /// Bytes of one slot of states.
    pub state: u64,
}

/// What is asked of the pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Bytes for all pools.
    pub budget: u64,
    /// Tokens of a page.
    pub page: u64,
    /// The longest request.
    pub context: u64,
    /// `--max-running-requests`.
    pub max_running: Option<u64>,
    /// Tokens of the pool of windows for those of the full pool, as a fraction.
    pub window_share: (u64, u64),
    /// Whether prefixes are cached (`--disable-radix-cache`).
    pub radix: bool,
    /// Tokens of a prompt that are read at a time.
    pub chunk: u64,
}

/// What the pools hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Tokens of the full pool (of the pool of windows, where every layer has one).
    pub tokens: u64,
    /// Tokens of the pool of windows.
    pub window_tokens: u64,
    /// Slots of states.
    pub slots: u64,
    /// Requests that run at a time.
    pub requests: u64,
}

fn unsupported(mechanism: &str) -> MathError {
    MathError::Unsupported { engine: VERSION.to_string(), mechanism: mechanism.to_string() }
}

fn refused(reason: alloc::string::String) -> MathError {
    MathError::Refused { engine: VERSION.to_string(), reason }
}

/// Costs on a rank.
///
/// # Errors
/// [`MathError::Unsupported`] for what is not followed, [`MathError::Overflow`].
pub fn costs(spec: &ModelSpec, checkpoint: &Checkpoint, knobs: &Knobs, cache: CacheType) -> Result<Costs, MathError> {
    costs_of(spec, checkpoint, knobs, cache, (0, u64::MAX))
}

/// First and last (exclusive) layer of every pipeline stage: the last stages have one more where there is a rest
/// (`distributed/utils.py:get_pp_indices`).
#[must_use]
pub fn stages(layers: u64, ranks: u64) -> Vec<(u64, u64)> {
    let ranks = ranks.max(1);
    let (each, rest) = (layers / ranks, layers % ranks);
    let start = |rank: u64| rank * each + rank.saturating_sub(ranks - rest);
    (0..ranks).map(|rank| (start(rank), start(rank + 1))).collect()
}

/// The same for the layers of one stage, first and last (exclusive).
///
/// # Errors
/// As [`costs`].
pub fn costs_of(
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    knobs: &Knobs,
    cache: CacheType,
    layers: (u64, u64),
) -> Result<Costs, MathError> {
    if spec.encoder.is_some() || spec.layers.iter().any(|layer| layer.cross_attention.is_some()) {
        return Err(unsupported("caches of encoder-decoders and cross attention"));
    }
    let tensor = knobs.parallelism.tensor.max(1);
    let element = match cache {
        CacheType::Auto => checkpoint.dtype.block_bytes(),
        CacheType::Fp8 => 1,
    };
    let mut out = Costs::default();
    let mut first: Option<Rows> = None;
    // States are kept in single precision unless the model's config says otherwise (`mamba_utils.py:mamba2_state_dtype`).
    let state_knobs = Knobs { ssm_dtype: knobs.ssm_dtype.or(checkpoint.ssm_dtype).or(Some(StorageFormat::F32)), ..knobs.clone() };
    let context = StateContext { knobs: &state_knobs, checkpoint, d_model: spec.d_model };
    for (index, layer) in (0_u64..).zip(&spec.layers) {
        if !(layers.0..layers.1).contains(&index) {
            continue;
        }
        let mixer = match &layer.mixer {
            Mixer::Parallel(parallel) => parallel.state.as_ref(),
            mixer => mixer,
        };
        if let Some(state) = state_of(mixer) {
            if !checkpoint.sglang.states {
                return Err(unsupported("states outside its pool of states, as it has no class for this model"));
            }
            out.state = add(out.state, state.bytes(&context)?)?;
        }
        match &layer.mixer {
            Mixer::Mla(mla) => {
                let mut token = mul(add(mla.kv_lora_rank, mla.qk_rope_head_dim)?, element)?;
                if mla.indexer.is_some() && cache == CacheType::Fp8 {
                    return Err(unsupported("scaled latents of sparse attention in 8 bits"));
                }
                // A selector's keys are 8-bit floats with a scale for every 128.
                let key = selector(mla.indexer.as_ref());
                token = add(token, add(key, mul(key / 128, 4)?)?)?;
                out.full = add(out.full, token)?;
            }
            Mixer::CompressedAttention(_) => return Err(unsupported("attention over compressed tokens")),
            Mixer::Rwkv(_) | Mixer::Rglru(_) => return Err(unsupported("this recurrence")),
            mixer => {
                if let Mixer::Attention(attention) = mixer
                    && let Some(mechanism) = attention.kv_source.without_own()
                {
                    return Err(unsupported(mechanism));
                }
                let Some(own) = rows(mixer) else { continue };
                let heads = (own.heads / tensor).max(1);
                let token = mul(mul(heads, add(own.k, own.v)?)?, element)?;
                match own.window {
                    Window::Sliding { tokens } if checkpoint.sglang.windows => {
                        out.windows = add(out.windows, token)?;
                        out.window = out.window.max(tokens);
                    }
                    // A chunk is no window whose length the pool's checks know.
                    Window::Chunked { .. } if checkpoint.sglang.windows => out.windows = add(out.windows, token)?,
                    _ => {
                        // One pool has one shape, the config's.
                        let shape = Rows { window: Window::Full, selector: 0, ..own };
                        if *first.get_or_insert(shape) != shape {
                            return Err(unsupported("layers with different heads in one pool"));
                        }
                        out.full = add(out.full, token)?;
                    }
                }
            }
        }
    }
    Ok(out)
}

impl Costs {
    /// What a budget holds.
    ///
    /// # Errors
    /// [`MathError::Refused`] where the engine would stop, [`MathError::Overflow`].
    pub fn sizes(&self, request: &Request) -> Result<Sizes, MathError> {
        let mut out = Sizes::default();
        let mut rest = request.budget;
        if self.state > 0 {
            out.slots = match request.max_running {
                Some(most) if !request.radix => most.max(1),
                _ => {
                    let share = mul(rest, STATE_SHARE.0)? / STATE_SHARE.1;
                    // One slot more than are counted pads the pool.
                    share.checked_sub(self.state).map_or(0, |share| share / self.state)
                }
            };
            if out.slots == 0 {
                return Err(refused("Not enough GPU memory for hybrid (mamba/linear-attention) state cache.".to_string()));
            }
            rest = rest.saturating_sub(mul(add(out.slots, 1)?, self.state)?);
        }
        let page = request.page.max(1);
        let whole = |tokens: u64| tokens / page * page;
        match (self.full, self.windows) {
            (0, 0) => out.tokens = whole(request.context),
            (0, windows) => {
                out.tokens = whole(rest / windows);
                out.window_tokens = out.tokens;
            }
            (full, 0) => out.tokens = whole(rest / full),
            (full, windows) => self.split(request, rest, full, windows, &mut out)?,
        }
        if out.tokens == 0 {
            return Err(refused("Not enough memory. Please try to increase --mem-fraction-static.".to_string()));
        }
        let estimated = (u128::from(out.tokens) * 512).checked_div(u128::from(request.context)).unwrap_or(0);
        let estimated = u64::try_from(estimated).unwrap_or(u64::MAX).clamp(2048, 4096);
        out.requests = request.max_running.unwrap_or(estimated).min(out.tokens / 2);
        if self.state > 0 {
            let each = if request.radix { STATE_SLOTS } else { 1 };
            out.requests = out.requests.min(out.slots / each);
            if out.requests == 0 {
                return Err(refused(
                    "Hybrid (mamba/linear-attention) state cache is too small to serve any requests.".to_string(),
                ));
            }
        }
        Ok(out)
    }

    /// Two pools: by a share, or by what running requests can hold at worst where nothing else is kept.
    fn split(&self, request: &Request, rest: u64, full: u64, windows: u64, out: &mut Sizes) -> Result<(), MathError> {
        let page = request.page.max(1);
        if let Some(most) = request.max_running.filter(|_| !request.radix && self.window > 0) {
            let each = add(add(add(self.window, EVICTION_INTERVAL)?, page)?, page)?;
            let cap = add(add(mul(each, most.max(1))?, mul(2, request.chunk)?)?, page)?;
            out.window_tokens = round_up(cap, page)?;
            out.tokens = rest.saturating_sub(mul(out.window_tokens, windows)?) / full / page * page;
            return Ok(());
        }
        let (numerator, denominator) = request.window_share;
        let per_token = add(mul(full, denominator)?, mul(windows, numerator)?)?;
        out.tokens = mul(rest, denominator)? / per_token / page * page;
        out.window_tokens = mul(out.tokens, numerator)? / denominator / page * page;
        if self.window > 0 && add(self.window, page)? >= out.window_tokens {
            return Err(refused(format!(
                "SWA pool ({} tokens) cannot hold even one request: the prefill admission floor is sliding_window_size ({}) + \
                 page_size ({page})",
                out.window_tokens, self.window
            )));
        }
        Ok(())
    }

    /// Bytes of the pools: every one has a page, or a slot, more than it hands out.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn bytes(&self, sizes: &Sizes, page: u64) -> Result<(u64, u64), MathError> {
        let full = if self.full > 0 { mul(self.full, add(sizes.tokens, page)?)? } else { 0 };
        let windows = if self.windows > 0 { mul(self.windows, add(sizes.window_tokens, page)?)? } else { 0 };
        let states = if self.state > 0 { mul(self.state, add(sizes.slots, 1)?)? } else { 0 };
        Ok((add(full, windows)?, states))
    }
}
