//! What the GGUF tests share: fixtures, and a writer of small GGUF files of any version and byte order.

use std::io::Read;
use std::path::{Path, PathBuf};

use plimsoll_math::deployment::{Backend, ContextRequest, Deployment, FlashAttention};
use plimsoll_math::format::StorageFormat;
use serde_json::Value;

/// A folder or file among the fixtures.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

/// The bytes of a gzip file.
pub fn gunzip(path: &Path) -> Vec<u8> {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The lines of a gzip file of JSON lines.
pub fn json_lines(path: &str) -> Vec<serde_json::Value> {
    let text = String::from_utf8(gunzip(&fixture(path))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every file in a fixture folder, by name.
pub fn files(folder: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(fixture(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A metadata value to write.
#[derive(Debug, Clone, PartialEq)]
pub enum Meta {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    U64(u64),
    I64(i64),
    F64(f64),
    List(u32, Vec<Meta>),
}

impl Meta {
    fn id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::List(..) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }
}

/// A tensor to write: name, dimensions, type, offset.
#[derive(Debug, Clone)]
pub struct Info {
    pub name: String,
    pub dims: Vec<u64>,
    pub type_id: u32,
    pub offset: u64,
}

/// A file to write.
#[derive(Debug, Clone)]
pub struct File {
    pub version: u32,
    pub big_endian: bool,
    pub metadata: Vec<(String, Meta)>,
    pub tensors: Vec<Info>,
}

impl Default for File {
    fn default() -> Self {
        Self { version: 3, big_endian: false, metadata: Vec::new(), tensors: Vec::new() }
    }
}

impl File {
    pub fn with(mut self, key: &str, value: Meta) -> Self {
        self.metadata.push((key.to_owned(), value));
        self
    }
    pub fn text(self, key: &str, value: &str) -> Self {
        self.with(key, Meta::Text(value.to_owned()))
    }
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.with(key, Meta::U32(value))
    }
    /// Appends a tensor of 32-bit floats after those that are there.
    pub fn f32_tensor(mut self, name: &str, dims: &[u64]) -> Self {
        let offset = self.tensors.last().map_or(0, |last| {
            let bytes: u64 = last.dims.iter().product::<u64>() * 4;
            (last.offset + bytes).next_multiple_of(32)
        });
        self.tensors.push(Info { name: name.to_owned(), dims: dims.to_vec(), type_id: 0, offset });
        self
    }
    pub fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        self.tensors.push(Info { name: name.to_owned(), dims: dims.to_vec(), type_id, offset });
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Out { bytes: b"GGUF".to_vec(), big_endian: self.big_endian, narrow: self.version == 1 };
        out.u32(self.version);
        out.count(self.tensors.len() as u64);
        out.count(self.metadata.len() as u64);
        for (key, value) in &self.metadata {
            out.text(key);
            out.u32(value.id());
            out.value(value);
        }
        for tensor in &self.tensors {
            out.text(&tensor.name);
            out.u32(u32::try_from(tensor.dims.len()).unwrap());
            for dim in &tensor.dims {
                out.count(*dim);
            }
            out.u32(tensor.type_id);
            out.u64(tensor.offset);
        }
        out.bytes
    }
}

struct Out {
    bytes: Vec<u8>,
    big_endian: bool,
    narrow: bool,
}

impl Out {
    fn put(&mut self, little: &[u8]) {
        if self.big_endian { self.bytes.extend(little.iter().rev()) } else { self.bytes.extend(little) }
    }
    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
    fn count(&mut self, value: u64) {
        if self.narrow { self.u32(u32::try_from(value).unwrap()) } else { self.u64(value) }
    }
    fn text(&mut self, text: &str) {
        self.count(text.len() as u64);
        self.bytes.extend(text.as_bytes());
    }
    fn value(&mut self, value: &Meta) {
        match value {
            Meta::U8(value) => self.put(&value.to_le_bytes()),
            Meta::I8(value) => self.put(&value.to_le_bytes()),
            Meta::U16(value) => self.put(&value.to_le_bytes()),
            Meta::I16(value) => self.put(&value.to_le_bytes()),
            Meta::U32(value) => self.put(&value.to_le_bytes()),
            Meta::I32(value) => self.put(&value.to_le_bytes()),
            Meta::F32(value) => self.put(&value.to_le_bytes()),
            Meta::Bool(value) => self.put(&[u8::from(*value)]),
            Meta::Text(value) => self.text(value),
            Meta::U64(value) => self.put(&value.to_le_bytes()),
            Meta::I64(value) => self.put(&value.to_le_bytes()),
            Meta::F64(value) => self.put(&value.to_le_bytes()),
            Meta::List(element, values) => {
                self.u32(*element);
                self.count(values.len() as u64);
                for value in values {
                    self.value(value);
                }
            }
        }
    }
}

/// A made-up model, written as a file from its metadata and shapes.
pub fn written(row: &serde_json::Value) -> Vec<u8> {
    let mut file = File::default();
    for (key, entry) in row["kv"].as_object().unwrap() {
        file = file.with(key, meta(entry[0].as_str().unwrap(), &entry[1]));
    }
    for tensor in row["tensors"].as_array().unwrap() {
        let dims: Vec<u64> = serde_json::from_value(tensor[1].clone()).unwrap();
        file = file.f32_tensor(tensor[0].as_str().unwrap(), &dims);
    }
    file.bytes()
}

fn meta(kind: &str, value: &serde_json::Value) -> Meta {
    let whole = || value.as_i64().unwrap();
    match kind {
        "u32" => Meta::U32(u32::try_from(whole()).unwrap()),
        "i32" => Meta::I32(i32::try_from(whole()).unwrap()),
        "f32" => Meta::F32(value.as_f64().unwrap() as f32),
        "bool" => Meta::Bool(value.as_bool().unwrap()),
        "str" => Meta::Text(value.as_str().unwrap().to_owned()),
        list => {
            let element = list.strip_prefix('a').unwrap();
            let values: Vec<Meta> = value.as_array().unwrap().iter().map(|value| meta(element, value)).collect();
            let id = match element {
                "u32" => 4,
                "i32" => 5,
                "f32" => 6,
                "bool" => 7,
                "str" => 8,
                other => panic!("{other}"),
            };
            Meta::List(id, values)
        }
    }
}

/// The deployment that a row was measured with.
pub(crate) fn deployment(row: &Value) -> Deployment {
    let params = &row["params"];
    let format = |key: &str| StorageFormat::from_name(params[key].as_str().unwrap()).unwrap();
    let backend = match row["backend"].as_str().unwrap() {
        "cpu" => Backend::Cpu,
        "cuda-cc890" => Backend::Cuda { compute_capability: 890 },
        other => panic!("{other}"),
    };
    Deployment {
        sequences: params["parallel"].as_u64().unwrap(),
        ubatch: params["n_ubatch"].as_u64().unwrap(),
        kv_type_k: format("type_k"),
        kv_type_v: format("type_v"),
        flash_attention: match params["fa"].as_str().unwrap() {
            "on" => FlashAttention::On,
            "off" => FlashAttention::Off,
            _ => FlashAttention::Auto,
        },
        kv_unified: params["kv_unified"].as_bool().unwrap_or(false),
        swa_full: params["swa_full"].as_bool().unwrap_or(false),
        embeddings: params["embeddings"].as_bool().unwrap_or(false),
        load_mtp: params["load_mtp"].as_bool().unwrap_or(false),
        draft_tokens: params["n_draft"].as_u64().unwrap_or(0),
        ..Deployment::new(ContextRequest::Total(params["n_ctx"].as_u64().unwrap()), backend)
    }
}
