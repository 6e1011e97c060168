//! What the `ssh` client says, and what it means.
//!
//! It runs with `LogLevel=DEBUG1`, since only then it tells the fingerprint of a key that it does not know. Its texts are OpenSSH's and
//! git's, stable for many years, and each that is recognised has a test against the real thing (tests/git/ssh.rs). What a server says
//! counts only where a server may speak: not about host keys, and not about who is let in once it has let us in.

use std::path::Path;

use super::key::fingerprint_of_base64;
use crate::release::git::{ErrorKind, Failure};

/// The lines that are kept: the longest complaint, about a host key that has changed, is of 16.
const MAX_LINES: usize = 24;
/// The keys that are named when none was taken.
const MAX_OFFERED: usize = 6;
/// What the client says at this level beside `debug1:`, of no interest to anybody.
const CHATTER: [&str; 6] = ["debug1: ", "OpenSSH_", "Transferred: ", "Bytes per second: ", "Authenticated to ", "Authenticated with "];

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    /// The kind and the fingerprint of the key that the server showed first.
    shown: Option<(String, String)>,
    /// The server has the key that we know it by.
    known: bool,
    /// We are let in; from here on the other side's git speaks.
    inside: bool,
    /// The keys that were offered.
    offered: Vec<String>,
    /// The last lines that are no chatter.
    lines: Vec<String>,
}

/// Where the source is, as its messages name it.
#[derive(Clone, Debug)]
pub(super) struct Whom {
    /// `user@` if the address has one.
    pub(super) user: Option<String>,
    /// The name or address.
    pub(super) host: String,
    /// `None`: 22.
    pub(super) port: Option<u16>,
    /// What was offered: the key's file, an agent, or nothing that is configured.
    pub(super) by: By,
    /// The configured file of host keys.
    pub(super) known_hosts: Option<String>,
}

/// How we say who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// `source.credentials.ssh_key`.
    Key,
    /// `source.credentials.ssh_agent`.
    Agent,
    /// What the user has in `~/.ssh`.
    Home,
}

impl Whom {
    /// Returns the host as known_hosts names it (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).
    pub(super) fn marker(&self) -> String {
        match self.port {
            Some(port) if port != 22 => format!("[{}]:{port}", self.host),
            _ => self.host.clone(),
        }
    }
}

impl Complaint {
    /// Takes in a line.
    pub(super) fn say(&mut self, line: &str) {
        let line = line.trim();
        if self.inside && !CHATTER.iter().any(|chatter| line.starts_with(chatter)) {
            return self.keep(line);
        }
        if let Some(rest) = line.strip_prefix("debug1: ") {
            // The first one only: later a server may say what it likes.
            if let (None, Some((kind, fingerprint))) =
                (&self.shown, rest.strip_prefix("Server host key: ").and_then(|it| it.split_once(' ')))
            {
                self.shown = Some((kind.to_owned(), fingerprint.to_owned()));
            } else if rest.starts_with("Host '") && rest.contains(" is known and matches the ") {
                self.known = true;
            } else if rest.starts_with("Entering interactive session") {
                self.inside = true;
            } else if let Some(key) = rest.strip_prefix("Offering public key: ").filter(|_| self.offered.len() < MAX_OFFERED) {
                self.offered.push(key.trim_end_matches(" explicit").trim_end_matches(" agent").to_owned());
            }
        } else if line.starts_with("Authenticated to ") {
            self.inside = true;
        } else if !CHATTER.iter().any(|chatter| line.starts_with(chatter)) {
            self.keep(line);
        }
    }

    fn keep(&mut self, line: &str) {
        if line.is_empty() {
            return;
        }
        if self.lines.len() == MAX_LINES {
            self.lines.remove(0);
        }
        self.lines.push(line.replace('\0', ""));
    }

    /// Whether nothing was said that matters.
    pub(super) const fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Returns the kind and the fingerprint of the host key that was refused, if that is what it is about.
    pub(super) fn refused_host_key(&self) -> Option<(&str, &str)> {
        let about_key = self.has(&["host key verification failed", "host key is known for", "remote host identification has changed"]);
        let (kind, fingerprint) = self.shown.as_ref()?;
        (!self.known && !self.inside && about_key).then_some((kind, fingerprint))
    }

    fn has(&self, needles: &[&str]) -> bool {
        let said = self.lines.join("\n").to_ascii_lowercase();
        needles.iter().any(|needle| said.contains(needle))
    }

    /// Tells what it means that the client ended with `code` (`None`: killed). `line` is what known_hosts would need to take the key
    /// that was refused, if it could be had.
    pub(super) fn verdict(&self, whom: &Whom, code: Option<i32>, line: Option<&str>) -> Failure {
        let host = whom.marker();
        let tail = self.lines[self.lines.len().saturating_sub(4)..].join("; ");
        let failure = |kind, text: &str| Failure::new(kind, format!("{text}: {tail}"));
        if let Some((kind, fingerprint)) = self.refused_host_key() {
            return self.of_host_key(whom, kind, fingerprint, line);
        }
        if !self.inside {
            if self.has(&["permission denied (", "too many authentication failures"]) {
                return self.of_refusal(whom, &tail);
            }
            if self.has(&["bad configuration option", "unsupported option"]) {
                return failure(ErrorKind::Unsupported, "this machine's ssh client is too old").hint("install OpenSSH 7.6 or later");
            }
            if self.has(&["no user exists for uid"]) {
                return failure(ErrorKind::Unsupported, "the ssh client wants its user to have an account")
                    .hint("set `user:` to a user that has one");
            }
            if self.has(&["unable to negotiate with", "no matching host key type", "no matching key exchange"]) {
                return failure(ErrorKind::Unsupported, &format!("{host} and this machine's ssh client have no common algorithm"))
                    .hint("update whichever of the two is old");
            }
            return match code {
                None => failure(ErrorKind::Unreachable, &format!("the ssh connection to {host} was lost")),
                Some(code) => failure(ErrorKind::Unreachable, &format!("failed to reach {host} (ssh ended with {code})")),
            };
        }
        let nowhere = [
            "not appear to be a git repository",
            "repository not found",
            "does not exist",
            "no such file or directory",
            "could not be found",
        ];
        if self.has(&nowhere) {
            return failure(ErrorKind::NotFound, &format!("{host} has no such repository, or not for this key"));
        }
        if self.has(&["permission denied", "access denied", "not allowed", "unauthorized"]) {
            return failure(ErrorKind::Refused, &format!("{host} lets us in, but not to this repository"));
        }
        if self.has(&["git-upload-pack: not found", "command not found"]) {
            return failure(ErrorKind::Unsupported, &format!("{host} has no git"));
        }
        match code {
            None => failure(ErrorKind::Unreachable, &format!("the ssh connection to {host} was lost")),
            Some(code) => failure(ErrorKind::Unreachable, &format!("the ssh connection to {host} broke (ssh ended with {code})")),
        }
    }

    fn of_host_key(&self, whom: &Whom, kind: &str, fingerprint: &str, line: Option<&str>) -> Failure {
        let host = whom.marker();
        let file = whom.known_hosts.as_deref().unwrap_or("/etc/ssh/ssh_known_hosts");
        let line = line.map_or_else(
            || format!("what `ssh-keyscan -t {} -p {} {}` prints", scan_name(kind), whom.port.unwrap_or(22), whom.host),
            |line| format!("`{line}`"),
        );
        if self.has(&["was revoked", "is marked as revoked"]) {
            let text = format!("the ssh host key of {host} is REVOKED: it shows {kind} {fingerprint}");
            return Failure::new(ErrorKind::HostKey, text)
                .hint("whoever shows it is not to be trusted: ask its operator for the present key");
        }
        if self.has(&["remote host identification has changed"]) {
            let pinned = self.lines.iter().find_map(|line| {
                let (kind, place) = line.strip_prefix("Offending ")?.split_once(" key in ")?;
                let (file, number) = place.rsplit_once(':')?;
                Some((kind, file, number.parse::<usize>().ok()?))
            });
            let pinned = pinned.map_or_else(String::new, |(kind, file, number)| {
                let of_line = fingerprint_in(Path::new(file), number).map(|it| format!(" {it}")).unwrap_or_default();
                format!(", and line {number} of `{file}` pins {kind}{of_line}")
            });
            return Failure::new(ErrorKind::HostKey, format!("the ssh host key of {host} has CHANGED: it shows {kind} {fingerprint}{pinned}"))
                .hint(&format!(
                    "someone may stand between: compare that fingerprint with what its operator publishes; only if it is the same, replace that line by {line}"
                ));
        }
        Failure::new(ErrorKind::HostKey, format!("the ssh host key of {host} is not known: it shows {kind} {fingerprint}"))
            .hint(&format!("compare that fingerprint with what its operator publishes; only if it is the same, add to `{file}`: {line}"))
    }

    fn of_refusal(&self, whom: &Whom, tail: &str) -> Failure {
        let host = whom.marker();
        let who = whom.user.as_deref().unwrap_or("us");
        let tried =
            if self.offered.is_empty() { "no key was offered".to_owned() } else { format!("offered was {}", self.offered.join(", ")) };
        Failure::new(ErrorKind::Refused, format!("{host} does not let `{who}` in, {tried}: {tail}")).hint(
            match (whom.by, self.offered.is_empty()) {
                (By::Key, _) => "is that key registered there, and is the user in the address right (`git@` for most)?",
                (By::Agent, true) => "has the agent a key? `SSH_AUTH_SOCK=... ssh-add -l`, as the app's user",
                (By::Agent, false) => {
                    "is one of the agent's keys registered there, and is the user in the address right (`git@` for most)?"
                }
                (By::Home, _) => "set `source.credentials.ssh_key` or `source.credentials.ssh_agent`",
            },
        )
    }
}

/// Returns the fingerprint of the key in a line (from 1) of a file of host keys.
fn fingerprint_in(file: &Path, number: usize) -> Option<String> {
    let text = fs_err::read_to_string(file).ok()?;
    text.lines()
        .nth(number.checked_sub(1)?)?
        .split_whitespace()
        .rev()
        .find_map(|word| (word.len() > 40).then(|| fingerprint_of_base64(word))?)
}

/// Returns what `ssh-keyscan -t` calls a kind of key.
pub(super) fn scan_name(kind: &str) -> &str {
    match kind {
        "ssh-ed25519" => "ed25519",
        "ssh-rsa" => "rsa",
        _ if kind.starts_with("ecdsa-") => "ecdsa",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "debug1: Server host key: ssh-ed25519 SHA256:abc\n";

    fn whom() -> Whom {
        Whom { user: Some("git".into()), host: "h".into(), port: None, by: By::Key, known_hosts: None }
    }

    fn verdict(said: &str) -> Failure {
        let mut complaint = Complaint::default();
        said.lines().for_each(|line| complaint.say(line));
        complaint.verdict(&whom(), Some(255), None)
    }

    #[test]
    fn complaints_are_told_apart() {
        let unknown = format!(
            "{SHOWN}No ED25519 host key is known for [h]:22 and you have requested strict checking.\nHost key verification failed."
        );
        let changed = format!("{SHOWN}@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.");
        for (said, kind) in [
            (unknown.as_str(), ErrorKind::HostKey),
            (changed.as_str(), ErrorKind::HostKey),
            ("git@h: Permission denied (publickey).", ErrorKind::Refused),
            ("Authenticated to h\nERROR: Repository not found.\nfatal: Could not read from remote repository.", ErrorKind::NotFound),
            ("Authenticated to h\nfatal: '/x' does not appear to be a git repository", ErrorKind::NotFound),
            ("Authenticated to h\nsh: 1: git-upload-pack: not found", ErrorKind::Unsupported),
            ("Unable to negotiate with 10.0.0.1 port 22: no matching host key type found. Their offer: ssh-rsa", ErrorKind::Unsupported),
            ("command-line: line 0: Bad configuration option: x", ErrorKind::Unsupported),
            ("No user exists for uid 4711", ErrorKind::Unsupported),
            ("ssh: connect to host h port 22: Connection refused", ErrorKind::Unreachable),
            ("ssh: Could not resolve hostname h: Name or service not known", ErrorKind::Unreachable),
            ("Connection timed out during banner exchange", ErrorKind::Unreachable),
            ("kex_exchange_identification: Connection closed by remote host", ErrorKind::Unreachable),
            ("", ErrorKind::Unreachable),
        ] {
            assert_eq!(verdict(said).kind, kind, "{said}");
        }
    }

    #[test]
    fn a_server_that_is_known_cannot_make_us_doubt_its_key_nor_one_that_let_us_in_say_that_it_did_not() {
        let known = format!("{SHOWN}debug1: Host 'h' is known and matches the ED25519 host key.\n");
        let banner = "REMOTE HOST IDENTIFICATION HAS CHANGED\nHost key verification failed.\nadd SHA256:evil\n";
        assert_eq!(verdict(&format!("{known}{banner}git@h: Permission denied (publickey).")).kind, ErrorKind::Refused);
        let inside = format!("{known}Authenticated to h\ndebug1: Server host key: ssh-rsa SHA256:evil\n{banner}");
        assert_eq!(verdict(&inside).kind, ErrorKind::Unreachable);
        assert_eq!(verdict(&format!("{known}Authenticated to h\nPermission denied (publickey): no access")).kind, ErrorKind::Refused);
    }

    #[test]
    fn chatter_is_no_complaint() {
        let mut complaint = Complaint::default();
        for line in ["OpenSSH_9.2p1 Debian", "debug1: x", "Authenticated to h", "Transferred: sent 1", "Bytes per second: 3", ""] {
            complaint.say(line);
        }
        assert!(complaint.is_empty(), "{complaint:?}");
        (0..1000).for_each(|_| complaint.say("remote: noise"));
        assert_eq!(complaint.lines.len(), MAX_LINES);
    }
}
