//! The whole way: from the text of a file to settings, or to all of its problems.

use std::path::Path;

use selfstart_core::units::Bytes;

use super::raw::{self, Node, Value};
use super::settings::Settings;
use super::*;

/// Four CPUs, 8 GiB, and two variables.
fn around() -> Surroundings<'static> {
    Surroundings {
        env: &|name| match name {
            "HOME" => Some("/root".to_owned()),
            "DB" => Some("3".to_owned()),
            _ => None,
        },
        cpus: 4,
        memory: Bytes(8 << 30),
    }
}

fn read(text: &str) -> Result<Loaded, ConfigErrors> {
    parse(Path::new("config.yaml"), text.as_bytes().to_vec(), &around())
}

fn good(text: &str) -> Loaded {
    read(text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

const SMALLEST: &str = "app: a\nsource: {repository: /srv/a.git, branch: main}\npools: {w: {command: ./work}}\n";
const EXAMPLE: &str = include_str!("../../config.yaml");

#[test]
fn app_source_and_a_pool_with_a_command_are_enough() {
    let loaded = good(SMALLEST);
    insta::assert_debug_snapshot!(loaded.settings);
    assert!(loaded.warnings.is_empty());
}

#[test]
fn the_example_is_in_order() {
    let loaded = good(EXAMPLE);
    assert_eq!(loaded.warnings, []);
    insta::assert_snapshot!(loaded.explained.to_string());
}
