//! Lines in, files out; and an agent that is killed wherever it can be.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::ledger::CHUNK;
use super::line::{Labels, LogLine};
use super::*;
use crate::sys::fault;

/// A worker's side of a pipe, and the keeper's.
struct Pipe {
    worker: File,
    keeper: OwnedFd,
}

fn pipe() -> Pipe {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    Pipe { worker: write.into(), keeper: read }
}

impl Pipe {
    fn read_end(&self) -> OwnedFd {
        self.keeper.try_clone().expect("dup")
    }

    fn say(&mut self, bytes: &[u8]) {
        self.worker.write_all(bytes).expect("room in the pipe");
    }
}

fn at(millis: u64) -> Now {
    let base = WallTime::from_unix_millis(1_795_356_131_000);
    Now {
        mono: MonoTime::from_boot(Duration::from_millis(millis)),
        wall: WallTime::from_unix_millis(base.unix_millis() + i64::try_from(millis).expect("small")),
    }
}

fn sink(file: &Path) -> Sink {
    Sink { file: file.to_owned(), label: None, max_size: Bytes(50_000_000), max_age: None, keep: 5, tap: Tap::Closed }
}

fn dups(outputs: &Outputs) -> [OwnedFd; 3] {
    outputs.kept().map(|fd| fd.try_clone_to_owned().expect("dup"))
}

/// Reads until there is nothing.
fn drain(outputs: &mut Outputs, now: Now) -> Progress {
    let mut all = Progress::default();
    let mut rounds = 0;
    loop {
        rounds += 1;
        assert!(rounds < 10_000, "it spins");
        let progress = outputs.ready(now, 1 << 20).expect("output");
        all.bytes += progress.bytes;
        all.news.extend(progress.news);
        all.finished.extend(progress.finished);
        all.tapped.extend(progress.tapped);
        if !progress.more {
            return all;
        }
    }
}

fn content(file: &Path) -> String {
    String::from_utf8_lossy(&fs_err::read(file).unwrap_or_default()).into_owned()
}

/// A file with its rotated ones, oldest first.
fn files_of(file: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = (1..).map(|n| rotating::numbered(file, n)).take_while(|file| file.exists()).collect();
    files.reverse();
    files.push(file.to_owned());
    files
}

/// What each stream of each worker said, put together again from the files.
fn said(file: &Path, labels: Labels) -> BTreeMap<(String, &'static str), Vec<u8>> {
    let mut said: BTreeMap<_, Vec<u8>> = BTreeMap::new();
    for file in files_of(file) {
        let bytes = fs_err::read(&file).unwrap_or_default();
        assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "{} ends in the middle of a line", file.display());
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let line = &line[..line.len() - 1];
            let parsed = line::parse(line, labels);
            assert!(parsed.is_some(), "{}: {:?}", file.display(), String::from_utf8_lossy(line));
            let LogLine { stream, goes, label, text, .. } = parsed.expect("asserted");
            let who = label.map_or(String::new(), |label| String::from_utf8_lossy(label).into_owned());
            let all = said.entry((who, stream.as_str())).or_default();
            all.extend_from_slice(text);
            if goes == Goes::Ends {
                all.push(b'\n');
            }
        }
    }
    said
}

#[test]
fn lines_of_both_streams_come_with_time_and_stream() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("log/jobs.0.log");
    let (mut out, mut err) = (pipe(), pipe());
    let mut outputs = Outputs::create().expect("outputs");
    outputs.add("jobs/0#1", Stream::Out, out.read_end(), sink(&file)).expect("add");
    outputs.add("jobs/0#1", Stream::Err, err.read_end(), sink(&file)).expect("add");
    out.say(b"one\ntwo\nthr");
    err.say(b"oh\xff\n");
    let progress = drain(&mut outputs, at(5));
    assert_eq!(progress.bytes, 15);
    out.say(b"ee\n");
    drain(&mut outputs, at(70));
    let expected: &[u8] = b"2026-11-22T14:02:11.005Z out one\n2026-11-22T14:02:11.005Z out two\n\
        2026-11-22T14:02:11.005Z err oh\xff\n2026-11-22T14:02:11.070Z out three\n";
    assert_eq!(fs_err::read(&file).expect("file"), expected);
    assert_eq!(rustix::fs::stat(&file).expect("stat").st_mode & 0o777, 0o640);
}

#[test]
fn the_last_words_of_a_worker_are_written_also_without_a_newline() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("l");
    let mut out = pipe();
    let mut outputs = Outputs::create().expect("outputs");
    outputs.add("jobs/0#1", Stream::Out, out.read_end(), sink(&file)).expect("add");
    out.say(b"a\nlast wor");
    drain(&mut outputs, at(0));
    assert_eq!(content(&file).lines().count(), 1);
    out.say(b"ds");
    let (finish, progress) = outputs.finish("jobs/0#1", at(1)).expect("finish");
    assert_eq!((finish, progress.finished.len()), (Finish::Done, 0));
    assert!(content(&file).ends_with("out a\n2026-11-22T14:02:11.001Z out last words\n"));
    let (again, _) = outputs.finish("jobs/0#1", at(2)).expect("finish");
    assert_eq!(again, Finish::Done);
    assert_eq!(outputs.keys.len() + outputs.files.paths.len() + outputs.streams.iter().flatten().count(), 0);
}

#[tokio::test]
async fn a_loop_waits_for_all_pipes_with_one_descriptor() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("l");
    let mut pipes = [pipe(), pipe()];
    let mut outputs = Outputs::create().expect("outputs");
    // A duplicate, so that the loop can lend `outputs` out while it waits.
    let readable =
        crate::sys::watch::watched(outputs.as_fd().try_clone_to_owned().expect("dup"), tokio::io::Interest::READABLE).expect("tokio");
    for (n, pipe) in pipes.iter().enumerate() {
        outputs.add(&format!("jobs/{n}#1"), Stream::Out, pipe.read_end(), sink(&file)).expect("add");
    }
    for n in 0..6 {
        pipes[n % 2].say(b"x\n");
        let mut guard = readable.readable().await.expect("readable");
        let progress = outputs.ready(at(0), 1 << 20).expect("output");
        if !progress.more {
            guard.clear_ready();
        }
        assert_eq!(content(&file).lines().count(), n + 1);
    }
}

#[test]
fn a_hang_up_is_not_reported_for_ever() {
    let dir = tempfile::tempdir().expect("dir");
    let Pipe { mut worker, keeper } = pipe();
    let mut outputs = Outputs::create().expect("outputs");
    outputs.add("jobs/0#1", Stream::Out, keeper, sink(&dir.path().join("l"))).expect("add");
    worker.write_all(b"x\ny").expect("write");
    drop(worker);
    drain(&mut outputs, at(0));
    assert!(!outputs.ready(at(0), 1).expect("output").more);
    let (finish, _) = outputs.finish("jobs/0#1", at(0)).expect("finish");
    assert_eq!(finish, Finish::Done);
    assert_eq!(said(&dir.path().join("l"), Labels::None)[&(String::new(), "out")], b"x\ny\n");
}

#[test]
fn a_line_that_is_too_long_comes_in_pieces_that_say_so() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("l");
    for (len, pieces) in [(LINE_MAX - 1, 1), (LINE_MAX, 2), (LINE_MAX + 1, 2), (3 * LINE_MAX + 5, 4)] {
        fs_err::write(&file, "").expect("empty");
        let mut out = pipe();
        rustix::pipe::fcntl_setpipe_size(&out.worker, 1 << 20).expect("size");
        let mut outputs = Outputs::create().expect("outputs");
        outputs.add("jobs/0#1", Stream::Out, out.read_end(), sink(&file)).expect("add");
        let text: Vec<u8> = (0..len).map(|n| b'a' + u8::try_from(n % 26).expect("small")).chain(*b"\n").collect();
        out.say(&text);
        drain(&mut outputs, at(0));
        assert_eq!(said(&file, Labels::None)[&(String::new(), "out")], text, "{len}");
        assert!(content(&file).lines().count() <= pieces, "{len}");
    }
}

#[test]
fn idle_streams_hold_no_memory_and_half_lines_hold_a_page() {
    let dir = tempfile::tempdir().expect("dir");
    let mut outputs = Outputs::create().expect("outputs");
    let mut pipes: Vec<Pipe> = (0..200).map(|_| pipe()).collect();
    for (n, pipe) in pipes.iter().enumerate() {
        outputs.add(&format!("jobs/{n}#1"), Stream::Out, pipe.read_end(), sink(&dir.path().join(format!("{n}")))).expect("add");
    }
    let memory = |outputs: &Outputs| u64::try_from(rustix::fs::fstat(outputs.kept()[0]).expect("stat").st_blocks).expect("positive") * 512;
    for pipe in &mut pipes {
        pipe.say(&[&[b'x'; 20_000][..], b"\n"].concat());
    }
    drain(&mut outputs, at(0));
    let idle = memory(&outputs);
    assert!(idle <= 1_200_000, "{idle} bytes for 200 idle streams");
    for pipe in &mut pipes {
        pipe.say(&[&[b'x'; 20_000][..], b"\nhalf"].concat());
    }
    drain(&mut outputs, at(0));
    let half = memory(&outputs) - idle;
    let page = rustix::param::page_size() as u64;
    assert!(half <= 200 * page + 64 * 1024, "{half} bytes for 200 half lines");
    for pipe in &mut pipes {
        pipe.say(b"\n");
    }
    drain(&mut outputs, at(0));
    assert!(memory(&outputs) <= idle + 64 * 1024);
}

#[test]
fn a_flood_from_one_worker_does_not_starve_the_rest() {
    let dir = tempfile::tempdir().expect("dir");
    let mut outputs = Outputs::create().expect("outputs");
    let mut pipes: Vec<Pipe> = (0..20).map(|_| pipe()).collect();
    for (n, pipe) in pipes.iter_mut().enumerate() {
        outputs.add(&format!("jobs/{n}#1"), Stream::Out, pipe.read_end(), sink(&dir.path().join(format!("{n}")))).expect("add");
        if n < 10 {
            rustix::pipe::fcntl_setpipe_size(&pipe.worker, 1 << 20).expect("size");
            pipe.say(&[&[b'x'; 999][..], b"\n"].concat().repeat(1000));
        } else {
            pipe.say(b"me too\n");
        }
    }
    // One turn each of 64 KiB for ten floods, and the quiet ones.
    let mut spent = 0;
    while (10..20).any(|n| content(&dir.path().join(format!("{n}"))).is_empty()) {
        let progress = outputs.ready(at(0), 100_000).expect("output");
        assert!(progress.more);
        assert!(progress.bytes <= 100_000 + CHUNK, "{} bytes at once", progress.bytes);
        spent += progress.bytes;
    }
    // Ten turns of the floods, ten lines, and what the last call took on top.
    assert!(spent <= 10 * CHUNK + 70 + 100_000 + CHUNK, "{spent} bytes before the last quiet one");
}

#[test]
fn files_rotate_by_size_between_lines_and_only_so_many_stay() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("l");
    let mut out = pipe();
    let mut outputs = Outputs::create().expect("outputs");
    outputs.add("jobs/0#1", Stream::Out, out.read_end(), Sink { max_size: Bytes(100), keep: 2, ..sink(&file) }).expect("add");
    // 40 bytes a line: two fit into 100.
    for n in 0..9 {
        out.say(format!("line {n:04}x\n").as_bytes());
        drain(&mut outputs, at(n));
    }
    let names: Vec<String> = files_of(&file).iter().map(|file| file.file_name().expect("name").to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["l.2", "l.1", "l"]);
    let text = said(&file, Labels::None).remove(&(String::new(), "out")).expect("out");
    assert_eq!(String::from_utf8_lossy(&text), "line 0004x\nline 0005x\nline 0006x\nline 0007x\nline 0008x\n");
    // Longer than max_size: it has a file of its own, whole.
    out.say(&[&[b'y'; 300][..], b"\n"].concat());
    out.say(b"z\n");
    drain(&mut outputs, at(10));
    assert_eq!(fs_err::metadata(dir.path().join("l.1")).expect("file").len(), 330);
    assert!(content(&file).ends_with("out z\n"));
}

#[test]
fn files_rotate_by_age_also_over_a_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("l");
    let mut out = pipe();
    let old = Sink { max_age: Some(Duration::from_millis(1000)), ..sink(&file) };
    for (n, rotated) in [(0, 0), (900, 0), (1000, 0), (1001, 1), (2001, 1), (2002, 2)] {
        let mut outputs = Outputs::create().expect("outputs");
        outputs.add("jobs/0#1", Stream::Out, out.read_end(), old.clone()).expect("add");
        out.say(b"x\n");
        drain(&mut outputs, at(n));
        assert_eq!(files_of(&file).len() - 1, rotated, "{n} ms");
    }
}

#[test]
fn a_removed_file_is_noticed_and_made_anew() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("sub/l");
    let mut out = pipe();
    let mut outputs = Outputs::create().expect("outputs");
    outputs.add("jobs/0#1", Stream::Out, out.read_end(), sink(&file)).expect("add");
    out.say(b"one\n");
    drain(&mut outputs, at(0));
    fs_err::remove_dir_all(dir.path().join("sub")).expect("removed");
    out.say(b"two\n");
    let progress = drain(&mut outputs, at(0));
    assert!(matches!(&progress.news[..], [OutputNews::Recreated { .. }]), "{:?}", progress.news);
    assert!(content(&file).ends_with("out two\n"));
    // As a foreign logrotate does it, with USR1 behind it or without.
    fs_err::rename(&file, dir.path().join("sub/old")).expect("renamed");
    outputs.reopen();
    out.say(b"three\n");
    drain(&mut outputs, at(0));
    assert!(content(&file).ends_with("out three\n"));
    assert!(content(&dir.path().join("sub/old")).ends_with("out two\n"));
}

#[test]
fn a_link_or_a_directory_in_the_place_of_a_file_is_not_followed_and_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("l");
    let target = dir.path().join("passwd");
    std::os::unix::fs::symlink(&target, &file).expect("link");
    let mut out = pipe();
    let mut outputs = Outputs::create().expect("outputs");
    outputs.add("jobs/0#1", Stream::Out, out.read_end(), sink(&file)).expect("add");
    out.say(b"one\n");
    let progress = drain(&mut outputs, at(0));
    assert!(matches!(&progress.news[..], [OutputNews::Waits { .. }]), "{:?}", progress.news);
    assert!(!target.exists());
    let retry = outputs.next_retry().expect("a retry");
    out.say(b"two\n");
    // Not before its time, not a second telling, no spinning.
    assert_eq!(drain(&mut outputs, at(500)).news.len(), 0);
    assert!(!outputs.ready(at(500), 1).expect("output").more);
    fs_err::remove_file(&file).expect("removed");
    fs_err::create_dir(&file).expect("directory");
    assert_eq!(drain(&mut outputs, Now { mono: retry, ..at(0) }).news.len(), 0);
    // A worker that ends meanwhile is waited for.
    let (finish, _) = outputs.finish("jobs/0#1", at(1500)).expect("finish");
    assert_eq!(finish, Finish::Waits);
    fs_err::remove_dir(&file).expect("removed");
    let progress = drain(&mut outputs, at(3000));
    assert!(
        matches!(&progress.news[..], [OutputNews::GoesOn { after, .. }] if *after == Duration::from_millis(3000)),
        "{:?}",
        progress.news
    );
    assert_eq!(progress.finished, ["jobs/0#1"]);
    assert_eq!(said(&file, Labels::None)[&(String::new(), "out")], b"one\ntwo\n");
    assert_eq!(outputs.next_retry(), None);
}

#[test]
fn slots_can_share_a_file_and_a_tap_hands_lines_out() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("l");
    let mut outputs = Outputs::create().expect("outputs");
    let mut pipes = [pipe(), pipe()];
    for (n, pipe) in pipes.iter_mut().enumerate() {
        let tap = if n == 0 { Tap::Open } else { Tap::Closed };
        let sink = Sink { label: Some(format!("jobs/{n}")), tap, ..sink(&file) };
        outputs.add(&format!("jobs/{n}#1"), Stream::Out, pipe.read_end(), sink).expect("add");
        pipe.say(format!("I am {n}\n").as_bytes());
    }
    let progress = drain(&mut outputs, at(0));
    assert_eq!(content(&file), "2026-11-22T14:02:11.000Z out jobs/0 I am 0\n2026-11-22T14:02:11.000Z out jobs/1 I am 1\n");
    assert_eq!(progress.tapped, [TappedLine { key: "jobs/0#1".into(), stream: Stream::Out, text: b"I am 0".to_vec() }]);
}

#[test]
fn what_a_power_cut_left_half_written_does_not_run_into_the_next_line() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("l");
    fs_err::write(&file, "2026-11-22T14:02:11.000Z out hal").expect("file");
    let mut out = pipe();
    let mut outputs = Outputs::create().expect("outputs");
    outputs.add("jobs/0#1", Stream::Out, out.read_end(), sink(&file)).expect("add");
    out.say(b"x\n");
    drain(&mut outputs, at(0));
    assert_eq!(content(&file), "2026-11-22T14:02:11.000Z out hal\n2026-11-22T14:02:11.000Z out x\n");
}

#[test]
fn what_the_keeper_kept_of_something_else_is_refused() {
    let outputs = Outputs::create().expect("outputs");
    let [memory, read, write] = dups(&outputs);
    let foreign = crate::sys::shared_map::SharedFile::create("x", 4 << 20).expect("memfd");
    let foreign = foreign.as_fd().try_clone_to_owned().expect("dup");
    assert!(Outputs::restore([foreign, read, write]).is_err());
    let plain: OwnedFd = tempfile::tempfile().expect("file").into();
    let [_, read, write] = dups(&outputs);
    assert!(Outputs::restore([plain, read, write]).is_err());
    drop(memory);
}

/// What the workers of the story below say, bit by bit.
fn story() -> Vec<(usize, Vec<u8>)> {
    let long: Vec<u8> = (0..LINE_MAX + 700).map(|n| b'a' + u8::try_from(n % 23).expect("small")).collect();
    let mut bits = vec![
        (0, b"one\ntwo\nthr".to_vec()),
        (1, b"half".to_vec()),
        (2, b"\n\n\n".to_vec()),
        (0, b"ee\n".to_vec()),
        (2, long[..30_000].to_vec()),
        (1, b" and half\nagain ha".to_vec()),
        (2, long[30_000..].to_vec()),
        (2, b"\nshort\n".to_vec()),
        (0, vec![b'\n'; 100]),
    ];
    bits.extend((0..6).map(|n| (n % 3, format!("number {n} of a few\n").into_bytes())));
    bits.push((1, b"no newline at the end".to_vec()));
    bits
}

/// Lets an agent write the story's output, kills it at the `first` point, the next one at the `second` point of its life, and checks
/// the files. Returns whether both kills happened.
fn live_and_die(first: u64, second: u64, disk: Option<usize>) -> (bool, bool) {
    let dir = tempfile::tempdir().expect("dir");
    let (shared, own) = (dir.path().join("shared"), dir.path().join("own"));
    let mut pipes = [pipe(), pipe(), pipe()];
    for pipe in &pipes {
        rustix::pipe::fcntl_setpipe_size(&pipe.worker, 1 << 20).expect("size");
    }
    let kept = dups(&Outputs::create().expect("outputs"));
    let born = |pipes: &[Pipe; 3]| {
        let kept = std::array::from_fn(|n| kept[n].try_clone().expect("dup"));
        let mut outputs = Outputs::restore(kept).expect("restore");
        for (n, pipe) in pipes.iter().enumerate() {
            let file = if n == 2 { &own } else { &shared };
            let label = (n != 2).then(|| format!("jobs/{n}"));
            let sink = Sink { label, max_size: Bytes(1500), keep: 1000, ..sink(file) };
            outputs.add(&format!("jobs/{n}#1"), Stream::Out, pipe.read_end(), sink).expect("add");
        }
        outputs
    };
    let mut next = Some(second);
    let mut happened = 0;
    let mut outputs = None;
    // Runs a part of the agent's life; when it is killed, the next agent runs it again.
    let mut live = |pipes: &[Pipe; 3], part: &mut dyn FnMut(&mut Outputs)| {
        loop {
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let outputs = outputs.get_or_insert_with(|| born(pipes));
                part(outputs);
            }));
            match result {
                Ok(()) => return,
                Err(payload) if payload.is::<fault::Killed>() => {
                    happened += 1;
                    outputs = None;
                    if let Some(nth) = next.take() {
                        fault::at(nth);
                    }
                }
                Err(payload) => std::panic::resume_unwind(payload),
            }
        }
    };
    live(&pipes, &mut |_| {});
    fault::at(first);
    fault::set_disk(disk);
    let mut millis = 0;
    let mut expected: [Vec<u8>; 3] = Default::default();
    for (n, bit) in story() {
        pipes[n].say(&bit);
        expected[n].extend_from_slice(&bit);
        millis += 300;
        live(&pipes, &mut |outputs| drop(drain(outputs, at(millis))));
    }
    // Space is back.
    fault::set_disk(None);
    millis += 2000;
    live(&pipes, &mut |outputs| drop(drain(outputs, at(millis))));
    for n in 0..3 {
        live(&pipes, &mut |outputs| {
            let (finish, _) = outputs.finish(&format!("jobs/{n}#1"), at(millis)).expect("finish");
            assert_eq!(finish, Finish::Done);
        });
    }
    fault::off();
    expected[1].push(b'\n');
    let shared = said(&shared, Labels::Some);
    let own = said(&own, Labels::None);
    for (n, expected) in expected.iter().enumerate() {
        let label = if n == 2 { String::new() } else { format!("jobs/{n}") };
        let got = &(if n == 2 { &own } else { &shared })[&(label, "out")];
        assert!(got == expected, "killed at {first}, then {second}: worker {n} said {} bytes, {} are there", expected.len(), got.len());
    }
    (happened > 0, happened > 1)
}

#[test]
fn an_agent_killed_at_any_point_loses_no_line_and_writes_none_twice() {
    let mut points = 0;
    while live_and_die(points, u64::MAX, None).0 {
        points += 1;
    }
    assert!(points > 300, "only {points} points");
}

#[test]
fn an_agent_killed_again_while_it_takes_up_the_ledger_loses_nothing() {
    // Every eleventh point, and all phases between them in the end, as the second kill's distance differs.
    for first in (0..).step_by(11) {
        for second in [0, 1, 2, 3, 5, 8, 13, 21] {
            if !live_and_die(first, second + first % 5, None).0 {
                return;
            }
        }
    }
}

#[test]
fn an_agent_killed_at_any_point_while_the_disk_is_full_loses_nothing() {
    for room in [0, 40, 1500] {
        let mut points = 0;
        while live_and_die(points, u64::MAX, Some(room)).0 {
            points += 3;
        }
        assert!(points > 100, "only {points} points");
    }
}

/// Two workers with a file each, both of which have said a line; the disk takes 15 bytes more, which is less than another.
fn two_as_the_disk_gets_full() -> (tempfile::TempDir, Outputs, [Pipe; 2], [PathBuf; 2]) {
    let dir = tempfile::tempdir().expect("dir");
    let mut outputs = Outputs::create().expect("outputs");
    let mut pipes = [pipe(), pipe()];
    let files = [dir.path().join("a"), dir.path().join("b")];
    for (n, pipe) in pipes.iter_mut().enumerate() {
        outputs.add(&format!("jobs/{n}#1"), Stream::Out, pipe.read_end(), sink(&files[n])).expect("add");
        pipe.say(b"before\n");
    }
    drain(&mut outputs, at(0));
    fault::set_disk(Some(15));
    (dir, outputs, pipes, files)
}

#[test]
fn a_full_disk_stops_reading_is_told_once_and_cuts_no_line() {
    let (_dir, mut outputs, mut pipes, files) = two_as_the_disk_gets_full();
    for pipe in &mut pipes {
        pipe.say(b"while it is full\n");
    }
    let progress = drain(&mut outputs, at(10));
    assert!(matches!(&progress.news[..], [OutputNews::Waits { .. }]), "once for the disk: {:?}", progress.news);
    for file in &files {
        assert!(content(file).ends_with("out before\n"), "cut: {:?}", content(file));
    }
    // The worker goes on until its pipe is full, then waits: nothing more is read.
    pipes[0].say(&[b'x'; 60_000]);
    for millis in [500, 1010, 2010, 3010] {
        let progress = drain(&mut outputs, at(millis));
        assert!(progress.news.is_empty());
        // At most what the second one had when it was the one to try.
        assert!(progress.bytes <= 17, "{} bytes read", progress.bytes);
    }
    fault::set_disk(None);
    pipes[0].say(b"\n");
    let progress = drain(&mut outputs, at(4010));
    assert!(matches!(&progress.news[..], [OutputNews::GoesOn { .. }]), "{:?}", progress.news);
    drain(&mut outputs, at(5010));
    assert_eq!(said(&files[0], Labels::None)[&(String::new(), "out")].len(), 7 + 17 + 60_001);
    assert_eq!(said(&files[1], Labels::None)[&(String::new(), "out")], b"before\nwhile it is full\n");
    assert_eq!(outputs.next_retry(), None);
}

#[test]
fn a_stream_without_memory_waits_for_a_second_and_not_in_a_hot_loop() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("l");
    let mut outputs = Outputs::create().expect("outputs");
    let mut pipes = [pipe(), pipe(), pipe()];
    for (n, pipe) in pipes.iter().enumerate() {
        outputs.add(&format!("jobs/{n}#1"), Stream::Out, pipe.read_end(), sink(&file)).expect("add");
    }
    // The third has memory, and writes to the same file.
    pipes[2].say(b"fine, ");
    drain(&mut outputs, at(0));
    outputs.ledger.exhausted = true;
    pipes[0].say(b"half");
    pipes[1].say(b"whole\n");
    for (millis, words) in [(10, &b"and "[..]), (500, b"still\nhere "), (1010, b"again "), (2010, b"and again\nand")] {
        pipes[2].say(words);
        drain(&mut outputs, at(millis));
        let retry = outputs.next_retry();
        assert!(retry.is_some_and(|retry| retry > at(millis).mono && retry <= at(millis + 1000).mono), "at {millis}: {retry:?}");
    }
    assert_eq!(content(&file).lines().count(), 2, "nobody else waits: {}", content(&file));
    // One that has ended waits too.
    let (finish, _) = outputs.finish("jobs/1#1", at(2100)).expect("finish");
    assert_eq!(finish, Finish::Waits);

    outputs.ledger.exhausted = false;
    assert!(drain(&mut outputs, at(2500)).finished.is_empty(), "not before its time");
    let progress = drain(&mut outputs, at(3010));
    assert_eq!(progress.finished, ["jobs/1#1"]);
    assert!(content(&file).ends_with("out whole\n"), "{}", content(&file));
    assert_eq!(outputs.next_retry(), None, "half a line is no reason to look again");
    pipes[0].say(b" and half\n");
    drain(&mut outputs, at(3020));
    assert!(content(&file).ends_with("out half and half\n"), "{}", content(&file));
}

#[test]
fn half_a_line_behind_a_full_disk_is_no_reason_to_spin_when_there_is_room_again() {
    let (_dir, mut outputs, mut pipes, files) = two_as_the_disk_gets_full();
    pipes[0].say(b"while it is full\n");
    drain(&mut outputs, at(10));
    // Its own file was never tried: the disk is known to be full.
    pipes[1].say(b"half");
    drain(&mut outputs, at(500));
    fault::set_disk(None);
    for millis in [1010, 1500] {
        drain(&mut outputs, at(millis));
        let retry = outputs.next_retry();
        assert!(retry.is_none_or(|retry| retry > at(millis).mono), "at {millis}: {retry:?}");
    }
    assert_eq!(outputs.next_retry(), None);
    pipes[1].say(b" a line\n");
    drain(&mut outputs, at(1510));
    assert!(content(&files[1]).ends_with("out half a line\n"), "{}", content(&files[1]));
}

#[test]
fn output_goes_to_another_file_between_two_lines() {
    let dir = tempfile::tempdir().expect("dir");
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let (mut out, mut other) = (pipe(), pipe());
    let mut outputs = Outputs::create().expect("outputs");
    outputs.add("jobs/0#1", Stream::Out, out.read_end(), sink(&old)).expect("add");
    outputs.add("jobs/1#1", Stream::Out, other.read_end(), sink(&old)).expect("add");
    out.say(b"one\ntw");
    drain(&mut outputs, at(0));
    out.say(b"o\nthr");
    let labelled = Sink { label: Some("jobs/0".into()), ..sink(&new) };
    outputs.redirect("jobs/0#1", &labelled, at(0));
    outputs.redirect("nobody#1", &labelled, at(0));
    out.say(b"ee\n");
    other.say(b"stays\n");
    drain(&mut outputs, at(0));
    let others = |text: &[u8]| BTreeMap::from([((String::new(), "out"), text.to_vec())]);
    assert_eq!(said(&old, Labels::None), others(b"one\nstays\n"));
    assert_eq!(said(&new, Labels::Some), BTreeMap::from([(("jobs/0".to_owned(), "out"), b"two\nthree\n".to_vec())]));
    // The same file, rotated otherwise.
    outputs.redirect("jobs/0#1", &Sink { max_size: Bytes(1), ..labelled }, at(0));
    out.say(b"four\n");
    drain(&mut outputs, at(0));
    assert_eq!(content(&new).lines().count(), 1);
    assert_eq!(files_of(&new).len(), 2);
}

#[test]
fn what_waits_for_a_full_disk_goes_to_the_new_file_at_once() {
    let dir = tempfile::tempdir().expect("dir");
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs_err::create_dir(&old).expect("in the way");
    let mut out = pipe();
    let mut outputs = Outputs::create().expect("outputs");
    outputs.add("jobs/0#1", Stream::Out, out.read_end(), sink(&old)).expect("add");
    out.say(b"one\n");
    drain(&mut outputs, at(0));
    out.say(b"two\n");
    drain(&mut outputs, at(10));
    assert!(outputs.next_retry().is_some());
    outputs.redirect("jobs/0#1", &sink(&new), at(20));
    drain(&mut outputs, at(20));
    assert_eq!(said(&new, Labels::None)[&(String::new(), "out")], b"one\ntwo\n");
    assert_eq!(outputs.next_retry(), None);
}

#[test]
fn a_file_that_cannot_be_rotated_grows_on() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("l");
    // A directory is in the way, also for root.
    fs_err::create_dir_all(dir.path().join("l.1/x")).expect("directory");
    let mut out = pipe();
    let mut outputs = Outputs::create().expect("outputs");
    outputs.add("jobs/0#1", Stream::Out, out.read_end(), Sink { max_size: Bytes(50), keep: 1, ..sink(&file) }).expect("add");
    let mut news = Vec::new();
    for n in 0..20 {
        out.say(format!("line {n:02}\n").as_bytes());
        news.extend(drain(&mut outputs, at(0)).news);
    }
    assert!(matches!(&news[..], [OutputNews::NotRotated { .. }]), "{news:?}");
    assert_eq!(content(&file).lines().count(), 20);
}

/// In the environment of a child: it is the agent of the next test, and takes its descriptors from its standard input.
const IS_AGENT: &str = "SELFSTART_TEST_OUTPUT_AGENT";
/// Streams of the next test.
const STREAMS: usize = 4;

fn real_now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    Now { mono: MonoTime::ZERO, wall: WallTime::from_unix_millis(i64::try_from(wall).expect("small")) }
}

fn flood_sink(dir: &Path, n: usize) -> Sink {
    // Two workers share a file, the others have their own; files rotate all the time and all stay.
    let shared = n < 2;
    let file = dir.join(if shared { "shared".to_owned() } else { format!("own{n}") });
    Sink { label: shared.then(|| format!("jobs/{n}")), max_size: Bytes(300_000), keep: 100_000, ..sink(&file) }
}

fn take_up(kept: [OwnedFd; 3], reads: Vec<OwnedFd>, dir: &Path) -> Outputs {
    let mut outputs = Outputs::restore(kept).expect("restore");
    for (n, fd) in reads.into_iter().enumerate() {
        outputs.add(&format!("jobs/{n}#1"), Stream::Out, fd, flood_sink(dir, n)).expect("add");
    }
    outputs
}

/// Not a test by itself: the agent that `an_agent_killed_for_real...` starts and kills.
#[test]
fn the_agent_that_is_killed() {
    let Some(dir) = std::env::var_os(IS_AGENT) else { return };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3 + STREAMS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let stdin = io::stdin();
    rustix::net::recvmsg(&stdin, &mut [io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC).expect("descriptors");
    let mut fds: Vec<OwnedFd> = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        })
        .collect();
    let reads = fds.split_off(3);
    // From here on the kill may come.
    rustix::io::write(&stdin, b"!").expect("the parent is there");
    let mut outputs = take_up(fds.try_into().expect("three"), reads, Path::new(&dir));
    loop {
        let mut poll = [rustix::event::PollFd::new(&outputs, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).expect("poll");
        outputs.ready(real_now(), 256 * 1024).expect("output");
    }
}

/// Starts the agent of the test above with these descriptors; it has them when this returns.
fn agent_with(kept: &[OwnedFd; 3], reads: &[OwnedFd], dir: &Path) -> std::process::Child {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let child = Command::new(std::env::current_exe().expect("us"))
        .args(["--exact", "agent::output::tests::the_agent_that_is_killed", "--test-threads=1"])
        .env(IS_AGENT, dir)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .expect("the child");
    let fds: Vec<BorrowedFd<'_>> = kept.iter().chain(reads).map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3 + STREAMS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    rustix::net::sendmsg(&ours, &[io::IoSlice::new(b"!")], &mut control, SendFlags::empty()).expect("sent");
    let mut byte = [0];
    assert_eq!(rustix::io::read(&ours, &mut byte[..]).expect("the child lives"), 1);
    child
}

/// Writes numbered lines until it is told to stop, whole lines or `block`s that cut them anywhere; returns how many lines.
fn write_flood(mut worker: File, block: usize, seed: u64, stop: &AtomicBool) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut buffer = Vec::new();
    let mut lines = 0;
    while !stop.load(Ordering::Relaxed) {
        lines += 1;
        let _ = write!(buffer, "n={lines:08} {}", "x".repeat(random.usize(..60)));
        buffer.push(b'\n');
        if buffer.len() >= block {
            let cut = if block > 1 { random.usize(1..=buffer.len()) } else { buffer.len() };
            worker.write_all(&buffer[..cut]).expect("a pipe with a reader");
            buffer.drain(..cut);
        }
    }
    worker.write_all(&buffer).expect("a pipe with a reader");
    lines
}

/// Holds that these are the lines 1 to `lines` of [`write_flood`], each once and in order.
fn is_whole_flood(text: &[u8], lines: u64, n: usize) {
    let mut expected = 1_u64;
    for line in text.split_inclusive(|b| *b == b'\n') {
        let number = line.get(2..10).and_then(|number| std::str::from_utf8(number).ok()).and_then(|number| number.parse().ok());
        assert_eq!(number, Some(expected), "worker {n}: {:?}", String::from_utf8_lossy(line));
        expected += 1;
    }
    assert_eq!(expected - 1, lines, "worker {n}: the last lines");
    assert!(lines > 1000, "worker {n} wrote only {lines} lines: no flood");
}

#[test]
fn an_agent_killed_for_real_200_times_under_a_flood_loses_no_line_and_writes_none_twice() {
    let dir = tempfile::tempdir().expect("dir");
    let kept = dups(&Outputs::create().expect("outputs"));
    let stop = Arc::new(AtomicBool::new(false));
    let mut reads = Vec::new();
    let mut workers = Vec::new();
    for (n, block) in [1, 7000, 1, 333].into_iter().enumerate() {
        let Pipe { worker, keeper } = pipe();
        reads.push(keeper);
        let stop = Arc::clone(&stop);
        workers.push(std::thread::spawn(move || write_flood(worker, block, n as u64, &stop)));
    }
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..200 {
        let mut child = agent_with(&kept, &reads, dir.path());
        // A random moment, from the first instruction of taking up to deep in the flood.
        let until = Instant::now() + Duration::from_micros(random.u64(..2500));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        child.kill().expect("kill");
        let status = child.wait().expect("wait");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "it ended by itself: {status}");
    }
    stop.store(true, Ordering::Relaxed);
    let mut outputs = take_up(kept, reads, dir.path());
    while !workers.iter().all(std::thread::JoinHandle::is_finished) {
        drain(&mut outputs, real_now());
    }
    for n in 0..STREAMS {
        let (finish, _) = outputs.finish(&format!("jobs/{n}#1"), real_now()).expect("finish");
        assert_eq!(finish, Finish::Done);
    }
    let shared = said(&dir.path().join("shared"), Labels::Some);
    for (n, worker) in workers.into_iter().enumerate() {
        let lines = worker.join().expect("a worker");
        match n {
            0 | 1 => is_whole_flood(&shared[&(format!("jobs/{n}"), "out")], lines, n),
            _ => is_whole_flood(&said(&dir.path().join(format!("own{n}")), Labels::None)[&(String::new(), "out")], lines, n),
        }
    }
}
