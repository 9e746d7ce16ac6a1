//! Weights, caches with state, and outputs of real models beyond those of the main truth, from their `config.json` and
//! a file type alone, beside what llama.cpp allocates for the converted file, in two builds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use plimsoll_ingest::hf;
use plimsoll_math::deployment::FlashAttention;
use plimsoll_planner::{Basis, Model, Options, fit};
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn options(row: &Value) -> Options {
    let params = &row["params"];
    let number = |key: &str| params[key].as_u64();
    let text = |key: &str| params[key].as_str().map(str::to_owned);
    Options {
        engine: Some(format!("llama.cpp@{}", row["engine"].as_str().unwrap())),
        total_context: number("n_ctx"),
        sequences: number("parallel"),
        ubatch: number("n_ubatch"),
        quant: Some(row["quant"].as_str().unwrap().to_owned()),
        kv_type_k: text("type_k"),
        kv_type_v: text("type_v"),
        flash_attention: Some(match params["fa"].as_str() {
            Some("on") => FlashAttention::On,
            Some("off") => FlashAttention::Off,
            _ => FlashAttention::Auto,
        }),
        kv_unified: params["kv_unified"].as_bool(),
        swa_full: params["swa_full"].as_bool(),
        mmap: Some(false),
        device: Some(row["device"].as_str().unwrap().to_owned()),
        memory: Some(1 << 50),
        skip_limits: Some(true),
        ..Options::default()
    }
}

/// `Err` with what differs, or why there is no answer.
fn check(row: &Value, model: &Model) -> Result<(), String> {
    let answer = fit(model, &options(row)).map_err(|error| error.to_string())?;
    let totals = &answer.totals;
    let ours = [totals.weights.get(), totals.kv_cache.get() + totals.recurrent_state.get(), totals.output.get()];
    let theirs = ["weights", "context", "output"].map(|part| row[part].as_u64().unwrap());
    if ours == theirs { Ok(()) } else { Err(format!("{ours:?}, the engine {theirs:?}")) }
}

#[test]
fn corpus_configs_take_what_the_engine_takes() {
    let file = std::fs::File::open(fixtures().join("truth/llama.cpp/corpus.jsonl.gz")).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let mut models: BTreeMap<String, Model> = BTreeMap::new();
    let mut architectures = BTreeSet::new();
    let mut problems = Vec::new();
    let mut rows = 0;
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let name = row["config"].as_str().unwrap();
        let model = models.entry(name.to_owned()).or_insert_with(|| {
            let bytes = std::fs::read(fixtures().join(format!("corpus/configs/{name}.config.json"))).unwrap();
            Model::new(Some(name), hf::ingest(&bytes, &hf::Options::default()).unwrap(), Basis::Config)
        });
        architectures.insert(model.spec.llama_cpp_arch.clone());
        rows += 1;
        if let Err(problem) = check(&row, model) {
            problems.push(format!("{name} {} {} {}: {problem}", row["engine"], row["quant"], row["params"]));
        }
    }
    assert!(rows > 1_000 && models.len() > 90 && architectures.len() > 50, "{rows} {} {}", models.len(), architectures.len());
    let first: Vec<&String> = problems.iter().take(20).collect();
    assert!(problems.is_empty(), "{} of {rows} rows differ: {first:#?}", problems.len());
}
