//! Asks llmfit about each model named on the command line, from its own catalogue: one line of JSON each.
//!
//!     llmfit CONTEXT NAME...

#![allow(clippy::as_conversions, reason = "a peer's figures are shown as they are")]

use std::time::Instant;

use llmfit_core::models::{KvQuant, ModelDatabase};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let context: u32 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(8192);
    let database = ModelDatabase::embedded();
    for name in arguments {
        let Some(model) = database.get_all_models().iter().find(|model| model.name == name) else {
            println!("{}", serde_json::json!({"name": name, "error": "not in its catalogue"}));
            continue;
        };
        let start = Instant::now();
        let gigabytes = model.estimate_memory_gb_with_kv("Q4_K_M", context, KvQuant::Fp16);
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Its cache is divided by 2^30.
        let bytes = (gigabytes * f64::from(1 << 30)).round() as u64;
        println!("{}", serde_json::json!({"name": name, "bytes": bytes, "ns": nanoseconds}));
    }
}
