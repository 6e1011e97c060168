//! `build.runtime`: a word, or managers and what each is asked for.

use std::collections::BTreeMap;

use selfstart_core::runtime::files::{canonical, is_version};
use selfstart_core::runtime::{Manager, Pick, Setting};

use super::raw::Value;
use super::reader::{At, Reader};

/// Where `venv` is if nothing else is said.
const VENV: &str = ".venv";

const ALLOWED: &str = "auto, none, one of rvm, rbenv, asdf, mise, nvm, pyenv, venv, or `{MANAGER: VERSION}`";

impl Reader<'_> {
    pub(super) fn runtime(&mut self, at: &At<'_>) -> Option<Setting> {
        if let Value::Map(_) = at.node.value {
            return self.managers(at);
        }
        let text = self.text(at)?;
        match text {
            "auto" => Some(Setting::Auto),
            "none" => Some(Setting::None),
            _ => {
                let Some(manager) = named(text) else {
                    self.tell(at, "no runtime", |problem| problem.found(text).allowed(ALLOWED));
                    return None;
                };
                let pick = if manager == Manager::Venv { Pick::Version(VENV.into()) } else { Pick::Files };
                Some(Setting::By([(manager, pick)].into()))
            }
        }
    }

    fn managers(&mut self, at: &At<'_>) -> Option<Setting> {
        let map = self.free_map(at, "build.runtime");
        let mut by: BTreeMap<Manager, Pick> = BTreeMap::new();
        for (entry, at) in map.named() {
            let Some(manager) = named(&entry.key) else {
                let names = Manager::NAMED.map(Manager::as_str).join(", ");
                let problem = self.problem(entry.key_at, &at.key, "no manager of runtimes").found(&entry.key).allowed(names);
                self.problems.push(problem);
                continue;
            };
            // A virtual environment stands on a python of pyenv, so these two go together.
            let clash = |other: &&Manager| {
                manager.language().is_some()
                    && other.language() == manager.language()
                    && **other != Manager::Venv
                    && manager != Manager::Venv
            };
            if let Some(other) = by.keys().find(clash) {
                let what = format!("`{other}` has {} already", manager.language().unwrap_or_default());
                let problem = self.problem(entry.key_at, &at.key, what).hint("name one manager for each language");
                self.problems.push(problem);
                continue;
            }
            if let Some(pick) = self.pick(&at, manager) {
                by.insert(manager, pick);
            }
        }
        if by.is_empty() && !map.refused {
            self.tell(at, "names no manager", |problem| problem.allowed(ALLOWED));
            return None;
        }
        Some(Setting::By(by))
    }

    fn pick(&mut self, at: &At<'_>, manager: Manager) -> Option<Pick> {
        if manager == Manager::Venv {
            return self.venv(at);
        }
        if let Value::Map(_) = at.node.value {
            if manager.language().is_some() {
                let allowed = format!("a version of {}, or auto", manager.language().unwrap_or_default());
                self.tell(at, "not a version", |problem| problem.allowed(allowed));
                return None;
            }
            let map = self.free_map(at, "build.runtime");
            let mut tools = BTreeMap::new();
            for (entry, at) in map.named() {
                let named = is_version(&entry.key) && !entry.key.contains('/');
                if !named {
                    let problem = self.problem(entry.key_at, &at.key, "not the name of a tool").found(&entry.key);
                    self.problems.push(problem);
                } else if let Some(version) = self.version(&at) {
                    tools.insert(canonical(&entry.key), version);
                }
            }
            return Some(Pick::Tools(tools));
        }
        let text = self.version(at)?;
        if text == "auto" {
            return Some(Pick::Files);
        }
        if manager.language().is_none() {
            let hint = format!("`{manager}: {{ruby: {text}}}`, if ruby is meant");
            self.tell(at, "does not say of which tool", |problem| problem.found(&text).allowed("auto, or `{TOOL: VERSION}`").hint(hint));
            return None;
        }
        Some(Pick::Version(text))
    }

    fn version(&mut self, at: &At<'_>) -> Option<String> {
        let text = self.text(at)?;
        if !is_version(text) {
            self.tell(at, "not a version", |problem| problem.found(text).allowed("letters, digits and `._+-:@/*`"));
            return None;
        }
        Some(text.to_owned())
    }

    fn venv(&mut self, at: &At<'_>) -> Option<Pick> {
        let text = self.text(at)?;
        let path = match text {
            "auto" => VENV.to_owned(),
            // A `:` would end the entry of PATH.
            _ if text.contains(':') => {
                self.tell(at, "not a path", |problem| problem.found(text).allowed("a path without `:`"));
                return None;
            }
            _ if text.starts_with('/') => self.absolute_path(at)?.display().to_string(),
            _ => self.relative_path(at, "the release")?.display().to_string(),
        };
        Some(Pick::Version(path))
    }
}

fn named(text: &str) -> Option<Manager> {
    Manager::NAMED.into_iter().find(|manager| manager.as_str() == text)
}
