//! A folder on disk.

use std::boxed::Box;
use std::format;
use std::fs;
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::vec::Vec;

use super::folder::{FileInfo, Folder};
use crate::error::IngestError;
use crate::source::{FileSource, RangeSource, read_small_file};

/// Most directory entries that are looked at.
const MOST_ENTRIES: usize = 100_000;

/// A folder on disk with its files and those one level below.
#[derive(Debug, Clone)]
pub struct LocalFolder {
    root: PathBuf,
    files: Vec<FileInfo>,
    name: Option<String>,
}

impl LocalFolder {
    /// Lists a folder.
    ///
    /// # Errors
    /// [`IngestError::Unavailable`] when it cannot be listed, [`IngestError::Limit`] when it holds too much.
    pub fn list(root: &Path) -> Result<Self, IngestError> {
        let mut files = Vec::new();
        let mut seen = 0;
        collect(root, "", 1, &mut files, &mut seen)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { root: root.to_owned(), files, name: None })
    }

    /// The folder of one file, of which only that file counts unless the file refers to others.
    pub(super) fn around(root: &Path, file: &str) -> Self {
        let mut folder = Self::list(root).unwrap_or_else(|_| Self { root: root.to_owned(), files: Vec::new(), name: None });
        if !folder.files.iter().any(|info| info.path == file) {
            folder.files.push(FileInfo { path: file.to_string(), bytes: None });
        }
        folder
    }

    /// The same folder under the name of the repository it is a copy of.
    #[must_use]
    pub fn named(self, name: String) -> Self {
        Self { name: Some(name), ..self }
    }
}

fn collect(root: &Path, below: &str, depth: u32, files: &mut Vec<FileInfo>, seen: &mut usize) -> Result<(), IngestError> {
    let folder = root.join(below);
    let unavailable =
        |error: std::io::Error| IngestError::Unavailable { what: folder.display().to_string(), why: error.to_string() };
    for entry in fs::read_dir(&folder).map_err(unavailable)? {
        let entry = entry.map_err(unavailable)?;
        *seen = seen.saturating_add(1);
        if *seen > MOST_ENTRIES {
            return Err(IngestError::Limit {
                format: "folder",
                what: format!("the number of files in {}", root.display()),
                found: u64::try_from(*seen).unwrap_or(u64::MAX),
                limit: u64::try_from(MOST_ENTRIES).unwrap_or(u64::MAX),
            });
        }
        // Names that are no text cannot be model files that others refer to.
        let Some(name) = entry.file_name().to_str().map(ToString::to_string) else { continue };
        if name.starts_with('.') {
            continue;
        }
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        // Follows links: a hub's cache is made of them.
        match fs::metadata(entry.path()) {
            Ok(meta) if meta.is_file() => files.push(FileInfo { path, bytes: Some(meta.len()) }),
            Ok(meta) if meta.is_dir() && depth > 0 => {
                collect(root, &path, depth.saturating_sub(1), files, seen).unwrap_or_default()
            }
            _ => {}
        }
    }
    Ok(())
}

impl Folder for LocalFolder {
    fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.root.display().to_string())
    }
    fn title(&self) -> Option<String> {
        if let Some(name) = &self.name {
            return Some(name.clone());
        }
        let absolute = fs::canonicalize(&self.root).ok()?;
        absolute.file_name().map(|name| name.to_string_lossy().into_owned())
    }
    fn files(&self) -> &[FileInfo] {
        &self.files
    }
    fn small(&self, path: &str, format: &'static str, limit: u64) -> Result<Vec<u8>, IngestError> {
        read_small_file(self.root.join(path), format, limit)
    }
    fn source(&self, path: &str) -> Result<Box<dyn RangeSource>, IngestError> {
        Ok(Box::new(FileSource::open(self.root.join(path))?))
    }
    fn address(&self, path: &str) -> String {
        self.root.join(path).display().to_string()
    }
    fn only_config(&self, path: &str) -> String {
        format!("name {} to plan from the config alone", self.root.join(path).display())
    }
}
