//! Everything a context allocates besides the graph: caches, recurrent state and the output buffer.

use alloc::vec::Vec;

use crate::deployment::Deployment;
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::cache::{BufferRules, CacheBytes, CachePlan, cache_plans};
use crate::engine::llama_cpp::compute::{ComputeBounds, ComputeShape};
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::graph;
use crate::engine::llama_cpp::recurrent::{CompressorPlan, RecurrentBytes, RecurrentPlan, compressor_plans, recurrent_plan};
use crate::engine::llama_cpp::refuse;
use crate::engine::llama_cpp::resolve::{ResolveFacts, Resolved, resolve_with};
use crate::error::MathError;
use crate::spec::ModelSpec;
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
    pub(crate) fn new(spec: &ModelSpec, facts: Facts<'_>, deployment: &Deployment, transposed: bool) -> Result<Self, MathError> {
        Ok(Self {
            caches: cache_plans(spec, facts, deployment, transposed)?,
            recurrent: recurrent_plan(spec, facts)?,
            compressors: compressor_plans(spec)?,
            output_row: output_row(spec, facts, deployment)?,
        })
    }
}

/// Elements of one row of the output buffer: logits, and the embedding where it is asked for or the model is a T5
/// (`llama-context.cpp:output_reserve`).
fn output_row(spec: &ModelSpec, facts: Facts<'_>, deployment: &Deployment) -> Result<u64, MathError> {
    let embedding = if deployment.embeddings || facts.arch == "t5" { spec.d_model } else { 0 };
    add(spec.embedding.n_vocab, embedding)
}

/// What the modules cost.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub compute: ComputeBounds,
}

impl Memory {
    /// Bytes of all caches and states: what the engine calls the context.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn context(&self) -> Result<u64, MathError> {
        add(self.kv_cache()?, self.state()?)
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

/// The memory of a context.
///
/// # Errors
/// As [`crate::engine::llama_cpp::resolve()`], and [`MathError::Refused`] for combinations the engine does not start
/// with.
pub fn memory(spec: &ModelSpec, deployment: &Deployment, build: Build) -> Result<Memory, MathError> {
    let facts = Facts::new(spec, build)?;
    let asked = ResolveFacts::new(spec, facts, deployment)?;
    let resolved = resolve_with(&asked, deployment, deployment.context, deployment.sequences)?;
    refuse::check(spec, facts, deployment, &resolved)?;
    let plan = MemoryPlan::new(spec, facts, deployment, asked.transposes_values(deployment))?;
    let rules = BufferRules::of(deployment.backend);
    let caches = plan.caches.iter().map(|cache| cache.bytes(&resolved, deployment, rules)).collect::<Result<Vec<_>, _>>()?;
    let recurrent = plan.recurrent.as_ref().map(|state| state.bytes(&resolved, rules)).transpose()?;
    let compressors = plan.compressors.iter().map(|state| state.bytes(&resolved, rules)).collect::<Result<Vec<_>, _>>()?;
    let output = mul(4, mul(resolved.n_seq_max, plan.output_row)?)?;
    let compute = match graph::compute_bytes(spec, deployment, facts, &resolved, &plan.caches)? {
        Some(exact) => ComputeBounds::exactly(exact),
        None => ComputeShape::new(spec, facts, deployment)?.bounds(&plan.caches, &resolved, deployment)?,
    };
    Ok(Memory { resolved, plan, caches, recurrent, compressors, output, compute })
}
