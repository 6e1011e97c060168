//! One SSH signature and the key in it: PROTOCOL.sshsig, PROTOCOL.certkeys and PROTOCOL.u2f of OpenSSH. ring does the cryptography.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512,
    RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};

use super::Unsigned;
use crate::release::transport::ssh::key::{Fields, fingerprint, padded, string};

pub(super) const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
const MAGIC: &[u8] = b"SSHSIG";
/// SSH2_CERT_TYPE_USER.
const USER_CERTIFICATE: u32 = 1;
const DAMAGED: &str = "it is cut off or malformed";

/// A signature as it was made.
#[derive(Debug)]
pub(super) struct Signature {
    /// By whom.
    pub(super) key: Key,
    namespace: String,
    hash: String,
    made: Vec<u8>,
}

/// A public key, or a certificate that an authority gave to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    kind: Kind,
    /// The key without a certificate, as the ssh protocol has it.
    pub(super) blob: Vec<u8>,
    /// What the authority said.
    pub(super) certificate: Option<Certificate>,
}

/// What an authority said of a key; its signature was right when this was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Certificate {
    /// The authority's key.
    pub(super) authority: Vec<u8>,
    pub(super) of_user: bool,
    pub(super) principals: Vec<String>,
    pub(super) valid_after: u64,
    pub(super) valid_before: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ed25519,
    Rsa,
    P256,
    P384,
    SkEd25519,
    SkP256,
}

impl Kind {
    fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"ssh-ed25519" => Self::Ed25519,
            b"ssh-rsa" => Self::Rsa,
            b"ecdsa-sha2-nistp256" => Self::P256,
            b"ecdsa-sha2-nistp384" => Self::P384,
            b"sk-ssh-ed25519@openssh.com" => Self::SkEd25519,
            b"sk-ecdsa-sha2-nistp256@openssh.com" => Self::SkP256,
            _ => return None,
        })
    }

    /// As OpenSSH shows it.
    const fn shown(self) -> &'static str {
        match self {
            Self::Ed25519 => "ED25519",
            Self::Rsa => "RSA",
            Self::P256 | Self::P384 => "ECDSA",
            Self::SkEd25519 => "ED25519-SK",
            Self::SkP256 => "ECDSA-SK",
        }
    }

    /// How many strings make up the key, behind its name.
    const fn fields(self) -> usize {
        match self {
            Self::Ed25519 => 1,
            Self::Rsa | Self::P256 | Self::P384 | Self::SkEd25519 => 2,
            Self::SkP256 => 3,
        }
    }

    /// The field with the point or number that is the key.
    const fn point(self) -> usize {
        match self {
            Self::Ed25519 | Self::SkEd25519 => 0,
            _ => 1,
        }
    }

    /// The bytes of each of the two numbers of an ECDSA signature.
    const fn number_bytes(self) -> usize {
        if matches!(self, Self::P384) { 48 } else { 32 }
    }
}

impl Signature {
    /// Reads the armoured text.
    ///
    /// # Errors
    /// When it is no signature, or of a kind that cannot be checked.
    pub(super) fn read(text: &str) -> Result<Self, Unsigned> {
        let damaged = || Unsigned::Damaged(DAMAGED);
        let body = text.strip_prefix(BEGIN).filter(|rest| rest.starts_with('\n')).ok_or_else(damaged)?;
        let (body, _) = body.split_once(&format!("\n{END}")).ok_or_else(damaged)?;
        // git, too, hands lines that end with CR to ssh-keygen as they are, which knows no such lines.
        if body.contains('\r') {
            return Err(damaged());
        }
        let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = STANDARD.decode(body).map_err(|_| damaged())?;
        let mut fields = Fields(bytes.strip_prefix(MAGIC).ok_or_else(damaged)?);
        let mut read = || {
            let version = fields.number().ok()?;
            let key = fields.string().ok()?;
            let (namespace, _reserved, hash) = (fields.string().ok()?, fields.string().ok()?, fields.string().ok()?);
            let made = fields.string().ok()?;
            Some((version, key, text_of(namespace)?, text_of(hash)?, made))
        };
        let (version, key, namespace, hash, made) = read().ok_or_else(damaged)?;
        if version != 1 {
            return Err(Unsigned::Damaged("its version is not 1"));
        }
        if !fields.0.is_empty() {
            return Err(Unsigned::Damaged("something follows it"));
        }
        Ok(Self { key: Key::read(key)?, namespace, hash, made: made.to_vec() })
    }

    /// Checks that the key signed exactly this, for this purpose.
    ///
    /// # Errors
    /// When it did not.
    pub(super) fn verify(&self, payload: &[u8], namespace: &str) -> Result<(), Unsigned> {
        if self.namespace != namespace {
            let made_for = self.namespace.chars().take(40).collect::<String>().escape_debug().to_string();
            return Err(Unsigned::Namespace { key: self.key.shown(), namespace: made_for });
        }
        let algorithm = match self.hash.as_str() {
            "sha256" => &digest::SHA256,
            "sha512" => &digest::SHA512,
            _ => return Err(Unsigned::Damaged("it is over another hash than SHA-256 and SHA-512")),
        };
        let hashed = digest::digest(algorithm, payload);
        let fields = [self.namespace.as_bytes(), b"", self.hash.as_bytes(), hashed.as_ref()];
        let message = [MAGIC.to_vec(), fields.iter().flat_map(|field| string(field)).collect()].concat();
        self.key.verify(&message, &self.made)
    }
}

impl Key {
    /// Reads a key or a certificate as the ssh protocol has it.
    ///
    /// # Errors
    /// When it is none, or of a kind that cannot be checked.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Unsigned> {
        let damaged = || Unsigned::Damaged("its key is cut off or malformed");
        let mut fields = Fields(bytes);
        let name = fields.string().map_err(|_| damaged())?;
        let plain = name_without_certificate(name);
        let kind = Kind::of(plain.as_deref().unwrap_or(name)).ok_or_else(|| Unsigned::Kind(shown_name(name)))?;
        if plain.is_some() {
            let _nonce = fields.string().map_err(|_| damaged())?;
        }
        let before = fields.0;
        for _ in 0..kind.fields() {
            fields.string().map_err(|_| damaged())?;
        }
        let key = &before[..before.len() - fields.0.len()];
        let blob = [string(plain.as_deref().unwrap_or(name)), key.to_vec()].concat();
        let mut key = Self { kind, blob, certificate: None };
        if plain.is_some() {
            key.certificate = Some(Certificate::read(bytes, fields)?);
        } else if !fields.0.is_empty() {
            return Err(damaged());
        }
        Ok(key)
    }

    /// The kind and the fingerprint, as OpenSSH shows them.
    pub(super) fn shown(&self) -> String {
        let certified = if self.certificate.is_some() { "certified " } else { "" };
        format!("{certified}{} key {}", self.kind.shown(), fingerprint(&self.blob))
    }

    fn verify(&self, message: &[u8], made: &[u8]) -> Result<(), Unsigned> {
        let wrong = || Unsigned::Wrong { key: self.shown() };
        let mut fields = Fields(made);
        let (name, signature) = (fields.string().map_err(|_| wrong())?, fields.string().map_err(|_| wrong())?);
        let mut own = Fields(&self.blob);
        let mut next = || own.string().map_err(|_| wrong());
        let own_name = next()?;
        let parts = (0..self.kind.fields()).map(|_| next()).collect::<Result<Vec<_>, _>>()?;
        let Some(point) = parts.get(self.kind.point()).copied() else { return Err(wrong()) };
        // What a security key signs: its application, whether it was touched, how often it signed, and the message.
        let message = match self.kind {
            Kind::SkEd25519 | Kind::SkP256 => {
                let application = parts.last().copied().unwrap_or_default();
                let state = fields.bytes(5).map_err(|_| wrong())?;
                let hash = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
                [hash(application).as_ref(), state, hash(message).as_ref()].concat()
            }
            _ => message.to_vec(),
        };
        if !fields.0.is_empty() || (self.kind != Kind::Rsa && name != own_name) {
            return Err(wrong());
        }
        let by = |algorithm: &'static dyn VerificationAlgorithm, signature: &[u8]| {
            UnparsedPublicKey::new(algorithm, point).verify(&message, signature).map_err(|_| wrong())
        };
        match self.kind {
            Kind::Ed25519 | Kind::SkEd25519 => by(&ED25519, signature),
            Kind::P256 | Kind::SkP256 => by(&ECDSA_P256_SHA256_FIXED, &self.fixed(signature).ok_or_else(wrong)?),
            Kind::P384 => by(&ECDSA_P384_SHA384_FIXED, &self.fixed(signature).ok_or_else(wrong)?),
            Kind::Rsa => {
                // Not SHA-1, which `ssh-rsa` would be; OpenSSH does not take it here either.
                let how = match name {
                    b"rsa-sha2-256" => &RSA_PKCS1_2048_8192_SHA256,
                    b"rsa-sha2-512" => &RSA_PKCS1_2048_8192_SHA512,
                    _ => return Err(wrong()),
                };
                let number = |field: usize| parts.get(field).map(|bytes| Fields(&string(bytes)).unsigned().map(<[u8]>::to_vec));
                let (Some(Ok(e)), Some(Ok(n))) = (number(0), number(1)) else { return Err(wrong()) };
                if n.len() < 256 {
                    return Err(Unsigned::Kind("RSA of less than 2048 bits".to_owned()));
                }
                let signature = padded(signature, n.len()).ok_or_else(wrong)?;
                RsaPublicKeyComponents { n, e }.verify(how, &message, &signature).map_err(|_| wrong())
            }
        }
    }

    /// The two numbers of an ECDSA signature one behind the other, as ring wants them.
    fn fixed(&self, signature: &[u8]) -> Option<Vec<u8>> {
        let mut fields = Fields(signature);
        let (r, s) = (fields.unsigned().ok()?, fields.unsigned().ok()?);
        let len = self.kind.number_bytes();
        fields.0.is_empty().then_some([padded(r, len)?, padded(s, len)?].concat())
    }
}

impl Certificate {
    /// Reads what follows the key in a certificate, and checks the authority's signature.
    fn read(whole: &[u8], mut fields: Fields<'_>) -> Result<Self, Unsigned> {
        let damaged = || Unsigned::Damaged("its certificate is cut off or malformed");
        let mut read = || {
            let _serial = fields.bytes(8).ok()?;
            let kind = fields.number().ok()?;
            let (_id, principals) = (fields.string().ok()?, fields.string().ok()?);
            let mut date = || u64::from_be_bytes(fields.bytes(8).ok()?.try_into().ok()?).into();
            let (valid_after, valid_before): (Option<u64>, Option<u64>) = (date(), date());
            let (_critical, _extensions, _reserved) = (fields.string().ok()?, fields.string().ok()?, fields.string().ok()?);
            let authority = fields.string().ok()?;
            let signed = &whole[..whole.len() - fields.0.len()];
            let signature = fields.string().ok()?;
            let mut names = Fields(principals);
            let mut principals = Vec::new();
            while !names.0.is_empty() {
                principals.push(text_of(names.string().ok()?)?);
            }
            let of_user = kind == USER_CERTIFICATE;
            let (valid_after, valid_before) = (valid_after?, valid_before?);
            let certificate = Self { authority: authority.to_vec(), of_user, principals, valid_after, valid_before };
            fields.0.is_empty().then_some((certificate, signed, signature))
        };
        let (certificate, signed, signature) = read().ok_or_else(damaged)?;
        let authority = Key::read_plain(&certificate.authority)?;
        authority.verify(signed, signature).map_err(|_| Unsigned::Damaged("its certificate was not signed by its authority"))?;
        Ok(certificate)
    }
}

impl Key {
    /// Reads a key that is no certificate: an authority is none, or they could go on for ever.
    fn read_plain(bytes: &[u8]) -> Result<Self, Unsigned> {
        let name = Fields(bytes).string().unwrap_or_default();
        if name_without_certificate(name).is_some() {
            return Err(Unsigned::Damaged("its certificate was given by a certificate"));
        }
        Self::read(bytes)
    }
}

/// Returns the kind of the key in a certificate; `None`: it is none.
fn name_without_certificate(name: &[u8]) -> Option<Vec<u8>> {
    if let Some(plain) = name.strip_suffix(b"-cert-v01@openssh.com") {
        let sk: &[u8] = if name.starts_with(b"sk-") { b"@openssh.com" } else { b"" };
        return Some([plain, sk].concat());
    }
    None
}

fn text_of(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok().filter(|text| !text.contains('\0'))
}

fn shown_name(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(60).collect::<String>().escape_debug().to_string()
}
