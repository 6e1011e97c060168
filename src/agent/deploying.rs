//! Carries out what the machine of deploys decides: one effect after the other, and what is to be saved is durable before what comes
//! behind it is begun.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use selfstart_core::deploy::{
    self, Asker, Blame, Deploy, DeployPolicy, Effect, Event, FetchTrouble, Fingerprint, Found, FoundRelease, Jitter, Mode, Now, Origin,
    Outcome, PoolsFound, RequestId, RetryPolicy, Saved, Start, Wanted,
};
use selfstart_core::id::{ReleaseId, Revision};
use selfstart_core::lease::Token;
use selfstart_core::retention::KeepPolicy;
use selfstart_core::runtime::{Captured, Setting};
use selfstart_core::time::MonoTime;
use selfstart_core::worker::signal_name;
use serde::{Deserialize, Serialize};

use super::carrying::Carrying;
use super::errands::{Over, What};
use super::launch;
use super::run::{Agent, Worked};
use super::runtime::{Runtimes, missing_venv};
use super::store;
use crate::config::settings::{Credentials, Settings, SourceSettings, SshAgent, WantedRef};
use crate::keeper::protocol::Ask;
use crate::release::carry::StepMade;
use crate::release::git::{self, Done, ErrorKind, Reply, Request, Secret};
use crate::release::layout::{Layout, LayoutError};
use crate::release::{prune, switch};
use crate::rights::trust;
use crate::sys::clock;
use crate::sys::gate;
use crate::sys::process::Ended;

/// How long the writing of a tree may take: the largest trees take seconds, a disk that hangs takes for ever.
const STAGE_TIMEOUT: Duration = Duration::from_secs(600);

/// What the helper needs beyond its own time-out to say so.
const HELPER_GRACE: Duration = Duration::from_secs(5);

/// The deploys of this node.
#[derive(Debug)]
pub(crate) struct Deploying {
    machine: Option<Deploy>,
    pub(crate) policy: DeployPolicy,
    /// Effects that wait for the one before them to be saved, and for whom they are.
    queue: VecDeque<(Effect, Option<Asker>)>,
    saving: bool,
    /// Why what is on disk is older than what was decided; `None`: it is not.
    unsaved: Option<String>,
    /// How far the phase that goes on is.
    pub(crate) progress: git::Progress,
    /// What the running build step said last.
    pub(crate) last_line: Option<String>,
    /// Whether [`Event::Booted`] has been taken.
    pub(crate) booted: bool,
    /// The last run of `selfstart run` whose boot was taken.
    pub(crate) last_run: Option<String>,
    /// Whether [`Layout::boot_due`] is there, until the journal says that this run's boot was taken.
    pub(crate) boot_is_due: bool,
    /// Whether workers were there when this agent came.
    pub(crate) workers_found: bool,
    /// What was told last of releases that cannot be removed: it is tried again and again, and told when it changes.
    prune_trouble: String,
    unsure: Vec<ReleaseId>,
    pub(crate) runtimes: Runtimes,
    pub(crate) carrying: Carrying,
}

/// Which build a release came from, kept beside the journal: the proof that it is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuiltMark {
    pub(crate) revision: Revision,
    pub(crate) build: Fingerprint,
    /// What it runs; `None`: it was made before there were runtimes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) runtime: Option<Captured>,
    /// What its steps with `unless_unchanged` made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) steps: Vec<StepMade>,
}

impl Deploying {
    pub(crate) fn new(saved: Saved, settings: &Settings) -> Self {
        let last_run = saved.run.clone();
        Self {
            machine: Some(Deploy::new(saved)),
            policy: policy(settings),
            queue: VecDeque::new(),
            saving: false,
            unsaved: None,
            progress: git::Progress::default(),
            last_line: None,
            booted: false,
            last_run,
            boot_is_due: false,
            workers_found: false,
            prune_trouble: String::new(),
            unsure: Vec::new(),
            runtimes: Runtimes::default(),
            carrying: Carrying::default(),
        }
    }

    /// The machine as it is now.
    pub(crate) fn machine(&self) -> &Deploy {
        self.machine.as_ref().expect("the machine is only away inside `step`")
    }

    /// The next moment at which the machine wants to be woken.
    pub(crate) fn next_deadline(&self) -> Option<MonoTime> {
        deploy::next_deadline(self.machine())
    }

    /// Why what was decided last is not on disk; `None`: it is, or is being written.
    pub(crate) fn unsaved(&self) -> Option<&str> {
        self.unsaved.as_deref()
    }

    /// Whether something is still to be carried out.
    pub(crate) fn busy(&self) -> bool {
        self.saving || !self.queue.is_empty()
    }
}

/// What the machine must know of the configuration.
pub(crate) fn policy(settings: &Settings) -> DeployPolicy {
    DeployPolicy {
        boot_timeout: settings.source.boot_timeout,
        build: fingerprint(settings),
        steps: u32::try_from(settings.build.steps.len()).unwrap_or(u32::MAX),
        build_timeout: settings.build.timeout,
        keep: KeepPolicy { keep: settings.release.keep, keep_failed: settings.release.keep_failed },
        retry: RetryPolicy::default(),
        probation: settings.release.probation,
        supersede: settings.source.supersede,
    }
}

/// Names what makes a release of a revision: two builds of one revision with the same name are the same.
fn fingerprint(settings: &Settings) -> Fingerprint {
    let mut made_of = String::new();
    for step in &settings.build.steps {
        made_of.push_str(&step.run);
        made_of.push('\0');
    }
    for (name, text) in &settings.build.env {
        // Shown as it is written: a secret counts by where it comes from.
        made_of.push_str(&format!("{name}={text}\0"));
    }
    made_of.push_str(&format!("{:?}{:?}{:?}", settings.release.linked_dirs, settings.release.linked_files, settings.user));
    if settings.source.submodules {
        made_of.push_str("submodules\0");
    }
    // `auto` counts for nothing: what was built before there were runtimes is not built again for it.
    if settings.build.runtime != Setting::Auto {
        made_of.push_str(&format!("runtime {}\0", settings.build.runtime));
    }
    // FNV-1a, 64 bits (RFC 9923): stable between versions, and nobody gains by a collision in their own configuration.
    let hash = made_of.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Fingerprint(format!("{hash:016x}"))
}

fn mark_path(layout: &Layout, release: &ReleaseId) -> PathBuf {
    layout.built_mark(release)
}

/// Looks at the disk: what is there, and which of it is whole.
///
/// # Errors
/// When it cannot be told.
pub(crate) fn look(layout: &Layout, start: Start, pools: PoolsFound, mode: Mode, run: Option<String>) -> Result<Found, LookError> {
    let failed = |path: PathBuf| move |source| LookError::Read { path, source };
    let folder = layout.releases();
    let mut releases = Vec::new();
    for entry in fs_err::read_dir(&folder).map_err(failed(folder.clone()))? {
        let entry = entry.map_err(failed(folder.clone()))?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<ReleaseId>().ok()) else { continue };
        let path = mark_path(layout, &id);
        let built = match store::load::<BuiltMark>(&path, store::SCHEMA_NOW, |_, fields| fields) {
            Ok(store::Loaded::State(mark)) => Some((mark.revision, mark.build)),
            // A damaged mark proves nothing: the release is made anew.
            Ok(store::Loaded::Nothing | store::Loaded::Bad { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        releases.push(FoundRelease { id, built });
    }
    let current = match switch::current(layout)? {
        switch::Current::Release(id) => Some(id),
        switch::Current::Nothing => None,
    };
    Ok(Found { start, current, releases, pools, mode, run })
}

/// Why it cannot be told what is on disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    /// A folder cannot be read.
    #[error("failed to read `{}`", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A mark cannot be read.
    #[error("the mark of a built release")]
    Mark(#[from] store::StoreError),
    /// `current` is something else than a link to a release, or cannot be read.
    #[error("the link `current`")]
    Current(#[from] switch::SwitchError),
}

impl Agent {
    /// Gives the machine one event, and carries out what it wants.
    pub(crate) fn deploy_event(&mut self, event: Event) {
        if let Event::SwitchFailed { .. } = event {
            // Not to be tried again for ever with a release that is gone.
            self.forget_missing();
        }
        if let Event::Linked { release } = &event
            && !self.deploying.runtimes.has(release)
        {
            return self.begin_runtime(release.clone());
        }
        let now = Now { mono: clock::now(), wall: clock::wall(), jitter: Jitter::new(fastrand::u16(0..=1000)) };
        let machine = self.deploying.machine.take().expect("the machine is only away inside `step`");
        // As it was before: what ends with this event is no longer under way after it.
        let asker = match &event {
            Event::Requested { by, .. } => Some(Asker { origin: Origin::Operator, by: Some(by.clone()) }),
            _ => machine.asker(),
        };
        let (machine, effects) = deploy::step(machine, event, now, &self.deploying.policy);
        self.deploying.machine = Some(machine);
        self.deploying.queue.extend(effects.into_iter().map(|effect| (effect, asker.clone())));
        self.carry_out_deploy();
    }

    /// Carries out effects up to the next one that must be saved first.
    pub(crate) fn carry_out_deploy(&mut self) {
        while !self.deploying.saving {
            let Some((effect, asker)) = self.deploying.queue.pop_front() else { break };
            if let Effect::Save(saved) = effect {
                self.deploying.saving = true;
                let path = self.layout.journal().join("deploy.json");
                self.work(move || Worked::DeploySaved(store::save(&path, store::SCHEMA_NOW, &*saved).map_err(|error| chain(&error))));
            } else {
                self.carry_out(effect, asker.as_ref());
            }
        }
    }

    /// Releases are gone, or stay.
    pub(crate) fn pruned(&mut self, gone: Vec<ReleaseId>, kept: Vec<ReleaseId>, trouble: String, unsure: Option<prune::Unsure>) {
        if !trouble.is_empty() && trouble != self.deploying.prune_trouble {
            self.telling.warn(&format!("old releases: {trouble}"));
        }
        self.deploying.prune_trouble = trouble;
        let (releases, text) = unsure.map_or_else(Default::default, |unsure| (unsure.releases, unsure.text));
        if !releases.is_empty() && releases != self.deploying.unsure {
            self.telling.warn(&text);
        }
        self.deploying.unsure = releases;
        self.deploying.runtimes.forget(&gone);
        for id in &gone {
            use deploy::ReleaseState as State;
            let why = match self.deploying.machine().book().get(id).map(|entry| &entry.state) {
                Some(State::Staged) => "it was never whole",
                Some(State::Failed { .. }) => "`release.keep_failed` wants no more",
                _ => "`release.keep` wants no more",
            };
            self.telling.release_removed(id, why);
        }
        if self.deploying.prune_trouble.is_empty() || kept.is_empty() {
            self.deploy_event(Event::Pruned { gone, kept });
        } else {
            self.deploy_event(Event::Pruned { gone, kept: vec![] });
            self.deploy_event(Event::NotPruned { ids: kept });
        }
    }

    /// Looks whether the releases are still there: people may remove old ones, and nobody can go back to those.
    pub(crate) fn forget_missing(&mut self) {
        let ids = || self.deploying.machine().book().entries().iter().map(|entry| entry.id.clone());
        let not_there = |id: &ReleaseId| {
            let looked = fs_err::symlink_metadata(self.layout.release(id));
            // What cannot be looked at may well be there.
            looked.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        let releases: Vec<ReleaseId> = ids().filter(not_there).collect();
        if releases.is_empty() {
            return;
        }
        self.deploy_event(Event::Missing { releases: releases.clone() });
        for id in releases {
            if self.deploying.machine().book().get(&id).is_none() {
                self.telling.release_removed(&id, "it is no longer in `releases/`, by somebody else's doing");
            }
        }
    }

    /// The record is on disk, or it is not: then what must not be done without it is answered instead.
    pub(crate) fn deploy_saved(&mut self, result: Result<(), String>) {
        self.deploying.saving = false;
        self.deploying.unsaved = result.as_ref().err().cloned();
        if let Err(error) = result {
            self.save_again = Some(clock::now() + super::run::TRY_AGAIN);
            let text = format!("the journal could not be written: {error}");
            self.telling.warn(&text);
            let mut events = Vec::new();
            self.deploying.queue.retain(|(effect, _)| match effect.unsaved(&text) {
                Some(event) => {
                    events.push(event);
                    false
                }
                None => true,
            });
            for event in events {
                self.deploy_event(event);
            }
        } else if std::mem::take(&mut self.deploying.boot_is_due) {
            // The first that is saved is what became of the boot. A mark that stays is one look at the source too many.
            let _stays = gate::remove_file(self.layout.boot_due());
        }
        self.carry_out_deploy();
    }

    /// Tries again to write what could not be written.
    pub(crate) fn save_deploy_again(&mut self) {
        if self.deploying.unsaved.take().is_some() {
            let saved = self.deploying.machine().saved();
            self.deploying.queue.push_front((Effect::Save(Box::new(saved)), None));
            self.carry_out_deploy();
        }
    }

    /// Gives this answer behind another try to write what could not be written.
    pub(crate) fn answer_when_saved(&mut self, id: RequestId, outcome: Outcome) {
        self.deploying.queue.push_front((Effect::Answer { id, outcome }, None));
        self.save_deploy_again();
    }

    fn carry_out(&mut self, effect: Effect, asker: Option<&Asker>) {
        if self.ending == super::run::Ending::Leaving
            && matches!(effect, Effect::Fetch { .. } | Effect::Stage { .. } | Effect::LinkShared { .. } | Effect::RunStep { .. })
        {
            // It was decided before the word to end came; the journal says what the next agent goes on with.
            return;
        }
        match effect {
            Effect::Save(_) => {}
            Effect::Fetch { fetch, wanted, .. } => {
                self.deploying.progress = git::Progress::default();
                if let Err(text) = self.begin_fetch(fetch, &wanted) {
                    self.deploy_event(Event::FetchFailed { fetch, trouble: FetchTrouble::Refused, text });
                }
            }
            Effect::Stage { release, revision } => {
                self.deploying.progress = git::Progress::default();
                if let Err(text) = self.begin_stage(&release, revision) {
                    self.deploy_event(Event::PrepareFailed { release, blame: Blame::Machine, text });
                }
            }
            Effect::LinkShared { release } => self.begin_naming(release),
            Effect::RunStep { release, revision, step, build } => {
                self.deploying.last_line = None;
                self.begin_step(release, revision, step, &build);
            }
            Effect::EndStep { release, step } => {
                if !self.cancel_once(&release, step) {
                    self.end_step(&release, step);
                }
            }
            Effect::MarkBuilt { release, revision, build } => {
                self.begin_marking(release, BuiltMark { revision, build, runtime: None, steps: Vec::new() })
            }
            Effect::Switch { release } => self.begin_switch(release),
            Effect::StartPools { release, revision } | Effect::RollOut { release, revision } => self.roll_out(release, revision),
            Effect::Prune { ids } => self.begin_prune(ids),
            Effect::Answer { id, outcome } => self.answer_deploy(id, outcome),
            Effect::Tell(news) => self.telling.deploy(&news, asker),
        }
    }

    /// The helper has linked what is shared, as the user who owns it; what is left is the release's name.
    fn begin_naming(&mut self, release: ReleaseId) {
        if super::is_apart() {
            if let Err(text) = self.name_by_helper(&release) {
                self.deploy_event(Event::PrepareFailed { release, blame: Blame::Machine, text });
            }
            return;
        }
        let layout = self.layout.clone();
        self.work(move || {
            Worked::Deploy(match prune::name_staged(&layout, &release) {
                Ok(()) => Event::Linked { release },
                Err(error) => Event::PrepareFailed { release, blame: Blame::Machine, text: error.to_string() },
            })
        });
    }

    /// Everything of the release is on disk before its mark says so.
    fn begin_marking(&mut self, release: ReleaseId, mark: BuiltMark) {
        let runtime = match self.deploying.runtimes.sealed(&release, &mark.build) {
            Ok(runtime) => runtime,
            Err(text) => return self.deploy_event(Event::PrepareFailed { release, blame: Blame::Machine, text }),
        };
        if let Some(text) = missing_venv(&runtime, &self.layout.release(&release)) {
            return self.deploy_event(Event::PrepareFailed { release, blame: Blame::Revision, text });
        }
        let steps = self.deploying.carrying.sealed(&release);
        let mark = BuiltMark { runtime: Some(runtime), steps, ..mark };
        let layout = self.layout.clone();
        self.work(move || {
            let marked = switch::sync_release(&layout, &release).map_err(|error| chain(&error)).and_then(|()| {
                let path = mark_path(&layout, &release);
                gate::create_dir_all(layout.run().join("built"))
                    .map_err(|error| error.to_string())
                    .and_then(|()| store::save(&path, store::SCHEMA_NOW, &mark).map_err(|error| chain(&error)))
            });
            Worked::Deploy(match marked {
                Ok(()) => Event::MarkedBuilt { release },
                Err(text) => Event::PrepareFailed { release, blame: Blame::Machine, text },
            })
        });
    }

    fn begin_switch(&mut self, release: ReleaseId) {
        let layout = self.layout.clone();
        self.work(move || {
            Worked::Deploy(match switch::switch(&layout, &release) {
                Ok(()) => Event::Switched { release },
                Err(error) => Event::SwitchFailed { release, text: chain(&error) },
            })
        });
    }

    fn begin_prune(&mut self, ids: Vec<ReleaseId>) {
        if super::is_apart() {
            return self.prune_by_keeper(ids);
        }
        let layout = self.layout.clone();
        self.work(move || {
            let own = rustix::process::geteuid();
            let unreadable = if own.is_root() { prune::Unreadable::KeepAll } else { prune::Unreadable::KeepOf([own.as_raw()].into()) };
            let result = prune::prune(&layout, &ids, &unreadable, None, &prune::Hands::Own);
            let (trouble, unsure) = match &result {
                Ok(pruned) => (pruned.leftovers.join("; "), pruned.unsure()),
                Err(error) => (chain(error), None),
            };
            forget_removed(&layout, ids, trouble, unsure)
        });
    }

    fn begin_fetch(&mut self, fetch: deploy::FetchId, wanted: &Wanted) -> Result<(), String> {
        let settings = self.settings.clone();
        if matches!(settings.source.credentials, Credentials::Askpass(_)) {
            // The loop does not wait for another's program.
            let (layout, wanted) = (self.layout.clone(), wanted.clone());
            self.work(move || {
                let request = to_fetch(&settings.source, &layout, &wanted, settings.source.timeout);
                Worked::Asked { fetch, request: request.map(Box::new) }
            });
            return Ok(());
        }
        let request = to_fetch(&settings.source, &self.layout, wanted, settings.source.timeout)?;
        self.fetch_now(fetch, request)
    }

    /// The credentials were asked for.
    pub(crate) fn asked(&mut self, fetch: deploy::FetchId, request: Result<Box<git::Fetch>, String>) {
        if self.ending == super::run::Ending::Leaving {
            return;
        }
        if let Err(text) = request.and_then(|request| self.fetch_now(fetch, *request)) {
            self.deploy_event(Event::FetchFailed { fetch, trouble: FetchTrouble::Refused, text });
        }
    }

    fn fetch_now(&mut self, fetch: deploy::FetchId, mut request: git::Fetch) -> Result<(), String> {
        let settings = self.settings.clone();
        // What a fetch writes is as large as what is staged of it. Other troubles of the folder are staging's to say.
        if let Err(error @ LayoutError::TooLittleSpace { .. }) = self.layout.check_free(settings.release.min_free) {
            self.deploy_event(Event::FetchFailed { fetch, trouble: FetchTrouble::Disk, text: chain(&error) });
            return Ok(());
        }
        request.known = self.deploying.machine().book().entries().iter().map(|entry| entry.revision.clone()).collect();
        let request = Request::Fetch(request);
        let deadline = clock::now() + settings.source.timeout + HELPER_GRACE;
        self.begin_git("fetch", What::Fetch(fetch), &request, deadline)
    }

    fn begin_stage(&mut self, release: &ReleaseId, revision: Revision) -> Result<(), String> {
        let settings = self.settings.clone();
        self.layout.check_free(settings.release.min_free).map_err(|error| chain(&error))?;
        let request = Request::Stage(git::Stage {
            mirror: self.layout.mirror(),
            revision,
            destination: self.layout.staging(release),
            shared: self.layout.shared(),
            linked_dirs: settings.release.linked_dirs.clone(),
            linked_files: settings.release.linked_files.clone(),
            allowed_signers: settings.source.allowed_signers.as_deref().map(allowed_signers).transpose()?,
            submodules: settings.source.submodules,
            timeout_millis: u64::try_from(STAGE_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
        });
        self.begin_git("stage", What::Stage(release.clone()), &request, clock::now() + STAGE_TIMEOUT + HELPER_GRACE)
    }

    /// Asks the source for its head, and fetches nothing.
    pub(super) fn begin_look(&mut self) -> Result<(), String> {
        let settings = self.settings.clone();
        if matches!(settings.source.credentials, Credentials::Askpass(_)) {
            // The loop does not wait for another's program, and asks it one thing at a time.
            if !std::mem::replace(&mut self.triggering.asking, true) {
                let layout = self.layout.clone();
                self.work(move || {
                    let request = to_fetch(&settings.source, &layout, &Wanted::Configured, settings.source.timeout);
                    Worked::AskedLook(request.map(Box::new))
                });
            }
            return Ok(());
        }
        self.look_now(to_fetch(&settings.source, &self.layout, &Wanted::Configured, settings.source.timeout)?)
    }

    pub(super) fn look_now(&mut self, request: git::Fetch) -> Result<(), String> {
        let deadline = clock::now() + Duration::from_millis(request.timeout_millis) + HELPER_GRACE;
        self.begin_git("look", What::Look, &Request::Look(request), deadline)
    }

    /// Starts the git helper with a request on its standard input.
    pub(super) fn begin_git(&mut self, name: &str, what: What, request: &Request, deadline: MonoTime) -> Result<(), String> {
        let start = launch::own_helper(&self.settings, &self.known, "internal-git", String::new(), &BTreeMap::new())
            .map_err(|error| chain(&error))?;
        let input =
            crate::sys::memory_file(&serde_json::to_vec(request).map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
        let key = self.errands.begin(name, what, Some(deadline));
        let start = Box::new(crate::keeper::protocol::Start { key, ..start });
        self.ask_with(Ask::SpawnIn { start, settings: Vec::new() }, Some(input));
        Ok(())
    }

    pub(super) fn end_step(&mut self, release: &ReleaseId, step: u32) {
        let of = |what: &What| match what {
            What::Step { release: r, step: s, .. } | What::Carry { release: r, step: s, .. } | What::Made { release: r, step: s, .. } => {
                r == release && *s == step
            }
            _ => false,
        };
        for key in self.errands.keys(of) {
            self.end_errand(&key);
        }
    }

    fn begin_step(&mut self, release: ReleaseId, revision: Revision, step: u32, build: &Fingerprint) {
        let settings = self.settings.clone();
        let failed = |release, what| Event::StepFailed { release, step, blame: Blame::Machine, what, last_lines: Vec::new() };
        let step_of = |step: u32| settings.build.steps.get(usize::try_from(step).ok()?.checked_sub(1)?);
        let Some(wanted) = step_of(step).filter(|_| *build == self.deploying.policy.build) else {
            // The configuration changed under the build: the machine begins it anew.
            return self.deploy_event(failed(release, "the configuration has changed".to_owned()));
        };
        if self.begin_once(&release, &revision, step, build, wanted) {
            return;
        }
        match self.begin_carrying(&release, &revision, step, wanted) {
            Ok(true) => {}
            Ok(false) => self.run_step(release, revision, step, None),
            Err(text) => self.deploy_event(failed(release, text)),
        }
    }

    /// Runs a step of the settings as they are now, which those who ask have compared with the build's; `fence`: for the whole fleet.
    pub(super) fn run_step(&mut self, release: ReleaseId, revision: Revision, step: u32, fence: Option<Token>) {
        let settings = self.settings.clone();
        let failed = |release, what| Event::StepFailed { release, step, blame: Blame::Machine, what, last_lines: Vec::new() };
        let Some(wanted) = usize::try_from(step).ok().and_then(|step| settings.build.steps.get(step.checked_sub(1)?)) else {
            return self.step_over_for_all(None, failed(release, "the configuration has changed".to_owned()));
        };
        let env = |name: &str| std::env::var(name).ok();
        let from = self.from(&release, &revision);
        match from.and_then(|from| launch::step(&settings, &self.known, wanted, &from, String::new(), &env)) {
            Ok(mut start) => {
                if let Some(Token(token)) = fence {
                    start.env.push(("SELFSTART_FENCE".to_owned(), token.to_string()));
                    start.env.push(("SELFSTART_NODE".to_owned(), super::showing::machine_id()));
                }
                let deadline = wanted.timeout.map(|timeout| clock::now() + timeout);
                let key = self.errands.begin("build", What::Step { release: release.clone(), step, run: wanted.run.clone() }, deadline);
                self.telling.build_step(&release, step, self.deploying.policy.steps, &wanted.run);
                let start = Box::new(crate::keeper::protocol::Start { key, ..start });
                self.ask(Ask::SpawnIn { start, settings: Vec::new() });
            }
            Err(error) => self.step_over_for_all(None, failed(release, chain(&error))),
        }
    }

    /// A line that the git helper said before its last.
    pub(crate) fn helper_line(&mut self, line: &str) {
        if let Ok(Reply::Progress(progress)) = serde_json::from_str(line) {
            self.deploying.progress = progress;
        }
    }

    /// An errand of a deploy is over: tells the machine.
    pub(crate) fn deploy_errand_over(&mut self, over: Over) {
        let event = match over.what.clone() {
            What::Fetch(fetch) => self.fetch_over(fetch, &over),
            What::Stage(release) => self.stage_over(release, &over),
            What::Runtime { release, build } => self.runtime_over(release, build, &over),
            What::Step { release, step, run } => {
                let event = self.step_over(release, step, &run, &over);
                // What it made is looked at first.
                match &event {
                    Event::StepDone { release, step } if self.begin_made(release, *step) => return,
                    _ => return self.step_over_for_all(Some(&over), event),
                }
            }
            What::Carry { release, revision, step } => return self.carry_over(release, revision, step, &over),
            What::Made { release, step, key } => return self.made_over(release, step, key, &over),
            What::Name(release) => Self::named(release, &over, tidied(&over).err()),
            What::Tidy => return self.tidied(tidied(&over)),
            What::Probe { .. } | What::Leftover | What::Look | What::Notify { .. } => return,
        };
        self.deploy_event(event);
    }

    fn fetch_over(&mut self, fetch: deploy::FetchId, over: &Over) -> Event {
        let network = |text| Event::FetchFailed { fetch, trouble: FetchTrouble::Network, text };
        match reply(over) {
            Some(Reply::Ok(Done::Fetched(fetched))) => {
                for text in &fetched.healed {
                    self.telling.mirror_healed(text);
                }
                Event::Fetched { fetch, revision: fetched.revision }
            }
            Some(Reply::Error(failure)) => {
                let text = match &failure.hint {
                    Some(hint) => format!("{} ({hint})", failure.text),
                    None => failure.text.clone(),
                };
                Event::FetchFailed { fetch, trouble: trouble(failure.kind), text }
            }
            _ if over.timed_out => network("it took longer than `source.timeout`".into()),
            _ => network(cut_short(over)),
        }
    }

    fn stage_over(&mut self, release: ReleaseId, over: &Over) -> Event {
        match reply(over) {
            Some(Reply::Ok(Done::Staged(staged))) => {
                self.telling.staged(&release, &staged.log);
                Event::Staged { release }
            }
            Some(Reply::Error(failure)) => {
                let blame = if failure.kind.is_fault_of_revision() { Blame::Revision } else { Blame::Machine };
                Event::PrepareFailed { release, blame, text: failure.text }
            }
            _ => Event::PrepareFailed { release, blame: Blame::Machine, text: cut_short(over) },
        }
    }

    fn step_over(&self, release: ReleaseId, step: u32, run: &str, over: &Over) -> Event {
        if over.how == Some(Ended::Code(0)) {
            return Event::StepDone { release, step };
        }
        let blame = match over.how {
            // KILL that we did not send: the machine ran out of memory, or somebody ended us all.
            Some(Ended::Signal { number: libc::SIGKILL, .. }) if !over.timed_out && !over.ended_by_us => Blame::Machine,
            Some(Ended::Unknown) | None => Blame::Machine,
            _ => Blame::Revision,
        };
        let why = if over.timed_out { "it took longer than its `timeout`".to_owned() } else { how(over.how) };
        let what = format!("`{run}`: {why}; its output is in `{}`", self.layout.build_log(&release).display());
        Event::StepFailed { release, step, blame, what, last_lines: over.last_lines.clone() }
    }

    fn answer_deploy(&mut self, id: RequestId, outcome: Outcome) {
        self.answered_deploy(id, outcome);
    }
}

/// What the source said of its head; `None`: that what is wanted has none.
pub(super) fn looked(over: &Over) -> Result<Option<Revision>, String> {
    match reply(over) {
        Some(Reply::Ok(Done::Seen(revision))) => Ok(revision),
        Some(Reply::Error(failure)) => Err(failure.text),
        _ if over.timed_out => Err("it took longer than `source.timeout`".into()),
        _ => Err(cut_short(over)),
    }
}

fn to_fetch(source: &SourceSettings, layout: &Layout, wanted: &Wanted, timeout: Duration) -> Result<git::Fetch, String> {
    Ok(git::Fetch {
        mirror: layout.mirror(),
        url: Secret(resolve(&source.repository, "source.repository")?),
        wanted: wanted_ref(wanted, source),
        known: Vec::new(),
        depth: source.depth,
        ca: source.ca.clone(),
        credentials: credentials(source)?,
        allowed_signers: source.allowed_signers.as_deref().map(allowed_signers).transpose()?,
        submodules: source.submodules,
        level: 0,
        proxies: proxies().into_iter().map(|(name, address)| (name, Secret(address))).collect(),
        timeout_millis: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Asks the source whether it has what is configured, as the git helper would be asked, for at most that long; for `check`.
///
/// # Errors
/// What the helper says, with its hint.
pub(crate) fn ask_source(settings: &Settings, longest: Duration) -> Result<(), (String, Option<String>)> {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    let other = |error: &dyn std::error::Error| (chain(error), None);
    let request = to_fetch(&settings.source, &Layout::new(&settings.root), &Wanted::Configured, longest).map_err(|text| (text, None))?;
    let request = serde_json::to_vec(&Request::Look(request)).map_err(|error| other(&error))?;
    let known = crate::sys::users::Known::default();
    let start = launch::own_helper(settings, &known, "internal-git", String::new(), &BTreeMap::new()).map_err(|error| other(&error))?;
    let mut command = Command::new(start.programs.first().map_or("", String::as_str));
    command.args(start.argv.iter().skip(1)).env_clear().envs(start.env).current_dir("/");
    let input = crate::sys::memory_file(&request).map_err(|error| other(&error))?;
    command.stdin(Stdio::from(input)).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some((uid, gid, _)) = start.user.filter(|_| rustix::process::geteuid().is_root()) {
        command.uid(uid).gid(gid);
    }
    let helper = gate::spawn(&mut command).map_err(|error| other(&error))?;
    // It ends itself when its time is over.
    let output = helper.wait_with_output().map_err(|error| other(&error))?;
    let last = output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    match serde_json::from_slice::<Reply>(last) {
        Ok(Reply::Ok(_)) => Ok(()),
        Ok(Reply::Error(failure)) => Err((failure.text, failure.hint)),
        _ => Err((format!("the git helper ended ({})", output.status), None)),
    }
}

fn wanted_ref(wanted: &Wanted, source: &SourceSettings) -> git::Wanted {
    match wanted {
        Wanted::Configured => match &source.wanted {
            WantedRef::Branch(name) => git::Wanted::Branch(name.clone()),
            WantedRef::Tag(name) => git::Wanted::Tag(name.clone()),
            WantedRef::Revision(text) => text.parse().map_or_else(|_| git::Wanted::Branch(text.clone()), git::Wanted::Revision),
        },
        Wanted::Ref(text) => match text.parse() {
            Ok(revision) => git::Wanted::Revision(revision),
            Err(_) => match text.strip_prefix("refs/tags/") {
                Some(tag) => git::Wanted::Tag(tag.to_owned()),
                None => match text.strip_prefix("refs/heads/") {
                    Some(branch) => git::Wanted::Branch(branch.to_owned()),
                    None => git::Wanted::Any(text.clone()),
                },
            },
        },
    }
}

fn credentials(source: &SourceSettings) -> Result<git::Credentials, String> {
    Ok(match &source.credentials {
        Credentials::None => git::Credentials::None,
        Credentials::Token(token) => git::Credentials::Token(Secret(resolve(token, "source.credentials.token")?)),
        Credentials::Password { username, password } => git::Credentials::Password {
            username: Secret(resolve(username, "source.credentials.username")?),
            password: Secret(resolve(password, "source.credentials.password")?),
        },
        Credentials::Askpass(command) => {
            let (username, password) = super::askpass::ask(command, &resolve(&source.repository, "source.repository")?)?;
            git::Credentials::Password { username, password }
        }
        Credentials::Ssh { key, agent, known_hosts } => git::Credentials::Ssh {
            key: key.as_deref().map(ssh_key).transpose()?,
            agent: agent.as_ref().map(ssh_agent).transpose()?,
            known_hosts: known_hosts.clone(),
        },
    })
}

/// Reads a private key: its file is not the helper's to read.
fn ssh_key(path: &Path) -> Result<git::SshKey, String> {
    use std::os::unix::fs::PermissionsExt;
    const KEY: &str = "source.credentials.ssh_key";
    let text = crate::config::secret::read_secret(path, KEY).map_err(|error| chain(&error))?;
    let mode = fs_err::metadata(path).map_err(|error| chain(&error))?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(format!(
            "{KEY}: everybody on this machine may read `{}`, of mode {:04o} (`chmod 0400` it)",
            path.display(),
            mode & 0o7777
        ));
    }
    Ok(git::SshKey { path: path.to_owned(), text: Secret(text + "\n") })
}

/// Reads who may sign; refuses a file that others than root can change, where root can be told from others.
pub(crate) fn allowed_signers(path: &Path) -> Result<String, String> {
    use std::io::Read;
    const KEY: &str = "source.verify.allowed_signers";
    /// Thousands of keys.
    const LONGEST: u64 = 512 * 1024;
    let failed = |why: &dyn std::fmt::Display| format!("{KEY}: `{}` cannot be used: {why}", path.display());
    let (mut path_found, divided) = (path.to_owned(), super::is_apart() || rustix::process::geteuid().is_root());
    if divided {
        // Who could write there would be who decides what is run.
        path_found = trust::way(path, trust::End::Root).map_err(|error| failed(&chain(&error)))?;
    }
    // NONBLOCK: a FIFO in its place must not make the loop wait for a writer.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(&path_found, flags, rustix::fs::Mode::empty()).map_err(|error| failed(&error))?;
    let file = std::fs::File::from(file);
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return Err(failed(&"it is not a regular file"));
    }
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(|error| failed(&error))?;
    if text.len() as u64 > LONGEST {
        return Err(failed(&"it is larger than 512 KiB"));
    }
    Ok(text)
}

fn ssh_agent(agent: &SshAgent) -> Result<PathBuf, String> {
    match agent {
        SshAgent::Socket(socket) => Ok(socket.clone()),
        SshAgent::Environment => std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()).map(Into::into).ok_or_else(|| {
            "source.credentials.ssh_agent: SSH_AUTH_SOCK is not set in selfstart's environment (give the path of the agent's socket)"
                .to_owned()
        }),
    }
}

fn resolve(text: &crate::config::secret::Text, key: &str) -> Result<String, String> {
    let env = |name: &str| std::env::var(name).ok();
    text.resolve(key, &env).map(|resolved| resolved.expose().to_owned()).map_err(|error| chain(&error))
}

/// The proxy settings that git helpers take over from the agent's environment: nothing else of it.
pub(super) fn proxies() -> BTreeMap<String, String> {
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
        .collect()
}

fn trouble(kind: ErrorKind) -> FetchTrouble {
    match kind {
        // A host key does not become right by itself, but by a person: asked for slowly, not once a second.
        ErrorKind::Refused | ErrorKind::HostKey => FetchTrouble::Refused,
        ErrorKind::NotFound | ErrorKind::Unsupported => FetchTrouble::NoSuchRef,
        ErrorKind::Unsigned => FetchTrouble::Unsigned,
        ErrorKind::DiskFull => FetchTrouble::Disk,
        _ => FetchTrouble::Network,
    }
}

/// What a helper that tidied up has said.
fn tidied(over: &Over) -> Result<Vec<String>, String> {
    match reply(over) {
        Some(Reply::Ok(Done::Tidied(said))) => Ok(said),
        Some(Reply::Error(failure)) => Err(failure.text),
        _ => Err(cut_short(over)),
    }
}

/// Removes what proves a release, and says how it was built, once it is gone.
pub(super) fn forget_removed(layout: &Layout, ids: Vec<ReleaseId>, trouble: String, unsure: Option<prune::Unsure>) -> Worked {
    // By what is there, also when it stopped half way: a release that is away is no release.
    let (kept, gone): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| fs_err::symlink_metadata(layout.release(id)).is_ok());
    for id in &gone {
        // What is not there needs no proof; a mark that stays is found without a release, and means nothing.
        let _stays = gate::remove_file(mark_path(layout, id));
        let _stays = gate::remove_file(layout.build_log(id));
    }
    Worked::Pruned { gone, kept, trouble, unsure }
}

/// What a helper said last, if it is an answer.
fn reply(over: &Over) -> Option<Reply> {
    serde_json::from_str(over.last_message.as_deref()?).ok()
}

/// What is told of a git helper that ended without an answer.
fn cut_short(over: &Over) -> String {
    format!("the git helper ended ({}) {}", how(over.how), over.last_lines.join("\n"))
}

pub(super) fn how(ended: Option<Ended>) -> String {
    match ended {
        Some(Ended::Code(code)) => format!("exit {code}"),
        Some(Ended::Signal { number, .. }) => {
            format!("killed by {}", signal_name(number).map_or_else(|| format!("signal {number}"), str::to_owned))
        }
        Some(Ended::Unknown) => "nobody knows how".into(),
        None => "it could not be started".into(),
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
