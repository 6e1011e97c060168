//! `selfstart demo`: a whole life on this machine, in a temporary folder, told as it happens, and judged from outside.
//!
//! [`source`] is the repository, [`node`] the folder and the node in it, [`worker`] what its pools run, [`watch`] what is seen in `/proc` and
//! in the log files, [`judge`] whether that was promised. This file tells the story. The agent's own word is used where a person would
//! use it (commands, `status`), and never as the proof of what it says.

mod judge;
mod mischief;
mod node;
mod source;
mod watch;
pub(crate) mod worker;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec};
use selfstart_core::command::Command;
use selfstart_core::id::ProcessId;
use selfstart_core::signal::Signal;

use super::exit::Exit;
use super::failure::{Failure, Stop, printing};
use super::look::{Look, Style, clean, wrap};
use crate::control::wire::{Failed, Outcome};
use crate::sys::signals::{self, SignalFd};
use crate::sys::{clock, gate, process, users};
use crate::telling::journal::{self, Filter};
use judge::{Birth, Judged, Rollout, Row};
use node::{Folder, Node};
use source::Source;
use watch::{SlotName, Watch};

/// Flags of `demo`.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct DemoArgs {
    /// About how long it takes, in seconds; the same happens, with more or less time to watch
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,
    /// Leave the temporary folder there, and say how to look around in it
    #[arg(long)]
    pub(crate) keep: bool,
}

/// How many workers the pool `steady` has.
const STEADY: usize = 3;
/// Far above what this binary needs, and soon reached by the leak.
const LIMIT_MB: u64 = 48;
const SAMPLES: u32 = 2;
const EVERY: Duration = Duration::from_millis(250);
const STALE: Duration = Duration::from_secs(2);

/// What happens takes about this long by itself (measured on 2 cores); what is left of `--seconds` is for watching.
const BUSY: Duration = Duration::from_secs(16);
/// How often there is time to watch.
const PAUSES: u32 = 6;
/// How often something is said meanwhile.
const SAY_EVERY: Duration = Duration::from_secs(8);

/// Nothing but what a shell does by itself.
const BUILD: &str = "read version < VERSION\necho \"$version\" > BUILT\n";
const BROKEN_BUILD: &str = "echo 'cannot find module: left-pad' >&2\nexit 2\n";

/// Between two looks: a twentieth of the shortest time that is promised, and no load.
const EYES: Timespec = Timespec { tv_sec: 0, tv_nsec: 15_000_000 };

/// Nothing in the story takes a tenth of this on an idle machine; on a busy one it is still told, with its true times.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the story ends before its end.
enum End {
    /// The reader wants no more of it: this signal came.
    Signal(i32),
    Stop(Stop),
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Stop(failure.into())
    }
}

/// Names what could not be done.
fn failing<E: std::error::Error>(what: &'static str) -> impl FnOnce(E) -> End {
    move |error| Failure::because(Exit::Failed, format!("the demo failed to {what}"), &error).into()
}

/// Plays it.
pub(crate) fn demo(args: DemoArgs) -> Result<Exit, Stop> {
    match play(args) {
        Ok(exit) => Ok(exit),
        Err(End::Stop(stop)) => Err(stop),
        Err(End::Signal(number)) => Ok(Exit::Other(u8::try_from(128 + number).unwrap_or(1))),
    }
}

fn play(args: DemoArgs) -> Result<Exit, End> {
    let mut story = Story::begin(args)?;
    story.boot()?;
    story.pause()?;
    story.mischief()?;
    story.pause()?;
    story.push()?;
    story.pause()?;
    story.kill_the_agent()?;
    story.pause()?;
    story.break_the_build()?;
    story.pause()?;
    story.roll_back()?;
    story.pause()?;
    story.stop()?;
    story.summary()
}

/// Everything that is needed to tell it. Ends in this order: first the node, then its folder.
struct Story {
    began: Instant,
    look: Look,
    signals: SignalFd,
    pause: Duration,
    builds: bool,
    source: Source,
    head: String,
    watch: Watch,
    node: Node,
    folder: Folder,
    stopping: bool,
    rows: Vec<Row>,
}

impl Story {
    /// Makes the folder, the repository and the configuration, and starts the node.
    fn begin(args: DemoArgs) -> Result<Self, End> {
        let began = clock::instant();
        let look = Look::of_stdout();
        // From here on a signal is something to read, so that everything is put away when one comes.
        let signals = SignalFd::take().map_err(failing("take signals"))?;
        let folder = Folder::make(args.keep).map_err(failing("make a temporary folder"))?;
        let (root, config, git) = (folder.path.join("root"), folder.path.join("config.yaml"), folder.path.join("app.git"));
        let builds = Path::new("/bin/sh").exists();
        let mut source = Source::make(&git).map_err(failing("make a repository"))?;
        let head = source.push("the first version", &[("VERSION", "1\n"), ("build.sh", BUILD)]).map_err(failing("write a commit"))?;
        gate::write_file(&config, configuration(&folder.path, builds)).map_err(failing("write a configuration"))?;
        let node = Node::start(&config, root.clone(), &folder.path.join("node.log")).map_err(failing("start a node"))?;
        let watch = Watch::new(root, node.pid(), builds).map_err(failing("read /proc"))?;
        let pause = Duration::from_secs(u64::from(args.seconds)).saturating_sub(BUSY) / PAUSES;
        let story = Self { began, look, signals, pause, builds, source, head, watch, node, folder, stopping: false, rows: Vec::new() };
        let who = users::user(&rustix::process::geteuid().as_raw().to_string(), None).map_or_else(|_| "this user".into(), |user| user.name);
        story.print(&format!(
            "{} a whole life of a node, as {who}, in {}\nThis binary is all of it: git, keeper, agent and workers. What is told was seen from outside. Ctrl-C ends it and tidies up.",
            story.look.paint.on(Style::Strong, "selfstart demo:"),
            story.folder.path.display()
        ))?;
        Ok(story)
    }

    fn boot(&mut self) -> Result<(), End> {
        self.chapter("A repository, and a node that boots from it")?;
        self.tell("git", Style::Plain, &format!("app.git has one commit on `main`: {} (version 1)", short(&self.head)))?;
        self.tell("node", Style::Plain, &format!("`selfstart run` is process {}: fetches, builds, switches, starts", self.node.pid()))?;
        let up = self.wait(PATIENCE, |story| {
            let whole = story.watch.now.alive("steady") == STEADY && story.watch.now.workers.len() == STEADY + 3;
            Ok((whole
                && story.writing("1") == STEADY
                && story.node.status().is_some_and(|status| status.pools.iter().all(|pool| pool.ready == pool.wanted)))
            .then_some(()))
        })?;
        if up.is_none() {
            return Err(self.dead("its workers were not up within 30 s"));
        }
        let release = self.current()?;
        self.tell("deploy", Style::Good, &format!("release {release} is live"))?;
        let pids: Vec<String> = self.watch.now.workers.iter().map(|(slot, worker)| format!("{slot} {}", worker.process.pid)).collect();
        self.tell("workers", Style::Good, &format!("6 work: {}", pids.join(", ")))
    }

    fn push(&mut self) -> Result<(), End> {
        self.chapter("A commit is pushed")?;
        self.head =
            self.source.push("the second version", &[("VERSION", "2\n"), ("build.sh", BUILD)]).map_err(failing("write a commit"))?;
        self.tell("git", Style::Plain, &format!("{} (version 2) is on `main`; `selfstart deploy`", short(&self.head)))?;
        let rollout = self.roll(Command::Deploy { reference: None, force: false }, "2")?;
        let births: Result<Vec<Birth>, End> = self.watch.now.workers.values().map(|worker| self.birth(worker.process.pid)).collect();
        let births = births?;
        self.judged([judge::pushed(&rollout, "2"), judge::births(&births, STEADY + 3)])
    }

    fn kill_the_agent(&mut self) -> Result<(), End> {
        self.chapter("The agent is killed")?;
        let (before, old) = (self.watch.now.processes(), self.watch.now.agent);
        let Some(agent) = old else { return Err(self.dead("it has no agent")) };
        let opened = process::open(agent).map_err(failing("find the agent"))?;
        process::signal_open(std::os::fd::AsFd::as_fd(&opened), signals::number(Signal::Kill)).map_err(failing("kill the agent"))?;
        let began = clock::instant();
        self.tell("agent", Style::Warn, &format!("process {} gets KILL", agent.pid))?;
        let back = self.wait(PATIENCE, |story| {
            let status = story.node.status().filter(|status| status.agent.pid != agent.pid);
            Ok(status.map(|status| (status, began.elapsed())))
        })?;
        self.watch.look();
        let after = self.watch.now.processes();
        let new = self.watch.now.agent.map(|agent| agent.pid);
        let mut told = BTreeMap::new();
        if let Some((status, took)) = &back {
            for pool in &status.pools {
                told.extend(pool.slots.iter().filter_map(|slot| Some((format!("{}/{}", pool.name, slot.slot), slot.pid?))));
            }
            self.tell("agent", Style::Good, &format!("process {} answers after {} ms", status.agent.pid, took.as_millis()))?;
        }
        let pids: Vec<String> = after.iter().map(|(slot, process)| format!("{slot} {}", process.pid)).collect();
        self.tell("workers", Style::Good, &format!("work on: {}", pids.join(", ")))?;
        let lines = self.lines().there;
        self.wait(PATIENCE, |story| Ok((story.lines().there >= lines + 2 * STEADY as u64).then_some(())))?;
        self.judged([judge::agent((Some(agent.pid), new), back.map(|(_, took)| took), &before, &after, &told)])
    }

    fn break_the_build(&mut self) -> Result<(), End> {
        self.chapter("A commit is pushed that does not build")?;
        if !self.builds {
            return self.judged([judge::no_builds()]);
        }
        let (before, current) = (self.watch.now.processes(), self.current()?);
        let head = self
            .source
            .push("the third version, in a hurry", &[("VERSION", "3\n"), ("build.sh", BROKEN_BUILD)])
            .map_err(failing("write a commit"))?;
        self.tell("git", Style::Plain, &format!("{} is on `main`; `selfstart deploy`", short(&head)))?;
        let outcome = self.answer(Command::Deploy { reference: None, force: false }, |_| Ok(()))?;
        let failed = match &outcome {
            Some(Outcome::Failed(Failed { reason, .. })) => {
                self.tell("deploy", Style::Warn, &clean(&reason.lines().map(str::trim).collect::<Vec<_>>().join(" ")))?;
                true
            }
            _ => false,
        };
        let status = self.node.status();
        let quarantined = status.is_some_and(|status| status.deploy.quarantined.iter().any(|it| it.revision.as_str() == head));
        self.watch.look();
        let after = self.watch.now.processes();
        self.tell(
            "workers",
            Style::Good,
            &format!("{} of version {} work on", after.len(), self.watch.versions.last().map_or("?", String::as_str)),
        )?;
        self.judged([judge::broken_build(failed, quarantined, (&current, &self.current()?), &before, &after)])
    }

    fn roll_back(&mut self) -> Result<(), End> {
        self.chapter("Back to the release before, by command")?;
        self.tell("operator", Style::Plain, "`selfstart rollback`")?;
        let rollout = self.roll(Command::Rollback { to: None }, "1")?;
        let held = self.node.status().is_some_and(|status| status.deploy.held);
        self.judged([judge::rolled_back(&rollout, "1", held)])
    }

    fn stop(&mut self) -> Result<(), End> {
        self.chapter("The end")?;
        let before = self.watch.everyone().map_err(failing("read /proc"))?.len();
        self.stopping = true;
        self.node.stop();
        let began = clock::instant();
        self.tell("node", Style::Plain, &format!("TERM to `selfstart run`; {before} processes of workers are there"))?;
        let code = self.wait(PATIENCE, |story| Ok(story.node.ended()))?;
        let took = began.elapsed();
        self.watch.look();
        let left = self.watch.everyone().ok().map(|left| left.len());
        if let (Some(code), Some(left)) = (code, left) {
            self.tell("node", Style::Good, &format!("ended with {code} after {} ms; {left} processes are left", took.as_millis()))?;
        }
        self.judged([judge::stopped(code, took, before, left)])
    }

    fn summary(&mut self) -> Result<Exit, End> {
        let ended = Filter { kinds: Some(vec!["worker_ended".into()]), ..Filter::default() };
        let (mut told, mut readable) = (BTreeMap::<SlotName, u64>::new(), 0);
        for record in journal::tail(&self.node.root.join("run/events.jsonl"), usize::MAX, &ended) {
            if let (Some(pool), Some(slot)) = (&record.pool, record.slot) {
                *told.entry(format!("{pool}/{slot}")).or_default() += 1;
                readable += u64::from(record.verdict.is_some_and(|verdict| !verdict.is_empty()) && !record.text.is_empty());
            }
        }
        let whole = [
            judge::current(self.watch.looks, self.watch.torn, self.watch.tear.as_deref(), &self.watch.versions),
            judge::output(self.lines()),
            judge::verdicts(&self.watch.ended, &told, readable),
        ];
        self.rows.extend(whole);
        self.print(&format!("\n{}", table(&self.rows, &self.look)))?;
        let count = |judged| self.rows.iter().filter(|row| row.judged == judged).count();
        let (kept, broken) = (count(Judged::Kept), count(Judged::Broken));
        let seconds = self.began.elapsed().as_secs_f64();
        let (style, words) = match broken {
            0 => (Style::Good, format!("{kept} promises kept, none broken, in {seconds:.1} s")),
            _ => (Style::Bad, format!("{broken} of {} promises BROKEN, in {seconds:.1} s", self.rows.len())),
        };
        self.print(&self.look.paint.on(style, &words))?;
        if self.folder.keep {
            self.look_around()?;
        }
        Ok(if broken == 0 { Exit::Done } else { Exit::Failed })
    }

    /// What a reader can do with the folder that is kept.
    fn look_around(&self) -> Result<(), End> {
        let me = std::env::args().next().unwrap_or_else(|| "selfstart".into());
        let config = self.folder.path.join("config.yaml");
        let mut text = format!("\n{} is kept. Look around:\n", self.folder.path.display());
        for words in [
            "why leak/0",
            "why deploy",
            "events",
            "logs steady/0",
            "check",
            "run        (boots it again, from the release that is live; Ctrl-C ends it)",
        ] {
            text.push_str(&format!("  {me} --config {} {words}\n", config.display()));
        }
        text.push_str(&format!("  rm -r {}", self.folder.path.display()));
        self.print(&text)
    }

    /// Asks for a release and tells how the workers change; what became of it.
    fn roll(&mut self, command: Command, version: &str) -> Result<Rollout, End> {
        let before = self.watch.now.processes();
        let mut told = before.clone();
        // The first look belongs to the time before.
        self.watch.look();
        self.watch.count_from_here();
        let began = clock::instant();
        let (mut took, mut empty): (Option<Duration>, BTreeMap<SlotName, (Instant, bool)>) = (None, BTreeMap::new());
        let outcome = self.answer(command, |story| {
            if took.is_none() && story.writing(version) == STEADY {
                took = Some(began.elapsed());
            }
            for slot in before.keys() {
                if story.watch.now.workers.contains_key(slot) {
                    empty.remove(slot);
                } else {
                    let (since, said) = empty.entry(slot.clone()).or_insert_with(|| (clock::instant(), false));
                    if !*said && since.elapsed() > Duration::from_secs(1) {
                        *said = true;
                        story.tell(slot, Style::Faint, "waits: a slot is started at most once in 10 s after ends that were no crashes")?;
                    }
                }
            }
            for (slot, process) in story.watch.now.processes() {
                let former = told.insert(slot.clone(), process);
                if former != Some(process) && story.node.ended().is_none() {
                    let former = former.map_or_else(|| "nobody".to_owned(), |former| former.pid.to_string());
                    let up = match slot.starts_with("steady/") {
                        true => format!("; {} of {STEADY} are up", story.watch.now.alive("steady")),
                        false => String::new(),
                    };
                    story.tell(&slot, Style::Plain, &format!("process {former} -> {}{up}", process.pid))?;
                }
            }
            Ok(())
        })?;
        let done = match &outcome {
            Some(Outcome::Done(_)) => true,
            Some(Outcome::Failed(Failed { reason, .. })) => {
                self.tell("deploy", Style::Bad, &clean(reason))?;
                false
            }
            Some(Outcome::Refused(refused)) => {
                self.tell("deploy", Style::Bad, &clean(&refused.reason))?;
                false
            }
            None => false,
        };
        self.wait(Duration::from_secs(5), |story| Ok((story.writing(version) == STEADY).then_some(())))?;
        let took = took.unwrap_or_else(|| began.elapsed());
        let now = self.watch.now.processes();
        let old = before.iter().filter(|(slot, process)| now.get(*slot) == Some(*process)).count();
        let mut starts: Vec<Duration> =
            now.iter().filter(|(slot, _)| slot.starts_with("steady/")).map(|(_, process)| self.watch.age(*process)).collect();
        starts.sort();
        let apart = starts.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).min();
        let release = self.current()?;
        self.tell(
            "deploy",
            Style::Good,
            &format!("release {release} is live, and works as version {}", self.watch.versions.last().map_or("?", String::as_str)),
        )?;
        Ok(Rollout { done, took, count: STEADY, fewest: self.watch.fewest, apart, old, new: self.writing(version) })
    }

    /// Asks and watches until there is an answer; `None`: there was none in time, or no agent.
    fn answer(&mut self, command: Command, mut watch: impl FnMut(&mut Self) -> Result<(), End>) -> Result<Option<Outcome>, End> {
        let answer = self.node.ask(command);
        let outcome = self.wait(2 * PATIENCE, |story| {
            watch(story)?;
            match answer.try_recv() {
                Ok(outcome) => Ok(Some(outcome.ok())),
                Err(TryRecvError::Empty) => Ok(None),
                Err(TryRecvError::Disconnected) => Ok(Some(None)),
            }
        })?;
        Ok(outcome.flatten())
    }

    /// How many steady workers, as they are now, wrote a line with this version.
    fn writing(&self, version: &str) -> usize {
        let slots = (0..STEADY).map(|slot| format!("steady/{slot}"));
        slots
            .filter(|slot| {
                let (_, jobs) = watch::jobs(&self.node.root, [slot.as_str()]);
                let pid = self.watch.now.pid(slot);
                jobs.last().is_some_and(|job| Some(job.pid) == pid && job.version == version)
            })
            .count()
    }

    fn lines(&self) -> judge::Lines {
        let slots: Vec<String> = (0..STEADY).map(|slot| format!("steady/{slot}")).collect();
        watch::jobs(&self.node.root, slots.iter().map(String::as_str)).0
    }

    /// What a worker was born with.
    fn birth(&self, pid: i32) -> Result<Birth, End> {
        let live = fs_err::canonicalize(self.node.root.join("current")).map_err(failing("follow `current`"))?;
        // One that has ended meanwhile was in no release, and is judged so.
        let directory = match fs_err::read_link(format!("/proc/{pid}/cwd")) {
            Ok(directory) => Some(directory),
            Err(error) if process::is_gone(&error) => None,
            Err(error) => return Err(failing("see where a worker is")(error)),
        };
        Ok(Birth {
            directory: directory == Some(live),
            revision: process::variable(pid, "SELFSTART_REVISION").as_deref() == Some(&self.head),
            // Not having been able to read is not "it has none": the revision then is missing as well.
            foreign: process::variable(pid, node::FOREIGN).is_some(),
        })
    }

    /// The release that is live, by the link.
    fn current(&self) -> Result<String, End> {
        let target = fs_err::read_link(self.node.root.join("current")).map_err(failing("read `current`"))?;
        // It leads to a release by its name; one without a name is none, and is judged so.
        Ok(target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
    }

    /// Tells a worker to misbehave.
    fn cue(&self, pool: &str) -> Result<(), End> {
        gate::write_file(cue_path(&self.folder.path, pool), "").map_err(failing("cue a worker"))
    }

    /// Shows what the node says about what was just seen, once it has written it down.
    fn verdict(&mut self, kind: &str, pool: &str, slot: Option<u32>) -> Result<(), End> {
        let filter = Filter { pools: Some(vec![pool.to_owned()]), slot, kinds: Some(vec![kind.to_owned()]) };
        let path = self.node.root.join("run/events.jsonl");
        if let Some(record) = journal::tail(&path, 1, &filter).pop() {
            self.tell("", Style::Faint, &format!("verdict: {}", clean(&record.text)))?;
        }
        Ok(())
    }

    /// Waits, with open eyes, for what `until` returns; `None`: not in time.
    fn wait<T>(&mut self, limit: Duration, mut until: impl FnMut(&mut Self) -> Result<Option<T>, End>) -> Result<Option<T>, End> {
        let began = clock::instant();
        loop {
            self.turn()?;
            if let Some(found) = until(self)? {
                return Ok(Some(found));
            }
            if began.elapsed() > limit {
                return Ok(None);
            }
        }
    }

    /// Looks once; a signal ends the story.
    fn turn(&mut self) -> Result<(), End> {
        let mut ready = [PollFd::new(&self.signals, PollFlags::IN)];
        match rustix::event::poll(&mut ready, Some(&EYES)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failing("wait")(std::io::Error::from(error))),
        }
        while let Some(number) = self.signals.next().map_err(failing("read signals"))? {
            if [Signal::Int, Signal::Term, Signal::Hup].map(signals::number).contains(&number) {
                self.print("\na signal: the node is stopped and everything put away")?;
                return Err(End::Signal(number));
            }
        }
        if !self.stopping
            && let Some(code) = self.node.ended()
        {
            return Err(self.dead(&format!("`selfstart run` ended with {code}")));
        }
        self.watch.look();
        Ok(())
    }

    /// Time to watch, and a word on what is done meanwhile.
    fn pause(&mut self) -> Result<(), End> {
        let mut left = self.pause;
        loop {
            let (before, began) = (self.lines().there, clock::instant());
            let piece = left.min(SAY_EVERY);
            self.wait(piece, |_| Ok(None::<()>))?;
            if piece >= Duration::from_secs(1) {
                let (jobs, seconds) = (self.lines().there.saturating_sub(before), began.elapsed().as_secs_f64());
                let (count, bytes): (usize, u64) =
                    (self.watch.now.workers.len(), self.watch.now.workers.values().map(|worker| worker.bytes).sum());
                let text =
                    format!("{jobs} jobs done in {seconds:.1} s by {STEADY} steady workers; {count} workers hold {} MB", bytes / 1_000_000);
                self.tell("", Style::Faint, &text)?;
            }
            left = left.saturating_sub(piece);
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    /// The node is not as it must be to go on.
    fn dead(&self, why: &str) -> End {
        let log = fs_err::read_to_string(self.folder.path.join("node.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let words = lines[lines.len().saturating_sub(12)..].join("\n");
        Failure::new(Exit::Failed, format!("the demo's node does not live: {why}; the end of its log:\n{words}"))
            .hint("`selfstart demo --keep` leaves all of it to look at")
            .into()
    }

    fn judged(&mut self, rows: impl IntoIterator<Item = Row>) -> Result<(), End> {
        for row in rows {
            if row.judged == Judged::Broken {
                self.tell("BROKEN", Style::Bad, &format!("{}: {}", row.promise, row.seen))?;
            }
            self.rows.push(row);
        }
        Ok(())
    }

    fn chapter(&self, title: &str) -> Result<(), End> {
        self.print(&format!("\n{}", self.look.paint.on(Style::Strong, title)))
    }

    /// A line: when, who, what.
    fn tell(&self, who: &str, style: Style, what: &str) -> Result<(), End> {
        const BEFORE: usize = 19;
        let at = format!("{:>6.1}s", self.began.elapsed().as_secs_f64());
        let width = self.look.width.map(|width| width.saturating_sub(BEFORE).max(20));
        let mut line = format!(
            "{}  {}",
            self.look.paint.on(Style::Faint, &at),
            if who.is_empty() { " ".repeat(9) } else { self.look.paint.on(style, &format!("{who:<9}")) }
        );
        let weight = if matches!(style, Style::Faint | Style::Bad) { style } else { Style::Plain };
        for (number, piece) in wrap(what, width).iter().enumerate() {
            let gap = if number == 0 { " ".to_owned() } else { format!("\n{}", " ".repeat(BEFORE)) };
            line.push_str(&gap);
            line.push_str(&self.look.paint.on(weight, piece));
        }
        self.print(line.trim_end())
    }

    fn print(&self, text: &str) -> Result<(), End> {
        let mut out = std::io::stdout().lock();
        Ok(writeln!(out, "{text}").and_then(|()| out.flush()).map_err(printing)?)
    }
}

/// The summary: each promise, what was seen of it, and whether it was kept; as wide as the reader's terminal, or 120.
fn table(rows: &[Row], look: &Look) -> String {
    const KEPT: usize = 9;
    let width = look.width.unwrap_or(120).clamp(60, 160);
    let promise = (width - KEPT) * 2 / 5;
    let seen = width - KEPT - promise - 4;
    let mut text = look.paint.on(Style::Faint, &format!("{:<promise$}  {:<seen$}  kept?", "promised", "seen"));
    text.push('\n');
    for row in rows {
        let (left, middle) = (wrap(row.promise, Some(promise)), wrap(&clean(&row.seen), Some(seen)));
        let (style, word) = match row.judged {
            Judged::Kept => (Style::Good, "kept"),
            Judged::Broken => (Style::Bad, "BROKEN"),
            Judged::NotShown => (Style::Warn, "not shown"),
        };
        for number in 0..left.len().max(middle.len()) {
            let piece = |pieces: &[String]| pieces.get(number).cloned().unwrap_or_default();
            let word = if number == 0 { look.paint.on(style, word) } else { String::new() };
            let line = format!("{:<promise$}  {:<seen$}  {word}", piece(&left), piece(&middle));
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text
}

/// Whether this very process is there and has not ended.
fn alive(id: ProcessId) -> bool {
    process::stat(id.pid).is_ok_and(|stat| stat.start_ticks == id.start_ticks && !stat.zombie)
}

fn short(revision: &str) -> &str {
    revision.get(..7).unwrap_or(revision)
}

fn cue_path(folder: &Path, pool: &str) -> std::path::PathBuf {
    folder.join(format!("cue.{pool}"))
}

/// The demo's configuration. Paths as JSON has text, which YAML reads as well.
fn configuration(folder: &Path, builds: bool) -> String {
    let text = |path: &Path| serde_json::Value::from(path.to_string_lossy().as_ref()).to_string();
    let pool = |name: &str, mode: &str, more: &str| {
        let ready = judge::READY_AFTER.as_millis();
        let (verb, cue, key) = (worker::VERB, text(&cue_path(folder, name)), worker::CUE);
        format!("  {name}:\n    command: selfstart {verb} {mode}\n    env: {{{key}: {cue}}}\n    ready: {{after: {ready}ms}}\n{more}")
    };
    let mut config = format!(
        "app: demo\nroot: {}\nsource: {{repository: {}, branch: main}}\nrelease: {{min_free: 1MB, confirm: 0s}}\n",
        text(&folder.join("root")),
        text(&folder.join("app.git"))
    );
    if builds {
        config.push_str("build: {steps: [. ./build.sh]}\n");
    }
    config.push_str("pools:\n");
    config.push_str(&pool("steady", "steady", &format!("    count: {STEADY}\n")));
    config.push_str(&pool(
        "leak",
        "leak",
        &format!("    memory: {{ladder: [{LIMIT_MB}MB x{SAMPLES} drain], every: {}ms}}\n", EVERY.as_millis()),
    ));
    config.push_str(&pool("hang", "stale", &format!("    stale_job_timeout: {}s\n", STALE.as_secs())));
    config.push_str(&pool("crash", "crash", ""));
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::look::{Paint, tests::reader};

    #[test]
    fn the_summary_is_as_wide_as_it_may_be_and_names_what_was_broken() {
        let row = |promise, seen: &str, judged| Row { promise, seen: seen.into(), judged };
        let rows = [
            row(
                "A crashed worker is started again at once",
                "process 9 took over after 12 ms; process 8, which it left behind, is gone",
                Judged::Kept,
            ),
            row("Stopping ends everything", "it did not end", Judged::Broken),
            row("A failed build changes nothing", "no shell", Judged::NotShown),
        ];
        insta::assert_snapshot!(table(&rows, &reader(Some(72), Paint::Plain)));
    }

    #[test]
    fn the_configuration_is_one() {
        let folder = tempfile::tempdir().expect("a folder");
        for builds in [true, false] {
            let path = folder.path().join("config.yaml");
            fs_err::write(&path, configuration(folder.path(), builds)).expect("written");
            let loaded = crate::agent::load(&path, crate::config::For::Any).expect("a configuration");
            assert_eq!(loaded.settings.pools.len(), 4);
            assert_eq!(loaded.settings.build.steps.len(), usize::from(builds));
        }
    }
}
