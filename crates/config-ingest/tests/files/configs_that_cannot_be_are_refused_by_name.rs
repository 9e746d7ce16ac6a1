//! What a config says about storage or about its class is taken at its word or refused with the field's name: no
//! default stands in for a value that is there.

use plimsoll_ingest::hf::{Options, ingest};
use plimsoll_math::format::StorageFormat;

/// The format that a config's weights are taken to be stored in, or the refusal.
fn check(model_type: &str, class: &str, more: &str) -> Result<StorageFormat, String> {
    let config = format!(r#"{{"model_type": "{model_type}", "architectures": ["{class}"]{more}}}"#);
    ingest(config.as_bytes(), &Options::default()).map(|found| found.spec.weight_dtype).map_err(|error| error.to_string())
}

#[test]
fn an_unknown_dtype_is_an_error_that_names_the_field() {
    let llama = |more: &str| check("llama", "LlamaForCausalLM", more);
    assert_eq!(llama(r#", "torch_dtype": "torch.float16""#), Ok(StorageFormat::F16));
    assert_eq!(llama(r#", "dtype": "float8_e5m2""#), Ok(StorageFormat::F8E5M2));
    assert_eq!(llama(r#", "dtype": null"#), Ok(StorageFormat::Bf16));
    for (more, parts) in [
        (r#", "dtype": "bloat16""#, ["$.dtype", "\"bloat16\"", "bfloat16"]),
        (r#", "torch_dtype": "int3""#, ["$.torch_dtype", "\"int3\"", "bfloat16"]),
        (r#", "torch_dtype": 16"#, ["$.torch_dtype", "16", "bfloat16"]),
    ] {
        let sentence = llama(more).unwrap_err();
        assert!(parts.iter().all(|part| sentence.contains(part)), "{sentence}");
    }
}

#[test]
fn a_class_whose_parts_are_unknown_is_named() {
    for (model_type, class) in
        [("bart", "BartForTimeSeries"), ("t5", "T5ForImageRetrieval"), ("whisper", "WhisperForDiarization")]
    {
        let sentence = check(model_type, class, "").unwrap_err();
        assert!(sentence.contains(class) && sentence.contains("$.architectures[0]"), "{sentence}");
    }
}

#[test]
fn a_size_that_cannot_be_is_refused_with_its_name() {
    let sizes = [
        ("hidden_size", "4096"),
        ("intermediate_size", "14336"),
        ("num_hidden_layers", "32"),
        ("num_attention_heads", "32"),
        ("num_key_value_heads", "8"),
        ("vocab_size", "128256"),
        ("head_dim", "128"),
    ];
    for (field, _) in sizes {
        for wrong in ["0", "-1", "1.5", "1e300", "1e30", "9007199254740992", "\"many\"", "[1]", "{}", "true"] {
            let fields = sizes.map(|(name, right)| format!(", \"{name}\": {}", if name == field { wrong } else { right }));
            let sentence = check("llama", "LlamaForCausalLM", &fields.concat()).unwrap_err();
            assert!(sentence.contains(&format!("$.{field}")) && sentence.lines().count() == 1, "{field} {wrong}: {sentence}");
        }
    }
}

#[test]
fn an_error_uses_the_spelling_of_the_config() {
    let sentence = check("gpt2", "GPT2LMHeadModel", r#", "n_head": 0"#).unwrap_err();
    assert!(sentence.contains("$.n_head:"), "{sentence}");
}
