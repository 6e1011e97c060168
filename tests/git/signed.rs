//! `source.verify.allowed_signers`, with keys of the real ssh-keygen, and git itself as the second opinion.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, SHA512, digest};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use crate::git::alone;
use crate::support::{Answer, Scene, helper};

/// 2026-11-23, the day of all commits here that do not say another.
const DAY: &str = "1795392000 +0000";

struct Signing {
    scene: Scene,
}

impl Signing {
    fn new() -> Self {
        let signing = Self { scene: Scene::new() };
        for (name, kind) in
            [("a", "ed25519"), ("b", "ed25519"), ("rsa", "rsa"), ("p256", "ecdsa"), ("p384", "ecdsa"), ("p521", "ecdsa"), ("ca", "ed25519")]
        {
            let bits = match name {
                "rsa" => "2048",
                "p384" => "384",
                "p521" => "521",
                _ => "256",
            };
            signing.keygen(&["-q", "-t", kind, "-b", bits, "-N", "", "-C", name, "-f", name]);
        }
        signing
    }

    fn keygen(&self, args: &[&str]) {
        let output = Command::new("ssh-keygen").current_dir(self.scene.dir.path()).args(args).output().expect("ssh-keygen runs");
        assert!(output.status.success(), "ssh-keygen {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.path(name)
    }

    /// `KIND BASE64` of a key.
    fn public(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.path(&format!("{name}.pub"))).expect("a key");
        text.split(' ').take(2).collect::<Vec<_>>().join(" ")
    }

    /// Makes `KEY-cert.pub`, moved to `NAME-cert.pub` beside a copy of the key.
    fn certify(&self, name: &str, ca: &str, options: &[&str]) {
        for end in ["", ".pub"] {
            std::fs::copy(self.path(&format!("b{end}")), self.path(&format!("{name}{end}"))).expect("copied");
        }
        let public = format!("{name}.pub");
        self.keygen(&[&["-q", "-s", ca, "-I", "id"], options, &[public.as_str()]].concat());
    }

    fn git(&self, date: &str, args: &[&str]) -> (bool, String) {
        let mut command = Command::new("git");
        alone(&mut command).current_dir(self.path("work")).env("GIT_COMMITTER_DATE", date).env("GIT_AUTHOR_DATE", date);
        command.args(["-c", "gpg.format=ssh"]).args(args).stdin(Stdio::null());
        let output = command.output().expect("git runs");
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned())
    }

    /// An empty commit that this key signed, on a branch of its own name.
    fn commit(&self, key: &str, date: &str) -> String {
        let key = format!("user.signingkey={}", self.path(key).display());
        let (good, said) = self.git(date, &["-c", &key, "commit", "-q", "-S", "--allow-empty", "-m", "x"]);
        assert!(good, "{said}");
        self.scene.in_work(&["rev-parse", "HEAD"])
    }

    fn object(&self, kind: &str, id: &str) -> Vec<u8> {
        let mut command = Command::new("git");
        alone(&mut command).current_dir(self.path("work")).args(["cat-file", kind, id]);
        command.output().expect("git runs").stdout
    }

    /// Writes an object as it is, and returns its id.
    fn write(&self, kind: &str, bytes: &[u8]) -> String {
        let mut command = Command::new("git");
        alone(&mut command).current_dir(self.path("work")).args(["hash-object", "-t", kind, "-w", "--stdin", "--literally"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("git runs");
        child.stdin.take().expect("a pipe").write_all(bytes).expect("written");
        String::from_utf8(child.wait_with_output().expect("ends").stdout).expect("an id").trim().to_owned()
    }

    /// The commit without its signature.
    fn unsigned(&self) -> Vec<u8> {
        let (good, said) = self.git(DAY, &["commit", "-q", "--allow-empty", "-m", "plain"]);
        assert!(good, "{said}");
        self.object("commit", "HEAD")
    }

    /// A commit with this armoured signature.
    fn with_signature(&self, payload: &[u8], armour: &str) -> String {
        self.write("commit", &with_header(payload, "gpgsig", armour))
    }

    /// What ssh-keygen says to this payload.
    fn sign(&self, key: &str, namespace: &str, payload: &[u8]) -> String {
        std::fs::write(self.path("payload"), payload).expect("written");
        let _ = std::fs::remove_file(self.path("payload.sig"));
        self.keygen(&["-q", "-Y", "sign", "-n", namespace, "-f", key, "payload"]);
        std::fs::read_to_string(self.path("payload.sig")).expect("signed")
    }

    /// Asks git and the helper about a commit or a tag.
    fn ask(&self, what: &str, wanted: &Value, allowed: &str) -> (bool, String, Answer) {
        std::fs::write(self.path("allowed"), allowed).expect("written");
        let file = format!("gpg.ssh.allowedSignersFile={}", self.path("allowed").display());
        let verb = if wanted.get("tag").is_some() { "verify-tag" } else { "verify-commit" };
        let (good, said) = self.git(DAY, &["-c", &file, verb, "-v", what]);
        let mut request = self.scene.fetch_request(&self.path("work").display().to_string());
        request["fetch"]["wanted"] = wanted.clone();
        request["fetch"]["allowed_signers"] = json!(allowed);
        (good, said, helper(&request))
    }

    /// Both must say this of a commit; returns what the helper said.
    fn agree(&self, case: &str, id: &str, allowed: &str, wanted: bool) -> Answer {
        self.scene.in_work(&["branch", "-f", "judged", id]);
        let (git, said, ours) = self.ask(id, &json!({"branch": "judged"}), allowed);
        assert_eq!(git, wanted, "git, {case}: {said}\n{allowed}");
        assert_eq!(ours.success, wanted, "we, {case}: {ours:?}\n{allowed}");
        if !wanted {
            assert_eq!(ours.failed().0, "unsigned", "{case}: {ours:?}");
        }
        ours
    }
}

fn with_header(payload: &[u8], name: &str, armour: &str) -> Vec<u8> {
    let end = payload.windows(2).position(|two| two == b"\n\n").expect("a header") + 1;
    let folded = armour.trim_end().replace('\n', "\n ");
    [&payload[..end], format!("{name} {folded}\n").as_bytes(), &payload[end..]].concat()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).expect("short").to_be_bytes(), bytes].concat()
}

fn armour(bytes: &[u8]) -> String {
    let body = STANDARD.encode(bytes);
    let lines: Vec<&str> = body.as_bytes().chunks(70).map(|line| std::str::from_utf8(line).expect("text")).collect();
    format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----", lines.join("\n"))
}

/// Signs as a security key does, which no test machine has: PROTOCOL.u2f of OpenSSH.
fn by_security_key(payload: &[u8]) -> (String, String) {
    let document = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).expect("a key");
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key");
    let name = b"sk-ssh-ed25519@openssh.com";
    let key = [string(name), string(pair.public_key().as_ref()), string(b"ssh:")].concat();
    let of_message = [string(b"git"), string(b""), string(b"sha512"), string(digest(&SHA512, payload).as_ref())].concat();
    let message = [b"SSHSIG".as_slice(), &of_message].concat();
    let state = [1, 0, 0, 0, 7];
    let signed = [digest(&SHA256, b"ssh:").as_ref(), &state, digest(&SHA256, &message).as_ref()].concat();
    let made = [string(name), string(pair.sign(&signed).as_ref()), state.to_vec()].concat();
    let whole = [b"SSHSIG\0\0\0\x01".to_vec(), string(&key), string(b"git"), string(b""), string(b"sha512"), string(&made)].concat();
    (format!("sk-ssh-ed25519@openssh.com {}", STANDARD.encode(key)), armour(&whole))
}

#[test]
fn what_is_written_in_allowed_signers_counts_as_it_does_for_git() {
    let signing = Signing::new();
    let (a, b) = (signing.public("a"), signing.public("b"));
    let id = signing.commit("a", DAY);
    for (allowed, wanted) in [
        ("a@b A", true),
        ("a@b A\n", true),
        ("a@b A a comment of words", true),
        ("a@b\tA\r\n", true),
        ("# nobody\n\n  \t a@b A", true),
        ("a@b B", false),
        ("a@b B\nb@b A", true),
        ("rubbish\na@b A", true),
        ("a@b foo=bar A\na@b A", true),
        ("a@b foo=bar A", false),
        ("x@y ssh-ed25519 AAAA\na@b A", true),
        ("a@b no-touch-required A", false),
        ("a@b namespaces=\"git\" A", true),
        ("a@b namespaces=\"file,git\" A", true),
        ("a@b NameSpaces=\"gi?\" A", true),
        ("a@b namespaces=\"file\" A", false),
        ("a@b namespaces=\"!git,*\" A", false),
        ("a@b namespaces=\"\" A", false),
        ("a@b namespaces=git A", false),
        ("a@b namespaces=\"git\",namespaces=\"file\" A", false),
        ("a@b namespaces=\"file\" A\nc@d namespaces=\"git\" A", false),
        ("a@b namespaces=\"file\" A\na@b namespaces=\"git\" A", true),
        ("a@b,c@d namespaces=\"file\" A\nc@d namespaces=\"git\" A", true),
        ("*@b A", true),
        ("*@b,!a@b A", true),
        ("!a@b A", false),
        ("!a@b,c@d A", true),
        (",a@b A", false),
        ("a@b,,c@d A", true),
        ("\"a@b\" A", true),
        ("\"a b\" A", true),
        ("\"a b\",c@d A", false),
        ("a@b cert-authority A", false),
        ("a@b cert-authority A\nc@d A", true),
        ("a@b valid-after=\"20261123Z\" A", true),
        ("a@b valid-after=\"20261124Z\" A", false),
        ("a@b valid-after=\"20261122235959Z\",valid-before=\"202611230001Z\" A", true),
        ("a@b valid-before=\"20261123Z\" A", true),
        ("a@b valid-before=\"20261122235959Z\" A", false),
        ("a@b valid-before=\"20200101\" A\nc@d A", true),
        ("a@b valid-before=\"20400101\",valid-after=\"20200101\" A", true),
        ("a@b valid-before=\"20200101\",valid-after=\"20400101\" A", false),
        ("a@b valid-before=\"soon\" A", false),
        ("a@b valid-before=\"20261301\" A", false),
        ("a@b namespaces=\"git\", A", false),
        ("a@b A B", true),
    ] {
        // Words, and not what happens to be in a key.
        let words = allowed.split_inclusive(char::is_whitespace).map(|word| match word.trim_end() {
            "A" => word.replace('A', &a),
            "B" => word.replace('B', &b),
            _ => word.to_owned(),
        });
        let allowed: String = words.collect();
        signing.agree("of a", &id, &allowed, wanted);
    }
}

#[test]
fn every_kind_of_key_counts_as_it_does_for_git_and_the_verdict_says_whose_it_is() {
    let signing = Signing::new();
    for (name, shown) in [("a", "ED25519"), ("rsa", "RSA"), ("p256", "ECDSA"), ("p384", "ECDSA")] {
        let id = signing.commit(name, DAY);
        signing.agree(name, &id, &format!("who@{name} {}", signing.public(name)), true);
        let refused = signing.agree(name, &id, &format!("who@b {}", signing.public("b")), false);
        let listed = Command::new("ssh-keygen").args(["-l", "-f"]).arg(signing.path(name)).output().expect("ssh-keygen runs").stdout;
        let fingerprint = String::from_utf8_lossy(&listed).split(' ').nth(1).expect("a fingerprint").to_owned();
        let (_, text, hint) = refused.failed();
        assert!(text.contains(&format!("{id} of ")) && text.contains(&format!("{shown} key {fingerprint}")), "{text}");
        assert!(hint.contains("namespaces=\"git\""), "{hint}");
        // What is staged says who signed it.
        signing.agree(name, &id, &format!("who@{name} {}", signing.public(name)), true);
        let mut request = signing.scene.stage_request(&id);
        request["stage"]["allowed_signers"] = json!(format!("who@{name} {}", signing.public(name)));
        let staged = helper(&request);
        let told = format!("revision {id} is signed by who@{name} with {shown} key {fingerprint}");
        assert!(staged.log().contains(&told.as_str()), "{staged:?}");
    }
    let payload = signing.unsigned();
    let (key, signature) = by_security_key(&payload);
    let id = signing.with_signature(&payload, &signature);
    signing.agree("a security key", &id, &format!("a@b {key}"), true);
    let changed = [payload.as_slice(), b"more\n"].concat();
    signing.agree("a security key, changed", &signing.with_signature(&changed, &signature), &format!("a@b {key}"), false);
}

#[test]
fn certificates_count_as_they_do_for_git() {
    let signing = Signing::new();
    let (ca, a, b) = (signing.public("ca"), signing.public("a"), signing.public("b"));
    signing.certify("good", "ca", &["-n", "a@b,c@d"]);
    signing.certify("past", "ca", &["-n", "a@b", "-V", "20200101Z:20210101Z"]);
    signing.certify("now", "ca", &["-n", "a@b", "-V", "20261123Z:20261124Z"]);
    signing.certify("nobody", "ca", &[]);
    signing.certify("host", "ca", &["-h", "-n", "a@b"]);
    signing.certify("other", "a", &["-n", "a@b"]);
    for (name, allowed, wanted) in [
        ("good", format!("a@b cert-authority {ca}"), true),
        ("good", format!("*@d cert-authority {ca}"), true),
        ("good", format!("*@b,!a@b cert-authority {ca}"), false),
        ("good", format!("x@y cert-authority {ca}"), false),
        ("good", format!("a@b {ca}"), false),
        ("good", format!("a@b {b}"), false),
        ("good", format!("* cert-authority,namespaces=\"git\" {ca}"), true),
        ("good", format!("* cert-authority,namespaces=\"file\" {ca}"), false),
        ("good", format!("* cert-authority,valid-before=\"20200101\" {ca}"), false),
        ("past", format!("* cert-authority {ca}"), false),
        ("now", format!("* cert-authority {ca}"), true),
        ("nobody", format!("* cert-authority {ca}"), false),
        ("host", format!("* cert-authority {ca}"), false),
        ("other", format!("* cert-authority {ca}"), false),
        ("other", format!("* cert-authority {ca}\na@b cert-authority {a}"), true),
    ] {
        let id = signing.commit(&format!("{name}-cert.pub"), DAY);
        signing.agree(&format!("certificate `{name}`"), &id, &allowed, wanted);
    }
}

#[test]
fn what_was_changed_made_for_something_else_or_is_no_ssh_signature_counts_for_nobody() {
    let signing = Signing::new();
    let allowed = format!("a@b {}", signing.public("a"));
    let payload = signing.unsigned();
    let good = signing.sign("a", "git", &payload);
    signing.agree("ssh-keygen's own", &signing.with_signature(&payload, &good), &allowed, true);

    let text = String::from_utf8(payload.clone()).expect("text");
    let other = |from: &str, to: &str| text.replace(from, to).into_bytes();
    let cut = good.replacen("U1NIU0lH", "U1NIU0lX", 1);
    let pgp = "-----BEGIN PGP SIGNATURE-----\n\niQEz\n-----END PGP SIGNATURE-----";
    let x509 = "-----BEGIN SIGNED MESSAGE-----\nMIIE\n-----END SIGNED MESSAGE-----";
    let file = signing.sign("a", "file", &payload);
    let date = |text: &str| text.split(DAY).collect::<Vec<_>>().join("");
    for (case, id, words) in [
        ("unsigned", signing.write("commit", &payload), "is not signed"),
        ("another message", signing.with_signature(&other("plain", "evil"), &good), "WRONG"),
        ("another date", signing.with_signature(&other("1795392000", "1795392001"), &good), "WRONG"),
        ("another purpose", signing.with_signature(&payload, &file), "made for `file`"),
        ("a broken one", signing.with_signature(&payload, &cut), "cannot be read"),
        ("no end", signing.with_signature(&payload, good.split("-----END").next().expect("a start")), "cannot be read"),
        ("an empty one", signing.with_signature(&payload, ""), "cannot be read"),
        ("gpg's", signing.with_signature(&payload, pgp), "signed by GPG"),
        ("x509's", signing.with_signature(&payload, x509), "signed by X.509"),
        ("in the message", signing.write("commit", format!("{text}\ngpgsig {good}").as_bytes()), "is not signed"),
        ("for another hash", signing.write("commit", &with_header(&payload, "gpgsig-sha256", &good)), "is not signed"),
    ] {
        let answer = signing.agree(case, &id, &allowed, false);
        assert!(answer.failed().1.contains(words), "{case}: {answer:?}");
    }
    // A signature for SHA-256 ids beside it is not part of what was signed, as for git.
    let both = with_header(&with_header(&payload, "gpgsig-sha256", &file), "gpgsig", &good);
    signing.agree("beside another hash's", &signing.write("commit", &both), &allowed, true);

    // Stricter than git: what git would take.
    let dateless = date(&text).into_bytes();
    // git takes such a date for none, and asks whether the key counts now; whose the signature is may choose it.
    let at = |when: &str| text.replace(DAY, when).into_bytes();
    let (zero, negative) = (at("0 +0000"), at("-86400 +0000"));
    let returned = good.replace('\n', "\r\n");
    for (case, id, allowed, words) in [
        ("no date", signing.with_signature(&dateless, &signing.sign("a", "git", &dateless)), allowed.clone(), "without a date"),
        ("the date 0", signing.with_signature(&zero, &signing.sign("a", "git", &zero)), allowed.clone(), "without a date"),
        ("a date before 1970", signing.with_signature(&negative, &signing.sign("a", "git", &negative)), allowed.clone(), "without a date"),
        ("lines that end with CR", signing.with_signature(&payload, &returned), allowed.clone(), "cannot be read"),
        ("P-521", signing.commit("p521", DAY), format!("a@b {}", signing.public("p521")), "ecdsa-sha2-nistp521"),
        (
            "two",
            signing.write("commit", &with_header(&with_header(&payload, "gpgsig", "x"), "gpgsig", &good)),
            allowed.clone(),
            "more than once",
        ),
    ] {
        signing.scene.in_work(&["branch", "-f", "judged", &id]);
        let (_, _, ours) = signing.ask(&id, &json!({"branch": "judged"}), &allowed);
        let (kind, text, _) = ours.failed();
        assert!(kind == "unsigned" && text.contains(words), "{case}: {ours:?}");
    }
    for nobody in ["", "# none\n", "rubbish"] {
        let (_, _, ours) = signing.ask("HEAD", &json!({"branch": "judged"}), nobody);
        assert!(ours.failed().1.contains("allows nobody"), "{ours:?}");
    }
}

#[test]
fn a_tag_counts_by_its_own_signature() {
    let signing = Signing::new();
    let allowed = format!("a@b {}", signing.public("a"));
    let tag = |name: &str, args: &[&str]| {
        let key = format!("user.signingkey={}", signing.path("a").display());
        let (good, said) = signing.git(DAY, &[&["-c", &key, "tag"], args, &["-m", "x", name]].concat());
        assert!(good, "{said}");
    };
    // The commit is nobody's: a tag is wanted, and the tag is signed.
    signing.unsigned();
    let unsigned = signing.scene.in_work(&["rev-parse", "HEAD"]);
    tag("good", &["-s"]);
    tag("plain", &["-a"]);
    let object = String::from_utf8(signing.object("tag", "good")).expect("text");
    let changed = signing.write("tag", object.replacen("\nx\n", "\ny\n", 1).as_bytes());
    signing.scene.in_work(&["update-ref", "refs/tags/changed", &changed]);
    signing.scene.in_work(&["update-ref", "refs/tags/light", "HEAD"]);
    let id = signing.commit("a", DAY);
    signing.scene.in_work(&["tag", "-f", "light-signed", &id]);
    for (name, wanted, words) in [
        ("good", true, ""),
        ("plain", false, "is not signed"),
        ("changed", false, "WRONG"),
        ("light", false, "lightweight"),
        ("light-signed", false, "lightweight"),
    ] {
        let (git, said, ours) = signing.ask(name, &json!({"tag": name}), &allowed);
        assert_eq!((git, ours.success), (wanted, wanted), "{name}: {said}: {ours:?}");
        if wanted {
            assert_eq!(ours.fetched().0, unsigned);
        } else {
            let (kind, text, _) = ours.failed();
            assert!(kind == "unsigned" && text.contains(words), "{ours:?}");
        }
    }
    // A right signature under a wrong name: an old version is not pushed as a new one.
    signing.scene.in_work(&["update-ref", "refs/tags/newer", "refs/tags/good"]);
    let (_, _, ours) = signing.ask("newer", &json!({"any": "newer"}), &allowed);
    assert!(ours.failed().1.contains("was signed as tag `good`"), "{ours:?}");

    // Staged is what the tag led to, also when it is read once more; by a branch its commit does not count.
    let stage = || {
        let mut request = signing.scene.stage_request(&unsigned);
        request["stage"]["allowed_signers"] = json!(allowed);
        helper(&request)
    };
    let (_, _, ours) = signing.ask("good", &json!({"any": "good"}), &allowed);
    assert!(ours.success, "{ours:?}");
    assert!(stage().log().iter().any(|line| line.contains("signed by a@b")));
    signing.agree("the tag's commit by a branch", &unsigned, &allowed, false);
    let (_, _, ours) = signing.ask(&id, &json!({"revision": id}), &allowed);
    assert!(ours.success, "{ours:?}");
    std::fs::remove_dir_all(signing.path("releases/r.tmp")).expect("removed");
    let staged = stage();
    assert_eq!(staged.failed().0, "unsigned", "{staged:?}");
    assert!(!signing.path("releases/r.tmp").exists(), "nothing of it is written");
}

#[test]
fn what_is_not_signed_leaves_the_last_valid_revision_in_the_mirror() {
    let signing = Signing::new();
    let allowed = format!("a@b {}", signing.public("a"));
    let good = signing.commit("a", DAY);
    signing.agree("signed", &good, &allowed, true);
    let bad = signing.write("commit", &signing.unsigned());
    signing.agree("not signed", &bad, &allowed, false);
    assert_eq!(signing.scene.mirrored().first(), Some(&good));
    // Staging it all the same, as after a change of the configuration, is refused.
    let mut request = signing.scene.stage_request(&bad);
    request["stage"]["allowed_signers"] = json!(allowed);
    assert!(["unsigned", "corrupt"].contains(&helper(&request).failed().0));
    // Signed by somebody who is added, it is deployed.
    let next = signing.commit("b", DAY);
    signing.agree("of b", &next, &allowed, false);
    signing.agree("of b, added", &next, &format!("{allowed}\nb@b {}", signing.public("b")), true);
}
