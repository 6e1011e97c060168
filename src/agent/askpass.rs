//! `source.credentials.askpass`: a command that knows the password, asked as git asks one (gitcredentials(7)).
//!
//! Run by the agent itself, as the user that it is, since what it says is a secret that `user` must not see: with the question as
//! its last argument, once for the name and once for the password, before each fetch. An environment of PATH and LANG, nothing on its
//! standard input, its standard error thrown away: neither that nor what it answers is shown or written anywhere.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use selfstart_core::time::Human;

use super::{PATH, chain, is_apart};
use crate::release::git::Secret;
use crate::rights::trust;
use crate::sys::{clock, gate, process};

/// What each of the two questions may take: a program that asks another machine, no person.
const LONGEST: Duration = Duration::from_secs(30);
/// No password is near it.
const MAX_ANSWER: u64 = 64 * 1024;
/// Who asks, where the command names nobody: what GitHub and GitLab take with a token.
const NOBODY: &str = "x-access-token";

/// Asks for user and password of an address.
///
/// # Errors
/// Why it did not answer; never what it said.
pub(super) fn ask(command: &[String], url: &str) -> Result<(Secret, Secret), String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let place = rest.split('/').next().unwrap_or_default();
    let (named, host) = place.rsplit_once('@').map_or((None, place), |(user, host)| (Some(user), host));
    let (name, place) = match named {
        Some(name) => {
            let name = name.split(':').next().unwrap_or_default();
            (name.to_owned(), format!("{name}@{host}"))
        }
        // An answer may be a token: it is not in the next question, which everybody may read in /proc.
        None => (answer(command, &format!("Username for '{scheme}://{host}': "))?, host.to_owned()),
    };
    let name = if name.is_empty() { NOBODY.to_owned() } else { name };
    let password = answer(command, &format!("Password for '{scheme}://{place}': "))?;
    if password.is_empty() {
        return Err(format!("source.credentials.askpass: {} answered nothing when asked for the password", shown(command)));
    }
    Ok((Secret(name), Secret(password)))
}

/// Looks whether the program is there and, where root can be told from others, root's alone: it is run with our rights, and who could
/// change it would have them. Its arguments name no file (the configuration refuses a `/` in them; it is run in `/`, which is root's).
///
/// # Errors
/// What is wrong with it.
pub(crate) fn trusted(command: &[String]) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |why: &dyn std::fmt::Display| format!("source.credentials.askpass: {}: {why}", shown(command));
    let mut program = std::path::PathBuf::from(command.first().ok_or_else(|| failed(&"no command"))?);
    if is_apart() || rustix::process::geteuid().is_root() {
        program = trust::way(&program, trust::End::Root).map_err(|error| failed(&chain(&error)))?;
    }
    let found = fs_err::metadata(&program).map_err(|error| failed(&error))?;
    if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
        return Err(failed(&"it is no program (`chmod 0755` it)"));
    }
    Ok(())
}

fn shown(command: &[String]) -> String {
    format!("`{}`", command.first().map_or("", String::as_str))
}

fn answer(command: &[String], question: &str) -> Result<String, String> {
    let failed = |why: &dyn std::fmt::Display| format!("source.credentials.askpass: {}: {why}", shown(command));
    let (program, words) = command.split_first().ok_or_else(|| failed(&"no command"))?;
    trusted(command)?;
    let mut asked = Command::new(program);
    asked.args(words).arg(question).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").current_dir("/");
    asked.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    process::ends_with_us(&mut asked);
    let mut child = gate::spawn(&mut asked).map_err(|error| failed(&error))?;
    let heard = listen(&mut child, clock::instant() + LONGEST, MAX_ANSWER);
    if !matches!(heard, Ok(Some(_))) {
        // All that it started, too.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    let ended = child.wait().map_err(|error| failed(&error))?;
    let text = heard.map_err(|error| failed(&error))?.ok_or_else(|| failed(&format_args!("not done within {}", Human(LONGEST))))?;
    if !ended.success() {
        return Err(failed(&format_args!("it ended with {ended}")));
    }
    let text = String::from_utf8(text).map_err(|_| failed(&"its answer is no text"))?;
    // As git: what ends the line is not part of it.
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Reads the answer until the command has ended; `None`: it took too long.
pub(super) fn listen(child: &mut Child, until: Instant, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        loop {
            if !ready(stdout.as_fd(), until)? {
                return Ok(None);
            }
            let mut piece = [0; 4096];
            let read = stdout.read(&mut piece)?;
            if read == 0 {
                break;
            }
            text.extend_from_slice(&piece[..read]);
            if text.len() as u64 > most {
                return Err(io::Error::other(format!("its answer is longer than {} KiB", most >> 10)));
            }
        }
    }
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    Ok(ready(pidfd.as_fd(), until)?.then_some(text))
}

/// Waits until there is something to read; `false`: not in time.
fn ready(fd: BorrowedFd<'_>, until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(clock::instant());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&left)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        // Its link may not be root's alone; the shell itself is.
        ["/bin/sh", "-c", script, "askpass"].map(str::to_owned).to_vec()
    }

    #[test]
    fn it_is_asked_as_git_asks_and_its_first_line_counts() {
        let both = "case $1 in Username*) echo me;; *\"'https://h:8443'\"*) printf 'pass word\\r\\nmore\\n';; esac";
        let asked = ask(&sh(both), "https://h:8443/a/b.git").map(|(name, password)| (name.0, password.0));
        assert_eq!(asked, Ok(("me".into(), "pass word".into())));
        let asked = ask(&sh("echo \"$1\""), "https://joe@h/a").map(|(name, password)| (name.0, password.0));
        assert_eq!(asked, Ok(("joe".into(), "Password for 'https://joe@h': ".into())));
        let asked = ask(&sh("case $1 in Pass*) echo t;; esac"), "https://h/a").map(|(name, password)| (name.0, password.0));
        assert_eq!(asked, Ok((NOBODY.into(), "t".into())));
    }

    #[test]
    fn what_goes_wrong_is_told_and_what_it_said_is_not() {
        for (script, words) in [
            ("echo hunter2; echo hunter2 >&2; exit 3", "exit status: 3"),
            ("true", "answered nothing"),
            ("printf 'hunter2\\377'", "no text"),
            ("while :; do echo hunter2hunter2hunter2hunter2; done", "longer than 64 KiB"),
            ("kill -9 $$", "signal: 9"),
        ] {
            let error = ask(&sh(script), "https://joe@h/a").map(drop).expect_err(script);
            assert!(error.contains(words) && error.contains("`/bin/sh`") && !error.contains("hunter2"), "{script}: {error}");
        }
        let error = ask(&["/nowhere/x".to_owned()], "https://h/a").map(drop).expect_err("none");
        assert!(error.contains("/nowhere"), "{error}");
        let mut hangs = Command::new("/bin/sleep").arg("600").stdout(Stdio::piped()).spawn().expect("started");
        assert!(matches!(listen(&mut hangs, clock::instant() + Duration::from_millis(20), MAX_ANSWER), Ok(None)));
        hangs.kill().and_then(|()| hangs.wait()).expect("ended");
    }
}
