//! What the metadata say about every layer, with the rules of the architecture's row where they say nothing
//! (`llama-model.cpp:load_hparams`, `src/models/*.cpp:load_arch_hparams`).

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::spec::Window;

use super::arch::{Arch, Attending, CacheRule, IndexerRule, RecurrentRule, Repeats, WindowKind, WindowRule};
use super::keys::Keys;
use crate::error::IngestError;

/// Layers up to which a file is believed; the engine itself stops at 512 (`llama-hparams.h:LLAMA_MAX_LAYERS`).
const MAX_LAYERS: u64 = 4096;

/// Numbers of the whole model and of each layer.
#[derive(Debug, Clone)]
pub(super) struct Hparams {
    /// Layers of the trunk.
    pub(super) n_trunk: usize,
    /// Layers in all.
    pub(super) n_layers: usize,
    pub(super) d_model: u64,
    pub(super) n_heads: Vec<u64>,
    pub(super) n_kv_heads: Vec<u64>,
    pub(super) n_experts_per_token: Vec<u64>,
    pub(super) k_head_dim: u64,
    pub(super) v_head_dim: u64,
    pub(super) k_head_dim_window: u64,
    pub(super) v_head_dim_window: u64,
    /// What each layer sees.
    pub(super) windows: Vec<Window>,
    pub(super) recurrent: Vec<bool>,
    /// Layers that are neither attention nor recurrent.
    pub(super) mixerless: Vec<bool>,
    /// Layers with an indexer of their own.
    pub(super) indexer: Vec<bool>,
    /// Whose cache each layer reads, `None` for its own.
    pub(super) kv_source: Vec<Option<u32>>,
    pub(super) causal: bool,
    /// Which layers rotate queries and keys, where the file says so.
    pub(super) rotates: Option<Vec<bool>>,
}

/// Which layers rotate, where the architecture's loader asks the file (`models/*.cpp:load_arch_hparams`, `rope_pattern`).
fn rotating_layers(keys: &Keys<'_>, n_layers: usize) -> Result<Option<Vec<bool>>, IngestError> {
    if !matches!(keys.architecture, "granite_swa" | "flint" | "mistral-large4") {
        return Ok(None);
    }
    let pattern = keys.per_layer("attention.rope_pattern", n_layers)?;
    Ok(pattern.map(|pattern| pattern.iter().map(|rotates| *rotates != 0).collect()))
}

impl Hparams {
    pub(super) fn read(keys: &Keys<'_>, arch: &Arch, has_mtp_tensors: impl Fn(u64) -> bool) -> Result<Self, IngestError> {
        let physical = keys.need("block_count")?;
        let mut n_mtp = keys.or_zero("nextn_predict_layers")?;
        if n_mtp > physical {
            return Err(IngestError::Field {
                place: alloc::format!("{}.nextn_predict_layers", keys.architecture),
                found: n_mtp.to_string(),
                expected: alloc::format!("at most block_count {physical}"),
            });
        }
        // Files of DeepSeek V4 count prediction layers that they may not hold; all layers are the trunk's then
        // (`deepseek4.cpp:load_arch_hparams`).
        if arch.attending == Attending::Compressed && n_mtp > 0 && !has_mtp_tensors(physical.saturating_sub(n_mtp)) {
            n_mtp = 0;
        }
        let loops = if arch.repeats == Repeats::Loops { keys.u64("num_loops")?.unwrap_or(1).max(1) } else { 1 };
        let all = physical.saturating_mul(loops);
        if all > MAX_LAYERS {
            return Err(IngestError::Limit {
                format: super::FORMAT,
                what: "the number of layers".to_string(),
                found: all,
                limit: MAX_LAYERS,
            });
        }
        let n = size(physical);
        let n_layers = size(all);
        let n_trunk = n_layers.saturating_sub(size(n_mtp));

        let d_model = keys.need("embedding_length")?;
        let zeros = || vec![0; n];
        let n_heads = keys.per_layer("attention.head_count", n)?.unwrap_or_else(zeros);
        let n_kv_heads = keys.per_layer("attention.head_count_kv", n)?.unwrap_or_else(|| n_heads.clone());
        let d_ff = keys.per_layer("feed_forward_length", n)?.unwrap_or_else(zeros);
        let n_experts_per_token = keys.per_layer("expert_used_count", n)?.unwrap_or_else(zeros);
        let again = |values: Vec<u64>| -> Vec<u64> { values.iter().copied().cycle().take(n_layers).collect() };
        let (n_heads, n_kv_heads, d_ff) = (again(n_heads), again(n_kv_heads), again(d_ff));

        // The first layer's head count decides, 0 means there is no attention at all.
        let first_heads = n_heads.first().copied().unwrap_or(0);
        let head_dim = |name: &str| -> Result<u64, IngestError> {
            Ok(match d_model.checked_div(first_heads) {
                None => 0,
                Some(divided) => keys.u64(name)?.unwrap_or(divided),
            })
        };
        let k_head_dim = head_dim("attention.key_length")?;
        let v_head_dim = head_dim("attention.value_length")?;

        let recurrent = recurrent_layers(keys, arch.recurrent, n_layers, n_trunk, &n_kv_heads, &d_ff)?;
        let mixerless = match arch.recurrent {
            // One block is a mixer or a feed-forward, never both.
            RecurrentRule::WithoutKvHeadsAndFeedForward => {
                d_ff.iter().enumerate().map(|(il, width)| il < n_trunk && *width > 0).collect()
            }
            _ => vec![false; n_layers],
        };
        let attends: Vec<bool> = recurrent.iter().map(|recurrent| !recurrent).collect();
        let windows = windows(keys, arch, n_layers, n_trunk, &attends)?;
        let indexer = indexer_layers(keys, arch.indexer, n_layers, n_trunk)?;
        let kv_source = kv_sources(keys, arch.cache, n_layers, &windows)?;
        Ok(Self {
            n_trunk,
            n_layers,
            d_model,
            n_heads,
            n_kv_heads,
            n_experts_per_token: again(n_experts_per_token),
            k_head_dim,
            v_head_dim,
            k_head_dim_window: keys.u64("attention.key_length_swa")?.unwrap_or(k_head_dim),
            v_head_dim_window: keys.u64("attention.value_length_swa")?.unwrap_or(v_head_dim),
            windows,
            recurrent,
            mixerless,
            indexer,
            kv_source,
            causal: !arch.bidirectional && keys.bool("attention.causal")?.unwrap_or(true),
            rotates: rotating_layers(keys, n_layers)?,
        })
    }

    /// The layer of the file that holds the weights of layer `il`.
    pub(super) fn physical(&self, keys: &Keys<'_>, arch: &Arch, il: usize) -> Result<usize, IngestError> {
        Ok(match arch.repeats {
            Repeats::Once | Repeats::Router => il,
            Repeats::Loops => il.checked_rem(size(keys.need("block_count")?)).unwrap_or(il),
            // `hrm-text.cpp:load_arch_tensors`: passes of the low stack, then one of the high stack, and again.
            Repeats::TwoStacks => {
                let per_stack = size(keys.need("hrm.layers_per_stack")?);
                let low_passes = size(keys.need("hrm.l_cycles")?);
                let pass = il.checked_div(per_stack).unwrap_or(0);
                let inside = il.checked_rem(per_stack).unwrap_or(0);
                let is_high = pass.checked_rem(low_passes.saturating_add(1)) == Some(low_passes);
                if is_high { inside.saturating_add(per_stack) } else { inside }
            }
        })
    }
}

fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn recurrent_layers(
    keys: &Keys<'_>,
    rule: RecurrentRule,
    n_layers: usize,
    n_trunk: usize,
    n_kv_heads: &[u64],
    d_ff: &[u64],
) -> Result<Vec<bool>, IngestError> {
    let without_heads = n_kv_heads.iter().map(|heads| *heads == 0);
    let mut layers: Vec<bool> = match rule {
        RecurrentRule::Never => vec![false; n_layers],
        RecurrentRule::Always => vec![true; n_layers],
        RecurrentRule::WithoutKvHeads => without_heads.collect(),
        RecurrentRule::WithoutKvHeadsAndFeedForward => {
            without_heads.zip(d_ff).map(|(without, width)| without && *width == 0).collect()
        }
        RecurrentRule::AllButEvery(default) => match keys.per_layer("attention.recurrent_layers", n_layers)? {
            Some(listed) => listed.iter().map(|flag| *flag != 0).collect(),
            None => {
                let interval = keys.u64("full_attention_interval")?.unwrap_or(default);
                (1_u64..).take(n_layers).map(|layer| layer.checked_rem(interval).is_none_or(|rest| rest != 0)).collect()
            }
        },
    };
    // Prediction layers attend.
    layers.iter_mut().skip(n_trunk).for_each(|layer| *layer = false);
    Ok(layers)
}

fn windows(keys: &Keys<'_>, arch: &Arch, n_layers: usize, n_trunk: usize, attends: &[bool]) -> Result<Vec<Window>, IngestError> {
    const LENGTH: &str = "attention.sliding_window";
    const PATTERN: &str = "attention.sliding_window_pattern";
    let full = || vec![Window::Full; n_layers];
    let stated = keys.u64(LENGTH)?;
    let (tokens, windowed, kind) = match arch.window {
        WindowRule::Never => return Ok(full()),
        WindowRule::Every { only_layers: Some(wanted), .. } if n_trunk != size(wanted) => return Ok(full()),
        WindowRule::Every { period, full_first, default, fixed, kind, .. } => {
            let tokens = match (stated, default) {
                // A stated 0 switches windows off where they are optional, and with chunks.
                (None, None) => return Ok(full()),
                (Some(0), default) if default.is_none() || kind == WindowKind::Chunked => return Ok(full()),
                (Some(tokens), _) => tokens,
                (None, Some(0)) => keys.need(LENGTH)?,
                (None, Some(default)) => default,
            };
            let windowed = match keys.flags(PATTERN, n_layers)? {
                Some(listed) => listed,
                None => {
                    let period = keys.u64(PATTERN)?.unwrap_or(period);
                    let mut layers: Vec<bool> = (0_u64..)
                        .take(n_layers)
                        .map(|layer| match layer.checked_rem(period) {
                            None => true,
                            Some(rest) if full_first => rest != 0,
                            Some(rest) => rest < period.saturating_sub(1),
                        })
                        .collect();
                    layers.iter_mut().skip(n_trunk).for_each(|layer| *layer = false);
                    layers
                }
            };
            (fixed.unwrap_or(tokens), windowed, kind)
        }
        WindowRule::Listed => match (keys.flags(PATTERN, n_layers)?, stated) {
            // Draft models and the like come without windows too.
            (_, None | Some(0)) | (None, _) => return Ok(full()),
            (Some(listed), Some(tokens)) => (tokens, listed, WindowKind::Sliding),
        },
        WindowRule::Attending => match stated {
            None | Some(0) => return Ok(full()),
            Some(tokens) => (tokens, attends.to_vec(), WindowKind::Sliding),
        },
    };
    let window = match kind {
        WindowKind::Sliding => Window::Sliding { tokens },
        WindowKind::Chunked => Window::Chunked { tokens },
        WindowKind::Symmetric => Window::Symmetric { tokens },
    };
    Ok(windowed.iter().map(|windowed| if *windowed { window } else { Window::Full }).collect())
}

fn indexer_layers(keys: &Keys<'_>, rule: IndexerRule, n_layers: usize, n_trunk: usize) -> Result<Vec<bool>, IngestError> {
    if keys.or_zero("attention.indexer.key_length")? == 0 {
        return Ok(vec![false; n_layers]);
    }
    let dense = size(keys.or_zero("leading_dense_block_count")?);
    let listed = || keys.flags("attention.indexer.types", n_layers);
    let mut layers = match rule {
        IndexerRule::Never => vec![false; n_layers],
        IndexerRule::Always => vec![true; n_layers],
        IndexerRule::AfterDense => (0..n_layers).map(|layer| layer >= dense).collect(),
        IndexerRule::ListedElseAll => listed()?.unwrap_or_else(|| vec![true; n_layers]),
        IndexerRule::ListedElseNone => listed()?.unwrap_or_else(|| vec![false; n_layers]),
        IndexerRule::Glm => match listed()? {
            Some(listed) => listed,
            None if keys.or_zero("context_length")? < 1 << 20 => vec![true; n_layers],
            // The first two layers, then every fourth from the third on (`glm-dsa.cpp:GLM_5_2_DEFAULT_INDEXER_TYPES`).
            None => (0..n_layers).map(|layer| layer < 2 || layer % 4 == 2).collect(),
        },
    };
    layers.iter_mut().skip(n_trunk).for_each(|layer| *layer = false);
    Ok(layers)
}

fn kv_sources(keys: &Keys<'_>, rule: CacheRule, n_layers: usize, windows: &[Window]) -> Result<Vec<Option<u32>>, IngestError> {
    let own = match rule {
        CacheRule::Own | CacheRule::None => n_layers,
        CacheRule::First(count) => size(count),
        CacheRule::AllButShared => n_layers.saturating_sub(size(keys.or_zero("attention.shared_kv_layers")?)),
        CacheRule::SourceMap => {
            let Some(map) = keys.per_layer("attention.kv_source_map", n_layers)? else {
                return Ok(vec![None; n_layers]);
            };
            let sources = map.iter().zip(0_u64..).map(|(source, layer)| {
                if *source > layer {
                    return Err(IngestError::Field {
                        place: alloc::format!("{}.attention.kv_source_map[{layer}]", keys.architecture),
                        found: source.to_string(),
                        expected: alloc::format!("at most {layer}"),
                    });
                }
                Ok(if *source == layer { None } else { u32::try_from(*source).ok() })
            });
            return sources.collect();
        }
    };
    // A layer without its own cache reads that of the last layer with one that sees as far as it does: the last is a
    // full layer, the one before it a window's (`llama-model.cpp:create_memory`).
    Ok(windows
        .iter()
        .enumerate()
        .map(|(layer, window)| {
            let back = if matches!(window, Window::Full) { 1 } else { 2 };
            if layer < own { None } else { u32::try_from(own.saturating_sub(back)).ok() }
        })
        .collect())
}
