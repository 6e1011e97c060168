//! What the nodes of a fleet share through Redis: leases, and what came of the steps that one of them did for all.
//!
//! Atomic by Lua scripts; time is the server's alone (PX, TIME). Not for: what to do about an answer (`selfstart_core::lease`). Where Redis
//! may lose what it has acknowledged (a failover to a replica that is behind), two nodes can hold one lease: what must not happen twice
//! then looks at its fencing token.

use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSub;
use selfstart_core::id::Revision;
use selfstart_core::lease::{Event, Known, LeasePolicy, Token, Verdict};
use selfstart_core::time::MonoTime;

use crate::sys::clock;

/// How long an answer is waited for. Far less than a lease lasts.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a result is remembered: a node that was away for longer asks for a newer revision anyway.
const KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

/// The longest text of a result: enough for the last lines of a step.
const TEXT_MAX_BYTES: usize = 16 << 10;

/// Asks for the lease. KEYS: lease, fence, result. ARGV: holder, node, ttl, keep, force, may: who may not do it is told of others only, and
/// asks again after as long as a lease lasts.
///
/// A server that was started less than a lease's time ago may have forgotten who holds it, and grants nothing; it counts whole seconds, so
/// one more. The token is the server's time, or one more than the last: so it grows though everything be forgotten.
const TAKE: &str = "\
if ARGV[5] == '1' and ARGV[6] == '1' and redis.call('HGET', KEYS[3], 'state') == 'failed' then redis.call('DEL', KEYS[3]) end
local known = redis.call('HMGET', KEYS[3], 'state', 'node', 'text')
if known[1] then return {'known', known[1], known[2] or '', known[3] or ''} end
local held = redis.call('HMGET', KEYS[1], 'holder', 'node')
if held[1] and held[1] ~= ARGV[1] then return {'held', held[2] or '', tostring(redis.call('PTTL', KEYS[1]))} end
local ttl = tonumber(ARGV[3])
if ARGV[6] == '0' then return {'held', '', tostring(ttl)} end
local up = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)') or '0') * 1000
if up < ttl + 1000 then return {'young', tostring(ttl + 1000 - up)} end
local time = redis.call('TIME')
local token = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, tonumber(time[1]) * 1000000 + tonumber(time[2]))
local text = string.format('%.0f', token)
redis.call('SET', KEYS[2], text, 'PX', ARGV[4])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'token', text, 'holder', ARGV[1], 'node', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ttl)
return {'taken', text}";

/// Whether nobody else has had it since. KEYS: lease, fence. ARGV: token.
const OURS: &str = "\
local held = redis.call('HGET', KEYS[1], 'token')
local fence = redis.call('GET', KEYS[2])
local ours = held == ARGV[1] or (not held and (not fence or fence == ARGV[1]))
";

/// Holds it for longer, also where it has been forgotten. KEYS: lease, fence, result. ARGV: token, holder, node, ttl, keep.
const RENEW: &str = "\
if not ours or redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[5])
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'holder', ARGV[2], 'node', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1";

/// Writes what came of it, and lets go. KEYS: lease, fence, result, news. ARGV: token, node, state, text, keep.
const FINISH: &str = "\
local by = redis.call('HGET', KEYS[3], 'token')
if by then return by == ARGV[1] and 1 or 0 end
if not ours then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[5])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[3], 'token', ARGV[1], 'node', ARGV[2], 'state', ARGV[3], 'text', ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[5])
redis.call('PUBLISH', KEYS[4], ARGV[3])
return 1";

/// Lets go without a result. KEYS: lease, fence, result, news. ARGV: token.
const RELEASE: &str = "\
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('PUBLISH', KEYS[4], 'free')
end
return 1";

/// Why Redis was not asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FleetError {
    /// It says no, or is not there.
    #[error("`fleet.redis`")]
    Redis(#[from] redis::RedisError),
    /// It does not answer.
    #[error("`fleet.redis` has not answered within {} s", PATIENCE.as_secs())]
    Late,
    /// It answers something else.
    #[error("`fleet.redis` gave an answer that cannot be understood: {0}")]
    Answer(String),
}

/// One thing that one node does for all, in Redis.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    client: redis::Client,
    /// lease, fence, result, news.
    keys: [String; 4],
    asker: Asker,
    ttl: Duration,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    /// This root on this machine since it was booted, whatever agent.
    pub(crate) holder: String,
    /// The same for people.
    pub(crate) node: String,
    /// Whether it may do it; else it only waits for what comes of it.
    pub(crate) may: bool,
}

/// A connection that hears of the news of one thing.
pub(crate) struct Listening(PubSub);

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listening")
    }
}

/// The times of leases. A debug build may be told a shorter one, in milliseconds: tests do not wait for 20 s.
pub(crate) fn policy() -> LeasePolicy {
    #[cfg(debug_assertions)]
    if let Some(ttl) = std::env::var("SELFSTART_LEASE_MILLIS").ok().and_then(|text| text.parse().ok()).map(Duration::from_millis) {
        return LeasePolicy { ttl, margin: ttl / 5, retry: ttl / 20, patience: ttl * 3 / 2 };
    }
    LeasePolicy::default()
}

/// Waits for news, or for the loss of the connection.
pub(crate) async fn listen(news: Option<Listening>) {
    // Without anybody to listen to there is nothing to wait for.
    let Some(Listening(mut news)) = news else { return };
    let _what_is_asked_next = news.on_message().next().await;
}

impl Shared {
    /// A step of one revision, named by what it runs.
    ///
    /// # Errors
    /// If it is no URL of a Redis.
    pub(crate) fn step(url: &str, app: &str, revision: &Revision, run: &str, asker: Asker) -> Result<Self, FleetError> {
        // FNV-1a, 64 bits: nobody gains by a collision in their own configuration.
        let hash = run.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        // In braces: all on one server of a cluster. The lease is for all revisions: an older one's step may still run when a newer one comes.
        let key = |what: &str| format!("selfstart:{{{app}}}:once:{hash:016x}:{what}");
        let keys = [key("lease"), key("fence"), key(revision.as_str()), key("news")];
        Ok(Self { client: redis::Client::open(url)?, keys, asker, ttl: policy().ttl })
    }

    async fn ask<T: redis::FromRedisValue>(&self, script: &str, keys: usize, words: &[&str]) -> Result<T, FleetError> {
        let asked = async {
            let mut connection = self.client.get_multiplexed_async_connection().await?;
            let mut command = redis::cmd("EVAL");
            command.arg(script).arg(keys);
            for word in self.keys.iter().take(keys).map(String::as_str).chain(words.iter().copied()) {
                command.arg(word);
            }
            Ok(command.query_async(&mut connection).await?)
        };
        tokio::time::timeout(PATIENCE, asked).await.map_err(|_late| FleetError::Late)?
    }

    /// Asks for the lease; who does not get it listens from before it was asked.
    pub(crate) async fn take(&self, force: bool) -> (Event, Option<Listening>) {
        match self.try_take(force).await {
            Ok(answer) => answer,
            Err(error) => (Event::Unreached { why: crate::agent::chain(&error) }, None),
        }
    }

    async fn try_take(&self, force: bool) -> Result<(Event, Option<Listening>), FleetError> {
        let listened = async {
            let mut news = self.client.get_async_pubsub().await?;
            news.subscribe(&self.keys[3]).await?;
            Ok::<_, redis::RedisError>(news)
        };
        let news = tokio::time::timeout(PATIENCE, listened).await.map_err(|_late| FleetError::Late)??;
        let asked = clock::now();
        let (ttl, keep) = (millis(self.ttl), millis(KEEP));
        let flag = |it: bool| if it { "1" } else { "0" };
        let words = [self.asker.holder.as_str(), &self.asker.node, &ttl, &keep, flag(force), flag(self.asker.may)];
        let answer: Vec<String> = self.ask(TAKE, 3, &words).await?;
        let event = understood(&answer, asked).ok_or_else(|| FleetError::Answer(answer.join(" ")))?;
        let listens = matches!(event, Event::Held { .. });
        Ok((event, listens.then_some(Listening(news))))
    }

    pub(crate) async fn renew(&self, token: Token) -> Event {
        let asked = clock::now();
        let (token, ttl, keep) = (token.0.to_string(), millis(self.ttl), millis(KEEP));
        match self.ask::<i64>(&format!("{OURS}{RENEW}"), 3, &[&token, &self.asker.holder, &self.asker.node, &ttl, &keep]).await {
            Ok(1) => Event::Renewed { asked },
            Ok(_) => Event::NotOurs,
            Err(_) => Event::RenewFailed,
        }
    }

    pub(crate) async fn finish(&self, token: Token, verdict: &Verdict) -> Event {
        let (state, text) = match verdict {
            Verdict::Done => ("done", ""),
            Verdict::Failed(text) => ("failed", text.as_str()),
        };
        let end = text.floor_char_boundary(TEXT_MAX_BYTES);
        match self
            .ask::<i64>(&format!("{OURS}{FINISH}"), 4, &[&token.0.to_string(), &self.asker.node, state, &text[..end], &millis(KEEP)])
            .await
        {
            Ok(1) => Event::Written,
            Ok(_) => Event::Refused,
            Err(error) => Event::WriteFailed { why: crate::agent::chain(&error) },
        }
    }

    pub(crate) async fn release(&self, token: Token) {
        // It ends by itself, if it cannot be let go.
        let _ends_by_itself = self.ask::<i64>(RELEASE, 4, &[&token.0.to_string()]).await;
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// What the answer of [`TAKE`] means.
fn understood(answer: &[String], asked: MonoTime) -> Option<Event> {
    let number = |text: &String| text.parse::<i64>().ok().map(|it| it.max(1).unsigned_abs());
    Some(match answer {
        [it, token] if it == "taken" => Event::Taken { token: Token(token.parse().ok()?), asked },
        [it, by, lasts] if it == "held" => Event::Held { by: by.clone(), lasts: Duration::from_millis(number(lasts)?) },
        [it, wait] if it == "young" => Event::Young { wait: Duration::from_millis(number(wait)?) },
        [it, state, by, text] if it == "known" => {
            let verdict = if state == "done" { Verdict::Done } else { Verdict::Failed(text.clone()) };
            Event::Known(Known { by: by.clone(), verdict })
        }
        _ => return None,
    })
}

/// Names who asks: this root, on this machine, since its boot. Not the machine-id, which images copy.
pub(crate) fn holder(root: &std::path::Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let boot = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let (device, inode) = fs_err::metadata(root).map(|found| (found.dev(), found.ino())).unwrap_or_default();
    let host = rustix::system::uname();
    format!("{}:{}:{device}:{inode}:{}", boot.trim(), host.nodename().to_string_lossy(), root.display())
}

#[cfg(test)]
mod tests;
