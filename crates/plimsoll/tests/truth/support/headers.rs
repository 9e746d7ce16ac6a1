//! Real headers among the fixtures as the tensor table and the facts that the quantizer and the loader go by.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use plimsoll_ingest::gguf::{Header, Limits, Value};
use plimsoll_ingest::source::FileSource;
use plimsoll_math::engine::llama_cpp::loader_facts::{LoaderFacts, ScanFacts, packed_experts};
use plimsoll_math::format::StorageFormat;
use plimsoll_math::tensor::{Component, Counts, Place, Tensor, TensorTable};

use crate::support::fixture;

/// A header, gzip'd or not.
pub fn header(path: &Path) -> Header {
    let read = if path.extension().is_some_and(|extension| extension == "gz") {
        let mut bytes = Vec::new();
        GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
        Header::read(&bytes, &Limits::default())
    } else {
        Header::read(&FileSource::open(path).unwrap(), &Limits::default())
    };
    read.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The header of a model of the truth at a file type, if there is one.
pub fn model(name: &str, file_type: &str) -> Option<Header> {
    let name: String = name.chars().map(|c| if c == '/' || c == '(' || c == ')' || c == ' ' { '_' } else { c }).collect();
    let path = fixture(&format!("truth/llama.cpp/gguf/{name}.{file_type}.gguf.header.gz"));
    path.exists().then(|| header(&path))
}

/// The tensors as a table.
pub fn table(header: &Header, n_layers: u32) -> TensorTable {
    let tensors = header
        .tensors
        .iter()
        .map(|info| {
            let layer = info.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()).and_then(|n| n.parse().ok());
            Tensor {
                name: info.name.clone(),
                shape: info.shape,
                format: info.format.unwrap(),
                opaque_bytes: None,
                component: Component::Other,
                place: layer.map_or(Place::Input, Place::Layer),
                counts: if layer.is_some_and(|layer| layer >= n_layers) {
                    Counts::MultiTokenPrediction
                } else {
                    Counts::Parameter
                },
            }
        })
        .collect();
    TensorTable { tensors }
}

/// The facts in the metadata.
pub fn facts(header: &Header) -> LoaderFacts {
    let arch = header.get("general.architecture").and_then(Value::as_text).unwrap().to_owned();
    let key = |key: &str| header.get(&format!("{arch}.{key}"));
    let first = |name: &str| key(name).and_then(|value| value.as_list().map_or(Some(value), |list| list.first())?.as_u64());
    let number = |name: &str| first(name).unwrap_or(0);
    let n_layers_all = u32::try_from(number("block_count")).unwrap();
    let n_layers = n_layers_all - u32::try_from(number("nextn_predict_layers")).unwrap();
    let n_heads = number("attention.head_count");
    let scan = key("ssm.state_size").map(|_| ScanFacts {
        d_state: number("ssm.state_size"),
        d_inner: number("ssm.inner_size"),
        n_groups: number("ssm.group_count"),
    });
    // Windowed layers of Gemma 4 do not take the table of rotation factors.
    let windows = key("attention.sliding_window_pattern").and_then(Value::as_list).filter(|_| arch.starts_with("gemma4"));
    let takes_rope_factors = windows.map_or_else(Vec::new, |list| {
        list.iter().map(|windowed| windowed.as_u64() == Some(0) || windowed.as_bool() == Some(false)).collect()
    });
    LoaderFacts {
        takes_rope_factors,
        n_layers,
        n_layers_all,
        n_experts: number("expert_count"),
        n_heads,
        n_kv_heads: first("attention.head_count_kv").unwrap_or(n_heads),
        scan,
        packed_experts: packed_experts(&arch),
        arch,
    }
}

/// A header as table and facts.
pub fn read(header: &Header) -> (LoaderFacts, TensorTable) {
    let facts = facts(header);
    let table = table(header, facts.n_layers);
    (facts, table)
}

/// The same names and shapes with formats forgotten.
pub fn shapes_only(table: &TensorTable) -> TensorTable {
    let tensors = table.tensors.iter().map(|tensor| Tensor { format: StorageFormat::Bf16, ..tensor.clone() }).collect();
    TensorTable { tensors }
}
