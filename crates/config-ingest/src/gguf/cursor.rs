//! A forward reader over ranges: it holds one window of the source and asks for the next, twice as large, when it runs
//! out.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::FORMAT;
use super::limits::Limits;
use super::value::ByteOrder;
use crate::error::IngestError;
use crate::source::RangeSource;

/// Where in the source reading stands.
pub(super) struct Cursor<'s> {
    source: &'s dyn RangeSource,
    limits: Limits,
    /// Length of the source, where it is known.
    pub(super) len: Option<u64>,
    /// Bytes from `position` on start at `used` in the window.
    window: Vec<u8>,
    used: usize,
    next_read: usize,
    /// Offset of the next byte.
    pub(super) position: u64,
    pub(super) order: ByteOrder,
    /// Whether counts and lengths take four bytes (version 1) instead of eight.
    pub(super) narrow: bool,
}

impl<'s> Cursor<'s> {
    pub(super) fn new(source: &'s dyn RangeSource, limits: Limits) -> Result<Self, IngestError> {
        Ok(Self {
            source,
            limits,
            len: source.len()?,
            window: Vec::new(),
            used: 0,
            next_read: limits.first_read.max(64),
            position: 0,
            order: ByteOrder::Little,
            narrow: false,
        })
    }

    /// An error at the current byte.
    pub(super) const fn malformed(&self, problem: String) -> IngestError {
        IngestError::Malformed { format: FORMAT, offset: self.position, problem }
    }

    fn truncated(&self, wanted: u64, what: &str) -> IngestError {
        let end = self.len.unwrap_or_else(|| self.position.saturating_add(count(self.available())));
        self.malformed(format!("the file ends at byte {end}, inside {what} ({wanted} bytes are needed here)"))
    }

    /// How many bytes the header may still take: to the end of the source or to the limit, whichever comes first.
    pub(super) fn remaining(&self) -> u64 {
        self.len.unwrap_or(u64::MAX).min(self.limits.header_bytes).saturating_sub(self.position)
    }

    fn available(&self) -> usize {
        self.window.len().saturating_sub(self.used)
    }

    /// Refuses `wanted` further bytes that cannot be there.
    pub(super) fn expect_room(&self, wanted: u64, what: &str) -> Result<(), IngestError> {
        let end = self.position.checked_add(wanted);
        if let Some(len) = self.len
            && end.is_none_or(|end| end > len)
        {
            return Err(self.truncated(wanted, what));
        }
        if end.is_none_or(|end| end > self.limits.header_bytes) {
            return Err(IngestError::Limit {
                format: FORMAT,
                what: format!("the header up to and including {what}"),
                found: end.unwrap_or(u64::MAX),
                limit: self.limits.header_bytes,
            });
        }
        Ok(())
    }

    /// Makes at least `wanted` bytes available.
    fn fill(&mut self, wanted: usize, what: &str) -> Result<(), IngestError> {
        if self.available() >= wanted {
            return Ok(());
        }
        self.expect_room(count(wanted), what)?;
        let rest = self.window.get(self.used..).unwrap_or_default();
        let offset = self.position.saturating_add(count(rest.len()));
        let length = self.next_read.max(wanted.saturating_sub(rest.len()));
        self.next_read = self.next_read.saturating_mul(2).min(self.limits.largest_read.max(self.limits.first_read));
        let more = self.source.read(offset, length)?;
        let mut window = Vec::with_capacity(rest.len().saturating_add(more.len()));
        window.extend_from_slice(rest);
        window.extend_from_slice(&more);
        self.window = window;
        self.used = 0;
        if self.available() >= wanted { Ok(()) } else { Err(self.truncated(count(wanted), what)) }
    }

    /// The next `N` bytes.
    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], IngestError> {
        self.fill(N, what)?;
        let bytes = self.window.get(self.used..).and_then(|rest| rest.first_chunk::<N>()).copied();
        let bytes = bytes.ok_or_else(|| self.truncated(count(N), what))?;
        self.advance(N);
        Ok(bytes)
    }

    fn advance(&mut self, bytes: usize) {
        self.used = self.used.saturating_add(bytes);
        self.position = self.position.saturating_add(count(bytes));
    }

    pub(super) fn magic(&mut self) -> Result<[u8; 4], IngestError> {
        self.take("the file's first four bytes")
    }
    pub(super) fn u8(&mut self, what: &str) -> Result<u8, IngestError> {
        let [byte] = self.take(what)?;
        Ok(byte)
    }
    pub(super) fn u16(&mut self, what: &str) -> Result<u16, IngestError> {
        let bytes = self.take(what)?;
        Ok(match self.order {
            ByteOrder::Little => u16::from_le_bytes(bytes),
            ByteOrder::Big => u16::from_be_bytes(bytes),
        })
    }
    pub(super) fn u32(&mut self, what: &str) -> Result<u32, IngestError> {
        let bytes = self.take(what)?;
        Ok(match self.order {
            ByteOrder::Little => u32::from_le_bytes(bytes),
            ByteOrder::Big => u32::from_be_bytes(bytes),
        })
    }
    pub(super) fn u64(&mut self, what: &str) -> Result<u64, IngestError> {
        let bytes = self.take(what)?;
        Ok(match self.order {
            ByteOrder::Little => u64::from_le_bytes(bytes),
            ByteOrder::Big => u64::from_be_bytes(bytes),
        })
    }

    /// A count or length: eight bytes, four in version 1.
    pub(super) fn count(&mut self, what: &str) -> Result<u64, IngestError> {
        if self.narrow { self.u32(what).map(u64::from) } else { self.u64(what) }
    }

    /// The bytes of a text of at most `limit` bytes.
    pub(super) fn text(&mut self, limit: u64, what: &str) -> Result<Vec<u8>, IngestError> {
        let length = self.count(what)?;
        self.expect_room(length, what)?;
        if length > limit {
            return Err(IngestError::Limit { format: FORMAT, what: format!("the length of {what}"), found: length, limit });
        }
        let length = usize::try_from(length).map_err(|_| self.truncated(length, what))?;
        self.fill(length, what)?;
        let bytes = self.window.get(self.used..).and_then(|rest| rest.get(..length)).unwrap_or_default().to_vec();
        self.advance(length);
        Ok(bytes)
    }

    /// Passes over `bytes` without reading those that are not yet here.
    pub(super) fn skip(&mut self, bytes: u64, what: &str) -> Result<(), IngestError> {
        self.expect_room(bytes, what)?;
        match usize::try_from(bytes) {
            Ok(near) if near <= self.available() => self.advance(near),
            _ => {
                self.window.clear();
                self.used = 0;
                self.position = self.position.saturating_add(bytes);
            }
        }
        Ok(())
    }

    /// Passes over `n` texts. Most of them lie in the window whole, where passing one costs a length and an addition.
    pub(super) fn skip_texts(&mut self, n: u64, what: &str) -> Result<(), IngestError> {
        let mut left = n;
        while left > 0 {
            let (passed, bytes) = self.texts_in_window(left);
            self.advance(bytes);
            left = left.saturating_sub(passed);
            if left > 0 {
                // This one reaches over the window's end: its length brings in the next window.
                let length = self.count(what)?;
                self.skip(length, what)?;
                left = left.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// How many of the next `n` texts lie in the window whole, and how many bytes they take.
    fn texts_in_window(&self, n: u64) -> (u64, usize) {
        let start = self.window.get(self.used..).unwrap_or_default();
        let mut rest = start;
        let mut passed = 0_u64;
        while passed < n {
            let head = if self.narrow {
                rest.split_first_chunk::<4>().map(|(length, rest)| {
                    let length = match self.order {
                        ByteOrder::Little => u32::from_le_bytes(*length),
                        ByteOrder::Big => u32::from_be_bytes(*length),
                    };
                    (u64::from(length), rest)
                })
            } else {
                rest.split_first_chunk::<8>().map(|(length, rest)| {
                    let length = match self.order {
                        ByteOrder::Little => u64::from_le_bytes(*length),
                        ByteOrder::Big => u64::from_be_bytes(*length),
                    };
                    (length, rest)
                })
            };
            let after = head.and_then(|(length, rest)| usize::try_from(length).ok().and_then(|length| rest.get(length..)));
            match after {
                Some(after) => rest = after,
                None => break,
            }
            passed = passed.saturating_add(1);
        }
        (passed, start.len().saturating_sub(rest.len()))
    }
}

/// A length in memory as a number of bytes in a file.
fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
