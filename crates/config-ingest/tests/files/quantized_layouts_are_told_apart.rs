//! One matrix of 128 by 256 in every quantizer's layout: which layout it is, how many parameters it stands for, and that
//! not a byte is lost. Then the names and totals of real indexes.

use crate::made::{Made, safetensors};
use crate::support::{files, fixture};
use plimsoll_ingest::mlx::{NpzLimits, Quantization, read_npz};
use plimsoll_ingest::safetensors::{Checkpoint, Context, Hints, Index, IndexLimits, Layout, Limits, TotalSize, classify};
use plimsoll_ingest::source::PrefixSource;
use plimsoll_math::tensor::Component;

const PARAMS: u64 = 128 * 256;

fn check(layout: Layout, hints: &Hints, tensors: &[(&str, &'static str, &[u64])]) {
    let tensors: Vec<Made> =
        tensors.iter().map(|(name, dtype, shape)| (format!("model.layers.0.{name}"), *dtype, shape.to_vec())).collect();
    let (head, length) = safetensors(&tensors);
    let data = length - u64::try_from(head.len()).unwrap();
    let source = PrefixSource::new("made".to_owned(), head, Some(length));
    let checkpoint = Checkpoint::from_file(&source, &Limits::default(), Context::default(), hints).unwrap();
    let found: Vec<Layout> = checkpoint.summary.layouts.iter().map(|row| row.layout).collect();
    assert_eq!(found, [layout], "{tensors:?}");
    assert_eq!(checkpoint.summary.params.get(), PARAMS, "{layout:?}");
    assert_eq!(checkpoint.summary.stored.get(), data);
    let table = checkpoint.table().unwrap();
    assert_eq!(table.total_params().unwrap().get(), PARAMS, "{layout:?}");
    assert_eq!(table.bytes_where(|_| true).unwrap().get(), data, "{layout:?}");
    assert_eq!(checkpoint.parts.iter().filter(|part| !part.companion).count(), 1);
}

#[test]
fn of_every_quantizer() {
    let none = Hints::default();
    let w = "self_attn.q_proj.weight";
    check(Layout::Plain, &none, &[(w, "BF16", &[128, 256])]);
    check(Layout::Fp8, &none, &[(w, "F8_E4M3", &[128, 256]), ("self_attn.q_proj.weight_scale_inv", "F32", &[1, 2])]);
    check(
        Layout::Fp8,
        &none,
        &[
            (w, "F8_E4M3", &[128, 256]),
            ("self_attn.q_proj.weight_scale", "F32", &[1]),
            ("self_attn.q_proj.input_scale", "F32", &[1]),
            ("self_attn.k_scale", "F32", &[1]),
        ],
    );
    check(Layout::Int8, &none, &[(w, "I8", &[128, 256]), ("self_attn.q_proj.weight_scale", "BF16", &[128, 1])]);
    check(
        Layout::Int8,
        &none,
        &[(w, "I8", &[128, 256]), ("self_attn.q_proj.SCB", "F32", &[128]), ("self_attn.q_proj.weight_format", "U8", &[])],
    );
    for bits in [2_u64, 3, 4, 8] {
        check(
            Layout::Gptq,
            &none,
            &[
                ("self_attn.q_proj.qweight", "I32", &[256 * bits / 32, 128]),
                ("self_attn.q_proj.qzeros", "I32", &[2, 128 * bits / 32]),
                ("self_attn.q_proj.scales", "F16", &[2, 128]),
                ("self_attn.q_proj.g_idx", "I32", &[256]),
            ],
        );
    }
    check(
        Layout::Awq,
        &none,
        &[
            ("self_attn.q_proj.qweight", "I32", &[256, 16]),
            ("self_attn.q_proj.qzeros", "I32", &[2, 16]),
            ("self_attn.q_proj.scales", "F16", &[2, 128]),
        ],
    );
    check(
        Layout::BitsAndBytes4,
        &none,
        &[
            (w, "U8", &[PARAMS / 2, 1]),
            ("self_attn.q_proj.weight.absmax", "U8", &[512]),
            ("self_attn.q_proj.weight.nested_absmax", "F32", &[2]),
            ("self_attn.q_proj.weight.nested_quant_map", "F32", &[256]),
            ("self_attn.q_proj.weight.quant_map", "F32", &[16]),
            ("self_attn.q_proj.weight.quant_state.bitsandbytes__nf4", "U8", &[140]),
        ],
    );
    for bits in [4_u64, 8] {
        check(
            Layout::Packed,
            &Hints { packed_bits: Some(bits), ..Hints::default() },
            &[
                ("self_attn.q_proj.weight_packed", "I32", &[128, 256 * bits / 32]),
                ("self_attn.q_proj.weight_scale", "BF16", &[128, 2]),
                ("self_attn.q_proj.weight_shape", "I64", &[2]),
            ],
        );
    }
    check(
        Layout::Nvfp4,
        &none,
        &[
            ("self_attn.q_proj.weight_packed", "U8", &[128, 128]),
            ("self_attn.q_proj.weight_scale", "F8_E4M3", &[128, 16]),
            ("self_attn.q_proj.weight_global_scale", "F32", &[1]),
            ("self_attn.q_proj.input_global_scale", "F32", &[1]),
        ],
    );
    check(
        Layout::Nvfp4,
        &none,
        &[
            (w, "U8", &[128, 128]),
            ("self_attn.q_proj.weight_scale", "F8_E4M3", &[128, 16]),
            ("self_attn.q_proj.weight_scale_2", "F32", &[]),
        ],
    );
    check(
        Layout::Mxfp4,
        &none,
        &[("mlp.experts.down_proj_blocks", "U8", &[4, 32, 8, 16]), ("mlp.experts.down_proj_scales", "U8", &[4, 32, 8])],
    );
    check(
        Layout::Mxfp4,
        &none,
        &[("ffn.experts.0.w1.weight", "I8", &[128, 128]), ("ffn.experts.0.w1.scale", "F8_E8M0", &[128, 8])],
    );
}

#[test]
fn of_mlx_with_and_without_its_config() {
    for (bits, group) in [(2_u64, 32_u64), (3, 64), (4, 64), (5, 32), (6, 128), (8, 64)] {
        let config = serde_json::json!({"quantization": {"group_size": group, "bits": bits}});
        let hints = Hints { mlx: Quantization::from_config(&config).unwrap(), ..Hints::default() };
        let groups = 256 / group;
        check(
            Layout::Mlx,
            &hints,
            &[
                ("mlp.up_proj.weight", "U32", &[128, 256 * bits / 32]),
                ("mlp.up_proj.scales", "BF16", &[128, groups]),
                ("mlp.up_proj.biases", "BF16", &[128, groups]),
            ],
        );
    }
    // 4-bit groups of 64 are the default where nothing is said; microscaling has one size each.
    check(
        Layout::Mlx,
        &Hints::default(),
        &[
            ("mlp.up_proj.weight", "U32", &[128, 32]),
            ("mlp.up_proj.scales", "F16", &[128, 4]),
            ("mlp.up_proj.biases", "F16", &[128, 4]),
        ],
    );
    check(Layout::Mlx, &Hints::default(), &[("mlp.up_proj.weight", "U32", &[128, 32]), ("mlp.up_proj.scales", "U8", &[128, 8])]);
    check(Layout::Mlx, &Hints::default(), &[("mlp.up_proj.weight", "U32", &[128, 32]), ("mlp.up_proj.scales", "U8", &[128, 16])]);
}

#[test]
fn names_of_real_checkpoints_are_all_placed() {
    let mut unknown = std::collections::BTreeSet::new();
    let mut total = 0;
    for path in files("corpus/index") {
        let index = Index::parse(&std::fs::read(&path).unwrap(), &IndexLimits::default()).unwrap();
        total += index.weight_map.len();
        for (name, _) in &index.weight_map {
            if classify(name, 2, &Context::default()).component == Component::Other {
                unknown.insert(name.clone());
            }
        }
    }
    assert!(total > 8000, "{total}");
    let known_scalars = |name: &String| name.ends_with(".layer_scalar");
    assert_eq!(unknown.into_iter().filter(|name| !known_scalars(name)).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn totals_of_real_indexes() {
    let read = |name: &str| {
        let bytes = std::fs::read(fixture(&format!("corpus/index/{name}.index.json"))).unwrap();
        Index::parse(&bytes, &IndexLimits::default()).unwrap()
    };
    assert_eq!(read("gpt-oss-20b").total_size, TotalSize::Bytes(13_761_264_768));
    assert_eq!(read("redpajama-7b.total_size-float").total_size, TotalSize::Bytes(13_731_385_408));
    assert_eq!(read("cosmos-reason2-8b.total_size-zero").total_size, TotalSize::Unusable);
    assert_eq!(read("llama-2-70b.empty-metadata").total_size, TotalSize::Unusable);
    let tied = read("gemma-4-31b-it.total_parameters-counts-tied-twice");
    assert_eq!((tied.total_size, tied.total_parameters), (TotalSize::Bytes(62_546_177_752), Some(32_682_372_656)));
    assert!(read("falcon-40b.lm_head-duplicated").pickle().is_some());
    assert!(read("smollm3-3b").pickle().is_none());
}

#[test]
fn an_npz_archive_of_the_corpus() {
    let bytes = std::fs::read(fixture("corpus/safetensors/candle-test.npz")).unwrap();
    let checkpoint = read_npz(&bytes.as_slice(), &NpzLimits::default(), Context::default(), &Hints::default()).unwrap();
    let rows: Vec<(&str, &[u64], u64)> =
        checkpoint.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice(), tensor.bytes)).collect();
    assert_eq!(rows, [("x", &[10_u64][..], 80), ("x_plus_one", &[10], 80)]);
    assert_eq!(checkpoint.notes.len(), 1, "integers of no known layout: {:?}", checkpoint.notes);
}
