use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::Value;
use tsp_wire::{
    Secret,
    snapshot::{GcpTokenKind, KmsConfigDoc, KmsKeyDoc},
};

use super::*;
use crate::{Kms, Retry, Roots, Signed, token::Proof};

/// A service account's key that guards nothing. Begins with a comment, as keys out of some tools do.
pub(super) const PEM: &str = include_str!("../../tests/data/gcp-TEST-ONLY-service-account-key.pem");

pub(super) const EMAIL: &str = "tsp-test@tsp-test-project.iam.gserviceaccount.com";

pub(super) fn doc() -> KmsConfigDoc {
    KmsConfigDoc {
        id: 1,
        leasing_allowed: true,
        key: KmsKeyDoc::Gcp {
            client_email: EMAIL.to_owned(),
            private_key: Secret::new(PEM.to_owned()),
            private_key_id: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
            project_id: "tsp-test-project".to_owned(),
            location_id: "europe-west1".to_owned(),
            key_ring_id: "tsp".to_owned(),
            crypto_key_id: "tenant-1".to_owned(),
            token: GcpTokenKind::SelfSigned,
            token_endpoint: None,
        },
        endpoint: None,
        allow_insecure: false,
        ca_pem: None,
    }
}

/// The members of a document that only Google has, open to change.
pub(super) struct Members<'a> {
    pub(super) client_email: &'a mut String,
    pub(super) private_key: &'a mut Secret<String>,
    pub(super) private_key_id: &'a mut Option<String>,
    pub(super) project_id: &'a mut String,
    pub(super) location_id: &'a mut String,
    pub(super) key_ring_id: &'a mut String,
    pub(super) crypto_key_id: &'a mut String,
    pub(super) token: &'a mut GcpTokenKind,
    pub(super) token_endpoint: &'a mut Option<String>,
}

pub(super) fn with(mut doc: KmsConfigDoc, change: impl FnOnce(Members<'_>)) -> KmsConfigDoc {
    if let KmsKeyDoc::Gcp {
        client_email,
        private_key,
        private_key_id,
        project_id,
        location_id,
        key_ring_id,
        crypto_key_id,
        token,
        token_endpoint,
    } = &mut doc.key
    {
        change(Members {
            client_email,
            private_key,
            private_key_id,
            project_id,
            location_id,
            key_ring_id,
            crypto_key_id,
            token,
            token_endpoint,
        });
    }
    doc
}

pub(super) fn gcp(doc: &KmsConfigDoc) -> Box<dyn RemoteKms> {
    match Kms::from_doc(doc).unwrap() {
        Kms::Remote(gcp) => gcp,
        Kms::Local(_) => panic!("the document is of Google"),
    }
}

/// Ten seconds after the moment of the vectors, 2026-01-15 10:15:30 UTC: tokens are issued ten seconds back.
pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_768_472_140)
}

/// A token that KMS would refuse, and our code need not.
fn token() -> Token {
    let id = CredentialId::of(&[]);
    let renewal = crate::token::Renewal {
        first: Duration::ZERO,
        last: Duration::ZERO,
    };
    Token::new(
        Proof::bearer("ya29.CANARY"),
        id,
        now(),
        Duration::from_secs(60),
        &renewal,
    )
}

/// The DEK of the vectors: 0, 1, 2, …, 31.
fn dek() -> Dek {
    Dek::fill_with(|bytes| {
        bytes
            .iter_mut()
            .zip(0..)
            .for_each(|(byte, value)| *byte = value);
    })
}

fn wrap(gcp: &dyn RemoteKms) -> HttpRequest {
    let mut session = Session::default();
    gcp.wrap_request(&dek(), Some(&token()), &mut session, now())
        .unwrap()
}

fn unwrap(gcp: &dyn RemoteKms, blob: &[u8]) -> Result<HttpRequest, KmsError> {
    gcp.unwrap_request(blob, Some(&token()), &mut Session::default(), now())
}

fn header<'a>(request: &'a HttpRequest, name: &str) -> &'a str {
    request.header(name).unwrap()
}

pub(super) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn body(request: &HttpRequest) -> Value {
    serde_json::from_slice(request.body()).unwrap()
}

/// The vectors, with the additional data taken out that this crate does not send.
pub(super) fn vectors() -> Value {
    let mut file = json(include_str!("../../tests/data/gcp-kms-json.json"));
    for operation in ["encrypt", "decrypt"] {
        let request = file[operation]["request_body"].as_object_mut().unwrap();
        assert!(request.remove("additionalAuthenticatedData").is_some());
        assert!(
            request
                .remove("additionalAuthenticatedDataCrc32c")
                .is_some()
        );
    }
    file
}

#[test]
fn requests_and_answers_are_those_of_googles_client() {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

    let file = vectors();
    let gcp = gcp(&doc());
    let headers = String::new();
    let read = |operation: &str| file[operation]["response_body"].to_string();

    let request = wrap(&*gcp);
    assert_eq!(request.path(), file["encrypt"]["path"].as_str().unwrap());
    assert_eq!(body(&request), file["encrypt"]["request_body"]);
    let blob = gcp
        .read_wrap(&HttpAnswer {
            status: 200,
            headers: headers.as_bytes(),
            body: read("encrypt").as_bytes(),
        })
        .unwrap();
    assert_eq!(
        BASE64.encode(&blob),
        file["encrypt"]["response_body"]["ciphertext"]
            .as_str()
            .unwrap()
    );

    let request = unwrap(&*gcp, &blob).unwrap();
    assert_eq!(request.path(), file["decrypt"]["path"].as_str().unwrap());
    assert_eq!(body(&request), file["decrypt"]["request_body"]);
    let unwrapped = gcp
        .read_unwrap(&HttpAnswer {
            status: 200,
            headers: headers.as_bytes(),
            body: read("decrypt").as_bytes(),
        })
        .unwrap();
    assert_eq!(unwrapped.expose(), dek().expose());
}

#[test]
fn checksums_are_those_of_googles_library() {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

    let file = json(include_str!("../../tests/data/gcp-crc32c.json"));
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 11);
    for case in cases {
        let data = BASE64.decode(case["data_b64"].as_str().unwrap()).unwrap();
        assert_eq!(
            u64::from(crc32c::crc32c(&data)),
            case["crc32c_u32"].as_u64().unwrap()
        );
        assert_eq!(json(&checksum_json(&data)), case["json_field"]);
    }
}

#[test]
fn a_request_is_a_post_of_json_that_does_not_show_its_token() {
    let gcp = gcp(&doc());
    for request in [wrap(&*gcp), unwrap(&*gcp, &[7; 8192]).unwrap()] {
        let mut names: Vec<_> = request.headers().map(|(name, _)| name).collect();
        names.sort_unstable();
        let expected = [
            "accept",
            "authorization",
            "content-length",
            "content-type",
            "host",
        ];
        assert_eq!(names, expected);
        assert_eq!(header(&request, "host"), "cloudkms.googleapis.com");
        assert_eq!(header(&request, "content-type"), "application/json");
        assert_eq!(header(&request, "authorization"), "Bearer ya29.CANARY");
        assert!(!format!("{request:?}").contains("CANARY"));
    }
    assert_eq!(
        gcp.endpoint(),
        &Endpoint::at("cloudkms.googleapis.com", Roots::Public)
    );
    assert_eq!(gcp.kind(), KmsKind::Gcp);
}

#[test]
fn nothing_is_asked_without_a_token_of_the_right_kind() {
    let gcp = gcp(&doc());
    let mut session = Session::default();
    let wrap = gcp.wrap_request(&dek(), None, &mut session, now());
    let unwrap = gcp.unwrap_request(b"blob", None, &mut session, now());
    for error in [wrap.unwrap_err(), unwrap.unwrap_err()] {
        assert_eq!(
            (error.kind(), error.retry()),
            (KmsErrorKind::Authorization, Retry::No)
        );
    }
}

#[test]
fn a_blob_that_cannot_be_one_is_refused_without_a_call() {
    let gcp = gcp(&doc());
    for blob in [vec![], vec![0; 8193], vec![0; 1 << 20]] {
        let error = unwrap(&*gcp, &blob).unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (KmsErrorKind::UnwrapFailed, Retry::No)
        );
    }
}

#[test]
fn each_part_of_the_path_is_escaped() {
    let cases = [
        ("tsp-test-project", "tsp-test-project"),
        ("123456789012", "123456789012"),
        ("example.com:tsp", "example.com:tsp"),
        ("a?b#c%2F", "a%3Fb%23c%252F"),
    ];
    for (project, escaped) in cases {
        let doc = with(doc(), |gcp| project.clone_into(gcp.project_id));
        assert_eq!(
            wrap(&*gcp(&doc)).path(),
            format!(
                "/v1/projects/{escaped}/locations/europe-west1/keyRings/tsp/cryptoKeys/tenant-1:encrypt"
            )
        );
    }
}

#[test]
fn an_endpoint_of_the_configuration_changes_the_host_alone() {
    let mut doc = doc();
    for (url, host, tls) in [
        (
            "https://CloudKMS.europe-west3.rep.googleapis.com",
            "cloudkms.europe-west3.rep.googleapis.com",
            true,
        ),
        ("http://127.0.0.1:5620/", "127.0.0.1:5620", false),
    ] {
        doc.endpoint = Some(url.to_owned());
        doc.allow_insecure = !tls;
        let gcp = gcp(&doc);
        assert_eq!(gcp.endpoint().tls, tls);
        assert_eq!(header(&wrap(&*gcp), "host"), host);
        assert!(wrap(&*gcp).path().starts_with("/v1/projects/"));
    }
    doc.allow_insecure = false;
    assert_eq!(refused_member(&doc), "endpoint");
}

/// Which member a document is refused for.
fn refused_member(doc: &KmsConfigDoc) -> &'static str {
    let error = Kms::from_doc(doc).unwrap_err();
    assert_eq!(error.tsp_code().number(), 207);
    assert!(!format!("{error} {error:?}").contains("CaNaRy"));
    error.member()
}

#[test]
fn a_wrong_account_is_refused() {
    for email in ["", "tsp", "tsp @x.y", "tsp\n@x.y", &"CaNaRy@".repeat(60)] {
        let doc = with(doc(), |gcp| email.clone_into(gcp.client_email));
        assert_eq!(refused_member(&doc), "client_email", "{email}");
    }
    for pem in [
        "",
        "CaNaRy",
        "-----BEGIN PRIVATE KEY-----\nCaNaRy==\n-----END PRIVATE KEY-----\n",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "{\"private_key\":\"CaNaRy\"}",
    ] {
        let doc = with(doc(), |gcp| *gcp.private_key = Secret::new(pem.to_owned()));
        assert_eq!(refused_member(&doc), "private_key", "{pem}");
    }
    for id in ["", "CaNaRy id", "ü", &"CaNaRy".repeat(30)] {
        let doc = with(doc(), |gcp| *gcp.private_key_id = Some(id.to_owned()));
        assert_eq!(refused_member(&doc), "private_key_id", "{id}");
    }
}

#[test]
fn a_wrong_key_name_is_refused() {
    let full = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
    for wrong in [
        "",
        "a b",
        "a/b",
        "..",
        "ü",
        "a\r\nb",
        full,
        &"x".repeat(129),
    ] {
        let spoil = |change: fn(Members<'_>) -> &mut String| {
            with(doc(), |gcp| wrong.clone_into(change(gcp)))
        };
        let docs = [
            ("projectId", spoil(|gcp| gcp.project_id)),
            ("locationId", spoil(|gcp| gcp.location_id)),
            ("keyRingId", spoil(|gcp| gcp.key_ring_id)),
            ("cryptoKeyId", spoil(|gcp| gcp.crypto_key_id)),
        ];
        for (member, doc) in docs {
            assert_eq!(refused_member(&doc), member, "{wrong}");
        }
    }
}

#[test]
fn a_wrong_token_endpoint_is_refused() {
    for url in [
        "",
        "/token",
        "oauth2.internal/token",
        "https:///token",
        "https://user@oauth2.internal/token",
        "https://oauth2.internal/token?x=y",
        "https://oauth2.internal/to ken",
        "https://oauth2.internal/token#x",
        "https://oauth2.internal:0/token",
        "http://oauth2.internal/token",
        "ftp://oauth2.internal/token",
        &format!("https://oauth2.internal/{}", "x".repeat(300)),
    ] {
        let doc = with(doc(), |gcp| *gcp.token_endpoint = Some(url.to_owned()));
        assert_eq!(refused_member(&doc), "tokenEndpoint", "{url}");
    }
}

#[test]
fn only_the_configured_key_and_its_versions_are_covered() {
    let name = |project: &str| {
        KeyName::new(&GcpKey {
            client_email: "",
            private_key: &Secret::new(String::new()),
            private_key_id: None,
            project_id: project,
            location_id: "europe-west1",
            key_ring_id: "tsp",
            crypto_key_id: "tenant-1",
            token: GcpTokenKind::SelfSigned,
            token_endpoint: None,
        })
        .unwrap()
    };
    let key = "locations/europe-west1/keyRings/tsp/cryptoKeys/tenant-1";
    let covers = |name: &KeyName, project: &str, rest: &str| {
        name.covers(&format!("projects/{project}/{rest}"))
    };
    let acme = name("acme");
    assert!(covers(&acme, "acme", key));
    assert!(covers(&acme, "acme", &format!("{key}/cryptoKeyVersions/3")));
    assert!(covers(&acme, "123456789012", key), "the project's number");
    assert!(
        covers(&name("123456789012"), "acme", key),
        "or the other way"
    );
    assert!(!covers(&acme, "evil", key));
    assert!(!covers(&acme, "acme", &format!("{key}0")));
    assert!(!covers(&acme, "acme", &key.replace("tsp", "other")));
    assert!(!covers(
        &acme,
        "acme",
        &key.replace("europe-west1", "global")
    ));
    assert!(!acme.covers(""));
    assert!(!acme.covers("projects/acme"));
    assert!(!acme.covers(key));
}

#[test]
fn nothing_prints_a_secret() {
    let kms = gcp(&doc());
    let step = kms
        .token_step(None, None, &mut Session::default(), now())
        .unwrap();
    let mut texts = vec![format!("{kms:?} {kms:#?} {step:?}")];
    let TokenStep::Sign(sign) = step else {
        panic!("it signs")
    };
    let signed = sign().unwrap();
    texts.push(format!("{signed:?} {signed:#?}"));
    let request = wrap(&*kms);
    texts.push(format!("{request:?} {request:#?}"));

    let doc = with(doc(), |gcp| *gcp.token = GcpTokenKind::Endpoint);
    let step = gcp(&doc)
        .token_step(None, None, &mut Session::default(), now())
        .unwrap();
    let TokenStep::Sign(sign) = step else {
        panic!("it signs")
    };
    let signed = sign().unwrap();
    assert!(matches!(&signed, Signed::Call(call) if call.request.body().len() > 500));
    texts.push(format!("{signed:?} {signed:#?}"));

    let key: String = PEM
        .lines()
        .filter(|line| !line.starts_with(['-', '#']))
        .collect();
    for text in texts {
        assert!(
            text.contains("cloudkms") || text.contains("Token") || text.contains("HttpRequest")
        );
        for secret in ["CANARY", "eyJ", "AAECAw", &key[..24], &key[200..224]] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic(
        status in prop_oneof![Just(200_u16), 0..1000_u16],
        names in proptest::collection::vec(proptest::sample::select(vec!["date", "retry-after"]), 0..3),
        value in proptest::collection::vec(any::<u8>(), 0..40),
        body in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            "[{}<>\\[\\]\":,/&;#!a-z0-9_\\\\ ]{0,200}".prop_map(String::into_bytes),
            "\\{\"(name|ciphertext|ciphertextCrc32c|verifiedPlaintextCrc32c|plaintext|plaintextCrc32c|access_token|expires_in)\":\"?.{0,80}\"?[},].{0,40}"
                .prop_map(String::into_bytes),
            "\\{\"error\":\\{\"(status|message|details)\":.{0,80}\\}.{0,40}".prop_map(String::into_bytes),
            "\\{\"error\":\\{\"status\":\"INVALID_ARGUMENT\",\"message\":\".{0,80}\",\"details\":\\[\\{\"@type\":\"[a-zA-Z./]{0,20}(ErrorInfo|RetryInfo|PreconditionFailure)\",\"(reason|retryDelay|violations)\":\"?[-0-9.e]{0,20}s?\"?\\}\\]\\}\\}"
                .prop_map(String::into_bytes),
        ],
    ) {
        let gcp = gcp(&doc());
        let mut headers = Vec::new();
        for name in names {
            headers.extend_from_slice(name.as_bytes());
            headers.extend_from_slice(&[b": ", &*value, b"\r\n"].concat());
        }
        let answer = HttpAnswer { status, headers: &headers, body: &body };
        let errors = [
            gcp.read_wrap(&answer).err(),
            gcp.read_unwrap(&answer).err(),
            gcp.read_token(&answer, now()).err(),
        ];
        for error in errors.into_iter().flatten() {
            prop_assert!(!error.sentence().is_empty());
            prop_assert!(error.to_string().chars().count() < 600);
            prop_assert!(!error.to_string().contains(char::is_control));
        }
    }
}
