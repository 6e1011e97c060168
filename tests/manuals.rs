//! What docs/coming-from-capistrano.md says of the program: its configuration is accepted, its commands and keys are there.

use std::process::Command;

const MANUAL: &str = include_str!("../docs/coming-from-capistrano.md");
const KEYS: &str = include_str!("../docs/reference/config.md");

fn selfstart(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_selfstart")).args(args).output().expect("the binary");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

/// What stands between backquotes, outside the blocks of code.
fn quoted() -> Vec<&'static str> {
    let text = MANUAL.split("```").step_by(2);
    text.flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn the_worked_example_is_accepted() {
    let dir = tempfile::tempdir().expect("a folder");
    let there = dir.path().display().to_string();
    let block = MANUAL.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    fs_err::write(dir.path().join("token"), "x").expect("a file");
    // What this machine has instead: nobody's user, no root of /srv, no room for a real release.
    let own = rustix::process::geteuid().as_raw().to_string();
    let text = block
        .replace("/etc/selfstart/", &format!("{there}/"))
        .replace("root: /srv/flipper", &format!("root: {there}/root"))
        .replace("user: deploy", &format!("user: '{own}'"))
        .replace("  keep: 5\n", "  keep: 5\n  min_free: 1MB\n");
    let config = dir.path().join("config.yaml").display().to_string();
    for roles in [&["--role", "worker"][..], &["--role", "db"]] {
        fs_err::write(&config, text.as_str()).expect("a file");
        let (code, said) = selfstart(&[&["check", "--offline", "--config", &config], roles].concat());
        assert_eq!(code, 0, "{said}");
    }
}

#[test]
fn the_commands_and_keys_that_it_names_are_there() {
    let (mut verbs, mut keys) = (Vec::new(), Vec::new());
    for text in quoted() {
        if let Some(rest) = text.strip_prefix("selfstart ") {
            let mut words = rest.split(' ');
            let verb = words.next().expect("a word");
            let (code, said) = selfstart(&["help", verb]);
            assert_eq!(code, 0, "`{text}`: {said}");
            for flag in words.take_while(|word| *word != "--").filter(|word| word.starts_with("--")) {
                assert!(said.contains(flag), "`{text}`: {said}");
            }
            verbs.push(verb);
        }
        let sections = ["source.", "release.", "build.", "pools.", "fleet.", "queue."];
        if sections.iter().any(|section| text.starts_with(section))
            && text.bytes().all(|byte| byte.is_ascii_alphabetic() || b"._[]".contains(&byte))
        {
            assert!(KEYS.contains(&format!("| `{text}` |")), "no key `{text}`");
            keys.push(text);
        }
    }
    assert!(verbs.len() > 20 && keys.len() > 10, "{verbs:?} {keys:?}");
}

#[test]
fn what_it_says_is_not_there_yet_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("config.yaml").display().to_string();
    for (key, pool) in [("tasks: {}", ""), ("", ", checks: []")] {
        let text = format!("app: x\nsource: {{repository: /x, branch: main}}\npools: {{w: {{command: x{pool}}}}}\n{key}\n");
        fs_err::write(&config, text).expect("a file");
        let (code, said) = selfstart(&["check", "--offline", "--config", &config]);
        assert!(code == 78 && said.contains("no such key"), "{key}{pool}: the manual is to be changed: {said}");
    }
}
