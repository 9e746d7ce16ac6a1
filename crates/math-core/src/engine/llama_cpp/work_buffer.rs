//! The processor's work buffer: to the byte where the graph is known, else in bounds.

use super::build::Build;
use super::cache::cache_plans;
use super::compute::Bounds;
use super::facts::Facts;
use super::graph::{self, work};
use super::layout::Layout;
use super::loader_facts::LoaderFacts;
use super::resolve::{ResolveFacts, resolve_with};
use super::weights::weight_homes;
use crate::deployment::{Deployment, Location};
use crate::error::MathError;
use crate::spec::{FeedForward, Mixer, ModelSpec};
use crate::tensor::TensorTable;
use crate::units::{add, mul};

/// What the processor's operations need beside their results with so many threads.
///
/// # Errors
/// As [`super::memory::memory_of`].
///
/// ```
/// # use plimsoll_math::deployment::{Backend, ContextRequest, Deployment};
/// # use plimsoll_math::engine::llama_cpp::{Build, work_buffer};
/// # use plimsoll_math::{spec::ModelSpec, tensor::TensorTable};
/// # fn of(spec: &ModelSpec, table: &TensorTable) -> Result<(), plimsoll_math::error::MathError> {
/// let deployment = Deployment::new(ContextRequest::Total(4096), Backend::Cpu);
/// let bounds = work_buffer::bounds(spec, table, &deployment, Build::default(), 8)?;
/// assert!(bounds.low <= bounds.high);
/// # Ok(()) }
/// ```
pub fn bounds(
    spec: &ModelSpec,
    table: &TensorTable,
    deployment: &Deployment,
    build: Build,
    threads: u64,
) -> Result<Bounds, MathError> {
    let facts = Facts::new(spec, build)?;
    let mut asked = ResolveFacts::new(spec, facts, deployment)?;
    let layout = Layout::of(spec, deployment)?;
    graph::look_at_attention(&mut asked, spec, Some(table), deployment, facts, &layout)?;
    let resolved = resolve_with(&asked, deployment, deployment.context, deployment.sequences)?;
    let plans = cache_plans(spec, facts, deployment, &layout, asked.transposes_values(deployment))?;
    if let Some(exact) = work::work_buffer(spec, table, deployment, facts, &layout, (&resolved, &plans), threads)? {
        return Ok(Bounds::exactly(exact));
    }
    // Every matrix on the host may be multiplied with as many rows as a micro-batch has, experts with those of each chosen
    // one; scores without flash attention are the right side of a product over all cells.
    let tokens = resolved.graph_tokens;
    let chosen = spec.layers.iter().filter_map(|layer| match &layer.feed_forward {
        FeedForward::Moe(moe) => Some(moe.n_experts_per_token),
        _ => None,
    });
    let rows = mul(tokens, chosen.max().unwrap_or(1).max(1))?;
    let mut most = 0;
    for (tensor, place) in weight_homes(build, &LoaderFacts::of(spec, build)?, table, deployment)? {
        if place.place() == Location::Host {
            let [row, _, stacked, _] = tensor.shape.0;
            // Nothing is converted to more than four bytes an element.
            let converted = mul(4, mul(row, rows)?)?;
            let chosen = mul(stacked, add(mul(8, rows)?, 8 + 64)?)?;
            most = most.max(add(converted, add(chosen, 256)?)?);
        }
    }
    let cells = plans.iter().try_fold(tokens, |most, plan| Ok(most.max(plan.cells(&resolved, deployment.swa_full)?)))?;
    let heads = spec.layers.iter().map(|layer| heads(&layer.mixer)).max().unwrap_or(1).max(1);
    let scores = mul(4, mul(cells, mul(tokens, mul(heads, resolved.streams.max(1))?)?)?)?;
    let widest = spec.layers.iter().filter_map(|layer| layer.mixer.attention());
    let widest = widest.map(|attention| attention.k_head_dim.max(attention.v_head_dim)).max().unwrap_or(0).max(512);
    // A thread's tile of fused attention, its row of scores, its slot of an unpacked matrix, and its own line.
    let tile = mul(4, add(mul(256, widest)?, add(8192, mul(heads, add(2, widest)?)?)?)?)?;
    let each = add(add(tile, mul(4, cells.max(spec.d_model))?)?, (512 << 10) + 64)?;
    // Scores with learned biases are never fused.
    let fused = resolved.flash_attention && spec.encoder.is_none();
    let high = add(most.max(if fused { 0 } else { scores }), mul(threads, each)?)?;
    Ok(Bounds { low: 0, high })
}

/// Heads whose scores may be multiplied at once.
fn heads(mixer: &Mixer) -> u64 {
    match mixer {
        Mixer::Mla(latent) => latent.n_heads,
        Mixer::CompressedAttention(compressed) => compressed.n_heads,
        mixer => mixer.attention().map_or(0, |attention| attention.n_heads),
    }
}
