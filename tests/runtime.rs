//! The helper that finds a release's ruby, node and python, alone: the real binary, trees as each manager makes them, and rbenv and pyenv
//! themselves where they are.
//!
//! Needed: `bash`, `ruby` and Debian's `rbenv` (.ci/run installs them). pyenv is in no package of Debian 12: without one in `~/.pyenv` its
//! part says that it was left out, and its tree is tested all the same.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// As `agent::launch` has it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().expect("a folder") };
        fs_err::create_dir_all(machine.path("release")).expect("made");
        machine
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        fs_err::create_dir_all(path.parent().expect("below")).expect("made");
        fs_err::write(&path, text.replace("@DIR@", &self.dir.path().display().to_string())).expect("written");
        if text.starts_with("#!") {
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        }
    }

    /// A program that knows its version.
    fn program(&self, below: &str, says: &str) {
        self.write(below, &format!("#!/bin/sh\necho '{says}'\n"));
    }

    /// Asks the helper, with `home` as the home; `@DIR@` in what it answers is this machine's folder.
    fn ask(&self, setting: Value) -> Value {
        let request = json!({"release": self.path("release"), "setting": setting, "user": "deploy"});
        let mut helper = Command::new(env!("CARGO_BIN_EXE_selfstart"))
            .arg("internal-runtime")
            .env_clear()
            .envs([("PATH", PATH), ("LANG", "C.UTF-8"), ("USER", "deploy")])
            .env("HOME", self.path("home"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the helper");
        helper.stdin.take().expect("its input").write_all(request.to_string().as_bytes()).expect("asked");
        let said = helper.wait_with_output().expect("its end").stdout;
        let said = String::from_utf8(said).expect("text").replace(&self.dir.path().display().to_string(), "@DIR@");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    #[track_caller]
    fn found(&self, setting: Value) -> Found {
        let said = self.ask(setting);
        let ok = said.get("ok").unwrap_or_else(|| panic!("{said}"));
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let tools = ok["tools"].as_array().expect("tools").iter();
        Found {
            tools: tools
                .map(|it| format!("{} {} {} {}", text(&it["tool"]), text(&it["version"]), text(&it["manager"]), text(&it["program"])))
                .collect(),
            vars: ok["vars"].as_object().expect("vars").iter().map(|(name, value)| (name.clone(), text(value))).collect(),
        }
    }

    #[track_caller]
    fn missing(&self, setting: Value) -> String {
        self.ask(setting)["missing"].as_str().expect("it is missing").to_owned()
    }
}

struct Found {
    tools: Vec<String>,
    vars: BTreeMap<String, String>,
}

impl Found {
    /// The variables but PATH, of which only what is new is returned.
    fn shown(&self) -> (Vec<&str>, String, Vec<String>) {
        let path = self.vars.get("PATH").map_or("", |path| path.strip_suffix(PATH).expect("the machine's own comes last"));
        let vars = self.vars.iter().filter(|(name, _)| *name != "PATH").map(|(name, value)| format!("{name}={value}")).collect();
        (self.tools.iter().map(String::as_str).collect(), path.trim_end_matches(':').to_owned(), vars)
    }
}

fn auto() -> Value {
    json!("auto")
}

fn by(manager: &str, version: &str) -> Value {
    json!({"by": {manager: {"version": version}}})
}

/// As `rvm install 3.3.1` and `rvm gemset create flipper` leave it (rvm 1.29, scripts/functions/environment).
fn rvm(machine: &Machine, root: &str) {
    machine.program(&format!("{root}/rubies/ruby-3.3.1/bin/ruby"), "ruby 3.3.1 (2024-04-23 revision c56cd86388) [x86_64-linux]");
    fs_err::create_dir_all(machine.path(&format!("{root}/environments"))).expect("made");
    for set in ["", "@flipper"] {
        let gems = format!("{root}/gems/ruby-3.3.1{set}");
        machine.write(
            &format!("{gems}/environment"),
            &format!(
                "export PATH=\"@DIR@/{gems}/bin:@DIR@/{root}/gems/ruby-3.3.1@global/bin:@DIR@/{root}/rubies/ruby-3.3.1/bin:$PATH\"\n\
                 export GEM_HOME='@DIR@/{gems}'\nexport GEM_PATH='@DIR@/{gems}:@DIR@/{root}/gems/ruby-3.3.1@global'\n\
                 export MY_RUBY_HOME='@DIR@/{root}/rubies/ruby-3.3.1'\nexport IRBRC='@DIR@/{root}/rubies/ruby-3.3.1/.irbrc'\n\
                 unset MAGLEV_HOME\nunset RBXOPT\nexport RUBY_VERSION='ruby-3.3.1'\necho sourced\n"
            ),
        );
        symlink(machine.path(&format!("{gems}/environment")), machine.path(&format!("{root}/environments/ruby-3.3.1{set}")))
            .expect("linked");
    }
    machine.write(&format!("{root}/config/alias"), "default=ruby-3.3.1\n");
}

#[test]
fn rvm_s_environment_files_say_what_a_gemset_brings() {
    let machine = Machine::new();
    rvm(&machine, "home/.rvm");
    let wanted = (
        vec!["ruby 3.3.1 rvm @DIR@/home/.rvm/rubies/ruby-3.3.1/bin/ruby"],
        "@DIR@/home/.rvm/gems/ruby-3.3.1@flipper/bin:@DIR@/home/.rvm/gems/ruby-3.3.1@global/bin:@DIR@/home/.rvm/rubies/ruby-3.3.1/bin"
            .to_owned(),
        [
            "GEM_HOME=@DIR@/home/.rvm/gems/ruby-3.3.1@flipper",
            "GEM_PATH=@DIR@/home/.rvm/gems/ruby-3.3.1@flipper:@DIR@/home/.rvm/gems/ruby-3.3.1@global",
            "IRBRC=@DIR@/home/.rvm/rubies/ruby-3.3.1/.irbrc",
            "MY_RUBY_HOME=@DIR@/home/.rvm/rubies/ruby-3.3.1",
            "RUBY_VERSION=ruby-3.3.1",
        ]
        .map(str::to_owned)
        .to_vec(),
    );
    let found = machine.found(by("rvm", "3.3.1@flipper"));
    assert_eq!(found.shown(), wanted);
    machine.write("release/.ruby-version", "3.3.1\n");
    machine.write("release/.ruby-gemset", "flipper\n");
    assert_eq!(machine.found(auto()).shown(), wanted);
    let text = machine.missing(by("rvm", "3.3.1@other"));
    assert!(text.contains("has ruby-3.3.1 and the environments ruby-3.3.1@flipper; "), "{text}");
    assert!(text.ends_with("`rvm use 3.3.1@other --create` as user `deploy` installs it"), "{text}");
    assert_eq!(machine.found(json!({"by": {"rvm": "files"}})).tools, wanted.0);
}

#[test]
fn nvm_s_aliases_and_versions_are_found_as_nvm_finds_them() {
    let machine = Machine::new();
    machine.write("home/.nvm/nvm.sh", "");
    for version in ["v18.19.0", "v20.11.0"] {
        machine.program(&format!("home/.nvm/versions/node/{version}/bin/node"), version);
    }
    machine.write("home/.nvm/alias/default", "lts/*\n");
    machine.write("home/.nvm/alias/lts/*", "lts/iron\n");
    machine.write("home/.nvm/alias/lts/iron", "v20.11.0\n");
    machine.write("release/.nvmrc", "lts/* # the newest\n");
    let root = "@DIR@/home/.nvm/versions/node/v20.11.0";
    let found = machine.found(auto());
    let (tools, path, vars) = found.shown();
    assert_eq!((tools, path), (vec![&*format!("node 20.11.0 nvm {root}/bin/node")], format!("{root}/bin")));
    assert_eq!(vars, [format!("NVM_BIN={root}/bin"), "NVM_DIR=@DIR@/home/.nvm".to_owned(), format!("NVM_INC={root}/include/node")]);
    assert_eq!(machine.found(by("nvm", "18")).tools, ["node 18.19.0 nvm @DIR@/home/.nvm/versions/node/v18.19.0/bin/node"]);
    let text = machine.missing(by("nvm", "lts/krypton"));
    assert!(text.contains("nvm in `@DIR@/home/.nvm` has v18.19.0, v20.11.0; "), "{text}");
    assert!(text.ends_with("`nvm install lts/krypton` as user `deploy` installs it"), "{text}");
}

#[test]
fn asdf_s_plugins_say_where_programs_are_and_what_they_need() {
    let machine = Machine::new();
    let root = "home/.asdf";
    machine.program(&format!("{root}/installs/ruby/3.3.1/bin/ruby"), "ruby 3.3.1 (2024)");
    machine.program(&format!("{root}/installs/nodejs/20.11.0/bin/node"), "v20.11.0");
    machine.program(&format!("{root}/installs/golang/1.22.1/go/bin/go"), "go version go1.22.1 linux/amd64");
    machine.write(&format!("{root}/plugins/golang/bin/list-bin-paths"), "#!/bin/sh\necho go/bin packages/bin\n");
    machine.write(
        &format!("{root}/plugins/golang/bin/exec-env"),
        "export GOROOT=$ASDF_INSTALL_PATH/go GOPATH=$ASDF_INSTALL_PATH/packages\necho said\n",
    );
    machine.write("release/.tool-versions", "ruby 3.3.1\nnodejs 20.11.0 # lts\ngolang 1.22.1\nterraform 1.5.0\n");
    let found = machine.found(auto());
    let (tools, path, vars) = found.shown();
    let at = |below: &str| format!("@DIR@/{root}/installs/{below}");
    assert_eq!(
        tools,
        [
            format!("ruby 3.3.1 asdf {}", at("ruby/3.3.1/bin/ruby")),
            format!("node 20.11.0 asdf {}", at("nodejs/20.11.0/bin/node")),
            format!("go 1.22.1 asdf {}", at("golang/1.22.1/go/bin/go")),
        ]
    );
    let entries = ["ruby/3.3.1/bin", "nodejs/20.11.0/bin", "golang/1.22.1/go/bin", "golang/1.22.1/packages/bin"].map(at);
    assert_eq!(path, entries.join(":"));
    let wanted = [
        "ASDF_DATA_DIR=@DIR@/home/.asdf".to_owned(),
        "ASDF_GOLANG_VERSION=1.22.1".into(),
        "ASDF_NODEJS_VERSION=20.11.0".into(),
        "ASDF_RUBY_VERSION=3.3.1".into(),
        format!("GOPATH={}", at("golang/1.22.1/packages")),
        format!("GOROOT={}", at("golang/1.22.1/go")),
    ];
    assert_eq!(vars, wanted);
    let notes = machine.ask(auto())["ok"]["notes"].clone();
    assert_eq!(notes, json!(["terraform 1.5.0 (`.tool-versions`) is not installed and is left out"]));
}

#[test]
fn mise_is_asked_for_its_own_environment_and_without_its_program_its_tree_counts() {
    let machine = Machine::new();
    let root = "home/.local/share/mise";
    machine.program(&format!("{root}/installs/ruby/3.3.1/bin/ruby"), "ruby 3.3.1 (2024)");
    symlink("./3.3.1", machine.path(&format!("{root}/installs/ruby/3.3"))).expect("linked");
    machine.program(&format!("{root}/installs/node/20.11.0/bin/node"), "v20.11.0");
    machine.write("release/mise.toml", "[env]\nRAILS_ENV = 'production'\n[tools]\nruby = '3.3'\nnode = ['20', '18']\n");
    let found = machine.found(auto());
    let (tools, path, vars) = found.shown();
    let at = |below: &str| format!("@DIR@/{root}/installs/{below}");
    assert_eq!(
        tools,
        [format!("ruby 3.3.1 mise {}", at("ruby/3.3/bin/ruby")), format!("node 20.11.0 mise {}", at("node/20.11.0/bin/node"))]
    );
    assert_eq!(path, [at("ruby/3.3/bin"), at("node/20.11.0/bin")].join(":"));
    assert_eq!(vars, [format!("MISE_DATA_DIR=@DIR@/{root}"), "MISE_NODE_VERSION=20.11.0".into(), "MISE_RUBY_VERSION=3.3".into()]);
    // Its program says what `[env]` comes to; it must trust the release, and is not to fetch anything.
    machine.write(
        "home/.local/bin/mise",
        "#!/bin/sh\n[ \"$*\" = 'env --json' ] && [ \"$MISE_TRUSTED_CONFIG_PATHS\" = \"$PWD\" ] && [ \"$MISE_OFFLINE\" = 1 ] || exit 3\n\
         echo \"{\\\"PATH\\\": \\\"$PWD/bin:$PATH\\\", \\\"RAILS_ENV\\\": \\\"production\\\", \\\"__MISE_DIFF\\\": \\\"x\\\", \\\"HOME\\\": \\\"/x\\\"}\"\n",
    );
    let found = machine.found(auto());
    assert_eq!(found.vars["RAILS_ENV"], "production");
    assert!(found.vars["PATH"].contains(":@DIR@/release/bin:/usr/local"), "{}", found.vars["PATH"]);
    assert!(!found.vars.contains_key("HOME") && !found.vars.contains_key("__MISE_DIFF"), "{:?}", found.vars);
}

#[test]
fn pyenv_s_tree_gives_all_versions_of_its_file_and_a_virtual_environment_stands_before_them() {
    let machine = Machine::new();
    for version in ["3.11.7", "3.12.1"] {
        machine.program(&format!("home/.pyenv/versions/{version}/bin/python"), &format!("Python {version}"));
    }
    machine.write("release/.python-version", "3.12\n3.11.7\n");
    let found = machine.found(json!({"by": {"pyenv": "files", "venv": {"version": ".venv"}}}));
    let (tools, path, vars) = found.shown();
    let at = |version: &str| format!("@DIR@/home/.pyenv/versions/{version}/bin");
    assert_eq!(tools, ["python  venv @DIR@/release/.venv/bin/python".to_owned(), format!("python 3.12.1 pyenv {}/python", at("3.12.1"))]);
    assert_eq!(path, format!("@DIR@/release/.venv/bin:{}:{}", at("3.12.1"), at("3.11.7")));
    assert_eq!(vars, ["PYENV_ROOT=@DIR@/home/.pyenv", "PYENV_VERSION=3.12.1:3.11.7", "VIRTUAL_ENV=@DIR@/release/.venv"]);
}

#[test]
fn what_does_not_run_or_is_not_whole_is_said_and_never_taken_from_elsewhere() {
    let machine = Machine::new();
    machine.write("release/.ruby-version", "3.3.1\n");
    machine.write("home/.rbenv/versions/3.3.1/bin/ruby", "#!/nowhere/ruby\n");
    let text = machine.missing(auto());
    assert!(
        text.starts_with("ruby (rbenv, `.ruby-version` says 3.3.1): `@DIR@/home/.rbenv/versions/3.3.1/bin/ruby --version`: "),
        "{text}"
    );
    // The folder is there, the program is not: the machine's would be run.
    fs_err::rename(machine.path("home/.rbenv/versions/3.3.1/bin/ruby"), machine.path("home/.rbenv/versions/3.3.1/bin/irb")).expect("moved");
    let text = machine.missing(auto());
    assert!(text.ends_with("`/usr/bin/ruby` would be run instead: what is installed is not whole"), "{text}");
    machine.write("release/.ruby-version", "3.3.1; rm -rf /\n");
    assert_eq!(machine.ask(auto()), json!({"wrong": "`.ruby-version` names `3.3.1;`, which cannot be a version"}));
    machine.write("release/.ruby-version", "3.3.1\n");
    machine.write("release/mise.toml", "[tools\n");
    assert!(machine.ask(auto())["wrong"].as_str().is_some_and(|text| text.starts_with("`mise.toml` cannot be read: ")));
}

fn clean(program: &str, cwd: &Path, env: &[(&str, &str)], args: &[&str]) -> BTreeMap<String, String> {
    let output = Command::new(program).args(args).current_dir(cwd).env_clear().envs(env.iter().copied()).output();
    let output = output.unwrap_or_else(|error| panic!("`{program}` is needed here, and .ci/run installs it: {error}"));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.split('\0').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Debian's rbenv itself: what it gives a program is what we give it, but for what only it needs.
#[test]
fn rbenv_itself_would_give_the_same_environment() {
    let machine = Machine::new();
    let bin = machine.path("home/.rbenv/versions/3.1.2/bin");
    fs_err::create_dir_all(&bin).expect("made");
    for program in ["ruby", "gem", "irb"] {
        symlink(Path::new("/usr/bin").join(program), bin.join(program)).expect("linked");
    }
    machine.write("release/.ruby-version", "ruby-3.1.2\n");
    let found = machine.found(auto());
    let home = machine.path("home").display().to_string();
    let script = "STDOUT.write(ENV.map { |k, v| \"#{k}=#{v}\" }.join(\"\\0\"))";
    let theirs = clean("rbenv", &machine.path("release"), &[("PATH", PATH), ("HOME", &home)], &["exec", "ruby", "-e", script]);
    let dir = machine.dir.path().display().to_string();
    for name in ["RBENV_ROOT", "RBENV_VERSION"] {
        assert_eq!(found.vars[name].replace("@DIR@", &dir), theirs[name], "{name}");
    }
    let ours: Vec<String> = found.vars["PATH"].replace("@DIR@", &dir).split(':').map(str::to_owned).collect();
    let theirs_path: Vec<&str> = theirs["PATH"].split(':').filter(|entry| !entry.ends_with("/libexec")).collect();
    assert_eq!(ours, theirs_path);
    let own: Vec<&str> = theirs.keys().map(String::as_str).filter(|name| !found.vars.contains_key(*name)).collect();
    assert_eq!(own, ["HOME", "PWD", "RBENV_DIR", "RBENV_HOOK_PATH", "SHLVL"]);
}

/// pyenv itself, with the pythons that are there.
#[test]
fn pyenv_itself_would_give_the_same_environment() {
    let home = std::env::var("HOME").unwrap_or_default();
    let root = Path::new(&home).join(".pyenv");
    let (machine, pyenv) = (Machine::new(), root.join("bin/pyenv"));
    let names =
        fs_err::read_dir(root.join("versions")).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let Some(version) = names.filter(|name| name.starts_with("3.")).max() else {
        println!("LEFT OUT: there is no pyenv with a python in {}; its tree is tested all the same", root.display());
        return;
    };
    let minor = version.rsplit_once('.').map_or(version.as_str(), |(minor, _)| minor);
    machine.write("release/.python-version", &format!("{minor}\n"));
    fs_err::create_dir_all(machine.path("home")).expect("made");
    symlink(&root, machine.path("home/.pyenv")).expect("linked");
    let found = machine.found(auto());
    let script = "import os,sys\nsys.stdout.write('\\0'.join(k+'='+v for k,v in os.environ.items()))";
    let env = [("PATH", PATH), ("HOME", &*home)];
    let theirs = clean(&pyenv.display().to_string(), &machine.path("release"), &env, &["exec", "python", "-c", script]);
    assert_eq!(found.vars["PYENV_VERSION"], theirs["PYENV_VERSION"]);
    let first = |path: &str| path.split(':').next().unwrap_or_default().to_owned();
    assert_eq!(first(&found.vars["PATH"]).replace("@DIR@/home", &home), first(&theirs["PATH"]));
}
