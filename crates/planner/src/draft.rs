//! A draft model beside the model that it drafts for (`llama-server -md`).

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use plimsoll_math::allocation::{PlaceAllocation, Term, TermKind};
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::llama_cpp::allocate::{Allocated, allocate};
use plimsoll_math::engine::llama_cpp::draft::{check_vocabularies, drafting};

use crate::engine::Question;
use crate::error::PlanError;
use crate::request::{Engine, Options, cache_format};

/// Tokens that llama-server drafts at most unless told (`common.h:common_params_speculative_draft::n_max`).
const DRAFTED: u64 = 3;

/// A draft model with its tensors as stored, and what is its own of the deployment.
#[derive(Debug, Clone)]
pub(crate) struct Draft<'a> {
    question: Box<Question<'a>>,
}

impl<'a> Draft<'a> {
    /// The draft model of a question; `None` where nothing drafts.
    pub(crate) fn of(question: &mut Question<'a>) -> Result<Option<Self>, PlanError> {
        let options = question.options.clone();
        let model = question.model;
        let Some(draft) = model.draft.as_deref() else {
            return match options.draft_set() {
                [] => Ok(None),
                [first, ..] => Err(PlanError::request(first, "a value", "a draft model beside it (draft_model)")),
            };
        };
        if question.effective.engine == Engine::Vllm {
            // Its own policy plans what drafts; how many tokens at a time stands beside the method.
            return match options.draft_set() {
                [] => Ok(None),
                [first, ..] => Err(PlanError::request(first, "a value", "none with vllm: it stands in speculative (eagle3:3)")),
            };
        }
        let Engine::LlamaCpp(build) = question.effective.engine else {
            return Err(PlanError::request("draft_model", question.effective.engine.name(), "llama.cpp"));
        };
        if options.draft_mtp.is_some() || options.embeddings == Some(true) || model.generic || draft.generic {
            let found = "one beside draft_mtp, embeddings or an unknown architecture";
            return Err(PlanError::request("draft_model", found, "a draft model for a decoder that is known"));
        }
        if options.like_engine == Some(true) {
            return Err(PlanError::request(
                "like_engine",
                "a draft model, which the engine measures along",
                "no draft model: the search with two models is not followed",
            ));
        }
        let own = Options {
            engine: options.engine.clone(),
            device: Some("cpu".to_string()),
            memory: Some(1 << 40),
            context: Some(256),
            quant: options.draft_quant.clone(),
            ..Options::default()
        };
        let own = Box::new(Question::new(draft, &own)?);
        check_vocabularies(&question.converted(), &own.converted(), build)?;
        question.effective.deployment.draft_tokens = options.draft_tokens.unwrap_or(DRAFTED);
        question.notes.extend(own.notes.iter().map(|note| format!("draft model: {note}")));
        Ok(Some(Self { question: own }))
    }

    /// What the draft model and its context take, place by place.
    pub(crate) fn plan(&self, target: &Question<'_>, allocated: &mut Allocated, build: Build) -> Result<(), PlanError> {
        let options = &target.options;
        let formats = (
            cache_format("draft_kv_type", options.draft_kv_type.as_ref())?,
            cache_format("draft_kv_type", options.draft_kv_type.as_ref())?,
        );
        let deployment = drafting(&target.effective.deployment, &allocated.resolved, options.draft_gpu_layers, formats);
        let own = allocate(&self.question.converted(), self.question.tensors(), &deployment, build)?;
        let places = allocated.allocation.devices.iter_mut().chain([&mut allocated.allocation.host]);
        let drafted = own.allocation.devices.into_iter().chain([own.allocation.host]);
        for (place, drafted) in places.zip(drafted) {
            place.terms.extend(terms(drafted));
        }
        Ok(())
    }

    /// The engine's arguments.
    pub(crate) fn arguments(&self, target: &Question<'_>) -> Vec<alloc::string::String> {
        let options = &target.options;
        let mut out = Vec::from(["-md".to_string(), crate::command::file(&self.question)]);
        let mut option = |name: &str, value: alloc::string::String| out.extend([name.to_string(), value]);
        option("--spec-type", "draft-simple".to_string());
        option("--spec-draft-n-max", target.effective.deployment.draft_tokens.to_string());
        if !target.effective.deployment.devices.is_empty() {
            option("-ngld", options.draft_gpu_layers.map_or_else(|| "all".to_string(), |layers| layers.to_string()));
        }
        if let Some(format) = &options.draft_kv_type {
            option("-ctkd", format.clone());
            option("-ctvd", format.clone());
        }
        out
    }
}

/// Every term as one of the draft model.
fn terms(place: PlaceAllocation) -> impl Iterator<Item = Term> {
    place.terms.into_iter().filter(|term| term.bytes.get() > 0).map(|term| {
        let children = term.children.into_iter().map(|child| Term { component: TermKind::Draft, ..child }).collect();
        Term { component: TermKind::Draft, label: format!("draft model, {}", term.label), children, ..term }
    })
}
