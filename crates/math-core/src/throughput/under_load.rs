//! Servers: vLLM, SGLang, TensorRT-LLM. A step of many sequences on several devices, and time per output token under load.

use super::setup::{Parallel, Setup};
use super::terms::{Built, Group, Recorder};
use super::work::{Mechanism, Work};

/// Requests as a load generator keeps them coming: always `concurrency` of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadedRequest {
    /// Requests in flight.
    pub concurrency: f64,
    /// Tokens of each prompt.
    pub prompt: f64,
    /// Tokens of each answer.
    pub output: f64,
}

struct Names<'a> {
    runtime: &'static str,
    isa: &'a str,
    device: &'a str,
    family: &'static str,
    mechanism: &'static str,
    kind: &'static str,
}

impl<'a> Names<'a> {
    fn of(work: &Work, setup: &'a Setup) -> Self {
        Self {
            runtime: setup.runtime.name(),
            isa: &setup.device.isa,
            device: &setup.device.name,
            family: work.family.name(),
            mechanism: work.mechanism.name(),
            kind: if work.is_moe() { "experts" } else { "dense" },
        }
    }
}

/// Attention of more than eight devices is copied, not divided further: each copy has its own requests.
fn bounded(parallel: Parallel) -> (Parallel, bool) {
    let devices = parallel.tensor * parallel.data;
    if devices <= 8.0 || parallel.tensor <= 8.0 {
        return (parallel, false);
    }
    (Parallel { tensor: 8.0, data: parallel.data * parallel.tensor / 8.0, ..parallel }, true)
}

const LINK: f64 = 200e9;

fn decode_terms(built: &mut Built<'_>, work: &Work, setup: &Setup, parallel: Parallel, request: &LoadedRequest, wide: bool) {
    let names = Names::of(work, setup);
    let bandwidth = setup.device.bandwidth;
    let peak = setup.device.server_peak(work.family);
    let devices = parallel.tensor * parallel.data;
    let own = request.concurrency / parallel.data;
    let expert_devices = devices.min(parallel.expert * parallel.expert_tensor).max(1.0);
    let depth = request.prompt + request.output / 2.0;
    let read = work.dense_bytes / parallel.tensor
        + work.expert_bytes * work.coverage(request.concurrency) / if wide { devices } else { expert_devices };
    built.add(
        Group::Overlapped,
        "step-weights",
        read / bandwidth,
        &[
            &["engine", names.runtime],
            &["arch", names.isa],
            &["arch", names.runtime, names.isa],
            &["quant", names.family],
            &["quant", names.runtime, names.family],
            &["arch", names.runtime, names.isa, names.family],
            &["device", names.device],
            &["kind", names.kind],
            &["kind", names.runtime, names.kind],
        ],
    );
    let operations = 2.0
        * (work.dense_params * own / parallel.tensor
            + work.active_expert_params() * request.concurrency / if wide { devices } else { expert_devices });
    built.add(
        Group::Overlapped,
        "step-linear",
        operations / peak,
        &[
            &["engine", names.runtime],
            &["arch", names.isa],
            &["arch", names.runtime, names.isa],
            &["quant", names.family],
            &["quant", names.runtime, names.family],
            &["device", names.device],
            &["kind", names.kind],
            &["kind", names.runtime, names.kind],
        ],
    );
    // A latent is one head for all: every device holds it whole.
    let shards = if matches!(work.mechanism, Mechanism::Latent | Mechanism::Compressed) {
        1.0
    } else {
        parallel.tensor.min(work.kv_heads).max(1.0)
    };
    built.add(
        Group::Added,
        "step-attention",
        work.cache_bytes(depth) * own / shards / bandwidth,
        &[
            &["engine", names.runtime],
            &["arch", names.isa],
            &["mechanism", names.mechanism],
            &["quant", names.family],
            &["device", names.device],
        ],
    );
    if work.mechanism == Mechanism::Latent {
        built.add(
            Group::Added,
            "step-latent",
            work.attention_operations(1.0, depth) * own / parallel.tensor / setup.device.brain,
            &[&["engine", names.runtime], &["arch", names.isa], &["arch", names.runtime, names.isa]],
        );
    }
    built.add(
        Group::Added,
        "step-launch",
        work.layers * 50e-6,
        &[
            &["engine", names.runtime],
            &["arch", names.isa],
            &["arch", names.runtime, names.isa],
            &["mechanism", names.mechanism],
            &["kind", names.kind],
            &["kind", names.runtime, names.kind],
            &["quant", names.family],
            &["device", names.device],
        ],
    );
    if parallel.tensor > 1.0 {
        built.add(
            Group::Added,
            "step-reduce-latency",
            2.0 * work.layers * 6e-6 * libm::log2(parallel.tensor),
            &[&["engine", names.runtime], &["arch", names.isa], &["arch", names.runtime, names.isa]],
        );
        built.add(
            Group::Added,
            "step-reduce-bytes",
            2.0 * work.layers * own * work.width * 2.0 * (parallel.tensor - 1.0) / parallel.tensor / LINK,
            &[&["engine", names.runtime], &["arch", names.isa]],
        );
    }
    if parallel.expert > 1.0 || wide {
        let moved = work.layers * request.concurrency / devices * work.experts_per_token * work.width * 2.0;
        built.add(
            Group::Added,
            "step-exchange",
            moved / (LINK / 2.0) + work.layers * 20e-6,
            &[&["engine", names.runtime], &["arch", names.isa]],
        );
    }
    built.add(Group::Added, "step-sampling", own * 20e-6, &[&["engine", names.runtime], &["device", names.device]]);
}

fn prefill_terms(built: &mut Built<'_>, work: &Work, setup: &Setup, parallel: Parallel, tokens: f64, depth: f64, times: f64) {
    let names = Names::of(work, setup);
    let devices = parallel.tensor * parallel.data;
    let operations = 2.0 * work.active_params() * tokens + work.attention_operations(tokens, depth);
    built.add(
        Group::Added,
        "prompt-linear",
        times * operations / (setup.device.server_peak(work.family) * devices),
        &[
            &["engine", names.runtime],
            &["arch", names.isa],
            &["arch", names.runtime, names.isa],
            &["quant", names.family],
            &["quant", names.runtime, names.family],
            &["kind", names.kind],
            &["kind", names.runtime, names.kind],
            &["device", names.device],
            &["mechanism", names.mechanism],
        ],
    );
    if parallel.tensor > 1.0 {
        built.add(
            Group::Added,
            "prompt-reduce",
            times * 2.0 * work.layers * tokens * work.width * 2.0 / LINK,
            &[&["engine", names.runtime], &["arch", names.isa]],
        );
    }
}

fn scale_all(built: &mut Built<'_>, work: &Work, setup: &Setup, parallel: Parallel, wide: bool) {
    let names = Names::of(work, setup);
    let devices = libm::round(libm::log2((parallel.tensor * parallel.data).max(1.0)));
    let power = ["1", "2", "4", "8", "16", "32", "64"];
    let size = power.iter().zip(0_u8..).find(|(_, exponent)| f64::from(*exponent) >= devices).map_or("many", |(name, _)| name);
    built.scale(&["load", "split", if wide { "wide" } else { "one" }]);
    built.scale(&["load", "devices", names.runtime, size]);
}

/// Time per output token, `(end to end - time to first token) / (output tokens - 1)`, while `concurrency` requests are kept in
/// flight: a decode step, and the share of the other requests' prompts that falls between two tokens.
#[must_use]
pub fn time_per_output_token<'a>(
    work: &Work,
    setup: &Setup,
    parallel: Parallel,
    request: &LoadedRequest,
    recorder: Option<&'a mut Recorder>,
) -> Built<'a> {
    let mut built = Built::new(recorder);
    let (parallel, wide) = bounded(parallel);
    decode_terms(&mut built, work, setup, parallel, request, wide);
    if !wide && request.concurrency > 1.0 {
        let times = (request.concurrency - 1.0) / request.output.max(1.0);
        prefill_terms(&mut built, work, setup, parallel, request.prompt, 0.0, times);
    }
    scale_all(&mut built, work, setup, parallel, wide);
    built
}

/// One step that gives `sequences` sequences a token each, `depth` tokens deep.
#[must_use]
pub fn decode_step(work: &Work, setup: &Setup, parallel: Parallel, sequences: f64, depth: f64) -> Built<'static> {
    let mut built = Built::new(None);
    let (parallel, wide) = bounded(parallel);
    let request = LoadedRequest { concurrency: sequences, prompt: depth, output: 0.0 };
    decode_terms(&mut built, work, setup, parallel, &request, wide);
    scale_all(&mut built, work, setup, parallel, wide);
    built
}

/// What `tokens` tokens of a prompt after `depth` earlier ones add to a step.
#[must_use]
pub fn prefill_step(work: &Work, setup: &Setup, parallel: Parallel, tokens: f64, depth: f64) -> Built<'static> {
    let mut built = Built::new(None);
    let (parallel, wide) = bounded(parallel);
    prefill_terms(&mut built, work, setup, parallel, tokens, depth, 1.0);
    scale_all(&mut built, work, setup, parallel, wide);
    built
}
