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

impl RangeSource for Vec<u8> {
    fn len(&self) -> Result<Option<u64>, IngestError> {
        RangeSource::len(&self.as_slice())
    }
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, IngestError> {
        RangeSource::read(&self.as_slice(), offset, length)
    }
    fn name(&self) -> String {
        RangeSource::name(&self.as_slice())
    }
}

/// The first bytes of something longer: a header kept apart from its data.
#[derive(Debug, Clone)]
pub struct PrefixSource {
    name: String,
    bytes: Vec<u8>,
    length: Option<u64>,
}

impl PrefixSource {
    /// `bytes` are the first ones of a file of `length` bytes (`None` where that is not known).
    #[must_use]
    pub const fn new(name: String, bytes: Vec<u8>, length: Option<u64>) -> Self {
        Self { name, bytes, length }
    }
}

impl RangeSource for PrefixSource {
    fn len(&self) -> Result<Option<u64>, IngestError> {
        Ok(self.length)
    }
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, IngestError> {
        self.bytes.as_slice().read(offset, length)
    }
    fn name(&self) -> String {
        self.name.clone()
    }
}

#[cfg(feature = "std")]
pub use file::{FileSource, read_small_file};

#[cfg(feature = "std")]
mod file {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom};
    use std::path::{Path, PathBuf};
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::RangeSource;
    use crate::error::IngestError;

    /// Reads are handed out in pieces of at most this size, so that a length nobody checked allocates no more than the
    /// file holds.
    const PIECE: u64 = 1 << 20;

    /// A file on disk, of which only the asked ranges are read.
    #[derive(Debug)]
    pub struct FileSource {
        file: File,
        length: u64,
        path: PathBuf,
    }

    impl FileSource {
        /// Opens a regular file.
        ///
        /// # Errors
        /// [`IngestError::Unavailable`] when it cannot be opened or is a directory, a pipe or a device.
        pub fn open(path: impl AsRef<Path>) -> Result<Self, IngestError> {
            let path = path.as_ref();
            // Asked before opening: opening a pipe waits for a writer.
            let kind = std::fs::metadata(path).map_err(|error| unavailable(path, &error))?;
            if !kind.is_file() {
                return Err(IngestError::Unavailable {
                    what: path.display().to_string(),
                    why: if kind.is_dir() { "is a directory".to_string() } else { "is no regular file".to_string() },
                });
            }
            let file = File::open(path).map_err(|error| unavailable(path, &error))?;
            let length = file.metadata().map_err(|error| unavailable(path, &error))?.len();
            Ok(Self { file, length, path: path.to_owned() })
        }
    }

    impl RangeSource for FileSource {
        fn len(&self) -> Result<Option<u64>, IngestError> {
            Ok(Some(self.length))
        }
        fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, IngestError> {
            let wanted = u64::try_from(length).unwrap_or(u64::MAX).min(self.length.saturating_sub(offset));
            let mut handle = &self.file;
            handle.seek(SeekFrom::Start(offset)).map_err(|error| unavailable(&self.path, &error))?;
            let mut bytes = Vec::with_capacity(usize::try_from(wanted.min(PIECE)).unwrap_or(0));
            handle.take(wanted).read_to_end(&mut bytes).map_err(|error| unavailable(&self.path, &error))?;
            Ok(bytes)
        }
        fn name(&self) -> String {
            self.path.display().to_string()
        }
    }

    /// The whole of a file that is no longer than `limit` bytes.
    ///
    /// # Errors
    /// [`IngestError::Unavailable`], or [`IngestError::Limit`] when it is longer.
    pub fn read_small_file(path: impl AsRef<Path>, format: &'static str, limit: u64) -> Result<Vec<u8>, IngestError> {
        let source = FileSource::open(path)?;
        if source.length > limit {
            return Err(IngestError::Limit { format, what: source.name(), found: source.length, limit });
        }
        source.read(0, usize::try_from(source.length).unwrap_or(usize::MAX))
    }

    fn unavailable(path: &Path, error: &std::io::Error) -> IngestError {
        IngestError::Unavailable { what: path.display().to_string(), why: error.to_string() }
    }
}
