//! The processor's work buffer beside every row in which the engine planned its graph on the processor alone, with the four
//! threads it was asked for.

use crate::support::places;
use crate::support::truth;
use std::collections::BTreeMap;

use plimsoll_math::deployment::Deployment;
use plimsoll_math::engine::llama_cpp::Build;
use plimsoll_math::engine::llama_cpp::work_buffer::bounds;
use plimsoll_math::format::StorageFormat;
use serde_json::Value;

use crate::support::rows;

#[test]
fn on_every_recorded_row() {
    let mut models = BTreeMap::new();
    let (mut exact, mut wrong) = (BTreeMap::<String, (u32, u32)>::new(), Vec::new());
    for row in rows("truth/llama.cpp/truth.jsonl.gz") {
        // Repacked matrices are counted as plain ones in a run that loads nothing: what their own kernel needs is checked
        // below, by runs that load.
        let Some(planned) = row["cpu_work_bytes"].as_u64().filter(|_| row["backend"] == "cpu") else { continue };
        let key = format!("{} {}", row["model"], row["quant"]);
        let Some((spec, table)) = models.entry(key).or_insert_with(|| places::model(&row)) else { continue };
        let (mut deployment, build) = truth::request(&row).unwrap();
        deployment.repack = row["params"]["extra_bufts"].as_bool() != Some(false);
        let found = bounds(spec, table, &deployment, build, 4).unwrap();
        let counts = exact.entry(row["arch"].as_str().unwrap().to_owned()).or_default();
        counts.0 += u32::from(found.low == found.high);
        counts.1 += 1;
        if !(found.low..=found.high).contains(&planned) {
            let off = i128::from(found.high) - i128::from(planned);
            wrong.push(format!("{}: {found:?}, engine {planned}, off by {off}", truth::describe(&row)));
        }
    }
    assert!(wrong.is_empty(), "{} rows differ\n{}", wrong.len(), wrong.join("\n"));
    let sum = exact.values().fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
    assert!(sum.1 >= 2000 && sum.0 == sum.1, "{sum:?} {exact:?}");
}

/// The settings of a row that both kinds of requests leave out.
fn asked(row: &Value) -> (Deployment, Build) {
    let (mut deployment, build) = truth::request(row).or_else(|| places::request(row)).unwrap();
    let params = &row["params"];
    deployment.ubatch = params["n_ubatch"].as_u64().unwrap();
    if let Some(format) = params["type_k"].as_str() {
        deployment.kv_type_k = StorageFormat::from_name(format).unwrap();
        deployment.kv_type_v = deployment.kv_type_k;
    }
    deployment.repack = params["extra_bufts"].as_bool() != Some(false);
    (deployment, build)
}

#[test]
fn with_parts_on_devices_with_repacked_matrices_and_with_any_number_of_threads() {
    let mut models = BTreeMap::new();
    let (mut counts, mut wrong) = (BTreeMap::<String, (u32, u32)>::new(), Vec::new());
    for row in rows("truth/llama.cpp/work_buffers.jsonl.gz") {
        let key = format!("{} {}", row["model"], row["quant"]);
        let Some((spec, table)) = models.entry(key).or_insert_with(|| places::model(&row)) else { continue };
        let (deployment, build) = asked(&row);
        let found = bounds(spec, table, &deployment, build, row["params"]["threads"].as_u64().unwrap()).unwrap();
        let counts = counts.entry(row["backend"].as_str().unwrap().to_owned()).or_default();
        counts.0 += u32::from(found.low == found.high);
        counts.1 += 1;
        let planned = row["work_bytes"].as_u64().unwrap();
        if !(found.low..=found.high).contains(&planned) {
            let off = i128::from(found.high) - i128::from(planned);
            wrong.push(format!("{}: {found:?}, engine {planned}, off by {off}", truth::describe(&row)));
        }
    }
    assert!(wrong.is_empty(), "{} rows differ\n{}", wrong.len(), wrong.join("\n"));
    // Bounds are left where the graph on several devices is not known.
    let sum = counts.values().fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
    assert!(sum.1 >= 490 && sum.0 * 100 >= sum.1 * 90, "{counts:?}");
}
