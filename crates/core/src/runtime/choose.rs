//! Who has what a release asks for.
//!
//! A manager is tried with the files that it reads itself before those that it does not, and one that reads several languages' files
//! before one that knows a single one: where `mise.toml` is, somebody uses mise. Of those, the first that *has* the version wins; if
//! nobody has it, the machine's own program does, if it is of that very version; else the version is missing, and that is said. What is
//! asked for is never taken from somewhere else in silence.

use std::collections::BTreeMap;
use std::fmt;

use super::files::{MISE_FILES, TOOL_VERSIONS, Want};
use super::{Manager, Pick, Setting};

/// The languages without which a release is of no use if it names them; other tools may be for developers only.
pub const LANGUAGES: [&str; 3] = ["ruby", "node", "python"];

/// What `file` is when `build.runtime` itself names the version.
pub const CONFIGURED: &str = "build.runtime";

/// The longest chain of aliases that is followed.
const MOST_ALIASES: usize = 8;

/// How many versions an error names of each manager.
const MOST_NAMED: usize = 12;

/// An installed version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// As its manager calls it.
    pub name: String,
    /// Where it is; programs are in `bin` below.
    pub prefix: String,
    /// What the manager calls the tool in its variables.
    pub folder: String,
}

/// A manager that was found on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub manager: Manager,
    /// Where.
    pub root: String,
    /// What it has, by tool.
    pub versions: BTreeMap<String, Vec<Installed>>,
    /// Names that stand for versions (nvm, rvm).
    pub aliases: BTreeMap<String, String>,
    /// The names below `environments/` (rvm).
    pub environments: Vec<String>,
    /// What counts where no file of the release says anything, if this manager is named in `build.runtime`.
    pub global: Vec<Want>,
}

/// The machine's own programs: tool to path and version.
pub type Machine = BTreeMap<String, (String, String)>;

/// What is run for one tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Which tool.
    pub tool: String,
    /// Whose.
    pub manager: Manager,
    /// Where that is.
    pub root: String,
    /// The versions, the first of which counts; none for the machine's own and for venv.
    pub versions: Vec<Installed>,
    /// For rvm.
    pub gemset: Option<String>,
    /// Why: "`.ruby-version` says 3.3.1".
    pub why: String,
}

/// What is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// One per tool.
    pub chosen: Vec<Chosen>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Something that is asked for is not installed; each with what is, and how to get it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Missing(pub Vec<String>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// What is to be chosen from.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// What the release asks for.
    pub wants: &'a [Want],
    /// The managers on this machine.
    pub places: &'a [Place],
    /// What the machine itself has of what is asked for.
    pub machine: &'a Machine,
    /// Whose managers these are, for messages.
    pub user: &'a str,
}

/// Decides who gives each tool.
///
/// # Errors
/// When something is missing: everything that is.
pub fn choose(setting: &Setting, offer: Offer<'_>) -> Result<Choice, Missing> {
    let mut choice = Choice::default();
    let mut missing = Vec::new();
    match setting {
        Setting::None => {}
        Setting::Auto => {
            for tool in tools(offer.wants) {
                let wants: Vec<&Want> = offer.wants.iter().filter(|want| want.tool == tool).collect();
                let strict = LANGUAGES.contains(&tool.as_str());
                settle(&mut choice, &mut missing, offer, &wants, &|_| true, strict);
            }
        }
        Setting::By(by) => {
            for (&manager, pick) in by {
                by_name(&mut choice, &mut missing, offer, by, manager, pick);
            }
        }
    }
    if missing.is_empty() { Ok(choice) } else { Err(Missing(missing)) }
}

/// The tools that are asked for, the languages first.
#[must_use]
pub fn tools(wants: &[Want]) -> Vec<String> {
    let mut tools: Vec<String> =
        LANGUAGES.iter().filter(|tool| wants.iter().any(|want| want.tool == **tool)).map(|tool| (*tool).to_owned()).collect();
    for want in wants {
        if !tools.contains(&want.tool) {
            tools.push(want.tool.clone());
        }
    }
    tools
}

/// A manager that `build.runtime` names.
fn by_name(choice: &mut Choice, missing: &mut Vec<String>, offer: Offer<'_>, by: &BTreeMap<Manager, Pick>, manager: Manager, pick: &Pick) {
    let only = |it: Manager| it == manager;
    let global = || offer.places.iter().filter(move |place| place.manager == manager).flat_map(|place| &place.global);
    match pick {
        Pick::Version(path) if manager == Manager::Venv => {
            let why = format!("`{CONFIGURED}` says venv `{path}`");
            let chosen = Chosen { tool: "python".into(), manager, root: path.clone(), versions: Vec::new(), gemset: None, why };
            choice.chosen.push(chosen);
        }
        Pick::Version(text) => {
            let (version, gemset) = match text.split_once('@') {
                Some((version, set)) if manager == Manager::Rvm => (version, Some(set.to_owned())),
                _ => (text.as_str(), None),
            };
            let tool = manager.language().unwrap_or_default().to_owned();
            let want = Want { tool, versions: vec![version.to_owned()], file: CONFIGURED.into(), gemset };
            settle(choice, missing, offer, &[&want], &only, true);
        }
        Pick::Tools(tools) => {
            for (tool, version) in tools {
                let tool = super::files::canonical(tool);
                let want = Want { tool, versions: vec![version.clone()], file: CONFIGURED.into(), gemset: None };
                settle(choice, missing, offer, &[&want], &only, true);
            }
        }
        Pick::Files => {
            // Another manager, named for one language, has that language.
            let of_another = |tool: &str| by.keys().any(|other| *other != manager && other.language() == Some(tool));
            let ours = |want: &&Want| manager.language().map_or_else(|| !of_another(&want.tool), |language| want.tool == language);
            let mut wants: Vec<&Want> = offer.wants.iter().filter(ours).collect();
            let said: Vec<&str> = wants.iter().map(|want| want.tool.as_str()).collect();
            wants.extend(global().filter(ours).filter(|want| !said.contains(&want.tool.as_str())));
            if wants.is_empty() {
                let of = manager.language().map_or_else(|| "any tool".to_owned(), |language| format!("a version of {language}"));
                missing.push(format!(
                    "`{CONFIGURED}` is {manager}, but no file of the release names {of}, and neither does {manager} itself: write one \
                     (`{}`), or name the version in `{CONFIGURED}`",
                    native_file(manager)
                ));
            }
            let owned: Vec<Want> = wants.iter().map(|want| (*want).clone()).collect();
            for tool in tools(&owned) {
                let wants: Vec<&Want> = wants.iter().copied().filter(|want| want.tool == tool).collect();
                settle(choice, missing, offer, &wants, &only, LANGUAGES.contains(&tool.as_str()));
            }
        }
    }
}

fn native_file(manager: Manager) -> &'static str {
    match manager {
        Manager::Mise => "mise.toml",
        Manager::Asdf => TOOL_VERSIONS,
        Manager::Rbenv | Manager::Rvm => ".ruby-version",
        Manager::Nvm => ".nvmrc",
        Manager::Pyenv | Manager::Venv | Manager::Machine => ".python-version",
    }
}

/// One tool: from the first that has it.
fn settle(
    choice: &mut Choice,
    missing: &mut Vec<String>,
    offer: Offer<'_>,
    wants: &[&Want],
    allowed: &dyn Fn(Manager) -> bool,
    strict: bool,
) {
    let Some(tool) = wants.first().map(|want| want.tool.clone()) else { return };
    let mut pairs: Vec<(u8, &Place, &Want)> = Vec::new();
    for place in offer.places.iter().filter(|place| allowed(place.manager)) {
        for want in wants {
            pairs.extend(rank(place.manager, want).map(|rank| (rank, place, *want)));
        }
    }
    pairs.sort_by_key(|(rank, place, _)| (*rank, place.manager));
    let found = pairs.iter().find_map(|(_, place, want)| from_place(place, want, offer.machine)).or_else(|| {
        // With a manager named, the machine's own is not meant.
        wants.iter().find_map(|want| if allowed(Manager::Machine) { from_machine(want, offer.machine) } else { None })
    });
    match found {
        Some(chosen) => {
            choice.notes.extend(disagreements(&chosen, wants, offer.places));
            choice.chosen.push(chosen);
        }
        None if strict => missing.push(lack(&tool, wants, offer, allowed)),
        None => {
            let want = wants[0];
            let text = format!("{tool} {} (`{}`) is not installed and is left out", want.versions.join(" "), want.file);
            choice.notes.push(text);
        }
    }
}

/// How near a manager is to a file: the smaller, the sooner it is asked; `None`: it has nothing to do with that tool.
fn rank(manager: Manager, want: &Want) -> Option<u8> {
    if manager.language().is_some_and(|language| language != want.tool) || matches!(manager, Manager::Venv | Manager::Machine) {
        return None;
    }
    let of_mise = MISE_FILES.contains(&want.file.as_str());
    let of_asdf = want.file == TOOL_VERSIONS;
    let own = !of_mise && !of_asdf;
    Some(match manager {
        Manager::Mise if of_mise => 0,
        Manager::Asdf if of_asdf => 1,
        Manager::Mise if of_asdf => 2,
        Manager::Mise | Manager::Asdf if own => 4,
        Manager::Asdf | Manager::Mise => 6,
        _ if own => 3,
        _ => 5,
    })
}

fn why(want: &Want, version: &str) -> String {
    let gemset = want.gemset.as_ref().map_or_else(String::new, |set| format!("@{set}"));
    format!("`{}` says {version}{gemset}", want.file)
}

fn from_place(place: &Place, want: &Want, machine: &Machine) -> Option<Chosen> {
    let installed = |version: &String| find(place, &want.tool, version);
    let (versions, said) = match place.manager {
        // All of them are there by their own names, the first as `python`.
        Manager::Pyenv if want.versions.iter().all(|version| version != "system") => {
            (want.versions.iter().map(installed).collect::<Option<Vec<_>>>()?, &want.versions[0])
        }
        // The first that is there (asdf's documentation, "Multiple versions"). `system` is only reached if none before it is.
        _ => {
            let found = want.versions.iter().find_map(|version| {
                if version == "system" { Some((None, version)) } else { installed(version).map(|it| (Some(it), version)) }
            })?;
            match found {
                (Some(installed), said) => (vec![installed], said),
                (None, _) => return from_machine(want, machine),
            }
        }
    };
    // A gemset that is not there would be the gems of another one.
    if place.manager == Manager::Rvm && !place.environments.contains(&environment(&versions[0], want.gemset.as_deref())) {
        return None;
    }
    let gemset = want.gemset.clone().filter(|_| place.manager == Manager::Rvm);
    Some(Chosen { tool: want.tool.clone(), manager: place.manager, root: place.root.clone(), versions, gemset, why: why(want, said) })
}

/// Returns the name of an environment file of rvm.
#[must_use]
pub fn environment(version: &Installed, gemset: Option<&str>) -> String {
    gemset.map_or_else(|| version.name.clone(), |set| format!("{}@{set}", version.name))
}

/// The machine's own program, if it is of that very version, or if `system` is what is asked for.
fn from_machine(want: &Want, machine: &Machine) -> Option<Chosen> {
    let (_, own) = machine.get(&want.tool)?;
    let fits = |version: &&String| *version == "system" || matches(version, own);
    let said = want.versions.iter().find(fits)?;
    let why = why(want, said);
    let gemset = None;
    Some(Chosen { tool: want.tool.clone(), manager: Manager::Machine, root: String::new(), versions: Vec::new(), gemset, why })
}

/// Whether a version that a program tells of itself is what is asked for: `20` is any 20, `3.3.1` no other.
fn matches(wanted: &str, own: &str) -> bool {
    let (Some(wanted), Some(own)) = (Number::of(wanted), Number::of(own)) else { return false };
    matches!(wanted.family, "" | "v" | "ruby-" | "node-" | "python-") && own.numbers.starts_with(&wanted.numbers)
}

/// Returns the installed version that this text means to that manager.
#[must_use]
pub fn find(place: &Place, tool: &str, wanted: &str) -> Option<Installed> {
    let have = place.versions.get(tool)?;
    let exact = |name: &str| have.iter().find(|it| it.name == name).cloned();
    match place.manager {
        Manager::Rbenv => exact(wanted).or_else(|| exact(wanted.strip_prefix("ruby-")?)),
        Manager::Asdf => exact(&wanted.replacen("ref:", "ref-", 1)),
        Manager::Pyenv => {
            let bare = wanted.strip_prefix("python-").unwrap_or(wanted);
            exact(wanted).or_else(|| exact(bare)).or_else(|| greatest(have, "", bare))
        }
        Manager::Nvm => {
            let wanted = resolve(place, wanted);
            let bare = wanted.strip_prefix('v').unwrap_or(&wanted);
            if matches!(bare, "node" | "stable") {
                return greatest(have, "v", "");
            }
            exact(&format!("v{bare}")).or_else(|| greatest(have, "v", bare))
        }
        Manager::Rvm => {
            let wanted = resolve(place, wanted);
            let family = if wanted.starts_with(|c: char| c.is_ascii_digit()) { "ruby-" } else { "" };
            let full = format!("{family}{wanted}");
            let number = Number::of(&full)?;
            exact(&full).or_else(|| greatest(have, number.family, &full[number.family.len()..]))
        }
        Manager::Mise => {
            let wanted = wanted.strip_prefix("prefix:").unwrap_or(wanted).replacen("ref:", "ref-", 1);
            let bare =
                [tool, "node", "v"].iter().find_map(|it| wanted.strip_prefix(it)).map_or(&wanted[..], |it| it.trim_start_matches('-'));
            if bare == "latest" {
                return greatest(have, "", "");
            }
            exact(&wanted).or_else(|| exact(bare)).or_else(|| greatest(have, "", bare))
        }
        Manager::Venv | Manager::Machine => None,
    }
}

fn resolve(place: &Place, wanted: &str) -> String {
    let mut name = wanted;
    for _ in 0..MOST_ALIASES {
        match place.aliases.get(name) {
            Some(next) if next != name => name = next,
            _ => break,
        }
    }
    name.to_owned()
}

/// A version as numbers: `ruby-1.9.2-p290` is the family `ruby-` and 1, 9, 2, 290.
#[derive(Debug, PartialEq, Eq)]
struct Number<'a> {
    family: &'a str,
    numbers: Vec<u64>,
}

impl<'a> Number<'a> {
    /// `None`: it is none, or a preview (`3.14.0a1`, `3.13-dev`), which nobody means who does not name it.
    fn of(text: &'a str) -> Option<Self> {
        let at = text.find(|c: char| c.is_ascii_digit())?;
        let (family, rest) = text.split_at(at);
        let part = |part: &str| part.strip_prefix('p').unwrap_or(part).parse().ok();
        Some(Self { family, numbers: rest.split(['.', '-']).map(part).collect::<Option<_>>()? })
    }
}

/// The greatest of a family that begins with these numbers; with none, the greatest of all.
fn greatest(have: &[Installed], family: &str, wanted: &str) -> Option<Installed> {
    let prefix = if wanted.is_empty() { Vec::new() } else { Number::of(wanted).filter(|it| it.family.is_empty())?.numbers };
    let number = |it: &Installed| {
        let Number { family: of, numbers } = Number::of(&it.name)?;
        (of == family && numbers.starts_with(&prefix)).then_some(numbers)
    };
    have.iter().filter(|it| number(it).is_some()).max_by_key(|it| number(it)).cloned()
}

/// Files that say something else than the one that counts.
fn disagreements(chosen: &Chosen, wants: &[&Want], places: &[Place]) -> Vec<String> {
    let place = places.iter().find(|place| place.manager == chosen.manager && place.root == chosen.root);
    let (Some(place), Some(counts)) = (place, chosen.versions.first()) else { return Vec::new() };
    let differs = |want: &&&Want| want.versions.first().is_some_and(|version| find(place, &want.tool, version).as_ref() != Some(counts));
    let text = |want: &&Want| {
        format!("`{}` says {} {}, which does not count: {} ({})", want.file, want.tool, want.versions.join(" "), chosen.why, chosen.manager)
    };
    wants.iter().filter(differs).map(text).collect()
}

/// What is installed instead of what is asked for, and how to get that.
fn lack(tool: &str, wants: &[&Want], offer: Offer<'_>, allowed: &dyn Fn(Manager) -> bool) -> String {
    let asked: Vec<String> = wants
        .iter()
        .map(|want| {
            let set = want.gemset.as_ref().map_or_else(String::new, |set| format!("@{set}"));
            format!("{tool} {}{set} (`{}`)", want.versions.join(" "), want.file)
        })
        .collect();
    let able = |place: &&Place| allowed(place.manager) && place.manager.language().is_none_or(|language| language == tool);
    let places: Vec<&Place> = offer.places.iter().filter(able).collect();
    let mut has: Vec<String> = places.iter().map(|place| has(place, tool, wants)).collect();
    let named: Vec<&str> = Manager::NAMED
        .iter()
        .filter(|manager| allowed(**manager) && **manager != Manager::Venv && manager.language().is_none_or(|language| language == tool))
        .map(|manager| manager.as_str())
        .collect();
    if places.is_empty() {
        has.push(format!("there is no {} for user `{}`", named.join(", "), offer.user));
    }
    if let Some((program, version)) = offer.machine.get(tool) {
        has.push(format!("the machine's own `{program}` is {version}"));
    }
    let nearest = places.iter().min_by_key(|place| wants.iter().filter_map(|want| rank(place.manager, want)).min());
    let get = match (nearest, wants.first()) {
        (Some(place), Some(want)) => format!("{} as user `{}` installs it", command(place.manager, tool, want, place), offer.user),
        _ => format!("install it with one of them, or set `{CONFIGURED}: none` to run what the machine has"),
    };
    format!("{} is not installed: {}; {get}", asked.join(", "), has.join("; "))
}

fn has(place: &Place, tool: &str, wants: &[&Want]) -> String {
    let names: Vec<&str> = place.versions.get(tool).into_iter().flatten().map(|it| it.name.as_str()).collect();
    let mut shown = names.iter().rev().take(MOST_NAMED).rev().copied().collect::<Vec<_>>().join(", ");
    if names.len() > MOST_NAMED {
        shown = format!("{} more, and {shown}", names.len() - MOST_NAMED);
    }
    // The ruby is there, the gemset is not.
    let sets: Vec<&str> = place
        .environments
        .iter()
        .filter(|name| wants.iter().any(|want| want.gemset.is_some()) && name.contains('@'))
        .map(String::as_str)
        .collect();
    let sets = if sets.is_empty() { String::new() } else { format!(" and the environments {}", sets.join(", ")) };
    let shown = if shown.is_empty() { format!("no {tool}") } else { shown };
    format!("{} in `{}` has {shown}{sets}", place.manager, place.root)
}

fn command(manager: Manager, tool: &str, want: &Want, place: &Place) -> String {
    let version = want.versions.first().map_or("", String::as_str);
    match (manager, &want.gemset) {
        (Manager::Rvm, Some(set)) if find(place, tool, version).is_some() => format!("`rvm use {version}@{set} --create`"),
        (Manager::Rbenv | Manager::Pyenv | Manager::Nvm | Manager::Rvm, _) => format!("`{manager} install {version}`"),
        (Manager::Asdf, _) => format!("`asdf install {} {version}`", if tool == "node" { "nodejs" } else { tool }),
        _ => format!("`mise install {tool}@{version}`"),
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
