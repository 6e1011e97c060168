//! https and http: a server that knows how to misbehave, with git's own http-backend behind it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};

use crate::support::{PATIENCE, Scene, alone, ask, helper, helper_command};

/// A certificate authority that nobody else knows.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a private authority");
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed") }
    }

    fn write(&self, scene: &Scene) -> PathBuf {
        let path = scene.path("ca.pem");
        std::fs::write(&path, self.issuer.pem()).expect("written");
        path
    }

    /// A server's configuration, valid for these names; the years of validity can be past or future.
    fn server(&self, name: &str, years: (i32, i32)) -> Arc<rustls::ServerConfig> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a certificate");
        Arc::new(config)
    }
}

/// What the server does with a request.
#[derive(Clone, Debug)]
enum Manner {
    /// Serves it.
    Good,
    /// Serves it to who sends this `Authorization`, and says 401 to others.
    Wants(String),
    /// Answers with this status, nothing else.
    Says(&'static str),
    /// Takes the request and is silent.
    Hangs,
    /// Answers a byte at a time, without end.
    Trickles,
    /// Serves only so many bytes of the pack's answer, then drops the connection.
    Cuts(usize),
    /// Sends the refs' request elsewhere.
    Redirects(String),
    /// A web page.
    Page,
}

/// The requests that came, each with its `Authorization`.
type Seen = Mutex<Vec<(String, Option<String>)>>;

struct Site {
    port: u16,
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    thread: Option<std::thread::JoinHandle<()>>,
    scheme: &'static str,
}

impl Site {
    fn start(scene: &Scene, tls: Option<Arc<rustls::ServerConfig>>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let root = scene.path("served");
        let thread = std::thread::spawn({
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || {
                std::thread::scope(|scope| {
                    for socket in listener.incoming() {
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                        let Ok(socket) = socket else { continue };
                        let (tls, manner, root, seen, stop) = (tls.clone(), manner.clone(), root.clone(), Arc::clone(&seen), &stop);
                        scope.spawn(move || {
                            let _ = socket.set_read_timeout(Some(PATIENCE));
                            match tls {
                                Some(config) => {
                                    let Ok(session) = rustls::ServerConnection::new(config) else { return };
                                    let raw = socket.try_clone().expect("cloned");
                                    let _ = converse(rustls::StreamOwned::new(session, socket), &raw, &manner, &root, &seen, stop);
                                }
                                None => {
                                    let raw = socket.try_clone().expect("cloned");
                                    let _ = converse(socket, &raw, &manner, &root, &seen, stop);
                                }
                            }
                        });
                    }
                });
            }
        });
        Self { port, stop, seen, thread: Some(thread), scheme }
    }

    fn url(&self) -> String {
        format!("{}://localhost:{}/app.git", self.scheme, self.port)
    }

    fn seen(&self) -> Vec<(String, Option<String>)> {
        self.seen.lock().expect("whole").clone()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One request, one answer, and the connection is closed.
fn converse(
    mut stream: impl Read + Write,
    raw: &TcpStream,
    manner: &Manner,
    root: &std::path::Path,
    seen: &Seen,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let header = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut body = vec![0; header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut body)?;
    let authorization = header("authorization");
    seen.lock().expect("whole").push((format!("{method} {target}"), authorization.clone()));

    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut say = |status: &str, headers: &str, body: &[u8], keep: usize| -> std::io::Result<()> {
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len())?;
        stream.write_all(&body[..body.len().min(keep)])?;
        stream.flush()?;
        raw.shutdown(Shutdown::Both)
    };
    let all = usize::MAX;
    let mut keep = all;
    match manner {
        Manner::Good => {}
        Manner::Wants(wanted) if authorization.as_ref() == Some(wanted) => {}
        Manner::Wants(_) => return say("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"", all),
        Manner::Says(status) => return say(status, "", b"", all),
        Manner::Hangs => {
            let began = Instant::now();
            while !stop.load(Ordering::SeqCst) && began.elapsed() < PATIENCE {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            return Ok(());
        }
        Manner::Trickles => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\nContent-Length: 100000\r\n\r\nffff"
            )?;
            let began = Instant::now();
            while !stop.load(Ordering::SeqCst) && began.elapsed() < PATIENCE {
                stream.write_all(b"x")?;
                stream.flush()?;
                std::thread::park_timeout(Duration::from_millis(50));
            }
            return Ok(());
        }
        Manner::Cuts(bytes) if method == "POST" => keep = *bytes,
        Manner::Cuts(_) => {}
        Manner::Redirects(to) if method == "GET" => {
            return say("301 Moved Permanently", &format!("Location: {to}{path}?{query}\r\n"), b"", all);
        }
        Manner::Redirects(_) => return say("500 Oops", "", b"", all),
        Manner::Page => return say("200 OK", "Content-Type: text/html\r\n", b"<html>", all),
    }
    let mut backend = Command::new("git");
    alone(&mut backend).args(["-c", "http.receivepack=false", "http-backend"]);
    backend.env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1").env("PATH_INFO", path).env("QUERY_STRING", query);
    backend.env("REQUEST_METHOD", &method).env("CONTENT_TYPE", header("content-type").unwrap_or_default());
    backend.env("CONTENT_LENGTH", body.len().to_string());
    let mut child = backend.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    child.stdin.take().expect("a pipe").write_all(&body)?;
    let output = child.wait_with_output()?.stdout;
    let split = output.windows(4).position(|window| window == b"\r\n\r\n").map_or(output.len(), |at| at + 4);
    let headers = String::from_utf8_lossy(&output[..split.saturating_sub(2)]).into_owned();
    let status = headers.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
    say(&status, &headers, &output[split..], keep)
}

fn good(authority: &Authority) -> Option<Arc<rustls::ServerConfig>> {
    Some(authority.server("localhost", (2020, 2090)))
}

fn with_ca(scene: &Scene, authority: &Authority, url: &str) -> Value {
    let mut request = scene.fetch_request(url);
    request["fetch"]["ca"] = json!(authority.write(scene));
    request
}

/// What a user and password look like on the wire: RFC 7617.
fn basic(user: &str, password: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = format!("{user}:{password}");
    let mut encoded = String::from("Basic ");
    for three in text.as_bytes().chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize] as char;
            encoded.push(if place <= three.len() { letter } else { '=' });
        }
    }
    encoded
}

#[test]
fn https_with_a_private_authority_is_fetched_shallow_and_again() {
    let (scene, authority) = (Scene::new(), Authority::new());
    let site = Site::start(&scene, good(&authority), Manner::Good);
    scene.advance("second");
    let head = scene.advance("third");
    let request = with_ca(&scene, &authority, &site.url());
    assert_eq!(helper(&request).fetched(), (head.as_str(), vec![]));
    assert_eq!(scene.mirrored(), std::slice::from_ref(&head));
    for round in 0..3 {
        let head = scene.advance(&format!("round {round}"));
        assert_eq!(helper(&request).fetched(), (head.as_str(), vec![]));
        assert_eq!(scene.mirrored(), std::slice::from_ref(&head));
        assert!(scene.stage(&head).success);
    }
    let before = site.seen().len();
    assert_eq!(helper(&request).bytes(), 0);
    assert_eq!(site.seen().len(), before + 1, "nothing new costs one request");
    // A force-push, and a server that has forgotten.
    scene.in_work(&["reset", "-q", "--hard", "HEAD~4"]);
    let head = scene.advance("another history");
    let source = scene.source();
    scene.git(&["--git-dir", &source, "gc", "-q", "--prune=now"]);
    assert_eq!(helper(&request).fetched(), (head.as_str(), vec![]));
    assert_eq!(scene.mirrored(), std::slice::from_ref(&head));
    let mut whole = request.clone();
    whole["fetch"]["depth"] = json!(0);
    assert_eq!(helper(&whole).fetched(), (head.as_str(), vec![]));
    assert_eq!(scene.mirrored().len(), 3);
    scene.mirror_is_sound();
}

#[test]
fn a_long_negotiation_over_a_stateless_transport_ends_well() {
    let scene = Scene::new();
    let site = Site::start(&scene, None, Manner::Good);
    let mut request = scene.fetch_request(&site.url());
    request["fetch"]["depth"] = json!(0);
    for round in 0..60 {
        scene.commit(&format!("round {round}"));
    }
    scene.push();
    helper(&request).fetched();
    // The mirror has 61 commits that the server does not, so that the client has to offer in several rounds.
    scene.in_work(&["checkout", "-q", "--orphan", "other"]);
    scene.write("README", "other\n");
    let head = scene.commit("other");
    scene.in_work(&["branch", "-q", "-f", "main", "other"]);
    scene.push();
    let source = scene.source();
    scene.git(&["--git-dir", &source, "reflog", "expire", "--expire=now", "--all"]);
    scene.git(&["--git-dir", &source, "gc", "-q", "--prune=now"]);
    assert_eq!(helper(&request).fetched(), (head.as_str(), vec![]));
    assert!(site.seen().len() > 4);
}

#[test]
fn tokens_and_passwords_are_sent_and_wrong_ones_told() {
    let (scene, authority) = (Scene::new(), Authority::new());
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    let token = Site::start(&scene, good(&authority), Manner::Wants(basic("x-access-token", "s3cret")));
    let mut request = with_ca(&scene, &authority, &token.url());
    let answer = helper(&request);
    assert_eq!((answer.failed().0, answer.failed().2), ("refused", "set `source.credentials.token`"));
    request["fetch"]["credentials"] = json!({"token": "wr0ng"});
    let answer = helper(&request);
    assert_eq!(answer.failed().0, "refused");
    assert!(!answer.last.to_string().contains("wr0ng"));
    request["fetch"]["credentials"] = json!({"token": "s3cret"});
    assert_eq!(helper(&request).fetched().0, head);

    let password = Site::start(&scene, good(&authority), Manner::Wants(basic("joe", "p@ss:w")));
    let mut request = with_ca(&scene, &authority, &password.url());
    request["fetch"]["credentials"] = json!({"password": {"username": "joe", "password": "p@ss:w"}});
    assert_eq!(helper(&request).fetched().0, head);
    request["fetch"]["credentials"] = json!("none");
    request["fetch"]["url"] = json!(password.url().replace("localhost", "joe:p%40ss%3Aw@localhost"));
    let answer = helper(&request);
    assert_eq!(answer.fetched(), (head.as_str(), vec![]), "the same source, though written with a password");
    let config = std::fs::read_to_string(scene.mirror().join("config")).expect("there");
    assert!(!config.contains("p%40ss") && !config.contains("joe"), "no secret in the mirror: {config}");
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_server() {
    let (scene, authority) = (Scene::new(), Authority::new());
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    let other = Site::start(&scene, good(&authority), Manner::Good);
    let first = Site::start(&scene, good(&authority), Manner::Redirects(format!("https://localhost:{}", other.port)));
    let mut request = with_ca(&scene, &authority, &first.url());
    request["fetch"]["credentials"] = json!({"token": "s3cret"});
    assert_eq!(helper(&request).fetched().0, head);
    assert!(first.seen().iter().all(|(_, authorization)| authorization.is_some()));
    assert!(other.seen().len() >= 2 && other.seen().iter().all(|(_, authorization)| authorization.is_none()), "{:?}", other.seen());

    let strict = Site::start(&scene, good(&authority), Manner::Wants(basic("x-access-token", "s3cret")));
    let to_strict = Site::start(&scene, good(&authority), Manner::Redirects(format!("https://joe:x@localhost:{}", strict.port)));
    request["fetch"]["url"] = json!(to_strict.url());
    assert_eq!(helper(&request).failed().0, "refused");
    assert!(strict.seen().iter().all(|(_, authorization)| authorization.is_none()), "a server does not choose who we are");

    let plain = Site::start(&scene, None, Manner::Good);
    let down = Site::start(&scene, good(&authority), Manner::Redirects(format!("http://localhost:{}", plain.port)));
    request["fetch"]["url"] = json!(down.url());
    assert_eq!(helper(&request).failed().0, "refused");
    assert!(plain.seen().is_empty(), "nothing goes from https to http");
}

#[test]
fn a_loop_of_redirects_ends() {
    let scene = Scene::new();
    let site = Site::start(&scene, None, Manner::Redirects(String::new()));
    assert_eq!(scene.fetch(&site.url()).failed().0, "unreachable");
    assert_eq!(site.seen().len(), 6);
}

#[test]
fn certificates_that_are_not_to_be_trusted_are_told_apart() {
    let (scene, authority) = (Scene::new(), Authority::new());
    let unknown = Site::start(&scene, good(&authority), Manner::Good);
    let answer = scene.fetch(&unknown.url());
    assert_eq!(answer.failed().0, "tls");
    assert!(answer.failed().2.contains("source.ca"), "{answer:?}");
    assert!(unknown.seen().is_empty());
    for years in [(2000, 2001), (2080, 2090)] {
        let site = Site::start(&scene, Some(authority.server("localhost", years)), Manner::Good);
        let answer = helper(&with_ca(&scene, &authority, &site.url()));
        assert_eq!(answer.failed().0, "tls");
        assert!(answer.failed().2.contains("clock"), "{answer:?}");
    }
    let site = Site::start(&scene, Some(authority.server("elsewhere.example", (2020, 2090))), Manner::Good);
    assert_eq!(helper(&with_ca(&scene, &authority, &site.url())).failed().0, "tls");
    let plain = Site::start(&scene, None, Manner::Good);
    let answer = helper(&with_ca(&scene, &authority, &plain.url().replace("http:", "https:")));
    assert!(["tls", "unreachable"].contains(&answer.failed().0), "https to a http server: {answer:?}");
    for (text, words) in [(None, "No such file"), (Some("nonsense"), "there is none in it")] {
        let path = scene.path("other.pem");
        let _ = std::fs::remove_file(&path);
        if let Some(text) = text {
            std::fs::write(&path, text).expect("written");
        }
        let mut request = scene.fetch_request(&unknown.url());
        request["fetch"]["ca"] = json!(path);
        let answer = helper(&request);
        assert!(answer.failed().0 == "tls" && answer.failed().1.contains(words), "{answer:?}");
    }
}

#[test]
fn answers_that_are_none_are_typed() {
    let scene = Scene::new();
    for (manner, kind) in [
        (Manner::Says("403 Forbidden"), "refused"),
        (Manner::Says("404 Not Found"), "not_found"),
        (Manner::Says("429 Too Many Requests"), "unreachable"),
        (Manner::Says("500 Internal Server Error"), "unreachable"),
        (Manner::Says("503 Service Unavailable"), "unreachable"),
        (Manner::Page, "not_found"),
    ] {
        let site = Site::start(&scene, None, manner.clone());
        assert_eq!(scene.fetch(&site.url()).failed().0, kind, "{manner:?}");
    }
    let site = Site::start(&scene, None, Manner::Good);
    assert_eq!(scene.fetch(&site.url().replace("app.git", "none.git")).failed().0, "not_found");
    let closed = site.url();
    drop(site);
    assert_eq!(scene.fetch(&closed).failed().0, "unreachable");
    assert_eq!(scene.fetch("https://no-such-host.invalid/x.git").failed().0, "unreachable");
}

#[test]
fn a_server_that_hangs_is_given_up_in_time() {
    let scene = Scene::new();
    let silent = Site::start(&scene, None, Manner::Hangs);
    let mut request = scene.fetch_request(&silent.url());
    request["fetch"]["timeout_millis"] = json!(700);
    let began = Instant::now();
    let answer = helper(&request);
    assert_eq!(answer.failed().0, "timeout", "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Never silent for long, and never done.
    let slow = Site::start(&scene, None, Manner::Trickles);
    request["fetch"]["url"] = json!(slow.url());
    let began = Instant::now();
    assert_eq!(helper(&request).failed().0, "timeout");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Not even a word of TLS, and not even git's.
    for url in [silent.url().replace("http:", "https:"), silent.url().replace("http:", "git:")] {
        request["fetch"]["url"] = json!(url);
        let began = Instant::now();
        let answer = helper(&request);
        assert!(["timeout", "unreachable"].contains(&answer.failed().0), "{answer:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

#[test]
fn a_transfer_that_is_cut_leaves_the_old_mirror_in_use() {
    let scene = Scene::new();
    let site = Site::start(&scene, None, Manner::Good);
    let old = scene.in_work(&["rev-parse", "HEAD"]);
    scene.fetch(&site.url()).fetched();
    scene.write("large", (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>());
    let head = scene.commit("large");
    scene.push();
    // The same URL must be cut now: another server at the same port is not to be had, so the mirror is told.
    for bytes in [0, 4, 40, 5_000, 100_000] {
        let cutting = Site::start(&scene, None, Manner::Cuts(bytes));
        let config = scene.mirror().join("config");
        let told = std::fs::read_to_string(&config).expect("there").replace(&site.url(), &cutting.url());
        std::fs::write(&config, &told).expect("written");
        let answer = scene.fetch(&cutting.url());
        assert_eq!(answer.failed().0, "unreachable", "{bytes}: {answer:?}");
        assert_eq!(scene.mirrored(), std::slice::from_ref(&old), "{bytes}");
        assert!(scene.stage(&old).success, "{bytes}: the old commit can still be staged");
        std::fs::write(&config, told.replace(&cutting.url(), &site.url())).expect("written");
    }
    assert_eq!(scene.fetch(&site.url()).fetched().0, head);
    scene.mirror_is_sound();
}

#[test]
fn progress_is_told_a_few_times() {
    let scene = Scene::new();
    let site = Site::start(&scene, None, Manner::Good);
    scene.write("large", (0..500_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>());
    scene.commit("large");
    scene.push();
    let began = Instant::now();
    let answer = scene.fetch(&site.url());
    let most = 2 + began.elapsed().as_millis() / 200;
    assert!(!answer.progress.is_empty() && answer.progress.len() as u128 <= most, "{answer:?}");
    assert!(answer.progress[0]["progress"]["total_objects"].as_u64() > Some(0), "{answer:?}");
}

#[test]
fn a_proxy_is_used_and_no_proxy_honoured() {
    let (scene, authority) = (Scene::new(), Authority::new());
    let head = scene.in_work(&["rev-parse", "HEAD"]);
    let site = Site::start(&scene, good(&authority), Manner::Good);
    let proxy = Proxy::start(site.port);
    // Only the proxy knows where this is.
    let mut request = with_ca(&scene, &authority, "https://localhost:1/app.git");
    let through = |request: &Value, no_proxy: &str| {
        ask(helper_command().env("HTTPS_PROXY", format!("http://joe:x@127.0.0.1:{}", proxy.port)).env("NO_PROXY", no_proxy), request)
    };
    assert_eq!(through(&request, "").fetched().0, head);
    let asked = proxy.seen.lock().expect("whole").clone();
    assert!(asked.iter().all(|head| head.starts_with("CONNECT localhost:1 ")), "{asked:?}");
    assert!(
        asked
            .iter()
            .all(|head| head.to_ascii_lowercase().contains(&format!("proxy-authorization: {}", basic("joe", "x")).to_ascii_lowercase())),
        "{asked:?}"
    );
    let before = asked.len();
    assert_eq!(through(&request, "localhost").failed().0, "unreachable");
    assert_eq!(proxy.seen.lock().expect("whole").len(), before, "not asked");
    request["fetch"]["url"] = json!(site.url());
    assert_eq!(through(&request, "localhost").fetched().0, head);
}

/// A proxy that knows one server.
struct Proxy {
    port: u16,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<String>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Proxy {
    fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let thread = std::thread::spawn({
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || {
                std::thread::scope(|scope| {
                    for socket in listener.incoming() {
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                        let Ok(mut client) = socket else { continue };
                        let seen = Arc::clone(&seen);
                        scope.spawn(move || -> std::io::Result<()> {
                            let mut head = Vec::new();
                            let mut byte = [0];
                            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte)? > 0 {
                                head.push(byte[0]);
                            }
                            seen.lock().expect("whole").push(String::from_utf8_lossy(&head).into_owned());
                            let mut server = TcpStream::connect(("127.0.0.1", to))?;
                            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
                            let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
                            let up = std::thread::spawn(move || {
                                let _ = std::io::copy(&mut from_client, &mut to_server);
                                let _ = to_server.shutdown(Shutdown::Write);
                            });
                            let _ = std::io::copy(&mut server, &mut client);
                            let _ = client.shutdown(Shutdown::Both);
                            let _ = up.join();
                            Ok(())
                        });
                    }
                });
            }
        });
        Self { port, stop, seen, thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
