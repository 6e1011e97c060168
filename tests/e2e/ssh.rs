//! A whole node on an ssh source: a real sshd, a key that only root may read, and everything else as `nobody`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::node::{Node, QUICK, run, said};

/// An sshd on loopback that ends with its test.
struct Site {
    child: Child,
    port: u16,
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key(node: &Node, name: &str) -> PathBuf {
    let path = node.path(name);
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path));
    path
}

fn public(key: &Path) -> String {
    let text = fs_err::read_to_string(key.with_extension("pub")).expect("a key");
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn fingerprint(key: &Path) -> String {
    let said = run(Command::new("ssh-keygen").arg("-l").arg("-f").arg(key.with_extension("pub")));
    said.split_whitespace().nth(1).expect("a fingerprint").to_owned()
}

impl Site {
    /// Lets `key` in, and shows `host_key`.
    fn start(node: &Node, host_key: &Path, key: &Path) -> Self {
        fs_err::create_dir_all("/run/sshd").expect("made");
        node.write("authorized_keys", &(public(key) + "\n"));
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nListenAddress 127.0.0.1\n",
            host_key.display(),
            node.path("authorized_keys").display()
        );
        node.write("sshd_config", &config);
        // Free now; if somebody else takes it before sshd does, the test says that nothing answers.
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-p", &port.to_string(), "-f"]).arg(node.path("sshd_config"));
        let log = fs_err::File::create(node.path("sshd.log")).expect("a log");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.into_parts().0).spawn().expect("sshd starts");
        let site = Self { child, port };
        node.until("sshd", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        site
    }
}

fn files(top: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs_err::read_dir(top).expect("readable") {
        let path = entry.expect("an entry").path();
        let kind = fs_err::symlink_metadata(&path).expect("there").file_type();
        if kind.is_dir() {
            files(&path, found);
        } else if kind.is_file() {
            found.push(path);
        }
    }
}

#[test]
fn a_node_lives_on_an_ssh_source_with_a_key_that_is_roots_and_refuses_a_changed_host_key() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let node = Node::new();
    let (host_key, user_key) = (key(&node, "host_key"), key(&node, "user_key"));
    fs_err::set_permissions(&user_key, std::fs::Permissions::from_mode(0o400)).expect("its mode");
    let site = Site::start(&node, &host_key, &user_key);
    let pin = |host_key: &Path| node.write("known_hosts", &format!("[127.0.0.1]:{} {}\n", site.port, public(host_key)));
    pin(&host_key);
    let bare = node.path("served/app.git").display().to_string();
    run(Command::new("git").args(["init", "-q", "--bare", "-b", "main", &bare]));
    let push = || node.git(&["push", "-q", "--force", &bare, "main"]);
    push();
    let source = format!(
        "user: nobody\nsource: {{repository: 'ssh://root@127.0.0.1:{}{bare}', branch: main, credentials: {{ssh_key: '@DIR@/user_key', known_hosts: '@DIR@/known_hosts'}}}}",
        site.port
    );
    let pools = format!("  w: {{command: '@FIXTURE@', {QUICK}}}");
    node.configure(&pools, &source);
    let checked = node.cli(&["check"]).exits(0);
    assert!(!checked.out.contains("source") && !checked.out.contains("credentials"), "{checked:?}");
    node.boot();
    let second = node.commit(&[("README", "second\n")]);
    push();
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, second.clone());

    // The host shows another key than the one that is pinned.
    let other = key(&node, "other_host_key");
    pin(&other);
    node.commit(&[("README", "third\n")]);
    push();
    let shown = fingerprint(&host_key);
    let known_hosts = node.path("known_hosts").display().to_string();
    node.cli(&["deploy"]).exits(1).says(&["CHANGED", &shown, &fingerprint(&other), "line 1", &known_hosts, &public(&host_key)]);
    node.same(node.live().0, second.clone());
    node.state("w", "ready");
    node.cli(&["check"]).exits(0).says(&["CHANGED", &shown]);
    node.write("known_hosts", "");
    node.cli(&["check"]).exits(0).says(&["is not known", &shown]);

    // A key that is not registered there.
    pin(&host_key);
    let stranger = key(&node, "stranger");
    node.write("authorized_keys", &(public(&stranger) + "\n"));
    node.cli(&["check"]).exits(0).says(&["does not let `root` in", &fingerprint(&user_key)]);

    // What was secret stands nowhere but in its file.
    let text = fs_err::read_to_string(&user_key).expect("a key");
    let piece = &text.lines().nth(3).expect("a fourth line")[..40];
    let mut all = Vec::new();
    files(&node.root(""), &mut all);
    all.push(node.path("agent.log"));
    assert!(all.len() > 10, "{all:?}");
    for file in all {
        let bytes = fs_err::read(&file).unwrap_or_default();
        assert!(!bytes.windows(piece.len()).any(|window| window == piece.as_bytes()), "{}", file.display());
    }
    for said in [node.cli(&["status", "--json"]).out, node.cli(&["events", "--json"]).out, node.cli(&["check", "--explain"]).out] {
        assert!(!said.contains(piece), "{said}");
    }

    // What `check` says of the key's file.
    let mode = |mode| fs_err::set_permissions(&user_key, std::fs::Permissions::from_mode(mode)).expect("its mode");
    mode(0o404);
    node.cli(&["check", "--offline"]).exits(78).says(&["everybody on this machine may read", "chmod 0400"]);
    mode(0o400);
    run(Command::new("chown").arg("nobody").arg(&user_key));
    node.cli(&["check", "--offline"]).exits(0).says(&["warning: source.credentials.ssh_key: user `nobody` may read"]);
    run(Command::new("ssh-keygen").args(["-q", "-p", "-P", "", "-N", "a passphrase", "-f"]).arg(&user_key));
    node.cli(&["check", "--offline"]).exits(78).says(&["cannot be used: it is encrypted with a passphrase"]);
}

#[test]
fn check_says_what_to_install_when_there_is_no_client() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let node = Node::new();
    node.configure("  w: {command: '@FIXTURE@'}", "user: nobody\nsource: {repository: 'git@localhost:x', branch: main}");
    // In a mount namespace of its own, the client is something that cannot be run.
    let mut command = Command::new("unshare");
    command.args([
        "-m",
        "sh",
        "-ec",
        "mount --bind /dev/null /usr/bin/ssh; exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_selfstart"),
        "--config",
    ]);
    command.arg(node.path("config.yaml")).args(["check", "--offline"]).stdin(Stdio::null());
    said(&mut command).exits(78).says(&["there is no `ssh` client on this machine", "hint: install openssh-client"]);
}
