//! SGLang's model classes (0.5.23) that keep pools of their own for layers with windows or with states.

use plimsoll_math::engine::sglang::pool::ModelClass;

/// Classes with a pool for windows (`srt/configs/model_config.py:is_hybrid_swa_model`); all others keep every token of such
/// layers.
const WINDOW_POOL: &[&str] = &[
    "BeamForCausalLM",
    "DiffusionGemmaForBlockDiffusion",
    "EmbeddingGemma2Model",
    "Gemma4ForCausalLM",
    "Gemma4ForConditionalGeneration",
    "Gemma4UnifiedForConditionalGeneration",
    "GptOssForCausalLM",
    "GraniteMoeSWAForCausalLM",
    "GraniteSWAForCausalLM",
    "IQuestQ1ForCausalLM",
    "InklingForConditionalGeneration",
    "LagunaForCausalLM",
    "Llama4ForConditionalGeneration",
    "MellumForCausalLM",
    "MiMoV2FlashForCausalLM",
    "MiMoV2ForCausalLM",
    "MuseGlimmerForCausalLM",
    "MuseGlimmerForConditionalGeneration",
    "Step3p5ForCausalLM",
    "Step3p7ForConditionalGeneration",
    "UnlimitedOCRForCausalLM",
];

/// Classes with a pool for states (`srt/configs/hybrid_arch.py:mambaish_config`, by their configs).
const STATE_POOL: &[&str] = &[
    "FalconH1ForCausalLM",
    "FalconMambaForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "KimiK3ForConditionalGeneration",
    "KimiLinearForCausalLM",
    "Lfm2ForCausalLM",
    "Lfm2MoeForCausalLM",
    "Lfm2VlForConditionalGeneration",
    "Mamba2ForCausalLM",
    "MambaForCausalLM",
    "NemotronHForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
];

/// What a class decides.
pub(super) fn class_of(architecture: &str) -> ModelClass {
    ModelClass { windows: WINDOW_POOL.contains(&architecture), states: STATE_POOL.contains(&architecture) }
}
