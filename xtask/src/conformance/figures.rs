//! The same terms on both sides: what the engine says it would allocate, and what we say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use plimsoll::ingest::gguf;
use plimsoll::math::allocation::{Certainty, Term, TermKind};
use plimsoll::math::deployment::FlashAttention;
use plimsoll::math::error::MathError;
use plimsoll::planner::{Basis, Model, Options, PlanError, fit};
use serde_json::Value;

use super::grid::Setting;
use super::places::Where;
use super::subjects::Subject;

/// The terms, in the order of the tables.
pub(crate) const TERMS: [&str; 5] = ["weights", "caches", "state", "output", "compute"];

/// Lower and upper bound.
type Range = (u64, u64);

/// Bounds on every device and on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bytes {
    pub(crate) devices: [Range; 2],
    pub(crate) host: Range,
}

impl Bytes {
    fn ranges(&self) -> [Range; 3] {
        let [first, second] = self.devices;
        [first, second, self.host]
    }
    /// The range of a device, or of the host.
    fn at(&mut self, device: Option<usize>) -> Option<&mut Range> {
        match device {
            Some(device) => self.devices.get_mut(device),
            None => Some(&mut self.host),
        }
    }
    fn add(&mut self, device: Option<usize>, (low, high): Range) {
        if let Some(range) = self.at(device) {
            *range = (range.0.saturating_add(low), range.1.saturating_add(high));
        }
    }
    pub(crate) fn is_exact(&self) -> bool {
        self.ranges().iter().all(|(low, high)| low == high)
    }
    pub(crate) fn contains(&self, other: &Self) -> bool {
        self.ranges().iter().zip(other.ranges()).all(|(ours, theirs)| ours.0 <= theirs.0 && theirs.1 <= ours.1)
    }
    pub(crate) fn text(&self) -> String {
        let range = |(low, high): Range| if low == high { low.to_string() } else { format!("{low}..{high}") };
        let [first, second] = self.devices.map(range);
        let devices = if self.devices[1] == (0, 0) { first } else { format!("{first} + {second}") };
        format!("{devices} + {} on the host", range(self.host))
    }
    /// Upper bounds on all.
    pub(crate) fn most(&self) -> u64 {
        self.ranges().iter().map(|range| range.1).fold(0, u64::saturating_add)
    }
    pub(crate) fn least(&self) -> u64 {
        self.ranges().iter().map(|range| range.0).fold(0, u64::saturating_add)
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
            // `CUDA0`, `CUDA1`; `CUDA_Host` is the host's.
            let device = name.strip_prefix("CUDA").and_then(|number| number.parse().ok());
            out.add(device, (bytes, bytes));
        }
        out
    };
    let (memory, state) = (places("memory"), places("state"));
    let mut caches = memory;
    let less = |(low, high): &mut Range, part: Range| (*low, *high) = (low.saturating_sub(part.0), high.saturating_sub(part.1));
    caches.devices.iter_mut().zip(state.devices).for_each(|(all, part)| less(all, part));
    less(&mut caches.host, state.host);
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
    setting.placed.options(Options {
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
        device: Some(place.device()),
        memory: Some(1 << 50),
        skip_limits: Some(true),
        ..Options::default()
    })
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
    // The processor counts as a device where there is no other.
    let number = |device: usize| (place != Where::Processor).then_some(device);
    let devices = answer.devices.iter().enumerate().map(|(device, found)| (number(device), &found.terms));
    let terms =
        devices.chain([(None, &answer.host.terms)]).flat_map(|(device, terms)| terms.iter().map(move |term| (device, term)));
    for (device, term) in terms {
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
        bytes.add(device, (low, high));
        if index == 0 && high > 0 {
            figures.weight_buffers.push(high);
        }
    }
    figures.weight_buffers.sort_unstable();
    (Answer::Figures(Box::new(figures)), time)
}

fn range(term: &Term) -> Range {
    match &term.certainty {
        Certainty::Bounded { low, high } => (low.get(), high.get()),
        _ => (term.bytes.get(), term.bytes.get()),
    }
}
