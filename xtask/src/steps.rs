//! The steps of each task.

use crate::run::{answers, cargo, command, root, step};
use crate::{accuracy, arrow, builds, conformance, devices, engines, wasm};

/// Everything that must hold.
pub(crate) fn test(quick: bool) -> Result<(), String> {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    arrow::check()?;
    step("lints", &mut cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]))?;
    tests()?;
    devices::run(true)?;
    accuracy::run(true)?;
    builds::run(true)?;
    engines::run(true)?;
    conformance::habit()?;
    if quick {
        return Ok(());
    }
    step("math-core without std and serde", &mut cargo(&["check", "--quiet", "-p", "plimsoll-math", "--no-default-features"]))?;
    wasm::check()?;
    step("documentation", cargo(&["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    for workspace in ["fuzz", "benches"] {
        let manifest = root().join(workspace).join("Cargo.toml");
        if manifest.exists() {
            let manifest = manifest.to_string_lossy().into_owned();
            step(
                &format!("{workspace} compile"),
                &mut cargo(&["check", "--quiet", "--all-targets", "--manifest-path", &manifest]),
            )?;
        }
    }
    deny()
}

/// All tests, with nextest where it is installed.
fn tests() -> Result<(), String> {
    if answers(&mut cargo(&["nextest", "--version"])) {
        step(
            "tests",
            &mut cargo(&["nextest", "run", "--workspace", "--all-features", "--no-fail-fast", "--status-level", "fail"]),
        )?;
        step("documentation tests", &mut cargo(&["test", "--quiet", "--workspace", "--all-features", "--doc"]))
    } else {
        step("tests", &mut cargo(&["test", "--quiet", "--workspace", "--all-features", "--no-fail-fast"]))
    }
}

/// Licences, sources and duplicates. The advisory database lives in a repository of its own and is checked only where it
/// can be reached.
pub(crate) fn deny() -> Result<(), String> {
    if !answers(&mut cargo(&["deny", "--version"])) {
        if std::env::var_os("CI").is_none() {
            println!("== deny: skipped, cargo-deny is not installed: run `cargo install --locked cargo-deny`");
            return Ok(());
        }
        step("installing cargo-deny", &mut cargo(&["install", "--quiet", "--locked", "cargo-deny"]))?;
    }
    step("deny", &mut cargo(&["deny", "--log-level", "error", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
}

/// Runs every fuzz target.
pub(crate) fn fuzz(seconds: &str) -> Result<(), String> {
    let seconds: u32 = seconds.parse().map_err(|_| format!("{seconds} is not a number of seconds"))?;
    if !answers(&mut cargo(&["fuzz", "--version"])) {
        step("installing cargo-fuzz", &mut cargo(&["install", "--quiet", "--locked", "cargo-fuzz"]))?;
    }
    let folder = root().join("fuzz/fuzz_targets");
    let mut targets: Vec<String> = std::fs::read_dir(&folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_string_lossy().strip_suffix(".rs").map(str::to_owned))
        .collect();
    targets.sort();
    for target in targets {
        let limit = format!("-max_total_time={seconds}");
        // The fuzzer needs the nightly compiler's sanitizers.
        let mut run = command("cargo");
        run.args([
            "+nightly",
            "fuzz",
            "run",
            "--fuzz-dir",
            "fuzz",
            &target,
            "--",
            &limit,
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ]);
        step(&format!("fuzz {target}"), &mut run)?;
    }
    Ok(())
}
