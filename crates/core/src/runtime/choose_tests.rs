use super::*;
use crate::runtime::files::{Files, wants};

fn place(manager: Manager, root: &str, have: &[(&str, &[&str])]) -> Place {
    let versions = have
        .iter()
        .map(|(tool, names)| {
            let installed =
                |name: &&str| Installed { name: (*name).into(), prefix: format!("{root}/{tool}/{name}"), folder: (*tool).into() };
            ((*tool).to_owned(), names.iter().map(installed).collect())
        })
        .collect();
    let environments = match manager {
        Manager::Rvm => have.iter().flat_map(|(_, names)| *names).map(|name| (*name).to_owned()).collect(),
        _ => Vec::new(),
    };
    Place { manager, root: root.into(), versions, aliases: BTreeMap::new(), environments, global: Vec::new() }
}

fn files(list: &[(&str, &str)], mise: &[(&str, &str)]) -> Vec<Want> {
    let texts = list.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let tools = mise.iter().map(|(tool, version)| ((*tool).to_owned(), vec![(*version).to_owned()])).collect();
    let mise = if mise.is_empty() { None } else { Some(("mise.toml".to_owned(), tools)) };
    wants(&Files { texts, mise }).expect("read")
}

fn ask(setting: &Setting, wants: &[Want], places: &[Place], machine: &[(&str, &str)]) -> Result<(Vec<String>, Vec<String>), String> {
    let machine = machine.iter().map(|(tool, version)| ((*tool).to_owned(), (format!("/usr/bin/{tool}"), (*version).to_owned()))).collect();
    let offer = Offer { wants, places, machine: &machine, user: "deploy" };
    let choice = choose(setting, offer).map_err(|missing| missing.to_string())?;
    let shown = |it: &Chosen| {
        let names: Vec<_> = it.versions.iter().map(|it| it.name.as_str()).collect();
        let set = it.gemset.as_ref().map_or_else(String::new, |set| format!("@{set}"));
        format!("{} {} {}{set}: {}", it.tool, it.manager, names.join("+"), it.why)
    };
    Ok((choice.chosen.iter().map(shown).collect(), choice.notes))
}

fn auto(wants: &[Want], places: &[Place], machine: &[(&str, &str)]) -> Vec<String> {
    ask(&Setting::Auto, wants, places, machine).expect("found").0
}

#[test]
fn a_version_is_found_as_its_own_manager_finds_it() {
    let nvm = Place {
        aliases: [("default", "lts/*"), ("lts/*", "lts/iron"), ("lts/iron", "v20.11.0"), ("loop", "pool"), ("pool", "loop")]
            .map(|(name, to)| (name.to_owned(), to.to_owned()))
            .into(),
        ..place(Manager::Nvm, "/n", &[("node", &["v18.19.0", "v20.9.0", "v20.11.0", "v21.0.0"])])
    };
    let rvm = Place {
        aliases: [("default".to_owned(), "ruby-3.2.2".to_owned())].into(),
        ..place(Manager::Rvm, "/v", &[("ruby", &["ruby-1.9.2-p180", "ruby-1.9.2-p290", "ruby-3.2.2", "ruby-3.3.1", "jruby-9.4.5.0"])])
    };
    let rbenv = place(Manager::Rbenv, "/b", &[("ruby", &["3.1.2", "3.3.1", "jruby-9.4.5.0"])]);
    let pyenv = place(Manager::Pyenv, "/p", &[("python", &["3.1.5", "3.11.7", "3.12.1", "3.12.0rc1", "3.12-dev", "flipper"])]);
    let asdf = place(Manager::Asdf, "/a", &[("ruby", &["3.3.1", "ref-master"])]);
    let mise = place(Manager::Mise, "/m", &[("node", &["20", "20.11.0", "20.9.0", "22.1.0", "lts"])]);
    let table: &[(&Place, &str, &str, Option<&str>)] = &[
        (&rbenv, "ruby", "3.3.1", Some("3.3.1")),
        (&rbenv, "ruby", "ruby-3.3.1", Some("3.3.1")),
        (&rbenv, "ruby", "jruby-9.4.5.0", Some("jruby-9.4.5.0")),
        (&rbenv, "ruby", "3.3", None),
        (&rbenv, "ruby", "3.3.10", None),
        (&pyenv, "python", "3.11.7", Some("3.11.7")),
        (&pyenv, "python", "3.11", Some("3.11.7")),
        (&pyenv, "python", "python-3.12", Some("3.12.1")),
        (&pyenv, "python", "3", Some("3.12.1")),
        (&pyenv, "python", "3.12-dev", Some("3.12-dev")),
        (&pyenv, "python", "flipper", Some("flipper")),
        (&pyenv, "python", "3.13", None),
        (&nvm, "node", "20", Some("v20.11.0")),
        (&nvm, "node", "v20.9.0", Some("v20.9.0")),
        (&nvm, "node", "20.9", Some("v20.9.0")),
        (&nvm, "node", "2", None),
        (&nvm, "node", "lts/iron", Some("v20.11.0")),
        (&nvm, "node", "lts/*", Some("v20.11.0")),
        (&nvm, "node", "lts/hydrogen", None),
        (&nvm, "node", "default", Some("v20.11.0")),
        (&nvm, "node", "node", Some("v21.0.0")),
        (&nvm, "node", "loop", None),
        (&rvm, "ruby", "1.9.2", Some("ruby-1.9.2-p290")),
        (&rvm, "ruby", "ruby-1.9.2-p180", Some("ruby-1.9.2-p180")),
        (&rvm, "ruby", "3.3", Some("ruby-3.3.1")),
        (&rvm, "ruby", "default", Some("ruby-3.2.2")),
        (&rvm, "ruby", "jruby", None),
        (&rvm, "ruby", "jruby-9.4", Some("jruby-9.4.5.0")),
        (&asdf, "ruby", "3.3.1", Some("3.3.1")),
        (&asdf, "ruby", "ref:master", Some("ref-master")),
        (&asdf, "ruby", "3.3", None),
        (&mise, "node", "20", Some("20")),
        (&mise, "node", "20.9", Some("20.9.0")),
        (&mise, "node", "node-20.9.0", Some("20.9.0")),
        (&mise, "node", "v22", Some("22.1.0")),
        (&mise, "node", "latest", Some("22.1.0")),
        (&mise, "node", "lts", Some("lts")),
    ];
    for (place, tool, wanted, found) in table {
        assert_eq!(find(place, tool, wanted).map(|it| it.name).as_deref(), *found, "{} {wanted}", place.manager);
    }
}

#[test]
fn several_languages_are_settled_each_by_itself() {
    let places = [
        place(Manager::Rbenv, "/b", &[("ruby", &["3.3.1"])]),
        place(Manager::Nvm, "/n", &[("node", &["v20.11.0"])]),
        place(Manager::Pyenv, "/p", &[("python", &["3.11.7"])]),
    ];
    let wants = files(&[(".nvmrc", "20"), (".python-version", "3.11"), (".ruby-version", "3.3.1")], &[]);
    let wanted = [
        "ruby rbenv 3.3.1: `.ruby-version` says 3.3.1",
        "node nvm v20.11.0: `.nvmrc` says 20",
        "python pyenv 3.11.7: `.python-version` says 3.11",
    ];
    assert_eq!(auto(&wants, &places, &[]), wanted);
}

#[test]
fn the_manager_of_a_file_comes_before_others_and_who_has_the_version_before_who_has_not() {
    let rbenv = |names: &[&str]| place(Manager::Rbenv, "/b", &[("ruby", names)]);
    let asdf = |names: &[&str]| place(Manager::Asdf, "/a", &[("ruby", names)]);
    let mise = |names: &[&str]| place(Manager::Mise, "/m", &[("ruby", names)]);
    let own = (".ruby-version", "3.3.1");
    let tools = (".tool-versions", "ruby 3.2.0");
    type Pairs<'a> = &'a [(&'a str, &'a str)];
    let table: &[(Pairs<'_>, Pairs<'_>, &[Place], &str)] = &[
        (&[own], &[], &[rbenv(&["3.3.1"]), asdf(&["3.3.1"])], "ruby rbenv 3.3.1: `.ruby-version` says 3.3.1"),
        (&[own], &[], &[rbenv(&["3.1.2"]), asdf(&["3.3.1"])], "ruby asdf 3.3.1: `.ruby-version` says 3.3.1"),
        (&[tools], &[], &[rbenv(&["3.2.0"]), asdf(&["3.2.0"])], "ruby asdf 3.2.0: `.tool-versions` says 3.2.0"),
        (&[tools], &[], &[rbenv(&["3.2.0"])], "ruby rbenv 3.2.0: `.tool-versions` says 3.2.0"),
        (&[own, tools], &[], &[rbenv(&["3.3.1", "3.2.0"])], "ruby rbenv 3.3.1: `.ruby-version` says 3.3.1"),
        (&[own, tools], &[], &[asdf(&["3.3.1", "3.2.0"])], "ruby asdf 3.2.0: `.tool-versions` says 3.2.0"),
        (&[own, tools], &[("ruby", "3.4")], &[mise(&["3.4.2", "3.3.1"])], "ruby mise 3.4.2: `mise.toml` says 3.4"),
        (&[own], &[("ruby", "3.4.2")], &[rbenv(&["3.3.1"]), mise(&[])], "ruby rbenv 3.3.1: `.ruby-version` says 3.3.1"),
        (&[(".tool-versions", "ruby 9.9.9 3.2.0")], &[], &[asdf(&["3.2.0"])], "ruby asdf 3.2.0: `.tool-versions` says 3.2.0"),
    ];
    for (list, mise, places, wanted) in table {
        assert_eq!(auto(&files(list, mise), places, &[]), [*wanted], "{list:?} {mise:?}");
    }
    let (_, notes) = ask(&Setting::Auto, &files(&[own, tools], &[]), &[rbenv(&["3.3.1", "3.2.0"])], &[]).expect("found");
    assert_eq!(notes, ["`.tool-versions` says ruby 3.2.0, which does not count: `.ruby-version` says 3.3.1 (rbenv)"]);
}

#[test]
fn the_machine_s_own_is_taken_only_if_it_is_of_that_version_or_asked_for_by_name() {
    let wants = |version: &str| files(&[(".ruby-version", version)], &[]);
    assert_eq!(auto(&wants("3.1.2"), &[], &[("ruby", "3.1.2")]), ["ruby machine : `.ruby-version` says 3.1.2"]);
    assert_eq!(auto(&wants("ruby-3.1"), &[], &[("ruby", "3.1.2")]), ["ruby machine : `.ruby-version` says ruby-3.1"]);
    assert_eq!(auto(&wants("system"), &[], &[("ruby", "3.1.2")]), ["ruby machine : `.ruby-version` says system"]);
    let rbenv = place(Manager::Rbenv, "/b", &[("ruby", &["3.3.1"])]);
    assert_eq!(auto(&wants("system"), std::slice::from_ref(&rbenv), &[("ruby", "3.1.2")]), ["ruby machine : `.ruby-version` says system"]);
    for wanted in ["3.1.20", "3.3.1", "jruby-3.1.2", "3.1.2.1", "default"] {
        assert!(ask(&Setting::Auto, &wants(wanted), &[], &[("ruby", "3.1.2")]).is_err(), "{wanted}");
    }
    // A manager that is named in the configuration is meant.
    let by = Setting::By([(Manager::Rbenv, Pick::Files)].into());
    assert!(ask(&by, &wants("3.1.2"), &[rbenv], &[("ruby", "3.1.2")]).is_err());
}

#[test]
fn what_is_missing_says_what_is_installed_and_how_to_get_it() {
    let missing =
        |setting: &Setting, wants: &[Want], places: &[Place]| ask(setting, wants, places, &[("ruby", "3.1.2")]).expect_err("nobody has it");
    let ruby = files(&[(".ruby-version", "3.3.1")], &[]);
    assert_eq!(
        missing(&Setting::Auto, &ruby, &[place(Manager::Rbenv, "/b", &[("ruby", &["3.1.2", "3.2.0"])])]),
        "ruby 3.3.1 (`.ruby-version`) is not installed: rbenv in `/b` has 3.1.2, 3.2.0; the machine's own `/usr/bin/ruby` is 3.1.2; \
         `rbenv install 3.3.1` as user `deploy` installs it"
    );
    assert_eq!(
        missing(&Setting::Auto, &ruby, &[]),
        "ruby 3.3.1 (`.ruby-version`) is not installed: there is no rvm, rbenv, asdf, mise for user `deploy`; the machine's own \
         `/usr/bin/ruby` is 3.1.2; install it with one of them, or set `build.runtime: none` to run what the machine has"
    );
    let rvm = place(Manager::Rvm, "/v", &[("ruby", &["ruby-3.3.1"])]);
    let by = Setting::By([(Manager::Rvm, Pick::Version("3.3.1@flipper".into()))].into());
    assert_eq!(
        missing(&by, &[], &[rvm]),
        "ruby 3.3.1@flipper (`build.runtime`) is not installed: rvm in `/v` has ruby-3.3.1; the machine's own `/usr/bin/ruby` is 3.1.2; \
         `rvm use 3.3.1@flipper --create` as user `deploy` installs it"
    );
    let two = files(&[(".ruby-version", "3.3.1"), (".nvmrc", "20")], &[]);
    let text = missing(&Setting::Auto, &two, &[place(Manager::Asdf, "/a", &[])]);
    assert!(text.contains("`asdf install ruby 3.3.1`") && text.contains("`asdf install nodejs 20`"), "{text}");
    let by = Setting::By([(Manager::Pyenv, Pick::Files)].into());
    let text = missing(&by, &ruby, &[place(Manager::Pyenv, "/p", &[("python", &["3.11.7"])])]);
    assert!(text.starts_with("`build.runtime` is pyenv, but no file of the release names a version of python"), "{text}");
}

#[test]
fn a_tool_that_is_no_language_may_be_missing_and_is_told() {
    let asdf = place(Manager::Asdf, "/a", &[("ruby", &["3.3.1"])]);
    let wants = files(&[(".tool-versions", "terraform 1.5.0\nruby 3.3.1\n")], &[]);
    let (chosen, notes) = ask(&Setting::Auto, &wants, std::slice::from_ref(&asdf), &[]).expect("found");
    assert_eq!(chosen, ["ruby asdf 3.3.1: `.tool-versions` says 3.3.1"]);
    assert_eq!(notes, ["terraform 1.5.0 (`.tool-versions`) is not installed and is left out"]);
    // Whoever names it in the configuration means it.
    let tools = [("terraform".to_owned(), "1.5.0".to_owned())].into();
    assert!(ask(&Setting::By([(Manager::Asdf, Pick::Tools(tools))].into()), &[], &[asdf], &[]).is_err());
}

#[test]
fn the_configuration_names_managers_and_versions_and_then_files_count_only_where_it_says_auto() {
    let rvm = Place {
        environments: vec!["ruby-3.3.1".into(), "ruby-3.3.1@flipper".into()],
        ..place(Manager::Rvm, "/v", &[("ruby", &["ruby-3.3.1", "ruby-3.4.0"])])
    };
    let pyenv = Place {
        global: vec![Want { tool: "python".into(), versions: vec!["3.11.7".into()], file: "/p/version".into(), gemset: None }],
        ..place(Manager::Pyenv, "/p", &[("python", &["3.11.7", "3.12.1"])])
    };
    let asdf = place(Manager::Asdf, "/a", &[("node", &["20.1.0"]), ("ruby", &["3.3.1"])]);
    let places = [rvm, pyenv, asdf];
    let by = |picks: &[(Manager, Pick)]| Setting::By(picks.iter().cloned().collect());
    let ruby = files(&[(".ruby-version", "3.4.0"), (".tool-versions", "nodejs 20.1.0\nruby 3.3.1")], &[]);
    let get = |setting: &Setting, wants: &[Want]| ask(setting, wants, &places, &[]).expect("found").0;
    let version = |text: &str| Pick::Version(text.into());
    assert_eq!(
        get(&by(&[(Manager::Rvm, version("3.3.1@flipper"))]), &ruby),
        ["ruby rvm ruby-3.3.1@flipper: `build.runtime` says 3.3.1@flipper"]
    );
    assert_eq!(
        get(&by(&[(Manager::Rvm, version("3.3.1")), (Manager::Asdf, Pick::Files)]), &ruby),
        ["node asdf 20.1.0: `.tool-versions` says 20.1.0", "ruby rvm ruby-3.3.1: `build.runtime` says 3.3.1"]
    );
    assert_eq!(get(&by(&[(Manager::Pyenv, Pick::Files)]), &[]), ["python pyenv 3.11.7: `/p/version` says 3.11.7"]);
    let wants = files(&[(".python-version", "3.12")], &[]);
    assert_eq!(
        get(&by(&[(Manager::Pyenv, Pick::Files), (Manager::Venv, version(".venv"))]), &wants),
        ["python pyenv 3.12.1: `.python-version` says 3.12", "python venv : `build.runtime` says venv `.venv`"]
    );
    assert!(get(&Setting::None, &ruby).is_empty());
}

#[test]
fn pyenv_has_all_versions_of_its_file_or_none() {
    let pyenv = place(Manager::Pyenv, "/p", &[("python", &["3.11.7", "3.12.1"])]);
    let wants = |text: &str| files(&[(".python-version", text)], &[]);
    assert_eq!(
        auto(&wants("3.12\n3.11\n"), std::slice::from_ref(&pyenv), &[]),
        ["python pyenv 3.12.1+3.11.7: `.python-version` says 3.12"]
    );
    assert!(ask(&Setting::Auto, &wants("3.12\n3.9\n"), &[pyenv], &[]).is_err());
}
