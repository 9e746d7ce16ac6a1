//! What a multimodal projector file holds: towers that turn images or sound into embeddings of a language model, with the
//! tensors of all of them.

use alloc::string::String;
use alloc::vec::Vec;

use crate::tensor::TensorTable;

/// What a tower reads or makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Modality {
    /// Images.
    Vision,
    /// Sound.
    Audio,
    /// Sound that the model speaks.
    Speech,
}

/// The function between the two matrices of a tower's feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Activation {
    /// GELU.
    Gelu,
    /// SiLU.
    Silu,
    /// GELU by a sigmoid.
    QuickGelu,
}

/// A projector file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Projector {
    /// What the file calls itself.
    pub name: Option<String>,
    /// Its towers, in the order in which an engine loads them: images, sound, speech.
    pub towers: Vec<ProjectorTower>,
    /// The tensors of all towers, in file order.
    pub tensors: TensorTable,
}

/// A tower as the file describes it; what the file does not say is `None`, since what it means then depends on the kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProjectorTower {
    /// What it reads or makes.
    pub modality: Modality,
    /// The kind of tower and projector, in the file format's own word (`gemma3`, `qwen2.5vl_merger`).
    pub kind: String,
    /// Elements of its hidden state.
    pub width: u64,
    /// Query heads of a layer.
    pub heads: u64,
    /// Key heads, where they are fewer.
    pub kv_heads: Option<u64>,
    /// Elements of a head, where the heads together are not as wide as the hidden state.
    pub head_width: Option<u64>,
    /// Elements between the two matrices of a feed-forward; 0 in old files.
    pub feed_forward: u64,
    /// Layers.
    pub layers: u64,
    /// Elements of what it hands to the language model.
    pub output: u64,
    /// The function in its feed-forwards.
    pub activation: Activation,
    /// Layers whose output is handed on, where the file lists them.
    pub feature_layers: Vec<u64>,
    /// Pixels of a side of its images; 0 where images may be of any size.
    pub image_size: u64,
    /// Pixels of a side of a patch.
    pub patch_size: u64,
    /// By how much the projector makes the sides of the grid of patches shorter.
    pub scale_factor: Option<u64>,
    /// How many patches of a side are merged into one.
    pub merge_size: Option<u64>,
    /// The fewest pixels of an image.
    pub min_pixels: Option<u64>,
    /// The most pixels of an image.
    pub max_pixels: Option<u64>,
    /// Pixels of the longest side that images are scaled to.
    pub longest_side: Option<u64>,
    /// Every so many layers attend to the whole image, the others to windows.
    pub window_pattern: Option<u64>,
    /// Version of the kind, where the kind has several.
    pub version: Option<u64>,
    /// Learned queries that gather an image, where the kind has them.
    pub queries: Option<u64>,
    /// Bands of the spectrum that a tower for sound reads.
    pub bands: Option<u64>,
    /// How many frames of sound the projector joins.
    pub stacked_frames: Option<u64>,
}
