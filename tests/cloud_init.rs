//! The user data in cloud-init/: right for cloud-init by its own schema, and for selfstart by `check`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_yaml::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cloud-init");

fn all() -> Vec<(PathBuf, String)> {
    let entries = fs_err::read_dir(FOLDER).expect("the folder").map(|entry| entry.expect("an entry").path());
    let all: Vec<_> = entries.map(|path| (path.clone(), fs_err::read_to_string(path).expect("text"))).collect();
    assert!(!all.is_empty(), "there is user data");
    all
}

/// Asks cloud-init itself.
fn schema(path: &Path) -> (bool, String) {
    let told = Command::new("cloud-init").args(["schema", "--config-file"]).arg(path).stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } = told.unwrap_or_else(|error| {
        panic!("`cloud-init`: {error}: this test asks the real one; .ci/run gets it, unpacked and not installed, out of Debian's package")
    });
    (status.success(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

fn list(value: &Value) -> Vec<Value> {
    value.as_sequence().cloned().unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[test]
fn the_user_data_is_right_by_cloud_inits_own_schema_which_finds_mistakes() {
    let dir = tempfile::tempdir().expect("a directory");
    for (path, yaml) in all() {
        let (right, told) = schema(&path);
        assert!(right && told.contains("Valid"), "{}: {told}", path.display());
        // It would say so of a mistake.
        for (good, bad) in
            [("permissions: \"0640\"", "permissions: 0640"), ("system: true", "system: perhaps"), ("runcmd:\n", "runcmd: now\nx:\n")]
        {
            assert!(yaml.contains(good), "{good}");
            let broken = dir.path().join("broken.yaml");
            fs_err::write(&broken, yaml.replacen(good, bad, 1)).expect("written");
            let (right, told) = schema(&broken);
            assert!(!right, "{bad}: {told}");
        }
    }
}

#[test]
fn the_configuration_in_the_user_data_is_right_for_selfstart() {
    for (path, yaml) in all() {
        let dir = tempfile::tempdir().expect("a directory");
        let data: Value = serde_yaml::from_str(&yaml).expect("YAML");
        let mut written = Vec::new();
        for file in list(&data["write_files"]) {
            let name = text(&file, "path").strip_prefix("/etc/selfstart/").expect("below /etc/selfstart").to_owned();
            // Users are made after files are written: root is there, and the group is in the image. Nobody else reads.
            assert_eq!((text(&file, "owner"), text(&file, "permissions")), ("root:selfstart", "0640"), "{name}");
            let here = dir.path().to_str().expect("text");
            // Paths of a machine that was made by it; its user is one that is here.
            let content = text(&file, "content").replace("/etc/selfstart", here).replace("/srv/hello", &format!("{here}/root"));
            fs_err::write(dir.path().join(&name), content.replace("user: deploy", "user: nobody")).expect("written");
            written.push(name);
        }
        assert!(written.contains(&"config.yaml".to_owned()), "{written:?}");
        let users = list(&data["users"]);
        assert!(users.iter().any(|user| text(user, "name") == "deploy"), "whom the configuration names is made: {users:?}");
        let config = dir.path().join("config.yaml");
        let told = Command::new(env!("CARGO_BIN_EXE_selfstart"))
            .args(["check", "--offline", "--config"])
            .arg(&config)
            .output()
            .expect("the binary");
        let said = format!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
        assert_eq!(told.status.code(), Some(0), "{}: {said}", path.display());
    }
}

#[test]
fn what_the_user_data_starts_is_a_unit_that_waits_for_it_and_that_nothing_waits_for() {
    for (path, yaml) in all() {
        let data: Value = serde_yaml::from_str(&yaml).expect("YAML");
        for line in list(&data["runcmd"]) {
            let words: Vec<String> = list(&line).iter().filter_map(|word| word.as_str().map(str::to_owned)).collect();
            assert_eq!(words[0], "systemctl", "{}", path.display());
            assert!(words.iter().any(|word| word == "--no-block"), "it runs inside cloud-final.service: {words:?}");
            let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(words.last().expect("a unit"));
            let unit = fs_err::read_to_string(unit).expect("a unit of ours");
            let after = unit.lines().find_map(|line| line.strip_prefix("After=")).unwrap_or_default();
            assert!(after.split(' ').any(|other| other == "cloud-init.service"), "{after}");
            assert!(unit.contains("\nConditionPathExists=/etc/selfstart/config.yaml\n"));
        }
    }
}
