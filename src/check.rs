//! What `selfstart check` looks at: the configuration, and whether this machine has what it names.

use std::path::Path;
use std::time::Duration;

use crate::agent;
use crate::cli::check::{Checkup, Finding, Weight};
use crate::config::settings::{QueueKind, Settings};
use crate::config::{ConfigErrors, process_env};
use crate::sys::users;

/// The longest that a queue may take to answer.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(3);

fn finding(weight: Weight, text: impl Into<String>, hint: Option<&str>) -> Finding {
    Finding { weight, text: text.into(), hint: hint.map(str::to_owned) }
}

/// Returns everything that was looked at.
pub(crate) fn checkup(path: &Path) -> Checkup {
    let refused = |findings| Checkup { findings, explained: None };
    let loaded = match agent::load(path) {
        Ok(loaded) => loaded,
        Err(ConfigErrors::Unreadable { path, source }) => {
            let text = format!("{}: cannot be read: {source}", path.display());
            return refused(vec![finding(Weight::Problem, text, Some("name another file with --config"))]);
        }
        Err(error) => return refused(error.problems().iter().map(|problem| problem_finding(Weight::Problem, problem)).collect()),
    };
    let mut found: Vec<Finding> = loaded.warnings.iter().map(|problem| problem_finding(Weight::Warning, problem)).collect();
    found.extend(of_machine(&loaded.settings));
    Checkup { findings: found, explained: Some(loaded.explained) }
}

/// A problem prints its own hint on a line of its own.
fn problem_finding(weight: Weight, problem: &crate::config::problem::Problem) -> Finding {
    Finding { weight, text: problem.to_string(), hint: None }
}

fn of_machine(settings: &Settings) -> Vec<Finding> {
    let mut found = Vec::new();
    let root = rustix::process::geteuid().is_root();
    if root && settings.user.is_none() {
        let hint = "name an unprivileged user with `user:`; what the repository holds is executed";
        found.push(finding(Weight::Warning, "user: not set, so builds and workers run as root", Some(hint)));
    }
    let named = settings.user.iter().chain(settings.pools.iter().filter_map(|pool| pool.user.as_ref()));
    for spec in named {
        match users::user(&spec.user, spec.group.as_deref()) {
            Ok(user) if !root && user.credentials.uid != rustix::process::geteuid().as_raw() => {
                let text = format!("user: `{}` is another user, and only root can start what another user runs", spec.user);
                found.push(finding(Weight::Problem, text, Some("start selfstart as root, or leave `user:` out")));
            }
            Ok(_) => found.push(finding(Weight::Good, format!("user `{}` is there", spec.user), None)),
            Err(error) => found.push(finding(Weight::Problem, format!("user: {error}"), Some("`useradd --system NAME` makes one"))),
        }
    }
    if let Some(group) = &settings.control.group {
        if let Err(error) = users::group_number(group) {
            found.push(finding(Weight::Problem, format!("control.group: {error}"), Some("`groupadd --system NAME` makes one")));
        }
    }
    found.extend(of_secrets(settings));
    found.extend(of_memory(settings));
    found.extend(of_queues(settings));
    found
}

/// Secrets are read now, so that a missing file is not found out at three in the morning.
fn of_secrets(settings: &Settings) -> Vec<Finding> {
    let build = settings.build.env.iter().map(|(name, text)| (format!("build.env.{name}"), text));
    let pools = settings
        .pools
        .iter()
        .flat_map(|pool| pool.env.iter().map(move |(name, text)| (format!("pools.{}.env.{name}", pool.policy.name), text)));
    let source = [("source.repository".to_owned(), &settings.source.repository)];
    build
        .chain(pools)
        .chain(source)
        .filter_map(|(key, text)| text.resolve(&key, &process_env).err())
        .map(|error| finding(Weight::Problem, agent::chain(&error), None))
        .collect()
}

/// More than the machine has, if every worker came to its limit.
fn of_memory(settings: &Settings) -> Option<Finding> {
    let limit = |pool: &crate::config::settings::PoolSettings| {
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
    let mut found = Vec::new();
    for (key, queue) in urls.into_iter().filter(|(_, queue)| queue.kind != QueueKind::None) {
        let Some(url) = &queue.url else { continue };
        let shown = url.to_string();
        let answer = url
            .resolve(&format!("{key}.url"), &process_env)
            .map_err(|error| agent::chain(&error))
            .and_then(|url| ping(url.expose()).map_err(|error| error.to_string()));
        found.push(match answer {
            Ok(()) => finding(Weight::Good, format!("{key}: `{shown}` answers"), None),
            Err(error) => {
                finding(Weight::Warning, format!("{key}.url: `{shown}` does not answer: {error}"), Some("workers start all the same"))
            }
        });
    }
    found
}

fn ping(url: &str) -> redis::RedisResult<()> {
    let client = redis::Client::open(url)?;
    let mut connection = client.get_connection_with_timeout(QUEUE_TIMEOUT)?;
    connection.set_read_timeout(Some(QUEUE_TIMEOUT))?;
    redis::cmd("PING").query(&mut connection)
}
