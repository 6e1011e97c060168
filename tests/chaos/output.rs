//! Compares the numbered lines in the logs with what the workers wrote.

use std::collections::BTreeMap;
use std::path::Path;

use crate::node::whole;

/// What one process wrote: `n=000001 pid=PID` and so on.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) pid: i32,
    pub(crate) lines: u64,
    /// Numbers that are not there, below the highest.
    pub(crate) missing: Vec<u64>,
    /// Numbers that came twice, or out of order.
    pub(crate) again: Vec<u64>,
}

/// All processes whose lines are in the logs of this pool's slot, oldest first; a number that begins anew is another process.
pub(crate) fn written(root: &Path, pool: &str, slot: u32) -> Vec<Written> {
    let text = whole(&root.join(format!("log/{pool}.{slot}.log")));
    let mut done: Vec<Written> = Vec::new();
    let mut open: BTreeMap<i32, (Written, u64)> = BTreeMap::new();
    for line in text.lines() {
        let found = line.split_once(" out n=").and_then(|(_, rest)| rest.split_once(" pid="));
        let Some((n, pid)) = found.and_then(|(n, pid)| Some((n.parse::<u64>().ok()?, pid.parse::<i32>().ok()?))) else {
            panic!("{pool}/{slot}: a line that nobody wrote: {line:?}");
        };
        if n == 1 {
            if let Some((written, _)) = open.remove(&pid) {
                done.push(written);
            }
        }
        let entry = open.entry(pid).or_insert_with(|| (Written { pid, lines: 0, missing: Vec::new(), again: Vec::new() }, 0));
        entry.0.lines += 1;
        if n <= entry.1 {
            entry.0.again.push(n);
        } else {
            entry.0.missing.extend(entry.1 + 1..n);
            entry.1 = n;
        }
    }
    done.extend(open.into_values().map(|(written, _)| written));
    done
}
