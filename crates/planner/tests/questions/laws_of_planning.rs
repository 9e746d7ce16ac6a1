//! Laws that every answer of the planner keeps: more never takes less, more devices never fit less, a placement that is
//! offered verifies, a limit of vLLM is the last value that fits, and more sequences never decode less together.

use plimsoll_math::error::MathError;
use plimsoll_math::units::Bytes;
use plimsoll_planner::change::{is_refusal, room_of};
use plimsoll_planner::engine::Question;
use plimsoll_planner::limits::{max_context, max_sequences};
use plimsoll_planner::offload::best_placement;
use plimsoll_planner::pace::Pace;
use plimsoll_planner::point::Point;
use plimsoll_planner::response::LimitedBy;
use plimsoll_planner::sweep::{Axes, Sweep};
use plimsoll_planner::{Options, PlanError};
use proptest::prelude::*;

use crate::models::{LOADED, MODELS};

fn question(model: usize, options: &Options) -> Question<'static> {
    Question::new(&LOADED[model], options).unwrap_or_else(|error| panic!("{error}: {options:?}"))
}

/// What is used in all; `None` where the engine refuses.
fn point(question: &Question<'_>) -> Option<Point> {
    match question.plan() {
        Ok(planned) => Some(Point::of(question, &planned).unwrap()),
        Err(error) if is_refusal(&error) => None,
        Err(PlanError::Math(MathError::Overflow { .. })) => None,
        Err(error) => panic!("{error}"),
    }
}

fn all(point: &Point) -> Bytes {
    point.devices.plus(point.host).unwrap()
}

const DEVICES: &[&str] = &["RTX 3060 12GB", "RTX 4090", "RTX 5090", "H100 SXM"];

fn single() -> impl Strategy<Value = (usize, Options)> {
    let kv = prop_oneof![Just("f16"), Just("q8_0"), Just("f32")];
    let quant = prop_oneof![Just("Q4_K_M"), Just("Q8_0"), Just("BF16")];
    (0..MODELS.len(), kv, quant, 0..DEVICES.len(), 1_u64..100_000, 1_u64..6).prop_map(
        |(model, kv, quant, device, context, sequences)| {
            let options = Options {
                context: Some(context),
                sequences: Some(sequences),
                quant: Some(quant.to_owned()),
                kv_type: Some(kv.to_owned()),
                device: Some(DEVICES[device].to_owned()),
                ..Options::default()
            };
            (model, options)
        },
    )
}

fn several() -> impl Strategy<Value = (usize, Options)> {
    (single(), prop::collection::vec(0..DEVICES.len(), 0..2)).prop_map(|((model, mut options), more)| {
        let more: Vec<String> = more.into_iter().map(|index| DEVICES[index].to_owned()).collect();
        options.devices = (!more.is_empty()).then_some(more);
        options.context = options.context.map(|context| context.min(20_000));
        (model, options)
    })
}

/// A placement that is offered is what `fit` is told, and fits there; and where it leaves nothing out, nothing is left to gain.
fn check_placement(model: usize, options: &Options) {
    let question = question(model, options);
    let Some(placement) = best_placement(&question, 0, None).unwrap() else { return };
    let mut told = options.clone();
    let mut words = placement.options.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap().clone();
        match word.as_str() {
            "--gpu-layers" => told.gpu_layers = Some(value().parse().unwrap()),
            "--n-cpu-moe" => told.n_cpu_moe = Some(value().parse().unwrap()),
            "--cpu-moe" => told.cpu_moe = Some(true),
            "--no-kv-offload" => told.kv_offload = Some(false),
            "--override-tensor" => told.override_tensor.get_or_insert_default().push(value()),
            "--tensor-split" => {
                let share = |text: &str| text.parse::<f32>().unwrap().try_into().unwrap();
                told.tensor_split = Some(value().split(',').map(share).collect());
            }
            other => panic!("{other} is no option"),
        }
    }
    let told = Question::new(&LOADED[model], &told).unwrap();
    let planned = told.plan().unwrap();
    assert!(room_of(&told, &planned).unwrap().is_ok(), "{options:?}: {placement:?}");
    for (place, device) in planned.allocation.devices.iter().zip(&placement.devices) {
        assert_eq!(place.used().unwrap(), device.used, "{options:?}");
    }
    // Whatever the engine does by itself, all on devices, is never faster than what was found.
    let whole = question.plan().unwrap();
    if room_of(&question, &whole).unwrap().is_ok()
        && let (Some(pace), Some(found)) = (Pace::new(&question, &whole).unwrap(), placement.decode_tokens_per_s)
    {
        let context = plimsoll_math::throughput::float(whole.resolved.context_per_sequence);
        assert!(found.expected >= pace.decode(1.0, context / 2.0).expected, "{options:?}");
    }
}

fn vllm() -> impl Strategy<Value = (usize, Options)> {
    let kv = prop_oneof![Just(None), Just(Some("fp8")), Just(Some("bfloat16"))];
    (0..3_usize, kv, 1_u64..100_000, 1_u64..40, prop_oneof![Just(1_u64), Just(2), Just(4)]).prop_map(
        |(model, kv, context, sequences, ranks)| {
            let options = Options {
                engine: Some("vllm".to_owned()),
                context: Some(context.min(LOADED[model].spec.max_context)),
                sequences: Some(sequences),
                kv_type: kv.map(str::to_owned),
                device: Some("H100 SXM".to_owned()),
                tensor_parallel: Some(ranks),
                ..Options::default()
            };
            (model, options)
        },
    )
}

/// The value fits and the next does not, by the engine's own account of its pool.
fn check_pool(model: usize, options: &Options) {
    let question = question(model, options);
    let pool_is_enough = |changed: &Question<'_>| changed.plan().unwrap().vllm.unwrap().short_by.is_none();
    let at_context = |tokens| pool_is_enough(&question.changed(|options| options.context = Some(tokens)).unwrap());
    let at_sequences = |count| pool_is_enough(&question.changed(|options| options.sequences = Some(count)).unwrap());
    if let Some(limit) = max_context(&question).unwrap() {
        assert!(limit.value == 0 || at_context(limit.value), "{limit:?} {options:?}");
        assert!(limit.limited_by == LimitedBy::Model || !at_context(limit.value + 1), "{limit:?} {options:?}");
    }
    if let Some(limit) = max_sequences(&question).unwrap()
        && limit.limited_by == LimitedBy::Memory
    {
        assert!(limit.value == 0 || at_sequences(limit.value), "{limit:?} {options:?}");
        assert!(!at_sequences(limit.value + 1), "{limit:?} {options:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn more_never_takes_less((model, options) in single(), more in 1_u64..30_000) {
        let base = question(model, &options);
        let Some(now) = point(&base) else { return Ok(()) };
        let longer = base.changed(|options| options.context = options.context.map(|context| context + more)).unwrap();
        if let Some(longer) = point(&longer) {
            prop_assert!(all(&longer) >= all(&now), "context {options:?}");
        }
        let busier = base.changed(|options| options.sequences = options.sequences.map(|count| count + 1)).unwrap();
        if let Some(busier) = point(&busier) {
            prop_assert!(all(&busier) >= all(&now), "sequences {options:?}");
        }
        let wider = base.changed(|options| options.kv_type = Some("f32".to_owned())).unwrap();
        if let Some(wider) = point(&wider) {
            prop_assert!(wider.parts.kv_cache >= now.parts.kv_cache, "cache {options:?}");
        }
        let heavier = base.changed(|options| options.quant = Some("F32".to_owned())).unwrap();
        if let Some(heavier) = point(&heavier) {
            prop_assert!(heavier.parts.weights >= now.parts.weights, "weights {options:?}");
        }
    }

    #[test]
    fn a_second_device_never_fits_less((model, options) in single()) {
        let one = question(model, &options);
        let Some(alone) = point(&one) else { return Ok(()) };
        let device = &one.effective.device;
        let two = one.on_devices(device, 2).unwrap();
        if alone.fits() && let Some(together) = point(&two) {
            prop_assert!(together.fits(), "{options:?}");
        }
    }

    #[test]
    fn placements_verify((model, options) in several()) {
        check_placement(model, &options);
    }

    #[test]
    fn pools_reach_what_they_say((model, options) in vllm()) {
        check_pool(model, &options);
    }

    #[test]
    fn more_sequences_never_decode_less_together((model, options) in single(), depth in 1_u32..8_000) {
        let question = question(model, &options);
        let Ok(planned) = question.plan() else { return Ok(()) };
        let Some(pace) = Pace::new(&question, &planned).unwrap() else { return Ok(()) };
        let mut before = 0.0;
        for sequences in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0] {
            let rate = pace.decode(sequences, f64::from(depth)).expected.get();
            prop_assert!(rate >= before * 0.999, "{sequences} sequences {options:?}: {rate} after {before}");
            before = rate;
        }
    }

    /// A row of a sweep is the point that the question alone has, whatever the order in which rows are asked for.
    #[test]
    fn rows_are_what_the_question_alone_has((model, options) in single()) {
        let context = options.context.unwrap();
        let axes = Axes { contexts: vec![context, context / 2 + 1, context], sequences: vec![1, 3], ..Axes::default() };
        let sweep = Sweep::new(&LOADED[model], &options, axes).unwrap();
        prop_assert_eq!(sweep.points(), 6);
        for index in [1, 0] {
            let line = sweep.line(index).unwrap();
            for column in [2, 1, 0] {
                let asked = Options { sequences: Some(line.label().sequences), context: Some(sweep.context(column)), ..options.clone() };
                prop_assert_eq!(line.figures(sweep.context(column)).unwrap(), point(&question(model, &asked)), "{:?}", asked);
            }
        }
    }
}
