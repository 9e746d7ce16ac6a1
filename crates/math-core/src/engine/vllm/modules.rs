//! What the linear layers of a model are called in its checkpoint, and how a quantization names those it leaves out or
//! treats differently.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::VERSION;
use super::class::ExpertsModule;
use super::facts::{Checkpoint, LayerScheme, NameMatching};
use super::pattern::Pattern;
use super::quantization::WeightScheme;
use super::shard::{Rules, Split, role};
use crate::error::MathError;
use crate::spec::{FeedForward, Mixer};
use crate::tensor::{Component, Place, Tensor};

/// What may stand before a layer's name: classes with towers put the language model into a module of its own.
const PREFIXES: [&str; 3] = ["model.", "language_model.model.", "model.language_model."];

/// Elements of a tile.
const TILE: u64 = 64;

/// A list of names, ready to be asked.
#[derive(Debug)]
struct Name<'a> {
    text: &'a str,
    pattern: Option<Pattern>,
}

/// How a checkpoint's lists are read.
#[derive(Debug)]
pub(super) struct Names<'a> {
    matching: NameMatching,
    left_out: Vec<Name<'a>>,
    named: Vec<(Name<'a>, WeightScheme)>,
}

impl<'a> Names<'a> {
    /// Reads the lists.
    ///
    /// # Errors
    /// [`MathError::Unsupported`] for an expression that is not understood.
    pub(super) fn of(checkpoint: &'a Checkpoint) -> Result<Self, MathError> {
        let matching = checkpoint.matching;
        let read = |text: &'a str| -> Result<Name<'a>, MathError> {
            let pattern = match (matching, text.strip_prefix("re:")) {
                (NameMatching::Patterns, Some(regex)) => Some(Pattern::regex(regex).map_err(|part| MathError::Unsupported {
                    engine: VERSION.to_string(),
                    mechanism: format!("the expression {regex} in a list of layers (at {part})"),
                })?),
                (NameMatching::Wildcards, _) => Some(Pattern::wildcards(text)),
                _ => None,
            };
            Ok(Name { text, pattern })
        };
        let left_out = checkpoint.unquantized.iter().map(|text| read(text)).collect::<Result<_, _>>()?;
        let named = checkpoint
            .layer_schemes
            .iter()
            .map(|LayerScheme { name, scheme }| Ok((read(name)?, *scheme)))
            .collect::<Result<_, MathError>>()?;
        Ok(Self { matching, left_out, named })
    }

    /// Whether a name in the list means a layer that goes by any of `aliases` (without what may stand before them).
    fn means(&self, name: &Name<'_>, aliases: &[String]) -> bool {
        let equal =
            |alias: &String| name.text == alias || PREFIXES.iter().any(|prefix| name.text.strip_prefix(prefix) == Some(alias));
        if aliases.iter().any(equal) {
            return true;
        }
        let full = |test: &dyn Fn(&str) -> bool| {
            aliases.iter().any(|alias| PREFIXES.iter().any(|prefix| test(&format!("{prefix}{alias}"))))
        };
        match self.matching {
            NameMatching::Exact => {
                // Any name of an expert's part means all of them.
                name.text.contains("experts")
                    && aliases.iter().any(|alias| alias.ends_with(".experts") && name.text.contains(alias.as_str()))
            }
            NameMatching::Substring => full(&|alias| alias.contains(name.text)),
            NameMatching::Patterns => name.pattern.as_ref().is_some_and(|pattern| full(&|alias| pattern.matches(alias))),
            NameMatching::Wildcards => {
                full(&|alias| alias.contains(name.text))
                    || name.pattern.as_ref().is_some_and(|pattern| full(&|alias| pattern.matches(alias)))
            }
        }
    }

    /// Whether a tower's layer is left out. Lists name towers as a whole or list all of their layers.
    fn leaves_out_tower(&self, visual: bool, projector: bool, block: Option<&str>) -> bool {
        const TOWER: [&str; 5] = ["visual", "vision", "audio", "vit.", "speech"];
        const PROJECTOR: [&str; 6] = ["projector", "merger", "visual", "connector", "adapter", "embed_vision"];
        let words: &[&str] = if projector { &PROJECTOR } else { &TOWER };
        self.left_out.iter().any(|name| {
            // Only towers that are called so are meant by the word.
            let about = words.iter().any(|word| name.text.contains(word) && (*word != "visual" || visual));
            about
                && match (self.matching, block) {
                    // Only the layer's own name counts.
                    (NameMatching::Exact, Some(block)) => name.text.contains(&format!(".{block}.")),
                    (NameMatching::Exact, None) => {
                        name.text.contains("linear") || name.text.contains("fc") || name.text.contains("merger.")
                    }
                    _ => true,
                }
        }) || (self.matching == NameMatching::Wildcards && !projector && !visual)
    }
}

impl Rules<'_> {
    /// How the checkpoint's quantization holds a tensor: `None` for what it does not cover. Covered are the matrices of
    /// linear layers that the class gives to the quantization and that its lists do not leave out.
    #[must_use]
    pub fn scheme(&self, tensor: &Tensor) -> Option<WeightScheme> {
        let scheme = self.checkpoint.scheme?;
        if matches!(tensor.place, Place::Tower) {
            return self.scheme_of_tower(tensor, scheme);
        }
        let aliases = self.aliases(tensor);
        if aliases.is_empty() {
            return None;
        }
        let expert = aliases.iter().any(|alias| alias.contains("experts.") || alias.ends_with(".experts"))
            && role(&tensor.name).contains("_exps");
        let names = &self.names;
        if scheme.experts_only() && !expert {
            return None;
        }
        let head = tensor.name == "output.weight";
        if names.left_out.iter().any(|name| names.means(name, &aliases)) {
            return None;
        }
        if let Some((_, scheme)) = names.named.iter().find(|(name, _)| names.means(name, &aliases)) {
            return Some(*scheme);
        }
        // An output matrix is quantized only where it is named.
        if head || matches!(scheme, WeightScheme::Named) {
            return None;
        }
        match self.checkpoint.experts_scheme {
            Some(of_experts) if expert => Some(of_experts),
            _ => Some(scheme),
        }
    }

    fn scheme_of_tower(&self, tensor: &Tensor, scheme: WeightScheme) -> Option<WeightScheme> {
        if self.class.tower.quantized_projector
            && tensor.name.contains(".mm.")
            && tensor.name.ends_with(".weight")
            && tensor.shape.n_dims() == 2
            && !scheme.experts_only()
            && !matches!(scheme, WeightScheme::Named)
        {
            return (!self.names.leaves_out_tower(self.class.tower.visual, true, None)).then_some(scheme);
        }
        let whole = self.class.tower.whole || self.class.tower.unquantized;
        let divided = matches!(self.split(tensor), Split::Outputs | Split::Inputs);
        let matrix = tensor.shape.n_dims() == 2
            && tensor.name.ends_with(".weight")
            && !["patch_embd", "patch_merger"].iter().any(|part| tensor.name.contains(part));
        if whole || scheme.experts_only() || matches!(scheme, WeightScheme::Named) || !divided || !matrix {
            return None;
        }
        // A hidden layer that kernels cannot tile is left as it is (`models/siglip.py:SiglipMLP`).
        let [n_in, n_out, ..] = tensor.shape.0;
        if self.class.tower.whole_tiles
            && tensor.name.contains("ffn_")
            && !(n_in.is_multiple_of(TILE) && n_out.is_multiple_of(TILE))
        {
            return None;
        }
        let block = tensor.name.split_once("blk.").and_then(|(_, rest)| rest.split_once('.')).map(|(block, _)| block);
        let projector = block.is_none();
        if (projector && self.class.tower.whole_projector)
            || tensor.component != Component::VisionAudio
            || self.names.leaves_out_tower(self.class.tower.visual, projector, block)
        {
            return None;
        }
        Some(scheme)
    }

    /// The names of a linear layer in checkpoints, its own and that of the one it is fused into; none for what is no
    /// linear layer to a quantization.
    fn aliases(&self, tensor: &Tensor) -> Vec<String> {
        if tensor.name == "output.weight" {
            return vec!["lm_head".to_string()];
        }
        let outside = match tensor.name.as_str() {
            "joined_states.weight" => Some("fc"),
            "altup_proj.weight" => Some("altup_projections.0"),
            "altup_unembd_proj.weight" => Some("altup_unembed_projections.0"),
            "per_layer_model_proj.weight" => Some("per_layer_model_projection"),
            _ => None,
        };
        if let Some(name) = outside {
            return vec![name.to_string()];
        }
        let Place::Layer(index) = tensor.place else { return Vec::new() };
        let Some(name) = role(&tensor.name).strip_suffix(".weight") else { return Vec::new() };
        let layer = self.layer(tensor);
        let mixer = layer.map(|layer| &layer.mixer);
        let moe = matches!(layer.map(|layer| &layer.feed_forward), Some(FeedForward::Moe(_)));
        let compressed = matches!(mixer, Some(Mixer::CompressedAttention(_)));
        let delta = matches!(mixer, Some(Mixer::GatedDeltaNet(_) | Mixer::KimiDelta(_)));
        let short: &[&str] = match name {
            "attn_qkv" if delta => &["linear_attn.in_proj_qkv", "linear_attn.in_proj_qkvz"],
            "attn_gate" if delta => &["linear_attn.in_proj_z", "linear_attn.in_proj_qkvz"],
            "ssm_in" if delta => &["linear_attn.in_proj_qkvz"],
            "ssm_ba" => &["linear_attn.in_proj_ba"],
            "ssm_alpha" if delta => &["linear_attn.in_proj_a", "linear_attn.in_proj_ba"],
            "ssm_beta" if matches!(mixer, Some(Mixer::GatedDeltaNet(_))) => &["linear_attn.in_proj_b", "linear_attn.in_proj_ba"],
            "ssm_out" if delta => &["linear_attn.out_proj"],
            "ssm_in" if matches!(mixer, Some(Mixer::Mamba2(_) | Mixer::Parallel(_))) => &["mixer.in_proj", "mamba.in_proj"],
            "ssm_out" if matches!(mixer, Some(Mixer::Mamba2(_) | Mixer::Parallel(_))) => &["mixer.out_proj", "mamba.out_proj"],
            "shortconv.in_proj" => &["conv.in_proj"],
            "shortconv.out_proj" => &["conv.out_proj"],
            "attn_q" => &["self_attn.q_proj", "self_attn.qkv_proj"],
            "attn_k" => &["self_attn.k_proj", "self_attn.qkv_proj"],
            "attn_v" => &["self_attn.v_proj", "self_attn.qkv_proj"],
            "attn_qkv" => &["self_attn.qkv_proj", "attn.c_attn", "attn.qkv"],
            "attn_output" => &["self_attn.o_proj", "attn.c_proj", "attn.dense"],
            "attn_q_a" if compressed => &["attn.wq_a", "attn.fused_wqa_wkv"],
            "attn_kv" if compressed => &["attn.wkv", "attn.fused_wqa_wkv"],
            "attn_q_b" if compressed => &["attn.wq_b"],
            "attn_output_a" => &["attn.wo_a"],
            "attn_output_b" => &["attn.wo_b"],
            "attn_q_a" => &["self_attn.q_a_proj", "self_attn.fused_qkv_a_proj"],
            "attn_q_b" => &["self_attn.q_b_proj"],
            "attn_kv_a_mqa" => &["self_attn.kv_a_proj_with_mqa", "self_attn.fused_qkv_a_proj"],
            "attn_k_b" | "attn_v_b" | "attn_kv_b" => &["self_attn.kv_b_proj"],
            "indexer.attn_q_b" => &["self_attn.indexer.wq_b"],
            "ffn_gate" => &["mlp.gate_proj", "mlp.gate_up_proj"],
            "ffn_up" => &["mlp.up_proj", "mlp.gate_up_proj"],
            "ffn_down" => &["mlp.down_proj"],
            "ffn_gate_shexp" => {
                &["mlp.shared_experts.gate_proj", "mlp.shared_expert.gate_proj", "mlp.shared_experts.gate_up_proj"]
            }
            "ffn_up_shexp" => &["mlp.shared_experts.up_proj", "mlp.shared_expert.up_proj", "mlp.shared_experts.gate_up_proj"],
            "ffn_down_shexp" => &["mlp.shared_experts.down_proj", "mlp.shared_expert.down_proj"],
            "ffn_gate_exps" => &["mlp.experts.0.gate_proj", "mlp.experts"],
            "ffn_up_exps" => &["mlp.experts.0.up_proj", "mlp.experts"],
            "ffn_gate_up_exps" => &["mlp.experts.0.gate_proj", "mlp.experts.gate_up_proj", "mlp.experts"],
            "ffn_down_exps" => &["mlp.experts.0.down_proj", "mlp.experts"],
            // Gemma 3n's paths beside the layers are linear layers like any (`models/gemma3n.py`).
            "laurel_l" => &["laurel.linear_left"],
            "laurel_r" => &["laurel.linear_right"],
            "inp_gate" => &["per_layer_input_gate"],
            "proj" => &["per_layer_projection"],
            "altup_router" => &["altup.modality_router"],
            "altup_predict_coef" => &["altup.prediction_coefs"],
            "altup_correct_coef" => &["altup.correction_coefs"],
            "ffn_gate_inp" if moe && self.class.router.through_scheme => &["mlp.gate"],
            _ => &[],
        };
        let parallel = matches!(mixer, Some(Mixer::Parallel(_)));
        let called = |short: &&str| match self.class.experts {
            // Layers of both kinds at once have no module for attention alone (`models/falcon_h1.py`).
            _ if parallel => {
                format!("layers.{index}.{}", short.replace("self_attn.", "").replace("mlp.", "feed_forward."))
            }
            ExpertsModule::Mlp => format!("layers.{index}.{short}"),
            ExpertsModule::BlockSparseMoe => format!("layers.{index}.{}", short.replace("mlp.", "block_sparse_moe.")),
        };
        short.iter().map(called).collect()
    }
}
