//! Reads what stands between the node and others: what triggers a deploy, `http`, `notify`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use selfstart_core::trigger::{Debounce, Leading};

use super::raw::Value;
use super::reader::{At, Map, Reader};
use super::secret::{Plain, Text};
use super::settings::{HttpSettings, HttpTls, NotifySettings, NotifyTo, TriggerSettings};
use crate::telling::Kind;

/// A server that is asked more often than this is attacked.
const POLL_LEAST: Duration = Duration::from_secs(1);

/// What `on:` takes beside the kinds of events: a worker slot or a revision is quarantined.
pub(crate) const QUARANTINED: &str = "quarantined";

const A_DEBOUNCE: &str = "a duration such as `2s`, or a map of `wait`, `cap`, `leading`";

impl Reader<'_> {
    pub(super) fn triggers(&mut self, top: &Map<'_>) -> TriggerSettings {
        let map = self.section(top, "source");
        let hook = self.section(&map, "webhook");
        if map.get("webhook").is_some() && hook.get("secret").is_none() {
            self.missing(&hook, "secret", "`secret: \"${file:/etc/selfstart/webhook}\"`: without it anybody could send one");
        }
        TriggerSettings {
            poll: self.opt(&map, "poll", |reader, at| reader.duration(at, POLL_LEAST)),
            webhook: self.opt(&hook, "secret", Self::secret_of_others),
            debounce: self.or(&map, "debounce", Debounce::default(), Self::debounce),
        }
    }

    /// What only makes sense together.
    pub(super) fn check_triggers(&mut self, top: &Map<'_>, triggers: &TriggerSettings, http: Option<&HttpSettings>) {
        let source = self.section(top, "source");
        if let (Some(at), true, None) = (source.get("webhook"), triggers.webhook.is_some(), http)
            && top.get("http").is_none()
        {
            let hint = "`http: {listen: \"0.0.0.0:7077\"}` is where webhooks come in, as `/webhook`";
            self.tell(&at, "nothing listens for it", |problem| problem.hint(hint));
        }
        if let (Some(at), true) = (source.get("poll"), source.get("revision").is_some()) {
            self.tell(&at, "a pinned revision never changes", |problem| problem.hint("leave it out, or follow a `branch` or `tag`"));
        }
    }

    /// A secret that somebody else is to know too: never empty, and better not written here.
    fn secret_of_others(&mut self, at: &At<'_>) -> Option<Text> {
        let text = self.secret_text(at, Plain::Masked)?;
        if text.as_plain().is_some_and(|text| text.trim().is_empty()) {
            self.tell(at, "is empty", |problem| problem);
            return None;
        }
        if text.as_plain().is_some() {
            let hint = "`${file:/path}` keeps it out of the configuration";
            self.warnings.push(self.problem(at.node.at, &at.key, "a secret is written in plain").hint(hint));
        }
        Some(text)
    }

    fn debounce(&mut self, at: &At<'_>) -> Option<Debounce> {
        match &at.node.value {
            Value::Scalar { .. } => Some(Debounce::of(self.duration(at, Duration::ZERO)?)),
            Value::List(_) => {
                self.tell(at, "not a debounce", |problem| problem.allowed(A_DEBOUNCE));
                None
            }
            Value::Map(_) => {
                let map = self.map(at, "source.debounce");
                let wait = self.or(&map, "wait", Debounce::default().wait, |reader, at| reader.duration(at, Duration::ZERO));
                let cap = self.or(&map, "cap", Debounce::CAP.max(wait), |reader, at| reader.duration(at, Duration::ZERO));
                let leading = self.or(&map, "leading", false, Self::boolean);
                if let (Some(at), true) = (map.get("cap"), cap < wait) {
                    self.tell(&at, "shorter than `wait`", |problem| problem.hint("it bounds the whole delay of a burst"));
                }
                Some(Debounce { wait, cap, leading: if leading { Leading::Yes } else { Leading::No } })
            }
        }
    }

    pub(super) fn http(&mut self, top: &Map<'_>) -> Option<HttpSettings> {
        let at = top.get("http")?;
        let map = self.map(&at, "http");
        if map.get("listen").is_none() && !map.refused {
            self.missing(&map, "listen", "such as `127.0.0.1:7077`");
        }
        let token = self.opt(&map, "token", Self::secret_of_others);
        let tls = self.opt(&map, "tls", |reader, at| {
            let map = reader.map(at, "http.tls");
            for name in ["cert", "key"] {
                if map.get(name).is_none() && !map.refused {
                    reader.missing(&map, name, "a PEM file");
                }
            }
            let cert = reader.opt(&map, "cert", Self::absolute_path);
            let key = reader.opt(&map, "key", Self::absolute_path);
            Some(HttpTls { cert: cert?, key: key? })
        });
        let listen = self.opt(&map, "listen", Self::socket_address)?;
        if token.is_none() && !listen.ip().is_loopback() {
            let what = "whoever reaches this address may read status and metrics";
            self.warnings
                .push(self.problem(map.at, &map.key, what).hint("`token: \"${file:/etc/selfstart/token}\"` lets in only who knows it"));
        }
        Some(HttpSettings { listen, token, tls })
    }

    fn socket_address(&mut self, at: &At<'_>) -> Option<SocketAddr> {
        let text = self.text(at)?;
        let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        if address.is_none() {
            self.tell(at, "not an address", |problem| problem.found(text).allowed("`IP:PORT`, such as `127.0.0.1:7077` or `[::]:7077`"));
        }
        address
    }

    pub(super) fn notify(&mut self, top: &Map<'_>) -> Vec<NotifySettings> {
        self.or(top, "notify", Vec::new(), |reader, at| reader.each(at, "maps of `webhook` or `command`, and `on`", Self::notify_entry))
    }

    fn notify_entry(&mut self, at: &At<'_>) -> Option<NotifySettings> {
        let map = self.map(at, "notify[]");
        let webhook = self.opt(&map, "webhook", Self::notify_url);
        let command = self.opt(&map, "command", |reader, at| reader.command(at, &[]));
        let on = self.or(&map, "on", worth_a_word(), Self::kinds);
        match (map.get("webhook").is_some(), map.get("command").is_some()) {
            (true, false) | (false, true) => {}
            _ if map.refused => {}
            _ => self.tell(at, "does not say how", |problem| problem.allowed("one of webhook, command")),
        }
        Some(NotifySettings { to: webhook.map(NotifyTo::Webhook).or(command.map(NotifyTo::Command))?, on })
    }

    fn notify_url(&mut self, at: &At<'_>) -> Option<Text> {
        let text = self.secret_text(at, Plain::Shown)?;
        let start = text.plain_start();
        if !text.holds_secrets() && !start.starts_with("https://") && !start.starts_with("http://") {
            self.tell(at, "not a URL", |problem| problem.allowed("https:// or http://"));
            return None;
        }
        Some(text)
    }

    fn kinds(&mut self, at: &At<'_>) -> Option<BTreeSet<String>> {
        let names = self.each(at, "kinds of events", |reader, at| {
            let text = reader.text(at)?;
            if text != QUARANTINED && !Kind::ALL.iter().any(|kind| kind.as_str() == text) {
                let nearest = super::problem::nearest(text, Kind::ALL.iter().map(|kind| kind.as_str()).chain([QUARANTINED]));
                let hint =
                    nearest.map_or_else(|| "`selfstart events --json` shows kinds".to_owned(), |near| format!("did you mean `{near}`?"));
                reader.tell(at, "no such kind of event", |problem| problem.found(text).hint(hint));
                return None;
            }
            Some(text.to_owned())
        })?;
        if matches!(&at.node.value, Value::List(list) if list.is_empty()) {
            self.tell(at, "names nothing", |problem| problem.hint("leave it out for all that a person must act upon"));
        }
        Some(names.into_iter().collect())
    }
}

/// What is told when `on` is left out: what a person must act upon.
fn worth_a_word() -> BTreeSet<String> {
    let loud = Kind::ALL.iter().filter(|kind| kind.level() == crate::telling::Level::Error);
    loud.map(|kind| kind.as_str().to_owned()).collect()
}
