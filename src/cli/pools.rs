//! `selfstart start`, `stop`, `restart`, `pause`, `resume`, `scale` and `signal`.

use clap::Args;
use selfstart_core::command::{Command, Scale, Target};
use selfstart_core::signal::Signal;

use super::ask::{self, request};
use super::exit::Exit;
use super::failure::Stop;
use super::site::Site;

/// Which slots.
#[derive(Args, Debug)]
pub(crate) struct TargetsArgs {
    /// A pool, a slot of one, or a group; none: everything
    #[arg(value_name = "POOL[/SLOT]|GROUP")]
    targets: Vec<Target>,
    #[command(flatten)]
    answer: super::AnswerArgs,
}

/// Flags of `scale`.
#[derive(Args, Debug)]
pub(crate) struct ScaleArgs {
    /// How many workers the pool has from now on; `config`: as many as the configuration says
    #[arg(value_name = "POOL=N|POOL=config")]
    scale: Scale,
    #[command(flatten)]
    answer: super::AnswerArgs,
}

/// Flags of `signal`.
#[derive(Args, Debug)]
pub(crate) struct SignalArgs {
    /// Whose main processes get it
    #[arg(value_name = "POOL[/SLOT]|GROUP")]
    target: Target,
    /// HUP, USR1, TERM, ...
    #[arg(value_name = "SIG", value_parser = any_case)]
    signal: Signal,
    #[command(flatten)]
    answer: super::AnswerArgs,
}

fn any_case(text: &str) -> Result<Signal, String> {
    let known = || Signal::ALL.map(Signal::name).join(", ");
    text.to_ascii_uppercase().parse().map_err(|_| format!("there are {}", known()))
}

/// Asks for something to be done to targets.
pub(crate) fn to_targets(site: &Site, args: &TargetsArgs, command: impl FnOnce(Vec<Target>) -> Command) -> Result<Exit, Stop> {
    ask::act(site, &request(command(args.targets.clone()), args.answer.no_wait), args.answer.format())
}

/// Asks for another number of workers.
pub(crate) fn scale(site: &Site, args: &ScaleArgs) -> Result<Exit, Stop> {
    let command = Command::Scale { pool: args.scale.pool.clone(), to: args.scale.to };
    ask::act(site, &request(command, args.answer.no_wait), args.answer.format())
}

/// Sends a signal.
pub(crate) fn signal(site: &Site, args: &SignalArgs) -> Result<Exit, Stop> {
    let command = Command::Signal { target: args.target.clone(), signal: args.signal };
    ask::act(site, &request(command, args.answer.no_wait), args.answer.format())
}
