//! The same terms on both sides: what the engine says it would allocate, and what we say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use plimsoll::ingest::gguf;
use plimsoll::math::allocation::{Certainty, Term, TermKind};
use plimsoll::math::deployment::FlashAttention;
use plimsoll::math::error::MathError;
use plimsoll::planner::{Basis, Model, Options, PlanError, fit};
use serde_json::Value;

use super::grid::{Setting, Where};
use super::subjects::Subject;

/// The terms, in the order of the tables.
pub(crate) const TERMS: [&str; 5] = ["weights", "caches", "state", "output", "compute"];

/// Lower and upper bound on the device and on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bytes {
    pub(crate) device: (u64, u64),
    pub(crate) host: (u64, u64),
}

impl Bytes {
    pub(crate) const fn is_exact(&self) -> bool {
        self.device.0 == self.device.1 && self.host.0 == self.host.1
    }
    pub(crate) fn contains(&self, other: &Self) -> bool {
        let inside = |ours: (u64, u64), theirs: (u64, u64)| ours.0 <= theirs.0 && theirs.1 <= ours.1;
        inside(self.device, other.device) && inside(self.host, other.host)
    }
    pub(crate) fn text(&self) -> String {
        let range = |(low, high): (u64, u64)| if low == high { low.to_string() } else { format!("{low}..{high}") };
        format!("{} + {} on the host", range(self.device), range(self.host))
    }
    /// Upper bounds on both.
    pub(crate) const fn most(&self) -> u64 {
        self.device.1.saturating_add(self.host.1)
    }
    pub(crate) const fn least(&self) -> u64 {
        self.device.0.saturating_add(self.host.0)
    }
}

/// All terms of one allocation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Figures {
    /// One entry per name of [`TERMS`].
    pub(crate) terms: [Bytes; 5],
    /// Buffers with weights, by size.
    pub(crate) weight_buffers: Vec<u64>,
}

/// How a side answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// With figures.
    Figures(Box<Figures>),
    /// The engine refuses the setting or the model, for this reason.
    Refused(String),
    /// We do not cover it.
    Unsupported(String),
}

/// What the engine's answer says.
pub(crate) fn theirs(answer: &Value) -> Answer {
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        let why = answer.get("why").and_then(Value::as_str).unwrap_or_default();
        return Answer::Refused(format!("{error}: {}", why.trim()));
    }
    let buffers = |key: &str| -> BTreeMap<String, u64> {
        let entries = answer.get(key).and_then(Value::as_object).into_iter().flatten();
        entries.filter_map(|(name, bytes)| Some((name.clone(), bytes.as_u64()?))).collect()
    };
    let places = |key: &str| {
        let mut out = Bytes::default();
        for (name, bytes) in buffers(key) {
            let on_device = name.starts_with("CUDA") && !name.contains("Host");
            let place = if on_device { &mut out.device } else { &mut out.host };
            *place = (place.0.saturating_add(bytes), place.1.saturating_add(bytes));
        }
        out
    };
    let (memory, state) = (places("memory"), places("state"));
    let less = |all: (u64, u64), part: (u64, u64)| (all.0.saturating_sub(part.0), all.1.saturating_sub(part.1));
    let caches = Bytes { device: less(memory.device, state.device), host: less(memory.host, state.host) };
    let mut weight_buffers: Vec<u64> = buffers("weights").into_values().filter(|bytes| *bytes > 0).collect();
    weight_buffers.sort_unstable();
    let terms = [places("weights"), caches, state, places("output"), places("compute")];
    Answer::Figures(Box::new(Figures { terms, weight_buffers }))
}

/// A model of ours, ready for questions.
#[derive(Debug)]
pub(crate) enum Ready {
    Model(Box<Model>),
    Not(String),
}

impl Ready {
    pub(crate) fn of(subject: &Subject) -> Self {
        match gguf::ingest(&subject.bytes.as_slice(), &gguf::Options::default()) {
            Ok(ingested) => Self::Model(Box::new(Model::new(Some(&subject.name), ingested, Basis::Gguf))),
            Err(error) => Self::Not(error.to_string()),
        }
    }
}

fn options(build: &str, place: Where, setting: &Setting) -> Options {
    Options {
        engine: Some(format!("llama.cpp@{build}")),
        total_context: Some(setting.context),
        sequences: Some(setting.sequences),
        ubatch: Some(setting.ubatch),
        kv_type_k: Some(setting.keys.to_owned()),
        kv_type_v: Some(setting.values.to_owned()),
        flash_attention: Some(match setting.flash {
            "on" => FlashAttention::On,
            "off" => FlashAttention::Off,
            _ => FlashAttention::Auto,
        }),
        kv_unified: Some(setting.unified),
        swa_full: Some(setting.swa_full),
        repack: Some(setting.repack),
        mmap: Some(false),
        device: Some(place.name()),
        memory: Some(1 << 50),
        skip_limits: Some(true),
        ..Options::default()
    }
}

/// What we answer, and how long it took.
pub(crate) fn ours(ready: &Ready, build: &str, place: Where, setting: &Setting) -> (Answer, Duration) {
    let model = match ready {
        Ready::Model(model) => model,
        Ready::Not(problem) => return (Answer::Unsupported(problem.clone()), Duration::ZERO),
    };
    let options = options(build, place, setting);
    let start = Instant::now();
    let answer = fit(model, &options);
    let time = start.elapsed();
    let answer = match answer {
        Ok(answer) => answer,
        Err(PlanError::Math(MathError::Refused { reason, .. })) => return (Answer::Refused(reason), time),
        Err(error) => return (Answer::Unsupported(error.to_string()), time),
    };
    let mut figures = Figures::default();
    let on_devices = answer.devices.iter().flat_map(|device| device.terms.iter().map(|term| (term, place != Where::Processor)));
    for (term, on_device) in on_devices.chain(answer.host.terms.iter().map(|term| (term, false))) {
        let index = match term.component {
            TermKind::Weights => 0,
            TermKind::KvCache => 1,
            TermKind::RecurrentState => 2,
            TermKind::Output => 3,
            TermKind::Compute => 4,
            _ => continue,
        };
        let (low, high) = range(term);
        let Some(bytes) = figures.terms.get_mut(index) else { continue };
        let place = if on_device { &mut bytes.device } else { &mut bytes.host };
        *place = (place.0.saturating_add(low), place.1.saturating_add(high));
        if index == 0 && high > 0 {
            figures.weight_buffers.push(high);
        }
    }
    figures.weight_buffers.sort_unstable();
    (Answer::Figures(Box::new(figures)), time)
}

fn range(term: &Term) -> (u64, u64) {
    match &term.certainty {
        Certainty::Bounded { low, high } => (low.get(), high.get()),
        _ => (term.bytes.get(), term.bytes.get()),
    }
}
