//! From a choice to an environment: what a manager says in a clean shell, and whether the programs really run.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use selfstart_core::runtime::choose::{Chosen, LANGUAGES, Machine, Offer, choose, environment, tools};
use selfstart_core::runtime::environ::{Vars, added_entries, additions, kept, path, within};
use selfstart_core::runtime::files::{Want, wants};
use selfstart_core::runtime::{Captured, Manager, Pick, Setting, Tool};

use super::{Request, RuntimeError, look};
use crate::sys::gate;

/// Sources a file and shows what it made of the environment. Neither profile nor rc file is read, and what the file says goes to standard
/// error, so that nothing but the environment is on standard output.
const SOURCE: &str = r#". "$1" >&2 && exec env -0"#;

/// Finds what a release runs.
pub(super) fn capture(request: &Request) -> Result<Captured, RuntimeError> {
    let base: Vars = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
    let home = base.get("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let wants = wants(&look::files(&request.release)?)?;
    let places = if request.setting == Setting::None { Vec::new() } else { look::places(&home, &request.roots)? };
    let machine = machine(&base, &request.setting, &wants);
    let choice = choose(&request.setting, Offer { wants: &wants, places: &places, machine: &machine, user: &request.user })?;
    let release = request.release.display().to_string();

    let mut vars = Vars::new();
    let mut entries = Vec::new();
    // The virtual environment comes before the python that it is made with.
    let mut ordered: Vec<&Chosen> = choice.chosen.iter().collect();
    ordered.sort_by_key(|chosen| chosen.manager != Manager::Venv);
    for chosen in &ordered {
        let added = of_one(chosen, &base, &request.release)?;
        entries.extend(added.path);
        vars.extend(added.vars);
    }
    if let Some(root) = choice.chosen.iter().find(|it| it.manager == Manager::Mise).map(|it| it.root.clone())
        && matches!(request.setting, Setting::Auto)
            | matches!(&request.setting, Setting::By(by) if by.get(&Manager::Mise) == Some(&Pick::Files))
    {
        let (more, said) = of_mise(&root, &base, &home, &vars, &request.release)?;
        entries.extend(more);
        vars.extend(said);
    }
    let before = base.get("PATH").cloned().unwrap_or_default();
    let full = path(&entries, &before);
    if full != before {
        vars.insert("PATH".into(), full.clone());
    }
    let found = ordered.iter().map(|chosen| tried(chosen, &base, &vars, &full, &release)).collect::<Result<Vec<_>, _>>()?;
    Ok(Captured { tools: found, vars, notes: choice.notes })
}

/// The machine's own programs of what is asked for.
fn machine(base: &Vars, setting: &Setting, wants: &[Want]) -> Machine {
    let mut asked = tools(wants);
    if let Setting::By(by) = setting {
        asked.extend(by.keys().filter_map(|manager| manager.language().map(str::to_owned)));
    }
    let along = base.get("PATH").map_or("", String::as_str);
    let own = |tool: &String| {
        let program = program(tool, along)?;
        Some((tool.clone(), (program.display().to_string(), version(&program, base).ok()?)))
    };
    asked.iter().filter(|tool| LANGUAGES.contains(&tool.as_str())).filter_map(own).collect()
}

/// What one chosen version adds.
fn of_one(chosen: &Chosen, base: &Vars, release: &Path) -> Result<selfstart_core::runtime::environ::Additions, RuntimeError> {
    let mut added = additions(chosen, &release.display().to_string());
    let Some(first) = chosen.versions.first() else { return Ok(added) };
    let root = Path::new(&chosen.root);
    match chosen.manager {
        Manager::Rvm => {
            let file = root.join("environments").join(environment(first, chosen.gemset.as_deref()));
            let after = sourced(&file, base, &Vars::new(), release)?;
            let empty = String::new();
            let [old, new] = [base, &after].map(|vars| vars.get("PATH").unwrap_or(&empty).as_str());
            added.path = added_entries(old, new);
            added.vars = kept(base, &after);
        }
        Manager::Asdf => {
            let plugin = root.join("plugins").join(&first.folder).join("bin");
            let about: Vars = [
                ("ASDF_INSTALL_TYPE", if first.name.starts_with("ref-") { "ref" } else { "version" }.to_owned()),
                ("ASDF_INSTALL_VERSION", first.name.strip_prefix("ref-").unwrap_or(&first.name).to_owned()),
                ("ASDF_INSTALL_PATH", first.prefix.clone()),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
            let list = plugin.join("list-bin-paths");
            if is_program(&list) {
                let said = output(Command::new(&list).envs(&about), base, release, &list)?;
                let said = String::from_utf8_lossy(&said).into_owned();
                added.path = said.split_whitespace().map(|below| clean(&Path::new(&first.prefix).join(below))).collect();
            }
            let exec_env = plugin.join("exec-env");
            if exec_env.is_file() {
                let mut before = base.clone();
                before.extend(about);
                let after = sourced(&exec_env, base, &before, release)?;
                let (old, new) = (before.get("PATH").map_or("", String::as_str), after.get("PATH").map_or("", String::as_str));
                added.path.splice(0..0, added_entries(old, new));
                added.vars.extend(kept(&before, &after));
            }
        }
        _ => {}
    }
    Ok(added)
}

/// `/x/.` is `/x`.
fn clean(path: &Path) -> String {
    path.components().collect::<PathBuf>().display().to_string()
}

/// What mise itself makes of the files of the release, `[env]` included. Without its program only what it has installed counts.
fn of_mise(root: &str, base: &Vars, home: &Path, vars: &Vars, release: &Path) -> Result<(Vec<String>, Vars), RuntimeError> {
    let along = base.get("PATH").map_or("", String::as_str);
    let usual = [home.join(".local/bin/mise"), Path::new(root).join("bin/mise"), home.join(".cargo/bin/mise")];
    let Some(mise) = usual.into_iter().find(|path| is_program(path)).or_else(|| program("mise", along)) else {
        return Ok((Vec::new(), Vars::new()));
    };
    let mut before = base.clone();
    before.extend(vars.clone());
    let mut command = Command::new(&mise);
    command.args(["env", "--json"]).envs(&before);
    // What the repository holds is run anyway; nothing is asked and nothing fetched.
    command.env("MISE_TRUSTED_CONFIG_PATHS", release).env("MISE_OFFLINE", "1").env("MISE_QUIET", "1").env("MISE_DATA_DIR", root);
    let said = output(&mut command, base, release, &mise)?;
    let after: BTreeMap<String, String> = serde_json::from_slice(&said)
        .map_err(|error| RuntimeError::Program { what: format!("`{} env --json`", mise.display()), why: error.to_string() })?;
    let new = added_entries(along, after.get("PATH").map_or("", String::as_str));
    let ours = |name: &str| ["MISE_TRUSTED_CONFIG_PATHS", "MISE_OFFLINE", "MISE_QUIET"].contains(&name);
    Ok((new, kept(&before, &after).into_iter().filter(|(name, _)| !ours(name)).collect()))
}

/// The environment after a file was sourced by a shell that has read nothing else.
fn sourced(file: &Path, base: &Vars, more: &Vars, release: &Path) -> Result<Vars, RuntimeError> {
    let mut command = Command::new("bash");
    command.args(["--noprofile", "--norc", "-c", SOURCE, "bash"]).arg(file).envs(more);
    let said = output(&mut command, base, release, file)?;
    Ok(said
        .split(|byte| *byte == 0)
        .filter_map(|pair| String::from_utf8_lossy(pair).split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect())
}

/// Runs a program in the release with that environment and what the command adds to it; returns what it says.
fn output(command: &mut Command, base: &Vars, release: &Path, what: &Path) -> Result<Vec<u8>, RuntimeError> {
    let added: Vec<_> = command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
    command.env_clear().envs(base).envs(added).current_dir(release).stdin(Stdio::null());
    let failed = |why: String| RuntimeError::Program { what: format!("`{}` did not say which environment it wants", what.display()), why };
    let output = gate::output(command).map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{} {}", output.status, said.trim())))
}

/// Looks whether a chosen tool is what will be run, and runs it once.
fn tried(chosen: &Chosen, base: &Vars, vars: &Vars, path: &str, release: &str) -> Result<Tool, RuntimeError> {
    let tool = |program: String, version: String| Tool {
        tool: chosen.tool.clone(),
        version,
        program,
        manager: chosen.manager,
        why: chosen.why.clone(),
    };
    if chosen.manager == Manager::Venv {
        // It is made by a build step; the agent looks whether it was.
        return Ok(tool(format!("{}/bin/python", within(release, &chosen.root)), String::new()));
    }
    let broken = |why: String| RuntimeError::Program { what: format!("{} ({}, {})", chosen.tool, chosen.manager, chosen.why), why };
    let venv = vars.get("VIRTUAL_ENV").map(|venv| format!("{venv}/bin"));
    let behind: Vec<&str> = path.split(':').filter(|entry| Some(*entry) != venv.as_deref()).collect();
    let Some(found) = program(&chosen.tool, &behind.join(":")) else {
        if LANGUAGES.contains(&chosen.tool.as_str()) {
            return Err(broken("its program is not there".into()));
        }
        // Its programs have other names.
        return Ok(tool(
            chosen.versions.first().map_or("", |it| &it.prefix).to_owned(),
            chosen.versions.first().map_or("", |it| &it.name).to_owned(),
        ));
    };
    let shown = found.display().to_string();
    if chosen.manager != Manager::Machine
        && base.get("PATH").is_some_and(|base| base.split(':').any(|entry| found.parent() == Some(Path::new(entry))))
    {
        return Err(broken(format!("`{shown}` would be run instead: what is installed is not whole")));
    }
    if !LANGUAGES.contains(&chosen.tool.as_str()) {
        return Ok(tool(shown, chosen.versions.first().map_or("", |it| &it.name).to_owned()));
    }
    let mut env = base.clone();
    env.extend(vars.clone());
    let version = version(&found, &env).map_err(|why| broken(format!("`{shown} --version`: {why}")))?;
    Ok(tool(shown, version))
}

/// Finds a tool's program along a PATH.
fn program(tool: &str, along: &str) -> Option<PathBuf> {
    let names: &[&str] = if tool == "python" { &["python", "python3"] } else { &[tool] };
    let found = |name: &&str| along.split(':').map(|entry| Path::new(entry).join(name)).find(|path| path.is_absolute() && is_program(path));
    names.iter().find_map(found)
}

fn is_program(path: &Path) -> bool {
    fs_err::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Returns the version that a program tells of itself: `ruby 3.1.2p20 (...)` is 3.1.2, `v20.11.0` is 20.11.0.
fn version(program: &Path, env: &Vars) -> Result<String, String> {
    let mut command = Command::new(program);
    command.arg("--version").env_clear().envs(env).current_dir("/").stdin(Stdio::null());
    let output = gate::output(&mut command).map_err(|error| error.to_string())?;
    // Python 2 says it on standard error.
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said);
    if !output.status.success() {
        return Err(format!("{} {}", output.status, said.trim()));
    }
    let number = |word: &&str| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    let word = said.split_whitespace().find(number).ok_or_else(|| format!("says no version: {}", said.trim()))?;
    let word = word.trim_start_matches('v');
    let patch = word.find('p').filter(|at| word[at + 1..].bytes().all(|b| b.is_ascii_digit()));
    Ok(word[..patch.unwrap_or(word.len())].to_owned())
}
