//! Submodules: `source.submodules`. Runs in the helper.
//!
//! Each has a mirror of its own inside the one of the repository that it is in, fetched by the commit that is pinned there, by a helper of
//! its own: libgit2 knows one transport per process, and so one's credentials cannot reach another's host. A submodule of a
//! submodule is that helper's affair. What `.gitmodules` says is others' words: read by a reader that knows no includes, never run,
//! and no path of it is used but to find what the tree itself pins.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use git2::{ObjectType, Oid, Repository};
use ring::digest;

use super::git::{Credentials, Done, ErrorKind, Failure, Fetch, Fetched, Out, Reply, Request, Wanted};
use super::transport::Address;
use crate::sys::{clock, gate, links, process};

/// Where their mirrors are, inside the mirror.
pub(super) const FOLDER: &str = "modules";
/// Submodules of submodules; more is no source tree.
pub(super) const MAX_LEVELS: u32 = 16;
/// In one repository.
const MAX_MODULES: usize = 1000;
/// The largest `.gitmodules` that is read.
const MAX_TEXT: usize = 1024 * 1024;
/// The longest line of a helper.
const MAX_LINE: u64 = 1024 * 1024;

/// A commit of another repository that a tree pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Where it stands.
    pub(super) path: String,
    /// Where it comes from.
    url: String,
    commit: Oid,
}

/// Returns where the mirror of the submodule at this path is.
pub(super) fn mirror_of(mirror: &Path, path: &str) -> PathBuf {
    let hash = digest::digest(&digest::SHA256, path.as_bytes());
    let name: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    mirror.join(FOLDER).join(name)
}

fn bad(text: String) -> Failure {
    Failure::new(ErrorKind::BadTree, text)
}

/// Lists what a commit's tree pins, each with its address.
///
/// # Errors
/// [`ErrorKind::BadTree`] for one that has no address, or one that must not be asked.
pub(super) fn of(repository: &Repository, commit: Oid, parent: &str) -> Result<Vec<Module>, Failure> {
    let corrupt = |error: git2::Error| Failure::new(ErrorKind::Corrupt, format!("commit {commit}: {}", error.message()));
    let tree = repository.find_commit(commit).and_then(|commit| commit.tree()).map_err(corrupt)?;
    let mut pinned = Vec::new();
    // A tree that describes billions of files was refused, or is when it is staged.
    let mut waiting = vec![(String::new(), tree.id(), 0)];
    let mut seen = 0_usize;
    while let Some((prefix, oid, level)) = waiting.pop() {
        let tree = repository.find_tree(oid).map_err(corrupt)?;
        for entry in &tree {
            let path = || format!("{prefix}{}", String::from_utf8_lossy(entry.name_bytes()));
            match entry.kind() {
                Some(ObjectType::Tree) if level < 1024 => {
                    seen += 1;
                    if seen > 1_000_000 {
                        return Err(bad("the tree has more than 1000000 directories".to_owned()));
                    }
                    waiting.push((format!("{}/", path()), entry.id(), level + 1));
                }
                Some(ObjectType::Commit) => pinned.push((path(), entry.id())),
                _ => {}
            }
        }
    }
    if pinned.len() > MAX_MODULES {
        return Err(bad(format!("the tree has {} submodules, more than {MAX_MODULES}", pinned.len())));
    }
    if pinned.is_empty() {
        return Ok(Vec::new());
    }
    let entry = tree.get_name(".gitmodules").filter(|entry| entry.filemode() & 0o170_000 == 0o100_000);
    let text = match entry {
        // A link would be read by git through the work tree; there is none here.
        None => String::new(),
        Some(entry) => {
            let blob = repository.find_blob(entry.id()).map_err(corrupt)?;
            if blob.size() > MAX_TEXT {
                return Err(bad("`.gitmodules` is larger than 1 MiB".to_owned()));
            }
            String::from_utf8_lossy(blob.content()).into_owned()
        }
    };
    let urls = read(&text);
    pinned.sort();
    pinned
        .into_iter()
        .map(|(path, commit)| {
            let shown = path.escape_debug().to_string();
            let url = urls.get(&path).ok_or_else(|| {
                bad(format!("the tree has a submodule at `{shown}`, and `.gitmodules` does not say where it comes from"))
                    .hint("`git submodule add`, or `git rm --cached` if it was added by mistake")
            })?;
            let url = resolve(parent, url).map_err(|why| bad(format!("the submodule at `{shown}`: {why}")))?;
            Ok(Module { path, url, commit })
        })
        .collect()
}

/// Reads `.gitmodules`: addresses by path. Git's format, of which nothing is obeyed but `path` and `url` of a `submodule`.
fn read(text: &str) -> BTreeMap<String, String> {
    // By name, in the order of the file; sections of the same name are one.
    let mut sections: Vec<(String, Option<String>, Option<String>)> = Vec::new();
    let mut current = None;
    for line in text.replace("\\\n", "").lines() {
        let mut line = line.trim();
        if let Some(head) = line.strip_prefix('[') {
            let (name, rest) = section(head);
            current = name.map(|name| {
                sections.iter().position(|(known, ..)| *known == name).unwrap_or_else(|| {
                    sections.push((name, None, None));
                    sections.len() - 1
                })
            });
            line = rest;
        }
        let section = current.and_then(|at: usize| sections.get_mut(at));
        let (Some((_, path, url)), Some((key, value))) = (section, line.split_once('=')) else { continue };
        match key.trim().to_ascii_lowercase().as_str() {
            // The last one counts, as for git.
            "path" => *path = Some(value_of(value).trim_end_matches('/').to_owned()),
            "url" => *url = Some(value_of(value)),
            _ => {}
        }
    }
    let mut found = BTreeMap::new();
    for (_, path, url) in sections {
        if let (Some(path), Some(url)) = (path, url) {
            found.entry(path).or_insert(url);
        }
    }
    found
}

/// Reads what follows the `[` of a section: the name of a submodule, and what stands behind the `]`. `None`: it is of something else.
fn section(head: &str) -> (Option<String>, &str) {
    let (mut name, mut quoted, mut escaped) = (String::new(), false, false);
    let mut end = head.len();
    for (at, c) in head.char_indices() {
        match c {
            _ if escaped => (escaped, _) = (false, name.push(c)),
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ']' if !quoted => {
                end = at;
                break;
            }
            c => name.push(c),
        }
    }
    let of = |name: &str| name.get(..9).is_some_and(|kind| kind.eq_ignore_ascii_case("submodule"));
    let rest = if of(&name) { name.split_off(9) } else { return (None, head.get(end + 1..).unwrap_or_default()) };
    let named = rest.is_empty() || rest.starts_with([' ', '\t', '.']);
    (named.then(|| rest.trim_start().to_owned()), head.get(end + 1..).unwrap_or_default())
}

/// A value of git-config(1): quotes, escapes, comments.
fn value_of(text: &str) -> String {
    let (mut value, mut quoted, mut escaped) = (String::new(), false, false);
    // How much of it is not white space at its end.
    let mut solid = 0;
    for c in text.trim().chars() {
        match c {
            _ if escaped => {
                escaped = false;
                value.push(match c {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
            }
            '\\' => {
                escaped = true;
                continue;
            }
            '"' => {
                quoted = !quoted;
                continue;
            }
            '#' | ';' if !quoted => break,
            c => value.push(c),
        }
        if quoted || !c.is_whitespace() {
            solid = value.len();
        }
    }
    value.truncate(solid);
    value
}

/// Where a submodule's address leads from its parent's (gitmodules(5)): relative ones are below the parent's own.
fn resolve(parent: &str, url: &str) -> Result<String, String> {
    let shown = url.escape_debug();
    if url.is_empty() || url.starts_with('-') || url.chars().any(char::is_control) {
        return Err(format!("its address must not be asked: `{shown}`"));
    }
    let relative = url == "." || url == ".." || url.starts_with("./") || url.starts_with("../");
    let url = if relative {
        below(parent, url).ok_or_else(|| format!("its address leads out of its parent's host: `{shown}`"))?
    } else {
        url.to_owned()
    };
    let of = |text: &str| Address::parse(text).map_err(|_| format!("its address must not be asked: `{shown}`"));
    match (of(parent)?, of(&url)?) {
        (Address::Local(_), _) => Ok(url),
        // Files of this machine are nobody's to name who only writes to a repository elsewhere (CVE-2022-39253 and its kin).
        (_, Address::Local(_)) => Err(format!("its address is a path on this machine: `{shown}`")),
        (from, to) if to.is_plain() && !from.is_plain() => Err(format!("its address is not encrypted, its parent's is: `{shown}`")),
        _ => Ok(url),
    }
}

/// Goes from the parent's address by `./` and `../`; never above its host.
fn below(parent: &str, relative: &str) -> Option<String> {
    let (start, path) = match parent.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            (format!("{scheme}://{host}/"), path)
        }
        None if parent.starts_with('/') => ("/".to_owned(), &parent[1..]),
        // `[::1]:path` has colons before that one.
        None => {
            let at = parent.find("]:").map_or_else(|| parent.find(':'), |at| Some(at + 1))?;
            (parent[..=at].to_owned(), &parent[at + 1..])
        }
    };
    let rooted = if path.starts_with('/') { "/" } else { "" };
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| format!("{start}{rooted}{}", parts.join("/")))
}

/// Fetches all submodules of a commit; returns what was healed.
///
/// # Errors
/// As each of their helpers says: one that cannot be reached is network trouble. What the tree itself has wrong is left to staging to say,
/// which blames the revision.
pub(super) fn fetch(request: &Fetch, repository: &Repository, commit: Oid, began: Instant, out: &Out) -> Result<Fetched, Failure> {
    let mut all = Fetched { revision: revision_of(commit)?, healed: Vec::new(), bytes: 0, objects: 0 };
    let modules = match of(repository, commit, &request.url.0) {
        Ok(modules) if request.level < MAX_LEVELS => modules,
        Err(failure) if failure.kind != ErrorKind::BadTree => return Err(failure),
        _ => return Ok(all),
    };
    let folder = request.mirror.join(FOLDER);
    let failed = |error: &std::io::Error| Failure::io(format!("failed to write `{}`", folder.display()), error);
    forget_others(&folder, &modules, &request.mirror).map_err(|error| failed(&error))?;
    if modules.is_empty() {
        return Ok(all);
    }
    gate::create_dir_all(&folder).map_err(|error| failed(&error))?;
    for module in modules {
        let shown = module.path.escape_debug().to_string();
        let of_it = |failure: Failure| Failure { text: format!("the submodule at `{shown}`: {}", failure.text), ..failure };
        let mut below = child(request, &module, began)?;
        let got = match ask(&below, out) {
            // The server gives out heads only, or does not know the id: what all its branches have is looked through once.
            Err(failure) if failure.kind == ErrorKind::NotFound && below.depth != 0 => {
                below.depth = 0;
                ask(&below, out)
            }
            other => other,
        };
        let got = got.map_err(of_it)?;
        all.healed.extend(got.healed.iter().map(|text| format!("the submodule at `{shown}`: {text}")));
        all.bytes += got.bytes;
        all.objects += got.objects;
    }
    Ok(all)
}

fn revision_of(oid: Oid) -> Result<selfstart_core::id::Revision, Failure> {
    oid.to_string().parse().map_err(|_| Failure::new(ErrorKind::Internal, "libgit2 knows a commit without an id"))
}

/// Removes mirrors of submodules that are no more.
fn forget_others(folder: &Path, modules: &[Module], mirror: &Path) -> std::io::Result<()> {
    let wanted: HashSet<PathBuf> = modules.iter().map(|module| mirror_of(mirror, &module.path)).collect();
    let entries = match fs_err::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if !wanted.contains(&path) {
            links::remove_tree(&path)?;
        }
    }
    Ok(())
}

/// What the helper of one submodule is asked. Credentials go to the place that they are for, and no other.
fn child(request: &Fetch, module: &Module, began: Instant) -> Result<Fetch, Failure> {
    let (from, to) = (Address::parse(&request.url.0)?, Address::parse(&module.url)?);
    let credentials = match (&request.credentials, from.is_same_place(&to)) {
        (Credentials::None, true) => from.credentials(),
        (credentials, true) => credentials.clone(),
        // Pinned host keys are no secret.
        (Credentials::Ssh { known_hosts, .. }, false) => match &to {
            Address::Ssh(_) => Credentials::Ssh { key: None, agent: None, known_hosts: known_hosts.clone() },
            _ => Credentials::None,
        },
        _ => Credentials::None,
    };
    let spent = u64::try_from(clock::instant().saturating_duration_since(began).as_millis()).unwrap_or(u64::MAX);
    Ok(Fetch {
        mirror: mirror_of(&request.mirror, &module.path),
        url: super::git::Secret(module.url.clone()),
        wanted: Wanted::Revision(revision_of(module.commit)?),
        known: Vec::new(),
        credentials,
        // Its id is in what was signed.
        allowed_signers: None,
        level: request.level + 1,
        timeout_millis: request.timeout_millis.saturating_sub(spent).max(1),
        ..request.clone()
    })
}

/// Has another helper do it; it ends with us.
fn ask(request: &Fetch, out: &Out) -> Result<Fetched, Failure> {
    let internal = |what: &str, error: &dyn std::fmt::Display| Failure::new(ErrorKind::Internal, format!("{what}: {error}"));
    let text = serde_json::to_vec(&Request::Fetch(request.clone())).map_err(|error| internal("failed to ask", &error))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("internal-git").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    process::ends_with_us(&mut command);
    let mut helper = gate::spawn(&mut command).map_err(|error| internal("failed to start a helper", &error))?;
    let stdin = helper.stdin.take();
    if let Some(mut stdin) = stdin {
        stdin.write_all(&text).map_err(|error| internal("failed to ask a helper", &error))?;
    }
    let mut last = None;
    if let Some(stdout) = helper.stdout.take() {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while std::io::Read::take(&mut lines, MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            match serde_json::from_slice(&line) {
                Ok(Reply::Progress(progress)) => out.progress(progress),
                Ok(reply) => last = Some(reply),
                Err(_) => {}
            }
            line.clear();
        }
    }
    let ended = helper.wait().map_err(|error| internal("failed to wait for a helper", &error))?;
    match last {
        Some(Reply::Ok(Done::Fetched(fetched))) => Ok(fetched),
        Some(Reply::Error(failure)) => Err(failure),
        _ => Err(internal("the helper of the submodule ended", &ended)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_resolved_as_git_does_and_never_lead_out() {
        for (parent, url, wanted) in [
            ("https://h/a/app.git", "../lib.git", Some("https://h/a/lib.git")),
            ("https://h/a/app.git/", "./lib", Some("https://h/a/app.git/lib")),
            ("https://h/a/app", "../../x/y", Some("https://h/x/y")),
            ("https://h/a", "../../x", None),
            ("https://h/a", "..", None),
            ("git@h:acme/app.git", "../lib.git", Some("git@h:acme/lib.git")),
            ("git@h:app.git", "../lib.git", Some("git@h:lib.git")),
            ("git@h:/srv/app.git", "../lib.git", Some("git@h:/srv/lib.git")),
            ("git@[::1]:a/b", "../c", Some("git@[::1]:a/c")),
            ("ssh://git@h:22/a/b", "../c", Some("ssh://git@h:22/a/c")),
            ("/srv/app.git", "../lib.git", Some("/srv/lib.git")),
            ("/srv/app.git", "file:///x", Some("file:///x")),
            ("https://h/a", "https://other/b", Some("https://other/b")),
            ("https://h/a", "git@other:b", Some("git@other:b")),
            ("https://h/a", "/etc", None),
            ("https://h/a", "file:///etc", None),
            ("git@h:a", "file://localhost/etc", None),
            ("https://h/a", "http://h/b", None),
            ("http://h/a", "http://h/b", Some("http://h/b")),
            ("https://h/a", "git://h/b", None),
            ("git@h:a", "git://h/b", None),
            ("git://h/a", "git://h/b", Some("git://h/b")),
            ("git://h/x/a", "../b", Some("git://h/x/b")),
            // CVE-2018-17456 and its kin.
            ("https://h/a", "-u./payload", None),
            ("https://h/a", "--upload-pack=x", None),
            ("https://h/a", "ssh://-oProxyCommand=x/y", None),
            ("https://h/a", "-oProxyCommand=x:y", None),
            ("https://h/a", "git@-oProxyCommand=x:y", None),
            ("https://h/a", "ext::sh -c x", None),
            ("https://h/a", "https://h/x\ny", None),
            ("https://h/a", "", None),
            ("https://h/a", "x", None),
        ] {
            assert_eq!(resolve(parent, url).ok().as_deref(), wanted, "{parent} {url}");
        }
    }

    #[test]
    fn credentials_go_to_the_place_that_they_are_for_and_no_other() {
        use super::super::git::{Secret, SshKey};
        let secret = |text: &str| Secret(text.to_owned());
        let key = || Credentials::Ssh {
            key: Some(SshKey { path: "/k".into(), text: secret("key") }),
            agent: Some("/a".into()),
            known_hosts: Some("/h".into()),
        };
        let hosts = || Credentials::Ssh { key: None, agent: None, known_hosts: Some("/h".into()) };
        let token = || Credentials::Token(secret("t"));
        let none = || Credentials::None;
        let of_url = || Credentials::Password { username: secret("u"), password: secret("p") };
        for (from, credentials, to, wanted) in [
            ("https://h/a", token(), "https://h/b", token()),
            ("https://h/a", token(), "https://h:443/b", token()),
            ("https://h/a", token(), "https://h:444/b", none()),
            ("https://h/a", token(), "https://h.evil/b", none()),
            ("https://h/a", token(), "https://evil@h/b", none()),
            ("https://h/a", token(), "git@h:b", none()),
            ("http://h/a", token(), "https://h/b", none()),
            ("https://u:p@h/a", none(), "https://h/b", of_url()),
            ("https://u:p@h/a", none(), "https://evil/b", none()),
            ("git@h:a", key(), "git@h:b", key()),
            ("git@h:a", key(), "ssh://git@h/b", key()),
            ("git@h:a", key(), "root@h:b", hosts()),
            ("git@h:a", key(), "git@evil:b", hosts()),
            ("git@h:a", key(), "ssh://git@h:2222/b", hosts()),
            ("git@h:a", key(), "https://h/b", none()),
            ("/srv/a", none(), "https://h/b", none()),
        ] {
            let request =
                serde_json::json!({"mirror": "/m", "url": from, "wanted": {"branch": "main"}, "depth": 1, "timeout_millis": 1000});
            let request = Fetch { credentials, ..serde_json::from_value(request).expect("a request") };
            let module = Module { path: "x".into(), url: to.into(), commit: Oid::from_bytes(&[1; 20]).expect("an id") };
            let asked = child(&request, &module, clock::instant()).expect("asked");
            assert_eq!(asked.credentials, wanted, "{from} {to}");
            assert_eq!((asked.level, asked.mirror), (1, mirror_of(Path::new("/m"), "x")));
        }
    }

    #[test]
    fn gitmodules_is_read_as_git_does_and_obeyed_in_nothing_else() {
        let text = "[include]\n\tpath = /etc/passwd\n[submodule \"a\"]\n path = lib/a ; where\n\turl = \"https://h/a#b\" # x\n\
            [Submodule \"../../x\"]\n\tPATH=b/\n\turl=../b\n\tupdate = !touch /tmp/pwned\n[submodule \"c\"]\n\tpath = c\n\
            [submodule \"d\"]\n\turl = one\n\turl = two\\\n/three\n\tpath = \"with \\\"quotes\\\" \"\n[core]\n\tpath = e\n\turl = e\n";
        let wanted = [("lib/a", "https://h/a#b"), ("b", "../b"), ("with \"quotes\" ", "two/three")];
        assert_eq!(read(text), wanted.into_iter().map(|(path, url)| (path.to_owned(), url.to_owned())).collect());
        // Sections of one name are one, as for git; what follows `]` counts; and a name is no other's beginning.
        let text = "[submodule \"a ]\\\"\"]\n path = a\n[submodule \"b\"] path = b\n[submodule \"a ]\\\"\"]\n url = one\n\
            [submodule \"b\"]url = two\n[submodule \"b\"]\n url = three\n[submodules \"c\"]\n path = c\n url = c\n";
        let wanted = [("a", "one"), ("b", "three")];
        assert_eq!(read(text), wanted.into_iter().map(|(path, url)| (path.to_owned(), url.to_owned())).collect());
        for odd in ["", "[", "[submodule", "path = x", "[submodule \"a\"]\npath\nurl", "=\n[submodule]\n=\n"] {
            assert_eq!(read(odd), BTreeMap::new(), "{odd}");
        }
    }
}
