//! Recurrent state in a graph: how it is read and written (`src/llama-graph.cpp:build_rs`), Mamba
//! (`src/models/mamba-base.cpp`) and short convolutions (`src/models/lfm2.cpp`).

use super::op::Op;
use super::ops::Node;
use super::parts::{NormKind, Parts};
use super::scales::Matrix;
use crate::deployment::Backend;
use crate::error::MathError;
use crate::format::StorageFormat;
use crate::spec::{Mamba1, Mamba2, ShortConv};
use crate::units::{add, mul};

/// Which rows of state the sequences of the micro-batch continue, and which are carried along.
#[derive(Debug, Clone, Copy)]
pub(super) struct StateInputs {
    /// All of them.
    all: Node,
    /// Those that the micro-batch continues.
    main: Node,
    /// Those that are carried along; all but the first where all are gathered at once.
    extra: Node,
}

/// The state of one layer: a cache, and the elements of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    pub(super) cache: Node,
    pub(super) width: u64,
}

impl Parts {
    /// The input that chooses rows of state (`build_rs_inp`).
    pub(super) fn state_inputs(&mut self) -> Result<StateInputs, MathError> {
        let (sequences, states) = (self.setting.sequences, self.setting.states);
        let rows = self.graph.input(StorageFormat::I32, [states, 1, 1, 1])?;
        let main = self.graph.view_1d(rows, sequences)?;
        let first = if self.setting.gathers_states { 1 } else { sequences };
        let extra = self.graph.view_1d(rows, states.saturating_sub(first))?;
        Ok(StateInputs { all: rows, main, extra })
    }

    /// The state of a layer, `width` elements a row.
    pub(super) fn state(&mut self, width: u64) -> Result<State, MathError> {
        let cache = self.graph.cache(Self::F32, [width, self.setting.state_rows()?, 1, 1], self.setting.cache_device)?;
        Ok(State { cache, width })
    }

    /// Rows of state after the row for new sequences has been cleared.
    fn cleared(&mut self, state: State) -> Result<Node, MathError> {
        let rows = self.graph.reshape(state.cache, [state.width, self.setting.state_rows()?, 1, 1])?;
        let zero = self.graph.view_1d(rows, state.width)?;
        let zeroed = self.graph.in_place(zero)?;
        self.graph.expand(zeroed)?;
        Ok(rows)
    }

    /// Computes what continues the state, then carries the other rows along: `gathered` holds them if they were gathered
    /// with the rest.
    fn carry(
        &mut self,
        inputs: &StateInputs,
        state: State,
        rows: Node,
        continued: Node,
        gathered: Option<Node>,
    ) -> Result<(), MathError> {
        let others = self.setting.states.saturating_sub(self.setting.sequences);
        let row = mul(4, state.width)?;
        self.graph.expand(continued)?;
        let gathered = match gathered {
            Some(gathered) => gathered,
            None => self.graph.get_rows(rows, inputs.extra)?,
        };
        let carried =
            if self.setting.gathers_states { self.graph.view_2d(gathered, state.width, others, row)? } else { gathered };
        let target = self.graph.view_2d(state.cache, state.width, others, row)?;
        let stored = self.graph.copy(carried, target)?;
        self.graph.expand(stored)
    }

    /// The state of the micro-batch's sequences, `[width, sequences]`.
    pub(super) fn load(&mut self, inputs: &StateInputs, state: State) -> Result<Node, MathError> {
        let rows = self.cleared(state)?;
        if !self.setting.gathers_states {
            let loaded = self.graph.get_rows(rows, inputs.main)?;
            self.carry(inputs, state, rows, loaded, None)?;
            return Ok(loaded);
        }
        let gathered = self.graph.get_rows(rows, inputs.all)?;
        let loaded = self.graph.view_2d(gathered, state.width, self.setting.sequences, mul(4, state.width)?)?;
        self.carry(inputs, state, rows, loaded, Some(gathered))?;
        Ok(loaded)
    }

    /// Puts `x`, `[channels, tokens, sequences]`, behind the last tokens of each sequence and keeps the new last ones:
    /// `[taps - 1 + tokens, channels, sequences]`.
    pub(super) fn window(&mut self, inputs: &StateInputs, taps: u64, x: Node) -> Result<Node, MathError> {
        self.window_kept(inputs, taps, x, false)
    }
    /// A [`Self::window`] whose last tokens are kept as one vector of all sequences, or as a row of each.
    fn window_kept(&mut self, inputs: &StateInputs, taps: u64, x: Node, as_vector: bool) -> Result<Node, MathError> {
        let [channels, _, sequences, _] = self.graph.dims(x)?;
        let kept = taps.saturating_sub(1);
        let state = self.state(mul(kept, channels)?)?;
        let loaded = self.load(inputs, state)?;
        let before = self.graph.reshape(loaded, [kept, channels, sequences, 1])?;
        let now = self.graph.transpose(x)?;
        let joined = self.graph.concat(before, now, 0)?;
        let [_, s1, s2, _] = self.graph.strides(joined)?;
        for _ in 0..self.setting.snapshots {
            let last = self.graph.view_3d(joined, [kept, channels, sequences], s1, s2)?;
            let target = if as_vector {
                self.graph.view_1d(state.cache, mul(state.width, sequences)?)?
            } else {
                self.graph.view_2d(state.cache, state.width, sequences, mul(4, state.width)?)?
            };
            let stored = self.graph.copy(last, target)?;
            self.graph.expand(stored)?;
        }
        Ok(joined)
    }

    /// The convolution over a [`Self::window`]: `[channels, tokens, sequences]`.
    pub(super) fn convolve(&mut self, window: Node, taps: u64) -> Result<Node, MathError> {
        let [_, channels, ..] = self.graph.dims(window)?;
        let kernel = self.kernel(channels, taps)?;
        self.convolve_with(window, kernel)
    }
    /// The convolution with given weights.
    pub(super) fn convolve_with(&mut self, window: Node, kernel: Node) -> Result<Node, MathError> {
        let ([length, channels, sequences, _], [taps, ..]) = (self.graph.dims(window)?, self.graph.dims(kernel)?);
        let tokens = length.saturating_sub(taps.saturating_sub(1));
        self.graph.result(Op::SsmConv, Self::F32, [channels, tokens, sequences, 1], &[window, kernel])
    }
    /// The weights of a convolution.
    pub(super) fn kernel(&mut self, channels: u64, taps: u64) -> Result<Node, MathError> {
        // CUDA's kernel works on 128 channels at a time; without it the loader keeps the weights on the host, and the
        // operation follows them (`ggml-cuda.cu:ggml_backend_cuda_device_supports_op`).
        let backend = self.kernel_backend(channels.is_multiple_of(128));
        self.stored_weight([taps, channels, 1, 1], backend)
    }

    /// Mamba 1 (`build_mamba_layer`) of `x`, `[d_model, tokens]`.
    pub(super) fn mamba1(&mut self, mamba: &Mamba1, inputs: &StateInputs, x: Node) -> Result<Node, MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let Mamba1 { d_inner, d_state, d_conv, dt_rank, .. } = *mamba;
        let [d_model, ..] = self.graph.dims(x)?;
        let state = self.state(mul(d_state, d_inner)?)?;
        let input = self.graph.reshape(x, [d_model, tokens, sequences, 1])?;
        let both = self.project(input, mul(2, d_inner)?, Matrix::StateInput, false)?;
        let [_, s1, s2, _] = self.graph.strides(both)?;
        let half = self.graph.view_3d(both, [d_inner, tokens, sequences], s1, s2)?;
        let z = self.graph.view_3d(both, [d_inner, tokens, sequences], s1, s2)?;
        let joined = self.window_kept(inputs, d_conv, half, true)?;
        let convolved = self.convolve(joined, d_conv)?;
        let biased = self.bias(convolved)?;
        let channels = self.unary(biased)?;

        let step_b_c = self.linear(channels, add(dt_rank, mul(2, d_state)?)?)?;
        let [_, s1, s2, _] = self.graph.strides(step_b_c)?;
        let mut dt = self.graph.view_3d(step_b_c, [dt_rank, tokens, sequences], s1, s2)?;
        let group = [d_state, 1, tokens, sequences];
        let mut b = self.graph.view(step_b_c, group, [mul(4, d_state)?, s1, s2])?;
        let mut c = self.graph.view(step_b_c, group, [mul(4, d_state)?, s1, s2])?;
        if mamba.bare_dt_b_c_norm && !mamba.dt_b_c_norm {
            dt = self.bare_norm(dt, NormKind::Rms)?;
            b = self.bare_norm(b, NormKind::Rms)?;
            c = self.bare_norm(c, NormKind::Rms)?;
        } else if mamba.dt_b_c_norm {
            dt = self.norm(dt, NormKind::Rms, false, true)?;
            b = self.norm(b, NormKind::Rms, false, true)?;
            c = self.norm(c, NormKind::Rms, false, true)?;
        } else {
            dt = self.graph.cont(dt, [dt_rank, tokens, sequences, 1])?;
        }
        let steps = self.linear(dt, d_inner)?;
        let steps = self.bias(steps)?;
        let heads = self.graph.reshape(channels, [1, d_inner, tokens, sequences])?;
        let supported = d_state == 16 && d_inner.is_multiple_of(128);
        let decay = self.stored_weight([d_state, d_inner, 1, 1], self.kernel_backend(supported))?;
        let rows = self.cleared(state)?;
        let states = self.graph.reshape(rows, [d_state, 1, d_inner, self.setting.state_rows()?])?;
        let scanned = self.scan(states, heads, steps, decay, b, c, inputs)?;
        self.carry(inputs, state, rows, scanned, None)?;
        let updated = self.graph.view_1d(scanned, mul(state.width, sequences)?)?;
        let target = self.graph.view_1d(state.cache, mul(state.width, sequences)?)?;
        let stored = self.graph.copy(updated, target)?;
        self.graph.expand(stored)?;
        let [_, _, h2, h3] = self.graph.strides(heads)?;
        let y = self.graph.view_3d(scanned, [d_inner, tokens, sequences], h2, h3)?;
        let skip_weight = self.weight(&[d_inner])?;
        let skip = self.graph.product(channels, skip_weight)?;
        let y = self.graph.sum(y, skip)?;
        let z = self.graph.cont(z, [d_inner, tokens, sequences, 1])?;
        let gated = self.graph.glu(z, y)?;
        let out = self.project(gated, d_model, Matrix::StateOutput, false)?;
        self.graph.reshape(out, [d_model, mul(tokens, sequences)?, 1, 1])
    }

    /// The device, or the processor for a kernel that CUDA does not have; Metal has all of them
    /// (`ggml-metal-device.m:ggml_metal_device_supports_op`).
    fn kernel_backend(&self, has_cuda_kernel: bool) -> usize {
        let on_cuda = matches!(self.places.backends.get(self.setting.device), Some(Backend::Cuda { .. }));
        if has_cuda_kernel || !on_cuda { self.setting.device } else { self.setting.host }
    }

    /// The scan of Mamba: its output and the new states in one row (`ggml.c:ggml_ssm_scan`).
    #[expect(clippy::too_many_arguments, reason = "the engine's operation reads as many tensors")]
    fn scan(
        &mut self,
        states: Node,
        x: Node,
        dt: Node,
        decay: Node,
        b: Node,
        c: Node,
        inputs: &StateInputs,
    ) -> Result<Node, MathError> {
        let [s0, s1, s2, _] = self.graph.dims(states)?;
        let elements = self.graph.dims(x)?.iter().try_fold(1, |product, n| mul(product, *n))?;
        let state = mul(mul(s0, s1)?, mul(s2, mul(self.setting.sequences, self.setting.snapshots)?)?)?;
        let sources = [states, x, dt, decay, b, c, inputs.main];
        self.graph.result(Op::SsmScan, Self::F32, [add(elements, state)?, 1, 1, 1], &sources)
    }

    /// Mamba 2 (`build_mamba2_layer`) of `x`, `[d_model, tokens]`.
    pub(super) fn mamba2(&mut self, mamba: &Mamba2, inputs: &StateInputs, x: Node) -> Result<Node, MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let Mamba2 { d_inner, d_state, d_conv, n_heads, n_groups, .. } = *mamba;
        let [d_model, all_tokens, ..] = self.graph.dims(x)?;
        let head_dim = d_inner / n_heads.max(1);
        let width = add(d_inner, mul(2, mul(n_groups, d_state)?)?)?;
        let all = add(add(d_inner, width)?, n_heads)?;
        let projected = self.project(x, all, Matrix::StateInput, false)?;
        let projected = self.graph.reshape(projected, [all, tokens, sequences, 1])?;
        let [_, s1, s2, _] = self.graph.strides(projected)?;
        let head_row = mul(4, head_dim)?;
        let z = self.graph.view(projected, [head_dim, n_heads, tokens, sequences], [head_row, s1, s2])?;
        let mixed = self.graph.view_3d(projected, [width, tokens, sequences], s1, s2)?;
        let dt = self.graph.view_3d(projected, [n_heads, tokens, sequences], s1, s2)?;
        let joined = self.window(inputs, d_conv, mixed)?;
        let convolved = self.convolve(joined, d_conv)?;
        let biased = self.bias(convolved)?;
        let channels = self.unary(biased)?;

        let [_, s1, s2, _] = self.graph.strides(channels)?;
        let heads = self.graph.view(channels, [head_dim, n_heads, tokens, sequences], [head_row, s1, s2])?;
        let group = [d_state, n_groups, tokens, sequences];
        let b = self.graph.view(channels, group, [mul(4, d_state)?, s1, s2])?;
        let c = self.graph.view(channels, group, [mul(4, d_state)?, s1, s2])?;
        let dt = self.graph.cont(dt, [n_heads, tokens, sequences, 1])?;
        let steps = self.bias(dt)?;
        let supported = matches!(d_state, 96 | 128 | 256) && head_dim.is_multiple_of(16);
        let decay = self.stored_weight([1, n_heads, 1, 1], self.kernel_backend(supported))?;
        let state = self.state(mul(d_state, d_inner)?)?;
        let rows = self.cleared(state)?;
        let states = self.graph.reshape(rows, [d_state, head_dim, n_heads, self.setting.state_rows()?])?;
        let scanned = self.scan(states, heads, steps, decay, b, c, inputs)?;
        self.carry(inputs, state, rows, scanned, None)?;
        self.store_snapshots(state, scanned)?;
        let [_, h1, ..] = self.graph.strides(heads)?;
        let token = mul(n_heads, h1)?;
        let y = self.graph.view(scanned, [head_dim, n_heads, tokens, sequences], [h1, token, mul(tokens, token)?])?;
        let skip_weight = self.weight(&[1, n_heads])?;
        let skip = self.graph.product(heads, skip_weight)?;
        let y = self.graph.sum(y, skip)?;
        let z = self.graph.cont(z, [head_dim, n_heads, tokens, sequences])?;
        let mut y = self.graph.glu(z, y)?;
        if mamba.norm {
            let group = d_inner / n_groups.max(1);
            let grouped = self.graph.reshape(y, [group, n_groups, tokens, sequences])?;
            let normed = self.bare_norm(grouped, NormKind::Rms)?;
            self.pin_in_layer(normed)?;
            let weights = self.weight(&[group, n_groups])?;
            y = self.graph.product(normed, weights)?;
        }
        let flat = self.graph.reshape(y, [d_inner, all_tokens, 1, 1])?;
        self.project(flat, d_model, Matrix::StateOutput, false)
    }

    /// Mamba 2 whose steps, B and C come from a projection of low rank, each with a norm (`plamo2.cpp`), of `x`,
    /// `[d_model, tokens]`.
    pub(super) fn mamba2_with_ranks(
        &mut self,
        mamba: &Mamba2,
        dt_rank: u64,
        inputs: &StateInputs,
        x: Node,
    ) -> Result<Node, MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let Mamba2 { d_inner, d_state, d_conv, n_heads, .. } = *mamba;
        let [d_model, all_tokens, ..] = self.graph.dims(x)?;
        let head_dim = d_inner / n_heads.max(1);
        let by_head = [head_dim, n_heads, tokens, sequences];
        let input = self.graph.reshape(x, [d_model, tokens, sequences, 1])?;
        let both = self.project(input, mul(2, d_inner)?, Matrix::StateInput, false)?;
        let both = self.graph.permute(both, [0, 2, 1, 3])?;
        let both = self.graph.cont(both, [mul(2, head_dim)?, n_heads, tokens, sequences])?;
        let [_, s1, s2, s3] = self.graph.strides(both)?;
        let mixed = self.graph.view(both, by_head, [s1, s2, s3])?;
        let mixed = self.graph.cont(mixed, [d_inner, tokens, sequences, 1])?;
        let z = self.graph.view(both, by_head, [s1, s2, s3])?;
        let joined = self.window_kept(inputs, d_conv, mixed, true)?;
        let convolved = self.convolve(joined, d_conv)?;
        let channels = self.unary(convolved)?;

        let step_b_c = self.linear(channels, add(dt_rank, mul(2, d_state)?)?)?;
        let [_, s1, s2, _] = self.graph.strides(step_b_c)?;
        let mut parts = [step_b_c; 3];
        for (part, width) in parts.iter_mut().zip([d_state, d_state, dt_rank]) {
            let own = self.graph.view_3d(step_b_c, [width, tokens, sequences], s1, s2)?;
            *part = self.norm(own, NormKind::Rms, false, true)?;
        }
        let [b, c, dt] = parts;
        let steps = self.linear(dt, n_heads)?;
        let steps = self.bias(steps)?;
        // The loader takes the vector for Mamba 1's matrix, for which CUDA has no kernel, and keeps it on the host
        // (`llama-model-loader.cpp:weight_buft_supported`).
        let decay = self.stored_weight([n_heads, 1, 1, 1], self.kernel_backend(false))?;
        let decay = self.graph.reshape(decay, [1, n_heads, 1, 1])?;
        let (head, row) = (mul(4, head_dim)?, mul(4, d_inner)?);
        let heads = self.graph.view(channels, by_head, [head, row, mul(row, tokens)?])?;
        let mut groups = [b, c];
        for group in &mut groups {
            let [_, s1, s2, _] = self.graph.strides(*group)?;
            *group = self.graph.view(*group, [d_state, 1, tokens, sequences], [mul(4, d_state)?, s1, s2])?;
        }
        let [b, c] = groups;
        let state = self.state(mul(d_state, d_inner)?)?;
        let rows = self.cleared(state)?;
        let states = self.graph.reshape(rows, [d_state, head_dim, n_heads, self.setting.state_rows()?])?;
        let scanned = self.scan(states, heads, steps, decay, b, c, inputs)?;
        self.carry(inputs, state, rows, scanned, None)?;
        let updated = self.graph.view_1d(scanned, mul(state.width, sequences)?)?;
        let target = self.graph.view_1d(state.cache, mul(state.width, sequences)?)?;
        let stored = self.graph.copy(updated, target)?;
        self.graph.expand(stored)?;
        let y = self.graph.view(scanned, by_head, [head, row, mul(row, tokens)?])?;
        let skip = self.weight(&[n_heads])?;
        let skip = self.graph.reshape(skip, [1, n_heads, 1, 1])?;
        let skipped = self.graph.product(heads, skip)?;
        let y = self.graph.sum(y, skipped)?;
        let z = self.graph.cont(z, by_head)?;
        let y = self.graph.glu(z, y)?;
        let [_, _, s2, s3] = self.graph.strides(y)?;
        let y = self.graph.view_3d(y, [d_inner, tokens, sequences], s2, s3)?;
        let out = self.project(y, d_model, Matrix::StateOutput, false)?;
        self.graph.reshape(out, [d_model, all_tokens, 1, 1])
    }

    /// A gated short convolution (`lfm2.cpp:build_shortconv_block`) of `x`, `[d_model, tokens]`.
    pub(super) fn short_convolution(&mut self, conv: &ShortConv, inputs: &StateInputs, x: Node) -> Result<Node, MathError> {
        let (sequences, tokens) = (self.setting.sequences, self.setting.sequence_tokens());
        let [d_model, all_tokens, ..] = self.graph.dims(x)?;
        let by_sequence = |width| [width, tokens, sequences, 1];
        let flat = self.setting.flat_projections;
        let input = if flat { x } else { self.graph.reshape(x, by_sequence(d_model))? };
        let mut three = self.linear(input, mul(3, d_model)?)?;
        if flat {
            three = self.graph.reshape(three, by_sequence(mul(3, d_model)?))?;
        }
        let [_, s1, s2, _] = self.graph.strides(three)?;
        let part = [d_model, tokens, sequences];
        let b = self.graph.view_3d(three, part, s1, s2)?;
        let c = self.graph.view_3d(three, part, s1, s2)?;
        let x = self.graph.view_3d(three, part, s1, s2)?;
        let product = self.graph.product(b, x)?;
        let joined = self.window(inputs, conv.d_conv, product)?;
        let convolved = self.convolve(joined, conv.d_conv)?;
        let gated = self.graph.product(c, convolved)?;
        let all = [d_model, all_tokens, 1, 1];
        if flat {
            let gated = self.graph.reshape(gated, all)?;
            return self.linear(gated, d_model);
        }
        let out = self.linear(gated, d_model)?;
        self.graph.reshape(out, all)
    }
}
