//! How far something is, on standard error: only on a terminal, and gone afterwards.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plimsoll::ingest::http::Watch;

/// What is being read over the network: a line that appears with the first request and is wiped when this is dropped.
pub(crate) struct Progress {
    line: ProgressBar,
}

impl Progress {
    /// `None` where nobody would see it.
    pub(crate) fn on_a_terminal() -> Option<Self> {
        if !std::io::stderr().is_terminal() {
            return None;
        }
        let line = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} reading {msg}") {
            line.set_style(style);
        }
        Some(Self { line })
    }

    /// What the network code tells of every request.
    pub(crate) fn watch(&self) -> Watch {
        let line = self.line.clone();
        let read = Arc::new(AtomicU64::new(0));
        Watch::new(move |address, bytes| {
            let so_far = read.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
            line.enable_steady_tick(Duration::from_millis(100));
            line.set_message(format!("{} ({so_far} B so far)", short(address)));
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.line.finish_and_clear();
    }
}

/// How much of a known amount is done: a bar that appears after a second.
pub(crate) struct Bar {
    since: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar of so much, in indicatif's own words; none where nobody would see it, or where it is not to be `shown`.
    pub(crate) fn new(length: u64, template: &str, shown: bool) -> Self {
        let bar = (shown && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::hidden();
            bar.set_length(length);
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Self { since: Instant::now(), bar }
    }

    /// So much more is done.
    pub(crate) fn passed(&self, more: u64) {
        let Some(bar) = &self.bar else { return };
        bar.inc(more);
        if bar.is_hidden() && self.since.elapsed() > Duration::from_secs(1) {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The end of an address: what is read, without where from and without signatures.
fn short(address: &str) -> String {
    let path = address.split(['?', '#']).next().unwrap_or(address);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    path.chars().filter(|letter| !letter.is_control()).take(96).collect()
}
