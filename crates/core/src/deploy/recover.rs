//! What a new agent makes of what the former one left: its last [`Saved`](crate::deploy::Saved), and the disk, which is right
//! where they differ.

use crate::deploy::saved::{ChangeKind, Journal};
use crate::deploy::step::{Turn, join};
use crate::deploy::{
    BackStep, Book, Change, ChangeWhy, Effect, Entry, Fingerprint, Found, FoundRelease, Job, Mode, News, Origin, Phase, Pools, PoolsFound,
    ReleaseState, Start,
};
use crate::id::{ReleaseId, Revision};
use crate::time::WallTime;

/// Brings the book in line with the disk: what is gone is forgotten, what is whole by its mark is whole, what is not is not.
///
/// Returns what the book said was live before.
fn reconcile(book: &mut Book, found: &[FoundRelease], current: Option<&ReleaseId>, at: WallTime) -> Option<ReleaseId> {
    let said_live = book.live().map(|entry| entry.id.clone());
    let on_disk = |id: &ReleaseId| found.iter().find(|one| one.id == *id);
    book.retain(|entry| on_disk(&entry.id).is_some());
    for entry in book.iter_mut() {
        entry.leaving = false;
        let whole = on_disk(&entry.id).is_some_and(|one| one.built.is_some());
        entry.state = match (std::mem::replace(&mut entry.state, ReleaseState::Staged), whole) {
            (ReleaseState::Failed { why }, _) => ReleaseState::Failed { why },
            (_, false) => ReleaseState::Staged,
            (ReleaseState::Staged, true) => ReleaseState::Built,
            (ReleaseState::Live, true) => ReleaseState::Retired,
            (state, true) => state,
        };
        if entry.is_whole() && entry.built_at.is_none() {
            entry.built_at = Some(at);
        }
    }
    // Unknown ones (the state was lost) are the oldest; among them the names are all there is to go by, the last being the newest.
    let mut unknown: Vec<&FoundRelease> = found.iter().filter(|one| book.get(&one.id).is_none()).collect();
    unknown.sort_by(|a, b| b.id.cmp(&a.id));
    for one in unknown {
        // A directory that is not whole has no revision to show: only its name, so that it is removed.
        let (revision, build, state) = match &one.built {
            Some((revision, build)) => (revision.clone(), build.clone(), ReleaseState::Retired),
            None => (Revision::none(), Fingerprint(String::new()), ReleaseState::Staged),
        };
        let built_at = one.built.is_some().then_some(at);
        let proven = one.built.is_some();
        book.push_oldest(Entry {
            id: one.id.clone(),
            revision,
            build,
            state,
            staged_at: at,
            built_at,
            live_at: None,
            proven,
            leaving: false,
        });
    }
    if let Some(current) = current {
        // Failed ones that `current` still points to are whole: their roll out failed, and the way back was cut short.
        if on_disk(current).is_some_and(|one| one.built.is_some())
            && let Some(entry) = book.get_mut(current)
        {
            entry.state = ReleaseState::Live;
        }
    }
    said_live
}

/// Finishes or undoes what was under way, starts the pools in time, and lets a boot be a trigger.
pub(super) fn boot(turn: &mut Turn<'_>, journal: Option<Journal>, found: Found) {
    let now = turn.now;
    turn.deploy.mode = found.mode;
    turn.deploy.run = found.run;
    // After a reboot its clock is another one; then it counts as stood, for workers that crash now are started by what is live anyway. Not
    // if it has failed already: then what is live is known to be bad.
    let sooner = turn.deploy.probation.take().filter(|it| it.failed.is_some() || it.until <= now.mono + turn.policy.probation);
    turn.deploy.probation = sooner;
    turn.deploy.pools = match (found.pools, found.start) {
        (PoolsFound::Running, _) => Pools::Started,
        (PoolsFound::NotRunning, Start::Again) => Pools::NotStarted { until: now.mono },
        (PoolsFound::NotRunning, Start::Boot) => Pools::NotStarted { until: now.mono + turn.policy.boot_timeout },
    };
    let said_live = reconcile(&mut turn.deploy.book, &found.releases, found.current.as_ref(), now.wall);
    let behind = said_live.filter(|said| turn.deploy.live().is_some_and(|live| live.id != *said));

    let resumed = journal.is_some_and(|journal| resume(turn, journal));
    let live = turn.deploy.live().map(|entry| (entry.id.clone(), entry.revision.clone()));
    match live {
        _ if resumed => {}
        Some((release, revision)) => {
            if let Some(previous) = behind
                && turn.deploy.pools == Pools::Started
            {
                // The link moved and the book does not know it: the workers may run what was live before.
                tell(turn, format!("`current` points to {release}, not to {previous}: the pools follow"));
                turn.follow(Change { release, revision, previous: Some(previous), why: ChangeWhy::Repair });
            }
        }
        None => {
            if let Some((release, revision)) = turn.deploy.book.last_good().map(|entry| (entry.id.clone(), entry.revision.clone())) {
                tell(turn, format!("`current` leads to no whole release: it is moved to {release}, the last good one"));
                turn.switch(release, revision, ChangeWhy::Repair);
            }
        }
    }
    let nothing_to_do = turn.deploy.live().is_none() && turn.deploy.phase == Phase::Idle && turn.deploy.next.is_none();
    if found.start == Start::Boot || nothing_to_do {
        want(turn, Job::configured(Origin::Boot));
    }
    turn.prune();
}

/// Adds a job that is newer than the one that waits.
fn want(turn: &mut Turn<'_>, mut job: Job) {
    if let Some(older) = turn.deploy.next.take() {
        join(&mut job, older);
    }
    turn.deploy.next = Some(job);
}

/// Takes up what was under way; returns whether a phase was entered.
fn resume(turn: &mut Turn<'_>, journal: Journal) -> bool {
    let is_live = |turn: &Turn<'_>, id: &ReleaseId| turn.deploy.live().is_some_and(|live| live.id == *id);
    let whole = |turn: &Turn<'_>, id: &ReleaseId| turn.deploy.book.get(id).is_some_and(Entry::is_whole);
    match journal {
        Journal::Preparing { mut trigger, release, .. } => {
            let text = if whole(turn, &release) {
                format!("{release} was built already and is used")
            } else {
                format!("{release} was not whole and is made anew")
            };
            tell(turn, text);
            trigger.cuts = trigger.cuts.saturating_add(1);
            trigger.made = whole(turn, &release).then_some(release);
            again(turn, Job::of(trigger));
            false
        }
        Journal::Changing { release, revision, previous, why } if is_live(turn, &release) => {
            tell(turn, format!("`current` was moved to {release} already: the pools follow"));
            let why = match why {
                ChangeKind::Deploy(trigger) => ChangeWhy::Deploy(Job::of(trigger)),
                ChangeKind::Rollback => {
                    turn.hold_rolled_back(&release);
                    ChangeWhy::Rollback(vec![])
                }
                ChangeKind::Repair => ChangeWhy::Repair,
            };
            turn.follow(Change { release, revision, previous, why });
            turn.deploy.phase != Phase::Idle
        }
        Journal::Changing { release, why: ChangeKind::Deploy(mut trigger), .. } => {
            tell(turn, format!("`current` was not moved to {release} yet: it is now"));
            trigger.cuts = trigger.cuts.saturating_add(1);
            trigger.made = Some(release);
            again(turn, Job::of(trigger));
            false
        }
        Journal::Changing { release, why: ChangeKind::Rollback, .. } => {
            tell(turn, format!("`current` was not moved back to {release} yet: it is now"));
            if turn.deploy.rollback.is_none() {
                turn.deploy.rollback = Some((release, vec![]));
            }
            false
        }
        Journal::Changing { why: ChangeKind::Repair, .. } => false,
        Journal::Returning { from, to, text } if whole(turn, &to) => {
            tell(turn, format!("the way back to {to} was cut short: it is finished"));
            if is_live(turn, &to) {
                turn.fail(&from, text.clone());
            }
            let step = if !is_live(turn, &to) {
                turn.effects.push(Effect::Switch { release: to.clone() });
                BackStep::BEGIN
            } else if turn.deploy.mode == Mode::Drained {
                return false;
            } else {
                turn.roll_out(&to);
                BackStep::RollingOut
            };
            turn.deploy.phase = Phase::RollingBack { from, to, text, ids: vec![], step };
            true
        }
        Journal::Returning { .. } => false,
    }
}

/// Remembers a job that was cut short; what waited behind it is newer.
fn again(turn: &mut Turn<'_>, job: Job) {
    match turn.deploy.next.take() {
        None => turn.deploy.next = Some(job),
        Some(newer) => {
            turn.deploy.next = Some(job);
            want(turn, newer);
        }
    }
}

fn tell(turn: &mut Turn<'_>, text: String) {
    turn.effects.push(Effect::Tell(News::Recovered { text }));
}
