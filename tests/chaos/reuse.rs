//! Process numbers that come again, on purpose: in a pid namespace of its own, where the next number can be set.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::node::{Node, PATIENCE, fixture, kill, lives, pids, scan, stat, until};
use crate::waiting::pause;

/// Runs one of the ignored tests as root of its own pid namespace. Its `/proc` is its own too; a shell is its first process and reaps.
pub(crate) fn outside(name: &str) {
    let us = std::env::current_exe().expect("us");
    let line = format!("'{}' --exact inside_{name} --ignored --nocapture; exit $?", us.display());
    let out = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &line])
        .env("CHAOS_INSIDE", "1")
        .stdin(Stdio::null())
        .output()
        .expect("unshare");
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{}\n{said}\n{complained}", out.status);
}

/// A process that is killed when the test is over.
struct Stranger(Child, u64);

impl Stranger {
    /// Starts this command under this number, which must be free.
    fn with_number(wanted: i32, command: &mut Command) -> Self {
        until("the number", Duration::from_secs(10), || {
            fs_err::write("/proc/sys/kernel/ns_last_pid", (wanted - 1).to_string()).map_err(|error| error.to_string())?;
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(|error| error.to_string())?;
            let pid = i32::try_from(child.id()).expect("a pid");
            if pid == wanted {
                let ticks = stat(pid).ok_or("gone")?.2;
                return Ok(Self(child, ticks));
            }
            let (_killed, _reaped) = (child.kill(), child.wait());
            Err(format!("it got {pid}, not {wanted}"))
        })
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }

    fn lives(&self) -> bool {
        lives(self.pid(), self.1)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let (_killed, _reaped) = (self.0.kill(), self.0.wait());
    }
}

/// A later start time than anything before: numbers are compared together with it, in ticks of 10 ms.
fn next_tick() {
    pause(Duration::from_millis(30));
}

fn inside() -> bool {
    // Where all tests are asked for, also the ignored ones, this one has no namespace and is no test.
    std::env::var_os("CHAOS_INSIDE").is_some()
}

pub(crate) fn worker() {
    if !inside() {
        return;
    }
    let mut node = Node::new(
        "pools:\n  plain: {command: \"{fixture} --flood 0 20\", count: 1, ready: {after: 100ms}}\n  demon: {command: \"{fixture} --daemonise \
         {dir}/demon.{slot}\", count: 1, ready: {after: 100ms}}\n",
    );
    node.run();
    let file = node.dir().join("demon.0");
    let daemon = || fs_err::read_to_string(&file).ok().and_then(|text| text.trim().parse::<i32>().ok()).unwrap_or(0);
    let workers = || {
        until("both workers", PATIENCE, || {
            let scan = scan(&node.root);
            match (scan.main("plain/0"), scan.main("demon/0"), scan.others.len()) {
                (Some(plain), Some(demon), 1) if daemon() != 0 => Ok((plain.clone(), demon.clone(), daemon())),
                _ => Err(format!("{scan:?}")),
            }
        })
    };
    let (plain, demon, left) = workers();
    let saved = || {
        until("it on disk", PATIENCE, || {
            let text = fs_err::read_to_string(node.root.join("run/state.json")).map_err(|error| error.to_string())?;
            let status = node.status()?;
            let ready = status["pools"].as_array().is_some_and(|pools| pools.iter().all(|pool| pool["ready"] == 1));
            if ready && text.matches("\"Up\"").count() == 2 { Ok(()) } else { Err(text) }
        })
    };
    saved();
    let left_ticks = stat(left).expect("the child of demon").2;
    node.kill_keeper();
    for main in [&plain, &demon] {
        kill(main.pid, rustix::process::Signal::KILL);
        until("its number to be free", PATIENCE, || stat(main.pid).map_or(Ok(()), |it| Err(format!("{it:?}"))));
    }
    next_tick();
    assert!(lives(left, left_ticks), "what demon left behind is there");
    // One as plain as can be; one that leads a session, whose number is then that of the worker's own session too.
    let one = Stranger::with_number(plain.pid, Command::new("sleep").arg("1000"));
    let two = Stranger::with_number(demon.pid, Command::new("setsid").args(["sleep", "1000"]));
    node.run();
    let (new_plain, new_demon, new_left) = until("new workers", PATIENCE, || {
        let scan = scan(&node.root);
        match (scan.main("plain/0"), scan.main("demon/0")) {
            (Some(plain), Some(demon)) if !lives(left, left_ticks) && scan.others.len() == 1 => {
                Ok((plain.clone(), demon.clone(), scan.others[0].2))
            }
            _ => Err(format!("{scan:?}, the former child lives: {}; {}", lives(left, left_ticks), node.told())),
        }
    });
    assert!(new_plain.pid != plain.pid && new_demon.pid != demon.pid && new_left != left);
    assert!(new_plain.start > plain.start && new_demon.start > demon.start);
    assert!(one.lives(), "the plain stranger was ended");
    assert!(two.lives(), "the stranger with a session was ended");
    // Nor later, when everything is stopped.
    node.stop();
    assert!(one.lives() && two.lives(), "a stranger was ended by the stop");
}

pub(crate) fn job() {
    if !inside() {
        return;
    }
    let mut node = Node::new(
        "queue: {kind: resque}\npools:\n  jobs: {command: \"{fixture} --resque slow SleepJob 600000\", count: 1, stale_job_timeout: 3s, ready: \
         {after: 100ms}, stop: [TERM 5s, KILL]}\n",
    );
    node.run();
    let title = |pid: i32| {
        let bytes = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    };
    // By its status: its title, which it sets at once, hides the environment that a scan would look for.
    let master = until("a worker", PATIENCE, || {
        let status = node.status()?;
        let pid = status["pools"][0]["slots"][0]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.ok_or_else(|| status.to_string())
    });
    let job = until("a job", PATIENCE, || {
        let job = pids()
            .into_iter()
            .find(|pid| stat(*pid).is_some_and(|(_, parent, _)| parent == master) && title(*pid).contains("Processing slow since"));
        job.ok_or_else(|| title(master))
    });
    let said = title(job);
    // The keeper hears nothing while the agent judges; then the job ends, and its number and title are another's.
    kill(node.keeper_pid(), rustix::process::Signal::STOP);
    until("the verdict", PATIENCE, || {
        let told = node.told();
        if told.contains("longer than 3s") { Ok(()) } else { Err(told) }
    });
    kill(master, rustix::process::Signal::STOP);
    kill(job, rustix::process::Signal::KILL);
    kill(master, rustix::process::Signal::CONT);
    until("its number to be free", PATIENCE, || stat(job).map_or(Ok(()), |it| Err(format!("{it:?}"))));
    next_tick();
    let stranger = Stranger::with_number(job, Command::new(fixture()).args(["--title", &said]).env("ROOM", "x".repeat(200)));
    until("the title", PATIENCE, || if title(stranger.pid()) == said { Ok(()) } else { Err(title(stranger.pid())) });
    kill(node.keeper_pid(), rustix::process::Signal::CONT);
    // What the keeper was asked before is done by the time it has done what it is asked now.
    let out = node.selfstart(&["restart", "jobs"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    until("the end of the worker", PATIENCE, || stat(master).map_or(Ok(()), |it| Err(format!("{it:?}"))));
    assert!(stranger.lives(), "the process that took the job's number was killed");
    node.stop();
    assert!(stranger.lives());
}
