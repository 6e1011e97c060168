//! What a worker, a build step or a check is started with: its words, its environment from nothing, its user.
//!
//! Everything is made anew for each start and from this release alone: nothing of the agent's own environment, of an earlier release or
//! of an earlier start can reach it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use selfstart_core::id::{Generation, ReleaseId, Revision, SlotId, StartNo};
use selfstart_core::runtime::Captured;

use crate::config::placeholders::{Values, expand};
use crate::config::secret::{Env, SecretError, Text, is_variable_name};
use crate::config::settings::{BuildStep, Command, PoolSettings, Settings, UserSpec};
use crate::keeper::protocol::Start;
use crate::sys::clock;
use crate::sys::gate;
use crate::sys::users::{self, Known, User, UserError};

/// Where programs are looked for when nothing else is said.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why something cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// The user is not known.
    #[error("the user cannot be looked up")]
    User(#[from] UserError),
    /// A secret cannot be had.
    #[error("a secret cannot be had")]
    Secret(#[from] SecretError),
    /// A file of variables cannot be read.
    #[error("failed to read `{}` of `env_files`", .path.display())]
    EnvFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not known which ruby, node or python its release runs.
    #[error("the runtime of {release} is not known: {why}; `selfstart deploy --force` makes the release anew")]
    Runtime {
        /// Which release.
        release: ReleaseId,
        /// Why.
        why: String,
    },
    /// The ruby, node or python that its release was built with is not there any more.
    #[error("`{program}`, which {release} runs, is gone; install it again, or `selfstart deploy --force` makes the release anew")]
    Gone {
        /// Which release.
        release: ReleaseId,
        /// What is not there.
        program: String,
    },
    /// A line in it sets what only selfstart may say.
    #[error("`{}`, line {line}: `SELFSTART_*` is set by selfstart", .path.display())]
    EnvOurs {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A line in it is no variable.
    #[error("`{}`, line {line}: not NAME=VALUE", .path.display())]
    EnvLine {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
}

/// The release something is started from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct From {
    /// Its name.
    pub(crate) release: ReleaseId,
    /// Its commit.
    pub(crate) revision: Revision,
    /// Its real path.
    pub(crate) path: PathBuf,
    /// The ruby, node and python that it runs.
    pub(crate) runtime: Arc<Captured>,
}

/// Which worker of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Which {
    /// Where.
    pub(crate) slot: SlotId,
    /// Which start.
    pub(crate) start: StartNo,
    /// Of which rollout.
    pub(crate) generation: Generation,
}

/// Returns what the placeholders of a worker stand for.
pub(crate) fn worker_values(settings: &Settings, pool: &PoolSettings, which: &Which, from: &From) -> Values {
    let port = pool.port.and_then(|port| port.checked_add(u16::try_from(which.slot.slot).ok()?));
    Values {
        pool: Some(which.slot.pool.as_str().to_owned()),
        slot: Some(which.slot.slot),
        port,
        generation: Some(which.generation.0),
        start: Some(which.start.0),
        ..release_values(settings, from)
    }
}

fn release_values(settings: &Settings, from: &From) -> Values {
    Values {
        app: settings.app.clone(),
        root: settings.root.display().to_string(),
        revision: Some(from.revision.to_string()),
        release: Some(from.release.to_string()),
        release_path: Some(from.path.display().to_string()),
        current: Some(settings.root.join("current").display().to_string()),
        ..Values::default()
    }
}

/// Returns what a worker is started with.
///
/// # Errors
/// When its user, a secret or a file of variables cannot be had, or the runtime of its release is gone.
pub(crate) fn worker(
    settings: &Settings,
    known: &Known,
    pool: &PoolSettings,
    which: &Which,
    from: &From,
    key: String,
    env: Env<'_>,
) -> Result<Start, LaunchError> {
    runtime_is_there(from)?;
    let values = worker_values(settings, pool, which, from);
    let user = known_user(known, pool.user.as_ref().or(settings.user.as_ref()))?;
    let mut vars = base(settings, known, user.as_ref(), &from.path)?;
    vars.extend(from.runtime.vars.clone());
    for path in &pool.env_files {
        read_env_file(path, &mut vars)?;
    }
    add_env(&mut vars, &format!("pools.{}.env", which.slot.pool), &pool.env, &values, env)?;
    if let Some(port) = values.port {
        vars.insert("PORT".into(), port.to_string());
    }
    for (name, value) in
        [("POOL", which.slot.pool.as_str().to_owned()), ("SLOT", which.slot.slot.to_string()), ("GENERATION", which.generation.to_string())]
    {
        vars.insert(format!("SELFSTART_{name}"), value);
    }
    say_release(&mut vars, settings, from);
    let (programs, argv) = match &pool.command {
        Command::Words(words) => {
            let argv: Vec<String> = words.iter().map(|word| expand(word, &values)).collect();
            (programs(argv.first().map_or("", String::as_str), &from.path, &vars), argv)
        }
        Command::Shell(line) => (vec!["/bin/sh".into()], vec!["sh".into(), "-c".into(), expand(line, &values)]),
    };
    Ok(Start {
        programs,
        argv,
        nofile: pool.limits.nofile,
        nice: pool.limits.nice,
        umask: pool.limits.umask,
        pipe_bytes: u32::try_from(settings.log.buffer.0).unwrap_or(u32::MAX),
        helper: false,
        ..plain(key, settings, user.as_ref(), vars, &from.path)
    })
}

/// What a step says of itself, the same in each release unless it names the release or the revision; secrets as they are written.
pub(crate) fn step_in_any_release(settings: &Settings, step: &BuildStep, from: &From) -> String {
    // Where the release is makes no difference: a copy of what was made elsewhere names the new place.
    let values = Values { release_path: None, ..release_values(settings, from) };
    let env = settings.build.env.iter().map(|(name, text)| format!("{name}={}\0", text.expand(&values)));
    std::iter::once(format!("{}\0\0", expand(&step.run, &values))).chain(env).collect()
}

/// Looks whether what was captured for a release is still installed: without it the next of that name along PATH would be run, of
/// whatever version. Not before a build step, since a virtual environment is made by one.
fn runtime_is_there(from: &From) -> Result<(), LaunchError> {
    for program in from.runtime.tools.iter().map(|tool| &tool.program).filter(|program| program.starts_with('/')) {
        // What only `user` may look at may well be there.
        let gone = |error: io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        if fs_err::metadata(program).is_err_and(gone) {
            return Err(LaunchError::Gone { release: from.release.clone(), program: program.clone() });
        }
    }
    Ok(())
}

/// Returns what a build step is started with, in a release that is not live yet.
///
/// # Errors
/// When the user or a secret cannot be had.
pub(crate) fn step(
    settings: &Settings,
    known: &Known,
    step: &BuildStep,
    from: &From,
    key: String,
    env: Env<'_>,
) -> Result<Start, LaunchError> {
    let values = release_values(settings, from);
    let user = known_user(known, settings.user.as_ref())?;
    let mut vars = base(settings, known, user.as_ref(), &from.path)?;
    vars.extend(from.runtime.vars.clone());
    add_env(&mut vars, "build.env", &settings.build.env, &values, env)?;
    say_release(&mut vars, settings, from);
    Ok(Start {
        programs: vec!["/bin/sh".into()],
        argv: vec!["sh".into(), "-eu".into(), "-c".into(), expand(&step.run, &values)],
        ..plain(key, settings, user.as_ref(), vars, &from.path)
    })
}

/// Returns what this binary is started with as a helper: verb on its command line, everything else on standard input.
///
/// # Errors
/// When the user cannot be had.
pub(crate) fn own_helper(
    settings: &Settings,
    known: &Known,
    verb: &str,
    key: String,
    proxies: &BTreeMap<String, String>,
) -> Result<Start, LaunchError> {
    let user = known_user(known, settings.user.as_ref())?;
    let mut vars = base(settings, known, user.as_ref(), Path::new("/"))?;
    vars.extend(proxies.clone());
    vars.extend(gate::handed_on());
    Ok(Start {
        // The keeper's own program, reached without a path that the user may not enter.
        programs: vec!["/proc/self/exe".into()],
        argv: vec!["selfstart".into(), verb.into()],
        ..plain(key, settings, user.as_ref(), vars, Path::new("/"))
    })
}

/// Returns what a command that is no worker's is started with: as our own helper would be, but for its words.
pub(crate) fn command_helper(own: Start, words: &[String]) -> Start {
    let vars: BTreeMap<String, String> = own.env.iter().cloned().collect();
    Start { programs: programs(words.first().map_or("", String::as_str), Path::new("/"), &vars), argv: words.to_vec(), ..own }
}

/// Returns what a readiness command of a worker is started with: as the worker is, but as a helper.
pub(crate) fn probe(worker: &Start, words: Vec<String>, key: String) -> Start {
    let path = worker.env.iter().find(|(name, _)| name == "PATH").map_or(PATH, |(_, value)| value.as_str());
    let vars = BTreeMap::from([("PATH".to_owned(), path.to_owned())]);
    Start {
        key,
        programs: programs(words.first().map_or("", String::as_str), Path::new(&worker.cwd), &vars),
        argv: words,
        helper: true,
        ..worker.clone()
    }
}

/// What is written into the cgroup of a worker, as far as this machine's cgroups take it.
pub(crate) fn group_settings(pool: &PoolSettings, controllers: &[String]) -> Vec<(String, String)> {
    let limits = &pool.limits;
    let has = |name: &str| controllers.iter().any(|controller| controller == name);
    let mut settings = Vec::new();
    let mut set = |file: &str, value: String| settings.push((file.to_owned(), value));
    if has("memory") {
        // A worker without its main process, or without a child that it waits for, is of no use.
        set("memory.oom.group", "1".into());
        if let Some(high) = limits.memory_high {
            set("memory.high", high.0.to_string());
        }
        if let Some(most) = limits.memory {
            set("memory.max", most.0.to_string());
            set("memory.swap.max", "0".into());
        }
    }
    if let Some(cpu) = limits.cpu.filter(|_| has("cpu")) {
        // Microseconds of CPU time in each tenth of a second.
        set("cpu.max", format!("{} 100000", u64::from(cpu) * 1000));
    }
    if let Some(tasks) = limits.tasks.filter(|_| has("pids")) {
        set("pids.max", tasks.to_string());
    }
    settings
}

/// A helper that has nothing to execute yet, with the limits of the keeper.
fn plain(key: String, settings: &Settings, user: Option<&User>, vars: BTreeMap<String, String>, cwd: &Path) -> Start {
    Start {
        key,
        programs: Vec::new(),
        argv: Vec::new(),
        env: vars.into_iter().collect(),
        root: settings.root.display().to_string(),
        cwd: cwd.display().to_string(),
        user: becoming(user),
        nofile: None,
        nice: None,
        umask: None,
        pipe_bytes: 1 << 16,
        helper: true,
        note: String::new(),
    }
}

fn known_user(known: &Known, spec: Option<&UserSpec>) -> Result<Option<User>, UserError> {
    spec.map(|spec| known.user(&spec.user, spec.group.as_deref(), clock::now())).transpose()
}

/// Looks up who something runs as; `None`: as the agent.
pub(crate) fn who(spec: Option<&UserSpec>) -> Result<Option<User>, UserError> {
    spec.map(|spec| users::user(&spec.user, spec.group.as_deref())).transpose()
}

/// What the keeper must become; `None`: it is that already, and without root could not set it again.
fn becoming(user: Option<&User>) -> Option<(u32, u32, Vec<u32>)> {
    let me = rustix::process::geteuid();
    user.filter(|user| me.is_root() || super::is_apart() || user.credentials.uid != me.as_raw()).map(numbers)
}

fn numbers(user: &User) -> (u32, u32, Vec<u32>) {
    (user.credentials.uid, user.credentials.gid, user.credentials.groups.clone())
}

/// Adds an `env` of the configuration, which is written at `at`.
fn add_env(
    vars: &mut BTreeMap<String, String>,
    at: &str,
    written: &BTreeMap<String, Text>,
    values: &Values,
    env: Env<'_>,
) -> Result<(), SecretError> {
    for (name, text) in written {
        let value = text.expand(values).resolve(&format!("{at}.{name}"), env)?;
        vars.insert(name.clone(), value.expose().to_owned());
    }
    Ok(())
}

/// Who has no account, as in a container, has no name and no home, and that is all right; what could not be told is not that.
fn account(found: Result<User, UserError>) -> Result<Option<User>, UserError> {
    match found {
        Ok(user) => Ok(Some(user)),
        Err(UserError::NoUser(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The environment that everyone gets; `user` as in the configuration, `None`: the agent's own.
///
/// # Errors
/// When the machine could not tell who the agent is: a worker with `/` for its home would look for its files there.
fn base(settings: &Settings, known: &Known, user: Option<&User>, cwd: &Path) -> Result<BTreeMap<String, String>, UserError> {
    let own = match user {
        Some(_) => None,
        None => account(known.user(&rustix::process::geteuid().as_raw().to_string(), None, clock::now()))?,
    };
    let user = user.or(own.as_ref());
    let (name, home, shell) = user.map_or(("", "/", "/bin/sh"), |user| (&user.name, &user.home, &user.shell));
    Ok([
        ("PATH", PATH),
        ("LANG", "C.UTF-8"),
        ("HOME", home),
        ("USER", name),
        ("LOGNAME", name),
        ("SHELL", shell),
        ("PWD", &cwd.display().to_string()),
        ("SELFSTART_APP", &settings.app),
        ("SELFSTART_ROOT", &settings.root.display().to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect())
}

fn say_release(vars: &mut BTreeMap<String, String>, settings: &Settings, from: &From) {
    vars.insert("SELFSTART_APP".into(), settings.app.clone());
    vars.insert("SELFSTART_ROOT".into(), settings.root.display().to_string());
    vars.insert("SELFSTART_RELEASE".into(), from.release.to_string());
    vars.insert("SELFSTART_REVISION".into(), from.revision.to_string());
}

/// Returns the files to try for a command: a path as it is or in the release; a bare name in the release, then along PATH.
fn programs(word: &str, release: &Path, vars: &BTreeMap<String, String>) -> Vec<String> {
    if word == "selfstart" {
        return vec!["/proc/self/exe".into()];
    }
    if word.starts_with('/') {
        return vec![word.to_owned()];
    }
    let in_release = release.join(word).display().to_string();
    if word.contains('/') {
        return vec![in_release];
    }
    let path = vars.get("PATH").map_or(PATH, String::as_str);
    let along = path.split(':').map(|dir| {
        // An empty entry is the working directory (POSIX.1-2017, 8.3), a relative one is below it: the release both times.
        release.join(dir).join(word).display().to_string()
    });
    std::iter::once(in_release).chain(along).collect()
}

/// Adds the variables of a file: `NAME=VALUE` a line, `#` before a comment, one pair of quotes around a value taken off, `export `
/// before a name too.
fn read_env_file(path: &Path, vars: &mut BTreeMap<String, String>) -> Result<(), LaunchError> {
    let text = fs_err::read_to_string(path).map_err(|source| LaunchError::EnvFile { path: path.to_owned(), source })?;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || LaunchError::EnvLine { path: path.to_owned(), line: number + 1 };
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=').ok_or_else(wrong)?;
        if !is_variable_name(name) || value.contains('\0') {
            return Err(wrong());
        }
        // A worker with another's name would be adopted, or killed, as the other.
        if name.starts_with("SELFSTART_") {
            return Err(LaunchError::EnvOurs { path: path.to_owned(), line: number + 1 });
        }
        let quoted = ['"', '\''].iter().find_map(|&quote| value.strip_prefix(quote)?.strip_suffix(quote));
        vars.insert(name.to_owned(), quoted.unwrap_or(value).to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_looked_up_in_the_release_first() {
        let vars = BTreeMap::from([("PATH".to_owned(), "/bin:vendor/bin".to_owned())]);
        let release = Path::new("/srv/r");
        assert_eq!(programs("bundle", release, &vars), ["/srv/r/bundle", "/bin/bundle", "/srv/r/vendor/bin/bundle"]);
        assert_eq!(programs("bin/work", release, &vars), ["/srv/r/bin/work"]);
        assert_eq!(programs("/usr/bin/env", release, &vars), ["/usr/bin/env"]);
        assert_eq!(programs("selfstart", release, &vars), ["/proc/self/exe"]);
    }

    #[test]
    fn who_has_no_account_has_no_home_and_who_cannot_be_told_is_not_started() {
        let user = users::user("0", None).expect("root has an account");
        assert_eq!(account(Ok(user.clone())).expect("known"), Some(user));
        assert_eq!(account(Err(UserError::NoUser("4711".into()))).expect("nobody"), None);
        let unknown = UserError::Unknown("4711".into(), io::Error::from_raw_os_error(libc::EMFILE));
        assert!(matches!(account(Err(unknown)), Err(UserError::Unknown(..))));
    }

    #[test]
    fn a_file_of_variables_is_read_line_by_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("env");
        fs_err::write(&path, "# secret\nexport A=1\nB=\"two words\"\n\nC='it''s'\nD=\n").expect("written");
        let mut vars = BTreeMap::new();
        read_env_file(&path, &mut vars).expect("read");
        let read: Vec<_> = vars.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(read, ["A=1", "B=two words", "C=it''s", "D="]);
        fs_err::write(&path, "A=1\nnonsense\n").expect("written");
        assert!(matches!(read_env_file(&path, &mut vars), Err(LaunchError::EnvLine { line: 2, .. })));
        fs_err::write(&path, "# ours\n\nexport SELFSTART_WORKER=w/0#1:0000000001@/srv\n").expect("written");
        let error = read_env_file(&path, &mut vars).expect_err("refused");
        assert_eq!(error.to_string(), format!("`{}`, line 3: `SELFSTART_*` is set by selfstart", path.display()));
        assert!(!vars.contains_key("SELFSTART_WORKER"), "{vars:?}");
    }
}
