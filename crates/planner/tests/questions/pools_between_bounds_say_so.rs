//! A pool gets what stands beside it leaves. Where that is only known between two bounds, and the cache is large enough at
//! one end alone, the answer is neither a yes nor a no.

use std::path::Path;

use plimsoll_ingest::hf;
use plimsoll_math::allocation::{Certainty, TermKind};
use plimsoll_planner::fit::fit;
use plimsoll_planner::response::Verdict;
use plimsoll_planner::{Basis, Model, Options};
use proptest::prelude::*;

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/corpus/configs/qwen3-32b.config.json");
    let ingested = hf::ingest(&std::fs::read(path).unwrap(), &hf::Options::default()).unwrap();
    Model::new(Some("qwen3-32b"), ingested, Basis::Config)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The same question with the cache's bytes given: with those of the best case it fits exactly where the open question
    /// says that it may, and with those of the worst case exactly where it says that it does.
    #[test]
    fn the_ends_decide(context in 4_000_u64..40_000, vllm in any::<bool>()) {
        let model = model();
        let open = Options {
            engine: Some(if vllm { "vllm" } else { "sglang" }.to_owned()),
            device: Some("H100 SXM".to_owned()),
            context: Some(context),
            skip_limits: Some(true),
            ..Options::default()
        };
        let answer = fit(&model, &open).unwrap();
        let pool = answer.devices.iter().flat_map(|device| &device.terms).find(|term| term.component == TermKind::KvCache);
        let pool = pool.unwrap();
        let Certainty::Bounded { low, high } = pool.certainty else { panic!("{pool:?}") };
        prop_assert_eq!(pool.bytes, low);
        let with = |bytes: u64| {
            let given = Options { kv_memory: Some(bytes), ..open.clone() };
            matches!(fit(&model, &given).unwrap().verdict, Verdict::Fits { .. })
        };
        match answer.verdict {
            Verdict::Fits { .. } => prop_assert!(with(low.get())),
            Verdict::DoesNotFit { fits_at_best_with: Some(_), .. } => prop_assert!(!with(low.get()) && high > low),
            Verdict::DoesNotFit { .. } => prop_assert!(!with(low.get())),
            other => panic!("{other:?}"),
        }
    }
}

/// 32k tokens of Qwen3-32B take 8 GiB; vLLM leaves between 5 and 11 on 80 GB.
#[test]
fn what_hangs_on_activations_may_fit() {
    let options = Options {
        engine: Some("vllm".to_owned()),
        device: Some("H100 SXM".to_owned()),
        context: Some(32_768),
        skip_limits: Some(true),
        ..Options::default()
    };
    let answer = fit(&model(), &options).unwrap();
    assert!(matches!(answer.verdict, Verdict::DoesNotFit { fits_at_best_with: Some(_), .. }), "{:?}", answer.verdict);
    assert!(answer.notes.iter().any(|note| note.starts_with("at worst, vllm would not start")), "{:?}", answer.notes);
}
