//! The file of those who may sign, in the format of ssh-keygen(1), ALLOWED SIGNERS.
//!
//! Read as OpenSSH reads it (`sshsig.c`), down to what is odd: git first asks who has the key (the first line that fits, whatever its
//! `namespaces`), then whether those names may sign for git (any line). A line that cannot be read is passed over and told of.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::sshsig::{Certificate, Key};

const WHITE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Who may sign.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signers {
    lines: Vec<Line>,
    /// What could not be read, with the number of its line.
    pub(crate) trouble: Vec<String>,
}

#[derive(Clone, Debug)]
struct Line {
    number: usize,
    /// Patterns, separated by commas.
    principals: String,
    options: Options,
    key: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct Options {
    authority: bool,
    namespaces: Option<String>,
    after: Option<i64>,
    before: Option<i64>,
}

impl Signers {
    /// Reads the file's text; dates without `Z` are in `zone`.
    pub(crate) fn parse(text: &str, zone: &TimeZone) -> Self {
        let mut signers = Self::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim_start_matches(WHITE);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match Line::parse(at + 1, line, zone) {
                Ok(line) => signers.lines.push(line),
                Err(why) => signers.trouble.push(format!("line {}: {why}", at + 1)),
            }
        }
        signers
    }

    /// Whether nobody may sign.
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Returns who signed with this key at this time.
    ///
    /// # Errors
    /// What is written about the key, if anything.
    pub(super) fn who(&self, key: &Key, namespace: &str, at: i64) -> Result<String, Vec<String>> {
        let mut why = Vec::new();
        let mut note = |line: &Line, text: String| {
            let text = format!("line {}: {text}", line.number);
            if !why.contains(&text) {
                why.push(text);
            }
        };
        let mut names = Vec::new();
        for line in self.lines.iter().filter(|line| line.is_about(key)) {
            let found = line.valid(at).and_then(|()| line.names(key, at));
            match found {
                Ok(found) => {
                    names = found;
                    break;
                }
                Err(text) => note(line, text),
            }
        }
        for name in &names {
            for line in self.lines.iter().filter(|line| line.is_about(key) && matches(name, &line.principals)) {
                let checked = line
                    .permits(namespace)
                    .and_then(|()| line.valid(at))
                    .and_then(|()| key.certificate.as_ref().map_or(Ok(()), |certificate| certificate.says(name, at)));
                match checked {
                    Ok(()) => return Ok(name.clone()),
                    Err(text) => note(line, text),
                }
            }
        }
        Err(why)
    }
}

impl Line {
    fn parse(number: usize, line: &str, zone: &TimeZone) -> Result<Self, String> {
        let (principals, rest) = first_word(line).ok_or("it has no key")?;
        let (options, key) = match key(rest) {
            Some(key) => (Options::default(), key),
            None => {
                let end = end_of_options(rest);
                let after = rest[end..].trim_start_matches([' ', '\t']);
                if after.is_empty() {
                    return Err("it has no key".to_owned());
                }
                let key = key(after).ok_or("its key cannot be read")?;
                (Options::parse(&rest[..end], zone)?, key)
            }
        };
        Ok(Self { number, principals, options, key })
    }

    /// Whether the line speaks of this key, or of the authority that certified it.
    fn is_about(&self, key: &Key) -> bool {
        match &key.certificate {
            None => !self.options.authority && self.key == key.blob,
            Some(certificate) => self.options.authority && self.key == certificate.authority,
        }
    }

    /// The names that the key stands for by this line.
    fn names(&self, key: &Key, at: i64) -> Result<Vec<String>, String> {
        let Some(certificate) = &key.certificate else {
            // An empty name ends the list (strsep in ssh-keygen).
            return Ok(self.principals.split(',').take_while(|name| !name.is_empty()).map(str::to_owned).collect());
        };
        let of_line = certificate.principals.iter().filter(|name| matches(name, &self.principals));
        let names: Vec<String> = of_line.filter(|name| certificate.says(name, at).is_ok()).cloned().collect();
        if names.is_empty() {
            let listed = certificate.principals.iter().find(|name| matches(name, &self.principals));
            return Err(match listed.map(|name| certificate.says(name, at)) {
                Some(Err(text)) => text,
                _ => "the certificate is for other names".to_owned(),
            });
        }
        Ok(names)
    }

    fn permits(&self, namespace: &str) -> Result<(), String> {
        match &self.options.namespaces {
            Some(list) if !matches(namespace, list) => Err(format!("it may not sign for `{namespace}`")),
            _ => Ok(()),
        }
    }

    fn valid(&self, at: i64) -> Result<(), String> {
        match self.options {
            Options { after: Some(after), .. } if at < after => Err(format!("not valid before {}", shown(after))),
            Options { before: Some(before), .. } if at > before => Err(format!("expired {}, and was signed {}", shown(before), shown(at))),
            _ => Ok(()),
        }
    }
}

impl Certificate {
    /// Whether the authority lets the key sign in this name at this time (`sshkey_cert_check_authority`).
    fn says(&self, name: &str, at: i64) -> Result<(), String> {
        let at = u64::try_from(at).unwrap_or(0);
        if !self.of_user {
            return Err("the certificate is a host's".to_owned());
        }
        if at < self.valid_after {
            return Err("the certificate was not valid yet".to_owned());
        }
        if at >= self.valid_before {
            return Err("the certificate had expired".to_owned());
        }
        if self.principals.iter().any(|principal| principal == name) {
            Ok(())
        } else {
            Err("the certificate is for other names".to_owned())
        }
    }
}

impl Options {
    /// Reads `cert-authority,namespaces="...",valid-after="...",valid-before="..."`.
    fn parse(text: &str, zone: &TimeZone) -> Result<Self, String> {
        let mut options = Self::default();
        let mut rest = text;
        loop {
            if let Some(after) = without_case(rest, "cert-authority") {
                options.authority = true;
                rest = after;
            } else if let Some(after) = without_case(rest, "namespaces=") {
                let (value, after) = quoted(after)?;
                if options.namespaces.replace(value).is_some() {
                    return Err("it has `namespaces` twice".to_owned());
                }
                rest = after;
            } else if let Some(after) = without_case(rest, "valid-after=") {
                let (value, after) = quoted(after)?;
                if options.after.replace(seconds(&value, zone).ok_or("its `valid-after` is no date")?).is_some() {
                    return Err("it has `valid-after` twice".to_owned());
                }
                rest = after;
            } else if let Some(after) = without_case(rest, "valid-before=") {
                let (value, after) = quoted(after)?;
                if options.before.replace(seconds(&value, zone).ok_or("its `valid-before` is no date")?).is_some() {
                    return Err("it has `valid-before` twice".to_owned());
                }
                rest = after;
            } else {
                return Err("it has an option that is not known".to_owned());
            }
            if rest.is_empty() {
                break;
            }
            rest = rest.strip_prefix(',').filter(|rest| !rest.is_empty()).ok_or("it has an option that is not known")?;
        }
        if let (Some(after), Some(before)) = (options.after, options.before)
            && before <= after
        {
            return Err("its `valid-before` is before its `valid-after`".to_owned());
        }
        Ok(options)
    }
}

/// The first word, of which a part may be quoted, and what follows (`strdelimw` of OpenSSH).
fn first_word(line: &str) -> Option<(String, &str)> {
    let at = line.find(|c| WHITE.contains(&c) || c == '"')?;
    let (before, rest) = line.split_at(at);
    if let Some(rest) = rest.strip_prefix('"') {
        let (quoted, rest) = rest.split_once('"')?;
        return Some((format!("{before}{quoted}"), rest.trim_start_matches(WHITE)));
    }
    Some((before.to_owned(), rest.trim_start_matches(WHITE)))
}

/// Where the options end: at the first space that is not in quotes (`sshkey_advance_past_options`).
fn end_of_options(text: &str) -> usize {
    let (mut in_quotes, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if text[at + 1..].starts_with('"') => escaped = true,
            '"' => in_quotes = !in_quotes,
            ' ' | '\t' if !in_quotes => return at,
            _ => {}
        }
    }
    text.len()
}

/// Reads `KIND BASE64 COMMENT`; the key's kind is written in it once more.
fn key(text: &str) -> Option<Vec<u8>> {
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let (kind, body) = (words.next()?, words.next()?.trim_end_matches(WHITE));
    let bytes = STANDARD.decode(body).ok()?;
    let named = crate::release::transport::ssh::key::Fields(&bytes).string().ok()? == kind.as_bytes();
    named.then_some(bytes)
}

fn without_case<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(word.len())?;
    start.eq_ignore_ascii_case(word).then_some(rest)
}

/// Reads a quoted value; `\"` in it is a quote.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let inside = text.strip_prefix('"').ok_or("it has an option whose value is not in quotes")?;
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in inside.char_indices() {
        match c {
            '\\' if !escaped && inside[at + 1..].starts_with('"') => escaped = true,
            '"' if !escaped => return Ok((value, &inside[at + 1..])),
            c => {
                escaped = false;
                value.push(c);
            }
        }
    }
    Err("it has an option whose quotes do not end".to_owned())
}

/// Reads `YYYYMMDD[HHMM[SS]][Z]`.
fn seconds(text: &str, zone: &TimeZone) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let stripped = lower.strip_suffix('z').or_else(|| lower.strip_suffix("utc"));
    let digits = stripped.unwrap_or(&lower);
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, len: usize| digits.get(from..from + len).map_or(Some(0), |part| part.parse::<i8>().ok());
    let year = digits.get(..4)?.parse::<i16>().ok()?;
    let civil = DateTime::new(year, part(4, 2)?, part(6, 2)?, part(8, 2)?, part(10, 2)?, part(12, 2)?, 0).ok()?;
    let zone = if stripped.is_some() { TimeZone::UTC } else { zone.clone() };
    let at = civil.to_zoned(zone).ok()?.timestamp().as_second();
    (at >= 0).then_some(at)
}

fn shown(at: i64) -> String {
    jiff::Timestamp::from_second(at).map_or_else(|_| at.to_string(), |at| at.to_string())
}

/// Whether a name is in a list of patterns, of which those with `!` forbid (`match_pattern_list` of OpenSSH).
fn matches(name: &str, list: &str) -> bool {
    let mut found = false;
    for pattern in list.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches_one(name.as_bytes(), pattern.as_bytes()) => return false,
            Some(_) => {}
            None => found |= matches_one(name.as_bytes(), pattern.as_bytes()),
        }
    }
    found
}

/// `*` is anything, `?` is one byte. Linear in memory and at worst quadratic in time.
fn matches_one(name: &[u8], pattern: &[u8]) -> bool {
    let (mut at, mut of) = (0, 0);
    let mut star = None;
    while at < name.len() {
        match pattern.get(of) {
            Some(b'*') => {
                star = Some((of, at));
                of += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[at] => {
                at += 1;
                of += 1;
            }
            _ => match star {
                Some((before, from)) => {
                    star = Some((before, from + 1));
                    (of, at) = (before + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[of..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_openssh() {
        for (name, list, wanted) in [
            ("a@b", "a@b", true),
            ("a@b", "*@b", true),
            ("a@b", "*@b,!a@b", false),
            ("a@b", "!a@b,*", false),
            ("a@b", "!c@b", false),
            ("a@b", "x,?@?", true),
            ("a@bc", "?@?", false),
            ("", "*", true),
            ("", "", true),
            ("aab", "*ab", true),
            ("aXbXc", "a*b*c", true),
            ("aXbX", "a*b*c", false),
        ] {
            assert_eq!(matches(name, list), wanted, "{name} in {list}");
        }
        assert!(!matches_one(&[b'a'; 20_000], &b"*a".repeat(64).into_iter().chain(*b"b").collect::<Vec<_>>()));
    }

    #[test]
    fn dates_are_read_in_their_zone() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        for (text, wanted) in [
            ("19700102", Some(86_400 - 7200)),
            ("19700102Z", Some(86_400)),
            ("197001020304z", Some(86_400 + 3 * 3600 + 4 * 60)),
            ("19700102030405UTC", Some(86_400 + 3 * 3600 + 4 * 60 + 5)),
            ("19701301", None),
            ("1970", None),
            ("1970-01-02", None),
            ("+9700102", None),
            ("19700101", None),
        ] {
            assert_eq!(seconds(text, &zone), wanted, "{text}");
        }
    }
}
