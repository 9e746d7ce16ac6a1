//! Muse's ear: layers of strided patches and causal convolutions, each wider than the one before.

use alloc::format;
use alloc::vec::Vec;

use plimsoll_math::tensor::Shape;

use super::{Draft, Row};
use crate::hf::reader::Reader;

/// The rows.
pub(super) const ROWS: &[Row] = &[Row {
    model_types: &["muse_spark_audio"],
    defaults: r#"{"patch_sizes": [16, 6, 5, 4], "hidden_sizes": [256, 512, 1024, 2048], "depths": [2, 2, 2, 2],
        "mlp_ratio": 4, "conv_kernel_size": 7, "out_hidden_size": 8192}"#,
    build,
}];

fn build(r: &Reader<'_>) -> Draft {
    let limits = r.limits();
    let list = |name: &str| -> Vec<u64> {
        r.list(&[name]).unwrap_or_default().into_iter().take_while(|size| *size <= limits.width).collect()
    };
    let (patches, widths, depths) = (list("patch_sizes"), list("hidden_sizes"), list("depths"));
    if patches.len() != widths.len() || depths.len() != widths.len() || widths.is_empty() {
        r.invalid("hidden_sizes", format!("{} widths", widths.len()), "as many as patch_sizes and depths");
    }
    let (kernel, ratio) = (r.need(&["conv_kernel_size"]), r.need(&["mlp_ratio"]));
    let last = widths.last().copied().unwrap_or(0);
    let d_out = r.need(&["out_hidden_size"]);
    let mut ear = Draft::audio(last);
    let mut n_in: u64 = 1;
    for (layer, ((patch, width), depth)) in patches.into_iter().zip(widths).zip(depths).enumerate() {
        ear.linear(&format!("{layer}.patch"), n_in.saturating_mul(patch), width, true);
        ear.norm(&format!("{layer}.norm"), width, false);
        for block in 0..depth.min(limits.layers) {
            let name = format!("{layer}.blocks.{block}");
            ear.tensor(&format!("{name}.conv.weight"), Shape::matrix(kernel, width)).vector(&format!("{name}.conv_bias"), width);
            ear.norm(&format!("{name}.norm"), width, false);
            ear.mlp(&name, [width, width.saturating_mul(ratio), width], true);
        }
        n_in = width;
    }
    ear.norm("norm", last, false).linear("mm", last, d_out, true).norm("mm.norm", d_out, false);
    ear.d_output = d_out;
    ear
}
