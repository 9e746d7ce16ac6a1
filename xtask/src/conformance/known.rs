//! Differences that are known and not yet mended. A run names them and does not fail for them; an entry whose rows all
//! agree again is to be removed, and the run says so.

/// One model whose rows may differ.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// How the model's name starts.
    pub(crate) model: &'static str,
    /// What is not covered.
    pub(crate) reason: &'static str,
}

/// All of them.
pub(crate) const KNOWN: &[Known] = &[];

/// The entry for a model, if there is one.
pub(crate) fn known(model: &str) -> Option<Known> {
    KNOWN.iter().copied().find(|known| model.starts_with(known.model))
}
