//! The agent's start: the configuration, what the keeper holds, what the disk remembers, and then the loop.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use selfstart_core::deploy::{Event, Mode, PoolsFound, Saved as DeploySaved, Start};
use selfstart_core::id::ProcessId;
use selfstart_core::time::MonoTime;
use selfstart_core::units::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::deploying::{Deploying, chain, look};
use super::errands::Errands;
use super::line::{Line, LineError, Told};
use super::minding::{self, PoolsSaved};
use super::notifying::Notifying;
use super::output::Outputs;
use super::run::Groups;
use super::run::{Agent, Ending, RunError, Worked, watch_outputs};
use super::serving::{self, Serving};
use super::store;
use super::tell::Telling;
use super::triggering::Triggering;
use crate::cli::exit::Exit;
use crate::config::settings::Settings;
use crate::config::{self, For, Loaded, Surroundings};
use crate::control::server::serve;
use crate::control::socket;
use crate::keeper::protocol::{Ask, Errand, Key, PROTOCOL, Tell, Upgraded, Welcome};
use crate::release::layout::{Layout, Owner};
use crate::release::prune;
use crate::sys::clock;
use crate::sys::gate;
use crate::sys::process::Ended;

/// Under these names the keeper keeps what must outlive an agent.
const KEPT_LOCK: &str = "lock";
const KEPT_CONTROL: &str = "control";

/// Operators' calls that wait for the loop.
const CALLS: usize = 32;

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("the configuration cannot be used")]
    Config(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the line to the keeper")]
    Line(#[from] LineError),
    #[error("the keeper speaks protocol {0}, this agent {PROTOCOL}")]
    Protocol(u32),
    #[error("another selfstart keeps `{}` (its keeper is process {pid})", .root.display())]
    Taken { root: PathBuf, pid: String },
    #[error("failed to {what}")]
    Io {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the agent's loop ended")]
    Run(#[from] RunError),
}

fn doing<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: impl Into<String>) -> impl FnOnce(E) -> BootError {
    move |source| BootError::Io { what: what.into(), source: source.into() }
}

/// Runs the agent; the keeper hears whether to end too, and starts it again if not.
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let config = PathBuf::from(arguments.next().unwrap_or_default());
    let at = At { config, roles: arguments.map(|role| role.to_string_lossy().into_owned()).collect() };
    crate::sys::small_heap();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().max_blocking_threads(8).build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("error: failed to start the agent: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(start(&at));
    // Work that hangs (a sync on a dead disk) must not keep an agent that has ended from making room for the next.
    runtime.shutdown_background();
    crate::telling::log::finish();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(BootError::Run(RunError::Line(LineError::Closed)) | BootError::Line(LineError::Closed)) => ExitCode::FAILURE,
        Err(error) => {
            complain(&format!("error: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Says something on standard error; a closed one is nobody to tell.
fn complain(text: &str) {
    use std::io::Write;
    let _nobody_listens = writeln!(std::io::stderr(), "{text}");
}

/// A child that the keeper had when we came.
pub(crate) struct Child {
    pub(crate) key: Key,
    pub(crate) process: ProcessId,
    pub(crate) streams: Vec<(u8, OwnedFd)>,
    pub(crate) note: String,
}

/// What the keeper had when we came.
#[derive(Default)]
struct Found {
    welcome: Option<Welcome>,
    children: Vec<Child>,
    exits: BTreeMap<Key, (Ended, bool)>,
    kept: BTreeMap<String, OwnedFd>,
    signals: Vec<i32>,
    groups: Groups,
    out_of_memory: BTreeMap<Key, Option<Bytes>>,
    order_failed: Option<String>,
    upgraded: Option<Upgraded>,
}

impl Found {
    /// Takes messages until `last` says that it was the last.
    async fn take(&mut self, line: &mut Line, backlog: &mut VecDeque<Told>, last: impl Fn(&Tell) -> bool) -> Result<(), LineError> {
        loop {
            if backlog.is_empty() {
                backlog.extend(line.next().await?);
            }
            while let Some((tell, mut fds)) = backlog.pop_front() {
                let done = last(&tell);
                match tell {
                    Tell::Welcome(welcome) => self.welcome = Some(welcome),
                    Tell::Child { key, pid, start_ticks, streams, note, .. } => {
                        let streams = streams.into_iter().zip(fds).collect();
                        self.children.push(Child { key, process: ProcessId { pid, start_ticks }, streams, note });
                    }
                    Tell::Exited { key, how, tree_gone, .. } => {
                        self.exits.insert(key, (how, tree_gone));
                    }
                    Tell::Kept { name } => {
                        if let Some(fd) = fds.pop() {
                            self.kept.insert(name, fd);
                        }
                    }
                    Tell::Signalled { number } => self.signals.push(number),
                    Tell::Tree { path, controllers, why } => self.groups = Groups { path, controllers, why },
                    Tell::OutOfMemory { key, peak_bytes, .. } => {
                        self.out_of_memory.insert(key, peak_bytes.map(Bytes));
                    }
                    Tell::Upgraded(upgraded) => self.upgraded = Some(upgraded),
                    Tell::SpawnFailed { .. } | Tell::TreeGone { .. } | Tell::Listed | Tell::Adopted => {}
                    Tell::Errand { failed, .. } => self.order_failed = failed,
                }
                if done {
                    return Ok(());
                }
            }
        }
    }
}

async fn start(at: &At) -> Result<u8, BootError> {
    start_on(Line::open()?, at).await
}

/// Starts at the end of this line.
async fn start_on(mut line: Line, at: &At) -> Result<u8, BootError> {
    let mut found = Found::default();
    let mut backlog = VecDeque::new();
    line.ask(&Ask::Hello { protocol: PROTOCOL }, None)?;
    found.take(&mut line, &mut backlog, |tell| matches!(tell, Tell::Listed)).await?;
    let welcome = found.welcome.clone().ok_or(BootError::Protocol(0))?;
    if welcome.protocol != PROTOCOL {
        return Err(BootError::Protocol(welcome.protocol));
    }
    let first = welcome.agent_starts == 1;
    let (loaded, notes) = match configuration(at) {
        Ok(loaded) => loaded,
        Err(error) => {
            // Only a first start ends on it; an agent that came back is started again by the keeper until somebody mends the file.
            if !first {
                return Err(BootError::Config(error));
            }
            complain(&error.to_string());
            let mut cause = std::error::Error::source(&*error);
            while let Some(error) = cause {
                complain(&format!("  caused by: {error}"));
                cause = error.source();
            }
            line.ask(&Ask::Quit { code: Exit::Configuration.code() }, None)?;
            return Ok(Exit::Configuration.code());
        }
    };
    match assemble(at, loaded, notes, line, found, backlog, welcome).await {
        Ok(agent) => Ok(agent.run().await?),
        Err((error, mut line)) => {
            if first {
                complain(&format!("error: {}", chain(&error)));
                let mut exit = Exit::Failed;
                if matches!(error, BootError::Taken { .. }) {
                    complain("hint: `selfstart status` shows what that one does; a second one needs a `root` of its own");
                    exit = Exit::Refused;
                }
                line.ask(&Ask::Quit { code: exit.code() }, None)?;
                return Ok(exit.code());
            }
            Err(error)
        }
    }
}

/// Loads the configuration; when it is broken and the node has something to keep running, the last good one, with a note.
fn configuration(at: &At) -> Result<(Loaded, Vec<String>), Box<dyn std::error::Error + Send + Sync>> {
    let path = at.config.as_path();
    if let Some((root, why)) = super::apart::last_good() {
        return last_good(at, &root, &why);
    }
    let broken = match load_usable(at) {
        Ok(loaded) => return Ok((loaded, Vec::new())),
        Err(error) => error,
    };
    // What cannot be read here could not be read above, and that is what is told.
    let glimpse = fs_err::read_to_string(path).ok().and_then(|text| crate::cli::site::by_lines(&text));
    let Some(root) = glimpse.map(|glimpse| glimpse.root) else { return Err(broken.into()) };
    let layout = Layout::new(root);
    let good = layout.good_config();
    match load(&good, For::This(&at.roles)) {
        Ok(loaded) if layout.current().is_symlink() => {
            let note = format!("`{}` cannot be used, so `{}` is run: {}", path.display(), good.display(), chain(&broken));
            complain(&format!("warning: {note}"));
            Ok((loaded, vec![note]))
        }
        _ => Err(broken.into()),
    }
}

/// What a node was started with.
#[derive(Clone, Debug)]
pub(crate) struct At {
    /// Its configuration.
    pub(crate) config: PathBuf,
    /// `--role`: what comes on top of the configured roles, whatever the file says later.
    pub(crate) roles: Vec<String>,
}

/// Loads what was run last: others could have written the configuration, so nothing of it is read.
fn last_good(at: &At, root: &Path, why: &str) -> Result<(Loaded, Vec<String>), Box<dyn std::error::Error + Send + Sync>> {
    let good = Layout::new(root.to_owned()).good_config();
    let loaded = load_usable(&At { config: good.clone(), roles: at.roles.clone() })?;
    if loaded.settings.root != root {
        return Err(format!("`{}` is of another `root`; and {why}", good.display()).into());
    }
    let note = format!("`{}` is not believed, so `{}` is run: {why}", at.config.display(), good.display());
    complain(&format!("warning: {note}"));
    Ok((loaded, vec![note]))
}

/// Reads a configuration against this machine.
pub(crate) fn load(path: &Path, node: For<'_>) -> Result<Loaded, config::ConfigErrors> {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
    config::load(path, &Surroundings { env: &config::process_env, cpus, memory: total_memory(), node })
}

/// Reads a configuration that can be run here: it names nobody who is not there.
pub(crate) fn load_usable(at: &At) -> Result<Loaded, config::ConfigErrors> {
    let loaded = load(&at.config, For::This(&at.roles))?;
    let problems = crate::check::unusable(&at.config, &loaded);
    if problems.is_empty() { Ok(loaded) } else { Err(config::ConfigErrors::Invalid(problems)) }
}

/// All of the machine's memory; 0 when it cannot be read, and then pools sized by memory get no worker, which `check` shows.
pub(crate) fn total_memory() -> Bytes {
    let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Bytes(kib.unwrap_or(0).saturating_mul(1024))
}

/// Puts the agent together from what the keeper holds and the disk remembers.
async fn assemble(
    at: &At,
    loaded: Loaded,
    notes: Vec<String>,
    line: Line,
    found: Found,
    backlog: VecDeque<Told>,
    welcome: Welcome,
) -> Result<Agent, (BootError, Line)> {
    let mut line = line;
    match put_together(at, loaded, notes, &mut line, found, backlog, &welcome).await {
        Ok(parts) => Ok(parts.into_agent(line, welcome)),
        Err(error) => Err((error, line)),
    }
}

/// Everything but the line.
struct Parts {
    at: At,
    settings: Arc<Settings>,
    notes: Vec<String>,
    layout: Layout,
    errands: Errands,
    outputs: Outputs,
    outputs_ready: tokio::io::unix::AsyncFd<OwnedFd>,
    telling: Telling,
    deploying: Deploying,
    saved: PoolsSaved,
    found: Found,
    /// What the keeper has said meanwhile.
    backlog: VecDeque<Told>,
    listener: tokio::net::UnixListener,
    bytes: Vec<u8>,
}

async fn put_together(
    at: &At,
    loaded: Loaded,
    mut notes: Vec<String>,
    line: &mut Line,
    mut found: Found,
    mut backlog: VecDeque<Told>,
    welcome: &Welcome,
) -> Result<Parts, BootError> {
    let settings = Arc::new(loaded.settings);
    let layout = Layout::new(&settings.root);
    init_log(&settings);
    // So far only that the configuration was refused and the last good one is run.
    let refused = notes.clone();
    let user = super::launch::who(settings.user.as_ref()).map_err(doing("look up `user`"))?;
    let owner = user.map(|user| Owner { uid: user.credentials.uid, gid: user.credentials.gid });
    notes.extend(super::apart::why_root().map(|why| format!("the agent runs as root: {why}")));
    notes.extend(super::apart::unconfined().map(str::to_owned));
    // The keeper has seen to owners already.
    notes.extend(layout.create(owner.filter(|_| !super::is_apart())).map_err(doing("make the folders below `root`"))?);
    let root = settings.root.display().to_string();
    // Before anybody is adopted: a worker's cgroup says best who belongs to it.
    line.ask(&Ask::Tree { name: tree_name(&settings.app, &settings.root) }, None)?;
    found.take(line, &mut backlog, |tell| matches!(tell, Tell::Tree { .. })).await?;
    let lock = if found.kept.contains_key(KEPT_LOCK) { None } else { Some(lock(&layout, welcome.keeper_pid)?) };
    let saved: PoolsSaved = remembered(&layout.state(), &mut notes)?;
    if let Some(lock) = lock {
        // Held by us until all is adopted, then by the keeper: an agent that dies in between leaves all this to the next.
        line.ask(&Ask::Adopt { root, known: saved.processes() }, None)?;
        found.take(line, &mut backlog, |tell| matches!(tell, Tell::Adopted)).await?;
        line.ask(&Ask::Keep { name: KEPT_LOCK.into() }, Some(lock.into()))?;
    }
    // Who is not there is told when the socket is made.
    let readers = serving::owner(&settings.control).ok().and_then(|owner| owner.gid);
    notes.extend(readers.filter(|_| !super::is_apart()).and_then(|group| super::readers::give(&layout, &settings, group, None)));
    let mut telling = Telling::open(&layout, &settings, welcome, readers);
    refused.iter().for_each(|note| telling.config_refused(note));
    let mut outputs = outputs(line, &mut found.kept, &mut notes)?;
    outputs.set_readers(readers);
    let outputs_ready = watch_outputs(&outputs).map_err(doing("watch the output of workers"))?;
    let (listener, new) = listener(line, &layout, &settings, &mut found.kept, &mut notes)?;
    if new && super::is_apart() {
        // It is ours so far, and must be whose the configuration says before anybody is told that we are there.
        line.ask(&Ask::Errand(Errand::Order), None)?;
        found.take(line, &mut backlog, |tell| matches!(tell, Tell::Errand { .. })).await?;
        notes.extend(found.order_failed.take().map(|why| format!("`control` is not in force: {why}")));
    }
    let journal: DeploySaved = remembered(&layout.journal().join("deploy.json"), &mut notes)?;
    let deploying = Deploying::new(journal, &settings);
    Ok(Parts {
        at: at.clone(),
        layout,
        errands: Errands::new(0),
        outputs,
        outputs_ready,
        telling,
        deploying,
        saved,
        found,
        backlog,
        listener,
        notes,
        bytes: loaded.bytes,
        settings,
    })
}

/// Names the cgroups of a node: two of one app on a machine (a demo, say) have their own.
pub(crate) fn tree_name(app: &str, root: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    // FNV-1a: only to be the same next time.
    let hash = root.as_os_str().as_bytes().iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("selfstart-{app}-{hash:08x}")
}

fn init_log(settings: &Settings) {
    use crate::config::settings::LogFormat;
    use crate::telling::log;
    let format = match settings.log.format {
        LogFormat::Auto => log::LogFormat::Auto,
        LogFormat::Human => log::LogFormat::Human,
        LogFormat::Json => log::LogFormat::Json,
    };
    if let Err(error) = log::init(format, &settings.log.level) {
        complain(&format!("warning: {}", chain(&error)));
    }
}

/// Reads what a former agent kept; nothing, when there is none or it is damaged, which is noted.
fn remembered<T: Default + serde::de::DeserializeOwned>(path: &Path, notes: &mut Vec<String>) -> Result<T, BootError> {
    match store::load(path, store::SCHEMA_NOW, |_, fields| fields).map_err(doing("read what a former agent kept"))? {
        store::Loaded::State(value) => Ok(value),
        store::Loaded::Nothing => Ok(T::default()),
        store::Loaded::Bad { moved_to, why } => {
            let moved = moved_to.map_or_else(|| "and could not be moved aside".to_owned(), |to| format!("moved to `{}`", to.display()));
            notes.push(format!("`{}` was damaged ({why}); {moved}", path.display()));
            Ok(T::default())
        }
    }
}

/// Takes the lock of this root, so that it is kept by one keeper only. It belongs to the open file, which the keeper keeps.
fn lock(layout: &Layout, keeper_pid: i32) -> Result<File, BootError> {
    use std::io::Write;
    let path = layout.run().join("lock");
    let io = |error: std::io::Error| doing(format!("lock `{}`", path.display()))(error);
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE;
    let mut file = gate::File::open(&path, flags, 0o666).map_err(io)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            // Empty between its lock and its word.
            let said = fs_err::read_to_string(&path).ok().filter(|said| !said.trim().is_empty());
            let pid = said.map_or_else(|| "not known yet".to_owned(), |said| said.trim().to_owned());
            return Err(BootError::Taken { root: layout.root().to_owned(), pid });
        }
        Err(error) => return Err(io(error.into())),
    }
    file.set_len(0).map_err(io)?;
    writeln!(file, "{keeper_pid}").map_err(io)?;
    Ok(OwnedFd::from(file).into())
}

/// Goes on with the output of a former agent, or begins anew; what is kept is given to the keeper.
fn outputs(line: &mut Line, kept: &mut BTreeMap<String, OwnedFd>, notes: &mut Vec<String>) -> Result<Outputs, BootError> {
    let names = super::output::KEPT;
    let former: Vec<OwnedFd> = names.iter().filter_map(|name| kept.remove(*name)).collect();
    if let Ok(former) = <[OwnedFd; 3]>::try_from(former) {
        match Outputs::restore(former) {
            Ok(outputs) => return Ok(outputs),
            Err(error) => notes.push(format!("output lines may be missing: {}", chain(&error))),
        }
    }
    let outputs = Outputs::create().map_err(doing("prepare the output of workers"))?;
    for (name, fd) in names.iter().zip(outputs.kept()) {
        let fd = fd.try_clone_to_owned().map_err(doing("copy a descriptor"))?;
        line.ask(&Ask::Keep { name: (*name).to_owned() }, Some(fd))?;
    }
    Ok(outputs)
}

/// Takes the control socket that the keeper holds, or binds it; says whether it did that.
fn listener(
    line: &mut Line,
    layout: &Layout,
    settings: &Settings,
    kept: &mut BTreeMap<String, OwnedFd>,
    notes: &mut Vec<String>,
) -> Result<(tokio::net::UnixListener, bool), BootError> {
    let path = layout.control_socket();
    let making = || format!("listen at `{}`", path.display());
    // A socket file that somebody removed cannot be connected to any more: bound anew.
    if let Some(fd) = kept.remove(KEPT_CONTROL).filter(|_| path.exists()) {
        let listener = socket::from_fd(fd, &path).map_err(doing(making()))?;
        // The configuration may have changed while no agent was there to hear of it. What cannot be had must not end all that runs.
        match serving::owner(&settings.control) {
            Ok(_) if super::is_apart() => {}
            Ok(owner) => {
                if let Err(error) = socket::give(&path, owner) {
                    notes.push(format!("`control` is not in force: {}", chain(&error)));
                }
            }
            Err(error) => notes.push(format!("`control` is not in force: {}", chain(&error))),
        }
        return tokio::net::UnixListener::from_std(listener).map(|listener| (listener, false)).map_err(doing(making()));
    }
    let owner = serving::owner(&settings.control).map_err(doing(making()))?;
    let owner = if super::is_apart() { socket::Owner::default() } else { owner };
    let listener = socket::bind(&path, owner).map_err(doing(making()))?;
    let copy = listener.as_fd().try_clone_to_owned().map_err(doing("copy a descriptor"))?;
    line.ask(&Ask::Keep { name: KEPT_CONTROL.into() }, Some(copy))?;
    tokio::net::UnixListener::from_std(listener).map(|listener| (listener, true)).map_err(doing(making()))
}

impl Parts {
    fn into_agent(self, line: Line, welcome: Welcome) -> Agent {
        let (calls_in, calls) = mpsc::channel(CALLS);
        let mut works = JoinSet::new();
        let serving = Serving::new(&self.settings);
        let gate = serving::gate(&self.settings, &serving, welcome.keeper_pid, self.found.groups.path.as_deref());
        let listener = self.listener;
        works.spawn(async move {
            serve(listener, calls_in, gate, serving::name_of).await;
            Worked::Served
        });
        let notifying = Notifying::new(&self.settings.notify);
        let triggering = Triggering::recall(&self.layout);
        let good = self.layout.good_config();
        let bytes = self.bytes;
        let mut agent = Agent {
            at: self.at,
            settings: self.settings,
            notes: self.notes,
            layout: self.layout,
            line,
            welcome,
            errands: self.errands,
            outputs: self.outputs,
            outputs_ready: self.outputs_ready,
            telling: self.telling,
            deploying: self.deploying,
            triggering,
            notifying,
            onces: super::once::Onces::default(),
            pools: BTreeMap::new(),
            serving,
            calls,
            works,
            ending: Ending::No,
            started_at: clock::wall(),
            dirty: false,
            saving_state: false,
            next_save: MonoTime::ZERO,
            save_due: None,
            save_began: MonoTime::ZERO,
            known: crate::sys::users::Known::default(),
            forget_after_save: Vec::new(),
            forgetting: Vec::new(),
            keeper: None,
            state_trouble: None,
            saves_begun: 0,
            held: Vec::new(),
            being_saved: Vec::new(),
            held_until: None,
            save_again: None,
            drained: false,
            rolling: None,
            sampling: false,
            waiting: super::apart::Waiting::default(),
            rested: false,
            rest_again: clock::now(),
            quit: None,
            next_alive: clock::now(),
            said_status: String::new(),
            said_step: None,
            notified: std::env::var_os("NOTIFY_SOCKET").is_some(),
            groups: self.found.groups,
            out_of_memory: self.found.out_of_memory,
            upgraded: None,
        };
        if let Some(upgraded) = self.found.upgraded {
            agent.upgraded(upgraded);
        }
        if agent.notes.is_empty() {
            agent.work(move || {
                // Of a former agent that was killed while it wrote.
                store::clean_leftovers(&good);
                Worked::ConfigKept(store::write_atomic(&good, &bytes).map_err(|error| chain(&error)))
            });
        }
        agent.recall(self.saved, self.found.children, self.found.exits);
        for number in self.found.signals {
            agent.signalled(number);
        }
        for (tell, fds) in self.backlog {
            agent.told(tell, fds);
        }
        let hidden = crate::sys::hidden::processes().map(|hidden| hidden.to_string());
        for text in agent.limits_not_kept().into_iter().chain(agent.longer_than_a_container_waits()).chain(hidden) {
            if agent.welcome.agent_starts == 1 {
                agent.telling.warn(&text);
            }
            agent.notes.push(text);
        }
        agent.begin_http();
        agent.ask(Ask::Notify { state: format!("READY=1\nSTATUS=minding `{}`", agent.settings.app) });
        agent
    }
}

impl Agent {
    /// Takes up what runs: workers into their slots, helpers of a former agent to be ended.
    fn recall(&mut self, saved: PoolsSaved, children: Vec<Child>, exits: BTreeMap<Key, (Ended, bool)>) {
        self.recall_pools(saved);
        let (workers, helpers): (Vec<Child>, Vec<Child>) = children.into_iter().partition(|child| minding::is_worker(&child.key));
        self.deploying.workers_found = workers.iter().any(|worker| !exits.contains_key(&worker.key));
        if self.this_start() == Start::Boot {
            // Before any worker is started: one that outlives this run must not make of the next one a start that is no trigger.
            self.deploying.boot_is_due = match gate::write_file(self.layout.boot_due(), "") {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!("that a boot is due is not written down: {error}");
                    false
                }
            };
        } else if fs_err::symlink_metadata(self.layout.boot_due()).is_ok() {
            let _stays = gate::remove_file(self.layout.boot_due());
        }
        self.workers_recalled(workers, &exits);
        for Child { key, streams, .. } in helpers {
            self.errands.adopt(key.clone());
            self.errands.listen(&key, streams);
            self.ask(Ask::KillTree { key });
        }
        self.recall_done();
        let strangers = self.outputs.forget_strangers();
        if strangers > 0 {
            tracing::debug!("the output of {strangers} former streams is closed");
        }
        for (key, (how, tree_gone)) in exits {
            if minding::is_worker(&key) {
                self.worker_exited(&key, how, tree_gone);
            } else {
                let over = self.errands.exited(&key, how, tree_gone, clock::now());
                self.ask(if tree_gone { Ask::Forget { key: key.clone() } } else { Ask::ClearTree { key: key.clone() } });
                drop(over);
            }
        }
    }

    /// Whether this is a start that is a trigger.
    fn this_start(&self) -> Start {
        let run = minding::this_run(self.welcome.keeper_pid);
        // Not the first agent only: it may have been killed before it could write down that this run is to be deployed to.
        let taken = if run.is_some() { self.deploying.last_run == run } else { self.welcome.agent_starts > 1 };
        // Workers that a later agent of this run finds may be what the one before has started itself.
        let adopted = self.deploying.workers_found && self.welcome.agent_starts == 1;
        // A run that was killed as a whole, but for a worker, before its boot was taken: this one takes it.
        let due = fs_err::symlink_metadata(self.layout.boot_due()).is_ok();
        if taken || (adopted && !due) { Start::Again } else { Start::Boot }
    }

    /// Gives the machine of deploys what the disk says, once nothing of a former agent's helpers is left.
    pub(crate) fn begin_deploys(&mut self) {
        if !self.is_tidy() {
            return;
        }
        let cleaned = if super::is_apart() { prune::clean_link(&self.layout) } else { prune::clean_leftovers(&self.layout) };
        match cleaned {
            Ok(texts) => texts.iter().for_each(|text| tracing::info!("{text}")),
            Err(error) => self.telling.warn(&chain(&error)),
        }
        prune::clean_marks(&self.layout);
        let running = self.any_worker();
        let run = minding::this_run(self.welcome.keeper_pid);
        let start = self.this_start();
        let pools = if running { PoolsFound::Running } else { PoolsFound::NotRunning };
        let mode = if self.drained { Mode::Drained } else { Mode::Minding };
        match look(&self.layout, start, pools, mode, run) {
            Ok(found) => {
                self.deploying.booted = true;
                self.deploy_event(Event::Booted(found));
                self.trigger_event(selfstart_core::trigger::Event::Booted);
            }
            Err(error) => {
                // What cannot be read is not "nothing": with that, whole releases would be thrown away.
                self.telling.warn(&format!("the releases cannot be read, and are looked at again: {}", chain(&error)));
                self.save_again = Some(clock::now() + super::run::TRY_AGAIN);
                return;
            }
        }
        if running && self.ending == Ending::No && self.rolling.is_none() {
            // What a former agent had not finished: slots that wait for their turn, pools that wait for others. Those that have the release
            // already are left alone.
            let live = self.deploying.machine().live().map(|entry| (entry.id.clone(), entry.revision.clone()));
            for run in self.pools.values_mut().filter(|run| !run.leaving) {
                run.waiting = live.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::time::Duration;

    use selfstart_core::id::Generation;
    use selfstart_core::worker::Target;

    use super::*;
    use crate::keeper::protocol::{decode, encode};
    use crate::sys::packet;

    fn no_tree() -> Tell {
        Tell::Tree { path: None, controllers: Vec::new(), why: "a test".into() }
    }

    /// Plays a keeper that has said all of `tells` before the agent looks; returns what it was asked, up to the word to end.
    fn keep(line: &OwnedFd) -> Vec<Ask> {
        let end = clock::now() + Duration::from_secs(20);
        let mut asked = Vec::new();
        let mut buffer = Vec::new();
        while clock::now() < end {
            match packet::receive(line.as_fd(), &mut buffer) {
                Ok(_) if buffer.is_empty() => break,
                Ok(_) => {
                    let ask = decode::<Ask>(&buffer).expect("a message");
                    if let Ask::Spawn(start) | Ask::SpawnIn { start, .. } = &ask {
                        let tell = Tell::SpawnFailed { key: start.key.clone(), step: crate::sys::spawn::Step::Clone, errno: libc::EAGAIN };
                        packet::send(line.as_fd(), &encode(&tell), &[]).expect("room");
                    }
                    let over = matches!(ask, Ask::Quit { .. });
                    asked.push(ask);
                    if over {
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let wait = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
                    let _looked_at_again =
                        rustix::event::poll(&mut [rustix::event::PollFd::new(line, rustix::event::PollFlags::IN)], Some(&wait));
                }
                Err(_) => break,
            }
        }
        asked
    }

    /// A node whose one pool starts nothing that lasts, and a keeper that is this test.
    struct Scene {
        dir: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::Builder::new().prefix("boot-").tempdir_in("/tmp").expect("a directory");
            let scene = Self { dir };
            let root = scene.root("");
            let text = format!(
                "app: x\nroot: {}\nsource: {{repository: /nonexistent/x, branch: main}}\npools:\n  w: {{command: 'true'}}\n",
                root.display()
            );
            fs_err::write(scene.dir.path().join("config.yaml"), text).expect("written");
            scene
        }

        fn root(&self, below: &str) -> PathBuf {
            self.dir.path().join("root").join(below)
        }

        /// Runs an agent to its end; the keeper has said all of `tells` before it looks. Returns what the agent asked.
        fn run(&self, agent_starts: u32, tells: &[&Tell]) -> Vec<Ask> {
            self.run_with(agent_starts, tells, &[])
        }

        /// As [`Self::run`]; `fds` go with the children of which there are streams.
        fn run_with(&self, agent_starts: u32, tells: &[&Tell], fds: &[BorrowedFd<'_>]) -> Vec<Ask> {
            let (ours, theirs) = packet::pair().expect("a line");
            let keeper_pid = i32::try_from(std::process::id()).expect("a pid");
            let welcome = Tell::Welcome(Welcome {
                protocol: PROTOCOL,
                version: String::new(),
                keeper_pid,
                agent_starts,
                last_agent: None,
                for_upgrade: false,
                program: String::new(),
            });
            for tell in std::iter::once(&welcome).chain(tells.iter().copied()) {
                let fds = if matches!(tell, Tell::Child { streams, .. } if !streams.is_empty()) { fds } else { &[] };
                packet::send(ours.as_fd(), &encode(tell), fds).expect("room");
            }
            let keeper = std::thread::spawn(move || keep(&ours));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().expect("a runtime");
            let config = At { config: self.dir.path().join("config.yaml"), roles: Vec::new() };
            let ended = runtime.block_on(async { start_on(Line::on(theirs).expect("a line"), &config).await });
            let asked = keeper.join().expect("a keeper");
            assert!(matches!(ended, Ok(0)), "{ended:?}; asked: {asked:#?}");
            asked
        }
    }

    #[test]
    fn start_numbers_of_another_keeper_are_passed_over_by_whichever_agent_saves_first() {
        let scene = Scene::new();
        let state = scene.root("run/state.json");
        // The first agent of a first keeper leaves a slot.
        let run = |agent_starts: u32| {
            scene.run(agent_starts, &[&Tell::Listed, &no_tree(), &Tell::Adopted, &Tell::Signalled { number: libc::SIGTERM }]);
            serde_json::from_str::<serde_json::Value>(&fs_err::read_to_string(&state).expect("saved")).expect("JSON")
        };
        let mut saved = run(1);
        let own = saved["keeper"].clone();
        let last = |saved: &serde_json::Value| saved["pools"]["w"]["slots"][0]["slot"]["last_start"].as_u64().expect("a number");
        let other = serde_json::json!({"pid": std::process::id(), "start_ticks": 1});
        for (keeper, agent_starts, more) in [(&own, 2, 0), (&other, 1, 100), (&other, 2, 100), (&serde_json::Value::Null, 2, 100)] {
            let before = last(&saved);
            saved["keeper"] = keeper.clone();
            fs_err::write(&state, saved.to_string()).expect("written");
            saved = run(agent_starts);
            assert_eq!((last(&saved), &saved["keeper"]), (before + more, &own), "{keeper} {agent_starts}");
        }
    }

    /// A worker that is told, with its output if there is any.
    fn told_child(key: &str, streams: Vec<u8>) -> Tell {
        let target = Target {
            generation: Generation(1),
            release: "20200101T000001Z-0000001".parse().expect("a release"),
            revision: "0123456789012345678901234567890123456789".parse().expect("a revision"),
        };
        Tell::Child {
            key: key.to_owned(),
            // More than there can be (pid_max is at most 2^22).
            pid: 5_000_000,
            start_ticks: 1,
            adopted: false,
            streams,
            note: serde_json::to_string(&target).expect("JSON"),
        }
    }

    #[test]
    fn output_that_is_told_after_its_worker_is_kept() {
        let key = "w/0#1".to_owned();
        let (child, later) = (told_child(&key, Vec::new()), told_child(&key, vec![1]));
        let exited = Tell::Exited { key, how: Ended::Code(7), at_micros: 1, tree_gone: true };
        let term = Tell::Signalled { number: libc::SIGTERM };
        // While it comes up, and behind that.
        for tells in [
            [&child, &Tell::Listed, &later, &no_tree(), &Tell::Adopted, &exited, &term],
            [&child, &Tell::Listed, &no_tree(), &Tell::Adopted, &later, &exited, &term],
        ] {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
            rustix::io::write(&write, b"said late\n").expect("room");
            let scene = Scene::new();
            let asked = scene.run_with(2, &tells, &[read.as_fd()]);
            let log = fs_err::read_to_string(scene.root("log/w.0.log")).expect("a log");
            assert!(log.ends_with(" said late\n"), "{log}; {asked:#?}");
            let told = fs_err::read_to_string(scene.root("run/events.jsonl")).expect("a journal");
            assert_eq!(told.lines().filter(|line| line.contains("worker_adopted")).count(), 1, "{told}");
            assert!(!told.contains("trouble"), "{told}");
        }
    }

    #[test]
    fn an_exit_and_a_signal_that_come_before_the_loop_runs_are_not_lost() {
        let key = || "w/0#1".to_owned();
        let child = told_child(&key(), Vec::new());
        let exited = Tell::Exited { key: key(), how: Ended::Code(7), at_micros: 1, tree_gone: true };
        let term = Tell::Signalled { number: libc::SIGTERM };
        let (listed, tree, adopted) = (Tell::Listed, no_tree(), Tell::Adopted);
        // In the list; between the list and the answer about an earlier keeper's children; behind that.
        for (n, said) in [
            [&child, &exited, &listed, &tree, &adopted, &term],
            [&child, &exited, &listed, &tree, &term, &adopted],
            [&child, &listed, &tree, &exited, &term, &adopted],
            [&child, &listed, &tree, &term, &adopted, &exited],
            [&child, &listed, &tree, &adopted, &exited, &term],
        ]
        .into_iter()
        .enumerate()
        {
            let scene = Scene::new();
            let asked = scene.run(2, &said);
            assert!(asked.contains(&Ask::Quit { code: 0 }) && asked.contains(&Ask::Forget { key: key() }), "case {n}: {asked:#?}");
            let told = fs_err::read_to_string(scene.root("run/events.jsonl")).expect("a journal");
            assert_eq!(told.lines().filter(|line| line.contains("worker_ended")).count(), 1, "case {n}: {told}");
        }
    }
}
