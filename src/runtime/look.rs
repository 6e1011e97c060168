//! What is there: the files of a release, the managers of a user and what they have installed.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use selfstart_core::runtime::Manager;
use selfstart_core::runtime::choose::{Installed, Place};
use selfstart_core::runtime::files::{Files, GEMSET_FILE, MISE_FILES, MiseTools, OWN_FILES, TOOL_VERSIONS, canonical, wants};

use super::RuntimeError;

/// The longest file of versions that is read: the longest in use have some dozens of lines.
const MOST_BYTES: u64 = 64 << 10;

/// Reads the files at the top of a release.
pub(super) fn files(release: &Path) -> Result<Files, RuntimeError> {
    let mut files = Files::default();
    let own = OWN_FILES.iter().map(|(file, _)| *file);
    for file in own.chain([GEMSET_FILE, TOOL_VERSIONS]) {
        if let Some(text) = text(&release.join(file))? {
            files.texts.insert(file.to_owned(), text);
        }
    }
    for file in MISE_FILES {
        let Some(text) = text(&release.join(file))? else { continue };
        let tools = mise_tools(file, &text)?;
        if !tools.is_empty() {
            files.mise = Some((file.to_owned(), tools));
            break;
        }
    }
    Ok(files)
}

/// Reads a small file; `None`: it is not there.
fn text(path: &Path) -> Result<Option<String>, RuntimeError> {
    let failed = |source| RuntimeError::Read { path: path.to_owned(), source };
    match fs_err::metadata(path) {
        Ok(found) if found.is_file() => {}
        // Not a version file then: pyenv, rbenv and nvm pass a folder over, too.
        Ok(_) => return Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let mut bytes = Vec::new();
    fs_err::File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Returns `[tools]` of a file of mise: `ruby = "3.3"`, `python = ["3.12", "3.11"]`, `node = {version = "20", ...}`.
fn mise_tools(file: &str, text: &str) -> Result<MiseTools, RuntimeError> {
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| RuntimeError::Toml { file: file.to_owned(), why: error.message().to_owned() })?;
    let Some(toml::Value::Table(tools)) = table.get("tools") else { return Ok(Vec::new()) };
    Ok(tools.iter().map(|(tool, value)| (tool.clone(), versions_of(value))).filter(|(_, versions)| !versions.is_empty()).collect())
}

fn versions_of(value: &toml::Value) -> Vec<String> {
    match value {
        toml::Value::String(version) => vec![version.clone()],
        toml::Value::Integer(version) => vec![version.to_string()],
        toml::Value::Float(version) => vec![version.to_string()],
        toml::Value::Array(several) => several.iter().flat_map(versions_of).collect(),
        toml::Value::Table(table) => table.get("version").map(versions_of).unwrap_or_default(),
        toml::Value::Boolean(_) | toml::Value::Datetime(_) => Vec::new(),
    }
}

/// Returns the managers that are there for a user with this home, the user's own before everybody's. `roots`: where they are said to be.
pub(super) fn places(home: &Path, roots: &BTreeMap<String, String>) -> Result<Vec<Place>, RuntimeError> {
    let mut places = Vec::new();
    let mut add = |manager: Manager, variable: &str, usual: &[&str]| {
        let said = roots.get(variable).map(|root| vec![PathBuf::from(root)]);
        let usual = || usual.iter().map(|path| path.strip_prefix("~/").map_or_else(|| PathBuf::from(path), |below| home.join(below)));
        for root in said.unwrap_or_else(|| usual().collect()) {
            places.extend(place(manager, &root)?);
        }
        Ok::<(), RuntimeError>(())
    };
    add(Manager::Mise, "MISE_DATA_DIR", &["~/.local/share/mise", "/usr/local/share/mise"])?;
    add(Manager::Asdf, "ASDF_DATA_DIR", &["~/.asdf", "/opt/asdf", "/usr/local/asdf"])?;
    add(Manager::Rbenv, "RBENV_ROOT", &["~/.rbenv", "/usr/local/rbenv", "/opt/rbenv"])?;
    add(Manager::Rvm, "rvm_path", &["~/.rvm", "/usr/local/rvm", "/usr/share/rvm"])?;
    add(Manager::Nvm, "NVM_DIR", &["~/.nvm", "~/.config/nvm", "/usr/local/nvm", "/usr/local/share/nvm", "/opt/nvm"])?;
    add(Manager::Pyenv, "PYENV_ROOT", &["~/.pyenv", "/usr/local/pyenv", "/opt/pyenv"])?;
    for place in &mut places {
        if matches!(place.manager, Manager::Asdf | Manager::Mise) {
            place.global = global(place.manager, Path::new(&place.root), home)?;
        }
    }
    Ok(places)
}

/// One manager, if it is there: it is where what it installs would be.
fn place(manager: Manager, root: &Path) -> Result<Option<Place>, RuntimeError> {
    let below = match manager {
        Manager::Mise | Manager::Asdf => "installs",
        Manager::Rvm => "rubies",
        _ => "versions",
    };
    let program = match manager {
        Manager::Nvm => root.join("nvm.sh").exists(),
        Manager::Asdf => root.join("plugins").exists(),
        _ => false,
    };
    if !root.join(below).is_dir() && !program {
        return Ok(None);
    }
    let mut place = Place {
        manager,
        root: root.display().to_string(),
        versions: BTreeMap::new(),
        aliases: BTreeMap::new(),
        environments: Vec::new(),
        global: Vec::new(),
    };
    match manager {
        Manager::Mise | Manager::Asdf => {
            for folder in names(&root.join(below))? {
                let installed = installed(&root.join(below).join(&folder), &folder)?;
                place.versions.entry(canonical(&folder)).or_default().extend(installed);
            }
        }
        Manager::Rvm => {
            place.versions.insert("ruby".into(), installed(&root.join("rubies"), "ruby")?);
            place.environments = names(&root.join("environments"))?;
            place.aliases = rvm_aliases(root)?;
        }
        Manager::Nvm => {
            place.versions.insert("node".into(), installed(&root.join("versions/node"), "node")?);
            place.aliases = nvm_aliases(root)?;
        }
        _ => {
            let tool = manager.language().unwrap_or_default();
            place.versions.insert(tool.into(), installed(&root.join("versions"), tool)?);
        }
    }
    place.global = global(manager, root, root)?;
    Ok(Some(place))
}

/// The names in a folder, sorted as people count; none if it is not there.
fn names(folder: &Path) -> Result<Vec<String>, RuntimeError> {
    let failed = |source| RuntimeError::Read { path: folder.to_owned(), source };
    let entries = match fs_err::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    let number = |name: &String| name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect::<Vec<u64>>();
    names.sort_by_cached_key(|name| (number(name), name.clone()));
    Ok(names)
}

/// The versions in a folder: those that have something to run, also behind a link.
fn installed(folder: &Path, tool: &str) -> Result<Vec<Installed>, RuntimeError> {
    let whole = |name: &String| !name.starts_with('.') && folder.join(name).join("bin").is_dir();
    let version = |name: String| Installed { prefix: folder.join(&name).display().to_string(), name, folder: tool.to_owned() };
    let all = names(folder)?;
    // Tools of asdf and mise may have their programs elsewhere.
    let any = !matches!(tool, "ruby" | "node" | "nodejs" | "python");
    Ok(all.into_iter().filter(|name| whole(name) || any && folder.join(name).is_dir()).map(version).collect())
}

/// `alias/NAME` holds what NAME stands for, also `alias/lts/iron` and `alias/lts/*` (nvm's README, "Default global packages" and after).
fn nvm_aliases(root: &Path) -> Result<BTreeMap<String, String>, RuntimeError> {
    let mut aliases = BTreeMap::new();
    for (folder, prefix) in [("alias", ""), ("alias/lts", "lts/")] {
        for name in names(&root.join(folder))? {
            if let Some(text) = text(&root.join(folder).join(&name))? {
                aliases.insert(format!("{prefix}{name}"), text.split('#').next().unwrap_or_default().trim().to_owned());
            }
        }
    }
    Ok(aliases)
}

/// `config/alias` has lines `default=ruby-3.3.1`.
fn rvm_aliases(root: &Path) -> Result<BTreeMap<String, String>, RuntimeError> {
    let text = text(&root.join("config/alias"))?.unwrap_or_default();
    Ok(text.lines().filter_map(|line| line.split_once('=')).map(|(name, to)| (name.trim().to_owned(), to.trim().to_owned())).collect())
}

/// What the user has set for all folders: `rbenv global`, `nvm alias default` and the like. Of no account unless the manager is named in
/// `build.runtime`; a file that cannot be understood is then none.
fn global(manager: Manager, root: &Path, home: &Path) -> Result<Vec<selfstart_core::runtime::files::Want>, RuntimeError> {
    let (path, as_file) = match manager {
        Manager::Rbenv => (root.join("version"), ".ruby-version"),
        Manager::Pyenv => (root.join("version"), ".python-version"),
        Manager::Nvm => (root.join("alias/default"), ".nvmrc"),
        Manager::Asdf => (home.join(".tool-versions"), TOOL_VERSIONS),
        Manager::Mise => (home.join(".config/mise/config.toml"), ""),
        Manager::Rvm => {
            let default = rvm_aliases(root)?.remove("default");
            let files = Files { texts: default.map(|text| (".ruby-version".to_owned(), text)).into_iter().collect(), mise: None };
            return Ok(renamed(&files, &root.join("config/alias")));
        }
        Manager::Venv | Manager::Machine => return Ok(Vec::new()),
    };
    let Some(text) = text(&path)? else { return Ok(Vec::new()) };
    let files = if as_file.is_empty() {
        let tools = mise_tools("config.toml", &text).unwrap_or_default();
        Files { texts: BTreeMap::new(), mise: Some((MISE_FILES[0].to_owned(), tools)) }
    } else {
        Files { texts: BTreeMap::from([(as_file.to_owned(), text)]), mise: None }
    };
    Ok(renamed(&files, &path))
}

fn renamed(files: &Files, path: &Path) -> Vec<selfstart_core::runtime::files::Want> {
    let mut wants = wants(files).unwrap_or_default();
    for want in &mut wants {
        want.file = path.display().to_string();
    }
    wants
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_of_mise_are_read_in_all_their_forms() {
        let text = "[env]\nA = 'b'\n[tools]\nruby = \"3.3\"\npython = [\"3.12\", {version = \"3.11\"}]\nnode = {version = \"20\", os = [\"linux\"]}\n";
        let tools = mise_tools("mise.toml", text).expect("read");
        let shown: Vec<_> = tools.iter().map(|(tool, versions)| format!("{tool}={}", versions.join("+"))).collect();
        let mut sorted = shown.clone();
        sorted.sort();
        assert_eq!(sorted, ["node=20", "python=3.12+3.11", "ruby=3.3"]);
        assert_eq!(mise_tools("mise.toml", "[tasks.x]\nrun = 'y'\n").expect("read"), []);
        let error = mise_tools("mise.toml", "[tools\n").expect_err("no TOML").to_string();
        assert!(error.starts_with("`mise.toml` cannot be read: "), "{error}");
    }
}
