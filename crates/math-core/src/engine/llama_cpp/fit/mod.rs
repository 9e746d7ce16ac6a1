//! What `llama-server --fit` (on by default) makes of a request: context, layers on devices, shares and overrides that leave
//! a margin free on every device (`common/fit.cpp:common_fit_params`).
//!
//! The engine measures candidate settings with its own no-allocation run and interpolates between them; we measure with
//! [`allocate`](super::allocate)'s figures. Wherever a measurement is a bound and not exact, the choice may differ from the
//! engine's: [`Choice::is_exact`] says so.

mod measure;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use measure::{Measured, Measuring};

use super::build::Build;
use crate::deployment::{ContextRequest, Deployment, Location, Share, SplitMode, TensorOverride};
use crate::error::MathError;
use crate::spec::{FeedForward, ModelSpec};
use crate::tensor::TensorTable;

/// Overrides that the engine has room for, the closing one included (`llama.cpp:llama_max_tensor_buft_overrides`).
const MAX_OVERRIDES: usize = 4096;

/// What the engine is asked to keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    /// Bytes to leave free on every device (`--fit-target`).
    pub margin: u64,
    /// Bytes of a multimodal projector on the first device, as the engine counts them: they are left free besides
    /// (`tools/server/server-context.cpp:load_model`).
    pub projector: u64,
    /// The least context per stream that it may choose (`--fit-ctx`).
    pub least_context: u64,
    /// Whether the context is the engine's to choose.
    pub chooses_context: bool,
}

impl Default for Aim {
    /// llama-server's defaults.
    fn default() -> Self {
        Self { margin: 1 << 30, projector: 0, least_context: 4096, chooses_context: true }
    }
}

/// What the engine settles on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Choice {
    /// The whole pool of tokens (`-c`).
    pub context: u64,
    /// Layers on devices; `None` where the engine leaves all of them there.
    pub gpu_layers: Option<u64>,
    /// Layers of each device, where it divides them itself.
    pub tensor_split: Vec<u64>,
    /// Tensors that go somewhere of their own.
    pub overrides: Vec<TensorOverride>,
    /// What it gives up with, `None` where it finds something: it then starts with the request as it was.
    pub failure: Option<String>,
    /// Whether every figure that it was decided by is exact.
    pub is_exact: bool,
    /// How many settings were measured.
    pub measurements: u64,
}

impl Choice {
    /// The deployment that the engine then starts.
    ///
    /// # Errors
    /// [`MathError::Invalid`] for shares that are none.
    pub fn apply(&self, deployment: &Deployment) -> Result<Deployment, MathError> {
        let mut out = Deployment { context: ContextRequest::Total(self.context), ..deployment.clone() };
        if let Some(layers) = self.gpu_layers {
            out.gpu_layers = Some(layers);
        }
        if !self.tensor_split.is_empty() {
            let share = |layers: &u64| Share::try_from(f32::from(u16::try_from(*layers).unwrap_or(u16::MAX)));
            out.tensor_split = self.tensor_split.iter().map(share).collect::<Result<_, _>>()?;
        }
        if !self.overrides.is_empty() {
            out.tensor_overrides.clone_from(&self.overrides);
        }
        Ok(out)
    }
}

/// Parts of a layer that may go elsewhere (`common_layer_fraction_t`), by what stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fraction {
    /// Attention alone.
    Attention,
    /// Attention and the feed-forward's way up.
    Up,
    /// All but the way down.
    Gate,
    /// All but routed experts.
    Experts,
}

impl Fraction {
    fn pattern(self, layer: u64) -> String {
        let rest = match self {
            Self::Attention => r"\.ffn_(gate|up|gate_up|down).*",
            Self::Up => r"\.ffn_(gate|gate_up|down).*",
            Self::Gate => r"\.ffn_down.*",
            Self::Experts => r"\.ffn_(up|down|gate_up|gate)_(ch|)exps",
        };
        format!(r"blk\.{layer}{rest}")
    }
}

/// The layers of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    layers: u64,
    /// Those of them without all of their tensors.
    partial: u64,
    /// What the first partial one keeps; the others keep all but their experts.
    keeps: Fraction,
}

impl Held {
    const NONE: Self = Self { layers: 0, partial: 0, keeps: Fraction::Experts };

    const fn full(self) -> u64 {
        self.layers.saturating_sub(self.partial)
    }
}

/// A division of the layers among devices, with what it takes there.
#[derive(Debug, Clone)]
struct Division {
    held: Vec<Held>,
    /// Where the first partial layer of a device leaves its other tensors.
    overflow: Vec<Location>,
    used: Vec<i64>,
    /// The first device with partial layers.
    first_partial: usize,
}

impl Division {
    fn held(&self, device: usize) -> Held {
        self.held.get(device).copied().unwrap_or(Held::NONE)
    }

    fn change(&mut self, device: usize, change: impl FnOnce(&mut Held)) {
        if let Some(held) = self.held.get_mut(device) {
            change(held);
        }
    }

    fn used(&self, device: usize) -> i64 {
        self.used.get(device).copied().unwrap_or(0)
    }
}

/// The engine's choice for a deployment. Its context is taken as the request where the engine may not choose one.
///
/// # Errors
/// As [`super::memory::memory_of`] for the settings that it measures.
pub fn choose(
    spec: &ModelSpec,
    table: &TensorTable,
    deployment: &Deployment,
    build: Build,
    aim: Aim,
) -> Result<Choice, MathError> {
    let mut measuring = Measuring::new(spec, table, deployment, build);
    let mut fitting = Fitting::new(spec, deployment, (build, aim), &mut measuring)?;
    let failure = fitting.run()?;
    let Fitting { context, gpu_layers, tensor_split, overrides, .. } = fitting;
    Ok(Choice {
        context,
        gpu_layers,
        tensor_split,
        overrides,
        failure,
        is_exact: measuring.is_exact(),
        measurements: measuring.count(),
    })
}

/// The state of the search.
struct Fitting<'a, 'b> {
    measuring: &'a mut Measuring<'b>,
    deployment: &'a Deployment,
    aim: Aim,
    /// Layers of the trunk, with those of multi-token prediction where they are loaded.
    n_layers: u64,
    trained: u64,
    routes: bool,
    streams: u64,
    /// How often the trained context is asked for at first.
    contexts: u64,
    free: Vec<i64>,
    context: u64,
    gpu_layers: Option<u64>,
    tensor_split: Vec<u64>,
    overrides: Vec<TensorOverride>,
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl<'a, 'b> Fitting<'a, 'b> {
    fn new(
        spec: &ModelSpec,
        deployment: &'a Deployment,
        (build, aim): (Build, Aim),
        measuring: &'a mut Measuring<'b>,
    ) -> Result<Self, MathError> {
        let trunk = spec.encoder.as_ref().map_or(spec.layers.len(), |encoder| encoder.layers.len());
        let count = trunk.saturating_add(if deployment.load_mtp { spec.mtp.len() } else { 0 });
        let streams = if deployment.kv_unified { 1 } else { deployment.sequences.max(1) };
        let asked = match deployment.context {
            ContextRequest::PerSequence(tokens) => crate::units::mul(tokens, deployment.sequences.max(1))?,
            ContextRequest::Total(tokens) => tokens,
            ContextRequest::ModelMaximum => 0,
        };
        Ok(Self {
            measuring,
            deployment,
            aim,
            n_layers: u64::try_from(count).map_err(|_| MathError::Overflow { quantity: "layers" })?,
            trained: spec.max_context,
            routes: spec.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Moe(_))),
            streams,
            contexts: if build.fits_a_context_for_each_sequence() { deployment.sequences.max(1) } else { streams },
            free: deployment.devices.iter().map(|device| signed(device.free)).collect(),
            context: if aim.chooses_context { 0 } else { asked },
            gpu_layers: deployment.gpu_layers,
            tensor_split: Vec::new(),
            overrides: Vec::new(),
        })
    }

    /// What a device, or the host where there is none, keeps free.
    fn margin(&self, device: usize) -> i64 {
        signed(self.aim.margin.saturating_add(if device == 0 { self.aim.projector } else { 0 }))
    }

    fn target(&self, device: usize) -> i64 {
        self.free.get(device).copied().unwrap_or(0).saturating_sub(self.margin(device))
    }

    fn measure(&mut self) -> Result<Measured, MathError> {
        let choice = Choice {
            context: self.context,
            gpu_layers: self.gpu_layers,
            tensor_split: self.tensor_split.clone(),
            overrides: self.overrides.clone(),
            failure: None,
            is_exact: true,
            measurements: 0,
        };
        self.measuring.measure(&choice)
    }

    /// What a division takes on each device.
    fn measure_division(&mut self, division: &mut Division) -> Result<Option<String>, MathError> {
        if let Some(failure) = self.set(division) {
            return Ok(Some(failure));
        }
        division.used = self.measure()?.devices.iter().map(|device| signed(device.total())).collect();
        Ok(None)
    }

    /// Takes a division as the engine's parameters (`set_ngl_tensor_split_tbo`).
    fn set(&mut self, division: &Division) -> Option<String> {
        let layers = division.held.iter().fold(0_u64, |sum, held| sum.saturating_add(held.layers));
        self.gpu_layers = Some(layers);
        self.tensor_split =
            if division.held.len() > 1 { division.held.iter().map(|held| held.layers).collect() } else { Vec::new() };
        self.overrides = Vec::new();
        let mut first = self.n_layers.saturating_add(1).saturating_sub(layers);
        for (held, overflow) in division.held.iter().zip(&division.overflow) {
            first = first.saturating_add(held.full());
            for offset in 0..held.partial {
                if self.overrides.len().saturating_add(1) >= MAX_OVERRIDES {
                    return Some(format!("llama_max_tensor_buft_overrides() == {MAX_OVERRIDES} is insufficient for model"));
                }
                let keeps = if offset == 0 { held.keeps } else { Fraction::Experts };
                let place = if offset == 0 { *overflow } else { Location::Host };
                self.overrides.push(TensorOverride { pattern: keeps.pattern(first.saturating_add(offset)), place });
            }
            first = first.saturating_add(held.partial);
        }
        None
    }

    fn reset_overrides(&mut self) {
        self.overrides = Vec::new();
    }

    /// Runs the search; the engine's complaint where it gives up.
    fn run(&mut self) -> Result<Option<String>, MathError> {
        if self.deployment.split_mode == SplitMode::Tensor {
            return Ok(Some("llama_params_fit is not implemented for SPLIT_MODE_TENSOR, abort".to_string()));
        }
        let limit = u64::from(u32::MAX);
        let most = self.trained.saturating_mul(self.contexts).min(limit);
        let least = self.aim.least_context.saturating_mul(self.streams).min(limit);
        if self.aim.chooses_context {
            self.context = most;
        }
        let full = self.measure()?;
        let devices = self.free.len();
        let used = full.used();
        let free: i64 = if devices == 0 { signed(self.measuring.host_memory()) } else { self.free.iter().sum() };
        let meets_all = if devices == 0 {
            free.saturating_sub(used) >= self.margin(0)
        } else {
            full.devices.iter().enumerate().all(|(id, device)| signed(device.total()) <= self.target(id))
        };
        if meets_all {
            return Ok(None);
        }
        let margins = (0..devices.max(1)).fold(0, |sum: i64, device| sum.saturating_add(self.margin(device)));
        if free.saturating_sub(used).saturating_sub(margins) < 0
            && self.aim.chooses_context
            && most > least
            && self.reduce_context(&full, most, least, free.saturating_sub(margins))?
        {
            return Ok(None);
        }
        if devices == 0 {
            return Ok(Some("was unable to fit model into system memory by reducing context, abort".to_string()));
        }
        if let Some(layers) = self.gpu_layers {
            return Ok(Some(format!("n_gpu_layers already set by user to {layers}, abort")));
        }
        if devices > 1 && self.deployment.tensor_split.iter().any(|share| share.get() != 0.0) {
            return Ok(Some("model_params::tensor_split already set by user, abort".to_string()));
        }
        if devices > 1 && self.deployment.split_mode == SplitMode::Row {
            return Ok(Some("changing weight allocation for LLAMA_SPLIT_MODE_ROW not implemented, abort".to_string()));
        }
        let asked = self.deployment;
        if !asked.tensor_overrides.is_empty() || asked.cpu_moe || asked.n_cpu_moe > 0 {
            return Ok(Some("model_params::tensor_buft_overrides already set by user, abort".to_string()));
        }
        self.fill()
    }

    /// Chooses a context between the least and the most by a straight line (step 2). True when that is all there is to do.
    fn reduce_context(&mut self, full: &Measured, most: u64, least: u64, target: i64) -> Result<bool, MathError> {
        let devices = self.free.len();
        let mut target = target;
        if devices > 1 {
            // Whole layers, or whole tensors of a mixture, are what may be wasted: half of one a device, and one more.
            let model = full.devices.iter().fold(0_i64, |sum, device| sum.saturating_add(signed(device.model)));
            let on_devices = self.gpu_layers.unwrap_or(u64::MAX).min(self.n_layers);
            let each = model.checked_div(signed(on_devices)).unwrap_or(0);
            let parts = signed(u64::try_from(devices).unwrap_or(0)).saturating_add(1).saturating_mul(each);
            target = target.saturating_sub(parts.checked_div(if self.routes { 6 } else { 2 }).unwrap_or(0));
        }
        self.context = least;
        let used_least = self.measure()?.used();
        if target <= used_least {
            return Ok(false);
        }
        let used_most = full.used();
        let width = i128::from(most.saturating_sub(least));
        let share = width.saturating_mul(i128::from(target.saturating_sub(used_least)));
        let more = share.checked_div(i128::from(used_most.saturating_sub(used_least))).unwrap_or(0);
        let context = least.saturating_add(u64::try_from(more).unwrap_or(0));
        let align = self.streams.saturating_mul(256);
        self.context = context.saturating_sub(context.checked_rem(align).unwrap_or(0)).max(least);
        Ok(devices <= 1)
    }

    /// Divides layers among the devices (steps 3 and 4).
    fn fill(&mut self) -> Result<Option<String>, MathError> {
        let devices = self.free.len();
        let last = devices.saturating_sub(1);
        let mut surplus_without_experts = 0_i64;
        if self.routes {
            let pattern = r"blk\.\d+\.ffn_(up|down|gate_up|gate)_(ch|)exps".to_string();
            self.overrides = Vec::from([TensorOverride { pattern, place: Location::Host }]);
            let dense = self.measure()?;
            for (id, device) in dense.devices.iter().enumerate() {
                let room = self.target(id).saturating_sub(signed(device.total()));
                surplus_without_experts = surplus_without_experts.saturating_add(room);
            }
            self.reset_overrides();
        }
        let mut now = Division {
            held: alloc::vec![Held::NONE; devices],
            overflow: alloc::vec![Location::Host; devices],
            used: Vec::new(),
            first_partial: devices,
        };
        if let Some(failure) = self.measure_division(&mut now)? {
            return Ok(Some(failure));
        }
        for id in (0..devices).rev() {
            if let Some(failure) = self.fill_from_the_back(&mut now, id, last)? {
                return Ok(Some(failure));
            }
        }
        if !self.routes || surplus_without_experts <= 0 {
            return Ok(self.set(&now));
        }
        now.first_partial = devices;
        for id in (0..devices).rev() {
            if now.held(id).layers == 0 {
                break;
            }
            now.first_partial = id;
        }
        let mut id = 0;
        while id <= now.first_partial && now.first_partial < devices {
            if let Some(failure) = self.fill_from_the_front(&mut now, id, last)? {
                return Ok(Some(failure));
            }
            if let Some(failure) = self.add_a_part(&mut now, id, last)? {
                return Ok(Some(failure));
            }
            id = id.saturating_add(1);
        }
        Ok(self.set(&now))
    }

    /// Gives a device as many of the layers that are left as it can hold, without experts (step 3).
    fn fill_from_the_back(&mut self, now: &mut Division, id: usize, last: usize) -> Result<Option<String>, MathError> {
        let behind = now.held.iter().skip(id.saturating_add(1)).fold(0_u64, |sum, held| sum.saturating_add(held.layers));
        let unassigned = self.n_layers.saturating_add(1).saturating_sub(behind);
        if unassigned == 0 {
            return Ok(None);
        }
        let mut high = now.clone();
        let routes = self.routes;
        high.change(id, |held| {
            held.layers = unassigned;
            if routes {
                // The output, on the last device, is no partial layer.
                held.partial = if id < last { unassigned } else { unassigned.saturating_sub(1) };
            }
        });
        if let Some(failure) = self.measure_division(&mut high)? {
            return Ok(Some(failure));
        }
        if high.used(id) <= self.target(id) {
            *now = high;
            return Ok(None);
        }
        loop {
            let delta = high.held(id).layers.saturating_sub(now.held(id).layers);
            if delta <= 1 {
                return Ok(None);
            }
            let step = self.step(delta, now, &high, id);
            let mut test = now.clone();
            test.change(id, |held| {
                held.layers = held.layers.saturating_add(step);
                if routes {
                    let more = if id == last && held.partial == 0 { step.saturating_sub(1) } else { step };
                    held.partial = held.partial.saturating_add(more);
                }
            });
            if let Some(failure) = self.measure_division(&mut test)? {
                return Ok(Some(failure));
            }
            if test.used(id) <= self.target(id) { *now = test } else { high = test }
        }
    }

    /// The layers to try next, by false position; the engine's quotient is cut to 32 bits without a sign.
    fn step(&self, delta: u64, low: &Division, high: &Division, id: usize) -> u64 {
        let room = i128::from(self.target(id)).saturating_sub(i128::from(low.used(id)));
        let rise = i128::from(high.used(id)).saturating_sub(i128::from(low.used(id)));
        let quotient = i128::from(delta).saturating_mul(room).checked_div(rise).unwrap_or(0);
        let step = u64::try_from(quotient.rem_euclid(1 << 32)).unwrap_or(0);
        step.max(1).min(delta.saturating_sub(1))
    }

    /// Turns layers without experts of the devices behind into whole layers of this one (step 4).
    fn fill_from_the_front(&mut self, now: &mut Division, id: usize, last: usize) -> Result<Option<String>, MathError> {
        let devices = self.free.len();
        let mut high = now.clone();
        for behind in now.first_partial..devices {
            let held = high.held(behind).layers;
            let moved = if behind < last { held } else { held.saturating_sub(1) };
            high.change(id, |held| held.layers = held.layers.saturating_add(moved));
            high.change(behind, |held| {
                held.layers = held.layers.saturating_sub(moved);
                held.partial = 0;
            });
        }
        high.first_partial = last;
        if let Some(failure) = self.measure_division(&mut high)? {
            return Ok(Some(failure));
        }
        if high.used(id) <= self.target(id) {
            *now = high;
            return Ok(None);
        }
        loop {
            let delta = high.held(id).full().saturating_sub(now.held(id).full());
            if delta <= 1 {
                return Ok(None);
            }
            let step = self.step(delta, now, &high, id);
            let mut test = now.clone();
            let mut converted = 0_u64;
            while test.first_partial < devices {
                let from = test.first_partial;
                let here = step.saturating_sub(converted).min(test.held(from).partial);
                test.change(from, |held| {
                    held.layers = held.layers.saturating_sub(here);
                    held.partial = held.partial.saturating_sub(here);
                });
                test.change(id, |held| held.layers = held.layers.saturating_add(here));
                converted = converted.saturating_add(here);
                if test.held(from).partial > 0 {
                    break;
                }
                test.first_partial = from.saturating_add(1);
            }
            if let Some(failure) = self.measure_division(&mut test)? {
                return Ok(Some(failure));
            }
            if test.used(id) <= self.target(id) { *now = test } else { high = test }
        }
    }

    /// Tries to hold a part of one more layer (step 4): attention and the way up, then all but the way down; or attention.
    fn add_a_part(&mut self, now: &mut Division, id: usize, last: usize) -> Result<Option<String>, MathError> {
        let from = now.first_partial;
        if now.held(from).layers <= u64::from(id >= last) {
            return Ok(None);
        }
        let mut test = now.clone();
        test.change(from, |held| {
            held.layers = held.layers.saturating_sub(1);
            held.partial = held.partial.wrapping_sub(1);
        });
        test.change(id, |held| {
            held.layers = held.layers.saturating_add(1);
            held.partial = held.partial.wrapping_add(1);
        });
        if test.held(from).partial == 0 {
            test.first_partial = from.saturating_add(1);
        }
        if id < last
            && let (Some(slot), Ok(next)) = (test.overflow.get_mut(id), u8::try_from(id.saturating_add(1)))
        {
            *slot = Location::Device(next);
        }
        let attempt = |fitting: &mut Self, keeps: Fraction, now: &mut Division| -> Result<Result<bool, String>, MathError> {
            let mut test = test.clone();
            test.change(id, |held| held.keeps = keeps);
            if let Some(failure) = fitting.measure_division(&mut test)? {
                return Ok(Err(failure));
            }
            let next = id.saturating_add(1);
            let fits = test.used(id) < fitting.target(id) && (next > last || test.used(next) < fitting.target(next));
            if fits {
                *now = test;
            }
            Ok(Ok(fits))
        };
        let next = match attempt(self, Fraction::Up, now)? {
            Ok(true) => Fraction::Gate,
            Ok(false) => Fraction::Attention,
            Err(failure) => return Ok(Some(failure)),
        };
        match attempt(self, next, now)? {
            Ok(_) => Ok(None),
            Err(failure) => Ok(Some(failure)),
        }
    }
}
