//! The units, as they are written. Pure.

/// Where `install` puts units; a package puts them below [`PACKAGED`].
pub(crate) const DIRECTORY: &str = "/etc/systemd/system";

/// Where packages put units (file-hierarchy(7)); what is in [`DIRECTORY`] would hide them.
pub(crate) const PACKAGED: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];

/// The unit that is enabled.
pub(crate) const MAIN: &str = "selfstart.service";

/// Each unit with its text.
pub(crate) const ALL: [(&str, &str); 4] = [
    (MAIN, include_str!("../../systemd/selfstart.service")),
    ("selfstart-workers.service", include_str!("../../systemd/selfstart-workers.service")),
    ("selfstart@.service", include_str!("../../systemd/selfstart@.service")),
    ("selfstart-workers@.service", include_str!("../../systemd/selfstart-workers@.service")),
];

/// The program in the units as they are in the project.
pub(crate) const BINARY: &str = "/usr/bin/selfstart";

/// Returns a unit's text with another program.
pub(crate) fn with_binary(text: &str, binary: &str) -> String {
    let line = |line: &str| match line.split_once('=') {
        Some((key, command)) if key.starts_with("Exec") => match command.strip_prefix(BINARY) {
            Some(rest) => format!("{key}={binary}{rest}\n"),
            None => format!("{line}\n"),
        },
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_program_changes() {
        for (name, text) in ALL {
            assert_eq!(with_binary(text, BINARY), text, "{name}");
            let changed = with_binary(text, "/opt/bin/x");
            let starts = |text: &str, program: &str| text.lines().filter(|line| line.starts_with("Exec") && line.contains(program)).count();
            assert!(
                starts(text, BINARY) > 0 && starts(&changed, BINARY) == 0 && starts(&changed, "/opt/bin/x") == starts(text, BINARY),
                "{name}"
            );
            assert_eq!(changed.replace("/opt/bin/x", BINARY), text, "{name}");
        }
    }
}
