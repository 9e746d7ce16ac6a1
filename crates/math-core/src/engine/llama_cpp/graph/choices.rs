//! What architectures choose among (`rows.rs`).

/// What becomes of a dense feed-forward beside experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    /// Nothing: layers with experts have no part for it.
    Ignored,
    /// Both read norms of their own (Gemma 4).
    Normed,
    /// Both read the same, and their sum is scaled (Grok).
    Averaged,
    /// Experts read the layer's input, past attention (Arctic).
    PastAttention,
}

/// How queries and keys are normed and rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNorming {
    /// Norms with weights, if there are any, come first.
    First,
    /// Norms with weights come last (Hunyuan).
    Last,
    /// Norms without weights come last (Llama 4).
    BareLast,
    /// Norms come last, and only the one of queries has weights (Talkie).
    QueryLast,
    /// Both halves of a head are normed, and rotated three times: by time, height and width (SenseNova U1).
    Halves,
}

/// When logits go through a soft cap. Loaders that do not clear the limit first have one of 30 (`llama-hparams.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caps {
    /// Never.
    Never,
    /// Where the model says so.
    WhereTold,
    /// Unless the model says that they do not.
    UnlessTold,
    /// Always.
    Always,
}

impl Caps {
    /// Whether they do, by what the model says.
    pub(super) fn caps(self, told: Option<bool>) -> bool {
        match self {
            Self::Never => false,
            Self::WhereTold => told == Some(true),
            Self::UnlessTold => told != Some(false),
            Self::Always => true,
        }
    }
}

/// The gate on attention's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// A sigmoid.
    Sigmoid,
    /// A softplus to the base of 2 (K2 Horizon).
    Softplus,
    /// A sigmoid of a sum with one bias a head (Beam).
    Biased,
}

/// What builds an architecture's graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BuiltBy {
    /// Layers of attention and a feed-forward.
    Layers,
    /// Several versions of the hidden state (Gemma 3n).
    AltUp,
    /// Layers of latent attention and a feed-forward over several versions of the hidden state (HY 4).
    Versions,
    /// Layers of attention and a feed-forward, with adapters that tokens choose (Granite Switch).
    Adapters,
    /// RWKV's time and channel mixes.
    Rwkv,
    /// A decoder that reads an encoder's output, or the encoder alone.
    EncoderDecoder,
}

/// How halves that read the same input are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Together {
    /// The feed-forward with the residual, then attention.
    ResidualFirst,
    /// The feed-forward with attention, then the residual.
    ResidualLast,
    /// Attention with the feed-forward, then the residual.
    AttentionFirst,
}

/// Which layers scale queries by their position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scaled {
    /// None.
    Never,
    /// All layers of models that say so.
    WhereTold,
    /// Those without rotary embedding (Llama 4).
    UnrotatedLayers,
}
