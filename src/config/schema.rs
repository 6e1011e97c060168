//! Every key that exists, once: the reference, the refusal of unknown keys and the tests of the defaults are made from it.
//!
//! `NAME` in a path is a name that the user chooses, `[]` an element of a list. Not here: how values are read (`merged`).

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Where it stands: `pools.NAME.memory`.
    pub path: &'static str,
    /// What its value looks like.
    pub kind: &'static str,
    /// What it is when it is left out.
    pub default: Left,
    /// What it means.
    pub meaning: &'static str,
}

/// What holds for a key that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It must not be left out.
    Required,
    /// As if this were written.
    As(&'static str),
    /// What these words say; no text would mean the same everywhere.
    Words(&'static str),
}

const fn key(path: &'static str, kind: &'static str, default: Left, meaning: &'static str) -> Key {
    Key { path, kind, default, meaning }
}

const NOTHING: Left = Left::Words("–");

/// All keys, in the order of the reference.
pub const KEYS: &[Key] = &[
    key("app", "name", Left::Required, "What the app is called: `[a-z][a-z0-9-]*`."),
    key(
        "root",
        "absolute path",
        Left::Words("`/var/lib/selfstart/APP`"),
        "Where releases, logs and state live; at most 90 bytes (a socket's path must fit below it).",
    ),
    key(
        "user",
        "`user` or `user:group`",
        Left::Words("who runs the agent"),
        "What helpers, builds and workers run as, by name or number; pools may override it.",
    ),
    key("roles", "list of names", Left::As("[]"), "What this node is for; `--role NAME` of `run` adds to it."),
    key("attributes", "map of texts", Left::As("{}"), "More about this node, in names of your own: `{slave: true}`."),
    key("source", "map", Left::Required, "Where the code comes from. Exactly one of `branch`, `tag` and `revision` is given."),
    key(
        "source.repository",
        "URL or absolute path (may hold secrets)",
        Left::Required,
        "https, ssh (`ssh://` or `user@host:path`), git, file, or an absolute path.",
    ),
    key("source.branch", "branch", NOTHING, "Its head is deployed."),
    key("source.tag", "tag", NOTHING, "Pinned: what the tag points to is deployed."),
    key("source.revision", "full commit id", NOTHING, "Pinned: this commit is deployed."),
    key("source.depth", "number", Left::As("1"), "How many commits are fetched; 0: the whole history."),
    key(
        "source.submodules",
        "true or false",
        Left::As("false"),
        "Fetched and staged too, each at the commit that is pinned; credentials go to the host that they are for only. Left out: a tree with submodules is refused.",
    ),
    key("source.ca", "absolute path", NOTHING, "A PEM file of more certificate authorities to trust."),
    key(
        "source.credentials",
        "map",
        NOTHING,
        "One of: `ssh_key` or `ssh_agent` (and `known_hosts`), `token`, `username` and `password`, `askpass`. ssh with neither: the keys in `user`'s `~/.ssh`.",
    ),
    key(
        "source.credentials.ssh_key",
        "absolute path",
        NOTHING,
        "The private key, for ssh: without a passphrase; read by selfstart, and not to be readable by `user`.",
    ),
    key(
        "source.credentials.ssh_agent",
        "true, false or absolute path",
        NOTHING,
        "For ssh: an agent has the key; its socket, or `true` for the one that `SSH_AUTH_SOCK` of selfstart's environment names.",
    ),
    key(
        "source.credentials.known_hosts",
        "absolute path",
        NOTHING,
        "The host keys to accept, for ssh; `user` must be able to read it. Left out: `/etc/ssh/ssh_known_hosts` and `~/.ssh/known_hosts` of `user`.",
    ),
    key("source.credentials.token", "text (may hold secrets)", NOTHING, "An access token, for https."),
    key(
        "source.credentials.askpass",
        "command",
        NOTHING,
        "For https: a program, root's alone, that prints the answer to the question in its last argument, as git's; run by selfstart as itself, before each fetch. Its own arguments have no `/` in them.",
    ),
    key("source.credentials.username", "text (may hold secrets)", NOTHING, "For https, with `password`."),
    key("source.credentials.password", "text (may hold secrets)", NOTHING, "For https, with `username`."),
    key("source.verify", "map", NOTHING, "Only what is signed is deployed; else what is live stays."),
    key(
        "source.verify.allowed_signers",
        "absolute path",
        NOTHING,
        "Who may sign commits and tags, in the format of ssh-keygen(1), ALLOWED SIGNERS; read at each fetch, and not to be writable by others than root.",
    ),
    key("source.timeout", "duration", Left::As("2m"), "The longest that one fetch may take."),
    key(
        "source.boot_timeout",
        "duration",
        Left::As("60s"),
        "Unreachable at boot for this long: the last good release starts, and fetching goes on.",
    ),
    key(
        "source.poll",
        "duration, at least 1s",
        Left::Words("the source is not asked"),
        "How often the source is asked for its head, 20 % sooner to 20 % later; a changed one is deployed.",
    ),
    key("source.webhook", "map", NOTHING, "Pushes that the source's server tells of, at `/webhook` of `http`."),
    key(
        "source.webhook.secret",
        "text (may hold secrets)",
        Left::Required,
        "What GitHub, Gitea and Forgejo sign with, and GitLab sends as its token; read anew for each webhook.",
    ),
    key(
        "source.debounce",
        "duration or map",
        Left::Words("`{wait: 2s, cap: 30s}`"),
        "A burst of polls and webhooks is one deploy of the newest revision; DURATION is `{wait: DURATION}`. `selfstart deploy` does not wait.",
    ),
    key("source.debounce.wait", "duration", Left::As("2s"), "The deploy begins so long after the last trigger; 0s: at once."),
    key(
        "source.debounce.cap",
        "duration, at least `wait`",
        Left::As("30s"),
        "And so long after the first one at the latest; a longer `wait` is its own cap.",
    ),
    key(
        "source.debounce.leading",
        "`true` or `false`",
        Left::As("false"),
        "Deploys the first of a burst at once, and after the burst once more if something came.",
    ),
    key(
        "source.supersede",
        "true or false",
        Left::As("false"),
        "Stop a running build when the source is seen to have something newer. What `deploy --ref` named is built to its end.",
    ),
    key("release", "map", Left::As("{}"), "What is kept of releases, and what outlives them."),
    key(
        "release.keep",
        "number, at least 1",
        Left::As("5"),
        "Whole releases kept, the live one counted; what a live process uses comes on top.",
    ),
    key("release.keep_failed", "number", Left::As("2"), "Failed releases kept."),
    key(
        "release.linked_dirs",
        "list of relative paths",
        Left::As("[]"),
        "Directories that live in `shared/` and are linked into each release.",
    ),
    key("release.linked_files", "list of relative paths", Left::As("[]"), "Files that live in `shared/` and are linked into each release."),
    key("release.min_free", "size", Left::As("1GB"), "No deploy below this much free disk."),
    key(
        "release.confirm",
        "duration",
        Left::As("10s"),
        "In a deploy, the first slot of each pool (the canary) must have been ready this long before the next one is replaced; if it crashes, the deploy goes back. A first deploy has none, nor has a pool that was failing before.",
    ),
    key(
        "release.probation",
        "duration",
        Left::As("5m"),
        "So long after its rollout a release is rolled back by itself when a slot that was well before is quarantined for crashing; 0s: never.",
    ),
    key("build", "map", Left::As("{}"), "What makes a release of a revision."),
    key("build.env", "map of texts (may hold secrets)", Left::As("{}"), "Added to the environment of the steps."),
    key(
        "build.runtime",
        "word or map",
        Left::As("auto"),
        "Which ruby, node and python build steps and workers run: `auto` (what `.ruby-version`, `.tool-versions`, `.nvmrc`, `.node-version`, `.python-version` and `mise.toml` of the release ask for), `none` (what the machine has), `rvm`, `rbenv`, `asdf`, `mise`, `nvm`, `pyenv` or `venv`, or these with versions: `{rvm: 3.3.1@flipper, nvm: 20}`, `{asdf: {ruby: 3.3.1}}`, `{pyenv: auto, venv: .venv}`.",
    ),
    key("build.timeout", "duration", Left::As("15m"), "The longest that all steps together may take."),
    key("build.steps", "list of texts or maps", Left::As("[]"), "Run in order, each by `sh -eu -c`; a text is `{run: TEXT}`."),
    key("build.steps[].run", "text", Left::Required, "What is run."),
    key("build.steps[].timeout", "duration", Left::Words("the whole build's"), "The longest that this step may take."),
    key(
        "build.steps[].unless_unchanged",
        "list of relative paths",
        Left::Words("never skipped"),
        "Skipped if these files and directories, the command, `build.env` and the runtime are as they were when a release that is still here was built; what it made there is copied.",
    ),
    key(
        "build.steps[].once_per",
        "`revision`",
        Left::Words("each node does it"),
        "One node of the fleet does it for each revision, and the others wait for its result; needs `fleet.redis`.",
    ),
    key("build.steps[].only", "map", Left::Words("every node"), "The nodes that run this step: as `pools.NAME.only`."),
    key("build.steps[].only.roles", "list of names", Left::Words("whatever the roles"), "As `pools.NAME.only.roles`."),
    key(
        "build.steps[].only.primary",
        "`true`",
        Left::Words("each of those nodes"),
        "One of them does it, whichever is first, and the others wait for its result: the same as `once_per: revision`.",
    ),
    key("queue", "map", Left::As("{}"), "What the workers work on; pools may override each key of it."),
    key(
        "queue.kind",
        "`none`, `resque`, `node_resque`, `sidekiq`, `rq`, `celery`, `bullmq`",
        Left::As("none"),
        "The library; decides how workers are stopped politely.",
    ),
    key("queue.url", "URL (may hold secrets)", NOTHING, "`redis://`, `rediss://` or `unix://`."),
    key("queue.namespace", "text", Left::Words("the library's own"), "The prefix of the queue's keys."),
    key("pools", "map of pools", Left::Required, "The workers, by name of pool: `[a-z][a-z0-9_-]*`."),
    key(
        "pools.NAME.command",
        "text",
        Left::Words("required, or `shell`"),
        "Split into words and executed without a shell; a relative program is looked up in the release, then in PATH.",
    ),
    key("pools.NAME.shell", "text", Left::Words("required, or `command`"), "Given to `sh -c`."),
    key("pools.NAME.group", "name", NOTHING, "Commands take it as well as a pool's name; must not be one."),
    key(
        "pools.NAME.only",
        "map of `roles` and attributes",
        Left::Words("every node"),
        "The nodes that run this pool; beside `roles`, the names of `attributes`, all of which must be as written here.",
    ),
    key("pools.NAME.only.roles", "list of names", Left::Words("whatever the roles"), "The node has any of these."),
    key("pools.NAME.count", "number up to 10000, or a map", Left::As("1"), "How many workers; 0: none."),
    key("pools.NAME.count.per_cpu", "number, at least 1", NOTHING, "As many for each CPU of the machine."),
    key("pools.NAME.count.per_memory", "size", NOTHING, "One for each so much memory of the machine; at least one."),
    key("pools.NAME.after", "list of pools", Left::As("[]"), "Started when these are ready, stopped before them."),
    key("pools.NAME.queue", "map", Left::Words("the app's"), "Overrides `queue`, key by key."),
    key("pools.NAME.queue.kind", "as `queue.kind`", Left::Words("the app's"), "As `queue.kind`."),
    key("pools.NAME.queue.url", "URL (may hold secrets)", Left::Words("the app's"), "As `queue.url`."),
    key("pools.NAME.queue.namespace", "text", Left::Words("the app's"), "As `queue.namespace`."),
    key("pools.NAME.queues", "list of texts", Left::As("[]"), "The queues that this pool works on."),
    key(
        "pools.NAME.env",
        "map of texts (may hold secrets)",
        Left::As("{}"),
        "Added to the environment of the workers. `SELFSTART_*` is ours, and so is `PORT` with `port`.",
    ),
    key(
        "pools.NAME.env_files",
        "list of absolute paths",
        Left::As("[]"),
        "Files of `NAME=value` lines, read again at each start; `SELFSTART_*` is refused there.",
    ),
    key(
        "pools.NAME.memory",
        "size or map",
        Left::Words("no limit"),
        "SIZE is `{ladder: [SIZE x2/3 drain], every: 10s}`: in 2 of 3 samples, then the stop ladder. Counts the worker's whole tree. Left out, it is only shown, from a sample at least every 10 s.",
    ),
    key(
        "pools.NAME.memory.ladder",
        "list of `SIZE xH/N ACTION`",
        Left::Required,
        "Ascending; `x2` is `x2/2`, left out `x2/3`; ACTION: `drain` (when left out), a signal, or `kill` (the whole tree, at once).",
    ),
    key("pools.NAME.memory.every", "duration, at least 100ms", Left::As("10s"), "The time between two samples."),
    key(
        "pools.NAME.stale_job_timeout",
        "duration or map",
        Left::Words("jobs may run for ever"),
        "A job in flight longer than this is ended.",
    ),
    key("pools.NAME.stale_job_timeout.default", "duration", Left::Required, "For jobs of no class below."),
    key("pools.NAME.stale_job_timeout.classes", "map of durations", Left::As("{}"), "By class of job."),
    key(
        "pools.NAME.stop",
        "list of `SIGNAL DURATION`, then `KILL`",
        Left::Words("by `queue.kind`, see below"),
        "The stop ladder: signals to the main process, and how long each is waited for; KILL ends the whole tree.",
    ),
    key("pools.NAME.restart", "map", Left::As("{}"), "When a worker that crashed is started again; the first restart is at once."),
    key(
        "pools.NAME.restart.backoff",
        "list of two durations",
        Left::As("[1s, 1m]"),
        "The second restart's wait, doubled each time, and the longest wait.",
    ),
    key("pools.NAME.restart.reset_after", "duration", Left::As("1m"), "A worker that was ready this long starts the count anew."),
    key("pools.NAME.restart.flapping", "map", Left::As("{}"), "When a slot is quarantined."),
    key("pools.NAME.restart.flapping.crashes", "number, 1 to 1000", Left::As("5"), "This many crashes ..."),
    key("pools.NAME.restart.flapping.within", "duration", Left::As("1m"), "... in this time."),
    key("pools.NAME.restart.flapping.retry_after", "duration, at least 1s", Left::As("5m"), "Then one probe is started after this."),
    key("pools.NAME.ready", "map with one of `after`, `tcp`, `command`", Left::As("{after: 1s}"), "When a started worker counts as ready."),
    key("pools.NAME.ready.after", "duration", NOTHING, "It stayed up this long."),
    key("pools.NAME.ready.tcp", "`HOST:PORT`", NOTHING, "Something answers there."),
    key("pools.NAME.ready.command", "text", NOTHING, "It ends with 0; split into words as `command`."),
    key("pools.NAME.ready.within", "duration, longer than `after`", Left::As("30s"), "Not ready in this time: the start has failed."),
    key(
        "pools.NAME.update",
        "`one_at_a_time`, `all_at_once` or a map",
        Left::As("one_at_a_time"),
        "How the pool changes over to a new release.",
    ),
    key("pools.NAME.update.how", "`one_at_a_time`, `all_at_once`", Left::As("one_at_a_time"), "In what order."),
    key(
        "pools.NAME.update.max_unavailable",
        "number, at least 1",
        Left::As("1"),
        "How many slots may be without a ready worker because of the update.",
    ),
    key("pools.NAME.update.settle", "duration", Left::As("0s"), "How long a replaced slot must have been ready before the next is taken."),
    key("pools.NAME.start_stagger", "duration", Left::As("0s"), "The least time between two starts."),
    key(
        "pools.NAME.limits",
        "map",
        Left::As("{}"),
        "Limits of each process; what is left out is as the agent's own (`nofile`: its hard limit).",
    ),
    key("pools.NAME.limits.nofile", "number, at least 16", NOTHING, "Open files (RLIMIT_NOFILE)."),
    key("pools.NAME.limits.nice", "number, -20 to 19", NOTHING, "The niceness."),
    key("pools.NAME.limits.umask", "octal text in quotes", NOTHING, "The file mode creation mask: `\"022\"`."),
    key("pools.NAME.limits.cpu", "number of CPUs, such as 1.5", NOTHING, "CPU time of a worker's whole tree; needs cgroup v2."),
    key("pools.NAME.limits.tasks", "number, at least 1", NOTHING, "Processes and threads of a worker's whole tree; needs cgroup v2."),
    key(
        "pools.NAME.limits.memory",
        "size, at least 1MiB",
        NOTHING,
        "Memory and swap of a worker's whole tree. Above it the kernel ends it at once (verdict `oom`); without cgroup v2 the next sample does \
         (`kill`).",
    ),
    key(
        "pools.NAME.limits.memory_high",
        "size, at least 1MiB",
        NOTHING,
        "Above it the kernel takes memory back and slows the tree down; needs cgroup v2.",
    ),
    key("pools.NAME.log", "map", Left::As("{}"), "Where the workers' output goes."),
    key(
        "pools.NAME.log.file",
        "path",
        Left::Words("`log/POOL.SLOT.log`, one for each slot"),
        "Joins the pool's slots in one file; relative to `root`.",
    ),
    key("pools.NAME.log.max_size", "size, at least 4KiB", Left::As("50MB"), "A file is rotated before it grows beyond this."),
    key("pools.NAME.log.max_age", "duration", Left::Words("only by size"), "A file is rotated when its first line is older than this."),
    key("pools.NAME.log.keep", "number, 0 to 1000", Left::As("5"), "Rotated files kept."),
    key("pools.NAME.user", "`user` or `user:group`", Left::Words("the app's"), "What this pool's workers run as."),
    key("pools.NAME.port", "number, 1 to 65535", NOTHING, "Slot i gets `PORT` and `{port}` = this + i."),
    key("control", "map", Left::As("{}"), "The control socket, `run/control.sock`, mode 0660."),
    key("control.owner", "user", Left::Words("who runs the agent"), "Who owns it."),
    key(
        "control.group",
        "group",
        Left::Words("the group of who runs the agent"),
        "Its group, whose members may also read events and logs.",
    ),
    key("control.workers", "`true` or `false`", Left::As("false"), "Whether workers may speak to it."),
    key("http", "map", Left::Words("nothing listens"), "Serves `/status`, `/metrics`, `/healthz`, `/readyz` and `/webhook`."),
    key("http.listen", "`IP:PORT`", Left::Required, "Where."),
    key(
        "http.token",
        "text (may hold secrets)",
        Left::Words("none is asked for"),
        "`/status` and `/metrics` want it, as `Authorization: Bearer TOKEN`; read when http begins and at a reload.",
    ),
    key("http.tls", "map", Left::Words("plain http"), "Serves https."),
    key(
        "http.tls.cert",
        "absolute path",
        Left::Required,
        "The certificate and those between it and its authority, PEM; read when http begins and at a reload.",
    ),
    key("http.tls.key", "absolute path", Left::Required, "Its key, PEM."),
    key("notify", "list of maps", Left::As("[]"), "Who is told of what happens; each has one of `webhook` and `command`."),
    key(
        "notify[].webhook",
        "URL (may hold secrets)",
        NOTHING,
        "The event is posted there, as `events --json` shows it, with `app` and `node`.",
    ),
    key(
        "notify[].command",
        "text",
        NOTHING,
        "Split into words and executed as `user` without a shell; the event is on its standard input.",
    ),
    key(
        "notify[].on",
        "list of kinds of events",
        Left::Words("those of level error"),
        "Which; `quarantined` is each event about a quarantined slot or revision.",
    ),
    key("fleet", "map", Left::Words("this node is alone"), "What the nodes of one app share."),
    key(
        "fleet.redis",
        "URL (may hold secrets)",
        Left::Required,
        "`redis://` or `unix://`: leases are kept there. A database of its own for each fleet.",
    ),
    key("log", "map", Left::As("{}"), "The agent's own log."),
    key("log.format", "`auto`, `human`, `json`", Left::As("auto"), "`auto`: human on a terminal, journal-friendly under systemd."),
    key("log.level", "`error`, `warn`, `info`, `debug`, `trace`", Left::As("info"), "The least that is told."),
    key("log.buffer", "size, 4KiB to 1MiB", Left::As("64KiB"), "How much output of a worker is kept, per stream, while nobody reads it."),
];

/// Returns the key at a path.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Returns the names that may stand in the map at a path (empty: the top), in the order of the reference.
pub fn names(parent: &str) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(move |key| {
        let rest = key.path.strip_prefix(parent)?;
        let name = if parent.is_empty() { rest } else { rest.strip_prefix('.')? };
        (!name.contains(['.', '[']) && name != "NAME").then_some(name)
    })
}

/// Returns the reference page, `docs/reference/config.md`.
#[cfg(test)]
#[must_use]
pub fn reference() -> String {
    let mut page = String::from(INTRODUCTION);
    let mut section = "";
    for key in KEYS {
        let top = key.path.split(['.', '[']).next().unwrap_or_default();
        let alone = !KEYS.iter().any(|other| other.path.strip_prefix(top).is_some_and(|rest| rest.starts_with('.')));
        let here = if alone { "app" } else { top };
        if here != section {
            section = here;
            let title = if alone { "The app".to_owned() } else { format!("`{top}`") };
            page.push_str(&format!("\n## {title}\n\n| key | value | left out | meaning |\n|---|---|---|---|\n"));
        }
        let left = match key.default {
            Left::Required => "required".to_owned(),
            Left::As(text) => format!("`{text}`"),
            Left::Words(words) => words.to_owned(),
        };
        page.push_str(&format!("| `{}` | {} | {left} | {} |\n", key.path, key.kind.replace('|', "\\|"), key.meaning.replace('|', "\\|")));
    }
    page.push_str(STOP_INTRODUCTION);
    for (name, ladder, why) in polite_stops() {
        page.push_str(&format!("| `{name}` | `{ladder}` | {why} |\n"));
    }
    page
}

/// Returns what `stop` is for each `queue.kind`, and why.
#[cfg(test)]
pub fn polite_stops() -> impl Iterator<Item = (&'static str, String, &'static str)> {
    super::merged::QUEUE_KINDS.iter().map(|(name, kind)| {
        let (ladder, why) = super::merged::polite_stop(*kind);
        (*name, super::explain::ladder(&ladder), why)
    })
}

/// What holds for all keys: a title, where the page comes from, then paragraphs and a list.
#[cfg(test)]
pub const INTRODUCTION: &str = "\
# Configuration

Made from `src/config/schema.rs`; `UPDATE=1 cargo test --bin selfstart config::` writes it anew.

The file is `/etc/selfstart/config.yaml`, or `--config PATH`, or `$SELFSTART_CONFIG`; `config.yaml` at the top of the project is an example
that says everything. It is YAML, UTF-8, at most 1 MiB, one document. `selfstart check` tells all problems at once; `selfstart check --explain`
shows each value and where it comes from.

- **Unknown keys are refused**, and so are wrong types and impossible values. At the top, keys that begin with `x-` are ignored: a place for anchors.
- **Texts are taken as written**: `3.10` is not `3.1`, `branch: 1e3` is a text. Numbers, `true` and `false` are not quoted.
- **Durations** have a unit: `500ms`, `10s`, `1h30m`, `7d`; at most 366 days. **Sizes** too: `350MB` (10^6), `350MiB` (2^20).
- **Secrets**: `${file:/abs/path}` is the content of a file, line ends at its end dropped. Where a value *may hold secrets*, and nowhere else. It is never
  in logs, status, events, arguments or state; what is shown is where it comes from.
  `${env:NAME}` is the agent's environment, and not a secret. `$${` is a literal `${`.
- **Placeholders** in `command`, `shell`, `env`, `ready`: `{app} {pool} {slot} {port} {generation} {root} {revision} {release} {release_path} {current} {start}`; in `run` and
  `build.env` those that have a value without a pool: `{app} {root} {revision} {release} {release_path} {current}`. `{port}` needs `port`. Other braces are left alone, `${name}` belongs
  to the shell, and `{{` is a literal brace.
";

#[cfg(test)]
const STOP_INTRODUCTION: &str = "
## The polite stop of each queue

What `stop` is when it is left out. The same signal means opposite things to different libraries.

| `queue.kind` | `stop` | why |
|---|---|---|
";
