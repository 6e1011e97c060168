//! What the exit code of `selfstart` says.

/// How `selfstart` ended, for scripts. The numbers are an interface (PRODUCT.md section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, also when there was nothing to do.
    Done,
    /// It failed, with the reason.
    Failed,
    /// Wrong usage: an unknown verb, flag, pool or slot.
    Usage,
    /// No agent answers.
    NoAgent,
    /// Refused: held, quarantined, busy, draining, or not for this user.
    Refused,
    /// The configuration is wrong.
    Configuration,
    /// As another program ended: `exec`.
    Other(u8),
}

impl Exit {
    /// Every code with its meaning, for the reference page.
    #[cfg(test)]
    pub(crate) const TABLE: [(Self, &'static str); 6] = [
        (Self::Done, "done, also when there was nothing to do"),
        (Self::Failed, "it failed; the reason is on stderr"),
        (Self::Usage, "wrong usage: an unknown verb, flag, pool or slot"),
        (Self::NoAgent, "no agent answers"),
        (Self::Refused, "refused: held, quarantined, busy, draining, or not for this user"),
        (Self::Configuration, "the configuration is wrong"),
    ];

    /// Returns the number.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NoAgent => 3,
            Self::Refused => 4,
            // EX_CONFIG of sysexits.h; systemd's RestartPreventExitStatus names it.
            Self::Configuration => 78,
            Self::Other(code) => code,
        }
    }
}
