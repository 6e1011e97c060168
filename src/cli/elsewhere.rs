//! The node that runs by our configuration, but was started when that named another `root`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::site::Site;

/// What a keeper holds open, below its `root`.
const LOCK: &str = "run/lock";

/// Returns the `root` of a node that was started with this configuration, where it is not the configured one.
///
/// By the command lines of processes, and the lock that a keeper holds: who may not see it (another user's) knows of none.
pub(super) fn root(site: &Site) -> Option<PathBuf> {
    let ours = fs_err::canonicalize(&site.config).ok()?;
    let processes = fs_err::read_dir("/proc").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let keepers = processes.filter(|process| {
        let line = fs_err::read(process.join("cmdline")).unwrap_or_default();
        // What is asked first is cheap, and true of few.
        line.split(|byte| *byte == 0).any(|word| word == b"run") && runs_by(&line, process, &ours, site)
    });
    keepers.filter_map(|keeper| locked(&keeper)).find(|root| *root != site.loaded.root)
}

/// Whether a command line names our configuration, or none where ours is the usual one.
fn runs_by(line: &[u8], process: &Path, ours: &Path, site: &Site) -> bool {
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let named = words.iter().enumerate().find_map(|(at, word)| match word.strip_prefix(b"--config") {
        Some(b"") => words.get(at + 1).copied(),
        Some(rest) => rest.strip_prefix(b"="),
        None => None,
    });
    let Some(named) = named else { return site.is_usual() };
    let cwd = fs_err::read_link(process.join("cwd")).unwrap_or_else(|_| "/".into());
    fs_err::canonicalize(cwd.join(OsStr::from_bytes(named))).is_ok_and(|path| path == ours)
}

/// The `root` whose lock a process holds.
fn locked(process: &Path) -> Option<PathBuf> {
    let open = fs_err::read_dir(process.join("fd")).ok()?;
    let mut links = open.filter_map(|entry| fs_err::read_link(entry.ok()?.path()).ok());
    links.find(|link| link.ends_with(LOCK)).and_then(|lock| Some(lock.parent()?.parent()?.to_owned()))
}
