//! `selfstart internal-rights`: the short-lived helper that is root where the agent is not.
//!
//! The keeper starts it by itself, before each agent and when the agent says that the configuration may have changed; its words are the
//! keeper's, its configuration is the one that the keeper was started with. It reads the configuration, if nobody but root can write it, and
//! tells the keeper as whom the agent runs and as whom it may have processes started. It gives what is below `root` to whom it belongs
//! ([`place`]), looks into the processes of others, and has releases removed (as the app's user). What it tells goes to its standard
//! output, as one JSON value.

pub(crate) mod place;
pub(crate) mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use selfstart_core::id::{ProcessId, ReleaseId};
use selfstart_core::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::agent::{self, chain};
use crate::config::For;
use crate::config::settings::{Credentials as SourceCredentials, PoolSettings, Settings, UserSpec};
use crate::control::socket;
use crate::release::layout::{Layout, Owner};
use crate::release::prune::{self, Hands, Pruned, Unreadable, Unsure};
use crate::sys::proc_scan::{ProcScanner, Tree};
use crate::sys::spawn::Credentials;
use crate::sys::users::{self, UserError};
use crate::sys::{gate, identity, links};
use place::{Order, PlaceError};
use trust::End;

/// Whom the agent runs as, where this user is and the keeper is root.
pub(crate) const AGENT_USER: &str = "selfstart";

/// What the keeper was told last, below `root`: who may run when the configuration cannot be understood. Root's, as `root` is.
const RECORD: &str = "rights.json";

/// The longest list of releases, or record, that is read.
const MAX_INPUT: u64 = 1 << 20;

/// A user by numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Who {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

impl Who {
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials { uid: self.uid, gid: self.gid, groups: self.groups.clone() }
    }
}

impl From<Credentials> for Who {
    fn from(found: Credentials) -> Self {
        Self { uid: found.uid, gid: found.gid, groups: found.groups }
    }
}

/// What an agent with a user of its own may have done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Split {
    /// Whom it runs as.
    pub(crate) agent: Who,
    /// Whom it may have processes started as; the first is the app's user.
    pub(crate) users: Vec<Who>,
    /// The only root whose workers it minds.
    pub(crate) root: String,
    /// The name of the only cgroups that it may ask for.
    pub(crate) tree: String,
    /// Whose processes each pool's workers are. A pool that is not in it has none that can be told from others'.
    #[serde(default)]
    pub(crate) pools: BTreeMap<String, u32>,
    /// Whom it was allowed to have processes started as before, by root's record: what is left of those may still be ended.
    #[serde(default)]
    pub(crate) former: BTreeSet<u32>,
}

/// What the keeper is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Grant {
    /// The agent runs as the keeper does; `why`: what an operator should change, nothing: it is meant so.
    AsKeeper {
        /// Why.
        why: String,
    },
    /// The agent has a user of its own.
    Split(Split),
    /// As that, by root's record: the configuration is not to be believed, and the agent runs the last one that was.
    LastGood {
        /// What the record says.
        split: Split,
        /// What is wrong with the configuration, and what to do.
        why: String,
    },
    /// No agent may run.
    Refused {
        /// What, why, and what to do.
        why: String,
    },
}

/// What became of releases that should go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gone {
    /// What did not work; empty: nothing.
    pub(crate) trouble: String,
    /// Those of which it is not known who uses them.
    pub(crate) unsure: Option<(Vec<ReleaseId>, String)>,
}

/// The main process of a tree to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Its number and start.
    pub(crate) main: (i32, u64),
    /// Near this the sum must be exact.
    pub(crate) limit: Option<u64>,
}

impl Gone {
    fn of(result: &Result<Pruned, prune::PruneError>) -> Self {
        match result {
            Ok(pruned) => {
                Self { trouble: pruned.leftovers.join("; "), unsure: pruned.unsure().map(|unsure| (unsure.releases, unsure.text)) }
            }
            Err(error) => Self { trouble: chain(error), unsure: None },
        }
    }

    pub(crate) fn unsure(self) -> (String, Option<Unsure>) {
        (self.trouble, self.unsure.map(|(releases, text)| Unsure { releases, text }))
    }
}

/// Runs the helper: `VERB CONFIG ROLE...`.
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let verb = arguments.next().unwrap_or_default();
    let config = PathBuf::from(arguments.next().unwrap_or_default());
    let roles = arguments.map(|role| role.to_string_lossy().into_owned()).collect();
    let config = agent::At { config, roles };
    let answer = match verb.to_str() {
        Some("order") => order(&config).and_then(|grant| json(&grant)),
        Some("uses") => split(&config).and_then(|(split, _)| uses(&split)),
        Some("prune") => split(&config).and_then(|(split, _)| remove(&split)),
        Some("memory") => memory(),
        _ => Err("this verb is for the keeper's use".to_owned()),
    };
    let told = answer.and_then(|text| std::io::stdout().write_all(&text).map_err(|error| error.to_string()));
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            let _nobody_listens = writeln!(std::io::stderr(), "selfstart {}: {text}", verb.to_string_lossy());
            ExitCode::FAILURE
        }
    }
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|error| error.to_string())
}

/// What can be said of the configuration, before anything is touched.
enum Standing {
    /// The agent has a user of its own.
    Split(Split, Box<Settings>),
    /// As a grant.
    Other(Grant),
    /// The configuration cannot be understood.
    Broken,
    /// Others than root could have written the configuration.
    Untrusted(String),
}

/// Looks who is who.
///
/// # Errors
/// When that cannot be known now.
fn standing(at: &agent::At) -> Result<Standing, String> {
    let config = at.config.as_path();
    let other = |why: String| Ok(Standing::Other(Grant::AsKeeper { why }));
    let agent = match users::user(AGENT_USER, None) {
        // Its own group alone: another one could be as good as root.
        Ok(user) => Credentials { groups: vec![user.credentials.gid], ..user.credentials },
        Err(UserError::NoUser(_) | UserError::NoGroup(_)) => return Ok(Standing::Other(without_agents_user(config))),
        Err(error @ UserError::Unknown(..)) => return Err(chain(&error)),
    };
    if let Err(error) = trust::way(config, End::Root) {
        let why = format!("the configuration says who may run what, so only root may write it: {}", chain(&error));
        return Ok(Standing::Untrusted(why));
    }
    let Ok(settings) = agent::load(config, For::This(&at.roles)).map(|loaded| loaded.settings) else { return Ok(Standing::Broken) };
    let specs: BTreeSet<Option<(&str, Option<&str>)>> = std::iter::once(settings.user.as_ref())
        .chain(settings.pools.iter().filter_map(|pool| pool.user.as_ref()).map(Some))
        .map(|spec| spec.map(names))
        .collect();
    let (mut users, mut numbers) = (Vec::new(), BTreeMap::new());
    // The app's own first.
    let first = settings.user.as_ref().map(names);
    for spec in std::iter::once(first).chain(specs.into_iter().filter(|spec| *spec != first)) {
        // As `check` says: what the repository holds is root anyway.
        let Some((name, group)) = spec else { return other(String::new()) };
        let who = match users::user(name, group) {
            Ok(user) => user.credentials,
            // The agent refuses the configuration for it.
            Err(UserError::NoUser(_) | UserError::NoGroup(_)) => return Ok(Standing::Broken),
            Err(error @ UserError::Unknown(..)) => return Err(chain(&error)),
        };
        if who.uid == 0 {
            return other(String::new());
        }
        if agent.uid == 0 || who.uid == agent.uid || who.gid == agent.gid || who.groups.contains(&agent.gid) {
            let hint = format!("hint: give the app a user of its own, outside of the group `{AGENT_USER}`");
            return shown_first(&settings, format!("`{name}` is, or is in the group of, the user whom the agent runs as\n{hint}"));
        }
        numbers.insert((name, group), who.uid);
        users.push(Who::from(who));
    }
    let uid = |pool: &PoolSettings| numbers.get(&names(pool.user.as_ref().or(settings.user.as_ref())?)).copied();
    let pools = settings.pools.iter().filter_map(|pool| Some((pool.policy.name.as_str().to_owned(), uid(pool)?))).collect();
    if let Err(error) = trust::way(&settings.root, End::Any) {
        return shown_first(&settings, format!("root: {}", chain(&error)));
    }
    if let Some(why) = unreadable(config, &settings, &agent)? {
        return shown_first(&settings, why);
    }
    let split = Split {
        agent: agent.into(),
        users,
        root: settings.root.display().to_string(),
        tree: agent::tree_name(&settings.app, &settings.root),
        pools,
        former: BTreeSet::new(),
    };
    Ok(Standing::Split(split, Box::new(settings)))
}

/// Where there is no user for the agent: it is root, as on any such machine; but not where it has been another user before.
fn without_agents_user(config: &Path) -> Grant {
    use std::os::unix::fs::MetadataExt;
    let root = text_of(config).and_then(|text| crate::cli::site::by_lines(&text)).map(|glimpse| glimpse.root);
    // Whatever it says, and whether it can be believed: that it is there says enough. One of somebody else is nothing to us.
    let of_root = |path: &PathBuf| fs_err::symlink_metadata(path).is_ok_and(|found| found.uid() == 0);
    let Some(path) = root.map(|root| root.join(RECORD)).filter(of_root) else { return Grant::AsKeeper { why: String::new() } };
    let hint = format!("hint: `selfstart install` makes it; or remove `{}`, if the agent shall be root from now on", path.display());
    Grant::Refused { why: format!("the agent of this node ran as user `{AGENT_USER}`, and there is no such user now\n{hint}") }
}

fn names(spec: &UserSpec) -> (&str, Option<&str>) {
    (&spec.user, spec.group.as_deref())
}

/// Lets the agent be root for this reason, but not where it has been another user before: who has taken over such an agent must not become
/// root by spoiling something.
fn shown_first(settings: &Settings, why: String) -> Result<Standing, String> {
    Ok(Standing::Other(match record(&settings.root) {
        Ok(None) => Grant::AsKeeper { why },
        // One that cannot be read is no proof that there never was another user.
        Ok(Some(_)) | Err(_) => Grant::Refused { why },
    }))
}

/// What the agent must read and may not as its own user; `None`: nothing.
fn unreadable(config: &Path, settings: &Settings, agent: &Credentials) -> Result<Option<String>, String> {
    let mut files = vec![config.to_owned()];
    files.extend(settings.secret_files());
    if let SourceCredentials::Ssh { key: Some(key), .. } = &settings.source.credentials {
        files.push(key.clone());
    }
    files.extend(settings.source.allowed_signers.clone());
    files.extend(settings.pools.iter().flat_map(|pool| pool.env_files.iter().cloned()));
    let keeper = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let (denied, program, hidden) = identity::within(agent, || {
        // NONBLOCK: a FIFO in its place must not make us wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let denied = |path: &PathBuf| rustix::fs::open(path, flags, Mode::empty()).is_err_and(|error| error == rustix::io::Errno::ACCESS);
        let program = rustix::fs::access("/proc/self/exe", rustix::fs::Access::EXEC_OK).is_ok();
        let hidden = fs_err::read(format!("/proc/{keeper}/stat")).is_err();
        (files.iter().filter(|path| denied(path)).cloned().collect::<Vec<_>>(), program, hidden)
    })
    .map_err(|error| format!("failed to become `{AGENT_USER}`: {error}"))?;
    if let Some(first) = denied.first() {
        let names: Vec<String> = denied.iter().map(|path| path.display().to_string()).collect();
        return Ok(Some(format!(
            "user `{AGENT_USER}` may not read `{}`\nhint: `chgrp {AGENT_USER} {}` and `chmod 0640`; the folder that it is in `0750`",
            first.display(),
            names.join(" ")
        )));
    }
    if !program {
        return Ok(Some(format!("user `{AGENT_USER}` may not execute the program of selfstart\nhint: `chmod 0755` it")));
    }
    if hidden {
        let hint = format!("hint: mount /proc with `gid={}` beside `hidepid`", agent.gid);
        return Ok(Some(format!("user `{AGENT_USER}` may not see the processes of others in /proc\n{hint}")));
    }
    Ok(None)
}

/// What `check` tells of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// There is no user for it.
    NoUser,
    /// The configuration says that what it starts is root.
    MeantToBeRoot,
    /// It has a user of its own.
    Split,
    /// It is root, and need not be.
    Root(String),
    /// It is not started.
    Refused(String),
    /// That cannot be known now.
    Unknown(String),
}

/// Says as whom the agent of this configuration would run, and changes nothing.
pub(crate) fn outlook(config: &Path, roles: &[String]) -> Outlook {
    let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    if matches!(users::user(AGENT_USER, None), Err(UserError::NoUser(_))) {
        return if let Grant::Refused { why } = without_agents_user(&config) { Outlook::Refused(why) } else { Outlook::NoUser };
    }
    match standing(&agent::At { config, roles: roles.to_vec() }) {
        Ok(Standing::Split(..)) => Outlook::Split,
        Ok(Standing::Broken) => Outlook::MeantToBeRoot,
        Ok(Standing::Other(Grant::AsKeeper { why })) if why.is_empty() => Outlook::MeantToBeRoot,
        Ok(Standing::Other(Grant::AsKeeper { why })) => Outlook::Root(why),
        Ok(Standing::Other(Grant::Refused { why } | Grant::LastGood { why, .. }) | Standing::Untrusted(why)) => Outlook::Refused(why),
        Ok(Standing::Other(Grant::Split(_))) => Outlook::Split,
        Err(why) => Outlook::Unknown(why),
    }
}

/// Puts everything in order, and returns who may do what.
fn order(at: &agent::At) -> Result<Grant, String> {
    match standing(at)? {
        Standing::Other(grant) => Ok(grant),
        Standing::Untrusted(why) => Ok(match last_record(&at.config, Said::ByOthers) {
            Ok(Some(split)) => Grant::LastGood { split, why },
            Ok(None) => Grant::Refused { why },
            Err(record) => Grant::Refused { why: format!("{why}; {record}") },
        }),
        Standing::Broken => Ok(match last_record(&at.config, Said::ByRoot) {
            Ok(Some(split)) => Grant::Split(split),
            Ok(None) => Grant::AsKeeper { why: "the configuration cannot be understood".to_owned() },
            Err(why) => Grant::Refused { why },
        }),
        Standing::Split(mut split, settings) => {
            split.former = former(&split, record(&settings.root).ok().flatten());
            let layout = Layout::new(&settings.root);
            let control = agent::control_owner(&settings).unwrap_or_default();
            let logs: Vec<&Path> = settings.pools.iter().filter_map(|pool| pool.log.file.as_deref()).collect();
            match place::put_in_order(&layout, &wanted(&split, control), &logs) {
                Ok(said) => {
                    for text in said {
                        let _nobody_listens = writeln!(std::io::stderr(), "selfstart: {text}");
                    }
                }
                Err(error @ PlaceError::Planted { .. }) => return Ok(Grant::Refused { why: chain(&error) }),
                // A node that was root's goes on as it was; on any other it may be a disk that fails for a moment, and is tried again.
                Err(error) => {
                    return match record(&settings.root) {
                        Ok(None) => Ok(Grant::AsKeeper { why: chain(&error) }),
                        Ok(Some(_)) | Err(_) => Err(chain(&error)),
                    };
                }
            }
            keep(&settings.root, &at.config, &split)
                .map_err(|error| format!("failed to write `{}`: {error}", settings.root.join(RECORD).display()))?;
            Ok(Grant::Split(split))
        }
    }
}

/// The users whom the record before this one names, and this configuration does not.
fn former(split: &Split, before: Option<Record>) -> BTreeSet<u32> {
    let Some(before) = before.map(|record| record.split).filter(|before| before.root == split.root) else { return BTreeSet::new() };
    let now = |uid: &u32| *uid == 0 || *uid == split.agent.uid || split.users.iter().any(|who| who.uid == *uid);
    before.users.iter().map(|who| who.uid).chain(before.former).filter(|uid| !now(uid)).collect()
}

fn wanted(split: &Split, control: socket::Owner) -> Order {
    let owner = |who: &Who| Owner { uid: who.uid, gid: who.gid };
    let agent = owner(&split.agent);
    Order { agent, user: split.users.first().map_or(agent, owner), readers: control.gid, control: control.uid }
}

/// As [`standing`], for the verbs that need an agent with a user of its own.
fn split(at: &agent::At) -> Result<(Split, Layout), String> {
    let split = match standing(at)? {
        Standing::Split(split, _) => split,
        Standing::Broken => last_record(&at.config, Said::ByRoot)?.ok_or("the configuration cannot be understood")?,
        Standing::Untrusted(why) => last_record(&at.config, Said::ByOthers)?.ok_or(why)?,
        Standing::Other(_) => return Err("the agent has no user of its own".to_owned()),
    };
    let layout = Layout::new(&split.root);
    Ok((split, layout))
}

/// Who uses which release: looked at as root, who may look into everybody.
fn uses(split: &Split) -> Result<Vec<u8>, String> {
    let mut seen = prune::uses(&Layout::new(&split.root).releases()).map_err(|error| chain(&error))?;
    // Thousands of numbers that nobody asks for.
    seen.known.clear();
    json(&seen)
}

/// Removes the releases that are named on standard input and that nobody uses: looked at as root, removed as the app's user.
fn remove(split: &Split) -> Result<Vec<u8>, String> {
    let ids: Vec<ReleaseId> = serde_json::from_slice(&input()?).map_err(|_| "these are no releases".to_owned())?;
    let user = split.users.first().ok_or("there is no user to remove them")?;
    let layout = Layout::new(&split.root);
    let result = prune::prune(&layout, &ids, &Unreadable::KeepAll, None, &Hands::Of(user.credentials()));
    json(&Gone::of(&result))
}

/// How much memory trees have. Whoever has left a worker's session is found by its environment, which others may not read.
fn memory() -> Result<Vec<u8>, String> {
    let measured: Vec<Measured> = serde_json::from_slice(&input()?).map_err(|error| error.to_string())?;
    let mut scanner = ProcScanner::new().map_err(|error| error.to_string())?;
    let snapshot = scanner.scan().map_err(|error| error.to_string())?;
    let tree = |measured: &Measured| Tree {
        main: ProcessId { pid: measured.main.0, start_ticks: measured.main.1 },
        also: Vec::new(),
        limit: measured.limit.map(Bytes),
    };
    let mut trees: Vec<Tree> = measured.iter().map(tree).collect();
    agent::find_those_who_left(&mut trees, &snapshot);
    json(&scanner.memory(&snapshot, &trees).into_iter().map(|bytes| bytes.map(|bytes| bytes.0)).collect::<Vec<_>>())
}

fn input() -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    std::io::stdin().lock().take(MAX_INPUT).read_to_end(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

/// What is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    split: Split,
    /// The configuration that said so: another one's word is not enough to go by it.
    #[serde(default)]
    config: Option<PathBuf>,
}

/// Writes down what the keeper is told: beside, synced, renamed. `root` is root's and sticky, so nobody can put another in its place.
fn keep(root: &Path, config: &Path, split: &Split) -> std::io::Result<()> {
    let new = Record { split: split.clone(), config: Some(config.to_owned()) };
    if record(root).is_ok_and(|kept| kept.as_ref() == Some(&new)) {
        return Ok(());
    }
    const NEW: &str = ".rights.json.new";
    let folder = links::open_directory(root)?;
    match gate::unlinkat(&folder, NEW, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        // A folder: its owner's business, but not under this name. What is in it stays whosever it is.
        Err(rustix::io::Errno::ISDIR) => set_aside(&folder, NEW)?,
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = gate::File::from(gate::openat(&folder, NEW, flags, Mode::from_raw_mode(0o644))?);
    file.write_all(&serde_json::to_vec(&new)?)?;
    file.sync_all()?;
    gate::renameat(&folder, NEW, &folder, RECORD)?;
    Ok(gate::fsync(&folder)?)
}

/// Takes a folder out of the way: removed if it is empty, else renamed.
fn set_aside(root: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    match gate::unlinkat(root, name, AtFlags::REMOVEDIR) {
        Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => {
            // Nobody else makes entries of root's here; a number that is taken is another's, and the next one is tried.
            (0..100)
                .map(|number| format!("{name}.{number}"))
                .find_map(|aside| {
                    let flags = RenameFlags::NOREPLACE;
                    match gate::renameat_with(root, name, root, &aside, flags) {
                        Err(rustix::io::Errno::EXIST) => None,
                        done => Some(done),
                    }
                })
                .unwrap_or(Err(rustix::io::Errno::NOTEMPTY))
        }
        done => done,
    }
}

/// Reads that; `None`: it is not there.
///
/// # Errors
/// Why it cannot be believed. It is then not as if it were not there: that would be a way to make an agent root again.
fn record(root: &Path) -> Result<Option<Record>, String> {
    let path = root.join(RECORD);
    let failed = |error: &dyn std::error::Error| format!("`{}`, root's record of who may run, cannot be read: {error}", path.display());
    let folder = match links::open_directory(root) {
        Ok(folder) => folder,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&folder, RECORD, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let (of_root, found) = (rustix::fs::fstat(folder.as_fd()), rustix::fs::fstat(&file));
    let (of_root, found) = (of_root.map_err(|error| failed(&error))?, found.map_err(|error| failed(&error))?);
    if of_root.st_uid != 0 || found.st_uid != 0 || found.st_nlink != 1 || found.st_mode & 0o022 != 0 {
        return Err(format!(
            "`{}` is not as root wrote it (owner, mode, or a second name)\nhint: look who did that; then remove it",
            path.display()
        ));
    }
    let mut text = Vec::new();
    std::fs::File::from(file).take(MAX_INPUT).read_to_end(&mut text).map_err(|error| failed(&error))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| failed(&error))
}

/// Whose word a configuration is that cannot be taken as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// It cannot be understood.
    ByRoot,
    /// Others could have written it. All that is taken from it is where to look for root's record, which must be one of this very configuration: so
    /// the worst that they can choose is something that root has chosen here before.
    ByOthers,
}

/// As [`record`], of the root that a configuration names that cannot be understood otherwise.
fn last_record(config: &Path, said: Said) -> Result<Option<Split>, String> {
    let Some(glimpse) = text_of(config).and_then(|text| crate::cli::site::by_lines(&text)) else { return Ok(None) };
    if let Err(error) = trust::way(&glimpse.root, End::Any) {
        return Err(format!("root: {}", chain(&error)));
    }
    let here = |record: &Record| record.split.root == glimpse.root.display().to_string();
    let of_this = |record: &Record| said == Said::ByRoot || record.config.as_deref() == Some(config);
    Ok(record(&glimpse.root)?.filter(|record| here(record) && of_this(record)).map(|record| record.split))
}

/// Reads a file that others may have made: what is none, or is endless, is not waited for.
fn text_of(path: &Path) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let mut text = String::new();
    std::fs::File::from(file).take(MAX_INPUT).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn the_record_of_who_may_run_counts_only_as_root_wrote_it() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can give files away");
        }
        let dir = tempfile::Builder::new().prefix("rights-").tempdir_in("/tmp").expect("a directory");
        let root = dir.path().join("root");
        fs_err::create_dir(&root).expect("made");
        let who = |uid: u32| Who { uid, gid: uid, groups: vec![uid] };
        let split = Split {
            agent: who(1001),
            users: vec![who(1002)],
            root: root.display().to_string(),
            tree: "selfstart-x-1".into(),
            pools: BTreeMap::from([("w".to_owned(), 1002)]),
            former: BTreeSet::new(),
        };
        let config = dir.path().join("config.yaml");
        let kept = || record(&root).map(|record| record.map(|record| record.split));
        assert_eq!(record(&root), Ok(None));
        // What is there under the temporary name is not followed.
        symlink("/nowhere/at/all", root.join(".rights.json.new")).expect("planted");
        keep(&root, &config, &split).expect("kept");
        assert_eq!(kept(), Ok(Some(split.clone())));
        let file = root.join(RECORD);
        let mode = |bits: u32| fs_err::set_permissions(&file, std::fs::Permissions::from_mode(bits)).expect("changed");
        mode(0o664);
        assert!(record(&root).is_err(), "the group may write it");
        mode(0o644);
        for (path, back) in [(&file, 0), (&root, 0)] {
            chown(path, Some(65534), None).expect("given");
            assert!(record(&root).is_err(), "{} is another's", path.display());
            chown(path, Some(back), None).expect("taken back");
        }
        fs_err::hard_link(&file, dir.path().join("second")).expect("linked");
        assert!(record(&root).is_err(), "it has a second name");
        fs_err::remove_file(&file).expect("removed");
        symlink(dir.path().join("second"), &file).expect("linked");
        assert!(record(&root).is_err(), "a link");
        // By it a broken configuration names nobody new.
        fs_err::remove_file(&file).expect("removed");
        keep(&root, &config, &split).expect("kept");
        fs_err::write(&config, format!("app: x\nroot: {}\nnonsense: [\n", root.display())).expect("written");
        assert_eq!(last_record(&config, Said::ByRoot), Ok(Some(split.clone())));
        // Nor does one that others can write, and only the one that the record is of: not another app's.
        assert_eq!(last_record(&config, Said::ByOthers), Ok(Some(split.clone())));
        let others = dir.path().join("others.yaml");
        fs_err::copy(&config, &others).expect("copied");
        assert_eq!(last_record(&others, Said::ByOthers), Ok(None));
        // A record of before there was that word is of no configuration.
        fs_err::write(&file, serde_json::to_vec(&split).expect("JSON")).expect("written");
        assert_eq!((last_record(&config, Said::ByRoot), last_record(&config, Said::ByOthers)), (Ok(Some(split)), Ok(None)));
        fs_err::write(&config, "app: x\nroot: /nowhere/at/all\nnonsense: [\n").expect("written");
        assert_eq!(last_record(&config, Said::ByRoot), Ok(None));
        // Root does not wait for what others have put in its place.
        fs_err::remove_file(&config).expect("removed");
        rustix::fs::mknodat(rustix::fs::CWD, &config, rustix::fs::FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
        assert_eq!(last_record(&config, Said::ByOthers), Ok(None));
    }

    #[test]
    fn an_agent_that_had_a_user_is_not_root_because_that_user_is_gone() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can give files away");
        }
        let dir = tempfile::Builder::new().prefix("rights-").tempdir_in("/tmp").expect("a directory");
        let config = dir.path().join("config.yaml");
        fs_err::write(&config, format!("app: x\nroot: {}\n", dir.path().display())).expect("written");
        let never = Grant::AsKeeper { why: String::new() };
        assert_eq!(without_agents_user(&config), never);
        let record = dir.path().join(RECORD);
        fs_err::write(&record, "whatever it says").expect("written");
        let Grant::Refused { why } = without_agents_user(&config) else { panic!("it would be root") };
        assert!(why.contains("there is no such user now") && why.contains("`selfstart install` makes it"), "{why}");
        // One that is not root's says nothing.
        chown(&record, Some(65534), None).expect("given");
        assert_eq!(without_agents_user(&config), never);
    }

    #[test]
    fn whom_the_record_of_before_names_may_still_be_ended_and_is_nobody_else() {
        let who = |uid: u32| Who { uid, gid: uid, groups: vec![uid] };
        let split = |root: &str, agent: u32, users: &[u32], former: &[u32]| Split {
            agent: who(agent),
            users: users.iter().copied().map(who).collect(),
            root: root.into(),
            tree: String::new(),
            pools: BTreeMap::new(),
            former: former.iter().copied().collect(),
        };
        let now = split("/r", 1, &[2], &[]);
        let of = |before: Split| former(&now, Some(Record { split: before, config: None }));
        assert_eq!(of(split("/r", 1, &[2, 3], &[4, 2])), [3, 4].into());
        // Neither root, nor the agent, nor those of another root.
        assert_eq!(of(split("/r", 1, &[0, 1], &[0])), [].into());
        assert_eq!(of(split("/other", 1, &[3], &[4])), [].into());
        assert_eq!(former(&now, None), [].into());
    }

    #[test]
    fn a_folder_in_the_way_of_the_record_is_set_aside() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root keeps the record");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let split = Split {
            agent: Who { uid: 1, gid: 1, groups: vec![1] },
            users: Vec::new(),
            root: "/x".into(),
            tree: String::new(),
            pools: BTreeMap::new(),
            former: BTreeSet::new(),
        };
        for (number, config) in ["a", "b", "c"].into_iter().enumerate() {
            let new = dir.path().join(".rights.json.new");
            fs_err::create_dir(&new).expect("made");
            if number > 0 {
                fs_err::write(new.join("theirs"), "").expect("written");
            }
            keep(dir.path(), Path::new(config), &split).expect("kept");
            assert_eq!(record(dir.path()).expect("read").expect("there").config.as_deref(), Some(Path::new(config)));
        }
        for aside in [".rights.json.new.0/theirs", ".rights.json.new.1/theirs"] {
            assert!(dir.path().join(aside).exists(), "{aside}");
        }
    }
}
