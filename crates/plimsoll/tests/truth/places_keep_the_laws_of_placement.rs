//! Whatever is asked for: weights over all places are at least the table's, more layers on devices never mean less there,
//! and caches are the same bytes wherever they lie, padding aside.

use std::sync::LazyLock;

use crate::support::headers::{model, read};
use plimsoll_math::deployment::{Accelerator, Backend, ContextRequest, Deployment, Location, Share, TensorOverride};
use plimsoll_math::engine::llama_cpp::layout::Layout;
use plimsoll_math::engine::llama_cpp::weights::weight_buffers;
use plimsoll_math::engine::llama_cpp::{Build, LoaderFacts};
use plimsoll_math::tensor::TensorTable;
use proptest::prelude::*;

static MODELS: LazyLock<Vec<(LoaderFacts, TensorTable)>> = LazyLock::new(|| {
    ["Llama-3.1-8B", "Qwen3-30B-A3B", "gemma-3n-E4B", "LFM2-1.2B", "GLM-4.5"]
        .iter()
        .map(|name| read(&model(name, "Q4_K_M").unwrap()))
        .collect()
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
