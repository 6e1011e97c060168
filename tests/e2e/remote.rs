//! A whole node on an https source: a private authority, a token, and git's own http-backend behind the server.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;

use crate::node::{Node, QUICK, run};

/// `x-access-token:a-good-token`, as RFC 7617 has it.
const WANTED: &str = "Basic eC1hY2Nlc3MtdG9rZW46YS1nb29kLXRva2Vu";

struct Site {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Site {
    /// Serves the repositories below `root` to who brings the token; the authority's certificate goes to `ca`.
    fn start(root: PathBuf, ca: &Path) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a private authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
        fs_err::write(ca, issuer.pem()).expect("written");
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name").signed_by(&key, &issuer).expect("signed");
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).expect("a key"))
            .expect("a certificate");
        let tls = Arc::new(tls);

        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // One at a time is enough for one node.
        let thread = std::thread::spawn(move || {
            for socket in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(socket) = socket else { continue };
                let _ = socket.set_read_timeout(Some(Duration::from_secs(10)));
                let (Ok(raw), Ok(session)) = (socket.try_clone(), rustls::ServerConnection::new(Arc::clone(&tls))) else { continue };
                // A client that hangs up is no failure of the server.
                let _ = answer(&mut rustls::StreamOwned::new(session, socket), &root);
                let _ = raw.shutdown(Shutdown::Both);
            }
        });
        Self { port, stop, thread: Some(thread) }
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

/// One request, one answer.
fn answer(stream: &mut (impl Read + Write), root: &Path) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let header = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut body)?;
    if header("authorization") != WANTED {
        stream.write_all(
            b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        )?;
        return stream.flush();
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut backend = Command::new("git");
    backend.arg("http-backend").env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    backend.env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1").env("PATH_INFO", path).env("QUERY_STRING", query);
    backend.env("REQUEST_METHOD", method).env("CONTENT_TYPE", header("content-type")).env("CONTENT_LENGTH", body.len().to_string());
    let mut child = backend.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    child.stdin.take().expect("a pipe").write_all(&body)?;
    let output = child.wait_with_output()?.stdout;
    let split = output.windows(4).position(|window| window == b"\r\n\r\n").map_or(output.len(), |at| at + 4);
    let headers = String::from_utf8_lossy(&output[..split.saturating_sub(2)]).into_owned();
    let status = headers.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", output.len() - split)?;
    stream.write_all(&output[split..])?;
    stream.flush()
}

#[test]
fn a_node_lives_on_an_https_source_with_a_token_and_a_wrong_token_is_said_to_be_refused() {
    let node = Node::new();
    let site = Site::start(node.path("served"), &node.path("ca.pem"));
    let push = || {
        let bare = node.path("served/app.git");
        if !bare.exists() {
            run(Command::new("git").args(["init", "-q", "--bare", "-b", "main"]).arg(&bare));
        }
        node.git(&["push", "-q", "--force", &bare.display().to_string(), "main"]);
    };
    push();
    let source = "source: {repository: 'https://localhost:@PORT@/app.git', branch: main, ca: '@DIR@/ca.pem', credentials: {token: '${file:@DIR@/token}'}}";
    let source = source.replace("@PORT@", &site.port.to_string());
    node.write("token", "a-good-token\n");
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), &source);
    node.boot();
    let second = node.commit(&[("README", "second\n")]);
    push();
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, second.clone());

    node.write("token", "a-wrong-token\n");
    node.commit(&[("README", "third\n")]);
    push();
    node.cli(&["deploy"]).exits(1).says(&["localhost"]);
    node.same(node.live().0, second);
    node.state("w", "ready");
    let error = node.look("/deploy/last_error");
    let error = error.as_str().unwrap_or_default();
    assert!(
        error.contains("https://localhost:") && (error.contains("401") || error.contains("credentials") || error.contains("refuse")),
        "{error}"
    );
    for said in [node.cli(&["status", "--json"]).out, node.cli(&["events", "--json"]).out, node.text("agent.log")] {
        assert!(!said.contains("a-wrong-token") && !said.contains("a-good-token"), "{said}");
    }
}
