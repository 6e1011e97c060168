//! The binary: the command line, and what it is wired to.

mod cli;
mod control;

use std::path::Path;
use std::process::ExitCode;

use cli::check::{Finding, Weight};
use cli::exit::Exit;
use cli::failure::{Failure, Stop};
use cli::site::Loaded;

fn main() -> ExitCode {
    let wiring = cli::Wiring { load, check, run, demo: cli::demo::demo };
    ExitCode::from(cli::main(std::env::args_os(), &wiring).code())
}

/// Finds an app by the lines `app:` and `root:` of its configuration.
fn load(path: &Path) -> Result<Loaded, Vec<String>> {
    let text = fs_err::read_to_string(path).map_err(|error| vec![error.to_string()])?;
    cli::site::by_lines(&text).ok_or_else(|| vec![format!("{}:1:1: app: missing", path.display())])
}

fn check(path: &Path) -> Vec<Finding> {
    let problem = |text| Finding { weight: Weight::Problem, text, hint: None };
    load(path).map_or_else(|problems| problems.into_iter().map(problem).collect(), |_| Vec::new())
}

fn run(_path: &Path, _args: &cli::run::RunArgs) -> Result<Exit, Stop> {
    Err(Failure::new(Exit::Failed, "this build cannot run a node").into())
}
