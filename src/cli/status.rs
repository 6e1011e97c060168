//! `selfstart status`: the node at a glance.

use std::time::Duration;

use clap::Args;
use selfstart_core::command::Command;
use selfstart_core::date::Timestamp;
use selfstart_core::status::{AgentState, DeployPhase, DeployStatus, JobStatus, PoolStatus, SlotState, SlotStatus, Status};

use super::ask::{self, Format, note, print, print_json};
use super::events::{STOPPED, StopWatch};
use super::exit::Exit;
use super::failure::{Failure, Stop};
use super::look::{Cell, Column, Look, Paint, Row, Style, across, age, clean, table, wrap};
use super::site::Site;
use crate::control::wire::Facts;

/// How often `-w` looks again.
const EVERY: Duration = Duration::from_secs(1);

/// Flags of `status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Print the snapshot as JSON
    #[arg(long)]
    json: bool,
    /// Go on and show every change, once a second
    #[arg(short, long)]
    watch: bool,
}

/// Shows the snapshot.
pub(crate) fn status(site: &Site, args: &StatusArgs) -> Result<Exit, Stop> {
    let format = Format::json(args.json);
    if args.watch {
        return watch(site, format);
    }
    let status = fetch(site)?;
    match format {
        Format::Json => print_json(&status)?,
        Format::Text => print(&render(&status, &Look::of_stdout()))?,
    }
    Ok(Exit::Done)
}

/// Asks for the snapshot.
pub(crate) fn fetch(site: &Site) -> Result<Status, Stop> {
    match ask::ask(site, Command::Status {})?.facts {
        Some(Facts::Status(status)) => Ok(*status),
        _ => Err(Failure::new(Exit::Failed, "the agent's answer to `status` has no status in it").into()),
    }
}

/// Draws over itself on a terminal; elsewhere, and as JSON, one snapshot after the other when something changed.
fn watch(site: &Site, format: Format) -> Result<Exit, Stop> {
    let mut drawn = 0;
    let mut told = String::new();
    // Who may see the status may not be one who may read the events.
    let mut node = StopWatch::new(site).ok();
    let mut stopped = || node.as_mut().is_some_and(|node| node.stopped().unwrap_or(false));
    loop {
        let look = Look::of_stdout();
        let fetched = fetch(site);
        // Asked each time: a stop that was followed by a start is over.
        let stopped = stopped();
        let frame = match fetched {
            Ok(status) if format == Format::Json => {
                let error = |error| Failure::because(Exit::Failed, "failed to write the status as JSON", &error);
                format!("{}\n", serde_json::to_string(&status).map_err(error)?)
            }
            Ok(status) => render(&status, &look),
            Err(_) if !told.is_empty() && stopped => {
                note(STOPPED);
                return Ok(Exit::Done);
            }
            // An agent that is killed is back within a second: a watcher stays. The first look tells a typing error.
            Err(Stop::Failed(failure)) if !told.is_empty() && look.terminal => failure.render(Paint::Plain),
            Err(stop) => return Err(stop),
        };
        if look.terminal && format == Format::Text {
            let frame = fit(&frame, &look);
            print(&redraw(&frame, drawn))?;
            drawn = frame.lines().count();
        } else if frame != told {
            print(&frame)?;
        }
        told = frame;
        std::thread::sleep(EVERY);
    }
}

/// Moves up over the former frame, draws the new one, clears what is left of the former.
fn redraw(frame: &str, former_lines: usize) -> String {
    let up = if former_lines == 0 { String::new() } else { format!("\x1b[{former_lines}A") };
    let lines: String = frame.lines().map(|line| format!("{line}\x1b[K\n")).collect();
    format!("\r{up}{lines}\x1b[J")
}

/// Leaves out the last lines of a frame that is higher than the terminal: moving up stops at its top.
fn fit(frame: &str, look: &Look) -> String {
    let lines: Vec<_> = frame.lines().collect();
    match look.height {
        Some(height) if lines.len() >= height && height > 2 => {
            let kept = height - 2;
            format!("{}\n… {} more lines\n", lines[..kept].join("\n"), lines.len() - kept)
        }
        _ => frame.to_owned(),
    }
}

/// Draws the snapshot.
pub(crate) fn render(status: &Status, look: &Look) -> String {
    let mut lines: Vec<(&str, Vec<Cell>)> = Vec::new();
    let agent = &status.agent;
    let (state, style) = match agent.state {
        AgentState::Running => ("running", Style::Good),
        AgentState::Draining => ("draining", Style::Warn),
        AgentState::Drained => ("drained", Style::Warn),
        AgentState::Unknown => ("in a state that this version does not know", Style::Warn),
    };
    let roles = if status.node.roles.is_empty() { String::new() } else { format!(" ({})", status.node.roles.join(", ")) };
    lines.push(("app", vec![Cell::new(Style::Strong, &status.app), format!("on {}{roles}", status.node.id).into()]));
    if !status.node.pools_elsewhere.is_empty() {
        lines.push(("not here", vec![format!("{} (`only:` is for other nodes)", status.node.pools_elsewhere.join(", ")).into()]));
    }
    lines.push((
        "agent",
        vec![
            Cell::new(style, state),
            format!("for {},", look.ago(agent.started_at)).into(),
            format!("version {}, pid {}, keeper {}", agent.version, agent.pid, agent.keeper_pid).into(),
        ],
    ));
    deploy_lines(&status.deploy, look, &mut lines);
    const LABEL: usize = 9;
    let narrow = Look { width: look.width.map(|width| width.saturating_sub(LABEL)), ..look.clone() };
    let mut text = String::new();
    for (label, cells) in &lines {
        text.push_str(&labelled(label, &across(cells, &narrow), look));
    }
    // What an operator must see is wrapped, not cut.
    for (label, style, words) in trouble(status, look) {
        for (number, line) in wrap(&clean(&words), narrow.width).iter().enumerate() {
            text.push_str(&labelled(if number == 0 { label } else { "" }, &look.paint.on(style, line), look));
        }
    }
    if status.pools.is_empty() {
        return text;
    }
    text.push('\n');
    text.push_str(&pools(status, look));
    text
}

fn deploy_lines(deploy: &DeployStatus, look: &Look, lines: &mut Vec<(&str, Vec<Cell>)>) {
    match &deploy.live {
        Some(live) => {
            let release = live.release.as_ref().map_or_else(|| live.revision.short().to_owned(), ToString::to_string);
            let since = format!("live since {} ({} ago)", look.time(live.at), look.ago(live.at));
            lines.push(("release", vec![Cell::new(Style::Strong, release), since.into()]));
        }
        None => lines.push(("release", vec![Cell::new(Style::Warn, "none is live yet")])),
    }
    let idle = deploy.phase == DeployPhase::Idle;
    lines.push(("deploy", vec![Cell::new(if idle { Style::Plain } else { Style::Warn }, ask::with_detail(deploy))]));
    if let Some(wanted) = deploy.wanted.as_ref().filter(|wanted| deploy.live.as_ref().is_none_or(|live| live.revision != wanted.revision)) {
        lines.push(("wanted", vec![wanted.revision.short().into(), format!("since {}", look.time(wanted.at)).into()]));
    }
}

/// What keeps the node from being as it should: label, colour, sentence.
fn trouble(status: &Status, look: &Look) -> Vec<(&'static str, Style, String)> {
    let deploy = &status.deploy;
    let mut told = Vec::new();
    if deploy.held {
        let why = match &deploy.hold {
            Some(hold) if hold.why.is_empty() => format!("by {} since {}", hold.by, look.time(hold.at)),
            Some(hold) => format!("by {} since {}: {}", hold.by, look.time(hold.at), hold.why),
            None => "no updates until `selfstart unhold`".into(),
        };
        told.push(("held", Style::Warn, why));
    }
    if let Some(pending) = &deploy.pending {
        let what = pending.reference.as_ref().map_or_else(|| "a deploy".to_owned(), |name| format!("a deploy of `{name}`"));
        let when = match status.agent.state {
            AgentState::Draining | AgentState::Drained if deploy.held => "`selfstart start` and `selfstart unhold` let it go on",
            AgentState::Draining | AgentState::Drained => "`selfstart start` lets it go on",
            _ if deploy.held => "`selfstart unhold` lets it go on",
            _ => "its turn comes next",
        };
        told.push(("pending", Style::Warn, format!("{what} is remembered: {when}")));
    }
    if let Some(error) = &deploy.last_error {
        let at = deploy.last_error_at.map(|at| format!("{}: ", look.time(at))).unwrap_or_default();
        told.push(("failed", Style::Bad, format!("{at}{}", one_line(error))));
    }
    for quarantined in &deploy.quarantined {
        told.push(("bad", Style::Warn, format!("{} is not tried again: {}", quarantined.revision.short(), one_line(&quarantined.why))));
    }
    if let Some(upgrade) = status.agent.upgrade.as_ref().filter(|upgrade| !upgrade.done) {
        told.push(("upgrade", Style::Warn, one_line(&upgrade.text).to_owned()));
    }
    let in_one_line = |text: &String| text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
    told.extend(status.notes.iter().map(|note| ("note", Style::Bad, in_one_line(note))));
    told
}

fn labelled(label: &str, text: &str, look: &Look) -> String {
    format!("{}\n", format!("{} {text}", look.paint.on(Style::Faint, &format!("{label:<8}"))).trim_end())
}

/// The first line of a text: the others are in the log.
fn one_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

const COLUMNS: [Column; 9] = [
    Column { title: "SLOT", right: false, spare: 0 },
    Column { title: "STATE", right: false, spare: 0 },
    Column { title: "PID", right: true, spare: 4 },
    Column { title: "AGE", right: true, spare: 2 },
    Column { title: "MEMORY", right: true, spare: 1 },
    Column { title: "RESTARTS", right: true, spare: 5 },
    Column { title: "REVISION", right: false, spare: 6 },
    Column { title: "JOB", right: false, spare: 3 },
    Column { title: "LAST END", right: false, spare: 0 },
];

fn pools(status: &Status, look: &Look) -> String {
    let live = status.deploy.live.as_ref().map(|live| &live.revision);
    let mut rows = Vec::new();
    for pool in &status.pools {
        rows.push(Row::Across(heading(pool)));
        rows.extend(pool.slots.iter().map(|slot| {
            let revision = slot.revision.as_ref().map_or_else(Cell::none, |revision| {
                Cell::new(if live == Some(revision) { Style::Plain } else { Style::Warn }, revision.short())
            });
            Row::Cells(vec![
                format!("  {}", slot.slot).into(),
                state(slot, look),
                slot.pid.map_or_else(Cell::none, |pid| pid.to_string().into()),
                slot.started_at.or(slot.pid.map(|_| slot.since)).map_or_else(Cell::none, |at| look.ago(at).into()),
                slot.memory_bytes.map_or_else(Cell::none, |bytes| bytes.to_string().into()),
                slot.restarts.to_string().into(),
                revision,
                slot.job.as_ref().map_or_else(Cell::none, |job| job_text(job, look).into()),
                slot.last_verdict.as_ref().map_or_else(Cell::none, |verdict| {
                    format!("{} {}: {}", look.time(verdict.at), verdict.kind, one_line(&verdict.text)).into()
                }),
            ])
        }));
    }
    table(&COLUMNS, &rows, look)
}

fn heading(pool: &PoolStatus) -> Vec<Cell> {
    let style = if pool.ready >= pool.wanted { Style::Good } else { Style::Warn };
    let mut about = Vec::new();
    about.extend(pool.group.as_ref().map(|group| format!("group {group}")));
    about.extend(pool.scaled.map(|count| format!("scaled to {count}")));
    let ready = format!("{}/{} ready", pool.ready, pool.wanted);
    vec![Cell::new(Style::Strong, pool.name.as_str()), Cell::new(style, ready), Cell::new(Style::Faint, about.join(", "))]
}

fn state(slot: &SlotStatus, look: &Look) -> Cell {
    let style = match slot.state {
        SlotState::Ready => Style::Good,
        SlotState::Quarantined => Style::Bad,
        SlotState::Stopped => Style::Faint,
        SlotState::Starting | SlotState::Quiet | SlotState::Stopping | SlotState::Backoff | SlotState::Paused | SlotState::Unknown => {
            Style::Warn
        }
    };
    match slot.next_start_at.map(|at| at.0.since(look.now)) {
        Some(left) if left.as_secs() > 0 => Cell::new(style, format!("{} {}", slot.state.name(), age(left))),
        _ => Cell::new(style, slot.state.name()),
    }
}

fn job_text(job: &JobStatus, look: &Look) -> String {
    let name = job.class.as_deref().or(job.queue.as_deref()).or(job.id.as_deref()).unwrap_or("a job");
    let of_age = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
    let span = job.age_seconds.and_then(of_age).or(job.started_at.map(|Timestamp(at)| look.now.since(at)));
    match span {
        Some(span) => format!("{} {}", clean(name), age(span)),
        None => clean(name),
    }
}

#[cfg(test)]
mod tests {
    use selfstart_core::status;

    use super::*;
    use crate::cli::look::tests::reader;

    fn fixture() -> Status {
        serde_json::from_str(include_str!("../../crates/core/tests/fixtures/status-1.json")).expect("the fixture")
    }

    #[test]
    fn a_node_as_a_pipe_sees_it() {
        insta::assert_snapshot!(render(&fixture(), &reader(None, Paint::Plain)));
    }

    #[test]
    fn a_node_on_terminals_of_several_widths() {
        for width in [120, 80, 40] {
            let text = render(&fixture(), &reader(Some(width), Paint::Plain));
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            insta::assert_snapshot!(format!("status_{width}"), text);
        }
    }

    #[test]
    fn a_node_in_colour() {
        insta::assert_snapshot!(render(&fixture(), &reader(Some(120), Paint::Colour)).replace('\x1b', "ESC"));
    }

    #[test]
    fn a_node_that_has_nothing_yet() {
        let mut status = fixture();
        status.deploy = DeployStatus::default();
        status.pools.clear();
        status.notes.clear();
        status.node.roles.clear();
        insta::assert_snapshot!(render(&status, &reader(Some(80), Paint::Plain)));
    }

    #[test]
    fn what_keeps_a_node_back_is_said_in_whole_sentences() {
        let mut status = fixture();
        let at = status.agent.started_at;
        status.deploy.hold = Some(status::HoldStatus { by: "ann".into(), why: String::new(), at });
        status.deploy.pending = Some(status::PendingStatus { reference: Some("hotfix".into()), force: false });
        let text = "no upgrade, selfstart 0.1.0 goes on: `/x` is no program".into();
        status.agent.upgrade = Some(status::UpgradeStatus { number: 1, from: "0.1.0".into(), to: None, done: false, text });
        status.notes = vec!["c.yaml:1:1: app: missing\nc.yaml:2:1: rot: no such key\nhint: `root`".into()];
        let mut told = Vec::new();
        for (held, state) in [(true, AgentState::Running), (false, AgentState::Drained), (true, AgentState::Drained)] {
            (status.deploy.held, status.agent.state) = (held, state);
            let lines = trouble(&status, &reader(None, Paint::Plain)).into_iter();
            told.push(lines.map(|(label, _, words)| format!("{label}: {words}\n")).collect::<String>());
        }
        insta::assert_snapshot!(told.join("--\n"));
    }

    #[test]
    fn a_job_s_title_cannot_drive_the_terminal() {
        let mut status = fixture();
        if let Some(job) = &mut status.pools[0].slots[0].job {
            job.class = Some("\x1b]0;owned\x07\u{9b}2J".into());
        }
        status.notes = vec!["a\nb\x1b[31m".into()];
        let text = render(&status, &reader(None, Paint::Plain));
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
    }

    #[test]
    fn a_frame_that_is_too_high_says_what_it_leaves_out() {
        let look = Look { height: Some(5), ..reader(Some(40), Paint::Plain) };
        assert_eq!(fit("1\n2\n3\n4\n5\n6\n", &look), "1\n2\n3\n… 3 more lines\n");
        assert_eq!(fit("1\n2\n3\n4\n", &look), "1\n2\n3\n4\n");
        assert_eq!(redraw("a\n", 3), "\r\x1b[3Aa\x1b[K\n\x1b[J");
    }
}
