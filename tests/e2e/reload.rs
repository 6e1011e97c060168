//! Reloads that meet what an earlier one has not finished.

use std::collections::BTreeMap;

use crate::node::{Node, QUICK, alive};

#[test]
fn a_pool_that_is_taken_out_and_put_back_while_its_workers_stop_comes_back_once_they_have() {
    let pools = |w: bool| {
        let w = if w {
            format!("  w: {{command: '@FIXTURE@ --ignore TERM', count: 2, stop: [TERM 3s, KILL], {QUICK}}}\n")
        } else {
            String::new()
        };
        format!("{w}  v: {{command: '@FIXTURE@', {QUICK}}}")
    };
    let node = Node::with_pools(&pools(true));
    let old = node.pids("w");
    let mark = node.mark();
    node.configure(&pools(false), "");
    node.cli(&["reload", "--no-wait"]).exits(0);
    node.until("TERM to be sent", || (node.since(mark, &["worker_stopping"]).len() >= 2).then_some(()));
    assert!(old.iter().all(|pid| alive(*pid)));
    // What is deployed meanwhile is what it comes back with.
    let newest = node.commit(&[]);
    node.cli(&["deploy"]).exits(0);
    node.configure(&pools(true), "");
    node.cli(&["reload", "--no-wait"]).exits(0);
    assert!(old.iter().all(|pid| alive(*pid)), "the second reload came too late to show anything");
    node.cli(&["wait", "--ready", "--timeout", "20s"]).exits(0);
    node.until("two new workers", || {
        let now = node.pids("w");
        (now.len() == 2 && node.slots("w").iter().all(|slot| slot["state"] == "ready") && now.iter().all(|pid| !old.contains(pid)))
            .then_some(())
    });
    assert!(!old.into_iter().any(alive));
    assert!(node.slots("w").iter().all(|slot| slot["revision"] == newest.as_str()), "{:#?}", node.slots("w"));
    // No slot ever had two.
    let mut running: BTreeMap<String, i32> = BTreeMap::new();
    for event in node.since(0, &["worker_started", "worker_ended"]) {
        let count = running.entry(format!("{}/{}", event["pool"], event["slot"])).or_default();
        *count += if event["kind"] == "worker_started" { 1 } else { -1 };
        assert!((0..=1).contains(count), "{event}");
    }
}

#[test]
fn a_reload_answers_when_it_is_so() {
    let slow = "stop: [TERM 500ms, KILL]";
    let node = Node::new();
    let pools = |w: u32, more: &str| {
        format!("  w: {{command: '@FIXTURE@ --ignore TERM', count: {w}, {slow}, {QUICK}}}\n  v: {{command: '@FIXTURE@', {QUICK}}}{more}")
    };
    let x = format!("\n  x: {{command: '@FIXTURE@ --ignore TERM', after: [v], {slow}, {QUICK}}}");
    node.configure(&pools(1, ""), "");
    node.boot();
    let reload = |pools: &str, more: &str| {
        node.configure(pools, more);
        node.cli(&["reload"])
    };
    // More, fewer, a new pool, one that goes.
    reload(&pools(3, ""), "").exits(0);
    node.same(node.slots("w").iter().filter(|slot| slot["state"] == "ready").count(), 3);
    reload(&pools(1, ""), "").exits(0);
    node.same((node.slots("w").len(), node.pids("w").len()), (1, 1));
    reload(&pools(1, &x), "").exits(0);
    node.same(node.slots("x")[0]["state"].clone(), "ready".into());
    let gone = node.pid("x");
    reload(&pools(1, ""), "").exits(0);
    assert!(!alive(gone));
    node.same(node.slots("x").len(), 0);
    // Another build: the new release is live, all workers run it.
    let before = node.live().1;
    reload(&pools(1, ""), "build: {steps: ['sleep 0.3; touch built']}").exits(0);
    let live = node.live().1;
    assert!(live != before, "{live} {before}");
    assert!(node.root("current/built").exists());
    node.same(node.slots("w")[0]["release"].clone(), live.as_str().into());
    node.same(node.look("/deploy/phase"), "idle".into());
    // One that fails is told.
    reload(&pools(1, ""), "build: {steps: ['sleep 0.3; exit 9']}").exits(1).says(&["build step 1 of 1 failed", "exit 9"]);
    node.same(node.live().1, live.clone());
    // Who does not wait is answered at once.
    node.configure(&pools(2, ""), "build: {steps: ['while test -e @DIR@/hold; do sleep 0.05; done']}");
    node.write("hold", "");
    node.cli(&["reload", "--no-wait"]).exits(0);
    node.same(node.live().1, live);
    fs_err::remove_file(node.path("hold")).expect("removed");
    node.idle();
}

#[test]
fn a_plan_names_each_value_that_differs_old_and_new_and_no_secret() {
    let node = Node::new();
    node.write("token", "s3cret-of-the-file");
    let configure = |count: u32, env: &str, pool: &str, password: &str, more: &str| {
        let w = format!("  w: {{command: '@FIXTURE@', count: {count}, env: {{{env}}}, {QUICK}{pool}}}\n");
        let build = format!("build: {{env: {{URL: 'redis://:{password}@h/0', T: '${{file:@DIR@/token}}'}}}}");
        node.configure(&format!("{w}  v: {{command: '@FIXTURE@', {QUICK}}}{more}"), &build);
    };
    configure(1, "A: one, GONE: it", "", "hunter1", "");
    node.boot();
    node.cli(&["reload", "--plan"]).exits(0).says(&["nothing has changed"]);

    configure(2, "A: two", ", memory: 350MB, stop: [TERM 90s, KILL]", "hunter2", "\n  x: {shell: 'exec @FIXTURE@', count: 3}");
    let plan = node.cli(&["reload", "--plan"]).exits(0);
    let expected = "\
pools.x: new: its workers are started
  shell: – → exec @DIR@/fixture
  count: – → 3
pools.w: its workers are replaced, in the order of `update`
  count: 1 → 2
  env.A: one → two
  memory.ladder: – → [350MB x2/3 drain]
  memory.every: – → 10s
  stop: [TERM 10s, KILL] → [TERM 1m30s, KILL]
  env.GONE: it → –
build: a new release of the same revision is made
  env.URL: another value, redis://:***@h/0
";
    node.same(plan.out.clone(), expected.replace("@DIR@", node.path("").display().to_string().trim_end_matches('/')));
    let json = node.cli(&["reload", "--plan", "--json"]).exits(0);
    for said in [&plan, &json] {
        assert!(!format!("{said:?}").contains("hunter") && !format!("{said:?}").contains("s3cret"), "{said:?}");
    }
    let json: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
    let w = json["changes"].as_array().expect("changes").iter().find(|change| change["key"] == "pools.w").expect("w");
    assert_eq!(w["restarts"], serde_json::json!(["w"]));
    assert_eq!(w["values"][0], serde_json::json!({"key": "pools.w.count", "old": 1, "new": 2, "text": "1 → 2"}));
    assert_eq!(w["values"][3], serde_json::json!({"key": "pools.w.memory.every", "old": null, "new": 10.0, "text": "– → 10s"}));

    // Done, it is an event with the same; what an environment holds is not for all who read events.
    let mark = node.mark();
    node.cli(&["reload"]).exits(0).says(&["reloaded: ", "pools.w (count, env.A, memory.ladder"]);
    let told = node.told(mark, "config_reloaded", "pools.w (count, env.A, memory.ladder, memory.every, stop, env.GONE): its workers");
    let values = told["values"].as_array().expect("values");
    let of = |key: &str| values.iter().find(|value| value["key"] == key).unwrap_or_else(|| panic!("{key}: {told}")).clone();
    assert_eq!(of("pools.w.env.A"), serde_json::json!({"key": "pools.w.env.A", "old": "***", "new": "***", "text": "another value, ***"}));
    assert_eq!(of("pools.w.count")["text"], "1 → 2");
    assert!(!told.to_string().contains("hunter"), "{told}");
    node.cli(&["reload", "--plan"]).exits(0).says(&["nothing has changed"]);

    // A pool that goes needs no list of what it was; the user is part of how a release is made.
    configure(2, "A: two", ", memory: 350MB, stop: [TERM 90s, KILL]", "hunter2", "");
    let plan = node.cli(&["reload", "--plan"]).exits(0);
    node.same(plan.out, "pools.x: gone: its workers are stopped\n".to_owned());
}
