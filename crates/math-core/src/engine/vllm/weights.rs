//! Bytes of the weights on every rank, as vLLM creates them (`vllm/model_executor/layers`).
//!
//! The model's tensor table says which matrices there are; this module says which part of each a rank holds and in which
//! format. Matrices that vLLM fuses (`qkv_proj`, `gate_up_proj`) weigh what their parts weigh.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::VERSION;
use super::drafter::drafter;
use super::facts::Checkpoint;
use super::layers::{draft_layers, stages};
use super::options::{DraftMethod, Knobs};
use super::quantization::{Matrix, WeightScheme};
use super::shard::{Part, Rules, divide};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{LmHead, Mixer, ModelSpec};
use crate::tensor::{Counts, Place, Tensor, TensorTable};
use crate::units::{add, mul, round_up};

/// Rows of a vocabulary are filled up to a multiple of this
/// (`vocab_parallel_embedding.py:DEFAULT_VOCAB_PADDING_SIZE`).
const VOCAB_PADDING: u64 = 64;

/// The weights of one rank, by number type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RankWeights {
    /// Bytes of every number type.
    pub by_type: BTreeMap<StorageFormat, u64>,
    /// Bytes of embeddings and output matrix among them.
    pub vocabulary: u64,
}

impl RankWeights {
    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.by_type.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn put(&mut self, format: StorageFormat, elements: u64) -> Result<(), MathError> {
        let bytes = mul(elements, format.block_bytes())?;
        let sum = self.by_type.entry(format).or_insert(0);
        *sum = add(*sum, bytes)?;
        Ok(())
    }

    /// What stands for a matrix under a scheme; nothing for one that another tensor's matrix holds.
    fn put_matrix(&mut self, scheme: WeightScheme, matrix: Option<Matrix>) -> Result<(), MathError> {
        let Some(matrix) = matrix else { return Ok(()) };
        for (format, elements) in scheme.tensors(&matrix)? {
            self.put(format, elements)?;
        }
        Ok(())
    }
}

/// The weights of the first rank of every pipeline stage; ranks of a stage are alike.
///
/// # Errors
/// [`MathError::Refused`] where a matrix cannot be split, [`MathError::Overflow`].
pub fn weights(
    spec: &ModelSpec,
    table: &TensorTable,
    checkpoint: &Checkpoint,
    knobs: &Knobs,
) -> Result<Vec<RankWeights>, MathError> {
    let layers = u64::try_from(spec.layers.len()).unwrap_or(u64::MAX);
    weights_over(spec, table, checkpoint, knobs, &stages(layers, knobs.parallelism.pipeline))
}

/// The same for stages of these layers, first and last (exclusive).
///
/// # Errors
/// As [`weights`].
pub fn weights_over(
    spec: &ModelSpec,
    table: &TensorTable,
    checkpoint: &Checkpoint,
    knobs: &Knobs,
    ranges: &[(u64, u64)],
) -> Result<Vec<RankWeights>, MathError> {
    check_scheme(checkpoint)?;
    if checkpoint.scheme.is_some() && spec.encoder.is_some() {
        return Err(MathError::Unsupported {
            engine: VERSION.to_string(),
            mechanism: "quantized weights of encoder-decoders".to_string(),
        });
    }
    let tensor = knobs.parallelism.tensor.max(1);
    if checkpoint.class.library && (tensor > 1 || knobs.parallelism.pipeline > 1) {
        return Err(MathError::Unsupported {
            engine: VERSION.to_string(),
            mechanism: format!("how {} of the Transformers library is divided over ranks", spec.architecture),
        });
    }
    let layers = u64::try_from(spec.layers.len()).unwrap_or(u64::MAX);
    let last = ranges.len().saturating_sub(1);
    let mut ranks = vec![RankWeights::default(); ranges.len()];
    let rules = Rules::new(spec, checkpoint, knobs)?;
    for tensor_of in &table.tensors {
        if !rules.loads(tensor_of) {
            continue;
        }
        let at: Vec<usize> = match tensor_of.place {
            Place::Input | Place::Output if rules.on_every_stage(&tensor_of.name) => (0..=last).collect(),
            Place::Input if tensor_of.name == "token_embd.weight" && matches!(spec.head.lm_head, LmHead::Tied) && last > 0 => {
                vec![0, last]
            }
            Place::Input if tensor_of.name == "token_embd.weight" && last > 0 && lends_embedding(checkpoint, knobs) => {
                vec![0, last]
            }
            Place::Input if rules.belongs_to_the_end(&tensor_of.name) => vec![last],
            Place::Input | Place::Tower | Place::EncoderLayer(_) => vec![0],
            Place::Output => vec![last],
            Place::Layer(index) => {
                let index = u64::from(index);
                if index >= layers {
                    continue;
                }
                let stage = ranges.iter().position(|(from, to)| (*from..*to).contains(&index)).unwrap_or(last);
                vec![stage]
            }
        };
        for stage in at {
            if let Some(rank) = ranks.get_mut(stage) {
                place(rank, tensor_of, &rules, checkpoint, tensor)?;
            }
        }
    }
    if checkpoint.class.two_norms {
        for (index, _) in (0_u64..).zip(&spec.layers) {
            let name = format!("blk.{index}.ffn_norm.weight");
            let stage = ranges.iter().position(|(from, to)| (*from..*to).contains(&index)).unwrap_or(last);
            if let Some(rank) = ranks.get_mut(stage).filter(|_| !table.tensors.iter().any(|tensor| tensor.name == name)) {
                rank.put(checkpoint.dtype, mul(2, spec.d_model)?)?;
            }
        }
    }
    if let Some(scheme) = checkpoint.scheme.filter(|_| !checkpoint.class.without_cache_scales) {
        // Attention layers of a quantized checkpoint hold scales for a cache, quantized or not.
        let (of_type, single) = scheme.cache_scales(checkpoint.matching);
        for (index, layer) in (0_u64..).zip(&spec.layers) {
            let attends = match layer.mixer {
                Mixer::Attention(_) | Mixer::Parallel(_) => true,
                // ModelOpt's method knows latent attention too.
                Mixer::Mla(_) => matches!(scheme, WeightScheme::Nvfp4 { compressed: false, .. }),
                _ => false,
            };
            let stage = ranges.iter().position(|(from, to)| (*from..*to).contains(&index)).unwrap_or(last);
            if let Some(rank) = ranks.get_mut(stage).filter(|_| attends) {
                rank.put(checkpoint.dtype, of_type)?;
                rank.put(StorageFormat::F32, single)?;
            }
        }
    }
    for rank in &mut ranks {
        rank.by_type.retain(|_, bytes| *bytes > 0);
    }
    Ok(ranks)
}

/// The weights of what drafts, which the last stage loads: the model's own module, whose embedding and output matrix are
/// the model's, or a model beside it as it is created.
///
/// # Errors
/// As [`weights`]; [`MathError::Unsupported`] where the checkpoint's config does not say what the module is.
pub fn draft_weights(
    spec: &ModelSpec,
    table: &TensorTable,
    checkpoint: &Checkpoint,
    knobs: &Knobs,
) -> Result<RankWeights, MathError> {
    if let Some((drafter, method)) = drafter(knobs)? {
        return drafter.weights(method, spec, knobs);
    }
    let mut rank = RankWeights::default();
    if !matches!(knobs.speculation.map(|speculation| speculation.method), Some(DraftMethod::Mtp)) {
        return Ok(rank);
    }
    let modules = draft_layers(spec, &checkpoint.class).len();
    if spec.mtp.is_empty() || modules == 0 {
        return Err(MathError::Unsupported {
            engine: VERSION.to_string(),
            mechanism: "the weights of a draft module that the config does not describe".to_string(),
        });
    }
    let rules = Rules::new(spec, checkpoint, knobs)?;
    let first = spec.layers.len();
    for tensor in &table.tensors {
        let Place::Layer(index) = tensor.place else { continue };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let shared = ["embed_tokens", "shared_head_head"].iter().any(|part| tensor.name.contains(part));
        let created = matches!(tensor.counts, Counts::MultiTokenPrediction) || rules.loads(tensor);
        if (first..first.saturating_add(modules)).contains(&index) && created && !shared {
            place(&mut rank, tensor, &rules, checkpoint, knobs.parallelism.tensor.max(1))?;
        }
    }
    rank.by_type.retain(|_, bytes| *bytes > 0);
    Ok(rank)
}

/// Whether the last stage has the embedding for a head that drafts.
fn lends_embedding(checkpoint: &Checkpoint, knobs: &Knobs) -> bool {
    let head = knobs.speculation.is_some_and(|drafts| matches!(drafts.method, DraftMethod::Eagle | DraftMethod::Eagle3));
    head && checkpoint.class.lends_embedding
}

/// Adds one tensor's part to a rank.
fn place(
    rank: &mut RankWeights,
    tensor: &Tensor,
    rules: &Rules<'_>,
    checkpoint: &Checkpoint,
    ranks: u64,
) -> Result<(), MathError> {
    let format = rules.format(tensor, checkpoint);
    if tensor.name == "output.bias" && rules.is_vocabulary("output.weight") {
        let rows = round_up(tensor.shape.row(), VOCAB_PADDING)?;
        return rank.put(format, divide(rows, ranks, "rows of the vocabulary by tensor parallel size")?);
    }
    if rules.is_vocabulary(&tensor.name) {
        let rows = round_up(tensor.shape.rows()?, VOCAB_PADDING)?;
        let part = Part::whole(tensor.shape.row(), divide(rows, ranks, "rows of the vocabulary by tensor parallel size")?);
        let before = rank.bytes();
        match rules.scheme(tensor) {
            Some(scheme) => rank.put_matrix(scheme, rules.matrix(tensor, &part, checkpoint))?,
            None => rank.put(format, mul(part.n_in, part.n_out)?)?,
        }
        rank.vocabulary = add(rank.vocabulary, rank.bytes().saturating_sub(before))?;
        return Ok(());
    }
    let scheme = rules.scheme(tensor);
    for part in rules.parts(tensor)? {
        match scheme {
            Some(scheme) => rank.put_matrix(scheme, rules.matrix(tensor, &part, checkpoint))?,
            None => rank.put(format, mul(mul(part.n_in, part.n_out)?, part.stack)?)?,
        }
    }
    Ok(())
}

/// Methods of quantization that the engine has (`vllm/model_executor/layers/quantization/__init__.py:QuantizationMethods`).
const METHODS: &[&str] = &[
    "awq",
    "auto_awq",
    "fp8",
    "fbgemm_fp8",
    "fp_quant",
    "modelopt",
    "modelopt_fp4",
    "modelopt_mxfp8",
    "modelopt_mixed",
    "auto_gptq",
    "gptq",
    "gptq_marlin",
    "awq_marlin",
    "humming",
    "compressed-tensors",
    "experts_int8",
    "quark",
    "moe_wna16",
    "torchao",
    "inc",
    "mxfp4",
    "gpt_oss_mxfp4",
    "deepseek_v4_fp8",
    "online",
    "fp8_per_tensor",
    "fp8_per_block",
    "fp8_per_channel",
    "int8_per_channel_weight_only",
    "nvfp4_per_token",
    "mxfp8",
];

/// Whether the checkpoint's scheme can be followed; unknown ones are an error, not a guess.
///
/// # Errors
/// [`MathError::Refused`] for a method that the engine does not have either
/// (`vllm/config/model.py:_verify_quantization`), [`MathError::Unsupported`].
pub fn check_scheme(checkpoint: &Checkpoint) -> Result<(), MathError> {
    if checkpoint.class.attention_first && checkpoint.scheme.is_some_and(|scheme| scheme != WeightScheme::Unknown) {
        return Err(MathError::Unsupported {
            engine: VERSION.to_string(),
            mechanism: "quantized weights of attention that several layers share".to_string(),
        });
    }
    if checkpoint.scheme != Some(WeightScheme::Unknown) {
        return Ok(());
    }
    let method = checkpoint.unfollowed.as_deref().unwrap_or_default();
    let engine = VERSION.to_string();
    if METHODS.contains(&method) || method.is_empty() {
        return Err(MathError::Unsupported { engine, mechanism: format!("this kind of {method:?} quantization") });
    }
    let methods = METHODS.join("', '");
    Err(MathError::Refused { engine, reason: format!("Unknown quantization method: {method}. Must be one of ['{methods}'].") })
}

/// Whether a tensor is a parameter of the model class.
#[must_use]
pub const fn is_created(counts: Counts) -> bool {
    matches!(counts, Counts::Parameter | Counts::Unconverted | Counts::Buffer)
}
