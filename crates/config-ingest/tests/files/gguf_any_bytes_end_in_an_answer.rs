//! Whatever the bytes: a model or an error, never a panic, and never one answer here and another there.

use crate::support::{File, Meta, files, gunzip};
use plimsoll_ingest::gguf::{Header, Limits, Options, from_header, ingest};
use plimsoll_ingest::source::PrefixSource;
use proptest::collection::vec;
use proptest::prelude::*;

/// Reads and builds, and holds the answer against those for the same bytes from other kinds of sources.
fn check(bytes: Vec<u8>) -> Result<usize, String> {
    let options = Options { assume_generic: true, ..Options::default() };
    let answer = ingest(&bytes, &options);
    // Small reads see the same as large ones.
    let limits = Limits { first_read: 1, largest_read: 7, ..Limits::default() };
    let piecewise = Header::read(&bytes, &limits).and_then(|header| from_header(header, &options));
    match (&answer, &piecewise) {
        (Ok(whole), Ok(pieces)) => assert_eq!(whole, pieces),
        (Err(whole), Err(pieces)) => assert_eq!(whole, pieces),
        // A split set is refused before its first file is read as a model.
        (Err(whole), Ok(_)) => assert!(whole.to_string().contains("split"), "{whole}"),
        (Ok(_), Err(pieces)) => panic!("only small reads find {pieces}"),
    }
    // A source of unknown length finds the end when it comes to it.
    let endless = PrefixSource::new("endless".into(), bytes, None);
    let of_unknown_length = ingest(&endless, &options);
    assert_eq!(answer.is_ok(), of_unknown_length.is_ok());
    answer.map(|ingested| ingested.tensors.tensors.len()).map_err(|error| error.to_string())
}

fn meta() -> impl Strategy<Value = Meta> {
    let scalar = prop_oneof![
        any::<u8>().prop_map(Meta::U8),
        any::<i8>().prop_map(Meta::I8),
        any::<u16>().prop_map(Meta::U16),
        any::<i16>().prop_map(Meta::I16),
        any::<u32>().prop_map(Meta::U32),
        any::<i32>().prop_map(Meta::I32),
        any::<f32>().prop_map(Meta::F32),
        any::<bool>().prop_map(Meta::Bool),
        any::<u64>().prop_map(Meta::U64),
        any::<i64>().prop_map(Meta::I64),
        any::<f64>().prop_map(Meta::F64),
        ".{0,20}".prop_map(Meta::Text),
        (0_u32..8).prop_map(Meta::U32),
    ];
    prop_oneof![
        4 => scalar,
        1 => vec(any::<u32>(), 0..40).prop_map(|list| Meta::List(4, list.into_iter().map(Meta::U32).collect())),
        1 => vec(".{0,9}", 0..40).prop_map(|list| Meta::List(8, list.into_iter().map(Meta::Text).collect())),
    ]
}

/// Files that read well and say anything.
fn file() -> impl Strategy<Value = File> {
    let architectures =
        ["llama", "deepseek2", "gemma3n", "qwen3next", "deepseek4", "mamba2", "hrm_text", "nanbeige", "t5", "lfm2"];
    let keys = [
        "block_count",
        "embedding_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.kv_lora_rank",
        "attention.key_length_mla",
        "attention.value_length_mla",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.shared_kv_layers",
        "nextn_predict_layers",
        "expert_used_count",
        "ssm.state_size",
        "ssm.inner_size",
        "ssm.conv_kernel",
        "ssm.time_step_rank",
        "ssm.group_count",
        "shortconv.l_cache",
        "hrm.layers_per_stack",
        "hrm.l_cycles",
        "num_loops",
        "feed_forward_length",
    ];
    let tensor = prop_oneof![
        Just("attn_q.weight"),
        Just("attn_k.weight"),
        Just("attn_kv_a_mqa.weight"),
        Just("ffn_down.weight"),
        Just("ffn_up.weight"),
        Just("ffn_down_exps.weight"),
        Just("nextn.eh_proj.weight"),
        Just("attn_norm.weight"),
    ];
    let entries = vec((0..keys.len(), meta()), 0..16);
    let tensors = vec((0_u32..5, tensor, vec(prop_oneof![30 => 0_u64..300, 1 => any::<u64>()], 0..5)), 0..12);
    (0..architectures.len(), entries, tensors, 1_u32..4, any::<bool>()).prop_map(
        move |(which, entries, tensors, version, big)| {
            let arch = architectures[which];
            let narrow = version == 1;
            let mut file = File { version, big_endian: big, ..File::default() }.text("general.architecture", arch);
            for (key, value) in entries {
                file = file.with(&format!("{arch}.{}", keys[key]), value);
            }
            for (layer, name, dims) in tensors {
                let dims: Vec<u64> = dims.into_iter().map(|dim| if narrow { dim & 0xFFFF } else { dim }).collect();
                file = file.tensor(&format!("blk.{layer}.{name}"), &dims, 0, 0);
            }
            file
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..400)) {
        let _ = check(bytes);
    }

    #[test]
    fn random_bytes_behind_a_good_start(bytes in vec(any::<u8>(), 0..400), tensors in 0_u64..4, entries in 0_u64..4) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(tensors.to_le_bytes());
        file.extend(entries.to_le_bytes());
        file.extend(bytes);
        let _ = check(file);
    }

    #[test]
    fn files_that_say_anything(file in file()) {
        let _ = check(file.bytes());
    }

    #[test]
    fn one_changed_byte_in_a_real_header(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let paths = files("truth/llama.cpp/gguf-zoo");
        let mut bytes = gunzip(&paths[which.index(paths.len())]);
        // Changes near the start hit counts and lengths.
        let at = at.index(bytes.len()).min(at.index(4096));
        bytes[at] = to;
        let _ = check(bytes);
    }

    #[test]
    fn a_truncated_header_says_where_it_ends(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        let paths = files("truth/llama.cpp/gguf-zoo");
        let mut bytes = gunzip(&paths[which.index(paths.len())]);
        let header = Header::read(&bytes, &Limits::default()).unwrap();
        // Padding up to the data may be missing, nothing else.
        let last = header.tensors.last().unwrap();
        let needed = bytes.windows(last.name.len()).rposition(|window| window == last.name.as_bytes()).unwrap() + last.name.len();
        bytes.truncate(at.index(needed));
        let sentence = check(bytes).unwrap_err();
        prop_assert!(sentence.contains("ends at byte") || sentence.contains("bytes that follow"), "{}", sentence);
    }
}
