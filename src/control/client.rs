//! The command line's end of the control socket: one request, its answers; blocking, no runtime.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::server::HEARTBEAT;
use super::socket;
use super::wire::{ANSWER_MAX, Answer, Outcome, Progress, Request};
use crate::sys::clock;

/// As long as a full backlog may take to clear.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// No answer for this long: the agent is gone, though its socket is still held by the keeper. Six heartbeats, so that a machine that
/// is short of memory or processor is not taken for a dead agent.
const SILENCE: Duration = Duration::from_secs(HEARTBEAT.as_secs() * 6);

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// There is no socket, or nobody listens.
    #[error("no agent answers at `{}`", .0.display())]
    NoAgent(PathBuf),
    /// Its mode does not let us.
    #[error("you may not speak to the agent: `{}`", .0.display())]
    NotAllowed(PathBuf),
    /// Another failure of the connection.
    #[error("failed to speak to the agent at `{}`", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Connected, but nothing came for [`SILENCE`].
    #[error("the agent at `{}` does not answer", .0.display())]
    Silent(PathBuf),
    /// The connection ended before an outcome.
    #[error("the agent went away before it answered")]
    GoneAway,
    /// What came is no answer.
    #[error("the agent at `{}` sent something that is not an answer", .path.display())]
    Garbled {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller's deadline passed.
    #[error("it did not happen in time")]
    Late,
}

impl ClientError {
    /// Returns what to do next.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoAgent(_) => Some("start it with `selfstart run`, or look at `systemctl status selfstart`"),
            Self::NotAllowed(_) => Some("run this as root or as a member of the group in `control.group`"),
            Self::GoneAway => Some("it comes back by itself; `selfstart status` tells what became of the command"),
            Self::Silent(_) => Some("`selfstart events` tells what it did last; its keeper starts it again if it dies"),
            Self::Io { .. } | Self::Garbled { .. } | Self::Late => None,
        }
    }
}

/// A connection that has not asked yet.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    path: PathBuf,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// If nobody is there or we may not.
    pub(crate) fn connect(path: &Path) -> Result<Self, ClientError> {
        match socket::connect(path, CONNECT_WITHIN) {
            Ok(stream) => Ok(Self { stream, path: path.to_owned() }),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                    ClientError::NoAgent(path.to_owned())
                }
                io::ErrorKind::PermissionDenied => ClientError::NotAllowed(path.to_owned()),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent(path.to_owned()),
                _ => ClientError::Io { path: path.to_owned(), source: error },
            }),
        }
    }

    /// Asks, tells `on_progress` what comes before the outcome (without empty heartbeats), returns the outcome.
    ///
    /// # Errors
    /// If no outcome came, in particular none before `deadline`. What was asked for may have happened all the same.
    pub(crate) fn ask(
        self,
        request: &Request,
        deadline: Option<Instant>,
        mut on_progress: impl FnMut(Progress),
    ) -> Result<Outcome, ClientError> {
        let io_error = |source| ClientError::Io { path: self.path.clone(), source };
        let garbled = |source| ClientError::Garbled { path: self.path.clone(), source };
        self.stream.set_write_timeout(Some(SILENCE)).map_err(io_error)?;
        match (&self.stream).write_all(&request.to_line()) {
            // An agent that turns us away closes before it has read: its answer is there to be read all the same.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => return Err(ClientError::Silent(self.path)),
            written => written.map_err(io_error)?,
        }
        let mut lines = Lines { from: BufReader::new(&self.stream), line: Vec::new() };
        loop {
            let patience = match deadline {
                None => SILENCE,
                Some(deadline) => match deadline.checked_duration_since(clock::instant()) {
                    None | Some(Duration::ZERO) => return Err(ClientError::Late),
                    Some(left) => left.min(SILENCE),
                },
            };
            self.stream.set_read_timeout(Some(patience)).map_err(io_error)?;
            let line = match lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => return Err(ClientError::GoneAway),
                Err(error) => {
                    return Err(match error.kind() {
                        io::ErrorKind::WouldBlock if patience < SILENCE => ClientError::Late,
                        io::ErrorKind::WouldBlock => ClientError::Silent(self.path.clone()),
                        io::ErrorKind::ConnectionReset => ClientError::GoneAway,
                        io::ErrorKind::InvalidData => garbled(error),
                        _ => io_error(error),
                    });
                }
            };
            match Answer::parse(line).map_err(|error| garbled(error.into()))? {
                Answer::Progress(progress) if progress == Progress::default() => {}
                Answer::Progress(progress) => on_progress(progress),
                Answer::Done(done) => return Ok(Outcome::Done(done)),
                Answer::Refused(refused) => return Ok(Outcome::Refused(refused)),
                Answer::Failed(failed) => return Ok(Outcome::Failed(failed)),
            }
        }
    }
}

/// Lines of bounded length.
struct Lines<'a> {
    from: BufReader<&'a UnixStream>,
    line: Vec<u8>,
}

impl Lines<'_> {
    /// Returns the next whole line; `None` at the end, also in the middle of a line.
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let mut limited = (&mut self.from).take(ANSWER_MAX as u64);
        io::BufRead::read_until(&mut limited, b'\n', &mut self.line)?;
        match self.line.last() {
            Some(b'\n') => Ok(Some(&self.line)),
            _ if self.line.len() == ANSWER_MAX => Err(io::Error::new(io::ErrorKind::InvalidData, "a line of more than 64 MiB")),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::{Done, Refused};
    use selfstart_core::command::Command;

    /// An agent that says `answers`, whatever it is asked, after it has read `read` lines.
    fn agent(answers: Vec<u8>, read: bool) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        let listener = socket::bind(&path, socket::Owner::default()).expect("a socket");
        listener.set_nonblocking(false).expect("blocking");
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            if read {
                io::BufRead::read_until(&mut BufReader::new(&stream), b'\n', &mut Vec::new()).expect("a request");
            }
            let _ = stream.write_all(&answers);
        });
        (dir, path, thread)
    }

    fn ask(answers: &str) -> (Result<Outcome, ClientError>, Vec<Progress>) {
        let (_dir, path, thread) = agent(answers.as_bytes().to_vec(), true);
        let mut heard = Vec::new();
        let outcome = Client::connect(&path).expect("it listens").ask(&Request::new(Command::Drain {}), None, |step| heard.push(step));
        thread.join().expect("the agent");
        (outcome, heard)
    }

    #[test]
    fn hears_progress_without_heartbeats_and_then_the_outcome() {
        let (outcome, heard) =
            ask("{\"progress\":{}}\n{\"progress\":{\"text\":\"a\"}}\n{\"done\":{\"text\":\"b\"}}\n{\"progress\":{\"text\":\"c\"}}\n");
        assert_eq!(outcome.expect("an outcome"), Done::text("b"));
        assert_eq!(heard, [Progress::text("a")]);
    }

    #[test]
    fn an_agent_that_dies_before_the_outcome_has_gone_away() {
        for answers in ["", "{\"progress\":{}}\n", "{\"done\":{\"text\":\"cut sho"] {
            assert!(matches!(ask(answers).0, Err(ClientError::GoneAway)), "{answers}");
        }
    }

    #[test]
    fn garbage_is_named_and_not_believed() {
        for answers in ["hello\n", "{\"done\":3}\n", "\n", "{\"sung\":{}}\n"] {
            assert!(matches!(ask(answers).0, Err(ClientError::Garbled { .. })), "{answers}");
        }
    }

    #[test]
    fn hears_why_it_is_turned_away_though_its_request_is_not_read() {
        let refused = Refused { code: crate::control::wire::RefusalCode::Busy, reason: "full".into(), hint: None };
        let (_dir, path, thread) = agent(Answer::Refused(refused.clone()).to_line(), false);
        let client = Client::connect(&path).expect("it listens");
        thread.join().expect("the agent has closed");
        assert_eq!(client.ask(&Request::new(Command::Drain {}), None, |_| ()).expect("an outcome"), Outcome::Refused(refused));
    }

    #[test]
    fn nobody_there_is_no_agent() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        assert!(matches!(Client::connect(&path), Err(ClientError::NoAgent(_))));
        drop(socket::bind(&path, socket::Owner::default()).expect("a socket"));
        assert!(matches!(Client::connect(&path), Err(ClientError::NoAgent(_))));
        assert!(matches!(Client::connect(&dir.path().join("no/such/directory")), Err(ClientError::NoAgent(_))));
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("control.sock");
        let _nobody_accepts = socket::bind(&path, socket::Owner::default()).expect("a socket");
        let soon = Instant::now() + Duration::from_millis(20);
        let outcome = Client::connect(&path).expect("it listens").ask(&Request::new(Command::Wait {}), Some(soon), |_| ());
        assert!(matches!(outcome, Err(ClientError::Late)), "{outcome:?}");
        let outcome = Client::connect(&path).expect("it listens").ask(&Request::new(Command::Wait {}), Some(Instant::now()), |_| ());
        assert!(matches!(outcome, Err(ClientError::Late)), "{outcome:?}");
    }
}
