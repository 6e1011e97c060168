//! Being another user for a moment: in a thread of its own, which cannot go back.

use std::io;

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::spawn::Credentials;

/// Does something as this user, with this group and these supplementary groups and no capability: real, effective and saved, so that
/// nothing in `work` can undo it. Linux has users by thread (`credentials(7)`, NPTL); this one ends with `work`.
///
/// # Errors
/// When there is no thread, or we may not become that user; what `work` says is its own.
pub(crate) fn within<T: Send>(who: &Credentials, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("as a user".to_owned()).spawn_scoped(scope, || {
            let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
            let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
            set_thread_groups(&groups)?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_as_another_user_changes_nobody_else() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can become another user");
        }
        let who = Credentials { uid: 65534, gid: 65533, groups: vec![65532] };
        let (ids, capable, back) = within(&who, || {
            let status = fs_err::read_to_string("/proc/thread-self/status").expect("read");
            let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
            let back = set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_ok();
            ((line("Uid:"), line("Gid:"), line("Groups:")), line("CapEff:"), back)
        })
        .expect("became");
        let four = |number: u32| [number.to_string().as_str(); 4].join("\t");
        assert_eq!(ids, (four(65534), four(65533), "65532".to_owned()));
        assert_eq!((capable.as_str(), back), ("0000000000000000", false));
        assert!(rustix::process::geteuid().is_root());
    }
}
