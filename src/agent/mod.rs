//! The head: owns all state and takes all decisions, through `selfstart_core`.
//!
//! It may be killed at any moment: the keeper starts another, which asks what runs and goes on. Upgrade, restart and crash are one path.

mod apart;
mod askpass;
mod boot;
mod carrying;
mod deploying;
mod errands;
mod launch;
mod line;
mod minding;
mod notifying;
mod once;
pub(crate) mod output;
mod readers;
mod run;
mod runtime;
mod sampling;
mod serving;
mod showing;
pub(crate) mod store;
mod tell;
mod triggering;

pub(crate) use apart::is_apart;
pub(crate) use askpass::trusted as askpass_trusted;
pub(crate) use boot::{At, load, main, total_memory, tree_name};
pub(crate) use deploying::{allowed_signers, ask_source, chain};
pub(crate) use launch::PATH;
pub(crate) use runtime::ask_runtime;
pub(crate) use sampling::find_those_who_left;
pub(crate) use serving::control_owner;
