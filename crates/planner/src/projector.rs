//! A multimodal projector beside the model (`llama-server --mmproj`).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::deployment::Backend;
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::llama_cpp::allocate::Allocated;
use plimsoll_math::engine::llama_cpp::projector::{
    Growth, ProjectorSetting, growth, memory, output_widths, projected_bytes, terms,
};

use crate::engine::Question;
use crate::error::PlanError;
use crate::model::ProjectorFile;
use crate::request::Engine;
use crate::response::MmprojBrief;
use crate::size::grouped;

/// A projector beside a model in question.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside<'a> {
    file: &'a ProjectorFile,
}

impl<'a> Beside<'a> {
    /// The projector of a question; `None` where there is none.
    pub(crate) fn of(question: &Question<'a>) -> Result<Option<Self>, PlanError> {
        let options = &question.options;
        let model = question.model;
        let Some(file) = model.projector.as_deref() else {
            return match options.projector_set().as_slice() {
                [] => Ok(None),
                [first, ..] => Err(PlanError::request(first, "a value", "a projector beside the model (mmproj)")),
            };
        };
        if !matches!(question.effective.engine, Engine::LlamaCpp(_)) {
            let expected = "llama.cpp, whose projectors are files of their own";
            return Err(PlanError::request("mmproj", question.effective.engine.name(), expected));
        }
        if options.embeddings == Some(true) || model.generic {
            let found = "one beside embeddings or an unknown architecture";
            return Err(PlanError::request("mmproj", found, "a projector for a decoder that is known"));
        }
        for (name, tokens) in [("image_min_tokens", options.image_min_tokens), ("image_max_tokens", options.image_max_tokens)] {
            if tokens == Some(0) {
                return Err(PlanError::request(name, "0", "1 or more"));
            }
        }
        for width in output_widths(&file.projector) {
            // Several layers may have embeddings of their own beside those of the input (`llama_model_n_embd_inp`).
            if !width.is_multiple_of(model.spec.d_model.max(1)) {
                let found = format!("one for models of {width} elements, beside a model of {}", model.spec.d_model);
                return Err(PlanError::request("mmproj", found, "the projector that was made for this model"));
            }
        }
        Ok(Some(Self { file }))
    }

    fn offloads(question: &Question<'_>) -> bool {
        question.options.mmproj_offload != Some(false) && !question.effective.deployment.devices.is_empty()
    }

    fn setting(question: &Question<'_>) -> ProjectorSetting {
        let deployment = &question.effective.deployment;
        ProjectorSetting {
            backend: if Self::offloads(question) { deployment.backend() } else { Backend::Cpu },
            flash_attention: deployment.flash_attention,
            min_tokens: question.options.image_min_tokens,
            max_tokens: question.options.image_max_tokens,
        }
    }

    /// Bytes on the first device that the engine leaves room for when it chooses what goes where.
    pub(crate) fn projected(&self, question: &Question<'_>, build: Build) -> Result<u64, PlanError> {
        if !Self::offloads(question) {
            return Ok(0);
        }
        Ok(projected_bytes(&memory(&self.file.projector, &Self::setting(question), build)?)?)
    }

    /// What it takes: on the first device, whatever part of the model is there, or on the processor.
    pub(crate) fn plan(&self, question: &Question<'_>, allocated: &mut Allocated, build: Build) -> Result<(), PlanError> {
        let offloads = Self::offloads(question);
        let terms = terms(&self.file.projector, &Self::setting(question), build)?;
        let allocation = &mut allocated.allocation;
        let own = allocation.devices.first_mut().filter(|_| offloads).unwrap_or(&mut allocation.host);
        own.terms.extend(terms.own);
        allocation.host.terms.extend(terms.host);
        Ok(())
    }

    /// What larger pictures add as they come, in words.
    pub(crate) fn notes(&self, question: &Question<'_>) -> Vec<String> {
        let Engine::LlamaCpp(build) = question.effective.engine else { return Vec::new() };
        let grown = growth(&self.file.projector, &Self::setting(question), build).unwrap_or_default();
        let text = |grown: Growth| {
            format!(
                "a picture of {0} x {0} pixels makes the projector's compute buffer grow to {1} B as it comes",
                grown.side,
                grouped(grown.compute)
            )
        };
        grown.into_iter().map(text).collect()
    }

    /// How it runs, in short.
    pub(crate) fn brief(&self, question: &Question<'_>) -> MmprojBrief {
        MmprojBrief {
            file: self.file.reference.clone(),
            kinds: self.file.projector.towers.iter().map(|tower| tower.kind.clone()).collect(),
            offload: Self::offloads(question),
            image_min_tokens: question.options.image_min_tokens,
            image_max_tokens: question.options.image_max_tokens,
        }
    }

    /// The engine's arguments.
    pub(crate) fn arguments(&self, question: &Question<'_>) -> Vec<String> {
        let options = &question.options;
        let mut out = Vec::from(["--mmproj".to_string(), self.file.reference.clone()]);
        if !Self::offloads(question) {
            out.push("--no-mmproj-offload".to_string());
        }
        for (name, tokens) in [("--image-min-tokens", options.image_min_tokens), ("--image-max-tokens", options.image_max_tokens)]
        {
            out.extend(tokens.into_iter().flat_map(|tokens| [name.to_string(), tokens.to_string()]));
        }
        out
    }
}
