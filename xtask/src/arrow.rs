//! The dependency arrow: which workspace crate may depend on which, and what must never reach the ground floor.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::run::{cargo, output};

/// Each crate with the workspace crates it may use outside tests.
const ALLOWED: &[(&str, &[&str])] = &[
    ("plimsoll-math", &[]),
    ("plimsoll-ingest", &["plimsoll-math"]),
    ("plimsoll-planner", &["plimsoll-math", "plimsoll-ingest"]),
    ("plimsoll", &["plimsoll-math", "plimsoll-ingest", "plimsoll-planner"]),
    ("plimsoll-probe", &["plimsoll-math"]),
    ("plimsoll-cli", &["plimsoll", "plimsoll-probe"]),
    ("xtask", &["plimsoll", "plimsoll-math", "plimsoll-ingest"]),
];

/// What the ground floor may use from outside, features included.
const GROUND_FLOOR: &[&str] = &["libm", "serde", "thiserror"];

/// Checks every arrow of the workspace.
pub(crate) fn check() -> Result<(), String> {
    println!("== dependency arrows");
    let text = output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps"])).ok_or("cargo metadata failed")?;
    let metadata: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let mut members: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in list(&metadata, "packages") {
        let uses = members.entry(text_of(package, "name")).or_default();
        let built = list(package, "dependencies").iter().filter(|dependency| dependency.get("kind").is_none_or(Value::is_null));
        uses.extend(built.map(|dependency| text_of(dependency, "name")));
    }
    let mut wrong = Vec::new();
    for (name, uses) in &members {
        let Some((_, allowed)) = ALLOWED.iter().find(|(member, _)| member == name) else {
            wrong.push(format!("{name} is not in the list of crates (xtask/src/arrow.rs)"));
            continue;
        };
        for used in uses.iter().filter(|used| members.contains_key(*used) && !allowed.contains(used)) {
            wrong.push(format!("{name} may not depend on {used}"));
        }
        if *name == "plimsoll-math" {
            for used in uses.iter().filter(|used| !GROUND_FLOOR.contains(used)) {
                wrong.push(format!("{name} may not depend on {used}"));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}
