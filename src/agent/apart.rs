//! An agent with a user of its own: what it cannot do itself, and has done.
//!
//! Where the keeper is root and the agent is not (see `crate::rights`), what belongs to root or to the app's user is done by others: owners
//! and groups of files by the keeper's helper, releases by helpers that are the app's user. Where the agent is root, or nobody is, it does
//! all of that itself.

use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use selfstart_core::deploy::Event;
use selfstart_core::id::ReleaseId;

use super::deploying::chain;
use super::errands::{Over, What};
use super::run::{Agent, Worked};
use super::sampling::Unseen;
use super::serving::Reloader;
use crate::keeper::protocol::{Ask, Errand};
use crate::keeper::{LAST_GOOD_VARIABLE, STANDING_SPLIT, STANDING_VARIABLE};
use crate::release::git::Request;
use crate::release::prune::{Unsure, Uses};
use crate::rights::Gone;
use crate::sys::clock;

/// How long it may take to give a release its name, or to remove what a kill has left.
const TIDY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(300);

/// The largest answer of a helper.
const ANSWER_MAX: u64 = 16 << 20;

fn standing() -> Option<&'static str> {
    static STANDING: OnceLock<Option<String>> = OnceLock::new();
    STANDING.get_or_init(|| std::env::var(STANDING_VARIABLE).ok().filter(|said| !said.is_empty())).as_deref()
}

/// Whether this agent has a user of its own beside a keeper that is root.
pub(crate) fn is_apart() -> bool {
    standing() == Some(STANDING_SPLIT)
}

/// Why this agent is root although it need not be; `None`: it is not, or is meant to be.
pub(super) fn why_root() -> Option<&'static str> {
    standing().filter(|said| *said != STANDING_SPLIT)
}

/// The root whose last good configuration is to be run, and why; `None`: the configuration is to be believed. It is the keeper's word, by root's
/// record: what the configuration says of itself is not looked at.
pub(super) fn last_good() -> Option<(PathBuf, String)> {
    let said = std::env::var(LAST_GOOD_VARIABLE).ok()?;
    let (root, why) = said.split_once('\n')?;
    Some((PathBuf::from(root), why.to_owned()))
}

/// Why this agent could make files that make somebody else of who executes them; `None`: it could not, or that is nothing to it.
pub(super) fn unconfined() -> Option<&'static str> {
    (is_apart() && !crate::sys::confine::is_on())
        .then_some("this kernel filters no system calls: see `Files that become somebody else` in docs/security.md")
}

/// What is done once it is known which release is used, or why it is not.
type WithUses = Box<dyn FnOnce(Result<Uses, String>) -> Worked + Send>;

/// What waits for errands of the keeper. One of a kind is on its way at a time.
#[derive(Default)]
pub(crate) struct Waiting {
    /// Reloads that wait for a new order.
    orders: Vec<Option<Reloader>>,
    /// Who wants to know which release is used.
    uses: Vec<WithUses>,
    /// The releases that are being removed.
    pruned: Vec<ReleaseId>,
    /// The workers whose memory is being looked at.
    pub(super) measured: Vec<Unseen>,
    /// Whether what a kill has left is removed, or is being.
    tidy: bool,
}

impl Agent {
    /// Reloads once the keeper knows who may run.
    pub(super) fn reload_after_order(&mut self, asked: Option<Reloader>) {
        let first = self.waiting.orders.is_empty();
        self.waiting.orders.push(asked);
        if first {
            self.ask(Ask::Errand(Errand::Order));
        }
    }

    /// Looks who uses which release, and has `then` done with the answer on a blocking thread.
    pub(super) fn with_uses(&mut self, then: impl FnOnce(Result<Uses, String>) -> Worked + Send + 'static) {
        if self.waiting.uses.is_empty() {
            self.ask(Ask::Errand(Errand::Uses));
        }
        self.waiting.uses.push(Box::new(then));
    }

    /// Has releases removed.
    pub(super) fn prune_by_keeper(&mut self, ids: Vec<ReleaseId>) {
        self.ask(Ask::Errand(Errand::Prune(ids.iter().map(ToString::to_string).collect())));
        self.waiting.pruned = ids;
    }

    /// An errand of the keeper is over.
    pub(super) fn errand_told(&mut self, errand: &Errand, failed: Option<String>, answer: Option<OwnedFd>) {
        let answer = match (failed, answer) {
            (Some(why), _) => Err(why),
            (None, Some(answer)) => Ok(answer),
            (None, None) => Err("the answer is missing".to_owned()),
        };
        match errand {
            Errand::Order => {
                for asked in std::mem::take(&mut self.waiting.orders) {
                    self.reload_ordered(asked, answer.as_ref().map(drop).map_err(Clone::clone));
                }
            }
            Errand::Uses => {
                let seen: Result<Uses, String> = answer.and_then(read);
                for then in std::mem::take(&mut self.waiting.uses) {
                    let seen = seen.clone();
                    self.work(move || then(seen));
                }
            }
            Errand::Memory(_) => {
                let unseen = std::mem::take(&mut self.waiting.measured);
                self.measured(unseen, answer.and_then(read));
            }
            Errand::Prune(_) => {
                let ids = std::mem::take(&mut self.waiting.pruned);
                let (trouble, unsure): (String, Option<Unsure>) =
                    answer.and_then(read).map_or_else(|why| (why, None), |gone: Gone| gone.unsure());
                let layout = self.layout.clone();
                self.work(move || super::deploying::forget_removed(&layout, ids, trouble, unsure));
            }
        }
    }

    /// Has a helper give a staged release its name, in a folder that is not ours.
    pub(super) fn name_by_helper(&mut self, release: &ReleaseId) -> Result<(), String> {
        let request = Request::Name { root: self.layout.root().to_owned(), release: release.clone() };
        self.begin_git("name", What::Name(release.clone()), &request, clock::now() + TIDY_TIMEOUT)
    }

    /// Has a helper remove what a kill has left among the releases; returns whether there is nothing to wait for.
    pub(super) fn is_tidy(&mut self) -> bool {
        if !is_apart() || self.waiting.tidy {
            return true;
        }
        if !self.errands.keys(|what| *what == What::Tidy).is_empty() {
            return false;
        }
        let request = Request::Tidy { root: self.layout.root().to_owned() };
        match self.begin_git("tidy", What::Tidy, &request, clock::now() + TIDY_TIMEOUT) {
            Ok(()) => false,
            Err(text) => {
                self.telling.warn(&format!("what a kill has left in `releases/` stays: {text}"));
                self.waiting.tidy = true;
                true
            }
        }
    }

    /// Such a helper has ended.
    pub(super) fn tidied(&mut self, said: Result<Vec<String>, String>) {
        self.waiting.tidy = true;
        match said {
            Ok(texts) => texts.iter().for_each(|text| tracing::info!("{text}")),
            Err(text) => self.telling.warn(&format!("what a kill has left in `releases/` stays: {text}")),
        }
    }

    /// What became of a release that was to be named.
    pub(super) fn named(release: ReleaseId, over: &Over, failed: Option<String>) -> Event {
        match failed {
            None => Event::Linked { release },
            Some(text) => {
                let blame = selfstart_core::deploy::Blame::Machine;
                let text = if over.timed_out { "to give it its name took too long".to_owned() } else { text };
                Event::PrepareFailed { release, blame, text }
            }
        }
    }
}

/// Reads what a helper has written.
fn read<T: serde::de::DeserializeOwned>(answer: OwnedFd) -> Result<T, String> {
    let mut file = std::fs::File::from(answer);
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.take(ANSWER_MAX).read_to_end(&mut text)).map_err(|error| chain(&error))?;
    serde_json::from_slice(&text).map_err(|error| chain(&error))
}
