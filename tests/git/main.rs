//! The git helper against real servers: paths, git daemon, https with git's own http-backend behind it, a real sshd.
//!
//! Everything listens on 127.0.0.1 and ends with its test. `git`, `git-daemon` and `sshd` are needed here, never by selfstart.

mod fetch;
mod heal;
mod https;
mod ssh;
mod stage;
mod support;
mod uses;
