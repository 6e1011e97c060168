//! Nothing of an older release is in any worker: bundler, npm and pip install for real, the older release is deleted, everything is
//! restarted, and each process is searched.
//!
//! Packages come from the registries of npm and Python, the gem from an index that `gem` makes here.

use std::path::Path;
use std::process::Command;

use crate::node::{Node, QUICK, run};

/// A folder of gems as a server would give it out, with one that says where it is.
fn gems(node: &Node) {
    node.write(
        "gems/flip/flip.gemspec",
        "Gem::Specification.new do |s|\n  s.name = 'flip'\n  s.version = '1.0.0'\n  s.summary = 'x'\n  s.authors = ['x']\n  \
         s.homepage = 'https://example.com'\n  s.license = 'MIT'\n  s.files = ['lib/flip.rb']\nend\n",
    );
    node.write("gems/flip/lib/flip.rb", "module Flip\n  def self.up = __FILE__\nend\n");
    fs_err::create_dir_all(node.path("gems/index/gems")).expect("made");
    tool(node, "gems/flip", "gem", &["build", "-q", "flip.gemspec", "-o", "../index/gems/flip-1.0.0.gem"]);
    tool(node, "gems", "gem", &["generate_index", "-q", "-d", "index"]);
}

/// Runs a tool of the system, with a home of its own.
fn tool(node: &Node, folder: &str, name: &str, args: &[&str]) {
    let program = Path::new("/usr/bin").join(name);
    assert!(program.exists(), "`{name}` is needed here, and .ci/run installs it");
    fs_err::create_dir_all(node.path("home")).expect("made");
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "120"]).arg(program).args(args).current_dir(node.path(folder));
    run(command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", node.path("home")));
}

/// What npm and pip are told of this machine's network, which is in nobody's home.
const STEPS: &str = "build:
  runtime: {venv: .venv}
  env: {HOME: '@DIR@/home'}
  steps:
    - run: bundle config set --local path vendor/bundle && bundle config set --local deployment true && bundle install --quiet
      unless_unchanged: [Gemfile.lock]
    - {run: npm ci --no-audit --no-fund --loglevel=error, unless_unchanged: [package-lock.json]}
    - run: /usr/bin/python3 -m venv .venv && .venv/bin/pip install -q --disable-pip-version-check -r requirements.txt
      unless_unchanged: [requirements.txt]";

/// A node with a worker in each language, each of which loads what was installed.
pub(crate) fn three_languages() -> Node {
    let node = Node::new();
    gems(&node);
    let dir = node.path("gems/index").display().to_string();
    node.commit(&[
        ("Gemfile", &format!("source 'file://{dir}'\ngem 'flip'\n")),
        ("worker.rb", "require 'flip'\nFile.write('ruby.says', Flip.up)\nsleep\n"),
        ("package.json", "{\"name\": \"x\", \"version\": \"1.0.0\", \"dependencies\": {\"ms\": \"2.1.3\"}}\n"),
        ("worker.js", "require('fs').writeFileSync('node.says', require.resolve('ms'))\nsetInterval(() => {}, 1e6)\n"),
        ("requirements.txt", "markupsafe==2.1.5\n"),
        (
            "worker.py",
            "import markupsafe._speedups, signal\nopen('python.says', 'w').write(markupsafe._speedups.__file__)\nsignal.pause()\n",
        ),
        (".gitignore", "node_modules\nvendor\n.venv\n.bundle\n"),
    ]);
    tool(&node, "src", "bundle", &["lock"]);
    tool(&node, "src", "npm", &["install", "--package-lock-only", "--no-audit", "--no-fund", "--loglevel=error"]);
    node.commit(&[]);
    let pools = format!(
        "  ruby: {{command: bundle exec ruby worker.rb, {QUICK}}}\n  node: {{command: node worker.js, {QUICK}}}\n  python: {{command: python worker.py, {QUICK}}}"
    );
    node.configure(&pools, STEPS);
    node
}

/// Where a process shows a path: name and content.
fn shown(pid: i32) -> Vec<(String, String)> {
    let text = |name: &str| {
        (name.to_owned(), String::from_utf8_lossy(&fs_err::read(format!("/proc/{pid}/{name}")).unwrap_or_default()).into_owned())
    };
    let link = |name: &str| {
        (name.to_owned(), fs_err::read_link(format!("/proc/{pid}/{name}")).map(|to| to.display().to_string()).unwrap_or_default())
    };
    let mut shown = vec![text("environ"), text("maps"), text("cmdline"), link("cwd"), link("exe")];
    let fds = fs_err::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    shown.extend(fds.map(|fd| link(&format!("fd/{}", fd.file_name().display()))));
    shown
}

/// Restarts everything, after these releases are gone, and searches all processes for their names.
fn search(node: &Node, gone: &[&str]) {
    node.cli(&["restart"]).exits(0);
    node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
    let (_, live) = node.live();
    let release = node.root("releases").join(&live);
    for (pool, below) in [
        ("ruby", "vendor/bundle/ruby/3.1.0/gems/flip-1.0.0/lib/flip.rb"),
        ("node", "node_modules/ms/index.js"),
        ("python", ".venv/lib/python3.11/site-packages/markupsafe/_speedups."),
    ] {
        let said = node.until(pool, || Some(node.text(&format!("root/current/{pool}.says"))).filter(|text| !text.is_empty()));
        assert!(said.starts_with(&release.join(below).display().to_string()), "{pool}: {said}");
    }
    let mut searched = 0;
    for pid in node.processes() {
        for (name, content) in shown(pid) {
            searched += content.len();
            for old in gone {
                assert!(!content.contains(old), "process {pid}: {name} names an older release: {content}");
            }
        }
    }
    assert!(searched > 10_000, "{searched}");
    for pool in ["ruby", "node", "python"] {
        let cwd = fs_err::read_link(format!("/proc/{}/cwd", node.pid(pool))).expect("its directory");
        assert_eq!(cwd, release, "{pool}");
    }
    // The search sees what is there: the extension of python is mapped from the live release.
    let maps = fs_err::read_to_string(format!("/proc/{}/maps", node.pid("python"))).expect("its memory");
    assert!(maps.contains(&format!("{live}/.venv/lib/python3.11/site-packages/markupsafe/_speedups.")), "{maps}");
}

#[test]
fn nothing_of_an_older_release_is_in_any_worker_whether_its_packages_were_copied_or_installed() {
    let node = three_languages();
    node.start();
    node.until("the control socket", || node.root("run/control.sock").exists().then_some(()));
    // Three package managers, two of them over the network.
    node.cli(&["wait", "--ready", "--timeout", "55s"]);
    node.idle();
    node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
    let (_, first) = node.live();
    let steps = |from: usize| {
        let told = node.since(from, &["build_step"]);
        let skipped = told.iter().filter(|event| event.to_string().contains("is skipped")).count();
        (told.len(), skipped)
    };
    assert_eq!(steps(0), (3, 0));

    // What each step depends on is as it was.
    let mark = node.mark();
    node.commit(&[("README", "second\n")]);
    node.cli(&["deploy"]).exits(0);
    let (_, second) = node.live();
    assert_eq!(steps(mark), (3, 3));
    node.told(mark, "build_step", &format!("step 1 is skipped: unchanged since {first}, `.bundle`, `vendor` copied from there"));
    let pip = node.text("root/current/.venv/bin/pip");
    assert!(pip.starts_with(&format!("#!{}/.venv/bin/python", node.root("releases").join(&second).display())), "{pip}");
    fs_err::remove_dir_all(node.root("releases").join(&first)).expect("deleted");
    search(&node, &[&first]);

    // By force, everything is made anew.
    let mark = node.mark();
    node.cli(&["deploy", "--force", "--no-wait"]).exits(0);
    node.until("a third release", || (node.live().1 != second).then_some(()));
    node.idle();
    assert_eq!(steps(mark), (3, 0));
    fs_err::remove_dir_all(node.root("releases").join(&second)).expect("deleted");
    search(&node, &[&first, &second]);
}

#[test]
fn a_step_is_skipped_only_where_it_alone_made_what_is_copied_and_nothing_else() {
    let node = Node::new();
    node.commit(&[("lock", "1\n"), ("w", "#!/bin/sh\necho $$ > made/server.pid\nexec sleep 1000\n")]);
    node.configure_raw(&format!(
        "app: e2e\nroot: @DIR@/root\nsource: {{repository: @DIR@/src, branch: main}}\n\
         release: {{min_free: 1MB, confirm: 0s, linked_dirs: [vendor]}}\nbuild:\n  steps:\n    \
         - {{run: 'test -d {{release_path}}; mkdir made; cp lock made/one', unless_unchanged: [lock]}}\n    \
         - {{run: 'chmod +x w', unless_unchanged: [lock]}}\n    \
         - {{run: 'cp lock vendor/installed', unless_unchanged: [lock]}}\n\
         pools:\n  w: {{command: './w', {QUICK}}}\n"
    ));
    node.start();
    node.until("the control socket", || node.root("run/control.sock").exists().then_some(()));
    let ready = || {
        node.cli(&["wait", "--ready", "--timeout", "40s"]).exits(0);
        node.idle();
        node.until("a worker that says who it is", || node.root("current/made/server.pid").exists().then_some(()));
    };
    ready();
    for text in ["step 2 of", "it changes `w`, which is not its own"] {
        node.told(0, "trouble", text);
    }
    node.told(0, "trouble", "meanwhile `vendor` was written, which is shared");
    let skipped = |mark: usize| {
        let told = node.since(mark, &["build_step"]);
        told.iter()
            .filter_map(|event| Some(event["text"].as_str()?.split_once(" is skipped")?.0.chars().last()?.to_string()))
            .collect::<Vec<_>>()
    };

    // Another commit, the same inputs: what a live worker left beside the products stays where it is.
    let pid = node.text("root/current/made/server.pid");
    let mark = node.mark();
    node.commit(&[("README", "second\n")]);
    node.cli(&["deploy"]).exits(0);
    ready();
    assert_eq!(skipped(mark), ["1"]);
    assert_ne!(node.text("root/current/made/server.pid"), pid);
    assert_eq!(node.text("root/current/made/one"), "1\n");

    // Somebody changed it wherever it is: the step runs, and says why.
    let mark = node.mark();
    let (_, second) = node.live();
    for release in fs_err::read_dir(node.root("releases")).expect("releases").flatten() {
        fs_err::write(release.path().join("made/one"), "planted\n").expect("written");
    }
    node.commit(&[("README", "third\n")]);
    node.cli(&["deploy"]).exits(0);
    ready();
    assert_eq!(skipped(mark), Vec::<String>::new());
    node.told(mark, "build_step", &format!("step 1 runs: in {second}, `made/one` was changed after the step"));
    assert_eq!(node.text("root/current/made/one"), "1\n");
}
