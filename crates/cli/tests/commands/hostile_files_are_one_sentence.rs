//! Every file among the attacks, and a few made here: exit 65 (or 69 where something is missing), one sentence, at once.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::run::{fixture, plimsoll};

#[track_caller]
fn check(path: &Path) {
    let start = Instant::now();
    let ran = plimsoll(&["fit", path.to_str().unwrap(), "--memory", "24GiB", "--context", "4k", "--quant", "Q4_K_M"]);
    assert!(start.elapsed() < Duration::from_secs(5), "{}", path.display());
    // A GGUF file that is sound after all refuses the file type (64); none of these may be taken for a model that fits.
    assert!(matches!(ran.code, 65 | 69), "{}: exit {}\n{}{}", path.display(), ran.code, ran.out, ran.err);
    assert_eq!(ran.out, "", "{}", path.display());
    let lines: Vec<&str> = ran.err.lines().collect();
    assert!(matches!(lines.len(), 1 | 2), "{}: {}", path.display(), ran.err);
    assert!(lines[0].starts_with("error: ") && lines[0].chars().count() < 2000, "{}: {}", path.display(), ran.err);
    assert!(ran.err.chars().all(|character| character == '\n' || !character.is_control()), "{}", path.display());
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|ending| ["gguf", "json", "safetensors", "npz"].iter().any(|kind| ending == *kind))
        {
            found.push(path);
        }
    }
}

#[test]
fn of_every_kind() {
    let mut found = Vec::new();
    walk(&fixture("attacks"), &mut found);
    assert!(found.len() > 10, "{} files", found.len());
    for path in found {
        check(&path);
    }
}

#[test]
fn configs_made_here() {
    let folder = std::env::temp_dir().join(format!("plimsoll-hostile-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let cases: [(&str, &[u8]); 7] = [
        ("empty", b""),
        ("not-json", b"hello"),
        ("list", b"[]"),
        ("deep", nested.as_bytes()),
        ("no-architecture", b"{}"),
        ("unknown", br#"{"architectures": ["\u001b[31mEvilForCausalLM"]}"#),
        ("huge", br#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 9007199254740993, "num_hidden_layers": 1e30, "num_attention_heads": 32, "vocab_size": 32000, "intermediate_size": 11008}"#),
    ];
    for (name, bytes) in cases {
        let path = folder.join(format!("{name}.json"));
        std::fs::write(&path, bytes).unwrap();
        check(&path);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
