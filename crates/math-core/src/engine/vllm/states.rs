//! Recurrent states on one rank (`vllm/model_executor/layers/mamba/mamba_utils.py`).

use super::VERSION;
use super::facts::Checkpoint;
use super::options::Knobs;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{GatedDeltaNet, KimiDelta, LightningAttention, Mamba1, Mamba2, Mixer, ShortConv};
use crate::units::{add, mul};
use alloc::format;
use alloc::string::ToString;

/// Tokens between the states that FlashInfer's prefill can hand out (`FLASHINFER_GDN_CHECKPOINT_ALIGNMENT`).
const DELTA_NET_CHECKPOINT: u64 = 64;

/// A mechanism with a state of fixed size.
#[derive(Debug, Clone, Copy)]
pub enum State<'a> {
    /// Mamba.
    Mamba1(&'a Mamba1),
    /// Mamba 2.
    Mamba2(&'a Mamba2),
    /// Gated DeltaNet.
    GatedDeltaNet(&'a GatedDeltaNet),
    /// Kimi delta attention.
    KimiDelta(&'a KimiDelta),
    /// Lightning attention.
    Lightning(&'a LightningAttention),
    /// Short convolution, with the model's width.
    ShortConv(&'a ShortConv),
}

/// The state of a mixer, where it has one.
#[must_use]
pub const fn state_of(mixer: &Mixer) -> Option<State<'_>> {
    match mixer {
        Mixer::Mamba1(mamba) => Some(State::Mamba1(mamba)),
        Mixer::Mamba2(mamba) => Some(State::Mamba2(mamba)),
        Mixer::GatedDeltaNet(net) => Some(State::GatedDeltaNet(net)),
        Mixer::KimiDelta(kimi) => Some(State::KimiDelta(kimi)),
        Mixer::LightningAttention(lightning) => Some(State::Lightning(lightning)),
        Mixer::ShortConv(conv) => Some(State::ShortConv(conv)),
        _ => None,
    }
}

/// What a state depends on besides its mixer.
#[derive(Debug, Clone, Copy)]
pub struct StateContext<'a> {
    /// What was asked of the engine.
    pub knobs: &'a Knobs,
    /// The checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// Elements of the hidden state.
    pub d_model: u64,
}

fn shard(what: &'static str, count: u64, tensor: u64) -> Result<u64, MathError> {
    if count.is_multiple_of(tensor) {
        Ok(count / tensor)
    } else {
        Err(MathError::Refused {
            engine: VERSION.to_string(),
            reason: format!("{count} is not divisible by {tensor} ({what} by tensor parallel size)"),
        })
    }
}

impl State<'_> {
    /// Bytes of the state of one sequence on one rank.
    ///
    /// # Errors
    /// [`MathError::Refused`] where a size is not divisible by the ranks, [`MathError::Overflow`].
    pub fn bytes(&self, context: &StateContext<'_>) -> Result<u64, MathError> {
        let tensor = context.knobs.parallelism.tensor.max(1);
        let drafted = context.knobs.speculation.map_or(0, |speculation| speculation.tokens);
        let conv = context.knobs.state_dtype.unwrap_or(context.checkpoint.dtype).block_bytes();
        // The convolution's type, unless the engine or the model's own config names one for the state.
        let asked = context.knobs.ssm_dtype.or(context.checkpoint.ssm_dtype).map(StorageFormat::block_bytes);
        let ssm = asked.unwrap_or(conv);
        let tail = |d_conv: u64| add(d_conv.saturating_sub(1), drafted);
        let sum = |conv_elements: u64, ssm_elements: u64, ssm_bytes: u64| -> Result<u64, MathError> {
            add(mul(conv_elements, conv)?, mul(ssm_elements, ssm_bytes)?)
        };
        match self {
            Self::Mamba1(mamba) => {
                let inner = shard("channels", mamba.d_inner, tensor)?;
                sum(mul(inner, mamba.d_conv.saturating_sub(1))?, mul(inner, mamba.d_state)?, ssm)
            }
            Self::Mamba2(mamba) => {
                // Groups are repeated until every rank has one.
                let groups = if mamba.n_groups.is_multiple_of(tensor) { mamba.n_groups } else { tensor };
                let width = shard("convolution channels", add(mamba.d_inner, mul(mul(2, groups)?, mamba.d_state)?)?, tensor)?;
                let heads = shard("heads", mamba.n_heads, tensor)?;
                let head = mamba.d_inner.checked_div(mamba.n_heads).unwrap_or(0);
                sum(mul(width, tail(mamba.d_conv)?)?, mul(mul(heads, head)?, mamba.d_state)?, ssm)
            }
            Self::GatedDeltaNet(net) => {
                let keys = mul(mul(2, net.n_k_heads)?, net.k_head_dim)?;
                let width = shard("convolution channels", add(keys, mul(net.n_v_heads, net.v_head_dim)?)?, tensor)?;
                let heads = shard("value heads", net.n_v_heads, tensor)?;
                sum(mul(width, tail(net.d_conv)?)?, mul(mul(heads, net.v_head_dim)?, net.k_head_dim)?, ssm)
            }
            Self::KimiDelta(kimi) => {
                let width = shard("convolution channels", mul(mul(3, kimi.n_heads)?, kimi.head_dim)?, tensor)?;
                let heads = shard("heads", kimi.n_heads, tensor)?;
                // In single precision unless it is asked for otherwise.
                let bytes = asked.unwrap_or(4);
                sum(mul(width, tail(kimi.d_conv)?)?, mul(mul(heads, kimi.head_dim)?, kimi.head_dim)?, bytes)
            }
            Self::Lightning(lightning) => {
                let heads = shard("heads", lightning.n_heads, tensor)?;
                mul(mul(mul(heads, lightning.head_dim)?, lightning.head_dim)?, conv)
            }
            Self::ShortConv(short) => mul(mul(shard("channels", context.d_model, tensor)?, tail(short.d_conv)?)?, conv),
        }
    }

    /// Tokens that blocks have to be a multiple of so that states can be handed out at their ends
    /// (`get_prefill_checkpoint_alignment`).
    #[must_use]
    pub fn checkpoint_alignment(&self, context: &StateContext<'_>) -> Option<u64> {
        match self {
            Self::GatedDeltaNet(net) if exports_delta_net(net, context) => Some(DELTA_NET_CHECKPOINT),
            _ => None,
        }
    }

    /// Blocks kept for states in the middle of a prefill (`num_prefill_checkpoint_blocks`).
    #[must_use]
    pub fn checkpoint_blocks(&self, context: &StateContext<'_>, aligned: bool) -> u64 {
        let exports = match self {
            Self::Mamba2(_) => true,
            Self::GatedDeltaNet(net) => aligned && exports_delta_net(net, context),
            Self::KimiDelta(kimi) => {
                // FlashKDA (`is_flashkda_supported`).
                context.checkpoint.class.bounded_gates
                    && matches!(context.knobs.gpu.major(), 9 | 10 | 12)
                    && kimi.head_dim == 128
                    && matches!(context.checkpoint.dtype, StorageFormat::Bf16)
            }
            Self::Mamba1(_) | Self::Lightning(_) | Self::ShortConv(_) => false,
        };
        u64::from(exports)
    }
}

/// Whether FlashInfer runs the prefill (`_resolve_gdn_prefill_backend`), in the classes that use the engine's own layer.
fn exports_delta_net(net: &GatedDeltaNet, context: &StateContext<'_>) -> bool {
    let gpu = match context.knobs.gpu.capability {
        90 => true,
        _ => matches!(context.knobs.gpu.major(), 10 | 12) && net.k_head_dim == 128,
    };
    gpu && !context.checkpoint.class.keeps_states
}
