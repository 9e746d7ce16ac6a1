//! One estimate: explained term by term, compiled, and a peer's closed formula on the same model and question.
#![allow(missing_docs, reason = "criterion's macros generate public items")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use plimsoll_ingest::hf;
use plimsoll_math::deployment::{Backend, ContextRequest, Deployment, FlashAttention};
use plimsoll_math::engine::llama_cpp::allocate::allocate;
use plimsoll_math::engine::llama_cpp::estimator::Estimator;
use plimsoll_math::engine::llama_cpp::memory::memory;
use plimsoll_math::engine::llama_cpp::{Build, FileType, LoaderFacts, quantize};
use plimsoll_math::spec::ModelSpec;
use plimsoll_math::tensor::TensorTable;

const BUILD: Build = Build::C0c1e57098;

fn model(config: &[u8]) -> (ModelSpec, TensorTable) {
    let ingested = hf::ingest(config, &hf::Options::default()).expect("a known family");
    let facts = LoaderFacts::of(&ingested.spec, BUILD).expect("a known architecture");
    let file_type = FileType::parse("Q4_K_M").expect("a known file type");
    let table = quantize::file_tensors(BUILD, &facts, &ingested.tensors, file_type).expect("a file");
    (ingested.spec, table)
}

fn deployment(context: u64) -> Deployment {
    let backend = Backend::Cuda { compute_capability: 890 };
    Deployment { flash_attention: FlashAttention::On, ..Deployment::new(ContextRequest::PerSequence(context), backend) }
}

fn estimates(criterion: &mut Criterion) {
    for (name, config) in [
        ("Llama-3.1-8B", &include_bytes!("../../fixtures/truth/llama.cpp/configs/Llama-3.1-8B.config.json")[..]),
        ("Qwen3-30B-A3B", &include_bytes!("../../fixtures/truth/llama.cpp/configs/Qwen3-30B-A3B.config.json")[..]),
    ] {
        let (spec, table) = model(config);
        let asked = deployment(32_768);
        let estimator = Estimator::new(&spec, &table, BUILD, &asked).expect("a deployment the engine starts");
        let mut group = criterion.benchmark_group(format!("estimate {name}"));
        group.bench_function("plimsoll explained", |bencher| {
            bencher.iter(|| allocate(&spec, &table, black_box(&asked), BUILD).expect("an answer"));
        });
        group.bench_function("plimsoll explained: caches, state, compute buffers", |bencher| {
            bencher.iter(|| memory(&spec, black_box(&asked), BUILD).expect("an answer"));
        });
        group.bench_function("plimsoll compiled", |bencher| {
            bencher.iter(|| estimator.bytes(black_box(ContextRequest::PerSequence(32_768)), 1).expect("an answer").device);
        });
        group.bench_function("plimsoll compiled, sweep of 1,000 contexts", |bencher| {
            bencher.iter(|| {
                (1..=1_000_u64)
                    .map(|step| estimator.bytes(ContextRequest::PerSequence(black_box(step * 128)), 1).expect("an answer").device)
                    .fold(0, u64::max)
            });
        });
        group.bench_function("plimsoll compiling", |bencher| {
            bencher.iter(|| Estimator::new(&spec, &table, BUILD, black_box(&asked)).expect("a deployment the engine starts"));
        });
        group.finish();
    }
}

fn peer(criterion: &mut Criterion) {
    use llmfit_core::models::{KvQuant, ModelDatabase};
    let database = ModelDatabase::embedded();
    let found = database.find_model("Llama-3.1-8B");
    let model = found.first().expect("a model that every catalogue has");
    let mut group = criterion.benchmark_group("estimate Llama-3.1-8B");
    group.bench_function("llmfit-core 1.1.18 (closed formula)", |bencher| {
        bencher.iter(|| model.estimate_memory_gb_with_kv(black_box("Q4_K_M"), black_box(32_768), KvQuant::Fp16));
    });
    group.finish();
}

criterion_group!(benches, estimates, peer);
criterion_main!(benches);
