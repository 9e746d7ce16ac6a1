//! The grammar of the command line. What is in `--help` works.

mod compare;
mod fleet;
mod planning;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use plimsoll::math::deployment::{FlashAttention, Share, SplitMode};
use plimsoll::planner::custom::{CustomDevice, Decimal, Size};
use plimsoll::planner::size::{parse_bytes, parse_tokens};
use plimsoll::planner::{Options, PlanError};

pub(crate) use compare::CompareArgs;
pub(crate) use fleet::{CapacityArgs, FleetArgs};
pub(crate) use planning::{ExplainArgs, Format, OffloadArgs, SweepArgs, WhichDeviceArgs, WhichQuantArgs};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Exit codes, as shown in the help.
const EXIT_CODES: &str = "Exit codes: 0 fits, 2 fits with a part on the host, 3 does not fit, 64 wrong usage, 65 bad input data, 69 source unavailable.";

/// Will it fit? What a language model takes in memory, per engine, to the byte.
#[derive(Debug, Parser)]
#[command(name = "plimsoll", version, styles = STYLES, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Whether a model fits on a device, term by term
    Fit(Question),
    /// Every byte of `fit` as a tree, or one component of it, with formula, source and the textbook's answer
    Explain(ExplainArgs),
    /// The largest context that fits
    MaxContext(Question),
    /// The most concurrent sequences that fit
    MaxSequences(Question),
    /// What was planned as something to run: the engine's command line, a pod, a service, a Modelfile
    Export(ExportArgs),
    /// Two deployments of one model, two models or two engines, term by term
    Compare(CompareArgs),
    /// Quantizations and contexts as a grid: what fits, what fits with a part on the host, how fast
    WhichQuant(WhichQuantArgs),
    /// The smallest and the cheapest devices that hold a model and reach a speed
    WhichDevice(WhichDeviceArgs),
    /// What goes where on one host: layers, experts, caches and shares that fit and decode fastest
    Offload(OffloadArgs),
    /// Every combination of contexts, sequences, cache formats, quantizations, devices and engines
    Sweep(SweepArgs),
    /// What is in a model: parameters by part and by layer
    Inspect(InspectArgs),
    /// The devices that are known by name
    Devices(DevicesArgs),
    /// Many models onto many hosts: which replica on which devices, and what does not fit
    Fleet(FleetArgs),
    /// How many replicas a load needs, and on what
    Capacity(CapacityArgs),
    /// Write a completion script for a shell to standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output
    Man,
}

#[derive(Debug, Args)]
pub(crate) struct Source {
    /// A config.json or a directory with one, or a .gguf file (the first of a split set)
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub(crate) model: String,
    /// Take an unknown architecture for a generic decoder: bounds instead of exact figures
    #[arg(long)]
    pub(crate) assume_generic: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Those alone in whose names these words stand, such as `4090` or `strix halo`
    #[arg(value_name = "NAME", conflicts_with = "local")]
    pub(crate) names: Vec<String>,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Answer as comma-separated values
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
    /// The devices of this machine instead, as its drivers report them
    #[arg(long)]
    pub(crate) local: bool,
    /// A TOML file that describes devices, listed before the catalogue
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "local")]
    pub(crate) devices_file: Option<std::path::PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum OnOffAuto {
    /// Always
    On,
    /// Never
    Off,
    /// Wherever the device can
    Auto,
}

fn tokens(text: &str) -> Result<u64, String> {
    parse_tokens("tokens", text).map_err(|_| {
        let grammar = plimsoll::planner::size::TOKENS_GRAMMAR;
        if text.contains(',') { format!("{grammar}; lists go to --contexts, where there is one") } else { grammar.to_owned() }
    })
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes("memory", text).map_err(|_| plimsoll::planner::size::SIZE_GRAMMAR.to_owned())
}

fn decimal(text: &str) -> Result<Decimal, String> {
    text.trim().parse().ok().and_then(Decimal::new).ok_or_else(|| "expected a number above 0, such as 1008".to_owned())
}

/// A number of layers; `None` for all.
#[derive(Debug, Clone, Copy)]
struct Layers(Option<u64>);

fn layers(text: &str) -> Result<Layers, String> {
    if text == "all" {
        return Ok(Layers(None));
    }
    text.parse().map(|count| Layers(Some(count))).map_err(|_| "expected a number of layers, or all".to_owned())
}

fn share(text: &str) -> Result<Share, String> {
    let share: f32 = text.trim().parse().map_err(|_| "expected numbers, separated by commas".to_owned())?;
    Share::try_from(share).map_err(|error| error.to_string())
}

fn split_mode(text: &str) -> Result<SplitMode, String> {
    match text {
        "layer" => Ok(SplitMode::Layer),
        "row" => Ok(SplitMode::Row),
        "none" => Ok(SplitMode::None),
        "tensor" => Ok(SplitMode::Tensor),
        _ => Err("expected layer, row, none or tensor".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Question {
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) asked: Asked,
    #[command(flatten)]
    pub(crate) beside: Beside,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `export` writes.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum As {
    /// The engine's own command line
    Command,
    /// A pod for Kubernetes
    Kubernetes,
    /// A service for Docker Compose
    Compose,
    /// A Modelfile for Ollama
    Ollama,
    /// A command line for SGLang, from what was planned for vLLM
    Sglang,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) question: Question,
    /// What to write
    #[arg(long = "as", value_enum, value_name = "FORM", default_value = "command")]
    pub(crate) form: As,
}

impl Question {
    /// The question in the planner's words.
    pub(crate) fn options(&self) -> Result<Options, PlanError> {
        let beside = &self.beside;
        Ok(Options {
            assume_generic: self.source.assume_generic.then_some(true),
            draft_tokens: beside.draft_tokens,
            draft_gpu_layers: beside.draft_gpu_layers.and_then(|layers| layers.0),
            draft_kv_type: beside.draft_kv_type.clone(),
            draft_quant: beside.draft_quant.clone(),
            mmproj_offload: beside.no_mmproj_offload.then_some(false),
            image_min_tokens: beside.image_min_tokens,
            image_max_tokens: beside.image_max_tokens,
            ..self.asked.options()?
        })
    }
}

/// Other models beside the one in question.
#[derive(Debug, Args)]
pub(crate) struct Beside {
    /// Draft with a smaller model in a context of its own: a file or name, as MODEL
    #[arg(long, value_name = "MODEL", conflicts_with = "draft_mtp", help_heading = "What runs")]
    pub(crate) draft_model: Option<String>,
    /// Tokens that the draft model drafts at most; 3 when left out
    #[arg(long, value_name = "N", requires = "draft_model", help_heading = "What runs")]
    draft_tokens: Option<u64>,
    /// How many of the draft model's layers go to devices, or all
    #[arg(long, value_name = "N", value_parser = layers, requires = "draft_model", help_heading = "What runs")]
    draft_gpu_layers: Option<Layers>,
    /// How to store the draft model's cached keys and values; f16 when left out
    #[arg(long, value_name = "TYPE", requires = "draft_model", help_heading = "What runs")]
    draft_kv_type: Option<String>,
    /// How to store the draft model's weights when its source leaves it open
    #[arg(long, value_name = "TYPE", requires = "draft_model", help_heading = "What runs")]
    draft_quant: Option<String>,
    /// Read images or sound through a multimodal projector: its GGUF file (mmproj-*.gguf)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What runs")]
    pub(crate) mmproj: Option<String>,
    /// Run the projector on the processor
    #[arg(long, requires = "mmproj", help_heading = "What runs")]
    no_mmproj_offload: bool,
    /// The fewest tokens of an image; the projector's own when left out
    #[arg(long, value_name = "N", requires = "mmproj", help_heading = "What runs")]
    image_min_tokens: Option<u64>,
    /// The most tokens of an image; the projector's own when left out
    #[arg(long, value_name = "N", requires = "mmproj", help_heading = "What runs")]
    image_max_tokens: Option<u64>,
}

/// Everything that can be asked of a deployment.
#[derive(Debug, Args)]
pub(crate) struct Asked {
    /// Whose rules: llama.cpp (the newest build followed, and the default), llama.cpp@BUILD, vllm, sglang, mlx, tensorrt-llm, transformers, ollama, or ideal (the textbook)
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
    /// Concurrent sequences; one when left out
    #[arg(long, value_name = "N", help_heading = "How much")]
    sequences: Option<u64>,
    #[command(flatten)]
    setting: Setting,
}

impl Asked {
    /// The question in the planner's words.
    pub(crate) fn options(&self) -> Result<Options, PlanError> {
        Ok(Options { engine: self.engine.clone(), sequences: self.sequences, ..self.setting.options()? })
    }

    /// The same where the devices may be named elsewhere.
    pub(crate) fn options_beside(&self, named_elsewhere: bool) -> Result<Options, PlanError> {
        if named_elsewhere && !self.setting.device.is_empty() {
            return Err(PlanError::request("device", "names beside --on", "one of the two"));
        }
        self.options()
    }
}

/// Everything that can be asked of a deployment but the engine and the number of sequences.
#[derive(Debug, Args)]
pub(crate) struct Setting {
    /// Tokens per sequence, such as 8192 or 32k; the model's maximum when left out
    #[arg(long, short, value_name = "N", value_parser = tokens, help_heading = "How much")]
    context: Option<u64>,
    /// The engine's whole pool of tokens instead of a context per sequence (llama.cpp: -c)
    #[arg(long, value_name = "N", value_parser = tokens, conflicts_with = "context", help_heading = "How much")]
    total_context: Option<u64>,
    /// Logical batch in tokens; 2048 when left out
    #[arg(long, value_name = "N", help_heading = "How much")]
    batch: Option<u64>,
    /// Micro-batch in tokens; 512 when left out
    #[arg(long, value_name = "N", help_heading = "How much")]
    ubatch: Option<u64>,

    /// How to store weights (Q4_K_M, Q8_0, IQ4_XS, BF16 …; for mlx 4bit, 8bit …) when the source leaves it open
    #[arg(long, short, value_name = "TYPE", help_heading = "How stored")]
    quant: Option<String>,
    /// How to store cached keys and values: f16, bf16, f32, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl; other engines have names
    /// of their own (auto, fp8, 8bit), which they list when asked for another
    #[arg(long, value_name = "TYPE", help_heading = "How stored")]
    kv_type: Option<String>,
    /// How to store cached keys
    #[arg(long, value_name = "TYPE", conflicts_with = "kv_type", help_heading = "How stored")]
    kv_type_k: Option<String>,
    /// How to store cached values
    #[arg(long, value_name = "TYPE", conflicts_with = "kv_type", help_heading = "How stored")]
    kv_type_v: Option<String>,
    /// The type to compute in, for engines that convert while they load: bfloat16, float16 or float32
    #[arg(long, value_name = "TYPE", help_heading = "How stored")]
    dtype: Option<String>,
    /// Transformers: which cache to make: dynamic, static, offloaded, offloaded-static or quantized
    #[arg(long, value_name = "KIND", help_heading = "How stored")]
    cache: Option<String>,
    /// Compute attention without storing its scores; auto when left out
    #[arg(long, value_enum, value_name = "WHEN", hide_possible_values = false, help_heading = "How stored")]
    flash_attention: Option<OnOffAuto>,
    /// One cache shared by all sequences instead of one each
    #[arg(long, help_heading = "How stored")]
    kv_unified: bool,
    /// Full-size caches for sliding-window layers
    #[arg(long, help_heading = "How stored")]
    swa_full: bool,
    /// Keep processor weights in the file's layout
    #[arg(long, help_heading = "How stored")]
    no_repack: bool,
    /// Load weights instead of mapping the file
    #[arg(long, help_heading = "How stored")]
    no_mmap: bool,

    /// Where: a name such as "RTX 4090" or "RTX 4090x2" (see `plimsoll devices`), local for this machine's own, or cpu; repeat it for
    /// different devices
    #[arg(long, short, value_name = "NAME", help_heading = "Where")]
    device: Vec<String>,
    /// The device draws the desktop as well: 1 GiB less of its memory is usable
    #[arg(long, help_heading = "Where")]
    displays: bool,
    /// A TOML file that describes devices, looked up before the catalogue
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Where")]
    devices_file: Option<std::path::PathBuf>,
    /// What drives a described device: cuda, cuda-cc890, rocm, vulkan, metal or cpu
    #[arg(long, value_name = "NAME", help_heading = "Where")]
    backend: Option<String>,
    /// Memory bandwidth of each device, 10^9 bytes per second
    #[arg(long, value_name = "GB/S", value_parser = decimal, help_heading = "Where")]
    bandwidth: Option<Decimal>,
    /// Peak of each device in half precision, dense, 10^12 operations per second
    #[arg(long, value_name = "TFLOPS", value_parser = decimal, help_heading = "Where")]
    compute: Option<Decimal>,
    /// Memory of each device, such as 24GiB; alone, it describes a device without a name
    #[arg(long, short, value_name = "SIZE", value_parser = bytes, help_heading = "Where")]
    memory: Option<u64>,
    /// How many layers go to devices, the last ones first, the output counted as one more; or all
    #[arg(long, value_name = "N", value_parser = layers, help_heading = "Where")]
    gpu_layers: Option<Layers>,
    /// How a model is divided among several devices: layer, row, none or tensor
    #[arg(long, value_name = "MODE", value_parser = split_mode, help_heading = "Where")]
    split_mode: Option<SplitMode>,
    /// Shares of the devices, such as 3,1; by free memory when left out
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = share, help_heading = "Where")]
    tensor_split: Option<Vec<Share>>,
    /// The device that holds everything with --split-mode none
    #[arg(long, value_name = "N", help_heading = "Where")]
    main_gpu: Option<u8>,
    /// Leave the routed experts of all layers to the host
    #[arg(long, help_heading = "Where")]
    cpu_moe: bool,
    /// Leave the routed experts of the first N layers to the host
    #[arg(long, value_name = "N", help_heading = "Where")]
    n_cpu_moe: Option<u64>,
    /// Put tensors whose name matches a regular expression on a device by the engine's name, such as
    /// "ffn_up_exps=CUDA1" or "attn=CPU"; repeatable, the first match decides
    #[arg(long, value_name = "PATTERN=DEVICE", help_heading = "Where")]
    override_tensor: Option<Vec<String>>,
    /// Keep caches on the host
    #[arg(long, help_heading = "Where")]
    no_kv_offload: bool,
    /// Multiply on the host what lies on the host, large batches too
    #[arg(long, help_heading = "Where")]
    no_op_offload: bool,

    /// Convert with the model's multi-token-prediction layers
    #[arg(long, conflicts_with = "no_mtp", help_heading = "What runs")]
    mtp: bool,
    /// Convert without the model's multi-token-prediction layers
    #[arg(long, help_heading = "What runs")]
    no_mtp: bool,
    /// Draft N tokens with the model's own prediction layers, in a context of their own
    #[arg(long, value_name = "N", conflicts_with = "no_mtp", help_heading = "What runs")]
    draft_mtp: Option<u64>,
    /// Run as an embedding server
    #[arg(long, help_heading = "What runs")]
    embeddings: bool,
    /// Limit of the server's prompt cache in host memory; 8GiB when left out
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "What runs")]
    cache_ram: Option<u64>,
    /// Checkpoints that the server keeps of a slot at most; 32 when left out
    #[arg(long, value_name = "N", help_heading = "What runs")]
    context_checkpoints: Option<u64>,

    /// Threads of the processor, which its work buffer depends on; as many as this machine has cores with --device cpu
    #[arg(long, short, value_name = "N", help_heading = "What runs")]
    threads: Option<u64>,

    /// Take what llama-server itself would choose (--fit) for what is left open: context, layers, shares, overrides.
    /// Without --sequences that is for its four slots of one cache
    #[arg(long, help_heading = "Where")]
    like_engine: bool,
    /// What llama-server leaves free on every device when it chooses; 1GiB when left out
    #[arg(long, value_name = "SIZE", value_parser = bytes, requires = "like_engine", help_heading = "Where")]
    fit_margin: Option<u64>,
    /// The least context per stream that llama-server may choose; 4096 when left out
    #[arg(long, value_name = "N", value_parser = tokens, requires = "like_engine", help_heading = "Where")]
    fit_context: Option<u64>,
    /// Ranks that split every matrix
    #[arg(long, visible_alias = "tp", value_name = "N", help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    tensor_parallel: Option<u64>,
    /// Ranks that split the layers
    #[arg(long, visible_alias = "pp", value_name = "N", help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    pipeline_parallel: Option<u64>,
    /// Replicas that split the sequences
    #[arg(long, visible_alias = "dp", value_name = "N", help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    data_parallel: Option<u64>,
    /// Whole experts are spread over the ranks
    #[arg(long, visible_alias = "ep", help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    expert_parallel: bool,
    /// Ranks that split the tokens of a sequence's cache
    #[arg(long, value_name = "N", help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    context_parallel: Option<u64>,
    /// Share of each device's memory for weights, work and cache (vLLM: 0.92 when left out), for weights and pools (SGLang: by
    /// the device), or of what loading leaves free for the cache (TensorRT-LLM: 0.9)
    #[arg(long, value_name = "F", value_parser = millionths, conflicts_with = "kv_memory", help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    memory_utilization: Option<u64>,
    /// Memory for the cache on each device, such as 40GiB, which makes the answer exact
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    kv_memory: Option<u64>,
    /// Tokens of a step
    #[arg(long, value_name = "N", value_parser = tokens, help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    max_batched_tokens: Option<u64>,
    /// Sequences that run at a time
    #[arg(long, value_name = "N", help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    max_sequences: Option<u64>,
    /// Tokens of a cache block
    #[arg(long, value_name = "N", help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    block_size: Option<u64>,
    /// vLLM: draft tokens, METHOD:N with the model's own prediction layers (mtp:2), repeats (ngram:5), or with --draft-model a
    /// head (eagle:4, eagle3:3) or a smaller model (draft_model:5)
    #[arg(long, value_name = "METHOD:N", help_heading = "vLLM")]
    speculative: Option<String>,
    /// vLLM: LoRA adapters of one batch
    #[arg(long, value_name = "N", help_heading = "vLLM")]
    max_loras: Option<u64>,
    /// vLLM: largest rank of LoRA adapters; 16 when left out
    #[arg(long, value_name = "N", help_heading = "vLLM")]
    max_lora_rank: Option<u64>,
    /// Keep no prefixes
    #[arg(long, help_heading = "Ranks and pools (vLLM, SGLang, TensorRT-LLM)")]
    no_prefix_caching: bool,
}

/// A share such as 0.9, in millionths.
fn millionths(text: &str) -> Result<u64, String> {
    let wrong = || "expected a share such as 0.9, more than 0 and at most 1".to_owned();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 6 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let fraction: u64 = format!("{fraction:0<6}").parse().map_err(|_| wrong())?;
    let share = whole.checked_mul(1_000_000).and_then(|whole| whole.checked_add(fraction)).ok_or_else(wrong)?;
    if (1..=1_000_000).contains(&share) { Ok(share) } else { Err(wrong()) }
}

impl Setting {
    /// The question in the planner's words, with the devices it describes.
    pub(crate) fn options(&self) -> Result<Options, PlanError> {
        let changes = CustomDevice {
            memory: self.memory.map(Size),
            backend: self.backend.clone(),
            bandwidth_gb_per_s: self.bandwidth,
            fp16_tflops: self.compute,
            ..CustomDevice::default()
        };
        let mut options = self.plain();
        crate::places::describe(&mut options, self.devices_file.as_deref(), &changes)?;
        Ok(options)
    }

    fn plain(&self) -> Options {
        Options {
            engine: None,
            context: self.context,
            sequences: None,
            total_context: self.total_context,
            batch: self.batch,
            ubatch: self.ubatch,
            quant: self.quant.clone(),
            dtype: self.dtype.clone(),
            cache: self.cache.clone(),
            kv_type: self.kv_type.clone(),
            kv_type_k: self.kv_type_k.clone(),
            kv_type_v: self.kv_type_v.clone(),
            flash_attention: self.flash_attention.map(|when| match when {
                OnOffAuto::On => FlashAttention::On,
                OnOffAuto::Off => FlashAttention::Off,
                OnOffAuto::Auto => FlashAttention::Auto,
            }),
            kv_unified: self.kv_unified.then_some(true),
            swa_full: self.swa_full.then_some(true),
            repack: self.no_repack.then_some(false),
            mmap: self.no_mmap.then_some(false),
            device: self.device.first().cloned(),
            devices: self.device.get(1..).filter(|more| !more.is_empty()).map(<[String]>::to_vec),
            custom_devices: None,
            gpu_layers: self.gpu_layers.and_then(|layers| layers.0),
            split_mode: self.split_mode,
            tensor_split: self.tensor_split.clone(),
            main_gpu: self.main_gpu,
            cpu_moe: self.cpu_moe.then_some(true),
            n_cpu_moe: self.n_cpu_moe,
            override_tensor: self.override_tensor.clone(),
            kv_offload: self.no_kv_offload.then_some(false),
            op_offload: self.no_op_offload.then_some(false),
            displays: self.displays.then_some(true),
            memory: self.memory,
            tensor_parallel: self.tensor_parallel,
            pipeline_parallel: self.pipeline_parallel,
            data_parallel: self.data_parallel,
            expert_parallel: self.expert_parallel.then_some(true),
            context_parallel: self.context_parallel,
            memory_utilization: self.memory_utilization,
            kv_memory: self.kv_memory,
            max_batched_tokens: self.max_batched_tokens,
            max_sequences: self.max_sequences,
            block_size: self.block_size,
            prefix_caching: self.no_prefix_caching.then_some(false),
            speculative: self.speculative.clone(),
            max_loras: self.max_loras,
            max_lora_rank: self.max_lora_rank,
            assume_generic: None,
            prediction_layers: match (self.mtp, self.no_mtp) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                (false, false) => None,
            },
            draft_mtp: self.draft_mtp,
            draft_tokens: None,
            draft_gpu_layers: None,
            draft_kv_type: None,
            draft_quant: None,
            mmproj_offload: None,
            image_min_tokens: None,
            image_max_tokens: None,
            embeddings: self.embeddings.then_some(true),
            cache_ram: self.cache_ram,
            context_checkpoints: self.context_checkpoints,
            threads: self.threads,
            like_engine: self.like_engine.then_some(true),
            fit_margin: self.fit_margin,
            fit_context: self.fit_context,
            skip_limits: None,
        }
    }
}
