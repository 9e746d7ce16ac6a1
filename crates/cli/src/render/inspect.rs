//! `plimsoll inspect` for people.

use plimsoll::planner::response::{Inspect, LayerBrief};
use plimsoll::planner::size::{count, grouped, long};

use super::text::{BOLD, DIM, columns, flow, left, paint, right, width};
use super::{notes, page};

/// Layers that are the same but for their index, as `0-3, 5`.
fn ranges(indexes: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for index in indexes {
        match parts.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(*index) => *end = *index,
            _ => parts.push((*index, *index)),
        }
    }
    let texts: Vec<String> =
        parts.iter().map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") }).collect();
    texts.join(",")
}

fn same(a: &LayerBrief, b: &LayerBrief) -> bool {
    LayerBrief { index: 0, ..a.clone() } == LayerBrief { index: 0, ..b.clone() }
}

fn describe(layer: &LayerBrief) -> String {
    let mut parts = vec![format!("{} + {}", layer.mixer.replace('_', " "), layer.feed_forward.replace('_', " "))];
    if layer.kv_dim_k + layer.kv_dim_v > 0 {
        parts.push(if layer.kv_dim_v > 0 {
            format!("cache {}+{}", layer.kv_dim_k, layer.kv_dim_v)
        } else {
            format!("cache {}", layer.kv_dim_k)
        });
    }
    if let Some(window) = layer.window {
        parts.push(format!("window {}", grouped(window)));
    }
    if layer.state_bytes.get() > 0 {
        parts.push(format!("state {}", plimsoll::planner::size::short(layer.state_bytes.get())));
    }
    parts.push(format!("{} each", count(layer.parameters.get())));
    parts.join(" · ")
}

/// The answer of `inspect`.
pub(crate) fn inspect(answer: &Inspect) -> String {
    let width = width();
    let parameters = &answer.parameters;
    let mut lines = vec![format!("{} {}", paint(BOLD, &answer.model.name), answer.model.architecture)];
    let mut facts = vec![format!("{} layers", answer.layers.len()), format!("{} wide", grouped(answer.model.d_model))];
    facts.push(format!("{} token vocabulary", grouped(answer.model.n_vocab)));
    if answer.model.max_context > 0 {
        facts.push(format!("{} tokens of context", grouped(answer.model.max_context)));
    }
    facts.push(format!("{} tensors", grouped(answer.tensors)));
    facts.extend(answer.model.quantization.clone());
    facts.extend(answer.weight_bytes.map(|bytes| long(bytes.get())));
    lines.extend(flow(facts.into_iter(), " · ", width, "  "));
    lines.push(String::new());

    lines.push(paint(BOLD, "Parameters"));
    let mut rows: Vec<(String, u64)> = parameters
        .by_component
        .iter()
        .map(|(component, params)| {
            let name = serde_json::to_value(component).ok().and_then(|value| value.as_str().map(|text| text.replace('_', " ")));
            (name.unwrap_or_default(), params.get())
        })
        .collect();
    rows.sort_by_key(|(_, params)| std::cmp::Reverse(*params));
    let total = parameters.total.get();
    rows.push(("total".to_owned(), total));
    if parameters.active != parameters.total {
        rows.push(("active per token".to_owned(), parameters.active.get()));
    }
    for (name, params) in [("multi-token prediction", parameters.multi_token_prediction), ("buffers", parameters.buffers)] {
        if params.get() > 0 {
            rows.push((format!("+ {name}"), params.get()));
        }
    }
    let names = rows.iter().map(|(name, _)| columns(name)).max().unwrap_or(0);
    let figures = rows.iter().map(|(_, params)| columns(&grouped(*params))).max().unwrap_or(0);
    for (name, params) in &rows {
        let share = (u128::from(*params) * 1000).checked_div(u128::from(total)).unwrap_or(0);
        let share =
            if name == "total" || name.starts_with('+') { String::new() } else { format!("{}.{} %", share / 10, share % 10) };
        let line = format!("  {} {} {}", left(name, names), right(&grouped(*params), figures), right(&share, 8));
        lines.push(if name == "total" { paint(BOLD, line.trim_end()) } else { line });
    }
    lines.push(String::new());

    lines.push(paint(BOLD, "Layers"));
    let mut kinds: Vec<(Vec<u32>, &LayerBrief)> = Vec::new();
    for layer in &answer.layers {
        match kinds.iter_mut().find(|(_, first)| same(first, layer)) {
            Some((indexes, _)) => indexes.push(layer.index),
            None => kinds.push((vec![layer.index], layer)),
        }
    }
    for (indexes, layer) in kinds {
        lines.push(format!("  {} x {}", paint(BOLD, &indexes.len().to_string()), describe(layer)));
        lines
            .extend(super::wrap(&ranges(&indexes).replace(',', ", "), width, "      ").into_iter().map(|line| paint(DIM, &line)));
    }
    lines.extend(notes(&answer.notes, width));
    page(&lines)
}
