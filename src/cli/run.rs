//! `selfstart run`: the flags; the work is the keeper's.

use clap::Args;

/// Flags of `run`.
#[derive(Args, Debug, Clone)]
pub(crate) struct RunArgs {}
