//! Proxies whose configurations come from a real broker: the way from an admin's command to a tenant's wrap, and everything
//! that can go wrong on it.

mod commands;
mod scale;

use std::{
    fs,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::json;
use tsp_wire::account::{SNAPSHOT_PATH, token};

use crate::support::{
    broker::{Account, Relay, Vendor, answer, changing, content_of, honest, local_content},
    http::Answer,
    kmssim::{Provider, Simulator},
    metadata, on_both,
    proxy::{Io, Proxy, Setup},
    request, text, until,
};

/// Exit code for a configuration that cannot be used.
const EXIT_BAD_CONFIGURATION: i32 = 64;

/// How many proxies race for a tenant's secret.
const RACING_PROXIES: usize = 3;

/// A vendor whose tenant has a LOCAL key, and an account.
fn vendor_of_acme() -> (Vendor, Account) {
    let vendor = Vendor::new();
    vendor.tenant("acme", &local_content(1), &[]);
    let account = vendor.account();
    (vendor, account)
}

/// Keys of a path whose secret may have to be made. While the broker's disk is slow that is refused, and asked again.
#[track_caller]
fn derived(proxy: &Proxy, tenant: &str, path: &str) -> serde_json::Value {
    let mut answer = derive(proxy, tenant, path);
    until("the secret is stored", || {
        let stored = answer.status == 200;
        if !stored {
            answer.refused(500, 401);
            answer = derive(proxy, tenant, path);
        }
        stored
    });
    answer.ok()
}

/// A proxy that takes LOCAL keys from its broker, so that a test needs no KMS.
fn local(io: Io, account: &Account) -> Setup {
    account.setup(io).env("TSP_ALLOW_LOCAL_KMS", "true")
}

/// The next error about the broker in the log, from line `from` on; and the number of the line after it.
#[track_caller]
fn failure(proxy: &Proxy, from: usize, sentence: &str) -> usize {
    let is_told = |line: &serde_json::Value| {
        line["level"] == "ERROR"
            && line["message"]
                .as_str()
                .is_some_and(|told| told.contains(sentence))
    };
    proxy.log.wait_json(from, sentence, is_told).1
}

#[track_caller]
fn wraps(proxy: &Proxy, tenant: &str) {
    let wrapped = proxy.call("document/wrap", &metadata(tenant)).ok();
    let edek = json!({ "encryptedDocumentKey": text(&wrapped, "edek") });
    let unwrapped = proxy.call("document/unwrap", &request(tenant, edek)).ok();
    assert_eq!(text(&wrapped, "dek"), text(&unwrapped, "dek"));
}

fn derive(proxy: &Proxy, tenant: &str, path: &str) -> Answer {
    let members = json!({
        "paths": { path: ["derived"] }, "derivationType": "sha512", "secretType": "deterministic",
    });
    proxy.call("key/derive-with-secret-path", &request(tenant, members))
}

fn refresh_failures(proxy: &Proxy) -> f64 {
    proxy
        .metrics()
        .count("tsp_config_refresh_failures_total", &[])
}

on_both! {
    fn tenants_wrap_with_what_admins_sealed_for_the_account(io) {
        let simulator = Simulator::start();
        let vendor = Vendor::new();
        vendor.tenants_of(&simulator);
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        let account = vendor.account();
        let proxy = account
            .setup(io)
            .env("TSP_SNAPSHOT_CACHE", copy.to_str().unwrap())
            .env("RUST_LOG", "trace")
            .start();
        proxy.wait_for_ready(200);
        for client in &simulator.clients {
            wraps(&proxy, &client.tenant);
        }
        simulator.assert_refused_none();

        // Another primary key for a tenant reaches the proxy, and the copy on disk.
        let client = simulator.client(Provider::Aws);
        let gcp = content_of(&simulator, simulator.client(Provider::Gcp));
        let id = vendor.kms(&client.tenant, &gcp, &["--leasing"]);
        let before = fs::read(&copy).unwrap();
        proxy.signal(Signal::HUP);
        proxy.log.wait_json(0, "second publication", |line| line["kms_configs"] == 5);
        let edek = proxy.call("document/wrap", &metadata(&client.tenant)).ok();
        let edek = tsp_wire::edek::parse(text(&edek, "edek")).unwrap();
        assert_eq!(edek.encrypted_deks[0].kms_config_id.to_string(), id);
        let after = fs::read(&copy).unwrap();
        assert_ne!(before, after);

        // What opens the tenants' keys is nowhere but in memory.
        let log = proxy.log.text();
        let file = String::from_utf8_lossy(&after);
        let secrets = simulator.clients.iter().flat_map(|client| {
            let content = content_of(&simulator, client);
            let credentials = content["credentials"].as_object().unwrap().clone();
            credentials.into_iter().filter(|(name, _)| is_secret(name)).map(|(_, value)| value)
        });
        let mut searched = 0;
        for secret in secrets {
            // The middle of a PEM file's lines, and all of a password.
            let secret = secret.as_str().unwrap();
            let part = secret.lines().nth(1).unwrap_or(secret);
            assert!(!log.contains(part) && !file.contains(part), "{part}");
            searched += 1;
        }
        assert!(searched >= 4, "{searched}");
        for name in ["SERVICE_ENCRYPTION_PRIVATE_KEY", "SERVICE_SIGNING_PRIVATE_KEY"] {
            let key = &account.0[name];
            assert!(!log.contains(key) && !file.contains(key), "{name}");
        }
    }

    fn a_proxy_waits_for_its_broker_and_lives_meanwhile(io) {
        let (mut vendor, account) = vendor_of_acme();
        vendor.kill_broker();
        let proxy = local(io, &account).start();
        let next = failure(&proxy, 0, "cannot be reached");
        failure(&proxy, next, "cannot be reached");
        assert_eq!((proxy.probe("/live"), proxy.probe("/ready")), (200, 500));
        proxy.call("document/wrap", &metadata("acme")).refused(503, 100);
        assert!(refresh_failures(&proxy) >= 2.0);
        vendor.start_broker();
        proxy.wait_for_ready(200);
        wraps(&proxy, "acme");
    }

    fn a_revoked_account_is_refused_at_once_and_its_proxy_stops_at_the_limit(io) {
        let (vendor, account) = vendor_of_acme();
        let proxy = local(io, &account)
            .env("TSP_CONFIG_REFRESH_S", "1")
            .env("TSP_CONFIG_MAX_AGE_S", "6")
            .start();
        proxy.wait_for_ready(200);
        wraps(&proxy, "acme");
        let from = proxy.log.len();
        vendor.admin(&["account", "revoke", &account.0["SERVICE_CONFIG_ID"]]);
        failure(&proxy, from, "it was revoked");
        // Another process of the account gets nothing at all.
        let late = local(io, &account).start();
        failure(&late, 0, "it was revoked");
        assert_eq!(late.probe("/ready"), 500);

        proxy.wait_for_ready(500);
        proxy.call("document/wrap", &metadata("acme")).refused(500, 100);
        assert_eq!(proxy.probe("/live"), 200);
        assert!(refresh_failures(&proxy) >= 1.0);
    }

    fn a_broker_that_is_away_for_too_long_stops_the_proxy_until_it_is_back(io) {
        let (mut vendor, account) = vendor_of_acme();
        let proxy = local(io, &account)
            .env("TSP_CONFIG_REFRESH_S", "1")
            .env("TSP_CONFIG_MAX_AGE_S", "4")
            .start();
        proxy.wait_for_ready(200);
        vendor.kill_broker();
        wraps(&proxy, "acme");
        proxy.wait_for_ready(500);
        proxy.call("document/wrap", &metadata("acme")).refused(500, 100);
        vendor.start_broker();
        proxy.wait_for_ready(200);
        wraps(&proxy, "acme");
    }

    fn several_proxies_agree_on_a_secret_that_the_broker_keeps(io) {
        let (mut vendor, account) = vendor_of_acme();
        let proxies: Vec<_> = (0..RACING_PROXIES).map(|_| local(io, &account).start()).collect();
        for proxy in &proxies {
            proxy.wait_for_ready(200);
        }
        let barrier = Arc::new(Barrier::new(proxies.len()));
        let answers: Vec<_> = thread::scope(|scope| {
            let racers: Vec<_> = proxies
                .iter()
                .map(|proxy| {
                    let barrier = Arc::clone(&barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        derived(proxy, "acme", "p")
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        let export = vendor.admin(&["secrets", "export"]);
        assert_eq!(export.lines().count(), 2, "a head and one secret: {export}");

        // It is there for good: for a broker that was killed, and a proxy that was not there.
        vendor.kill_broker();
        for proxy in &proxies {
            assert_eq!(derive(proxy, "acme", "p").ok(), answers[0]);
            derive(proxy, "acme", "q").refused(500, 401);
        }
        vendor.start_broker();
        let late = local(io, &account).start();
        late.wait_for_ready(200);
        assert_eq!(derive(&late, "acme", "p").ok(), answers[0]);
        derived(&late, "acme", "q");
    }

    fn a_slow_broker_holds_up_nobody_but_the_refresh(io) {
        let (vendor, account) = vendor_of_acme();
        let relay = Relay::start(Box::new(|_| None));
        let account = account.by_way_of(&relay.url());
        let waiting = local(io, &account).start();
        assert_eq!((waiting.probe("/live"), waiting.probe("/ready")), (200, 500));
        waiting.signal(Signal::TERM);
        assert_eq!(waiting.wait_for_end().code, Some(0));

        relay.set(honest(&vendor));
        let proxy = local(io, &account).start();
        proxy.wait_for_ready(200);
        let (heard, hears) = std::sync::mpsc::channel();
        relay.set(Box::new(move |_| {
            // The test may be over.
            let _ = heard.send(());
            None
        }));
        proxy.signal(Signal::HUP);
        hears.recv().unwrap();
        wraps(&proxy, "acme");
        assert_eq!(proxy.probe("/ready"), 200);
    }
}

fn is_secret(name: &str) -> bool {
    [
        "secretAccessKey",
        "private_key",
        "clientSecret",
        "clientCertificate",
        "password",
    ]
    .contains(&name)
}

#[test]
fn everything_that_is_missing_or_malformed_is_told_at_once() {
    let ended = Setup::without_config(Io::Epoll)
        .env("SERVICE_ACCOUNT_ID", "too short")
        .env("SERVICE_SIGNING_PRIVATE_KEY", "SECRET-of-the-wrong-form")
        .env("TSP_BROKER_CA", "/does/not/exist")
        .env("TSP_CONFIG_MAX_AGE_S", "900")
        .run_to_end();
    assert_eq!(ended.code, Some(EXIT_BAD_CONFIGURATION), "{}", ended.output);
    let missing = [
        "CONFIG_BROKER_URL: is missing",
        "SERVICE_CONFIG_ID: is missing",
        "SERVICE_SEGMENT_ID: is missing",
        "SERVICE_ENCRYPTION_PRIVATE_KEY: is missing",
    ];
    let malformed = [
        "SERVICE_ACCOUNT_ID: must be",
        "SERVICE_SIGNING_PRIVATE_KEY: must be",
        "TSP_BROKER_CA: ",
        "TSP_CONFIG_MAX_AGE_S: is less than twice",
    ];
    for problem in missing.iter().chain(&malformed) {
        assert!(
            ended.output.contains(problem),
            "{problem}\n{}",
            ended.output
        );
    }
    assert!(!ended.output.contains("SECRET-of"), "{}", ended.output);
}

#[test]
fn plain_http_leads_to_this_machine_alone() {
    let (vendor, account) = vendor_of_acme();
    let far = account.by_way_of("http://broker.example.com");
    let ended = local(Io::Epoll, &far).run_to_end();
    assert_eq!(ended.code, Some(EXIT_BAD_CONFIGURATION), "{}", ended.output);
    assert!(
        ended.output.contains("CONFIG_BROKER_URL: is plain HTTP"),
        "{}",
        ended.output
    );
    // `tsp check` asks the broker once.
    let check = |account: &Account| local(Io::Epoll, account).argument("check").run_to_end();
    let good = check(&account);
    assert_eq!(good.code, Some(0), "{}", good.output);
    assert!(good.output.contains("tenants        1"), "{}", good.output);
    drop(vendor);
    let bad = check(&account);
    assert_eq!(bad.code, Some(EXIT_BAD_CONFIGURATION), "{}", bad.output);
    assert!(bad.output.contains("cannot be reached"), "{}", bad.output);
}

#[test]
fn a_broker_must_have_a_certificate_that_is_trusted() {
    let (_vendor, account) = vendor_of_acme();
    // Something else that speaks TLS.
    let simulator = Simulator::start();
    let account = account.by_way_of(&simulator.url());
    let stranger = local(Io::Epoll, &account).start();
    failure(&stranger, 0, "certificate");
    let ca = simulator.ca_file();
    let trusted = local(Io::Epoll, &account)
        .env("TSP_BROKER_CA", ca.to_str().unwrap())
        .start();
    failure(&trusted, 0, "CONFIG_BROKER_URL may lead to something else");
}

#[test]
fn an_answer_that_is_none_is_refused_and_the_last_good_one_stays() {
    let (vendor, account) = vendor_of_acme();
    let relay = Relay::start(honest(&vendor));
    let proxy = local(Io::Epoll, &account.by_way_of(&relay.url())).start();
    proxy.wait_for_ready(200);
    let json = [("content-type", "application/json")];
    let gzip = [("content-encoding", "gzip")];
    let brotli = [("content-encoding", "br")];
    let cases: [(Vec<u8>, &str); 8] = [
        (b"no HTTP at all\r\n\r\n".to_vec(), "cannot be reached"),
        (answer(200, &json, b"<html>"), "the answer is no snapshot"),
        (
            answer(200, &json, br#"{"format":1}"#),
            "the answer is no snapshot",
        ),
        (
            answer(200, &json, br#"{"format":2}"#),
            "format 2 is not known",
        ),
        (answer(200, &gzip, b"not gzip"), "cannot be decompressed"),
        (answer(200, &brotli, b"x"), "a coding that nobody asked for"),
        (
            answer(503, &json, br#"{"error":"unavailable","message":"later"}"#),
            "the broker is at fault",
        ),
        (
            answer(404, &[], b""),
            "CONFIG_BROKER_URL may lead to something else",
        ),
    ];
    for (bytes, sentence) in cases {
        relay.set(Box::new(move |_| Some(bytes.clone())));
        let from = proxy.log.len();
        proxy.signal(Signal::HUP);
        failure(&proxy, from, sentence);
        wraps(&proxy, "acme");
    }
    assert_eq!(proxy.probe("/ready"), 200);
    let from = proxy.log.len();
    relay.set(honest(&vendor));
    proxy.signal(Signal::HUP);
    proxy.log.wait_json(from, "good look", |line| {
        line["message"] == "the configuration is good and has not changed"
    });
}

#[test]
fn what_cannot_be_used_is_left_out_alone() {
    let vendor = Vendor::new();
    vendor.tenant("acme", &local_content(1), &[]);
    let tampered = vendor.tenant("globex", &local_content(2), &[]);
    let account = vendor.account();
    let number: u64 = tampered.parse().unwrap();
    let relay = Relay::start(changing(&vendor, move |snapshot| {
        let configs = snapshot["kmsConfigs"].as_array_mut().unwrap();
        let config = configs
            .iter_mut()
            .find(|config| config["id"] == number)
            .unwrap();
        let envelope = text(config, "envelope").to_owned();
        // The last character before padding: some bit of the tag.
        let (head, tail) = envelope.split_at(envelope.len() - 6);
        let other = if tail.starts_with('A') { 'B' } else { 'A' };
        config["envelope"] = format!("{head}{other}{}", &tail[1..]).into();
    }));
    let proxy = local(Io::Epoll, &account.by_way_of(&relay.url())).start();
    proxy.wait_for_ready(200);
    wraps(&proxy, "acme");
    proxy
        .call("document/wrap", &metadata("globex"))
        .refused(422, 207);
    let named = format!("KMS config {tampered}: its envelope does not open");
    proxy
        .log
        .wait_json(0, &named, |line| line.to_string().contains(&named));
    assert_eq!(proxy.metrics().count("tsp_config_left_out", &[]), 1.0);

    // A LOCAL key is nothing that a broker may send, unless the operator says so.
    let strict = account.setup(Io::Epoll).start();
    strict.wait_for_ready(200);
    strict
        .call("document/wrap", &metadata("acme"))
        .refused(422, 207);
    assert_eq!(strict.metrics().count("tsp_config_left_out", &[]), 2.0);
}

#[test]
fn an_assignment_that_a_broker_makes_up_is_left_out() {
    let vendor = Vendor::new();
    let kms = vendor.tenant("acme", &local_content(1), &[]);
    vendor.admin(&["tenant", "create", "globex"]);
    let account = vendor.account();
    let relay = Relay::start(changing(&vendor, |snapshot| {
        let tenants = snapshot["tenants"].as_array_mut().unwrap();
        let of = |id: &str| {
            tenants
                .iter()
                .position(|tenant| tenant["id"] == id)
                .unwrap()
        };
        let (acme, globex) = (of("acme"), of("globex"));
        tenants[globex]["assignments"] = tenants[acme]["assignments"].clone();
    }));
    let proxy = local(Io::Epoll, &account.by_way_of(&relay.url())).start();
    proxy.wait_for_ready(200);
    wraps(&proxy, "acme");
    proxy
        .call("document/wrap", &metadata("globex"))
        .refused(422, 201);
    let named = format!("assignment of KMS config {kms}: nobody signed it");
    proxy
        .log
        .wait_json(0, &named, |line| line.to_string().contains(&named));
}

#[test]
fn tenants_cannot_send_the_proxy_into_the_operators_network() {
    let simulator = Simulator::start();
    let vendor = Vendor::new();
    vendor.tenants_of(&simulator);
    let account = vendor.account();
    let proxy = account
        .setup(Io::Epoll)
        .env("TSP_KMS_ALLOW_ADDRESSES", "")
        .start();
    proxy.wait_for_ready(200);
    for client in &simulator.clients {
        let why = proxy
            .call("document/wrap", &metadata(&client.tenant))
            .refused(422, 207);
        assert!(why.contains("loopback"), "{why}");
    }
    for provider in [
        Provider::Aws,
        Provider::Gcp,
        Provider::Azure,
        Provider::Thales,
    ] {
        assert_eq!(simulator.requests(provider, "wrap"), 0);
    }
}

#[test]
fn a_broker_that_was_put_back_from_a_backup_is_not_believed() {
    let (mut vendor, account) = vendor_of_acme();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let setup = || local(Io::Epoll, &account).env("TSP_SNAPSHOT_CACHE", copy.to_str().unwrap());
    vendor.kill_broker();
    let backup = vendor.files().map(|path| (fs::read(&path).ok(), path));
    vendor.start_broker();
    vendor.tenant("globex", &local_content(2), &[]);
    let proxy = setup().start();
    proxy.wait_for_ready(200);
    wraps(&proxy, "globex");

    vendor.kill_broker();
    for (bytes, path) in backup {
        match bytes {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => drop(fs::remove_file(path)),
        }
    }
    vendor.start_broker();
    let from = proxy.log.len();
    proxy.signal(Signal::HUP);
    failure(&proxy, from, "older than the last one");
    wraps(&proxy, "globex");
    assert_eq!(proxy.probe("/ready"), 200);
    drop(proxy);

    // The copy on disk remembers for the next process.
    let next = setup().start();
    next.wait_for_ready(200);
    wraps(&next, "globex");
    next.log.wait_json(0, "warning", |line| {
        line.to_string().contains("older than the last one")
    });
    // A process without one has nothing to compare with.
    let without = local(Io::Epoll, &account).start();
    without.wait_for_ready(200);
    without
        .call("document/wrap", &metadata("globex"))
        .refused(422, 201);
}

#[test]
fn the_copy_on_disk_serves_while_the_broker_is_away() {
    let (mut vendor, account) = vendor_of_acme();
    let other = vendor.account();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let with_copy = |account: &Account| {
        local(Io::Epoll, account).env("TSP_SNAPSHOT_CACHE", copy.to_str().unwrap())
    };
    let first = with_copy(&account).start();
    first.wait_for_ready(200);
    let derived = derive(&first, "acme", "p").ok();
    // Fetched after the secret was stored.
    first.log.wait_json(0, "published secrets", |line| {
        line["message"] == "tenant configurations published" && line["secrets"] == 1
    });
    drop(first);
    vendor.kill_broker();

    let second = with_copy(&account).start();
    second.wait_for_ready(200);
    wraps(&second, "acme");
    assert_eq!(derive(&second, "acme", "p").ok(), derived);
    second.log.wait_json(0, "warning", |line| {
        line.to_string().contains("starting with the copy on disk")
    });
    drop(second);

    // It is too old when its own date says so.
    let old = with_copy(&account)
        .env("TSP_CONFIG_REFRESH_S", "1")
        .env("TSP_CONFIG_MAX_AGE_S", "2");
    thread::sleep(Duration::from_secs(3));
    let old = old.start();
    old.log.wait_json(0, "warning", |line| {
        line.to_string().contains("too old to serve with")
    });
    failure(&old, 0, "cannot be reached");
    assert_eq!(old.probe("/ready"), 500);
    drop(old);

    let good = fs::read(&copy).unwrap();
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    let cases = [
        (&account, flipped.clone(), "it was changed"),
        (&account, good[..middle].to_vec(), "it was changed"),
        (&account, b"hello".to_vec(), "it is no copy of a snapshot"),
        (&other, good.clone(), "another service account's"),
    ];
    for (account, bytes, sentence) in cases {
        fs::write(&copy, bytes).unwrap();
        let proxy = with_copy(account).start();
        proxy
            .log
            .wait_json(0, sentence, |line| line.to_string().contains(sentence));
        failure(&proxy, 0, "cannot be reached");
        assert_eq!((proxy.probe("/live"), proxy.probe("/ready")), (200, 500));
    }
    // And goes on to wait for the broker, which mends the file.
    fs::write(&copy, flipped).unwrap();
    let proxy = with_copy(&account).start();
    failure(&proxy, 0, "cannot be reached");
    vendor.start_broker();
    proxy.wait_for_ready(200);
    drop(proxy);
    vendor.kill_broker();
    let last = with_copy(&account).start();
    last.wait_for_ready(200);
}

#[test]
fn an_unchanged_state_is_confirmed_and_comes_from_the_disk() {
    let (vendor, account) = vendor_of_acme();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let (told, tells) = std::sync::mpsc::channel();
    let mut pass = honest(&vendor);
    let relay = Relay::start(Box::new(move |request| {
        let answer = pass(request);
        let status = answer.as_ref().map(|bytes| bytes[9..12].to_vec());
        let _ = told.send(status.unwrap_or_default());
        answer
    }));
    let account = account.by_way_of(&relay.url());
    for expected in ["200", "304"] {
        let proxy = local(Io::Epoll, &account)
            .env("TSP_SNAPSHOT_CACHE", copy.to_str().unwrap())
            .start();
        proxy.wait_for_ready(200);
        wraps(&proxy, "acme");
        assert_eq!(tells.recv().unwrap(), expected.as_bytes());
        proxy.signal(Signal::HUP);
        assert_eq!(tells.recv().unwrap(), b"304");
    }
}

/// A broker whose clock is ahead, played by somebody who judges tokens by that clock.
#[test]
fn a_clock_that_is_five_minutes_off_is_mended_and_told() {
    const AHEAD_S: u64 = 300;
    let (vendor, account) = vendor_of_acme();
    let service = account.read();
    let broker = vendor.address();
    let relay = Relay::start(Box::new(move |request| {
        let real = std::time::SystemTime::now();
        let theirs = real + Duration::from_secs(AHEAD_S);
        let seconds = |time: std::time::SystemTime| {
            let since = time.duration_since(std::time::SystemTime::UNIX_EPOCH);
            i64::try_from(since.unwrap().as_secs()).unwrap()
        };
        let date = httpdate::fmt_http_date(theirs);
        let bearer = request.header("authorization").unwrap();
        let bearer = bearer.strip_prefix("Bearer ").unwrap();
        let asked = token::Request {
            method: &request.method,
            path: &request.path,
            body: &request.body,
        };
        let key = service.signing_key.verifying();
        if token::verify(bearer, service.id, &key, &asked, seconds(theirs)).is_err() {
            return Some(answer(401, &[("date", &date)], b"{}"));
        }
        // What it takes, the real broker has to take too.
        let mut id = [0; token::ID_BYTES];
        getrandom::fill(&mut id).unwrap();
        let token = token::sign(service.id, &service.signing_key, &asked, seconds(real), id);
        let bearer = format!("Bearer {}", token.unwrap());
        let answer = request.forward(broker, &[("authorization", &bearer)]);
        Some(crate::support::broker::passed_on(&answer))
    }));
    let proxy = local(Io::Epoll, &account.by_way_of(&relay.url())).start();
    proxy.wait_for_ready(200);
    wraps(&proxy, "acme");
    let warned = |line: &serde_json::Value| {
        line["level"] == "WARN"
            && line["offset_s"]
                .as_i64()
                .is_some_and(|offset| (299..=301).contains(&offset))
    };
    proxy.log.wait_json(0, "warning of the clock", warned);
    derive(&proxy, "acme", "p").ok();

    // A broker that refuses whatever the time is: then both are named.
    relay.set(Box::new(|_| {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        Some(answer(401, &[("date", date)], b"{}"))
    }));
    let from = proxy.log.len();
    proxy.signal(Signal::HUP);
    failure(&proxy, from, "its clock says 1994-11-06T08:49:37Z");
    assert_eq!(SNAPSHOT_PATH, "/account/1/snapshot");
}
