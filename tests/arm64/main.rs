//! What is written for AArch64 by hand, executed: the machine code of src/sys in a program of C, by an emulator.
//!
//! Rust says the same of both machines but for two blocks of machine code and what the kernel's structures look like; these are what is looked at, with
//! mistakes planted. The code is taken out of the sources, so that what is executed is what is built. The whole program, and its life on a machine with
//! a kernel of 16 KiB pages: tests/arm64/run, which needs more than a compiler.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

const CLONE_INTO: &str = include_str!("../../src/sys/clone_into.rs");
const SPAWN: &str = include_str!("../../src/sys/spawn.rs");
const DRIVER: &str = include_str!("driver.c");
const LAYOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/arm64/layout.c");

/// Returns the lines of machine code for AArch64 and what stands behind them: which register has what.
fn block(source: &str) -> (Vec<&str>, Vec<&str>) {
    let (_, rest) = source.split_once("#[cfg(target_arch = \"aarch64\")]").expect("code for AArch64");
    let (_, rest) = rest.split_once("std::arch::asm!(").expect("machine code");
    let lines: Vec<_> = rest.lines().map(str::trim).filter(|line| !line.is_empty()).take_while(|line| *line != ");").collect();
    lines.into_iter().partition(|line| line.starts_with('"'))
}

fn define(name: &str, code: &[&str]) -> String {
    let mut text = format!("#define {name}");
    for line in code {
        let _ = write!(text, " {}\"\\n\\t\"", line.trim_end_matches(','));
    }
    text + "\n"
}

/// Compiles the driver around this code and runs it; returns how it ended and what it said.
fn run(clone_into: &[&str], call: &[&str], dir: &Path) -> (bool, String) {
    let (source, program) = (dir.join("driver.c"), dir.join("driver"));
    fs_err::write(&source, format!("{}{}{DRIVER}", define("CLONE_INTO", clone_into), define("CALL", call))).expect("written");
    let built = Command::new("aarch64-linux-gnu-gcc")
        .args(["-static", "-O2", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([program.as_os_str(), source.as_os_str(), LAYOUT.as_ref()])
        .output()
        .expect("a compiler for AArch64 (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross)");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let told = Command::new("timeout")
        .args(["60", "qemu-aarch64-static"])
        .arg(&program)
        .stdin(Stdio::null())
        .output()
        .expect("an emulator of AArch64 (Debian: qemu-user-static)");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (told.status.success(), format!("{}{}", text(&told.stdout), text(&told.stderr)))
}

#[test]
fn the_code_for_aarch64_starts_a_child_on_its_own_stack_and_calls_the_system() {
    let dir = tempfile::tempdir().expect("a directory");
    let (clone_into, operands) = block(CLONE_INTO);
    // The driver puts the same things into the same registers.
    let expected = [
        "in(\"x8\") libc::SYS_clone3,",
        "inlateout(\"x0\") &raw const arguments => result,",
        "in(\"x1\") size_of::<Arguments>(),",
        "in(\"x20\") argument,",
        "in(\"x21\") child,",
    ];
    assert_eq!(operands, expected);
    let (call, operands) = block(SPAWN);
    let expected = [
        "in(\"x8\") number,",
        "inlateout(\"x0\") a as isize => answer,",
        "in(\"x1\") b, in(\"x2\") c, in(\"x3\") d, in(\"x4\") 0,",
        "options(nostack),",
    ];
    assert_eq!(operands, expected);

    let (right, told) = run(&clone_into, &call, dir.path());
    assert!(right && told.ends_with("all is right\n"), "{told}");

    // It would see a mistake in any line.
    let replaced =
        |from: &str, to: &'static str| clone_into.iter().map(|line| if line.contains(from) { to } else { *line }).collect::<Vec<_>>();
    for (from, to) in [
        ("cbnz x0", "\"cbz x0, 2f\","),
        ("mov x29", "\"nop\","),
        ("mov x0, x20", "\"nop\","),
        ("blr x21", "\"blr x20\","),
        ("svc", "\"mov x0, xzr\","),
    ] {
        let wrong = replaced(from, to);
        assert_ne!(wrong, clone_into, "{from}");
        let (right, told) = run(&wrong, &call, dir.path());
        assert!(!right, "`{to}` instead of `{from}` was not seen: {told}");
    }
    assert!(!run(&clone_into, &["\"nop\","], dir.path()).0);
}

/// Older calls (open, fork, dup2, ...) are not there on newer machines; what the sources name by number must be.
#[test]
fn every_system_call_that_is_made_by_its_number_is_there() {
    let headers = Command::new("aarch64-linux-gnu-gcc")
        .args(["-E", "-dM", "-include", "asm/unistd.h", "-x", "c", "/dev/null"])
        .output()
        .expect("a compiler for AArch64 (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross)");
    assert!(headers.status.success(), "{}", String::from_utf8_lossy(&headers.stderr));
    let headers = String::from_utf8(headers.stdout).expect("text");
    let known = |name: &str| headers.contains(&format!("#define __NR_{name} "));
    assert!(known("clone3") && !known("dup2"), "these are the headers of AArch64");
    let mut called = BTreeSet::new();
    for entry in fs_err::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/sys")).expect("sources") {
        let path = entry.expect("an entry").path();
        if path.ends_with("confine.rs") {
            // Its filter names old calls to forbid them, where there are such: it is `cfg`, and tests/arm64/run compiles it.
            continue;
        }
        let source = fs_err::read_to_string(path).expect("text");
        let names =
            source.split("libc::SYS_").skip(1).map(|rest| rest.split(|end: char| !end.is_ascii_alphanumeric() && end != '_').next());
        called.extend(names.flatten().map(str::to_owned));
    }
    assert!(called.len() > 20, "{called:?}");
    let missing: Vec<_> = called.iter().filter(|name| !known(name)).collect();
    assert!(missing.is_empty(), "not on AArch64: {missing:?}");
}

/// What would make another machine a silent failure: it is refused when it is built.
#[test]
fn other_machines_are_refused_in_words() {
    let text = include_str!("../../src/sys/mod.rs");
    assert!(text.contains("#[cfg(not(any(target_arch = \"x86_64\", target_arch = \"aarch64\")))]\ncompile_error!("));
}
