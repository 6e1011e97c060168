//! What is fetched: branches, tags, revisions, shallow or whole, by path and over git://.

use serde_json::json;

use crate::support::{Scene, ask, copy_of_helper, git_daemon, helper, helper_command};

#[test]
fn a_path_and_a_file_url_are_copied_whole() {
    let scene = Scene::new();
    let head = scene.advance("second");
    assert_eq!(scene.fetch(&scene.source()).fetched(), (head.as_str(), vec![]));
    assert_eq!(scene.mirrored().len(), 2, "libgit2 cannot shallow-fetch from a path");
    assert!(!scene.mirror().join("objects/info/alternates").exists());
    scene.mirror_is_sound();
    // The source may go: the mirror does not lean on it.
    let same = scene.fetch(&scene.source());
    assert_eq!((same.fetched().0, same.bytes()), (head.as_str(), 0), "nothing new, nothing fetched");
    let third = scene.advance("third");
    std::fs::remove_dir_all(scene.mirror()).expect("removed");
    assert_eq!(scene.fetch(&format!("file://{}", scene.source())).fetched(), (third.as_str(), vec![]));
    std::fs::rename(scene.path("served"), scene.path("gone")).expect("renamed");
    assert!(scene.stage(&third).success);
    assert_eq!(scene.staged("README"), "third\n");
    let answer = scene.fetch(&scene.source());
    assert_eq!(answer.failed().0, "unreachable", "what is not there now may be mounted, or back, in a moment");
}

#[test]
fn a_repository_of_sha256_ids_is_refused_in_words_with_a_way_out() {
    let scene = Scene::new();
    let at = |below: &str| scene.path(below).display().to_string();
    // Where the others' is, so that the daemon serves it.
    scene.git(&["init", "-q", "--bare", "-b", "main", "--object-format=sha256", &at("served/wide.git")]);
    scene.git(&["init", "-q", "-b", "main", "--object-format=sha256", &at("wide")]);
    scene.git(&["-C", &at("wide"), "commit", "-q", "--allow-empty", "-m", "first"]);
    scene.git(&["-C", &at("wide"), "push", "-q", &at("served/wide.git"), "main"]);
    let head = scene.git(&["-C", &at("wide"), "rev-parse", "HEAD"]);
    assert_eq!(head.len(), 64);
    let daemon = git_daemon(&scene);
    let served = format!("git://127.0.0.1:{}/wide.git", daemon.port);
    let mut pinned = scene.fetch_request(&served);
    pinned["fetch"]["wanted"] = json!({"revision": head});
    for (asked, what) in [
        (scene.fetch_request(&at("served/wide.git")), "is a repository with SHA-256 ids"),
        (scene.fetch_request(&format!("file://{}", at("served/wide.git"))), "is a repository with SHA-256 ids"),
        (scene.fetch_request(&served), "is a repository with SHA-256 ids"),
        (pinned, "is a SHA-256 id"),
    ] {
        let answer = helper(&asked);
        let (kind, text, hint) = answer.failed();
        assert_eq!(kind, "unsupported", "not tried again as if it were out of reach: {answer:?}");
        assert!(text.contains(what) && text.ends_with("which is not supported"), "{answer:?}");
        assert!(hint.contains("fast-export --all | git fast-import"), "{answer:?}");
        assert!(!scene.mirror().join("HEAD").exists(), "nothing is left: {answer:?}");
    }
    // The way out is one.
    scene.git(&["init", "-q", "--bare", "-b", "main", "--object-format=sha1", &at("served/copy.git")]);
    let copy = format!("git -C {} fast-export --all | git -C {} fast-import --quiet", at("wide"), at("served/copy.git"));
    let copied = std::process::Command::new("sh").args(["-c", &copy]).status().expect("sh");
    assert!(copied.success());
    assert_eq!(scene.fetch(&at("served/copy.git")).fetched().0.len(), 40);
}

#[test]
fn a_shallow_fetch_brings_so_many_commits_and_no_more() {
    let scene = Scene::new();
    let daemon = git_daemon(&scene);
    let url = format!("git://127.0.0.1:{}/app.git", daemon.port);
    for text in ["second", "third", "fourth"] {
        scene.advance(text);
    }
    let fourth = scene.in_work(&["rev-parse", "HEAD"]);
    assert_eq!(scene.fetch(&url).fetched(), (fourth.as_str(), vec![]));
    assert_eq!(scene.mirrored(), std::slice::from_ref(&fourth));
    let fifth = scene.advance("fifth");
    let answer = scene.fetch(&url);
    assert_eq!(answer.fetched(), (fifth.as_str(), vec![]));
    assert!(answer.bytes() > 0);
    assert!(scene.stage(&fifth).success);
    assert_eq!(scene.staged("README"), "fifth\n");
    assert_eq!(scene.staged("REVISION"), format!("{fifth}\n"));

    let mut whole = scene.fetch_request(&url);
    whole["fetch"]["depth"] = json!(0);
    assert_eq!(helper(&whole).fetched(), (fifth.as_str(), vec![]));
    assert_eq!(scene.mirrored().len(), 5, "depth 0 completes a shallow mirror");
}

#[test]
fn what_an_operator_says_is_a_branch_a_tag_or_the_first_digits_of_what_is_known_here() {
    let scene = Scene::new();
    let daemon = git_daemon(&scene);
    let url = format!("git://127.0.0.1:{}/app.git", daemon.port);
    let first = scene.in_work(&["rev-parse", "HEAD"]);
    scene.in_work(&["tag", "v1"]);
    scene.push();
    assert_eq!(scene.fetch(&url).fetched().0, first);
    let second = scene.advance("second");
    let wanted = |text: &str, known: &[&str]| {
        let mut request = scene.fetch_request(&url);
        request["fetch"]["wanted"] = json!({"any": text});
        request["fetch"]["known"] = json!(known);
        helper(&request)
    };
    assert_eq!(wanted("main", &[]).fetched().0, second);
    assert_eq!(wanted("v1", &[]).fetched().0, first);
    // In the mirror, though no longer the head of a branch.
    assert_eq!(wanted(&second[..7], &[]).fetched().0, second);
    let twin = format!("{}{}", &second[..7], "0".repeat(33));
    for (text, known) in [(&second[..7], [twin.as_str()].as_slice()), ("abcdef0", &[]), (&second[..3], &[])] {
        let answer = wanted(text, known);
        assert!(answer.failed().1.contains("has no branch or tag `"), "{answer:?}");
        assert!(answer.failed().1.contains("and it is no full 40-digit revision"), "{answer:?}");
    }
    // A new mirror knows nothing: the known id is asked for.
    std::fs::remove_dir_all(scene.mirror()).expect("removed");
    assert_eq!(wanted(&second[..8], &[&second]).fetched().0, second);
}

#[test]
fn a_force_push_is_followed_and_the_old_head_forgotten() {
    let scene = Scene::new();
    let daemon = git_daemon(&scene);
    let url = format!("git://127.0.0.1:{}/app.git", daemon.port);
    let first = scene.in_work(&["rev-parse", "HEAD"]);
    let mut heads = Vec::new();
    for (round, depth) in [1, 2, 1, 0].into_iter().enumerate() {
        scene.in_work(&["reset", "-q", "--hard", &first]);
        for commit in 0..3 {
            scene.advance(&format!("history {round} commit {commit}"));
        }
        let head = scene.in_work(&["rev-parse", "HEAD"]);
        // The server has forgotten the old head as well.
        let source = scene.source();
        scene.git(&["--git-dir", &source, "gc", "-q", "--prune=now"]);
        let mut request = scene.fetch_request(&url);
        request["fetch"]["depth"] = json!(depth);
        assert_eq!(helper(&request).fetched(), (head.as_str(), vec![]), "depth {depth}");
        assert_eq!(scene.mirrored().len(), if depth == 0 { 4 } else { depth }, "depth {depth}");
        assert!(scene.stage(&head).success);
        assert_eq!(scene.staged("README"), format!("history {round} commit 2\n"));
        heads.push(head);
    }
}

#[test]
fn a_branch_can_take_the_name_of_a_directory_of_branches() {
    let scene = Scene::new();
    for name in ["release/one", "release"] {
        scene.in_work(&["checkout", "-q", "-b", name]);
        scene.write("name", name);
        let id = scene.commit(name);
        scene.push();
        let mut request = scene.fetch_request(&scene.source());
        request["fetch"]["wanted"] = json!({"branch": name});
        assert_eq!(helper(&request).fetched(), (id.as_str(), vec![]));
        scene.in_work(&["checkout", "-q", "main"]);
        scene.in_work(&["branch", "-q", "-D", name]);
        let source = scene.source();
        scene.git(&["--git-dir", &source, "branch", "-q", "-D", name]);
    }
}

#[test]
fn tags_are_peeled() {
    let scene = Scene::new();
    let daemon = git_daemon(&scene);
    let first = scene.in_work(&["rev-parse", "HEAD"]);
    scene.in_work(&["tag", "light"]);
    scene.in_work(&["tag", "-a", "-m", "x", "heavy"]);
    scene.in_work(&["tag", "-a", "-m", "x", "nested", "heavy"]);
    scene.advance("second");
    for url in [scene.source(), format!("git://127.0.0.1:{}/app.git", daemon.port)] {
        for tag in ["light", "heavy", "nested", "heavy"] {
            let mut request = scene.fetch_request(&url);
            request["fetch"]["wanted"] = json!({"tag": tag});
            assert_eq!(helper(&request).fetched().0, first, "{tag} from {url}");
        }
    }
}

#[test]
fn what_is_no_commit_is_told_as_that_and_the_mirror_is_kept() {
    let scene = Scene::new();
    let daemon = git_daemon(&scene);
    let tree = scene.in_work(&["rev-parse", "HEAD^{tree}"]);
    scene.in_work(&["tag", "of-a-tree", &tree]);
    scene.in_work(&["tag", "-a", "-m", "x", "of-a-tag-of-a-tree", "of-a-tree"]);
    // A date that no clock knows, as a hostile or broken client writes it.
    let text = format!("tree {tree}\nauthor a <a@b> 18446744073709551617 +0000\ncommitter a <a@b> 18446744073709551617 +0000\n\nx\n");
    scene.write("odd", text.as_bytes());
    scene.advance("second");
    for (url, odds) in [(scene.source(), 0), (format!("git://127.0.0.1:{}/app.git", daemon.port), 1)] {
        if odds > 0 {
            // Not for the path: libgit2 itself reads all that it is offered there, and fails.
            let (odd, source) = (scene.path("work/odd").display().to_string(), scene.source());
            let odd = scene.git(&["--git-dir", &source, "hash-object", "-t", "commit", "-w", "--literally", &odd]);
            std::fs::write(scene.path("served/app.git/refs/tags/odd"), format!("{odd}\n")).expect("written");
        }
        let mut request = scene.fetch_request(&url);
        helper(&request).fetched();
        let before = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(scene.mirror()).expect("a mirror"));
        let odd = [("odd", "cannot be read")].into_iter().take(odds);
        for (tag, words) in [("of-a-tree", "is of a tree"), ("of-a-tag-of-a-tree", "is of a tree")].into_iter().chain(odd) {
            request["fetch"]["wanted"] = json!({"tag": tag});
            let answer = helper(&request);
            let (kind, text, _) = answer.failed();
            assert!(kind == "not_found" && text.contains(words) && text.contains(tag), "{tag} from {url}: {answer:?}");
        }
        request["fetch"]["wanted"] = json!({"branch": "main"});
        let fetched = helper(&request);
        assert_eq!(fetched.fetched().1, Vec::<String>::new(), "nothing was damaged: {fetched:?}");
        let after = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(scene.mirror()).expect("a mirror"));
        assert_eq!(before, after);
    }
}

#[test]
fn a_pinned_revision_is_fetched_by_its_id_or_found_in_the_whole_history() {
    let scene = Scene::new();
    let daemon = git_daemon(&scene);
    let url = format!("git://127.0.0.1:{}/app.git", daemon.port);
    let first = scene.in_work(&["rev-parse", "HEAD"]);
    let second = scene.advance("second");
    let pinned = |id: &str, depth: u32| {
        let mut request = scene.fetch_request(&url);
        request["fetch"]["wanted"] = json!({"revision": id});
        request["fetch"]["depth"] = json!(depth);
        helper(&request)
    };
    assert_eq!(pinned(&second, 1).fetched().0, second, "the head of a branch needs no permission");
    let answer = pinned(&first, 1);
    let (kind, text, hint) = answer.failed();
    assert_eq!(kind, "not_found");
    assert!(text.contains("does not give out revision") && hint.contains("depth"), "{text} {hint}");
    assert_eq!(pinned(&first, 0).fetched().0, first, "in the whole history");
    assert_eq!(scene.mirrored(), std::slice::from_ref(&first), "HEAD is what was wanted");

    std::fs::remove_dir_all(scene.mirror()).expect("removed");
    let source = scene.source();
    scene.git(&["--git-dir", &source, "config", "uploadpack.allowReachableSHA1InWant", "true"]);
    assert_eq!(pinned(&first, 1).fetched().0, first, "where the server allows it");
    let nowhere = "1".repeat(40);
    assert_eq!(pinned(&nowhere, 1).failed().0, "not_found");
    let answer = pinned(&nowhere, 0);
    assert_eq!(answer.failed().0, "not_found");
    assert!(answer.failed().1.contains("no branch or tag"), "{answer:?}");
    drop(daemon);
    assert_eq!(pinned(&first, 1).fetched().0, first, "a pinned commit that is here needs no network");
    assert_eq!(pinned(&nowhere, 1).failed().0, "unreachable");
}

#[test]
fn what_is_not_there_is_told_with_the_nearest_name() {
    let scene = Scene::new();
    let daemon = git_daemon(&scene);
    let mut request = scene.fetch_request(&scene.source());
    request["fetch"]["wanted"] = json!({"branch": "mian"});
    let answer = helper(&request);
    assert_eq!((answer.failed().0, answer.failed().2), ("not_found", "is it `main`?"));
    request["fetch"]["wanted"] = json!({"tag": "v1"});
    assert_eq!((helper(&request).failed().0, helper(&request).failed().2), ("not_found", "it has no tag at all"));
    assert_eq!(scene.fetch(&format!("git://127.0.0.1:{}/none.git", daemon.port)).failed().0, "not_found");
    assert_eq!(scene.fetch("/dev/null").failed().0, "not_found");
    assert_eq!(scene.fetch(scene.path("shared").to_str().expect("text")).failed().0, "not_found");
    for url in ["svn://x/y", "x", "ext::true", ""] {
        assert_eq!(scene.fetch(url).failed().0, "unsupported", "{url}");
    }
    let port = daemon.port;
    drop(daemon);
    assert_eq!(scene.fetch(&format!("git://127.0.0.1:{port}/app.git")).failed().0, "unreachable");
    assert_eq!(scene.fetch("git://no-such-host.invalid/x").failed().0, "unreachable");
}

#[test]
fn a_request_that_is_none_is_told_without_repeating_it() {
    for text in [json!({}), json!({"fetch": {"url": "s3cret"}}), json!("s3cret"), json!({"s3cret": 1})] {
        let answer = helper(&text);
        assert_eq!(answer.failed().0, "internal");
        assert!(!answer.last.to_string().contains("s3cret"), "{answer:?}");
    }
}

#[test]
fn the_machines_git_configuration_changes_nothing() {
    let scene = Scene::new();
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    std::fs::write(scene.path(".gitconfig"), format!("[url \"/nowhere/\"]\n\tinsteadOf = {}\n", scene.path("").display()))
        .expect("written");
    let answer = ask(helper_command().env("HOME", scene.dir.path()), &scene.fetch_request(&scene.source()));
    assert_eq!(answer.fetched().0, head);
}

#[test]
fn the_app_user_fetches_from_a_repository_of_another() {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    std::fs::set_permissions(scene.dir.path(), std::fs::Permissions::from_mode(0o755)).expect("opened");
    std::fs::create_dir(scene.mirror()).expect("made");
    for path in [scene.mirror(), scene.path("releases"), scene.path("shared")] {
        chown(path, Some(65534), Some(65534)).expect("given");
    }
    let binary = copy_of_helper(&scene);
    let as_nobody = || {
        let mut command = std::process::Command::new(&binary);
        command.arg("internal-git").env_clear().uid(65534).gid(65534).current_dir("/");
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command
    };
    assert_eq!(ask(&mut as_nobody(), &scene.fetch_request(&scene.source())).fetched().0, head);
    let answer = ask(&mut as_nobody(), &scene.stage_request(&head));
    assert!(answer.success, "{answer:?}");
    std::fs::write(scene.mirror().join("refs/selfstart/wanted"), "damaged").expect("written");
    let answer = ask(&mut as_nobody(), &scene.fetch_request(&scene.source()));
    assert_eq!(answer.fetched().0, head, "made anew, though the directory above is not this user's");
    let mut elsewhere = scene.fetch_request(&scene.source());
    elsewhere["fetch"]["mirror"] = json!(scene.path("forbidden.git"));
    assert_eq!(ask(&mut as_nobody(), &elsewhere).failed().0, "disk_full");
}
