//! Random fleets for which HiGHS proved the best placement: what is found here is never worth more, hardly ever worth less, and the bound
//! that gaps are measured from lies above.

use std::io::Read;

use flate2::read::GzDecoder;
use plimsoll::planner::fleet::{Bin, Candidate, Method, Problem, Wanted, arrange};
use serde_json::Value;

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn problem(row: &Value) -> Problem {
    let wanted = list(&row["wanted"]).iter().map(|one| Wanted {
        replicas: one[0].as_u64().unwrap(),
        worth: one[1].as_u64().unwrap(),
        spread: one[2].as_bool().unwrap(),
        apart: list(&one[3]).iter().map(number).collect(),
    });
    let candidates = list(&row["cands"]).iter().enumerate().map(|(demand, one)| Candidate {
        model: number(&one[0]),
        host: number(&one[1]),
        uses: list(&one[2]).iter().map(|part| (number(&part[0]), part[1].as_u64().unwrap())).collect(),
        demand,
        first: 0,
    });
    Problem {
        bins: list(&row["bins"])
            .iter()
            .zip(list(&row["counts"]))
            .map(|(bytes, counts)| Bin {
                name: String::new(),
                capacity: bytes.as_u64().unwrap(),
                counts: counts.as_bool().unwrap(),
            })
            .collect(),
        candidates: candidates.collect(),
        wanted: wanted.collect(),
        hosts: number(&row["hosts"]),
    }
}

#[test]
fn what_is_found_is_hardly_ever_worth_less() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/fleet/highs.jsonl.gz");
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let (mut equal, mut rows) = (0, 0);
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let (problem, best) = (problem(&row), row["best"].as_u64().unwrap());
        let greedy = problem.value(&arrange(&problem, 0).0);
        let (counts, method) = arrange(&problem, 1);
        let found = problem.value(&counts);
        assert!(problem.keeps(&counts));
        assert!(problem.bound() >= best, "row {rows}: the bound {} is below {best}", problem.bound());
        assert!(found <= best && found >= greedy, "row {rows}: {found} of {best}, greedy {greedy}");
        // Within two in a hundred of the best.
        assert!(found * 50 >= best * 49, "row {rows}: {found} of {best}");
        assert!(method != Method::Proven || found == best, "row {rows}: {found} is not the best, {best}");
        equal += usize::from(found == best);
        rows += 1;
    }
    assert_eq!(rows, 10);
    assert!(equal >= 9, "{equal} of {rows} are the best");
}
