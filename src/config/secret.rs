//! Texts that may hold secrets: what the configuration says about them, and what they are when they are used.
//!
//! A [`Text`] is what is written: plain pieces, `${file:/abs/path}` and `${env:NAME}`. It is safe to show: of a secret it
//! knows only where it comes from. [`Text::resolve`] reads the files and gives a [`Resolved`], which shows itself as
//! its text did: masking goes by origin, never by search and replace. Not here: which keys may hold secrets (`merged`).

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::placeholders::{self, Values};

/// The agent's environment: the value of a variable, `None` if it is not set (or is not UTF-8).
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The largest secret file that is read: no key, token or password is near it, and a wrong path must not fill the memory.
pub const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// A text of the configuration that may hold secrets; `Debug` and `Display` never show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Text {
    pieces: Vec<Piece>,
    plain: Plain,
}

/// One piece of a [`Text`].
#[derive(Clone, PartialEq, Eq)]
enum Piece {
    /// As it is written.
    Plain(String),
    /// `${file:/abs/path}`: a secret.
    File(PathBuf),
    /// `${env:NAME}`: from the agent's environment, not a secret.
    Env(String),
}

/// Whether what is written in plain may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// It may; but not the password of a URL.
    Shown,
    /// It is a token or a password: `***`.
    Masked,
}

/// Why a `${...}` is refused when the configuration is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// `${` without `}`.
    #[error("`${{` without `}}`")]
    Open,
    /// `${NAME}`.
    #[error("`${{{0}}}` does not say where it comes from")]
    NoKind(String),
    /// `${kind:...}` of a kind that does not exist.
    #[error("no such source: `${{{0}:...}}`")]
    Kind(String),
    /// `${file:relative}`.
    #[error("the path of `${{file:...}}` is not absolute: `{0}`")]
    Relative(String),
    /// `${env:1X}`.
    #[error("not a name of an environment variable: `{0}`")]
    Name(String),
}

/// Why a text could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file is not there, or may not be read.
    #[error("failed to read the secret of `{key}` from `{}`", .path.display())]
    Unreadable {
        /// The key in the configuration.
        key: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, a device, a pipe: reading could go on for ever.
    #[error("failed to read the secret of `{key}`: not a regular file: `{}`", .path.display())]
    NotAFile {
        /// The key in the configuration.
        key: String,
        /// The path.
        path: PathBuf,
    },
    /// More than [`MAX_SECRET_BYTES`].
    #[error("failed to read the secret of `{key}`: larger than 64 KiB: `{}`", .path.display())]
    TooLarge {
        /// The key in the configuration.
        key: String,
        /// The file.
        path: PathBuf,
    },
    /// Not UTF-8, or with a NUL inside: no environment and no request could carry it.
    #[error("failed to read the secret of `{key}`: not text (UTF-8 without NUL): `{}`", .path.display())]
    NotText {
        /// The key in the configuration.
        key: String,
        /// The file.
        path: PathBuf,
    },
    /// The agent's environment has no such variable.
    #[error("failed to resolve `{key}`: not set in the environment of the agent: `{name}`")]
    NotSet {
        /// The key in the configuration.
        key: String,
        /// The variable.
        name: String,
    },
}

impl Text {
    /// Reads a text as it is written; `$${` is a literal `${`.
    ///
    /// # Errors
    /// If a `${...}` is not `${file:/abs/path}` or `${env:NAME}`.
    pub fn parse(written: &str, plain: Plain) -> Result<Self, TextError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = written;
        while let Some(at) = rest.find("${") {
            if let Some(before) = rest[..at].strip_suffix('$') {
                literal.push_str(before);
                literal.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            literal.push_str(&rest[..at]);
            let inside = &rest[at + 2..];
            let end = inside.find('}').ok_or(TextError::Open)?;
            if !literal.is_empty() {
                pieces.push(Piece::Plain(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::parse(&inside[..end])?);
            rest = &inside[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() || pieces.is_empty() {
            pieces.push(Piece::Plain(literal));
        }
        Ok(Self { pieces, plain })
    }

    /// Whether resolving it reads a secret.
    #[must_use]
    pub fn holds_secrets(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::File(_)))
    }

    /// Whether `Display` and `Debug` hide a part of it: it holds a secret, is a token or password, or is a URL with one.
    #[must_use]
    pub fn is_masked(&self) -> bool {
        self.holds_secrets()
            || self.pieces.iter().any(|piece| match piece {
                Piece::Plain(text) => match self.plain {
                    Plain::Masked => !text.is_empty(),
                    Plain::Shown => mask_userinfo(text) != *text,
                },
                Piece::File(_) | Piece::Env(_) => false,
            })
    }

    /// Whether all that are secrets stand in the userinfo of a URL, before the last `@` of its authority.
    #[must_use]
    pub fn secrets_are_userinfo(&self) -> bool {
        const LOOKED_UP: char = '\u{1}';
        const SECRET: char = '\u{2}';
        let text: String = self
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Plain(text) => text.replace([LOOKED_UP, SECRET], " "),
                Piece::Env(_) => LOOKED_UP.into(),
                Piece::File(_) => SECRET.into(),
            })
            .collect();
        let Some((scheme, rest)) = text.split_once("://") else { return !self.holds_secrets() };
        let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
        let userinfo = authority.rsplit_once('@').map_or("", |(userinfo, _)| userinfo);
        !scheme.contains(SECRET) && !rest[userinfo.len()..].contains(SECRET)
    }

    /// The variables of the agent's environment that [`Text::resolve`] reads.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| if let Piece::Env(name) = piece { Some(name.as_str()) } else { None })
    }

    /// The files that [`Text::resolve`] reads.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.pieces.iter().filter_map(|piece| if let Piece::File(path) = piece { Some(path.as_path()) } else { None })
    }

    /// Returns what is written in plain before the first `${...}`; it may hold the password of a URL.
    #[must_use]
    pub fn plain_start(&self) -> &str {
        match self.pieces.first() {
            Some(Piece::Plain(text)) => text,
            _ => "",
        }
    }

    /// Returns the whole text if nothing of it must be looked up; it may hold a token or the password of a URL.
    #[must_use]
    pub fn as_plain(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Plain(text)] => Some(text),
            _ => None,
        }
    }

    /// Fills in the placeholders of what is written in plain; what is looked up is never searched for any.
    #[must_use]
    pub fn expand(&self, values: &Values) -> Self {
        let expand = |piece: &Piece| match piece {
            Piece::Plain(text) => Piece::Plain(placeholders::expand(text, values)),
            other => other.clone(),
        };
        Self { pieces: self.pieces.iter().map(expand).collect(), plain: self.plain }
    }

    /// Looks up what is not written: reads the files (line ends at their end are dropped) and the agent's environment.
    ///
    /// `key` is named in errors, e.g. `pools.web.env.TOKEN`.
    ///
    /// # Errors
    /// If a file cannot be read or is no text, or a variable is not set.
    pub fn resolve(&self, key: &str, env: Env<'_>) -> Result<Resolved, SecretError> {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Plain(plain) => text.push_str(plain),
                Piece::File(path) => text.push_str(&read_secret(path, key)?),
                Piece::Env(name) => {
                    text.push_str(&env(name).ok_or_else(|| SecretError::NotSet { key: key.to_owned(), name: name.clone() })?);
                }
            }
        }
        Ok(Resolved { text, shown: self.is_masked().then(|| self.to_string()) })
    }
}

impl Piece {
    /// Reads what stands between `${` and `}`.
    fn parse(inside: &str) -> Result<Self, TextError> {
        let Some((kind, what)) = inside.split_once(':') else {
            return Err(TextError::NoKind(inside.to_owned()));
        };
        match kind {
            "file" if what.starts_with('/') => Ok(Self::File(what.into())),
            "file" => Err(TextError::Relative(what.to_owned())),
            "env" if is_variable_name(what) => Ok(Self::Env(what.to_owned())),
            "env" => Err(TextError::Name(what.to_owned())),
            other => Err(TextError::Kind(other.to_owned())),
        }
    }
}

impl fmt::Display for Text {
    /// As it is written, but for tokens, passwords, and the password of a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.pieces {
            match piece {
                Piece::Plain(text) if self.plain == Plain::Masked && !text.is_empty() => f.write_str("***")?,
                Piece::Plain(text) => f.write_str(&mask_userinfo(text).replace("${", "$${"))?,
                Piece::File(path) => write!(f, "${{file:{}}}", path.display())?,
                Piece::Env(name) => write!(f, "${{env:{name}}}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({self})")
    }
}

/// What a [`Text`] is when it is used; `Debug` shows where it came from if it holds a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Resolved {
    text: String,
    /// `None`: it may be shown.
    shown: Option<String>,
}

impl Resolved {
    /// Returns the value itself: never for a log, an argument list or a status.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Returns what may be shown: the value, or where it came from.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.shown.as_deref().unwrap_or(&self.text)
    }
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolved({})", self.shown())
    }
}

/// Whether `name` may name an environment variable: `[A-Za-z_][A-Za-z0-9_]*` (POSIX.1-2017, 3.235 Name).
#[must_use]
pub fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit()) && !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Replaces the password of a URL by `***`; of http(s) also a lone user name, which usually is a token.
fn mask_userinfo(text: &str) -> String {
    let Some(scheme_end) = text.find("://") else {
        return text.to_owned();
    };
    let (scheme, rest) = text.split_at(scheme_end + 3);
    let authority = &rest[..rest.find(['/', '?', '#', ' ']).unwrap_or(rest.len())];
    let end = match authority.rfind('@') {
        Some(at) => at,
        // A password with an unescaped `/`: what follows the colon is no port, and an `@` comes later.
        None => match (authority.split_once(':'), rest.rfind('@')) {
            (Some((_, after)), Some(at)) if after.bytes().any(|b| !b.is_ascii_digit()) || after.is_empty() => at,
            _ => return text.to_owned(),
        },
    };
    let user = rest[..end].split_once(':').map(|(user, _)| user);
    match user {
        Some(user) => format!("{scheme}{user}:***{}", &rest[end..]),
        None if scheme.starts_with("http") => format!("{scheme}***{}", &rest[end..]),
        None => text.to_owned(),
    }
}

/// Reads one secret, without the line ends at its end; `key` is named in errors.
///
/// # Errors
/// If the file cannot be read or is no text.
pub fn read_secret(path: &Path, key: &str) -> Result<String, SecretError> {
    let unreadable = |source| SecretError::Unreadable { key: key.to_owned(), path: path.to_owned(), source };
    if !fs_err::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SecretError::NotAFile { key: key.to_owned(), path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    let file = fs_err::File::open(path).map_err(unreadable)?;
    file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge { key: key.to_owned(), path: path.to_owned() });
    }
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let text = text.ok_or_else(|| SecretError::NotText { key: key.to_owned(), path: path.to_owned() })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_env(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn shows_where_a_secret_comes_from_and_never_what_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        fs_err::write(&path, "hunter2\r\n\n").expect("written");
        let written = format!("redis://:${{file:{}}}@10.0.0.5/${{env:DB}}", path.display());
        let text = Text::parse(&written, Plain::Shown).expect("a text");
        assert!(text.holds_secrets());
        assert_eq!(text.to_string(), written);
        let resolved = text.resolve("queue.url", &|name| (name == "DB").then(|| "3".to_owned())).expect("resolved");
        assert_eq!(resolved.expose(), "redis://:hunter2@10.0.0.5/3");
        assert_eq!(format!("{resolved:?}"), format!("Resolved({written})"));
    }

    #[test]
    fn hides_what_is_written_in_plain_where_it_is_a_secret() {
        let token = Text::parse("ghp_123", Plain::Masked).expect("a text");
        assert_eq!(format!("{token:?} {token}"), "Text(***) ***");
        assert_eq!(format!("{:?}", token.resolve("k", &no_env).expect("resolved")), "Resolved(***)");
        for (url, shown) in [
            ("redis://:pw@h/0", "redis://:***@h/0"),
            ("redis://:p/w@h/0", "redis://:***@h/0"),
            ("https://ghp_123@github.com/a/b", "https://***@github.com/a/b"),
            ("https://me:pw@github.com/a@b", "https://me:***@github.com/a@b"),
            ("https://host:8080/a@b", "https://host:8080/a@b"),
            ("ssh://git@github.com/a/b", "ssh://git@github.com/a/b"),
            ("git@github.com:a/b", "git@github.com:a/b"),
        ] {
            let text = Text::parse(url, Plain::Shown).expect("a text");
            assert_eq!(text.to_string(), shown);
            assert_eq!(text.is_masked(), url != shown, "{url}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_look_up_later() {
        for (written, error) in [
            ("${HOME}", TextError::NoKind("HOME".into())),
            ("a${ssm:/x}", TextError::Kind("ssm".into())),
            ("${file:x}", TextError::Relative("x".into())),
            ("${env:1X}", TextError::Name("1X".into())),
            ("${env:}", TextError::Name(String::new())),
            ("${file:/x", TextError::Open),
        ] {
            assert_eq!(Text::parse(written, Plain::Shown), Err(error), "{written}");
        }
    }

    #[test]
    fn a_doubled_dollar_is_a_literal_one() {
        let text = Text::parse("a$${HOME}b$c", Plain::Shown).expect("a text");
        assert_eq!(text.as_plain(), Some("a${HOME}b$c"));
        assert_eq!(Text::parse(&text.to_string(), Plain::Shown), Ok(text));
    }

    #[test]
    fn what_is_looked_up_is_not_searched_for_placeholders() {
        let text = Text::parse("{slot}-${env:X}", Plain::Shown).expect("a text");
        let text = text.expand(&Values { slot: Some(3), ..Values::default() });
        let resolved = text.resolve("k", &|_| Some("{slot}".to_owned())).expect("resolved");
        assert_eq!(resolved.expose(), "3-{slot}");
    }

    #[test]
    fn names_the_key_and_the_path_when_a_secret_cannot_be_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs_err::write(at("binary"), [0xff]).expect("written");
        fs_err::write(at("nul"), "a\0b").expect("written");
        fs_err::write(at("large"), vec![b'x'; 70_000]).expect("written");
        let error = |name: &str| {
            let path = if name.is_empty() { dir.path().display().to_string() } else { at(name) };
            Text::parse(&format!("${{file:{path}}}"), Plain::Shown).expect("a text").resolve("env.A", &no_env).expect_err("an error")
        };
        assert!(matches!(error("missing"), SecretError::Unreadable { .. }));
        assert!(matches!(error(""), SecretError::NotAFile { .. }));
        assert!(matches!(error("binary"), SecretError::NotText { .. }));
        assert!(matches!(error("nul"), SecretError::NotText { .. }));
        assert!(matches!(error("large"), SecretError::TooLarge { .. }));
        let message = error("missing").to_string();
        assert!(message.contains("`env.A`") && message.contains(&at("missing")), "{message}");
        let unset = Text::parse("${env:NOPE}", Plain::Shown).expect("a text").resolve("env.B", &no_env);
        assert!(matches!(unset, Err(SecretError::NotSet { name, .. }) if name == "NOPE"));
    }
}
