//! The process as its operator sees it: start, refusal to start, reload, health, drain.

use std::{net::TcpListener, thread};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    config::{self, As, AwsKms, local_kms, tenant, two_local_tenants},
    fake_kms::FakeKms,
    http::{self, Connection, Request},
    metadata, on_both,
    peers::source_folder,
    proxy::{API_KEY, Io, Proxy, Setup},
    request, text, to_base64,
};

/// Exit codes, as `tsp --help` and the README tell them.
const EXIT_BAD_CONFIGURATION: i32 = 64;
const EXIT_UNHEALTHY: i32 = 69;
const EXIT_CANNOT_LISTEN: i32 = 71;

/// Waits until every shard has the snapshot that was published after line `from` of the log.
#[track_caller]
pub(crate) fn wait_for_snapshot(proxy: &Proxy, from: usize) {
    proxy
        .log
        .wait_json(from, "line about the new configurations", |line| {
            line["message"] == "tenant configurations published"
        });
}

on_both! {
    fn the_start_is_told_in_one_line_of_json(io) {
        let proxy = Setup::serve(io, &two_local_tenants()).start();
        let line = proxy.log.wait_json(0, "line that tells the addresses", |line| line["http"].is_string()).0;
        assert_eq!((&line["service"], &line["level"]), (&Value::from("proxy"), &Value::from("INFO")));
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        let back_end = proxy.log.wait_json(0, "line that tells the back end", |line| line["io"].is_string()).0;
        assert_eq!(back_end["io"], io.as_str(), "{back_end}");
    }

    fn every_line_of_the_log_is_json(io) {
        let proxy = Setup::serve(io, &two_local_tenants()).env("RUST_LOG", "debug").start();
        proxy.call("document/wrap", &metadata("acme")).ok();
        proxy.call("document/wrap", &metadata("nobody")).refused(422, 201);
        proxy.signal(Signal::TERM);
        let ended = proxy.wait_for_end();
        assert_eq!(ended.code, Some(0), "{}", ended.output);
        for line in ended.output.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"));
            for field in ["service", "level", "timestamp", "message"] {
                assert!(line[field].is_string(), "{line}");
            }
        }
        assert!(!ended.output.contains(API_KEY), "the log holds the API key");
    }

    fn health_follows_the_life_of_the_process(io) {
        let kms = FakeKms::asking();
        let file = config::file(&[AwsKms::unchecked(1, &kms.url()).toml(), tenant("acme", &[(1, As::Primary)])]);
        let proxy = Setup::serve(io, &file).start();
        let statuses = || ["/health", "/live", "/ready"].map(|path| http::get(proxy.health, path).status);
        assert_eq!(statuses(), [200, 200, 200]);
        thread::scope(|scope| {
            let client = scope.spawn(|| proxy.call("document/wrap", &metadata("acme")));
            let held = kms.next_call();
            let from = proxy.log.len();
            proxy.signal(Signal::TERM);
            proxy.log.wait_json(from, "line about the drain", |line| line["message"].as_str().is_some_and(|text| text.contains("drain")));
            assert_eq!(statuses(), [500, 500, 500], "the process drains");
            held.succeed();
            client.join().expect("the client is answered").ok();
        });
        assert_eq!(proxy.wait_for_end().code, Some(0));
    }

    fn a_drain_finishes_what_is_in_flight_and_closes_the_rest(io) {
        let kms = FakeKms::asking();
        let file = config::file(&[AwsKms::unchecked(1, &kms.url()).toml(), tenant("acme", &[(1, As::Primary)])]);
        // One shard: two hear of the drain one after the other, and what the second answers in between says nothing of it.
        let proxy = Setup::serve(io, &file).env("TSP_SHARDS", "1").start();
        let mut idle = proxy.connect();
        idle.ask(&Request::api("document/wrap", API_KEY, &metadata("nobody"))).refused(422, 201);
        let mut busy = proxy.connect();
        busy.send(&Request::api("document/wrap", API_KEY, &metadata("acme")).bytes()).expect("it can be sent");
        let held = kms.next_call();
        proxy.signal(Signal::TERM);
        assert!(idle.is_ended_by_peer(), "an idle connection is closed");
        held.succeed();
        let answer = busy.answer();
        answer.ok();
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(busy.is_ended_by_peer());
        let http = proxy.http;
        let ended = proxy.wait_for_end();
        assert_eq!(ended.code, Some(0), "{}", ended.output);
        assert!(Connection::try_open(http).is_err(), "nobody listens any more");
    }

    fn a_second_signal_ends_a_drain_that_takes_too_long(io) {
        let kms = FakeKms::asking();
        let file = config::file(&[AwsKms::unchecked(1, &kms.url()).toml(), tenant("acme", &[(1, As::Primary)])]);
        let proxy = Setup::serve(io, &file).start();
        let mut busy = proxy.connect();
        busy.send(&Request::api("document/wrap", API_KEY, &metadata("acme")).bytes()).expect("it can be sent");
        let _held = kms.next_call();
        let from = proxy.log.len();
        proxy.signal(Signal::INT);
        proxy.log.wait_json(from, "line about the drain", |line| line["message"].as_str().is_some_and(|text| text.contains("drain")));
        proxy.signal(Signal::INT);
        assert_eq!(proxy.wait_for_end().code, Some(128 + 2));
    }

    fn a_hang_up_signal_reads_the_file_again(io) {
        let proxy = Setup::serve(io, &two_local_tenants()).start();
        proxy.call("document/wrap", &metadata("initech")).refused(422, 201);
        let from = proxy.log.len();
        // In place, within the kernel's coarse clock: what a look at timestamps alone could miss.
        let more = format!("{}{}", two_local_tenants(), tenant("initech", &[(1, As::Primary)]));
        std::fs::write(proxy.config_path(), more).expect("the file can be written");
        proxy.signal(Signal::HUP);
        wait_for_snapshot(&proxy, from);
        proxy.call("document/wrap", &metadata("initech")).ok();
    }

    fn a_broken_file_leaves_the_last_good_state_in_force(io) {
        let proxy = Setup::serve(io, &two_local_tenants()).start();
        let from = proxy.log.len();
        proxy.replace_config("version = 1\n[[kms]]\nid = \"no number\"\n");
        let (line, next) = proxy.log.wait_json(from, "line about the broken file", |line| {
            ["WARN", "ERROR"].iter().any(|level| line["level"] == *level) && line.to_string().contains("tenants.toml:")
        });
        assert!(line.to_string().contains("id"), "{line}");
        proxy.call("document/wrap", &metadata("acme")).ok();
        assert!(proxy.metrics().count("tsp_config_refresh_failures_total", &[]) >= 1.0);
        assert_eq!(http::get(proxy.health, "/ready").status, 200);
        proxy.replace_config(&format!("{}{}", two_local_tenants(), tenant("initech", &[(2, As::Primary)])));
        wait_for_snapshot(&proxy, next);
        proxy.call("document/wrap", &metadata("initech")).ok();
    }

    fn one_broken_config_leaves_out_its_tenants_alone(io) {
        let broken = "[[kms]]\nid = 9\ntype = \"LOCAL\"\ncredentials = { key = { file = \"not-there\" } }\n".to_owned();
        let file = config::file(&[local_kms(1, 1), broken, tenant("acme", &[(1, As::Primary)]), tenant("globex", &[(9, As::Primary)])]);
        let proxy = Setup::serve(io, &file).start();
        proxy.log.wait_json(0, "line that names what is left out", |line| {
            line.to_string().contains("kms 9") && line["level"] != "INFO"
        });
        proxy.call("document/wrap", &metadata("acme")).ok();
        let answer = proxy.call("document/wrap", &metadata("globex"));
        assert!([201, 207].contains(&answer.json()["code"].as_u64().unwrap_or_default()), "{}", answer.text());
    }

    /// A tenant whose config cannot be used is not unknown, has a primary config, and its EDEKs name an active one: what is
    /// wrong is the config itself.
    fn a_config_that_was_left_out_is_named_by_the_operations_that_need_it(io) {
        let wrong_region = "[[kms]]\nid = 4\ntype = \"AWS\"\nkey_path = { keyID = \"alias/a\", region = \"nowhere at all\" }\n\
            credentials = { accessKeyId = \"AKIAIOSFODNN7EXAMPLE\", secretAccessKey = \"s\" }\n";
        let file = |key: &str| config::file(&[
            format!("[[kms]]\nid = 1\ntype = \"LOCAL\"\ncredentials = {{ key = {key} }}\n"),
            local_kms(2, 0x22),
            wrong_region.to_owned(),
            tenant("acme", &[(1, As::Primary)]),
            tenant("moved", &[(2, As::Primary), (1, As::Active)]),
            tenant("globex", &[(4, As::Primary)]),
            tenant("initech", &[(2, As::Primary), (1, As::Disabled)]),
        ]);
        let good = format!("\"{}\"", to_base64(&[0x11; 32]));
        let proxy = Setup::serve(io, &file(&good)).start();
        let wrapped = proxy.call("document/wrap", &metadata("acme")).ok();
        let edek = text(&wrapped, "edek");

        // From the start: a member that does not validate.
        let message = proxy.call("document/wrap", &metadata("globex")).refused(422, 207);
        assert!(message.contains("KMS configuration 4"), "{message}");

        // While it runs: a credential that has gone.
        let from = proxy.log.len();
        proxy.replace_config(&file("{ env = \"NOT_SET\" }"));
        wait_for_snapshot(&proxy, from);
        let unwrap = |tenant: &str| {
            proxy.call("document/unwrap", &request(tenant, json!({ "encryptedDocumentKey": edek })))
        };
        proxy.call("document/wrap", &metadata("acme")).refused(422, 207);
        unwrap("acme").refused(422, 207);
        unwrap("moved").refused(422, 207);
        proxy.call("document/wrap", &metadata("moved")).ok();
        let batch = request("acme", json!({ "edeks": { "a": edek } }));
        let batch = proxy.call("document/batch-unwrap", &batch).ok();
        assert_eq!(batch["failures"]["a"]["code"], 207, "{batch}");
        let moved = request("acme", json!({ "encryptedDocumentKey": edek, "newTenantId": "moved" }));
        proxy.call("document/rekey", &moved).refused(422, 207);
        // What says more still comes first.
        unwrap("initech").refused(422, 202);
        unwrap("nobody").refused(422, 201);
    }

    fn credentials_may_stand_in_variables_and_files(io) {
        let key = to_base64(&[0x33; 32]);
        let from_env = "[[kms]]\nid = 1\ntype = \"LOCAL\"\ncredentials = { key = { env = \"ACME_KEY\" } }\n".to_owned();
        let from_file = "[[kms]]\nid = 2\ntype = \"LOCAL\"\ncredentials = { key = { file = \"globex.key\" } }\n".to_owned();
        let file = config::file(&[from_env, from_file, tenant("acme", &[(1, As::Primary)]), tenant("globex", &[(2, As::Primary)])]);
        let setup = Setup::serve(io, &file).env("ACME_KEY", &key);
        std::fs::write(setup.folder().join("globex.key"), format!("{key}\n")).expect("the file can be written");
        let proxy = setup.start();
        proxy.call("document/wrap", &metadata("acme")).ok();
        proxy.call("document/wrap", &metadata("globex")).ok();
    }
}

#[test]
fn left_to_itself_it_takes_a_back_end_and_says_why() {
    let proxy = Setup::serve(Io::Epoll, &two_local_tenants())
        .env("TSP_IO", "auto")
        .start();
    let line = proxy
        .log
        .wait_json(0, "line that tells the back end", |line| {
            line["io"].is_string()
        })
        .0;
    assert!(
        ["epoll", "uring"].contains(&line["io"].as_str().unwrap_or_default()),
        "{line}"
    );
    assert!(
        line["io_reason"]
            .as_str()
            .is_some_and(|why| !why.is_empty()),
        "{line}"
    );
    proxy.call("document/wrap", &metadata("acme")).ok();
}

#[test]
fn nothing_told_is_refused_with_everything_that_is_missing() {
    let ended = Setup::bare().run_to_end();
    assert_eq!(ended.code, Some(EXIT_BAD_CONFIGURATION), "{}", ended.output);
    for name in ["API_KEY", "TSP_CONFIG_FILE"] {
        assert!(
            ended.output.contains(name),
            "{name} is not named:\n{}",
            ended.output
        );
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let ended = Setup::serve(Io::Epoll, "version = 1\n")
        .env("TSP_IO", "kqueue")
        .env("TSP_HTTP_BIND_ADDRESS", "no address")
        .env("TSP_SHARDS", "0")
        .env("TSP_SEND_LOGGING_TIMEOUT_MS", "-1")
        .env("TSP_ENABLE_LOGDRIVER_INTEGRATION", "maybe")
        .run_to_end();
    assert_eq!(ended.code, Some(EXIT_BAD_CONFIGURATION), "{}", ended.output);
    for name in [
        "TSP_IO",
        "TSP_HTTP_BIND_ADDRESS",
        "TSP_SHARDS",
        "TSP_SEND_LOGGING_TIMEOUT_MS",
        "TSP_ENABLE_LOGDRIVER_INTEGRATION",
    ] {
        assert!(
            ended.output.contains(name),
            "{name} is not named:\n{}",
            ended.output
        );
    }
}

#[test]
fn a_configuration_file_with_mistakes_is_refused_with_all_of_them() {
    let file = "version = 1\n[[kms]]\nid = 1\ntype = \"LOCL\"\n[[kms]]\nid = 0\ntype = \"LOCAL\"\ncredentials = {}\n\
                [[tenant]]\nid = \"acme\"\nassignments = [{ kms = 5, primary = true }]\n";
    let ended = Setup::serve(Io::Epoll, file).run_to_end();
    assert_eq!(ended.code, Some(EXIT_BAD_CONFIGURATION), "{}", ended.output);
    for place in ["tenants.toml:2", "tenants.toml:5", "kms with id 5", "acme"] {
        let found = ended.output.contains(place)
            || ended
                .output
                .contains(&place.replace("kms with", "[[kms]] with"));
        assert!(found, "{place} is not named:\n{}", ended.output);
    }
}

#[test]
fn a_problem_never_repeats_a_secret() {
    let secret = "c2VjcmV0LXRoYXQtbXVzdC1ub3QtYXBwZWFyLWFueXdoZXJl";
    let file = format!(
        "version = 1\n[[kms]]\nid = 1\ntype = \"LOCAL\"\ncredentials = {{ key = \"{secret}\" }}\n"
    );
    let ended = Setup::serve(Io::Epoll, &file)
        .env("API_KEY_2", "a key with\nan end of line")
        .run_to_end();
    assert_eq!(ended.code, Some(EXIT_BAD_CONFIGURATION), "{}", ended.output);
    assert!(
        !ended.output.contains(secret) && !ended.output.contains("a key with"),
        "{}",
        ended.output
    );
}

#[test]
fn a_misspelt_variable_is_warned_about() {
    let proxy = Setup::serve(Io::Epoll, &two_local_tenants())
        .env("TSP_SEND_HIGH_WATERMARK", "5")
        .start();
    let line = proxy
        .log
        .wait_json(0, "warning", |line| {
            line.to_string().contains("TSP_SEND_HIGH_WATERMARK")
        })
        .0;
    assert_eq!(line["level"], "WARN");
    assert!(
        line.to_string().contains("TSP_SEND_HIGH_WATER_MARK"),
        "the nearest name is told: {line}"
    );
}

#[test]
fn the_variables_of_an_existing_env_file_are_accepted() {
    let proxy = Setup::serve(Io::Epoll, &two_local_tenants())
        .env("SERVICE_ACCOUNT_ID", "account")
        .env("SERVICE_CONFIG_ID", "1")
        .env("SERVICE_SEGMENT_ID", "1")
        .env("SERVICE_ENCRYPTION_PRIVATE_KEY", "x")
        .env("SERVICE_SIGNING_PRIVATE_KEY", "x")
        .env("IRONCORE_ENV", "stage")
        .start();
    proxy.call("document/wrap", &metadata("acme")).ok();
}

#[test]
fn a_port_that_is_taken_is_a_failure_of_its_own() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    for name in [
        "TSP_HTTP_BIND_ADDRESS",
        "TSP_HEALTH_BIND_ADDRESS",
        "TSP_EVENT_BIND_ADDRESS",
    ] {
        let ended = Setup::serve(Io::Epoll, &two_local_tenants())
            .env(name, &address)
            .run_to_end();
        assert_eq!(
            ended.code,
            Some(EXIT_CANNOT_LISTEN),
            "{name}:\n{}",
            ended.output
        );
        assert!(ended.output.contains(&address), "{name}:\n{}", ended.output);
    }
}

#[test]
fn a_second_proxy_does_not_steal_the_port_of_the_first() {
    let first = Setup::serve(Io::Epoll, &two_local_tenants()).start();
    let second = Setup::serve(Io::Epoll, &two_local_tenants())
        .env("TSP_HTTP_BIND_ADDRESS", &first.http.to_string());
    assert_eq!(second.run_to_end().code, Some(EXIT_CANNOT_LISTEN));
}

#[test]
fn check_reads_everything_and_starts_nothing() {
    let good = Setup::serve(Io::Epoll, &two_local_tenants())
        .argument("check")
        .run_to_end();
    assert_eq!(good.code, Some(0), "{}", good.output);
    let bad = Setup::serve(Io::Epoll, "version = 2\n")
        .argument("check")
        .run_to_end();
    assert_eq!(bad.code, Some(EXIT_BAD_CONFIGURATION), "{}", bad.output);
}

#[test]
fn the_health_command_tells_what_the_probes_are_told() {
    let health = |variable: &str, address: &str, arguments: &[&str]| {
        let setup = Setup::bare().env(variable, address).argument("health");
        let setup = arguments
            .iter()
            .fold(setup, |setup, argument| setup.argument(argument));
        setup.run_to_end()
    };
    let proxy = Setup::serve(Io::Epoll, &two_local_tenants()).start();
    let address = proxy.health.to_string();
    let ready = health("TSP_HEALTH_BIND_ADDRESS", &address, &[]);
    assert_eq!(ready.code, Some(0), "{}", ready.output);
    assert!(ready.output.contains("ok"), "{}", ready.output);
    // The client API's port is not the one, whatever it answers.
    let other = health(
        "TSP_HEALTH_BIND_ADDRESS",
        &address,
        &["--live", &proxy.http.to_string()],
    );
    assert_eq!(other.code, Some(EXIT_UNHEALTHY), "{}", other.output);
    drop(proxy);
    let gone = health("TSP_HEALTH_BIND_ADDRESS", &address, &[]);
    assert_eq!(gone.code, Some(EXIT_UNHEALTHY), "{}", gone.output);
    let wrong = health("TSP_HEALTH_BIND_ADDRESS", "here", &[]);
    assert_eq!(wrong.code, Some(EXIT_BAD_CONFIGURATION), "{}", wrong.output);
}

#[test]
fn an_unknown_command_or_option_is_bad_configuration() {
    for argument in ["serve-me", "--no-such-option"] {
        let ended = Setup::bare().argument(argument).run_to_end();
        assert_eq!(ended.code, Some(EXIT_BAD_CONFIGURATION), "{}", ended.output);
    }
    let help = Setup::bare().argument("--help").run_to_end();
    assert_eq!(help.code, Some(0), "{}", help.output);
    for word in ["dev", "check"] {
        assert!(help.output.contains(word), "{}", help.output);
    }
}

#[test]
fn the_file_in_the_readme_is_a_good_one() {
    let readme = std::fs::read_to_string(source_folder().join("README.md")).expect("it is there");
    let (_, sample) = readme.split_once("```toml\n").expect("it has a sample");
    let (sample, _) = sample.split_once("```").expect("the sample ends");
    let setup = Setup::serve(Io::Epoll, sample).env("ACME_SECRET_ACCESS_KEY", "secret");
    let ended = setup.argument("check").run_to_end();
    assert_eq!(ended.code, Some(0), "{}", ended.output);
}
