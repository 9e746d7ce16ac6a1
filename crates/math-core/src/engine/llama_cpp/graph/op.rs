//! Operations of a graph, as far as memory depends on which it is: on whether it may write over an input, on which
//! backend can run it, and on what a backend may reorder, fuse or need beside the result.

/// An operation (`ggml.h:ggml_op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// None: a weight, a cache or an input.
    None,
    /// The same elements with other dimensions.
    Reshape,
    /// Part of a tensor.
    View,
    /// Dimensions in another order.
    Permute,
    /// The first two dimensions exchanged.
    Transpose,

    /// Sum.
    Add,
    /// Sum with chosen rows (biases of experts).
    AddId,
    /// Difference.
    Sub,
    /// Product of elements.
    Mul,
    /// Quotient of elements.
    Div,
    /// Multiplication by a number, and addition of one.
    Scale,
    /// A function of each element: activations, negation, exponential.
    Unary,
    /// Square of each element.
    Square,
    /// Square root of each element.
    SquareRoot,
    /// Logarithm of each element.
    Log,
    /// Limits of each element.
    Clamp,
    /// The same number everywhere.
    Fill,
    /// Root-mean-square norm.
    RmsNorm,
    /// Softmax of rows.
    SoftMax,
    /// Rotary embedding.
    Rope,
    /// The rotary embedding undone.
    RopeBack,
    /// One of those above; the graph does not say which.
    Elementwise,

    /// Norm by mean and variance.
    Norm,
    /// Euclidean norm.
    L2Norm,
    /// Norm of groups.
    GroupNorm,
    /// Matrix product.
    MulMat,
    /// Product with chosen matrices of a stack.
    MulMatId,
    /// Chosen rows.
    GetRows,
    /// Rows written by index.
    SetRows,
    /// Copy into a tensor.
    Copy,
    /// Contiguous copy.
    Cont,
    /// Two tensors joined.
    Concat,
    /// Elements repeated.
    Repeat,
    /// Zeros added around.
    Pad,
    /// Sums of rows.
    SumRows,
    /// Means of rows.
    Mean,
    /// Running sums.
    CumSum,
    /// Order of each row.
    ArgSort,
    /// Largest of each row.
    TopK,
    /// A gate times an up projection.
    Glu,
    /// Flash attention.
    FlashAttention,
    /// Convolution over past tokens.
    SsmConv,
    /// Scan of a state space.
    SsmScan,
    /// Gated delta rule.
    GatedDeltaNet,
    /// Recurrence of RWKV 6.
    Wkv6,
    /// Recurrence of RWKV 7.
    Wkv7,
    /// Gated linear attention.
    GatedLinearAttention,
    /// Sine or cosine.
    Sine,
    /// Triangle of a matrix.
    Triangle,
    /// Solution of a triangular system.
    SolveTriangle,
    /// Scores of a lightning indexer's heads, summed (`ggml.h:ggml_lightning_indexer`).
    LightningIndexer,
    /// A mask with all but chosen cells hidden.
    TopKMask,
    /// What lies under a kernel at each of its places, in a row.
    Im2Col,
    /// Means or largest of squares.
    Pool,
    /// A grid scaled to another size.
    Upscale,
    /// Mixing of the versions of a hidden state (`ggml.h:ggml_dsv4_hc_pre`, `_comb`, `_post`).
    HyperConnection,
    /// Anything else; the graph does not say what.
    Other,
}

impl Op {
    /// Whether the result only shows another tensor's memory (`ggml-backend.cpp:ggml_is_view_op`).
    #[must_use]
    pub const fn is_view(self) -> bool {
        matches!(self, Self::Reshape | Self::View | Self::Permute | Self::Transpose)
    }
    /// Whether nothing is computed (`ggml-impl.h:ggml_op_is_empty`).
    #[must_use]
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None) || self.is_view()
    }
    /// Whether the result may take an input's memory (`ggml-alloc.c:ggml_op_can_inplace`).
    #[must_use]
    pub const fn may_overwrite(self) -> bool {
        matches!(
            self,
            Self::Add
                | Self::AddId
                | Self::Sub
                | Self::Mul
                | Self::Div
                | Self::Scale
                | Self::Unary
                | Self::Square
                | Self::SquareRoot
                | Self::Log
                | Self::Clamp
                | Self::Fill
                | Self::RmsNorm
                | Self::SoftMax
                | Self::Rope
                | Self::RopeBack
                | Self::Elementwise
        )
    }
    /// Whether it is known which operation this is.
    #[must_use]
    pub const fn is_named(self) -> bool {
        !matches!(self, Self::Elementwise | Self::Other)
    }
}
