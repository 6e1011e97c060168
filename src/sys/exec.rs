//! Executes another program in place of this one, and what it is left: `execve(2)` keeps the process, its children and its descriptors.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::FdFlags;

/// Executes the program that this descriptor leads to, in place of this one. Returns only when that failed.
///
/// By the descriptor, so that it is the file that was looked at, whatever its name leads to by now.
#[must_use]
pub(crate) fn execute(program: BorrowedFd<'_>, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both lists end with a null pointer, and they and the texts live as long as the call. That the other threads end without a
    // word is what is wanted.
    #[expect(unsafe_code, reason = "execveat(2) has no safe wrapper")]
    unsafe {
        libc::syscall(libc::SYS_execveat, program.as_raw_fd(), c"".as_ptr(), argv.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH);
    }
    io::Error::last_os_error()
}

/// Leaves a descriptor to the program that is executed next.
///
/// # Errors
/// When there is none of this number.
pub(crate) fn leave(number: i32) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(borrow(number)?, FdFlags::empty())?)
}

/// Takes a descriptor that the program before us left, by its number, and keeps it from what we start.
///
/// Each number is to be taken once: the caller sees to that.
///
/// # Errors
/// When there is none of this number.
pub(crate) fn take(number: i32) -> io::Result<OwnedFd> {
    rustix::io::fcntl_setfd(borrow(number)?, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and whoever had it is this process, before it executed us.
    #[expect(unsafe_code, reason = "an inherited descriptor is known by its number only")]
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn borrow(number: i32) -> io::Result<BorrowedFd<'static>> {
    if number < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: only asked and marked; a number that is no descriptor gives EBADF.
    #[expect(unsafe_code, reason = "an inherited descriptor is known by its number only")]
    Ok(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Closes every descriptor from 3 on: what was left and cannot be understood must not stay open (a lock would be ours for ever).
pub(crate) fn close_all() {
    // SAFETY: called before anything here owns a descriptor.
    #[expect(unsafe_code, reason = "close_range(2) has no safe wrapper")]
    let _before_5_9 = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

/// Makes a file in memory with this content that nobody can change any more (`memfd_create(2)`, file sealing).
///
/// # Errors
/// When there is no memory or no descriptor for it.
pub(crate) fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    use std::io::Write;
    let fd = rustix::fs::memfd_create("selfstart-handover", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::fchmod(&fd, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)?;
    rustix::fs::fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// Reads a file of [`sealed`], whoever has read from it before.
///
/// # Errors
/// When it is none.
pub(crate) fn read_sealed(fd: impl AsFd) -> io::Result<Vec<u8>> {
    if !rustix::fs::fcntl_get_seals(&fd)?.contains(SEALS) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not sealed"));
    }
    let size = usize::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match rustix::io::pread(&fd, &mut bytes[filled..], filled as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    Ok(bytes)
}

/// Gives this process its name back: one that was executed by a descriptor is called by its number in `ps` (`comm`, `proc(5)`).
pub(crate) fn name_ourselves() {
    let _only_a_name = rustix::thread::set_name(c"selfstart");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_reads_the_same_for_everybody_and_cannot_be_changed() {
        let fd = sealed(b"what is handed over").expect("made");
        for _ in 0..2 {
            assert_eq!(read_sealed(&fd).expect("read"), b"what is handed over");
        }
        assert_eq!(rustix::io::pwrite(&fd, b"x", 0), Err(rustix::io::Errno::PERM));
        let plain = crate::sys::memory_file(b"x").expect("made");
        assert!(read_sealed(&plain).is_err());
    }

    #[test]
    fn standard_descriptors_and_what_is_not_open_are_not_taken() {
        for number in [-1, 0, 1, 2, 1 << 20] {
            assert!(take(number).is_err() && leave(number).is_err(), "{number}");
        }
    }
}
