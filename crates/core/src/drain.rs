//! In what order pools stop: one that comes `after` another stops before it.
//!
//! Not for: how a worker stops, and how long it may take (its own ladder).

use std::collections::BTreeSet;

use crate::id::PoolName;

/// Which pools a pool needs: `after:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The pool.
    pub pool: PoolName,
    /// What it comes after; names of no pool mean nothing.
    pub after: Vec<PoolName>,
}

/// Returns the pools that may be stopping now: those that no running pool needs, in the order given.
///
/// Never empty while anything runs: pools that need each other in a circle (which the configuration refuses) stop together.
#[must_use]
pub fn stoppable(pools: &[Needs], running: &BTreeSet<PoolName>) -> Vec<PoolName> {
    let here: Vec<&Needs> = pools.iter().filter(|one| running.contains(&one.pool)).collect();
    let needed = |pool: &PoolName| here.iter().any(|other| other.pool != *pool && other.after.contains(pool));
    let free: Vec<PoolName> = here.iter().filter(|one| !needed(&one.pool)).map(|one| one.pool.clone()).collect();
    if free.is_empty() { here.iter().map(|one| one.pool.clone()).collect() } else { free }
}

/// Returns the whole order: each wave stops when the one before has stopped. Each pool is in exactly one.
#[must_use]
pub fn stop_waves(pools: &[Needs]) -> Vec<Vec<PoolName>> {
    let mut running: BTreeSet<PoolName> = pools.iter().map(|one| one.pool.clone()).collect();
    let mut waves = vec![];
    while !running.is_empty() {
        let wave = stoppable(pools, &running);
        for pool in &wave {
            running.remove(pool);
        }
        waves.push(wave);
    }
    waves
}
