//! Names of new releases.

use crate::id::{ReleaseId, Revision};
use crate::time::WallTime;

/// Returns the name of a release begun at that time: `20261122T101530Z-1a2b3c4`, with `-2`, `-3` ... behind it while taken.
pub(super) fn release_name(at: WallTime, revision: &Revision, taken: impl Fn(&ReleaseId) -> bool) -> ReleaseId {
    let mut nth = 1;
    loop {
        let id = ReleaseId::begun(at, revision, nth);
        if !taken(&id) {
            return id;
        }
        nth += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_release_of_the_same_second_gets_a_suffix() {
        let revision: Revision = "1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b".parse().expect("a revision");
        let at = WallTime::from_unix_millis(1_795_342_530_000);
        let name = release_name(at, &revision, |id| !id.as_str().ends_with("-3"));
        assert_eq!(name.as_str(), "20261122T101530Z-1a2b3c4-3");
    }
}
