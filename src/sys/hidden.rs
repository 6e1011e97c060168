//! Whether `/proc` shows all processes to us: its mount may hide those of others (`hidepid`).
//!
//! Who is hidden is not seen by [`super::proc_scan`] and `release::prune`, which cannot tell that from "not there"; this can.
//! Sources: `proc(5)`; `proc_pid_mountinfo(5)`.

use std::fmt;

use rustix::thread::{CapabilitySet, capabilities};

/// What `/proc` does not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hidden {
    /// Its option, as it is mounted.
    option: String,
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "/proc is mounted with `{}`, so processes of other users cannot be seen: their memory, titles and use of releases are not known; \
             mount it without, or give selfstart the capability CAP_SYS_PTRACE",
            self.option
        )
    }
}

/// Returns what is hidden from us; `None`: nothing is. That it cannot be told is not that nothing is.
pub(crate) fn processes() -> Option<Hidden> {
    let mounts = match fs_err::read_to_string("/proc/self/mountinfo") {
        Ok(mounts) => mounts,
        Err(error) => return Some(Hidden { option: format!("options that cannot be read ({error})") }),
    };
    let (option, group) = option_of(&mounts)?;
    // The kernel asks for the group first, then whether we may trace the process.
    let in_group = group.is_some_and(|group| {
        let groups = rustix::process::getgroups().unwrap_or_default();
        groups.iter().chain([&rustix::process::getegid()]).any(|ours| ours.as_raw() == group)
    });
    // Not so with `ptraceable`, which has no exception.
    let excepted = in_group && !matches!(option.as_str(), "hidepid=ptraceable" | "hidepid=4");
    let may_trace = capabilities(None).is_ok_and(|ours| ours.effective.contains(CapabilitySet::SYS_PTRACE));
    (!excepted && !may_trace).then_some(Hidden { option })
}

/// The option that hides, of the last mount at `/proc`, and the group that it is not for.
fn option_of(mounts: &str) -> Option<(String, Option<u32>)> {
    let proc = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/proc"))?;
    // Of the mount before the dash, of its file system at the end; older kernels have it there only, and new ones too.
    let options: Vec<&str> = proc.split(' ').flat_map(|field| field.split(',')).collect();
    let option = options.iter().find(|option| option.starts_with("hidepid=") && !matches!(**option, "hidepid=0" | "hidepid=off"))?;
    let group = options.iter().find_map(|option| option.strip_prefix("gid=")?.parse().ok());
    // Root's group is the default, and means nobody in particular: the kernel excepts it only if it is named.
    Some(((*option).to_owned(), group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_that_hides_is_that_of_the_last_mount() {
        let mount = |options: &str| format!("22 28 0:20 / /proc rw,nosuid shared:5 - proc proc {options}\n");
        let other = "30 28 0:21 / /srv/proc rw - proc proc rw,hidepid=2\n";
        assert_eq!(option_of(&mount("rw")), None);
        assert_eq!(option_of(other), None);
        assert_eq!(option_of(&mount("rw,hidepid=off")), None);
        assert_eq!(option_of(&mount("rw,gid=27,hidepid=invisible")), Some(("hidepid=invisible".into(), Some(27))));
        assert_eq!(option_of(&(mount("rw,hidepid=2") + &mount("rw"))), None);
        assert_eq!(option_of(&(mount("rw") + other + &mount("rw,hidepid=1"))), Some(("hidepid=1".into(), None)));
    }
}
