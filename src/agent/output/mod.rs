//! What workers write, from their pipes into log files, line by line.
//!
//! For: reading thousands of pipes behind one descriptor that a loop can wait on, cutting lines, rotating files, waiting when the disk
//! is full. Not for: the agent's own log (`telling::log`), nor for pipes that carry messages (a helper's stdout).
//!
//! - **No line is lost, none comes twice, when the agent is killed at whatever moment**: how and why is told and shown in [`ledger`].
//! - **No line is cut**: not by rotation, not by a full disk. A line longer than 64 KiB is written in pieces that say so ([`mod@line`]).
//! - **Nobody starves**: ready pipes wait in a queue; each gives at most 64 KiB, then the next has its turn.
//! - **Idle streams cost nothing but their descriptor**: a stream holds memory only while it stands in the middle of a line.
//! - **A full disk or a bad directory stops the reading of those streams only**: their workers wait in write(2) once their pipes are
//!   full; it is told once, tried again every second, and told once more when it goes on.
//!
//! A file is written by one write(2) a turn; there is no fsync: output is for people, and page cache survives everything but the machine.
//! The format and what an operator sees are in `docs/design/output.md`.

mod ledger;
pub(crate) mod line;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use selfstart_core::time::{MonoTime, WallTime};
use selfstart_core::units::Bytes;

use self::ledger::{BATCH_MAX, BatchTarget, ENTRIES_MAX, FillError, Filled, Interrupted, KEY_MAX, LINE_MAX, Ledger, Leftover, SlotNo};
use self::line::Goes;
use crate::sys::gate;
use crate::telling::rotating::{self, Prepared, RotatingFile, Rotation};
use crate::telling::stamp;

pub(crate) use self::ledger::LedgerError;
pub(crate) use self::line::Stream;
pub(crate) use crate::telling::rotating::FileError;

/// How long until a file that could not be written is tried again. A full disk is looked at by people, not within microseconds.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How many pipes one epoll_wait(2) names; more come with the next one.
const EVENTS: usize = 256;
/// How much output one write(2) should carry at most before it is worth doing: half a batch, as prefixes come on top.
const GROUP_BYTES: usize = BATCH_MAX / 2;
/// The most that [`Outputs::finish`] reads from one pipe: four times the largest one. A worker's pipe ends within that, unless
/// something that outlived it goes on writing, and this must not be waited for.
const FINISH_MAX: usize = 4 << 20;

/// The time, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// For waiting.
    pub mono: MonoTime,
    /// For the lines.
    pub wall: WallTime,
}

/// Where a stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sink {
    /// The log file, absolute. Streams with the same file share it; how it is rotated is then what the last one said.
    pub file: PathBuf,
    /// `pool/slot` in front of the text, where slots share a file.
    pub label: Option<String>,
    /// The file is rotated before it would grow beyond this.
    pub max_size: Bytes,
    /// The file is rotated when its first line is older than this and another one comes; `None`: only by size.
    pub max_age: Option<Duration>,
    /// Rotated files kept: `file.1` (the newest) to `file.N`; 0: none.
    pub keep: u32,
    /// Whether its lines are also handed out, for a terminal.
    pub tap: Tap,
}

/// Whether the lines of a stream are also handed out in [`Progress::tapped`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tap {
    /// They only go into the file.
    #[default]
    Closed,
    /// They are handed out once they are in the file.
    Open,
}

/// What one call did.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Whether there may be more to read: call again, after others had their turn. If not, wait for the descriptor.
    pub more: bool,
    /// Bytes taken from pipes.
    pub bytes: usize,
    /// What should be told.
    pub news: Vec<OutputNews>,
    /// Workers whose [`Outputs::finish`] had to wait and is now done.
    pub finished: Vec<String>,
    /// Lines of streams with an open tap, in order.
    pub tapped: Vec<TappedLine>,
}

/// A line of a stream with an open tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TappedLine {
    /// Whose.
    pub key: String,
    /// Which stream.
    pub stream: Stream,
    /// Without the newline; a long line comes in pieces.
    pub text: Vec<u8>,
}

/// Something about output that a person should know.
#[derive(Debug)]
pub(crate) enum OutputNews {
    /// A file cannot be written; its streams wait, nothing is lost. Told once until [`OutputNews::GoesOn`].
    Waits {
        /// Which, and why.
        error: FileError,
    },
    /// It is written again.
    GoesOn {
        /// Which.
        file: PathBuf,
        /// For how long it was not.
        after: Duration,
    },
    /// It had been removed or replaced, and was made anew.
    Recreated {
        /// Which.
        file: PathBuf,
    },
    /// It became `file.1`.
    Rotated {
        /// Which.
        file: PathBuf,
    },
    /// It should be rotated and cannot be; it grows on by as much again before that is tried and told once more.
    NotRotated {
        /// Which, and why.
        error: FileError,
    },
    /// One stream cannot be read and is left alone.
    Unreadable {
        /// Whose.
        key: String,
        /// Which stream.
        stream: Stream,
        /// Why.
        error: io::Error,
    },
}

/// Whether a worker's output is all in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Finish {
    /// It is; the keeper may close the pipes.
    Done,
    /// Its file cannot be written now: keep the pipes until [`Progress::finished`] names it.
    Waits,
}

/// Why output cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// The ledger: only a restart of the agent helps, which restores it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// epoll(7).
    #[error("failed to wait for worker output")]
    Wait(#[source] io::Error),
    /// A pipe could not be watched.
    #[error("failed to watch the output of `{key}`")]
    Watch {
        /// Whose.
        key: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Longer than a key can be.
    #[error("failed to watch the output of `{0}`: the name is too long")]
    KeyTooLong(String),
    /// That stream is already there.
    #[error("failed to watch the output of `{0}`: it is watched already")]
    Twice(String),
}

/// The names under which the keeper keeps what must outlive the agent, in the order of [`Outputs::kept`].
pub(crate) const KEPT: [&str; 3] = ["output-ledger", "output-transit-read", "output-transit-write"];

/// The output of all workers.
#[derive(Debug)]
pub(crate) struct Outputs {
    ledger: Ledger,
    epoll: OwnedFd,
    streams: Vec<Option<StreamState>>,
    free_streams: Vec<usize>,
    keys: HashMap<Rc<str>, [Option<usize>; 2]>,
    files: Files,
    /// Streams that have something, in the order of their turns.
    queue: VecDeque<usize>,
    /// When streams that found no memory are given another turn; `None`: there are none.
    starved: Option<MonoTime>,
    /// What former agents left in slots, until its stream is added.
    strangers: HashMap<(String, Stream), SlotNo>,
}

#[derive(Debug)]
struct StreamState {
    key: Rc<str>,
    stream: Stream,
    fd: OwnedFd,
    file: usize,
    label: Option<String>,
    tap: Tap,
    slot: Option<SlotNo>,
    watch: Watch,
    /// In `queue`.
    queued: bool,
    /// Its worker has ended: what is left of a line is a line.
    finishing: bool,
    /// There was no memory for it.
    starved: bool,
}

/// Whether epoll looks at a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    On,
    /// Not while its file cannot be written, or there is no memory for it.
    Waits,
    /// Nothing more can come, or its worker has ended.
    Over,
}

impl Outputs {
    /// Lets this group read the files that are made or opened from now on; `None`: that of who makes them.
    pub(crate) fn set_readers(&mut self, group: Option<u32>) {
        self.files.readers = group;
        self.files.all.iter_mut().flatten().for_each(|state| state.log.set_readers(group));
    }

    /// Begins with nothing. Give [`Outputs::kept`] to the keeper before the first [`Outputs::add`].
    ///
    /// # Errors
    /// If there is no memory or no descriptor for it.
    pub(crate) fn create() -> Result<Self, OutputError> {
        Self::with(Ledger::create()?)
    }

    /// Goes on where a former agent ended, with what the keeper kept under the names of [`KEPT`]; a line that was being written is
    /// completed in its file. [`Outputs::add`] all streams again after this.
    ///
    /// # Errors
    /// If it is not what [`Outputs::kept`] gave: then [`Outputs::create`] a new one, and tell that lines may be missing.
    pub(crate) fn restore(kept: [OwnedFd; 3]) -> Result<Self, OutputError> {
        let (mut ledger, leftovers) = Ledger::restore(kept)?;
        if let Some(interrupted) = ledger.interrupted() {
            if complete(&interrupted, ledger.batch(interrupted.len)) {
                ledger.end_write()?;
            } else {
                ledger.undo_write();
            }
        }
        let mut outputs = Self::with(ledger)?;
        for Leftover { slot, key, stream } in leftovers {
            if outputs.ledger.tidy(slot) {
                outputs.strangers.insert((key, stream), slot);
            }
        }
        Ok(outputs)
    }

    fn with(ledger: Ledger) -> Result<Self, OutputError> {
        Ok(Self {
            ledger,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| OutputError::Wait(e.into()))?,
            streams: Vec::new(),
            free_streams: Vec::new(),
            keys: HashMap::new(),
            files: Files::default(),
            queue: VecDeque::new(),
            starved: None,
            strangers: HashMap::new(),
        })
    }

    /// What the keeper must hold under the names of [`KEPT`].
    #[must_use]
    pub(crate) fn kept(&self) -> [BorrowedFd<'_>; 3] {
        self.ledger.kept()
    }

    /// Watches one stream of one worker. `fd` is the read end of a pipe; what is already in it is read as well.
    ///
    /// # Errors
    /// If that stream is there already, its key is longer than 240 bytes, or epoll refuses the descriptor.
    pub(crate) fn add(&mut self, key: &str, stream: Stream, fd: OwnedFd, sink: Sink) -> Result<(), OutputError> {
        if key.len() > KEY_MAX {
            return Err(OutputError::KeyTooLong(key.to_owned()));
        }
        if self.keys.get(key).is_some_and(|both| both[stream as usize].is_some()) {
            return Err(OutputError::Twice(key.to_owned()));
        }
        let index = self.free_streams.pop().unwrap_or(self.streams.len());
        if let Err(error) = epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN) {
            if index < self.streams.len() {
                self.free_streams.push(index);
            }
            return Err(OutputError::Watch { key: key.to_owned(), source: error.into() });
        }
        if index == self.streams.len() {
            self.streams.push(None);
        }
        let name: Rc<str> = self.keys.get_key_value(key).map_or_else(|| key.into(), |(name, _)| name.clone());
        self.keys.entry(name.clone()).or_default()[stream as usize] = Some(index);
        let slot = self.strangers.remove(&(key.to_owned(), stream));
        let file = self.files.enter(&sink);
        let Sink { label, tap, .. } = sink;
        self.streams[index] = Some(StreamState {
            key: name,
            stream,
            fd,
            file,
            label,
            tap,
            slot,
            watch: Watch::On,
            queued: false,
            finishing: false,
            starved: false,
        });
        // Whole lines may be among what the former agent left.
        if slot.is_some() {
            self.enqueue(index);
        }
        Ok(())
    }

    /// Returns the workers whose output is watched.
    pub(crate) fn workers(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(AsRef::as_ref)
    }

    /// Lets the output of a worker go to another file, or to the same one with another label or rotation, from the next write on. No line is
    /// cut: one whose end has not come yet goes there whole. What waited for a file that cannot be written waits no longer.
    pub(crate) fn redirect(&mut self, key: &str, sink: &Sink, now: Now) {
        for index in self.keys.get(key).copied().unwrap_or_default().into_iter().flatten() {
            let Some(state) = &mut self.streams[index] else { continue };
            // In this order: a file that stays the same stays open.
            let former = std::mem::replace(&mut state.file, self.files.enter(sink));
            state.label.clone_from(&sink.label);
            let waits = state.watch == Watch::Waits || state.finishing;
            self.files.leave(former);
            if waits {
                self.watch_again(index, now);
            }
        }
    }

    /// Reads about `budget` bytes of what is there, at most 64 KiB from each pipe in its turn, and appends the lines to their files.
    /// Call it when the descriptor ([`AsFd`]) is readable, when [`Progress::more`] said so, and at [`Outputs::next_retry`].
    ///
    /// # Errors
    /// Only what ends output as a whole; what concerns one file or one stream is in [`Progress::news`].
    pub(crate) fn ready(&mut self, now: Now, budget: usize) -> Result<Progress, OutputError> {
        let mut progress = Progress::default();
        self.retry(now);
        let mut left = budget.max(1);
        while left > 0 {
            if self.queue.is_empty() && !self.poll()? {
                self.files.postpone(now);
                return Ok(progress);
            }
            let before = progress.bytes;
            self.turn(now, &mut progress)?;
            // A turn that found nothing costs as well: a flood of empty turns must not hold the loop.
            left = left.saturating_sub((progress.bytes - before).max(4096));
        }
        progress.more = true;
        Ok(progress)
    }

    /// Reads what a worker that has ended left in its pipes, writes it, a line without its end too, and forgets the worker.
    /// A worker that is not known is done.
    ///
    /// # Errors
    /// As [`Outputs::ready`].
    pub(crate) fn finish(&mut self, key: &str, now: Now) -> Result<(Finish, Progress), OutputError> {
        let mut progress = Progress::default();
        for index in self.keys.get(key).copied().unwrap_or_default().into_iter().flatten() {
            self.unwatch(index, Watch::Over);
            if let Some(state) = &mut self.streams[index] {
                state.finishing = true;
            }
            self.finish_stream(index, now, &mut progress)?;
        }
        progress.finished.retain(|finished| finished != key);
        let done = if self.keys.contains_key(key) { Finish::Waits } else { Finish::Done };
        Ok((done, progress))
    }

    /// Closes all files; each is opened by its name when its next line comes (USR1, for a logrotate that renames).
    pub(crate) fn reopen(&mut self) {
        for file in self.files.all.iter_mut().flatten() {
            file.log.close();
        }
    }

    /// When [`Outputs::ready`] must be called although nothing is readable: a file waits to be tried again, or a stream for memory.
    #[must_use]
    pub(crate) fn next_retry(&self) -> Option<MonoTime> {
        self.files.next_retry().into_iter().chain(self.starved).min()
    }

    /// How many files cannot be written now, so that what is for them waits.
    #[must_use]
    pub(crate) fn waiting_files(&self) -> usize {
        self.files.all.iter().flatten().filter(|file| file.trouble.is_some()).count()
    }

    /// Drops what former agents left of streams that were not added again, once all have been; returns how many there were.
    pub(crate) fn forget_strangers(&mut self) -> usize {
        let strangers = std::mem::take(&mut self.strangers);
        for slot in strangers.values() {
            self.ledger.give_back(*slot);
        }
        strangers.len()
    }

    /// Takes from epoll who has something; returns whether anybody has.
    fn poll(&mut self) -> Result<bool, OutputError> {
        let mut events = [const { MaybeUninit::uninit() }; EVENTS];
        let none = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let events: &[epoll::Event] = match epoll::wait(&self.epoll, &mut events, Some(&none)) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => &[],
            Err(error) => return Err(OutputError::Wait(error.into())),
        };
        let mut ready: Vec<usize> = events.iter().filter_map(|event| usize::try_from(event.data.u64()).ok()).collect();
        // Streams of one file side by side, so that one write serves them all.
        ready.sort_by_key(|index| self.streams.get(*index).and_then(Option::as_ref).map(|state| (state.file, *index)));
        for index in ready {
            self.enqueue(index);
        }
        Ok(!self.queue.is_empty())
    }

    fn enqueue(&mut self, index: usize) {
        if let Some(Some(state)) = self.streams.get_mut(index)
            && !state.queued
        {
            state.queued = true;
            self.queue.push_back(index);
        }
    }

    /// Gives the first in the queue, and those behind it with the same file, their turn.
    fn turn(&mut self, now: Now, progress: &mut Progress) -> Result<(), OutputError> {
        let mut group = Vec::new();
        let mut bytes = 0;
        let mut file = None;
        while let Some(&index) = self.queue.front() {
            let Some(state) = &mut self.streams[index] else {
                self.queue.pop_front();
                continue;
            };
            // A file that was in trouble is tried with one stream: the others must not fill memory with what it may not take.
            let enough = bytes >= GROUP_BYTES || group.len() >= ENTRIES_MAX || (!group.is_empty() && self.files.in_trouble(state.file));
            if file.is_some_and(|file| file != state.file || enough) {
                break;
            }
            self.queue.pop_front();
            state.queued = false;
            file = Some(state.file);
            if state.finishing {
                self.finish_stream(index, now, progress)?;
                break;
            }
            if self.files.is_stuck(state.file, now) {
                self.files.wait(state.file, now);
                self.unwatch(index, Watch::Waits);
                continue;
            }
            match self.fill(index, progress)? {
                Fill::Bytes(n) => bytes += n,
                Fill::Nothing | Fill::Full => {}
                Fill::NoSlot => {
                    self.no_slot(index, now);
                    continue;
                }
            }
            group.push(index);
        }
        progress.bytes += bytes;
        self.write_out(&group, Tail::Stays, now, progress)
    }

    /// Moves what is in a pipe into the stream's slot.
    fn fill(&mut self, index: usize, progress: &mut Progress) -> Result<Fill, OutputError> {
        let Some(state) = &mut self.streams[index] else { return Ok(Fill::Nothing) };
        let slot = match state.slot {
            // While its file takes nothing, a stream holds one chunk and no more.
            Some(_) if self.files.in_trouble(state.file) => return Ok(Fill::Full),
            Some(slot) => slot,
            None => match self.ledger.take(&state.key, state.stream) {
                Some(slot) => *state.slot.insert(slot),
                None => return Ok(Fill::NoSlot),
            },
        };
        match self.ledger.fill(slot, state.fd.as_fd()) {
            Ok(Filled::Bytes(n)) => return Ok(Fill::Bytes(n)),
            Ok(Filled::Full) => return Ok(Fill::Full),
            Ok(Filled::Empty) => return Ok(Fill::Nothing),
            Ok(Filled::Ended) => {}
            Err(FillError::Source(error)) => {
                progress.news.push(OutputNews::Unreadable { key: state.key.to_string(), stream: state.stream, error });
            }
            Err(FillError::Ledger(error)) => return Err(error.into()),
        }
        // Else epoll would report the hang-up for ever. What is in the slot stays until `finish`.
        self.unwatch(index, Watch::Over);
        Ok(Fill::Nothing)
    }

    /// Reads a stream to its end, writes all, forgets it; or leaves it waiting.
    fn finish_stream(&mut self, index: usize, now: Now, progress: &mut Progress) -> Result<(), OutputError> {
        let mut taken = 0;
        loop {
            let Some(state) = &self.streams[index] else { return Ok(()) };
            if self.files.is_stuck(state.file, now) {
                self.files.wait(state.file, now);
                return Ok(());
            }
            let last = match self.fill(index, progress)? {
                Fill::Bytes(n) => {
                    taken += n;
                    progress.bytes += n;
                    taken >= FINISH_MAX
                }
                Fill::Nothing => true,
                Fill::Full => false,
                Fill::NoSlot => {
                    self.no_slot(index, now);
                    return Ok(());
                }
            };
            self.write_out(&[index], if last { Tail::Ends } else { Tail::Stays }, now, progress)?;
            if last && self.streams[index].as_ref().is_none_or(|state| state.slot.is_none()) {
                break;
            }
        }
        self.forget(index, progress);
        Ok(())
    }

    /// No memory for this stream now: it waits, and it alone. Its file is well, and others go on writing to it.
    fn no_slot(&mut self, index: usize, now: Now) {
        self.unwatch(index, Watch::Waits);
        if let Some(state) = &mut self.streams[index] {
            state.starved = true;
            self.starved.get_or_insert(now.mono + RETRY_AFTER);
        }
    }

    /// Writes the whole lines of streams that share a file, and what is left of them as `tail` says.
    fn write_out(&mut self, group: &[usize], tail: Tail, now: Now, progress: &mut Progress) -> Result<(), OutputError> {
        let Some(file) = group.iter().find_map(|index| self.streams[*index].as_ref()).map(|state| state.file) else { return Ok(()) };
        let stamp = stamp::stamp(now.wall);
        let mut failed = false;
        while group.iter().any(|index| self.has_line(*index, tail)) {
            if let Err(error) = self.write_batch(file, group, tail, &stamp, now, progress)? {
                self.files.fail(file, error, now, progress);
                failed = true;
                for index in group {
                    self.unwatch(*index, Watch::Waits);
                }
                break;
            }
        }
        if !failed {
            self.files.calm(file);
        }
        for index in group {
            let Some(Some(state)) = self.streams.get_mut(*index) else { continue };
            if let Some(slot) = state.slot {
                if self.ledger.tidy(slot) {
                    self.ledger.park(slot);
                } else {
                    state.slot = None;
                }
            }
        }
        Ok(())
    }

    /// Whether a stream has something that can be written.
    fn has_line(&self, index: usize, tail: Tail) -> bool {
        let Some(slot) = self.streams[index].as_ref().and_then(|state| state.slot) else { return false };
        let bytes = self.ledger.bytes(slot);
        bytes.len() >= LINE_MAX || (tail != Tail::Stays && !bytes.is_empty()) || memchr::memchr(b'\n', bytes).is_some()
    }

    /// Writes as many lines as fit into one batch and into the file, or makes room for them.
    fn write_batch(
        &mut self,
        file: usize,
        group: &[usize],
        tail: Tail,
        stamp: &str,
        now: Now,
        progress: &mut Progress,
    ) -> Result<Result<(), FileError>, OutputError> {
        let Some(log) = self.files.log(file) else { return Ok(Ok(())) };
        match log.prepare(now.wall) {
            Ok(Prepared::Good) => {}
            Ok(Prepared::Recreated) => progress.news.push(OutputNews::Recreated { file: log.path().to_owned() }),
            Ok(Prepared::TooOld) => {
                rotate(log, now, progress);
                return Ok(Ok(()));
            }
            Err(error) => return Ok(Err(error)),
        }
        let Some((dev, ino, from)) = log.state() else { return Ok(Ok(())) };
        let room = usize::try_from(log.room()).unwrap_or(usize::MAX);
        let batch = self.put_together(group, tail, stamp, from == 0, room);
        let Some(log) = self.files.log(file) else { return Ok(Ok(())) };
        if batch.len == 0 {
            rotate(log, now, progress);
            return Ok(Ok(()));
        }
        let target = BatchTarget { path: log.path(), dev, ino, from, len: batch.len };
        if let Err(source) = self.ledger.begin_write(&target, &batch.from) {
            return Ok(Err(FileError::Open { path: log.path().to_owned(), source }));
        }
        if let Err(error) = log.append(self.ledger.batch(batch.len), now.wall) {
            self.ledger.undo_write();
            return Ok(Err(error));
        }
        self.ledger.end_write()?;
        progress.tapped.extend(batch.tapped);
        self.files.good(file, now, progress);
        Ok(Ok(()))
    }

    /// Puts lines into the batch, in the order of the group, until the next one does not fit.
    fn put_together(&mut self, group: &[usize], tail: Tail, stamp: &str, file_is_empty: bool, room: usize) -> Batch {
        let mut batch = Batch::default();
        for index in group {
            let Some(StreamState { slot: Some(slot), key, stream, label, tap, .. }) = &self.streams[*index] else { continue };
            let (to, bytes) = self.ledger.batch_mut_and_bytes(*slot);
            let mut taken = 0;
            let mut full = false;
            while let Some(piece) = next_piece(&bytes[taken..], tail) {
                let need = line::written_len(stamp, label.as_deref(), piece.goes, piece.text);
                // A line that is larger than max_size gets a file of its own: it is never cut.
                let fits = batch.len + need <= room || (batch.len == 0 && file_is_empty);
                if !fits || batch.len + need > to.len() {
                    full = true;
                    break;
                }
                batch.len += line::write(&mut to[batch.len..], stamp, *stream, label.as_deref(), piece.goes, piece.text);
                taken += piece.taken;
                if *tap == Tap::Open {
                    batch.tapped.push(TappedLine { key: key.to_string(), stream: *stream, text: piece.text.to_vec() });
                }
            }
            if taken > 0 {
                batch.from.push((*slot, taken));
            }
            if full {
                break;
            }
        }
        batch
    }

    /// Drops a stream that has nothing any more, and its worker with the second one.
    fn forget(&mut self, index: usize, progress: &mut Progress) {
        let Some(state) = self.streams[index].take() else { return };
        self.free_streams.push(index);
        self.files.leave(state.file);
        if let Some(both) = self.keys.get_mut(&state.key) {
            both[state.stream as usize] = None;
            if both.iter().all(Option::is_none) {
                self.keys.remove(&state.key);
                progress.finished.push(state.key.to_string());
            }
        }
    }

    fn unwatch(&mut self, index: usize, to: Watch) {
        let Some(Some(state)) = self.streams.get_mut(index) else { return };
        if state.watch == Watch::On {
            // It fails only if it is not there, and then there is nothing to undo.
            let _ = epoll::delete(&self.epoll, &state.fd);
        }
        if state.watch != Watch::Over {
            state.watch = to;
        }
    }

    /// Looks at a pipe again after its file was in trouble, and gives it a turn.
    fn watch_again(&mut self, index: usize, now: Now) {
        let Some(Some(state)) = self.streams.get_mut(index) else { return };
        if state.watch == Watch::Waits {
            let flags = epoll::EventFlags::IN;
            match epoll::add(&self.epoll, &state.fd, epoll::EventData::new_u64(index as u64), flags) {
                Ok(()) => state.watch = Watch::On,
                // Out of memory for the watch: it stays waiting, and is given a turn with the next try.
                Err(_) => return self.no_slot(index, now),
            }
        }
        self.enqueue(index);
    }

    /// Gives the streams whose time has come another turn.
    fn retry(&mut self, now: Now) {
        if self.starved.is_some_and(|at| now.mono >= at) {
            self.starved = None;
            for index in 0..self.streams.len() {
                if self.streams[index].as_mut().is_some_and(|state| std::mem::take(&mut state.starved)) {
                    self.watch_again(index, now);
                }
            }
        }
        if self.files.next_retry().is_none_or(|at| now.mono < at) {
            return;
        }
        let mut due: Vec<usize> = (0..self.streams.len())
            .filter(|index| {
                let Some(state) = &self.streams[*index] else { return false };
                let waits = state.watch == Watch::Waits || state.slot.is_some() || state.finishing;
                waits && self.files.in_trouble(state.file) && !self.files.is_stuck(state.file, now)
            })
            .collect();
        // First those that hold something: they try the file without taking more from a pipe.
        due.sort_by_key(|index| self.streams[*index].as_ref().map(|state| (state.file, state.slot.is_none())));
        for index in due {
            self.watch_again(index, now);
        }
    }
}

impl AsFd for Outputs {
    /// The descriptor that is readable while a pipe has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Rotates a file; if that cannot be, it grows on: workers do not wait because a directory is read-only.
fn rotate(log: &mut RotatingFile, now: Now, progress: &mut Progress) {
    progress.news.push(match log.rotate() {
        Ok(()) => OutputNews::Rotated { file: log.path().to_owned() },
        Err(error) => {
            log.postpone_rotation(now.wall, BATCH_MAX as u64);
            OutputNews::NotRotated { error }
        }
    });
}

/// What [`Outputs::fill`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Bytes(usize),
    Nothing,
    Full,
    NoSlot,
}

/// What becomes of the bytes behind the last newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    /// They wait for the rest of their line.
    Stays,
    /// They are a line: nothing more will come.
    Ends,
}

/// A line, or a piece of one.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'a> {
    text: &'a [u8],
    goes: Goes,
    /// How many bytes it is in the stream, with its newline.
    taken: usize,
}

fn next_piece(bytes: &[u8], tail: Tail) -> Option<Piece<'_>> {
    let window = &bytes[..bytes.len().min(LINE_MAX + 1)];
    if let Some(end) = memchr::memchr(b'\n', window) {
        return Some(Piece { text: &bytes[..end], goes: Goes::Ends, taken: end + 1 });
    }
    if bytes.len() > LINE_MAX || (bytes.len() == LINE_MAX && tail == Tail::Stays) {
        return Some(Piece { text: &bytes[..LINE_MAX], goes: Goes::On, taken: LINE_MAX });
    }
    match tail {
        _ if bytes.is_empty() => None,
        Tail::Stays => None,
        Tail::Ends => Some(Piece { text: bytes, goes: Goes::Ends, taken: bytes.len() }),
    }
}

#[derive(Debug, Default)]
struct Batch {
    len: usize,
    from: Vec<(SlotNo, usize)>,
    tapped: Vec<TappedLine>,
}

/// The files, and what is wrong with them.
#[derive(Debug, Default)]
struct Files {
    all: Vec<Option<FileState>>,
    paths: HashMap<PathBuf, usize>,
    /// Disks that are full, and when to look again.
    full: BTreeMap<u64, MonoTime>,
    /// The group that may read them.
    readers: Option<u32>,
}

#[derive(Debug)]
struct FileState {
    log: RotatingFile,
    /// How many streams it has; closed when there is none.
    streams: usize,
    trouble: Option<Trouble>,
}

#[derive(Clone, Copy, Debug)]
struct Trouble {
    since: MonoTime,
    retry_at: MonoTime,
    /// One file is told for all of a full disk.
    told: bool,
}

impl Files {
    /// The file of a sink, for one more stream.
    fn enter(&mut self, sink: &Sink) -> usize {
        let rotation = Rotation { max_size: sink.max_size.0, max_age: sink.max_age, keep: sink.keep };
        if let Some(&index) = self.paths.get(&sink.file)
            && let Some(state) = &mut self.all[index]
        {
            state.streams += 1;
            state.log.set_rotation(rotation);
            return index;
        }
        let mut log = RotatingFile::new(sink.file.clone(), rotation);
        log.set_readers(self.readers);
        let state = FileState { log, streams: 1, trouble: None };
        let index = self.all.iter().position(Option::is_none).unwrap_or(self.all.len());
        if index == self.all.len() {
            self.all.push(None);
        }
        self.all[index] = Some(state);
        self.paths.insert(sink.file.clone(), index);
        index
    }

    fn leave(&mut self, index: usize) {
        let Some(state) = &mut self.all[index] else { return };
        state.streams -= 1;
        if state.streams == 0 {
            self.paths.remove(state.log.path());
            self.all[index] = None;
        }
    }

    fn log(&mut self, index: usize) -> Option<&mut RotatingFile> {
        self.all[index].as_mut().map(|state| &mut state.log)
    }

    fn in_trouble(&self, index: usize) -> bool {
        self.all[index].as_ref().is_some_and(|state| state.trouble.is_some())
    }

    /// Whether a file, or the disk that it is on, is known to take nothing now.
    fn is_stuck(&self, index: usize, now: Now) -> bool {
        let Some(state) = &self.all[index] else { return false };
        let own = state.trouble.is_some_and(|trouble| now.mono < trouble.retry_at);
        own || state.log.dev().and_then(|dev| self.full.get(&dev)).is_some_and(|retry_at| now.mono < *retry_at)
    }

    /// Somebody waits for this file, in trouble of its own or of its disk's.
    fn wait(&mut self, index: usize, now: Now) {
        let Some(state) = &mut self.all[index] else { return };
        let retry_at = now.mono + RETRY_AFTER;
        let trouble = state.trouble.get_or_insert(Trouble { since: now.mono, retry_at, told: false });
        if trouble.retry_at <= now.mono {
            trouble.retry_at = retry_at;
        }
    }

    fn fail(&mut self, index: usize, error: FileError, now: Now, progress: &mut Progress) {
        self.wait(index, now);
        let Some(state) = &mut self.all[index] else { return };
        let mut told_for_disk = false;
        if error.is_disk_full()
            && let Some(dev) = state.log.dev()
        {
            told_for_disk = self.full.insert(dev, now.mono + RETRY_AFTER).is_some();
        }
        if let Some(trouble) = &mut state.trouble
            && !trouble.told
            && !told_for_disk
        {
            trouble.told = true;
            progress.news.push(OutputNews::Waits { error });
        }
    }

    /// It was written.
    fn good(&mut self, index: usize, now: Now, progress: &mut Progress) {
        let Some(state) = &mut self.all[index] else { return };
        let Some(trouble) = state.trouble.take() else { return };
        if let Some(dev) = state.log.dev() {
            self.full.remove(&dev);
        }
        if trouble.told {
            progress.news.push(OutputNews::GoesOn { file: state.log.path().to_owned(), after: now.mono.since(trouble.since) });
        }
    }

    /// Whoever wanted to write to it had nothing to write: nobody knows of a trouble that it would have of its own.
    fn calm(&mut self, index: usize) {
        if let Some(state) = &mut self.all[index]
            && state.trouble.is_some_and(|trouble| !trouble.told)
        {
            state.trouble = None;
        }
    }

    /// All whose time had come had their turn. Where nobody had anything to write, the time comes again later, and not at once for ever.
    fn postpone(&mut self, now: Now) {
        for trouble in self.all.iter_mut().flatten().filter_map(|file| file.trouble.as_mut()) {
            if trouble.retry_at <= now.mono {
                trouble.retry_at = now.mono + RETRY_AFTER;
            }
        }
    }

    fn next_retry(&self) -> Option<MonoTime> {
        self.all.iter().flatten().filter_map(|file| file.trouble.map(|trouble| trouble.retry_at)).min()
    }
}

/// Carries on a write that a kill interrupted, in the file in which it began: under its own name, or under one that it got since.
///
/// Returns whether `batch` is now whole in that file; if not, nothing of it is, as far as that can be had.
fn complete(interrupted: &Interrupted, batch: &[u8]) -> bool {
    let Some(fd) = find(interrupted) else { return false };
    let Ok(stat) = rustix::fs::fstat(&fd) else { return false };
    let Some(written) = rotating::length(&stat).checked_sub(interrupted.from).and_then(|n| usize::try_from(n).ok()) else { return false };
    let Some(begun) = batch.get(..written) else { return false };
    // Somebody else wrote there: what belongs to whom cannot be known. The batch is written once more; nothing of others is touched.
    let mut there = vec![0; written];
    if !matches!(rustix::io::pread(&fd, &mut there[..], interrupted.from), Ok(n) if n == written) || there != begun {
        return false;
    }
    if rotating::write_all(&fd, &batch[written..]).is_ok() {
        return true;
    }
    // It stays torn if even this fails; the line's end is then written when the file is opened.
    let _ = gate::ftruncate(&fd, interrupted.from);
    false
}

/// Opens the file that an interrupted batch was for.
fn find(interrupted: &Interrupted) -> Option<OwnedFd> {
    let open = |path: &Path| {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        ((stat.st_dev, stat.st_ino) == (interrupted.dev, interrupted.ino)).then_some(fd)
    };
    open(&interrupted.path).or_else(|| {
        use std::os::unix::fs::DirEntryExt;
        let entries = fs_err::read_dir(interrupted.path.parent()?).ok()?;
        // The entry's own number is asked first: only the file itself is opened.
        entries.flatten().filter(|entry| entry.ino() == interrupted.ino).find_map(|entry| open(&entry.path()))
    })
}
