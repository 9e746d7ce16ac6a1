//! How vLLM holds quantized weights (`vllm/model_executor/layers/quantization`).

/// A scheme of quantized linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(tag = "scheme", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WeightScheme {
    /// 8-bit floats, one scale for every logical matrix (`fp8`, ModelOpt's `FP8`).
    Fp8Tensor {
        /// Whether activations have scales of their own.
        static_activations: bool,
    },
}
