//! The grid that people copy into chats: quantizations down, contexts across, whether each cell fits and how fast it runs.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::engine::llama_cpp::FileType;
use plimsoll_math::throughput::float;
use plimsoll_math::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::change::is_refusal;
use crate::engine::Question;
use crate::error::PlanError;
use crate::fit::{engine_brief, model_brief};
use crate::model::Model;
use crate::offload::best_placement;
use crate::pace::Pace;
use crate::request::{Engine, Options};
use crate::response::{EngineBrief, ModelBrief};
use crate::size::quoted;
use crate::speed::Rate;
use crate::sweep::several;

/// Schema name of [`WhichQuant`].
pub const WHICH_QUANT_SCHEMA: &str = "plimsoll.which-quant/1";

/// What people choose among, when they name nothing else.
const USUAL: [&str; 11] =
    ["BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_XXS"];

/// The grid's axes, and what the host has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grid {
    /// File types; the usual ones when left out.
    pub quants: Vec<String>,
    /// Tokens per sequence; powers of two up to the model's maximum when left out.
    pub contexts: Vec<u64>,
    /// What the host has for what is left to it; unlimited when left out.
    pub host_memory: Option<u64>,
}

/// Whether a cell fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum CellVerdict {
    /// On the devices.
    Fits {
        /// Bytes left on the fullest device.
        headroom: Bytes,
    },
    /// With a part on the host.
    FitsWithOffload {
        /// Bytes that the host holds.
        host: Bytes,
        /// The options that make it.
        options: Vec<String>,
    },
    /// Not, and not with a part on the host either.
    DoesNotFit {
        /// Bytes missing on the device that misses most, everything on devices.
        short_by: Bytes,
    },
    /// The engine refuses the setting.
    Refused {
        /// Its reason.
        reason: String,
    },
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Tokens per sequence, as asked.
    pub context: u64,
    /// Whether it fits.
    pub verdict: CellVerdict,
    /// Used on devices, upper bounds taken; with everything there unless a part is left to the host.
    pub used: Option<Bytes>,
    /// Tokens per second of one sequence, half way through its context.
    pub decode_tokens_per_s: Option<Rate>,
}

/// One quantization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantRow {
    /// The file type, or how the source stores the weights.
    pub quant: String,
    /// Bytes of all tensors.
    pub weights: Bytes,
    /// Bits per parameter, in thousandths.
    pub millibits_per_weight: u64,
    /// One cell a context.
    pub cells: Vec<Cell>,
}

/// Answer of `which-quant`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhichQuant {
    /// [`WHICH_QUANT_SCHEMA`].
    pub schema: String,
    /// The model.
    pub model: ModelBrief,
    /// The engine.
    pub engine: EngineBrief,
    /// The devices in a few words.
    pub device: String,
    /// What is usable on all of them.
    pub usable: Bytes,
    /// Concurrent sequences.
    pub sequences: u64,
    /// The cache's format.
    pub kv_type: String,
    /// The contexts across.
    pub contexts: Vec<u64>,
    /// The quantizations down, the largest first.
    pub rows: Vec<QuantRow>,
    /// For each context the largest quantization that fits on the devices.
    pub best: Vec<Option<String>>,
    /// What was assumed.
    pub notes: Vec<String>,
}

/// Powers of two, and the model's maximum.
fn usual_contexts(max: u64) -> Vec<u64> {
    let mut contexts: Vec<u64> = (12..=20).map(|power| 1_u64 << power).filter(|tokens| *tokens < max).collect();
    // Six columns are what fits beside the names.
    let extra = contexts.len().saturating_sub(5);
    contexts.drain(..extra.min(contexts.len()));
    if max > 0 {
        contexts.push(max);
    }
    contexts
}

fn rows_of(question: &Question<'_>, grid: &Grid) -> Result<Vec<String>, PlanError> {
    if !question.can_requantize() {
        if let Some(first) = grid.quants.first() {
            return Err(PlanError::request(
                "quants",
                quoted(first),
                "none: this source, or this engine, leaves no choice of quantization",
            ));
        }
        return Ok(Vec::new());
    }
    for quant in &grid.quants {
        FileType::parse(quant).map_err(|_| PlanError::request("quant", quoted(quant), "a file type of llama-quantize"))?;
    }
    if !grid.quants.is_empty() {
        return Ok(grid.quants.clone());
    }
    let mut usual: Vec<String> = USUAL.iter().map(ToString::to_string).collect();
    if question.model.quantization.as_deref().is_some_and(|stored| stored.to_ascii_lowercase().contains("mxfp4")) {
        usual.insert(1, "MXFP4_MOE".to_string());
    }
    Ok(usual)
}

fn cells(question: &Question<'_>, contexts: &[u64], grid: &Grid) -> Result<Vec<Cell>, PlanError> {
    let sequences = question.effective.deployment.sequences;
    let may_offload = matches!(question.effective.engine, Engine::LlamaCpp(_))
        && !question.model.generic
        && !question.effective.deployment.devices.is_empty()
        && !question.offloads()?;
    let mut pace: Option<Option<Pace>> = None;
    let compiled = question.compile()?;
    let mut out = Vec::new();
    for context in contexts {
        let point = match compiled.point(*context, sequences) {
            Ok(point) => point,
            Err(error) if is_refusal(&error) => {
                let verdict = CellVerdict::Refused { reason: error.to_string() };
                out.push(Cell { context: *context, verdict, used: None, decode_tokens_per_s: None });
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut cell = Cell {
            context: *context,
            verdict: match point.room {
                Ok(headroom) => CellVerdict::Fits { headroom },
                Err(short_by) => CellVerdict::DoesNotFit { short_by },
            },
            used: Some(point.devices),
            decode_tokens_per_s: None,
        };
        if point.fits() {
            // Where everything lies on devices, speed differs between contexts by depth alone.
            if pace.is_none() {
                let at = question.changed(|options| (options.context, options.total_context) = (Some(*context), None))?;
                pace = Some(Pace::new(&at, &at.plan()?)?);
            }
            let depth = float(point.context_per_sequence) / 2.0;
            cell.decode_tokens_per_s = pace.as_ref().and_then(Option::as_ref).map(|pace| pace.decode(1.0, depth));
        } else if may_offload {
            let at = question.changed(|options| (options.context, options.total_context) = (Some(*context), None))?;
            if let Some(placed) = best_placement(&at, 0, grid.host_memory)? {
                cell.used = Some(Bytes::sum(placed.devices.iter().map(|device| device.used))?);
                cell.decode_tokens_per_s = placed.decode_tokens_per_s;
                cell.verdict = CellVerdict::FitsWithOffload { host: placed.host_used, options: placed.options };
            }
        }
        out.push(cell);
    }
    Ok(out)
}

/// Which quantization fits with which context.
///
/// # Errors
/// [`PlanError`] for what is wrong with the question.
pub fn which_quant(model: &Model, options: &Options, grid: &Grid) -> Result<WhichQuant, PlanError> {
    if options.quant.is_some() {
        return Err(PlanError::request("quant", "a value", "quants, which lists those to compare"));
    }
    if grid.contexts.contains(&0) || options.context == Some(0) {
        return Err(PlanError::request("contexts", "0", "numbers of 1 or more"));
    }
    if grid.host_memory == Some(0) {
        return Err(PlanError::request("host_memory", "0", "1 byte or more"));
    }
    let contexts = match (grid.contexts.is_empty(), options.context) {
        (false, _) => grid.contexts.clone(),
        (true, Some(context)) => alloc::vec![context],
        (true, None) => usual_contexts(model.spec.max_context),
    };
    let Some(first) = contexts.first() else {
        return Err(PlanError::request(
            "contexts",
            "nothing, and the source does not say what the model was trained for",
            "contexts",
        ));
    };
    let base = Question::new(model, &Options { context: Some(*first), total_context: None, ..options.clone() })?;
    let params = model.tensors.total_params()?.get();
    let quants = rows_of(&base, grid)?;
    let mut rows = Vec::new();
    let mut row = |name: String, question: &Question<'_>| -> Result<(), PlanError> {
        let weights = question.weight_bytes()?;
        let millibits = (u128::from(weights.get()) * 8000).checked_div(u128::from(params)).unwrap_or(0);
        rows.push(QuantRow {
            quant: name,
            weights,
            millibits_per_weight: u64::try_from(millibits).unwrap_or(u64::MAX),
            cells: cells(question, &contexts, grid)?,
        });
        Ok(())
    };
    let mut unknown = None;
    for quant in &quants {
        match base.with_quant(quant) {
            Ok(question) => row(quant.clone(), &question)?,
            // Rows that are no whole number of blocks, or a type that the build does not know: the others still answer.
            Err(error) if is_refusal(&error) => unknown = Some(error),
            Err(error) => return Err(error),
        }
    }
    if quants.is_empty() {
        row(base.stored_as().unwrap_or_else(|| model.spec.weight_dtype.name().to_ascii_uppercase()), &base)?;
    }
    if let (true, Some(error)) = (rows.is_empty(), unknown) {
        return Err(error);
    }
    rows.sort_by_key(|row| core::cmp::Reverse(row.weights));
    let best = (0..contexts.len())
        .map(|column| {
            let fits =
                |row: &&QuantRow| matches!(row.cells.get(column).map(|cell| &cell.verdict), Some(CellVerdict::Fits { .. }));
            rows.iter().find(fits).map(|row| row.quant.clone())
        })
        .collect();
    let deployment = &base.effective.deployment;
    let mut notes = base.effective.notes.clone();
    let leaves_to_host =
        |row: &QuantRow| row.cells.iter().any(|cell| matches!(cell.verdict, CellVerdict::FitsWithOffload { .. }));
    if grid.host_memory.is_none() && rows.iter().any(leaves_to_host) {
        notes.push("how much memory the host has was not said (host_memory): what is left to it is taken to fit".to_string());
    }
    let kv_type = match (&options.kv_type, deployment.kv_type_k == deployment.kv_type_v) {
        (Some(asked), _) => asked.clone(),
        (None, true) => deployment.kv_type_k.name().to_string(),
        (None, false) => alloc::format!("{}/{}", deployment.kv_type_k.name(), deployment.kv_type_v.name()),
    };
    Ok(WhichQuant {
        schema: WHICH_QUANT_SCHEMA.to_string(),
        model: model_brief(&base)?,
        engine: engine_brief(&base),
        device: several(&base.effective.devices),
        usable: Bytes::sum(base.effective.devices.iter().map(|device| device.usable.bytes))?,
        sequences: deployment.sequences,
        kv_type,
        contexts,
        rows,
        best,
        notes,
    })
}
