//! What becomes of the text of /etc/rc.local. Pure: text in, text out.
//!
//! One line goes in before the command that ends the script, and is known again by its last words. `uninstall` takes out that line (and
//! the two that `install` may have put on top), so that what an administrator has changed meanwhile stays: a copy of the old file would
//! bring back the old text.

use std::ops::Range;

use super::shell;

/// Where selfstart logs to when rc.local starts it. Appended to, so that a logrotate with `copytruncate` can cut it.
pub(crate) const LOG: &str = "/var/log/selfstart.log";

/// The last words of our line.
const MARK: &str = "# by `selfstart install --rc-local`; `selfstart uninstall` takes it out";

/// On top of a file that had no `#!`: without it only a shell could start the file, and systemd could not (ENOEXEC).
const SHEBANG: &str = "#!/bin/sh\n# The line above is by `selfstart install --rc-local`.\n";

/// A file of our own, without our line.
const OWN: &str = "#!/bin/sh\n# Made by `selfstart install --rc-local`; run at the end of the boot.\nexit 0\n";

/// Returns the line, without its end.
///
/// What a shell at boot has, and what the line does about it: no session that outlives the boot (`setsid`; a hang-up of the console reaches
/// nobody), a PATH of the init's making (ours is set, the program is named in full), stdin of nobody's (closed), a script that wants to go on
/// (`&`), a disk that may be read-only (then what rc.local has as its output is used). Nobody would start a keeper that was killed: the loop
/// does, a second later, and the workers are adopted. It ends after a stop (0), and on a wrong configuration (78), as the unit does.
pub(crate) fn line(binary: &str) -> String {
    format!(
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin setsid sh -c \
         '( : >>\"$1\" ) 2>/dev/null && exec >>\"$1\" 2>&1; until \"$0\" run; do [ $? != 78 ] || exit; sleep 1; done' \
         {binary} {LOG} </dev/null & {MARK}"
    )
}

/// What to do about the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Installed {
    /// The line is there, and is reached.
    Already,
    /// Write this.
    Text(Vec<u8>),
}

/// What an administrator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// It ends with another code than 0.
    EndsInFailure(String),
    /// An `exit` in a condition stands before.
    MayEndEarly,
}

/// Why a file is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It has NUL bytes.
    #[error("it is no text")]
    NotText,
    /// Another program than a shell runs it.
    #[error("`{0}` runs it, which is no shell")]
    NoShell(String),
    /// Its first line, or the one that ends it, ends with CR LF.
    #[error("its lines end as on DOS (CR LF): the kernel does not find its interpreter, and a shell not its commands")]
    DosLines,
    /// The scanner is lost.
    #[error("where it ends cannot be told: what line {0} opens or closes has no other end")]
    Unclear(usize),
}

impl Refusal {
    /// What to do next.
    pub(crate) fn hint(&self, line: &str) -> String {
        match self {
            Self::DosLines => "convert it: sed -i 's/\\r$//' /etc/rc.local".to_owned(),
            Self::NotText | Self::NoShell(_) => format!("have it run this in a shell:\n{line}"),
            Self::Unclear(_) => format!("`sh -n /etc/rc.local` may say more; or put this line in yourself:\n{line}"),
        }
    }
}

/// Decides what becomes of the file; `None`: there is none. Done twice, the second time is [`Installed::Already`].
///
/// # Errors
/// Why the file is left alone.
pub(crate) fn install(text: Option<&[u8]>, line: &str) -> Result<(Installed, Vec<Note>), Refusal> {
    let Some(text) = text else {
        return Ok((Installed::Text(with_line(OWN.as_bytes(), OWN.find("exit 0"), line)), Vec::new()));
    };
    if text.contains(&0) {
        return Err(Refusal::NotText);
    }
    let ours = our_lines(text);
    let bare = without(text, &ours);
    let shebang = bare.starts_with(b"#!");
    if shebang {
        judge(bare.split(|byte| *byte == b'\n').next().unwrap_or_default())?;
    }
    let script = match shell::read(&bare) {
        Ok(script) => script,
        // It stands where somebody put it.
        Err(_) if ours.len() == 1 && &text[ours[0].clone()] == line.as_bytes() => return Ok((Installed::Already, Vec::new())),
        Err(unclear) => return Err(Refusal::Unclear(unclear.line)),
    };
    let mut notes = Vec::new();
    if script.may_end_early {
        notes.push(Note::MayEndEarly);
    }
    if let Some(end) = &script.end {
        if end.code.ends_with(b"\r") {
            return Err(Refusal::DosLines);
        }
        if end.code.iter().all(u8::is_ascii_digit) && end.code.iter().any(|digit| *digit != b'0') {
            notes.push(Note::EndsInFailure(String::from_utf8_lossy(&end.code).into_owned()));
        }
    }
    let at = script.end.map(|end| end.line_at);
    let reached = |ours: &Range<usize>| at.is_none_or(|at| ours.start <= at);
    if ours.len() == 1 && trimmed(&text[ours[0].clone()]) == line.as_bytes() && reached(&ours[0]) && shebang {
        return Ok((Installed::Already, notes));
    }
    let mut made = if shebang { Vec::new() } else { SHEBANG.as_bytes().to_vec() };
    made.extend(with_line(&bare, at, line));
    Ok((Installed::Text(made), notes))
}

/// What to do about the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Uninstalled {
    /// The line is not there.
    Already,
    /// The file is ours alone: remove it.
    Remove,
    /// Write this.
    Text(Vec<u8>),
}

/// Decides what becomes of a file that `install` may have changed.
pub(crate) fn uninstall(text: &[u8]) -> Uninstalled {
    let ours = our_lines(text);
    if ours.is_empty() {
        return Uninstalled::Already;
    }
    let bare = without(text, &ours);
    if bare == OWN.as_bytes() {
        return Uninstalled::Remove;
    }
    Uninstalled::Text(bare.strip_prefix(SHEBANG.as_bytes()).map_or(bare.clone(), <[u8]>::to_vec))
}

/// Puts the line in where a line begins, or at the end.
fn with_line(bare: &[u8], at: Option<usize>, line: &str) -> Vec<u8> {
    let line = line.as_bytes();
    match at {
        Some(at) => [&bare[..at], line, b"\n", &bare[at..]].concat(),
        None if bare.is_empty() || bare.ends_with(b"\n") => [bare, line, b"\n"].concat(),
        // Without a newline at its own end: so `without` knows that there was none.
        None => [bare, b"\n", line].concat(),
    }
}

/// The lines that are ours, without their ends. One that somebody made a comment is not.
fn our_lines(text: &[u8]) -> Vec<Range<usize>> {
    let mut ours = Vec::new();
    let mut at = 0;
    for line in text.split(|byte| *byte == b'\n') {
        let words = trimmed(line);
        if words.ends_with(MARK.as_bytes()) && !words.starts_with(b"#") {
            ours.push(at..at + line.len());
        }
        at += line.len() + 1;
    }
    ours
}

/// Takes lines out, each with its newline; the last one, when it has none, with the one before it.
fn without(text: &[u8], lines: &[Range<usize>]) -> Vec<u8> {
    let mut bare = Vec::with_capacity(text.len());
    let mut at = 0;
    for line in lines {
        bare.extend_from_slice(&text[at..line.start]);
        at = (line.end + 1).min(text.len());
        if line.end == text.len() && bare.last() == Some(&b'\n') {
            bare.pop();
        }
    }
    bare.extend_from_slice(&text[at..]);
    bare
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.trim_ascii()
}

/// Judges the first line of a script.
fn judge(line: &[u8]) -> Result<(), Refusal> {
    if line.ends_with(b"\r") {
        return Err(Refusal::DosLines);
    }
    let text = String::from_utf8_lossy(&line[2..]).into_owned();
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let mut program = words.next().map(name).unwrap_or_default();
    if program == "env" || program == "busybox" {
        // `env -S sh -e`, `env FOO=1 sh`.
        program = words.find(|word| !word.starts_with('-') && !word.contains('=')).map(name).unwrap_or_default();
    }
    match program.as_str() {
        "sh" | "bash" | "dash" | "ash" | "ksh" | "ksh93" | "mksh" | "lksh" | "oksh" | "posh" | "yash" | "zsh" => Ok(()),
        _ => Err(Refusal::NoShell(text.trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ours() -> String {
        line("/usr/bin/selfstart")
    }

    /// What `install` makes of it, our line as `LINE`.
    fn told(text: &str) -> String {
        match install(Some(text.as_bytes()), &ours()) {
            Ok((Installed::Already, _)) => "already".to_owned(),
            Ok((Installed::Text(text), notes)) => {
                let notes: Vec<String> = notes.iter().map(|note| format!(" {note:?}")).collect();
                String::from_utf8(text).expect("text").replace(&ours(), "LINE") + &notes.concat()
            }
            Err(refusal) => format!("refused: {refusal}"),
        }
    }

    #[test]
    fn the_line_goes_before_what_ends_the_script() {
        for (text, wanted) in [
            ("#!/bin/sh -e\na\nexit 0\n", "#!/bin/sh -e\na\nLINE\nexit 0\n"),
            ("#!/bin/sh\nexit 0", "#!/bin/sh\nLINE\nexit 0"),
            ("#!/bin/sh\na\n", "#!/bin/sh\na\nLINE\n"),
            ("#!/bin/sh\na", "#!/bin/sh\na\nLINE"),
            ("#!/bin/sh", "#!/bin/sh\nLINE"),
            ("#!/bin/sh\na\nexit 0\nnotes: don't (\n", "#!/bin/sh\na\nLINE\nexit 0\nnotes: don't (\n"),
            ("#!/bin/sh\na\n  exit 0 # x\n", "#!/bin/sh\na\nLINE\n  exit 0 # x\n"),
            ("#!/bin/sh\na; \\\n exit 0\n", "#!/bin/sh\nLINE\na; \\\n exit 0\n"),
            ("#!/bin/sh\nexit 0\nb\nexit 0\n", "#!/bin/sh\nLINE\nexit 0\nb\nexit 0\n"),
            ("#!/bin/sh\n# exit 0\n", "#!/bin/sh\n# exit 0\nLINE\n"),
            ("#!/bin/sh\nif a; then exit 0; fi\n", "#!/bin/sh\nif a; then exit 0; fi\nLINE\n MayEndEarly"),
            ("#!/bin/sh\ncat <<E\nexit 0\nE\nb\n", "#!/bin/sh\ncat <<E\nexit 0\nE\nb\nLINE\n"),
            ("#!/bin/sh\ncat <<E\nexit 0\nE", "#!/bin/sh\ncat <<E\nexit 0\nE\nLINE"),
            ("#!/bin/sh\ncat <<E\nexit 0\n", "refused: where it ends cannot be told: what line 2 opens or closes has no other end"),
            ("#!/bin/sh\nexit 1\n", "#!/bin/sh\nLINE\nexit 1\n EndsInFailure(\"1\")"),
            ("#!/bin/sh\nexit\n", "#!/bin/sh\nLINE\nexit\n"),
            ("#!/bin/sh\necho hi\r\nexit 0\n", "#!/bin/sh\necho hi\r\nLINE\nexit 0\n"),
            ("", "#!/bin/sh\n# The line above is by `selfstart install --rc-local`.\nLINE\n"),
            ("a\nexit 0\n", "#!/bin/sh\n# The line above is by `selfstart install --rc-local`.\na\nLINE\nexit 0\n"),
            ("#! /usr/bin/env -S bash -e\nexit 0\n", "#! /usr/bin/env -S bash -e\nLINE\nexit 0\n"),
            ("#!/bin/busybox ash\n", "#!/bin/busybox ash\nLINE\n"),
            ("#!/usr/bin/python3\n", "refused: `/usr/bin/python3` runs it, which is no shell"),
            ("#!/usr/bin/env perl\n", "refused: `/usr/bin/env perl` runs it, which is no shell"),
            ("#!/bin/csh -f\n", "refused: `/bin/csh -f` runs it, which is no shell"),
            ("#!\n", "refused: `` runs it, which is no shell"),
            ("\x7fELF\0", "refused: it is no text"),
        ] {
            assert_eq!(told(text), wanted, "{text:?}");
        }
        assert!(told("#!/bin/sh\r\nexit 0\r\n").contains("CR LF"));
        assert!(told("#!/bin/sh\nexit 0\r\n").contains("CR LF"));
    }

    #[test]
    fn a_line_of_an_older_version_is_renewed_and_one_that_is_not_reached_is_moved() {
        let other = line("/opt/selfstart");
        assert_eq!(told(&format!("#!/bin/sh\n{other}\nexit 0\n")), "#!/bin/sh\nLINE\nexit 0\n");
        assert_eq!(told(&format!("#!/bin/sh\nexit 0\n{}\n", ours())), "#!/bin/sh\nLINE\nexit 0\n");
        assert_eq!(told(&format!("#!/bin/sh\n{0}\na\n{0}\n", ours())), "#!/bin/sh\na\nLINE\n");
        // Where an administrator put it, it stays while it is reached; one that was made a comment is not ours any more.
        assert_eq!(told(&format!("#!/bin/sh\n  {}\nmount /x\nexit 0\n", ours())), "already");
        assert_eq!(told(&format!("#!/bin/sh\n#{}\nexit 0\n", ours())), "#!/bin/sh\n#LINE\nLINE\nexit 0\n");
    }

    #[test]
    fn what_an_administrator_changed_meanwhile_stays() {
        let Ok((Installed::Text(text), _)) = install(Some(b"a\nexit 0"), &ours()) else { panic!("installed") };
        let edited = String::from_utf8(text).expect("text").replace("a\n", "b\nc\n").replace("exit 0", "exit 0\n");
        assert_eq!(uninstall(edited.as_bytes()), Uninstalled::Text(b"b\nc\nexit 0\n".to_vec()));
        let Ok((Installed::Text(own), _)) = install(None, &ours()) else { panic!("installed") };
        assert_eq!(uninstall(&own), Uninstalled::Remove);
        let edited = String::from_utf8(own).expect("text").replace("exit 0", "mount /x\nexit 0");
        assert_eq!(uninstall(edited.as_bytes()), Uninstalled::Text(OWN.replace("exit 0", "mount /x\nexit 0").into_bytes()));
    }

    /// Pieces of which scripts are made, and other bytes.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            4 => prop::sample::select(vec![
                "exit 0", "exit", "exit 1", "\n", "\n", "\n", "\r\n", ";", " && ", "if ", "then ", "fi", "{ ", "}", "(", ")", "case a in", "esac",
                "a", "echo hi", "#", "'", "\"", "$(", "`", "<<E", "\nE\n", "\\", "\\\n", "exec b", "do ", "done", "while ", "f() ", "|", "& ",
                "#!/bin/sh\n", "\n# The line above is by `selfstart install --rc-local`.\n",
            ]).prop_map(|word| word.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ];
        (any::<bool>(), prop::collection::vec(word, 0..25)).prop_map(|(shebang, words)| {
            let mut text = if shebang { b"#!/bin/sh\n".to_vec() } else { Vec::new() };
            text.extend(words.concat());
            text
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn uninstall_undoes_install_for_any_bytes_and_a_second_install_changes_nothing(text in texts()) {
            if let Ok((made, notes)) = install(Some(&text), &ours()) {
                let Installed::Text(made) = made else { panic!("already: {text:?}") };
                prop_assert_eq!(install(Some(&made), &ours()), Ok((Installed::Already, notes)));
                prop_assert_eq!(uninstall(&made), Uninstalled::Text(text));
                // By way of another version of the line, too.
                let Ok((Installed::Text(other), _)) = install(Some(&made), &line("/opt/x")) else { panic!("renewed") };
                let Ok((Installed::Text(back), _)) = install(Some(&other), &ours()) else { panic!("renewed") };
                prop_assert_eq!(back, made);
            }
        }
    }
}
