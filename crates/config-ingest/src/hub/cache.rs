//! The two caches on disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::sync::atomic::{AtomicU32, Ordering};
use std::vec::Vec;
use std::{format, process};

use super::id::is_path;
use crate::source::read_small_file;

/// Longest file that is kept: headers of the largest GGUF files are some 20 MB.
const LONGEST: u64 = 128 << 20;

/// Whether a revision is a commit already.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The folder in the hub's own cache that holds this revision (`models--org--name/snapshots/commit`).
pub(super) fn snapshot(hub_cache: &Path, repo: &str, revision: &str) -> Option<(PathBuf, String)> {
    let folder = hub_cache.join(format!("models--{}", repo.replace('/', "--")));
    let commit = if is_commit(revision) {
        revision.to_string()
    } else {
        let text = read_small_file(folder.join("refs").join(revision), "cache reference", 1024).ok()?;
        String::from_utf8(text).ok()?.trim().to_string()
    };
    if !is_commit(&commit) {
        return None;
    }
    let snapshot = folder.join("snapshots").join(&commit);
    snapshot.is_dir().then_some((snapshot, commit))
}

/// Our cache of one repository.
#[derive(Debug, Clone)]
pub(super) struct OwnCache {
    folder: PathBuf,
}

/// What is kept of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// A whole file.
    File,
    /// The first bytes of a file.
    Head,
    /// The list of files.
    List,
}

impl OwnCache {
    /// The place for a repository. Hubs are kept apart: a mirror answers for itself.
    pub(super) fn new(root: &Path, endpoint: &str, repo: &str) -> Self {
        let host: String = endpoint
            .split_once("://")
            .map_or(endpoint, |(_, rest)| rest)
            .chars()
            .map(|letter| if letter.is_ascii_alphanumeric() || letter == '.' || letter == '-' { letter } else { '_' })
            .collect();
        Self { folder: root.join("hub").join(host.trim_start_matches('.')).join(format!("models--{}", repo.replace('/', "--"))) }
    }

    fn place(&self, commit: &str, kept: Kept, path: &str) -> Option<PathBuf> {
        let folder = self.folder.join("commits").join(commit);
        match kept {
            Kept::List => Some(folder.join("files.json")),
            _ if !is_path(path) => None,
            Kept::File => Some(folder.join("files").join(path)),
            Kept::Head => Some(folder.join("heads").join(path)),
        }
    }

    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        let path = is_path(revision).then(|| self.folder.join("refs").join(revision))?;
        let text = String::from_utf8(read_small_file(path, "cache reference", 1024).ok()?).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_commit(commit))
    }

    pub(super) fn keep_commit(&self, revision: &str, commit: &str) {
        if is_path(revision) {
            write(&self.folder.join("refs").join(revision), commit.as_bytes());
        }
    }

    pub(super) fn get(&self, commit: &str, kept: Kept, path: &str) -> Option<Vec<u8>> {
        read_small_file(self.place(commit, kept, path)?, "cached file", LONGEST).ok()
    }

    pub(super) fn keep(&self, commit: &str, kept: Kept, path: &str, bytes: &[u8]) {
        if let Some(place) = self.place(commit, kept, path)
            && u64::try_from(bytes.len()).is_ok_and(|length| length <= LONGEST)
        {
            write(&place, bytes);
        }
    }
}

/// Writes a file so that others see all of it or nothing. A cache that cannot be written is no error: the next run
/// downloads again.
fn write(path: &Path, bytes: &[u8]) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let Some((folder, name)) = path.parent().zip(path.file_name()) else { return };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let unfinished = folder.join(format!(".{}.{}.{number}", name.to_string_lossy(), process::id()));
    let written =
        fs::create_dir_all(folder).and_then(|()| fs::write(&unfinished, bytes)).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // What is left of it is in nobody's way, but why leave it.
        drop(fs::remove_file(&unfinished));
    }
}
