//! Hooks, and what undoes the steps of a deploy that failed.

use super::*;

fn with_hooks() -> Node {
    let mut node = Node::at_rest();
    node.policy.undo = [1, 2].into();
    node.policy.hooks = HookCounts { before_switch: 2, after_switch: 1, after_rollout: 1, after_rollback: 1, on_failed: 1 };
    node
}

/// Builds up to the mark; returns the release and what comes then.
fn marked(node: &mut Node) -> (ReleaseId, Vec<Effect>) {
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    node.acts(Event::Staged { release: release.clone() });
    node.acts(Event::Linked { release: release.clone() });
    node.acts(Event::StepDone { release: release.clone(), step: 1 });
    node.acts(Event::StepDone { release: release.clone(), step: 2 });
    let effects = node.acts(Event::MarkedBuilt { release: release.clone() });
    (release, effects)
}

fn next(effects: &[Effect]) -> Option<(ReleaseId, Chore)> {
    effects.iter().find_map(|effect| match effect {
        Effect::RunChore { release, chore, .. } => Some((release.clone(), *chore)),
        _ => None,
    })
}

/// Lets chores be done as they come; returns them and the effects of the last.
fn all_done(node: &mut Node, mut effects: Vec<Effect>) -> (Vec<(ReleaseId, Chore)>, Vec<Effect>) {
    let mut done = vec![];
    while let Some((release, chore)) = next(&effects) {
        done.push((release.clone(), chore));
        effects = node.acts(Event::ChoreDone { release, chore });
    }
    (done, effects)
}

fn failed(release: &ReleaseId, chore: Chore) -> Event {
    let (release, what, last_lines) = (release.clone(), "`./bin/x` ended with exit 1".to_owned(), vec!["no".to_owned()]);
    Event::ChoreFailed { release, chore, blame: Blame::Revision, what, last_lines }
}

#[test]
fn hooks_are_run_in_their_places_one_after_the_other_and_who_asked_waits_for_them() {
    let mut node = with_hooks();
    let (release, effects) = marked(&mut node);
    let (done, effects) = all_done(&mut node, effects);
    assert_eq!(done, [(release.clone(), Chore::BeforeSwitch(1)), (release.clone(), Chore::BeforeSwitch(2))]);
    assert_eq!(effects, [Effect::Switch { release: release.clone() }]);
    let effects = node.acts(Event::Switched { release: release.clone() });
    let (done, effects) = all_done(&mut node, effects);
    assert_eq!(done, [(release.clone(), Chore::AfterSwitch(1))]);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::RollOut { .. })), "{effects:?}");
    let effects = node.acts(Event::RolledOut { release: release.clone() });
    assert_eq!(answers(&effects), []);
    let (done, effects) = all_done(&mut node, effects);
    assert_eq!(done, [(release, Chore::AfterRollout(1))]);
    assert!(matches!(answers(&effects)[..], [(_, Outcome::Done { changed: true, .. })]), "{effects:?}");
}

#[test]
fn a_step_that_fails_undoes_those_before_it_that_were_run_here_the_last_first() {
    let mut node = with_hooks();
    node.policy.steps = 4;
    node.policy.undo = [1, 2, 3, 4].into();
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    node.acts(Event::Staged { release: release.clone() });
    node.acts(Event::Linked { release: release.clone() });
    node.acts(Event::StepDone { release: release.clone(), step: 1 });
    node.acts(Event::StepSkipped { release: release.clone(), step: 2 });
    node.acts(Event::StepDone { release: release.clone(), step: 3 });
    let what = "`b` ended with exit 5".to_owned();
    let effects = node.acts(Event::StepFailed { release: release.clone(), step: 4, blame: Blame::Revision, what, last_lines: vec![] });
    assert_eq!(answers(&effects), [], "not before it is undone");
    let (done, effects) = all_done(&mut node, effects);
    assert_eq!(done.iter().map(|(_, chore)| *chore).collect::<Vec<_>>(), [Chore::Undo(3), Chore::Undo(1), Chore::OnFailed(1)]);
    assert!(matches!(answers(&effects)[..], [(_, Outcome::Failed { .. })]), "{effects:?}");
    let state = node.deploy.book().get(&release).map(|entry| entry.state.clone());
    assert!(matches!(state, Some(ReleaseState::Failed { .. })), "kept for inspection: {state:?}");
}

#[test]
fn a_hook_before_the_switch_that_fails_is_a_failed_build() {
    let mut node = with_hooks();
    let (release, _) = marked(&mut node);
    let effects = node.acts(failed(&release, Chore::BeforeSwitch(1)));
    let (done, effects) = all_done(&mut node, effects);
    assert_eq!(done.iter().map(|(_, chore)| *chore).collect::<Vec<_>>(), [Chore::Undo(2), Chore::Undo(1), Chore::OnFailed(1)]);
    let [(_, Outcome::Failed { text })] = answers(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(text, "hooks.before_switch 1 failed: `./bin/x` ended with exit 1\n  | no");
    assert_eq!((node.live(), node.deploy.quarantined().len()), (Some(old(1)), 1));
}

#[test]
fn the_machines_trouble_with_a_hook_before_the_switch_builds_nothing_anew() {
    let mut node = with_hooks();
    let (release, _) = marked(&mut node);
    let (chore, what) = (Chore::BeforeSwitch(1), "killed".to_owned());
    node.acts(Event::ChoreFailed { release: release.clone(), chore, blame: Blame::Machine, what, last_lines: vec![] });
    node.pass(60);
    node.acts(Event::DeadlineReached);
    assert_eq!(next(&node.fetched(2)), Some((release.clone(), chore)));
    // And what was run for it is not forgotten.
    let (done, _) = {
        let effects = node.acts(failed(&release, chore));
        all_done(&mut node, effects)
    };
    assert_eq!(done.first(), Some(&(release, Chore::Undo(2))));
}

#[test]
fn a_hook_after_the_switch_that_fails_goes_back_and_undoes_when_the_pools_are_back() {
    for rollout_fails in [false, true] {
        let mut node = with_hooks();
        let (release, effects) = marked(&mut node);
        all_done(&mut node, effects);
        let effects = node.acts(Event::Switched { release: release.clone() });
        let effects = if rollout_fails {
            all_done(&mut node, effects);
            node.acts(Event::RolloutFailed { release: release.clone(), text: "crash".to_owned() })
        } else {
            node.acts(failed(&release, Chore::AfterSwitch(1)))
        };
        assert!(effects.contains(&Effect::Switch { release: old(1) }), "{effects:?}");
        node.acts(Event::Switched { release: old(1) });
        let effects = node.acts(Event::RolledOut { release: old(1) });
        let (done, effects) = all_done(&mut node, effects);
        let undone = [Chore::Undo(2), Chore::Undo(1), Chore::OnFailed(1)].map(|chore| (release.clone(), chore));
        assert_eq!(done, [vec![(old(1), Chore::AfterRollback(1))], undone.to_vec()].concat());
        assert!(matches!(answers(&effects)[..], [(_, Outcome::Failed { .. })]), "{effects:?}");
    }
}

#[test]
fn an_operators_rollback_and_the_end_of_a_probation_undo_no_step() {
    let mut node = with_hooks();
    let (release, effects) = marked(&mut node);
    all_done(&mut node, effects);
    let effects = node.acts(Event::Switched { release: release.clone() });
    all_done(&mut node, effects);
    let effects = node.acts(Event::RolledOut { release: release.clone() });
    all_done(&mut node, effects);
    let mut other = Node::of(node.saved.clone());
    (other.deploy, other.policy, other.now) = (node.deploy.clone(), node.policy.clone(), node.now);

    node.request(Request::Rollback(RollbackTo::Previous));
    node.acts(Event::Switched { release: old(1) });
    let effects = node.acts(Event::RolledOut { release: old(1) });
    assert_eq!(all_done(&mut node, effects).0, [(old(1), Chore::AfterRollback(1))]);

    other.acts(Event::Unwell { release: release.clone(), text: "w/0".to_owned() });
    other.acts(Event::Switched { release: old(1) });
    let effects = other.acts(Event::RolledOut { release: old(1) });
    assert_eq!(all_done(&mut other, effects).0, [(old(1), Chore::AfterRollback(1)), (release, Chore::OnFailed(1))]);
}

#[test]
fn what_fails_beside_the_deploy_is_told_and_the_rest_is_run_all_the_same() {
    let mut node = with_hooks();
    let (release, _) = marked(&mut node);
    node.acts(failed(&release, Chore::BeforeSwitch(1)));
    let effects = node.send(failed(&release, Chore::Undo(2)));
    assert!(effects.iter().any(|effect| is_tell(effect, "hook_failed")), "{effects:?}");
    assert_eq!(next(&effects), Some((release, Chore::Undo(1))));
}

#[test]
fn a_kill_in_the_middle_goes_on_from_there() {
    let cut = |node: &Node, release: &ReleaseId, current: &ReleaseId| {
        let mut next = Node::of(node.saved.clone());
        next.policy = node.policy.clone();
        let releases = vec![on_disk(1), FoundRelease { id: release.clone(), built: Some((rev(2), build(1))) }];
        let world = found(Start::Again, PoolsFound::Running, Some(1), &[]);
        let effects = next.acts(Event::Booted(Found { current: Some(current.clone()), releases, ..world }));
        (next, effects)
    };
    // Undoing.
    let mut node = with_hooks();
    let (release, _) = marked(&mut node);
    node.acts(failed(&release, Chore::BeforeSwitch(1)));
    node.acts(Event::ChoreDone { release: release.clone(), chore: Chore::Undo(2) });
    let (mut after, effects) = cut(&node, &release, &old(1));
    let (done, _) = all_done(&mut after, effects);
    assert_eq!(done.iter().map(|(_, chore)| *chore).collect::<Vec<_>>(), [Chore::Undo(1), Chore::OnFailed(1)]);

    // Before the switch: from the first hook, and what ran is known if it fails now.
    let mut node = with_hooks();
    let (release, _) = marked(&mut node);
    node.acts(Event::ChoreDone { release: release.clone(), chore: Chore::BeforeSwitch(1) });
    let (mut after, _) = cut(&node, &release, &old(1));
    assert_eq!(next(&after.fetched(2)), Some((release.clone(), Chore::BeforeSwitch(1))));
    let effects = after.acts(failed(&release, Chore::BeforeSwitch(1)));
    assert_eq!(next(&effects), Some((release.clone(), Chore::Undo(2))));

    // After it.
    let mut node = with_hooks();
    let (release, effects) = marked(&mut node);
    all_done(&mut node, effects);
    node.acts(Event::Switched { release: release.clone() });
    let (_, effects) = cut(&node, &release, &release);
    assert_eq!(next(&effects), Some((release, Chore::AfterSwitch(1))));
}
