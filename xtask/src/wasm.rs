//! Compiling for the browser, from the first day on, so that it stays possible.

use crate::run::{answers, cargo, command, output, step};

const TARGET: &str = "wasm32-unknown-unknown";
const PACKAGES: &[&str] = &["-p", "plimsoll-math", "-p", "plimsoll-ingest", "-p", "plimsoll-planner"];

/// Compiles the core, the planner and the parsers for wasm32.
///
/// The usual way is rustup's target. Where rustup cannot fetch it, Debian's `rustc-web` (a compiler with the library's
/// source) builds the standard library on the spot.
pub(crate) fn check() -> Result<(), String> {
    if has_rustup_target() || (answers(command("rustup").args(["target", "add", TARGET])) && has_rustup_target()) {
        let mut build = cargo(&["build", "--profile", "wasm", "--target", TARGET, "--no-default-features"]);
        return step("wasm32", build.args(PACKAGES));
    }
    if !debian_compiler() {
        let install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends rustc-web rust-web-src";
        if !(answers(command("sh").args(["-c", install])) && debian_compiler()) {
            return Err(format!("the target {TARGET} is missing: run `rustup target add {TARGET}`"));
        }
    }
    let linker = output(command("rustc").args(["--print", "sysroot"]))
        .map(|sysroot| format!("{}/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld", sysroot.trim()));
    let mut build =
        cargo(&["build", "--profile", "wasm", "--target", TARGET, "--no-default-features", "-Zbuild-std=std,panic_abort"]);
    build.args(PACKAGES).args(["--target-dir", "target/wasm-debian"]).env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
    if let Some(linker) = linker {
        build.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    }
    step("wasm32 (standard library built from source)", &mut build)
}

fn has_rustup_target() -> bool {
    // The library file itself decides: a list can name a target that was only half installed.
    output(command("rustc").args(["--print", "target-libdir", "--target", TARGET]))
        .is_some_and(|folder| std::path::Path::new(folder.trim()).is_dir())
}

fn debian_compiler() -> bool {
    std::path::Path::new("/usr/bin/rustc").exists() && std::path::Path::new("/usr/share/doc/rust-web-src").exists()
}
