//! Rows of the truth beside our answers, through both doors.

use std::collections::BTreeMap;

use plimsoll::ingest::{gguf, hf};
use plimsoll::math::allocation::{Certainty, Term, TermKind};
use plimsoll::math::deployment::{FlashAttention, Share};
use plimsoll::math::error::MathError;
use plimsoll::planner::response::Fit;
use plimsoll::planner::{Basis, Model, Options, PlanError, fit};
use serde_json::Value;

use crate::truth::{fixture, rows, text, unzipped};

/// Where a model comes from.
pub(super) const DOORS: [&str; 2] = ["GGUF header", "config.json"];

/// What is compared, with the engine's name of it.
pub(super) const TERMS: [&str; 3] = ["weights", "caches and state", "output"];

/// Who did the work in a group of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Placement {
    /// One device or the processor.
    OnePlace,
    /// A device, with layers, experts or caches on the host.
    Partial,
    /// Two devices.
    TwoDevices,
}

/// A group of rows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) placement: Placement,
    pub(super) door: &'static str,
    pub(super) build: String,
    pub(super) backend: String,
}

/// Rows whose compute buffers are bounds.
#[derive(Debug, Clone)]
pub(super) struct Bounded {
    /// The distance of the bounds in percent of the truth.
    pub(super) width: f64,
    /// The row.
    pub(super) row: String,
}

/// How one group of rows came out.
#[derive(Debug, Default)]
pub(super) struct Score {
    pub(super) rows: u64,
    pub(super) refusals: u64,
    pub(super) refused: u64,
    /// Rows on which a term is exact in every place.
    pub(super) exact: BTreeMap<&'static str, u64>,
    pub(super) compute_exact: u64,
    pub(super) compute_inside: u64,
    pub(super) bounded: Vec<Bounded>,
    /// By model: how many rows differ, and how the first does.
    pub(super) wrong: BTreeMap<String, (u64, String)>,
}

impl Score {
    /// The share of widths of bounds below, in percent of the truth.
    pub(super) fn width(&self, percent: usize) -> Option<f64> {
        let mut widths: Vec<f64> = self.bounded.iter().map(|bounded| bounded.width).collect();
        widths.sort_by(f64::total_cmp);
        widths.get(widths.len().saturating_sub(1) * percent / 100).copied()
    }
    fn miss(&mut self, name: &str, what: String) {
        let entry = self.wrong.entry(name.to_owned()).or_insert((0, what));
        entry.0 += 1;
    }
}

pub(super) type Groups = BTreeMap<Group, Score>;

/// Every row of the truth that the server's options can ask for, through both doors.
pub(super) fn table() -> Result<Groups, String> {
    let mut groups = Groups::new();
    let mut models: BTreeMap<(bool, String, String), Option<Result<Model, PlanError>>> = BTreeMap::new();
    for row in rows("truth/llama.cpp/truth.jsonl.gz")? {
        let Some((placement, options)) = options(&row)? else { continue };
        let (name, quant) = (text(&row, "model").to_owned(), text(&row, "quant").to_owned());
        for door in DOORS {
            let from_header = door == "GGUF header";
            let key = (from_header, name.clone(), quant.clone());
            if !models.contains_key(&key) {
                let model = if from_header { header_model(&name, &quant)? } else { Some(config_model(&name)?) };
                models.insert(key.clone(), model);
            }
            let Some(Some(model)) = models.get(&key) else { continue };
            // A header says for itself how it was converted.
            let asked = Options {
                quant: options.quant.clone().filter(|_| !from_header),
                prediction_layers: options.prediction_layers.filter(|_| !from_header),
                ..options.clone()
            };
            let answer = match model {
                Ok(model) => fit(model, &asked),
                Err(error) => Err(error.clone()),
            };
            let (build, backend) = (text(&row, "engine").to_owned(), text(&row, "backend").to_owned());
            score(groups.entry(Group { placement, door, build, backend }).or_default(), &name, &row, answer);
        }
    }
    Ok(groups)
}

fn score(score: &mut Score, name: &str, row: &Value, answer: Result<Fit, PlanError>) {
    if row.get("error").is_some() {
        score.refusals += 1;
        if matches!(answer, Err(PlanError::Math(MathError::Refused { .. }))) {
            score.refused += 1;
        } else {
            score.miss(name, "not refused as the engine does".to_owned());
        }
        return;
    }
    score.rows += 1;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            score.miss(name, error.to_string());
            return;
        }
    };
    // The processor answers as a device of its own name; its buffers are the host's.
    let is_processor = text(row, "backend").starts_with("cpu");
    let mut places: BTreeMap<Option<usize>, Vec<&Term>> = BTreeMap::from([(None, answer.host.terms.iter().collect())]);
    for (index, device) in answer.devices.iter().enumerate() {
        places.entry((!is_processor).then_some(index)).or_default().extend(&device.terms);
    }
    let engines = ["model_bytes", "context_bytes", "output_bytes"];
    for (term, key) in TERMS.into_iter().zip(engines) {
        let differs = places.iter().find_map(|(place, terms)| {
            let ours: u64 = terms.iter().filter(|found| belongs(found, term)).map(|found| found.bytes.get()).sum();
            let theirs = measured(row, key, *place);
            (ours != theirs).then(|| format!("{term} {}: {ours} B, the engine {theirs} B", named(*place)))
        });
        match differs {
            None => *score.exact.entry(term).or_default() += 1,
            Some(what) => score.miss(name, what),
        }
    }
    let (mut exact, mut inside, mut width, mut whole) = (true, true, 0_u64, 0_u64);
    for (place, terms) in &places {
        let compute = terms.iter().filter(|term| term.component == TermKind::Compute).map(|term| range(term));
        let (low, high) = compute.fold((0, 0), |sum, range| (sum.0 + range.0, sum.1 + range.1));
        let truth = measured(row, "compute_bytes", *place);
        exact &= low == high && low == truth;
        if !(low..=high).contains(&truth) {
            inside = false;
            score.miss(name, format!("compute {}: {truth} B is not between {low} B and {high} B", named(*place)));
        }
        width += high.saturating_sub(low);
        whole += truth;
    }
    score.compute_exact += u64::from(exact);
    score.compute_inside += u64::from(inside);
    if width > 0 {
        let params = row.get("params").map(Value::to_string).unwrap_or_default().replace('"', "");
        score.bounded.push(Bounded { width: 100.0 * ratio(width, whole), row: format!("{name} `{params}`") });
    }
}

fn belongs(term: &Term, name: &str) -> bool {
    match term.component {
        TermKind::Weights => name == "weights",
        TermKind::KvCache | TermKind::RecurrentState => name == "caches and state",
        TermKind::Output => name == "output",
        _ => false,
    }
}

fn named(place: Option<usize>) -> String {
    place.map_or_else(|| "on the host".to_owned(), |device| format!("on device {device}"))
}

/// The engine's bytes in one place: devices have buffers of their own names, everything else is the host's.
fn measured(row: &Value, key: &str, place: Option<usize>) -> u64 {
    let device = |name: &str| ["CUDA", "MTL"].iter().find_map(|kind| name.strip_prefix(kind)?.get(..1)?.parse::<usize>().ok());
    let buffers = row.get(key).and_then(Value::as_object).into_iter().flatten();
    buffers.filter(|(name, _)| device(name) == place).filter_map(|(_, bytes)| bytes.as_u64()).sum()
}

fn range(term: &Term) -> (u64, u64) {
    match &term.certainty {
        Certainty::Bounded { low, high } => (low.get(), high.get()),
        _ => (term.bytes.get(), term.bytes.get()),
    }
}

/// A share for the printed tables.
fn ratio(part: u64, whole: u64) -> f64 {
    let clip = |value: u64| f64::from(u32::try_from(value / 1024).unwrap_or(u32::MAX));
    if whole == 0 { 0.0 } else { clip(part) / clip(whole).max(1.0) }
}

/// What the command line would be given for a row; `None` for rows of the bare library.
fn options(row: &Value) -> Result<Option<(Placement, Options)>, String> {
    let Some(params) = row.get("params") else { return Ok(None) };
    let (placement, device) = match text(row, "backend") {
        "cpu" | "cpu+repack" => (Placement::OnePlace, "cpu"),
        "2xcuda-cc890" => (Placement::TwoDevices, "cuda-cc890"),
        name => match name.strip_suffix("-partial") {
            Some(device) => (Placement::Partial, device),
            None => (Placement::OnePlace, name),
        },
    };
    // Rows of the bare library: its rule for rows of logits is not that of the server.
    if params.get("server").and_then(Value::as_bool) == Some(false) {
        return Ok(None);
    }
    let number = |key: &str| params.get(key).and_then(Value::as_u64);
    let flag = |key: &str| params.get(key).and_then(Value::as_bool);
    let word = |key: &str| params.get(key).and_then(Value::as_str).map(str::to_owned);
    let share = |value: &Value| value.to_string().parse::<f32>().ok().and_then(|share| Share::try_from(share).ok());
    let shares = params.get("tensor_split").and_then(Value::as_array);
    let tensor_split = match shares {
        Some(shares) => Some(shares.iter().map(share).collect::<Option<Vec<Share>>>().ok_or("a split that is none")?),
        None => None,
    };
    let options = Options {
        engine: Some(format!("llama.cpp@{}", text(row, "engine"))),
        total_context: number("n_ctx"),
        sequences: number("parallel"),
        batch: number("n_batch"),
        ubatch: number("n_ubatch"),
        quant: Some(text(row, "quant").to_owned()),
        kv_type_k: word("type_k"),
        kv_type_v: word("type_v"),
        flash_attention: Some(match text(params, "fa") {
            "on" => FlashAttention::On,
            "off" => FlashAttention::Off,
            _ => FlashAttention::Auto,
        }),
        kv_unified: flag("kv_unified"),
        swa_full: flag("swa_full"),
        repack: flag("extra_bufts"),
        // The rows were measured with the weights read, not mapped, and whatever the device holds.
        mmap: Some(false),
        // Recorded without its prediction layer (`--no-mtp`); with it, it is the model `Qwen3.5-27B+MTP`.
        prediction_layers: (text(row, "model") == "Qwen3.5-27B").then_some(false),
        device: Some(device.to_owned()),
        devices: (placement == Placement::TwoDevices).then(|| vec![device.to_owned()]),
        gpu_layers: number("ngl"),
        tensor_split,
        cpu_moe: flag("cpu_moe"),
        n_cpu_moe: number("n_cpu_moe"),
        kv_offload: flag("offload_kqv"),
        op_offload: flag("op_offload"),
        memory: Some(1 << 50),
        skip_limits: Some(true),
        ..Options::default()
    };
    Ok(Some((placement, options)))
}

fn file_name(model: &str) -> String {
    model.chars().map(|c| if "/() ".contains(c) { '_' } else { c }).collect()
}

fn config_model(name: &str) -> Result<Result<Model, PlanError>, String> {
    let path = fixture(&format!("truth/llama.cpp/configs/{}.config.json", file_name(name)));
    let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let ingested = hf::ingest(&bytes, &hf::Options::default());
    Ok(ingested.map(|ingested| Model::new(Some(name), ingested, Basis::Config)).map_err(PlanError::from))
}

fn header_model(name: &str, quant: &str) -> Result<Option<Result<Model, PlanError>>, String> {
    let path = format!("truth/llama.cpp/gguf/{}.{quant}.gguf.header.gz", file_name(name));
    Ok(unzipped(&path)?.map(|bytes| {
        let ingested = gguf::ingest(&bytes.as_slice(), &gguf::Options::default());
        ingested.map(|ingested| Model::new(Some(name), ingested, Basis::Gguf)).map_err(PlanError::from)
    }))
}
