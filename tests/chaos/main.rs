//! Promise 3 under fire: agents and keepers are killed at random moments while workers write, crash, daemonise and are deployed.
//!
//! `CHAOS_SEED=N` repeats the moments of a run (the seed is printed), `CHAOS_AGENT_KILLS=N` and `CHAOS_KEEPER_KILLS=N` say how many; the long
//! run is `cargo test --test chaos -- --ignored long --nocapture`. `CHAOS_KEEP=1` keeps the folder of a failed run.

#[path = "../kit/git.rs"]
mod git;
#[path = "../kit/waiting.rs"]
mod waiting;

mod agent;
mod keeper;
mod node;
mod output;
mod reuse;

/// How many, from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Moments from a seed that is told.
fn random(what: &str) -> fastrand::Rng {
    let seed = number("CHAOS_SEED", std::time::UNIX_EPOCH.elapsed().map_or(0, |now| now.as_secs()));
    println!("{what}: CHAOS_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

#[test]
fn an_agent_killed_at_any_moment_is_back_within_a_second_and_nothing_is_lost_or_doubled() {
    agent::killed(number("CHAOS_AGENT_KILLS", 25));
}

#[test]
#[ignore = "takes ten minutes"]
fn long_agent() {
    agent::killed(number("CHAOS_AGENT_KILLS", 200));
}

#[test]
fn workers_of_a_killed_keeper_are_adopted_by_the_next_run() {
    keeper::killed(number("CHAOS_KEEPER_KILLS", 5));
}

#[test]
#[ignore = "takes some minutes"]
fn long_keeper() {
    keeper::killed(number("CHAOS_KEEPER_KILLS", 50));
}

#[test]
fn an_agent_that_cannot_come_up_is_tried_again_with_patience_and_its_workers_go_on() {
    agent::cannot_come_up();
}

#[test]
fn a_process_that_took_the_number_of_an_ended_worker_is_neither_adopted_nor_signalled() {
    reuse::outside("a_stranger_with_the_number_of_a_worker");
}

#[test]
fn a_process_that_took_the_number_of_a_stale_job_is_not_killed() {
    reuse::outside("a_stranger_with_the_number_of_a_job");
}

#[test]
#[ignore = "is started by another test, in a pid namespace"]
fn inside_a_stranger_with_the_number_of_a_worker() {
    reuse::worker();
}

#[test]
#[ignore = "is started by another test, in a pid namespace"]
fn inside_a_stranger_with_the_number_of_a_job() {
    reuse::job();
}
