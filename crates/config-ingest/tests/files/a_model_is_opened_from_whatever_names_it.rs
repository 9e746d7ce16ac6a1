//! Every kind of MODEL on disk through the one entry, and the sentence for each that is none.

use crate::made::{Scratch, index, llama};
use plimsoll_ingest::error::IngestError;
use plimsoll_ingest::resolve::{Door, Opened, Options, open};

fn check(model: &str) -> Result<Opened, IngestError> {
    open(model, &Options::default())
}

fn refusal(model: &str, code: &str) -> String {
    let error = check(model).expect_err(model);
    assert_eq!(error.code(), code, "{error}");
    error.to_string()
}

const PARAMS: u64 = 1000 * 64 * 2 + 64 + 2 * (64 * 2 + 64 * 64 * 2 + 32 * 64 * 2 + 160 * 64 * 3);

#[test]
fn a_config_alone() {
    let folder = Scratch::new();
    folder.write("config.json", llama(2, false).0);
    for name in [folder.text(), folder.join("config.json")] {
        let opened = check(&name).unwrap();
        assert_eq!(opened.door, Door::Config);
        assert_eq!(opened.ingested.tensors.total_params().unwrap().get(), PARAMS);
        assert!(opened.checkpoint.is_none());
    }
}

#[test]
fn a_folder_with_shards_and_an_index() {
    let folder = Scratch::new();
    let (config, tensors) = llama(2, false);
    let (first, second) = tensors.split_at(9);
    folder.write("config.json", config);
    let shards = [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)];
    folder.write("model.safetensors.index.json", index(&shards, &(2 * PARAMS).to_string()));
    folder.safetensors(shards[0].0, first);
    folder.safetensors(shards[1].0, second);
    for name in [folder.text(), folder.join("model.safetensors.index.json")] {
        let opened = check(&name).unwrap();
        assert_eq!(opened.door, Door::Checkpoint);
        let checkpoint = opened.checkpoint.unwrap();
        assert_eq!(checkpoint.summary.params.get(), PARAMS);
        assert_eq!(checkpoint.summary.stored.get(), 2 * PARAMS);
        assert_eq!(checkpoint.table().unwrap().total_params().unwrap().get(), PARAMS);
        assert!(!opened.ingested.notes.iter().any(|note| note.contains("parameters:")), "{:?}", opened.ingested.notes);
    }
}

#[test]
fn a_missing_shard_is_named() {
    let folder = Scratch::new();
    let (config, tensors) = llama(2, false);
    let (first, second) = tensors.split_at(9);
    folder.write("config.json", config);
    let shards = [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)];
    folder.write("model.safetensors.index.json", index(&shards, "0"));
    folder.safetensors(shards[0].0, first);
    let text = refusal(&folder.text(), "unavailable");
    assert!(text.starts_with("1 of 2 shards (model-00002-of-00002.safetensors): "), "{text}");
    // Without an index, the names of the files themselves tell.
    std::fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    let text = refusal(&folder.text(), "unavailable");
    assert!(text.contains("model-00002-of-00002.safetensors") && text.ends_with("the shard is missing"), "{text}");
}

#[test]
fn a_false_total_size_and_a_stored_copy_of_a_tied_head_become_notes() {
    let folder = Scratch::new();
    let (config, mut tensors) = llama(2, true);
    tensors.push(("lm_head.weight".to_owned(), "BF16", vec![1000, 64]));
    folder.write("config.json", config);
    folder.write("model.safetensors.index.json", index(&[("model.safetensors", &tensors)], "12345.0"));
    folder.safetensors("model.safetensors", &tensors);
    let opened = check(&folder.text()).unwrap();
    let checkpoint = opened.checkpoint.unwrap();
    assert_eq!(checkpoint.summary.params.get(), PARAMS - 64_000);
    assert_eq!(checkpoint.summary.stored.get(), 2 * PARAMS);
    assert!(opened.ingested.notes.iter().any(|note| note.contains("total_size 12345")), "{:?}", opened.ingested.notes);
    assert!(!opened.ingested.notes.iter().any(|note| note.contains("parameters:")), "{:?}", opened.ingested.notes);
}

#[test]
fn a_config_that_disagrees_with_the_headers_is_told() {
    let folder = Scratch::new();
    let (config, mut tensors) = llama(2, false);
    for tensor in &mut tensors {
        tensor.1 = "F32";
    }
    tensors.push(("model.layers.0.self_attn.q_norm.weight".to_owned(), "F32", vec![16]));
    folder.write("config.json", config);
    folder.safetensors("model.safetensors", &tensors);
    let opened = check(&folder.text()).unwrap();
    let notes = opened.ingested.notes.join("\n");
    assert!(notes.contains(&format!("the config makes {PARAMS}, the headers hold {}: 16 more", PARAMS + 16)), "{notes}");
    assert!(notes.contains("the config says bf16, the headers hold mostly F32"), "{notes}");
    assert_eq!(opened.checkpoint.unwrap().summary.stored.get(), 4 * (PARAMS + 16));
}

#[test]
fn a_quantization_that_no_file_has_is_applied_to_the_config() {
    let folder = Scratch::new();
    folder.write("config.json", llama(2, false).0);
    let opened = check(&format!("{}:Q4_K_M", folder.text())).unwrap();
    assert_eq!(opened.quantization.as_deref(), Some("Q4_K_M"));
}

#[test]
fn pickles_are_refused_with_a_way_out() {
    let folder = Scratch::new();
    folder.write("pytorch_model.bin", "PK");
    let text = refusal(&folder.text(), "unsupported_source");
    assert!(text.contains("convert the checkpoint to safetensors or GGUF"), "{text}");
    folder.write("config.json", llama(2, false).0);
    let text = refusal(&folder.text(), "unsupported_source");
    assert!(text.contains(&folder.join("config.json")), "{text}");
    refusal(&folder.join("pytorch_model.bin"), "unsupported_source");
    // The way out is one.
    check(&folder.join("config.json")).unwrap();
}

#[test]
fn what_is_no_model_gets_one_sentence() {
    let folder = Scratch::new();
    assert!(refusal(&folder.text(), "unsupported_source").ends_with("holds no config.json and no GGUF file"));
    folder.write("adapter_config.json", "{}");
    assert!(refusal(&folder.text(), "unsupported_source").contains("adapter"));
    folder.write("notes.txt", "hello");
    assert!(refusal(&folder.join("notes.txt"), "unsupported_source").contains("is no config.json"));
    assert!(refusal(&folder.join("absent.gguf"), "unavailable").contains("no such file"));
    assert!(refusal("llama3", "unavailable").contains("org/name"));
    assert!(refusal("", "field").contains("nothing"));
    folder.safetensors("lonely.safetensors", &[("a".to_owned(), "F32", vec![2])]);
    assert!(refusal(&folder.join("lonely.safetensors"), "unsupported_source").contains("config.json beside it"));
    folder.write("broken.safetensors", [1, 2, 3]);
    refusal(&folder.join("broken.safetensors"), "malformed");
}

#[cfg(unix)]
#[test]
fn devices_and_pipes_are_not_read() {
    assert!(refusal("/dev/zero", "unavailable").contains("is no regular file"));
}

fn gguf_fixture() -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/truth/llama.cpp/gguf-zoo");
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let path = names.iter().find(|path| path.display().to_string().contains("llama")).unwrap();
    let bytes = std::fs::read(path).unwrap();
    if path.extension().is_some_and(|extension| extension == "gz") {
        let mut out = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes.as_slice()), &mut out).unwrap();
        out
    } else {
        bytes
    }
}

#[test]
fn gguf_files_by_path_by_folder_and_from_ollama() {
    let folder = Scratch::new();
    let bytes = gguf_fixture();
    folder.write("models/Tiny-Q4_K_M.gguf", &bytes);
    folder.write("models/Tiny-Q8_0.gguf", &bytes);
    folder.write("models/mmproj-F16.gguf", "not looked at");
    for name in ["models/Tiny-Q8_0.gguf", "models:Q8_0", "models:Tiny-Q8_0.gguf"] {
        let opened = check(&folder.join(name)).unwrap();
        assert_eq!(opened.door, Door::Gguf, "{name}");
        assert!(opened.reference.ends_with("Tiny-Q8_0.gguf"), "{name}: {}", opened.reference);
    }
    let opened = check(&folder.join("models")).unwrap();
    assert!(opened.reference.ends_with("Tiny-Q4_K_M.gguf"));
    assert!(opened.ingested.notes.iter().any(|note| note.contains("2 GGUF models")));
    assert!(refusal(&folder.join("models:Q2_K"), "unavailable").contains("Tiny-Q4_K_M.gguf, Tiny-Q8_0.gguf"));

    let hash = "0123456789abcdef".repeat(4);
    folder.write(&format!("ollama/blobs/sha256-{hash}"), &bytes);
    folder.write(
        "ollama/manifests/registry.ollama.ai/library/tiny/1b",
        format!(r#"{{"schemaVersion":2,"layers":[{{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:{hash}","size":1}},{{"mediaType":"application/vnd.ollama.image.projector","digest":"sha256:{hash}","size":1}}]}}"#),
    );
    let options = Options { ollama_models: Some(folder.path().join("ollama")), ..Options::default() };
    let opened = open("ollama:tiny:1b", &options).unwrap();
    assert_eq!((opened.door, opened.name.as_deref()), (Door::Gguf, Some("tiny:1b")));
    assert!(opened.ingested.notes.iter().any(|note| note.contains("projector")));
    let error = open("ollama:tiny", &options).unwrap_err().to_string();
    assert!(error.ends_with("which has tiny:1b"), "{error}");
    for name in ["ollama:../../etc/passwd", "ollama:a/b/c/d", "ollama:"] {
        assert_eq!(open(name, &options).unwrap_err().code(), "field", "{name}");
    }
    folder.write(
        "ollama/manifests/registry.ollama.ai/library/evil/latest",
        r#"{"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:../../../etc/passwd"}]}"#,
    );
    assert_eq!(open("ollama:evil", &options).unwrap_err().code(), "field");
}
