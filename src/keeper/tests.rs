//! The keeper without a process of its own: what it does of what it is asked, and with what becomes of its children.

use std::os::unix::process::ExitStatusExt;

use super::*;
use crate::sys::fault;

pub(super) fn keeper() -> Keeper {
    Keeper::new(SignalFd::take().expect("signals"), Vec::new()).expect("a keeper")
}

/// A start of a program that waits for ever.
pub(super) fn sleep(root: &str, key: &str, env: &[(&str, &str)]) -> Start {
    Start {
        key: key.to_owned(),
        programs: vec!["/bin/sleep".into()],
        argv: vec!["sleep".into(), "1000".into()],
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        root: root.to_owned(),
        cwd: "/".into(),
        user: None,
        nofile: None,
        nice: None,
        umask: None,
        pipe_bytes: 1 << 16,
        helper: false,
        note: String::new(),
    }
}

/// Ends a child that the keeper has started.
pub(super) fn end(pid: i32) {
    process::signal_child(pid, libc::SIGKILL).expect("ours");
    rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty()).expect("its end");
}

#[test]
fn a_worker_has_its_own_name_whatever_it_is_started_with() {
    let start = sleep("/of-this-test", "w/0#1", &[("A", "1"), (protocol::KEY_VARIABLE, "w/7#7:0000000001@/of-this-test")]);
    let child = keeper().spawn(&start, None, None).expect("started");
    let pid = child.id.pid;
    // Empty until it has executed.
    let name = loop {
        match process::variable(pid, protocol::KEY_VARIABLE) {
            Some(name) => break name,
            None => std::thread::yield_now(),
        }
    };
    end(pid);
    assert_eq!(name, format!("w/0#1:{pid:010}@/of-this-test"));
}

#[test]
fn who_hides_from_everything_but_its_cgroup_ends_with_its_worker() {
    let Some(own) = cgroup::tests::Own::make("keeper") else { return eprintln!("skipped: no cgroup v2 to write to") };
    let mut keeper = keeper();
    process::become_subreaper().expect("a subreaper");
    keeper.table.tree = Some(cgroup::Tree::open(own.0.path()).expect("a tree"));
    let dir = tempfile::tempdir().expect("a folder");
    let script = format!("env -i setsid sh -c 'echo $$ >{0}/pid; exec sleep 1000' & exec sleep 1000", dir.path().display());
    let start = Start {
        programs: vec!["/bin/sh".into()],
        argv: vec!["sh".into(), "-c".into(), script],
        ..sleep("/hiding", "w/0#1", &[("PATH", "/bin:/usr/bin")])
    };
    let none: [(String, String); 0] = [];
    keeper.start_child(&start, Some(&none), None);
    assert_eq!(told(&mut keeper), ["Child(\"w/0#1\")"]);
    let main = keeper.table.get("w/0#1").expect("started").id.pid;
    let patience_ends = clock::now() + Duration::from_secs(20);
    let hidden: i32 = loop {
        let text = fs_err::read_to_string(dir.path().join("pid")).unwrap_or_default();
        if let Some(number) = text.strip_suffix('\n') {
            break number.parse().expect("a number");
        }
        assert!(clock::now() < patience_ends, "it does not come up");
        std::thread::yield_now();
    };
    let mut members = own.0.group("w.0#1").expect("made").processes().expect("read");
    members.sort_unstable();
    assert_eq!(members, [main, hidden]);
    // Reaped by its number: this process has children of other tests.
    end(main);
    assert_eq!(keeper.table.ended(main, Ended::Code(0), clock::now()).as_deref(), Some("w/0#1"));
    keeper.note_exits(vec!["w/0#1".into()]);
    assert_eq!(told(&mut keeper), ["Exited(\"w/0#1\")"]);
    assert!(process::stat(hidden).is_ok_and(|stat| !stat.zombie), "it ended with its parent");
    keeper.obey(Ask::ClearTree { key: "w/0#1".into() }, Vec::new());
    keeper.clear_trees();
    let (number, news) = keeper.emptying.get("w/0#1").map(|(number, news)| (*number, news.try_clone().expect("a copy"))).expect("watched");
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert!(poll(&mut [PollFd::new(&news, PollFlags::PRI)], Some(&patience)).expect("poll") > 0, "nobody tells");
    keeper.group_changed(number);
    keeper.clear_trees();
    assert_eq!(told(&mut keeper), ["TreeGone(\"w/0#1\", 1)"]);
    keeper.table.remove_groups();
    assert!(process::stat(hidden).map_or(true, |stat| stat.zombie), "it lives");
    assert_eq!(own.0.names().expect("read"), Vec::<String>::new(), "its cgroup is still there");
    assert!(keeper.emptying.is_empty());
}

#[test]
fn a_cgroup_takes_no_settings_but_limits_and_a_failed_start_leaves_none() {
    let Some(own) = cgroup::tests::Own::make("limits") else { return eprintln!("skipped: no cgroup v2 to write to") };
    let mut keeper = keeper();
    keeper.table.tree = Some(cgroup::Tree::open(own.0.path()).expect("a tree"));
    let start = sleep("/limits", "w/0#1", &[]);
    for file in ["cgroup.procs", "../memory.max", "memory.max\0"] {
        keeper.start_child(&start, Some(&[(file.to_owned(), "0".to_owned())]), None);
        assert_eq!(told(&mut keeper), [format!("SpawnFailed(\"w/0#1\", Cgroup, {})", libc::EPERM)], "{file}");
    }
    for key in ["..", "w/0", ""] {
        let none: [(String, String); 0] = [];
        keeper.start_child(&Start { key: key.into(), ..start.clone() }, Some(&none), None);
        assert_eq!(told(&mut keeper), [format!("SpawnFailed({key:?}, Cgroup, {})", libc::EINVAL)]);
    }
    let nowhere = Start { programs: vec!["/nowhere".into()], ..start };
    let none: [(String, String); 0] = [];
    keeper.start_child(&nowhere, Some(&none), None);
    assert_eq!(told(&mut keeper), [format!("SpawnFailed(\"w/0#1\", Execute, {})", libc::ENOENT)]);
    assert_eq!(own.0.names().expect("read"), Vec::<String>::new());
}

#[test]
fn an_agent_whose_loop_stands_still_is_ended_but_not_for_a_machine_that_did() {
    let mut keeper = keeper();
    let agent = keeper.spawn(&sleep("/stuck", "w/0#1", &[]), None, None).expect("started");
    let pid = agent.id.pid;
    let (ours, _theirs) = packet::pair().expect("a line");
    keeper.agent = Some(Agent { pid: Some(pid), line: ours, since: clock::now(), greeted: true, silent: None });
    let ended = || process::stat(pid).expect("not reaped").zombie;
    let long_ago = |keeper: &mut Keeper| {
        if let Some((at, _)) = keeper.agent.as_mut().and_then(|agent| agent.silent.as_mut()) {
            *at = MonoTime::from_boot(Duration::ZERO);
        }
        keeper.look_at_silence();
    };
    // One that has never said it may be an older one, or is reading a large state.
    long_ago(&mut keeper);
    assert!(!ended());
    keeper.obey(Ask::Alive, Vec::new());
    keeper.look_at_silence();
    long_ago(&mut keeper);
    // The machine woke up, and the agent does now, too.
    keeper.obey(Ask::Alive, Vec::new());
    long_ago(&mut keeper);
    assert!(!ended(), "for one long silence");
    long_ago(&mut keeper);
    let end = clock::now() + Duration::from_secs(20);
    while !ended() {
        assert!(clock::now() < end, "it lives on");
        std::thread::yield_now();
    }
    rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty()).expect("its end");
}

fn told(keeper: &mut Keeper) -> Vec<String> {
    keeper.notes.drain(..).map(|note| format!("{note:?}")).collect()
}

#[test]
fn nobody_is_taken_for_gone_who_could_not_be_looked_at() {
    let (mut earlier, mut keeper) = (keeper(), keeper());
    let start = sleep("/unseen", "w/0#1", &[]);
    let pid = earlier.spawn(&start, None, None).expect("started").id.pid;
    // Until it has executed it has no name, and below a single look at it counts.
    while process::variable(pid, protocol::KEY_VARIABLE).is_none() {
        std::thread::yield_now();
    }
    let mut seen = Vec::new();
    for what in ["environ", "stat", ""] {
        fault::set_proc(Some(what));
        keeper.obey(Ask::Adopt { root: start.root.clone(), known: Vec::new() }, Vec::new());
        keeper.go_on_adopting();
        seen.push(told(&mut keeper));
        // Even then: it is not they who cannot be seen.
        if let Some(adopting) = &mut keeper.adopting {
            adopting.since = MonoTime::from_boot(Duration::ZERO);
            adopting.next = adopting.since;
        }
        keeper.go_on_adopting();
        seen.push(told(&mut keeper));
        fault::set_proc(None);
    }
    // Others may be executing their programs.
    while keeper.adopting.is_some() {
        if let Some(adopting) = &mut keeper.adopting {
            adopting.next = MonoTime::from_boot(Duration::ZERO);
        }
        keeper.go_on_adopting();
    }
    let found = told(&mut keeper);
    let streams = keeper.table.get("w/0#1").map(|child| child.streams.len());
    end(pid);
    assert!(seen.iter().all(Vec::is_empty), "{seen:?}");
    assert_eq!(found, ["Child(\"w/0#1\")", "Adopted"]);
    assert_eq!(streams, Some(2));
}

#[test]
fn without_descriptors_the_living_are_adopted_signalled_and_their_end_is_seen() {
    let (mut earlier, mut keeper) = (keeper(), keeper());
    let start = sleep("/full", "w/0#2", &[]);
    let pid = earlier.spawn(&start, None, None).expect("started").id.pid;
    while process::variable(pid, protocol::KEY_VARIABLE).is_none() {
        std::thread::yield_now();
    }
    // As if all but the reserve were taken.
    keeper.ceiling = 0;
    let refused = keeper.spawn(&sleep("/full", "w/1#1", &[]), None, None).map(|child| end(child.id.pid));
    keeper.obey(Ask::Adopt { root: start.root.clone(), known: Vec::new() }, Vec::new());
    while keeper.adopting.is_some() {
        keeper.go_on_adopting();
    }
    let found = told(&mut keeper);
    let streams = keeper.table.get("w/0#2").map(|child| child.streams.len());
    let round = |keeper: &mut Keeper| {
        let mut ended = Vec::new();
        keeper.next_round = MonoTime::from_boot(Duration::ZERO);
        keeper.make_round(&mut ended);
        ended
    };
    let before = round(&mut keeper);
    keeper.obey(Ask::Signal { key: "w/0#2".into(), number: libc::SIGTERM }, Vec::new());
    let status = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty());
    let signal = status.expect("its end").and_then(|(_, status)| status.terminating_signal());
    assert!(matches!(&refused, Err(error) if error.step == Step::Descriptors), "{refused:?}");
    assert_eq!(found, ["Child(\"w/0#2\")", "Adopted"]);
    assert_eq!((streams, before, signal), (Some(0), Vec::<Key>::new(), Some(libc::SIGTERM)));
    assert_eq!(round(&mut keeper), ["w/0#2"]);
    assert!(!keeper.table.has_unwatched());
}

#[test]
fn output_that_could_not_be_opened_is_opened_later_and_told_to_the_agent() {
    let (mut earlier, mut keeper) = (keeper(), keeper());
    let start = sleep("/unread", "w/0#1", &[]);
    let pid = earlier.spawn(&start, None, None).expect("started").id.pid;
    while process::variable(pid, protocol::KEY_VARIABLE).is_none() {
        std::thread::yield_now();
    }
    let adopt = |keeper: &mut Keeper| {
        keeper.obey(Ask::Adopt { root: start.root.clone(), known: Vec::new() }, Vec::new());
        while keeper.adopting.is_some() {
            keeper.go_on_adopting();
        }
    };
    fault::set_proc(Some("fd"));
    adopt(&mut keeper);
    let (adopted, due) = (told(&mut keeper), keeper.unread["w/0#1"].next);
    // Not before its time; then less and less often.
    keeper.open_unread();
    let early = keeper.unread["w/0#1"].next == due;
    let mut waits = Vec::new();
    for _ in 0..7 {
        keeper.unread.get_mut("w/0#1").expect("still unread").next = MonoTime::from_boot(Duration::ZERO);
        let (wait, before) = (keeper.unread["w/0#1"].wait, clock::now());
        keeper.open_unread();
        assert!(keeper.unread["w/0#1"].next >= before + wait);
        waits.push(wait);
    }
    fault::set_proc(None);
    keeper.unread.get_mut("w/0#1").expect("still unread").next = MonoTime::from_boot(Duration::ZERO);
    keeper.open_unread();
    let heard = told(&mut keeper);
    let words = keeper.words(&Note::Streams("w/0#1".into(), vec![2])).map(|(tell, fds)| (tell, fds.len()));
    let left = keeper.unread.len();
    // One that was not told of it yet hears it all at once; one that has ended is not looked at any more.
    let mut second = self::keeper();
    fault::set_proc(Some("fd"));
    adopt(&mut second);
    fault::set_proc(None);
    second.unread.get_mut("w/0#1").expect("unread").next = MonoTime::from_boot(Duration::ZERO);
    second.open_unread();
    let all = told(&mut second);
    let mut third = self::keeper();
    fault::set_proc(Some("fd"));
    adopt(&mut third);
    fault::set_proc(None);
    end(pid);
    third.table.ended(pid, Ended::Unknown, clock::now());
    third.unread.get_mut("w/0#1").expect("unread").next = MonoTime::from_boot(Duration::ZERO);
    third.open_unread();
    assert_eq!(adopted, ["Child(\"w/0#1\")", "Adopted"]);
    assert!(early);
    assert_eq!(waits.iter().map(Duration::as_secs).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 30, 30]);
    assert_eq!((heard, left), (vec!["Streams(\"w/0#1\", [1, 2])".to_owned()], 0));
    let (tell, fds) = words.expect("it is there");
    assert!(matches!(tell, Tell::Child { streams, .. } if streams == [2]) && fds == 1);
    assert_eq!(all, ["Child(\"w/0#1\")", "Adopted"]);
    assert!(third.unread.is_empty());
}

#[test]
fn a_worker_that_hangs_before_its_program_is_a_child_and_the_keeper_goes_on() {
    use crate::sys::starter::tests::{Hanging, Then, until};
    let hanging = Hanging::new(Then::Fails);
    let mut keeper = keeper();
    let start = |key: &str, program: String| Start { programs: vec![program], ..sleep("/hangs", key, &[]) };
    for key in ["w/0#1", "w/1#1", "w/3#1"] {
        keeper.start_child(&start(key, hanging.path()), None, None);
    }
    let third = keeper.table.get("w/3#1").expect("a child").id.pid;
    keeper.start_child(&start("w/2#1", "/bin/sleep".into()), None, None);
    let started = told(&mut keeper);
    let pids = ["w/0#1", "w/1#1", "w/2#1"].map(|key| keeper.table.get(key).expect("a child").id.pid);
    let streams = keeper.table.get("w/0#1").map(|child| child.streams.len());
    // As the ladder ends it, and by itself. Others are reaped by number: this process has children of other tests.
    keeper.obey(Ask::Signal { key: "w/0#1".into(), number: libc::SIGTERM }, Vec::new());
    let reaped = |pid| {
        let status = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::empty());
        let (_, status) = status.expect("ours").expect("its end");
        (status.exit_status(), status.terminating_signal())
    };
    // This one would dump core, and we share its memory.
    keeper.obey(Ask::Signal { key: "w/3#1".into(), number: libc::SIGQUIT }, Vec::new());
    let quit = reaped(third);
    keeper.obey(Ask::Signal { key: "w/2#1".into(), number: libc::SIGQUIT }, Vec::new());
    let executed = reaped(pids[2]);
    let ends = [reaped(pids[0])];
    hanging.release();
    let ends = [ends[0], reaped(pids[1])];
    until("end of the hanging", || {
        keeper.say_late();
        (!keeper.starter.hangs()).then_some(())
    });
    assert_eq!(started, ["w/0#1", "w/1#1", "w/3#1", "w/2#1"].map(|key| format!("Child(\"{key}\")")));
    assert_eq!((quit, executed), ((None, Some(libc::SIGKILL)), (None, Some(libc::SIGQUIT))));
    assert_eq!((streams, ends), (Some(2), [(None, Some(libc::SIGTERM)), (Some(127), None)]));
}

#[test]
fn what_hung_before_its_program_when_its_keeper_died_is_no_second_worker_later() {
    use crate::sys::starter::tests::{Hanging, Then, until};
    let hanging = Hanging::new(Then::Runs);
    let mut former = keeper();
    let start = |root: &str| Start { programs: vec![hanging.path()], ..sleep(root, "w/0#1", &[]) };
    former.start_child(&start("/hung"), None, None);
    let pid = former.table.get("w/0#1").expect("a child").id.pid;
    let mut others = keeper();
    others.start_child(&start("/hung-too"), None, None);
    let other = others.table.get("w/0#1").expect("a child").id.pid;
    // The next one knows nobody. Who hangs for another root is not its affair.
    let mut next = keeper();
    let now = clock::now();
    let (root, ended) = ("/hung".to_owned(), BTreeSet::new());
    // Who is only called so is nobody's start: another program, in the same place of everything else.
    let dir = tempfile::tempdir().expect("a directory");
    let called = dir.path().join(table::called_at_first(&root).to_str().expect("text"));
    fs_err::copy("/bin/sleep", &called).expect("copied");
    let mut namesake = std::process::Command::new(&called);
    namesake.arg("1000").stdin(std::process::Stdio::null());
    process::apart(&mut namesake);
    let mut namesake = namesake.spawn().expect("started");
    let namesakes = i32::try_from(namesake.id()).expect("a pid");
    until("its program", || process::title(namesakes).is_ok_and(|title| title.ends_with(b"1000")).then_some(()));
    next.adopting = Some(Adopting { root, known: Vec::new(), since: now, next: now, said: None, ended });
    until("end of the adoption", || {
        next.go_on_adopting();
        next.adopting.is_none().then_some(())
    });
    assert_eq!(next.table.len(), 0);
    namesake.kill().expect("ours");
    namesake.wait().expect("its end");
    // Asked of the keeper: a KILL takes effect some time after it.
    assert!(next.dying.contains_key(&pid) && !next.dying.contains_key(&namesakes));
    hanging.release();
    let looked = || rustix::process::waitpid(rustix::process::Pid::from_raw(pid), rustix::process::WaitOptions::NOHANG);
    let (_, ended) = until("its end", || looked().expect("ours"));
    assert_eq!(ended.terminating_signal(), Some(libc::SIGKILL));
    // It has executed its program, and is not called so any more.
    until("its program", || process::name(other).is_ok_and(|name| name == b"program").then_some(()));
    end(other);
}

#[test]
fn an_agent_is_started_however_many_workers_hang() {
    use crate::sys::starter::tests::{Hanging, Then};
    let hanging = Hanging::new(Then::Runs);
    let mut keeper = keeper();
    let mut slot = 0;
    // Until no more may.
    while !keeper.notes.iter().any(|note| matches!(note, Note::SpawnFailed(..))) {
        let start = Start { programs: vec![hanging.path()], ..sleep("/many", &format!("w/{slot}#1"), &[]) };
        keeper.start_child(&start, None, None);
        slot += 1;
    }
    // This program: it has no test of the agent's name.
    keeper.start_agent().expect("nothing else fails");
    let agent = keeper.agent.as_ref().and_then(|agent| agent.pid);
    let everybody = keeper.table.running_children();
    for pid in everybody.iter().map(|key| keeper.table.get(key).expect("a child").id.pid).chain(agent) {
        end(pid);
    }
    assert!(agent.is_some() && slot > 1, "{slot}");
}

#[test]
fn an_agent_that_cannot_be_told_something_is_ended() {
    let mut agent = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    let mut keeper = keeper();
    let (line, theirs) = packet::pair().expect("a line");
    let pid = i32::try_from(agent.id()).expect("a pid");
    keeper.agent = Some(Agent { pid: Some(pid), line, since: clock::now(), greeted: true, silent: None });
    keeper.notes.push_back(Note::Adopted);
    // Longer than the kernel takes.
    let name = "x".repeat(8 << 20);
    keeper.kept.insert(name.clone(), above_standard(theirs.try_clone().expect("a copy")).expect("another"));
    keeper.notes.push_back(Note::Kept(name));
    keeper.tell();
    let _or_already_ended = process::signal_child(pid, libc::SIGTERM);
    assert_eq!(agent.wait().expect("its end").signal(), Some(libc::SIGKILL));
}

#[test]
fn a_keeper_to_whom_nobody_listens_goes_on_and_says_how_much_it_did_not_say() {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    let nonblocking = |yes| rustix::io::ioctl_fionbio(&write, yes).expect("ours");
    nonblocking(true);
    while rustix::io::write(&write, &[b'x'; 4096]).is_ok() {}
    // Not our doing in life: whoever made the pipe decides.
    nonblocking(false);
    let unsaid = AtomicU32::new(0);
    for _ in 0..3 {
        say(write.as_fd(), &unsaid, "unheard");
    }
    assert_eq!(unsaid.load(Ordering::Relaxed), 3);
    let mut room = vec![0; 1 << 20];
    let _full = rustix::io::read(&read, &mut room[..]).expect("read");
    say(write.as_fd(), &unsaid, "heard");
    say(write.as_fd(), &unsaid, &"long ".repeat(2000));
    let heard = rustix::io::read(&read, &mut room[..]).expect("read");
    let text = String::from_utf8_lossy(&room[..heard]).into_owned();
    let (first, second) = text.split_once('\n').expect("two lines");
    assert_eq!(first, "selfstart keeper: (3 lines before this one could not be written) heard");
    assert!(second.starts_with("selfstart keeper: long ") && second.ends_with('\n') && second.len() == 4096, "{second}");
}

#[test]
fn an_agent_that_is_reaped_is_not_signalled_whatever_it_said_last() {
    // The number came again: it is another process's.
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    let mut keeper = keeper();
    let pid = i32::try_from(other.id()).expect("a pid");
    for last in [None, Some(&b"\xff nonsense"[..])] {
        let (line, theirs) = packet::pair().expect("a line");
        if let Some(last) = last {
            packet::send(theirs.as_fd(), last, &[]).expect("said");
        }
        drop(theirs);
        keeper.agent = Some(Agent { pid: Some(pid), line, since: clock::now(), greeted: true, silent: None });
        keeper.agent_ended(Ended::Code(0));
        assert!(keeper.agent.is_none());
    }
    process::signal_child(pid, libc::SIGTERM).expect("ours");
    assert_eq!(other.wait().expect("its end").signal(), Some(libc::SIGTERM));
}

#[test]
fn a_job_whose_title_cannot_be_read_is_not_killed() {
    let mut job = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    let pid = i32::try_from(job.id()).expect("a pid");
    let id = process::stat(pid).expect("it lives").id(pid);
    // Until it has executed its program it has the title of this one.
    let title = b"sleep\x001000";
    while process::title(pid).expect("a title") != title {
        std::thread::yield_now();
    }
    fault::set_proc(Some("cmdline"));
    let ours = |_| Ok(true);
    signal_job(id, title, libc::SIGKILL, ours);
    // Unreadable is not empty either.
    signal_job(id, b"", libc::SIGKILL, ours);
    fault::set_proc(Some("stat"));
    signal_job(id, title, libc::SIGKILL, ours);
    signal_job(id, title, libc::SIGKILL, |_| Ok(false));
    fault::set_proc(None);
    signal_job(id, b"sleep 1", libc::SIGKILL, ours);
    signal_job(ProcessId { start_ticks: id.start_ticks + 1, ..id }, title, libc::SIGKILL, ours);
    signal_job(id, title, libc::SIGTERM, ours);
    assert_eq!(job.wait().expect("its end").signal(), Some(libc::SIGTERM));
}
