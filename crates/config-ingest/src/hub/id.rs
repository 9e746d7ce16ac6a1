//! The name of a model on a hub.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};

use crate::error::IngestError;
use crate::safetensors::shown;

/// What to use of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Select {
    /// This file.
    File(String),
    /// The GGUF with this quantization, or this quantization of the model that the config describes.
    Quant(String),
}

impl Select {
    /// A name with a path or a known ending is a file, anything else a quantization.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let is_file =
            text.contains('/') || [".gguf", ".safetensors", ".json", ".npz"].iter().any(|ending| text.ends_with(ending));
        if is_file || crate::safetensors::is_pickle(text) { Self::File(text.to_owned()) } else { Self::Quant(text.to_owned()) }
    }
}

/// `org/name[@revision][:quant or file]`, or an address of the hub's web pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`, or one word for the oldest models.
    pub repo: String,
    /// Branch, tag or commit; `None` for the default branch.
    pub revision: Option<String>,
    /// What to use of it.
    pub select: Option<Select>,
}

impl HubId {
    /// Reads a name. Accepted besides `org/name`: a prefix `hf:` or `hf://`, and pasted addresses such as
    /// `https://host/org/name/blob/main/file.gguf`.
    ///
    /// # Errors
    /// [`IngestError::Field`] that says what a name looks like.
    ///
    /// ```
    /// use plimsoll_ingest::hub::{HubId, Select};
    /// let id = HubId::parse("unsloth/Qwen3-8B-GGUF@main:Q4_K_M").unwrap();
    /// assert_eq!(id.repo, "unsloth/Qwen3-8B-GGUF");
    /// assert_eq!(id.revision.as_deref(), Some("main"));
    /// assert_eq!(id.select, Some(Select::Quant("Q4_K_M".into())));
    /// ```
    pub fn parse(text: &str) -> Result<Self, IngestError> {
        const LONGEST: usize = 1024;
        if text.len() > LONGEST {
            return Err(wrong(text, "at most 1024 bytes"));
        }
        if let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) {
            return Self::address(text, rest);
        }
        let name = text.strip_prefix("hf://").or_else(|| text.strip_prefix("hf:")).unwrap_or(text);
        let (name, select) = match name.split_once(':') {
            Some((_, "")) => return Err(wrong(text, "a quantization or a file after ':'")),
            Some((name, select)) => (name, Some(Select::parse(select))),
            None => (name, None),
        };
        let (repo, revision) = match name.split_once('@') {
            Some((_, "")) => return Err(wrong(text, "a branch, tag or commit after '@'")),
            Some((repo, revision)) => (repo, Some(revision.to_owned())),
            None => (name, None),
        };
        Self { repo: repo.to_owned(), revision, select }.checked(text)
    }

    /// `host/org/name[/tree|blob|resolve/revision[/file]]`.
    fn address(text: &str, rest: &str) -> Result<Self, IngestError> {
        let path = rest.split(['?', '#']).next().unwrap_or(rest);
        let mut words = path.split('/').filter(|word| !word.is_empty()).skip(1);
        let (Some(org), Some(name)) = (words.next(), words.next()) else {
            return Err(wrong(text, "an address that ends with org/name"));
        };
        let mut id = Self { repo: format!("{org}/{name}"), revision: None, select: None };
        match words.next() {
            None => {}
            Some("tree" | "blob" | "resolve" | "raw") => {
                id.revision = words.next().map(|word| word.replace("%2F", "/"));
                let file = words.map(ToString::to_string).reduce(|path, word| format!("{path}/{word}"));
                // What else a page shows (a README) is no model, and could not be written as a name again.
                id.select = file.as_deref().map(Select::parse);
                if matches!(id.select, Some(Select::Quant(_))) {
                    return Err(wrong(text, "an address of a model or of one of its weight files"));
                }
            }
            Some(_) => return Err(wrong(text, "an address of a model or of one of its files")),
        }
        id.checked(text)
    }

    fn checked(self, text: &str) -> Result<Self, IngestError> {
        let words = self.repo.split('/').count();
        if words > 2 {
            return Err(wrong(text, "org/name (a file of it is written org/name:file)"));
        }
        if !self.repo.split('/').all(is_name) {
            return Err(wrong(text, "org/name of letters, digits, '-', '_' and '.'"));
        }
        if self.revision.as_deref().is_some_and(|revision| !is_path(revision)) {
            return Err(wrong(text, "a branch, tag or commit after '@'"));
        }
        match &self.select {
            Some(Select::File(file)) if !is_path(file) => Err(wrong(text, "a file of the repository after ':'")),
            Some(Select::Quant(quant)) if !quant.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte)) => {
                Err(wrong(text, "a quantization such as Q4_K_M after ':'"))
            }
            _ => Ok(self),
        }
    }

    /// The revision, `main` where none is named.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl core::fmt::Display for HubId {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // A repository of this name alone would read as the prefix.
        if self.repo == "hf" {
            formatter.write_str("hf://")?;
        }
        formatter.write_str(&self.repo)?;
        if let Some(revision) = &self.revision {
            write!(formatter, "@{revision}")?;
        }
        match &self.select {
            Some(Select::File(text) | Select::Quant(text)) => write!(formatter, ":{text}"),
            None => Ok(()),
        }
    }
}

/// One part of a repository's name, as the hub allows it.
fn is_name(word: &str) -> bool {
    const LONGEST: usize = 96;
    !word.is_empty()
        && word.len() <= LONGEST
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !word.starts_with(['-', '.'])
        && !word.ends_with(['-', '.'])
        && !word.contains("..")
        && !word.contains("--")
}

/// A relative path without surprises: it names a place in a cache folder and a part of an address.
#[must_use]
pub(crate) fn is_path(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '?', '#', '%', '"', '<', '>', '|', '*'])
        && !path.chars().any(char::is_control)
        && path.split('/').all(|word| !word.is_empty() && word != "." && word != "..")
}

fn wrong(text: &str, expected: &str) -> IngestError {
    IngestError::Field { place: "model".to_owned(), found: shown(text), expected: expected.to_owned() }
}
