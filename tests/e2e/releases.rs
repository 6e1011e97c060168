//! Going back, staying, and what goes.

use rustix::process::Signal;

use crate::node::{Node, QUICK, children_of};

#[test]
fn rollback_goes_to_the_previous_good_release_and_holds_until_unhold() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@', count: 2, {QUICK}}}"));
    let first = node.live();
    let second = node.commit(&[("README", "second\n")]);
    node.cli(&["deploy"]).exits(0);
    let live = node.live();
    node.same(live.0.clone(), second.clone());
    node.cli(&["rollback"]).exits(0).says(&[&first.1]);
    node.same(node.live(), first.clone());
    assert!(node.slots("w").iter().all(|slot| slot["release"] == first.1.as_str() && slot["state"] == "ready"));
    node.same(node.look("/deploy/held"), true.into());
    assert!(node.look("/deploy/hold/by").is_string());
    node.cli(&["status"]).exits(0).says(&["held"]);

    // A trigger while held is remembered.
    let third = node.commit(&[("README", "third\n")]);
    node.cli(&["deploy"]).exits(4).says(&["held", "hint: remembered: `selfstart unhold` deploys it"]);
    node.same(node.live(), first.clone());
    node.cli(&["unhold"]).exits(0).says(&[&third[..7]]);
    node.same((node.live().0, node.look("/deploy/phase")), (third, "idle".into()));
    node.cli(&["unhold"]).exits(0);

    node.cli(&["rollback", "--to", &second[..8]]).exits(0);
    node.same(node.live(), live);
    node.cli(&["rollback", "--to", &first.1]).exits(0);
    node.same(node.live(), first);
    node.cli(&["rollback", "--to", "20200101T000000Z-0000000"]).exits(1);
    node.cli(&["hold", "--why", "a demonstration"]).exits(0).says(&["updates are held until `selfstart unhold`: a demonstration"]);
    node.cli(&["hold"]).exits(0).says(&["updates are held already, by ", ": a demonstration"]);
    node.same(node.look("/deploy/hold/why"), "a demonstration".into());
    node.cli(&["unhold"]).exits(0).says(&["updates are let through again"]);
}

#[test]
fn a_release_that_somebody_removed_is_no_longer_listed_and_no_way_back() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"));
    let first = node.live();
    // A slot is restarted by deploys once in 10 s, which is not what is looked at here.
    node.cli(&["scale", "w=0"]).exits(0);
    node.commit(&[("README", "second\n")]);
    node.cli(&["deploy"]).exits(0);
    let second = node.live().1;
    node.commit(&[("README", "third\n")]);
    node.cli(&["deploy"]).exits(0);
    fs_err::remove_dir_all(node.root("releases").join(&second)).expect("removed");
    node.cli(&["rollback"]).exits(0).says(&[&first.1]);
    node.same(node.live(), first.clone());
    node.told(0, "release_removed", &second);
    assert!(!node.cli(&["releases"]).exits(0).out.contains(&second));
    node.cli(&["unhold"]).exits(0);
    // Nothing to go back to: nothing happened, and nothing is held.
    node.cli(&["rollback", "--to", &second]).exits(1);
    node.cli(&["rollback"]).exits(1);
    node.same((node.look("/deploy/held"), node.live()), (false.into(), first));
}

#[test]
fn unhold_answers_when_what_was_remembered_is_live_or_why_it_is_not() {
    let node = Node::new();
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), "build: {steps: ['test ! -e bad', 'test ! -e slow || sleep 3']}");
    node.boot();
    let first = node.live();
    node.cli(&["hold"]).exits(0);
    let slow = node.commit(&[("slow", "")]);
    node.cli(&["deploy"]).exits(4);
    node.cli(&["unhold", "--no-wait"]).exits(0).says(&["accepted"]);
    node.same(node.live(), first);
    node.until("what was remembered", || (node.live().0 == slow).then_some(()));
    node.idle();

    node.cli(&["hold"]).exits(0);
    node.commit(&[("bad", "")]);
    node.cli(&["deploy"]).exits(4);
    node.cli(&["unhold"]).exits(1).says(&["updates are let through again, but what was remembered is not live: build step 1 of 2 failed"]);
    node.same((node.live().0, node.look("/deploy/held")), (slow, false.into()));
}

#[test]
fn old_releases_go_but_never_one_that_a_process_lives_in() {
    let node = Node::new();
    node.configure_raw(&format!(
        "app: e2e\nroot: @DIR@/root\nsource: {{repository: @DIR@/src, branch: main}}\nrelease: {{min_free: 1MB, confirm: 0s, keep: 2}}\npools:\n  w: {{command: '@FIXTURE@', {QUICK}}}\n"
    ));
    node.boot();
    let (_, first) = node.live();
    // Somebody's shell in the first release: not a worker.
    let mut lodger = std::process::Command::new("sleep").arg("600").current_dir(node.root("releases").join(&first)).spawn().expect("sleep");
    let mut names = vec![first.clone()];
    // A slot is restarted by deploys once in 10 s, which is not what is looked at here.
    node.cli(&["scale", "w=0"]).exits(0);
    for round in 0..4 {
        node.commit(&[("README", &format!("{round}\n"))]);
        node.cli(&["deploy"]).exits(0);
        names.push(node.live().1);
    }
    let there = || {
        let mut there: Vec<String> =
            fs_err::read_dir(node.root("releases")).expect("read").filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        // The base of the next one is none.
        there.retain(|name| !name.starts_with(".spare-"));
        there.sort();
        there
    };
    let sorted = |names: &[&String]| {
        let mut names: Vec<String> = names.iter().map(|name| (*name).clone()).collect();
        names.sort();
        names
    };
    let wanted = sorted(&[&first, &names[3], &names[4]]);
    node.until(&format!("two of {names:?}, and the lodger's"), || (there() == wanted).then_some(()));
    node.cli(&["scale", "w=config"]).exits(0);
    let listed = node.cli(&["releases", "--json"]).exits(0);
    let listed: serde_json::Value = serde_json::from_str(&listed.out).expect("JSON");
    let of =
        |name: &str| listed["releases"].as_array().and_then(|all| all.iter().find(|it| it["release"] == name)).cloned().unwrap_or_default();
    node.same(of(&first)["used_by"].clone(), serde_json::json!([format!("pid {}", lodger.id())]));
    node.same(of(&names[4])["used_by"].clone(), serde_json::json!(["w/0"]));
    node.same(of(&names[4])["state"].clone(), "live".into());
    node.cli(&["releases"]).exits(0).says(&[&names[4], "w/0"]);

    lodger.kill().expect("killed");
    lodger.wait().expect("waited");
    node.commit(&[]);
    node.cli(&["deploy"]).exits(0);
    let last = node.live().1;
    let wanted = sorted(&[&names[4], &last]);
    node.until("two", || (there() == wanted).then_some(()));
}

#[test]
fn a_release_that_nobody_can_look_into_stays_and_that_is_told_once() {
    let node = Node::new();
    node.configure_raw(&format!(
        "app: e2e\nroot: @DIR@/root\nsource: {{repository: @DIR@/src, branch: main}}\nrelease: {{min_free: 1MB, confirm: 0s, keep: 1}}\npools:\n  w: {{command: '@FIXTURE@', {QUICK}}}\n"
    ));
    let own = fs_err::read_to_string("/proc/self/status").expect("ours");
    let may = own.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapPrm:")?.trim(), 16).ok()).unwrap_or(0);
    if may & (1 << 19) == 0 {
        return eprintln!("not seen: without CAP_SYS_PTRACE (capabilities(7): 19) there is nobody who may more than the agent");
    }
    // As in many a container: it may not look into processes that may more than itself, such as this test.
    node.start_with(&["setpriv", "--bounding-set", "-sys_ptrace"]);
    node.until("the control socket", || node.root("run/control.sock").exists().then_some(()));
    node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
    node.idle();
    let first = node.live().1;
    let told = || node.since(0, &["trouble"]).into_iter().filter(|event| crate::node::text_of(event).contains("cannot be removed")).count();
    // The one before the live one is kept for a rollback.
    for _ in 0..2 {
        node.commit(&[]);
        node.cli(&["deploy"]).exits(0);
    }
    let event = node.told(0, "trouble", &format!("{first} cannot be removed"));
    for part in ["cannot be looked into", "CAP_SYS_PTRACE", "process "] {
        assert!(crate::node::text_of(&event).contains(part), "{event}");
    }
    node.same(told(), 1);
    // The next look finds the same: a deploy of what is live looks again, and has nothing to tell.
    for _ in 0..3 {
        node.cli(&["deploy"]).exits(0);
    }
    node.same(told(), 1);
    assert!(node.root("releases").join(first).exists());
}

#[test]
fn a_killed_agent_is_back_and_knows_the_same_workers() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@', count: 3, {QUICK}}}"));
    let (pids, live) = (node.pids("w"), node.live());
    let agent = i32::try_from(node.look("/agent/pid").as_i64().expect("a pid")).expect("a pid");
    assert!(children_of(node.keeper()).contains(&agent));
    let mark = node.mark();
    crate::node::signal_to(agent, Signal::KILL);
    node.told(mark, "agent_restarted", "");
    node.until("the next one", || node.look("/agent/pid").as_i64().filter(|pid| *pid != i64::from(agent)));
    node.same(node.pids("w"), pids);
    node.same(node.live(), live);
    node.cli(&["wait", "--ready", "--timeout", "20s"]).exits(0);
    assert!(node.since(mark, &["worker_started", "worker_ended"]).is_empty());
}
