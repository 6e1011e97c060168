//! The helper behind `unless_unchanged`: `selfstart internal-carry`, as the app's user.
//!
//! Before a step it names what the step depends on ([`key`]); if a release that is still here ran the step with that very key, what it made
//! there is copied, never shared: releases must not be able to change each other. Files of text that name the release they were made in
//! (scripts and settings of a virtual environment do) name the new one in the copy. After a step that ran, it finds what the step made: all
//! that is younger than the step's beginning by its time of birth (`statx(2)`), which no program can set. A step that did anything else, and
//! products that are not as the step left them, cost a run of the step: whatever is in doubt is made anew ([`shape`](mod@shape)).
//!
//! Not for: which releases are asked (the agent knows them), nor whether it is asked at all.

use std::collections::VecDeque;
use std::fs::FileTimes;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use memchr::memmem;
use ring::digest::{Context, SHA256};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::sys::{gate, links};

mod shape;

pub(crate) use shape::Moment;
use shape::{Seen, Shape, begin, shape, walk};

/// The word on the helper's command line.
pub(crate) const VERB: &str = "internal-carry";

const MAX_REQUEST: u64 = 8 << 20;

/// The largest file in which the name of the old release is looked for; scripts and settings are far smaller.
const MOST_TEXT: u64 = 1 << 20;

/// Why a step runs that no release ran on the same inputs.
pub(crate) const CHANGED: &str = "something of it has changed";

const NO_BIRTHS: &str = "the file system keeps no times of birth, so nobody can tell what it makes";

/// The most that a step may have made, in paths that are not within each other: a step that strews more is run each time.
const MOST_MADE: usize = 2_000;

/// How a step found the release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// What is younger is the step's.
    at: Moment,
    /// The [`Shape`] of all that was there.
    tree: String,
}

/// How a step left what it made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    /// What is younger is a worker's, or a later step's.
    until: Moment,
    /// The [`Shape`] of what it made.
    tree: String,
}

/// A step as a release ran it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepMade {
    /// What it depended on.
    pub(crate) key: String,
    /// What it made, as paths below the release.
    pub(crate) made: Vec<PathBuf>,
    /// How it left that; `None`: nobody noted it, and it is not copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) left: Option<Left>,
}

/// A release that may have run the step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Candidate {
    /// Its name.
    pub(crate) name: String,
    /// Its real path.
    pub(crate) path: PathBuf,
    /// Its steps.
    pub(crate) steps: Vec<StepMade>,
}

/// What the helper is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Before a step.
    Before {
        /// The release that is being built.
        release: PathBuf,
        /// `unless_unchanged`.
        inputs: Vec<PathBuf>,
        /// The command, the build's environment as it is written, the runtime.
        about: String,
        /// The programs of the runtime: one that is built anew in the same place is another one.
        programs: Vec<PathBuf>,
        /// The newest first.
        candidates: Vec<Candidate>,
    },
    /// After it.
    After {
        /// The release that is being built.
        release: PathBuf,
        /// What [`Reply::Run`] said.
        begun: Begun,
        /// `linked_dirs` and `linked_files`.
        linked: Vec<PathBuf>,
    },
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// What the step would make is there.
    Carried {
        /// From which release.
        from: String,
        /// For the next release.
        step: StepMade,
    },
    /// It must run.
    Run {
        /// What it depends on.
        key: String,
        /// Why.
        why: String,
        /// How it begins, or why nobody will be able to tell what it makes.
        begun: Result<Begun, String>,
    },
    /// What it made, below the release.
    Made(Vec<PathBuf>, Left),
    /// What it made cannot be told from what was there.
    Unclear(String),
    /// It did not work.
    Failed(String),
}

/// Runs the helper.
#[must_use]
pub(crate) fn main() -> ExitCode {
    let reply = match read_request().and_then(answer) {
        Ok(reply) => reply,
        Err(error) => Reply::Failed(crate::agent::chain(&error)),
    };
    let mut line = serde_json::to_vec(&reply).unwrap_or_default();
    line.push(b'\n');
    let said = io::stdout().lock().write_all(&line).is_ok();
    if said && !matches!(reply, Reply::Failed(_)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn read_request() -> io::Result<Request> {
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_REQUEST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_REQUEST {
        return Err(io::Error::other("the request is too long"));
    }
    serde_json::from_slice(&text).map_err(io::Error::other)
}

fn answer(request: Request) -> io::Result<Reply> {
    match request {
        Request::Before { release, inputs, about, programs, candidates } => before(&release, &inputs, &about, &programs, &candidates),
        Request::After { release, begun, linked } => after(&release, &begun, &linked),
    }
}

/// Looks for a release of which the step's products can be had; whatever hinders that is a reason to run it.
fn before(release: &Path, inputs: &[PathBuf], about: &str, programs: &[PathBuf], candidates: &[Candidate]) -> io::Result<Reply> {
    let key = match key(release, inputs, about, programs) {
        Ok(key) => key,
        Err(error) => {
            let why = format!("what it depends on cannot be read: {}", crate::agent::chain(&error));
            return Ok(Reply::Run { key: String::new(), why: why.clone(), begun: Err(why) });
        }
    };
    let mut why = None;
    for old in candidates {
        for step in old.steps.iter().filter(|step| step.key == key) {
            match carry(old, step, release)? {
                Ok(step) => return Ok(Reply::Carried { from: old.name.clone(), step }),
                Err(hindered) => why = why.or(Some(hindered)),
            }
        }
    }
    let why = why.unwrap_or_else(|| CHANGED.into());
    // The first is of all that is there, and so comes before the moment.
    let begun = shape(release, &[PathBuf::new()], None).and_then(|tree| Ok(begin(release)?.map(|at| Begun { at, tree: tree.name })));
    let begun = match begun {
        Ok(begun) => begun.ok_or_else(|| NO_BIRTHS.into()),
        Err(error) => Err(crate::agent::chain(&error)),
    };
    Ok(Reply::Run { key, why, begun })
}

/// Copies what a step made; inside is why it cannot be had from there.
fn carry(old: &Candidate, step: &StepMade, release: &Path) -> io::Result<Result<StepMade, String>> {
    if let Some(why) = in_the_way(old, release, &step.made) {
        return Ok(Err(why));
    }
    let Some(left) = &step.left else { return Ok(Err(format!("{} does not say how the step left what it made", old.name))) };
    match changed(old, &step.made, left) {
        Err(error) => return Ok(Err(format!("what {} has cannot be read: {}", old.name, crate::agent::chain(&error)))),
        Ok((Some(why), _)) => return Ok(Err(why)),
        Ok((None, bytes)) if links::free_bytes(release).is_ok_and(|free| free < bytes) => {
            return Ok(Err(format!("a copy from {} takes {bytes} bytes, and there is no room for them", old.name)));
        }
        Ok((None, _)) => {}
    }
    let copied =
        step.made.iter().try_for_each(|path| copy(&old.path.join(path), &release.join(path), left.until, &Names::new(&old.path, release)));
    // As what was copied is now: it is the next release's to copy.
    let sealed = copied.and_then(|()| {
        let until = begin(release)?.ok_or_else(|| io::Error::other(NO_BIRTHS))?;
        Ok(Left { until, tree: shape(release, &step.made, Some(until))?.name })
    });
    match sealed {
        Ok(left) => Ok(Ok(StepMade { left: Some(left), ..step.clone() })),
        Err(error) => {
            for path in &step.made {
                links::remove_tree(&release.join(path))?;
            }
            // A full disk is the machine's trouble, and is told as such.
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return Err(error);
            }
            Ok(Err(format!("what {} has cannot be copied: {}", old.name, crate::agent::chain(&error))))
        }
    }
}

/// Why what a step made is not as it left it, and how large it is. What was added since does no harm: it is not copied.
fn changed(old: &Candidate, made: &[PathBuf], left: &Left) -> io::Result<(Option<String>, u64)> {
    let mut why = None;
    for path in made {
        walk(&old.path, path, &mut |shown, seen| {
            let older = seen.born.is_some_and(|born| born < left.until);
            if older && !seen.is_dir() && seen.changed >= left.until {
                why.get_or_insert_with(|| format!("in {}, `{}` was changed after the step", old.name, shown.display()));
            }
            Ok(older)
        })?;
    }
    let Shape { name, bytes } = shape(&old.path, made, Some(left.until))?;
    if why.is_none() && name != left.tree {
        why = Some(format!("in {}, something of what the step made was removed, renamed or changed after it", old.name));
    }
    Ok((why, bytes))
}

/// Names what a step depends on: the same inputs have the same name, others have another.
fn key(release: &Path, inputs: &[PathBuf], about: &str, programs: &[PathBuf]) -> io::Result<String> {
    let mut hash = Context::new(&SHA256);
    let mut say = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    say(about.as_bytes());
    say(machine(programs).as_bytes());
    for input in inputs {
        say(b"input");
        // What is named itself may be a link, as those of `linked_files` are.
        let real = match fs_err::canonicalize(release.join(input)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                say(input.as_os_str().as_encoded_bytes());
                say(b"nothing");
                continue;
            }
            real => real?,
        };
        let mut waiting = VecDeque::from([(input.clone(), real)]);
        while let Some((shown, path)) = waiting.pop_front() {
            let found = fs_err::symlink_metadata(&path)?;
            say(shown.as_os_str().as_encoded_bytes());
            if found.is_dir() {
                say(b"folder");
                let mut names = fs_err::read_dir(&path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
                names.sort();
                waiting.extend(names.into_iter().map(|name| (shown.join(&name), path.join(&name))));
            } else if found.is_symlink() {
                say(b"link");
                say(fs_err::read_link(&path)?.as_os_str().as_encoded_bytes());
            } else if found.is_file() {
                say(if found.mode() & 0o111 == 0 { b"file" } else { b"program" });
                say(&content(&path)?);
            } else {
                return Err(io::Error::other(format!("`{}` is neither a file nor a folder", shown.display())));
            }
        }
    }
    Ok(hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Names the system, and the languages: the machine's own, and those of the runtime, which may be built anew in the same place.
fn machine(programs: &[PathBuf]) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let on_path = |name: &&str| path.split(':').find_map(|folder| fs_err::canonicalize(Path::new(folder).join(name)).ok());
    let own = ["ruby", "node", "python3"].iter().filter_map(on_path).map(|found| (found.display().to_string(), found));
    // The path of one of the runtime is in `about`; below the release it would be another in each.
    let captured = programs.iter().map(|program| (String::new(), program.clone()));
    let about = own.chain(captured).map(|(shown, program)| match fs_err::metadata(&program) {
        Ok(about) => format!("{shown} {} {} {}", about.len(), about.mtime(), about.mtime_nsec()),
        Err(_) => format!("{shown} nothing"),
    });
    let system = fs_err::read_to_string("/etc/os-release").unwrap_or_default();
    [std::env::consts::ARCH.to_owned(), system].into_iter().chain(about).collect::<Vec<_>>().join("\n")
}

/// A digest of a file, which may be larger than the memory that a helper should take.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs_err::File::open(path)?;
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finish().as_ref().to_vec()),
            len => hash.update(&buffer[..len]),
        }
    }
}

/// Finds what is younger than the step's beginning: whole folders where the folder itself is. All else must be as it was.
fn after(release: &Path, begun: &Begun, linked: &[PathBuf]) -> io::Result<Reply> {
    let Some(until) = begin(release)? else { return Ok(Reply::Unclear(NO_BIRTHS.into())) };
    if until <= begun.at {
        return Ok(Reply::Unclear("the clock was set back meanwhile".into()));
    }
    let (mut made, mut unclear) = (Vec::new(), None);
    walk(release, Path::new(""), &mut |shown, seen| {
        // What a process that the step left behind makes now is not looked at.
        if seen.born >= Some(begun.at) {
            if seen.born < Some(until) && !shown.as_os_str().is_empty() {
                made.push(shown.to_owned());
            }
            return Ok(false);
        }
        if !seen.is_dir() && seen.changed >= begun.at {
            unclear.get_or_insert_with(|| format!("it changes `{}`, which is not its own", shown.display()));
        }
        Ok(unclear.is_none() && made.len() <= MOST_MADE)
    })?;
    if let Some(why) = unclear {
        return Ok(Reply::Unclear(why));
    }
    if made.len() > MOST_MADE {
        return Ok(Reply::Unclear(format!("it makes more than {MOST_MADE} files beside each other")));
    }
    if shape(release, &[PathBuf::new()], Some(begun.at))?.name != begun.tree {
        return Ok(Reply::Unclear("it removes, renames or changes files or folders of the revision".into()));
    }
    for path in linked {
        if let Some(what) = written(&release.join(path), path, begun.at)? {
            return Ok(Reply::Unclear(format!("meanwhile `{}` was written, which is shared", what.display())));
        }
    }
    made.sort();
    let tree = shape(release, &made, Some(until))?.name;
    Ok(Reply::Made(made, Left { until, tree }))
}

/// What of a shared file or folder was written since, whoever did it; logs are not counted, as live workers write them all the time.
fn written(link: &Path, shown: &Path, since: Moment) -> io::Result<Option<PathBuf>> {
    let real = match fs_err::canonicalize(link) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        real => real?,
    };
    let mut found = None;
    walk(&real, Path::new(""), &mut |below: &Path, seen: &Seen| {
        let log = seen.is_file() && real.join(below).extension().is_some_and(|it| it == "log");
        if !log && (seen.changed >= since || seen.born >= Some(since)) {
            found.get_or_insert_with(|| if below.as_os_str().is_empty() { shown.to_owned() } else { shown.join(below) });
        }
        Ok(found.is_none())
    })?;
    Ok(found)
}

/// Why what an older release has cannot be copied; `None`: it can.
fn in_the_way(old: &Candidate, release: &Path, made: &[PathBuf]) -> Option<String> {
    for path in made {
        if !path.components().all(|part| matches!(part, Component::Normal(_))) || path.as_os_str().is_empty() {
            return Some(format!("`{}` is no path within a release", path.display()));
        }
        if fs_err::symlink_metadata(old.path.join(path)).is_err() {
            return Some(format!("`{}` is no longer in {}", path.display(), old.name));
        }
        if fs_err::symlink_metadata(release.join(path)).is_ok() {
            return Some(format!("the revision has `{}` itself now", path.display()));
        }
        // Neither into `shared/` nor into a folder that is not there.
        let above = path.ancestors().skip(1).find(|above| !fs_err::symlink_metadata(release.join(above)).is_ok_and(|it| it.is_dir()));
        if let Some(above) = above {
            return Some(format!("`{}` is no folder of the revision any more", above.display()));
        }
    }
    None
}

/// The name of the release in which something was made, and of the one that it is copied to.
struct Names {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Names {
    fn new(old: &Path, new: &Path) -> Self {
        let bytes = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
        Self { old: bytes(old), new: bytes(new) }
    }

    /// The content with the new name; `None`: it does not name the old one.
    fn renamed(&self, content: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(content.len());
        let mut from = 0;
        for at in memmem::find_iter(content, &self.old) {
            out.extend_from_slice(&content[from..at]);
            out.extend_from_slice(&self.new);
            from = at + self.old.len();
        }
        if from == 0 {
            return None;
        }
        out.extend_from_slice(&content[from..]);
        Some(out)
    }
}

/// Copies a file, a link or a tree, with modes and times (tools that compare times must see what they left), but what is younger than `until`.
fn copy(from: &Path, to: &Path, until: Moment, names: &Names) -> io::Result<()> {
    let seen = match Seen::of(from) {
        // Only what is younger comes and goes; of all else the shape was looked at.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        seen => seen?,
    };
    if seen.born.is_none_or(|born| born >= until) {
        return Ok(());
    }
    let found = fs_err::symlink_metadata(from)?;
    if found.is_symlink() {
        let target = fs_err::read_link(from)?;
        let bytes = target.as_os_str().as_encoded_bytes();
        let renamed = names.renamed(bytes).and_then(|bytes| String::from_utf8(bytes).ok()).map_or(target.clone(), PathBuf::from);
        return gate::symlink(renamed, to);
    }
    let times = FileTimes::new().set_modified(found.modified()?).set_accessed(found.accessed()?);
    if found.is_dir() {
        gate::create_dir(to)?;
        for entry in fs_err::read_dir(from)? {
            let name = entry?.file_name();
            copy(&from.join(&name), &to.join(&name), until, names)?;
        }
        let folder = fs_err::File::open(to)?;
        folder.set_permissions(std::fs::Permissions::from_mode(found.mode() & 0o7777))?;
        return folder.file().set_times(times);
    }
    // Sockets, pipes and devices are of a process, not of a build.
    if !found.is_file() {
        return Ok(());
    }
    let small = if found.len() <= MOST_TEXT { Some(fs_err::read(from)?) } else { None };
    let text = small.filter(|content| memchr::memchr(0, content).is_none()).and_then(|content| names.renamed(&content));
    match text {
        Some(text) => gate::write_file(to, text)?,
        None => {
            // Between files std copies by `copy_file_range(2)`, which shares the blocks where the file system can; none of it can be changed
            // through the other. Its bytes are no points of the gate, as those of a step are none: the release is synced as a whole.
            let new = gate::open(to, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
            io::copy(&mut fs_err::File::open(from)?.into_parts().0, &mut std::fs::File::from(new))?;
        }
    }
    // The owner may set the times of what is opened to read (`utimensat(2)`).
    let file = fs_err::File::open(to)?;
    file.set_permissions(std::fs::Permissions::from_mode(found.mode() & 0o7777))?;
    file.file().set_times(times)
}

#[cfg(test)]
mod tests;
