//! The real engine from the package registry, its sources, and the checker built against them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cut;
use crate::run::{answers, root};

/// A release of the package that ships the engine, and the engine's build inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Release {
    /// Version of the packages `node-llama-cpp` and `@node-llama-cpp/linux-x64`.
    pub(crate) package: String,
    /// The tag of the engine's source.
    pub(crate) build: String,
}

/// The release that the recorded conformance belongs to. Following a newer one: `--package VERSION --record`.
pub(crate) const PACKAGE: &str = "3.22.1";

/// The engine, ready to answer.
#[derive(Debug)]
pub(crate) struct Engine {
    /// What is installed.
    pub(crate) release: Release,
    /// Everything of this release.
    pub(crate) folder: PathBuf,
    /// The checker.
    pub(crate) checker: PathBuf,
    /// The processor's backend, the same on every machine: the choice of repacked layouts depends on it.
    pub(crate) cpu: PathBuf,
    /// Tells answers of this checker from those of another.
    pub(crate) fingerprint: u64,
}

/// One step's program, arguments and folder.
fn run(what: &str, command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let tail: Vec<&str> = text.lines().rev().take(12).collect();
    Err(format!("{what} failed:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n")))
}

pub(crate) fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

pub(crate) fn make(path: &Path) -> Result<(), String> {
    fs::create_dir_all(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// What this machine lacks, in one line; `None` when a run can start.
pub(crate) fn missing(package: &str) -> Option<String> {
    if !(cfg!(target_os = "linux") && cfg!(target_arch = "x86_64")) {
        return Some("the engine's libraries are installed for Linux on x86-64 only".to_owned());
    }
    let mut tools = Vec::new();
    if compiler().is_none() {
        tools.push("a C++17 compiler (c++, g++ or clang++)");
    }
    if !packages(package).join("node_modules/node-llama-cpp").exists() {
        for (program, name) in [("npm", "npm (Node.js)"), ("git", "git")] {
            if !answers(Command::new(program).arg("--version")) {
                tools.push(name);
            }
        }
    }
    (!tools.is_empty()).then(|| format!("not installed here: {}", tools.join(", ")))
}

fn compiler() -> Option<&'static str> {
    ["c++", "g++", "clang++"].into_iter().find(|name| answers(Command::new(name).arg("--version")))
}

fn packages(package: &str) -> PathBuf {
    root().join("target/conformance").join(package)
}

/// Whether a release is there already.
pub(crate) fn is_installed(package: &str) -> bool {
    packages(package).join("node_modules/@node-llama-cpp/linux-x64").exists()
}

/// Installs the packages, unpacks the sources and builds the checker, each unless it is there already.
pub(crate) fn engine(package: &str) -> Result<Engine, String> {
    if let Some(lacking) = missing(package) {
        return Err(lacking);
    }
    let folder = packages(package);
    make(&folder)?;
    install(&folder, package)?;
    let source = folder.join("source");
    let modules = folder.join("node_modules");
    let info = read(&modules.join("node-llama-cpp/llama/llama.cpp.info.json"))?;
    let info: serde_json::Value = serde_json::from_str(&info).map_err(|error| format!("llama.cpp.info.json: {error}"))?;
    let build = info.get("tag").and_then(serde_json::Value::as_str).ok_or("llama.cpp.info.json: no tag")?.to_owned();
    if !source.join("include/llama.h").exists() {
        let bundle = modules.join("node-llama-cpp/llama/gitRelease.bundle");
        run("unpacking the engine's sources", Command::new("git").args(["clone", "--quiet"]).arg(&bundle).arg(&source))?;
    }
    let libraries = modules.join("@node-llama-cpp/linux-x64/bins/linux-x64");
    let (checker, fingerprint) = build_checker(&folder, &source, &libraries)?;
    let cpu = libraries.join("libggml-cpu-haswell.so");
    Ok(Engine { release: Release { package: package.to_owned(), build }, folder, checker, cpu, fingerprint })
}

fn install(folder: &Path, package: &str) -> Result<(), String> {
    if folder.join("node_modules/@node-llama-cpp/linux-x64").exists() {
        return Ok(());
    }
    println!("   installing node-llama-cpp {package} and its engine");
    let manifest = serde_json::json!({
        "private": true,
        "dependencies": {"node-llama-cpp": package, "@node-llama-cpp/linux-x64": package},
    });
    write(&folder.join("package.json"), manifest.to_string())?;
    // Optional dependencies are the same engine for other machines, hundreds of megabytes of it.
    let arguments = ["install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
    run("npm install", Command::new("npm").args(arguments).current_dir(folder))
}

/// The library whose name starts so; releases put their version into it.
fn library(folder: &Path, start: &str) -> Result<PathBuf, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut names: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    names.retain(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.strip_prefix(start).is_some_and(|rest| rest.starts_with(".so") || rest.starts_with(".v") || rest.starts_with(".b"))
    });
    names.sort();
    names.into_iter().next().ok_or_else(|| format!("{}: no {start}", folder.display()))
}

/// Builds the checker when its sources, or what is cut from the engine's, have changed.
fn build_checker(folder: &Path, source: &Path, libraries: &Path) -> Result<(PathBuf, u64), String> {
    let ours = root().join("xtask/conformance");
    let generated = folder.join("generated");
    make(&generated)?;
    let scheduler = cut::scheduler(source)?;
    let planning = cut::cuda(source)?;
    let mut all = format!("{scheduler}{planning}");
    for name in ["checker.cpp", "standin.cpp", "standin.h"] {
        all.push_str(&read(&ours.join(name))?);
    }
    let fingerprint = hash(all.as_bytes());
    let checker = folder.join(format!("checker-{fingerprint:016x}"));
    if checker.exists() {
        return Ok((checker, fingerprint));
    }
    println!("   building the checker");
    write(&generated.join("scheduler.inc"), scheduler)?;
    write(&generated.join("cuda_planning.inc"), planning)?;
    let compiler = compiler().ok_or("no C++ compiler")?;
    let mut objects = Vec::new();
    for name in ["checker.cpp", "standin.cpp"] {
        let object = generated.join(name).with_extension("o");
        let mut command = Command::new(compiler);
        // The figures are private members of the engine's classes.
        command.args(["-std=c++17", "-O1", "-w", "-fno-access-control", "-c"]).arg(ours.join(name)).arg("-o").arg(&object);
        for include in ["include", "src", "ggml/include", "ggml/src"] {
            command.arg("-I").arg(source.join(include));
        }
        command.arg("-I").arg(&generated).arg("-I").arg(&ours);
        run(&format!("compiling {name}"), &mut command)?;
        objects.push(object);
    }
    let mut link = Command::new(compiler);
    link.args(&objects).arg("-o").arg(&checker);
    for start in ["libllama", "libggml", "libggml-base"] {
        link.arg(library(libraries, start)?);
    }
    link.arg(format!("-Wl,-rpath,{}", libraries.display()));
    run("linking the checker", &mut link)?;
    Ok((checker, fingerprint))
}

/// FNV-1a.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
