//! The processor and its memory.

use serde::Serialize;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::facts::{Reading, text};

/// The processor and its memory.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Bytes of memory.
    pub memory: Reading<u64>,
    /// Bytes that programs can get at the moment.
    pub available: Reading<u64>,
    /// The processor's name.
    pub processor: Reading<String>,
    /// Physical cores.
    pub cores: Reading<usize>,
    /// Threads that run at once.
    pub threads: Reading<usize>,
}

impl Host {
    /// Nothing known, for `reason`.
    #[must_use]
    pub fn unknown(reason: &str) -> Self {
        Self {
            memory: Reading::unavailable(reason),
            available: Reading::unavailable(reason),
            processor: Reading::unavailable(reason),
            cores: Reading::unavailable(reason),
            threads: Reading::unavailable(reason),
        }
    }

    pub(crate) fn of_this_machine() -> Self {
        const REASON: &str = "the system does not say";
        let kinds =
            RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()).with_cpu(CpuRefreshKind::nothing());
        let system = System::new_with_specifics(kinds);
        // In a container the limit is what there is.
        let limit = system.cgroup_limits();
        let above_nothing = |bytes: u64| (bytes > 0).then_some(bytes);
        let total = above_nothing(system.total_memory());
        let capped = limit.as_ref().map(|limit| limit.total_memory);
        let free = limit.as_ref().map(|limit| limit.free_memory);
        let least = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) if other > 0 => Some(one.min(other)),
            (one, _) => one,
        };
        let threads = system.cpus().len();
        Self {
            memory: Reading::of(least(total, capped), REASON),
            available: Reading::of(least(above_nothing(system.available_memory()), free), REASON),
            processor: Reading::of(system.cpus().first().and_then(|cpu| text(cpu.brand())), REASON),
            cores: Reading::of(System::physical_core_count(), REASON),
            threads: Reading::of((threads > 0).then_some(threads), REASON),
        }
    }
}
