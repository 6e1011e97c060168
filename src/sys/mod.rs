//! How Linux does it: processes, descriptors, `/proc`, clocks, links. The only place with unsafe code.
//!
//! It knows how, not when: no policy, no retry, no logging beyond returning errors.

// The bare system calls for users and groups take 16-bit numbers on some 32-bit machines (`setgroups(2)`).
#[cfg(not(target_pointer_width = "64"))]
compile_error!("selfstart is for 64-bit Linux");

// Two blocks of machine code are there for these two (`clone_into`, `spawn::call`), and the layouts that they rely on were looked at there.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!(
    "selfstart is for Linux on x86_64 and aarch64; another machine needs its own machine code in src/sys/clone_into.rs and src/sys/spawn.rs"
);

#[cfg(not(target_os = "linux"))]
compile_error!("selfstart is for Linux");

pub(crate) mod cgroup;
pub(crate) mod clock;
mod clone_into;
pub(crate) mod confine;
pub(crate) mod exec;
pub mod fault;
pub(crate) mod gate;
#[cfg(test)]
pub(crate) mod headless;
pub(crate) mod hidden;
pub(crate) mod identity;
pub mod libgit2;
pub mod links;
pub(crate) mod notify;
pub(crate) mod packet;
pub mod proc_scan;
pub(crate) mod process;
pub(crate) mod rest;
pub mod shared_map;
pub(crate) mod signals;
pub(crate) mod spawn;
pub(crate) mod starter;
pub mod sync;
pub(crate) mod users;
pub(crate) mod watch;

/// Keeps the heap small: one arena for all threads, and large blocks (a state being written) straight from the kernel and back to it
/// (`mallopt(3)`). An agent is idle most of its life, and what it needed in its busiest moment must not stay.
pub(crate) fn small_heap() {
    // SAFETY: called before any thread is started; both only set numbers that later allocations go by.
    #[expect(unsafe_code, reason = "the C library's allocator")]
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

/// Takes a descriptor that our parent left us, by its number; `None` when that is not a SEQPACKET socket, and then it is left alone.
/// Called once, at start: a number taken twice would be closed twice.
pub(crate) fn inherited_line(number: i32) -> Option<std::os::fd::OwnedFd> {
    use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
    if number < 3 {
        return None;
    }
    // SAFETY: only asked what it is; a number that is no descriptor gives EBADF.
    #[expect(unsafe_code, reason = "an inherited descriptor is known by its number only")]
    let asked = unsafe { BorrowedFd::borrow_raw(number) };
    if !matches!(rustix::net::sockopt::socket_type(asked), Ok(rustix::net::SocketType::SEQPACKET)) {
        return None;
    }
    // SAFETY: it is open, the keeper made it for us and named it in our environment, and nothing else here owns it.
    #[expect(unsafe_code, reason = "an inherited descriptor is known by its number only")]
    let taken = unsafe { OwnedFd::from_raw_fd(number) };
    Some(taken)
}

/// Makes an anonymous file with this content, ready to be read from its beginning (`memfd_create(2)`): for what must be in nobody's
/// argument list and on no disk. Who is given the descriptor reads it; opened anew (through `/proc/PID/fd`) it is by our user only.
///
/// # Errors
/// When there is no memory or no descriptor for it.
pub(crate) fn memory_file(content: &[u8]) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::io::{Seek, Write};
    let fd = rustix::fs::memfd_create("selfstart", rustix::fs::MemfdFlags::CLOEXEC)?;
    // As made it is 0777: whoever finds the descriptor in /proc could read it, and read it again.
    rustix::fs::fchmod(&fd, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_in_memory_is_read_by_who_is_given_it_and_opened_by_its_owner_only() {
        let mut file = std::fs::File::from(super::memory_file(b"a secret").expect("made"));
        assert_eq!(file.metadata().expect("there").permissions().mode() & 0o777, 0o600);
        let mut text = String::new();
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, "a secret");
    }
}
