//! Trees that become releases, and trees that do not.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use git2::{ObjectType, Oid, Repository};
use serde_json::json;

use crate::support::{Scene, helper};

/// Writes a tree object byte by byte: what git and libgit2 would refuse to make.
fn tree(repository: &Repository, entries: &[(u32, &[u8], Oid)]) -> Oid {
    let mut bytes = Vec::new();
    for (mode, name, oid) in entries {
        bytes.extend_from_slice(format!("{mode:o} ").as_bytes());
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.extend_from_slice(oid.as_bytes());
    }
    repository.odb().expect("objects").write(ObjectType::Tree, &bytes).expect("written")
}

fn blob(repository: &Repository, text: &[u8]) -> Oid {
    repository.blob(text).expect("written")
}

/// Makes `main` of a new mirror a commit of this tree and returns its id.
fn commit(scene: &Scene, build: impl FnOnce(&Repository) -> Oid) -> String {
    let repository = Repository::open_bare(scene.mirror()).or_else(|_| Repository::init_bare(scene.mirror())).expect("a mirror");
    let tree = build(&repository);
    let text = format!("tree {tree}\nauthor a <a@b> 0 +0000\ncommitter a <a@b> 0 +0000\n\nhostile\n");
    repository.odb().expect("objects").write(ObjectType::Commit, text.as_bytes()).expect("written").to_string()
}

/// The hostile tree is refused, told with these words, and nothing of it is written.
fn refused(words: &str, build: impl FnOnce(&Repository) -> Oid) {
    let scene = Scene::new();
    let id = commit(&scene, build);
    let answer = scene.stage(&id);
    let (kind, text, _) = answer.failed();
    assert_eq!(kind, "bad_tree", "{words}: {answer:?}");
    assert!(text.contains(words), "{words}: {answer:?}");
    assert!(!scene.path("releases/r.tmp").exists(), "{words}: nothing is written");
}

#[test]
fn modes_links_and_executable_bits_are_as_in_the_tree_whatever_the_umask() {
    let scene = Scene::new();
    scene.write("bin/run", "#!/bin/sh\n");
    scene.write("deep/er/file", "x");
    std::fs::set_permissions(scene.path("work/bin/run"), std::fs::Permissions::from_mode(0o755)).expect("changed");
    for (name, target) in [
        ("link", "bin/run"),
        ("deep/up", "../bin/./run"),
        ("dangling", "made/by/the/build"),
        ("dir", "deep/er"),
        ("self", "self"),
        ("top", "."),
    ] {
        std::os::unix::fs::symlink(target, scene.path("work").join(name)).expect("linked");
    }
    let id = scene.commit("modes");
    scene.push();
    scene.fetch(&scene.source()).fetched();
    for umask in ["0000", "0077"] {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$0\" internal-git"), env!("CARGO_BIN_EXE_selfstart")]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let answer = crate::support::ask(&mut command, &scene.stage_request(&id));
        assert!(answer.success, "{answer:?}");
        let release = scene.path("releases/r.tmp");
        let mode = |path: &str| std::fs::symlink_metadata(release.join(path)).expect("there").mode() & 0o7777;
        assert_eq!(
            (mode("."), mode("deep"), mode("deep/er"), mode("bin/run"), mode("deep/er/file"), mode("REVISION")),
            (0o755, 0o755, 0o755, 0o755, 0o644, 0o644),
            "umask {umask}"
        );
        assert_eq!(std::fs::read_link(release.join("deep/up")).expect("a link"), Path::new("../bin/./run"));
        assert_eq!(std::fs::read_link(release.join("self")).expect("a link"), Path::new("self"));
        assert_eq!(std::fs::metadata(release.join("bin/run")).expect("there").nlink(), 1, "releases share nothing");
        assert_eq!(answer.last["ok"]["staged"]["files"], 2 + 2 + 6 + 1);
    }
    // The same as git itself would write, but for REVISION.
    scene.git(&["clone", "-q", "served/app.git", "checked-out"]);
    let differences = std::process::Command::new("diff")
        .args(["-r", "--no-dereference", "--exclude=.git", "--exclude=REVISION"])
        .args([scene.path("checked-out"), scene.path("releases/r.tmp")])
        .output()
        .expect("diff runs");
    assert_eq!(String::from_utf8_lossy(&differences.stdout), "");
}

#[test]
fn odd_but_harmless_names_are_written() {
    let scene = Scene::new();
    let names: [&[u8]; 9] = [b"back\\slash", b"caf\xe9", b".gitignore", b".github", b"new\nline", b"...", b"-rf", b"git~10", b" "];
    let id = commit(&scene, |repository| {
        let blob = blob(repository, b"x");
        tree(repository, &names.map(|name| (0o100_644, name, blob)))
    });
    let answer = scene.stage(&id);
    assert!(answer.success, "{answer:?}");
    for name in names {
        use std::os::unix::ffi::OsStrExt;
        assert!(scene.path("releases/r.tmp").join(std::ffi::OsStr::from_bytes(name)).exists(), "{name:?}");
    }
}

#[test]
fn hostile_names_are_refused() {
    for name in [
        "..",
        ".",
        "",
        "a/b",
        "/etc/passwd",
        "../x",
        ".git",
        ".GIT",
        ".Git",
        ".git.",
        ".git ",
        ".git. .",
        "git~1",
        "GIT~1",
        ".git::$INDEX_ALLOCATION",
        ".g\u{200c}it",
        "\u{feff}.git",
    ] {
        for mode in [0o100_644, 0o120_000, 0o040_000] {
            refused("the tree has", |repository| {
                let below = tree(repository, &[(0o100_644, b"x", blob(repository, b"x"))]);
                let target = if mode == 0o040_000 { below } else { blob(repository, b"x") };
                // Also further down.
                let bad = tree(repository, &[(mode, name.as_bytes(), target)]);
                tree(repository, &[(0o040_000, b"sub", bad)])
            });
        }
    }
    refused("more than 255 bytes", |repository| tree(repository, &[(0o100_644, &[b'x'; 256], blob(repository, b"x"))]));
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    refused("twice", |repository| {
        let below = tree(repository, &[(0o100_644, b"b", blob(repository, b"pwned"))]);
        tree(repository, &[(0o120_000, b"a", blob(repository, b"target")), (0o040_000, b"a", below)])
    });
}

#[test]
fn links_out_of_the_tree_are_refused() {
    for (name, target, words) in [
        ("a", "/etc/passwd", "absolute"),
        ("a", "..", "leads out"),
        ("a", "../x", "leads out"),
        ("a", "b/../../x", "leads out"),
        ("a", "./.././x", "leads out"),
        ("a", "", "no path"),
        ("a", "x\0y", "no path"),
    ] {
        refused(words, |repository| tree(repository, &[(0o120_000, name.as_bytes(), blob(repository, target.as_bytes()))]));
    }
    refused("leads out", |repository| {
        let below = tree(repository, &[(0o120_000, b"a", blob(repository, b"../../x"))]);
        tree(repository, &[(0o040_000, b"d", below)])
    });
    // Each stays inside by itself, together they do not: `d/up` is the top, so `d/up/../x` is above it.
    refused("leads out", |repository| {
        let below = tree(repository, &[(0o120_000, b"up", blob(repository, b".."))]);
        tree(repository, &[(0o120_000, b"a", blob(repository, b"d/up/../x")), (0o040_000, b"d", below)])
    });
    refused("longer", |repository| tree(repository, &[(0o120_000, b"a", blob(repository, &[b'x'; 5000]))]));
}

#[test]
fn submodules_and_unknown_kinds_are_refused() {
    let nowhere = Oid::from_str(&"1".repeat(40)).expect("an id");
    refused("submodule at `vendor`", |repository| tree(repository, &[(0o160_000, b"vendor", nowhere)]));
    refused("unknown kind", |repository| tree(repository, &[(0o060_000, b"device", blob(repository, b"x"))]));
    refused("it is none", |repository| tree(repository, &[(0o100_644, b"file", tree(repository, &[]))]));
}

#[test]
fn a_tree_that_would_fill_the_disk_is_refused_before_anything_is_written() {
    refused("files, more than 5000000", |repository| {
        let mut level = tree(repository, &[(0o100_644, b"x", blob(repository, b"x"))]);
        for _ in 0..9 {
            let entries: Vec<(u32, Vec<u8>, Oid)> = (0..10).map(|n| (0o040_000, format!("{n}").into_bytes(), level)).collect();
            level = tree(repository, &entries.iter().map(|(mode, name, oid)| (*mode, name.as_slice(), *oid)).collect::<Vec<_>>());
        }
        level
    });
    refused("directories below each other", |repository| {
        let mut level = tree(repository, &[(0o100_644, b"x", blob(repository, b"x"))]);
        for _ in 0..1100 {
            level = tree(repository, &[(0o040_000, b"d", level)]);
        }
        level
    });
}

#[test]
fn deep_directories_within_reason_are_written() {
    let scene = Scene::new();
    let id = commit(&scene, |repository| {
        let mut level = tree(repository, &[(0o100_644, b"x", blob(repository, b"x"))]);
        for _ in 0..300 {
            level = tree(repository, &[(0o040_000, b"a-long-name-of-a-directory", level)]);
        }
        level
    });
    let answer = scene.stage(&id);
    assert!(answer.success, "a path longer than PATH_MAX: {answer:?}");
    assert!(scene.stage(&id).success, "and it can be removed again");
}

#[test]
fn ours_is_the_revision_file_and_what_is_odd_is_logged() {
    let scene = Scene::new();
    scene.write("REVISION", "theirs");
    scene.write("image.png", "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n");
    let id = scene.commit("odd");
    scene.push();
    scene.fetch(&scene.source()).fetched();
    let answer = scene.stage(&id);
    assert_eq!(scene.staged("REVISION"), format!("{id}\n"));
    assert!(answer.log()[0].contains("REVISION"), "{answer:?}");
    assert!(answer.log()[1].contains("1 file(s) are Git LFS pointers") && answer.log()[1].contains("image.png"), "{answer:?}");

    scene.in_work(&["rm", "-q", "REVISION"]);
    scene.write("REVISION/file", "theirs");
    let id = scene.commit("a directory");
    scene.push();
    scene.fetch(&scene.source()).fetched();
    assert!(scene.stage(&id).success);
    assert_eq!(scene.staged("REVISION"), format!("{id}\n"));
}

#[test]
fn shared_paths_are_linked_while_staging() {
    let scene = Scene::new();
    scene.write("config/master.key", "from the tree");
    scene.write("log/.keep", "");
    let id = scene.commit("shared");
    scene.push();
    scene.fetch(&scene.source()).fetched();
    let mut request = scene.stage_request(&id);
    request["stage"]["linked_dirs"] = json!(["log", "tmp/pids"]);
    request["stage"]["linked_files"] = json!(["config/master.key"]);
    for _ in 0..2 {
        let answer = helper(&request);
        assert!(answer.success, "{answer:?}");
        assert_eq!(scene.staged("config/master.key"), "from the tree");
        assert_eq!(std::fs::read_link(scene.path("releases/r.tmp/tmp/pids")).expect("a link"), Path::new("../../../shared/tmp/pids"));
    }
    request["stage"]["linked_dirs"] = json!(["../x"]);
    assert_eq!(helper(&request).failed().0, "unsupported");
    request["stage"]["linked_dirs"] = json!(["README/x"]);
    assert_eq!(helper(&request).failed().0, "bad_tree");
}

#[test]
fn what_cannot_be_read_or_written_is_told() {
    let scene = Scene::new();
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    assert_eq!(scene.stage(&head).failed().0, "corrupt", "no mirror at all");
    scene.fetch(&scene.source()).fetched();
    assert_eq!(scene.stage(&"1".repeat(40)).failed().0, "corrupt");
    assert_eq!(scene.fetch(&scene.source()).fetched().1.len(), 1, "which the next fetch heals");
    let mut request = scene.stage_request(&head);
    request["stage"]["destination"] = json!(scene.path("nowhere/r.tmp"));
    assert_eq!(helper(&request).failed().0, "internal");
    // A link where the release should be is removed, not followed.
    std::fs::create_dir(scene.path("outside")).expect("made");
    std::os::unix::fs::symlink("../outside", scene.path("releases/r.tmp")).expect("linked");
    assert!(scene.stage(&head).success);
    assert_eq!(std::fs::read_dir(scene.path("outside")).expect("there").count(), 0);
    assert!(std::fs::symlink_metadata(scene.path("releases/r.tmp")).expect("there").is_dir());
}

#[test]
fn files_that_git_lfs_keeps_are_refused_and_not_deployed_as_pointers() {
    let scene = Scene::new();
    scene.write("image.png", "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n");
    scene.write("art/.gitattributes", "*.png filter=lfs diff=lfs merge=lfs -text\n");
    let id = scene.commit("kept elsewhere");
    scene.push();
    scene.fetch(&scene.source()).fetched();
    let answer = scene.stage(&id);
    let (kind, text, hint) = answer.failed();
    assert!(kind == "bad_tree" && text.contains("1 file(s) are kept by Git LFS") && text.contains("`image.png`"), "{answer:?}");
    assert!(hint.contains("git lfs migrate export"), "{hint}");
    // Attributes alone, with files that are whole, are no reason.
    scene.write("image.png", "whole");
    let id = scene.commit("whole");
    scene.push();
    scene.fetch(&scene.source()).fetched();
    assert!(scene.stage(&id).success);
}
