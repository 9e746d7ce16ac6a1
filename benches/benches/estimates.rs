//! One estimate: the graphs replayed, explained term by term, compiled, ten thousand settings in a row; and a peer's closed
//! formula on the same model and question. `cargo xtask bench` puts the engine's own simulation beside them.
#![allow(missing_docs, reason = "criterion's macros generate public items")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use plimsoll_ingest::hf;
use plimsoll_math::deployment::{Backend, ContextRequest, Deployment, FlashAttention};
use plimsoll_math::engine::llama_cpp::allocate::allocate;
use plimsoll_math::engine::llama_cpp::estimator::Estimator;
use plimsoll_math::engine::llama_cpp::memory::memory_of;
use plimsoll_math::engine::llama_cpp::{Build, FileType, LoaderFacts, quantize};
use plimsoll_math::spec::ModelSpec;
use plimsoll_math::tensor::TensorTable;

/// The build that the registry's package ships, which the engine's own simulation runs.
const BUILD: Build = Build::V0_5_0;

/// The setting that `cargo xtask bench` asks the engine for, too.
const CONTEXT: u64 = 32_768;

/// Models of the fixtures: dense, experts, latent attention, windows, hybrids.
const MODELS: &[&str] = &[
    "Llama-3.1-8B",
    "Qwen3-8B",
    "Qwen3-30B-A3B",
    "DeepSeek-V3_R1",
    "gemma-3-27b",
    "gpt-oss-20b",
    "Nemotron-H-56B",
    "Qwen3-Next-80B-A3B",
    "Mamba-Codestral-7B",
];

fn model(name: &str) -> (ModelSpec, TensorTable) {
    let path = format!("{}/../fixtures/truth/llama.cpp/configs/{name}.config.json", env!("CARGO_MANIFEST_DIR"));
    let config = std::fs::read(path).expect("a config among the fixtures");
    let ingested = hf::ingest(&config, &hf::Options::default()).expect("a known family");
    let facts = LoaderFacts::of(&ingested.spec, BUILD).expect("a known architecture");
    let file_type = FileType::parse("Q4_K_M").expect("a known file type");
    let table = quantize::file_tensors(BUILD, &facts, &ingested.tensors, file_type).expect("a file");
    (ingested.spec, table)
}

fn deployment() -> Deployment {
    let backend = Backend::Cuda { compute_capability: 890 };
    Deployment { flash_attention: FlashAttention::On, ..Deployment::new(ContextRequest::PerSequence(CONTEXT), backend) }
}

fn estimates(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("estimate");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(30);
    for name in MODELS {
        let (spec, table) = model(name);
        let asked = deployment();
        let compiled = || Estimator::new(&spec, &table, BUILD, black_box(&asked)).expect("a deployment the engine starts");
        let estimator = compiled().for_many_contexts().expect("ranges");
        let at = |context| estimator.bytes(ContextRequest::PerSequence(context), 1).expect("an answer").device;
        group.bench_function(BenchmarkId::new("replay", name), |bencher| {
            bencher.iter(|| memory_of(&spec, &table, black_box(&asked), BUILD).expect("an answer"));
        });
        group.bench_function(BenchmarkId::new("from scratch", name), |bencher| {
            bencher.iter(|| allocate(&spec, &table, black_box(&asked), BUILD).expect("an answer"));
        });
        group.bench_function(BenchmarkId::new("explained", name), |bencher| {
            let context = ContextRequest::PerSequence(CONTEXT);
            bencher.iter(|| estimator.explain(black_box(context), 1).expect("an answer"));
        });
        group.bench_function(BenchmarkId::new("compiling", name), |bencher| {
            bencher.iter(compiled);
        });
        group.bench_function(BenchmarkId::new("compiling for many", name), |bencher| {
            bencher.iter(|| compiled().for_many_contexts().expect("ranges"));
        });
        group.bench_function(BenchmarkId::new("compiled", name), |bencher| {
            bencher.iter(|| at(black_box(CONTEXT)));
        });
        group.bench_function(BenchmarkId::new("sweep of 10,000", name), |bencher| {
            bencher.iter(|| (1..=10_000_u64).map(|step| at(black_box(step * 13))).fold(0, u64::max));
        });
    }
    group.finish();
}

fn peer(criterion: &mut Criterion) {
    use llmfit_core::models::{KvQuant, ModelDatabase};
    let database = ModelDatabase::embedded();
    let found = database.find_model("Llama-3.1-8B");
    let model = found.first().expect("a model that every catalogue has");
    let mut group = criterion.benchmark_group("estimate");
    group.bench_function(BenchmarkId::new("llmfit-core 1.1.18 (closed formula)", "Llama-3.1-8B"), |bencher| {
        bencher.iter(|| model.estimate_memory_gb_with_kv(black_box("Q4_K_M"), black_box(32_768), KvQuant::Fp16));
    });
    group.finish();
}

criterion_group!(benches, estimates, peer);
criterion_main!(benches);
