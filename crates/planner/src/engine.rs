//! One door to every engine policy: facts and a deployment in, an allocation out.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::allocation::{Allocation, Certainty, PlaceAllocation, Term, TermKind};
use plimsoll_math::deployment::{Backend, ContextRequest};
use plimsoll_math::engine::llama_cpp::placement::WeightPlace;
use plimsoll_math::engine::llama_cpp::quantize::file_tensors;
use plimsoll_math::engine::llama_cpp::weights::weight_buffers;
use plimsoll_math::engine::llama_cpp::{Build, FileType, LoaderFacts, memory};
use plimsoll_math::error::MathError;
use plimsoll_math::tensor::{Place, TensorTable};
use plimsoll_math::units::Bytes;

use crate::driver::driver_context;
use crate::error::PlanError;
use crate::model::{Basis, Model};
use crate::request::{Effective, Engine, Options};
use crate::size::quoted;

/// What the engine makes of the numbers it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// Tokens per sequence.
    pub context_per_sequence: u64,
    /// Tokens in the whole pool.
    pub total_context: u64,
    /// Logical batch.
    pub batch: u64,
    /// Micro-batch.
    pub ubatch: u64,
    /// Whether flash attention is on.
    pub flash_attention: bool,
}

/// An allocation with the numbers the engine settled on.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The terms.
    pub allocation: Allocation,
    /// The numbers.
    pub resolved: Resolved,
}

/// A model, how it is stored, and what is asked: everything an engine policy needs.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The model.
    pub model: &'a Model,
    /// The question in full.
    pub effective: Effective,
    /// The file type the tensors are stored as, when the source leaves the choice.
    pub quant: Option<String>,
    /// What had to be assumed about storage.
    pub notes: Vec<String>,
    tensors: Rc<TensorTable>,
}

impl<'a> Question<'a> {
    /// Fills in every default and decides how the weights are stored.
    ///
    /// # Errors
    /// [`PlanError`] for options that cannot be.
    pub fn new(model: &'a Model, options: &Options) -> Result<Self, PlanError> {
        let mut effective = options.effective()?;
        if model.is_embedder() && matches!(effective.engine, Engine::LlamaCpp(_)) {
            effective.notes.push(format!(
                "planned as llama-server starts without --embeddings; with it, the output buffer holds {} B more per sequence",
                model.spec.d_model.saturating_mul(4)
            ));
        }
        if matches!(effective.deployment.context, ContextRequest::ModelMaximum) && model.spec.max_context == 0 {
            return Err(PlanError::request(
                "context",
                "nothing, and the source does not say what the model was trained for",
                "a context",
            ));
        }
        let question = Self { model, effective, quant: None, notes: Vec::new(), tensors: Rc::new(model.tensors.clone()) };
        match (model.basis, options.quant.as_deref().or(model.asked_quant.as_deref())) {
            (Basis::Gguf, None) => Ok(question),
            (Basis::Gguf, Some(_)) => Err(PlanError::request(
                "quant",
                "a file type for a file that is stored already",
                "no quant: the types are the file's own",
            )),
            (Basis::Config | Basis::Checkpoint, Some(quant)) => question.with_quant(quant),
            (Basis::Config | Basis::Checkpoint, None) => {
                let quant = "BF16";
                let mut question = question.with_quant(quant)?;
                question
                    .notes
                    .push(format!("no quant was named: weights are planned as {quant}, as a plain conversion stores them"));
                Ok(question)
            }
        }
    }

    /// The same question with the weights stored as `quant`.
    ///
    /// # Errors
    /// [`PlanError`] for a name that is no file type.
    pub fn with_quant(&self, quant: &str) -> Result<Self, PlanError> {
        let file_type =
            FileType::parse(quant).map_err(|_| PlanError::request("quant", quoted(quant), "a file type of llama-quantize"))?;
        let mut changed = self.clone();
        let Engine::LlamaCpp(build) = self.effective.engine else { return Ok(changed) };
        let facts = LoaderFacts::of(&self.model.spec, build)?;
        // Towers are converted into a file of their own (llama.cpp: conversion, mmproj).
        let mut trunk = TensorTable { tensors: self.model.tensors.tensors.clone() };
        trunk.tensors.retain(|tensor| tensor.place != Place::Tower);
        changed.tensors = Rc::new(file_tensors(build, &facts, &trunk, file_type)?);
        changed.quant = Some(file_type.name().to_string());
        Ok(changed)
    }

    /// Whether the source leaves open how weights are stored.
    #[must_use]
    pub const fn can_requantize(&self) -> bool {
        matches!(self.model.basis, Basis::Config | Basis::Checkpoint)
    }

    /// How the weights are stored, in a word.
    #[must_use]
    pub fn stored_as(&self) -> Option<String> {
        self.quant.clone().or_else(|| self.model.quantization.clone())
    }

    /// Bytes of all tensors as stored, without padding.
    ///
    /// # Errors
    /// [`PlanError::Math`] on overflow.
    pub fn weight_bytes(&self) -> Result<Bytes, PlanError> {
        Ok(self.tensors.bytes_where(|_| true)?)
    }

    /// What the engine allocates.
    ///
    /// # Errors
    /// [`PlanError::Math`] when the engine refuses, or does not know a mechanism.
    pub fn plan(&self) -> Result<Planned, PlanError> {
        match self.effective.engine {
            Engine::LlamaCpp(build) => self.plan_llama_cpp(build),
            Engine::Ideal => Err(PlanError::Math(MathError::Unsupported {
                engine: format!("{}@{}", self.effective.engine.name(), self.effective.engine.version()),
                mechanism: "anything yet".to_string(),
            })),
        }
    }

    fn plan_llama_cpp(&self, build: Build) -> Result<Planned, PlanError> {
        let deployment = &self.effective.deployment;
        let facts = LoaderFacts::of(&self.model.spec, build)?;
        let memory = memory::memory(&self.model.spec, deployment, build)?;
        let mut device = PlaceAllocation::default();
        let mut host = PlaceAllocation::default();
        for buffer in weight_buffers(build, &facts, &self.tensors, deployment)? {
            let term = buffer.term(build, deployment.backend);
            if buffer.place == WeightPlace::Device || deployment.backend == Backend::Cpu {
                device.terms.push(term);
            } else {
                host.terms.push(term);
            }
        }
        let exact = |component, label: &str, bytes| -> Result<Term, MathError> {
            Ok(Term {
                component,
                label: label.to_string(),
                bytes: Bytes::new(bytes)?,
                certainty: Certainty::Exact,
                formula: String::new(),
                source: String::new(),
                children: Vec::new(),
            })
        };
        if memory.kv_cache()? > 0 {
            device.terms.push(exact(TermKind::KvCache, "KV cache", memory.kv_cache()?)?);
        }
        if memory.state()? > 0 {
            device.terms.push(exact(TermKind::RecurrentState, "recurrent state", memory.state()?)?);
        }
        let output = exact(TermKind::Output, "output", memory.output)?;
        if deployment.backend == Backend::Cpu {
            device.terms.push(output)
        } else {
            host.terms.push(output)
        }
        let resolved = memory.resolved;
        device.terms.extend(driver_context(deployment, resolved.n_ubatch)?);
        Ok(Planned {
            allocation: Allocation { devices: alloc::vec![device], host },
            resolved: Resolved {
                context_per_sequence: resolved.n_ctx_seq,
                total_context: resolved.n_ctx,
                batch: resolved.n_batch,
                ubatch: resolved.n_ubatch,
                flash_attention: resolved.flash_attention,
            },
        })
    }
}
