//! Project tasks. `cargo xtask test` is what a contributor runs and what CI runs.

mod accuracy;
mod arrow;
mod bench;
mod builds;
mod calibrate;
mod compare;
mod conformance;
mod csv;
mod devices;
mod engines;
mod run;
mod steps;
mod truth;
mod vllm;
mod wasm;

use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask TASK

  test             everything that must hold: format, lints, tests, wasm32, docs, dependency rules
  test --quick     tests and lints only
  wasm             compile the core, the planner and the parsers for wasm32
  accuracy         rewrite docs/accuracy.md and the README's table from the fixtures
  accuracy --check say whether they are up to date
  engines          rewrite docs/engines.md: ten models under every engine
  engines --check  say whether it is up to date
  devices          rewrite the device table from fixtures/devices
  devices --check  say whether it is up to date
  conformance      the real engine from the package registry beside us, term by term
                   [--quick] [--record] [--only NAME] [--most N] [--worst N] [--package VERSION]
                   --most: ask the engine N new settings at most; the next run goes on from there
  conformance --engine vllm [--python PATH | --install]
                   vLLM's recorded plans, row by row, and its own planning functions and parser where its wheel is
  architectures    rewrite docs/architectures.md from the recorded conformance
  architectures --check
                   say whether it is up to date
  builds           rewrite docs/engine-builds.md: what each engine build changed
  builds --check   say whether it is up to date
  calibrate        fit the throughput model to fixtures/bench and write its table
  compare          rewrite docs/compare.md: the peers from the registries beside us [--python PATH]
  bench            criterion benches beside the engine's own simulation and the registry's peers; rewrites docs/benches.md
                   [--full] for more than criterion's quick mode
  fuzz [SECONDS]   run every fuzz target for SECONDS (default 60)
  deny             licences, sources and duplicate versions of all dependencies
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["test"] => steps::test(false),
        ["test", "--quick"] => steps::test(true),
        ["wasm"] => wasm::check(),
        ["accuracy"] => accuracy::run(false),
        ["accuracy", "--check"] => accuracy::run(true),
        ["engines"] => engines::run(false),
        ["engines", "--check"] => engines::run(true),
        ["devices"] => devices::run(false),
        ["devices", "--check"] => devices::run(true),
        ["conformance", "--engine", "vllm", options @ ..] => vllm::Plan::parse(options).and_then(|plan| vllm::run(&plan)),
        ["conformance", options @ ..] => conformance::Plan::parse(options).and_then(|plan| conformance::run(&plan)),
        ["architectures"] => conformance::architectures::page_of_record(false),
        ["architectures", "--check"] => conformance::architectures::page_of_record(true),
        ["calibrate"] => calibrate::run(),
        ["compare", options @ ..] => compare::run(options),
        ["builds"] => builds::run(false),
        ["builds", "--check"] => builds::run(true),
        ["bench", options @ ..] => bench::run(options),
        ["fuzz"] => steps::fuzz("60"),
        ["fuzz", seconds] => steps::fuzz(seconds),
        ["deny"] => steps::deny(),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("xtask: {problem}");
            ExitCode::FAILURE
        }
    }
}
