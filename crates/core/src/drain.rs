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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn needs(pool: &str, after: &[&str]) -> Needs {
        Needs { pool: pool.into(), after: after.iter().map(|name| (*name).into()).collect() }
    }

    fn shown(waves: &[Vec<PoolName>]) -> String {
        waves.iter().map(|wave| wave.iter().map(PoolName::as_str).collect::<Vec<_>>().join("+")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_pool_stops_before_those_it_comes_after() {
        let pools = [needs("db", &[]), needs("web", &["db", "cache"]), needs("cache", &["db"]), needs("mail", &[])];
        assert_eq!(shown(&stop_waves(&pools)), "web+mail cache db");
    }

    #[test]
    fn a_circle_stops_together_and_names_of_no_pool_mean_nothing() {
        let pools = [needs("a", &["b"]), needs("b", &["a"]), needs("c", &["c", "nobody"])];
        assert_eq!(shown(&stop_waves(&pools)), "c a+b");
        assert_eq!(stop_waves(&[]), Vec::<Vec<PoolName>>::new());
    }

    #[test]
    fn a_pool_that_has_stopped_holds_up_nobody() {
        let pools = [needs("db", &[]), needs("web", &["db"])];
        assert_eq!(stoppable(&pools, &["db".into()].into()), ["db".into()]);
    }

    proptest! {
        #[test]
        fn every_pool_stops_once_and_never_before_one_that_needs_it(edges in prop::collection::vec((0usize..6, 0usize..6), 0..20), circles: bool) {
            let mut pools: Vec<Needs> = (0..6).map(|n| needs(&format!("p{n}"), &[])).collect();
            for (from, to) in edges {
                if circles || from > to {
                    pools[from].after.push(format!("p{to}").into());
                }
            }
            let waves = stop_waves(&pools);
            let mut all: Vec<&PoolName> = waves.iter().flatten().collect();
            all.sort();
            prop_assert_eq!(all, pools.iter().map(|one| &one.pool).collect::<Vec<_>>());
            let wave_of = |pool: &PoolName| waves.iter().position(|wave| wave.contains(pool));
            for one in &pools {
                for other in &one.after {
                    prop_assert!(circles || wave_of(&one.pool) < wave_of(other), "{} stops before {}", other, one.pool);
                }
            }
        }
    }
}
