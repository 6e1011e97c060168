//! Where the control socket is: made safely by the agent, reached by clients, also where its path is longer than an address may be.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::net::sockopt::Timeout;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::sys::gate;

/// `sun_path` of unix(7) has 108 bytes, the last of them a NUL.
const ADDRESS_MAX: usize = 107;

/// As many as the server answers at a time; further clients wait in connect(2). The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 128;

/// Mode 0660 (PRODUCT.md section 2).
const MODE: Mode = Mode::from_raw_mode(0o660);

/// Who owns the socket; `None`: who runs the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    /// `control.owner`.
    pub(crate) uid: Option<u32>,
    /// `control.group`.
    pub(crate) gid: Option<u32>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// Somebody accepts connections there.
    #[error("another agent answers at `{}`", .0.display())]
    Alive(PathBuf),
    /// The path has no directory or no name.
    #[error("not a path of a socket: `{}`", .0.display())]
    BadPath(PathBuf),
    /// Something that is no socket is there.
    #[error("in the way of the control socket, and not a socket: `{}`", .0.display())]
    InTheWay(PathBuf),
    /// A system call failed.
    #[error("failed to {doing} `{}`", .path.display())]
    Io {
        /// What.
        doing: &'static str,
        /// Of which socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The descriptor that was handed over is no listening Unix socket.
    #[error("the descriptor kept for `{}` is not a listening Unix socket", .0.display())]
    NotListening(PathBuf),
    /// The descriptor that was handed over is alive, but its file is gone: nobody can connect to it any more.
    #[error("the socket's file is gone: `{}`", .0.display())]
    Unlinked(PathBuf),
}

/// Makes a listening socket at `path`, mode 0660, in the place of one that nobody answers at.
///
/// Nobody can connect before owner, group and mode are right: it listens only after they are set, and has its name only after that. It is
/// non-blocking and close-on-exec.
///
/// # Errors
/// If an agent answers there, or a system call fails; then nothing has changed.
pub(crate) fn bind(path: &Path, owner: Owner) -> Result<UnixListener, BindError> {
    let io = |doing| move |source: rustix::io::Errno| BindError::Io { doing, path: path.to_owned(), source: source.into() };
    let place = Place::open(path)?;
    match rustix::fs::statat(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket() => return Err(BindError::InTheWay(path.to_owned())),
        Ok(_) if place.answers() => return Err(BindError::Alive(path.to_owned())),
        Ok(_) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(io("look at")(error)),
    }
    // One name for all: the state directory is locked by its agent, so that a former one's leftover is the only thing that can be there.
    let mut new = OsString::from(".");
    new.push(&place.name);
    new.push(".new");
    let fresh = Place { dir: place.dir, name: new, full: path.to_owned() };
    let remove = || gate::unlinkat(&fresh.dir, &fresh.name, AtFlags::empty());
    match remove() {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(io("remove the leftover of")(error)),
    }
    let made = (|| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(io("make"))?;
        gate::bind(&socket, &fresh.address().map_err(io("name"))?).map_err(io("bind"))?;
        rustix::fs::chownat(&fresh.dir, &fresh.name, owner.uid.map(Uid::from_raw), owner.gid.map(Gid::from_raw), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io("set the owner of"))?;
        rustix::fs::chmodat(&fresh.dir, &fresh.name, MODE, AtFlags::empty()).map_err(io("set the mode of"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(io("listen at"))?;
        gate::renameat(&fresh.dir, &fresh.name, &fresh.dir, &place.name).map_err(io("put in its place"))?;
        Ok(UnixListener::from(socket))
    })();
    if made.is_err() {
        // The first failure is the one to report.
        let _ = remove();
    }
    made
}

/// Gives the socket at `path` to this owner and group, as [`bind`] would; whoever is connected stays so.
///
/// # Errors
/// If a system call fails; then nothing has changed.
pub(crate) fn give(path: &Path, owner: Owner) -> Result<(), BindError> {
    let io = |source: rustix::io::Errno| BindError::Io { doing: "set the owner of", path: path.to_owned(), source: source.into() };
    let place = Place::open(path)?;
    // What is not named is who we are, as if it were made anew.
    let uid = owner.uid.map_or_else(rustix::process::geteuid, Uid::from_raw);
    let gid = owner.gid.map_or_else(rustix::process::getegid, Gid::from_raw);
    rustix::fs::chownat(&place.dir, &place.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(io)
}

/// Takes the socket that outlived a former agent; its file must still be at `path`.
///
/// # Errors
/// If it is something else, or nobody could connect to it any more: then [`bind`] anew.
pub(crate) fn from_fd(fd: OwnedFd, path: &Path) -> Result<UnixListener, BindError> {
    let listening = rustix::net::sockopt::socket_acceptconn(&fd).unwrap_or(false)
        && rustix::net::sockopt::socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
    if !listening {
        return Err(BindError::NotListening(path.to_owned()));
    }
    let there = fs_err::symlink_metadata(path).is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
    if !there {
        return Err(BindError::Unlinked(path.to_owned()));
    }
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true).map_err(|source| BindError::Io { doing: "make non-blocking", path: path.to_owned(), source })?;
    Ok(listener)
}

/// Connects to the socket at `path`, waiting at most `patience` if the backlog is full.
///
/// # Errors
/// `NotFound`, `ConnectionRefused`, `PermissionDenied`, `WouldBlock` (the backlog stayed full) and others of connect(2).
pub(crate) fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let place = match Place::open(path) {
        Ok(place) => place,
        Err(BindError::Io { source, .. }) => return Err(source),
        Err(other) => return Err(io::Error::new(io::ErrorKind::InvalidInput, other)),
    };
    place.connect(patience)
}

/// A socket by its directory and its name in it.
struct Place {
    dir: OwnedFd,
    name: OsString,
    full: PathBuf,
}

impl Place {
    fn open(path: &Path) -> Result<Self, BindError> {
        let bad = || BindError::BadPath(path.to_owned());
        let (parent, name) = (path.parent().ok_or_else(bad)?, path.file_name().ok_or_else(bad)?);
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let dir = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| BindError::Io { doing: "open the directory of", path: path.to_owned(), source: source.into() })?;
        Ok(Self { dir, name: name.to_owned(), full: path.to_owned() })
    }

    /// A path that is too long for an address goes through the open directory: `/proc/self/fd/N/NAME`.
    fn address(&self) -> rustix::io::Result<SocketAddrUnix> {
        let bytes = |path: &OsStr| path.as_bytes().len();
        if bytes(self.full.with_file_name(&self.name).as_os_str()) <= ADDRESS_MAX {
            return SocketAddrUnix::new(self.full.with_file_name(&self.name));
        }
        SocketAddrUnix::new(Path::new("/proc/self/fd").join(self.dir.as_raw_fd().to_string()).join(&self.name))
    }

    fn connect(&self, patience: Duration) -> io::Result<UnixStream> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // For Unix sockets SO_SNDTIMEO bounds connect(2), too (`unix_stream_connect` in net/unix/af_unix.c).
        rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        rustix::net::connect(&socket, &self.address()?)?;
        Ok(UnixStream::from(socket))
    }

    /// Tells whether somebody listens; a full backlog is somebody.
    fn answers(&self) -> bool {
        match self.connect(Duration::from_millis(100)) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn patience() -> Duration {
        Duration::from_secs(5)
    }

    #[test]
    fn the_socket_has_its_mode_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        let _listener = bind(&path, Owner::default()).expect("a socket");
        let meta = fs_err::metadata(&path).expect("there");
        assert_eq!(meta.permissions().mode() & 0o7777, 0o660);
        assert_eq!(fs_err::read_dir(dir.path()).expect("a directory").count(), 1);
        connect(&path, patience()).expect("it listens");
    }

    #[test]
    fn the_group_is_set_where_that_is_allowed() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        let _listener = bind(&path, Owner { uid: Some(65534), gid: Some(4) }).expect("a socket");
        let meta = fs_err::metadata(&path).expect("there");
        assert_eq!((meta.uid(), meta.gid()), (65534, 4));
    }

    #[test]
    fn takes_the_place_of_a_dead_agent_s_socket_but_not_of_a_live_one_s() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        let first = bind(&path, Owner::default()).expect("a socket");
        assert!(matches!(bind(&path, Owner::default()), Err(BindError::Alive(_))));
        drop(first);
        fs_err::write(dir.path().join(".control.sock.new"), "left behind").expect("a file");
        let _second = bind(&path, Owner::default()).expect("the first is dead");
        connect(&path, patience()).expect("it listens");
    }

    #[test]
    fn does_not_remove_what_is_no_socket() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        fs_err::write(&path, "precious").expect("a file");
        assert!(matches!(bind(&path, Owner::default()), Err(BindError::InTheWay(_))));
        fs_err::remove_file(&path).expect("the file");
        fs_err::os::unix::fs::symlink("/etc/passwd", &path).expect("a link");
        assert!(matches!(bind(&path, Owner::default()), Err(BindError::InTheWay(_))));
    }

    #[test]
    fn a_path_longer_than_an_address_works_at_both_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("x".repeat(120)).join("run");
        fs_err::create_dir_all(&deep).expect("a deep directory");
        let path = deep.join("control.sock");
        let _listener = bind(&path, Owner::default()).expect("a socket");
        connect(&path, patience()).expect("it listens");
        assert!(matches!(bind(&path, Owner::default()), Err(BindError::Alive(_))));
    }

    #[test]
    fn paths_of_every_length_around_the_limit_work() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = dir.path().as_os_str().len() + "/".len() + "/control.sock".len();
        for total in ADDRESS_MAX - 8..ADDRESS_MAX + 4 {
            let run = dir.path().join("x".repeat(total - base));
            fs_err::create_dir(&run).expect("a directory");
            let _listener = bind(&run.join("control.sock"), Owner::default()).unwrap_or_else(|error| panic!("{total}: {error:?}"));
            connect(&run.join("control.sock"), patience()).unwrap_or_else(|error| panic!("{total}: {error}"));
        }
    }

    #[test]
    fn a_kept_descriptor_is_taken_while_its_file_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        let kept = || OwnedFd::from(bind(&path, Owner::default()).expect("a socket"));
        let again = from_fd(kept(), &path).expect("the same socket");
        connect(&path, patience()).expect("it listens");
        drop(again);
        let fd = kept();
        fs_err::remove_file(&path).expect("the socket");
        assert!(matches!(from_fd(fd, &path), Err(BindError::Unlinked(_))));
        let (one, _other) = UnixStream::pair().expect("a pair");
        assert!(matches!(from_fd(one.into(), &path), Err(BindError::NotListening(_))));
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = bind(Path::new("/nowhere/run/control.sock"), Owner::default()).expect_err("no directory");
        assert_eq!(error.to_string(), "failed to open the directory of `/nowhere/run/control.sock`");
    }
}
