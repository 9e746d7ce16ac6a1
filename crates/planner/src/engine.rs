//! One door to every engine policy: facts and a deployment in, an allocation out.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use plimsoll_math::allocation::{Allocation, PlaceAllocation};
use plimsoll_math::deployment::{ContextRequest, FlashAttention};
use plimsoll_math::engine::ideal;
use plimsoll_math::engine::llama_cpp::allocate::allocate;
use plimsoll_math::engine::llama_cpp::estimator::Estimator;
use plimsoll_math::engine::llama_cpp::layout::Layout;
use plimsoll_math::engine::llama_cpp::quantize::file_tensors;
use plimsoll_math::engine::llama_cpp::{Build, FileType, LoaderFacts};
use plimsoll_math::error::MathError;
use plimsoll_math::spec::ModelSpec;
use plimsoll_math::tensor::{Counts, Place, TensorTable};
use plimsoll_math::units::{Bytes, mul};

use crate::driver::driver_context;
use crate::error::PlanError;
use crate::fit::{Span, Used};
use crate::generic;
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
    /// The terms; one device, which is the processor when no other is used.
    pub allocation: Allocation,
    /// The numbers.
    pub resolved: Resolved,
    /// Bytes that one more token of context adds to the caches once every window is full.
    pub cache_bytes_per_token: u64,
    /// What only vLLM knows.
    pub vllm: Option<Box<crate::vllm::Answer>>,
    /// What only another engine knows.
    pub served: Option<Box<crate::served::Served>>,
    /// Bytes of one checkpoint of a sequence, 0 where the server makes none.
    pub checkpoint_bytes: u64,
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
    tensors: Arc<TensorTable>,
    /// As it was asked.
    pub(crate) options: Options,
    /// A model that drafts.
    pub(crate) draft: Option<crate::draft::Draft<'a>>,
    /// What turns images and sound into embeddings.
    pub(crate) projector: Option<crate::projector::Beside<'a>>,
}

impl<'a> Question<'a> {
    /// Fills in every default and decides how the weights are stored.
    ///
    /// # Errors
    /// [`PlanError`] for options that cannot be.
    pub fn new(model: &'a Model, options: &Options) -> Result<Self, PlanError> {
        let mut effective = options.effective()?;
        if model.is_embedder() && !effective.deployment.embeddings && matches!(effective.engine, Engine::LlamaCpp(_)) {
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
        let mut question = Self {
            model,
            effective,
            quant: None,
            notes: Vec::new(),
            tensors: Arc::new(model.tensors.clone()),
            options: options.clone(),
            draft: None,
            projector: None,
        };
        question.draft = crate::draft::Draft::of(&mut question)?;
        question.projector = crate::projector::Beside::of(&question)?;
        if question.effective.engine == Engine::Vllm {
            crate::vllm::check(model, options)?;
            question.options.quant = None;
            return Ok(question);
        }
        if question.effective.engine.is_served() {
            question.check_served()?;
            return Ok(question);
        }
        if question.effective.deployment.draft_context && question.converted().mtp.is_empty() {
            return Err(PlanError::request(
                "draft_mtp",
                "a model without multi-token-prediction layers",
                "one with such layers, converted with them",
            ));
        }
        let wanted = options.quant.as_deref().or(model.asked_quant.as_deref());
        match (model.basis, wanted) {
            (Basis::Gguf, None) => Ok(question),
            (Basis::Gguf, Some(_)) => Err(PlanError::request(
                "quant",
                "a file type for a file that is stored already",
                "no quant: the types are the file's own",
            )),
            (Basis::Config | Basis::Checkpoint, Some(quant)) => question.with_quant(quant),
            (Basis::Config | Basis::Checkpoint, None) => match (&model.published, question.effective.engine) {
                (Some(published), Engine::Ideal) => question.with_published(published),
                (published, _) => {
                    let quant = "BF16";
                    let mut question = question.with_quant(quant)?;
                    question
                        .notes
                        .push(format!("no quant was named: weights are planned as {quant}, as a plain conversion stores them"));
                    question.notes.extend(published.as_ref().map(|published| conversion_note(model, published)).transpose()?);
                    Ok(question)
                }
            },
        }
    }

    /// The same question with the weights as the checkpoint's files store them, for engines that read these.
    fn with_published(mut self, published: &TensorTable) -> Result<Self, PlanError> {
        let bytes = published.bytes_where(|_| true)?;
        let stored = self.model.quantization.clone().unwrap_or_else(|| self.model.spec.weight_dtype.name().to_string());
        self.notes.push(format!("weights are the checkpoint's own tensors, {bytes} B as {stored}"));
        self.tensors = Arc::new(published.clone());
        Ok(self)
    }

    /// The same question with the weights stored as `quant`.
    ///
    /// # Errors
    /// [`PlanError`] for a name that is no file type.
    pub fn with_quant(&self, quant: &str) -> Result<Self, PlanError> {
        let file_type = FileType::parse(quant).map_err(|error| match error {
            MathError::Invalid { found, expected, .. } => PlanError::request("quant", quoted(&found), expected),
            other => PlanError::Math(other),
        })?;
        let mut changed = self.clone();
        let build = match self.effective.engine {
            Engine::LlamaCpp(build) => build,
            _ => Build::default(),
        };
        // Towers are converted into a file of their own (llama.cpp: conversion, mmproj).
        let mut table = TensorTable { tensors: self.model.tensors.tensors.clone() };
        let spec = self.converted();
        let predicts = !spec.mtp.is_empty();
        table
            .tensors
            .retain(|tensor| tensor.place != Place::Tower && (predicts || tensor.counts != Counts::MultiTokenPrediction));
        table = match LoaderFacts::of(&spec, build) {
            Ok(facts) => file_tensors(build, &facts, &table, file_type)?,
            Err(_) if self.has_no_loader() => {
                generic::stored_as(&mut table, file_type.default_format());
                table
            }
            Err(error) => return Err(error.into()),
        };
        changed.tensors = Arc::new(table);
        changed.quant = Some(file_type.name().to_string());
        Ok(changed)
    }

    /// Whether the question is something for the engine.
    pub(crate) fn check_served(&self) -> Result<(), PlanError> {
        match self.effective.engine {
            Engine::Sglang => crate::sglang::check(self),
            Engine::Mlx => crate::mlx::check(self),
            Engine::TensorRtLlm => crate::tensorrt_llm::check(self),
            Engine::Transformers => crate::transformers::check(self),
            Engine::LlamaCpp(_) | Engine::Ollama | Engine::Vllm | Engine::Ideal => Ok(()),
        }
    }

    /// Whether no rule of llama.cpp's loader is needed: textbook figures, or bounds for an unknown architecture.
    const fn has_no_loader(&self) -> bool {
        matches!(self.effective.engine, Engine::Ideal) || self.model.generic
    }

    /// Whether the source leaves open how weights are stored.
    #[must_use]
    pub const fn can_requantize(&self) -> bool {
        !matches!(self.effective.engine, Engine::Vllm)
            && !self.effective.engine.is_served()
            && matches!(self.model.basis, Basis::Config | Basis::Checkpoint)
    }

    /// How the weights are stored, in a word.
    #[must_use]
    pub fn stored_as(&self) -> Option<String> {
        self.quant.clone().or_else(|| self.model.quantization.clone())
    }

    /// The architecture as the file holds it.
    pub(crate) fn converted(&self) -> Cow<'a, ModelSpec> {
        self.model.converted_with(self.effective.prediction_layers)
    }

    /// The tensors as stored.
    pub(crate) fn tensors(&self) -> &TensorTable {
        &self.tensors
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
        let mut planned = match self.effective.engine {
            Engine::LlamaCpp(build) if !self.model.generic => self.plan_llama_cpp(build)?,
            Engine::Vllm => crate::vllm::plan(self)?,
            Engine::Sglang => crate::sglang::plan(self)?,
            Engine::Mlx => crate::mlx::plan(self)?,
            Engine::TensorRtLlm => crate::tensorrt_llm::plan(self)?,
            Engine::Ollama if !self.model.generic => crate::ollama::plan(self)?,
            Engine::Transformers => crate::transformers::plan(self)?,
            _ => self.plan_ideal()?,
        };
        let allocation = &mut planned.allocation;
        if allocation.devices.is_empty() {
            // The processor is the device then, and what it holds is not beside it.
            allocation.devices.push(core::mem::take(&mut allocation.host));
        }
        Ok(planned)
    }

    pub(crate) fn plan_llama_cpp(&self, build: Build) -> Result<Planned, PlanError> {
        let deployment = &self.effective.deployment;
        let mut allocated = allocate(&self.converted(), &self.tensors, deployment, build)?;
        let resolved = allocated.resolved;
        if let Some(draft) = &self.draft {
            draft.plan(self, &mut allocated, build)?;
        }
        if let Some(projector) = &self.projector {
            projector.plan(self, &mut allocated, build)?;
        }
        allocated.allocation.host.terms.extend(crate::runtime::work(self, build)?);
        let layout = Layout::of(&self.converted(), deployment)?;
        // The driver sets up those devices that the engine works with.
        let devices = (0_u8..).zip(allocated.allocation.devices.iter_mut().zip(&deployment.devices));
        for (_, (place, device)) in devices.filter(|(index, _)| layout.used().contains(index)) {
            place.terms.extend(driver_context(device.backend, resolved.n_ubatch)?);
        }
        Ok(Planned {
            allocation: allocated.allocation,
            resolved: Resolved {
                context_per_sequence: resolved.n_ctx_seq,
                total_context: resolved.n_ctx,
                batch: resolved.n_batch,
                ubatch: resolved.n_ubatch,
                flash_attention: resolved.flash_attention,
            },
            cache_bytes_per_token: allocated.cache_bytes_per_token,
            vllm: None,
            served: None,
            checkpoint_bytes: allocated.checkpoint_bytes,
        })
    }

    fn plan_ideal(&self) -> Result<Planned, PlanError> {
        let deployment = &self.effective.deployment;
        let spec = &self.model.spec;
        let sequences = deployment.sequences.max(1);
        let context = match deployment.context {
            ContextRequest::PerSequence(tokens) => tokens,
            ContextRequest::Total(tokens) => tokens / sequences,
            ContextRequest::ModelMaximum => spec.max_context,
        };
        let mut allocation = ideal::allocate(spec, &self.tensors, deployment)?;
        if self.model.generic {
            generic::widen(&mut allocation, spec, deployment, context)?;
            if let (Engine::LlamaCpp(_), Some(device)) = (self.effective.engine, allocation.devices.first_mut()) {
                device.terms.extend(driver_context(deployment.backend(), deployment.ubatch.min(deployment.batch))?);
            }
        }
        Ok(Planned {
            allocation,
            resolved: Resolved {
                context_per_sequence: context,
                total_context: mul(context, sequences)?,
                batch: deployment.batch,
                ubatch: deployment.ubatch.min(deployment.batch),
                flash_attention: deployment.flash_attention != FlashAttention::Off,
            },
            cache_bytes_per_token: ideal::cache_bytes_per_token(spec, deployment)?,
            vllm: None,
            served: None,
            checkpoint_bytes: 0,
        })
    }

    /// Whether one device, or the processor, does everything.
    fn is_in_one_place(&self) -> Result<bool, PlanError> {
        Ok(Layout::of(&self.converted(), &self.effective.deployment)?.only_place().is_some())
    }

    /// Whether a part of the model's work stays on the host by choice although there are devices.
    ///
    /// # Errors
    /// [`PlanError::Math`] for a layout that cannot be.
    pub fn offloads(&self) -> Result<bool, PlanError> {
        let deployment = &self.effective.deployment;
        match self.effective.engine {
            Engine::LlamaCpp(_) | Engine::Ollama if !self.model.generic => {
                Ok(crate::place::stays_on_host(&Layout::of(&self.converted(), deployment)?, deployment))
            }
            _ => Ok(false),
        }
    }

    /// The question compiled for many contexts and sequences.
    ///
    /// # Errors
    /// [`PlanError::Math`] for what no context or number of sequences could cure.
    pub fn compile(&self) -> Result<Compiled<'a>, PlanError> {
        match self.effective.engine {
            Engine::LlamaCpp(build)
                if !self.model.generic
                    && !self.effective.deployment.draft_context
                    && self.draft.is_none()
                    && self.projector.is_none()
                    && self.effective.threads.is_none()
                    && self.effective.devices.len() == 1
                    && self.is_in_one_place()? =>
            {
                let deployment = &self.effective.deployment;
                Ok(Compiled::LlamaCpp {
                    estimator: Box::new(Estimator::new(&self.converted(), &self.tensors, build, deployment)?),
                    question: self.clone(),
                })
            }
            _ => Ok(Compiled::Explained(self.clone())),
        }
    }
}

/// What llama.cpp does with a checkpoint: it reads GGUF files only.
fn conversion_note(model: &Model, published: &TensorTable) -> Result<String, PlanError> {
    let bytes = published.bytes_where(|_| true)?;
    let stored = match &model.quantization {
        Some(layout) => format!("{bytes} B with {layout}, which the converter expands first where it knows the layout"),
        None => format!("{bytes} B"),
    };
    Ok(format!("the checkpoint holds {stored}; llama.cpp reads no safetensors, its converter writes the file planned here"))
}

/// A question ready to be asked for many contexts and sequences.
#[derive(Debug, Clone)]
pub enum Compiled<'a> {
    /// Through llama.cpp's compiled estimate.
    LlamaCpp {
        /// The estimate.
        estimator: Box<Estimator>,
        /// What else there is to know.
        question: Question<'a>,
    },
    /// Through the explained path, where no compiled one exists.
    Explained(Question<'a>),
}

impl Compiled<'_> {
    /// The same, compiled further for many contexts.
    ///
    /// # Errors
    /// [`PlanError::Math`].
    pub fn for_many_contexts(self) -> Result<Self, PlanError> {
        Ok(match self {
            Self::LlamaCpp { estimator, question } => {
                Self::LlamaCpp { estimator: Box::new(estimator.for_many_contexts()?), question }
            }
            explained @ Self::Explained(_) => explained,
        })
    }
    /// What is used with this context and this many sequences: as [`Used::of`] the plan.
    ///
    /// # Errors
    /// [`PlanError::Math`] when the engine refuses.
    pub fn used(&self, context: ContextRequest, sequences: u64) -> Result<Used, PlanError> {
        match self {
            Self::LlamaCpp { estimator, question } => {
                let estimate = estimator.bytes(context, sequences)?;
                let deployment = &question.effective.deployment;
                let on_host = estimate.host;
                let host_low = on_host.saturating_sub(estimate.host_compute.high).saturating_add(estimate.host_compute.low);
                let device_low =
                    estimate.device.saturating_sub(estimate.device_compute.high).saturating_add(estimate.device_compute.low);
                let host = Span { high: Bytes::new(on_host)?, low: Bytes::new(host_low)? };
                if deployment.devices.is_empty() {
                    return Ok(Used { devices: Vec::from([host]), host: Span::default() });
                }
                let driver = PlaceAllocation {
                    terms: driver_context(deployment.backend(), estimate.resolved.n_ubatch)?.into_iter().collect(),
                };
                let device = Span { high: Bytes::new(estimate.device)?, low: Bytes::new(device_low)? };
                Ok(Used { devices: Vec::from([device.plus(Span::of(&driver)?)?]), host })
            }
            Self::Explained(question) => {
                let mut probe = question.clone();
                probe.effective.deployment.context = context;
                probe.effective.deployment.sequences = sequences;
                Ok(Used::of(&probe.plan()?)?)
            }
        }
    }
}
