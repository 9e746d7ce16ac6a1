//! The compiled estimate and the explained allocation agree to the byte, for every model of the truth under any
//! settings; terms add up to their parents; more context or more sequences never take less.

use crate::support;
use std::sync::LazyLock;

use plimsoll_math::allocation::{PlaceAllocation, Term, TermKind};
use plimsoll_math::deployment::{Backend, ContextRequest, Deployment, FlashAttention};
use plimsoll_math::engine::ideal;
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::llama_cpp::allocate::allocate;
use plimsoll_math::engine::llama_cpp::estimator::Estimator;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::spec::ModelSpec;
use plimsoll_math::synth;
use plimsoll_math::tensor::TensorTable;
use proptest::prelude::*;

static MODELS: LazyLock<Vec<(ModelSpec, TensorTable)>> = LazyLock::new(|| {
    support::rows("truth/llama.cpp/layers.jsonl.gz")
        .iter()
        .map(|row| {
            let spec = support::specs::of(row);
            let table = synth::tensor_table(&spec).unwrap();
            (spec, table)
        })
        .collect()
});

const FORMATS: [StorageFormat; 5] =
    [StorageFormat::F16, StorageFormat::F32, StorageFormat::Bf16, StorageFormat::Q8_0, StorageFormat::Q4_0];

fn deployments() -> impl Strategy<Value = Deployment> {
    let backend = prop_oneof![
        Just(Backend::Cpu),
        Just(Backend::Metal),
        prop_oneof![Just(610), Just(750), Just(890)].prop_map(|compute_capability| Backend::Cuda { compute_capability }),
    ];
    let flash = prop_oneof![Just(FlashAttention::Auto), Just(FlashAttention::On), Just(FlashAttention::Off)];
    let context = prop_oneof![
        (1_u64..600_000).prop_map(ContextRequest::Total),
        (1_u64..2_500).prop_map(ContextRequest::Total),
        (1_u64..70_000).prop_map(ContextRequest::PerSequence),
        Just(ContextRequest::ModelMaximum),
    ];
    let formats = (0..FORMATS.len(), 0..FORMATS.len(), any::<bool>());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), 0_u64..4);
    (context, 1_u64..20, 1_u64..4096, 1_u64..4096, formats, flash, flags, backend).prop_map(
        |(
            context,
            sequences,
            batch,
            ubatch,
            (k, v, same),
            flash_attention,
            (kv_unified, swa_full, load_mtp, draft_tokens),
            backend,
        )| {
            Deployment {
                sequences,
                batch,
                ubatch,
                kv_type_k: FORMATS[k],
                kv_type_v: FORMATS[if same { k } else { v }],
                flash_attention,
                kv_unified,
                swa_full,
                load_mtp,
                draft_tokens,
                ..Deployment::new(context, backend)
            }
        },
    )
}

/// Children add up to their parent, all the way down.
fn adds_up(term: &Term) -> bool {
    let sum: u64 = term.children.iter().map(|child| child.bytes.get()).sum();
    (term.children.is_empty() || sum == term.bytes.get()) && term.children.iter().all(adds_up)
}

fn used(place: Option<&PlaceAllocation>) -> u64 {
    place.map_or(0, |place| place.used().unwrap().get())
}

fn check(spec: &ModelSpec, table: &TensorTable, build: Build, deployment: &Deployment) {
    let explained = allocate(spec, table, deployment, build);
    let estimator = Estimator::new(spec, table, build, deployment);
    if let (Ok(explained), Ok(estimator)) = (&explained, &estimator) {
        // The same terms, word for word.
        assert_eq!(*explained, estimator.explain(deployment.context, deployment.sequences).unwrap());
    }
    let estimator = estimator.and_then(Estimator::for_many_contexts);
    let compiled = estimator.and_then(|estimator| estimator.bytes(deployment.context, deployment.sequences));
    let (explained, compiled) = match (explained, compiled) {
        (Ok(explained), Ok(compiled)) => (explained, compiled),
        (Err(explained), Err(compiled)) => return assert_eq!(explained.code(), compiled.code(), "{explained} / {compiled}"),
        (explained, compiled) => panic!("{explained:?}\n{compiled:?}"),
    };
    let allocation = &explained.allocation;
    assert_eq!(explained.resolved, compiled.resolved);
    assert_eq!(used(allocation.devices.first()), compiled.device);
    assert_eq!(used(Some(&allocation.host)), compiled.host);
    for (kind, bytes) in [
        (TermKind::KvCache, compiled.kv_cache),
        (TermKind::RecurrentState, compiled.recurrent_state),
        (TermKind::Output, compiled.output),
        (TermKind::Compute, compiled.device_compute.high + compiled.host_compute.high),
    ] {
        assert_eq!(allocation.total(kind).unwrap().get(), bytes, "{kind:?}");
    }
    let places = allocation.devices.iter().chain([&allocation.host]);
    assert!(places.flat_map(|place| &place.terms).all(adds_up));
    assert!(compiled.host_compute.low <= compiled.host_compute.high);
    assert!(compiled.device_compute.low <= compiled.device_compute.high);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_compiled_estimate_equals_the_explanation(
        model in 0..MODELS.len(), newest in any::<bool>(), deployment in deployments(),
    ) {
        let (spec, table) = &MODELS[model];
        check(spec, table, if newest { Build::B12032 } else { Build::C0c1e57098 }, &deployment);
    }

    #[test]
    fn more_context_and_more_sequences_take_no_less(
        model in 0..MODELS.len(), deployment in deployments(), tokens in 256_u64..200_000, more in 1_u64..200_000,
    ) {
        let (spec, table) = &MODELS[model];
        let Ok(estimator) = Estimator::new(spec, table, Build::default(), &deployment) else { return Ok(()) };
        let at = |tokens, sequences| estimator.bytes(ContextRequest::PerSequence(tokens), sequences);
        let sequences = deployment.sequences;
        if let (Ok(less), Ok(longer)) = (at(tokens, sequences), at(tokens + more, sequences)) {
            prop_assert!(less.kv_cache <= longer.kv_cache);
            prop_assert_eq!(less.recurrent_state, longer.recurrent_state);
        }
        if let (Ok(less), Ok(wider)) = (at(tokens, sequences), at(tokens, sequences + 1)) {
            prop_assert!(less.kv_cache <= wider.kv_cache && less.recurrent_state <= wider.recurrent_state);
            prop_assert!(less.output < wider.output);
        }
    }

    #[test]
    fn the_textbook_never_takes_more_for_the_caches(
        model in 0..MODELS.len(), mut deployment in deployments(), tokens in 1_u64..100_000,
    ) {
        let (spec, table) = &MODELS[model];
        deployment.context = ContextRequest::PerSequence(tokens);
        deployment.load_mtp = false;
        let Ok(engine) = allocate(spec, table, &deployment, Build::default()) else { return Ok(()) };
        let textbook = ideal::allocate(spec, table, &deployment).unwrap();
        for kind in [TermKind::KvCache, TermKind::RecurrentState] {
            prop_assert!(textbook.total(kind).unwrap() <= engine.allocation.total(kind).unwrap(), "{:?}", kind);
        }
        prop_assert!(textbook.devices.iter().chain([&textbook.host]).flat_map(|place| &place.terms).all(adds_up));
    }
}
