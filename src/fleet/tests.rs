//! The scripts, in a real Redis.

use std::process::{Child, Command, Stdio};

use super::*;

#[test]
fn answers_are_understood_and_nonsense_is_none() {
    let asked = MonoTime::ZERO;
    let answer = |words: &[&str]| understood(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>(), asked);
    assert_eq!(answer(&["taken", "1790000000123456"]), Some(Event::Taken { token: Token(1_790_000_000_123_456), asked }));
    assert_eq!(answer(&["held", "i-1", "250"]), Some(Event::Held { by: "i-1".into(), lasts: Duration::from_millis(250) }));
    // It ended while it was asked: PTTL of what is not there.
    assert_eq!(answer(&["held", "i-1", "-2"]), Some(Event::Held { by: "i-1".into(), lasts: Duration::from_millis(1) }));
    assert_eq!(answer(&["known", "done", "i-1", ""]), Some(Event::Known(Known { by: "i-1".into(), verdict: Verdict::Done })));
    for words in [&["taken"][..], &["taken", "x"], &["held", "i-1", "soon"], &[], &["known", "done"]] {
        assert_eq!(answer(words), None, "{words:?}");
    }
}

/// As short as a busy machine allows: nothing here waits for its end, but for a server to be older.
const TTL: Duration = Duration::from_secs(3);

/// At a socket of its own.
struct Redis {
    child: Child,
    dir: tempfile::TempDir,
}

impl Redis {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("fleet-").tempdir_in("/tmp").expect("a folder");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"]);
        let child = command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("redis-server is installed");
        Self { child, dir }
    }

    fn node(&self, name: &str, may: bool) -> Shared {
        self.node_at(name, may, "1")
    }

    /// `revision`: the digit that it has forty times.
    fn node_at(&self, name: &str, may: bool, revision: &str) -> Shared {
        let url = format!("unix://{}/redis.sock", self.dir.path().display());
        let asker = Asker { holder: format!("{name}:boot"), node: name.to_owned(), may };
        let revision = revision.repeat(40).parse().expect("a revision");
        Shared { ttl: TTL, ..Shared::step(&url, "app", &revision, "migrate", asker).expect("a URL") }
    }

    async fn command(&self, words: &[&str]) -> redis::Value {
        let client = self.node("test", true).client;
        let mut connection = client.get_multiplexed_async_connection().await.expect("connected");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut connection).await.expect("an answer")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Asks until the server is old enough.
async fn take(node: &Shared) -> Event {
    for _ in 0..500 {
        match node.take(false).await.0 {
            Event::Young { wait } => tokio::time::sleep(wait).await,
            Event::Unreached { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
            event => return event,
        }
    }
    panic!("redis does not come up");
}

async fn taken(node: &Shared) -> Token {
    match take(node).await {
        Event::Taken { token, .. } => token,
        event => panic!("{event:?}"),
    }
}

fn held_by(event: &Event) -> &str {
    if let Event::Held { by, lasts } = event {
        assert!(*lasts <= TTL, "{event:?}");
        return by;
    }
    panic!("{event:?}");
}

fn known(event: &Event) -> (&str, Verdict) {
    if let Event::Known(known) = event { (&known.by, known.verdict.clone()) } else { panic!("{event:?}") }
}

fn run(life: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(life);
}

#[test]
fn a_server_that_was_just_started_grants_nothing_and_holds_what_is_said_to_it() {
    let redis = Redis::start();
    run(async {
        let (a, b) = (redis.node("a", true), redis.node("b", true));
        let first = loop {
            match a.take(false).await.0 {
                Event::Unreached { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
                event => break event,
            }
        };
        assert!(matches!(first, Event::Young { wait } if wait <= TTL + Duration::from_secs(1)), "{first:?}");
        // Who held it before it was started says so, and has it.
        assert!(matches!(a.renew(Token(7)).await, Event::Renewed { .. }));
        assert_eq!(held_by(&b.take(false).await.0), "a");
    });
}

#[test]
fn one_has_it_at_a_time_and_who_had_it_before_is_refused() {
    let redis = Redis::start();
    run(async {
        let (a, b) = (redis.node("a", true), redis.node("b", true));
        let first = taken(&a).await;
        assert_eq!(held_by(&take(&b).await), "a");
        assert!(matches!(a.renew(first).await, Event::Renewed { .. }));
        // The same node again, as a new agent of it asks: with another token, and the former one is worth nothing.
        let again = taken(&a).await;
        assert!(again > first);
        assert_eq!(a.renew(first).await, Event::NotOurs);
        // It ends, as its time does.
        redis.command(&["DEL", &a.keys[0]]).await;
        let second = taken(&b).await;
        assert!(second > again);
        assert_eq!(a.renew(again).await, Event::NotOurs);
        assert_eq!(a.finish(again, &Verdict::Done).await, Event::Refused);
        a.release(again).await;
        assert_eq!(held_by(&take(&a).await), "b");
        // It ended, and nobody has taken it: the last holder may have it again, and write.
        redis.command(&["DEL", &a.keys[0]]).await;
        assert_eq!(a.renew(again).await, Event::NotOurs);
        assert!(matches!(b.renew(second).await, Event::Renewed { .. }));
        assert_eq!(b.finish(second, &Verdict::Done).await, Event::Written);
        assert_eq!(b.finish(second, &Verdict::Done).await, Event::Written, "said twice");
        assert_eq!(known(&take(&a).await), ("b", Verdict::Done));
        assert_eq!(b.renew(second).await, Event::NotOurs, "it is over");
        // All is forgotten; tokens grow.
        redis.command(&["FLUSHALL"]).await;
        assert!(taken(&a).await > second);
    });
}

#[test]
fn a_failure_is_known_to_all_until_somebody_who_may_do_it_forces_it() {
    let redis = Redis::start();
    run(async {
        let (a, other) = (redis.node("a", true), redis.node("other", false));
        assert_eq!(held_by(&take(&other).await), "", "who may not do it has not taken it");
        let token = taken(&a).await;
        assert_eq!(held_by(&take(&other).await), "a");
        let failed = Verdict::Failed("é".repeat(TEXT_MAX_BYTES));
        assert_eq!(a.finish(token, &failed).await, Event::Written);
        let Event::Known(Known { verdict: Verdict::Failed(text), .. }) = take(&other).await else { panic!("it is known") };
        assert_eq!(text.len(), TEXT_MAX_BYTES, "cut where a letter ends");
        assert!(matches!(other.take(true).await.0, Event::Known(_)), "not forgotten for who may not do it");
        let Event::Taken { token: second, .. } = a.take(true).await.0 else { panic!("forced") };
        assert!(second > token);
        assert_eq!(a.finish(second, &Verdict::Done).await, Event::Written);
        assert_eq!(known(&a.take(true).await.0), ("a", Verdict::Done), "what is done stays done");
    });
}

#[test]
fn who_waits_hears_of_a_result_and_of_a_lease_that_was_let_go() {
    let redis = Redis::start();
    run(async {
        let (a, b) = (redis.node("a", true), redis.node("b", true));
        let token = taken(&a).await;
        let hears = |news: Option<Listening>| async {
            assert!(news.is_some());
            tokio::time::timeout(Duration::from_secs(20), listen(news)).await.expect("it is heard");
        };
        let (event, news) = b.take(false).await;
        assert_eq!(held_by(&event), "a");
        // Renewed, so that it does not end meanwhile; nobody hears of that.
        assert!(matches!(a.renew(token).await, Event::Renewed { .. }));
        a.release(token).await;
        hears(news).await;
        let token = taken(&a).await;
        let (_, news) = b.take(false).await;
        assert_eq!(a.finish(token, &Verdict::Done).await, Event::Written);
        hears(news).await;
        // A lost connection is heard of, too.
        let _held = taken(&redis.node_at("b", true, "2")).await;
        let (event, news) = redis.node_at("a", true, "2").take(false).await;
        assert_eq!(held_by(&event), "b");
        redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        hears(news).await;
    });
}

#[test]
fn another_revisions_step_waits_for_the_one_that_runs_and_has_a_result_of_its_own() {
    let redis = Redis::start();
    run(async {
        let (older, newer) = (redis.node_at("a", true, "1"), redis.node_at("b", true, "2"));
        let token = taken(&older).await;
        let (event, news) = newer.take(false).await;
        assert_eq!(held_by(&event), "a");
        assert_eq!(older.finish(token, &Verdict::Done).await, Event::Written);
        tokio::time::timeout(Duration::from_secs(20), listen(news)).await.expect("it is heard");
        assert!(taken(&newer).await > token);
        assert_eq!(known(&take(&redis.node_at("c", true, "1")).await), ("a", Verdict::Done));
    });
}
