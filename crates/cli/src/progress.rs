//! What is being read over the network, on standard error while it is read: only on a terminal, and gone afterwards.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use plimsoll::ingest::http::Watch;

/// A line that appears with the first request and is wiped when this is dropped.
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

/// The end of an address: what is read, without where from and without signatures.
fn short(address: &str) -> String {
    let path = address.split(['?', '#']).next().unwrap_or(address);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    path.chars().filter(|letter| !letter.is_control()).take(96).collect()
}
