//! A whole node on an https source: a private authority, a token, and git's own http-backend behind the server.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::node::{Node, QUICK, run};
use crate::site::{Authority, Manner, Site, basic};

#[test]
fn a_node_lives_on_an_https_source_with_a_token_and_a_wrong_token_is_said_to_be_refused() {
    let node = Node::new();
    let authority = Authority::new();
    node.write("ca.pem", &authority.pem());
    let site = Site::start(node.path("served"), authority.localhost(), Manner::Wants(basic("x-access-token", "a-good-token")));
    let push = || {
        let bare = node.path("served/app.git");
        if !bare.exists() {
            run(Command::new("git").args(["init", "-q", "--bare", "-b", "main"]).arg(&bare));
        }
        node.git(&["push", "-q", "--force", &bare.display().to_string(), "main"]);
    };
    push();
    let source = "source: {repository: 'https://localhost:@PORT@/app.git', branch: main, ca: '@DIR@/ca.pem', credentials: {token: '${file:@DIR@/token}'}}";
    let source = source.replace("@PORT@", &site.port.to_string());
    node.write("token", "a-good-token\n");
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), &source);
    node.boot();
    let second = node.commit(&[("README", "second\n")]);
    push();
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, second.clone());

    node.write("token", "a-wrong-token\n");
    node.commit(&[("README", "third\n")]);
    push();
    node.cli(&["deploy"]).exits(1).says(&["localhost"]);
    node.same(node.live().0, second);
    node.state("w", "ready");
    let error = node.look("/deploy/last_error");
    let error = error.as_str().unwrap_or_default();
    assert!(
        error.contains("https://localhost:") && (error.contains("401") || error.contains("credentials") || error.contains("refuse")),
        "{error}"
    );
    for said in [node.cli(&["status", "--json"]).out, node.cli(&["events", "--json"]).out, node.text("agent.log")] {
        assert!(!said.contains("a-wrong-token") && !said.contains("a-good-token"), "{said}");
    }
}

/// Looks at all that a node has written, and goes on looking at what every process shows of itself until it is told to stop.
fn seen_in_proc(words: &[&str], stop: &AtomicBool) -> Vec<String> {
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        for pid in crate::node::all_pids() {
            for name in ["cmdline", "environ", "comm"] {
                let bytes = fs_err::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
                if holds(&bytes, words) {
                    seen.push(format!("/proc/{pid}/{name}: {}", String::from_utf8_lossy(&bytes)));
                }
            }
        }
    }
    seen
}

fn holds(bytes: &[u8], words: &[&str]) -> bool {
    words.iter().any(|word| bytes.windows(word.len()).any(|window| window == word.as_bytes()))
}

fn written(folder: &Path, words: &[&str], seen: &mut Vec<String>, files: &mut usize) {
    for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            written(&path, words, seen, files);
        } else if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            *files += 1;
            if holds(&fs_err::read(&path).unwrap_or_default(), words) {
                seen.push(path.display().to_string());
            }
        }
    }
}

#[test]
fn a_secret_of_the_source_stands_in_its_file_and_nowhere_else() {
    const SECRET: &str = "pl4nted-s3cret";
    let node = Node::new();
    let authority = Authority::new();
    node.write("ca.pem", &authority.pem());
    let wanted = basic("x-access-token", SECRET);
    let site = Site::start(node.path("served"), authority.localhost(), Manner::Wants(wanted.clone()));
    let bare = node.path("served/app.git").display().to_string();
    run(Command::new("git").args(["init", "-q", "--bare", "-b", "main", &bare]));
    node.write("secret", &format!("{SECRET}\n"));
    let asked =
        "#!/bin/sh\necho \"$1\" >>@DIR@/asked\ncase $1 in User*) ;; *) cat @DIR@/secret; echo $0 >&2; cat @DIR@/secret >&2;; esac\n";
    node.write("askpass", &asked.replace("@DIR@", node.path("").display().to_string().trim_end_matches('/')));
    fs_err::set_permissions(node.path("askpass"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
    let configure = |credentials: &str, url: &str| {
        let source = format!("source: {{repository: '{url}', branch: main, ca: '@DIR@/ca.pem'{credentials}}}");
        node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), &source);
    };
    let url = format!("https://localhost:{}/app.git", site.port);
    let in_url = format!("https://x-access-token:${{file:@DIR@/secret}}@localhost:{}/app.git", site.port);
    let (stop, encoded) = (AtomicBool::new(false), wanted.trim_start_matches("Basic ").to_owned());
    let words = [SECRET, encoded.as_str()];
    let mut seen = std::thread::scope(|scope| {
        let looking = scope.spawn(|| seen_in_proc(&words, &stop));
        for (number, (credentials, url)) in [
            (", credentials: {token: '${file:@DIR@/secret}'}", &url),
            (", credentials: {username: x-access-token, password: '${file:@DIR@/secret}'}", &url),
            (", credentials: {askpass: '@DIR@/askpass'}", &url),
            ("", &in_url),
        ]
        .into_iter()
        .enumerate()
        {
            configure(credentials, url);
            let revision = node.commit(&[("README", &format!("{number}\n"))]);
            node.git(&["push", "-q", "--force", &bare, "main"]);
            if number == 0 {
                node.boot();
            } else {
                node.cli(&["reload"]).exits(0);
                node.cli(&["deploy"]).exits(0);
            }
            node.same(node.live().0, revision);
            // Also where it is refused.
            node.write("secret", "pl4nted-s3cret-no-more\n");
            node.commit(&[]);
            node.git(&["push", "-q", "--force", &bare, "main"]);
            node.cli(&["deploy"]).exits(1);
            node.write("secret", &format!("{SECRET}\n"));
            for verb in [["status", "--json"].as_slice(), &["events", "--json"], &["why", "deploy"], &["check", "--explain"], &["check"]] {
                let said = node.cli(verb);
                assert!(!holds(format!("{said:?}").as_bytes(), &words), "{verb:?}: {said:?}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        looking.join().expect("it looked")
    });
    let questions = node.text("asked");
    assert!(
        questions.contains("Username for 'https://localhost:") && questions.contains("Password for 'https://localhost:"),
        "{questions}"
    );
    let mut files = 0;
    written(&node.root(""), &words, &mut seen, &mut files);
    seen.extend(holds(node.text("agent.log").as_bytes(), &words).then(|| "agent.log".to_owned()));
    assert!(files > 20, "{files} files");
    assert!(seen.is_empty(), "{seen:#?}");
}

/// A node on an https source whose password only a program knows; the program waits while there is no `go`.
fn with_askpass(more: &str) -> (Node, Site, String) {
    let node = Node::new();
    let authority = Authority::new();
    node.write("ca.pem", &authority.pem());
    let site = Site::start(node.path("served"), authority.localhost(), Manner::Wants(basic("x-access-token", "a-password")));
    let bare = node.path("served/app.git").display().to_string();
    run(Command::new("git").args(["init", "-q", "--bare", "-b", "main", &bare]));
    let dir = node.path("").display().to_string();
    let script =
        "#!/bin/sh\necho \"$1\" >>@DIR@/asked\nwhile [ ! -e @DIR@/go ]; do sleep 0.05; done\ncase $1 in Pass*) echo a-password;; esac\n";
    node.write("askpass", &script.replace("@DIR@", dir.trim_end_matches('/')));
    fs_err::set_permissions(node.path("askpass"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
    node.write("go", "");
    let url = format!("https://localhost:{}/app.git", site.port);
    let source = "source: {repository: '@URL@', branch: main, ca: '@DIR@/ca.pem', credentials: {askpass: '@DIR@/askpass'}";
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), &format!("{}{more}", source.replace("@URL@", &url)));
    node.git(&["push", "-q", "--force", &bare, "main"]);
    (node, site, bare)
}

#[test]
fn the_agent_answers_while_a_poll_asks_for_the_password_and_a_newer_head_ends_a_build() {
    let (node, _site, bare) = with_askpass(", poll: 1s, supersede: true}\nbuild: {steps: ['test ! -e slow || sleep 1000']}\n");
    node.boot();
    let old = node.commit(&[("slow", "yes\n")]);
    node.git(&["push", "-q", "--force", &bare, "main"]);
    node.until("the slow build", || (node.look("/deploy/phase") == "building").then_some(()));
    fs_err::remove_file(node.path("go")).expect("removed");
    let (pid, asked) = (node.look("/agent/pid"), node.text("asked").lines().count());
    node.until("the poll's question", || (node.text("asked").lines().count() > asked).then_some(()));
    for _ in 0..10 {
        let began = Instant::now();
        node.cli(&["status"]);
        assert!(began.elapsed() < Duration::from_secs(2), "the answer took {:?}", began.elapsed());
    }
    // One question at a time.
    assert_eq!(node.text("asked").lines().count(), asked + 1, "{}", node.text("asked"));
    node.git(&["rm", "-q", "slow"]);
    let new = node.commit(&[("README", "newer\n")]);
    node.git(&["push", "-q", "--force", &bare, "main"]);
    node.write("go", "");
    node.until("the newer one", || (node.live().0 == new).then_some(()));
    assert_ne!(node.live().0, old);
    assert_eq!(node.look("/agent/pid"), pid, "nobody ended the agent");
    let asked = node.text("asked").lines().count();
    node.cli(&["check"]).exits(0);
    assert!(node.text("asked").lines().count() >= asked + 2, "{}", node.text("asked"));
}

#[test]
fn a_program_that_others_could_change_is_not_asked_for_the_password() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can give files away");
    }
    let (node, _site, bare) = with_askpass("}");
    node.boot();
    let asked = node.text("asked");
    node.commit(&[("README", "second\n")]);
    node.git(&["push", "-q", "--force", &bare, "main"]);
    std::os::unix::fs::chown(node.path("askpass"), Some(65534), None).expect("given away");
    node.cli(&["deploy"]).exits(1).says(&["source.credentials.askpass", "belongs to user 65534"]);
    node.cli(&["check"]).exits(78).says(&["source.credentials.askpass", "belongs to user 65534", "chown root"]);
    node.cli(&["check", "--offline"]).exits(78).says(&["source.credentials.askpass", "belongs to user 65534"]);
    assert_eq!(node.text("asked"), asked, "it was run");
    std::os::unix::fs::chown(node.path("askpass"), Some(0), None).expect("taken back");
    fs_err::set_permissions(node.path("askpass"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("its mode");
    node.cli(&["check", "--offline"]).exits(78).says(&["source.credentials.askpass", "is no program"]);
}

#[test]
fn what_is_no_file_of_signers_is_not_waited_for_and_a_full_disk_is_told_before_it_is_fetched() {
    let node = Node::new();
    let configure = |source: &str| {
        let text = "app: e2e\nroot: @DIR@/root\nsource: {repository: @DIR@/src, branch: main@MORE@}\nrelease: {min_free: @FREE@, confirm: 0s}\n\
            pools:\n  w: {command: '@FIXTURE@', ready: {after: 50ms}}\n";
        let (more, free) = source.split_once('|').expect("two");
        node.configure_raw(&text.replace("@MORE@", more).replace("@FREE@", free));
    };
    configure("|0");
    node.boot();
    configure("|1000TB");
    node.cli(&["reload"]).exits(0);
    let before = node.live();
    node.commit(&[("README", "second\n")]);
    let mark = node.mark();
    node.cli(&["deploy"]).exits(1).says(&["free"]);
    node.told(mark, "fetch_failed", "free");
    assert!(node.since(mark, &["deploy_started"]).is_empty(), "nothing was fetched, so nothing is made");
    node.same(node.live(), before.clone());
    run(Command::new("mkfifo").arg(node.path("signers")));
    configure(", verify: {allowed_signers: '@DIR@/signers'}|0");
    let (pid, began) = (node.look("/agent/pid"), Instant::now());
    node.cli(&["check", "--offline"]).exits(78).says(&["is not a regular file"]);
    node.cli(&["reload"]);
    node.cli(&["deploy"]);
    node.cli(&["status"]);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(node.look("/agent/pid"), pid);
    node.same(node.live(), before);
}
