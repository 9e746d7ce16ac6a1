//! MobileNet V5, the vision tower of Gemma 3n: four stages of inverted residuals and multi-query attention.

use alloc::format;

use super::{Draft, Row};
use crate::hf::reader::Reader;

/// The rows.
pub(super) const ROWS: &[Row] = &[Row {
    model_types: &["gemma3n_vision"],
    defaults: r#"{"architecture": "mobilenetv5_300m_enc", "hidden_size": 2048}"#,
    build: mobilenet_v5,
}];

/// A part of a stage.
enum Part {
    /// `n` edge residuals: a full convolution of `kernel` squared up to `expand` times the input, a pointwise one down.
    Edge { n: u64, kernel: u64, expand: u64 },
    /// `n` inverted residuals with depthwise convolutions of these kernels (0 for none) before and between.
    Inverted { n: u64, start: &'static [u64], mid: u64, expand: u64 },
    /// `n` pairs of multi-query attention and an inverted residual without depthwise convolutions. `down` is the kernel
    /// of the convolution that thins out keys and values, 0 for none.
    Attention { n: u64, n_heads: u64, head_dim: u64, down: u64 },
}

/// Output channels and parts of each stage (`_gen_mobilenet_v5` in timm, variant 300m).
const STAGES_300M: &[(u64, &[Part])] = &[
    (128, &[Part::Edge { n: 3, kernel: 3, expand: 4 }]),
    (256, &[Part::Inverted { n: 1, start: &[3], mid: 5, expand: 6 }, Part::Inverted { n: 4, start: &[5, 3], mid: 0, expand: 4 }]),
    (
        640,
        &[
            Part::Inverted { n: 1, start: &[5], mid: 5, expand: 6 },
            Part::Inverted { n: 7, start: &[5], mid: 0, expand: 4 },
            Part::Inverted { n: 1, start: &[], mid: 0, expand: 1 },
            Part::Attention { n: 14, n_heads: 12, head_dim: 64, down: 3 },
        ],
    ),
    (
        1280,
        &[Part::Inverted { n: 1, start: &[5], mid: 5, expand: 6 }, Part::Attention { n: 19, n_heads: 16, head_dim: 96, down: 0 }],
    ),
];
const STEM: u64 = 64;

fn mobilenet_v5(r: &Reader<'_>) -> Draft {
    let d = r.need(&["hidden_size"]);
    let variant = r.text(&["architecture"]).unwrap_or_default();
    if !variant.starts_with("mobilenetv5_300m") {
        r.invalid("architecture", variant, "mobilenetv5_300m_enc");
    }
    let mut draft = Draft::vision(d);
    draft.linear("stem", 3 * 9, STEM, true).vector("stem.bn", STEM);
    let mut channels = STEM;
    // The last two stages are joined at the end (multi-scale fusion adapter).
    let mut last_two = [0, 0];
    for (stage, (d_stage, parts)) in STAGES_300M.iter().enumerate() {
        let mut block: u64 = 0;
        for part in *parts {
            match *part {
                Part::Edge { n, kernel, expand } => {
                    for _ in 0..n {
                        let (name, wide) = (format!("blk.{stage}.{block}"), channels * expand);
                        draft.linear(&format!("{name}.conv_exp"), channels * kernel * kernel, wide, false);
                        draft.vector(&format!("{name}.bn1"), wide).linear(&format!("{name}.conv_pwl"), wide, *d_stage, false);
                        draft.vector(&format!("{name}.bn2"), *d_stage);
                        channels = *d_stage;
                        block += 1;
                    }
                }
                Part::Inverted { n, start, mid, expand } => {
                    for (_, kernel) in (0..n).zip(start.iter().copied().cycle().chain(core::iter::repeat(0))) {
                        inverted(&mut draft, &format!("blk.{stage}.{block}"), [channels, *d_stage], kernel, mid, expand);
                        channels = *d_stage;
                        block += 1;
                    }
                }
                Part::Attention { n, n_heads, head_dim, down } => {
                    for _ in 0..n {
                        attention(&mut draft, &format!("blk.{stage}.{block}"), channels, n_heads, head_dim, down);
                        inverted(&mut draft, &format!("blk.{stage}.{}", block + 1), [channels, *d_stage], 0, 0, 2);
                        block += 2;
                    }
                }
            }
        }
        let [_, last] = last_two;
        last_two = [last, channels];
    }
    let [third, fourth] = last_two;
    let joined = third + fourth;
    draft.linear("msfa.pw_exp", joined, joined * 2, false).vector("msfa.pw_exp.bn", joined * 2);
    draft.linear("msfa.pw_proj", joined * 2, d, false).vector("msfa.pw_proj.bn", d).vector("msfa.norm", d);
    draft
}

fn inverted(draft: &mut Draft, name: &str, [n_in, n_out]: [u64; 2], start: u64, mid: u64, expand: u64) {
    let wide = n_in * expand;
    let mut depthwise = |which: &str, kernel: u64, width: u64| {
        if kernel > 0 {
            draft.linear(&format!("{name}.{which}"), kernel * kernel, width, false).vector(&format!("{name}.{which}.bn"), width);
        }
    };
    depthwise("dw_start", start, n_in);
    depthwise("dw_mid", mid, wide);
    draft.linear(&format!("{name}.pw_exp"), n_in, wide, false).vector(&format!("{name}.pw_exp.bn"), wide);
    draft.linear(&format!("{name}.pw_proj"), wide, n_out, false).vector(&format!("{name}.pw_proj.bn"), n_out);
    draft.vector(&format!("{name}.layer_scale"), n_out);
}

fn attention(draft: &mut Draft, name: &str, d: u64, n_heads: u64, head_dim: u64, down: u64) {
    let width = n_heads * head_dim;
    draft.vector(&format!("{name}.norm"), d).linear(&format!("{name}.attn.query"), d, width, false);
    for which in ["key", "value"] {
        if down > 0 {
            draft.linear(&format!("{name}.attn.{which}.down_conv"), down * down, d, false);
            draft.vector(&format!("{name}.attn.{which}.norm"), d);
        }
        draft.linear(&format!("{name}.attn.{which}"), d, head_dim, false);
    }
    draft.linear(&format!("{name}.attn.output"), width, d, false).vector(&format!("{name}.layer_scale"), d);
}
