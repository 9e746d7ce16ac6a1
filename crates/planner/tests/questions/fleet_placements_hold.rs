//! A placement never exceeds a device, keeps replicas apart that must be, and where it is said to be the best, none is better.

use std::collections::BTreeMap;

use plimsoll_planner::Model;
use plimsoll_planner::fleet::{Bin, Candidate, Fleet, FleetRequest, Method, Problem, Wanted, arrange, fleet};
use proptest::prelude::*;

use crate::models::model;

fn ask(request: serde_json::Value) -> Fleet {
    let request: FleetRequest = serde_json::from_value(request).unwrap();
    let models: Vec<Model> = request.model.iter().map(|wanted| model(wanted.model.as_deref().unwrap_or(&wanted.name))).collect();
    let answer = fleet(&request, &models).unwrap();
    holds(&answer);
    answer
}

/// Adds up what every replica takes and compares with what each device and host has.
#[track_caller]
fn holds(answer: &Fleet) {
    let mut used: BTreeMap<(String, u64), u64> = BTreeMap::new();
    let mut on_host: BTreeMap<String, u64> = BTreeMap::new();
    for placement in &answer.placements {
        for device in &placement.devices {
            *used.entry((placement.host.clone(), device.index)).or_default() += device.bytes.get();
        }
        *on_host.entry(placement.host.clone()).or_default() += placement.host_bytes.get();
    }
    for host in &answer.hosts {
        for (index, device) in (0_u64..).zip(&host.devices) {
            let sum = used.get(&(host.name.clone(), index)).copied().unwrap_or(0);
            assert_eq!(device.used.get(), sum, "{} {index}", host.name);
            assert!(
                sum <= device.limit.get() && device.limit <= device.usable,
                "{} {index}: {sum} of {}",
                host.name,
                device.limit
            );
        }
        if let Some(memory) = host.memory {
            assert!(on_host.get(&host.name).copied().unwrap_or(0) <= memory.get(), "{}", host.name);
        }
    }
    let placed = u64::try_from(answer.placements.len()).unwrap();
    assert_eq!(placed, answer.placed_replicas);
    assert_eq!(placed + answer.unplaced.iter().map(|missing| missing.replicas).sum::<u64>(), answer.wanted_replicas);
}

#[test]
fn replicas_share_devices_as_long_as_there_is_room() {
    let answer = ask(serde_json::json!({
        "headroom": "5%",
        "host": [{"name": "a", "devices": ["RTX 4090 x2"], "memory": "64GiB"}],
        "model": [{"name": "llama-3.1-8b", "replicas": 6, "options": {"context": 8192, "quant": "Q4_K_M"}}],
    }));
    // A replica takes 6.0 to 6.6 GiB of 22.3: three on each board.
    assert_eq!((answer.placed_replicas, answer.method), (6, Method::Greedy));
    assert!(answer.optimal && answer.unplaced.is_empty());
    let more = ask(serde_json::json!({
        "headroom": "5%",
        "host": [{"name": "a", "devices": ["RTX 4090 x2"], "memory": "64GiB"}],
        "model": [{"name": "llama-3.1-8b", "replicas": 9, "options": {"context": 8192, "quant": "Q4_K_M"}}],
    }));
    assert_eq!(more.placed_replicas, 6);
    let missing = &more.unplaced[0];
    assert_eq!(missing.replicas, 3);
    assert!(missing.reason.contains("missing on a, device"), "{}", missing.reason);
    assert!(missing.fixes.iter().any(|fix| fix.hardware && fix.change.contains("RTX 4090 x2")), "{:?}", missing.fixes);
}

#[test]
fn a_large_model_spans_as_many_devices_as_it_must() {
    let answer = ask(serde_json::json!({
        "host": [{"name": "small", "devices": ["RTX 4090 x4"]}, {"name": "large", "devices": ["H200"]}],
        "model": [
            {"name": "gemma", "model": "gemma-3-27b", "replicas": 2, "spread": "host",
             "options": {"context": 8192, "quant": "Q8_0"}},
        ],
    }));
    assert_eq!(answer.placed_replicas, 2, "{:?}", answer.unplaced);
    let spans: Vec<usize> = answer.placements.iter().map(|placement| placement.devices.len()).collect();
    assert!(spans.contains(&1) && spans.contains(&2), "{spans:?}");
    let on_small = answer.placements.iter().find(|placement| placement.host == "small").unwrap();
    assert!(on_small.command.windows(2).any(|pair| pair[0] == "-ts"), "{:?}", on_small.command);
}

#[test]
fn those_that_must_be_apart_are() {
    let request = |apart: bool| {
        serde_json::json!({
            "host": [{"name": "a", "devices": ["H200"]}, {"name": "b", "devices": ["RTX 4090"]}],
            "model": [
                {"name": "one", "model": "llama-3.1-8b", "options": {"context": 4096, "quant": "Q4_K_M"},
                 "apart_from": if apart { vec!["two"] } else { vec![] }},
                {"name": "two", "model": "llama-3.1-8b", "options": {"context": 4096, "quant": "Q4_K_M"}},
            ],
        })
    };
    let hosts = |answer: &Fleet| -> Vec<String> { answer.placements.iter().map(|placement| placement.host.clone()).collect() };
    let together = hosts(&ask(request(false)));
    assert_eq!(together[0], together[1], "the fullest device takes both");
    let apart = hosts(&ask(request(true)));
    assert_ne!(apart[0], apart[1]);
}

#[test]
fn priorities_decide_who_stays_outside_and_a_setting_may_let_him_in() {
    let answer = ask(serde_json::json!({
        "host": [{"name": "a", "devices": ["RTX 4090"], "price": 2500}],
        "model": [
            {"name": "less", "model": "llama-3.1-8b", "options": {"context": 32768, "quant": "Q8_0"}},
            {"name": "more", "model": "llama-3.1-8b", "priority": 5, "options": {"context": 32768, "quant": "Q8_0"}},
        ],
    }));
    assert_eq!(answer.placements[0].model, "more");
    let fixes = &answer.unplaced[0].fixes;
    assert!(fixes.iter().any(|fix| !fix.hardware && fix.options[0] == "--context"), "{fixes:?}");
    assert!(fixes.windows(2).all(|pair| pair[0].hardware <= pair[1].hardware), "what costs nothing comes first: {fixes:?}");
}

#[test]
fn what_stands_in_the_way_is_said_and_what_would_help_was_tried() {
    let chat = |devices: &[u64], replicas: u64| {
        serde_json::json!({
            "host": [{"name": "small", "devices": ["RTX 4090"]}, {"name": "large", "devices": ["H100 SXM x4"]}],
            "model": [{"name": "chat", "model": "gemma-3-27b", "replicas": replicas, "spread": "host", "devices": devices,
                       "options": {"context": 8192, "quant": "Q8_0"}}],
        })
    };
    let answer = ask(chat(&[1], 2));
    assert!(answer.unplaced[0].reason.contains("must not share a host"), "{}", answer.unplaced[0].reason);

    // Two bytes a weight are 50 GiB: too much for one device of 24 GiB and for what the headroom leaves of it.
    let mut request = chat(&[1], 1);
    request["host"] = serde_json::json!([{"name": "small", "devices": ["RTX 4090 x4"]}]);
    let answer = ask(request.clone());
    let missing = &answer.unplaced[0];
    assert!(missing.reason.contains("even a single replica") && missing.reason.contains("small, NVIDIA"), "{}", missing.reason);
    let wider = missing.fixes.iter().find(|fix| fix.change.contains("span 2 devices")).expect("two devices hold it");
    assert!(wider.options.is_empty() && !wider.hardware);
    request["model"][0]["devices"] = serde_json::json!([2]);
    assert_eq!(ask(request).placed_replicas, 1, "what was offered works");
}

#[test]
fn what_cannot_be_is_refused() {
    let good = serde_json::json!({
        "host": [{"name": "a", "devices": ["RTX 4090"]}],
        "model": [{"name": "llama-3.1-8b", "options": {"quant": "Q4_K_M", "context": 4096}}],
    });
    for (pointer, value, names) in [
        ("/host/0/devices", serde_json::json!(["RTX 4091"]), "host 1 (a)"),
        ("/host/0/devices", serde_json::json!([]), "host 1 (a)"),
        ("/host", serde_json::json!([]), "host"),
        ("/model/0/replicas", serde_json::json!(0), "replicas"),
        ("/model/0/priority", serde_json::json!(0), "priority"),
        ("/model/0/apart_from", serde_json::json!(["nobody"]), "apart_from"),
        ("/model/0/options/device", serde_json::json!("H200"), "device"),
        ("/model/0/options/kv_type", serde_json::json!("q9"), "kv_type"),
    ] {
        let mut wrong = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        wrong.pointer_mut(parent).unwrap()[key] = value;
        let request: FleetRequest = serde_json::from_value(wrong).unwrap();
        let error = fleet(&request, &[model("llama-3.1-8b")]).unwrap_err().to_string();
        assert!(error.contains(names), "{pointer}: {error}");
    }
    for text in ["101%", "5.55%", "-1%", "lots"] {
        assert!(serde_json::from_value::<FleetRequest>(serde_json::json!({"headroom": text})).is_err(), "{text}");
    }
}

/// Every placement of a small problem.
fn best_of_all(problem: &Problem) -> u64 {
    fn go(problem: &Problem, counts: &mut Vec<u64>, best: &mut u64) {
        if counts.len() == problem.candidates.len() {
            if problem.keeps(counts) {
                *best = (*best).max(problem.value(counts));
            }
            return;
        }
        let most = problem.wanted[problem.candidates[counts.len()].model].replicas;
        for count in 0..=most {
            counts.push(count);
            go(problem, counts, best);
            counts.pop();
        }
    }
    let mut best = 0;
    go(problem, &mut Vec::new(), &mut best);
    best
}

fn problems(bins: usize, models: usize, candidates: usize, replicas: u64) -> impl Strategy<Value = Problem> {
    let bins_of = prop::collection::vec(1_u64..40 << 30, 1..=bins);
    let wanted = prop::collection::vec((1..=replicas, 1_u64..5, any::<bool>(), any::<bool>()), 1..=models);
    (bins_of, wanted).prop_flat_map(move |(bins, wanted)| {
        let (hosts, count) = (bins.len(), wanted.len());
        let one = (0..count, 0..hosts, 1_u64..30 << 30, 0..hosts, any::<bool>(), 0_u64..10 << 30);
        prop::collection::vec(one, 0..=candidates).prop_map(move |all| Problem {
            hosts,
            bins: bins.iter().map(|capacity| Bin { name: "bin".into(), capacity: *capacity, counts: true }).collect(),
            wanted: wanted
                .iter()
                .enumerate()
                .map(|(index, (replicas, worth, spread, apart))| Wanted {
                    replicas: *replicas,
                    worth: *worth,
                    spread: *spread,
                    apart: if *apart && count > 1 { vec![(index + 1) % count] } else { Vec::new() },
                })
                .collect(),
            candidates: all
                .iter()
                .enumerate()
                .map(|(demand, (model, host, bytes, other, two, more))| {
                    let mut uses = vec![(*host, *bytes)];
                    if *two && other != host {
                        uses.push((*other, *more));
                    }
                    Candidate { model: *model, host: *host, uses, demand, first: 0 }
                })
                .collect(),
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// No placement breaks a rule, whichever way it was found, and none is worth more than the bound.
    #[test]
    fn no_device_is_ever_exceeded(problem in problems(12, 12, 60, 5)) {
        let mut before = 0;
        for seconds in [0, 1] {
            let (counts, _) = arrange(&problem, seconds);
            prop_assert!(problem.keeps(&counts));
            let value = problem.value(&counts);
            prop_assert!(value <= problem.bound());
            prop_assert!(value >= before, "a search is worth no less than what it starts from");
            before = value;
        }
    }

    /// What is said to be the best is the best of all.
    #[test]
    fn what_is_proven_is_the_best(problem in problems(3, 3, 6, 2)) {
        let (counts, method) = arrange(&problem, 5);
        let best = best_of_all(&problem);
        prop_assert!(problem.bound() >= best);
        if method == Method::Proven {
            prop_assert_eq!(problem.value(&counts), best);
        } else {
            prop_assert!(problem.value(&counts) <= best);
        }
    }
}
