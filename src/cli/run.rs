//! `selfstart run`: the flags; the work is the keeper's.

use clap::Args;

/// Flags of `run`.
#[derive(Args, Debug, Clone)]
pub(crate) struct RunArgs {
    /// A role of this node, on top of `roles:`; may be repeated
    #[arg(long, value_name = "ROLE", value_parser = role)]
    pub(crate) role: Vec<String>,
}

/// A role as `roles:` takes it.
pub(super) fn role(text: &str) -> Result<String, String> {
    let begins = text.starts_with(|first: char| first.is_ascii_lowercase());
    let goes_on = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'));
    if begins && goes_on && text.len() <= 64 { Ok(text.to_owned()) } else { Err("not a role: [a-z][a-z0-9_-]*".to_owned()) }
}
