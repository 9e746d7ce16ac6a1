//! SeamlessM4T v2: text and speech in, text and speech out. The text side is an encoder-decoder; a conformer reads
//! speech, a second encoder-decoder makes sound units of text, and a vocoder makes sound of units.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use plimsoll_math::spec::{Attention, AttentionBias, Dense, Embedding, Encoder, Head, LmHead, ModelSpec, Weight};
use plimsoll_math::tensor::{Component, Counts, Shape};
use serde_json::Value;

use super::Family;
use super::seq2seq::Stack;
use crate::error::IngestError;
use crate::hf::reader::Reader;
use crate::hf::recipe;

/// The rows.
pub const FAMILIES: &[Family] = &[Family::new(
    &["seamless_m4t_v2"],
    &["SeamlessM4Tv2Model"],
    None,
    r#"{"vocab_size": 256102, "t2u_vocab_size": 10082, "char_vocab_size": 10943, "hidden_size": 1024,
        "max_position_embeddings": 4096, "encoder_layers": 24, "encoder_ffn_dim": 8192, "encoder_attention_heads": 16,
        "decoder_layers": 24, "decoder_ffn_dim": 8192, "decoder_attention_heads": 16, "speech_encoder_layers": 24,
        "speech_encoder_attention_heads": 16, "speech_encoder_intermediate_size": 4096, "num_adapter_layers": 1,
        "adaptor_kernel_size": 8, "feature_projection_input_dim": 160, "conv_depthwise_kernel_size": 31,
        "left_max_position_embeddings": 64, "right_max_position_embeddings": 8, "t2u_encoder_layers": 6,
        "t2u_encoder_ffn_dim": 8192, "t2u_decoder_layers": 6, "t2u_variance_predictor_embed_dim": 1024,
        "t2u_variance_predictor_hidden_dim": 256, "t2u_variance_predictor_kernel_size": 3, "unit_hifi_gan_vocab_size": 10000,
        "unit_embed_dim": 1280, "lang_embed_dim": 256, "spkr_embed_dim": 256, "vocoder_num_langs": 36,
        "vocoder_num_spkrs": 200, "variance_predictor_kernel_size": 3, "upsample_initial_channel": 512,
        "upsample_rates": [5, 4, 4, 2, 2], "upsample_kernel_sizes": [11, 8, 8, 4, 4], "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]]}"#,
    seamless,
)];

/// Kernel length of the convolutions in the unit decoder's layers (SeamlessM4Tv2TextToUnitDecoderLayer).
const UNIT_CONV_KERNEL: u64 = 7;
/// Kernel length at both ends of the vocoder (SeamlessM4Tv2HifiGan).
const VOCODER_END_KERNEL: u64 = 7;

/// Named tensors outside the text side.
#[derive(Default)]
struct Parts(Vec<Weight>);

impl Parts {
    fn tensor(&mut self, name: String, component: Component, shape: Shape) {
        self.0.push(Weight { name, shape, component, counts: Counts::Parameter });
    }
    fn linear(&mut self, name: &str, component: Component, n_in: u64, n_out: u64) {
        self.tensor(format!("{name}.weight"), component, Shape::matrix(n_in, n_out));
        self.tensor(format!("{name}.bias"), component, Shape::vector(n_out));
    }
    fn norm(&mut self, name: &str, width: u64) {
        self.tensor(format!("{name}.weight"), Component::Norms, Shape::vector(width));
        self.tensor(format!("{name}.bias"), Component::Norms, Shape::vector(width));
    }
    fn conv(&mut self, name: &str, kernel: u64, n_in: u64, n_out: u64, bias: bool) {
        self.tensor(format!("{name}.weight"), Component::SsmLinear, Shape::stack(kernel, n_in, n_out));
        if bias {
            self.tensor(format!("{name}.bias"), Component::SsmLinear, Shape::vector(n_out));
        }
    }
    fn attention(&mut self, name: &str, d: u64) {
        for which in ["q", "k", "v", "o"] {
            self.linear(&format!("{name}.attn_{which}"), Component::Attention, d, d);
        }
    }
    fn feed_forward(&mut self, name: &str, d: u64, d_ff: u64) {
        self.linear(&format!("{name}_up"), Component::Mlp, d, d_ff);
        self.linear(&format!("{name}_down"), Component::Mlp, d_ff, d);
    }
    /// Two convolutions with norms that predict how long something lasts.
    fn durations(&mut self, name: &str, d: u64, hidden: u64, kernel: u64) {
        self.conv(&format!("{name}.conv1"), kernel, d, hidden, true);
        self.conv(&format!("{name}.conv2"), kernel, hidden, hidden, true);
        self.norm(&format!("{name}.ln1"), hidden);
        self.norm(&format!("{name}.ln2"), hidden);
        self.linear(&format!("{name}.proj"), Component::Other, hidden, 1);
    }
}

fn seamless(r: &Reader<'_>) -> Result<ModelSpec, IngestError> {
    if !r.class.is_empty() && r.class != "SeamlessM4Tv2Model" {
        r.invalid("architectures", &r.class, "SeamlessM4Tv2Model, the only one of its classes that is known");
    }
    let limits = r.limits();
    let d = r.need(&["hidden_size"]);
    let n_vocab = r.need_below(&["vocab_size"], limits.vocab);
    let side = |name: &str| {
        let heads_key = format!("{name}_attention_heads");
        let heads = r.need_below(&[heads_key.as_str()], limits.heads);
        let head_dim = if heads == 0 { 0 } else { r.divide(&heads_key, d, heads) };
        let mut attention = Attention::new(heads, heads, head_dim);
        attention.bias = AttentionBias::ALL;
        Stack {
            n_layers: r.need_below(&[format!("{name}_layers").as_str()], limits.layers),
            attention,
            feed_forward: Dense::plain(r.need(&[format!("{name}_ffn_dim").as_str()]), true),
            norm_bias: true,
        }
    };
    let last = Some(recipe::layer_norm("output_norm", d));
    let mut parts = Parts::default();
    speech_encoder(r, &mut parts, d);
    units(r, &mut parts, d);
    vocoder(r, &mut parts);
    let encoder = Encoder { d_model: d, layers: side("encoder").encoder(d), norm: last.clone(), extra: parts.0 };
    Ok(ModelSpec {
        name: r.name(),
        architecture: if r.class.is_empty() { r.family.name().to_owned() } else { r.class.clone() },
        llama_cpp_arch: r.family.llama_cpp.map(ToString::to_string),
        d_model: d,
        max_context: r.opt(&["max_position_embeddings"]).unwrap_or(0),
        weight_dtype: recipe::weight_dtype(r),
        embedding: Embedding { n_vocab, ..Embedding::default() },
        layers: side("decoder").decoder(d),
        head: Head { norm: last, lm_head: LmHead::Tied, ..Head::default() },
        encoder: Some(encoder),
        towers: Vec::new(),
        mtp: Vec::new(),
        mtp_is_left_out: false,
        causal: true,
        operations: plimsoll_math::spec::Operations::default(),
    })
}

/// A conformer over mel features, and an adapter that shortens its output.
fn speech_encoder(r: &Reader<'_>, parts: &mut Parts, d: u64) {
    let limits = r.limits();
    let (features, d_ff) = (r.need(&["feature_projection_input_dim"]), r.need(&["speech_encoder_intermediate_size"]));
    let heads = r.need_below(&["speech_encoder_attention_heads"], limits.heads);
    let head_dim = if heads == 0 { 0 } else { r.divide("speech_encoder_attention_heads", d, heads) };
    parts.norm("a.feature_norm", features);
    parts.linear("a.feature_proj", Component::Other, features, d);
    // One embedding per distance, from the farthest left to the farthest right.
    let reach = r.need(&["left_max_position_embeddings"]).saturating_add(r.need(&["right_max_position_embeddings"]));
    let kernel = r.need(&["conv_depthwise_kernel_size"]);
    for index in 0..r.need_below(&["speech_encoder_layers"], limits.layers) {
        let name = |part: &str| format!("a.blk.{index}.{part}");
        for half in ["ffn", "ffn_1"] {
            parts.feed_forward(&name(half), d, d_ff);
            parts.norm(&name(&format!("{half}_norm")), d);
        }
        parts.attention(&format!("a.blk.{index}"), d);
        let distances = Shape::matrix(head_dim, reach.saturating_add(1));
        parts.tensor(name("attn_distance.weight"), Component::Embeddings, distances);
        parts.conv(&name("conv_pw1"), 1, d, d.saturating_mul(2), false);
        parts.conv(&name("conv_dw"), kernel, 1, d, false);
        parts.conv(&name("conv_pw2"), 1, d, d, false);
        for norm in ["attn_norm", "conv_norm", "conv_dw_norm", "output_norm"] {
            parts.norm(&name(norm), d);
        }
    }
    parts.norm("a.output_norm", d);
    parts.feed_forward("a.ffn", d, d_ff);
    let kernel = r.need(&["adaptor_kernel_size"]);
    for index in 0..r.need_below(&["num_adapter_layers"], limits.layers) {
        let name = |part: &str| format!("a.adapter.{index}.{part}");
        for which in ["residual", "attn"] {
            parts.norm(&name(&format!("{which}_norm")), d);
            parts.conv(&name(&format!("{which}_conv")), kernel, d, d.saturating_mul(2), true);
        }
        parts.attention(&format!("a.adapter.{index}"), d);
        parts.norm(&name("ffn_norm"), d);
        parts.feed_forward(&name("ffn"), d, d_ff);
    }
    parts.norm("a.inner_norm", d);
}

/// From text to sound units: an encoder, and a decoder with convolutions that writes all units at once.
fn units(r: &Reader<'_>, parts: &mut Parts, d: u64) {
    let limits = r.limits();
    let d_ff = r.need(&["t2u_encoder_ffn_dim"]);
    for index in 0..r.need_below(&["t2u_encoder_layers"], limits.layers) {
        let name = |part: &str| format!("t2u.enc.blk.{index}.{part}");
        parts.attention(&format!("t2u.enc.blk.{index}"), d);
        parts.feed_forward(&name("ffn"), d, d_ff);
        parts.norm(&name("attn_norm"), d);
        parts.norm(&name("ffn_norm"), d);
    }
    parts.norm("t2u.enc.output_norm", d);
    for index in 0..r.need_below(&["t2u_decoder_layers"], limits.layers) {
        let name = |part: &str| format!("t2u.dec.blk.{index}.{part}");
        parts.attention(&format!("t2u.dec.blk.{index}"), d);
        parts.norm(&name("attn_norm"), d);
        parts.conv(&name("conv1"), UNIT_CONV_KERNEL, d, d, true);
        parts.conv(&name("conv2"), UNIT_CONV_KERNEL, d, d, true);
        parts.norm(&name("conv_norm"), d);
    }
    parts.norm("t2u.dec.output_norm", d);
    parts.tensor("t2u.dec.position_scales".to_owned(), Component::Other, Shape::vector(2));
    let units = r.need_below(&["t2u_vocab_size"], limits.vocab);
    parts.tensor("t2u.dec.token_embd.weight".to_owned(), Component::Embeddings, Shape::matrix(d, units));
    let characters = r.need_below(&["char_vocab_size"], limits.vocab);
    parts.tensor("t2u.dec.char_embd.weight".to_owned(), Component::Other, Shape::matrix(d, characters));
    let (wide, hidden) = (r.need(&["t2u_variance_predictor_embed_dim"]), r.need(&["t2u_variance_predictor_hidden_dim"]));
    parts.durations("t2u.dec.durations", wide, hidden, r.need(&["t2u_variance_predictor_kernel_size"]));
}

/// From sound units to sound: embeddings of unit, speaker and language, then transposed convolutions (HiFi-GAN).
fn vocoder(r: &Reader<'_>, parts: &mut Parts) {
    let limits = r.limits();
    let (unit, speaker, language) = (r.need(&["unit_embed_dim"]), r.need(&["spkr_embed_dim"]), r.need(&["lang_embed_dim"]));
    parts.durations("vocoder.durations", unit, unit, r.need(&["variance_predictor_kernel_size"]));
    for (name, rows, width) in [
        ("vocoder.unit_embd.weight", "unit_hifi_gan_vocab_size", unit),
        ("vocoder.speaker_embd.weight", "vocoder_num_spkrs", speaker),
        ("vocoder.language_embd.weight", "vocoder_num_langs", language),
    ] {
        let rows = r.need_below(&[rows], limits.vocab);
        parts.tensor(name.to_owned(), Component::Embeddings, Shape::matrix(width, rows));
    }
    let mut channels = r.need(&["upsample_initial_channel"]);
    let input = unit.saturating_add(speaker).saturating_add(language);
    parts.conv("vocoder.conv_pre", VOCODER_END_KERNEL, input, channels, true);
    // Convolutions in a residual block: one dilated and one plain per dilation.
    let dilations: Vec<u64> = match r.config.raw(&["resblock_dilation_sizes"]) {
        Some((Value::Array(lists), _)) => {
            lists.iter().map(|list| list.as_array().map_or(0, |list| u64::try_from(list.len()).unwrap_or(0))).collect()
        }
        _ => Vec::new(),
    };
    let kernels = r.list(&["resblock_kernel_sizes"]).unwrap_or_default();
    for (step, kernel) in r.list(&["upsample_kernel_sizes"]).unwrap_or_default().into_iter().enumerate() {
        let half = channels / 2;
        let name = format!("vocoder.up.{step}");
        parts.tensor(format!("{name}.weight"), Component::Other, Shape::stack(kernel, half, channels));
        parts.tensor(format!("{name}.bias"), Component::Other, Shape::vector(half));
        for (which, (kernel, dilations)) in kernels.iter().zip(&dilations).enumerate() {
            for conv in 0..dilations.saturating_mul(2).min(limits.layers) {
                parts.conv(&format!("{name}.res.{which}.{conv}"), *kernel, half, half, true);
            }
        }
        channels = half;
    }
    parts.conv("vocoder.conv_post", VOCODER_END_KERNEL, channels, 1, true);
}
