//! ssh through a real sshd on loopback.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Scene, Server, ask, helper_command, serve};

struct Ssh {
    server: Server,
    user: String,
}

fn key(scene: &Scene, name: &str) -> PathBuf {
    let path = scene.path(name);
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status().expect("ssh-keygen runs");
    assert!(made.success());
    path
}

fn public(key: &Path) -> String {
    std::fs::read_to_string(key.with_extension("pub")).expect("there").trim().to_owned()
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
        std::fs::write(scene.path("known_hosts"), format!("[127.0.0.1]:{} {}\n", server.port, public(&host))).expect("written");
        Self { server, user }
    }

    fn url(&self, scene: &Scene) -> String {
        format!("ssh://{}@127.0.0.1:{}{}", self.user, self.server.port, scene.source())
    }

    fn request(&self, scene: &Scene) -> Value {
        let mut request = scene.fetch_request(&self.url(scene));
        request["fetch"]["credentials"] = json!({"ssh": {"key": scene.path("user_key"), "known_hosts": scene.path("known_hosts")}});
        request
    }
}

fn fetch(request: &Value) -> crate::support::Answer {
    // No agent and no home of whoever runs the tests.
    ask(&mut helper_command(), request)
}

#[test]
fn the_right_key_fetches_shallow_and_again() {
    let scene = Scene::new();
    let ssh = Ssh::start(&scene);
    scene.advance("second");
    let head = scene.advance("third");
    let request = ssh.request(&scene);
    assert_eq!(fetch(&request).fetched(), (head.as_str(), vec![]));
    assert_eq!(scene.mirrored(), std::slice::from_ref(&head));
    let head = scene.advance("fourth");
    assert_eq!(fetch(&request).fetched(), (head.as_str(), vec![]));
    assert_eq!(scene.mirrored(), std::slice::from_ref(&head));
    assert_eq!(fetch(&request).bytes(), 0);
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
    assert_eq!(fetch(&request).fetched().0, head);
}

#[test]
fn host_keys_are_never_taken_on_trust() {
    let scene = Scene::new();
    let ssh = Ssh::start(&scene);
    let request = ssh.request(&scene);
    std::fs::write(scene.path("known_hosts"), "").expect("written");
    let answer = fetch(&request);
    assert_eq!(answer.failed().0, "host_key");
    assert!(answer.failed().1.contains("not known"), "{answer:?}");
    assert_eq!(std::fs::read_to_string(scene.path("known_hosts")).expect("there"), "", "nothing was learned");
    let other = key(&scene, "other_host_key");
    std::fs::write(scene.path("known_hosts"), format!("[127.0.0.1]:{} {}\n", ssh.server.port, public(&other))).expect("written");
    let answer = fetch(&request);
    assert_eq!(answer.failed().0, "host_key");
    assert!(answer.failed().1.contains("CHANGED"), "{answer:?}");
}

#[test]
fn wrong_keys_and_wrong_paths_are_told_apart() {
    let scene = Scene::new();
    let ssh = Ssh::start(&scene);
    let mut request = ssh.request(&scene);
    request["fetch"]["url"] = json!(ssh.url(&scene).replace("app.git", "none.git"));
    assert_eq!(fetch(&request).failed().0, "not_found");
    let mut request = ssh.request(&scene);
    request["fetch"]["credentials"]["ssh"]["key"] = json!(key(&scene, "other_key"));
    assert_eq!(fetch(&request).failed().0, "refused");
    request["fetch"]["credentials"]["ssh"]["key"] = json!(scene.path("no_key"));
    let answer = fetch(&request);
    assert!(answer.failed().0 == "refused" && answer.failed().1.contains("no_key"), "{answer:?}");
    let open = key(&scene, "open_key");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).expect("opened");
    std::fs::write(scene.path("authorized_keys"), public(&open)).expect("written");
    request["fetch"]["credentials"]["ssh"]["key"] = json!(open);
    assert_eq!(fetch(&request).failed().0, "refused", "a key that others may read");
    request["fetch"]["credentials"] = json!({"token": "x"});
    assert_eq!(fetch(&request).failed().0, "unsupported");
    let port = ssh.server.port;
    let request = ssh.request(&scene);
    drop(ssh);
    let answer = fetch(&request);
    assert_eq!(answer.failed().0, "unreachable", "port {port}: {answer:?}");
}

#[test]
fn no_ssh_client_and_a_silent_server_are_told() {
    let scene = Scene::new();
    let mut request = scene.fetch_request("git@127.0.0.1:x");
    let answer = ask(helper_command().env("PATH", scene.dir.path()), &request);
    assert!(answer.failed().0 == "unsupported" && answer.failed().2.contains("openssh-client"), "{answer:?}");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    request["fetch"]["url"] = json!(format!("ssh://git@127.0.0.1:{}/x", silent.local_addr().expect("bound").port()));
    request["fetch"]["timeout_millis"] = json!(700);
    let began = Instant::now();
    let answer = fetch(&request);
    assert!(["timeout", "unreachable"].contains(&answer.failed().0), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
