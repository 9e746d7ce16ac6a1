//! From layers and memory to blocks (`vllm/v1/core/kv_cache_planning.py:get_kv_cache_configs` and
//! `vllm/v1/core/kv_cache_utils.py:get_max_concurrency_for_kv_cache_config`).

use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::VERSION;
use super::cache_spec::{RequestShape, gcd, lcm};
use super::groups::{Group, LayerCache, PoolLayout, block_bytes, groups};
use super::options::Knobs;
use crate::error::MathError;
use crate::units::{Bytes, add, mul};

/// The cache of all ranks, before memory is known.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CachePlan {
    /// Every layer's cache.
    pub layers: Vec<LayerCache>,
    /// Which of them share a table of blocks.
    pub groups: Vec<Group>,
    /// Where a block lies.
    pub layout: PoolLayout,
    /// What a request asks for.
    pub request: RequestShape,
    /// Pipeline stages.
    pub stages: u64,
    /// Bytes of a block, for each pipeline stage.
    pub block_bytes: Vec<u64>,
}

/// A cache in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Capacity {
    /// Blocks of every rank (the smallest of all).
    pub blocks: u64,
    /// Blocks of one request of full length.
    pub blocks_per_request: u64,
    /// Tokens of the longest request.
    pub max_tokens: u64,
}

impl Capacity {
    /// Requests of full length that fit at once, in thousandths, rounded down.
    #[must_use]
    pub fn concurrency_thousandths(&self) -> u64 {
        let scaled = u128::from(self.blocks).saturating_mul(1000);
        let shown = scaled.checked_div(u128::from(self.blocks_per_request)).unwrap_or(0);
        u64::try_from(shown).unwrap_or(u64::MAX)
    }

    /// What the engine prints as the cache's size: the longest request times how many fit.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        let product = u128::from(self.blocks).saturating_mul(u128::from(self.max_tokens));
        let tokens = product.checked_div(u128::from(self.blocks_per_request)).unwrap_or(0);
        u64::try_from(tokens).unwrap_or(u64::MAX)
    }
}

impl CachePlan {
    /// Groups `layers` and weighs a block.
    ///
    /// # Errors
    /// As [`groups`].
    pub fn new(
        layers: Vec<LayerCache>,
        layout: PoolLayout,
        request: RequestShape,
        stages: u64,
        hybrid_manager: bool,
    ) -> Result<Self, MathError> {
        let groups = groups(&layers, layout, hybrid_manager)?;
        let mut plan = Self { layers, groups, layout, request, stages: stages.max(1), block_bytes: Vec::new() };
        let mut bytes = vec![];
        for stage in (0..plan.stages).filter(|_| !plan.groups.is_empty()) {
            bytes.push(block_bytes(&plan.groups, layout, |layer| plan.stage_of(layer) == Some(stage))?);
        }
        plan.block_bytes = bytes;
        Ok(plan)
    }

    fn stage_of(&self, layer: usize) -> Option<u64> {
        self.layers.get(layer).map(|layer| layer.stage)
    }

    /// Blocks of a request in every group, as `max_memory_usage_pages` counts them.
    ///
    /// # Errors
    /// As [`CacheSpec::blocks_per_request`](super::cache_spec::CacheSpec::blocks_per_request).
    pub fn group_blocks(&self, group: &Group, request: &RequestShape) -> Result<u64, MathError> {
        let mut most = 0;
        for spec in &group.specs {
            most = most.max(spec.blocks_per_request(request)?);
        }
        Ok(most)
    }

    /// Blocks a request of full length takes from a stage's pool, for the check at start.
    fn admission_blocks(&self, request: &RequestShape, stage: u64) -> Result<u64, MathError> {
        let mut sum = 0;
        for group in &self.groups {
            // A stage without a layer of a group still counts its blocks, but a mixed group only knows its own layers.
            let mut most = 0;
            for (layer, spec) in group.layers.iter().zip(&group.specs) {
                let here = self.stage_of(*layer) == Some(stage);
                if here || !group.mixed || !group.layers.iter().any(|layer| self.stage_of(*layer) == Some(stage)) {
                    most = most.max(spec.blocks_per_request(request)?);
                }
            }
            sum = add(sum, most)?;
        }
        Ok(sum)
    }

    /// Blocks of one request, as the engine's concurrency counts them: a mixed group by its first layer.
    ///
    /// # Errors
    /// As [`CacheSpec::blocks_per_request`](super::cache_spec::CacheSpec::blocks_per_request).
    pub fn blocks_per_request(&self, request: &RequestShape) -> Result<u64, MathError> {
        let mut sum = 0;
        for group in &self.groups {
            let of_stage = (0_usize..)
                .zip(&group.layers)
                .find(|(_, layer)| self.stage_of(**layer) == Some(0))
                .and_then(|(at, _)| group.specs.get(at));
            if let Some(first) = of_stage.or_else(|| group.first()) {
                sum = add(sum, first.blocks_per_request(request)?)?;
            }
        }
        Ok(sum)
    }

    /// Bytes that a request of full length needs on a stage.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn request_bytes(&self, request: &RequestShape, stage: u64) -> Result<u64, MathError> {
        let bytes = usize::try_from(stage).ok().and_then(|stage| self.block_bytes.get(stage)).copied().unwrap_or(0);
        mul(bytes, self.admission_blocks(request, stage)?)
    }

    /// Bytes that one more token of context costs on a stage once every window is full, in whole bytes rounded up.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn bytes_per_token(&self, stage: u64) -> Result<u64, MathError> {
        let block = usize::try_from(stage).ok().and_then(|stage| self.block_bytes.get(stage)).copied().unwrap_or(0);
        // Every group of full attention takes a block of the widest group for its own number of tokens.
        let mut covers = Vec::new();
        for group in &self.groups {
            if let Some(spec) = group.specs.iter().find(|spec| spec.kind.keeps_everything()) {
                let ranks = if spec.context_sharded { self.request.context_parallel.max(1) } else { 1 };
                covers.push(mul(spec.block_tokens, ranks)?.max(1));
            }
        }
        let mut common = 1;
        for tokens in &covers {
            common = lcm(common, *tokens)?;
        }
        let mut blocks = 0;
        for tokens in &covers {
            blocks = add(blocks, common / tokens)?;
        }
        Ok(mul(block, blocks)?.div_ceil(common))
    }

    /// The longest request that `memory` bytes hold on every stage (`_auto_fit_max_model_len`), 0 for none.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn longest_request(&self, memory: &[u64], most: u64) -> Result<u64, MathError> {
        let fits = |tokens: u64| -> Result<bool, MathError> {
            let request = RequestShape { max_tokens: tokens, ..self.request };
            for (stage, bytes) in (0_u64..).zip(memory) {
                if self.request_bytes(&request, stage)? > *bytes {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        if most == 0 || !fits(1)? {
            return Ok(0);
        }
        let (mut good, mut bad) = (1, add(most, 1)?);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if fits(middle)? { good = middle } else { bad = middle }
        }
        Ok(good)
    }

    /// Blocks in `memory` bytes of every stage, or the engine's refusal.
    ///
    /// # Errors
    /// [`MathError::Refused`] when not one request of full length fits.
    pub fn capacity(&self, memory: &[u64], knobs: &Knobs, fit_length: bool) -> Result<Capacity, MathError> {
        if self.groups.is_empty() {
            return Ok(Capacity { blocks: 1, blocks_per_request: 0, max_tokens: self.request.max_tokens });
        }
        let mut memory = memory.to_vec();
        if let Some(blocks) = knobs.blocks_override {
            for (bytes, block) in memory.iter_mut().zip(&self.block_bytes) {
                *bytes = mul(blocks, *block)?;
            }
        }
        // One block is never handed out (the null block).
        let usable: Vec<u64> = memory.iter().zip(&self.block_bytes).map(|(bytes, block)| bytes.saturating_sub(*block)).collect();
        let mut request = self.request;
        if fit_length {
            request.max_tokens = self.longest_request(&usable, request.max_tokens)?;
            if request.max_tokens == 0 {
                return Err(refused(
                    "Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token. Try \
                     increasing `gpu_memory_utilization`."
                        .to_string(),
                ));
            }
        }
        for (stage, bytes) in (0_u64..).zip(&usable) {
            if *bytes == 0 {
                return Err(refused("No available memory for the cache blocks.".to_string()));
            }
            let needed = self.request_bytes(&request, stage)?;
            if needed > *bytes {
                let index = usize::try_from(stage).unwrap_or(usize::MAX);
                let longest = match self.block_bytes.get(index) {
                    Some(_) => self.longest_on(stage, *bytes, request.max_tokens)?,
                    None => 0,
                };
                let estimate = if longest > 0 {
                    format!("Based on the available memory, the estimated maximum model length is {longest}. ")
                } else {
                    "".to_string()
                };
                return Err(refused(format!(
                    "To serve at least one request with the model's max seq len ({}), ({} GiB KV cache is needed, which \
                     is larger than the available KV cache memory ({} GiB). {estimate}Try increasing \
                     `gpu_memory_utilization` or decreasing `max_model_len`.",
                    request.max_tokens,
                    gib(needed),
                    gib(*bytes),
                )));
            }
        }
        let mut blocks = u64::MAX;
        for (bytes, block) in memory.iter().zip(&self.block_bytes) {
            if let Some(n) = bytes.checked_div(*block) {
                blocks = blocks.min(n);
            }
        }
        if let Some(asked) = knobs.blocks_override {
            blocks = asked;
        }
        Bytes::new(mul(blocks, self.block_bytes.iter().copied().max().unwrap_or(0))?)?;
        Ok(Capacity { blocks, blocks_per_request: self.blocks_per_request(&request)?, max_tokens: request.max_tokens })
    }

    /// Blocks in `memory` bytes of every stage, whether or not a request fits.
    #[must_use]
    pub fn blocks_in(&self, memory: &[u64], knobs: &Knobs) -> u64 {
        if let Some(blocks) = knobs.blocks_override {
            return blocks;
        }
        let blocks = memory.iter().zip(&self.block_bytes).filter_map(|(bytes, block)| bytes.checked_div(*block));
        blocks.min().unwrap_or(1)
    }

    fn longest_on(&self, stage: u64, bytes: u64, most: u64) -> Result<u64, MathError> {
        let memory: Vec<u64> = (0..self.stages).map(|other| if other == stage { bytes } else { u64::MAX }).collect();
        self.longest_request(&memory, most)
    }

    /// Consecutive tensor-parallel ranks that hold the same cache (`kv_cache_groups_tp_replicas`).
    #[must_use]
    pub fn tensor_replicas(&self, tensor: u64) -> u64 {
        self.layers.iter().fold(tensor, |common, layer| {
            let replicas = match layer.spec.tensor_shards {
                Some(_) if layer.spec.context_sharded && self.request.context_parallel > 1 => 1,
                Some(shards) => (tensor / shards.max(1)).max(1),
                None => 1,
            };
            gcd(common, replicas)
        })
    }
}

fn refused(reason: alloc::string::String) -> MathError {
    MathError::Refused { engine: VERSION.to_string(), reason }
}

/// GiB with two digits, without trailing zeros beyond the first (`format_gib`).
fn gib(bytes: u64) -> alloc::string::String {
    // Half a hundredth goes to the even neighbour.
    let scaled = u128::from(bytes).saturating_mul(100);
    let (floor, rest) = (scaled >> 30, scaled & ((1 << 30) - 1));
    let up = rest > 1 << 29 || (rest == 1 << 29 && !floor.is_multiple_of(2));
    let hundredths = floor + u128::from(up);
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    if rest.is_multiple_of(10) { format!("{whole}.{}", rest / 10) } else { format!("{whole}.{rest:02}") }
}
