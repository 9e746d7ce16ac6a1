//! `plimsoll`: will it fit, and what does every byte pay for.
//!
//! Data goes to standard output, everything else to standard error. An error is one sentence and, where there is
//! something to say, a `hint:` line.

mod args;
mod places;
mod planning;
mod progress;
mod render;
mod source;
mod sweep;
mod verbs;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use plimsoll::planner::error::Failure;
use plimsoll::planner::response::Verdict;
use plimsoll::planner::{self, PlanError};
use serde::Serialize;

use args::{Cli, Question, Source, Verb};

const FITS: u8 = 0;
const FITS_WITH_OFFLOAD: u8 = 2;
const DOES_NOT_FIT: u8 = 3;
const USAGE: u8 = 64;
const DATA: u8 = 65;
const UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    let code = match Cli::try_parse() {
        Ok(cli) => run(&cli.verb).unwrap_or_else(|error| {
            complain(&error.to_string(), error.hint());
            match error.failure() {
                Failure::Usage => USAGE,
                Failure::Unavailable => UNAVAILABLE,
                _ => DATA,
            }
        }),
        Err(error) => wrong_usage(&error),
    };
    ExitCode::from(code)
}

/// One sentence and a hint on standard error.
fn complain(message: &str, hint: Option<&str>) {
    let bad = anstyle::AnsiColor::Red.on_default().bold();
    let good = anstyle::AnsiColor::Cyan.on_default().bold();
    let message = one_line(message);
    let mut out = format!("{bad}error:{bad:#} {message}\n");
    if let Some(hint) = hint {
        out.push_str(&format!("{good}hint:{good:#} {hint}\n"));
    }
    // Nowhere is left to report that standard error is closed.
    let _ = anstream::stderr().lock().write_all(out.as_bytes());
}

/// Text from files and users on one line, without control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect::<String>().trim().to_owned()
}

/// Help and version go to standard output; everything else is a sentence and a hint.
fn wrong_usage(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return FITS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return USAGE;
        }
        _ => {}
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut sentence = lines.next().unwrap_or("wrong usage").trim_start_matches("error: ").to_owned();
    let rest: Vec<&str> =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information")).collect();
    if sentence.ends_with(':') {
        let wanted: Vec<&str> = rest.iter().copied().filter(|line| !line.starts_with("tip:")).collect();
        sentence = format!("{sentence} {}", wanted.join(", "));
    } else if let Some(values) = rest.iter().find(|line| line.starts_with("[possible values")) {
        sentence = format!("{sentence} {values}");
    }
    let tip = rest.iter().find_map(|line| line.strip_prefix("tip: ")).map(str::to_owned);
    complain(&sentence, Some(tip.as_deref().unwrap_or("`plimsoll --help`, or `--help` after a command, shows what there is")));
    USAGE
}

/// Standard output, all at once; a reader that went away is no error.
fn print(text: &str) {
    let _ = anstream::stdout().lock().write_all(text.as_bytes());
}

fn print_json(value: &impl Serialize) -> Result<(), PlanError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| PlanError::request("response", error, "text"))?;
    print(&format!("{text}\n"));
    Ok(())
}

fn show<T: Serialize>(json: bool, answer: &T, render: impl FnOnce(&T) -> String) -> Result<(), PlanError> {
    if json {
        return print_json(answer);
    }
    print(&render(answer));
    Ok(())
}

fn model(source: &Source) -> Result<planner::Model, PlanError> {
    source::open(&source.model, source.assume_generic)
}

/// The model of a question, with what runs beside it.
fn asked(question: &Question) -> Result<planner::Model, PlanError> {
    let mut main = model(&question.source)?;
    if let Some(name) = &question.beside.draft_model {
        main.draft = Some(Box::new(source::open(name, question.source.assume_generic)?));
    }
    if let Some(name) = &question.beside.mmproj {
        main.projector = Some(Box::new(source::open_projector(name)?));
    }
    Ok(main)
}

fn run(verb: &Verb) -> Result<u8, PlanError> {
    match verb {
        Verb::Fit(question) => fit(question),
        Verb::Explain(arguments) => planning::explain(arguments),
        Verb::MaxContext(question) => reach(question, planner::max_context),
        Verb::MaxSequences(question) => reach(question, planner::max_sequences),
        Verb::Export(arguments) => verbs::export::run(arguments),
        Verb::Compare(arguments) => planning::compare(arguments),
        Verb::WhichQuant(arguments) => planning::which_quant(arguments),
        Verb::WhichDevice(arguments) => planning::which_device(arguments),
        Verb::Offload(arguments) => planning::offload(arguments),
        Verb::Sweep(arguments) => sweep::sweep(arguments),
        Verb::Inspect(arguments) => {
            let answer = planner::inspect(&model(&arguments.source)?)?;
            show(arguments.json, &answer, render::inspect)?;
            Ok(FITS)
        }
        Verb::Devices(arguments) => {
            verbs::devices::run(arguments)?;
            Ok(FITS)
        }
        Verb::Fleet(arguments) => verbs::fleet::run(arguments),
        Verb::Capacity(arguments) => verbs::capacity::run(arguments),
        Verb::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "plimsoll", &mut out);
            print(&String::from_utf8_lossy(&out));
            Ok(FITS)
        }
        Verb::Man => {
            let out = manual().map_err(|error| PlanError::request("man", error, "a page"))?;
            print(&String::from_utf8_lossy(&out));
            Ok(FITS)
        }
    }
}

/// One page: the command, then each of its verbs with its options as a subsection.
fn manual() -> std::io::Result<Vec<u8>> {
    let command = Cli::command();
    let mut out = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut out)?;
    for verb in command.get_subcommands() {
        let verb = verb.clone();
        let mut part = Vec::new();
        let name = format!("plimsoll {}", verb.get_name());
        let page = clap_mangen::Man::new(verb.display_name(name.clone()).bin_name(&name));
        page.render_synopsis_section(&mut part)?;
        page.render_options_section(&mut part)?;
        // What is a section of its own page is a subsection here.
        let heading = name.to_uppercase().replace('-', "\\-");
        let text = String::from_utf8_lossy(&part).replace(".SH ", ".SS ");
        out.extend_from_slice(format!(".SH \"{heading}\"\n{text}").as_bytes());
    }
    Ok(out)
}

fn fit(question: &Question) -> Result<u8, PlanError> {
    let answer = planner::fit(&asked(question)?, &question.options()?)?;
    show(question.json, &answer, render::fit)?;
    Ok(match answer.verdict {
        Verdict::Fits { .. } => FITS,
        Verdict::FitsWithOffload { .. } => FITS_WITH_OFFLOAD,
        _ => DOES_NOT_FIT,
    })
}

fn reach(
    question: &Question,
    verb: impl FnOnce(&planner::Model, &planner::Options) -> Result<planner::response::Reach, PlanError>,
) -> Result<u8, PlanError> {
    let answer = verb(&asked(question)?, &question.options()?)?;
    show(question.json, &answer, render::reach)?;
    Ok(if answer.limit.value > 0 { FITS } else { DOES_NOT_FIT })
}
