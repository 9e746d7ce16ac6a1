//! The processor's work buffer: what its operations need beside their results, as large as the neediest of them
//! (`ggml/src/ggml-cpu/ggml-cpu.c:ggml_graph_plan`). The engine makes it with the first graph that is computed, outside the
//! buffers that it reserves and reports.

use alloc::vec::Vec;

use super::Recipe;
use super::Reserve;
use super::depth::Depth;
use super::op::Op;
use super::ops::{Builder, Home};
use super::places::Places;
use super::schedule::schedule;
use super::tensors::GraphTensor;
use crate::deployment::{Deployment, Location};
use crate::engine::llama_cpp::build::Build;
use crate::engine::llama_cpp::cache::CachePlan;
use crate::engine::llama_cpp::facts::Facts;
use crate::engine::llama_cpp::flash::OFFLOADED_BATCH;
use crate::engine::llama_cpp::layout::Layout;
use crate::engine::llama_cpp::loader_facts::LoaderFacts;
use crate::engine::llama_cpp::placement::WeightPlace;
use crate::engine::llama_cpp::resolve::Resolved;
use crate::engine::llama_cpp::weights::weight_homes;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::ModelSpec;
use crate::tensor::TensorTable;
use crate::units::{add, mul, round_up};

/// A line of the processor's cache (`ggml-cpu.c:CACHE_LINE_SIZE`): each thread keeps its part apart by one.
const CACHE_LINE: u64 = 64;

/// Queries and cells of a tile of attention (`ggml-cpu/common.h:GGML_FA_TILE_Q`, `GGML_FA_TILE_KV`).
const TILE: u64 = 64;

/// What a thread needs to multiply by tiles (`ggml-cpu/tiled/tiled-kernel.h:TILED_WS_SLOT`).
const TILED_SLOT: u64 = 512 << 10;

/// A block of eight decoded rows (`ggml-cpu/iqp.cpp:block_iqp_x8`): factors, biases, scales and 256 columns.
const PANEL_BLOCK: u64 = 32 + 32 + 128 + 2048;

/// Rows that a panel decodes at a time, and the smallest batch that it is worth it for (`ggml-cpu/iqp.cpp:IQP_NB_ROWS`,
/// `GGML_IQP_MIN_BATCH`).
const PANEL_ROWS: u64 = 8;

/// A matrix on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Matrix {
    dims: [u64; 4],
    format: StorageFormat,
    repacked: bool,
}

/// The work buffer for so many threads; `None` where the graph is not known.
///
/// # Errors
/// [`MathError::Overflow`].
pub(in crate::engine::llama_cpp) fn work_buffer(
    spec: &ModelSpec,
    table: &TensorTable,
    deployment: &Deployment,
    facts: Facts<'_>,
    layout: &Layout,
    (resolved, plans): (&Resolved, &[CachePlan]),
    threads: u64,
) -> Result<Option<u64>, MathError> {
    let Some(places) = Places::new(spec, Some(table), deployment, facts, layout)? else { return Ok(None) };
    let Some(recipe) = Recipe::new(spec, deployment, facts, places)? else { return Ok(None) };
    let Some(recipe) = recipe.settled(resolved, plans)? else { return Ok(None) };
    let homes = weight_homes(facts.build, &LoaderFacts::of(spec, facts.build)?, table, deployment)?;
    let on_host = homes.into_iter().filter(|(_, place)| place.place() == Location::Host);
    let matrices: Vec<Matrix> = on_host
        .map(|(tensor, place)| Matrix {
            dims: tensor.shape.0,
            format: tensor.format,
            repacked: place == WeightPlace::HostRepacked,
        })
        .collect();
    let host = u32::try_from(recipe.places.host()).ok();
    let mut most = 0;
    let mut batches = Reserve::all(resolved, facts);
    if !recipe.places.is_single() && recipe.places.offloads_operations {
        // Devices take over what large batches multiply with the host's matrices; the largest batch that they leave alone
        // is never reserved for, but it is computed.
        let tokens = OFFLOADED_BATCH.saturating_sub(1).min(resolved.n_ubatch).min(resolved.n_ctx);
        batches.push(Reserve { tokens, sequences: 1, outputs: 1, looks: false });
    }
    for reserve in batches {
        let Some((parts, machine)) = recipe.build(resolved, plans, reserve, Depth::Few)? else { return Ok(None) };
        let builder = parts.graph.clone();
        let graph = schedule(parts.graph, machine)?;
        let desk = Desk { build: facts.build, builder: &builder, matrices: &matrices, threads };
        for (node, backend) in graph.computed() {
            // What the scheduler added copies, and copies between backends need nothing.
            if Some(*backend) != host || index(*node) >= builder.built.len() {
                continue;
            }
            let Some(bytes) = desk.bytes(*node)? else { return Ok(None) };
            most = bytes.max(most);
        }
    }
    Ok(Some(if most > 0 { add(most, mul(CACHE_LINE, threads)?)? } else { 0 }))
}

fn index(node: u32) -> usize {
    usize::try_from(node).unwrap_or(usize::MAX)
}

/// What a source of an operation is.
#[derive(Debug, Clone, Copy)]
struct Source {
    dims: [u64; 4],
    format: StorageFormat,
    /// Whether it is a weight, or shows one.
    weight: Option<Matrix>,
}

impl Source {
    fn elements(&self) -> Result<u64, MathError> {
        self.dims.iter().try_fold(1, |product, n| mul(product, *n))
    }
}

/// The format that a matrix of this one is multiplied in (`ggml-cpu.c:type_traits_cpu`, `vec_dot_type`).
const fn multiplied_in(format: StorageFormat) -> StorageFormat {
    use StorageFormat as F;
    match format {
        F::F16 => F::F16,
        F::Bf16 => F::Bf16,
        F::Q4_1 | F::Q5_1 | F::Q8_1 => F::Q8_1,
        F::Q2K | F::Q3K | F::Q4K | F::Q5K | F::Q6K | F::Q8K => F::Q8K,
        F::Iq1S | F::Iq1M | F::Iq2Xxs | F::Iq2Xs | F::Iq2S | F::Iq3Xxs | F::Iq3S | F::Iq4Xs => F::Q8K,
        F::Tq1_0 | F::Tq2_0 => F::Q8K,
        other if other.is_quantized() => F::Q8_0,
        _ => F::F32,
    }
}

/// Matrices that are multiplied by tiles (`ggml-cpu/tiled/tiled.cpp:ggml_tiled_supported`).
const fn is_tiled(format: StorageFormat) -> bool {
    use StorageFormat as F;
    matches!(format, F::Q2K | F::Q3K | F::Q4K | F::Q5K | F::Q6K) || has_table(format)
}

/// Formats whose values are looked up in a table (`ggml-cpu/iqp.cpp:IQP_TYPE_LIST`).
const fn has_table(format: StorageFormat) -> bool {
    use StorageFormat as F;
    matches!(format, F::Iq1S | F::Iq1M | F::Iq2Xxs | F::Iq2Xs | F::Iq2S | F::Iq3Xxs | F::Iq3S | F::Iq4Xs)
}

/// Bytes of so many elements, as the engine counts them: not rounded up to whole blocks (`ggml.c:ggml_row_size`).
fn row(format: StorageFormat, elements: u64) -> Result<u64, MathError> {
    Ok(mul(elements, format.block_bytes())? / format.block_len())
}

/// What is needed to plan one graph.
struct Desk<'a> {
    build: Build,
    builder: &'a Builder,
    matrices: &'a [Matrix],
    threads: u64,
}

impl Desk<'_> {
    fn tensor(&self, node: u32) -> Result<&GraphTensor, MathError> {
        self.builder.graph.tensors.get(index(node)).ok_or(MathError::Overflow { quantity: "graph" })
    }

    fn source(&self, node: u32, position: usize) -> Result<Source, MathError> {
        let gone = MathError::Overflow { quantity: "graph" };
        let sources = self.builder.graph.sources(self.tensor(node)?);
        let source = *sources.get(position).ok_or_else(|| gone.clone())?;
        let root = self.tensor(source)?.view_of().unwrap_or(source);
        let built = self.builder.built.get(index(source)).ok_or_else(|| gone.clone())?;
        let whole = self.builder.built.get(index(root)).ok_or(gone)?;
        let weight = match whole.home {
            Home::Weight(_) => {
                Some(Matrix { dims: self.tensor(root)?.layout.dims, format: whole.format, repacked: whole.repacked })
            }
            Home::Cache(_) | Home::Graph => None,
        };
        Ok(Source { dims: self.tensor(source)?.layout.dims, format: built.format, weight })
    }

    /// The matrices of the file that a weight of the graph may be: those of its shape. Graphs that one place computes do not
    /// say which of them.
    fn candidates(&self, source: &Source) -> Vec<Matrix> {
        let Some(weight) = source.weight else {
            return Vec::from([Matrix { dims: source.dims, format: source.format, repacked: false }]);
        };
        let alike = || self.matrices.iter().filter(|matrix| matrix.dims == weight.dims).copied();
        if alike().any(|matrix| matrix == weight) && weight.format != StorageFormat::F32 {
            return Vec::from([weight]);
        }
        let found: Vec<Matrix> = alike().collect();
        // What is not in the file is made by the engine, as the graph has it (rotations of quantised caches).
        if found.is_empty() { Vec::from([weight]) } else { found }
    }

    /// What an operation needs; `None` where it depends on what the graph does not say.
    fn bytes(&self, node: u32) -> Result<Option<u64>, MathError> {
        let tensor = self.tensor(node)?;
        let [width, ..] = tensor.layout.dims;
        let built = self.builder.built.get(index(node)).ok_or(MathError::Overflow { quantity: "graph" })?;
        let each = |elements: u64| mul(4, mul(elements, self.threads)?);
        Ok(Some(match built.op {
            Op::Elementwise => return Ok(None),
            Op::MulMat | Op::MulMatId => return self.product(node, built.op),
            Op::Rope | Op::RopeBack => each(width)?,
            Op::SoftMax => {
                let [_, rows, planes, cubes] = self.source(node, 0)?.dims;
                let rows = mul(rows, mul(planes, cubes)?)?;
                mul(4, mul(width, self.threads.min(rows))?)?
            }
            Op::FlashAttention => {
                let ([_, _, heads, _], [k, ..], [v, ..]) =
                    (self.source(node, 0)?.dims, self.source(node, 1)?.dims, self.source(node, 2)?.dims);
                let tiles = add(mul(TILE, add(mul(2, k)?, mul(2, v)?)?)?, 2 * TILE * TILE)?;
                let decoding = add(mul(heads, add(2, v)?)?, add(k, mul(2, v)?)?)?;
                each(tiles.max(decoding))?
            }
            Op::Copy => {
                use StorageFormat as F;
                let through_f32 = matches!(
                    (self.source(node, 0)?.format, built.format),
                    (F::F16, F::Bf16) | (F::Bf16, F::F16) | (F::F32, F::I32) | (F::I32, F::F32)
                );
                if built.format.is_quantized() || through_f32 { each(width)? } else { 0 }
            }
            Op::Add | Op::AddId => {
                let first = self.source(node, 0)?;
                let [width, ..] = first.dims;
                if first.format.is_quantized() { each(width)? } else { 0 }
            }
            Op::SetRows => {
                let rows = self.source(node, 0)?;
                let [width, ..] = rows.dims;
                let widened = rows.format == StorageFormat::F16 && built.format != StorageFormat::F16;
                let tasks = if self.build.writes_rows_in_parallel() { self.threads } else { 1 };
                if widened { mul(4, mul(width, tasks)?)? } else { 0 }
            }
            Op::TopK => {
                let [width, ..] = self.source(node, 0)?.dims;
                each(width)?
            }
            Op::GatedDeltaNet => {
                let [values, ..] = self.source(node, 2)?.dims;
                each(values)?
            }
            Op::LightningIndexer => {
                let [keys, ..] = self.source(node, 1)?.dims;
                each(keys)?
            }
            _ => 0,
        }))
    }

    /// What a matrix product needs: its right side in the left side's format, and room to unpack the left side.
    fn product(&self, node: u32, op: Op) -> Result<Option<u64>, MathError> {
        let (left, right) = (self.source(node, 0)?, self.source(node, 1)?);
        let mut most = None;
        for matrix in self.candidates(&left) {
            let needed = match op {
                Op::MulMatId => self.expert_product(matrix, &right, self.source(node, 2)?.dims)?,
                _ => self.plain_product(matrix, &right)?,
            };
            most = most.max(Some(needed));
        }
        Ok(most)
    }

    fn converted(matrix: Matrix, right: &Source) -> Result<Option<u64>, MathError> {
        let format = multiplied_in(matrix.format);
        if right.format == format { Ok(None) } else { row(format, right.elements()?).map(Some) }
    }

    fn plain_product(&self, matrix: Matrix, right: &Source) -> Result<u64, MathError> {
        if matrix.repacked {
            // `ggml-cpu/repack.cpp:work_size`
            return row(multiplied_in(matrix.format), right.elements()?);
        }
        let converted = Self::converted(matrix, right)?.unwrap_or(0);
        let [_, rows, ..] = right.dims;
        let [.., stacked, _] = matrix.dims;
        self.with_room_to_unpack(matrix, converted, rows >= PANEL_ROWS && stacked == 1, 0)
    }

    fn expert_product(&self, matrix: Matrix, right: &Source, ids: [u64; 4]) -> Result<u64, MathError> {
        let [_, _, experts, _] = matrix.dims;
        if matrix.repacked {
            let [_, _, tokens, _] = right.dims;
            let rows = round_up(row(multiplied_in(matrix.format), right.elements()?)?, 8)?;
            return add(rows, mul(8, mul(experts, add(tokens, 1)?)?)?);
        }
        let converted = match Self::converted(matrix, right)? {
            Some(bytes) => add(bytes, 8)?,
            None => 0,
        };
        let [chosen, tokens, ..] = ids;
        let pairs = mul(chosen, tokens)?;
        // Counts of rows, their places, and a counter of chunks for every expert, each with what aligns it.
        let counts = add(mul(8, experts)?, 8)?;
        let places = add(mul(8, mul(experts, pairs)?)?, 8)?;
        let chunks = add(mul(CACHE_LINE, experts)?, CACHE_LINE)?;
        let all = add(add(converted, counts)?, add(places, chunks)?)?;
        self.with_room_to_unpack(matrix, all, pairs >= PANEL_ROWS, 64)
    }

    /// Room for every thread to unpack a part of the matrix: tiles, or until v0.5.0 panels of formats with a table.
    fn with_room_to_unpack(&self, matrix: Matrix, bytes: u64, enough: bool, spare: u64) -> Result<u64, MathError> {
        if self.build.multiplies_by_tiles() {
            let tiles = if is_tiled(matrix.format) { add(64, mul(self.threads, TILED_SLOT)?)? } else { 0 };
            return add(round_up(bytes, 64)?, tiles);
        }
        let [row, rows, _, cubes] = matrix.dims;
        let panels = has_table(matrix.format) && enough && rows.is_multiple_of(PANEL_ROWS) && cubes == 1;
        if !panels {
            return Ok(bytes);
        }
        let scratch = mul(self.threads, round_up(mul(row / 256, PANEL_BLOCK)?, 64)?)?;
        let aligned = if spare == 0 { round_up(bytes, 64)? } else { add(bytes, spare)? };
        add(aligned, scratch)
    }
}
