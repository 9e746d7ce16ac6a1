//! One table of ten models under every engine: what weights and the caches of 16 sequences of 32k tokens take, and why.

use std::fmt::Write as _;

use plimsoll::ingest::hf;
use plimsoll::math::allocation::{Term, TermKind};
use plimsoll::math::engine::vllm::options::{Gpu, Knobs};
use plimsoll::math::engine::{sglang, tensorrt_llm};
use plimsoll::math::spec::{Mixer, ModelSpec, Window};
use plimsoll::planner::request::Engine;
use plimsoll::planner::response::Fit;
use plimsoll::planner::size::grouped;
use plimsoll::planner::{Basis, Model, Options, explain, fit};

use crate::run::root;

const PAGE: &str = "docs/engines.md";
const CONTEXT: u64 = 32 * 1024;
const SEQUENCES: u64 = 16;
const MODELS: [&str; 10] = [
    "llama-3.1-8b",
    "gemma-3-27b",
    "gpt-oss-20b",
    "qwen3-30b-a3b",
    "qwen3-next-80b-a3b",
    "deepseek-v3",
    "falcon-h1-7b",
    "lfm2-1.2b",
    "nemotron-h-56b",
    "mamba-codestral-7b",
];
const ENGINES: [&str; 8] = ["ideal", "llama.cpp", "ollama", "vllm", "sglang", "tensorrt-llm", "mlx", "transformers"];

/// One engine's answer.
struct Row {
    weights: String,
    cache: u64,
    why: String,
}

/// Writes the table, or with `check` only compares it with what is there.
pub(crate) fn run(check: bool) -> Result<(), String> {
    println!("== engines");
    let page = page()?;
    let path = root().join(PAGE);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == page) {
        return Ok(());
    }
    if check {
        return Err(format!("{PAGE} is out of date: run `cargo xtask engines`"));
    }
    std::fs::write(&path, page).map_err(|error| format!("{PAGE}: {error}"))?;
    println!("   wrote {PAGE}");
    Ok(())
}

fn page() -> Result<String, String> {
    let mut out = String::from(
        "# Every engine its own bytes\n\nTen models, 16 sequences of 32,768 tokens each, under every engine that is followed. Written by `cargo xtask engines`.\n\n\
         *Weights* are BF16 or as the config says they are quantized, on one device (`≤` where only a bound is known). *Cache* is what keys, values and states of the 16 \
         sequences take: all that is allocated where an engine takes memory as it needs it, and what the sequences occupy of the pool where \
         it has one. The last column says in words why the cache is not the textbook's, then the engine's own rule with its numbers put in, or \
         why it refuses.\n\n",
    );
    let versions: Vec<String> = ENGINES
        .iter()
        .map(|name| Engine::parse(name).map(|engine| format!("{} {}", engine.name(), engine.version())))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let _ = writeln!(out, "Versions: {}.", versions.join(", "));
    for name in MODELS {
        section(&mut out, name)?;
    }
    Ok(out)
}

fn section(out: &mut String, name: &str) -> Result<(), String> {
    let path = root().join("fixtures/models").join(name).join("config.json");
    let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let ingested = hf::ingest(&bytes, &hf::Options::default()).map_err(|error| format!("{name}: {error}"))?;
    let model = Model::new(Some(name), ingested, Basis::Config);
    let _ = writeln!(out, "\n## {name}\n\n| engine | weights | cache | beside the textbook | why |\n|---|--:|--:|--:|---|");
    let textbook = row(&model, "ideal").map_or(0, |row| row.cache);
    let kinds = Kinds::of(&model.spec);
    for engine in ENGINES {
        let _ = match row(&model, engine) {
            Ok(row) => writeln!(
                out,
                "| {engine} | {} | {} | {} | {} {} |",
                row.weights,
                grouped(row.cache),
                beside(row.cache, textbook),
                reason(engine, &kinds, row.cache, textbook),
                row.why
            ),
            Err(reason) => writeln!(out, "| {engine} | | | | refused: {} |", reason.replace('|', "\\|")),
        };
    }
    Ok(())
}

/// Which kinds of layers a model has: what engines treat differently.
struct Kinds {
    windows: bool,
    states: bool,
    keys: bool,
}

impl Kinds {
    fn of(spec: &ModelSpec) -> Self {
        let mut kinds = Self { windows: false, states: false, keys: false };
        for layer in &spec.layers {
            match &layer.mixer {
                Mixer::Attention(attention) => {
                    kinds.keys = true;
                    kinds.windows |= matches!(attention.window, Window::Sliding { .. });
                }
                Mixer::Mla(_) | Mixer::CompressedAttention(_) => kinds.keys = true,
                Mixer::Parallel(_) => {
                    kinds.keys = true;
                    kinds.states = true;
                }
                Mixer::None => {}
                _ => kinds.states = true,
            }
        }
        kinds
    }
}

/// Why an engine's cache is larger or smaller than the textbook's, for a reader.
fn reason(engine: &str, kinds: &Kinds, cache: u64, textbook: u64) -> String {
    if cache == textbook {
        return "The textbook's bytes.".to_owned();
    }
    let mut said = Vec::new();
    match engine {
        "llama.cpp" | "ollama" => {
            if kinds.windows {
                said.push("Windows keep a micro-batch of tokens more, in whole steps of 256.");
            }
            if engine == "ollama" && cache < textbook {
                said.push("The context is cut to what the model was trained for.");
            }
        }
        "vllm" => {
            if kinds.windows {
                said.push(
                    "Windows also hold the tokens of two steps in flight, and layers take blocks of the widest group's size.",
                );
            }
            if kinds.states && kinds.keys {
                said.push("A state takes whole blocks, several a sequence for cached prefixes, and blocks grow until a state fits in one.");
            }
            if kinds.states && !kinds.keys {
                said.push("States are kept in the type that the config names, and once a sequence.");
            }
        }
        "sglang" => {
            if kinds.windows {
                said.push("Windows are kept in full, or in a pool of 0.8 times the full pool's tokens where the class has one.");
            }
            if kinds.states {
                said.push("A sequence gets three slots of states, for prefixes that are kept and work that overlaps.");
            }
        }
        "tensorrt-llm" if kinds.windows => said.push("Windows are kept in full unless the user names their length."),
        "mlx" => {
            if kinds.keys {
                said.push("A cache that keeps all tokens grows in steps of 256 and is a step ahead.");
            }
            if kinds.states {
                said.push("Convolutions are in the model's 16 bits.");
            }
        }
        "transformers" => {
            if kinds.windows {
                said.push("A window keeps one token less than it sees: the new one comes on top.");
            }
            if kinds.states {
                said.push("Convolutions are in the model's 16 bits, with one position more than the kernel needs.");
            }
        }
        _ => {}
    }
    said.join(" ")
}

/// The difference in tenths of a percent.
fn beside(cache: u64, textbook: u64) -> String {
    if cache == textbook {
        return "the same".to_owned();
    }
    let sign = if cache > textbook { '+' } else { '−' };
    match cache.abs_diff(textbook).saturating_mul(1000).checked_div(textbook) {
        None => "the textbook has none".to_owned(),
        Some(0) => format!("{sign}<0.1 %"),
        Some(tenths) => format!("{sign}{}.{} %", tenths / 10, tenths % 10),
    }
}

fn options(engine: &str) -> Options {
    Options {
        engine: Some(engine.to_owned()),
        context: Some(CONTEXT),
        sequences: Some(SEQUENCES),
        device: Some(if engine == "mlx" { "M3 Ultra (80c)".to_owned() } else { "H200".to_owned() }),
        memory: (engine == "mlx").then_some(512 << 30),
        skip_limits: Some(true),
        ..Options::default()
    }
}

fn row(model: &Model, engine: &str) -> Result<Row, String> {
    let options = options(engine);
    let answer = fit(model, &options).map_err(|error| error.to_string())?;
    let weights = weights(&answer);
    match engine {
        "vllm" => Ok(Row { weights, ..vllm(&answer)? }),
        "sglang" => Ok(Row { weights, ..sglang_row(model)? }),
        "tensorrt-llm" => Ok(Row { weights, ..tensorrt_row(model)? }),
        _ => {
            let tree = explain(model, &options).map_err(|error| error.to_string())?;
            let terms = tree.devices.iter().flat_map(|device| &device.terms).chain(&tree.host.terms);
            let mut why = Vec::new();
            for term in terms {
                reasons(term, &mut why);
            }
            let cache = answer.totals.kv_cache.get() + answer.totals.recurrent_state.get();
            Ok(Row { weights, cache, why: why.join("; ") })
        }
    }
}

fn weights(answer: &Fit) -> String {
    let bounded = answer
        .devices
        .iter()
        .flat_map(|device| &device.terms)
        .any(|term| term.component == TermKind::Weights && term.certainty != plimsoll::math::allocation::Certainty::Exact);
    format!("{}{}", if bounded { "≤ " } else { "" }, grouped(answer.totals.weights.get()))
}

fn reasons(term: &Term, why: &mut Vec<String>) {
    if !matches!(term.component, TermKind::KvCache | TermKind::RecurrentState) {
        return;
    }
    if term.children.is_empty() {
        why.push(format!("{}: {}", term.label, term.formula));
    }
    for child in &term.children {
        reasons(child, why);
    }
}

fn vllm(answer: &Fit) -> Result<Row, String> {
    let cache = &answer.cache;
    let block = cache.block_bytes.ok_or("no block")?.get();
    let groups = cache.groups.as_ref().ok_or("no groups")?;
    let blocks: u64 = groups.iter().map(|group| group.blocks_per_sequence).sum();
    let why: Vec<String> = groups
        .iter()
        .map(|group| {
            format!(
                "{} of {} layers: {} blocks of {} tokens",
                group.kind,
                group.layers,
                grouped(group.blocks_per_sequence),
                group.block_tokens
            )
        })
        .collect();
    Ok(Row {
        weights: String::new(),
        cache: blocks * SEQUENCES * block,
        why: format!("{}; {} B a block, {SEQUENCES} times", why.join("; "), grouped(block)),
    })
}

fn knobs() -> Knobs {
    Knobs::new(Gpu { capability: 90, memory: 141 << 30, a100: false })
}

fn sglang_row(model: &Model) -> Result<Row, String> {
    let checkpoint = &model.checkpoint;
    let cache = sglang::pool::CacheType::Auto;
    let costs = sglang::pool::costs(&model.spec, checkpoint, &knobs(), cache).map_err(|error| error.to_string())?;
    let tokens = CONTEXT * SEQUENCES;
    let mut why = Vec::new();
    if costs.full > 0 {
        why.push(format!("{} B a token in the full pool", grouped(costs.full)));
    }
    if costs.windows > 0 {
        why.push(format!(
            "{} B a token in the pool of windows, which has 0.8 times the full pool's tokens",
            grouped(costs.windows)
        ));
    }
    if costs.state > 0 {
        why.push(format!("3 slots of {} B a request for states", grouped(costs.state)));
    }
    Ok(Row {
        weights: String::new(),
        cache: tokens * costs.full + tokens * costs.windows * 4 / 5 + 3 * SEQUENCES * costs.state,
        why: why.join("; "),
    })
}

fn tensorrt_row(model: &Model) -> Result<Row, String> {
    let layers = u64::try_from(model.spec.layers.len()).map_err(|error| error.to_string())?;
    let element = model.checkpoint.dtype.block_bytes();
    let token = tensorrt_llm::token_bytes(&model.spec, (0, layers), 1, element).map_err(|error| error.to_string())?;
    Ok(Row {
        weights: String::new(),
        cache: token * CONTEXT.next_multiple_of(tensorrt_llm::TOKENS_PER_BLOCK) * SEQUENCES,
        why: format!("{} B a token in blocks of {}, windows kept in full", grouped(token), tensorrt_llm::TOKENS_PER_BLOCK),
    })
}
