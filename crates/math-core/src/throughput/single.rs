//! Programs for one machine: llama.cpp and its relatives, MLX. One step of decoding, and a prompt.

use super::setup::{Setup, class_name, driver_name};
use super::terms::{Built, Group, Recorder};
use super::work::Work;
use crate::device::Driver;

/// The names that the coefficients of a prediction share.
struct Names<'a> {
    runtime: &'static str,
    driver: &'static str,
    arch: &'a str,
    class: &'static str,
    device: &'a str,
    family: &'static str,
    mechanism: &'static str,
    era: &'static str,
}

impl<'a> Names<'a> {
    fn of(work: &Work, setup: &'a Setup) -> Self {
        Self {
            runtime: setup.runtime.name(),
            driver: driver_name(setup.driver),
            arch: &setup.device.architecture,
            class: class_name(setup.device.class),
            device: &setup.device.name,
            family: work.family.name(),
            mechanism: work.mechanism.name(),
            era: setup.era.name(),
        }
    }

    fn scale_all(&self, built: &mut Built<'_>, what: &str, devices: f64) {
        built.scale(&[what, "device", self.driver, self.device]);
        built.scale(&[what, "engine", self.runtime, self.driver, self.era]);
        built.scale(&[what, "arch", self.runtime, self.driver, self.arch]);
        built.scale(&[what, "arch", self.runtime, self.arch, self.class]);
        if devices > 1.0 {
            built.scale(&[what, "several", self.driver]);
        }
    }
}

/// The share of the weights that does not fit beside what one sequence needs, and is read from the host instead.
fn overflow(work: &Work, setup: &Setup, tokens: f64) -> f64 {
    if setup.driver == Driver::Cpu || setup.on_host.is_some() {
        return 0.0;
    }
    let weights = work.all_bytes();
    let wanted = weights + work.cache_bytes(tokens) + 0.5e9;
    ((wanted - setup.device.usable * setup.devices) / weights.max(1.0)).clamp(0.0, 1.0)
}

/// The shares of experts and of the rest that stay on the host.
fn shares(setup: &Setup) -> (f64, f64) {
    setup.on_host.as_ref().map_or((0.0, 0.0), |there| (there.experts.clamp(0.0, 1.0), there.rest.clamp(0.0, 1.0)))
}

/// What a kernel takes beside the bytes it moves, before calibration.
const KERNEL: f64 = 4e-6;

/// What a host reads and moves in a second where nothing is known of it: two channels of DDR5, and a PCIe link's share.
const HOST_READS: f64 = 50e9;
const HOST_MOVES: f64 = 20e9;

/// Tokens from which on llama.cpp moves weights of the host to the device for a product.
const MOVED_FROM: f64 = 32.0;

/// One step that gives each of `sequences` sequences a token, after `depth` tokens each.
///
/// Weights: everything every token passes, and the experts that the step reaches. Attention: what lies in each window.
#[must_use]
pub fn decode<'a>(work: &Work, setup: &Setup, sequences: f64, depth: f64, recorder: Option<&'a mut Recorder>) -> Built<'a> {
    let mut built = Built::new(recorder);
    let names = Names::of(work, setup);
    let (on_host, rest_on_host) = shares(setup);
    let reached = work.expert_bytes * work.coverage(sequences);
    let bandwidth = setup.device.bandwidth;

    let read = work.dense_bytes * (1.0 - rest_on_host) + reached * (1.0 - on_host);
    built.add(
        Group::Overlapped,
        "decode-weights",
        read / bandwidth,
        &[
            &["backend", names.driver],
            &["engine", names.runtime, names.driver],
            &["arch", names.driver, names.arch],
            &["quant", names.driver, names.family],
            &["quant", names.driver, names.arch, names.family],
        ],
    );
    let peak = setup.device.local_peak(setup.driver, work.family);
    built.add(
        Group::Overlapped,
        "decode-linear",
        2.0 * (work.dense_params * (1.0 - rest_on_host) + work.active_expert_params() * (1.0 - on_host)) * sequences / peak,
        &[&["backend", names.driver], &["engine", names.runtime, names.driver]],
    );
    let flash = if setup.without_flash { "off" } else { "on" };
    let cache_on_host = setup.on_host.as_ref().map_or(0.0, |there| there.cache.clamp(0.0, 1.0));
    if setup.driver == Driver::Cpu {
        // Each head of queries goes through its keys and values for itself (ggml-cpu/ops.cpp `flash_attn_ext_f16_one_chunk`): operations
        // count, not bytes.
        built.add(
            Group::Added,
            "decode-attention-cpu",
            work.token_attention_operations(depth) * sequences / setup.device.local_peak(setup.driver, super::Family::Half),
            &[&["engine", names.runtime], &["flash", flash]],
        );
    } else {
        built.add(
            Group::Added,
            "decode-attention",
            work.cache_bytes(depth) * (1.0 - cache_on_host) * sequences / bandwidth,
            &[&["backend", names.driver], &["engine", names.runtime], &["flash", flash], &["head", work.head_kind()]],
        );
    }
    if let Some(there) = &setup.on_host {
        built.add(
            Group::Added,
            "host-weights",
            (work.dense_bytes * rest_on_host + work.cache_bytes(depth) * sequences * cache_on_host + reached * on_host)
                / there.host.bandwidth,
            &[&["engine", names.runtime]],
        );
        built.add(Group::Added, "host-hop", there.layers * 1.7e-4, &[&["engine", names.runtime]]);
    }
    let overflow = overflow(work, setup, depth);
    built.add(
        Group::Added,
        "decode-overflow",
        (work.dense_bytes + reached) * overflow / HOST_READS,
        &[&["engine", names.runtime]],
    );
    built.add(
        Group::Added,
        "decode-launch",
        work.kernels * KERNEL,
        &[
            &["backend", names.driver],
            &["engine", names.runtime, names.driver],
            &["arch", names.driver, names.arch],
            &["mechanism", names.mechanism],
        ],
    );
    names.scale_all(&mut built, "decode", setup.devices);
    built
}

/// A prompt of `tokens` tokens after `depth` earlier ones, in micro-batches of `ubatch`.
#[must_use]
pub fn prefill<'a>(
    work: &Work,
    setup: &Setup,
    tokens: f64,
    depth: f64,
    ubatch: f64,
    recorder: Option<&'a mut Recorder>,
) -> Built<'a> {
    let mut built = Built::new(recorder);
    let names = Names::of(work, setup);
    let (on_host, rest_on_host) = shares(setup);
    let batches = libm::ceil(tokens / ubatch.max(1.0)).max(1.0);
    let at_once = tokens.min(ubatch).max(1.0);
    let reached = work.expert_bytes * work.coverage(at_once);
    let peak = setup.device.local_peak(setup.driver, work.family);

    let (rest_there, experts_there) = if at_once >= MOVED_FROM { (0.0, 0.0) } else { (rest_on_host, on_host) };
    let (dense, experts) = work.multiplied(at_once);
    built.add(
        Group::Added,
        "prefill-linear",
        2.0 * dense * (1.0 - rest_there) * (tokens / at_once) / peak,
        &[
            &["backend", names.driver],
            &["engine", names.runtime, names.driver],
            &["arch", names.driver, names.arch],
            &["quant", names.driver, names.family],
            &["quant", names.driver, names.arch, names.family],
            &["quant", names.runtime, names.driver, names.family],
        ],
    );
    built.add(
        Group::Added,
        "prefill-experts",
        2.0 * experts * (1.0 - experts_there) * (tokens / at_once) / peak,
        &[
            &["backend", names.driver],
            &["engine", names.runtime, names.driver],
            &["arch", names.driver, names.arch],
            &["quant", names.driver, names.family],
        ],
    );
    // Every micro-batch reads every weight it reaches.
    let stream = (work.dense_bytes * (1.0 - rest_on_host) + reached * (1.0 - on_host)) * batches;
    built.add(Group::Added, "prefill-weights", stream / setup.device.bandwidth, &[&["backend", names.driver]]);
    let flash = if setup.without_flash { "off" } else { "on" };
    built.add(
        Group::Added,
        "prefill-attention",
        work.attention_operations(tokens, depth) / setup.device.attention_peak(setup.driver),
        &[
            &["backend", names.driver],
            &["engine", names.runtime, names.driver],
            &["flash", flash, names.driver],
            &["head", work.head_kind()],
            &["head", work.head_kind(), names.driver],
        ],
    );
    if let Some(there) = &setup.on_host {
        // From 32 tokens on the weights are moved to the device and multiplied there (`ggml_backend_cuda_device_offload_op` and its like),
        // fewer are computed where the weights lie.
        let pace = if at_once >= MOVED_FROM { setup.device.link } else { there.host.bandwidth };
        built.add(
            Group::Added,
            "prefill-host-weights",
            (work.dense_bytes * rest_on_host + reached * on_host) * batches / pace,
            &[&["engine", names.runtime]],
        );
    }
    let overflow = overflow(work, setup, depth + tokens);
    built.add(
        Group::Added,
        "prefill-overflow",
        (work.dense_bytes + reached) * batches * overflow / HOST_MOVES,
        &[&["engine", names.runtime]],
    );
    built.add(
        Group::Added,
        "prefill-launch",
        work.kernels * KERNEL * batches,
        &[&["backend", names.driver], &["engine", names.runtime, names.driver]],
    );
    names.scale_all(&mut built, "prefill", setup.devices);
    built
}

/// The most tokens per second that reading the weights once a step allows, on the device and then on the host: a measured row above it
/// is wrong.
#[must_use]
pub fn decode_bound(work: &Work, setup: &Setup, sequences: f64) -> f64 {
    let (on_host, rest_on_host) = shares(setup);
    let reached = work.expert_bytes * work.coverage(sequences);
    let read = work.dense_bytes * (1.0 - rest_on_host) + reached * (1.0 - on_host);
    let there =
        setup.on_host.as_ref().map_or(0.0, |there| (work.dense_bytes * rest_on_host + reached * on_host) / there.host.bandwidth);
    sequences / (read / (setup.device.bandwidth * setup.devices) + there).max(1e-12)
}

/// The most tokens per second of a prompt that the device's fastest unit allows.
#[must_use]
pub fn prefill_bound(work: &Work, setup: &Setup) -> f64 {
    let device = &setup.device;
    let fastest = device.half.max(device.int8).max(device.float8).max(device.float4);
    let (on_host, rest_on_host) = shares(setup);
    fastest * setup.devices
        / (2.0 * (work.dense_params * (1.0 - rest_on_host) + work.active_expert_params() * (1.0 - on_host))).max(1.0)
}
