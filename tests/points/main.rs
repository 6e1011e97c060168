//! The points of a deploy (`src/sys/gate.rs`): found by a run of the real binary, then each of them made to fail.
//!
//! A node with a live release is asked for a deploy. At point 1, 2, ... of that: its process is killed, the whole node is killed, the disk is
//! full, the disk gives an error; and from what a whole run wrote down, the disks that a power cut at each point may leave are made, and
//! booted. After each: exactly the old or exactly the new release live and whole, each worker once and in it, nothing left over, and the
//! deploy done, or done when asked for again.
//!
//! `POINTS_FROM=N` begins at another point, `POINTS_KEEP=1` keeps the folder of a failed one. The long ones are
//! `cargo test --test points -- --ignored long --nocapture`.

#[path = "../kit/git.rs"]
mod git;
#[path = "../kit/waiting.rs"]
mod waiting;

mod disk;
mod log;
mod node;
mod seen;
mod walk;

use walk::{Life, What};

#[test]
fn a_process_killed_at_any_point_of_a_deploy_leaves_the_old_or_the_new_release() {
    walk::each(Life::Deploy, What::Kill, 1);
}

#[test]
fn a_node_killed_at_any_point_of_a_deploy_leaves_the_old_or_the_new_release() {
    walk::each(Life::Deploy, What::Node, 1);
}

#[test]
fn a_process_killed_at_every_third_point_of_a_boot_leaves_the_old_or_the_new_release() {
    walk::each(Life::Boot, What::Kill, 3);
}

#[test]
#[ignore = "takes some minutes: every point, and of all processes at once"]
fn long_boot_killed_at_any_point() {
    walk::each(Life::Boot, What::Kill, 1);
    walk::each(Life::Boot, What::Node, 1);
}

#[test]
#[ignore = "its points are mostly those of a deploy"]
fn long_boot_onto_a_full_disk_or_with_its_errors() {
    walk::each(Life::Boot, What::Full, 1);
    walk::each(Life::Boot, What::Error, 1);
}

#[test]
fn a_disk_full_from_any_point_of_a_deploy_leaves_the_old_or_the_new_release() {
    walk::each(Life::Deploy, What::Full, 1);
}

#[test]
fn an_error_of_the_disk_at_any_point_of_a_deploy_leaves_the_old_or_the_new_release() {
    walk::each(Life::Deploy, What::Error, 1);
}

#[test]
fn a_power_cut_at_any_point_of_a_deploy_leaves_the_old_or_the_new_release() {
    walk::power_cuts(0);
}

#[test]
#[ignore = "takes some minutes: more of what may survive a power cut, out of order"]
fn long_power_cuts() {
    walk::power_cuts(12);
}

#[test]
fn random_kills_over_a_random_history_of_pushes_leave_what_was_pushed_last() {
    walk::random(30);
}

#[test]
#[ignore = "takes some minutes"]
fn long_random() {
    walk::random(300);
}

#[test]
fn every_call_that_strace_saw_was_a_point() {
    seen::all_were_points();
}

#[test]
fn nothing_but_the_gate_opens_files_to_write() {
    seen::none_opens_but_the_gate();
}
