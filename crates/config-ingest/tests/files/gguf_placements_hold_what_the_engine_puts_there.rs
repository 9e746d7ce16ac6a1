//! Settings drawn at random over real headers, the zoo and the menagerie: parts on the host, two devices, Metal, contexts for
//! embeddings. Weights, caches, output and compute buffers of every place are the engine's to the byte.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{fixture, gunzip, json_lines, written};
use plimsoll_ingest::Ingested;
use plimsoll_ingest::gguf::{Options, ingest};
use plimsoll_math::allocation::{Certainty, PlaceAllocation, TermKind};
use plimsoll_math::deployment::{
    Accelerator, Backend, ContextRequest, Deployment, FlashAttention, Location, Share, TensorOverride,
};
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::llama_cpp::allocate::allocate;
use plimsoll_math::format::StorageFormat;
use serde_json::Value;

/// What a row asks for: `cuda-cc890x2` is two RTX 4090.
fn deployment(row: &Value) -> Deployment {
    let (name, params) = (row["backend"].as_str().unwrap(), &row["params"]);
    let (kind, count) = name.split_once('x').map_or((name, 1), |(kind, count)| (kind, count.parse().unwrap()));
    let backend = match kind.strip_prefix("cuda-cc") {
        Some(capability) => Backend::Cuda { compute_capability: capability.parse().unwrap() },
        None => Backend::Metal,
    };
    let number = |key: &str| params.get(key).map(|value| value.as_u64().unwrap());
    let flag = |key: &str, default: bool| params.get(key).map_or(default, |value| value.as_bool().unwrap());
    let format = |key: &str| StorageFormat::from_name(params[key].as_str().unwrap()).unwrap();
    let stays = |pattern: &Value| TensorOverride { pattern: pattern.as_str().unwrap().into(), place: Location::Host };
    let share = |value: &Value| Share::try_from(f32::from(u8::try_from(value.as_u64().unwrap()).unwrap())).unwrap();
    Deployment {
        devices: vec![Accelerator { backend, free: 2000 << 30 }; count],
        sequences: number("parallel").unwrap(),
        batch: number("n_batch").unwrap(),
        ubatch: number("n_ubatch").unwrap(),
        kv_type_k: format("type_k"),
        kv_type_v: format("type_v"),
        flash_attention: match params["fa"].as_str().unwrap() {
            "on" => FlashAttention::On,
            "off" => FlashAttention::Off,
            _ => FlashAttention::Auto,
        },
        kv_unified: flag("kv_unified", false),
        swa_full: flag("swa_full", false),
        repack: flag("extra_bufts", true),
        mmap: false,
        embeddings: flag("embeddings", false),
        gpu_layers: number("ngl"),
        cpu_moe: flag("cpu_moe", false),
        n_cpu_moe: number("n_cpu_moe").unwrap_or(0),
        kv_offload: flag("offload_kqv", true),
        op_offload: flag("op_offload", true),
        tensor_overrides: params["ot"].as_array().map_or_else(Vec::new, |patterns| patterns.iter().map(stays).collect()),
        tensor_split: params["tensor_split"].as_array().map_or_else(Vec::new, |shares| shares.iter().map(share).collect()),
        ..Deployment::new(ContextRequest::Total(number("n_ctx").unwrap()), backend)
    }
}

/// Bytes of a kind of buffer in a place: a device's by its number, or the host's.
fn measured(row: &Value, kind: &str, place: Option<usize>) -> u64 {
    let of_device = |name: &str| (name.starts_with("CUDA") && name != "CUDA_Host") || name.starts_with("MTL");
    let wanted = |name: &str| match place {
        Some(number) => name == format!("CUDA{number}") || name == format!("MTL{number}"),
        None => !of_device(name),
    };
    row[kind].as_object().unwrap().iter().filter(|(name, _)| wanted(name)).map(|(_, bytes)| bytes.as_u64().unwrap()).sum()
}

/// What became of a row.
#[derive(Default)]
struct Outcome {
    /// Where the answer is not the engine's, or the engine's is not within our bounds.
    wrong: Vec<String>,
    /// Whether some compute buffer is a bound.
    bounded: bool,
}

/// Compares a place.
fn compare(row: &Value, place: Option<usize>, found: &PlaceAllocation, outcome: &mut Outcome) {
    let of = |kind| found.of(kind).unwrap().get();
    let (mut low, mut high) = (0, 0);
    for term in found.terms.iter().filter(|term| term.component == TermKind::Compute) {
        low += if let Certainty::Bounded { low, .. } = term.certainty { low.get() } else { term.bytes.get() };
        high += term.bytes.get();
    }
    outcome.bounded |= low != high;
    for (kind, low, high) in [
        ("model", of(TermKind::Weights), of(TermKind::Weights)),
        ("context", of(TermKind::KvCache) + of(TermKind::RecurrentState), of(TermKind::KvCache) + of(TermKind::RecurrentState)),
        ("output", of(TermKind::Output), of(TermKind::Output)),
        ("compute", low, high),
    ] {
        let engine = measured(row, kind, place);
        if !(low..=high).contains(&engine) {
            outcome.wrong.push(format!("{kind} in {place:?}: {low} to {high}, engine {engine}"));
        }
    }
}

/// What we answer to a row that the engine starts with.
fn check(row: &Value, model: &Ingested) -> Outcome {
    let build = Build::parse(row["engine"].as_str().unwrap()).unwrap();
    let mut out = Outcome::default();
    let allocated = match allocate(&model.spec, &model.tensors, &deployment(row), build) {
        Ok(allocated) => allocated,
        Err(error) => {
            out.wrong.push(error.to_string());
            return out;
        }
    };
    if row["flash"] != allocated.resolved.flash_attention {
        out.wrong.push(format!("flash attention {}", allocated.resolved.flash_attention));
    }
    let devices = allocated.allocation.devices.iter().enumerate().map(|(number, device)| (Some(number), device));
    for (place, found) in devices.chain([(None, &allocated.allocation.host)]) {
        compare(row, place, found, &mut out);
    }
    out
}

/// The models of rows, each opened once.
struct Models {
    menagerie: BTreeMap<String, Value>,
    opened: BTreeMap<String, Ingested>,
}

impl Models {
    fn new() -> Self {
        let mut menagerie = BTreeMap::new();
        for mut row in json_lines("truth/llama.cpp/menagerie.jsonl.gz") {
            // Measured without the scales of NVFP4 matrices, which few files have.
            row["tensors"].as_array_mut().unwrap().retain(|tensor| !tensor[0].as_str().unwrap().ends_with("scale"));
            menagerie.insert(row["file"].as_str().unwrap().to_owned(), row);
        }
        Self { menagerie, opened: BTreeMap::new() }
    }
    fn of(&mut self, row: &Value) -> &Ingested {
        let (source, file) = (row["source"].as_str().unwrap(), row["file"].as_str().unwrap());
        self.opened.entry(format!("{source} {file}")).or_insert_with(|| {
            let bytes = match source {
                "menagerie" => written(&self.menagerie[file]),
                "zoo" => gunzip(&fixture(&format!("truth/llama.cpp/gguf-zoo/{file}.gguf.header.gz"))),
                _ => gunzip(&fixture(&format!("truth/llama.cpp/gguf/{file}.gguf.header.gz"))),
            };
            ingest(&bytes.as_slice(), &Options::default()).unwrap()
        })
    }
}

fn named(row: &Value) -> String {
    format!("{} {} {} {}", row["file"], row["engine"], row["backend"], row["params"])
}

#[test]
fn placements_drawn_at_random_hold_what_the_engine_puts_there() {
    let mut models = Models::new();
    let (mut right, mut archs, mut differ) = (0, BTreeSet::new(), Vec::new());
    for row in json_lines("truth/llama.cpp/random_placements.jsonl.gz") {
        let model = models.of(&row);
        let found = check(&row, model);
        if found.wrong.is_empty() && !found.bounded {
            right += 1;
            archs.insert(model.spec.llama_cpp_arch.clone().unwrap());
        } else {
            differ.push(format!("{}: {} {}", named(&row), found.wrong.join("; "), found.bounded));
        }
    }
    assert!(differ.is_empty(), "{} rows differ, {right} do not: {differ:#?}", differ.len());
    assert!(right >= AT_LEAST_ROWS && archs.len() >= 120, "{right} rows of {} architectures", archs.len());
}

/// Rows of the fixture.
const AT_LEAST_ROWS: usize = 2163;

/// Every file twice under settings drawn once and kept whatever we answered: what is said to be exact is, and every bound holds
/// the engine's figure.
#[test]
fn settings_that_nobody_chose_are_answered_truly() {
    let mut models = Models::new();
    let (mut exact, mut bounded, mut both_refuse, mut wrong, mut answered) = (0, 0, 0, Vec::new(), BTreeSet::new());
    for row in json_lines("truth/llama.cpp/drawn_settings.jsonl.gz") {
        let model = models.of(&row);
        if row.get("refused").is_some() {
            let build = Build::parse(row["engine"].as_str().unwrap()).unwrap();
            match allocate(&model.spec, &model.tensors, &deployment(&row), build) {
                Ok(_) => _ = answered.insert(row["file"].as_str().unwrap().to_owned()),
                Err(_) => both_refuse += 1,
            }
            continue;
        }
        let found = check(&row, model);
        if !found.wrong.is_empty() {
            wrong.push(format!("{}: {}", named(&row), found.wrong.join("; ")));
        } else if found.bounded {
            bounded += 1;
        } else {
            exact += 1;
        }
    }
    println!("{exact} exact, {bounded} bounded, {both_refuse} refused by both, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Made-up files without a tensor that the engine's loader asks for: nothing here knows which are needed.
    assert!(answered.iter().all(|file| file.starts_with("gemma4-moe")), "the engine refuses {answered:?}");
    assert!(
        exact >= EXACT && both_refuse >= REFUSED && bounded <= BOUNDED,
        "{exact} exact, {bounded} bounded, {both_refuse} refused"
    );
}

/// Of 728 rows that the engine starts with, those whose every figure is the engine's, and those with a bound.
const EXACT: usize = 709;
const BOUNDED: usize = 23;
/// Of 232 that it refuses, those that we refuse too.
const REFUSED: usize = 222;
