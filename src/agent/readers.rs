//! Who may read events and logs beside root and the agent's own user: the group of `control.group`, whose members may ask the agent, and
//! for whom `events`, `logs` and `why` read files.
//!
//! Each file gets its group when it is made (`telling::rotating`); here it is given to those that are there already: when the agent comes
//! up, and when a reload names another group. Nothing else below `run/` is given away: the state and the last good configuration stay
//! closed.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::config::settings::Settings;
use crate::release::layout::Layout;
use crate::telling::journal;
use crate::telling::rotating::{let_enter, let_read, numbered};

/// Gives events and logs to a group; `former`: only those that this group has. Returns what went wrong, for people.
pub(crate) fn give(layout: &Layout, settings: &Settings, group: u32, former: Option<u32>) -> Option<String> {
    let mut failed: Vec<(PathBuf, std::io::Error)> = Vec::new();
    let give = |path: &Path, more, let_in: fn(BorrowedFd<'_>, u32) -> std::io::Result<()>| match open(path, more)? {
        Some(fd) if has(&fd, former)? => let_in(fd.as_fd(), group),
        _ => Ok(()),
    };
    let files = files(layout, settings);
    let mut folders = BTreeSet::from([layout.run(), layout.log()]);
    folders.extend(files.iter().filter_map(|file| file.parent()).filter(|folder| *folder != layout.root()).map(Path::to_owned));
    for folder in folders {
        failed.extend(give(&folder, OFlags::DIRECTORY, let_enter).err().map(|error| (folder, error)));
    }
    for file in &files {
        failed.extend(give(file, OFlags::empty(), let_read).err().map(|error| (file.clone(), error)));
    }
    let (path, error) = failed.first()?;
    let more = if failed.len() > 1 { format!(" (and {} more)", failed.len() - 1) } else { String::new() };
    Some(format!("`control.group` cannot be let read `{}`{more}: {error}", path.display()))
}

/// The files of events, all in `log/`, and those of pools that log elsewhere; with what was rotated.
fn files(layout: &Layout, settings: &Settings) -> Vec<PathBuf> {
    let rotated = |path: &Path, keep: u32| (1..=keep).map(|number| numbered(path, number)).collect::<Vec<_>>();
    let mut files = vec![layout.events()];
    files.extend(rotated(&layout.events(), journal::KEEP));
    let entries = fs_err::read_dir(layout.log()).into_iter().flatten().flatten();
    files.extend(entries.map(|entry| entry.path()));
    for log in settings.pools.iter().map(|pool| &pool.log) {
        let Some(file) = log.file.as_ref().map(|file| layout.root().join(file)) else { continue };
        if file.parent() != Some(&*layout.log()) {
            files.extend(rotated(&file, log.keep));
            files.push(file);
        }
    }
    files
}

/// Opens it without following a link or waiting for a writer; `None`: it is not there.
fn open(path: &Path, more: OFlags) -> std::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | more;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        // A link is nothing of ours, and what is behind it is somebody else's to give.
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn has(fd: &OwnedFd, former: Option<u32>) -> std::io::Result<bool> {
    Ok(match former {
        None => true,
        Some(former) => rustix::fs::fstat(fd)?.st_gid == former,
    })
}
