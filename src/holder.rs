//! `selfstart internal-holder`: keeps the cgroups of the workers for as long as its unit runs (`systemd/selfstart-workers.service`).
//!
//! Workers must outlive the keeper, and systemd does not start a unit again whose own cgroup still has limited ones below it. So they
//! have a unit of their own, in which nothing runs but this: it makes room, says so, and waits.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::keeper::CGROUP_VARIABLE;
use crate::sys::cgroup::{self, HOLDER, Tree};
use crate::sys::notify::notify;
use crate::sys::signals::SignalFd;

/// How long what was killed may take to be gone: a process that is stuck in the kernel stays, and the stop of the unit must not hang on it.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Holds the cgroups until told to end; with `stop`, ends what is left in them.
pub(crate) fn main(stop: bool) -> ExitCode {
    let done = if stop { end_all() } else { hold() };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the cgroups of the workers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn hold() -> io::Result<()> {
    let signals = SignalFd::take()?;
    let (path, controllers) = cgroup::hold()?;
    let status = match controllers.is_empty() {
        true => format!("`{}` has no controllers: nothing is limited", path.display()),
        false => format!("`{}` limits {}", path.display(), controllers.join(", ")),
    };
    eprintln!("{status}");
    notify(&format!("READY=1\nSTATUS={status}"))?;
    loop {
        poll(&mut [PollFd::new(&signals, PollFlags::IN)], None)?;
        while let Some(number) = signals.next()? {
            if matches!(number, libc::SIGTERM | libc::SIGINT) {
                return Ok(());
            }
        }
    }
}

/// Kills whoever is in a cgroup of the tree but not of the holder: workers that nobody has drained.
fn end_all() -> io::Result<()> {
    let path = std::env::var_os(CGROUP_VARIABLE).ok_or_else(|| io::Error::other(format!("{CGROUP_VARIABLE} is not set")))?;
    let tree = Tree::open(Path::new(&path))?;
    // In a unit with Delegate=, systemd starts this very process in a cgroup `.control` of the tree (seen with 252): it would end itself,
    // perhaps before all others, and the unit be `failed` after each stop.
    let own = cgroup::own_path()?;
    let mut left = Vec::new();
    for name in tree.names()?.into_iter().filter(|name| name != HOLDER && tree.path().join(name) != own) {
        let group = tree.group(&name)?;
        if group.is_populated()? {
            eprintln!("{name} is still there, and is killed");
            let news = group.watch()?;
            group.kill()?;
            left.push((name, group, news));
        } else {
            tree.remove(&name)?;
        }
    }
    for (name, group, news) in left {
        let patience = Timespec { tv_sec: i64::try_from(GONE_WITHIN.as_secs()).unwrap_or(1), tv_nsec: 0 };
        while group.is_populated()? {
            if poll(&mut [PollFd::new(&news, PollFlags::PRI)], Some(&patience))? == 0 {
                return Err(io::Error::other(format!("{name} was killed and does not end")));
            }
            // Read, so that only what comes after it is news.
            group.reread(&news)?;
        }
        tree.remove(&name)?;
    }
    Ok(())
}
