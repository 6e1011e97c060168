//! What happens, told once: a line in the agent's log and an event in the journal.

use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use selfstart_core::date::Timestamp;
use selfstart_core::deploy::News;
use selfstart_core::id::{PoolName, ReleaseId, SlotId};
use selfstart_core::time::Human;
use selfstart_core::worker::Happening;
use serde_json::{Map, Value, json};

use super::output::OutputNews;
use crate::config::settings::Settings;
use crate::keeper::protocol::Welcome;
use crate::release::layout::Layout;
use crate::sys::clock;

/// The two places.
#[derive(Debug)]
pub(crate) struct Telling {
    events: std::fs::File,
}

impl Telling {
    pub(crate) fn open(layout: &Layout, settings: &Settings, welcome: &Welcome) -> Result<Self, io::Error> {
        let events = std::fs::OpenOptions::new().append(true).create(true).mode(0o640).open(layout.events())?;
        let mut telling = Self { events };
        if welcome.agent_starts > 1 {
            let how = welcome.last_agent.map_or_else(String::new, |how| format!(" (the last one ended: {how:?})"));
            telling.tell("agent_restarted", None, format!("the agent is back{how}"));
        } else {
            telling.tell("agent_started", None, format!("minding `{}` in `{}`", settings.app, layout.root().display()));
        }
        Ok(telling)
    }

    fn tell(&mut self, kind: &'static str, slot: Option<&SlotId>, text: String) {
        self.tell_more(kind, slot, text, Map::new());
    }

    fn tell_more(&mut self, kind: &'static str, slot: Option<&SlotId>, text: String, mut more: Map<String, Value>) {
        match slot {
            Some(slot) => tracing::info!("{slot}: {text}"),
            None => tracing::info!("{text}"),
        }
        let mut event = Map::new();
        event.insert("schema".into(), json!(1));
        event.insert("at".into(), json!(Timestamp(clock::wall())));
        event.insert("kind".into(), json!(kind));
        if let Some(slot) = slot {
            event.insert("pool".into(), json!(slot.pool.as_str()));
            event.insert("slot".into(), json!(slot.slot));
        }
        event.append(&mut more);
        event.insert("text".into(), json!(text));
        let mut line = Value::Object(event).to_string();
        line.push('\n');
        if let Err(error) = self.events.write_all(line.as_bytes()) {
            tracing::warn!("an event could not be written: {error}");
        }
    }

    pub(crate) fn warn(&mut self, text: &str) {
        self.tell("warning", None, text.to_owned());
    }

    pub(crate) fn deploy(&mut self, news: &News) {
        self.tell(news.kind(), None, news.to_string());
    }

    pub(crate) fn worker(&mut self, slot: &SlotId, happening: &Happening) {
        let mut more = Map::new();
        let kind = match happening {
            Happening::Started { .. } => "worker_started",
            Happening::Adopted { .. } => "worker_adopted",
            Happening::Ready { .. } => "worker_ready",
            Happening::Exited { .. } => "worker_exited",
            Happening::Judged(verdict) => {
                more.insert("verdict".into(), json!(verdict.kind().name()));
                "worker_ended"
            }
            Happening::StopBegun { .. } => "worker_stopping",
            Happening::RungSent { .. } => "worker_signalled",
            Happening::MemorySignal { .. } => "memory_limit",
            Happening::BackedOff { .. } => "worker_backoff",
            Happening::Quarantined { .. } => "worker_quarantined",
            Happening::StaleJobFound { .. } => {
                more.insert("verdict".into(), json!("stale"));
                "stale_job"
            }
            Happening::Paused => "paused",
            Happening::Resumed => "resumed",
        };
        self.tell_more(kind, Some(slot), happening.to_string(), more);
    }

    pub(crate) fn adopted(&mut self, slot: &SlotId, pid: i32) {
        self.tell("worker_adopted", Some(slot), format!("process {pid} of an earlier keeper is minded again"));
    }

    pub(crate) fn rollout(&mut self, pool: &PoolName, text: &str) {
        self.tell("rollout", None, format!("{pool}: {text}"));
    }

    pub(crate) fn build_step(&mut self, release: &ReleaseId, step: u32, of: u32, run: &str) {
        self.tell("build_step", None, format!("building {release}, step {step} of {of}: {run}"));
    }

    pub(crate) fn build_line(&mut self, line: &str) {
        tracing::debug!("build: {line}");
    }

    pub(crate) fn staged(&mut self, release: &ReleaseId, log: &[String]) {
        for line in log {
            tracing::info!("{release}: {line}");
        }
    }

    pub(crate) fn mirror_healed(&mut self, text: &str) {
        self.tell("mirror_healed", None, text.to_owned());
    }

    pub(crate) fn output(&mut self, news: &OutputNews) {
        let text = match news {
            OutputNews::Waits { error } => format!("output waits, and nothing of it is lost: {}", super::deploying::chain(error)),
            OutputNews::GoesOn { file, after } => format!("`{}` is written again after {}", file.display(), Human(*after)),
            OutputNews::Recreated { file } => format!("`{}` had been removed, and was made anew", file.display()),
            // Told nobody: it is what was asked for.
            OutputNews::Rotated { .. } => return,
            OutputNews::NotRotated { error } => format!("a log file cannot be rotated and grows on: {}", super::deploying::chain(error)),
            OutputNews::Unreadable { key, stream, error } => format!("stream {stream:?} of {key} cannot be read: {error}"),
        };
        self.tell("output", None, text);
    }

    pub(crate) fn scaled(&mut self, pool: &PoolName, count: u32) {
        self.tell("scaled", None, format!("{pool} is to have {count} workers"));
    }

    pub(crate) fn config_reloaded(&mut self, text: &str) {
        self.tell("config_reloaded", None, text.to_owned());
    }

    pub(crate) fn config_refused(&mut self, text: &str) {
        self.tell("config_refused", None, text.to_owned());
    }

    pub(crate) fn reopened(&mut self) {
        tracing::info!("logs are opened anew");
    }

    pub(crate) fn leaving(&mut self) {
        self.tell("agent_stopping", None, "a signal: draining, then ending".to_owned());
    }

    pub(crate) fn drained(&mut self) {
        self.tell("drained", None, "everything is stopped; the agent stays".to_owned());
    }

    pub(crate) fn left(&mut self) {
        self.tell("agent_stopped", None, "everything is stopped; selfstart ends".to_owned());
    }
}
