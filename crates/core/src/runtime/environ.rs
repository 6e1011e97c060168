//! Which variables a runtime brings: computed where a manager's effect is known to the letter, kept out of a captured environment where
//! it is the manager's to say.

use std::collections::{BTreeMap, BTreeSet};

use super::Captured;
use super::Manager;
use super::choose::Chosen;

/// The most that a captured environment may hold, names and values together: `execve(2)` takes 128 KiB for one text, and a worker needs
/// room for its own.
pub const MOST_BYTES: usize = 96 << 10;

/// Variables by name.
pub type Vars = BTreeMap<String, String>;

/// What is added for one tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Additions {
    /// Put before PATH, the first first.
    pub path: Vec<String>,
    /// Set.
    pub vars: Vars,
}

/// Returns what a chosen version adds, in a release at that path. Not for rvm, whose environment files say it themselves.
#[must_use]
pub fn additions(chosen: &Chosen, release: &str) -> Additions {
    let path: Vec<String> = chosen.versions.iter().map(|it| format!("{}/bin", it.prefix)).collect();
    let names = chosen.versions.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(":");
    let first = chosen.versions.first();
    let prefix = first.map_or("", |it| it.prefix.as_str());
    let upper = |text: &str| text.to_ascii_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let folder = upper(first.map_or("", |it| it.folder.as_str()));
    let set: Vec<(String, String)> = match chosen.manager {
        // As `rbenv exec` has it, but for its own working: a shim that is called by its path finds the same version.
        Manager::Rbenv => vec![("RBENV_ROOT".into(), chosen.root.clone()), ("RBENV_VERSION".into(), names)],
        Manager::Pyenv => vec![("PYENV_ROOT".into(), chosen.root.clone()), ("PYENV_VERSION".into(), names)],
        // As `nvm use` has it.
        Manager::Nvm => vec![
            ("NVM_DIR".into(), chosen.root.clone()),
            ("NVM_BIN".into(), format!("{prefix}/bin")),
            ("NVM_INC".into(), format!("{prefix}/include/node")),
        ],
        Manager::Asdf => vec![("ASDF_DATA_DIR".into(), chosen.root.clone()), (format!("ASDF_{folder}_VERSION"), names)],
        Manager::Mise => vec![("MISE_DATA_DIR".into(), chosen.root.clone()), (format!("MISE_{folder}_VERSION"), names)],
        Manager::Venv => {
            let venv = within(release, &chosen.root);
            return Additions { path: vec![format!("{venv}/bin")], vars: [("VIRTUAL_ENV".to_owned(), venv)].into() };
        }
        Manager::Rvm | Manager::Machine => return Additions::default(),
    };
    Additions { path, vars: set.into_iter().collect() }
}

/// Returns a path within a release; an absolute one as it is.
#[must_use]
pub fn within(release: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{release}/{path}") }
}

/// Returns what a clean shell changed in its environment and what is not its own noise; PATH is left to [`added_entries`].
#[must_use]
pub fn kept(before: &Vars, after: &Vars) -> Vars {
    let changed = |(name, value): &(&String, &String)| before.get(*name) != Some(*value) && *name != "PATH" && !is_noise(name);
    after.iter().filter(changed).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Whether a variable is about the shell, the user or selfstart, and not about a runtime.
#[must_use]
pub fn is_noise(name: &str) -> bool {
    const NAMES: [&str; 20] = [
        "_",
        "SHLVL",
        "PWD",
        "OLDPWD",
        "IFS",
        "SHELLOPTS",
        "ENV",
        "PS1",
        "PS2",
        "PS4",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "HOSTNAME",
        "MAIL",
        "TERM",
        "COLUMNS",
        "LINES",
        "NOTIFY_SOCKET",
    ];
    // What a manager remembers of the shell that it was loaded into.
    const STARTS: [&str; 7] = ["SELFSTART_", "BASH", "HIST", "rvm_", "__", "LISTEN_", "MISE_SHELL"];
    NAMES.contains(&name) || STARTS.iter().any(|start| name.starts_with(start))
}

/// Returns the entries of a captured PATH that are new, in order.
#[must_use]
pub fn added_entries(before: &str, after: &str) -> Vec<String> {
    let known: BTreeSet<&str> = before.split(':').collect();
    after.split(':').filter(|entry| !entry.is_empty() && !known.contains(entry)).map(str::to_owned).collect()
}

/// Returns PATH with these entries before it: each once, and no folder of shims, which would decide again at each start.
#[must_use]
pub fn path(added: &[String], base: &str) -> String {
    let mut seen = BTreeSet::new();
    let wanted = |entry: &&str| !entry.trim_end_matches('/').ends_with("/shims") && seen.insert((*entry).to_owned());
    added.iter().map(String::as_str).chain(base.split(':')).filter(wanted).collect::<Vec<_>>().join(":")
}

/// Returns why a runtime that a helper tells of is not taken; `None`: it is. The helper runs as the app's user, who is not trusted to say
/// what is selfstart's.
#[must_use]
pub fn refused(captured: &Captured) -> Option<String> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !name.starts_with("SELFSTART_")
    };
    if let Some(name) = captured.vars.iter().find(|(name, value)| !is_name(name) || value.contains('\0')).map(|(name, _)| name) {
        return Some(format!("the environment of the runtime has a variable that cannot be set: {}", name.escape_debug()));
    }
    let bytes: usize = captured.vars.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    (bytes > MOST_BYTES).then(|| format!("the environment of the runtime has {bytes} bytes; at most {MOST_BYTES} are taken"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::choose::Installed;

    fn vars(pairs: &[(&str, &str)]) -> Vars {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn chosen(manager: Manager, root: &str, versions: &[(&str, &str, &str)]) -> Chosen {
        let versions = versions
            .iter()
            .map(|(name, prefix, folder)| Installed { name: (*name).into(), prefix: (*prefix).into(), folder: (*folder).into() })
            .collect();
        Chosen { tool: "x".into(), manager, root: root.into(), versions, gemset: None, why: String::new() }
    }

    #[test]
    fn each_manager_adds_what_its_own_command_would() {
        let table = [
            (
                chosen(Manager::Rbenv, "/h/.rbenv", &[("3.3.1", "/h/.rbenv/versions/3.3.1", "ruby")]),
                "/h/.rbenv/versions/3.3.1/bin",
                "RBENV_ROOT=/h/.rbenv RBENV_VERSION=3.3.1",
            ),
            (
                chosen(Manager::Pyenv, "/p", &[("3.12.1", "/p/versions/3.12.1", "python"), ("3.11.7", "/p/versions/3.11.7", "python")]),
                "/p/versions/3.12.1/bin:/p/versions/3.11.7/bin",
                "PYENV_ROOT=/p PYENV_VERSION=3.12.1:3.11.7",
            ),
            (
                chosen(Manager::Nvm, "/n", &[("v20.1.0", "/n/versions/node/v20.1.0", "node")]),
                "/n/versions/node/v20.1.0/bin",
                "NVM_BIN=/n/versions/node/v20.1.0/bin NVM_DIR=/n NVM_INC=/n/versions/node/v20.1.0/include/node",
            ),
            (
                chosen(Manager::Asdf, "/a", &[("20.1.0", "/a/installs/nodejs/20.1.0", "nodejs")]),
                "/a/installs/nodejs/20.1.0/bin",
                "ASDF_DATA_DIR=/a ASDF_NODEJS_VERSION=20.1.0",
            ),
            (
                chosen(Manager::Mise, "/m", &[("1.5", "/m/installs/ls-lint/1.5", "ls-lint")]),
                "/m/installs/ls-lint/1.5/bin",
                "MISE_DATA_DIR=/m MISE_LS_LINT_VERSION=1.5",
            ),
            (chosen(Manager::Venv, ".venv", &[]), "/srv/r/.venv/bin", "VIRTUAL_ENV=/srv/r/.venv"),
            (chosen(Manager::Venv, "/opt/venv", &[]), "/opt/venv/bin", "VIRTUAL_ENV=/opt/venv"),
            (chosen(Manager::Machine, "", &[]), "", ""),
        ];
        for (chosen, path, set) in table {
            let added = additions(&chosen, "/srv/r");
            let shown: Vec<_> = added.vars.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!((added.path.join(":").as_str(), shown.join(" ").as_str()), (path, set), "{}", chosen.manager);
        }
    }

    #[test]
    fn of_a_captured_environment_only_what_is_the_runtime_s_is_kept() {
        let before = vars(&[("PATH", "/bin"), ("HOME", "/h"), ("LANG", "C.UTF-8")]);
        let after = vars(&[
            ("PATH", "/r/bin:/bin"),
            ("HOME", "/elsewhere"),
            ("LANG", "C.UTF-8"),
            ("GEM_HOME", "/r/gems"),
            ("GEM_PATH", "/r/gems:/r/global"),
            ("MY_RUBY_HOME", "/r"),
            ("IRBRC", "/r/.irbrc"),
            ("RUBY_VERSION", "ruby-3.3.1"),
            ("VIRTUAL_ENV", "/v"),
            ("LD_PRELOAD", "libjemalloc.so"),
            ("SHLVL", "1"),
            ("_", "/usr/bin/env"),
            ("PWD", "/"),
            ("OLDPWD", "/"),
            ("BASH_FUNC_x%%", "() { :; }"),
            ("BASH_ENV", "/x"),
            ("rvm_bin_path", "/x"),
            ("__MISE_DIFF", "x"),
            ("MISE_SHELL", "bash"),
            ("SELFSTART_POOL", "other"),
            ("LISTEN_FDS", "3"),
        ]);
        let kept = kept(&before, &after);
        let names: Vec<_> = kept.keys().map(String::as_str).collect();
        assert_eq!(names, ["GEM_HOME", "GEM_PATH", "IRBRC", "LD_PRELOAD", "MY_RUBY_HOME", "RUBY_VERSION", "VIRTUAL_ENV"]);
        assert_eq!(added_entries("/usr/bin:/bin", "/r/gems/bin:/r/bin:/usr/bin::/bin"), ["/r/gems/bin", "/r/bin"]);
    }

    #[test]
    fn path_has_each_entry_once_and_no_shims() {
        let added = ["/r/bin".to_owned(), "/h/.rbenv/shims".to_owned(), "/bin".to_owned()];
        assert_eq!(path(&added, "/usr/bin:/bin:/h/.asdf/shims/"), "/r/bin:/bin:/usr/bin");
    }

    #[test]
    fn what_a_helper_tells_is_not_taken_if_it_would_say_what_is_ours() {
        let told = |name: &str, value: &str| refused(&Captured { vars: vars(&[(name, value)]), ..Captured::default() });
        assert_eq!(told("GEM_HOME", "/x"), None);
        for (name, value) in [("SELFSTART_POOL", "x"), ("A=B", "x"), ("", "x"), ("1A", "x"), ("A", "x\0y"), ("A\n", "x")] {
            assert!(told(name, value).is_some(), "{name:?}={value:?}");
        }
        assert!(told("A", &"x".repeat(MOST_BYTES)).is_some_and(|why| why.ends_with("are taken")));
    }
}
