//! The cartesian product of contexts, sequences, cache formats, quantizations, devices and engines, as a stream.
//!
//! A [`Line`] is everything but the context, compiled once; its points are closed formulas. Nothing is kept of a point
//! that has been told, so that a sweep takes as much memory with a million points as with ten. Lines and points are
//! independent: who has several processors hands them out.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::device::Device;
use plimsoll_math::engine::llama_cpp::FileType;
use plimsoll_math::engine::vllm::options::CacheDtype;
use plimsoll_math::error::MathError;
use plimsoll_math::throughput::float;
use plimsoll_math::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::change::is_refusal;
use crate::engine::{Compiled, Question};
use crate::error::PlanError;
use crate::model::Model;
use crate::pace::Pace;
use crate::point::Point;
use crate::request::{Engine, Options};
use crate::size::quoted;
use crate::speed::PerSecond;

/// Schema name of a sweep's answer.
pub const SWEEP_SCHEMA: &str = "plimsoll.sweep/1";
/// More points than these are refused: nobody reads them.
pub const MOST_POINTS: u64 = 1_000_000_000;

/// From so many contexts on it pays to compile a line for all of them.
const MANY_CONTEXTS: usize = 500;

/// What is varied; an empty axis stays as the options have it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Axes {
    /// Engines.
    pub engines: Vec<String>,
    /// Devices, each with a count where there are several of a kind (`RTX 4090x2`).
    pub devices: Vec<String>,
    /// File types.
    pub quants: Vec<String>,
    /// Formats of cached keys and values.
    pub kv_types: Vec<String>,
    /// Concurrent sequences.
    pub sequences: Vec<u64>,
    /// Tokens per sequence.
    pub contexts: Vec<u64>,
}

/// What all points of a line share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The engine.
    pub engine: String,
    /// Its build.
    pub engine_version: String,
    /// The device, with a count.
    pub device: String,
    /// How weights are stored.
    pub quant: String,
    /// How the cache is stored.
    pub kv_type: String,
    /// Concurrent sequences.
    pub sequences: u64,
    /// Memory that may be used on all devices.
    pub usable: Bytes,
}

/// Whether a point fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// On the devices.
    Fits,
    /// With a part on the host, as asked.
    FitsWithOffload,
    /// Not.
    DoesNotFit,
    /// The engine refuses the setting, or does not know a mechanism of the model.
    Refused,
}

impl Standing {
    /// Its name in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fits => "fits",
            Self::FitsWithOffload => "fits_with_offload",
            Self::DoesNotFit => "does_not_fit",
            Self::Refused => "refused",
        }
    }
}

/// One point. Where the engine refuses, all figures are absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row<'l> {
    /// What it shares with its line.
    #[serde(flatten)]
    pub label: &'l Label,
    /// Tokens per sequence, as asked.
    pub context: u64,
    /// Whether it fits.
    pub standing: Standing,
    /// Bytes left on the fullest device, negative for bytes missing.
    pub headroom: Option<i64>,
    /// Used on all devices, upper bounds taken.
    pub devices_used: Option<Bytes>,
    /// Used on the host.
    pub host_used: Option<Bytes>,
    /// Weights.
    pub weights: Option<Bytes>,
    /// Keys and values.
    pub kv_cache: Option<Bytes>,
    /// Recurrent state.
    pub recurrent_state: Option<Bytes>,
    /// Activations.
    pub compute: Option<Bytes>,
    /// Logits and embeddings.
    pub output: Option<Bytes>,
    /// What the driver keeps.
    pub driver_context: Option<Bytes>,
    /// Tokens per second of one sequence with a full context.
    pub decode_tokens_per_s: Option<PerSecond>,
    /// Tokens per second of all sequences half way through their contexts.
    pub aggregate_decode_tokens_per_s: Option<PerSecond>,
    /// Tokens per second of a prompt.
    pub prefill_tokens_per_s: Option<PerSecond>,
}

/// A sweep to be run.
#[derive(Debug, Clone)]
pub struct Sweep<'a> {
    model: &'a Model,
    options: Options,
    axes: Axes,
}

/// Everything but the context, compiled.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    label: Label,
    sequences: u64,
    state: State<'a>,
}

#[derive(Debug, Clone)]
enum State<'a> {
    Open {
        compiled: alloc::boxed::Box<Compiled<'a>>,
        pace: Option<alloc::boxed::Box<Pace>>,
        prefill: Option<PerSecond>,
        offloads: bool,
    },
    Refused(String),
}

fn or_none<T: Clone>(axis: &[T]) -> Vec<Option<T>> {
    if axis.is_empty() { alloc::vec![None] } else { axis.iter().cloned().map(Some).collect() }
}

/// The value at a mixed-radix position: the last axis turns fastest.
fn digit(position: &mut u64, radix: usize) -> usize {
    let radix = u64::try_from(radix.max(1)).unwrap_or(1);
    let digit = *position % radix;
    *position /= radix;
    usize::try_from(digit).unwrap_or(0)
}

impl<'a> Sweep<'a> {
    /// Checks every value of every axis before anything is worked out.
    ///
    /// # Errors
    /// [`PlanError`] for a name that nobody knows, a zero, or more points than can be told.
    pub fn new(model: &'a Model, options: &Options, axes: Axes) -> Result<Self, PlanError> {
        for (field, values) in [("contexts", &axes.contexts), ("sequences", &axes.sequences)] {
            if values.contains(&0) {
                return Err(PlanError::request(field, "0", "numbers of 1 or more"));
            }
        }
        for engine in &axes.engines {
            Engine::parse(engine)?;
        }
        for quant in &axes.quants {
            FileType::parse(quant).map_err(|_| PlanError::request("quant", quoted(quant), "a file type of llama-quantize"))?;
        }
        let mut options = options.clone();
        options.skip_limits = Some(true);
        let sweep = Self { model, options, axes };
        sweep.devices()?;
        if sweep.axes.contexts.is_empty() && sweep.options.context.is_none() && model.spec.max_context == 0 {
            return Err(PlanError::request("contexts", "nothing", "contexts, such as 4k..128k*2"));
        }
        if sweep.options.total_context.is_some() || sweep.options.like_engine == Some(true) {
            let field = if sweep.options.like_engine == Some(true) { "like_engine" } else { "total_context" };
            return Err(PlanError::request(field, "a value", "contexts per sequence"));
        }
        for kv_type in &sweep.axes.kv_types {
            let engines = or_none(&sweep.axes.engines);
            if !engines.iter().any(|engine| keeps_caches_in(engine.as_ref().or(sweep.options.engine.as_ref()), kv_type)) {
                return Err(PlanError::request("kv_types", quoted(kv_type), "formats that one of the engines keeps caches in"));
            }
        }
        match sweep.lines().checked_mul(sweep.width()).filter(|points| *points <= MOST_POINTS) {
            Some(_) => Ok(sweep),
            None => Err(PlanError::request("sweep", "more points than can be told", alloc::format!("at most {MOST_POINTS}"))),
        }
    }

    /// Combinations of everything but the context.
    #[must_use]
    pub fn lines(&self) -> u64 {
        let axes = &self.axes;
        [axes.engines.len(), axes.devices.len(), axes.quants.len(), axes.kv_types.len(), axes.sequences.len()]
            .into_iter()
            .map(|length| u64::try_from(length.max(1)).unwrap_or(u64::MAX))
            .fold(1, u64::saturating_mul)
    }

    /// Points of a line.
    #[must_use]
    pub fn width(&self) -> u64 {
        u64::try_from(self.axes.contexts.len().max(1)).unwrap_or(u64::MAX)
    }

    /// All points.
    #[must_use]
    pub fn points(&self) -> u64 {
        self.lines().saturating_mul(self.width())
    }

    /// Values of the axis that turns fastest: the first so many lines differ in the number of sequences alone.
    #[must_use]
    pub fn sequences(&self) -> u64 {
        u64::try_from(self.axes.sequences.len().max(1)).unwrap_or(1)
    }

    /// What is varied.
    #[must_use]
    pub const fn axes(&self) -> &Axes {
        &self.axes
    }

    /// The model's name.
    #[must_use]
    pub fn model_name(&self) -> &str {
        &self.model.name
    }

    /// The sets of devices, one for each value of their axis.
    ///
    /// # Errors
    /// [`PlanError`] for names that nobody knows; [`Sweep::new`] has asked already.
    pub fn devices(&self) -> Result<Vec<Vec<Device>>, PlanError> {
        or_none(&self.axes.devices)
            .iter()
            .map(|device| Ok(self.asked(None, device.as_ref(), None, None, None).devices()?.0))
            .collect()
    }

    /// The context of a column.
    #[must_use]
    pub fn context(&self, column: u64) -> u64 {
        let column = usize::try_from(column).unwrap_or(usize::MAX);
        match self.axes.contexts.get(column) {
            Some(context) => *context,
            None => self.options.context.unwrap_or(self.model.spec.max_context),
        }
    }

    fn asked(
        &self,
        engine: Option<&String>,
        device: Option<&String>,
        quant: Option<&String>,
        kv_type: Option<&String>,
        sequences: Option<u64>,
    ) -> Options {
        let mut options = self.options.clone();
        options.engine = engine.cloned().or(options.engine);
        if let Some(device) = device {
            (options.device, options.devices) = (Some(device.clone()), None);
        }
        options.quant = quant.cloned().or(options.quant);
        if let Some(kv_type) = kv_type {
            (options.kv_type, options.kv_type_k, options.kv_type_v) = (Some(kv_type.clone()), None, None);
        }
        options.sequences = sequences.or(options.sequences);
        options
    }

    /// Compiles the line at `index`, counted with sequences turning fastest, then cache formats, quantizations, devices, engines.
    ///
    /// # Errors
    /// [`PlanError`] for what is wrong with the question itself; a setting that the engine refuses makes a line of refusals.
    pub fn line(&self, index: u64) -> Result<Line<'a>, PlanError> {
        let mut position = index;
        let axes = &self.axes;
        let sequences = axes.sequences.get(digit(&mut position, axes.sequences.len())).copied();
        let kv_type = axes.kv_types.get(digit(&mut position, axes.kv_types.len()));
        let quant = axes.quants.get(digit(&mut position, axes.quants.len()));
        let device = axes.devices.get(digit(&mut position, axes.devices.len()));
        let engine = axes.engines.get(digit(&mut position, axes.engines.len()));
        let mut options = self.asked(engine, device, quant, kv_type, sequences);
        options.context = Some(self.context(0));
        let sequences = options.sequences.unwrap_or(1);
        match self.open(&options, sequences) {
            Ok(line) => Ok(line),
            // In a product of axes some settings are none of an engine's: that is a row, and no reason to stop.
            Err(error) if is_refusal(&error) || (is_about_the_setting(&error) && self.lines() > 1) => {
                let parsed = Engine::parse(options.engine.as_deref().unwrap_or("llama.cpp"))?;
                let devices = options.devices()?.0;
                Ok(Line {
                    label: Label {
                        engine: parsed.name().to_string(),
                        engine_version: parsed.version().to_string(),
                        device: several(&devices),
                        quant: options.quant.clone().unwrap_or_default(),
                        kv_type: options.kv_type.clone().unwrap_or_default(),
                        sequences,
                        usable: Bytes::sum(devices.iter().map(|device| device.usable.bytes))?,
                    },
                    sequences,
                    state: State::Refused(error.to_string()),
                })
            }
            Err(error) => Err(error),
        }
    }

    fn open(&self, options: &Options, sequences: u64) -> Result<Line<'a>, PlanError> {
        let question = Question::new(self.model, options)?;
        let planned = question.plan()?;
        let deployment = crate::fit::deployment_brief(&question, &planned);
        let pace = Pace::new(&question, &planned)?;
        let prompt = float(planned.resolved.context_per_sequence.clamp(1, 512));
        let devices = &question.effective.devices;
        let label = Label {
            engine: question.effective.engine.name().to_string(),
            engine_version: question.effective.engine.version().to_string(),
            device: several(devices),
            quant: question.stored_as().unwrap_or_default(),
            kv_type: if deployment.kv_type_k == deployment.kv_type_v {
                deployment.kv_type_k
            } else {
                alloc::format!("{}/{}", deployment.kv_type_k, deployment.kv_type_v)
            },
            sequences,
            usable: Bytes::sum(devices.iter().map(|device| device.usable.bytes))?,
        };
        let mut compiled = question.compile()?;
        if self.axes.contexts.len() >= MANY_CONTEXTS {
            compiled = compiled.for_many_contexts()?;
        }
        Ok(Line {
            label,
            sequences,
            state: State::Open {
                prefill: pace.as_ref().map(|pace| pace.prefill(prompt, 0.0).expected),
                pace: pace.map(alloc::boxed::Box::new),
                offloads: question.offloads()?,
                compiled: alloc::boxed::Box::new(compiled),
            },
        })
    }
}

/// Whether one engine may take what another does not.
const fn is_about_the_setting(error: &PlanError) -> bool {
    matches!(error, PlanError::Request { .. } | PlanError::Math(MathError::Invalid { .. }))
}

/// Whether an engine has a cache format of this name.
fn keeps_caches_in(engine: Option<&String>, kv_type: &str) -> bool {
    match Engine::parse(engine.map_or("llama.cpp", String::as_str)) {
        Ok(Engine::Vllm) => CacheDtype::parse(kv_type).is_ok(),
        Ok(_) => {
            let engine = engine.cloned();
            let alone = Options { engine, kv_type: Some(kv_type.to_string()), memory: Some(1), ..Options::default() };
            alone.effective().is_ok()
        }
        Err(_) => false,
    }
}

/// Devices in a few words: `2x RTX 4090`, or one name after the other.
#[must_use]
pub fn several(devices: &[Device]) -> String {
    let mut groups: Vec<(&str, u64)> = Vec::new();
    for device in devices {
        match groups.last_mut() {
            Some((name, count)) if *name == device.name => *count += 1,
            _ => groups.push((&device.name, 1)),
        }
    }
    let words: Vec<String> = groups
        .into_iter()
        .map(|(name, count)| if count == 1 { name.to_string() } else { alloc::format!("{count}x {name}") })
        .collect();
    words.join(" + ")
}

fn signed(room: Result<Bytes, Bytes>) -> i64 {
    let whole = |bytes: Bytes| i64::try_from(bytes.get()).unwrap_or(i64::MAX);
    match room {
        Ok(left) => whole(left),
        Err(missing) => whole(missing).saturating_neg(),
    }
}

impl Line<'_> {
    /// What its points share.
    #[must_use]
    pub const fn label(&self) -> &Label {
        &self.label
    }

    /// Why the engine refuses the whole line, where it does.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match &self.state {
            State::Refused(reason) => Some(reason),
            State::Open { .. } => None,
        }
    }

    /// What `context` tokens per sequence take; `None` where the engine refuses.
    ///
    /// # Errors
    /// [`PlanError::Math`] for sizes that cannot be told.
    pub fn figures(&self, context: u64) -> Result<Option<Point>, PlanError> {
        let State::Open { compiled, .. } = &self.state else { return Ok(None) };
        match compiled.point(context, self.sequences) {
            Ok(point) => Ok(Some(point)),
            Err(error) if is_refusal(&error) => Ok(None),
            // More than can be counted is no size: the engine could not start either.
            Err(PlanError::Math(MathError::Overflow { .. } | MathError::Invalid { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The row of `context` tokens per sequence.
    ///
    /// # Errors
    /// As [`Line::figures`].
    pub fn row(&self, context: u64) -> Result<Row<'_>, PlanError> {
        let point = self.figures(context)?;
        let (pace, prefill, offloads) = match &self.state {
            State::Open { pace, prefill, offloads, .. } => (pace.as_ref(), *prefill, *offloads),
            State::Refused(_) => (None, None, false),
        };
        let standing = match &point {
            None => Standing::Refused,
            Some(point) if !point.fits() => Standing::DoesNotFit,
            Some(_) if offloads => Standing::FitsWithOffload,
            Some(_) => Standing::Fits,
        };
        let depth = point.map(|point| float(point.context_per_sequence));
        // What does not fit does not run.
        let runs = matches!(standing, Standing::Fits | Standing::FitsWithOffload);
        let pace = pace.filter(|_| runs);
        let decode = |sequences: f64, share: f64| -> Option<PerSecond> {
            Some(pace.zip(depth).map(|(pace, depth)| pace.decode(sequences, depth * share))?.expected)
        };
        let part = |of: fn(&Point) -> Bytes| point.as_ref().map(of);
        Ok(Row {
            label: &self.label,
            context,
            standing,
            headroom: point.map(|point| signed(point.room)),
            devices_used: part(|point| point.devices),
            host_used: part(|point| point.host),
            weights: part(|point| point.parts.weights),
            kv_cache: part(|point| point.parts.kv_cache),
            recurrent_state: part(|point| point.parts.recurrent_state),
            compute: part(|point| point.parts.compute),
            output: part(|point| point.parts.output),
            driver_context: part(|point| point.parts.driver_context),
            decode_tokens_per_s: decode(1.0, 1.0),
            aggregate_decode_tokens_per_s: decode(float(self.sequences), 0.5),
            prefill_tokens_per_s: prefill.filter(|_| runs),
        })
    }
}
