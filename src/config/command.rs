//! Splitting a `command:` into words, as a shell would, without being one.
//!
//! Quotes and backslashes mean what they mean in a shell; everything else that only a shell gives a meaning is refused, so
//! that nothing is silently taken as text. Placeholders stay as they are written.

/// Why a text is not a command that can be executed directly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No word in it.
    #[error("no command")]
    Empty,
    /// A quote without its end.
    #[error("a quote that does not end")]
    Quote,
    /// `&&`, `|`, `$X`, ... outside of quotes (`$` and backticks also within double quotes).
    #[error("a shell's `{0}`, but no shell runs it")]
    Shell(String),
    /// More than one line.
    #[error("more than one line, but no shell runs it")]
    Lines,
    /// `NAME=value` before the command.
    #[error("an environment variable before the command")]
    Assignment {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// `cd`, `export`, ...: no program of that name is anywhere.
    #[error("`{0}` is a shell's own command")]
    Builtin(String),
}

impl CommandError {
    /// The next step for the reader of the message.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Empty => "write a program and its arguments".to_owned(),
            Self::Quote => "close the quote, or put a backslash before it".to_owned(),
            Self::Shell(what) => format!("use `shell:` instead of `command:`, or put `{what}` in single quotes"),
            Self::Lines | Self::Builtin(_) => "use `shell:` instead of `command:`".to_owned(),
            Self::Assignment { name, value } => format!("put it under `env:`: `{name}: {value}`"),
        }
    }
}

/// What a shell does itself; a program of that name would not do it.
const BUILTINS: [&str; 9] = ["cd", "export", "source", ".", "exec", "eval", "set", "ulimit", "umask"];

/// Splits a command into words; never empty.
///
/// # Errors
/// If it cannot be executed without a shell.
pub fn split(text: &str) -> Result<Vec<String>, CommandError> {
    let text = text.trim();
    refuse_shell(text)?;
    let words = shell_words::split(text).map_err(|_| CommandError::Quote)?;
    let Some(first) = words.first().filter(|first| !first.is_empty()) else {
        return Err(CommandError::Empty);
    };
    if let Some((name, value)) = first.split_once('=')
        && super::secret::is_variable_name(name)
    {
        return Err(CommandError::Assignment { name: name.to_owned(), value: value.to_owned() });
    }
    if BUILTINS.contains(&first.as_str()) {
        return Err(CommandError::Builtin(first.clone()));
    }
    Ok(words)
}

/// Looks for what only a shell gives a meaning.
fn refuse_shell(text: &str) -> Result<(), CommandError> {
    #[derive(PartialEq)]
    enum Quotes {
        None,
        Single,
        Double,
    }
    let mut quotes = Quotes::None;
    let mut word_start = true;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        let starts_word = std::mem::replace(&mut word_start, false);
        match (&quotes, c) {
            (Quotes::None | Quotes::Double, '\\') => {
                chars.next();
            }
            (Quotes::Single, '\'') | (Quotes::Double, '"') => quotes = Quotes::None,
            (Quotes::Single, _) => {}
            (_, '$' | '`') => return Err(CommandError::Shell(operator(&text[at..]))),
            (Quotes::Double, _) => {}
            (Quotes::None, '\'') => quotes = Quotes::Single,
            (Quotes::None, '"') => quotes = Quotes::Double,
            (Quotes::None, '\n') => return Err(CommandError::Lines),
            (Quotes::None, '&' | '|' | ';' | '<' | '>' | '(' | ')') => return Err(CommandError::Shell(operator(&text[at..]))),
            (Quotes::None, '#' | '~') if starts_word => return Err(CommandError::Shell(c.to_string())),
            (Quotes::None, c) => word_start = c.is_whitespace(),
        }
    }
    Ok(())
}

/// The operator or variable at the beginning of a text, as the message names it.
fn operator(text: &str) -> String {
    if let Some(rest) = text.strip_prefix('$') {
        let name = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        return match rest.chars().next() {
            Some(bracket @ ('(' | '{')) => format!("${bracket}"),
            _ => text.chars().take(name.clamp(1, 30) + 1).collect(),
        };
    }
    ["&&", "||", ">>", "<<"].into_iter().find(|long| text.starts_with(long)).map_or_else(|| text.chars().take(1).collect(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_as_a_shell_does() {
        for (text, words) in [
            ("bundle exec rake resque:work", &["bundle", "exec", "rake", "resque:work"][..]),
            ("  node 'a b' \"c d\" e\\ f  ", &["node", "a b", "c d", "e f"]),
            ("rq worker -n {pool}-{start} --url 'a&b|c$d'", &["rq", "worker", "-n", "{pool}-{start}", "--url", "a&b|c$d"]),
            (
                "php artisan queue:work --queue=* '' a#b x=1 \\$HOME",
                &["php", "artisan", "queue:work", "--queue=*", "", "a#b", "x=1", "$HOME"],
            ),
        ] {
            assert_eq!(split(text).expect(text), words);
        }
    }

    #[test]
    fn refuses_what_only_a_shell_understands() {
        let shell = |what: &str| CommandError::Shell(what.to_owned());
        for (text, error) in [
            ("a && b", shell("&&")),
            ("a|b", shell("|")),
            ("a || b", shell("||")),
            ("a > b", shell(">")),
            ("a 2>> b", shell(">>")),
            ("a; b", shell(";")),
            ("a $HOME_2/b", shell("$HOME_2")),
            ("a \"$X y\"", shell("$X")),
            ("a ${X}", shell("${")),
            ("a $(b)", shell("$(")),
            ("a `b`", shell("`")),
            ("a # b", shell("#")),
            ("~/bin/a", shell("~")),
            ("(a)", shell("(")),
            ("a $", shell("$")),
            ("a\nb", CommandError::Lines),
            ("A=1 b", CommandError::Assignment { name: "A".into(), value: "1".into() }),
            ("cd x", CommandError::Builtin("cd".into())),
            ("a 'b", CommandError::Quote),
            ("''", CommandError::Empty),
            (" ", CommandError::Empty),
        ] {
            assert_eq!(split(text), Err(error), "{text}");
        }
    }
}
