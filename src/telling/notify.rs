//! `internal-notify`: posts one event to a webhook, as a helper. The URL may be a secret, so it comes on standard input, as all of it does.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys::process;

/// What the helper is called.
pub(crate) const VERB: &str = "internal-notify";

/// The longest that one try takes, from the first packet to the answer.
pub(crate) const TRY_TIMEOUT: Duration = Duration::from_secs(15);

/// No request is larger: an event's text and fields, and a URL.
const MAX_REQUEST: u64 = 1 << 20;

/// What is posted, and where to.
#[derive(Serialize, Deserialize)]
pub(crate) struct Post {
    /// Where to; a secret.
    pub(crate) url: String,
    /// JSON.
    pub(crate) body: String,
}

/// Posts; the last line of its output says why it did not.
pub(crate) fn main() -> ExitCode {
    match post() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Nobody listens: then its end says it.
            let _ = writeln!(io::stdout(), "{why}");
            ExitCode::FAILURE
        }
    }
}

fn post() -> Result<(), String> {
    process::keep_secrets().map_err(|error| format!("failed to hide the helper's memory: {error}"))?;
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_REQUEST).read_to_end(&mut text).map_err(|error| format!("not a request: {error}"))?;
    // Not what is wrong: that may be a secret.
    let post: Post = serde_json::from_slice(&text).map_err(|_| "not a request".to_owned())?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("failed to prepare TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::blocking::Client::builder()
        .user_agent(concat!("selfstart/", env!("CARGO_PKG_VERSION")))
        // What is posted may only go where it was sent.
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TRY_TIMEOUT)
        .tls_backend_preconfigured(tls)
        .build()
        .map_err(|error| format!("failed to prepare https: {}", error.without_url()))?;
    let request = client.post(&post.url).header("content-type", "application/json").body(post.body);
    let answer = request.send().map_err(|error| crate::agent::chain(&error.without_url()))?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
}
