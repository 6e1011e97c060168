//! Sentences.

use super::*;

fn start(n: u32) -> Effect {
    Effect::StartPools { release: old(n), revision: rev(n) }
}

#[test]
fn a_boot_at_the_live_revision_starts_the_pools_without_copy_or_build() {
    let mut node = Node::new();
    let first = node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, Some(1), &[1])));
    assert!(matches!(&first[..], [Effect::Fetch { try_no: 1, wanted: Wanted::Configured, .. }]), "{first:?}");
    assert_eq!(node.fetched(1), [start(1)]);
    assert_eq!(*node.deploy.phase(), Phase::Idle);
}

#[test]
fn a_boot_at_a_new_revision_starts_the_pools_on_it_once() {
    let mut node = Node::new();
    node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, Some(1), &[1])));
    assert!(matches!(&node.fetched(2)[..], [Effect::Stage { .. }]));
    node.pass(600);
    assert_eq!(node.acts(Event::DeadlineReached), [], "a build is not the source being out of reach");
    let release = node.build_all();
    assert_eq!(
        node.acts(Event::Switched { release: release.clone() }),
        [Effect::StartPools { release: release.clone(), revision: rev(2) }]
    );
    assert_eq!(node.acts(Event::RolledOut { release: release.clone() }), []);
    assert_eq!(node.live(), Some(release));
}

#[test]
fn a_boot_whose_build_fails_starts_the_old_good_release() {
    let mut node = Node::new();
    node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, Some(1), &[1])));
    node.fetched(2);
    let release = node.working_on();
    let effects = node.acts(Event::PrepareFailed { release, blame: Blame::Revision, text: "link out of the tree".to_owned() });
    assert!(effects.contains(&start(1)), "{effects:?}");
    assert_eq!(node.live(), Some(old(1)));
}

#[test]
fn an_unreachable_source_delays_a_boot_by_boot_timeout_and_is_then_asked_for_ever() {
    let mut node = Node::new();
    node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, Some(1), &[1])));
    let begun = node.now.mono;
    let (mut started, mut tries, mut told) = (None, 1, 0);
    for _ in 0..40 {
        let mut effects = match node.deploy.phase() {
            Phase::Fetching { .. } => node.fetch_failed(FetchTrouble::Network),
            _ => {
                let at = next_deadline(&node.deploy).expect("a next try");
                assert!(at > node.now.mono);
                let wait = node.now.mono.until(at).as_secs();
                node.pass(wait);
                node.send(Event::DeadlineReached)
            }
        };
        tries += effects.iter().filter(|e| matches!(e, Effect::Fetch { .. })).count();
        told += effects.iter().filter(|e| is_tell(e, "source_failed")).count();
        effects.retain(|effect| matches!(effect, Effect::StartPools { .. }));
        if !effects.is_empty() {
            assert_eq!(started.replace(node.now.mono), None, "once");
        }
    }
    assert_eq!(started, Some(begun + Duration::from_secs(60)));
    assert!(tries > 15, "{tries}");
    assert_eq!(told, 1, "told once per change, not per try");
    // And then it answers.
    if let Phase::Waiting { .. } = node.deploy.phase() {
        node.pass(60);
        node.send(Event::DeadlineReached);
    }
    assert!(matches!(&node.fetched(2)[..], [Effect::Stage { .. }]));
    let release = node.build_all();
    assert_eq!(node.acts(Event::Switched { release: release.clone() }), [Effect::RollOut { release, revision: rev(2) }]);
}

#[test]
fn a_source_that_refuses_us_does_not_delay_a_boot_at_all() {
    let mut node = Node::new();
    node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, Some(1), &[1])));
    assert!(node.fetch_failed(FetchTrouble::Refused).contains(&start(1)));
    assert_eq!(next_deadline(&node.deploy), Some(node.now.mono + Duration::from_secs(60)));
}

#[test]
fn an_agent_that_comes_back_minds_before_it_fetches_and_fetches_nothing_new() {
    let mut node = Node::new();
    assert_eq!(node.acts(Event::Booted(found(Start::Again, PoolsFound::NotRunning, Some(1), &[1]))), [start(1)]);
    let mut node = Node::new();
    assert_eq!(node.acts(Event::Booted(found(Start::Again, PoolsFound::Running, Some(1), &[1]))), []);
}

#[test]
fn workers_found_at_a_boot_are_neither_stopped_nor_started() {
    let mut node = Node::new();
    let effects = node.acts(Event::Booted(found(Start::Boot, PoolsFound::Running, Some(1), &[1])));
    assert!(matches!(&effects[..], [Effect::Fetch { .. }]), "{effects:?}");
    assert_eq!(node.fetched(1), []);
}

#[test]
fn a_node_with_nothing_to_start_and_no_source_says_so_and_keeps_trying() {
    let mut node = Node::new();
    node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, None, &[])));
    let effects = node.fetch_failed(FetchTrouble::Network);
    let [Effect::Tell(news)] = &effects[..] else { panic!("{effects:?}") };
    assert!(news.to_string().contains("nothing to start"), "{news}");
    assert_eq!(next_deadline(&node.deploy), Some(node.now.mono + Duration::from_secs(1)));
}

#[test]
fn a_node_whose_first_build_failed_asks_slowly_for_something_newer() {
    let mut node = Node::new();
    node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, None, &[])));
    node.fetched(1);
    let release = node.working_on();
    node.acts(Event::PrepareFailed { release, blame: Blame::Revision, text: "bad".to_owned() });
    for _ in 0..3 {
        assert_eq!(next_deadline(&node.deploy), Some(node.now.mono + Duration::from_secs(60)));
        node.pass(60);
        assert!(matches!(&node.acts(Event::DeadlineReached)[..], [Effect::Fetch { .. }]));
        assert_eq!(node.fetched(1), [], "quarantined");
    }
    node.pass(60);
    node.acts(Event::DeadlineReached);
    assert!(matches!(&node.fetched(2)[..], [Effect::Stage { .. }]));
}

#[test]
fn a_failed_step_leaves_current_alone_and_names_the_step_its_end_and_its_last_lines() {
    let mut node = Node::at_rest();
    let (id, _) = node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    node.acts(Event::Staged { release: release.clone() });
    node.acts(Event::Linked { release: release.clone() });
    let effects = node.acts(Event::StepFailed {
        release: release.clone(),
        step: 1,
        blame: Blame::Revision,
        what: "`bundle install` ended with exit 5".to_owned(),
        last_lines: vec!["Fetching rails".to_owned(), "Could not find gem".to_owned()],
    });
    let text = "build step 1 of 2 failed: `bundle install` ended with exit 5\n  | Fetching rails\n  | Could not find gem";
    assert_eq!(effects, [Effect::Answer { id, outcome: Outcome::Failed { text: text.to_owned() } }]);
    assert_eq!(node.live(), Some(old(1)));
    assert_eq!(node.deploy.quarantined()[0].revision, rev(2));
    assert_eq!(node.deploy.book().get(&release).map(|e| e.state.word()), Some("failed"));
    assert_eq!(node.deploy.verdict().map(|said| said.text.as_str()), Some(text));
    assert!(node.deploy.last_error().is_some());
}

#[test]
fn a_quarantined_revision_is_refused_until_forced_or_built_otherwise() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    node.acts(Event::PrepareFailed { release, blame: Blame::Revision, text: "bad".to_owned() });
    let (id, _) = node.deploy_now(Force::No);
    let effects = node.fetched(2);
    assert!(matches!(answers(&effects)[..], [(answered, Outcome::Refused(Refusal::Quarantined(_)))] if answered == id), "{effects:?}");
    node.deploy_now(Force::Yes);
    assert!(matches!(&node.fetched(2)[..], [Effect::Stage { .. }]));
    let release = node.working_on();
    node.acts(Event::PrepareFailed { release, blame: Blame::Revision, text: "bad".to_owned() });
    node.policy.build = build(2);
    node.acts(Event::Triggered(Origin::Reload.into()));
    assert!(matches!(&node.fetched(2)[..], [Effect::Stage { .. }]));
}

#[test]
fn a_full_disk_is_no_failure_of_the_revision() {
    let mut node = Node::at_rest();
    let (id, _) = node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    let effects = node.acts(Event::PrepareFailed { release: release.clone(), blame: Blame::Machine, text: "no space left".to_owned() });
    assert_eq!(answers(&effects).len(), 1);
    assert_eq!(answers(&effects)[0].0, id);
    assert!(effects.contains(&Effect::Prune { ids: vec![release] }), "what was half made goes: {effects:?}");
    assert_eq!(node.deploy.quarantined(), []);
    assert_eq!(next_deadline(&node.deploy), Some(node.now.mono + Duration::from_secs(1)));
    node.pass(1);
    assert!(matches!(&node.acts(Event::DeadlineReached)[..], [Effect::Fetch { try_no: 2, .. }]));
}

#[test]
fn a_build_that_takes_too_long_is_ended_and_failed() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    node.acts(Event::Staged { release: release.clone() });
    node.acts(Event::Linked { release: release.clone() });
    node.pass(899);
    assert_eq!(node.acts(Event::DeadlineReached), []);
    node.pass(1);
    assert_eq!(node.acts(Event::DeadlineReached), [Effect::EndStep { release: release.clone(), step: 1 }]);
    assert_eq!(next_deadline(&node.deploy), None);
    let what = "killed".to_owned();
    node.acts(Event::StepFailed { release, step: 1, blame: Blame::Revision, what, last_lines: vec![] });
    assert_eq!(node.deploy.quarantined()[0].why, "the build took longer than 15m, at step 1 of 2");
}

#[test]
fn a_build_that_waited_too_long_for_another_node_is_tried_again() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    node.acts(Event::Staged { release: release.clone() });
    node.acts(Event::Linked { release: release.clone() });
    node.pass(900);
    assert_eq!(node.acts(Event::DeadlineReached), [Effect::EndStep { release: release.clone(), step: 1 }]);
    let what = "not done by the node that does it".to_owned();
    node.acts(Event::StepFailed { release, step: 1, blame: Blame::Machine, what, last_lines: vec![] });
    assert_eq!(node.deploy.quarantined(), []);
    assert_eq!(next_deadline(&node.deploy), Some(node.now.mono + Duration::from_secs(1)));
}

#[test]
fn a_deploy_of_what_is_live_changes_nothing() {
    let mut node = Node::at_rest();
    let (id, _) = node.deploy_now(Force::No);
    let outcome = Outcome::Done { release: Some(old(1)), changed: false };
    assert_eq!(node.fetched(1), [Effect::Answer { id, outcome }]);
}

#[test]
fn a_changed_build_makes_a_new_release_of_the_same_revision() {
    let mut node = Node::at_rest();
    node.policy.build = build(2);
    node.acts(Event::Triggered(Origin::Reload.into()));
    assert!(matches!(&node.fetched(1)[..], [Effect::Stage { release, .. }] if *release != old(1)));
}

#[test]
fn a_failed_roll_out_goes_back_by_itself_and_is_answered_when_it_is_back() {
    let mut node = Node::at_rest();
    let (id, _) = node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.build_all();
    node.acts(Event::Switched { release: release.clone() });
    let text = "checkins/0 ended with exit 1".to_owned();
    assert_eq!(node.acts(Event::RolloutFailed { release: release.clone(), text }), [Effect::Switch { release: old(1) }]);
    assert_eq!(node.deploy.phase_name(), PhaseName::RollingBack);
    assert_eq!(node.acts(Event::Switched { release: old(1) }), [Effect::RollOut { release: old(1), revision: rev(1) }]);
    let effects = node.acts(Event::RolledOut { release: old(1) });
    assert!(matches!(answers(&effects)[..], [(answered, Outcome::Failed { .. })] if answered == id), "{effects:?}");
    assert_eq!(node.live(), Some(old(1)));
    assert_eq!(node.deploy.book().get(&release).map(|e| e.state.word()), Some("failed"));
    assert_eq!(node.deploy.quarantined()[0].revision, rev(2));
}

#[test]
fn a_way_back_that_cannot_be_written_is_tried_until_it_can() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.build_all();
    node.acts(Event::Switched { release: release.clone() });
    node.acts(Event::RolloutFailed { release, text: "crash".to_owned() });
    for wait in [1, 2, 4] {
        assert_eq!(node.acts(Event::SwitchFailed { release: old(1), text: "read-only".to_owned() }), []);
        assert_eq!(next_deadline(&node.deploy), Some(node.now.mono + Duration::from_secs(wait)));
        node.pass(wait);
        assert_eq!(node.acts(Event::DeadlineReached), [Effect::Switch { release: old(1) }]);
    }
}

#[test]
fn a_first_release_that_does_not_come_up_stays_since_there_is_nothing_to_go_back_to() {
    let mut node = Node::new();
    node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, None, &[])));
    node.fetched(1);
    let release = node.build_all();
    node.acts(Event::Switched { release: release.clone() });
    let effects = node.send(Event::RolloutFailed { release: release.clone(), text: "crash".to_owned() });
    assert!(effects.iter().any(|effect| is_tell(effect, "rollout_failed")), "{effects:?}");
    assert_eq!(node.live(), Some(release));
    assert_eq!((node.deploy.quarantined(), next_deadline(&node.deploy)), (&[][..], None));
}

#[test]
fn rollback_goes_one_back_each_time_holds_and_builds_nothing() {
    let mut node = Node::at_rest();
    let (two, three) = (node.deploy_to_end(2), node.deploy_to_end(3));
    for (from, to) in [(three, two.clone()), (two.clone(), old(1))] {
        assert_eq!(node.live(), Some(from));
        let (id, effects) = node.request(Request::Rollback(RollbackTo::Previous));
        assert_eq!(effects, [Effect::Switch { release: to.clone() }]);
        assert_eq!(node.deploy.phase_name(), PhaseName::RollingBack);
        assert!(matches!(&node.acts(Event::Switched { release: to.clone() })[..], [Effect::RollOut { .. }]));
        let outcome = Outcome::Done { release: Some(to.clone()), changed: true };
        assert_eq!(node.acts(Event::RolledOut { release: to.clone() }), [Effect::Answer { id, outcome }]);
        assert_eq!(node.deploy.held().map(|hold| hold.by.as_str()), Some("ann"));
    }
    let (_, effects) = node.request(Request::Rollback(RollbackTo::Previous));
    let [(_, Outcome::Failed { text })] = answers(&effects)[..] else { panic!("{effects:?}") };
    assert!(text.starts_with("no good release before"), "{text}");
    // Back to the newest, without building it again.
    node.request(Request::Unhold);
    node.deploy_now(Force::No);
    assert!(matches!(&node.fetched(3)[..], [Effect::Switch { .. }]));
}

#[test]
fn a_rollback_takes_the_next_good_release_that_is_still_there() {
    let mut node = Node::at_rest();
    let (two, three) = (node.deploy_to_end(2), node.deploy_to_end(3));
    node.acts(Event::Missing { releases: vec![two.clone(), three.clone()] });
    assert!(node.deploy.book().get(&two).is_none());
    assert_eq!(node.live(), Some(three), "workers may still run in it");
    let (_, effects) = node.request(Request::Rollback(RollbackTo::Previous));
    assert_eq!(effects, [Effect::Switch { release: old(1) }]);
}

#[test]
fn a_rollback_that_fails_holds_nothing_and_wants_nothing_else() {
    let mut node = Node::at_rest();
    let two = node.deploy_to_end(2);
    let (id, _) = node.request(Request::Rollback(RollbackTo::Previous));
    assert_eq!(node.deploy.held(), None, "not before it is so");
    let effects = node.acts(Event::SwitchFailed { release: old(1), text: "there is no release".to_owned() });
    assert!(matches!(answers(&effects)[..], [(answered, Outcome::Failed { .. })] if answered == id), "{effects:?}");
    assert_eq!((node.deploy.held(), node.live()), (None, Some(two)));
    assert_eq!(node.deploy.wanted().map(|stamp| stamp.revision.clone()), Some(rev(2)));
    assert!(matches!(&node.deploy_now(Force::No).1[..], [Effect::Fetch { .. }]));
}

#[test]
fn a_rollback_cut_short_holds_in_the_name_of_who_asked_for_it() {
    let mut node = Node::at_rest();
    let two = node.deploy_to_end(2);
    node.request(Request::Rollback(RollbackTo::Previous));
    let mut next = Node::of(node.saved.clone());
    let mut there = found(Start::Again, PoolsFound::Running, Some(1), &[1]);
    there.releases.push(FoundRelease { id: two, built: Some((rev(2), build(1))) });
    next.acts(Event::Booted(there));
    assert_eq!(next.deploy.held().map(|hold| hold.by.as_str()), Some("ann"));
}

#[test]
fn a_deploy_of_a_release_that_is_gone_makes_it_anew() {
    let mut node = Node::at_rest();
    let two = node.deploy_to_end(2);
    node.request(Request::Rollback(RollbackTo::Previous));
    node.acts(Event::Switched { release: old(1) });
    node.acts(Event::RolledOut { release: old(1) });
    node.request(Request::Unhold);
    node.deploy_now(Force::No);
    assert_eq!(node.fetched(2), [Effect::Switch { release: two.clone() }]);
    node.acts(Event::Missing { releases: vec![two.clone()] });
    node.acts(Event::SwitchFailed { release: two, text: "there is no release".to_owned() });
    node.pass(2);
    node.acts(Event::DeadlineReached);
    let effects = node.fetched(2);
    assert!(matches!(&effects[..], [Effect::Stage { .. }]), "{effects:?}");
}

#[test]
fn a_release_is_meant_by_its_name_or_by_its_revision() {
    let mut node = Node::at_rest();
    let two = node.deploy_to_end(2);
    let book = node.deploy.book();
    let to = |text: &str| resolve_rollback(book, &RollbackTo::To(text.to_owned()));
    assert_eq!(to(old(1).as_str()), Ok(old(1)));
    assert_eq!(to(rev(2).as_str()), Ok(two.clone()));
    assert_eq!(to(rev(1).short()), Ok(old(1)));
    assert!(matches!(to("00000"), Err(RollbackError::Ambiguous { matches, .. }) if matches.len() == 2));
    assert!(matches!(to("000"), Err(RollbackError::Unknown { .. })));
    assert!(matches!(to("abcdef0"), Err(RollbackError::Unknown { .. })));
    assert!(matches!(to(""), Err(RollbackError::Unknown { .. })));
    assert!(matches!(resolve_rollback(&Book::default(), &RollbackTo::Previous), Err(RollbackError::NothingLive)));
}

#[test]
fn a_release_that_failed_is_no_way_back() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    node.acts(Event::PrepareFailed { release: release.clone(), blame: Blame::Revision, text: "bad".to_owned() });
    let text = release.as_str().to_owned();
    assert_eq!(resolve_rollback(node.deploy.book(), &RollbackTo::To(text)), Err(RollbackError::NotWhole { release, state: "failed" }));
}

#[test]
fn a_rollback_during_a_build_ends_the_step_and_the_build_is_remembered() {
    let mut node = Node::at_rest();
    let two = node.deploy_to_end(2);
    let (deploy, _) = node.deploy_now(Force::No);
    node.fetched(3);
    let release = node.working_on();
    node.acts(Event::Staged { release: release.clone() });
    node.acts(Event::Linked { release: release.clone() });
    let (_, effects) = node.request(Request::Rollback(RollbackTo::Previous));
    assert_eq!(effects, [Effect::EndStep { release: release.clone(), step: 1 }]);
    let what = "killed".to_owned();
    let effects = node.acts(Event::StepFailed { release: release.clone(), step: 1, blame: Blame::Revision, what, last_lines: vec![] });
    assert_eq!(node.deploy.quarantined(), []);
    assert!(effects.contains(&Effect::Switch { release: old(1) }), "from {two}: {effects:?}");
    assert!(effects.contains(&Effect::Prune { ids: vec![release] }), "{effects:?}");
    let effects = node.acts(Event::Switched { release: old(1) });
    assert!(matches!(answers(&effects)[..], [(id, Outcome::Refused(Refusal::Held(_)))] if id == deploy), "{effects:?}");
    node.acts(Event::RolledOut { release: old(1) });
    let (_, effects) = node.request(Request::Unhold);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "{effects:?}");
}

#[test]
fn a_rollback_ends_a_roll_out_at_once() {
    let mut node = Node::at_rest();
    let (deploy, _) = node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.build_all();
    node.acts(Event::Switched { release: release.clone() });
    let (_, effects) = node.request(Request::Rollback(RollbackTo::Previous));
    assert_eq!(answers(&effects), [(deploy, &Outcome::Refused(Refusal::Superseded))]);
    assert!(effects.contains(&Effect::Switch { release: old(1) }));
    assert_eq!(node.acts(Event::RolloutFailed { release, text: "late".to_owned() }), []);
}

#[test]
fn a_held_node_refuses_a_deploy_remembers_it_and_does_it_when_unheld() {
    let mut node = Node::at_rest();
    let (id, effects) = node.request(Request::Hold { why: "audit".to_owned() });
    assert_eq!(effects, [Effect::Answer { id, outcome: Outcome::Done { release: Some(old(1)), changed: true } }]);
    let (id, effects) = node.deploy_now(Force::Yes);
    assert!(matches!(answers(&effects)[..], [(answered, Outcome::Refused(Refusal::Held(hold)))] if answered == id && hold.why == "audit"));
    assert_eq!(effects.len(), 1);
    let (id, effects) = node.request(Request::Unhold);
    assert!(matches!(&effects[..], [Effect::Fetch { .. }]), "answered when it is done: {effects:?}");
    assert!(matches!(&node.fetched(1)[..], [Effect::Stage { .. }]), "its --force is remembered too");
    let release = node.build_all();
    node.acts(Event::Switched { release: release.clone() });
    let effects = node.acts(Event::RolledOut { release: release.clone() });
    assert_eq!(answers(&effects), [(id, &Outcome::Done { release: Some(release), changed: true })]);
}

#[test]
fn a_new_reason_of_a_hold_takes_the_place_of_the_old_one() {
    let mut node = Node::at_rest();
    let mut hold = |why: &str| {
        let (_, effects) = node.request(Request::Hold { why: why.to_owned() });
        let [(_, Outcome::Done { changed, .. })] = answers(&effects)[..] else { panic!("{effects:?}") };
        (*changed, node.deploy.held().map(|hold| hold.why.clone()))
    };
    let is = |changed: bool, why: &str| (changed, Some(why.to_owned()));
    assert_eq!([hold("a"), hold("a"), hold("b"), hold("")], [is(true, "a"), is(false, "a"), is(true, "b"), is(false, "b")]);
}

#[test]
fn an_unhold_during_the_build_that_was_held_is_answered_with_it() {
    let mut node = Node::at_rest();
    let (deploy, _) = node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    node.request(Request::Hold { why: String::new() });
    let (unhold, effects) = node.request(Request::Unhold);
    assert_eq!(effects, []);
    let failed = Event::PrepareFailed { release, blame: Blame::Revision, text: "bad".to_owned() };
    let failed = node.acts(failed);
    assert!(matches!(answers(&failed)[..], [(a, Outcome::Failed { .. }), (b, Outcome::Failed { .. })] if (a, b) == (deploy, unhold)));
}

#[test]
fn an_unhold_of_a_drained_node_does_not_wait_for_the_end_of_the_drain() {
    let mut node = Node::at_rest();
    node.request(Request::Hold { why: String::new() });
    node.deploy_now(Force::No);
    node.acts(Event::DrainBegun);
    let (id, effects) = node.request(Request::Unhold);
    assert_eq!(answers(&effects), [(id, &Outcome::Done { release: Some(old(1)), changed: true })]);
}

#[test]
fn an_unhold_with_nothing_remembered_deploys_nothing() {
    let mut node = Node::at_rest();
    node.request(Request::Hold { why: String::new() });
    let (_, effects) = node.request(Request::Unhold);
    assert_eq!(effects.len(), 1, "{effects:?}");
    let (_, effects) = node.request(Request::Unhold);
    assert!(matches!(answers(&effects)[..], [(_, Outcome::Done { changed: false, .. })]));
}

#[test]
fn a_held_node_boots_at_once_on_what_is_live() {
    let mut node = Node::at_rest();
    node.request(Request::Hold { why: String::new() });
    let mut node = Node::of(node.saved);
    assert_eq!(node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, Some(1), &[1]))), [start(1)]);
    let (_, effects) = node.request(Request::Unhold);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "the boot's trigger is remembered: {effects:?}");
}

#[test]
fn a_hold_during_a_build_keeps_what_was_made_and_uses_it_after_unhold() {
    let mut node = Node::at_rest();
    let (id, _) = node.deploy_now(Force::Yes);
    node.fetched(1);
    let release = node.working_on();
    node.acts(Event::Staged { release: release.clone() });
    node.acts(Event::Linked { release: release.clone() });
    node.acts(Event::StepDone { release: release.clone(), step: 1 });
    node.acts(Event::StepDone { release: release.clone(), step: 2 });
    node.request(Request::Hold { why: String::new() });
    let effects = node.acts(Event::MarkedBuilt { release: release.clone() });
    assert!(matches!(answers(&effects)[..], [(answered, Outcome::Refused(Refusal::Held(_)))] if answered == id), "{effects:?}");
    assert_eq!(node.live(), Some(old(1)));
    node.request(Request::Unhold);
    assert_eq!(node.fetched(1), [Effect::Switch { release }], "forced, and yet not built twice");
}

#[test]
fn triggers_during_a_deploy_are_joined_or_the_newest_wins_and_all_are_answered() {
    let mut node = Node::at_rest();
    let (first, _) = node.deploy_now(Force::No);
    node.fetched(2);
    let (second, effects) = node.deploy_now(Force::No);
    assert_eq!(effects, []);
    let (third, _) = node.deploy_now(Force::No);
    let release = node.build_all();
    node.acts(Event::Switched { release: release.clone() });
    let effects = node.acts(Event::RolledOut { release: release.clone() });
    assert_eq!(answers(&effects).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [first]);
    let effects = node.fetched(2);
    assert_eq!(answers(&effects).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [second, third]);

    node.deploy_now(Force::No);
    let (older, _) = node.request(Request::Deploy { wanted: Wanted::Ref("v1".to_owned()), force: Force::No });
    let (_, effects) = node.request(Request::Deploy { wanted: Wanted::Ref("v2".to_owned()), force: Force::No });
    assert_eq!(answers(&effects), [(older, &Outcome::Refused(Refusal::Superseded))]);
    node.fetched(2);
    assert!(matches!(node.deploy.phase(), Phase::Fetching { job, .. } if job.trigger.wanted == Wanted::Ref("v2".to_owned())));
}

#[test]
fn a_ref_that_does_not_exist_fails_and_what_it_displaced_goes_on() {
    let mut node = Node::at_rest();
    node.acts(Event::Triggered(Origin::Reload.into()));
    node.fetch_failed(FetchTrouble::Network);
    let (id, _) = node.request(Request::Deploy { wanted: Wanted::Ref("porduction".to_owned()), force: Force::No });
    let effects = node.fetch_failed(FetchTrouble::NoSuchRef);
    assert!(matches!(answers(&effects)[..], [(answered, Outcome::Failed { .. })] if answered == id));
    assert!(matches!(node.deploy.phase(), Phase::Fetching { job, .. } if job.trigger.wanted == Wanted::Configured));
}

// The next three were found by the histories.

#[test]
fn a_ref_that_waits_outlives_the_end_of_the_agent_on_a_node_with_nothing_live() {
    let mut node = Node::new();
    node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, None, &[])));
    node.request(Request::Deploy { wanted: Wanted::Ref("v1".to_owned()), force: Force::No });
    let mut node = Node::of(node.saved);
    let effects = node.acts(Event::Booted(found(Start::Again, PoolsFound::NotRunning, None, &[])));
    assert!(matches!(&effects[..], [Effect::Fetch { wanted: Wanted::Ref(_), .. }]), "{effects:?}");
    // And what was configured is not forgotten over it.
    node.fetch_failed(FetchTrouble::NoSuchRef);
    assert!(matches!(node.deploy.phase(), Phase::Fetching { job, .. } if job.trigger.wanted == Wanted::Configured));
}

#[test]
fn a_trigger_behind_a_rollback_to_what_is_live_is_not_left_waiting() {
    let mut node = Node::at_rest();
    node.deploy_to_end(2);
    node.request(Request::Rollback(RollbackTo::Previous));
    let (second, _) = node.request(Request::Rollback(RollbackTo::Previous));
    node.deploy_now(Force::No);
    node.request(Request::Unhold);
    node.acts(Event::Switched { release: old(1) });
    let effects = node.acts(Event::RolledOut { release: old(1) });
    assert!(answers(&effects).contains(&(second, &Outcome::Done { release: Some(old(1)), changed: false })), "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "{effects:?}");
}

#[test]
fn two_refs_that_do_not_exist_do_not_hide_what_they_displaced() {
    let mut node = Node::at_rest();
    node.acts(Event::Triggered(Origin::Reload.into()));
    node.fetch_failed(FetchTrouble::Network);
    for _ in 0..2 {
        node.request(Request::Deploy { wanted: Wanted::Ref("nosuch".to_owned()), force: Force::No });
    }
    node.fetch_failed(FetchTrouble::NoSuchRef);
    node.fetch_failed(FetchTrouble::NoSuchRef);
    assert!(matches!(node.deploy.phase(), Phase::Fetching { job, .. } if job.trigger.wanted == Wanted::Configured));
}

#[test]
fn every_request_that_fails_is_told_and_a_source_once_for_each_reason() {
    let mut node = Node::at_rest();
    let failed = |effects: &[Effect]| effects.iter().filter(|effect| is_tell(effect, "request_failed")).count();
    let told = |effects: &[Effect]| effects.iter().filter(|effect| is_tell(effect, "source_failed")).count();
    node.request(Request::Deploy { wanted: Wanted::Ref("nosuch".to_owned()), force: Force::No });
    assert_eq!(failed(&node.fetch_failed(FetchTrouble::NoSuchRef)), 1);
    let what = Request::Rollback(RollbackTo::To("abcdef0".to_owned()));
    let effects = node.send(Event::Requested { id: RequestId(90), by: "ann".to_owned(), what });
    let news: Vec<String> =
        effects.iter().filter_map(|it| if let Effect::Tell(news) = it { Some(news.to_string()) } else { None }).collect();
    assert_eq!(news, ["the rollback failed: no release here is or comes from `abcdef0`"]);
    node.deploy_now(Force::No);
    assert_eq!(told(&node.fetch_failed(FetchTrouble::Refused)), 1);
    let again = |node: &mut Node, text: &str| {
        node.pass(100);
        node.acts(Event::DeadlineReached);
        let fetch = node.fetch();
        node.send(Event::FetchFailed { fetch, trouble: FetchTrouble::Refused, text: text.to_owned() })
    };
    assert_eq!(told(&again(&mut node, "no route")), 0);
    assert_eq!(told(&again(&mut node, "the key is not known")), 1);
    assert_eq!(told(&again(&mut node, "the key is not known")), 0);
    // Who asks anew is told, whatever was told before.
    node.deploy_now(Force::No);
    let fetch = node.fetch();
    let failed = Event::FetchFailed { fetch, trouble: FetchTrouble::Refused, text: "the key is not known".to_owned() };
    assert_eq!(told(&node.send(failed)), 1);
}

#[test]
fn a_way_to_make_a_release_is_only_named_with_a_full_id() {
    let node = Node::at_rest();
    let hint = |text: &str| {
        let error = resolve_rollback(node.deploy.book(), &RollbackTo::To(text.to_owned())).expect_err("unknown");
        error.to_string().contains("deploy --ref")
    };
    assert_eq!((hint("1234567"), hint(&"1234567".repeat(6)[..40])), (false, true));
}

#[test]
fn who_asks_for_a_deploy_is_told_after_three_tries_and_the_tries_go_on() {
    let mut node = Node::at_rest();
    let (id, _) = node.deploy_now(Force::No);
    for expected in [0, 0, 1, 0] {
        let effects = node.fetch_failed(FetchTrouble::Network);
        assert_eq!(answers(&effects).iter().filter(|(answered, _)| *answered == id).count(), expected);
        let at = next_deadline(&node.deploy).expect("a next try");
        node.now.mono = at;
        assert_eq!(node.acts(Event::DeadlineReached).len(), 1);
    }
}

#[test]
fn an_answer_to_a_former_fetch_changes_nothing() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    let former = node.fetch();
    node.fetch_failed(FetchTrouble::Network);
    node.pass(1);
    node.acts(Event::DeadlineReached);
    let before = node.deploy.clone();
    assert_eq!(node.acts(Event::Fetched { fetch: former, revision: rev(9) }), []);
    assert_eq!(node.deploy, before);
}

fn crash(node: Node, current: u32, more: &[FoundRelease], start: Start, pools: PoolsFound) -> (Node, Vec<Effect>) {
    let now = node.now;
    let mut next = Node::of(node.saved);
    next.now = now;
    let mut world = found(start, pools, Some(current), &[1]);
    world.releases.extend(more.iter().cloned());
    let effects = next.acts(Event::Booted(world));
    (next, effects)
}

#[test]
fn a_deploy_cut_short_before_it_was_built_is_undone_and_made_anew() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    node.acts(Event::Staged { release: release.clone() });
    let leftover = FoundRelease { id: release.clone(), built: None };
    let (mut node, effects) = crash(node, 1, &[leftover], Start::Again, PoolsFound::Running);
    assert!(matches!(&effects[..], [Effect::Prune { ids }, Effect::Fetch { .. }] if *ids == [release.clone()]), "{effects:?}");
    assert!(matches!(&node.fetched(2)[..], [Effect::Stage { release: anew, .. }] if *anew != release));
    assert_eq!(node.deploy.quarantined(), []);
}

#[test]
fn a_deploy_cut_short_after_it_was_built_goes_on_with_what_was_built() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::Yes);
    node.fetched(1);
    let release = node.build_all();
    let made = FoundRelease { id: release.clone(), built: Some((rev(1), build(1))) };
    let (mut node, effects) = crash(node, 1, &[made], Start::Again, PoolsFound::Running);
    assert!(matches!(&effects[..], [Effect::Fetch { .. }]), "{effects:?}");
    assert_eq!(node.fetched(1), [Effect::Switch { release }]);
}

#[test]
fn a_deploy_cut_short_while_it_was_marked_as_built_goes_on_if_the_mark_is_there() {
    for marked in [true, false] {
        let mut node = Node::at_rest();
        node.deploy_now(Force::Yes);
        node.fetched(1);
        let release = node.working_on();
        node.acts(Event::Staged { release: release.clone() });
        node.acts(Event::Linked { release: release.clone() });
        node.acts(Event::StepDone { release: release.clone(), step: 1 });
        let effects = node.acts(Event::StepDone { release: release.clone(), step: 2 });
        assert!(matches!(&effects[..], [Effect::MarkBuilt { .. }]), "{effects:?}");
        let left = FoundRelease { id: release.clone(), built: marked.then(|| (rev(1), build(1))) };
        let (mut node, _) = crash(node, 1, &[left], Start::Again, PoolsFound::Running);
        match &node.fetched(1)[..] {
            [Effect::Switch { release: made }] => assert!(marked && *made == release),
            [Effect::Stage { .. }] => assert!(!marked),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_live_release_whose_mark_is_gone_is_not_trusted() {
    let mut node = Node::at_rest();
    let two = node.deploy_to_end(2);
    let mut node = Node::of(node.saved);
    let mut world = found(Start::Boot, PoolsFound::NotRunning, None, &[1]);
    world.current = Some(two.clone());
    world.releases.push(FoundRelease { id: two, built: None });
    let effects = node.acts(Event::Booted(world));
    assert!(effects.contains(&Effect::Switch { release: old(1) }), "{effects:?}");
}

#[test]
fn an_agent_that_comes_back_with_work_left_starts_the_pools_before_it_fetches() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    let (_, effects) = crash(node, 1, &[], Start::Again, PoolsFound::NotRunning);
    assert!(matches!(&effects[..], [Effect::StartPools { .. }, Effect::Fetch { .. }]), "{effects:?}");
}

#[test]
fn a_deploy_cut_short_after_the_switch_is_finished() {
    for pools in [PoolsFound::Running, PoolsFound::NotRunning] {
        let mut node = Node::at_rest();
        node.deploy_now(Force::No);
        node.fetched(2);
        let release = node.build_all();
        let made = FoundRelease { id: release.clone(), built: Some((rev(2), build(1))) };
        let now = node.now;
        let mut next = Node::of(node.saved);
        next.now = now;
        let world = Found { current: Some(release.clone()), ..found(Start::Again, pools, Some(1), &[1]) };
        let effects = next.acts(Event::Booted(Found { releases: vec![on_disk(1), made], ..world }));
        let expected = match pools {
            PoolsFound::Running => Effect::RollOut { release: release.clone(), revision: rev(2) },
            PoolsFound::NotRunning => Effect::StartPools { release: release.clone(), revision: rev(2) },
        };
        assert_eq!(effects, [expected]);
        // And it can still be rolled back by itself.
        assert_eq!(next.acts(Event::RolloutFailed { release, text: "crash".to_owned() }), [Effect::Switch { release: old(1) }]);
    }
}

#[test]
fn a_build_that_ends_the_agent_each_time_is_not_tried_in_a_hot_loop() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    let mut waits = vec![];
    for _ in 0..5 {
        if let Phase::Waiting { at, .. } = node.deploy.phase() {
            let at = *at;
            waits.push(node.now.mono.until(at).as_secs());
            node.now.mono = at;
            node.acts(Event::DeadlineReached);
        }
        node.fetched(2);
        (node, _) = crash(node, 1, &[], Start::Again, PoolsFound::Running);
    }
    assert_eq!(waits, [1, 2, 4]);
}

#[test]
fn a_way_back_cut_short_is_finished() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.build_all();
    node.acts(Event::Switched { release: release.clone() });
    node.acts(Event::RolloutFailed { release: release.clone(), text: "crash".to_owned() });
    let made = FoundRelease { id: release.clone(), built: Some((rev(2), build(1))) };
    let (node, effects) = crash(node, 1, &[made], Start::Again, PoolsFound::Running);
    assert_eq!(effects, [Effect::RollOut { release: old(1), revision: rev(1) }]);
    assert_eq!(node.deploy.book().get(&release).map(|e| e.state.word()), Some("failed"));
}

#[test]
fn a_current_that_leads_nowhere_is_moved_to_the_last_good_release() {
    let mut node = Node::new();
    let mut world = found(Start::Boot, PoolsFound::NotRunning, None, &[1, 2]);
    world.releases.push(FoundRelease { id: old(3), built: None });
    let effects = node.acts(Event::Booted(world));
    assert!(effects.contains(&Effect::Switch { release: old(2) }), "{effects:?}");
    assert!(effects.contains(&Effect::Prune { ids: vec![old(3)] }), "{effects:?}");
    assert_eq!(node.acts(Event::Switched { release: old(2) }), [Effect::StartPools { release: old(2), revision: rev(2) }]);
    let effects = node.acts(Event::RolledOut { release: old(2) });
    assert!(matches!(&effects[..], [Effect::Fetch { .. }]), "{effects:?}");
}

#[test]
fn a_repair_that_cannot_be_written_is_tried_again_before_the_source_is_asked() {
    let mut node = Node::new();
    node.acts(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, None, &[1])));
    for wait in [1, 2] {
        assert_eq!(node.acts(Event::SwitchFailed { release: old(1), text: "read-only".to_owned() }), []);
        assert_eq!(next_deadline(&node.deploy), Some(node.now.mono + Duration::from_secs(wait)));
        node.pass(wait);
        assert_eq!(node.acts(Event::DeadlineReached), [Effect::Switch { release: old(1) }]);
    }
}

#[test]
fn a_drained_node_takes_no_deploy_and_starts_on_what_is_live_when_it_is_over() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.build_all();
    assert_eq!(node.acts(Event::DrainBegun), []);
    let effects = node.acts(Event::Switched { release: release.clone() });
    assert_eq!(answers(&effects).len(), 1, "current moved, no pool followed: {effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::RollOut { .. } | Effect::StartPools { .. })));
    let (_, effects) = node.deploy_now(Force::No);
    assert!(matches!(answers(&effects)[..], [(_, Outcome::Refused(Refusal::Draining))]));
    let (_, effects) = node.request(Request::Rollback(RollbackTo::Previous));
    assert!(matches!(answers(&effects)[..], [(_, Outcome::Refused(Refusal::Draining))]));
    let effects = node.acts(Event::DrainEnded);
    assert!(matches!(&effects[..], [Effect::StartPools { .. }, Effect::Fetch { .. }]), "{effects:?}");
}

#[test]
fn the_end_of_the_agent_answers_everyone_and_fails_nothing() {
    let mut node = Node::at_rest();
    let (first, _) = node.deploy_now(Force::No);
    node.fetched(2);
    let (second, _) = node.deploy_now(Force::No);
    let release = node.working_on();
    let effects = node.acts(Event::Shutdown);
    let mut ended: Vec<RequestId> = answers(&effects).iter().map(|(id, _)| *id).collect();
    ended.sort();
    assert_eq!(ended, [first, second]);
    assert_eq!(node.acts(Event::PrepareFailed { release, blame: Blame::Revision, text: "killed".to_owned() }), []);
    assert_eq!(node.deploy.quarantined(), []);
    assert!(matches!(node.saved.journal, Some(Journal::Preparing { .. })));
    let (third, effects) = node.deploy_now(Force::No);
    assert_eq!(answers(&effects), [(third, &Outcome::Refused(Refusal::Ending))]);
}

#[test]
fn an_effect_behind_a_save_that_failed_is_answered_as_the_machines_trouble() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    let effects = node.fetched(2);
    let event = effects[0].unsaved("no space left on device").expect("Stage is not carried out");
    node.acts(event);
    assert!(matches!(node.deploy.phase(), Phase::Waiting { why: WaitWhy::Machine, .. }));
    assert_eq!(node.deploy.quarantined(), []);
}

#[test]
fn old_releases_go_after_a_deploy_and_those_in_use_are_asked_for_again() {
    let mut node = Node::at_rest();
    node.policy.keep = KeepPolicy { keep: 2, keep_failed: 0 };
    node.deploy_to_end(2);
    node.deploy_now(Force::No);
    node.fetched(3);
    let three = node.build_all();
    node.acts(Event::Switched { release: three.clone() });
    let effects = node.acts(Event::RolledOut { release: three });
    assert!(effects.contains(&Effect::Prune { ids: vec![old(1)] }), "{effects:?}");
    let leaving = resolve_rollback(node.deploy.book(), &RollbackTo::To(old(1).as_str().to_owned()));
    assert!(matches!(leaving, Err(RollbackError::NotWhole { state: "being removed", .. })));
    node.acts(Event::Pruned { gone: vec![], kept: vec![old(1)] });
    node.deploy_now(Force::No);
    assert!(node.fetched(3).contains(&Effect::Prune { ids: vec![old(1)] }));
    node.acts(Event::Pruned { gone: vec![old(1)], kept: vec![] });
    assert_eq!(node.deploy.book().get(&old(1)), None);
}

#[test]
fn status_tells_wanted_fetched_built_and_live_apart() {
    let mut node = Node::at_rest();
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.build_all();
    node.acts(Event::Switched { release: release.clone() });
    node.acts(Event::RolledOut { release: release.clone() });
    node.deploy_now(Force::No);
    node.fetched(3);
    let of = |stamp: Option<&Stamp>| stamp.map(|stamp| stamp.revision.clone());
    assert_eq!((of(node.deploy.wanted()), of(node.deploy.fetched())), (Some(rev(3)), Some(rev(3))));
    assert_eq!(node.deploy.built().map(|entry| entry.revision.clone()), Some(rev(2)));
    assert_eq!(node.live(), Some(release));
    assert_eq!(node.deploy.phase_name().as_str(), "staging");
}

/// As written by version 0.1.0; must be read for ever.
const SAVED_0_1_0: &str = r#"{"book":[{"id":"20200101T000001Z-0000001","revision":"0000001000000000000000000000000000000000","build":"build-1",
"state":"live","staged_at":1,"built_at":2,"live_at":3,"proven":true,"leaving":false},{"id":"20200101T000002Z-0000002",
"revision":"0000002000000000000000000000000000000000","build":"build-1","state":{"failed":{"why":"bad"}},"staged_at":4}],
"held":{"by":"ann","at":5,"why":"audit"},
"quarantined":[{"revision":"0000002000000000000000000000000000000000","build":"build-1","why":"bad","at":6}],
"pending":{"wanted":{"ref":"v1"},"force":"yes","origin":"operator"},
"journal":{"doing":"changing","release":"20200101T000001Z-0000001","revision":"0000001000000000000000000000000000000000","previous":null,
"why":{"deploy":{"wanted":"configured","force":"no","origin":"boot","cuts":1}}},"last_error":{"at":7,"text":"bad"}}"#;

#[test]
fn what_was_saved_is_read_back_also_from_an_older_version() {
    let saved: Saved = serde_json::from_str(SAVED_0_1_0).expect("the fixture is read");
    assert_eq!(saved.book.live().map(|entry| entry.proven), Some(true));
    assert!(matches!(saved.pending, Some(Trigger { force: Force::Yes, .. })));
    let text = serde_json::to_string(&saved).expect("it is written");
    assert_eq!(serde_json::from_str::<Saved>(&text).expect("it is read"), saved);
    assert_eq!(serde_json::from_str::<Saved>("{}").expect("nothing is something"), Saved::default());
}

#[test]
fn before_it_is_booted_it_shows_what_a_former_agent_was_cut_short_in() {
    let mut node = Node::at_rest();
    let shown = |node: &Node| Deploy::new(node.deploy.saved()).phase_name().as_str();
    let mut seen = vec![shown(&node)];
    node.deploy_now(Force::No);
    seen.push(shown(&node));
    node.fetched(2);
    seen.push(shown(&node));
    let release = node.build_all();
    seen.push(shown(&node));
    node.acts(Event::Switched { release: release.clone() });
    seen.push(shown(&node));
    node.acts(Event::RolloutFailed { release, text: "bad".to_owned() });
    seen.push(shown(&node));
    assert_eq!(seen, ["idle", "fetching", "staging", "switching", "switching", "rolling_back"]);
}

/// A node whose first build step of revision 2 runs.
fn building_two(supersede: bool, wanted: Wanted) -> (Node, ReleaseId) {
    let mut node = Node::at_rest();
    node.policy.supersede = supersede;
    node.request(Request::Deploy { wanted, force: Force::No });
    node.fetched(2);
    let release = node.working_on();
    node.acts(Event::Staged { release: release.clone() });
    node.acts(Event::Linked { release: release.clone() });
    (node, release)
}

#[test]
fn a_newer_push_stops_the_running_build_if_that_is_wished_for() {
    let (mut node, release) = building_two(true, Wanted::Configured);
    assert_eq!(node.acts(Event::Seen { revision: rev(2) }), [], "what is being built is no news");
    assert_eq!(node.acts(Event::Triggered(Origin::Reload.into())), []);
    assert_eq!(node.acts(Event::Seen { revision: rev(3) }), [Effect::EndStep { release: release.clone(), step: 1 }]);
    assert_eq!(node.acts(Event::Seen { revision: rev(3) }), [], "once");
    let what = "killed".to_owned();
    let effects = node.acts(Event::StepFailed { release: release.clone(), step: 1, blame: Blame::Revision, what, last_lines: vec![] });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "{effects:?}");
    assert!(effects.contains(&Effect::Prune { ids: vec![release] }), "{effects:?}");
    assert_eq!(node.deploy.quarantined(), [], "it is not to blame");
    node.fetched(3);
    node.build_all();
}

#[test]
fn a_build_goes_on_whatever_is_pushed_unless_told_otherwise_or_when_it_was_asked_for_by_name() {
    for (supersede, wanted) in [(false, Wanted::Configured), (true, Wanted::Ref("v2".to_owned()))] {
        let (mut node, release) = building_two(supersede, wanted);
        assert_eq!(node.acts(Event::Seen { revision: rev(3) }), []);
        assert!(matches!(&node.acts(Event::StepDone { release, step: 1 })[..], [Effect::RunStep { step: 2, .. }]));
    }
}

#[test]
fn a_release_whose_source_has_something_newer_before_its_first_step_is_not_built() {
    let mut node = Node::at_rest();
    node.policy.supersede = true;
    node.deploy_now(Force::No);
    node.fetched(2);
    let release = node.working_on();
    node.acts(Event::Seen { revision: rev(3) });
    node.acts(Event::Staged { release: release.clone() });
    let effects = node.acts(Event::Linked { release });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "{effects:?}");
    // The source is asked: what was seen before that does not count any more, also when it is what was being built.
    node.fetched(2);
    node.build_all();
}

#[test]
fn what_could_not_be_removed_for_want_of_a_record_is_asked_for_again_soon() {
    let mut node = Node::at_rest();
    node.acts(Event::NotPruned { ids: vec![old(9)] });
    let due = next_deadline(&node.deploy).expect("a time");
    assert!(due <= node.now.mono + Duration::from_secs(10), "{due:?}");
}

#[test]
fn the_run_whose_boot_was_taken_is_remembered() {
    let mut node = Node::new();
    node.send(Event::Booted(Found { run: Some("run 7".to_owned()), ..found(Start::Boot, PoolsFound::NotRunning, Some(1), &[1]) }));
    assert_eq!(node.saved.run.as_deref(), Some("run 7"));
}

/// A node on which revision 2 went live over release 1 just now.
fn on_probation() -> (Node, ReleaseId) {
    let mut node = Node::at_rest();
    let release = node.deploy_to_end(2);
    (node, release)
}

fn unwell(release: &ReleaseId) -> Event {
    Event::Unwell { release: release.clone(), text: "w/0 is quarantined: ended with exit 1".to_owned() }
}

#[test]
fn a_release_that_crash_loops_in_its_probation_goes_back_by_itself_and_is_quarantined() {
    let (mut node, release) = on_probation();
    node.pass(299);
    assert_eq!(node.acts(unwell(&release)), [Effect::Switch { release: old(1) }]);
    assert_eq!(node.deploy.phase_name(), PhaseName::RollingBack);
    node.acts(Event::Switched { release: old(1) });
    node.acts(Event::RolledOut { release: old(1) });
    assert_eq!(node.live(), Some(old(1)));
    assert_eq!(node.deploy.held(), None, "a newer push comes through");
    let why = &node.deploy.quarantined()[0].why;
    assert!(why.contains("did not stand its probation: w/0 is quarantined"), "{why}");
    assert_eq!(node.deploy.book().get(&release).map(|entry| entry.state.word()), Some("failed"));
    node.deploy_now(Force::No);
    assert!(matches!(answers(&node.fetched(2))[..], [(_, Outcome::Refused(Refusal::Quarantined(_)))]));
}

#[test]
fn after_its_probation_a_release_stays_whatever_becomes_of_it() {
    let (mut node, release) = on_probation();
    node.pass(300);
    assert_eq!(node.acts(unwell(&release)), []);
    assert_eq!(node.live(), Some(release));
}

#[test]
fn neither_a_first_deploy_nor_a_rollback_nor_another_release_is_on_probation() {
    let mut first = Node::new();
    first.send(Event::Booted(found(Start::Boot, PoolsFound::NotRunning, None, &[])));
    first.fetched(2);
    let release = first.build_all();
    first.acts(Event::Switched { release: release.clone() });
    first.acts(Event::RolledOut { release: release.clone() });
    assert_eq!(first.acts(unwell(&release)), []);

    let (mut node, _) = on_probation();
    assert_eq!(node.acts(unwell(&old(1))), [], "late news of what was live before");
    node.request(Request::Rollback(RollbackTo::Previous));
    node.acts(Event::Switched { release: old(1) });
    node.acts(Event::RolledOut { release: old(1) });
    assert_eq!(node.acts(unwell(&old(1))), []);
}

#[test]
fn whoever_holds_the_node_wants_nothing_to_move_also_not_back() {
    let (mut node, release) = on_probation();
    node.request(Request::Hold { why: String::new() });
    assert!(!switches(&node.acts(unwell(&release))));
    // It is not forgotten: who ends the hold in time lets it go back.
    let (_, effects) = node.request(Request::Unhold);
    assert!(effects.contains(&Effect::Switch { release: old(1) }), "{effects:?}");

    let (mut node, release) = on_probation();
    node.request(Request::Hold { why: String::new() });
    node.acts(unwell(&release));
    node.pass(300);
    assert!(!switches(&node.request(Request::Unhold).1), "somebody had time to see to it");
    assert_eq!(node.live(), Some(release));
}

#[test]
fn a_hold_after_the_failure_keeps_it_where_it_is_too() {
    for ask in [Request::Hold { why: String::new() }, Request::Rollback(RollbackTo::To("20261122T101530Z-0000002".to_owned()))] {
        let (mut node, release) = on_probation();
        assert_eq!(release.as_str(), "20261122T101530Z-0000002");
        node.deploy_now(Force::No);
        node.fetched(3);
        let next = node.working_on();
        node.acts(Event::Staged { release: next.clone() });
        node.acts(Event::Linked { release: next.clone() });
        node.acts(unwell(&release));
        node.request(ask);
        let what = "killed".to_owned();
        let effects = node.acts(Event::StepFailed { release: next, step: 1, blame: Blame::Machine, what, last_lines: vec![] });
        assert!(!switches(&effects), "{effects:?}");
        assert_eq!(node.live(), Some(release));
    }
}

fn switches(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Switch { .. }))
}

#[test]
fn a_newer_release_that_does_not_come_up_does_not_end_the_probation_of_what_it_goes_back_to() {
    let newer = |node: &mut Node| {
        node.deploy_now(Force::No);
        node.fetched(3);
        node.build_all()
    };
    let (mut node, release) = on_probation();
    let next = newer(&mut node);
    node.acts(Event::Switched { release: next.clone() });
    node.acts(Event::RolloutFailed { release: next, text: "w/0 ended".to_owned() });
    node.acts(Event::Switched { release: release.clone() });
    node.acts(Event::RolledOut { release: release.clone() });
    assert!(node.acts(unwell(&release)).contains(&Effect::Switch { release: old(1) }));

    let (mut node, release) = on_probation();
    let next = newer(&mut node);
    node.acts(Event::SwitchFailed { release: next, text: "no space".to_owned() });
    assert!(node.acts(unwell(&release)).contains(&Effect::Switch { release: old(1) }));

    // Where it came up it has one of its own, and the former one is over.
    let (mut node, release) = on_probation();
    let next = newer(&mut node);
    node.acts(Event::Switched { release: next.clone() });
    node.acts(Event::RolledOut { release: next.clone() });
    assert!(!switches(&node.acts(unwell(&release))));
    assert!(node.acts(unwell(&next)).contains(&Effect::Switch { release }));
}

#[test]
fn what_has_failed_in_its_probation_goes_back_after_a_reboot_too() {
    let mut node = Node::at_rest();
    node.pass(5_000);
    let release = node.deploy_to_end(2);
    node.deploy_now(Force::No);
    node.fetched(3);
    node.acts(unwell(&release));
    let mut next = Node::of(node.saved.clone());
    let releases = vec![on_disk(1), FoundRelease { id: release.clone(), built: Some((rev(2), build(1))) }];
    let world = found(Start::Boot, PoolsFound::NotRunning, Some(1), &[]);
    let effects = next.acts(Event::Booted(Found { current: Some(release), releases, ..world }));
    assert!(effects.contains(&Effect::Switch { release: old(1) }), "{effects:?}");
}

#[test]
fn a_rollback_whose_pools_do_not_come_up_is_held_for_what_is_so() {
    let mut node = Node::at_rest();
    let two = node.deploy_to_end(2);
    let (id, _) = node.request(Request::Rollback(RollbackTo::Previous));
    node.acts(Event::Switched { release: old(1) });
    node.acts(Event::RolloutFailed { release: old(1), text: "w/0 ended".to_owned() });
    node.acts(Event::Switched { release: two.clone() });
    let effects = node.acts(Event::RolledOut { release: two.clone() });
    assert!(matches!(answers(&effects)[..], [(answered, Outcome::Failed { .. })] if answered == id), "{effects:?}");
    assert_eq!(node.deploy.held().map(|hold| hold.why.clone()), Some(format!("the rollback to {} failed: back on {two}", old(1))));
    assert_eq!(node.deploy.wanted().map(|stamp| stamp.revision.clone()), Some(rev(2)));
    assert_eq!((node.live(), node.deploy.quarantined().len()), (Some(two), 0));
}

#[test]
fn a_build_gives_way_to_the_way_back_and_is_made_again_after_it() {
    let (mut node, release) = on_probation();
    node.deploy_now(Force::No);
    node.fetched(3);
    let next = node.working_on();
    node.acts(Event::Staged { release: next.clone() });
    node.acts(Event::Linked { release: next.clone() });
    assert_eq!(node.acts(unwell(&release)), [Effect::EndStep { release: next.clone(), step: 1 }]);
    let what = "killed".to_owned();
    let effects = node.acts(Event::StepFailed { release: next, step: 1, blame: Blame::Machine, what, last_lines: vec![] });
    assert!(effects.contains(&Effect::Switch { release: old(1) }), "{effects:?}");
    node.acts(Event::Switched { release: old(1) });
    let effects = node.acts(Event::RolledOut { release: old(1) });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "{effects:?}");
    node.fetched(3);
    node.build_all();
}

#[test]
fn a_probation_outlives_the_agent_and_a_failure_in_it_that_was_not_acted_on_too() {
    for failed in [false, true] {
        let (mut node, release) = on_probation();
        if failed {
            // It is known, and the agent ends before the switch.
            node.deploy_now(Force::No);
            node.fetched(3);
            node.acts(unwell(&release));
        }
        let mut next = Node::of(node.saved.clone());
        next.now = node.now;
        let releases = vec![on_disk(1), FoundRelease { id: release.clone(), built: Some((rev(2), build(1))) }];
        let world = found(Start::Again, PoolsFound::Running, Some(1), &[]);
        let effects = next.acts(Event::Booted(Found { current: Some(release.clone()), releases, ..world }));
        let effects = if failed { effects } else { next.acts(unwell(&release)) };
        assert!(effects.contains(&Effect::Switch { release: old(1) }), "{failed}: {effects:?}");
    }
}

#[test]
fn after_a_reboot_there_is_no_probation_from_before_it() {
    let (node, release) = on_probation();
    let mut next = Node::of(node.saved.clone());
    next.now.mono = MonoTime::from_boot(Duration::from_secs(3));
    let releases = vec![on_disk(1), FoundRelease { id: release.clone(), built: Some((rev(2), build(1))) }];
    let world = found(Start::Again, PoolsFound::NotRunning, Some(1), &[]);
    next.acts(Event::Booted(Found { current: Some(release.clone()), releases, ..world }));
    assert_eq!(next.acts(unwell(&release)), []);
}
