//! Where elements of a tensor lie.

use crate::error::MathError;
use crate::format::StorageFormat;
use crate::units::{add, mul};

/// Bytes from one element of a dimension to the next where nothing lies between (`ggml.c:ggml_new_tensor_impl`).
pub(super) fn strides(format: StorageFormat, dims: [u64; 4]) -> Result<[u64; 4], MathError> {
    let [a, b, c, _] = dims;
    let element = format.block_bytes();
    let row = mul(element, blocks(format, a))?;
    let plane = mul(row, b)?;
    Ok([element, row, plane, mul(plane, c)?])
}

/// Blocks of a row.
const fn blocks(format: StorageFormat, elements: u64) -> u64 {
    match format.block_len() {
        1 => elements,
        length => elements / length,
    }
}

/// Bytes from the first to the last element (`ggml.c:ggml_nbytes`).
pub(super) fn span(format: StorageFormat, dims: [u64; 4], strides: [u64; 4]) -> Result<u64, MathError> {
    if dims.contains(&0) {
        return Ok(0);
    }
    let [n0, ..] = dims;
    let [s0, ..] = strides;
    let (mut bytes, skip) =
        if format.block_len() == 1 { (format.block_bytes(), 0) } else { (mul(n0, s0)? / format.block_len(), 1) };
    for (n, stride) in dims.iter().zip(strides).skip(skip) {
        bytes = add(bytes, mul(n.saturating_sub(1), stride)?)?;
    }
    Ok(bytes)
}
