//! Memory that outlives the process that writes it: a sealed memfd, mapped shared.
//!
//! What is stored here is in the page cache the moment the store retires, so a later process that maps the same memfd sees every
//! store of a process that was ended by SIGKILL, in program order and whole: a kill takes effect between two instructions, and
//! the stores before it drain. It does not outlive the machine, and two processes must not use one memfd at the same time.

#![expect(unsafe_code, reason = "mmap(2) has no safe form")]
#![expect(clippy::disallowed_methods, reason = "what is in memory only is on no disk")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// A memfd that can grow and can never shrink (`memfd_create(2)`, `F_SEAL_SHRINK` in `fcntl(2)`).
#[derive(Debug)]
pub(crate) struct SharedFile {
    fd: OwnedFd,
}

impl SharedFile {
    /// Makes one of `len` zero bytes; `name` is what `/proc/PID/fd` shows.
    ///
    /// # Errors
    /// As `memfd_create(2)`, `ftruncate(2)` and `fcntl(2)` do.
    pub(crate) fn create(name: &str, len: u64) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK)?;
        Ok(Self { fd })
    }

    /// Takes one back that [`SharedFile::create`] made.
    ///
    /// # Errors
    /// `InvalidData` if it is something else: a file that could shrink under a mapping would end us by SIGBUS.
    pub(crate) fn restore(fd: OwnedFd) -> io::Result<Self> {
        match rustix::fs::fcntl_get_seals(&fd) {
            Ok(seals) if seals.contains(SealFlags::SHRINK) => Ok(Self { fd }),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "not sealed against shrinking")),
            Err(error) => Err(error.into()),
        }
    }

    /// Its length in bytes.
    ///
    /// # Errors
    /// As `fstat(2)` does.
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(rustix::fs::fstat(&self.fd)?.st_size).unwrap_or(0))
    }

    /// Makes it at least `len` bytes long; does nothing if it is already.
    ///
    /// # Errors
    /// As `ftruncate(2)` does.
    pub(crate) fn grow(&self, len: u64) -> io::Result<()> {
        if self.len()? < len {
            rustix::fs::ftruncate(&self.fd, len)?;
        }
        Ok(())
    }

    /// Gives the memory of a part back; it then reads as zeros. Parts of pages are zeroed, not freed.
    ///
    /// # Errors
    /// As `fallocate(2)` does.
    pub(crate) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags as F;
        Ok(rustix::fs::fallocate(&self.fd, F::PUNCH_HOLE | F::KEEP_SIZE, offset, len)?)
    }

    /// Maps a part: its first `words` times 8 bytes as words, the rest as bytes. `offset` must be a multiple of the page size.
    ///
    /// # Errors
    /// If the part is not wholly inside the file, or as `mmap(2)` does.
    pub(crate) fn map(&self, offset: u64, len: usize, words: usize) -> io::Result<SharedMap> {
        let inside = offset.checked_add(len as u64).is_some_and(|end| self.len().is_ok_and(|have| end <= have));
        if !inside || len == 0 || words.checked_mul(8).is_none_or(|bytes| bytes > len) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not inside the file"));
        }
        // SAFETY: a new mapping, placed by the kernel, over a part of a file that has been checked to be there and cannot shrink,
        // so that no access faults; it is unmapped in `drop` only, and no reference outlives the `SharedMap`.
        let ptr =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &self.fd, offset)? };
        let ptr = NonNull::new(ptr.cast::<u8>()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(SharedMap { ptr, len, words })
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A mapped part of a [`SharedFile`]: words, then bytes.
#[derive(Debug)]
pub(crate) struct SharedMap {
    ptr: NonNull<u8>,
    len: usize,
    words: usize,
}

// SAFETY: it is plain memory of this process; nothing in it belongs to a thread.
unsafe impl Send for SharedMap {}

impl SharedMap {
    /// The word at `index`.
    ///
    /// # Panics
    /// If there is no such word: a mistake in the caller's layout, never input.
    #[must_use]
    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "word {index} of {}", self.words);
        // SAFETY: inside the mapping (`map` checked words * 8 <= len), aligned (a mapping begins on a page), initialised (zeros or
        // former stores), and never lent out as bytes (`checked`); an AtomicU64 may change behind a shared reference.
        unsafe { self.ptr.cast::<AtomicU64>().add(index).as_ref() }
    }

    /// Bytes, counted from the beginning of the mapping.
    ///
    /// # Panics
    /// If they are not all behind the words and inside the mapping: a mistake in the caller's layout, never input.
    #[must_use]
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.checked(&range);
        // SAFETY: inside the mapping, initialised, and borrowed from `self`, so that `bytes_mut` cannot be called meanwhile.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().add(range.start), range.len()) }
    }

    /// Bytes to write, counted from the beginning of the mapping.
    ///
    /// # Panics
    /// As [`SharedMap::bytes`] does.
    pub(crate) fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.checked(&range);
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().add(range.start), range.len()) }
    }

    fn checked(&self, range: &Range<usize>) {
        assert!(
            self.words * 8 <= range.start && range.start <= range.end && range.end <= self.len,
            "bytes {range:?} of {} behind {} words",
            self.len,
            self.words
        );
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` made; references into it were borrowed from `self` and are gone.
        // It fails only for addresses that are no mapping, and then there is nothing to undo.
        let _ = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;

    #[test]
    fn what_one_mapping_stored_the_next_one_reads() {
        let file = SharedFile::create("test", 8192).expect("memfd");
        let mut map = file.map(0, 8192, 2).expect("map");
        map.word(1).store(7, SeqCst);
        map.bytes_mut(16..20).copy_from_slice(b"kept");
        drop(map);
        let fd = file.as_fd().try_clone_to_owned().expect("dup");
        let again = SharedFile::restore(fd).expect("ours").map(0, 8192, 2).expect("map");
        assert_eq!(again.word(1).load(SeqCst), 7);
        assert_eq!(again.bytes(16..20), b"kept");
    }

    #[test]
    fn refuses_a_file_that_could_shrink_and_a_part_that_is_not_there() {
        let file = SharedFile::create("test", 4096).expect("memfd");
        assert!(file.map(4096, 4096, 0).is_err());
        assert!(file.map(0, 4096, 513).is_err());
        assert!(rustix::fs::ftruncate(&file, 0).is_err(), "sealed");
        let plain = rustix::fs::memfd_create("plain", MemfdFlags::CLOEXEC).expect("memfd");
        assert!(SharedFile::restore(plain).is_err());
    }
}
