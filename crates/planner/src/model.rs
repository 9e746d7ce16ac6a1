//! A model as the planner sees it: facts with a name, and how to ask the engine for it.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_ingest::Ingested;
use plimsoll_math::engine::vllm::facts::Checkpoint;
use plimsoll_math::projector::Projector;
use plimsoll_math::spec::{FeedForward, LmHead, ModelSpec};
use plimsoll_math::tensor::{Component, Place, TensorTable};
use plimsoll_math::units::{Params, mul};
use serde::{Deserialize, Serialize};

use crate::error::PlanError;

/// What the tensor table was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// A config: shapes follow from the architecture, and `quant` says how they would be stored.
    Config,
    /// A GGUF header: shapes and types are the file's own.
    Gguf,
    /// Headers of a checkpoint (safetensors, MLX): shapes and types are the files' own, in that format.
    Checkpoint,
}

/// Facts about one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// What to call it.
    pub name: String,
    /// The architecture.
    pub spec: ModelSpec,
    /// The tensors.
    pub tensors: TensorTable,
    /// How the source stores weights, where it says more than a number type.
    pub quantization: Option<String>,
    /// A file type that the model's name asked for (`org/name:Q4_K_M`), used where the request names none.
    pub asked_quant: Option<String>,
    /// What an engine that loads the checkpoint itself reads beyond the architecture.
    pub checkpoint: Checkpoint,
    /// What was unusual.
    pub notes: Vec<String>,
    /// The tensors of a published checkpoint as its files store them, where the headers were read. [`Model::tensors`] are
    /// those of the converted file then.
    pub published: Option<TensorTable>,
    /// What the tensors were made from.
    pub basis: Basis,
    /// The file or repository an engine would be pointed at.
    pub reference: Option<String>,
    /// Whether the architecture was not recognised and is taken for a generic decoder.
    pub generic: bool,
    /// A smaller model that drafts tokens for this one, in a context of its own.
    pub draft: Option<Box<Self>>,
    /// A multimodal projector that runs beside it.
    pub projector: Option<Box<ProjectorFile>>,
}

/// A multimodal projector with the file that an engine would be pointed at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectorFile {
    /// What it holds.
    pub projector: Projector,
    /// The file.
    pub reference: String,
}

impl Model {
    /// A model from what a source yielded.
    #[must_use]
    pub fn new(name: Option<&str>, ingested: Ingested, basis: Basis) -> Self {
        let name = name
            .map(ToString::to_string)
            .or_else(|| ingested.spec.name.clone())
            .unwrap_or_else(|| ingested.spec.architecture.clone());
        Self {
            name,
            spec: ingested.spec,
            tensors: ingested.tensors,
            quantization: ingested.quantization,
            asked_quant: None,
            checkpoint: ingested.checkpoint,
            notes: ingested.notes,
            published: None,
            basis,
            reference: None,
            generic: ingested.generic,
            draft: None,
            projector: None,
        }
    }

    /// The architecture as a converted file holds it: without prediction layers where the converter leaves them out.
    #[must_use]
    pub fn converted(&self) -> Cow<'_, ModelSpec> {
        self.converted_with(None)
    }

    /// The same with or without prediction layers as asked; by the converter's own habit where nothing is asked. A file
    /// that is converted already stays as it is.
    #[must_use]
    pub fn converted_with(&self, prediction_layers: Option<bool>) -> Cow<'_, ModelSpec> {
        let keeps = self.basis == Basis::Gguf || prediction_layers.unwrap_or(!self.spec.mtp_is_left_out);
        if keeps || self.spec.mtp.is_empty() {
            return Cow::Borrowed(&self.spec);
        }
        Cow::Owned(ModelSpec { mtp: Vec::new(), ..self.spec.clone() })
    }

    /// Whether the model yields embeddings or classes instead of tokens.
    #[must_use]
    pub const fn is_embedder(&self) -> bool {
        !self.spec.causal && matches!(self.spec.head.lm_head, LmHead::None)
    }

    /// Parameter counts.
    ///
    /// # Errors
    /// [`PlanError::Math`] on overflow.
    pub fn parameters(&self) -> Result<ParameterCounts, PlanError> {
        let total = self.tensors.total_params()?;
        let embedding =
            self.tensors.params_where(|tensor| tensor.counts.is_parameter() && tensor.component == Component::Embeddings)?;
        let mut idle = Params::ZERO;
        for (index, layer) in (0_u32..).zip(&self.spec.layers) {
            let FeedForward::Moe(moe) = &layer.feed_forward else { continue };
            let routed = self.tensors.params_where(|tensor| {
                tensor.counts.is_parameter() && tensor.component == Component::Experts && tensor.place == Place::Layer(index)
            })?;
            let unused = moe.n_experts.saturating_sub(moe.n_experts_per_token);
            if let Some(share) = routed.get().checked_div(moe.n_experts) {
                idle = idle.plus(Params::new(mul(share, unused)?)?)?;
            }
        }
        Ok(ParameterCounts { total, active: total.minus(idle).unwrap_or(Params::ZERO), embedding })
    }
}

/// How many parameters a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterCounts {
    /// Each unique parameter once, without multi-token prediction and buffers.
    pub total: Params,
    /// What one token passes: `total - routed * (1 - k/E)`.
    pub active: Params,
    /// Input embeddings.
    pub embedding: Params,
}
