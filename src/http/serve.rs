//! Connections, and what is answered to whom.
//!
//! One request a connection, each with bounds on its header, its body and its whole time; so many at a time, and the rest waits in the kernel.
//! /status and /metrics want the token, if there is one; /healthz and /readyz say nothing that is worth one, as what balances load has none; a
//! webhook proves itself by its signature.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use selfstart_core::status::{AgentState, Status};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::hooks::{Judged, hopeless, judge, same};
use super::{Ask, How, HttpError, SNAPSHOT_AGE, Snapshot, metrics};
use crate::sys::clock;

/// Connections at a time: scrapers, balancers and a git server are a handful, and at [`BODY_MAX`] for few of them no danger to memory.
const CONNECTIONS_MAX: usize = 64;

/// The header is there after this time.
const HEADER_WITHIN: Duration = Duration::from_secs(10);

/// The whole connection is over after this time: a webhook waits for the disk, a scraper for one snapshot.
const WHOLE_WITHIN: Duration = Duration::from_secs(30);

/// The largest header: twice hyper's least buffer.
const HEADER_MAX: usize = 16 << 10;

/// The largest body of a webhook: a push of 2,048 commits, the most that GitHub names in one, takes about half of it.
const BODY_MAX: usize = 4 << 20;

/// Bodies that are read at a time.
const BODIES_MAX: usize = 4;

/// A body is there after this time: git servers send it at once.
const BODY_WITHIN: Duration = Duration::from_secs(5);

/// So long a webhook waits for its turn. Who holds up others is gone by then ([`BODY_WITHIN`]).
const TURN_WITHIN: Duration = Duration::from_secs(8);

/// The loop answers within this time, or it is not healthy. GitHub waits 10 s for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// An address that is taken is tried again after this time: a former agent's is free at once, another program's perhaps never.
const BIND_AGAIN: Duration = Duration::from_millis(200);

/// The longest of these waits.
const BIND_AGAIN_MAX: Duration = Duration::from_secs(10);

type Answer = Response<Full<Bytes>>;

/// What all connections share.
struct Shared {
    how: How,
    asks: mpsc::Sender<Ask>,
    bodies: Semaphore,
    snapshot: Mutex<Option<(selfstart_core::time::MonoTime, Snapshot)>>,
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

/// Reads what TLS is served with.
///
/// # Errors
/// When a file cannot be read, or is not what it should be.
pub(super) fn tls(cert: &Path, key: &Path) -> Result<Arc<rustls::ServerConfig>, HttpError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |why: String| HttpError::Tls { path, why }
    };
    let read = |path: &Path| fs_err::read(path).map_err(|error| failed(path)(error.to_string()));
    let certs: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&read(cert)?).collect::<Result<_, _>>().map_err(|error| failed(cert)(error.to_string()))?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| failed(key)(error.to_string()))?;
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certs, private))
        .map_err(|error| failed(cert)(error.to_string()))?;
    Ok(Arc::new(config))
}

/// Serves until `stopped` is dropped.
pub(super) async fn serve(how: How, asks: mpsc::Sender<Ask>, mut stopped: oneshot::Receiver<()>, trouble: Arc<Mutex<Option<String>>>) {
    tokio::select! {
        biased;
        _ = &mut stopped => {}
        () = accept(how, asks, &trouble) => {}
    }
}

async fn accept(how: How, asks: mpsc::Sender<Ask>, trouble: &Mutex<Option<String>>) {
    let listener = bind(&how, trouble).await;
    let acceptor = how.tls.clone().map(tokio_rustls::TlsAcceptor::from);
    let shared = Arc::new(Shared {
        how,
        asks,
        bodies: Semaphore::new(BODIES_MAX),
        snapshot: Mutex::new(None),
        requests: Mutex::new(BTreeMap::new()),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
                    connections.spawn(async move {
                        // However it ends concerns only this client.
                        let _ = timeout(WHOLE_WITHIN, async {
                            match acceptor {
                                None => converse(stream, &shared).await,
                                Some(acceptor) => {
                                    if let Ok(Ok(stream)) = timeout(HEADER_WITHIN, acceptor.accept(stream)).await {
                                        converse(stream, &shared).await;
                                    }
                                }
                            }
                        }).await;
                    });
                }
                // No descriptors left, or a client that is gone already: others may be closed meanwhile.
                Err(_) => sleep(BIND_AGAIN).await,
            },
        }
    }
}

/// Listens, sooner or later; says why not yet.
async fn bind(how: &How, trouble: &Mutex<Option<String>>) -> TcpListener {
    let note = |text: Option<String>| *trouble.lock().unwrap_or_else(PoisonError::into_inner) = text;
    let mut wait = BIND_AGAIN;
    let mut told = None;
    loop {
        match TcpListener::bind(how.listen).await {
            Ok(listener) => {
                note(None);
                tracing::info!("http is served at {}", how.listen);
                return listener;
            }
            Err(error) => {
                let text = format!("http cannot be served at {}: {error}", how.listen);
                if told.as_ref() != Some(&text) {
                    tracing::warn!("{text}; trying again");
                    told = Some(text.clone());
                }
                note(Some(text));
                sleep(wait).await;
                wait = (wait * 2).min(BIND_AGAIN_MAX);
            }
        }
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Arc<Shared>) {
    let service = service_fn(|request| {
        let shared = Arc::clone(shared);
        async move { Ok::<_, Infallible>(answer(&shared, request).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WITHIN)
        .max_buf_size(HEADER_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let (endpoint, method) = match path.as_str() {
        "/status" => ("status", Method::GET),
        "/metrics" => ("metrics", Method::GET),
        "/healthz" => ("healthz", Method::GET),
        "/readyz" => ("readyz", Method::GET),
        "/webhook" => ("webhook", Method::POST),
        _ => ("other", Method::GET),
    };
    let asked = request.method();
    let answer = if endpoint == "other" {
        plain(StatusCode::NOT_FOUND, "no such page; there are /status, /metrics, /healthz, /readyz and /webhook")
    } else if *asked != method && !(*asked == Method::HEAD && method == Method::GET) {
        let allow = if method == Method::GET { "GET, HEAD" } else { "POST" };
        with(plain(StatusCode::METHOD_NOT_ALLOWED, &format!("this takes {allow}")), ALLOW, allow)
    } else if matches!(endpoint, "status" | "metrics") && !may(shared, &request) {
        let answer = plain(StatusCode::UNAUTHORIZED, "this takes `Authorization: Bearer TOKEN`, with the token of `http.token`");
        with(answer, WWW_AUTHENTICATE, "Bearer")
    } else {
        match endpoint {
            "status" => status(shared).await,
            "metrics" => scrape(shared, &request).await,
            "healthz" => health(shared).await,
            "readyz" => readiness(shared).await,
            _ => webhook(shared, request).await,
        }
    };
    let mut requests = shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
    *requests.entry((endpoint, answer.status().as_u16())).or_default() += 1;
    drop(requests);
    with(answer, CACHE_CONTROL, "no-store")
}

/// Whether it has the token, if one is wanted.
fn may(shared: &Shared, request: &Request<Incoming>) -> bool {
    let Some(token) = &shared.how.token else { return true };
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|text| text.split_once(' '));
    given.is_some_and(|(scheme, given)| scheme.eq_ignore_ascii_case("bearer") && same(given.trim(), token))
}

/// What is shown, at most [`SNAPSHOT_AGE`] old; or why it cannot be had.
async fn snapshot(shared: &Shared) -> Result<Snapshot, &'static str> {
    let now = clock::now();
    let kept = shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some((_, snapshot)) = kept.filter(|(at, _)| now < *at + SNAPSHOT_AGE) {
        return Ok(snapshot);
    }
    let (reply, answered) = oneshot::channel();
    shared.asks.try_send(Ask::Snapshot(reply)).map_err(|_| "the agent is busy")?;
    match timeout(ANSWER_WITHIN, answered).await {
        Ok(Ok(snapshot)) => {
            *shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, snapshot.clone()));
            Ok(snapshot)
        }
        Ok(Err(_)) => Err("the agent ends"),
        Err(_) => Err("the agent does not answer"),
    }
}

async fn status(shared: &Shared) -> Answer {
    match snapshot(shared).await {
        Ok(snapshot) => match serde_json::to_vec(&*snapshot.status) {
            Ok(json) => with(respond(StatusCode::OK, json), CONTENT_TYPE, "application/json"),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        Err(why) => busy(why),
    }
}

async fn scrape(shared: &Shared, request: &Request<Incoming>) -> Answer {
    let open = request.headers().get_all(ACCEPT).iter().any(|it| it.as_bytes().windows(28).any(|it| it == b"application/openmetrics-text"));
    let snapshot = match snapshot(shared).await {
        Ok(snapshot) => snapshot,
        Err(why) => return busy(why),
    };
    let requests = shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match metrics::open_metrics(&snapshot, &requests) {
        Ok(page) if open => with(respond(StatusCode::OK, page), CONTENT_TYPE, metrics::OPEN_METRICS),
        Ok(page) => with(respond(StatusCode::OK, metrics::prometheus(&page)), CONTENT_TYPE, metrics::PROMETHEUS),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Whether the agent's loop goes round.
async fn health(shared: &Shared) -> Answer {
    match snapshot(shared).await {
        Ok(_) => plain(StatusCode::OK, "ok"),
        Err(why) => busy(why),
    }
}

async fn readiness(shared: &Shared) -> Answer {
    match snapshot(shared).await {
        Ok(snapshot) => match not_ready(&snapshot.status) {
            None => plain(StatusCode::OK, "ready"),
            Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        Err(why) => busy(why),
    }
}

/// Why the node is not ready for work; `None`: it is. A pool that is being changed over, one slot at a time, still works.
fn not_ready(status: &Status) -> Option<&'static str> {
    if status.agent.state != AgentState::Running {
        return Some("not ready: the node is drained, or on its way there");
    }
    if status.deploy.live.is_none() {
        return Some("not ready: nothing is live yet");
    }
    let idle = status.pools.iter().any(|pool| pool.wanted > 0 && pool.ready == 0);
    idle.then_some("not ready: a pool has no ready worker")
}

async fn webhook(shared: &Shared, request: Request<Incoming>) -> Answer {
    let Some(secret) = &shared.how.webhook else {
        return plain(StatusCode::NOT_FOUND, "`source.webhook` is not configured");
    };
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    // Before anything is read or waited for: whoever proves nothing takes nobody's turn.
    if let Some(Judged::Unreadable(why) | Judged::Ignored(why)) = hopeless(header) {
        return plain(StatusCode::BAD_REQUEST, &why);
    }
    if let Some(Judged::Forged(why)) = hopeless(header) {
        return plain(StatusCode::UNAUTHORIZED, why);
    }
    if hyper::body::Body::size_hint(&body).lower() > BODY_MAX as u64 {
        return plain(StatusCode::PAYLOAD_TOO_LARGE, "larger than 4 MiB");
    }
    let Ok(Ok(_turn)) = timeout(TURN_WITHIN, shared.bodies.acquire()).await else { return busy("too many webhooks at a time") };
    let body = match timeout(BODY_WITHIN, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return plain(StatusCode::PAYLOAD_TOO_LARGE, "larger than 4 MiB"),
        Ok(Err(_)) => return plain(StatusCode::BAD_REQUEST, "the body ended too early"),
        Err(_) => return plain(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    };
    let secret = match secret.resolve("source.webhook.secret", &|name| std::env::var(name).ok()) {
        Ok(secret) => secret,
        Err(error) => {
            tracing::warn!("a webhook cannot be judged: {}", crate::agent::chain(&error));
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "the secret cannot be read; the log of selfstart says why");
        }
    };
    if secret.expose().trim().is_empty() {
        tracing::warn!("a webhook cannot be judged: `source.webhook.secret` is empty");
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "the secret is empty; the log of selfstart says so");
    }
    match judge(header, &body, secret.expose(), &shared.how.wanted) {
        Judged::Forged(why) => plain(StatusCode::UNAUTHORIZED, why),
        Judged::Unreadable(why) => plain(StatusCode::BAD_REQUEST, &why),
        Judged::Ignored(why) => plain(StatusCode::OK, &format!("ignored: {why}")),
        Judged::Ping => plain(StatusCode::OK, "pong"),
        Judged::Push => push(shared).await,
    }
}

/// Answered when it is on disk: who hears anything else may send it again.
async fn push(shared: &Shared) -> Answer {
    let (reply, answered) = oneshot::channel();
    if shared.asks.try_send(Ask::Push(reply)).is_err() {
        return busy("the agent is busy");
    }
    match timeout(ANSWER_WITHIN, answered).await {
        Ok(Ok(Ok(()))) => plain(StatusCode::ACCEPTED, "accepted: the source will be looked at"),
        Ok(Ok(Err(why))) => {
            tracing::warn!("a webhook is answered with 503: {why}");
            busy("it could not be written down")
        }
        Ok(Err(_)) => busy("the agent ends"),
        Err(_) => busy("the agent does not answer"),
    }
}

fn busy(why: &str) -> Answer {
    with(plain(StatusCode::SERVICE_UNAVAILABLE, why), RETRY_AFTER, "1")
}

fn plain(status: StatusCode, text: &str) -> Answer {
    with(respond(status, format!("{text}\n")), CONTENT_TYPE, "text/plain; charset=utf-8")
}

fn respond(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
}

fn with(mut answer: Answer, name: hyper::header::HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}
