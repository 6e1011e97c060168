//! Submodules: from a path, and from a real git daemon.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Answer, Scene, git_daemon, helper};

/// A repository beside the scene's, with a file and a bare copy to fetch from; returns its commit.
fn other(scene: &Scene, name: &str, text: &str) -> String {
    let work = format!("work-{name}");
    if !scene.path(&work).exists() {
        scene.git(&["init", "-q", "-b", "main", &work]);
        scene.git(&["init", "-q", "--bare", "-b", "main", &format!("served/{name}.git")]);
    }
    std::fs::write(scene.path(&work).join("file"), text).expect("written");
    commit(scene, name)
}

/// Commits and pushes all of it.
fn commit(scene: &Scene, name: &str) -> String {
    let work = format!("work-{name}");
    scene.git(&["-C", &work, "add", "-A"]);
    scene.git(&["-C", &work, "commit", "-q", "-m", "x"]);
    scene.git(&["-C", &work, "push", "-q", "--force", &scene.path(&format!("served/{name}.git")).display().to_string(), "main"]);
    scene.git(&["-C", &work, "rev-parse", "HEAD"])
}

/// Pins `commit` of the repository at `url` in a work tree.
fn pin(scene: &Scene, work: &str, path: &str, url: &str, commit: &str) {
    let file = scene.path(work).join(".gitmodules");
    let before = std::fs::read_to_string(&file).unwrap_or_default();
    if !before.contains(&format!("path = {path}\n")) {
        std::fs::write(&file, format!("{before}[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n")).expect("written");
    }
    std::fs::create_dir_all(scene.path(work).join(path)).expect("made");
    scene.git(&["-C", work, "update-index", "--add", "--cacheinfo", &format!("160000,{commit},{path}")]);
    scene.git(&["-C", work, "add", ".gitmodules"]);
    scene.git(&["-C", work, "commit", "-q", "-m", "pin"]);
}

fn push_app(scene: &Scene) -> String {
    scene.push();
    scene.in_work(&["rev-parse", "HEAD"])
}

fn with(mut request: Value, kind: &str) -> Answer {
    request[kind]["submodules"] = json!(true);
    helper(&request)
}

fn same_as_clone(scene: &Scene, url: &str) {
    let _ = std::fs::remove_dir_all(scene.path("cloned"));
    scene.git(&["-c", "protocol.file.allow=always", "clone", "-q", "--recurse-submodules", url, "cloned"]);
    let differences = Command::new("diff")
        .args(["-r", "--no-dereference", "--exclude=.git", "--exclude=REVISION"])
        .args([scene.path("cloned"), scene.path("releases/r.tmp")])
        .output()
        .expect("diff runs");
    assert_eq!(String::from_utf8_lossy(&differences.stdout), "");
}

/// `app` has `vendor/lib`, which has `deep`.
fn nested() -> (Scene, String) {
    let scene = Scene::new();
    let deep = other(&scene, "deep", "deep\n");
    other(&scene, "lib", "lib\n");
    pin(&scene, "work-lib", "deep", "../deep.git", &deep);
    let lib = commit_again(&scene, "lib");
    pin(&scene, "work", "vendor/lib", "../lib.git", &lib);
    push_app(&scene);
    (scene, lib)
}

fn commit_again(scene: &Scene, name: &str) -> String {
    std::fs::write(scene.path(&format!("work-{name}/more")), "more\n").expect("written");
    commit(scene, name)
}

#[test]
fn submodules_of_submodules_are_staged_as_git_would_write_them() {
    let (scene, _) = nested();
    let daemon = git_daemon(&scene);
    for url in [scene.source(), format!("git://127.0.0.1:{}/app.git", daemon.port)] {
        let fetched = with(scene.fetch_request(&url), "fetch");
        let (id, _) = fetched.fetched();
        let staged = with(scene.stage_request(id), "stage");
        assert!(staged.success, "{staged:?}");
        assert_eq!(scene.staged("vendor/lib/deep/file"), "deep\n");
        same_as_clone(&scene, &url);
        // Nothing new costs nothing.
        assert_eq!(with(scene.fetch_request(&url), "fetch").bytes(), 0);
    }
    // Not set: refused as before.
    scene.fetch(&scene.source());
    let (id, _) = (scene.in_work(&["rev-parse", "HEAD"]), ());
    let refused = scene.stage(&id);
    let (kind, text, hint) = refused.failed();
    assert!(kind == "bad_tree" && text.contains("submodule at `vendor/lib`") && hint.contains("submodules: true"), "{refused:?}");
}

#[test]
fn a_pinned_commit_that_is_no_head_is_found_also_where_the_server_gives_out_heads_only() {
    for lets in ["false", "true"] {
        let (scene, old) = nested();
        commit_again_as(&scene, "newer\n");
        scene.git(&["--git-dir", "served/lib.git", "config", "uploadpack.allowReachableSHA1InWant", lets]);
        let daemon = git_daemon(&scene);
        let url = format!("git://127.0.0.1:{}/app.git", daemon.port);
        let fetched = with(scene.fetch_request(&url), "fetch");
        assert!(fetched.success, "{lets}: {fetched:?}");
        let (id, _) = fetched.fetched();
        assert!(with(scene.stage_request(id), "stage").success);
        assert_eq!(scene.staged("vendor/lib/more"), "more\n", "{lets}");
        let mirrors: Vec<_> = std::fs::read_dir(scene.mirror().join("modules")).expect("there").flatten().collect();
        assert_eq!(mirrors.len(), 1);
        let mirror = mirrors[0].path().display().to_string();
        assert_eq!(scene.git(&["--git-dir", &mirror, "rev-parse", "HEAD"]), old);
        let shallow = scene.git(&["--git-dir", &mirror, "rev-parse", "--is-shallow-repository"]);
        assert_eq!(shallow, lets, "by its id where that is allowed, else all branches");
        scene.git(&["--git-dir", &mirror, "fsck", "--full", "--strict", "--no-dangling"]);
    }
}

fn commit_again_as(scene: &Scene, text: &str) {
    std::fs::write(scene.path("work-lib/more"), text).expect("written");
    commit(scene, "lib");
}

#[test]
fn hostile_submodules_are_the_revisions_fault_and_nobody_is_asked() {
    for (url, words) in [
        ("-u./payload", "must not be asked"),
        ("--upload-pack=touch pwned", "must not be asked"),
        ("ext::touch pwned", "must not be asked"),
        ("ssh://-oProxyCommand=touch/x", "must not be asked"),
        ("file:///etc", "a path on this machine"),
        ("/etc", "a path on this machine"),
        ("../../../x", "leads out"),
        ("", "must not be asked"),
    ] {
        let scene = Scene::new();
        let daemon = git_daemon(&scene);
        pin(&scene, "work", "lib", url, &"1".repeat(40));
        let id = push_app(&scene);
        let fetched = with(scene.fetch_request(&format!("git://127.0.0.1:{}/app.git", daemon.port)), "fetch");
        assert_eq!(fetched.fetched().0, id, "{url}");
        let staged = with(scene.stage_request(&id), "stage");
        let (kind, text, _) = staged.failed();
        assert!(kind == "bad_tree" && text.contains("submodule at `lib`") && text.contains(words), "{url}: {staged:?}");
        assert!(!scene.path("releases/r.tmp").exists());
    }
    // CVE-2018-11235: a name or path that leads out is no place to write to; what counts is where the tree pins it.
    let scene = Scene::new();
    let lib = other(&scene, "lib", "lib\n");
    pin(&scene, "work", "lib", "../lib.git", &lib);
    let text = "[submodule \"../../../evil\"]\n\tpath = ../../evil\n\turl = ../lib.git\n[submodule \"../x\"]\n\tpath = lib\n\turl = ../lib.git\n\tupdate = !touch pwned\n";
    std::fs::write(scene.path("work/.gitmodules"), text).expect("written");
    scene.in_work(&["commit", "-q", "-a", "-m", "evil"]);
    let id = push_app(&scene);
    assert!(with(scene.fetch_request(&scene.source()), "fetch").success);
    assert!(with(scene.stage_request(&id), "stage").success);
    assert_eq!(scene.staged("lib/file"), "lib\n");
    assert!(!scene.path("evil").exists() && !Path::new("pwned").exists());
    // One that no address is known of.
    std::fs::write(scene.path("work/.gitmodules"), "").expect("written");
    scene.in_work(&["commit", "-q", "-a", "-m", "none"]);
    let id = push_app(&scene);
    assert!(with(scene.fetch_request(&scene.source()), "fetch").success);
    let staged = with(scene.stage_request(&id), "stage");
    assert!(staged.failed().1.contains("does not say where it comes from"), "{staged:?}");
}

#[test]
fn a_submodule_out_of_reach_is_trouble_of_the_network_and_what_is_damaged_heals() {
    let (scene, _) = nested();
    let source = scene.source();
    std::fs::rename(scene.path("served/deep.git"), scene.path("served/away.git")).expect("moved");
    let failed = with(scene.fetch_request(&source), "fetch");
    let (kind, text, _) = failed.failed();
    assert!(kind == "unreachable" && text.contains("submodule at `vendor/lib`") && text.contains("submodule at `deep`"), "{failed:?}");
    std::fs::rename(scene.path("served/away.git"), scene.path("served/deep.git")).expect("moved");
    assert!(with(scene.fetch_request(&source), "fetch").success);

    // Its mirror is emptied: made anew.
    let modules = scene.mirror().join("modules");
    let mirror = std::fs::read_dir(&modules).expect("there").flatten().next().expect("one").path();
    std::fs::remove_dir_all(mirror.join("objects")).expect("removed");
    let healed = with(scene.fetch_request(&source), "fetch");
    let (id, told) = healed.fetched();
    assert!(told.iter().any(|text| text.contains("submodule at `vendor/lib`")), "{healed:?}");
    assert!(with(scene.stage_request(id), "stage").success);
    assert_eq!(scene.staged("vendor/lib/deep/file"), "deep\n");

    // Gone from the tree, gone from the disk.
    scene.in_work(&["rm", "-q", "--cached", "vendor/lib"]);
    scene.in_work(&["commit", "-q", "-m", "without"]);
    let id = push_app(&scene);
    assert!(with(scene.fetch_request(&source), "fetch").success);
    assert_eq!(std::fs::read_dir(&modules).map_or(0, Iterator::count), 0);
    assert!(with(scene.stage_request(&id), "stage").success);
}
