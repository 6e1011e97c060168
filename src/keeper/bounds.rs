//! How much an agent can make the keeper hold. The keeper minds the workers, so it must not be the one that grows: what is longer than anything
//! that an agent of ours says is refused with words, and nothing is ended for it.
//!
//! What only passes through (arguments, an environment, settings) is bounded by the largest message, and by how many starts may hang.

use super::protocol::{Ask, Start};

/// The longest name of a child: pools' names have 64 letters at most.
pub(super) const KEY_MAX: usize = 256;

/// The longest note beside one.
const NOTE_MAX: usize = 4 << 10;

/// The longest path (PATH_MAX).
const PATH_MAX: usize = 4 << 10;

/// The longest name of a descriptor that is kept, and of somebody who asks.
const NAME_MAX: usize = 256;

/// The most children, those included that have ended and whose end the agent has not dealt with.
const CHILDREN_MAX: usize = 1 << 16;

/// The most that all names and notes of children may take: a thousand workers take some 0.4 MB.
const HELD_MAX: usize = 64 << 20;

/// Something that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} of {bytes} bytes is refused: {most} is the most")]
pub(super) struct TooLong {
    what: &'static str,
    bytes: usize,
    most: usize,
}

fn fits(what: &'static str, bytes: usize, most: usize) -> Result<(), TooLong> {
    if bytes <= most { Ok(()) } else { Err(TooLong { what, bytes, most }) }
}

/// Looks whether all that would be held of a message is as long as it may be.
///
/// # Errors
/// The first that is not.
pub(super) fn look(ask: &Ask) -> Result<(), TooLong> {
    let key = |key: &str| fits("a child's name", key.len(), KEY_MAX);
    let start = |start: &Start| {
        key(&start.key)?;
        fits("a note", start.note.len(), NOTE_MAX)?;
        fits("a root", start.root.len(), PATH_MAX)
    };
    match ask {
        Ask::Spawn(it) | Ask::SpawnIn { start: it, .. } => start(it),
        Ask::Signal { key: it, .. } | Ask::KillTree { key: it } | Ask::ClearTree { key: it } | Ask::Forget { key: it } => key(it),
        Ask::Adopt { root, known } => {
            fits("a root", root.len(), PATH_MAX)?;
            known.iter().try_for_each(|(it, ..)| key(it))
        }
        Ask::Keep { name } => fits("the name of a descriptor", name.len(), NAME_MAX),
        Ask::Upgrade { by, .. } => fits("the name of who asks", by.len(), NAME_MAX),
        Ask::Hello { .. }
        | Ask::SignalJob { .. }
        | Ask::Notify { .. }
        | Ask::Quit { .. }
        | Ask::Alive
        | Ask::Tree { .. }
        | Ask::Errand(_)
        | Ask::UpgradeNoted { .. } => Ok(()),
    }
}

/// Whether there is place for one more child beside these.
///
/// # Errors
/// Why not, for people.
pub(super) fn place_for(more: usize, children: usize, held: usize) -> Result<(), String> {
    if children >= CHILDREN_MAX {
        return Err(format!("there are {children} children, those included whose end nobody has dealt with: {CHILDREN_MAX} is the most"));
    }
    if held.saturating_add(more) > HELD_MAX {
        return Err(format!("the names and notes of {children} children take {held} bytes: {HELD_MAX} is the most"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_place_for_the_largest_node_and_not_for_everything() {
        // 10,000 workers with names and notes as they are, and as long as they may be.
        assert_eq!(place_for(400, 10_000, 10_000 * 400), Ok(()));
        assert_eq!(place_for(5_000, 10_000, 10_000 * 5_000), Ok(()));
        assert!(place_for(1, CHILDREN_MAX, 0).is_err_and(|why| why.contains("65536 children")));
        assert!(place_for(1, 1, HELD_MAX).is_err_and(|why| why.contains("names and notes")));
        assert_eq!(place_for(1, CHILDREN_MAX - 1, HELD_MAX - 1), Ok(()));
        assert!(place_for(usize::MAX, 1, 1).is_err());
    }
}
