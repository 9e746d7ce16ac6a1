//! What `llama-quantize` makes of each tensor (`src/llama-quant.cpp`), from its name and shape and a handful of counts.
//!
//! The rules depend on the order in which tensors are visited, because some count: the first eighth of the
//! down projections, every third of the value projections. The order is by layer, then by name.

use alloc::format;
use alloc::string::ToString;

use super::build::Build;
use super::conversion::converted;
use super::file_type::FileType;
use super::loader_facts::LoaderFacts;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::tensor::{Tensor, TensorTable};

/// Broad roles by which types are chosen (`llama-quant.cpp:tensor_get_category`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Category {
    TokenEmbedding,
    AttentionQ,
    /// Values, and the fused matrices that hold them.
    AttentionV,
    AttentionK,
    AttentionOutput,
    AttentionGate,
    FfnUp,
    FfnGate,
    FfnDown,
    FfnLatent,
    Output,
    Other,
}

impl Category {
    fn of(name: &str) -> Self {
        let has = |part: &str| name.contains(part);
        if name == "output.weight" {
            Self::Output
        } else if matches!(name, "token_embd.weight" | "per_layer_token_embd.weight") {
            Self::TokenEmbedding
        } else if ["attn_qkv.weight", "attn_qkv_gate.weight", "attn_kv_b.weight", "attn_v.weight"].into_iter().any(has) {
            Self::AttentionV
        } else if has("attn_k.weight") {
            Self::AttentionK
        } else if has("attn_q.weight") {
            Self::AttentionQ
        } else if has("attn_output.weight") {
            Self::AttentionOutput
        } else if has("ffn_up") {
            Self::FfnUp
        } else if has("ffn_gate") {
            Self::FfnGate
        } else if has("ffn_down") {
            Self::FfnDown
        } else if has("ffn_latent") {
            Self::FfnLatent
        } else if has("attn_gate.weight") {
            Self::AttentionGate
        } else {
            Self::Other
        }
    }
}

/// Parts of names that are never quantized (`llama-quant.cpp:tensor_allows_quantization`): norms, routers, small
/// convolutions, small matrices of single families, position tables.
const NEVER: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// The same for GLM 5's successor alone.
const NEVER_GLM5_NEXT: &[&str] = &[
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
];

fn may_be_quantized(build: Build, facts: &LoaderFacts, tensor: &Tensor) -> bool {
    let name = tensor.name.as_str();
    if tensor.shape.n_dims() < 2 || !name.ends_with("weight") || matches!(name, "position_embd.weight" | "token_types.weight") {
        return false;
    }
    let glm5_next: &[&str] = if facts.arch == "glm5-next" { NEVER_GLM5_NEXT } else { &[] };
    let mut never = NEVER.iter().chain(glm5_next).chain(build.never_quantized(&facts.arch));
    !never.any(|part| name.contains(part))
}

/// The layer that a name starts with (`blk.7.`), -1 without one, as the engine reads it.
fn layer_of(name: &str) -> i64 {
    let digits = name.strip_prefix("blk.").map_or("", |rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest.get(..end).unwrap_or("")
    });
    digits.parse().unwrap_or(-1)
}

/// The order in which the engine visits and writes tensors (`llama-model-loader.h:weight_name_comparer`).
#[must_use]
pub fn in_engine_order(mut table: TensorTable) -> TensorTable {
    table.tensors.sort_by(|a, b| (layer_of(&a.name), &a.name).cmp(&(layer_of(&b.name), &b.name)));
    table
}

/// The tensors of the file that the converter and `llama-quantize` make from `table`, in the order of that file.
///
/// `table` says names and shapes; its formats are replaced.
///
/// # Errors
/// [`MathError::Refused`] where the quantizer gives up.
pub fn file_tensors(
    build: Build,
    facts: &LoaderFacts,
    table: &TensorTable,
    file_type: FileType,
) -> Result<TensorTable, MathError> {
    match file_type {
        FileType::F32 | FileType::F16 | FileType::Bf16 => {
            Ok(in_engine_order(converted(facts, table, file_type.default_format())?))
        }
        _ => quantized(build, facts, &converted(facts, table, StorageFormat::Bf16)?, file_type),
    }
}

/// What `llama-quantize` makes of a converted file, in the order of the file that it writes.
///
/// # Errors
/// [`MathError::Refused`] where the quantizer gives up.
pub fn quantized(build: Build, facts: &LoaderFacts, table: &TensorTable, file_type: FileType) -> Result<TensorTable, MathError> {
    let mut table = in_engine_order(table.clone());
    let mut chooser = Chooser::new(build, facts, &table, file_type);
    for tensor in &mut table.tensors {
        tensor.format = chooser.format(tensor)?;
    }
    Ok(table)
}

/// The quantizer's state while it visits tensors (`llama-quant.cpp:quantize_state_impl`).
struct Chooser<'a> {
    build: Build,
    facts: &'a LoaderFacts,
    file_type: FileType,
    /// Tensors that hold values.
    n_values: i64,
    /// Without an output matrix the embedding is treated as one.
    tied: bool,
    seen_values: i64,
    seen_down: i64,
    seen_gate: i64,
    seen_up: i64,
}

/// Whether a layer is among those that mixes store better: the first and the last eighth, and every third between.
const fn use_more_bits(layer: i64, layers: i64) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

impl<'a> Chooser<'a> {
    fn new(build: Build, facts: &'a LoaderFacts, table: &TensorTable, file_type: FileType) -> Self {
        let count = |category| table.tensors.iter().filter(|tensor| Category::of(&tensor.name) == category).count();
        Self {
            build,
            facts,
            file_type,
            n_values: i64::try_from(count(Category::AttentionV)).unwrap_or(i64::MAX),
            tied: count(Category::Output) == 0,
            seen_values: 0,
            seen_down: 0,
            seen_gate: 0,
            seen_up: 0,
        }
    }

    /// `llama-quant.cpp:llama_tensor_get_type`.
    fn format(&mut self, tensor: &Tensor) -> Result<StorageFormat, MathError> {
        if !may_be_quantized(self.build, self.facts, tensor) {
            return Ok(tensor.format);
        }
        let default = self.file_type.default_format();
        if !default.is_quantized() {
            return Ok(default);
        }
        let chosen = self.choose(tensor, default)?;
        if tensor.format.is_quantized() {
            // Already in blocks (gpt-oss's experts): quantizing again is refused unless asked for, so files keep them.
            return Ok(tensor.format);
        }
        self.fit(tensor, chosen)
    }

    fn refused(&self, reason: alloc::string::String) -> MathError {
        MathError::Refused { engine: self.build.engine().to_string(), reason }
    }

    /// A smaller block where rows are no whole number of blocks (`llama-quant.cpp:tensor_type_fallback`).
    fn fit(&self, tensor: &Tensor, chosen: StorageFormat) -> Result<StorageFormat, MathError> {
        use StorageFormat as F;
        let row = tensor.shape.row();
        if row.is_multiple_of(chosen.block_len()) {
            return Ok(chosen);
        }
        let smaller = match chosen {
            F::Iq1S | F::Iq1M | F::Iq2Xxs | F::Iq2Xs | F::Iq2S | F::Iq3Xxs | F::Iq3S | F::Iq4Xs => F::Iq4Nl,
            F::Q2_0 | F::Q2K | F::Q3K | F::Tq1_0 | F::Tq2_0 => F::Q4_0,
            F::Q4K => F::Q5_0,
            F::Q5K => F::Q5_1,
            F::Q6K => F::Q8_0,
            other if other.block_len() <= 32 => other,
            other => {
                return Err(self.refused(format!(
                    "{}: rows of {row} elements do not fit {other}, and no smaller block stands in for it",
                    tensor.name
                )));
            }
        };
        Ok(if row.is_multiple_of(smaller.block_len()) { smaller } else { F::F16 })
    }

    /// The layer by which a feed-forward tensor is judged: its place in the count, or with experts its number.
    fn layer(&self, tensor: &Tensor, seen: i64) -> Result<i64, MathError> {
        if self.facts.n_experts <= 1 {
            return Ok(seen);
        }
        let layer = layer_of(&tensor.name);
        if (0..i64::from(self.facts.n_layers_all)).contains(&layer) {
            Ok(layer)
        } else {
            Err(self.refused(format!(
                "{}: a mixture of experts needs a layer below {} in the name",
                tensor.name, self.facts.n_layers_all
            )))
        }
    }

    /// `llama-quant.cpp:llama_tensor_get_type_impl`.
    fn choose(&mut self, tensor: &Tensor, default: StorageFormat) -> Result<StorageFormat, MathError> {
        use FileType as T;
        use StorageFormat as F;
        let name = tensor.name.as_str();
        let category = Category::of(name);
        let file_type = self.file_type;
        let arch = self.facts.arch.as_str();
        if arch == "glm5-next" && ["attn_q_a", "attn_q_b", "nextn.eh_proj"].iter().any(|part| name.contains(part)) {
            return Ok(F::Q8_0);
        }
        let mut default = default;
        if self.build.muse_spark_keeps_gates(arch)
            && matches!(category, Category::FfnLatent | Category::AttentionGate)
            && is_below_q8_0(default)
        {
            default = F::Q8_0;
        }
        if category == Category::Output || (self.tied && category == Category::TokenEmbedding) {
            return Ok(match file_type {
                T::Mxfp4Moe => F::Q8_0,
                _ if arch == "falcon" || !tensor.shape.row().is_multiple_of(default.block_len()) => F::Q8_0,
                T::Iq2Xxs | T::Iq2Xs | T::Iq3Xxs | T::Iq1S | T::Iq2S | T::Iq2M | T::Iq1M => F::Q5K,
                _ if default == F::Q8_0 => default,
                _ => F::Q6K,
            });
        }
        if file_type == T::Mxfp4Moe {
            let expert = if self.build.mxfp4_moe_goes_by_name() {
                name.contains("_exps.") || name.contains("_chexps.")
            } else {
                let [_, _, stacked, _] = tensor.shape.0;
                stacked > 1
                    && (arch != "bailingmoe3" || matches!(category, Category::FfnUp | Category::FfnGate | Category::FfnDown))
            };
            return Ok(if expert { F::Mxfp4 } else { F::Q8_0 });
        }
        if category == Category::TokenEmbedding {
            return Ok(match file_type {
                T::Iq2Xxs | T::Iq2Xs | T::Iq1S | T::Iq1M => F::Q2K,
                T::Iq2S | T::Iq2M | T::Iq3Xxs => F::Iq3S,
                T::Tq1_0 | T::Tq2_0 | T::Q2_0 => F::Q4K,
                _ => default,
            });
        }
        if matches!(file_type, T::Iq2Xxs | T::Iq2Xs | T::Iq1S | T::Iq2S | T::Iq2M | T::Iq1M) {
            return Ok(self.choose_below_3_bits(category, default));
        }
        match category {
            Category::AttentionV => Ok(self.choose_values(default)),
            Category::AttentionK if self.facts.n_experts == 8 => Ok(F::Q8_0),
            Category::AttentionK | Category::AttentionQ => Ok(match file_type {
                T::Iq3Xs => F::Iq3Xxs,
                T::Iq3Xxs => F::Iq2S,
                _ => default,
            }),
            Category::FfnDown => self.choose_down(tensor, default),
            Category::AttentionOutput => Ok(self.choose_attention_output(default)),
            Category::FfnGate | Category::FfnUp => {
                let seen = if category == Category::FfnGate { self.seen_gate } else { self.seen_up };
                let (layer, layers) = (self.layer(tensor, seen)?, i64::from(self.facts.n_layers_all));
                if category == Category::FfnGate {
                    self.seen_gate = seen.saturating_add(1);
                } else {
                    self.seen_up = seen.saturating_add(1);
                }
                let middle = layer >= layers / 8 && layer < 7 * layers / 8;
                Ok(if file_type == T::Iq3Xs && middle { F::Iq3Xxs } else { default })
            }
            Category::AttentionGate | Category::FfnLatent | Category::TokenEmbedding | Category::Output | Category::Other => {
                Ok(default)
            }
        }
    }

    /// The codebook mixes below three bits, which share one rule.
    fn choose_below_3_bits(&mut self, category: Category, default: StorageFormat) -> StorageFormat {
        use FileType as T;
        use StorageFormat as F;
        let larger = matches!(self.file_type, T::Iq2S | T::Iq2M);
        let better = if larger { F::Iq3S } else { F::Q2K };
        match category {
            Category::AttentionV => {
                self.seen_values = self.seen_values.saturating_add(1);
                if self.facts.n_gqa() >= 4 || self.facts.n_experts >= 4 { F::Q4K } else { better }
            }
            Category::AttentionK if self.facts.n_experts == 8 => F::Q4K,
            Category::FfnDown => {
                let seen = self.seen_down;
                self.seen_down = seen.saturating_add(1);
                if seen < i64::from(self.facts.n_layers_all) / 8 { better } else { default }
            }
            Category::AttentionOutput if self.facts.n_experts == 8 => F::Q5K,
            Category::AttentionOutput if larger => F::Iq3S,
            Category::AttentionOutput if matches!(self.file_type, T::Iq1S | T::Iq1M) => F::Iq2Xxs,
            _ => default,
        }
    }

    fn choose_values(&mut self, default: StorageFormat) -> StorageFormat {
        use FileType as T;
        use StorageFormat as F;
        let shared = self.facts.n_gqa() >= 4;
        let seen = self.seen_values;
        self.seen_values = seen.saturating_add(1);
        let mut chosen = match self.file_type {
            T::Q2K => {
                if shared {
                    F::Q4K
                } else {
                    F::Q3K
                }
            }
            T::Q2KS | T::Iq3Xs | T::Iq3S if shared => F::Q4K,
            // Without an importance matrix, which we never assume.
            T::Iq3Xxs => {
                if shared {
                    F::Q4K
                } else {
                    F::Iq3S
                }
            }
            T::Iq3M => F::Q4K,
            T::Q3KM => {
                if seen < 2 {
                    F::Q5K
                } else {
                    F::Q4K
                }
            }
            T::Q3KL => F::Q5K,
            T::Iq4Nl | T::Iq4Xs if shared => F::Q5K,
            T::Q4KM | T::Q5KM if use_more_bits(seen, self.n_values) => F::Q6K,
            T::Q4KS if seen < 4 => F::Q5K,
            _ => default,
        };
        if self.facts.is_70b() && matches!(chosen, F::Q3K | F::Q4K) {
            chosen = F::Q5K;
        }
        if self.facts.n_experts == 8 {
            chosen = F::Q8_0;
        }
        chosen
    }

    fn choose_down(&mut self, tensor: &Tensor, default: StorageFormat) -> Result<StorageFormat, MathError> {
        use FileType as T;
        use StorageFormat as F;
        let layer = self.layer(tensor, self.seen_down)?;
        self.seen_down = self.seen_down.saturating_add(1);
        let layers = i64::from(self.facts.n_layers_all);
        let falcon = self.facts.arch == "falcon";
        let first_eighth = layer < layers / 8;
        let first_sixteenth = layer < layers / 16;
        let better = use_more_bits(layer, layers);
        Ok(match self.file_type {
            T::Q2K => F::Q3K,
            T::Q2KS if first_eighth => F::Q4K,
            T::Iq3Xxs => {
                if first_eighth {
                    F::Q4K
                } else {
                    F::Q3K
                }
            }
            T::Q3KM if first_sixteenth => F::Q5K,
            T::Q3KM => {
                if !falcon || better {
                    F::Q4K
                } else {
                    F::Q3K
                }
            }
            T::Iq3M if first_eighth || (self.facts.n_experts == 8 && better) => F::Q4K,
            T::Q3KL => {
                if falcon {
                    F::Q4K
                } else {
                    F::Q5K
                }
            }
            T::Q4KM if falcon && first_sixteenth => F::Q6K,
            T::Q4KM if falcon => {
                if better {
                    F::Q5K
                } else {
                    F::Q4K
                }
            }
            T::Q4KM | T::Q5KM if better => F::Q6K,
            T::Iq4Nl | T::Iq4Xs if first_eighth => F::Q5K,
            T::Q4KS if !falcon && first_eighth => F::Q5K,
            _ => default,
        })
    }

    fn choose_attention_output(&self, default: StorageFormat) -> StorageFormat {
        use FileType as T;
        use StorageFormat as F;
        if self.facts.arch == "falcon" {
            return if self.file_type == T::Q3KL { F::Q4K } else { default };
        }
        if self.facts.n_experts == 8 {
            return match self.file_type {
                T::Q2K
                | T::Iq3Xs
                | T::Iq3Xxs
                | T::Q3KS
                | T::Q3KM
                | T::Iq4Nl
                | T::Q4KS
                | T::Q4KM
                | T::Iq3S
                | T::Iq3M
                | T::Iq4Xs => F::Q5K,
                _ => default,
            };
        }
        match self.file_type {
            T::Q2K => F::Q3K,
            T::Iq3Xxs => F::Iq3S,
            T::Q3KM | T::Iq3M => F::Q4K,
            T::Q3KL => F::Q5K,
            _ => default,
        }
    }
}

/// Fewer bits per element than `q8_0`, compared without fractions.
fn is_below_q8_0(format: StorageFormat) -> bool {
    let q8_0 = StorageFormat::Q8_0;
    format.is_quantized() && format.block_bytes() * q8_0.block_len() < q8_0.block_bytes() * format.block_len()
}

/// Bytes and count of the tensors in each format, by format: the summary that `llama-quantize` prints.
///
/// # Errors
/// [`MathError::Overflow`] or [`MathError::PartialBlock`].
pub fn by_format(
    table: &TensorTable,
) -> Result<alloc::collections::BTreeMap<StorageFormat, (u64, crate::units::Bytes)>, MathError> {
    let mut sums: alloc::collections::BTreeMap<StorageFormat, (u64, crate::units::Bytes)> = alloc::collections::BTreeMap::new();
    for tensor in &table.tensors {
        let entry = sums.entry(tensor.format).or_default();
        *entry = (entry.0.saturating_add(1), entry.1.plus(tensor.bytes()?)?);
    }
    Ok(sums)
}
