//! docs/reference/cli.md, made from the command line itself. A test compares; `UPDATE=1 cargo test --bin selfstart cli::reference`
//! writes it.

use std::fmt::Write as _;

use clap::CommandFactory;

use super::{Cli, exit::Exit};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/cli.md");

fn page() -> String {
    let mut page = String::from(
        "# The command line\n\n<!-- Made from the code by a test (src/cli/reference.rs); do not edit. -->\n\n\
         Errors go to stderr: what failed, why, what to do next. `--json` on every verb that prints facts; colour and a moving\n\
         line of progress only on a terminal (`NO_COLOR` is honoured), elsewhere the answer alone. Times are local with their offset for people, RFC 3339 in UTC for programs.\n\n\
         ## Exit codes\n\n| code | meaning |\n|---|---|\n",
    );
    for (exit, meaning) in Exit::TABLE {
        let _ = writeln!(page, "| {} | {meaning} |", exit.code());
    }
    let mut cli = Cli::command().term_width(100);
    cli.build();
    let _ = write!(page, "\n## selfstart\n\n```text\n{}```\n", trimmed(&cli.render_long_help().to_string()));
    let names: Vec<String> = cli.get_subcommands().map(|verb| verb.get_name().to_owned()).filter(|name| name != "help").collect();
    for name in names {
        if let Some(verb) = cli.find_subcommand_mut(&name) {
            let help = verb.clone().term_width(100).render_long_help().to_string();
            let _ = write!(page, "\n## selfstart {name}\n\n```text\n{}```\n", trimmed(&help));
        }
    }
    page
}

/// Without blanks at the ends of lines.
fn trimmed(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn the_reference_page_is_what_the_command_line_says() {
    if std::env::var_os("UPDATE").is_some() {
        fs_err::write(PATH, page()).expect("a writable checkout");
    }
    let there = fs_err::read_to_string(PATH).unwrap_or_default();
    assert!(there == page(), "docs/reference/cli.md is not up to date: UPDATE=1 cargo test --bin selfstart cli::reference");
}

#[test]
fn every_verb_has_an_example_and_every_flag_a_text() {
    let cli = Cli::command();
    for verb in cli.get_subcommands() {
        let name = verb.get_name();
        let example = verb.get_after_help().unwrap_or_else(|| panic!("{name} has no example")).to_string();
        for line in example.lines().filter(|line| line.starts_with("  ")) {
            let words = shell_words::split(line.split('|').next().unwrap_or_default()).expect("words");
            Cli::command().try_get_matches_from(&words).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(words[1], name);
        }
        for arg in verb.get_arguments() {
            assert!(arg.get_help().is_some(), "{name} {} has no help", arg.get_id());
        }
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn verbs_of_later_issues_are_unknown() {
    for verb in ["quiet", "unquiet", "reap", "jobs", "queues", "enqueue", "work", "env", "fleet", "bake"] {
        let error = Cli::command().try_get_matches_from(["selfstart", verb]).expect_err(verb);
        assert_eq!(error.exit_code(), 2, "{verb}");
    }
}

#[test]
fn the_main_help() {
    let help = Cli::command().term_width(100).render_help().to_string();
    insta::assert_snapshot!(trimmed(&help));
}

#[test]
fn wrong_usage_is_told_with_what_is_right() {
    let told = |line: &str| {
        let words = shell_words::split(line).expect("words");
        let error = Cli::command().term_width(100).color(clap::ColorChoice::Never).try_get_matches_from(words).expect_err(line);
        format!("$ {line}\n{error}")
    };
    let all = [
        "selfstart deplyo",
        "selfstart stop Checkins",
        "selfstart scale checkins",
        "selfstart scale checkins=99999",
        "selfstart signal checkins FOO",
        "selfstart why checkins",
        "selfstart wait --timeout 10",
        "selfstart exec",
    ];
    insta::assert_snapshot!(all.map(told).join("\n"));
}
