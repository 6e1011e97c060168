//! `http:`: /status, /metrics, /healthz, /readyz and /webhook, on a thread of its own with a runtime of its own.
//!
//! Nothing that comes from there holds up the agent's loop: what it must know goes through a short queue ([`Ask`]), a snapshot of the status is
//! asked for at most every [`SNAPSHOT_AGE`], and connections, headers, bodies and times are bounded. Not here: what a webhook leads to
//! (`agent::triggering`).

mod hooks;
mod metrics;
mod serve;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use selfstart_core::id::PoolName;
use selfstart_core::status::Status;
use tokio::sync::{mpsc, oneshot};

use crate::config::secret::Text;
use crate::config::settings::{Settings, WantedRef};

/// What waits for the loop; more is answered with 503.
pub(crate) const ASKS: usize = 16;

/// A snapshot is at most so old: scrapers come every some seconds, and many of them cost no more than one.
const SNAPSHOT_AGE: Duration = Duration::from_millis(500);

/// What http wants of the agent's loop.
#[derive(Debug)]
pub(crate) enum Ask {
    /// What is shown.
    Snapshot(oneshot::Sender<Snapshot>),
    /// There was a push to what is configured: answered once it is on disk, or with why it is not.
    Push(oneshot::Sender<Result<(), String>>),
}

/// What is shown, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// As `selfstart status --json` has it.
    pub(crate) status: Arc<Status>,
    /// Since the agent began.
    pub(crate) counts: Counts,
}

/// What happened since the agent began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Events by kind.
    pub(crate) events: std::collections::BTreeMap<&'static str, u64>,
    /// Ends of workers by pool and verdict.
    pub(crate) ends: std::collections::BTreeMap<(PoolName, String), u64>,
}

/// How http is served; read from the configuration when it begins and at a reload.
#[derive(Clone, Debug)]
pub(crate) struct How {
    listen: SocketAddr,
    token: Option<String>,
    tls: Option<Arc<rustls::ServerConfig>>,
    /// Read anew for each webhook.
    webhook: Option<Text>,
    wanted: WantedRef,
}

impl How {
    /// Reads what the configuration names; `None`: it says nothing of http.
    ///
    /// # Errors
    /// When a secret or a certificate cannot be had.
    pub(crate) fn read(settings: &Settings) -> Result<Option<Self>, HttpError> {
        let Some(http) = &settings.http else { return Ok(None) };
        let env = |name: &str| std::env::var(name).ok();
        let token = http.token.as_ref().map(|token| token.resolve("http.token", &env).map(|it| it.expose().to_owned())).transpose();
        let token = token.map_err(HttpError::Token)?;
        if token.as_ref().is_some_and(|token| token.trim().is_empty()) {
            return Err(HttpError::NoToken);
        }
        Ok(Some(Self {
            listen: http.listen,
            token,
            tls: http.tls.as_ref().map(|tls| serve::tls(&tls.cert, &tls.key)).transpose()?,
            webhook: settings.triggers.webhook.clone(),
            wanted: settings.source.wanted.clone(),
        }))
    }
}

/// Why http is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The token cannot be had.
    #[error("`http.token`")]
    Token(#[source] crate::config::secret::SecretError),
    /// Nobody could give it, and everybody an empty one.
    #[error("`http.token` is empty")]
    NoToken,
    /// A file of `http.tls` cannot be used.
    #[error("`http.tls`: `{path}`: {why}")]
    Tls {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        why: String,
    },
    /// No thread, or no runtime.
    #[error("the thread that serves it")]
    Thread(#[source] std::io::Error),
}

/// http as long as it is served; dropped, all connections end at once.
#[derive(Debug)]
pub(crate) struct Http {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Http {
    /// Begins to serve. An address that is taken is tried again and again, and is a [`Http::trouble`] meanwhile.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub(crate) fn begin(how: How, asks: mpsc::Sender<Ask>) -> Result<Self, HttpError> {
        let (stop, stopped) = oneshot::channel();
        let trouble = Arc::new(Mutex::new(None));
        let noted = Arc::clone(&trouble);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(HttpError::Thread)?;
        let thread = std::thread::Builder::new()
            .name("http".into())
            .spawn(move || {
                runtime.block_on(serve::serve(how, asks, stopped, noted));
                runtime.shutdown_background();
            })
            .map_err(HttpError::Thread)?;
        Ok(Self { stop: Some(stop), thread: Some(thread), trouble })
    }

    /// Why nobody is served now; `None`: all is well.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It waits for nothing but its runtime's next turn.
            let _ = thread.join();
        }
    }
}
