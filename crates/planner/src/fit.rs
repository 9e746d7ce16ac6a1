//! Does it fit, with what to spare, and what would make it fit.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::allocation::{Certainty, PlaceAllocation, Term, TermKind};
use plimsoll_math::deployment::{ContextRequest, FlashAttention};
use plimsoll_math::device::{Device, Driver};
use plimsoll_math::error::MathError;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::units::Bytes;

use crate::change::room_of;
use crate::closest::closest;
use crate::command::command;
use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::limits;
use crate::model::Model;
use crate::naive::naive;
use crate::request::{Engine, Options};
use crate::response::{
    DeploymentBrief, DeviceUse, EXPLAIN_SCHEMA, EXPORT_SCHEMA, EngineBrief, Explain, Export, FIT_SCHEMA, Fit, HostUse, Limits,
    ModelBrief, Totals, Verdict,
};
use crate::size::{grouped, quoted};

/// The least a term may take.
const fn low(term: &Term) -> Bytes {
    match &term.certainty {
        Certainty::Bounded { low, .. } | Certainty::Calibrated { low, .. } => *low,
        _ => term.bytes,
    }
}

/// Bytes between a lower and an upper bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// At most.
    pub high: Bytes,
    /// At least.
    pub low: Bytes,
}

impl Span {
    /// Sums of one place.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn of(place: &PlaceAllocation) -> Result<Self, MathError> {
        Ok(Self { high: place.used()?, low: Bytes::sum(place.terms.iter().map(low))? })
    }

    /// Both bounds with another's added.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn plus(self, other: Self) -> Result<Self, MathError> {
        Ok(Self { high: self.high.plus(other.high)?, low: self.low.plus(other.low)? })
    }
}

/// What is used on every device and on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// On the devices, in their order.
    pub devices: Vec<Span>,
    /// On the host.
    pub host: Span,
}

impl Used {
    /// Sums of a plan.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn of(planned: &Planned) -> Result<Self, MathError> {
        let devices = planned.allocation.devices.iter().map(Span::of).collect::<Result<_, _>>()?;
        Ok(Self { devices, host: Span::of(&planned.allocation.host)? })
    }

    /// Upper bounds of all devices.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn on_devices(&self) -> Result<Bytes, MathError> {
        Bytes::sum(self.devices.iter().map(|span| span.high))
    }

    /// Bytes to spare on the fullest of `devices` with upper bounds, or the bytes missing on the one that misses most.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn headroom(&self, devices: &[Device]) -> Result<Result<Bytes, Bytes>, MathError> {
        least(devices.iter().zip(&self.devices).map(|(device, span)| room(device, span.high, self.host.high)))
    }

    /// The same with lower bounds.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn headroom_at_best(&self, devices: &[Device]) -> Result<Result<Bytes, Bytes>, MathError> {
        least(devices.iter().zip(&self.devices).map(|(device, span)| room(device, span.low, self.host.low)))
    }
}

/// The least headroom, or the largest shortage if there is any.
fn least(rooms: impl Iterator<Item = Result<Bytes, Bytes>>) -> Result<Result<Bytes, Bytes>, MathError> {
    let mut all: Option<Result<Bytes, Bytes>> = None;
    for room in rooms {
        all = Some(match (all, room) {
            (None, room) => room,
            (Some(Ok(one)), Ok(other)) => Ok(one.min(other)),
            (Some(Err(one)), Err(other)) => Err(one.max(other)),
            (Some(Err(short)), Ok(_)) | (Some(Ok(_)), Err(short)) => Err(short),
        });
    }
    all.ok_or(MathError::Overflow { quantity: "devices" })
}

/// What is left of a device, or missing. A GPU that shares the host's memory has to leave room for what the host holds.
pub(crate) fn room(device: &Device, on_device: Bytes, on_host: Bytes) -> Result<Bytes, Bytes> {
    let mut limit = device.usable.bytes;
    if device.unified {
        let left = device.total.bytes.minus(on_host).unwrap_or(Bytes::ZERO);
        limit = limit.min(left);
    }
    limit.minus(on_device).ok_or_else(|| on_device.minus(limit).unwrap_or(Bytes::ZERO))
}

/// The model in a few words.
pub(crate) fn model_brief(question: &Question<'_>) -> Result<ModelBrief, PlanError> {
    Ok(ModelBrief {
        name: question.model.name.clone(),
        architecture: question.model.spec.architecture.clone(),
        parameters: question.model.parameters()?,
        max_context: question.model.spec.max_context,
        quantization: question.stored_as(),
    })
}

pub(crate) fn engine_brief(question: &Question<'_>) -> EngineBrief {
    let engine = question.effective.engine;
    EngineBrief { name: engine.name().to_string(), version: engine.version().to_string() }
}

pub(crate) fn deployment_brief(question: &Question<'_>, planned: &Planned) -> DeploymentBrief {
    let deployment = &question.effective.deployment;
    let resolved = planned.resolved;
    let context = match deployment.context {
        ContextRequest::PerSequence(tokens) => tokens,
        ContextRequest::Total(tokens) if deployment.kv_unified => tokens,
        ContextRequest::Total(tokens) => tokens / deployment.sequences.max(1),
        ContextRequest::ModelMaximum => question.model.spec.max_context,
    };
    DeploymentBrief {
        context,
        sequences: deployment.sequences,
        context_per_sequence: resolved.context_per_sequence,
        total_context: resolved.total_context,
        batch: resolved.batch,
        ubatch: resolved.ubatch,
        quant: question.quant.clone(),
        kv_type_k: cache_type(deployment.kv_type_k, planned),
        kv_type_v: cache_type(deployment.kv_type_v, planned),
        flash_attention: if resolved.flash_attention { FlashAttention::On } else { FlashAttention::Off },
        kv_unified: deployment.kv_unified,
        swa_full: deployment.swa_full,
        repack: deployment.repack,
        mmap: deployment.mmap,
        embeddings: deployment.embeddings,
        device: question.effective.device.name.clone(),
        prediction_layers: !question.converted().mtp.is_empty(),
        threads: question.effective.threads,
        draft_mtp: deployment.draft_context.then_some(deployment.draft_tokens),
        mmproj: question.projector.as_ref().map(|projector| projector.brief(question)),
        devices: question.effective.devices.iter().map(|device| device.name.clone()).collect(),
        backend: question.effective.device.backend_name(),
        memory: question.effective.device.usable.bytes,
        gpu_layers: deployment.gpu_layers,
        split_mode: deployment.split_mode,
        tensor_split: deployment.tensor_split.clone(),
        main_gpu: deployment.main_gpu,
        cpu_moe: deployment.cpu_moe,
        n_cpu_moe: deployment.n_cpu_moe,
        override_tensor: crate::place::overrides(deployment),
        kv_offload: deployment.kv_offload,
        op_offload: deployment.op_offload,
        vllm: planned.vllm.as_ref().map(|answer| answer.brief.clone()),
        settings: planned.served.as_ref().map(|served| served.settings.clone()).unwrap_or_default(),
    }
}

fn cache_type(format: StorageFormat, planned: &Planned) -> String {
    match (&planned.vllm, &planned.served) {
        (Some(answer), _) => answer.brief.kv_cache_dtype.clone(),
        (None, Some(served)) => served.kv_type.clone(),
        (None, None) => format.name().to_string(),
    }
}

fn places(question: &Question<'_>, planned: &Planned, with_children: bool) -> Result<(Vec<DeviceUse>, HostUse), PlanError> {
    let shown = |place: &PlaceAllocation| -> Vec<Term> {
        let mut terms = place.terms.clone();
        if !with_children {
            for term in &mut terms {
                term.children = Vec::new();
            }
        }
        terms
    };
    let mut devices = Vec::new();
    let on_host = planned.allocation.host.used()?;
    for (device, place) in question.effective.devices.iter().zip(&planned.allocation.devices) {
        let used = place.used()?;
        let (headroom, short_by) = match room(device, used, on_host) {
            Ok(headroom) => (Some(headroom), None),
            Err(short) => (None, Some(short)),
        };
        devices.push(DeviceUse {
            headroom,
            short_by,
            name: device.name.clone(),
            kind: device.kind,
            total: device.total.bytes,
            usable: device.usable.bytes,
            usable_origin: device.usable.origin.clone(),
            used,
            used_low: Bytes::sum(place.terms.iter().map(low))?,
            terms: shown(place),
        });
    }
    let limits = crate::runtime::limits(question, planned)?;
    let host = HostUse { used: planned.allocation.host.used()?, terms: shown(&planned.allocation.host), limits };
    Ok((devices, host))
}

fn notes(question: &Question<'_>, planned: &Planned) -> Vec<String> {
    let mut notes = question.effective.notes.clone();
    notes.extend(question.notes.iter().cloned());
    notes.extend(question.projector.iter().flat_map(|projector| projector.notes(question)));
    if let Some(answer) = &planned.vllm {
        notes.extend(answer.notes.iter().cloned());
        notes.extend(question.model.notes.iter().cloned());
        return notes;
    }
    if let Some(served) = &planned.served {
        notes.extend(served.notes.iter().cloned());
    }
    let deployment = &question.effective.deployment;
    let resolved = planned.resolved;
    if let ContextRequest::PerSequence(tokens) = deployment.context
        && !deployment.kv_unified
        && tokens != resolved.context_per_sequence
    {
        notes.push(format!(
            "{} rounds the context of {} up to {} tokens per sequence",
            question.effective.engine.name(),
            grouped(tokens),
            grouped(resolved.context_per_sequence)
        ));
    }
    let trained = question.model.spec.max_context;
    if trained > 0 && resolved.context_per_sequence > trained.next_multiple_of(256) && !deployment.kv_unified {
        notes.push(format!(
            "{} tokens per sequence are more than the {} the model was trained for",
            grouped(resolved.context_per_sequence),
            grouped(trained)
        ));
    }
    if deployment.devices.is_empty() && deployment.mmap {
        notes.push(
            "weights on the processor are mapped from the file: the system may drop and reload them under pressure".to_string(),
        );
    }
    if matches!(question.effective.device.driver, Driver::Rocm | Driver::Vulkan)
        && matches!(question.effective.engine, Engine::LlamaCpp(_))
    {
        notes.push(format!(
            "memory on {} is planned with the rules of llama.cpp's CUDA backend: those of this device's backend are not followed yet, \
             and compute buffers may differ",
            question.effective.device.name
        ));
    }
    notes.extend(question.model.notes.iter().cloned());
    notes
}

/// Whether `model` fits, under `options`.
///
/// # Errors
/// [`PlanError`] when the question is wrong, the engine refuses, or a number leaves the exact range.
pub fn fit(model: &Model, options: &Options) -> Result<Fit, PlanError> {
    let mut question = Question::new(model, options)?;
    let like_engine = if options.like_engine == Some(true) { Some(question.choose_like_engine(options)?) } else { None };
    let planned = question.plan()?;
    let short = planned.short_by();
    let room = room_of(&question, &planned)?;
    let verdict = match room {
        Ok(headroom) if question.offloads()? => {
            Verdict::FitsWithOffload { headroom, plan: crate::place::arguments(&question.effective.deployment) }
        }
        Ok(headroom) => Verdict::Fits { headroom },
        Err(short_by) => Verdict::DoesNotFit {
            short_by,
            fits_at_best_with: match short {
                Some(_) => planned.pool_at_best(),
                None => Used::of(&planned)?.headroom_at_best(&question.effective.devices)?.ok(),
            },
            closest: closest(&question, &planned)?,
        },
    };
    // What does not fit does not run.
    let runs = !matches!(verdict, Verdict::DoesNotFit { fits_at_best_with: None, .. });
    let throughput = if runs { crate::speed::throughput(&question, &planned)? } else { None };
    let (devices, host) = places(&question, &planned, false)?;
    let total = |kind| planned.allocation.total(kind);
    Ok(Fit {
        schema: FIT_SCHEMA.to_string(),
        model: model_brief(&question)?,
        engine: engine_brief(&question),
        deployment: deployment_brief(&question, &planned),
        devices,
        host,
        totals: Totals {
            weights: total(TermKind::Weights)?,
            kv_cache: total(TermKind::KvCache)?,
            recurrent_state: total(TermKind::RecurrentState)?,
            compute: total(TermKind::Compute)?,
            output: total(TermKind::Output)?,
        },
        cache: planned.cache()?,
        verdict,
        like_engine,
        throughput,
        command: command(&question, &planned),
        limits: if options.skip_limits == Some(true) { Limits::default() } else { limits::both(&question)? },
        naive: naive(
            model,
            question.effective.deployment.sequences,
            deployment_brief(&question, &planned).context,
            question.quant.as_deref(),
        )?,
        notes: notes(&question, &planned),
    })
}

/// Every byte of `fit` as a tree.
///
/// # Errors
/// As [`fit`].
pub fn explain(model: &Model, options: &Options) -> Result<Explain, PlanError> {
    explain_term(model, options, None)
}

/// The same for one component alone: its name as JSON spells it.
///
/// # Errors
/// As [`fit`], and for a component that nothing here has.
pub fn explain_term(model: &Model, options: &Options, term: Option<&str>) -> Result<Explain, PlanError> {
    let mut question = Question::new(model, options)?;
    if options.like_engine == Some(true) {
        question.choose_like_engine(options)?;
    }
    let planned = question.plan()?;
    let naive = naive(
        model,
        question.effective.deployment.sequences,
        deployment_brief(&question, &planned).context,
        question.quant.as_deref(),
    )?;
    let (mut devices, mut host) = places(&question, &planned, true)?;
    if let Some(name) = term {
        let terms = devices.iter_mut().map(|device| &mut device.terms).chain([&mut host.terms]);
        only(terms, name)?;
        host.limits = Vec::new();
    }
    Ok(Explain {
        schema: EXPLAIN_SCHEMA.to_string(),
        model: model_brief(&question)?,
        engine: engine_brief(&question),
        deployment: deployment_brief(&question, &planned),
        devices,
        host,
        term: term.map(ToString::to_string),
        naive,
        notes: notes(&question, &planned),
    })
}

/// Leaves out every term that is not of the component whose name is or begins with `name`.
fn only<'t>(places: impl Iterator<Item = &'t mut Vec<Term>>, name: &str) -> Result<(), PlanError> {
    let called =
        |term: &Term| serde_json::to_value(term.component).ok().and_then(|value| value.as_str().map(ToString::to_string));
    let wanted = name.trim().to_ascii_lowercase().replace(['-', ' '], "_");
    let mut known: Vec<String> = Vec::new();
    for terms in places {
        for name in terms.iter().filter_map(called) {
            if !known.contains(&name) {
                known.push(name);
            }
        }
        terms.retain(|term| called(term).is_some_and(|name| name.starts_with(&wanted)));
    }
    if !wanted.is_empty() && known.iter().any(|name| name.starts_with(&wanted)) {
        return Ok(());
    }
    Err(PlanError::request("term", quoted(name), format!("one of {}", known.join(", "))))
}

/// The engine's own command line for what `fit` was asked.
///
/// # Errors
/// As [`fit`].
pub fn export(model: &Model, options: &Options) -> Result<Export, PlanError> {
    let question = Question::new(model, options)?;
    let planned = question.plan()?;
    Ok(Export {
        schema: EXPORT_SCHEMA.to_string(),
        engine: engine_brief(&question),
        command: command(&question, &planned),
        document: None,
    })
}
