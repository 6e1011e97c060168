//! The configuration as it is written: a tree of texts, each with its place in the file.
//!
//! Nothing is interpreted: `3.10` is the text `3.10`. YAML's own means of saying things once are resolved here: anchors, aliases
//! and merge keys. Everything is bounded, so that no file, however made, takes more than a moment or overflows the stack.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::problem::Mark;

/// The largest file that is read; a configuration with a thousand pools has a third of it.
pub(super) const MAX_FILE_BYTES: usize = 1024 * 1024;

/// The deepest nesting; `pools.NAME.restart.flapping.crashes` has five levels.
const MAX_DEPTH: usize = 32;

/// The most that aliases may repeat, in nodes and bytes together: against "billion laughs".
const MAX_COPIED: usize = 4 * MAX_FILE_BYTES;

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) at: Mark,
    pub(super) value: Value,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Text as it is written, escapes and folding undone.
    Scalar {
        text: String,
        /// Neither quoted nor a block: numbers, yes and no, nothing.
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key and its value; within a map each key stands once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: Mark,
    pub(super) value: Node,
}

/// A problem of the file's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FormProblem {
    pub(super) at: Mark,
    /// Empty: not within any key.
    pub(super) key: String,
    pub(super) what: String,
    pub(super) hint: Option<&'static str>,
}

impl Value {
    /// What this is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Scalar { text, plain: true } if is_nothing(text) => "nothing",
            Self::Scalar { .. } => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// Whether it is what YAML has for "no value".
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Scalar { text, plain: true } if is_nothing(text))
    }
}

fn is_nothing(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Puts a name behind a key path; a name that would confuse is quoted.
pub(super) fn join(parent: &str, name: &str) -> String {
    let name = if !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
        name.to_owned()
    } else {
        let short: String = name.chars().take(40).collect();
        format!("{short:?}")
    };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

/// Reads a file's bytes; `None` if so much is wrong that nothing can be said about its keys.
pub(super) fn parse(bytes: &[u8], problems: &mut Vec<FormProblem>) -> Option<Node> {
    let mut tell = |at, what: String, hint| problems.push(FormProblem { at, key: String::new(), what, hint });
    if bytes.len() > MAX_FILE_BYTES {
        tell(Mark::START, "the file is too large; allowed: at most 1 MiB".to_owned(), None);
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            tell(end_of(&good), "not UTF-8".to_owned(), Some("save the file as UTF-8"));
            return None;
        }
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // The scanner takes NUL for the end of the file: what follows it would silently not count. The last three end a line in
    // YAML 1.1 and do not in 1.2.
    let refused = |c: char| (c.is_control() && !matches!(c, '\t' | '\n' | '\r')) || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}');
    if let Some(at) = text.find(refused) {
        let found = text[at..].chars().next().map(|c| c.escape_unicode().to_string()).unwrap_or_default();
        tell(end_of(&text[..at]), format!("a control character, found `{found}`"), None);
        return None;
    }
    Builder { problems, stack: Vec::new(), anchors: HashMap::new(), copied: 0, root: None }.read(text)
}

/// The place right behind a text.
fn end_of(text: &str) -> Mark {
    let line = text.matches('\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Mark { line: narrow(line), column: narrow(column) }
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn mark(marker: &Marker) -> Mark {
    Mark { line: narrow(marker.line()), column: narrow(marker.col() + 1) }
}

/// A list or map that is being read.
struct Frame {
    at: Mark,
    anchor: usize,
    /// Levels of the deepest value in it, itself included.
    height: usize,
    inside: Inside,
}

enum Inside {
    List(Vec<Node>),
    Map { entries: Vec<Written>, seen: HashMap<String, Mark>, key: Option<Key> },
}

/// A key whose value comes next; `name: None` for one that was refused: its value is read and dropped.
struct Key {
    at: Mark,
    name: Option<String>,
    /// An unquoted `<<`.
    merge: bool,
}

/// An entry as it is written, before merge keys are resolved.
struct Written {
    merge: bool,
    entry: Entry,
}

/// A value that may be repeated.
struct Anchored {
    node: Node,
    height: usize,
    weight: usize,
}

struct Builder<'p> {
    problems: &'p mut Vec<FormProblem>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    copied: usize,
    root: Option<Node>,
}

/// The rest of the file is not read: the problem has been told.
struct Stop;

impl Builder<'_> {
    fn read(mut self, text: &str) -> Option<Node> {
        let mut documents = 0;
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            let step = match event {
                Ok((Event::DocumentStart(_), span)) => {
                    documents += 1;
                    if documents > 1 {
                        self.stop(mark(&span.start), "more than one document", Some("one file is one configuration: remove `---`"))
                    } else {
                        Ok(())
                    }
                }
                Ok((event, span)) => self.event(event, mark(&span.start)),
                // The scanner looks ahead of the events, and has a limit of its own.
                Err(error) if error.info().contains("recursion limit") => {
                    self.stop(mark(error.marker()), &format!("nested too deeply; allowed: at most {MAX_DEPTH} levels"), None)
                }
                Err(error) => {
                    let line = text.lines().nth(error.marker().line().saturating_sub(1)).unwrap_or_default();
                    let hint = if error.info().contains("tab") {
                        Some("indent with spaces")
                    } else if line.contains("${") || line.contains(": {") {
                        Some("a text that begins with `{`, or has `{` or `}` within `{...}`, is written in quotes")
                    } else {
                        None
                    };
                    self.stop(mark(error.marker()), &format!("not YAML: {}", error.info()), hint)
                }
            };
            if step.is_err() {
                return None;
            }
        }
        match self.root {
            Some(Node { value, .. }) if value.is_nothing() => None,
            root => root,
        }
        .or_else(|| {
            let hint = Some("`app`, `source: {repository, branch}` and one pool with a `command` are enough for a first try");
            self.problems.push(FormProblem { at: Mark::START, key: String::new(), what: "the file is empty".to_owned(), hint });
            None
        })
    }

    fn event(&mut self, event: Event<'_>, at: Mark) -> Result<(), Stop> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), at);
                let mut text = text.into_owned();
                if text.contains('\0') {
                    self.tell(at, "a NUL character", None);
                    text.retain(|c| c != '\0');
                }
                let plain = style == ScalarStyle::Plain;
                // Nothing is written: the parser's place is that of whatever comes next.
                let at = if plain && text.is_empty() { self.pending_key().unwrap_or(at) } else { at };
                self.place(Node { at, value: Value::Scalar { text, plain } }, anchor, 1)
            }
            Event::SequenceStart(anchor, tag) => self.open(at, anchor, tag.as_deref(), Inside::List(Vec::new())),
            Event::MappingStart(anchor, tag) => {
                self.open(at, anchor, tag.as_deref(), Inside::Map { entries: Vec::new(), seen: HashMap::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.repeat(anchor, at),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => Ok(()),
        }
    }

    fn open(&mut self, at: Mark, anchor: usize, tag: Option<&Tag>, inside: Inside) -> Result<(), Stop> {
        self.refuse_tag(tag, at);
        if self.stack.len() >= MAX_DEPTH {
            return self.stop(at, &format!("nested too deeply; allowed: at most {MAX_DEPTH} levels"), None);
        }
        self.stack.push(Frame { at, anchor, height: 1, inside });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Stop> {
        let Some(Frame { at, anchor, height, inside }) = self.stack.pop() else { return Ok(()) };
        let value = match inside {
            Inside::List(items) => Value::List(items),
            Inside::Map { entries, .. } => Value::Map(self.merge(entries)),
        };
        self.place(Node { at, value }, anchor, height)
    }

    /// Puts a whole value where it belongs.
    fn place(&mut self, node: Node, anchor: usize, height: usize) -> Result<(), Stop> {
        if anchor != 0 {
            let weight = weight(&node);
            self.charge(weight, node.at)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), height, weight });
        }
        let path = self.path();
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.height = frame.height.max(height + 1);
        match &mut frame.inside {
            Inside::List(items) => items.push(node),
            Inside::Map { entries, seen, key } => match key.take() {
                Some(Key { name: None, .. }) => {}
                Some(Key { at, name: Some(name), merge }) => {
                    entries.push(Written { merge, entry: Entry { key: name, key_at: at, value: node } });
                }
                None => {
                    let at = node.at;
                    let mut refused = None;
                    let (name, merge) = match node.value {
                        Value::Scalar { text, plain } => match seen.get(&text) {
                            Some(first) => {
                                refused = Some((join(&path, &text), format!("written twice; the first is at line {}", first.line)));
                                (None, false)
                            }
                            None => {
                                seen.insert(text.clone(), at);
                                let merge = plain && text == "<<";
                                (Some(text), merge)
                            }
                        },
                        Value::List(_) | Value::Map(_) => {
                            refused = Some((path, "a key that is not text".to_owned()));
                            (None, false)
                        }
                    };
                    *key = Some(Key { at, name, merge });
                    if let Some((key, what)) = refused {
                        self.problems.push(FormProblem { at, key, what, hint: None });
                    }
                }
            },
        }
        Ok(())
    }

    /// Puts a copy of an anchored value where an alias stands.
    fn repeat(&mut self, anchor: usize, at: Mark) -> Result<(), Stop> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return self.stop(at, "an alias within its own anchor", None);
        };
        if self.stack.len() + anchored.height > MAX_DEPTH + 1 {
            return self.stop(at, &format!("nested too deeply by aliases; allowed: at most {MAX_DEPTH} levels"), None);
        }
        let (weight, height) = (anchored.weight, anchored.height);
        self.charge(weight, at)?;
        let Some(node) = self.anchors.get(&anchor).map(|anchored| anchored.node.clone()) else { return Ok(()) };
        self.place(node, 0, height)
    }

    fn charge(&mut self, weight: usize, at: Mark) -> Result<(), Stop> {
        self.copied = self.copied.saturating_add(weight);
        if self.copied > MAX_COPIED {
            return self.stop(at, "aliases repeat too much", Some("write fewer or smaller anchors"));
        }
        Ok(())
    }

    /// Resolves `<<: *other` and `<<: [*a, *b]`: what is written in the map itself wins, then what comes first.
    fn merge(&mut self, written: Vec<Written>) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(written.len());
        let mut merged = Vec::new();
        for Written { merge, entry } in written {
            if !merge {
                entries.push(entry);
                continue;
            }
            let sources = match entry.value.value {
                Value::List(sources) => sources,
                _ => vec![entry.value],
            };
            for source in sources {
                match source.value {
                    Value::Map(inner) => merged.extend(inner),
                    other => {
                        let key = join(&self.path(), "<<");
                        let what = format!("not a map to merge, found {}", other.kind());
                        self.problems.push(FormProblem {
                            at: entry.key_at,
                            key,
                            what,
                            hint: Some("`<<: *anchor`, where the anchor is on a map"),
                        });
                    }
                }
            }
        }
        let mut known: std::collections::HashSet<String> = entries.iter().map(|entry: &Entry| entry.key.clone()).collect();
        entries.extend(merged.into_iter().filter(|entry| known.insert(entry.key.clone())));
        entries
    }

    /// The key path of what is being read.
    fn path(&self) -> String {
        self.stack.iter().fold(String::new(), |path, frame| match &frame.inside {
            Inside::List(items) => format!("{path}[{}]", items.len()),
            Inside::Map { key: Some(Key { name: Some(name), .. }), .. } => join(&path, name),
            Inside::Map { .. } => path,
        })
    }

    fn pending_key(&self) -> Option<Mark> {
        match &self.stack.last()?.inside {
            Inside::Map { key: Some(key), .. } => Some(key.at),
            Inside::Map { .. } | Inside::List(_) => None,
        }
    }

    fn refuse_tag(&mut self, tag: Option<&Tag>, at: Mark) {
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "str" | "map" | "seq"))
        {
            self.tell(at, &format!("a tag, found `{tag}`"), Some("a text that begins with `!` is written in quotes"));
        }
    }

    fn tell(&mut self, at: Mark, what: &str, hint: Option<&'static str>) {
        let key = self.path();
        self.problems.push(FormProblem { at, key, what: what.to_owned(), hint });
    }

    fn stop(&mut self, at: Mark, what: &str, hint: Option<&'static str>) -> Result<(), Stop> {
        self.tell(at, what, hint);
        Err(Stop)
    }
}

/// How much a copy of a value costs: its nodes and its bytes.
fn weight(node: &Node) -> usize {
    match &node.value {
        Value::Scalar { text, .. } => 16 + text.len(),
        Value::List(items) => 16 + items.iter().map(weight).sum::<usize>(),
        Value::Map(entries) => 16 + entries.iter().map(|entry| entry.key.len() + weight(&entry.value)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<Node>, Vec<String>) {
        let mut problems = Vec::new();
        let node = parse(text.as_bytes(), &mut problems);
        (node, problems.into_iter().map(|p| format!("{} {} {}", p.at, p.key, p.what)).collect())
    }

    fn flat(node: &Node, path: &str, out: &mut Vec<String>) {
        match &node.value {
            Value::Scalar { text, plain } => out.push(format!("{path}={text}{}@{}", if *plain { "" } else { "!" }, node.at)),
            Value::List(items) => items.iter().enumerate().for_each(|(i, item)| flat(item, &format!("{path}[{i}]"), out)),
            Value::Map(entries) => entries.iter().for_each(|entry| flat(&entry.value, &join(path, &entry.key), out)),
        }
    }

    fn good(text: &str) -> Vec<String> {
        let (node, problems) = read(text);
        assert_eq!(problems, Vec::<String>::new(), "{text}");
        let mut out = Vec::new();
        flat(&node.expect("a tree"), "", &mut out);
        out
    }

    #[test]
    fn keeps_every_scalar_as_it_is_written_with_its_place() {
        assert_eq!(
            good("python: 3.10\nbranch: 1e3\nq: '007'\nlist:\n  - yes\n  - \"é\"\nf: {ü: 0x1F, b: }\nt: >\n  a\n  b\n"),
            [
                "python=3.10@1:9",
                "branch=1e3@2:9",
                "q=007!@3:4",
                "list[0]=yes@5:5",
                "list[1]=é!@6:5",
                "f.ü=0x1F@7:8",
                "f.b=@7:14",
                "t=a b\n!@9:3"
            ]
        );
    }

    #[test]
    fn repeats_what_aliases_name_and_merges_maps() {
        assert_eq!(
            good("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 9}\nd:\n  <<: *b\ne: *a\n'<<': 5\n"),
            [
                "a.x=1@1:11",
                "a.y=2@1:17",
                "b.y=3@2:11",
                "b.z=4@2:17",
                "c.x=9@3:22",
                "c.y=2@1:17",
                "c.z=4@2:17",
                "d.y=3@2:11",
                "d.z=4@2:17",
                "e.x=1@1:11",
                "e.y=2@1:17",
                "\"<<\"=5@7:7"
            ]
        );
    }

    #[test]
    fn tells_everything_that_is_wrong_with_the_form() {
        let (_, problems) = read("a: 1\nb: {c: 1, c: 2}\na: !x 3\n[d]: 4\ne: \"\\0\"\n<<: 5\n");
        assert_eq!(
            problems,
            [
                "2:11 b.c written twice; the first is at line 2",
                "3:1 a written twice; the first is at line 1",
                "3:4  a tag, found `!x`",
                "4:1  a key that is not text",
                "5:4 e a NUL character",
                "6:1 \"<<\" not a map to merge, found a text",
            ]
        );
    }

    #[test]
    fn a_file_that_is_no_configuration_is_a_problem_and_never_a_panic() {
        let laughs = (0..30).fold("a0: &a0 ha\n".to_owned(), |s, i| format!("{s}a{}: &a{} [*a{i}, *a{i}, *a{i}, *a{i}]\n", i + 1, i + 1));
        let big_scalar = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(1000));
        let ladder = (0..1000).fold("a0: &a0 ha\n".to_owned(), |s, i| format!("{s}a{}: &a{} [*a{i}]\n", i + 1, i + 1));
        for (text, problem) in [
            ("", "1:1  the file is empty"),
            ("# nothing\n", "1:1  the file is empty"),
            ("~", "1:1  the file is empty"),
            ("a: 1\n---\nb: 2\n", "2:1  more than one document"),
            ("a: 1\nb: x\0y\n", "2:5  a control character, found `\\u{0}`"),
            ("a: x\u{2028}y\n", "1:5  a control character, found `\\u{2028}`"),
            ("a: &a [1, *a]\n", "1:11 a[1] an alias within its own anchor"),
            (&laughs, "aliases repeat too much"),
            (&big_scalar, "aliases repeat too much"),
            (&ladder, "nested too deeply by aliases; allowed: at most 32 levels"),
            (&"[".repeat(100_000), "nested too deeply; allowed: at most 32 levels"),
            (&"- ".repeat(100_000), "nested too deeply; allowed: at most 32 levels"),
            (&"{a: ".repeat(100_000), "nested too deeply; allowed: at most 32 levels"),
            (&"? ".repeat(100_000), "nested too deeply; allowed: at most 32 levels"),
            (&"x".repeat(10_000_000), "1:1  the file is too large; allowed: at most 1 MiB"),
        ] {
            let (node, problems) = read(text);
            assert!(node.is_none() && problems.len() == 1 && problems[0].ends_with(problem), "{problems:?}, not {problem}");
        }
        let mut problems = Vec::new();
        assert_eq!(parse(b"a: \xff", &mut problems), None);
        assert_eq!((problems[0].at, problems[0].what.as_str()), (Mark { line: 1, column: 4 }, "not UTF-8"));
    }
}
