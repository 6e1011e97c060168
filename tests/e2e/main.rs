//! The real binary, end to end: real git, real processes, real Redis, and a worker that misbehaves on request.
//!
//! Few tests, for the wiring; the edges are tested in `crates/core`. Each has a root of its own and ends all that it started. Needed:
//! `git`, `cc`, the user `nobody`; for `redis` and `fleet` also `redis-server`, for `redis` `node` and `npm` with its registry; for `runtime` and `older` Debian's
//! `ruby`, `bundle`, `node`, `npm` and `python3` with venv, and the registries of npm and Python.

#[path = "../kit/git.rs"]
mod git;
#[path = "../kit/site.rs"]
#[expect(dead_code, reason = "this server does as it should; tests/git has the others")]
mod site;
#[path = "../kit/waiting.rs"]
mod waiting;

mod boot;
mod commands;
mod config;
mod container;
mod deploy;
mod disk;
mod end;
mod fleet;
mod goals;
mod holder;
mod load;
mod machines;
mod node;
mod older;
mod output;
mod pools;
mod privileges;
mod redis;
mod releases;
mod reload;
mod remote;
mod roles;
mod runtime;
mod ssh;
mod triggers;
mod upgrade;
mod users;
