//! Who may read events and logs beside root and the agent's own user: the group of `control.group`, whose members may ask the agent, and
//! for whom `events`, `logs` and `why` read files.
//!
//! Each file gets its group when it is made (`telling::rotating`); here it is given to those that are there already: when the agent comes
//! up, and when a reload names another group. Nothing else below `run/` is given away: the state and the last good configuration stay
//! closed.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::config::settings::Settings;
use crate::release::layout::Layout;
use crate::telling::journal;
use crate::telling::rotating::{let_enter, let_read, numbered};

/// Gives events and logs to a group; `former`: only those that this group has. Returns what went wrong, for people.
pub(crate) fn give(layout: &Layout, settings: &Settings, group: u32, former: Option<u32>) -> Option<String> {
    let mut failed: Vec<(PathBuf, std::io::Error)> = Vec::new();
    let give = |path: &Path, more, let_in: fn(BorrowedFd<'_>, u32) -> std::io::Result<()>| match open(layout, path, more)? {
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

/// Opens it without following any link below `root` or waiting for a writer; `None`: it is not there.
///
/// `log` itself may be a link, as only who may write to `root` can make one; below it, and in other folders, who logs may be able to, and
/// could have something else given away. By openat2(2), Linux 5.6; where there is none, nothing is given.
fn open(layout: &Layout, path: &Path, more: OFlags) -> std::io::Result<Option<OwnedFd>> {
    let log = layout.log();
    let base = if path != log && path.starts_with(&log) { log } else { layout.root().to_owned() };
    let below = path.strip_prefix(&base).map_err(std::io::Error::other)?;
    let opened = rustix::fs::open(&base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).and_then(|base| {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | more;
        rustix::fs::openat2(base, below, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
    });
    match opened {
        Ok(fd) => Ok(Some(fd)),
        // A link is nothing of ours, and what is behind it is somebody else's to give.
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO | Errno::XDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn has(fd: &OwnedFd, former: Option<u32>) -> std::io::Result<bool> {
    Ok(match former {
        None => true,
        Some(former) => rustix::fs::fstat(fd)?.st_gid == former,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn no_link_in_the_way_to_a_log_has_something_else_given_away() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("left out: only root may give a file to any group");
            return;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let layout = Layout::new(dir.path().join("root"));
        let (elsewhere, ours, linked) = (dir.path().join("elsewhere"), layout.root().join("own"), layout.root().join("shared"));
        for folder in [&elsewhere, &ours, &linked, &dir.path().join("disk")] {
            fs_err::create_dir_all(folder).expect("made");
        }
        symlink(&elsewhere, linked.join("logs")).expect("linked");
        // The operator's own link to another disk.
        symlink(dir.path().join("disk"), layout.log()).expect("linked");
        symlink(&elsewhere, layout.log().join("deeper")).expect("linked");
        let paths = [ours.join("w.log"), linked.join("logs/w.log"), layout.log().join("w.log"), layout.log().join("deeper/w.log")];
        for path in &paths {
            fs_err::write(path, "a line\n").expect("written");
        }
        const GROUP: u32 = 4711;
        for path in &paths {
            if let Some(fd) = open(&layout, path, OFlags::empty()).expect("opened, or not there") {
                let_read(fd.as_fd(), GROUP).expect("given");
            }
        }
        let given = paths.map(|path| fs_err::metadata(path).expect("there").gid() == GROUP);
        assert_eq!(given, [true, false, true, false]);
        assert!(open(&layout, &layout.root().join("../elsewhere/w.log"), OFlags::empty()).expect("not there").is_none());
    }
}
