//! What would place one more replica: a setting that makes it smaller, or one more host; each tried.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::demand::{Block, Demand, Ground, Site, USUAL, base, demand, fitting};
use super::problem::Problem;
use super::wire::{Fix, FleetRequest};
use crate::engine::Question;
use crate::error::PlanError;
use crate::model::Model;
use crate::request::{Engine, Options};

/// Bytes left after what is placed; the room that a change has to do with.
type Left<'a> = &'a [u64];

/// A change of settings, in words and as options.
struct Setting {
    change: String,
    options: Vec<String>,
    apply: fn(&mut Options, u64),
    value: u64,
}

const LADDER: [&str; 6] = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "IQ2_M"];

/// Settings that make a replica smaller, the mildest of each kind first.
fn settings(question: &Question<'_>) -> Vec<Setting> {
    let mut all = Vec::new();
    let llama = matches!(question.effective.engine, Engine::LlamaCpp(_));
    if llama && question.options.kv_type.is_none() && question.options.kv_type_k.is_none() {
        all.push(Setting {
            change: "store its cache as q8_0".to_string(),
            options: ["--kv-type", "q8_0"].map(ToString::to_string).to_vec(),
            apply: |options, _| options.kv_type = Some("q8_0".to_string()),
            value: 0,
        });
    }
    let context = question.options.context.unwrap_or(question.model.spec.max_context);
    for shift in 1..=4 {
        let less = context >> shift;
        if less >= 2048 {
            all.push(Setting {
                change: format!("a context of {less} tokens"),
                options: ["--context".to_string(), less.to_string()].to_vec(),
                apply: |options, less| {
                    options.context = Some(less);
                    options.total_context = None;
                },
                value: less,
            });
        }
    }
    let sequences = question.effective.deployment.sequences;
    if sequences > 1 {
        all.push(Setting {
            change: format!("{} sequences instead of {sequences}", sequences / 2),
            options: ["--sequences".to_string(), (sequences / 2).to_string()].to_vec(),
            apply: |options, fewer| options.sequences = Some(fewer),
            value: sequences / 2,
        });
    }
    if question.can_requantize() {
        for (rung, name) in (0_u64..).zip(LADDER) {
            all.push(Setting {
                change: format!("weights as {name}"),
                options: ["--quant", name].map(ToString::to_string).to_vec(),
                apply: |options, rung| {
                    let name = usize::try_from(rung).ok().and_then(|rung| LADDER.get(rung));
                    options.quant = name.map(ToString::to_string);
                },
                value: rung,
            });
        }
    }
    all
}

/// Where a block of a candidate's size has room for `taken`.
fn has_room(
    ground: &Ground,
    problem: &Problem,
    model: usize,
    left: Left<'_>,
    blocks: &dyn Fn(&Site) -> Vec<Block>,
    try_on: &mut dyn FnMut(&Block) -> Option<Demand>,
    counts: &[u64],
) -> bool {
    for (host, site) in ground.sites.iter().enumerate() {
        if problem.keeps_away(model, host, counts) {
            continue;
        }
        for block in blocks(site) {
            let Some(demand) = try_on(&block) else { continue };
            let uses = site.uses(&block, &demand);
            if uses.iter().all(|(bin, bytes)| left.get(*bin).is_some_and(|left| left >= bytes)) {
                return true;
            }
        }
    }
    false
}

/// Fixes for a model of which something is left over, the cheapest first.
pub(super) fn fixes(
    request: &FleetRequest,
    index: usize,
    facts: &Model,
    ground: &Ground,
    problem: &Problem,
    left: Left<'_>,
    counts: &[u64],
) -> Result<Vec<Fix>, PlanError> {
    let Some(model) = request.model.get(index) else { return Ok(Vec::new()) };
    let question = base(model, facts, ground)?;
    let mut fixes: Vec<Fix> = Vec::new();
    let mut kinds: Vec<String> = Vec::new();
    let works = |changed: &Question<'_>, blocks: &dyn Fn(&Site) -> Vec<Block>| {
        let mut seen: Vec<(Block, Option<Demand>)> = Vec::new();
        let mut try_on = |block: &Block| -> Option<Demand> {
            if let Some((_, known)) = seen.iter().find(|(there, _)| there.devices == block.devices) {
                return known.clone();
            }
            let found = demand(changed, block, &ground.known).ok().flatten();
            seen.push((block.clone(), found.clone()));
            found
        };
        has_room(ground, problem, index, left, blocks, &mut try_on, counts)
    };
    // Devices that the model was kept from, and that are free.
    for count in USUAL {
        let allowed = model.devices.as_deref().unwrap_or(&USUAL);
        let Some(size) = usize::try_from(count).ok().filter(|_| !allowed.contains(&count)) else { continue };
        if works(&question, &|site| site.blocks(size)) {
            let change = format!("replicas that span {count} devices (devices = [{count}])");
            fixes.push(Fix { change, options: Vec::new(), hardware: false, price: None });
            break;
        }
    }
    for setting in settings(&question) {
        let kind = setting.options.first().cloned().unwrap_or_default();
        // The mildest that is enough.
        if kinds.contains(&kind) {
            continue;
        }
        let Ok(changed) = question.changed(|options| (setting.apply)(options, setting.value)) else { continue };
        if works(&changed, &|site| fitting(model, site)) {
            kinds.push(kind);
            fixes.push(Fix { change: setting.change, options: setting.options, hardware: false, price: None });
        }
    }
    fixes.extend(one_more_host(request, index, ground, problem));
    Ok(fixes)
}

/// The cheapest kind of host of this fleet on which a replica fits alone: by price, or by memory where none is given.
fn one_more_host(request: &FleetRequest, model: usize, ground: &Ground, problem: &Problem) -> Option<Fix> {
    let mut kinds: Vec<usize> =
        problem.of(model).filter_map(|(_, candidate)| ground.sites.get(candidate.host)).map(|site| site.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let memory = |kind: usize| -> u64 {
        let site = ground.sites.iter().find(|site| site.kind == kind);
        site.map_or(0, |site| site.devices.iter().map(|device| device.usable.bytes.get()).sum())
    };
    let price = |kind: usize| request.host.get(kind).and_then(|host| host.price);
    let cheapest =
        kinds.into_iter().min_by_key(|kind| (price(*kind).map_or(u64::MAX, |price| price.thousandths()), memory(*kind)))?;
    let host = request.host.get(cheapest)?;
    Some(Fix {
        change: format!("one more host like {} ({})", host.name, host.devices.join(", ")),
        options: Vec::new(),
        hardware: true,
        price: host.price,
    })
}
