//! What all layers of a model read: caches, positions, rows, and what only some architectures have.

use super::attention::CacheInputs;
use super::blocks::BlockInputs;
use super::latent::{Sparse, keys_only};
use super::ops::Node;
use super::parts::Parts;
use super::per_layer::PerLayer;
use super::rows::Row;
use super::selector::SelectorCache;
use crate::error::MathError;
use crate::spec::{Attention, Layer, Mixer, ModelSpec, Operations};

/// The caches of a decoder: full-length, and for sliding-window layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caches {
    /// There are none: the batch attends to itself.
    pub(super) batch_only: bool,
    /// Cells of the window cache; `None` when there is one cache for all layers.
    pub(super) window_cells: Option<u64>,
    /// Widest row of values, of the full and of the window cache.
    pub(super) v_widths: [u64; 2],
    /// Sides of the matrices that rotate keys and values, of the full and of the window cache; 0 for none.
    pub(super) rotations: [[u64; 2]; 2],
    /// The keys of sparse attention's selectors.
    pub(super) selector: Option<SelectorCache>,
}

/// Which layers have windows that the engine honours.
pub(super) type HasWindow<'a> = &'a dyn Fn(&Attention) -> bool;

/// What attention reads: a cache of all tokens and one of windows, or the batch itself.
pub(super) fn attended(
    parts: &mut Parts,
    spec: &ModelSpec,
    caches: &Caches,
    window: HasWindow<'_>,
) -> Result<(CacheInputs, Option<CacheInputs>), MathError> {
    if caches.batch_only {
        let windowed = |layer: &Layer| matches!(&layer.mixer, Mixer::Attention(attention) if window(attention));
        let full = parts.batch_inputs()?;
        let sliding = if spec.layers.iter().any(windowed) { Some(parts.batch_inputs()?) } else { None };
        return Ok((full, sliding));
    }
    let [full_rotation, window_rotation] = caches.rotations;
    let [full_width, window_width] = caches.v_widths;
    // A cache of latents alone keeps no values.
    let values = if keys_only(spec) { None } else { Some(full_width) };
    let mut full = parts.cache_inputs(parts.setting.cells, values, full_rotation)?;
    let Some(cells) = caches.window_cells else { return Ok((full, None)) };
    let values = if keys_only(spec) { None } else { Some(window_width) };
    let mut sliding = parts.cache_inputs(cells, values, window_rotation)?;
    (full.keys_first, sliding.keys_first) = (true, true);
    Ok((full, Some(sliding)))
}

/// What all layers read.
pub(super) struct Trunk<'a> {
    pub(super) row: &'a Row,
    pub(super) positions: Node,
    /// How many factors the rotary embedding has.
    pub(super) factors: Option<u64>,
    pub(super) attention_scale: Option<Node>,
    pub(super) rows: Node,
    pub(super) full: CacheInputs,
    pub(super) sliding: Option<CacheInputs>,
    pub(super) sparse: Option<Sparse>,
    pub(super) blocks: Option<BlockInputs>,
    pub(super) caches: Caches,
    pub(super) operations: Operations,
    pub(super) window: HasWindow<'a>,
    pub(super) per_layer: Option<PerLayer>,
    /// Positions in time, height and width, apart.
    pub(super) axes: Option<[Node; 3]>,
    /// The normed embedding that every layer adds.
    pub(super) skip: Option<Node>,
    /// Embedded tokens with the features of an image encoder's deeper layers beside them.
    pub(super) deepstack: Option<Node>,
    pub(super) n_layers: usize,
}

impl<'a> Trunk<'a> {
    /// What every model has; the rest is absent.
    pub(super) fn new(
        spec: &ModelSpec,
        row: &'a Row,
        caches: &Caches,
        window: HasWindow<'a>,
        [positions, rows]: [Node; 2],
        (full, sliding): (CacheInputs, Option<CacheInputs>),
    ) -> Self {
        Self {
            row,
            positions,
            factors: None,
            attention_scale: None,
            rows,
            full,
            sliding,
            sparse: None,
            blocks: None,
            caches: *caches,
            operations: spec.operations,
            window,
            per_layer: None,
            axes: None,
            skip: None,
            deepstack: None,
            n_layers: spec.layers.len(),
        }
    }
}
