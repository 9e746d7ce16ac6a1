//! Bounds for an architecture that nobody knows, read on request as a plain decoder.
//!
//! Nothing here is exact, and nothing claims to be: every term becomes an interval that says how it was guessed.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use plimsoll_math::allocation::{Allocation, Certainty, Term, TermKind};
use plimsoll_math::deployment::Deployment;
use plimsoll_math::error::MathError;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::spec::{FeedForward, Mixer, ModelSpec};
use plimsoll_math::tensor::TensorTable;
use plimsoll_math::units::{Bytes, add, mul};

const SOURCE: &str = "a guess by structure: the architecture is unknown";

/// Stores every matrix whose rows are whole blocks as `format`; vectors and the rest stay as they are.
pub(crate) fn stored_as(table: &mut TensorTable, format: StorageFormat) {
    for tensor in &mut table.tensors {
        if tensor.shape.n_dims() > 1 && tensor.shape.row().is_multiple_of(format.block_len()) {
            tensor.format = format;
        }
    }
}

/// Turns the textbook's figures into intervals.
///
/// Weights: a quarter either way, for projections and norms that a plain decoder lacks or has too many. Caches: from
/// nothing (every layer recurrent or windowed) to the full context in every layer. Compute: from nothing to twice what
/// a plain decoder's widest layer takes.
///
/// # Errors
/// [`MathError::Overflow`].
pub(crate) fn widen(
    allocation: &mut Allocation,
    spec: &ModelSpec,
    deployment: &Deployment,
    context: u64,
) -> Result<(), MathError> {
    let on_host = allocation.devices.is_empty();
    for place in allocation.devices.iter_mut().chain([&mut allocation.host]) {
        for term in &mut place.terms {
            let guess = term.bytes.get();
            let (low, high, how) = match term.component {
                TermKind::Weights => (guess / 4 * 3, add(guess, guess / 4)?, "a quarter either way"),
                TermKind::Output => (guess, guess, "as read"),
                _ => (0, guess, "from nothing to the full context in every layer"),
            };
            term.bytes = Bytes::new(high)?;
            term.certainty = Certainty::Bounded { low: Bytes::new(low)?, high: term.bytes };
            term.formula = format!("{} ({how})", term.formula);
            term.source = SOURCE.to_string();
            term.children = Vec::new();
        }
    }
    let compute = compute(spec, deployment, context)?;
    let place = if on_host { &mut allocation.host } else { allocation.devices.first_mut().unwrap_or(&mut allocation.host) };
    place.terms.push(compute);
    Ok(())
}

fn compute(spec: &ModelSpec, deployment: &Deployment, context: u64) -> Result<Term, MathError> {
    let tokens = deployment.ubatch.min(deployment.batch).min(context.max(1));
    let mut widest = 0;
    let mut heads = 0;
    for layer in &spec.layers {
        let hidden = match &layer.feed_forward {
            FeedForward::Dense(dense) => dense.d_ff,
            FeedForward::Moe(moe) => mul(moe.d_ff_expert, moe.n_experts_per_token)?,
            FeedForward::ChannelMix { .. } | FeedForward::None => 0,
            _ => 0,
        };
        widest = widest.max(hidden);
        if let Mixer::Attention(attention) = &layer.mixer {
            heads = heads.max(mul(attention.n_heads, attention.k_head_dim)?);
        }
    }
    let elements = add(add(mul(2, spec.d_model)?, heads)?, mul(3, widest)?)?;
    let mask = mul(2, mul(context, tokens)?)?;
    let high = Bytes::new(mul(2, add(mask, mul(4, mul(tokens, elements)?)?)?)?)?;
    Ok(Term {
        component: TermKind::Compute,
        label: "compute buffer".to_string(),
        bytes: high,
        certainty: Certainty::Bounded { low: Bytes::ZERO, high },
        formula: format!("at most 2 x (2 B x {context} x {tokens} of mask + 4 B x {tokens} tokens x {elements} elements)"),
        source: SOURCE.to_string(),
        children: Vec::new(),
    })
}
