//! The settings of libgit2 that belong to the whole process, and transports of our own.
#![expect(unsafe_code, reason = "libgit2's global settings are not synchronised: git2 marks them unsafe")]

use std::sync::Once;
use std::time::Duration;

use git2::{ConfigLevel, Remote, transport::Transport};

/// Prepares libgit2, once per process: what is fetched is said by our configuration alone.
///
/// - No `~/.gitconfig` or `/etc/gitconfig`: an `insteadOf` there would fetch from somewhere else.
/// - No check of who owns a repository: the helper runs as another user than the owner of a local source, and libgit2 runs
///   neither hooks nor commands out of a repository's configuration in a fetch.
/// - `git://` (the one network transport that is libgit2's own) waits at most `stall` for each answer.
///
/// # Errors
/// If libgit2 refuses a setting.
pub(crate) fn prepare(stall: Duration) -> Result<(), git2::Error> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        let millis = libc::c_int::try_from(stall.as_millis()).unwrap_or(libc::c_int::MAX);
        result = (|| {
            // SAFETY: called once, before the process has any other thread that uses libgit2 (the helper calls it first).
            unsafe {
                for level in [ConfigLevel::ProgramData, ConfigLevel::System, ConfigLevel::XDG, ConfigLevel::Global] {
                    match git2::opts::set_search_path(level, "") {
                        Err(error) if level != ConfigLevel::ProgramData => return Err(error),
                        _ => {}
                    }
                }
                git2::opts::set_verify_owner_validation(false)?;
                git2::opts::set_server_connect_timeout_in_milliseconds(millis)?;
                git2::opts::set_server_timeout_in_milliseconds(millis)
            }
        })();
    });
    result
}

/// Takes the place of libgit2's transport for `scheme` (without `://`).
///
/// # Errors
/// If the scheme has one of ours already.
pub(crate) fn register_transport<F>(scheme: &str, factory: F) -> Result<(), git2::Error>
where
    F: Fn(&Remote<'_>) -> Result<Transport, git2::Error> + Send + Sync + 'static,
{
    // SAFETY: must not run at the same time as another use of libgit2's list of transports: the helper registers before it fetches.
    unsafe { git2::transport::register(scheme, factory) }
}
