//! Which buffer a weight goes to: the first one of its stage's list whose processor can do the operation that reads it
//! (`llama-model-loader.cpp:create_tensor`, `select_weight_buft`).

use alloc::string::{String, ToString};

use super::conversion::base_name;
use super::layout::Layout;
use super::loader_facts::LoaderFacts;
use crate::deployment::{Backend, Location};
use crate::format::StorageFormat;
use crate::tensor::{Shape, Tensor};

/// A buffer that weights lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum WeightPlace {
    /// A device's own memory (`CUDA0`, `MTL0`), devices counted as in the deployment.
    Device(u8),
    /// Host memory pinned for the device (`CUDA_Host`): the input layer of an offloaded model, and what stays on the host.
    HostPinned,
    /// Host memory in an interleaved layout that the processor multiplies faster (`CPU_REPACK`).
    HostRepacked,
    /// Plain host memory (`CPU`).
    Host,
}

impl WeightPlace {
    /// Whether it is a device's memory.
    #[must_use]
    pub const fn is_device(self) -> bool {
        matches!(self, Self::Device(_))
    }

    /// The device, or the host.
    #[must_use]
    pub const fn place(self) -> Location {
        match self {
            Self::Device(device) => Location::Device(device),
            Self::HostPinned | Self::HostRepacked | Self::Host => Location::Host,
        }
    }

    /// The engine's name of the buffer.
    #[must_use]
    pub fn engine_name(self, layout: &Layout) -> String {
        match self {
            Self::Device(device) => layout.engine_name(Location::Device(device)),
            Self::HostPinned => "CUDA_Host".to_string(),
            Self::HostRepacked => "CPU_REPACK".to_string(),
            Self::Host => layout.engine_name(Location::Host),
        }
    }

    /// What buffer sizes of tensors are rounded up to.
    #[must_use]
    pub fn alignment(self, layout: &Layout) -> u64 {
        // Metal's buffers, and `ggml-backend.cpp:TENSOR_ALIGNMENT` for all kinds of host memory: 32.
        match layout.backend(self.place()) {
            Backend::Cuda { .. } => 128,
            Backend::Metal | Backend::Cpu => 32,
        }
    }
}

/// Where in the model a tensor is used (`llama-arch.cpp:LLM_TENSOR_INFOS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Stage {
    /// Looked up before the first layer: always on the host's side.
    Input,
    /// In a layer.
    Layer,
    /// After the last layer: goes where the last layer goes.
    Output,
}

/// The operation that reads a weight (`llama-arch.cpp:LLM_TENSOR_INFOS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reader {
    GetRows,
    MulMat,
    MulMatId,
    /// Elementwise: a product, sum or quotient with activations.
    Elementwise,
    AddId,
    Rope,
    SsmConv,
    SsmScan,
    Wkv6,
    Im2col,
    Scale,
    /// None: the tensor is in files and never loaded.
    Unused,
}

const INPUT: &[&str] = &["token_embd", "position_embd", "token_types", "per_layer_token_embd", "value_embd", "mask_embd"];

const OUTPUT: &[&str] = &[
    "output",
    "output_norm",
    "enc.output_norm",
    "dec.output_norm",
    "cls",
    "cls.output",
    "cls.norm",
    "dense_2",
    "dense_3",
    "output_hc_base",
    "output_hc_fn",
    "output_hc_scale",
    "output_hc_norm",
    "output_hc_down",
    "output_hc_up",
    "output_res_score",
    "altup_proj",
    "altup_unembd_proj",
    "nextn.post_projection",
    "fc",
    "d2t",
];

/// Architectures whose files call the last norm `token_embd_norm` (`LLM_TENSOR_OUTPUT_NORM_LFM2`).
const LAST_NORM_BY_ANOTHER_NAME: &[&str] = &["lfm2", "lfm2moe"];

/// Vectors and small tables that are multiplied or added element by element, norms apart.
const ELEMENTWISE: &[&str] = &[
    "attn_conv_base",
    "ffn_conv_base",
    "attn_res_score",
    "ffn_res_score",
    "output_res_score",
    "channel_mix_lerp_k",
    "channel_mix_lerp_r",
    "hc_attn_base",
    "hc_ffn_base",
    "hc_attn_scale",
    "hc_ffn_scale",
    "output_hc_base",
    "output_hc_scale",
    "layer_output_scale",
    "altup_correct_scale",
    "ssm_d",
    "ssm_conv1d_q",
    "ssm_conv1d_k",
    "ssm_conv1d_v",
    "exp_probs_b",
    "exp_probs_b_vl",
    "time_mix_k_a",
    "time_mix_k_k",
    "time_mix_r_k",
    "time_mix_lerp_x",
    "time_mix_lerp_w",
    "time_mix_lerp_k",
    "time_mix_lerp_v",
    "time_mix_lerp_r",
    "time_mix_lerp_g",
    "time_mix_lerp_fused",
    "time_mix_ln",
    "time_mix_decay",
    "time_mix_a0",
    "time_mix_v0",
    "time_mix_w0",
    "ffn.act",
    "attn_resid_alpha",
    "attn_resid_beta",
    "attn_resid_scale",
    "ffn_resid_alpha",
    "ffn_resid_beta",
    "ffn_resid_scale",
    "attn_ssmax",
    "indexer.ssmax",
    "attn_xsa_alpha",
    "engram_gate",
];

/// Architectures that multiply by `ssm_a` instead of scanning with it (`LLM_TENSOR_SSM_A_NOSCAN`).
const WITHOUT_SCAN: &[&str] =
    &["bailingmoe3", "glm5-next", "kimi-k3", "kimi-linear", "qwen35", "qwen35moe", "qwen3next", "qwen4exp"];

/// Stage and reading operation of a tensor.
pub(super) fn reader(facts: &LoaderFacts, name: &str) -> (Stage, Reader) {
    let bias = name.strip_suffix(".bias");
    let stem = bias
        .or_else(|| [".weight", ".input_scale", ".scale"].iter().find_map(|suffix| name.strip_suffix(suffix)))
        .unwrap_or(name);
    let base = base_name(stem);
    let stage = if INPUT.contains(&base) || base.starts_with("masked_embd_") {
        Stage::Input
    } else if OUTPUT.contains(&stem) || (stem == "token_embd_norm" && LAST_NORM_BY_ANOTHER_NAME.contains(&facts.arch.as_str())) {
        Stage::Output
    } else {
        Stage::Layer
    };
    let experts = base.ends_with("_exps") || base.ends_with("_chexps");
    let reader = match base {
        "cross_attn_rel_b" => Reader::Unused,
        _ if base.starts_with("masked_embd_") => Reader::Unused,
        _ if bias.is_some() && experts => Reader::AddId,
        _ if bias.is_some() => Reader::Elementwise,
        _ if stage == Stage::Input => Reader::GetRows,
        "rope_freqs" | "rope_factors_long" | "rope_factors_short" => Reader::Rope,
        "ssm_conv1d" | "shortconv.conv" | "ple_conv1d" => Reader::SsmConv,
        "ssm_a" if !WITHOUT_SCAN.contains(&facts.arch.as_str()) => Reader::SsmScan,
        "ssm_a" => Reader::Elementwise,
        "attn_sinks" => Reader::Scale,
        "time_mix_first" => Reader::Wkv6,
        "indexer_compressor_ape" if facts.arch == "glm5-next" => Reader::Elementwise,
        "attn_rel_b" | "ffn_gate_tid2eid" | "attn_compressor_ape" | "indexer_compressor_ape" | "nextn.embed_tokens" | "d2t" => {
            Reader::GetRows
        }
        "conv1d" => Reader::Im2col,
        _ if base.starts_with("posnet.") && base.contains(".conv") => Reader::Im2col,
        _ if base.starts_with("convnext.") && base.ends_with(".dw") => Reader::Im2col,
        _ if base.ends_with(".gamma") || ELEMENTWISE.contains(&base) => Reader::Elementwise,
        _ if base.contains("norm") && !base.contains("norm_ada_") => Reader::Elementwise,
        _ if experts => Reader::MulMatId,
        _ => Reader::MulMat,
    };
    (stage, reader)
}

/// Whether the device can do `reader` with this weight (`ggml-cuda.cu:ggml_backend_cuda_device_supports_op`,
/// `ggml-metal-device.m:ggml_metal_device_supports_op`); weights that it cannot read stay on the host.
fn device_reads(backend: Backend, facts: &LoaderFacts, reader: Reader, shape: Shape, format: StorageFormat) -> bool {
    use StorageFormat as F;
    let [row, rows, _, _] = shape.0;
    let cuda = match backend {
        Backend::Cpu => return false,
        Backend::Cuda { .. } => true,
        Backend::Metal => false,
    };
    match reader {
        Reader::MulMat | Reader::MulMatId if cuda => {
            matches!(format, F::F32 | F::F16 | F::Bf16)
                || (format.is_quantized() && !matches!(format, F::Tq1_0 | F::Tq2_0 | F::Q8_1))
        }
        Reader::MulMat | Reader::MulMatId => !matches!(format, F::Nvfp4 | F::Tq1_0),
        Reader::GetRows if cuda => cuda_gathers(format, row),
        Reader::GetRows => !matches!(format, F::Nvfp4 | F::Tq1_0),
        Reader::Elementwise if cuda => matches!(format, F::F32 | F::F16),
        Reader::AddId if cuda => true,
        Reader::Elementwise | Reader::AddId => format == F::F32,
        Reader::Scale if cuda => matches!(format, F::F32 | F::Bf16),
        Reader::Scale => matches!(format, F::F32 | F::F16),
        Reader::SsmConv if cuda => rows.is_multiple_of(128),
        Reader::SsmScan if cuda => cuda_scans(facts, shape),
        Reader::Rope | Reader::SsmConv | Reader::SsmScan | Reader::Wkv6 | Reader::Im2col | Reader::Unused => true,
    }
}

/// Whether CUDA gathers rows of `row` elements (`ggml-cuda.cu:ggml_backend_cuda_device_supports_op`).
pub(super) const fn cuda_gathers(format: StorageFormat, row: u64) -> bool {
    use StorageFormat as F;
    match format {
        F::F32 | F::F16 | F::Bf16 | F::I32 => true,
        F::Iq4Nl | F::Mxfp4 => row.is_multiple_of(256),
        F::Nvfp4 | F::Tq1_0 | F::Tq2_0 | F::Q8_1 | F::Q8K => false,
        other => other.is_quantized(),
    }
}

/// CUDA's scan is written for the state sizes of published models only.
fn cuda_scans(facts: &LoaderFacts, shape: Shape) -> bool {
    let [row, heads, _, _] = shape.0;
    let Some(scan) = facts.scan else { return true };
    let head_dim = scan.d_inner.checked_div(heads).unwrap_or(0);
    if row == 1 {
        matches!(scan.d_state, 96 | 128 | 256) && head_dim.is_multiple_of(16)
    } else {
        row == 16 && head_dim == 1 && heads.is_multiple_of(128) && scan.n_groups <= 1
    }
}

/// Whether the processor has a faster layout for this matrix (`ggml-cpu/repack.cpp`), on x86 with AVX2.
fn repacks(reader: Reader, shape: Shape, format: StorageFormat) -> bool {
    use StorageFormat as F;
    let [_, rows, _, _] = shape.0;
    let stacked = match reader {
        Reader::MulMat => shape.n_dims() == 2,
        Reader::MulMatId => shape.n_dims() == 3,
        _ => false,
    };
    stacked && matches!(format, F::Q4_0 | F::Q4K | F::Iq4Nl | F::Mxfp4) && rows.is_multiple_of(8)
}

/// The buffer that a weight goes to: an override's, or the first of its stage's list that fits.
pub(super) fn place(
    layout: &Layout,
    repack: bool,
    facts: &LoaderFacts,
    tensor: &Tensor,
    (stage, reader): (Stage, Reader),
    layer: u32,
) -> WeightPlace {
    let reads = |device: u8| device_reads(layout.backend(Location::Device(device)), facts, reader, tensor.shape, tensor.format);
    let wanted = match layout.overridden(&tensor.name) {
        // What is sent to a device goes there, whether it can read it or not.
        Some(Location::Device(device)) => return WeightPlace::Device(device),
        Some(Location::Host) => Location::Host,
        None => match stage {
            Stage::Input => layout.input(),
            Stage::Layer => layout.layer(layer),
            Stage::Output => layout.output(),
        },
    };
    match (wanted, layout.pinning_device()) {
        (Location::Device(device), _) if reads(device) => WeightPlace::Device(device),
        (_, Some(device)) if reads(device) => WeightPlace::HostPinned,
        _ if repack && repacks(reader, tensor.shape, tensor.format) => WeightPlace::HostRepacked,
        _ => WeightPlace::Host,
    }
}
