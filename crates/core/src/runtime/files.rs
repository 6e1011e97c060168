//! What the files of a release ask for: `.ruby-version`, `.ruby-gemset`, `.nvmrc`, `.node-version`, `.python-version`, `.tool-versions`
//! and the `[tools]` of `mise.toml`. Each is read as the manager that it is named after reads it.
//!
//! Only those at the top of the release: what lies above it is selfstart's, and what lies below is for parts of the code.

use std::collections::BTreeMap;

/// The files that name one language, and which.
pub const OWN_FILES: [(&str, &str); 4] =
    [(".ruby-version", "ruby"), (".nvmrc", "node"), (".node-version", "node"), (".python-version", "python")];

/// The gemset of [`.ruby-version`](OWN_FILES), for rvm.
pub const GEMSET_FILE: &str = ".ruby-gemset";

/// The file of asdf.
pub const TOOL_VERSIONS: &str = ".tool-versions";

/// The files of mise, the strongest first (mise's documentation, "Configuration"); those that are local to one machine are not.
pub const MISE_FILES: [&str; 6] =
    ["mise.toml", "mise/config.toml", ".mise.toml", ".mise/config.toml", ".config/mise.toml", ".config/mise/config.toml"];

/// `[tools]` of a file of mise: each tool and its versions, as written.
pub type MiseTools = Vec<(String, Vec<String>)>;

/// What was read from the top of a release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// The text of each of [`OWN_FILES`], [`GEMSET_FILE`] and [`TOOL_VERSIONS`] that is there.
    pub texts: BTreeMap<String, String>,
    /// The strongest of [`MISE_FILES`] that has `[tools]`, and its tools.
    pub mise: Option<(String, MiseTools)>,
}

/// A tool that a file asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// `ruby`, `node`, `python`, ...
    pub tool: String,
    /// As written, the first counts; the others are for asdf and pyenv, which take several.
    pub versions: Vec<String>,
    /// Which file, or `build.runtime`.
    pub file: String,
    /// For rvm.
    pub gemset: Option<String>,
}

/// A file that says nothing that can be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It is there and names no version.
    #[error("`{file}` names no version; remove it, or write one version into it")]
    Empty {
        /// Which.
        file: String,
    },
    /// What it says cannot be a version: it would be taken for a path or an option.
    #[error("`{file}` names `{found}`, which cannot be a version")]
    NoVersion {
        /// Which.
        file: String,
        /// What it says.
        found: String,
    },
    /// More than one version where one is meant.
    #[error("`{file}` names several versions: {found}; only one can be run")]
    Several {
        /// Which.
        file: String,
        /// What it says.
        found: String,
    },
}

/// Returns a tool's one name: plugins of asdf and mise have others for some.
#[must_use]
pub fn canonical(tool: &str) -> String {
    let tool = tool.strip_prefix("core:").unwrap_or(tool);
    match tool {
        "nodejs" => "node",
        "golang" => "go",
        other => other,
    }
    .to_owned()
}

/// Returns whether this may be the name of a version: it becomes part of paths, names of variables' values and arguments.
#[must_use]
pub fn is_version(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_alphanumeric() || b"._+-:@/*".contains(&b);
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(inside)
        && !text.starts_with(['-', '.'])
        && text.split('/').all(|part| part != "..")
}

/// Returns what a release asks for, one value per file and tool, in the order in which the files are named above.
///
/// # Errors
/// When a file is there and says nothing that can be understood: what was meant must not be guessed.
pub fn wants(files: &Files) -> Result<Vec<Want>, FileError> {
    let mut wants = Vec::new();
    for (file, tool) in OWN_FILES {
        let Some(text) = files.texts.get(file) else { continue };
        let mut versions = own_file(file, tool, text)?;
        let mut gemset = None;
        if tool == "ruby" {
            if let Some((version, set)) = versions[0].split_once('@') {
                gemset = Some(set.to_owned());
                versions = vec![version.to_owned()];
            } else if let Some(set) = files.texts.get(GEMSET_FILE).and_then(|text| meaning(text).next()) {
                gemset = Some(checked(GEMSET_FILE, set)?);
            }
        }
        wants.push(Want { tool: tool.to_owned(), versions, file: file.to_owned(), gemset });
    }
    for line in files.texts.get(TOOL_VERSIONS).map_or("", String::as_str).lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(tool) = words.next() else { continue };
        let versions = words.map(|word| checked(TOOL_VERSIONS, word)).collect::<Result<Vec<_>, _>>()?;
        if versions.is_empty() {
            return Err(FileError::Empty { file: format!("{TOOL_VERSIONS}, {tool}") });
        }
        wants.push(Want { tool: canonical(tool), versions, file: TOOL_VERSIONS.to_owned(), gemset: None });
    }
    for (tool, versions) in files.mise.iter().flat_map(|(_, tools)| tools) {
        let file = files.mise.as_ref().map_or("", |(file, _)| file);
        let versions = versions.iter().map(|version| checked(file, version)).collect::<Result<Vec<_>, _>>()?;
        if !versions.is_empty() {
            wants.push(Want { tool: canonical(tool), versions, file: file.to_owned(), gemset: None });
        }
    }
    Ok(wants)
}

/// The lines that mean something: without comments, and without the space around them.
fn meaning(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|line| !line.is_empty())
}

fn own_file(file: &str, tool: &str, text: &str) -> Result<Vec<String>, FileError> {
    // Files from Windows may begin with a byte order mark.
    let text = text.trim_start_matches('\u{feff}');
    let words = if file == ".nvmrc" {
        // `key=value` lines are kept by nvm for later use.
        meaning(text).filter(|line| !line.contains('=')).map(str::to_owned).collect::<Vec<_>>()
    } else {
        meaning(text).flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let versions = words.iter().map(|word| checked(file, word)).collect::<Result<Vec<_>, _>>()?;
    match versions.len() {
        0 => Err(FileError::Empty { file: file.to_owned() }),
        1 => Ok(versions),
        // pyenv takes several: the first is `python`, the others are there by their own names.
        _ if tool == "python" => Ok(versions),
        _ => Err(FileError::Several { file: file.to_owned(), found: versions.join(", ") }),
    }
}

fn checked(file: &str, word: &str) -> Result<String, FileError> {
    if is_version(word) {
        Ok(word.to_owned())
    } else {
        // It comes from the repository: no control characters on a terminal.
        let found = word.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect();
        Err(FileError::NoVersion { file: file.to_owned(), found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name and text of each file.
    type Texts<'a> = &'a [(&'a str, &'a str)];

    fn read(files: Texts<'_>) -> Result<Vec<String>, String> {
        let texts = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let shown = |want: Want| {
            let set = want.gemset.map_or_else(String::new, |set| format!("@{set}"));
            format!("{} {}{set} {}", want.tool, want.versions.join("+"), want.file)
        };
        let wants = wants(&Files { texts, mise: None }).map_err(|error| error.to_string())?;
        Ok(wants.into_iter().map(shown).collect())
    }

    #[test]
    fn each_file_is_read_as_its_manager_reads_it() {
        let table: &[(Texts<'_>, &[&str])] = &[
            (&[(".ruby-version", "3.3.1\n")], &["ruby 3.3.1 .ruby-version"]),
            (&[(".ruby-version", "\u{feff}ruby-3.3.1 \r\n")], &["ruby ruby-3.3.1 .ruby-version"]),
            (&[(".ruby-version", "3.3.1@flipper\n")], &["ruby 3.3.1@flipper .ruby-version"]),
            (&[(".ruby-version", "3.3.1\n"), (".ruby-gemset", "flipper\n")], &["ruby 3.3.1@flipper .ruby-version"]),
            (&[(".nvmrc", "# comment\nlts/hydrogen # and why\n\nnpm=10\n")], &["node lts/hydrogen .nvmrc"]),
            (&[(".nvmrc", "v20.11.0")], &["node v20.11.0 .nvmrc"]),
            (&[(".nvmrc", "lts/*\n")], &["node lts/* .nvmrc"]),
            (&[(".node-version", "20\n")], &["node 20 .node-version"]),
            (&[(".python-version", "3.12.1\n3.11.7\n")], &["python 3.12.1+3.11.7 .python-version"]),
            (
                &[(".tool-versions", "ruby 3.3.1 # production\n# all\nnodejs 20.11.0 system\ngolang ref:v1\n\n")],
                &["ruby 3.3.1 .tool-versions", "node 20.11.0+system .tool-versions", "go ref:v1 .tool-versions"],
            ),
            (&[(".ruby-version", "3.3.1"), (".nvmrc", "20")], &["ruby 3.3.1 .ruby-version", "node 20 .nvmrc"]),
            (&[], &[]),
        ];
        for (files, wanted) in table {
            assert_eq!(read(files).as_deref(), Ok(&wanted.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()[..]), "{files:?}");
        }
    }

    #[test]
    fn a_file_that_says_nothing_or_too_much_is_refused_and_not_guessed_at() {
        let table: &[(&str, &str, &str)] = &[
            (".ruby-version", "\n", "`.ruby-version` names no version; remove it, or write one version into it"),
            (".ruby-version", "3.3.1\n3.2.0\n", "`.ruby-version` names several versions: 3.3.1, 3.2.0; only one can be run"),
            (".ruby-version", "../../etc\n", "`.ruby-version` names `../../etc`, which cannot be a version"),
            (".ruby-version", "$(id)\n", "`.ruby-version` names `$(id)`, which cannot be a version"),
            (".ruby-version", "3.3/../..\n", "`.ruby-version` names `3.3/../..`, which cannot be a version"),
            (".nvmrc", "--reinstall-packages-from=4\n--x\n", "`.nvmrc` names `--x`, which cannot be a version"),
            (".tool-versions", "ruby\n", "`.tool-versions, ruby` names no version; remove it, or write one version into it"),
            (".python-version", "3.11\u{1b}[2J\n", "`.python-version` names `3.11?[2J`, which cannot be a version"),
        ];
        for (file, text, wanted) in table {
            assert_eq!(read(&[(file, text)]), Err((*wanted).to_owned()), "{file}: {text:?}");
        }
    }

    #[test]
    fn tools_of_mise_have_their_common_names() {
        let tools = vec![("nodejs".to_owned(), vec!["20".to_owned()]), ("core:ruby".to_owned(), vec!["3.3".to_owned()])];
        let wants = wants(&Files { texts: BTreeMap::new(), mise: Some(("mise.toml".into(), tools)) }).expect("read");
        let shown: Vec<_> = wants.iter().map(|want| format!("{} {} {}", want.tool, want.versions[0], want.file)).collect();
        assert_eq!(shown, ["node 20 mise.toml", "ruby 3.3 mise.toml"]);
    }
}
