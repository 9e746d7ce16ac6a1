//! Which attention backend runs a layer, which blocks it accepts and how it packs a page.
//!
//! The order of preference is that of `vllm/platforms/cuda.py:_get_backend_priorities`; what each accepts stands in
//! `vllm/v1/attention/backends/*.py` and `…/mla/*.py` (`validate_configuration`). The builds that vLLM ships are taken for
//! granted: FlashAttention 2, 3 and 4 and FlashInfer with its kernels.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::VERSION;
use super::cache_spec::{CacheSpec, StrideAlignment};
use super::options::{CacheDtype, Gpu};
use crate::error::MathError;
use crate::units::{add, mul};

/// An attention backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
#[expect(missing_docs, reason = "the engine's own names, in its spelling")]
pub enum Backend {
    FlashAttn,
    FlashAttnDiffKv,
    FlashInfer,
    TritonAttn,
    TritonFlashAttn,
    TritonFlashInfer,
    FlexAttention,
    TurboQuant,
    FlashAttnMla,
    FlashMla,
    FlashInferMla,
    CutlassMla,
    TritonMla,
    FlashAttnMlaSparse,
    FlashAttnMlaSparseFa4,
    FlashMlaSparse,
    FlashInferMlaSparse,
    FlashInferMlaSparseSm90,
    FlashInferMlaSparseSm120,
    SparseIndexer,
    DeepSeekV4,
}

/// What a layer asks of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The GPU.
    pub gpu: Gpu,
    /// Elements of a key head (of the latent with its rope part).
    pub head_size: u64,
    /// Elements of a value head.
    pub head_size_v: u64,
    /// Query heads of this rank.
    pub heads: u64,
    /// How the cache is stored.
    pub cache: CacheDtype,
    /// `--block-size`, when it was given.
    pub block_tokens: Option<u64>,
    /// Whether heads have sinks.
    pub sinks: bool,
    /// Whether image tokens see each other.
    pub mm_prefix: bool,
    /// Whether it is a sliding window.
    pub window: bool,
    /// Whether positions are linear biases on scores.
    pub alibi: bool,
    /// Elements of the position-free part of a head (latent attention).
    pub qk_nope: u64,
    /// Elements of the rope part (latent attention).
    pub qk_rope: u64,
    /// Tokens a sparse selector chooses; `None` for dense attention.
    pub selected: Option<u64>,
    /// Whether latents are expanded before they are cached.
    pub expanded: bool,
    /// Ranks that share a request's tokens.
    pub context_parallel: u64,
}

fn refuse(reason: String) -> MathError {
    MathError::Refused { engine: VERSION.into(), reason }
}

impl Backend {
    /// The engine's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlashAttn => "FLASH_ATTN",
            Self::FlashAttnDiffKv => "FLASH_ATTN_DIFFKV",
            Self::FlashInfer => "FLASHINFER",
            Self::TritonAttn => "TRITON_ATTN",
            Self::TritonFlashAttn => "TRITON_FLASH_ATTN",
            Self::TritonFlashInfer => "TRITON_FLASHINFER",
            Self::FlexAttention => "FLEX_ATTENTION",
            Self::TurboQuant => "TURBOQUANT",
            Self::FlashAttnMla => "FLASH_ATTN_MLA",
            Self::FlashMla => "FLASHMLA",
            Self::FlashInferMla => "FLASHINFER_MLA",
            Self::CutlassMla => "CUTLASS_MLA",
            Self::TritonMla => "TRITON_MLA",
            Self::FlashAttnMlaSparse => "FLASH_ATTN_MLA_SPARSE",
            Self::FlashAttnMlaSparseFa4 => "FLASH_ATTN_MLA_SPARSE_FA4",
            Self::FlashMlaSparse => "FLASHMLA_SPARSE",
            Self::FlashInferMlaSparse => "FLASHINFER_MLA_SPARSE",
            Self::FlashInferMlaSparseSm90 => "FLASHINFER_MLA_SPARSE_SM90",
            Self::FlashInferMlaSparseSm120 => "FLASHINFER_MLA_SPARSE_SM120",
            Self::SparseIndexer => "DEEPSEEK_V32_INDEXER",
            Self::DeepSeekV4 => "FLASHMLA_SPARSE_DSV4",
        }
    }

    /// Kernel block sizes, exact ones and (`true`) ones whose multiples do as well (`get_supported_kernel_block_sizes`).
    #[must_use]
    pub const fn kernel_blocks(self, needs: &Needs) -> &'static [(u64, bool)] {
        const ANY_16: &[(u64, bool)] = &[(16, true)];
        const ANY_64: &[(u64, bool)] = &[(64, true)];
        const ONLY_64: &[(u64, bool)] = &[(64, false)];
        let hopper_fp8_512 = needs.gpu.major() == 9 && needs.cache.is_plain_fp8() && needs.head_size == 512;
        match self {
            Self::FlashAttn | Self::FlashAttnDiffKv => {
                let blackwell_256 = matches!(needs.gpu.major(), 10 | 11)
                    && needs.head_size == 256
                    && needs.head_size_v == 256
                    && !needs.sinks
                    && !needs.mm_prefix
                    && !needs.cache.is_quantized()
                    && needs.context_parallel <= 1;
                if hopper_fp8_512 {
                    ONLY_64
                } else if blackwell_256 {
                    &[(128, false)]
                } else {
                    ANY_16
                }
            }
            Self::FlashInfer => &[(16, false), (32, false), (64, false)],
            Self::TritonFlashAttn if hopper_fp8_512 => ONLY_64,
            Self::TritonFlashInfer | Self::FlashMla | Self::SparseIndexer => ONLY_64,
            Self::TurboQuant => &[(16, false), (32, false), (64, false), (128, false)],
            Self::FlashInferMla => &[(32, false), (64, false)],
            Self::CutlassMla => &[(128, false)],
            Self::FlashMlaSparse if needs.gpu.major() == 10 && needs.cache.is_quantized() => ONLY_64,
            Self::FlashAttnMlaSparse
            | Self::FlashAttnMlaSparseFa4
            | Self::FlashMlaSparse
            | Self::FlashInferMlaSparseSm90
            | Self::FlashInferMlaSparseSm120 => ANY_64,
            Self::FlashInferMlaSparse => &[(32, true)],
            Self::DeepSeekV4 => &[(256, false)],
            Self::TritonFlashAttn | Self::TritonAttn | Self::FlexAttention | Self::FlashAttnMla | Self::TritonMla => ANY_16,
        }
    }

    /// The smallest kernel block.
    #[must_use]
    pub fn smallest_block(self, needs: &Needs) -> u64 {
        self.kernel_blocks(needs).iter().map(|(tokens, _)| *tokens).min().unwrap_or(1)
    }

    /// Whether a manager block of `tokens` can be split into kernel blocks.
    #[must_use]
    pub fn accepts(self, tokens: u64, needs: &Needs) -> bool {
        self.kernel_blocks(needs).iter().any(|(block, _)| tokens.is_multiple_of(*block))
    }

    /// The block it prefers when none was asked for (`get_preferred_block_size`).
    #[must_use]
    pub fn preferred(self, default: u64, needs: &Needs) -> u64 {
        if self.accepts(default, needs) { default } else { self.smallest_block(needs) }
    }

    /// How it packs a page (`customize_spec`).
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn pack(self, spec: CacheSpec, needs: &Needs) -> Result<CacheSpec, MathError> {
        let (k, v) = (needs.head_size, needs.head_size_v);
        let rows = |rows: u64| -> Result<CacheSpec, MathError> {
            Ok(CacheSpec { stride_alignment: StrideAlignment::Bytes(mul(rows, spec.state_bytes)?), ..spec })
        };
        Ok(match self {
            Self::FlashInfer | Self::TritonFlashInfer if matches!(needs.cache, CacheDtype::Nvfp4) => {
                // Nibbles, and a scale byte for every 16 of them; keys and values are slots of their own.
                CacheSpec { head_slots: mul(2, spec.head_slots)?, state_bytes: add(k / 2, k / 16)?, ..spec }
            }
            Self::TritonAttn | Self::TritonFlashAttn | Self::TritonFlashInfer => match needs.cache {
                CacheDtype::Int4PerTokenHead => CacheSpec { state_bytes: add(add(k / 2, v / 2)?, 8)?, ..spec },
                CacheDtype::Int8PerTokenHead | CacheDtype::Fp8PerTokenHead => {
                    CacheSpec { state_bytes: add(add(k, v)?, 8)?, ..spec }
                }
                _ => spec,
            },
            Self::TurboQuant if needs.cache.is_turbo() => CacheSpec { state_bytes: turbo_slot(needs.cache, k)?, ..spec },
            Self::FlashAttnMlaSparse | Self::FlashInferMlaSparseSm90 => rows(1)?,
            Self::FlashMlaSparse if needs.cache.is_quantized() && needs.gpu.major() != 10 => {
                CacheSpec { stride_alignment: StrideAlignment::KernelBlock(64), ..spec }
            }
            Self::FlashMlaSparse => rows(1)?,
            Self::FlashInferMlaSparse => rows(32)?,
            Self::FlashAttnMlaSparseFa4 | Self::FlashInferMlaSparseSm120 => rows(64)?,
            _ => spec,
        })
    }

    /// What a cache format becomes on it (`_canonicalize_sparse_mla_kv_cache_dtype`).
    #[must_use]
    pub const fn cache_dtype(self, asked: CacheDtype) -> CacheDtype {
        match (self, asked) {
            (Self::FlashMlaSparse, CacheDtype::Nvfp4DsMla) => asked,
            (Self::FlashMlaSparse, other) if other.is_quantized() => CacheDtype::Fp8DsMla,
            (Self::FlashInferMlaSparseSm120, CacheDtype::Auto | CacheDtype::Fp8 | CacheDtype::Fp8E4M3) => CacheDtype::Fp8DsMla,
            _ => asked,
        }
    }

    /// The backend of a layer with keys and values.
    ///
    /// # Errors
    /// [`MathError::Refused`] with every backend's reasons.
    pub fn of_attention(needs: &Needs) -> Result<Self, MathError> {
        let major = needs.gpu.major();
        let mut order = Vec::new();
        if major == 10 {
            order.extend(needs.mm_prefix.then_some(Self::TritonFlashInfer));
            order.extend([Self::FlashInfer, Self::FlashAttn]);
        } else {
            order.extend((major == 9 && needs.mm_prefix).then_some(Self::TritonFlashAttn));
            order.extend([Self::FlashAttn, Self::FlashInfer]);
        }
        order.extend([Self::TritonAttn, Self::FlexAttention, Self::TurboQuant]);
        let chosen = choose(&order, needs, Self::reasons_against)?;
        let fp8 = matches!(needs.cache, CacheDtype::Fp8 | CacheDtype::Fp8E4M3 | CacheDtype::Fp8PerTokenHead);
        if matches!(chosen, Self::TritonAttn) && fp8 && needs.gpu.capability < 89 {
            return Err(refuse(format!(
                "FP8 KV cache is not supported by the Triton attention backend on this GPU (compute capability {}.{}); \
                 native FP8 (fp8e4nv) requires SM89+. Re-run with --kv-cache-dtype bfloat16.",
                major,
                needs.gpu.capability % 10
            )));
        }
        if matches!(chosen, Self::FlashAttn) && needs.alibi && needs.cache.is_quantized() {
            // Linear biases need FlashAttention 2, which reads no 8-bit cache.
            return Err(refuse(format!("FlashAttention does not support {} kv-cache on this device.", needs.cache.name())));
        }
        Ok(chosen)
    }

    fn reasons_against(self, needs: &Needs) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        let major = needs.gpu.major();
        let mut check = |holds: bool, reason: &'static str| {
            if !holds {
                reasons.push(reason);
            }
        };
        let flash = |needs: &Needs, mm_prefix: bool| -> (bool, bool, bool) {
            // FlashAttention 3 on Hopper (4 above 256 elements a head), 4 on Blackwell's data center parts, 2 elsewhere.
            let newer = matches!(major, 9..=11);
            let head = needs.head_size.is_multiple_of(8) && (needs.head_size <= 256 || (newer && needs.head_size <= 512));
            let fp8 = needs.cache.is_plain_fp8();
            let fits = match major {
                9 => !mm_prefix && (needs.head_size <= 256 || needs.head_size == 512),
                10 | 11 => needs.head_size <= 128,
                _ => false,
            };
            (head, !needs.cache.is_quantized() || (fp8 && newer), !needs.cache.is_quantized() || (fp8 && fits))
        };
        match self {
            Self::FlashAttn => {
                let (head, dtype, combination) = flash(needs, needs.mm_prefix);
                check(head, "head_size not supported");
                check(dtype, "kv_cache_dtype not supported");
                check(needs.block_tokens.is_none_or(|tokens| self.accepts(tokens, needs)), "block_size not supported");
                check(!needs.mm_prefix || matches!(major, 9..=11), "partial multimodal token full attention not supported");
                check(
                    !needs.mm_prefix || if major == 9 { needs.head_size > 256 } else { needs.head_size <= 128 },
                    "mm_prefix (PrefixLM bidirectional attention) requires FlashAttention v4",
                );
                check(!needs.sinks || matches!(major, 9..=11), "attention sinks not supported");
                check(combination, "FP8 KV cache requires FA3 on SM90, FA4 with head_size=512 on SM90, or FA4 on SM100");
            }
            Self::TritonFlashAttn => {
                let (head, dtype, combination) = flash(needs, false);
                check(head && matches!(needs.head_size, 256 | 512), "head_size not supported");
                check(dtype, "kv_cache_dtype not supported");
                check(needs.block_tokens.is_none_or(|tokens| self.accepts(tokens, needs)), "block_size not supported");
                check(combination, "FP8 KV cache requires FA3 on SM90, FA4 with head_size=512 on SM90, or FA4 on SM100");
            }
            Self::FlashInfer | Self::TritonFlashInfer => {
                let composite = matches!(self, Self::TritonFlashInfer);
                check(
                    matches!(needs.head_size, 256 | 512) || (!composite && matches!(needs.head_size, 64 | 128)),
                    "head_size not supported",
                );
                let common = matches!(
                    needs.cache,
                    CacheDtype::Auto
                        | CacheDtype::Float16
                        | CacheDtype::Bfloat16
                        | CacheDtype::Fp8
                        | CacheDtype::Fp8E4M3
                        | CacheDtype::Fp8E5M2
                );
                check(common || (!composite && matches!(needs.cache, CacheDtype::Nvfp4)), "kv_cache_dtype not supported");
                check(needs.block_tokens.is_none_or(|tokens| self.accepts(tokens, needs)), "block_size not supported");
                check(!needs.mm_prefix || composite, "partial multimodal token full attention not supported");
                check(!needs.sinks || matches!(major, 9 | 10 | 12), "attention sinks not supported");
                check(needs.gpu.capability >= 80 && needs.gpu.capability <= 121, "compute capability not supported");
                if matches!(needs.cache, CacheDtype::Nvfp4) && matches!(major, 8 | 9 | 12) {
                    check(needs.head_size != 64, "fa2 prefill misreads an NVFP4 KV cache at head_size 64");
                    check(!needs.sinks, "the sink prefill wrapper cannot read an NVFP4 KV cache");
                }
            }
            Self::TritonAttn => {
                check(needs.head_size >= 32, "head_size not supported");
                check(
                    !matches!(needs.cache, CacheDtype::Nvfp4 | CacheDtype::Fp8DsMla | CacheDtype::Nvfp4DsMla)
                        && !needs.cache.is_turbo(),
                    "kv_cache_dtype not supported",
                );
                check(needs.block_tokens.is_none_or(|tokens| self.accepts(tokens, needs)), "block_size not supported");
            }
            Self::FlexAttention => {
                check(!needs.cache.is_quantized(), "kv_cache_dtype not supported");
                check(needs.block_tokens.is_none_or(|tokens| self.accepts(tokens, needs)), "block_size not supported");
                check(!needs.sinks, "attention sinks not supported");
            }
            Self::TurboQuant => {
                check(needs.cache.is_turbo(), "kv_cache_dtype not supported");
                check(needs.block_tokens.is_none_or(|tokens| self.accepts(tokens, needs)), "block_size not supported");
                check(!needs.mm_prefix, "partial multimodal token full attention not supported");
                check(!needs.sinks, "attention sinks not supported");
                check(!needs.window, "sliding window not supported");
            }
            _ => check(false, "non-MLA not supported"),
        }
        reasons
    }

    /// The backend of latent attention.
    ///
    /// # Errors
    /// [`MathError::Refused`] with every backend's reasons.
    pub fn of_latent(needs: &Needs) -> Result<Self, MathError> {
        let sparse_10: &[Self] = if needs.cache.is_quantized() {
            &[Self::FlashInferMlaSparse, Self::FlashMlaSparse]
        } else if needs.heads <= 16 {
            &[Self::FlashAttnMlaSparseFa4, Self::FlashInferMlaSparse, Self::FlashMlaSparse]
        } else {
            &[Self::FlashMlaSparse, Self::FlashInferMlaSparse]
        };
        let mut order = Vec::new();
        match needs.gpu.major() {
            10 => {
                order.extend([Self::FlashInferMla, Self::CutlassMla, Self::FlashAttnMla, Self::FlashMla, Self::TritonMla]);
                order.extend_from_slice(sparse_10);
            }
            12 => order.extend([Self::TritonMla, Self::FlashInferMlaSparseSm120]),
            _ => {
                order.extend([Self::FlashAttnMla, Self::FlashMla, Self::FlashInferMla, Self::TritonMla]);
                if needs.head_size == 512 {
                    order.push(Self::FlashInferMlaSparseSm90);
                }
                order.extend([Self::FlashAttnMlaSparse, Self::FlashMlaSparse]);
                if needs.head_size != 512 {
                    order.push(Self::FlashInferMlaSparseSm90);
                }
            }
        }
        let chosen = choose(&order, needs, Self::latent_reasons_against)?;
        if matches!(chosen, Self::TritonMla) && needs.cache.is_plain_fp8() && needs.gpu.capability < 89 {
            return Err(refuse(format!(
                "FP8 KV cache is not supported by the Triton MLA backend on this GPU (compute capability {}.{}); native \
                 FP8 (fp8e4nv) requires SM89+. Re-run with --kv-cache-dtype bfloat16.",
                needs.gpu.major(),
                needs.gpu.capability % 10
            )));
        }
        Ok(chosen)
    }

    fn latent_reasons_against(self, needs: &Needs) -> Vec<&'static str> {
        use CacheDtype as D;
        let mut reasons = Vec::new();
        let major = needs.gpu.major();
        let mut check = |holds: bool, reason: &'static str| {
            if !holds {
                reasons.push(reason);
            }
        };
        let sparse = matches!(
            self,
            Self::FlashAttnMlaSparse
                | Self::FlashAttnMlaSparseFa4
                | Self::FlashMlaSparse
                | Self::FlashInferMlaSparse
                | Self::FlashInferMlaSparseSm90
                | Self::FlashInferMlaSparseSm120
        );
        let plain = !needs.cache.is_quantized();
        let dtype = match self {
            Self::FlashAttnMla | Self::FlashAttnMlaSparse => plain,
            Self::FlashAttnMlaSparseFa4 => matches!(needs.cache, D::Auto | D::Bfloat16),
            Self::FlashMlaSparse => matches!(needs.cache, D::Auto | D::Bfloat16 | D::Fp8DsMla | D::Fp8 | D::Nvfp4DsMla),
            Self::FlashInferMlaSparseSm90 => matches!(needs.cache, D::Auto | D::Bfloat16 | D::Fp8 | D::Fp8E4M3),
            Self::FlashInferMlaSparseSm120 => matches!(needs.cache, D::Auto | D::Fp8 | D::Fp8E4M3 | D::Fp8DsMla),
            _ => plain || needs.cache.is_plain_fp8(),
        };
        let head = match self {
            Self::TritonMla | Self::FlashAttnMlaSparse => true,
            Self::FlashMlaSparse | Self::FlashInferMlaSparse | Self::FlashInferMlaSparseSm90 => {
                matches!(needs.head_size, 512 | 576)
            }
            _ => matches!(needs.head_size, 320 | 512 | 576),
        };
        let capability = match self {
            Self::FlashAttnMla | Self::FlashAttnMlaSparse | Self::FlashInferMlaSparseSm90 => major == 9,
            Self::FlashMla | Self::FlashMlaSparse => matches!(major, 9 | 10),
            Self::FlashInferMla | Self::CutlassMla | Self::FlashInferMlaSparse | Self::FlashAttnMlaSparseFa4 => major == 10,
            Self::FlashInferMlaSparseSm120 => major == 12,
            _ => true,
        };
        check(head, "head_size not supported");
        check(dtype, "kv_cache_dtype not supported");
        check(needs.block_tokens.is_none_or(|tokens| self.accepts(tokens, needs)), "block_size not supported");
        if needs.selected.is_some() != sparse {
            check(false, if sparse { "non-sparse not supported" } else { "sparse not supported" });
        }
        check(capability, "compute capability not supported");
        match self {
            Self::FlashInferMla => {
                check(
                    matches!(needs.qk_nope, 64 | 128 | 192),
                    "FlashInfer MLA kernel requires qk_nope_head_dim in [64, 128, 192]",
                );
            }
            Self::FlashInferMlaSparse => {
                check(matches!(needs.qk_nope, 128 | 192), "FlashInfer MLA Sparse kernel requires qk_nope_head_dim in [128, 192]")
            }
            Self::FlashAttnMlaSparse => {
                check(needs.context_parallel <= 1, "FlashAttention MLA Sparse does not support DCP for now");
            }
            Self::FlashAttnMlaSparseFa4 => {
                check(
                    needs.selected.is_some_and(|tokens| tokens.is_multiple_of(128)),
                    "FA4 sparse MLA requires index_topk % 128 == 0",
                );
                check(matches!(needs.heads, 8 | 16 | 32 | 64 | 128), "FA4 sparse MLA requires (8, 16, 32, 64, 128) query heads");
            }
            Self::FlashMlaSparse => {
                check(
                    !matches!(needs.cache, D::Nvfp4DsMla) || major == 10,
                    "FLASHMLA_SPARSE only supports the nvfp4_ds_mla kv-cache dtype on SM100 (Blackwell)",
                );
            }
            _ => {}
        }
        reasons
    }
}

fn choose(
    order: &[Backend],
    needs: &Needs,
    reasons_against: impl Fn(Backend, &Needs) -> Vec<&'static str>,
) -> Result<Backend, MathError> {
    let mut refusals = Vec::new();
    for backend in order {
        let reasons = reasons_against(*backend, needs);
        if reasons.is_empty() {
            return Ok(*backend);
        }
        refusals.push(format!("{}: [{}]", backend.name(), reasons.join(", ")));
    }
    Err(refuse(format!(
        "No valid attention backend found for cuda with head_size={}, kv_cache_dtype={}, use_mla={}, has_sink={}, \
         use_sparse={}, use_mm_prefix={}. Reasons: {{{}}}.",
        needs.head_size,
        needs.cache.name(),
        needs.qk_rope > 0 || needs.qk_nope > 0,
        needs.sinks,
        needs.selected.is_some(),
        needs.mm_prefix,
        refusals.join(", ")
    )))
}

/// Bytes of a head's key and value (`TurboQuantConfig.slot_size_aligned`): packed keys with two bytes of norm unless they
/// are 8-bit floats, packed values with a scale and a zero point, rounded up to an even number.
fn turbo_slot(cache: CacheDtype, head: u64) -> Result<u64, MathError> {
    let packed = |bits: u64| -> Result<u64, MathError> { Ok(mul(head, bits)?.div_ceil(8)) };
    let key = match cache {
        CacheDtype::TurboK8V4 => head,
        CacheDtype::Turbo4 => add(packed(4)?, 2)?,
        _ => add(packed(3)?, 2)?,
    };
    let value = add(packed(if matches!(cache, CacheDtype::Turbo3) { 3 } else { 4 })?, 4)?;
    let slot = add(key, value)?;
    add(slot, slot % 2)
}
