//! `run/events.jsonl`: every happening as one JSON object a line, numbered, in a few files of bounded size.
//!
//! A line that a power cut left half written is closed with a newline when the file is opened, and skipped by readers. What cannot be
//! written (disk full) waits in memory and is written, in order, once there is room; what is more than [`WAITING_MAX`] is counted, and told
//! in an event of its own then.
//!
//! `{"schema":1,"seq":7,"at":"2026-11-22T14:02:11.123Z","kind":"worker_ended","pool":"checkins","slot":3,"verdict":"memory","text":"...", ...}`;
//! `pool`, `slot` and `verdict` only where they apply. `seq` grows by one with every event and is what a follower asks on from.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use selfstart_core::time::WallTime;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::rotating::{FileError, RotatingFile, Rotation, numbered};
use super::stamp::stamp;
use super::{Happening, Kind};

/// The version of the format.
pub(crate) const SCHEMA: u32 = 1;
/// 5 MB a file: some 20,000 events, and read in a few milliseconds.
const MAX_SIZE: u64 = 5_000_000;
/// Files beside the one that is written; with it 5.
pub(crate) const KEEP: u32 = 4;
/// How many bytes of events wait for a disk that takes nothing: some thousands of them, which is hours of a node that has little to tell.
const WAITING_MAX: usize = 1 << 20;
/// The longest text in an event, in bytes: the end of a build's output fits, a flood does not.
const TEXT_MAX: usize = 8192;

/// One event, as it is written and read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The version of the format.
    pub schema: u32,
    /// Its number.
    #[serde(default)]
    pub seq: u64,
    /// When; RFC 3339, UTC, milliseconds.
    pub at: String,
    /// What kind; a newer agent may have written kinds that are not known here.
    pub kind: String,
    /// Which pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Which slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// For people.
    #[serde(default)]
    pub text: String,
    /// All other fields.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Which events are wanted; `None` everywhere: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Only about these pools (a group's pools, say).
    pub pools: Option<Vec<String>>,
    /// Only about this slot number.
    pub slot: Option<u32>,
    /// Only of these kinds.
    pub kinds: Option<Vec<String>>,
}

impl Filter {
    /// Whether an event is wanted.
    #[must_use]
    pub(crate) fn wants(&self, record: &Record) -> bool {
        self.pools.as_ref().is_none_or(|pools| record.pool.as_ref().is_some_and(|pool| pools.contains(pool)))
            && self.slot.is_none_or(|slot| record.slot == Some(slot))
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&record.kind))
    }
}

/// The journal, for the agent, which alone writes it.
#[derive(Debug)]
pub(crate) struct Journal {
    file: RotatingFile,
    next: u64,
    /// Whole lines that could not be written yet, in order.
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// Events that found no room there.
    missed: u64,
}

impl Journal {
    /// Goes on behind the last event in the file; nothing is written yet.
    #[must_use]
    pub(crate) fn open(path: PathBuf) -> Self {
        Self::with_rotation(path, Rotation { max_size: MAX_SIZE, max_age: None, keep: KEEP })
    }

    fn with_rotation(path: PathBuf, rotation: Rotation) -> Self {
        let next = tail(&path, 1, &Filter::default()).last().map_or(1, |last| last.seq + 1);
        Self { file: RotatingFile::new(path, rotation), next, waiting: VecDeque::new(), waiting_bytes: 0, missed: 0 }
    }

    /// Logs a happening and writes it down; returns its number.
    pub(crate) fn tell(&mut self, at: WallTime, happening: &Happening) -> u64 {
        happening.log();
        self.append(at, happening)
    }

    /// Writes a happening down; returns its number. While the disk takes nothing it waits, and is tried again with the next one and by
    /// [`Journal::write_waiting`].
    pub(crate) fn append(&mut self, at: WallTime, happening: &Happening) -> u64 {
        self.write_waiting(at);
        let record = self.record(at, happening);
        let Ok(mut line) = serde_json::to_vec(&record) else { return record.seq };
        line.push(b'\n');
        if self.waits() {
            self.keep(line);
        } else if let Err(error) = self.write(at, &line) {
            tracing::error!(error = &error as &dyn std::error::Error, "events cannot be written to the journal, and wait");
            self.keep(line);
        }
        record.seq
    }

    /// Whether events wait for the disk.
    pub(crate) fn waits(&self) -> bool {
        self.missed > 0 || !self.waiting.is_empty()
    }

    /// How many events wait for the disk, and how many found no room to wait.
    pub(crate) fn waiting(&self) -> (usize, u64) {
        (self.waiting.len(), self.missed)
    }

    /// Writes what waits, as far as the disk takes it.
    pub(crate) fn write_waiting(&mut self, at: WallTime) {
        while let Some(line) = self.waiting.pop_front() {
            if self.write(at, &line).is_err() {
                return self.waiting.push_front(line);
            }
            self.waiting_bytes -= line.len();
        }
        if self.missed > 0 {
            let text = format!("{} events could not be written to the journal before this one", self.missed);
            let lost = self.record(at, &Happening::new(Kind::EventsLost, text).with("missed", self.missed));
            let Ok(mut line) = serde_json::to_vec(&lost) else { return };
            line.push(b'\n');
            match self.write(at, &line) {
                Ok(()) => self.missed = 0,
                // The number was not used.
                Err(_) => self.next = lost.seq,
            }
        }
    }

    fn keep(&mut self, line: Vec<u8>) {
        // Once one is lost all are until there is room: what is written is in order, and the gap is in one place.
        if self.missed > 0 || self.waiting_bytes + line.len() > WAITING_MAX {
            self.missed += 1;
        } else {
            self.waiting_bytes += line.len();
            self.waiting.push_back(line);
        }
    }

    /// Lets this group read it from the next time on that a file is opened.
    pub(crate) const fn set_readers(&mut self, group: Option<u32>) {
        self.file.set_readers(group);
    }

    /// Opens the file by its name again with the next event.
    pub(crate) fn reopen(&mut self) {
        self.file.close();
    }

    fn record(&mut self, at: WallTime, happening: &Happening) -> Record {
        let mut text = happening.text.clone();
        if text.len() > TEXT_MAX {
            text.truncate((0..=TEXT_MAX).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0));
            text.push_str(" ...");
        }
        let mut more = happening.more.clone();
        for own in ["schema", "seq", "at", "kind", "pool", "slot", "verdict", "text"] {
            more.remove(own);
        }
        let seq = self.next;
        self.next += 1;
        Record {
            schema: SCHEMA,
            seq,
            at: stamp(at),
            kind: happening.kind.as_str().to_owned(),
            pool: happening.pool.as_ref().map(ToString::to_string),
            slot: happening.slot,
            verdict: happening.verdict.clone(),
            text,
            more,
        }
    }

    fn write(&mut self, at: WallTime, line: &[u8]) -> Result<(), FileError> {
        self.file.prepare(at)?;
        let empty = self.file.state().is_some_and(|(_, _, len)| len == 0);
        if !empty && self.file.room() < line.len() as u64 && self.file.rotate().is_err() {
            // Events matter more than the size of the file.
            self.file.postpone_rotation(at, MAX_SIZE);
        }
        self.file.append(line, at)
    }
}

/// The last `n` wanted events of a journal, oldest first; also while an agent writes it, and over its rotated files.
/// Lines that are no events are skipped; no file is no event.
#[must_use]
pub(crate) fn tail(path: &Path, n: usize, filter: &Filter) -> Vec<Record> {
    let mut found = VecDeque::new();
    if n == 0 {
        return Vec::new();
    }
    // One more than are kept: a rotation may happen while we read. What is read twice then is told by its number.
    'files: for number in 0..=KEEP + 1 {
        let file = if number == 0 { path.to_owned() } else { numbered(path, number) };
        let Ok(bytes) = fs_err::read(file) else { continue };
        // A half-written last line is not told from a bad one: both are no JSON.
        for line in bytes.split(|b| *b == b'\n').rev() {
            let Ok(record) = serde_json::from_slice::<Record>(line) else { continue };
            if found.front().is_some_and(|later: &Record| later.seq <= record.seq && later.seq != 0) {
                continue;
            }
            if filter.wants(&record) {
                found.push_front(record);
            }
            if found.len() >= n {
                break 'files;
            }
        }
    }
    found.into()
}

#[cfg(test)]
mod tests {
    use selfstart_core::id::SlotId;

    use super::*;
    use crate::sys::fault;

    fn at() -> WallTime {
        WallTime::from_unix_millis(1_795_356_131_123)
    }

    fn slot(text: &str) -> SlotId {
        text.parse().expect("a slot")
    }

    fn ended(n: usize) -> Happening {
        Happening::new(Kind::WorkerEnded, format!("number {n}")).slot(&slot(["a/0", "a/1", "b/0"][n % 3]))
    }

    fn texts(records: &[Record]) -> Vec<&str> {
        records.iter().map(|record| record.text.as_str()).collect()
    }

    #[test]
    fn an_event_is_one_line_as_the_contract_says() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("run/events.jsonl");
        let mut journal = Journal::open(path.clone());
        let event = Happening::new(Kind::WorkerEnded, "ended by TERM\nafter a while")
            .slot(&slot("checkins/3"))
            .verdict("memory")
            .with("pid", 4711)
            .with("text", "not this one")
            .with("nothing", Value::Null);
        assert_eq!(journal.append(at(), &event), 1);
        assert_eq!(journal.append(at(), &Happening::new(Kind::Held, "held")), 2);
        let expected = concat!(
            r#"{"schema":1,"seq":1,"at":"2026-11-22T14:02:11.123Z","kind":"worker_ended","pool":"checkins","slot":3,"verdict":"memory","#,
            r#""text":"ended by TERM\nafter a while","pid":4711}"#,
            "\n",
            r#"{"schema":1,"seq":2,"at":"2026-11-22T14:02:11.123Z","kind":"held","text":"held"}"#,
            "\n",
        );
        assert_eq!(fs_err::read_to_string(&path).expect("file"), expected);
    }

    #[test]
    fn events_are_found_by_pool_slot_and_kind_over_rotated_files() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("events.jsonl");
        let mut journal = Journal::with_rotation(path.clone(), Rotation { max_size: 500, max_age: None, keep: 4 });
        for n in 0..40 {
            journal.append(at(), &ended(n));
        }
        assert!(numbered(&path, 4).exists() && !numbered(&path, 5).exists());
        let all = tail(&path, 100, &Filter::default());
        assert!((15..25).contains(&all.len()), "{} of 40", all.len());
        assert_eq!(all.last().map(|record| record.seq), Some(40));
        assert!(all.is_sorted_by(|a, b| a.seq + 1 == b.seq));
        let one = Filter { pools: Some(vec!["a".into()]), slot: Some(1), ..Filter::default() };
        assert_eq!(texts(&tail(&path, 3, &one)), ["number 31", "number 34", "number 37"]);
        let kind = Filter { kinds: Some(vec!["held".into()]), ..Filter::default() };
        assert!(tail(&path, 3, &kind).is_empty());
    }

    #[test]
    fn half_a_line_of_a_power_cut_is_closed_and_skipped() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("events.jsonl");
        let mut journal = Journal::open(path.clone());
        journal.append(at(), &ended(0));
        let mut bytes = fs_err::read(&path).expect("file");
        bytes.extend_from_slice(br#"{"schema":1,"seq":2,"at":"20"#);
        bytes.extend_from_slice(&[0; 7]);
        fs_err::write(&path, &bytes).expect("write");
        let mut journal = Journal::open(path.clone());
        assert_eq!(journal.append(at(), &ended(1)), 2);
        assert_eq!(texts(&tail(&path, 9, &Filter::default())), ["number 0", "number 1"]);
        assert_eq!(fs_err::read_to_string(&path).expect("file").lines().count(), 3);
    }

    #[test]
    fn events_wait_for_a_full_disk_and_are_all_written_in_order_when_there_is_room() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("events.jsonl");
        let mut journal = Journal::open(path.clone());
        journal.append(at(), &ended(0));
        fault::set_disk(Some(10));
        journal.append(at(), &ended(1));
        journal.append(at(), &ended(2));
        // Room for one and a half: no line is cut, none comes twice.
        fault::set_disk(Some(150));
        journal.write_waiting(at());
        assert!(journal.waits());
        assert_eq!(texts(&tail(&path, 9, &Filter::default())), ["number 0", "number 1"]);
        fault::set_disk(None);
        journal.append(at(), &ended(3));
        assert!(!journal.waits());
        let told = tail(&path, 9, &Filter::default());
        assert_eq!(texts(&told), ["number 0", "number 1", "number 2", "number 3"]);
        assert!(told.iter().map(|record| record.seq).eq(1..=4));
        assert_eq!(fs_err::read_to_string(&path).expect("file").lines().count(), 4);
    }

    #[test]
    fn what_does_not_fit_into_memory_either_is_counted_and_told() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("events.jsonl");
        let mut journal = Journal::open(path.clone());
        fault::set_disk(Some(0));
        let long = Happening::new(Kind::BuildStep, "x".repeat(TEXT_MAX));
        let fit = 1 + (WAITING_MAX - 1) / (TEXT_MAX + 100);
        for _ in 0..fit + 50 {
            journal.append(at(), &long);
        }
        let kept = journal.waiting.len();
        assert!(kept > 100 && journal.waiting_bytes <= WAITING_MAX, "{kept}");
        let missed = fit + 50 - kept;
        // A short one does not overtake the lost ones; tries cost no numbers.
        let number = journal.append(at(), &ended(0));
        journal.write_waiting(at());
        fault::set_disk(None);
        journal.append(at(), &ended(1));
        let told = tail(&path, 9_999, &Filter::default());
        assert_eq!(told.len(), kept + 2);
        assert_eq!(told[kept].more["missed"], missed + 1);
        assert_eq!(told[kept].seq, number + 1);
        assert_eq!(told[kept + 1].text, "number 1");
        assert_eq!(journal.waiting_bytes, 0);
    }

    #[test]
    fn a_long_text_is_shortened_between_characters() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("events.jsonl");
        let mut journal = Journal::open(path.clone());
        journal.append(at(), &Happening::new(Kind::BuildStep, format!("x{}", "é".repeat(TEXT_MAX))));
        let text = &tail(&path, 1, &Filter::default())[0].text;
        assert!(text.len() <= TEXT_MAX + 4 && text.ends_with("é ..."));
    }

    #[test]
    fn events_of_the_first_release_and_unknown_kinds_are_still_read() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("events.jsonl");
        let lines = [
            r#"{"schema":1,"at":"2026-11-22T14:02:11.123Z","kind":"worker_ended","pool":"a","slot":0,"verdict":"exit","text":"one","pid":1}"#,
            r#"{"schema":2,"seq":9,"at":"2027-01-01T00:00:00.000Z","kind":"from_the_future","text":"two","what":{"x":1}}"#,
        ];
        fs_err::write(&path, lines.join("\n") + "\n").expect("write");
        assert_eq!(texts(&tail(&path, 9, &Filter::default())), ["one", "two"]);
        assert_eq!(Journal::open(path).append(at(), &ended(0)), 10);
    }
}
