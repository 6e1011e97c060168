//! A real Redis, and workers of node-resque from its own registry: jobs are worked, and a deploy loses none.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

use crate::node::{Node, free_port, said};

const PACKAGE: &str = include_str!("node-resque/package.json");
const LOCK: &str = include_str!("node-resque/package-lock.json");
const WORKER: &str = include_str!("node-resque/worker.js");
const PRODUCE: &str = include_str!("node-resque/produce.js");

struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    fn start(node: &Node) -> Self {
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]).current_dir(node.path(""));
        let redis = Self { child: command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("redis-server is installed"), port };
        node.until("redis", || (redis.ask(&["ping"]) == "PONG").then_some(()));
        redis
    }

    fn ask(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        said(command.args(["-p", &self.port.to_string()]).args(words).stdin(Stdio::null())).out.trim().to_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn node_resque_works_its_jobs_through_a_deploy_and_loses_none() {
    const JOBS: usize = 240;
    let node = Node::new();
    let redis = Redis::start(&node);
    node.commit(&[("package.json", PACKAGE), ("package-lock.json", LOCK), ("worker.js", WORKER), ("produce.js", PRODUCE)]);
    let port = redis.port;
    node.configure(
        "  w:\n    command: node worker.js\n    count: 3\n    queue: {kind: node_resque}\n    env: {REDIS_PORT: '@PORT@', RAN: '@DIR@/ran.log', NAME: '{pool}-{slot}-{start}'}\n    \
         ready: {after: 1s}\n"
            .replace("@PORT@", &port.to_string())
            .as_str(),
        "build: {env: {HOME: '@DIR@/home'}, steps: ['npm ci --no-audit --no-fund --loglevel=error']}",
    );
    node.boot();
    node.cli(&["exec", "--", "node", "produce.js", &JOBS.to_string(), "150"]).exits(0);
    let ran = |what: &str| -> Vec<String> {
        node.text("ran.log").lines().filter_map(|line| line.strip_prefix(what)?.split(' ').next().map(str::to_owned)).collect()
    };
    node.until("the first jobs", || (ran("done ").len() >= 6).then_some(()));
    let (before, mark) = (node.pids("w"), node.mark());
    node.commit(&[("README", "second\n")]);
    node.cli(&["deploy"]).exits(0);
    let in_flight = ran("done ").len();
    assert!(in_flight < JOBS, "the deploy was to be in the middle of the work");
    let after = node.pids("w");
    assert!(after.len() == 3 && after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
    let ends = node.since(mark, &["worker_ended"]);
    assert!(
        ends.len() == 3 && ends.iter().all(|end| end["text"].as_str().is_some_and(|text| text.starts_with("ended by TERM"))),
        "{ends:#?}"
    );
    node.until("all jobs", || (ran("done ").len() >= JOBS).then_some(()));
    let (started, done) = (ran("start "), ran("done "));
    let once = |jobs: &[String]| jobs.iter().cloned().collect::<BTreeSet<_>>().len() == jobs.len();
    assert!(once(&started) && once(&done) && done.len() == JOBS, "{}", node.text("ran.log"));
    node.same(redis.ask(&["-n", "0", "llen", "resque:queue:slow"]), "0".into());
    node.same(redis.ask(&["-n", "0", "llen", "resque:failed"]), "0".into());
}
