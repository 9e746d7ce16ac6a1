//! What a config says as a head that drafts for another model (EAGLE).

use plimsoll_math::engine::vllm::drafter::EagleHead;

use super::config::Config;
use crate::error::IngestError;

/// Classes that vLLM builds as a Llama-shaped head of the first version and of the third
/// (`model_executor/models/registry.py` to `llama_eagle.py` and `llama_eagle3.py`); the engine puts `Eagle` or `Eagle3`
/// before a name that does not say so itself (`transformers_utils/configs/eagle.py:EAGLEConfig`).
const FIRST: [&str; 2] = ["LlamaForCausalLM", "EagleLlamaForCausalLM"];
const THIRD: [&str; 7] = [
    "LlamaForCausalLM",
    "LlamaForCausalLMEagle3",
    "Eagle3LlamaForCausalLM",
    "Eagle3MiniMaxM2ForCausalLM",
    "Eagle3Qwen2_5vlForCausalLM",
    "Eagle3Qwen3vlForCausalLM",
    "PEagleDraftModel",
];
/// Hidden states that are joined unless the config names them.
const STATES: u64 = 3;

/// Reads the facts.
///
/// # Errors
/// [`IngestError::Field`] for fields that cannot be.
pub(super) fn read(root: &Config<'_>) -> Result<EagleHead, IngestError> {
    let names = root.str_list(&["architectures"])?.unwrap_or_default();
    let architecture = names.first().copied().unwrap_or_default();
    let (first, third) = (FIRST.contains(&architecture), THIRD.contains(&architecture));
    if !first && !third {
        return Ok(EagleHead::default());
    }
    let own = root.child(&["eagle_config"])?;
    let flag = |config: Option<&Config<'_>>, key: &str| config.map_or(Ok(None), |config| config.bool(&[key]));
    let joins = flag(own.as_ref(), "use_aux_hidden_state")?.unwrap_or(true);
    let named = own.as_ref().map_or(Ok(None), |own| own.u64_list(&["eagle_aux_hidden_state_layer_ids"]))?;
    let named = named.and_then(|layers| u64::try_from(layers.len()).ok()).filter(|count| *count > 0);
    let states = root.u64(&["num_aux_hidden_states"])?.or(named).unwrap_or(STATES);
    Ok(EagleHead {
        first,
        third,
        vocabulary: root.u64(&["draft_vocab_size"])?,
        states: if joins { states } else { 0 },
        state_size: root.u64(&["target_hidden_size"])?,
        norm_of_all: match flag(own.as_ref(), "norm_before_fc")? {
            Some(says) => says,
            None => root.bool(&["norm_before_fc"])?.unwrap_or(false),
        },
        norm_of_each: root.bool(&["fc_norm"])?.unwrap_or(false),
    })
}
