//! Whether nobody but root can change what a path leads to.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// As the kernel (`path_resolution(7)`).
const LINKS_MAX: u32 = 40;

const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Why a path is not trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Untrusted {
    /// Somebody else owns a part of the way.
    #[error("`{}` belongs to user {owner}, who could put anything there\nhint: `chown root` it", .path.display())]
    Owner {
        /// Which part.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// Others may write to a part of the way.
    #[error("`{}`, of mode {mode:04o}, can be written by others than root\nhint: `chmod go-w` it", .path.display())]
    Mode {
        /// Which part.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A part of the way could not be looked at.
    #[error("`{}` cannot be looked at", .path.display())]
    Io {
        /// Which part.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is asked of the end of the way; all before it must be root's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Root's alone, too.
    Root,
    /// Anybody's; it need not be there.
    Any,
}

/// Returns where a path leads to when all of its way is root's alone, each link on it too. A directory like /tmp, in which everybody may
/// write and nobody may take away what is another's (sticky), is as good as root's for what is root's in it.
///
/// # Errors
/// The first part of the way that is not.
pub(crate) fn way(path: &Path, end: End) -> Result<PathBuf, Untrusted> {
    let names = |path: &Path| -> VecDeque<OsString> {
        path.components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.to_owned()),
                Component::ParentDir => Some("..".into()),
                _ => None,
            })
            .collect()
    };
    let mut left = names(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    look(&at, end == End::Root || !left.is_empty())?;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let last = left.is_empty() && end == End::Any;
        let found = match fs_err::symlink_metadata(&next) {
            Ok(found) => found,
            Err(error) if end == End::Any && error.kind() == io::ErrorKind::NotFound => {
                return Ok(left.iter().fold(next, |path, name| path.join(name)));
            }
            Err(source) => return Err(Untrusted::Io { path: next, source }),
        };
        if !found.is_symlink() {
            look(&next, !last)?;
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(Untrusted::Io { path: next, source: io::Error::from_raw_os_error(libc::ELOOP) });
        }
        // Whoever owns a link can point it elsewhere, also at the end of the way.
        if found.uid() != 0 {
            return Err(Untrusted::Owner { path: next, owner: found.uid() });
        }
        let target = fs_err::read_link(&next).map_err(|source| Untrusted::Io { path: next.clone(), source })?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        let mut way = names(&target);
        way.append(&mut left);
        left = way;
    }
    Ok(at)
}

fn look(path: &Path, wanted: bool) -> Result<(), Untrusted> {
    if !wanted {
        return Ok(());
    }
    let found = fs_err::symlink_metadata(path).map_err(|source| Untrusted::Io { path: path.to_owned(), source })?;
    if found.uid() != 0 {
        return Err(Untrusted::Owner { path: path.to_owned(), owner: found.uid() });
    }
    let mode = found.mode() & 0o7777;
    if mode & WRITABLE_BY_OTHERS != 0 && !(found.is_dir() && mode & STICKY != 0) {
        return Err(Untrusted::Mode { path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_path_of_which_others_can_change_any_part_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can give files away");
        }
        let dir = tempfile::Builder::new().prefix("trust-").tempdir_in("/tmp").expect("a directory");
        let real = fs_err::canonicalize(dir.path()).expect("there");
        let (folder, file) = (real.join("etc"), real.join("etc/config.yaml"));
        fs_err::create_dir(&folder).expect("made");
        fs_err::write(&file, "").expect("written");
        let mode = |path: &Path, mode: u32| fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("changed");
        mode(&folder, 0o755);
        mode(&file, 0o640);
        assert_eq!(way(&file, End::Root).expect("root's"), file);
        for (path, wrong, right) in [(&file, 0o660, 0o640), (&file, 0o642, 0o640), (&folder, 0o775, 0o755), (&folder, 0o757, 0o755)] {
            mode(path, wrong);
            let refused = way(&file, End::Root).expect_err("others may write");
            assert!(matches!(&refused, Untrusted::Mode { path: said, mode } if said == path && *mode == wrong), "{refused}");
            assert!(refused.to_string().contains("hint: `chmod go-w`"), "{refused}");
            mode(path, right);
        }
        // As /tmp is.
        mode(&folder, 0o1777);
        way(&file, End::Root).expect("sticky");
        mode(&folder, 0o755);
        for path in [&file, &folder] {
            chown(path, Some(65534), None).expect("given");
            let refused = way(&file, End::Root).expect_err("another's");
            assert!(matches!(&refused, Untrusted::Owner { path: said, owner: 65534 } if said == path), "{refused}");
            chown(path, Some(0), None).expect("taken back");
        }
        // Links count, and so do the folders that they are in.
        let link = real.join("link");
        symlink("etc/config.yaml", &link).expect("linked");
        assert_eq!(way(&link, End::Root).expect("root's"), file);
        std::os::unix::fs::lchown(&link, Some(65534), None).expect("given");
        assert!(matches!(way(&link, End::Root), Err(Untrusted::Owner { .. })));
        assert!(matches!(way(&link, End::Any), Err(Untrusted::Owner { .. })));
        // At the end of the way of `root` stands what will be put in order, or nothing yet.
        mode(&folder, 0o777);
        way(&folder, End::Any).expect("its own business");
        assert_eq!(way(&real.join("new/deeper"), End::Any).expect("nothing yet"), real.join("new/deeper"));
        assert!(way(&folder.join("new"), End::Any).is_err());
        let circle = real.join("circle");
        symlink("circle", &circle).expect("linked");
        assert!(matches!(way(&circle, End::Root), Err(Untrusted::Io { .. })));
    }
}
