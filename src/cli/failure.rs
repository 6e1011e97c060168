//! How a failure is told: what failed, why, what to do next, on stderr; and that a reader who went away (`| head`) is none.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use super::exit::Exit;
use super::look::{Paint, Style, clean};
use crate::control::client::ClientError;

/// Why a verb stopped before its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Something failed.
    Failed(Box<Failure>),
    /// Who read our output does not want more.
    PipeClosed,
}

/// What failed, why, and what to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// What failed.
    pub(crate) what: String,
    /// Why, from the outermost cause to the innermost.
    pub(crate) causes: Vec<String>,
    /// What to do next.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// Something failed, for no further reason.
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), causes: Vec::new(), hint: None }
    }

    /// Something failed, and an error says why.
    pub(crate) fn because(exit: Exit, what: impl Into<String>, cause: &dyn Error) -> Self {
        let mut failure = Self::new(exit, what);
        let mut next = Some(cause);
        while let Some(cause) = next {
            failure.causes.push(cause.to_string());
            next = cause.source();
        }
        failure
    }

    /// The error itself is what failed; its sources say why.
    pub(crate) fn of(exit: Exit, error: &dyn Error) -> Self {
        match error.source() {
            Some(source) => Self::because(exit, error.to_string(), source),
            None => Self::new(exit, error.to_string()),
        }
    }

    /// Adds what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns the lines for stderr, STYLE.md section 5.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {}", paint.on(Style::Bad, "error:"), clean_lines(&self.what));
        for cause in &self.causes {
            let _ = writeln!(text, "  caused by: {}", clean_lines(cause));
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "{} {}", paint.on(Style::Good, "hint:"), clean_lines(hint));
        }
        text
    }
}

/// What the agent and others say may have several lines (a build step's last words), but no control codes.
fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n  ")
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        let exit = match error {
            ClientError::NoAgent(_) | ClientError::Silent(_) | ClientError::GoneAway => Exit::NoAgent,
            ClientError::NotAllowed(_) => Exit::Refused,
            ClientError::Io { .. } | ClientError::Garbled { .. } | ClientError::Late => Exit::Failed,
        };
        let failure = Failure::of(exit, &error);
        match error.hint() {
            Some(hint) => failure.hint(hint).into(),
            None => failure.into(),
        }
    }
}

/// Names the failure of writing to stdout.
pub(crate) fn printing(error: io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::PipeClosed,
        _ => Failure::because(Exit::Failed, "failed to write to standard output", &error).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_next() {
        let failure = Failure {
            exit: Exit::Failed,
            what: "failed to switch `current` to release 20261122-9f3c1ab".into(),
            causes: vec!["failed to sync directory `/srv/app/releases`: read-only file system (os error 30)".into()],
            hint: Some("the old release is still in use; run `selfstart status` to see it".into()),
        };
        insta::assert_snapshot!(failure.render(Paint::Plain), @r"
        error: failed to switch `current` to release 20261122-9f3c1ab
          caused by: failed to sync directory `/srv/app/releases`: read-only file system (os error 30)
        hint: the old release is still in use; run `selfstart status` to see it
        ");
    }

    #[test]
    fn what_a_build_says_cannot_drive_the_terminal() {
        let failure = Failure::new(Exit::Failed, "step 2 ended with 1: \u{1b}[2Jgone\nsecond line");
        insta::assert_snapshot!(failure.render(Paint::Plain), @r"
        error: step 2 ended with 1: ?[2Jgone
          second line
        ");
    }

    #[test]
    fn every_failure_to_reach_the_agent_has_its_code() {
        let path = || PathBuf::from("/r/run/control.sock");
        let told = |error: ClientError| match Stop::from(error) {
            Stop::Failed(failure) => format!("{} {}", failure.exit.code(), failure.render(Paint::Plain)),
            Stop::PipeClosed => unreachable!("only a failed write is one"),
        };
        let io = || io::Error::from(io::ErrorKind::ConnectionAborted);
        let all = [
            ClientError::NoAgent(path()),
            ClientError::NotAllowed(path()),
            ClientError::Silent(path()),
            ClientError::GoneAway,
            ClientError::Io { path: path(), source: io() },
            ClientError::Garbled { path: path(), source: io() },
            ClientError::Late,
        ];
        insta::assert_snapshot!(all.map(told).concat());
    }
}
