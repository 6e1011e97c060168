//! What a configuration comes to: each value, and whether the file or a default says so. For `check --explain`.
//!
//! Values are taken from the [`Settings`] themselves, so that what is shown is what holds; secrets show where they come from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use selfstart_core::only::Only;
use selfstart_core::policy::{MemoryAction, MemoryRung, ReadyHow, StopLadder, UpdateHow};
use selfstart_core::runtime::{Pick, Setting};
use selfstart_core::time::Human;
use selfstart_core::trigger::Leading;
use selfstart_core::units::Bytes;

use super::command;
use super::merged::{LOG_FORMATS, QUEUE_KINDS};
use super::problem::Mark;
use super::raw::{Node, Value, join};
use super::schema::{self, Left};
use super::secret::Text;
use super::settings::{
    BuildStep, Command, Credentials, HttpSettings, NotifySettings, NotifyTo, Once, PoolSettings, QueueSettings, Settings, SshAgent,
    TriggerSettings, UserSpec, WantedRef,
};

/// Each value of a configuration and where it comes from, in the order of the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    values: Vec<Explanation>,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The path of its key, name by name.
    path: Vec<String>,
    value: Shown,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This place in the file.
    File(Mark),
    /// The key is left out.
    Default,
}

#[derive(Clone, Debug, PartialEq)]
enum Shown {
    /// The key is left out, and that means something of its own.
    Nothing,
    Text(String),
    /// Shown as its `Display` masks it; compared whole, so that another password is another value.
    Masked(Text),
    Number(i64),
    Bool(bool),
    Duration(Duration),
    Size(Bytes),
    List(Vec<Shown>),
    Map(Vec<(String, Shown)>),
}

/// A value that two configurations differ in.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The path of the key, name by name.
    pub path: Vec<String>,
    old: Shown,
    new: Shown,
}

/// Whether the values of `env` are shown: they may hold what only the worker's user is to know, though it is written in plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvValues {
    /// To who may read them anyway.
    Shown,
    /// `***` instead.
    Hidden,
}

impl Difference {
    /// Returns the path of the key: `pools.web.count`.
    #[must_use]
    pub fn key(&self) -> String {
        self.path.iter().fold(String::new(), |path, name| join(&path, name))
    }

    /// Returns `OLD → NEW`, each as it might be written in the file; `–` where the key is left out and that is no value. Of a secret only
    /// where it comes from, and where that is the same, that it is another.
    #[must_use]
    pub fn text(&self, env: EnvValues) -> String {
        let [old, new] = [&self.old, &self.new].map(|value| self.visible(value, env).line());
        if old == new && old != "–" { format!("another value, {new}") } else { format!("{old} → {new}") }
    }

    /// Returns the old and the new value; durations in seconds, sizes in bytes, `null` where the key is left out.
    #[must_use]
    pub fn json(&self, env: EnvValues) -> (serde_json::Value, serde_json::Value) {
        (self.visible(&self.old, env).json(), self.visible(&self.new, env).json())
    }

    fn visible(&self, value: &Shown, env: EnvValues) -> Shown {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let is_env = matches!(path.as_slice(), ["build", "env", _] | ["pools", _, "env", _]);
        match (value, env) {
            (Shown::Text(_), EnvValues::Hidden) if is_env => Shown::Text("***".to_owned()),
            _ => value.clone(),
        }
    }
}

impl Explanation {
    /// Returns the path of the key: `pools.web.count`.
    #[must_use]
    pub fn key(&self) -> String {
        self.path.iter().fold(String::new(), |path, name| join(&path, name))
    }

    /// Returns the value as it might be written in the file, on one line; `–` for a key that is left out and has no default.
    #[must_use]
    pub fn value(&self) -> String {
        self.value.line()
    }

    /// What the schema says of a key that is left out.
    fn left_out(&self) -> Option<&'static str> {
        let mut path = self.path.join(".");
        if let [first, _, rest @ ..] = self.path.as_slice()
            && first == "pools"
        {
            path = ["pools.NAME"].into_iter().chain(rest.iter().map(String::as_str)).collect::<Vec<_>>().join(".");
        }
        match schema::find(&path)?.default {
            Left::Words(words) if words != "–" => Some(words),
            _ => None,
        }
    }
}

impl fmt::Display for Explained {
    /// A line for each value: `KEY: VALUE  # line N` or `# default`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for value in &self.values {
            write!(f, "{}: {}", value.key(), value.value())?;
            match (value.origin, value.left_out()) {
                (Origin::File(mark), _) => writeln!(f, "  # line {}", mark.line)?,
                (Origin::Default, Some(words)) if value.value == Shown::Nothing => writeln!(f, "  # default: {}", words.replace('`', ""))?,
                (Origin::Default, _) => writeln!(f, "  # default")?,
            }
        }
        Ok(())
    }
}

impl Explained {
    /// Returns where that key stands in the file; the file's beginning if it is left out.
    #[must_use]
    pub fn mark(&self, key: &str) -> Mark {
        let at = self.values.iter().find(|value| value.key() == key).map(|value| value.origin);
        if let Some(Origin::File(mark)) = at { mark } else { Mark::START }
    }

    /// Explains settings by the tree that they were read from.
    pub(super) fn new(settings: &Settings, tree: &Node) -> Self {
        let mut collector = Collector { tree, values: Vec::new() };
        collector.settings(settings);
        Self { values: collector.values }
    }

    /// Explains settings alone: no value has a place in a file.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        Self::new(settings, &Node { at: Mark::START, value: Value::Map(Vec::new()) })
    }

    /// Returns the values in which `new` differs from this, in the order of the reference. Of a pool that only `new` has: what its file
    /// says, as all the rest is the default; of one that it has no more: nothing.
    #[must_use]
    pub fn differences(&self, new: &Self) -> Vec<Difference> {
        let value = |of: &Self, path: &[String]| of.values.iter().find(|it| it.path == path).map_or(Shown::Nothing, |it| it.value.clone());
        let has_pool = |of: &Self, path: &[String]| {
            path.first().is_none_or(|first| first != "pools") || of.values.iter().any(|it| it.path.get(..2) == path.get(..2))
        };
        let mut found = Vec::new();
        for new in &new.values {
            let difference = Difference { path: new.path.clone(), old: value(self, &new.path), new: new.value.clone() };
            let said = has_pool(self, &new.path) || matches!(new.origin, Origin::File(_));
            let same = difference.old == difference.new || difference.old.says_nothing() && difference.new.says_nothing();
            found.extend((said && !same).then_some(difference));
        }
        for old in &self.values {
            let written = new.values.iter().any(|it| it.path == old.path);
            if !written && !old.value.says_nothing() && has_pool(new, &old.path) {
                found.push(Difference { path: old.path.clone(), old: old.value.clone(), new: Shown::Nothing });
            }
        }
        found
    }

    /// The values.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &Explanation> {
        self.values.iter()
    }

    /// Returns `[{"key", "value", "origin": "file"|"default", "line"?, "column"?}]`; durations in seconds, sizes in bytes,
    /// `null` for a key that is left out and has no default.
    #[must_use]
    pub fn values_to_json(&self) -> serde_json::Value {
        let values = self.values.iter().map(|value| {
            let mut object = serde_json::json!({ "key": value.key(), "value": value.value.json(), "origin": "default" });
            if let Origin::File(mark) = value.origin {
                object["origin"] = "file".into();
                object["line"] = mark.line.into();
                object["column"] = mark.column.into();
            }
            object
        });
        values.collect()
    }

    /// Returns the whole configuration with its defaults, as a file that means the same; but for tokens and passwords that
    /// are written in plain: `***`.
    ///
    /// # Errors
    /// None that is known: every value here can be written.
    pub fn to_yaml(&self) -> Result<String, serde_yaml::Error> {
        let mut root = serde_yaml::Mapping::new();
        for value in self.values.iter().filter(|value| value.value != Shown::Nothing) {
            put(&mut root, &value.path, value.value.yaml());
        }
        serde_yaml::to_string(&root)
    }
}

/// Puts a value at its path; maps on the way are made.
fn put(map: &mut serde_yaml::Mapping, path: &[String], value: serde_yaml::Value) {
    match path {
        [] => {}
        [last] => {
            map.insert(last.as_str().into(), value);
        }
        [first, rest @ ..] => {
            let inner = map.entry(first.as_str().into()).or_insert_with(|| serde_yaml::Mapping::new().into());
            if let serde_yaml::Value::Mapping(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

impl Shown {
    fn says_nothing(&self) -> bool {
        matches!(self, Self::Nothing) || matches!(self, Self::Map(entries) if entries.is_empty())
    }

    fn yaml(&self) -> serde_yaml::Value {
        match self {
            Self::Nothing => serde_yaml::Value::Null,
            Self::Text(text) => text.as_str().into(),
            Self::Masked(text) => text.to_string().into(),
            Self::Number(number) => (*number).into(),
            Self::Bool(value) => (*value).into(),
            Self::Duration(duration) => Human(*duration).to_string().into(),
            Self::Size(size) => exact(*size).into(),
            Self::List(items) => serde_yaml::Value::Sequence(items.iter().map(Self::yaml).collect()),
            Self::Map(entries) => {
                serde_yaml::Value::Mapping(entries.iter().map(|(key, value)| (key.as_str().into(), value.yaml())).collect())
            }
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Self::Nothing => serde_json::Value::Null,
            Self::Text(text) => text.as_str().into(),
            Self::Masked(text) => text.to_string().into(),
            Self::Number(number) => (*number).into(),
            Self::Bool(value) => (*value).into(),
            Self::Duration(duration) => duration.as_secs_f64().into(),
            Self::Size(size) => size.0.into(),
            Self::List(items) => items.iter().map(Self::json).collect(),
            Self::Map(entries) => entries.iter().map(|(key, value)| (key.clone(), value.json())).collect(),
        }
    }

    fn line(&self) -> String {
        match self {
            Self::Nothing => "–".to_owned(),
            Self::Text(text) if text.is_empty() || text.contains(char::is_control) => format!("{text:?}"),
            Self::Text(text) => text.clone(),
            Self::Masked(text) => text.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Duration(duration) => Human(*duration).to_string(),
            Self::Size(size) => exact(*size),
            Self::List(items) => format!("[{}]", items.iter().map(Self::line).collect::<Vec<_>>().join(", ")),
            Self::Map(entries) => {
                let entries: Vec<_> = entries.iter().map(|(key, value)| format!("{key}: {}", value.line())).collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }
}

fn texts_by_name(texts: &BTreeMap<String, String>) -> Shown {
    Shown::Map(texts.iter().map(|(name, text)| (name.clone(), Shown::Text(text.clone()))).collect())
}

fn only(only: &Only) -> Shown {
    let roles = Shown::List(only.roles.iter().cloned().map(Shown::Text).collect());
    let roles = (!only.roles.is_empty()).then(|| ("roles".to_owned(), roles));
    let attributes = only.attributes.iter().map(|(name, text)| (name.clone(), Shown::Text(text.clone())));
    Shown::Map(roles.into_iter().chain(attributes).collect())
}

fn step(step: &BuildStep) -> Shown {
    let run = Shown::Text(step.run.clone());
    let timeout = step.timeout.map(|timeout| ("timeout".to_owned(), Shown::Duration(timeout)));
    let unchanged = (!step.unless_unchanged.is_empty())
        .then(|| ("unless_unchanged".to_owned(), Shown::List(step.unless_unchanged.iter().map(|it| path(it)).collect())));
    let once = (step.once == Some(Once::PerRevision)).then(|| ("once_per".to_owned(), Shown::Text("revision".to_owned())));
    let primary = (step.once == Some(Once::ByPrimary)).then(|| ("primary".to_owned(), Shown::Bool(true)));
    let only = match (only(&step.only), primary) {
        (Shown::Map(said), primary) if !said.is_empty() || primary.is_some() => {
            Some(("only".to_owned(), Shown::Map(said.into_iter().chain(primary).collect())))
        }
        _ => None,
    };
    let more: Vec<_> = timeout.into_iter().chain(unchanged).chain(once).chain(only).collect();
    if more.is_empty() { run } else { Shown::Map([("run".to_owned(), run)].into_iter().chain(more).collect()) }
}

/// A size as it might be written, to the byte.
fn exact(size: Bytes) -> String {
    let units = [
        ("TB", 1_000_000_000_000),
        ("TiB", 1 << 40),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("kB", 1_000),
        ("KiB", 1 << 10),
    ];
    let whole =
        units.iter().filter(|(_, unit)| size.0 > 0 && size.0.is_multiple_of(*unit)).map(|(name, unit)| format!("{}{name}", size.0 / unit));
    whole.min_by_key(String::len).unwrap_or_else(|| format!("{}B", size.0))
}

/// Returns a stop ladder as it is written: `[QUIT 60s, TERM 10s, KILL]`.
#[cfg(test)]
#[must_use]
pub fn ladder(ladder: &StopLadder) -> String {
    rungs(ladder).line()
}

fn rungs(ladder: &StopLadder) -> Shown {
    let polite = ladder.rungs.iter().map(|rung| format!("{} {}", rung.signal, Human(rung.wait)));
    Shown::List(polite.chain(["KILL".to_owned()]).map(Shown::Text).collect())
}

fn memory_rung(rung: &MemoryRung) -> Shown {
    let action = match rung.action {
        MemoryAction::Drain => "drain",
        MemoryAction::Kill => "kill",
        MemoryAction::Signal(signal) => signal.name(),
    };
    Shown::Text(format!("{} x{}/{} {action}", exact(rung.limit), rung.hits, rung.of))
}

/// A command as it might be written; quotes only where they are needed.
fn words(words: &[String]) -> Shown {
    let bare = words.join(" ");
    if command::split(&bare).is_ok_and(|split| split == words) { Shown::Text(bare) } else { Shown::Text(shell_words::join(words)) }
}

fn path(path: &Path) -> Shown {
    Shown::Text(path.display().to_string())
}

fn number(number: impl Into<i64>) -> Shown {
    Shown::Number(number.into())
}

/// `build.runtime` as it might be written.
fn runtime(setting: &Setting) -> Shown {
    let Setting::By(by) = setting else { return Shown::Text(setting.to_string()) };
    let pick = |pick: &Pick| match pick {
        Pick::Files => Shown::Text("auto".into()),
        Pick::Version(version) => Shown::Text(version.clone()),
        Pick::Tools(tools) => Shown::Map(tools.iter().map(|(tool, version)| (tool.clone(), Shown::Text(version.clone()))).collect()),
    };
    Shown::Map(by.iter().map(|(manager, it)| (manager.to_string(), pick(it))).collect())
}

fn or_nothing<T>(value: Option<T>, show: impl FnOnce(T) -> Shown) -> Shown {
    value.map_or(Shown::Nothing, show)
}

fn text(text: &Text) -> Shown {
    if text.is_masked() { Shown::Masked(text.clone()) } else { Shown::Text(text.to_string()) }
}

fn user(user: &UserSpec) -> Shown {
    Shown::Text(user.group.as_ref().map_or_else(|| user.user.clone(), |group| format!("{}:{group}", user.user)))
}

struct Collector<'t> {
    tree: &'t Node,
    values: Vec<Explanation>,
}

impl Collector<'_> {
    fn add(&mut self, path: &[&str], value: Shown) {
        self.add_inherited(path, value, &[]);
    }

    /// A value that comes from `elsewhere` if nothing is written at its own path.
    fn add_inherited(&mut self, path: &[&str], value: Shown, elsewhere: &[&str]) {
        let mark = self.written(path).or_else(|| if elsewhere.is_empty() { None } else { self.written(elsewhere) });
        let origin = mark.map_or(Origin::Default, Origin::File);
        self.values.push(Explanation { path: path.iter().map(|&name| name.to_owned()).collect(), value, origin });
    }

    /// Where a path is written; of a map that is written short (`memory: 350MB`), where that stands.
    fn written(&self, path: &[&str]) -> Option<Mark> {
        let mut node = self.tree;
        for name in path {
            match &node.value {
                Value::Map(entries) => node = &entries.iter().find(|entry| entry.key == *name)?.value,
                Value::Scalar { .. } | Value::List(_) => break,
            }
        }
        (!node.value.is_nothing()).then_some(node.at)
    }

    fn settings(&mut self, settings: &Settings) {
        let Settings {
            app,
            root,
            user: app_user,
            node,
            source,
            triggers,
            release,
            build,
            queue,
            pools,
            elsewhere: _,
            control,
            http,
            notify,
            log,
            fleet,
        } = settings;
        self.add(&["app"], Shown::Text(app.clone()));
        self.add(&["root"], path(root));
        self.add(&["user"], or_nothing(app_user.as_ref(), user));
        self.add(&["roles"], Shown::List(node.roles.iter().cloned().map(Shown::Text).collect()));
        self.add(&["attributes"], texts_by_name(&node.attributes));
        self.add(&["source", "repository"], text(&source.repository));
        let (name, wanted) = match &source.wanted {
            WantedRef::Branch(name) => ("branch", name),
            WantedRef::Tag(name) => ("tag", name),
            WantedRef::Revision(id) => ("revision", id),
        };
        self.add(&["source", name], Shown::Text(wanted.clone()));
        self.add(&["source", "depth"], number(source.depth));
        self.add(&["source", "submodules"], Shown::Bool(source.submodules));
        self.add(&["source", "ca"], or_nothing(source.ca.as_deref(), path));
        match &source.credentials {
            Credentials::None => self.add(&["source", "credentials"], Shown::Nothing),
            Credentials::Token(token) => self.add(&["source", "credentials", "token"], text(token)),
            Credentials::Password { username, password } => {
                self.add(&["source", "credentials", "username"], text(username));
                self.add(&["source", "credentials", "password"], text(password));
            }
            Credentials::Askpass(command) => self.add(&["source", "credentials", "askpass"], Shown::Text(shell_words::join(command))),
            Credentials::Ssh { key, agent, known_hosts } => {
                self.add(&["source", "credentials", "ssh_key"], or_nothing(key.as_deref(), path));
                let agent = agent.as_ref().map_or(Shown::Nothing, |agent| match agent {
                    SshAgent::Environment => Shown::Bool(true),
                    SshAgent::Socket(socket) => path(socket),
                });
                self.add(&["source", "credentials", "ssh_agent"], agent);
                self.add(&["source", "credentials", "known_hosts"], or_nothing(known_hosts.as_deref(), path));
            }
        }
        self.add(&["source", "verify", "allowed_signers"], or_nothing(source.allowed_signers.as_deref(), path));
        self.add(&["source", "timeout"], Shown::Duration(source.timeout));
        self.add(&["source", "boot_timeout"], Shown::Duration(source.boot_timeout));
        self.triggers(triggers);
        self.add(&["source", "supersede"], Shown::Bool(source.supersede));
        self.add(&["release", "keep"], number(release.keep));
        self.add(&["release", "keep_failed"], number(release.keep_failed));
        self.add(&["release", "linked_dirs"], Shown::List(release.linked_dirs.iter().map(|dir| path(dir)).collect()));
        self.add(&["release", "linked_files"], Shown::List(release.linked_files.iter().map(|file| path(file)).collect()));
        self.add(&["release", "min_free"], Shown::Size(release.min_free));
        self.add(&["release", "confirm"], Shown::Duration(release.confirm));
        self.add(&["release", "probation"], Shown::Duration(release.probation));
        self.env(&["build", "env"], &build.env);
        self.add(&["build", "runtime"], runtime(&build.runtime));
        self.add(&["build", "timeout"], Shown::Duration(build.timeout));
        self.add(&["build", "steps"], Shown::List(build.steps.iter().map(step).collect()));
        self.queue(&["queue"], queue);
        for pool in pools {
            self.pool(pool);
        }
        self.add(&["control", "owner"], or_nothing(control.owner.clone(), Shown::Text));
        self.add(&["control", "group"], or_nothing(control.group.clone(), Shown::Text));
        self.add(&["control", "workers"], Shown::Bool(control.workers));
        self.doors(http.as_ref(), notify);
        match fleet {
            None => self.add(&["fleet"], Shown::Nothing),
            Some(fleet) => self.add(&["fleet", "redis"], text(&fleet.redis)),
        }
        let format = LOG_FORMATS.iter().find(|(_, format)| *format == log.format).map_or("", |(name, _)| name);
        self.add(&["log", "format"], Shown::Text(format.to_owned()));
        self.add(&["log", "level"], Shown::Text(log.level.clone()));
        self.add(&["log", "buffer"], Shown::Size(log.buffer));
    }

    fn triggers(&mut self, triggers: &TriggerSettings) {
        self.add(&["source", "poll"], or_nothing(triggers.poll, Shown::Duration));
        match &triggers.webhook {
            None => self.add(&["source", "webhook"], Shown::Nothing),
            Some(secret) => self.add(&["source", "webhook", "secret"], text(secret)),
        }
        let debounce = &triggers.debounce;
        self.add(&["source", "debounce", "wait"], Shown::Duration(debounce.wait));
        self.add(&["source", "debounce", "cap"], Shown::Duration(debounce.cap));
        self.add(&["source", "debounce", "leading"], Shown::Bool(debounce.leading == Leading::Yes));
    }

    fn doors(&mut self, http: Option<&HttpSettings>, notify: &[NotifySettings]) {
        match http {
            None => self.add(&["http"], Shown::Nothing),
            Some(HttpSettings { listen, token, tls }) => {
                self.add(&["http", "listen"], Shown::Text(listen.to_string()));
                self.add(&["http", "token"], or_nothing(token.as_ref(), text));
                match tls {
                    None => self.add(&["http", "tls"], Shown::Nothing),
                    Some(tls) => {
                        self.add(&["http", "tls", "cert"], path(&tls.cert));
                        self.add(&["http", "tls", "key"], path(&tls.key));
                    }
                }
            }
        }
        let entries = notify.iter().map(|entry| {
            let to = match &entry.to {
                NotifyTo::Webhook(url) => ("webhook".to_owned(), text(url)),
                NotifyTo::Command(command) => ("command".to_owned(), words(command)),
            };
            Shown::Map(vec![to, ("on".to_owned(), Shown::List(entry.on.iter().cloned().map(Shown::Text).collect()))])
        });
        self.add(&["notify"], Shown::List(entries.collect()));
    }

    fn env(&mut self, at: &[&str], env: &BTreeMap<String, Text>) {
        if env.is_empty() {
            self.add(at, Shown::Map(Vec::new()));
        }
        for (name, value) in env {
            self.add(&[at, &[name.as_str()]].concat(), text(value));
        }
    }

    fn queue(&mut self, at: &[&str], queue: &QueueSettings) {
        let kind = QUEUE_KINDS.iter().find(|(_, kind)| *kind == queue.kind).map_or("", |(name, _)| name);
        let values = [
            ("kind", Shown::Text(kind.to_owned())),
            ("url", or_nothing(queue.url.as_ref(), text)),
            ("namespace", or_nothing(queue.namespace.clone(), Shown::Text)),
        ];
        for (name, value) in values {
            self.add_inherited(&[at, &[name]].concat(), value, &["queue", name]);
        }
    }

    fn pool(&mut self, pool: &PoolSettings) {
        let PoolSettings { policy, command, group, only: pool_only, user: pool_user, queue, queues, env, env_files, port, limits, log } =
            pool;
        let worker = &policy.worker;
        let pool = ["pools", policy.name.as_str()];
        let at = |names: &[&'static str]| [&pool, names].concat();
        match command {
            Command::Words(list) => self.add(&at(&["command"]), words(list)),
            Command::Shell(script) => self.add(&at(&["shell"]), Shown::Text(script.clone())),
        }
        let texts = |list: &mut dyn Iterator<Item = String>| Shown::List(list.map(Shown::Text).collect());
        self.add(&at(&["group"]), or_nothing(group.as_ref(), |group| Shown::Text(group.to_string())));
        self.add(&at(&["only"]), if pool_only.is_empty() { Shown::Nothing } else { only(pool_only) });
        self.add(&at(&["count"]), number(policy.count));
        self.add(&at(&["after"]), texts(&mut policy.after.iter().map(ToString::to_string)));
        self.queue(&at(&["queue"]), queue);
        self.add(&at(&["queues"]), texts(&mut queues.iter().cloned()));
        self.env(&at(&["env"]), env);
        self.add(&at(&["env_files"]), Shown::List(env_files.iter().map(|file| path(file)).collect()));
        match &worker.memory {
            None => self.add(&at(&["memory"]), Shown::Nothing),
            Some(memory) => {
                self.add(&at(&["memory", "ladder"]), Shown::List(memory.ladder.iter().map(memory_rung).collect()));
                self.add(&at(&["memory", "every"]), Shown::Duration(memory.every));
            }
        }
        match &worker.stale {
            None => self.add(&at(&["stale_job_timeout"]), Shown::Nothing),
            Some(stale) => {
                self.add(&at(&["stale_job_timeout", "default"]), Shown::Duration(stale.default));
                let classes = stale.classes.iter().map(|(class, timeout)| (class.clone(), Shown::Duration(*timeout)));
                self.add(&at(&["stale_job_timeout", "classes"]), Shown::Map(classes.collect()));
            }
        }
        self.add(&at(&["stop"]), rungs(&worker.stop));
        let restart = &worker.restart;
        let backoff = [restart.backoff_first, restart.backoff_longest].map(Shown::Duration);
        self.add(&at(&["restart", "backoff"]), Shown::List(backoff.into()));
        self.add(&at(&["restart", "reset_after"]), Shown::Duration(restart.reset_after));
        self.add(&at(&["restart", "flapping", "crashes"]), number(restart.flapping.crashes));
        self.add(&at(&["restart", "flapping", "within"]), Shown::Duration(restart.flapping.within));
        self.add(&at(&["restart", "flapping", "retry_after"]), Shown::Duration(restart.flapping.retry_after));
        let (name, how) = match &worker.ready.how {
            ReadyHow::After(after) => ("after", Shown::Duration(*after)),
            ReadyHow::Tcp(address) => ("tcp", Shown::Text(address.clone())),
            ReadyHow::Command(command) => ("command", words(command)),
        };
        self.add(&at(&["ready", name]), how);
        self.add(&at(&["ready", "within"]), Shown::Duration(worker.ready.within));
        let how = match policy.update.how {
            UpdateHow::OneAtATime => "one_at_a_time",
            UpdateHow::AllAtOnce => "all_at_once",
        };
        self.add(&at(&["update", "how"]), Shown::Text(how.to_owned()));
        self.add(&at(&["update", "max_unavailable"]), number(policy.update.max_unavailable));
        self.add(&at(&["update", "settle"]), Shown::Duration(policy.update.settle));
        self.add(&at(&["start_stagger"]), Shown::Duration(policy.start_stagger));
        self.add(&at(&["limits", "nofile"]), or_nothing(limits.nofile.and_then(|limit| i64::try_from(limit).ok()), Shown::Number));
        self.add(&at(&["limits", "nice"]), or_nothing(limits.nice, number));
        self.add(&at(&["limits", "umask"]), or_nothing(limits.umask, |mask| Shown::Text(format!("{mask:03o}"))));
        self.add(&at(&["limits", "cpu"]), or_nothing(limits.cpu, |cpu| Shown::Text(format!("{}.{:02}", cpu / 100, cpu % 100))));
        self.add(&at(&["limits", "tasks"]), or_nothing(limits.tasks, number));
        self.add(&at(&["limits", "memory"]), or_nothing(limits.memory, Shown::Size));
        self.add(&at(&["limits", "memory_high"]), or_nothing(limits.memory_high, Shown::Size));
        self.add(&at(&["log", "file"]), or_nothing(log.file.as_deref(), path));
        self.add(&at(&["log", "max_size"]), Shown::Size(log.max_size));
        self.add(&at(&["log", "max_age"]), or_nothing(log.max_age, Shown::Duration));
        self.add(&at(&["log", "keep"]), number(log.keep));
        self.add_inherited(&at(&["user"]), or_nothing(pool_user.as_ref(), user), &[]);
        self.add(&at(&["port"]), or_nothing(*port, number));
    }
}
