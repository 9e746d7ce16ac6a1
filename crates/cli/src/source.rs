//! From MODEL on the command line to facts.

use plimsoll::ingest::resolve::{self, Door};
use plimsoll::planner::{Basis, Model, PlanError};

/// Reads the model, from wherever its name leads: a file, a folder, a hub, Ollama's store.
pub(crate) fn open(text: &str, assume_generic: bool) -> Result<Model, PlanError> {
    let options = resolve::Options { assume_generic, ..resolve::Options::default() };
    let opened = resolve::open(text, &options)?;
    let basis = match opened.door {
        Door::Gguf => Basis::Gguf,
        Door::Checkpoint => Basis::Checkpoint,
        _ => Basis::Config,
    };
    let mut model = Model::new(opened.name.as_deref(), opened.ingested, basis);
    model.asked_quant = opened.quantization;
    model.published = opened.checkpoint.map(|checkpoint| checkpoint.table()).transpose()?;
    if basis == Basis::Gguf {
        model.reference = Some(opened.reference);
    }
    Ok(model)
}
