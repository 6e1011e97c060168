//! ssh through a real sshd on loopback, with the real client.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Answer, PATIENCE, Scene, Server, ask, copy_of_helper, helper_command, serve, start};

struct Ssh {
    server: Server,
    user: String,
}

fn keygen(path: &Path, args: &[&str]) {
    let made = Command::new("ssh-keygen").arg("-q").args(args).arg("-f").arg(path).stdout(Stdio::null()).status().expect("ssh-keygen runs");
    assert!(made.success(), "{args:?}");
}

fn key(scene: &Scene, name: &str) -> PathBuf {
    let path = scene.path(name);
    keygen(&path, &["-t", "ed25519", "-N", ""]);
    path
}

/// `ssh-ed25519 AAAA...`, without the comment.
fn public(key: &Path) -> String {
    let text = std::fs::read_to_string(key.with_extension("pub")).expect("there");
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// What OpenSSH itself calls it.
fn fingerprint(key: &Path) -> String {
    let said = Command::new("ssh-keygen").arg("-l").arg("-f").arg(key.with_extension("pub")).output().expect("ssh-keygen runs").stdout;
    String::from_utf8_lossy(&said).split_whitespace().nth(1).expect("a fingerprint").to_owned()
}

impl Ssh {
    /// An sshd that lets in whoever has `user_key`, and known hosts that know it.
    fn start(scene: &Scene) -> Self {
        let (host, user) = (key(scene, "host_key"), key(scene, "user_key"));
        std::fs::write(scene.path("authorized_keys"), format!("{}\n", public(&user))).expect("written");
        if rustix::process::geteuid().is_root() {
            // Its privilege separation wants it, and only the distribution's unit makes it.
            std::fs::create_dir_all("/run/sshd").expect("made");
        }
        let config = scene.path("sshd_config");
        let text = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nListenAddress 127.0.0.1\n",
            host.display(),
            scene.path("authorized_keys").display()
        );
        std::fs::write(&config, text).expect("written");
        let server = serve(|port| {
            // sshd wants its full path, to start itself again for each connection.
            let mut command = Command::new("/usr/sbin/sshd");
            command.args(["-D", "-e", "-f"]).arg(&config).args(["-p", &port.to_string()]);
            command
        });
        let name = Command::new("id").arg("-un").output().expect("id runs");
        let user = String::from_utf8_lossy(&name.stdout).trim().to_owned();
        let ssh = Self { server, user };
        ssh.pin(scene, &host);
        ssh
    }

    fn pin(&self, scene: &Scene, host: &Path) {
        std::fs::write(scene.path("known_hosts"), format!("# ours\n[127.0.0.1]:{} {}\n", self.server.port, public(host))).expect("written");
    }

    fn url(&self, scene: &Scene) -> String {
        format!("ssh://{}@127.0.0.1:{}{}", self.user, self.server.port, scene.source())
    }

    fn request(&self, scene: &Scene) -> Value {
        let mut request = scene.fetch_request(&self.url(scene));
        request["fetch"]["credentials"] = json!({"ssh": {"key": given(&scene.path("user_key")), "known_hosts": scene.path("known_hosts")}});
        request
    }
}

/// A key as the agent hands it over.
fn given(key: &Path) -> Value {
    json!({"path": key, "text": std::fs::read_to_string(key).expect("a key")})
}

/// Fetches with a temporary folder of its own, and holds that nothing is left there.
fn fetch_in(scene: &Scene, request: &Value) -> Answer {
    let tmp = scene.path("tmp");
    std::fs::create_dir_all(&tmp).expect("made");
    // No agent and no home of whoever runs the tests.
    let answer = ask(helper_command().env("TMPDIR", &tmp), request);
    assert_eq!(std::fs::read_dir(&tmp).expect("there").count(), 0, "nothing is left behind: {answer:?}");
    answer
}

fn refused(answer: &Answer, kind: &str, words: &[&str]) {
    let (found, text, hint) = answer.failed();
    assert_eq!(found, kind, "{answer:?}");
    for word in words {
        assert!(text.contains(word) || hint.contains(word), "`{word}` is not in {answer:?}");
    }
}

#[test]
fn the_right_key_fetches_shallow_and_again_and_what_was_pushed_by_force() {
    let scene = Scene::new();
    let ssh = Ssh::start(&scene);
    scene.advance("second");
    let head = scene.advance("third");
    let request = ssh.request(&scene);
    assert_eq!(fetch_in(&scene, &request).fetched(), (head.as_str(), vec![]));
    assert_eq!(scene.mirrored(), std::slice::from_ref(&head));
    let head = scene.advance("fourth");
    assert_eq!(fetch_in(&scene, &request).fetched(), (head.as_str(), vec![]));
    assert_eq!(scene.mirrored(), std::slice::from_ref(&head));
    assert_eq!(fetch_in(&scene, &request).bytes(), 0);
    scene.in_work(&["commit", "-q", "--amend", "-m", "another fourth"]);
    scene.push();
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    assert_eq!(fetch_in(&scene, &request).fetched(), (head.as_str(), vec![]));
    assert!(scene.stage(&head).success);
    scene.mirror_is_sound();
}

#[test]
fn a_path_with_a_quote_and_a_blank_arrives() {
    let scene = Scene::new();
    let ssh = Ssh::start(&scene);
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    std::fs::rename(scene.path("served/app.git"), scene.path("served/it's a! repo.git")).expect("renamed");
    let mut request = ssh.request(&scene);
    request["fetch"]["url"] = json!(ssh.url(&scene).replace("app.git", "it's%20a!%20repo.git"));
    assert_eq!(fetch_in(&scene, &request).fetched().0, head);
}

/// The line that a hint says to put into known_hosts.
fn line_of(answer: &Answer) -> String {
    let hint = answer.failed().2;
    hint.rsplit('`').nth(1).unwrap_or_else(|| panic!("no line: {answer:?}")).to_owned()
}

#[test]
fn host_keys_are_never_taken_on_trust_and_the_verdict_says_which_they_are() {
    let scene = Scene::new();
    let ssh = Ssh::start(&scene);
    let request = ssh.request(&scene);
    let (known_hosts, shown) = (scene.path("known_hosts"), fingerprint(&scene.path("host_key")));
    let marker = format!("[127.0.0.1]:{}", ssh.server.port);
    std::fs::write(&known_hosts, "").expect("written");
    let answer = fetch_in(&scene, &request);
    refused(&answer, "host_key", &["is not known", "ssh-ed25519", &shown, &marker, &known_hosts.display().to_string()]);
    assert_eq!(std::fs::read_to_string(&known_hosts).expect("there"), "", "nothing was learned");
    assert!(scene.mirror().read_dir().expect("made").next().is_none_or(|_| scene.mirror().join("new.git").exists()), "nothing was fetched");
    std::fs::write(&known_hosts, line_of(&answer) + "\n").expect("written");
    fetch_in(&scene, &request).fetched();

    let other = key(&scene, "other_host_key");
    ssh.pin(&scene, &other);
    let answer = fetch_in(&scene, &request);
    let place = format!("line 2 of `{}`", known_hosts.display());
    refused(&answer, "host_key", &["CHANGED", "ssh-ed25519", &shown, &marker, &place, &fingerprint(&other)]);
    std::fs::write(&known_hosts, line_of(&answer) + "\n").expect("written");
    fetch_in(&scene, &request).fetched();

    std::fs::write(&known_hosts, format!("@revoked {marker} {}\n", public(&scene.path("host_key")))).expect("written");
    refused(&fetch_in(&scene, &request), "host_key", &["REVOKED", &shown]);

    std::fs::remove_file(&known_hosts).expect("removed");
    refused(&fetch_in(&scene, &request), "refused", &["known_hosts"]);

    // What the machine knows counts when nothing is pinned; it does not know this one.
    let mut request = request;
    request["fetch"]["credentials"]["ssh"]["known_hosts"] = Value::Null;
    refused(&fetch_in(&scene, &request), "host_key", &["is not known", "/etc/ssh/ssh_known_hosts"]);
}

#[test]
fn wrong_keys_users_and_paths_are_told_apart() {
    let scene = Scene::new();
    let ssh = Ssh::start(&scene);
    let mut request = ssh.request(&scene);
    request["fetch"]["url"] = json!(ssh.url(&scene).replace("app.git", "none.git"));
    refused(&fetch_in(&scene, &request), "not_found", &[]);
    let mut request = ssh.request(&scene);
    let other = key(&scene, "other_key");
    request["fetch"]["credentials"]["ssh"]["key"] = given(&other);
    let who = format!("`{}`", ssh.user);
    refused(&fetch_in(&scene, &request), "refused", &[&who, "offered was", &other.display().to_string(), &fingerprint(&other)]);
    let mut request = ssh.request(&scene);
    request["fetch"]["url"] = json!(ssh.url(&scene).replace(&format!("{}@", ssh.user), "who-is-that@"));
    refused(&fetch_in(&scene, &request), "refused", &["`who-is-that`", "git@", &fingerprint(&scene.path("user_key"))]);
    let mut request = ssh.request(&scene);
    request["fetch"]["credentials"] = json!({"token": "x"});
    refused(&fetch_in(&scene, &request), "unsupported", &[]);
}

#[test]
fn every_usual_kind_of_key_is_taken() {
    let scene = Scene::new();
    let ssh = Ssh::start(&scene);
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    for (at, args) in [
        ["-t", "rsa", "-b", "2048"].as_slice(),
        &["-t", "rsa", "-b", "3072"],
        &["-t", "rsa", "-b", "2048", "-m", "PEM"],
        &["-t", "rsa", "-b", "2048", "-m", "PKCS8"],
        &["-t", "ecdsa", "-b", "256"],
        &["-t", "ecdsa", "-b", "384"],
        &["-t", "ecdsa", "-b", "256", "-m", "PKCS8"],
    ]
    .into_iter()
    .enumerate()
    {
        let key = scene.path(&format!("key{at}"));
        keygen(&key, &[args, &["-N", ""]].concat());
        std::fs::write(scene.path("authorized_keys"), public(&key) + "\n").expect("written");
        let mut request = ssh.request(&scene);
        request["fetch"]["credentials"]["ssh"]["key"] = given(&key);
        let answer = fetch_in(&scene, &request);
        assert_eq!(answer.fetched().0, head, "{args:?}: {answer:?}");
    }
}

#[test]
fn keys_that_cannot_be_used_say_why_before_anybody_is_asked() {
    let scene = Scene::new();
    let mut request = scene.fetch_request("git@127.0.0.1:x");
    for (name, args, words) in [
        ("encrypted", ["-t", "ed25519", "-N", "a passphrase"].as_slice(), "passphrase"),
        ("encrypted_pem", &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "a passphrase"], "passphrase"),
        ("encrypted_pkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8", "-N", "a passphrase"], "passphrase"),
        ("long_curve", &["-t", "ecdsa", "-b", "521", "-N", ""], "ecdsa-sha2-nistp521"),
    ] {
        let key = scene.path(name);
        keygen(&key, args);
        request["fetch"]["credentials"] = json!({"ssh": {"key": given(&key)}});
        refused(&fetch_in(&scene, &request), "refused", &[&key.display().to_string(), words]);
    }
    request["fetch"]["credentials"] = json!({"ssh": {"key": given(&scene.path("encrypted").with_extension("pub"))}});
    refused(&fetch_in(&scene, &request), "refused", &["public half"]);
}

/// An ssh-agent with these keys.
fn ssh_agent(scene: &Scene, keys: &[PathBuf]) -> (Server, PathBuf) {
    let socket = scene.path("agent.sock");
    let child = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().expect("ssh-agent starts");
    let agent = Server { child, port: 0 };
    until("the agent's socket", || socket.exists().then_some(()));
    for key in keys {
        let added = Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &socket).status().expect("ssh-add runs");
        assert!(added.success());
    }
    (agent, socket)
}

#[test]
fn an_agent_that_is_named_is_asked_and_no_other() {
    let scene = Scene::new();
    let ssh = Ssh::start(&scene);
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    let mut request = ssh.request(&scene);
    let known_hosts = scene.path("known_hosts");
    let (agent, socket) = ssh_agent(&scene, &[key(&scene, "other_key"), scene.path("user_key")]);
    request["fetch"]["credentials"] = json!({"ssh": {"agent": socket, "known_hosts": known_hosts}});
    assert_eq!(fetch_in(&scene, &request).fetched().0, head);

    // Not asked for, not asked: neither beside a key of our own, nor without one.
    let mut own = ssh.request(&scene);
    own["fetch"]["credentials"]["ssh"]["key"] = given(&key(&scene, "third_key"));
    let tmp = scene.path("tmp");
    let answer = ask(helper_command().env("SSH_AUTH_SOCK", &socket).env("TMPDIR", &tmp), &own);
    refused(&answer, "refused", &["third_key"]);
    assert!(!answer.failed().1.contains("other_key"), "{answer:?}");
    own["fetch"]["credentials"] = json!({"ssh": {"known_hosts": known_hosts}});
    let answer = ask(helper_command().env("SSH_AUTH_SOCK", &socket), &own);
    assert!(answer.failed().0 == "refused" && !answer.failed().1.contains("user_key"), "{answer:?}");

    let removed = Command::new("ssh-add").arg("-qD").env("SSH_AUTH_SOCK", &socket).stderr(Stdio::null()).status().expect("ssh-add runs");
    assert!(removed.success());
    refused(&fetch_in(&scene, &request), "refused", &["no key was offered", "ssh-add -l"]);
    drop(agent);
    refused(&fetch_in(&scene, &request), "refused", &["agent.sock"]);
}

#[test]
fn no_network_is_told_as_such() {
    let scene = Scene::new();
    let mut request = scene.fetch_request("ssh://git@127.0.0.1:1/x");
    let user_key = key(&scene, "user_key");
    request["fetch"]["credentials"] = json!({"ssh": {"key": given(&user_key)}});
    refused(&fetch_in(&scene, &request), "unreachable", &["127.0.0.1", "Connection refused"]);
    request["fetch"]["url"] = json!("git@no-such-host.invalid:x");
    refused(&fetch_in(&scene, &request), "unreachable", &["no-such-host.invalid", "resolve"]);

    // Nobody answers: neither at an address that is routed nowhere (192.0.2.0/24, RFC 5737) nor at a port that says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("ssh://git@127.0.0.1:{}/x", silent.local_addr().expect("bound").port());
    for url in ["git@192.0.2.1:x", silent.as_str()] {
        request["fetch"]["url"] = json!(url);
        for timeout in [700, 2_500] {
            request["fetch"]["timeout_millis"] = json!(timeout);
            let began = Instant::now();
            let answer = fetch_in(&scene, &request);
            assert!(["timeout", "unreachable"].contains(&answer.failed().0), "{url}: {answer:?}");
            assert!(began.elapsed() < Duration::from_secs(6), "{url}: {:?}", began.elapsed());
        }
    }
}

#[test]
fn without_a_client_it_says_what_to_install() {
    let scene = Scene::new();
    let answer = ask(helper_command().env("PATH", scene.dir.path()), &scene.fetch_request("git@127.0.0.1:x"));
    refused(&answer, "unsupported", &["openssh-client"]);
}

#[test]
fn the_client_is_told_no_secret_and_gets_nothing_of_our_environment() {
    let scene = Scene::new();
    let user_key = key(&scene, "user_key");
    std::fs::create_dir(scene.path("bin")).expect("made");
    let (fake, told) = (scene.path("bin/ssh"), scene.path("told"));
    let text = format!(
        "#!/bin/sh\ntr '\\0' '\\n' </proc/$$/cmdline >{0}\necho == >>{0}\ntr '\\0' '\\n' </proc/$$/environ >>{0}\nexit 255\n",
        told.display()
    );
    // Not by us: while we write it, a child of another test could hold it open, and it could not be executed.
    let mut write = Command::new("sh");
    write.args(["-c", "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"", "sh", &text]).arg(&fake);
    assert!(write.status().expect("sh runs").success());
    std::fs::write(scene.path("known_hosts"), "").expect("written");
    let mut request = scene.fetch_request("me@[::1]:it's/x");
    request["fetch"]["credentials"] = json!({"ssh": {"key": given(&user_key), "known_hosts": scene.path("known_hosts")}});
    let path = format!("{}:{}", scene.path("bin").display(), std::env::var("PATH").expect("set"));
    let answer = ask(
        helper_command().env("PATH", path).env("SSH_AUTH_SOCK", "/nowhere").env("LD_PRELOAD_X", "1").env("SSH_ASKPASS", "/x"),
        &request,
    );
    refused(&answer, "unreachable", &[]);
    let told = std::fs::read_to_string(&told).expect("told");
    let (words, vars) = told.split_once("==\n").expect("both");
    let words: Vec<&str> = words.lines().collect();
    assert!(words.windows(2).any(|pair| pair == ["-F", "none"]), "{words:?}");
    for wanted in ["BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "IdentityFile=none", "GlobalKnownHostsFile=/dev/null"]
    {
        assert!(words.windows(2).any(|pair| pair == ["-o", wanted]), "{wanted}: {words:?}");
    }
    assert_eq!(words[words.len() - 3..], ["--", "me@::1", r"git-upload-pack 'it'\''s/x'"], "{words:?}");
    let names: Vec<&str> = vars.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| ["PATH", "LC_ALL", "PWD"].contains(name)), "{vars}");
    assert!(!told.contains(&material(&user_key)) && !told.contains("user_key"), "{told}");
}

/// A piece of a private key's file that stands for it.
fn material(key: &Path) -> String {
    std::fs::read_to_string(key).expect("a key").lines().nth(3).expect("a fourth line")[..40].to_owned()
}

#[track_caller]
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Makes the server wait, once it has let us in, until `go` is there; it says so in `inside`.
fn hold(scene: &Scene) {
    let dir = scene.dir.path().display();
    let script = format!(
        "touch {dir}/inside; while test -d {dir} && test ! -e {dir}/go; do sleep 0.05; done; eval exec \\\"$SSH_ORIGINAL_COMMAND\\\""
    );
    let script = script.replace("\\\"", "");
    std::fs::write(scene.path("authorized_keys"), format!("command=\"{script}\" {}\n", public(&scene.path("user_key")))).expect("written");
}

/// A client that the helper has started.
fn client_of(helper: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Looks everywhere where `nobody` may: arguments, environments, descriptors and memory of all processes, and files below these folders.
const SPY: &str = r#"
import os, sys, glob
needles = [bytes.fromhex(word) for word in sys.argv[1].split(",")]
hits = []
def look(where, data):
    if any(needle in data for needle in needles): hits.append(where)
def read(path, limit=1 << 22):
    try:
        # A pipe would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try: return os.read(fd, limit)
        finally: os.close(fd)
    except OSError: return b""
for pid in os.listdir("/proc"):
    if not pid.isdigit() or int(pid) == os.getpid(): continue
    base = "/proc/" + pid
    for name in ("cmdline", "environ"):
        # Arguments are everybody's to read; this program's own parent has the needles in hexadecimal only.
        look(base + "/" + name, read(base + "/" + name))
    for fd in glob.glob(base + "/fd/*"): look(fd, read(fd))
    try:
        with open(base + "/maps") as maps, open(base + "/mem", "rb", 0) as mem:
            for line in maps:
                span, mode = line.split()[:2]
                if not mode.startswith("rw"): continue
                low, high = (int(word, 16) for word in span.split("-"))
                try:
                    mem.seek(low); look(base + "/mem", mem.read(min(high - low, 1 << 26)))
                except (OSError, ValueError, OverflowError): pass
    except OSError: pass
for top in sys.argv[2:]:
    for folder, _, files in os.walk(top):
        for name in files: look(os.path.join(folder, name), read(os.path.join(folder, name)))
print("\n".join(hits))
"#;

fn spy(needles: &[&[u8]], folders: &[PathBuf]) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let needles: Vec<String> = needles.iter().map(|needle| hex(needle)).collect();
    let mut command = Command::new("python3");
    command.args(["-c", SPY, &needles.join(",")]).args(folders).uid(65534).gid(65534).current_dir("/");
    let output = command.output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn while_a_fetch_runs_the_key_is_read_by_nobody_of_its_own_user_and_the_client_ends_with_its_helper() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    let ssh = Ssh::start(&scene);
    let user_key = scene.path("user_key");
    std::fs::set_permissions(scene.dir.path(), std::fs::Permissions::from_mode(0o755)).expect("opened");
    for (dir, mode) in [("repo.git", 0o777), ("tmp", 0o777)] {
        std::fs::create_dir(scene.path(dir)).expect("made");
        std::fs::set_permissions(scene.path(dir), std::fs::Permissions::from_mode(mode)).expect("opened");
    }
    hold(&scene);
    let binary = copy_of_helper(&scene);
    // As the keeper hands a request over: a file in memory that is the agent's.
    let fd = rustix::fs::memfd_create("request", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    rustix::fs::fchmod(&fd, rustix::fs::Mode::RUSR).expect("closed");
    let mut file = std::fs::File::from(fd);
    std::io::Write::write_all(&mut file, ssh.request(&scene).to_string().as_bytes()).expect("written");
    std::io::Seek::rewind(&mut file).expect("rewound");
    let mut command = Command::new(&binary);
    command.arg("internal-git").env_clear().env("PATH", std::env::var_os("PATH").expect("set")).env("TMPDIR", scene.path("tmp"));
    command.uid(65534).gid(65534).current_dir("/").stdin(file).stdout(Stdio::piped()).stderr(Stdio::piped());
    let helper = command.spawn().expect("the helper starts");
    let pid = helper.id();
    until("log-in", || scene.path("inside").exists().then_some(()));
    let client = client_of(pid).expect("a client");

    // The key as it stands in its file, and the secret in it: 32 bytes before the public half comes for the last time.
    let text = std::fs::read_to_string(&user_key).expect("a key");
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let decode = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("base64 runs");
    std::io::Write::write_all(&mut decode.stdin.as_ref().expect("a pipe"), body.as_bytes()).expect("written");
    let raw = decode.wait_with_output().expect("decoded").stdout;
    let seed_at = raw.windows(4).rposition(|window| window == [0, 0, 0, 64]).expect("the secret") + 4;
    let needles: [&[u8]; 2] = [material(&user_key).as_bytes().to_vec().leak(), &raw[seed_at..seed_at + 32]];
    let folders = [scene.path("tmp"), scene.path("repo.git"), scene.path("releases")];

    // It sees what can be seen: the same in a process of that user that hides nothing.
    let open = Command::new("sleep").arg("600").env("KEY", material(&user_key)).uid(65534).gid(65534).stdin(Stdio::null()).spawn();
    let open = Server { child: open.expect("started"), port: 0 };
    let seen = spy(&needles, &folders);
    let of_open = format!("/proc/{}/", open.child.id());
    assert!(seen.contains(&format!("{of_open}environ")), "{seen:?}");
    let others: Vec<&String> = seen.iter().filter(|place| !place.starts_with(&of_open)).collect();
    assert!(others.is_empty(), "the helper is {pid}, its client {client}: {others:?}");
    drop(open);
    // The agent's socket cannot be found any more.
    assert_eq!(std::fs::read_dir(scene.path("tmp")).expect("there").count(), 0);

    rustix::process::kill_process(rustix::process::Pid::from_child(&helper), rustix::process::Signal::KILL).expect("killed");
    let mut helper = Server { child: helper, port: 0 };
    helper.child.wait().expect("gone");
    until("end of the client", || {
        let stat = std::fs::read_to_string(format!("/proc/{client}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });

    // And a whole one, as that user.
    std::fs::write(scene.path("go"), "").expect("written");
    let mut command = Command::new(&binary);
    command.arg("internal-git").env_clear().env("PATH", std::env::var_os("PATH").expect("set")).env("TMPDIR", scene.path("tmp"));
    command.uid(65534).gid(65534).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = start(&mut command, &ssh.request(&scene));
    let output = child.wait_with_output().expect("an end");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(!String::from_utf8_lossy(&output.stdout).contains(&material(&user_key)));
}
