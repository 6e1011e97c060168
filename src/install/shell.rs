//! Where a shell script ends: enough of the shell's grammar to tell the `exit` that ends it from one in a condition, a function, a quoted
//! text or a here-document. Pure. It executes and expands nothing, and says so when it cannot follow (STYLE.md: refused, not guessed).
//!
//! Source: POSIX.1-2017, Shell Command Language, 2.3 (tokens), 2.4 (reserved words), 2.7.4 (here-documents), 2.10 (grammar).

/// How a script runs to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// The first command that ends it whatever happened before; `None`: it runs to its last line.
    pub(crate) end: Option<End>,
    /// It may end earlier: an `exit` in a condition or a block stands before.
    pub(crate) may_end_early: bool,
}

/// What ends a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Where the line begins that the command is on (of several joined lines the first).
    pub(crate) line_at: usize,
    /// The word after `exit`, as it stands there; empty without one, and for `exec PROGRAM`.
    pub(crate) code: Vec<u8>,
}

/// What cannot be followed: something is open at the end, or closed that was not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unclear {
    /// The line, from 1.
    pub(crate) line: usize,
}

/// Substitutions in substitutions; a person writes three.
const DEPTH_MAX: usize = 50;

/// Reads a script up to what ends it; the shell does not look further either.
///
/// # Errors
/// What cannot be followed.
pub(crate) fn read(text: &[u8]) -> Result<Script, Unclear> {
    let mut reader = Reader { text, at: 0, line_at: 0, depth: 0, here: Vec::new(), end: None, may_end_early: false };
    match reader.list(Until::End) {
        Ok(()) | Err(Halt::Ended) => Ok(Script { end: reader.end, may_end_early: reader.may_end_early }),
        Err(Halt::Unclear(at)) => {
            let before = &text[..at.min(text.len())];
            Err(Unclear { line: before.iter().filter(|byte| **byte == b'\n').count() + 1 })
        }
    }
}

enum Halt {
    /// What ends the script was found.
    Ended,
    /// At this byte.
    Unclear(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    End,
    /// The `)` of a substitution.
    Paren,
}

/// What was opened; the reserved word that closes it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    If,
    Loop,
    Case,
    Brace,
    Paren,
}

/// What the next words are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Command,
    Argument,
    /// Of an `exit` that ends the script: its code.
    Code,
    /// Of `exec` without a condition: its program, if any.
    Program,
}

struct HereDocument {
    word: Vec<u8>,
    /// `<<-`.
    tabs: bool,
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    line_at: usize,
    depth: usize,
    here: Vec<HereDocument>,
    end: Option<End>,
    may_end_early: bool,
}

/// Where a reader is in a list of commands.
struct List {
    until: Until,
    /// What is open in it, and where that began.
    open: Vec<(Open, usize)>,
    next: Next,
    /// After `&&`, `||` or `|`: what comes may not be reached, or not in this shell.
    conditional: bool,
    /// The first word of what comes after them is still to come.
    joined: bool,
    /// The next word is where a redirection leads, or the name of a function.
    target: bool,
}

impl List {
    /// Neither in a substitution nor in anything that was opened.
    fn is_the_script(&self) -> bool {
        self.open.is_empty() && self.until == Until::End
    }

    /// Takes the first word of a command; returns what the word after it is.
    fn first_word(&mut self, word: &[u8], here: usize) -> Result<Next, Halt> {
        let opens = match word {
            b"if" => (Open::If, Next::Command),
            b"while" | b"until" => (Open::Loop, Next::Command),
            b"for" | b"select" => (Open::Loop, Next::Argument),
            b"case" => (Open::Case, Next::Argument),
            b"{" => (Open::Brace, Next::Command),
            b"fi" => return self.close(Open::If, here),
            b"done" => return self.close(Open::Loop, here),
            b"esac" => return self.close(Open::Case, here),
            b"}" => return self.close(Open::Brace, here),
            b"then" | b"else" | b"elif" | b"do" | b"!" | b"time" => return Ok(Next::Command),
            b"function" => {
                self.target = true;
                return Ok(Next::Command);
            }
            word => return Ok(if is_assignment(word) { Next::Command } else { Next::Argument }),
        };
        self.open.push((opens.0, here));
        Ok(opens.1)
    }

    fn close(&mut self, what: Open, here: usize) -> Result<Next, Halt> {
        match self.open.pop() {
            Some((open, _)) if open == what => Ok(Next::Command),
            _ => Err(Halt::Unclear(here)),
        }
    }
}

impl Reader<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    /// Commands, up to where they end.
    fn list(&mut self, until: Until) -> Result<(), Halt> {
        let began = self.at;
        let mut list = List { until, open: Vec::new(), next: Next::Command, conditional: false, joined: false, target: false };
        while let Some(byte) = self.peek(0) {
            match byte {
                b' ' | b'\t' => self.at += 1,
                b'\\' if self.peek(1) == Some(b'\n') => self.join()?,
                b'#' => self.skip_to(b'\n'),
                b'\n' => self.line_ends(&mut list)?,
                b'&' if self.peek(1) == Some(b'>') => (self.at, list.target) = (self.at + 1, false),
                b';' | b'&' | b'|' => self.command_ends(&mut list, byte)?,
                b'(' if self.peek(1) == Some(b'(') => self.arithmetic()?,
                b'(' => {
                    list.open.push((Open::Paren, self.at));
                    (self.at, list.next, list.joined) = (self.at + 1, Next::Command, false);
                }
                b')' if self.closes(&mut list)? => return Ok(()),
                b')' => {}
                b'<' | b'>' => list.target = self.redirection()?,
                _ => self.takes_word(&mut list)?,
            }
        }
        self.ended(list.next)?;
        match list.open.last() {
            Some((_, opened)) => Err(Halt::Unclear(*opened)),
            None if list.joined || !self.here.is_empty() => Err(Halt::Unclear(self.at)),
            None if until == Until::Paren => Err(Halt::Unclear(began)),
            None => Ok(()),
        }
    }

    fn line_ends(&mut self, list: &mut List) -> Result<(), Halt> {
        self.ended(list.next)?;
        self.at += 1;
        self.here_documents()?;
        list.target = false;
        if !list.joined {
            list.conditional = false;
            list.next = Next::Command;
            if list.is_the_script() {
                self.line_at = self.at;
            }
        }
        Ok(())
    }

    /// At `;`, `&` or `|`, single or double.
    fn command_ends(&mut self, list: &mut List, byte: u8) -> Result<(), Halt> {
        self.ended(list.next)?;
        let double = self.peek(1) == Some(byte);
        self.at += if double { 2 } else { 1 };
        list.joined = byte == b'|' || (byte == b'&' && double);
        list.conditional = list.joined;
        list.next = Next::Command;
        Ok(())
    }

    /// At `)`; whether it closes the list itself.
    fn closes(&mut self, list: &mut List) -> Result<bool, Halt> {
        let here = self.at;
        self.at += 1;
        match list.open.last() {
            Some((Open::Paren, _)) => drop(list.open.pop()),
            // The end of a pattern.
            Some((Open::Case, _)) => {}
            None if list.until == Until::Paren => return Ok(true),
            _ => return Err(Halt::Unclear(here)),
        }
        (list.next, list.conditional) = (Next::Command, false);
        Ok(false)
    }

    fn takes_word(&mut self, list: &mut List) -> Result<(), Halt> {
        let here = self.at;
        let (word, plain) = self.word()?;
        if plain && matches!(self.peek(0), Some(b'<' | b'>')) && word.iter().all(u8::is_ascii_digit) {
            // The descriptor of a redirection.
            return Ok(());
        }
        if std::mem::take(&mut list.target) {
            return Ok(());
        }
        list.joined = false;
        list.next = match list.next {
            Next::Argument => Next::Argument,
            Next::Code => return self.found(word),
            Next::Program => return self.found(Vec::new()),
            Next::Command if !plain => Next::Argument,
            Next::Command => match word.as_slice() {
                b"exit" | b"exec" => self.may_end(list, word == b"exit"),
                word => list.first_word(word, here)?,
            },
        };
        Ok(())
    }

    /// What an `exit` or `exec` is: the end of the script, if it is surely reached and in this shell.
    fn may_end(&mut self, list: &List, exit: bool) -> Next {
        if list.is_the_script() && !list.conditional {
            return if exit { Next::Code } else { Next::Program };
        }
        // In a substitution it ends only that.
        self.may_end_early |= exit && list.until == Until::End;
        Next::Argument
    }

    /// A command is over; an `exit` without a code ends the script.
    fn ended(&mut self, next: Next) -> Result<(), Halt> {
        if next == Next::Code { self.found(Vec::new()) } else { Ok(()) }
    }

    fn found(&mut self, code: Vec<u8>) -> Result<(), Halt> {
        self.end = Some(End { line_at: self.line_at, code });
        Err(Halt::Ended)
    }

    /// A line goes on in the next one; if there is none, what is put behind it would be joined to it.
    fn join(&mut self) -> Result<(), Halt> {
        if self.at + 2 >= self.text.len() {
            return Err(Halt::Unclear(self.at));
        }
        self.at += 2;
        Ok(())
    }

    /// To that byte, which is not taken, or to the end.
    fn skip_to(&mut self, byte: u8) {
        self.at = self.text[self.at..].iter().position(|found| *found == byte).map_or(self.text.len(), |ahead| self.at + ahead);
    }

    /// Behind the next such byte; with `escapes`, not one with a backslash before it.
    fn skip_behind(&mut self, byte: u8, escapes: bool) -> Result<(), Halt> {
        let began = self.at;
        while let Some(found) = self.peek(0) {
            self.at += if escapes && found == b'\\' { 2 } else { 1 };
            if found == byte {
                return Ok(());
            }
        }
        Err(Halt::Unclear(began))
    }

    /// A word, without its quotes, and whether it had none.
    fn word(&mut self) -> Result<(Vec<u8>, bool), Halt> {
        let (mut word, mut plain) = (Vec::new(), true);
        while let Some(byte) = self.peek(0) {
            match byte {
                b' ' | b'\t' | b'\n' | b';' | b'&' | b'|' | b'(' | b')' | b'<' | b'>' => break,
                b'\\' if self.peek(1) == Some(b'\n') => self.join()?,
                b'\\' if self.peek(1).is_none() => return Err(Halt::Unclear(self.at)),
                b'\\' => {
                    word.extend(self.peek(1));
                    (self.at, plain) = (self.at + 2, false);
                }
                b'\'' => {
                    self.at += 1;
                    let began = self.at;
                    self.skip_behind(b'\'', false)?;
                    word.extend_from_slice(&self.text[began..self.at - 1]);
                    plain = false;
                }
                b'"' => {
                    let began = self.at + 1;
                    self.double_quotes()?;
                    word.extend_from_slice(&self.text[began..self.at - 1]);
                    plain = false;
                }
                b'`' => {
                    self.at += 1;
                    self.skip_behind(b'`', true)?;
                    plain = false;
                }
                b'$' => {
                    word.push(b'$');
                    plain &= !self.dollar()?;
                }
                _ => {
                    word.push(byte);
                    self.at += 1;
                }
            }
        }
        Ok((word, plain))
    }

    /// What begins with `$`; whether it was more than that sign.
    fn dollar(&mut self) -> Result<bool, Halt> {
        self.at += 1;
        match self.peek(0) {
            Some(b'(') if self.peek(1) == Some(b'(') => self.arithmetic()?,
            Some(b'(') => {
                self.at += 1;
                self.deeper(|reader| reader.list(Until::Paren))?;
            }
            Some(b'{') => self.deeper(Self::parameter)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn deeper(&mut self, part: impl FnOnce(&mut Self) -> Result<(), Halt>) -> Result<(), Halt> {
        if self.depth == DEPTH_MAX {
            return Err(Halt::Unclear(self.at));
        }
        self.depth += 1;
        part(self)?;
        self.depth -= 1;
        Ok(())
    }

    /// `"..."`.
    fn double_quotes(&mut self) -> Result<(), Halt> {
        self.expanding(b'"')
    }

    /// `${...}`.
    fn parameter(&mut self) -> Result<(), Halt> {
        self.expanding(b'}')
    }

    /// From one character to the one that closes it, with what the shell expands in between; other quotes are quotes only outside of quotes.
    fn expanding(&mut self, close: u8) -> Result<(), Halt> {
        let (began, unquoted) = (self.at, close != b'"');
        self.at += 1;
        while let Some(byte) = self.peek(0) {
            match byte {
                byte if byte == close => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => self.at += 2,
                b'\'' if unquoted => {
                    self.at += 1;
                    self.skip_behind(b'\'', false)?;
                }
                b'"' if unquoted => self.double_quotes()?,
                b'`' => {
                    self.at += 1;
                    self.skip_behind(b'`', true)?;
                }
                b'$' => drop(self.dollar()?),
                _ => self.at += 1,
            }
        }
        Err(Halt::Unclear(began))
    }

    /// `((...))`, at its first parenthesis.
    fn arithmetic(&mut self) -> Result<(), Halt> {
        let (began, mut open) = (self.at, 0_usize);
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            match byte {
                b'(' => open += 1,
                b')' if open == 1 => return Ok(()),
                b')' => open -= 1,
                _ => {}
            }
        }
        Err(Halt::Unclear(began))
    }

    /// `<`, `>` and what begins with them; whether a word follows that says where to.
    fn redirection(&mut self) -> Result<bool, Halt> {
        let rest = &self.text[self.at..];
        if rest.starts_with(b"<<<") {
            self.at += 3;
            return Ok(true);
        }
        if rest.starts_with(b"<<") {
            let tabs = rest.get(2) == Some(&b'-');
            self.at += if tabs { 3 } else { 2 };
            while matches!(self.peek(0), Some(b' ' | b'\t')) {
                self.at += 1;
            }
            let (word, _) = self.word()?;
            self.here.push(HereDocument { word, tabs });
            return Ok(false);
        }
        if rest.get(1) == Some(&b'(') {
            // The file of a process (bash).
            self.at += 2;
            self.deeper(|reader| reader.list(Until::Paren))?;
            return Ok(false);
        }
        self.at += if matches!(rest.get(1), Some(b'>' | b'&' | b'|')) { 2 } else { 1 };
        Ok(true)
    }

    /// Skips the texts that the line before announced.
    fn here_documents(&mut self) -> Result<(), Halt> {
        for document in std::mem::take(&mut self.here) {
            let began = self.at;
            loop {
                if self.at >= self.text.len() {
                    return Err(Halt::Unclear(began.saturating_sub(1)));
                }
                let line_at = self.at;
                self.skip_to(b'\n');
                let mut line = &self.text[line_at..self.at];
                self.at += usize::from(self.at < self.text.len());
                while document.tabs && line.first() == Some(&b'\t') {
                    line = &line[1..];
                }
                if line == document.word {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// `NAME=...` before a command.
fn is_assignment(word: &[u8]) -> bool {
    let name = word.split(|byte| *byte == b'=').next().unwrap_or_default();
    name.len() < word.len()
        && name.first().is_some_and(|byte| !byte.is_ascii_digit())
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line that ends it, or how it does not.
    fn end(text: &str) -> String {
        match read(text.as_bytes()) {
            Ok(Script { end: Some(end), .. }) => {
                let line = text[end.line_at..].lines().next().unwrap_or_default();
                format!("{} [{}]", line, String::from_utf8_lossy(&end.code))
            }
            Ok(Script { end: None, may_end_early }) => format!("runs to its end{}", if may_end_early { ", or not" } else { "" }),
            Err(Unclear { line }) => format!("unclear at line {line}"),
        }
    }

    #[test]
    fn the_exit_that_ends_a_script_is_told_from_all_others() {
        for (text, wanted) in [
            ("", "runs to its end"),
            ("a\nexit 0\n", "exit 0 [0]"),
            ("exit 0", "exit 0 [0]"),
            ("exit", "exit []"),
            ("exit\nx", "exit []"),
            ("a\nexit $?\n", "exit $? [$?]"),
            ("a\n  exit 1 # no\n", "  exit 1 # no [1]"),
            ("a\nexit 0\nb\nexit 3\n", "exit 0 [0]"),
            ("a\nexit 0\n if ( ' don't\n", "exit 0 [0]"),
            ("a; exit 0\n", "a; exit 0 [0]"),
            ("a \\\n ; exit 0\n", "a \\ [0]"),
            ("# exit 0\n", "runs to its end"),
            ("a # exit 0\n", "runs to its end"),
            ("a#b; exit 0\n", "a#b; exit 0 [0]"),
            ("echo exit 0\n", "runs to its end"),
            ("exit0\n", "runs to its end"),
            ("'exit' 0\n", "runs to its end"),
            ("if a; then\nexit 0\nfi\n", "runs to its end, or not"),
            ("if a; then if b; then c; fi fi\nexit 0\n", "exit 0 [0]"),
            ("a && exit 0\n", "runs to its end, or not"),
            ("a ||\n\n exit 0\n", "runs to its end, or not"),
            ("a || b\nexit 0\n", "exit 0 [0]"),
            ("a && b; exit 0\n", "a && b; exit 0 [0]"),
            ("a | exit 0\n", "runs to its end, or not"),
            ("a &\nexit 0\n", "exit 0 [0]"),
            ("f() {\n exit 0\n}\nf\n", "runs to its end, or not"),
            ("f ()\n{\n exit 0\n}\nexit 2", "exit 2 [2]"),
            ("function f { exit 0; }\nexit 2", "exit 2 [2]"),
            ("(exit 0)\n", "runs to its end, or not"),
            ("{ a; exit 0; }\n", "runs to its end, or not"),
            ("x=$(exit 0)\n", "runs to its end"),
            ("x=\"$(a \")\"; exit 0)\"\nexit 0\n", "exit 0 [0]"),
            ("x=`exit 0`\n", "runs to its end"),
            ("FOO=1 exit 0\n", "FOO=1 exit 0 [0]"),
            ("cat <<E\nexit 0\nE\n", "runs to its end"),
            ("cat <<'E' <<-\"F\"\nexit 0\nE\n\texit 0\n\tF\nexit 1\n", "exit 1 [1]"),
            ("cat <<E\nexit 0\n", "unclear at line 1"),
            ("cat <<<x\nexit 0\n", "exit 0 [0]"),
            ("echo $((1<<2)) ${a#(} ${b:-'}'}\nexit 0\n", "exit 0 [0]"),
            ("((x <<= 1))\nexit 0\n", "exit 0 [0]"),
            ("case $1 in\nstart) exit 0;;\n(stop|x) b;;\n*) exit 1\nesac\nexit 0\n", "exit 0 [0]"),
            ("case a in a) b;; esac; exit 0\n", "case a in a) b;; esac; exit 0 [0]"),
            ("for i in 1 2; do exit 0; done\nexit 0\n", "exit 0 [0]"),
            ("while a\ndo\n exit\ndone <x\nexit 0\n", "exit 0 [0]"),
            ("echo 'a\nexit 0\n'\n", "runs to its end"),
            ("echo \"a\nexit 0\n\"\n", "runs to its end"),
            ("echo \"a\n", "unclear at line 1"),
            ("a\nif b; then\n c\n", "unclear at line 2"),
            ("a\nfi\n", "unclear at line 2"),
            ("a)\n", "unclear at line 1"),
            ("a &&\n", "unclear at line 2"),
            ("a \\\n", "unclear at line 1"),
            ("a \\", "unclear at line 1"),
            ("exec >log 2>&1\nexit 0\n", "exit 0 [0]"),
            ("exec 3<&- &>x\na\nexec /bin/login -f\nexit 0\n", "exec /bin/login -f []"),
            ("a && exec b\nexit 0\n", "exit 0 [0]"),
            ("echo a >exit 0\nexit 4\n", "exit 4 [4]"),
            ("[ -x /a ] || { echo no; exit 1; }\nexit 0\n", "exit 0 [0]"),
            ("exit 0;\n", "exit 0; [0]"),
            ("! exit 0\n", "! exit 0 [0]"),
            ("echo }\necho {\nexit 0\n", "exit 0 [0]"),
        ] {
            assert_eq!(end(text), wanted, "{text}");
        }
    }

    #[test]
    fn nesting_without_end_is_refused_and_does_not_exhaust_the_stack() {
        assert!(read("$(".repeat(100_000).as_bytes()).is_err());
        assert!(read("\"${".repeat(100_000).as_bytes()).is_err());
        assert!(read("(".repeat(100_000).as_bytes()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = read(&text);
        }
    }
}
