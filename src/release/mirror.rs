//! The mirror: a bare clone of the source that is only a cache. Runs in the helper.
//!
//! It holds one ref, [`WANTED`]: what was fetched last. The helper is its only user, so whatever looks half done at its start
//! was left by a kill: locks and temporary files are removed, and a mirror with anything else wrong (damaged, half written,
//! of another source, grown too large) is made anew **inside** itself, in `new.git`, and takes the old one's place when it is whole.
//! Inside and not beside, because the directory above belongs to the agent, not to the configured user.
//!
//! After a fetch the commit and its whole tree have been walked; that each byte of each blob is right shows when it is staged,
//! which then leaves [`DAMAGED`] for the next fetch.

use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use git2::{
    AutotagOption, Direction, ErrorClass, FetchOptions, ObjectType, Oid, RemoteCallbacks, Repository, RepositoryInitOptions,
    RepositoryOpenFlags,
};
use selfstart_core::id::Revision;
use selfstart_core::units::Bytes;

use super::git::{Done, ErrorKind, Failure, Fetch, Fetched, Out, Progress, Wanted};
use super::modules;
use super::signed::{self, Signer, Signers, Unsigned};
use super::transport::{self, Address, Reach, Trouble};
use crate::sys::gate;
use crate::sys::links;

/// The one ref of the mirror.
const WANTED: &str = "refs/selfstart/wanted";
/// The tag that led to [`WANTED`], when who signed it was checked: its commit need not be signed itself.
const SIGNED_TAG: &str = "refs/selfstart/tag";
/// Where all branches and tags go when a pinned revision can be found in no other way.
const ALL: &str = "refs/selfstart/all/";
/// The clone that will take the mirror's place.
const NEW: &str = "new.git";
/// A note, with the reason, that the mirror must be made anew.
const DAMAGED: &str = "selfstart-damaged";
/// Key of the mirror's configuration: the source, without user and password.
const SOURCE_KEY: &str = "selfstart.source";
/// Key of the mirror's configuration: bytes of objects when it was new.
const BORN_KEY: &str = "selfstart.born";
/// Each fetch adds a pack and libgit2 looks into each for each object; git itself repacks at 50 (`gc.autoPackLimit`).
const MAX_PACKS: usize = 50;
/// A mirror that is this many times as large as the tree, and twice as large as it was when new, holds mostly the past.
const MAX_GROWTH: u64 = 4;
/// Below this it is not worth the network.
const SMALL: Bytes = Bytes(1024 * 1024);

/// Brings the mirror up to date and returns the wanted commit.
///
/// # Errors
/// Of the network and the source as they are; the mirror's own troubles are healed and told in the answer.
pub(super) fn fetch(request: &Fetch, out: &Out) -> Result<Fetched, Failure> {
    let began = crate::sys::clock::instant();
    let job = Job::new(request, out)?;

    let mut healed = Vec::new();
    let state = inspect(&request.mirror, &job.address.to_string(), &mut healed)?;
    let mut got = match state {
        State::Good(repository) => match job.update(&repository) {
            Ok(got) => got,
            Err(failure) if failure.kind == ErrorKind::Corrupt => {
                healed.push(format!("the mirror was damaged and is made anew: {}", failure.text));
                job.anew()?
            }
            Err(failure) => return Err(failure),
        },
        State::Empty => job.anew()?,
        State::Unusable(why) => {
            healed.push(format!("the mirror is made anew: {why}"));
            job.anew()?
        }
    };
    if request.submodules {
        let open = open(&request.mirror).map_err(|error| local_failure(&error, "failed to read the mirror"))?;
        let commit = job.oid(&got.revision)?;
        let below = modules::fetch(request, &open, commit, began, out)?;
        healed.extend(below.healed);
        (got.bytes, got.objects) = (got.bytes + below.bytes, got.objects + below.objects);
    }
    if let Some(why) = outgrown(&request.mirror, got.tree) {
        out.is_safe(Done::Fetched(got.clone().fetched(healed.clone())));
        match job.anew() {
            Ok(smaller) => {
                healed.push(format!("the mirror is made anew: {why}"));
                got = Got { bytes: got.bytes + smaller.bytes, objects: got.objects + smaller.objects, ..smaller };
            }
            Err(failure) => healed
                .push(format!("the mirror should be made anew ({why}), which failed and is tried again with the next fetch: {failure}")),
        }
    }
    Ok(got.fetched(healed))
}

/// Asks the source whether it has what is wanted. Touches no mirror.
///
/// # Errors
/// Of the network and the source as they are; [`ErrorKind::NotFound`] when it has no such branch or tag.
pub(super) fn look(request: &Fetch, out: &Out) -> Result<Option<Revision>, Failure> {
    let job = Job::new(request, out)?;
    let reached = |error: &git2::Error| job.remote_failure(error);
    let mut remote = git2::Remote::create_detached(job.address.for_libgit2()).map_err(|error| reached(&error))?;
    let connection = remote.connect_auth(Direction::Fetch, Some(job.callbacks()), None).map_err(|error| reached(&error))?;
    let offered: Vec<(String, Oid)> =
        connection.list().map_err(|error| reached(&error))?.iter().map(|head| (head.name().to_owned(), head.oid())).collect();
    let plan = job.plan(&offered)?;
    // Of a tag with a message, what is offered as `^{}` is the commit.
    let name = plan.refspecs.first().and_then(|spec| spec.trim_start_matches('+').split_once(':')).map(|(name, _)| format!("{name}^{{}}"));
    let peeled = offered.iter().find(|(offered, _)| Some(offered) == name.as_ref()).map(|(_, oid)| *oid);
    Ok(peeled.or(plan.offered).and_then(|oid| oid.to_string().parse().ok()))
}

/// Returns what a mirror is of, without user and password.
pub(super) fn source_of(repository: &Repository) -> String {
    let read = |mut config: git2::Config| config.snapshot()?.get_string(SOURCE_KEY);
    // A mirror that does not say is made anew by the next fetch.
    repository.config().and_then(read).unwrap_or_default()
}

/// Notes that the mirror is damaged, so that the next fetch makes it anew.
pub(super) fn note_damage(mirror: &Path, why: &str) {
    // Best effort: without the note staging fails again, and notes it again.
    let _ = gate::write_file(mirror.join(DAMAGED), why);
}

/// What a fetch brought.
#[derive(Clone, Debug)]
struct Got {
    revision: Revision,
    bytes: u64,
    objects: u64,
    /// The bytes of the wanted tree's files.
    tree: Bytes,
}

impl Got {
    fn fetched(self, healed: Vec<String>) -> Fetched {
        Fetched { revision: self.revision, healed, bytes: self.bytes, objects: self.objects }
    }
}

/// What the mirror was found to be.
enum State {
    /// Usable.
    Good(Repository),
    /// Never used.
    Empty,
    /// To be made anew, and why.
    Unusable(String),
}

/// Looks at the mirror and removes what a kill left in it.
fn inspect(mirror: &Path, source: &str, healed: &mut Vec<String>) -> Result<State, Failure> {
    let failed = |error: &io::Error| Failure::io(format!("failed to read the mirror `{}`", mirror.display()), error);
    match fs_err::read_dir(mirror) {
        Ok(mut entries) => {
            if entries.next().is_none() {
                return Ok(State::Empty);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            gate::create_dir(mirror).map_err(|error| failed(&error))?;
            return Ok(State::Empty);
        }
        Err(error) => return Err(failed(&error)),
    }
    let new = mirror.join(NEW);
    if fs_err::symlink_metadata(&new).is_ok() {
        healed.push("removed a half-made clone that a killed fetch had left".to_owned());
        links::remove_tree(&new).map_err(|error| failed(&error))?;
        if fs_err::read_dir(mirror).map_err(|error| failed(&error))?.next().is_none() {
            return Ok(State::Empty);
        }
    }
    let swept = sweep(mirror, crate::sys::clock::system()).map_err(|error| failed(&error))?;
    if !swept.is_empty() {
        healed.push(format!("removed what a killed fetch had left: {}", swept.join(", ")));
    }
    if let Ok(why) = fs_err::read_to_string(mirror.join(DAMAGED)) {
        return Ok(State::Unusable(format!("it is damaged: {why}")));
    }
    let repository = match open(mirror) {
        Ok(repository) => repository,
        Err(error) => return Ok(State::Unusable(format!("it is half written or damaged: {}", error.message()))),
    };
    match repository.config().and_then(|mut config| config.snapshot()).and_then(|config| config.get_string(SOURCE_KEY)) {
        Ok(found) if found == source => Ok(State::Good(repository)),
        Ok(found) => Ok(State::Unusable(format!("it is of another source, {found}"))),
        Err(_) => Ok(State::Unusable("it does not say what it is a mirror of".to_owned())),
    }
}

/// Opens exactly this repository, and nothing above it.
pub(super) fn open(mirror: &Path) -> Result<Repository, git2::Error> {
    let flags = RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::BARE | RepositoryOpenFlags::NO_DOTGIT;
    Repository::open_ext(mirror, flags, std::iter::empty::<&Path>())
}

/// Removes locks and temporary files that are not younger than `now`, and packs without their index; returns their names.
///
/// A file with a date in the future (a clock that was set back) is left: if it is in the way, the mirror is made anew.
fn sweep(mirror: &Path, now: SystemTime) -> io::Result<Vec<String>> {
    let mut swept = Vec::new();
    let mut directories = vec![mirror.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs_err::read_dir(&directory)? {
            let entry = entry?;
            let path = entry.path();
            let found = fs_err::symlink_metadata(&path)?;
            if found.is_dir() {
                directories.push(path);
                continue;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let temporary = name.ends_with(".lock") || name.contains("_git2_") || name.starts_with("tmp_");
            let other_half = |extension: &str| !path.with_extension(extension).exists();
            let half_pack = directory.ends_with("objects/pack")
                && ((name.ends_with(".pack") && other_half("idx")) || (name.ends_with(".idx") && other_half("pack")));
            if (temporary || half_pack) && found.modified()? <= now {
                gate::remove_file(&path)?;
                swept.push(format!("`{}`", path.strip_prefix(mirror).unwrap_or(&path).display()));
            }
        }
    }
    swept.sort();
    Ok(swept)
}

/// Says why a mirror has grown too large, if it has.
fn outgrown(mirror: &Path, tree: Bytes) -> Option<String> {
    let (packs, size) = objects_on_disk(mirror);
    if packs > MAX_PACKS {
        return Some(format!("it has {packs} packs"));
    }
    let born = open(mirror)
        .and_then(|repository| repository.config())
        .and_then(|mut config| config.snapshot())
        .and_then(|config| config.get_i64(BORN_KEY))
        .ok()
        .and_then(|born| u64::try_from(born).ok())
        .unwrap_or(0);
    // Twice its first size as well, or a history that is large by nature would be fetched whole again each time.
    let limit = tree.0.saturating_mul(MAX_GROWTH).max(born.saturating_mul(2)).max(SMALL.0);
    (size.0 > limit).then(|| format!("it has grown to {size} for a tree of {tree}"))
}

/// The number of packs, and the bytes of all objects as they are stored.
fn objects_on_disk(mirror: &Path) -> (usize, Bytes) {
    let (mut packs, mut size) = (0, 0);
    let mut directories = vec![mirror.join("objects")];
    while let Some(directory) = directories.pop() {
        // What cannot be read is not counted: the figure only says when a mirror is better made anew.
        for entry in fs_err::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                directories.push(entry.path());
            } else {
                size += found.len();
                packs += usize::from(entry.file_name().as_bytes().ends_with(b".pack"));
            }
        }
    }
    (packs, Bytes(size))
}

/// Says what is wrong with a path before libgit2 does so less clearly.
fn check_local(path: &Path) -> Result<(), Failure> {
    match fs_err::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Failure::new(ErrorKind::NotFound, format!("`{}` is not a repository but a file", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Failure::new(ErrorKind::Refused, format!("`{}` cannot be read", path.display()))
                .hint("the app's user needs the right to read it"))
        }
        // Not `NotFound`, which is tried again slowly: at boot the disk that it is on may not be mounted yet.
        Err(_) => Err(Failure::new(ErrorKind::Unreachable, format!("there is no repository at `{}`", path.display()))),
    }
}

/// What libgit2 cannot read as it is built here. It can be built with it, but says itself that this is not for production (release notes of
/// libgit2 1.6.1: <https://github.com/libgit2/libgit2/releases/tag/v1.6.1>).
fn sha256(what: String) -> Failure {
    Failure::new(ErrorKind::Unsupported, format!("{what}, which is not supported")).hint(
        "deploy from a copy with SHA-1 ids: in a new `git init --object-format=sha1`, `git -C OLD fast-export --all | git fast-import`",
    )
}

/// One fetch, with all it needs.
struct Job<'a> {
    request: &'a Fetch,
    /// As in the request, or what that was found to mean.
    wanted: Wanted,
    address: Address,
    trouble: Trouble,
    out: &'a Out,
}

impl<'a> Job<'a> {
    /// Prepares the way to the source.
    fn new(request: &'a Fetch, out: &'a Out) -> Result<Self, Failure> {
        let address = Address::parse(&request.url.0)?;
        if let Wanted::Revision(id) = &request.wanted
            && id.as_str().len() != 40
        {
            return Err(sha256(format!("{id} is a SHA-256 id")));
        }
        if let Address::Local(path) = &address {
            check_local(path)?;
        }
        let reach = Reach {
            ca: request.ca.clone(),
            proxies: request.proxies.clone(),
            credentials: request.credentials.clone(),
            timeout: Duration::from_millis(request.timeout_millis),
        };
        let trouble = transport::install(&address, &reach)?;
        Ok(Self { request, wanted: request.wanted.clone(), address, trouble, out })
    }

    /// Clones into `new.git`, then puts it in the mirror's place.
    ///
    /// A kill before the swap leaves the old mirror and a half clone, which is removed; a kill within it leaves a mirror
    /// without `HEAD`, which is made anew.
    fn anew(&self) -> Result<Got, Failure> {
        let mirror = &self.request.mirror;
        let new = mirror.join(NEW);
        let failed = |error: &io::Error| Failure::io(format!("failed to make the mirror `{}` anew", mirror.display()), error);
        links::remove_tree(&new).map_err(|error| failed(&error))?;
        let made = (|| {
            let mut options = RepositoryInitOptions::new();
            options.bare(true).external_template(false).no_reinit(true).initial_head("selfstart");
            let repository = Repository::init_opts(&new, &options)?;
            repository.config()?.set_str(SOURCE_KEY, &self.address.to_string())?;
            Ok(repository)
        })();
        let repository = made.map_err(|error: git2::Error| local_failure(&error, "failed to make a new mirror"))?;
        let got = self.update(&repository)?;
        let (_, born) = objects_on_disk(&new);
        // Without this figure the mirror is only looked at more often.
        let _ = repository.config().and_then(|mut config| config.set_i64(BORN_KEY, i64::try_from(born.0).unwrap_or(i64::MAX)));
        drop(repository);
        take_place(mirror, || Ok(())).map_err(|error| failed(&error))?;
        Ok(got)
    }

    /// Fetches what is wanted into `repository` and walks it.
    fn update(&self, repository: &Repository) -> Result<Got, Failure> {
        // What an earlier try left there is not about this one.
        self.trouble.take();
        let known_before = match &self.wanted {
            Wanted::Revision(id) => Some(self.oid(id)?),
            _ => None,
        };
        // A commit that is pinned and here needs no network.
        if let Some(pinned) = known_before
            && let Ok(tree) = measure(repository, pinned)
        {
            self.check_signed(repository, pinned, None)?;
            return self.settle(repository, pinned, tree, 0, 0);
        }

        let mut remote = repository
            .remote_anonymous(&self.address.for_libgit2())
            .map_err(|error| local_failure(&error, "failed to prepare the fetch"))?;
        let reached = |error: &git2::Error| self.remote_failure(error);
        let mut connection = remote.connect_auth(Direction::Fetch, Some(self.callbacks()), None).map_err(|error| reached(&error))?;
        let offered: Vec<(String, Oid)> =
            connection.list().map_err(|error| reached(&error))?.iter().map(|head| (head.name().to_owned(), head.oid())).collect();
        let plan = match self.plan(&offered) {
            Ok(plan) => plan,
            Err(failure) => {
                let Some(id) = self.abbreviated(repository) else { return Err(failure) };
                drop(connection);
                let (address, trouble) = (self.address.clone(), self.trouble.clone());
                return Job { request: self.request, wanted: Wanted::Revision(id), address, trouble, out: self.out }.update(repository);
            }
        };

        let unshallow = self.request.depth == 0 && repository.is_shallow();
        let here = plan.offered.and_then(|oid| commit_of(repository, oid).ok());
        let whole = here.filter(|_| !unshallow).and_then(|commit| Some((commit, measure(repository, commit).ok()?)));
        let (bytes, objects) = if let Some((commit, tree)) = whole {
            self.check_signed(repository, plan.offered.unwrap_or(commit), plan.tag.as_deref())?;
            return self.settle(repository, commit, tree, 0, 0);
        } else {
            let mut options = FetchOptions::new();
            options.remote_callbacks(self.callbacks()).download_tags(AutotagOption::None).update_fetchhead(false);
            if self.address.can_be_shallow() {
                options.depth(match self.request.depth {
                    // GIT_FETCH_DEPTH_UNSHALLOW of libgit2's git2/remote.h.
                    0 if repository.is_shallow() => i32::MAX,
                    depth => i32::try_from(depth).unwrap_or(i32::MAX),
                });
            }
            let remote = connection.remote();
            remote
                .download(&plan.refspecs, Some(&mut options))
                .map_err(|error| self.no_commit(repository, &plan).unwrap_or_else(|| reached(&error)))?;
            if plan.everything {
                remote
                    .update_tips(None, git2::RemoteUpdateFlags::empty(), AutotagOption::None, Some("selfstart: fetch"))
                    .map_err(|error| reached(&error))?;
            }
            let stats = remote.stats();
            (stats.received_bytes() as u64, stats.received_objects() as u64)
        };
        drop(connection);

        let wanted = match (plan.offered, known_before) {
            (_, Some(pinned)) => pinned,
            (Some(oid), None) => oid,
            (None, None) => return Err(Failure::new(ErrorKind::Internal, "nothing was planned to be fetched")),
        };
        let commit = commit_of(repository, wanted).map_err(|error| match (&self.wanted, plan.everything) {
            (Wanted::Revision(id), true) => {
                Failure::new(ErrorKind::NotFound, format!("no branch or tag of {} contains revision {id}", self.address))
            }
            _ => self
                .no_commit(repository, &plan)
                .unwrap_or_else(|| Failure::new(ErrorKind::Corrupt, format!("what was fetched is no commit: {}", error.message()))),
        })?;
        let tree = measure(repository, commit)?;
        self.check_signed(repository, wanted, plan.tag.as_deref())?;
        self.settle(repository, commit, tree, bytes, objects)
    }

    /// Tells what is wanted, and here, from what is damaged or was not reached: a tag may be of a tree, and a commit may be malformed. Neither
    /// is mended by another try or another mirror.
    fn no_commit(&self, repository: &Repository, plan: &Plan) -> Option<Failure> {
        let wanted = plan.offered?;
        let odb = repository.odb().ok()?;
        let mut kind = odb.read(wanted).ok()?.kind();
        if kind == ObjectType::Tag {
            kind = repository.find_tag(wanted).ok()?.peel().ok()?.kind()?;
        }
        let shown = match &plan.tag {
            Some(tag) => format!("tag `{tag}` of {}", self.address),
            None => format!("{wanted} of {}", self.address),
        };
        let text = match (kind, commit_of(repository, wanted)) {
            (ObjectType::Commit, Ok(_)) => return None,
            (ObjectType::Commit, Err(error)) => format!("the commit of {shown} cannot be read: {}", error.message()),
            (kind, _) => format!("{shown} is of a {}, and no commit", kind.str()),
        };
        Some(Failure::new(ErrorKind::NotFound, text))
    }

    /// Refuses what is not signed by who may; [`WANTED`] stays where it was. A tag that is wanted by its name must be signed itself.
    fn check_signed(&self, repository: &Repository, wanted: Oid, tag: Option<&str>) -> Result<(), Failure> {
        let Some(text) = &self.request.allowed_signers else { return Ok(()) };
        let signers = signers(text)?;
        let object = read_object(repository, wanted)?;
        let shown = match tag {
            Some(tag) => format!("tag `{tag}` of {}", self.address),
            None => format!("revision {wanted} of {}", self.address),
        };
        let checked = match tag {
            Some(_) if object.0 != ObjectType::Tag => Err(Unsigned::Lightweight),
            Some(tag) => signed::tag(&object.1, tag, &signers),
            None => {
                let commit = commit_of(repository, wanted).map_err(|error| local_failure(&error, "failed to read the mirror"))?;
                signed::commit(&read_object(repository, commit)?.1, &signers)
            }
        };
        checked.map_err(|why| unsigned(&shown, &why, &signers))?;
        let noted = match tag {
            Some(_) => repository.reference(SIGNED_TAG, wanted, true, "selfstart: fetch").map(drop),
            None => match repository.find_reference(SIGNED_TAG) {
                Ok(mut found) => found.delete(),
                Err(_) => Ok(()),
            },
        };
        noted.map_err(|error| local_failure(&error, "failed to write the mirror"))
    }

    /// Points the one ref at the commit; what was fetched before is forgotten with that.
    fn settle(&self, repository: &Repository, commit: Oid, tree: Measured, bytes: u64, objects: u64) -> Result<Got, Failure> {
        let failed = |error: git2::Error| local_failure(&error, "failed to write the mirror");
        repository.reference(WANTED, commit, true, "selfstart: fetch").map_err(failed)?;
        repository.set_head(WANTED).map_err(failed)?;
        let revision = commit.to_string().parse().map_err(|_| Failure::new(ErrorKind::Internal, "libgit2 knows a commit without an id"))?;
        Ok(Got { revision, bytes, objects, tree: Bytes(tree.bytes) })
    }

    /// Chooses what to ask for from what the source offers.
    fn plan(&self, offered: &[(String, Oid)]) -> Result<Plan, Failure> {
        let find = |name: &str| offered.iter().find(|(offered, _)| offered == name).map(|(_, oid)| *oid);
        let one = |name: &str, oid: Oid| Plan {
            refspecs: vec![format!("+{name}:{WANTED}")],
            offered: Some(oid),
            everything: false,
            tag: name.strip_prefix("refs/tags/").map(str::to_owned),
        };
        match &self.wanted {
            Wanted::Branch(branch) => {
                let name = format!("refs/heads/{branch}");
                find(&name).map(|oid| one(&name, oid)).ok_or_else(|| self.no_such("branch", branch, "refs/heads/", offered))
            }
            Wanted::Tag(tag) => {
                let name = format!("refs/tags/{tag}");
                find(&name).map(|oid| one(&name, oid)).ok_or_else(|| self.no_such("tag", tag, "refs/tags/", offered))
            }
            Wanted::Any(text) => {
                let named = ["heads", "tags"].into_iter().find_map(|kind| {
                    let name = format!("refs/{kind}/{text}");
                    find(&name).map(|oid| one(&name, oid))
                });
                named.ok_or_else(|| {
                    let no_such = self.no_such("branch", text, "refs/heads/", offered);
                    Failure {
                        text: format!("{} has no branch or tag `{text}`, and it is no full 40-digit revision", self.address),
                        ..no_such
                    }
                })
            }
            Wanted::Revision(id) => {
                let pinned = self.oid(id)?;
                if let Some((name, oid)) = offered.iter().find(|(name, oid)| *oid == pinned && name.starts_with("refs/")) {
                    // By its id, so a tag that happens to point to it says nothing about it.
                    return Ok(Plan { tag: None, ..one(name, *oid) });
                }
                if self.request.depth == 0 {
                    let all = |kind: &str| format!("+refs/{kind}/*:{ALL}{kind}/*");
                    return Ok(Plan { refspecs: vec![all("heads"), all("tags")], offered: None, everything: true, tag: None });
                }
                Ok(Plan { refspecs: vec![format!("{id}:{WANTED}")], offered: Some(pinned), everything: false, tag: None })
            }
        }
    }

    /// Returns the one commit known here that begins with the digits that are wanted; `None`: they are none, or mean none or several.
    fn abbreviated(&self, repository: &Repository) -> Option<Revision> {
        let Wanted::Any(text) = &self.wanted else { return None };
        // Fewer than 4 digits are rather a slip of the hand; git's own least is 4 (git-config(1), core.abbrev).
        if text.len() < 4 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let digits = text.to_ascii_lowercase();
        let mut found: Vec<Revision> = self.request.known.iter().filter(|id| id.as_str().starts_with(&digits)).cloned().collect();
        match repository.find_commit_by_prefix(&digits) {
            Ok(commit) => found.extend(commit.id().to_string().parse::<Revision>()),
            Err(error) if error.code() == git2::ErrorCode::Ambiguous => return None,
            Err(_) => {}
        }
        found.sort();
        found.dedup();
        if found.len() == 1 { found.pop() } else { None }
    }

    fn no_such(&self, what: &str, name: &str, prefix: &str, offered: &[(String, Oid)]) -> Failure {
        let failure = Failure::new(ErrorKind::NotFound, format!("{} has no {what} `{name}`", self.address));
        let names = || offered.iter().filter_map(|(offered, _)| offered.strip_prefix(prefix)).filter(|name| !name.ends_with("^{}"));
        let nearest = names().map(|found| (strsim::damerau_levenshtein(found, name), found)).min();
        match nearest {
            Some((distance, nearest)) if distance <= 3 => failure.hint(&format!("is it `{nearest}`?")),
            // As many as fit in a line.
            Some(_) => failure.hint(&format!("there are: {}", names().take(8).collect::<Vec<_>>().join(", "))),
            None => failure.hint(&format!("it has no {what} at all")),
        }
    }

    fn oid(&self, id: &Revision) -> Result<Oid, Failure> {
        Oid::from_str(id.as_str()).map_err(|error| Failure::new(ErrorKind::Internal, format!("not an id: {}", error.message())))
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.transfer_progress(|stats| {
            self.out.progress(Progress {
                objects: stats.received_objects() as u64,
                total_objects: stats.total_objects() as u64,
                bytes: stats.received_bytes() as u64,
            });
            true
        });
        callbacks
    }

    /// Tells what an error of libgit2 on the way to the source means; a failure that one of our transports left says it better.
    fn remote_failure(&self, error: &git2::Error) -> Failure {
        if let Some(failure) = self.trouble.take() {
            return failure;
        }
        let text = error.message();
        let of_network = match error.class() {
            ErrorClass::Net | ErrorClass::Http | ErrorClass::Ssh | ErrorClass::Ssl => true,
            // libgit2's own sockets.
            ErrorClass::Os => matches!(self.address, Address::Git(_)) && !text.contains(&*self.request.mirror.to_string_lossy()),
            // What libgit2 says of a path that is no repository, and of an id that it is not allowed to ask for.
            ErrorClass::Repository => matches!(self.address, Address::Local(_)),
            ErrorClass::Invalid => true,
            _ => false,
        };
        let what = format!("failed to fetch from {}", self.address);
        if !of_network {
            return local_failure(error, &what);
        }
        let has = |needles: &[&str]| needles.iter().any(|needle| text.contains(needle));
        let failure = |kind| Failure::new(kind, format!("{what}: {text}"));
        // libgit2 does not read the server's refusal in the middle of the negotiation, it is only surprised by it.
        let not_ours = ["cannot fetch a specific object", "not our ref", "unexpected packet type", "unexpected pkt type"];
        if let Wanted::Revision(id) = &self.wanted
            && has(&not_ours)
        {
            let text = format!("{} does not give out revision {id}, which is the head of no branch or tag there", self.address);
            return Failure::new(ErrorKind::NotFound, text)
                .hint("does it exist there? Set `source.depth: 0`, or `uploadpack.allowReachableSHA1InWant` on the server, or pin the head of a branch or tag");
        }
        if has(&["object format 'sha256'"]) {
            return sha256(format!("{} is a repository with SHA-256 ids", self.address));
        }
        if has(&["doesn't support shallow"]) {
            return failure(ErrorKind::Unsupported).hint("set `source.depth: 0`");
        }
        if has(&[
            "not exported",
            "not found",
            "does not exist",
            "could not find repository",
            "not a git repository",
            "not appear to be a git",
        ]) {
            return failure(ErrorKind::NotFound);
        }
        if has(&["timed out", "timeout"]) {
            return failure(ErrorKind::Timeout);
        }
        failure(ErrorKind::Unreachable)
    }
}

/// Tells what an error of libgit2 in the mirror's own files means.
fn local_failure(error: &git2::Error, what: &str) -> Failure {
    let text = error.message();
    let has = |needles: &[&str]| needles.iter().any(|needle| text.contains(needle));
    let failure = |kind| Failure::new(kind, format!("{what}: {text}"));
    // libgit2 puts strerror(3) behind its texts.
    if has(&["No space left on device", "Disk quota exceeded", "Read-only file system", "File too large"]) {
        return failure(ErrorKind::DiskFull);
    }
    if has(&["Permission denied"]) {
        return failure(ErrorKind::DiskFull).hint("the mirror must belong to the app's user");
    }
    // What is here, or what was sent: either is cured by a new mirror, and if not, the source is damaged.
    failure(ErrorKind::Corrupt)
}

/// What to ask the source for.
struct Plan {
    refspecs: Vec<String>,
    /// The wanted object, a commit or a tag, where it is known beforehand.
    offered: Option<Oid>,
    /// All branches and tags, to look for a revision in them.
    everything: bool,
    /// The tag that is asked for by its name.
    tag: Option<String>,
}

/// Puts `new.git` in the place of what is around it. `HEAD` goes first and comes last: without it there is no mirror.
///
/// `point` is called before each step; in tests it fails there, as a kill would.
fn take_place(mirror: &Path, mut point: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    point()?;
    links::remove_tree(&mirror.join("HEAD"))?;
    for entry in fs_err::read_dir(mirror)? {
        let entry = entry?;
        if entry.file_name() != NEW && entry.file_name() != modules::FOLDER {
            point()?;
            links::remove_tree(&entry.path())?;
        }
    }
    let new = mirror.join(NEW);
    let mut names: Vec<_> = fs_err::read_dir(&new)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>()?;
    names.sort_by_key(|name| name == "HEAD");
    for name in names {
        point()?;
        gate::rename(new.join(&name), mirror.join(&name))?;
    }
    point()?;
    gate::remove_dir(new)
}

/// Says who signed a commit that is in the mirror, by itself or by the signed tag that led to it.
///
/// # Errors
/// [`ErrorKind::Unsigned`] when nobody did who may.
pub(super) fn signer(repository: &Repository, commit: Oid, text: &str) -> Result<Signer, Failure> {
    let signers = signers(text)?;
    let refused = match signed::commit(&read_object(repository, commit)?.1, &signers) {
        Ok(signer) => return Ok(signer),
        Err(refused) => refused,
    };
    let by_tag = || {
        let oid = repository.find_reference(SIGNED_TAG).ok()?.target()?;
        let tag = repository.find_tag(oid).ok()?;
        let leads_here = commit_of(repository, oid).is_ok_and(|found| found == commit);
        let (_, object) = read_object(repository, oid).ok()?;
        signed::tag(&object, tag.name().ok()?, &signers).ok().filter(|_| leads_here)
    };
    by_tag().ok_or_else(|| unsigned(&format!("revision {commit}"), &refused, &signers))
}

/// Reads who may sign; nobody is a mistake.
fn signers(text: &str) -> Result<Signers, Failure> {
    let signers = Signers::parse(text, &jiff::tz::TimeZone::system());
    if signers.is_empty() {
        let trouble = if signers.trouble.is_empty() { String::new() } else { format!(" ({})", signers.trouble.join("; ")) };
        return Err(Failure::new(ErrorKind::Unsigned, format!("source.verify.allowed_signers allows nobody to sign{trouble}"))
            .hint("add lines `NAME namespaces=\"git\" KEY`, with the keys of those who may deploy"));
    }
    Ok(signers)
}

fn unsigned(shown: &str, why: &Unsigned, signers: &Signers) -> Failure {
    let trouble = match why {
        Unsigned::NotAllowed { .. } if !signers.trouble.is_empty() => format!("; in that file {}", signers.trouble.join("; ")),
        _ => String::new(),
    };
    Failure::new(ErrorKind::Unsigned, format!("{shown} {why}{trouble}")).hint(why.hint())
}

/// Reads an object as it is stored; libgit2 checks that its id is right.
fn read_object(repository: &Repository, oid: Oid) -> Result<(ObjectType, Vec<u8>), Failure> {
    let read = || {
        let odb = repository.odb()?;
        let object = odb.read(oid)?;
        Ok((object.kind(), object.data().to_vec()))
    };
    read().map_err(|error: git2::Error| Failure::new(ErrorKind::Corrupt, format!("object {oid}: {}", error.message())))
}

/// Peels a tag to its commit; a commit is its own.
fn commit_of(repository: &Repository, oid: Oid) -> Result<Oid, git2::Error> {
    Ok(repository.find_object(oid, None)?.peel(ObjectType::Commit)?.id())
}

/// What a tree amounts to, with everything that stands in several places counted each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Measured {
    /// Bytes in files.
    pub(super) bytes: u64,
    /// Files, links and directories.
    pub(super) entries: u64,
    /// Directories below each other, the top counted.
    pub(super) levels: u64,
    /// A directory that arrived as it was sent, and is none: no new mirror cures that.
    pub(super) malformed: Option<Oid>,
}

/// Walks the commit's whole tree: every tree can be parsed, every blob's beginning can be read.
///
/// Each object is looked at once, however often it stands in the tree: a few small ones can describe billions of files.
///
/// # Errors
/// [`ErrorKind::Corrupt`], with the first object that is missing or damaged.
pub(super) fn measure(repository: &Repository, commit: Oid) -> Result<Measured, Failure> {
    let wrong = |what: &str, oid: Oid, error: &git2::Error| Failure::new(ErrorKind::Corrupt, format!("{what} {oid}: {}", error.message()));
    let odb = repository.odb().map_err(|error| wrong("the objects of", commit, &error))?;
    let top = repository.find_commit(commit).map_err(|error| wrong("commit", commit, &error))?.tree_id();
    /// A tree whose subtrees are being walked.
    struct Level {
        oid: Oid,
        below: Vec<Oid>,
        sum: Measured,
    }
    let mut trees: HashMap<Oid, Measured> = HashMap::new();
    let mut blobs: HashMap<Oid, u64> = HashMap::new();
    let mut enter = |oid: Oid| -> Result<Level, Failure> {
        let mut level = Level { oid, below: Vec::new(), sum: Measured { levels: 1, ..Measured::default() } };
        let tree = match repository.find_tree(oid) {
            Ok(tree) => tree,
            // Its id was right when it was read, so it is as it was sent.
            Err(_) if odb.read(oid).is_ok() => {
                level.sum.malformed = Some(oid);
                return Ok(level);
            }
            Err(error) => return Err(wrong("tree", oid, &error)),
        };
        level.sum.entries = tree.len() as u64;
        for entry in &tree {
            match entry.kind() {
                Some(ObjectType::Tree) => level.below.push(entry.id()),
                // A submodule's commit is in another repository.
                Some(ObjectType::Commit) => {}
                _ => {
                    let size = match blobs.get(&entry.id()) {
                        Some(size) => *size,
                        None => {
                            let (size, _) = odb.read_header(entry.id()).map_err(|error| wrong("blob", entry.id(), &error))?;
                            blobs.insert(entry.id(), size as u64);
                            size as u64
                        }
                    };
                    level.sum.bytes = level.sum.bytes.saturating_add(size);
                }
            }
        }
        Ok(level)
    };
    let mut stack = vec![enter(top)?];
    while let Some(level) = stack.last_mut() {
        if let Some(next) = level.below.pop() {
            match trees.get(&next) {
                Some(known) => level.sum.add(known),
                None => stack.push(enter(next)?),
            }
        } else if let Some(level) = stack.pop() {
            trees.insert(level.oid, level.sum);
            match stack.last_mut() {
                Some(above) => above.sum.add(&level.sum),
                None => return Ok(level.sum),
            }
        }
    }
    Ok(Measured::default())
}

impl Measured {
    /// Adds a subtree.
    fn add(&mut self, below: &Self) {
        self.bytes = self.bytes.saturating_add(below.bytes);
        self.entries = self.entries.saturating_add(below.entries);
        self.levels = self.levels.max(below.levels.saturating_add(1));
        self.malformed = self.malformed.or(below.malformed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bare repository with one commit of one file in its mirror's ref.
    fn repository(path: &Path, source: &str, text: &str) -> Oid {
        let repository = Repository::init_bare(path).expect("made");
        repository.config().and_then(|mut config| config.set_str(SOURCE_KEY, source)).expect("written");
        let blob = repository.blob(text.as_bytes()).expect("written");
        let mut builder = repository.treebuilder(None).expect("a builder");
        builder.insert("file", blob, 0o100_644).expect("inserted");
        let tree = repository.find_tree(builder.write().expect("written")).expect("there");
        let who = git2::Signature::new("a", "a@example.org", &git2::Time::new(0, 0)).expect("a name");
        let commit = repository.commit(Some(WANTED), &who, &who, text, &tree, &[]).expect("committed");
        repository.set_head(WANTED).expect("set");
        commit
    }

    #[test]
    fn a_swap_cut_short_anywhere_leaves_the_old_mirror_the_new_one_or_none() {
        let mut whole = 0;
        for cut in 0.. {
            let dir = tempfile::tempdir().expect("a directory");
            let mirror = dir.path().join("repo.git");
            let (old, new) = (repository(&mirror, "here", "old"), repository(&mirror.join(NEW), "here", "new"));
            let mut step = 0;
            let swapped = take_place(&mirror, || {
                step += 1;
                if step > cut { Err(io::Error::other("killed")) } else { Ok(()) }
            });
            let found = match inspect(&mirror, "here", &mut Vec::new()).expect("looked at") {
                State::Good(repository) => Some(repository.head().expect("a head").target().expect("a commit")),
                State::Empty | State::Unusable(_) => None,
            };
            match found {
                Some(head) if head == old => assert_eq!(cut, 0, "the old one is only there before the first step"),
                Some(head) => {
                    assert_eq!(head, new, "cut at {cut}");
                    measure(&open(&mirror).expect("opened"), new).expect("whole");
                    whole += 1;
                }
                None => assert_eq!(whole, 0, "cut at {cut}"),
            }
            if swapped.is_ok() {
                break;
            }
        }
        assert_eq!(whole, 2, "before and after the empty directory goes");
    }

    #[test]
    fn what_stands_in_several_places_is_counted_each_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let repository = Repository::init_bare(dir.path()).expect("made");
        let blob = repository.blob(b"12345").expect("written");
        let mut tree = None;
        for _ in 0..30 {
            let mut builder = repository.treebuilder(None).expect("a builder");
            for name in ["a", "b"] {
                match tree {
                    None => builder.insert(name, blob, 0o100_644).expect("inserted"),
                    Some(below) => builder.insert(name, below, 0o040_000).expect("inserted"),
                };
            }
            tree = Some(builder.write().expect("written"));
        }
        let who = git2::Signature::new("a", "a@example.org", &git2::Time::new(0, 0)).expect("a name");
        let tree = repository.find_tree(tree.expect("made")).expect("there");
        let commit = repository.commit(None, &who, &who, "x", &tree, &[]).expect("committed");
        let measured = measure(&repository, commit).expect("measured");
        let places = 1_u64 << 30;
        assert_eq!(measured, Measured { bytes: places * 5, entries: 2 * places - 2, levels: 30, malformed: None });
    }

    #[test]
    fn only_what_a_kill_leaves_is_swept() {
        let dir = tempfile::tempdir().expect("a directory");
        repository(dir.path(), "here", "x");
        let before = SystemTime::now() - Duration::from_secs(3600);
        fs_err::write(dir.path().join("refs/heads/x.lock"), "").expect("written");
        assert_eq!(sweep(dir.path(), before).expect("swept"), Vec::<String>::new(), "younger than the helper: not ours to judge");
        assert_eq!(sweep(dir.path(), SystemTime::now()).expect("swept"), ["`refs/heads/x.lock`"]);
        assert!(matches!(inspect(dir.path(), "here", &mut Vec::new()), Ok(State::Good(_))));
    }
}
