//! Where a run puts its models: on the processor, on a device, on part of a device, on two.

use std::fmt::Write as _;

use plimsoll::math::deployment::Share;
use plimsoll::planner::Options;
use serde_json::{Map, Value, json};

use super::install::hash;

/// What layers may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Where {
    /// The processor.
    Processor,
    /// One CUDA device of this compute capability, a stand-in.
    Cuda(u32),
    /// One that holds a part.
    Partial(u32),
    /// Two of them.
    Two(u32),
}

impl Where {
    /// As the fixtures name it, read again.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        if name == "cpu" {
            return Some(Self::Processor);
        }
        let read = |capability: &str| capability.parse().ok();
        if let Some(two) = name.strip_prefix("2xcuda-cc") {
            return read(two).map(Self::Two);
        }
        let one = name.strip_prefix("cuda-cc")?;
        match one.strip_suffix("-partial") {
            Some(part) => read(part).map(Self::Partial),
            None => read(one).map(Self::Cuda),
        }
    }

    /// As the fixtures name it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Processor => "cpu".to_owned(),
            Self::Cuda(capability) => format!("cuda-cc{capability}"),
            Self::Partial(capability) => format!("cuda-cc{capability}-partial"),
            Self::Two(capability) => format!("2xcuda-cc{capability}"),
        }
    }

    /// How many devices, and their compute capability.
    pub(crate) const fn devices(self) -> (usize, u32) {
        match self {
            Self::Processor => (0, 0),
            Self::Cuda(capability) | Self::Partial(capability) => (1, capability),
            Self::Two(capability) => (2, capability),
        }
    }

    /// As our own options name it.
    pub(crate) fn device(self) -> String {
        match self {
            Self::Processor => "cpu".to_owned(),
            Self::Cuda(capability) | Self::Partial(capability) => format!("cuda-cc{capability}"),
            Self::Two(capability) => format!("cuda-cc{capability}x2"),
        }
    }

    /// Whether what goes where is asked for.
    pub(crate) const fn is_divided(self) -> bool {
        matches!(self, Self::Partial(_) | Self::Two(_))
    }
}

/// What goes where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Placed {
    gpu_layers: Option<u64>,
    cpu_moe: bool,
    n_cpu_moe: u64,
    kv_offload: bool,
    op_offload: bool,
    split: &'static str,
    overrides: &'static str,
}

impl Default for Placed {
    fn default() -> Self {
        Self { gpu_layers: None, cpu_moe: false, n_cpu_moe: 0, kv_offload: true, op_offload: true, split: "", overrides: "" }
    }
}

/// Layers on devices: models of a few layers are cut by the small numbers, large ones by all.
const GPU_LAYERS: [Option<u64>; 8] = [Some(1), None, Some(7), Some(2), Some(16), Some(0), Some(25), Some(99)];

/// Shares of two devices.
const SPLITS: [&str; 4] = ["", "3,1", "1,4", "1,1"];

/// Patterns of tensors that stay on the host.
const OVERRIDES: [&str; 6] = ["", "ffn_down", "attn_(q|k)", "norm", r"blk\.(0|1|5)\.", "exps"];

fn nth<T: Copy>(all: &[T], index: u64) -> Option<T> {
    let len = u64::try_from(all.len()).ok()?;
    all.get(usize::try_from(index % len).ok()?).copied()
}

impl Placed {
    /// A part of all that can be asked for, another for each seed and the same in every run.
    pub(crate) fn drawn(seed: &str, place: Where) -> Self {
        let mut out = Self::default();
        if !place.is_divided() {
            return out;
        }
        let draw = hash(format!("{} {seed}", place.name()).as_bytes());
        let bits = |shift: u32| draw >> shift & 15;
        // Two devices hold everything half of the time: only then does the engine work on several micro-batches at once.
        if matches!(place, Where::Partial(_)) || bits(0) < 8 {
            out.gpu_layers = nth(&GPU_LAYERS, draw >> 8).flatten();
        }
        match bits(16) {
            0..3 => out.cpu_moe = true,
            3..6 => out.n_cpu_moe = 1 + (bits(20) & 7),
            6..9 => out.overrides = nth(&OVERRIDES, draw >> 24).unwrap_or_default(),
            _ => {}
        }
        out.kv_offload = bits(32) > 2;
        out.op_offload = bits(36) > 2;
        if matches!(place, Where::Two(_)) {
            out.split = nth(&SPLITS, draw >> 40).unwrap_or_default();
        }
        out
    }

    /// As the checker reads it, after a tab each; nothing for what is the engine's default.
    pub(crate) fn line(&self) -> String {
        let mut out = String::new();
        let Self { gpu_layers, cpu_moe, n_cpu_moe, kv_offload, op_offload, split, overrides } = *self;
        if let Some(layers) = gpu_layers {
            let _ = write!(out, "\tgpu_layers={layers}");
        }
        for (set, pair) in [(cpu_moe, "cpu_moe=true"), (!kv_offload, "kv_offload=false"), (!op_offload, "op_offload=false")] {
            if set {
                let _ = write!(out, "\t{pair}");
            }
        }
        if n_cpu_moe > 0 {
            let _ = write!(out, "\tn_cpu_moe={n_cpu_moe}");
        }
        for (key, value) in [("tensor_split", split), ("override", overrides)] {
            if !value.is_empty() {
                let _ = write!(out, "\t{key}={value}");
            }
        }
        out
    }

    /// As the fixtures keep it.
    pub(crate) fn add_params(&self, params: &mut Map<String, Value>) {
        let plain = Self::default();
        let entries = [
            ("ngl", json!(self.gpu_layers), self.gpu_layers != plain.gpu_layers),
            ("cpu_moe", json!(self.cpu_moe), self.cpu_moe),
            ("n_cpu_moe", json!(self.n_cpu_moe), self.n_cpu_moe > 0),
            ("offload_kqv", json!(self.kv_offload), !self.kv_offload),
            ("op_offload", json!(self.op_offload), !self.op_offload),
            ("tensor_split", json!(self.split), !self.split.is_empty()),
            ("ot", json!(self.overrides), !self.overrides.is_empty()),
        ];
        params.extend(entries.into_iter().filter(|(.., set)| *set).map(|(key, value, _)| (key.to_owned(), value)));
    }

    /// As the fixtures keep it, read again.
    pub(crate) fn from_params(params: &Value) -> Option<Self> {
        let flag = |key: &str, otherwise: bool| params.get(key).map_or(Some(otherwise), Value::as_bool);
        let word = |key: &str, known: &[&'static str]| match params.get(key) {
            None => Some(""),
            Some(word) => known.iter().copied().find(|known| Some(*known) == word.as_str()),
        };
        Some(Self {
            gpu_layers: params.get("ngl").and_then(Value::as_u64),
            cpu_moe: flag("cpu_moe", false)?,
            n_cpu_moe: params.get("n_cpu_moe").and_then(Value::as_u64).unwrap_or(0),
            kv_offload: flag("offload_kqv", true)?,
            op_offload: flag("op_offload", true)?,
            split: word("tensor_split", &SPLITS)?,
            overrides: word("ot", &OVERRIDES)?,
        })
    }

    /// As people read it.
    pub(crate) fn short(&self) -> String {
        let mut out = String::new();
        if let Some(layers) = self.gpu_layers {
            let _ = write!(out, " -ngl {layers}");
        }
        let switches =
            [(self.cpu_moe, " --cpu-moe"), (!self.kv_offload, " --no-kv-offload"), (!self.op_offload, " --no-op-offload")];
        out.extend(switches.into_iter().filter(|(set, _)| *set).map(|(_, option)| option));
        if self.n_cpu_moe > 0 {
            let _ = write!(out, " --n-cpu-moe {}", self.n_cpu_moe);
        }
        if !self.split.is_empty() {
            let _ = write!(out, " -ts {}", self.split);
        }
        if !self.overrides.is_empty() {
            let _ = write!(out, " -ot {}=CPU", self.overrides);
        }
        out
    }

    /// Our own options.
    pub(crate) fn options(&self, options: Options) -> Options {
        let shares: Vec<Share> = self.split.split(',').filter_map(|share| share.parse::<f32>().ok()?.try_into().ok()).collect();
        Options {
            gpu_layers: self.gpu_layers,
            cpu_moe: Some(self.cpu_moe),
            n_cpu_moe: (self.n_cpu_moe > 0).then_some(self.n_cpu_moe),
            kv_offload: Some(self.kv_offload),
            op_offload: Some(self.op_offload),
            tensor_split: (!shares.is_empty()).then_some(shares),
            override_tensor: (!self.overrides.is_empty()).then(|| vec![format!("{}=CPU", self.overrides)]),
            ..options
        }
    }
}
