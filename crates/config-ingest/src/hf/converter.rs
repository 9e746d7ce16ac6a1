//! What llama.cpp's converter leaves out of its files.

use plimsoll_math::spec::ModelSpec;

/// Whether converted files hold no multi-token-prediction layers unless the converter is told otherwise, although the
/// checkpoint has them.
///
/// It leaves them out for DeepSeek V2 and V3 and what is converted as these (`conversion/deepseek.py`, `skip_mtp`;
/// GLM-4.7-Flash overrides it) and for DeepSeek V4 (its first version of the format). For DeepSeek V3.2 it has a switch,
/// `--no-mtp`, and files without them are the usual ones.
pub(super) fn leaves_out_prediction_layers(spec: &ModelSpec) -> bool {
    match spec.llama_cpp_arch.as_deref() {
        Some("deepseek2") => spec.architecture != "Glm4MoeLiteForCausalLM",
        Some("deepseek4" | "deepseek32") => true,
        Some(_) | None => false,
    }
}
