//! Predicted speeds: inside what the hardware allows, in the order that more work gives, and near what was measured.

use plimsoll::ingest::hf;
use plimsoll::math::device::Device;
use plimsoll::math::format::StorageFormat;
use plimsoll::math::throughput::{Runtime, Setup, Speeds, Work, decode, decode_bound, prefill, prefill_bound, seconds};
use plimsoll::planner::speed::Throughput;
use plimsoll::planner::{Basis, Model, Options, fit};
use proptest::prelude::*;

fn model(name: &str) -> Model {
    let path = format!("{}/../../fixtures/corpus/configs/{name}.config.json", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).expect(&path);
    Model::new(Some(name), hf::ingest(&bytes, &hf::Options::default()).expect(name), Basis::Config)
}

fn throughput(name: &str, quant: &str, device: &str, context: u64) -> Throughput {
    let options = Options {
        device: Some(device.into()),
        quant: Some(quant.into()),
        context: Some(context),
        skip_limits: Some(true),
        ..Options::default()
    };
    fit(&model(name), &options).expect(name).throughput.expect("a speed")
}

/// llama-bench's figures (llama.cpp discussions 4167 and 15396), quality A of `fixtures/bench/`.
#[test]
fn published_figures_lie_in_the_interval() {
    #[track_caller]
    fn check(name: &str, quant: &str, device: &str, measured: f64) {
        let rate = throughput(name, quant, device, 4096).decode_tokens_per_s;
        let (low, high) = (rate.low.get(), rate.high.get());
        assert!((low..=high).contains(&measured), "{name} {quant} on {device}: {measured} not in {low} to {high}");
    }
    check("llama-2-7b-chat-hf", "F16", "Apple M1 Max (32c)", 23.03);
    check("llama-2-7b-chat-hf", "Q8_0", "Apple M1 Max (32c)", 40.2);
    check("llama-2-7b-chat-hf", "Q4_0", "Apple M1 Max (32c)", 61.19);
    check("llama-2-7b-chat-hf", "Q8_0", "Apple M2 Ultra (76c)", 66.64);
    check("llama-2-7b-chat-hf", "Q4_0", "Apple M4 Max (40c)", 83.06);
    check("gpt-oss-20b", "MXFP4_MOE", "RTX 3090", 161.77);
    check("gpt-oss-20b", "MXFP4_MOE", "RTX 4090", 225.22);
}

#[test]
fn every_device_has_a_speed_within_its_bounds() {
    let model = model("llama-2-7b-chat-hf");
    let work = Work::new(&model.spec, &model.tensors, StorageFormat::F16, StorageFormat::F16).unwrap();
    for device in Device::all().unwrap() {
        let speeds = Speeds::of(&device).expect("a bandwidth");
        let setup = Setup::new(Runtime::LlamaCpp, speeds);
        let step = seconds(&decode(&work, &setup, 1.0, 0.0, None));
        let prompt = seconds(&prefill(&work, &setup, 512.0, 0.0, 512.0, None));
        assert!(step.is_finite() && step > 0.0 && prompt > step, "{}: {step} {prompt}", device.name);
        // Within reason even before the bound is applied.
        assert!(1.0 / step < decode_bound(&work, &setup, 1.0) * 1.3, "{}: {}", device.name, 1.0 / step);
        assert!(512.0 / prompt < prefill_bound(&work, &setup) * 1.3, "{}: {}", device.name, 512.0 / prompt);
    }
}

/// Kernels of one token as counted in the engine's graphs (`n_kernels` in `fixtures/bench/models.csv`), within a sixth.
#[test]
fn kernels_are_counted_as_in_the_engines_graphs() {
    #[track_caller]
    fn check(name: &str, counted: f64) {
        let model = model(name);
        let work = Work::new(&model.spec, &model.tensors, StorageFormat::F16, StorageFormat::F16).unwrap();
        let ratio = work.kernels / counted;
        assert!((0.84..1.17).contains(&ratio), "{name}: {} kernels, the engine {counted}", work.kernels);
    }
    check("gemma-3-27b-it", 1123.0);
    check("gpt-oss-20b", 556.0);
    check("qwen3.5-27b", 1876.0);
    check("qwen3.5-35b-a3b", 1494.0);
    check("lfm2-1.2b", 271.0);
    check("nemotron-h-56b-base-8k", 1768.0);
    check("falcon-h1-7b-base", 1632.0);
    check("ai21-jamba-mini-1.5", 1012.0);
    check("dolphin-2.5-mixtral-8x7b", 549.0);
    check("llama-4-scout-17b-16e-instruct", 1121.0);
    check("glm-4.5", 2287.0);
    check("minimax-m1-80k", 3705.0);
}

/// A model with routed experts reads those it needs and no more.
#[test]
fn experts_are_read_as_they_are_reached() {
    let model = model("gpt-oss-20b");
    let work = Work::new(&model.spec, &model.tensors, StorageFormat::F16, StorageFormat::F16).unwrap();
    assert!((work.coverage(1.0) - 4.0 / 32.0).abs() < 1e-12);
    assert!(work.coverage(64.0) > 0.99 && work.coverage(64.0) < 1.0);
    // 3.6 of 20.9 billion parameters are active, by the model's card; the input embedding is looked up, not read.
    let active = work.active_params() / 1e9;
    assert!((2.9..3.7).contains(&active), "{active}");
}

#[test]
fn layers_on_the_host_slow_decoding_down() {
    let options = |layers: Option<u64>| Options {
        device: Some("RTX 4090".into()),
        quant: Some("Q4_K_M".into()),
        context: Some(4096),
        skip_limits: Some(true),
        gpu_layers: layers,
        ..Options::default()
    };
    let model = model("llama-2-7b-chat-hf");
    let rate = |layers| {
        let answer = fit(&model, &options(layers)).unwrap();
        answer.throughput.unwrap().decode_tokens_per_s.expected
    };
    let (all, half, none) = (rate(None), rate(Some(16)), rate(Some(1)));
    assert!(all > half && half > none, "{all:?} {half:?} {none:?}");
    assert!(all.get() > 4.0 * half.get(), "{all:?} {half:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn more_work_takes_longer(depth in 0_u32..200_000, more in 1_u32..100_000, sequences in 1_u32..256, which in 0_usize..233) {
        let model = model("llama-2-7b-chat-hf");
        let work = Work::new(&model.spec, &model.tensors, StorageFormat::F16, StorageFormat::F16).unwrap();
        let device = Device::all().unwrap().swap_remove(which);
        let setup = Setup::new(Runtime::LlamaCpp, Speeds::of(&device).unwrap());
        let (depth, more, sequences) = (f64::from(depth), f64::from(more), f64::from(sequences));
        let step = |sequences: f64, depth: f64| seconds(&decode(&work, &setup, sequences, depth, None));
        prop_assert!(step(sequences, depth + more) >= step(sequences, depth));
        prop_assert!(step(sequences + 1.0, depth) >= step(sequences, depth));
        // All sequences together are never slower for one more.
        prop_assert!((sequences + 1.0) / step(sequences + 1.0, depth) >= sequences / step(sequences, depth) * 0.999_999);
        let prompt = |tokens: f64| seconds(&prefill(&work, &setup, tokens, depth, 512.0, None));
        prop_assert!(prompt(more + 1.0) >= prompt(more));
    }
}
