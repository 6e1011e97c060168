//! The bytes between a worker's pipe and its log file, and how far each step with them has come, in memory that outlives the agent.
//!
//! For: moving bytes so that a SIGKILL between any two instructions neither loses one nor writes one twice. Not for: what a line
//! is, which file it belongs to, when to read (`super`).
//!
//! # Where a byte can be
//!
//! ```text
//!   worker's pipe ──splice──▶ transit pipe ──read──▶ slot ──format──▶ batch ──write──▶ log file
//!   (keeper's)                (keeper's)             └── shared memory (keeper's) ──┘  (page cache)
//! ```
//!
//! All five outlive the agent: the keeper holds the pipes and the memfd, the kernel holds the file. A slot belongs to one stream
//! and is taken only while there is something in it, so that idle streams have none. The book (the first page of the memory) says
//! what is under way; on start [`Ledger::restore`] reads it and carries every step on from where it stopped.
//!
//! # Why nothing is lost and nothing comes twice
//!
//! Each system call used is all or nothing for SIGKILL, or leaves behind how far it came; each store is one aligned word, and stores
//! become visible in program order (`sys::shared_map`).
//!
//! 1. *Fill.* `FILL_SLOT` names the slot before the splice. splice(2) between two pipes moves whole buffers under both pipes' locks,
//!    and as only we fill the transit pipe, and only when it is empty, `FIONREAD` on it says how much was moved: `FILL_COUNT` keeps
//!    that number once it is known, before anything is read. The read into the slot lands `FILL_COUNT - FIONREAD` bytes behind `FILL_BASE`'s end, whatever
//!    the read returned or failed to return. So, killed before the splice: nothing in the transit pipe, nothing happened. Killed
//!    after it: the rest is read on. Killed after the new end was stored: storing it again changes nothing. (Reading from the
//!    worker's pipe directly could not tell "read, and the worker wrote as much again" from "not read".)
//! 2. *Write.* The batch, the file's identity and its length before (`BATCH_FROM`) are in the book before `PHASE` says `WRITE`.
//!    Nobody else appends to the file, so its length says how much of the batch is in it; the rest is written on, the same bytes.
//! 3. *Apply.* Once the batch is whole in the file `PHASE` says `APPLY`, and each slot's begin is set behind what was written: one
//!    store each, which can be repeated.
//! 4. What stays in a slot (a line without its end yet) is moved to the front only where old and new place do not overlap, and the
//!    begin and end change in one store.
//!
//! What this does not cover: power cuts (the memory is gone, and so are the workers), and a log file that others append to,
//! truncate or remove between a kill and the next start; then lines may come twice, but are not lost from here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use rustix::pipe::{PipeFlags, SpliceFlags};

use super::line::Stream;
use crate::sys::fault;
use crate::sys::shared_map::{SharedFile, SharedMap};

/// The most that is taken from a pipe at a time: the default size of a pipe (`pipe(7)`).
pub(super) const CHUNK: usize = 64 * 1024;
/// A line longer than this is written in pieces.
pub(super) const LINE_MAX: usize = 64 * 1024;
/// The most that is written to a file at a time; more than one piece of [`LINE_MAX`] with its prefix.
pub(super) const BATCH_MAX: usize = 256 * 1024;
/// The longest key: a pool's name, two numbers, and room.
pub(super) const KEY_MAX: usize = 240;
/// The most slots: streams that stand in the middle of a line at the same time; more have to wait. Twice the workers of three full pools.
const SLOTS_MAX: usize = 65_536;

// The book: words, then bytes.
const MAGIC: usize = 0;
const PHASE: usize = 1;
const FILL_SLOT: usize = 2;
const FILL_BASE: usize = 3;
const FILL_COUNT: usize = 4;
const BATCH_FROM: usize = 5;
const BATCH_LEN: usize = 6;
const BATCH_DEV: usize = 7;
const BATCH_INO: usize = 8;
const BATCH_PATH: usize = 9;
const BATCH_ENTRIES: usize = 10;
/// One word for each slot that the batch is from: slot in the high half, new begin in the low half.
const ENTRIES: usize = 16;
/// How many slots one batch can be from.
pub(super) const ENTRIES_MAX: usize = 256;
/// One word for each slot: see [`Extent`].
const EXTENTS: usize = 512;
const WORDS: usize = EXTENTS + SLOTS_MAX;
const PATH_AT: usize = WORDS * 8;
const PATH_MAX: usize = 4096;
const BATCH_AT: usize = PATH_AT + PATH_MAX;
const BOOK_LEN: usize = BATCH_AT + BATCH_MAX;

/// The layout's version is the last digit.
const MAGIC_WORD: u64 = u64::from_be_bytes(*b"selfout1");
const IDLE: u64 = 0;
const WRITE: u64 = 1;
const APPLY: u64 = 2;

/// A slot: its owner's name, then bytes.
const SLOT_LEN: usize = 196 * 1024;
const SLOT_DATA: usize = 256;
/// Room for bytes in a slot. At least 2 x LINE_MAX + CHUNK, so that when a chunk does not fit behind a rest of at most LINE_MAX,
/// the rest can be moved to the front without overlap.
const SLOT_ROOM: usize = SLOT_LEN - SLOT_DATA;
const GROUP_SLOTS: usize = 64;
const GROUP_LEN: usize = GROUP_SLOTS * SLOT_LEN;
/// Pages of the first slots are kept when they are free: the streams that are read take turns in them.
const WARM_SLOTS: u32 = 4;
const PAGE: usize = 4096;

const _: () = {
    assert!(SLOT_ROOM >= 2 * LINE_MAX + CHUNK);
    assert!(ENTRIES + ENTRIES_MAX <= EXTENTS);
    assert!(BATCH_MAX >= 2 * LINE_MAX);
    // Maps begin on pages, also where pages have 64 KiB: the book is mapped from 0 and groups at multiples of 64 KiB.
    assert!(GROUP_LEN.is_multiple_of(64 * 1024));
};

/// Where the groups of slots begin in the memfd.
const GROUPS_AT: u64 = (BOOK_LEN as u64).next_multiple_of(64 * 1024);

/// A slot's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotNo(u32);

/// Which part of a slot holds bytes; all zero: the slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    begin: usize,
    end: usize,
}

impl Extent {
    const EMPTY: Self = Self { begin: 0, end: 0 };

    const fn word(self) -> u64 {
        ((self.begin as u64) << 32) | self.end as u64
    }

    const fn from_word(word: u64) -> Self {
        Self { begin: (word >> 32) as usize, end: (word & 0xffff_ffff) as usize }
    }

    const fn is_sound(self) -> bool {
        self.begin <= self.end && self.end <= SLOT_ROOM
    }

    const fn len(self) -> usize {
        self.end - self.begin
    }
}

/// The set word of a slot that is taken and empty would be that of a free one; this bit tells them apart.
const TAKEN: u64 = 1 << 63;

/// Why the ledger cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    /// Memory or pipes were not to be had.
    #[error("failed to make the ledger of worker output")]
    Create(#[source] io::Error),
    /// What the keeper kept is not what was given to it.
    #[error("not a ledger of worker output: {0}")]
    Foreign(&'static str),
    /// The keeper's memory could not be mapped.
    #[error("failed to take up the ledger of worker output")]
    Restore(#[source] io::Error),
    /// Bytes are in the transit pipe and do not come out; only a new agent that restores the ledger can go on.
    #[error("failed to read from the transit pipe")]
    Transit(#[source] io::Error),
}

/// What a fill came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// This many bytes are new in the slot.
    Bytes(usize),
    /// The pipe is empty.
    Empty,
    /// The pipe is empty and nobody can write to it any more.
    Ended,
    /// The slot holds too much that is not written yet.
    Full,
}

/// Why a fill failed.
#[derive(Debug)]
pub(super) enum FillError {
    /// Only this pipe: it is not a pipe, say.
    Source(io::Error),
    /// All of it.
    Ledger(LedgerError),
}

/// A batch on its way into a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchTarget<'a> {
    pub(super) path: &'a Path,
    pub(super) dev: u64,
    pub(super) ino: u64,
    /// The file's length before.
    pub(super) from: u64,
    /// The batch's length.
    pub(super) len: usize,
}

/// A batch that was under way when the former agent ended.
#[derive(Debug)]
pub(super) struct Interrupted {
    pub(super) path: PathBuf,
    pub(super) dev: u64,
    pub(super) ino: u64,
    pub(super) from: u64,
    pub(super) len: usize,
}

/// A slot that was taken when the former agent ended.
#[derive(Debug)]
pub(super) struct Leftover {
    pub(super) slot: SlotNo,
    pub(super) key: String,
    pub(super) stream: Stream,
}

/// The bytes under way.
#[derive(Debug)]
pub(super) struct Ledger {
    file: SharedFile,
    book: SharedMap,
    groups: Vec<SharedMap>,
    transit_read: OwnedFd,
    transit_write: OwnedFd,
    /// Free slots that exist; the next to take is the last.
    free: Vec<u32>,
    /// By slot: the highest end since its pages were given back.
    touched: Vec<u32>,
    /// As if all were taken.
    #[cfg(test)]
    pub(super) exhausted: bool,
}

impl Ledger {
    /// Makes an empty one.
    pub(super) fn create() -> Result<Self, LedgerError> {
        let file = SharedFile::create("selfstart-output", GROUPS_AT).map_err(LedgerError::Create)?;
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|e| LedgerError::Create(e.into()))?;
        let book = file.map(0, BOOK_LEN, WORDS).map_err(LedgerError::Create)?;
        book.word(MAGIC).store(MAGIC_WORD, SeqCst);
        Ok(Self::of(file, book, read, write))
    }

    fn of(file: SharedFile, book: SharedMap, transit_read: OwnedFd, transit_write: OwnedFd) -> Self {
        Self {
            file,
            book,
            groups: Vec::new(),
            transit_read,
            transit_write,
            free: Vec::new(),
            touched: Vec::new(),
            #[cfg(test)]
            exhausted: false,
        }
    }

    /// What the keeper must hold: memory, transit pipe to read, transit pipe to write.
    pub(super) fn kept(&self) -> [BorrowedFd<'_>; 3] {
        [self.file.as_fd(), self.transit_read.as_fd(), self.transit_write.as_fd()]
    }

    /// Takes one up that a former agent used, and carries an interrupted fill and apply on. An interrupted write is the caller's:
    /// [`Ledger::interrupted`].
    pub(super) fn restore([memory, read, write]: [OwnedFd; 3]) -> Result<(Self, Vec<Leftover>), LedgerError> {
        let file = SharedFile::restore(memory).map_err(LedgerError::Restore)?;
        let book = file.map(0, BOOK_LEN, WORDS).map_err(LedgerError::Restore)?;
        if book.word(MAGIC).load(SeqCst) != MAGIC_WORD {
            return Err(LedgerError::Foreign("unknown version"));
        }
        let mut ledger = Self::of(file, book, read, write);
        let len = ledger.file.len().map_err(LedgerError::Restore)?;
        while GROUPS_AT + ((ledger.groups.len() + 1) * GROUP_LEN) as u64 <= len && ledger.groups.len() * GROUP_SLOTS < SLOTS_MAX {
            ledger.map_next_group().map_err(LedgerError::Restore)?;
        }
        ledger.recover_fill()?;
        match ledger.book.word(PHASE).load(SeqCst) {
            IDLE | WRITE => {}
            APPLY => ledger.apply()?,
            _ => return Err(LedgerError::Foreign("unknown phase")),
        }
        let leftovers = ledger.take_stock()?;
        Ok((ledger, leftovers))
    }

    fn map_next_group(&mut self) -> io::Result<()> {
        let at = GROUPS_AT + (self.groups.len() * GROUP_LEN) as u64;
        self.file.grow(at + GROUP_LEN as u64)?;
        self.groups.push(self.file.map(at, GROUP_LEN, 0)?);
        self.touched.resize(self.groups.len() * GROUP_SLOTS, 0);
        Ok(())
    }

    /// Carries on a fill that a kill interrupted; see the module's text, step 1.
    fn recover_fill(&mut self) -> Result<(), LedgerError> {
        let marked = self.word(FILL_SLOT);
        if marked == 0 {
            return if self.in_transit()? == 0 { Ok(()) } else { Err(LedgerError::Foreign("bytes in transit without an owner")) };
        }
        let slot = u32::try_from(marked - 1)
            .ok()
            .filter(|slot| (*slot as usize) < self.groups.len() * GROUP_SLOTS)
            .ok_or(LedgerError::Foreign("fill of no slot"))?;
        let base = Extent::from_word(self.word(FILL_BASE));
        let left = self.in_transit()?;
        let count = match self.word(FILL_COUNT) {
            0 => left,
            known => usize::try_from(known).unwrap_or(usize::MAX),
        };
        if !base.is_sound() || left > count || count > SLOT_ROOM - base.end {
            return Err(LedgerError::Foreign("fill beyond its slot"));
        }
        // Before the first byte leaves the transit pipe: this agent may be killed as well.
        self.set(FILL_COUNT, count as u64);
        self.land(SlotNo(slot), base, count, count - left)
    }

    /// Finds which slots are taken.
    fn take_stock(&mut self) -> Result<Vec<Leftover>, LedgerError> {
        let mut leftovers = Vec::new();
        for slot in (0..u32::try_from(self.groups.len() * GROUP_SLOTS).unwrap_or(u32::MAX)).rev() {
            let word = self.word(EXTENTS + slot as usize);
            let extent = Extent::from_word(word & !TAKEN);
            if !extent.is_sound() {
                return Err(LedgerError::Foreign("bytes beyond a slot"));
            }
            if word == 0 || extent.len() == 0 {
                self.set(EXTENTS + slot as usize, 0);
                self.free.push(slot);
                continue;
            }
            self.touched[slot as usize] = u32::try_from(SLOT_ROOM).unwrap_or(u32::MAX);
            let (map, at) = self.place(SlotNo(slot));
            let head = map.bytes(at..at + SLOT_DATA);
            let key = head.get(2..2 + usize::from(head[0])).and_then(|key| std::str::from_utf8(key).ok());
            let stream = Stream::BOTH.get(usize::from(head[1]));
            let (Some(key), Some(stream)) = (key, stream) else { return Err(LedgerError::Foreign("a slot without an owner")) };
            leftovers.push(Leftover { slot: SlotNo(slot), key: key.to_owned(), stream: *stream });
        }
        Ok(leftovers)
    }

    fn word(&self, index: usize) -> u64 {
        self.book.word(index).load(SeqCst)
    }

    /// Stores one word of the book. Sequentially consistent: neither compiler nor processor may let a store to a slot or to the
    /// batch pass it in either direction.
    fn set(&self, index: usize, value: u64) {
        std::sync::atomic::fence(SeqCst);
        self.book.word(index).store(value, SeqCst);
        std::sync::atomic::fence(SeqCst);
        fault::point();
    }

    fn place(&self, slot: SlotNo) -> (&SharedMap, usize) {
        let slot = slot.0 as usize;
        (&self.groups[slot / GROUP_SLOTS], slot % GROUP_SLOTS * SLOT_LEN)
    }

    fn extent(&self, slot: SlotNo) -> Extent {
        Extent::from_word(self.word(EXTENTS + slot.0 as usize) & !TAKEN)
    }

    fn set_extent(&self, slot: SlotNo, extent: Extent) {
        self.set(EXTENTS + slot.0 as usize, extent.word() | TAKEN);
    }

    /// How much is in the transit pipe.
    fn in_transit(&self) -> Result<usize, LedgerError> {
        let left = rustix::io::ioctl_fionread(&self.transit_read).map_err(|e| LedgerError::Transit(e.into()))?;
        Ok(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// Takes a slot for a stream; `None` if there is none to be had now.
    pub(super) fn take(&mut self, key: &str, stream: Stream) -> Option<SlotNo> {
        #[cfg(test)]
        if self.exhausted {
            return None;
        }
        if self.free.is_empty() && self.groups.len() * GROUP_SLOTS < SLOTS_MAX {
            let first = self.groups.len() * GROUP_SLOTS;
            // No memory now: the stream waits, as it does when all slots are taken.
            self.map_next_group().ok()?;
            self.free.extend((first..first + GROUP_SLOTS).rev().filter_map(|slot| u32::try_from(slot).ok()));
        }
        let slot = SlotNo(self.free.pop()?);
        let (group, at) = (slot.0 as usize / GROUP_SLOTS, slot.0 as usize % GROUP_SLOTS * SLOT_LEN);
        let len = key.len().min(KEY_MAX);
        let head = self.groups[group].bytes_mut(at..at + SLOT_DATA);
        head[0] = u8::try_from(len).unwrap_or(0);
        head[1] = stream as u8;
        head[2..2 + len].copy_from_slice(&key.as_bytes()[..len]);
        self.set_extent(slot, Extent::EMPTY);
        Some(slot)
    }

    /// The bytes in a slot.
    pub(super) fn bytes(&self, slot: SlotNo) -> &[u8] {
        let extent = self.extent(slot);
        let (map, at) = self.place(slot);
        map.bytes(at + SLOT_DATA + extent.begin..at + SLOT_DATA + extent.end)
    }

    /// Moves what is in a pipe, at most [`CHUNK`], behind what is in the slot.
    pub(super) fn fill(&mut self, slot: SlotNo, source: BorrowedFd<'_>) -> Result<Filled, FillError> {
        let base = self.extent(slot);
        if base.end + CHUNK > SLOT_ROOM {
            return Ok(Filled::Full);
        }
        self.set(FILL_COUNT, 0);
        self.set(FILL_BASE, base.word());
        self.set(FILL_SLOT, u64::from(slot.0) + 1);
        let moved = rustix::pipe::splice(source, None, &self.transit_write, None, CHUNK, SpliceFlags::NONBLOCK);
        fault::point();
        match moved {
            Ok(0) => {
                self.set(FILL_SLOT, 0);
                Ok(Filled::Ended)
            }
            Ok(count) => {
                self.set(FILL_COUNT, count as u64);
                self.land(slot, base, count, 0).map_err(FillError::Ledger)?;
                Ok(Filled::Bytes(count))
            }
            Err(rustix::io::Errno::AGAIN) => {
                self.set(FILL_SLOT, 0);
                Ok(Filled::Empty)
            }
            Err(error) => {
                self.set(FILL_SLOT, 0);
                Err(FillError::Source(error.into()))
            }
        }
    }

    /// Reads the rest of a fill from the transit pipe; `landed` bytes of `count` are already in the slot.
    fn land(&mut self, slot: SlotNo, base: Extent, count: usize, mut landed: usize) -> Result<(), LedgerError> {
        let (group, at) = (slot.0 as usize / GROUP_SLOTS, slot.0 as usize % GROUP_SLOTS * SLOT_LEN + SLOT_DATA + base.end);
        while landed < count {
            let want = fault::shorten(count - landed);
            match rustix::io::read(&self.transit_read, self.groups[group].bytes_mut(at + landed..at + landed + want)) {
                Ok(0) => return Err(LedgerError::Foreign("less in transit than was moved")),
                Ok(n) => landed += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(LedgerError::Transit(error.into())),
            }
            fault::point();
        }
        let end = base.end + count;
        self.touched[slot.0 as usize] = self.touched[slot.0 as usize].max(u32::try_from(end).unwrap_or(u32::MAX));
        self.set_extent(slot, Extent { begin: base.begin, end });
        self.set(FILL_SLOT, 0);
        Ok(())
    }

    /// Where the next batch is put together, and one slot's bytes to put it together from.
    pub(super) fn batch_mut_and_bytes(&mut self, slot: SlotNo) -> (&mut [u8], &[u8]) {
        let extent = self.extent(slot);
        let Self { book, groups, .. } = self;
        let at = slot.0 as usize % GROUP_SLOTS * SLOT_LEN + SLOT_DATA;
        let bytes = groups[slot.0 as usize / GROUP_SLOTS].bytes(at + extent.begin..at + extent.end);
        (book.bytes_mut(BATCH_AT..BATCH_AT + BATCH_MAX), bytes)
    }

    /// The batch.
    pub(super) fn batch(&self, len: usize) -> &[u8] {
        self.book.bytes(BATCH_AT..BATCH_AT + len.min(BATCH_MAX))
    }

    /// Says which batch is about to be written, and how many bytes of which slots are in it.
    ///
    /// # Errors
    /// If the path is longer than any that can be opened.
    pub(super) fn begin_write(&mut self, target: &BatchTarget<'_>, from: &[(SlotNo, usize)]) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let path = target.path.as_os_str().as_bytes();
        if path.len() > PATH_MAX || from.len() > ENTRIES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.book.bytes_mut(PATH_AT..PATH_AT + path.len()).copy_from_slice(path);
        self.set(BATCH_PATH, path.len() as u64);
        self.set(BATCH_DEV, target.dev);
        self.set(BATCH_INO, target.ino);
        self.set(BATCH_FROM, target.from);
        self.set(BATCH_LEN, target.len as u64);
        for (index, (slot, taken)) in from.iter().enumerate() {
            let begin = self.extent(*slot).begin + taken;
            self.set(ENTRIES + index, (u64::from(slot.0) << 32) | begin as u64);
        }
        self.set(BATCH_ENTRIES, from.len() as u64);
        self.set(PHASE, WRITE);
        Ok(())
    }

    /// The batch is not in the file, not even in part: its bytes stay in their slots.
    pub(super) fn undo_write(&mut self) {
        self.set(PHASE, IDLE);
    }

    /// The batch is whole in the file: its bytes leave their slots.
    pub(super) fn end_write(&mut self) -> Result<(), LedgerError> {
        self.set(PHASE, APPLY);
        self.apply()
    }

    fn apply(&mut self) -> Result<(), LedgerError> {
        let count = usize::try_from(self.word(BATCH_ENTRIES)).unwrap_or(usize::MAX);
        if count > ENTRIES_MAX {
            return Err(LedgerError::Foreign("too many slots in a batch"));
        }
        for index in 0..count {
            let entry = self.word(ENTRIES + index);
            let (slot, begin) = ((entry >> 32) as usize, (entry & 0xffff_ffff) as usize);
            if slot >= self.groups.len() * GROUP_SLOTS {
                return Err(LedgerError::Foreign("a batch from no slot"));
            }
            let slot = SlotNo(u32::try_from(slot).unwrap_or(u32::MAX));
            let extent = Extent { begin, end: self.extent(slot).end };
            if !extent.is_sound() {
                return Err(LedgerError::Foreign("a batch beyond its slot"));
            }
            self.set_extent(slot, extent);
        }
        self.set(PHASE, IDLE);
        Ok(())
    }

    /// The batch that a kill interrupted, if there is one: the caller completes it in its file, then calls [`Ledger::end_write`],
    /// or [`Ledger::undo_write`] if nothing of it is there.
    pub(super) fn interrupted(&self) -> Option<Interrupted> {
        use std::os::unix::ffi::OsStrExt;
        if self.word(PHASE) != WRITE {
            return None;
        }
        let number = |index| usize::try_from(self.word(index)).unwrap_or(usize::MAX);
        let path = self.book.bytes(PATH_AT..PATH_AT + number(BATCH_PATH).min(PATH_MAX));
        Some(Interrupted {
            path: std::ffi::OsStr::from_bytes(path).into(),
            dev: self.word(BATCH_DEV),
            ino: self.word(BATCH_INO),
            from: self.word(BATCH_FROM),
            len: number(BATCH_LEN).min(BATCH_MAX),
        })
    }

    /// Makes room behind what is in a slot, or gives the slot back if it is empty; returns whether the stream still has it.
    pub(super) fn tidy(&mut self, slot: SlotNo) -> bool {
        let extent = self.extent(slot);
        let len = extent.len();
        if len == 0 {
            self.give_back(slot);
            return false;
        }
        if extent.begin >= len {
            let (group, at) = (slot.0 as usize / GROUP_SLOTS, slot.0 as usize % GROUP_SLOTS * SLOT_LEN + SLOT_DATA);
            let (front, rest) = self.groups[group].bytes_mut(at..at + SLOT_ROOM).split_at_mut(extent.begin);
            front[..len].copy_from_slice(&rest[..len]);
            self.set_extent(slot, Extent { begin: 0, end: len });
        }
        true
    }

    /// Gives the pages of a slot back that hold nothing; for slots that their stream keeps.
    pub(super) fn park(&mut self, slot: SlotNo) {
        let end = SLOT_DATA + self.extent(slot).end;
        self.punch(slot, end.next_multiple_of(PAGE));
    }

    /// Frees a slot, whatever is in it.
    pub(super) fn give_back(&mut self, slot: SlotNo) {
        self.set(EXTENTS + slot.0 as usize, 0);
        self.free.push(slot.0);
        if slot.0 >= WARM_SLOTS {
            self.punch(slot, 0);
        }
    }

    fn punch(&mut self, slot: SlotNo, keep: usize) {
        let touched = &mut self.touched[slot.0 as usize];
        if *touched as usize + SLOT_DATA <= keep || *touched == 0 {
            return;
        }
        *touched = u32::try_from(keep.saturating_sub(SLOT_DATA)).unwrap_or(u32::MAX);
        let at = GROUPS_AT + (slot.0 as usize * SLOT_LEN + keep) as u64;
        // Only memory is at stake: it is tried again the next time that the slot is left.
        let _ = self.file.punch(at, (SLOT_LEN - keep) as u64);
    }
}
