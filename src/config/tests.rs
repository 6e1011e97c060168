//! The whole way: from the text of a file to settings, or to all of its problems.

use std::path::Path;

use selfstart_core::units::Bytes;

use super::problem::Mark;
use super::raw::{self, Node, Value};
use super::settings::Settings;
use super::*;

/// Four CPUs, 8 GiB, and two variables.
fn around() -> Surroundings<'static> {
    Surroundings {
        env: &|name| match name {
            "HOME" => Some("/root".to_owned()),
            "DB" => Some("3".to_owned()),
            _ => None,
        },
        cpus: 4,
        memory: Bytes(8 << 30),
        node: For::Any,
    }
}

/// As read by a node that was started with these roles.
fn read_as(roles: &[String], text: &str) -> Loaded {
    parse(Path::new("config.yaml"), text.as_bytes().to_vec(), &Surroundings { node: For::This(roles), ..around() }).expect("in order")
}

#[test]
fn what_is_for_other_nodes_is_put_aside() {
    let text = "app: a\nroles: [worker]\nattributes: {slave: true}\nsource: {repository: /r, branch: m}\n\
                build: {steps: [one, {run: two, only: {roles: [db]}}, {run: three, only: {slave: true}}]}\n\
                pools:\n  w: {command: x, only: {roles: [worker, app]}, after: [web, any]}\n  web: {command: x, only: {roles: [app]}}\n  \
                any: {command: x}\n  m: {command: x, only: {slave: false}}\n";
    let shown = |settings: &Settings| {
        let names = |it: &mut dyn Iterator<Item = String>| it.collect::<Vec<_>>().join(" ");
        let pools = names(&mut settings.pools.iter().map(|pool| format!("{}{:?}", pool.policy.name, pool.policy.after.len())));
        let steps = names(&mut settings.build.steps.iter().map(|step| step.run.clone()));
        let elsewhere = names(&mut settings.elsewhere.iter().map(|it| match &it.what {
            settings::What::Pool(name) => name.to_string(),
            settings::What::Step(run) => format!("`{run}`"),
            settings::What::WaitedStep(run) => format!("`{run}` waited"),
        }));
        format!("{pools}; {steps}; {elsewhere}")
    };
    assert_eq!(shown(&read_as(&[], text).settings), "w1 any0; one three; web m `two`");
    let (app, db) = ("app".to_owned(), "db".to_owned());
    let more = read_as(&[app, db], text).settings;
    assert_eq!(shown(&more), "w2 web0 any0; one two three; m");
    assert_eq!(more.node.roles.iter().map(String::as_str).collect::<Vec<_>>(), ["app", "db", "worker"]);
    let any = parse(Path::new("c"), text.as_bytes().to_vec(), &Surroundings { node: For::Any, ..around() }).expect("in order");
    assert_eq!(shown(&any.settings), "w2 web0 any0 m0; one two three; ");
    // What a reload that adds a role does is shown as a pool that comes.
    let changes = Settings::changes(&read_as(&[], text).settings, &more);
    assert_eq!(changes.pools_added.iter().map(ToString::to_string).collect::<Vec<_>>(), ["web"]);
    assert!(changes.build_changed && changes.pools_removed.is_empty(), "{changes:?}");
}

#[test]
fn the_result_of_a_step_that_others_do_for_the_fleet_is_waited_for() {
    let text = "app: a\nroles: [worker]\nsource: {repository: /r, branch: m}\nfleet: {redis: redis://h/1}\npools: {w: {command: x}}\n\
                build: {steps: [one, {run: two, once_per: revision, only: {roles: [db]}}, {run: three, only: {roles: [db], primary: true}}, \
                {run: four, only: {primary: true}}, {run: five, only: {roles: [db]}}]}\n";
    let steps = |text: &str| {
        let settings = read_as(&[], text).settings;
        let step = |step: &settings::BuildStep| format!("{}{}{}", step.run, u8::from(step.once.is_some()), u8::from(step.is_here));
        settings.build.steps.iter().map(step).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(steps(text), "one01 two10 three10 four11");
    assert_eq!(steps(&text.replace("[worker]", "[db]")), "one01 two11 three11 four11 five01");
    // Nobody could tell what came of it.
    assert_eq!(steps(&text.replace("fleet: {redis: redis://h/1}\n", "")), "one01 four11");
}

#[test]
fn an_only_that_means_nothing_is_refused() {
    let told = |only: &str| {
        let text = format!("app: a\nsource: {{repository: /r, branch: m}}\npools: {{w: {{command: x, only: {only}}}}}\n");
        read(&text).expect_err("refused").problems()[0].to_string()
    };
    assert!(told("{}").contains("pools.w.only: says nothing"), "{}", told("{}"));
    assert!(told("{roles: []}").contains("pools.w.only.roles: names no role"));
    assert!(told("{roles: [DB]}").contains("not a name"));
    assert!(told("{roles: db}").contains("a list of one is `[VALUE]`"));
    assert!(told("{primary: true}").contains("pools.w.only.primary: only for build steps yet"));
    assert!(told("{slave: [a]}").contains("not a text"));
    assert!(told("db").contains("not a map"));
}

fn read(text: &str) -> Result<Loaded, ConfigErrors> {
    parse(Path::new("config.yaml"), text.as_bytes().to_vec(), &around())
}

fn good(text: &str) -> Loaded {
    let result = read(text);
    let errors = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
    assert!(result.is_ok(), "{errors}\n{text}");
    result.expect("asserted above")
}

const SMALLEST: &str = "app: a\nsource: {repository: /srv/a.git, branch: main}\npools: {w: {command: ./job}}\n";
const EXAMPLE: &str = include_str!("../../config.yaml");

#[test]
fn app_source_and_a_pool_with_a_command_are_enough() {
    let loaded = good(SMALLEST);
    insta::assert_debug_snapshot!(loaded.settings);
    assert!(loaded.warnings.is_empty());
}

#[test]
fn the_example_is_in_order() {
    let loaded = good(EXAMPLE);
    assert_eq!(loaded.warnings, []);
    insta::assert_snapshot!(loaded.explained.to_string());
}

/// A configuration with problems at these lines and columns.
struct Broken {
    title: String,
    text: String,
    marks: Vec<(u32, u32)>,
}

/// The cases of `testdata/broken.txt`.
fn broken() -> Vec<Broken> {
    let file = include_str!("testdata/broken.txt");
    let mut cases = Vec::new();
    for case in file.split("\n=== ").skip(1) {
        let (title, marked) = case.split_once('\n').unwrap_or((case, ""));
        let (mut text, mut marks) = (String::new(), Vec::new());
        let (mut line, mut column) = (1, 1);
        for c in marked.chars() {
            if c == '▶' {
                marks.push((line, column));
                continue;
            }
            (line, column) = if c == '\n' { (line + 1, 1) } else { (line, column + 1) };
            text.push(c);
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        cases.push(Broken { title: title.to_owned(), text, marks });
    }
    cases
}

/// Adds what a case does not say, so that it is only broken where it means to be.
fn completed(text: &str) -> String {
    let said = |key: &str| text.lines().any(|line| line.starts_with(key));
    if text.starts_with(['"', '-', '[']) || said("only:") || said("source:\n") {
        return text.to_owned();
    }
    let missing = SMALLEST.lines().filter(|line| !said(line.split_inclusive(':').next().unwrap_or_default()));
    missing.fold(text.to_owned(), |text, line| format!("{text}{line}\n"))
}

#[test]
fn every_broken_configuration_is_told_in_full() {
    let mut told = String::new();
    let mut wrong = Vec::new();
    for Broken { title, text, marks } in broken() {
        let problems = match read(&completed(&text)) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.problems().to_vec(),
        };
        let places: Vec<_> = problems.iter().map(|problem| (problem.at.line, problem.at.column)).collect();
        if places != marks {
            wrong.push(format!("{title}: told at {places:?}, not at {marks:?}"));
        }
        told.push_str(&format!("=== {title}\n"));
        for problem in &problems {
            told.push_str(&format!("{problem}\n"));
        }
    }
    insta::assert_snapshot!(told);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(broken().len() >= 45);
    assert!(!told.contains("hunter2"), "a value of a key that may hold a secret");
}

/// Reads a tree as the whole configuration.
fn settings_of(tree: &Node) -> Result<Settings, Vec<Problem>> {
    let around = around();
    let mut reader = reader::Reader { path: Path::new("config.yaml"), around: &around, problems: Vec::new(), warnings: Vec::new() };
    match reader.settings(tree) {
        Some(settings) if reader.problems.is_empty() => Ok(settings),
        _ => Err(reader.problems),
    }
}

fn tree(text: &str) -> Node {
    let mut problems = Vec::new();
    let tree = raw::parse(text.as_bytes(), &mut problems);
    assert_eq!(problems, []);
    tree.expect("a tree")
}

/// Gives every key with a value that stands in `line` that value instead, or takes it away.
fn with(node: &Node, line: u32, value: Option<&Node>) -> (Node, bool) {
    let found = std::cell::Cell::new(false);
    let of = |inner: &Node| {
        let (inner, here) = with(inner, line, value);
        found.set(found.get() || here);
        inner
    };
    let value = match &node.value {
        Value::Map(entries) => {
            let mut kept = Vec::new();
            for entry in entries {
                if entry.key_at.line == line {
                    found.set(true);
                    kept.extend(value.map(|value| raw::Entry { value: value.clone(), ..entry.clone() }));
                } else {
                    kept.push(raw::Entry { value: of(&entry.value), ..entry.clone() });
                }
            }
            Value::Map(kept)
        }
        Value::List(items) => Value::List(items.iter().map(of).collect()),
        scalar => scalar.clone(),
    };
    (Node { at: node.at, value }, found.get())
}

/// The keys of the example with `# default: X` behind them: line, path in the schema, X.
fn stated_defaults() -> Vec<(u32, String, String)> {
    fn paths(node: &Node, path: &str, out: &mut Vec<(u32, String)>) {
        if let Value::Map(entries) = &node.value {
            for entry in entries {
                let name = if path == "pools" { "NAME" } else { &entry.key };
                let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                out.push((entry.key_at.line, path.clone()));
                paths(&entry.value, &path, out);
            }
        }
    }
    let mut keys = Vec::new();
    paths(&tree(EXAMPLE), "", &mut keys);
    let mut stated = Vec::new();
    for (line, text) in (1..).zip(EXAMPLE.lines()) {
        let Some((before, default)) = text.split_once("# default: ") else { continue };
        assert!(!before.trim().is_empty(), "line {line}: a default without its key");
        let default = default.split("; ").next().unwrap_or_default().trim();
        let (_, path) = keys.iter().find(|(at, _)| *at == line).expect("a key on the line of a default");
        stated.push((line, path.clone(), default.to_owned()));
    }
    stated
}

#[test]
fn every_default_that_the_example_states_is_what_holds_when_the_key_is_left_out() {
    let example = tree(EXAMPLE);
    let stated = stated_defaults();
    for (line, path, default) in &stated {
        let value = tree(default);
        let (left_out, found) = with(&example, *line, None);
        let (written, _) = with(&example, *line, Some(&value));
        assert!(found, "line {line}");
        let (left_out, written) = (settings_of(&left_out), settings_of(&written));
        assert!(left_out.is_ok(), "line {line}: {left_out:?}");
        assert_eq!(left_out, written, "line {line}: `{path}` is not `{default}` when it is left out");
        let reference = schema::find(path).map(|key| key.default);
        assert_eq!(reference, Some(schema::Left::As(Box::leak(default.clone().into_boxed_str()))), "the reference of `{path}`");
    }
    // No default is forgotten: a map's own is that of its keys.
    for key in schema::KEYS {
        if let schema::Left::As(default) = key.default
            && default != "{}"
        {
            assert!(stated.iter().any(|(_, path, _)| path == key.path), "`{}` has a default that the example does not state", key.path);
        }
    }
}

#[test]
fn the_example_says_something_else_than_each_default_where_it_can() {
    // A key that is written with its default would be right even if it were ignored.
    let example = tree(EXAMPLE);
    let whole = settings_of(&example).expect("in order");
    let same = |line| with(&example, line, None).0;
    let idle: Vec<_> =
        stated_defaults().into_iter().filter(|(line, ..)| settings_of(&same(*line)).is_ok_and(|settings| settings == whole)).collect();
    let idle: Vec<_> = idle.iter().map(|(_, path, _)| path.as_str()).collect();
    assert_eq!(idle, ["source.depth", "release.keep", "release.keep_failed", "pools.NAME.update.how"]);
}

#[test]
fn the_example_names_every_key() {
    let words: Vec<_> = EXAMPLE.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    for key in schema::KEYS {
        let name = key.path.rsplit(['.', ']']).next().unwrap_or_default();
        assert!(words.contains(&name), "`{}`", key.path);
    }
}

/// Compares a file of the repository with what the program makes; `UPDATE=1` writes it.
fn same_as_file(path: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        fs_err::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs_err::write(&path, made).expect("written");
    }
    let file = fs_err::read_to_string(&path).expect("the file");
    assert!(file == made, "{} is not what the program makes: run with UPDATE=1", path.display());
}

#[test]
fn the_reference_page_is_made_from_the_schema() {
    same_as_file("docs/reference/config.md", &schema::reference());
}

#[test]
fn explained_as_yaml_it_means_the_same() {
    for text in [SMALLEST, EXAMPLE] {
        let loaded = good(text);
        let yaml = loaded.explained.to_yaml().expect("written");
        let again = good(&yaml);
        let mut settings = again.settings;
        // A pool shows the queue that it inherits; the rest is equal to the letter.
        assert_eq!(settings.pools.len(), loaded.settings.pools.len());
        settings.pools.sort_by_key(|pool| loaded.settings.pools.iter().position(|other| other.policy.name == pool.policy.name));
        assert_eq!(settings, loaded.settings, "{yaml}");
        assert_eq!(again.explained.to_yaml().expect("written"), yaml);
    }
}

#[test]
fn explained_as_json_it_has_seconds_and_bytes_and_places() {
    let json = good(EXAMPLE).explained.values_to_json();
    let of = |key: &str| json.as_array().and_then(|all| all.iter().find(|value| value["key"] == key)).cloned().expect(key);
    assert_eq!(
        of("source.timeout"),
        serde_json::json!({"key": "source.timeout", "value": 300.0, "origin": "file", "line": 28, "column": 12})
    );
    assert_eq!(of("log.buffer")["value"], 262_144);
    assert_eq!(of("pools.web.memory"), serde_json::json!({"key": "pools.web.memory", "value": null, "origin": "default"}));
    assert_eq!(of("pools.checkins.queue.kind")["line"], 62, "inherited from the app's");
}

#[test]
fn a_secret_that_is_written_in_plain_is_warned_of_and_never_shown() {
    let text = "app: a\nsource: {repository: 'https://h/r', branch: m, credentials: {token: hunter2}}\n\
                queue: {url: 'redis://:hunter2@h/0'}\npools: {w: {command: x, env: {URL: 'amqp://u:hunter2@h'}}}\n";
    let loaded = good(text);
    let shown = format!(
        "{:?} {} {} {} {:?}",
        loaded.settings,
        loaded.explained,
        loaded.explained.values_to_json(),
        loaded.explained.to_yaml().expect("written"),
        loaded.warnings
    );
    assert!(!shown.contains("hunter2"), "{shown}");
    assert_eq!(loaded.warnings.iter().map(|warning| warning.key.as_str()).collect::<Vec<_>>(), ["source.credentials.token"]);
}

#[test]
fn warns_of_a_stop_ladder_that_loses_jobs() {
    let text = |kind: &str| format!("{}queue: {{kind: {kind}}}\n", SMALLEST.replace("./job", "./job, stop: [QUIT 9s, KILL]"));
    assert_eq!(good(&text("resque")).warnings, []);
    for kind in ["sidekiq", "rq", "celery"] {
        assert_eq!(good(&text(kind)).warnings.len(), 1, "{kind}");
    }
}

#[test]
fn no_default_stop_ladder_has_a_signal_that_loses_jobs() {
    for (name, _) in merged::QUEUE_KINDS {
        let loaded = good(&format!("{SMALLEST}queue: {{kind: {name}}}\n"));
        let ladder = explain::ladder(&loaded.settings.pools[0].policy.worker.stop);
        let warned = good(&format!("{}queue: {{kind: {name}}}\n", SMALLEST.replace("./job", &format!("./job, stop: {ladder}"))));
        assert_eq!(warned.warnings, [], "{name}: {ladder}");
    }
}

#[test]
fn a_pool_takes_the_apps_queue_where_it_says_nothing() {
    let text = "app: a\nsource: {repository: /r, branch: m}\nqueue: {kind: rq, url: 'redis://h', namespace: n}\n\
                pools: {a: {command: x}, b: {command: x, queue: {kind: none}}, c: {command: x, queue: {url: 'redis://i'}}}\n";
    let pools = good(text).settings.pools;
    let of = |i: usize| format!("{:?} {:?} {:?}", pools[i].queue.kind, pools[i].queue.url, pools[i].queue.namespace);
    assert_eq!(of(0), "Rq Some(Text(redis://h)) Some(\"n\")");
    assert_eq!(of(1), "None Some(Text(redis://h)) Some(\"n\")");
    assert_eq!(of(2), "Rq Some(Text(redis://i)) Some(\"n\")");
    assert_eq!(explain::ladder(&pools[0].policy.worker.stop), "[TERM 1m, KILL]");
    assert_eq!(explain::ladder(&pools[1].policy.worker.stop), "[TERM 10s, KILL]");
}

#[test]
fn counts_by_cpus_and_memory() {
    let count = |count: &str| good(&SMALLEST.replace("./job", &format!("./job, count: {count}"))).settings.pools[0].policy.count;
    assert_eq!((count("0"), count("{per_cpu: 3}"), count("{per_memory: 1GiB}"), count("{per_memory: 1TB}")), (0, 12, 8, 1));
}

#[test]
fn every_form_of_a_memory_limit() {
    let memory = |memory: &str| {
        let loaded = good(&SMALLEST.replace("./job", &format!("./job, memory: {memory}")));
        loaded
            .explained
            .iter()
            .filter(|value| value.key().starts_with("pools.w.memory."))
            .map(|value| value.value())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(memory("350MB"), "[350MB x2/3 drain] 10s");
    assert_eq!(memory("350MiB"), "[350MiB x2/3 drain] 10s");
    assert_eq!(memory("{ladder: [350MB x2/2 drain], every: 2m}"), "[350MB x2/2 drain] 2m");
    assert_eq!(
        memory("{ladder: [350MB, 400MB x1 USR1, 500MB x3 SIGTERM, 1GB x1/32 kill]}"),
        "[350MB x2/3 drain, 400MB x1/1 USR1, 500MB x3/3 TERM, 1GB x1/32 kill] 10s"
    );
}

#[test]
fn takes_every_kind_of_repository() {
    for repository in [
        "https://h/r.git",
        "https://u:p@h/r",
        "ssh://git@h:22/r",
        "ssh://h/r",
        "ssh://git@[::1]:22/~/r",
        "ssh://git@${env:DB}/r",
        "git@h:r.git",
        "git://h/r",
        "file:///r",
        "/srv/r.git",
        "https://${env:DB}@h/r",
    ] {
        good(&SMALLEST.replace("/srv/a.git", &format!("'{repository}'")));
    }
}

#[test]
fn ssh_has_a_key_or_an_agent_or_what_its_user_has() {
    use super::settings::{Credentials, SshAgent};
    let of = |credentials: &str| {
        let text = SMALLEST.replace("/srv/a.git", "git@h:r").replace("branch: main", &format!("branch: main, credentials: {credentials}"));
        good(&text).settings.source.credentials
    };
    let ssh = |key: Option<&str>, agent, known_hosts: Option<&str>| Credentials::Ssh {
        key: key.map(Into::into),
        agent,
        known_hosts: known_hosts.map(Into::into),
    };
    assert_eq!(of("{}"), Credentials::None);
    assert_eq!(of("{ssh_key: /k}"), ssh(Some("/k"), None, None));
    assert_eq!(of("{known_hosts: /h}"), ssh(None, None, Some("/h")));
    assert_eq!(of("{ssh_agent: true, known_hosts: /h}"), ssh(None, Some(SshAgent::Environment), Some("/h")));
    assert_eq!(of("{ssh_agent: /run/a.sock}"), ssh(None, Some(SshAgent::Socket("/run/a.sock".into())), None));
    assert_eq!(of("{ssh_agent: false, ssh_key: /k}"), ssh(Some("/k"), None, None));
    assert_eq!(of("{ssh_agent: false}"), Credentials::None);
}

#[test]
fn askpass_is_a_program_with_its_arguments_for_https_only_and_alone() {
    let of = |repository: &str, credentials: &str| {
        let text = SMALLEST.replace("/srv/a.git", repository).replace("branch: main", &format!("branch: main, credentials: {credentials}"));
        read(&text).map(|loaded| loaded.settings.source.credentials).map_err(|errors| errors.to_string())
    };
    let words = |words: &[&str]| settings::Credentials::Askpass(words.iter().map(|word| (*word).to_owned()).collect());
    assert_eq!(of("https://h/r", "{askpass: /a}"), Ok(words(&["/a"])));
    assert_eq!(of("https://h/r", "{askpass: \"/a 'b c' $X\"}"), Ok(words(&["/a", "b c", "$X"])));
    for (repository, credentials, told) in [
        ("https://h/r", "{askpass: a}", "source.credentials.askpass: not a command"),
        ("https://h/r", "{askpass: \"/a 'b\"}", "source.credentials.askpass: not a command"),
        // Whatever a path in an argument names is run with our rights, and nobody has looked whose it is.
        ("https://h/r", "{askpass: \"/bin/sh /tmp/a\"}", "source.credentials.askpass: an argument that names a file"),
        ("https://h/r", "{askpass: \"/bin/sh tmp/a\"}", "source.credentials.askpass: an argument that names a file"),
        ("https://h/r", "{askpass: \"/bin/x --of=/tmp/a\"}", "source.credentials.askpass: an argument that names a file"),
        ("https://h/r", "{askpass: /a, token: x}", "more than one source of credentials"),
        ("git@h:r", "{askpass: /a}", "`askpass` is of no use to a repository by ssh"),
        ("https://u@h/r", "{askpass: /a}", "the URL of the repository has one, too"),
    ] {
        let errors = of(repository, credentials).expect_err(credentials);
        assert!(errors.contains(told), "{errors}");
    }
}

#[test]
fn scalars_are_taken_as_they_are_written() {
    let text = SMALLEST.replace("main", "1e3").replace("./job", "./job, env: {PYTHON: 3.10, NO: no, ON: 0x1F, EMPTY: '', NULL: 'null'}");
    let settings = good(&text).settings;
    assert_eq!(settings.source.wanted, settings::WantedRef::Branch("1e3".into()));
    let env: Vec<_> = settings.pools[0].env.iter().map(|(name, text)| format!("{name}={text}")).collect();
    assert_eq!(env, ["EMPTY=", "NO=no", "NULL=null", "ON=0x1F", "PYTHON=3.10"]);
}

#[test]
fn an_unreadable_file_is_named_with_its_cause() {
    use std::error::Error as _;
    let error = load(Path::new("/nonexistent/config.yaml"), &around()).expect_err("no file");
    assert_eq!(error.to_string(), "failed to read the configuration `/nonexistent/config.yaml`");
    assert!(error.source().is_some_and(|source| source.to_string().contains("No such file")));
    assert!(matches!(load(Path::new("/"), &around()), Err(ConfigErrors::Unreadable { .. })));
    assert!(matches!(load(Path::new("/dev/zero"), &around()), Err(ConfigErrors::Invalid(_))));
}

#[test]
fn no_large_file_takes_more_than_its_size() {
    // Linear, these take some seconds in all (a whole MiB of each took 3 s at most, 2026-11-22); were one of them quadratic, minutes.
    let units = [
        "a: 1\n",
        "- \n",
        "- - - a\n",
        "x",
        "x ",
        "\"",
        "'",
        "#",
        "\n",
        " ",
        "[a], ",
        "? a\n",
        "&a ",
        "*a ",
        "!a ",
        "a:",
        "%",
        "|\n ",
        "\"\\\n",
        "[[[[]]]]",
        "{a: {b: 1}}",
        "é: ",
    ];
    for unit in units {
        for start in ["", "a: [", "{"] {
            let text = format!("{start}{}", unit.repeat(raw::MAX_FILE_BYTES / 8 / unit.len()));
            assert!(read(&text).is_err());
        }
    }
}

#[test]
fn a_reload_restarts_only_what_workers_would_see() {
    let base = "app: a\nuser: u\nsource: {repository: /r, branch: m}\npools:\n  w: {command: ./job}\n  v: {command: ./job, user: x}\n";
    let old = good(base).settings;
    let changes = |from: &str, to: &str| {
        assert!(base.contains(from), "{from}");
        Settings::changes(&old, &good(&base.replace(from, to)).settings)
    };
    let names =
        |set: &std::collections::BTreeSet<selfstart_core::id::PoolName>| set.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert!(Settings::changes(&old, &old).is_empty());
    for (key, restarts) in [
        ("env: {A: 1}", true),
        ("env_files: [/x]", true),
        ("limits: {nice: 5}", true),
        ("port: 80", true),
        ("user: y", true),
        ("count: 2", false),
        ("memory: 1GB", false),
        ("stop: [KILL]", false),
        ("restart: {reset_after: 5m}", false),
        ("ready: {after: 2s}", false),
        ("update: all_at_once", false),
        ("stale_job_timeout: 1m", false),
        ("group: g", false),
        ("queues: [q]", false),
        ("queue: {kind: rq}", false),
        ("log: {keep: 9}", false),
        ("start_stagger: 1s", false),
        ("after: [v]", false),
    ] {
        let changed = changes("w: {command: ./job", &format!("w: {{command: ./job, {key}"));
        let (restart, policy) = if restarts { ("w", "") } else { ("", "w") };
        assert_eq!((names(&changed.restart).as_str(), names(&changed.policy_only).as_str()), (restart, policy), "{key}");
    }
    assert_eq!(names(&changes("w: {command: ./job", "w: {command: ./other").restart), "w");
    assert_eq!(names(&changes("w: {command: ./job", "w: {shell: ./job").restart), "w");
    let user = changes("user: u\n", "user: z\n");
    assert_eq!((names(&user.by_release), user.build_changed), ("w".to_owned(), true), "`v` has a user of its own");
    assert!(user.restart.is_empty(), "not twice, and not in a release that the former user made");
    let renamed = changes("  v:", "  z:");
    assert_eq!((names(&renamed.pools_added).as_str(), names(&renamed.pools_removed).as_str()), ("z", "v"));
    assert!(changes("pools:", "build: {steps: [x]}\npools:").build_changed);
    assert!(changes("pools:", "release: {linked_dirs: [log]}\npools:").build_changed);
    let kept = changes("pools:", "release: {keep: 9}\npools:");
    assert!(kept.retention_changed && !kept.build_changed);
    assert!(changes("branch: m", "branch: n").source_changed);
    assert!(changes("pools:", "log: {level: debug}\npools:").log_changed);
    assert!(changes("pools:", "control: {workers: true}\npools:").control_changed);
    assert_eq!(changes("app: a", "app: b").needs_agent_restart, ["app", "root"]);
}

mod never_panics {
    //! Whatever the bytes: settings, or problems whose places lie in the file.

    use proptest::prelude::*;

    use super::*;

    fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
        match parse(Path::new("c"), bytes.to_vec(), &around()) {
            Ok(loaded) => {
                let yaml = loaded.explained.to_yaml().expect("written");
                // What is masked cannot be read again; all else can.
                if !yaml.contains("***") {
                    let again = parse(Path::new("c"), yaml.clone().into_bytes(), &around());
                    let again = again.map_err(|errors| TestCaseError::fail(format!("{errors}\n{yaml}")))?;
                    prop_assert_eq!(again.settings, loaded.settings, "{}", yaml);
                }
                let _ = loaded.explained.values_to_json();
            }
            Err(errors) => {
                prop_assert!(!errors.problems().is_empty());
                let text = String::from_utf8_lossy(bytes);
                let lines: Vec<_> = text.split('\n').collect();
                for problem in errors.problems() {
                    let Mark { line, column } = problem.at;
                    prop_assert!(line >= 1 && column >= 1, "{}", problem);
                    // A lone CR ends a line for YAML.
                    if !text.contains('\r') && !text.contains('\u{feff}') {
                        prop_assert!(line as usize <= lines.len() + 1, "{}", problem);
                        let length = lines.get(line as usize - 1).map_or(0, |line| line.chars().count());
                        prop_assert!(column as usize <= length + 1, "{problem} of {length}");
                    }
                }
            }
        }
        Ok(())
    }

    /// What is put in place of a piece of the example.
    fn piece() -> impl Strategy<Value = String> {
        let nasty = [
            "",
            " ",
            "\n",
            "\t",
            ":",
            ": ",
            "- ",
            "? ",
            "{",
            "}",
            "[",
            "]",
            ",",
            "#",
            " #",
            "&a ",
            "*a",
            "*rails",
            "<<: ",
            "!!str ",
            "|",
            ">",
            "|\n",
            "'",
            "\"",
            "\\",
            "\"\\0\"",
            "---\n",
            "...\n",
            "%YAML 1.2\n",
            "@",
            "`",
            "~",
            "null",
            "-1",
            "0",
            "1e999",
            "99999999999999999999",
            "${",
            "${file:/x}",
            "${env:DB}",
            "$${",
            "{slot}",
            "{port}",
            "{{",
            "10s",
            "366d",
            "1TiB",
            "350MB x2/3 drain",
            "KILL",
            "TERM 1s",
            "é",
            "\u{feff}",
            "\u{2028}",
            "\u{0}",
            "\r",
            "x-",
            "pools",
            "after",
            "w",
        ];
        prop_oneof![
            4 => proptest::sample::select(nasty.to_vec()).prop_map(str::to_owned),
            1 => proptest::collection::vec(any::<char>(), 0..4).prop_map(String::from_iter),
        ]
    }

    fn changed(mut text: String, edits: &[(usize, usize, String)]) -> String {
        for (at, length, piece) in edits {
            let chars: Vec<_> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let from = at % chars.len();
            let to = (from + length).min(chars.len() - 1);
            text.replace_range(chars[from]..chars[to], piece);
        }
        text
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn on_arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            check(&bytes)?;
        }

        #[test]
        fn on_arbitrary_pieces(pieces in proptest::collection::vec(piece(), 0..60)) {
            check(pieces.concat().as_bytes())?;
        }

        #[test]
        fn on_a_changed_example(edits in proptest::collection::vec((any::<usize>(), 0usize..12, piece()), 1..4)) {
            check(changed(EXAMPLE.to_owned(), &edits).as_bytes())?;
        }

        #[test]
        fn on_lines_in_another_order(lines in proptest::collection::vec((0usize..124, 0usize..8), 1..40)) {
            let all: Vec<_> = EXAMPLE.lines().collect();
            let text: String = lines.iter().map(|(at, indent)| format!("{}{}\n", " ".repeat(*indent), all[at % all.len()].trim_start())).collect();
            check(text.as_bytes())?;
        }

        #[test]
        fn on_a_changed_value(line in 0usize..124, value in piece(), quote in any::<bool>()) {
            let all: Vec<_> = EXAMPLE.lines().collect();
            let line = line % all.len();
            let text: String = all.iter().enumerate().map(|(i, old)| match old.split_once(": ") {
                Some((key, _)) if i == line && quote => format!("{key}: {value:?}\n"),
                Some((key, _)) if i == line => format!("{key}: {value}\n"),
                _ => format!("{old}\n"),
            }).collect();
            check(text.as_bytes())?;
        }
    }
}
