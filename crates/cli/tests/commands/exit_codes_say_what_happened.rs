//! 0 fits, 3 does not fit, 64 wrong usage, 65 bad data, 69 source unavailable; an error is a sentence and a hint.

use crate::run::plimsoll;

#[track_caller]
fn check(arguments: &[&str], code: i32, says: &str) {
    let ran = plimsoll(arguments);
    assert_eq!(ran.code, code, "{arguments:?}\n{}{}", ran.out, ran.err);
    if code == 0 || code == 3 {
        assert_eq!(ran.err, "", "{arguments:?}: nothing on standard error");
        assert!(ran.out.contains(says), "{arguments:?}: {}", ran.out);
        return;
    }
    assert_eq!(ran.out, "", "{arguments:?}: nothing on standard output");
    let lines: Vec<&str> = ran.err.lines().collect();
    assert!(lines.len() <= 2, "{arguments:?}: {}", ran.err);
    assert!(lines[0].starts_with("error: ") && lines[0].contains(says), "{arguments:?}: {}", ran.err);
    assert!(lines.iter().skip(1).all(|line| line.starts_with("hint: ")), "{arguments:?}: {}", ran.err);
}

const MODEL: &str = "@models/llama-3.1-8b";

#[test]
fn fits() {
    check(&["fit", MODEL, "--device", "RTX 4090", "--context", "32k", "--quant", "Q4_K_M"], 0, "Fits");
    check(&["fit", MODEL, "--memory", "24GiB", "--context", "32k", "--quant", "Q4_K_M", "--json"], 0, "\"fits\"");
    check(&["max-context", MODEL, "--device", "4090", "--quant", "Q4_K_M"], 0, "tokens per sequence");
    check(&["max-sequences", MODEL, "--device", "4090", "--quant", "Q4_K_M", "-c", "8k"], 0, "sequences");
    check(&["inspect", MODEL], 0, "8,030,261,248");
    check(&["devices"], 0, "cuda-cc890");
    check(&["--version"], 0, "plimsoll");
    check(&["fit", "--help"], 0, "--context");
}

#[test]
fn does_not_fit() {
    check(&["fit", MODEL, "--memory", "2GiB", "--context", "32k", "--quant", "Q4_K_M"], 3, "Does not fit");
    check(&["fit", MODEL, "--memory", "2GiB", "--context", "32k", "--quant", "Q4_K_M", "--json"], 3, "does_not_fit");
    check(&["max-context", MODEL, "--memory", "2GiB", "--quant", "Q4_K_M"], 3, "no room");
}

#[test]
fn wrong_usage() {
    check(&["fit"], 64, "MODEL");
    check(&["fit", MODEL], 64, "device");
    check(&["fit", MODEL, "--device", "RTX 4091"], 64, "RTX 4090");
    check(&["fit", MODEL, "--device", "M2 Ultra"], 64, "several");
    check(&["fit", MODEL, "--device", "4090", "--context", "many"], 64, "32k");
    check(&["fit", MODEL, "--device", "4090", "--context", "0"], 64, "context");
    check(&["fit", MODEL, "--device", "4090", "--sequences", "0"], 64, "1 or more");
    check(&["fit", MODEL, "--device", "4090", "--context", "1k", "--total-context", "1k"], 64, "--total-context");
    check(&["fit", MODEL, "--memory", "24G"], 64, "24GiB");
    check(&["fit", MODEL, "--device", "4090", "--quant", "Q4_KM"], 64, "Q4_K_M");
    check(&["fit", MODEL, "--device", "4090", "--kv-type", "q6_K"], 64, "q8_0");
    check(&["fit", MODEL, "--device", "4090", "--engine", "llama.cpp@b1"], 64, "b12032");
    check(&["fit", MODEL, "--device", "4090", "--engine", "no-such-engine"], 64, "llama.cpp");
    check(&["fit", MODEL, "--device", "4090", "--tensor-parallel", "2"], 64, "vllm");
    check(&["fit", MODEL, "--device", "4090", "--flash-attention", "maybe"], 64, "auto");
    check(&["fits", MODEL], 64, "fits");
    // The engine itself refuses quantised values without flash attention.
    check(&["fit", MODEL, "--device", "4090", "--kv-type", "q8_0", "--flash-attention", "off"], 64, "V cache");
}

#[test]
fn source_unavailable() {
    check(&["fit", "@models/no-such-model/config.json", "--device", "4090"], 69, "no-such-model");
}

#[test]
fn bad_data() {
    check(&["fit", "@README.md", "--device", "4090"], 65, "README.md");
}
