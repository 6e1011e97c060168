//! `selfstart check`: what is wrong with the configuration and this machine, before it matters.

use clap::Args;
use serde::Serialize;

use super::ask::{Format, print, print_json};
use super::exit::Exit;
use super::failure::Stop;
use super::look::{Look, Style};
use crate::config::explain::Explained;

/// Flags of `check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Do not ask the source whether it has what is wanted
    #[arg(long)]
    pub(super) offline: bool,
    /// As for `run`: a role on top of `roles:`; may be repeated
    #[arg(long, value_name = "ROLE", value_parser = super::run::role)]
    pub(super) role: Vec<String>,
    /// Show each value first, and whether the file or a default says so; or all of them as a file that means the same
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "origins")]
    explain: Option<Explain>,
}

/// How values are shown.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Explain {
    /// A line each, with where it comes from
    Origins,
    /// The configuration with its defaults written out
    Yaml,
}

/// What was looked at.
pub(crate) struct Checkup {
    /// What was found.
    pub(crate) findings: Vec<Finding>,
    /// What the configuration comes to; `None`: it is not in order.
    pub(crate) explained: Option<Explained>,
}

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Weight {
    /// It was looked at and is as it should be.
    Good,
    /// Neither good nor bad, and worth knowing.
    Fact,
    /// It will run, but a person should know.
    Warning,
    /// It will not run.
    Problem,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How much it weighs.
    pub(crate) weight: Weight,
    /// What it is, on one line; of the configuration: `PATH:LINE:COLUMN: KEY.PATH: ...`.
    pub(crate) text: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

/// Prints what was found: problems as `run` would, warnings, and a last word.
pub(crate) fn check(checkup: &Checkup, args: &CheckArgs) -> Result<Exit, Stop> {
    /// `{"schema": 1, "ok": true, "findings": [...], "values"?: [...]}`.
    #[derive(Serialize)]
    struct Checked<'a> {
        schema: u32,
        ok: bool,
        findings: &'a [Finding],
        #[serde(skip_serializing_if = "Option::is_none")]
        values: Option<serde_json::Value>,
    }
    let findings = checkup.findings.as_slice();
    let explained = checkup.explained.as_ref().filter(|_| args.explain.is_some());
    let ok = findings.iter().all(|finding| finding.weight != Weight::Problem);
    match Format::json(args.json) {
        Format::Json => print_json(&Checked { schema: 1, ok, findings, values: explained.map(Explained::values_to_json) })?,
        Format::Text => {
            let values = explained.map(|explained| match args.explain {
                // None that is known cannot be written; then the other form, which can.
                Some(Explain::Yaml) => explained.to_yaml().unwrap_or_else(|_| explained.to_string()),
                _ => format!("{explained}\n"),
            });
            // A file to be kept has no last word in it.
            let last = if args.explain == Some(Explain::Yaml) && ok { String::new() } else { render(findings, &Look::of_stdout()) };
            print(&(values.unwrap_or_default() + &last))?;
        }
    }
    Ok(if ok { Exit::Done } else { Exit::Configuration })
}

fn render(findings: &[Finding], look: &Look) -> String {
    let mut text = String::new();
    for finding in findings {
        let prefix = match finding.weight {
            Weight::Good => continue,
            Weight::Fact => String::new(),
            Weight::Warning => look.paint.on(Style::Warn, "warning: "),
            Weight::Problem => String::new(),
        };
        text.push_str(&format!("{prefix}{}\n", finding.text));
        if let Some(hint) = &finding.hint {
            text.push_str(&format!("{} {hint}\n", look.paint.on(Style::Good, "hint:")));
        }
    }
    let count = |weight| findings.iter().filter(|finding| finding.weight == weight).count();
    let last = match (count(Weight::Problem), count(Weight::Warning)) {
        (0, 0) => look.paint.on(Style::Good, "all is well"),
        (0, n) => look.paint.on(Style::Warn, &format!("it will run, with {}", counted(n, "warning"))),
        (n, _) => look.paint.on(Style::Bad, &format!("it will not run: {}", counted(n, "problem"))),
    };
    text + &last + "\n"
}

fn counted(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::look::{Paint, tests::reader};

    #[test]
    fn findings_are_told_with_a_last_word() {
        let finding = |weight, text: &str, hint: Option<&str>| Finding { weight, text: text.into(), hint: hint.map(Into::into) };
        let findings = [
            finding(Weight::Problem, "c.yaml:3:1: sorce: unknown key, found `sorce`", Some("did you mean `source`?")),
            finding(Weight::Warning, "workers run as root", Some("set `user:`")),
            finding(Weight::Good, "root is writable", None),
            finding(Weight::Fact, "build.runtime: ruby 3.3.1", None),
        ];
        let drawn = |findings: &[Finding]| render(findings, &reader(None, Paint::Plain));
        insta::assert_snapshot!([drawn(&findings), drawn(&findings[1..]), drawn(&findings[2..])].join("--\n"));
    }
}
