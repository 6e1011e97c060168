//! How a tree of files is at a moment, by what no program can set: times of birth and of change.

use std::io;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use rustix::fs::{AtFlags, CWD, FileType, OFlags, StatxFlags, StatxTimestamp, statx};
use serde::{Deserialize, Serialize};

use crate::sys::gate;

/// A moment as the file system counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Moment {
    secs: i64,
    nanos: u32,
}

impl Moment {
    fn of(at: StatxTimestamp) -> Self {
        Self { secs: at.tv_sec, nanos: at.tv_nsec }
    }
}

/// What is in a place; links are not followed.
pub(super) struct Seen {
    /// `None`: the file system does not keep it.
    pub(super) born: Option<Moment>,
    /// The last change of content, mode, owner, name or number of names.
    pub(super) changed: Moment,
    mode: u16,
    len: u64,
    /// On disk.
    bytes: u64,
}

impl Seen {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS | StatxFlags::BTIME).map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))
        })?;
        let has = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
        Ok(Self {
            born: has.then_some(Moment::of(found.stx_btime)),
            changed: Moment::of(found.stx_ctime),
            mode: found.stx_mode,
            len: found.stx_size,
            bytes: found.stx_blocks.saturating_mul(512),
        })
    }

    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode.into())
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind().is_dir()
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind().is_file()
    }
}

/// Shows a tree, in an order that depends on the names alone; `each` says whether a folder is entered. What goes away meanwhile is not shown.
pub(super) fn walk(root: &Path, from: &Path, each: &mut dyn FnMut(&Path, &Seen) -> io::Result<bool>) -> io::Result<()> {
    let mut waiting = vec![from.to_owned()];
    while let Some(shown) = waiting.pop() {
        let path = if shown.as_os_str().is_empty() { root.to_owned() } else { root.join(&shown) };
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let seen = match Seen::of(&path) {
            Err(error) if gone(&error) => continue,
            seen => seen?,
        };
        if each(&shown, &seen)? && seen.is_dir() {
            let entries = match fs_err::read_dir(&path) {
                Err(error) if gone(&error) => continue,
                entries => entries?,
            };
            let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
            names.sort_by(|one, other| other.cmp(one));
            waiting.extend(names.into_iter().map(|name| shown.join(name)));
        }
    }
    Ok(())
}

/// Names a tree as it is.
pub(super) struct Shape {
    /// A digest of paths, modes, lengths and times of change. Folders have no times in it: they change with what comes and goes in them.
    pub(super) name: String,
    /// The room that it takes.
    pub(super) bytes: u64,
}

/// Names what is in these places of a release, without what is not older than `before`.
pub(super) fn shape(release: &Path, places: &[PathBuf], before: Option<Moment>) -> io::Result<Shape> {
    let mut hash = Context::new(&SHA256);
    let mut bytes = 0_u64;
    for place in places {
        walk(release, place, &mut |shown, seen| {
            if before.is_some_and(|before| seen.born.is_none_or(|born| born >= before)) {
                return Ok(false);
            }
            let shown = shown.as_os_str().as_encoded_bytes();
            hash.update(&(shown.len() as u64).to_le_bytes());
            hash.update(shown);
            hash.update(&seen.mode.to_le_bytes());
            if !seen.is_dir() {
                hash.update(&seen.len.to_le_bytes());
                hash.update(&seen.changed.secs.to_le_bytes());
                hash.update(&seen.changed.nanos.to_le_bytes());
            }
            bytes = bytes.saturating_add(seen.bytes);
            Ok(true)
        })?;
    }
    let name = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Shape { name, bytes })
}

/// Returns a moment: all that is there is older, all that is made from now on is not.
pub(super) fn begin(release: &Path) -> io::Result<Option<Moment>> {
    let born = || -> io::Result<Option<Moment>> {
        let path = release.join(".selfstart-begin");
        drop(gate::File::open(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, 0o600)?);
        let at = Seen::of(&path);
        gate::remove_file(&path)?;
        Ok(at?.born)
    };
    let Some(first) = born()? else { return Ok(None) };
    // The kernel's clock for files ticks some hundred times a second: what was made in the same tick as the first stamp is older than the
    // next tick.
    loop {
        match born()? {
            Some(at) if at == first => std::thread::yield_now(),
            at => return Ok(at),
        }
    }
}
