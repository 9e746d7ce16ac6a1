//! Our answers beside what the engines said: one program of all tests, one file for each sentence.
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

mod a_draft_model_takes_what_the_engine_gives_it;
mod compute_bounds_contain_the_engine;
mod compute_buffers_keep_the_laws_of_allocation;
mod config_and_gguf_agree_on_every_tensor;
mod context_bytes_equal_the_engine;
mod corpus_configs_take_what_the_engine_takes;
mod every_place_holds_what_the_engine_puts_there;
mod families_count_as_their_model_classes_do;
mod fit_answers_what_the_engine_allocates;
mod fit_like_engine_chooses_what_the_engine_chooses;
mod fleets_are_near_the_proven_best;
mod graph_replay_reproduces_every_dumped_graph;
mod mlx_caches_hold_what_its_classes_hold;
mod parameter_counts_equal_the_corpus;
mod places_keep_the_laws_of_placement;
mod projectors_take_what_the_engine_gives_them;
mod quantized_checkpoints_weigh_what_was_published;
mod quantized_files_weigh_what_llama_quantize_makes;
mod replayed_graphs_need_what_the_engine_reserves;
mod sglang_pools_hold_what_its_configurators_say;
mod speed_keeps_to_physics;
mod support;
mod the_compiled_estimate_equals_the_explanation;
mod the_crosswalk_of_names_is_what_the_files_hold;
mod the_loader_reads_the_same_facts_from_a_spec;
mod the_processors_work_buffer_is_what_the_engine_plans;
mod transformers_caches_hold_what_its_classes_hold;
mod vllm_answers_carry_the_engines_numbers;
mod vllm_plans_and_loads_what_the_engine_does;
mod vllm_plans_any_caches_in_any_memory;
mod weight_buffers_equal_the_engines;
mod weights_keep_the_laws_of_rounding;
