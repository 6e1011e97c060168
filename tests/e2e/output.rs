//! What workers write, in files.

use rustix::process::Signal;

use crate::node::{Node, QUICK};

#[test]
fn lines_have_time_and_stream_and_slots_may_share_a_file() {
    let node = Node::with_pools(&format!(
        "  a: {{shell: 'echo of-a; echo wrong >&2; exec @FIXTURE@', count: 2, log: {{file: log/joined.log}}, {QUICK}}}\n  \
         b: {{shell: 'echo of-b; exec @FIXTURE@', {QUICK}}}"
    ));
    let log = node.until("all four lines", || Some(node.text("root/log/joined.log")).filter(|log| log.lines().count() >= 4));
    for text in ["out a/0 of-a", "err a/0 wrong", "out a/1 of-a", "err a/1 wrong"] {
        let lines: Vec<&str> = log.lines().filter(|line| line.ends_with(text)).collect();
        assert_eq!(lines.len(), 1, "{text} in {log}");
        let date = lines[0].split(' ').next().unwrap_or_default();
        assert!(date.len() == 24 && date.ends_with('Z') && date.as_bytes()[10] == b'T', "{date}");
    }
    node.cli(&["logs", "b"]).exits(0).says(&["of-b"]);
    assert!(!node.cli(&["logs", "b"]).out.contains("of-a"));
}

#[test]
fn a_flood_is_rotated_by_size_without_a_line_cut_or_lost() {
    let node = Node::new();
    node.configure("  w: {command: '@FIXTURE@ --flood 60000', log: {max_size: 100KB, keep: 1000}, ready: {after: 50ms}}", "");
    node.boot();
    let files = || {
        let mut files: Vec<_> = fs_err::read_dir(node.root("log"))
            .expect("read")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("w.0.log")))
            .collect();
        files.sort();
        files
    };
    node.until("the last line", || node.text("root/log/w.0.log").contains(" n=060000 ").then_some(()));
    assert!(files().len() > 20);
    let mut numbers = Vec::new();
    for path in files() {
        let text = fs_err::read_to_string(&path).expect("text");
        assert!(text.len() <= 100_000 && text.ends_with('\n'), "{} has {}", path.display(), text.len());
        for line in text.lines() {
            let number = line.split(" out n=").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse::<u32>().ok());
            assert!(line.len() > 40 && line.contains(" pid="), "a cut line: {line}");
            numbers.push(number.expect("a number"));
        }
    }
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(1..=60_000));
}

#[test]
fn a_removed_log_is_made_anew_and_usr1_opens_logs_that_others_rotated() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --flood 0 50', {QUICK}}}"));
    let log = node.root("log/w.0.log");
    let some = |what: &str| node.until(what, || fs_err::metadata(&log).ok().filter(|it| it.len() > 0).map(drop));
    some("the first lines");
    fs_err::remove_file(&log).expect("removed");
    some("a new file");

    let away = node.root("log/away.log");
    fs_err::rename(&log, &away).expect("renamed");
    node.signal_keeper(Signal::USR1);
    some("a file after USR1");
    let length = || fs_err::metadata(&away).expect("there").len();
    let before = length();
    let lines = node.text("root/log/w.0.log").lines().count();
    node.until("lines that go to the new file only", || (node.text("root/log/w.0.log").lines().count() > lines + 10).then_some(()));
    node.same(length(), before);
    // No line is lost between the two files.
    let number = |text: &str, last: bool| {
        let mut numbers = text.lines().filter_map(|line| line.split("n=").nth(1)?.split(' ').next()?.parse::<u64>().ok());
        if last { numbers.next_back() } else { numbers.next() }
    };
    let (old, new) = (node.text("root/log/away.log"), node.text("root/log/w.0.log"));
    node.same(number(&old, true).map(|n| n + 1), number(&new, false));
}

#[test]
fn usr1_opens_the_journal_anew() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"));
    let journal = node.root("run/events.jsonl");
    let mark = node.text("agent.log").lines().count();
    fs_err::rename(&journal, node.root("run/away.jsonl")).expect("renamed");
    node.signal_keeper(Signal::USR1);
    node.until("the signal to be told", || {
        node.text("agent.log").lines().skip(mark).any(|line| line.contains("opened anew")).then_some(())
    });
    node.cli(&["stop", "w"]).exits(0);
    node.told(0, "worker_ended", "an operator asked for it");
    assert!(!node.text("root/run/away.jsonl").contains("an operator asked for it"));
}

#[test]
fn usr1_lets_go_of_the_renamed_log_of_a_silent_worker_and_its_next_line_is_in_a_new_file() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --flood 50 --print-on-term bye', {QUICK}}}"));
    let log = node.root("log/w.0.log");
    node.until("all lines", || node.text("root/log/w.0.log").contains("n=000050").then_some(()));
    let away = node.root("log/away.log");
    fs_err::rename(&log, &away).expect("renamed");
    let agent = i32::try_from(node.look("/agent/pid").as_i64().expect("a pid")).expect("a pid");
    let held = || {
        let open = fs_err::read_dir(format!("/proc/{agent}/fd")).expect("the agent's descriptors");
        open.flatten().any(|entry| fs_err::read_link(entry.path()).is_ok_and(|path| path == away))
    };
    assert!(held(), "this shows nothing when the file was not open");
    // One who compresses the old file after the signal must not find it open.
    node.signal_keeper(Signal::USR1);
    node.until("the old file to be closed", || (!held()).then_some(()));
    assert!(!log.exists());
    node.cli(&["stop", "w"]).exits(0);
    let (old, new) = (node.text("root/log/away.log"), node.text("root/log/w.0.log"));
    node.same((old.lines().count(), new.lines().count()), (50, 1));
    assert!(new.ends_with(" out bye\n") && !old.contains("bye"), "{new}");
}

#[test]
fn a_log_is_rotated_when_its_first_line_is_as_old_as_configured() {
    let node = Node::with_pools(&format!("  w: {{command: '@FIXTURE@ --flood 0 20', log: {{max_age: 1s, keep: 2}}, {QUICK}}}"));
    node.until("two rotations", || node.root("log/w.0.log.2").exists().then_some(()));
    node.cli(&["stop", "w"]).exits(0);
    assert!(!node.root("log/w.0.log.3").exists());
    let newer = node.text("root/log/w.0.log.1");
    // A second's lines, and as many as came while the machine was busy.
    assert!((10..200).contains(&newer.lines().count()), "{newer}");
}
