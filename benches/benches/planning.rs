//! The planner's questions: one point of a sweep, 10,000 and 1,000,000 of them, the search for a placement, a
//! fleet; beside a peer's
//! closed formula asked as often.
#![allow(missing_docs, reason = "criterion's macros generate public items")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use plimsoll_ingest::hf;
use plimsoll_planner::engine::Question;
use plimsoll_planner::fleet::{FleetHost, FleetModel, FleetRequest, fleet};
use plimsoll_planner::offload::best_placement;
use plimsoll_planner::sweep::{Axes, Line, Sweep};
use plimsoll_planner::which_device::{Target, which_device};
use plimsoll_planner::which_quant::{Grid, which_quant};
use plimsoll_planner::{Basis, Model, Options};
use rayon::prelude::*;

fn model(name: &str, config: &[u8]) -> Model {
    Model::new(Some(name), hf::ingest(config, &hf::Options::default()).expect("a known family"), Basis::Config)
}

fn llama() -> Model {
    model("Llama-3.1-8B", include_bytes!("../../fixtures/truth/llama.cpp/configs/Llama-3.1-8B.config.json"))
}

fn asked(device: &str) -> Options {
    Options { device: Some(device.into()), quant: Some("Q4_K_M".into()), context: Some(16_384), ..Options::default() }
}

/// Contexts in steps of `step`.
fn contexts(count: u64, step: u64) -> Vec<u64> {
    (1..=count).map(|index| index * step).collect()
}

/// Memory of every point of a sweep, on all processors; the largest, so that nothing is left out.
fn memory(sweep: &Sweep<'_>) -> u64 {
    (0..sweep.lines())
        .into_par_iter()
        .map(|index| {
            let line = sweep.line(index).expect("a line");
            let width = sweep.width();
            (0..width).into_par_iter().map(|column| used(&line, sweep.context(column))).max().unwrap_or(0)
        })
        .max()
        .unwrap_or(0)
}

fn used(line: &Line<'_>, context: u64) -> u64 {
    line.figures(context).expect("figures").map_or(0, |point| point.devices.get())
}

fn sweeps(criterion: &mut Criterion) {
    let model = llama();
    let options = asked("RTX 4090");
    let mut group = criterion.benchmark_group("sweep Llama-3.1-8B");
    let axes = Axes { contexts: contexts(10_000, 13), ..Axes::default() };
    let ten_thousand = Sweep::new(&model, &options, axes).expect("a sweep");
    let line = ten_thousand.line(0).expect("a line");
    group.bench_function("admission: one compiled point", |bencher| {
        bencher.iter(|| used(&line, black_box(32_768)));
    });
    group.bench_function("one row, speeds included", |bencher| {
        bencher.iter(|| line.row(black_box(32_768)).expect("a row").headroom);
    });
    group.bench_function("10,000 points, compiled line", |bencher| {
        bencher.iter(|| (1..=10_000_u64).map(|step| used(&line, black_box(step * 13))).max());
    });
    group.bench_function("10,000 points, compiling included", |bencher| bencher.iter(|| memory(&ten_thousand)));
    group.sample_size(10);
    let axes = Axes {
        contexts: contexts(62_500, 2),
        sequences: vec![1, 2, 4, 8],
        kv_types: vec!["f16".into(), "q8_0".into()],
        quants: vec!["Q4_K_M".into(), "Q8_0".into()],
        ..Axes::default()
    };
    let million = Sweep::new(&model, &Options { quant: None, ..options.clone() }, axes).expect("a sweep");
    assert_eq!(million.points(), 1_000_000);
    group.bench_function("1,000,000 points, 16 lines, memory", |bencher| bencher.iter(|| memory(&million)));
    group.bench_function("1,000,000 rows, speeds included, as CSV", |bencher| {
        bencher.iter(|| {
            (0..million.lines())
                .into_par_iter()
                .map(|index| {
                    let line = million.line(index).expect("a line");
                    (0..million.width())
                        .into_par_iter()
                        .map(|column| {
                            let row = line.row(million.context(column)).expect("a row");
                            let text = format!("{},{:?},{:?}", row.context, row.devices_used, row.decode_tokens_per_s);
                            text.len()
                        })
                        .sum::<usize>()
                })
                .sum::<usize>()
        });
    });
    group.finish();
}

fn searches(criterion: &mut Criterion) {
    let dense = llama();
    let experts = model("Qwen3-30B-A3B", include_bytes!("../../fixtures/truth/llama.cpp/configs/Qwen3-30B-A3B.config.json"));
    let mut group = criterion.benchmark_group("search");
    for (name, model, device, quant) in [
        ("offload, dense on one device", &dense, "RTX 4060", "Q8_0"),
        ("offload, experts on one device", &experts, "RTX 4070", "Q4_K_M"),
    ] {
        let options = Options { quant: Some(quant.into()), ..asked(device) };
        let question = Question::new(model, &options).expect("a question");
        group.bench_function(name, |bencher| {
            bencher.iter(|| best_placement(black_box(&question), 0, None).expect("an answer").is_some());
        });
    }
    let options = Options { devices: Some(vec!["RTX 3060 12GB".into()]), ..asked("RTX 4070") };
    let question = Question::new(&experts, &options).expect("a question");
    group.bench_function("offload, experts on two devices", |bencher| {
        bencher.iter(|| best_placement(black_box(&question), 0, None).expect("an answer").is_some());
    });
    group.sample_size(10);
    let grid = Options { quant: None, context: None, ..asked("RTX 4060") };
    group.bench_function("which-quant, 11 x 6", |bencher| {
        bencher.iter(|| which_quant(black_box(&dense), &grid, &Grid::default()).expect("a grid").rows.len());
    });
    let anywhere = Options { device: None, ..asked("RTX 4060") };
    group.bench_function("which-device, the catalogue", |bencher| {
        bencher.iter(|| which_device(black_box(&dense), &anywhere, &Target::default()).expect("sets").smallest.len());
    });
    group.finish();
}

fn peer(criterion: &mut Criterion) {
    use llmfit_core::models::{KvQuant, ModelDatabase};
    let database = ModelDatabase::embedded();
    let found = database.find_model("Llama-3.1-8B");
    let model = found.first().expect("a model that every catalogue has");
    let mut group = criterion.benchmark_group("sweep Llama-3.1-8B");
    group.bench_function("llmfit-core 1.1.18, 10,000 points of its closed formula", |bencher| {
        bencher.iter(|| {
            (1..=10_000_u32)
                .map(|step| model.estimate_memory_gb_with_kv("Q4_K_M", black_box(step * 13), KvQuant::Fp16))
                .fold(0.0, f64::max)
        });
    });
    group.finish();
}

/// 50 models, 12 different ones, onto 20 hosts of five kinds.
fn fleets(criterion: &mut Criterion) {
    const CONFIGS: [&str; 4] = ["Llama-3.1-8B", "Qwen3-8B", "Qwen3-30B-A3B", "gpt-oss-20b"];
    const QUANTS: [&str; 3] = ["Q4_K_M", "Q6_K", "Q8_0"];
    let read = |name: &str| {
        let path = format!("{}/../fixtures/truth/llama.cpp/configs/{name}.config.json", env!("CARGO_MANIFEST_DIR"));
        model(name, &std::fs::read(path).expect("a config among the fixtures"))
    };
    let facts: Vec<Model> = CONFIGS.iter().map(|name| read(name)).collect();
    let host = |name: &str, devices: &str| FleetHost {
        name: name.into(),
        count: Some(4),
        devices: vec![devices.into()],
        ..FleetHost::default()
    };
    let wanted = |index: usize| FleetModel {
        name: format!("model {index}"),
        replicas: Some(1 + (index as u64) % 2),
        options: Options {
            quant: Some(QUANTS[index / 4 % 3].into()),
            context: Some(8192 * (1 + (index as u64) % 3)),
            ..Options::default()
        },
        ..FleetModel::default()
    };
    let request = FleetRequest {
        host: vec![
            host("small", "RTX 4060 x2"),
            host("desk", "RTX 3090"),
            host("pair", "RTX 4090 x2"),
            host("server", "L40S x2"),
            host("large", "A100 80GB SXM x4"),
        ],
        model: (0..50).map(wanted).collect(),
        ..FleetRequest::default()
    };
    let models: Vec<Model> = (0..50).map(|index| facts[index % facts.len()].clone()).collect();
    let answer = fleet(&request, &models).expect("a placement");
    assert!(answer.placed_replicas > 0);
    let mut group = criterion.benchmark_group("search");
    group.sample_size(10);
    group.bench_function("fleet, 50 models on 20 hosts", |bencher| {
        bencher.iter(|| fleet(black_box(&request), &models).expect("a placement").placed_replicas);
    });
    group.finish();
}

criterion_group!(benches, sweeps, searches, fleets, peer);
criterion_main!(benches);
