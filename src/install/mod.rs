//! `selfstart install` and `selfstart uninstall`: what starts selfstart at boot, on this machine or in an image.
//!
//! First it looks at all that is there and decides (nothing is touched when any of it is refused), then it does the steps. What it makes is
//! written down in [`RECORD`] before it is made, with a sum of its content: so `uninstall` takes away what `install` made and nobody changed,
//! also after an `install` that was cut short, and `install` renews its own files and no others. What becomes of rc.local: [`rc_local`].

mod account;
mod rc_local;
mod shell;
mod tree;
mod units;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use rc_local::{Installed, Note, Uninstalled};
use tree::{Tree, TreeError};

use crate::rights::AGENT_USER;
use crate::sys::gate;

/// The program, where nobody says otherwise.
pub(crate) const BINARY: &str = units::BINARY;

/// What `install` made.
const RECORD: &str = "/etc/selfstart/installed.json";

/// Configuration and secrets; root's, and the group's of the agent.
const DIRECTORY: (&str, u32) = ("/etc/selfstart", 0o750);

const EXAMPLE: (&str, &str) = ("/etc/selfstart/config.yaml.example", include_str!("../../config.yaml"));

const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";

/// A name that ends so is no unit (systemd.unit(5)).
const SAVED: &str = ".before-selfstart";

/// The log of [`rc_local::LOG`] is cut where something cuts logs; selfstart keeps it open, hence `copytruncate`.
const LOGROTATE: (&str, &str) = (
    "/etc/logrotate.d/selfstart",
    "/var/log/selfstart.log {\n\tweekly\n\tmaxsize 10M\n\trotate 4\n\tcompress\n\tmissingok\n\tnotifempty\n\tcopytruncate\n}\n",
);

/// What starts selfstart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A unit.
    Systemd,
    /// A line in /etc/rc.local.
    RcLocal,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// `None`: what the machine or image has.
    pub(crate) way: Option<Way>,
    /// `/`, or an image's.
    pub(crate) root: PathBuf,
    /// Where the program is to be, below the root.
    pub(crate) binary: String,
    /// Files that somebody else wrote are put aside; a program that is there is replaced.
    pub(crate) force: bool,
}

/// What was done, and what a person should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// What was done; empty: there was nothing to do.
    pub(crate) done: Vec<String>,
    /// What was found, and may not be what was expected.
    pub(crate) notes: Vec<String>,
    /// What to do next.
    pub(crate) next: Vec<String>,
    /// What was left, which is a failure.
    pub(crate) left: Vec<String>,
}

/// Why nothing, or not all, was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// The system does not let us.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Our own program cannot be read.
    #[error("failed to read the program that runs")]
    Program(#[source] io::Error),
    /// [`RECORD`] is no record.
    #[error("`{}` cannot be understood", .path.display())]
    Record {
        /// From outside.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Something is there that is left alone. Nothing was changed.
    #[error("{what}")]
    Refused {
        /// What.
        what: String,
        /// What to do next.
        hint: String,
    },
    /// It would take away what runs. Nothing was changed.
    #[error("{what}")]
    Busy {
        /// Who runs.
        what: String,
        /// How to stop it.
        hint: String,
    },
}

/// What was made, by path below the root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    schema: u32,
    /// Where the program is, whoever put it there.
    binary: String,
    /// Files, with the sum of what was written.
    files: BTreeMap<String, String>,
    /// Links, with where they point to.
    links: BTreeMap<String, String>,
    /// In the order in which they were made.
    directories: Vec<String>,
    /// Files of others, put aside: their names, with where they are.
    saved: BTreeMap<String, String>,
    /// rc.local's permissions.
    rc_local: Option<Modes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Modes {
    before: u32,
    after: u32,
}

enum Step {
    Directory(String, u32),
    Save(String),
    Program(String),
    File { path: String, bytes: Vec<u8>, mode: u32 },
    Link { path: String, target: String },
    RcLocal { path: PathBuf, bytes: Vec<u8>, modes: Modes },
}

/// Puts in place what starts selfstart at boot. Done twice, the second time changes nothing.
///
/// # Errors
/// Why nothing was done, or how far it came: what is missing is made by the next try.
pub(crate) fn install(request: &Request) -> Result<Report, InstallError> {
    let tree = Tree::open(&request.root)?;
    let mut planning = Planning {
        record: read_record(&tree)?.unwrap_or_default(),
        tree: &tree,
        force: request.force,
        steps: Vec::new(),
        report: Report::default(),
    };
    let way = match request.way {
        Some(way) => way,
        None if has_systemd(&tree)? => Way::Systemd,
        None => Way::RcLocal,
    };
    planning.directory(DIRECTORY.0, DIRECTORY.1)?;
    planning.program(&request.binary)?;
    planning.example()?;
    planning.account()?;
    match way {
        Way::Systemd => planning.units(&request.binary)?,
        Way::RcLocal => planning.rc_local(&request.binary)?,
    }
    let Planning { mut record, steps, mut report, .. } = planning;
    (record.schema, record.binary) = (1, request.binary.clone());
    report.done = perform(&tree, steps, record)?;
    make_account(&tree, request, &mut report)?;
    let reload = way == Way::Systemd && !report.done.is_empty() && tree.is_live() && is_running_systemd();
    if reload {
        reload_systemd(&mut report);
    }
    let config = tree.shown(Path::new("/etc/selfstart/config.yaml"));
    if !tree.is_there(Path::new("/etc/selfstart/config.yaml"))? {
        report.next.push(format!("write {} ({} is an example)", config.display(), tree.shown(Path::new(EXAMPLE.0)).display()));
    }
    if tree.is_live() {
        report.next.push("`selfstart check` tells what is wrong with the configuration and this machine".to_owned());
        report.next.push(match way {
            Way::Systemd => format!("`systemctl start {}`, or boot", units::MAIN.trim_end_matches(".service")),
            Way::RcLocal => format!("boot, or start it as rc.local does; it logs to {}", rc_local::LOG),
        });
    }
    Ok(report)
}

/// What is decided while looking.
struct Planning<'a> {
    tree: &'a Tree,
    record: Record,
    force: bool,
    steps: Vec<Step>,
    report: Report,
}

impl Planning<'_> {
    fn directory(&mut self, path: &str, mode: u32) -> Result<(), InstallError> {
        let planned = self.steps.iter().any(|step| matches!(step, Step::Directory(other, _) if other == path));
        if path.is_empty() || planned || self.tree.is_there(Path::new(path))? {
            return Ok(());
        }
        self.directory(parent(path), 0o755)?;
        self.steps.push(Step::Directory(path.to_owned(), mode));
        Ok(())
    }

    /// One that is there stays: it may be a package's, or run. Only `force` replaces it.
    fn program(&mut self, path: &str) -> Result<(), InstallError> {
        match self.tree.file(Path::new(path))? {
            None => self.directory(parent(path), 0o755)?,
            Some((there, stat)) => {
                let ours = own_program()?;
                let size = ours.metadata().map_err(InstallError::Program)?.len();
                let there =
                    if u64::try_from(stat.st_size) == Ok(size) { sum(there).map_err(InstallError::Program)? } else { String::new() };
                if there == sum(ours).map_err(InstallError::Program)? {
                    return Ok(());
                }
                let shown = self.tree.shown(Path::new(path));
                if !self.force {
                    self.report.notes.push(format!("`{}` is another build than this one, and stays; --force replaces it", shown.display()));
                    return Ok(());
                }
                if self.record.files.get(path) != Some(&there) {
                    self.save(path)?;
                }
            }
        }
        self.steps.push(Step::Program(path.to_owned()));
        Ok(())
    }

    fn save(&mut self, path: &str) -> Result<(), InstallError> {
        let aside = format!("{path}{SAVED}");
        if self.tree.is_there(Path::new(&aside))? {
            let what = format!("`{}` would be put aside, but there is one already", self.tree.shown(Path::new(path)).display());
            return Err(InstallError::Refused { what, hint: format!("remove `{}`", self.tree.shown(Path::new(&aside)).display()) });
        }
        self.steps.push(Step::Save(path.to_owned()));
        Ok(())
    }

    /// A help; never a reason to refuse.
    fn example(&mut self) -> Result<(), InstallError> {
        let (path, text) = EXAMPLE;
        let there = self.tree.read(Path::new(path))?;
        if there.is_none_or(|found| found.bytes != text.as_bytes() && self.record.files.get(path) == Some(&sum_of(&found.bytes))) {
            self.steps.push(Step::File { path: path.to_owned(), bytes: text.as_bytes().to_vec(), mode: 0o640 });
        }
        Ok(())
    }

    /// What makes the agent's user, where systemd reads such files.
    fn account(&mut self) -> Result<(), InstallError> {
        let (path, text) = account::SYSUSERS;
        if !self.tree.is_there(Path::new(account::PROGRAM))? || self.tree.is_there(Path::new(account::PACKAGED))? {
            return Ok(());
        }
        let there = self.tree.read(Path::new(path))?;
        if there.is_none_or(|found| found.bytes != text.as_bytes() && self.record.files.get(path) == Some(&sum_of(&found.bytes))) {
            self.directory(parent(path), 0o755)?;
            self.steps.push(Step::File { path: path.to_owned(), bytes: text.as_bytes().to_vec(), mode: 0o644 });
        }
        Ok(())
    }

    fn units(&mut self, binary: &str) -> Result<(), InstallError> {
        if let Some(found) = self.tree.read(rc_local_path(self.tree)?)? {
            if rc_local::uninstall(&found.bytes) != Uninstalled::Already {
                let what = format!("`{}` starts selfstart already", self.tree.shown(&found.path).display());
                return Err(InstallError::Refused { what, hint: "`selfstart uninstall` first takes that out".to_owned() });
            }
        }
        let mut main = format!("{}/{}", units::DIRECTORY, units::MAIN);
        for (name, text) in units::ALL {
            let mut packaged = None;
            for directory in units::PACKAGED {
                let path = format!("{directory}/{name}");
                if packaged.is_none() && self.tree.is_there(Path::new(&path))? {
                    packaged = Some(path);
                }
            }
            let path = format!("{}/{name}", units::DIRECTORY);
            match packaged {
                // It would be hidden, and what its package brings later too.
                Some(packaged) => {
                    self.report
                        .notes
                        .push(format!("`{}` is there (a package's), and is used", self.tree.shown(Path::new(&packaged)).display()));
                    if name == units::MAIN {
                        main = packaged;
                    }
                }
                None => self.unit(path, &units::with_binary(text, binary))?,
            }
        }
        let wanted = format!("{WANTS}/{}", units::MAIN);
        if self.tree.link(Path::new(&wanted))?.is_none() {
            self.directory(WANTS, 0o755)?;
            self.steps.push(Step::Link { path: wanted, target: main });
        }
        Ok(())
    }

    fn unit(&mut self, path: String, text: &str) -> Result<(), InstallError> {
        let shown = self.tree.shown(Path::new(&path)).display().to_string();
        if let Some(target) = self.tree.link(Path::new(&path))? {
            let masked = target == Path::new("/dev/null");
            let what = format!("`{shown}` is {}", if masked { "masked".to_owned() } else { format!("a link to `{}`", target.display()) });
            let hint = if masked {
                format!("systemctl unmask {}", name(&path))
            } else {
                "remove the link, or keep it and enable it yourself".to_owned()
            };
            return Err(InstallError::Refused { what, hint });
        }
        match self.tree.read(Path::new(&path))? {
            Some(found) if found.bytes == text.as_bytes() => return Ok(()),
            Some(found) if self.record.files.get(&path) == Some(&sum_of(&found.bytes)) => {}
            Some(_) if self.force => self.save(&path)?,
            Some(_) => {
                let what = format!("`{shown}` is not as `install` writes it: somebody changed it");
                let hint = format!(
                    "changes belong in `systemctl edit {}`; --force puts this file aside as {}{SAVED} and writes a new one",
                    name(&path),
                    name(&path)
                );
                return Err(InstallError::Refused { what, hint });
            }
            None => self.directory(parent(&path), 0o755)?,
        }
        self.steps.push(Step::File { path, bytes: text.as_bytes().to_vec(), mode: 0o644 });
        Ok(())
    }

    fn rc_local(&mut self, binary: &str) -> Result<(), InstallError> {
        if self.tree.link(Path::new(&format!("{WANTS}/{}", units::MAIN)))?.is_some() {
            let what = format!("systemd starts selfstart already: {} is enabled", units::MAIN);
            return Err(InstallError::Refused { what, hint: "`selfstart uninstall` (or `systemctl disable selfstart`) first".to_owned() });
        }
        let path = rc_local_path(self.tree)?;
        let there = self.tree.read(path)?;
        let line = rc_local::line(binary);
        let shown = self.tree.shown(there.as_ref().map_or(path, |found| found.path.as_path())).display().to_string();
        let decided = rc_local::install(there.as_ref().map(|found| found.bytes.as_slice()), &line);
        let (installed, notes) = decided
            .map_err(|refusal| InstallError::Refused { what: format!("`{shown}` is left alone: {refusal}"), hint: refusal.hint(&line) })?;
        for note in notes {
            self.report.notes.push(match note {
                Note::MayEndEarly => format!("`{shown}` has an `exit` in a condition: when that is taken, selfstart is not started"),
                Note::EndsInFailure(code) => {
                    format!(
                        "`{shown}` ends with `exit {code}`: systemd takes that for a failure and ends all that it started, selfstart too"
                    )
                }
            });
        }
        let before = there.as_ref().map_or(0o755, |found| found.mode);
        // Who may read it may execute it.
        let after = before | 0o100 | ((before & 0o444) >> 2);
        if before & 0o100 == 0 {
            self.report.notes.push(format!("`{shown}` was not executable and is now: all that it says runs at boot"));
        }
        let bytes = match (installed, there) {
            (Installed::Already, _) if before & 0o100 != 0 => None,
            (Installed::Already, found) => found.map(|found| found.bytes),
            (Installed::Text(text), _) => Some(text),
        };
        if let Some(bytes) = bytes {
            let after = if before & 0o100 == 0 { after } else { before };
            self.directory(parent(path.to_str().unwrap_or_default()), 0o755)?;
            self.steps.push(Step::RcLocal { path: path.to_owned(), bytes, modes: Modes { before, after } });
        }
        if self.tree.is_there(Path::new(parent(LOGROTATE.0)))? && !self.tree.is_there(Path::new(LOGROTATE.0))? {
            self.steps.push(Step::File { path: LOGROTATE.0.to_owned(), bytes: LOGROTATE.1.as_bytes().to_vec(), mode: 0o644 });
        }
        self.who_runs_it()
    }

    /// Warns when nothing is seen that runs rc.local, or a better way is.
    fn who_runs_it(&mut self) -> Result<(), InstallError> {
        let notes = &mut self.report.notes;
        let has = |path: &str| self.tree.is_there(Path::new(path));
        let mut setsid = false;
        for directory in ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"] {
            setsid |= has(&format!("{directory}/setsid"))?;
        }
        if !setsid {
            notes.push("there is no `setsid` (util-linux, busybox): the line cannot work without".to_owned());
        }
        if has_systemd(self.tree)? {
            let masked = self.tree.link(Path::new("/etc/systemd/system/rc-local.service"))?.is_some_and(|to| to == Path::new("/dev/null"));
            let mut there = has("/etc/systemd/system/rc-local.service")?;
            for directory in units::PACKAGED {
                there |= has(&format!("{directory}/rc-local.service"))?;
            }
            if masked || !there {
                let why = if masked { "is masked" } else { "is not there" };
                notes.push(format!("systemd's rc-local.service {why}: nothing runs rc.local at boot; use `selfstart install --systemd`"));
            } else {
                notes.push(
                    "systemd is there: with `selfstart install --systemd` workers have cgroups, and are asked by their ladders at power off \
                     (rc-local.service sends TERM to all of them at once)"
                        .to_owned(),
                );
            }
        } else {
            let mut runs = self.tree.read(Path::new("/etc/inittab"))?.is_some_and(|found| contains(&found.bytes, b"rc.local"));
            for script in ["/etc/init.d/rc.local", "/etc/init.d/local", "/etc/init.d/rcS", "/etc/rc.d/init.d", "/etc/runit/2"] {
                runs |= has(script)?;
            }
            if !runs {
                notes.push("nothing was found that runs /etc/rc.local at boot: see that your init does".to_owned());
            }
        }
        Ok(())
    }
}

/// Makes the user whom the agent runs as, and lets it read the configuration. Without, the agent runs as root.
fn make_account(tree: &Tree, request: &Request, report: &mut Report) -> Result<(), InstallError> {
    match account::make(tree, &request.root)? {
        account::Made::Already => {}
        account::Made::By(program) => report.done.push(format!("made the system user {AGENT_USER} ({program})")),
        account::Made::Not(why) => {
            report.notes.push(format!("there is no system user `{AGENT_USER}`, so the agent will run as root: {why}"));
        }
    }
    if tree.is_there(Path::new(DIRECTORY.0))? && account::let_in(tree, DIRECTORY.0)? {
        report.done.push(format!("let the group {AGENT_USER} into {}", tree.shown(Path::new(DIRECTORY.0)).display()));
    }
    let example = Path::new(EXAMPLE.0);
    if tree.is_there(example)? && account::let_in_file(tree, EXAMPLE.0)? {
        report.done.push(format!("let the group {AGENT_USER} read {}", tree.shown(example).display()));
    }
    Ok(())
}

/// Does the steps; returns what was done.
fn perform(tree: &Tree, steps: Vec<Step>, mut record: Record) -> Result<Vec<String>, InstallError> {
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    let mut done = Vec::new();
    let shown = |path: &str| tree.shown(Path::new(path)).display().to_string();
    // The record says it before it is done. Of a program the sum is that of ours.
    for step in &steps {
        match step {
            Step::Directory(path, _) if !record.directories.contains(path) => record.directories.push(path.clone()),
            Step::Directory(..) => {}
            Step::Save(path) => drop(record.saved.insert(path.clone(), format!("{path}{SAVED}"))),
            Step::Program(path) => {
                let sum = sum(own_program()?).map_err(InstallError::Program)?;
                record.files.insert(path.clone(), sum);
            }
            Step::File { path, bytes, .. } => drop(record.files.insert(path.clone(), sum_of(bytes))),
            Step::Link { path, target } => drop(record.links.insert(path.clone(), target.clone())),
            Step::RcLocal { modes, .. } => {
                // The first time only: later its mode is what we made of it.
                record.rc_local = Some(match record.rc_local {
                    Some(known) if known.after == modes.before => known,
                    _ => *modes,
                });
            }
        }
    }
    // Its own folder comes before it.
    let (first, then): (Vec<Step>, Vec<Step>) =
        steps.into_iter().partition(|step| matches!(step, Step::Directory(path, _) if Path::new(DIRECTORY.0).starts_with(path)));
    let mut recorded = Some(record);
    for step in first.into_iter().map(Some).chain([None]).chain(then.into_iter().map(Some)) {
        match step {
            None => {
                if let Some(record) = recorded.take() {
                    write_record(tree, &record)?;
                }
            }
            Some(Step::Directory(path, mode)) => {
                if tree.make_directory(Path::new(&path), mode)? {
                    done.push(format!("made {}", shown(&path)));
                }
            }
            Some(Step::Save(path)) => {
                tree.rename(Path::new(&path), &OsString::from(format!("{}{SAVED}", name(&path))))?;
                done.push(format!("put {0} aside as {0}{SAVED}", shown(&path)));
            }
            Some(Step::Program(path)) => {
                tree.write(Path::new(&path), &mut own_program()?, 0o755)?;
                done.push(format!("copied this program to {}", shown(&path)));
            }
            Some(Step::File { path, bytes, mode }) => {
                tree.write(Path::new(&path), &mut bytes.as_slice(), mode)?;
                done.push(format!("wrote {}", shown(&path)));
            }
            Some(Step::Link { path, target }) => {
                tree.make_link(Path::new(&path), Path::new(&target))?;
                done.push(format!("enabled {} ({} -> {target})", name(&path), shown(&path)));
            }
            Some(Step::RcLocal { path, bytes, modes }) => {
                tree.write(&path, &mut bytes.as_slice(), modes.after)?;
                done.push(format!("put a line into {}", tree.shown(&path).display()));
            }
        }
    }
    Ok(done)
}

/// Takes away what `install` made. Configuration, releases and running workers stay.
///
/// # Errors
/// Why nothing was done, or how far it came: the next try does the rest.
pub(crate) fn uninstall(root: &Path, force: bool) -> Result<Report, InstallError> {
    let tree = Tree::open(root)?;
    let mut report = Report::default();
    let record = read_record(&tree)?;
    let known = record.is_some();
    let mut record = record.unwrap_or_default();
    let binary = if record.binary.is_empty() { BINARY.to_owned() } else { record.binary.clone() };
    let running = running(&tree, &binary);
    if !running.is_empty() && !force {
        let pids: Vec<String> = running.iter().map(u32::to_string).collect();
        let what = format!("selfstart runs here (process {}), and needs what would be taken away", pids.join(", "));
        let hint = "stop it first: `systemctl stop selfstart`, or TERM to `selfstart run`, both stop the workers by their ladders; \
                    --force leaves it running, and its program where it is"
            .to_owned();
        return Err(InstallError::Busy { what, hint });
    }
    // What starts it comes first: cut short, the next boot starts nothing, and not something that is half there.
    uninstall_rc_local(&tree, &mut record, &mut report)?;
    for (path, target) in std::mem::take(&mut record.links) {
        if tree.link(Path::new(&path))?.is_some_and(|there| there == Path::new(&target)) {
            tree.remove(Path::new(&path))?;
            report.done.push(format!("disabled {}", name(&path)));
        }
    }
    for (path, written) in std::mem::take(&mut record.files) {
        let shown = tree.shown(Path::new(&path)).display().to_string();
        let Some((there, _)) = tree.file(Path::new(&path))? else { continue };
        if path == binary && !running.is_empty() {
            report.notes.push(format!("{shown} stays: it runs"));
        } else if !force && sum(there).map_err(InstallError::Program)? != written {
            report.left.push(format!("{shown} was changed by somebody, and stays; --force removes it"));
            record.files.insert(path, written);
        } else {
            tree.remove(Path::new(&path))?;
            report.done.push(format!("removed {shown}"));
        }
    }
    for (path, aside) in std::mem::take(&mut record.saved) {
        if tree.is_there(Path::new(&path))? {
            record.saved.insert(path, aside);
        } else if tree.is_there(Path::new(&aside))? {
            tree.rename(Path::new(&aside), &OsString::from(name(&path)))?;
            report.done.push(format!("put {} back", tree.shown(Path::new(&path)).display()));
        }
    }
    if known && report.left.is_empty() {
        tree.remove(Path::new(RECORD))?;
        while let Some(path) = record.directories.pop() {
            if tree.remove_directory(Path::new(&path))? {
                report.done.push(format!("removed {}", tree.shown(Path::new(&path)).display()));
            } else if path != DIRECTORY.0 {
                report.notes.push(format!("{} stays: there is something in it", tree.shown(Path::new(&path)).display()));
            }
        }
    } else if known {
        write_record(&tree, &record)?;
    } else if report.done.is_empty() {
        report.notes.push(format!("there is no {}: `install` made nothing here", tree.shown(Path::new(RECORD)).display()));
    }
    if known && account::is_there(&tree)? {
        report.notes.push(format!("the system user {AGENT_USER} stays: files may belong to it (`userdel {AGENT_USER}` removes it)"));
    }
    if tree.is_there(Path::new(DIRECTORY.0))? {
        report
            .notes
            .push(format!("{} stays, and so do the releases and logs below each `root`", tree.shown(Path::new(DIRECTORY.0)).display()));
    }
    if !report.done.is_empty() && tree.is_live() && is_running_systemd() {
        if running.is_empty() {
            reload_systemd(&mut report);
        } else {
            // A unit that is read again and not there any more would be stopped by the defaults: all of its processes at once.
            report.next.push("after `systemctl stop selfstart`: `systemctl daemon-reload`, and not before".to_owned());
        }
    }
    Ok(report)
}

fn uninstall_rc_local(tree: &Tree, record: &mut Record, report: &mut Report) -> Result<(), InstallError> {
    let path = rc_local_path(tree)?;
    let modes = record.rc_local.take();
    let Some(found) = tree.read(path)? else { return Ok(()) };
    // Whoever changed it meanwhile meant it.
    let mode = modes.filter(|modes| modes.after == found.mode).map_or(found.mode, |modes| modes.before);
    let shown = tree.shown(&found.path).display().to_string();
    match rc_local::uninstall(&found.bytes) {
        Uninstalled::Remove => {
            tree.remove(&found.path)?;
            report.done.push(format!("removed {shown}"));
        }
        Uninstalled::Text(text) => {
            tree.write(path, &mut text.as_slice(), mode)?;
            report.done.push(format!("took the line out of {shown}"));
        }
        Uninstalled::Already if mode != found.mode => {
            tree.write(path, &mut found.bytes.as_slice(), mode)?;
            report.done.push(format!("gave {shown} its mode back"));
        }
        Uninstalled::Already => {}
    }
    Ok(())
}

/// On Red Hat's systems the file is in rc.d, and /etc/rc.local a link to it, if anything.
fn rc_local_path(tree: &Tree) -> Result<&'static Path, TreeError> {
    let (usual, other) = (Path::new("/etc/rc.local"), Path::new("/etc/rc.d/rc.local"));
    let usual_is_there = tree.link(usual)?.is_some() || tree.is_there(usual)?;
    Ok(if !usual_is_there && tree.is_there(other)? { other } else { usual })
}

/// Of the machine that runs: whether systemd does (sd_booted(3)). Of an image: whether it has it; a folder of units alone is in every Debian.
fn has_systemd(tree: &Tree) -> Result<bool, TreeError> {
    if tree.is_live() {
        return Ok(is_running_systemd());
    }
    Ok(tree.is_there(Path::new("/usr/lib/systemd/systemd"))? || tree.is_there(Path::new("/lib/systemd/systemd"))?)
}

fn is_running_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn reload_systemd(report: &mut Report) {
    let ran = gate::output(std::process::Command::new("systemctl").arg("daemon-reload").stdin(std::process::Stdio::null()));
    match ran {
        Ok(output) if output.status.success() => report.done.push("systemctl daemon-reload".to_owned()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            report.left.push(format!("`systemctl daemon-reload` failed ({said}); run it again: systemd does not know the units yet"));
        }
        Err(error) => report.left.push(format!("`systemctl daemon-reload` cannot be run ({error}): systemd does not know the units yet")),
    }
}

/// Keepers, agents and holders that run by this program.
fn running(tree: &Tree, binary: &str) -> Vec<u32> {
    let there = tree.file(Path::new(binary)).ok().flatten().map(|(_, stat)| (stat.st_dev, stat.st_ino));
    let mut running = Vec::new();
    for entry in fs_err::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let exe = rustix::fs::stat(entry.path().join("exe")).ok().map(|stat| (stat.st_dev, stat.st_ino));
        if exe.is_none() || exe != there || pid == std::process::id() {
            continue;
        }
        let line = fs_err::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).skip(1);
        if words.any(|word| word == b"run" || word.starts_with(b"internal-")) {
            running.push(pid);
        }
    }
    running.sort_unstable();
    running
}

fn read_record(tree: &Tree) -> Result<Option<Record>, InstallError> {
    let Some(found) = tree.read(Path::new(RECORD))? else { return Ok(None) };
    match serde_json::from_slice(&found.bytes) {
        Ok(record) => Ok(Some(record)),
        Err(source) => Err(InstallError::Record { path: tree.shown(Path::new(RECORD)), source }),
    }
}

fn write_record(tree: &Tree, record: &Record) -> Result<(), InstallError> {
    let path = Path::new(RECORD);
    let mut bytes = serde_json::to_vec_pretty(record).map_err(|source| InstallError::Record { path: tree.shown(path), source })?;
    bytes.push(b'\n');
    Ok(tree.write(path, &mut bytes.as_slice(), 0o644)?)
}

/// The program that runs, also when its file was replaced or removed meanwhile.
fn own_program() -> Result<std::fs::File, InstallError> {
    fs_err::File::open("/proc/self/exe").map(|file| file.into_parts().0).map_err(InstallError::Program)
}

/// A sum that tells whether somebody changed a file (FNV-1a over words of 8 bytes). No guard against who wants it to be equal: who may write
/// the file may do worse.
fn sum(mut content: impl Read) -> io::Result<String> {
    let (mut sum, mut length) = (0xcbf2_9ce4_8422_2325_u64, 0_u64);
    let mut block = vec![0_u8; 1 << 20];
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match content.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        for word in block[..filled].chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            sum = (sum ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3);
        }
        length += filled as u64;
        if filled < block.len() {
            return Ok(format!("{length}-{sum:016x}"));
        }
    }
}

fn sum_of(bytes: &[u8]) -> String {
    // Reading from memory does not fail.
    sum(bytes).unwrap_or_default()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

/// Whether units and a shell take a path as it is written: absolute, and of letters, digits and `/._+-`.
pub(crate) fn is_plain_path(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._+-".contains(byte);
    bytes.starts_with(b"/") && bytes.iter().all(plain) && path.file_name().is_some() && !contains(bytes, b"/..") && !bytes.ends_with(b"/")
}
