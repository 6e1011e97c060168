//! What the agent may ask of the keeper, and what it is told: one message is one packet, its descriptors come with it.
//!
//! Encoded by postcard, so variants and fields may only be added at the end; [`PROTOCOL`] grows with every change that an older side
//! would misread. Bytes that are no message are an error, never a panic.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys::process::Ended;
use crate::sys::spawn::Step;

/// The version of the protocol that this binary speaks.
pub(crate) const PROTOCOL: u32 = 1;

/// The largest message either side takes. The longest is a start with its environment.
pub(crate) const MAX_MESSAGE_BYTES: usize = 2 << 20;

/// The name of one child, for good: `POOL/SLOT#START`, or `helper:NAME#N`.
pub(crate) type Key = String;

/// How often the agent says that it is alive.
pub(crate) const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// The environment variable by which a child is found again: `KEY:PID@ROOT`.
pub(crate) const KEY_VARIABLE: &str = "SELFSTART_WORKER";

/// What the agent asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// First of all; answered by [`Tell::Welcome`], everything that is there, and [`Tell::Listed`].
    Hello {
        /// The version that the agent speaks.
        protocol: u32,
    },
    /// Start a process; answered by [`Tell::Child`] or [`Tell::SpawnFailed`]. A key that is there already is answered with what is there.
    Spawn(Box<Start>),
    /// Signal a main process; one that is gone is not an error (its exit comes).
    Signal {
        /// Whose.
        key: Key,
        /// The kernel's number.
        number: i32,
    },
    /// Signal one process below a worker, if it still has that title: looked at again through its pidfd, just before.
    SignalJob {
        /// Its number.
        pid: i32,
        /// When it started.
        start_ticks: u64,
        /// The title that it was judged by.
        title: Vec<u8>,
        /// The kernel's number.
        number: i32,
    },
    /// KILL the main process and all that descends from it.
    KillTree {
        /// Whose.
        key: Key,
    },
    /// The main process has ended: KILL what is left of its tree; answered by [`Tell::TreeGone`] when nothing is.
    ClearTree {
        /// Whose.
        key: Key,
    },
    /// The end of this child is dealt with: forget it, and close its output.
    Forget {
        /// Whose.
        key: Key,
    },
    /// Find the children of an earlier keeper of this root, by their environment; answered by a [`Tell::Child`] each, and [`Tell::Adopted`].
    Adopt {
        /// The root, as it stands in their environment.
        root: String,
        /// Those that the agent remembers (name, number, start): some programs write over their environment (`setproctitle`).
        known: Vec<(Key, i32, u64)>,
    },
    /// Keep the descriptor that comes along, under this name, in place of an earlier one: it outlives the agent.
    Keep {
        /// Its name.
        name: String,
    },
    /// Tell the service manager (`sd_notify(3)`).
    Notify {
        /// The lines.
        state: String,
    },
    /// End, with this exit code.
    Quit {
        /// 0 to 255.
        code: u8,
    },
    /// The agent's loop goes round. It says so every [`ALIVE_EVERY`]; one that has said it once and then does not is replaced.
    Alive,
    /// Use cgroups for what [`Ask::SpawnIn`] starts, if this machine has a tree of them for us; answered by [`Tell::Tree`].
    Tree {
        /// Names the tree where nobody else has made one: `selfstart-`, and small letters, digits and `-`.
        name: String,
    },
    /// As [`Ask::Spawn`], in a cgroup of its own if there is a tree.
    SpawnIn {
        /// What.
        start: Box<Start>,
        /// What is written into which of the cgroup's files before the start.
        settings: Vec<(String, String)>,
    },
    /// Have done what needs root, where the agent is not root; answered by [`Tell::Errand`]. Where it is root nothing is done.
    Errand(Errand),
    /// Execute another program in the place of the keeper's, on trial; answered by [`Tell::Upgraded`]. It names no file: which ones may be
    /// executed is not the agent's to say.
    Upgrade {
        /// The one that was put beside the program (`PROGRAM.new`); else the one that lies where the program was started from.
        placed: bool,
        /// Who asked.
        by: String,
    },
    /// What became of this upgrade is in the journal.
    UpgradeNoted {
        /// Its number.
        number: u32,
    },
}

/// What is done by a short-lived helper that is root, with the keeper's own configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Errand {
    /// The configuration may have changed: read again who may run, and give what is below `root` to whom it belongs now.
    Order,
    /// Look which processes use which release.
    Uses,
    /// Remove these releases, as far as nobody uses them.
    Prune(Vec<String>),
    /// Look how much memory the trees of these children have, each with the limit near which it must be exact.
    Memory(Vec<(Key, Option<u64>)>),
}

impl Errand {
    /// The same without what it is about: whoever asked knows that.
    pub(crate) fn kind(&self) -> Self {
        match self {
            Self::Order => Self::Order,
            Self::Uses => Self::Uses,
            Self::Prune(_) => Self::Prune(Vec::new()),
            Self::Memory(_) => Self::Memory(Vec::new()),
        }
    }
}

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Its name.
    pub(crate) key: Key,
    /// Files tried in order, as `execvp(3)` does.
    pub(crate) programs: Vec<String>,
    /// The arguments, from the zeroth.
    pub(crate) argv: Vec<String>,
    /// The whole environment, without [`KEY_VARIABLE`], which the keeper adds.
    pub(crate) env: Vec<(String, String)>,
    /// For [`KEY_VARIABLE`].
    pub(crate) root: String,
    /// The working directory.
    pub(crate) cwd: String,
    /// User, group, supplementary groups; `None`: the keeper's.
    pub(crate) user: Option<(u32, u32, Vec<u32>)>,
    /// RLIMIT_NOFILE.
    pub(crate) nofile: Option<u64>,
    /// -20 to 19.
    pub(crate) nice: Option<i8>,
    /// The file mode creation mask.
    pub(crate) umask: Option<u32>,
    /// The size of each of the two output pipes.
    pub(crate) pipe_bytes: u32,
    /// Workers outlive the keeper; helpers do not, and get what the descriptor that comes along holds as standard input.
    pub(crate) helper: bool,
    /// Told back with the child: what a later agent must know of it, also when it has ended. It means nothing to the keeper.
    pub(crate) note: String,
}

/// What the keeper tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Tell {
    /// The answer to [`Ask::Hello`].
    Welcome(Welcome),
    /// A child, with the read ends of its standard output and error (fewer where they are unknown); told again with those alone that could
    /// be opened only later.
    Child {
        /// Its name.
        key: Key,
        /// Its number.
        pid: i32,
        /// When it started.
        start_ticks: u64,
        /// Whether it is the child of an earlier keeper.
        adopted: bool,
        /// The descriptors that come with this: 1 for standard output, 2 for standard error.
        streams: Vec<u8>,
        /// The note that came with its [`Start`]; empty when an earlier keeper started it.
        note: String,
    },
    /// A descriptor that was kept.
    Kept {
        /// Its name.
        name: String,
    },
    /// All that was there has been told.
    Listed,
    /// A start failed.
    SpawnFailed {
        /// Whose.
        key: Key,
        /// Where.
        step: Step,
        /// Why.
        errno: i32,
    },
    /// A main process has ended, and has been reaped.
    Exited {
        /// Whose.
        key: Key,
        /// How.
        how: Ended,
        /// When it was reaped: microseconds since boot.
        at_micros: u64,
        /// Whether nothing is left of its tree: no [`Ask::ClearTree`] is needed then.
        tree_gone: bool,
    },
    /// Nothing is left of a tree.
    TreeGone {
        /// Whose.
        key: Key,
        /// How many were killed.
        killed: u32,
    },
    /// All children of an earlier keeper have been told.
    Adopted,
    /// A signal came for the node.
    Signalled {
        /// The kernel's number.
        number: i32,
    },
    /// The answer to [`Ask::Tree`].
    Tree {
        /// Where the cgroups are; nothing: there are none for us.
        path: Option<String>,
        /// What they limit and count: `memory`, `pids`, `cpu`.
        controllers: Vec<String>,
        /// Why there are none, or not all.
        why: String,
    },
    /// The kernel has ended this child for want of memory; comes before its [`Tell::Exited`].
    OutOfMemory {
        /// Whose.
        key: Key,
        /// How often since its start.
        times: u64,
        /// The most memory that its tree ever had, where the kernel says so.
        peak_bytes: Option<u64>,
    },
    /// An errand is over; what the helper said comes along in a descriptor.
    Errand {
        /// Which.
        errand: Errand,
        /// Why it was not done; `None`: it was.
        failed: Option<String>,
    },
    /// What became of the last upgrade.
    Upgraded(Upgraded),
}

/// What became of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upgraded {
    /// Which, counted from the first start of the keeper.
    pub(crate) number: u32,
    /// The version that there was.
    pub(crate) from: String,
    /// The version that there was to be; `None`: it is not known.
    pub(crate) to: Option<String>,
    /// Who asked.
    pub(crate) by: String,
    /// How it went.
    pub(crate) how: HowUpgraded,
    /// The same for people, with the reason.
    pub(crate) text: String,
    /// Whether an agent has told it in the journal.
    pub(crate) told: bool,
}

impl Upgraded {
    /// One that was not begun.
    pub(crate) fn failed(number: u32, from: &str, to: Option<String>, by: &str, text: String) -> Self {
        Self { number, from: from.to_owned(), to, by: by.to_owned(), how: HowUpgraded::Refused, text, told: false }
    }
}

/// How an upgrade went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum HowUpgraded {
    /// The new program has taken over.
    Done,
    /// It was not executed: nothing has changed.
    Refused,
    /// It was executed, did not come up, and the former one is back.
    WentBack,
}

/// Who the keeper is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The version that the keeper speaks.
    pub(crate) protocol: u32,
    /// The version of its binary.
    pub(crate) version: String,
    /// Its process id.
    pub(crate) keeper_pid: i32,
    /// How often it has started an agent, this one counted: more than 1 means that the last one ended.
    pub(crate) agent_starts: u32,
    /// How the last agent ended.
    pub(crate) last_agent: Option<Ended>,
    /// Whether it was ended for an upgrade.
    pub(crate) for_upgrade: bool,
    /// The file that the keeper was started from at first.
    pub(crate) program: String,
}

/// A message that is none.
#[derive(Debug, thiserror::Error)]
#[error("a message of {len} bytes could not be understood")]
pub(crate) struct Malformed {
    len: usize,
    #[source]
    source: postcard::Error,
}

/// Encodes a message.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_stdvec(message).expect("every field of a message has an encoding, and a Vec takes it")
}

/// Decodes a message; bytes behind it are refused too.
///
/// # Errors
/// When it is none.
pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    let wrong = |source| Malformed { len: bytes.len(), source };
    let (message, rest) = postcard::take_from_bytes(bytes).map_err(wrong)?;
    if rest.is_empty() { Ok(message) } else { Err(wrong(postcard::Error::DeserializeBadEncoding)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples() -> Vec<Ask> {
        let key = || "checkins/3#17".to_owned();
        vec![
            Ask::Hello { protocol: PROTOCOL },
            Ask::Spawn(Box::new(Start {
                key: key(),
                programs: vec!["/bin/true".into()],
                argv: vec!["true".into()],
                env: vec![("PATH".into(), "/bin".into())],
                root: "/srv".into(),
                cwd: "/".into(),
                user: Some((1, 2, vec![3])),
                nofile: Some(4096),
                nice: Some(-5),
                umask: Some(0o22),
                pipe_bytes: 65_536,
                helper: false,
                note: "3 r".into(),
            })),
            Ask::Signal { key: key(), number: 15 },
            Ask::SignalJob { pid: 1, start_ticks: 2, title: b"resque-3".to_vec(), number: 9 },
            Ask::KillTree { key: key() },
            Ask::ClearTree { key: key() },
            Ask::Forget { key: key() },
            Ask::Adopt { root: "/srv".into(), known: vec![(key(), 4711, 99)] },
            Ask::Keep { name: "control".into() },
            Ask::Notify { state: "READY=1".into() },
            Ask::Quit { code: 78 },
            Ask::Alive,
            Ask::Tree { name: "selfstart-flipper-1".into() },
            Ask::Errand(Errand::Order),
            Ask::Errand(Errand::Prune(vec!["20261122T101530Z-1a2b3c4".into()])),
            Ask::Upgrade { placed: true, by: "root".into() },
            Ask::UpgradeNoted { number: 3 },
        ]
    }

    #[test]
    fn messages_read_back_as_they_were_written() {
        for message in samples() {
            assert_eq!(decode::<Ask>(&encode(&message)).expect("our own message"), message);
        }
    }

    /// An agent of the next version speaks to a keeper of this one: the bytes of released messages may not change.
    #[test]
    fn the_bytes_of_released_messages_stay() {
        let bytes: Vec<String> =
            samples().iter().map(|message| encode(message).iter().map(|byte| format!("{byte:02x}")).collect()).collect();
        insta::assert_snapshot!(bytes.join("\n"));
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _any = decode::<Ask>(&bytes);
            let _any = decode::<Tell>(&bytes);
        }

        #[test]
        fn a_damaged_message_is_refused_or_is_another_message(which in 0_usize..15, at in 0_usize..300, with in any::<u8>(), cut in 0_usize..300) {
            let mut bytes = encode(&samples()[which]);
            let len = bytes.len();
            bytes[at % len] = with;
            let _any = decode::<Ask>(&bytes);
            bytes.truncate(cut % len);
            prop_assert!(decode::<Ask>(&bytes).is_err() || bytes.is_empty() || cut % len < len);
        }
    }
}
