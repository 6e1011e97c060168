//! The man pages and completions in packaging/, made from the command line and the configuration's schema. A test compares;
//! `UPDATE=1 cargo test --bin selfstart manual::` writes them.
//!
//! They are files of the project, like docs/reference, and not words of the program: so nothing of this is in what is shipped, and who makes a
//! package for another machine need not run the program.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use crate::cli::exit::Exit;
use crate::config::schema;

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");
const SOURCE: &str = concat!("selfstart ", env!("CARGO_PKG_VERSION"));
const MANUAL: &str = "selfstart";

/// Has the date of the pages, which must be given: where it is left out, groff takes what comes next for it.
const CHANGELOG: &str = include_str!("../packaging/debian/changelog");

/// The first words of the first page, instead of one line.
const ABOUT: &str = "\
`selfstart` keeps a worker machine: it fetches a git branch, makes a release of it, builds it, switches to it, and minds pools of workers: it \
restarts what crashes, recycles what leaks, ends jobs that hang, rolls out new commits one worker at a time, and survives its own death without \
stopping a worker.

`selfstart run` is the node itself, started at boot by systemd or rc.local. The other verbs ask it through its control socket, or read what it \
has written.";

const FILES: [(&str, &str); 7] = [
    ("/etc/selfstart/config.yaml", "The configuration, selfstart.yaml(5). The package has an example beside it, and writes none."),
    ("/etc/selfstart/APP.yaml", "The configuration of one of several apps (`--app APP`, `selfstart@APP.service`)."),
    ("/var/lib/selfstart/APP", "What a node has, where `root` says nothing else."),
    ("ROOT/current", "The link to the live release."),
    ("ROOT/shared", "What outlives releases, and is linked into them."),
    ("ROOT/log", "The output of workers and builds."),
    ("ROOT/run/control.sock", "The control socket."),
];

const ENVIRONMENT: [(&str, &str); 3] = [
    ("SELFSTART_CONFIG", "The configuration, where neither `--config` nor `--app` is given."),
    ("NO_COLOR", "If set: no colours."),
    ("TZ", "The time zone of what people read."),
];

const SIGNALS: [(&str, &str); 4] = [
    ("TERM, INT", "To `selfstart run`: every worker is stopped by its ladder, then it ends. A second one: the last rung now."),
    ("HUP", "The configuration is read anew, as by `selfstart reload`."),
    ("USR1", "Its log files are opened anew."),
    ("USR2", "The program that lies in the place of its own takes over, on trial, as by `selfstart upgrade`; workers go on."),
];

const SMALLEST: &str = "\
app: hello
source:
  repository: https://git.example.com/acme/hello.git
  branch: production
pools:
  jobs: {command: ./bin/work, count: 3}
";

/// Returns each file below packaging/ with its content.
fn files() -> BTreeMap<String, String> {
    let mut command =
        crate::cli::definition().disable_help_subcommand(true).subcommand_help_heading("COMMANDS").subcommand_value_name("command");
    command.build();
    let mut files = BTreeMap::new();
    for verb in command.get_subcommands() {
        let page = Page::new(verb).of_a_verb(verb);
        files.insert(format!("man/selfstart-{}.1", verb.get_name()), page);
    }
    files.insert("man/selfstart.1".to_owned(), Page::new(&command).of_the_program(&command));
    files.insert("man/selfstart.yaml.5".to_owned(), of_the_configuration());
    for (shell, name) in [(Shell::Bash, "selfstart.bash"), (Shell::Zsh, "_selfstart"), (Shell::Fish, "selfstart.fish")] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut crate::cli::definition(), "selfstart", &mut script);
        files.insert(format!("completions/{name}"), String::from_utf8(script).expect("text"));
    }
    files
}

/// The day of the version, as it is in the package's changelog.
fn date() -> String {
    let line = CHANGELOG.lines().find_map(|line| line.strip_prefix(" -- ")).expect("who released it");
    let (_, date) = line.split_once("  ").expect("when");
    jiff::fmt::rfc2822::parse(date).expect("a date").date().to_string()
}

/// What clap_mangen makes of a command, and what stands behind it.
struct Page {
    man: Man,
    text: Vec<u8>,
}

impl Page {
    fn new(command: &Command) -> Self {
        let man = Man::new(command.clone()).date(date()).source(SOURCE).manual(MANUAL);
        let mut text = Vec::new();
        man.render_title(&mut text).expect("into memory");
        man.render_name_section(&mut text).expect("into memory");
        man.render_synopsis_section(&mut text).expect("into memory");
        Self { man, text }
    }

    fn of_a_verb(mut self, verb: &Command) -> String {
        self.man.render_description_section(&mut self.text).expect("into memory");
        self.man.render_options_section(&mut self.text).expect("into memory");
        let mut rest = Roff::new();
        // `every_verb_has_an_example_and_every_flag_a_text` holds them to this form.
        let examples = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
        section(&mut rest, "EXAMPLES");
        as_it_is(&mut rest, examples.lines().filter_map(|line| line.strip_prefix("  ")));
        section(&mut rest, "EXIT STATUS");
        words(&mut rest, "As of every verb: selfstart(1).");
        section(&mut rest, "SEE ALSO");
        words(&mut rest, "selfstart(1), selfstart.yaml(5)");
        self.end(&rest)
    }

    fn of_the_program(mut self, command: &Command) -> String {
        let mut about = Roff::new();
        section(&mut about, "DESCRIPTION");
        paragraphs(&mut about, ABOUT);
        self.text.extend(about.render().into_bytes());
        self.man.render_subcommands_section(&mut self.text).expect("into memory");
        self.man.render_options_section(&mut self.text).expect("into memory");
        let mut rest = Roff::new();
        section(&mut rest, "EXIT STATUS");
        for (exit, meaning) in Exit::TABLE {
            item(&mut rest, &exit.code().to_string(), meaning);
        }
        for (title, items) in [("SIGNALS", &SIGNALS[..]), ("FILES", &FILES), ("ENVIRONMENT", &ENVIRONMENT)] {
            section(&mut rest, title);
            for (name, meaning) in items {
                item(&mut rest, name, meaning);
            }
        }
        section(&mut rest, "SEE ALSO");
        let verbs = command.get_subcommands().map(|verb| format!("selfstart-{}(1)", verb.get_name())).collect::<Vec<_>>().join(", ");
        words(&mut rest, &format!("selfstart.yaml(5), {verbs}, systemctl(1), journalctl(1)"));
        self.end(&rest)
    }

    fn end(mut self, rest: &Roff) -> String {
        self.text.extend(rest.render().into_bytes());
        tidy(&String::from_utf8(self.text).expect("text"))
    }
}

/// selfstart.yaml(5): the schema, as docs/reference/config.md.
fn of_the_configuration() -> String {
    let mut page = Roff::new();
    page.control("TH", ["selfstart.yaml", "5", &date(), SOURCE, MANUAL]);
    section(&mut page, "NAME");
    words(&mut page, "selfstart.yaml - what selfstart(1) keeps a machine by");
    section(&mut page, "SYNOPSIS");
    words(&mut page, "/etc/selfstart/config.yaml, /etc/selfstart/APP.yaml");
    section(&mut page, "DESCRIPTION");
    // Without its title and where it comes from.
    let introduction = schema::INTRODUCTION.splitn(3, "\n\n").nth(2).expect("more than a title");
    paragraphs(&mut page, introduction);
    let mut top = "";
    for key in schema::KEYS {
        let here = key.path.split(['.', '[']).next().unwrap_or_default();
        if here != top {
            top = here;
            section(&mut page, &here.to_uppercase());
        }
        let left = match key.default {
            schema::Left::Required => "Required".to_owned(),
            schema::Left::As(text) => format!("Left out: `{text}`"),
            schema::Left::Words("–") => "May be left out".to_owned(),
            schema::Left::Words(words) => format!("Left out: {words}"),
        };
        item(&mut page, key.path, &format!("{} Value: {}. {left}.", key.meaning, key.kind));
    }
    section(&mut page, "THE POLITE STOP OF EACH QUEUE");
    words(&mut page, "What `stop` is when it is left out. The same signal means opposite things to different libraries.");
    for (kind, ladder, why) in schema::polite_stops() {
        item(&mut page, kind, &format!("`{ladder}`: {why}"));
    }
    section(&mut page, "EXAMPLE");
    as_it_is(&mut page, SMALLEST.lines());
    section(&mut page, "SEE ALSO");
    words(&mut page, "selfstart(1), selfstart-check(1); /usr/share/doc/selfstart/examples/config.yaml, an example that names every key");
    tidy(&page.render())
}

fn section(page: &mut Roff, title: &str) {
    page.control("SH", [title]);
}

/// One paragraph; what stands between `` ` `` is bold.
fn words(page: &mut Roff, text: &str) {
    let marked = |(at, part): (usize, &str)| -> Inline { if at % 2 == 1 { bold(part) } else { roman(part) } };
    page.text(text.split('`').enumerate().map(marked).collect::<Vec<_>>());
}

fn item(page: &mut Roff, name: &str, meaning: &str) {
    page.control("TP", []);
    page.text([bold(name)]);
    words(page, meaning);
}

/// Paragraphs with an empty line between them; one that begins with `- ` is a list. Stress is dropped.
fn paragraphs(page: &mut Roff, text: &str) {
    for (at, paragraph) in text.replace('*', "").trim().split("\n\n").enumerate() {
        let mut entries = format!("\n{paragraph}");
        let list = entries.starts_with("\n- ");
        if !list {
            // A section begins one by itself.
            if at > 0 {
                page.control("PP", []);
            }
            words(page, &one_line(&entries));
            continue;
        }
        entries = entries.replacen("\n- ", "", 1);
        for entry in entries.split("\n- ") {
            page.control("IP", ["\\(bu", "2"]);
            words(page, &one_line(entry));
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn as_it_is<'a>(page: &mut Roff, lines: impl Iterator<Item = &'a str>) {
    page.control("nf", []);
    for line in lines {
        page.text([roman(line)]);
    }
    page.control("fi", []);
}

/// Each part comes with the lines that define the apostrophe: the first ones are enough. No blanks at the ends of lines.
fn tidy(page: &str) -> String {
    let mut seen = Vec::new();
    let mut tidied = String::new();
    for line in page.lines().map(str::trim_end) {
        let defines = line.starts_with(".ie ") || line.starts_with(".el ");
        if !(defines && seen.contains(&line)) {
            tidied.push_str(line);
            tidied.push('\n');
        }
        if defines {
            seen.push(line);
        }
    }
    tidied
}

#[test]
fn the_pages_and_completions_are_what_the_program_says() {
    let (files, root) = (files(), Path::new(PACKAGING));
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        for (name, text) in &files {
            fs_err::write(root.join(name), text).expect("a writable checkout");
        }
    }
    for (name, text) in &files {
        let there = fs_err::read_to_string(root.join(name)).unwrap_or_default();
        assert!(there == *text, "packaging/{name} is not up to date: UPDATE=1 cargo test --bin selfstart manual::");
    }
    for folder in ["man", "completions"] {
        for entry in fs_err::read_dir(root.join(folder)).expect("a folder") {
            let name = format!("{folder}/{}", entry.expect("an entry").file_name().display());
            assert!(files.contains_key(&name), "packaging/{name} is of no verb that there is: remove it");
        }
    }
}

/// As Debian's lintian asks groff.
#[test]
fn no_page_has_a_warning() {
    for name in files().keys().filter(|name| name.starts_with("man/")) {
        let told = std::process::Command::new("man")
            .args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
            .arg(Path::new(PACKAGING).join(name))
            .envs([("LC_ALL", "C.UTF-8"), ("MANROFFSEQ", ""), ("MANWIDTH", "80")])
            .output()
            .expect("`man` and groff are installed (Debian: man-db)");
        assert!(told.status.success() && !told.stdout.is_empty(), "{name}: {}", String::from_utf8_lossy(&told.stderr));
        assert_eq!(String::from_utf8_lossy(&told.stderr), "", "{name}");
    }
}

/// Asks a real shell what it would offer behind `selfstart dep`.
#[test]
fn a_real_bash_completes_verbs() {
    let script = "source \"$1\"; COMP_WORDS=(selfstart dep); COMP_CWORD=1; _selfstart selfstart dep selfstart; echo \"${COMPREPLY[*]}\"";
    let told = std::process::Command::new("bash")
        .args(["--norc", "-c", script, "bash"])
        .arg(Path::new(PACKAGING).join("completions/selfstart.bash"))
        .output()
        .expect("bash");
    assert_eq!((String::from_utf8_lossy(&told.stdout).trim(), String::from_utf8_lossy(&told.stderr).trim()), ("deploy", ""));
}
