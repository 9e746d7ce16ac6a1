//! What a family's row reads a config with: defaults, bounds, and a list of everything that was wrong or odd.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use plimsoll_math::spec::ModelSpec;

use super::config::Config;
use super::door::{Limits, Options};
use super::families::Family;
use super::lookup;
use crate::error::IngestError;

/// What all readers of one document write to.
#[derive(Debug)]
pub struct Shared {
    pub(super) options: Options,
    errors: RefCell<Vec<IngestError>>,
    notes: RefCell<Vec<String>>,
    generic: Cell<bool>,
}

impl Shared {
    pub(super) fn new(options: &Options) -> Self {
        Self { options: options.clone(), errors: RefCell::default(), notes: RefCell::default(), generic: Cell::new(false) }
    }
    pub(super) fn error(&self, error: IngestError) {
        let mut errors = self.errors.borrow_mut();
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    pub(super) fn note(&self, note: String) {
        let mut notes = self.notes.borrow_mut();
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    pub(super) fn mark_generic(&self) {
        self.generic.set(true);
    }
    pub(super) fn keep<T>(&self, result: Result<T, IngestError>) -> Option<T> {
        result.map_err(|error| self.error(error)).ok()
    }
    pub(super) fn finish(self) -> (Vec<IngestError>, Vec<String>, bool) {
        (self.errors.into_inner(), self.notes.into_inner(), self.generic.get())
    }
}

/// What the model ends in, by the class that the config names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// The next token's logits.
    LanguageModel,
    /// Hidden states (`LlamaModel`).
    Nothing,
    /// Classes (`LlamaForSequenceClassification`, `…ForTokenClassification`).
    Classes,
    /// Start and end of an answer (`…ForQuestionAnswering`).
    Answer,
}

impl HeadKind {
    /// By the suffix of a class name.
    #[must_use]
    pub fn of_class(class: &str) -> Self {
        if class.ends_with("ForSequenceClassification") || class.ends_with("ForTokenClassification") {
            Self::Classes
        } else if class.ends_with("ForQuestionAnswering") {
            Self::Answer
        } else if class.ends_with("Model") && !class.ends_with("LMHeadModel") {
            Self::Nothing
        } else {
            Self::LanguageModel
        }
    }
}

/// A family's view of one config object.
///
/// Getters never fail: what is wrong is written down, and the reader answers with nothing or zero. The door refuses
/// the config with the whole list afterwards.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    /// The object that describes this model: the document, or the nested object of a multimodal one.
    pub config: Config<'a>,
    /// The document.
    pub root: Config<'a>,
    /// The row.
    pub family: &'static Family,
    /// The class the config names, empty when it names none.
    pub class: String,
    /// What the model ends in.
    pub head: HeadKind,
    /// Whether the embedding is the output matrix too, when something outside this object decides it.
    pub tied: Option<bool>,
    pub(super) shared: &'a Shared,
}

impl<'a> Reader<'a> {
    /// Bounds of the numbers.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.shared.options.limits
    }
    /// Writes an error down.
    pub fn error(&self, error: IngestError) {
        self.shared.error(error);
    }
    /// Writes down that `name` holds what it cannot hold.
    pub fn invalid(&self, name: &str, found: impl ToString, expected: impl ToString) {
        self.shared.error(self.config.invalid(name, found, expected));
    }
    /// Writes a note down: one sentence.
    pub fn note(&self, note: impl Into<String>) {
        self.shared.note(note.into());
    }
    /// The value of a getter's result; an error is written down.
    pub fn keep<T>(&self, result: Result<Option<T>, IngestError>) -> Option<T> {
        self.shared.keep(result).flatten()
    }

    /// A count that must be there or have a default in the row, at most `limit`. 0 when it is wrong.
    #[must_use]
    pub fn need_below(&self, aliases: &[&str], limit: u64) -> u64 {
        let value = self.opt(aliases);
        match value {
            None => {
                if !self.config.has(aliases) {
                    self.shared.error(self.config.missing(aliases, "a whole number"));
                }
                0
            }
            Some(value) if value > limit => {
                self.invalid(self.config.named(aliases), value, format!("at most {limit}"));
                0
            }
            // A model without layers, heads or rows is none; what may be absent is read with `opt`.
            Some(0) => {
                let name = self.config.named(aliases);
                self.invalid(name, 0, "at least 1");
                0
            }
            Some(value) => {
                if self.config.is_default(aliases) {
                    let name = aliases.first().copied().unwrap_or_default();
                    let family = self.family.model_types.first().copied().unwrap_or_default();
                    self.note(format!("{}.{name}: missing; {value} is the default of {family}", self.config.path()));
                }
                value
            }
        }
    }
    /// A width that must be there or have a default in the row. 0 when it is wrong.
    #[must_use]
    pub fn need(&self, aliases: &[&str]) -> u64 {
        self.need_below(aliases, self.limits().width)
    }
    /// A count, if it is there or has a default in the row.
    #[must_use]
    pub fn opt(&self, aliases: &[&str]) -> Option<u64> {
        self.keep(self.config.u64(aliases))
    }
    /// A count, at most `limit`.
    #[must_use]
    pub fn opt_below(&self, aliases: &[&str], limit: u64) -> Option<u64> {
        let value = self.opt(aliases)?;
        if value > limit {
            self.invalid(self.config.named(aliases), value, format!("at most {limit}"));
            return None;
        }
        Some(value)
    }
    /// A truth value; `otherwise` is the family's default.
    #[must_use]
    pub fn flag(&self, aliases: &[&str], otherwise: bool) -> bool {
        self.keep(self.config.bool(aliases)).unwrap_or(otherwise)
    }
    /// A text.
    #[must_use]
    pub fn text(&self, aliases: &[&str]) -> Option<&'a str> {
        self.keep(self.config.str(aliases))
    }
    /// A list of counts.
    #[must_use]
    pub fn list(&self, aliases: &[&str]) -> Option<Vec<u64>> {
        self.keep(self.config.u64_list(aliases))
    }
    /// A list of truth values.
    #[must_use]
    pub fn flags(&self, aliases: &[&str]) -> Option<Vec<bool>> {
        self.keep(self.config.bool_list(aliases))
    }
    /// A list of texts.
    #[must_use]
    pub fn texts(&self, aliases: &[&str]) -> Option<Vec<&'a str>> {
        self.keep(self.config.str_list(aliases))
    }
    /// A nested object, as a reader of the same family.
    #[must_use]
    pub fn child(&self, aliases: &[&str]) -> Option<Self> {
        let config = self.keep(self.config.child(aliases))?;
        Some(Self { config, ..self.clone() })
    }
    /// Whether a key is there and not null.
    #[must_use]
    pub fn has(&self, aliases: &[&str]) -> bool {
        self.config.has(aliases)
    }
    /// `total / parts`, written down as an error when it does not divide.
    #[must_use]
    pub fn divide(&self, name: &str, total: u64, parts: u64) -> u64 {
        match total.checked_div(parts) {
            Some(quotient) if total.is_multiple_of(parts) => quotient,
            _ => {
                self.invalid(name, parts, format!("a divisor of {total}"));
                0
            }
        }
    }

    /// The language model inside a wrapper: the first of `keys` that is there, read by the row of its own
    /// `model_type`, else of its `architectures`, else of `otherwise`. `tied` overrides the nested config where the
    /// wrapper decides.
    ///
    /// # Errors
    /// [`IngestError`] when no key is there or the nested model is unknown.
    pub fn language_model(&self, keys: &[&str], otherwise: &str, tied: Option<bool>) -> Result<ModelSpec, IngestError> {
        let nested = self.config.child(keys)?.ok_or_else(|| self.config.missing(keys, "an object"))?;
        lookup::build_nested(nested, self, otherwise, tied)
    }

    /// The language model of a wrapper whose config holds it flat: this object, read by the row of `model_type`.
    ///
    /// # Errors
    /// [`IngestError`] when the model is unknown.
    pub fn language_model_here(&self, model_type: &str, tied: Option<bool>) -> Result<ModelSpec, IngestError> {
        lookup::build_here(self, model_type, tied)
    }

    /// The shown name, if the config holds one.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        self.keep(self.root.str(&["_name_or_path"])).filter(|name| !name.is_empty()).map(ToOwned::to_owned)
    }
}
