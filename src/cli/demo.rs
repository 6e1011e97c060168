//! `selfstart demo`: a whole life on this machine, in a temporary folder.

use clap::Args;

use super::exit::Exit;
use super::failure::{Failure, Stop};

/// Flags of `demo`.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct DemoArgs {
    /// How long it may take, in seconds; less shows less
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub(crate) seconds: u32,
    /// Leave the temporary folder there, and say where it is
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Plays it.
pub(crate) fn demo(_args: DemoArgs) -> Result<Exit, Stop> {
    Err(Failure::new(Exit::Failed, "this build has no demo").into())
}
