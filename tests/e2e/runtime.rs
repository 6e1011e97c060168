//! Which ruby a release runs: Debian's rbenv and copies of Debian's ruby as its versions.

use rustix::process::Signal;

use crate::node::{Node, QUICK, signal_to};

/// A node whose rbenv is in `@DIR@/rbenv`, with these versions; each is a ruby of its own, so that /proc shows which one runs.
fn with_rbenv(versions: &[&str]) -> Node {
    let node = Node::new();
    assert!(std::path::Path::new("/usr/bin/ruby3.1").exists(), "Debian's ruby is needed here, and .ci/run installs it");
    for version in versions {
        install(&node, version);
    }
    node.configure(
        &format!("  w: {{command: ruby worker.rb, {QUICK}}}"),
        "build: {env: {RBENV_ROOT: @DIR@/rbenv}, steps: ['command -v ruby > built-by; ruby -e 0']}",
    );
    node.commit(&[("worker.rb", "sleep 600\n")]);
    node
}

fn install(node: &Node, version: &str) {
    let bin = node.path(&format!("rbenv/versions/{version}/bin"));
    fs_err::create_dir_all(&bin).expect("made");
    fs_err::copy("/usr/bin/ruby3.1", bin.join("ruby")).expect("copied");
}

/// Which ruby the worker is, by version; it has that version's environment.
fn runs(node: &Node) -> String {
    let pid = node.pid("w");
    let exe = fs_err::read_link(format!("/proc/{pid}/exe")).expect("its program").display().to_string();
    let dir = node.path("rbenv/versions").display().to_string();
    let version = exe.strip_prefix(&dir).and_then(|rest| rest.strip_suffix("/bin/ruby")).unwrap_or_else(|| panic!("{exe}"));
    let version = version.trim_start_matches('/').to_owned();
    let environ = fs_err::read(format!("/proc/{pid}/environ")).expect("its environment");
    let environ: Vec<String> = environ.split(|byte| *byte == 0).map(|pair| String::from_utf8_lossy(pair).into_owned()).collect();
    let path = format!("PATH={dir}/{version}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    for wanted in [path, format!("RBENV_VERSION={version}"), format!("RBENV_ROOT={}", node.path("rbenv").display())] {
        assert!(environ.contains(&wanted), "{wanted} is not in {environ:?}");
    }
    assert!(!environ.iter().any(|pair| pair.contains("shims") || pair.starts_with("RBENV_DIR")), "{environ:?}");
    version
}

#[test]
fn each_release_runs_the_ruby_that_its_own_file_asks_for() {
    let node = with_rbenv(&["3.1.2", "3.1.3"]);
    node.commit(&[(".ruby-version", "3.1.2\n")]);
    node.boot();
    let first = node.live();
    assert_eq!(runs(&node), "3.1.2");
    let built_by = |version: &str| format!("{}/{version}/bin/ruby\n", node.path("rbenv/versions").display());
    assert_eq!(node.text("root/current/built-by"), built_by("3.1.2"));
    node.told(0, "runtime", "by rbenv: `.ruby-version` says 3.1.2");
    node.cli(&["check", "--offline"]).says(&["rbenv/versions/3.1.2/bin/ruby, by rbenv: `.ruby-version` says 3.1.2"]);

    node.commit(&[(".ruby-version", "3.1.3\n")]);
    node.cli(&["deploy"]).exits(0);
    assert_eq!((runs(&node), node.text("root/current/built-by")), ("3.1.3".into(), built_by("3.1.3")));
    node.cli(&["rollback", "--to", &first.1]).exits(0);
    assert_eq!(runs(&node), "3.1.2");

    // An agent that has not found it itself knows it as well, and whoever changed the file since has no say.
    node.write("root/current/.ruby-version", "3.1.3\n");
    let (agent, worker) = (node.look("/agent/pid").as_i64().expect("a pid"), node.pid("w"));
    signal_to(i32::try_from(agent).expect("a pid"), Signal::KILL);
    node.until("another agent", || node.look("/agent/pid").as_i64().is_some_and(|pid| pid != agent).then_some(()));
    signal_to(worker, Signal::KILL);
    node.until("another worker", || (node.slots("w")[0]["state"] == "ready" && node.pid("w") != worker).then_some(()));
    assert_eq!(runs(&node), "3.1.2");
}

#[test]
fn a_version_that_is_missing_fails_the_deploy_and_heals_when_it_is_installed() {
    let node = with_rbenv(&["3.1.2"]);
    node.commit(&[(".ruby-version", "3.1.2\n")]);
    node.boot();
    let (live, worker) = (node.live(), node.pid("w"));
    let wanted = node.commit(&[(".ruby-version", "3.1.3\n")]);
    let has = format!("rbenv in `{}` has 3.1.2; ", node.path("rbenv").display());
    let says = ["ruby 3.1.3 (`.ruby-version`) is not installed: ", &has, "`rbenv install 3.1.3` as user `root` installs it"];
    node.cli(&["deploy"]).exits(1).says(&says);
    assert_eq!((node.live(), node.pid("w")), (live, worker));
    install(&node, "3.1.3");
    // Nobody asks again.
    node.until("the deploy", || (node.live().0 == wanted).then_some(()));
    node.idle();
    assert_eq!(runs(&node), "3.1.3");

    // What cannot be understood is the revision's fault, and waits for another one.
    node.commit(&[(".ruby-version", "3.1.3\n3.1.2\n")]);
    node.cli(&["deploy"]).exits(1).says(&["`.ruby-version` names several versions: 3.1.3, 3.1.2; only one can be run"]);
    node.cli(&["deploy"]).exits(4).says(&["quarantined"]);
}

#[test]
fn another_runtime_in_the_configuration_makes_a_new_release() {
    let node = with_rbenv(&["3.1.2", "3.1.3"]);
    node.commit(&[(".ruby-version", "3.1.2\n")]);
    node.boot();
    let (revision, release) = node.live();
    let text = node.text("config.yaml");
    fs_err::write(node.path("config.yaml"), text.replace("build: {", "build: {runtime: {rbenv: 3.1.3}, ")).expect("written");
    node.cli(&["reload", "--plan"]).exits(0).says(&["runtime: auto → {rbenv: 3.1.3}"]);
    node.cli(&["reload"]).exits(0);
    node.until("another release", || (node.live().1 != release && node.live().0 == revision).then_some(()));
    node.idle();
    assert_eq!(runs(&node), "3.1.3");
}

#[test]
fn a_virtual_environment_that_the_build_did_not_make_is_missed() {
    let node = Node::new();
    node.configure(
        &format!("  w: {{command: '@FIXTURE@', {QUICK}}}"),
        "build: {runtime: venv, steps: ['test ! -e ok || { mkdir -p .venv/bin; ln -s /bin/true .venv/bin/python; }']}",
    );
    node.start();
    node.until("the failure", || {
        let told = node.since(0, &["deploy_failed"]);
        told.iter().any(|event| event.to_string().contains("after the build there is none")).then_some(())
    });
    node.commit(&[("ok", "")]);
    node.cli(&["deploy"]).exits(0);
    let pid = node.until("a worker", || node.pids("w").first().copied());
    let environ = fs_err::read(format!("/proc/{pid}/environ")).expect("its environment");
    let venv = format!("VIRTUAL_ENV={}/.venv\0", node.root("releases").join(node.live().1).display());
    assert!(String::from_utf8_lossy(&environ).contains(&venv), "{venv}");
}

#[test]
fn a_release_whose_ruby_was_uninstalled_runs_no_other() {
    let node = with_rbenv(&["3.1.2"]);
    node.commit(&[(".ruby-version", "3.1.2\n")]);
    node.boot();
    assert_eq!(runs(&node), "3.1.2");
    fs_err::remove_dir_all(node.path("rbenv/versions/3.1.2")).expect("uninstalled");
    signal_to(node.pid("w"), Signal::KILL);
    // Not Debian's, which is the next along PATH.
    let error = node.until("it says why", || {
        let why = node.look("/pools/0/slots/0/last_verdict/text").as_str()?.to_owned();
        why.contains("rbenv/versions/3.1.2/bin/ruby").then_some(why)
    });
    assert!(error.contains("is gone") && error.contains("deploy --force"), "{error}");
    node.cli(&["exec", "--", "ruby", "-e", "0"]).says(&["3.1.2/bin/ruby`, which", "is gone"]);
    install(&node, "3.1.2");
    node.state("w", "ready");
    assert_eq!(runs(&node), "3.1.2");
}
