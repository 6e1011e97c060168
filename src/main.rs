//! selfstart: worker machines that deploy themselves. This file wires the command line to the keeper, the agent and the configuration.
#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::panic, clippy::unwrap_used))]

mod agent;
mod check;
mod cli;
mod config;
mod control;
mod fleet;
mod holder;
mod http;
mod install;
mod keeper;
#[cfg(test)]
mod manual;
mod release;
mod rights;
mod runtime;
mod sys;
mod telling;

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use cli::exit::Exit;
use cli::failure::{Failure, Stop};
use cli::site::Loaded;

fn main() -> ExitCode {
    // Another selfstart was here before us, in this very process: what it was about goes on.
    if let Some(inherited) = keeper::inherited() {
        return match keeper::resume(inherited) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                eprintln!("error: selfstart cannot mind this node: {}", agent::chain(&error));
                ExitCode::FAILURE
            }
        };
    }
    // What selfstart starts itself, before any parsing: helpers are small, and their words are not an interface.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|verb| verb.to_str()) {
        Some("internal-keeper") => return keeper::rehearse(),
        Some("internal-git") => return release::git::main(),
        Some(release::carry::VERB) => return release::carry::main(),
        Some(runtime::VERB) => return runtime::main(),
        Some(telling::notify::VERB) => return telling::notify::main(),
        Some("internal-holder") => return holder::main(arguments.next().is_some_and(|word| word == "--stop")),
        Some("internal-rights") => return rights::main(arguments),
        Some("internal-agent") => return agent::main(arguments),
        Some(cli::demo::worker::VERB) => return cli::demo::worker::main(arguments),
        _ => {}
    }
    let wiring = cli::Wiring { load, check: check::checkup, run, demo: cli::demo::demo };
    ExitCode::from(cli::main(std::env::args_os(), &wiring).code())
}

/// Reads what the command line must know of a configuration.
fn load(path: &Path) -> Result<Loaded, Vec<String>> {
    match agent::load(path, config::For::Any) {
        Ok(loaded) => {
            let settings = loaded.settings;
            let shared = |pool: &config::settings::PoolSettings| {
                Some((pool.policy.name.as_str().to_owned(), settings.root.join(pool.log.file.as_ref()?)))
            };
            let shared_logs = settings.pools.iter().filter_map(shared).collect();
            let shape = |pool: &config::settings::PoolSettings| selfstart_core::command::PoolShape {
                name: pool.policy.name.clone(),
                group: pool.group.clone(),
                slots: pool.policy.count,
            };
            let pools = settings.pools.iter().map(shape).collect();
            Ok(Loaded { app: settings.app, root: settings.root, shared_logs, pools })
        }
        Err(config::ConfigErrors::Unreadable { source, .. }) => Err(vec![source.to_string()]),
        Err(error) => Err(error.problems().iter().map(ToString::to_string).collect()),
    }
}

/// Becomes the keeper.
fn run(config: &Path, args: &cli::run::RunArgs) -> Result<Exit, Stop> {
    // The agent would say so too, but not what to do about it.
    if fs_err::File::open(config).is_err() {
        return Err(cli::site::broken(config, &[]).into());
    }
    // The agent may be started from another working directory than ours is later.
    let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    let words: Vec<OsString> = [config.into()].into_iter().chain(args.role.iter().map(OsString::from)).collect();
    let words = words.iter().filter_map(|word| CString::new(word.as_bytes()).ok()).collect();
    match keeper::run(words) {
        Ok(0) => Ok(Exit::Done),
        Ok(code) => Ok(Exit::Other(code)),
        Err(error) => Err(Failure::because(Exit::Failed, "selfstart cannot mind this node".to_owned(), &error).into()),
    }
}
