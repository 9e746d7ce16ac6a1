//! Laws that hold for any table of tensors: rounding up never loses a byte, and better mixes are never smaller.

use crate::support::fixture;
use crate::support::headers::{header, read, shapes_only};
use plimsoll_math::deployment::{Backend, ContextRequest, Deployment};
use plimsoll_math::engine::llama_cpp::layout::Layout;
use plimsoll_math::engine::llama_cpp::weights::weight_buffers;
use plimsoll_math::engine::llama_cpp::{Build, FileType, LoaderFacts, quantize};
use plimsoll_math::format::StorageFormat;
use plimsoll_math::tensor::{Component, Counts, Place, Shape, Tensor, TensorTable};
use proptest::prelude::*;

const BACKENDS: [Backend; 3] = [Backend::Cpu, Backend::Cuda { compute_capability: 890 }, Backend::Metal];

fn facts() -> LoaderFacts {
    LoaderFacts {
        takes_rope_factors: Vec::new(),
        arch: "llama".to_owned(),
        n_layers: 4,
        n_layers_all: 4,
        n_experts: 0,
        n_heads: 8,
        n_kv_heads: 8,
        scan: None,
        packed_experts: None,
    }
}

fn any_table() -> impl Strategy<Value = TensorTable> {
    let name = (0_u32..4, prop_oneof![Just("attn_v"), Just("attn_norm"), Just("ffn_down"), Just("attn_output")]);
    let tensor = (name, 1_u64..64, 1_u64..2000).prop_map(|((layer, base), row, rows)| Tensor {
        name: format!("blk.{layer}.{base}.weight"),
        shape: Shape::matrix(32 * row, rows),
        format: StorageFormat::Bf16,
        opaque_bytes: None,
        component: Component::Other,
        place: Place::Layer(layer),
        counts: Counts::Parameter,
    });
    (prop::collection::vec(tensor, 1..20), any::<bool>(), 1_u64..64).prop_map(|(mut tensors, tied, row)| {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        tensors.dedup_by(|a, b| a.name == b.name);
        for name in ["token_embd.weight", "output.weight"].into_iter().take(if tied { 1 } else { 2 }) {
            let shape = Shape::matrix(32 * row, 1000);
            tensors.push(Tensor { name: name.to_owned(), shape, place: Place::Input, ..tensors[0].clone() });
        }
        TensorTable { tensors }
    })
}

proptest! {
    #[test]
    fn a_buffer_holds_at_least_its_tensors(table in any_table(), file_type in prop::sample::select(FileType::ALL), build in prop::sample::select(Build::ALL), repack in any::<bool>()) {
        let table = match quantize::file_tensors(build, &facts(), &table, file_type) {
            Err(_) if file_type == FileType::Q1_0 => return Ok(()),
            made => made.unwrap(),
        };
        let stored = table.bytes_where(|_| true).unwrap().get();
        for backend in BACKENDS {
            let mut deployment = Deployment::new(ContextRequest::ModelMaximum, backend);
            deployment.repack = repack;
            let layout = Layout::new(facts().n_layers_all, &deployment).unwrap();
            let buffers = weight_buffers(build, &facts(), &table, &deployment).unwrap();
            prop_assert!(buffers.iter().map(|buffer| buffer.bytes.get()).sum::<u64>() >= stored);
            for buffer in &buffers {
                prop_assert_eq!(buffer.bytes.get() % buffer.place.alignment(&layout), 0);
                let groups: u64 = buffer.groups.iter().map(|group| group.stored.get() + group.padding.get()).sum();
                prop_assert_eq!(groups, buffer.bytes.get());
            }
        }
    }

    #[test]
    fn a_mix_lies_between_its_smallest_and_its_largest_format(table in any_table(), file_type in prop::sample::select(FileType::ALL)) {
        let table = match quantize::file_tensors(Build::default(), &facts(), &table, file_type) {
            Err(_) if file_type == FileType::Q1_0 => return Ok(()),
            made => made.unwrap(),
        };
        let elements: u64 = table.tensors.iter().map(|tensor| tensor.shape.elements().unwrap()).sum();
        let bytes = table.bytes_where(|_| true).unwrap().get();
        let size = |format: StorageFormat| u128::from(elements) * u128::from(format.block_bytes()) / u128::from(format.block_len());
        let formats = || table.tensors.iter().map(|tensor| tensor.format);
        prop_assert!(u128::from(bytes) >= formats().map(size).min().unwrap());
        prop_assert!(u128::from(bytes) <= formats().map(size).max().unwrap() + 1);
    }
}

/// Every real header whose rows are whole super-blocks, smallest file type first. Where rows are not, the quantizer turns to
/// smaller blocks with more bits, and small file types may trade places (gpt-oss).
#[test]
fn a_better_mix_is_never_smaller() {
    const LADDERS: [&[&str]; 3] = [
        &["Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "F16", "F32"],
        &["Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K"],
        &["IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "Q5_K_M"],
    ];
    let mut checked = 0;
    for entry in std::fs::read_dir(fixture("truth/llama.cpp/gguf")).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_str().unwrap().contains(".BF16.") {
            continue;
        }
        let (facts, table) = read(&header(&path));
        if table.tensors.iter().any(|tensor| tensor.name.starts_with("blk.0.ffn") && !tensor.shape.row().is_multiple_of(256)) {
            continue;
        }
        let shapes = shapes_only(&table);
        for build in Build::ALL {
            for ladder in LADDERS {
                let sizes: Vec<u64> = ladder
                    .iter()
                    .map(|name| {
                        let table = quantize::file_tensors(*build, &facts, &shapes, FileType::parse(name).unwrap()).unwrap();
                        table.bytes_where(|_| true).unwrap().get()
                    })
                    .collect();
                assert!(sizes.is_sorted(), "{} {build}: {ladder:?} {sizes:?}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked >= 30 * 6, "{checked}");
}

#[test]
fn unknown_names_get_the_nearest() {
    for (text, part) in [
        ("Q4_KM", "Q4_K_M"),
        ("q5km", "Q5_K_M"),
        ("IQ4XS", "IQ4_XS"),
        ("UD-Q4_K_XL", "third party"),
        ("mxfp4", "MXFP4_MOE"),
        ("COPY", "llama-quantize"),
        ("", "llama-quantize"),
    ] {
        let error = FileType::parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    for file_type in FileType::ALL {
        assert_eq!(FileType::parse(&file_type.name().to_lowercase()).unwrap(), *file_type);
        assert_eq!(FileType::from_id(file_type.id()), Some(*file_type));
    }
}
