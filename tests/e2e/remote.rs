//! A whole node on an https source: a private authority, a token, and git's own http-backend behind the server.

use std::process::Command;

use crate::node::{Node, QUICK, run};
use crate::site::{Authority, Manner, Site, basic};

#[test]
fn a_node_lives_on_an_https_source_with_a_token_and_a_wrong_token_is_said_to_be_refused() {
    let node = Node::new();
    let authority = Authority::new();
    node.write("ca.pem", &authority.pem());
    let site = Site::start(node.path("served"), authority.localhost(), Manner::Wants(basic("x-access-token", "a-good-token")));
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
