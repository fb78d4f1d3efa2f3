//! `tsp doctor` as an operator runs it: against a KMS that is well, and against each way in which it is not.

use std::thread;

use serde_json::{Value, json};

use crate::support::{
    config::{self, As, AwsKms, local_kms, tenant},
    fake_kms::FakeKms,
    peers::Peer,
    proxy::{Ended, Io, Setup},
};

const EXIT_BAD_CONFIGURATION: i32 = 64;
const EXIT_UNHEALTHY: i32 = 69;

/// A file in which `acme` has `kms`, and `globex` a local key.
fn file(kms: &AwsKms) -> String {
    config::file(&[
        kms.toml(),
        local_kms(900, 0x22),
        tenant("acme", &[(kms.id, As::Primary)]),
        tenant("globex", &[(900, As::Primary)]),
    ])
}

#[track_caller]
fn doctor(config: &str, arguments: &[&str]) -> Ended {
    let setup = Setup::serve(Io::Epoll, config).argument("doctor");
    let setup = arguments
        .iter()
        .fold(setup, |setup, argument| setup.argument(argument));
    setup.run_to_end()
}

/// What it says in JSON about the one config of `acme`.
#[track_caller]
fn examine(kms: &AwsKms) -> (Option<i32>, Value) {
    let ended = doctor(&file(kms), &["acme", "--json"]);
    for secret in [&kms.user.secret_access_key, &kms.user.access_key_id] {
        assert!(!ended.output.contains(secret.as_str()), "{}", ended.output);
    }
    // Its sentence for people comes by another pipe, and may stand between any two lines.
    let report: Vec<_> = ended
        .output
        .lines()
        .filter(|line| !line.starts_with("tsp: "))
        .collect();
    let report = report.join("\n");
    let json = report.find('{').zip(report.rfind('}'));
    let (from, to) = json.unwrap_or_else(|| panic!("no JSON: {}", ended.output));
    let report: Value = serde_json::from_str(&report[from..=to])
        .unwrap_or_else(|why| panic!("{why}: {}", ended.output));
    assert_eq!(report["kms"].as_array().map(Vec::len), Some(1), "{report}");
    (ended.code, report["kms"][0].clone())
}

#[track_caller]
fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("there are checks");
    let mut checks = checks.iter();
    checks
        .find(|check| check["check"] == name)
        .unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// Fails unless exactly `name` failed, for the reason `diagnosis`.
#[track_caller]
fn assert_finds(kms: &AwsKms, name: &str, diagnosis: &str) {
    let (code, report) = examine(kms);
    assert_eq!(code, Some(EXIT_UNHEALTHY), "{report}");
    let failed: Vec<_> = report["checks"]
        .as_array()
        .expect("there are checks")
        .iter()
        .filter(|check| check["result"] == "failed")
        .map(|check| (check["check"].as_str(), check["diagnosis"].as_str()))
        .collect();
    assert_eq!(failed, [(Some(name), Some(diagnosis))], "{report}");
    for member in ["what", "whose", "remedy"] {
        assert!(check(&report, name)[member].is_string(), "{report}");
    }
}

#[test]
fn a_kms_that_is_well_is_found_well() {
    for peer in [Peer::moto(), Peer::moto_tls()] {
        let kms = AwsKms::at(peer, 41, 0);
        let (code, report) = examine(&kms);
        assert_eq!(code, Some(0), "{report}");
        for timed in ["dns", "tcp", "wrap", "unwrap"] {
            assert!(check(&report, timed)["ms"].is_number(), "{report}");
        }
        for good in ["credential", "key", "clock"] {
            assert_eq!(check(&report, good)["result"], "ok", "{report}");
        }
    }
}

#[test]
fn a_person_gets_a_table_of_all_configs() {
    let ended = doctor(&file(&AwsKms::at(Peer::moto(), 41, 0)), &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    let rows: Vec<_> = ended
        .output
        .lines()
        .map(|line| line.split_whitespace().take(3).collect::<Vec<_>>())
        .collect();
    assert_eq!(
        rows,
        [
            ["kms", "type", "tenants"],
            ["41", "AWS", "acme"],
            ["900", "LOCAL", "globex"]
        ],
        "{}",
        ended.output
    );
}

#[test]
fn a_wrong_secret_is_told_from_an_unknown_credential() {
    let kms = AwsKms::at(Peer::moto(), 41, 0);
    let wrong = kms
        .clone()
        .with_secret("not-the-secret-of-this-user-at-all-4242");
    assert_finds(&wrong, "credential", "wrong_secret");
    let mut unknown = kms.user.clone();
    unknown.access_key_id = "AKIANOSUCHKEYATALL00".into();
    assert_finds(&kms.with_user(unknown), "credential", "unknown_credential");
}

#[test]
fn a_missing_key_is_told_from_a_missing_permission() {
    let kms = AwsKms::at(Peer::moto(), 41, 0);
    let missing = kms
        .clone()
        .with_key_id("00000000-0000-4000-8000-000000000000");
    assert_finds(&missing, "key", "no_such_key");
    let denied = kms.with_user(Peer::moto().user_called("denied"));
    assert_finds(&denied, "key", "no_permission");
}

#[test]
fn a_disabled_key_is_found() {
    let fake = FakeKms::asking();
    let kms = AwsKms::unchecked(41, &fake.url());
    thread::scope(|scope| {
        scope.spawn(|| assert_finds(&kms, "key", "key_disabled"));
        let disabled = json!({ "__type": "DisabledException", "message": "off" });
        fake.next_call().answer(400, &disabled);
    });
}

#[test]
fn a_stopped_kms_is_a_refused_connection() {
    let moto = Peer::start_moto();
    let kms = AwsKms::at(&moto, 41, 0);
    moto.stop();
    assert_finds(&kms, "tcp", "connection_refused");
}

#[test]
fn a_stranger_behind_tls_is_not_trusted() {
    let mut kms = AwsKms::at(Peer::moto_tls(), 41, 0);
    kms.ca_file = None;
    assert_finds(&kms, "tls", "certificate_refused");
}

#[test]
fn a_clock_that_disagrees_is_found_although_the_key_works() {
    let fake = FakeKms::dated("Thu, 01 Jan 2026 00:00:00 GMT");
    let kms = AwsKms::unchecked(41, &fake.url());
    assert_finds(&kms, "clock", "clock_wrong");
}

#[test]
fn one_bad_config_does_not_hide_the_good_ones() {
    let mut kms = AwsKms::at(Peer::moto(), 41, 0);
    kms = kms.with_key_id("00000000-0000-4000-8000-000000000000");
    let ended = doctor(&file(&kms), &[]);
    assert_eq!(ended.code, Some(EXIT_UNHEALTHY), "{}", ended.output);
    for text in [
        "kms 41 (AWS): key failed",
        "whose  configuration",
        "tsp: 1 of 2 KMS configs do not work",
    ] {
        assert!(ended.output.contains(text), "{}", ended.output);
    }
}

#[test]
fn a_bad_file_or_an_unknown_tenant_is_a_bad_configuration() {
    let good = file(&AwsKms::unchecked(41, "http://127.0.0.1:1"));
    let ended = doctor(&good, &["nobody"]);
    assert_eq!(ended.code, Some(EXIT_BAD_CONFIGURATION), "{}", ended.output);
    assert!(ended.output.contains("\"nobody\""), "{}", ended.output);
    let ended = doctor("version = 7", &["--json"]);
    assert_eq!(ended.code, Some(EXIT_BAD_CONFIGURATION), "{}", ended.output);
    assert!(
        ended.output.contains("\"healthy\": false"),
        "{}",
        ended.output
    );
    let ended = Setup::bare().argument("doctor").run_to_end();
    assert_eq!(ended.code, Some(EXIT_BAD_CONFIGURATION), "{}", ended.output);
}
