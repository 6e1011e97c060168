//! The git helper against real servers: paths, git daemon, https with git's own http-backend behind it, a real sshd.
//!
//! Everything listens on 127.0.0.1 and ends with its test. `git`, `git-daemon` and `sshd` are needed here, never by selfstart.

#[path = "../kit/git.rs"]
mod git;
#[path = "../kit/site.rs"]
#[expect(dead_code, reason = "certificates as files are for what selfstart serves itself")]
mod site;
#[path = "../kit/waiting.rs"]
#[expect(dead_code, reason = "helpers are waited for, and servers are asked; nothing here tells by files")]
mod waiting;

mod base;
mod fetch;
mod heal;
mod https;
mod modules;
mod signed;
mod ssh;
mod stage;
mod support;
mod uses;
