//! What holds for llama.cpp holds for every engine: more asked never takes less nor fits where less does not, a wider cache never
//! reaches further, limits are the last values that fit, and a change that is offered makes it fit.

use plimsoll_planner::Options;
use plimsoll_planner::change::{plan_unless_refused, room_of};
use plimsoll_planner::closest::closest;
use plimsoll_planner::engine::Question;
use plimsoll_planner::fit::Used;
use plimsoll_planner::limits::{max_context, max_sequences};
use plimsoll_planner::response::LimitedBy;
use proptest::prelude::*;

use crate::models::LOADED;

/// An engine, a device that it runs on, and its cache formats, the widest first.
const ENGINES: &[(&str, &str, &[&str])] = &[
    ("llama.cpp", "RTX 4090", &["f32", "f16", "q8_0", "q4_0"]),
    ("ollama", "RTX 4090", &["f16", "q8_0", "q4_0"]),
    ("vllm", "A100 40GB PCIe", &["auto", "fp8"]),
    ("sglang", "A100 40GB PCIe", &["auto", "fp8_e4m3"]),
    ("tensorrt-llm", "A100 40GB PCIe", &["auto", "fp8"]),
    ("mlx", "M3 Max 64GB", &["auto", "8bit", "4bit"]),
    ("transformers", "A100 40GB PCIe", &["auto"]),
    ("ideal", "RTX 4090", &["f32", "f16", "q8_0"]),
];

fn asked() -> impl Strategy<Value = (usize, usize, Options)> {
    (0..ENGINES.len(), 0..3_usize, 1_u64..40_000, 1_u64..12).prop_map(|(engine, model, context, sequences)| {
        let (name, device, _) = ENGINES[engine];
        let files = ["llama.cpp", "ollama", "ideal"].contains(&name);
        let options = Options {
            engine: Some(name.to_owned()),
            device: Some(device.to_owned()),
            context: Some(context.min(LOADED[model].spec.max_context)),
            sequences: Some(sequences),
            quant: files.then(|| "Q4_K_M".to_owned()).or_else(|| (name == "mlx").then(|| "4bit".to_owned())),
            skip_limits: Some(true),
            ..Options::default()
        };
        (engine, model, options)
    })
}

#[test]
fn what_was_measured_of_an_engine_says_how_fast_it_runs() {
    for (engine, device, caches) in ENGINES {
        let files = ["llama.cpp", "ollama", "ideal"].contains(engine);
        let options = Options {
            engine: Some((*engine).to_owned()),
            device: Some((*device).to_owned()),
            context: Some(4096),
            quant: files.then(|| "Q4_K_M".to_owned()).or_else(|| (*engine == "mlx").then(|| "4bit".to_owned())),
            kv_type: caches.last().filter(|name| **name != "auto").map(|name| (*name).to_owned()),
            skip_limits: Some(true),
            ..Options::default()
        };
        let answer = plimsoll_planner::fit(&LOADED[0], &options).unwrap_or_else(|error| panic!("{engine}: {error}"));
        let speed = answer.throughput;
        assert_eq!(speed.is_some(), !["transformers", "ideal"].contains(engine), "{engine}");
        for (name, rate) in speed.iter().flat_map(|speed| speed.rates()) {
            let [low, expected, high] = [rate.low, rate.expected, rate.high].map(|rate| rate.get());
            assert!(0.0 < low && low <= expected && expected <= high, "{engine}: {name} {low} {expected} {high}");
        }
        // What does not fit does not run.
        let mut too_small = options.clone();
        too_small.memory = Some(1 << 30);
        if let Ok(answer) = plimsoll_planner::fit(&LOADED[0], &too_small) {
            assert!(answer.throughput.is_none(), "{engine}");
        }
    }
}

/// What is used in all, and whether it fits; `None` where the engine refuses.
fn point(question: &Question<'_>) -> Option<(u64, bool)> {
    let planned = plan_unless_refused(question).unwrap()?;
    let used = Used::of(&planned).unwrap();
    let bytes = used.on_devices().unwrap().get() + used.host.high.get();
    Some((bytes, room_of(question, &planned).unwrap().is_ok()))
}

fn with<'a>(question: &Question<'a>, change: impl FnOnce(&mut Options)) -> Option<Question<'a>> {
    question.changed(change).ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn more_never_takes_less((_, model, options) in asked(), more in 1_u64..30_000) {
        let question = Question::new(&LOADED[model], &options).unwrap();
        let Some((bytes, fits)) = point(&question) else { return Ok(()) };
        let longer = with(&question, |options| options.context = options.context.map(|context| context + more));
        let busier = with(&question, |options| options.sequences = options.sequences.map(|count| count + 1));
        for changed in [longer, busier].into_iter().flatten() {
            let Some((then, then_fits)) = point(&changed) else { continue };
            prop_assert!(fits || !then_fits, "more fits where less does not: {options:?}");
            // A pool is as large as what is left: what lies beside it may shrink it.
            if !question.effective.engine.has_pool() {
                prop_assert!(then >= bytes, "{bytes} then {then}: {options:?}");
            }
        }
    }

    #[test]
    fn a_wider_cache_never_reaches_further((engine, model, options) in asked()) {
        let mut before = 0;
        for kv_type in ENGINES[engine].2 {
            let one = Options { kv_type: Some((*kv_type).to_owned()), sequences: Some(1), ..options.clone() };
            let Ok(question) = Question::new(&LOADED[model], &one) else { continue };
            // A format that the engine does not take at any length has a limit of another kind (MLX-LM's rotating caches).
            let whole = question.changed(|options| options.context = Some(LOADED[model].spec.max_context)).unwrap();
            if plan_unless_refused(&question).unwrap().is_none() || plan_unless_refused(&whole).unwrap().is_none() {
                continue;
            }
            let Some(limit) = max_context(&question).unwrap() else { return Ok(()) };
            prop_assert!(limit.value >= before, "{kv_type} reaches {} after {before}: {options:?}", limit.value);
            before = limit.value;
        }
    }

    #[test]
    fn limits_are_the_last_that_fit((_, model, options) in asked()) {
        let question = Question::new(&LOADED[model], &options).unwrap();
        if plan_unless_refused(&question).unwrap().is_none() {
            return Ok(());
        }
        let fits = |question: Option<Question<'_>>| question.as_ref().and_then(point).is_some_and(|(_, fits)| fits);
        let at_context = |tokens| fits(with(&question, |options| options.context = Some(tokens)));
        let at_sequences = |count| fits(with(&question, |options| options.sequences = Some(count)));
        if let Some(limit) = max_context(&question).unwrap() {
            prop_assert!(limit.value == 0 || at_context(limit.value), "context {limit:?}: {options:?}");
            prop_assert!(limit.limited_by != LimitedBy::Memory || !at_context(limit.value + 1), "context {limit:?}: {options:?}");
        }
        if let Some(limit) = max_sequences(&question).unwrap() {
            prop_assert!(limit.value == 0 || at_sequences(limit.value), "sequences {limit:?}: {options:?}");
            prop_assert!(limit.limited_by != LimitedBy::Memory || !at_sequences(limit.value + 1), "sequences {limit:?}: {options:?}");
        }
    }

    /// Each change, asked for as its options say, fits.
    #[test]
    fn what_is_offered_fits((_, model, options) in asked(), heavy in any::<bool>()) {
        let asked = Options { quant: if heavy { None } else { options.quant.clone() }, ..options };
        let question = Question::new(&LOADED[model], &asked).unwrap();
        let Some(planned) = plan_unless_refused(&question).unwrap() else { return Ok(()) };
        if room_of(&question, &planned).unwrap().is_ok() {
            return Ok(());
        }
        for change in closest(&question, &planned).unwrap() {
            let mut told = asked.clone();
            let mut devices = Vec::new();
            for pair in change.options.chunks(2) {
                let value = pair[1].clone();
                match pair[0].as_str() {
                    "--kv-type" => told.kv_type = Some(value),
                    "--context" => told.context = Some(value.parse().unwrap()),
                    "--sequences" => told.sequences = Some(value.parse().unwrap()),
                    "--quant" => told.quant = Some(value),
                    "--n-cpu-moe" => told.n_cpu_moe = Some(value.parse().unwrap()),
                    "--gpu-layers" => told.gpu_layers = Some(value.parse().unwrap()),
                    "--tensor-parallel" => told.tensor_parallel = Some(value.parse().unwrap()),
                    "--device" => devices.push(value),
                    other => panic!("{other} is no option"),
                }
            }
            if let Some((first, rest)) = devices.split_first() {
                told.device = Some(first.clone());
                told.devices = (!rest.is_empty()).then(|| rest.to_vec());
            }
            let told = Question::new(&LOADED[model], &told).unwrap();
            prop_assert!(point(&told).is_some_and(|(_, fits)| fits), "{change:?}: {asked:?}");
        }
    }
}

/// All kinds of change are offered where they help.
#[test]
fn every_kind_of_change_is_offered_somewhere() {
    let offered = |model: usize, options: Options| -> Vec<String> {
        let question = Question::new(&LOADED[model], &options).unwrap();
        let planned = question.plan().unwrap();
        assert!(room_of(&question, &planned).unwrap().is_err(), "{options:?}");
        closest(&question, &planned).unwrap().into_iter().map(|change| change.options[0].clone()).collect()
    };
    let base = |engine: &str, device: &str, context: u64, sequences: u64, quant: Option<&str>| Options {
        engine: Some(engine.to_owned()),
        device: Some(device.to_owned()),
        context: Some(context),
        sequences: Some(sequences),
        quant: quant.map(str::to_owned),
        ..Options::default()
    };
    // A model with experts, a little too large for its device by its cache, and by its weights.
    let experts = offered(1, base("llama.cpp", "RTX 4090", 32_768, 2, Some("Q4_K_M")));
    for option in ["--kv-type", "--context", "--sequences", "--quant", "--n-cpu-moe", "--gpu-layers", "--device"] {
        assert!(experts.iter().any(|there| there == option), "{option}: {experts:?}");
    }
    for engine in ["vllm", "sglang", "tensorrt-llm"] {
        let ranks = offered(1, base(engine, "A100 40GB PCIe", 8192, 1, None));
        assert!(ranks.iter().any(|there| there == "--tensor-parallel"), "{engine}: {ranks:?}");
    }
    let apple = offered(0, base("mlx", "M3 Max 64GB", 131_072, 6, None));
    assert!(["--context", "--sequences"].iter().all(|option| apple.iter().any(|there| there == option)), "{apple:?}");
}
