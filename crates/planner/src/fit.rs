//! Does it fit, with what to spare, and what would make it fit.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::allocation::{Certainty, PlaceAllocation, Term, TermKind};
use plimsoll_math::deployment::{Backend, ContextRequest, FlashAttention};
use plimsoll_math::device::{Device, DeviceKind, Driver};
use plimsoll_math::error::MathError;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::units::Bytes;

use crate::command::command;
use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::limits;
use crate::model::Model;
use crate::naive::naive;
use crate::request::{Engine, Options};
use crate::response::{
    CacheBrief, Change, DeploymentBrief, DeviceUse, EXPLAIN_SCHEMA, EngineBrief, Explain, FIT_SCHEMA, Fit, HostUse, Limits,
    ModelBrief, Totals, Verdict,
};
use crate::size::grouped;

/// The least a term may take.
const fn low(term: &Term) -> Bytes {
    match &term.certainty {
        Certainty::Bounded { low, .. } | Certainty::Calibrated { low, .. } => *low,
        _ => term.bytes,
    }
}

/// What is used on the device and on the host, upper and lower bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// On the device, upper bounds.
    pub device: Bytes,
    /// On the device, lower bounds.
    pub device_low: Bytes,
    /// On the host, upper bounds.
    pub host: Bytes,
    /// On the host, lower bounds.
    pub host_low: Bytes,
}

impl Used {
    /// Sums of a plan.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn of(planned: &Planned) -> Result<Self, MathError> {
        let host = Self::of_device(&planned.allocation.host)?;
        let mut used = Self { device: Bytes::ZERO, device_low: Bytes::ZERO, host: host.device, host_low: host.device_low };
        for place in &planned.allocation.devices {
            let device = Self::of_device(place)?;
            used.device = used.device.plus(device.device)?;
            used.device_low = used.device_low.plus(device.device_low)?;
        }
        Ok(used)
    }

    /// Sums of one place, as a device.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn of_device(place: &PlaceAllocation) -> Result<Self, MathError> {
        let device_low = Bytes::sum(place.terms.iter().map(low))?;
        Ok(Self { device: place.used()?, device_low, host: Bytes::ZERO, host_low: Bytes::ZERO })
    }

    /// Bytes to spare on `device` with upper bounds, or the bytes missing.
    ///
    /// # Errors
    /// Missing bytes, or [`MathError::Overflow`] inside.
    pub fn headroom(self, device: &Device) -> Result<Result<Bytes, Bytes>, MathError> {
        room(device, self.device, self.host)
    }

    /// The same with lower bounds.
    ///
    /// # Errors
    /// Missing bytes, or [`MathError::Overflow`] inside.
    pub fn headroom_at_best(self, device: &Device) -> Result<Result<Bytes, Bytes>, MathError> {
        room(device, self.device_low, self.host_low)
    }
}

/// A GPU that shares the host's memory has to leave room for what the host holds.
fn room(device: &Device, on_device: Bytes, on_host: Bytes) -> Result<Result<Bytes, Bytes>, MathError> {
    let mut limit = device.usable.bytes;
    if device.unified {
        let left = device.total.bytes.minus(on_host).unwrap_or(Bytes::ZERO);
        limit = limit.min(left);
    }
    Ok(match limit.minus(on_device) {
        Some(headroom) => Ok(headroom),
        None => Err(on_device.minus(limit).unwrap_or(Bytes::ZERO)),
    })
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
        kv_type_k: deployment.kv_type_k.name().to_string(),
        kv_type_v: deployment.kv_type_v.name().to_string(),
        flash_attention: if resolved.flash_attention { FlashAttention::On } else { FlashAttention::Off },
        kv_unified: deployment.kv_unified,
        swa_full: deployment.swa_full,
        repack: deployment.repack,
        mmap: deployment.mmap,
        embeddings: deployment.embeddings,
        device: question.effective.device.name.clone(),
        backend: question.effective.device.backend_name(),
        memory: question.effective.device.usable.bytes,
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
    let device = &question.effective.device;
    let mut devices = Vec::new();
    for place in &planned.allocation.devices {
        devices.push(DeviceUse {
            name: device.name.clone(),
            kind: device.kind,
            total: device.total.bytes,
            usable: device.usable.bytes,
            usable_origin: device.usable.origin.clone(),
            used: place.used()?,
            used_low: Bytes::sum(place.terms.iter().map(low))?,
            terms: shown(place),
        });
    }
    let host = HostUse { used: planned.allocation.host.used()?, terms: shown(&planned.allocation.host) };
    Ok((devices, host))
}

fn notes(question: &Question<'_>, planned: &Planned) -> Vec<String> {
    let mut notes = question.effective.notes.clone();
    notes.extend(question.notes.iter().cloned());
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
    if matches!(deployment.backend(), Backend::Cpu) && deployment.mmap {
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
    let question = Question::new(model, options)?;
    let planned = question.plan()?;
    let used = Used::of(&planned)?;
    let device = &question.effective.device;
    let verdict = match used.headroom(device)? {
        Ok(headroom) => Verdict::Fits { headroom },
        Err(short_by) => Verdict::DoesNotFit {
            short_by,
            fits_at_best_with: used.headroom_at_best(device)?.ok(),
            closest: closest(&question, &planned)?,
        },
    };
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
        cache: CacheBrief {
            bytes_per_token: Bytes::new(planned.cache_bytes_per_token)?,
            blocks: None,
            block_tokens: None,
            max_concurrency: None,
        },
        verdict,
        throughput: None,
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
    let question = Question::new(model, options)?;
    let planned = question.plan()?;
    let (devices, host) = places(&question, &planned, true)?;
    Ok(Explain {
        schema: EXPLAIN_SCHEMA.to_string(),
        model: model_brief(&question)?,
        engine: engine_brief(&question),
        deployment: deployment_brief(&question, &planned),
        devices,
        host,
        notes: notes(&question, &planned),
    })
}

/// The smallest change of each kind that would make it fit, those that give up least first.
fn closest(question: &Question<'_>, planned: &Planned) -> Result<Vec<Change>, PlanError> {
    let mut found = Vec::new();
    let device = &question.effective.device;
    let mut attempt = |changed: &Question<'_>, change: String, options: Vec<String>| -> Result<bool, PlanError> {
        let used = match changed.plan() {
            Ok(planned) => Used::of(&planned)?,
            // A change that the engine refuses is none.
            Err(PlanError::Math(MathError::Refused { .. } | MathError::Unsupported { .. } | MathError::PartialBlock { .. })) => {
                return Ok(false);
            }
            Err(other) => return Err(other),
        };
        let fits = used.headroom(&changed.effective.device)?.is_ok();
        if fits {
            found.push(Change { change, options, used: used.device });
        }
        Ok(fits)
    };

    let deployment = &question.effective.deployment;
    if planned.allocation.total(TermKind::KvCache)? > Bytes::ZERO {
        for format in [StorageFormat::Q8_0, StorageFormat::Q4_0] {
            if format.block_bytes() * 32 / format.block_len()
                >= deployment.kv_type_k.block_bytes() * 32 / deployment.kv_type_k.block_len()
            {
                continue;
            }
            let mut changed = question.clone();
            changed.effective.deployment.kv_type_k = format;
            changed.effective.deployment.kv_type_v = format;
            let name = format.name();
            if attempt(&changed, format!("cache in {name}"), vec!["--kv-type".to_string(), name.to_string()])? {
                break;
            }
        }
    }
    if let Some(limit) = limits::max_context(question)?
        && limit.value > 0
        && limit.value < planned.resolved.context_per_sequence
    {
        let mut changed = question.clone();
        changed.effective.deployment.context = ContextRequest::PerSequence(limit.value);
        attempt(
            &changed,
            format!("context of {}", grouped(limit.value)),
            vec!["--context".to_string(), limit.value.to_string()],
        )?;
    }
    if deployment.sequences > 1
        && let Some(limit) = limits::max_sequences(question)?
        && limit.value > 0
        && limit.value < deployment.sequences
    {
        let mut changed = question.clone();
        changed.effective.deployment.sequences = limit.value;
        attempt(&changed, format!("{} sequences", limit.value), vec!["--sequences".to_string(), limit.value.to_string()])?;
    }
    if question.can_requantize() {
        let mut best: Option<(Question<'_>, &str)> = None;
        for file_type in ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"] {
            let Ok(changed) = question.with_quant(file_type) else { continue };
            if changed.weight_bytes()? >= question.weight_bytes()? {
                continue;
            }
            let fits = match changed.plan() {
                Ok(planned) => Used::of(&planned)?.headroom(device)?.is_ok(),
                Err(_) => false,
            };
            if fits {
                best = Some((changed, file_type));
                break;
            }
        }
        if let Some((changed, file_type)) = best {
            attempt(&changed, format!("weights in {file_type}"), vec!["--quant".to_string(), file_type.to_string()])?;
        }
    }
    if device.kind == DeviceKind::Gpu {
        let mut larger: Vec<Device> = Device::all()?
            .into_iter()
            .filter(|other| {
                other.driver == device.driver && other.unified == device.unified && other.usable.bytes > device.usable.bytes
            })
            .collect();
        larger.sort_by_key(|other| other.usable.bytes);
        for other in larger {
            let mut changed = question.clone();
            changed.effective.deployment.devices = other.accelerators();
            changed.effective.device = other.clone();
            if attempt(
                &changed,
                format!("{} with {}", other.name, crate::size::short(other.usable.bytes.get())),
                vec!["--device".to_string(), other.name.clone()],
            )? {
                break;
            }
        }
    }
    Ok(found)
}
