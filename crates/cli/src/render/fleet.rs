//! A fleet as people read it: what fits, where everything goes, what is missing and what would help.

use plimsoll::planner::fleet::{Fleet, Method, Placement};
use plimsoll::planner::size::short;

use super::text::{BAD, BOLD, DIM, GOOD, columns, device_name, headline, left, paint, right, width, wrap};
use super::{notes, page};

/// A bar of ten signs.
fn gauge(used: u64, limit: u64) -> String {
    let filled = (u128::from(used) * 10).div_ceil(u128::from(limit.max(1))).min(10);
    let filled = usize::try_from(filled).unwrap_or(10);
    format!("{}{}", "█".repeat(filled), "░".repeat(10 - filled))
}

fn found_by(answer: &Fleet) -> String {
    match answer.method {
        Method::Proven => "a mixed-integer program proved that no more fit".to_owned(),
        _ if answer.optimal => "no placement holds more".to_owned(),
        Method::Solver => format!("a mixed-integer program in the time it had, at most {} % from the bound", answer.gap_percent),
        Method::Improved => format!("found by a search, at most {} % from the bound", answer.gap_percent),
        Method::Greedy => format!("greedy, at most {} % from the bound", answer.gap_percent),
    }
}

pub(crate) fn fleet(answer: &Fleet) -> String {
    let width = width();
    let (style, lead) = if answer.unplaced.is_empty() { (GOOD, "Everything fits") } else { (BAD, "Not everything fits") };
    let mut counts = format!(": {} of {} replicas have a place", answer.placed_replicas, answer.wanted_replicas);
    if !answer.unplaced.is_empty() {
        counts.push_str(&format!("; {}", found_by(answer)));
    }
    let mut lines = headline(style, lead, &counts, width);
    for host in &answer.hosts {
        lines.push(String::new());
        lines.push(paint(BOLD, &host.name));
        let most = width.saturating_sub(4 + 2 + 10 + 1 + 9 + 4 + 9 + 2);
        let widest = host.devices.iter().map(|device| columns(&device_name(&device.name, most))).max().unwrap_or(0).max(6);
        for (index, device) in (0_u64..).zip(&host.devices) {
            let here =
                |placement: &&Placement| placement.host == host.name && placement.devices.iter().any(|one| one.index == index);
            let names: Vec<String> = answer
                .placements
                .iter()
                .filter(here)
                .map(|placement| format!("{}#{}", placement.model, placement.replica))
                .collect();
            let figures = format!(
                "{} {} of {}",
                gauge(device.used.get(), device.limit.get()),
                right(&short(device.used.get()), 9),
                right(&short(device.limit.get()), 9)
            );
            let start = format!("  {index} {}  {figures}  ", left(&device_name(&device.name, widest), widest));
            // Replicas that do not stand beside the figures stand below them.
            let room = width.saturating_sub(columns(&start));
            let all = names.join(", ");
            if columns(&all) <= room {
                lines.push(format!("{start}{all}").trim_end().to_owned());
            } else {
                lines.push(start.trim_end().to_owned());
                lines.extend(wrap(&all, width, "      "));
            }
        }
        if let (Some(limit), Some(used)) = (host.memory, host.memory_used) {
            let figures = format!(
                "{} {} of {}",
                gauge(used.get(), limit.get()),
                right(&short(used.get()), 9),
                right(&short(limit.get()), 9)
            );
            lines.push(format!("    {}  {figures}", left("memory", widest)));
        }
    }
    for missing in &answer.unplaced {
        lines.push(String::new());
        let what = if missing.replicas == 1 { "replica" } else { "replicas" };
        lines.extend(headline(
            BAD,
            &format!("{}: {} {what} without a place", missing.model, missing.replicas),
            &format!(": {}", missing.reason),
            width,
        ));
        for fix in &missing.fixes {
            let options = if fix.options.is_empty() { String::new() } else { format!(" ({})", fix.options.join(" ")) };
            let price = fix.price.map_or_else(String::new, |price| format!(", {}", price.thousandths() / 1000));
            lines.extend(wrap(&format!("would place one more: {}{options}{price}", fix.change), width, "  "));
        }
    }
    lines.extend(notes(&answer.notes, width));
    lines.push(String::new());
    lines.push(paint(DIM, "--json has the command line of every replica."));
    page(&lines)
}
