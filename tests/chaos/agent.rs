//! KILL for the agent, again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{Node, PATIENCE, figures, kill, lives, scan, until};
use crate::output::written;
use crate::waiting::{self, Changes, ended, pause};

/// The keeper waits longer for an agent that did not live this long, as it must.
const STEADY: Duration = Duration::from_millis(2050);

/// `steady` writes for ever; `brief` writes as many lines as its number says, and fails; `demon` does so too and leaves a child in a
/// session of its own; `random` ends in the middle of whatever it does.
const POOLS: &str = r#"
build: {steps: ["sleep 0.3; echo built; cp what product"]}
pools:
  steady: {command: "{fixture} --flood 0 200", count: 3, stop: [TERM 5s, KILL], ready: {after: 200ms}, log: {max_size: 200kB, keep: 1000}}
  brief: {shell: "exec {fixture} --flood $((10 + $$ % 50)) 200 --then-exit 3", count: 2, stop: [TERM 5s, KILL], restart: {backoff: [100ms, 100ms], flapping: {crashes: 1000, within: 1m, retry_after: 1s}}, log: {max_size: 100kB, keep: 1000}, update: all_at_once}
  random: {shell: "exec {fixture} --flood 0 300 --exit 3 after $(($$ % 700))", count: 2, stop: [TERM 5s, KILL], restart: {backoff: [100ms, 100ms], flapping: {crashes: 1000, within: 1m, retry_after: 1s}}, log: {max_size: 100kB, keep: 1000}, update: all_at_once}
  demon: {shell: "exec {fixture} --daemonise {dir}/demon.{slot} --flood $((20 + $$ % 50)) 100 --then-exit 3", count: 2, stop: [TERM 5s, KILL], restart: {backoff: [100ms, 100ms], flapping: {crashes: 1000, within: 1m, retry_after: 1s}}, log: {max_size: 100kB, keep: 1000}, update: all_at_once}
"#;

/// Looks all the time at something that must never be so; counts its looks.
struct Watch {
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<String>>>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

/// Slots with two live main processes.
fn doubled(root: &Path) -> Option<String> {
    let doubled = scan(root).doubled();
    (!doubled.is_empty()).then(|| format!("slots with two workers: {doubled:?}"))
}

/// A `current` that is not a whole, built release: its last build step copies `what` to `product`.
fn unfinished(root: &Path) -> Option<String> {
    let current = fs_err::read_link(root.join("current"));
    // One name for the whole look: meanwhile it may be switched.
    let release = match &current {
        Ok(to) => root.join(to),
        Err(error) => return Some(format!("no current: {error}")),
    };
    let read = |name: &str| fs_err::read_to_string(release.join(name)).map_err(|error| error.to_string());
    let (what, product, revision) = (read("what"), read("product"), read("REVISION"));
    let whole = what.is_ok() && what == product && revision.as_ref().is_ok_and(|revision| revision.trim().len() == 40);
    (!whole).then(|| format!("current is {}: {what:?}, {product:?}, {revision:?}", release.display()))
}

impl Watch {
    fn begin(root: &Path, every: Duration, look: fn(&Path) -> Option<String>) -> Self {
        let root = root.to_owned();
        let (over, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (ends, sees) = (Arc::clone(&over), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let mut looks = 0;
            while !ends.load(Ordering::Relaxed) {
                if let Some(wrong) = look(&root) {
                    sees.lock().expect("nobody panics with it").push(wrong);
                }
                looks += 1;
                pause(every);
            }
            looks
        });
        Self { over, seen, thread: Some(thread) }
    }

    fn end(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        let looks = self.thread.take().and_then(|thread| thread.join().ok()).expect("the watch");
        let seen = self.seen.lock().expect("nobody panics with it");
        assert!(seen.is_empty(), "{seen:?}");
        looks
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn killed(kills: u64) {
    let mut random = crate::random("agent");
    let mut node = Node::new(POOLS);
    let begun = Instant::now();
    node.run();
    let mut newest = node.push("0");
    let first = until("the first agent", PATIENCE, || node.status());
    assert!(first["agent"]["pid"].is_number());
    node.selfstart(&["deploy", "--no-wait"]);
    node.settled_on(&newest);
    let watch = Watch::begin(&node.root, Duration::from_millis(20), doubled);
    let current = Watch::begin(&node.root, Duration::from_millis(1), unfinished);
    let (mut back, mut deploys, mut bursts) = (Vec::new(), 0, 0);
    let mut born = Instant::now();
    for round in 0..kills {
        // In every other round a deploy is going on; in the others nothing but crashes may change a process.
        let deploying = round % 2 == 1;
        let busy = node.status().map_or(true, |status| status["deploy"]["phase"] != "idle");
        let before = scan(&node.root);
        let rest = STEADY.saturating_sub(born.elapsed());
        if deploying {
            pause(rest.saturating_sub(Duration::from_millis(random.u64(0..1500))));
            newest = node.push(&format!("{round}"));
            let out = node.selfstart(&["deploy", "--no-wait"]);
            assert!(out.status.success(), "deploy: {}", String::from_utf8_lossy(&out.stderr));
            deploys += 1;
        }
        pause(STEADY.saturating_sub(born.elapsed()));
        if random.bool() {
            aim(&node, &mut random);
        } else {
            pause(Duration::from_millis(random.u64(0..400)));
        }
        let mut agent = node.agent_pid().expect("an agent");
        kill(agent, rustix::process::Signal::KILL);
        if random.u8(0..5) == 0 {
            // Once more, while the next one comes up.
            bursts += 1;
            agent =
                until("the next agent", Duration::from_secs(2), || node.agent_pid().filter(|pid| *pid != agent).ok_or("none".to_owned()));
            pause(Duration::from_millis(random.u64(0..60)));
            kill(agent, rustix::process::Signal::KILL);
        }
        let at = Instant::now();
        let status = node.answered_by_another_than(agent, Duration::from_secs(5));
        let took = at.elapsed();
        back.push(took);
        born = Instant::now();
        assert!(took < Duration::from_secs(1), "round {round}: the agent was back after {took:?}");
        assert_eq!(status["agent"]["keeper_pid"], node.keeper_pid());
        if !deploying && !busy {
            for slot in 0..3 {
                let id = format!("steady/{slot}");
                // It has none while it waits, as too many deploys in a row make it.
                let Some(was) = before.main(&id) else { continue };
                assert!(lives(was.pid, was.ticks), "round {round}: process {} of {id} is gone", was.pid);
            }
        }
    }
    // The last push was asked for by an agent that has been killed since.
    node.settled_on(&newest);
    let (looks, links) = (watch.end(), current.end());
    let figures = figures(&back);
    let starts = told_once(&node);
    let last = scan(&node.root);
    let alive: BTreeSet<i32> = last.mains.values().flatten().map(|it| it.pid).collect();
    for (key, main, pid) in &last.others {
        let late = lives_on(*main, *pid);
        assert!(alive.contains(main) || !late, "process {pid} is left over from {key} (process {main})");
    }
    node.stop();
    let left = scan(&node.root);
    assert!(left.mains.is_empty() && left.others.is_empty(), "left over: {left:?}");
    let lines = lines(&node);
    println!(
        "agent: {kills} kills ({bursts} of them while it came up again) and {deploys} deploys in {:.0} s; back: {figures}; {looks} looks for two \
         workers in a slot, {links} at `current`; {starts} starts, each with one end; {lines} lines compared",
        begun.elapsed().as_secs_f64()
    );
}

/// Waits for the next event: what follows one is not on disk yet.
fn aim(node: &Node, random: &mut fastrand::Rng) {
    let path = node.root.join("run/events.jsonl");
    let len = || fs_err::metadata(&path).map_or(0, |it| it.len());
    let (was, longest) = (len(), Duration::from_millis(800));
    let changes = Changes::of([node.root.join("run")]);
    let _or_none = waiting::until(Some(&changes), longest, longest, || if len() == was { Err(String::new()) } else { Ok(()) });
    pause(Duration::from_micros(random.u64(0..15_000)));
}

/// Whether a leftover is still there after what it takes to end it.
fn lives_on(main: i32, pid: i32) -> bool {
    let Some((.., ticks)) = crate::node::stat(pid) else { return false };
    if lives(pid, ticks) && crate::node::stat(main).is_none() {
        ended(pid, Duration::from_secs(2));
    }
    lives(pid, ticks) && crate::node::stat(main).is_none()
}

/// Every start has one process and one end, and no event is missing; returns how many starts there were.
fn told_once(node: &Node) -> usize {
    // What lives is read first, so that what ends meanwhile has its end among the events.
    let mut alive = BTreeSet::new();
    until("a quiet moment", PATIENCE, || {
        let scan = scan(&node.root);
        let now: BTreeSet<(String, u64)> = scan.mains.values().flatten().map(|it| (it.slot.clone(), it.start)).collect();
        let starts = starts(&node.events()).0;
        let open: BTreeSet<(String, u64)> = starts.iter().filter(|(_, (_, ends))| *ends == 0).map(|(key, _)| key.clone()).collect();
        alive = now.clone();
        if open.is_subset(&now) {
            Ok(())
        } else {
            Err(format!("started, not ended, not alive: {:?}", open.difference(&now).collect::<Vec<_>>()))
        }
    });
    let events = node.events();
    for pair in events.windows(2) {
        let (one, two) = (pair[0]["seq"].as_u64(), pair[1]["seq"].as_u64());
        assert_eq!(one.map(|n| n + 1), two, "numbers of events:\n{}\n{}", pair[0], pair[1]);
    }
    let (starts, wrong) = starts(&events);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let of_steady = events.iter().filter(|it| it["kind"] == "worker_ended" && it["pool"] == "steady");
    for end in of_steady {
        assert_eq!(end["verdict"], "deploy", "{end}");
    }
    starts.len()
}

/// Each start with its process and the number of its ends, and what is wrong with them.
#[expect(clippy::type_complexity, reason = "read in two places just here")]
fn starts(events: &[Value]) -> (BTreeMap<(String, u64), (i64, u32)>, Vec<String>) {
    let mut starts: BTreeMap<(String, u64), (i64, u32)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for event in events {
        let (Some(pool), Some(slot), Some(start)) = (event["pool"].as_str(), event["slot"].as_u64(), event["start"].as_u64()) else {
            continue;
        };
        let key = (format!("{pool}/{slot}"), start);
        match event["kind"].as_str() {
            Some("worker_started" | "worker_adopted") => {
                let pid = event["pid"].as_i64().unwrap_or(0);
                let known = starts.entry(key).or_insert((pid, 0));
                if known.0 != pid || known.1 > 0 {
                    wrong.push(format!("it was process {} and had {} ends: {event}", known.0, known.1));
                }
            }
            Some("worker_ended") => match starts.get_mut(&key) {
                Some(known) => {
                    known.1 += 1;
                    if known.1 > 1 {
                        wrong.push(format!("ended once more: {event}"));
                    }
                }
                None => wrong.push(format!("ended and was never started: {event}")),
            },
            _ => {}
        }
    }
    (starts, wrong)
}

/// No line is missing, none is there twice; returns how many were compared.
fn lines(node: &Node) -> u64 {
    let mut sum = 0;
    let mut wrong = Vec::new();
    let stopped = stopped(&node.events());
    for (pool, slots) in [("steady", 3), ("brief", 2), ("random", 2), ("demon", 2)] {
        for slot in 0..slots {
            for one in written(&node.root, pool, slot) {
                sum += one.lines;
                if !one.missing.is_empty() || !one.again.is_empty() {
                    wrong.push(format!("{pool}/{slot}: {one:?}"));
                }
                let pid = u64::try_from(one.pid).unwrap_or(0);
                let all = match pool {
                    "brief" => 10 + pid % 50,
                    "demon" => 20 + pid % 50,
                    _ => continue,
                };
                // One that a deploy or the end stopped has fewer.
                if one.lines > all || (one.lines < all && !stopped.contains(&(pool.to_owned(), u64::from(slot), pid))) {
                    wrong.push(format!("{pool}/{slot}: process {pid} wrote {all} lines, {} are there", one.lines));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    sum
}

/// The processes that somebody stopped: by pool, slot and number.
fn stopped(events: &[Value]) -> BTreeSet<(String, u64, u64)> {
    let name = |it: &Value| Some((it["pool"].as_str()?.to_owned(), it["slot"].as_u64()?, it["start"].as_u64()?));
    let started = events.iter().filter(|it| !it["pid"].is_null()).filter_map(|it| Some((name(it)?, it["pid"].as_u64()?)));
    let pids: BTreeMap<(String, u64, u64), u64> = started.collect();
    let ends = events.iter().filter(|it| it["kind"] == "worker_ended" && it["verdict"] != "exit").filter_map(name);
    ends.filter_map(|name| pids.get(&name).map(|pid| (name.0, name.1, *pid))).collect()
}

pub(crate) fn cannot_come_up() {
    let pools = "pools: {steady: {command: \"{fixture} --flood 0 50\", count: 2, ready: {after: 100ms}, stop: [TERM 5s, KILL]}}\n";
    let mut node = Node::new(pools);
    node.run();
    let first = node.push("0");
    until("the first agent", PATIENCE, || node.status());
    node.selfstart(&["deploy", "--no-wait"]);
    node.settled_on(&first);
    let good = node.root.join("run/config.good.yaml");
    until("the good configuration", PATIENCE, || fs_err::read(&good).map_err(|error| error.to_string()));
    let mains: Vec<_> = scan(&node.root).mains.into_values().flatten().collect();
    assert_eq!(mains.len(), 2);
    let same = |what: &str| {
        assert!(mains.iter().all(|it| lives(it.pid, it.ticks)), "{what}: a worker is gone");
        assert_eq!(scan(&node.root).mains.into_values().flatten().count(), 2, "{what}");
    };

    // Broken while there is no agent: the last good one is run, and it is said.
    let config = fs_err::read_to_string(&node.config).expect("config.yaml");
    fs_err::write(&node.config, format!("{config}nonsense: true\n")).expect("config.yaml");
    let agent = node.agent_pid().expect("an agent");
    kill(agent, rustix::process::Signal::KILL);
    let at = Instant::now();
    let status = node.answered_by_another_than(agent, Duration::from_secs(5));
    assert!(at.elapsed() < Duration::from_secs(1), "back after {:?}", at.elapsed());
    assert!(node.told().contains("cannot be used, so"), "not said: {}", node.told());
    assert_eq!(status["pools"][0]["wanted"], 2);
    same("with the last good configuration");

    // No good one either: tried again, less and less often, and the workers go on.
    let kept = fs_err::read(&good).expect("config.good.yaml");
    fs_err::write(&good, "nonsense\n").expect("config.good.yaml");
    let agent = node.agent_pid().expect("an agent");
    let tries = || node.told().matches("the agent has ended").count();
    let before = tries();
    kill(agent, rustix::process::Signal::KILL);
    let at = Instant::now();
    until("four tries", Duration::from_secs(10), || match tries() - before {
        4.. => Ok(()),
        fewer => Err(format!("{fewer}")),
    });
    assert!(at.elapsed() > Duration::from_millis(600), "four tries within {:?}: that is a hot loop", at.elapsed());
    same("without any configuration");
    fs_err::write(&node.config, &config).expect("config.yaml");
    node.answered_by_another_than(agent, Duration::from_secs(8));
    same("with the mended configuration");
    drop(kept);

    // Minded again: what ends is started anew.
    kill(mains[0].pid, rustix::process::Signal::KILL);
    until("another worker", PATIENCE, || match scan(&node.root).main(&mains[0].slot) {
        Some(now) if now.pid != mains[0].pid => Ok(()),
        other => Err(format!("{other:?}")),
    });
    node.stop();
}
