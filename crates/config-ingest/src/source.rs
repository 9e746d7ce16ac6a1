//! Where header bytes come from: a slice, a file, or ranges of a remote file.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::error::IngestError;

/// Something whose bytes can be read at any offset without reading the rest.
pub trait RangeSource {
    /// Total length in bytes, where it is known.
    ///
    /// # Errors
    /// [`IngestError::Unavailable`].
    fn len(&self) -> Result<Option<u64>, IngestError>;

    /// Whether the source is known to be empty.
    ///
    /// # Errors
    /// [`IngestError::Unavailable`].
    fn is_empty(&self) -> Result<bool, IngestError> {
        Ok(self.len()? == Some(0))
    }

    /// Up to `length` bytes from `offset`; fewer only at the end of the source.
    ///
    /// # Errors
    /// [`IngestError::Unavailable`].
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, IngestError>;

    /// A name for error messages.
    fn name(&self) -> String;
}

impl RangeSource for &[u8] {
    fn len(&self) -> Result<Option<u64>, IngestError> {
        Ok(u64::try_from(<[u8]>::len(self)).ok())
    }
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, IngestError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(<[u8]>::len(self));
        let end = start.saturating_add(length).min(<[u8]>::len(self));
        Ok(self.get(start..end).unwrap_or_default().to_vec())
    }
    fn name(&self) -> String {
        "bytes".to_string()
    }
}
