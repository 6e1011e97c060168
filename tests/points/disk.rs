//! What is on a disk, and what of it a power cut leaves.
//!
//! As POSIX has it, and not as one file system is kind enough to do it: bytes of a file survive when that file was synced after they were
//! written, a name survives when its directory was synced after it was made, moved or removed; syncfs makes all of it safe. The rest may
//! survive or not, in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::log::Point;

/// What survives of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survives {
    /// Nothing.
    Synced,
    /// All names, and no bytes: files are empty.
    NamesOnly,
    /// All.
    All,
    /// Some, by a seed.
    Some(u64),
}

type Number = usize;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Body {
    File(Vec<u8>),
    Link(PathBuf),
    Directory(BTreeMap<String, Number>),
}

/// A file, link or directory: as a process sees it, and as the disk has it.
#[derive(Clone, Debug)]
struct Node {
    mode: u32,
    now: Body,
    safe: Body,
}

/// The disk while the node runs.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    /// The mirror, which libgit2 writes: as it was, and as it became. Either may be there after a power cut (what may be between them has
    /// tests of its own, `tests/git/heal.rs`).
    mirrors: [PathBuf; 2],
    /// The release that was named last: where build steps run.
    named: PathBuf,
}

const TOP: Number = 0;

impl Disk {
    /// Takes all of a folder as safe; points speak of it as `root`.
    pub(crate) fn read(folder: &Path, root: &Path, after: &Path) -> Self {
        let mirrors = [folder.join("repo.git"), after.join("repo.git")];
        let mut disk = Self { root: root.to_owned(), nodes: Vec::new(), mirrors, named: PathBuf::new() };
        disk.take(folder, true);
        disk
    }

    fn take(&mut self, path: &Path, top: bool) -> Number {
        let found = fs_err::symlink_metadata(path).expect("there");
        let number = self.nodes.len();
        let empty = Body::Directory(BTreeMap::new());
        self.nodes.push(Node { mode: found.permissions().mode() & 0o7777, now: empty.clone(), safe: empty });
        let body = if found.is_symlink() {
            Body::Link(fs_err::read_link(path).expect("a link"))
        } else if found.is_dir() {
            let mut names = BTreeMap::new();
            for entry in fs_err::read_dir(path).expect("a folder") {
                let entry = entry.expect("an entry");
                let name = entry.file_name().to_string_lossy().into_owned();
                let socket = !entry.path().is_dir() && !entry.path().is_file() && !entry.path().is_symlink();
                if socket || (top && name == "repo.git") {
                    continue;
                }
                names.insert(name, self.take(&entry.path(), false));
            }
            Body::Directory(names)
        } else {
            Body::File(fs_err::read(path).expect("a file"))
        };
        self.nodes[number].now = body.clone();
        self.nodes[number].safe = body;
        number
    }

    /// The directory and the name of a path of a point; `None`: it is not below the root.
    fn place(&self, path: &Path) -> Option<(Number, String)> {
        let below = path.strip_prefix(&self.root).ok()?;
        let name = below.file_name()?.to_string_lossy().into_owned();
        let mut at = TOP;
        for part in below.parent()?.components() {
            let Body::Directory(names) = &self.nodes[at].now else { return None };
            at = *names.get(&*part.as_os_str().to_string_lossy())?;
        }
        matches!(self.nodes[at].now, Body::Directory(_)).then_some((at, name))
    }

    fn find(&self, path: &Path) -> Option<Number> {
        if path == self.root {
            return Some(TOP);
        }
        let (at, name) = self.place(path)?;
        self.names(at).get(&name).copied()
    }

    fn names(&self, at: Number) -> &BTreeMap<String, Number> {
        let Body::Directory(names) = &self.nodes[at].now else { panic!("not a directory") };
        names
    }

    fn names_mut(&mut self, at: Number) -> &mut BTreeMap<String, Number> {
        let Body::Directory(names) = &mut self.nodes[at].now else { panic!("not a directory") };
        names
    }

    /// Makes something new; nothing of it is safe.
    fn make(&mut self, path: &Path, now: Body, mode: u32) {
        let Some((at, name)) = self.place(path) else { return };
        if self.names(at).contains_key(&name) {
            return;
        }
        let safe = match &now {
            Body::File(_) => Body::File(Vec::new()),
            Body::Link(to) => Body::Link(to.clone()),
            Body::Directory(_) => Body::Directory(BTreeMap::new()),
        };
        let number = self.nodes.len();
        self.nodes.push(Node { mode, now, safe });
        self.names_mut(at).insert(name, number);
    }

    fn bytes(&mut self, path: &Path) -> Option<&mut Vec<u8>> {
        let number = self.find(path)?;
        match &mut self.nodes[number].now {
            Body::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Does what was done at a point.
    pub(crate) fn apply(&mut self, point: &Point) {
        let path = &*point.path;
        if path.starts_with(self.root.join("repo.git")) || path.to_string_lossy().contains("control.sock") {
            return;
        }
        match &*point.kind {
            "create" => {
                self.make(path, Body::File(Vec::new()), point.mode & !0o022);
                if point.truncates
                    && let Some(bytes) = self.bytes(path)
                {
                    bytes.clear();
                }
            }
            "write" => {
                if let Some(bytes) = self.bytes(path) {
                    bytes.resize(bytes.len().max(point.offset + point.bytes.len()), 0);
                    bytes[point.offset..point.offset + point.bytes.len()].copy_from_slice(&point.bytes);
                }
            }
            "truncate" => {
                if let Some(bytes) = self.bytes(path) {
                    bytes.resize(point.len, 0);
                }
            }
            "mkdir" => self.make(path, Body::Directory(BTreeMap::new()), 0o755),
            "link" => self.make(path, Body::Link(point.to.clone()), 0o777),
            "unlink" => {
                if let Some((at, name)) = self.place(path) {
                    self.names_mut(at).remove(&name);
                }
            }
            "rename" => self.rename(path, &point.to),
            "sync" => {
                if let Some(number) = self.find(path) {
                    self.nodes[number].safe = self.nodes[number].now.clone();
                }
            }
            "syncfs" => self.nodes.iter_mut().for_each(|node| node.safe = node.now.clone()),
            "spawn" => self.spawned(path),
            other => panic!("a point of an unknown kind, {other}"),
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let (Some((at, name)), Some((above, as_what))) = (self.place(from), self.place(to)) else { return };
        let Some(number) = self.names_mut(at).remove(&name) else { return };
        self.names_mut(above).insert(as_what, number);
        if to.parent() == Some(&self.root.join("releases")) && !to.to_string_lossy().contains("/.") {
            self.named = to.to_owned();
        }
    }

    /// The build step of these tests is `cp what product`: no point of ours, and safe by the sync that comes after it.
    fn spawned(&mut self, program: &Path) {
        if program.file_name().is_some_and(|name| name == "sh") {
            let what = self.bytes(&self.named.join("what")).expect("staged").clone();
            self.make(&self.named.join("product"), Body::File(what), 0o644);
        }
    }

    /// What is left after a power cut now.
    pub(crate) fn after_power_cut(&self, survives: Survives) -> Left {
        let mut random = fastrand::Rng::with_seed(if let Survives::Some(seed) = survives { seed } else { 0 });
        let mut entries = BTreeMap::new();
        self.leave(TOP, Path::new(""), survives, &mut random, &mut entries);
        let later = match survives {
            Survives::Synced => false,
            Survives::All | Survives::NamesOnly => true,
            Survives::Some(_) => random.bool(),
        };
        Left { entries, mirror: self.mirrors[usize::from(later)].clone(), later }
    }

    fn leave(&self, at: Number, path: &Path, survives: Survives, random: &mut fastrand::Rng, entries: &mut BTreeMap<PathBuf, (u32, Body)>) {
        let node = &self.nodes[at];
        let body = match (&node.now, &node.safe) {
            (Body::File(now), Body::File(safe)) => Body::File(match survives {
                Survives::Synced | Survives::NamesOnly => safe.clone(),
                Survives::All => now.clone(),
                Survives::Some(_) => match random.u8(0..3) {
                    0 => now.clone(),
                    1 => safe.clone(),
                    // In part, and what is not there reads as zeros.
                    _ => {
                        let half = now.len() / 2;
                        let mut torn = now.clone();
                        torn[half..].fill(0);
                        if now == safe { now.clone() } else { torn }
                    }
                },
            }),
            (Body::Directory(now), Body::Directory(safe)) => {
                let all: BTreeSet<&String> = now.keys().chain(safe.keys()).collect();
                let mut names = BTreeMap::new();
                for name in all {
                    let is_safe = match survives {
                        Survives::Synced => true,
                        Survives::All | Survives::NamesOnly => false,
                        Survives::Some(_) => random.bool(),
                    };
                    if let Some(number) = (if is_safe { safe } else { now }).get(name) {
                        names.insert(name.clone(), *number);
                    }
                }
                Body::Directory(names)
            }
            (_, safe) => safe.clone(),
        };
        if let Body::Directory(names) = &body {
            for (name, number) in names {
                self.leave(*number, &path.join(name), survives, random, entries);
            }
        }
        entries.insert(path.to_owned(), (node.mode, body));
    }
}

/// A tree that a power cut left.
#[derive(Debug)]
pub(crate) struct Left {
    entries: BTreeMap<PathBuf, (u32, Body)>,
    mirror: PathBuf,
    later: bool,
}

impl Left {
    /// All of it, for telling two apart and for people.
    pub(crate) fn summary(&self) -> String {
        let one = |(path, (_, body)): (&PathBuf, &(u32, Body))| match body {
            Body::File(bytes) => format!("{}: {}", path.display(), String::from_utf8_lossy(bytes).trim_end()),
            Body::Link(to) => format!("{} -> {}", path.display(), to.display()),
            Body::Directory(_) => format!("{}/", path.display()),
        };
        let lines: Vec<String> = self.entries.iter().map(one).collect();
        format!("{}\nthe mirror as it was {}", lines.join("\n"), if self.later { "after" } else { "before" })
    }

    /// Makes it.
    pub(crate) fn write(&self, root: &Path) {
        // Each directory before what is in it: shorter paths first.
        for (path, (mode, body)) in &self.entries {
            let path = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) };
            match body {
                Body::Directory(_) => fs_err::create_dir(&path).expect("made"),
                Body::Link(to) => fs_err::os::unix::fs::symlink(to, &path).expect("linked"),
                Body::File(bytes) => fs_err::write(&path, bytes).expect("written"),
            }
            if !matches!(body, Body::Link(_)) {
                fs_err::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).expect("its mode");
            }
        }
        crate::node::run(std::process::Command::new("cp").arg("-a").arg(&self.mirror).arg(root.join("repo.git")));
    }
}
