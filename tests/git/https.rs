//! https and http, against a server that knows how to misbehave.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::site::{Authority, Door, Manner, Site, basic};
use crate::support::{Scene, ask, helper, helper_command};

fn with_ca(scene: &Scene, authority: &Authority, url: &str) -> Value {
    let mut request = scene.fetch_request(url);
    let ca = scene.path("ca.pem");
    std::fs::write(&ca, authority.pem()).expect("written");
    request["fetch"]["ca"] = json!(ca);
    request
}

#[test]
fn https_with_a_private_authority_is_fetched_shallow_and_again() {
    let (scene, authority) = (Scene::new(), Authority::new());
    let site = Site::start(scene.path("served"), authority.localhost(), Manner::Good);
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
    let site = Site::start(scene.path("served"), None, Manner::Good);
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
    let token = Site::start(scene.path("served"), authority.localhost(), Manner::Wants(basic("x-access-token", "s3cret")));
    let mut request = with_ca(&scene, &authority, &token.url());
    let answer = helper(&request);
    assert_eq!((answer.failed().0, answer.failed().2), ("refused", "set `source.credentials.token`"));
    request["fetch"]["credentials"] = json!({"token": "wr0ng"});
    let answer = helper(&request);
    assert_eq!(answer.failed().0, "refused");
    assert!(!answer.last.to_string().contains("wr0ng"));
    request["fetch"]["credentials"] = json!({"token": "s3cret"});
    assert_eq!(helper(&request).fetched().0, head);

    let password = Site::start(scene.path("served"), authority.localhost(), Manner::Wants(basic("joe", "p@ss:w")));
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
    let other = Site::start(scene.path("served"), authority.localhost(), Manner::Good);
    let first = Site::start(scene.path("served"), authority.localhost(), Manner::Redirects(format!("https://localhost:{}", other.port)));
    let mut request = with_ca(&scene, &authority, &first.url());
    request["fetch"]["credentials"] = json!({"token": "s3cret"});
    assert_eq!(helper(&request).fetched().0, head);
    assert!(first.seen().iter().all(|(_, authorization)| authorization.is_some()));
    assert!(other.seen().len() >= 2 && other.seen().iter().all(|(_, authorization)| authorization.is_none()), "{:?}", other.seen());

    let strict = Site::start(scene.path("served"), authority.localhost(), Manner::Wants(basic("x-access-token", "s3cret")));
    let to_strict =
        Site::start(scene.path("served"), authority.localhost(), Manner::Redirects(format!("https://joe:x@localhost:{}", strict.port)));
    request["fetch"]["url"] = json!(to_strict.url());
    assert_eq!(helper(&request).failed().0, "refused");
    assert!(strict.seen().iter().all(|(_, authorization)| authorization.is_none()), "a server does not choose who we are");

    let plain = Site::start(scene.path("served"), None, Manner::Good);
    let down = Site::start(scene.path("served"), authority.localhost(), Manner::Redirects(format!("http://localhost:{}", plain.port)));
    request["fetch"]["url"] = json!(down.url());
    assert_eq!(helper(&request).failed().0, "refused");
    assert!(plain.seen().is_empty(), "nothing goes from https to http");
}

#[test]
fn a_loop_of_redirects_ends() {
    let scene = Scene::new();
    let site = Site::start(scene.path("served"), None, Manner::Redirects(String::new()));
    assert_eq!(scene.fetch(&site.url()).failed().0, "unreachable");
    assert_eq!(site.seen().len(), 6);
}

#[test]
fn certificates_that_are_not_to_be_trusted_are_told_apart() {
    let (scene, authority) = (Scene::new(), Authority::new());
    let unknown = Site::start(scene.path("served"), authority.localhost(), Manner::Good);
    let answer = scene.fetch(&unknown.url());
    assert_eq!(answer.failed().0, "tls");
    assert!(answer.failed().2.contains("source.ca"), "{answer:?}");
    assert!(unknown.seen().is_empty());
    for years in [(2000, 2001), (2080, 2090)] {
        let site = Site::start(scene.path("served"), Some(authority.server("localhost", years)), Manner::Good);
        let answer = helper(&with_ca(&scene, &authority, &site.url()));
        assert_eq!(answer.failed().0, "tls");
        assert!(answer.failed().2.contains("clock"), "{answer:?}");
    }
    let site = Site::start(scene.path("served"), Some(authority.server("elsewhere.example", (2020, 2090))), Manner::Good);
    assert_eq!(helper(&with_ca(&scene, &authority, &site.url())).failed().0, "tls");
    let plain = Site::start(scene.path("served"), None, Manner::Good);
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
        let site = Site::start(scene.path("served"), None, manner.clone());
        assert_eq!(scene.fetch(&site.url()).failed().0, kind, "{manner:?}");
    }
    let site = Site::start(scene.path("served"), None, Manner::Good);
    assert_eq!(scene.fetch(&site.url().replace("app.git", "none.git")).failed().0, "not_found");
    let closed = site.url();
    drop(site);
    assert_eq!(scene.fetch(&closed).failed().0, "unreachable");
    assert_eq!(scene.fetch("https://no-such-host.invalid/x.git").failed().0, "unreachable");
}

#[test]
fn a_server_that_hangs_is_given_up_in_time() {
    let scene = Scene::new();
    let silent = Site::start(scene.path("served"), None, Manner::Hangs);
    let mut request = scene.fetch_request(&silent.url());
    request["fetch"]["timeout_millis"] = json!(700);
    let began = Instant::now();
    let answer = helper(&request);
    assert_eq!(answer.failed().0, "timeout", "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Never silent for long, and never done.
    let slow = Site::start(scene.path("served"), None, Manner::Trickles);
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
    let site = Site::start(scene.path("served"), None, Manner::Good);
    let old = scene.in_work(&["rev-parse", "HEAD"]);
    scene.fetch(&site.url()).fetched();
    scene.write("large", (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect::<Vec<u8>>());
    let head = scene.commit("large");
    scene.push();
    // The same URL must be cut now: another server at the same port is not to be had, so the mirror is told.
    for bytes in [0, 4, 40, 5_000, 100_000] {
        let cutting = Site::start(scene.path("served"), None, Manner::Cuts(bytes));
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
    let site = Site::start(scene.path("served"), None, Manner::Good);
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
    let site = Site::start(scene.path("served"), authority.localhost(), Manner::Good);
    let proxy = Proxy::start(site.port);
    // Only the proxy knows where this is.
    let mut request = with_ca(&scene, &authority, "https://localhost:1/app.git");
    let through = |request: &Value, no_proxy: &str| {
        let mut request = request.clone();
        request["fetch"]["proxies"] = json!({"HTTPS_PROXY": format!("http://joe:x@127.0.0.1:{}", proxy.port), "NO_PROXY": no_proxy});
        // What the environment says is for nobody: everybody of the same user could read it there.
        ask(helper_command().env("HTTPS_PROXY", "http://127.0.0.1:9"), &request)
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
    _door: Door,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(to: u16) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let door = Door::open(move |mut client, _| {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte)? > 0 {
                head.push(byte[0]);
            }
            noted.lock().expect("whole").push(String::from_utf8_lossy(&head).into_owned());
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
        Self { port: door.port, _door: door, seen }
    }
}
