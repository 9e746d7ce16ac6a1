//! The smallest single changes that would make it fit, each planned before it is offered.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::allocation::TermKind;
use plimsoll_math::device::{Device, DeviceKind};
use plimsoll_math::engine::llama_cpp::layout::MAX_DEVICES;
use plimsoll_math::format::StorageFormat;
use plimsoll_math::spec::FeedForward;
use plimsoll_math::units::Bytes;

use crate::change::{plan_unless_refused, room_of};
use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::fit::Used;
use crate::limits;
use crate::request::{Engine, Options};
use crate::response::Change;
use crate::size::{grouped, short};

/// File types that give up least first.
const SMALLER: [&str; 8] = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "IQ2_XXS"];

/// What was asked, and the changes found so far.
struct Changes<'q, 'a> {
    question: &'q Question<'a>,
    found: Vec<Change>,
}

/// What a changed question takes on devices, where it fits.
fn if_fits(question: &Question<'_>) -> Result<Option<Bytes>, PlanError> {
    let Some(planned) = plan_unless_refused(question)? else { return Ok(None) };
    Ok(match room_of(question, &planned)? {
        Ok(_) => Some(Used::of(&planned)?.on_devices()?),
        Err(_) => None,
    })
}

fn words(options: &[&str]) -> Vec<String> {
    options.iter().map(ToString::to_string).collect()
}

impl<'a> Changes<'_, 'a> {
    /// The question with other options; `None` where they are none for this engine.
    fn with(&self, change: impl FnOnce(&mut Options)) -> Result<Option<Question<'a>>, PlanError> {
        match self.question.changed(change) {
            Ok(question) => Ok(Some(question)),
            Err(PlanError::Request { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps the change if it fits.
    fn offer(&mut self, question: Option<Question<'_>>, change: String, options: Vec<String>) -> Result<bool, PlanError> {
        let Some(used) = question.as_ref().map(if_fits).transpose()?.flatten() else { return Ok(false) };
        self.found.push(Change { change, options, used });
        Ok(true)
    }

    /// Cache formats with fewer bytes, the largest first.
    fn cache(&mut self, planned: &Planned) -> Result<(), PlanError> {
        if planned.allocation.total(TermKind::KvCache)? == Bytes::ZERO {
            return Ok(());
        }
        let narrower: Vec<&str> = match self.question.effective.engine {
            Engine::LlamaCpp(_) | Engine::Ollama => {
                let each = |format: StorageFormat| format.block_bytes().saturating_mul(32) / format.block_len();
                let now = each(self.question.effective.deployment.kv_type_k);
                [StorageFormat::Q8_0, StorageFormat::Q5_1, StorageFormat::Q4_0]
                    .into_iter()
                    .filter(|format| each(*format) < now)
                    .map(StorageFormat::name)
                    .collect()
            }
            _ if self.question.options.kv_type.is_some() => Vec::new(),
            engine if engine.has_ranks() => vec!["fp8"],
            Engine::Mlx => vec!["8bit", "4bit"],
            _ => Vec::new(),
        };
        for name in narrower {
            let changed = self
                .with(|options| (options.kv_type, options.kv_type_k, options.kv_type_v) = (Some(name.to_string()), None, None))?;
            if self.offer(changed, format!("cache in {name}"), words(&["--kv-type", name]))? {
                break;
            }
        }
        Ok(())
    }

    fn context(&mut self, planned: &Planned) -> Result<(), PlanError> {
        let Some(limit) = limits::max_context(self.question)? else { return Ok(()) };
        if limit.value == 0 || limit.value >= planned.resolved.context_per_sequence {
            return Ok(());
        }
        let changed = self.with(|options| (options.context, options.total_context) = (Some(limit.value), None))?;
        let options = words(&["--context", &limit.value.to_string()]);
        self.offer(changed, format!("context of {}", grouped(limit.value)), options).map(|_| ())
    }

    fn sequences(&mut self) -> Result<(), PlanError> {
        let sequences = self.question.effective.deployment.sequences;
        if sequences < 2 {
            return Ok(());
        }
        let Some(limit) = limits::max_sequences(self.question)? else { return Ok(()) };
        if limit.value == 0 || limit.value >= sequences {
            return Ok(());
        }
        let changed = self.with(|options| options.sequences = Some(limit.value))?;
        let name = if limit.value == 1 { "1 sequence".to_string() } else { format!("{} sequences", limit.value) };
        self.offer(changed, name, words(&["--sequences", &limit.value.to_string()])).map(|_| ())
    }

    fn quantization(&mut self) -> Result<(), PlanError> {
        if self.question.effective.engine == Engine::Mlx {
            return self.fewer_bits();
        }
        if !self.question.can_requantize() {
            return Ok(());
        }
        let now = self.question.weight_bytes()?;
        for file_type in SMALLER {
            let Ok(changed) = self.question.with_quant(file_type) else { continue };
            if changed.weight_bytes()? >= now {
                continue;
            }
            if self.offer(Some(changed), format!("weights in {file_type}"), words(&["--quant", file_type]))? {
                break;
            }
        }
        Ok(())
    }

    /// MLX-LM's converter stores matrices in groups of few bits, where the source is not quantized already.
    fn fewer_bits(&mut self) -> Result<(), PlanError> {
        if self.question.options.quant.is_some() || self.question.model.quantization.is_some() {
            return Ok(());
        }
        for name in ["8bit", "6bit", "4bit", "3bit"] {
            let changed = self.with(|options| options.quant = Some(name.to_string()))?;
            if self.offer(changed, format!("weights in {name}"), words(&["--quant", name]))? {
                break;
            }
        }
        Ok(())
    }

    /// The least part of the model that has to go to the host: routed experts, or whole layers.
    fn host(&mut self) -> Result<(), PlanError> {
        let deployment = &self.question.effective.deployment;
        let asked = &self.question.options;
        if !matches!(self.question.effective.engine, Engine::LlamaCpp(_))
            || self.question.model.generic
            || deployment.devices.is_empty()
            || asked.override_tensor.is_some()
        {
            return Ok(());
        }
        let layers = u64::try_from(self.question.model.spec.layers.len()).unwrap_or(0);
        let routes = self.question.model.spec.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Moe(_)));
        if routes && asked.cpu_moe != Some(true) && asked.n_cpu_moe.is_none() {
            let with = |changes: &Self, count: u64| changes.with(|options| options.n_cpu_moe = Some(count));
            if let Some(count) = self.least(layers, with)? {
                let name = format!("experts of {count} layers on the host");
                self.offer(with(self, count)?, name, words(&["--n-cpu-moe", &count.to_string()]))?;
            }
        }
        if asked.gpu_layers.is_none() {
            let most = layers.saturating_add(1);
            let with = |changes: &Self, left: u64| changes.with(|options| options.gpu_layers = Some(most.saturating_sub(left)));
            if let Some(left) = self.least(most, with)? {
                let kept = most.saturating_sub(left);
                let name = format!("{left} of {most} layers on the host");
                self.offer(with(self, left)?, name, words(&["--gpu-layers", &kept.to_string()]))?;
            }
        }
        Ok(())
    }

    /// The smallest number in `1..=most` with which it fits: what fits with one on the host fits with more.
    fn least(
        &self,
        most: u64,
        with: impl Fn(&Self, u64) -> Result<Option<Question<'a>>, PlanError>,
    ) -> Result<Option<u64>, PlanError> {
        let fits = |count: u64| -> Result<bool, PlanError> {
            Ok(with(self, count)?.as_ref().map(if_fits).transpose()?.flatten().is_some())
        };
        if most == 0 || !fits(most)? {
            return Ok(None);
        }
        let (mut bad, mut good) = (0, most);
        while good - bad > 1 {
            let middle = bad + (good - bad) / 2;
            if fits(middle)? { good = middle } else { bad = middle }
        }
        Ok(Some(good))
    }

    /// One more device like the last, or the fewest more that an engine can divide a model among.
    fn one_more(&mut self) -> Result<(), PlanError> {
        let devices = self.question.effective.devices.clone();
        let Some(last) = devices.last().filter(|device| device.kind == DeviceKind::Gpu) else { return Ok(()) };
        let asked = &self.question.options;
        if self.question.effective.engine.has_ranks() {
            let now = asked.tensor_parallel.unwrap_or(1);
            if asked.devices.is_some() || devices.len() != usize::try_from(now).unwrap_or(0) {
                return Ok(());
            }
            for count in [now.saturating_add(1), now.saturating_mul(2), now.saturating_mul(4)] {
                let changed = self.with(|options| options.tensor_parallel = Some(count))?;
                let name = format!("{count} x {} in tensor parallel", last.name);
                if self.offer(changed, name, words(&["--tensor-parallel", &count.to_string()]))? {
                    break;
                }
            }
            return Ok(());
        }
        // Shares that were asked for say nothing about another device.
        let Some(first) = asked.device.clone().filter(|_| devices.len() < MAX_DEVICES && asked.tensor_split.is_none()) else {
            return Ok(());
        };
        // Alike devices are written as a name and a number.
        let alike = devices.iter().all(|device| device.name == last.name) && asked.devices.is_none();
        if let (true, Ok((_, name))) = (alike, Device::count_of(&first)) {
            let many = format!("{name} x{}", devices.len() + 1);
            let changed = self.with(|options| options.device = Some(many.clone()))?;
            return self.offer(changed, format!("one more {}", last.name), words(&["--device", &many])).map(|_| ());
        }
        let mut more = asked.devices.clone().unwrap_or_default();
        more.push(last.name.clone());
        let mut options = words(&["--device", &first]);
        for name in &more {
            options.extend(words(&["--device", name]));
        }
        let changed = self.with(|options| options.devices = Some(more))?;
        self.offer(changed, format!("one more {}", last.name), options).map(|_| ())
    }

    /// The smallest larger device of its kind.
    fn larger(&mut self) -> Result<(), PlanError> {
        let device = &self.question.effective.device;
        if device.kind != DeviceKind::Gpu || self.question.effective.devices.len() != 1 {
            return Ok(());
        }
        let mut larger: Vec<Device> = Device::all()?
            .into_iter()
            .filter(|other| {
                other.driver == device.driver && other.unified == device.unified && other.usable.bytes > device.usable.bytes
            })
            .collect();
        larger.sort_by_key(|other| other.usable.bytes);
        for other in larger {
            let changed = match self.question.on_devices(&other, 1) {
                Ok(changed) => Some(changed),
                Err(PlanError::Request { .. }) => None,
                Err(error) => return Err(error),
            };
            let name = format!("{} with {}", other.name, short(other.usable.bytes.get()));
            if self.offer(changed, name, words(&["--device", &other.name]))? {
                break;
            }
        }
        Ok(())
    }
}

/// The smallest change of each kind that would make it fit, those that give up least first.
///
/// # Errors
/// [`PlanError`] for what is wrong with the question itself.
pub fn closest(question: &Question<'_>, planned: &Planned) -> Result<Vec<Change>, PlanError> {
    let mut changes = Changes { question, found: Vec::new() };
    changes.cache(planned)?;
    changes.context(planned)?;
    changes.sequences()?;
    changes.quantization()?;
    changes.host()?;
    changes.one_more()?;
    changes.larger()?;
    Ok(changes.found)
}
