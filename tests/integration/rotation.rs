//! What is replaced while a proxy runs: the keys that applications present, and the service account.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use rustix::process::Signal;
use scopeguard::defer;
use serde_json::{Value, json};

use crate::support::{
    broker::{Account, Vendor, local_content},
    config::two_local_tenants,
    http::{Connection, Request},
    metadata,
    metrics::Metrics,
    on_both,
    proxy::{API_KEY, Io, Proxy, Setup, replace_file},
    request, text, until,
};

/// Rotations in a test; `TSP_TEST_ROTATIONS` in the environment is another number.
const ROTATIONS: u64 = 20;

fn rotations() -> u64 {
    std::env::var("TSP_TEST_ROTATIONS").map_or(ROTATIONS, |n| n.parse().expect("a number"))
}

/// A new key and its line, as the command prints them.
#[track_caller]
fn create(options: &[&str]) -> (String, String) {
    let setup = Setup::bare().argument("api-key").argument("create");
    let ended = options
        .iter()
        .fold(setup, |setup, option| setup.argument(option))
        .run_to_end();
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    let (key, line) = ended.output.split_once('\n').expect("two lines");
    (key.to_owned(), line.trim().to_owned())
}

fn file_of(lines: &[&str]) -> String {
    format!("version = 1\n[keys]\n{}\n", lines.join("\n"))
}

/// A proxy of two tenants with such a file, which `path` gets to know.
fn with_keys(io: Io, lines: &[&str]) -> (Setup, std::path::PathBuf) {
    let setup = Setup::serve(io, &two_local_tenants());
    let path = setup.folder().join("keys.toml");
    replace_file(&path, &file_of(lines));
    let named = path.to_str().expect("temporary paths are UTF-8").to_owned();
    (setup.env("TSP_API_KEYS_FILE", &named), path)
}

/// Has the file replaced, and waits until what it says is in force.
#[track_caller]
fn replace(proxy: &Proxy, path: &Path, text: &str, message: &str) {
    let from = proxy.log.len();
    replace_file(path, text);
    proxy.signal(Signal::HUP);
    told(proxy, from, message);
}

#[track_caller]
fn told(proxy: &Proxy, from: usize, message: &str) -> Value {
    let says = |line: &Value| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains(message))
    };
    proxy.log.wait_json(from, message, says).0
}

fn wrap_with(proxy: &Proxy, key: &str, tenant: &str) -> u16 {
    proxy
        .send(&Request::api("document/wrap", key, &metadata(tenant)))
        .status
}

const CHANGED: &str = "the API keys have changed";

on_both! {
    fn a_listed_key_is_accepted_until_its_line_goes(io) {
        let (key, line) = create(&["--label", "billing"]);
        let (other, other_line) = create(&["--label", "search"]);
        let (setup, path) = with_keys(io, &[&line]);
        let proxy = setup.start();
        assert_eq!(wrap_with(&proxy, API_KEY, "acme"), 200);
        assert_eq!(wrap_with(&proxy, &key, "acme"), 200);
        assert_eq!(wrap_with(&proxy, &other, "acme"), 401);
        let label = [("label", "billing")];
        let metrics = Metrics::read(proxy.health);
        assert_eq!(metrics.count("tsp_api_key_uses_total", &label), 1.0);
        assert!(metrics.count("tsp_api_key_last_used_timestamp_seconds", &label) > 1.7e9);

        replace(&proxy, &path, &file_of(&[&other_line]), CHANGED);
        assert_eq!(wrap_with(&proxy, &key, "acme"), 401);
        assert_eq!(wrap_with(&proxy, &other, "acme"), 200);
        assert_eq!(Metrics::read(proxy.health).sum("tsp_api_key_uses_total", &label), None);

        // What cannot be used changes nothing, and says why, without a word of what is in it.
        let bad = file_of(&["oops = { sha256 = \"CANARY-key\" }"]);
        replace(&proxy, &path, &bad, "the last good API keys stay in force");
        assert_eq!(wrap_with(&proxy, &other, "acme"), 200);
        assert!(Metrics::read(proxy.health).count("tsp_api_keys_reload_failures_total", &[]) >= 1.0);
        assert!(!proxy.log.text().contains("CANARY"));
    }

    fn a_scope_holds_for_tenants_and_operations(io) {
        let (key, line) = create(&[
            "--label", "reader", "--tenant", "acme", "--operation", "document/unwrap",
            "--operation", "document/rekey", "--operation", "event/security-event",
        ]);
        let (ended, expired_line) = create(&["--label", "ended", "--expires", "2020-01-01T00:00:00Z"]);
        let (setup, _) = with_keys(io, &[&line, &expired_line]);
        let proxy = setup.start();
        let wrapped = proxy.call("document/wrap", &metadata("acme")).ok();
        let edek = || json!({ "encryptedDocumentKey": text(&wrapped, "edek") });
        let ask = |endpoint: &str, body: &Value| proxy.send(&Request::api(endpoint, &key, body));
        ask("document/unwrap", &request("acme", edek())).ok();
        ask("document/wrap", &metadata("acme")).refused(401, 101);
        // The same for a tenant that is there and one that is not.
        for tenant in ["globex", "nobody"] {
            let message = ask("document/unwrap", &request(tenant, edek())).refused(401, 101);
            assert!(message.contains("limited"), "{message}");
        }
        let mut rekey = edek();
        rekey["newTenantId"] = "globex".into();
        ask("document/rekey", &request("acme", rekey)).refused(401, 101);
        let event = json!({ "event": "USER_LOGIN" });
        assert_eq!(ask("event/security-event", &request("acme", event.clone())).status, 200);
        ask("event/security-event", &request("globex", event)).refused(401, 101);
        assert_eq!(wrap_with(&proxy, &ended, "acme"), 401);
    }

    fn rotations_under_load_fail_no_request(io) {
        let (first, first_line) = create(&["--label", "k0"]);
        let (setup, path) = with_keys(io, &[&first_line]);
        let proxy = setup.start();
        let (over, current) = (AtomicBool::new(false), Mutex::new(first));
        let asked = [AtomicU64::new(0), AtomicU64::new(0)];
        thread::scope(|scope| {
            for asked in &asked {
                let (over, current, proxy) = (&over, &current, &proxy);
                scope.spawn(move || {
                    defer!(over.store(true, Ordering::Relaxed));
                    let mut connection = Connection::open(proxy.http);
                    while !over.load(Ordering::Relaxed) {
                        let key = current.lock().expect("nobody panics with it").clone();
                        let request = Request::api("document/wrap", &key, &metadata("acme"));
                        connection.ask(&request).ok();
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            // Whatever fails here or there, nobody goes on for ever.
            defer!(over.store(true, Ordering::Relaxed));
            let mut old_line = first_line.clone();
            for number in 1..=rotations() {
                let (key, line) = create(&["--label", &format!("k{}", number % 7 + 7 * (number % 2))]);
                replace(&proxy, &path, &file_of(&[&old_line, &line]), CHANGED);
                *current.lock().expect("nobody panics with it") = key;
                // Each has begun a request with the new key: what is under way is finished before the old one goes.
                for asked in &asked {
                    let before = asked.load(Ordering::Relaxed);
                    until("requests go on", || {
                        assert!(!over.load(Ordering::Relaxed), "a request failed");
                        asked.load(Ordering::Relaxed) >= before + 2
                    });
                }
                replace(&proxy, &path, &file_of(&[&line]), CHANGED);
                old_line = line;
            }
        });
        let metrics = Metrics::read(proxy.health);
        assert!(metrics.count("tsp_api_keys_reloads_total", &[]) >= 2.0 * rotations() as f64);
    }

    fn the_account_file_rotates_the_api_key_as_well(io) {
        let setup = Setup::serve(io, &two_local_tenants()).env("API_KEY", "");
        let path = setup.folder().join("tsp.env");
        replace_file(&path, "API_KEY=first-0123456789\n");
        let named = path.to_str().expect("temporary paths are UTF-8").to_owned();
        let proxy = setup.env("TSP_SERVICE_ACCOUNT_FILE", &named).start();
        assert_eq!(wrap_with(&proxy, "first-0123456789", "acme"), 200);
        let both = "API_KEY=second-0123456789\nAPI_KEY_2=first-0123456789\n";
        replace(&proxy, &path, both, CHANGED);
        for key in ["first-0123456789", "second-0123456789"] {
            assert_eq!(wrap_with(&proxy, key, "acme"), 200);
        }
        let uses = Metrics::read(proxy.health).count("tsp_api_key_uses_total", &[("label", "API_KEY_2")]);
        assert_eq!(uses, 1.0);
        replace(&proxy, &path, "API_KEY_2=first-0123456789\n", "the last good service account stays in force");
        assert_eq!(wrap_with(&proxy, "second-0123456789", "acme"), 200);
        replace(&proxy, &path, "API_KEY=second-0123456789\n", CHANGED);
        assert_eq!(wrap_with(&proxy, "first-0123456789", "acme"), 401);
    }

    fn another_service_account_takes_over_once_the_broker_has_taken_it(io) {
        let vendor = Vendor::new();
        vendor.tenant("acme", &local_content(1), &[]);
        let (old, new) = (vendor.account(), vendor.account());
        let text = |account: &Account| {
            let lines = account.0.iter().filter(|(name, _)| *name != "API_KEY");
            lines.map(|(name, value)| format!("{name}={value}\n")).collect::<String>()
        };
        let setup = Setup::without_config(io)
            .env("TSP_ALLOW_LOCAL_KMS", "true")
            .env("TSP_KMS_ALLOW_ADDRESSES", "loopback");
        let path = setup.folder().join("tsp.env");
        replace_file(&path, &text(&old));
        let named = path.to_str().expect("temporary paths are UTF-8").to_owned();
        let proxy = setup.env("TSP_SERVICE_ACCOUNT_FILE", &named).start();
        proxy.wait_for_ready(200);
        assert_eq!(wrap_with(&proxy, API_KEY, "acme"), 200);

        // One that the broker does not take: the old one goes on.
        let mut stranger = new.clone();
        stranger.0.insert("SERVICE_SIGNING_PRIVATE_KEY".into(), old.0["SERVICE_SIGNING_PRIVATE_KEY"].clone());
        replace(&proxy, &path, &text(&stranger), "the last good service account stays in force");
        assert_eq!(wrap_with(&proxy, API_KEY, "acme"), 200);

        replace(&proxy, &path, &text(&new), "the broker has taken the new service account");
        vendor.admin(&["account", "revoke", &old.0["SERVICE_CONFIG_ID"]]);
        vendor.tenant("globex", &local_content(2), &[]);
        let from = proxy.log.len();
        proxy.signal(Signal::HUP);
        told(&proxy, from, "tenant configurations published");
        assert_eq!(wrap_with(&proxy, API_KEY, "globex"), 200);

        let other_vendor = Vendor::new().account();
        replace(&proxy, &path, &text(&other_vendor), "is of another vendor");
    }
}

#[test]
fn a_file_of_keys_that_cannot_be_used_ends_the_start() {
    let (setup, path) = with_keys(Io::Epoll, &["x = 1"]);
    let ended = setup.argument("check").run_to_end();
    assert_eq!(ended.code, Some(64));
    assert!(
        ended.output.contains("keys.toml, key x: "),
        "{}",
        ended.output
    );
    drop(path);
    let (setup, _) = with_keys(Io::Epoll, &[]);
    let ended = setup.env("API_KEY", "").argument("check").run_to_end();
    assert_eq!(ended.code, Some(64));
    assert!(ended.output.contains("lists no key"), "{}", ended.output);
    let setup = Setup::bare().argument("api-key").argument("create");
    let ended = setup.argument("--label").argument("two words").run_to_end();
    assert_eq!(ended.code, Some(64), "{}", ended.output);
}
