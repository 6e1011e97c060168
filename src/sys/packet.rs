//! Whole messages with descriptors over a SEQPACKET socket pair (`unix(7)`): a message arrives whole or not at all.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair, sockopt,
};

/// The most descriptors that one message carries; the kernel's own limit is 253 (SCM_MAX_FD).
pub(crate) const MAX_FDS: usize = 4;

/// The room asked for on each side. A message larger than the room that was granted is refused by the kernel (EMSGSIZE).
const ROOM_BYTES: usize = 4 << 20;

/// Makes a connected, non-blocking, close-on-exec pair.
///
/// # Errors
/// When the process is out of descriptors.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    for end in [&a, &b] {
        // More than net.core.wmem_max needs CAP_NET_ADMIN (socket(7)); without it the kernel grants what it allows.
        if sockopt::set_socket_send_buffer_size(end, ROOM_BYTES).is_err() {
            sockopt::set_socket_send_buffer_size(end, 1 << 17)?;
        }
        force_room(end.as_fd());
    }
    Ok((a, b))
}

/// Asks for the room beyond net.core.wmem_max; only root gets it, and nothing depends on it but the longest message.
fn force_room(end: BorrowedFd<'_>) {
    use std::os::fd::AsRawFd;
    let room: libc::c_int = libc::c_int::try_from(ROOM_BYTES).unwrap_or(libc::c_int::MAX);
    // SAFETY: the descriptor is open for the call, and the option's value is a c_int that outlives the call.
    #[expect(unsafe_code, reason = "SO_SNDBUFFORCE has no safe wrapper")]
    let _granted = unsafe {
        libc::setsockopt(
            end.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            std::ptr::from_ref(&room).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4),
        )
    };
}

/// Sends one message.
///
/// # Errors
/// `WouldBlock` when there is no room now; EMSGSIZE when there never will be; EPIPE when the other end is gone.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors in one message"));
    }
    sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Receives one message into `buffer`, which is made exactly as long as the message; empty: the other end is gone.
/// Returns the descriptors that came with it, close-on-exec.
///
/// # Errors
/// `WouldBlock` when there is none.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Vec<OwnedFd>> {
    let (_, len) = recv(socket, &mut [0_u8; 0][..], RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT)?;
    buffer.resize(len, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)?;
    buffer.truncate(message.bytes);
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was larger than its buffer"));
    }
    Ok(fds)
}
