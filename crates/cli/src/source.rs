//! From MODEL on the command line to facts.

use plimsoll::ingest::hub::Environment;
use plimsoll::ingest::resolve::{self, Door};
use plimsoll::planner::{Basis, Model, PlanError, ProjectorFile};

use crate::progress::Progress;

/// Reads the model, from wherever its name leads: a file, a folder, a hub, Ollama's store.
pub(crate) fn open(text: &str, assume_generic: bool) -> Result<Model, PlanError> {
    let progress = Progress::on_a_terminal();
    let hub = progress.as_ref().map(|progress| Environment { watch: Some(progress.watch()), ..Environment::from_process() });
    let options = resolve::Options { assume_generic, hub, ..resolve::Options::default() };
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

/// Reads a multimodal projector.
pub(crate) fn open_projector(text: &str) -> Result<ProjectorFile, PlanError> {
    let options = resolve::Options::default();
    let (projector, reference) = resolve::open_projector(text, &options)?;
    Ok(ProjectorFile { projector, reference })
}
