//! From models and hosts to the bare problem and back: what a replica takes of which devices is the engine's own plan.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use plimsoll_math::deployment::Share;
use plimsoll_math::device::Device;
use plimsoll_math::error::MathError;
use plimsoll_math::throughput::float;

use super::exact;
use super::problem::{Bin, Candidate, Problem, Wanted};
use super::wire::{DeviceLoad, FleetHost, FleetModel, FleetRequest, HostLoad, OnDevice, Placement, Spread};
use crate::command::command;
use crate::engine::Question;
use crate::error::PlanError;
use crate::fit::Used;
use crate::model::Model;
use crate::request::{Engine, Options};
use crate::size::quoted;

/// One host with its devices and their bins.
pub(super) struct Site {
    pub(super) name: String,
    /// Which host of the request.
    pub(super) kind: usize,
    pub(super) devices: Vec<Device>,
    bins: Vec<usize>,
    memory_bin: Option<usize>,
}

/// All hosts.
pub(super) struct Ground {
    pub(super) sites: Vec<Site>,
    pub(super) bins: Vec<Bin>,
    pub(super) notes: Vec<String>,
    /// The devices in full, for questions.
    pub(super) known: Vec<Device>,
}

/// Devices that a replica spans: consecutive ones of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) first: usize,
    pub(super) devices: Vec<Device>,
}

/// What a replica takes on a block: of each device, and of the host.
#[derive(Debug, Clone)]
pub(super) struct Demand {
    pub(super) devices: Vec<u64>,
    pub(super) host: u64,
    pub(super) command: Vec<String>,
}

impl Ground {
    pub(super) fn of(request: &FleetRequest) -> Result<Self, PlanError> {
        let custom = request.device.iter().map(crate::custom::CustomDevice::device).collect::<Result<Vec<_>, _>>()?;
        let options = Options { custom_devices: Some(custom), ..Options::default() };
        let mut ground = Self { sites: Vec::new(), bins: Vec::new(), notes: Vec::new(), known: Vec::new() };
        for (kind, host) in request.host.iter().enumerate() {
            let devices = Self::devices(&options, kind, host)?;
            let count = host.count.unwrap_or(1);
            if count == 0 || count > 10_000 {
                return Err(PlanError::request(&format!("host {}, count", kind + 1), count, "1 to 10000"));
            }
            for number in 0..count {
                let name = if count == 1 { host.name.clone() } else { format!("{}-{}", host.name, number + 1) };
                ground.add(kind, name, host, &devices, request);
            }
        }
        if ground.sites.iter().any(|site| site.memory_bin.is_none()) {
            ground.notes.push("hosts without `memory` are taken to have enough of it".to_string());
        }
        Ok(ground)
    }

    fn devices(options: &Options, kind: usize, host: &FleetHost) -> Result<Vec<Device>, PlanError> {
        let at = |error: PlanError| match error {
            PlanError::Request { field, found, expected } => {
                PlanError::Request { field: format!("host {} ({}), {field}", kind + 1, host.name), found, expected }
            }
            other => other,
        };
        let mut names = host.devices.iter().cloned();
        let mut asked = options.clone();
        asked.device = names.next();
        asked.devices = Some(names.collect());
        if asked.device.as_deref().is_some_and(|name| name.eq_ignore_ascii_case("cpu")) {
            asked.memory = host.memory.map(|size| size.0);
        }
        Ok(asked.devices().map_err(at)?.0)
    }

    fn add(&mut self, kind: usize, name: String, host: &FleetHost, devices: &[Device], request: &FleetRequest) {
        let mut bins = Vec::new();
        for (index, device) in devices.iter().enumerate() {
            let usable = device.usable.bytes.get();
            let kept = request.headroom.map_or(0, |headroom| headroom.of(usable));
            bins.push(self.bins.len());
            self.bins.push(Bin {
                name: format!("{name}, device {index} ({})", device.name),
                capacity: usable.saturating_sub(kept),
                counts: true,
            });
            if !self.known.iter().any(|there| there.name == device.name) {
                self.known.push(device.clone());
            }
        }
        // Unified memory holds what is on the host as well, whatever was said of the host.
        let unified = devices.iter().filter(|device| device.unified).map(|device| device.total.bytes.get()).min();
        let capacity = match (host.memory.map(|size| size.0), unified) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let memory_bin = capacity.map(|capacity| {
            self.bins.push(Bin { name: format!("{name}, memory"), capacity, counts: false });
            self.bins.len() - 1
        });
        self.sites.push(Site { name, kind, devices: devices.to_vec(), bins, memory_bin });
    }

    /// What is on every host.
    pub(super) fn loads(&self, problem: &Problem, left: &[u64]) -> Result<Vec<HostLoad>, PlanError> {
        let bin = |index: usize| {
            let capacity = problem.bins.get(index).map_or(0, |bin| bin.capacity);
            (capacity, capacity.saturating_sub(left.get(index).copied().unwrap_or(0)))
        };
        let mut loads = Vec::new();
        for site in &self.sites {
            let mut devices = Vec::new();
            for (device, index) in site.devices.iter().zip(&site.bins) {
                let (limit, used) = bin(*index);
                devices.push(DeviceLoad {
                    name: device.name.clone(),
                    usable: device.usable.bytes,
                    limit: exact(limit)?,
                    used: exact(used)?,
                });
            }
            let memory = site.memory_bin.map(bin);
            loads.push(HostLoad {
                name: site.name.clone(),
                devices,
                memory: memory.map(|(limit, _)| exact(limit)).transpose()?,
                memory_used: memory.map(|(_, used)| exact(used)).transpose()?,
            });
        }
        Ok(loads)
    }
}

impl Site {
    /// Blocks of `count` devices of one kind; aligned, as links join them.
    pub(super) fn blocks(&self, count: usize) -> Vec<Block> {
        let mut blocks = Vec::new();
        if count == 0 {
            return blocks;
        }
        let mut start = 0;
        while let Some(first) = self.devices.get(start) {
            let alike = |device: &&Device| device.name == first.name && device.usable.bytes == first.usable.bytes;
            let run = self.devices.iter().skip(start).take_while(alike).count();
            for block in 0..run / count {
                blocks.push(Block { first: start + block * count, devices: vec![first.clone(); count] });
            }
            start += run;
        }
        blocks
    }

    /// All devices at once, where they differ.
    fn everything(&self) -> Option<Block> {
        let differ = self.devices.windows(2).any(|pair| matches!(pair, [one, other] if one.name != other.name));
        differ.then(|| Block { first: 0, devices: self.devices.clone() })
    }

    /// What a replica on `block` takes of which bin.
    pub(super) fn uses(&self, block: &Block, demand: &Demand) -> Vec<(usize, u64)> {
        let mut uses = Vec::new();
        let mut on_host = demand.host;
        for (offset, (device, bytes)) in block.devices.iter().zip(&demand.devices).enumerate() {
            if let Some(bin) = self.bins.get(block.first + offset) {
                uses.push((*bin, *bytes));
            }
            if device.unified {
                on_host = on_host.saturating_add(*bytes);
            }
        }
        if let Some(bin) = self.memory_bin
            && on_host > 0
        {
            uses.push((bin, on_host));
        }
        uses
    }
}

/// The question of a replica on a block.
fn on_block<'a>(base: &Question<'a>, block: &Block, known: &[Device]) -> Result<Question<'a>, PlanError> {
    let names: Vec<String> = block.devices.iter().map(|device| device.name.clone()).collect();
    base.changed(|options| {
        let mut names = names.into_iter();
        options.device = names.next();
        options.devices = Some(names.collect());
        options.custom_devices = Some(known.to_vec());
        options.memory = None;
        options.tensor_split = None;
        match Engine::parse(options.engine.as_deref().unwrap_or("llama.cpp")) {
            Ok(engine) if engine.has_ranks() => {
                let ranks = options.pipeline_parallel.unwrap_or(1).max(1) * options.data_parallel.unwrap_or(1).max(1);
                let count = u64::try_from(block.devices.len()).unwrap_or(1);
                options.tensor_parallel = Some(count.checked_div(ranks).unwrap_or(1).max(1));
            }
            // What else is on the devices must not move the shares.
            Ok(Engine::LlamaCpp(_)) if block.devices.len() > 1 => {
                options.tensor_split = shares(block);
            }
            _ => {}
        }
    })
}

/// `None` for what an engine would not do on some devices: perhaps it does on others.
fn unless_refused<T>(found: Result<Option<T>, PlanError>) -> Result<Option<T>, PlanError> {
    match found {
        Err(PlanError::Math(MathError::Refused { .. }) | PlanError::Request { .. }) => Ok(None),
        other => other,
    }
}

/// What a replica takes on a block; `None` where the engine would not run there.
pub(super) fn demand(base: &Question<'_>, block: &Block, known: &[Device]) -> Result<Option<Demand>, PlanError> {
    unless_refused(on_block(base, block, known).and_then(|question| {
        let planned = question.plan()?;
        if planned.short_by().is_some() {
            return Ok(None);
        }
        let used = Used::of(&planned)?;
        let devices = used.devices.iter().map(|span| span.high.get()).collect();
        Ok(Some(Demand { devices, host: used.host.high.get(), command: command(&question, &planned) }))
    }))
}

/// The block that misses the least for a model that fits on none, even with everything free, and how much.
pub(super) fn nearest(model: &FleetModel, facts: &Model, ground: &Ground) -> Result<Option<(String, u64)>, PlanError> {
    let question = base(model, facts, ground)?;
    let mut seen: Vec<Vec<Device>> = Vec::new();
    let mut nearest: Option<(String, u64)> = None;
    for site in &ground.sites {
        for block in fitting(model, site) {
            if seen.contains(&block.devices) {
                continue;
            }
            let misses = unless_refused(on_block(&question, &block, &ground.known).and_then(|question| {
                let planned = question.plan()?;
                if let Some(bytes) = planned.short_by() {
                    return Ok(Some(bytes.get()));
                }
                // It fits on the devices as they are, and not into what the headroom leaves, or not beside it on the host.
                let used = Used::of(&planned)?;
                let devices = used.devices.iter().map(|span| span.high.get()).collect();
                let taken = Demand { devices, host: used.host.high.get(), command: Vec::new() };
                let over = site
                    .uses(&block, &taken)
                    .into_iter()
                    .filter_map(|(bin, bytes)| bytes.checked_sub(ground.bins.get(bin)?.capacity).filter(|over| *over > 0));
                Ok(over.max())
            }))?;
            if let Some(bytes) = misses
                && nearest.as_ref().is_none_or(|(_, least)| bytes < *least)
            {
                let count = block.devices.len();
                let device = block.devices.first().map_or("", |device| device.name.as_str());
                let alike = block.devices.iter().all(|other| other.name == device);
                let what = match (count, alike) {
                    (1, _) => device.to_string(),
                    (_, true) => format!("{count}x {device}"),
                    (_, false) => "all its devices".to_string(),
                };
                nearest = Some((format!("{}, {what}", site.name), bytes));
            }
            seen.push(block.devices);
        }
    }
    Ok(nearest)
}

/// Shares of a block's devices, by what is usable of each.
fn shares(block: &Block) -> Option<Vec<Share>> {
    let alike = block.devices.windows(2).all(|pair| matches!(pair, [one, other] if one.usable.bytes == other.usable.bytes));
    block
        .devices
        .iter()
        .map(|device| {
            let mib = if alike { 1.0 } else { float(device.usable.bytes.get() >> 20) };
            format!("{mib}").parse::<f32>().ok().and_then(|share| Share::try_from(share).ok())
        })
        .collect()
}

/// The question of a model of the fleet, on some device of the ground.
pub(super) fn base<'a>(model: &FleetModel, facts: &'a Model, ground: &Ground) -> Result<Question<'a>, PlanError> {
    let mut options = model.options.clone();
    if options.device.is_some() || options.devices.is_some() || options.memory.is_some() {
        return Err(PlanError::request(
            &format!("model {}, options", quoted(&model.name)),
            "device or memory",
            "none: the fleet says where",
        ));
    }
    options.custom_devices = Some(ground.known.clone());
    let mut last = None;
    for device in &ground.known {
        options.device = Some(device.name.clone());
        if device.name.eq_ignore_ascii_case("cpu") {
            options.memory = Some(device.total.bytes.get());
        }
        let ranks = options.tensor_parallel.take();
        match Question::new(facts, &options) {
            Ok(question) => return Ok(question),
            Err(error) => last = Some(error),
        }
        options.tensor_parallel = ranks;
        options.memory = None;
    }
    Err(last.unwrap_or_else(|| PlanError::request("host", "nothing", "hosts with devices")))
}

/// The problem, and the demands that its candidates point to.
pub(super) fn problem(request: &FleetRequest, models: &[Model], ground: &Ground) -> Result<(Problem, Vec<Demand>), PlanError> {
    let mut problem =
        Problem { bins: ground.bins.clone(), candidates: Vec::new(), wanted: Vec::new(), hosts: ground.sites.len() };
    let mut demands: Vec<Demand> = Vec::new();
    for (index, (model, facts)) in request.model.iter().zip(models).enumerate() {
        let place = |name: &String| request.model.iter().position(|other| other.name == *name);
        let mut apart: Vec<usize> = model.apart_from.iter().flatten().filter_map(place).collect();
        // Being apart goes both ways.
        for (other, theirs) in request.model.iter().enumerate() {
            if theirs.apart_from.iter().flatten().any(|name| *name == model.name) && !apart.contains(&other) {
                apart.push(other);
            }
        }
        apart.retain(|other| *other != index);
        problem.wanted.push(Wanted {
            replicas: model.replicas.unwrap_or(1),
            worth: model.priority.unwrap_or(1),
            spread: model.spread == Spread::Host,
            apart,
        });
        let question = base(model, facts, ground).map_err(|error| named(error, model))?;
        let mut asked: Vec<(Vec<Device>, Option<usize>)> = Vec::new();
        for (host, site) in ground.sites.iter().enumerate() {
            for block in fitting(model, site) {
                let known = asked.iter().find(|(devices, _)| *devices == block.devices).map(|(_, demand)| *demand);
                let found = match known {
                    Some(found) => found,
                    None => {
                        let found = demand(&question, &block, &ground.known).map_err(|error| named(error, model))?;
                        let number = found.map(|found| {
                            demands.push(found);
                            demands.len() - 1
                        });
                        asked.push((block.devices.clone(), number));
                        number
                    }
                };
                let Some(number) = found else { continue };
                let Some(taken) = demands.get(number) else { continue };
                let uses = site.uses(&block, taken);
                let alone = uses.iter().all(|(bin, bytes)| ground.bins.get(*bin).is_some_and(|bin| bin.capacity >= *bytes));
                if alone {
                    problem.candidates.push(Candidate { model: index, host, uses, demand: number, first: block.first });
                }
            }
        }
        if model.devices.is_none() {
            keep_the_fewest(&mut problem, index);
        }
    }
    Ok((problem, demands))
}

fn named(error: PlanError, model: &FleetModel) -> PlanError {
    match error {
        PlanError::Request { field, found, expected } => {
            PlanError::Request { field: format!("model {}, {field}", quoted(&model.name)), found, expected }
        }
        other => other,
    }
}

/// How many devices replicas usually span.
pub(super) const USUAL: [u64; 4] = [1, 2, 4, 8];

/// Blocks of a site that a model may use.
pub(super) fn fitting(model: &FleetModel, site: &Site) -> Vec<Block> {
    let counts: &[u64] = model.devices.as_deref().unwrap_or(&USUAL);
    let mut blocks: Vec<Block> =
        counts.iter().filter_map(|count| usize::try_from(*count).ok()).flat_map(|count| site.blocks(count)).collect();
    if model.devices.is_none() {
        blocks.extend(site.everything());
    }
    blocks
}

/// A replica spans no more devices of a host than it must.
fn keep_the_fewest(problem: &mut Problem, model: usize) {
    let mut fewest = vec![usize::MAX; problem.hosts];
    for (_, candidate) in problem.of(model) {
        let counted = candidate.uses.len();
        if let Some(least) = fewest.get_mut(candidate.host) {
            *least = (*least).min(counted);
        }
    }
    problem.candidates.retain(|candidate| {
        candidate.model != model || fewest.get(candidate.host).is_some_and(|least| candidate.uses.len() <= *least)
    });
}

/// Where every replica goes.
pub(super) fn placements(
    request: &FleetRequest,
    models: &[Model],
    ground: &Ground,
    problem: &Problem,
    demands: &[Demand],
    counts: &[u64],
) -> Result<Vec<Placement>, PlanError> {
    let mut placements = Vec::new();
    let mut numbers = vec![0_u64; models.len()];
    for (candidate, count) in problem.candidates.iter().zip(counts) {
        let (Some(model), Some(site), Some(demand)) =
            (request.model.get(candidate.model), ground.sites.get(candidate.host), demands.get(candidate.demand))
        else {
            continue;
        };
        for _ in 0..*count {
            let Some(number) = numbers.get_mut(candidate.model) else { continue };
            let mut devices = Vec::new();
            for (offset, bytes) in demand.devices.iter().enumerate() {
                let index = candidate.first + offset;
                let Some(device) = site.devices.get(index) else { continue };
                devices.push(OnDevice {
                    index: u64::try_from(index).unwrap_or(u64::MAX),
                    name: device.name.clone(),
                    bytes: exact(*bytes)?,
                });
            }
            placements.push(Placement {
                model: model.name.clone(),
                replica: *number,
                host: site.name.clone(),
                devices,
                host_bytes: exact(demand.host)?,
                command: demand.command.clone(),
            });
            *number += 1;
        }
    }
    Ok(placements)
}
