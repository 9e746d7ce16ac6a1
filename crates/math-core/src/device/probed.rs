//! From what a driver reports on a running machine to a device: the table's speeds, the machine's own memory.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use super::names::{self, Words};
use super::row::{runtime_reserve_mib, working_set};
use super::{Device, Driver, Origin, Sourced};
use crate::error::MathError;
use crate::units::Bytes;

const MIB: u64 = 1 << 20;

/// Two boards of one kind differ by less than this in what their drivers report: firmware and error correction take some.
const SAME_BOARD_MIB: u64 = 256;

impl Device {
    /// How many of what: the text of [`Device::counted`] without looking the name up.
    ///
    /// # Errors
    /// [`MathError::Invalid`] for a count of 0.
    pub fn count_of(text: &str) -> Result<(u32, &str), MathError> {
        names::counted(text)
    }

    /// Every device that `text` may mean, the closest ones only.
    ///
    /// ```
    /// use plimsoll_math::device::Device;
    /// assert_eq!(Device::candidates("RTX 4060 Ti").unwrap().len(), 2);
    /// assert!(Device::candidates("Voodoo 2").unwrap().is_empty());
    /// ```
    ///
    /// # Errors
    /// [`MathError::Overflow`], which would be a fault of the table.
    pub fn candidates(text: &str) -> Result<Vec<Self>, MathError> {
        match names::find(text) {
            Ok(found) => Ok(Vec::from([found.row.device(found.size_gib)?])),
            Err(_) => names::closest(&Words::of(text)).0.into_iter().map(|row| row.device(None)).collect(),
        }
    }

    /// The same device as a driver reports it: `total` is the machine's own. What a program can get of it stays the table's figure
    /// where the board is the table's, and follows from the driver's habit where it is not. `runtime_agrees` says that the
    /// runtime hands out what the driver reports, as on Windows.
    #[must_use]
    pub fn with_driver_total(mut self, total: Bytes, source: &str, runtime_agrees: bool) -> Self {
        let same = self.total.bytes.get().abs_diff(total.get()) <= SAME_BOARD_MIB * MIB;
        let known = same && self.usable.kind == Origin::Measured && self.usable.bytes <= total;
        self.total = Sourced { bytes: total, kind: Origin::Measured, origin: source.to_owned() };
        if self.driver == Driver::Cuda && !self.unified && !runtime_agrees {
            if !known {
                let held = runtime_reserve_mib(total.get() / MIB).saturating_mul(MIB);
                let left = total.get().saturating_sub(held);
                self.usable = Sourced {
                    bytes: Bytes::new(left).unwrap_or(total),
                    kind: Origin::Estimated,
                    origin: String::from(
                        "what the driver reports less the most that the CUDA runtime was seen to hold back on boards of this size",
                    ),
                };
            }
        } else {
            self.usable = Sourced {
                bytes: total,
                kind: Origin::Measured,
                origin: String::from("what the driver reports, which its runtime hands out as well"),
            };
        }
        self
    }

    /// The same machine with `total` bytes of memory of which macOS lets its GPU have `limit` (`iogpu.wired_limit_mb`), or its
    /// default share where that is not set.
    #[must_use]
    pub fn with_working_set(mut self, total: Bytes, limit: Option<Bytes>) -> Self {
        self.total = Sourced { bytes: total, kind: Origin::Measured, origin: String::from("hw.memsize") };
        self.usable = match limit {
            Some(limit) => Sourced {
                bytes: limit.min(total),
                kind: Origin::Measured,
                origin: String::from("iogpu.wired_limit_mb, as this machine is set"),
            },
            None => {
                let (bytes, text) = working_set(total.get());
                Sourced { bytes: Bytes::new(bytes).unwrap_or(total), kind: Origin::Estimated, origin: text.to_owned() }
            }
        };
        self.unified = true;
        self
    }
}
