//! A tower under construction.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec::Vec;

use plimsoll_math::spec::{
    Attention, AttentionBias, Dense, FeedForward, KvSource, Layer, LayerOperations, Mixer, Norm, QkNorm, QkvLayout, Tower,
    TowerKind, Weight,
};
use plimsoll_math::tensor::{Component, Counts, Shape};

/// `a + b`, at the top of the range when it is left; the tensor table then refuses the size.
#[must_use]
pub const fn added(a: u64, b: u64) -> u64 {
    a.saturating_add(b)
}

/// One transformer block of a tower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Heads.
    pub n_heads: u64,
    /// Key-value heads.
    pub n_kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Feed-forward elements.
    pub d_ff: u64,
    /// Biases of the attention projections.
    pub bias: AttentionBias,
    /// Whether a gate multiplies the up projection.
    pub gated: bool,
    /// Biases of the feed-forward.
    pub ff_bias: bool,
    /// Norms: names without `.weight`, all as wide as the hidden state.
    pub norms: &'static [&'static str],
    /// Whether norms have biases.
    pub norm_bias: bool,
    /// Norms on queries and keys.
    pub qk_norm: QkNorm,
    /// Vectors as wide as the hidden state (layer scales).
    pub scales: &'static [&'static str],
}

impl Block {
    /// The block of the first vision transformers: norms with biases before both halves, biases everywhere.
    #[must_use]
    pub fn vit(d_model: u64, n_heads: u64, d_ff: u64) -> Self {
        Self {
            n_heads,
            n_kv_heads: n_heads,
            head_dim: d_model.checked_div(n_heads).unwrap_or(0),
            d_ff,
            bias: AttentionBias::ALL,
            gated: false,
            ff_bias: true,
            norms: &["ln1", "ln2"],
            norm_bias: true,
            qk_norm: QkNorm::default(),
            scales: &[],
        }
    }

    fn layer(&self, d_model: u64) -> Layer {
        let mut attention = Attention::new(self.n_heads, self.n_kv_heads, self.head_dim);
        attention.kv_source = KvSource::NotCached;
        attention.bidirectional = true;
        attention.layout = QkvLayout::Split;
        attention.bias = self.bias;
        attention.qk_norm = self.qk_norm;
        let mut dense = Dense::plain(self.d_ff, self.ff_bias);
        dense.gated = self.gated;
        let norms = self.norms.iter().map(|name| Norm { name: (*name).to_owned(), width: d_model, bias: self.norm_bias });
        let scale = |name: &&str| part(&format!("{name}.weight"), Shape::vector(d_model), Counts::Parameter);
        Layer {
            mixer: Mixer::Attention(attention),
            cross_attention: None,
            feed_forward: FeedForward::Dense(dense),
            norms: norms.collect(),
            extra: self.scales.iter().map(scale).collect(),
            hash_history: 0,
            told: LayerOperations::NONE,
            weights_of: None,
        }
    }
}

fn part(name: &str, shape: Shape, counts: Counts) -> Weight {
    Weight { name: name.to_owned(), shape, component: Component::VisionAudio, counts }
}

/// A tower under construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What there is so far.
    pub tower: Tower,
    /// Elements of what the tower hands to its projector, where that is not the hidden state.
    pub d_output: u64,
}

impl Draft {
    /// A vision tower without anything yet.
    #[must_use]
    pub const fn vision(d_model: u64) -> Self {
        Self { tower: Tower { kind: TowerKind::Vision, d_model, layers: Vec::new(), extra: Vec::new() }, d_output: d_model }
    }
    /// An audio tower without anything yet.
    #[must_use]
    pub const fn audio(d_model: u64) -> Self {
        Self { tower: Tower { kind: TowerKind::Audio, d_model, layers: Vec::new(), extra: Vec::new() }, d_output: d_model }
    }
    const fn prefix(&self) -> &'static str {
        match self.tower.kind {
            TowerKind::Vision => "v.",
            TowerKind::Audio => "a.",
        }
    }
    /// Hidden elements.
    #[must_use]
    pub const fn d_model(&self) -> u64 {
        self.tower.d_model
    }
    /// A tensor of the tower.
    pub fn tensor(&mut self, name: &str, shape: Shape) -> &mut Self {
        let name = format!("{}{name}", self.prefix());
        self.tower.extra.push(part(&name, shape, Counts::Parameter));
        self
    }
    /// A stored buffer of `n` elements.
    pub fn buffer(&mut self, name: &str, n: u64) -> &mut Self {
        let name = format!("{}{name}", self.prefix());
        self.tower.extra.push(part(&name, Shape::vector(n), Counts::Buffer));
        self
    }
    /// A vector of weights.
    pub fn vector(&mut self, name: &str, n: u64) -> &mut Self {
        self.tensor(&format!("{name}.weight"), Shape::vector(n))
    }
    /// A matrix, or a convolution with `n_in` elements under its kernel, and its bias.
    pub fn linear(&mut self, name: &str, n_in: u64, n_out: u64, bias: bool) -> &mut Self {
        self.tensor(&format!("{name}.weight"), Shape::matrix(n_in, n_out));
        if bias {
            self.tensor(&format!("{name}.bias"), Shape::vector(n_out));
        }
        self
    }
    /// A norm.
    pub fn norm(&mut self, name: &str, width: u64, bias: bool) -> &mut Self {
        self.vector(name, width);
        if bias {
            self.tensor(&format!("{name}.bias"), Shape::vector(width));
        }
        self
    }
    /// `n` blocks.
    pub fn blocks(&mut self, n: u64, block: &Block) -> &mut Self {
        let layer = block.layer(self.tower.d_model);
        self.tower.layers.extend((0..n).map(|_| layer.clone()));
        self
    }
    /// Two matrices with an activation between them: the usual projector.
    pub fn mlp(&mut self, name: &str, [n_in, n_hidden, n_out]: [u64; 3], bias: bool) -> &mut Self {
        self.linear(&format!("{name}.0"), n_in, n_hidden, bias);
        self.linear(&format!("{name}.2"), n_hidden, n_out, bias)
    }
    /// Attention with matrices of its own from and to `d`, biases everywhere.
    pub fn attention(&mut self, name: &str, d: u64) -> &mut Self {
        for which in ["q", "k", "v", "output"] {
            self.linear(&format!("{name}.attn_{which}"), d, d, true);
        }
        self
    }
}
