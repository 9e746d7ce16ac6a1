//! Whatever is asked for: weights over all places are at least the table's, more layers on devices never mean less there,
//! and caches are the same bytes wherever they lie, padding aside.

use std::sync::LazyLock;

use crate::support::headers::{model, read};
use crate::support::places;
use plimsoll_math::allocation::{Allocation, TermKind};
use plimsoll_math::deployment::{Accelerator, Backend, ContextRequest, Deployment, Location, Share, TensorOverride};
use plimsoll_math::engine::llama_cpp::allocate::allocate;
use plimsoll_math::engine::llama_cpp::layout::Layout;
use plimsoll_math::engine::llama_cpp::weights::{weight_buffers, weight_places};
use plimsoll_math::engine::llama_cpp::{Build, LoaderFacts};
use plimsoll_math::spec::ModelSpec;
use plimsoll_math::tensor::{Place, TensorTable};
use proptest::prelude::*;

const NAMES: [&str; 5] = ["Llama-3.1-8B", "Qwen3-30B-A3B", "gemma-3n-E4B", "LFM2-1.2B", "GLM-4.5"];

static MODELS: LazyLock<Vec<(LoaderFacts, TensorTable)>> =
    LazyLock::new(|| NAMES.iter().map(|name| read(&model(name, "Q4_K_M").unwrap())).collect());

static SPECS: LazyLock<Vec<(ModelSpec, TensorTable)>> = LazyLock::new(|| {
    let row = |name: &&str| serde_json::json!({ "model": name, "quant": "Q4_K_M" });
    NAMES.iter().map(|name| places::model(&row(name)).unwrap()).collect()
});

fn deployments() -> impl Strategy<Value = Deployment> {
    let device = (prop::sample::select(vec![610_u32, 890, 0]), 1_u64..100).prop_map(|(compute_capability, gib)| Accelerator {
        backend: if compute_capability == 0 { Backend::Metal } else { Backend::Cuda { compute_capability } },
        free: gib << 30,
    });
    let devices = prop::collection::vec(device, 1..4);
    let shares = prop::collection::vec(0_u8..5, 0..4);
    (devices, shares, any::<bool>(), 0_u64..60, any::<bool>(), prop::sample::select(vec!["", "attn", r"blk\.[0-4]\.ffn"]))
        .prop_map(|(devices, shares, cpu_moe, n_cpu_moe, repack, pattern)| {
            let mut deployment = Deployment::new(ContextRequest::ModelMaximum, Backend::Cpu);
            deployment.devices = devices;
            deployment.tensor_split = shares.into_iter().map(|share| Share::try_from(f32::from(share)).unwrap()).collect();
            deployment.cpu_moe = cpu_moe;
            deployment.n_cpu_moe = n_cpu_moe;
            deployment.repack = repack;
            if !pattern.is_empty() {
                deployment.tensor_overrides = vec![TensorOverride { pattern: pattern.to_owned(), place: Location::Host }];
            }
            deployment
        })
}

/// Bytes on all devices and in all places.
fn weigh(facts: &LoaderFacts, table: &TensorTable, deployment: &Deployment) -> (u64, u64) {
    let buffers = weight_buffers(Build::default(), facts, table, deployment).unwrap();
    let on_devices = buffers.iter().filter(|buffer| buffer.place.is_device()).map(|buffer| buffer.bytes.get()).sum();
    (on_devices, buffers.iter().map(|buffer| buffer.bytes.get()).sum())
}

/// Bytes of caches and states on every device, then on the host.
fn caches(allocation: &Allocation) -> Vec<u64> {
    let places = allocation.devices.iter().chain([&allocation.host]);
    places.map(|place| place.of(TermKind::KvCache).unwrap().get() + place.of(TermKind::RecurrentState).unwrap().get()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_more_layers_are_never_less(
        model in 0..5_usize, mut deployment in deployments(), fewer in 0_u64..60, more in 0_u64..60,
    ) {
        let (facts, table) = &MODELS[model];
        // Prediction layers are in the file and not loaded.
        let trunk = |name: &str| {
            let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()).and_then(|layer| layer.parse::<u32>().ok());
            layer.is_none_or(|layer| layer < facts.n_layers)
        };
        let stored: u64 = table.tensors.iter().filter(|tensor| trunk(&tensor.name)).map(|tensor| tensor.bytes().unwrap().get()).sum();
        deployment.gpu_layers = Some(fewer);
        let (few, all) = weigh(facts, table, &deployment);
        prop_assert!(all >= stored, "{all} of {stored}");
        deployment.gpu_layers = Some(fewer + more);
        let (many, all) = weigh(facts, table, &deployment);
        prop_assert!(all >= stored, "{all} of {stored}");
        prop_assert!(few <= many, "{few} then {many}");
        deployment.gpu_layers = None;
        prop_assert!(many <= weigh(facts, table, &deployment).0);
    }

    #[test]
    fn every_tensor_is_somewhere_and_twice_only_where_two_places_read_it(
        model in 0..5_usize, mut deployment in deployments(), layers in 0_u64..60,
    ) {
        let (facts, table) = &MODELS[model];
        deployment.gpu_layers = Some(layers);
        deployment.mmap = false;
        let made = weight_places(Build::default(), facts, table, &deployment).unwrap();
        let mut stored = 0;
        for tensor in &table.tensors {
            let places: Vec<_> = made.iter().filter(|(name, _)| *name == tensor.name).map(|(_, place)| *place).collect();
            let trunk = !matches!(tensor.place, Place::Layer(layer) if layer >= facts.n_layers);
            // The embedding is made again as output matrix, and the table of rotation factors for every place of layers.
            let may_repeat = matches!(tensor.name.as_str(), "token_embd.weight" | "rope_freqs.weight");
            prop_assert!(!trunk || !places.is_empty(), "{} is nowhere", tensor.name);
            prop_assert!(places.len() <= 1 || may_repeat, "{}: {places:?}", tensor.name);
            stored += tensor.bytes().unwrap().get() * u64::try_from(places.len()).unwrap();
        }
        let buffers = weight_buffers(Build::default(), facts, table, &deployment).unwrap();
        let held: u64 = buffers.iter().flat_map(|buffer| &buffer.groups).map(|group| group.stored.get()).sum();
        prop_assert_eq!(held, stored);
    }

    #[test]
    fn caches_are_the_same_bytes_wherever_they_lie_and_more_tokens_take_no_less_anywhere(
        model in 0..5_usize, mut deployment in deployments(), layers in 0_u64..60, kv_offload in any::<bool>(),
        sequences in 1_u64..9, tokens in 1_u64..40_000, more in 1_u64..40_000,
    ) {
        let (spec, table) = &SPECS[model];
        let mut one = Deployment::new(ContextRequest::Total(tokens), Backend::Cpu);
        one.sequences = sequences;
        let whole = caches(&allocate(spec, table, &one, Build::default()).unwrap().allocation);
        deployment.sequences = sequences;
        deployment.gpu_layers = Some(layers);
        deployment.kv_offload = kv_offload;
        let mut at = |tokens| {
            deployment.context = ContextRequest::Total(tokens);
            caches(&allocate(spec, table, &deployment, Build::default()).unwrap().allocation)
        };
        let (few, many) = (at(tokens), at(tokens + more));
        prop_assert_eq!(few.iter().sum::<u64>(), whole.iter().sum::<u64>());
        prop_assert!(few.iter().zip(&many).all(|(few, many)| few <= many), "{few:?} then {many:?}");
    }

    #[test]
    fn layers_go_to_devices_in_order(layers in 1_u32..130, mut deployment in deployments(), asked in 0_u64..140) {
        deployment.gpu_layers = Some(asked);
        let layout = Layout::new(layers, &deployment).unwrap();
        let places: Vec<Location> = layout.layers().iter().copied().chain([layout.output()]).collect();
        let on_devices = u64::try_from(places.iter().filter(|place| **place != Location::Host).count()).unwrap();
        prop_assert_eq!(on_devices, asked.min(u64::from(layers) + 1));
        // The host's layers come first, then each device's in turn.
        let order: Vec<i32> = places.iter().map(|place| match place {
            Location::Host => -1,
            Location::Device(device) => i32::from(*device),
        }).collect();
        prop_assert!(order.is_sorted(), "{order:?}");
    }
}
