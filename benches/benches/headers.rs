//! Reading headers: a GGUF header with a vocabulary of 151,936 tokens, and a `config.json`, beside peers on the same bytes.
#![allow(missing_docs, reason = "criterion's macros generate public items")]

use std::hint::black_box;

use ::gguf as gguf_peer;
use criterion::{Criterion, criterion_group, criterion_main};
use plimsoll_ingest::{gguf, hf};

/// A GGUF header as a converter writes it for a model of Qwen3's size: scalars, token strings, token types and merges, and
/// the tensor infos of 36 layers.
fn header_with_a_large_vocabulary() -> (Vec<u8>, u64) {
    const TOKENS: u64 = 151_936;
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }
    fn key(out: &mut Vec<u8>, name: &str, kind: u32) {
        text(out, name);
        out.extend(kind.to_le_bytes());
    }
    const U32: u32 = 4;
    const I32: u32 = 5;
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;
    let mut tensors = Vec::new();
    let mut n_tensors = 0_u64;
    let mut offset = 0_u64;
    let mut tensor = |name: &str, dims: &[u64]| {
        text(&mut tensors, name);
        tensors.extend((dims.len() as u32).to_le_bytes());
        for dim in dims {
            tensors.extend(dim.to_le_bytes());
        }
        tensors.extend(1_u32.to_le_bytes());
        tensors.extend(offset.to_le_bytes());
        offset += dims.iter().product::<u64>() * 2;
        n_tensors += 1;
    };
    tensor("token_embd.weight", &[4096, TOKENS]);
    for layer in 0..36 {
        for (name, dims) in [
            ("attn_q", [4096, 4096]),
            ("attn_k", [4096, 1024]),
            ("attn_v", [4096, 1024]),
            ("attn_output", [4096, 4096]),
            ("ffn_gate", [4096, 12288]),
            ("ffn_up", [4096, 12288]),
            ("ffn_down", [12288, 4096]),
        ] {
            tensor(&format!("blk.{layer}.{name}.weight"), &dims);
        }
        for name in ["attn_norm", "ffn_norm"] {
            tensor(&format!("blk.{layer}.{name}.weight"), &[4096]);
        }
    }
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend(n_tensors.to_le_bytes());
    out.extend(6_u64.to_le_bytes());
    key(&mut out, "general.architecture", STRING);
    text(&mut out, "qwen3");
    key(&mut out, "qwen3.block_count", U32);
    out.extend(36_u32.to_le_bytes());
    key(&mut out, "qwen3.embedding_length", U32);
    out.extend(4096_u32.to_le_bytes());
    key(&mut out, "tokenizer.ggml.tokens", ARRAY);
    out.extend(STRING.to_le_bytes());
    out.extend(TOKENS.to_le_bytes());
    for token in 0..TOKENS {
        text(&mut out, &format!("tok{token}"));
    }
    key(&mut out, "tokenizer.ggml.token_type", ARRAY);
    out.extend(I32.to_le_bytes());
    out.extend(TOKENS.to_le_bytes());
    out.extend((0..TOKENS).flat_map(|_| 1_i32.to_le_bytes()));
    key(&mut out, "tokenizer.ggml.merges", ARRAY);
    out.extend(STRING.to_le_bytes());
    out.extend(TOKENS.to_le_bytes());
    for merge in 0..TOKENS {
        text(&mut out, &format!("a{merge} b{merge}"));
    }
    out.extend(tensors);
    out.resize(out.len().next_multiple_of(32), 0);
    let file_length = out.len() as u64 + offset;
    (out, file_length)
}

/// A header whose tensor data is a hole, for readers that ask for the file's length.
struct Sparse<'a> {
    header: std::io::Cursor<&'a [u8]>,
    length: u64,
}

impl std::io::Read for Sparse<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.header.read(buffer)
    }
}

impl std::io::Seek for Sparse<'_> {
    fn seek(&mut self, position: std::io::SeekFrom) -> std::io::Result<u64> {
        match position {
            std::io::SeekFrom::End(_) => Ok(self.length),
            other => self.header.seek(other),
        }
    }
}

fn gguf_header(criterion: &mut Criterion) {
    let (bytes, length) = header_with_a_large_vocabulary();
    let limits = gguf::Limits::default();
    let mut group = criterion.benchmark_group("gguf_header_152k_tokens");
    group.bench_function("plimsoll", |bencher| {
        bencher.iter(|| gguf::Header::read(&black_box(bytes.as_slice()), &limits).expect("a valid header").tensors.len());
    });
    group.sample_size(20);
    group.bench_function("gguf 0.1.2", |bencher| {
        bencher.iter(|| gguf_peer::GGUFFile::read(black_box(&bytes)).expect("a valid header"));
    });
    group.bench_function("gguf-rs-lib 0.3.3", |bencher| {
        bencher.iter(|| {
            let sparse = Sparse { header: std::io::Cursor::new(black_box(&bytes)), length };
            gguf_rs_lib::reader::GGUFFileReader::new(sparse).expect("a valid header").tensor_count()
        });
    });
    group.finish();
}

fn config(criterion: &mut Criterion) {
    let bytes = include_bytes!("../../fixtures/truth/llama.cpp/configs/Llama-3.1-8B.config.json");
    let options = hf::Options::default();
    let mut group = criterion.benchmark_group("config_json");
    group.bench_function("plimsoll (model and tensor table)", |bencher| {
        bencher.iter(|| hf::ingest(black_box(bytes), &options).expect("a known family").tensors.tensors.len());
    });
    group.bench_function("serde_json 1 (untyped parse only)", |bencher| {
        bencher.iter(|| serde_json::from_slice::<serde_json::Value>(black_box(bytes)).expect("valid JSON"));
    });
    group.finish();
}

criterion_group!(benches, gguf_header, config);
criterion_main!(benches);
