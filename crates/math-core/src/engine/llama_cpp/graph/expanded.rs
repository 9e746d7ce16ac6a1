//! Latent attention whose latent is expanded before it is cached: keys and values of every head
//! (`src/models/minicpm3.cpp`, `src/models/plm.cpp`).

use super::attention::{Attend, CacheInputs};
use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts};
use super::scales::Matrix;
use crate::error::MathError;
use crate::spec::Mla;
use crate::units::{add, mul};

impl Parts {
    /// Attention of `x` over expanded keys and values; `v_width` is the widest row of values in the cache.
    pub(super) fn expanded_attention(
        &mut self,
        mla: &Mla,
        inputs: &CacheInputs,
        positions: Node,
        factors: Option<Node>,
        v_width: u64,
        x: Node,
    ) -> Result<Node, MathError> {
        let tokens = self.setting.tokens;
        let (rank, nope, rope, heads) = (mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.n_heads);
        let (head, v_head) = (add(nope, rope)?, mla.v_head_dim);
        let [d_model, ..] = self.graph.dims(x)?;
        let mut q = x;
        if let Some(q_rank) = mla.q_lora_rank {
            q = self.linear(q, q_rank)?;
            q = self.norm(q, NormKind::Rms, false, true)?;
        }
        q = self.linear(q, mul(head, heads)?)?;
        q = self.graph.reshape(q, [head, heads, tokens, 1])?;

        let both = self.linear(x, add(rank, rope)?)?;
        let row = mul(4, add(rank, rope)?)?;
        let latent = self.graph.view_2d(both, rank, tokens, row)?;
        let k_rope = self.graph.view_3d(both, [rope, 1, tokens], row, row)?;
        let latent = self.norm(latent, NormKind::Rms, false, true)?;
        let each = add(nope, v_head)?;
        let expanded = self.linear(latent, mul(heads, each)?)?;
        let (by_head, by_token) = (mul(4, each)?, mul(4, mul(heads, each)?)?);
        let k_nope = self.graph.view_3d(expanded, [nope, heads, tokens], by_head, by_token)?;
        let v = self.graph.view_3d(expanded, [v_head, heads, tokens], by_head, by_token)?;
        let v = self.graph.cont(v, [v_head, heads, tokens, 1])?;
        let q = self.graph.rope(q, positions, factors)?;
        let k_rope = self.graph.rope(k_rope, positions, factors)?;
        let repeated = self.graph.result(Op::Repeat, Self::F32, [rope, heads, tokens, 1], &[k_rope])?;
        let k = self.graph.concat(k_nope, repeated, 0)?;
        let attend = Attend {
            q,
            k: Some(k),
            v: Some(v),
            n_kv_heads: heads,
            k_head: head,
            v_head,
            v_width,
            sinks: None,
            soft_cap: false,
            bias: None,
        };
        let attended = self.attend(inputs, &attend)?;
        self.project(attended, d_model, Matrix::AttentionOutput, false)
    }
}
