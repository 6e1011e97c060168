//! How the helper reaches a repository: which way ([`Address`]), and the two smart transports that libgit2 is given.
//!
//! libgit2 is built without OpenSSL and libssh2 (docs/decisions/0002): http and https go over reqwest with rustls, ssh over the
//! system's `ssh` client. `git://`, paths and `file://` are libgit2's own. libgit2 flattens every error of a transport to a
//! text, so the typed one is left in [`Trouble`] and taken from there.

mod address;
mod http;
pub(crate) mod ssh;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub(super) use address::Address;

use super::git::{Credentials, ErrorKind, Failure, Secret};
use crate::sys::libgit2;

/// The longest that a connection may take to come about; a server that has not answered by then is taken for unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest silence of a server. It has to cover the time in which a server counts objects without a word, which for the
/// largest public repositories is tens of seconds.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How to reach the source.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    /// `source.ca`.
    pub(super) ca: Option<PathBuf>,
    /// The proxies, by the names of the variables that usually say them.
    pub(super) proxies: BTreeMap<String, Secret>,
    /// `source.credentials`.
    pub(super) credentials: Credentials,
    /// The longest that the fetch may take: no single wait is longer.
    pub(super) timeout: Duration,
}

/// Where a transport leaves why it failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<Failure>>>);

impl Trouble {
    /// Leaves a failure; the first one stays, since later ones follow from it. Returns what libgit2 is told.
    fn leave(&self, failure: Failure) -> git2::Error {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        // A fixed text: git2 panics on one with a NUL in it, and servers choose theirs.
        git2::Error::new(git2::ErrorCode::GenericError, git2::ErrorClass::Net, "the transport failed")
    }

    fn leave_io(&self, failure: Failure) -> std::io::Error {
        std::io::Error::other(self.leave(failure).message().to_owned())
    }

    /// Takes the failure, if there is one.
    pub(super) fn take(&self) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Prepares libgit2 and gives it the transport for `address`. Once per process.
///
/// # Errors
/// If the certificates or the credentials cannot be used.
pub(super) fn install(address: &Address, reach: &Reach) -> Result<Trouble, Failure> {
    let internal = |error: git2::Error| Failure::new(ErrorKind::Internal, format!("failed to prepare libgit2: {}", error.message()));
    libgit2::prepare(reach.timeout.min(STALL_TIMEOUT)).map_err(internal)?;
    let trouble = Trouble::default();
    match address {
        Address::Local(_) | Address::Git(_) => {}
        Address::Http { url, user } => {
            let link = Arc::new(http::Link::new(url.clone(), user.clone(), reach, trouble.clone())?);
            for scheme in ["http", "https"] {
                let link = Arc::clone(&link);
                libgit2::register_transport(scheme, move |remote| {
                    git2::transport::Transport::smart(remote, true, http::Subtransport(Arc::clone(&link)))
                })
                .map_err(internal)?;
            }
        }
        Address::Ssh(target) => {
            let command = ssh::Command::new(target, reach)?;
            let trouble = trouble.clone();
            libgit2::register_transport("ssh", move |remote| {
                git2::transport::Transport::smart(remote, false, ssh::Subtransport::new(command.clone(), trouble.clone()))
            })
            .map_err(internal)?;
        }
    }
    Ok(trouble)
}

/// Ends the ssh client, if one runs: for the watchdog, before it ends the helper.
pub(super) fn abandon() {
    ssh::abandon();
}
