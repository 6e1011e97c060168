//! The link `current`: read, and moved in one step (`rename(2)`), after all that it will point to is on the disk.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use selfstart_core::id::ReleaseId;

use super::layout::Layout;
use crate::sys::links;
use crate::sys::sync::{self, SyncError};

/// What can go wrong with `current`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwitchError {
    /// The release to switch to is not there.
    #[error("there is no release `{release}`")]
    NoRelease {
        /// Which.
        release: ReleaseId,
    },
    /// `current` is no link of ours.
    #[error("`{path}` is {what}, not a link to a release\nhint: move it away, or run `selfstart deploy --force` after that")]
    NotOurs {
        /// `<root>/current`.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// `current` points to a release that is gone.
    #[error("`{path}` points to release `{release}`, which is not there\nhint: `selfstart rollback` to one that is, or deploy")]
    Dangling {
        /// `<root>/current`.
        path: PathBuf,
        /// Which.
        release: ReleaseId,
    },
    /// The link could not be read.
    #[error("failed to read link `{path}`")]
    Read {
        /// `<root>/current`.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The link could not be moved.
    #[error("failed to switch `current` to release {release}")]
    Link {
        /// To which.
        release: ReleaseId,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Something could not be brought onto the disk; before the rename `current` is as it was, after it it has moved already.
    #[error("failed to bring release {release} onto the disk")]
    Sync {
        /// Which.
        release: ReleaseId,
        /// The cause.
        #[source]
        source: SyncError,
    },
}

/// What `current` is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Current {
    /// Not there: nothing was ever live here.
    Nothing,
    /// A link to a release that is there.
    Release(ReleaseId),
}

/// Returns what `current` is.
///
/// # Errors
/// If it is anything else than nothing or a link to a release.
pub(crate) fn current(layout: &Layout) -> Result<Current, SwitchError> {
    let path = layout.current();
    let read = |source| SwitchError::Read { path: path.clone(), source };
    let not_ours = |what: String| SwitchError::NotOurs { path: path.clone(), what };
    let target = match fs_err::symlink_metadata(&path) {
        Ok(found) if found.is_symlink() => fs_err::read_link(&path).map_err(read)?,
        Ok(found) => return Err(not_ours(if found.is_dir() { "a directory" } else { "a file" }.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Current::Nothing),
        Err(source) => return Err(read(source)),
    };
    // Absolute links are read too: people and other tools write such.
    let name = target.strip_prefix("releases").or_else(|_| target.strip_prefix(layout.releases())).ok();
    let release = name.and_then(Path::to_str).and_then(|name| name.trim_end_matches('/').parse::<ReleaseId>().ok());
    let release = release.ok_or_else(|| not_ours(format!("a link to `{}`", target.display())))?;
    match fs_err::symlink_metadata(layout.release(&release)) {
        Ok(found) if found.is_dir() => Ok(Current::Release(release)),
        Ok(_) => Err(not_ours(format!("a link to `{}`, which is not a directory", target.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SwitchError::Dangling { path, release }),
        Err(source) => Err(read(source)),
    }
}

/// Brings everything of a release, and of shared, onto the disk: `syncfs(2)` of the file systems they are on. Part of "built".
///
/// # Errors
/// What the disk says; the release does not count as built then.
pub(crate) fn sync_release(layout: &Layout, release: &ReleaseId) -> Result<(), SwitchError> {
    let failed = |source| SwitchError::Sync { release: release.clone(), source };
    for (path, above) in [(layout.release(release), layout.releases()), (layout.shared(), layout.root().to_owned())] {
        match sync::sync_file_system(&path) {
            // A build has closed it for everybody but its user; the folder that it is in is on the same disk.
            Err(SyncError::Sync { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                sync::sync_file_system(&above).map_err(&failed)?;
            }
            other => other.map_err(&failed)?,
        }
    }
    Ok(())
}

/// Moves `current` to a release: directories synced, a temporary link, `rename(2)`, `<root>` synced. Repeating it is harmless.
///
/// # Errors
/// Unless the last sync failed, `current` is as it was.
pub(crate) fn switch(layout: &Layout, release: &ReleaseId) -> Result<(), SwitchError> {
    match fs_err::symlink_metadata(layout.release(release)) {
        Ok(found) if found.is_dir() => {}
        _ => return Err(SwitchError::NoRelease { release: release.clone() }),
    }
    let synced = |source| SwitchError::Sync { release: release.clone(), source };
    sync::sync_directory(&layout.releases()).map_err(synced)?;
    match fs_err::symlink_metadata(layout.current()) {
        Ok(found) if found.is_dir() => return Err(SwitchError::NotOurs { path: layout.current(), what: "a directory".to_owned() }),
        _ => {}
    }
    let target = Path::new("releases").join(release.as_str());
    links::open_directory(layout.root())
        .and_then(|root| links::replace_link_at(root.as_fd(), OsStr::new("current"), &target))
        .map_err(|source| SwitchError::Link { release: release.clone(), source })?;
    sync::sync_directory(layout.root()).map_err(synced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scene() -> (tempfile::TempDir, Layout, Vec<ReleaseId>) {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path());
        layout.create(None).expect("made");
        let ids: Vec<ReleaseId> =
            ["20261122T101530Z-1a2b3c4", "20261122T101531Z-1a2b3c4"].iter().map(|id| id.parse().expect("an id")).collect();
        for id in &ids {
            fs_err::create_dir(layout.release(id)).expect("made");
        }
        (dir, layout, ids)
    }

    #[test]
    fn current_moves_from_release_to_release_by_a_relative_link() {
        let (_dir, layout, ids) = scene();
        assert_eq!(current(&layout).expect("read"), Current::Nothing);
        for id in [&ids[0], &ids[1], &ids[1], &ids[0]] {
            sync_release(&layout, id).expect("synced");
            switch(&layout, id).expect("switched");
            assert_eq!(current(&layout).expect("read"), Current::Release(id.clone()));
            assert_eq!(fs_err::read_link(layout.current()).expect("a link"), Path::new("releases").join(id.as_str()));
        }
    }

    #[test]
    fn a_kill_between_link_and_rename_is_no_obstacle() {
        let (_dir, layout, ids) = scene();
        switch(&layout, &ids[0]).expect("switched");
        symlink("releases/half", layout.root().join(".current.new")).expect("left behind");
        assert_eq!(current(&layout).expect("read"), Current::Release(ids[0].clone()));
        switch(&layout, &ids[1]).expect("switched");
        assert!(fs_err::symlink_metadata(layout.root().join(".current.new")).is_err());
    }

    #[test]
    fn current_never_names_what_is_not_there() {
        let (_dir, layout, ids) = scene();
        let gone: ReleaseId = "20261122T101539Z-1a2b3c4".parse().expect("an id");
        assert!(matches!(switch(&layout, &gone), Err(SwitchError::NoRelease { .. })));
        assert_eq!(current(&layout).expect("read"), Current::Nothing);
        switch(&layout, &ids[0]).expect("switched");
        fs_err::remove_dir(layout.release(&ids[0])).expect("removed");
        assert!(matches!(current(&layout), Err(SwitchError::Dangling { .. })));
    }

    #[test]
    fn what_is_not_ours_is_told_and_left_alone() {
        let (_dir, layout, ids) = scene();
        fs_err::create_dir(layout.current()).expect("made");
        assert!(matches!(current(&layout), Err(SwitchError::NotOurs { .. })));
        assert!(matches!(switch(&layout, &ids[0]), Err(SwitchError::NotOurs { .. })));
        fs_err::remove_dir(layout.current()).expect("removed");
        for elsewhere in ["/etc", "releases/../run", "releases", "releases/a/b"] {
            symlink(elsewhere, layout.current()).expect("linked");
            assert!(matches!(current(&layout), Err(SwitchError::NotOurs { .. })), "{elsewhere}");
            fs_err::remove_file(layout.current()).expect("removed");
        }
        symlink(layout.release(&ids[1]), layout.current()).expect("linked");
        assert_eq!(current(&layout).expect("an absolute link is read"), Current::Release(ids[1].clone()));
    }
}
