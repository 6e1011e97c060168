//! `selfstart events` and `selfstart why`: what happened and why, read from the journal of events; no agent is needed.

use std::path::Path;
use std::str::FromStr;

use clap::Args;
use selfstart_core::command::Target;
use selfstart_core::date::Timestamp;
use selfstart_core::id::SlotId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ask::{Format, note, print, print_json};
use super::exit::Exit;
use super::failure::{Failure, Stop};
use super::look::{Look, Style, clean};
use super::site::Site;
use super::tail::{self, Watch, Woken};

/// Flags of `events`.
#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    /// Go on as events come
    #[arg(short, long)]
    follow: bool,
    /// How many from the past
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    lines: usize,
    /// Print each as a JSON object on a line
    #[arg(long)]
    json: bool,
}

/// Flags of `why`.
#[derive(Args, Debug)]
pub(crate) struct WhyArgs {
    /// A slot: why its workers ended; `deploy`: what became of the deploys
    #[arg(value_name = "POOL/SLOT|deploy")]
    subject: Subject,
    /// How many, newest first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5)]
    lines: usize,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// What `why` is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Slot(SlotId),
    Deploy,
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "deploy" => Ok(Self::Deploy),
            slot => slot.parse().map(Self::Slot).map_err(|error| format!("{error}, and not `deploy`")),
        }
    }
}

/// What says why a slot has not the worker that it had (the names are `telling`'s).
const SLOT_KINDS: [&str; 4] = ["worker_ended", "worker_start_failed", "worker_quarantined", "stale_job"];

/// What says what became of a deploy.
/// A rollback says who in the hold that it brings.
const DEPLOY_KINDS: [&str; 8] =
    ["deploy_finished", "deploy_failed", "deploy_postponed", "rolled_back", "revision_quarantined", "held", "unheld", UNREACHED];

/// Tried again and again: of several in a row only the last is an answer.
const UNREACHED: &str = "fetch_failed";

/// One line of `run/events.jsonl`, as far as a person is concerned; what else it has is for programs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Event {
    at: Timestamp,
    kind: String,
    pool: Option<String>,
    slot: Option<u32>,
    /// A word, or an object with a `kind`.
    verdict: Option<Value>,
    #[serde(default)]
    text: String,
}

impl Event {
    fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    fn verdict(&self) -> Option<&str> {
        let verdict = self.verdict.as_ref()?;
        verdict.as_str().or_else(|| verdict.get("kind")?.as_str())
    }

    /// Tells whether this is an answer to `why` about the subject.
    fn answers(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Slot(id) => {
                self.pool.as_deref() == Some(id.pool.as_str()) && self.slot == Some(id.slot) && SLOT_KINDS.contains(&self.kind.as_str())
            }
            Subject::Deploy => DEPLOY_KINDS.contains(&self.kind.as_str()),
        }
    }

    fn render(&self, look: &Look) -> String {
        let subject = match (&self.pool, self.slot) {
            (Some(pool), Some(slot)) => format!("{pool}/{slot}"),
            (Some(pool), None) => pool.clone(),
            (None, _) => "-".into(),
        };
        let style = if self.verdict.is_some() { Style::Warn } else { Style::Plain };
        let time = look.paint.on(Style::Faint, &look.time(self.at));
        let kind = look.paint.on(style, &format!("{:<16}", clean(&self.kind)));
        format!("{time}  {:<14}  {kind}  {}\n", clean(&subject), indented(&self.text))
    }
}

/// Further lines of a text stand below the first.
fn indented(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n    ")
}

/// Prints the last events, and with `-f` each new one.
pub(crate) fn events(site: &Site, args: &EventsArgs) -> Result<Exit, Stop> {
    let (path, look, format) = (site.events(), Look::of_stdout(), Format::json(args.json));
    let watch = args.follow.then(|| Watch::new(path.parent()));
    let (past, mut follow) = tail::last(&path, args.lines, |line| Event::parse(line).is_some()).map_err(|error| reading(&path, &error))?;
    print(&past.iter().filter_map(|line| render(line, format, &look)).collect::<String>())?;
    let Some(watch) = watch else { return Ok(Exit::Done) };
    loop {
        match watch.wait() {
            Ok(Woken::Look) => {}
            Ok(Woken::ReaderGone) => return Err(Stop::PipeClosed),
            Err(error) => return Err(Failure::because(Exit::Failed, "failed to wait for events", &error).into()),
        }
        let look = Look::of_stdout();
        let mut text = String::new();
        let mut stopped = false;
        follow
            .catch_up(|line| {
                // What comes behind it is told by the next `run`.
                if !stopped {
                    text.extend(render(line, format, &look));
                    stopped = is_stop(line);
                }
            })
            .map_err(|error| reading(&path, &error))?;
        if !text.is_empty() {
            print(&text)?;
        }
        if stopped {
            note(STOPPED);
            return Ok(Exit::Done);
        }
    }
}

/// Said to whoever follows a node that is stopped (not one whose agent dies: that is back within a second).
pub(super) const STOPPED: &str = "the node was stopped";

/// Tells whether a line of the journal says that the node was stopped (the name is `telling`'s).
fn is_stop(line: &[u8]) -> bool {
    Event::parse(line).is_some_and(|event| event.kind == "agent_stopped")
}

/// Looks whether the node is stopped: for those who follow something else than its events.
#[derive(Debug)]
pub(super) struct StopWatch(tail::Follow);

impl StopWatch {
    /// Counts what happens from now on.
    pub(super) fn new(site: &Site) -> Result<Self, Failure> {
        let path = site.events();
        tail::last(&path, 0, |_| false).map(|(_, follow)| Self(follow)).map_err(|error| reading(&path, &error))
    }

    /// Returns whether it was stopped since.
    pub(super) fn stopped(&mut self) -> Result<bool, Failure> {
        let mut stopped = false;
        let looked = self.0.catch_up(|line| stopped |= is_stop(line));
        looked.map_err(|error| reading(self.0.path(), &error))?;
        Ok(stopped)
    }
}

fn reading(path: &Path, error: &std::io::Error) -> Failure {
    allowed(Failure::because(Exit::Failed, format!("failed to read the events in `{}`", path.display()), error), error)
}

/// Adds what to do when it is only a matter of rights.
pub(super) fn allowed(failure: Failure, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        return failure.hint("it is for root, the user of selfstart, and the members of `control.group`: run it with sudo");
    }
    failure
}

/// `None`: a line that is no event.
fn render(line: &[u8], format: Format, look: &Look) -> Option<String> {
    let event = Event::parse(line)?;
    Some(match format {
        Format::Json => format!("{}\n", String::from_utf8_lossy(line)),
        Format::Text => event.render(look),
    })
}

/// Prints the last verdicts, newest first.
pub(crate) fn why(site: &Site, args: &WhyArgs) -> Result<Exit, Stop> {
    /// `{"schema": 1, "verdicts": [...]}`: the events as they are.
    #[derive(Serialize)]
    struct Told {
        schema: u32,
        verdicts: Vec<Value>,
    }
    let path = site.events();
    if let Subject::Slot(slot) = &args.subject
        && let Err(unknown) = site.knows(&Target::Slot(slot.clone()))
    {
        // One that was there once may have told something.
        let (told, _) = tail::last(&path, 1, |line| Event::parse(line).is_some_and(|event| event.answers(&args.subject)))
            .map_err(|error| reading(&path, &error))?;
        if told.is_empty() {
            return Err(unknown.into());
        }
    }
    let mut newer_unreached = false;
    let wanted = |line: &[u8]| {
        let Some(event) = Event::parse(line).filter(|event| event.answers(&args.subject)) else { return false };
        let repeated = newer_unreached && event.kind == UNREACHED;
        newer_unreached = event.kind == UNREACHED;
        !repeated
    };
    let (mut lines, _) = tail::last(&path, args.lines, wanted).map_err(|error| reading(&path, &error))?;
    lines.reverse();
    match Format::json(args.json) {
        Format::Json => {
            let verdicts = lines.iter().filter_map(|line| serde_json::from_slice(line).ok()).collect();
            print_json(&Told { schema: 1, verdicts })?;
        }
        Format::Text => {
            let events: Vec<_> = lines.iter().filter_map(|line| Event::parse(line)).collect();
            print(&answer(&events, &args.subject, &Look::of_stdout()))?;
        }
    }
    Ok(Exit::Done)
}

fn answer(events: &[Event], subject: &Subject, look: &Look) -> String {
    if events.is_empty() {
        return match subject {
            Subject::Slot(slot) => format!("no worker of {slot} has ended, as far back as the events go\n"),
            Subject::Deploy => "there was no deploy, as far back as the events go\n".into(),
        };
    }
    let line = |event: &Event| {
        let time = look.paint.on(Style::Faint, &format!("{} ({} ago)", look.time(event.at), look.ago(event.at)));
        let verdict = look.paint.on(Style::Warn, &clean(event.verdict().unwrap_or(&event.kind)));
        format!("{time}  {verdict}: {}\n", indented(&event.text))
    };
    events.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::look::{Paint, tests::reader};

    const EVENTS: &str = r#"{"schema":1,"at":"2026-11-22T10:15:00.000Z","kind":"agent_started","text":"version 0.1.0, pid 812"}
{"schema":1,"at":"2026-11-22T10:15:31.000Z","kind":"worker_ended","pool":"checkins","slot":3,"verdict":"memory","text":"ended by TERM after 350 MB was passed in 2 of 2 samples (361, 374 MB)","pid":4711}
{"schema":1,"at":"2026-11-22T10:16:00.000Z","kind":"deploy_failed","verdict":{"kind":"build"},"text":"build step 2 `make` ended with 2:\n  oops\u001b[2J"}
garbage
{"schema":1,"at":"2026-11-22T10:16:10.000Z","kind":"scaled","pool":"checkins","text":"10 -> 12"}
{"schema":1,"at":"2026-11-22T10:17:31.000Z","kind":"worker_ended","pool":"checkins","slot":3,"verdict":"exit","text":"ended with 1"}
"#;

    fn all() -> Vec<Event> {
        EVENTS.lines().filter_map(|line| Event::parse(line.as_bytes())).collect()
    }

    #[test]
    fn events_are_told_one_after_the_other() {
        let look = reader(None, Paint::Plain);
        let text: String = EVENTS.lines().filter_map(|line| render(line.as_bytes(), Format::Text, &look)).collect();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn events_as_json_are_the_lines_themselves() {
        let look = reader(None, Paint::Plain);
        let text: String = EVENTS.lines().filter_map(|line| render(line.as_bytes(), Format::Json, &look)).collect();
        assert_eq!(text, EVENTS.replace("garbage\n", ""));
    }

    #[test]
    fn why_answers_about_a_slot_and_about_deploys() {
        let told = |subject: &str| {
            let subject: Subject = subject.parse().expect("a subject");
            let events: Vec<_> = all().into_iter().rev().filter(|event| event.answers(&subject)).collect();
            answer(&events, &subject, &reader(None, Paint::Plain))
        };
        insta::assert_snapshot!(["checkins/3", "deploy", "checkins/1"].map(told).join("--\n"));
        assert!("checkins".parse::<Subject>().is_err());
    }
}
