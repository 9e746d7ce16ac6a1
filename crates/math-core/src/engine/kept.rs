//! What layers keep of past tokens, in elements, before any engine stores it: keys, values, windows and states.

use crate::error::MathError;
use crate::spec::{Attention, Indexer, KvSource, Mixer, Window};
use crate::units::{add, mul};

/// Which recurrence a state belongs to: engines store them in types of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recurrence {
    /// Mamba.
    Mamba1,
    /// Mamba 2.
    Mamba2,
    /// Gated DeltaNet.
    GatedDelta,
    /// Kimi delta attention.
    KimiDelta,
    /// Lightning attention.
    Lightning,
    /// RWKV's time mixing.
    Rwkv,
    /// A convolution alone.
    ShortConv,
    /// Real-gated linear recurrent units.
    Rglru,
}

impl Recurrence {
    /// The mechanism in words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mamba1 => "Mamba",
            Self::Mamba2 => "Mamba 2",
            Self::GatedDelta => "gated DeltaNet",
            Self::KimiDelta => "Kimi delta attention",
            Self::Lightning => "lightning attention",
            Self::Rwkv => "RWKV",
            Self::ShortConv => "short convolutions",
            Self::Rglru => "real-gated linear recurrent units",
        }
    }
}

/// A state of fixed size per sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    /// What recurs.
    pub recurrence: Recurrence,
    /// Channels of the convolution, or of the tokens that are kept for a shift.
    pub width: u64,
    /// Length of the convolution's kernel; one less of its inputs are past ones.
    pub taps: u64,
    /// Elements of the recurrence.
    pub recurrent: u64,
}

/// Keys and values of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rows {
    /// Key-value heads.
    pub heads: u64,
    /// Elements of a key head.
    pub k: u64,
    /// Elements of a value head.
    pub v: u64,
    /// Which tokens are seen.
    pub window: Window,
    /// Elements of a selector's key; 0 for none.
    pub selector: u64,
}

impl Rows {
    /// Elements of keys and values of one token.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn per_token(&self) -> Result<u64, MathError> {
        mul(self.heads, add(self.k, self.v)?)
    }
}

/// Elements of the key of a selector that a layer has of its own.
#[must_use]
pub fn selector(indexer: Option<&Indexer>) -> u64 {
    indexer.filter(|indexer| indexer.own).map_or(0, |indexer| indexer.head_dim)
}

fn rows_of(attention: &Attention) -> Option<Rows> {
    (attention.kv_source == KvSource::Own).then(|| Rows {
        heads: attention.n_kv_heads,
        k: attention.k_head_dim,
        v: attention.v_head_dim,
        window: attention.window,
        selector: selector(attention.indexer.as_ref()),
    })
}

/// The keys and values that a mixer of softmax attention keeps; latents are [`Mixer::Mla`]'s own matter.
#[must_use]
pub fn rows(mixer: &Mixer) -> Option<Rows> {
    match mixer {
        Mixer::Attention(attention) => rows_of(attention),
        Mixer::Parallel(parallel) => rows_of(&parallel.attention),
        _ => None,
    }
}

/// The state that a mixer keeps, its own or that of what stands beside its attention.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn state(mixer: &Mixer, d_model: u64) -> Result<Option<State>, MathError> {
    let (recurrence, width, taps, recurrent) = match mixer {
        Mixer::Mamba1(mamba) => (Recurrence::Mamba1, mamba.d_inner, mamba.d_conv, mul(mamba.d_inner, mamba.d_state)?),
        Mixer::Mamba2(mamba) => {
            let width = add(mamba.d_inner, mul(2, mul(mamba.n_groups, mamba.d_state)?)?)?;
            (Recurrence::Mamba2, width, mamba.d_conv, mul(mamba.d_inner, mamba.d_state)?)
        }
        Mixer::GatedDeltaNet(net) => {
            let values = mul(net.n_v_heads, net.v_head_dim)?;
            let width = add(mul(2, mul(net.n_k_heads, net.k_head_dim)?)?, values)?;
            (Recurrence::GatedDelta, width, net.d_conv, mul(values, net.k_head_dim)?)
        }
        Mixer::KimiDelta(kimi) => {
            let width = mul(kimi.n_heads, kimi.head_dim)?;
            (Recurrence::KimiDelta, mul(3, width)?, kimi.d_conv, mul(width, kimi.head_dim)?)
        }
        Mixer::LightningAttention(own) => (Recurrence::Lightning, 0, 1, mul(own.n_heads, mul(own.head_dim, own.head_dim)?)?),
        Mixer::Rwkv(rwkv) => (Recurrence::Rwkv, d_model, add(rwkv.token_shifts, 1)?, mul(d_model, rwkv.head_dim)?),
        Mixer::ShortConv(conv) => (Recurrence::ShortConv, d_model, conv.d_conv, 0),
        Mixer::Rglru(unit) => (Recurrence::Rglru, unit.d_inner, unit.d_conv, unit.d_inner),
        Mixer::Parallel(parallel) => return state(&parallel.state, d_model),
        Mixer::Attention(_) | Mixer::Mla(_) | Mixer::CompressedAttention(_) | Mixer::None => return Ok(None),
    };
    Ok(Some(State { recurrence, width, taps, recurrent }))
}
