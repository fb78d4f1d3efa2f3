//! Tenant secrets: derived keys as clients get them, and the file that several proxies share. They race for it, are killed
//! while they write it, and an operator rotates what is in it.
//!
//! Two of the tests do a few rounds in CI. `TSP_TEST_SECRET_RACES=1000` and `TSP_TEST_SECRET_KILLS=200` make it as many.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, Barrier, Mutex},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tsp_kms::LocalKms;
use tsp_wire::{Dek, KmsConfigId, Secret, edek};

use crate::support::{
    base64,
    config::{self, As, local_kms, tenant},
    events::EventPuller,
    http::{Answer, Connection, Request},
    metadata, on_both,
    proxy::{API_KEY, Io, Proxy, Setup},
    request, text, to_base64,
};

const DERIVE: &str = "key/derive-with-secret-path";

/// Races in CI.
const RACES: usize = 3;

/// Proxies and clients in a race.
const RACING_PROXIES: usize = 4;
const RACING_CLIENTS: usize = 200;

/// Proxies killed in CI.
const KILLS: usize = 5;

/// Clients that have secrets created while a proxy is killed.
const KILLED_CLIENTS: usize = 8;

/// Longest time that a proxy lives before it is killed.
const LIFE_MS_MAX: u64 = 150;

/// How often an answer may be asked for again until a change has come through; a proxy looks every second.
const TRIES_MAX: usize = 3_000;

fn rounds(variable: &str, default: usize) -> usize {
    let set = std::env::var(variable).ok();
    set.map_or(default, |text| text.parse().expect("a number of rounds"))
}

fn derivation(tenant: &str, paths: Value) -> Value {
    let members = json!({
        "paths": paths, "derivationType": "sha512", "secretType": "deterministic",
    });
    request(tenant, members)
}

#[track_caller]
fn derive(proxy: &Proxy, tenant: &str, paths: Value) -> Answer {
    proxy.call(DERIVE, &derivation(tenant, paths))
}

/// The keys of one pair: number, current, key.
#[track_caller]
fn keys(answer: &Value, secret_path: &str, derivation_path: &str) -> Vec<(u64, bool, String)> {
    let list = &answer["derivedKeys"][secret_path][derivation_path];
    let list = list.as_array().unwrap_or_else(|| panic!("{answer}"));
    let key = |one: &Value| {
        let number = one["tenantSecretId"].as_u64().expect("a number");
        let current = one["current"].as_bool().expect("a flag");
        (number, current, text(one, "derivedKey").to_owned())
    };
    list.iter().map(key).collect()
}

/// The one key of a pair that has one.
#[track_caller]
fn one_key(answer: &Value, secret_path: &str, derivation_path: &str) -> (u64, String) {
    let keys = keys(answer, secret_path, derivation_path);
    let [(number, true, key)] = keys.as_slice() else {
        panic!("not one current key: {answer}")
    };
    (*number, key.clone())
}

fn secrets_path(config: &Path) -> PathBuf {
    config.with_extension("secrets.jsonl")
}

/// A proxy on another one's files.
fn beside(io: Io, config: &Path) -> Setup {
    let path = config.to_str().expect("temporary paths are UTF-8");
    Setup::serve(io, "").env("TSP_CONFIG_FILE", path)
}

/// `tsp secrets` with `arguments`, on `config`.
#[track_caller]
fn secrets_command(config: &Path, arguments: &[&str]) -> String {
    let setup = ["secrets"]
        .iter()
        .chain(arguments)
        .fold(Setup::bare(), |setup, argument| setup.argument(argument));
    let path = config.to_str().expect("temporary paths are UTF-8");
    let ended = setup.argument("--config").argument(path).run_to_end();
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    ended.output
}

/// What `tsp secrets list` says.
#[track_caller]
fn list(config: &Path) -> Vec<Value> {
    let json = secrets_command(config, &["list", "--json"]);
    let list: Value = serde_json::from_str(&json).unwrap_or_else(|why| panic!("{why}: {json}"));
    list.as_array().expect("a list").clone()
}

/// A file of secrets made by hand, as docs/recovery.md describes it.
pub(crate) fn file_of(lines: &[Value]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let head = json!({
        "format": "tsp-tenant-secrets", "version": 1, "secrets": lines.lines().count(),
        "sha256": hex(&Sha256::digest(&lines)),
    });
    format!("{head}\n{lines}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line of it: a secret that is known here, wrapped by the local KMS of `config`.
pub(crate) fn line(
    number: u64,
    tenant: &str,
    path: &str,
    status: &str,
    secret: &str,
    config: u8,
) -> Value {
    let secret = Dek::from_slice(&base64(secret)).expect("32 bytes");
    let kms = LocalKms::new(&Secret::new([config; 32]));
    let blob = kms.wrap(tenant, &secret, [7; 12]);
    let id = KmsConfigId::new(config.into()).expect("from 1");
    json!({
        "id": number, "tenant": tenant, "type": "deterministic", "path": path, "status": status,
        "created": "2026-01-01T00:00:00Z", "changed": "2026-01-01T00:00:00Z",
        "edek": to_base64(&edek::encode_unleased(id, &blob)),
    })
}

/// Starts a proxy with these secrets, on the two local tenants.
fn start_with(io: Io, config: &str, lines: &[Value]) -> Proxy {
    let setup = Setup::serve(io, config);
    fs::write(secrets_path(&setup.config_path()), file_of(lines)).expect("it can be written");
    setup.start()
}

/// Asks until the answer is as it should be: until a change of the file has come through.
#[track_caller]
fn derive_until(proxy: &Proxy, paths: &Value, good: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..TRIES_MAX {
        let answer = derive(proxy, "acme", paths.clone()).ok();
        if good(&answer) {
            return answer;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("the change does not come through")
}

/// Four proxies on one file, and two hundred clients that all want a path's first secret at one time.
fn race(io: Io) {
    let rounds = rounds("TSP_TEST_SECRET_RACES", RACES);
    let first = Setup::serve(io, &config::two_local_tenants()).start();
    let path = first.config_path();
    let mut proxies = vec![first];
    proxies.extend((1..RACING_PROXIES).map(|_| beside(io, &path).start()));
    let barrier = Arc::new(Barrier::new(RACING_CLIENTS));
    let seen = Arc::new(Mutex::new(vec![BTreeMap::<String, usize>::new(); rounds]));
    let clients: Vec<_> = (0..RACING_CLIENTS)
        .map(|client| {
            let address = proxies[client % RACING_PROXIES].http;
            let (barrier, seen) = (Arc::clone(&barrier), Arc::clone(&seen));
            thread::spawn(move || {
                let mut connection = Connection::open(address);
                for round in 0..rounds {
                    let mut paths = json!({});
                    paths[format!("race {round}")] = json!(["x"]);
                    let request = Request::api(DERIVE, API_KEY, &derivation("acme", paths));
                    barrier.wait();
                    let answer = connection.ask(&request).ok();
                    one_key(&answer, &format!("race {round}"), "x");
                    *seen.lock().unwrap()[round]
                        .entry(answer.to_string())
                        .or_default() += 1;
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("every client gets its answers");
    }
    for (round, answers) in seen.lock().unwrap().iter().enumerate() {
        let counts: Vec<_> = answers.values().copied().collect();
        assert_eq!(counts, [RACING_CLIENTS], "round {round}: {answers:?}");
    }
    let mut paths: Vec<_> = list(&path)
        .iter()
        .map(|secret| {
            assert_eq!(text(secret, "status"), "current");
            text(secret, "path").to_owned()
        })
        .collect();
    paths.sort();
    let found = paths.len();
    paths.dedup();
    assert_eq!((found, paths.len()), (rounds, rounds));
    eprintln!(
        "{rounds} races of {RACING_CLIENTS} clients over {RACING_PROXIES} proxies: one secret each"
    );
}

/// Proxies that are killed at any moment while they store secrets.
fn kills(io: Io) {
    let rounds = rounds("TSP_TEST_SECRET_KILLS", KILLS);
    let folder = TempDir::new().expect("a temporary folder can be made");
    let config = folder.path().join("tenants.toml");
    fs::write(&config, config::two_local_tenants()).expect("it can be written");
    let mut torn = 0;
    // Path, and the number and key that a client was given for it.
    let told = Arc::new(Mutex::new(BTreeMap::<String, (u64, String)>::new()));
    for round in 0..rounds {
        let proxy = beside(io, &config).start();
        let clients: Vec<_> = (0..KILLED_CLIENTS)
            .map(|client| {
                let (address, told) = (proxy.http, Arc::clone(&told));
                thread::spawn(move || {
                    let Ok(mut connection) = Connection::try_open(address) else {
                        return;
                    };
                    for number in 0.. {
                        let path = format!("{round}/{client}/{number}");
                        let mut paths = json!({});
                        paths[&path] = json!(["x"]);
                        let request = Request::api(DERIVE, API_KEY, &derivation("acme", paths));
                        let answer = connection.send(&request.bytes());
                        let Ok(answer) = answer.and_then(|()| connection.try_answer()) else {
                            return;
                        };
                        let key = one_key(&answer.ok(), &path, "x");
                        told.lock().unwrap().insert(path, key);
                    }
                })
            })
            .collect();
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("random bytes");
        thread::sleep(Duration::from_millis(
            u64::from_le_bytes(random) % LIFE_MS_MAX,
        ));
        proxy.signal(Signal::KILL);
        for client in clients {
            client.join().expect("a client sees the end");
        }
        drop(proxy);
        torn += usize::from(config.with_extension("secrets.jsonl.new").exists());
        let ids: BTreeMap<_, _> = list(&config)
            .iter()
            .map(|secret| (text(secret, "path").to_owned(), secret["id"].as_u64()))
            .collect();
        for (path, (id, _)) in told.lock().unwrap().iter() {
            assert_eq!(
                ids.get(path),
                Some(&Some(*id)),
                "round {round}: {path} is lost"
            );
        }
    }
    let told = told.lock().unwrap();
    let proxy = beside(io, &config).start();
    for (path, key) in told.iter() {
        let mut paths = json!({});
        paths[path] = json!(["x"]);
        let answer = derive(&proxy, "acme", paths).ok();
        assert_eq!(&one_key(&answer, path, "x"), key);
    }
    eprintln!(
        "{rounds} proxies killed, {torn} in the middle of a write: {} secrets told of, all there",
        told.len()
    );
}

on_both! {
    /// The secrets and keys that the original product published, and those of the API's description.
    fn keys_are_those_that_everybody_derives(io) {
        let published: Value = serde_json::from_str(include_str!("../../wire/tests/data/published-vectors.json")).unwrap();
        let published = &published["derivation"];
        let current = "haHIvS5nKAQYxxOMpXIrEc9BDWt6xmJOKbcISnTcKrY=";
        let in_rotation = "0qXiBfeE0KNf33uQreJXn9SBBiAroYCiGfsdS0BwNR4=";
        let tenants = config::file(&[
            local_kms(1, 1),
            tenant("acme", &[(1, As::Primary)]),
            tenant("tenant-gcp", &[(1, As::Active)]),
        ]);
        let proxy = start_with(io, &tenants, &[
            line(8044, "acme", "customers", "in-rotation", in_rotation, 1),
            line(7, "acme", "customers", "archived", in_rotation, 1),
            line(9001, "acme", "customers", "current", current, 1),
            line(5111, "tenant-gcp", text(published, "secretPath"), "current", text(published, "secret_base64"), 1),
        ]);
        let answer = derive(&proxy, "acme", json!({"customers": ["customers.ssn", ""]}));
        assert_eq!(answer.ok(), json!({"hasPrimaryConfig": true, "derivedKeys": {"customers": {
            "customers.ssn": [
                {"derivedKey": "wvTHXWjFPUYN0bbjmhMnoIy/ezUhV9Sr+ntCSMlrbV9PNXYpFqcAly/h21Cnh55hnRd6dW4aFMVX0Aq2DNHRiA==", "tenantSecretId": 9001, "current": true},
                {"derivedKey": "QuRWvZtIjfd6lTF1K8MBVCaZNJk7dgrtYIFRf/f3jGk4sKCYU4mpqzzW906i9FEoxuxxnEOxb6mbvJd5O+PaXA==", "tenantSecretId": 8044, "current": false},
            ],
            "": [
                {"derivedKey": "wkDKVNuv4BU6SroIIKwaP4q5hG2pSTlTixvnDqj7ZeW1rGRhy5xrW6aqFhzJfz57Z+S6tYRD/jcyxZJsBIkDIw==", "tenantSecretId": 9001, "current": true},
                answer.ok()["derivedKeys"]["customers"][""][1],
            ],
        }}}));
        let (secret_path, path) = (text(published, "secretPath"), text(published, "derivationPath"));
        let mut paths = json!({});
        paths[secret_path] = json!([path]);
        let answer = derive(&proxy, "tenant-gcp", paths).ok();
        assert_eq!(answer["hasPrimaryConfig"], false);
        let expected = (5111, text(published, "derivedKey_sha512_base64").to_owned());
        assert_eq!(one_key(&answer, secret_path, path), expected);
    }

    fn a_secret_is_created_once_and_outlives_the_proxy(io) {
        let proxy = Setup::serve(io, &config::two_local_tenants()).start();
        let config = proxy.config_path();
        let paths = || json!({"p": ["x", "y", "x"], "": [""]});
        let first = derive(&proxy, "acme", paths()).ok();
        assert_eq!(base64(&one_key(&first, "p", "x").1).len(), 64);
        assert_ne!(one_key(&first, "p", "x"), one_key(&first, "p", "y"));
        assert_ne!(one_key(&first, "p", "x").0, one_key(&first, "", "").0);
        for _ in 0..10 {
            assert_eq!(derive(&proxy, "acme", paths()).ok(), first);
        }
        let other = derive(&proxy, "globex", paths()).ok();
        assert_ne!(one_key(&other, "p", "x"), one_key(&first, "p", "x"));
        let second = beside(io, &config).start();
        assert_eq!(derive(&second, "acme", paths()).ok(), first);
        proxy.signal(Signal::TERM);
        proxy.signal(Signal::TERM);
        let third = beside(io, &config).start();
        assert_eq!(derive(&third, "acme", paths()).ok(), first);
        assert_eq!(list(&config).len(), 4);
    }

    fn what_a_request_may_not_say(io) {
        let proxy = Setup::serve(io, &config::two_local_tenants()).start();
        let good = derivation("acme", json!({"p": ["x"]}));
        for (member, value) in [
            ("derivationType", json!("argon2")),
            ("secretType", json!("pseudonymization")),
            ("paths", json!([])),
        ] {
            let mut bad = good.clone();
            bad[member] = value;
            let message = proxy.call(DERIVE, &bad).refused(400, 102);
            assert!(message.contains(member), "{message}");
        }
        derive(&proxy, "nobody", json!({"p": ["x"]})).refused(422, 201);
        let mut sha256 = good;
        sha256["derivationType"] = json!("sha256");
        let answer = proxy.call(DERIVE, &sha256).ok();
        assert_eq!(base64(&one_key(&answer, "p", "x").1).len(), 32);
        assert!(answer["derivedKeys"].as_object().unwrap().len() == 1);
    }

    fn a_rotation_by_an_operator_while_proxies_serve(io) {
        let proxy = Setup::serve(io, &config::two_local_tenants()).start();
        let config = proxy.config_path();
        let second = beside(io, &config).start();
        let paths = json!({"p": ["x"]});
        let old = one_key(&derive(&proxy, "acme", paths.clone()).ok(), "p", "x");
        secrets_command(&config, &["rotate-begin", "acme", "p"]);
        let both = derive_until(&proxy, &paths, |answer| keys(answer, "p", "x").len() == 2);
        let both = keys(&both, "p", "x");
        assert_eq!(both[1], (old.0, false, old.1));
        assert!(both[0].1 && both[0].0 != old.0);
        let seen = derive_until(&second, &paths, |answer| keys(answer, "p", "x") == both);
        assert_eq!(keys(&seen, "p", "x"), both);
        secrets_command(&config, &["rotate-commit", "acme", "p"]);
        let new = vec![both[0].clone()];
        for proxy in [&proxy, &second] {
            derive_until(proxy, &paths, |answer| keys(answer, "p", "x") == new);
        }
        let mut statuses: Vec<_> = list(&config).iter().map(|one| text(one, "status").to_owned()).collect();
        statuses.sort();
        assert_eq!(statuses, ["archived", "current"]);
    }

    /// A lock that nobody gives back costs creations, and nothing else.
    fn a_stopped_writer_delays_nobody_but_who_needs_a_new_secret(io) {
        let proxy = Setup::serve(io, &config::two_local_tenants()).start();
        let known = derive(&proxy, "acme", json!({"known": ["x"]})).ok();
        let mut lock = secrets_path(&proxy.config_path()).into_os_string();
        lock.push(".lock");
        let held = File::open(lock).expect("a proxy has stored a secret");
        held.lock().expect("nobody has it");
        thread::scope(|scope| {
            let waits = scope.spawn(|| derive(&proxy, "acme", json!({"new": ["x"]})));
            for _ in 0..50 {
                proxy.call("document/wrap", &metadata("acme")).ok();
                assert_eq!(derive(&proxy, "acme", json!({"known": ["x"]})).ok(), known);
            }
            let message = waits.join().expect("an answer").refused(500, 401);
            assert!(message.contains("not stored in time"), "{message}");
        });
        drop(held);
        derive_until(&proxy, &json!({"new": ["x"]}), |answer| !keys(answer, "new", "x").is_empty());
    }

    fn where_nothing_can_be_stored_a_creation_is_401_and_the_rest_goes_on(io) {
        let config = format!("secrets_file = \"not/there\"\n{}", config::two_local_tenants());
        let proxy = Setup::serve(io, &config).start();
        let message = derive(&proxy, "acme", json!({"p": ["x"]})).refused(500, 401);
        assert!(message.contains("could not store it"), "{message}");
        proxy.log.wait("line that says why", |line| {
            (line.contains("tenant secrets cannot be stored") && line.contains("not/there")).then_some(())
        });
        proxy.call("document/wrap", &metadata("acme")).ok();
        let metrics = proxy.metrics();
        assert_eq!(metrics.count("tsp_tenant_secret_creations_total", &[("outcome", "failed")]), 1.0);
        assert_eq!(metrics.count("tsp_request_duration_seconds_count", &[("endpoint", DERIVE), ("tsp_status_code", "401")]), 1.0);
    }

    fn a_damaged_file_is_refused_at_start_and_later_the_last_good_one_stays(io) {
        let setup = Setup::serve(io, &config::two_local_tenants());
        fs::write(secrets_path(&setup.config_path()), "half a").unwrap();
        let ended = setup.run_to_end();
        assert_eq!(ended.code, Some(64), "{}", ended.output);
        assert!(ended.output.contains("tenants.secrets.jsonl: is damaged"), "{}", ended.output);

        let proxy = Setup::serve(io, &config::two_local_tenants()).start();
        let known = derive(&proxy, "acme", json!({"known": ["x"]})).ok();
        let path = secrets_path(&proxy.config_path());
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        proxy.log.wait("line that says what is damaged", |line| {
            (line.contains("cannot be used") && line.contains("is damaged")).then_some(())
        });
        assert_eq!(derive(&proxy, "acme", json!({"known": ["x"]})).ok(), known);
        derive(&proxy, "acme", json!({"new": ["x"]})).refused(500, 401);
        fs::write(&path, &good).unwrap();
        derive_until(&proxy, &json!({"known": ["x"]}), |answer| *answer == known);
        assert_eq!(derive(&proxy, "acme", json!({"new": ["x"]})).status, 200);
    }

    fn a_derivation_is_an_event_with_its_count_and_a_number_in_the_metrics(io) {
        let proxy = Setup::serve(io, &config::two_local_tenants()).start();
        let mut events = EventPuller::connect(proxy.event.expect("events are on"));
        derive(&proxy, "acme", json!({"p": ["x", "y", "x"]})).ok();
        let event = events.next();
        assert_eq!(event["tenantId"], "acme");
        let fields = &event["iclFields"];
        assert_eq!((text(fields, "event"), fields["count"].as_u64()), ("DATA_DERIVE", Some(2)));
        assert_eq!(text(fields, "requestingId"), "test");
        let metrics = proxy.metrics();
        let operations = |name| metrics.count("tsp_key_operations_total", &[("operation", name)]);
        assert_eq!(operations("derive"), 2.0);
        assert_eq!(operations("tenant_secret_wrap"), 1.0);
        assert_eq!(metrics.count("tsp_tenant_secret_creations_total", &[("outcome", "created")]), 1.0);
        let served = [("endpoint", DERIVE), ("http_code", "200"), ("kms_type", "LOCAL")];
        assert_eq!(metrics.count("tsp_request_duration_seconds_count", &served), 1.0);
    }

    fn dev_keeps_secrets_in_memory_or_beside_its_state(io) {
        let paths = || json!({"p": ["x"]});
        let proxy = Setup::dev(io).start();
        let first = derive(&proxy, "tenant-a", paths()).ok();
        assert_eq!(derive(&proxy, "tenant-a", paths()).ok(), first);
        let none = derive(&proxy, "tenant-no-primary", paths()).ok();
        assert_eq!(none, json!({"hasPrimaryConfig": false, "derivedKeys": {"p": {"x": []}}}));

        let folder = TempDir::new().unwrap();
        let state = folder.path().join("state.toml");
        let with_state = || {
            let path = state.to_str().expect("temporary paths are UTF-8");
            Setup::dev(io).argument("--state").argument(path).start()
        };
        let first = derive(&with_state(), "tenant-a", paths()).ok();
        assert_eq!(derive(&with_state(), "tenant-a", paths()).ok(), first);
    }

    fn clients_that_race_over_four_proxies_get_one_secret(io) {
        race(io);
    }

    fn a_kill_at_any_moment_loses_no_secret_that_was_told_of(io) {
        kills(io);
    }
}
