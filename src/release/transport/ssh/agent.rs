//! An ssh agent for one key and one client: how the private key serves the `ssh` client without being given to it.
//!
//! The key stays in the memory of the helper, which nobody of its own user may look into ([`crate::sys::process::keep_secrets`]); the
//! client gets signatures only, through a socket in a private folder (docs/decisions/0004). It is answered to one process, the client
//! that we started, and signs one thing: that client's log-in as the user of the source. The socket's name is gone once it is there.
//!
//! The protocol: draft-ietf-sshm-ssh-agent, and PROTOCOL.agent of OpenSSH.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

use super::key::{Fields, PrivateKey, string};
use crate::sys::gate;

/// Messages of the agent protocol.
const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// SSH_MSG_USERAUTH_REQUEST (RFC 4252, 6).
const USERAUTH_REQUEST: u8 = 50;
/// The longest message that OpenSSH's own agent takes (AGENT_MAX_LEN).
const MAX_MESSAGE: u32 = 256 * 1024;

/// The folder of the agent that waits for its client now, for the watchdog.
static WAITING: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Removes what an agent has on disk: for the watchdog, before it ends the helper.
pub(super) fn abandon() {
    if let Some(folder) = WAITING.lock().unwrap_or_else(PoisonError::into_inner).take() {
        remove(&folder);
    }
}

fn remove(folder: &Path) {
    // Gone already when the client came; what cannot be removed holds no secret.
    let _ = gate::remove_file(folder.join("agent"));
    let _ = gate::remove_dir(folder);
}

/// A socket that waits for its client.
pub(super) struct Waiting {
    listener: UnixListener,
    folder: PathBuf,
}

impl Waiting {
    /// Makes the socket, in a folder that other users may not enter.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(super) fn new() -> io::Result<Self> {
        // In /tmp: a socket's path must be short, and the mirror's need not be.
        let folder = std::env::temp_dir().join(format!("selfstart-ssh-{:016x}", fastrand::u64(..)));
        // Fails if somebody was there before us.
        gate::create_dir_with(&folder, rustix::fs::Mode::RWXU)?;
        *WAITING.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder.clone());
        let listener = UnixListener::bind(folder.join("agent")).inspect_err(|_| remove(&folder))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, folder })
    }

    /// Returns where the client finds it.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("agent")
    }

    /// Answers the client with this number, from now on until it ends or [`Running`] is dropped.
    pub(super) fn serve(self, key: Arc<PrivateKey>, name: String, user: Option<String>, client: u32) -> io::Result<Running> {
        let (stop, stopped) = UnixStream::pair()?;
        let session = Session { key, name, user };
        let thread = std::thread::spawn(move || {
            let Some(stream) = self.accept(client, &stopped) else { return };
            // Nobody else needs to find it.
            drop(self);
            // Ends when the client hangs up.
            let _ = session.converse(stream);
        });
        Ok(Running { stop: Some(stop), thread: Some(thread) })
    }

    /// Waits for the client and nobody else; `None`: it was told to stop.
    fn accept(&self, client: u32, stopped: &UnixStream) -> Option<UnixStream> {
        loop {
            let mut ready = [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
            if let Err(error) = poll(&mut ready, None)
                && error != rustix::io::Errno::INTR
            {
                return None;
            }
            if !ready[1].revents().is_empty() {
                return None;
            }
            let Ok((stream, _)) = self.listener.accept() else { continue };
            let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
            if u32::try_from(peer.pid.as_raw_nonzero().get()).ok() == Some(client) && stream.set_nonblocking(false).is_ok() {
                return Some(stream);
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.lock().unwrap_or_else(PoisonError::into_inner).take();
        remove(&self.folder);
    }
}

/// An agent that answers; dropped after the client's end.
pub(super) struct Running {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It cannot panic; if it did, that is nothing to the fetch.
            let _ = thread.join();
        }
    }
}

struct Session {
    key: Arc<PrivateKey>,
    name: String,
    user: Option<String>,
}

impl Session {
    fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let mut head = [0; 4];
            stream.read_exact(&mut head)?;
            let len = u32::from_be_bytes(head);
            if len == 0 || len > MAX_MESSAGE {
                return Ok(());
            }
            let mut message = vec![0; len as usize];
            stream.read_exact(&mut message)?;
            stream.write_all(&string(&self.answer(&message)))?;
        }
    }

    fn answer(&self, message: &[u8]) -> Vec<u8> {
        match message.split_first() {
            Some((&REQUEST_IDENTITIES, _)) => {
                [vec![IDENTITIES_ANSWER, 0, 0, 0, 1], string(self.key.blob()), string(self.name.as_bytes())].concat()
            }
            Some((&SIGN_REQUEST, rest)) => self.signature(rest).unwrap_or_else(|| vec![FAILURE]),
            // Extensions among them: a client goes on without.
            _ => vec![FAILURE],
        }
    }

    fn signature(&self, request: &[u8]) -> Option<Vec<u8>> {
        let mut fields = Fields(request);
        let (blob, message, flags) = (fields.string().ok()?, fields.string().ok()?, fields.number().ok()?);
        if blob != self.key.blob() || !self.is_log_in(message) {
            return None;
        }
        Some([vec![SIGN_RESPONSE], string(&self.key.sign(message, flags)?)].concat())
    }

    /// Whether this is what a client signs to log in with our key as our user (RFC 4252, 7; PROTOCOL of OpenSSH, 1.13).
    fn is_log_in(&self, message: &[u8]) -> bool {
        let read = || {
            let mut fields = Fields(message);
            let _session = fields.string().ok()?;
            let kind = *fields.bytes(1).ok()?.first()?;
            let (user, service, method) = (fields.string().ok()?, fields.string().ok()?, fields.string().ok()?);
            let (_signed, _algorithm, blob) = (fields.bytes(1).ok()?, fields.string().ok()?, fields.string().ok()?);
            let of_key = [b"publickey".as_slice(), b"publickey-hostbound-v00@openssh.com"].contains(&method);
            let of_user = self.user.as_deref().is_none_or(|wanted| wanted.as_bytes() == user);
            Some(kind == USERAUTH_REQUEST && of_user && service == b"ssh-connection" && of_key && blob == self.key.blob())
        };
        read().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::Ed25519KeyPair;

    use super::*;

    fn session() -> Session {
        let document = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).expect("a key");
        let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, document);
        let key = PrivateKey::parse(&format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")).expect("a key");
        Session { key: Arc::new(key), name: "k".into(), user: Some("git".into()) }
    }

    fn log_in(user: &str, service: &str, method: &str, blob: &[u8]) -> Vec<u8> {
        let texts: Vec<u8> = [user, service, method].iter().flat_map(|text| string(text.as_bytes())).collect();
        [string(b"a session"), vec![USERAUTH_REQUEST], texts, vec![1], string(b"ssh-ed25519"), string(blob)].concat()
    }

    fn asked(session: &Session, blob: &[u8], message: &[u8]) -> u8 {
        session.answer(&[vec![SIGN_REQUEST], string(blob), string(message), vec![0; 4]].concat())[0]
    }

    #[test]
    fn signs_the_log_in_of_our_user_with_our_key_and_nothing_else() {
        let session = session();
        let blob = session.key.blob().to_vec();
        let good = log_in("git", "ssh-connection", "publickey", &blob);
        assert_eq!(asked(&session, &blob, &good), SIGN_RESPONSE);
        let bound = log_in("git", "ssh-connection", "publickey-hostbound-v00@openssh.com", &blob);
        assert_eq!(asked(&session, &blob, &bound), SIGN_RESPONSE);
        for (what, message) in [
            ("another user", log_in("root", "ssh-connection", "publickey", &blob)),
            ("another service", log_in("git", "ssh-userauth", "publickey", &blob)),
            ("another method", log_in("git", "ssh-connection", "hostbased", &blob)),
            ("another key", log_in("git", "ssh-connection", "publickey", b"x")),
            ("no log-in", b"a commit to be signed".to_vec()),
            ("nothing", Vec::new()),
            ("a cut one", good[..good.len() - 1].to_vec()),
        ] {
            assert_eq!(asked(&session, &blob, &message), FAILURE, "{what}");
        }
        assert_eq!(asked(&session, b"x", &good), FAILURE);
        // SSH_AGENTC_ADD_IDENTITY, EXTENSION, and what does not exist.
        for message in [[17_u8].as_slice(), &[27], &[255], &[], &[SIGN_REQUEST], &[SIGN_REQUEST, 255, 255, 255, 255]] {
            assert_eq!(session.answer(message), [FAILURE]);
        }
    }

    #[test]
    fn answers_its_client_only_and_cannot_be_found_once_that_is_there() {
        let session = session();
        let us = std::process::id();
        let waiting = Waiting::new().expect("a socket");
        let (path, folder) = (waiting.path(), waiting.folder.clone());
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs_err::metadata(&folder).expect("there").permissions());
        assert_eq!(mode & 0o777, 0o700);
        let stranger = waiting.serve(Arc::clone(&session.key), "k".into(), None, us + 1).expect("served");
        let mut stream = UnixStream::connect(&path).expect("a socket");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a limit");
        assert_eq!(stream.read(&mut [0]).expect("hung up"), 0, "we are not the client");
        drop(stranger);
        assert!(!folder.exists());

        let waiting = Waiting::new().expect("a socket");
        let (path, folder) = (waiting.path(), waiting.folder.clone());
        let running = waiting.serve(Arc::clone(&session.key), "k".into(), None, us).expect("served");
        let mut stream = UnixStream::connect(&path).expect("a socket");
        stream.write_all(&string(&[REQUEST_IDENTITIES])).expect("asked");
        let mut head = [0; 5];
        stream.read_exact(&mut head).expect("answered");
        assert_eq!(head[4], IDENTITIES_ANSWER);
        assert!(!folder.exists());
        // Too long a message is the end.
        stream.write_all(&u32::MAX.to_be_bytes()).expect("asked");
        drop(running);
        drop(stream);
    }
}
