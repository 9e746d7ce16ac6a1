//! Builds of llama.cpp whose allocation rules we follow, and everything that differs between them.
//!
//! Every other file of this engine asks the questions below and never compares builds itself, so this file reads as
//! the changelog of llama.cpp's memory rules.

use alloc::string::ToString;

use crate::error::MathError;

/// A build of llama.cpp, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Build {
    /// Release v0.5.0 (commit de3ff815), which node-llama-cpp 3.22.1 ships.
    #[cfg_attr(feature = "serde", serde(rename = "v0.5.0"))]
    V0_5_0,
    /// Commit 0c1e57098 (0.5.0-dev).
    #[cfg_attr(feature = "serde", serde(rename = "0c1e57098"))]
    C0c1e57098,
    /// b12032 (0.8.0-dev).
    #[default]
    #[cfg_attr(feature = "serde", serde(rename = "b12032"))]
    B12032,
}

impl Build {
    /// Every build that is followed, oldest first.
    pub const ALL: &'static [Self] = &[Self::V0_5_0, Self::C0c1e57098, Self::B12032];

    /// The build's tag, as in `llama.cpp@b12032`.
    #[must_use]
    pub const fn tag(self) -> &'static str {
        match self {
            Self::V0_5_0 => "v0.5.0",
            Self::C0c1e57098 => "0c1e57098",
            Self::B12032 => "b12032",
        }
    }

    /// Engine and build in one word: `llama.cpp@b12032`.
    #[must_use]
    pub const fn engine(self) -> &'static str {
        match self {
            Self::V0_5_0 => "llama.cpp@v0.5.0",
            Self::C0c1e57098 => "llama.cpp@0c1e57098",
            Self::B12032 => "llama.cpp@b12032",
        }
    }

    /// Reads `llama.cpp`, `llama.cpp@BUILD` or `BUILD`; without a build the newest one that is followed.
    ///
    /// # Errors
    /// [`MathError::Invalid`] for another engine or an unknown build.
    ///
    /// ```
    /// use plimsoll_math::engine::llama_cpp::Build;
    /// assert_eq!(Build::parse("llama.cpp@0c1e57098").unwrap(), Build::C0c1e57098);
    /// assert_eq!(Build::parse("llama.cpp").unwrap(), Build::B12032);
    /// assert!(Build::parse("llama.cpp@b1").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Self, MathError> {
        let tag = match text.strip_prefix("llama.cpp") {
            Some("") => return Ok(Self::default()),
            Some(rest) => rest.strip_prefix('@').unwrap_or(rest),
            None => text,
        };
        Self::ALL.iter().copied().find(|build| build.tag() == tag).ok_or_else(|| MathError::Invalid {
            field: "engine build".to_string(),
            found: text.to_string(),
            expected: "llama.cpp@v0.5.0, llama.cpp@0c1e57098 or llama.cpp@b12032".to_string(),
        })
    }

    /// Until v0.5.0 HRM's initial state was a tensor of the input, since then of the first layer
    /// (`models/hrm-text.cpp:load_arch_tensors`, `hrm_z_l_init`).
    #[must_use]
    pub fn makes_with_the_input(self, tensor: &str) -> bool {
        match self {
            Self::V0_5_0 => tensor == "hrm.z_l_init",
            Self::C0c1e57098 | Self::B12032 => false,
        }
    }

    /// v0.5.0 rotates Ling 3 in pairs whatever the file says; since then by sections, four positions a token, where the
    /// file has them (`llama-model.cpp:llama_model_rope_type`, `LLM_ARCH_BAILINGMOE3`).
    #[must_use]
    pub fn rotates_in_sections(self, arch: &str) -> bool {
        match self {
            Self::V0_5_0 => arch != "bailingmoe3",
            Self::C0c1e57098 | Self::B12032 => true,
        }
    }

    /// b12032 keeps the Hadamard matrices that rotate quantised keys and values in a buffer of each cache
    /// (`llama-kv-cache.cpp:llama_kv_cache`); before, they were inputs of every graph.
    #[must_use]
    pub const fn rotation_matrices_are_cached(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// Whether this build's graphs are built and replayed, so that compute buffers are exact where the architecture's graph is.
    #[must_use]
    pub const fn graphs_are_known(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 | Self::B12032 => true,
        }
    }

    /// b12032 takes tokens and embeddings in one micro-batch, and reserves inputs and a branch of the graph for it; a few
    /// architectures take either (`llama-graph.cpp:build_inp_embd`, `llama-arch.cpp:llm_arch_supports_mixed_batch`).
    #[must_use]
    pub fn mixes_tokens_and_embeddings(self, arch: &str) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => !matches!(
                arch,
                "cogvlm" | "deepseek4" | "deepseek41" | "graniteswitch" | "eagle3" | "dflash" | "gemma4-assistant" | "limite"
            ),
        }
    }

    /// b12032 scales embedded tokens by a factor per row, an input, where embeddings from outside must stay as they are
    /// (`llama-graph.cpp:build_inp_embd`, `tok_scale`); before, the whole batch was scaled or none of it.
    #[must_use]
    pub fn scales_embedded_rows(self, arch: &str) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => {
                matches!(arch, "gemma3" | "gemma3n" | "gemma4" | "gemma-embedding" | "gemma-embedding2")
            }
        }
    }

    /// b12032 scales what some architectures' experts hand to their last matrix into the range of f16
    /// (`llama-graph.cpp:build_moe_ffn`, `build_amax_src1_f16`).
    #[must_use]
    pub fn limits_expert_activations(self, arch: &str) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => matches!(arch, "mistral4" | "mellum" | "flint" | "laguna"),
        }
    }

    /// b12032's Mellum asks the file whether weights of experts are divided by their sum and scaled; before, they were divided
    /// (`models/mellum.cpp:load_arch_hparams`).
    #[must_use]
    pub fn asks_about_expert_weights(self, arch: &str) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => arch == "mellum",
        }
    }

    /// Draft models are told how wide heads of latent attention are since b12032 (`models/dflash.cpp:load_arch_hparams`); others
    /// always were.
    #[must_use]
    pub fn asks_for_widths_of_heads(self, arch: &str) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => arch != "dflash",
            Self::B12032 => true,
        }
    }

    /// Before b12032, Mellum's experts were scored by a softmax whatever the file says (`models/mellum.cpp:graph`).
    #[must_use]
    pub fn asks_how_experts_are_scored(self, arch: &str) -> bool {
        arch != "mellum" || self.asks_about_expert_weights(arch)
    }

    /// b12032's MiniMax M3 multiplies by the scales of its feed-forwards and experts; before, it loaded them only
    /// (`models/minimax-m3.cpp:graph`).
    #[must_use]
    pub fn reads_scales(self, arch: &str) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => arch == "minimax-m3",
        }
    }

    /// b12032 pools before it makes logits, and makes none where it pools; before, every architecture's graph ended with its
    /// logits and pooling came on top (`llama-model.cpp:build_graph`, `llama-graph.cpp:build_logits`).
    #[must_use]
    pub const fn pools_before_logits(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// b12032 hides all but the cells that a selector chose in one operation, and starts from the selector's own mask where
    /// its format is the same (`llama-graph.cpp:build_attn`, `build_fused_top_k_mask`).
    #[must_use]
    pub const fn masks_chosen_cells_at_once(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// b12032 rotates quantised keys and values of hybrids with windows in the graph too; before, only the cache knew
    /// (`llama-graph.cpp:build_inp_mem_hybrid_iswa`).
    #[must_use]
    pub const fn rotates_windowed_hybrids(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// b12032's DeepSeek V4 keeps its last hidden state for prediction layers whether there are any or not; before, only
    /// when it was asked for (`models/deepseek4.cpp:graph`, `t_h_nextn`).
    #[must_use]
    pub const fn hands_out_hidden_state(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// Numbers of heads for which CUDA has a kernel of the lightning indexer
    /// (`ggml-cuda/lightning-indexer.cu:ggml_cuda_lightning_indexer_supported`).
    #[must_use]
    pub const fn indexer_heads_on_cuda(self) -> &'static [u64] {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => &[32, 64],
            Self::B12032 => &[4, 32, 64],
        }
    }

    /// b12032 gathers the recurrent state of all sequences at once, those that the micro-batch continues and those that are
    /// carried along (`llama-graph.cpp:build_rs`).
    #[must_use]
    pub const fn gathers_states_at_once(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// Before b12032, what Mistral 4's experts hand to their last matrix was multiplied in full precision, which CUDA's
    /// kernels do not do: the processor makes the product and fetches the matrices (`llama-graph.cpp:build_moe_ffn`,
    /// `ggml_prec_set_src`).
    #[must_use]
    pub fn multiplies_expert_inputs_in_full(self, arch: &str) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => arch == "mistral4",
            Self::B12032 => false,
        }
    }

    /// b12032 pads keys and values of a batch that attends to itself to whole blocks of 256, like those of a cache
    /// (`llama-graph.cpp:build_attn_inp_no_cache`).
    #[must_use]
    pub const fn pads_uncached_batches(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// b12032 looks learned positions and layers' own embeddings up before it looks tokens up (`models/bert.cpp`,
    /// `models/gemma4.cpp`).
    #[must_use]
    pub const fn looks_tables_up_first(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// Models with prediction layers hand out their last hidden state: b12032 chooses rows of logits inside the last layer
    /// unless that state is asked for (`llama-graph.h:crop_before_nextn`); before, GPT-OSS and some hybrids chose after it.
    #[must_use]
    pub const fn chooses_rows_after_layers(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => true,
            Self::B12032 => false,
        }
    }

    /// b12032's gated DeltaNet multiplies a matrix of all tokens by its last projection and copies strengths no more, and so
    /// does LFM2's short convolution; before, sequences were kept apart up to there
    /// (`models/qwen35.cpp:build_layer_attn_linear`, `models/lfm-base.cpp:build_lfm_shortconv`).
    #[must_use]
    pub const fn projects_sequences_together(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// With several micro-batches under way, inputs are kept once for each since 0c1e57098; before, only those that an
    /// operation reads (`ggml-backend.cpp:ggml_backend_sched_split_graph`).
    #[must_use]
    pub const fn keeps_unread_inputs(self) -> bool {
        match self {
            Self::V0_5_0 => false,
            Self::C0c1e57098 | Self::B12032 => true,
        }
    }

    /// CUDA's kernels for functions of elements read rows that lie apart since b12032; before, such a node went to the
    /// processor (`ggml-cuda.cu:ggml_backend_cuda_device_supports_op`, `GGML_OP_UNARY`).
    #[must_use]
    pub const fn unary_kernels_read_strided(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// b12032 adds three nodes to every graph, for inputs that may be embeddings (`llama-graph.cpp:build_inp_embd`).
    #[must_use]
    pub const fn extra_graph_nodes(self) -> u64 {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => 0,
            Self::B12032 => 3,
        }
    }

    /// Copies of the embedded tokens on the host beside a device: b12032 may mix token and embedding inputs and keeps
    /// two more (`llama-graph.cpp:build_inp_embd`).
    #[must_use]
    pub const fn host_embedding_copies(self) -> u64 {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => 2,
            Self::B12032 => 4,
        }
    }

    /// Rows of an indexer cache of `qwen4exp`: b12032 keeps the pooled key beside the raw one
    /// (`models/qwen4exp.cpp:load_arch_hparams`, `indexer_kpool_row`).
    #[must_use]
    pub const fn qwen4exp_indexer_rows(self) -> u64 {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => 1,
            Self::B12032 => 2,
        }
    }

    /// Parts of names that only some builds refuse to quantize (`llama-quant.cpp:tensor_allows_quantization`): b12032
    /// added Engram's elementwise gate, Limite's small gates and mixers, depthwise convolutions and decision heads.
    #[must_use]
    pub fn never_quantized(self, arch: &str) -> &'static [&'static str] {
        match (self, arch) {
            (Self::V0_5_0 | Self::C0c1e57098, _) => &[],
            (Self::B12032, "limite") => &["engram_gate.weight", "attn_gate.weight", "attn_ve_gate.weight", "mudd_"],
            (Self::B12032, "vllm-decision2") => &["engram_gate.weight", "decision."],
            (Self::B12032, _) => &["engram_gate.weight", "conv2d_spatial.weight", "conv_dw"],
        }
    }

    /// `MXFP4_MOE` packs expert stacks: b12032 knows them by name, before every stack of matrices counted as one,
    /// those of latent attention included (`llama-quant.cpp:llama_tensor_get_type_impl`).
    #[must_use]
    pub const fn mxfp4_moe_goes_by_name(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// b12032 knows Muse Spark and keeps its latent projections and attention gates at 8 bits.
    #[must_use]
    pub fn muse_spark_keeps_gates(self, arch: &str) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => arch == "muse-spark",
        }
    }

    /// With the file mapped, 0c1e57098 counts everything between a buffer's first and last tensor; b12032 leaves out what
    /// other buffers hold (`llama-model-loader.cpp:get_mapping_ranges`).
    #[must_use]
    pub const fn maps_only_own_ranges(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// Until b12032, Gemma 3n and Gemma 4 made the output matrix before the embedding, so that a tied one was paid
    /// twice even on the processor alone.
    #[must_use]
    pub const fn gemma_output_precedes_embedding(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => true,
            Self::B12032 => false,
        }
    }

    /// Since v0.5.0 the processor unpacks matrices into tiles, a slot of half a mebibyte for every thread
    /// (`ggml-cpu/tiled`); before, into panels of eight rows, and only formats with a table of values.
    #[must_use]
    pub const fn multiplies_by_tiles(self) -> bool {
        match self {
            Self::V0_5_0 => false,
            Self::C0c1e57098 | Self::B12032 => true,
        }
    }

    /// Towers for images of b12032 are handed masks in the format that flash attention reads; before, they were converted in
    /// the graph (`tools/mtmd/clip.cpp:build_inp_attn_mask`, `build_attn`).
    #[must_use]
    pub const fn casts_masks_of_towers(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => true,
            Self::B12032 => false,
        }
    }

    /// A tower for images of b12032 reserves for no more tokens than `--image-max-tokens` allows
    /// (`tools/mtmd/clip-model.h:set_warmup_n_tokens`).
    #[must_use]
    pub const fn reserves_towers_within_limits(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// v0.5.0 norms GLM-4V's patches whether or not the file has weights for it (`tools/mtmd/models/glm4v.cpp`).
    #[must_use]
    pub const fn norms_patches_always(self) -> bool {
        match self {
            Self::V0_5_0 => true,
            Self::C0c1e57098 | Self::B12032 => false,
        }
    }

    /// InternVL's class comes before the patches since b12032, before after them (`tools/mtmd/models/internvl.cpp`).
    #[must_use]
    pub const fn puts_class_before_patches(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// b12032 writes rows of caches with all threads, those before with one (`ggml-cpu.c:ggml_get_n_tasks`).
    #[must_use]
    pub const fn writes_rows_in_parallel(self) -> bool {
        match self {
            Self::V0_5_0 | Self::C0c1e57098 => false,
            Self::B12032 => true,
        }
    }

    /// v0.5.0's `--fit` starts from the trained context times the number of sequences, also where they share one cache;
    /// since then only where each has its own (`common/fit.cpp`, `n_ctx_max`).
    #[must_use]
    pub const fn fits_a_context_for_each_sequence(self) -> bool {
        match self {
            Self::V0_5_0 => true,
            Self::C0c1e57098 | Self::B12032 => false,
        }
    }
}

impl core::fmt::Display for Build {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str(self.tag())
    }
}
