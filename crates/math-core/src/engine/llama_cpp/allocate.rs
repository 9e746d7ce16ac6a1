//! Everything llama.cpp allocates for a model and a deployment, term by term, each with its formula and its source.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::allocation::{Allocation, Certainty, PlaceAllocation, Term, TermKind};
use crate::deployment::{Backend, Deployment, Location};
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::cache::{BufferRules, CacheBytes, CachePlan, CellRule};
use crate::engine::llama_cpp::compute::Bounds;
use crate::engine::llama_cpp::draft;
use crate::engine::llama_cpp::loader_facts::LoaderFacts;
use crate::engine::llama_cpp::memory::{Memory, PlacedMemory, memory_of};
use crate::engine::llama_cpp::resolve::Resolved;
use crate::engine::llama_cpp::weights::{WeightBuffer, weight_buffers};
use crate::engine::terms::exact;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::ModelSpec;
use crate::tensor::TensorTable;
use crate::units::{Bytes, add, mul};

/// An allocation with the parameters the engine settled on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Allocated {
    /// The effective parameters.
    pub resolved: Resolved,
    /// The terms.
    pub allocation: Allocation,
    /// Bytes that one more token of context adds to the caches at the margin, rounded down: sliding windows add
    /// nothing once they are full, compressed caches their share.
    pub cache_bytes_per_token: u64,
    /// Bytes of what cannot be rolled back of one sequence: windows and recurrent states, which the server keeps copies of
    /// (context checkpoints). 0 where everything can be.
    pub checkpoint_bytes: u64,
}

/// What the engine allocates for `spec`, whose weights lie in `table` as the file stores them.
///
/// # Errors
/// [`MathError::Refused`] where the engine refuses, [`MathError::Unsupported`] for an architecture the build does not
/// load, [`MathError::Overflow`].
pub fn allocate(spec: &ModelSpec, table: &TensorTable, deployment: &Deployment, build: Build) -> Result<Allocated, MathError> {
    let memory = memory_of(spec, table, deployment, build)?;
    let facts = LoaderFacts::of(spec, build)?;
    explained(&memory, &weight_buffers(build, &facts, table, deployment)?, spec, deployment, build)
}

/// The terms of what was found out.
pub(super) fn explained(
    memory: &Memory,
    weights: &[WeightBuffer],
    spec: &ModelSpec,
    deployment: &Deployment,
    build: Build,
) -> Result<Allocated, MathError> {
    let layout = &memory.layout;
    let mut devices: Vec<Vec<Term>> = layout.devices().iter().map(|_| Vec::new()).collect();
    let mut host = Vec::new();
    for buffer in weights {
        slot(&mut devices, &mut host, buffer.place.place()).push(buffer.term(build, layout));
    }
    for place in layout.places() {
        let placed = memory.at(place, deployment)?;
        let backend = layout.backend(place);
        let terms = slot(&mut devices, &mut host, place);
        terms.extend(kv_cache_term(&placed, &memory.resolved, deployment, backend, build)?);
        terms.extend(state_term(&placed, &memory.resolved, build)?);
    }
    for (terms, bounds) in devices.iter_mut().zip(&memory.compute.devices) {
        terms.push(compute_term("compute buffer", *bounds, &memory.resolved, build)?);
    }
    for (place, term) in draft::terms(spec, deployment, &memory.resolved, layout, build)? {
        slot(&mut devices, &mut host, place).push(term);
    }
    let label = if devices.is_empty() { "compute buffer" } else { "compute buffer of the host" };
    host.push(compute_term(label, memory.compute.host, &memory.resolved, build)?);
    host.push(output_term(memory, build)?);
    let cache_bytes_per_token = cache_bytes_per_token(memory, deployment)?;
    let checkpoint_bytes = checkpoint_bytes(memory, deployment)?;
    let allocation = Allocation {
        devices: devices.into_iter().map(|terms| PlaceAllocation { terms }).collect(),
        host: PlaceAllocation { terms: host },
    };
    Ok(Allocated { resolved: memory.resolved, allocation, cache_bytes_per_token, checkpoint_bytes })
}

/// What a checkpoint of one sequence holds at most (`tools/server/server-context.cpp:create_checkpoint`): its recurrent
/// states and the cells of its windows.
fn checkpoint_bytes(memory: &Memory, deployment: &Deployment) -> Result<u64, MathError> {
    let sequences = memory.resolved.n_seq_max.max(1);
    let mut bytes = memory.state()? / sequences;
    for (plan, cache) in memory.plan.caches.iter().zip(&memory.caches) {
        if matches!(plan.cells, CellRule::Window { .. }) && !deployment.swa_full {
            bytes = add(bytes, add(cache.k, cache.v)? / cache.streams.max(1))?;
        }
    }
    Ok(bytes)
}

/// The terms of a place.
fn slot<'a>(devices: &'a mut [Vec<Term>], host: &'a mut Vec<Term>, place: Location) -> &'a mut Vec<Term> {
    match place {
        Location::Host => host,
        Location::Device(device) => devices.get_mut(usize::from(device)).unwrap_or(host),
    }
}

/// Bytes that one more token of context adds to the caches, rounded down.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn cache_bytes_per_token(memory: &Memory, deployment: &Deployment) -> Result<u64, MathError> {
    // In 128ths of a byte: the coarsest cache has a cell per 128 tokens.
    let mut parts = 0;
    for cache in &memory.plan.caches {
        let share = match cache.cells {
            CellRule::Context => 128,
            CellRule::Window { .. } if deployment.swa_full => 128,
            CellRule::Compressed { ratio } => 128_u64.checked_div(ratio).unwrap_or(0),
            CellRule::Window { .. } | CellRule::None => 0,
        };
        parts = add(parts, mul(share, cache.bytes_per_cell(deployment)?)?)?;
    }
    Ok(parts / 128)
}

/// A term that is the sum of its children; one child stands for itself.
fn sum_of(component: TermKind, label: &str, children: Vec<Term>, source: &str) -> Result<Option<Term>, MathError> {
    let bytes = Bytes::sum(children.iter().map(|child| child.bytes))?;
    if children.is_empty() {
        return Ok(None);
    }
    let names: Vec<&str> = children.iter().map(|child| child.label.as_str()).collect();
    Ok(Some(Term {
        component,
        label: label.to_string(),
        bytes,
        certainty: Certainty::Exact,
        formula: names.join(" + "),
        source: source.to_string(),
        children,
    }))
}

/// `24 x 1024` for each group of layers, joined.
fn groups_text(plan: &CachePlan, keys: bool) -> String {
    let parts: Vec<String> = plan
        .groups
        .iter()
        .filter_map(|group| {
            let width = if keys { Some(group.k_dim) } else { group.v_dim };
            width.map(|width| format!("{} layers x {width}", group.layers))
        })
        .collect();
    if parts.len() == 1 { parts.concat() } else { format!("({})", parts.join(" + ")) }
}

/// How the number of cells comes about.
fn cells_text(plan: &CachePlan, bytes: &CacheBytes, resolved: &Resolved, swa_full: bool) -> String {
    let cells = match plan.cells {
        CellRule::Window { tokens } if !swa_full && bytes.cells < resolved.n_ctx_seq => {
            let shared = if resolved.kv_unified && !plan.always_streams { resolved.n_seq_max } else { 1 };
            let sequences = if shared > 1 { format!(" x {shared} sequences") } else { String::new() };
            format!("{} cells (window {tokens}{sequences} + micro-batch {}, to 256)", bytes.cells, resolved.n_ubatch)
        }
        CellRule::Compressed { ratio } => format!("{} cells (1 per {ratio} tokens, to 256)", bytes.cells),
        CellRule::Window { .. } | CellRule::Context | CellRule::None => format!("{} cells", bytes.cells),
    };
    if bytes.streams > 1 { format!("{cells} x {} streams", bytes.streams) } else { cells }
}

/// What one element costs, as people read it.
fn format_text(format: StorageFormat) -> String {
    if format.block_len() == 1 {
        format!("{} B ({format})", format.block_bytes())
    } else {
        format!("{}/{} B ({format})", format.block_bytes(), format.block_len())
    }
}

fn kv_cache_term(
    memory: &PlacedMemory,
    resolved: &Resolved,
    deployment: &Deployment,
    backend: Backend,
    build: Build,
) -> Result<Option<Term>, MathError> {
    let kind = TermKind::KvCache;
    let source = format!("{build}: llama-kv-cache.cpp:llama_kv_cache");
    let mut children = Vec::new();
    for (plan, bytes) in memory.plan.caches.iter().zip(&memory.caches) {
        if bytes.layers == 0 {
            continue;
        }
        let source = match plan.cells {
            CellRule::Window { .. } => format!("{build}: llama-kv-cache-iswa.cpp:llama_kv_cache_iswa"),
            CellRule::Compressed { .. } => format!("{build}: llama-kv-cache-dsv4.cpp:llama_kv_cache_dsv4"),
            CellRule::Context | CellRule::None => source.clone(),
        };
        let cells = cells_text(plan, bytes, resolved, deployment.swa_full);
        let mut parts = Vec::new();
        let k = format!("{} x {} x {cells}", groups_text(plan, true), format_text(deployment.kv_type_k));
        parts.push(exact(kind, "keys", bytes.k, k, &source)?);
        if bytes.v > 0 {
            let v = format!("{} x {} x {cells}", groups_text(plan, false), format_text(deployment.kv_type_v));
            parts.push(exact(kind, "values", bytes.v, v, &source)?);
        }
        if bytes.rotation > 0 {
            let formula =
                format!("{} layers x 4 B x ({}^2 for keys + {}^2 for values)", bytes.layers, plan.k_rotation, plan.v_rotation);
            let source = format!("{build}: llama-kv-cache.cpp:init_rotation");
            parts.push(exact(kind, "rotation matrices", bytes.rotation, formula, &source)?);
        }
        if bytes.padding > 0 {
            let rules = BufferRules::of(backend);
            let formula = format!("rows of quantised tensors to {} elements, tensors to {} B", rules.row_pad, rules.alignment);
            let source = format!("{build}: ggml-cuda.cu:ggml_backend_cuda_buffer_type_get_alloc_size");
            parts.push(exact(kind, "device padding", bytes.padding, formula, &source)?);
        }
        children.extend(sum_of(kind, plan.label, parts, &source)?);
    }
    if children.len() == 1 {
        return Ok(children.pop().map(|only| Term { label: format!("KV cache, {}", only.label), ..only }));
    }
    sum_of(kind, "KV cache", children, &source)
}

fn state_term(memory: &PlacedMemory, resolved: &Resolved, build: Build) -> Result<Option<Term>, MathError> {
    let kind = TermKind::RecurrentState;
    let source = format!("{build}: llama-memory-recurrent.cpp:llama_memory_recurrent, llama-hparams.cpp:n_embd_r, n_embd_s");
    let mut children = Vec::new();
    if let (Some(plan), Some(bytes)) = (&memory.plan.recurrent, &memory.recurrent) {
        let text = |width: &dyn Fn(&crate::engine::llama_cpp::recurrent::StateGroup) -> u64| {
            let parts: Vec<String> =
                plan.groups.iter().map(|group| format!("{} layers x {}", group.layers, width(group))).collect();
            format!("({}) x 4 B (f32) x {} rows", parts.join(" + "), bytes.rows)
        };
        if bytes.r > 0 {
            children.push(exact(kind, "convolution state", bytes.r, text(&|group| group.n_r), &source)?);
        }
        if bytes.s > 0 {
            children.push(exact(kind, "recurrent state", bytes.s, text(&|group| group.n_s), &source)?);
        }
        if bytes.p > 0 {
            children.push(exact(kind, "history of hash embeddings", bytes.p, text(&|group| group.n_p), &source)?);
        }
        let padding = bytes.allocated.saturating_sub(add(add(bytes.r, bytes.s)?, bytes.p)?);
        if padding > 0 {
            children.push(exact(kind, "device padding", padding, "tensors to the buffer's alignment".to_string(), &source)?);
        }
    }
    for (plan, bytes) in memory.plan.compressors.iter().zip(&memory.compressors) {
        if *bytes > 0 {
            let formula = format!(
                "{} layers x 2 x {} rows x {} x 4 B (f32) x {} sequences",
                plan.layers.len(),
                plan.rows,
                plan.width,
                resolved.n_seq_max
            );
            let source = format!("{build}: llama-kv-cache-dsv4.cpp:llama_dsv4_comp_state");
            let label = format!("compressor {}", plan.tag.trim_end_matches("_state"));
            children.push(exact(kind, &label, *bytes, formula, &source)?);
        }
    }
    sum_of(kind, "recurrent state", children, &source)
}

fn output_term(memory: &Memory, build: Build) -> Result<Term, MathError> {
    exact(
        TermKind::Output,
        "output buffer",
        memory.output,
        format!("{} rows x {} x 4 B (f32)", memory.resolved.n_seq_max, memory.plan.output_row),
        &format!("{build}: llama-context.cpp:output_reserve"),
    )
}

fn compute_term(label: &str, bounds: Bounds, resolved: &Resolved, build: Build) -> Result<Term, MathError> {
    let (low, high) = (Bytes::new(bounds.low)?, Bytes::new(bounds.high)?);
    Ok(Term {
        component: TermKind::Compute,
        label: label.to_string(),
        bytes: high,
        certainty: if low == high { Certainty::Exact } else { Certainty::Bounded { low, high } },
        formula: format!("largest step of a graph of {} tokens, masks and inputs included", resolved.graph_tokens),
        source: format!("{build}: llama-context.cpp:sched_reserve, ggml-alloc.c"),
        children: Vec::new(),
    })
}
