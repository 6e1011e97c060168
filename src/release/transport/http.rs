//! git's smart protocol over HTTP (git's `gitprotocol-http(5)`, version 0), for libgit2.
//!
//! libgit2 writes one whole request and then reads the answer, so each of its streams is one HTTP exchange. Redirects are
//! followed for the first request only, as git does, and what follows goes to where they led; credentials go to the configured
//! server and no other.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream};
use reqwest::blocking::{Client, ClientBuilder, RequestBuilder, Response};
use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use reqwest::{NoProxy, Proxy, StatusCode, Url};

use super::{CONNECT_TIMEOUT, Reach, STALL_TIMEOUT, Trouble};
use crate::release::git::{Credentials, ErrorKind, Failure, Secret};

/// As browsers and git bound it; more are a loop.
const MAX_REDIRECTS: u32 = 5;
/// The name for a token: GitHub's; GitLab, Bitbucket and Gitea take any or this one.
const TOKEN_USER: &str = "x-access-token";
/// The first word matters: some servers answer only to git.
const USER_AGENT: &str = concat!("git/2.0 (selfstart ", env!("CARGO_PKG_VERSION"), ")");
const ADVERTISEMENT: &str = "application/x-git-upload-pack-advertisement";
const REQUEST: &str = "application/x-git-upload-pack-request";
const RESULT: &str = "application/x-git-upload-pack-result";

/// What all exchanges with one server have in common.
pub(super) struct Link {
    client: Client,
    /// The repository as configured; credentials go to its origin only.
    configured: Url,
    user: Option<(Secret, Secret)>,
    /// Where the redirects of the first request led.
    base: Mutex<Url>,
    trouble: Trouble,
}

impl Link {
    pub(super) fn new(url: Url, from_url: Option<(Secret, Secret)>, reach: &Reach, trouble: Trouble) -> Result<Self, Failure> {
        let user = match &reach.credentials {
            Credentials::None => from_url,
            Credentials::Token(token) => Some((Secret(TOKEN_USER.to_owned()), token.clone())),
            Credentials::Password { username, password } => Some((username.clone(), password.clone())),
            Credentials::Ssh { .. } => {
                return Err(Failure::new(ErrorKind::Unsupported, "an ssh key is of no use for http".to_owned())
                    .hint("set `source.credentials.token`, or an ssh address"));
            }
        };
        let client = proxied(&reach.proxies)?
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(reach.timeout.min(CONNECT_TIMEOUT))
            // Of the blocking client: the longest wait for an answer's head, and for each piece of its body.
            .timeout(reach.timeout.min(STALL_TIMEOUT))
            .tls_backend_preconfigured(trust(reach)?)
            .build()
            .map_err(|error| Failure::new(ErrorKind::Internal, format!("failed to prepare https: {}", chain(&error))))?;
        Ok(Self { client, configured: url.clone(), user, base: Mutex::new(url), trouble })
    }

    fn base(&self) -> Url {
        self.base.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds the credentials if `url` is on the configured server.
    fn signed(&self, request: RequestBuilder, url: &Url) -> RequestBuilder {
        match &self.user {
            Some((user, password)) if url.origin() == self.configured.origin() => request.basic_auth(&user.0, Some(&password.0)),
            _ => request,
        }
    }

    /// Asks for the refs: `GET <repository>/info/refs`.
    fn advertisement(&self) -> Result<Response, Failure> {
        let mut url = below(&self.configured, "info/refs");
        url.set_query(Some("service=git-upload-pack"));
        for _ in 0..=MAX_REDIRECTS {
            let request = self.signed(self.client.get(url.clone()).header(ACCEPT, "*/*"), &url);
            let response = request.send().map_err(|error| self.failure(&error))?;
            if !response.status().is_redirection() {
                self.check(&response, &url, ADVERTISEMENT)?;
                let mut base = url.clone();
                base.set_query(None);
                match base.path().strip_suffix("/info/refs").map(str::to_owned) {
                    Some(path) => base.set_path(&path),
                    None => {
                        return Err(Failure::new(
                            ErrorKind::Unsupported,
                            format!("{} redirects to what is no repository: {base}", self.configured),
                        ));
                    }
                }
                *self.base.lock().unwrap_or_else(PoisonError::into_inner) = base;
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            let next = next.filter(|next| matches!(next.scheme(), "http" | "https") && next.has_host());
            let Some(mut next) = next else {
                return Err(Failure::new(ErrorKind::Unreachable, format!("{} redirects to nowhere", self.configured)));
            };
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(Failure::new(ErrorKind::Refused, format!("{} redirects from https to http: not followed", self.configured)));
            }
            // A server does not choose who we are.
            let _ = next.set_username("");
            let _ = next.set_password(None);
            url = next;
        }
        Err(Failure::new(ErrorKind::Unreachable, format!("{} redirects more than {MAX_REDIRECTS} times", self.configured)))
    }

    /// Asks for objects: `POST <repository>/git-upload-pack`.
    fn upload_pack(&self, body: Vec<u8>) -> Result<Response, Failure> {
        let url = below(&self.base(), "git-upload-pack");
        let request = self.client.post(url.clone()).header(CONTENT_TYPE, REQUEST).header(ACCEPT, RESULT).body(body);
        let response = self.signed(request, &url).send().map_err(|error| self.failure(&error))?;
        if response.status().is_redirection() {
            return Err(Failure::new(ErrorKind::Unsupported, format!("{} redirects in the middle of a fetch", self.configured)));
        }
        self.check(&response, &url, RESULT)?;
        Ok(response)
    }

    /// Tells what an answer that is none means.
    fn check(&self, response: &Response, url: &Url, content_type: &str) -> Result<(), Failure> {
        let status = response.status();
        let shown = &self.configured;
        let failure = |kind, text: &str| Err(Failure::new(kind, format!("{shown} {text} (HTTP {})", status.as_u16())));
        let with_user = self.user.is_some();
        match status {
            StatusCode::OK => {
                let found = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("nothing");
                if found.split(';').next().is_some_and(|found| found.trim().eq_ignore_ascii_case(content_type)) {
                    return Ok(());
                }
                Err(Failure::new(
                    ErrorKind::NotFound,
                    format!("{url} does not answer as a git server does: {found:?} instead of {content_type:?}"),
                )
                .hint("is `source.repository` the address of a repository, and not of a web page?"))
            }
            StatusCode::UNAUTHORIZED if with_user && url.origin() != self.configured.origin() => failure(
                ErrorKind::Refused,
                &format!("redirects to {}, which wants credentials of its own", url.origin().ascii_serialization()),
            )
            .map_err(|failure| failure.hint("set `source.repository` to where it really is")),
            StatusCode::UNAUTHORIZED if with_user => failure(ErrorKind::Refused, "does not take these credentials")
                .map_err(|failure| failure.hint("has the token or password expired? `source.credentials`")),
            StatusCode::UNAUTHORIZED => {
                failure(ErrorKind::Refused, "wants credentials").map_err(|failure| failure.hint("set `source.credentials.token`"))
            }
            StatusCode::FORBIDDEN => failure(ErrorKind::Refused, "does not let us in")
                .map_err(|failure| failure.hint("may these credentials read this repository?")),
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => failure(ErrorKind::Refused, "cannot be reached: the proxy wants credentials")
                .map_err(|failure| failure.hint("HTTPS_PROXY=http://user:password@host:port")),
            StatusCode::NOT_FOUND | StatusCode::GONE => failure(ErrorKind::NotFound, "is not there").map_err(|failure| {
                failure.hint(if with_user {
                    "is the address right, and may these credentials read it?"
                } else {
                    "is the address right? Many servers say this too when a private repository is asked for without credentials"
                })
            }),
            _ => failure(ErrorKind::Unreachable, "cannot serve us now"),
        }
    }

    /// Tells what went wrong below HTTP.
    fn failure(&self, error: &reqwest::Error) -> Failure {
        let host = self.base().host_str().unwrap_or_default().to_owned();
        if let Some(error) = cause::<rustls::Error>(error) {
            return tls_failure(&host, error);
        }
        let text = chain(error);
        let timed_out = error.is_timeout() || cause::<io::Error>(error).is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
        if timed_out && !error.is_connect() {
            return Failure::new(ErrorKind::Timeout, format!("{host} has been silent for too long: {text}"));
        }
        Failure::new(ErrorKind::Unreachable, format!("failed to reach {host}: {text}"))
    }
}

/// Begins a client with the proxies that the request names, and none of this process's environment.
fn proxied(proxies: &BTreeMap<String, Secret>) -> Result<ClientBuilder, Failure> {
    let said = |names: [&str; 2]| names.into_iter().find_map(|name| proxies.get(name)).map_or("", |said| said.0.as_str());
    let except = NoProxy::from_string(said(["NO_PROXY", "no_proxy"]));
    let mut builder = Client::builder().no_proxy();
    let https = (["HTTPS_PROXY", "https_proxy"], Proxy::https as fn(String) -> reqwest::Result<Proxy>);
    let http = (["HTTP_PROXY", "http_proxy"], Proxy::http as fn(String) -> reqwest::Result<Proxy>);
    let all = (["ALL_PROXY", "all_proxy"], Proxy::all as fn(String) -> reqwest::Result<Proxy>);
    for (names, proxy) in [https, http, all] {
        let address = said(names);
        if address.is_empty() {
            continue;
        }
        // Without the address, which may hold a password.
        let proxy = proxy(address.to_owned()).map_err(|_| {
            Failure::new(ErrorKind::Unsupported, format!("what {} says is no proxy's address", names[0]))
                .hint("HTTPS_PROXY=http://user:password@host:port")
        })?;
        builder = builder.proxy(proxy.no_proxy(except.clone()));
    }
    Ok(builder)
}

fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url.set_query(None);
    url
}

/// The certificate authorities: the system's (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured) and `source.ca`.
fn trust(reach: &Reach) -> Result<rustls::ClientConfig, Failure> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = &reach.ca {
        let wrong = |why: String| {
            Failure::new(ErrorKind::Tls, format!("failed to read certificate authorities `{}`: {why}", path.display()))
                .hint("`source.ca` is a file of certificates in PEM form that the app's user may read")
        };
        let bytes = fs_err::read(path).map_err(|error| wrong(error.to_string()))?;
        let mut found = 0;
        for certificate in CertificateDer::pem_slice_iter(&bytes) {
            roots.add(certificate.map_err(|error| wrong(error.to_string()))?).map_err(|error| wrong(error.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(wrong("there is none in it".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(ErrorKind::Internal, format!("failed to prepare TLS: {error}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn tls_failure(host: &str, error: &rustls::Error) -> Failure {
    use rustls::CertificateError as Wrong;
    let failure = Failure::new(ErrorKind::Tls, format!("no trust in the certificate of {host}: {error}"));
    match error {
        rustls::Error::InvalidCertificate(
            Wrong::NotValidYet | Wrong::NotValidYetContext { .. } | Wrong::Expired | Wrong::ExpiredContext { .. },
        ) => failure.hint("is this machine's clock right? A clock that is not set yet looks like this"),
        rustls::Error::InvalidCertificate(Wrong::UnknownIssuer) => failure.hint(
            "for a private certificate authority set `source.ca`; for a public one install the system's certificates (ca-certificates)",
        ),
        rustls::Error::InvalidCertificate(_) => failure,
        _ => Failure::new(ErrorKind::Tls, format!("no TLS connection with {host}: {error}")),
    }
}

/// Finds a cause of one type, also where it hides inside an [`io::Error`], which does not show it as its source.
fn cause<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The error and its causes in one line, without those that only repeat.
fn chain(error: &reqwest::Error) -> String {
    // The URL is said elsewhere; the outermost text is only "error sending request".
    let mut text = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        let this = error.to_string();
        if !text.ends_with(&this) {
            let _ = write!(text, "{}{this}", if text.is_empty() { "" } else { ": " });
        }
        next = error.source();
    }
    if text.is_empty() { if error.is_timeout() { "no answer in time".to_owned() } else { error.to_string() } } else { text }
}

/// What libgit2 calls.
pub(super) struct Subtransport(pub(super) Arc<Link>);

impl SmartSubtransport for Subtransport {
    fn action(&self, _url: &str, action: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let link = Arc::clone(&self.0);
        match action {
            Service::UploadPackLs => {
                let response = link.advertisement().map_err(|failure| link.trouble.leave(failure))?;
                Ok(Box::new(Exchange { link, request: Vec::new(), response: Some(response) }))
            }
            Service::UploadPack => Ok(Box::new(Exchange { link, request: Vec::new(), response: None })),
            Service::ReceivePackLs | Service::ReceivePack => Err(git2::Error::from_str("selfstart never pushes")),
        }
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// One request, sent with the first read, and its answer.
struct Exchange {
    link: Arc<Link>,
    request: Vec<u8>,
    response: Option<Response>,
}

impl Read for Exchange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let response = match &mut self.response {
            Some(response) => response,
            none => {
                let body = std::mem::take(&mut self.request);
                none.insert(self.link.upload_pack(body).map_err(|failure| self.link.trouble.leave_io(failure))?)
            }
        };
        response.read(buffer).map_err(|error| {
            let failure = match cause::<reqwest::Error>(&error) {
                Some(error) => self.link.failure(error),
                None => Failure::new(ErrorKind::Unreachable, format!("the connection to {} broke: {error}", self.link.configured)),
            };
            self.link.trouble.leave_io(failure)
        })
    }
}

impl Write for Exchange {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.request.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
