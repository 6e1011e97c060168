//! The whole configuration, typed and over its defaults; what only makes sense together is checked here.
//!
//! Everything is read before anything is refused, so that all problems are told at once. Not here: reading one value
//! (`reader`), the form of the file (`raw`), looking at users, files or repositories (`check`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use selfstart_core::id::{PoolName, Revision};
use selfstart_core::only::{Only, Traits};
use selfstart_core::policy::{
    FlappingPolicy, MAX_COUNT, MemoryAction, MemoryPolicy, MemoryRung, PoolPolicy, ReadyHow, ReadyPolicy, RestartPolicy, StalePolicy,
    StopLadder, StopRung, UpdateHow, UpdatePolicy, WorkerPolicy,
};
use selfstart_core::runtime::Setting;
use selfstart_core::signal::Signal;
use selfstart_core::units::Bytes;

use super::placeholders::Placeholder;
use super::problem::{Mark, Problem, nearest};
use super::raw::{Node, Value, join};
use super::reader::{At, Between, Map, Reader, duration, size};
use super::secret::{Plain, Text, is_variable_name};
use super::settings::{
    BuildSettings, BuildStep, Command, ControlSettings, Credentials, FleetSettings, Limits, LogFormat, LogSettings, Once, PoolLog,
    PoolSettings, QueueKind, QueueSettings, ReleaseSettings, Settings, SourceSettings, SshAgent, UserSpec, WantedRef,
};

/// The longest `root`: `<root>/run/control.sock` with its NUL must fit into the 108 bytes of `sun_path` (`unix(7)`).
const MAX_ROOT_BYTES: usize = 108 - 1 - "/run/control.sock".len();

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(1);
const MOST: Bytes = Bytes(u64::MAX);

/// The queues by the names that `kind:` takes.
pub(super) const QUEUE_KINDS: &[(&str, QueueKind)] = &[
    ("none", QueueKind::None),
    ("resque", QueueKind::Resque),
    ("node_resque", QueueKind::NodeResque),
    ("sidekiq", QueueKind::Sidekiq),
    ("rq", QueueKind::Rq),
    ("celery", QueueKind::Celery),
    ("bullmq", QueueKind::Bullmq),
];

pub(super) const LOG_FORMATS: &[(&str, LogFormat)] = &[("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)];

const LEVELS: &[(&str, &str)] = &[("error", "error"), ("warn", "warn"), ("info", "info"), ("debug", "debug"), ("trace", "trace")];

const UPDATES: &[(&str, UpdateHow)] = &[("one_at_a_time", UpdateHow::OneAtATime), ("all_at_once", UpdateHow::AllAtOnce)];

/// Returns how the workers of a queue are asked to stop when `stop:` is left out, and why so.
///
/// The facts were seen by running each library (2026-11-22, versions as named) and are those of its own documentation.
pub(super) fn polite_stop(kind: QueueKind) -> (StopLadder, &'static str) {
    let ladder = |rungs: &[(Signal, u64)]| StopLadder {
        rungs: rungs.iter().map(|&(signal, secs)| StopRung { signal, wait: Duration::from_secs(secs) }).collect(),
    };
    match kind {
        QueueKind::None => (StopLadder::default(), "what most programs expect"),
        QueueKind::Resque => (
            ladder(&[(Signal::Quit, 60), (Signal::Term, 10)]),
            "QUIT finishes the job (Resque 3.0.0, 2.7.0, 1.27.4); TERM kills the job's process and records it as failed",
        ),
        QueueKind::NodeResque => {
            (ladder(&[(Signal::Term, 60)]), "the usual handler calls `worker.end()`, which finishes the job (node-resque 9.7.1)")
        }
        QueueKind::Sidekiq => (
            ladder(&[(Signal::Term, 30)]),
            "TERM finishes jobs for 25 s (`-t`) and gives the others back (Sidekiq 6.4.1, 7.3.9); QUIT, USR1 and USR2 lose them, and after TSTP it never ends by itself",
        ),
        QueueKind::Rq => (
            ladder(&[(Signal::Term, 60)]),
            "TERM once finishes the job; a second TERM kills it and leaves it neither failed nor queued, QUIT leaves it an orphan (RQ 3.0.0)",
        ),
        QueueKind::Celery => (
            ladder(&[(Signal::Term, 60)]),
            "TERM finishes the tasks and gives back what was prefetched; QUIT loses tasks that were acknowledged early (Celery 5.7.0)",
        ),
        QueueKind::Bullmq => {
            (ladder(&[(Signal::Term, 60)]), "the usual handler calls `worker.close()`, which finishes the job (BullMQ 6.7.0)")
        }
    }
}

/// Signals that end a worker of this queue at once and lose its jobs: its process does not catch them.
fn destroys(kind: QueueKind, signal: Signal) -> bool {
    match kind {
        QueueKind::Sidekiq | QueueKind::Rq => matches!(signal, Signal::Quit | Signal::Usr1 | Signal::Usr2),
        QueueKind::Celery => matches!(signal, Signal::Quit | Signal::Usr2),
        QueueKind::None | QueueKind::Resque | QueueKind::NodeResque | QueueKind::Bullmq => false,
    }
}

impl Reader<'_> {
    /// Reads the whole tree; the result means something only if no problem was told.
    pub(super) fn settings(&mut self, root: &Node) -> Option<Settings> {
        let kept;
        let node = match &root.value {
            Value::Map(entries) => {
                kept =
                    Node { at: root.at, value: Value::Map(entries.iter().filter(|entry| !entry.key.starts_with("x-")).cloned().collect()) };
                &kept
            }
            _ => root,
        };
        let mut top = self.map(&At { key: String::new(), node }, "");
        top.at = Mark::START;
        if top.refused {
            return None;
        }
        let app = self.app(&top);
        let default_root = PathBuf::from(format!("/var/lib/selfstart/{}", app.as_deref().unwrap_or_default()));
        let root = self.or(&top, "root", default_root, Self::root);
        let user = self.opt(&top, "user", Self::user);
        let node = self.traits(&top);
        let source = self.source(&top);
        let triggers = self.triggers(&top);
        let release = self.release(&top);
        let build = self.build(&top);
        let queue = self.queue(&top, &QueueSettings { kind: QueueKind::None, url: None, namespace: None });
        let mut pools = self.pools(&top, &queue);
        for pool in &mut pools {
            pool.policy.update.confirm = release.confirm;
        }
        let control = self.control(&top);
        let http = self.http(&top);
        self.check_triggers(&top, &triggers, http.as_ref());
        let notify = self.notify(&top);
        let log = self.log(&top);
        let fleet = self.fleet(&top);
        let elsewhere = Vec::new();
        Some(Settings {
            app: app?,
            root,
            user,
            node,
            source: source?,
            triggers,
            release,
            build,
            queue,
            pools,
            elsewhere,
            control,
            http,
            notify,
            log,
            fleet,
        })
    }

    fn app(&mut self, top: &Map<'_>) -> Option<String> {
        if top.get("app").is_none() {
            self.missing(top, "app", "`app: NAME` says what the app is called");
        }
        self.opt(top, "app", |reader, at| reader.name(at, "[a-z][a-z0-9-]*", |b| b == b'-'))
    }

    /// A lower-case name.
    fn name(&mut self, at: &At<'_>, allowed: &str, more: fn(u8) -> bool) -> Option<String> {
        let text = self.text(at)?;
        if is_name(text, more) {
            return Some(text.to_owned());
        }
        let hint = suggested_name(text, more);
        self.tell(at, "not a name", |problem| Problem { hint, ..problem.found(text).allowed(allowed) });
        None
    }

    fn root(&mut self, at: &At<'_>) -> Option<PathBuf> {
        let path = self.absolute_path(at)?;
        let text = path.display().to_string();
        if path == Path::new("/") {
            self.tell(at, "the root of the file system cannot be the root of an app", |problem| problem.found(&text));
            return None;
        }
        if text.len() > MAX_ROOT_BYTES {
            let hint = "the path of the control socket below it could not be longer (`man 7 unix`)";
            self.tell(at, "too long", |problem| problem.found(&text).allowed(format!("at most {MAX_ROOT_BYTES} bytes")).hint(hint));
            return None;
        }
        Some(path)
    }

    fn user(&mut self, at: &At<'_>) -> Option<UserSpec> {
        let text = self.text(at)?;
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        if !is_account(user) || !group.is_none_or(is_account) {
            self.tell(at, "not a user", |problem| problem.found(text).allowed("`user` or `user:group`, by name or number"));
            return None;
        }
        Some(UserSpec { user: user.to_owned(), group: group.map(str::to_owned) })
    }

    /// `roles:` and `attributes:`.
    fn traits(&mut self, top: &Map<'_>) -> Traits {
        let roles = self.or(top, "roles", Vec::new(), |reader, at| reader.each(at, "names", Self::role));
        let attributes = self.or(top, "attributes", BTreeMap::new(), |reader, at| reader.attributes(at, "attributes"));
        Traits { roles: roles.into_iter().collect(), attributes }
    }

    fn role(&mut self, at: &At<'_>) -> Option<String> {
        self.name(at, "[a-z][a-z0-9_-]*", |b| b == b'-' || b == b'_')
    }

    /// Names and texts; what is decided elsewhere is no attribute of anybody's choosing.
    fn attributes(&mut self, at: &At<'_>, pattern: &str) -> Option<BTreeMap<String, String>> {
        let map = self.free_map(at, pattern);
        let mut attributes = BTreeMap::new();
        for (entry, at) in map.named() {
            let refused = match entry.key.as_str() {
                "roles" => Some(("not an attribute", "`roles:` stands at the top")),
                "primary" if pattern == "attributes" => Some(("not an attribute", "who is the primary is not decided by a configuration")),
                "primary" => Some(("only for build steps yet", "a role says which node has this pool: `only: {roles: [clock]}`")),
                name if !is_name(name, |b| b == b'-' || b == b'_') => Some(("not a name", "lower-case letters, digits, `-` and `_`")),
                _ => None,
            };
            if let Some((what, hint)) = refused {
                self.problems.push(self.problem(entry.key_at, &at.key, what).hint(hint));
                continue;
            }
            if let Some(text) = self.text(&at) {
                attributes.insert(entry.key.clone(), text.to_owned());
            }
        }
        Some(attributes)
    }

    /// `only:`: `roles`, and attributes by their names.
    fn only(&mut self, at: &At<'_>, pattern: &str) -> Option<Only> {
        let map = self.free_map(at, pattern);
        let roles = self.or(&map, "roles", Vec::new(), |reader, at| reader.each(at, "names", Self::role));
        if let Some(at) = map.get("roles").filter(|at| matches!(&at.node.value, Value::List(items) if items.is_empty())) {
            self.tell(&at, "names no role, and so is for no node", |problem| problem.hint("leave it out: whatever the roles"));
        }
        let rest: Vec<_> = map.entries.iter().filter(|entry| entry.key != "roles").cloned().collect();
        let node = Node { at: at.node.at, value: Value::Map(rest) };
        let attributes = self.attributes(&At { key: at.key.clone(), node: &node }, pattern)?;
        if map.entries.is_empty() && !map.refused {
            self.tell(at, "says nothing", |problem| problem.hint("such as `{roles: [db]}`; leave it out for every node"));
        }
        Some(Only { roles: roles.into_iter().collect(), attributes })
    }

    fn account(&mut self, at: &At<'_>, what: &str) -> Option<String> {
        let text = self.text(at)?;
        if !is_account(text) {
            self.tell(at, &format!("not a {what}"), |problem| problem.found(text).allowed("a name or a number"));
            return None;
        }
        Some(text.to_owned())
    }

    fn source(&mut self, top: &Map<'_>) -> Option<SourceSettings> {
        if top.get("source").is_none() {
            self.missing(top, "source", "`source: {repository: URL, branch: NAME}` says where the code comes from");
            return None;
        }
        let map = self.section(top, "source");
        if map.get("repository").is_none() {
            self.missing(&map, "repository", "https://, ssh://, user@host:path, git://, file:// or an absolute path");
        }
        let repository = self.opt(&map, "repository", Self::repository);
        let credentials = self.credentials(&map, repository.as_ref());
        let wanted = self.wanted(&map);
        let verify = self.section(&map, "verify");
        if map.get("verify").is_some() && !verify.refused && verify.get("allowed_signers").is_none() {
            self.missing(&verify, "allowed_signers", "the absolute path of a file in ssh-keygen's format");
        }
        Some(SourceSettings {
            submodules: self.or(&map, "submodules", false, Self::boolean),
            allowed_signers: self.opt(&verify, "allowed_signers", Self::absolute_path),
            depth: self.or(&map, "depth", 1, |reader, at| reader.whole(at, Between(0, 1_000_000_000))),
            ca: self.opt(&map, "ca", Self::absolute_path),
            timeout: self.or(&map, "timeout", Duration::from_secs(120), |reader, at| reader.duration(at, SECOND)),
            boot_timeout: self.or(&map, "boot_timeout", Duration::from_secs(60), |reader, at| reader.duration(at, Duration::ZERO)),
            supersede: self.or(&map, "supersede", false, Self::boolean),
            credentials,
            repository: repository?,
            wanted: wanted?,
        })
    }

    fn repository(&mut self, at: &At<'_>) -> Option<Text> {
        let text = self.secret_text(at, Plain::Shown)?;
        if Transport::of(&text).is_none() {
            let start = text.plain_start();
            let hint = if start.starts_with("http://") {
                "use https://: what is fetched is run"
            } else if start.is_empty() || start.starts_with('.') {
                "begin with the scheme in plain, or with `/`"
            } else if start.starts_with("ssh://") {
                "ssh://[USER@]HOST[:PORT]/PATH"
            } else if start.contains("://") {
                "no other scheme is known"
            } else {
                "a path is absolute"
            };
            let allowed = "https://, ssh://, user@host:path, git://, file:// or an absolute path";
            self.tell(at, "not a repository", |problem| problem.allowed(allowed).hint(hint));
            return None;
        }
        // All but the userinfo of https stands in errors, events and the mirror's configuration.
        let is_https = text.plain_start().starts_with("https://");
        if text.holds_secrets() && !(is_https && text.secrets_are_userinfo()) {
            let hint = "a secret may stand before the `@` of an https:// address only, or in `source.credentials`";
            self.tell(at, "a secret where it would be seen", |problem| problem.hint(hint));
            return None;
        }
        if text.plain_start().strip_prefix("git://").is_some_and(|rest| rest.split('/').next().is_some_and(|host| host.contains('@'))) {
            self.tell(at, "a user over git://, which knows none", |problem| problem.hint("use https:// or ssh://"));
            return None;
        }
        Some(text)
    }

    fn credentials(&mut self, source: &Map<'_>, repository: Option<&Text>) -> Credentials {
        let map = self.section(source, "credentials");
        let key = self.opt(&map, "ssh_key", Self::absolute_path);
        let agent = self.opt(&map, "ssh_agent", Self::ssh_agent).flatten();
        let known_hosts = self.opt(&map, "known_hosts", Self::absolute_path);
        let token = self.opt(&map, "token", |reader, at| reader.secret_text(at, Plain::Masked));
        let username = self.opt(&map, "username", |reader, at| reader.secret_text(at, Plain::Shown));
        let password = self.opt(&map, "password", |reader, at| reader.secret_text(at, Plain::Masked));
        let askpass = self.opt(&map, "askpass", Self::askpass);
        for (name, text) in [("token", &token), ("password", &password)] {
            if let (Some(at), Some(text)) = (map.get(name), text)
                && text.as_plain().is_some()
            {
                let hint = "`${file:/path}` keeps it out of the configuration";
                self.warnings.push(self.problem(at.node.at, &at.key, "a secret is written in plain").hint(hint));
            }
        }
        let written = |names: &[&'static str]| names.iter().copied().filter(|name| map.get(name).is_some()).collect::<Vec<_>>();
        let groups = [
            written(&["ssh_key", "ssh_agent", "known_hosts"]),
            written(&["token"]),
            written(&["username", "password"]),
            written(&["askpass"]),
        ];
        let groups: Vec<_> = groups.into_iter().filter(|group| !group.is_empty()).collect();
        if let [first, second, ..] = groups.as_slice() {
            let what = format!("more than one source of credentials: `{}` and `{}`", first[0], second[0]);
            let problem = self.problem(map.at, &map.key, what);
            self.problems.push(problem.allowed(CREDENTIALS));
            return Credentials::None;
        }
        if key.is_some() && agent.is_some() {
            let problem = self.problem(map.at, &map.key, "more than one source of credentials: `ssh_key` and `ssh_agent`".to_owned());
            self.problems.push(problem.allowed(CREDENTIALS));
        }
        for (name, other) in [("username", "password"), ("password", "username")] {
            if map.get(name).is_some() && map.get(other).is_none() {
                self.missing(&map, other, &format!("`{name}` needs it"));
            }
        }
        if let (Some(group), Some(transport)) = (groups.first(), repository.and_then(Transport::of)) {
            let of_ssh = matches!(group[0], "ssh_key" | "ssh_agent" | "known_hosts");
            let fits = if of_ssh { Transport::Ssh } else { Transport::Https };
            if transport != fits {
                let what = format!("`{}` is of no use to a repository by {}", group[0], transport.name());
                self.problems.push(self.problem(map.at, &map.key, what).hint(match (fits, transport) {
                    (Transport::Ssh, Transport::Https) => {
                        "it is for ssh (`git@HOST:PATH`); https takes `token`, or `username` with `password`"
                    }
                    (Transport::Ssh, _) => "it is for ssh",
                    (_, Transport::Ssh) => "it is for https; ssh takes `ssh_key` or `ssh_agent`",
                    _ => "it is for https",
                }));
            }
            // `https://user:password@host` and credentials beside it: which would count?
            if repository.is_some_and(|text| transport == Transport::Https && (text.is_masked() || text.plain_start().contains('@'))) {
                let what = "more than one source of credentials: the URL of the repository has one, too";
                self.problems.push(self.problem(map.at, &map.key, what));
            }
        }
        if let Some(command) = askpass {
            return Credentials::Askpass(command);
        }
        match (key, known_hosts, token, username, password) {
            (None, None, Some(token), ..) => Credentials::Token(token),
            (None, None, None, Some(username), Some(password)) => Credentials::Password { username, password },
            (None, None, ..) if agent.is_none() => Credentials::None,
            (key, known_hosts, ..) => Credentials::Ssh { key, agent, known_hosts },
        }
    }

    /// A command that is run as it is: words, the first an absolute path.
    fn askpass(&mut self, at: &At<'_>) -> Option<Vec<String>> {
        let text = self.text(at)?;
        let words = shell_words::split(text).ok().filter(|words| words.first().is_some_and(|first| first.starts_with('/')));
        if words.is_none() {
            self.tell(at, "not a command", |problem| problem.found(text).allowed("the absolute path of a program, and its arguments"));
        }
        // It is run with our rights: a script that an interpreter is given would be a program whose owner nobody has looked at.
        if words.as_ref().is_some_and(|words| words.iter().skip(1).any(|word| word.contains('/'))) {
            let hint = "write a script of root's that says the whole command, and name that";
            self.tell(at, "an argument that names a file, or may", |problem| problem.found(text).hint(hint));
            return None;
        }
        words
    }

    fn ssh_agent(&mut self, at: &At<'_>) -> Option<Option<SshAgent>> {
        let text = self.text(at)?;
        match text {
            "true" => return Some(Some(SshAgent::Environment)),
            "false" => return Some(None),
            _ => {}
        }
        let path = Path::new(text);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            let allowed = "true (what SSH_AUTH_SOCK of selfstart's environment names), false, or the absolute path of its socket";
            self.tell(at, "no ssh agent", |problem| problem.found(text).allowed(allowed));
            return None;
        }
        Some(Some(SshAgent::Socket(path.components().collect())))
    }

    fn wanted(&mut self, map: &Map<'_>) -> Option<WantedRef> {
        let branch = self.opt(map, "branch", |reader, at| reader.reference(at, "branch", "refs/heads/"));
        let tag = self.opt(map, "tag", |reader, at| reader.reference(at, "tag", "refs/tags/"));
        let revision = self.opt(map, "revision", Self::revision);
        let written: Vec<_> = ["branch", "tag", "revision"].into_iter().filter(|name| map.get(name).is_some()).collect();
        match written.as_slice() {
            [] if map.refused => {}
            [] => {
                let problem = self.problem(map.at, &map.key, "does not say what to deploy");
                self.problems.push(problem.allowed("one of branch, tag, revision").hint("`branch: main` follows that branch"));
            }
            [_] => {}
            several => {
                let what = format!("says more than once what to deploy: `{}`", several.join("` and `"));
                let problem = self.problem(map.at, &map.key, what);
                self.problems.push(problem.allowed("one of branch, tag, revision"));
            }
        }
        branch.map(WantedRef::Branch).or(tag.map(WantedRef::Tag)).or(revision.map(WantedRef::Revision))
    }

    fn reference(&mut self, at: &At<'_>, what: &str, prefix: &str) -> Option<String> {
        let text = self.text(at)?;
        let hint = if let Some(short) = text.strip_prefix(prefix) {
            format!("write `{short}`")
        } else if is_reference(text) {
            return Some(text.to_owned());
        } else {
            "see `man git-check-ref-format`".to_owned()
        };
        self.tell(at, &format!("not the name of a {what}"), |problem| problem.found(text).hint(hint));
        None
    }

    fn revision(&mut self, at: &At<'_>) -> Option<String> {
        let text = self.text(at)?;
        if text.parse::<Revision>().is_ok() {
            return Some(text.to_owned());
        }
        let hint = if text.parse::<Revision>().is_err() && text.to_lowercase().parse::<Revision>().is_ok() {
            "write it in lower case"
        } else {
            "`git rev-parse NAME` shows it"
        };
        self.tell(at, "not a full commit id", |problem| problem.found(text).allowed("40 or 64 hexadecimal digits").hint(hint));
        None
    }

    fn release(&mut self, top: &Map<'_>) -> ReleaseSettings {
        let map = self.section(top, "release");
        let linked_dirs = self.linked(&map, "linked_dirs");
        let linked_files = self.linked(&map, "linked_files");
        self.refuse_overlaps(&linked_dirs, &linked_files);
        let paths = |linked: Vec<(At<'_>, PathBuf)>| linked.into_iter().map(|(_, path)| path).collect();
        ReleaseSettings {
            keep: self.or(&map, "keep", 5, |reader, at| reader.whole(at, Between(1, 1_000_000))),
            keep_failed: self.or(&map, "keep_failed", 2, |reader, at| reader.whole(at, Between(0, 1_000_000))),
            linked_dirs: paths(linked_dirs),
            linked_files: paths(linked_files),
            min_free: self.or(&map, "min_free", Bytes(1_000_000_000), |reader, at| reader.size(at, Bytes(0), MOST)),
            confirm: self.or(&map, "confirm", Duration::from_secs(10), |reader, at| reader.duration(at, Duration::ZERO)),
            probation: self.or(&map, "probation", Duration::from_secs(300), |reader, at| reader.duration(at, Duration::ZERO)),
        }
    }

    fn linked<'n>(&mut self, map: &Map<'n>, name: &str) -> Vec<(At<'n>, PathBuf)> {
        let read = |reader: &mut Self, at: &At<'n>| {
            let path = reader.relative_path(at, "the release")?;
            if path == Path::new("REVISION") {
                reader.tell(at, "is written into each release by selfstart", |problem| problem.found("REVISION"));
                return None;
            }
            Some((at.clone(), path))
        };
        self.or(map, name, Vec::new(), |reader, at| reader.each(at, "relative paths", read))
    }

    /// A link within a linked directory would be made in `shared/`, for all releases; the same path twice has no meaning.
    fn refuse_overlaps(&mut self, dirs: &[(At<'_>, PathBuf)], files: &[(At<'_>, PathBuf)]) {
        let all: Vec<_> = dirs.iter().chain(files).collect();
        for (i, (at, path)) in all.iter().enumerate() {
            let clash = all.iter().enumerate().find(|&(j, (_, other))| if path == other { j < i } else { path.starts_with(other) });
            if let Some((_, (other_at, other))) = clash {
                let what = if path == other { "is there already" } else { "lies within another linked path" };
                let hint = format!("`{}` is `{}`", other_at.key, other.display());
                self.tell(at, what, |problem| problem.found(&path.display().to_string()).hint(hint));
            }
        }
    }

    fn build(&mut self, top: &Map<'_>) -> BuildSettings {
        let map = self.section(top, "build");
        let allowed = Placeholder::IN_BUILD;
        BuildSettings {
            env: self.or(&map, "env", BTreeMap::new(), |reader, at| reader.env(at, "build.env", false, &allowed)),
            runtime: self.or(&map, "runtime", Setting::Auto, Self::runtime),
            timeout: self.or(&map, "timeout", Duration::from_secs(15 * 60), |reader, at| reader.duration(at, SECOND)),
            steps: self.or(&map, "steps", Vec::new(), |reader, at| {
                reader.each(at, "texts or {run, timeout, unless_unchanged, once_per, only}", Self::step)
            }),
        }
    }

    fn step(&mut self, at: &At<'_>) -> Option<BuildStep> {
        if let Value::Map(_) = at.node.value {
            let map = self.map(at, "build.steps[]");
            if map.get("run").is_none() {
                self.missing(&map, "run", "`run: COMMAND` says what the step does");
            }
            let timeout = self.opt(&map, "timeout", |reader, at| reader.duration(at, SECOND));
            let (only, primary) = self.or(&map, "only", (Only::default(), None), Self::only_of_step);
            let once = self.opt(&map, "once_per", |reader, at| reader.choice(at, &[("revision", Once::PerRevision)])).or(primary);
            let run = self.opt(&map, "run", Self::run);
            let unless_unchanged = self.or(&map, "unless_unchanged", Vec::new(), |reader, at| {
                reader.each(at, "relative paths", |reader, at| reader.relative_path(at, "the release"))
            });
            if let Some(at) = map.get("unless_unchanged").filter(|_| once.is_some()) {
                self.tell(&at, "not for a step that one node does for all", |problem| problem.hint("it is done once for each revision"));
            }
            return Some(BuildStep { run: run?, timeout, unless_unchanged, only, once, is_here: true });
        }
        let (unless_unchanged, only) = (Vec::new(), Only::default());
        Some(BuildStep { run: self.run(at)?, timeout: None, unless_unchanged, only, once: None, is_here: true })
    }

    /// `only:` of a step, which may leave it to the primary.
    fn only_of_step(&mut self, at: &At<'_>) -> Option<(Only, Option<Once>)> {
        const PATTERN: &str = "build.steps[].only";
        let map = self.free_map(at, PATTERN);
        let Some(primary) = map.get("primary") else { return Some((self.only(at, PATTERN)?, None)) };
        if !self.boolean(&primary)? {
            self.tell(&primary, "would be for all nodes but one", |problem| problem.allowed("true").hint("leave it out for every node"));
            return None;
        }
        let rest: Vec<_> = map.entries.iter().filter(|entry| entry.key != "primary").cloned().collect();
        if rest.is_empty() {
            return Some((Only::default(), Some(Once::ByPrimary)));
        }
        let node = Node { at: at.node.at, value: Value::Map(rest) };
        Some((self.only(&At { key: at.key.clone(), node: &node }, PATTERN)?, Some(Once::ByPrimary)))
    }

    fn run(&mut self, at: &At<'_>) -> Option<String> {
        let text = self.script(at)?;
        self.placeholders(at, text, &Placeholder::IN_BUILD);
        Some(text.to_owned())
    }

    /// A map of environment variables.
    fn env(&mut self, at: &At<'_>, pattern: &str, has_port: bool, allowed: &[Placeholder]) -> Option<BTreeMap<String, Text>> {
        let map = self.free_map(at, pattern);
        let mut env = BTreeMap::new();
        for (entry, at) in map.named() {
            let refused = if !is_variable_name(&entry.key) {
                Some(("not a name of an environment variable", Some("letters, digits and `_`, no digit first"), None))
            } else if entry.key.starts_with("SELFSTART_") {
                Some(("`SELFSTART_*` is set by selfstart", None, Some("choose another name")))
            } else if has_port && entry.key == "PORT" {
                Some(("`PORT` is set by `port:`", None, Some("remove it, or remove `port:`")))
            } else {
                None
            };
            if let Some((what, allowed, hint)) = refused {
                let problem = self.problem(entry.key_at, &at.key, what);
                self.problems.push(Problem { allowed: allowed.map(str::to_owned), hint: hint.map(str::to_owned), ..problem });
            }
            if let Some(text) = self.secret_text(&at, Plain::Shown) {
                if let Value::Scalar { text, .. } = &at.node.value {
                    self.placeholders(&at, text, allowed);
                }
                env.insert(entry.key.clone(), text);
            }
        }
        Some(env)
    }

    fn queue(&mut self, parent: &Map<'_>, inherited: &QueueSettings) -> QueueSettings {
        let map = self.section(parent, "queue");
        QueueSettings {
            kind: self.or(&map, "kind", inherited.kind, |reader, at| reader.choice(at, QUEUE_KINDS)),
            url: self.opt(&map, "url", Self::queue_url).or_else(|| inherited.url.clone()),
            namespace: self.opt(&map, "namespace", |reader, at| reader.text(at).map(str::to_owned)).or_else(|| inherited.namespace.clone()),
        }
    }

    fn queue_url(&mut self, at: &At<'_>) -> Option<Text> {
        let text = self.secret_text(at, Plain::Shown)?;
        let start = text.plain_start();
        // A URL that is secret as a whole is judged when it is used.
        if !start.is_empty() && !["redis://", "rediss://", "unix://"].iter().any(|scheme| start.starts_with(scheme)) {
            self.tell(at, "not the URL of a Redis", |problem| problem.allowed("redis://, rediss://, unix://"));
            return None;
        }
        Some(text)
    }

    fn control(&mut self, top: &Map<'_>) -> ControlSettings {
        let map = self.section(top, "control");
        ControlSettings {
            owner: self.opt(&map, "owner", |reader, at| reader.account(at, "user")),
            group: self.opt(&map, "group", |reader, at| reader.account(at, "group")),
            workers: self.or(&map, "workers", false, Self::boolean),
        }
    }

    fn fleet(&mut self, top: &Map<'_>) -> Option<FleetSettings> {
        top.get("fleet")?;
        let map = self.section(top, "fleet");
        if map.get("redis").is_none() && !map.refused {
            self.missing(&map, "redis", "`redis://HOST/DB`: what the nodes of the fleet share");
        }
        Some(FleetSettings { redis: self.opt(&map, "redis", Self::fleet_redis)? })
    }

    fn fleet_redis(&mut self, at: &At<'_>) -> Option<Text> {
        let text = self.secret_text(at, Plain::Shown)?;
        let start = text.plain_start();
        if !start.is_empty() && !["redis://", "unix://"].iter().any(|scheme| start.starts_with(scheme)) {
            self.tell(at, "not the URL of a Redis that can be used here", |problem| problem.allowed("redis://, unix://"));
            return None;
        }
        Some(text)
    }

    fn log(&mut self, top: &Map<'_>) -> LogSettings {
        let map = self.section(top, "log");
        LogSettings {
            format: self.or(&map, "format", LogFormat::Auto, |reader, at| reader.choice(at, LOG_FORMATS)),
            level: self.or(&map, "level", "info", |reader, at| reader.choice(at, LEVELS)).to_owned(),
            // Below a page the pipe stops being atomic for lines; above 1 MiB it needs CAP_SYS_RESOURCE (pipe(7), pipe-max-size).
            buffer: self.or(&map, "buffer", Bytes(64 << 10), |reader, at| reader.size(at, Bytes(4 << 10), Bytes(1 << 20))),
        }
    }

    fn pools(&mut self, top: &Map<'_>, queue: &QueueSettings) -> Vec<PoolSettings> {
        let Some(at) = top.get("pools") else {
            self.missing(top, "pools", "one pool with a `command` is enough for a first try");
            return Vec::new();
        };
        let map = self.free_map(&at, "pools");
        if map.entries.is_empty() && !map.refused {
            self.problems.push(self.problem(map.at, &map.key, "has no pool").hint("one pool with a `command` is enough for a first try"));
        }
        let mut read = Vec::new();
        for (entry, at) in map.named() {
            if !is_name(&entry.key, |b| b == b'-' || b == b'_') {
                let problem = self.problem(entry.key_at, &at.key, "not a name of a pool").found(&entry.key).allowed("[a-z][a-z0-9_-]*");
                let hint = suggested_name(&entry.key, |b| b == b'-' || b == b'_');
                self.problems.push(Problem { hint, ..problem });
            }
            let map = self.map(&at, "pools.NAME");
            let map = Map { at: entry.key_at, ..map };
            let pool = self.pool(&map, entry.key.as_str(), queue);
            read.push((map, pool));
        }
        let names: BTreeSet<&str> = map.entries.iter().map(|entry| entry.key.as_str()).collect();
        self.check_groups(&read, &names);
        self.check_after(&read, &names);
        self.check_ports(&read);
        self.check_log_files(&read);
        read.into_iter().filter_map(|(_, pool)| pool).collect()
    }

    fn pool(&mut self, map: &Map<'_>, name: &str, inherited: &QueueSettings) -> Option<PoolSettings> {
        let port: Option<u16> = self.opt(map, "port", Self::port);
        let allowed: Vec<_> =
            Placeholder::ALL.into_iter().filter(|placeholder| *placeholder != Placeholder::Port || map.get("port").is_some()).collect();
        let command = self.pool_command(map, &allowed);
        let queue = self.queue(map, inherited);
        let count = self.or(map, "count", 1, Self::count);
        if let (Some(port), Some(at)) = (port, map.get("port"))
            && u32::from(port) + count.saturating_sub(1) > u32::from(u16::MAX)
        {
            let what = format!("too high for {count} slots: slot i gets port + i");
            self.tell(&at, &what, |problem| problem.found(&port.to_string()));
        }
        let stop = self.or(map, "stop", polite_stop(queue.kind).0, |reader, at| reader.stop(at, queue.kind));
        let worker = WorkerPolicy {
            stop,
            restart: self.restart(map),
            ready: self.ready(map, &allowed),
            memory: self.opt(map, "memory", Self::memory),
            stale: self.opt(map, "stale_job_timeout", Self::stale),
        };
        let no_pools = |reader: &mut Self, at: &At<'_>| reader.text(at).map(PoolName::from);
        let policy = PoolPolicy {
            name: name.into(),
            count,
            update: self.or(map, "update", UpdatePolicy::default(), Self::update),
            start_stagger: self.or(map, "start_stagger", Duration::ZERO, |reader, at| reader.duration(at, Duration::ZERO)),
            after: self.or(map, "after", Vec::new(), |reader, at| reader.each(at, "pools", no_pools)),
            worker,
        };
        let group_name =
            |reader: &mut Self, at: &At<'_>| reader.name(at, "[a-z][a-z0-9_-]*", |b| b == b'-' || b == b'_').map(PoolName::from);
        let group = self.opt(map, "group", group_name);
        let only = self.or(map, "only", Only::default(), |reader, at| reader.only(at, "pools.NAME.only"));
        let user = self.opt(map, "user", Self::user);
        let one = |reader: &mut Self, at: &At<'_>| reader.text(at).map(str::to_owned);
        let queues = self.or(map, "queues", Vec::new(), |reader, at| reader.each(at, "texts", one));
        let env = self.or(map, "env", BTreeMap::new(), |reader, at| reader.env(at, "pools.NAME.env", port.is_some(), &allowed));
        let env_files = self.or(map, "env_files", Vec::new(), |reader, at| reader.each(at, "absolute paths", Self::absolute_path));
        let limits = self.limits(map);
        let mut policy = policy;
        policy.worker.memory = with_hard_limit(policy.worker.memory, limits.memory);
        let log = self.pool_log(map);
        Some(PoolSettings { policy, command: command?, group, only, user, queue, queues, env, env_files, port, limits, log })
    }

    fn port(&mut self, at: &At<'_>) -> Option<u16> {
        self.whole(at, Between(1, i64::from(u16::MAX)))
    }

    fn pool_command(&mut self, map: &Map<'_>, allowed: &[Placeholder]) -> Option<Command> {
        let words = self.opt(map, "command", |reader, at| reader.command(at, allowed));
        let shell = self.opt(map, "shell", |reader, at| {
            let text = reader.script(at)?;
            reader.placeholders(at, text, allowed);
            Some(text.to_owned())
        });
        match (map.get("command"), map.get("shell")) {
            (None, None) => {
                self.missing(map, "command", "`command: PROGRAM ARGUMENTS`, or `shell: SCRIPT`");
                None
            }
            (Some(_), Some(shell)) => {
                self.tell(&shell, "`command` and `shell` cannot both be there", |problem| problem.hint("remove one of them"));
                None
            }
            _ => words.map(Command::Words).or(shell.map(Command::Shell)),
        }
    }

    fn count(&mut self, at: &At<'_>) -> Option<u32> {
        let most = i64::from(MAX_COUNT);
        if !matches!(at.node.value, Value::Map(_)) {
            return self.whole(at, Between(0, most));
        }
        let map = self.map(at, "pools.NAME.count");
        let per_cpu = self.opt(&map, "per_cpu", |reader, at| reader.whole::<u32>(at, Between(1, most)));
        let per_memory = self.opt(&map, "per_memory", |reader, at| reader.size(at, Bytes(1 << 20), MOST));
        let count = match (map.get("per_cpu"), map.get("per_memory")) {
            (Some(_), None) => u64::from(per_cpu?) * u64::from(self.around.cpus.max(1)),
            (None, Some(_)) => (self.around.memory.0 / per_memory?.0).max(1),
            (written, _) => {
                let what = if written.is_some() { "says twice how many" } else { "does not say how many" };
                self.tell(at, what, |problem| problem.allowed("a number, {per_cpu: N} or {per_memory: SIZE}"));
                return None;
            }
        };
        match u32::try_from(count) {
            Ok(count) if count <= MAX_COUNT => Some(count),
            _ => {
                self.tell(at, &format!("too many for this machine: {count}"), |problem| problem.allowed(format!("at most {MAX_COUNT}")));
                None
            }
        }
    }

    fn stop(&mut self, at: &At<'_>, kind: QueueKind) -> Option<StopLadder> {
        let before = self.problems.len();
        let form = "such as [QUIT 60s, TERM 10s, KILL]";
        let items = self.list(at, &format!("rungs, {form}"))?;
        let mut rungs = Vec::new();
        let last = items.len().saturating_sub(1);
        if items.is_empty() {
            self.tell(at, "has no rung", |problem| problem.hint(format!("{form}; `[KILL]` ends the whole tree at once")));
        }
        for (i, at) in items.iter().enumerate() {
            let Some(text) = self.text(at) else { continue };
            let mut words = text.split_whitespace();
            let signal = words.next().unwrap_or_default();
            let wait = words.next();
            if words.next().is_some() {
                self.tell(at, "not a rung", |problem| problem.found(text).allowed("`SIGNAL DURATION`, or `KILL` at the end"));
                continue;
            }
            match self.signal(at, signal) {
                None => {}
                Some(Signal::Kill) if wait.is_some() => {
                    self.tell(at, "nothing comes after KILL", |problem| problem.found(text).hint("write `KILL`"))
                }
                Some(Signal::Kill) if i != last => self.tell(at, "KILL is not the last rung", |problem| problem.found(text)),
                Some(Signal::Kill) => {}
                Some(_) if i == last => self.tell(at, "the last rung is not KILL", |problem| {
                    problem.found(text).hint("add `KILL`: a worker that ignores the others must end, too")
                }),
                Some(Signal::Stop) => self.tell(at, "STOP stops nothing for good", |problem| problem.found(text)),
                Some(signal) => match wait.map(|wait| duration(wait, TICK)) {
                    None => self.tell(at, "does not say how long it is waited for", |problem| {
                        problem.found(text).hint(format!("write `{signal} 10s`"))
                    }),
                    Some(Err((what, hint))) => {
                        self.tell(at, &format!("the wait is wrong: {what}"), |problem| Problem { hint, ..problem.found(text) });
                    }
                    Some(Ok(wait)) => {
                        if destroys(kind, signal) {
                            let name = QUEUE_KINDS.iter().find(|(_, other)| *other == kind).map_or("", |(name, _)| name);
                            let what = format!("{signal} ends a worker of {name} at once, and loses its jobs");
                            self.warnings
                                .push(self.problem(at.node.at, &at.key, what).hint("leave `stop` out: its default is the polite one"));
                        }
                        rungs.push(StopRung { signal, wait });
                    }
                },
            }
        }
        (self.problems.len() == before).then_some(StopLadder { rungs })
    }

    fn signal(&mut self, at: &At<'_>, text: &str) -> Option<Signal> {
        let signal = text.parse();
        if signal.is_err() {
            let names = Signal::ALL.map(Signal::name);
            let upper = text.to_uppercase();
            let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
            let near = names.iter().find(|name| **name == bare).copied().or_else(|| {
                names.iter().map(|name| (strsim::osa_distance(bare, name), *name)).filter(|(far, _)| *far <= 1).min().map(|(_, name)| name)
            });
            let hint = near.map(|near| format!("did you mean `{near}`?"));
            self.tell(at, "no such signal", |problem| Problem { hint, ..problem.found(text).allowed(names.join(", ")) });
        }
        signal.ok()
    }

    fn restart(&mut self, pool: &Map<'_>) -> RestartPolicy {
        let default = RestartPolicy::default();
        let map = self.section(pool, "restart");
        let flapping = self.section(&map, "flapping");
        let (backoff_first, backoff_longest) = self.or(&map, "backoff", (default.backoff_first, default.backoff_longest), |reader, at| {
            let least = Duration::from_millis(100);
            let items = reader.list(at, "two durations, such as [1s, 1m]")?;
            let [first, longest] = items.as_slice() else {
                let found = format!("{} elements", items.len());
                let more = |problem: Problem| Problem { found: Some(found), ..problem.allowed("two durations, such as [1s, 1m]") };
                reader.tell(at, "not two durations", more);
                return None;
            };
            let (first, longest_wait) = (reader.duration(first, least), reader.duration(longest, least));
            let (first, longest_wait) = (first?, longest_wait?);
            if first > longest_wait {
                reader.tell(at, "the longest wait is shorter than the first", |problem| problem.hint("[first wait, longest wait]"));
                return None;
            }
            Some((first, longest_wait))
        });
        RestartPolicy {
            backoff_first,
            backoff_longest,
            reset_after: self.or(&map, "reset_after", default.reset_after, |reader, at| reader.duration(at, TICK)),
            flapping: FlappingPolicy {
                crashes: self.or(&flapping, "crashes", default.flapping.crashes, |reader, at| reader.whole(at, Between(1, 1000))),
                within: self.or(&flapping, "within", default.flapping.within, |reader, at| reader.duration(at, TICK)),
                retry_after: self.or(&flapping, "retry_after", default.flapping.retry_after, |reader, at| reader.duration(at, SECOND)),
            },
        }
    }

    fn ready(&mut self, pool: &Map<'_>, allowed: &[Placeholder]) -> ReadyPolicy {
        let default = ReadyPolicy::default();
        let map = self.section(pool, "ready");
        let within = self.or(&map, "within", default.within, |reader, at| reader.duration(at, TICK));
        let after = self.opt(&map, "after", |reader, at| reader.duration(at, Duration::ZERO)).map(ReadyHow::After);
        let tcp = self.opt(&map, "tcp", |reader, at| reader.tcp(at, allowed)).map(ReadyHow::Tcp);
        let command = self.opt(&map, "command", |reader, at| reader.command(at, allowed)).map(ReadyHow::Command);
        let written: Vec<_> = ["after", "tcp", "command"].into_iter().filter(|name| map.get(name).is_some()).collect();
        if written.len() > 1 {
            let what = format!("says more than once what ready is: `{}`", written.join("` and `"));
            let problem = self.problem(map.at, &map.key, what);
            self.problems.push(problem.allowed("one of after, tcp, command"));
        }
        let how = after.or(tcp).or(command).unwrap_or(default.how);
        if let ReadyHow::After(after) = how
            && within <= after
        {
            let at = map.get("within").or_else(|| map.get("after")).map_or(map.at, |at| at.node.at);
            let what = "not longer than `after`: no worker would ever be ready in time";
            self.problems.push(self.problem(at, &join(&map.key, "within"), what).hint("raise `within`"));
        }
        ReadyPolicy { how, within }
    }

    fn tcp(&mut self, at: &At<'_>, allowed: &[Placeholder]) -> Option<String> {
        let text = self.text(at)?;
        self.placeholders(at, text, allowed);
        let good = text.rsplit_once(':').is_some_and(|(host, port)| {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let host_is_good = match bare {
                Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
                None => !host.is_empty() && !host.contains([':', '/', '@']) && !host.contains(char::is_whitespace),
            };
            host_is_good && (port.contains('{') || port.parse::<u16>().is_ok_and(|port| port > 0))
        });
        if !good {
            let hint = "such as `127.0.0.1:{port}` or `[::1]:8080`";
            self.tell(at, "not an address", |problem| problem.found(text).allowed("HOST:PORT").hint(hint));
            return None;
        }
        Some(text.to_owned())
    }

    fn memory(&mut self, at: &At<'_>) -> Option<MemoryPolicy> {
        let every = SAMPLE_EVERY;
        match &at.node.value {
            Value::Map(_) => {
                let map = self.map(at, "pools.NAME.memory");
                if map.get("ladder").is_none() {
                    self.missing(&map, "ladder", "such as [350MB x2/3 drain]");
                }
                let every = self.or(&map, "every", every, |reader, at| reader.duration(at, Duration::from_millis(100)));
                let ladder = self.opt(&map, "ladder", Self::memory_ladder)?;
                Some(MemoryPolicy { ladder, every })
            }
            Value::List(_) => {
                self.tell(at, "not a size", |problem| Problem {
                    found: Some("a list".to_owned()),
                    ..problem.hint("write `memory: {ladder: [...]}`")
                });
                None
            }
            Value::Scalar { text, .. } if text.contains(char::is_whitespace) => {
                let hint = "write `memory: {ladder: [...]}` for more than a size";
                self.tell(at, "not a size", |problem| problem.found(text).hint(hint));
                None
            }
            Value::Scalar { .. } => {
                let limit = self.size(at, LEAST_MEMORY, MOST)?;
                Some(MemoryPolicy { ladder: vec![MemoryRung { limit, hits: 2, of: 3, action: MemoryAction::Drain }], every })
            }
        }
    }

    fn memory_ladder(&mut self, at: &At<'_>) -> Option<Vec<MemoryRung>> {
        let before = self.problems.len();
        let items = self.list(at, "rungs, such as [350MB x2/3 drain]")?;
        if items.is_empty() {
            self.tell(at, "has no rung", |problem| problem.hint("such as [350MB x2/3 drain]"));
        }
        let mut rungs: Vec<MemoryRung> = Vec::new();
        for at in &items {
            let Some(text) = self.text(at) else { continue };
            match memory_rung(text) {
                Ok(rung) if rungs.last().is_some_and(|below| below.limit >= rung.limit) => {
                    self.tell(at, "not above the limit before it", |problem| {
                        problem.found(text).hint("order the ladder from the lowest limit to the highest")
                    });
                }
                Ok(rung) => rungs.push(rung),
                Err((what, hint)) => {
                    let allowed = "SIZE xHITS/SAMPLES ACTION, such as `350MB x2/3 drain`";
                    self.tell(at, &what, |problem| Problem { hint, ..problem.found(text).allowed(allowed) });
                }
            }
        }
        (self.problems.len() == before).then_some(rungs)
    }

    fn stale(&mut self, at: &At<'_>) -> Option<StalePolicy> {
        if !matches!(at.node.value, Value::Map(_)) {
            return Some(StalePolicy { default: self.duration(at, SECOND)?, classes: BTreeMap::new() });
        }
        let map = self.map(at, "pools.NAME.stale_job_timeout");
        if map.get("default").is_none() {
            self.missing(&map, "default", "how long jobs of no class named here may take");
        }
        let classes = self.or(&map, "classes", BTreeMap::new(), |reader, at| {
            let map = reader.free_map(at, "pools.NAME.stale_job_timeout.classes");
            Some(map.named().filter_map(|(entry, at)| Some((entry.key.clone(), reader.duration(&at, SECOND)?))).collect())
        });
        Some(StalePolicy { default: self.opt(&map, "default", |reader, at| reader.duration(at, SECOND))?, classes })
    }

    fn update(&mut self, at: &At<'_>) -> Option<UpdatePolicy> {
        let default = UpdatePolicy::default();
        if !matches!(at.node.value, Value::Map(_)) {
            return Some(UpdatePolicy { how: self.choice(at, UPDATES)?, ..default });
        }
        let map = self.map(at, "pools.NAME.update");
        Some(UpdatePolicy {
            how: self.or(&map, "how", default.how, |reader, at| reader.choice(at, UPDATES)),
            max_unavailable: self.or(&map, "max_unavailable", 1, |reader, at| reader.whole(at, Between(1, i64::from(MAX_COUNT)))),
            settle: self.or(&map, "settle", default.settle, |reader, at| reader.duration(at, Duration::ZERO)),
            ..default
        })
    }

    fn limits(&mut self, pool: &Map<'_>) -> Limits {
        let map = self.section(pool, "limits");
        Limits {
            // Below 16 hardly a program starts: libraries are opened, too.
            nofile: self.opt(&map, "nofile", |reader, at| reader.whole(at, Between(16, 1 << 30))),
            nice: self.opt(&map, "nice", |reader, at| reader.whole(at, Between(-20, 19))),
            umask: self.opt(&map, "umask", Self::umask),
            cpu: self.opt(&map, "cpu", Self::cpu),
            tasks: self.opt(&map, "tasks", |reader, at| reader.whole(at, Between(1, 1 << 22))),
            memory: self.opt(&map, "memory", |reader, at| reader.size(at, LEAST_MEMORY, MOST)),
            memory_high: self.opt(&map, "memory_high", |reader, at| reader.size(at, LEAST_MEMORY, MOST)),
        }
    }

    /// CPUs with at most two decimals, as hundredths.
    fn cpu(&mut self, at: &At<'_>) -> Option<u32> {
        let allowed = "a number of CPUs from 0.01 to 10000, such as 1.5";
        let (text, _) = self.scalar(at, "a number", allowed)?;
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let hundredths = (digits(whole) && digits(part) && part.len() <= 2 && whole.len() <= 5)
            .then(|| Some(whole.parse::<u32>().ok()? * 100 + format!("{part:0<2}").parse::<u32>().ok()?))
            .flatten()
            .filter(|hundredths| (1..=1_000_000).contains(hundredths));
        if hundredths.is_none() {
            self.tell(at, "not a number of CPUs", |problem| problem.found(text).allowed(allowed));
        }
        hundredths
    }

    fn umask(&mut self, at: &At<'_>) -> Option<u32> {
        let allowed = "octal digits in quotes, \"000\" to \"777\"";
        let text = self.text(at).filter(|_| matches!(at.node.value, Value::Scalar { .. }))?;
        let octal = text.bytes().all(|b| matches!(b, b'0'..=b'7')) && (3..=4).contains(&text.len());
        if let (true, Value::Scalar { plain: true, .. }) = (octal, &at.node.value) {
            let hint = format!("write \"{text}\" in quotes: without them YAML may read another number");
            self.tell(at, "a umask without quotes", |problem| problem.found(text).allowed(allowed).hint(hint));
            return None;
        }
        match u32::from_str_radix(text, 8) {
            Ok(mask) if octal && mask <= 0o777 => Some(mask),
            _ => {
                self.tell(at, "not a umask", |problem| problem.found(text).allowed(allowed));
                None
            }
        }
    }

    fn pool_log(&mut self, pool: &Map<'_>) -> PoolLog {
        let map = self.section(pool, "log");
        PoolLog {
            file: self.opt(&map, "file", Self::log_file),
            max_size: self.or(&map, "max_size", Bytes(50_000_000), |reader, at| reader.size(at, Bytes(4 << 10), MOST)),
            max_age: self.opt(&map, "max_age", |reader, at| reader.duration(at, SECOND)),
            keep: self.or(&map, "keep", 5, |reader, at| reader.whole(at, Between(0, 1000))),
        }
    }

    fn log_file(&mut self, at: &At<'_>) -> Option<PathBuf> {
        let text = self.text(at)?;
        if text.starts_with('/') {
            let path = self.absolute_path(at)?;
            if path.file_name().is_none() {
                self.tell(at, "not a file", |problem| problem.found(text));
                return None;
            }
            return Some(path);
        }
        let path = self.relative_path(at, "`root`, or an absolute one")?;
        // `shared` belongs to the app's user, who could lead the agent's writing elsewhere with a link.
        let ours = ["run", "releases", "repo.git", "current", "queue", "shared"];
        if ours.iter().any(|ours| path.starts_with(ours)) {
            self.tell(at, "would be written among selfstart's own files", |problem| problem.found(text).hint("such as `log/NAME.log`"));
            return None;
        }
        Some(path)
    }

    fn check_groups(&mut self, pools: &[(Map<'_>, Option<PoolSettings>)], names: &BTreeSet<&str>) {
        for (map, _) in pools {
            if let Some(at) = map.get("group")
                && let Value::Scalar { text, .. } = &at.node.value
                && names.contains(text.as_str())
            {
                let hint = "commands take both names: they must differ";
                self.tell(&at, "a group with the name of a pool", |problem| problem.found(text).hint(hint));
            }
        }
    }

    /// Each name in `after` is another pool, and nothing waits for itself.
    fn check_after(&mut self, pools: &[(Map<'_>, Option<PoolSettings>)], names: &BTreeSet<&str>) {
        let mut edges: HashMap<&str, Vec<&str>> = HashMap::new();
        for ((map, _), name) in pools.iter().zip(pools.iter().map(|(map, _)| map.key.as_str())) {
            let Some(after) = map.get("after") else { continue };
            let Value::List(items) = &after.node.value else { continue };
            for (i, node) in items.iter().enumerate() {
                let Value::Scalar { text, .. } = &node.value else { continue };
                let at = At { key: format!("{}[{i}]", after.key), node };
                match names.get(text.as_str()) {
                    Some(other) if join("pools", other) == name => {
                        self.tell(&at, "a pool cannot wait for itself", |problem| problem.found(text));
                    }
                    Some(_) => edges.entry(name).or_default().push(text),
                    None => {
                        let hint = nearest(text, names.iter().copied()).map(|near| format!("did you mean `{near}`?"));
                        let all = names.iter().copied().collect::<Vec<_>>().join(", ");
                        self.tell(&at, "no such pool", |problem| Problem { hint, ..problem.found(text).allowed(all) });
                    }
                }
            }
        }
        let by_key: HashMap<String, &str> = names.iter().map(|name| (join("pools", name), *name)).collect();
        let edges: BTreeMap<&str, Vec<&str>> = edges.into_iter().filter_map(|(key, to)| Some((by_key.get(key).copied()?, to))).collect();
        for cycle in cycles(&edges) {
            let Some((map, _)) = pools.iter().find(|(map, _)| map.key == join("pools", cycle[0])) else { continue };
            let Some(at) = map.get("after") else { continue };
            let what = format!("pools wait for each other: {}", cycle.join(" after "));
            self.tell(&at, &what, |problem| problem.hint("remove one of these"));
        }
    }

    /// No port belongs to two slots.
    fn check_ports(&mut self, pools: &[(Map<'_>, Option<PoolSettings>)]) {
        let mut taken: Vec<(u32, u32, &str)> = Vec::new();
        for (map, pool) in pools {
            let (Some(pool), Some(at)) = (pool, map.get("port")) else { continue };
            let Some(port) = pool.port.map(u32::from) else { continue };
            let end = port + pool.policy.count.max(1);
            if let Some((_, _, other)) = taken.iter().find(|(from, to, _)| port < *to && *from < end) {
                let what = format!("a port of `{other}`, too: slot i gets port + i");
                self.tell(&at, &what, |problem| problem.found(&port.to_string()));
            }
            taken.push((port, end, &map.key));
        }
    }

    /// No file is written, and rotated, by two pools.
    fn check_log_files(&mut self, pools: &[(Map<'_>, Option<PoolSettings>)]) {
        let mut taken: BTreeMap<&Path, &str> = BTreeMap::new();
        for (map, pool) in pools {
            let Some(file) = pool.as_ref().and_then(|pool| pool.log.file.as_deref()) else { continue };
            let Value::Map(entries) = (match map.get("log") {
                Some(at) => &at.node.value,
                None => continue,
            }) else {
                continue;
            };
            let Some(entry) = entries.iter().find(|entry| entry.key == "file") else { continue };
            if let Some(other) = taken.insert(file, &map.key) {
                let at = At { key: format!("{}.log.file", map.key), node: &entry.value };
                self.tell(&at, &format!("the log file of `{other}`, too"), |problem| problem.found(&file.display().to_string()));
            }
        }
    }
}

/// How the source may know us.
const CREDENTIALS: &str = "one of ssh_key with known_hosts, ssh_agent with known_hosts, token, username with password, askpass";

/// How a repository is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Https,
    Ssh,
    Git,
    Local,
}

impl Transport {
    fn of(text: &Text) -> Option<Self> {
        let start = text.plain_start();
        let known =
            [("https://", Self::Https), ("ssh://", Self::Ssh), ("git://", Self::Git), ("file:///", Self::Local), ("/", Self::Local)];
        if let Some((scheme, transport)) = known.into_iter().find(|(scheme, _)| start.starts_with(scheme)) {
            let rest = &start[scheme.len()..];
            return ((!rest.is_empty() || text.as_plain().is_none())
                && (transport != Self::Ssh || is_ssh(rest, text.as_plain().is_some())))
            .then_some(transport);
        }
        // user@host:path, as scp has it.
        let (host, path) = start.split_once(':')?;
        let (user, host) = host.split_once('@')?;
        let plain = |part: &str| !part.is_empty() && !part.starts_with('-') && !part.contains(['/', ' ']);
        (plain(user) && plain(host) && !path.is_empty() && !path.starts_with("//")).then_some(Self::Ssh)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Ssh => "ssh",
            Self::Git => "git://",
            Self::Local => "path",
        }
    }
}

/// Whether this, behind `ssh://`, has a plain host and a path: neither may look like an option to the ssh client. What is looked up
/// later is judged when it is used.
fn is_ssh(rest: &str, whole: bool) -> bool {
    let Some((authority, path)) = rest.split_once('/') else { return !whole && !rest.starts_with('-') };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("x", authority));
    let plain = |part: &str| !part.is_empty() && !part.starts_with(['-', ':']) && !part.contains([' ', '@']);
    plain(user) && plain(host) && !(whole && path.is_empty())
}

/// The time between two samples of memory when nothing else is said.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// A limit below this is a missing unit or a typing error: no runtime fits into it.
const LEAST_MEMORY: Bytes = Bytes(1 << 20);

/// Reads `350MB x2/3 drain`; the error is what is wrong, and a hint.
/// Adds `limits.memory` to a ladder, for where the kernel does not see to it.
fn with_hard_limit(memory: Option<MemoryPolicy>, limit: Option<Bytes>) -> Option<MemoryPolicy> {
    let Some(limit) = limit else { return memory };
    let mut memory = memory.unwrap_or(MemoryPolicy { ladder: Vec::new(), every: SAMPLE_EVERY });
    // What is at it or above is never reached.
    memory.ladder.retain(|rung| rung.limit < limit);
    memory.ladder.push(MemoryRung { limit, hits: 1, of: 1, action: MemoryAction::Kill });
    Some(memory)
}

fn memory_rung(text: &str) -> Result<MemoryRung, (String, Option<String>)> {
    let mut words = text.split_whitespace().peekable();
    let limit = size(words.next().unwrap_or_default(), LEAST_MEMORY, MOST)?;
    let (hits, of) = match words.next_if(|word| word.starts_with('x')) {
        None => (2, 3),
        Some(word) => {
            let samples = &word[1..];
            let (hits, of) = samples.split_once('/').unwrap_or((samples, samples));
            let number = |text: &str| text.parse::<u8>().ok().filter(|n| (1..=32).contains(n));
            match (number(hits), number(of)) {
                (Some(hits), Some(of)) if hits <= of => (hits, of),
                _ => {
                    return Err((
                        format!("not a number of samples: `{word}`"),
                        Some("`x2/3` is 2 of 3 samples, `x2` is 2 of 2; at most 32".to_owned()),
                    ));
                }
            }
        }
    };
    let action = match words.next() {
        None | Some("drain") => MemoryAction::Drain,
        Some("kill" | "KILL" | "SIGKILL") => MemoryAction::Kill,
        Some(word) => match word.parse() {
            Ok(signal) => MemoryAction::Signal(signal),
            Err(_) => {
                return Err((
                    format!("no such action: `{word}`"),
                    Some("`drain` (the stop ladder), `kill` (the whole tree, at once) or a signal such as TERM".to_owned()),
                ));
            }
        },
    };
    match words.next() {
        None => Ok(MemoryRung { limit, hits, of, action }),
        Some(word) => Err((format!("too much: `{word}`"), None)),
    }
}

/// Every cycle once, from its first name on, that name repeated at the end.
fn cycles<'n>(edges: &BTreeMap<&'n str, Vec<&'n str>>) -> Vec<Vec<&'n str>> {
    let mut found = Vec::new();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for &start in edges.keys() {
        // Depth first with its own stack: a thousand pools in a row must not need a thousand frames.
        let mut path: Vec<(&str, usize)> = vec![(start, 0)];
        while let Some((name, next)) = path.last_mut() {
            let name = *name;
            let Some(&to) = edges.get(name).and_then(|to| to.get(*next)) else {
                done.insert(name);
                path.pop();
                continue;
            };
            *next += 1;
            if let Some(from) = path.iter().position(|(name, _)| *name == to) {
                found.push(path[from..].iter().map(|(name, _)| *name).chain([to]).collect());
            } else if !done.contains(to) {
                path.push((to, 0));
            }
        }
    }
    found
}

fn is_name(text: &str, more: fn(u8) -> bool) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || more(b))
        // A name is part of file names: 255 bytes with what is added to it (`open(2)`, NAME_MAX).
        && text.len() <= 64
}

/// What might have been meant by a name with capitals or other letters.
fn suggested_name(text: &str, more: fn(u8) -> bool) -> Option<String> {
    let instead = if more(b'_') { '_' } else { '-' };
    let name: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || u8::try_from(c).is_ok_and(more) { c } else { instead })
        .collect();
    if text.len() > 64 { Some("at most 64 letters".to_owned()) } else { is_name(&name, more).then(|| format!("write `{name}`")) }
}

/// A user or a group: what `useradd(8)` and directories make, or a number.
fn is_account(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.contains([':', '/', ','])
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// `git-check-ref-format(1)`, for one that stands below `refs/heads/` or `refs/tags/`.
fn is_reference(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    text.split('/').all(part)
        && !text.starts_with('-')
        && !text.ends_with('.')
        && text != "@"
        && !["..", "@{"].iter().any(|bad| text.contains(bad))
        && !text.contains(|c: char| c.is_control() || c == ' ' || "~^:?*[\\".contains(c))
}
