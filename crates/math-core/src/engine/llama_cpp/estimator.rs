//! The compiled estimate: everything that does not vary with context and sequences folded into integers.
//!
//! An admission check asks the same model thousands of times. [`Estimator::bytes`] answers without allocating (for the
//! number of sequences it was compiled for; others may take a replay of the engine's graph) and to the byte what [`crate::engine::llama_cpp::allocate::allocate`] explains.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::deployment::{ContextRequest, Deployment, Location};
use crate::engine::llama_cpp::allocate::{Allocated, explained};
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::cache::{BufferRules, CachePlan};
use crate::engine::llama_cpp::compute::{Bounds, ComputeBounds, ComputeBuffers, ComputeShape};
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::graph::{self, regimes};
use crate::engine::llama_cpp::layout::Layout;
use crate::engine::llama_cpp::loader_facts::LoaderFacts;
use crate::engine::llama_cpp::memory::{Memory, MemoryPlan};
use crate::engine::llama_cpp::refuse::{self, Refusals};
use crate::engine::llama_cpp::resolve::{CONTEXT_PAD, ResolveFacts, Resolved, resolve_with};
use crate::engine::llama_cpp::weights::{WeightBuffer, weight_buffers};
use crate::error::MathError;
use crate::spec::ModelSpec;
use crate::tensor::TensorTable;
use crate::units::{add, mul};

/// What a context takes, in sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Estimate {
    /// The effective parameters.
    pub resolved: Resolved,
    /// Bytes on the device, the upper bound of its compute buffer included; 0 when the processor does all the work.
    pub device: u64,
    /// Bytes on the host, likewise.
    pub host: u64,
    /// Caches of past tokens.
    pub kv_cache: u64,
    /// Recurrent and compressor states.
    pub recurrent_state: u64,
    /// Output buffer.
    pub output: u64,
    /// Compute buffer of the device.
    pub device_compute: Bounds,
    /// Compute buffer of the host.
    pub host_compute: Bounds,
}

/// A model, its weights, a build and a deployment, compiled.
#[derive(Debug, Clone)]
pub struct Estimator {
    deployment: Deployment,
    facts: ResolveFacts,
    layout: Layout,
    place: Location,
    refusals: Refusals,
    device_weights: u64,
    host_weights: u64,
    caches: Vec<FoldedCache>,
    /// Recurrent and compressor states of the deployment's number of sequences: no context changes them.
    states: Option<States>,
    plan: MemoryPlan,
    weights: Vec<WeightBuffer>,
    compute: ComputeShape,
    /// Ranges of contexts for the deployment's number of sequences, where the graph is known.
    regimes: Option<regimes::Regimes>,
    /// What a replay for another number of sequences and an explanation need.
    spec: ModelSpec,
}

/// Recurrent and compressor states of a number of sequences.
#[derive(Debug, Clone, Copy)]
struct States {
    n_seq_max: u64,
    n_rs_seq: u64,
    bytes: u64,
}

impl States {
    fn new(plan: &MemoryPlan, layout: &Layout, resolved: &Resolved) -> Result<Self, MathError> {
        let mut bytes = match &plan.recurrent {
            Some(plan) => plan.bytes(resolved, layout)?.allocated,
            None => 0,
        };
        for plan in &plan.compressors {
            bytes = add(bytes, plan.bytes(resolved, layout)?)?;
        }
        Ok(Self { n_seq_max: resolved.n_seq_max, n_rs_seq: resolved.n_rs_seq, bytes })
    }
}

/// A cache as two numbers. Cells are multiples of 256, so that rows of a tensor never need padding and what the device
/// adds to a tensor is a constant.
#[derive(Debug, Clone, Copy)]
struct FoldedCache {
    /// Bytes of a cell over all layers.
    per_row: u64,
    /// Rotation matrices and what the device adds to quantised tensors.
    constant: u64,
}

impl FoldedCache {
    fn new(plan: &CachePlan, deployment: &Deployment, rules: BufferRules) -> Result<Self, MathError> {
        let mut out = Self { per_row: plan.bytes_per_cell(deployment)?, constant: 0 };
        for group in &plan.groups {
            let tensors = [
                (deployment.kv_type_k, Some(group.k_dim), plan.k_rotation),
                (deployment.kv_type_v, group.v_dim, plan.v_rotation),
            ];
            for (format, width, side) in tensors {
                if let Some(width) = width {
                    let matrix = mul(4, mul(side, side)?)?;
                    out.constant = add(out.constant, mul(group.layers, add(rules.row_padding(format, width)?, matrix)?)?)?;
                }
            }
        }
        Ok(out)
    }
}

impl Estimator {
    /// Compiles, for the number of sequences of `deployment` first of all. Its context is ignored.
    ///
    /// # Errors
    /// What no context or number of sequences could cure: as [`crate::engine::llama_cpp::allocate::allocate`].
    pub fn new(spec: &ModelSpec, table: &TensorTable, build: Build, deployment: &Deployment) -> Result<Self, MathError> {
        let facts = Facts::new(spec, build)?;
        let resolve_facts = ResolveFacts::new(spec, facts, deployment)?;
        let loader = LoaderFacts::of(spec, build)?;
        let layout = Layout::new(loader.n_layers_all, deployment)?;
        let Some(place) = layout.only_place().filter(|_| !deployment.draft_context) else {
            return Err(MathError::Unsupported {
                engine: build.engine().to_string(),
                mechanism: "a compiled estimate of several places or a drafting context: allocate explains them".to_string(),
            });
        };
        let rules = BufferRules::of(layout.backend(place));
        // Flash attention depends on neither context nor sequences: any that the batch holds will do to ask.
        let probe = resolve_with(&resolve_facts, deployment, ContextRequest::Total(CONTEXT_PAD), 1)?;
        let refusals = Refusals::new(spec, facts, deployment, &probe)?;
        let plan = MemoryPlan::new(spec, facts, deployment, &layout, resolve_facts.transposes_values(deployment))?;
        let (mut device_weights, mut host_weights) = (0, 0);
        let weights = weight_buffers(build, &loader, table, deployment)?;
        for buffer in &weights {
            if buffer.place.is_device() {
                device_weights = add(device_weights, buffer.bytes.get())?;
            } else {
                host_weights = add(host_weights, buffer.bytes.get())?;
            }
        }
        let caches = plan.caches.iter().map(|cache| FoldedCache::new(cache, deployment, rules)).collect::<Result<Vec<_>, _>>()?;
        let asked = regimes::Asked { spec, deployment, facts, resolve: &resolve_facts, plans: &plan.caches };
        let regimes = regimes::Regimes::new(&asked, regimes::FEW_CONTEXTS)?;
        // A number of sequences that the engine refuses is refused when it is asked for.
        let usual = resolve_with(&resolve_facts, deployment, ContextRequest::Total(CONTEXT_PAD), deployment.sequences);
        let states = usual.ok().map(|usual| States::new(&plan, &layout, &usual)).transpose()?;
        Ok(Self {
            states,
            regimes,
            spec: spec.clone(),
            deployment: deployment.clone(),
            facts: resolve_facts,
            layout,
            place,
            refusals,
            device_weights,
            host_weights,
            caches,
            plan,
            weights,
            compute: ComputeShape::new(spec, facts, deployment)?,
        })
    }

    /// The same estimator for many contexts: the ranges of long ones as far as they can be told, and those of contexts shorter
    /// than a micro-batch, each of which is a graph of its own size. Takes some milliseconds.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn for_many_contexts(mut self) -> Result<Self, MathError> {
        if let Some(regimes) = &mut self.regimes {
            let facts = Facts::new(&self.spec, self.facts.build)?;
            let (spec, deployment) = (&self.spec, &self.deployment);
            let asked = regimes::Asked { spec, deployment, facts, resolve: &self.facts, plans: &self.plan.caches };
            regimes.add_long(&asked, regimes::MANY_CONTEXTS)?;
            regimes.add_short(&asked, regimes::MANY_CONTEXTS)?;
        }
        Ok(self)
    }

    /// What `sequences` sequences in the asked context take.
    ///
    /// # Errors
    /// [`MathError::Refused`] where the engine refuses, [`MathError::Overflow`], [`MathError::Invalid`].
    pub fn bytes(&self, context: ContextRequest, sequences: u64) -> Result<Estimate, MathError> {
        let resolved = resolve_with(&self.facts, &self.deployment, context, sequences)?;
        self.refusals.check(&resolved)?;
        let mut kv_cache: u64 = 0;
        for (folded, plan) in self.caches.iter().zip(&self.plan.caches) {
            let rows = mul(plan.cells(&resolved, self.deployment.swa_full)?, plan.streams(&resolved))?;
            kv_cache = add(kv_cache, add(mul(folded.per_row, rows)?, folded.constant)?)?;
        }
        let recurrent_state = match self.states {
            Some(states) if (states.n_seq_max, states.n_rs_seq) == (resolved.n_seq_max, resolved.n_rs_seq) => states.bytes,
            _ => States::new(&self.plan, &self.layout, &resolved)?.bytes,
        };
        let output = mul(4, mul(resolved.n_seq_max, self.plan.output_row)?)?;
        let compute = self.compute(&resolved)?;
        let context = add(kv_cache, recurrent_state)?;
        let (on_device, on_host) = if self.place == Location::Host { (0, context) } else { (context, 0) };
        Ok(Estimate {
            resolved,
            device: add(add(self.device_weights, on_device)?, compute.device.high)?,
            host: add(add(self.host_weights, on_host)?, add(output, compute.host.high)?)?,
            kv_cache,
            recurrent_state,
            output,
            device_compute: compute.device,
            host_compute: compute.host,
        })
    }
}

impl Estimator {
    /// What [`crate::engine::llama_cpp::allocate::allocate`] explains, term by term, with weights placed and compute
    /// buffers known already.
    ///
    /// # Errors
    /// As [`Self::bytes`].
    pub fn explain(&self, context: ContextRequest, sequences: u64) -> Result<Allocated, MathError> {
        let resolved = resolve_with(&self.facts, &self.deployment, context, sequences)?;
        self.refusals.check(&resolved)?;
        let deployment = Deployment { context, sequences, ..self.deployment.clone() };
        let compute = ComputeBuffers::of_one(self.compute(&resolved)?, self.place, self.layout.devices().len());
        let memory = Memory::of(self.plan.clone(), resolved, compute, &deployment, self.layout.clone())?;
        explained(&memory, &self.weights, &self.spec, &deployment, self.facts.build)
    }

    /// Compute buffers: from the ranges that were compiled for this number of sequences, else by a replay, else bounds.
    fn compute(&self, resolved: &Resolved) -> Result<ComputeBounds, MathError> {
        if let Some(regimes) = &self.regimes {
            if let Some(exact) = regimes.bytes(resolved)? {
                return Ok(ComputeBounds::exactly(exact));
            }
            let facts = Facts::new(&self.spec, self.facts.build)?;
            if let Some(exact) = graph::compute_bytes(&self.spec, &self.deployment, facts, resolved, &self.plan.caches)? {
                return Ok(ComputeBounds::exactly(exact));
            }
        }
        self.compute.bounds(&self.plan.caches, resolved, &self.deployment)
    }
}

impl Refusals {
    /// Refuses what depends on the effective parameters.
    ///
    /// # Errors
    /// [`MathError::Refused`].
    fn check(&self, resolved: &Resolved) -> Result<(), MathError> {
        match self.reason(resolved) {
            None => Ok(()),
            Some(reason) => Err(refuse::refused(self.build, String::from(reason))),
        }
    }
}
