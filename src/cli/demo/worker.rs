//! `selfstart internal-demo-worker MODE`: what the demo's pools run, so that the demo needs nothing but this binary.
//!
//! A worker does as its mode says when its cue is there: the file named by `CUE`, which it removes, so that its successor is healthy.
//!
//! | mode | works | when cued |
//! |---|---|---|
//! | steady | a numbered line for each job | – |
//! | leak | waits | allocates and touches memory until it is recycled (or [`LEAK_END`] is reached) |
//! | crash | leaves a process in a session of its own | exits with 1 |
//! | stale | as a Resque master: a child for each job, titles as Resque sets them | takes a job that never ends |

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};
use std::thread::sleep;
use std::time::Duration;

use crate::sys::clock;
use crate::sys::gate;

/// The first argument of the binary as a demo's worker.
pub(crate) const VERB: &str = "internal-demo-worker";

/// The variable that names the cue's file.
pub(super) const CUE: &str = "CUE";

/// How long a job takes, and how often a cue is looked for.
const JOB: Duration = Duration::from_millis(100);

/// So much more every 50 ms: 40 MB in a second, so that a limit of some 30 MB is passed in a moment that a person can follow.
const LEAK_PIECE: usize = 2 << 20;

/// A leak that nobody stops ends here: the demo must not hurt the machine that it runs on.
const LEAK_END: usize = 128 << 20;

/// Longer than any demo.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// Works until it is stopped; the code that it ends with is told by its mode.
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mode = arguments.next().unwrap_or_default();
    match mode.to_str().unwrap_or_default() {
        "steady" => steady(),
        "leak" => leak(),
        "crash" => crash(),
        // A title is the zeroth argument, and only a new program gets a new one without touching memory that is not ours.
        "stale" => failed(&again("resque-3.0.0: Waiting for demo", &["master"]).exec()),
        "master" => master(),
        "hanging-job" => {
            sleep(FOR_EVER);
            ExitCode::SUCCESS
        }
        "quick-job" => {
            sleep(JOB);
            ExitCode::SUCCESS
        }
        "stray" => {
            // Already the leader of a session: then it has one of its own.
            let _session = rustix::process::setsid();
            sleep(FOR_EVER);
            ExitCode::SUCCESS
        }
        _ => failed(&io::Error::new(io::ErrorKind::InvalidInput, "no such mode")),
    }
}

fn steady() -> ExitCode {
    let version = match fs_err::read_to_string("VERSION") {
        Ok(version) => version.trim().to_owned(),
        Err(error) => return failed(&error),
    };
    let pid = std::process::id();
    let mut job = 0_u64;
    loop {
        job += 1;
        say(&format!("job {job} of process {pid} done by version {version}"));
        sleep(JOB);
    }
}

fn leak() -> ExitCode {
    say("waiting for work");
    wait_for_cue();
    say("caching every result, for ever");
    let mut cache: Vec<Vec<u8>> = Vec::new();
    while cache.len() * LEAK_PIECE < LEAK_END {
        cache.push(std::hint::black_box(vec![1; LEAK_PIECE]));
        sleep(Duration::from_millis(50));
    }
    sleep(FOR_EVER);
    drop(cache);
    ExitCode::SUCCESS
}

fn crash() -> ExitCode {
    match gate::spawn(&mut again("demo: left behind", &["stray"])) {
        Ok(stray) => say(&format!("process {} goes its own way", stray.id())),
        Err(error) => return failed(&error),
    }
    wait_for_cue();
    let _nobody_reads = writeln!(io::stderr(), "fatal: the database went away");
    ExitCode::FAILURE
}

fn master() -> ExitCode {
    loop {
        let (class, mode) = if cued() { ("HangingJob", "hanging-job") } else { ("QuickJob", "quick-job") };
        let since = clock::wall().unix_millis() / 1000;
        let ended = gate::spawn(&mut again(&format!("resque-3.0.0: Processing demo since {since} [{class}]"), &[mode])).and_then(
            |mut child: Child| {
                let pid = child.id();
                child.wait().map(|status| (pid, status))
            },
        );
        match ended {
            Ok((_, status)) if status.success() => say(&format!("{class} done")),
            Ok((pid, status)) => say(&format!("{class} failed: its process {pid} ended by {status}")),
            Err(error) => return failed(&error),
        }
        sleep(JOB);
    }
}

/// This binary once more, under a title.
fn again(title: &str, mode: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(title).arg(VERB).args(mode);
    command
}

fn cued() -> bool {
    std::env::var_os(CUE).is_some_and(|path| gate::remove_file(path).is_ok())
}

fn wait_for_cue() {
    while !cued() {
        sleep(JOB / 2);
    }
}

fn say(line: &str) {
    // Nobody reads: then there is nobody to tell.
    let _nobody_reads = writeln!(io::stdout(), "{line}");
}

fn failed(error: &io::Error) -> ExitCode {
    let _nobody_reads = writeln!(io::stderr(), "the demo's worker failed: {error}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use selfstart_core::job::parse_title;

    #[test]
    fn the_titles_are_read_as_those_of_resque() {
        let cmdline = b"resque-3.0.0: Processing demo since 1795342830 [HangingJob]\0internal-demo-worker\0hanging-job\0";
        let title = parse_title(cmdline).expect("a job");
        assert_eq!((title.queue, title.class), (&b"demo"[..], Some(&b"HangingJob"[..])));
        assert_eq!(parse_title(b"resque-3.0.0: Waiting for demo\0internal-demo-worker\0master\0"), None);
    }
}
