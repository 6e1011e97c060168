//! selfstart: worker machines that deploy themselves.

mod agent;
mod cli;
mod config;
mod control;
mod keeper;
mod release;
mod sys;
mod telling;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match arguments.get(1).and_then(|verb| verb.to_str()) {
        Some("internal-git") => release::git::main(),
        Some("internal-agent") => agent::main(std::path::Path::new(&arguments[2])),
        Some("run") => {
            use std::os::unix::ffi::OsStrExt;
            let rest = arguments[2..].iter().filter_map(|word| std::ffi::CString::new(word.as_bytes()).ok()).collect();
            match keeper::run(rest) {
                Ok(code) => ExitCode::from(code),
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => ExitCode::SUCCESS,
    }
}
