//! The runtime of each release: found by a helper before the first build step, kept with the release's mark, given to all that starts in
//! it.
//!
//! It is asked for between the linking of what is shared and the first step, as a part of the former: a release whose agent dies before it
//! is sealed is made anew, and its runtime with it. So the only copy that counts is in the mark, which is the agent's and not the app's
//! user's to change.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use selfstart_core::deploy::{Blame, Event, Fingerprint};
use selfstart_core::id::ReleaseId;
use selfstart_core::runtime::{Captured, Setting, environ};

use super::deploying::{BuiltMark, chain};
use super::errands::{Over, What};
use super::launch::{self, LaunchError};
use super::run::{Agent, Ending};
use super::store;
use crate::config::settings::Settings;
use crate::keeper::protocol::Ask;
use crate::release::layout::Layout;
use crate::runtime::{self, ROOTS, Reply, Request, VERB};
use crate::sys::{clock, gate};

/// The longest that finding a runtime may take: managers are shell scripts of some tenths of a second each.
const CAPTURE_TIMEOUT: Duration = Duration::from_secs(60);

/// What is known of the runtimes of releases; what is not here is in the marks.
#[derive(Debug, Default)]
pub(crate) struct Runtimes {
    known: RefCell<BTreeMap<ReleaseId, Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    captured: Arc<Captured>,
    /// The build settings that it was found by; `None`: it is sealed with the release.
    build: Option<Fingerprint>,
}

impl Runtimes {
    /// Whether the runtime of a release that is being made is found.
    pub(super) fn has(&self, release: &ReleaseId) -> bool {
        self.known.borrow().contains_key(release)
    }

    /// Forgets releases that are gone.
    pub(super) fn forget(&self, gone: &[ReleaseId]) {
        self.known.borrow_mut().retain(|release, _| !gone.contains(release));
    }

    fn add(&self, release: ReleaseId, captured: Captured, build: Option<Fingerprint>) -> Arc<Captured> {
        let captured = Arc::new(captured);
        self.known.borrow_mut().insert(release, Known { captured: Arc::clone(&captured), build });
        captured
    }

    /// Returns the runtime of a release: as it was found for it, else what its mark says. One that was made before there were runtimes
    /// has none.
    ///
    /// # Errors
    /// When the mark cannot be read: without its runtime nothing of a release is started, for it would run on whatever the machine has.
    pub(super) fn of(&self, layout: &Layout, release: &ReleaseId) -> Result<Arc<Captured>, LaunchError> {
        if let Some(known) = self.known.borrow().get(release) {
            return Ok(Arc::clone(&known.captured));
        }
        let path = layout.built_mark(release);
        let unknown = |why: String| LaunchError::Runtime { release: release.clone(), why };
        let captured = match store::load::<BuiltMark>(&path, store::SCHEMA_NOW, |_, fields| fields) {
            Ok(store::Loaded::State(mark)) => mark.runtime.unwrap_or_default(),
            Ok(store::Loaded::Nothing) => return Ok(Arc::default()),
            Ok(store::Loaded::Bad { .. }) => return Err(unknown(format!("`{}` is damaged", path.display()))),
            Err(error) => return Err(unknown(chain(&error))),
        };
        Ok(self.add(release.clone(), captured, None))
    }

    /// Returns what is sealed with a release that was built with these settings.
    pub(super) fn sealed(&self, release: &ReleaseId, build: &Fingerprint) -> Result<Captured, String> {
        let known = self.known.borrow();
        match known.get(release) {
            Some(known) if known.build.as_ref().is_none_or(|it| it == build) => Ok((*known.captured).clone()),
            _ => Err("the configuration has changed".to_owned()),
        }
    }
}

impl Agent {
    /// Finds the runtime of a release that is staged and linked; [`Event::Linked`] follows.
    pub(super) fn begin_runtime(&mut self, release: ReleaseId) {
        if self.ending == Ending::Leaving {
            return;
        }
        let settings = self.settings.clone();
        let path = self.layout.release(&release);
        let nothing = match &settings.build.runtime {
            Setting::None => true,
            // No helper for nothing.
            Setting::Auto => !runtime::asks(&path),
            Setting::By(_) => false,
        };
        if nothing {
            self.deploying.runtimes.add(release.clone(), Captured::default(), Some(self.deploying.policy.build.clone()));
            return self.deploy_event(Event::Linked { release });
        }
        let begun = launch::own_helper(&settings, &self.known, VERB, String::new(), &BTreeMap::new())
            .map_err(|error| chain(&error))
            .and_then(|start| Ok((start, request_file(&request(&settings, &path, start_user(&settings)))?)));
        match begun {
            Ok((start, input)) => {
                let build = self.deploying.policy.build.clone();
                let key = self.errands.begin("runtime", What::Runtime { release, build }, Some(clock::now() + CAPTURE_TIMEOUT));
                let start = Box::new(crate::keeper::protocol::Start { key, ..start });
                self.ask_with(Ask::SpawnIn { start, settings: Vec::new() }, Some(input));
            }
            Err(text) => self.deploy_event(Event::PrepareFailed { release, blame: Blame::Machine, text }),
        }
    }

    /// A helper has found a runtime, or not.
    pub(super) fn runtime_over(&mut self, release: ReleaseId, build: Fingerprint, over: &Over) -> Event {
        let failed = |release, blame, text: String| Event::PrepareFailed { release, blame, text: format!("the runtime: {text}") };
        let reply = over.last_message.as_deref().and_then(|line| serde_json::from_str(line).ok());
        match reply {
            // What is not there may be there tomorrow, and the revision has not done anything wrong: it is tried again.
            Some(Reply::Missing(text)) => failed(release, Blame::Machine, text),
            Some(Reply::Wrong(text)) => failed(release, Blame::Revision, text),
            Some(Reply::Ok(captured)) => match environ::refused(&captured) {
                Some(why) => failed(release, Blame::Machine, why),
                None => {
                    self.telling.runtime(&release, &captured);
                    self.deploying.runtimes.add(release.clone(), captured, Some(build));
                    Event::Linked { release }
                }
            },
            None if over.timed_out => failed(release, Blame::Machine, "its manager took longer than a minute".into()),
            None => failed(release, Blame::Machine, format!("the helper ended without an answer; {}", over.last_lines.join("; "))),
        }
    }
}

/// Looks whether the virtual environment that the runtime names was made by the build.
pub(super) fn missing_venv(captured: &Captured, release: &Path) -> Option<String> {
    let venv = captured.vars.get("VIRTUAL_ENV")?;
    let python = Path::new(venv).join("bin/python");
    let inside = Path::new(venv).strip_prefix(release).map_or_else(|_| venv.clone(), |below| below.display().to_string());
    // A link to a python that is not there is none, either; one that only `user` may follow may well be good.
    let gone = fs_err::metadata(&python).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    gone.then(|| {
        format!(
            "`build.runtime` names the virtual environment `{inside}`, and after the build there is none: `python3 -m venv {inside}` as a \
             build step makes one"
        )
    })
}

fn start_user(settings: &Settings) -> String {
    let own = || {
        let number = rustix::process::geteuid().as_raw().to_string();
        // Who has no account is known by number.
        crate::sys::users::user(&number, None).map_or(number, |user| user.name)
    };
    settings.user.as_ref().map_or_else(own, |spec| spec.user.clone())
}

fn request(settings: &Settings, release: &Path, user: String) -> Request {
    let env = |name: &str| std::env::var(name).ok();
    let root = |name: &&str| {
        let text = settings.build.env.get(*name)?;
        Some(((*name).to_owned(), text.resolve(&format!("build.env.{name}"), &env).ok()?.expose().to_owned()))
    };
    Request { release: release.to_owned(), setting: settings.build.runtime.clone(), user, roots: ROOTS.iter().filter_map(root).collect() }
}

fn request_file(request: &Request) -> Result<std::os::fd::OwnedFd, String> {
    crate::sys::memory_file(&serde_json::to_vec(request).map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}

/// Finds the runtime of a release as a deploy would, and waits for the answer; for `check`.
///
/// # Errors
/// What is missing or wrong.
pub(crate) fn ask_runtime(settings: &Settings, release: &Path) -> Result<Captured, String> {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    let known = crate::sys::users::Known::default();
    let start = launch::own_helper(settings, &known, VERB, String::new(), &BTreeMap::new()).map_err(|error| chain(&error))?;
    let input = request_file(&request(settings, release, start_user(settings)))?;
    let mut command = Command::new(start.programs.first().map_or("", String::as_str));
    command.args(start.argv.iter().skip(1)).env_clear().envs(start.env).current_dir("/");
    command.stdin(Stdio::from(input)).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some((uid, gid, _)) = start.user.filter(|_| rustix::process::geteuid().is_root()) {
        command.uid(uid).gid(gid);
    }
    let (said, ended) = heard(&mut command, CAPTURE_TIMEOUT)?;
    match serde_json::from_slice(&said) {
        Ok(Reply::Ok(captured)) => Ok(captured),
        Ok(Reply::Wrong(text) | Reply::Missing(text)) => Err(text),
        Err(_) => Err(format!("the helper ended without an answer ({ended})")),
    }
}

/// Runs a command for so long at most, and then ends all that it started: a manager is a script of somebody else's.
fn heard(command: &mut std::process::Command, longest: Duration) -> Result<(Vec<u8>, std::process::ExitStatus), String> {
    use std::os::unix::process::CommandExt;
    /// What a helper may say: an environment, and why it is that.
    const MOST: u64 = 4 << 20;
    let mut helper = gate::spawn(command.process_group(0)).map_err(|error| error.to_string())?;
    let said = super::askpass::listen(&mut helper, clock::instant() + longest, MOST);
    if !matches!(said, Ok(Some(_))) {
        let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(&helper), rustix::process::Signal::KILL);
    }
    let ended = helper.wait().map_err(|error| error.to_string())?;
    let said = said.map_err(|error| error.to_string())?;
    Ok((said.ok_or_else(|| format!("not done within {}", selfstart_core::time::Human(longest)))?, ended))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_never_ends_is_ended_with_all_that_it_started() {
        let mut sleeps = std::process::Command::new("/bin/sh");
        sleeps.args(["-c", "sleep 600 & echo $! >&2; wait"]).stdin(std::process::Stdio::null());
        sleeps.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let error = heard(&mut sleeps, Duration::from_millis(300)).expect_err("it was not waited for");
        assert_eq!(error, "not done within 300ms");
        let mut says = std::process::Command::new("/bin/sh");
        says.args(["-c", "head -c 200000 /dev/zero; exit 3"]).stdout(std::process::Stdio::piped());
        let (said, ended) = heard(&mut says, CAPTURE_TIMEOUT).expect("heard");
        assert_eq!((said.len(), ended.code()), (200_000, Some(3)));
    }

    #[test]
    fn the_runtime_of_a_release_is_what_its_mark_says_and_without_a_readable_mark_nothing_is_started() {
        let dir = tempfile::tempdir().expect("a folder");
        let layout = Layout::new(dir.path());
        let id = |name: &str| name.parse::<ReleaseId>().expect("a name");
        let (whole, damaged, older) = (id("20260101T000000Z-aaaaaaa"), id("20260102T000000Z-bbbbbbb"), id("20260103T000000Z-ccccccc"));
        fs_err::create_dir_all(layout.run().join("built")).expect("made");
        let captured = Captured { vars: BTreeMap::from([("GEM_HOME".into(), "/g".into())]), ..Captured::default() };
        let revision = "a".repeat(40).parse().expect("a revision");
        let build = Fingerprint("x".into());
        let mark = BuiltMark { revision, build: build.clone(), runtime: Some(captured.clone()), steps: Vec::new() };
        store::save(&layout.built_mark(&whole), store::SCHEMA_NOW, &mark).expect("saved");
        fs_err::write(layout.built_mark(&damaged), "{").expect("written");
        store::save(&layout.built_mark(&older), store::SCHEMA_NOW, &BuiltMark { runtime: None, ..mark }).expect("saved");
        let runtimes = Runtimes::default();
        assert_eq!(*runtimes.of(&layout, &whole).expect("known"), captured);
        assert!(matches!(runtimes.of(&layout, &damaged), Err(LaunchError::Runtime { .. })));
        assert_eq!(*runtimes.of(&layout, &older).expect("known"), Captured::default());
        // What was found by other settings than those of the build is not sealed with it.
        runtimes.add(id("20260104T000000Z-ddddddd"), captured.clone(), Some(build.clone()));
        assert_eq!(runtimes.sealed(&id("20260104T000000Z-ddddddd"), &build), Ok(captured));
        assert!(runtimes.sealed(&id("20260104T000000Z-ddddddd"), &Fingerprint("y".into())).is_err());
        assert!(runtimes.sealed(&id("20260105T000000Z-eeeeeee"), &build).is_err());
    }
}
