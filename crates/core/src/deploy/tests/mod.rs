//! Tests of the machine of deploys: sentences, the whole table, and histories against a simulated world.

mod chores;
mod examples;
mod histories;
mod mistakes;
mod table;

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

/// Revision number `n`.
fn rev(n: u32) -> Revision {
    format!("{n:07x}{}", "0".repeat(33)).parse().expect("40 hexadecimal digits")
}

fn build(n: u32) -> Fingerprint {
    Fingerprint(format!("build-{n}"))
}

fn policy() -> DeployPolicy {
    DeployPolicy {
        boot_timeout: Duration::from_secs(60),
        build: build(1),
        steps: 2,
        build_timeout: Duration::from_secs(900),
        keep: KeepPolicy::default(),
        retry: RetryPolicy::default(),
        probation: Duration::from_secs(300),
        supersede: false,
        undo: BTreeSet::new(),
        hooks: HookCounts::default(),
    }
}

/// A whole release of that revision as the disk shows it, named after it.
fn on_disk(n: u32) -> FoundRelease {
    FoundRelease { id: old(n), built: Some((rev(n), build(1))) }
}

/// The name of such a release.
fn old(n: u32) -> ReleaseId {
    format!("20200101T00000{n}Z-{}", rev(n).short()).parse().expect("a release's name")
}

fn found(start: Start, pools: PoolsFound, current: Option<u32>, releases: &[u32]) -> Found {
    Found {
        start,
        current: current.map(old),
        releases: releases.iter().map(|n| on_disk(*n)).collect(),
        pools,
        mode: Mode::Minding,
        run: None,
    }
}

/// A node that is led by hand, event by event.
struct Node {
    deploy: Deploy,
    now: Now,
    policy: DeployPolicy,
    saved: Saved,
    requests: u64,
}

impl Node {
    fn new() -> Self {
        Self::of(Saved::default())
    }

    fn of(saved: Saved) -> Self {
        let now = Now {
            mono: MonoTime::from_boot(Duration::from_secs(100)),
            wall: WallTime::from_unix_millis(1_795_342_530_000),
            ..Now::default()
        };
        Self { deploy: Deploy::new(saved.clone()), now, policy: policy(), saved, requests: 0 }
    }

    /// A booted node on which release 1 is live and everything has come to rest.
    fn at_rest() -> Self {
        let mut node = Self::new();
        node.send(Event::Booted(found(Start::Again, PoolsFound::Running, Some(1), &[1])));
        assert_eq!(*node.deploy.phase(), Phase::Idle);
        node
    }

    /// Steps; returns the effects without `Save`, which must be the first and current.
    fn send(&mut self, event: Event) -> Vec<Effect> {
        let before = self.deploy.saved();
        let (deploy, mut effects) = step(self.deploy.clone(), event, self.now, &self.policy);
        self.deploy = deploy;
        if let Some(Effect::Save(saved)) = effects.first() {
            assert_eq!(**saved, self.deploy.saved());
            self.saved = (**saved).clone();
            effects.remove(0);
        } else {
            assert_eq!(before, self.deploy.saved(), "changed and not saved");
        }
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Save(_))));
        effects
    }

    /// As `send`, without what is only told.
    fn acts(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = self.send(event);
        effects.retain(|effect| !matches!(effect, Effect::Tell(_)));
        effects
    }

    fn pass(&mut self, secs: u64) {
        self.now.mono = self.now.mono + Duration::from_secs(secs);
        self.now.wall = WallTime::from_unix_millis(self.now.wall.unix_millis() + i64::try_from(secs).expect("short") * 1_000);
    }

    fn request(&mut self, what: Request) -> (RequestId, Vec<Effect>) {
        self.requests += 1;
        let id = RequestId(self.requests);
        (id, self.acts(Event::Requested { id, by: "ann".to_owned(), what }))
    }

    fn deploy_now(&mut self, force: Force) -> (RequestId, Vec<Effect>) {
        self.request(Request::Deploy { wanted: Wanted::Configured, force })
    }

    /// Answers the fetch under way.
    fn fetched(&mut self, n: u32) -> Vec<Effect> {
        let fetch = self.fetch();
        self.acts(Event::Fetched { fetch, revision: rev(n) })
    }

    fn fetch_failed(&mut self, trouble: FetchTrouble) -> Vec<Effect> {
        let fetch = self.fetch();
        self.send(Event::FetchFailed { fetch, trouble, text: "no route".to_owned() })
    }

    fn fetch(&self) -> FetchId {
        match &self.deploy.phase {
            Phase::Fetching { fetch, .. } => *fetch,
            other => panic!("not fetching: {other:?}"),
        }
    }

    fn working_on(&self) -> ReleaseId {
        self.deploy.working_on().expect("something is under way").clone()
    }

    /// Lets everything succeed up to the switch, and returns the release.
    fn build_all(&mut self) -> ReleaseId {
        let release = self.working_on();
        self.acts(Event::Staged { release: release.clone() });
        self.acts(Event::Linked { release: release.clone() });
        for step in 1..=self.policy.steps {
            self.acts(Event::StepDone { release: release.clone(), step });
        }
        assert_eq!(self.acts(Event::MarkedBuilt { release: release.clone() }), [Effect::Switch { release: release.clone() }]);
        release
    }

    /// Deploys that revision to the end.
    fn deploy_to_end(&mut self, n: u32) -> ReleaseId {
        self.deploy_now(Force::No);
        self.fetched(n);
        let release = self.build_all();
        self.acts(Event::Switched { release: release.clone() });
        self.acts(Event::RolledOut { release: release.clone() });
        assert_eq!(self.live(), Some(release.clone()));
        release
    }

    fn live(&self) -> Option<ReleaseId> {
        self.deploy.live().map(|entry| entry.id.clone())
    }
}

fn answers(effects: &[Effect]) -> Vec<(RequestId, &Outcome)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Answer { id, outcome } => Some((*id, outcome)),
            _ => None,
        })
        .collect()
}

fn is_tell(effect: &Effect, kind: &str) -> bool {
    matches!(effect, Effect::Tell(news) if news.kind() == kind)
}
