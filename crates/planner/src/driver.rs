//! What a GPU's driver and libraries take beside the engine's own buffers: bounds, because it depends on the host.

use alloc::format;
use alloc::string::ToString;
use alloc::vec;

use plimsoll_math::allocation::{Certainty, Term, TermKind};
use plimsoll_math::deployment::Backend;
use plimsoll_math::error::MathError;
use plimsoll_math::units::{Bytes, mul};

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

/// The driver's share on a device under llama.cpp; `None` where there is none to speak of.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn driver_context(backend: Backend, ubatch: u64) -> Result<Option<Term>, MathError> {
    let Backend::Cuda { compute_capability } = backend else { return Ok(None) };
    let context = term(
        "CUDA context and kernels",
        250 * MIB,
        600 * MIB,
        "250 to 600 MiB for the first process on a device",
        "range seen in public logs; depends on driver and architecture",
    )?;
    let workspace = if compute_capability >= 900 { 32 * MIB } else { 4 * MIB };
    let blas = term(
        "cuBLAS workspace",
        0,
        workspace,
        &format!("at most {} MiB, once first used", workspace / MIB),
        "ggml-cuda/common.cuh:cublas_handle",
    )?;
    let batches = ubatch.div_ceil(512).max(1);
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
        certainty: Certainty::Bounded { low: Bytes::new(250 * MIB)?, high },
        formula: "CUDA context + cuBLAS workspace + scratch pool".to_string(),
        source: "outside llama.cpp's own buffers; measure it as total - free - self on the host in question".to_string(),
        children,
    }))
}
