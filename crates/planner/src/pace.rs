//! How fast a plan runs, ready to be asked for many contexts and sequences.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::allocation::{PlaceAllocation, TermKind};
use plimsoll_math::deployment::Location;
use plimsoll_math::device::{Device, DeviceKind, Driver, Origin};
use plimsoll_math::engine::llama_cpp::layout::Layout;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::tensor::{Component, Place};
use plimsoll_math::throughput::setup::OnHost;
use plimsoll_math::throughput::simulate::Step;
use plimsoll_math::throughput::{
    Family, Metric, Parallel, Runtime, Setup, Speeds, Work, decode, decode_bound, decode_step, float, interval, prefill,
    prefill_bound, prefill_step, seconds,
};

use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::request::Engine;
use crate::speed::Rate;

/// A plan's speed.
#[derive(Debug, Clone)]
pub struct Pace {
    work: Work,
    setup: Setup,
    /// How a server divides the model; `None` for programs of one machine.
    parallel: Option<Parallel>,
    ubatch: f64,
    uncertain: bool,
    /// What had to be assumed.
    pub assumptions: Vec<String>,
}

/// One device that stands for several which hold layers one after the other: each byte is read at its own device's pace.
fn together(devices: &[(Device, f64)]) -> Option<(Speeds, f64, bool)> {
    let known: Vec<(Speeds, f64, bool)> = devices
        .iter()
        .map(|(device, share)| {
            let estimated = device.speed.is_some_and(|speed| speed.origin == Origin::Estimated);
            Speeds::of(device).map(|speeds| (speeds, *share, estimated))
        })
        .collect::<Option<_>>()?;
    let total: f64 = known.iter().map(|(_, share, _)| share).sum();
    let count = float(u64::try_from(known.len()).unwrap_or(1));
    let (first, ..) = known.iter().max_by(|(_, left, _), (_, right, _)| left.total_cmp(right))?;
    let mut speeds = first.clone();
    let mean = |of: fn(&Speeds) -> f64| -> f64 {
        let weight = |share: f64| if total > 0.0 { share / total } else { 1.0 / count };
        let time: f64 = known.iter().map(|(speeds, share, _)| weight(*share) / of(speeds).max(1.0)).sum();
        1.0 / time.max(1e-30)
    };
    if known.len() > 1 {
        speeds.bandwidth = mean(|speeds| speeds.bandwidth);
        speeds.half = mean(|speeds| speeds.half);
        speeds.int8 = mean(|speeds| speeds.int8);
        speeds.usable = known.iter().map(|(speeds, ..)| speeds.usable).sum::<f64>() / count;
    }
    let estimated = known.iter().any(|(.., estimated)| *estimated);
    Some((speeds, count, estimated))
}

/// What stays on the host, by the bytes that the plan puts there.
fn on_host(question: &Question<'_>, planned: &Planned, work: &Work) -> Result<Option<OnHost>, PlanError> {
    let deployment = &question.effective.deployment;
    if deployment.devices.is_empty() {
        return Ok(None);
    }
    let bytes = |kind| -> Result<f64, PlanError> { Ok(float(planned.allocation.host.of(kind)?.get())) };
    // The input embedding is on the host in any case, and one row of it is read. Where it is the head as well, the head is a
    // second copy beside the last layer.
    let layout = Layout::of(&question.converted(), deployment)?;
    let looked_up = if matches!(layout.output(), Location::Device(_)) {
        let embeds = |component| matches!(component, Component::Embeddings | Component::PerLayerEmbeddings);
        float(question.tensors().bytes_where(|tensor| tensor.place == Place::Input && embeds(tensor.component))?.get())
    } else {
        work.embedding_bytes
    };
    let there = (bytes(TermKind::Weights)? - looked_up).max(0.0);
    let caches = float(planned.allocation.total(TermKind::KvCache)?.get());
    let cache = if caches > 0.0 { bytes(TermKind::KvCache)? / caches } else { 0.0 };
    let all = work.dense_bytes + work.expert_bytes;
    if there < all * 0.01 && cache < 0.01 {
        return Ok(None);
    }
    let host = Speeds::usual_host();
    let by_pattern = |pattern: &str| pattern.contains("exps");
    let experts_first = deployment.cpu_moe
        || deployment.n_cpu_moe > 0
        || deployment.tensor_overrides.iter().any(|one| one.place == Location::Host && by_pattern(&one.pattern));
    let (experts, rest) = if experts_first && work.expert_bytes > 0.0 {
        let experts = (there / work.expert_bytes).min(1.0);
        (experts, ((there - work.expert_bytes * experts) / work.dense_bytes.max(1.0)).clamp(0.0, 1.0))
    } else {
        (there / all, there / all)
    };
    Ok(Some(OnHost { host, experts, rest, cache, layers: work.layers * experts.max(rest).max(cache) }))
}

/// The weights of one replica over all its ranks, as the server holds them: a quantized checkpoint's are not those of its config.
fn as_served(work: &mut Work, planned: &Planned, replicas: f64) -> Result<(), PlanError> {
    let mut held = 0.0;
    for place in &planned.allocation.devices {
        held += float(place.of(TermKind::Weights)?.get());
    }
    let scale = held / replicas.max(1.0) / work.all_bytes().max(1.0);
    if scale > 0.0 {
        work.dense_bytes *= scale;
        work.expert_bytes *= scale;
        work.embedding_bytes *= scale;
    }
    Ok(())
}

impl Pace {
    /// Compiles; `None` for engines, models and devices whose speed is not modelled.
    ///
    /// # Errors
    /// [`PlanError::Math`] where a size leaves the exact range.
    pub fn new(question: &Question<'_>, planned: &Planned) -> Result<Option<Self>, PlanError> {
        if question.model.generic || question.model.is_embedder() {
            return Ok(None);
        }
        match question.effective.engine {
            Engine::LlamaCpp(_) => Self::of_one_machine(question, planned, Runtime::LlamaCpp),
            Engine::Ollama => Self::of_one_machine(question, planned, Runtime::Ollama),
            Engine::Mlx => Self::of_mlx(question, planned),
            Engine::Vllm => Self::of_a_server(question, planned, Runtime::Vllm),
            Engine::Sglang => Self::of_a_server(question, planned, Runtime::Sglang),
            Engine::TensorRtLlm => Self::of_a_server(question, planned, Runtime::TensorRtLlm),
            // Nothing was measured of the one, and the other does not run.
            Engine::Transformers | Engine::Ideal => Ok(None),
        }
    }

    fn of_one_machine(question: &Question<'_>, planned: &Planned, runtime: Runtime) -> Result<Option<Self>, PlanError> {
        let deployment = &question.effective.deployment;
        let mut assumptions = Vec::new();
        let work = Work::new(&question.model.converted(), question.tensors(), deployment.kv_type_k, deployment.kv_type_v)?;
        let held = |place: &PlaceAllocation| -> Result<f64, PlanError> { Ok(float(place.of(TermKind::Weights)?.get())) };
        let mut devices = Vec::new();
        for (device, place) in question.effective.devices.iter().zip(&planned.allocation.devices) {
            devices.push((device.clone(), held(place)?));
        }
        // A device without layers does not slow the others down.
        if devices.iter().any(|(_, weights)| *weights > 0.0) {
            devices.retain(|(_, weights)| *weights > 0.0);
        }
        let alone_unknown = devices.iter().all(|(device, _)| device.kind == DeviceKind::Cpu && device.speed.is_none());
        let (speeds, count, estimated) = if alone_unknown {
            assumptions.push(
                "the processor is taken for a desktop's with two channels of DDR5: name one of `plimsoll devices` for another"
                    .to_string(),
            );
            (Speeds::usual_host(), 1.0, true)
        } else {
            match together(&devices) {
                Some(found) => found,
                None => return Ok(None),
            }
        };
        let mut setup = Setup::new(runtime, speeds);
        setup.devices = count;
        setup.without_flash = !planned.resolved.flash_attention;
        if setup.driver != Driver::Cpu {
            setup.on_host = on_host(question, planned, &work)?;
            if setup.on_host.is_some() {
                assumptions.push("the host is taken for a desktop with two channels of DDR5".to_string());
            }
        }
        let uncertain = estimated || setup.on_host.is_some();
        let ubatch = float(planned.resolved.ubatch);
        Ok(Some(Self { work, setup, parallel: None, ubatch, uncertain, assumptions }))
    }

    fn of_mlx(question: &Question<'_>, planned: &Planned) -> Result<Option<Self>, PlanError> {
        let device = &question.effective.device;
        let Some(speeds) = Speeds::of(device) else { return Ok(None) };
        let model = question.model;
        let mut assumptions = Vec::new();
        // Groups of 64 with a scale and an offset in half precision take what these formats take, at 4 and at 8 bits.
        let cache = match question.options.kv_type.as_deref().filter(|text| *text != "auto") {
            None => StorageFormat::F16,
            Some("4bit") => StorageFormat::Q4_0,
            Some("8bit") => StorageFormat::Q8_0,
            Some(other) => {
                assumptions.push(format!("a cache of {other} is read as fast as one of 8bit"));
                StorageFormat::Q8_0
            }
        };
        let mut work = Work::new(&model.spec, &model.tensors, cache, cache)?;
        as_served(&mut work, planned, 1.0)?;
        if model.quantization.is_some() || question.options.quant.is_some() {
            work.family = Family::Groups;
        }
        let estimated = device.speed.is_some_and(|speed| speed.origin == Origin::Estimated);
        let ubatch = float(planned.resolved.ubatch);
        let setup = Setup::new(Runtime::Mlx, speeds);
        Ok(Some(Self { work, setup, parallel: None, ubatch, uncertain: estimated, assumptions }))
    }

    fn of_a_server(question: &Question<'_>, planned: &Planned, runtime: Runtime) -> Result<Option<Self>, PlanError> {
        let Some(speeds) = Speeds::of(&question.effective.device) else { return Ok(None) };
        let ranks = crate::vllm::parallelism(&question.options)?;
        let [tensor, pipeline, replicas] = [ranks.tensor, ranks.pipeline, ranks.data].map(|count| float(count.max(1)));
        let answer = planned.vllm.as_ref().map(|answer| answer.brief.kv_cache_dtype.as_str());
        let stored = answer.or_else(|| planned.served.as_ref().map(|served| served.kv_type.as_str())).unwrap_or_default();
        let cache = if stored.contains("fp8") { StorageFormat::F8E4M3 } else { StorageFormat::F16 };
        let model = question.model;
        let mut work = Work::new(&model.spec, &model.tensors, cache, cache)?;
        as_served(&mut work, planned, replicas)?;
        if model.checkpoint.scheme.is_some() {
            let each = (work.dense_bytes + work.expert_bytes) / (work.dense_params + work.expert_params).max(1.0);
            // Groups of 4-bit numbers with their scales stay below this, 8-bit floats above.
            work.family = if each < 0.8 { Family::Groups } else { Family::Float8 };
        }
        let estimated = question.effective.device.speed.is_some_and(|speed| speed.origin == Origin::Estimated);
        let mut assumptions = Vec::new();
        if pipeline > 1.0 {
            assumptions.push("stages of a pipeline are taken to work one after the other".to_string());
        }
        assumptions
            .push("prompts alone are not in the measurements of this engine: their interval is that of decoding".to_string());
        let (expert, expert_tensor) = if ranks.expert { (tensor, 1.0) } else { (1.0, tensor) };
        let parallel = Parallel { tensor, data: replicas, expert, expert_tensor };
        let ubatch = float(planned.resolved.ubatch);
        let setup = Setup::new(runtime, speeds);
        Ok(Some(Self { work, setup, parallel: Some(parallel), ubatch, uncertain: estimated, assumptions }))
    }

    fn rate(&self, metric: Metric, time: f64, amount: f64, bound: f64) -> Rate {
        let metric = if self.parallel.is_some() { Metric::TimePerOutputToken } else { metric };
        interval(metric, self.setup.runtime, self.setup.driver, time, self.uncertain).as_rate(amount).at_most(bound).into()
    }

    /// Devices that share the work, for bounds.
    fn devices(&self) -> f64 {
        self.parallel.map_or(1.0, |parallel| parallel.tensor * parallel.data)
    }

    /// Tokens per second of `sequences` sequences together, each `depth` tokens deep.
    #[must_use]
    pub fn decode(&self, sequences: f64, depth: f64) -> Rate {
        let time = match self.parallel {
            None => seconds(&decode(&self.work, &self.setup, sequences, depth, None)),
            Some(parallel) => seconds(&decode_step(&self.work, &self.setup, parallel, sequences, depth)),
        };
        self.rate(Metric::Decode, time, sequences, decode_bound(&self.work, &self.setup, sequences) * self.devices())
    }

    /// Tokens per second of a prompt of `tokens` tokens after `depth` earlier ones.
    #[must_use]
    pub fn prefill(&self, tokens: f64, depth: f64) -> Rate {
        let time = self.prefill_seconds(tokens, depth);
        self.rate(Metric::Prefill, time, tokens, prefill_bound(&self.work, &self.setup) * self.devices())
    }

    fn prefill_seconds(&self, tokens: f64, depth: f64) -> f64 {
        match self.parallel {
            None => seconds(&prefill(&self.work, &self.setup, tokens, depth, self.ubatch, None)),
            // A step of a prompt reads the weights as well.
            Some(parallel) => {
                seconds(&prefill_step(&self.work, &self.setup, parallel, tokens, depth))
                    + seconds(&decode_step(&self.work, &self.setup, parallel, 1.0, depth))
            }
        }
    }

    /// How long a step of the engine's scheduler takes, seconds.
    #[must_use]
    pub fn step_seconds(&self, step: &Step) -> f64 {
        let mut time = 0.0;
        if step.decoding > 0.0 {
            time += match self.parallel {
                None => seconds(&decode(&self.work, &self.setup, step.decoding, step.depth, None)),
                Some(parallel) => seconds(&decode_step(&self.work, &self.setup, parallel, step.decoding, step.depth)),
            };
        }
        if step.prompt > 0.0 {
            time += match self.parallel {
                Some(parallel) if step.decoding > 0.0 => {
                    seconds(&prefill_step(&self.work, &self.setup, parallel, step.prompt, step.prompt_depth))
                }
                _ => self.prefill_seconds(step.prompt, step.prompt_depth),
            };
        }
        time
    }

    /// The figure to expect of a time, with its interval.
    #[must_use]
    pub fn around(&self, metric: Metric, time: f64) -> plimsoll_math::throughput::Estimate {
        let metric = if self.parallel.is_some() { Metric::TimePerOutputToken } else { metric };
        interval(metric, self.setup.runtime, self.setup.driver, time, self.uncertain)
    }
}
