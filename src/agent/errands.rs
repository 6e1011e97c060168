//! Short-lived helpers that the keeper starts for the agent: the git helper, build steps, checks of readiness.
//!
//! One value per errand from its start to the moment when its process is reaped, its tree is gone and all that it said has been read;
//! only then is it over. What a build step says goes to its log through [`super::output`]; what the others say is for us, and is read here.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use selfstart_core::deploy::{FetchId, Fingerprint};
use selfstart_core::id::{ReleaseId, Revision, SlotId, StartNo};
use selfstart_core::time::MonoTime;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::keeper::protocol::Key;
use crate::sys::process::Ended;
use crate::sys::watch::watched;

/// Chunks that wait for the loop; a helper that says more waits in its pipe.
const CHUNKS: usize = 64;

/// The longest line that is put together; a helper's messages are far shorter.
const LINE_MAX_BYTES: usize = 1 << 20;

/// The last lines of standard error that an error repeats.
const LAST_LINES: usize = 20;

/// How long the end of the output of a reaped helper is waited for. Only something that left its tree can hold it open.
const FAREWELL: Duration = Duration::from_secs(2);

/// KILL is sent again after this.
const KILL_AGAIN: Duration = Duration::from_secs(2);

/// What an errand is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Somebody is told of what happened.
    Notify {
        /// Which receiver.
        number: u64,
    },
    /// The source is asked for its head.
    Look,
    /// The mirror is brought up to date.
    Fetch(FetchId),
    /// The tree of a commit is written.
    Stage(ReleaseId),
    /// The runtime of a release is found.
    Runtime {
        /// Which.
        release: ReleaseId,
        /// By which build settings.
        build: Fingerprint,
    },
    /// A build step; its output does not come here.
    Step {
        /// Of which release.
        release: ReleaseId,
        /// Which, from 1.
        step: u32,
        /// What it runs, for its verdict.
        run: String,
    },
    /// A hook, or what undoes a step; its output goes where that of the build goes.
    Chore {
        /// Of which release.
        release: ReleaseId,
        /// Which.
        chore: selfstart_core::deploy::Chore,
        /// What it runs, for its verdict.
        run: String,
    },
    /// It is looked whether a step may be skipped.
    Carry {
        /// Of which release.
        release: ReleaseId,
        /// Of what.
        revision: Revision,
        /// Which, from 1.
        step: u32,
    },
    /// It is looked what a step made.
    Made {
        /// Of which release.
        release: ReleaseId,
        /// Which, from 1.
        step: u32,
        /// What it depended on.
        key: String,
    },
    /// A staged release is given its name.
    Name(ReleaseId),
    /// What a kill has left among the releases is removed.
    Tidy,
    /// A worker is asked whether it is ready.
    Probe {
        /// Where.
        slot: SlotId,
        /// Which start.
        start: StartNo,
    },
    /// Left over from an agent that died: it is ended before anything else is done.
    Leftover,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    /// What it was for.
    pub(crate) what: What,
    /// How its process ended; `None`: it could not be started, and `last_lines` says why.
    pub(crate) how: Option<Ended>,
    /// Whether we ended it because its time was up.
    pub(crate) timed_out: bool,
    /// Whether we ended it for another reason.
    pub(crate) ended_by_us: bool,
    /// The last line of its standard output.
    pub(crate) last_message: Option<String>,
    /// The last lines of its standard error (of a build step: of both).
    pub(crate) last_lines: Vec<String>,
}

/// A chunk of what a helper said; empty: that stream has ended.
#[derive(Debug)]
pub(crate) struct Chunk {
    key: Key,
    stream: u8,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Errand {
    what: What,
    deadline: Option<MonoTime>,
    timed_out: bool,
    ended_by_us: bool,
    how: Option<Ended>,
    tree_gone: bool,
    open: u8,
    farewell: Option<MonoTime>,
    partial: [Vec<u8>; 2],
    last_message: Option<String>,
    last_lines: VecDeque<String>,
}

/// Every errand that is under way.
#[derive(Debug)]
pub(crate) struct Errands {
    running: BTreeMap<Key, Errand>,
    readers: JoinSet<()>,
    chunks: (mpsc::Sender<Chunk>, mpsc::Receiver<Chunk>),
    next: u64,
}

impl Errands {
    /// Returns none; `next` numbers them, and must not repeat what an earlier agent of this keeper used.
    pub(crate) fn new(next: u64) -> Self {
        Self { running: BTreeMap::new(), readers: JoinSet::new(), chunks: mpsc::channel(CHUNKS), next }
    }

    /// Notes a new errand and returns the key under which it must be started.
    pub(crate) fn begin(&mut self, name: &str, what: What, deadline: Option<MonoTime>) -> Key {
        self.next += 1;
        let key = format!("helper:{name}#{}", self.next);
        self.running.insert(key.clone(), Errand::new(what, deadline));
        key
    }

    /// Notes a helper that an earlier agent has left running.
    pub(crate) fn adopt(&mut self, key: Key) {
        if let Some(number) = key.rsplit_once('#').and_then(|(_, number)| number.parse().ok()) {
            self.next = self.next.max(number);
        }
        self.running.insert(key, Errand::new(What::Leftover, None));
    }

    /// Whether this key is an errand's.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.running.contains_key(key)
    }

    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Returns what an errand is for.
    pub(crate) fn what(&self, key: &str) -> Option<&What> {
        self.running.get(key).map(|errand| &errand.what)
    }

    /// Whether something left over is still being ended.
    pub(crate) fn has_leftovers(&self) -> bool {
        self.running.values().any(|errand| errand.what == What::Leftover)
    }

    /// Returns the keys of errands for which `wanted` holds.
    pub(crate) fn keys(&self, wanted: impl Fn(&What) -> bool) -> Vec<Key> {
        self.running.iter().filter(|(_, errand)| wanted(&errand.what)).map(|(key, _)| key.clone()).collect()
    }

    /// Reads what a started helper says from these streams (1: output, 2: error).
    pub(crate) fn listen(&mut self, key: &str, streams: Vec<(u8, OwnedFd)>) {
        let Some(errand) = self.running.get_mut(key) else { return };
        for (stream, fd) in streams {
            let fd = match watched(fd, tokio::io::Interest::READABLE) {
                Ok(fd) => fd,
                Err(error) => {
                    // When epoll is out of memory or watches. Its exit is still heard, and what comes of it says why nothing else was.
                    errand.remember(format!("output {stream} of this helper cannot be read: {error}"));
                    continue;
                }
            };
            errand.open += 1;
            self.readers.spawn(read(key.to_owned(), stream, fd, self.chunks.0.clone()));
        }
    }

    /// Waits for something that a helper said. Cancelling it loses nothing.
    pub(crate) async fn next(&mut self) -> Chunk {
        loop {
            tokio::select! {
                biased;
                chunk = self.chunks.1.recv() => match chunk {
                    Some(chunk) => return chunk,
                    // We hold a sender ourselves, so this does not happen.
                    None => std::future::pending::<()>().await,
                },
                Some(_joined) = self.readers.join_next() => {}
            }
        }
    }

    /// Takes a chunk in; returns the whole lines of standard output in it, and how the errand ended if that was all.
    pub(crate) fn heard(&mut self, chunk: Chunk) -> (Vec<String>, Option<Over>) {
        let Some(errand) = self.running.get_mut(&chunk.key) else { return (Vec::new(), None) };
        let lines = if chunk.bytes.is_empty() {
            errand.open = errand.open.saturating_sub(1);
            errand.take_lines(chunk.stream, b"\n")
        } else {
            errand.take_lines(chunk.stream, &chunk.bytes)
        };
        (lines, self.finish(&chunk.key))
    }

    /// A line of a build step, for its verdict.
    pub(crate) fn remember(&mut self, key: &str, line: String) {
        if let Some(errand) = self.running.get_mut(key) {
            errand.remember(line);
        }
    }

    /// Its process has been reaped.
    pub(crate) fn exited(&mut self, key: &str, how: Ended, tree_gone: bool, now: MonoTime) -> Option<Over> {
        let errand = self.running.get_mut(key)?;
        errand.how = Some(how);
        errand.deadline = None;
        if tree_gone { self.tree_gone(key, now) } else { None }
    }

    /// Nothing is left of its tree.
    pub(crate) fn tree_gone(&mut self, key: &str, now: MonoTime) -> Option<Over> {
        let errand = self.running.get_mut(key)?;
        errand.tree_gone = true;
        errand.farewell = Some(now + FAREWELL);
        self.finish(key)
    }

    /// It could not be started.
    pub(crate) fn failed(&mut self, key: &str, why: String) -> Option<Over> {
        let mut errand = self.running.remove(key)?;
        errand.remember(why);
        Some(errand.over())
    }

    /// Notes that we end it for a reason of our own.
    pub(crate) fn ending(&mut self, key: &str, now: MonoTime) {
        if let Some(errand) = self.running.get_mut(key) {
            errand.ended_by_us = true;
            errand.deadline = Some(now + KILL_AGAIN);
        }
    }

    /// Returns the keys of the errands whose time is up (to be killed), and those that are over because nobody closes their output.
    pub(crate) fn due(&mut self, now: MonoTime) -> (Vec<Key>, Vec<Over>) {
        let mut kill = Vec::new();
        let mut over = Vec::new();
        for (key, errand) in &mut self.running {
            if errand.deadline.is_some_and(|deadline| deadline <= now) {
                // Again until its exit comes: something that was just being forked can be missed once.
                errand.deadline = Some(now + KILL_AGAIN);
                errand.timed_out = errand.timed_out || !errand.ended_by_us;
                kill.push(key.clone());
            }
            if errand.farewell.is_some_and(|farewell| farewell <= now) {
                errand.farewell = None;
                errand.open = 0;
                over.push(key.clone());
            }
        }
        (kill, over.iter().filter_map(|key| self.finish(key)).collect())
    }

    /// The next moment at which [`Self::due`] has something.
    pub(crate) fn next_deadline(&self) -> Option<MonoTime> {
        self.running.values().flat_map(|errand| [errand.deadline, errand.farewell]).flatten().min()
    }

    fn finish(&mut self, key: &str) -> Option<Over> {
        let errand = self.running.get(key)?;
        if errand.how.is_none() || !errand.tree_gone || errand.open > 0 {
            return None;
        }
        self.running.remove(key).map(Errand::over)
    }
}

impl Errand {
    fn new(what: What, deadline: Option<MonoTime>) -> Self {
        Self {
            what,
            deadline,
            timed_out: false,
            ended_by_us: false,
            how: None,
            tree_gone: false,
            open: 0,
            farewell: None,
            partial: [Vec::new(), Vec::new()],
            last_message: None,
            last_lines: VecDeque::new(),
        }
    }

    fn over(self) -> Over {
        Over {
            what: self.what,
            how: self.how,
            timed_out: self.timed_out,
            ended_by_us: self.ended_by_us,
            last_message: self.last_message,
            last_lines: self.last_lines.into(),
        }
    }

    fn remember(&mut self, line: String) {
        if self.last_lines.len() == LAST_LINES {
            self.last_lines.pop_front();
        }
        self.last_lines.push_back(line);
    }

    fn take_lines(&mut self, stream: u8, bytes: &[u8]) -> Vec<String> {
        let partial = &mut self.partial[usize::from(stream != 1)];
        partial.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) =
            partial.iter().position(|&byte| byte == b'\n').or((partial.len() >= LINE_MAX_BYTES).then(|| partial.len() - 1))
        {
            let line: Vec<u8> = partial.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if !line.is_empty() {
                lines.push(line);
            }
        }
        if stream == 1 {
            if let Some(last) = lines.last() {
                self.last_message = Some(last.clone());
            }
            return lines;
        }
        for line in lines {
            self.remember(line);
        }
        Vec::new()
    }
}

/// Reads one stream to its end.
async fn read(key: Key, stream: u8, fd: AsyncFd<OwnedFd>, chunks: mpsc::Sender<Chunk>) {
    let mut buffer = vec![0_u8; 16 << 10];
    loop {
        let Ok(mut guard) = fd.readable().await else { break };
        let read = guard.try_io(|fd| rustix::io::read(fd.get_ref(), &mut buffer).map_err(io::Error::from));
        match read {
            // Somebody else was faster: wait again.
            Err(_would_block) => {}
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(len)) => {
                if chunks.send(Chunk { key: key.clone(), stream, bytes: buffer[..len].to_vec() }).await.is_err() {
                    return;
                }
            }
        }
    }
    // The loop has ended, and nobody waits for the end of the output any more.
    let _nobody_waits = chunks.send(Chunk { key, stream, bytes: Vec::new() }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_a_helper_that_cannot_be_watched_is_named_in_its_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let _inside = runtime.enter();
        let mut errands = Errands::new(0);
        let key = errands.begin("git", What::Leftover, None);
        // The kernel's poll takes no file on a disk.
        let file = tempfile::tempfile().expect("a file");
        errands.listen(&key, vec![(1, file.into())]);
        let over = errands.exited(&key, Ended::Code(0), true, MonoTime::ZERO).expect("nothing else is waited for");
        assert!(matches!(&over.last_lines[..], [line] if line.starts_with("output 1 of this helper cannot be read: ")), "{over:?}");
    }
}
