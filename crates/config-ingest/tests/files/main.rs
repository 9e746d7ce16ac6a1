//! Files as they are and as nobody should write them: one program of all tests, one file for each sentence.
#![allow(
    clippy::allow_attributes,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::float_cmp,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "a test may fail loudly, and not every feature uses everything here"
)]

#[cfg(feature = "hub")]
mod a_hub_is_read_by_ranges_and_its_caches_first;
#[cfg(feature = "std")]
mod a_model_is_opened_from_whatever_names_it;
mod configs_of_any_content_end_in_an_answer;
mod configs_that_cannot_be_are_refused_by_name;
mod gguf_any_bytes_end_in_an_answer;
mod gguf_attacks_get_one_sentence;
mod gguf_contexts_take_what_the_engine_takes;
mod gguf_files_of_every_kind_are_read;
mod gguf_graphs_need_what_the_engine_reserves;
mod gguf_headers_agree_with_another_reader;
mod gguf_headers_are_read_whole;
mod gguf_layers_cache_what_the_engine_caches;
mod gguf_parameters_equal_the_corpus;
mod gguf_placements_hold_what_the_engine_puts_there;
mod gguf_specs_describe_their_own_tensors;
mod hostile_weights_get_one_sentence;
mod made;
mod mlx_weights_are_the_published_bytes;
mod quantized_layouts_are_told_apart;
mod safetensors_headers_read_as_the_reference_reads_them;
mod support;
