//! Descriptors that the runtime waits on.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes a descriptor that the loop can wait on.
///
/// # Errors
/// When the kernel has no room for another one in its poll.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and it lives in the `AsyncFd`, which deregisters it
    // before it is closed.
    #[expect(unsafe_code, reason = "the safe constructor is deprecated for types that may change their descriptor, which an OwnedFd cannot")]
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    Ok(watched?)
}
