//! `unless_unchanged`: what stands before and behind a build step that may be skipped.
//!
//! A helper looks whether a release that is still here ran the same step on the same inputs, and copies what it made; else the step runs, and
//! a helper finds what it makes. What a release's steps made is kept in its mark, and so is forgotten with it. An agent that dies meanwhile
//! makes the release anew; a copy of which only a part was made is in no other release.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use selfstart_core::deploy::{Blame, Event, Force, Phase};
use selfstart_core::id::{ReleaseId, Revision};

use super::deploying::{BuiltMark, chain};
use super::errands::{Over, What};
use super::launch;
use super::run::{Agent, Ending};
use super::store;
use crate::config::settings::BuildStep;
use crate::keeper::protocol::Ask;
use crate::release::carry::{Begun, CHANGED, Candidate, Reply, Request, StepMade, VERB};
use crate::sys::clock;

/// The longest that a helper may take for a step without a time-out of its own: a copy of the largest folders of packages takes a minute.
const CARRY_TIMEOUT: Duration = Duration::from_secs(600);

/// What is known of the steps of the release that is being made.
#[derive(Debug, Default)]
pub(crate) struct Carrying {
    made: BTreeMap<ReleaseId, Vec<StepMade>>,
    /// The step that runs, and how it began.
    running: Option<(ReleaseId, u32, String, Begun)>,
}

impl Carrying {
    /// Returns what the mark of a release says of its steps.
    pub(super) fn sealed(&mut self, release: &ReleaseId) -> Vec<StepMade> {
        self.running = None;
        let made = self.made.remove(release).unwrap_or_default();
        // Of releases that failed.
        self.made.clear();
        made
    }
}

/// The most that a helper is told of the steps of all releases together: half of what it takes, so that the rest fits, too.
const MOST_STEPS: usize = 4 << 20;

/// Takes the newest as long as they fit into a request: of what is left out, no step is skipped.
fn fitting(candidates: impl Iterator<Item = Candidate>) -> Vec<Candidate> {
    let mut left = MOST_STEPS;
    candidates
        .take_while(|candidate| {
            let size = serde_json::to_vec(candidate).map_or(usize::MAX, |text| text.len());
            let fits = size <= left;
            left = left.saturating_sub(size);
            fits
        })
        .collect()
}

impl Agent {
    /// Looks whether a step may be skipped; `Ok(false)`: it is run as any other.
    pub(super) fn begin_carrying(
        &mut self,
        release: &ReleaseId,
        revision: &Revision,
        step: u32,
        wanted: &BuildStep,
    ) -> Result<bool, String> {
        if wanted.unless_unchanged.is_empty() {
            return Ok(false);
        }
        let settings = self.settings.clone();
        let from = self.from(release, revision).map_err(|error| chain(&error))?;
        let path = from.path.display().to_string();
        // The same in each release, but for the release's own name.
        let about = format!(
            "{}\0{}",
            launch::step_in_any_release(&settings, wanted, &from),
            from.runtime.identity().replace(&path, "{release_path}")
        );
        let forced = matches!(self.deploying.machine().phase(), Phase::Building { plan, .. } if plan.job.trigger.force == Force::Yes);
        let candidates = if forced { Vec::new() } else { self.candidates(release) };
        let programs = from.runtime.tools.iter().map(|tool| tool.program.clone().into()).filter(|it: &PathBuf| it.is_absolute()).collect();
        let request = Request::Before { release: from.path, inputs: wanted.unless_unchanged.clone(), about, programs, candidates };
        let what = What::Carry { release: release.clone(), revision: revision.clone(), step };
        self.ask_carrier(what, wanted.timeout, &request)?;
        Ok(true)
    }

    /// The releases that may have run a step, the newest first.
    fn candidates(&self, but: &ReleaseId) -> Vec<Candidate> {
        let mut entries: Vec<_> =
            self.deploying.machine().book().entries().iter().filter(|it| it.built_at.is_some() && !it.leaving && it.id != *but).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.built_at));
        let candidate = |id: &ReleaseId| {
            // A mark that cannot be read says of no step that it may be skipped.
            let loaded = store::load::<BuiltMark>(&self.layout.built_mark(id), store::SCHEMA_NOW, |_, fields| fields);
            let Ok(store::Loaded::State(mark)) = loaded else { return None };
            Some(Candidate { name: id.to_string(), path: self.layout.release(id), steps: mark.steps })
        };
        fitting(entries.iter().filter_map(|entry| candidate(&entry.id)).filter(|it| !it.steps.is_empty()))
    }

    fn ask_carrier(&mut self, what: What, timeout: Option<Duration>, request: &Request) -> Result<(), String> {
        let start =
            launch::own_helper(&self.settings, &self.known, VERB, String::new(), &BTreeMap::new()).map_err(|error| chain(&error))?;
        let text = serde_json::to_vec(request).map_err(|error| error.to_string())?;
        let input = crate::sys::memory_file(&text).map_err(|error| error.to_string())?;
        let key = self.errands.begin("carry", what, Some(clock::now() + timeout.unwrap_or(CARRY_TIMEOUT)));
        let start = Box::new(crate::keeper::protocol::Start { key, ..start });
        self.ask_with(Ask::SpawnIn { start, settings: Vec::new() }, Some(input));
        Ok(())
    }

    /// A helper has looked at a step: it is skipped, or it runs now.
    pub(super) fn carry_over(&mut self, release: ReleaseId, revision: Revision, step: u32, over: &Over) {
        // A reload may have come between, and then this step is another one.
        let same = matches!(self.deploying.machine().phase(), Phase::Building { plan, .. } if plan.build == self.deploying.policy.build);
        let event = match reply(over) {
            _ if !same => failed(release, step, "the configuration has changed".into()),
            Ok(Reply::Carried { from, step: made }) => {
                let what = if made.made.is_empty() { "it made nothing".to_owned() } else { format!("{} copied from there", list(&made)) };
                self.telling.step_skipped(&release, step, &format!("unchanged since {from}, {what}"));
                self.deploying.carrying.made.entry(release.clone()).or_default().push(made);
                Event::StepDone { release, step }
            }
            Ok(Reply::Run { key, why, begun }) => {
                match why.as_str() {
                    CHANGED => tracing::info!("{release}: step {step} runs: {why}"),
                    _ => self.telling.step_runs(&release, step, &why),
                }
                match begun {
                    Ok(begun) => self.deploying.carrying.running = Some((release.clone(), step, key, begun)),
                    Err(why) => self.telling.step_not_skipped(&release, step, &why),
                }
                return self.run_step(release, revision, step, None);
            }
            Ok(_) => failed(release, step, "the helper answered something else".into()),
            Err(text) => failed(release, step, text),
        };
        self.deploy_event(event);
    }

    /// A step is done: looks what it made, if that is wanted; `false`: it is not.
    pub(super) fn begin_made(&mut self, done: &ReleaseId, done_step: u32) -> bool {
        let Some((release, step, key, begun)) = self.deploying.carrying.running.take() else { return false };
        if release != *done || step != done_step || self.ending == Ending::Leaving {
            return false;
        }
        let shared = &self.settings.release;
        let linked = shared.linked_dirs.iter().chain(&shared.linked_files).cloned().collect();
        let request = Request::After { release: self.layout.release(&release), begun, linked };
        let what = What::Made { release: release.clone(), step, key };
        match self.ask_carrier(what, None, &request) {
            Ok(()) => true,
            Err(text) => {
                self.telling.step_not_skipped(&release, step, &text);
                false
            }
        }
    }

    /// A helper has looked at what a step made. What it could not tell costs a run of the step, no more.
    pub(super) fn made_over(&mut self, release: ReleaseId, step: u32, key: String, over: &Over) {
        match reply(over) {
            Ok(Reply::Made(made, left)) => {
                self.deploying.carrying.made.entry(release.clone()).or_default().push(StepMade { key, made, left: Some(left) });
            }
            Ok(Reply::Unclear(why)) => self.telling.step_not_skipped(&release, step, &why),
            Ok(_) => self.telling.step_not_skipped(&release, step, "the helper answered something else"),
            Err(text) => self.telling.step_not_skipped(&release, step, &text),
        }
        self.deploy_event(Event::StepDone { release, step });
    }
}

fn reply(over: &Over) -> Result<Reply, String> {
    match over.last_message.as_deref().and_then(|line| serde_json::from_str(line).ok()) {
        Some(Reply::Failed(text)) => Err(text),
        Some(reply) => Ok(reply),
        None if over.timed_out => Err("the helper of `unless_unchanged` took too long".into()),
        None => Err(format!("the helper of `unless_unchanged` ended without an answer; {}", over.last_lines.join("; "))),
    }
}

fn failed(release: ReleaseId, step: u32, what: String) -> Event {
    Event::StepFailed { release, step, blame: Blame::Machine, what, last_lines: Vec::new() }
}

fn list(made: &StepMade) -> String {
    const MOST: usize = 5;
    let mut shown: Vec<String> = made.made.iter().take(MOST).map(|path| format!("`{}`", path.display())).collect();
    if made.made.len() > MOST {
        shown.push(format!("{} more", made.made.len() - MOST));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_holds_the_newest_releases_that_fit_into_it() {
        // A step of 2000 paths of 250 bytes is half a megabyte, and fifty releases are kept.
        let steps = vec![StepMade { key: "k".into(), made: vec!["x".repeat(250).into(); 2_000], left: None }];
        let of = |number: u32| Candidate { name: number.to_string(), path: "/r".into(), steps: steps.clone() };
        let chosen = fitting((1..=50).map(of));
        let names: Vec<&str> = chosen.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["1", "2", "3", "4", "5", "6", "7", "8"]);
        let request = Request::Before {
            release: "/r".into(),
            inputs: Vec::new(),
            about: "a".repeat(1 << 20),
            programs: Vec::new(),
            candidates: chosen,
        };
        assert!(serde_json::to_vec(&request).expect("text").len() < 8 << 20);
        assert_eq!(fitting((1..=2).map(of)).len(), 2);
    }
}
