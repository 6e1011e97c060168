//! git's smart protocol over the system's `ssh` client, for libgit2.
//!
//! The client and not a library, for its key exchanges, its known hosts, and security updates by the distribution. It reads no
//! configuration (`-F none`), never asks (`BatchMode`) and never learns a host key by itself (`StrictHostKeyChecking`, `UpdateHostKeys`).
//! A configured key is not given to it: it may ask [`agent`] for signatures (docs/decisions/0004).

mod agent;
mod complaint;
pub(crate) mod key;

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream};

use super::address::SshTarget;
use super::{CONNECT_TIMEOUT, Reach, STALL_TIMEOUT, Trouble};
use crate::release::git::{Credentials, ErrorKind, Failure, Secret};
use crate::sys::{clock, gate, process};
use complaint::{By, Complaint, Whom};
use key::PrivateKey;

/// The longest line of the client that is read whole; a server's novel is cut.
const MAX_LINE: usize = 4 * 1024;
/// How long a client whose connection is over may take to end before it is killed.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often it is looked whether it has ended; there is nothing to wait on for one child with a limit but `waitpid`.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The longest that is spent on asking a host for the key that it showed; it answered a moment ago.
const SCAN_TIMEOUT: Duration = Duration::from_secs(5);

/// What has to be installed where there is no client.
pub(crate) const INSTALL: &str =
    "install openssh-client (Debian, Ubuntu) or openssh-clients (Fedora, Amazon Linux), or use an https address";

/// The client that runs now, for the watchdog.
static RUNNING: Mutex<Option<Arc<Mutex<Child>>>> = Mutex::new(None);

/// Ends the client that runs now, if any.
pub(super) fn abandon() {
    if let Some(child) = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }
    agent::abandon();
}

/// Returns the ssh client along a PATH.
pub(crate) fn client(path: &OsStr) -> Option<PathBuf> {
    program(path, "ssh")
}

fn program(path: &OsStr, name: &str) -> Option<PathBuf> {
    let there = |file: &PathBuf| file.is_absolute() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok();
    std::env::split_paths(path).map(|folder| folder.join(name)).find(there)
}

/// How the client is started, and what it may ask for.
#[derive(Clone, Debug)]
pub(super) struct Command {
    program: PathBuf,
    path: OsString,
    words: Vec<OsString>,
    /// After the words that say where the agent is.
    target: Vec<OsString>,
    identity: Identity,
    whom: Whom,
    give_up: Instant,
}

/// How we say who we are.
#[derive(Clone, Debug)]
enum Identity {
    /// The key, and the name that it has in messages.
    Key(Arc<PrivateKey>, String),
    /// Somebody else's agent.
    Agent(PathBuf),
    /// What the user has in `~/.ssh`.
    Home,
}

impl Command {
    pub(super) fn new(target: &SshTarget, reach: &Reach) -> Result<Self, Failure> {
        let (identity, known_hosts) = match &reach.credentials {
            Credentials::None => (Identity::Home, None),
            Credentials::Ssh { key: Some(key), known_hosts, .. } => (Identity::of_key(&key.path, &key.text)?, known_hosts.as_deref()),
            Credentials::Ssh { agent: Some(socket), known_hosts, .. } => (Identity::Agent(socket.clone()), known_hosts.as_deref()),
            Credentials::Ssh { known_hosts, .. } => (Identity::Home, known_hosts.as_deref()),
            Credentials::Token(_) | Credentials::Password { .. } => {
                return Err(Failure::new(ErrorKind::Unsupported, "a token or password is of no use for ssh".to_owned())
                    .hint("set `source.credentials.ssh_key`, or an https address"));
            }
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = client(&path)
            .ok_or_else(|| Failure::new(ErrorKind::Unsupported, "there is no `ssh` client on this machine".to_owned()).hint(INSTALL))?;
        // No file of people's settings: what is fetched, and from where, is said by our configuration alone.
        let mut words: Vec<OsString> = ["-F", "none", "-T"].map(Into::into).into();
        let mut option = |text: String| words.extend(["-o".into(), text.into()]);
        option("BatchMode=yes".to_owned());
        option("StrictHostKeyChecking=yes".to_owned());
        option("UpdateHostKeys=no".to_owned());
        option("CheckHostIP=no".to_owned());
        option("PreferredAuthentications=publickey".to_owned());
        option("PasswordAuthentication=no".to_owned());
        // Without it the client does not say which key it was shown.
        option("LogLevel=DEBUG1".to_owned());
        option(format!("ConnectTimeout={}", reach.timeout.min(CONNECT_TIMEOUT).as_secs().max(1)));
        // Two unanswered questions: a dead connection is noticed within the stall time-out.
        option(format!("ServerAliveInterval={}", (reach.timeout.min(STALL_TIMEOUT).as_secs() / 3).max(1)));
        option("ServerAliveCountMax=2".to_owned());
        // Nobody's local commands, ports or display are wanted here.
        option("PermitLocalCommand=no".to_owned());
        option("ClearAllForwardings=yes".to_owned());
        option("ForwardAgent=no".to_owned());
        if let Some(path) = known_hosts {
            // Checked here: to the client a file that it cannot read is one in which no host is known.
            fs_err::File::open(path).map_err(|error| {
                Failure::new(ErrorKind::Refused, format!("failed to read the known hosts: {error}"))
                    .hint("`source.credentials.known_hosts` must be readable by the app's user")
            })?;
            option(format!("UserKnownHostsFile={}", option_path(path)?));
            option("GlobalKnownHostsFile=/dev/null".to_owned());
        }
        match &identity {
            // The agent has one key, and no other is wanted.
            Identity::Key(..) => option("IdentityFile=none".to_owned()),
            Identity::Agent(socket) => {
                std::os::unix::net::UnixStream::connect(socket).map_err(|error| {
                    Failure::new(ErrorKind::Refused, format!("failed to reach the ssh agent at `{}`: {error}", socket.display()))
                        .hint("it must run, and as the app's user: an agent answers nobody else")
                })?;
                option("IdentityFile=none".to_owned());
                option(format!("IdentityAgent={}", option_path(socket)?));
            }
            Identity::Home => option("IdentityAgent=none".to_owned()),
        }
        if let Some(port) = target.port {
            words.extend(["-p".into(), port.to_string().into()]);
        }
        let host = match &target.user {
            Some(user) => format!("{user}@{}", target.host),
            None => target.host.clone(),
        };
        let whom = Whom {
            user: target.user.clone(),
            host: target.host.clone(),
            port: target.port,
            by: match &identity {
                Identity::Key(..) => By::Key,
                Identity::Agent(_) => By::Agent,
                Identity::Home => By::Home,
            },
            known_hosts: known_hosts.map(|path| path.display().to_string()),
        };
        let target = vec!["--".into(), host.into(), format!("git-upload-pack {}", quoted(&target.path)).into()];
        Ok(Self { program, path, words, target, identity, whom, give_up: clock::instant() + reach.timeout })
    }

    /// Starts the client, with the agent that it may ask.
    fn start(&self) -> Result<(Child, Option<agent::Running>), Failure> {
        let failed = |what: &str, error: &io::Error| Failure::new(ErrorKind::Internal, format!("failed to {what}: {error}"));
        let mut words = self.words.clone();
        let waiting = match &self.identity {
            Identity::Key(key, name) => {
                let waiting = agent::Waiting::new().map_err(|error| failed("make a socket for `ssh`", &error))?;
                words.extend(["-o".into(), format!("IdentityAgent={}", option_path(&waiting.path())?).into()]);
                Some((waiting, Arc::clone(key), name.clone()))
            }
            _ => None,
        };
        let mut command = self.bare(&self.program);
        command.args(words).args(&self.target).stdin(Stdio::piped());
        let mut child = gate::spawn(&mut command).map_err(|error| failed("start `ssh`", &error))?;
        let running = waiting.map(|(waiting, key, name)| waiting.serve(key, name, self.whom.user.clone(), child.id())).transpose();
        match running {
            Ok(running) => Ok((child, running)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(failed("serve `ssh`", &error))
            }
        }
    }

    /// A program with an environment from nothing, that ends with us.
    fn bare(&self, program: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command.env_clear().env("PATH", &self.path).env("LC_ALL", "C").current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process::ends_with_us(&mut command);
        command
    }

    /// Asks the host once more for its key, and returns its line for known_hosts; `None`: it does not answer in time, or it shows another.
    fn line_of_host(&self, kind: &str, fingerprint: &str) -> Option<String> {
        let give_up = clock::instant() + SCAN_TIMEOUT.min(self.give_up.saturating_duration_since(clock::instant()) / 2);
        let mut command = self.bare(&program(&self.path, "ssh-keyscan")?);
        command.args(["-T", "5", "-t", complaint::scan_name(kind), "-p", &self.whom.port.unwrap_or(22).to_string(), &self.whom.host]);
        let mut child = gate::spawn(command.stderr(Stdio::null())).ok()?;
        let mut from = child.stdout.take()?;
        let child = Arc::new(Mutex::new(child));
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&child));
        wait(&child, give_up);
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut text = String::new();
        // It is gone, and a line fits into the pipe.
        from.by_ref().take(1 << 16).read_to_string(&mut text).ok()?;
        text.lines().find_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (found, key) = (words.next()?, words.next()?);
            let right = found == kind && key::fingerprint_of_base64(key).as_deref() == Some(fingerprint);
            right.then(|| format!("{} {found} {key}", self.whom.marker()))
        })
    }
}

impl Identity {
    fn of_key(path: &Path, text: &Secret) -> Result<Self, Failure> {
        let key = PrivateKey::parse(&text.0).map_err(|error| {
            Failure::new(ErrorKind::Refused, format!("the ssh key `{}` cannot be used: {error}", path.display())).hint(error.hint())
        })?;
        Ok(Self::Key(Arc::new(key), path.display().to_string()))
    }
}

/// Waits for a child until then, and kills it if it takes longer; returns its exit code (`None`: killed). The watchdog may end it meanwhile.
fn wait(child: &Mutex<Child>, give_up: Instant) -> Option<i32> {
    loop {
        let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
        match child.try_wait() {
            Ok(Some(status)) => return status.code(),
            Ok(None) if clock::instant() < give_up => {}
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
        drop(child);
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Reads what the client says to its end: all the time, or a talkative server would block it.
fn listen(mut stderr: ChildStderr) -> Complaint {
    let mut complaint = Complaint::default();
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer) {
        for byte in &buffer[..read] {
            match byte {
                b'\n' => complaint.say(&String::from_utf8_lossy(&std::mem::take(&mut line))),
                _ if line.len() < MAX_LINE => line.push(*byte),
                _ => {}
            }
        }
    }
    complaint.say(&String::from_utf8_lossy(&line));
    complaint
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
    complaint: Option<std::thread::JoinHandle<Complaint>>,
    /// Ended after its client.
    agent: Option<agent::Running>,
    command: Command,
    trouble: Trouble,
}

impl Connection {
    fn open(command: &Command, trouble: Trouble) -> Result<Self, Failure> {
        let (mut child, agent) = command.start()?;
        let (Some(to), Some(from), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(Failure::new(ErrorKind::Internal, "`ssh` was started without pipes".to_owned()));
        };
        let complaint = std::thread::spawn(move || listen(stderr));
        let child = Arc::new(Mutex::new(child));
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&child));
        Ok(Self { child, to: Some(to), from, complaint: Some(complaint), agent, command: command.clone(), trouble })
    }

    /// Waits for the client's end, kills it if it lingers, and returns its exit code (`None`: killed) and last words.
    fn end(&mut self) -> (Option<i32>, Complaint) {
        self.to = None;
        let code = wait(&self.child, clock::instant() + LAST_WORDS);
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.agent = None;
        let said = self.complaint.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        (code, said)
    }

    /// Leaves why the connection ended, when it was before its time.
    fn ended(&mut self) {
        if self.complaint.is_none() {
            return;
        }
        let (code, said) = self.end();
        if code != Some(0) || !said.is_empty() {
            let line = said.refused_host_key().and_then(|(kind, fingerprint)| self.command.line_of_host(kind, fingerprint));
            self.trouble.leave(said.verdict(&self.command.whom, code, line.as_deref()));
        }
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
}
