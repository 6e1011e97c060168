//! How a person's command reaches the agent: versioned JSON lines over the Unix socket `<root>/run/control.sock`.
//!
//! [`wire`] is the language, [`socket`] the place, [`server`] the agent's end and [`client`] the command line's. Nothing here decides
//! what a command leads to. The protocol is told in docs/design/control-protocol.md.

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod socket;
pub(crate) mod wire;
