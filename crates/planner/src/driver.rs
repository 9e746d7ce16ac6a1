//! What a GPU's driver and libraries take beside the engine's own buffers: bounds, because it depends on the host.

use alloc::format;
use alloc::string::ToString;
use alloc::vec;

use plimsoll_math::allocation::{Certainty, Term, TermKind};
use plimsoll_math::deployment::Backend;
use plimsoll_math::error::MathError;
use plimsoll_math::units::{Bytes, add, mul};

use crate::fit::Span;

const MIB: u64 = 1 << 20;

fn term(label: &str, low: u64, high: u64, formula: &str, source: &str) -> Result<Term, MathError> {
    let (low, high) = (Bytes::new(low)?, Bytes::new(high)?);
    Ok(Term {
        component: TermKind::DriverContext,
        label: label.to_string(),
        bytes: high,
        certainty: if low == high { Certainty::Exact } else { Certainty::Bounded { low, high } },
        formula: formula.to_string(),
        source: source.to_string(),
        children: vec![],
    })
}

/// Bytes of the parts of the driver's share: at least and at most of each.
struct Parts {
    context: (u64, u64),
    workspace: u64,
    batches: u64,
}

fn parts(backend: Backend, ubatch: u64) -> Option<Parts> {
    let Backend::Cuda { compute_capability } = backend else { return None };
    let workspace = if compute_capability >= 900 { 32 * MIB } else { 4 * MIB };
    Some(Parts { context: (250 * MIB, 600 * MIB), workspace, batches: ubatch.div_ceil(512).max(1) })
}

/// The sum of [`driver_context`] alone, without words.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn driver_span(backend: Backend, ubatch: u64) -> Result<Span, MathError> {
    let Some(parts) = parts(backend, ubatch) else { return Ok(Span::default()) };
    let high = add(add(parts.context.1, parts.workspace)?, mul(64 * MIB, parts.batches)?)?;
    Ok(Span { high: Bytes::new(high)?, low: Bytes::new(parts.context.0)? })
}

/// The driver's share on a device under llama.cpp; `None` where there is none to speak of.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn driver_context(backend: Backend, ubatch: u64) -> Result<Option<Term>, MathError> {
    let Some(Parts { context: (least, most), workspace, batches }) = parts(backend, ubatch) else { return Ok(None) };
    let context = term(
        "CUDA context and kernels",
        least,
        most,
        "250 to 600 MiB for the first process on a device",
        "range seen in public logs; depends on driver and architecture",
    )?;
    let blas = term(
        "cuBLAS workspace",
        0,
        workspace,
        &format!("at most {} MiB, once first used", workspace / MIB),
        "ggml-cuda/common.cuh:cublas_handle",
    )?;
    let pool = term(
        "scratch pool",
        0,
        mul(64 * MIB, batches)?,
        &format!("up to 64 MiB for each 512 tokens of the micro-batch x {batches}"),
        "order of magnitude of ggml-cuda.cu:ggml_cuda_pool users (quantized activations, attention partials)",
    )?;
    let children = vec![context, blas, pool];
    let high = Bytes::sum(children.iter().map(|child| child.bytes))?;
    Ok(Some(Term {
        component: TermKind::DriverContext,
        label: "driver context".to_string(),
        bytes: high,
        certainty: Certainty::Bounded { low: Bytes::new(least)?, high },
        formula: "CUDA context + cuBLAS workspace + scratch pool".to_string(),
        source: "outside llama.cpp's own buffers; measure it as total - free - self on the host in question".to_string(),
        children,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_without_words_is_the_sum_of_the_words() {
        for backend in
            [Backend::Cpu, Backend::Metal, Backend::Cuda { compute_capability: 890 }, Backend::Cuda { compute_capability: 1200 }]
        {
            for ubatch in [0, 1, 512, 513, 8192] {
                let span = driver_span(backend, ubatch).unwrap();
                let (low, high) = match driver_context(backend, ubatch).unwrap() {
                    Some(Term { certainty: Certainty::Bounded { low, high }, .. }) => (low, high),
                    _ => (Bytes::ZERO, Bytes::ZERO),
                };
                assert_eq!((span.low, span.high), (low, high), "{backend:?} {ubatch}");
            }
        }
    }
}
