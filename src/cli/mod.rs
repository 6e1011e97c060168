//! The command line: one file per verb or family of verbs. It reads the state on disk, or asks the agent through its control socket; it
//! decides nothing about the node.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use selfstart_core::command::Command;

pub(crate) mod ask;
pub(crate) mod check;
pub(crate) mod demo;
mod deploy;
mod elsewhere;
mod events;
mod exec;
pub(crate) mod exit;
pub(crate) mod failure;
mod install;
mod logs;
mod look;
mod node;
mod pools;
#[cfg(test)]
mod reference;
pub(crate) mod run;
pub(crate) mod site;
mod status;
mod tail;
mod upgrade;

use exit::Exit;
use failure::Stop;
use look::Paint;

/// What the rest of the program does for the command line.
pub(crate) struct Wiring {
    /// Reads a configuration.
    pub(crate) load: site::Load,
    /// Looks at a configuration and at the machine; for a node with these roles too; true: asks nobody else.
    pub(crate) check: fn(&Path, &[String], bool) -> check::Checkup,
    /// Keeps this node, until told to stop.
    pub(crate) run: fn(&Path, &run::RunArgs) -> Result<Exit, Stop>,
    /// Plays a whole life.
    pub(crate) demo: fn(demo::DemoArgs) -> Result<Exit, Stop>,
}

/// Worker machines that deploy themselves: repository in, minded pools out
#[derive(Parser, Debug)]
#[command(name = "selfstart", version, max_term_width = 100, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    /// The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml
    #[arg(long, global = true, value_name = "PATH", help_heading = "Which app")]
    config: Option<PathBuf>,
    /// The app, where there are several: its configuration is /etc/selfstart/APP.yaml
    #[arg(long, global = true, value_name = "APP", value_parser = app_name, help_heading = "Which app")]
    app: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

/// A part of a path is made of it.
fn app_name(text: &str) -> Result<String, String> {
    let begins = text.starts_with(|first: char| first.is_ascii_lowercase());
    let goes_on = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if begins && goes_on { Ok(text.to_owned()) } else { Err("not the name of an app: [a-z][a-z0-9-]*".to_owned()) }
}

const AFTER_HELP: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no agent answers, 4 refused, 78 wrong configuration.
`selfstart help VERB` has an example of each verb. Try it all without any set-up: `selfstart demo`.";

/// How a command is answered.
#[derive(Args, Debug)]
struct AnswerArgs {
    /// Answer as soon as it is accepted, not when it took effect
    #[arg(long)]
    no_wait: bool,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl AnswerArgs {
    fn format(&self) -> ask::Format {
        ask::Format::json(self.json)
    }
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Keep this node: boot, deploy, mind the pools until told to stop
    ///
    /// Stays in the foreground. TERM or INT: stop everything by its ladder, then end; a second one: at once. HUP: reload. USR2: upgrade.
    /// USR1: open the logs again.
    #[command(after_help = "Example:\n  selfstart run --config ./config.yaml")]
    Run(run::RunArgs),
    /// Look for what is wrong with the configuration and this machine
    #[command(after_help = "Example:\n  selfstart check --config ./config.yaml")]
    Check(check::CheckArgs),
    /// Wait until the pools are up
    #[command(after_help = "Example:\n  selfstart wait --ready --timeout 2m")]
    Wait(node::WaitArgs),
    /// Show the node: release, deploy, pools, workers
    #[command(after_help = "Examples:\n  selfstart status -w\n  selfstart status --json | jq '.pools[].ready'")]
    Status(status::StatusArgs),
    /// Fetch and roll out now
    ///
    /// Shows progress and answers when the release is live and its workers are ready, or why not. A revision that failed here before
    /// is refused unless forced.
    #[command(after_help = "Examples:\n  selfstart deploy\n  selfstart deploy --ref hotfix --no-wait")]
    Deploy(deploy::DeployArgs),
    /// Go back to the previous good release, and hold updates
    #[command(after_help = "Examples:\n  selfstart rollback\n  selfstart rollback --to 1a2b3c4")]
    Rollback(deploy::RollbackArgs),
    /// List the releases: state, age, size, who uses them
    #[command(after_help = "Example:\n  selfstart releases")]
    Releases(deploy::ReleasesArgs),
    /// Start what is stopped; ends a drain
    #[command(after_help = "Examples:\n  selfstart start\n  selfstart start checkins/3")]
    Start(pools::TargetsArgs),
    /// Stop by the stop ladder, and stay stopped
    #[command(after_help = "Examples:\n  selfstart stop checkins\n  selfstart stop --no-wait")]
    Stop(pools::TargetsArgs),
    /// Replace workers by new ones, in the order that the pool's `update` says
    #[command(after_help = "Examples:\n  selfstart restart\n  selfstart restart checkins/3 imports")]
    Restart(pools::TargetsArgs),
    /// Change how many workers a pool has
    ///
    /// Kept over deploys and restarts, until `count` is changed and reloaded, or POOL=config.
    #[command(after_help = "Examples:\n  selfstart scale checkins=12\n  selfstart scale checkins=config")]
    Scale(pools::ScaleArgs),
    /// Send a signal to the main processes of workers
    #[command(after_help = "Example:\n  selfstart signal checkins/3 USR1")]
    Signal(pools::SignalArgs),
    /// Stop minding workers, without touching them
    #[command(after_help = "Example:\n  selfstart pause checkins/3")]
    Pause(pools::TargetsArgs),
    /// Mind them again
    #[command(after_help = "Example:\n  selfstart resume checkins/3")]
    Resume(pools::TargetsArgs),
    /// Stop all workers by their ladders and start none; the agent stays
    ///
    /// Until `selfstart start` or a reboot.
    #[command(after_help = "Example:\n  selfstart drain")]
    Drain(node::PlainArgs),
    /// No updates until `unhold`
    #[command(after_help = "Example:\n  selfstart hold --why 'the shop is open'")]
    Hold(node::HoldArgs),
    /// Updates again; deploys what was asked for meanwhile
    #[command(after_help = "Example:\n  selfstart unhold")]
    Unhold(node::PlainArgs),
    /// Apply a changed configuration; restarts only what changed
    #[command(after_help = "Examples:\n  selfstart reload --plan\n  selfstart reload")]
    Reload(node::ReloadArgs),
    /// Show the output of workers
    ///
    /// Read from their files: no agent is needed. A pipe gets the lines as they are there, dates in UTC.
    #[command(after_help = "Examples:\n  selfstart logs checkins/3\n  selfstart logs -f")]
    Logs(logs::LogsArgs),
    /// Show what happened
    ///
    /// Read from the journal: no agent is needed.
    #[command(after_help = "Examples:\n  selfstart events -f\n  selfstart events --json -n 100")]
    Events(events::EventsArgs),
    /// Say why workers ended, or what became of the deploys
    ///
    /// Read from the journal: no agent is needed.
    #[command(after_help = "Examples:\n  selfstart why checkins/3\n  selfstart why deploy")]
    Why(events::WhyArgs),
    /// Run a command as a worker would be run now: its user, environment, directory
    ///
    /// Ends as the command ends; 126: it cannot be executed; 127: there is no such command.
    #[command(after_help = "Examples:\n  selfstart exec -- bundle exec rake -T\n  selfstart exec --pool checkins -- sh")]
    Exec(exec::ExecArgs),
    /// Renew selfstart itself, workers untouched
    ///
    /// The new program first reads the state in a process of its own, then takes over, on trial: if its agent is not up within 10 s the
    /// old one is back. USR2 to `selfstart run` does the same with the program that lies where it was started from.
    #[command(after_help = "Examples:\n  selfstart upgrade --binary ./selfstart\n  selfstart upgrade")]
    Upgrade(upgrade::UpgradeArgs),
    /// Have selfstart started at boot, by systemd or rc.local
    ///
    /// Copies this program to where it is to be if there is none, and needs no configuration. A second time changes nothing.
    #[command(after_help = "Examples:\n  selfstart install\n  selfstart install --rc-local --root /mnt/image")]
    Install(install::InstallArgs),
    /// Take away what `install` made
    ///
    /// Files get their bytes and modes back. The configuration, the releases and their logs stay; running workers too: while selfstart
    /// runs it is refused, unless forced.
    #[command(after_help = "Example:\n  selfstart uninstall")]
    Uninstall(install::UninstallArgs),
    /// Show a whole life on this machine, in a temporary folder
    ///
    /// Workers work, leak, hang, crash and are minded; a commit is pushed and rolled out; the agent is killed and comes back. Exit 1 if
    /// any promise was broken.
    #[command(after_help = "Example:\n  selfstart demo --seconds 30")]
    Demo(demo::DemoArgs),
}

/// The definition of the command line, for what is made from it.
#[cfg(test)]
pub(crate) fn definition() -> clap::Command {
    Cli::command()
}

/// Does what the command line says, tells failures on stderr, returns the exit code.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>, wiring: &Wiring) -> Exit {
    let cli = match Cli::command().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, and a reader who went away is none of ours.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    match dispatch(&cli, wiring) {
        Ok(exit) => exit,
        Err(Stop::PipeClosed) => Exit::Done,
        Err(Stop::Failed(failure)) => {
            // Nobody reads stderr: the exit code still tells.
            let _ = std::io::stderr().write_all(failure.render(Paint::of_stderr()).as_bytes());
            failure.exit
        }
    }
}

fn dispatch(cli: &Cli, wiring: &Wiring) -> Result<Exit, Stop> {
    let config = site::config_path(cli.config.as_deref(), cli.app.as_deref(), site::config_variable());
    if matches!(cli.verb, Verb::Run(_) | Verb::Check(_)) {
        site::not_another(&config, cli.app.as_deref(), wiring.load)?;
    }
    match &cli.verb {
        Verb::Run(args) => return (wiring.run)(&config, args),
        Verb::Check(args) => return check::check(&(wiring.check)(&config, &args.role, args.offline), args),
        Verb::Demo(args) => return (wiring.demo)(*args),
        Verb::Install(args) => return install::install(args),
        Verb::Uninstall(args) => return install::uninstall(args),
        _ => {}
    }
    let site = &site::locate(&config, cli.app.as_deref(), wiring.load)?;
    match &cli.verb {
        Verb::Run(_) | Verb::Check(_) | Verb::Demo(_) | Verb::Install(_) | Verb::Uninstall(_) => Ok(Exit::Done),
        Verb::Wait(args) => node::wait(site, args),
        Verb::Status(args) => status::status(site, args),
        Verb::Deploy(args) => deploy::deploy(site, args),
        Verb::Rollback(args) => deploy::rollback(site, args),
        Verb::Releases(args) => deploy::releases(site, args),
        Verb::Start(args) => pools::to_targets(site, args, |targets| Command::Start { targets }),
        Verb::Stop(args) => pools::to_targets(site, args, |targets| Command::Stop { targets }),
        Verb::Restart(args) => pools::to_targets(site, args, |targets| Command::Restart { targets }),
        Verb::Scale(args) => pools::scale(site, args),
        Verb::Signal(args) => pools::signal(site, args),
        Verb::Pause(args) => pools::to_targets(site, args, |targets| Command::Pause { targets }),
        Verb::Resume(args) => pools::to_targets(site, args, |targets| Command::Resume { targets }),
        Verb::Drain(args) => node::plain(site, args, Command::Drain {}),
        Verb::Hold(args) => node::hold(site, args),
        Verb::Unhold(args) => node::plain(site, args, Command::Unhold {}),
        Verb::Reload(args) => node::reload(site, args),
        Verb::Logs(args) => logs::logs(site, args),
        Verb::Events(args) => events::events(site, args),
        Verb::Why(args) => events::why(site, args),
        Verb::Exec(args) => exec::exec(site, args),
        Verb::Upgrade(args) => upgrade::upgrade(site, args),
    }
}
