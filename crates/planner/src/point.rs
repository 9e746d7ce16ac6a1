//! One cell of a grid: what a compiled question takes at one context and number of sequences, and whether that fits.

use plimsoll_math::allocation::{PlaceAllocation, TermKind};
use plimsoll_math::deployment::ContextRequest;
use plimsoll_math::error::MathError;
use plimsoll_math::units::{Bytes, add};
use serde::{Deserialize, Serialize};

use crate::change::room_of;
use crate::driver::driver_span;
use crate::engine::{Compiled, Planned, Question};
use crate::error::PlanError;
use crate::fit::{Span, Used, room};

/// Sums over devices and host, upper bounds taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parts {
    /// Model weights.
    pub weights: Bytes,
    /// Keys and values.
    pub kv_cache: Bytes,
    /// Recurrent state.
    pub recurrent_state: Bytes,
    /// Activations.
    pub compute: Bytes,
    /// Logits and embeddings.
    pub output: Bytes,
    /// What the driver keeps.
    pub driver_context: Bytes,
    /// Everything else.
    pub other: Bytes,
}

/// What a question takes at one context and number of sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Tokens per sequence that the engine provides after its own rounding.
    pub context_per_sequence: u64,
    /// On all devices together, upper bounds taken.
    pub devices: Bytes,
    /// The same with lower bounds.
    pub devices_low: Bytes,
    /// On the host, upper bounds taken.
    pub host: Bytes,
    /// Bytes left on the fullest device, or missing on the one that misses most.
    pub room: Result<Bytes, Bytes>,
    /// By component.
    pub parts: Parts,
}

impl Point {
    /// Whether it fits.
    #[must_use]
    pub const fn fits(&self) -> bool {
        self.room.is_ok()
    }

    /// The figures of a plan.
    ///
    /// # Errors
    /// [`MathError::Overflow`].
    pub fn of(question: &Question<'_>, planned: &Planned) -> Result<Self, PlanError> {
        let allocation = &planned.allocation;
        let mut parts = Parts::default();
        for term in allocation.devices.iter().chain([&allocation.host]).flat_map(|place: &PlaceAllocation| &place.terms) {
            let part = match term.component {
                TermKind::Weights => &mut parts.weights,
                TermKind::KvCache => &mut parts.kv_cache,
                TermKind::RecurrentState => &mut parts.recurrent_state,
                TermKind::Compute => &mut parts.compute,
                TermKind::Output => &mut parts.output,
                TermKind::DriverContext => &mut parts.driver_context,
                _ => &mut parts.other,
            };
            *part = part.plus(term.bytes)?;
        }
        let used = Used::of(planned)?;
        Ok(Self {
            context_per_sequence: planned.resolved.context_per_sequence,
            devices: used.on_devices()?,
            devices_low: Bytes::sum(used.devices.iter().map(|span| span.low))?,
            host: used.host.high,
            room: room_of(question, planned)?,
            parts,
        })
    }
}

impl Compiled<'_> {
    /// The question as it was compiled.
    #[must_use]
    pub const fn question(&self) -> &Question<'_> {
        match self {
            Self::LlamaCpp { question, .. } | Self::Explained(question) => question,
        }
    }

    /// What `sequences` sequences of `context` tokens take.
    ///
    /// # Errors
    /// [`PlanError::Math`] when the engine refuses, or a size leaves the exact range.
    pub fn point(&self, context: u64, sequences: u64) -> Result<Point, PlanError> {
        let context = ContextRequest::PerSequence(context);
        let (estimator, question) = match self {
            Self::LlamaCpp { estimator, question } => (estimator, question),
            Self::Explained(question) => {
                let mut probe = question.clone();
                probe.effective.deployment.context = context;
                probe.effective.deployment.sequences = sequences;
                return Point::of(&probe, &probe.plan()?);
            }
        };
        let estimate = estimator.bytes(context, sequences)?;
        let deployment = &question.effective.deployment;
        let alone = deployment.devices.is_empty();
        let driver = driver_span(deployment.backend(), estimate.resolved.n_ubatch)?;
        let span = |high: u64, compute: plimsoll_math::engine::llama_cpp::compute::Bounds| -> Result<Span, MathError> {
            let low = high.saturating_sub(compute.high).saturating_add(compute.low);
            Ok(Span { high: Bytes::new(high)?, low: Bytes::new(low)? })
        };
        let host = span(estimate.host, estimate.host_compute)?;
        let device = if alone { host } else { span(estimate.device, estimate.device_compute)?.plus(driver)? };
        let host = if alone { Span::default() } else { host };
        let compute = add(estimate.device_compute.high, estimate.host_compute.high)?;
        let rest = add(add(estimate.kv_cache, estimate.recurrent_state)?, add(estimate.output, compute)?)?;
        let weights = add(estimate.device, estimate.host)?.saturating_sub(rest);
        Ok(Point {
            context_per_sequence: estimate.resolved.n_ctx_seq,
            devices: device.high,
            devices_low: device.low,
            host: host.high,
            room: room(&question.effective.device, device.high, host.high),
            parts: Parts {
                weights: Bytes::new(weights)?,
                kv_cache: Bytes::new(estimate.kv_cache)?,
                recurrent_state: Bytes::new(estimate.recurrent_state)?,
                compute: Bytes::new(compute)?,
                output: Bytes::new(estimate.output)?,
                driver_context: if alone { Bytes::ZERO } else { driver.high },
                other: Bytes::ZERO,
            },
        })
    }
}
