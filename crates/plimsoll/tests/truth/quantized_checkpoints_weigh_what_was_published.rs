//! Sizes of published quantized checkpoints, from the model's shapes and the scheme alone.

use crate::support::fixture;
use crate::support::headers::{model, read};
use plimsoll_math::format::StorageFormat;
use plimsoll_math::quantization::{Scheme, Sharing};
use plimsoll_math::tensor::Tensor;
use proptest::prelude::*;

/// Bytes of a model whose tensors that `is_quantized` picks follow `scheme`, everything else at two bytes an element.
fn check(name: &str, scheme: Scheme, is_quantized: impl Fn(&Tensor) -> bool, expect: u64) {
    let (_, table) = read(&model(name, "BF16").unwrap());
    let bytes: u64 = table
        .tensors
        .iter()
        // The converter makes these; no checkpoint has them.
        .filter(|tensor| !tensor.name.starts_with("rope_f"))
        .map(|tensor| {
            let [n_in, n_out, stack, _] = tensor.shape.0;
            if is_quantized(tensor) { scheme.bytes(n_in, n_out).unwrap().get() * stack } else { 2 * n_in * n_out * stack }
        })
        .sum();
    assert_eq!(bytes, expect, "{name} {scheme:?}");
}

fn published(index: &str) -> u64 {
    let text = std::fs::read_to_string(fixture(&format!("corpus/index/{index}.index.json"))).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["metadata"]["total_size"].as_u64().unwrap()
}

fn is_matrix(tensor: &Tensor) -> bool {
    tensor.shape.n_dims() >= 2
}

#[test]
fn mlx_in_4_bits() {
    let scheme = Scheme::Mlx { bits: 4, group_size: 64, scale: StorageFormat::Bf16 };
    check("Qwen3-14B", scheme, is_matrix, published("qwen3-14b-mlx-4bit"));
}

#[test]
fn gpt_oss_with_experts_in_mxfp4() {
    check("gpt-oss-20b", Scheme::Mxfp4, |tensor| tensor.name.ends_with("_exps.weight"), published("gpt-oss-20b"));
}

#[test]
fn deepseek_scales_of_fp8_blocks() {
    // Elements that the published Qwen3-8B-FP8 counts beyond the model's parameters: its scales.
    let scheme =
        Scheme::Fp8 { sharing: Sharing::Block { rows: 128, columns: 128 }, scale: StorageFormat::Bf16, input_scale: false };
    let (_, table) = read(&model("Qwen3-8B", "BF16").unwrap());
    let scales: u64 = table
        .tensors
        .iter()
        .filter(|tensor| tensor.name.starts_with("blk.") && is_matrix(tensor))
        .map(|tensor| {
            let [n_in, n_out, _, _] = tensor.shape.0;
            scheme.parts(n_in, n_out).unwrap()[1].shape.elements().unwrap()
        })
        .sum();
    assert_eq!(scales, 423_936);
}

#[test]
fn bitsandbytes_in_4_bits_but_for_the_descriptions() {
    // Molmo-7B-D: the 28 layers of a Qwen2 7B as nf4, everything else in two bytes an element.
    let text = std::fs::read_to_string(fixture("corpus/index/molmo-7b-d.bnb-nf4.index.json")).unwrap();
    let metadata = serde_json::from_str::<serde_json::Value>(&text).unwrap()["metadata"].clone();
    let (total, params) = (metadata["total_size"].as_u64().unwrap(), metadata["total_parameters"].as_u64().unwrap());
    let matrices = [(3584, 4608), (3584, 3584), (3584, 2 * 18944), (18944, 3584)];
    let scheme = Scheme::BitsAndBytes4 { double_quantized: false };
    let packed: u64 = matrices.iter().map(|&(n_in, n_out)| 28 * scheme.bytes(n_in, n_out).unwrap().get()).sum();
    let elements: u64 = matrices.iter().map(|&(n_in, n_out)| 28 * n_in * n_out).sum();
    let descriptions = total - packed - 2 * (params - elements);
    assert!((70..100).contains(&(descriptions / (28 * 4))), "{descriptions} B left for {} texts", 28 * 4);
}

fn any_scheme() -> impl Strategy<Value = Scheme> {
    let sharing = prop_oneof![
        Just(Sharing::Tensor),
        Just(Sharing::Channel),
        Just(Sharing::Group { size: 128 }),
        Just(Sharing::Block { rows: 128, columns: 128 }),
    ];
    let scale = prop_oneof![Just(StorageFormat::F32), Just(StorageFormat::Bf16)];
    let group = prop_oneof![Just(None), Just(Some(32)), Just(Some(128))];
    prop_oneof![
        (prop_oneof![Just(2_u64), Just(3), Just(4), Just(8)], group.clone())
            .prop_map(|(bits, group_size)| Scheme::Gptq { bits, group_size }),
        group.prop_map(|group_size| Scheme::Awq { bits: 4, group_size }),
        any::<bool>().prop_map(|double_quantized| Scheme::BitsAndBytes4 { double_quantized }),
        Just(Scheme::BitsAndBytes8),
        (sharing.clone(), scale.clone(), any::<bool>(), any::<bool>()).prop_map(|(sharing, scale, symmetric, reordered)| {
            Scheme::PackedInts { bits: 4, sharing, scale, symmetric, reordered }
        }),
        (sharing.clone(), scale.clone()).prop_map(|(sharing, scale)| Scheme::Int8 { sharing, scale }),
        (sharing, scale.clone(), any::<bool>()).prop_map(|(sharing, scale, input_scale)| Scheme::Fp8 {
            sharing,
            scale,
            input_scale
        }),
        any::<bool>().prop_map(|input_scale| Scheme::Nvfp4 { group_size: 16, input_scale }),
        Just(Scheme::Mxfp4),
        scale.prop_map(|scale| Scheme::Mlx { bits: 4, group_size: 64, scale }),
    ]
}

proptest! {
    #[test]
    fn more_elements_never_take_fewer_bytes(scheme in any_scheme(), n_in in 1_u64..64, n_out in 1_u64..64) {
        let (n_in, n_out) = (128 * n_in, 128 * n_out);
        let bytes = scheme.bytes(n_in, n_out).unwrap();
        prop_assert!(scheme.bytes(n_in + 128, n_out).unwrap() > bytes);
        prop_assert!(scheme.bytes(n_in, n_out + 128).unwrap() > bytes);
        // Weights alone, at the scheme's fewest bits, are less.
        prop_assert!(bytes.get() > n_in * n_out / 4);
    }

    #[test]
    fn any_size_has_an_answer_or_a_reason(scheme in any_scheme(), n_in in any::<u64>(), n_out in any::<u64>()) {
        if let Err(error) = scheme.bytes(n_in, n_out) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
