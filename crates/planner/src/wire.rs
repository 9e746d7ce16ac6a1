//! One function per verb, request JSON in, response JSON out: what the command line's `--json`, HTTP, WebAssembly and
//! Python carry. Unknown request fields are refused by name.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_ingest::{Ingested, hf};
use plimsoll_math::device::Device;
use plimsoll_math::engine::vllm::facts::Checkpoint;
use plimsoll_math::projector::Projector;
use plimsoll_math::spec::ModelSpec;
use plimsoll_math::synth::tensor_table;
use plimsoll_math::tensor::TensorTable;
use serde::{Deserialize, Serialize};

use crate::error::PlanError;
use crate::model::{Basis, Model, ProjectorFile};
use crate::request::Options;
use crate::response::{DEVICES_SCHEMA, DeviceBrief, Devices};
use crate::sweep::{Axes, SWEEP_SCHEMA, Sweep};
use crate::which_device::Target;
use crate::which_quant::Grid;

/// A model inside a request: a config, or an architecture in Plimsoll's own vocabulary.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WireModel {
    /// What to call it.
    pub name: Option<String>,
    /// The contents of a `config.json`.
    pub config: Option<serde_json::Value>,
    /// An architecture.
    pub spec: Option<ModelSpec>,
    /// Its tensors as a file stores them; synthesized when left out.
    pub tensors: Option<TensorTable>,
    /// A smaller model that drafts tokens for it.
    pub draft: Option<Box<Self>>,
    /// A multimodal projector beside it.
    pub projector: Option<Projector>,
}

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The model.
    pub model: WireModel,
    /// The question.
    #[serde(default)]
    pub options: Options,
}

/// An error as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// Stable code.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What to try instead.
    pub hint: Option<String>,
}

impl From<&PlanError> for WireError {
    fn from(error: &PlanError) -> Self {
        Self { code: error.code().to_string(), message: error.to_string(), hint: error.hint().map(ToString::to_string) }
    }
}

impl WireModel {
    /// The model.
    ///
    /// # Errors
    /// [`PlanError`] when none or two are given, or what is given is no model.
    pub fn model(self, options: &Options) -> Result<Model, PlanError> {
        let mut model = match (self.config, self.spec) {
            (Some(config), None) => {
                let text = config.to_string();
                let reading = hf::Options { assume_generic: options.assume_generic.unwrap_or(false), ..hf::Options::default() };
                Model::new(self.name.as_deref(), hf::ingest(text.as_bytes(), &reading)?, Basis::Config)
            }
            (None, Some(spec)) => {
                let (tensors, basis) = match self.tensors {
                    Some(tensors) => (tensors, Basis::Gguf),
                    None => (tensor_table(&spec)?, Basis::Config),
                };
                let ingested = Ingested {
                    spec,
                    tensors,
                    quantization: None,
                    checkpoint: Checkpoint::default(),
                    generic: false,
                    notes: Vec::new(),
                };
                Model::new(self.name.as_deref(), ingested, basis)
            }
            (None, None) => return Err(PlanError::request("model", "nothing", "config or spec")),
            (Some(_), Some(_)) => return Err(PlanError::request("model", "config and spec", "one of the two")),
        };
        model.reference = None;
        model.draft = match self.draft {
            Some(draft) => Some(Box::new(draft.model(options)?)),
            None => None,
        };
        let reference = || "mmproj.gguf".to_string();
        model.projector = self.projector.map(|projector| Box::new(ProjectorFile { projector, reference: reference() }));
        Ok(model)
    }
}

fn answer<T: Serialize>(request: &str, verb: impl FnOnce(&Model, &Options) -> Result<T, PlanError>) -> Result<String, String> {
    let result = serde_json::from_str::<Request>(request)
        .map_err(|error| PlanError::request("request", error, "the fields of the schema"))
        .and_then(|request| {
            let model = request.model.model(&request.options)?;
            verb(&model, &request.options)
        })
        .and_then(|response| serde_json::to_string(&response).map_err(|error| PlanError::request("response", error, "text")));
    result.map_err(|error| error_json(&error))
}

/// An error as the text that the functions here answer with.
#[must_use]
pub fn error_json(error: &PlanError) -> String {
    serde_json::json!({ "error": WireError::from(error) }).to_string()
}

/// `fit`: does it fit, term by term.
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn fit(request: &str) -> Result<String, String> {
    answer(request, crate::fit::fit)
}

/// `explain`: every byte as a tree.
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn explain(request: &str) -> Result<String, String> {
    answer(request, crate::fit::explain)
}

/// `export`: the engine's own command line.
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn export(request: &str) -> Result<String, String> {
    answer(request, crate::fit::export)
}

/// `inspect`: what is in the model.
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn inspect(request: &str) -> Result<String, String> {
    answer(request, |model, _| crate::inspect::inspect(model))
}

/// `max-context`: the largest context that fits.
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn max_context(request: &str) -> Result<String, String> {
    answer(request, crate::limits::reach_context)
}

/// `max-sequences`: the most sequences that fit.
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn max_sequences(request: &str) -> Result<String, String> {
    answer(request, crate::limits::reach_sequences)
}

/// A request with something beside the options that every question has.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestWith<T> {
    /// The model.
    pub model: WireModel,
    /// The question.
    #[serde(default)]
    pub options: Options,
    /// What the verb asks beyond that.
    #[serde(default = "Default::default", bound(deserialize = "T: Deserialize<'de> + Default"))]
    pub ask: T,
}

fn answer_with<A: for<'de> Deserialize<'de> + Default, T: Serialize>(
    request: &str,
    verb: impl FnOnce(&Model, &Options, A) -> Result<T, PlanError>,
) -> Result<String, String> {
    serde_json::from_str::<RequestWith<A>>(request)
        .map_err(|error| PlanError::request("request", error, "the fields of the schema"))
        .and_then(|request| {
            let model = request.model.model(&request.options)?;
            let answer = verb(&model, &request.options, request.ask)?;
            serde_json::to_string(&answer).map_err(|error| PlanError::request("response", error, "text"))
        })
        .map_err(|error| error_json(&error))
}

/// What `offload` asks beyond a deployment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AskOffload {
    /// What the host has, bytes.
    pub host_memory: Option<u64>,
}

/// What `explain` asks beyond a deployment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AskTerm {
    /// One component alone.
    pub term: Option<String>,
}

/// `which-quant`: the grid of quantizations and contexts; `ask` is a [`Grid`].
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn which_quant(request: &str) -> Result<String, String> {
    answer_with(request, |model, options, grid: Grid| crate::which_quant::which_quant(model, options, &grid))
}

/// `which-device`: sets of devices that are enough; `ask` is a [`Target`].
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn which_device(request: &str) -> Result<String, String> {
    answer_with(request, |model, options, target: Target| crate::which_device::which_device(model, options, &target))
}

/// `offload`: the placement that fits and decodes fastest; `ask` is an [`AskOffload`].
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn offload(request: &str) -> Result<String, String> {
    answer_with(request, |model, options, ask: AskOffload| crate::offload::offload(model, options, ask.host_memory))
}

/// `explain` of one component; `ask` is an [`AskTerm`].
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn explain_term(request: &str) -> Result<String, String> {
    answer_with(request, |model, options, ask: AskTerm| crate::fit::explain_term(model, options, ask.term.as_deref()))
}

/// More rows than these are no answer in one piece: the library hands them out one by one.
pub const MOST_ROWS: u64 = 100_000;

/// `sweep`: every combination, in one document; `ask` is an [`Axes`].
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn sweep(request: &str) -> Result<String, String> {
    answer_with(request, |model, options, axes: Axes| {
        let sweep = Sweep::new(model, options, axes)?;
        if sweep.points() > MOST_ROWS {
            return Err(PlanError::request("sweep", sweep.points(), alloc::format!("at most {MOST_ROWS} points in one answer")));
        }
        let mut rows = Vec::new();
        for index in 0..sweep.lines() {
            let line = sweep.line(index)?;
            for column in 0..sweep.width() {
                let row = serde_json::to_value(line.row(sweep.context(column))?);
                rows.push(row.map_err(|error| PlanError::request("response", error, "text"))?);
            }
        }
        Ok(serde_json::json!({ "schema": SWEEP_SCHEMA, "points": sweep.points(), "rows": rows }))
    })
}

/// Two questions in one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The first.
    pub a: Request,
    /// The second.
    pub b: Request,
}

/// `compare`: two questions, term by term.
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn compare(request: &str) -> Result<String, String> {
    serde_json::from_str::<Pair>(request)
        .map_err(|error| PlanError::request("request", error, "the fields of the schema"))
        .and_then(|Pair { a, b }| {
            let (first, second) = (a.model.model(&a.options)?, b.model.model(&b.options)?);
            let answer = crate::compare::compare((&first, &a.options), (&second, &b.options))?;
            serde_json::to_string(&answer).map_err(|error| PlanError::request("response", error, "text"))
        })
        .map_err(|error| error_json(&error))
}

/// The device list.
///
/// # Errors
/// [`PlanError::Math`], which would be a fault of the list.
pub fn device_list() -> Result<Devices, PlanError> {
    let devices = Device::all()?
        .into_iter()
        .map(|device| DeviceBrief { aliases: device.aliases().iter().map(ToString::to_string).collect(), device })
        .collect();
    Ok(Devices { schema: DEVICES_SCHEMA.to_string(), devices })
}

/// `devices`: the device list.
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn devices() -> Result<String, String> {
    device_list()
        .and_then(|list| serde_json::to_string(&list).map_err(|error| PlanError::request("response", error, "text")))
        .map_err(|error| error_json(&error))
}

/// A fleet with its models inside.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetQuestion {
    /// Hosts, models and rules.
    pub fleet: crate::fleet::FleetRequest,
    /// The models, in the order of the fleet's.
    pub models: Vec<WireModel>,
}

/// `fleet`: where every replica goes.
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn fleet(request: &str) -> Result<String, String> {
    serde_json::from_str::<FleetQuestion>(request)
        .map_err(|error| PlanError::request("request", error, "the fields of the schema"))
        .and_then(|question| {
            let given = question.models.into_iter().zip(&question.fleet.model);
            let models = given.map(|(model, wanted)| model.model(&wanted.options)).collect::<Result<Vec<_>, _>>()?;
            crate::fleet::fleet(&question.fleet, &models)
        })
        .and_then(|response| serde_json::to_string(&response).map_err(|error| PlanError::request("response", error, "text")))
        .map_err(|error| error_json(&error))
}

/// A load on a model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapacityQuestion {
    /// The model.
    pub model: WireModel,
    /// How a replica runs.
    #[serde(default)]
    pub options: Options,
    /// Requests per second.
    pub rate: f64,
    /// How many are played.
    pub requests: u32,
    /// What they are drawn from.
    pub seed: u64,
    /// Tokens of prompts.
    pub prompt: crate::capacity::lengths::Lengths,
    /// Tokens of answers.
    pub output: crate::capacity::lengths::Lengths,
    /// Latencies.
    pub promises: crate::capacity::Promises,
    /// Places to try; those of the options when empty.
    #[serde(default)]
    pub places: Vec<String>,
}

/// `capacity`: replicas for a load.
///
/// # Errors
/// JSON `{"error": {"code", "message", "hint"}}`.
pub fn capacity(request: &str) -> Result<String, String> {
    const MOST: u32 = 100_000;
    serde_json::from_str::<CapacityQuestion>(request)
        .map_err(|error| PlanError::request("request", error, "the fields of the schema"))
        .and_then(|question| {
            if question.requests == 0 || question.requests > MOST {
                return Err(PlanError::request("requests", question.requests, "1 to 100000"));
            }
            let arrivals = crate::capacity::lengths::arrivals(
                question.seed,
                question.rate,
                question.requests,
                question.prompt,
                question.output,
            )?;
            let model = question.model.model(&question.options)?;
            let asked = crate::capacity::Asked {
                arrivals,
                longest: 0,
                promises: question.promises,
                places: question.places,
                most: None,
                notes: Vec::new(),
            };
            crate::capacity::capacity(&model, &question.options, &asked)
        })
        .and_then(|response| serde_json::to_string(&response).map_err(|error| PlanError::request("response", error, "text")))
        .map_err(|error| error_json(&error))
}
