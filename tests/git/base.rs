//! A release that went is the base of the next one: what is staged on it is what is staged on nothing, whatever happened to it.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::{Answer, Scene, helper};

const NAMES: [&str; 3] = ["20261122T101530Z-1a2b3c4", "20261122T101531Z-1a2b3c4", "20261122T101532Z-1a2b3c4"];

/// Stages a revision under the name of that number; what was staged before it is its base.
fn stage(scene: &Scene, number: usize, revision: &str) -> (PathBuf, Answer) {
    let mut request = scene.stage_request(revision);
    let to = scene.path("releases").join(format!("{}.tmp", NAMES[number]));
    request["stage"]["destination"] = json!(to);
    request["stage"]["linked_dirs"] = json!(["log"]);
    let answer = helper(&request);
    assert!(answer.success, "{answer:?}");
    (to, answer)
}

/// What `prune` does with a release that is whole and used by nobody.
fn retire(scene: &Scene, number: usize) -> PathBuf {
    let spare = scene.path("releases").join(format!(".spare-{}", NAMES[number]));
    std::fs::rename(scene.path("releases").join(format!("{}.tmp", NAMES[number])), &spare).expect("renamed");
    spare
}

fn commit(scene: &Scene, what: &str) -> String {
    let id = scene.commit(what);
    scene.push();
    scene.fetch(&scene.source()).fetched();
    id
}

/// Every name below, with its mode, links and content; not what is in `log`, which leads out of it.
fn listed(top: &Path) -> Vec<String> {
    let out = Command::new("find").arg(top).args(["-printf", "%P %M %n %l\\n"]).output().expect("find");
    let mut lines: Vec<String> = String::from_utf8(out.stdout).expect("text").lines().map(str::to_owned).collect();
    let out = Command::new("find").current_dir(top).args([".", "-type", "f", "-exec", "sha256sum", "{}", "+"]).output().expect("find");
    lines.extend(String::from_utf8(out.stdout).expect("text").lines().map(str::to_owned));
    lines.sort();
    lines
}

/// What is staged is what is staged where there is no base.
fn is_as_on_nothing(scene: &Scene, staged: &Path, revision: &str) {
    let mut request = scene.stage_request(revision);
    let fresh = scene.path("releases/fresh.tmp");
    request["stage"]["destination"] = json!(fresh);
    request["stage"]["linked_dirs"] = json!(["log"]);
    assert!(helper(&request).success);
    assert_eq!(listed(staged), listed(&fresh));
    std::fs::remove_dir_all(fresh).expect("removed");
}

fn tree(scene: &Scene) {
    for n in 0..20 {
        scene.write(&format!("d/{n}/file"), format!("file {n}\n"));
    }
    scene.write("log/.keep", "");
    scene.write("bin/run", "#!/bin/sh\n");
    std::fs::set_permissions(scene.path("work/bin/run"), std::fs::Permissions::from_mode(0o755)).expect("changed");
    symlink("d/1/file", scene.path("work/link")).expect("linked");
    symlink("d/2", scene.path("work/other")).expect("linked");
}

fn inode(path: PathBuf) -> u64 {
    std::fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).ino()
}

/// Whether anything of a base was used.
fn on_a_base(answer: &Answer) -> bool {
    answer.log().iter().any(|line| line.contains("of a release that went"))
        && !answer.log().iter().any(|line| line.contains("written anew"))
}

#[test]
fn only_what_differs_is_written_and_what_a_build_or_a_worker_did_is_undone() {
    let scene = Scene::new();
    tree(&scene);
    let first = commit(&scene, "one");
    let (made, answer) = stage(&scene, 0, &first);
    assert!(!on_a_base(&answer), "{answer:?}");
    let untouched = inode(made.join("d/19/file"));
    // Once more, so that nothing of what is kept was written a moment ago: then it is by its times that it is known.
    let base = retire(&scene, 0);
    let (made, answer) = stage(&scene, 1, &first);
    assert!(on_a_base(&answer) && !base.exists(), "{answer:?}");
    assert_eq!(inode(made.join("d/19/file")), untouched);
    is_as_on_nothing(&scene, &made, &first);

    let at = |path: &str| made.join(path);
    let outside = scene.path("outside");
    std::fs::create_dir(&outside).expect("made");
    std::fs::write(outside.join("file"), "theirs\n").expect("written");
    // Of the same length, and the time put back: what a program can do so that nobody sees it.
    let times = std::fs::metadata(at("d/0/file")).expect("there");
    std::fs::write(at("d/0/file"), "FILE 0\n").expect("written");
    let file = std::fs::File::options().write(true).open(at("d/0/file")).expect("opened");
    file.set_modified(times.modified().expect("known")).expect("put back");
    drop(file);
    std::fs::set_permissions(at("d/1/file"), std::fs::Permissions::from_mode(0o666)).expect("changed");
    std::fs::hard_link(at("d/2/file"), outside.join("hard")).expect("linked");
    std::fs::remove_file(at("d/3/file")).expect("removed");
    symlink(outside.join("file"), at("d/3/file")).expect("linked");
    std::fs::remove_dir_all(at("d/4")).expect("removed");
    symlink(&outside, at("d/4")).expect("linked");
    std::fs::remove_file(at("d/5/file")).expect("removed");
    std::fs::create_dir_all(at("d/5/file/deep")).expect("made");
    symlink(&outside, at("d/5/file/deep/out")).expect("linked");
    std::fs::write(at("d/6/made by a build"), "x").expect("written");
    std::fs::create_dir_all(at("node_modules/a/b")).expect("made");
    std::fs::write(at("node_modules/a/b/c"), "x").expect("written");
    symlink(&outside, at("node_modules/out")).expect("linked");
    std::fs::set_permissions(at("d/7"), std::fs::Permissions::from_mode(0o2777)).expect("changed");
    std::fs::remove_file(at("link")).expect("removed");
    symlink("d/8/file", at("link")).expect("linked");
    std::fs::remove_file(at("other")).expect("removed");
    std::fs::create_dir(at("other")).expect("made");
    // And of the tree itself.
    scene.write("d/9/file", "changed\n");
    std::fs::remove_dir_all(scene.path("work/d/10")).expect("removed");
    scene.write("d/10", "a file now");
    std::fs::remove_file(scene.path("work/d/11/file")).expect("removed");
    scene.write("d/11/file/is a directory now", "x");
    std::fs::set_permissions(scene.path("work/bin/run"), std::fs::Permissions::from_mode(0o644)).expect("changed");
    let second = commit(&scene, "two");
    let base = retire(&scene, 1);
    let (made, answer) = stage(&scene, 2, &second);
    assert!(on_a_base(&answer) && !base.exists(), "{answer:?}");
    is_as_on_nothing(&scene, &made, &second);
    assert_eq!(inode(made.join("d/19/file")), untouched);
    assert_eq!(std::fs::read_to_string(outside.join("file")).expect("there"), "theirs\n");
    assert_eq!(std::fs::read_dir(&outside).expect("there").count(), 2, "no link was followed");
    assert_eq!(std::fs::read_to_string(outside.join("hard")).expect("there"), "file 2\n");
}

/// What is noted of the release of that number, and where the stamp of a file is in it.
fn noted(scene: &Scene, number: usize, path: &str) -> (PathBuf, Vec<u8>, usize) {
    let note = scene.mirror().join("selfstart-written").join(NAMES[number]);
    let text = std::fs::read(&note).expect("a note");
    let at = text.windows(path.len()).position(|window| window == path.as_bytes()).expect("noted") + path.len() + 20;
    (note, text, at)
}

#[test]
fn after_a_boot_no_time_is_believed_and_what_is_kept_is_read() {
    for booted in [false, true] {
        let scene = Scene::new();
        tree(&scene);
        let id = commit(&scene, "one");
        stage(&scene, 0, &id);
        retire(&scene, 0);
        let (made, _) = stage(&scene, 1, &id);
        // A power cut kept the bytes, and lost the times at which they came.
        let file = made.join("d/0/file");
        std::fs::write(&file, "FILE 0\n").expect("written");
        let (note, mut text, at) = noted(&scene, 1, "d/0/file");
        let found = std::fs::metadata(&file).expect("there");
        let nanos = |secs: i64, nanos: i64| (i128::from(secs) * 1_000_000_000 + i128::from(nanos)).to_le_bytes();
        text[at + 16..at + 32].copy_from_slice(&nanos(found.mtime(), found.mtime_nsec()));
        text[at + 32..at + 48].copy_from_slice(&nanos(found.ctime(), found.ctime_nsec()));
        // As if something had been written later, so that this one's time counts.
        let (_, _, later) = noted(&scene, 1, "d/1/file");
        text[later + 32..later + 48].copy_from_slice(&nanos(found.ctime() + 1, found.ctime_nsec()));
        if booted {
            // Behind the magic and the length.
            text[12] ^= 1;
        }
        std::fs::write(note, text).expect("written");
        let untouched = inode(made.join("d/19/file"));
        retire(&scene, 1);
        let (made, answer) = stage(&scene, 2, &id);
        assert!(on_a_base(&answer), "{answer:?}");
        let text = std::fs::read_to_string(made.join("d/0/file")).expect("there");
        // Within a boot it is the times that count: this shows that it was they that were looked at.
        assert_eq!(text, if booted { "file 0\n" } else { "FILE 0\n" });
        assert_eq!(inode(made.join("d/19/file")), untouched);
    }
}

/// Ends its process with the test.
struct Lodger(std::process::Child);

impl Drop for Lodger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_base_that_is_used_damaged_or_unknown_is_none() {
    let scene = Scene::new();
    tree(&scene);
    let id = commit(&scene, "one");
    for spoil in ["used", "unknown", "torn", "attributes"] {
        let mut lodger = None;
        let (made, answer) = stage(&scene, 0, &id);
        assert!(!on_a_base(&answer), "{spoil}: {answer:?}");
        let kept = inode(made.join("d/19/file"));
        let base = retire(&scene, 0);
        let (note, text, _) = noted(&scene, 0, "d/0/file");
        match spoil {
            "used" => lodger = Some(Lodger(Command::new("sleep").arg("600").current_dir(base.join("d")).spawn().expect("sleep"))),
            "unknown" => std::fs::remove_file(&note).expect("removed"),
            "torn" => std::fs::write(&note, &text[..text.len() - 1]).expect("written"),
            _ => {
                let set = Command::new("setfattr").args(["-n", "user.x", "-v", "y"]).arg(base.join("d")).status();
                if !set.is_ok_and(|set| set.success()) {
                    eprintln!("left out: no extended attributes here (needs setfattr)");
                    std::fs::remove_dir_all(base).expect("removed");
                    continue;
                }
            }
        }
        let (made, answer) = stage(&scene, 1, &id);
        assert!(!on_a_base(&answer) && !base.exists(), "{spoil}: {answer:?}");
        is_as_on_nothing(&scene, &made, &id);
        if let Some(lodger) = lodger {
            let trash = scene.path("releases").join(format!(".trash-{}", NAMES[0]));
            assert_eq!(std::fs::read_link(format!("/proc/{}/cwd", lodger.0.id())).expect("a process"), trash.join("d"));
            assert_eq!(inode(trash.join("d/19/file")), kept);
            std::fs::remove_dir_all(trash).expect("removed");
        }
        std::fs::remove_dir_all(made).expect("removed");
        assert!(!scene.path("releases").join(format!("{}.tmp", NAMES[0])).exists());
    }
}
