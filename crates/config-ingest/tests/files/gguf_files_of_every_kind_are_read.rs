//! Versions, byte orders, split sets, huge files, unknown types and what else real files hold.

use std::collections::BTreeMap;

use crate::support::{File, Meta};
use plimsoll_ingest::error::IngestError;
use plimsoll_ingest::gguf::{ByteOrder, Header, Limits, Options, Value, ingest, ingest_set};
use plimsoll_ingest::source::{FileSource, PrefixSource, RangeSource};
use plimsoll_math::spec::FeedForward;
use plimsoll_math::tensor::{Component, Counts, Place};

/// A small llama of `n` layers.
fn llama(n: u32) -> File {
    let mut file = File::default()
        .text("general.architecture", "llama")
        .text("general.name", "small")
        .u32("llama.block_count", n)
        .u32("llama.context_length", 512)
        .u32("llama.embedding_length", 64)
        .u32("llama.feed_forward_length", 128)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .f32_tensor("token_embd.weight", &[64, 100]);
    for layer in 0..n {
        for (name, dims) in [
            ("attn_norm", vec![64]),
            ("attn_q", vec![64, 64]),
            ("attn_k", vec![64, 32]),
            ("attn_v", vec![64, 32]),
            ("attn_output", vec![64, 64]),
            ("ffn_norm", vec![64]),
            ("ffn_gate", vec![64, 128]),
            ("ffn_up", vec![64, 128]),
            ("ffn_down", vec![128, 64]),
        ] {
            file = file.f32_tensor(&format!("blk.{layer}.{name}.weight"), &dims);
        }
    }
    file.f32_tensor("output_norm.weight", &[64])
}

/// Reads `file` and, in the same breath, the same file in every other version and byte order.
fn check(file: &File) -> Header {
    let read = |version, big_endian| {
        let bytes = File { version, big_endian, ..file.clone() }.bytes();
        let header = Header::read(&bytes, &Limits::default()).unwrap();
        assert_eq!(header.version, version);
        assert_eq!(header.byte_order, if big_endian { ByteOrder::Big } else { ByteOrder::Little });
        header
    };
    let reference = read(3, false);
    for (version, big_endian) in [(1, false), (2, false), (1, true), (2, true), (3, true)] {
        let other = read(version, big_endian);
        assert_eq!(other.metadata, reference.metadata, "version {version}, big endian {big_endian}");
        assert_eq!(other.tensors, reference.tensors, "version {version}, big endian {big_endian}");
    }
    reference
}

#[test]
fn every_version_and_byte_order_says_the_same() {
    let file = llama(2)
        .with("a.u8", Meta::U8(200))
        .with("a.i8", Meta::I8(-100))
        .with("a.u16", Meta::U16(60_000))
        .with("a.i16", Meta::I16(-30_000))
        .with("a.i32", Meta::I32(-2_000_000_000))
        .with("a.f32", Meta::F32(1.5))
        .with("a.bool", Meta::Bool(true))
        .with("a.u64", Meta::U64(1 << 60))
        .with("a.i64", Meta::I64(-(1 << 60)))
        .with("a.f64", Meta::F64(1e300))
        .with("a.list", Meta::List(2, vec![Meta::U16(1), Meta::U16(500)]))
        .with("a.texts", Meta::List(8, vec![Meta::Text("one".into()), Meta::Text("two".into())]));
    let header = check(&file);
    assert_eq!(header.get("a.i8"), Some(&Value::Int(-100)));
    assert_eq!(header.get("a.i64"), Some(&Value::Int(-(1 << 60))));
    assert_eq!(header.get("a.f64"), Some(&Value::Float(1e300)));
    assert_eq!(header.get("a.list").unwrap().as_list(), Some(&[Value::Int(1), Value::Int(500)][..]));
    // Lists of texts are counted, not kept.
    assert!(matches!(header.get("a.texts"), Some(Value::Array { len: 2, values: None, .. })));
}

#[test]
fn a_list_of_texts_is_kept_when_asked_for() {
    let bytes = llama(1).with("a.texts", Meta::List(8, vec![Meta::Text("one".into())])).bytes();
    let header = Header::read_keeping(&bytes, &Limits::default(), &["a.texts"]).unwrap();
    assert_eq!(header.get("a.texts").unwrap().as_list(), Some(&[Value::Text("one".into())][..]));
}

#[test]
fn a_model_comes_out() {
    let ingested = ingest(&llama(3).bytes(), &Options::default()).unwrap();
    assert_eq!(ingested.spec.layers.len(), 3);
    assert_eq!(ingested.spec.name.as_deref(), Some("small"));
    assert_eq!(ingested.spec.max_context, 512);
    let table = &ingested.tensors;
    assert_eq!(table.tensors.len(), 29);
    let query = table.get("blk.1.attn_q.weight").unwrap();
    assert_eq!((query.component, query.place, query.counts), (Component::Attention, Place::Layer(1), Counts::Parameter));
    assert_eq!(table.total_params().unwrap().get(), 100 * 64 + 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 128) + 64);
}

/// A source that notes how much was read of it.
struct Counting<S> {
    inner: S,
    read: std::cell::Cell<usize>,
}

impl<S: RangeSource> RangeSource for Counting<S> {
    fn len(&self) -> Result<Option<u64>, IngestError> {
        self.inner.len()
    }
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, IngestError> {
        let bytes = self.inner.read(offset, length)?;
        self.read.set(self.read.get() + bytes.len());
        Ok(bytes)
    }
    fn name(&self) -> String {
        "counting".to_owned()
    }
}

#[test]
fn no_more_than_the_header_is_asked_for() {
    let tokens = (0..150_000).map(|token| Meta::Text(format!("token {token}"))).collect();
    let scores = (0..150_000).map(|_| Meta::F32(0.0)).collect();
    let mut file = llama(2);
    file.metadata.push(("tokenizer.ggml.tokens".into(), Meta::List(8, tokens)));
    file.metadata.push(("tokenizer.ggml.scores".into(), Meta::List(6, scores)));
    let mut bytes = file.bytes();
    let header_len = bytes.len();
    bytes.resize(64 << 20, 0);
    let source = Counting { inner: bytes, read: std::cell::Cell::new(0) };
    let header = Header::read(&source, &Limits::default()).unwrap();
    assert!(matches!(header.get("tokenizer.ggml.tokens"), Some(Value::Array { len: 150_000, values: None, .. })));
    assert!(source.read.get() < 2 * header_len + (64 << 10), "{} bytes for a header of {header_len}", source.read.get());
}

#[test]
fn a_sparse_file_of_400_gb_costs_its_header() {
    let path = std::env::temp_dir().join(format!("plimsoll-sparse-{}.gguf", std::process::id()));
    let mut file = llama(2);
    // One tensor so large that the file has to be.
    let offset = file.tensors.last().unwrap().offset + 256;
    file = file.tensor("blk.0.huge.weight", &[4096, 24_000_000], 0, offset);
    std::fs::write(&path, file.bytes()).unwrap();
    let handle = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    // A file system without sparse files cannot hold it.
    let grown = handle.set_len(400_000_000_000);
    if grown.is_ok() {
        let source = Counting { inner: FileSource::open(&path).unwrap(), read: std::cell::Cell::new(0) };
        let ingested = ingest(&source, &Options::default()).unwrap();
        assert!(ingested.notes.is_empty(), "{:?}", ingested.notes);
        assert_eq!(ingested.tensors.tensors.len(), 21);
        assert_eq!(source.read.get(), 64 << 10, "one read is enough for a header this small");
    }
    std::fs::remove_file(&path).unwrap();
    grown.unwrap();
}

#[test]
fn a_header_without_its_data_is_enough() {
    let bytes = llama(2).bytes();
    let alone = ingest(&bytes, &Options::default()).unwrap();
    assert!(alone.notes.iter().any(|note| note.contains("without tensor data")), "{:?}", alone.notes);
    // The first bytes of a longer file, as a range request brings them.
    let whole = PrefixSource::new("whole".into(), bytes.clone(), Some(10_000_000));
    assert!(ingest(&whole, &Options::default()).unwrap().notes.is_empty());
    let unfinished = PrefixSource::new("part".into(), bytes.clone(), Some(bytes.len() as u64 + 1000));
    let notes = ingest(&unfinished, &Options::default()).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("incomplete")), "{notes:?}");
    let unknown = PrefixSource::new("stream".into(), bytes, None);
    assert!(ingest(&unknown, &Options::default()).unwrap().notes.is_empty());
}

#[test]
fn an_unknown_tensor_type_is_sized_by_offsets() {
    let mut file = llama(1);
    let first = file.tensors.first_mut().unwrap();
    first.type_id = 99;
    let bytes = file.bytes();
    let ingested = ingest(&bytes, &Options::default()).unwrap();
    assert_eq!(ingested.tensors.get("token_embd.weight").unwrap().bytes().unwrap().get(), 100 * 64 * 4);
    assert_eq!(ingested.tensors.get("token_embd.weight").unwrap().params().unwrap().get(), 100 * 64);
    assert!(ingested.notes.iter().any(|note| note.contains("unknown type 99")), "{:?}", ingested.notes);
}

/// The files of a split set by name; `count` of them, each a slice of `file`.
fn split(file: &File, count: usize) -> BTreeMap<String, Vec<u8>> {
    let per_file = file.tensors.len().div_ceil(count);
    let mut files = BTreeMap::new();
    for (index, tensors) in file.tensors.chunks(per_file).enumerate() {
        let mut part = File::default();
        if index == 0 {
            part.metadata.clone_from(&file.metadata);
        }
        part = part
            .with("split.no", Meta::U16(u16::try_from(index).unwrap()))
            .with("split.count", Meta::U16(u16::try_from(count).unwrap()))
            .with("split.tensors.count", Meta::I32(i32::try_from(file.tensors.len()).unwrap()));
        for tensor in tensors {
            part = part.f32_tensor(&tensor.name, &tensor.dims);
        }
        files.insert(format!("small-{:05}-of-{count:05}.gguf", index + 1), part.bytes());
    }
    files
}

struct Named(String, Vec<u8>);

impl RangeSource for Named {
    fn len(&self) -> Result<Option<u64>, IngestError> {
        RangeSource::len(&self.1)
    }
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, IngestError> {
        RangeSource::read(&self.1, offset, length)
    }
    fn name(&self) -> String {
        format!("/models/{}", self.0)
    }
}

fn ingest_split(files: &BTreeMap<String, Vec<u8>>, first: &str) -> Result<plimsoll_ingest::Ingested, IngestError> {
    let source = Named(first.to_owned(), files[first].clone());
    ingest_set(&source, &Options::default(), |name| match files.get(name) {
        Some(bytes) => Ok(Box::new(Named(name.to_owned(), bytes.clone()))),
        None => Err(IngestError::Unavailable { what: name.to_owned(), why: "no such file".into() }),
    })
}

#[test]
fn a_split_set_is_one_model() {
    let whole = llama(4);
    let files = split(&whole, 3);
    let first = "small-00001-of-00003.gguf";
    let joined = ingest_split(&files, first).unwrap();
    let alone = ingest(&whole.bytes(), &Options::default()).unwrap();
    assert_eq!(joined.tensors, alone.tensors);
    assert_eq!(joined.spec, alone.spec);
}

#[test]
fn split_sets_with_something_wrong_say_what() {
    let first = "small-00001-of-00003.gguf";
    let mut files = split(&llama(4), 3);
    let later = ingest_split(&files, "small-00002-of-00003.gguf").unwrap_err().to_string();
    assert!(later.contains(first), "{later}");
    let second = files["small-00002-of-00003.gguf"].clone();
    files.insert("small-00003-of-00003.gguf".into(), second);
    let wrong = ingest_split(&files, first).unwrap_err().to_string();
    assert!(wrong.contains("small-00003-of-00003.gguf: split.no: found 1, expected 2"), "{wrong}");
    files.remove("small-00003-of-00003.gguf");
    let missing = ingest_split(&files, first).unwrap_err().to_string();
    assert!(missing.contains("small-00003-of-00003.gguf") && missing.contains("missing"), "{missing}");
    let alone = ingest(&Named(first.into(), files[first].clone()), &Options::default()).unwrap_err();
    assert_eq!(alone.code(), "unavailable");
}

#[test]
fn files_of_other_kinds_are_named() {
    let refusal = |file: File| ingest(&file.bytes(), &Options::default()).unwrap_err().to_string();
    let projector = File::default().text("general.architecture", "clip").f32_tensor("v.a", &[1]);
    assert!(refusal(projector).contains("projector"));
    let adapter = File::default().text("general.architecture", "llama").text("general.type", "adapter");
    assert!(refusal(adapter.f32_tensor("a", &[1])).contains("adapter"));
    assert!(refusal(File::default().text("general.architecture", "llama")).contains("holds no tensors"));
    let unknown = refusal(File::default().text("general.architecture", "lama").f32_tensor("a", &[1]));
    assert!(unknown.contains("lama") && unknown.contains("llama"), "{unknown}");
}

#[test]
fn an_unknown_architecture_is_a_guess_on_request_only() {
    let mut file = llama(2);
    for (key, value) in &mut file.metadata {
        *key = key.replace("llama.", "novel-arch.");
        if key == "general.architecture" {
            *value = Meta::Text("novel-arch".into());
        }
    }
    assert_eq!(ingest(&file.bytes(), &Options::default()).unwrap_err().code(), "unknown_architecture");
    let options = Options { assume_generic: true, ..Options::default() };
    let guess = ingest(&file.bytes(), &options).unwrap();
    assert!(guess.generic && guess.spec.llama_cpp_arch.is_none());
    assert!(guess.notes.iter().any(|note| note.contains("rough estimate")));
    assert_eq!(guess.spec.layers.len(), 2);
}

#[test]
fn experts_stored_one_by_one_are_experts() {
    let mut file = llama(1).u32("llama.expert_count", 4).u32("llama.expert_used_count", 2);
    file.tensors.retain(|tensor| !tensor.name.contains("ffn_") || tensor.name.contains("ffn_norm"));
    let mut with = File { tensors: Vec::new(), ..file.clone() };
    for tensor in &file.tensors {
        with = with.f32_tensor(&tensor.name, &tensor.dims);
    }
    with = with.f32_tensor("blk.0.ffn_gate_inp.weight", &[64, 4]);
    for expert in 0..4 {
        with = with.f32_tensor(&format!("blk.0.ffn_gate.{expert}.weight"), &[64, 128]);
        with = with.f32_tensor(&format!("blk.0.ffn_up.{expert}.weight"), &[64, 128]);
        with = with.f32_tensor(&format!("blk.0.ffn_down.{expert}.weight"), &[128, 64]);
    }
    let ingested = ingest(&with.bytes(), &Options::default()).unwrap();
    let FeedForward::Moe(moe) = &ingested.spec.layers[0].feed_forward else { panic!("no experts") };
    assert_eq!((moe.n_experts, moe.n_experts_per_token, moe.d_ff_expert), (4, 2, 128));
    let experts = ingested.tensors.params_where(|tensor| tensor.component == Component::Experts).unwrap();
    assert_eq!(experts.get(), 4 * 3 * 64 * 128);
    assert!(ingested.notes.iter().any(|note| note.contains("one by one")), "{:?}", ingested.notes);
}
