//! A private key out of its file: read, named by its fingerprint, and signed with. Never written anywhere.
//!
//! OpenSSH's own format (PROTOCOL.key of OpenSSH) and what `openssl` and clouds write (PKCS#1, PKCS#8), unencrypted. ring does the
//! cryptography; what is here only takes the containers apart. Not here: keys in hardware, certificates, P-521, DSA.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::rsa::{self, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair,
};

/// What the container of OpenSSH begins with.
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// Why a private key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    /// It wants a passphrase, and nobody is there to type one.
    #[error("it is encrypted with a passphrase")]
    Encrypted,
    /// The wrong one of the two files.
    #[error("it is the public half of a key")]
    Public,
    /// The secret is in a token.
    #[error("it only names a key that is in hardware")]
    Hardware,
    /// A kind of key, or of file, that is not known here.
    #[error("it is of a kind that is not supported: {0}")]
    Kind(String),
    /// Cut off, or not what it says.
    #[error("it is no private key, or is damaged")]
    Damaged,
}

impl KeyError {
    /// Returns what to do next.
    #[must_use]
    pub(crate) const fn hint(&self) -> &'static str {
        match self {
            Self::Encrypted => {
                "use a deploy key of its own without a passphrase, kept by its file's mode, or an agent by `source.credentials.ssh_agent`"
            }
            Self::Public => "name the file without `.pub`",
            Self::Hardware => "hand it over by an agent: `source.credentials.ssh_agent`",
            Self::Kind(_) => "`ssh-keygen -t ed25519 -N '' -f KEY` makes a deploy key that everyone takes",
            Self::Damaged => "it should begin with `-----BEGIN OPENSSH PRIVATE KEY-----`",
        }
    }
}

/// A private key; shows itself by its fingerprint.
pub(crate) struct PrivateKey {
    pair: Pair,
    blob: Vec<u8>,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
    Ecdsa { pair: Box<EcdsaKeyPair>, name: &'static str },
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.fingerprint())
    }
}

impl PrivateKey {
    /// Reads the text of a key's file.
    ///
    /// # Errors
    /// When it cannot be used as it is.
    pub(crate) fn parse(text: &str) -> Result<Self, KeyError> {
        let Some(begin) = text.lines().map(str::trim).find_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")) else {
            let first = text.trim_start();
            return Err(if ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| first.starts_with(kind)) {
                KeyError::Public
            } else if first.starts_with("PuTTY-User-Key-File") {
                KeyError::Kind("PuTTY's".to_owned())
            } else {
                KeyError::Damaged
            });
        };
        let body = || {
            let lines = text.lines().map(str::trim).skip_while(|line| !line.starts_with("-----BEGIN ")).skip(1);
            let body: String = lines.take_while(|line| !line.starts_with("-----END ")).collect();
            STANDARD.decode(body).map_err(|_| KeyError::Damaged)
        };
        match begin {
            "OPENSSH PRIVATE KEY" => Self::of_openssh(&body()?),
            "ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
            _ if text.contains("Proc-Type: 4,ENCRYPTED") => Err(KeyError::Encrypted),
            "RSA PRIVATE KEY" => Self::of_rsa(RsaKeyPair::from_der(&body()?).map_err(|error| rejected("RSA", &error))?),
            "PRIVATE KEY" => Self::of_pkcs8(&body()?),
            "PUBLIC KEY" | "RSA PUBLIC KEY" | "SSH2 PUBLIC KEY" => Err(KeyError::Public),
            other => Err(KeyError::Kind(other.chars().take(40).filter(|c| !c.is_control()).collect())),
        }
    }

    fn of_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(Self::of_ed25519(pair));
        }
        for curve in &CURVES {
            if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.algorithm, der, &SystemRandom::new()) {
                return Ok(Self::of_ecdsa(pair, curve));
            }
        }
        Self::of_rsa(RsaKeyPair::from_pkcs8(der).map_err(|error| rejected("PKCS#8", &error))?)
    }

    fn of_openssh(bytes: &[u8]) -> Result<Self, KeyError> {
        let mut outer = Fields(bytes.strip_prefix(MAGIC).ok_or(KeyError::Damaged)?);
        let (cipher, _kdf, _options) = (outer.string()?, outer.string()?, outer.string()?);
        if cipher != b"none" {
            return Err(KeyError::Encrypted);
        }
        if outer.number()? != 1 {
            return Err(KeyError::Kind("several keys in one file".to_owned()));
        }
        let _public = outer.string()?;
        let mut key = Fields(outer.string()?);
        if key.number()? != key.number()? {
            return Err(KeyError::Damaged);
        }
        match key.string()? {
            b"ssh-ed25519" => {
                let (public, secret) = (key.string()?, key.string()?);
                let seed = secret.get(..32).ok_or(KeyError::Damaged)?;
                Ok(Self::of_ed25519(Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(|_| KeyError::Damaged)?))
            }
            b"ssh-rsa" => {
                let (n, e, d) = (key.unsigned()?, key.unsigned()?, key.unsigned()?);
                let (q_inv, p, q) = (key.unsigned()?, key.unsigned()?, key.unsigned()?);
                let (d_p, d_q) = (remainder_of_less_one(d, p)?, remainder_of_less_one(d, q)?);
                let components = rsa::KeyPairComponents {
                    public_key: PublicKeyComponents { n, e },
                    d,
                    p,
                    q,
                    dP: d_p.as_slice(),
                    dQ: d_q.as_slice(),
                    qInv: q_inv,
                };
                Self::of_rsa(RsaKeyPair::from_components(&components).map_err(|error| rejected("RSA", &error))?)
            }
            name if name.starts_with(b"sk-") => Err(KeyError::Hardware),
            name => {
                let name = String::from_utf8_lossy(name).into_owned();
                let Some(curve) = CURVES.iter().find(|curve| curve.name == name) else {
                    let plain = |c: char| c.is_ascii_alphanumeric() || "-.@".contains(c);
                    return Err(if name.len() < 60 && name.chars().all(plain) { KeyError::Kind(name) } else { KeyError::Damaged });
                };
                let (_curve, public, secret) = (key.string()?, key.string()?, key.unsigned()?);
                let secret = padded(secret, curve.bytes).ok_or(KeyError::Damaged)?;
                let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.algorithm, &secret, public, &SystemRandom::new());
                Ok(Self::of_ecdsa(pair.map_err(|_| KeyError::Damaged)?, curve))
            }
        }
    }

    fn of_ed25519(pair: Ed25519KeyPair) -> Self {
        let blob = [string(b"ssh-ed25519"), string(pair.public_key().as_ref())].concat();
        Self { pair: Pair::Ed25519(pair), blob }
    }

    fn of_rsa(pair: RsaKeyPair) -> Result<Self, KeyError> {
        let public: PublicKeyComponents<Vec<u8>> = pair.public().into();
        let blob = [string(b"ssh-rsa"), mpint(&public.e), mpint(&public.n)].concat();
        Ok(Self { pair: Pair::Rsa(Box::new(pair)), blob })
    }

    fn of_ecdsa(pair: EcdsaKeyPair, curve: &Curve) -> Self {
        let short = curve.name.trim_start_matches("ecdsa-sha2-");
        let blob = [string(curve.name.as_bytes()), string(short.as_bytes()), string(pair.public_key().as_ref())].concat();
        Self { pair: Pair::Ecdsa { pair: Box::new(pair), name: curve.name }, blob }
    }

    /// Returns the public key as the ssh protocol has it (RFC 4253, 6.6).
    #[must_use]
    pub(super) fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// Returns the fingerprint as OpenSSH shows it: `SHA256:...`.
    #[must_use]
    pub(crate) fn fingerprint(&self) -> String {
        fingerprint(&self.blob)
    }

    /// Signs, and returns the signature as the ssh protocol has it; `flags` are the agent protocol's. `None`: not in this way.
    pub(super) fn sign(&self, message: &[u8], flags: u32) -> Option<Vec<u8>> {
        /// SSH_AGENT_RSA_SHA2_512 (draft-ietf-sshm-ssh-agent, 3.6.1); SSH_AGENT_RSA_SHA2_256 is 2.
        const RSA_SHA2_512: u32 = 4;
        const RSA_SHA2_256: u32 = 2;
        let (name, signature) = match &self.pair {
            Pair::Ed25519(pair) => ("ssh-ed25519", pair.sign(message).as_ref().to_vec()),
            Pair::Ecdsa { pair, name } => {
                let signature = pair.sign(&SystemRandom::new(), message).ok()?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                (*name, [mpint(r), mpint(s)].concat())
            }
            Pair::Rsa(pair) => {
                // Not SHA-1, which is what neither flag means.
                let (name, how): (_, &'static dyn ring::signature::RsaEncoding) = if flags & RSA_SHA2_512 != 0 {
                    ("rsa-sha2-512", &RSA_PKCS1_SHA512)
                } else if flags & RSA_SHA2_256 != 0 {
                    ("rsa-sha2-256", &RSA_PKCS1_SHA256)
                } else {
                    return None;
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(how, &SystemRandom::new(), message, &mut signature).ok()?;
                (name, signature)
            }
        };
        Some([string(name.as_bytes()), string(&signature)].concat())
    }
}

struct Curve {
    name: &'static str,
    bytes: usize,
    algorithm: &'static EcdsaSigningAlgorithm,
}

/// The curves that ring signs on (RFC 5656, 10.1 has their names).
static CURVES: [Curve; 2] = [
    Curve { name: "ecdsa-sha2-nistp256", bytes: 32, algorithm: &ECDSA_P256_SHA256_FIXED_SIGNING },
    Curve { name: "ecdsa-sha2-nistp384", bytes: 48, algorithm: &ECDSA_P384_SHA384_FIXED_SIGNING },
];

fn rejected(kind: &str, error: &ring::error::KeyRejected) -> KeyError {
    // ring's words for a key that is whole but not to its taste: `TooSmall`, `TooLarge`, `InvalidAlgorithm` ...
    match error.to_string().as_str() {
        "InvalidEncoding" | "InconsistentComponents" | "InvalidComponent" => KeyError::Damaged,
        other => KeyError::Kind(format!("{kind} ({other})")),
    }
}

/// Returns the fingerprint of a public key as OpenSSH shows it.
pub(crate) fn fingerprint(blob: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(digest(&SHA256, blob)))
}

/// Returns the fingerprint of a public key that is written as in known_hosts (base64); `None`: it is not.
pub(super) fn fingerprint_of_base64(text: &str) -> Option<String> {
    STANDARD.decode(text).ok().map(|blob| fingerprint(&blob))
}

/// Writes a string of the ssh protocol (RFC 4251, 5).
pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    // Nothing here is near 4 GiB.
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&len.to_be_bytes(), bytes].concat()
}

/// Writes a positive number of the ssh protocol (RFC 4251, 5).
fn mpint(bytes: &[u8]) -> Vec<u8> {
    let bytes = without_zeros(bytes);
    let sign: &[u8] = if bytes.first().is_some_and(|first| first & 0x80 != 0) { &[0] } else { &[] };
    string(&[sign, bytes].concat())
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]
}

/// Puts zeros in front until it is so long; `None`: it is longer.
pub(crate) fn padded(bytes: &[u8], len: usize) -> Option<Vec<u8>> {
    let missing = len.checked_sub(bytes.len())?;
    Some([vec![0; missing].as_slice(), bytes].concat())
}

/// Returns `value mod (prime - 1)`, big-endian, by long division bit by bit: some milliseconds for a 4096-bit key, once per fetch.
fn remainder_of_less_one(value: &[u8], prime: &[u8]) -> Result<Vec<u8>, KeyError> {
    // More than ring takes would only cost time here.
    if value.len() > 512 || prime.len() > 512 || prime.last().is_none_or(|last| last & 1 == 0) || prime.len() < 2 {
        return Err(KeyError::Damaged);
    }
    let mut modulus = prime.to_vec();
    if let Some(last) = modulus.last_mut() {
        // It is odd.
        *last -= 1;
    }
    // One byte more than the modulus, for what is shifted out.
    let modulus = [&[0], modulus.as_slice()].concat();
    let mut rest = vec![0_u8; modulus.len()];
    for bit in value.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            let next = *byte >> 7;
            *byte = *byte << 1 | carry;
            carry = next;
        }
        if rest >= modulus {
            let mut borrow = false;
            for (byte, minus) in rest.iter_mut().zip(&modulus).rev() {
                let (once, under) = byte.overflowing_sub(*minus);
                let (twice, again) = once.overflowing_sub(u8::from(borrow));
                *byte = twice;
                borrow = under || again;
            }
        }
    }
    Ok(without_zeros(&rest).to_vec())
}

/// The fields of a message of the ssh protocol (RFC 4251, 5), one after the other.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], KeyError> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(KeyError::Damaged)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn number(&mut self) -> Result<u32, KeyError> {
        let bytes = self.bytes(4)?;
        bytes.try_into().map(u32::from_be_bytes).map_err(|_| KeyError::Damaged)
    }

    pub(crate) fn string(&mut self) -> Result<&'a [u8], KeyError> {
        let len = self.number()?;
        self.bytes(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// A number without its leading zeros.
    pub(crate) fn unsigned(&mut self) -> Result<&'a [u8], KeyError> {
        Ok(without_zeros(self.string()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_are_right() {
        let bytes = |value: u64| without_zeros(&value.to_be_bytes()).to_vec();
        for (value, prime) in
            [(0_u64, 257_u64), (1, 257), (65_537, 257), (u64::MAX, 65_537), (12_345_678_901_234, 4_294_967_291), (256, 257)]
        {
            assert_eq!(remainder_of_less_one(&bytes(value), &bytes(prime)), Ok(bytes(value % (prime - 1))), "{value} {prime}");
        }
        assert_eq!(remainder_of_less_one(&[1], &[]), Err(KeyError::Damaged));
        assert_eq!(remainder_of_less_one(&[1], &[1, 0]), Err(KeyError::Damaged));
    }

    #[test]
    fn numbers_of_the_protocol_have_no_sign_and_no_zeros() {
        assert_eq!(mpint(&[0, 0, 0x7f]), [0, 0, 0, 1, 0x7f]);
        assert_eq!(mpint(&[0x80]), [0, 0, 0, 2, 0, 0x80]);
        assert_eq!(mpint(&[0]), [0, 0, 0, 0]);
    }

    #[test]
    fn what_is_no_key_is_told_apart() {
        let kind = |text: &str| KeyError::Kind(text.to_owned());
        for (text, error) in [
            ("", KeyError::Damaged),
            ("ssh-ed25519 AAAA x", KeyError::Public),
            ("PuTTY-User-Key-File-3: ssh-rsa\n", kind("PuTTY's")),
            ("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", kind("EC PRIVATE KEY")),
            ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAAAA\n", KeyError::Encrypted),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n", KeyError::Encrypted),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\n!\n", KeyError::Damaged),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----", KeyError::Damaged),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", KeyError::Damaged),
        ] {
            assert_eq!(PrivateKey::parse(text).map(|_| ()), Err(error), "{text}");
        }
    }
}
