//! `cargo xtask conformance --engine vllm`: what vLLM plans, loads and refuses beside our answers.

mod live;
mod score;

use std::time::Instant;

use plimsoll_math::engine::vllm::{VERSION, VERSION_NUMBER};

pub(crate) use live::Plan;
pub(crate) use score::Scores;

/// Compares every row and prints the score; with vLLM installed its own functions are asked as well.
///
/// # Errors
/// When a plan, a weight or a refusal differs.
pub(crate) fn run(plan: &Plan) -> Result<(), String> {
    println!("== conformance with {VERSION}");
    let start = Instant::now();
    let scores = Scores::of_the_record();
    println!(
        "   recorded truth: {} rows, {} mismatches, {:.1} s\n",
        scores.rows(),
        scores.differing(),
        start.elapsed().as_secs_f64()
    );
    println!("{}", scores.table());
    if scores.differing() == 0 {
        return live::run(plan);
    }
    print!("{}", scores.wrong());
    Err(format!("{} of {} rows differ from vLLM {VERSION_NUMBER}", scores.differing(), scores.rows()))
}
