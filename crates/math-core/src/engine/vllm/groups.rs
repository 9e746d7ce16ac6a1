//! Which layers share a table of blocks, and what a block of the pool weighs
//! (`vllm/v1/core/kv_cache_planning.py:get_kv_cache_groups` and what it calls).

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::VERSION;
use super::cache_spec::{CacheKind, CacheSpec, Identity, lcm};
use crate::error::MathError;
use crate::units::{add, mul, round_up};

/// The cache of one layer with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LayerCache {
    /// Which layer, for people ("layer 3", "layer 3, indexer").
    pub label: String,
    /// The pipeline stage that holds it.
    pub stage: u64,
    /// Whether a draft module owns it.
    pub draft: bool,
    /// What it holds.
    pub spec: CacheSpec,
}

/// Layers with one table of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Group {
    /// Its layers, as indices into the list that was grouped.
    pub layers: Vec<usize>,
    /// Their specs after padding and scaling, in the same order.
    pub specs: Vec<CacheSpec>,
    /// Whether its layers may differ in page size (`UniformTypeKVCacheSpecs`).
    pub mixed: bool,
}

impl Group {
    fn of(layers: Vec<usize>, all: &[CacheSpec], mixed: bool) -> Self {
        let specs = layers.iter().filter_map(|index| all.get(*index).copied()).collect();
        Self { layers, specs, mixed }
    }

    /// The spec that stands for the group.
    #[must_use]
    pub fn first(&self) -> Option<&CacheSpec> {
        self.specs.first()
    }

    /// Bytes of one page of every layer on `stage`.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    fn pages_where(&self, strided: bool, mut keep: impl FnMut(usize) -> bool) -> Result<u64, MathError> {
        let mut sum = 0;
        for (layer, spec) in self.layers.iter().zip(&self.specs) {
            if keep(*layer) {
                let page = if strided { round_up(spec.page()?, spec.stride()?)? } else { spec.page()? };
                sum = add(sum, page)?;
            }
        }
        Ok(sum)
    }
}

/// Where a block lies in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum PoolLayout {
    /// Every layer has a region of its own (`LBNHC`, `LBHNC`).
    #[default]
    LayerOuter,
    /// The pages of all layers lie side by side in a block (`BLHNC`).
    BlockOuter,
}

fn refused(reason: String) -> MathError {
    MathError::Refused { engine: VERSION.into(), reason }
}

/// Bytes of one block of the pool for the layers that `keep` holds: those of the widest group
/// (`_get_kv_cache_bytes_per_block`).
///
/// # Errors
/// [`MathError::Overflow`].
pub fn block_bytes(groups: &[Group], layout: PoolLayout, mut keep: impl FnMut(usize) -> bool) -> Result<u64, MathError> {
    let strided = matches!(layout, PoolLayout::LayerOuter);
    let mut widest = 0;
    let mut alignment = 1;
    for group in groups {
        widest = widest.max(group.pages_where(strided, &mut keep)?);
        if !strided {
            for (layer, spec) in group.layers.iter().zip(&group.specs) {
                if keep(*layer) {
                    alignment = lcm(alignment, spec.stride()?)?;
                }
            }
        }
    }
    round_up(widest, alignment)
}

/// Groups layers (`get_kv_cache_groups`).
///
/// # Errors
/// [`MathError::Refused`] where the engine finds no common page, [`MathError::Overflow`].
pub fn groups(layers: &[LayerCache], layout: PoolLayout, hybrid_manager: bool) -> Result<Vec<Group>, MathError> {
    let mut specs: Vec<CacheSpec> = layers.iter().map(|layer| layer.spec).collect();
    if specs.is_empty() {
        return Ok(Vec::new());
    }
    if !hybrid_manager {
        let mut promoted = specs.clone();
        for sharded in [true, false] {
            let members: Vec<usize> = (0_usize..)
                .zip(&specs)
                .filter(|(_, spec)| (spec.context_sharded || !spec.kind.is_attention()) == sharded)
                .map(|(index, _)| index)
                .collect();
            promote(&mut promoted, &members)?;
        }
        specs = promoted;
    }
    let all: Vec<usize> = (0_usize..).zip(&specs).map(|(index, _)| index).collect();
    if merge_all(&specs, &all) {
        return Ok(vec![Group::of(all, &specs, false)]);
    }
    if one_type(&specs, &all)? {
        return Ok(vec![Group::of(all, &specs, true)]);
    }
    if let Some(groups) = packed(&specs, layout)? {
        return Ok(groups);
    }
    match unify_pages(&specs)? {
        Some(unified) => Ok(same_page(&unified)),
        None => match full_allocation(&specs)? {
            Some(promoted) => Ok(vec![Group::of(all, &promoted, true)]),
            None => Err(refused(
                "page size is not divisible by the maximum page size and cannot be padded. Padding is only supported \
                 for non-MLA attention layers."
                    .into(),
            )),
        },
    }
}

fn merge_all(specs: &[CacheSpec], members: &[usize]) -> bool {
    let mut of: Vec<&CacheSpec> = members.iter().filter_map(|index| specs.get(*index)).collect();
    let Some(first) = of.pop() else { return true };
    of.iter().all(|spec| first.merges_with(spec))
}

fn one_type(specs: &[CacheSpec], members: &[usize]) -> Result<bool, MathError> {
    let Some(first) = members.first().and_then(|index| specs.get(*index)) else { return Ok(false) };
    for index in members {
        let Some(spec) = specs.get(*index) else { continue };
        if !first.same_type(spec)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Windows and chunks are kept in full (`_promote_local_kv_cache_specs`).
fn promote(specs: &mut [CacheSpec], members: &[usize]) -> Result<(), MathError> {
    if members.is_empty() || merge_all(specs, members) || one_type(specs, members)? {
        return Ok(());
    }
    let of = |index: &usize| specs.get(*index).copied();
    let full: Vec<u64> =
        members.iter().filter_map(of).filter(|spec| spec.kind.keeps_everything()).map(|spec| spec.block_tokens).collect();
    let local = members.iter().filter_map(of).any(|spec| {
        matches!(
            spec.kind,
            CacheKind::SlidingWindow { .. } | CacheKind::SlidingWindowLatent { .. } | CacheKind::ChunkedLocal { .. }
        )
    });
    let common = full.first().copied().filter(|first| full.iter().all(|tokens| tokens == first));
    if !full.is_empty() && local {
        for index in members {
            let Some(spec) = specs.get_mut(*index) else { continue };
            let (kind, window) = match spec.kind {
                CacheKind::SlidingWindow { tokens } | CacheKind::ChunkedLocal { tokens } => (CacheKind::Full, Some(tokens)),
                CacheKind::SlidingWindowLatent { tokens } => (CacheKind::Latent, Some(tokens)),
                CacheKind::Full | CacheKind::Latent | CacheKind::Cross | CacheKind::State { .. } => continue,
            };
            let bare = spec.bare_page()?;
            let tokens = common.unwrap_or(spec.block_tokens);
            let padded = match spec.padded_page {
                None => None,
                Some(padded) => Some(padded.max(mul(bare, tokens)?.checked_div(spec.block_tokens).unwrap_or(bare))),
            };
            *spec = CacheSpec {
                kind,
                block_tokens: tokens,
                padded_page: padded,
                extra_retained: 0,
                identity: Identity { promoted_window: window, ..spec.identity },
                ..*spec
            };
        }
    }
    if merge_all(specs, members) || one_type(specs, members)? {
        return Ok(());
    }
    Err(refused("Failed to promote local KV cache specs to one unified type.".into()))
}

/// Latents beside windows that no page fits: everything is kept in full (`_try_get_full_allocation_fallback_groups`).
fn full_allocation(specs: &[CacheSpec]) -> Result<Option<Vec<CacheSpec>>, MathError> {
    let has = |wanted: fn(CacheKind) -> bool| specs.iter().any(|spec| wanted(spec.kind));
    if has(|kind| matches!(kind, CacheKind::SlidingWindowLatent { .. } | CacheKind::ChunkedLocal { .. })) {
        return Ok(None);
    }
    if !has(|kind| matches!(kind, CacheKind::Latent)) || !has(|kind| matches!(kind, CacheKind::SlidingWindow { .. })) {
        return Ok(None);
    }
    let all: Vec<usize> = (0_usize..).zip(specs).map(|(index, _)| index).collect();
    let mut promoted = specs.to_vec();
    match promote(&mut promoted, &all) {
        Ok(()) => Ok(one_type(&promoted, &all)?.then_some(promoted)),
        Err(MathError::Refused { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Smaller pages hold more tokens, or are padded (`unify_kv_cache_spec_page_size`).
fn unify_pages(specs: &[CacheSpec]) -> Result<Option<Vec<CacheSpec>>, MathError> {
    let mut largest = 0;
    for spec in specs {
        largest = largest.max(spec.page()?);
    }
    let mut unified = Vec::new();
    for spec in specs {
        let page = spec.page()?;
        if page == largest {
            unified.push(*spec);
        } else if matches!(spec.kind, CacheKind::State { .. }) {
            unified.push(CacheSpec { padded_page: Some(largest), ..*spec });
        } else if page > 0 && largest.is_multiple_of(page) {
            unified.push(spec.with_block(mul(spec.block_tokens, largest / page)?));
        } else if matches!(spec.kind, CacheKind::Latent) {
            return Ok(None);
        } else {
            unified.push(CacheSpec { padded_page: Some(largest), ..*spec });
        }
    }
    Ok(Some(unified))
}

/// Groups of equally many layers (`_get_kv_cache_groups_uniform_page_size`).
fn same_page(specs: &[CacheSpec]) -> Vec<Group> {
    // Equal specs first, then what can be merged, both in order of first appearance.
    let mut equal: Vec<(CacheSpec, Vec<usize>)> = Vec::new();
    for (index, spec) in (0_usize..).zip(specs) {
        match equal.iter_mut().find(|(known, _)| known == spec) {
            Some((_, members)) => members.push(index),
            None => equal.push((*spec, vec![index])),
        }
    }
    let mut buckets: Vec<(Vec<CacheSpec>, Vec<usize>)> = Vec::new();
    for (spec, members) in equal {
        match buckets.iter_mut().find(|(known, _)| known.iter().all(|other| other.merges_with(&spec))) {
            Some((known, layers)) => {
                known.push(spec);
                layers.extend(members);
            }
            None => buckets.push((vec![spec], members)),
        }
    }
    let counts = || buckets.iter().map(|(_, layers)| layers.len());
    let (fewest, most) = (counts().min().unwrap_or(1), counts().max().unwrap_or(1));
    // Half as many layers again are padded rather than split off.
    let size = if most.saturating_mul(2) < fewest.saturating_mul(3) { most } else { fewest };
    let mut groups = Vec::new();
    for (_, layers) in &buckets {
        let n = layers.len().div_ceil(size.max(1));
        for start in 0..n {
            // Every n-th layer, so that pipeline stages get their share of every group.
            groups.push(Group::of(layers.iter().skip(start).step_by(n).copied().collect(), specs, false));
        }
    }
    groups
}

/// Layers of different page sizes side by side in a block (`_get_packed_kv_cache_groups`).
fn packed(specs: &[CacheSpec], layout: PoolLayout) -> Result<Option<Vec<Group>>, MathError> {
    struct Bucket {
        layers: Vec<usize>,
        /// Layers by page size, in order of first appearance.
        pages: Vec<(u64, Vec<usize>)>,
        balanced: bool,
    }
    impl Bucket {
        fn most(&self) -> u64 {
            self.pages.iter().map(|(_, layers)| count(layers.len())).max().unwrap_or(0)
        }
        fn widest(&self, split: u64) -> Result<u64, MathError> {
            self.pages.iter().try_fold(0, |sum, (page, layers)| add(sum, mul(count(layers.len()).div_ceil(split.max(1)), *page)?))
        }
    }
    if matches!(layout, PoolLayout::LayerOuter) {
        return Ok(None);
    }
    let mut buckets: Vec<Vec<usize>> = Vec::new();
    for index in (0_usize..).zip(specs).map(|(index, _)| index) {
        let mut home = None;
        for (at, bucket) in (0_usize..).zip(&buckets) {
            let mut candidate = bucket.clone();
            candidate.push(index);
            if one_type(specs, &candidate)? {
                home = Some(at);
                break;
            }
        }
        match home.and_then(|at| buckets.get_mut(at)) {
            Some(bucket) => bucket.push(index),
            None => buckets.push(vec![index]),
        }
    }
    let mut sized = Vec::new();
    let mut sizes: Vec<u64> = Vec::new();
    for layers in buckets {
        let mut pages: Vec<(u64, Vec<usize>)> = Vec::new();
        for index in &layers {
            let Some(spec) = specs.get(*index) else { continue };
            let page = spec.page()?;
            if !sizes.contains(&page) {
                sizes.push(page);
            }
            match pages.iter_mut().find(|(size, _)| *size == page) {
                Some((_, members)) => members.push(*index),
                None => pages.push((page, vec![*index])),
            }
        }
        let first = pages.first().map_or(0, |(_, members)| members.len());
        let balanced = pages.iter().all(|(_, members)| members.len() == first);
        sized.push(Bucket { layers, pages, balanced });
    }
    if sizes.len() <= 1 {
        return Ok(None);
    }
    let floor = sized.iter().filter(|bucket| bucket.balanced && bucket.pages.len() > 1).map(Bucket::most).max().unwrap_or(0);
    let repeats = if floor > 0 {
        let lengths: Vec<u64> = sized.iter().filter(|bucket| bucket.balanced).map(Bucket::most).collect();
        Some(least_padding(&lengths, floor))
    } else {
        None
    };
    let split = |bucket: &Bucket| match repeats {
        Some(repeats) if bucket.balanced => bucket.most().div_ceil(repeats.max(1)),
        _ => 1,
    };
    let is_state = |bucket: &Bucket| {
        let kind = bucket.layers.first().and_then(|index| specs.get(*index)).map(|spec| spec.kind);
        matches!(kind, Some(CacheKind::State { .. }))
            || (repeats.is_none()
                && matches!(kind, Some(CacheKind::SlidingWindow { .. } | CacheKind::SlidingWindowLatent { .. })))
    };
    let mut anchor = 0;
    for bucket in &sized {
        let n = if is_state(bucket) { count(bucket.layers.len()) } else { split(bucket) };
        anchor = anchor.max(bucket.widest(n)?);
    }
    let mut groups = Vec::new();
    for bucket in &sized {
        let mut n = split(bucket);
        if anchor > 0 && is_state(bucket) {
            let page = bucket.pages.first().map_or(1, |(page, _)| *page).max(1);
            n = n.max(count(bucket.layers.len()).div_ceil((anchor / page).max(1)));
        }
        if n == 1 {
            groups.push(Group::of(bucket.layers.clone(), specs, true));
            continue;
        }
        let step = usize::try_from(n).unwrap_or(usize::MAX);
        let most = bucket.pages.iter().map(|(_, members)| members.len()).min().unwrap_or(0);
        for start in 0..step {
            let mut layers = Vec::new();
            for repeat in (start..most).step_by(step) {
                layers.extend(bucket.pages.iter().filter_map(|(_, members)| members.get(repeat).copied()));
            }
            groups.push(Group::of(layers, specs, true));
        }
    }
    Ok(Some(groups))
}

/// The length that wastes least when every count is rounded up to a multiple of it; the longest of several
/// (`_approximate_gcd`).
fn least_padding(counts: &[u64], floor: u64) -> u64 {
    let most = counts.iter().copied().max().unwrap_or(floor);
    let mut best = (u64::MAX, floor.max(1));
    for length in floor.max(1)..=most {
        let padding = counts.iter().map(|count| count.div_ceil(length).saturating_mul(length).saturating_sub(*count)).sum();
        if padding <= best.0 {
            best = (padding, length);
        }
    }
    best.1
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A group in words, for people.
#[must_use]
pub fn describe(group: &Group) -> String {
    let tokens = group.first().map_or(0, |spec| spec.block_tokens);
    let class = group.first().map_or("", |spec| spec.kind.class());
    format!("{} x {class}, {tokens} tokens a block", group.layers.len())
}
