//! `selfstart upgrade`: puts a program beside the one that runs, has the keeper and the agent renewed, and says what came of it.
//!
//! Who may put a file beside the program (root, where that is in /usr/bin) may choose what is executed, and nobody else: the request itself
//! names no file.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::thread;
use std::time::Duration;

use clap::Args;
use rustix::fs::{Mode, OFlags};
use selfstart_core::command::Command;
use selfstart_core::status::{AgentStatus, UpgradeStatus};

use super::ask::{self, Format};
use super::exit::Exit;
use super::failure::{Failure, Stop};
use super::site::Site;
use crate::control::client::ClientError;
use crate::control::wire::{Done, Facts, Failed, Outcome, Request};
use crate::keeper::beside;
use crate::sys::gate;
use crate::sys::{clock, sync};

/// The rehearsal, the end of the agent, the trial and the way back have 10 s each; then the agent that is back answers.
const KNOWN_WITHIN: Duration = Duration::from_secs(45);

/// What is smaller cannot be it, what is larger is not either.
const SENSIBLE: std::ops::RangeInclusive<u64> = 100_000..=1_000_000_000;

/// Flags of `upgrade`.
#[derive(Args, Debug)]
pub(crate) struct UpgradeArgs {
    /// The new program. It takes the place of the one that was started when it has passed its trial; default: the one that lies there
    /// already, as after an upgrade of the package
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Renews selfstart.
pub(crate) fn upgrade(site: &Site, args: &UpgradeArgs) -> Result<Exit, Stop> {
    let format = Format::json(args.json);
    let before = agent(site)?;
    let Some(program) = before.program.as_ref().map(PathBuf::from) else {
        let failure = Failure::new(Exit::Failed, "the selfstart that runs cannot be asked to renew itself: it is too old");
        return Err(failure.hint("put the new program in place, then stop and start it").into());
    };
    let placed = match &args.binary {
        Some(binary) => Some(place(binary, &program)?),
        None => None,
    };
    let outcome = asked(site, &Request::new(Command::Upgrade { placed: placed.is_some() }), &before);
    let outcome = outcome.inspect_err(|_| placed.iter().for_each(Placed::remove))?;
    match (&outcome, &placed) {
        (Outcome::Done(_), Some(placed)) => placed.sync(),
        (_, Some(placed)) => placed.remove(),
        (_, None) => {}
    }
    ask::conclude(outcome, format)
}

/// What the agent says of itself.
fn agent(site: &Site) -> Result<AgentStatus, Stop> {
    match ask::ask(site, Command::Status {})?.facts {
        Some(Facts::Status(status)) => Ok(status.agent),
        _ => Err(Failure::new(Exit::Failed, "the agent's answer to `status` has no status in it").into()),
    }
}

/// Asks, and when the agent goes away, as it does when the new program is on trial, asks the next one what came of it.
fn asked(site: &Site, request: &Request, before: &AgentStatus) -> Result<Outcome, Stop> {
    match ask::try_act(site, request, Format::Text, None) {
        Ok(outcome) => return Ok(outcome),
        Err(ClientError::GoneAway) => ask::note("the new program understands the state, and is on trial"),
        Err(error) => return Err(ask::unreachable_agent(site, error)),
    }
    let number = |upgrade: &Option<UpgradeStatus>| upgrade.as_ref().map_or(0, |upgrade| upgrade.number);
    let end = clock::instant() + KNOWN_WITHIN;
    loop {
        // One on trial answers too, before it has passed.
        match agent(site) {
            Ok(now) if number(&now.upgrade) > number(&before.upgrade) => {
                let Some(upgrade) = now.upgrade else { continue };
                return Ok(match upgrade.done {
                    true => Outcome::Done(Box::new(Done { text: upgrade.text, ..Done::default() })),
                    false => Outcome::Failed(Failed {
                        reason: upgrade.text,
                        hint: Some("workers were not touched; `selfstart events` and the log say more".to_owned()),
                        ..Failed::default()
                    }),
                });
            }
            Err(stop) if clock::instant() >= end => return Err(stop),
            Ok(_) if clock::instant() >= end => {
                let failure = Failure::new(Exit::Failed, format!("nothing is known of the upgrade after {} s", KNOWN_WITHIN.as_secs()));
                return Err(failure.hint("`selfstart events` tells what becomes of it").into());
            }
            _ => thread::sleep(ask::LOOK_AGAIN),
        }
    }
}

/// A program that was put beside the one that runs.
struct Placed {
    path: PathBuf,
    file: (u64, u64),
}

impl Placed {
    /// Removes it, if it is still the one that was put there.
    fn remove(&self) {
        if fs_err::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file) {
            let _stays = gate::remove_file(&self.path);
        }
    }

    /// The keeper has renamed it: lets that survive a power cut.
    fn sync(&self) {
        if let Some(Err(error)) = self.path.parent().map(sync::sync_directory) {
            ask::warn(&format!("the new program is in place, and may not be after a power cut: {error}"));
        }
    }
}

/// Copies the new program beside the one that runs, whole and on the disk.
fn place(binary: &Path, program: &Path) -> Result<Placed, Stop> {
    let what = || format!("failed to take `{}`", binary.display());
    let failed = |error: std::io::Error| Failure::because(Exit::Failed, what(), &error);
    let mut from = fs_err::File::open(binary).map_err(failed)?;
    let found = from.metadata().map_err(failed)?;
    let mut head = [0; 4];
    let is_program = found.is_file() && from.read_exact(&mut head).is_ok() && &head == b"\x7fELF";
    if !is_program || !SENSIBLE.contains(&found.len()) {
        return Err(Failure::new(Exit::Failed, format!("`{}` is no selfstart: it is no program of its size", binary.display())).into());
    }
    warn_of_package(program);
    let path = beside(program);
    let temporary = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
    let copied = copy(&mut from, &temporary).and_then(|file| {
        gate::rename(&temporary, &path)?;
        Ok(file)
    });
    match copied {
        Ok(file) => Ok(Placed { path, file }),
        Err(error) => {
            let _was_not_made = gate::remove_file(&temporary);
            let denied = matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem);
            let exit = if denied { Exit::Refused } else { Exit::Failed };
            let failure = Failure::because(exit, format!("failed to put it beside `{}`", program.display()), &error);
            Err(if denied { failure.hint("who may write there may renew selfstart: run this as root") } else { failure }.into())
        }
    }
}

fn copy(from: &mut fs_err::File, to: &Path) -> std::io::Result<(u64, u64)> {
    use std::io::Seek;
    from.rewind()?;
    let mut file = gate::File::open(to, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, 0o755)?;
    std::io::copy(from, &mut file)?;
    // Whatever the umask is.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o755))?;
    file.sync_all()?;
    let made = rustix::fs::fstat(&file)?;
    Ok((made.st_dev, made.st_ino))
}

/// A package's file that is replaced comes back with the next version of the package, and `dpkg --verify` shows it until then.
fn warn_of_package(program: &Path) {
    let asked = gate::output(Program::new("dpkg-query").arg("-S").arg(program).stdin(Stdio::null()).stderr(Stdio::null()));
    let Some(answer) = asked.ok().filter(|asked| asked.status.success()) else { return };
    if let Some((package, _)) = String::from_utf8_lossy(&answer.stdout).split_once(':') {
        ask::warn(&format!(
            "`{}` belongs to the package `{package}`, whose next version replaces this one; to upgrade the package is enough",
            program.display()
        ));
    }
}
