//! Files that tests make up: checkpoints with headers and holes for data, in a folder that goes away.

pub mod server;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of its own, removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("plimsoll-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
    pub fn text(&self) -> String {
        self.0.display().to_string()
    }
    pub fn join(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    /// A safetensors file: its data is a hole.
    pub fn safetensors(&self, name: &str, tensors: &[Made]) {
        let (head, length) = safetensors(tensors);
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = fs::File::create(path).unwrap();
        file.write_all(&head).unwrap();
        file.set_len(length).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Name, number type, shape.
pub type Made = (String, &'static str, Vec<u64>);

/// The header of a file with these tensors, and the length of the whole.
pub fn safetensors(tensors: &[Made]) -> (Vec<u8>, u64) {
    let mut end = 0;
    let rows: Vec<String> = tensors
        .iter()
        .map(|(name, dtype, shape)| {
            let bits = plimsoll_ingest::safetensors::Dtype::from_name(dtype).unwrap().bits();
            let start = end;
            end += shape.iter().product::<u64>() * bits / 8;
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    let json = format!("{{{}}}", rows.join(","));
    let mut head = u64::try_from(json.len()).unwrap().to_le_bytes().to_vec();
    head.extend_from_slice(json.as_bytes());
    let length = u64::try_from(head.len()).unwrap() + end;
    (head, length)
}

/// A small Llama: its config, and its tensors as Hugging Face names them.
pub fn llama(n_layers: u64, tied: bool) -> (String, Vec<Made>) {
    let config = format!(
        r#"{{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":64,"intermediate_size":160,
            "num_hidden_layers":{n_layers},"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":1000,
            "max_position_embeddings":2048,"tie_word_embeddings":{tied},"torch_dtype":"bfloat16","rms_norm_eps":1e-5,
            "rope_theta":10000.0,"hidden_act":"silu"}}"#
    );
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), "BF16", vec![1000, 64])];
    for layer in 0..n_layers {
        let mut add =
            |name: &str, shape: &[u64]| tensors.push((format!("model.layers.{layer}.{name}.weight"), "BF16", shape.to_vec()));
        add("input_layernorm", &[64]);
        add("self_attn.q_proj", &[64, 64]);
        add("self_attn.k_proj", &[32, 64]);
        add("self_attn.v_proj", &[32, 64]);
        add("self_attn.o_proj", &[64, 64]);
        add("post_attention_layernorm", &[64]);
        add("mlp.gate_proj", &[160, 64]);
        add("mlp.up_proj", &[160, 64]);
        add("mlp.down_proj", &[64, 160]);
    }
    tensors.push(("model.norm.weight".to_owned(), "BF16", vec![64]));
    if !tied {
        tensors.push(("lm_head.weight".to_owned(), "BF16", vec![1000, 64]));
    }
    (config, tensors)
}

/// An index of shards.
pub fn index(shards: &[(&str, &[Made])], total_size: &str) -> String {
    let rows: Vec<String> = shards
        .iter()
        .flat_map(|(shard, tensors)| tensors.iter().map(move |(name, ..)| format!(r#""{name}":"{shard}""#)))
        .collect();
    format!(r#"{{"metadata":{{"total_size":{total_size}}},"weight_map":{{{}}}}}"#, rows.join(","))
}
