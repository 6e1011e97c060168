//! `selfstart drain`, `hold`, `unhold`, `reload` and `wait`.

use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use selfstart_core::command::Command;
use selfstart_core::time::parse_duration;
use serde::Serialize;

use super::ask::{self, Format, print, print_json, request};
use super::exit::Exit;
use super::failure::{Failure, Stop};
use super::look::clean;
use super::site::Site;
use crate::control::wire::{Change, Facts, Request};

/// Flags of `drain` and `unhold`.
#[derive(Args, Debug)]
pub(crate) struct PlainArgs {
    #[command(flatten)]
    answer: super::AnswerArgs,
}

/// Flags of `hold`.
#[derive(Args, Debug)]
pub(crate) struct HoldArgs {
    /// Shown by `status` to whoever wonders
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    #[command(flatten)]
    answer: super::AnswerArgs,
}

/// Flags of `reload`.
#[derive(Args, Debug)]
pub(crate) struct ReloadArgs {
    /// Only show what would change
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    answer: super::AnswerArgs,
}

/// Flags of `wait`.
#[derive(Args, Debug)]
pub(crate) struct WaitArgs {
    /// Until every pool has its workers ready (also the default: there is nothing else to wait for)
    #[arg(long)]
    ready: bool,
    /// Give up after this long, e.g. 90s; until then an agent that is not there yet is waited for, too
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| format!("{error}; write it like 90s, 10m or 1h30m"))
}

/// Asks for a command without arguments.
pub(crate) fn plain(site: &Site, args: &PlainArgs, command: Command) -> Result<Exit, Stop> {
    ask::act(site, &request(command, args.answer.no_wait), args.answer.format(), None)
}

/// Holds updates.
pub(crate) fn hold(site: &Site, args: &HoldArgs) -> Result<Exit, Stop> {
    ask::act(site, &request(Command::Hold { why: args.why.clone() }, args.answer.no_wait), args.answer.format(), None)
}

/// Applies a changed configuration, or shows what that would do.
pub(crate) fn reload(site: &Site, args: &ReloadArgs) -> Result<Exit, Stop> {
    /// `{"schema": 1, "changes": [...]}`.
    #[derive(Serialize)]
    struct Planned {
        schema: u32,
        changes: Vec<Change>,
    }
    if !args.plan {
        return ask::act(site, &request(Command::Reload { plan: false }, args.answer.no_wait), args.answer.format(), None);
    }
    let Some(Facts::Changes(changes)) = ask::ask(site, &Request::new(Command::Reload { plan: true }))?.facts else {
        return Err(Failure::new(Exit::Failed, "the agent's answer to `reload --plan` has no plan in it").into());
    };
    match args.answer.format() {
        Format::Json => print_json(&Planned { schema: 1, changes })?,
        Format::Text => print(&render(&changes))?,
    }
    Ok(Exit::Done)
}

fn render(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing would change\n".into();
    }
    changes.iter().map(|change| format!("{}: {}\n", clean(&change.key), clean(&change.effect))).collect()
}

/// Between two looks for an agent that is not there yet; it has to boot, and nothing tells when it has.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Waits until the pools are up.
pub(crate) fn wait(site: &Site, args: &WaitArgs) -> Result<Exit, Stop> {
    let deadline = ask::within(args.timeout);
    loop {
        match ask::act(site, &Request::new(Command::Wait {}), Format::Text, deadline) {
            // With a time-out, an agent that is not up yet or comes back from a crash is part of what is waited for.
            Err(Stop::Failed(failure)) if failure.exit == Exit::NoAgent && deadline.is_some_and(|deadline| Instant::now() < deadline) => {
                thread::sleep(LOOK_AGAIN);
            }
            Err(Stop::Failed(failure)) if failure.what == crate::control::client::ClientError::Late.to_string() => {
                let span = args.timeout.map(super::look::age).unwrap_or_default();
                return Err(Failure::new(Exit::Failed, format!("the pools were not ready within {span}"))
                    .hint("`selfstart status` shows which are not")
                    .into());
            }
            ended => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_line_for_each_key() {
        let changes = [Change { key: "pools.checkins.count".into(), effect: "10 -> 12: starts 2 workers".into(), restarts: Vec::new() }];
        assert_eq!(render(&changes), "pools.checkins.count: 10 -> 12: starts 2 workers\n");
        assert_eq!(render(&[]), "nothing would change\n");
    }
}
