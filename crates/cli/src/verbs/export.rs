//! `plimsoll export`.

use plimsoll::planner::export::{Target, document};
use plimsoll::planner::response::Document;
use plimsoll::planner::{self, PlanError};

use crate::args::{As, ExportArgs};
use crate::{FITS, asked, print, render, show};

pub(crate) fn run(arguments: &ExportArgs) -> Result<u8, PlanError> {
    let question = &arguments.question;
    let model = asked(question)?;
    let options = question.options()?;
    let mut answer = planner::export(&model, &options)?;
    let target = match arguments.form {
        As::Command => None,
        As::Kubernetes => Some(Target::Kubernetes),
        As::Compose => Some(Target::Compose),
        As::Ollama => Some(Target::Ollama),
        As::Sglang => Some(Target::Sglang),
    };
    if let Some(target) = target {
        let text = document(&model, &options, target)?;
        if !question.json {
            print(&text);
            return Ok(FITS);
        }
        answer.document = Some(Document { form: target.name().to_owned(), text });
    }
    show(question.json, &answer, render::export)?;
    Ok(FITS)
}
