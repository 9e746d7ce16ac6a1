//! The real binary, run as a person would.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const LLAMA: &str = "models/llama-3.1-8b";

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.args(arguments).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").env_remove("CLICOLOR");
    command
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().expect("an exit code, not a signal"),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

/// Runs with arguments; those that start with `@` are fixtures.
pub fn plimsoll(arguments: &[&str]) -> Ran {
    let expanded: Vec<String> = arguments
        .iter()
        .map(|argument| match argument.strip_prefix('@') {
            Some(path) => fixture(path).display().to_string(),
            None => (*argument).to_owned(),
        })
        .collect();
    let expanded: Vec<&str> = expanded.iter().map(String::as_str).collect();
    ran(command(&expanded).output().expect("the binary runs"))
}

pub fn json(arguments: &[&str]) -> serde_json::Value {
    let ran = plimsoll(arguments);
    assert!(ran.err.is_empty(), "{arguments:?}: {}", ran.err);
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{}", ran.out))
}
