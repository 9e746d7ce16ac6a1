//! Everything a context allocates besides the graph: caches, recurrent state and the output buffer.

use alloc::string::ToString;
use alloc::vec::Vec;

use crate::deployment::{Deployment, Location};
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::cache::{CacheBytes, CachePlan, cache_plans};
use crate::engine::llama_cpp::compute::{ComputeBuffers, ComputeShape};
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::graph;
use crate::engine::llama_cpp::layout::Layout;
use crate::engine::llama_cpp::recurrent::{CompressorPlan, RecurrentBytes, RecurrentPlan, compressor_plans, recurrent_plan};
use crate::engine::llama_cpp::refuse;
use crate::engine::llama_cpp::resolve::{ResolveFacts, Resolved, resolve_with};
use crate::engine::llama_cpp::spread::Spread;
use crate::error::MathError;
use crate::spec::ModelSpec;
use crate::tensor::TensorTable;
use crate::units::{add, mul};

/// The modules that the engine makes for a model, before context and sequences are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Caches of past tokens.
    pub caches: Vec<CachePlan>,
    /// Recurrent state.
    pub recurrent: Option<RecurrentPlan>,
    /// Compressor states of DeepSeek V4.
    pub compressors: Vec<CompressorPlan>,
    /// F32 elements of one output row.
    pub output_row: u64,
}

impl MemoryPlan {
    pub(crate) fn new(
        spec: &ModelSpec,
        facts: Facts<'_>,
        deployment: &Deployment,
        layout: &Layout,
        transposed: bool,
    ) -> Result<Self, MathError> {
        Ok(Self {
            caches: cache_plans(spec, facts, deployment, layout, transposed)?,
            recurrent: recurrent_plan(spec, facts, layout)?,
            compressors: compressor_plans(spec, layout)?,
            output_row: output_row(spec, facts, deployment)?,
        })
    }
}

/// Bytes of caches, of the recurrent module and of compressor states.
type ModuleBytes = (Vec<CacheBytes>, Option<RecurrentBytes>, Vec<u64>);

impl MemoryPlan {
    fn bytes(&self, resolved: &Resolved, deployment: &Deployment, layout: &Layout) -> Result<ModuleBytes, MathError> {
        Ok((
            self.caches.iter().map(|cache| cache.bytes(resolved, deployment, layout)).collect::<Result<_, _>>()?,
            self.recurrent.as_ref().map(|state| state.bytes(resolved, layout)).transpose()?,
            self.compressors.iter().map(|state| state.bytes(resolved, layout)).collect::<Result<_, _>>()?,
        ))
    }
}

/// Elements of one row of the output buffer: logits, and the embedding where it is asked for or the model is a T5
/// (`llama-context.cpp:output_reserve`).
fn output_row(spec: &ModelSpec, facts: Facts<'_>, deployment: &Deployment) -> Result<u64, MathError> {
    let wide = spec.operations.d_embedding.unwrap_or(spec.d_model);
    let embedding = if deployment.embeddings || facts.arch == "t5" { wide } else { 0 };
    add(spec.embedding.n_vocab, embedding)
}

/// What the modules cost.
#[derive(Debug, Clone)]
pub struct Memory {
    /// The effective parameters.
    pub resolved: Resolved,
    /// The modules.
    pub plan: MemoryPlan,
    /// Bytes of each cache, in the order of the plan.
    pub caches: Vec<CacheBytes>,
    /// Bytes of the recurrent module.
    pub recurrent: Option<RecurrentBytes>,
    /// Bytes of each compressor state, in the order of the plan.
    pub compressors: Vec<u64>,
    /// Bytes of the output buffer.
    pub output: u64,
    /// Bounds of the compute buffers.
    pub compute: ComputeBuffers,
    /// Where everything goes.
    pub layout: Layout,
}

/// What the modules cost in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedMemory {
    /// The part of the modules that lies there.
    pub plan: MemoryPlan,
    /// Bytes of each cache, in the order of the plan.
    pub caches: Vec<CacheBytes>,
    /// Bytes of the recurrent module.
    pub recurrent: Option<RecurrentBytes>,
    /// Bytes of each compressor state, in the order of the plan.
    pub compressors: Vec<u64>,
}

impl PlacedMemory {
    /// Bytes of all caches and states: what the engine calls the context.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn context(&self) -> Result<u64, MathError> {
        context(&self.caches, self.recurrent.as_ref(), &self.compressors)
    }
}

fn context(caches: &[CacheBytes], recurrent: Option<&RecurrentBytes>, compressors: &[u64]) -> Result<u64, MathError> {
    let caches = caches.iter().try_fold(0, |sum, cache| add(sum, cache.total()?))?;
    let states = compressors.iter().try_fold(recurrent.map_or(0, |bytes| bytes.allocated), |sum, bytes| add(sum, *bytes))?;
    add(caches, states)
}

impl Memory {
    /// What the modules of a plan cost.
    pub(super) fn of(
        plan: MemoryPlan,
        resolved: Resolved,
        compute: ComputeBuffers,
        deployment: &Deployment,
        layout: Layout,
    ) -> Result<Self, MathError> {
        let (caches, recurrent, compressors) = plan.bytes(&resolved, deployment, &layout)?;
        let output = mul(4, mul(resolved.n_seq_max, plan.output_row)?)?;
        Ok(Self { resolved, plan, caches, recurrent, compressors, output, compute, layout })
    }
    /// What lies in one place, of what is asked for in `deployment`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn at(&self, place: Location, deployment: &Deployment) -> Result<PlacedMemory, MathError> {
        let plan = MemoryPlan {
            caches: self.plan.caches.iter().map(|cache| cache.at(place)).collect(),
            recurrent: self.plan.recurrent.as_ref().map(|state| state.at(place)),
            compressors: self.plan.compressors.iter().map(|state| state.at(place)).collect(),
            output_row: self.plan.output_row,
        };
        let (caches, recurrent, compressors) = plan.bytes(&self.resolved, deployment, &self.layout)?;
        Ok(PlacedMemory { plan, caches, recurrent, compressors })
    }
    /// Bytes of all caches and states: what the engine calls the context.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn context(&self) -> Result<u64, MathError> {
        context(&self.caches, self.recurrent.as_ref(), &self.compressors)
    }
    /// Bytes of the caches of past tokens.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn kv_cache(&self) -> Result<u64, MathError> {
        self.caches.iter().try_fold(0, |sum, cache| add(sum, cache.total()?))
    }
    /// Bytes of recurrent and compressor states.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn state(&self) -> Result<u64, MathError> {
        let recurrent = self.recurrent.as_ref().map_or(0, |bytes| bytes.allocated);
        self.compressors.iter().try_fold(recurrent, |sum, bytes| add(sum, *bytes))
    }
}

/// The memory of a context of a model of which no tensors are known.
///
/// # Errors
/// As [`memory_of`], and [`MathError::Unsupported`] where several places share the work, whose compute buffers depend on
/// single tensors.
pub fn memory(spec: &ModelSpec, deployment: &Deployment, build: Build) -> Result<Memory, MathError> {
    measure(spec, None, deployment, build, false)
}

/// The memory of a context.
///
/// # Errors
/// As [`crate::engine::llama_cpp::resolve()`], and [`MathError::Refused`] for combinations the engine does not start
/// with.
pub fn memory_of(spec: &ModelSpec, table: &TensorTable, deployment: &Deployment, build: Build) -> Result<Memory, MathError> {
    measure(spec, Some(table), deployment, build, false)
}

/// The memory of a context as the engine projects it before it allocates: what `--fit` decides by. It differs from
/// [`memory_of`] in the compute buffers of several devices.
///
/// # Errors
/// As [`memory_of`].
pub fn projected(spec: &ModelSpec, table: &TensorTable, deployment: &Deployment, build: Build) -> Result<Memory, MathError> {
    measure(spec, Some(table), deployment, build, true)
}

fn measure(
    spec: &ModelSpec,
    table: Option<&TensorTable>,
    deployment: &Deployment,
    build: Build,
    projected: bool,
) -> Result<Memory, MathError> {
    let facts = Facts::new(spec, build)?;
    let mut asked = ResolveFacts::new(spec, facts, deployment)?;
    let layout = Layout::of(spec, deployment)?;
    let layout = if projected { layout.as_projected() } else { layout };
    graph::look_at_attention(&mut asked, spec, table, deployment, facts, &layout)?;
    let resolved = resolve_with(&asked, deployment, deployment.context, deployment.sequences)?;
    refuse::check(spec, facts, deployment, &resolved)?;
    let plan = MemoryPlan::new(spec, facts, deployment, &layout, asked.transposes_values(deployment))?;
    let exact = graph::compute_buffers(spec, table, deployment, facts, &layout, &resolved, &plan.caches)?;
    let compute = match (exact, layout.only_place(), table) {
        (Some(exact), ..) => exact,
        (None, Some(place), _) => {
            let bounds = ComputeShape::new(spec, facts, deployment)?.bounds(&plan.caches, &resolved, deployment)?;
            ComputeBuffers::of_one(bounds, place, layout.devices().len())
        }
        (None, None, Some(table)) => {
            let (plans, resolved, layout) = (plan.caches.as_slice(), &resolved, &layout);
            Spread { build, spec, table, plans, resolved, deployment, layout }.bounds()?
        }
        (None, None, None) => {
            return Err(MathError::Unsupported {
                engine: build.engine().to_string(),
                mechanism: "compute buffers of several places without the model's tensors".to_string(),
            });
        }
    };
    Memory::of(plan, resolved, compute, deployment, layout)
}
