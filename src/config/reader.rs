//! Reading one value at a time: text to type, and what to tell when it is none.
//!
//! Every method that returns an `Option` has told the problem when it returns `None`, and reading goes on: all problems at
//! once. Not here: which keys there are (`schema`) and what they mean together (`merged`).

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use selfstart_core::time::{DurationError, parse_duration};
use selfstart_core::units::{Bytes, BytesError, parse_bytes};

use super::Surroundings;
use super::command;
use super::placeholders::{self, Placeholder};
use super::problem::{Mark, Problem, nearest};
use super::raw::{Entry, Node, Value, join};
use super::schema;
use super::secret::{Plain, Text, TextError};

/// The longest duration: clocks add them to moments, and nobody waits for longer.
const MAX_DURATION: Duration = Duration::from_secs(366 * 86_400);

const A_DURATION: &str = "a whole number with a unit (ms, s, m, h, d), such as 10s or 1h30m";
const A_SIZE: &str = "a whole number with a unit, such as 350MB (10^6) or 350MiB (2^20)";

/// A value and the path of its key.
#[derive(Clone, Debug)]
pub(super) struct At<'n> {
    pub(super) key: String,
    pub(super) node: &'n Node,
}

/// A map whose keys are known; empty if it is left out.
#[derive(Clone, Debug)]
pub(super) struct Map<'n> {
    pub(super) key: String,
    /// The path in the schema.
    pub(super) pattern: String,
    /// Where a key that is missing is told.
    pub(super) at: Mark,
    pub(super) entries: &'n [Entry],
    /// It is no map, and that is told: what is not in it is not missed.
    pub(super) refused: bool,
}

impl<'n> Map<'n> {
    /// The value of a key, if it is written.
    pub(super) fn get(&self, name: &str) -> Option<At<'n>> {
        debug_assert!(schema::find(&join_pattern(&self.pattern, name)).is_some(), "not in the schema: {} {name}", self.pattern);
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        Some(At { key: join(&self.key, name), node: &entry.value })
    }

    /// The elements of a map whose keys the user chooses.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'n Entry, At<'n>)> {
        self.entries.iter().map(|entry| (entry, At { key: join(&self.key, &entry.key), node: &entry.value }))
    }
}

fn join_pattern(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

/// What may be written for a number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Between(pub(super) i64, pub(super) i64);

/// Collects what is wrong while values are read.
pub(super) struct Reader<'a> {
    pub(super) path: &'a Path,
    pub(super) around: &'a Surroundings<'a>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn problem(&self, at: Mark, key: &str, what: impl Into<String>) -> Problem {
        Problem::new(self.path, at, key, what)
    }

    /// Tells a problem of a value.
    pub(super) fn tell(&mut self, at: &At<'_>, what: &str, more: impl FnOnce(Problem) -> Problem) {
        let problem = more(self.problem(at.node.at, &at.key, what));
        self.problems.push(problem);
    }

    /// Tells that a key must be there.
    pub(super) fn missing(&mut self, map: &Map<'_>, name: &str, hint: &str) {
        if map.refused {
            return;
        }
        let problem = self.problem(map.at, &join(&map.key, name), "is missing").hint(hint);
        self.problems.push(problem);
    }

    /// Reads the value of a key if it is written.
    pub(super) fn opt<'n, T>(&mut self, map: &Map<'n>, name: &str, read: impl FnOnce(&mut Self, &At<'n>) -> Option<T>) -> Option<T> {
        map.get(name).and_then(|at| read(self, &at))
    }

    /// Reads the value of a key if it is written; `default` if it is not (or is wrong: nothing comes of it then).
    pub(super) fn or<'n, T>(&mut self, map: &Map<'n>, name: &str, default: T, read: impl FnOnce(&mut Self, &At<'n>) -> Option<T>) -> T {
        self.opt(map, name, read).unwrap_or(default)
    }

    /// The map under a key; empty if it is not written.
    pub(super) fn section<'n>(&mut self, map: &Map<'n>, name: &str) -> Map<'n> {
        let pattern = join_pattern(&map.pattern, name);
        match map.get(name) {
            Some(at) => self.map(&at, &pattern),
            None => Map { key: join(&map.key, name), pattern, at: map.at, entries: &[], refused: false },
        }
    }

    /// A map whose keys are in the schema; others are told.
    pub(super) fn map<'n>(&mut self, at: &At<'n>, pattern: &str) -> Map<'n> {
        let map = self.free_map(at, pattern);
        for entry in map.entries {
            if !schema::names(pattern).any(|name| name == entry.key) {
                self.unknown(&map, entry);
            }
        }
        map
    }

    /// A map whose keys the user chooses.
    pub(super) fn free_map<'n>(&mut self, at: &At<'n>, pattern: &str) -> Map<'n> {
        let (entries, refused) = match &at.node.value {
            Value::Map(entries) => (entries.as_slice(), false),
            value if value.is_nothing() => (&[][..], false),
            value => {
                let keys = schema::names(pattern).collect::<Vec<_>>().join(", ");
                let allowed = if keys.is_empty() { "`KEY: VALUE` lines".to_owned() } else { format!("a map of {keys}") };
                self.tell(at, "not a map", |problem| Problem { found: Some(value.kind().to_owned()), ..problem.allowed(allowed) });
                (&[][..], true)
            }
        };
        Map { key: at.key.clone(), pattern: pattern.to_owned(), at: at.node.at, entries, refused }
    }

    fn unknown(&mut self, map: &Map<'_>, entry: &Entry) {
        let known: Vec<_> = schema::names(&map.pattern).collect();
        let problem = self.problem(entry.key_at, &join(&map.key, &entry.key), "no such key");
        let elsewhere = || {
            let ends = |path: &str| path.rsplit_once('.').is_some_and(|(_, name)| name == entry.key);
            schema::KEYS.iter().find(|key| ends(key.path) || key.path == entry.key).map(|key| key.path)
        };
        let problem = if let Some(near) = nearest(&entry.key, known.iter().copied()) {
            problem.hint(format!("did you mean `{near}`?"))
        } else if let Some(path) = elsewhere() {
            problem.allowed(known.join(", ")).hint(format!("there is `{path}`"))
        } else {
            problem.allowed(known.join(", "))
        };
        self.problems.push(problem);
    }

    /// The text of a scalar, and whether it is written without quotes. `kind` ("a duration") and `allowed` are for the message.
    pub(super) fn scalar<'n>(&mut self, at: &At<'n>, kind: &str, allowed: &str) -> Option<(&'n str, bool)> {
        match &at.node.value {
            value if value.is_nothing() => {
                let hint = "leave the key out, or write the text in quotes";
                self.tell(at, "has no value", |problem| problem.allowed(allowed).hint(hint));
                None
            }
            Value::Scalar { text, plain } => Some((text, *plain)),
            value => {
                self.tell(at, &format!("not {kind}"), |problem| Problem {
                    found: Some(value.kind().to_owned()),
                    ..problem.allowed(allowed)
                });
                None
            }
        }
    }

    /// A text that is shown, and in which no `${...}` may stand.
    pub(super) fn text<'n>(&mut self, at: &At<'n>) -> Option<&'n str> {
        let (text, _) = self.scalar(at, "a text", "a text")?;
        if text.contains("${") {
            let hint = "secrets and variables may stand in environment values, credentials, tokens and URLs only";
            self.tell(at, "a `${...}` may not stand here", |problem| problem.found(text).hint(hint));
            return None;
        }
        if text.is_empty() {
            self.tell(at, "is empty", |problem| problem);
            return None;
        }
        Some(text)
    }

    /// A script for a shell: `${...}` is the shell's, but for ours.
    pub(super) fn script<'n>(&mut self, at: &At<'n>) -> Option<&'n str> {
        let (text, _) = self.scalar(at, "a text", "a text")?;
        let ours = ["${file:/", "${env:", "${ssm:/", "${secret:"].into_iter().find(|ours| text.contains(ours));
        if let Some(ours) = ours {
            let ours = ours.split_once(':').map_or(ours, |(kind, _)| kind);
            let hint = "put it under `env:` and use the variable: arguments can be read by everyone on the machine";
            self.tell(at, &format!("a `{ours}:...}}` may not stand in a command"), |problem| problem.hint(hint));
            return None;
        }
        if text.trim().is_empty() {
            self.tell(at, "is empty", |problem| problem);
            return None;
        }
        Some(text)
    }

    /// A text that may hold secrets: nothing of it is ever shown in a problem.
    pub(super) fn secret_text(&mut self, at: &At<'_>, plain: Plain) -> Option<Text> {
        let (text, _) = match &at.node.value {
            value if value.is_nothing() => {
                let hint = "`\"\"` is an empty text; leave the key out for none";
                self.tell(at, "has no value", |problem| problem.hint(hint));
                return None;
            }
            Value::Scalar { text, plain } => (text.as_str(), *plain),
            value => {
                self.tell(at, "not a text", |problem| Problem { found: Some(value.kind().to_owned()), ..problem });
                return None;
            }
        };
        let text = match Text::parse(text, plain) {
            Ok(text) => text,
            Err(error) => {
                // The content of `${...}` is not told: the mistake may be that it is the secret itself.
                let (what, hint) = match error {
                    TextError::Open => ("a `${` without `}`", "`$${` is a literal `${`"),
                    TextError::NoKind(_) => (
                        "a `${...}` that does not say where it comes from",
                        "`${env:NAME}` is the agent's environment, `$${` a literal `${`",
                    ),
                    TextError::Kind(_) => (
                        "a `${KIND:...}` of a kind that does not exist",
                        "`${file:/path}` and `${env:NAME}` exist; `$${` is a literal `${`",
                    ),
                    TextError::Relative(_) => ("the path of a `${file:...}` is not absolute", "`${file:/etc/selfstart/token}`"),
                    TextError::Name(_) => ("not a name of an environment variable in `${env:...}`", "`${env:NAME}`"),
                };
                self.tell(at, what, |problem| problem.hint(hint));
                return None;
            }
        };
        if text.variables().any(|name| (self.around.env)(name).is_none()) {
            let hint = "`${env:NAME}` is read from the environment of the agent: set it in its unit";
            self.tell(at, "the environment of the agent has no such variable", |problem| problem.hint(hint));
            return None;
        }
        Some(text)
    }

    pub(super) fn duration(&mut self, at: &At<'_>, least: Duration) -> Option<Duration> {
        let (text, _) = self.scalar(at, "a duration", A_DURATION)?;
        match duration(text, least) {
            Ok(duration) => Some(duration),
            Err((what, hint)) => {
                self.tell(at, &what, |problem| Problem { hint, ..problem.found(text).allowed(A_DURATION) });
                None
            }
        }
    }

    pub(super) fn size(&mut self, at: &At<'_>, least: Bytes, most: Bytes) -> Option<Bytes> {
        let (text, _) = self.scalar(at, "a size", A_SIZE)?;
        match size(text, least, most) {
            Ok(size) => Some(size),
            Err((what, hint)) => {
                self.tell(at, &what, |problem| Problem { hint, ..problem.found(text).allowed(A_SIZE) });
                None
            }
        }
    }

    pub(super) fn number(&mut self, at: &At<'_>, between: Between) -> Option<i64> {
        let allowed = match between {
            Between(least, i64::MAX) => format!("a whole number, at least {least}"),
            Between(least, most) => format!("a whole number from {least} to {most}"),
        };
        let (text, plain) = self.scalar(at, "a number", &allowed)?;
        let digits = text.strip_prefix('-').unwrap_or(text);
        let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let (what, hint) = if !plain && whole {
            ("a text, not a number", Some("write it without quotes"))
        } else if !whole {
            ("not a whole number", None)
        } else if digits.len() > 1 && digits.starts_with('0') {
            ("a number that begins with 0", Some("write it without the 0"))
        } else {
            match text.parse() {
                Ok(number) if (between.0..=between.1).contains(&number) => return Some(number),
                _ => ("out of range", None),
            }
        };
        self.tell(at, what, |problem| Problem { hint: hint.map(str::to_owned), ..problem.found(text).allowed(allowed) });
        None
    }

    /// A number that fits its type; `between` lies within it.
    pub(super) fn whole<N: TryFrom<i64>>(&mut self, at: &At<'_>, between: Between) -> Option<N> {
        self.number(at, between).and_then(|number| number.try_into().ok())
    }

    pub(super) fn boolean(&mut self, at: &At<'_>) -> Option<bool> {
        let allowed = "true or false";
        let (text, plain) = self.scalar(at, "true or false", allowed)?;
        let hint = match (text, plain) {
            ("true", true) => return Some(true),
            ("false", true) => return Some(false),
            ("true" | "false", false) => Some("write it without quotes".to_owned()),
            _ => match text.to_lowercase().as_str() {
                "yes" | "on" | "y" | "1" | "true" => Some("write `true`".to_owned()),
                "no" | "off" | "n" | "0" | "false" => Some("write `false`".to_owned()),
                _ => None,
            },
        };
        self.tell(at, "neither true nor false", |problem| Problem { hint, ..problem.found(text).allowed(allowed) });
        None
    }

    pub(super) fn choice<T: Copy>(&mut self, at: &At<'_>, choices: &[(&'static str, T)]) -> Option<T> {
        let allowed = choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let (text, _) = self.scalar(at, "one of these", &allowed)?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*choice);
        }
        let hint = nearest(text, choices.iter().map(|(name, _)| *name)).map(|near| format!("did you mean `{near}`?"));
        self.tell(at, "none of these", |problem| Problem { hint, ..problem.found(text).allowed(allowed) });
        None
    }

    /// The elements of a list.
    pub(super) fn list<'n>(&mut self, at: &At<'n>, of: &str) -> Option<Vec<At<'n>>> {
        match &at.node.value {
            Value::List(items) => Some(items.iter().enumerate().map(|(i, node)| At { key: format!("{}[{i}]", at.key), node }).collect()),
            value if value.is_nothing() => Some(Vec::new()),
            value => {
                self.tell(at, "not a list", |problem| {
                    let problem = Problem { found: Some(value.kind().to_owned()), ..problem.allowed(format!("a list of {of}")) };
                    let one_is_enough = matches!(value, Value::Scalar { .. }) && !of.starts_with("two");
                    if one_is_enough { problem.hint("a list of one is `[VALUE]`") } else { problem }
                });
                None
            }
        }
    }

    /// Each element of a list that is read well; `None` if it is no list.
    pub(super) fn each<'n, T>(&mut self, at: &At<'n>, of: &str, mut read: impl FnMut(&mut Self, &At<'n>) -> Option<T>) -> Option<Vec<T>> {
        let items = self.list(at, of)?;
        Some(items.iter().filter_map(|item| read(self, item)).collect())
    }

    pub(super) fn absolute_path(&mut self, at: &At<'_>) -> Option<PathBuf> {
        let text = self.text(at)?;
        let path = Path::new(text);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            self.tell(at, "not an absolute path", |problem| problem.found(text).allowed("a path that begins with `/`, without `..`"));
            return None;
        }
        Some(path.components().collect())
    }

    /// A path below something: no `..`, not absolute, not empty; without what means nothing (`./`, a slash at the end).
    pub(super) fn relative_path(&mut self, at: &At<'_>, below: &str) -> Option<PathBuf> {
        let text = self.text(at)?;
        let path = Path::new(text);
        let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        let path: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        if !inside || path.as_os_str().is_empty() {
            let allowed = format!("a relative path below {below}, without `..`");
            self.tell(at, "not a path within", |problem| problem.found(text).allowed(allowed));
            return None;
        }
        Some(path)
    }

    /// A command that is executed without a shell.
    pub(super) fn command(&mut self, at: &At<'_>, placeholders: &[Placeholder]) -> Option<Vec<String>> {
        if let Value::List(_) = at.node.value {
            self.tell(at, "not a text", |problem| Problem {
                found: Some("a list".to_owned()),
                ..problem.hint("write the program and its arguments as one text")
            });
            return None;
        }
        let text = self.script(at)?;
        self.placeholders(at, text, placeholders);
        match command::split(text) {
            Ok(words) => Some(words),
            Err(error) => {
                self.tell(at, &error.to_string(), |problem| problem.found(text).hint(error.hint()));
                None
            }
        }
    }

    /// Tells the placeholders that have no value where a text is used.
    pub(super) fn placeholders(&mut self, at: &At<'_>, text: &str, allowed: &[Placeholder]) {
        let mut told = Vec::new();
        for placeholder in placeholders::used(text) {
            if allowed.contains(&placeholder) || told.contains(&placeholder) {
                continue;
            }
            told.push(placeholder);
            let names = allowed.iter().map(|placeholder| format!("{{{}}}", placeholder.name())).collect::<Vec<_>>().join(" ");
            let hint = match placeholder {
                Placeholder::Port if allowed.contains(&Placeholder::Slot) => "set `port:` for the pool; `{{` is a literal brace",
                _ => "no pool is concerned here; `{{` is a literal brace",
            };
            let what = format!("`{{{}}}` has no value here", placeholder.name());
            self.tell(at, &what, |problem| problem.allowed(names).hint(hint));
        }
    }
}

/// Reads a duration; the error is what is wrong, and a hint.
pub(super) fn duration(text: &str, least: Duration) -> Result<Duration, (String, Option<String>)> {
    use selfstart_core::time::Human;
    match parse_duration(text) {
        Ok(duration) if duration < least => Err((format!("too short: at least {}", Human(least)), None)),
        Ok(duration) if duration > MAX_DURATION => Err(("too long: at most 366d".to_owned(), None)),
        Ok(duration) => Ok(duration),
        Err(error) => {
            let hint = match &error {
                DurationError::NoUnit => Some(format!("write `{text}s` for seconds, `{text}m` for minutes")),
                DurationError::Unit(unit) => {
                    let lower = unit.to_lowercase();
                    let known = match lower.as_str() {
                        "s" | "sec" | "secs" | "second" | "seconds" => Some("s"),
                        "m" | "min" | "mins" | "minute" | "minutes" => Some("m"),
                        "h" | "hr" | "hrs" | "hour" | "hours" => Some("h"),
                        "d" | "day" | "days" => Some("d"),
                        "msec" | "msecs" | "millis" | "milliseconds" => Some("ms"),
                        _ => None,
                    };
                    known.map(|known| format!("the unit is `{known}`"))
                }
                DurationError::Malformed if text.contains(' ') => Some("write it without spaces".to_owned()),
                DurationError::Malformed if text.starts_with('-') => Some("it cannot be negative".to_owned()),
                DurationError::Malformed if text.contains(['.', ',']) => Some("write `1h30m` for one and a half hours".to_owned()),
                DurationError::Malformed | DurationError::TooLong => None,
            };
            Err((told(&error.to_string()), hint))
        }
    }
}

/// Reads a size; the error is what is wrong, and a hint.
pub(super) fn size(text: &str, least: Bytes, most: Bytes) -> Result<Bytes, (String, Option<String>)> {
    match parse_bytes(text) {
        Ok(size) if size < least => Err((format!("too small: at least {} bytes", least.0), None)),
        Ok(size) if size > most => Err((format!("too large: at most {} bytes", most.0), None)),
        Ok(size) => Ok(size),
        Err(error) => {
            let hint = match &error {
                // So many megabytes were hardly meant.
                BytesError::NoUnit if text.len() > 4 => Some(format!("write `{text}B` for bytes")),
                BytesError::NoUnit => Some(format!("write `{text}MB` for megabytes (10^6), `{text}MiB` for 2^20")),
                BytesError::Unit(unit) => {
                    let known = match unit.to_lowercase().as_str() {
                        "k" | "kb" => Some("kB` or `KiB"),
                        "m" | "mb" => Some("MB` or `MiB"),
                        "g" | "gb" => Some("GB` or `GiB"),
                        "t" | "tb" => Some("TB` or `TiB"),
                        "kib" => Some("KiB"),
                        "mib" => Some("MiB"),
                        "gib" => Some("GiB"),
                        "b" | "byte" | "bytes" => Some("B"),
                        _ => None,
                    };
                    known.map(|known| format!("the unit is `{known}`"))
                }
                BytesError::Malformed if text.contains(' ') => Some("write it without spaces".to_owned()),
                BytesError::Malformed if text.starts_with('-') => Some("it cannot be negative".to_owned()),
                BytesError::Malformed if text.contains('.') => Some("write `1500MB` for 1.5 gigabytes".to_owned()),
                BytesError::Malformed | BytesError::TooLarge => None,
            };
            Err((told(&error.to_string()), hint))
        }
    }
}

/// The error without the value, which the problem tells itself.
fn told(error: &str) -> String {
    error.split(": ").next().unwrap_or_default().to_owned()
}
