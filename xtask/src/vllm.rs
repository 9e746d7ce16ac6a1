//! `cargo xtask conformance --engine vllm`: the recorded plans of vLLM's own planner beside ours, row by row.

use std::collections::BTreeMap;
use std::time::Instant;

use plimsoll_math::engine::vllm::layers::cache_plan;
use plimsoll_math::engine::vllm::options::{Knobs, MaxLength};
use plimsoll_math::engine::vllm::plan::CachePlan;
use plimsoll_math::engine::vllm::weights::weights;
use plimsoll_math::engine::vllm::{VERSION, VERSION_NUMBER};
use plimsoll_math::error::MathError;
use serde_json::Value;

#[path = "../../crates/plimsoll/tests/support/vllm.rs"]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "shared with the tests, whose fixtures are the repository's own"
)]
mod fixtures;

/// What was compared, and how it went.
#[derive(Debug, Default)]
struct Score {
    rows: u64,
    plans: u64,
    blocks_off: u64,
    refusals: u64,
    refusals_missed: u64,
    weights: u64,
    weights_off: u64,
    weights_not_followed: u64,
}

/// Compares every row and prints the score.
///
/// # Errors
/// When a plan or a refusal differs.
pub(crate) fn run() -> Result<(), String> {
    let start = Instant::now();
    let configs = fixtures::configs();
    let mut models = BTreeMap::new();
    let mut score = Score::default();
    for row in fixtures::rows() {
        let key = fixtures::config(&row, &configs).to_string();
        let model = models.entry(key).or_insert_with(|| fixtures::model(&row, &configs));
        let knobs = fixtures::knobs(&row);
        score.rows += 1;
        let planned = cache_plan(&model.spec, &model.checkpoint, &knobs);
        let weighed = weights(&model.spec, &model.tensors, &model.checkpoint, &knobs);
        let Some(expected) = row.get("expected") else {
            if knobs.online_quantization.is_some() {
                continue;
            }
            score.refusals += 1;
            let refused = matches!(planned, Err(MathError::Refused { .. })) || matches!(weighed, Err(MathError::Refused { .. }));
            score.refusals_missed += u64::from(!refused);
            continue;
        };
        match planned {
            Ok((plan, _)) => compare(&plan, &knobs, expected, &mut score),
            Err(error) => return Err(format!("{}: {error}", text(&row, "model"))),
        }
        score.weights += 1;
        match weighed {
            Ok(ranks) => {
                let ours: Vec<u64> = ranks.iter().map(plimsoll_math::engine::vllm::weights::RankWeights::bytes).collect();
                let theirs: Vec<u64> = row
                    .get("weights_per_pp_rank")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(|rank| rank.pointer("/target/param_bytes")?.as_u64())
                    .collect();
                score.weights_off += u64::from(ours != theirs);
            }
            Err(_) => score.weights_not_followed += 1,
        }
    }
    println!("{VERSION}: recorded plans (the engine itself is not run here), {} rows in {:.1?}", score.rows, start.elapsed());
    println!("  blocks      {} plans, {} differ", score.plans, score.blocks_off);
    println!("  refusals    {}, {} accepted by us", score.refusals, score.refusals_missed);
    println!(
        "  weights     {} rows, {} differ, {} with a scheme that is not followed",
        score.weights, score.weights_off, score.weights_not_followed
    );
    if score.blocks_off + score.refusals_missed > 0 {
        return Err(format!("plans or refusals differ from vLLM {VERSION_NUMBER}"));
    }
    Ok(())
}

fn compare(plan: &CachePlan, knobs: &Knobs, expected: &Value, score: &mut Score) {
    for theirs in expected.get("plans").and_then(Value::as_array).into_iter().flatten() {
        score.plans += 1;
        let bytes = theirs.get("available_kv_bytes").and_then(Value::as_u64).unwrap_or(0);
        let memory = vec![bytes; plan.block_bytes.len()];
        let ours = plan.capacity(&memory, knobs, matches!(knobs.max_length, MaxLength::Fit)).ok().map(|capacity| capacity.blocks);
        score.blocks_off += u64::from(ours != theirs.get("num_blocks").and_then(Value::as_u64));
    }
}

fn text(row: &Value, key: &str) -> String {
    row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}
