//! A projector's terms.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{ProjectorSetting, TowerMemory, memory};
use crate::allocation::{Certainty, Term, TermKind};
use crate::deployment::Backend;
use crate::engine::llama_cpp::build::Build;
use crate::error::MathError;
use crate::projector::{Modality, Projector};
use crate::units::Bytes;

/// The terms of a projector: where it runs, and on the host beside it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProjectorTerms {
    /// Where it runs.
    pub own: Vec<Term>,
    /// On the host beside a device.
    pub host: Vec<Term>,
}

const fn tower_name(modality: Modality) -> &'static str {
    match modality {
        Modality::Vision => "images",
        Modality::Audio => "sound",
        Modality::Speech => "speech",
    }
}

fn leaf(label: String, bytes: u64, formula: String, source: String) -> Result<Term, MathError> {
    Ok(Term {
        component: TermKind::Projector,
        label,
        bytes: Bytes::new(bytes)?,
        certainty: Certainty::Exact,
        formula,
        source,
        children: Vec::new(),
    })
}

fn compute_formula(tower: &TowerMemory) -> String {
    match tower.modality {
        Modality::Vision => format!(
            "largest step of a graph of one picture of {0} x {0} pixels, which {1} reserves for before it sees one",
            tower.reserved_for, tower.kind
        ),
        Modality::Audio | Modality::Speech => {
            format!("largest step of a graph of {} frames of sound, which {} reserves for", tower.reserved_for, tower.kind)
        }
    }
}

/// What a projector adds, term by term.
///
/// # Errors
/// As [`memory`].
pub fn terms(projector: &Projector, setting: &ProjectorSetting, build: Build) -> Result<ProjectorTerms, MathError> {
    let mut out = ProjectorTerms::default();
    for tower in memory(projector, setting, build)? {
        let what = tower_name(tower.modality);
        let weights = format!("{} tensors of the file, each to the buffer's alignment", tower.n_tensors);
        out.own.push(leaf(
            format!("projector for {what}, weights"),
            tower.weights,
            weights,
            format!("{build}: tools/mtmd/clip.cpp:load_tensors, ggml-alloc.c:ggml_backend_alloc_ctx_tensors_from_buft"),
        )?);
        let source = format!("{build}: tools/mtmd/clip.cpp:warmup, reserve_compute_meta");
        let formula = compute_formula(&tower);
        out.own.push(leaf(format!("projector for {what}, compute buffer"), tower.compute, formula.clone(), source.clone())?);
        if setting.backend != Backend::Cpu {
            let label = format!("projector for {what}, compute buffer of the host");
            out.host.push(leaf(label, tower.host_compute, "what the caller fills".to_string(), source)?);
        }
    }
    Ok(out)
}
