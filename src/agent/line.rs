//! The agent's end of the line to the keeper.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::keeper::LINE_VARIABLE;
use crate::keeper::protocol::{Ask, MAX_MESSAGE_BYTES, Tell, decode, encode};
use crate::sys::packet;
use crate::sys::watch::watched;

/// Messages taken at a time, so that a flood of exits does not starve the rest of the loop.
const BATCH: usize = 64;

/// Why the line does not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// There is no keeper: the verb was typed by hand.
    #[error("this verb is for the keeper's use; `selfstart run` is for yours")]
    NoKeeper,
    /// The keeper has ended, and so must the agent.
    #[error("the keeper has ended")]
    Closed,
    /// The kernel refused something.
    #[error("the line to the keeper failed")]
    Io(#[source] io::Error),
    /// The keeper said something that this version does not know.
    #[error("the keeper said something else")]
    Malformed(#[from] crate::keeper::protocol::Malformed),
}

/// A message with its descriptors.
pub(crate) type Told = (Tell, Vec<OwnedFd>);

/// The line.
#[derive(Debug)]
pub(crate) struct Line {
    socket: AsyncFd<OwnedFd>,
    /// What the socket had no room for. A slot asks for one thing at a time, so it is bounded by the number of slots and helpers.
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    buffer: Vec<u8>,
}

impl Line {
    /// Takes the descriptor that the keeper left us.
    ///
    /// # Errors
    /// [`LineError::NoKeeper`] when there is none.
    pub(crate) fn open() -> Result<Self, LineError> {
        let number: i32 = std::env::var(LINE_VARIABLE).ok().and_then(|text| text.parse().ok()).ok_or(LineError::NoKeeper)?;
        let fd = crate::sys::inherited_line(number).ok_or(LineError::NoKeeper)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(|error| LineError::Io(error.into()))?;
        Self::on(fd)
    }

    /// A line on this descriptor.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub(super) fn on(fd: OwnedFd) -> Result<Self, LineError> {
        let socket = watched(fd, Interest::READABLE | Interest::WRITABLE).map_err(LineError::Io)?;
        Ok(Self { socket, waiting: VecDeque::new(), buffer: Vec::new() })
    }

    /// Asks for something; what the socket has no room for now goes as soon as it has.
    ///
    /// # Errors
    /// [`LineError::Closed`] when the keeper has ended; `Io` with `InvalidInput` when the message is too long, which changes nothing.
    pub(crate) fn ask(&mut self, ask: &Ask, fd: Option<OwnedFd>) -> Result<(), LineError> {
        let message = encode(ask);
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(LineError::Io(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long")));
        }
        if self.waiting.is_empty() {
            match send(self.socket.get_ref().as_fd(), &message, fd.as_ref()) {
                Ok(()) => return Ok(()),
                Err(LineError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        self.waiting.push_back((message, fd));
        Ok(())
    }

    /// Whether something that was asked has not been sent yet.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Waits for the keeper, and returns what it has said, at least one message. Cancelling it loses nothing.
    ///
    /// # Errors
    /// [`LineError::Closed`] when the keeper has ended.
    pub(crate) async fn next(&mut self) -> Result<Vec<Told>, LineError> {
        loop {
            let interest = if self.waiting.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let mut guard = self.socket.ready(interest).await.map_err(LineError::Io)?;
            let ready = guard.ready();
            if ready.is_writable() && !self.waiting.is_empty() {
                let mut full = false;
                while let Some((message, fd)) = self.waiting.front() {
                    match send(guard.get_inner().as_fd(), message, fd.as_ref()) {
                        Ok(()) => drop(self.waiting.pop_front()),
                        Err(LineError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                            full = true;
                            break;
                        }
                        Err(error) => return Err(error),
                    }
                }
                if full {
                    guard.clear_ready_matching(tokio::io::Ready::WRITABLE);
                }
            }
            let mut told = Vec::new();
            while told.len() < BATCH {
                match packet::receive(guard.get_inner().as_fd(), &mut self.buffer) {
                    Ok(_) if self.buffer.is_empty() => return if told.is_empty() { Err(LineError::Closed) } else { Ok(told) },
                    Ok(fds) => told.push((decode(&self.buffer)?, fds)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        guard.clear_ready_matching(tokio::io::Ready::READABLE);
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(LineError::Closed),
                    Err(error) => return Err(LineError::Io(error)),
                }
            }
            if !told.is_empty() {
                return Ok(told);
            }
        }
    }
}

fn send(socket: BorrowedFd<'_>, message: &[u8], fd: Option<&OwnedFd>) -> Result<(), LineError> {
    let fds: Vec<BorrowedFd<'_>> = fd.iter().map(|fd| fd.as_fd()).collect();
    packet::send(socket, message, &fds).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => LineError::Closed,
        _ => LineError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_a_keeper_said_before_it_ended_is_heard() {
        let (ours, theirs) = packet::pair().expect("a pair");
        let mut line = Line::on(theirs).expect("a line");
        for number in 1..=100 {
            packet::send(ours.as_fd(), &encode(&Tell::Signalled { number }), &[]).expect("room");
        }
        drop(ours);
        let mut heard = Vec::new();
        let end = loop {
            match line.next().await {
                Ok(told) => heard.extend(told.into_iter().map(|(tell, _)| tell)),
                Err(error) => break error,
            }
        };
        assert!(matches!(end, LineError::Closed), "{end}");
        assert!(heard.into_iter().eq((1..=100).map(|number| Tell::Signalled { number })));
    }
}
