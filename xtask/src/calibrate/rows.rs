//! The measurements as predictions to be scaled: each row's terms, and what was measured.

use std::collections::BTreeMap;

use plimsoll::math::device::{Class, Device, Driver};
use plimsoll::math::throughput::setup::OnHost;
use plimsoll::math::throughput::{
    Built, Era, Facts, Family, LoadedRequest, Metric, Parallel, Recorder, Runtime, Setup, Speeds, Term, decode, decode_bound,
    prefill, prefill_bound, time_per_output_token,
};

use crate::csv::{Record, number, records, text};
use crate::truth::{fixture, unzipped};

/// Bits of a weight, by what the sources call a quantization.
const BITS: &[(&str, f64)] = &[
    ("f16", 16.0),
    ("bf16", 16.0),
    ("fp16", 16.0),
    ("q8_0", 8.5),
    ("8bit", 8.5),
    ("mlx-8bit", 8.5),
    ("ud-q8_k_xl", 9.2),
    ("q8_k_xl", 9.2),
    ("int8", 8.1),
    ("fp8", 8.1),
    ("ud-q6_k_xl", 7.0),
    ("q6_k", 6.56),
    ("ud-q6_k", 6.56),
    ("mix-iq6_k", 6.6),
    ("6bit", 6.5),
    ("q5_k_m", 5.69),
    ("q5_k_s", 5.52),
    ("5bit", 5.5),
    ("q5_0", 5.5),
    ("q4_k_m", 4.85),
    ("ud-q4_k_m", 4.85),
    ("q4_k_p", 4.85),
    ("ud-q4_k_xl", 4.75),
    ("q4_k_xl", 4.75),
    ("q4_k_s", 4.58),
    ("q4_0", 4.55),
    ("iq4_nl", 4.5),
    ("4bit", 4.5),
    ("nvfp4", 4.5),
    ("fp4", 4.5),
    ("mxfp4", 4.35),
    ("iq4_xs", 4.3),
    ("gptq", 4.25),
    ("gptq4", 4.25),
    ("int4", 4.25),
    ("q3_k_m", 3.9),
    ("q3_k_xl", 4.0),
    ("q3_k_s", 3.5),
    ("ud-q3_k_xl", 3.9),
    ("ud-iq3_xxs", 3.2),
    ("iq3_xxs", 3.1),
    ("q2_k", 3.0),
    ("q2_k_r4", 3.0),
    ("q2_k_s", 2.8),
    ("ud-q2_k_xl", 2.8),
    ("iq2_xs_r4", 2.4),
    ("ud-iq2_xxs", 2.4),
    ("iq1_m", 1.9),
];

fn family(quant: &str) -> Family {
    match quant {
        "f16" | "bf16" | "fp16" => Family::Half,
        "fp8" => Family::Float8,
        name if name.contains("fp4") => Family::Float4,
        name if name.ends_with("bit") || name.starts_with("mlx") || name.starts_with("gptq") || name.starts_with("int") => {
            Family::Groups
        }
        "q4_0" | "iq4_nl" | "q5_0" => Family::Plain,
        name if name.contains("iq") => Family::Codebook,
        name if name.contains("q8") => Family::Eight,
        _ => Family::Nested,
    }
}

/// Bytes of a weight in blocks of 8 bits with a scale (q8_0).
const PRECISE: f64 = 8.5 / 8.0;

/// Files of mixtures whose name speaks of the experts alone. MXFP4: `llama-quantize` stores the rest as Q8_0 for that type
/// (`LLAMA_FTYPE_MOSTLY_MXFP4_MOE`), and gpt-oss was published with everything else wider. Dynamic quantizations below 4 bits: their maker
/// says that layers which cannot bear that few bits are kept in 8 or 16 (news.ycombinator.com/item?id=47795301; the choice is made per model,
/// docs.unsloth.ai/basics/unsloth-dynamic-v2.0-ggufs). What file says of which tensor is in its header only: this stands in for it.
fn keeps_the_rest_precise(quant: &str, bits: f64) -> bool {
    quant == "mxfp4" || (quant.starts_with("ud-") && bits < 4.0)
}

/// Threads of rows that say they used a few.
const FEW_THREADS: f64 = 4.0;

/// Cores of processors whose name does not say them, with the source.
const CORES: &[(&str, f64)] = &[
    // techpowerup.com/review/amd-ryzen-9-7950x
    ("Ryzen 9 7950X", 16.0),
];

/// Cores of a processor: fast and slow ones as its name counts them (8P+4E), or as [`CORES`] lists them.
fn cores(name: &str) -> Option<f64> {
    let counted = || {
        let (fast, slow) = name.split_once("P+")?;
        let fast = fast.rsplit(|character: char| !character.is_ascii_digit()).next()?.parse::<f64>().ok()?;
        Some(fast + slow.split_once('E')?.0.parse::<f64>().ok()?)
    };
    let listed = || CORES.iter().find(|(there, _)| name.contains(there)).map(|(_, cores)| *cores);
    counted().or_else(listed)
}

/// One measurement and its prediction.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) metric: Metric,
    pub(crate) group: String,
    pub(crate) engine: &'static str,
    pub(crate) stratum: &'static str,
    pub(crate) class: &'static str,
    pub(crate) moe: bool,
    /// Quality A or B: reported; C helps to fit.
    pub(crate) reported: bool,
    pub(crate) measured_seconds: f64,
    pub(crate) terms: Vec<Term>,
    pub(crate) common: Vec<u32>,
}

/// The rows, the names of the coefficients, and rows that break physics.
#[derive(Debug, Default)]
pub(crate) struct Data {
    pub(crate) rows: Vec<Row>,
    pub(crate) names: Recorder,
    pub(crate) impossible: Vec<String>,
    pub(crate) left_out: BTreeMap<&'static str, usize>,
}

/// Reads all rows.
pub(crate) fn load() -> Result<Data, String> {
    let bytes = unzipped("bench/measured.csv.gz")?.ok_or("bench/measured.csv.gz: missing")?;
    from_text(&String::from_utf8(bytes).map_err(|error| format!("bench/measured.csv.gz: {error}"))?)
}

/// Reads rows of a text in the columns of `fixtures/bench/measured.csv.gz`.
pub(crate) fn from_text(measured: &str) -> Result<Data, String> {
    let models = std::fs::read_to_string(fixture("bench/models.csv")).map_err(|error| format!("bench/models.csv: {error}"))?;
    let models: BTreeMap<String, Facts> = records(&models)?
        .iter()
        .map(|record| Ok((text(record, "model_key").to_owned(), facts(record)?)))
        .collect::<Result<_, String>>()?;
    let mut devices = BTreeMap::new();
    let mut data = Data::default();
    let measured = records(measured)?;
    // What one source says a model's file weighs holds for the others.
    let mut stated: BTreeMap<(String, String), f64> = BTreeMap::new();
    for record in &measured {
        if let Some(bytes) = number(record, "weight_bytes")?.filter(|bytes| *bytes > 0.0) {
            let key = (text(record, "model_key").to_owned(), text(record, "quant").to_ascii_lowercase());
            stated.entry(key).or_insert(bytes);
        }
    }
    for (index, record) in measured.iter().enumerate() {
        match row(record, &models, &stated, &mut devices, &mut data)
            .map_err(|error| format!("measured.csv, row {}: {error}", index + 1))?
        {
            Ok(row) => data.rows.push(row),
            Err(reason) => *data.left_out.entry(reason).or_default() += 1,
        }
    }
    Ok(data)
}

fn facts(record: &Record) -> Result<Facts, String> {
    let get = |column: &str| -> Result<f64, String> { Ok(number(record, column)?.unwrap_or(0.0)) };
    Ok(Facts {
        params: get("params_total_b")? * 1e9,
        active_params: get("params_active_b")? * 1e9,
        input_embedding: get("input_embedding_b_if_untied")? * 1e9,
        layers: get("n_layers")?,
        kernels: get("n_kernels")?,
        full_layers: get("n_full_attn_layers")?,
        window_layers: get("n_swa_layers")?,
        window: get("swa_window")?,
        kv_heads: get("kv_heads_full")?,
        head_dim: get("head_dim_full")?,
        window_kv_heads: get("kv_heads_swa")?,
        window_head_dim: get("head_dim_swa")?,
        latent: get("mla_latent_dim")?,
        experts: get("n_experts")?,
        experts_per_token: get("top_k")?,
        heads: get("n_heads")?,
        expert_params: get("routed_expert_params_b")? * 1e9,
    })
}

type Speedy = BTreeMap<String, Option<Speeds>>;

fn speeds(name: &str, known: &mut Speedy) -> Option<Speeds> {
    known.entry(name.to_owned()).or_insert_with(|| Device::named(name).ok().and_then(|device| Speeds::of(&device))).clone()
}

fn runtime(engine: &str) -> Option<Runtime> {
    match engine {
        "llamacpp" => Some(Runtime::LlamaCpp),
        "mlx-lm" => Some(Runtime::Mlx),
        "trtllm" => Some(Runtime::TensorRtLlm),
        name => Runtime::ALL.into_iter().find(|runtime| runtime.name() == name),
    }
}

fn driver(record: &Record, device: &Speeds) -> Driver {
    match text(record, "backend").split('+').next().unwrap_or("").to_ascii_lowercase().as_str() {
        "cuda" => Driver::Cuda,
        "metal" => Driver::Metal,
        "rocm" => Driver::Rocm,
        "vulkan" => Driver::Vulkan,
        "cpu" => Driver::Cpu,
        _ => device.driver,
    }
}

/// The host of a row with experts on the processor, and how many layers have theirs there.
fn host_of(record: &Record, facts: &Facts, known: &mut Speedy) -> Option<OnHost> {
    let note = text(record, "note");
    let (_, rest) = note.split_once("host CPU ")?;
    let name = rest.split(';').next()?.trim();
    let host = speeds(&format!("CPU {name}"), known)?;
    let moe_layers = if facts.latent > 0.0 { facts.layers - 3.0 } else { facts.layers };
    let layers = note
        .split_once("layers ")
        .and_then(|(_, rest)| rest.split_once(".."))
        .and_then(|(first, rest)| {
            let last: String = rest.chars().take_while(char::is_ascii_digit).collect();
            Some(last.parse::<f64>().ok()? - first.parse::<f64>().ok()? + 1.0)
        })
        .unwrap_or(moe_layers);
    Some(OnHost { host, experts: (layers / moe_layers).min(1.0), rest: 0.0, cache: 0.0, layers })
}

const fn class(class: Class) -> &'static str {
    match class {
        Class::Datacenter => "datacenter",
        Class::Soc => "unified memory",
        Class::Cpu => "processor",
        Class::Laptop => "laptop",
        Class::Jetson => "jetson",
        _ => "board",
    }
}

fn row(
    record: &Record,
    models: &BTreeMap<String, Facts>,
    stated: &BTreeMap<(String, String), f64>,
    known: &mut Speedy,
    data: &mut Data,
) -> Result<Result<Row, &'static str>, String> {
    let get = |column: &str| -> Result<f64, String> { Ok(number(record, column)?.unwrap_or(0.0)) };
    let quality = text(record, "quality");
    if quality == "X" {
        return Ok(Err("quality X"));
    }
    let metric = match text(record, "metric") {
        "tg_tok_s" => Metric::Decode,
        "pp_tok_s" => Metric::Prefill,
        "tpot_ms" => Metric::TimePerOutputToken,
        _ => return Ok(Err("another metric")),
    };
    let Some(runtime) = runtime(text(record, "engine")) else { return Ok(Err("an engine that is not modelled")) };
    let serves = matches!(runtime, Runtime::Vllm | Runtime::Sglang | Runtime::TensorRtLlm);
    if serves != (metric == Metric::TimePerOutputToken) {
        return Ok(Err("a server's rate without its load"));
    }
    if text(record, "source").contains("disagg") {
        return Ok(Err("prompts and answers on devices of their own"));
    }
    if text(record, "split") == "rpc" || text(record, "source") == "mac-llm-bench" {
        return Ok(Err("a network between devices, or a machine that throttles"));
    }
    let Some(facts) = models.get(text(record, "model_key")) else { return Ok(Err("a model without facts")) };
    let Some(device) = speeds(text(record, "device"), known) else { return Ok(Err("a device without a row")) };
    let on_host = text(record, "offload");
    if !on_host.is_empty() && quality == "C" {
        return Ok(Err("offload of unknown extent"));
    }
    let quant = text(record, "quant").to_ascii_lowercase();
    let bits = BITS.iter().find(|(name, _)| *name == quant).map_or(4.85, |(_, bits)| *bits);
    let key = (text(record, "model_key").to_owned(), quant.clone());
    let stated =
        number(record, "weight_bytes")?.filter(|bytes| *bytes > 0.0).or_else(|| stated.get(&key).copied()).unwrap_or(0.0);
    let bytes_per_param = if serves {
        match quant.as_str() {
            "fp8" => 1.0,
            "fp4" => 0.5625,
            "int4" => 0.53,
            _ => 2.0,
        }
    } else if stated > 0.0 {
        stated / facts.params
    } else {
        bits / 8.0
    };
    // Servers store keys and values in 8 bits beside weights of 8 and fewer.
    let kv_bytes = if serves && matches!(quant.as_str(), "fp8" | "fp4") { 1.0 } else { 2.0 };
    let mut work = facts.work(bytes_per_param, kv_bytes, family(&quant));
    if keeps_the_rest_precise(&quant, bits) && facts.experts > 0.0 && !serves {
        // Only the routed experts are stored as the file's name says: what every token passes keeps 8 bits, and the file weighs the same.
        let rest = (facts.params - facts.expert_params).max(0.0);
        let precise = PRECISE.max(bytes_per_param);
        let experts = (facts.params * bytes_per_param - rest * precise).max(facts.expert_params * bytes_per_param * 0.5);
        work.dense_bytes *= precise / bytes_per_param;
        work.embedding_bytes *= precise / bytes_per_param;
        work.expert_bytes = experts;
    }
    let mut setup = Setup::new(runtime, device);
    setup.driver = driver(record, &setup.device);
    setup.devices = get("device_count")?.max(1.0);
    setup.without_flash = text(record, "fa") == "0" || text(record, "fa") == "0.0";
    let date = text(record, "date");
    let year = date.rmatch_indices("20").next().and_then(|(place, _)| date.get(place..place + 4)?.parse::<u32>().ok());
    setup.era = year.map_or(Era::Recent, Era::of_year);
    if metric == Metric::Decode && text(record, "note").contains("only 2-4 threads") {
        // A few cores have their share of the processor's units, however much memory delivers.
        let Some(cores) = cores(&setup.device.name) else {
            return Ok(Err("a few threads of a processor whose number of cores is not known"));
        };
        let share = FEW_THREADS / cores;
        setup.device.half *= share;
        setup.device.brain *= share;
        setup.device.int8 *= share;
    }
    if !on_host.is_empty() {
        setup.on_host = host_of(record, facts, known);
        if setup.on_host.is_none() {
            return Ok(Err("offload to an unknown host"));
        }
    }
    let value = get("value")?;
    if value <= 0.0 {
        return Ok(Err("no value"));
    }
    let label = format!(
        "{}: {} on {}, {} {} {}, {} tokens after {}, {} {value}",
        text(record, "source"),
        text(record, "model"),
        text(record, "device"),
        text(record, "engine"),
        text(record, "backend"),
        text(record, "quant"),
        text(record, "n_prompt"),
        text(record, "n_depth"),
        text(record, "metric"),
    );
    let (prompt, depth, output) = (get("n_prompt")?.max(1.0), get("n_depth")?, get("n_gen")?);
    let batch = get("batch")?.max(1.0);
    let names = &mut data.names;
    let (built, measured_seconds): (Built<'_>, f64) = match metric {
        Metric::Decode => {
            if value > decode_bound(&work, &setup, batch) * 1.02 {
                data.impossible.push(format!("{label}: above bandwidth / bytes"));
                return Ok(Err("breaks physics"));
            }
            let depth = if depth > 0.0 { depth } else { output / 2.0 };
            (decode(&work, &setup, batch, depth, Some(names)), batch / value)
        }
        Metric::Prefill => {
            if value > prefill_bound(&work, &setup) * 1.02 {
                data.impossible.push(format!("{label}: above peak / operations"));
                return Ok(Err("breaks physics"));
            }
            let ubatch = if runtime == Runtime::Mlx { 2048.0 } else { 512.0 };
            (prefill(&work, &setup, prompt, depth, ubatch, Some(names)), prompt / value)
        }
        Metric::TimePerOutputToken => {
            let parallel = Parallel {
                tensor: get("tp")?.max(1.0),
                data: get("dp")?.max(1.0),
                expert: get("moe_ep")?.max(1.0),
                expert_tensor: get("moe_tp")?.max(1.0),
            };
            let request = LoadedRequest { concurrency: batch, prompt, output: output.max(1.0) };
            (time_per_output_token(&work, &setup, parallel, &request, Some(names)), value / 1000.0)
        }
    };
    let (terms, common) = (built.terms, built.common);
    Ok(Ok(Row {
        metric,
        group: text(record, "group").to_owned(),
        engine: runtime.name(),
        stratum: plimsoll::math::throughput::stratum(metric, runtime, setup.driver),
        class: class(setup.device.class),
        moe: facts.experts > 0.0,
        reported: quality == "A" || quality == "B",
        measured_seconds,
        terms,
        common,
    }))
}
