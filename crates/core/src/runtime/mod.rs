//! The runtime of a release: which ruby, node and python its build steps and workers run, and with which environment.
//!
//! It is settled once per release, before its first build step: [`files`] reads what the release asks for, [`choose`] finds who on this
//! machine has it, [`environ`] says which variables follow. The shell reads the files and lists what is installed (`src/runtime`).
//!
//! ```text
//! files of the release ─▶ Want ─┐
//! build.runtime ────────────────┼─▶ choose ─▶ Chosen ─▶ variables, entries of PATH ─▶ Captured, kept with the release's mark
//! what managers have ───────────┘       └──▶ Missing: the deploy fails and says what is installed
//! ```
//!
//! Not for: installing anything.

pub mod choose;
pub mod environ;
pub mod files;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Who has installed a ruby, node or python.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Manager {
    Mise,
    Asdf,
    Rbenv,
    Rvm,
    Nvm,
    Pyenv,
    /// A virtual environment of python within the release.
    Venv,
    /// Nobody: what is installed for everybody.
    Machine,
}

impl Manager {
    /// Those that `build.runtime` can name.
    pub const NAMED: [Self; 7] = [Self::Rvm, Self::Rbenv, Self::Asdf, Self::Mise, Self::Nvm, Self::Pyenv, Self::Venv];

    /// Returns its name, as in `build.runtime`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mise => "mise",
            Self::Asdf => "asdf",
            Self::Rbenv => "rbenv",
            Self::Rvm => "rvm",
            Self::Nvm => "nvm",
            Self::Pyenv => "pyenv",
            Self::Venv => "venv",
            Self::Machine => "machine",
        }
    }

    /// The only language that it has; `None`: it has any.
    #[must_use]
    pub fn language(self) -> Option<&'static str> {
        match self {
            Self::Rbenv | Self::Rvm => Some("ruby"),
            Self::Nvm => Some("node"),
            Self::Pyenv | Self::Venv => Some("python"),
            Self::Mise | Self::Asdf | Self::Machine => None,
        }
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `build.runtime`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// What the files of the release ask for, from whoever has it.
    #[default]
    Auto,
    /// What the machine has, whatever the release asks for.
    None,
    /// These managers, and nobody else.
    By(BTreeMap<Manager, Pick>),
}

/// What a manager named in `build.runtime` is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// `auto`: what the files of the release say.
    Files,
    /// This version of its language (`3.3.1@flipper` for rvm), or the path of the virtual environment for venv.
    Version(String),
    /// These versions by tool, for asdf and mise.
    Tools(BTreeMap<String, String>),
}

impl fmt::Display for Setting {
    /// As it might be written, on one line: `auto`, `{rvm: 3.3.1@flipper}`, `{asdf: {ruby: 3.3.1}}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self {
            Self::Auto => return f.write_str("auto"),
            Self::None => return f.write_str("none"),
            Self::By(by) => by,
        };
        let one = |(manager, pick): (&Manager, &Pick)| match pick {
            Pick::Files => format!("{manager}: auto"),
            Pick::Version(version) => format!("{manager}: {version}"),
            Pick::Tools(tools) => {
                let tools: Vec<_> = tools.iter().map(|(tool, version)| format!("{tool}: {version}")).collect();
                format!("{manager}: {{{}}}", tools.join(", "))
            }
        };
        write!(f, "{{{}}}", by.iter().map(one).collect::<Vec<_>>().join(", "))
    }
}

/// One language of a release, as it was found when the release was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// `ruby`, `node`, `python`, or another tool of asdf or mise.
    pub tool: String,
    /// What the program itself says; empty: it was not asked.
    pub version: String,
    /// The program that is run, as an absolute path.
    pub program: String,
    /// Whose it is.
    pub manager: Manager,
    /// Why this one: "`.ruby-version` says 3.3.1".
    pub why: String,
}

impl fmt::Display for Tool {
    /// `ruby 3.3.1: /opt/rbenv/versions/3.3.1/bin/ruby, by rbenv: .ruby-version says 3.3.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tool, version, program, manager, why } = self;
        let version = if version.is_empty() { String::new() } else { format!(" {version}") };
        let by = if *manager == Manager::Machine { "the machine's own".to_owned() } else { format!("by {manager}") };
        write!(f, "{tool}{version}: {program}, {by}: {why}")
    }
}

/// The runtime of one release: settled before its first step, and kept with its mark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// What was found, one per language.
    pub tools: Vec<Tool>,
    /// What is added to (or replaces something of) the environment that selfstart makes from nothing.
    pub vars: BTreeMap<String, String>,
    /// What a person should know: files that disagree, tools that are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Captured {
    /// Returns what two runtimes must have in common for what one built to be of use to the other.
    #[must_use]
    pub fn identity(&self) -> String {
        let mut text = String::new();
        for Tool { tool, version, program, .. } in &self.tools {
            text.push_str(&format!("{tool}\0{version}\0{program}\0"));
        }
        for (name, value) in &self.vars {
            text.push_str(&format!("{name}={value}\0"));
        }
        text
    }
}
