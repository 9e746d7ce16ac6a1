//! The same question with something else asked, and what becomes of the verdict then.

use alloc::format;

use plimsoll_math::device::Device;
use plimsoll_math::error::MathError;
use plimsoll_math::units::Bytes;

use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::fit::Used;
use crate::request::Options;

impl<'a> Question<'a> {
    /// The same question with other options; what the change does not touch is not worked out again.
    ///
    /// # Errors
    /// As [`Question::new`].
    pub fn changed(&self, change: impl FnOnce(&mut Options)) -> Result<Self, PlanError> {
        let mut options = self.options.clone();
        change(&mut options);
        let stored = |options: &Options| {
            (options.engine.clone(), options.quant.clone(), options.prediction_layers, options.draft_mtp, options.assume_generic)
        };
        if stored(&options) != stored(&self.options) {
            return Self::new(self.model, &options);
        }
        let mut changed = self.clone();
        changed.effective = options.effective()?;
        changed.options = options;
        changed.check_served()?;
        Ok(changed)
    }

    /// The same question on `count` devices of one kind, each holding its share as the engine divides a model by itself.
    ///
    /// # Errors
    /// As [`Question::changed`].
    pub fn on_devices(&self, device: &Device, count: u64) -> Result<Self, PlanError> {
        let ranks = self.effective.engine.has_ranks();
        let mut changed = self.changed(|options| {
            options.device = Some(if count == 1 || ranks { device.name.clone() } else { format!("{count}x {}", device.name) });
            options.devices = None;
            options.memory = None;
            options.displays = None;
            options.tensor_split = None;
            if ranks {
                options.tensor_parallel = Some(count);
                options.pipeline_parallel = None;
                options.data_parallel = None;
            }
        })?;
        // A device that is sold with several sizes of memory keeps the one it came with.
        for place in changed.effective.devices.iter_mut().chain([&mut changed.effective.device]) {
            place.total = device.total.clone();
            place.usable = device.usable.clone();
        }
        for place in &mut changed.effective.deployment.devices {
            place.free = device.usable.bytes.get();
        }
        Ok(changed)
    }
}

impl Options {
    /// These options where they say something, `common` elsewhere. What excludes an option of `common` takes its place.
    #[must_use]
    pub fn over(&self, common: &Self) -> Self {
        let mut base = common.clone();
        if self.context.is_some() || self.total_context.is_some() {
            (base.context, base.total_context) = (None, None);
        }
        if self.kv_type.is_some() || self.kv_type_k.is_some() || self.kv_type_v.is_some() {
            (base.kv_type, base.kv_type_k, base.kv_type_v) = (None, None, None);
        }
        if self.device.is_some() || self.memory.is_some() {
            (base.device, base.devices, base.memory, base.displays) = (None, None, None, None);
        }
        if self.memory_utilization.is_some() || self.kv_memory.is_some() {
            (base.memory_utilization, base.kv_memory) = (None, None);
        }
        // Both are plain data: one document laid over the other.
        let document = |options: &Self| match serde_json::to_value(options) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let mut fields = document(&base);
        fields.extend(document(self).into_iter().filter(|(_, value)| !value.is_null()));
        serde_json::from_value(serde_json::Value::Object(fields)).unwrap_or(base)
    }
}

/// Bytes to spare on the fullest device, or missing where most are, by the engine's own account where it keeps one.
///
/// # Errors
/// [`MathError::Overflow`].
pub fn room_of(question: &Question<'_>, planned: &Planned) -> Result<Result<Bytes, Bytes>, PlanError> {
    let short = planned.short_by();
    let room = Used::of(planned)?.headroom(&question.effective.devices)?;
    Ok(match (room, short) {
        (Ok(_), Some(short)) => Err(short),
        (Err(missing), Some(short)) => Err(missing.max(short)),
        (room, None) => room,
    })
}

/// A plan, unless the engine refuses it or has no rule for it.
///
/// # Errors
/// Everything else that is wrong with a question.
pub fn plan_unless_refused(question: &Question<'_>) -> Result<Option<Planned>, PlanError> {
    match question.plan() {
        Ok(planned) => Ok(Some(planned)),
        Err(error) if is_refusal(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an engine says no: the setting is none, and nothing is wrong with the question beyond that.
#[must_use]
pub const fn is_refusal(error: &PlanError) -> bool {
    matches!(error, PlanError::Math(MathError::Refused { .. } | MathError::Unsupported { .. } | MathError::PartialBlock { .. }))
}
