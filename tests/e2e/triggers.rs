//! What makes a deploy begin: webhooks and polls; and all that is served over http.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ring::hmac;
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use crate::node::{Node, PATIENCE, QUICK, alive, free_port, shape, signal_to};
use crate::site::{Authority, Door};

const SECRET: &str = "planted-webhook-secret";
const TOKEN: &str = "planted-http-token";

/// A node that serves http, with more of `source:` and of the top level.
fn node(source: &str, more: &str) -> (Node, u16) {
    let node = Node::new();
    let port = free_port();
    node.write("secret", &format!("{SECRET}\n"));
    node.write("token", &format!("{TOKEN}\n"));
    let source = format!("source: {{repository: @DIR@/src, branch: main{source}}}\n");
    let http = format!("http: {{listen: '127.0.0.1:{port}', token: '${{file:@DIR@/token}}'}}\n");
    let http = if more.contains("http:") { more.replace("@PORT@", &port.to_string()) } else { format!("{http}{more}") };
    node.configure(&format!("  w: {{command: '@FIXTURE@', {QUICK}}}"), &format!("{source}{http}"));
    node.boot();
    (node, port)
}

const HOOK: &str = ", webhook: {secret: '${file:@DIR@/secret}'}";

/// What was answered: the code, the header and the body.
#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: String,
}

fn ask_on(mut stream: impl Read + Write, request: &str, body: &[u8]) -> Answer {
    stream.write_all(request.as_bytes()).expect("asked");
    // Who is refused early need not be listened to.
    let _ = stream.write_all(body);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Answer { code, head: head.to_lowercase(), body: body.to_owned() }
}

fn connect(node: &Node, port: u16) -> TcpStream {
    let stream = node.until("http is served", || TcpStream::connect(("127.0.0.1", port)).ok());
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

fn ask(node: &Node, port: u16, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    ask_on(connect(node, port), &request(line, headers, body.len()), body)
}

fn request(line: &str, headers: &[(&str, &str)], length: usize) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n")
}

fn get(node: &Node, port: u16, path: &str) -> Answer {
    ask(node, port, &format!("GET {path}"), &[("Authorization", &format!("Bearer {TOKEN}"))], b"")
}

/// As GitHub sends it.
fn push(node: &Node, port: u16, reference: &str, secret: &str) -> Answer {
    let body = format!(r#"{{"ref":"{reference}","before":"{0}","after":"{0}","deleted":false,"commits":[]}}"#, "1".repeat(40));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body.as_bytes());
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let headers = [("X-GitHub-Event", "push"), ("X-Hub-Signature-256", &format!("sha256={hex}")), ("Content-Type", "application/json")];
    ask(node, port, "POST /webhook", &headers, body.as_bytes())
}

fn live_is(node: &Node, revision: &str) {
    node.until(&format!("{revision} is live"), || (node.live().0 == revision).then_some(()));
    node.idle();
}

#[test]
fn a_burst_of_pushes_is_one_deploy_of_the_newest_revision() {
    let (node, port) = node(&format!("{HOOK}, debounce: {{wait: 2s, cap: 1m}}"), "");
    let mark = node.mark();
    let mut last = String::new();
    for number in 1..=5 {
        last = node.commit(&[("README", &format!("push {number}\n"))]);
        let answer = push(&node, port, "refs/heads/main", SECRET);
        assert_eq!(answer.code, 202, "{answer:?}");
    }
    live_is(&node, &last);
    let begun = node.since(mark, &["deploy_started"]);
    assert_eq!(begun.len(), 1, "{:?}", shape(&begun));
    assert_eq!(begun[0]["asked_by"], "a webhook", "{begun:?}");
    // Replayed, it costs one look.
    let mark = node.mark();
    assert_eq!(push(&node, port, "refs/heads/main", SECRET).code, 202);
    node.told(mark, "deploy_finished", "asked by a webhook");
    assert!(node.since(mark, &["deploy_started"]).is_empty());
}

#[test]
fn a_newer_push_stops_the_build_of_an_older_one_if_that_is_wanted() {
    let build = "build: {steps: ['test ! -e slow || sleep 1000']}\n";
    let (node, port) = node(&format!("{HOOK}, debounce: 100ms, supersede: true"), build);
    let old = node.commit(&[("slow", "yes\n")]);
    assert_eq!(push(&node, port, "refs/heads/main", SECRET).code, 202);
    node.until("the slow build", || (node.look("/deploy/phase") == "building").then_some(()));
    // The same push again is not newer.
    assert_eq!(push(&node, port, "refs/heads/main", SECRET).code, 202);
    node.git(&["rm", "-q", "slow"]);
    let new = node.commit(&[("README", "newer\n")]);
    assert_eq!(push(&node, port, "refs/heads/main", SECRET).code, 202);
    live_is(&node, &new);
    node.same(node.look("/deploy/quarantined"), serde_json::json!([]));
    assert_ne!(old, new);
}

#[test]
fn a_webhook_that_was_answered_is_deployed_although_the_agent_is_killed() {
    let (node, port) = node(&format!("{HOOK}, debounce: {{wait: 10m, cap: 10m}}"), "");
    let worker = node.pid("w");
    let second = node.commit(&[("README", "second\n")]);
    let answer = push(&node, port, "refs/heads/main", SECRET);
    assert_eq!(answer.code, 202, "{answer:?}");
    assert!(node.text("root/run/journal/triggers.json").contains("webhook"), "it is on disk before it is answered");
    let agent = i32::try_from(node.look("/agent/pid").as_i64().expect("a number")).expect("a pid");
    signal_to(agent, Signal::KILL);
    // By the next agent, which does not let it wait once more.
    live_is(&node, &second);
    assert!(!alive(worker), "the deploy has replaced it");
    node.until("it is forgotten once it is done", || {
        node.text("root/run/journal/triggers.json").contains("\"waiting\":null").then_some(())
    });
    assert_eq!(get(&node, port, "/healthz").code, 200, "and http is served again");
}

#[test]
fn a_poll_finds_a_push_and_a_source_that_is_away_is_told_of_once() {
    let (node, _) = node(", poll: 1s, debounce: 0s", "");
    let second = node.commit(&[("README", "second\n")]);
    live_is(&node, &second);
    let begun = node.since(0, &["deploy_started"]);
    assert_eq!(begun.last().map(|event| event["asked_by"].clone()), Some(Value::from("poll")));
    let mark = node.mark();
    fs_err::rename(node.path("src"), node.path("away")).expect("moved");
    node.told(mark, "fetch_failed", "cannot be asked for its head");
    fs_err::rename(node.path("away"), node.path("src")).expect("moved back");
    let third = node.commit(&[("README", "third\n")]);
    live_is(&node, &third);
    node.told(mark, "fetch_failed", "can be asked for its head again");
    assert_eq!(node.since(mark, &["fetch_failed"]).len(), 2, "{:?}", shape(&node.since(mark, &["fetch_failed"])));
}

#[test]
fn webhooks_of_others_lead_to_nothing_and_each_is_told_why() {
    let (node, port) = node(&format!("{HOOK}, debounce: 0s"), "");
    let mark = node.mark();
    node.commit(&[("README", "second\n")]);
    let forged = push(&node, port, "refs/heads/main", "guessed");
    assert_eq!((forged.code, forged.body.contains("signature")), (401, true), "{forged:?}");
    let other = push(&node, port, "refs/heads/other", SECRET);
    assert_eq!((other.code, other.body.contains("ignored")), (200, true), "{other:?}");
    assert_eq!(ask(&node, port, "GET /webhook", &[], b"").code, 405);
    let unsigned = request("POST /webhook", &[("X-GitHub-Event", "push")], 5 << 20);
    assert_eq!(ask_on(connect(&node, port), &unsigned, b"").code, 401);
    let tag = format!("sha256={}", "0".repeat(64));
    let large = request("POST /webhook", &[("X-GitHub-Event", "push"), ("X-Hub-Signature-256", &tag)], 5 << 20);
    assert_eq!(ask_on(connect(&node, port), &large, b"").code, 413, "before any of it was sent");
    let chunked = large.replace(&format!("Content-Length: {}", 5 << 20), "Transfer-Encoding: chunked");
    let body = [format!("{:x}\r\n", 5 << 20).as_bytes(), &vec![b'x'; 5 << 20], b"\r\n0\r\n\r\n"].concat();
    assert_eq!(ask_on(connect(&node, port), &chunked, &body).code, 413);
    assert_eq!(ask(&node, port, "POST /webhook", &[], b"{}").code, 400);
    assert_eq!(ask(&node, port, "GET /", &[], b"").code, 404);
    let gitlab = [("X-Gitlab-Event", "Push Hook"), ("X-Gitlab-Token", "guessed")];
    assert_eq!(ask(&node, port, "POST /webhook", &gitlab, br#"{"ref":"refs/heads/main"}"#).code, 401);
    let ping = [("X-Gitlab-Event", "Issue Hook"), ("X-Gitlab-Token", SECRET)];
    assert_eq!(ask(&node, port, "POST /webhook", &ping, b"{}").code, 200);
    assert!(node.since(mark, &["deploy_started", "deploy_finished"]).is_empty());
    // Then one of each server that is genuine.
    let gitlab = [("X-Gitlab-Event", "Push Hook"), ("X-Gitlab-Token", SECRET)];
    assert_eq!(ask(&node, port, "POST /webhook", &gitlab, br#"{"ref":"refs/heads/main"}"#).code, 202);
    node.told(mark, "deploy_finished", "asked by a webhook");
    for said in [node.cli(&["status", "--json"]).out, node.cli(&["events", "--json"]).out, node.text("agent.log")] {
        assert!(!said.contains(SECRET) && !said.contains(TOKEN), "{said}");
    }
    assert!(!node.text("root/run/journal/triggers.json").contains(SECRET));
}

#[test]
fn status_and_metrics_want_the_token_and_health_does_not() {
    let (node, port) = node("", "");
    for path in ["/status", "/metrics"] {
        let line = format!("GET {path}");
        for wrong in [&[][..], &[("Authorization", "Bearer ")], &[("Authorization", "Bearer planted")], &[("Authorization", TOKEN)]] {
            let answer = ask(&node, port, &line, wrong, b"");
            assert_eq!((answer.code, answer.head.contains("www-authenticate: bearer")), (401, true), "{path} {wrong:?}: {answer:?}");
        }
        assert_eq!(get(&node, port, path).code, 200);
    }
    let status: Value = serde_json::from_str(&get(&node, port, "/status").body).expect("JSON");
    assert_eq!(status["pools"][0]["slots"][0]["pid"], node.look("/pools/0/slots/0/pid"));
    assert_eq!(ask(&node, port, "GET /healthz", &[], b"").code, 200);
    assert_eq!(ask(&node, port, "GET /readyz", &[], b"").code, 200);
    node.cli(&["stop", "w"]).exits(0);
    node.until("it is not ready", || (ask(&node, port, "GET /readyz", &[], b"").code == 503).then_some(()));
    assert_eq!(ask(&node, port, "GET /healthz", &[], b"").code, 200);
}

/// What promtool, if it is here, says of a page of metrics.
fn promtool(page: &str) {
    let child =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        assert!(std::env::var_os("CI").is_none(), "promtool is not installed, and here nothing may be left out");
        return eprintln!("LEFT OUT: promtool is not installed (Debian's package `prometheus` has it)");
    };
    child.stdin.take().expect("piped").write_all(page.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{page}");
}

#[test]
fn metrics_are_as_the_status_and_promtool_finds_nothing_wrong_with_them() {
    let (node, port) = node("", "");
    let worker = node.pid("w");
    signal_to(worker, Signal::KILL);
    node.until("its end is counted", || {
        get(&node, port, "/metrics").body.contains("selfstart_worker_ends_total{pool=\"w\",reason=\"signal\"} 1").then_some(())
    });
    let page = get(&node, port, "/metrics");
    assert!(page.head.contains("content-type: text/plain; version=0.0.4"), "{}", page.head);
    for line in
        ["selfstart_pool_wanted_workers{pool=\"w\"} 1", "selfstart_deploy_phase{phase=\"idle\"} 1", "# TYPE selfstart_events_total counter"]
    {
        assert!(page.body.contains(line), "{line}: {}", page.body);
    }
    promtool(&page.body);
    let headers = [("Accept", "application/openmetrics-text; version=1.0.0"), ("Authorization", &format!("Bearer {TOKEN}"))];
    let open = ask(&node, port, "GET /metrics", &headers, b"");
    assert!(open.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n") && open.body.contains("# TYPE selfstart_events counter\n"), "{}", open.body);
    let reference = fs_err::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/metrics.md")).expect("the reference");
    for name in page.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(reference.contains(&format!("| `{name}` |")), "{name}");
    }
}

#[test]
fn clients_that_say_nothing_or_too_much_hold_up_nobody() {
    let (node, port) = node("", "");
    let silent: Vec<TcpStream> = (0..40).map(|_| connect(&node, port)).collect();
    let mut half = connect(&node, port);
    half.write_all(b"POST /webhook HTTP/1.1\r\nHost: l").expect("written");
    assert_eq!(ask(&node, port, "GET /healthz", &[], b"").code, 200);
    node.cli(&["status"]).exits(0);
    let long = "x".repeat(64 << 10);
    assert!(matches!(ask(&node, port, "GET /healthz", &[("X-Long", &long)], b"").code, 0 | 400..=431));
    // Who says nothing is sent away by itself.
    let mut first = silent.into_iter().next().expect("one");
    first.set_read_timeout(Some(PATIENCE)).expect("set");
    assert_eq!(first.read(&mut [0; 64]).map_err(|error| error.kind()).unwrap_or(0), 0);
}

#[test]
fn webhooks_whose_bodies_do_not_come_keep_no_other_from_its_turn() {
    let (node, port) = node(HOOK, "");
    let first = node.live().0;
    let stuck = |header: &[(&str, &str)]| {
        let mut stream = connect(&node, port);
        stream.write_all(request("POST /webhook", header, 1_000).as_bytes()).expect("written");
        stream
    };
    // Who proves nothing is answered before anything of the body is there.
    let mut stream = stuck(&[("X-GitHub-Event", "push")]);
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut said = [0; 12];
    stream.read_exact(&mut said).expect("an answer");
    assert_eq!(&said, b"HTTP/1.1 401");
    let tag = format!("sha256={}", "0".repeat(64));
    let _silent: Vec<TcpStream> = (0..6).map(|_| stuck(&[("X-GitHub-Event", "push"), ("X-Hub-Signature-256", &tag)])).collect();
    let newest = node.commit(&[("README", "second\n")]);
    assert_ne!(first, newest);
    assert_eq!(push(&node, port, "refs/heads/main", SECRET).code, 202);
    live_is(&node, &newest);
}

#[test]
fn what_is_served_goes_on_while_a_token_cannot_be_read_and_follows_when_it_can() {
    let dir = tempfile::tempdir().expect("a directory");
    let token = dir.path().join("token");
    fs_err::write(&token, "first\n").expect("written");
    let (node, port) = node("", &format!("http: {{listen: '127.0.0.1:@PORT@', token: '${{file:{}}}'}}\n", token.display()));
    let code = |token: &str| ask(&node, port, "GET /status", &[("Authorization", &format!("Bearer {token}"))], b"").code;
    assert_eq!((code("first"), code("")), (200, 401));
    for bad in ["", " \n"] {
        fs_err::write(&token, bad).expect("written");
        node.cli(&["reload"]);
        assert_eq!((code("first"), code("")), (200, 401), "as before");
    }
    assert!(node.status().to_string().contains("http is served as before"), "{}", node.status());
    fs_err::write(&token, "second\n").expect("written");
    node.until("the new token", || (code("second") == 200).then_some(()));
    assert_eq!(code("first"), 401);
}

#[test]
fn no_more_than_64_connections_are_served_at_a_time_and_the_rest_waits() {
    let (node, port) = node("", "");
    let silent: Vec<TcpStream> = (0..64).map(|_| connect(&node, port)).collect();
    // The next one has its turn when one of them was sent away.
    assert_eq!(ask(&node, port, "GET /healthz", &[], b"").code, 200);
    let gone = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).expect("set");
        stream.read(&mut [0; 64]).is_ok_and(|bytes| bytes == 0)
    };
    assert!(silent.iter().any(gone), "a 65th was served beside 64 others");
}

#[test]
fn https_is_served_with_a_certificate_that_a_reload_renews() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    let (cert, key) = authority.pem_for("localhost");
    fs_err::write(dir.path().join("cert.pem"), cert).expect("written");
    fs_err::write(dir.path().join("key.pem"), key).expect("written");
    let tls = format!("tls: {{cert: '{0}/cert.pem', key: '{0}/key.pem'}}", dir.path().display());
    let (node, port) = node("", &format!("http: {{listen: '127.0.0.1:@PORT@', {tls}}}\n"));
    assert_eq!(ask_tls(&node, port, &authority), 200);
    let other = Authority::new();
    let (cert, key) = other.pem_for("localhost");
    fs_err::write(dir.path().join("cert.pem"), cert).expect("written");
    fs_err::write(dir.path().join("key.pem"), key).expect("written");
    node.cli(&["reload"]).exits(0);
    assert_eq!((ask_tls(&node, port, &other), ask_tls(&node, port, &authority)), (200, 0));
    assert_ne!(ask(&node, port, "GET /healthz", &[], b"").code, 200, "not in plain");
}

/// The code of /healthz; 0: the server is not trusted.
fn ask_tls(node: &Node, port: u16, authority: &Authority) -> u16 {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("a certificate")).expect("added");
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().expect("a name")).expect("a session");
    let mut stream = rustls::StreamOwned::new(session, connect(node, port));
    if stream.write_all(request("GET /healthz", &[], 0).as_bytes()).is_err() {
        return 0;
    }
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

#[test]
fn an_address_that_is_taken_is_said_and_served_when_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let (node, _) = node("", &format!("http: {{listen: '127.0.0.1:{port}'}}\n"));
    node.until("the status says so", || node.look("/notes").to_string().contains("http cannot be served").then_some(()));
    drop(taken);
    node.until("it is served", || {
        let stream = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_secs(1)).ok()?;
        (ask_on(stream, &request("GET /healthz", &[], 0), b"").code == 200).then_some(())
    });
    node.until("and the status says nothing of it any more", || (!node.look("/notes").to_string().contains("http")).then_some(()));
}

#[test]
fn what_happens_is_told_to_a_webhook_and_a_command_once_for_an_incident_and_again_after_a_failure() {
    let heard: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let (noted, first) = (Arc::clone(&heard), std::sync::atomic::AtomicBool::new(true));
    let door = Door::open(move |mut socket, _| {
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        let whole = |text: &[u8]| {
            let text = String::from_utf8_lossy(text).into_owned();
            let (head, body) = text.split_once("\r\n\r\n")?;
            let length: usize = head.to_lowercase().split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
            (body.len() >= length).then(|| body.to_owned())
        };
        let body = loop {
            let read = socket.read(&mut buffer)?;
            text.extend_from_slice(&buffer[..read]);
            if let Some(body) = whole(&text) {
                break body;
            }
            if read == 0 {
                return Ok(());
            }
        };
        // The first try fails.
        let code = if first.swap(false, std::sync::atomic::Ordering::SeqCst) { "503 Later" } else { "204 Fine" };
        if code.starts_with('2') {
            noted.lock().expect("not poisoned").push(body);
        }
        socket.write_all(format!("HTTP/1.1 {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes())
    });
    let notify = format!(
        "notify:\n  - {{webhook: 'http://127.0.0.1:{}/planted-path', on: [deploy_failed]}}\n  - {{command: '/bin/sh @DIR@/page', on: [deploy_failed, agent_restarted]}}\n\
         build: {{steps: ['test ! -e broken']}}\n",
        door.port
    );
    let (node, _) = node("", &notify);
    node.write("page", &format!("cat >>{}\n", node.path("paged").display()));
    let mark = node.mark();
    node.commit(&[("broken", "")]);
    node.cli(&["deploy"]).exits(1);
    node.cli(&["deploy", "--force"]).exits(1);
    node.until("it is told", || (!heard.lock().expect("not poisoned").is_empty()).then_some(()));
    let told: Value = serde_json::from_str(&heard.lock().expect("not poisoned")[0]).expect("JSON");
    assert_eq!(
        (told["kind"].as_str(), told["app"].as_str(), told["schema"].as_i64()),
        (Some("deploy_failed"), Some("e2e"), Some(1)),
        "{told}"
    );
    node.told(mark, "trouble", "503");
    node.until("the command has it too", || node.text("paged").contains("deploy_failed").then_some(()));
    let agent = i32::try_from(node.look("/agent/pid").as_i64().expect("a number")).expect("a pid");
    signal_to(agent, Signal::KILL);
    node.until("the next agent's first word", || node.text("paged").contains("agent_restarted").then_some(()));
    assert_eq!(heard.lock().expect("not poisoned").len(), 1, "one for an incident");
    assert_eq!(node.text("paged").matches("\"kind\":\"deploy_failed\"").count(), 1, "{}", node.text("paged"));
}

#[test]
fn a_receiver_that_hangs_holds_up_nothing() {
    let door = Door::open(|socket, stop| {
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            let mut rest = [0; 512];
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            let _ = (&socket).read(&mut rest);
        }
        Ok(())
    });
    let notify = format!("notify: [{{webhook: 'http://127.0.0.1:{}/', on: [held, deploy_finished]}}]\n", door.port);
    let (node, _) = node("", &notify);
    node.cli(&["hold"]).exits(0);
    node.cli(&["unhold"]).exits(0);
    let second = node.commit(&[("README", "second\n")]);
    node.cli(&["deploy"]).exits(0);
    node.same(node.live().0, second);
    node.signal_keeper(Signal::TERM);
    node.until("the node ends all the same", || node.ended());
}
