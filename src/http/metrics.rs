//! /metrics: what the status says, in OpenMetrics or in Prometheus's older text format, whichever is asked for.
//!
//! Every metric stands once in [`METRICS`], from which docs/reference/metrics.md is made. Labels come from fixed sets (pool, state, reason,
//! kind, phase, endpoint, code): never a pid, a job or a revision.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use selfstart_core::status::{AgentState, DeployPhase, PoolStatus, SlotState, Status};

use super::Snapshot;

/// What a scraper that knows OpenMetrics asks for.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What all others are given.
pub(super) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// What is now.
    Gauge,
    /// What has happened since the agent began.
    Counter,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
struct Metric {
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

/// All metrics, in the order in which they are shown.
const METRICS: &[Metric] = &[
    gauge("selfstart_agent_info", &["app", "version"], "Always 1; names the app and the version of selfstart"),
    gauge("selfstart_agent_start_timestamp_seconds", &[], "When this agent began, in seconds since 1970"),
    gauge("selfstart_agent_state", &["state"], "1 for the state that the agent is in: running, draining, drained"),
    gauge("selfstart_node_notes", &[], "How many things an operator should know, as `selfstart status` shows them"),
    gauge("selfstart_deploy_phase", &["phase"], "1 for the phase that the deploy is in"),
    gauge("selfstart_deploy_held", &[], "1 while updates are held"),
    gauge("selfstart_deploy_pending", &[], "1 while a trigger waits for its deploy"),
    gauge("selfstart_deploy_failing", &[], "1 while the last error of a deploy is not made good"),
    gauge("selfstart_deploy_live_timestamp_seconds", &[], "Since when the live release is live, in seconds since 1970; absent without one"),
    gauge("selfstart_deploy_quarantined_revisions", &[], "Revisions that failed here and are not tried again"),
    gauge("selfstart_pool_wanted_workers", &["pool"], "How many workers the pool should have"),
    gauge("selfstart_pool_ready_workers", &["pool"], "How many are ready"),
    gauge("selfstart_pool_workers", &["pool", "state"], "Slots by the state they are in"),
    gauge("selfstart_pool_memory_bytes", &["pool"], "Memory of the pool's workers with their trees, where it was measured"),
    gauge("selfstart_pool_jobs", &["pool"], "Jobs in flight that are known"),
    gauge("selfstart_pool_oldest_job_seconds", &["pool"], "Age of the oldest job in flight that is known; 0 without one"),
    counter("selfstart_worker_ends_total", &["pool", "reason"], "Ends of workers, by the kind of their verdict"),
    counter("selfstart_events_total", &["kind"], "Events, as `selfstart events` shows them"),
    counter("selfstart_http_requests_total", &["endpoint", "code"], "Answers given here"),
];

const PHASES: &[DeployPhase] = &[
    DeployPhase::Idle,
    DeployPhase::Fetching,
    DeployPhase::Staging,
    DeployPhase::Building,
    DeployPhase::Switching,
    DeployPhase::RollingOut,
    DeployPhase::Confirming,
    DeployPhase::RollingBack,
];

const STATES: &[SlotState] = &[
    SlotState::Stopped,
    SlotState::Starting,
    SlotState::Ready,
    SlotState::Quiet,
    SlotState::Stopping,
    SlotState::Backoff,
    SlotState::Quarantined,
    SlotState::Paused,
];

type Labels = Vec<(&'static str, String)>;

/// The values of one scrape, by metric.
#[derive(Default)]
struct Values(BTreeMap<&'static str, Vec<(Labels, f64)>>);

impl Values {
    /// `labels`: the values of the metric's labels, in its order.
    fn set(&mut self, name: &'static str, labels: &[&str], value: f64) {
        let names = METRICS.iter().find(|metric| metric.name == name).map_or(&[][..], |metric| metric.labels);
        let labels = names.iter().copied().zip(labels.iter().map(|label| (*label).to_owned())).collect();
        self.0.entry(name).or_default().push((labels, value));
    }
}

fn number(value: impl TryInto<u32>) -> f64 {
    value.try_into().map_or(f64::from(u32::MAX), f64::from)
}

#[expect(clippy::cast_precision_loss, reason = "above 2^53 bytes or events nobody misses one")]
fn large(value: u64) -> f64 {
    value as f64
}

fn seconds(at: selfstart_core::date::Timestamp) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of this millennium are exact")]
    let millis = at.0.unix_millis() as f64;
    millis / 1000.0
}

fn collect(snapshot: &Snapshot, requests: &BTreeMap<(&'static str, u16), u64>) -> Values {
    let mut values = Values::default();
    let status = &snapshot.status;
    node(&mut values, status);
    for pool in &status.pools {
        of_pool(&mut values, pool);
    }
    for ((pool, reason), count) in &snapshot.counts.ends {
        values.set("selfstart_worker_ends_total", &[pool.as_str(), reason], large(*count));
    }
    for (kind, count) in &snapshot.counts.events {
        values.set("selfstart_events_total", &[kind], large(*count));
    }
    for ((endpoint, code), count) in requests {
        values.set("selfstart_http_requests_total", &[endpoint, &code.to_string()], large(*count));
    }
    values
}

fn node(values: &mut Values, status: &Status) {
    let flag = |on: bool| if on { 1.0 } else { 0.0 };
    values.set("selfstart_agent_info", &[&status.app, &status.agent.version], 1.0);
    values.set("selfstart_agent_start_timestamp_seconds", &[], seconds(status.agent.started_at));
    for (name, state) in [("running", AgentState::Running), ("draining", AgentState::Draining), ("drained", AgentState::Drained)] {
        values.set("selfstart_agent_state", &[name], flag(status.agent.state == state));
    }
    values.set("selfstart_node_notes", &[], number(status.notes.len()));
    let deploy = &status.deploy;
    for phase in PHASES {
        values.set("selfstart_deploy_phase", &[phase.name()], flag(deploy.phase == *phase));
    }
    values.set("selfstart_deploy_held", &[], flag(deploy.held));
    values.set("selfstart_deploy_pending", &[], flag(deploy.pending.is_some()));
    values.set("selfstart_deploy_failing", &[], flag(deploy.last_error.is_some()));
    if let Some(live) = &deploy.live {
        values.set("selfstart_deploy_live_timestamp_seconds", &[], seconds(live.at));
    }
    values.set("selfstart_deploy_quarantined_revisions", &[], number(deploy.quarantined.len()));
}

fn of_pool(values: &mut Values, pool: &PoolStatus) {
    let name = pool.name.as_str();
    values.set("selfstart_pool_wanted_workers", &[name], number(pool.wanted));
    values.set("selfstart_pool_ready_workers", &[name], number(pool.ready));
    for state in STATES {
        let count = pool.slots.iter().filter(|slot| slot.state == *state).count();
        values.set("selfstart_pool_workers", &[name, state.name()], number(count));
    }
    let memory: u64 = pool.slots.iter().filter_map(|slot| slot.memory_bytes).map(|bytes| bytes.0).sum();
    values.set("selfstart_pool_memory_bytes", &[name], large(memory));
    let jobs = || pool.slots.iter().filter_map(|slot| slot.job.as_ref());
    values.set("selfstart_pool_jobs", &[name], number(jobs().count()));
    let oldest = jobs().filter_map(|job| job.age_seconds).fold(0.0, f64::max);
    values.set("selfstart_pool_oldest_job_seconds", &[name], oldest);
}

/// Returns the text of a scrape, in OpenMetrics.
pub(super) fn open_metrics(snapshot: &Snapshot, requests: &BTreeMap<(&'static str, u16), u64>) -> Result<String, std::fmt::Error> {
    let mut values = collect(snapshot, requests);
    let mut registry = Registry::default();
    for metric in METRICS {
        let rows = values.0.remove(metric.name).unwrap_or_default();
        // The crate adds `_total` itself, and a full stop.
        match metric.kind {
            Kind::Gauge => {
                let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
                for (labels, value) in rows {
                    family.get_or_create(&labels).set(value);
                }
                registry.register(metric.name, metric.help, family);
            }
            Kind::Counter => {
                let family = Family::<Labels, Counter<f64, AtomicU64>>::default();
                for (labels, value) in rows {
                    family.get_or_create(&labels).inc_by(value);
                }
                registry.register(metric.name.trim_end_matches("_total"), metric.help, family);
            }
        }
    }
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

/// Returns the same in Prometheus's text format: there a counter's own name ends in `_total`, and there is no last line.
pub(super) fn prometheus(open: &str) -> String {
    let mut page = String::with_capacity(open.len());
    for line in open.lines().filter(|line| *line != "# EOF") {
        let named = ["# HELP ", "# TYPE "].into_iter().find_map(|start| {
            let (name, rest) = line.strip_prefix(start)?.split_once(' ')?;
            let counter = METRICS.iter().any(|metric| metric.kind == Kind::Counter && metric.name.strip_suffix("_total") == Some(name));
            counter.then(|| format!("{start}{name}_total {rest}"))
        });
        page.push_str(named.as_deref().unwrap_or(line));
        page.push('\n');
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> String {
        let mut page = String::from(
            "# Metrics\n\nMade from `src/http/metrics.rs`; `UPDATE=1 cargo test --bin selfstart http::` writes it anew.\n\n\
             `GET /metrics` of `http:` answers in OpenMetrics to who asks for it, else in Prometheus's text format. Counters begin at 0 with each\n\
             agent. Labels come from fixed sets: states and phases as `status --json` has them, kinds and reasons as `events --json` has them.\n\n\
             | metric | kind | labels | meaning |\n|---|---|---|---|\n",
        );
        for metric in METRICS {
            let kind = if metric.kind == Kind::Gauge { "gauge" } else { "counter" };
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            page.push_str(&format!("| `{}` | {kind} | {} | {}. |\n", metric.name, labels.join(", "), metric.help));
        }
        page
    }

    #[test]
    fn the_reference_page_of_metrics_is_made_from_the_code() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/metrics.md");
        if std::env::var_os("UPDATE").is_some() {
            fs_err::write(&path, reference()).expect("written");
        }
        assert_eq!(
            fs_err::read_to_string(&path).unwrap_or_default(),
            reference(),
            "`UPDATE=1 cargo test --bin selfstart http::` writes it anew"
        );
    }

    #[test]
    fn names_have_units_and_counters_a_total() {
        for metric in METRICS {
            assert!(metric.name.starts_with("selfstart_"), "{}", metric.name);
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(!metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
