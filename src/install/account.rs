//! The system user whom the agent runs as. `uninstall` leaves it: files may be its own, and its number must not be another's.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Gid, Mode, OFlags};

use super::tree::{Tree, TreeError};
use crate::rights::AGENT_USER;
use crate::sys::gate;
use crate::sys::users;

/// What makes it at boot, where systemd does such things (`sysusers.d(5)`).
pub(super) const SYSUSERS: (&str, &str) = ("/etc/sysusers.d/selfstart.conf", include_str!("../../systemd/selfstart.sysusers"));

/// A package's.
pub(super) const PACKAGED: &str = "/usr/lib/sysusers.d/selfstart.conf";

/// What reads that.
pub(super) const PROGRAM: &str = "/usr/bin/systemd-sysusers";

const PASSWD: &str = "/etc/passwd";

/// What came of it.
pub(super) enum Made {
    /// It was there, or there is nothing to make it in.
    Already,
    /// By this program.
    By(&'static str),
    /// Why not.
    Not(String),
}

/// Returns the group of the user, in this machine or image; `None`: there is no such user.
fn group(tree: &Tree) -> Result<Option<u32>, TreeError> {
    if tree.is_live() {
        // Wherever the machine keeps its users.
        if let Ok(user) = users::user(AGENT_USER, None) {
            return Ok(Some(user.credentials.gid));
        }
    }
    let Some(passwd) = tree.read(Path::new(PASSWD))? else { return Ok(None) };
    let text = String::from_utf8_lossy(&passwd.bytes).into_owned();
    Ok(text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(AGENT_USER)).then(|| fields.nth(2)?.parse().ok()).flatten()
    }))
}

/// Makes the user if it is not there.
pub(super) fn make(tree: &Tree, root: &Path) -> Result<Made, TreeError> {
    if group(tree)?.is_some() {
        return Ok(Made::Already);
    }
    if !tree.is_there(Path::new(PASSWD))? {
        // No machine yet.
        return Ok(Made::Already);
    }
    let line = SYSUSERS.1.lines().find(|line| line.starts_with("u ")).unwrap_or_default();
    let image = (!tree.is_live()).then(|| root.display().to_string());
    let mut why = Vec::new();
    for program in ["systemd-sysusers", "useradd"] {
        let mut command = Command::new(program);
        if program == "useradd" {
            command.args(["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]);
            if let Some(root) = &image {
                command.args(["--prefix", root]);
            }
            command.arg(AGENT_USER);
        } else {
            if let Some(root) = &image {
                command.arg(format!("--root={root}"));
            }
            command.args(["--inline", line]);
        }
        match gate::output(command.stdin(Stdio::null())) {
            Ok(output) if output.status.success() && group(tree)?.is_some() => return Ok(Made::By(program)),
            Ok(output) => why.push(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => why.push(format!("{program}: {error}")),
        }
    }
    let why = if why.is_empty() { "there is neither `systemd-sysusers` nor `useradd`".to_owned() } else { why.join("; ") };
    Ok(Made::Not(why))
}

/// Lets the user into the folder of the configuration, if that is root's group's alone, and into what is put there from now on (setgid);
/// returns whether it was changed.
pub(super) fn let_in(tree: &Tree, folder: &str) -> Result<bool, TreeError> {
    let Some(group) = group(tree)? else { return Ok(false) };
    tree.give_to_group(Path::new(folder), OFlags::RDONLY | OFlags::DIRECTORY, Gid::from_raw(group), Mode::RGRP | Mode::XGRP | Mode::SGID)
}

/// As [`let_in`], of a file.
pub(super) fn let_in_file(tree: &Tree, file: &str) -> Result<bool, TreeError> {
    let Some(group) = group(tree)? else { return Ok(false) };
    tree.give_to_group(Path::new(file), OFlags::RDONLY, Gid::from_raw(group), Mode::RGRP)
}

/// Whether the user is there.
pub(super) fn is_there(tree: &Tree) -> Result<bool, TreeError> {
    Ok(group(tree)?.is_some())
}
