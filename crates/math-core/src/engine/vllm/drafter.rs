//! Models that draft beside the one they draft for: EAGLE's heads and models of their own
//! (`vllm/v1/worker/gpu/spec_decode`, `model_executor/models/llama_eagle.py`, `llama_eagle3.py`).

use alloc::format;
use alloc::string::{String, ToString};

use super::VERSION;
use super::facts::Checkpoint;
use super::options::{DraftMethod, Knobs};
use super::weights::{RankWeights, weights};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{LmHead, ModelSpec};
use crate::tensor::{Component, Counts, Place, Shape, Tensor, TensorTable};
use crate::units::{add, mul};

/// A model that drafts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Drafter {
    /// Its architecture.
    pub spec: ModelSpec,
    /// Its tensors, as an ordinary decoder of its config has them.
    pub tensors: TensorTable,
    /// What else its config says.
    pub checkpoint: Checkpoint,
}

/// What a config says of a head that drafts from the hidden states of another model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct EagleHead {
    /// Whether the engine builds it as EAGLE's first version.
    pub first: bool,
    /// Whether it builds it as EAGLE 3.
    pub third: bool,
    /// Tokens that it drafts from, where they are fewer than the model's (`draft_vocab_size`).
    pub vocabulary: Option<u64>,
    /// Hidden states of the model that are joined (`num_aux_hidden_states`); 0 for none.
    pub states: u64,
    /// Elements of a hidden state of the model, where they are another number (`target_hidden_size`).
    pub state_size: Option<u64>,
    /// Whether all joined states have one norm (`norm_before_fc`).
    pub norm_of_all: bool,
    /// Whether each has a norm of its own (`fc_norm`).
    pub norm_of_each: bool,
}

impl DraftMethod {
    /// Whether a model beside the model drafts.
    #[must_use]
    pub const fn has_model(self) -> bool {
        matches!(self, Self::Eagle | Self::Eagle3 | Self::DraftModel)
    }
}

fn refused(reason: String) -> MathError {
    MathError::Refused { engine: VERSION.to_string(), reason }
}

/// The model that drafts, where the method has one.
///
/// # Errors
/// [`MathError::Refused`] where there is none, or it is not for the method.
pub fn drafter(knobs: &Knobs) -> Result<Option<(&Drafter, DraftMethod)>, MathError> {
    let Some(method) = knobs.speculation.map(|speculation| speculation.method).filter(|method| method.has_model()) else {
        return match &knobs.drafter {
            None => Ok(None),
            Some(_) => Err(refused("a model that drafts needs a method: eagle, eagle3 or draft_model".to_string())),
        };
    };
    let Some(drafter) = knobs.drafter.as_deref() else {
        return Err(refused(format!("method {}: a model that drafts is needed", method.name())));
    };
    let built = match method {
        DraftMethod::Eagle => drafter.checkpoint.eagle.first,
        DraftMethod::Eagle3 => drafter.checkpoint.eagle.third,
        _ => true,
    };
    if !built {
        return Err(MathError::Unsupported {
            engine: VERSION.to_string(),
            mechanism: format!("{} as a model that drafts by {}", drafter.spec.architecture, method.name()),
        });
    }
    Ok(Some((drafter, method)))
}

impl Drafter {
    /// Weights on a rank of the last stage as the engine creates them, embedding and output matrix among them.
    ///
    /// # Errors
    /// As [`weights`].
    pub(super) fn weights(&self, method: DraftMethod, target: &ModelSpec, knobs: &Knobs) -> Result<RankWeights, MathError> {
        let mut own = knobs.clone();
        own.drafter = None;
        own.speculation = None;
        own.parallelism.pipeline = 1;
        // Known dense models leave expert parallelism (`config/speculative.py:create_draft_parallel_config`).
        own.parallelism.expert = false;
        let ranks = match method {
            DraftMethod::DraftModel => weights(&self.spec, &self.tensors, &self.checkpoint, &own)?,
            _ => {
                let (spec, table) = self.head(method, target)?;
                weights(&spec, &table, &self.checkpoint, &own)?
            }
        };
        Ok(ranks.into_iter().next().unwrap_or_default())
    }

    /// Bytes of a rank's embedding and output matrix that may be the model's: the engine compares those that the file has
    /// with the model's (`v1/worker/gpu/spec_decode/eagle/utils.py:_should_share`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub(super) fn shareable(
        &self,
        method: DraftMethod,
        target: &ModelSpec,
        held: &RankWeights,
        knobs: &Knobs,
    ) -> Result<u64, MathError> {
        // With several stages an embedding stays where the file has one, and a model of its own shares nothing.
        if matches!(method, DraftMethod::DraftModel) || self.spec.d_model != target.d_model {
            return Ok(0);
        }
        let head = match (method, self.checkpoint.eagle.vocabulary) {
            (DraftMethod::Eagle3, Some(tokens)) if tokens != target.embedding.n_vocab => {
                let rows = tokens.next_multiple_of(64) / knobs.parallelism.tensor.max(1);
                mul(mul(rows, self.spec.d_model)?, self.checkpoint.dtype.block_bytes())?
            }
            _ => 0,
        };
        Ok(held.vocabulary.saturating_sub(head))
    }

    /// The tensors that the engine's class makes of the config's layers.
    fn head(&self, method: DraftMethod, target: &ModelSpec) -> Result<(ModelSpec, TensorTable), MathError> {
        let facts = &self.checkpoint.eagle;
        let width = self.spec.d_model;
        let third = matches!(method, DraftMethod::Eagle3);
        let mut spec = self.spec.clone();
        let mut table = self.tensors.clone();
        // The first version has no output matrix, neither norm around the layers, and joins embedding and hidden state;
        // EAGLE 3 has them, and its first layer reads both side by side.
        table.tensors.retain(|tensor| match tensor.name.as_str() {
            "output.weight" => false,
            "output_norm.weight" => third,
            "blk.0.attn_norm.weight" => third,
            _ => true,
        });
        let own = |name: String, shape: Shape, place: Place| Tensor {
            name,
            shape,
            format: StorageFormat::Bf16,
            component: Component::Other,
            place,
            counts: Counts::Parameter,
            opaque_bytes: None,
        };
        let joined = if third {
            for tensor in &mut table.tensors {
                if matches!(tensor.name.as_str(), "blk.0.attn_q.weight" | "blk.0.attn_k.weight" | "blk.0.attn_v.weight") {
                    let [inputs, outputs, ..] = tensor.shape.0;
                    tensor.shape = Shape::matrix(mul(2, inputs)?, outputs);
                }
            }
            for index in (0_u32..).take(spec.layers.len()) {
                table.tensors.push(own(format!("blk.{index}.hidden_norm.weight"), Shape::vector(width), Place::Layer(index)));
            }
            let tokens = facts.vocabulary.unwrap_or(spec.embedding.n_vocab);
            table.tensors.push(own("output.weight".to_string(), Shape::matrix(width, tokens), Place::Output));
            if tokens != target.embedding.n_vocab {
                table.tensors.push(own("draft_to_target".to_string(), Shape::vector(tokens), Place::Output));
            }
            let state = facts.state_size.unwrap_or(width);
            mul(state, facts.states)?
        } else {
            mul(2, width)?
        };
        if joined > 0 {
            table.tensors.push(own("joined_states.weight".to_string(), Shape::matrix(joined, width), Place::Input));
            let norms = add(if facts.norm_of_all { joined } else { 0 }, if facts.norm_of_each { joined } else { 0 })?;
            if third && norms > 0 {
                table.tensors.push(own("joined_states_norm.weight".to_string(), Shape::vector(norms), Place::Input));
            }
        }
        spec.head.lm_head = LmHead::Own { bias: false };
        Ok((spec, table))
    }
}
