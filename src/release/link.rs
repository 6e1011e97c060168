//! Links from a release into `shared/`: what outlives releases. Runs in the helper, as the configured user, before the build.
//!
//! What the tree has at a linked path goes to `shared/` if `shared/` has nothing there, and is then replaced by the link.
//! Within the release no symbolic link is ever followed: a tree cannot make us write elsewhere. Repeating it is harmless.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use crate::sys::gate;
use crate::sys::links::{self, Kind, Missing};

/// Why shared paths could not be linked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// A configured path is no plain relative path.
    #[error("`{path}` is not a path inside the release\nhint: `release.linked_dirs` and `release.linked_files` are relative, without `..`")]
    Path {
        /// Which.
        path: PathBuf,
    },
    /// A directory on the way to a linked path is a link or a file in the tree, or a linked path itself.
    #[error(
        "`{path}` cannot be linked: what is above it in the release is not a directory\nhint: a linked path cannot be inside another linked path or a symlink"
    )]
    Parent {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// `shared/` has a file where a directory is wanted, or the other way round.
    #[error("`{path}` is {found}, but it is configured as a {wanted}\nhint: change `release.{key}`, or move it away")]
    WrongKind {
        /// In `shared/`.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What is wanted.
        wanted: &'static str,
        /// Where it is configured.
        key: &'static str,
    },
    /// Something could not be read or written.
    #[error("failed to link `{path}`")]
    Io {
        /// The linked path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Directory,
    File,
}

/// Links the paths from the release in `release` (at `releases/NAME`, or `releases/NAME.tmp`) to `shared`, and returns what was done, for the build log.
///
/// # Errors
/// The release is half linked then; doing it again goes on.
pub(crate) fn link_shared(
    release: &Path,
    shared: &Path,
    linked_dirs: &[PathBuf],
    linked_files: &[PathBuf],
) -> Result<Vec<String>, LinkError> {
    let mut said = Vec::new();
    for (paths, what) in [(linked_dirs, What::Directory), (linked_files, What::File)] {
        for path in paths {
            link_one(release, shared, path, what, &mut said)?;
        }
    }
    Ok(said)
}

fn link_one(release: &Path, shared: &Path, path: &Path, what: What, said: &mut Vec<String>) -> Result<(), LinkError> {
    let (parents, name) = split(path)?;
    let io = |source| LinkError::Io { path: path.to_owned(), source };

    let top = links::open_directory(release).map_err(io)?;
    let parent = links::walk(top.as_fd(), &parents, Missing::Make).map_err(|source| LinkError::Parent { path: path.to_owned(), source })?;
    let in_release = links::kind_at(parent.as_fd(), &name).map_err(io)?;
    let target = relative_target(release, shared, &parents, path).map_err(io)?;
    let is_linked = links::read_link_at(parent.as_fd(), &name).map_err(io)?.as_deref() == Some(&*target);

    // Below `shared/` links are followed: they are the operator's (a disk mounted elsewhere).
    let in_shared = shared.join(path);
    if let Some(above) = in_shared.parent() {
        make_directories(above).map_err(io)?;
    }
    match (found(&in_shared).map_err(io)?, what) {
        (None, _) => {
            let same_kind = matches!((in_release, what), (Kind::Directory, What::Directory) | (Kind::File, What::File));
            if same_kind {
                move_to_shared(parent.as_fd(), &name, &release.join(path), &in_shared).map_err(io)?;
                said.push(format!("`{}`: the tree's went to shared", path.display()));
            } else if what == What::Directory {
                make_directories(&in_shared).map_err(io)?;
            } else if fs_err::symlink_metadata(&in_shared).is_err() {
                said.push(format!("`{}`: warning: there is no such file in shared yet", path.display()));
            }
        }
        (Some(Kind::Directory), What::Directory) | (Some(Kind::File), What::File) => {}
        (Some(Kind::Directory), What::File) => {
            return Err(LinkError::WrongKind { path: in_shared, found: "a directory", wanted: "file", key: "linked_files" });
        }
        (Some(_), What::Directory) => {
            return Err(LinkError::WrongKind { path: in_shared, found: "a file", wanted: "directory", key: "linked_dirs" });
        }
        (Some(_), What::File) => {}
    }
    if is_linked {
        return Ok(());
    }
    match links::kind_at(parent.as_fd(), &name).map_err(io)? {
        Kind::Nothing => {}
        Kind::Directory => {
            // The path holds no link: the parents were walked without following any.
            links::remove_tree(&release.join(path)).map_err(io)?;
            said.push(format!("`{}`: the tree's directory was replaced by the link to shared", path.display()));
        }
        Kind::File | Kind::Link => said.push(format!("`{}`: the tree's was replaced by the link to shared", path.display())),
    }
    links::replace_link_at(parent.as_fd(), &name, &target).map_err(io)?;
    said.push(format!("`{}` -> `{}`", path.display(), target.display()));
    Ok(())
}

/// Splits a configured path into the directories above and the name.
fn split(path: &Path) -> Result<(PathBuf, OsString), LinkError> {
    let wrong = || LinkError::Path { path: path.to_owned() };
    let mut parents = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parents.push(name),
            Component::CurDir => {}
            _ => return Err(wrong()),
        }
    }
    let name = parents.file_name().map(OsStr::to_owned).ok_or_else(wrong)?;
    parents.pop();
    Ok((parents, name))
}

/// The link's text: from the link's directory up to what the release and `shared` have in common, and down again.
fn relative_target(release: &Path, shared: &Path, parents: &Path, path: &Path) -> io::Result<PathBuf> {
    // Only what is above the release and `shared` is made real, so that the link does not depend on how `<root>` was reached.
    let above = |path: &Path| -> io::Result<PathBuf> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(fs_err::canonicalize(parent)?.join(path.file_name().unwrap_or_default()))
    };
    let from = above(release)?.join(parents);
    let to = above(shared)?.join(path);
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let mut target: PathBuf = from.components().skip(common).map(|_| "..").collect();
    target.extend(to.components().skip(common));
    Ok(target)
}

/// What is there, links followed; `None`: nothing, or a link to nothing.
fn found(path: &Path) -> io::Result<Option<Kind>> {
    match fs_err::metadata(path) {
        Ok(found) if found.is_dir() => Ok(Some(Kind::Directory)),
        Ok(_) => Ok(Some(Kind::File)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the directory and those above it, mode 0755 whatever the umask.
fn make_directories(path: &Path) -> io::Result<()> {
    if found(path)? == Some(Kind::Directory) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directories(parent)?;
    }
    gate::create_dir(path)?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

/// Brings what the tree has to `shared/`, whole or not at all: by rename, or, where `shared/` is another disk, by a copy that is renamed.
fn move_to_shared(parent: BorrowedFd<'_>, name: &OsStr, from: &Path, to: &Path) -> io::Result<()> {
    let above = links::open_directory(to.parent().unwrap_or(Path::new("/")))?;
    let to_name = to.file_name().unwrap_or_default();
    match gate::renameat(parent, name, above.as_fd(), to_name) {
        Err(rustix::io::Errno::XDEV) => {
            let mut temporary = to_name.to_owned();
            temporary.push(".selfstart-copy");
            let temporary = to.with_file_name(temporary);
            links::remove_tree(&temporary)?;
            copy_tree(from, &temporary)?;
            gate::rename(&temporary, to)
        }
        other => Ok(other?),
    }
}

/// Copies a file, a link, or a directory with all below it; links are copied as links.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let found = fs_err::symlink_metadata(from)?;
    if found.is_symlink() {
        gate::symlink(fs_err::read_link(from)?, to)
    } else if found.is_dir() {
        gate::create_dir(to)?;
        for entry in fs_err::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
        fs_err::set_permissions(to, std::fs::Permissions::from_mode(found.mode() & 0o777))
    } else {
        gate::copy(from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Scene {
        _dir: tempfile::TempDir,
        release: PathBuf,
        shared: PathBuf,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let (release, shared) = (dir.path().join("releases/r1.tmp"), dir.path().join("shared"));
            fs_err::create_dir_all(&release).expect("made");
            fs_err::create_dir(&shared).expect("made");
            Self { _dir: dir, release, shared }
        }

        fn write(&self, path: &str, text: &str) -> &Self {
            let path = self.release.join(path);
            fs_err::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs_err::write(path, text).expect("written");
            self
        }

        fn link(&self, dirs: &[&str], files: &[&str]) -> Result<Vec<String>, LinkError> {
            let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
            link_shared(&self.release, &self.shared, &paths(dirs), &paths(files))
        }
    }

    #[test]
    fn what_the_tree_has_goes_to_shared_once() {
        let scene = Scene::new();
        scene.write("vendor/bundle/a/b", "first").write("config/key", "first");
        scene.link(&["vendor/bundle", "tmp/pids"], &["config/key"]).expect("linked");
        assert_eq!(fs_err::read_to_string(scene.shared.join("vendor/bundle/a/b")).expect("there"), "first");
        assert_eq!(fs_err::read_link(scene.release.join("vendor/bundle")).expect("a link"), Path::new("../../../shared/vendor/bundle"));
        assert_eq!(fs_err::read_link(scene.release.join("config/key")).expect("a link"), Path::new("../../../shared/config/key"));
        assert!(scene.release.join("tmp/pids").is_dir(), "a directory that nobody has is made");

        fs_err::remove_dir_all(&scene.release).expect("removed");
        scene.write("vendor/bundle/a/b", "second").write("config/key", "second");
        let said = scene.link(&["vendor/bundle"], &["config/key"]).expect("linked");
        assert_eq!(fs_err::read_to_string(scene.release.join("vendor/bundle/a/b")).expect("there"), "first", "shared has it: shared wins");
        assert_eq!(fs_err::read_to_string(scene.release.join("config/key")).expect("there"), "first");
        assert!(said.iter().any(|line| line.contains("replaced")), "{said:?}");
    }

    #[test]
    fn linking_again_changes_nothing() {
        let scene = Scene::new();
        scene.write("log/.keep", "");
        assert!(!scene.link(&["log"], &[]).expect("linked").is_empty());
        assert_eq!(scene.link(&["log"], &[]).expect("linked"), Vec::<String>::new());
        assert!(scene.shared.join("log/.keep").exists());
    }

    #[test]
    fn the_link_is_right_under_the_final_name_too() {
        let scene = Scene::new();
        scene.link(&["log"], &[]).expect("linked");
        let named = scene.release.with_file_name("r1");
        fs_err::rename(&scene.release, &named).expect("renamed");
        fs_err::write(named.join("log/x"), "x").expect("written through the link");
        assert!(scene.shared.join("log/x").exists());
    }

    #[test]
    fn a_link_of_the_tree_is_never_followed() {
        let scene = Scene::new();
        let outside = scene.shared.with_file_name("outside");
        fs_err::create_dir(&outside).expect("made");
        symlink(&outside, scene.release.join("config")).expect("linked");
        assert!(matches!(scene.link(&[], &["config/key"]), Err(LinkError::Parent { .. })));
        assert_eq!(fs_err::read_dir(&outside).expect("there").count(), 0);
        // At the linked path itself it is replaced, and what it points to is left alone.
        fs_err::write(outside.join("kept"), "x").expect("written");
        scene.link(&["config"], &[]).expect("linked");
        assert!(outside.join("kept").exists());
        assert!(!scene.shared.join("config/kept").exists());
    }

    #[test]
    fn paths_out_of_the_release_and_into_a_linked_path_are_refused() {
        let scene = Scene::new();
        for path in ["../x", "/etc", "a/../../x", "", "."] {
            assert!(matches!(scene.link(&[path], &[]), Err(LinkError::Path { .. })), "{path}");
        }
        assert!(matches!(scene.link(&["tmp", "tmp/pids"], &[]), Err(LinkError::Parent { .. })));
    }

    #[test]
    fn a_file_for_a_directory_is_told() {
        let scene = Scene::new();
        fs_err::write(scene.shared.join("log"), "x").expect("written");
        assert!(matches!(scene.link(&["log"], &[]), Err(LinkError::WrongKind { .. })));
        fs_err::create_dir(scene.shared.join("key")).expect("made");
        assert!(matches!(scene.link(&[], &["key"]), Err(LinkError::WrongKind { .. })));
    }

    #[test]
    fn a_missing_linked_file_is_a_warning() {
        let scene = Scene::new();
        let said = scene.link(&[], &["config/key"]).expect("linked");
        assert!(said[0].contains("warning"), "{said:?}");
        fs_err::write(scene.release.join("config/key"), "made by the app").expect("written through the link");
        assert_eq!(fs_err::read_to_string(scene.shared.join("config/key")).expect("there"), "made by the app");
    }

    #[test]
    fn a_copy_to_another_disk_keeps_modes_and_links() {
        let scene = Scene::new();
        scene.write("a/run", "x");
        fs_err::set_permissions(scene.release.join("a/run"), std::fs::Permissions::from_mode(0o755)).expect("changed");
        symlink("run", scene.release.join("a/l")).expect("linked");
        copy_tree(&scene.release.join("a"), &scene.shared.join("a")).expect("copied");
        assert_eq!(fs_err::metadata(scene.shared.join("a/run")).expect("there").permissions().mode() & 0o777, 0o755);
        assert_eq!(fs_err::read_link(scene.shared.join("a/l")).expect("a link"), Path::new("run"));
    }
}
