//! Signals by name; `sys` knows their numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A signal that a person may name (`signal(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub enum Signal {
    Hup,
    Int,
    Quit,
    Usr1,
    Usr2,
    Alrm,
    Term,
    Cont,
    Stop,
    Tstp,
    Ttin,
    Ttou,
    Winch,
    Abrt,
    Kill,
}

impl Signal {
    /// Every signal, in the order in which hints name them.
    pub const ALL: [Self; 15] = [
        Self::Hup,
        Self::Int,
        Self::Quit,
        Self::Usr1,
        Self::Usr2,
        Self::Alrm,
        Self::Term,
        Self::Cont,
        Self::Stop,
        Self::Tstp,
        Self::Ttin,
        Self::Ttou,
        Self::Winch,
        Self::Abrt,
        Self::Kill,
    ];

    /// Returns the name without `SIG`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hup => "HUP",
            Self::Int => "INT",
            Self::Quit => "QUIT",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
            Self::Alrm => "ALRM",
            Self::Term => "TERM",
            Self::Cont => "CONT",
            Self::Stop => "STOP",
            Self::Tstp => "TSTP",
            Self::Ttin => "TTIN",
            Self::Ttou => "TTOU",
            Self::Winch => "WINCH",
            Self::Abrt => "ABRT",
            Self::Kill => "KILL",
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no signal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such signal: `{0}`")]
pub struct NoSuchSignal(String);

impl FromStr for Signal {
    type Err = NoSuchSignal;

    /// Takes `TERM` and `SIGTERM`, in capitals.
    fn from_str(text: &str) -> Result<Self, NoSuchSignal> {
        let bare = text.strip_prefix("SIG").unwrap_or(text);
        Self::ALL.into_iter().find(|signal| signal.name() == bare).ok_or_else(|| NoSuchSignal(text.to_owned()))
    }
}

impl TryFrom<String> for Signal {
    type Error = NoSuchSignal;

    fn try_from(text: String) -> Result<Self, NoSuchSignal> {
        text.parse()
    }
}

impl From<Signal> for String {
    fn from(signal: Signal) -> Self {
        signal.name().to_owned()
    }
}
