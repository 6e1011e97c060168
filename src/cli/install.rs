//! `install`, `uninstall`.

use std::path::PathBuf;

use clap::Args;

use super::exit::Exit;
use super::failure::{Failure, Stop, printing};
use super::look::{Paint, Style};
use crate::install::{self, InstallError, Report, Request, Way};

#[derive(Args, Debug)]
pub(crate) struct InstallArgs {
    /// By units; the default where systemd is
    #[arg(long, conflicts_with = "rc_local")]
    systemd: bool,
    /// By a line in /etc/rc.local; the default elsewhere
    #[arg(long)]
    rc_local: bool,
    /// The root of an image: everything is done below it, and nothing on this machine
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Where the program is to be; this one is copied there if there is none
    #[arg(long, value_name = "PATH", default_value = install::BINARY, value_parser = plain_path)]
    binary: String,
    /// Replace the program, and put units that somebody changed aside
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct UninstallArgs {
    /// The root of an image
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Also while it runs, and also files that somebody changed
    #[arg(long)]
    force: bool,
}

fn plain_path(text: &str) -> Result<String, String> {
    if install::is_plain_path(text.as_ref()) {
        return Ok(text.to_owned());
    }
    Err("an absolute path of letters, digits and `/._+-`: units and shells would take others differently".to_owned())
}

pub(crate) fn install(args: &InstallArgs) -> Result<Exit, Stop> {
    let way = match (args.systemd, args.rc_local) {
        (true, _) => Some(Way::Systemd),
        (_, true) => Some(Way::RcLocal),
        _ => None,
    };
    let request = Request { way, root: args.root.clone(), binary: args.binary.clone(), force: args.force };
    told(install::install(&request), "failed to install selfstart", "installed already: nothing was changed")
}

pub(crate) fn uninstall(args: &UninstallArgs) -> Result<Exit, Stop> {
    told(install::uninstall(&args.root, args.force), "failed to uninstall selfstart", "nothing of `install` is here: nothing was changed")
}

fn told(result: Result<Report, InstallError>, what: &str, nothing: &str) -> Result<Exit, Stop> {
    use std::io::Write as _;

    let report = result.map_err(|error| failure(&error, what))?;
    let mut out = String::new();
    for line in &report.done {
        out.push_str(&format!("{line}\n"));
    }
    if report.done.is_empty() && report.left.is_empty() {
        out.push_str(&format!("{nothing}\n"));
    }
    for line in &report.next {
        out.push_str(&format!("next: {line}\n"));
    }
    std::io::stdout().write_all(out.as_bytes()).map_err(printing)?;
    let paint = Paint::of_stderr();
    for note in &report.notes {
        // Nobody reads stderr: what was done is done.
        let _ = writeln!(std::io::stderr(), "{} {note}", paint.on(Style::Warn, "note:"));
    }
    if report.left.is_empty() {
        return Ok(Exit::Done);
    }
    let mut failure = Failure::new(Exit::Failed, what);
    failure.causes = report.left;
    Err(failure.into())
}

fn failure(error: &InstallError, what: &str) -> Stop {
    let failed = |exit| Failure::because(exit, what, error);
    match error {
        InstallError::Refused { hint, .. } => failed(Exit::Failed).hint(hint),
        InstallError::Busy { hint, .. } => failed(Exit::Refused).hint(hint),
        InstallError::Record { .. } => failed(Exit::Failed).hint("remove that file; `uninstall` then knows no more what is selfstart's"),
        InstallError::Tree(tree) => match tree.kind() {
            std::io::ErrorKind::PermissionDenied => failed(Exit::Failed).hint("run it as root"),
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory if tree.is_root() => {
                failed(Exit::Failed).hint("--root takes the folder where the image's file system is mounted, such as /mnt/image")
            }
            std::io::ErrorKind::ReadOnlyFilesystem => failed(Exit::Failed).hint("mount it writable, or do it in the image with --root"),
            _ => failed(Exit::Failed),
        },
        InstallError::Program(_) => failed(Exit::Failed),
    }
    .into()
}
