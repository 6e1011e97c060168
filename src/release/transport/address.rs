//! What `source.repository` means.

use std::fmt;
use std::path::PathBuf;

use reqwest::Url;

use crate::release::git::{Credentials, ErrorKind, Failure, Secret};

/// Where a repository is, and by which way it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::release) enum Address {
    /// A path on this machine.
    Local(PathBuf),
    /// `git://`: libgit2's own.
    Git(Url),
    /// `http://` or `https://`.
    Http {
        /// Without user and password.
        url: Url,
        /// What the URL had of them.
        user: Option<(Secret, Secret)>,
    },
    /// `ssh://` or `user@host:path`.
    Ssh(SshTarget),
}

/// What the ssh client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::release) struct SshTarget {
    /// `None`: as the user's ssh configuration says.
    pub(super) user: Option<String>,
    /// A name or an address, an IPv6 one without brackets.
    pub(super) host: String,
    /// `None`: 22, or as the user's ssh configuration says.
    pub(super) port: Option<u16>,
    /// Given to `git-upload-pack` on the other side.
    pub(super) path: String,
}

impl Address {
    /// Takes `source.repository` apart.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for what is none of the forms above.
    pub(in crate::release) fn parse(text: &str) -> Result<Self, Failure> {
        if text.starts_with('/') {
            return Ok(Self::Local(text.into()));
        }
        if text.contains('\0') || text.chars().any(char::is_control) {
            return Err(unsupported("the repository's address has control characters"));
        }
        let Some((scheme, rest)) = text.split_once("://") else { return scp_like(text) };
        match scheme.to_ascii_lowercase().as_str() {
            "file" => {
                let path = rest.strip_prefix("localhost").unwrap_or(rest);
                if !path.starts_with('/') {
                    return Err(unsupported("`file://` wants an absolute path: file:///srv/repository.git"));
                }
                Ok(Self::Local(percent_decoded(path).into()))
            }
            "git" => {
                let url = parse_url(text)?;
                if !url.username().is_empty() || url.password().is_some() {
                    return Err(unsupported("git:// knows no user, and would show a password to everybody"));
                }
                Ok(Self::Git(url))
            }
            "http" | "https" => {
                let mut url = parse_url(text)?;
                let user = (!url.username().is_empty() || url.password().is_some()).then(|| {
                    let part = |text: &str| Secret(percent_decoded(text));
                    (part(url.username()), part(url.password().unwrap_or_default()))
                });
                // Only a URL that cannot have a user fails here, and this one has a host.
                let _ = url.set_username("");
                let _ = url.set_password(None);
                url.set_fragment(None);
                Ok(Self::Http { url, user })
            }
            "ssh" | "git+ssh" | "ssh+git" => {
                let url = parse_url(text)?;
                let path = percent_decoded(url.path());
                // `/~user/x` is below that user's home, as git has it.
                let path = if path.starts_with("/~") { path[1..].to_owned() } else { path };
                let user = percent_decoded(url.username());
                let host = url.host_str().unwrap_or_default();
                // The port is no default of the scheme to the url crate: what is written is kept.
                ssh_target((!user.is_empty()).then_some(user), host, url.port(), path)
            }
            other => Err(unsupported(&format!("no such way to reach a repository: `{other}://`"))),
        }
    }

    /// Returns what libgit2 is told; never holds a secret.
    pub(in crate::release) fn for_libgit2(&self) -> String {
        match self {
            Self::Local(path) => path.display().to_string(),
            Self::Git(url) | Self::Http { url, .. } => url.to_string(),
            // The transport knows where to go; libgit2 only wants a URL of the registered scheme.
            Self::Ssh(_) => "ssh://source/".to_owned(),
        }
    }

    /// Whether credentials for one are for the other, too: the same host, port and way, and over ssh the same user.
    pub(in crate::release) fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Http { url, .. }, Self::Http { url: of, user }) => url.origin() == of.origin() && user.is_none(),
            (Self::Ssh(target), Self::Ssh(of)) => (&target.user, &target.host, target.port) == (&of.user, &of.host, of.port),
            _ => false,
        }
    }

    /// The user and password that the address has.
    pub(in crate::release) fn credentials(&self) -> Credentials {
        match self {
            Self::Http { user: Some((username, password)), .. } => {
                Credentials::Password { username: username.clone(), password: password.clone() }
            }
            _ => Credentials::None,
        }
    }

    /// Whether what is said there is read by everybody on the way.
    pub(in crate::release) fn is_plain(&self) -> bool {
        matches!(self, Self::Git(_)) || matches!(self, Self::Http { url, .. } if url.scheme() == "http")
    }

    /// Whether commits can be left out: not where libgit2 copies from a directory.
    pub(in crate::release) const fn can_be_shallow(&self) -> bool {
        !matches!(self, Self::Local(_))
    }
}

impl fmt::Display for Address {
    /// As people know it, without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Git(url) | Self::Http { url, .. } => url.fmt(f),
            Self::Ssh(target) => {
                f.write_str("ssh://")?;
                if let Some(user) = &target.user {
                    write!(f, "{user}@")?;
                }
                if target.host.contains(':') { write!(f, "[{}]", target.host) } else { f.write_str(&target.host) }?;
                if let Some(port) = target.port {
                    write!(f, ":{port}")?;
                }
                write!(f, "{}{}", if target.path.starts_with('/') { "" } else { "/" }, target.path)
            }
        }
    }
}

fn unsupported(text: &str) -> Failure {
    Failure::new(ErrorKind::Unsupported, text.to_owned())
        .hint("`source.repository` is https://, ssh://, user@host:path, git://, file:// or an absolute path")
}

fn parse_url(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text).map_err(|error| unsupported(&format!("the repository's address is no URL: {error}")))?;
    if url.host_str().is_none_or(str::is_empty) { Err(unsupported("the repository's address has no host")) } else { Ok(url) }
}

/// `user@host:path`, `host:path`, `[::1]:path`; the path is below the user's home unless it begins with `/`.
fn scp_like(text: &str) -> Result<Address, Failure> {
    let none = || unsupported(&format!("not the address of a repository: `{text}`"));
    let (user, rest) = match text.split_once('@') {
        Some((user, rest)) if !user.contains([':', '/', '[']) => (Some(user.to_owned()), rest),
        _ => (None, text),
    };
    let (host, path) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").ok_or_else(none)?,
        None => rest.split_once(':').ok_or_else(none)?,
    };
    // `ext::command` and the like: git's remote helpers, which run programs.
    if host.contains('/') || path.starts_with(':') {
        return Err(none());
    }
    ssh_target(user, host, None, path.to_owned())
}

/// Refuses what the ssh client would take for an option or a second word.
fn ssh_target(user: Option<String>, host: &str, port: Option<u16>, path: String) -> Result<Address, Failure> {
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let plain = |text: &str| !text.is_empty() && !text.starts_with('-') && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if !plain(&host) || host.contains('@') || user.as_deref().is_some_and(|user| !plain(user)) {
        return Err(unsupported("the repository's address has no plain user and host"));
    }
    if path.is_empty() || path.contains('\0') || path.starts_with('-') {
        return Err(unsupported("the repository's address has no path"));
    }
    Ok(Address::Ssh(SshTarget { user, host, port, path }))
}

/// Undoes `%41`; what is no such sequence, or would be no UTF-8, stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        Address::parse(text).map_or_else(|failure| format!("{:?}", failure.kind), |address| address.to_string())
    }

    #[test]
    fn every_form_of_address_is_understood() {
        for (text, expected) in [
            ("/srv/x.git", "/srv/x.git"),
            ("file:///srv/a%20b.git", "/srv/a b.git"),
            ("file://localhost/srv/x", "/srv/x"),
            ("git://host/x", "git://host/x"),
            ("https://host/x.git", "https://host/x.git"),
            ("HTTPS://Host:8443/x.git#y", "https://host:8443/x.git"),
            ("git@host:acme/x.git", "ssh://git@host/acme/x.git"),
            ("host:x", "ssh://host/x"),
            ("git@[::1]:x", "ssh://git@[::1]/x"),
            ("ssh://git@host:2222/srv/x", "ssh://git@host:2222/srv/x"),
            ("ssh://git@[::1]:22/~joe/x", "ssh://git@[::1]:22/~joe/x"),
            ("x", "Unsupported"),
            ("./x:y", "Unsupported"),
            ("", "Unsupported"),
            ("ext::sh -c x", "Unsupported"),
            ("ext::true", "Unsupported"),
            ("ext://x", "Unsupported"),
            ("https://", "Unsupported"),
            ("git://u:p@h/x", "Unsupported"),
            ("git://u@h/x", "Unsupported"),
            ("file://x", "Unsupported"),
            ("ssh://-oProxyCommand=x/y", "Unsupported"),
            ("-oProxyCommand=x:y", "Unsupported"),
            ("git@-oProxyCommand=x:y", "Unsupported"),
            ("-x@host:y", "Unsupported"),
            ("host:", "Unsupported"),
            ("host:-x", "Unsupported"),
            ("ssh://host/a%00b", "Unsupported"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_used_and_never_shown() {
        let address = Address::parse("https://joe%40acme:p%3Aw@host/x").expect("an address");
        assert_eq!(address.for_libgit2(), "https://host/x");
        assert!(!format!("{address} {address:?}").contains("p:w"));
        let Address::Http { user: Some((user, password)), .. } = address else { unreachable!("it has a user") };
        assert_eq!((user.0.as_str(), password.0.as_str()), ("joe@acme", "p:w"));
    }

    #[test]
    fn a_path_from_home_and_one_from_the_top_are_told_apart() {
        for (text, path) in [("git@h:x/y", "x/y"), ("git@h:/x/y", "/x/y"), ("ssh://h/x/y", "/x/y"), ("ssh://h/~/y", "~/y")] {
            let Address::Ssh(target) = Address::parse(text).expect("an address") else { unreachable!("it is ssh") };
            assert_eq!(target.path, path, "{text}");
        }
    }
}
