//! Laws of the graph allocator: what is alive fits in, nothing is counted twice, and asking for more never takes less where
//! the engine keeps to that.

use crate::support;
use std::sync::LazyLock;

use plimsoll_math::deployment::{Backend, ContextRequest, Deployment, FlashAttention};
use plimsoll_math::engine::llama_cpp::graph::replay::{BufferKind, buffer_bytes};
use plimsoll_math::engine::llama_cpp::graph::reserved;
use plimsoll_math::engine::llama_cpp::graph::tensors::{Graph, GraphTensor, Layout};
use plimsoll_math::engine::llama_cpp::{Build, memory};
use plimsoll_math::format::StorageFormat;
use plimsoll_math::spec::ModelSpec;
use proptest::prelude::*;

static MODELS: LazyLock<Vec<ModelSpec>> =
    LazyLock::new(|| support::rows("truth/llama.cpp/layers.jsonl.gz").iter().map(support::specs::of).collect());

/// Bytes that have to be there at once at some point, and bytes of everything that ever is.
fn live_and_all(graph: &Graph, kinds: &[BufferKind]) -> (u64, u64) {
    let tensor = |number: u32| graph.tensor(number).unwrap();
    let own = |number: u32| tensor(number).0.view_of().unwrap_or(number);
    let held = |number: u32| !tensor(number).0.is_external;
    // When each tensor is there first, and read last, directly or through a view.
    let mut born = std::collections::BTreeMap::new();
    let mut last = std::collections::BTreeMap::new();
    let mut size = std::collections::BTreeMap::new();
    let mut meet = |number: u32, buffer: u32, when: usize| {
        let base = own(number);
        if held(base) {
            born.entry(base).or_insert(if tensor(base).0.is_input { 0 } else { when });
            let alignment = kinds[usize::try_from(buffer).unwrap()].alignment;
            size.entry(base).or_insert(tensor(base).0.bytes_in(buffer).next_multiple_of(alignment));
        }
        base
    };
    for &(leaf, buffer) in graph.given() {
        meet(leaf, buffer, 0);
    }
    for (when, &(node, buffer)) in graph.computed().iter().enumerate() {
        for &source in tensor(node).1 {
            let base = meet(source, buffer, when);
            last.insert(base, when);
        }
        meet(node, buffer, when);
    }
    let count = graph.computed().len();
    // After each node: what was made and is still to be read.
    let mut change = vec![0_i128; count + 1];
    for (number, bytes) in &size {
        let end = if tensor(*number).0.is_output { Some(count) } else { last.get(number).copied() };
        if let Some(end) = end.filter(|end| *end > born[number]) {
            change[born[number]] += i128::from(*bytes);
            change[end] -= i128::from(*bytes);
        }
    }
    let mut now = 0;
    let mut most = 0;
    for more in change {
        now += more;
        most = most.max(now);
    }
    (u64::try_from(most).unwrap(), size.values().sum())
}

fn keeps_to_what_is_alive(graph: &Graph, kinds: &[BufferKind]) {
    let (live, all) = live_and_all(graph, kinds);
    let taken: u64 = buffer_bytes(graph, kinds).unwrap().iter().sum();
    assert!(live <= taken, "{live} B alive at once, {taken} B reserved");
    assert!(taken <= all, "{all} B of tensors, {taken} B reserved");
}

/// A node of a random graph: which earlier tensors it reads, its layout, whether it shows its first source, may overwrite
/// one, is read by the caller, is given from outside; bytes for the operation's own use.
type RandomNode = (Vec<prop::sample::Index>, u64, bool, bool, bool, bool, u64);

fn graph_of(nodes: &[RandomNode]) -> Graph {
    let mut graph = Graph::default();
    let layout = |side: u64| Layout { type_id: 0, dims: [side, 1, 1, 1], strides: [4, 4 * side, 4 * side, 4 * side] };
    let mut numbers: Vec<u32> = Vec::new();
    for (sources, side, shows, may_overwrite, is_output, is_input, extra) in nodes {
        let mut tensor = GraphTensor::new(layout(*side), 4 * side);
        let sources: Vec<u32> =
            if numbers.is_empty() || *is_input { Vec::new() } else { sources.iter().map(|index| *index.get(&numbers)).collect() };
        tensor.is_operation = !sources.is_empty();
        tensor.is_input = sources.is_empty();
        tensor.is_output = *is_output;
        if let (Some(first), true) = (sources.first(), shows) {
            let (base, _) = graph.tensor(*first).unwrap();
            tensor.set_view_of(Some(base.view_of().unwrap_or(*first)));
        } else {
            tensor.may_overwrite = *may_overwrite && tensor.is_operation;
            // No operation that writes over its input needs memory beside its result.
            tensor.set_extra(0, if tensor.may_overwrite { 0 } else { *extra });
        }
        let given = sources.is_empty();
        let number = graph.push(tensor, &sources).unwrap();
        if given {
            graph.push_leaf(number, 0);
        } else {
            graph.push_node(number, 0);
        }
        numbers.push(number);
    }
    graph
}

fn random_nodes() -> impl Strategy<Value = Vec<RandomNode>> {
    let node = (
        prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        prop_oneof![Just(8_u64), Just(64), Just(512), 1_u64..600],
        prop::bool::weighted(0.2),
        any::<bool>(),
        prop::bool::weighted(0.05),
        prop::bool::weighted(0.1),
        prop_oneof![4 => Just(0_u64), 1 => 1_u64..500],
    );
    prop::collection::vec(node, 1..80)
}

const FORMATS: [StorageFormat; 3] = [StorageFormat::F16, StorageFormat::Q8_0, StorageFormat::Q4_0];

fn deployments() -> impl Strategy<Value = Deployment> {
    let backend = prop_oneof![
        Just(Backend::Cpu),
        Just(Backend::Metal),
        prop_oneof![Just(610), Just(750), Just(890)].prop_map(|compute_capability| Backend::Cuda { compute_capability }),
    ];
    let flash = prop_oneof![Just(FlashAttention::Auto), Just(FlashAttention::On), Just(FlashAttention::Off)];
    (1_u64..20_000, 1_u64..6, 1_u64..1024, 0..FORMATS.len(), flash, any::<bool>(), any::<bool>(), backend).prop_map(
        |(context, sequences, ubatch, format, flash_attention, kv_unified, swa_full, backend)| Deployment {
            sequences,
            ubatch,
            kv_type_k: FORMATS[format],
            kv_type_v: FORMATS[format],
            flash_attention,
            kv_unified,
            swa_full,
            ..Deployment::new(ContextRequest::PerSequence(context), backend)
        },
    )
}

fn builds() -> impl Strategy<Value = Build> {
    prop_oneof![Just(Build::V0_5_0), Just(Build::C0c1e57098), Just(Build::B12032)]
}

/// The allocator's kinds of buffers, the device's first.
fn kinds(backend: Backend) -> Vec<BufferKind> {
    let kind = |alignment| BufferKind { alignment, largest: u64::MAX };
    match backend {
        Backend::Cpu => vec![kind(32)],
        Backend::Cuda { .. } => vec![kind(128), kind(32)],
        _ => vec![kind(32), kind(32)],
    }
}

/// Bytes of the compute buffers, devices first, where they are exact.
fn exact(spec: &ModelSpec, deployment: &Deployment, build: Build) -> Option<Vec<u64>> {
    let compute = memory::memory(spec, deployment, build).ok()?.compute;
    let mut out = Vec::new();
    for bounds in compute.devices.iter().chain([&compute.host]) {
        out.push((bounds.low == bounds.high).then_some(bounds.high)?);
    }
    Some(out)
}

/// Bytes that some graph has to hold at once, whatever the allocator makes of it.
fn alive(spec: &ModelSpec, deployment: &Deployment, build: Build) -> Option<u64> {
    let graphs = reserved(spec, None, deployment, build).ok()??;
    graphs.iter().map(|graph| live_and_all(graph, &kinds(deployment.backend())).0).max()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_alive_fits_in_random_graphs(nodes in random_nodes(), alignment in prop_oneof![Just(1_u64), Just(32), Just(128)]) {
        keeps_to_what_is_alive(&graph_of(&nodes), &[BufferKind { alignment, largest: u64::MAX }]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_left_out_change_nothing_and_what_is_alive_fits_in(
        model in 0..MODELS.len(), deployment in deployments(), build in builds(),
    ) {
        let spec = &MODELS[model];
        let Some(few) = exact(spec, &deployment, build) else { return Ok(()) };
        let Some(graphs) = reserved(spec, None, &deployment, build).unwrap() else { return Ok(()) };
        let kinds = kinds(deployment.backend());
        let mut all = vec![0; kinds.len()];
        for graph in &graphs {
            keeps_to_what_is_alive(graph, &kinds);
            for (most, bytes) in all.iter_mut().zip(buffer_bytes(graph, &kinds).unwrap()) {
                *most = bytes.max(*most);
            }
        }
        let few: Vec<u64> = if kinds.len() == 1 { few[few.len() - 1..].to_vec() } else { few };
        prop_assert_eq!(few, all);
    }

    #[test]
    fn longer_contexts_take_no_less(
        model in 0..MODELS.len(), deployment in deployments(), build in builds(), more in 1_u64..20_000,
    ) {
        let spec = &MODELS[model];
        // Compute buffers alone may shrink a little: see the last test.
        let total = |deployment: &Deployment| -> Option<u64> {
            let compute: u64 = exact(spec, deployment, build)?.iter().sum();
            Some(compute + memory::memory(spec, deployment, build).unwrap().context().unwrap())
        };
        let ContextRequest::PerSequence(context) = deployment.context else { return Ok(()) };
        let longer = Deployment { context: ContextRequest::PerSequence(context + more), ..deployment.clone() };
        if let (Some(less), Some(longer)) = (total(&deployment), total(&longer)) {
            prop_assert!(less <= longer, "{} tokens more: {}, {}", more, longer, less);
        }
    }

    /// The allocator takes the first gap that is large enough, and one more layer or sequence may leave it better ones: what it takes is
    /// not monotone, in the engine neither. What it is asked to hold is, and so are caches and states.
    #[test]
    fn more_layers_and_more_sequences_hold_no_less(
        model in 0..MODELS.len(), deployment in deployments(), build in builds(), twice in any::<prop::sample::Index>(),
    ) {
        let spec = &MODELS[model];
        // Other kernels of flash attention, with memory of their own, may take over on Metal: see the next tests.
        prop_assume!(deployment.backend() != Backend::Metal);
        let alive = |spec: &ModelSpec, deployment: &Deployment| alive(spec, deployment, build);
        let context = |spec: &ModelSpec, deployment: &Deployment| -> Option<u64> {
            memory::memory(spec, deployment, build).ok()?.context().ok()
        };
        // A layer that comes twice: all of its kind, and what follows, stay as they are.
        let mut deeper = spec.clone();
        let twice = twice.index(spec.layers.len());
        deeper.layers.insert(twice, spec.layers[twice].clone());
        for of in [&alive as &dyn Fn(&ModelSpec, &Deployment) -> Option<u64>, &context] {
            if let (Some(less), Some(more)) = (of(spec, &deployment), of(&deeper, &deployment)) {
                prop_assert!(less <= more, "layer {} twice: {}, once: {}", twice, more, less);
            }
        }
        // A micro-batch is rounded up to a multiple of the sequences, so that one more sequence may mean fewer tokens (33 for
        // 4 sequences are 36, for 5 they are 35): compared where nothing is rounded.
        let ContextRequest::PerSequence(tokens) = deployment.context else { return Ok(()) };
        let tokens = ContextRequest::PerSequence(tokens.next_multiple_of(1024));
        let rounded = Deployment { ubatch: deployment.ubatch.next_multiple_of(60), context: tokens, ..deployment };
        let wider = Deployment { sequences: rounded.sequences + 1, ..rounded.clone() };
        for of in [&alive as &dyn Fn(&ModelSpec, &Deployment) -> Option<u64>, &context] {
            if let (Some(less), Some(more)) = (of(spec, &rounded), of(spec, &wider)) {
                prop_assert!(less <= more, "{} sequences: {}, one more: {}", rounded.sequences, less, more);
            }
        }
    }

    /// On Metal another kernel of flash attention may take over with more tokens: see the next test.
    #[test]
    fn larger_micro_batches_hold_no_less(
        model in 0..MODELS.len(), deployment in deployments(), build in builds(), more in 1_u64..1024,
    ) {
        prop_assume!(deployment.backend() != Backend::Metal);
        let spec = &MODELS[model];
        let larger = Deployment { ubatch: deployment.ubatch + more, ..deployment.clone() };
        if let (Some(less), Some(larger)) = (alive(spec, &deployment, build), alive(spec, &larger, build)) {
            prop_assert!(less <= larger, "{} tokens more: {}, {}", more, larger, less);
        }
    }
}

#[test]
fn metal_takes_less_for_more_tokens_as_the_engine_does() {
    let spec = MODELS.iter().find(|spec| spec.layers.len() == 64 && spec.embedding.n_vocab == 248_320).expect("Qwen3.5-27B");
    let at = |ubatch| {
        let deployment = Deployment {
            sequences: 3,
            ubatch,
            flash_attention: FlashAttention::On,
            ..Deployment::new(ContextRequest::Total(84), Backend::Metal)
        };
        exact(spec, &deployment, Build::C0c1e57098).unwrap()
    };
    // What the engine reserves: with 16 tokens a sequence flash attention splits the cache and keeps partial results.
    assert_eq!(at(46), [491_847_616, 1_992_448]);
    assert_eq!(at(82), [102_685_952, 3_486_752]);
}

#[test]
fn compute_buffers_shrink_with_a_second_sequence_as_the_engines_do() {
    let spec = MODELS.iter().find(|spec| spec.layers.len() == 44 && spec.architecture.contains("alcon")).expect("Falcon-H1-7B");
    let at = |sequences| {
        let deployment = Deployment {
            sequences,
            ubatch: 540,
            kv_type_k: StorageFormat::Q8_0,
            kv_type_v: StorageFormat::Q8_0,
            ..Deployment::new(ContextRequest::PerSequence(4096), Backend::Cuda { compute_capability: 610 })
        };
        exact(spec, &deployment, Build::C0c1e57098).unwrap()
    };
    // What the engine reserves.
    assert_eq!(at(1), [107_247_104, 17_789_696]);
    assert_eq!(at(2), [100_731_776, 17_789_696]);
}

/// Every model of the fixtures: the graph of a few layers needs what the graph of all layers needs.
#[test]
fn few_layers_stand_for_all_in_every_model() {
    let mut compared = 0;
    let mut specs: Vec<(String, ModelSpec)> = Vec::new();
    for row in support::rows("truth/llama.cpp/layers.jsonl.gz") {
        specs.push((row["model"].as_str().unwrap_or_default().to_owned(), support::specs::of(&row)));
    }
    for (name, spec) in &specs {
        for backend in [Backend::Cpu, Backend::Cuda { compute_capability: 890 }, Backend::Metal] {
            for flash_attention in [FlashAttention::On, FlashAttention::Off] {
                let deployment =
                    Deployment { sequences: 2, flash_attention, ..Deployment::new(ContextRequest::PerSequence(3000), backend) };
                let Some(few) = exact(spec, &deployment, Build::V0_5_0) else { continue };
                let Some(graphs) = reserved(spec, None, &deployment, Build::V0_5_0).unwrap() else { continue };
                let kinds = kinds(backend);
                let mut all = vec![0; kinds.len()];
                for graph in &graphs {
                    for (most, bytes) in all.iter_mut().zip(buffer_bytes(graph, &kinds).unwrap()) {
                        *most = bytes.max(*most);
                    }
                }
                assert_eq!(few[few.len() - kinds.len()..], all, "{name} on {backend:?}, {flash_attention:?}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 100, "{compared} settings compared");
}
