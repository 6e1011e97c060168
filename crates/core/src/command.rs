//! What an operator may ask, and which slots a word such as `checkins`, `checkins/3` or `resque` means.
//!
//! Only the question: whether it is accepted, already so or denied is decided by the machines it reaches. The words travel as
//! JSON (the binary's `control/wire.rs`), so verbs and fields are an interface: added, never renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{PoolName, SlotId};
use crate::policy::MAX_COUNT;
use crate::signal::Signal;

/// One thing that an operator asks of the agent. A field that the agent does not know is an error: to leave out what was asked
/// for could be harmful (hence `Status {}` and not `Status`: serde ignores the fields of a unit variant).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The snapshot.
    Status {},
    /// Fetch and roll out.
    Deploy {
        /// A branch, tag or revision instead of the configured one, for this deploy; `None`: the configured one.
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// Also a quarantined revision.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    },
    /// Back to a release that was good, and hold.
    Rollback {
        /// A release's name, or a revision of at least seven digits; `None`: the previous good one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
    },
    /// The list of releases.
    Releases {},
    /// Start what is stopped; ends a drain.
    Start {
        /// Which; empty: all.
        #[serde(default)]
        targets: Vec<Target>,
    },
    /// Stop by the ladder, and stay stopped.
    Stop {
        /// Which; empty: all.
        #[serde(default)]
        targets: Vec<Target>,
    },
    /// Replace by new workers, in the order of `update:`.
    Restart {
        /// Which; empty: all.
        #[serde(default)]
        targets: Vec<Target>,
    },
    /// Another number of workers.
    Scale {
        /// In which pool.
        pool: PoolName,
        /// How many.
        to: ScaleTo,
    },
    /// A signal to the main processes.
    Signal {
        /// Whose.
        target: Target,
        /// Which.
        signal: Signal,
    },
    /// Stop minding, without touching.
    Pause {
        /// Which; empty: all.
        #[serde(default)]
        targets: Vec<Target>,
    },
    /// Mind again.
    Resume {
        /// Which; empty: all.
        #[serde(default)]
        targets: Vec<Target>,
    },
    /// Stop everything by its ladders and start nothing; the agent stays.
    Drain {},
    /// No updates until `unhold`.
    Hold {
        /// Shown in status; `None`: the operator gave no reason.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Updates again; deploys what was asked for meanwhile.
    Unhold {},
    /// Read the configuration again and apply what changed.
    Reload {
        /// Only say what would change.
        #[serde(default, skip_serializing_if = "is_false")]
        plan: bool,
    },
    /// Answer when every pool has its workers ready.
    Wait {},
    /// Have the keeper and the agent renewed, workers untouched.
    Upgrade {
        /// By the program that was put beside the one they were started from; else by the one that lies there now.
        #[serde(default, skip_serializing_if = "is_false")]
        placed: bool,
    },
    /// With what a worker of this pool would be started now.
    Launch {
        /// Which; `None`: the first pool of the configuration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pool: Option<PoolName>,
    },
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Command {
    /// Returns the verb, as JSON has it.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Status {} => "status",
            Self::Deploy { .. } => "deploy",
            Self::Rollback { .. } => "rollback",
            Self::Releases {} => "releases",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Restart { .. } => "restart",
            Self::Scale { .. } => "scale",
            Self::Signal { .. } => "signal",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Drain {} => "drain",
            Self::Hold { .. } => "hold",
            Self::Unhold {} => "unhold",
            Self::Reload { .. } => "reload",
            Self::Wait {} => "wait",
            Self::Upgrade { .. } => "upgrade",
            Self::Launch { .. } => "launch",
        }
    }
}

/// How many workers `scale` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleTo {
    /// So many, kept over deploys and restarts.
    Count(u32),
    /// What the configuration says, again.
    Config,
}

/// `POOL=N` or `POOL=config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// In which pool.
    pub pool: PoolName,
    /// How many.
    pub to: ScaleTo,
}

/// Why a text is not `POOL=N`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScaleError {
    /// No `=`, or nothing before it.
    #[error("not POOL=N or POOL=config: `{0}`")]
    Malformed(String),
    /// More than [`MAX_COUNT`].
    #[error("a pool has at most {MAX_COUNT} workers: `{0}`")]
    TooMany(String),
}

impl FromStr for Scale {
    type Err = ScaleError;

    fn from_str(text: &str) -> Result<Self, ScaleError> {
        let malformed = || ScaleError::Malformed(text.to_owned());
        let (pool, count) = text.split_once('=').filter(|(pool, _)| is_name(pool)).ok_or_else(malformed)?;
        let to = match count {
            "config" => ScaleTo::Config,
            digits if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse::<u32>() {
                Ok(count) if count <= MAX_COUNT => ScaleTo::Count(count),
                _ => return Err(ScaleError::TooMany(text.to_owned())),
            },
            _ => return Err(malformed()),
        };
        Ok(Self { pool: pool.into(), to })
    }
}

/// `POOL`, `GROUP` or `POOL/SLOT`, as an operator wrote it; whether there is such a thing is for [`resolve`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// A pool, else a group.
    Name(PoolName),
    /// One slot.
    Slot(SlotId),
}

/// A text that cannot be a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a pool, a group or a slot (POOL, GROUP or POOL/SLOT): `{0}`")]
pub struct NotATarget(String);

/// `[a-z][a-z0-9_-]*`, as the configuration allows names.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

impl FromStr for Target {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Self, NotATarget> {
        let wrong = || NotATarget(text.to_owned());
        match text.split_once('/') {
            None if is_name(text) => Ok(Self::Name(text.into())),
            Some((pool, slot)) if is_name(pool) && !slot.is_empty() && slot.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Self::Slot(SlotId { pool: pool.into(), slot: slot.parse().map_err(|_| wrong())? }))
            }
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = NotATarget;

    fn try_from(text: String) -> Result<Self, NotATarget> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Slot(slot) => slot.fmt(f),
        }
    }
}

/// What [`resolve`] knows about a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Its name.
    pub name: PoolName,
    /// `group:`.
    pub group: Option<PoolName>,
    /// The slots that there are: those of the count, and those beyond it that are not stopped yet.
    pub slots: u32,
}

/// Slots of one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All, and those that a later `scale` adds.
    All,
    /// These; never empty.
    Only(BTreeSet<u32>),
}

impl Selection {
    /// Tells whether the slot is meant.
    #[must_use]
    pub fn contains(&self, slot: u32) -> bool {
        match self {
            Self::All => true,
            Self::Only(slots) => slots.contains(&slot),
        }
    }
}

/// Why a target means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No pool and no group has this name.
    #[error("no pool or group `{name}`")]
    NoSuchName {
        /// What was asked for.
        name: String,
        /// What was probably meant.
        nearest: Option<PoolName>,
        /// All pools and groups.
        known: Vec<PoolName>,
    },
    /// A group, where only a pool will do.
    #[error("`{name}` is a group, and this takes a pool")]
    IsGroup {
        /// What was asked for.
        name: PoolName,
        /// Its pools.
        pools: Vec<PoolName>,
    },
    /// The pool has fewer slots.
    #[error("no slot `{slot}`")]
    NoSuchSlot {
        /// What was asked for.
        slot: SlotId,
        /// How many the pool has, from 0.
        slots: u32,
    },
}

impl TargetError {
    /// Returns what to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoSuchName { nearest: Some(name), .. } => format!("did you mean `{name}`?"),
            Self::NoSuchName { known, .. } if known.is_empty() => "the configuration has no pools".into(),
            Self::NoSuchName { known, .. } => {
                format!("there are {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
            }
            Self::IsGroup { pools, .. } => {
                format!("its pools are {}", pools.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
            }
            Self::NoSuchSlot { slot, slots: 0 } => format!("pool `{}` has no slots", slot.pool),
            Self::NoSuchSlot { slot, slots } => format!("pool `{}` has the slots 0 to {}", slot.pool, slots - 1),
        }
    }
}

/// Returns the slots that `targets` mean, by pool; no targets mean all. A name is a pool's first and a group's second.
///
/// # Errors
/// For the first target that means nothing: then nothing is to be done at all.
pub fn resolve(targets: &[Target], pools: &[PoolShape]) -> Result<BTreeMap<PoolName, Selection>, TargetError> {
    if targets.is_empty() {
        return Ok(pools.iter().map(|pool| (pool.name.clone(), Selection::All)).collect());
    }
    let mut selected = BTreeMap::new();
    for target in targets {
        match target {
            Target::Name(name) => {
                let mut members: Vec<_> = pools.iter().filter(|pool| pool.name == *name).collect();
                if members.is_empty() {
                    members = pools.iter().filter(|pool| pool.group.as_ref() == Some(name)).collect();
                }
                if members.is_empty() {
                    return Err(no_such_name(name.as_str(), pools));
                }
                selected.extend(members.into_iter().map(|pool| (pool.name.clone(), Selection::All)));
            }
            Target::Slot(id) => {
                let pool = find_pool(&id.pool, pools)?;
                if id.slot >= pool.slots {
                    return Err(TargetError::NoSuchSlot { slot: id.clone(), slots: pool.slots });
                }
                if let Selection::Only(slots) = selected.entry(id.pool.clone()).or_insert_with(|| Selection::Only(BTreeSet::new())) {
                    slots.insert(id.slot);
                }
            }
        }
    }
    Ok(selected)
}

/// Returns the pool of that name; a group is none.
///
/// # Errors
/// If there is none.
pub fn find_pool<'a>(name: &PoolName, pools: &'a [PoolShape]) -> Result<&'a PoolShape, TargetError> {
    let of_group = || pools.iter().filter(|pool| pool.group.as_ref() == Some(name)).map(|pool| pool.name.clone());
    pools.iter().find(|pool| pool.name == *name).ok_or_else(|| match of_group().collect::<Vec<_>>() {
        none if none.is_empty() => no_such_name(name.as_str(), pools),
        pools => TargetError::IsGroup { name: name.clone(), pools },
    })
}

fn no_such_name(name: &str, pools: &[PoolShape]) -> TargetError {
    let known: BTreeSet<PoolName> = pools.iter().flat_map(|pool| [Some(pool.name.clone()), pool.group.clone()]).flatten().collect();
    TargetError::NoSuchName { name: name.to_owned(), nearest: nearest(name, &known), known: known.into_iter().collect() }
}

/// Returns the known name that a typing error away is `name`: at most a third of its letters changed.
fn nearest(name: &str, known: &BTreeSet<PoolName>) -> Option<PoolName> {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate.as_str()), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.as_str().len().max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pools() -> Vec<PoolShape> {
        let pool = |name: &str, group: Option<&str>, slots| PoolShape { name: name.into(), group: group.map(Into::into), slots };
        vec![pool("checkins", Some("resque"), 10), pool("imports", Some("resque"), 2), pool("web", None, 1), pool("idle", None, 0)]
    }

    fn resolved(words: &[&str]) -> Result<Vec<String>, TargetError> {
        let targets: Vec<Target> = words.iter().map(|word| word.parse().expect("a target")).collect();
        let shown = |selection: Selection| match selection {
            Selection::All => "all".into(),
            Selection::Only(slots) => format!("{slots:?}"),
        };
        Ok(resolve(&targets, &pools())?.into_iter().map(|(pool, slots)| format!("{pool}: {}", shown(slots))).collect())
    }

    #[test]
    fn a_group_is_not_said_to_be_unknown_where_a_pool_is_wanted() {
        let pn = |name: &str| PoolName::from(name.to_owned());
        let shape = |name: &str| PoolShape { name: pn(name), group: Some(pn("g")), slots: 1 };
        let error = find_pool(&pn("g"), &[shape("a"), shape("b")]).expect_err("a group");
        assert_eq!((error.to_string(), error.hint()), ("`g` is a group, and this takes a pool".into(), "its pools are `a`, `b`".into()));
    }

    #[test]
    fn a_target_is_a_pool_a_slot_or_a_group() {
        assert_eq!(resolved(&["web"]), Ok(vec!["web: all".into()]));
        assert_eq!(resolved(&["checkins/3", "checkins/1"]), Ok(vec!["checkins: {1, 3}".into()]));
        assert_eq!(resolved(&["resque"]), Ok(vec!["checkins: all".into(), "imports: all".into()]));
        assert_eq!(resolved(&[]).map(|all| all.len()), Ok(4));
    }

    #[test]
    fn a_whole_pool_takes_in_its_slots_in_either_order() {
        assert_eq!(resolved(&["checkins", "checkins/3"]), Ok(vec!["checkins: all".into()]));
        assert_eq!(resolved(&["checkins/3", "checkins"]), Ok(vec!["checkins: all".into()]));
    }

    #[test]
    fn a_pool_s_name_comes_before_a_group_s() {
        let shapes = [
            PoolShape { name: "a".into(), group: Some("a".into()), slots: 1 },
            PoolShape { name: "b".into(), group: Some("a".into()), slots: 1 },
        ];
        let selected = resolve(&[Target::Name("a".into())], &shapes).expect("a pool");
        assert_eq!(selected.keys().map(PoolName::as_str).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let hint = |word: &str| resolved(&[word]).expect_err(word).hint();
        assert_eq!(hint("chekins"), "did you mean `checkins`?");
        assert_eq!(hint("resqeu"), "did you mean `resque`?");
        assert_eq!(hint("chekins/1"), "did you mean `checkins`?");
        assert_eq!(hint("zzz"), "there are `checkins`, `idle`, `imports`, `resque`, `web`");
        assert_eq!(hint("checkins/10"), "pool `checkins` has the slots 0 to 9");
        assert_eq!(hint("idle/0"), "pool `idle` has no slots");
        assert_eq!(resolved(&["web", "zzz"]).expect_err("half").to_string(), "no pool or group `zzz`");
    }

    #[test]
    fn a_slot_of_a_group_is_nothing() {
        assert_eq!(resolved(&["resque/0"]).expect_err("a group").to_string(), "`resque` is a group, and this takes a pool");
    }

    #[test]
    fn refuses_what_cannot_be_a_target() {
        for word in ["", "/", "a/", "/1", "a/b", "a/-1", "a/+1", "A", "1a", "a b", "a/1/2", "a/99999999999", "../x", "é"] {
            assert!(word.parse::<Target>().is_err(), "{word}");
        }
    }

    #[test]
    fn reads_scale() {
        assert_eq!("web=3".parse(), Ok(Scale { pool: "web".into(), to: ScaleTo::Count(3) }));
        assert_eq!("web=0".parse(), Ok(Scale { pool: "web".into(), to: ScaleTo::Count(0) }));
        assert_eq!("web=config".parse(), Ok(Scale { pool: "web".into(), to: ScaleTo::Config }));
        assert_eq!("web=10001".parse::<Scale>(), Err(ScaleError::TooMany("web=10001".into())));
        assert_eq!("web=99999999999".parse::<Scale>(), Err(ScaleError::TooMany("web=99999999999".into())));
        for word in ["", "web", "web=", "=3", "web=-1", "web=+1", "web=1.5", "web= 1", "web/1=2"] {
            assert_eq!(word.parse::<Scale>(), Err(ScaleError::Malformed(word.into())));
        }
    }

    #[test]
    fn the_verb_is_that_of_the_json() {
        for command in
            [Command::Status {}, Command::Drain {}, Command::Launch { pool: None }, Command::Rollback { to: None }, Command::Wait {}]
        {
            assert_eq!(serde_json::to_value(&command).expect("JSON")["verb"], command.verb());
        }
    }

    #[test]
    fn a_field_that_is_not_known_is_refused() {
        for text in [
            r#"{"verb":"deploy","canary":true}"#,
            r#"{"verb":"status","x":1}"#,
            r#"{"verb":"drain","targets":["web"]}"#,
            r#"{"verb":"enqueue"}"#,
        ] {
            assert!(serde_json::from_str::<Command>(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_target_reads_back_as_it_was_written(text in "[a-z][a-z0-9_-]{0,8}(/[0-9]{1,4})?") {
            let target: Target = text.parse().expect("a target");
            prop_assert_eq!(target.to_string().parse::<Target>(), Ok(target));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            if let Ok(target) = text.parse::<Target>() {
                let _ = resolve(&[target], &pools());
            }
            let _ = text.parse::<Scale>();
        }
    }
}
