//! Whether anything goes past the gate: what strace saw, and what the source says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::log;
use crate::node::{Node, Removals, Site, run};

/// How often something was done: by kind and path.
type Counts = BTreeMap<(String, PathBuf), i64>;

/// A deploy of a node that runs under strace: what strace saw below its root is what passed the gate, each call as often.
pub(crate) fn all_were_points() {
    let traces = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    assert!(traces.is_ok_and(|status| status.success()), "this needs strace, and to be allowed to trace: `apt-get install strace`");
    let site = Site::new();
    let before = site.push("one");
    site.point_to(&before);
    let trace = site.path("trace");
    fs_err::create_dir(&trace).expect("made");
    let calls = "trace=execve,openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,splice,ftruncate,truncate,fallocate,\
                 fsync,fdatasync,syncfs,sync,sync_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,\
                 mkdir,mkdirat,mknod,mknodat";
    let to = trace.join("t").display().to_string();
    let mut node = Node::start_under(&site, &["strace", "-ff", "-qq", "-y", "-s", "0", "-e", "signal=none", "-e", calls, "-o", &to]);
    node.settled();
    site.push("two");
    let (code, said) = node.cli(&["deploy"]);
    assert_eq!(code, Some(0), "{said}");
    let live = node.settled();
    node.is_tidy(&live, "two", Removals::Done);
    node.quiet();
    node.end();
    let points = log::read(&site.path("gate"));
    let mut counts = Counts::new();
    let mut seen = 0;
    for file in fs_err::read_dir(&trace).expect("traces") {
        let text = fs_err::read(file.expect("a trace").path()).expect("a trace");
        let text = String::from_utf8_lossy(&text);
        // A process that executed something else is a worker or a build step. What is before that is a child of the keeper, between its
        // clone and there.
        let foreign = text.lines().any(|line| {
            line.starts_with("execve(") && line.ends_with("= 0") && !line.contains("selfstart") && !line.contains("/proc/self/exe")
        });
        if foreign {
            continue;
        }
        for (kind, path) in text.lines().filter_map(call) {
            if is_counted(&path, &site.root()) {
                *counts.entry((kind.to_owned(), path)).or_default() += 1;
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "strace saw {seen} calls only: this shows nothing");
    for point in points.iter().filter(|point| point.kind != "spawn") {
        let path = if point.kind == "rename" { &point.to } else { &point.path };
        if is_counted(path, &site.root()) {
            *counts.entry((point.kind.clone(), path.clone())).or_default() -= 1;
        }
    }
    counts.retain(|_, count| *count != 0);
    assert!(counts.is_empty(), "strace saw more (or less: below zero) than passed the gate: {counts:#?}");
    println!("strace saw {seen} calls, all of them points; {}", log::counts(&points));
}

/// What is compared: files of the node, but for the mirror, which libgit2 writes, and the socket, which bind(2) makes.
fn is_counted(path: &Path, root: &Path) -> bool {
    path.starts_with(root) && !path.starts_with(root.join("repo.git")) && !path.ends_with(".control.sock.new")
        || path.ends_with("control.sock")
}

/// The kind and the path of a call, as the gate names them.
fn call(line: &str) -> Option<(&'static str, PathBuf)> {
    let (name, rest) = line.split_once('(')?;
    let words: Vec<&str> = rest.split(", ").collect();
    let of_fd = |word: &str| Some(PathBuf::from(word.split_once('<')?.1.split_once('>')?.0));
    let text = |word: &str| Some(PathBuf::from(word.split_once('"')?.1.split_once('"')?.0));
    // `AT_FDCWD</...>` has its path too.
    let at = |fd: &str, name: &str| Some(of_fd(fd)?.join(text(name)?));
    let last = |words: &[&str]| words.iter().rev().find(|word| word.contains('"')).copied().map(str::to_owned);
    match name {
        "open" | "openat" | "creat" if rest.contains("O_CREAT") || rest.contains("O_TRUNC") || name == "creat" => {
            Some(("create", if name == "openat" { at(words[0], words[1])? } else { text(words[0])? }))
        }
        "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2" | "sendfile" => Some(("write", of_fd(words[0])?)),
        "copy_file_range" | "splice" => Some(("write", of_fd(words.get(2)?)?)),
        "ftruncate" | "fallocate" => Some(("truncate", of_fd(words[0])?)),
        "truncate" => Some(("truncate", text(words[0])?)),
        "fsync" | "fdatasync" | "sync_file_range" => Some(("sync", of_fd(words[0])?)),
        "syncfs" => Some(("syncfs", of_fd(words[0])?)),
        "rename" => Some(("rename", text(words[1])?)),
        "renameat" | "renameat2" => Some(("rename", at(words[2], words[3])?)),
        "link" | "symlink" => Some(("link", text(&last(&words)?)?)),
        "linkat" => Some(("link", at(words[2], words[3])?)),
        "symlinkat" => Some(("link", at(words[1], words[2])?)),
        "unlink" | "rmdir" => Some(("unlink", text(words[0])?)),
        "unlinkat" => Some(("unlink", at(words[0], words[1])?)),
        "mkdir" => Some(("mkdir", text(words[0])?)),
        "mkdirat" | "mknodat" => Some(("mkdir", at(words[0], words[1])?)),
        "mknod" => Some(("mkdir", text(words[0])?)),
        _ => None,
    }
}

/// What clippy's bans cannot tell from reading: files that are opened to be written, and processes started by hand.
pub(crate) fn none_opens_but_the_gate() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let listed = run(Command::new("grep").args(["-rlE", "."]).arg(&src));
    let mut found = Vec::new();
    let mut files = 0;
    for path in listed.lines().filter(|path| path.ends_with(".rs")) {
        let short = Path::new(path).strip_prefix(&src).expect("below").display().to_string();
        let text = fs_err::read_to_string(path).expect("a source");
        files += 1;
        let program = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
        for (number, line) in program.lines().enumerate() {
            let line = line.trim();
            let suspicious =
                ["OFlags::CREATE", "OFlags::TRUNC", "libc::SYS_clone", "libc::clone(", "libc::fork(", "std::fs::write", "OpenOptions"];
            if line.starts_with("//") || !suspicious.iter().any(|word| line.contains(word)) {
                continue;
            }
            // Flags are given to the gate within the next lines.
            let near: String = program.lines().skip(number).take(8).collect();
            let allowed = ["sys/gate.rs", "sys/gate_on.rs", "sys/spawn.rs", "sys/clone_into.rs", "sys/confine.rs"].contains(&&*short);
            if !(allowed || near.contains("gate::open") || near.contains("gate::File::open")) {
                found.push(format!("{short}:{}: {line}", number + 1));
            }
        }
    }
    assert!(files > 100, "only {files} files were looked at");
    assert!(found.is_empty(), "these go past `sys::gate`:\n{}", found.join("\n"));
}
