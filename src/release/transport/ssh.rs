//! git's smart protocol over the system's `ssh` client, for libgit2.
//!
//! The client and not a library, for what people rely on: their `ssh_config`, agents, jump hosts, hardware keys, and security
//! updates by the distribution. It never asks (`BatchMode`) and never learns a host key by itself (`StrictHostKeyChecking`).

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream};

use super::address::SshTarget;
use super::{CONNECT_TIMEOUT, Reach, STALL_TIMEOUT, Trouble};
use crate::release::git::{Credentials, ErrorKind, Failure};
use crate::sys::clock;

/// How much of what the client says on standard error is kept: its complaint, not a server's novel.
const MAX_COMPLAINT: usize = 8 * 1024;
/// How long a client whose connection is over may take to end before it is killed.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often it is looked whether it has ended; there is nothing to wait on for one child with a limit but `waitpid`.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The client that runs now, for the watchdog.
static RUNNING: Mutex<Option<Arc<Mutex<Child>>>> = Mutex::new(None);

/// Ends the client that runs now, if any.
pub(super) fn abandon() {
    if let Some(child) = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }
}

/// The words of the client's command line.
#[derive(Clone, Debug)]
pub(super) struct Command {
    words: Vec<OsString>,
    host: String,
    has_key: bool,
}

impl Command {
    pub(super) fn new(target: &SshTarget, reach: &Reach) -> Result<Self, Failure> {
        let mut words: Vec<OsString> = Vec::new();
        let mut option = |text: String| words.extend(["-o".into(), text.into()]);
        option("BatchMode=yes".to_owned());
        option("StrictHostKeyChecking=yes".to_owned());
        option(format!("ConnectTimeout={}", reach.timeout.min(CONNECT_TIMEOUT).as_secs().max(1)));
        // Two unanswered questions: a dead connection is noticed within the stall time-out.
        option(format!("ServerAliveInterval={}", (reach.timeout.min(STALL_TIMEOUT).as_secs() / 3).max(1)));
        option("ServerAliveCountMax=2".to_owned());
        // Nobody's local commands, ports or display are wanted here.
        option("PermitLocalCommand=no".to_owned());
        option("ClearAllForwardings=yes".to_owned());
        let mut has_key = false;
        match &reach.credentials {
            Credentials::None => {}
            Credentials::Ssh { key, known_hosts } => {
                if let Some(path) = known_hosts {
                    let path = option_path(path)?;
                    option(format!("UserKnownHostsFile={path}"));
                    option("GlobalKnownHostsFile=/dev/null".to_owned());
                }
                if let Some(path) = key {
                    // Checked here, since the client only warns and then goes on to fail for want of a key.
                    fs_err::File::open(path).map_err(|error| {
                        Failure::new(ErrorKind::Refused, format!("failed to read the ssh key: {error}"))
                            .hint("`source.credentials.ssh_key` must be readable by the app's user")
                    })?;
                    has_key = true;
                    option("IdentitiesOnly=yes".to_owned());
                    option(format!("IdentityFile={}", option_path(path)?));
                }
            }
            Credentials::Token(_) | Credentials::Password { .. } => {
                return Err(Failure::new(ErrorKind::Unsupported, "a token or password is of no use for ssh".to_owned())
                    .hint("set `source.credentials.ssh_key`, or an https address"));
            }
        }
        if let Some(port) = target.port {
            words.extend(["-p".into(), port.to_string().into()]);
        }
        words.push("-T".into());
        words.push("--".into());
        words.push(match &target.user {
            Some(user) => format!("{user}@{}", target.host).into(),
            None => target.host.clone().into(),
        });
        words.push(format!("git-upload-pack {}", quoted(&target.path)).into());
        Ok(Self { words, host: target.host.clone(), has_key })
    }
}

/// Writes a path as `ssh_config(5)` reads it: `%` begins a token, a space ends a word, `"` cannot be written.
fn option_path(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().filter(|text| !text.contains(['"', '\n', '\\']) && !text.contains("${"));
    let text = text.ok_or_else(|| {
        Failure::new(ErrorKind::Unsupported, format!("ssh cannot be told of a file with this name: `{}`", path.display()))
    })?;
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// Quotes a path for the shell on the other side, as git does.
fn quoted(path: &str) -> String {
    format!("'{}'", path.replace('\'', r"'\''").replace('!', r"'\!'"))
}

/// What libgit2 calls.
pub(super) struct Subtransport {
    command: Command,
    trouble: Trouble,
}

impl Subtransport {
    pub(super) const fn new(command: Command, trouble: Trouble) -> Self {
        Self { command, trouble }
    }
}

impl SmartSubtransport for Subtransport {
    fn action(&self, _url: &str, action: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        match action {
            // Not a stateless transport: git2 hands this stream out again for `UploadPack`.
            Service::UploadPackLs => match Connection::open(&self.command, self.trouble.clone()) {
                Ok(connection) => Ok(Box::new(connection)),
                Err(failure) => Err(self.trouble.leave(failure)),
            },
            _ => Err(git2::Error::from_str("selfstart never pushes")),
        }
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// One running client.
struct Connection {
    child: Arc<Mutex<Child>>,
    to: Option<ChildStdin>,
    from: ChildStdout,
    complaint: Option<std::thread::JoinHandle<Vec<u8>>>,
    host: String,
    has_key: bool,
    trouble: Trouble,
}

impl Connection {
    fn open(command: &Command, trouble: Trouble) -> Result<Self, Failure> {
        let mut child = std::process::Command::new("ssh")
            .args(&command.words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Failure::new(ErrorKind::Unsupported, "there is no `ssh` client on this machine".to_owned())
                    .hint("install openssh-client, or use an https address"),
                _ => Failure::new(ErrorKind::Internal, format!("failed to start `ssh`: {error}")),
            })?;
        let (Some(to), Some(from), Some(mut stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(Failure::new(ErrorKind::Internal, "`ssh` was started without pipes".to_owned()));
        };
        // Read all the time, or a talkative server would block the client; the tail is kept, the complaint comes last.
        let complaint = std::thread::spawn(move || {
            let mut kept = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut buffer) {
                kept.extend_from_slice(&buffer[..read]);
                let excess = kept.len().saturating_sub(MAX_COMPLAINT);
                kept.drain(..excess);
            }
            kept
        });
        let child = Arc::new(Mutex::new(child));
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&child));
        Ok(Self { child, to: Some(to), from, complaint: Some(complaint), host: command.host.clone(), has_key: command.has_key, trouble })
    }

    /// Waits for the client's end, kills it if it lingers, and returns its exit code (`None`: killed) and last words.
    fn end(&mut self) -> (Option<i32>, String) {
        self.to = None;
        let give_up = clock::instant() + LAST_WORDS;
        let code = loop {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            match child.try_wait() {
                Ok(Some(status)) => break status.code(),
                Ok(None) if clock::instant() < give_up => {}
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break None;
                }
            }
            drop(child);
            std::thread::sleep(LOOK_EVERY);
        };
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let said = self.complaint.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        (code, String::from_utf8_lossy(&said).replace('\0', "").trim().to_owned())
    }

    /// Leaves why the connection ended, when it was before its time.
    fn ended(&mut self) {
        if self.complaint.is_none() {
            return;
        }
        let (code, said) = self.end();
        if code != Some(0) || !said.is_empty() {
            self.trouble.leave(verdict(&self.host, code, &said, self.has_key));
        }
    }
}

/// Tells what the client's complaint means; its texts are OpenSSH's and git's, stable for many years.
fn verdict(host: &str, code: Option<i32>, said: &str, has_key: bool) -> Failure {
    let has = |needles: &[&str]| {
        let said = said.to_ascii_lowercase();
        needles.iter().any(|needle| said.contains(needle))
    };
    let tail: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let tail = tail[tail.len().saturating_sub(4)..].join("; ");
    let failure = |kind, text: &str| Failure::new(kind, format!("{text}: {tail}"));
    if has(&["remote host identification has changed"]) {
        return failure(ErrorKind::HostKey, &format!("the ssh host key of {host} has CHANGED"))
            .hint("find out why (someone may stand between), then put the new key into `source.credentials.known_hosts`");
    }
    if has(&["host key verification failed", "host key is known for"]) {
        return failure(ErrorKind::HostKey, &format!("the ssh host key of {host} is not known")).hint(&format!(
            "`ssh-keyscan {host}`, compare with what its operator publishes, and put it into `source.credentials.known_hosts`"
        ));
    }
    if has(&[
        "permission denied (",
        "too many authentication failures",
        "unprotected private key",
        "no such identity",
        "error in libcrypto",
        "invalid format",
    ]) {
        return failure(ErrorKind::Refused, &format!("{host} does not take our ssh key")).hint(if has_key {
            "is the key registered there, without a passphrase, and of mode 0600?"
        } else {
            "set `source.credentials.ssh_key`"
        });
    }
    if has(&[
        "not appear to be a git repository",
        "repository not found",
        "does not exist",
        "no such file or directory",
        "could not be found",
    ]) {
        return failure(ErrorKind::NotFound, &format!("{host} has no such repository, or not for this key"));
    }
    if has(&["git-upload-pack: not found", "command not found"]) {
        return failure(ErrorKind::Unsupported, &format!("{host} has no git"));
    }
    match code {
        None => Failure::new(ErrorKind::Unreachable, format!("the ssh connection to {host} was lost: {tail}")),
        Some(code) => failure(ErrorKind::Unreachable, &format!("failed to reach {host} (ssh ended with {code})")),
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.from.read(buffer) {
            Ok(0) => {
                self.ended();
                Ok(0)
            }
            other => other,
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(to) = &mut self.to else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let written = to.write(bytes);
        if written.is_err() {
            self.ended();
        }
        written.map_err(|_| io::Error::other("the ssh connection is over"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.complaint.is_some() {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reaches_the_other_shell_as_one_word() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("a'; rm x; '!"), r"'a'\''; rm x; '\'''\!''");
    }

    #[test]
    fn a_file_name_reaches_the_client_as_it_is() {
        assert_eq!(option_path(Path::new("/a b/%h")).expect("written"), "\"/a b/%%h\"");
        assert!(option_path(Path::new("/a\"b")).is_err());
    }

    #[test]
    fn complaints_are_told_apart() {
        for (said, kind) in [
            ("Host key verification failed.", ErrorKind::HostKey),
            ("No ED25519 host key is known for [h]:22 and you have requested strict checking.", ErrorKind::HostKey),
            ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", ErrorKind::HostKey),
            ("git@h: Permission denied (publickey).", ErrorKind::Refused),
            ("ERROR: Repository not found.\nfatal: Could not read from remote repository.", ErrorKind::NotFound),
            ("fatal: '/x' does not appear to be a git repository", ErrorKind::NotFound),
            ("sh: 1: git-upload-pack: not found", ErrorKind::Unsupported),
            ("ssh: connect to host h port 22: Connection refused", ErrorKind::Unreachable),
            ("", ErrorKind::Unreachable),
        ] {
            assert_eq!(verdict("h", Some(255), said, true).kind, kind, "{said}");
        }
    }
}
