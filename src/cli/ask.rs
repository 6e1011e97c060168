//! Asking the agent: finds it, shows how far it is, turns its last answer into text, JSON and an exit code.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use selfstart_core::command::Command;
use selfstart_core::status::{DeployPhase, DeployStatus};
use serde::Serialize;

use super::exit::Exit;
use super::failure::{Failure, Stop, printing};
use super::look::{Paint, Style, age, clean};
use super::site::Site;
use crate::control::client::{Client, ClientError};
use crate::control::wire::{Change, Done, Facts, Outcome, Progress, RefusalCode, Refused, Request};
use crate::sys::clock;

/// How the answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

impl Format {
    pub(crate) fn json(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }
}

/// As long as a keeper needs to start a killed agent again ("within a second", PRODUCT.md promise 3), several times over.
const AGENT_BACK_WITHIN: Duration = Duration::from_secs(5);

/// Between two looks for an agent that is not there; nothing tells when it comes.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Asks for facts; a refusal or failure is an `Err`. An agent that dies meanwhile is asked again when it is back.
pub(crate) fn ask(site: &Site, command: Command) -> Result<Done, Stop> {
    let give_up = clock::instant() + AGENT_BACK_WITHIN;
    let request = Request::new(command);
    loop {
        match Client::connect(&site.socket()).and_then(|client| client.ask(&request, None, |_| ())) {
            Err(ClientError::GoneAway) if clock::instant() < give_up => std::thread::sleep(LOOK_AGAIN),
            Err(error) => return Err(unreachable_agent(site, error)),
            Ok(outcome) => return done(outcome),
        }
    }
}

/// Asks for something to be done, shows progress, prints the outcome.
pub(crate) fn act(site: &Site, request: &Request, format: Format) -> Result<Exit, Stop> {
    let outcome = try_act(site, request, format, None).map_err(|error| unreachable_agent(site, error))?;
    conclude(outcome, format)
}

/// Asks and shows progress.
pub(crate) fn try_act(site: &Site, request: &Request, format: Format, deadline: Option<Instant>) -> Result<Outcome, ClientError> {
    let client = Client::connect(&site.socket())?;
    let mut teller = Teller::new(format);
    let outcome = client.ask(request, deadline, |progress| teller.hear(&progress));
    teller.end();
    outcome
}

/// Prints the outcome.
pub(crate) fn conclude(outcome: Outcome, format: Format) -> Result<Exit, Stop> {
    if format == Format::Json {
        /// `{"schema": 1, "done": {...}}`.
        #[derive(Serialize)]
        struct Told<'a> {
            schema: u32,
            #[serde(flatten)]
            outcome: &'a Outcome,
        }
        print_json(&Told { schema: 1, outcome: &outcome })?;
    }
    let done = done(outcome)?;
    if format == Format::Text {
        print(&sentence(&done))?;
    }
    Ok(Exit::Done)
}

/// What a person hears last.
fn sentence(done: &Done) -> String {
    match (&done.facts, done.text.as_str()) {
        (Some(Facts::Live(live)), "") => {
            let took = live.seconds.map(|seconds| format!(" after {}", age(Duration::from_secs(seconds)))).unwrap_or_default();
            format!("{} is live{took}: revision {}\n", live.release, live.revision.short())
        }
        (Some(Facts::Changes(changes)), "") => changes_text(changes),
        (_, "") => String::new(),
        (_, text) => format!("{}\n", text.lines().map(clean).collect::<Vec<_>>().join("\n")),
    }
}

/// A line for each part, and below it one for each value.
pub(crate) fn changes_text(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing has changed\n".into();
    }
    let mut text = String::new();
    for change in changes {
        text.push_str(&format!("{}: {}\n", clean(&change.key), clean(&change.effect)));
        let part = format!("{}.", change.key);
        for value in &change.values {
            let key = value.key.strip_prefix(&part).unwrap_or(&value.key);
            text.push_str(&format!("  {}: {}\n", clean(key), clean(&value.text)));
        }
    }
    text
}

/// Nobody there, and the configuration by which we looked for it is broken: say both.
pub(crate) fn unreachable_agent(site: &Site, error: ClientError) -> Stop {
    let nobody = matches!(error, ClientError::NoAgent(_));
    match Stop::from(error) {
        Stop::Failed(mut failure) if nobody && site.problems.is_empty() => {
            if let Some(root) = super::elsewhere::root(site) {
                failure
                    .causes
                    .push(format!("the node runs with another `root`, as it was configured when it was started: `{}`", root.display()));
                failure.hint = Some("restart selfstart to change `root`, or put it back; a reload cannot change it".into());
            }
            Stop::Failed(failure)
        }
        Stop::Failed(mut failure) if !site.problems.is_empty() => {
            failure.causes.extend(site.problems.iter().cloned());
            failure.hint = Some("put the configuration right (`selfstart check`), then `selfstart run`".into());
            Stop::Failed(failure)
        }
        stop => stop,
    }
}

fn done(outcome: Outcome) -> Result<Done, Stop> {
    match outcome {
        Outcome::Done(done) => Ok(*done),
        Outcome::Refused(Refused { code, reason, hint }) => {
            let exit = match code {
                RefusalCode::UnknownTarget => Exit::Usage,
                RefusalCode::Configuration => Exit::Configuration,
                RefusalCode::BadRequest | RefusalCode::Version => Exit::Failed,
                RefusalCode::Held
                | RefusalCode::Quarantined
                | RefusalCode::Busy
                | RefusalCode::Draining
                | RefusalCode::Nothing
                | RefusalCode::Forbidden
                | RefusalCode::Other => Exit::Refused,
            };
            Err(Failure { exit, what: reason, causes: Vec::new(), hint }.into())
        }
        Outcome::Failed(failed) => {
            Err(Failure { exit: Exit::Failed, what: failed.reason, causes: failed.causes, hint: failed.hint }.into())
        }
    }
}

/// Asks for what takes effect, to be answered when it did or at once.
pub(crate) fn request(command: Command, no_wait: bool) -> Request {
    Request { wait: !no_wait, ..Request::new(command) }
}

/// Writes to stdout.
pub(crate) fn print(text: &str) -> Result<(), Stop> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(printing)
}

/// Writes one JSON object to stdout, indented on a terminal, on one line elsewhere.
pub(crate) fn print_json<T: Serialize>(facts: &T) -> Result<(), Stop> {
    let text = if std::io::stdout().is_terminal() { serde_json::to_string_pretty(facts) } else { serde_json::to_string(facts) };
    let text = text.map_err(|error| Failure::because(Exit::Failed, "failed to write the answer as JSON", &error))?;
    print(&format!("{text}\n"))
}

/// Shows how far something is: on a terminal only, and not with `--json`. Elsewhere the answer is the one clear line.
struct Teller {
    bar: Option<ProgressBar>,
    /// What was told last, so that nothing is told twice.
    told: Option<String>,
}

impl Teller {
    fn new(format: Format) -> Self {
        let shown = matches!(format, Format::Text) && std::io::stderr().is_terminal();
        Self { bar: shown.then(ProgressBar::no_length), told: None }
    }

    fn hear(&mut self, progress: &Progress) {
        let Some(bar) = &self.bar else { return };
        if let Some(text) = &progress.text {
            let line = clean(text);
            if self.told.as_ref() != Some(&line) {
                bar.println(&line);
                self.told = Some(line);
            }
        }
        if let Some(deploy) = progress.deploy.as_ref().filter(|deploy| deploy.phase != DeployPhase::Idle) {
            draw(bar, deploy);
        }
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn draw(bar: &ProgressBar, deploy: &DeployStatus) {
    let counted =
        deploy.progress.as_ref().and_then(|progress| Some((progress.objects?, progress.total_objects.filter(|total| *total > 0)?)));
    let template = if counted.is_some() { "{spinner} {msg} {wide_bar}" } else { "{spinner} {wide_msg} {elapsed}" };
    // Its style comes first: whatever is set is drawn at once.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    if let Some((objects, total)) = counted {
        bar.set_length(total);
        bar.set_position(objects);
    }
    bar.set_message(with_detail(deploy));
    bar.enable_steady_tick(Duration::from_millis(100));
}

/// Returns the phase and its step: `building 2/3: bundle exec rake assets:precompile`.
pub(crate) fn phase_line(deploy: &DeployStatus) -> String {
    let name = deploy.phase.name().replace('_', " ");
    match deploy.progress.as_ref().and_then(|progress| progress.step.as_ref()) {
        Some(step) => format!("{name} {}/{}: {}", step.number, step.of, clean(&step.text)),
        None => name,
    }
}

/// Returns the phase with all that is known: `fetching: receiving objects, 120 of 4983, 1.2MB`.
pub(crate) fn with_detail(deploy: &DeployStatus) -> String {
    let mut line = phase_line(deploy);
    let Some(progress) = &deploy.progress else { return line };
    let objects = match (progress.objects, progress.total_objects) {
        (Some(objects), Some(total)) => Some(format!("{objects} of {total}")),
        (Some(objects), None) => Some(format!("{objects} objects")),
        (None, _) => None,
    };
    // The step says it already.
    let detail = progress.detail.as_deref().filter(|detail| progress.step.as_ref().is_none_or(|step| step.text != *detail));
    let parts = [detail.map(clean), objects, progress.bytes.map(|bytes| bytes.to_string())];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if !parts.is_empty() {
        line.push_str(if progress.step.is_some() { " (" } else { ": " });
        line.push_str(&parts.join(", "));
        if progress.step.is_some() {
            line.push(')');
        }
    }
    line
}

/// Says something on stderr that is no failure.
pub(crate) fn warn(text: &str) {
    let paint = Paint::of_stderr();
    // Nobody reads stderr: there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{} {}", paint.on(Style::Warn, "warning:"), clean(text));
}

/// Says something on stderr that is neither: how far it is, why a command that goes on by itself is over.
pub(crate) fn note(text: &str) {
    // Nobody reads stderr: there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{}", clean(text));
}

#[cfg(test)]
mod tests {
    use selfstart_core::status;
    use selfstart_core::units::Bytes;

    use super::*;

    #[test]
    fn phases_read_as_sentences() {
        let deploy = |phase, progress| DeployStatus { phase, progress: Some(progress), ..DeployStatus::default() };
        let step = |number, text: &str| Some(status::Step { number, of: 3, text: text.into() });
        let all = [
            deploy(DeployPhase::Fetching, status::Progress::default()),
            deploy(
                DeployPhase::Fetching,
                status::Progress {
                    detail: Some("receiving objects".into()),
                    objects: Some(120),
                    total_objects: Some(4_983),
                    bytes: Some(Bytes(1_234_567)),
                    step: None,
                },
            ),
            deploy(DeployPhase::Building, status::Progress { step: step(2, "make \u{1b}[2J"), ..status::Progress::default() }),
            deploy(
                DeployPhase::RollingOut,
                status::Progress {
                    detail: Some("waiting until it is ready".into()),
                    step: step(1, "checkins/0"),
                    ..status::Progress::default()
                },
            ),
        ];
        let text: String = all.iter().map(|deploy| format!("{} | {}\n", phase_line(deploy), with_detail(deploy))).collect();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn every_refusal_has_its_exit_code() {
        let code = |code| match done(Outcome::Refused(Refused { code, reason: "r".into(), hint: None })) {
            Err(Stop::Failed(failure)) => failure.exit.code(),
            other => panic!("not refused: {other:?}"),
        };
        assert_eq!(code(RefusalCode::Held), 4);
        assert_eq!(code(RefusalCode::Quarantined), 4);
        assert_eq!(code(RefusalCode::Forbidden), 4);
        assert_eq!(code(RefusalCode::Other), 4);
        assert_eq!(code(RefusalCode::UnknownTarget), 2);
        assert_eq!(code(RefusalCode::Configuration), 78);
        assert_eq!(code(RefusalCode::Version), 1);
    }
}
