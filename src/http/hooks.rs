//! What a webhook says, and whether its sender knows the secret. Pure: headers and body in, a judgement out.
//!
//! | server | event | proof | body |
//! |---|---|---|---|
//! | GitHub | `X-GitHub-Event: push`, `ping` | `X-Hub-Signature-256: sha256=HEX`, the HMAC-SHA256 of the body | `ref`, `deleted` |
//! | GitLab | `X-Gitlab-Event: Push Hook`, `Tag Push Hook`, `System Hook` | `X-Gitlab-Token: SECRET` itself | `ref`, `after` (zeros: deleted) |
//! | Gitea | `X-Gitea-Event: push` | `X-Gitea-Signature: HEX`, the HMAC-SHA256 of the body | `ref`, `after` |
//! | Forgejo | `X-Forgejo-Event: push` | `X-Forgejo-Signature: HEX`, the same | as Gitea |
//!
//! Sources, read 2026-11-23: docs.github.com "Validating webhook deliveries" and "Webhook events and payloads" (push, ping);
//! docs.gitlab.com "Webhooks" and "Webhook events"; docs.gitea.com "Webhooks"; forgejo.org/docs "Webhooks".
//! Gitea and Forgejo send GitHub's headers too, for who only knows those.

use ring::hmac;
use serde::Deserialize;

use crate::config::settings::WantedRef;

/// What the sender is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// A push to what is configured.
    Push,
    /// A test of the connection.
    Ping,
    /// Genuine, but about something else.
    Ignored(String),
    /// Who sends it does not prove to know the secret.
    Forged(&'static str),
    /// It cannot be read.
    Unreadable(String),
}

/// The servers that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Forgejo,
    Gitea,
    GitHub,
    GitLab,
}

/// The fields that count; all servers send many more.
#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "ref")]
    reference: Option<String>,
    after: Option<String>,
    #[serde(default)]
    deleted: bool,
}

const SERVERS: [(Server, &str); 4] = [
    (Server::Forgejo, "x-forgejo-event"),
    (Server::Gitea, "x-gitea-event"),
    (Server::GitHub, "x-github-event"),
    (Server::GitLab, "x-gitlab-event"),
];

/// What a webhook comes to whatever its body is; `None`: the body decides.
pub(super) fn hopeless<'h>(header: impl Fn(&str) -> Option<&'h str>) -> Option<Judged> {
    let Some((server, _)) = SERVERS.into_iter().find_map(|(server, name)| Some((server, header(name)?))) else {
        return Some(Judged::Unreadable("no header says which event it is; GitHub, GitLab, Gitea and Forgejo are understood".into()));
    };
    let tag = match server {
        Server::GitHub => header("x-hub-signature-256").and_then(|text| text.strip_prefix("sha256=")),
        Server::Gitea => header("x-gitea-signature"),
        Server::Forgejo => header("x-forgejo-signature").or_else(|| header("x-gitea-signature")),
        Server::GitLab => return header("x-gitlab-token").is_none().then_some(Judged::Forged(NO_TOKEN)),
    };
    let is_tag = tag.and_then(bytes).is_some_and(|tag| tag.len() == TAG_BYTES);
    (!is_tag).then_some(Judged::Forged(NO_SIGNATURE))
}

/// HMAC-SHA256.
const TAG_BYTES: usize = 32;

const NO_TOKEN: &str = "X-Gitlab-Token is not the secret";

const NO_SIGNATURE: &str = "the signature is missing or is not made with the secret";

/// Judges a webhook; `header` returns the value of a header by its name in lower case.
pub(super) fn judge<'h>(header: impl Fn(&str) -> Option<&'h str>, body: &[u8], secret: &str, wanted: &WantedRef) -> Judged {
    let Some((server, event)) = SERVERS.into_iter().find_map(|(server, name)| Some((server, header(name)?))) else {
        return Judged::Unreadable("no header says which event it is; GitHub, GitLab, Gitea and Forgejo are understood".into());
    };
    // Nothing of the body counts before this.
    let genuine = match server {
        Server::GitHub => signed(header("x-hub-signature-256").and_then(|text| text.strip_prefix("sha256=")), body, secret),
        Server::Gitea => signed(header("x-gitea-signature"), body, secret),
        Server::Forgejo => signed(header("x-forgejo-signature").or_else(|| header("x-gitea-signature")), body, secret),
        Server::GitLab => header("x-gitlab-token").is_some_and(|token| !secret.trim().is_empty() && same(token, secret)),
    };
    if !genuine {
        return Judged::Forged(match server {
            Server::GitLab => NO_TOKEN,
            _ => NO_SIGNATURE,
        });
    }
    let pushes: &[&str] = if server == Server::GitLab { &["Push Hook", "Tag Push Hook", "System Hook"] } else { &["push"] };
    if event == "ping" {
        return Judged::Ping;
    }
    if !pushes.contains(&event) {
        return Judged::Ignored(format!("`{}` is no push", plain(event)));
    }
    let payload: Payload = match serde_json::from_slice(body) {
        Ok(payload) => payload,
        Err(error) => {
            let hint = if body.starts_with(b"payload=") { "; set its content type to application/json" } else { "" };
            return Judged::Unreadable(format!("the body is not the JSON of a push: {error}{hint}"));
        }
    };
    about(&payload, wanted)
}

/// Whether a push is about what is configured.
fn about(payload: &Payload, wanted: &WantedRef) -> Judged {
    let Some(reference) = &payload.reference else { return Judged::Ignored("it names no branch or tag".into()) };
    let configured = match wanted {
        WantedRef::Branch(branch) => format!("refs/heads/{branch}"),
        WantedRef::Tag(tag) => format!("refs/tags/{tag}"),
        WantedRef::Revision(_) => return Judged::Ignored("a pinned revision is deployed here".into()),
    };
    if *reference != configured {
        return Judged::Ignored(format!("`{}` is not what is deployed here", plain(reference)));
    }
    let zeros = |id: &str| !id.is_empty() && id.bytes().all(|byte| byte == b'0');
    if payload.deleted || payload.after.as_deref().is_some_and(zeros) {
        return Judged::Ignored(format!("`{configured}` was deleted"));
    }
    Judged::Push
}

/// What came from outside, for an answer: short, and of one line.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// Whether this is the HMAC-SHA256 of the body, in hexadecimal; compared in constant time.
fn signed(hex: Option<&str>, body: &[u8], secret: &str) -> bool {
    let Some(tag) = hex.and_then(bytes) else { return false };
    // With an empty one anybody can sign.
    if secret.trim().is_empty() {
        return false;
    }
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body, &tag).is_ok()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = hex.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

/// Whether two texts are the same; the time that takes tells nothing of either but its length.
pub(super) fn same(given: &str, expected: &str) -> bool {
    // What is compared are tags under a key of theirs: how far they agree says nothing about how far the texts do.
    let key = hmac::Key::new(hmac::HMAC_SHA256, expected.as_bytes());
    hmac::verify(&key, given.as_bytes(), hmac::sign(&key, expected.as_bytes()).as_ref()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "It's a Secret to Everybody";

    fn main_branch() -> WantedRef {
        WantedRef::Branch("main".into())
    }

    fn hex_of(body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        hmac::sign(&key, body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn judged(headers: &[(&str, &str)], body: &str, wanted: &WantedRef) -> Judged {
        judge(|name| headers.iter().find(|(it, _)| *it == name).map(|(_, value)| *value), body.as_bytes(), SECRET, wanted)
    }

    fn github(event: &str, body: &str, wanted: &WantedRef) -> Judged {
        let signature = format!("sha256={}", hex_of(body.as_bytes()));
        judged(&[("x-github-event", event), ("x-hub-signature-256", &signature)], body, wanted)
    }

    /// Shortened, in the form of docs.github.com, "Webhook events and payloads", push.
    const GITHUB: &str = r#"{"ref":"refs/heads/main","before":"6113728f27ae82c7b1a177c8d03f9e96e0adf246","after":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c",
        "repository":{"id":186853002,"full_name":"Codertocat/Hello-World","private":false},"pusher":{"name":"Codertocat"},
        "created":false,"deleted":false,"forced":false,"base_ref":null,"commits":[],"head_commit":null}"#;

    /// Shortened, in the form of docs.gitlab.com, "Webhook events", push events.
    const GITLAB: &str = r#"{"object_kind":"push","event_name":"push","before":"95790bf891e76fee5e1747ab589903a6a1f80f22",
        "after":"da1560886d4f094c3e6c9ef40349f7d38b5d27d7","ref":"refs/heads/main","checkout_sha":"da1560886d4f094c3e6c9ef40349f7d38b5d27d7",
        "user_name":"John Smith","project_id":15,"project":{"path_with_namespace":"mike/diaspora"},"commits":[],"total_commits_count":4}"#;

    /// Shortened, in the form of docs.gitea.com, "Webhooks".
    const GITEA: &str = r#"{"ref":"refs/heads/main","before":"28e1879d029cb852e4844d9c718537df08844e03","after":"bffeb74224043ba2feb48d137756c8a9331c449a",
        "compare_url":"http://localhost:3000/gitea/webhooks/compare/28e1...bffe","commits":[{"id":"bffeb74224043ba2feb48d137756c8a9331c449a",
        "message":"Webhooks Yay!"}],"repository":{"id":140,"full_name":"gitea/webhooks"},"pusher":{"login":"gitea"},"sender":{"login":"gitea"}}"#;

    #[test]
    fn githubs_own_example_of_a_signature_is_right_here_too() {
        // docs.github.com, "Validating webhook deliveries", "Testing the webhook payload validation".
        let signature = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(signed(Some(signature), b"Hello, World!", SECRET));
        assert!(!signed(Some(signature), b"Hello, World.", SECRET));
        assert!(!signed(Some(signature), b"Hello, World!", "It's a secret to everybody"));
    }

    #[test]
    fn a_push_of_each_server_is_understood() {
        assert_eq!(github("push", GITHUB, &main_branch()), Judged::Push);
        assert_eq!(judged(&[("x-gitlab-event", "Push Hook"), ("x-gitlab-token", SECRET)], GITLAB, &main_branch()), Judged::Push);
        let signature = hex_of(GITEA.as_bytes());
        assert_eq!(judged(&[("x-gitea-event", "push"), ("x-gitea-signature", &signature)], GITEA, &main_branch()), Judged::Push);
        let forgejo = [("x-forgejo-event", "push"), ("x-gitea-event", "push"), ("x-forgejo-signature", signature.as_str())];
        assert_eq!(judged(&forgejo, GITEA, &main_branch()), Judged::Push);
    }

    #[test]
    fn an_empty_secret_proves_nothing() {
        for secret in ["", " \n"] {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            let hex: String = hmac::sign(&key, GITHUB.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            let signature = format!("sha256={hex}");
            for headers in [
                vec![("x-github-event", "push"), ("x-hub-signature-256", signature.as_str())],
                vec![("x-gitea-event", "push"), ("x-gitea-signature", hex.as_str())],
                vec![("x-forgejo-event", "push"), ("x-forgejo-signature", hex.as_str())],
                vec![("x-gitlab-event", "Push Hook"), ("x-gitlab-token", secret)],
                vec![("x-gitlab-event", "Push Hook")],
            ] {
                let header = |name: &str| headers.iter().find(|(it, _)| *it == name).map(|(_, value)| *value);
                let judged = judge(header, GITHUB.as_bytes(), secret, &main_branch());
                assert!(matches!(judged, Judged::Forged(_)), "{headers:?}: {judged:?}");
            }
        }
    }

    #[test]
    fn what_no_body_can_mend_is_known_by_the_header_alone() {
        let known = |headers: &[(&str, &str)]| hopeless(|name| headers.iter().find(|(it, _)| *it == name).map(|(_, value)| *value));
        let tag = "0".repeat(64);
        assert!(matches!(known(&[("host", "h")]), Some(Judged::Unreadable(_))));
        assert!(matches!(known(&[("x-github-event", "push")]), Some(Judged::Forged(_))));
        assert!(matches!(
            known(&[("x-github-event", "push"), ("x-hub-signature-256", &format!("sha256={}", &tag[1..]))]),
            Some(Judged::Forged(_))
        ));
        assert!(matches!(known(&[("x-gitea-event", "push"), ("x-gitea-signature", "0g")]), Some(Judged::Forged(_))));
        assert!(matches!(known(&[("x-gitlab-event", "Push Hook")]), Some(Judged::Forged(_))));
        assert_eq!(known(&[("x-github-event", "push"), ("x-hub-signature-256", &format!("sha256={tag}"))]), None);
        assert_eq!(known(&[("x-gitlab-event", "Push Hook"), ("x-gitlab-token", "x")]), None);
    }

    #[test]
    fn without_the_secret_nothing_of_it_counts() {
        let forged = |headers: &[(&str, &str)], body: &str| {
            let judged = judged(headers, body, &main_branch());
            assert!(matches!(judged, Judged::Forged(_)), "{headers:?}: {judged:?}");
        };
        let right = hex_of(GITHUB.as_bytes());
        forged(&[("x-github-event", "push")], GITHUB);
        forged(&[("x-github-event", "push"), ("x-hub-signature-256", &right)], GITHUB);
        forged(&[("x-github-event", "push"), ("x-hub-signature", &format!("sha1={right}"))], GITHUB);
        forged(&[("x-github-event", "push"), ("x-hub-signature-256", "sha256=")], GITHUB);
        forged(&[("x-github-event", "push"), ("x-hub-signature-256", &format!("sha256={}", &right[..62]))], GITHUB);
        forged(&[("x-github-event", "push"), ("x-hub-signature-256", &format!("sha256=é{}", &right[..62]))], GITHUB);
        forged(&[("x-github-event", "ping"), ("x-hub-signature-256", &format!("sha256={right}"))], &GITHUB.replace("main", "mains"));
        forged(&[("x-gitlab-event", "Push Hook")], GITLAB);
        forged(&[("x-gitlab-event", "Push Hook"), ("x-gitlab-token", "")], GITLAB);
        forged(&[("x-gitlab-event", "Push Hook"), ("x-gitlab-token", &SECRET[1..])], GITLAB);
        forged(&[("x-gitea-event", "push"), ("x-gitea-signature", &format!("sha256={right}"))], GITHUB);
        // A proof of one server does not count for another, which would be weaker: GitLab's secret goes over the wire.
        forged(&[("x-github-event", "push"), ("x-gitlab-token", SECRET)], GITHUB);
    }

    #[test]
    fn pings_are_answered_and_what_is_about_something_else_is_ignored() {
        assert_eq!(github("ping", r#"{"zen":"Keep it logically awesome.","hook_id":30}"#, &main_branch()), Judged::Ping);
        let ignored = |judged: Judged| assert!(matches!(judged, Judged::Ignored(_)), "{judged:?}");
        ignored(github("push", &GITHUB.replace("heads/main", "heads/other"), &main_branch()));
        ignored(github("push", &GITHUB.replace("heads/main", "tags/main"), &main_branch()));
        ignored(github("push", &GITHUB.replace("\"deleted\":false", "\"deleted\":true"), &main_branch()));
        ignored(github("issues", r#"{"action":"opened"}"#, &main_branch()));
        ignored(github("push", GITHUB, &WantedRef::Revision("0".repeat(40))));
        ignored(github("push", r#"{"commits":[]}"#, &main_branch()));
        let gone = GITLAB.replace("\"after\":\"da1560886d4f094c3e6c9ef40349f7d38b5d27d7\"", &format!("\"after\":\"{}\"", "0".repeat(40)));
        ignored(judged(&[("x-gitlab-event", "Push Hook"), ("x-gitlab-token", SECRET)], &gone, &main_branch()));
    }

    #[test]
    fn a_tag_is_matched_when_a_tag_is_deployed() {
        let tag = WantedRef::Tag("v1".into());
        assert_eq!(github("push", &GITHUB.replace("heads/main", "tags/v1"), &tag), Judged::Push);
        assert!(matches!(github("push", GITHUB, &tag), Judged::Ignored(_)));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        assert!(matches!(judged(&[], GITHUB, &main_branch()), Judged::Unreadable(_)));
        let form = github("push", "payload=%7B%7D", &main_branch());
        assert!(matches!(&form, Judged::Unreadable(text) if text.contains("application/json")), "{form:?}");
        for body in ["", "[]", "{\"ref\":1}", "{\"ref\":\"refs/heads/main\"", "\u{0}"] {
            assert!(matches!(github("push", body, &main_branch()), Judged::Unreadable(_) | Judged::Ignored(_)), "{body}");
        }
    }
}
