//! Lines at the end of files that grow and are rotated (`FILE` becomes `FILE.1`, that `FILE.2`, ...): the last ones, and then each new one.
//!
//! Reads what is on disk: no agent is needed. A line counts when its end is written.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err::File;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{CreateFlags, WatchFlags};

const BLOCK: usize = 64 << 10;

/// Returns the last `n` lines of a file and its rotated ones that `wanted` takes, oldest first, and where to go on from.
///
/// # Errors
/// If a file that is there cannot be read.
pub(crate) fn last(path: &Path, n: usize, mut wanted: impl FnMut(&[u8]) -> bool) -> io::Result<(Vec<Vec<u8>>, Follow)> {
    let follow = Follow::at_end(path)?;
    let mut lines = Vec::new();
    let mut next = follow.open.as_ref().map(|open| Backwards::new(open, follow.at)).transpose()?;
    let mut number = 0;
    while lines.len() < n {
        match next.as_mut().map(Iterator::next) {
            Some(Some(line)) => {
                let line = line?;
                if wanted(&line) {
                    lines.push(line);
                }
            }
            // The file is at its beginning: on with the one before it.
            _ => {
                number += 1;
                let Some(file) = open(&rotated(path, number))? else { break };
                let end = file.metadata()?.len();
                next = Some(Backwards::new(&file, end)?);
            }
        }
    }
    lines.reverse();
    Ok((lines, follow))
}

fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which file it is, whatever it is called.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// Lines from the last to the first, without their ends.
struct Backwards {
    file: File,
    /// What is before this is not read yet.
    at: u64,
    /// Read and not given out.
    rest: Vec<u8>,
    done: bool,
}

impl Backwards {
    /// `end` is behind the end of a line, or of the file.
    fn new(file: &File, end: u64) -> io::Result<Self> {
        let mut lines = Self { file: file.try_clone()?, at: end, rest: Vec::new(), done: end == 0 };
        if !lines.done {
            lines.more()?;
            // The last line's own end begins no line.
            if lines.rest.last() == Some(&b'\n') {
                lines.rest.pop();
            }
        }
        Ok(lines)
    }

    fn more(&mut self) -> io::Result<()> {
        let size = self.at.min(BLOCK as u64);
        self.at -= size;
        let mut block = vec![0; usize::try_from(size).unwrap_or(BLOCK)];
        self.file.file().read_exact_at(&mut block, self.at)?;
        block.append(&mut self.rest);
        self.rest = block;
        Ok(())
    }
}

impl Iterator for Backwards {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        loop {
            if let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') {
                let line = self.rest.split_off(end + 1);
                self.rest.pop();
                return Some(Ok(line));
            }
            if self.at == 0 {
                self.done = true;
                return Some(Ok(std::mem::take(&mut self.rest)));
            }
            if let Err(error) = self.more() {
                self.done = true;
                return Some(Err(error));
            }
        }
    }
}

/// A file whose new lines are read as they come, also after it was rotated, removed, emptied or made anew.
#[derive(Debug)]
pub(crate) struct Follow {
    path: PathBuf,
    open: Option<File>,
    /// What is before this is read.
    at: u64,
    /// The beginning of a line whose end is not written yet.
    pending: Vec<u8>,
}

impl Follow {
    /// From the first line of the file, which need not be there yet.
    pub(crate) fn from_start(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None, at: 0, pending: Vec::new() }
    }

    /// Behind the last whole line.
    fn at_end(path: &Path) -> io::Result<Self> {
        let mut follow = Self::from_start(path);
        let Some(file) = open(path)? else { return Ok(follow) };
        let mut end = file.metadata()?.len();
        let mut block = vec![0; BLOCK];
        while end > 0 {
            let size = usize::try_from(end).map_or(BLOCK, |end| end.min(BLOCK));
            file.file().read_exact_at(&mut block[..size], end - size as u64)?;
            if let Some(newline) = block[..size].iter().rposition(|byte| *byte == b'\n') {
                end = end - size as u64 + newline as u64 + 1;
                break;
            }
            end -= size as u64;
        }
        follow.at = end;
        follow.open = Some(file);
        Ok(follow)
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives out every whole line that has come since the last time, oldest first.
    ///
    /// # Errors
    /// If a file that is there cannot be read.
    pub(crate) fn catch_up(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            // Looked at before reading: what is written to the old file after its rotation is not missed by the reading that follows.
            let now = open(&self.path)?;
            self.read(&mut each)?;
            let Some(now) = now else { return Ok(()) };
            match &self.open {
                Some(open) if identity(open)? == identity(&now)? => return Ok(()),
                Some(open) => {
                    let former = identity(open)?;
                    for missed in self.rotated_since(former)? {
                        self.begin(missed);
                        self.read(&mut each)?;
                    }
                }
                None => {}
            }
            self.begin(now);
        }
    }

    fn begin(&mut self, file: File) {
        self.open = Some(file);
        self.at = 0;
        // The end of a line does not come in another file.
        self.pending.clear();
    }

    /// Files that came and went between two looks: the rotated ones newer than the one that was read, oldest first.
    fn rotated_since(&self, former: (u64, u64)) -> io::Result<Vec<File>> {
        let mut newer = Vec::new();
        for number in 1.. {
            match open(&rotated(&self.path, number))? {
                Some(file) if identity(&file)? == former => {
                    newer.reverse();
                    return Ok(newer);
                }
                Some(file) => newer.push(file),
                // The former is not among them: it was removed, not rotated, and nobody knows which ones are newer.
                None => break,
            }
        }
        Ok(Vec::new())
    }

    fn read(&mut self, each: &mut impl FnMut(&[u8])) -> io::Result<()> {
        let Some(file) = &self.open else { return Ok(()) };
        if file.metadata()?.len() < self.at {
            self.at = 0;
            self.pending.clear();
        }
        let mut block = vec![0; BLOCK];
        loop {
            let n = match file.file().read_at(&mut block, self.at) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            self.at += n as u64;
            let mut rest = &block[..n];
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                if self.pending.is_empty() {
                    each(&rest[..end]);
                } else {
                    self.pending.extend_from_slice(&rest[..end]);
                    each(&self.pending);
                    self.pending.clear();
                }
                rest = &rest[end + 1..];
            }
            self.pending.extend_from_slice(rest);
        }
    }
}

/// Wakes when something changes in directories; inotify(7), or every 200 ms where there is none to be had.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: Option<OwnedFd>,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Something may have changed.
    Look,
    /// Who read our output went away.
    ReaderGone,
}

impl Watch {
    /// Watches the directories for anything that is written, made, moved or removed in them.
    pub(crate) fn new<'a>(dirs: impl IntoIterator<Item = &'a Path>) -> Self {
        let watch = || {
            let inotify = rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            for dir in dirs {
                let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
                rustix::fs::inotify::add_watch(&inotify, dir, what)?;
            }
            rustix::io::Result::Ok(inotify)
        };
        // Out of watches, or a directory that is not there yet: polling does it too.
        Self { inotify: watch().ok() }
    }

    /// Waits for a change since the last wait (or since [`Watch::new`]).
    ///
    /// # Errors
    /// If poll(2) fails.
    pub(crate) fn wait(&self) -> io::Result<Woken> {
        const POLL_EVERY: Duration = Duration::from_millis(200);
        // A network file system tells of no change made by others.
        const LOOK_ANYWAY: Duration = Duration::from_secs(2);
        let stdout = io::stdout();
        let mut waited_for = vec![PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty())];
        waited_for.extend(self.inotify.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let longest = if self.inotify.is_some() { LOOK_ANYWAY } else { POLL_EVERY };
        let longest = Timespec { tv_sec: longest.as_secs().cast_signed(), tv_nsec: longest.subsec_nanos().into() };
        match rustix::event::poll(&mut waited_for, Some(&longest)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if waited_for[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return Ok(Woken::ReaderGone);
        }
        if let Some(inotify) = &self.inotify {
            let mut news = [0_u8; 4096];
            while rustix::io::read(inotify, &mut news).is_ok_and(|n| n > 0) {}
        }
        Ok(Woken::Look)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().expect("a directory") }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("a.0.log")
        }

        fn append(&self, text: &str) {
            let mut file = fs_err::OpenOptions::new().append(true).create(true).open(self.path()).expect("a file");
            file.write_all(text.as_bytes()).expect("room");
        }

        fn rotate(&self) {
            for number in (1..9).rev() {
                if rotated(&self.path(), number).exists() {
                    fs_err::rename(rotated(&self.path(), number), rotated(&self.path(), number + 1)).expect("moved");
                }
            }
            fs_err::rename(self.path(), rotated(&self.path(), 1)).expect("moved");
        }

        fn last(&self, n: usize) -> Vec<String> {
            let (lines, _) = last(&self.path(), n, |_| true).expect("readable");
            lines.into_iter().map(|line| String::from_utf8(line).expect("text")).collect()
        }
    }

    fn news(follow: &mut Follow) -> Vec<String> {
        let mut lines = Vec::new();
        follow.catch_up(|line| lines.push(String::from_utf8(line.to_vec()).expect("text"))).expect("readable");
        lines
    }

    #[test]
    fn the_last_lines_reach_back_into_rotated_files() {
        let files = Files::new();
        assert_eq!(files.last(3), [""; 0], "no file yet");
        files.append("1\n2\n");
        files.rotate();
        files.append("3\n");
        files.rotate();
        files.append("4\n\n6");
        assert_eq!(files.last(0), [""; 0]);
        assert_eq!(files.last(1), [""], "an empty line is a line, one without an end is none yet");
        assert_eq!(files.last(3), ["3", "4", ""]);
        assert_eq!(files.last(99), ["1", "2", "3", "4", ""]);
    }

    #[test]
    fn lines_longer_than_a_block_and_blocks_full_of_lines_are_read_whole() {
        let files = Files::new();
        let long = "x".repeat(3 * BLOCK + 7);
        files.append(&format!("first\n{long}\n"));
        for n in 0..20_000 {
            files.append(&format!("{n}\n"));
        }
        let lines = files.last(20_002);
        assert_eq!((lines[0].as_str(), lines[1].len(), lines[2].as_str(), lines[20_001].as_str()), ("first", long.len(), "0", "19999"));
    }

    #[test]
    fn a_filter_counts_only_what_it_takes() {
        let files = Files::new();
        files.append("a\nb\na\nb\nb\n");
        let (lines, _) = last(&files.path(), 2, |line| line == b"a").expect("readable");
        assert_eq!(lines, [b"a", b"a"]);
    }

    #[test]
    fn following_begins_behind_the_last_line_that_was_given() {
        let files = Files::new();
        files.append("1\n2\nhal");
        let (lines, mut follow) = last(&files.path(), 1, |_| true).expect("readable");
        assert_eq!(lines, [b"2"]);
        assert_eq!(news(&mut follow), [""; 0]);
        files.append("f\n");
        assert_eq!(news(&mut follow), ["half"]);
        assert_eq!(news(&mut follow), [""; 0]);
    }

    #[test]
    fn following_goes_on_through_rotation_without_a_gap_or_a_repetition() {
        let files = Files::new();
        files.append("1\n");
        let (_, mut follow) = last(&files.path(), 9, |_| true).expect("readable");
        files.append("2\n");
        files.rotate();
        assert_eq!(news(&mut follow), ["2"], "the old file, while there is no new one");
        files.append("3\n");
        assert_eq!(news(&mut follow), ["3"]);
        files.append("4\n");
        files.rotate();
        files.append("5\n");
        files.rotate();
        files.append("6\n");
        files.rotate();
        files.append("7\n");
        assert_eq!(news(&mut follow), ["4", "5", "6", "7"], "three rotations between two looks");
    }

    #[test]
    fn a_file_removed_and_made_anew_is_read_from_its_start_and_no_older_one() {
        let files = Files::new();
        files.append("old\n");
        files.rotate();
        files.append("1\n");
        let (_, mut follow) = last(&files.path(), 9, |_| true).expect("readable");
        fs_err::remove_file(files.path()).expect("there");
        assert_eq!(news(&mut follow), [""; 0]);
        files.append("2\n");
        assert_eq!(news(&mut follow), ["2"]);
        fs_err::write(files.path(), "").expect("emptied");
        assert_eq!(news(&mut follow), [""; 0]);
        files.append("3\n");
        assert_eq!(news(&mut follow), ["3"]);
    }

    #[test]
    fn a_file_that_comes_later_is_read_from_its_start() {
        let files = Files::new();
        let (_, mut follow) = last(&files.path(), 9, |_| true).expect("no file is no error");
        files.append("1\n");
        assert_eq!(news(&mut follow), ["1"]);
    }

    #[test]
    fn a_watch_wakes_for_a_change_made_before_the_wait() {
        let files = Files::new();
        let watch = Watch::new([files.dir.path()]);
        assert!(watch.inotify.is_some());
        files.append("1\n");
        let began = std::time::Instant::now();
        assert_eq!(watch.wait().expect("poll"), Woken::Look);
        assert!(began.elapsed() < Duration::from_secs(1), "woken, not tired of waiting");
    }

    #[test]
    fn a_watch_on_what_is_not_there_polls() {
        assert!(Watch::new([Path::new("/nowhere")]).inotify.is_none());
    }
}
