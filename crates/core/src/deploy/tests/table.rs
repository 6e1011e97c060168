//! The whole table: every state, every event, what comes of it.

use std::fmt::Write;

use super::*;

fn node_in(name: &str) -> Node {
    let mut node = Node::at_rest();
    let deploy = |node: &mut Node| {
        node.deploy_now(Force::No);
        node.fetched(2);
        node.working_on()
    };
    match name {
        "asleep" => return Node::new(),
        "idle" => {}
        "idle, held" => {
            node.request(Request::Hold { why: "audit".to_owned() });
        }
        "idle, drained" => {
            node.acts(Event::DrainBegun);
        }
        "waiting" => {
            node.deploy_now(Force::No);
            node.fetch_failed(FetchTrouble::Network);
        }
        "waiting, nothing live" | "waiting, pools not started" | "fetching, pools not started" => {
            node = Node::new();
            let current = (name != "waiting, nothing live").then_some(1);
            let releases: &[u32] = if current.is_some() { &[1] } else { &[] };
            node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, current, releases)));
            if name != "fetching, pools not started" {
                node.fetch_failed(FetchTrouble::Network);
            }
        }
        "fetching" => {
            node.deploy_now(Force::No);
        }
        "fetching, held" => {
            node.deploy_now(Force::No);
            node.request(Request::Hold { why: "audit".to_owned() });
        }
        "staging" => {
            deploy(&mut node);
        }
        "linking"
        | "building"
        | "building too long"
        | "building, held"
        | "building, giving way"
        | "building, newer trigger"
        | "sealing" => {
            let release = deploy(&mut node);
            node.acts(Event::Staged { release: release.clone() });
            if name != "linking" {
                node.acts(Event::Linked { release: release.clone() });
            }
            if name == "building too long" {
                node.pass(900);
                node.acts(Event::DeadlineReached);
            }
            if name == "building, held" {
                node.request(Request::Hold { why: "audit".to_owned() });
            }
            if name == "building, giving way" {
                node.request(Request::Rollback(RollbackTo::To(old(1).as_str().to_owned())));
            }
            if name == "building, newer trigger" {
                node.request(Request::Deploy { wanted: Wanted::Ref("v1".to_owned()), force: Force::No });
            }
            if name == "sealing" {
                node.acts(Event::StepDone { release: release.clone(), step: 1 });
                node.acts(Event::StepDone { release, step: 2 });
            }
        }
        "switching" | "rolling out" | "rolling back: switching" | "rolling back: waiting" | "rolling back: rolling out" => {
            deploy(&mut node);
            let release = node.build_all();
            if name != "switching" {
                node.acts(Event::Switched { release: release.clone() });
            }
            if name.starts_with("rolling back") {
                node.acts(Event::RolloutFailed { release, text: "crash".to_owned() });
            }
            if name == "rolling back: waiting" {
                node.acts(Event::SwitchFailed { release: old(1), text: "read-only".to_owned() });
            }
            if name == "rolling back: rolling out" {
                node.acts(Event::Switched { release: old(1) });
            }
        }
        "rollback: switching" => {
            node.deploy_to_end(2);
            node.request(Request::Rollback(RollbackTo::Previous));
        }
        "ending" => {
            node.acts(Event::Shutdown);
        }
        other => panic!("no such state: {other}"),
    }
    node
}

const STATES: [&str; 25] = [
    "asleep",
    "idle",
    "idle, held",
    "idle, drained",
    "waiting",
    "waiting, nothing live",
    "waiting, pools not started",
    "fetching",
    "fetching, held",
    "fetching, pools not started",
    "staging",
    "linking",
    "building",
    "building too long",
    "building, held",
    "building, giving way",
    "building, newer trigger",
    "sealing",
    "switching",
    "rolling out",
    "rolling back: switching",
    "rolling back: waiting",
    "rolling back: rolling out",
    "rollback: switching",
    "ending",
];

/// Every kind of event; answers are about what is under way, where anything is.
fn events(node: &Node) -> Vec<(&'static str, Event)> {
    let release = node.deploy.working_on().cloned().unwrap_or_else(|| old(1));
    let fetch = match node.deploy.phase() {
        Phase::Fetching { fetch, .. } => *fetch,
        _ => FetchId(1),
    };
    let step = node.deploy.build_step().map_or(1, |(step, _)| step);
    let text = || "text".to_owned();
    let ask = |what| Event::Requested { id: RequestId(99), by: "bob".to_owned(), what };
    let fetch_failed = |trouble| Event::FetchFailed { fetch, trouble, text: text() };
    let step_failed = |blame| Event::StepFailed { release: release.clone(), step, blame, what: text(), last_lines: vec![] };
    let prepare_failed = |blame| Event::PrepareFailed { release: release.clone(), blame, text: text() };
    vec![
        ("Booted", Event::Booted(found(Start::Boot, PoolsFound::NotRunning, Some(1), &[1]))),
        ("Booted again, pools running", Event::Booted(found(Start::Again, PoolsFound::Running, Some(1), &[1]))),
        ("deploy", ask(Request::Deploy { wanted: Wanted::Configured, force: Force::No })),
        ("deploy --ref --force", ask(Request::Deploy { wanted: Wanted::Ref("v2".to_owned()), force: Force::Yes })),
        ("rollback", ask(Request::Rollback(RollbackTo::Previous))),
        ("rollback --to 1", ask(Request::Rollback(RollbackTo::To(old(1).as_str().to_owned())))),
        ("hold", ask(Request::Hold { why: String::new() })),
        ("unhold", ask(Request::Unhold)),
        ("Triggered", Event::Triggered(Origin::Reload.into())),
        ("Seen, newer", Event::Seen { revision: rev(7) }),
        ("Fetched, live", Event::Fetched { fetch, revision: rev(1) }),
        ("Fetched, new", Event::Fetched { fetch, revision: rev(3) }),
        ("Fetched, former", Event::Fetched { fetch: FetchId(0), revision: rev(3) }),
        ("FetchFailed: network", fetch_failed(FetchTrouble::Network)),
        ("FetchFailed: refused", fetch_failed(FetchTrouble::Refused)),
        ("FetchFailed: no such ref", fetch_failed(FetchTrouble::NoSuchRef)),
        ("FetchFailed: disk", fetch_failed(FetchTrouble::Disk)),
        ("Staged", Event::Staged { release: release.clone() }),
        ("Linked", Event::Linked { release: release.clone() }),
        ("PrepareFailed: revision", prepare_failed(Blame::Revision)),
        ("PrepareFailed: machine", prepare_failed(Blame::Machine)),
        ("StepDone", Event::StepDone { release: release.clone(), step }),
        ("StepDone, another", Event::StepDone { release: release.clone(), step: step + 1 }),
        ("StepFailed: revision", step_failed(Blame::Revision)),
        ("StepFailed: machine", step_failed(Blame::Machine)),
        ("MarkedBuilt", Event::MarkedBuilt { release: release.clone() }),
        ("Switched", Event::Switched { release: release.clone() }),
        ("Switched, another", Event::Switched { release: old(9) }),
        ("SwitchFailed", Event::SwitchFailed { release: release.clone(), text: text() }),
        ("RolledOut", Event::RolledOut { release: release.clone() }),
        ("RolloutFailed", Event::RolloutFailed { release: release.clone(), text: text() }),
        ("RolloutFailed, another", Event::RolloutFailed { release: old(9), text: text() }),
        ("Pruned", Event::Pruned { gone: vec![old(9)], kept: vec![] }),
        ("Unwell", Event::Unwell { release: release.clone(), text: text() }),
        ("NotPruned", Event::NotPruned { ids: vec![old(9)] }),
        ("DrainBegun", Event::DrainBegun),
        ("DrainEnded", Event::DrainEnded),
        ("DeadlineReached, early", Event::DeadlineReached),
        ("DeadlineReached", Event::DeadlineReached),
        ("Shutdown", Event::Shutdown),
    ]
}

fn phase(phase: &Phase) -> String {
    match phase {
        Phase::Asleep(_) => "asleep".to_owned(),
        Phase::Idle => "idle".to_owned(),
        Phase::Waiting { why, .. } => format!("waiting ({why:?})"),
        Phase::Fetching { .. } => "fetching".to_owned(),
        Phase::Staging(_) => "staging".to_owned(),
        Phase::Linking(_) => "linking".to_owned(),
        Phase::Building { step, time: BuildTime::Until(_), .. } => format!("building {step}"),
        Phase::Building { step, time: BuildTime::Over, .. } => format!("building {step}, over"),
        Phase::Building { step, time: BuildTime::GivingWay, .. } => format!("building {step}, giving way"),
        Phase::Sealing(_) => "sealing".to_owned(),
        Phase::Switching(change) => format!("switching ({})", why(change)),
        Phase::RollingOut(change) => format!("rolling out ({})", why(change)),
        Phase::RollingBack { step, .. } => format!("rolling back ({step:?})"),
        Phase::Chores { left, .. } => format!("chores ({})", left.len()),
        Phase::Ending(_) => "ending".to_owned(),
    }
}

fn why(change: &Change) -> &'static str {
    match change.why {
        ChangeWhy::Deploy(_) => "deploy",
        ChangeWhy::Rollback(_) => "rollback",
        ChangeWhy::Repair => "repair",
    }
}

fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Save(_) => "Save".to_owned(),
        Effect::Fetch { try_no, wanted: Wanted::Configured, .. } => format!("Fetch(try {try_no})"),
        Effect::Fetch { try_no, wanted: Wanted::Ref(text), .. } => format!("Fetch({text}, try {try_no})"),
        Effect::Stage { .. } => "Stage".to_owned(),
        Effect::LinkShared { .. } => "LinkShared".to_owned(),
        Effect::RunStep { step, .. } => format!("RunStep({step})"),
        Effect::RunChore { chore, .. } => format!("RunChore({chore})"),
        Effect::EndStep { step, .. } => format!("EndStep({step})"),
        Effect::MarkBuilt { .. } => "MarkBuilt".to_owned(),
        Effect::Switch { release } => format!("Switch({release})"),
        Effect::StartPools { release, .. } => format!("StartPools({release})"),
        Effect::RollOut { release, .. } => format!("RollOut({release})"),
        Effect::Prune { ids } => format!("Prune({})", ids.len()),
        Effect::Answer { id, outcome } => {
            let outcome = match outcome {
                Outcome::Done { changed, .. } => format!("done, changed: {changed}"),
                Outcome::Failed { .. } => "failed".to_owned(),
                Outcome::Refused(Refusal::Held(_)) => "refused: held".to_owned(),
                Outcome::Refused(Refusal::Quarantined(_)) => "refused: quarantined".to_owned(),
                Outcome::Refused(other) => format!("refused: {other}"),
            };
            format!("Answer({}: {outcome})", if id.0 == 99 { "this" } else { "former" })
        }
        Effect::Tell(news) => format!("Tell({})", news.kind()),
    }
}

#[test]
fn what_each_event_does_in_each_state() {
    let mut table = String::new();
    for state in STATES {
        let node = node_in(state);
        let _ = writeln!(table, "{state}");
        let mut ignored = vec![];
        for (name, event) in events(&node) {
            let mut now = node.now;
            if name == "DeadlineReached" {
                now.mono = next_deadline(&node.deploy).unwrap_or(now.mono + Duration::from_secs(3_600));
            }
            let (next, effects) = step(node.deploy.clone(), event, now, &node.policy);
            if next == node.deploy && effects.is_empty() {
                ignored.push(name);
                continue;
            }
            let effects: Vec<String> = effects.iter().map(effect).collect();
            let _ = writeln!(table, "  {name:<28} -> {:<28} {}", phase(next.phase()), effects.join(" "));
        }
        let _ = writeln!(table, "  ignored: {}\n", ignored.join("; "));
    }
    insta::assert_snapshot!(table);
}
