use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use serde_json::json;
use tsp_kms::{Blame, HttpAnswer, Kms, KmsError, KmsKind, KmsOperation, Retry};
use tsp_rt::{CertificateFault, NetError, tls::SpkiPin};
use tsp_shards::{AddressKind, Forbidden, ProbeError, ProbeFailure, Stage};
use tsp_wire::{
    Secret,
    snapshot::{AssignmentDoc, KmsConfigDoc, KmsKeyDoc, TenantDoc},
};

use super::{
    diagnosis::{CAUSES, Check, Diagnosis, Whose},
    examination::State,
    *,
};

fn config(id: i64, key: KmsKeyDoc) -> KmsConfigDoc {
    KmsConfigDoc {
        id,
        leasing_allowed: false,
        key,
        endpoint: None,
        allow_insecure: false,
        ca_pem: None,
    }
}

fn aws() -> KmsConfigDoc {
    let key = KmsKeyDoc::Aws {
        key_id: "alias/acme".to_owned(),
        region: "eu-central-1".to_owned(),
        access_key_id: "AKIDEXAMPLE".to_owned(),
        secret_access_key: Secret::new("CANARY".to_owned()),
        session_token: None,
        assume_role: None,
        sts_endpoint: None,
    };
    config(1, key)
}

fn azure() -> KmsConfigDoc {
    let key = KmsKeyDoc::Azure {
        client_id: "11111111-2222-3333-4444-555555555555".to_owned(),
        client_secret: Some(Secret::new("CANARY".to_owned())),
        client_certificate: None,
        tenant_guid: "66666666-7777-8888-9999-000000000000".to_owned(),
        vault_base_url: "https://acme.vault.azure.net".to_owned(),
        key_name: "documents".to_owned(),
        algorithm: None,
        authority: None,
    };
    config(2, key)
}

fn thales() -> KmsConfigDoc {
    let key = KmsKeyDoc::Thales {
        username: "tsp".to_owned(),
        password: Secret::new("CANARY".to_owned()),
        auth_domain: String::new(),
        connection: String::new(),
        service_url: "https://ciphertrust.example.com".to_owned(),
        key_id: "documents".to_owned(),
        server_name: None,
        spki_pin: None,
    };
    config(3, key)
}

fn local(id: i64) -> KmsConfigDoc {
    let key = Secret::new([7; 32]);
    config(id, KmsKeyDoc::Local { key })
}

/// What `config`'s KMS makes of an answer.
fn refusal(
    config: &KmsConfigDoc,
    operation: KmsOperation,
    status: u16,
    body: &serde_json::Value,
) -> KmsError {
    let Kms::Remote(kms) = Kms::from_doc(config).unwrap() else {
        panic!("not remote");
    };
    let (headers, body) = (String::new(), body.to_string());
    let answer = HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: body.as_bytes(),
    };
    match operation {
        KmsOperation::Wrap => kms.read_wrap(&answer).unwrap_err(),
        KmsOperation::Unwrap => kms.read_unwrap(&answer).unwrap_err(),
        KmsOperation::Token => kms.read_token(&answer, SystemTime::UNIX_EPOCH).unwrap_err(),
    }
}

fn named(found: &(Check, Diagnosis)) -> (Check, &'static str) {
    (found.0, found.1.cause.name)
}

#[test]
fn each_refusal_of_aws_has_its_diagnosis() {
    for (code, check, name) in [
        (
            "InvalidSignatureException",
            Check::Credential,
            "wrong_secret",
        ),
        (
            "UnrecognizedClientException",
            Check::Credential,
            "unknown_credential",
        ),
        (
            "ExpiredTokenException",
            Check::Credential,
            "expired_credential",
        ),
        (
            "IncompleteSignature",
            Check::Credential,
            "credential_refused",
        ),
        ("AccessDeniedException", Check::Key, "no_permission"),
        ("NotFoundException", Check::Key, "no_such_key"),
        ("DisabledException", Check::Key, "key_disabled"),
        ("KMSInvalidStateException", Check::Key, "key_disabled"),
        ("InvalidKeyUsageException", Check::Key, "key_unusable"),
        ("ThrottlingException", Check::Wrap, "throttled"),
        ("OptInRequired", Check::Wrap, "account"),
        ("KMSInternalException", Check::Wrap, "kms_in_trouble"),
        ("SerializationException", Check::Wrap, "operation_failed"),
    ] {
        let body = json!({ "__type": code, "message": "no" });
        let why = refusal(&aws(), KmsOperation::Wrap, 400, &body);
        let found = Diagnosis::of_kms(&why);
        assert_eq!(named(&found), (check, name), "{code}: {why}");
        assert!(found.1.what.contains(code), "{}", found.1.what);
    }
}

#[test]
fn a_missing_permission_to_decrypt_is_told_at_the_unwrap() {
    let body = json!({ "__type": "AccessDeniedException", "message": "no" });
    let why = refusal(&aws(), KmsOperation::Unwrap, 400, &body);
    assert_eq!(
        named(&Diagnosis::of_kms(&why)),
        (Check::Unwrap, "no_permission")
    );
}

#[test]
fn azure_and_thales_have_words_of_their_own_for_the_same() {
    let vault = |code| json!({ "error": { "code": "Forbidden", "message": "no", "innererror": { "code": code } } });
    let entra = |number: u32| json!({ "error": "invalid_client", "error_description": format!("AADSTS{number}: no"), "error_codes": [number] });
    let manager = |word| json!({ "code": 1, "codeDesc": format!("{word}: no") });
    use KmsOperation::{Token, Wrap};
    for (config, operation, status, body, check, name) in [
        (
            azure(),
            Wrap,
            403,
            vault("ForbiddenByRbac"),
            Check::Key,
            "no_permission",
        ),
        (
            azure(),
            Wrap,
            403,
            vault("ForbiddenByFirewall"),
            Check::Key,
            "kept_out",
        ),
        (
            azure(),
            Wrap,
            403,
            vault("KeyDisabled"),
            Check::Key,
            "key_disabled",
        ),
        (
            azure(),
            Wrap,
            404,
            vault("KeyNotFound"),
            Check::Key,
            "no_such_key",
        ),
        (
            azure(),
            Token,
            401,
            entra(7000215),
            Check::Credential,
            "wrong_secret",
        ),
        (
            azure(),
            Token,
            401,
            entra(7000222),
            Check::Credential,
            "expired_credential",
        ),
        (
            azure(),
            Token,
            400,
            entra(700016),
            Check::Credential,
            "unknown_credential",
        ),
        (
            thales(),
            Wrap,
            403,
            manager("NCERRInsufficientPermissions"),
            Check::Key,
            "no_permission",
        ),
        (
            thales(),
            Wrap,
            404,
            manager("NCERRResourceNotFound"),
            Check::Key,
            "no_such_key",
        ),
        (
            thales(),
            Token,
            401,
            manager("NCERRUnauthorizedAccess"),
            Check::Credential,
            "credential_refused",
        ),
    ] {
        let why = refusal(&config, operation, status, &body);
        assert_eq!(named(&Diagnosis::of_kms(&why)), (check, name), "{why}");
    }
}

#[test]
fn each_failure_on_the_way_has_its_diagnosis() {
    let net = |stage, why, check, name| (stage, ProbeError::Net(why), check, name);
    for (stage, why, check, name) in [
        net(
            Stage::Resolve,
            NetError::Unresolved,
            Check::Dns,
            "no_such_name",
        ),
        net(
            Stage::Connect,
            NetError::Refused,
            Check::Tcp,
            "connection_refused",
        ),
        net(Stage::Connect, NetError::Unreachable, Check::Tcp, "no_way"),
        net(Stage::Connect, NetError::Timeout, Check::Tcp, "timed_out"),
        net(
            Stage::Connect,
            NetError::Exhausted,
            Check::Tcp,
            "out_of_resources",
        ),
        net(
            Stage::Tls,
            NetError::Certificate(CertificateFault::Issuer, "unknown issuer".into()),
            Check::Tls,
            "certificate_refused",
        ),
        net(
            Stage::Tls,
            NetError::Certificate(CertificateFault::Name, "not localhost".into()),
            Check::Tls,
            "certificate_for_another_name",
        ),
        net(
            Stage::Tls,
            NetError::Certificate(CertificateFault::Time, "expired".into()),
            Check::Tls,
            "certificate_expired",
        ),
        net(Stage::Answer, NetError::Timeout, Check::Wrap, "no_answer"),
        net(
            Stage::Tls,
            NetError::Pin(SpkiPin([7; 32])),
            Check::Tls,
            "key_not_pinned",
        ),
        net(
            Stage::Tls,
            NetError::Tls("alert".into()),
            Check::Tls,
            "tls_failed",
        ),
        net(Stage::Tls, NetError::Reset, Check::Tls, "connection_cut"),
        (
            Stage::Answer,
            ProbeError::CutOff,
            Check::Wrap,
            "connection_cut",
        ),
        (Stage::Answer, ProbeError::NotHttp, Check::Wrap, "not_a_kms"),
        (
            Stage::Connect,
            ProbeError::Forbidden(Forbidden {
                address: [169, 254, 169, 254].into(),
                kind: AddressKind::Metadata,
            }),
            Check::Tcp,
            "address_not_allowed",
        ),
    ] {
        let failure = ProbeFailure { stage, why };
        let found = Diagnosis::of_probe(&failure, "kms.example.com:443");
        assert_eq!(named(&found), (check, name), "{failure:?}");
        assert!(
            found.1.what.starts_with("kms.example.com:443: "),
            "{}",
            found.1.what
        );
    }
}

#[test]
fn a_clock_that_is_ten_minutes_off_is_this_machines_fault() {
    let ours = SystemTime::UNIX_EPOCH + Duration::from_secs(1_768_478_400);
    let minute = Duration::from_secs(60);
    for theirs in [ours, ours + minute, ours - minute] {
        assert!(Diagnosis::of_clock(ours, theirs).is_none());
    }
    let behind = Diagnosis::of_clock(ours, ours + minute * 10).unwrap();
    assert_eq!(
        behind.what,
        "this machine's clock is 600 s behind the KMS's"
    );
    let ahead = Diagnosis::of_clock(ours, ours - minute * 10).unwrap();
    assert_eq!(
        ahead.what,
        "this machine's clock is 600 s ahead of the KMS's"
    );
    assert_eq!(
        (ahead.cause.name, ahead.cause.whose),
        ("clock_wrong", Whose::Machine)
    );
}

#[test]
fn every_cause_has_a_name_of_its_own_and_says_what_to_do() {
    let names: HashSet<_> = CAUSES.iter().map(|cause| cause.name).collect();
    assert_eq!(names.len(), CAUSES.len());
    assert!(
        CAUSES
            .iter()
            .all(|cause| cause.remedy.ends_with(['.', '?', ')']))
    );
}

fn examined(patient: Patient) -> Chart {
    let destinations = Arc::new(Destinations::of_the_operators_endpoints());
    let examine = |rt| async move { examination::examine(rt, &patient, &destinations).await };
    tsp_rt::run_here(examine).unwrap()
}

fn patient(config: &KmsConfigDoc) -> Patient {
    Patient {
        id: config.id,
        tenants: vec!["acme".to_owned()],
        kms: Kms::from_doc(config).unwrap(),
    }
}

#[test]
fn a_local_key_is_well_by_itself() {
    let chart = examined(patient(&local(7)));
    assert!(chart.is_healthy());
    let of = |wanted| {
        let mut checks = chart.checks.iter();
        &checks.find(|(check, _)| *check == wanted).unwrap().1
    };
    assert!(matches!(of(Check::Tcp), State::NotNeeded));
    assert!(matches!(of(Check::Unwrap), State::Good(Some(_))));
}

#[test]
fn the_report_tells_of_each_failure_what_whose_and_what_to_do() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let mut unreachable = aws();
    unreachable.endpoint = Some(format!("https://{closed}"));
    let charts = [
        examined(patient(&local(7))),
        examined(patient(&unreachable)),
    ];
    let table = report::table(&charts);
    let lines: Vec<_> = table.lines().collect();
    let heads: Vec<_> = lines[0].split_whitespace().collect();
    assert_eq!(
        heads,
        [
            "kms",
            "type",
            "tenants",
            "dns",
            "tcp",
            "tls",
            "clock",
            "credential",
            "key",
            "wrap",
            "unwrap"
        ]
    );
    assert!(
        lines[2].starts_with("1    AWS") && lines[2].contains("FAILED  ?"),
        "{table}"
    );
    assert_eq!(
        lines[3..],
        [
            "",
            "kms 1 (AWS): tcp failed",
            &format!("  what   {closed}: connection refused"),
            "  whose  network",
            "  do     Nobody listens there. Check host and port of the endpoint, and that the KMS is running.",
        ]
    );
    let json = report::json(&charts, &[]);
    assert_eq!(json["healthy"], false);
    assert_eq!(json["kms"][0]["healthy"], true);
    assert_eq!(
        json["kms"][1]["checks"][1]["diagnosis"],
        "connection_refused"
    );
    assert!(!format!("{table}{json}{charts:?}").contains("CANARY"));
}

#[test]
fn an_unreachable_token_endpoint_is_the_credentials_failure() {
    let why = KmsError::unreachable(
        KmsKind::Azure,
        KmsOperation::Token,
        Retry::No,
        Blame::Kms,
        "gone",
    );
    assert_eq!(
        named(&Diagnosis::of_kms(&why)),
        (Check::Credential, "kms_in_trouble")
    );
}

fn loaded() -> Loaded {
    let tenant = |id: &str, kms, active| TenantDoc {
        id: id.to_owned(),
        assignments: vec![AssignmentDoc {
            kms,
            active,
            primary: false,
        }],
    };
    let mut wrong = aws();
    wrong.endpoint = Some("ftp://x".to_owned());
    Loaded {
        kms: vec![wrong, local(5), local(6)],
        tenants: vec![
            tenant("acme", 5, true),
            tenant("globex", 6, false),
            tenant("initech", 6, true),
        ],
        ..Loaded::default()
    }
}

#[test]
fn a_named_tenant_chooses_its_active_configs() {
    let ids = |name| {
        let (patients, problems) = chosen(loaded(), name);
        let ids: Vec<_> = patients.iter().map(|patient| patient.id).collect();
        (
            ids,
            problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
    };
    assert_eq!(ids(Some("acme")), (vec![5], vec![]));
    let (all, problems) = ids(None);
    assert_eq!(all, [5, 6]);
    assert!(
        problems[0].starts_with("kms 1: `endpoint` must be"),
        "{problems:?}"
    );
    let nothing = ids(Some("globex")).1;
    assert_eq!(
        nothing,
        ["tenant \"globex\": no KMS config that can be used is active for it"]
    );
    let nobody = ids(Some("nobody")).1;
    assert_eq!(
        nobody,
        ["tenant \"nobody\": there is no such tenant in the configuration"]
    );
}
