//! The replicas that a load needs keep the promises, one fewer breaks one, and the same seed gives the same answer.

use plimsoll_planner::Options;
use plimsoll_planner::capacity::lengths::{Lengths, arrivals};
use plimsoll_planner::capacity::{Asked, Binding, Capacity, Promises, capacity};

use crate::models::model;

fn options(sequences: u64) -> Options {
    Options {
        context: Some(8192),
        sequences: Some(sequences),
        quant: Some("Q4_K_M".into()),
        device: Some("RTX 4090".into()),
        ..Options::default()
    }
}

fn ask(rate: f64, ttft: f64, tpot: Option<f64>, places: &[&str], sequences: u64) -> Capacity {
    let prompt = Lengths::parse("prompt", "lognormal:400,2000").unwrap();
    let output = Lengths::parse("output", "uniform:20,200").unwrap();
    let asked = Asked {
        arrivals: arrivals(3, rate, 300, prompt, output).unwrap(),
        longest: 0,
        promises: Promises { ttft_p95: Some(ttft), tpot_p95: tpot },
        places: places.iter().map(ToString::to_string).collect(),
        most: None,
        notes: Vec::new(),
    };
    capacity(&model("llama-3.1-8b"), &options(sequences), &asked).unwrap()
}

#[test]
fn the_fewest_replicas_that_keep_the_promises() {
    let answer = ask(12.0, 2.0, Some(0.05), &[], 4);
    let choice = &answer.choices[0];
    let replicas = choice.replicas.expect(&choice.why);
    assert!(replicas > 1, "{choice:?}");
    let played = choice.played.as_ref().unwrap();
    assert!(played.ttft.p95 <= 2.0 && played.tpot.unwrap().p95 <= 0.05, "{played:?}");
    let fewer = choice.one_fewer.as_ref().unwrap();
    assert!(fewer.ttft.p95 > 2.0 || fewer.tpot.unwrap().p95 > 0.05, "{fewer:?}");
    assert!(played.utilisation > 0.0 && played.utilisation <= 1.0 && fewer.utilisation <= 1.0);
    // What one replica fewer leaves waits in the others' seats.
    assert!(played.sequences > 0.0 && fewer.sequences >= played.sequences);
    assert!(choice.replicas_if_slow.unwrap() >= replicas);
    assert!(matches!(choice.binding, Binding::TimeToFirstToken | Binding::TimePerOutputToken), "{choice:?}");
    assert_eq!(answer, ask(12.0, 2.0, Some(0.05), &[], 4), "the same seed, the same answer");
}

#[test]
fn more_load_never_takes_fewer() {
    let mut last = 0;
    for rate in [0.5, 4.0, 16.0] {
        let replicas = ask(rate, 3.0, None, &[], 8).choices[0].replicas.unwrap();
        assert!(replicas >= last, "{rate}");
        last = replicas;
    }
    assert!(last > 1);
}

#[test]
fn what_no_number_of_replicas_keeps_is_said() {
    let fast = &ask(1.0, 2.0, Some(0.0005), &[], 4).choices[0];
    assert_eq!((fast.replicas, fast.binding), (None, Binding::TimePerOutputToken), "{}", fast.why);
    let small = &ask(1.0, 2.0, None, &["GTX 1050 Ti"], 4).choices[0];
    assert_eq!((small.replicas, small.binding), (None, Binding::Memory), "{}", small.why);
    let asked = Asked {
        arrivals: arrivals(1, 1.0, 10, Lengths::Fixed(9000), Lengths::Fixed(10)).unwrap(),
        longest: 0,
        promises: Promises { ttft_p95: Some(60.0), tpot_p95: None },
        places: Vec::new(),
        most: None,
        notes: Vec::new(),
    };
    let long = capacity(&model("llama-3.1-8b"), &options(1), &asked).unwrap();
    assert_eq!(long.choices[0].binding, Binding::Context, "{}", long.choices[0].why);
}

#[test]
fn places_are_compared_by_how_many_devices_they_take() {
    let answer = ask(8.0, 2.0, Some(0.05), &["RTX 3060 12GB", "RTX 4090", "H200"], 4);
    let counts: Vec<u64> = answer.choices.iter().filter_map(|choice| choice.devices_in_all).collect();
    assert_eq!(counts.len(), 3, "{answer:?}");
    assert!(counts.windows(2).all(|pair| pair[0] <= pair[1]), "{counts:?}");
}

#[test]
fn promises_that_are_none_are_refused() {
    for (ttft, tpot) in [(0.0, None), (f64::NAN, None), (-1.0, None), (1.0, Some(0.0)), (1.0, Some(f64::INFINITY))] {
        let asked = Asked {
            arrivals: arrivals(1, 1.0, 10, Lengths::Fixed(9), Lengths::Fixed(9)).unwrap(),
            longest: 0,
            promises: Promises { ttft_p95: Some(ttft), tpot_p95: tpot },
            places: Vec::new(),
            most: None,
            notes: Vec::new(),
        };
        assert!(capacity(&model("llama-3.1-8b"), &options(1), &asked).is_err(), "{ttft} {tpot:?}");
    }
}
