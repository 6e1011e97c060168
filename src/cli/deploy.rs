//! `selfstart deploy`, `rollback` and `releases`.

use clap::Args;
use selfstart_core::command::Command;
use selfstart_core::status::{ReleaseState, ReleaseStatus};
use serde::Serialize;

use super::ask::{self, Format, print, print_json, request};
use super::exit::Exit;
use super::failure::{Failure, Stop};
use super::look::{Cell, Column, Look, Row, Style, table};
use super::site::Site;
use crate::control::wire::Facts;

/// Flags of `deploy`.
#[derive(Args, Debug)]
pub(crate) struct DeployArgs {
    /// Deploy this branch, tag or revision instead of the configured one, this once
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Also a revision that failed here
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    answer: super::AnswerArgs,
}

/// Flags of `rollback`.
#[derive(Args, Debug)]
pub(crate) struct RollbackArgs {
    /// To this one instead of the previous good one: a release's name, or at least seven digits of a revision
    #[arg(long, value_name = "RELEASE|REVISION")]
    to: Option<String>,
    #[command(flatten)]
    answer: super::AnswerArgs,
}

/// Flags of `releases`.
#[derive(Args, Debug)]
pub(crate) struct ReleasesArgs {
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// Fetches and rolls out.
pub(crate) fn deploy(site: &Site, args: &DeployArgs) -> Result<Exit, Stop> {
    let command = Command::Deploy { reference: args.reference.clone(), force: args.force };
    ask::act(site, &request(command, args.answer.no_wait), args.answer.format())
}

/// Goes back, and holds.
pub(crate) fn rollback(site: &Site, args: &RollbackArgs) -> Result<Exit, Stop> {
    ask::act(site, &request(Command::Rollback { to: args.to.clone() }, args.answer.no_wait), args.answer.format())
}

/// Lists the releases.
pub(crate) fn releases(site: &Site, args: &ReleasesArgs) -> Result<Exit, Stop> {
    /// `{"schema": 1, "releases": [...]}`.
    #[derive(Serialize)]
    struct Listed {
        schema: u32,
        releases: Vec<ReleaseStatus>,
    }
    let Some(Facts::Releases(releases)) = ask::ask(site, Command::Releases {})?.facts else {
        return Err(Failure::new(Exit::Failed, "the agent's answer to `releases` has no releases in it").into());
    };
    match Format::json(args.json) {
        Format::Json => print_json(&Listed { schema: 1, releases })?,
        Format::Text => print(&render(&releases, &Look::of_stdout()))?,
    }
    Ok(Exit::Done)
}

fn render(releases: &[ReleaseStatus], look: &Look) -> String {
    const COLUMNS: [Column; 6] = [
        Column { title: "RELEASE", right: false, spare: 0 },
        Column { title: "REVISION", right: false, spare: 2 },
        Column { title: "STATE", right: false, spare: 0 },
        Column { title: "AGE", right: true, spare: 0 },
        Column { title: "SIZE", right: true, spare: 1 },
        Column { title: "USED BY", right: false, spare: 0 },
    ];
    if releases.is_empty() {
        return "there are no releases yet\n".into();
    }
    let row = |release: &ReleaseStatus| {
        let style = match release.state {
            ReleaseState::Live => Style::Good,
            ReleaseState::Failed => Style::Bad,
            ReleaseState::Staged | ReleaseState::Unknown => Style::Warn,
            ReleaseState::Built | ReleaseState::Retired => Style::Plain,
        };
        let used: Cell = match (&release.why, release.used_by.as_slice()) {
            (Some(why), []) => Cell::new(Style::Bad, why.lines().next().unwrap_or_default()),
            (_, []) => Cell::none(),
            (_, users) => used_by(users).into(),
        };
        Row::Cells(vec![
            release.release.as_str().into(),
            release.revision.short().into(),
            Cell::new(style, release.state.name()),
            look.ago(release.at).into(),
            release.size_bytes.map_or_else(Cell::none, |bytes| bytes.to_string().into()),
            used,
        ])
    };
    table(&COLUMNS, &releases.iter().map(row).collect::<Vec<_>>(), look)
}

/// Names the first few.
fn used_by(users: &[String]) -> String {
    const NAMED: usize = 4;
    let mut text = users.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if users.len() > NAMED {
        text.push_str(&format!(" and {} more", users.len() - NAMED));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::look::{Paint, tests::reader};
    use crate::control::wire::Answer;

    #[test]
    fn releases_as_a_pipe_sees_them() {
        let line =
            include_str!("../../tests/fixtures/control/answers-1.jsonl").lines().find(|line| line.contains("\"releases\"")).expect("it");
        let Ok(Answer::Done(done)) = Answer::parse(line.as_bytes()) else { panic!("not done") };
        let Some(Facts::Releases(mut releases)) = done.facts else { panic!("no releases") };
        releases[0].used_by = (0..10).map(|slot| format!("checkins/{slot}")).collect();
        insta::assert_snapshot!(render(&releases, &reader(None, Paint::Plain)));
        assert_eq!(render(&[], &reader(None, Paint::Plain)), "there are no releases yet\n");
    }
}
