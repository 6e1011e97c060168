//! Who uses a release, seen by the configured user.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{Scene, Server, ask, copy_of_helper};

#[test]
fn the_app_user_sees_its_own_processes_and_says_which_it_cannot_see() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    std::fs::set_permissions(scene.dir.path(), std::fs::Permissions::from_mode(0o755)).expect("opened");
    let release = "20261122T101530Z-1a2b3c4";
    std::fs::create_dir(scene.path("releases").join(release)).expect("made");
    let start = |uid: u32| {
        let child = Command::new("sleep")
            .arg("600")
            .current_dir(scene.path("releases").join(release))
            .uid(uid)
            .gid(uid)
            .stdin(Stdio::null())
            .spawn();
        Server { child: child.expect("started"), port: 0 }
    };
    let (own, foreign) = (start(65534), start(0));
    let binary = copy_of_helper(&scene);
    let mut command = Command::new(&binary);
    command.arg("internal-git").env_clear().uid(65534).gid(65534).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let answer = ask(&mut command, &json!({"uses": {"releases": scene.path("releases")}}));
    let uses = &answer.last["ok"]["uses"];
    assert_eq!(uses["by_release"], json!({release: [own.child.id()]}), "{answer:?}");
    assert_eq!(uses["unknown"][foreign.child.id().to_string()], json!(0), "{answer:?}");
    assert!(uses["known"].as_array().is_some_and(|known| known.contains(&json!(own.child.id()))), "{answer:?}");
}
