//! The helper behind `unless_unchanged`: `selfstart internal-carry`, as the app's user.
//!
//! Before a step it names what the step depends on ([`key`]); if a release that is still here ran the step with that very key, what it made
//! there is copied, never shared: releases must not be able to change each other. Files of text that name the release they were made in
//! (scripts and settings of a virtual environment do) name the new one in the copy. After a step that ran, it finds what the step made: all
//! that is younger than the step's beginning by its time of birth (`statx(2)`), which no program can set.
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
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use crate::sys::gate;

/// The word on the helper's command line.
pub(crate) const VERB: &str = "internal-carry";

const MAX_REQUEST: u64 = 8 << 20;

/// The largest file in which the name of the old release is looked for; scripts and settings are far smaller.
const MOST_TEXT: u64 = 1 << 20;

/// The most that a step may have made, in paths that are not within each other: a step that strews more is run each time.
const MOST_MADE: usize = 2_000;

/// A moment as the file system counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Moment {
    secs: i64,
    nanos: u32,
}

/// A step as a release ran it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepMade {
    /// What it depended on.
    pub(crate) key: String,
    /// What it made, as paths below the release.
    pub(crate) made: Vec<PathBuf>,
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
        /// The newest first.
        candidates: Vec<Candidate>,
    },
    /// After it.
    After {
        /// The release that is being built.
        release: PathBuf,
        /// What [`Reply::Run`] said.
        since: Moment,
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
        /// When it begins; `None`: the file system keeps no times of birth, so nobody can tell what it makes.
        since: Option<Moment>,
    },
    /// What it made.
    Made(Vec<PathBuf>),
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
    io::stdin().lock().take(MAX_REQUEST).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(io::Error::other)
}

fn answer(request: Request) -> io::Result<Reply> {
    match request {
        Request::Before { release, inputs, about, candidates } => {
            let key = key(&release, &inputs, &about)?;
            match candidates.iter().find_map(|it| it.steps.iter().find(|step| step.key == key).map(|step| (it, step))) {
                None => Ok(Reply::Run { key, why: "something of it has changed".into(), since: begin(&release)? }),
                Some((old, step)) => match in_the_way(old, &release, &step.made) {
                    Some(why) => Ok(Reply::Run { key, why, since: begin(&release)? }),
                    None => {
                        for path in &step.made {
                            copy(&old.path.join(path), &release.join(path), &Names::new(&old.path, &release))?;
                        }
                        Ok(Reply::Carried { from: old.name.clone(), step: step.clone() })
                    }
                },
            }
        }
        Request::After { release, since } => made(&release, since),
    }
}

/// Names what a step depends on: the same inputs have the same name, others have another.
fn key(release: &Path, inputs: &[PathBuf], about: &str) -> io::Result<String> {
    let mut hash = Context::new(&SHA256);
    let mut say = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    say(about.as_bytes());
    say(machine().as_bytes());
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

/// Names the machine's own languages: where no manager has them, what is built belongs to them.
fn machine() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let of = |name: &&str| {
        let found = path.split(':').find_map(|folder| fs_err::canonicalize(Path::new(folder).join(name)).ok())?;
        let about = fs_err::metadata(&found).ok()?;
        Some(format!("{} {} {} {}", found.display(), about.len(), about.mtime(), about.mtime_nsec()))
    };
    ["ruby", "node", "python3"].iter().filter_map(of).collect::<Vec<_>>().join("\n")
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

/// Returns the beginning of a step: all that is there is older, all that it makes is not.
fn begin(release: &Path) -> io::Result<Option<Moment>> {
    let born = || -> io::Result<Option<Moment>> {
        let path = release.join(".selfstart-begin");
        drop(gate::File::open(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, 0o600)?);
        let at = birth(&path);
        gate::remove_file(&path)?;
        at
    };
    let Some(first) = born()? else { return Ok(None) };
    // The kernel's clock for files ticks some hundred times a second: what was made in the same tick as the first stamp is older than the
    // next tick.
    loop {
        match born()? {
            Some(at) if at == first => std::thread::yield_now(),
            at => return Ok(at),
        }
    }
}

fn birth(path: &Path) -> io::Result<Option<Moment>> {
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME).map_err(io::Error::from)?;
    let has = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
    Ok(has.then_some(Moment { secs: found.stx_btime.tv_sec, nanos: found.stx_btime.tv_nsec }))
}

/// Finds what is younger than the step's beginning: whole folders where the folder itself is.
fn made(release: &Path, since: Moment) -> io::Result<Reply> {
    let mut made = Vec::new();
    let mut waiting = VecDeque::from([PathBuf::new()]);
    while let Some(folder) = waiting.pop_front() {
        for entry in fs_err::read_dir(release.join(&folder))? {
            let shown = folder.join(entry?.file_name());
            let path = release.join(&shown);
            let Some(born) = birth(&path)? else { return Ok(Reply::Unclear("the file system keeps no times of birth".into())) };
            let found = fs_err::symlink_metadata(&path)?;
            if born >= since {
                if made.len() == MOST_MADE {
                    return Ok(Reply::Unclear(format!("it makes more than {MOST_MADE} files beside each other")));
                }
                made.push(shown);
            } else if found.is_dir() {
                waiting.push_back(shown);
            } else if (Moment { secs: found.mtime(), nanos: u32::try_from(found.mtime_nsec()).unwrap_or(0) }) >= since {
                return Ok(Reply::Unclear(format!("it changes `{}`, which is not its own", shown.display())));
            }
        }
    }
    made.sort();
    Ok(Reply::Made(made))
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

/// Copies a file, a link or a tree, with modes and times: tools that compare times must see what they left.
fn copy(from: &Path, to: &Path, names: &Names) -> io::Result<()> {
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
            copy(&from.join(&name), &to.join(&name), names)?;
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
mod tests {
    use super::*;

    fn release(dir: &tempfile::TempDir, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let path = dir.path().join(name);
        for (file, text) in files {
            let file = path.join(file);
            fs_err::create_dir_all(file.parent().expect("below")).expect("made");
            fs_err::write(file, text).expect("written");
        }
        path
    }

    fn before(release: &Path, about: &str, candidates: &[Candidate]) -> Reply {
        let inputs = vec!["Gemfile.lock".into(), "app/assets".into()];
        let request = Request::Before { release: release.to_owned(), inputs, about: about.into(), candidates: candidates.to_vec() };
        answer(request).expect("answered")
    }

    fn run(reply: Reply) -> (String, String, Moment) {
        match reply {
            Reply::Run { key, why, since } => (key, why, since.expect("times of birth")),
            other => panic!("{other:?}"),
        }
    }

    const TREE: &[(&str, &str)] = &[("Gemfile.lock", "rack"), ("app/assets/a.js", "a"), ("app/model.rb", "m")];

    #[test]
    fn a_key_is_of_what_is_named_and_of_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let key = |name: &str, tree: &[(&str, &str)], about: &str| run(before(&release(&dir, name, tree), about, &[])).0;
        let first = key("1", TREE, "cmd");
        assert_eq!(key("2", &[("Gemfile.lock", "rack"), ("app/assets/a.js", "a"), ("app/model.rb", "other")], "cmd"), first);
        let others = [
            key("3", TREE, "other command"),
            key("4", &[("Gemfile.lock", "rake"), ("app/assets/a.js", "a")], "cmd"),
            key("5", &[("Gemfile.lock", "rack"), ("app/assets/b.js", "a")], "cmd"),
            key("6", &[("Gemfile.lock", "rack"), ("app/assets/a.js", "a"), ("app/assets/b.js", "")], "cmd"),
            key("7", &[("Gemfile.lock", "rack")], "cmd"),
            key("8", &[("Gemfile.lock", "racka"), ("app/assets/.js", "")], "cmd"),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(*other != first && !others[..i].contains(other), "{i}");
        }
        let program = release(&dir, "9", TREE);
        fs_err::set_permissions(program.join("Gemfile.lock"), std::fs::Permissions::from_mode(0o755)).expect("set");
        assert_ne!(run(before(&program, "cmd", &[])).0, first);
    }

    #[test]
    fn what_a_step_made_is_copied_and_names_the_new_release() {
        let dir = tempfile::tempdir().expect("a folder");
        let old = release(&dir, "20260101T000000Z-aaaaaaa", TREE);
        let (key, _, since) = run(before(&old, "cmd", &[]));
        let script = format!("#!{}/vendor/bin/x\n", old.display());
        release(&dir, "20260101T000000Z-aaaaaaa", &[("vendor/lib/x.rb", "x"), ("vendor/bin/x", &script), ("app/built", "1")]);
        fs_err::write(old.join("vendor/lib/b"), format!("\0{}", old.display())).expect("written");
        fs_err::set_permissions(old.join("vendor/bin/x"), std::fs::Permissions::from_mode(0o755)).expect("set");
        fs_err::set_permissions(old.join("vendor/lib/x.rb"), std::fs::Permissions::from_mode(0o444)).expect("set");
        fs_err::os::unix::fs::symlink(old.join("vendor/lib"), old.join("vendor/link")).expect("linked");
        let Reply::Made(made) = answer(Request::After { release: old.clone(), since }).expect("answered") else { panic!("unclear") };
        assert_eq!(made, [PathBuf::from("app/built"), "vendor".into()]);

        let new = release(&dir, "20260102T000000Z-bbbbbbb", TREE);
        let candidate = Candidate { name: "old".into(), path: old.clone(), steps: vec![StepMade { key: key.clone(), made }] };
        let candidates = std::slice::from_ref(&candidate);
        assert!(matches!(before(&new, "cmd", candidates), Reply::Carried { from, step } if from == "old" && step == candidate.steps[0]));
        assert_eq!(fs_err::read_to_string(new.join("vendor/bin/x")).expect("read"), format!("#!{}/vendor/bin/x\n", new.display()));
        assert_eq!(fs_err::read_link(new.join("vendor/link")).expect("a link"), new.join("vendor/lib"));
        assert_eq!(fs_err::read(new.join("vendor/lib/b")).expect("read"), format!("\0{}", old.display()).into_bytes());
        for file in ["vendor/bin/x", "vendor/lib/x.rb", "vendor/lib"] {
            let [was, is] = [&old, &new].map(|release| fs_err::metadata(release.join(file)).expect("there"));
            assert_eq!((was.mode(), was.modified().expect("a time")), (is.mode(), is.modified().expect("a time")), "{file}");
            assert_ne!(was.ino(), is.ino(), "{file} is shared");
        }
        // What is copied is of no release but its own.
        fs_err::write(new.join("app/built"), "2").expect("written");
        assert_eq!(fs_err::read_to_string(old.join("app/built")).expect("read"), "1");

        let taken = release(&dir, "20260103T000000Z-ccccccc", TREE);
        release(&dir, "20260103T000000Z-ccccccc", &[("vendor/own", "")]);
        assert_eq!(run(before(&taken, "cmd", candidates)).1, "the revision has `vendor` itself now");
        fs_err::remove_file(old.join("app/built")).expect("removed");
        let last = release(&dir, "20260104T000000Z-ddddddd", TREE);
        assert_eq!(run(before(&last, "cmd", candidates)).1, "`app/built` is no longer in old");
        assert!(fs_err::symlink_metadata(last.join("vendor")).is_err(), "nothing is copied by halves");
    }

    #[test]
    fn nothing_is_copied_through_a_link_or_out_of_the_release() {
        let dir = tempfile::tempdir().expect("a folder");
        let old = release(&dir, "old", TREE);
        release(&dir, "old", &[("vendor/x/y", "1")]);
        let (key, ..) = run(before(&old, "cmd", &[]));
        let shared = release(&dir, "shared", &[("x", "")]);
        let with = |made: &str| Candidate {
            name: "old".into(),
            path: old.clone(),
            steps: vec![StepMade { key: key.clone(), made: vec![made.into()] }],
        };
        let new = release(&dir, "new", TREE);
        fs_err::os::unix::fs::symlink(&shared, new.join("vendor")).expect("linked");
        assert_eq!(run(before(&new, "cmd", &[with("vendor/x/y")])).1, "`vendor/x` is no folder of the revision any more");
        assert!(run(before(&new, "cmd", &[with("../old/vendor")])).1.ends_with("is no path within a release"));
        assert!(run(before(&new, "cmd", &[with("/etc")])).1.ends_with("is no path within a release"));
    }

    #[test]
    fn a_step_that_changes_what_is_not_its_own_is_never_skipped() {
        let dir = tempfile::tempdir().expect("a folder");
        let release = release(&dir, "1", TREE);
        let (.., since) = run(before(&release, "cmd", &[]));
        fs_err::write(release.join("Gemfile.lock"), "changed").expect("written");
        let Reply::Unclear(why) = answer(Request::After { release, since }).expect("answered") else { panic!("clear") };
        assert_eq!(why, "it changes `Gemfile.lock`, which is not its own");
    }
}
