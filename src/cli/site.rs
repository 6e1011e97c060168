//! Which app is meant, and where its files are.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use selfstart_core::command::{PoolShape, Target, TargetError, resolve};

use super::exit::Exit;
use super::failure::Failure;

/// The configuration where nobody says otherwise.
const DEFAULT_CONFIG: &str = "/etc/selfstart/config.yaml";

/// The variable that names another.
const CONFIG_VARIABLE: &str = "SELFSTART_CONFIG";

/// What the command line needs to know of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// `app:`.
    pub(crate) app: String,
    /// `root:`, absolute.
    pub(crate) root: PathBuf,
    /// The pools whose slots share a file (`log: {file: ...}`), absolute.
    pub(crate) shared_logs: Vec<(String, PathBuf)>,
    /// The pools, as configured; empty when the configuration is broken.
    pub(crate) pools: Vec<PoolShape>,
}

/// Reads a configuration; the error is its problems, one each, as `selfstart check` prints them.
pub(crate) type Load = fn(&Path) -> Result<Loaded, Vec<String>>;

/// One app on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// Where its configuration is.
    pub(crate) config: PathBuf,
    /// What that says.
    pub(crate) loaded: Loaded,
    /// The configuration is broken; found by its `app:` and `root:` alone. The problems.
    pub(crate) problems: Vec<String>,
}

impl Site {
    /// The control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.loaded.root.join("run/control.sock")
    }

    /// Whether its configuration is where nobody has to name it.
    pub(crate) fn is_usual(&self) -> bool {
        self.config == Path::new(DEFAULT_CONFIG)
    }

    /// Every event, newest file.
    pub(crate) fn events(&self) -> PathBuf {
        self.loaded.root.join("run/events.jsonl")
    }

    /// Whether a target is configured; who asks for what is not there should look twice.
    pub(crate) fn knows(&self, target: &Target) -> Result<(), Failure> {
        // By a broken configuration nothing is known.
        if self.loaded.pools.is_empty() {
            return Ok(());
        }
        let failure = |error: TargetError| Failure::new(Exit::Usage, error.to_string()).hint(error.hint());
        resolve(std::slice::from_ref(target), &self.loaded.pools).map(drop).map_err(failure)
    }

    /// Where workers' output is.
    pub(crate) fn logs(&self) -> PathBuf {
        self.loaded.root.join("log")
    }
}

/// Returns where the configuration is: `--config`, else `--app`, else `$SELFSTART_CONFIG`, else the usual place.
pub(crate) fn config_path(config: Option<&Path>, app: Option<&str>, variable: Option<PathBuf>) -> PathBuf {
    match (config, app) {
        (Some(path), _) => path.to_owned(),
        (None, Some(app)) => Path::new(DEFAULT_CONFIG).with_file_name(format!("{app}.yaml")),
        (None, None) => variable.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| DEFAULT_CONFIG.into()),
    }
}

/// Returns `$SELFSTART_CONFIG`.
pub(crate) fn config_variable() -> Option<PathBuf> {
    std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from)
}

/// Finds the app. A broken configuration does not hide a running agent: then its `app:` and `root:` lines must do.
pub(crate) fn locate(config: &Path, app: Option<&str>, load: Load) -> Result<Site, Failure> {
    let (loaded, problems) = match load(config) {
        Ok(loaded) => (loaded, Vec::new()),
        Err(problems) => match fs_err::read_to_string(config).ok().and_then(|text| by_lines(&text)) {
            Some(loaded) => (loaded, problems),
            None => return Err(broken(config, &problems)),
        },
    };
    same_app(config, app, &loaded)?;
    Ok(Site { config: config.to_owned(), loaded, problems })
}

/// For verbs that say themselves what is wrong with a configuration: refuses one that is another app's.
pub(crate) fn not_another(config: &Path, app: Option<&str>, load: Load) -> Result<(), Failure> {
    match app.map(|_| load(config)) {
        Some(Ok(loaded)) => same_app(config, app, &loaded),
        None | Some(Err(_)) => Ok(()),
    }
}

fn same_app(config: &Path, app: Option<&str>, loaded: &Loaded) -> Result<(), Failure> {
    let Some(app) = app.filter(|app| *app != loaded.app) else { return Ok(()) };
    let what = format!("`{}` is the configuration of app `{}`, not of `{app}`", config.display(), loaded.app);
    Err(Failure::new(Exit::Usage, what).hint("leave out --app or --config"))
}

/// The failure of a verb that needs the configuration.
pub(crate) fn broken(config: &Path, problems: &[String]) -> Failure {
    let path = config.display();
    match fs_err::File::open(config) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let failure = Failure::new(Exit::Configuration, format!("there is no configuration at `{path}`"));
            failure.hint(format!("name it with --config or {CONFIG_VARIABLE}"))
        }
        Err(error) => {
            let failure = Failure::because(Exit::Configuration, format!("the configuration `{path}` cannot be read"), &error);
            failure.hint(format!("run this as who may read it, or name another one with --config or {CONFIG_VARIABLE}"))
        }
        Ok(_) => {
            let what = format!("the configuration `{path}` is wrong");
            let failure = Failure { exit: Exit::Configuration, what, causes: problems.to_vec(), hint: None };
            failure.hint(format!("name it with --config or {CONFIG_VARIABLE}; `selfstart check` tells all that is wrong with it"))
        }
    }
}

/// Reads only the lines `app: NAME` and `root: PATH` of a configuration that is broken elsewhere.
pub(crate) fn by_lines(text: &str) -> Option<Loaded> {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        // In YAML a comment begins at a ` #`.
        let line = line.split(" #").next().unwrap_or_default().trim();
        let bare = line.trim_matches(|c| c == '"' || c == '\'');
        (!bare.is_empty()).then(|| bare.to_owned())
    };
    let app = value("app").filter(|app| app.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))?;
    let root = value("root").map_or_else(|| Path::new("/var/lib/selfstart").join(&app), PathBuf::from);
    root.is_absolute().then_some(Loaded { app, root, shared_logs: Vec::new(), pools: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_comes_before_the_environment() {
        let variable = || Some(PathBuf::from("/v.yaml"));
        assert_eq!(config_path(Some(Path::new("c.yaml")), Some("shop"), variable()), Path::new("c.yaml"));
        assert_eq!(config_path(None, Some("shop"), variable()), Path::new("/etc/selfstart/shop.yaml"));
        assert_eq!(config_path(None, None, variable()), Path::new("/v.yaml"));
        assert_eq!(config_path(None, None, Some(PathBuf::new())), Path::new("/etc/selfstart/config.yaml"));
        assert_eq!(config_path(None, None, None), Path::new("/etc/selfstart/config.yaml"));
    }

    #[test]
    fn two_lines_of_a_broken_configuration_lead_to_its_agent() {
        let found = |text: &str| by_lines(text).map(|loaded| (loaded.app, loaded.root.display().to_string()));
        let shop = |root: &str| Some(("shop".to_owned(), root.to_owned()));
        assert_eq!(found("pools: [\napp: shop\nroot: /srv/shop # here\n"), shop("/srv/shop"));
        assert_eq!(found("app: 'shop'\r\nroot: \"/srv/a b\"\r\n"), shop("/srv/a b"));
        assert_eq!(found("app: shop\n"), shop("/var/lib/selfstart/shop"));
        assert_eq!(found("x:\n  app: shop\n"), None, "not at the top level");
        assert_eq!(found("app: ../../etc\n"), None);
        assert_eq!(found("app: shop\nroot: srv\n"), None);
        assert_eq!(found(""), None);
    }

    #[test]
    fn another_app_s_configuration_is_not_used() {
        let load: Load = |_| Ok(Loaded { app: "shop".into(), root: "/srv/shop".into(), shared_logs: Vec::new(), pools: Vec::new() });
        let failure = locate(Path::new("/c.yaml"), Some("mail"), load).expect_err("another app");
        assert_eq!((failure.exit, failure.what.as_str()), (Exit::Usage, "`/c.yaml` is the configuration of app `shop`, not of `mail`"));
    }

    #[test]
    fn no_configuration_and_nothing_to_go_by_is_a_configuration_error() {
        let load: Load = |path| Err(vec![format!("{}:1:1: app: missing", path.display())]);
        let failure = locate(Path::new("/nowhere/c.yaml"), None, load).expect_err("no file");
        assert_eq!((failure.exit, failure.what.as_str()), (Exit::Configuration, "there is no configuration at `/nowhere/c.yaml`"));
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("c.yaml");
        fs_err::write(&path, "sorce: x\n").expect("a file");
        let failure = locate(&path, None, load).expect_err("nothing to go by");
        assert_eq!(failure.causes, [format!("{}:1:1: app: missing", path.display())]);
    }
}
