//! Three nodes and a real Redis: what one of them does for all.

use std::cell::RefCell;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::node::{Node, QUICK, alive, children_of, free_port, said, signal_to};

/// How long a lease lasts here: as short as a busy machine allows. Redis must be up for a second longer before it grants one.
const LEASE: &str = "SELFSTART_LEASE_MILLIS=4000";

/// What is kept between two lives of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeps {
    All,
    Nothing,
}

struct Redis {
    child: RefCell<Child>,
    port: u16,
    dir: tempfile::TempDir,
}

const PASSWORD: &str = "not-to-be-seen";

impl Redis {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("e2e-").tempdir_in("/tmp").expect("a directory");
        let port = free_port();
        Self { child: RefCell::new(server(port, &dir)), port, dir }
    }

    fn ask(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string(), "-a", PASSWORD, "--no-auth-warning"]).args(words).stdin(Stdio::null());
        said(&mut command).out.trim().to_owned()
    }

    /// Ends it in order. What it forgets is forgotten when it has ended: one that forgets while it is up may grant at once what another holds.
    fn stop(&self, keeps: Keeps) {
        self.ask(&["shutdown"]);
        let _ended = self.child.borrow_mut().wait();
        if keeps == Keeps::Nothing {
            fs_err::remove_dir_all(self.dir.path().join("appendonlydir")).expect("its files");
        }
    }

    fn start_again(&self) {
        *self.child.borrow_mut() = server(self.port, &self.dir);
    }

    /// For how long the one lease that there is lasts, in milliseconds.
    fn lasts(&self) -> i64 {
        let key = self.ask(&["keys", "*:lease"]);
        self.ask(&["pttl", &key]).parse().unwrap_or(-1)
    }
}

fn server(port: u16, dir: &tempfile::TempDir) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    command.args(["--requirepass", PASSWORD]);
    command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("redis-server is installed")
}

impl Drop for Redis {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Nodes of one app, with the repository of the first.
struct Fleet {
    redis: Redis,
    nodes: Vec<Node>,
}

/// A line of a step that began: where, with which token, as which process.
#[derive(Clone, Debug)]
struct Ran {
    root: String,
    token: u64,
    pid: i32,
}

/// What each step says first, for [`Fleet::ran`].
const SAYS: &str = "echo {root} $SELFSTART_FENCE $$ >> @SHARED@/ran;";

/// Ends when it may; two at a time are written down.
const UNTIL_TOLD: &str =
    "exec 9>>@SHARED@/lock; flock -n 9 || echo {root} >> @SHARED@/two; until test -e @SHARED@/go; do sleep 0.1 9>&-; done";

impl Fleet {
    /// `step`: what is done once; `@SHARED@` is a folder for all.
    fn new(step: &str) -> Self {
        let fleet = Self::of(3);
        fleet.nodes.iter().for_each(|node| fleet.configure(node, "e2e", step, "once_per: revision", ""));
        fleet
    }

    fn of(count: usize) -> Self {
        Self { redis: Redis::start(), nodes: (0..count).map(|_| Node::new()).collect() }
    }

    /// `how`: what says that the step is done once; `more`: of the node.
    fn configure(&self, node: &Node, app: &str, step: &str, how: &str, more: &str) {
        let shared = self.first().path("").display().to_string();
        let step = format!("{SAYS} {step}").replace("@SHARED@/", &shared);
        node.write("password", PASSWORD);
        node.configure_raw(&format!(
            "app: {app}\nroot: @DIR@/root\n{more}\nsource: {{repository: {shared}src, branch: main}}\n\
             fleet: {{redis: 'redis://:${{file:@DIR@/password}}@127.0.0.1:{}'}}\n\
             build:\n  steps:\n    - echo each\n    - run: '{step}'\n      {how}\n\
             release: {{min_free: 1MB, confirm: 0s}}\npools:\n  w: {{command: '@FIXTURE@', {QUICK}}}\n",
            self.redis.port
        ));
    }

    fn start(&self) {
        self.nodes.iter().for_each(start);
    }

    fn first(&self) -> &Node {
        &self.nodes[0]
    }

    /// Who began the step.
    fn ran(&self) -> Vec<Ran> {
        let text = self.first().text("ran");
        let line = |line: &str| {
            let [root, token, pid] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            Ran { root: root.to_owned(), token: token.parse().expect("a number"), pid: pid.parse().expect("a number") }
        };
        // The last line may be half written.
        text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines().map(line).collect()
    }

    fn ran_times(&self, times: usize) -> Ran {
        self.first().until(&format!("the step to begin for the {times}. time"), || self.ran().get(times - 1).cloned())
    }

    fn by_root(&self, of: &str) -> &Node {
        self.nodes.iter().find(|node| root(node) == of).expect("one of them")
    }

    fn all_live(&self, revision: &str) {
        self.nodes.iter().for_each(|node| is_live(node, revision));
        assert_eq!(self.first().text("two"), "", "two did it at a time: {:?}", self.ran());
    }

    fn go(&self) {
        self.first().write("go", "");
    }
}

fn start(node: &Node) {
    node.start_with(&["env", LEASE]);
}

fn root(node: &Node) -> String {
    node.root("").display().to_string().trim_end_matches('/').to_owned()
}

fn is_live(node: &Node, revision: &str) {
    node.until("its release", || (node.live().0 == revision && node.look("/deploy/phase") == "idle").then_some(()));
}

#[test]
fn one_node_does_a_step_for_all_and_its_failure_is_the_failure_of_all() {
    const STEP: &str = "if test -e bad; then echo too bad; exit 3; fi";
    let fleet = Fleet::new(STEP);
    // Another app with the same Redis, the same revision and the same step.
    let other = Node::new();
    fleet.configure(&other, "other", STEP, "once_per: revision", "");
    let first = fleet.first().git(&["rev-parse", "HEAD"]);
    fleet.nodes.iter().chain([&other]).for_each(start);
    fleet.all_live(&first);
    is_live(&other, &first);
    let ran = fleet.ran();
    assert_eq!(ran.len(), 2, "once for each app: {ran:?}");
    assert!(ran.iter().any(|ran| ran.root == root(&other)), "{ran:?}");

    let bad = fleet.first().commit(&[("bad", "")]);
    let spawn = |node: &Node| node.command(&["deploy"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let deploys: Vec<Child> = fleet.nodes.iter().map(spawn).collect();
    let told = deploys.into_iter().map(|deploy| {
        let output = deploy.wait_with_output().expect("waited");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    });
    let told: Vec<String> = told.collect();
    assert_eq!(fleet.ran().len(), 3, "once more");
    assert!(told.iter().all(|text| text.contains("exit 3") && text.contains("too bad")), "{told:#?}");
    assert_eq!(told.iter().filter(|text| text.contains("failed on node")).count(), 2, "{told:#?}");
    for node in &fleet.nodes {
        node.same((node.live().0, node.look("/deploy/quarantined/0/revision")), (first.clone(), bad.as_str().into()));
    }
    // Forced, it is done again, and fails again.
    fleet.first().cli(&["deploy", "--force"]).exits(1).says(&["exit 3"]);
    assert_eq!(fleet.ran().len(), 4);

    fleet.first().git(&["rm", "-q", "bad"]);
    let good = fleet.first().commit(&[]);
    fleet.nodes.iter().for_each(|node| drop(node.cli(&["deploy"]).exits(0)));
    fleet.all_live(&good);
    let ran = fleet.ran();
    assert_eq!(ran.len(), 5);
    let tokens: Vec<u64> = ran.iter().filter(|ran| ran.root != root(&other)).map(|ran| ran.token).collect();
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "{tokens:?}");
    other.same(other.live().0, first);
    // What is done is not done again, not even by force.
    fleet.first().cli(&["deploy", "--force"]).exits(0);
    assert_eq!(fleet.ran().len(), 5);
    for node in &fleet.nodes {
        let told = node.text("agent.log") + &node.text("root/run/events.jsonl") + &node.cli(&["status", "--json"]).out;
        assert!(!told.contains(PASSWORD) && !node.cli(&["check", "--explain"]).out.contains(PASSWORD));
    }
}

#[test]
fn a_node_that_dies_while_it_holds_the_lease_is_followed_by_another_although_redis_is_restarted_meanwhile() {
    let fleet = Fleet::new(UNTIL_TOLD);
    let revision = fleet.first().git(&["rev-parse", "HEAD"]);
    fleet.start();
    let first = fleet.ran_times(1);
    let holder = fleet.by_root(&first.root);

    // Its agent alone: it is back, and takes up its own lease.
    signal_to(agent(holder), Signal::KILL);
    let again = fleet.ran_times(2);
    assert_eq!(again.root, first.root);
    assert!(again.token > first.token && !alive(first.pid), "{first:?} {again:?}");

    // All of it; and Redis is restarted before the lease is over.
    die(holder);
    fleet.redis.stop(Keeps::All);
    fleet.redis.start_again();
    let follower = fleet.ran_times(3);
    assert!(follower.root != first.root && follower.token > again.token && !alive(again.pid), "{again:?} {follower:?}");
    fleet.go();
    fleet.nodes.iter().filter(|node| root(node) != first.root).for_each(|node| is_live(node, &revision));
    start(holder);
    fleet.all_live(&revision);
    assert_eq!(fleet.ran().len(), 3, "{:?}", fleet.ran());
}

#[test]
fn a_restart_of_redis_makes_nobody_begin_what_another_does() {
    let fleet = Fleet::new(UNTIL_TOLD);
    fleet.start();
    for (round, keeps) in [(1, Keeps::All), (2, Keeps::Nothing)] {
        let revision = fleet.first().git(&["rev-parse", "HEAD"]);
        fleet.ran_times(round);
        fleet.redis.stop(keeps);
        fleet.redis.start_again();
        // More than a lease lasts: it is said again and again that it is held.
        for _ in 0..5 {
            let before = fleet.first().until("some time", || Some(fleet.redis.lasts()).filter(|lasts| (1..3_500).contains(lasts)));
            fleet.first().until("a renewal", || (fleet.redis.lasts() > before).then_some(()));
        }
        assert_eq!(fleet.ran().len(), round, "{keeps:?}: {:?}", fleet.ran());
        fleet.go();
        fleet.all_live(&revision);
        assert_eq!(fleet.ran().len(), round, "{keeps:?}: {:?}", fleet.ran());
        fs_err::remove_file(fleet.first().path("go")).expect("removed");
        fleet.first().commit(&[]);
        fleet.nodes.iter().for_each(|node| drop(node.cli(&["deploy", "--no-wait"]).exits(0)));
    }
    fleet.go();
}

#[test]
fn whatever_is_killed_restarted_and_pushed_never_do_two_nodes_do_it_and_all_come_to_the_newest() {
    let fleet = Fleet::new(UNTIL_TOLD);
    let seed = std::env::var("FLEET_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let rounds = std::env::var("FLEET_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let mut random = fastrand::Rng::with_seed(seed);
    fleet.start();
    let mut before = 0;
    for round in 0..rounds {
        let running = || Some(fleet.ran()).filter(|ran| ran.len() > before)?.last().filter(|ran| alive(ran.pid)).cloned();
        let ran = fleet.first().until(&format!("a step (round {round}, seed {seed})"), running);
        before = fleet.ran().len();
        let (holder, any) = (fleet.by_root(&ran.root), &fleet.nodes[random.usize(..3)]);
        match random.u8(..6) {
            // The agent of the holder, or all of it.
            0 => signal_to(agent(holder), Signal::KILL),
            1 => die(holder),
            // All of one that may be another.
            2 => die(any),
            3 => {
                fleet.redis.stop(Keeps::All);
                fleet.redis.start_again();
                die(holder);
            }
            4 => {
                fleet.redis.stop(Keeps::Nothing);
                fleet.redis.start_again();
                fleet.first().until("a lease", || (fleet.redis.lasts() > 0).then_some(()));
            }
            _ => {
                fleet.first().commit(&[]);
                drop(any.cli(&["deploy", "--no-wait"]).exits(0));
                signal_to(ran.pid, Signal::KILL);
            }
        }
        // What dies comes up again.
        fleet.nodes.iter().filter(|node| node.keeper() == 0).for_each(start);
        if alive(ran.pid) {
            before -= 1;
        }
    }
    fleet.go();
    let newest = fleet.first().git(&["rev-parse", "HEAD"]);
    for node in &fleet.nodes {
        node.until("a socket", || node.root("run/control.sock").exists().then_some(()));
        node.until("a deploy", || (node.cli(&["deploy", "--no-wait"]).code == Some(0)).then_some(()));
    }
    fleet.all_live(&newest);
}

fn agent(node: &Node) -> i32 {
    let pid = || node.look("/agent/pid").as_i64().and_then(|pid| i32::try_from(pid).ok());
    node.until("an agent", pid)
}

/// As a machine does: all at once.
fn die(node: &Node) {
    let theirs = children_of(node.keeper());
    node.signal_keeper(Signal::KILL);
    theirs.into_iter().for_each(|pid| signal_to(pid, Signal::KILL));
    let _killed = node.ended();
}

#[test]
fn a_redis_out_of_reach_ends_the_step_before_its_lease_does_and_fails_no_revision() {
    let fleet = Fleet::new(UNTIL_TOLD);
    let revision = fleet.first().git(&["rev-parse", "HEAD"]);
    fleet.start();
    let first = fleet.ran_times(1);
    fleet.redis.stop(Keeps::All);
    fleet.first().until("the end of the step", || (!alive(first.pid)).then_some(()));
    let holder = fleet.by_root(&first.root);
    holder.until("the reason", || holder.look("/deploy/last_error").as_str()?.contains("could not be renewed").then_some(()));
    let other = fleet.nodes.iter().find(|node| root(node) != first.root).expect("another");
    other.until("the reason", || other.look("/deploy/last_error").as_str()?.contains("Redis cannot be asked").then_some(()));
    assert_eq!(fleet.ran().len(), 1);
    let checked = holder.cli(&["check"]).says(&["fleet.redis: `redis://:${file:", "does not answer", "without it no build gets past"]);
    assert!(!checked.out.contains(PASSWORD), "{checked:?}");
    fleet.go();
    fleet.redis.start_again();
    fleet.all_live(&revision);
    let ran = fleet.ran();
    assert!(ran.len() == 2 && ran[1].token > first.token, "{ran:?}");
    fleet.nodes.iter().for_each(|node| node.same(node.look("/deploy/quarantined"), serde_json::json!([])));
}

#[test]
fn a_step_of_the_primary_is_done_by_one_of_those_that_may_and_all_others_wait() {
    let fleet = Fleet::of(3);
    let how = "only: {roles: [db], primary: true}";
    for (node, roles) in fleet.nodes.iter().zip(["roles: [app]", "roles: [db, app]", "roles: [db]"]) {
        fleet.configure(node, "e2e", UNTIL_TOLD, how, roles);
    }
    let app = fleet.first();
    let patient = app.text("config.yaml");
    app.write("config.yaml", &patient.replace("build:\n", "build:\n  timeout: 2s\n"));
    let revision = app.git(&["rev-parse", "HEAD"]);
    app.cli(&["check", "--offline", "--json"]).exits(0).says(&["not for this node, which waits for its result"]);
    start(app);
    app.told(0, "build_step", "no node that may do it has begun");
    // A wait that is longer than its build may take is no fault of the revision.
    app.until("the reason", || {
        app.look("/deploy/last_error").as_str()?.contains("had not done it in the time of this build").then_some(())
    });
    app.same(app.look("/deploy/quarantined"), serde_json::json!([]));
    app.write("config.yaml", &patient);
    app.cli(&["reload", "--no-wait"]).exits(0);
    fleet.nodes[1..].iter().for_each(start);
    let ran = fleet.ran_times(1);
    assert!(ran.root != root(app), "{ran:?}");
    app.told(0, "build_step", "does it, for this revision or another");
    app.same(app.live().0, String::new());
    fleet.go();
    fleet.all_live(&revision);
    assert_eq!(fleet.ran().len(), 1);
}

#[test]
fn a_node_that_is_stopped_frees_its_lease_and_a_signal_from_outside_is_no_verdict() {
    let fleet = Fleet::new(UNTIL_TOLD);
    let revision = fleet.first().git(&["rev-parse", "HEAD"]);
    fleet.start();
    let first = fleet.ran_times(1);
    // As who ends a machine does it.
    signal_to(first.pid, Signal::TERM);
    let second = fleet.ran_times(2);
    assert!(second.token > first.token);
    let holder = fleet.by_root(&second.root);
    let others: Vec<&Node> = fleet.nodes.iter().filter(|node| root(node) != second.root).collect();
    others.iter().for_each(|node| node.signal_keeper(Signal::TERM));
    others.iter().for_each(|node| node.same(node.ended(), Some(0)));
    holder.signal_keeper(Signal::TERM);
    holder.same(holder.ended(), Some(0));
    assert_eq!(fleet.redis.ask(&["keys", "*:lease"]), "", "it would last for some seconds");
    assert!(!alive(second.pid));
    fleet.go();
    fleet.start();
    fleet.all_live(&revision);
    assert_eq!(fleet.ran().len(), 3);
    fleet.nodes.iter().for_each(|node| node.same(node.look("/deploy/quarantined"), serde_json::json!([])));
}

#[test]
fn without_a_fleet_each_node_does_it_and_check_says_so() {
    let node = Node::new();
    let pools = format!("  w: {{command: '@FIXTURE@', {QUICK}}}");
    let both = "build: {steps: [{run: 'echo once${SELFSTART_FENCE-} >> ran', once_per: revision}, {run: 'echo primary >> ran', only: {primary: true}}]}";
    node.configure(&pools, both);
    let keys = ["once_per: there is no `fleet.redis`", "only.primary: there is no `fleet.redis`"];
    node.cli(&["check", "--offline"]).exits(0).says(&keys);
    node.boot();
    node.same(node.text("root/current/ran"), "once\nprimary\n".to_owned());
}
