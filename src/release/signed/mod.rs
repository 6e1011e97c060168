//! Who signed a commit or a tag: `source.verify.allowed_signers`. Pure: bytes in, a verdict out.
//!
//! Signatures are those of `git commit -S` and `git tag -s` with `gpg.format=ssh`. What counts is what `git verify-commit` and
//! `git verify-tag` accept with the same file; tests/git/signed.rs asks both. Stricter than git on purpose: a second signature in
//! one commit, one without a date, a tag that stands under another name than it was signed with, RSA keys below 2048 bits, and P-521, which ring
//! does not know.

mod signers;
mod sshsig;

use std::fmt;

pub(crate) use signers::Signers;
use sshsig::Signature;

/// What `ssh-keygen -Y sign -n` is told by git.
const NAMESPACE: &str = "git";
/// How signatures begin, and what makes them.
const OTHERS: [(&str, &str); 3] =
    [("-----BEGIN PGP SIGNATURE-----", "GPG"), ("-----BEGIN PGP MESSAGE-----", "GPG"), ("-----BEGIN SIGNED MESSAGE-----", "X.509")];

/// Who signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signer {
    /// As `allowed_signers` names them.
    pub(crate) principal: String,
    /// The kind of key and its fingerprint.
    pub(crate) key: String,
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "signed by {} with {}", self.principal.escape_debug(), self.key)
    }
}

/// Why it does not count as signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsigned {
    /// No signature.
    #[error("is not signed")]
    Not,
    /// A tag that is only a name has nothing that could be signed.
    #[error("is a lightweight tag, which cannot be signed")]
    Lightweight,
    /// Another kind of signature.
    #[error("is signed by {0}, and only SSH signatures are checked")]
    Other(&'static str),
    /// Two signatures: which of them would count?
    #[error("is signed more than once")]
    Twice,
    /// A tag was given another name.
    #[error("was signed as tag `{0}`")]
    Renamed(String),
    /// The signature cannot be read.
    #[error("has a signature that cannot be read: {0}")]
    Damaged(&'static str),
    /// Without a date it cannot be told whether the key was valid.
    #[error("is signed, but without a date")]
    NoDate,
    /// It is not what was signed, or not by this key.
    #[error("has a signature with {key} that is WRONG: it was changed after it was signed, or the signature is of something else")]
    Wrong {
        /// Which key is said to have signed.
        key: String,
    },
    /// Made for something else than git.
    #[error("has a signature with {key} that was made for `{namespace}`, not for git")]
    Namespace {
        /// Which key.
        key: String,
        /// For what.
        namespace: String,
    },
    /// A kind of key that cannot be checked.
    #[error("is signed with a key that cannot be checked here: {0}")]
    Kind(String),
    /// A right signature of somebody who may not.
    #[error("is signed with {key}, which `source.verify.allowed_signers` does not allow{}", said(.why))]
    NotAllowed {
        /// Which key.
        key: String,
        /// What is written about that key.
        why: Vec<String>,
    },
}

fn said(why: &[String]) -> String {
    if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) }
}

impl Unsigned {
    /// Returns what to do next.
    pub(crate) const fn hint(&self) -> &'static str {
        match self {
            Self::Not => "sign it: `git config gpg.format ssh`, `git config user.signingkey KEY.pub`, `git commit --amend -S`",
            Self::Lightweight => "make a signed tag: `git tag -s NAME`",
            Self::Other(_) => "sign with an SSH key: `git config gpg.format ssh` and `user.signingkey`",
            Self::Twice | Self::Renamed(_) | Self::Damaged(_) | Self::NoDate => "sign it anew",
            Self::Wrong { .. } => "someone may have tampered with it: ask who made it",
            Self::Namespace { .. } => "sign it by git itself: `git commit -S`, `git tag -s`",
            Self::Kind(_) => "sign with Ed25519, ECDSA on P-256 or P-384, RSA of 2048 bits or more, or a security key of these",
            Self::NotAllowed { .. } => {
                "if that person may deploy, add `NAME namespaces=\"git\" KEY` to that file; it is read at each fetch"
            }
        }
    }
}

/// Says who signed a commit, from its object as it is stored.
///
/// # Errors
/// Why it does not count.
pub(crate) fn commit(object: &[u8], signers: &Signers) -> Result<Signer, Unsigned> {
    let (payload, signature) = split_commit(object)?;
    let at = date(&payload, b"committer ").ok_or(Unsigned::NoDate)?;
    check(&payload, &signature, at, signers)
}

/// Says who signed a tag object that stands under this name.
///
/// # Errors
/// Why it does not count.
pub(crate) fn tag(object: &[u8], name: &str, signers: &Signers) -> Result<Signer, Unsigned> {
    let (payload, signature) = split_tag(object)?;
    let at = date(payload, b"tagger ").ok_or(Unsigned::NoDate)?;
    let signer = check(payload, signature, at, signers)?;
    let signed = header(payload, b"tag ").unwrap_or_default();
    if signed != name.as_bytes() {
        return Err(Unsigned::Renamed(String::from_utf8_lossy(signed).escape_debug().to_string()));
    }
    Ok(signer)
}

fn check(payload: &[u8], signature: &[u8], at: i64, signers: &Signers) -> Result<Signer, Unsigned> {
    let text = String::from_utf8_lossy(signature);
    if let Some((_, maker)) = OTHERS.iter().find(|(begin, _)| text.starts_with(begin)) {
        return Err(Unsigned::Other(maker));
    }
    let signature = Signature::read(&text)?;
    let key = signature.key.shown();
    signature.verify(payload, NAMESPACE)?;
    match signers.who(&signature.key, NAMESPACE, at) {
        Ok(principal) => Ok(Signer { principal, key }),
        Err(why) => Err(Unsigned::NotAllowed { key, why }),
    }
}

/// Takes a commit apart into what was signed and the signature, as git's `parse_buffer_signed_by_header` does.
fn split_commit(object: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Unsigned> {
    let (mut payload, mut signature) = (Vec::new(), Vec::new());
    let (mut in_signature, mut in_other, mut times) = (false, false, 0);
    let mut rest = object;
    while !rest.is_empty() {
        let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
        let (line, after) = rest.split_at(end);
        if line == b"\n" {
            payload.extend_from_slice(rest);
            break;
        }
        rest = after;
        if let Some(more) = line.strip_prefix(b" ").filter(|_| in_signature) {
            signature.extend_from_slice(more);
            continue;
        }
        in_signature = false;
        if let Some(first) = line.strip_prefix(b"gpgsig ") {
            (in_signature, in_other) = (true, false);
            times += 1;
            signature.extend_from_slice(first);
        } else if line.starts_with(b"gpgsig") {
            // Of the same commit with ids of another hash: not signed by this one.
            in_other = true;
        } else {
            in_other &= line.starts_with(b" ");
            if !in_other {
                payload.extend_from_slice(line);
            }
        }
    }
    match times {
        0 => Err(Unsigned::Not),
        1 => Ok((payload, signature)),
        _ => Err(Unsigned::Twice),
    }
}

/// Takes a tag apart: its signature is the last thing in it that begins as one (git's `parse_signed_buffer`).
fn split_tag(object: &[u8]) -> Result<(&[u8], &[u8]), Unsigned> {
    let mut begin = None;
    let mut at = 0;
    while at < object.len() {
        let line = &object[at..];
        if line.starts_with(sshsig::BEGIN.as_bytes()) || OTHERS.iter().any(|(other, _)| line.starts_with(other.as_bytes())) {
            begin = Some(at);
        }
        at += memchr::memchr(b'\n', line).map_or(line.len(), |end| end + 1);
    }
    let (payload, signature) = object.split_at(begin.ok_or(Unsigned::Not)?);
    // A header that git would leave out of what was signed: nobody writes it into a tag with SHA-1 ids.
    if header(payload, b"gpgsig").is_some() {
        return Err(Unsigned::Twice);
    }
    Ok((payload, signature))
}

/// Returns what follows `name` in the first header line that begins with it.
fn header<'a>(object: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    object.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix(name))
}

/// Returns the seconds since 1970 of a header `NAME <MAIL> SECONDS ZONE`; `None`: it has none, or one that git takes for none, and that no
/// key's dates could be held against.
fn date(object: &[u8], name: &[u8]) -> Option<i64> {
    let line = std::str::from_utf8(header(object, name)?.rsplit(|byte| *byte == b'>').next()?).ok()?;
    line.split_ascii_whitespace().next()?.parse().ok().filter(|at| *at > 0)
}
