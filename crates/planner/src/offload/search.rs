//! The search: candidates from bytes by layer, each held against the engine's own plan, the fastest that fits.

use alloc::format;
use alloc::vec::Vec;

use plimsoll_math::allocation::{PlaceAllocation, TermKind};
use plimsoll_math::deployment::{Deployment, Location, Share, TensorOverride};
use plimsoll_math::throughput::float;
use plimsoll_math::units::Bytes;

use super::light::{Cut, Light};
use crate::change::plan_unless_refused;
use crate::engine::{Planned, Question};
use crate::error::PlanError;
use crate::fit::{Used, room};
use crate::pace::Pace;

/// A placement that was planned.
#[derive(Debug, Clone)]
pub(super) struct Tried<'a> {
    pub(super) question: Question<'a>,
    pub(super) planned: Planned,
    pub(super) pace: Option<Pace>,
    /// Bytes left on every device, or missing.
    pub(super) rooms: Vec<Result<Bytes, Bytes>>,
    pub(super) host: Bytes,
    pub(super) fits: bool,
    /// Tokens per second of one sequence half way through its context; of devices without known speed, the bytes on them.
    pub(super) score: f64,
}

impl Tried<'_> {
    pub(super) fn deployment(&self) -> &Deployment {
        &self.question.effective.deployment
    }
}

/// The state of a search.
#[derive(Debug)]
pub(super) struct Search<'a> {
    base: Question<'a>,
    margin: u64,
    host_memory: Option<u64>,
    light: Light,
    speeds: Vec<f64>,
    /// What a device takes beside weights and caches, as last planned.
    overhead: Vec<u64>,
    pub(super) tried: u64,
    pub(super) best: Option<Tried<'a>>,
}

impl<'a> Search<'a> {
    /// Plans everything on devices first: that also tells what each takes beside weights and caches.
    pub(super) fn new(base: Question<'a>, margin: u64, host_memory: Option<u64>) -> Result<Self, PlanError> {
        let light = Light::new(&base, 0)?;
        let speed = |device: &plimsoll_math::device::Device| device.speed.map_or(1.0, |speed| float(speed.memory_mb_per_s));
        let speeds: Vec<f64> = base.effective.devices.iter().map(speed).collect();
        let overhead = alloc::vec![0; speeds.len()];
        let mut search = Self { base, margin, host_memory, light, speeds, overhead, tried: 0, best: None };
        let whole = search.base.effective.deployment.clone();
        if let Some(tried) = search.attempt(whole)? {
            let mut cache = Bytes::ZERO;
            for kind in [TermKind::KvCache, TermKind::RecurrentState] {
                cache = cache.plus(tried.planned.allocation.total(kind)?)?;
            }
            search.light = Light::new(&search.base, cache.get())?;
            search.learn(&tried)?;
            search.keep(tried);
        }
        Ok(search)
    }

    /// What the devices of a plan take beside weights and caches.
    fn learn(&mut self, tried: &Tried<'_>) -> Result<(), PlanError> {
        for (overhead, place) in self.overhead.iter_mut().zip(&tried.planned.allocation.devices) {
            let mut moved = 0_u64;
            for kind in [TermKind::Weights, TermKind::KvCache, TermKind::RecurrentState] {
                moved = moved.saturating_add(place.of(kind)?.get());
            }
            *overhead = place.used()?.get().saturating_sub(moved);
        }
        Ok(())
    }

    /// Plans a deployment; `None` where the engine refuses it.
    pub(super) fn attempt(&mut self, deployment: Deployment) -> Result<Option<Tried<'a>>, PlanError> {
        self.tried += 1;
        let mut question = self.base.clone();
        question.effective.deployment = deployment;
        let Some(planned) = plan_unless_refused(&question)? else { return Ok(None) };
        let used = Used::of(&planned)?;
        let host = used.host.high;
        let rooms: Vec<Result<Bytes, Bytes>> = question
            .effective
            .devices
            .iter()
            .zip(&used.devices)
            .map(|(device, span)| Ok(room(device, span.high.plus(Bytes::new(self.margin)?)?, host)))
            .collect::<Result<_, PlanError>>()?;
        let host_fits = self.host_memory.is_none_or(|memory| host.get() <= memory);
        let pace = Pace::new(&question, &planned)?;
        let score = match &pace {
            Some(pace) => pace.decode(1.0, float(planned.resolved.context_per_sequence) / 2.0).expected.get(),
            None => {
                let weights = |place: &PlaceAllocation| place.of(TermKind::Weights).map_or(0.0, |bytes| float(bytes.get()));
                planned.allocation.devices.iter().map(weights).sum()
            }
        };
        let fits = host_fits && rooms.iter().all(Result::is_ok);
        Ok(Some(Tried { question, planned, pace, rooms, host, fits, score }))
    }

    fn keep(&mut self, tried: Tried<'a>) {
        if tried.fits && self.best.as_ref().is_none_or(|best| tried.score > best.score) {
            self.best = Some(tried);
        }
    }

    /// The engine's words for a cut.
    fn deployment(&self, cut: Cut, counts: &[u64]) -> Result<Deployment, PlanError> {
        let mut deployment = self.base.effective.deployment.clone();
        deployment.gpu_layers = (cut.first > 0).then(|| self.light.count().saturating_sub(cut.first));
        deployment.kv_offload = cut.kv_offload;
        let layers = self.light.count().saturating_sub(1);
        deployment.cpu_moe = cut.experts >= layers && layers > 0;
        deployment.n_cpu_moe = if deployment.cpu_moe { 0 } else { cut.experts };
        if counts.len() > 1 && cut.first < self.light.count() {
            let share = |count: &u64| Share::try_from(f32::from(u16::try_from(*count).unwrap_or(u16::MAX)));
            deployment.tensor_split = counts.iter().map(share).collect::<Result<_, _>>()?;
        }
        Ok(deployment)
    }

    /// Bytes that layers may take on every device.
    fn rooms(&self, slack: &[u64]) -> Vec<u64> {
        let devices = self.base.effective.devices.iter().zip(&self.overhead).zip(slack);
        devices
            .map(|((device, overhead), slack)| {
                device.usable.bytes.get().saturating_sub(*overhead).saturating_sub(self.margin).saturating_sub(*slack)
            })
            .collect()
    }

    /// The smallest number of layers that `cut` has to leave to the host, by the light figures: what fits with one fits with more.
    fn least(&self, rooms: &[u64], most: u64, cut: impl Fn(u64) -> Cut) -> Option<(Cut, Vec<u64>)> {
        let divided = |left: u64| self.light.divide(cut(left), rooms, &self.speeds);
        let (mut good, mut bad) = (most, None::<u64>);
        let mut counts = divided(most)?;
        while good > bad.map_or(0, |bad| bad + 1) {
            let low = bad.map_or(0, |bad| bad + 1);
            let middle = low + (good - low) / 2;
            match divided(middle) {
                Some(found) => (good, counts) = (middle, found),
                None => bad = Some(middle),
            }
        }
        Some((cut(good), counts))
    }

    /// Light figures and plans in turn, until a plan fits or the light figures find no more.
    fn settle(&mut self, most: u64, cut: impl Fn(u64) -> Cut + Copy) -> Result<Option<(Cut, Tried<'a>)>, PlanError> {
        const ROUNDS: usize = 6;
        let mut slack = alloc::vec![0_u64; self.speeds.len()];
        for _ in 0..ROUNDS {
            let Some((found, counts)) = self.least(&self.rooms(&slack), most, cut) else { return Ok(None) };
            let deployment = self.deployment(found, &counts)?;
            let Some(tried) = self.attempt(deployment)? else { return Ok(None) };
            self.learn(&tried)?;
            if tried.fits {
                return Ok(Some((found, tried)));
            }
            if tried.rooms.iter().all(Result::is_ok) {
                // The host has no room: fewer layers there are what does not fit.
                return Ok(None);
            }
            for (slack, room) in slack.iter_mut().zip(&tried.rooms) {
                if let Err(short) = room {
                    *slack = slack.saturating_add(short.get());
                }
            }
        }
        Ok(None)
    }

    /// One step less on the host, as long as that fits: the light figures are a little careful.
    fn tighten(&mut self, at: u64, cut: impl Fn(u64) -> Cut, mut tried: Tried<'a>) -> Result<(u64, Tried<'a>), PlanError> {
        let mut at = at;
        while at > 0 {
            let next = cut(at - 1);
            let rooms: Vec<u64> = alloc::vec![u64::MAX; self.speeds.len()];
            let counts = if self.speeds.len() == 1 {
                self.light.divide(next, &rooms, &self.speeds)
            } else {
                self.light.divide(next, &self.rooms(&alloc::vec![0; self.speeds.len()]), &self.speeds)
            };
            let Some(counts) = counts else { break };
            let deployment = self.deployment(next, &counts)?;
            match self.attempt(deployment)? {
                Some(better) if better.fits => (at, tried) = (at - 1, better),
                _ => break,
            }
        }
        Ok((at, tried))
    }

    /// Looks with caches on devices, and with caches on the host.
    pub(super) fn run(&mut self) -> Result<(), PlanError> {
        let layers = self.light.count();
        let has_cache = match &self.best {
            // All on devices as the engine divides it: only the division among different devices can be better.
            Some(_) if self.speeds.len() == 1 => return Ok(()),
            Some(_) => false,
            None => true,
        };
        let whole_fits = self.best.is_some();
        for kv_offload in [true, false] {
            if !kv_offload && (!has_cache || !self.may_gain_with_host_caches()?) {
                break;
            }
            if self.light.routes() && !whole_fits {
                let cut = |experts: u64| Cut { first: 0, experts, kv_offload };
                if let Some((found, tried)) = self.settle(layers.saturating_sub(1), cut)? {
                    let (experts, tried) = self.tighten(found.experts, cut, tried)?;
                    self.keep(tried.clone());
                    self.part_of_a_layer(experts, &tried)?;
                } else {
                    let every = layers.saturating_sub(1);
                    let cut = |first: u64| Cut { first, experts: every, kv_offload };
                    if let Some((found, tried)) = self.settle(layers, cut)? {
                        let (_, tried) = self.tighten(found.first, cut, tried)?;
                        self.keep(tried);
                    }
                }
            }
            let cut = |first: u64| Cut { first, experts: 0, kv_offload };
            if let Some((found, tried)) = self.settle(layers, cut)? {
                let (_, tried) = self.tighten(found.first, cut, tried)?;
                self.keep(tried);
            }
        }
        Ok(())
    }

    /// Whether caches on the host could be faster than what was found. No placement with them is faster than the one with everything
    /// else on devices, whether it fits or not.
    fn may_gain_with_host_caches(&mut self) -> Result<bool, PlanError> {
        let Some(found) = self.best.as_ref().map(|best| best.score) else { return Ok(true) };
        let mut everything = self.base.effective.deployment.clone();
        everything.kv_offload = false;
        let Some(bound) = self.attempt(everything)? else { return Ok(true) };
        let gains = bound.score > found;
        self.keep(bound);
        Ok(gains)
    }

    /// Where a layer's experts do not fit as a whole, a part of them may.
    fn part_of_a_layer(&mut self, experts: u64, tried: &Tried<'a>) -> Result<(), PlanError> {
        let Some(layer) = experts.checked_sub(1) else { return Ok(()) };
        for stays in ["ffn_down_exps", "ffn_(gate|gate_up|down)_exps"] {
            let mut deployment = tried.deployment().clone();
            deployment.cpu_moe = false;
            deployment.n_cpu_moe = layer;
            deployment
                .tensor_overrides
                .push(TensorOverride { pattern: format!(r"blk\.{layer}\.{stays}"), place: Location::Host });
            if let Some(tried) = self.attempt(deployment)?
                && tried.fits
            {
                self.keep(tried);
                break;
            }
        }
        Ok(())
    }

    /// A placement that was found elsewhere.
    pub(super) fn consider(&mut self, tried: Tried<'a>) {
        self.keep(tried);
    }

    /// The question without a placement.
    pub(super) const fn base(&self) -> &Question<'a> {
        &self.base
    }
}
