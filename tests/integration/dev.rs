//! The first minute: `tsp dev` prints a curl line, and the line works as printed.

use std::process::Command;

use base64::Engine as _;
use serde_json::json;

use crate::support::{
    metadata, on_both,
    proxy::{Io, Setup},
    request, text, until,
};

on_both! {
    fn the_printed_curl_line_works_as_it_is(io) {
        let proxy = Setup::dev(io).start();
        let line = proxy.log.wait("curl line", |line| line.trim_start().starts_with("curl ").then(|| line.to_owned()));
        let output = Command::new("bash").arg("-c").arg(&line).output().expect("bash runs");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output:?} of {line}"));
        assert_eq!(crate::support::base64(text(&answer, "dek")).len(), 32);
        assert!(!text(&answer, "edek").is_empty());
    }

    fn its_four_tenants_show_each_state(io) {
        let proxy = Setup::dev(io).start();
        let wrapped = proxy.call("document/wrap", &metadata("tenant-a")).ok();
        let edek = text(&wrapped, "edek");
        let rekey = json!({ "encryptedDocumentKey": edek, "newTenantId": "tenant-b" });
        let moved = proxy.call("document/rekey", &request("tenant-a", rekey)).ok();
        let moved = json!({ "encryptedDocumentKey": moved["edek"] });
        assert_eq!(proxy.call("document/unwrap", &request("tenant-b", moved.clone())).ok()["dek"], wrapped["dek"]);
        proxy.call("document/unwrap", &request("tenant-a", moved)).refused(422, 202);
        proxy.call("document/wrap", &metadata("tenant-no-primary")).refused(422, 200);
        let disabled = proxy.call("document/unwrap", &request("tenant-disabled", json!({ "encryptedDocumentKey": edek })));
        disabled.refused(422, 202);
    }

    fn keys_survive_a_restart_with_a_state_file(io) {
        let folder = tempfile::TempDir::new().expect("a temporary folder can be made");
        let state = folder.path().join("state");
        let start = || Setup::dev(io).argument("--state").argument(state.to_str().expect("temporary paths are UTF-8")).start();
        let first = start();
        let wrapped = first.call("document/wrap", &metadata("tenant-a")).ok();
        drop(first);
        let again = json!({ "encryptedDocumentKey": wrapped["edek"] });
        assert_eq!(start().call("document/unwrap", &request("tenant-a", again)).ok()["dek"], wrapped["dek"]);
    }
}

#[test]
fn a_broker_and_a_logdriver_start_with_it_serve_and_end_with_it() {
    let proxy = Setup::dev(Io::Epoll).argument("--broker").start();
    let printed = |what: &str, begins: &str| {
        proxy.log.wait(what, |line| {
            line.trim_start()
                .starts_with(begins)
                .then(|| line.to_owned())
        })
    };
    let shell = |line: &str| {
        let output = Command::new("bash").arg("-c").arg(line).output();
        output.expect("bash runs")
    };
    let curl = printed("curl line", "curl ");
    let answer: serde_json::Value = serde_json::from_slice(&shell(&curl).stdout).expect("JSON");
    assert_eq!(crate::support::base64(text(&answer, "dek")).len(), 32);

    let (export, admin) = (printed("variables", "export "), printed("command", "/"));
    let listed = shell(&format!(
        "{export}; {}",
        admin.replace("create acme", "list")
    ));
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("tenant-leased"), "{listed}");
    let created = shell(&format!("{export}; {admin}"));
    assert!(created.status.success(), "{created:?}");
    // It comes at the next look: not an unknown tenant, but one without a config.
    let first = proxy.log.len();
    proxy.signal(rustix::process::Signal::HUP);
    proxy
        .log
        .wait_json(first, "publication", |line| line["tenants"] == 4);

    // The logdriver has the wrap from above, and writes it and its own log into one file.
    let written = printed("the logdriver's file", "logdriver ");
    let written = written
        .trim()
        .rsplit(' ')
        .next()
        .expect("a path")
        .to_owned();
    let lines = || {
        let text = std::fs::read_to_string(&written).unwrap_or_default();
        let lines = text.lines().map(serde_json::from_str::<serde_json::Value>);
        lines.filter_map(Result::ok).collect::<Vec<_>>()
    };
    until("the event comes out of the logdriver", || {
        lines().iter().any(|line| {
            line["tenantId"] == "tenant-a" && line["iclFields"]["event"] == "DATA_ENCRYPT"
        })
    });
    let logdriver = lines()
        .iter()
        .find_map(|line| line["health"].as_str().map(str::to_owned));
    let logdriver = logdriver.expect("it tells where it is asked for its health");
    assert!(std::net::TcpStream::connect(&logdriver).is_ok());

    let broker = printed("broker's address", "broker ");
    let broker = broker.trim().rsplit("//").next().expect("a URL").to_owned();
    assert!(std::net::TcpStream::connect(&broker).is_ok());
    proxy.signal(rustix::process::Signal::KILL);
    proxy.wait_for_end();
    until("they end, too", || {
        [&broker, &logdriver].map(|end| std::net::TcpStream::connect(end).is_ok()) == [false; 2]
    });
}

#[test]
fn it_makes_a_key_of_the_form_that_every_sdk_takes() {
    let proxy = Setup::bare()
        .argument("dev")
        .env("TSP_HTTP_BIND_ADDRESS", "127.0.0.1:0")
        .env("TSP_HEALTH_BIND_ADDRESS", "127.0.0.1:0")
        .env("TSP_EVENT_BIND_ADDRESS", "127.0.0.1:0")
        .start();
    let key = proxy.log.wait("API key", |line| {
        line.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c)))
            .find(|word| {
                word.len() == 16
                    && crate::support::STANDARD
                        .decode(word)
                        .is_ok_and(|bytes| bytes.len() == 12)
            })
            .map(str::to_owned)
    });
    assert_eq!(key.len(), 16);
}
