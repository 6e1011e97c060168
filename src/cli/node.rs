//! `selfstart drain`, `hold`, `unhold`, `reload` and `wait`.

use std::thread;
use std::time::Duration;

use clap::Args;
use selfstart_core::command::Command;
use selfstart_core::time::{Human, parse_duration};
use serde::Serialize;

use super::ask::{self, Format, print, print_json, request};
use super::exit::Exit;
use super::failure::{Failure, Stop};
use super::site::Site;
use crate::control::client::ClientError;
use crate::control::wire::{Change, Facts, Outcome, Request};
use crate::sys::clock;

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
    /// Only show what would change: each value, old and new
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
    ask::act(site, &request(command, args.answer.no_wait), args.answer.format())
}

/// Holds updates.
pub(crate) fn hold(site: &Site, args: &HoldArgs) -> Result<Exit, Stop> {
    ask::act(site, &request(Command::Hold { why: args.why.clone() }, args.answer.no_wait), args.answer.format())
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
        return ask::act(site, &request(Command::Reload { plan: false }, args.answer.no_wait), args.answer.format());
    }
    let Some(Facts::Changes(changes)) = ask::ask(site, Command::Reload { plan: true })?.facts else {
        return Err(Failure::new(Exit::Failed, "the agent's answer to `reload --plan` has no plan in it").into());
    };
    match args.answer.format() {
        Format::Json => print_json(&Planned { schema: 1, changes })?,
        Format::Text => print(&ask::changes_text(&changes))?,
    }
    Ok(Exit::Done)
}

/// Waits until the pools are up. An agent that dies meanwhile comes back, and is asked again.
pub(crate) fn wait(site: &Site, args: &WaitArgs) -> Result<Exit, Stop> {
    // Who does not wait at all still hears how it is: an answer takes a moment.
    let deadline = args.timeout.and_then(|patience| clock::instant().checked_add(patience.max(ask::LOOK_AGAIN)));
    let request = Request::new(Command::Wait {});
    loop {
        match ask::try_act(site, &request, Format::Text, deadline) {
            Ok(outcome) => return ask::conclude(outcome, Format::Text),
            Err(ClientError::Late) => {
                let span = args.timeout.map(|timeout| Human(timeout).to_string()).unwrap_or_default();
                let mut failure = Failure::new(Exit::Failed, format!("the pools were not ready within {span}"));
                failure.causes.extend(failed_deploy(site));
                return Err(failure.hint("`selfstart status` shows which are not").into());
            }
            Err(ClientError::GoneAway) => {}
            // With a time-out, an agent that is not up yet is part of what is waited for.
            Err(ClientError::NoAgent(_)) if deadline.is_some_and(|deadline| clock::instant() < deadline) => {}
            Err(error) => return Err(ask::unreachable_agent(site, error)),
        }
        thread::sleep(ask::LOOK_AGAIN);
    }
}

/// What the last deploy failed by, for who waited for it in vain.
fn failed_deploy(site: &Site) -> Option<String> {
    let deadline = clock::instant().checked_add(Duration::from_secs(2));
    let outcome = ask::try_act(site, &Request::new(Command::Status {}), Format::Json, deadline).ok()?;
    let Outcome::Done(done) = outcome else { return None };
    let Some(Facts::Status(status)) = done.facts else { return None };
    let failed = status.deploy.last_error?;
    Some(format!("the last deploy failed: {}", failed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::ValueChange;

    #[test]
    fn a_plan_names_each_part_and_below_it_each_value() {
        let value = |key: &str, text: &str| ValueChange { key: key.into(), old: 1.into(), new: 2.into(), text: text.into() };
        let change = |key: &str, effect: &str, values| Change { key: key.into(), effect: effect.into(), restarts: Vec::new(), values };
        let changes = [
            change("pools.checkins", "minded otherwise", vec![value("pools.checkins.count", "10 → 12")]),
            change("build", "a new release is made", vec![value("build.env.A\u{1b}", "1 → 2\u{1b}"), value("user", "a → b")]),
            change("log", "counts for what is started from now on", Vec::new()),
        ];
        let text = "pools.checkins: minded otherwise\n  count: 10 → 12\nbuild: a new release is made\n  env.A?: 1 → 2?\n  user: a → b\n\
                    log: counts for what is started from now on\n";
        assert_eq!(ask::changes_text(&changes), text);
        assert_eq!(ask::changes_text(&[]), "nothing has changed\n");
    }
}
