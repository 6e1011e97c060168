//! `selfstart exec -- CMD`: runs a command as a worker would be run now: its user, environment, directory and limits.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command as Program;

use clap::Args;
use rustix::fs::{Access, AtFlags, Mode};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use selfstart_core::command::Command;
use selfstart_core::id::PoolName;

use super::ask;
use super::exit::Exit;
use super::failure::{Failure, Stop};
use super::site::Site;
use crate::control::wire::{Facts, Launch};

/// By this variable a keeper finds the workers of a dead one: a person's shell must not be adopted as a worker.
const WORKER_VARIABLE: &str = "SELFSTART_WORKER";

/// Flags of `exec`.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// As a worker of this pool; default: the first pool of the configuration
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// The command; looked up in the release, then in the worker's PATH
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Becomes the command; returns only if that fails.
pub(crate) fn exec(site: &Site, args: &ExecArgs) -> Result<Exit, Stop> {
    let pool = args.pool.as_deref().map(PoolName::from);
    let Some(Facts::Launch(launch)) = ask::ask(site, Command::Launch { pool })?.facts else {
        return Err(Failure::new(Exit::Failed, "the agent's answer to `launch` has no launch in it").into());
    };
    become_user(&launch)?;
    let mut command = args.command.iter();
    // `required` above: there is a first word.
    let name = command.next().cloned().unwrap_or_default();
    let failure = match look_up(&name, &launch) {
        None => Failure::new(Exit::Other(127), format!("there is no command `{}` in the release or in the worker's PATH", name.display())),
        Some(path) => {
            let mut program = Program::new(&path);
            program.arg0(&name).args(command).env_clear().envs(&launch.env).env_remove(WORKER_VARIABLE).current_dir(&launch.cwd);
            let error = program.exec();
            Failure::because(Exit::Other(126), format!("failed to execute `{}`", path.display()), &error)
        }
    };
    Err(failure.into())
}

/// Takes the worker's limits, groups and user, in this order: raising a limit needs what is given up last.
///
/// The thread is the process: the command line has only one.
fn become_user(launch: &Launch) -> Result<(), Failure> {
    let failed = |doing: &str| {
        let what = format!("failed to {doing} of a worker of `{}`", launch.pool);
        move |error: rustix::io::Errno| Failure::because(Exit::Failed, what, &std::io::Error::from(error))
    };
    let (uid, gid) = (Uid::from_raw(launch.uid), Gid::from_raw(launch.gid));
    let own = rustix::process::geteuid();
    if own != uid && !own.is_root() {
        let what = format!("workers of `{}` run as user {}, and you are user {}", launch.pool, uid.as_raw(), own.as_raw());
        return Err(Failure::new(Exit::Refused, what).hint("run this as root or as that user"));
    }
    if let Some(nofile) = launch.nofile {
        let limit = Rlimit { current: Some(nofile), maximum: Some(nofile) };
        rustix::process::setrlimit(Resource::Nofile, limit).map_err(failed("set the limit `nofile`"))?;
    }
    if let Some(nice) = launch.nice {
        rustix::process::setpriority_process(None, i32::from(nice)).map_err(failed("set the niceness"))?;
    }
    if let Some(umask) = launch.umask {
        rustix::process::umask(Mode::from_raw_mode(umask));
    }
    if own.is_root() {
        let groups: Vec<Gid> = launch.groups.iter().copied().map(Gid::from_raw).collect();
        rustix::thread::set_thread_groups(&groups).map_err(failed("take the groups"))?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("take the group"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("take the user"))?;
    }
    Ok(())
}

/// Returns where the command is, as for a pool's `command:`: in the release, then in the worker's PATH.
fn look_up(name: &OsString, launch: &Launch) -> Option<PathBuf> {
    let runs = |path: &Path| {
        fs_err::metadata(path).is_ok_and(|meta| meta.is_file())
            && rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
    };
    let in_release = launch.cwd.join(name);
    if runs(&in_release) {
        return Some(in_release);
    }
    if Path::new(name).components().count() > 1 {
        return None;
    }
    let path = launch.env.get("PATH")?;
    std::env::split_paths(path).map(|dir| launch.cwd.join(dir).join(name)).find(|path| runs(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_command_is_looked_up_in_the_release_and_then_in_the_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let (release, bin) = (dir.path().join("release"), dir.path().join("bin"));
        let script = |path: PathBuf, mode| {
            fs_err::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            fs_err::write(&path, "#!/bin/sh\n").expect("a file");
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        };
        script(release.join("both"), 0o755);
        script(bin.join("both"), 0o755);
        script(bin.join("tool"), 0o755);
        script(release.join("bin/run"), 0o755);
        script(release.join("plain"), 0o644);
        let launch = Launch {
            pool: "a".into(),
            argv: Vec::new(),
            env: [("PATH".to_owned(), bin.display().to_string())].into(),
            cwd: release.clone(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            nofile: None,
            nice: None,
            umask: None,
        };
        let found = |name: &str| look_up(&name.into(), &launch);
        assert_eq!(found("both"), Some(release.join("both")));
        assert_eq!(found("tool"), Some(bin.join("tool")));
        assert_eq!(found("bin/run"), Some(release.join("bin/run")));
        assert_eq!(found("/bin/sh"), Some("/bin/sh".into()));
        assert_eq!(found("plain"), None);
        assert_eq!(found("nothing/tool"), None);
        assert_eq!(found("bin"), None, "a directory");
    }
}
