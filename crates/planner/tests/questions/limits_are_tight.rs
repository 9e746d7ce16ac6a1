//! Reverse questions: the value fits, the next one does not, and the compiled path searches what the explained one
//! reports.

use plimsoll_math::deployment::{ContextRequest, FlashAttention};
use plimsoll_math::error::MathError;
use plimsoll_planner::engine::Question;
use plimsoll_planner::fit::Used;
use plimsoll_planner::limits::{max_context, max_sequences};
use plimsoll_planner::response::LimitedBy;
use plimsoll_planner::{Options, PlanError};
use proptest::prelude::*;

use crate::models::{LOADED, MODELS};

fn options() -> impl Strategy<Value = (usize, Options)> {
    let kv = prop_oneof![Just("f16"), Just("q8_0"), Just("f32")];
    let quant = prop_oneof![Just("Q4_K_M"), Just("Q8_0"), Just("IQ4_XS")];
    let device = prop_oneof![Just("cuda-cc890"), Just("metal"), Just("cpu"), Just("h100 sxm")];
    let engine = prop_oneof![Just("llama.cpp@0c1e57098"), Just("llama.cpp@b12032"), Just("ideal")];
    let counts = (1_u64..40_000, 1_u64..6, 1_u64..40, prop_oneof![Just(64_u64), Just(512), Just(2048)]);
    (0..MODELS.len(), kv, quant, device, engine, counts, any::<[bool; 3]>()).prop_map(
        |(model, kv, quant, device, engine, (context, sequences, gib, ubatch), [unified, full, mmap])| {
            let options = Options {
                engine: Some(engine.to_owned()),
                context: Some(context),
                sequences: Some(sequences),
                ubatch: Some(ubatch),
                quant: Some(quant.to_owned()),
                kv_type: Some(kv.to_owned()),
                flash_attention: Some(FlashAttention::On),
                kv_unified: Some(unified),
                swa_full: Some(full),
                mmap: Some(mmap),
                device: Some(device.to_owned()),
                memory: Some(gib << 30),
                ..Options::default()
            };
            (model, options)
        },
    )
}

/// Whether the explained path says that it fits; `None` when the engine refuses.
fn fits(question: &Question<'_>) -> Option<bool> {
    match question.plan() {
        Ok(planned) => Some(Used::of(&planned).unwrap().headroom(&question.effective.devices).unwrap().is_ok()),
        Err(PlanError::Math(MathError::Refused { .. })) => None,
        Err(other) => panic!("{other}"),
    }
}

fn check(model: usize, options: &Options) {
    let question = match Question::new(&LOADED[model], options) {
        Ok(question) => question,
        Err(error) => panic!("{error}: {options:?}"),
    };
    let at_context = |tokens| {
        let mut probe = question.clone();
        probe.effective.deployment.context = ContextRequest::PerSequence(tokens);
        fits(&probe)
    };
    let at_sequences = |sequences| {
        let mut probe = question.clone();
        probe.effective.deployment.sequences = sequences;
        fits(&probe)
    };
    let context = max_context(&question).unwrap().unwrap();
    if context.value > 0 {
        assert_eq!(at_context(context.value), Some(true), "{context:?} {options:?}");
    }
    if context.limited_by != LimitedBy::Model {
        assert_ne!(at_context(context.value + 1), Some(true), "{context:?} {options:?}");
    }
    let sequences = max_sequences(&question).unwrap().unwrap();
    if sequences.value > 0 {
        assert_eq!(at_sequences(sequences.value), Some(true), "{sequences:?} {options:?}");
    }
    if sequences.value < 256 {
        assert_ne!(at_sequences(sequences.value + 1), Some(true), "{sequences:?} {options:?}");
    }
    let deployment = &question.effective.deployment;
    let compiled = question.compile().unwrap().used(deployment.context, deployment.sequences);
    match question.plan() {
        Ok(planned) => assert_eq!(compiled.unwrap(), Used::of(&planned).unwrap(), "{options:?}"),
        Err(error) => assert_eq!(compiled.unwrap_err(), error, "{options:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn for_any_question((model, options) in options()) {
        check(model, &options);
    }
}
