//! `plimsoll fit` for people.

use plimsoll::math::allocation::{Term, TermKind};
use plimsoll::math::units::Bytes;
use plimsoll::planner::like::LikeEngine;
use plimsoll::planner::response::{DeviceUse, Fit, Verdict};
use plimsoll::planner::size::{counted, grouped, short};
use plimsoll::planner::speed::{Rate, Throughput};

use super::bar::{bar, fill};
use super::text::{BAD, BOLD, DIM, GOOD, MAYBE, columns, flow, headline, left, paint, right, width, wrap};
use super::{certainty_text, component, digits, heading, label, legend, limited, mark, notes, page, run};

/// The first line: the answer.
fn verdict(answer: &Fit, width: usize) -> Vec<String> {
    // The device that decides: the one with the most missing, or the least to spare.
    let tightness =
        |device: &&DeviceUse| (device.short_by.map(Bytes::get), core::cmp::Reverse(device.headroom.map_or(0, Bytes::get)));
    let device = answer.devices.iter().max_by_key(tightness);
    let usable = short(device.map_or(0, |device| device.usable.get()));
    let name = match (device, answer.devices.len()) {
        (None, _) => "the device".to_owned(),
        (Some(device), 0 | 1) => device.name.clone(),
        (Some(device), count) => format!("{count} devices, decided by {}", device.name),
    };
    match &answer.verdict {
        Verdict::FitsWithOffload { headroom, .. } => {
            let rest = format!(" with a part on the host, on {name}: {} of {usable} stay free", short(headroom.get()));
            headline(MAYBE, "Fits", &rest, width)
        }
        Verdict::Fits { headroom } => {
            let rest = format!(" on {name}: {} of {usable} stay free", short(headroom.get()));
            headline(GOOD, "Fits", &rest, width)
        }
        Verdict::DoesNotFit { short_by, fits_at_best_with: Some(_), .. } => {
            let rest = format!(
                " on {name}: it does unless the bounded terms (≤) come out high, {} short of {usable} at worst",
                short(short_by.get())
            );
            headline(MAYBE, "May not fit", &rest, width)
        }
        Verdict::DoesNotFit { short_by, .. } => {
            headline(BAD, "Does not fit", &format!(" on {name}: {} short of {usable}", short(short_by.get())), width)
        }
        _ => headline(MAYBE, "No verdict", &format!(" for {name}"), width),
    }
}

/// The columns of a breakdown.
struct Layout {
    label: usize,
    short: usize,
    bytes: usize,
    width: usize,
}

impl Layout {
    fn of(places: &[&[Term]], width: usize) -> Self {
        let terms = || places.iter().flat_map(|place| place.iter().map(move |term| (term, place)));
        let labels = terms().map(|(term, place)| columns(&name(term, place, 40))).max().unwrap_or(0).max(7);
        let bytes = terms().map(|(term, _)| columns(&grouped(term.bytes.get()))).max().unwrap_or(0).max(14) + 4;
        // Glyph, mark and the gaps between columns.
        let rest = 2 + 2 + 2 + 2 + 10 + 1 + bytes;
        Self { label: labels.min(width.saturating_sub(rest).max(12)), short: 10, bytes, width }
    }

    fn row(&self, glyph: &str, mark: &str, name: &str, bytes: u64, remark: &str) -> String {
        let plain_width = 2 + 2 + 2 + self.label + 1 + self.short + 1 + self.bytes;
        let exact = format!("({} B)", grouped(bytes));
        let mut line = format!(
            "  {glyph} {mark} {} {} {}",
            left(name, self.label),
            right(&short(bytes), self.short),
            right(&exact, self.bytes)
        );
        if !remark.is_empty() && plain_width + 2 + columns(remark) <= self.width {
            line.push_str("  ");
            line.push_str(&paint(DIM, remark));
        }
        line
    }
}

/// What a term is called in a place: its component, or its label where the place has several of that component.
fn name(term: &Term, place: &[Term], width: usize) -> String {
    let alone = place.iter().filter(|other| other.component == term.component).count() == 1;
    if alone && term.component != TermKind::Other { component(term.component).to_owned() } else { label(term, width) }
}

fn breakdown(lines: &mut Vec<String>, layout: &Layout, terms: &[Term], with_bar: bool) {
    for term in terms {
        let (glyph, style) = fill(term.component);
        let glyph = if with_bar { paint(style, &glyph.to_string()) } else { " ".to_owned() };
        lines.push(layout.row(&glyph, mark(term), &name(term, terms, layout.label), term.bytes.get(), &certainty_text(term)));
    }
}

/// Where an engine says itself what it took.
fn verify(engine: &str) -> &'static str {
    match engine {
        "vllm" => "the log says \"GPU KV cache size\" and \"Maximum concurrency\", the metric vllm:cache_config_info the blocks",
        "sglang" => "the log names the KV cache with its #tokens, and the memory that is left at \"Memory pool end\"",
        "tensorrt-llm" => "the log says how many GiB and tokens the paged KV cache has",
        "mlx" => "print mlx.core.get_active_memory() and get_peak_memory() after a request",
        "transformers" => "print torch.cuda.max_memory_allocated() after it, and the nbytes of the cache's tensors",
        "ollama" => "`ollama ps` says how much of the model lies on the device; OLLAMA_DEBUG=1 logs every buffer",
        _ => "add -lv 4: the server logs every buffer size (model, KV, RS, compute, output) as it allocates it",
    }
}

fn textbook(answer: &Fit) -> Option<String> {
    let told = answer.naive.weights.get().saturating_add(answer.naive.kv_cache.get());
    let totals = &answer.totals;
    let terms = [totals.weights, totals.kv_cache, totals.recurrent_state, totals.compute, totals.output];
    let truth = terms.iter().fold(0_u64, |sum, bytes| sum.saturating_add(bytes.get()));
    let difference = told.abs_diff(truth);
    if difference.saturating_mul(100) < truth {
        return None;
    }
    let percent = (u128::from(difference) * 100 + u128::from(truth) / 2).checked_div(u128::from(truth))?;
    let way = if told < truth { "too little" } else { "too much" };
    Some(format!(
        "parameters times bits plus full-length cache: {} + {} = {}, which is {} ({percent}%) {way}",
        short(answer.naive.weights.get()),
        short(answer.naive.kv_cache.get()),
        short(told),
        short(difference),
    ))
}

/// What the engine chooses, in sentences.
fn like_engine(choice: &LikeEngine) -> Vec<String> {
    let mut text = Vec::new();
    match &choice.gives_up {
        Some(reason) => text.push(format!("gives up: {reason}")),
        None => {
            let layers = choice.gpu_layers.map_or_else(|| "all layers".to_owned(), |layers| format!("{layers} layers"));
            let mut parts = vec![format!("a pool of {} tokens", grouped(choice.total_context)), format!("{layers} on devices")];
            if !choice.tensor_split.is_empty() {
                let shares: Vec<String> = choice.tensor_split.iter().map(u64::to_string).collect();
                parts.push(format!("divided {}", shares.join(":")));
            }
            if !choice.override_tensor.is_empty() {
                parts.push(format!("tensors of {} layers elsewhere", choice.override_tensor.len()));
            }
            text.push(format!("{}, {} left free on every device", parts.join(", "), short(choice.margin.get())));
        }
    }
    if !choice.exact {
        text.push("decided by bounds here (≤): the engine measures more finely and may choose otherwise".to_owned());
    }
    match &choice.better {
        Some(better) => {
            let (read, chosen) = (better.read_from_host.get(), better.read_as_chosen.get());
            let gain = if read < chosen {
                format!(" (a token reads {} from the host instead of {})", short(read), short(chosen))
            } else {
                String::new()
            };
            let options = format!("-c {} {}", better.total_context, better.options.join(" "));
            text.push(format!("better, and it leaves the same margin: {}{gain}: {options}", better.change));
            text.push(format!("why: {}", better.why));
        }
        None if choice.gives_up.is_none() => {
            text.push("nothing tried beside it is better with the same margin: context, layers, experts on the host".to_owned());
        }
        None => {}
    }
    text
}

fn rate(rate: &Rate) -> String {
    format!("{} ({} to {})", digits(rate.expected.get()), digits(rate.low.get()), digits(rate.high.get()))
}

/// Tokens per second, each with its interval.
fn speed(throughput: &Throughput, answer: &Fit) -> Vec<String> {
    let mut out = vec![
        format!("decode {} tokens/s at the start", rate(&throughput.decode_tokens_per_s)),
        format!("decode {} tokens/s with a full context", rate(&throughput.decode_tokens_per_s_at_full_context)),
        format!("prompt {} tokens/s ({} tokens)", rate(&throughput.prefill_tokens_per_s), throughput.prompt),
    ];
    if answer.deployment.sequences > 1 {
        out.push(format!(
            "all {} sequences {} tokens/s",
            answer.deployment.sequences,
            rate(&throughput.aggregate_decode_tokens_per_s)
        ));
    }
    if answer.deployment.sequences > 1
        && let (Some(first), Some(each)) = (&throughput.time_to_first_token_s, &throughput.time_per_output_token_s)
    {
        out.push(format!(
            "with all of them busy ({} tokens in, {} out): first token after {} s, then {} ms a token",
            throughput.prompt,
            throughput.output,
            digits(first.expected.get()),
            digits(each.expected.get() * 1000.0)
        ));
    }
    out.push(format!("intervals held {} % of measurements not used to fit them", throughput.interval_percent));
    out.extend(throughput.assumptions.iter().cloned());
    out
}

/// The answer of `fit`.
pub(crate) fn fit(answer: &Fit) -> String {
    let width = width();
    let mut lines = verdict(answer, width);
    lines.push(String::new());
    lines.extend(heading(&answer.model, &answer.engine, &answer.deployment, width));
    lines.push(String::new());

    let places: Vec<&[Term]> =
        answer.devices.iter().map(|device| device.terms.as_slice()).chain([answer.host.terms.as_slice()]).collect();
    let layout = Layout::of(&places, width);
    for (index, device) in answer.devices.iter().enumerate() {
        let name = if answer.devices.len() > 1 { format!("{index}: {}", device.name) } else { device.name.clone() };
        lines.push(paint(BOLD, &name));
        lines.push(format!("  {}", bar(&device.terms, device.usable.get(), width.saturating_sub(4))));
        breakdown(&mut lines, &layout, &device.terms, true);
        lines.push(layout.row(" ", " ", "used", device.used.get(), ""));
        lines.push(paint(DIM, &layout.row(" ", " ", "usable", device.usable.get(), "")));
    }
    if !answer.host.terms.is_empty() {
        lines.push(paint(BOLD, "host"));
        breakdown(&mut lines, &layout, &answer.host.terms, false);
    }
    if !answer.host.limits.is_empty() {
        let text: Vec<String> =
            answer.host.limits.iter().map(|term| format!("{} up to {}", term.label, short(term.bytes.get()))).collect();
        lines.extend(wrap(&format!("beside that, as it runs: {}", text.join(", ")), width, "  "));
    }
    let terms = answer.devices.iter().flat_map(|device| &device.terms).chain(&answer.host.terms);
    lines.extend(legend(terms, width.saturating_sub(4)).into_iter().map(|line| format!("    {}", paint(DIM, &line))));

    if let Some(choice) = &answer.like_engine {
        lines.push(String::new());
        lines.push(paint(BOLD, "llama-server's own choice"));
        for text in like_engine(choice) {
            lines.extend(wrap(&text, width, "  "));
        }
    }
    if let (Some(blocks), Some(tokens)) = (answer.cache.blocks, answer.cache.block_tokens) {
        lines.push(String::new());
        lines.push(paint(BOLD, "Cache on every rank"));
        let mut parts = vec![format!("{} of {}", counted(blocks, "block"), counted(tokens, "token"))];
        parts.extend(answer.cache.tokens.map(|tokens| format!("{} tokens as the engine counts them", grouped(tokens))));
        parts.extend(answer.cache.max_concurrency.map(|many| format!("{:.2} sequences of this length at once", many.get())));
        parts.push(format!("{} a token", short(answer.cache.bytes_per_token.get())));
        lines.extend(flow(parts.into_iter(), " · ", width, "  "));
    }
    if let Some(throughput) = &answer.throughput {
        lines.push(String::new());
        lines.push(paint(BOLD, "Speed"));
        for text in speed(throughput, answer) {
            lines.extend(wrap(&text, width, "  "));
        }
    }
    // A pool that is filled on purpose is no textbook figure.
    let textbook = if answer.cache.block_tokens.is_some() { None } else { textbook(answer) };
    if let Some(text) = textbook {
        lines.push(String::new());
        lines.push(paint(BOLD, "Textbook"));
        lines.extend(wrap(&text, width, "  "));
    }
    if let Verdict::DoesNotFit { closest, .. } = &answer.verdict {
        lines.push(String::new());
        lines.push(paint(BOLD, "Would fit with"));
        if closest.is_empty() {
            lines.push("  no single change of context, cache, weights or listed device".to_owned());
        }
        let names = closest.iter().map(|change| columns(&change.change)).max().unwrap_or(0);
        for change in closest {
            let options: Vec<String> = change.options.iter().map(|option| super::text::shell(option)).collect();
            let options = options.join(" ");
            // Options are there to be copied: what does not stand beside the words stands below them, whole.
            if 2 + names + 2 + columns(&options) <= width {
                lines.push(format!("  {}  {options}", left(&change.change, names)));
            } else {
                lines.push(format!("  {}", change.change));
                lines.push(format!("      {options}"));
            }
        }
    }
    let fits = matches!(answer.verdict, Verdict::Fits { .. } | Verdict::FitsWithOffload { .. });
    let limits =
        [(answer.limits.max_context, "token", " per sequence"), (answer.limits.max_sequences, "sequence", " of this length")];
    let reach: Vec<String> = limits
        .iter()
        .filter_map(|(limit, unit, each)| {
            let limit = limit.filter(|limit| limit.value > 0)?;
            Some(format!("{}{each} ({})", counted(limit.value, unit), limited(limit.limited_by)))
        })
        .collect();
    if !reach.is_empty() {
        lines.push(String::new());
        lines.push(paint(BOLD, "Reachable here"));
        lines.extend(flow(reach.into_iter(), " · ", width, "  "));
    }
    if fits && !answer.command.is_empty() {
        lines.extend(run("Run", &answer.command, width));
        lines.push(paint(BOLD, "Verify"));
        let text = verify(&answer.engine.name);
        lines.extend(wrap(text, width, "  "));
    }
    lines.extend(notes(&answer.notes, width));
    page(&lines)
}
