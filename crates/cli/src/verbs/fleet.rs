//! `plimsoll fleet`.

use std::collections::BTreeMap;
use std::path::Path;

use plimsoll::planner::fleet::{FleetRequest, fleet};
use plimsoll::planner::{Model, PlanError};

use crate::args::FleetArgs;
use crate::{DOES_NOT_FIT, FITS, places, render, show, source};

/// A path beside the fleet's file, where there is one; the name as it is otherwise.
fn beside(file: &Path, name: &str) -> String {
    let near = file.parent().map(|folder| folder.join(name)).filter(|path| path.exists());
    near.map_or_else(|| name.to_owned(), |path| path.display().to_string())
}

pub(crate) fn run(arguments: &FleetArgs) -> Result<u8, PlanError> {
    let mut request: FleetRequest = places::load(&arguments.file)?;
    if arguments.solver_seconds.is_some() {
        request.solver_seconds = arguments.solver_seconds;
    }
    let mut opened: BTreeMap<String, Model> = BTreeMap::new();
    let mut models = Vec::new();
    for wanted in &request.model {
        let name = beside(&arguments.file, wanted.model.as_deref().unwrap_or(&wanted.name));
        let model = match opened.get(&name) {
            Some(model) => model.clone(),
            None => {
                let model = source::open(&name, wanted.options.assume_generic == Some(true))?;
                opened.insert(name, model.clone());
                model
            }
        };
        models.push(model);
    }
    let answer = fleet(&request, &models)?;
    show(arguments.json, &answer, render::fleet)?;
    Ok(if answer.unplaced.is_empty() { FITS } else { DOES_NOT_FIT })
}
