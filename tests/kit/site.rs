//! https and http: a server that knows how to misbehave, with git's own http-backend behind it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;

/// The longest that a client may be silent.
const PATIENCE: Duration = Duration::from_secs(20);

/// A certificate authority that nobody else knows.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a private authority");
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed") }
    }

    /// Its certificate, for those who are to trust it.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server that is to be trusted.
    pub(crate) fn localhost(&self) -> Option<Arc<rustls::ServerConfig>> {
        Some(self.server("localhost", (2020, 2090)))
    }

    /// A certificate for this name, and its key, as files have them.
    pub(crate) fn pem_for(&self, name: &str) -> (String, String) {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }

    /// A server's configuration, valid for these names; the years of validity can be past or future.
    pub(crate) fn server(&self, name: &str, years: (i32, i32)) -> Arc<rustls::ServerConfig> {
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
pub(crate) enum Manner {
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

/// A port of this machine, each of whose connections is served by a thread of its own; it is closed, and all have ended, with its test.
pub(crate) struct Door {
    pub(crate) port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Door {
    /// `serve` also gets what says that the test is over. That it fails is how a connection ends.
    pub(crate) fn open(serve: impl Fn(TcpStream, &AtomicBool) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                for socket in listener.incoming() {
                    if ended.load(Ordering::SeqCst) {
                        break;
                    }
                    let (Ok(socket), serve, ended) = (socket, &serve, &ended) else { continue };
                    scope.spawn(move || serve(socket, ended));
                }
            });
        });
        Self { port, stop, thread: Some(thread) }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A server of the repositories below a folder; it ends with its test.
pub(crate) struct Site {
    pub(crate) port: u16,
    _door: Door,
    seen: Arc<Seen>,
    scheme: &'static str,
}

impl Site {
    pub(crate) fn start(root: PathBuf, tls: Option<Arc<rustls::ServerConfig>>, manner: Manner) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let noted = Arc::clone(&seen);
        let door = Door::open(move |socket, stop| {
            socket.set_read_timeout(Some(PATIENCE))?;
            let raw = socket.try_clone()?;
            match &tls {
                Some(config) => {
                    let session = rustls::ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
                    converse(rustls::StreamOwned::new(session, socket), &raw, &manner, &root, &noted, stop)
                }
                None => converse(socket, &raw, &manner, &root, &noted, stop),
            }
        });
        Self { port: door.port, _door: door, seen, scheme }
    }

    /// Of `app.git`.
    pub(crate) fn url(&self) -> String {
        format!("{}://localhost:{}/app.git", self.scheme, self.port)
    }

    pub(crate) fn seen(&self) -> Vec<(String, Option<String>)> {
        self.seen.lock().expect("whole").clone()
    }
}

/// A request, as it came.
struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// Reads one; `None`: the client hung up.
    fn read(stream: &mut impl Read) -> std::io::Result<Option<Self>> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte)? == 0 {
                return Ok(None);
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut words = head.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let headers = head.lines().filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut request = Self { method, target, headers: headers.collect(), body: Vec::new() };
        request.body = vec![0; request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
        stream.read_exact(&mut request.body)?;
        Ok(Some(request))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Its path, and what comes after the question mark.
    fn path(&self) -> (&str, &str) {
        self.target.split_once('?').unwrap_or((&self.target, ""))
    }
}

/// What is answered.
struct Answer {
    status: String,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn of(status: &str, headers: &str) -> Self {
        Self { status: status.to_owned(), headers: headers.to_owned(), body: Vec::new() }
    }

    /// Sends it, but only so many bytes of its body.
    fn send(&self, stream: &mut impl Write, keep: usize) -> std::io::Result<()> {
        let Self { status, headers, body } = self;
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len())?;
        stream.write_all(&body[..body.len().min(keep)])?;
        stream.flush()
    }
}

/// One request, one answer, and the connection is closed.
fn converse(
    mut stream: impl Read + Write,
    raw: &TcpStream,
    manner: &Manner,
    root: &Path,
    seen: &Seen,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let Some(request) = Request::read(&mut stream)? else { return Ok(()) };
    let authorization = request.header("authorization").map(str::to_owned);
    seen.lock().expect("whole").push((format!("{} {}", request.method, request.target), authorization.clone()));
    let (answer, keep) = match manner {
        Manner::Wants(wanted) if authorization.as_ref() != Some(wanted) => {
            (Answer::of("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n"), usize::MAX)
        }
        Manner::Says(status) => (Answer::of(status, ""), usize::MAX),
        Manner::Page => {
            let page = Answer::of("200 OK", "Content-Type: text/html\r\n");
            (Answer { body: b"<html>".to_vec(), ..page }, usize::MAX)
        }
        Manner::Redirects(to) if request.method == "GET" => {
            let (path, query) = request.path();
            (Answer::of("301 Moved Permanently", &format!("Location: {to}{path}?{query}\r\n")), usize::MAX)
        }
        Manner::Redirects(_) => (Answer::of("500 Oops", ""), usize::MAX),
        Manner::Cuts(bytes) if request.method == "POST" => (backend(&request, root)?, *bytes),
        Manner::Good | Manner::Wants(_) | Manner::Cuts(_) => (backend(&request, root)?, usize::MAX),
        Manner::Hangs => {
            // Until the client gives up, or the read's time is over.
            let _hung_up = stream.read(&mut [0]);
            return Ok(());
        }
        Manner::Trickles => return trickle(&mut stream, stop),
    };
    answer.send(&mut stream, keep)?;
    raw.shutdown(Shutdown::Both)
}

/// The beginning of a good answer, a byte at a time.
fn trickle(stream: &mut impl Write, stop: &AtomicBool) -> std::io::Result<()> {
    let head = "Content-Type: application/x-git-upload-pack-advertisement\r\nContent-Length: 100000";
    write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n\r\nffff")?;
    let began = Instant::now();
    while !stop.load(Ordering::SeqCst) && began.elapsed() < PATIENCE {
        // Fails when the client has given up.
        stream.write_all(b"x")?;
        stream.flush()?;
        // How slow it is, not something that it waits for.
        crate::waiting::pause(Duration::from_millis(50));
    }
    Ok(())
}

/// What git's own server answers (git-http-backend(1), by CGI).
fn backend(request: &Request, root: &Path) -> std::io::Result<Answer> {
    let (path, query) = request.path();
    let mut backend = Command::new("git");
    crate::git::alone(&mut backend).args(["-c", "http.receivepack=false", "http-backend"]);
    backend.env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1").env("PATH_INFO", path).env("QUERY_STRING", query);
    backend.env("REQUEST_METHOD", &request.method).env("CONTENT_TYPE", request.header("content-type").unwrap_or_default());
    backend.env("CONTENT_LENGTH", request.body.len().to_string());
    let mut child = backend.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    child.stdin.take().expect("a pipe").write_all(&request.body)?;
    let output = child.wait_with_output()?.stdout;
    let split = output.windows(4).position(|window| window == b"\r\n\r\n").map_or(output.len(), |at| at + 4);
    let headers = String::from_utf8_lossy(&output[..split.saturating_sub(2)]).into_owned();
    let status = headers.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
    Ok(Answer { status, headers, body: output[split..].to_vec() })
}

/// What a user and password look like on the wire: RFC 7617.
pub(crate) fn basic(user: &str, password: &str) -> String {
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
