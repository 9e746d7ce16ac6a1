//! The machine that is asked: programs to run, files to read.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::facts::Unavailable;
use crate::host::Host;

/// The most that is read of a tool's output or a file, bytes.
pub const MAX_OUTPUT: u64 = 4 << 20;
/// How long a tool may take. Some wait for a card that has gone to sleep.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which operating system: drivers report memory differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Os {
    /// Linux.
    Linux,
    /// Windows.
    Windows,
    /// macOS.
    Macos,
    /// Another one.
    Other,
}

/// A machine.
pub trait System {
    /// Which system runs on it.
    fn os(&self) -> Os;

    /// What a program prints.
    ///
    /// # Errors
    /// [`Unavailable`] where it is not installed, fails, or takes too long.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Unavailable>;

    /// What a file holds.
    ///
    /// # Errors
    /// [`Unavailable`] where it cannot be read.
    fn read(&self, path: &str) -> Result<String, Unavailable>;

    /// Names in a folder, sorted; none where there is no such folder.
    fn list(&self, folder: &str) -> Vec<String>;

    /// Its processor and memory.
    fn host(&self) -> Host;

    /// Whether libraries may be loaded: only on the machine itself.
    fn is_this_machine(&self) -> bool {
        false
    }
}

/// The machine that this program runs on.
#[derive(Debug, Clone, Copy)]
pub struct ThisMachine;

/// At most [`MAX_OUTPUT`] bytes, as text.
fn capped(source: impl Read) -> Option<String> {
    let mut raw = Vec::new();
    source.take(MAX_OUTPUT).read_to_end(&mut raw).ok()?;
    Some(String::from_utf8_lossy(&raw).into_owned())
}

impl System for ThisMachine {
    fn os(&self) -> Os {
        match std::env::consts::OS {
            "linux" => Os::Linux,
            "windows" => Os::Windows,
            "macos" => Os::Macos,
            _ => Os::Other,
        }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Unavailable> {
        let because = |reason: String| Unavailable(format!("{program}: {reason}"));
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Numbers without a locale's commas.
        command.env("LC_ALL", "C");
        let mut child = command.spawn().map_err(|error| {
            because(if error.kind() == std::io::ErrorKind::NotFound { "not installed".to_owned() } else { error.to_string() })
        })?;
        let (sender, receiver) = mpsc::channel();
        if let Some(out) = child.stdout.take() {
            // A tool that prints more than is read, or waits for its pipe to close, must not hold us.
            thread::spawn(move || sender.send(capped(out)));
        }
        let started = Instant::now();
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if started.elapsed() > PATIENCE => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(because(format!("no answer within {} seconds", PATIENCE.as_secs())));
                }
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(because(error.to_string())),
            }
        };
        let text = receiver.recv_timeout(PATIENCE).ok().flatten().unwrap_or_default();
        if status.success() { Ok(text) } else { Err(because(format!("it failed with {status}"))) }
    }

    fn read(&self, path: &str) -> Result<String, Unavailable> {
        File::open(path)
            .map_err(|error| Unavailable(format!("{path}: {error}")))
            .and_then(|file| capped(file).ok_or_else(|| Unavailable(format!("{path}: cannot be read"))))
    }

    fn list(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).take(4096).collect();
        names.sort();
        names
    }

    fn host(&self) -> Host {
        Host::of_this_machine()
    }

    fn is_this_machine(&self) -> bool {
        true
    }
}
