//! The engine's own totals for the comparison with peers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll::planner::Model;
use serde_json::Value;

use super::engine::Checker;
use super::figures::{Answer, Ready, theirs};
use super::grid::Setting;
use super::install::{self, PACKAGE, make};
use super::places::Where;
use super::subjects::{self, Subject};
use crate::truth::unzipped;

/// A model with the engine's bytes.
#[derive(Debug)]
pub(crate) struct Truth {
    /// Name among the fixtures.
    pub(crate) name: String,
    /// The engine's build.
    pub(crate) build: String,
    /// Where the packages are installed.
    pub(crate) packages: PathBuf,
    /// The file without data.
    pub(crate) file: PathBuf,
    /// The model as we read it.
    pub(crate) model: Model,
    /// All buffers.
    pub(crate) bytes: u64,
    /// Loading the file and planning the context.
    pub(crate) time: Duration,
}

/// What the engine allocates on the processor for models of the fixtures at Q4_K_M.
pub(crate) fn truth(names: &[&str], context: u64) -> Result<Vec<Truth>, String> {
    let engine = install::engine(PACKAGE)?;
    let models = engine.folder.join("models");
    make(&models)?;
    let mut checker = Checker::start(&engine, Where::Processor)?;
    let setting = Setting { context, repack: false, ..Setting::plain() };
    let mut out = Vec::new();
    for name in names {
        let path = format!("truth/llama.cpp/gguf/{name}.Q4_K_M.gguf.header.gz");
        let bytes = unzipped(&path)?.ok_or_else(|| format!("{path}: not there"))?;
        let subject = Subject::real((*name).to_owned(), bytes)?;
        let Ready::Model(model) = Ready::of(&subject) else { return Err(format!("{name} cannot be read")) };
        let file = subjects::file(&models, &subject)?;
        let answer = checker.ask(&format!("id=0\tmodel={}\t{}", file.display(), setting.line()))?;
        let Answer::Figures(figures) = theirs(&answer) else { return Err(format!("{name}: {answer}")) };
        let micros = |key: &str| answer.get(key).and_then(Value::as_u64).unwrap_or(0);
        out.push(Truth {
            name: (*name).to_owned(),
            build: engine.release.build.clone(),
            packages: engine.folder.clone(),
            file,
            model: *model,
            bytes: figures.terms.iter().map(|term| term.most()).sum(),
            time: Duration::from_micros(micros("load_us").saturating_add(micros("plan_us"))),
        });
    }
    Ok(out)
}

/// How often the engine is asked for its time; the shortest counts.
const ASKED: usize = 7;

/// How long the engine plans a context for models of the fixtures at Q4_K_M on a device, the file loaded already.
///
/// An error where the engine is not installed, or does not answer.
pub(crate) fn planning_times(names: &[&str], context: u64) -> Result<BTreeMap<String, Duration>, String> {
    if !install::is_installed(PACKAGE) {
        return Err("the engine is not installed: `cargo xtask conformance` does that".to_owned());
    }
    let engine = install::engine(PACKAGE)?;
    let models = engine.folder.join("models");
    make(&models)?;
    let mut checker = Checker::start(&engine, Where::Cuda(890))?;
    let setting = Setting { context, flash: "on", ..Setting::plain() };
    let mut out = BTreeMap::new();
    for name in names {
        let path = format!("truth/llama.cpp/gguf/{name}.Q4_K_M.gguf.header.gz");
        let Some(bytes) = unzipped(&path)? else { continue };
        let file = subjects::file(&models, &Subject::real((*name).to_owned(), bytes)?)?;
        let mut shortest = None;
        for _ in 0..ASKED {
            let answer = checker.ask(&format!("id=0\tmodel={}\t{}", file.display(), setting.line()))?;
            let micros = answer.get("plan_us").and_then(Value::as_u64).ok_or_else(|| format!("{name}: {answer}"))?;
            shortest = Some(shortest.map_or(micros, |least: u64| least.min(micros)));
        }
        if let Some(micros) = shortest {
            out.insert((*name).to_owned(), Duration::from_micros(micros));
        }
    }
    Ok(out)
}
