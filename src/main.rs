//! selfstart: worker machines that deploy themselves.

mod keeper;
mod sys;
//! The binary.
mod config;

mod agent;
mod sys;
mod telling;
mod control;
fn main() {}
mod release;
mod sys;
use std::process::ExitCode;
fn main() -> ExitCode {
    // Before any parsing of arguments: the helper reads its standard input and nothing else.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "internal-git") {
        return release::git::main();
    }
    ExitCode::SUCCESS
}
