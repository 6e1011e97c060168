//! `selfstart logs`: the output of workers, read from their files; no agent is needed.
//!
//! A file's line is `DATE out|err[+] TEXT`, in a file that slots share `DATE out|err[+] POOL/SLOT TEXT`; `+`: the text goes on in the
//! next such line.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use selfstart_core::command::Target;
use selfstart_core::date::Timestamp;
use selfstart_core::id::SlotId;

use super::ask::{note, warn};
use super::events::{STOPPED, StopWatch, allowed};
use super::exit::Exit;
use super::failure::{Failure, Stop, printing};
use super::look::{Look, Style};
use super::site::Site;
use super::tail::{self, Follow, Watch, Woken};

/// Flags of `logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// Whose output; none: every worker's
    #[arg(value_name = "POOL[/SLOT]")]
    target: Option<Target>,
    /// Go on as lines come
    #[arg(short, long)]
    follow: bool,
    /// How many lines from the past
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    lines: usize,
}

/// One file, and which of its lines are wanted.
struct Source {
    owner: Owner,
    follow: Follow,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// The file has only this slot's lines.
    Slot(SlotId),
    /// Each line says whose it is.
    Shared(Option<Vec<Target>>),
}

/// A line with what it is sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// As in the file; dates of one form sort as text. Empty: not a line of ours, it stays behind the one before it.
    date: String,
    /// `out`, `err`, with `+` if it goes on.
    mark: String,
    /// `POOL/SLOT`.
    label: String,
    text: Vec<u8>,
}

/// Prints the last lines, and with `-f` each new one.
pub(crate) fn logs(site: &Site, args: &LogsArgs) -> Result<Exit, Stop> {
    let look = Look::of_stdout();
    let targets = args.target.as_ref().map(|target| meant(site, target));
    let targets = targets.as_deref();
    // Before the first look at the files, so that no change between that and the first wait is missed.
    let dirs = site.loaded.shared_logs.iter().filter_map(|(_, path)| path.parent());
    let own = site.logs();
    let watch = args.follow.then(|| Watch::new([own.as_path()].into_iter().chain(dirs)));
    let mut node = args.follow.then(|| StopWatch::new(site)).transpose()?;
    let mut sources = Vec::new();
    let mut lines = Vec::new();
    for (path, owner) in files(site, targets)? {
        let (past, follow) = tail::last(&path, args.lines, |line| read(line, &owner).is_some()).map_err(|error| reading(&error))?;
        lines.push(past.iter().filter_map(|line| read(line, &owner)).collect::<Vec<_>>());
        sources.push(Source { owner, follow });
    }
    if sources.is_empty() {
        let nothing = nothing(site, args.target.as_ref())?;
        if watch.is_none() {
            return Err(nothing.into());
        }
        warn(&format!("{}; waiting for some", nothing.what));
    }
    let merged = merge(lines);
    print_lines(&merged[merged.len().saturating_sub(args.lines)..], one_slot(args.target.as_ref()), &look)?;
    let Some(watch) = watch else { return Ok(Exit::Done) };
    loop {
        match watch.wait() {
            Ok(Woken::Look) => {}
            Ok(Woken::ReaderGone) => return Err(Stop::PipeClosed),
            Err(error) => return Err(Failure::because(Exit::Failed, "failed to wait for output", &error).into()),
        }
        // Before the last words are read: they are written before the node says that it has stopped.
        let stopped = node.as_mut().map(StopWatch::stopped).transpose()?.unwrap_or(false);
        for (path, owner) in files(site, targets)? {
            if !sources.iter().any(|source| source.follow.path() == path) {
                sources.push(Source { owner, follow: Follow::from_start(&path) });
            }
        }
        let mut lines = Vec::new();
        for Source { owner, follow } in &mut sources {
            let mut news = Vec::new();
            follow.catch_up(|line| news.extend(read(line, owner))).map_err(|error| reading(&error))?;
            lines.push(news);
        }
        print_lines(&merge(lines), one_slot(args.target.as_ref()), &look)?;
        if stopped {
            note(STOPPED);
            return Ok(Exit::Done);
        }
    }
}

fn reading(error: &std::io::Error) -> Failure {
    allowed(Failure::because(Exit::Failed, "failed to read the output of workers", error), error)
}

fn one_slot(target: Option<&Target>) -> bool {
    matches!(target, Some(Target::Slot(_)))
}

/// Returns the files in which there are lines of the target, in the order of pools and slots.
fn files(site: &Site, targets: Option<&[Target]>) -> Result<Vec<(PathBuf, Owner)>, Failure> {
    let mut found: Vec<(SlotId, PathBuf)> = own_files(&site.logs())?.into_iter().filter(|(slot, _)| wants(targets, slot)).collect();
    found.sort();
    let mut files: Vec<_> = found.into_iter().map(|(slot, path)| (path, Owner::Slot(slot))).collect();
    let of_pool = |pool: &str| {
        targets.is_none_or(|targets| {
            targets.iter().any(|target| match target {
                Target::Name(name) => name.as_str() == pool,
                Target::Slot(slot) => slot.pool.as_str() == pool,
            })
        })
    };
    for (owner, path) in &site.loaded.shared_logs {
        // Pools may share a file, too.
        if of_pool(owner) && path.exists() && !files.iter().any(|(known, _)| known == path) {
            files.push((path.clone(), Owner::Shared(targets.map(<[Target]>::to_vec))));
        }
    }
    Ok(files)
}

/// Returns the `POOL.SLOT.log` of a directory; one that is not there has none.
fn own_files(dir: &Path) -> Result<Vec<(SlotId, PathBuf)>, Failure> {
    let entries = match fs_err::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(reading(&error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| reading(&error))?.path();
        // `build.RELEASE.log` is none: its middle is no number.
        let slot = path.file_name().and_then(|name| {
            let (pool, slot) = name.to_str()?.strip_suffix(".log")?.rsplit_once('.')?;
            format!("{pool}/{slot}").parse::<SlotId>().ok()
        });
        files.extend(slot.map(|slot| (slot, path)));
    }
    Ok(files)
}

fn wants(targets: Option<&[Target]>, slot: &SlotId) -> bool {
    let is = |target: &Target| match target {
        Target::Name(pool) => *pool == slot.pool,
        Target::Slot(wanted) => wanted == slot,
    };
    targets.is_none_or(|targets| targets.iter().any(is))
}

/// Returns the pools of a group; a pool or slot is itself.
fn meant(site: &Site, target: &Target) -> Vec<Target> {
    if let Target::Name(name) = target
        && site.loaded.pools.iter().all(|pool| pool.name != *name)
    {
        let of_group = site.loaded.pools.iter().filter(|pool| pool.group.as_ref() == Some(name));
        let pools: Vec<Target> = of_group.map(|pool| Target::Name(pool.name.clone())).collect();
        if !pools.is_empty() {
            return pools;
        }
    }
    vec![target.clone()]
}

/// The failure of there being no output, which names what there is.
fn nothing(site: &Site, target: Option<&Target>) -> Result<Failure, Failure> {
    if let Some(target) = target {
        site.knows(target)?;
    }
    let dir = site.logs();
    let whose = target.map_or_else(|| "any worker".to_owned(), |target| format!("`{target}`"));
    let failure = Failure::new(Exit::Failed, format!("there is no output of {whose} in `{}`", dir.display()));
    let mut pools: Vec<String> = own_files(&dir)?.into_iter().map(|(slot, _)| slot.pool.to_string()).collect();
    pools.extend(site.loaded.shared_logs.iter().map(|(pool, _)| pool.clone()));
    pools.sort();
    pools.dedup();
    if pools.is_empty() {
        return Ok(failure.hint("workers have said nothing yet; `selfstart status` shows them"));
    }
    Ok(failure.hint(format!("there is output of {}", pools.iter().map(|pool| format!("`{pool}`")).collect::<Vec<_>>().join(", "))))
}

/// Reads one line of a file; `None`: it is not wanted.
fn read(line: &[u8], owner: &Owner) -> Option<Line> {
    let word = |text: &'_ [u8]| text.iter().position(|byte| *byte == b' ');
    let parts = word(line).and_then(|end| {
        let (date, rest) = (std::str::from_utf8(&line[..end]).ok()?, &line[end + 1..]);
        date.parse::<Timestamp>().ok()?;
        let end = word(rest)?;
        let (mark, text) = (std::str::from_utf8(&rest[..end]).ok()?, &rest[end + 1..]);
        matches!(mark, "out" | "err" | "out+" | "err+").then_some((date, mark, text))
    });
    match (owner, parts) {
        (Owner::Slot(slot), Some((date, mark, text))) => {
            Some(Line { date: date.into(), mark: mark.into(), label: slot.to_string(), text: text.to_vec() })
        }
        // Somebody else wrote it; it is shown rather than hidden.
        (Owner::Slot(slot), None) => Some(Line { date: String::new(), mark: "out".into(), label: slot.to_string(), text: line.to_vec() }),
        (Owner::Shared(target), Some((date, mark, text))) => {
            let end = word(text)?;
            let label = std::str::from_utf8(&text[..end]).ok()?;
            let slot: SlotId = label.parse().ok()?;
            wants(target.as_deref(), &slot).then(|| Line {
                date: date.into(),
                mark: mark.into(),
                label: label.into(),
                text: text[end + 1..].to_vec(),
            })
        }
        (Owner::Shared(_), None) => None,
    }
}

/// Puts lines of several files in the order of their dates; those of one file stay in theirs.
fn merge(files: Vec<Vec<Line>>) -> Vec<Line> {
    let mut keyed = Vec::new();
    for lines in files {
        let mut latest = String::new();
        for line in lines {
            // A clock that went back must not turn round the order within a file.
            if line.date > latest {
                latest.clone_from(&line.date);
            }
            keyed.push((latest.clone(), line));
        }
    }
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    keyed.into_iter().map(|(_, line)| line).collect()
}

fn print_lines(lines: &[Line], one_slot: bool, look: &Look) -> Result<(), Stop> {
    let mut text = Vec::new();
    for line in lines {
        render(line, one_slot, look, &mut text);
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&text).and_then(|()| stdout.flush()).map_err(printing)
}

/// A terminal gets local time; a pipe the line as it is in a shared file. The text is the worker's own, colours and all.
fn render(line: &Line, one_slot: bool, look: &Look, to: &mut Vec<u8>) {
    if look.terminal {
        if let Ok(date) = line.date.parse::<Timestamp>() {
            to.extend_from_slice(look.paint.on(Style::Faint, &look.clock(date)).as_bytes());
            to.push(b' ');
        }
        let style = if line.mark.starts_with("err") { Style::Bad } else { Style::Good };
        let label = if one_slot { line.mark.trim_end_matches('+') } else { line.label.as_str() };
        to.extend_from_slice(look.paint.on(style, label).as_bytes());
        to.push(b' ');
    } else if !line.date.is_empty() {
        to.extend_from_slice(format!("{} {} ", line.date, line.mark).as_bytes());
        if !one_slot {
            to.extend_from_slice(format!("{} ", line.label).as_bytes());
        }
    }
    to.extend_from_slice(&line.text);
    to.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::look::{Paint, tests::reader};

    fn slot(text: &str) -> Owner {
        Owner::Slot(text.parse().expect("a slot"))
    }

    fn shown(lines: &[Line], one_slot: bool, look: &Look) -> String {
        let mut text = Vec::new();
        for line in lines {
            render(line, one_slot, look, &mut text);
        }
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn lines_of_several_slots_are_merged_by_their_dates() {
        let read_all = |owner: Owner, lines: &[&str]| lines.iter().filter_map(|line| read(line.as_bytes(), &owner)).collect::<Vec<_>>();
        let merged = merge(vec![
            read_all(slot("a/0"), &["2026-11-22T10:15:30.000Z out one", "not ours", "2026-11-22T10:15:32.000Z err+ three"]),
            read_all(slot("a/1"), &["2026-11-22T10:15:31.000Z out two", "2026-11-22T10:15:29.000Z out the clock went back"]),
        ]);
        insta::assert_snapshot!(format!(
            "{}--\n{}",
            shown(&merged, false, &reader(None, Paint::Plain)),
            shown(&merged, false, &reader(Some(80), Paint::Plain))
        ));
    }

    #[test]
    fn one_slot_s_lines_are_printed_as_they_are_in_its_file() {
        let line = "2026-11-22T10:15:30.000Z err  text ";
        let read = read(line.as_bytes(), &slot("a/0")).expect("a line");
        assert_eq!(shown(&[read], true, &reader(None, Paint::Plain)), format!("{line}\n"));
    }

    #[test]
    fn a_shared_file_s_lines_are_chosen_by_their_labels() {
        let wanted = |line: &str, target: Option<&str>| {
            let owner = Owner::Shared(target.map(|target| vec![target.parse().expect("a target")]));
            read(line.as_bytes(), &owner).is_some()
        };
        let line = "2026-11-22T10:15:30.000Z out a/1 text";
        assert!(wanted(line, None) && wanted(line, Some("a")) && wanted(line, Some("a/1")));
        assert!(!wanted(line, Some("a/0")) && !wanted(line, Some("b")));
        assert!(!wanted("2026-11-22T10:15:30.000Z out nobody text", None));
        assert!(!wanted("text", None));
    }

    #[test]
    fn only_a_slot_s_own_files_are_found() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["a.0.log", "a.10.log", "b.0.log", "a.0.log.1", "build.20261122T101530Z-1a2b3c4.log", "x.log", "a.0", ".0.log"] {
            fs_err::write(dir.path().join(name), "").expect("a file");
        }
        let mut found: Vec<_> = own_files(dir.path()).expect("readable").into_iter().map(|(slot, _)| slot.to_string()).collect();
        found.sort();
        assert_eq!(found, ["a/0", "a/10", "b/0"]);
        assert_eq!(own_files(&dir.path().join("none")).expect("no directory, no files"), []);
    }
}
