//! Descriptors that the agent's loop waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has tokio watch a descriptor, which must be non-blocking to be of use.
///
/// # Errors
/// When the kernel cannot watch what it is (a file on a disk), or there is no more memory or room for it.
///
/// # Panics
/// Outside of a tokio runtime.
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and its own as long as it lives; `AsyncFd` holds it, and nobody here replaces it in there
    // (`get_mut` is not called).
    #[expect(unsafe_code, reason = "`AsyncFd` cannot ask of a type that its descriptor stays the same")]
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    Ok(registered?)
}
