//! Where everything of one app is (PRODUCT.md, section 2): the paths, the directories.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use selfstart_core::id::ReleaseId;
use selfstart_core::units::Bytes;

use super::{base, prune};
use crate::sys::gate;
use crate::sys::links;

/// What goes before the name of a release that is being removed.
pub(super) const TRASH_PREFIX: &str = ".trash-";
/// What goes before the name of a release that went and is kept as the base of the next one.
pub(super) const SPARE_PREFIX: &str = ".spare-";
/// What goes behind the name of a release that is being staged.
pub(super) const STAGING_SUFFIX: &str = ".tmp";

/// What can be wrong with the directories.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    /// One could not be made or looked at.
    #[error("failed to prepare directory `{path}`")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Something else stands where a directory must be.
    #[error("`{path}` is not a directory\nhint: move it away; selfstart keeps its own files there")]
    NotADirectory {
        /// Where.
        path: PathBuf,
    },
    /// Less room than `release.min_free`.
    #[error("only {free} are free at `{path}`, wanted: {wanted}\nhint: make room or lower `release.min_free`")]
    TooLittleSpace {
        /// Where.
        path: PathBuf,
        /// What is left.
        free: Bytes,
        /// `release.min_free`.
        wanted: Bytes,
    },
}

/// The user and group that helpers, builds and workers run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// All paths of one app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Returns the paths below `root`, which should be absolute.
    #[must_use]
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// `<root>`.
    #[must_use]
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The bare repository.
    #[must_use]
    pub(crate) fn mirror(&self) -> PathBuf {
        self.root.join("repo.git")
    }

    /// The directory of all releases.
    #[must_use]
    pub(crate) fn releases(&self) -> PathBuf {
        self.root.join("releases")
    }

    /// The directory of one release.
    #[must_use]
    pub(crate) fn release(&self, id: &ReleaseId) -> PathBuf {
        self.releases().join(id.as_str())
    }

    /// Where a release is written before it has its name: what is there after a kill is removed at the next start.
    #[must_use]
    pub(crate) fn staging(&self, id: &ReleaseId) -> PathBuf {
        self.releases().join(format!("{id}{STAGING_SUFFIX}"))
    }

    /// The link to the live release.
    #[must_use]
    pub(crate) fn current(&self) -> PathBuf {
        self.root.join("current")
    }

    /// Where `linked_dirs` and `linked_files` live.
    #[must_use]
    pub(crate) fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    /// The directory of logs.
    #[must_use]
    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The output of the build of a release.
    #[must_use]
    pub(crate) fn build_log(&self, id: &ReleaseId) -> PathBuf {
        self.log().join(format!("build.{id}.log"))
    }

    /// The agent's own files.
    #[must_use]
    pub(crate) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The control API.
    #[must_use]
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.run().join("control.sock")
    }

    /// The agent's state.
    #[must_use]
    pub(crate) fn state(&self) -> PathBuf {
        self.run().join("state.json")
    }

    /// The agent's journal.
    #[must_use]
    pub(crate) fn journal(&self) -> PathBuf {
        self.run().join("journal")
    }

    /// There from the start of a run whose boot is a trigger until the journal holds that it was taken. Never synced: it is for kills, and
    /// after a power cut no worker is left that could hide that it was a boot.
    #[must_use]
    pub(crate) fn boot_due(&self) -> PathBuf {
        self.journal().join("boot-due")
    }

    /// The last configuration that was run.
    #[must_use]
    pub(crate) fn good_config(&self) -> PathBuf {
        self.run().join("config.good.yaml")
    }

    /// Says that a release is whole, and of what it was made.
    pub(crate) fn built_mark(&self, release: &ReleaseId) -> PathBuf {
        self.run().join("built").join(format!("{release}.json"))
    }

    /// Every event.
    #[must_use]
    pub(crate) fn events(&self) -> PathBuf {
        self.run().join("events.jsonl")
    }

    /// Makes the directories that are missing, and returns what was put right, for people.
    ///
    /// `<root>`, `run` and `log` stay the agent's: who owns a directory can replace what is in it, so an app's user that owned
    /// them could swap the control socket or a log file for a link. `repo.git`, `releases` and `shared` go to `owner` (`None`:
    /// everything runs as the agent); a mirror of another owner is removed, since the helper could not write in it.
    ///
    /// # Errors
    /// If one cannot be made, or something else stands in its place.
    pub(crate) fn create(&self, owner: Option<Owner>) -> Result<Vec<String>, LayoutError> {
        let mut said = Vec::new();
        for path in [self.root.clone(), self.run(), self.journal(), self.log()] {
            make_directory(&path, 0o755)?;
        }
        for (path, mode) in [(self.mirror(), 0o700), (self.releases(), 0o755), (self.shared(), 0o755)] {
            make_directory(&path, mode)?;
            let Some(owner) = owner else { continue };
            let failed = |source| LayoutError::Directory { path: path.clone(), source };
            let found = fs_err::metadata(&path).map_err(failed)?;
            if (found.uid(), found.gid()) == (owner.uid, owner.gid) {
                continue;
            }
            if found.uid() != owner.uid && path == self.mirror() && fs_err::read_dir(&path).map_err(failed)?.next().is_some() {
                said.push(format!("removed the mirror `{}`: it belonged to user {}, not {}", path.display(), found.uid(), owner.uid));
                links::remove_tree(&path).map_err(failed)?;
                make_directory(&path, mode)?;
            }
            std::os::unix::fs::chown(&path, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
        }
        Ok(said)
    }

    /// Makes `<root>` itself, with what is missing above it.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) fn make_root(&self) -> Result<(), LayoutError> {
        make_directory(&self.root, 0o755)
    }

    /// Says which of these below `shared` belong to somebody else; `None`: none. They are an app's own, of whatever users it wants, so they
    /// are not given away here. What cannot be looked at is not named.
    pub(crate) fn foreign<'a>(&self, shared: impl Iterator<Item = &'a PathBuf>, owner: Owner) -> Option<String> {
        let theirs = |path: &PathBuf| fs_err::metadata(self.shared().join(path)).is_ok_and(|found| found.uid() != owner.uid);
        let names: Vec<String> = shared.filter(|path| theirs(path)).map(|path| format!("`{}`", path.display())).collect();
        (!names.is_empty()).then(|| {
            format!(
                "{} in `{}` belong to another user than {}, who may not be able to write there: `chown -R` what it should",
                names.join(", "),
                self.shared().display(),
                owner.uid
            )
        })
    }

    /// Refuses when less than `wanted` is free where releases are; what the base of the next release takes is as good as free.
    ///
    /// # Errors
    /// [`LayoutError::TooLittleSpace`], or the file system cannot be asked.
    pub(crate) fn check_free(&self, wanted: Bytes) -> Result<(), LayoutError> {
        let path = self.releases();
        let free = links::free_bytes(&path).map_err(|source| LayoutError::Directory { path: path.clone(), source })?;
        if free >= wanted.0 {
            return Ok(());
        }
        let base: u64 = base::spares(&path).iter().filter_map(|(_, spare)| prune::size(spare)).map(|size| size.0).sum();
        let free = free.saturating_add(base);
        if free < wanted.0 { Err(LayoutError::TooLittleSpace { path, free: Bytes(free), wanted }) } else { Ok(()) }
    }
}

/// Makes a directory with a mode that does not depend on the umask; one that is there (or a link to one) keeps its mode.
fn make_directory(path: &Path, mode: u32) -> Result<(), LayoutError> {
    let failed = |source| LayoutError::Directory { path: path.to_owned(), source };
    match fs_err::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return Err(LayoutError::NotADirectory { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_directory(parent, 0o755)?;
    }
    match gate::create_dir_with(path, rustix::fs::Mode::from_raw_mode(mode)) {
        Ok(()) => fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs_err::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn directories_are_made_once_with_their_modes() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path().join("deep/app"));
        assert!(layout.create(None).expect("made").is_empty());
        assert_eq!((mode(layout.root()), mode(&layout.mirror()), mode(&layout.releases())), (0o755, 0o700, 0o755));
        fs_err::set_permissions(layout.shared(), std::fs::Permissions::from_mode(0o775)).expect("changed");
        layout.create(None).expect("a second time is fine");
        assert_eq!(mode(&layout.shared()), 0o775, "what the operator changed stays");
    }

    #[test]
    fn a_file_in_the_way_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        fs_err::write(dir.path().join("releases"), "x").expect("written");
        assert!(matches!(Layout::new(dir.path()).create(None), Err(LayoutError::NotADirectory { .. })));
    }

    #[test]
    fn the_apps_user_owns_what_it_writes_and_nothing_else() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path());
        let nobody = Owner { uid: 65534, gid: 65534 };
        layout.create(None).expect("made");
        fs_err::write(layout.mirror().join("HEAD"), "x").expect("written");
        assert_eq!(layout.create(Some(nobody)).expect("made").len(), 1, "the mirror of another owner is told");
        assert!(!layout.mirror().join("HEAD").exists());
        for (path, uid) in
            [(layout.mirror(), 65534), (layout.releases(), 65534), (layout.shared(), 65534), (layout.run(), 0), (layout.log(), 0)]
        {
            assert_eq!(fs_err::metadata(&path).expect("there").uid(), uid, "{}", path.display());
        }
        assert!(layout.create(Some(nobody)).expect("made").is_empty());
    }

    #[test]
    fn too_little_space_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path());
        layout.create(None).expect("made");
        layout.check_free(Bytes(1)).expect("enough");
        assert!(matches!(layout.check_free(Bytes(u64::MAX)), Err(LayoutError::TooLittleSpace { .. })));
    }
}
