//! Writes the tree of a commit into a new directory. Runs in the helper.
//!
//! The tree comes from others: it is looked at as a whole first, and refused before anything is written, if a name or a link in it
//! would lead out of the directory, or be taken for git's own. Releases share nothing, no hard links either; but one that went may become the
//! next one, and then only what differs is written (`base`).

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use git2::{Oid, Repository};
use rustix::fs::{Mode, OFlags};
use selfstart_core::units::Bytes;

use super::base::{self, Adjust, Kept, Note, Stamp, Written};
use super::git::{ErrorKind, Failure, Out, Progress, Stage, Staged};
use super::link::{self, LinkError};
use super::{mirror, modules};
use crate::sys::{gate, libgit2, links};

/// The file with the full id, in each release.
const REVISION_FILE: &str = "REVISION";
/// More is no source tree: a few small objects can describe billions of files.
const MAX_ENTRIES: u64 = 5_000_000;
/// The kernel's longest path has room for no more (`PATH_MAX`, path_resolution(7)).
const MAX_LEVELS: u64 = 1024;
/// `NAME_MAX`.
const MAX_NAME: usize = 255;
/// `PATH_MAX` less the NUL.
const MAX_TARGET: usize = 4095;
/// As the kernel counts links in one path (path_resolution(7)).
const MAX_HOPS: usize = 40;
/// Two write a tree 1.6 times as fast as one (docs/decisions/0002); the time goes into file creation and write-back, and a node has other work.
const WRITERS: usize = 2;
/// How many files a writer takes at once: neighbours are in one directory.
const BATCH: usize = 32;
/// What begins a file that Git LFS keeps elsewhere (its specification, `docs/spec.md`).
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";

/// Writes the tree, the file `REVISION`, and the links to `shared`.
///
/// # Errors
/// [`ErrorKind::BadTree`] for what no retry cures; [`ErrorKind::Corrupt`] when the mirror is damaged (the next fetch heals it).
pub(super) fn stage(request: &Stage, out: &Out) -> Result<Staged, Failure> {
    // Only settings: nothing here speaks to the network.
    libgit2::prepare(Duration::from_millis(request.timeout_millis))
        .map_err(|error| Failure::new(ErrorKind::Internal, format!("failed to prepare libgit2: {}", error.message())))?;
    let staged = stage_tree(request, out);
    if let Err(failure) = &staged
        && failure.kind == ErrorKind::Corrupt
    {
        mirror::note_damage(&request.mirror, &failure.text);
    }
    staged
}

fn stage_tree(request: &Stage, out: &Out) -> Result<Staged, Failure> {
    let corrupt =
        |error: git2::Error| Failure::new(ErrorKind::Corrupt, format!("failed to read revision {}: {}", request.revision, error.message()));
    let repository = mirror::open(&request.mirror).map_err(corrupt)?;
    let commit = Oid::from_str(request.revision.as_str()).and_then(|oid| repository.find_commit(oid)).map_err(corrupt)?;
    let size = mirror::measure(&repository, commit.id())?;
    if size.entries > MAX_ENTRIES {
        return Err(bad(format!("the tree has {} files, more than {MAX_ENTRIES}", size.entries)));
    }
    if size.levels > MAX_LEVELS {
        return Err(bad(format!("the tree has more than {MAX_LEVELS} directories below each other")));
    }
    if let Some(oid) = size.malformed {
        return Err(bad(format!("the tree has a directory that is malformed: {oid}")));
    }
    let signer = request.allowed_signers.as_ref().map(|text| mirror::signer(&repository, commit.id(), text)).transpose()?;
    let plan = Plan::of(&request.mirror, &repository, commit.id(), request.submodules)?;

    let destination = &request.destination;
    let failed = |error: &io::Error| Failure::io(format!("failed to write `{}`", destination.display()), error);
    links::remove_tree(destination).map_err(|error| failed(&error))?;
    let mut log = Vec::new();
    let (top, kept) = plan.on_a_base(request, &mut log).map_or_else(|| plan.on_nothing(destination), Ok)?;
    plan.make_directories(&top, &kept).map_err(|error| failed(&error))?;
    let (written, lfs) = plan.write_files(&top, &kept, out)?;
    plan.make_links(&top, &kept).map_err(|error| failed(&error))?;
    base::note(&request.mirror, destination, plan.files.iter().zip(&written).map(|(file, written)| (plan.path_of(file), written)));
    write_file(top.as_fd(), OsStr::new(REVISION_FILE), Mode::from_raw_mode(0o644), format!("{}\n", request.revision).as_bytes())
        .map_err(|error| failed(&error))?;

    let files = (plan.files.len() + plan.links.len() + 1) as u64;
    let as_they_were = kept.files.iter().flatten().count() + kept.links.iter().filter(|kept| **kept).count();
    if as_they_were > 0 {
        log.push(format!(
            "{as_they_were} of {files} files are those of a release that went: nothing of them has changed, nor were they touched"
        ));
    }
    if let Some(signer) = signer {
        log.push(format!("revision {} is {signer}", request.revision));
    }
    if plan.had_revision_file {
        log.push(format!("`{REVISION_FILE}`: the tree's was replaced by selfstart's, which holds the full id"));
    }
    if let Some((count, first)) = lfs {
        if plan.filters_lfs(&repository)? {
            return Err(bad(format!("{count} file(s) are kept by Git LFS, of which the repository has pointers only; the first is `{first}`"))
                .hint("Git LFS is not supported: keep these files in git itself (`git lfs migrate export`), or fetch them in a build step from where they are, and out of this branch"));
        }
        log.push(format!("warning: {count} file(s) are Git LFS pointers, not what they point to; the first is `{first}`"));
    }
    log.extend(
        link::link_shared(destination, &request.shared, &request.linked_dirs, &request.linked_files)
            .map_err(|error| link_failure(&error))?,
    );
    Ok(Staged { files, bytes: plan.bytes, log })
}

fn link_failure(error: &LinkError) -> Failure {
    let source = std::error::Error::source(error).map_or(String::new(), |source| format!(": {source}"));
    // The text may end with a hint of its own.
    let text = error.to_string();
    let (text, hint) = text.split_once("\nhint: ").map_or((text.as_str(), None), |(text, hint)| (text, Some(hint)));
    let failure = match error {
        LinkError::Io { source, .. } => Failure::io(text, source),
        LinkError::Parent { .. } => Failure::new(ErrorKind::BadTree, format!("{text}{source}")),
        LinkError::Path { .. } | LinkError::WrongKind { .. } => Failure::new(ErrorKind::Unsupported, text),
    };
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What will be written.
#[derive(Debug, Default)]
struct Plan {
    /// The mirror, then those of submodules.
    repositories: Vec<PathBuf>,
    /// Every `.gitattributes`: its repository and id.
    attributes: Vec<(usize, Oid)>,
    /// Directories, each after the one above it; number 0 is the top and has no name.
    directories: Vec<Directory>,
    files: Vec<PlannedFile>,
    links: Vec<PlannedLink>,
    /// Bytes in files.
    bytes: u64,
    had_revision_file: bool,
}

#[derive(Debug)]
struct Directory {
    /// Number of the directory above.
    above: usize,
    name: Vec<u8>,
}

#[derive(Debug)]
struct PlannedFile {
    /// Number of the repository that has it.
    repository: usize,
    directory: usize,
    name: Vec<u8>,
    oid: Oid,
    executable: bool,
}

impl PlannedFile {
    const fn mode(&self) -> Mode {
        Mode::from_bits_retain(if self.executable { 0o755 } else { 0o644 })
    }
}

#[derive(Debug)]
struct PlannedLink {
    directory: usize,
    name: Vec<u8>,
    target: Vec<u8>,
}

/// What a name in the tree stands for, to follow links.
#[derive(Clone, Copy)]
enum Node {
    Directory(usize),
    Link(usize),
    File,
}

fn bad(text: String) -> Failure {
    Failure::new(ErrorKind::BadTree, text)
}

impl Plan {
    /// Walks the tree and refuses what must not be written.
    fn of(mirror: &Path, repository: &Repository, commit: Oid, submodules: bool) -> Result<Self, Failure> {
        let mut plan = Self::default();
        plan.directories.push(Directory { above: 0, name: Vec::new() });
        plan.walk(mirror, repository, commit, 0, submodules.then_some(0))?;
        plan.check_links()?;
        Ok(plan)
    }

    /// Takes in a submodule at this directory.
    fn walk_submodule(&mut self, mirror: &Path, commit: Oid, at: usize, level: u32) -> Result<(), Failure> {
        let shown = self.shown(at, b"");
        let wrong = |error: git2::Error| {
            let text = format!("the submodule at `{shown}` is not in the mirror as it is pinned: {}", error.message());
            Failure::new(ErrorKind::Corrupt, text)
        };
        if level > modules::MAX_LEVELS {
            return Err(bad(format!("the submodule at `{shown}` is the {level}th inside each other")));
        }
        let repository = mirror::open(mirror).map_err(wrong)?;
        repository.find_commit(commit).map_err(wrong)?;
        let size = mirror::measure(&repository, commit)?;
        if size.entries > MAX_ENTRIES || size.levels > MAX_LEVELS || size.malformed.is_some() {
            return Err(bad(format!("the submodule at `{shown}` has too many files, too many directories, or one that is malformed")));
        }
        self.walk(mirror, &repository, commit, at, Some(level))
    }

    /// Takes in a repository's commit at this directory; `level`: its submodules too, and in how many it is itself.
    fn walk(&mut self, mirror: &Path, repository: &Repository, commit: Oid, at: usize, level: Option<u32>) -> Result<(), Failure> {
        let corrupt = |error: git2::Error| Failure::new(ErrorKind::Corrupt, format!("commit {commit}: {}", error.message()));
        let odb = repository.odb().map_err(corrupt)?;
        let top = repository.find_commit(commit).map_err(corrupt)?.tree_id();
        if level.is_some() {
            // Refuses what must not be asked, and so was not fetched.
            modules::of(repository, commit, &mirror::source_of(repository))?;
        }
        let number = self.repositories.len();
        self.repositories.push(mirror.to_owned());
        let plan = self;
        let mut pinned = Vec::new();
        let mut waiting = vec![(at, top)];
        while let Some((directory, oid)) = waiting.pop() {
            let tree =
                repository.find_tree(oid).map_err(|error| Failure::new(ErrorKind::Corrupt, format!("tree {oid}: {}", error.message())))?;
            let mut names = HashSet::new();
            for entry in &tree {
                let name = entry.name_bytes();
                let shown = || plan.shown(directory, name);
                check_name(name).map_err(|why| bad(format!("the tree has `{}`: {why}", shown())))?;
                if !names.insert(name.to_vec()) {
                    return Err(bad(format!("the tree has `{}` twice", shown())));
                }
                let is_revision_file = directory == 0 && name == REVISION_FILE.as_bytes();
                // The kinds of git's fast-import(1): file, link, submodule, directory.
                match entry.filemode_raw() & 0o170_000 {
                    _ if is_revision_file => plan.had_revision_file = true,
                    0o040_000 => {
                        plan.directories.push(Directory { above: directory, name: name.to_vec() });
                        waiting.push((plan.directories.len() - 1, entry.id()));
                    }
                    0o100_000 => {
                        let (size, kind) = odb
                            .read_header(entry.id())
                            .map_err(|error| Failure::new(ErrorKind::Corrupt, format!("`{}`: {}", shown(), error.message())))?;
                        if kind != git2::ObjectType::Blob {
                            return Err(bad(format!("the tree has `{}` as a file, and it is none", shown())));
                        }
                        plan.bytes = plan.bytes.saturating_add(size as u64);
                        let executable = entry.filemode_raw() & 0o111 != 0;
                        if name == b".gitattributes" {
                            plan.attributes.push((number, entry.id()));
                        }
                        plan.files.push(PlannedFile { repository: number, directory, name: name.to_vec(), oid: entry.id(), executable });
                    }
                    0o120_000 => {
                        let (size, _) = odb
                            .read_header(entry.id())
                            .map_err(|error| Failure::new(ErrorKind::Corrupt, format!("`{}`: {}", shown(), error.message())))?;
                        if size > MAX_TARGET {
                            return Err(bad(format!("the link `{}` is longer than a path can be", shown())));
                        }
                        let blob = odb
                            .read(entry.id())
                            .map_err(|error| Failure::new(ErrorKind::Corrupt, format!("`{}`: {}", shown(), error.message())))?;
                        plan.links.push(PlannedLink { directory, name: name.to_vec(), target: blob.data().to_vec() });
                    }
                    0o160_000 if level.is_some() => {
                        plan.directories.push(Directory { above: directory, name: name.to_vec() });
                        pinned.push((plan.directories.len() - 1, entry.id()));
                    }
                    0o160_000 => {
                        return Err(bad(format!("the tree has a submodule at `{}`, and `source.submodules` is not set", shown()))
                            .hint("`source: {submodules: true}` fetches them"));
                    }
                    other => return Err(bad(format!("the tree has `{}` of an unknown kind, {other:o}", shown()))),
                }
            }
        }
        for (directory, commit) in pinned {
            let path = plan.path(directory);
            let inside = path.strip_prefix(plan.path(at)).unwrap_or(&path);
            let below = modules::mirror_of(mirror, &inside.to_string_lossy());
            plan.walk_submodule(&below, commit, directory, level.unwrap_or_default() + 1)?;
            if plan.files.len() as u64 > MAX_ENTRIES {
                return Err(bad(format!("the tree and its submodules have more than {MAX_ENTRIES} files")));
            }
        }
        Ok(())
    }

    /// Whether a `.gitattributes` gives files to Git LFS.
    fn filters_lfs(&self, main: &Repository) -> Result<bool, Failure> {
        for (repository, oid) in &self.attributes {
            let corrupt = |error: git2::Error| Failure::new(ErrorKind::Corrupt, error.message().to_owned());
            let other = if *repository == 0 { None } else { Some(mirror::open(&self.repositories[*repository]).map_err(corrupt)?) };
            let blob = other.as_ref().unwrap_or(main).find_blob(*oid).map_err(corrupt)?;
            if memchr::memmem::find(blob.content(), b"filter=lfs").is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The path of a name in a directory, for people.
    fn shown(&self, directory: usize, name: &[u8]) -> String {
        let mut path = self.path(directory).as_os_str().as_bytes().to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        String::from_utf8_lossy(&path).escape_debug().to_string()
    }

    /// The path of a directory below the top; empty for the top.
    fn path(&self, directory: usize) -> PathBuf {
        let mut names = Vec::new();
        let mut at = directory;
        while at != 0 {
            names.push(self.directories[at].name.as_slice());
            at = self.directories[at].above;
        }
        names.iter().rev().map(|name| OsStr::from_bytes(name)).collect()
    }

    /// Refuses links that lead out of the tree, directly or through other links of it.
    fn check_links(&self) -> Result<(), Failure> {
        if self.links.is_empty() {
            return Ok(());
        }
        let mut nodes: HashMap<(usize, &[u8]), Node> = HashMap::new();
        for (number, directory) in self.directories.iter().enumerate().skip(1) {
            nodes.insert((directory.above, &directory.name), Node::Directory(number));
        }
        nodes.extend(self.files.iter().map(|file| ((file.directory, file.name.as_slice()), Node::File)));
        nodes.extend(self.links.iter().enumerate().map(|(number, link)| ((link.directory, link.name.as_slice()), Node::Link(number))));
        for link in &self.links {
            let shown =
                || format!("`{}` -> `{}`", self.shown(link.directory, &link.name), String::from_utf8_lossy(&link.target).escape_debug());
            if link.target.is_empty() || link.target.contains(&0) {
                return Err(bad(format!("the tree has a link that points to no path: {}", shown())));
            }
            if link.target.starts_with(b"/") {
                return Err(
                    bad(format!("the tree has a link to an absolute path: {}", shown())).hint("links may lead to places in the tree only")
                );
            }
            if !self.stays_inside(link, &nodes) {
                return Err(
                    bad(format!("the tree has a link that leads out of it: {}", shown())).hint("links may lead to places in the tree only")
                );
            }
        }
        Ok(())
    }

    /// Follows a link as the kernel would. What is not in the tree may be made by the build: it counts as an ordinary directory.
    fn stays_inside<'a>(&'a self, link: &'a PlannedLink, nodes: &HashMap<(usize, &'a [u8]), Node>) -> bool {
        // Where we are: a directory of the tree, and how many names below it that the tree does not have.
        let (mut at, mut below) = (link.directory, 0_usize);
        let mut hops = 0;
        let mut rest: Vec<&[u8]> = link.target.split(|byte| *byte == b'/').rev().collect();
        while let Some(name) = rest.pop() {
            match name {
                b"" | b"." => {}
                b".." if below > 0 => below -= 1,
                b".." if at == 0 => return false,
                b".." => at = self.directories[at].above,
                _ if below > 0 => below += 1,
                name => match nodes.get(&(at, name)) {
                    Some(Node::Directory(number)) => at = *number,
                    Some(Node::Link(number)) => {
                        hops += 1;
                        if hops > MAX_HOPS {
                            // The kernel gives up here too (ELOOP): it leads nowhere.
                            return true;
                        }
                        rest.extend(self.links[*number].target.split(|byte| *byte == b'/').rev());
                    }
                    // A file has nothing below it; `file/..` is an error to the kernel, and one step up to us.
                    Some(Node::File) | None => below = 1,
                },
            }
        }
        true
    }

    /// The path of a file below the top.
    fn path_of(&self, file: &PlannedFile) -> Vec<u8> {
        self.path(file.directory).join(OsStr::from_bytes(&file.name)).into_os_string().into_vec()
    }

    /// Takes a release that went, and what of it is as the tree wants it; `None`: there is none of use.
    fn on_a_base(&self, request: &Stage, log: &mut Vec<String>) -> Option<(OwnedFd, Kept)> {
        let destination = &request.destination;
        let note = base::take(&request.mirror, destination)?;
        let adjusted = links::open_directory(destination).and_then(|top| {
            let kept = self.adjust(&top, &note)?;
            Ok((top, kept))
        });
        match adjusted {
            Ok(adjusted) => Some(adjusted),
            Err(error) => {
                // A build can leave what only root removes; the release must not fail for it.
                if links::remove_tree(destination).is_err() {
                    let name = destination.file_name().unwrap_or_default().to_string_lossy();
                    let _tried_again = base::discard(destination, &format!("{name}-base"));
                }
                log.push(format!("all files are written anew: of the release that went, nothing can be used: {error}"));
                None
            }
        }
    }

    fn adjust(&self, top: &OwnedFd, note: &Note) -> io::Result<Kept> {
        let paths: Vec<PathBuf> = (0..self.directories.len()).map(|number| self.path(number)).collect();
        let mut wanted = HashMap::new();
        for (number, directory) in self.directories.iter().enumerate().skip(1) {
            wanted.insert((directory.above, directory.name.as_slice()), base::Wanted::Directory(number));
        }
        for (number, file) in self.files.iter().enumerate() {
            wanted.insert((file.directory, file.name.as_slice()), base::Wanted::File(number, file.oid, file.mode()));
        }
        for (number, link) in self.links.iter().enumerate() {
            wanted.insert((link.directory, link.name.as_slice()), base::Wanted::Link(number, &link.target));
        }
        let nothing = Kept::nothing(self.directories.len(), self.files.len(), self.links.len());
        Adjust { top, note, wanted: &wanted, paths: &paths, threads: writers() }.run(nothing)
    }

    /// Begins with an empty directory.
    fn on_nothing(&self, destination: &Path) -> Result<(OwnedFd, Kept), Failure> {
        let failed = |error: &io::Error| Failure::io(format!("failed to write `{}`", destination.display()), error);
        if let Some(parent) = destination.parent() {
            let free = links::free_bytes(parent).map_err(|error| failed(&error))?;
            if free < self.bytes {
                let text = format!("the tree has {}, only {} are free at `{}`", Bytes(self.bytes), Bytes(free), parent.display());
                return Err(Failure::new(ErrorKind::DiskFull, text));
            }
        }
        gate::create_dir(destination).map_err(|error| failed(&error))?;
        let top = links::open_directory(destination).map_err(|error| failed(&error))?;
        Ok((top, Kept::nothing(self.directories.len(), self.files.len(), self.links.len())))
    }

    fn make_directories(&self, top: &OwnedFd, kept: &Kept) -> io::Result<()> {
        // Kept open only as long as the next is inside: thousands of directories do not need thousands of descriptors.
        let mut open = Opened::new(self, top);
        for (number, directory) in self.directories.iter().enumerate().skip(1) {
            if kept.directories[number] {
                continue;
            }
            let above = open.get(directory.above)?;
            gate::mkdirat(above, OsStr::from_bytes(&directory.name), Mode::from_raw_mode(0o755))?;
        }
        Ok(())
    }

    fn make_links(&self, top: &OwnedFd, kept: &Kept) -> io::Result<()> {
        let mut open = Opened::new(self, top);
        for (link, _) in self.links.iter().zip(&kept.links).filter(|(_, kept)| !**kept) {
            let directory = open.get(link.directory)?;
            gate::symlinkat(OsStr::from_bytes(&link.target), directory, OsStr::from_bytes(&link.name))?;
        }
        Ok(())
    }

    /// Writes all files that are not there; returns what all of them are, how many are Git LFS pointers, and the first of those.
    fn write_files(&self, top: &OwnedFd, kept: &Kept, out: &Out) -> Result<(Vec<Written>, Pointers), Failure> {
        let missing = (0..self.files.len()).filter(|number| kept.files[*number].is_none()).collect();
        let work =
            Work { missing, next: AtomicUsize::new(0), done: AtomicU64::new(0), bytes: AtomicU64::new(0), stop: AtomicBool::new(false) };
        let results: Vec<Result<Vec<(usize, Written)>, Failure>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..writers()).map(|_| scope.spawn(|| self.write_some(top, out, &work))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(Failure::new(ErrorKind::Internal, "a writer of files panicked"))))
                .collect()
        });
        let mut written = kept.files.clone();
        for result in results {
            for (number, one) in result? {
                written[number] = Some(one);
            }
        }
        let written: Vec<Written> = written.into_iter().flatten().collect();
        let mut pointers = self.files.iter().zip(&written).filter(|(_, written)| written.pointer).map(|(file, _)| file);
        let lfs = pointers.next().map(|first| (pointers.count() as u64 + 1, self.shown(first.directory, &first.name)));
        Ok((written, lfs))
    }

    /// One writer: takes the next files until there are none; returns what they are, by number.
    fn write_some(&self, top: &OwnedFd, out: &Out, work: &Work) -> Result<Vec<(usize, Written)>, Failure> {
        let written = (|| {
            // libgit2's objects are not for several threads; its caches of packs are, so a second repository costs little.
            let corrupt = |error: git2::Error| Failure::new(ErrorKind::Corrupt, error.message().to_owned());
            let open = self.repositories.iter().map(|path| mirror::open(path).map_err(corrupt)).collect::<Result<Vec<_>, _>>()?;
            let odbs = open.iter().map(|repository| repository.odb().map_err(corrupt)).collect::<Result<Vec<_>, _>>()?;
            let mut open = Opened::new(self, top);
            let mut all = Vec::new();
            while !work.stop.load(Ordering::Relaxed) {
                let start = work.next.fetch_add(BATCH, Ordering::Relaxed);
                if start >= work.missing.len() {
                    break;
                }
                for number in work.missing[start..work.missing.len().min(start + BATCH)].iter().copied() {
                    let file = &self.files[number];
                    let shown = || self.shown(file.directory, &file.name);
                    let blob = odbs[file.repository]
                        .read(file.oid)
                        .map_err(|error| Failure::new(ErrorKind::Corrupt, format!("`{}`: {}", shown(), error.message())))?;
                    let stamp = open
                        .get(file.directory)
                        .and_then(|directory| write_file(directory, OsStr::from_bytes(&file.name), file.mode(), blob.data()))
                        .map_err(|error| Failure::io(format!("failed to write `{}`", shown()), &error))?;
                    all.push((number, Written { oid: file.oid, stamp, pointer: blob.data().starts_with(LFS) }));
                    let done = work.done.fetch_add(1, Ordering::Relaxed) + 1;
                    let bytes = work.bytes.fetch_add(blob.len() as u64, Ordering::Relaxed) + blob.len() as u64;
                    if done.is_multiple_of(BATCH as u64) {
                        out.progress(Progress { objects: done, total_objects: work.missing.len() as u64, bytes });
                    }
                }
            }
            Ok(all)
        })();
        if written.is_err() {
            work.stop.store(true, Ordering::Relaxed);
        }
        written
    }
}

/// How many files are pointers of Git LFS, and the first; `None`: none is.
type Pointers = Option<(u64, String)>;

/// What the writers share.
struct Work {
    /// The numbers of the files that are to be written.
    missing: Vec<usize>,
    next: AtomicUsize,
    done: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
}

/// Opens directories of the plan; the last one stays open, since neighbours come one after the other.
struct Opened<'a> {
    plan: &'a Plan,
    top: &'a OwnedFd,
    last: Option<(usize, OwnedFd)>,
}

impl<'a> Opened<'a> {
    const fn new(plan: &'a Plan, top: &'a OwnedFd) -> Self {
        Self { plan, top, last: None }
    }

    fn get(&mut self, directory: usize) -> io::Result<std::os::fd::BorrowedFd<'_>> {
        if directory == 0 {
            return Ok(self.top.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| *last != directory) {
            let opened = links::walk(self.top.as_fd(), &self.plan.path(directory), links::Missing::Refuse)?;
            self.last = Some((directory, opened));
        }
        match &self.last {
            Some((_, opened)) => Ok(opened.as_fd()),
            None => Ok(self.top.as_fd()),
        }
    }
}

/// Writes a new file, and returns what it is then; one that is there, or a link, is an error. The umask is the helper's, 022.
fn write_file(directory: std::os::fd::BorrowedFd<'_>, name: &OsStr, mode: Mode, bytes: &[u8]) -> io::Result<Stamp> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = gate::File::from(gate::openat(directory, name, flags, mode)?);
    file.write_all(bytes)?;
    Ok(Stamp::of(&rustix::fs::fstat(&file)?))
}

fn writers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(WRITERS)
}

/// Says why a name must not be written, if so.
fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => return Err("an empty name"),
        b"." | b".." => return Err("it leads to another directory"),
        _ if name.contains(&b'/') => return Err("a name with `/` in it"),
        _ if name.contains(&0) => return Err("a name with NUL in it"),
        _ if name.len() > MAX_NAME => return Err("a name of more than 255 bytes"),
        _ => {}
    }
    if is_git_directory(name) { Err("git's own name, also as other file systems write it") } else { Ok(()) }
}

/// Whether some file system takes the name for `.git`: by case, trailing dots and spaces, short names or streams (NTFS, FAT), or
/// code points that are left out (HFS+), as git's `is_ntfs_dotgit` and `is_hfs_dotgit` do.
fn is_git_directory(name: &[u8]) -> bool {
    let text = String::from_utf8_lossy(name);
    let visible: String = text
        .chars()
        .filter(|c| !matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}'))
        .collect();
    let stem = visible.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']).to_ascii_lowercase();
    stem == ".git" || stem == "git~1"
}
