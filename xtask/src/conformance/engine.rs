//! Conversations with the checker, and the answers that are kept between runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::install::Engine;
use super::places::Where;

/// A running checker.
#[derive(Debug)]
pub(crate) struct Checker {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Checker {
    pub(crate) fn start(engine: &Engine, place: Where) -> Result<Self, String> {
        let mut command = Command::new(&engine.checker);
        command.arg("--cpu").arg(&engine.cpu);
        let (devices, capability) = place.devices();
        if devices > 0 {
            command.args(["--cuda", &format!("{devices}:{capability}")]);
        }
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = spawned.map_err(|error| format!("the checker cannot be started: {error}"))?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().ok_or("the checker has no output")?);
        Ok(Self { child, requests, answers })
    }

    /// Asks one question.
    pub(crate) fn ask(&mut self, line: &str) -> Result<Value, String> {
        let requests = self.requests.as_mut().ok_or("the checker is closed")?;
        writeln!(requests, "{line}").and_then(|()| requests.flush()).map_err(|error| format!("the checker: {error}"))?;
        let mut answer = String::new();
        loop {
            answer.clear();
            let read = self.answers.read_line(&mut answer).map_err(|error| format!("the checker: {error}"))?;
            if read == 0 {
                return Err("the checker ended".to_owned());
            }
            // The engine may print lines of its own.
            if answer.starts_with("{\"id\"") {
                return serde_json::from_str(&answer).map_err(|error| format!("{answer}: {error}"));
            }
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.child.wait();
    }
}

/// The architectures that a build knows.
pub(crate) fn architectures(engine: &Engine) -> Result<Vec<String>, String> {
    let output = Command::new(&engine.checker).arg("--architectures").output();
    let output = output.map_err(|error| format!("the checker cannot be started: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter(|name| !name.starts_with('(') && !name.is_empty()).map(str::to_owned).collect())
}

/// Answers that earlier runs left.
#[derive(Debug)]
pub(crate) struct Kept {
    path: PathBuf,
    answers: BTreeMap<u64, Value>,
}

impl Kept {
    pub(crate) fn read(engine: &Engine) -> Self {
        let path = engine.folder.join(format!("answers-{:016x}.jsonl", engine.fingerprint));
        let mut answers = BTreeMap::new();
        if let Ok(file) = fs::File::open(&path) {
            for line in BufReader::new(file).lines().map_while(Result::ok) {
                let Ok(entry) = serde_json::from_str::<Value>(&line) else { continue };
                if let (Some(key), Some(answer)) = (entry.get(0).and_then(Value::as_u64), entry.get(1)) {
                    answers.insert(key, answer.clone());
                }
            }
        }
        Self { path, answers }
    }

    pub(crate) fn get(&self, key: u64) -> Option<&Value> {
        self.answers.get(&key)
    }

    /// Keeps new answers.
    pub(crate) fn add(&self, new: &[(u64, Value)]) -> Result<(), String> {
        if new.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for (key, answer) in new {
            text.push_str(&serde_json::json!([key, answer]).to_string());
            text.push('\n');
        }
        let file = fs::OpenOptions::new().create(true).append(true).open(&self.path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| format!("{}: {error}", self.path.display()))
    }
}
