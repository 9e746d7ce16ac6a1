//! T5 (`src/models/t5.cpp`): a decoder that reads an encoder's output, or the encoder alone. Scores carry a learned bias per
//! relative position, which no flash attention has.

use super::attention::{Attend, CacheInputs};
use super::decoder::has_norm;
use super::ops::Node;
use super::parts::Parts;
use super::rows::Row;
use super::trunk::{Caches, attended};
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Attention, FeedForward, Layer, Mixer, ModelSpec};
use crate::units::mul;

/// Builds the whole graph; `false` when some layer is none of this file's.
pub(super) fn build(parts: &mut Parts, spec: &ModelSpec, row: &Row, caches: &Caches) -> Result<bool, MathError> {
    let fits =
        |layer: &Layer| matches!(&layer.mixer, Mixer::Attention(_)) && matches!(&layer.feed_forward, FeedForward::Dense(_));
    if spec.layers.iter().all(|layer| fits(layer) && layer.cross_attention.is_some()) {
        return decoder(parts, spec, row, caches);
    }
    match &spec.encoder {
        Some(encoder) if encoder.layers.iter().all(fits) => {
            let embedded = parts.embed(spec.d_model, spec.embedding.n_vocab)?;
            let buckets = parts.graph.input(StorageFormat::I32, [parts.setting.tokens, parts.setting.tokens, 1, 1])?;
            let inputs = parts.batch_inputs()?;
            let rows = parts.output_rows()?;
            let mut stack = Stack { row, d_model: spec.d_model, buckets, inputs, encoded: None, rows, table: None };
            let current = stack.layers(parts, &encoder.layers, embedded)?;
            parts.begin_output();
            let current = parts.norm(current, row.norm, encoder.norm.as_ref().is_some_and(|norm| norm.bias), false)?;
            parts.finish(&spec.head, current, None)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn decoder(parts: &mut Parts, spec: &ModelSpec, row: &Row, caches: &Caches) -> Result<bool, MathError> {
    let embedded = parts.embed(spec.d_model, spec.embedding.n_vocab)?;
    // As many rows as the encoder was trained for, until it has run.
    let encoded = parts.graph.input(Parts::F32, [spec.d_model, spec.max_context, 1, 1])?;
    let (inputs, _) = attended(parts, spec, caches, &|_: &Attention| false)?;
    let buckets = parts.graph.input(StorageFormat::I32, [inputs.cells, parts.setting.tokens, 1, 1])?;
    let read = parts.attended_inputs(spec.max_context)?;
    let rows = parts.output_rows()?;
    let encoded = Some((encoded, read));
    let mut stack = Stack { row, d_model: spec.d_model, buckets, inputs, encoded, rows, table: None };
    let mut current = stack.layers(parts, &spec.layers, embedded)?;
    parts.begin_output();
    current = parts.norm(current, row.norm, spec.head.norm.as_ref().is_some_and(|norm| norm.bias), false)?;
    let embedded = current;
    let outputs = spec.head.n_outputs.unwrap_or(spec.embedding.n_vocab);
    current = parts.linear(current, outputs)?;
    parts.finish(&spec.head, embedded, Some(current))?;
    Ok(true)
}

struct Stack<'a> {
    row: &'a Row,
    d_model: u64,
    /// The bucket of each token's distance to each cell.
    buckets: Node,
    inputs: CacheInputs,
    /// The encoder's output, and how it is read.
    encoded: Option<(Node, CacheInputs)>,
    rows: Node,
    /// What each bucket adds to the scores in the first layer.
    table: Option<Node>,
}

impl Stack<'_> {
    fn layers(&mut self, parts: &mut Parts, layers: &[Layer], embedded: Node) -> Result<Node, MathError> {
        let buckets = layers.iter().find_map(|layer| match &layer.mixer {
            Mixer::Attention(attention) if attention.relative_buckets > 0 => Some(attention.relative_buckets),
            _ => None,
        });
        let last = layers.len().saturating_sub(1);
        let steps = parts.layers(layers.iter(), |_| ());
        let mut current = embedded;
        for step in &steps {
            let Some(layer) = layers.get(step.layer) else { continue };
            parts.begin_layer(step, layer);
            current = self.layer(parts, layer, buckets.unwrap_or(0), current, step.layer == last)?;
        }
        Ok(current)
    }

    fn layer(&mut self, parts: &mut Parts, layer: &Layer, buckets: u64, input: Node, last: bool) -> Result<Node, MathError> {
        let (Mixer::Attention(attention), FeedForward::Dense(dense)) = (&layer.mixer, &layer.feed_forward) else {
            return Ok(input);
        };
        let kind = self.row.norm;
        let norm = |parts: &mut Parts, x: Node, name: &str| parts.norm(x, kind, has_norm(layer, name).unwrap_or(false), true);
        let normed = norm(parts, input, "attn_norm")?;
        let bias = self.bias(parts, attention.n_heads, buckets)?;
        let mut mixed = self.attention(parts, attention, &self.inputs, [normed, normed], Some(bias))?;
        let mut residual = input;
        if let (Some((encoded, read)), Some(cross)) = (&self.encoded, &layer.cross_attention) {
            residual = parts.graph.sum(mixed, input)?;
            let normed = norm(parts, residual, "cross_attn_norm")?;
            mixed = self.attention(parts, cross, read, [normed, *encoded], None)?;
        }
        if last {
            mixed = parts.graph.get_rows(mixed, self.rows)?;
            residual = parts.graph.get_rows(residual, self.rows)?;
        }
        let joined = parts.graph.sum(mixed, residual)?;
        let normed = norm(parts, joined, "ffn_norm")?;
        let fed = parts.feed_forward(normed, dense, self.d_model, self.row.activation)?;
        parts.graph.sum(fed, joined)
    }

    /// What relative positions add to the scores of each head (`build_pos_bias`).
    fn bias(&mut self, parts: &mut Parts, heads: u64, buckets: u64) -> Result<Node, MathError> {
        let [cells, tokens, ..] = parts.graph.dims(self.buckets)?;
        let all = parts.graph.reshape(self.buckets, [mul(cells, tokens)?, 1, 1, 1])?;
        // Some files have a table in the first layer alone.
        let table = match self.table {
            Some(table) if parts.n_weights(&[heads, buckets]) == 0 => table,
            _ => parts.weight(&[heads, buckets])?,
        };
        self.table.get_or_insert(table);
        let found = parts.graph.get_rows(table, all)?;
        let found = parts.graph.reshape(found, [heads, cells, tokens, 1])?;
        let turned = parts.graph.permute(found, [2, 0, 1, 3])?;
        parts.graph.cont(turned, [cells, tokens, heads, 1])
    }

    /// Queries of the first, keys and values of the second.
    fn attention(
        &self,
        parts: &mut Parts,
        attention: &Attention,
        inputs: &CacheInputs,
        [x, of]: [Node; 2],
        bias: Option<Node>,
    ) -> Result<Node, MathError> {
        let Attention { n_heads, n_kv_heads, k_head_dim, v_head_dim, .. } = *attention;
        let mut heads = |from: Node, n: u64, head: u64, bias: bool| -> Result<Node, MathError> {
            let flat = parts.linear_bias(from, mul(n, head)?, bias)?;
            let [_, rows, ..] = parts.graph.dims(flat)?;
            parts.graph.reshape(flat, [head, n, rows, 1])
        };
        let q = heads(x, n_heads, k_head_dim, attention.bias.q)?;
        let k = heads(of, n_kv_heads, k_head_dim, attention.bias.k)?;
        let v = heads(of, n_kv_heads, v_head_dim, attention.bias.v)?;
        let attended = parts.attend(
            inputs,
            &Attend {
                q,
                k: Some(k),
                v: Some(v),
                n_kv_heads,
                k_head: k_head_dim,
                v_head: v_head_dim,
                v_width: mul(n_kv_heads, v_head_dim)?,
                sinks: None,
                soft_cap: false,
                bias,
            },
        )?;
        parts.linear_bias(attended, self.d_model, attention.bias.o)
    }
}
