//! vLLM's cache planner without a model: random sets of caches on random ranks in random memory. Groups, pages, blocks,
//! auto-fitted lengths, capacity and refusals are what `get_kv_cache_configs` and its helpers answered.

use crate::support::vllm_planner as planner;
use std::io::Read;
use std::path::Path;

use plimsoll_ingest::hf;
use plimsoll_math::engine::vllm::lora::{Adapters, buffers};
use plimsoll_math::engine::vllm::options::{Gpu, Knobs};
use serde_json::Value;

fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().find(|folder| folder.join("fixtures/truth/vllm").is_dir()).unwrap()
}

fn lines(name: &str) -> Vec<Value> {
    let file = std::fs::File::open(repository().join("fixtures/truth/vllm").join(name)).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_answer_of_the_planner_is_ours() {
    let rows = lines("planner-0.33.0.jsonl.gz");
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let found = planner::differences(row);
            (!found.is_empty()).then(|| format!("{}: {}", row["question"], found.join("; ")))
        })
        .collect();
    assert!(rows.len() >= 700, "{} questions", rows.len());
    assert!(wrong.is_empty(), "{} of {} differ, the first: {}", wrong.len(), rows.len(), wrong[0]);
}

#[test]
fn adapters_take_the_buffers_that_the_engine_makes() {
    let rows = lines("lora-0.33.0.jsonl.gz");
    for row in &rows {
        let text = std::fs::read(repository().join("fixtures/corpus/configs").join(row["model"].as_str().unwrap())).unwrap();
        let model = hf::ingest(&text, &hf::Options::default()).unwrap();
        let number = |key: &str| row[key].as_u64().unwrap();
        let mut knobs = Knobs::new(Gpu { capability: 90, memory: 80 << 30, a100: false });
        knobs.parallelism.tensor = number("tensor");
        knobs.parallelism.pipeline = number("pipeline");
        knobs.parallelism.expert = row["expert"] == true;
        knobs.adapters = Some(Adapters { count: number("adapters"), rank: number("rank") });
        let ours = buffers(&model.spec, &model.tensors, &model.checkpoint, &knobs).unwrap();
        let theirs: Vec<u64> = row["bytes"].as_array().unwrap().iter().map(|bytes| bytes.as_u64().unwrap()).collect();
        assert_eq!(ours, theirs, "{row}");
    }
    assert!(rows.len() >= 29, "{} rows", rows.len());
}
