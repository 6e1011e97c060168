//! What a validated configuration means: the only form of it that the rest of the program sees.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use selfstart_core::id::PoolName;
use selfstart_core::only::{Only, Traits};
use selfstart_core::policy::PoolPolicy;
use selfstart_core::runtime::Setting;
use selfstart_core::trigger::Debounce;
use selfstart_core::units::Bytes;

use super::secret::Text;

/// One app on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `app:`.
    pub app: String,
    /// `root:`, absolute; default `/var/lib/selfstart/<app>`.
    pub root: PathBuf,
    /// `user:`; `None`: who runs the agent.
    pub user: Option<UserSpec>,
    /// `roles:`, `attributes:` and what `--role` adds.
    pub node: Traits,
    /// `source:`, without what says when it is looked at.
    pub source: SourceSettings,
    /// `source.poll`, `source.webhook`, `source.debounce`.
    pub triggers: TriggerSettings,
    /// `release:`.
    pub release: ReleaseSettings,
    /// `build:`.
    pub build: BuildSettings,
    /// `queue:`.
    pub queue: QueueSettings,
    /// `pools:`, in the order in which they are written.
    pub pools: Vec<PoolSettings>,
    /// What the configuration has for other nodes.
    pub elsewhere: Vec<Elsewhere>,
    /// `control:`.
    pub control: ControlSettings,
    /// `http:`; `None`: nothing listens.
    pub http: Option<HttpSettings>,
    /// `notify:`.
    pub notify: Vec<NotifySettings>,
    /// `log:`.
    pub log: LogSettings,
    /// `fleet:`.
    pub fleet: Option<FleetSettings>,
}

/// A pool or step that is not for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Which.
    pub what: What,
    /// Its `only:`.
    pub only: Only,
}

/// What may be for some nodes only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A pool.
    Pool(PoolName),
    /// A build step, as it is written.
    Step(String),
    /// A build step that is done once, so that its result is waited for.
    WaitedStep(String),
}

/// What makes a deploy begin, beside boots and operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TriggerSettings {
    /// `source.poll`; `None`: the source is not asked.
    pub poll: Option<Duration>,
    /// `source.webhook.secret`; `None`: webhooks are refused.
    pub webhook: Option<Text>,
    /// `source.debounce`.
    pub debounce: Debounce,
}

/// `http:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// `listen:`.
    pub listen: SocketAddr,
    /// `token:`; `None`: whoever reaches it may read status and metrics.
    pub token: Option<Text>,
    /// `tls:`.
    pub tls: Option<HttpTls>,
}

/// `http.tls:`; both are PEM files, read when http begins and at a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTls {
    /// The certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// One entry of `notify:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifySettings {
    /// Who is told.
    pub to: NotifyTo,
    /// `on:`, as `Kind::as_str` names them.
    pub on: BTreeSet<String>,
}

/// Who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotifyTo {
    /// `webhook:`: a URL to which the event is posted.
    Webhook(Text),
    /// `command:`, split into words: it gets the event on its standard input.
    Command(Vec<String>),
}

/// `user` or `user:group`, by name or number; looked up when it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSpec {
    /// The user.
    pub user: String,
    /// The group; `None`: the user's primary group and all its supplementary groups.
    pub group: Option<String>,
}

/// `source:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSettings {
    /// `repository:`: https, ssh (`ssh://` or `user@host:path`), git, file, or an absolute path.
    pub repository: Text,
    /// What of it.
    pub wanted: WantedRef,
    /// How many commits; 0: the whole history.
    pub depth: u32,
    /// `ca:`: a PEM file of more certificate authorities to trust.
    pub ca: Option<PathBuf>,
    /// `credentials:`.
    pub credentials: Credentials,
    /// `submodules:`.
    pub submodules: bool,
    /// `verify: {allowed_signers: ...}`: only what they signed is deployed.
    pub allowed_signers: Option<PathBuf>,
    /// The longest that one fetch may take.
    pub timeout: Duration,
    /// After this long without the source, the last good release starts.
    pub boot_timeout: Duration,
    /// Whether a build is stopped when the source has something newer.
    pub supersede: bool,
}

impl SourceSettings {
    /// Whether it is reached over ssh.
    #[must_use]
    pub fn is_ssh(&self) -> bool {
        let start = self.repository.plain_start();
        start.starts_with("ssh://") || (!start.starts_with('/') && !start.contains("://") && start.contains(':'))
    }
}

/// What is deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WantedRef {
    /// The head of a branch.
    Branch(String),
    /// A tag, peeled.
    Tag(String),
    /// A full commit id.
    Revision(String),
}

/// How the source knows us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing is said.
    #[default]
    None,
    /// `token:`: https with the token as password (user `x-access-token`).
    Token(Text),
    /// `username:` and `password:`.
    Password {
        /// Who.
        username: Text,
        /// The password.
        password: Text,
    },
    /// `askpass:`: the words of a command that is asked.
    Askpass(Vec<String>),
    /// `ssh_key:` or `ssh_agent:`, and `known_hosts:`.
    Ssh {
        /// The private key's file.
        key: Option<PathBuf>,
        /// The agent that has the key; never beside one.
        agent: Option<SshAgent>,
        /// The pinned host keys.
        known_hosts: Option<PathBuf>,
    },
}

/// `source.credentials.ssh_agent:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SshAgent {
    /// `true`: the one that `SSH_AUTH_SOCK` of selfstart's own environment names.
    Environment,
    /// Its socket.
    Socket(PathBuf),
}

/// `release:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseSettings {
    /// Whole releases kept, the live one counted; at least 1.
    pub keep: u32,
    /// Failed ones kept for inspection.
    pub keep_failed: u32,
    /// Relative paths below the release.
    pub linked_dirs: Vec<PathBuf>,
    /// Relative paths below the release.
    pub linked_files: Vec<PathBuf>,
    /// No deploy with less disk than this.
    pub min_free: Bytes,
    /// How long the first slot of each pool must stay up in a deploy.
    pub confirm: Duration,
    /// How long after its rollout a release that crash-loops is rolled back by itself.
    pub probation: Duration,
}

/// `build:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildSettings {
    /// Added to the steps' environment.
    pub env: BTreeMap<String, Text>,
    /// `runtime:`.
    pub runtime: Setting,
    /// All steps together.
    pub timeout: Duration,
    /// In order.
    pub steps: Vec<BuildStep>,
}

/// One build step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildStep {
    /// Given to `sh -eu -c`; placeholders not yet filled in.
    pub run: String,
    /// This step alone; `None`: only the whole build's.
    pub timeout: Option<Duration>,
    /// Skipped if these are as at its last success; empty: never.
    pub unless_unchanged: Vec<PathBuf>,
    /// `only:`.
    pub only: Only,
    /// What one node does for the fleet; `None`: each node does it.
    pub once: Option<Once>,
    /// Whether `only` lets this node do it; of another's step that is done once the result is waited for.
    pub is_here: bool,
}

/// How a step is done once: both the same, in the words of who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Once {
    /// `once_per: revision`.
    PerRevision,
    /// `only: {primary: true}`.
    ByPrimary,
}

/// `queue:`; pools may override it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// `kind:`.
    pub kind: QueueKind,
    /// `url:`.
    pub url: Option<Text>,
    /// `namespace:`.
    pub namespace: Option<String>,
}

/// What the workers work on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueKind {
    #[default]
    None,
    Resque,
    NodeResque,
    Sidekiq,
    Rq,
    Celery,
    Bullmq,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Count, order of change, and how each worker is minded.
    pub policy: PoolPolicy,
    /// What is executed.
    pub command: Command,
    /// `group:`.
    pub group: Option<PoolName>,
    /// `only:`.
    pub only: Only,
    /// `user:`; `None`: the app's.
    pub user: Option<UserSpec>,
    /// `queue:`, the app's where the pool says nothing.
    pub queue: QueueSettings,
    /// `queues:`.
    pub queues: Vec<String>,
    /// `env:`; placeholders not yet filled in.
    pub env: BTreeMap<String, Text>,
    /// `env_files:`, read at each start.
    pub env_files: Vec<PathBuf>,
    /// `port:`: slot i gets PORT = port + i.
    pub port: Option<u16>,
    /// `limits:`.
    pub limits: Limits,
    /// `log:`.
    pub log: PoolLog,
}

/// What a worker executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `command:` split into words (never empty); placeholders not yet filled in.
    Words(Vec<String>),
    /// `shell:`, given to `sh -c`; placeholders not yet filled in.
    Shell(String),
}

/// `limits:`; `None`: as the agent's own (nofile: its hard limit).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// RLIMIT_NOFILE.
    pub nofile: Option<u64>,
    /// -20 to 19.
    pub nice: Option<i8>,
    /// The file mode creation mask.
    pub umask: Option<u32>,
    /// Hundredths of a CPU; where there are cgroups.
    pub cpu: Option<u32>,
    /// Processes and threads of the whole tree; where there are cgroups.
    pub tasks: Option<u32>,
    /// All memory of the whole tree, with swap: above it the kernel ends it. Also in the pool's memory ladder, for where there are no
    /// cgroups.
    pub memory: Option<Bytes>,
    /// Above this the kernel takes memory back and slows the tree down; where there are cgroups.
    pub memory_high: Option<Bytes>,
}

/// `log:` of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolLog {
    /// `file:`: joins the pool's slots in one file; relative to `<root>`; `None`: `log/<pool>.<slot>.log`.
    pub file: Option<PathBuf>,
    /// A file is rotated when it would grow beyond this.
    pub max_size: Bytes,
    /// A file is rotated when its first line is older than this; `None`: only by size.
    pub max_age: Option<Duration>,
    /// Rotated files kept.
    pub keep: u32,
}

/// `fleet:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetSettings {
    /// `redis:`: what the nodes share.
    pub redis: Text,
}

/// `control:`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlSettings {
    /// Owner of the socket; `None`: who runs the agent.
    pub owner: Option<String>,
    /// Group of the socket; `None`: the group of who runs the agent.
    pub group: Option<String>,
    /// Whether workers may speak to it.
    pub workers: bool,
}

/// `log:` of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// `format:`.
    pub format: LogFormat,
    /// `level:`: error, warn, info, debug or trace.
    pub level: String,
    /// `buffer:`: the pipe's size, per stream of a worker; 4 KiB to 1 MiB.
    pub buffer: Bytes,
}

/// How the agent's own log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, journal-friendly under systemd.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One object a line.
    Json,
}

/// What differs between two configurations: what a reload does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Pools that the new one has and the old one had not.
    pub pools_added: BTreeSet<PoolName>,
    /// Pools that are gone.
    pub pools_removed: BTreeSet<PoolName>,
    /// Pools whose workers must be started anew: what they execute, as whom, with what environment or limits.
    pub restart: BTreeSet<PoolName>,
    /// Pools that changed only in how they are minded (count, ladders, order, log, ...): running workers stay.
    pub policy_only: BTreeSet<PoolName>,
    /// Their workers are replaced by the rollout of the release that is made anew.
    pub by_release: BTreeSet<PoolName>,
    /// The same revision would be built differently: `build:`, or what is linked into each release.
    pub build_changed: bool,
    /// `roles:`.
    pub roles_changed: bool,
    /// `attributes:`.
    pub attributes_changed: bool,
    /// `source:`.
    pub source_changed: bool,
    /// `release.keep`, `keep_failed`, `min_free`, `confirm`, `probation`.
    pub retention_changed: bool,
    /// `control:`.
    pub control_changed: bool,
    /// `source.poll`, `source.webhook` or `source.debounce`.
    pub triggers_changed: bool,
    /// `http:`.
    pub http_changed: bool,
    /// `notify:`.
    pub notify_changed: bool,
    /// `fleet:`.
    pub fleet_changed: bool,
    /// `log:` of the agent; a new `buffer` counts for workers started from now on.
    pub log_changed: bool,
    /// Keys that a reload cannot change.
    pub needs_agent_restart: Vec<&'static str>,
}

impl Changes {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Settings {
    /// Makes of what the configuration says what holds for this node: adds roles to its own, and puts aside the pools and steps that are
    /// for others. A pool that is not here is no obstacle to those `after` it.
    pub(super) fn keep_for_node(&mut self, roles: &[String]) {
        self.node.roles.extend(roles.iter().cloned());
        let node = &self.node;
        let shares = self.fleet.is_some();
        for step in &mut self.build.steps {
            step.is_here = step.only.is_for(node);
        }
        let waits = |step: &BuildStep| step.once.is_some() && shares;
        let waited: Vec<BuildStep> = self.build.steps.iter().filter(|step| !step.is_here && waits(step)).cloned().collect();
        let (steps, other_steps): (Vec<_>, Vec<_>) = self.build.steps.drain(..).partition(|step| step.is_here || waits(step));
        let (pools, other_pools): (Vec<_>, Vec<_>) = self.pools.drain(..).partition(|pool| pool.only.is_for(node));
        let steps_elsewhere = other_steps.into_iter().map(|step| Elsewhere { what: What::Step(step.run), only: step.only });
        let steps_waited = waited.into_iter().map(|step| Elsewhere { what: What::WaitedStep(step.run), only: step.only });
        let pools_elsewhere = other_pools.into_iter().map(|pool| Elsewhere { what: What::Pool(pool.policy.name), only: pool.only });
        self.elsewhere = pools_elsewhere.chain(steps_elsewhere).chain(steps_waited).collect();
        (self.build.steps, self.pools) = (steps, pools);
        let here: BTreeSet<PoolName> = self.pools.iter().map(|pool| pool.policy.name.clone()).collect();
        for pool in &mut self.pools {
            pool.policy.after.retain(|other| here.contains(other));
        }
    }

    /// The files of `${file:...}` that the agent reads.
    #[must_use]
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let source = match &self.source.credentials {
            Credentials::Token(token) => vec![token],
            Credentials::Password { username, password } => vec![username, password],
            Credentials::None | Credentials::Askpass(_) | Credentials::Ssh { .. } => Vec::new(),
        };
        let env = self.build.env.values().chain(self.pools.iter().flat_map(|pool| pool.env.values()));
        let http = self.http.iter().filter_map(|http| http.token.as_ref());
        let notify = self.notify.iter().filter_map(|it| if let NotifyTo::Webhook(url) = &it.to { Some(url) } else { None });
        let triggers = self.triggers.webhook.iter().chain(http).chain(notify);
        let fleet = self.fleet.iter().map(|fleet| &fleet.redis);
        let texts = env.chain(source).chain(triggers).chain(fleet).chain(std::iter::once(&self.source.repository));
        texts.flat_map(Text::files).map(Path::to_owned).collect()
    }

    /// Returns what differs between `old` and `new`.
    #[must_use]
    pub fn changes(old: &Self, new: &Self) -> Changes {
        let by_name = |settings: &'_ Self| settings.pools.iter().map(|pool| pool.policy.name.clone()).collect::<BTreeSet<_>>();
        let (before, after) = (by_name(old), by_name(new));
        let mut changes = Changes {
            pools_added: after.difference(&before).cloned().collect(),
            pools_removed: before.difference(&after).cloned().collect(),
            build_changed: old.build != new.build
                || old.user != new.user
                || old.release.linked_dirs != new.release.linked_dirs
                || old.release.linked_files != new.release.linked_files,
            roles_changed: old.node.roles != new.node.roles,
            attributes_changed: old.node.attributes != new.node.attributes,
            source_changed: old.source != new.source,
            retention_changed: (old.release.keep, old.release.keep_failed, old.release.min_free)
                != (new.release.keep, new.release.keep_failed, new.release.min_free)
                || (old.release.confirm, old.release.probation) != (new.release.confirm, new.release.probation),
            control_changed: old.control != new.control,
            triggers_changed: old.triggers != new.triggers,
            http_changed: old.http != new.http,
            notify_changed: old.notify != new.notify,
            fleet_changed: old.fleet != new.fleet,
            log_changed: old.log != new.log,
            ..Changes::default()
        };
        for pool in &new.pools {
            let Some(was) = old.pools.iter().find(|was| was.policy.name == pool.policy.name) else { continue };
            // Without a user of its own, a pool's workers run as the app's. A new one may not be able to work in a release that the former
            // one made: a release of its own is made, and its rollout replaces the workers.
            if was.user.is_none() && pool.user.is_none() && old.user != new.user {
                changes.by_release.insert(pool.policy.name.clone());
            } else if was.seen_by_workers(old) != pool.seen_by_workers(new) {
                changes.restart.insert(pool.policy.name.clone());
            } else if was != pool {
                changes.policy_only.insert(pool.policy.name.clone());
            }
        }
        if old.app != new.app {
            changes.needs_agent_restart.push("app");
        }
        if old.root != new.root {
            changes.needs_agent_restart.push("root");
        }
        changes
    }
}

/// What a worker is born with: nothing of it can be changed in a running one.
#[derive(PartialEq, Eq)]
struct SeenByWorkers<'a> {
    command: &'a Command,
    user: Option<&'a UserSpec>,
    env: &'a BTreeMap<String, Text>,
    env_files: &'a [PathBuf],
    port: Option<u16>,
    limits: Limits,
}

impl PoolSettings {
    fn seen_by_workers<'a>(&'a self, settings: &'a Settings) -> SeenByWorkers<'a> {
        SeenByWorkers {
            command: &self.command,
            user: self.user.as_ref().or(settings.user.as_ref()),
            env: &self.env,
            env_files: &self.env_files,
            port: self.port,
            limits: self.limits,
        }
    }
}
