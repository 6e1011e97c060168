//! Gives what is below `root` to whom it belongs when the agent has a user of its own: `run` and `log` to the agent, `repo.git`, `releases`
//! and `shared` to the app's user, and `root` itself to root, sticky, so that the agent can move `current` and nobody else's entry.
//!
//! Done by root in folders that others own, so it goes by descriptor: a link that is not root's own is never followed, and a file is given
//! away only if it is root's or the agent's, is a file, and has no second name. Done twice, the second time changes nothing.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::release::layout::{Layout, LayoutError, Owner};
use crate::sys::spawn::Credentials;
use crate::sys::{identity, links};

use super::trust::{self, End, Untrusted};
use crate::sys::gate;

/// Setgid: what is made in it belongs to the group of the folder, which the agent need not be in.
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Folders of our own are not deep; whoever made them so wants to keep us busy.
const DEPTH_MAX: u32 = 8;

/// Why a folder could not be put in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// A system call failed.
    #[error("failed to put `{}` in order", .path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody but root has put a link where a folder of ours must be.
    #[error("`{}` is a link that user {owner} made\nhint: remove it; selfstart keeps its own files there", .path.display())]
    Planted {
        /// Where.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// A link of root's leads through a place that others can change.
    #[error("`{}` is a link, and who can change where it leads to would choose what is given away", .path.display())]
    Led {
        /// Which.
        path: PathBuf,
        /// What is wrong with the way.
        #[source]
        source: Untrusted,
    },
    /// What a link leads to is neither root's nor of those whom it is for.
    #[error("`{}` is a link to a folder of user {owner}\nhint: `chown root` that folder; selfstart gives it to whom it belongs", .path.display())]
    Foreign {
        /// Which link.
        path: PathBuf,
        /// Whose folder.
        owner: u32,
    },
    /// As [`Layout::create`] says.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// To whom things go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// The agent's user and group.
    pub(crate) agent: Owner,
    /// The app's.
    pub(crate) user: Owner,
    /// The group that may read events and logs, and ask.
    pub(crate) readers: Option<u32>,
    /// Who owns the control socket; `None`: the agent.
    pub(crate) control: Option<u32>,
}

/// Puts all in order; returns what was put right, for people. `logs`: files of pools that log elsewhere, relative to `root`.
///
/// # Errors
/// At the first thing that could not be; what was done stays done.
pub(crate) fn put_in_order(layout: &Layout, order: &Order, logs: &[&Path]) -> Result<Vec<String>, PlaceError> {
    let place = Place { layout, order };
    layout.make_root()?;
    let root = links::open_directory(layout.root()).map_err(failed(layout.root()))?;
    let mut said = Vec::new();
    let found = stat(&root).map_err(failed(layout.root()))?;
    if found.st_uid != 0 {
        said.push(format!("`{}` belonged to user {}, and is root's now", layout.root().display(), found.st_uid));
    }
    let mode = (found.st_mode & 0o7775 & !WRITABLE_BY_OTHERS) | STICKY | 0o770;
    // Who had it before may have let others in, also to all that is made below.
    forget_lists(&root).map_err(failed(layout.root()))?;
    give(&root, 0, order.agent.gid, mode).map_err(failed(layout.root()))?;
    let readers = order.readers.unwrap_or(order.agent.gid);
    let run = place.folder(&root, "run")?;
    // Who could read so far: what is not theirs was given to somebody by hand.
    let former = stat(&run).map_err(failed(&layout.run()))?.st_gid;
    for (name, below) in [("journal", layout.journal()), ("built", layout.run().join("built"))] {
        let folder = place.folder_at(&run, name, &below)?;
        forget_lists(&folder).map_err(failed(&below))?;
        place.take(&folder, &below, &Group::Always(order.agent.gid), 0)?;
        give_folder(&folder, order.agent, order.agent.gid).map_err(failed(&below))?;
    }
    forget_lists(&run).map_err(failed(&layout.run()))?;
    place.take(&run, &layout.run(), &Group::Run { agent: order.agent.gid, readers, former }, 0)?;
    place.control_socket(&run, readers)?;
    give_folder(&run, order.agent, readers).map_err(failed(&layout.run()))?;
    let mut folders = vec!["log".to_owned()];
    folders.extend(logs.iter().filter_map(|file| own_folder(file)));
    for name in folders {
        let path = layout.root().join(&name);
        let folder = place.folder(&root, &name)?;
        let owner = stat(&folder).map_err(failed(&path))?.st_uid;
        if name != "log" && owner != 0 && owner != order.agent.uid {
            // An operator has given it to somebody; whether the agent may write there is seen when it does.
            continue;
        }
        place.take(&folder, &path, &Group::Readers { agent: order.agent.gid, readers, former }, 0)?;
        give_folder(&folder, order.agent, readers).map_err(failed(&path))?;
    }
    for name in ["current", ".current.new"] {
        // A link itself can be given away; what it leads to is not touched.
        if links::read_link_at(root.as_fd(), OsStr::new(name)).map_err(failed(layout.root()))?.is_some() {
            let (uid, gid) = (Uid::from_raw(order.agent.uid), Gid::from_raw(order.agent.gid));
            rustix::fs::chownat(&root, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed(&layout.root().join(name)))?;
        }
    }
    for (name, mode) in [("repo.git", 0o700), ("releases", 0o755), ("shared", 0o755)] {
        place.of_the_app(&root, name, mode, &mut said)?;
    }
    Ok(said)
}

/// The folder directly below `root` that this log file is in, if it is none of those that have an owner anyway.
fn own_folder(file: &Path) -> Option<String> {
    let mut parts = file.components();
    let first = parts.next()?.as_os_str().to_str()?.to_owned();
    parts.next()?;
    (!["log", "run", "repo.git", "releases", "shared", "current", "queue"].contains(&first.as_str())).then_some(first)
}

fn failed<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> PlaceError {
    let path = path.to_owned();
    move |source| PlaceError::Io { path, source: source.into() }
}

/// Which group a file gets.
enum Group {
    Always(u32),
    /// Events are read by others, the state is not.
    Run {
        agent: u32,
        readers: u32,
        former: u32,
    },
    Readers {
        agent: u32,
        readers: u32,
        former: u32,
    },
}

impl Group {
    /// `None`: it stays as it is.
    fn of(&self, name: &[u8], has: u32) -> Option<u32> {
        match *self {
            Self::Always(group) => Some(group),
            Self::Run { agent, .. } if !name.starts_with(b"events.jsonl") => Some(agent),
            Self::Run { agent, readers, former } | Self::Readers { agent, readers, former } => {
                [0, agent, former].contains(&has).then_some(readers)
            }
        }
    }

    /// Whether that group reads it.
    fn reads(&self, name: &[u8]) -> bool {
        match self {
            Self::Always(_) => false,
            Self::Run { .. } => name.starts_with(b"events.jsonl"),
            Self::Readers { .. } => true,
        }
    }
}

struct Place<'a> {
    layout: &'a Layout,
    order: &'a Order,
}

impl Place<'_> {
    fn folder(&self, root: &OwnedFd, name: &str) -> Result<OwnedFd, PlaceError> {
        self.folder_at(root, name, &self.layout.root().join(name))
    }

    /// Opens a folder, which is made if it is missing; a link only if root made it.
    fn folder_at(&self, parent: &OwnedFd, name: &str, path: &Path) -> Result<OwnedFd, PlaceError> {
        match gate::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(path)(error)),
        }
        let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(path))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let link = FileType::from_raw_mode(found.st_mode) == FileType::Symlink;
        let opened = if link {
            if found.st_uid != 0 {
                return Err(PlaceError::Planted { path: path.to_owned(), owner: found.st_uid });
            }
            // That it is root's says nothing of the way that it leads.
            let end = trust::way(path, End::Any).map_err(|source| PlaceError::Led { path: path.to_owned(), source })?;
            rustix::fs::open(end, flags, Mode::empty())
        } else {
            rustix::fs::openat(parent, name, flags, Mode::empty())
        };
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOTDIR) => return Err(LayoutError::NotADirectory { path: path.to_owned() }.into()),
            Err(error) => return Err(failed(path)(error)),
        };
        let owner = stat(&fd).map_err(failed(path))?.st_uid;
        if link && ![0, self.order.agent.uid, self.order.user.uid].contains(&owner) {
            return Err(PlaceError::Foreign { path: path.to_owned(), owner });
        }
        Ok(fd)
    }

    /// Gives what is root's or the agent's in a folder to the agent.
    fn take(&self, folder: &OwnedFd, path: &Path, group: &Group, depth: u32) -> Result<(), PlaceError> {
        for entry in Dir::read_from(folder).map_err(failed(path))? {
            let entry = entry.map_err(failed(path))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let below = path.join(name.to_string_lossy().as_ref());
            match self.take_one(folder.as_fd(), name, &below, group, depth) {
                // Rotated or removed meanwhile, or a link.
                Err(PlaceError::Io { source, .. }) if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ELOOP | libc::ENXIO)) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn take_one(&self, folder: BorrowedFd<'_>, name: &std::ffi::CStr, path: &Path, group: &Group, depth: u32) -> Result<(), PlaceError> {
        let seen = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(path))?;
        let kind = FileType::from_raw_mode(seen.st_mode);
        let ours = |stat: &Stat| stat.st_uid == 0 || stat.st_uid == self.order.agent.uid;
        if !matches!(kind, FileType::RegularFile | FileType::Directory) || !ours(&seen) {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(folder, name, flags, Mode::empty()).map_err(failed(path))?;
        // Again: the name may be another's by now.
        let found = stat(&fd).map_err(failed(path))?;
        if !ours(&found) {
            return Ok(());
        }
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory if depth < DEPTH_MAX => {
                self.take(&fd, path, group, depth + 1)?;
                let gid = group.of(b"", found.st_gid).unwrap_or(found.st_gid);
                give_folder(&fd, self.order.agent, gid).map_err(failed(path))
            }
            // A second name may be one of a file that is none of ours.
            FileType::RegularFile if found.st_nlink == 1 => {
                let gid = group.of(name.to_bytes(), found.st_gid).unwrap_or(found.st_gid);
                let more = if group.reads(name.to_bytes()) { 0o640 } else { 0o600 };
                let mode = (found.st_mode & 0o777 & !WRITABLE_BY_OTHERS) | more;
                give(&fd, self.order.agent.uid, gid, mode).map_err(failed(path))
            }
            _ => Ok(()),
        }
    }

    /// Gives the control socket to whom the configuration names. Opened without being connected to, so what is looked at is what is given.
    fn control_socket(&self, run: &OwnedFd, readers: u32) -> Result<(), PlaceError> {
        let path = self.layout.control_socket();
        let name = path.file_name().unwrap_or_default();
        let fd = match rustix::fs::openat(run, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed(&path)(error)),
        };
        let found = stat(&fd).map_err(failed(&path))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Socket || found.st_nlink != 1 {
            return Ok(());
        }
        let uid = self.order.control.unwrap_or(self.order.agent.uid);
        if (found.st_uid, found.st_gid) == (uid, readers) {
            return Ok(());
        }
        rustix::fs::chownat(&fd, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(readers)), AtFlags::EMPTY_PATH).map_err(failed(&path))
    }

    /// What helpers, builds and workers write.
    fn of_the_app(&self, root: &OwnedFd, name: &str, mode: u32, said: &mut Vec<String>) -> Result<(), PlaceError> {
        let path = self.layout.root().join(name);
        let new = rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW).is_err();
        let mut folder = self.folder(root, name)?;
        let found = stat(&folder).map_err(failed(&path))?;
        let user = self.order.user;
        if !new && (found.st_uid, found.st_gid) == (user.uid, user.gid) {
            return Ok(());
        }
        let mut mode = if new { mode } else { found.st_mode & 0o7777 };
        let full =
            || Dir::read_from(&folder).map(|mut dir| dir.any(|entry| entry.is_ok_and(|entry| ![c".", c".."].contains(&entry.file_name()))));
        if found.st_uid != user.uid && path == self.layout.mirror() && full().map_err(failed(&path))? {
            // The helper could not write in it.
            said.push(format!("removed the mirror `{}`: it belonged to user {}, not {}", path.display(), found.st_uid, user.uid));
            remove_as_owner(root, name, &path, &found).map_err(failed(&path))?;
            folder = self.folder(root, name)?;
            mode = 0o700;
        }
        give(&folder, user.uid, user.gid, mode).map_err(failed(&path))
    }
}

/// Removes a folder of `root`: what is in it as its owner, for root's hands do not go where others can put links; itself as root.
fn remove_as_owner(root: &OwnedFd, name: &str, path: &Path, found: &Stat) -> io::Result<()> {
    if found.st_uid == 0 {
        return gate::remove_dir_all(path);
    }
    let owner = Credentials { uid: found.st_uid, gid: found.st_gid, groups: Vec::new() };
    // The folder itself is not its owner's to remove, so this says nothing; whether it is empty then, the next line sees.
    let _all_but_the_folder = identity::within(&owner, || links::remove_tree(path))?;
    Ok(gate::unlinkat(root, name, AtFlags::REMOVEDIR)?)
}

fn stat(fd: &OwnedFd) -> rustix::io::Result<Stat> {
    rustix::fs::fstat(fd)
}

/// Removes the access lists of a folder (`acl(5)`): with one, the group's permissions are the most that the list gives, and not the group's; a
/// default one is the access list of all that is made in it. Those of logs are an operator's affair.
fn forget_lists(folder: &OwnedFd) -> rustix::io::Result<()> {
    for list in ["system.posix_acl_default", "system.posix_acl_access"] {
        match rustix::fs::fremovexattr(folder, list) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sets owner, group and permissions where they differ.
fn give(fd: &OwnedFd, uid: u32, gid: u32, mode: u32) -> rustix::io::Result<()> {
    let found = stat(fd)?;
    if (found.st_uid, found.st_gid) != (uid, gid) {
        rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    if found.st_mode & 0o7777 != mode {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// A folder of the agent's, in which files get this group.
fn give_folder(fd: &OwnedFd, agent: Owner, gid: u32) -> rustix::io::Result<()> {
    let mode = stat(fd)?.st_mode & 0o7777;
    // Made just now: as `Layout::create` makes them.
    let mode = if mode == 0o700 { 0o755 } else { mode };
    give(fd, agent.uid, gid, (mode & !WRITABLE_BY_OTHERS) | SETGID | 0o750)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    use super::*;

    const SOMEBODY: u32 = 65534;

    fn order() -> Order {
        Order {
            agent: Owner { uid: 4_242_010, gid: 4_242_010 },
            user: Owner { uid: SOMEBODY, gid: SOMEBODY },
            readers: None,
            control: None,
        }
    }

    #[test]
    fn a_link_of_roots_that_leads_through_anothers_folder_gives_nothing_away() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can give files away");
        }
        let dir = tempfile::Builder::new().prefix("place-").tempdir_in("/tmp").expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for folder in ["root", "victim", "theirs", "apart"] {
            fs_err::create_dir(at(folder)).expect("made");
        }
        fs_err::write(at("victim/file"), "root's").expect("written");
        chown(at("theirs"), Some(SOMEBODY), None).expect("given");
        symlink(at("victim"), at("theirs/log")).expect("planted");
        symlink(at("theirs/log"), at("root/log")).expect("linked");
        let layout = Layout::new(at("root"));
        assert!(matches!(put_in_order(&layout, &order(), &[]), Err(PlaceError::Led { .. })));
        let owner = |name: &str| fs_err::metadata(at(name)).expect("there").uid();
        assert_eq!((owner("victim"), owner("victim/file")), (0, 0));
        // A folder of somebody who has nothing to do with it is not given away either.
        fs_err::remove_file(at("root/log")).expect("removed");
        symlink(at("apart"), at("root/log")).expect("linked");
        chown(at("apart"), Some(1), None).expect("given");
        assert!(matches!(put_in_order(&layout, &order(), &[]), Err(PlaceError::Foreign { owner: 1, .. })));
        // Root's own way is as good as a folder.
        chown(at("apart"), Some(0), None).expect("taken back");
        put_in_order(&layout, &order(), &[]).expect("in order");
        assert_eq!(owner("apart"), order().agent.uid);
    }

    #[test]
    fn a_mirror_of_another_user_is_removed_with_the_rights_of_that_user_only() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can give files away");
        }
        let dir = tempfile::Builder::new().prefix("place-").tempdir_in("/tmp").expect("a directory");
        let layout = Layout::new(dir.path().join("root"));
        let mirror = layout.mirror();
        fs_err::create_dir_all(mirror.join("objects")).expect("made");
        fs_err::write(mirror.join("objects/x"), "").expect("written");
        for path in [mirror.clone(), mirror.join("objects")] {
            chown(path, Some(1), Some(1)).expect("given");
        }
        put_in_order(&layout, &order(), &[]).expect("in order");
        assert!(fs_err::read_dir(&mirror).expect("there").next().is_none());
        // What is not that user's to remove stays.
        fs_err::create_dir(mirror.join("roots")).expect("made");
        fs_err::write(mirror.join("roots/x"), "").expect("written");
        chown(&mirror, Some(1), Some(1)).expect("given");
        assert!(put_in_order(&layout, &order(), &[]).is_err());
        assert!(mirror.join("roots/x").exists());
    }

    /// An access list as `setfacl -m u:1:rwx` makes it (linux/posix_acl_xattr.h): version 2, then tag, permissions and number of each entry.
    fn list() -> Vec<u8> {
        const NOBODYS: u32 = u32::MAX;
        let entries = [(0x01_u16, 7_u16, NOBODYS), (0x02, 7, 1), (0x04, 5, NOBODYS), (0x10, 7, NOBODYS), (0x20, 5, NOBODYS)];
        let entry = |(tag, may, id): &(u16, u16, u32)| [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat();
        2_u32.to_le_bytes().into_iter().chain(entries.iter().flat_map(entry)).collect()
    }

    #[test]
    fn access_lists_of_who_had_the_root_before_let_nobody_in() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can give files away");
        }
        let dir = tempfile::Builder::new().prefix("place-").tempdir_in("/tmp").expect("a directory");
        let layout = Layout::new(dir.path().join("root"));
        fs_err::create_dir_all(layout.run()).expect("made");
        let lists = ["system.posix_acl_default", "system.posix_acl_access"];
        for path in [layout.root(), &layout.run()] {
            for name in lists {
                match rustix::fs::setxattr(path, name, &list(), rustix::fs::XattrFlags::empty()) {
                    Err(Errno::NOTSUP) => return eprintln!("skipped: /tmp has no access lists"),
                    set => set.expect("set"),
                }
            }
        }
        put_in_order(&layout, &order(), &[]).expect("in order");
        for path in [layout.root(), &layout.run(), &layout.journal()] {
            for name in lists {
                let left = rustix::fs::getxattr(path, name, &mut [0_u8; 256][..]);
                assert_eq!(left, Err(Errno::NODATA), "{name} of {}", path.display());
            }
        }
        let found = fs_err::metadata(layout.run()).expect("there");
        assert_eq!((found.uid(), found.mode() & 0o7777), (order().agent.uid, 0o2755));
    }
}
