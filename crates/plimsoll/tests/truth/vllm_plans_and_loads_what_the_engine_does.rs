//! Blocks, pages, groups, capacity, weights of every rank and refusals against everything that was recorded of vLLM: 0 off.

use crate::support::vllm;
use crate::support::vllm_rows as rows;
use std::collections::BTreeMap;

#[test]
fn every_recorded_row_is_ours() {
    let configs = vllm::configs();
    let mut models = BTreeMap::new();
    let mut wrong: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let (mut planned, mut refused) = (0, 0);
    for row in vllm::rows() {
        let key = vllm::config(&row, &configs).to_string();
        let model = models.entry(key).or_insert_with(|| vllm::model(&row, &configs));
        let judged = rows::judge(&row, model, &vllm::knobs(&row));
        planned += usize::from(!judged.refused);
        refused += usize::from(judged.refused);
        let mut off = judged.plan;
        off.extend(judged.weights);
        if !off.is_empty() {
            let text = format!("{}\n   {}", rows::name(&row), off.join("\n   "));
            let entry = wrong.entry(row["model"].to_string()).or_insert((0, text));
            entry.0 += 1;
        }
    }
    for (model, (count, first)) in &wrong {
        eprintln!("{count} x {model}: {first}");
    }
    let total: usize = wrong.values().map(|(count, _)| count).sum();
    assert!(planned > 1_300 && refused > 50, "{planned} plans, {refused} refusals");
    assert_eq!(total, 0, "{total} of {} rows differ", planned + refused);
}
