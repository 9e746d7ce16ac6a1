//! Per layer, the rows of every cache that llama.cpp allocates, from the architecture that a GGUF header yields.

use crate::support::{files, fixture, gunzip, json_lines, written};
use plimsoll_ingest::gguf::{Options, ingest};
use plimsoll_math::spec::{KvSource, Mixer, ModelSpec, Window};

/// One row of a cache: layer, elements of a key row, elements of a value row.
type Row = (u64, u64, u64);

#[derive(Debug, Default, PartialEq, Eq)]
struct Caches {
    full: Vec<Row>,
    windowed: Vec<Row>,
    indexer: Vec<Row>,
    /// Compressed entries by ratio.
    compressed: Vec<(u64, Row)>,
    /// Layers with a state, and its two sizes.
    recurrent: (u64, u64, u64),
}

fn caches(spec: &ModelSpec) -> Caches {
    let mut caches = Caches::default();
    for (layer, il) in spec.layers.iter().zip(0_u64..) {
        mixer(&layer.mixer, il, spec, &mut caches);
    }
    caches
}

fn mixer(mixer_of_layer: &Mixer, il: u64, spec: &ModelSpec, caches: &mut Caches) {
    let mut state = |n_r: u64, n_s: u64| caches.recurrent = (caches.recurrent.0 + 1, n_r, n_s);
    match mixer_of_layer {
        Mixer::Attention(a) => {
            let row = (il, a.k_head_dim * a.n_kv_heads, a.v_head_dim * a.n_kv_heads);
            match (a.kv_source, a.window) {
                (KvSource::Own, Window::Full) => caches.full.push(row),
                (KvSource::Own, _) => caches.windowed.push(row),
                (KvSource::Layer { .. } | KvSource::NotCached, _) => {}
            }
            // MiniMax M3's indexer caches values beside its keys, one head of each.
            let value = if spec.architecture == "minimax-m3" { a.v_head_dim } else { 0 };
            caches.indexer.extend(a.indexer.iter().filter(|i| i.own).map(|i| (il, i.head_dim, value)));
        }
        Mixer::Mla(a) => {
            let row = if a.expanded {
                (il, a.n_heads * (a.qk_nope_head_dim + a.qk_rope_head_dim), a.n_heads * a.v_head_dim)
            } else {
                (il, a.kv_lora_rank + a.qk_rope_head_dim, 0)
            };
            if a.window == Window::Full {
                caches.full.push(row);
            } else {
                caches.windowed.push(row);
            }
            // GLM-5-next keeps three rows an entry: raw and pooled keys and the gate between them
            // (`llama-memory-hybrid-idx.cpp`, `indexer_kpool`).
            let rows = if spec.architecture == "glm5-next" { 3 } else { 1 };
            caches.indexer.extend(a.indexer.iter().filter(|i| i.own).map(|i| (il, rows * i.head_dim, 0)));
        }
        Mixer::CompressedAttention(a) => {
            caches.windowed.push((il, a.head_dim, 0));
            if a.ratio > 0 {
                caches.compressed.push((a.ratio, (il, a.head_dim, 0)));
            }
            caches.indexer.extend(a.indexer.iter().map(|i| (il, i.head_dim, 0)));
        }
        Mixer::Mamba1(m) => state((m.d_conv - 1) * m.d_inner, m.d_state * m.d_inner),
        Mixer::Mamba2(m) => {
            state((m.d_conv - 1) * (m.d_inner + 2 * m.n_groups * m.d_state), m.d_state * m.d_inner);
        }
        Mixer::GatedDeltaNet(m) => {
            let (keys, values) = (m.n_k_heads * m.k_head_dim, m.n_v_heads * m.v_head_dim);
            state((m.d_conv - 1) * (2 * keys + values), m.k_head_dim * values);
        }
        Mixer::KimiDelta(m) => state(3 * (m.d_conv - 1) * m.n_heads * m.head_dim, m.head_dim * m.head_dim * m.n_heads),
        Mixer::LightningAttention(m) => state(0, m.head_dim * m.head_dim * m.n_heads),
        Mixer::Rwkv(m) => state(m.token_shifts * spec.d_model, m.head_dim * spec.d_model),
        Mixer::ShortConv(m) => state((m.d_conv - 1) * spec.d_model, 0),
        Mixer::Parallel(p) => {
            mixer(&Mixer::Attention(p.attention.clone()), il, spec, caches);
            mixer(&p.state, il, spec, caches);
        }
        Mixer::None => {}
        other => panic!("no llama.cpp model has {other:?}"),
    }
}

fn expected(row: &serde_json::Value) -> Caches {
    let mut caches = Caches::default();
    let listed = if row["caches"].is_array() { &row["caches"] } else { &row["memory"] };
    for cache in listed.as_array().unwrap() {
        let tag = cache["tag"].as_str().unwrap();
        let rows = if cache["per_layer"].is_array() { &cache["per_layer"] } else { &cache["layers"] };
        let mut rows: Vec<Row> = serde_json::from_value(rows.clone()).unwrap_or_default();
        // A layer without key-value heads has rows of no elements.
        rows.retain(|row| row.1 > 0);
        let number = |key: &str| cache[key].as_u64().unwrap();
        match tag {
            "kv" | "attn" | "attn.base" | "base" | "mla" | "dsa.mla" | "raw.base" => caches.full.extend(rows),
            "swa" | "attn.swa" | "raw.swa" => caches.windowed.extend(rows),
            "lid" | "dsa.lid" | "idx" => caches.indexer.extend(rows),
            "csa" => caches.compressed.extend(rows.into_iter().map(|row| (4, row))),
            "hca" => caches.compressed.extend(rows.into_iter().map(|row| (128, row))),
            "recr" => {
                let n_layers = cache["n_layers"].as_u64().or_else(|| cache["layers"].as_u64()).unwrap();
                // A cache without a layer is as good as none.
                if n_layers > 0 {
                    caches.recurrent = (n_layers, number("n_embd_r"), number("n_embd_s"));
                }
            }
            // Compressor states follow from the compressed layers.
            _ => assert_eq!(cache["kind"], "comp_state", "{tag}"),
        }
    }
    caches.compressed.sort_by_key(|(_, row)| row.0);
    caches
}

fn check(bytes: Vec<u8>, row: &serde_json::Value) {
    let ingested = ingest(&bytes, &Options::default()).unwrap();
    let model = &row["model"];
    assert_eq!(caches(&ingested.spec), expected(row), "{model}");
    assert_eq!(ingested.spec.embedding.n_vocab, row["n_vocab"].as_u64().unwrap(), "{model}");
    assert_eq!(ingested.spec.llama_cpp_arch.as_deref(), row["arch"].as_str(), "{model}");
    assert!(!ingested.generic);
}

#[test]
fn every_layers_rows_equal_the_engines() {
    let same = |text: &str| text.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    let headers = files("truth/llama.cpp/gguf");
    let mut checked = 0;
    for row in json_lines("truth/llama.cpp/layers.jsonl.gz") {
        let model = same(row["model"].as_str().unwrap());
        let of_model = headers.iter().filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let (stem, _) = name.strip_suffix(".gguf.header.gz").unwrap().rsplit_once('.').unwrap();
            same(stem) == model
        });
        for path in of_model {
            check(gunzip(path), &row);
            checked += 1;
        }
    }
    assert!(checked >= 120, "only {checked} headers");
}

/// What differs between the caches of a file's architecture and those that the engine reports.
fn difference(bytes: Vec<u8>, row: &serde_json::Value) -> Option<String> {
    let file = row["file"].as_str().unwrap();
    let (found, expected) = match ingest(&bytes, &Options::default()) {
        Err(error) => return Some(format!("{file}: {error}")),
        Ok(ingested) => (caches(&ingested.spec), expected(row)),
    };
    (found != expected).then(|| format!("{file}:\n  found    {found:?}\n  expected {expected:?}"))
}

fn check_all(rows: impl Iterator<Item = (Vec<u8>, serde_json::Value)>) -> usize {
    let mut checked = 0;
    let mut wrong = Vec::new();
    for (bytes, row) in rows {
        wrong.extend(difference(bytes, &row));
        checked += 1;
    }
    assert!(wrong.is_empty(), "{} of {checked} differ:\n{}", wrong.len(), wrong.join("\n"));
    checked
}

#[test]
fn rows_of_the_zoo_equal_the_engines() {
    let rows = json_lines("truth/llama.cpp/zoo_layers.jsonl.gz");
    let measured = rows.into_iter().filter(|row| row["error"].is_null()).map(|row| {
        let path = fixture(&format!("truth/llama.cpp/gguf-zoo/{}.gguf.header.gz", row["file"].as_str().unwrap()));
        (gunzip(&path), row)
    });
    assert!(check_all(measured) >= 72);
}

#[test]
fn rows_of_the_menagerie_equal_the_engines() {
    let rows = json_lines("truth/llama.cpp/menagerie.jsonl.gz").into_iter();
    assert!(check_all(rows.map(|row| (written(&row), row))) >= 280);
}
