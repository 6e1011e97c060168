//! THIRD-PARTY-NOTICES.md names every crate that is shipped, with its licence and the words that its licence demands.
//!
//! What stands below `## Crates` there is made from `cargo metadata` and the crates' own files;
//! `UPDATE=1 cargo test --test notices` writes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/THIRD-PARTY-NOTICES.md");
const CRATES: &str = "## Crates\n";

/// What is built for (deny.toml, too).
const MACHINES: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shipped {
    name: String,
    version: String,
    licence: String,
    place: String,
    folder: PathBuf,
}

/// Returns what the program is made of on one machine: what it depends on, neither to build nor to test it.
fn shipped_on(machine: &str) -> BTreeSet<Shipped> {
    let told = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", machine])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let metadata: Value = serde_json::from_slice(&told.stdout).expect("JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes: HashMap<String, Value> = list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (text(&node["id"]), node)).collect();
    let mut wanted = vec![text(&metadata["resolve"]["root"])];
    let mut reached = BTreeSet::new();
    while let Some(id) = wanted.pop() {
        if !reached.insert(id.clone()) {
            continue;
        }
        for dependency in list(&nodes[&id]["deps"]) {
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                wanted.push(text(&dependency["pkg"]));
            }
        }
    }
    let others =
        list(&metadata["packages"]).into_iter().filter(|package| reached.contains(&text(&package["id"])) && !package["source"].is_null());
    others
        .map(|package| Shipped {
            name: text(&package["name"]),
            version: text(&package["version"]),
            licence: text(&package["license"]),
            place: text(&package["repository"]),
            folder: Path::new(&text(&package["manifest_path"])).parent().expect("a folder").to_owned(),
        })
        .collect()
}

/// Terms of what crates bring along.
const BROUGHT_ALONG: [(&str, &str); 2] = [("libgit2-sys", "libgit2/COPYING"), ("libz-sys", "src/zlib/LICENSE")];

/// Returns the files of a crate's licence: of two to choose from, MIT's.
fn texts(shipped: &Shipped) -> Vec<String> {
    let mut files: Vec<_> = fs_err::read_dir(&shipped.folder)
        .expect("the crate's files; `cargo fetch` brings them")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            path.is_file() && ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"].iter().any(|word| name.starts_with(word))
        })
        .collect();
    files.sort();
    let of_mit = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().to_uppercase().contains("MIT"));
    let choice = shipped.licence.contains("MIT") && files.iter().any(|path| of_mit(&path));
    let brought = BROUGHT_ALONG.iter().filter(|(name, _)| *name == shipped.name).map(|(_, file)| shipped.folder.join(file));
    let chosen = files.iter().filter(|path| !choice || of_mit(path)).cloned().chain(brought);
    chosen.map(|path| tidy(&String::from_utf8_lossy(&fs_err::read(path).expect("a file")))).collect()
}

/// The words alone: no blanks at the ends of lines, no empty lines around, no page feeds, none of the marks that would end a block of text.
fn tidy(text: &str) -> String {
    let lines = text.trim_start_matches('\u{feff}').replace(['\r', '\u{c}'], "").replace("```", "'''");
    let lines: Vec<_> = lines.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

fn crates() -> String {
    let all: BTreeSet<_> = MACHINES.iter().flat_map(|machine| shipped_on(machine)).collect();
    let mut page = format!(
        "{CRATES}\nFrom `cargo metadata`, for Linux on x86_64 and aarch64; what only builds or tests selfstart is left out. Where there is a choice, selfstart takes\n\
         MIT. Made by `UPDATE=1 cargo test --test notices`.\n\n| crate | version | licence | where |\n|---|---|---|---|\n"
    );
    let mut by_text: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut without = Vec::new();
    for one in &all {
        assert!(!one.licence.is_empty(), "{} says no licence", one.name);
        let _ = writeln!(page, "| {} | {} | {} | {} |", one.name, one.version, one.licence, one.place);
        let texts = texts(one);
        if texts.is_empty() {
            without.push(format!("{} ({})", one.name, one.licence));
        }
        for text in texts {
            by_text.entry(text).or_default().push(&one.name);
        }
    }
    page.push_str("\n## Their words\n\nCopyright lines and terms, as each package has them.\n");
    if !without.is_empty() {
        let _ = write!(page, "\nOf these the package holds no file with its terms: {}.\n", without.join(", "));
    }
    let mut texts: Vec<_> = by_text.into_iter().map(|(text, names)| (names, text)).collect();
    texts.sort();
    for (names, text) in texts {
        let _ = write!(page, "\n### {}\n\n```text\n{text}\n```\n", names.join(", "));
    }
    page
}

#[test]
fn every_crate_that_is_shipped_is_named_with_its_licence_and_its_words() {
    let made = crates();
    let there = fs_err::read_to_string(PAGE).expect("the page");
    let (head, tail) = there.split_once(CRATES).expect("`## Crates`");
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        fs_err::write(PAGE, format!("{head}{made}")).expect("a writable checkout");
        return;
    }
    let missing: Vec<_> = made.lines().filter(|line| line.starts_with("| ") && !tail.contains(line)).collect();
    let first = format!("THIRD-PARTY-NOTICES.md is not up to date: UPDATE=1 cargo test --test notices. Not in it: {missing:#?}");
    assert!(made.strip_prefix(CRATES) == Some(tail), "{first}");
}

/// What cargo cannot see: C that crates bring along. Each of them is named in the part that is written by hand.
#[test]
fn c_code_that_is_compiled_in_is_named_too() {
    let page = fs_err::read_to_string(PAGE).expect("the page");
    let (head, _) = page.split_once(CRATES).expect("`## Crates`");
    let of_c = |shipped: &Shipped| {
        let brings = |path: &Path| fs_err::read_dir(path).is_ok_and(|entries| entries.flatten().any(|entry| is_c(&entry.path())));
        shipped.folder.join("build.rs").exists() && folders(&shipped.folder).iter().any(|folder| brings(folder))
    };
    let all: BTreeSet<_> = MACHINES.iter().flat_map(|machine| shipped_on(machine)).collect();
    let with_c: Vec<_> = all.iter().filter(|one| of_c(one)).map(|one| one.name.as_str()).collect();
    assert!(with_c.contains(&"libgit2-sys") && with_c.contains(&"ring"), "this test sees no C: {with_c:?}");
    for name in with_c {
        assert!(head.contains(&format!("| {name} |")), "{name} brings C code: say in THIRD-PARTY-NOTICES.md what it is, and its licence");
    }
}

fn is_c(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "c" || extension == "S")
}

/// The folder and two levels below it: where C is, some of it is there.
fn folders(top: &Path) -> Vec<PathBuf> {
    let below = |folder: &PathBuf| -> Vec<PathBuf> {
        let entries =
            fs_err::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect());
        entries.unwrap_or_default()
    };
    let first = below(&top.to_owned());
    let second: Vec<_> = first.iter().flat_map(below).collect();
    let third: Vec<_> = second.iter().flat_map(below).collect();
    [vec![top.to_owned()], first, second, third].concat()
}
