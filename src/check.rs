//! What `selfstart check` looks at: the configuration, and whether this machine has what it names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use selfstart_core::runtime::choose::LANGUAGES;
use selfstart_core::runtime::{Captured, Setting};

use crate::agent;
use crate::cli::check::{Checkup, Finding, Weight};
use crate::config::problem::Problem;
use crate::config::secret::read_secret;
use crate::config::settings::{Credentials, Elsewhere, Once, PoolSettings, QueueKind, Settings, What};
use crate::config::{ConfigErrors, For, Loaded, process_env};
use crate::release::layout::Layout;
use crate::release::switch;
use crate::release::transport::ssh;
use crate::rights::{self, AGENT_USER, Outlook};
use crate::sys::cgroup;
use crate::sys::hidden;
use crate::sys::links;
use crate::sys::users::{self, UserError};

/// The longest that a queue may take to answer.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest that the source may take to answer.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(10);

fn finding(weight: Weight, text: impl Into<String>, hint: Option<&str>) -> Finding {
    Finding { weight, text: text.into(), hint: hint.map(str::to_owned) }
}

/// Returns everything that was looked at. `offline`: nobody else is asked.
pub(crate) fn checkup(path: &Path, roles: &[String], offline: bool) -> Checkup {
    let refused = |findings| Checkup { findings, explained: None };
    let loaded = match agent::load(path, For::This(roles)) {
        Ok(loaded) => loaded,
        Err(ConfigErrors::Unreadable { path, source }) => {
            let text = format!("{}: cannot be read: {source}", path.display());
            return refused(vec![finding(Weight::Problem, text, Some("name another file with --config"))]);
        }
        Err(error) => return refused(error.problems().iter().map(|problem| problem_finding(Weight::Problem, problem)).collect()),
    };
    let mut found: Vec<Finding> = loaded.warnings.iter().map(|problem| problem_finding(Weight::Warning, problem)).collect();
    found.extend(unusable(path, &loaded).iter().map(|problem| problem_finding(Weight::Problem, problem)));
    found.extend(of_agent(path, roles, &loaded.settings));
    found.extend(of_second_names(&loaded.settings, fs_err::read_to_string(PROTECTED_HARDLINKS).ok().as_deref()));
    found.extend(of_folders_of_env_files(&loaded.settings));
    found.extend(of_node(&loaded.settings));
    found.extend(of_machine(&loaded.settings));
    let runs = found.iter().all(|finding| finding.weight != Weight::Problem);
    if runs && !offline {
        found.push(of_source(&loaded.settings));
    }
    // Explained is what the file says, for whatever node.
    let whole = agent::load(path, For::Any).unwrap_or(loaded);
    Checkup { findings: found, explained: Some(whole.explained) }
}

/// A problem prints its own hint on a line of its own.
fn problem_finding(weight: Weight, problem: &Problem) -> Finding {
    Finding { weight, text: problem.to_string(), hint: None }
}

/// Returns what makes a configuration that is in order of no use on this machine: it names somebody who is not there, or whom we may not
/// become. `run` refuses it as it refuses a wrong one.
pub(crate) fn unusable(path: &Path, loaded: &Loaded) -> Vec<Problem> {
    let settings = &loaded.settings;
    let mut problems = Vec::new();
    let mut say = |key: String, what: String, hint: &str| {
        let at = loaded.explained.mark(&key);
        problems.push(Problem { path: path.to_owned(), at, key, what, found: None, allowed: None, hint: Some(hint.to_owned()) });
    };
    let own = rustix::process::geteuid();
    let of_pool = |pool: &PoolSettings| Some((format!("pools.{}.user", pool.policy.name), pool.user.clone()?));
    let app = settings.user.iter().map(|spec| ("user".to_owned(), spec.clone()));
    for (key, spec) in app.chain(settings.pools.iter().filter_map(of_pool)) {
        match users::user(&spec.user, spec.group.as_deref()) {
            Ok(user) if !own.is_root() && !agent::is_apart() && user.credentials.uid != own.as_raw() => {
                let what = format!("`{}` is another user, and only root can start what another user runs", spec.user);
                say(key, what, "start selfstart as root, or leave it out");
            }
            Err(error @ UserError::NoUser(_)) => say(key, error.to_string(), "`useradd --system NAME` makes one"),
            Err(error @ UserError::NoGroup(_)) => say(key, error.to_string(), "`groupadd --system NAME` makes one"),
            // Who cannot be asked for now may well be there.
            Ok(_) | Err(UserError::Unknown(..)) => {}
        }
    }
    let control = &settings.control;
    if let Some(Err(error @ UserError::NoUser(_))) = control.owner.as_deref().map(|name| users::user(name, None)) {
        say("control.owner".into(), error.to_string(), "`useradd --system NAME` makes one");
    }
    if let Some(Err(error @ UserError::NoGroup(_))) = control.group.as_deref().map(users::group_number) {
        say("control.group".into(), error.to_string(), "`groupadd --system NAME` makes one");
    }
    problems
}

/// Whom the agent runs as, which `run` decides in the same way when root starts it.
fn of_agent(path: &Path, roles: &[String], settings: &Settings) -> Option<Finding> {
    // Where builds and workers are root, nothing is won; that is said of `user`.
    if !rustix::process::geteuid().is_root() || settings.user.is_none() {
        return None;
    }
    let (weight, why) = match rights::outlook(path, roles) {
        Outlook::NoUser => {
            let text = format!("agent: there is no system user `{AGENT_USER}`, so the agent runs as root");
            let hint = format!("`selfstart install` makes it; or `useradd --system --user-group --no-create-home {AGENT_USER}`");
            return Some(finding(Weight::Warning, text, Some(&hint)));
        }
        // Said of `user` already.
        Outlook::MeantToBeRoot => return None,
        Outlook::Split => return Some(finding(Weight::Good, format!("agent: runs as user `{AGENT_USER}`, without capabilities"), None)),
        Outlook::Root(why) => (Weight::Warning, format!("agent: runs as root: {why}")),
        Outlook::Refused(why) => (Weight::Problem, format!("agent: is not started: {why}")),
        Outlook::Unknown(why) => (Weight::Warning, format!("agent: as whom it will run cannot be told now: {why}")),
    };
    let (text, hint) = why.split_once("\nhint: ").map_or((why.as_str(), None), |(text, hint)| (text, Some(hint)));
    Some(finding(weight, text, hint))
}

/// What the configuration has for other nodes, and what is for none like this by mistake.
fn of_node(settings: &Settings) -> Vec<Finding> {
    let mut found = Vec::new();
    for Elsewhere { what, only } in &settings.elsewhere {
        let key = match what {
            What::Pool(name) => format!("pools.{name}.only"),
            What::Step(run) | What::WaitedStep(run) => format!("build.steps: `{}`: only", run.lines().next().unwrap_or_default()),
        };
        let not_here = if let What::WaitedStep(_) = what { "not for this node, which waits for its result" } else { "not for this node" };
        let unknown: Vec<&str> = only.unknown(&settings.node).collect();
        if unknown.is_empty() {
            found.push(finding(Weight::Good, format!("{key}: {only}: {not_here}"), None));
        } else {
            let names = unknown.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let text = format!("{key}: {only}: {not_here}; it has no attribute {names}");
            found.push(finding(Weight::Warning, text, Some("`attributes:` says what a node is; write there what it is not, too")));
        }
    }
    for step in settings.build.steps.iter().filter(|step| step.once.is_some() && settings.fleet.is_none()) {
        let run = step.run.lines().next().unwrap_or_default();
        let key = if step.once == Some(Once::ByPrimary) { "only.primary" } else { "once_per" };
        let text = format!("build.steps: `{run}`: {key}: there is no `fleet.redis`, so each node does it for itself");
        let hint = format!("`fleet: {{redis: URL}}` lets the nodes agree on one; of a node that is alone, leave `{key}` out");
        found.push(finding(Weight::Warning, text, Some(&hint)));
    }
    if settings.pools.is_empty() {
        let text = "pools: none is for this node: it deploys, and runs no worker";
        found.push(finding(Weight::Warning, text, Some("`roles:` or `--role` says what this node is for")));
    }
    found
}

/// Whether users can give others' files second names (`proc_sys_fs(5)`).
const PROTECTED_HARDLINKS: &str = "/proc/sys/fs/protected_hardlinks";

/// Second names of files, by which who owns a folder of ours could have files of root's given away. `said`: what the kernel says of them.
fn of_second_names(settings: &Settings, said: Option<&str>) -> Option<Finding> {
    let divided = rustix::process::geteuid().is_root() && settings.user.is_some();
    if !divided || said.is_none_or(|said| said.trim() != "0") {
        return None;
    }
    let hint = "`sysctl fs.protected_hardlinks=1`, and the same in /etc/sysctl.d";
    let text = "agent: fs.protected_hardlinks is 0, so users can give files of root's second names in folders of theirs";
    Some(finding(Weight::Warning, text, Some(hint)))
}

/// Files of `env_files` that the pool's own user can replace: it would decide what is read with the agent's rights.
fn of_folders_of_env_files(settings: &Settings) -> Vec<Finding> {
    let found = |pool: &PoolSettings, path: &Path| {
        let spec = pool.user.as_ref().or(settings.user.as_ref())?;
        let user = users::user(&spec.user, spec.group.as_deref()).ok().filter(|user| user.credentials.uid != 0)?;
        let folder = path.ancestors().skip(1).find(|folder| fs_err::metadata(folder).is_ok_and(|found| may_replace_in(&found, &user)))?;
        let key = format!("pools.{}.env_files", pool.policy.name);
        let text = format!("{key}: user `{}` can write in `{}`, so it can replace `{}`", user.name, folder.display(), path.display());
        Some(finding(Weight::Warning, text, Some("keep it where only root can write, as in /etc/selfstart")))
    };
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    settings.pools.iter().flat_map(|pool| pool.env_files.iter().filter_map(move |path| found(pool, path))).collect()
}

fn of_machine(settings: &Settings) -> Vec<Finding> {
    let mut found = Vec::new();
    if rustix::process::geteuid().is_root() && settings.user.is_none() {
        let hint = "name an unprivileged user with `user:`; what the repository holds is executed";
        found.push(finding(Weight::Warning, "user: not set, so builds and workers run as root", Some(hint)));
    }
    found.extend(of_root(settings));
    found.extend(lasts(settings));
    found.extend(hidden::processes().map(|hidden| finding(Weight::Warning, hidden.to_string(), None)));
    found.extend(of_files(settings));
    found.extend(of_ssh(settings));
    found.extend(of_askpass(settings));
    found.extend(of_signers(settings));
    found.extend(of_secrets(settings));
    found.extend(of_memory(settings));
    found.extend(of_queues(settings));
    found.extend(of_runtime(settings));
    found.extend(of_limits(settings, &cgroup::controllers_here().unwrap_or_default()));
    found
}

/// Which ruby, node and python the live release would run if it were made now, and why; before there is one, only what the configuration
/// itself names can be looked for.
fn of_runtime(settings: &Settings) -> Vec<Finding> {
    let own = rustix::process::geteuid();
    let theirs = settings.user.as_ref().and_then(|spec| users::user(&spec.user, None).ok());
    if settings.build.runtime == Setting::None || theirs.is_some_and(|user| !own.is_root() && user.credentials.uid != own.as_raw()) {
        // The managers in somebody else's home are not ours to see.
        return Vec::new();
    }
    let layout = Layout::new(&settings.root);
    let live = match switch::current(&layout) {
        Ok(switch::Current::Release(id)) => Some(layout.release(&id)),
        _ => None,
    };
    if live.is_none() && settings.build.runtime == Setting::Auto {
        return Vec::new();
    }
    let release = live.as_deref().unwrap_or(Path::new("/"));
    let captured = match agent::ask_runtime(settings, release) {
        Ok(captured) => captured,
        // Without a release there is no file that could say more.
        Err(text) if live.is_none() && text.contains("no file of the release names") => return Vec::new(),
        Err(text) => return vec![finding(Weight::Warning, format!("build.runtime: {text}"), None)],
    };
    let mut found: Vec<Finding> = captured.tools.iter().map(|tool| finding(Weight::Fact, format!("build.runtime: {tool}"), None)).collect();
    found.extend(captured.notes.iter().map(|note| finding(Weight::Warning, format!("build.runtime: {note}"), None)));
    found.extend(of_runtime_of_others(settings, &captured));
    if live.is_some() {
        for tool in LANGUAGES.iter().filter(|tool| !captured.tools.iter().any(|it| it.tool == **tool)) {
            let program = if *tool == "python" { "python3" } else { tool };
            let own = agent::PATH.split(':').map(|entry| Path::new(entry).join(program)).find(|path| path.exists());
            found.extend(own.map(|path| {
                let text =
                    format!("build.runtime: {tool}: {}, the machine's own: nothing in the release asks for a version", path.display());
                finding(Weight::Fact, text, None)
            }));
        }
    }
    found
}

/// Pools of another user to whom the runtime, found for the app's, is closed: it lies in a home of mode 0700, as a rule.
fn of_runtime_of_others(settings: &Settings, captured: &Captured) -> Vec<Finding> {
    let mut found = Vec::new();
    for pool in &settings.pools {
        let Some(user) = pool.user.as_ref().and_then(|spec| users::user(&spec.user, spec.group.as_deref()).ok()) else { continue };
        for tool in &captured.tools {
            let Some(closed) = closed_to(Path::new(&tool.program), &user) else { continue };
            let text = format!(
                "pools.{}.user: `{}` cannot run {} of build.runtime, `{}`: `{}` is closed to it",
                pool.policy.name,
                user.name,
                tool.tool,
                tool.program,
                closed.display()
            );
            let hint = "install it where every user may enter (/opt, /usr/local), and say where in `build.env`";
            found.push(finding(Weight::Warning, text, Some(hint)));
        }
    }
    found
}

/// The first part of the way to a program that a user may not enter, or the program itself if the user may not execute it; by the way that
/// is written and by the one that links make of it. What we may not look at either is not said to be closed.
fn closed_to(program: &Path, user: &users::User) -> Option<PathBuf> {
    let parts = |path: &Path| path.ancestors().map(Path::to_owned).collect::<Vec<_>>().into_iter().rev();
    let real = fs_err::canonicalize(program).ok();
    let mut way = parts(program).chain(real.iter().flat_map(|path| parts(path)));
    way.find(|part| fs_err::metadata(part).is_ok_and(|found| !may(&found, user, 1)))
}

/// Whether this machine can keep the limits that need cgroups.
fn of_limits(settings: &Settings, controllers: &[String]) -> Vec<Finding> {
    let mut found = Vec::new();
    for pool in &settings.pools {
        let limits = &pool.limits;
        let wanted = [
            ("cpu", limits.cpu.is_some(), "cpu", "is not kept"),
            ("tasks", limits.tasks.is_some(), "pids", "is not kept"),
            ("memory", limits.memory.is_some(), "memory", "is kept by sampling only"),
            ("memory_high", limits.memory_high.is_some(), "memory", "is not kept"),
        ];
        for (key, _, controller, so) in
            wanted.into_iter().filter(|(_, set, controller, _)| *set && !controllers.iter().any(|it| it == controller))
        {
            let text = format!("pools.{}.limits.{key}: {so}: this machine's cgroup v2 has no controller `{controller}`", pool.policy.name);
            found.push(finding(Weight::Warning, text, Some("boot with `systemd.unified_cgroup_hierarchy=1` if it has the old hierarchy")));
        }
    }
    found
}

/// Whether `root` can be made or written, and has the room that a deploy asks for.
fn of_root(settings: &Settings) -> Vec<Finding> {
    let root = &settings.root;
    // What is not there yet is made in the nearest directory above it that is.
    let Some(there) = root.ancestors().find(|path| fs_err::symlink_metadata(path).is_ok()) else { return Vec::new() };
    let text = |why: &dyn std::fmt::Display| format!("root: `{}` cannot be written: {why}", there.display());
    let hint = "name another directory with `root:`, or give it to who runs selfstart";
    if !fs_err::metadata(there).is_ok_and(|found| found.is_dir()) {
        return vec![finding(Weight::Problem, text(&"not a directory"), Some(hint))];
    }
    let may = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let below = ["run", "releases", "log", "shared"].map(|name| root.join(name)).into_iter().filter(|path| path.exists());
    for path in std::iter::once(there.to_owned()).chain(below) {
        if let Err(error) = rustix::fs::access(&path, may) {
            let why = std::io::Error::from(error);
            let text = format!("root: `{}` cannot be written: {why}", path.display());
            return vec![finding(Weight::Problem, text, Some(hint))];
        }
    }
    let wanted = settings.release.min_free;
    match links::free_bytes(there) {
        Ok(free) if free < wanted.0 => {
            let free = selfstart_core::units::Bytes(free);
            let text = format!("release.min_free: {free} are free at `{}`, and nothing is deployed below {wanted}", there.display());
            vec![finding(Weight::Warning, text, Some("make room, or lower `release.min_free`"))]
        }
        _ => vec![finding(Weight::Good, format!("root: `{}` can be written", there.display()), None)],
    }
}

/// Whether `root` is there after a reboot.
fn lasts(settings: &Settings) -> Option<Finding> {
    let there = settings.root.ancestors().find(|path| path.exists())?;
    let in_memory = rustix::fs::statfs(there).ok()?.f_type == libc::TMPFS_MAGIC;
    let text = format!("root: `{}` is in memory: a reboot loses releases, `shared/`, holds and logs", settings.root.display());
    let hint = "name a directory on a disk, if it should come up without its source";
    in_memory.then(|| finding(Weight::Warning, text, Some(hint)))
}

/// Files that helpers and workers need; what holds secrets of `${file:...}` is looked at in [`of_secrets`].
fn of_files(settings: &Settings) -> Vec<Finding> {
    let source = &settings.source;
    let known_hosts = match &source.credentials {
        Credentials::Ssh { known_hosts, .. } => known_hosts.as_ref(),
        _ => None,
    };
    let user = settings.user.as_ref().and_then(|spec| users::user(&spec.user, spec.group.as_deref()).ok());
    let for_helper = [("source.ca", source.ca.as_ref()), ("source.credentials.known_hosts", known_hosts)];
    let for_helper = for_helper.into_iter().filter_map(|(key, path)| Some((key.to_owned(), path?, user.as_ref())));
    // Read by the agent.
    let of_pool = |pool: &'_ PoolSettings| format!("pools.{}.env_files", pool.policy.name);
    let for_agent = settings.pools.iter().flat_map(|pool| pool.env_files.iter().map(move |path| (of_pool(pool), path, None)));
    for_helper
        .chain(for_agent)
        .filter_map(|(key, path, reader)| {
            let why = match fs_err::File::open(path).and_then(|file| file.metadata()) {
                Ok(found) if !found.is_file() => "not a regular file".to_owned(),
                Ok(found) => match reader {
                    Some(user) if !may_read(&found, user) => format!("user `{}` may not read it", user.name),
                    _ => return None,
                },
                Err(error) => std::io::Error::from(error.kind()).to_string(),
            };
            let text = format!("{key}: `{}` cannot be read: {why}", path.display());
            Some(finding(Weight::Problem, text, Some("put the file there, readable for who needs it, or name another")))
        })
        .collect()
}

/// Who may sign: a file that can be used, and that nobody else can change.
fn of_signers(settings: &Settings) -> Vec<Finding> {
    const KEY: &str = "source.verify.allowed_signers";
    let Some(path) = &settings.source.allowed_signers else { return Vec::new() };
    let text = match agent::allowed_signers(path) {
        Ok(text) => text,
        Err(text) => return vec![finding(Weight::Problem, text, None)],
    };
    let signers = crate::release::signed::Signers::parse(&text, &jiff::tz::TimeZone::system());
    let lines = "lines are `NAME namespaces=\"git\" KEY` (ssh-keygen(1), ALLOWED SIGNERS)";
    if signers.is_empty() {
        let text = format!("{KEY}: `{}` allows nobody to sign: nothing can be deployed", path.display());
        return vec![finding(Weight::Problem, text, Some(lines))];
    }
    let told = |trouble: &String| finding(Weight::Warning, format!("{KEY}: `{}`, {trouble}", path.display()), Some(lines));
    signers.trouble.iter().map(told).collect()
}

/// The program that knows the password: there, and nobody's to change.
fn of_askpass(settings: &Settings) -> Option<Finding> {
    let Credentials::Askpass(command) = &settings.source.credentials else { return None };
    agent::askpass_trusted(command).err().map(|text| finding(Weight::Problem, text, None))
}

/// What a source over ssh needs here: the client, and a key that can be used and that the app's user cannot read.
fn of_ssh(settings: &Settings) -> Vec<Finding> {
    const KEY: &str = "source.credentials.ssh_key";
    let source = &settings.source;
    let mut found = Vec::new();
    if source.is_ssh() && ssh::client(agent::PATH.as_ref()).is_none() {
        found.push(finding(Weight::Problem, "source.repository: there is no `ssh` client on this machine", Some(ssh::INSTALL)));
    }
    let Credentials::Ssh { key: Some(path), .. } = &source.credentials else { return found };
    let shown = path.display();
    let text = match read_secret(path, KEY) {
        Ok(text) => text,
        Err(error) => {
            let hint = "put the key there, readable for selfstart and not for `user`, or name another";
            found.push(finding(Weight::Problem, agent::chain(&error), Some(hint)));
            return found;
        }
    };
    if let Err(error) = ssh::key::PrivateKey::parse(&text) {
        found.push(finding(Weight::Problem, format!("{KEY}: `{shown}` cannot be used: {error}"), Some(error.hint())));
    }
    let Ok(file) = fs_err::metadata(path) else { return found };
    let user = settings.user.as_ref().and_then(|spec| users::user(&spec.user, spec.group.as_deref()).ok());
    if std::os::unix::fs::MetadataExt::mode(&file) & 0o007 != 0 {
        let text = format!("{KEY}: everybody on this machine may read `{shown}`");
        found.push(finding(Weight::Problem, text, Some("`chmod 0400` it")));
    } else if let Some(user) = user.filter(|user| user.credentials.uid != 0 && may_read(&file, user)) {
        let text = format!("{KEY}: user `{}` may read `{shown}`, and so may what the repository holds", user.name);
        found.push(finding(
            Weight::Warning,
            text,
            Some("`chown root:selfstart` and `chmod 0640` it: selfstart reads it and hands out signatures only"),
        ));
    }
    found
}

/// Whether a user can put another file in place of one in this folder that is not its own; in a sticky one only the folder's owner can.
fn may_replace_in(folder: &std::fs::Metadata, user: &users::User) -> bool {
    use std::os::unix::fs::MetadataExt;
    const STICKY: u32 = 0o1000;
    folder.uid() == user.credentials.uid || (may(folder, user, 2) && folder.mode() & STICKY == 0)
}

fn may_read(file: &std::fs::Metadata, user: &users::User) -> bool {
    may(file, user, 4)
}

/// By the file's own mode (`path_resolution(7)`); an access list may say otherwise. `what`: 4 to read, 2 to write, 1 to enter or
/// execute.
fn may(file: &std::fs::Metadata, user: &users::User, what: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    let who = &user.credentials;
    let shift = if file.uid() == who.uid {
        6
    } else if file.gid() == who.gid || who.groups.contains(&file.gid()) {
        3
    } else {
        0
    };
    who.uid == 0 || file.mode() >> shift & what != 0
}

/// Whether the source answers and has what is configured. It is asked again by every deploy, so it is a warning.
fn of_source(settings: &Settings) -> Finding {
    let shown = settings.source.repository.to_string();
    match agent::ask_source(settings, SOURCE_TIMEOUT.min(settings.source.timeout)) {
        Ok(()) => finding(Weight::Good, format!("source: `{shown}` has what is wanted"), None),
        Err((text, hint)) => {
            let hint = hint.map_or_else(
                || "look at `source` and the network; `--offline` leaves it out".to_owned(),
                |hint| format!("{hint}; `--offline` leaves it out"),
            );
            finding(Weight::Warning, format!("source: {text}"), Some(&hint))
        }
    }
}

/// Secrets are read now, so that a missing file is not found out at three in the morning.
fn of_secrets(settings: &Settings) -> Vec<Finding> {
    let build = settings.build.env.iter().map(|(name, text)| (format!("build.env.{name}"), text));
    let pools = settings
        .pools
        .iter()
        .flat_map(|pool| pool.env.iter().map(move |(name, text)| (format!("pools.{}.env.{name}", pool.policy.name), text)));
    let mut source = vec![("source.repository".to_owned(), &settings.source.repository)];
    match &settings.source.credentials {
        Credentials::Token(token) => source.push(("source.credentials.token".to_owned(), token)),
        Credentials::Password { username, password } => {
            source.extend([("source.credentials.username".to_owned(), username), ("source.credentials.password".to_owned(), password)])
        }
        Credentials::None | Credentials::Askpass(_) | Credentials::Ssh { .. } => {}
    }
    let mut found: Vec<Finding> = build
        .chain(pools)
        .chain(source)
        .filter_map(|(key, text)| text.resolve(&key, &process_env).err())
        .map(|error| finding(Weight::Problem, agent::chain(&error), None))
        .collect();
    found.extend(of_proofs(settings));
    let open = |path: &Path| fs_err::metadata(path).is_ok_and(|file| std::os::unix::fs::MetadataExt::mode(&file) & 0o004 != 0);
    for path in settings.secret_files().iter().collect::<BTreeSet<_>>().into_iter().filter(|path| open(path)) {
        let text = format!("`{}` holds a secret, and everybody on this machine may read it", path.display());
        let hint = format!("`chown root:{AGENT_USER}` and `chmod 0640` it (`chmod 0600` where there is no such user)");
        found.push(finding(Weight::Warning, text, Some(&hint)));
    }
    found
}

/// What others prove themselves by over http: an empty one would let in everybody, or nobody.
fn of_proofs(settings: &Settings) -> Vec<Finding> {
    let token = settings.http.as_ref().and_then(|http| http.token.as_ref()).map(|token| ("http.token", token));
    let secret = settings.triggers.webhook.as_ref().map(|secret| ("source.webhook.secret", secret));
    let judged = token.into_iter().chain(secret).filter_map(|(key, text)| match text.resolve(key, &process_env) {
        Ok(proof) if proof.expose().trim().is_empty() => Some(format!("{key}: is empty")),
        Ok(_) => None,
        Err(error) => Some(agent::chain(&error)),
    });
    judged.map(|text| finding(Weight::Problem, text, None)).collect()
}

/// More than the machine has, if every worker came to its limit.
fn of_memory(settings: &Settings) -> Option<Finding> {
    let limit = |pool: &PoolSettings| {
        let highest = pool.policy.worker.memory.as_ref()?.ladder.last()?.limit.0;
        Some(highest.saturating_mul(u64::from(pool.policy.count)))
    };
    let sum: u64 = settings.pools.iter().filter_map(limit).fold(0, u64::saturating_add);
    let total = agent::total_memory();
    (sum > total.0).then(|| {
        let text = format!("pools: their memory limits together are {}, this machine has {total}", selfstart_core::units::Bytes(sum));
        finding(Weight::Warning, text, Some("lower `count` or `memory`"))
    })
}

/// Whether each queue answers. Without a queue of the same kind the workers start all the same, so it is a warning.
fn of_queues(settings: &Settings) -> Vec<Finding> {
    let mut urls: Vec<(String, &crate::config::settings::QueueSettings)> = vec![("queue".to_owned(), &settings.queue)];
    urls.extend(
        settings
            .pools
            .iter()
            .filter(|pool| pool.queue != settings.queue)
            .map(|pool| (format!("pools.{}.queue", pool.policy.name), &pool.queue)),
    );
    let queues = urls.into_iter().filter(|(_, queue)| queue.kind != QueueKind::None);
    let queues = queues.filter_map(|(key, queue)| Some((format!("{key}.url"), queue.url.as_ref()?, "workers start all the same")));
    let fleet =
        settings.fleet.iter().map(|fleet| ("fleet.redis".to_owned(), &fleet.redis, "without it no build gets past what is done once"));
    let asked = queues.chain(fleet).map(|(key, url, hint)| {
        let answer = url.resolve(&key, &process_env).map_err(|error| agent::chain(&error));
        match answer.and_then(|url| ping(url.expose()).map_err(|error| error.to_string())) {
            Ok(()) => finding(Weight::Good, format!("{key}: `{url}` answers"), None),
            Err(error) => finding(Weight::Warning, format!("{key}: `{url}` does not answer: {error}"), Some(hint)),
        }
    });
    asked.collect()
}

fn ping(url: &str) -> redis::RedisResult<()> {
    let client = redis::Client::open(url)?;
    let mut connection = client.get_connection_with_timeout(QUEUE_TIMEOUT)?;
    connection.set_read_timeout(Some(QUEUE_TIMEOUT))?;
    redis::cmd("PING").query(&mut connection)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn what_gives_users_a_hand_in_what_is_roots_is_warned_of() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root's node is divided");
        }
        let dir = tempfile::Builder::new().prefix("check-").tempdir_in("/tmp").expect("a folder");
        let (config, folder) = (dir.path().join("config.yaml"), dir.path().join("env"));
        fs_err::create_dir(&folder).expect("made");
        fs_err::write(folder.join("file"), "A=1\n").expect("written");
        let settings = |user: &str| {
            let text = format!(
                "app: x\nroot: {}/root\n{user}source: {{repository: /x, branch: main}}\npools:\n  w: {{command: x, env_files: [{}/file]}}\n",
                dir.path().display(),
                folder.display()
            );
            fs_err::write(&config, text).expect("written");
            agent::load(&config, For::Any).expect("in order").settings
        };
        let divided = settings("user: nobody\n");
        assert!(of_second_names(&divided, Some("0\n")).is_some_and(|found| found.weight == Weight::Warning && found.hint.is_some()));
        assert!(of_second_names(&divided, Some("1\n")).is_none() && of_second_names(&divided, None).is_none());
        assert!(of_second_names(&settings(""), Some("0\n")).is_none());
        let mode = |mode: u32| fs_err::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).expect("changed");
        for (bits, owner, warned) in [(0o755, 0, false), (0o777, 0, true), (0o1777, 0, false), (0o555, 65534, true)] {
            mode(bits);
            chown(&folder, Some(owner), None).expect("given");
            let found = of_folders_of_env_files(&divided);
            assert_eq!(found.len(), usize::from(warned), "{bits:o} {owner}: {found:?}");
            assert!(found.iter().all(|found| found.text.contains("user `nobody` can write in")), "{found:?}");
        }
        assert!(of_folders_of_env_files(&settings("")).is_empty());
    }
}
