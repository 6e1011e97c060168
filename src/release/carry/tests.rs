//! What is carried, and above all what is not.

use super::*;

fn release(dir: &tempfile::TempDir, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let path = dir.path().join(name);
    for (file, text) in files {
        let file = path.join(file);
        fs_err::create_dir_all(file.parent().expect("below")).expect("made");
        fs_err::write(file, text).expect("written");
    }
    path
}

fn before(release: &Path, about: &str, candidates: &[Candidate]) -> Reply {
    let inputs = vec!["Gemfile.lock".into(), "app/assets".into()];
    let request =
        Request::Before { release: release.to_owned(), inputs, about: about.into(), programs: Vec::new(), candidates: candidates.to_vec() };
    answer(request).expect("answered")
}

fn run(reply: Reply) -> (String, String, Begun) {
    match reply {
        Reply::Run { key, why, begun } => (key, why, begun.expect("times of birth")),
        other => panic!("{other:?}"),
    }
}

fn ended(release: &Path, begun: Begun, linked: &[PathBuf]) -> Reply {
    answer(Request::After { release: release.to_owned(), begun, linked: linked.to_vec() }).expect("answered")
}

/// Runs a step as the agent does.
fn step(release: &Path, line: &str) -> Result<StepMade, String> {
    let (key, _, begun) = run(before(release, "cmd", &[]));
    sh(release, line);
    match ended(release, begun, &["log".into(), "cache".into(), "nowhere".into()]) {
        Reply::Made(made, left) => Ok(StepMade { key, made, left: Some(left) }),
        Reply::Unclear(why) => Err(why),
        other => panic!("{other:?}"),
    }
}

fn sh(release: &Path, line: &str) {
    let mut command = std::process::Command::new("/bin/sh");
    let done = command.args(["-euc", line]).current_dir(release).status().expect("a shell");
    assert!(done.success(), "{line}");
}

const TREE: &[(&str, &str)] = &[("Gemfile.lock", "rack"), ("app/assets/a.js", "a"), ("app/model.rb", "m")];

#[test]
fn a_key_is_of_what_is_named_and_of_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = |name: &str, tree: &[(&str, &str)], about: &str| run(before(&release(&dir, name, tree), about, &[])).0;
    let first = key("1", TREE, "cmd");
    assert_eq!(key("2", &[("Gemfile.lock", "rack"), ("app/assets/a.js", "a"), ("app/model.rb", "other")], "cmd"), first);
    let others = [
        key("3", TREE, "other command"),
        key("4", &[("Gemfile.lock", "rake"), ("app/assets/a.js", "a")], "cmd"),
        key("5", &[("Gemfile.lock", "rack"), ("app/assets/b.js", "a")], "cmd"),
        key("6", &[("Gemfile.lock", "rack"), ("app/assets/a.js", "a"), ("app/assets/b.js", "")], "cmd"),
        key("7", &[("Gemfile.lock", "rack")], "cmd"),
        key("8", &[("Gemfile.lock", "racka"), ("app/assets/.js", "")], "cmd"),
    ];
    for (i, other) in others.iter().enumerate() {
        assert!(*other != first && !others[..i].contains(other), "{i}");
    }
    let program = release(&dir, "9", TREE);
    fs_err::set_permissions(program.join("Gemfile.lock"), std::fs::Permissions::from_mode(0o755)).expect("set");
    assert_ne!(run(before(&program, "cmd", &[])).0, first);
}

#[test]
fn what_a_step_made_is_copied_and_names_the_new_release() {
    let dir = tempfile::tempdir().expect("a folder");
    let old = release(&dir, "20260101T000000Z-aaaaaaa", TREE);
    let (key, _, begun) = run(before(&old, "cmd", &[]));
    let script = format!("#!{}/vendor/bin/x\n", old.display());
    release(&dir, "20260101T000000Z-aaaaaaa", &[("vendor/lib/x.rb", "x"), ("vendor/bin/x", &script), ("app/built", "1")]);
    fs_err::write(old.join("vendor/lib/b"), format!("\0{}", old.display())).expect("written");
    fs_err::set_permissions(old.join("vendor/bin/x"), std::fs::Permissions::from_mode(0o755)).expect("set");
    fs_err::set_permissions(old.join("vendor/lib/x.rb"), std::fs::Permissions::from_mode(0o444)).expect("set");
    fs_err::os::unix::fs::symlink(old.join("vendor/lib"), old.join("vendor/link")).expect("linked");
    let Reply::Made(made, left) = ended(&old, begun, &[]) else { panic!("unclear") };
    assert_eq!(made, [PathBuf::from("app/built"), "vendor".into()]);

    let new = release(&dir, "20260102T000000Z-bbbbbbb", TREE);
    let candidate = Candidate { name: "old".into(), path: old.clone(), steps: vec![StepMade { key: key.clone(), made, left: Some(left) }] };
    let candidates = std::slice::from_ref(&candidate);
    assert!(
        matches!(before(&new, "cmd", candidates), Reply::Carried { from, step } if from == "old" && step.made == candidate.steps[0].made && step.left != candidate.steps[0].left)
    );
    assert_eq!(fs_err::read_to_string(new.join("vendor/bin/x")).expect("read"), format!("#!{}/vendor/bin/x\n", new.display()));
    assert_eq!(fs_err::read_link(new.join("vendor/link")).expect("a link"), new.join("vendor/lib"));
    assert_eq!(fs_err::read(new.join("vendor/lib/b")).expect("read"), format!("\0{}", old.display()).into_bytes());
    for file in ["vendor/bin/x", "vendor/lib/x.rb", "vendor/lib"] {
        let [was, is] = [&old, &new].map(|release| fs_err::metadata(release.join(file)).expect("there"));
        assert_eq!((was.mode(), was.modified().expect("a time")), (is.mode(), is.modified().expect("a time")), "{file}");
        assert_ne!(was.ino(), is.ino(), "{file} is shared");
    }
    // What is copied is of no release but its own.
    fs_err::write(new.join("app/built"), "2").expect("written");
    assert_eq!(fs_err::read_to_string(old.join("app/built")).expect("read"), "1");

    let taken = release(&dir, "20260103T000000Z-ccccccc", TREE);
    release(&dir, "20260103T000000Z-ccccccc", &[("vendor/own", "")]);
    assert_eq!(run(before(&taken, "cmd", candidates)).1, "the revision has `vendor` itself now");
    fs_err::remove_file(old.join("app/built")).expect("removed");
    let last = release(&dir, "20260104T000000Z-ddddddd", TREE);
    assert_eq!(run(before(&last, "cmd", candidates)).1, "`app/built` is no longer in old");
    assert!(fs_err::symlink_metadata(last.join("vendor")).is_err(), "nothing is copied by halves");
}

#[test]
fn nothing_is_copied_through_a_link_or_out_of_the_release() {
    let dir = tempfile::tempdir().expect("a folder");
    let old = release(&dir, "old", TREE);
    release(&dir, "old", &[("vendor/x/y", "1")]);
    let (key, ..) = run(before(&old, "cmd", &[]));
    let shared = release(&dir, "shared", &[("x", "")]);
    let with = |made: &str| Candidate {
        name: "old".into(),
        path: old.clone(),
        steps: vec![StepMade { key: key.clone(), made: vec![made.into()], left: None }],
    };
    let new = release(&dir, "new", TREE);
    fs_err::os::unix::fs::symlink(&shared, new.join("vendor")).expect("linked");
    assert_eq!(run(before(&new, "cmd", &[with("vendor/x/y")])).1, "`vendor/x` is no folder of the revision any more");
    assert!(run(before(&new, "cmd", &[with("../old/vendor")])).1.ends_with("is no path within a release"));
    assert!(run(before(&new, "cmd", &[with("/etc")])).1.ends_with("is no path within a release"));
}

#[test]
fn a_step_that_does_more_than_to_make_something_is_never_skipped() {
    let dir = tempfile::tempdir().expect("a folder");
    for (i, (line, why)) in [
        ("echo changed > Gemfile.lock", "it changes `Gemfile.lock`, which is not its own"),
        ("chmod +x app/model.rb", "it changes `app/model.rb`, which is not its own"),
        ("touch -d @1000 app/model.rb", "it changes `app/model.rb`, which is not its own"),
        ("mv app/model.rb app/moved.rb", "it changes `app/moved.rb`, which is not its own"),
        ("mkdir new; ln app/model.rb new/x", "it changes `app/model.rb`, which is not its own"),
        ("rm app/model.rb", "it removes, renames or changes files or folders of the revision"),
        ("mkdir new; mv app/model.rb new/x", "it removes, renames or changes files or folders of the revision"),
        ("chmod 700 app", "it removes, renames or changes files or folders of the revision"),
        ("mv app moved", "it removes, renames or changes files or folders of the revision"),
        ("rm -r app; mkdir app", "it removes, renames or changes files or folders of the revision"),
    ]
    .into_iter()
    .enumerate()
    {
        let release = release(&dir, &i.to_string(), TREE);
        sh(&release, "chmod 755 app; chmod 644 app/model.rb");
        assert_eq!(step(&release, &format!("mkdir made; {line}")), Err(why.to_owned()), "{line}");
    }
    let quiet = release(&dir, "quiet", TREE);
    assert_eq!(step(&quiet, "cat Gemfile.lock app/model.rb").map(|step| step.made), Ok(Vec::new()));
}

#[test]
fn a_step_that_writes_what_is_shared_is_never_skipped_and_logs_are_not_counted() {
    let dir = tempfile::tempdir().expect("a folder");
    let shared = release(&dir, "shared", &[("log/web.log", ""), ("cache/a", ""), ("cache/b", "")]);
    let release = release(&dir, "1", TREE);
    for name in ["log", "cache"] {
        fs_err::os::unix::fs::symlink(shared.join(name), release.join(name)).expect("linked");
    }
    for (line, what) in
        [("echo 1 > cache/a", "cache/a"), ("rm cache/b", "cache"), ("chmod 700 cache/a", "cache/a"), ("mkdir cache/c", "cache")]
    {
        assert_eq!(step(&release, line), Err(format!("meanwhile `{what}` was written, which is shared")), "{line}");
    }
    assert_eq!(step(&release, "echo 1 >> log/web.log; mkdir made").map(|step| step.made), Ok(vec!["made".into()]));
}

#[test]
fn only_what_a_step_made_itself_is_copied_and_only_if_it_is_as_the_step_left_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let made = "mkdir -p two/sub; echo 1 > two/a; echo 1 > two/sub/b; ln -s a two/link";
    let changed = |what: &str| format!("in old, `{what}` was changed after the step");
    let other = "in old, something of what the step made was removed, renamed or changed after it".to_owned();
    for (i, (later, why)) in [
        ("cat two/a", None),
        // As live workers leave them.
        ("echo 1 > two/server.pid; mkdir -p two/sub/__pycache__; echo 1 > two/sub/__pycache__/x", None),
        ("echo 2 >> two/a", Some(changed("two/a"))),
        ("chmod 600 two/sub/b", Some(changed("two/sub/b"))),
        ("echo 2 >> two/a; touch -d @1000 two/a", Some(changed("two/a"))),
        ("echo 2 > two/x; mv two/x two/a", Some(other.clone())),
        ("rm two/sub/b", Some(other.clone())),
        ("chmod 700 two/sub", Some(other.clone())),
        ("mv two/sub two/bus", Some(other.clone())),
        ("rm -r two; mkdir two", Some(other.clone())),
    ]
    .into_iter()
    .enumerate()
    {
        let old = release(&dir, &format!("{i}-old"), TREE);
        let new = release(&dir, &format!("{i}-new"), TREE);
        let third = release(&dir, &format!("{i}-third"), TREE);
        let step = step(&old, &format!("umask 022; {made}")).expect("clear");
        sh(&old, later);
        match (before(&new, "cmd", &[Candidate { name: "old".into(), path: old, steps: vec![step] }]), why) {
            (Reply::Carried { step, .. }, None) => {
                sh(&new, "test \"$(find two | sort | tr '\\n' ' ')\" = 'two two/a two/link two/sub two/sub/b '");
                // What was copied can be copied again.
                let reply = before(&third, "cmd", &[Candidate { name: "new".into(), path: new, steps: vec![step] }]);
                assert!(matches!(reply, Reply::Carried { .. }), "{later}: {reply:?}");
            }
            (reply @ Reply::Run { .. }, Some(why)) => {
                assert_eq!(run(reply).1, why, "{later}");
                assert!(!new.join("two").exists(), "{later}");
            }
            (reply, why) => panic!("{later}: {reply:?} instead of {why:?}"),
        }
    }
}

#[test]
fn what_cannot_be_copied_or_read_is_made_anew_and_an_older_release_may_have_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let of = |name: &str| {
        let path = release(&dir, name, TREE);
        let step = step(&path, "mkdir two; echo 1 > two/a").expect("clear");
        Candidate { name: name.into(), path, steps: vec![step] }
    };
    let (newer, older) = (of("newer"), of("older"));
    sh(&newer.path, "rm two/a");
    let new = release(&dir, "new", TREE);
    let reply = before(&new, "cmd", &[newer, older.clone()]);
    assert!(matches!(&reply, Reply::Carried { from, .. } if from == "older"), "{reply:?}");

    let unknown = Candidate { steps: vec![StepMade { left: None, ..older.steps[0].clone() }], ..older.clone() };
    let next = release(&dir, "next", TREE);
    assert_eq!(run(before(&next, "cmd", &[unknown])).1, "older does not say how the step left what it made");

    // An input that is neither file nor folder names nothing: the step runs, whatever there is.
    fs_err::remove_file(next.join("Gemfile.lock")).expect("removed");
    sh(&next, "mkfifo Gemfile.lock");
    let Reply::Run { why, begun: Err(_), .. } = before(&next, "cmd", &[older]) else { panic!("skipped") };
    assert_eq!(why, "what it depends on cannot be read: `Gemfile.lock` is neither a file nor a folder");
}

#[test]
fn what_cannot_be_copied_is_made_anew_and_nothing_is_left_of_the_copy() {
    let dir = tempfile::tempdir().expect("a folder");
    let old = release(&dir, "old", TREE);
    // Root may read and write everything, but no path that is too long, as it is only where the copy would be.
    let deep = std::iter::repeat_n("d".repeat(200), 19).chain(["e".repeat(100)]).collect::<Vec<_>>().join("/");
    let step = step(&old, &format!("mkdir one; echo 1 > one/a; mkdir -p two/{deep}")).expect("clear");
    let new = release(&dir, &"n".repeat(250), TREE);
    let reply = before(&new, "cmd", &[Candidate { name: "old".into(), path: old, steps: vec![step] }]);
    let why = run(reply).1;
    assert!(why.starts_with("what old has cannot be copied: "), "{why}");
    assert!(!new.join("one").exists() && !new.join("two").exists());
}

#[test]
fn a_clock_that_was_set_back_makes_nothing_clear() {
    let dir = tempfile::tempdir().expect("a folder");
    let release = release(&dir, "1", TREE);
    let (.., begun) = run(before(&release, "cmd", &[]));
    sh(&release, "mkdir made");
    let ahead = begin(&release).expect("asked").expect("times of birth");
    let later = serde_json::from_str(&serde_json::to_string(&ahead).expect("text").replace("\"secs\":", "\"secs\":9")).expect("a moment");
    let Reply::Unclear(why) = ended(&release, Begun { at: later, ..begun }, &[]) else { panic!("clear") };
    assert_eq!(why, "the clock was set back meanwhile");
}

#[test]
fn a_runtime_that_is_built_anew_in_the_same_place_is_another_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let here = release(&dir, "1", TREE);
    let ruby = dir.path().join("ruby");
    let key = || key(&here, &["Gemfile.lock".into()], "cmd", std::slice::from_ref(&ruby)).expect("named");
    let none = key();
    fs_err::write(&ruby, "3.3.1").expect("written");
    let first = key();
    assert_eq!(key(), first);
    sh(dir.path(), "touch -d @1000 ruby");
    assert!(none != first && key() != first);
}
