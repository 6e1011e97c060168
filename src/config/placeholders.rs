//! Placeholders: `{app}`, `{slot}` and their kin in commands, steps and environments.
//!
//! A name that does not exist, or that has no value where the text is used, is left alone with its braces: a build step may
//! hold any shell, awk or JSON. `{{` is a literal brace, and `${name}` belongs to the shell. Which names may stand where is
//! checked when the configuration is read ([`used`]), so that nothing is left alone by surprise.

use std::fmt::Write as _;

/// What the placeholders stand for; `None` or empty: has no value here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// `{app}`.
    pub app: String,
    /// `{root}`.
    pub root: String,
    /// `{pool}`.
    pub pool: Option<String>,
    /// `{slot}`.
    pub slot: Option<u32>,
    /// `{port}`: of this slot, not of the pool.
    pub port: Option<u16>,
    /// `{generation}`.
    pub generation: Option<u64>,
    /// `{revision}`: the full commit id.
    pub revision: Option<String>,
    /// `{release}`: its name.
    pub release: Option<String>,
    /// `{release_path}`: its real path.
    pub release_path: Option<String>,
    /// `{current}`: the link `<root>/current`.
    pub current: Option<String>,
    /// `{start}`: a number never used twice in a slot.
    pub start: Option<u64>,
}

/// One placeholder; [`Values`] says what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Placeholder {
    App,
    Pool,
    Slot,
    Port,
    Generation,
    Root,
    Revision,
    Release,
    ReleasePath,
    Current,
    Start,
}

impl Placeholder {
    /// All of them, in the order in which the reference names them.
    pub const ALL: [Self; 11] = [
        Self::App,
        Self::Pool,
        Self::Slot,
        Self::Port,
        Self::Generation,
        Self::Root,
        Self::Revision,
        Self::Release,
        Self::ReleasePath,
        Self::Current,
        Self::Start,
    ];

    /// Those that have a value while a release is built: no pool is concerned.
    pub const IN_BUILD: [Self; 6] = [Self::App, Self::Root, Self::Revision, Self::Release, Self::ReleasePath, Self::Current];

    /// Returns the name between the braces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Pool => "pool",
            Self::Slot => "slot",
            Self::Port => "port",
            Self::Generation => "generation",
            Self::Root => "root",
            Self::Revision => "revision",
            Self::Release => "release",
            Self::ReleasePath => "release_path",
            Self::Current => "current",
            Self::Start => "start",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|placeholder| placeholder.name() == name)
    }
}

impl Values {
    /// Writes the value behind `out`; `false`: it has none here.
    fn write(&self, placeholder: Placeholder, out: &mut String) -> bool {
        fn text(value: Option<&str>, out: &mut String) -> bool {
            value.filter(|value| !value.is_empty()).map(|value| out.push_str(value)).is_some()
        }
        fn number<N: Into<u64>>(value: Option<N>, out: &mut String) -> bool {
            value.map(|value| write!(out, "{}", value.into())).is_some()
        }
        match placeholder {
            Placeholder::App => text(Some(&self.app), out),
            Placeholder::Root => text(Some(&self.root), out),
            Placeholder::Pool => text(self.pool.as_deref(), out),
            Placeholder::Slot => number(self.slot, out),
            Placeholder::Port => number(self.port, out),
            Placeholder::Generation => number(self.generation, out),
            Placeholder::Revision => text(self.revision.as_deref(), out),
            Placeholder::Release => text(self.release.as_deref(), out),
            Placeholder::ReleasePath => text(self.release_path.as_deref(), out),
            Placeholder::Current => text(self.current.as_deref(), out),
            Placeholder::Start => number(self.start, out),
        }
    }
}

/// What a text consists of.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    /// Left as it is.
    Plain(&'a str),
    /// `{{`.
    Brace,
    /// `{name}`, as it is written, and the placeholder.
    Filled(&'a str, Placeholder),
}

/// Splits a text; the parts cover it whole.
fn parts(text: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = text;
    let mut after_dollar = false;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        if rest.starts_with("{{") && !after_dollar {
            rest = &rest[2..];
            return Some(Part::Brace);
        }
        if first == '{' && !after_dollar {
            let named = rest.find('}').and_then(|end| Some((end + 1, Placeholder::named(&rest[1..end])?)));
            if let Some((end, placeholder)) = named {
                let (written, after) = rest.split_at(end);
                rest = after;
                return Some(Part::Filled(written, placeholder));
            }
        }
        // The brace itself is plain; the next one may begin a placeholder.
        let end = rest.char_indices().skip(1).find(|&(_, c)| c == '{').map_or(rest.len(), |(at, _)| at);
        let (plain, after) = rest.split_at(end);
        after_dollar = plain.ends_with('$');
        rest = after;
        Some(Part::Plain(plain))
    })
}

/// Fills in the placeholders that have a value.
#[must_use]
pub fn expand(text: &str, values: &Values) -> String {
    let mut out = String::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Plain(plain) => out.push_str(plain),
            Part::Brace => out.push('{'),
            Part::Filled(written, placeholder) => {
                if !values.write(placeholder, &mut out) {
                    out.push_str(written);
                }
            }
        }
    }
    out
}

/// The placeholders that a text uses, in order, with repetitions.
pub fn used(text: &str) -> impl Iterator<Item = Placeholder> {
    parts(text).filter_map(|part| if let Part::Filled(_, placeholder) = part { Some(placeholder) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values {
            app: "flipper".into(),
            root: "/srv/flipper".into(),
            pool: Some("web".into()),
            slot: Some(2),
            port: Some(7002),
            generation: Some(9),
            revision: Some("1a2b".into()),
            release: Some("20261122T101530Z-1a2b3c4".into()),
            release_path: Some("/srv/flipper/releases/20261122T101530Z-1a2b3c4".into()),
            current: Some("/srv/flipper/current".into()),
            start: Some(41),
        }
    }

    #[test]
    fn fills_in_every_name() {
        let text = "{app} {pool} {slot} {port} {generation} {root} {revision} {release} {release_path} {current} {start}";
        assert_eq!(
            expand(text, &values()),
            "flipper web 2 7002 9 /srv/flipper 1a2b 20261122T101530Z-1a2b3c4 \
             /srv/flipper/releases/20261122T101530Z-1a2b3c4 /srv/flipper/current 41"
        );
        assert_eq!(used(text).collect::<Vec<_>>(), Placeholder::ALL);
    }

    #[test]
    fn leaves_other_braces_alone() {
        for text in ["", "{", "}", "{}", "{ slot }", "{slots}", "${slot}", "${slot:-1}", "awk '{print $1}'", "{a,b}", "é{", "{\"slot\": 1}"]
        {
            assert_eq!(expand(text, &values()), text);
            assert_eq!(used(text).count(), 0, "{text}");
        }
        assert_eq!(expand("{slot}", &Values::default()), "{slot}");
        assert_eq!(expand("{ {slot}", &values()), "{ 2");
    }

    #[test]
    fn a_doubled_brace_is_a_literal_one() {
        assert_eq!(expand("{{slot} {{", &values()), "{slot} {");
        assert_eq!(expand("{{{slot}}", &values()), "{2}");
    }
}
