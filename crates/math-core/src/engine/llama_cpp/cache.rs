//! The caches of past tokens: which modules the engine makes, how many cells each holds, and what a cell costs.
//!
//! The modules follow from the mixers; `llama-model.cpp:create_memory` is the engine's own choice.

use alloc::string::ToString;
use alloc::vec::Vec;

use crate::deployment::{Backend, Deployment, Location};
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::facts::{Facts, cached_layers};
use crate::engine::llama_cpp::layout::Layout;
use crate::engine::llama_cpp::resolve::{CONTEXT_PAD, Resolved};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Attends, KvSource, Layer, Mixer, ModelSpec};
use crate::units::{add, mul, round_up};

/// How many cells a cache has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CellRule {
    /// One per token of a sequence's context.
    Context,
    /// A window and one micro-batch (`llama-kv-cache-iswa.cpp:llama_kv_cache_iswa`).
    Window {
        /// Tokens of the window.
        tokens: u64,
    },
    /// One per `ratio` tokens (`llama-kv-cache-dsv4.cpp:dsv4_comp_size`).
    Compressed {
        /// Tokens per cell.
        ratio: u64,
    },
    /// A cache object that no layer uses.
    None,
}

/// Layers of one place whose keys and values are equally wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerGroup {
    /// How many layers.
    pub layers: u64,
    /// Elements of keys per token.
    pub k_dim: u64,
    /// Elements of values per token; `None` when the cache keeps no values.
    pub v_dim: Option<u64>,
    /// Where they lie.
    pub place: Location,
}

/// One cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachePlan {
    /// The engine's name for it (`kv`, `base`, `swa`, `attn`, `mla`, `lid`, `idx`, `csa`, `hca`).
    pub tag: &'static str,
    /// What it holds, for people.
    pub label: &'static str,
    /// Its cells.
    pub cells: CellRule,
    /// Whether it has a stream for every sequence even when the pool is unified (DeepSeek V4).
    pub always_streams: bool,
    /// Its layers.
    pub groups: Vec<LayerGroup>,
    /// Side of the rotation matrix of keys that is kept for each layer, 0 for none.
    pub k_rotation: u64,
    /// Side of the rotation matrix of values, 0 for none.
    pub v_rotation: u64,
    /// Sides of the matrices that rotate keys and values, whichever buffer they are in; 0 for none.
    pub rotations: [u64; 2],
}

/// What a cache costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheBytes {
    /// Cells of one stream.
    pub cells: u64,
    /// Streams.
    pub streams: u64,
    /// Layers that have a tensor of their own.
    pub layers: u64,
    /// Bytes of keys, without the device's padding.
    pub k: u64,
    /// Bytes of values, without the device's padding.
    pub v: u64,
    /// Bytes of rotation matrices.
    pub rotation: u64,
    /// Bytes of padding.
    pub padding: u64,
}

impl CacheBytes {
    /// All bytes.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn total(&self) -> Result<u64, MathError> {
        add(add(self.k, self.v)?, add(self.rotation, self.padding)?)
    }
}

/// Bytes that a device's buffers add to a tensor (`ggml_backend_buft_get_alloc_size`) and to which they align it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BufferRules {
    /// Alignment of tensors.
    pub(crate) alignment: u64,
    /// Elements to which a quantised tensor's row is padded, once per tensor; 1 for none.
    pub(crate) row_pad: u64,
}

impl BufferRules {
    /// CUDA: `ggml-cuda.cu:ggml_backend_cuda_buffer_type_get_alloc_size` (`MATRIX_ROW_PADDING`) and
    /// `..._get_alignment`; CPU and Metal: `TENSOR_ALIGNMENT`.
    pub(crate) const fn of(backend: Backend) -> Self {
        match backend {
            Backend::Cpu | Backend::Metal => Self { alignment: 32, row_pad: 1 },
            Backend::Cuda { .. } => Self { alignment: 128, row_pad: 512 },
        }
    }
    /// Bytes of a tensor of `rows` rows of `row` elements as the device allocates it.
    pub(crate) fn tensor_bytes(self, format: StorageFormat, row: u64, rows: u64) -> Result<u64, MathError> {
        let bytes = mul(format.row_bytes(row)?.get(), rows)?;
        let extra = if rows > 0 { self.row_extra(format, row)? } else { 0 };
        round_up(add(bytes, extra)?, self.alignment)
    }
    /// What a quantised tensor's row is padded by.
    pub(crate) fn row_extra(self, format: StorageFormat, row: u64) -> Result<u64, MathError> {
        let rest = row % self.row_pad;
        if format.is_quantized() && rest != 0 { Ok(format.row_bytes(self.row_pad - rest)?.get()) } else { Ok(0) }
    }
    /// What the device adds to a tensor whose rows are aligned already.
    pub(crate) fn row_padding(self, format: StorageFormat, row: u64) -> Result<u64, MathError> {
        round_up(self.row_extra(format, row)?, self.alignment)
    }
}

impl CachePlan {
    /// Cells of one stream.
    pub(crate) fn cells(&self, resolved: &Resolved, swa_full: bool) -> Result<u64, MathError> {
        let context = resolved.n_ctx_seq;
        match self.cells {
            CellRule::Context => Ok(context),
            CellRule::Window { .. } if swa_full => Ok(context),
            CellRule::Window { tokens } => {
                let sharing = if resolved.kv_unified && !self.always_streams { resolved.n_seq_max } else { 1 };
                round_up(context.min(add(mul(tokens, sharing)?, resolved.n_ubatch)?), CONTEXT_PAD)
            }
            CellRule::Compressed { ratio } => round_up(context.div_ceil(ratio.max(1)).max(1), CONTEXT_PAD),
            CellRule::None => Ok(0),
        }
    }

    /// Streams.
    pub(crate) const fn streams(&self, resolved: &Resolved) -> u64 {
        match self.cells {
            CellRule::None => 0,
            CellRule::Context | CellRule::Window { .. } | CellRule::Compressed { .. } => {
                if self.always_streams {
                    resolved.n_seq_max
                } else {
                    resolved.streams
                }
            }
        }
    }

    /// What it costs.
    pub(crate) fn bytes(&self, resolved: &Resolved, deployment: &Deployment, layout: &Layout) -> Result<CacheBytes, MathError> {
        let cells = self.cells(resolved, deployment.swa_full)?;
        let streams = self.streams(resolved);
        let rows = mul(cells, streams)?;
        let mut out = CacheBytes { cells, streams, ..CacheBytes::default() };
        let mut allocated = 0;
        for group in &self.groups {
            let rules = BufferRules::of(layout.backend(group.place));
            out.layers = add(out.layers, group.layers)?;
            let k = mul(deployment.kv_type_k.row_bytes(group.k_dim)?.get(), rows)?;
            out.k = add(out.k, mul(group.layers, k)?)?;
            allocated = add(allocated, mul(group.layers, rules.tensor_bytes(deployment.kv_type_k, group.k_dim, rows)?)?)?;
            let mut matrices = self.k_rotation.pow(2);
            if let Some(v_dim) = group.v_dim {
                let v = mul(deployment.kv_type_v.row_bytes(v_dim)?.get(), rows)?;
                out.v = add(out.v, mul(group.layers, v)?)?;
                allocated = add(allocated, mul(group.layers, rules.tensor_bytes(deployment.kv_type_v, v_dim, rows)?)?)?;
                matrices = add(matrices, self.v_rotation.pow(2))?;
            }
            out.rotation = add(out.rotation, mul(group.layers, mul(4, matrices)?)?)?;
        }
        out.padding = allocated.saturating_sub(add(out.k, out.v)?);
        Ok(out)
    }

    /// The part of the cache that lies in one place.
    #[must_use]
    pub fn at(&self, place: Location) -> Self {
        let groups: Vec<LayerGroup> = self.groups.iter().filter(|group| group.place == place).copied().collect();
        let cells = if groups.is_empty() { CellRule::None } else { self.cells };
        Self { groups, cells, ..self.clone() }
    }

    /// Bytes that one more cell adds over all layers, without padding.
    ///
    /// # Errors
    /// [`MathError::Overflow`] or [`MathError::PartialBlock`].
    pub fn bytes_per_cell(&self, deployment: &Deployment) -> Result<u64, MathError> {
        self.groups.iter().try_fold(0, |sum, group| {
            let k = deployment.kv_type_k.row_bytes(group.k_dim)?.get();
            let v = group.v_dim.map_or(Ok(0), |dim| deployment.kv_type_v.row_bytes(dim).map(crate::units::Bytes::get))?;
            add(sum, mul(group.layers, add(k, v)?)?)
        })
    }
}

/// A cached layer as the engine sees it.
struct Cached {
    window: Option<u64>,
    k_head: u64,
    v_head: u64,
    k_dim: u64,
    v_dim: Option<u64>,
    indexer: Option<u64>,
    place: Location,
}

/// The widest values over all layers: without flash attention values are stored transposed, and rows of different
/// widths are padded to this (`llama-kv-cache.cpp`, TAG_V_CACHE_VARIABLE).
fn widest_values(spec: &ModelSpec) -> Result<u64, MathError> {
    spec.layers.iter().chain(spec.mtp.iter().map(|mtp| &mtp.layer)).try_fold(0_u64, |widest, layer| {
        let own = layer.mixer.attention().map_or(Ok(0), |attention| mul(attention.n_kv_heads, attention.v_head_dim))?;
        Ok(widest.max(own))
    })
}

fn cached(layer: &Layer, facts: Facts<'_>, transposed: Option<u64>, place: Location) -> Result<Option<Cached>, MathError> {
    let own_indexer = |indexer: Option<&crate::spec::Indexer>| -> Result<Option<u64>, MathError> {
        indexer.filter(|indexer| indexer.own).map(|indexer| mul(indexer.head_dim, facts.indexer_rows())).transpose()
    };
    Ok(match layer.mixer.attends() {
        Attends::Latent(mla) if mla.expanded => {
            let k_head = add(mla.qk_nope_head_dim, mla.qk_rope_head_dim)?;
            let v_dim = mul(mla.n_heads, mla.v_head_dim)?;
            Some(Cached {
                window: facts.window(mla.window),
                k_head,
                v_head: mla.v_head_dim,
                k_dim: mul(mla.n_heads, k_head)?,
                v_dim: Some(v_dim),
                indexer: None,
                place,
            })
        }
        Attends::Latent(mla) => {
            let k_head = add(mla.kv_lora_rank, mla.qk_rope_head_dim)?;
            Some(Cached {
                window: facts.window(mla.window),
                k_head,
                v_head: 0,
                k_dim: k_head,
                v_dim: None,
                indexer: own_indexer(mla.indexer.as_ref())?,
                place,
            })
        }
        Attends::Heads(attention) if matches!(attention.kv_source, KvSource::Layer { .. }) => None,
        Attends::Heads(attention) => Some(Cached {
            window: facts.window(attention.window),
            k_head: attention.k_head_dim,
            v_head: attention.v_head_dim,
            k_dim: mul(attention.n_kv_heads, attention.k_head_dim)?,
            v_dim: Some(match transposed {
                Some(widest) => widest,
                None => mul(attention.n_kv_heads, attention.v_head_dim)?,
            }),
            indexer: own_indexer(attention.indexer.as_ref())?,
            place,
        }),
        // An ordinary cache has a tensor for every layer of the file, also for one without attention: of no width.
        Attends::Never if matches!(layer.mixer, Mixer::None) && !facts.is_hybrid() => {
            let v_dim = Some(transposed.unwrap_or(0));
            Some(Cached { window: None, k_head: 0, v_head: 0, k_dim: 0, v_dim, indexer: None, place })
        }
        Attends::Compressed(_) | Attends::Never => None,
    })
}

fn push_group(groups: &mut Vec<LayerGroup>, k_dim: u64, v_dim: Option<u64>, place: Location) {
    match groups.iter_mut().find(|group| group.k_dim == k_dim && group.v_dim == v_dim && group.place == place) {
        Some(group) => group.layers = group.layers.saturating_add(1),
        None => groups.push(LayerGroup { layers: 1, k_dim, v_dim, place }),
    }
}

/// The largest 64 x 2^j that divides `width` (`llama-kv-cache.cpp:llama_kv_cache`, `n_rot_k`).
const fn rotation_side(width: u64) -> u64 {
    let mut side: u64 = 64;
    while side <= width / 2 && width.is_multiple_of(side.saturating_mul(2)) {
        side = side.saturating_mul(2);
    }
    side
}

/// The width that all of a cache's heads share, `None` when they differ or there are none.
fn shared_width(widths: impl Iterator<Item = u64>) -> Option<u64> {
    let mut shared = None;
    for width in widths {
        match shared {
            None => shared = Some(width),
            Some(seen) if seen == width => {}
            Some(_) => return None,
        }
    }
    shared.filter(|width| *width > 0)
}

/// Which matrices rotate keys and values before they are quantised.
fn rotations(heads: &[&Cached], first: (u64, u64), deployment: &Deployment) -> (u64, u64) {
    let k = shared_width(heads.iter().map(|cached| cached.k_head))
        .filter(|_| deployment.kv_type_k.is_quantized() && first.0.is_multiple_of(64))
        .map_or(0, rotation_side);
    let v = shared_width(heads.iter().filter(|cached| cached.v_dim.is_some()).map(|cached| cached.v_head))
        .filter(|_| deployment.kv_type_v.is_quantized() && first.1.is_multiple_of(64))
        .map_or(0, |_| 64);
    (k, v)
}

/// Every cache of past tokens that the engine makes for a model.
///
/// # Errors
/// [`MathError::Overflow`], or [`MathError::Invalid`] for mixers that the engine cannot combine.
pub(crate) fn cache_plans(
    spec: &ModelSpec,
    facts: Facts<'_>,
    deployment: &Deployment,
    layout: &Layout,
    transposed: bool,
) -> Result<Vec<CachePlan>, MathError> {
    if !facts.has_memory() || facts.is_recurrent_only() {
        return Ok(Vec::new());
    }
    if spec.layers.iter().any(|layer| matches!(layer.mixer, Mixer::CompressedAttention(_))) {
        return compressed_plans(spec, facts, deployment, layout);
    }
    let transposed = if transposed { Some(widest_values(spec)?) } else { None };
    let mut layers = Vec::new();
    for (index, layer) in (0_u32..).zip(cached_layers(spec, facts)) {
        layers.extend(cached(layer, facts, transposed, layout.cache(index))?);
    }
    // The engine counts a T5's cache over the encoder's layers and gives each the decoder's width.
    if let (Some(encoder), "t5") = (&spec.encoder, facts.arch) {
        let wanted = encoder.layers.len();
        while layers.len() > wanted {
            layers.pop();
        }
        while let (true, Some(last)) = (layers.len() < wanted, layers.last()) {
            let copy = Cached { window: None, indexer: None, ..*last };
            layers.push(copy);
        }
        for (index, layer) in (0_u32..).zip(&mut layers) {
            layer.place = layout.cache(index);
        }
    }
    // Whether a head is a multiple of 64 is asked of the file's first layer, whatever kind that is.
    let first = first_heads(spec, facts)?;
    let windowed = layers.iter().any(|cached| cached.window.is_some());
    let hybrid = facts.is_hybrid();
    let indexed = layers.iter().any(|cached| cached.indexer.is_some());
    let sparse_mla = indexed && layers.iter().any(|cached| cached.indexer.is_some() && cached.v_dim.is_none());

    let mut plans = Vec::new();
    let mut plan = |tag, label, cells, keep: &dyn Fn(&Cached) -> bool| {
        let chosen: Vec<&Cached> = layers.iter().filter(|cached| keep(cached)).collect();
        let mut groups = Vec::new();
        for cached in &chosen {
            push_group(&mut groups, cached.k_dim, cached.v_dim, cached.place);
        }
        let rotating = rotations(&chosen, first, deployment);
        let (k_rotation, v_rotation) = kept_rotations(facts.build, rotating);
        let cells = if groups.is_empty() { CellRule::None } else { cells };
        let rotations = [rotating.0, rotating.1];
        plans.push(CachePlan { tag, label, cells, always_streams: false, groups, k_rotation, v_rotation, rotations });
    };
    if windowed {
        let window = layers.iter().find_map(|cached| cached.window).unwrap_or(0);
        let base = match (hybrid, sparse_mla) {
            (true, _) => "attn.base",
            (false, true) => "dsa.mla",
            (false, false) => "base",
        };
        plan(base, "full-attention layers", CellRule::Context, &|cached| cached.window.is_none());
        let swa = if hybrid { "attn.swa" } else { "swa" };
        plan(swa, "sliding-window layers", CellRule::Window { tokens: window }, &|cached| cached.window.is_some());
    } else {
        let tag = match (hybrid, indexed, sparse_mla) {
            (true, ..) => "attn",
            (false, true, true) => "mla",
            (false, true, false) => "base",
            (false, false, _) => "kv",
        };
        let latent = layers.iter().any(|cached| cached.v_dim.is_none());
        let label = if latent { "compressed latents" } else { "attention layers" };
        plan(tag, label, CellRule::Context, &|_| true);
    }
    if indexed {
        plans.push(indexer_plan(&layers, facts, deployment, windowed, first)?);
    }
    Ok(plans)
}

/// Head widths of the file's first layer, as the loader fills them in for every layer of its kind.
fn first_heads(spec: &ModelSpec, facts: Facts<'_>) -> Result<(u64, u64), MathError> {
    let mut full = None;
    for (index, layer) in spec.layers.iter().enumerate() {
        if let Some(cached) = cached(layer, facts, None, Location::Host)?.filter(|cached| cached.k_head > 0) {
            if index == 0 {
                return Ok((cached.k_head, cached.v_head));
            }
            if cached.window.is_none() && full.is_none() {
                full = Some((cached.k_head, cached.v_head));
            }
        }
    }
    Ok(full.unwrap_or((0, 0)))
}

/// How many layers rotate their keys and their values, whichever buffer the matrices are in.
pub(crate) fn rotation_counts(spec: &ModelSpec, facts: Facts<'_>, deployment: &Deployment) -> Result<(u64, u64), MathError> {
    let mut layers = Vec::new();
    for layer in cached_layers(spec, facts) {
        layers.extend(cached(layer, facts, None, Location::Host)?);
    }
    let first = first_heads(spec, facts)?;
    let (k, v) = rotations(&layers.iter().collect::<Vec<_>>(), first, deployment);
    let count = layers.iter().fold(0_u64, |count, _| count.saturating_add(1));
    Ok((if k > 0 { count } else { 0 }, if v > 0 { count } else { 0 }))
}

/// Before b12032 the rotation matrices are graph inputs and cost the cache nothing.
const fn kept_rotations(build: Build, rotations: (u64, u64)) -> (u64, u64) {
    if build.rotation_matrices_are_cached() { rotations } else { (0, 0) }
}

/// The keys of a sparse-attention selector (`llama-kv-cache-dsa.cpp`, `-msa.cpp`, `llama-memory-hybrid-idx.cpp`).
fn indexer_plan(
    layers: &[Cached],
    facts: Facts<'_>,
    deployment: &Deployment,
    windowed: bool,
    first: (u64, u64),
) -> Result<CachePlan, MathError> {
    // MiniMax M3 keeps one head of values beside the selector's keys, nobody else does.
    let keeps_values = facts.arch == "minimax-m3";
    let mut groups = Vec::new();
    let mut width = 0;
    for cached in layers {
        if let Some(dim) = cached.indexer {
            width = dim;
            push_group(&mut groups, dim, keeps_values.then_some(cached.v_head), cached.place);
        }
    }
    let quantized_k = deployment.kv_type_k.is_quantized() && width.is_multiple_of(64);
    let k = if width > 0 && (quantized_k || facts.rotates_indexer()) { rotation_side(width) } else { 0 };
    let v = if keeps_values && deployment.kv_type_v.is_quantized() && first.1.is_multiple_of(64) { 64 } else { 0 };
    let (k_rotation, v_rotation) = kept_rotations(facts.build, (k, v));
    let tag = if windowed { "dsa.lid" } else { facts.indexer_tag() };
    Ok(CachePlan {
        tag,
        label: "selector keys",
        cells: CellRule::Context,
        always_streams: false,
        groups,
        k_rotation,
        v_rotation,
        rotations: [k, v],
    })
}

/// DeepSeek V4: raw tokens in a window, compressed entries at two ratios, the selector's keys
/// (`llama-kv-cache-dsv4.cpp:llama_kv_cache_dsv4`). Keys only, and always a stream per sequence.
fn compressed_plans(
    spec: &ModelSpec,
    facts: Facts<'_>,
    deployment: &Deployment,
    layout: &Layout,
) -> Result<Vec<CachePlan>, MathError> {
    let mut raw = Vec::new();
    let mut window = 0;
    let mut compressed: [(u64, Vec<LayerGroup>, Vec<LayerGroup>); 2] =
        [(CSA_RATIO, Vec::new(), Vec::new()), (HCA_RATIO, Vec::new(), Vec::new())];
    for (index, layer) in (0_u32..).zip(cached_layers(spec, facts)) {
        let place = layout.cache(index);
        let Mixer::CompressedAttention(attention) = &layer.mixer else {
            return Err(MathError::Unsupported {
                engine: facts.build.engine().to_string(),
                mechanism: "compressed attention beside other mixers".to_string(),
            });
        };
        window = attention.window;
        push_group(&mut raw, attention.head_dim, None, place);
        for (ratio, keys, selector) in &mut compressed {
            if attention.ratio == *ratio {
                push_group(keys, attention.head_dim, None, place);
                if let (CSA_RATIO, Some(indexer)) = (*ratio, &attention.indexer) {
                    push_group(selector, indexer.head_dim, None, place);
                }
            }
        }
    }
    let quantized = deployment.kv_type_k.is_quantized();
    let plan = |tag, label, cells, groups: Vec<LayerGroup>, always_rotates: bool| {
        let width = groups.first().map_or(0, |group| group.k_dim);
        let rotates = width > 0 && width.is_multiple_of(64) && (quantized || always_rotates);
        let k = if rotates { rotation_side(width) } else { 0 };
        let (k_rotation, v_rotation) = kept_rotations(facts.build, (k, 0));
        let cells = if groups.is_empty() { CellRule::None } else { cells };
        CachePlan { tag, label, cells, always_streams: true, groups, k_rotation, v_rotation, rotations: [k, 0] }
    };
    let [(_, csa, lid), (_, hca, _)] = compressed;
    Ok(Vec::from([
        plan("raw.base", "raw tokens, full", CellRule::Context, Vec::new(), false),
        plan("raw.swa", "raw tokens, sliding window", CellRule::Window { tokens: window }, raw, false),
        plan("csa", "compressed tokens, 4 to 1", CellRule::Compressed { ratio: CSA_RATIO }, csa, false),
        plan("hca", "compressed tokens, 128 to 1", CellRule::Compressed { ratio: HCA_RATIO }, hca, false),
        plan("lid", "selector keys", CellRule::Compressed { ratio: CSA_RATIO }, lid, true),
    ]))
}

/// Tokens per entry of compressed sparse attention (`llama-kv-cache-dsv4.cpp:DSV4_CSA_RATIO`).
pub(crate) const CSA_RATIO: u64 = 4;
/// Tokens per entry of heavily compressed attention (`llama-kv-cache-dsv4.cpp:DSV4_HCA_RATIO`).
pub(crate) const HCA_RATIO: u64 = 128;
