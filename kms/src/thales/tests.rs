use std::time::{Duration, UNIX_EPOCH};

use aes_gcm::{Aes256Gcm, KeyInit as _, aead::AeadInOut as _};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use proptest::prelude::*;
use serde_json::{Value, json};
use tsp_wire::{
    KmsConfigId, Secret,
    edek::{encode_unleased, looks_like_alloy_header},
    snapshot::{KmsConfigDoc, KmsKeyDoc},
};

use super::*;
use crate::{ConfigError, Kms, Retry, Roots};

/// The id of the version in the vectors.
const VERSION_ID: &str = "8f1b2c3d4e5f60718293a4b5c6d7e8f90112233445566778899aabbccddeeff0";
const PIN: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// A configuration for CipherTrust; what is changed is changed in place.
struct Config {
    username: String,
    password: String,
    auth_domain: String,
    connection: String,
    service_url: String,
    key_id: String,
    server_name: Option<String>,
    spki_pin: Option<String>,
    endpoint: Option<String>,
    allow_insecure: bool,
    ca_pem: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            username: "tsp".to_owned(),
            password: "p".to_owned(),
            auth_domain: "root".to_owned(),
            connection: "local_account".to_owned(),
            service_url: "https://cm.example".to_owned(),
            key_id: "tsp-kek".to_owned(),
            server_name: None,
            spki_pin: None,
            endpoint: None,
            allow_insecure: false,
            ca_pem: None,
        }
    }
}

impl Config {
    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut config = Self::default();
        change(&mut config);
        config
    }

    fn build(self) -> Result<Box<dyn RemoteKms>, ConfigError> {
        let doc = KmsConfigDoc {
            id: 1,
            leasing_allowed: true,
            key: KmsKeyDoc::Thales {
                username: self.username,
                password: Secret::new(self.password),
                auth_domain: self.auth_domain,
                connection: self.connection,
                service_url: self.service_url,
                key_id: self.key_id,
                server_name: self.server_name,
                spki_pin: self.spki_pin,
            },
            endpoint: self.endpoint,
            allow_insecure: self.allow_insecure,
            ca_pem: self.ca_pem,
        };
        match Kms::from_doc(&doc)? {
            Kms::Remote(thales) => Ok(thales),
            Kms::Local(_) => panic!("the document is of Thales"),
        }
    }
}

fn thales() -> Box<dyn RemoteKms> {
    Config::default().build().unwrap()
}

fn keyed(key_id: &str) -> Box<dyn RemoteKms> {
    Config::with(|config| key_id.clone_into(&mut config.key_id))
        .build()
        .unwrap()
}

/// 2026-01-15 10:15:30 UTC, the moment of most vectors.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_768_472_130)
}

/// The DEK of the vectors: 0, 1, 2, …, 31.
fn dek() -> Dek {
    Dek::fill_with(|bytes| {
        bytes
            .iter_mut()
            .zip(0..)
            .for_each(|(byte, value)| *byte = value)
    })
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../tests/data/thales-ciphertrust.json")).unwrap()
}

/// The case without additional data, of which we send none.
fn case() -> Value {
    let vectors = vectors();
    let cases = vectors["cases"].as_array().unwrap();
    let case = cases.iter().find(|case| case["name"] == "without aad");
    case.unwrap().clone()
}

fn answer<T>(
    status: u16,
    body: &Value,
    read: impl FnOnce(&HttpAnswer<'_>) -> Result<T, KmsError>,
) -> Result<T, KmsError> {
    let (headers, body) = (String::new(), body.to_string());
    read(&HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: body.as_bytes(),
    })
}

fn wrapped(kms: &dyn RemoteKms, body: &Value) -> Result<Vec<u8>, KmsError> {
    answer(200, body, |answer| kms.read_wrap(answer))
}

fn unwrapped(kms: &dyn RemoteKms, body: &Value) -> Result<Dek, KmsError> {
    answer(200, body, |answer| kms.read_unwrap(answer))
}

fn token(kms: &dyn RemoteKms, body: &Value) -> Result<Token, KmsError> {
    answer(200, body, |answer| kms.read_token(answer, now()))
}

fn some_token(kms: &dyn RemoteKms) -> Token {
    token(kms, &vectors()["token_response"]).unwrap()
}

fn wrap(kms: &dyn RemoteKms) -> HttpRequest {
    let token = some_token(kms);
    kms.wrap_request(&dek(), Some(&token), &mut Session::default(), now())
        .unwrap()
}

fn unwrap(kms: &dyn RemoteKms, blob: &[u8]) -> Result<HttpRequest, KmsError> {
    let token = some_token(kms);
    kms.unwrap_request(blob, Some(&token), &mut Session::default(), now())
}

fn body(request: &HttpRequest) -> Value {
    serde_json::from_slice(request.body()).unwrap()
}

#[test]
fn requests_are_those_of_public_clients() {
    let (kms, case) = (thales(), case());
    let request = wrap(&*kms);
    assert_eq!(request.path(), "/api/v1/crypto/encrypt");
    assert_eq!(body(&request), case["request"]);
    let blob = wrapped(&*kms, &case["response"]).unwrap();
    let other = unwrap(&*kms, &blob).unwrap();
    assert_eq!(other.path(), "/api/v1/crypto/decrypt");
    assert_eq!(body(&other), case["decrypt_request"]);
    for request in [request, other] {
        // Without an `accept` it would be refused.
        for (name, value) in [
            ("accept", "application/json"),
            ("content-type", "application/json"),
            ("host", "cm.example"),
            ("authorization", "Bearer x.y.z"),
        ] {
            assert_eq!(request.header(name).unwrap(), value);
        }
        let shown = format!("{request:?}");
        assert!(!shown.contains("x.y.z"), "{shown}");
    }
}

#[test]
fn what_other_peoples_code_encrypted_comes_back() {
    let (kms, vectors) = (thales(), vectors());
    let bytes = |name: &str| hex::decode(vectors[name].as_str().unwrap()).unwrap();
    let blob = wrapped(&*kms, &case()["response"]).unwrap();
    let sent = body(&unwrap(&*kms, &blob).unwrap());
    let part = |name: &str| BASE64.decode(sent[name].as_str().unwrap()).unwrap();
    // The appliance's part.
    let cipher = Aes256Gcm::new_from_slice(&bytes("kek_hex")).unwrap();
    let mut plain = part("ciphertext");
    let (iv, tag) = (part("iv"), part("tag"));
    cipher
        .decrypt_inout_detached(
            iv.as_slice().try_into().unwrap(),
            b"",
            plain.as_mut_slice().into(),
            tag.as_slice().try_into().unwrap(),
        )
        .unwrap();
    let dek = unwrapped(&*kms, &json!({"plaintext": BASE64.encode(plain)})).unwrap();
    assert_eq!(dek.expose(), bytes("dek_hex").as_slice());
}

#[test]
fn a_blob_is_a_small_message() {
    let response = json!({
        "ciphertext": BASE64.encode([0xc1; 32]), "tag": BASE64.encode([0xa6; 16]), "iv": BASE64.encode([0x17; 12]),
        "version": 0, "id": VERSION_ID, "mode": "gcm",
    });
    let mut expected = vec![0x0a, 0x20]; // field 1, bytes, 32 of them
    expected.extend([0xc1; 32]);
    expected.extend([0x12, 0x0c]); // field 2, bytes, 12 of them
    expected.extend([0x17; 12]);
    expected.extend([0x1a, 0x10]); // field 3, bytes, 16 of them
    expected.extend([0xa6; 16]);
    expected.extend([0x20, 0x00]); // field 4, number: version 0 is one, too
    assert_eq!(wrapped(&*thales(), &response).unwrap(), expected);
    assert_eq!(expected.len(), 68);
    expected.extend([0x2a, 0x40]); // field 5, string, 64 characters
    expected.extend(VERSION_ID.as_bytes());
    assert_eq!(wrapped(&*keyed(VERSION_ID), &response).unwrap(), expected);
}

#[test]
fn a_key_that_is_named_by_the_id_of_a_version_is_unwrapped_by_the_stored_id() {
    let configured = "a".repeat(64);
    let uri = "kylo:kylo:vault:keys:tsp-kek-v2";
    for (key_id, kind) in [(configured.as_str(), "id"), (uri, "uri")] {
        let kms = keyed(key_id);
        let sent = body(&wrap(&*kms));
        assert_eq!((&sent["id"], &sent["type"]), (&json!(key_id), &json!(kind)));
        let blob = wrapped(&*kms, &case()["response"]).unwrap();
        let sent = body(&unwrap(&*kms, &blob).unwrap());
        assert_eq!(
            (&sent["id"], &sent["type"]),
            (&json!(VERSION_ID), &json!("id"))
        );
        assert_eq!(sent.get("version"), None);
        // An older blob, of when the key was configured by its name.
        let blob = wrapped(&*thales(), &case()["response"]).unwrap();
        let sent = body(&unwrap(&*kms, &blob).unwrap());
        assert_eq!((&sent["id"], &sent["type"]), (&json!(key_id), &json!(kind)));
        assert_eq!(sent.get("version"), None);
    }
    // And the other way round.
    let blob = wrapped(&*keyed(&configured), &case()["response"]).unwrap();
    assert_eq!(
        body(&unwrap(&*thales(), &blob).unwrap()),
        case()["decrypt_request"]
    );
}

#[test]
fn unusable_answers_are_204_or_205() {
    let good = case()["response"].clone();
    let set = |member: &str, value: Value| {
        let mut body = good.clone();
        body[member] = value;
        body
    };
    let b64 = |bytes: usize| json!(BASE64.encode(vec![1; bytes]));
    for body in [
        json!({}),
        json!([]),
        set("ciphertext", json!(null)),
        set("ciphertext", json!("")),
        set("ciphertext", b64(31)),
        set("ciphertext", b64(33)),
        set("ciphertext", b64(48)),
        set("tag", json!(null)),
        set("tag", b64(12)),
        set("tag", b64(17)),
        set("iv", json!(7)),
        set("iv", b64(11)),
        set("iv", b64(17)),
        set("iv", json!("AAECAwQFBgcICQo")),
        set("version", json!(null)),
        set("version", json!(-1)),
        set("version", json!(1.5)),
        set("version", json!("2")),
        set("version", json!(1_u64 << 32)),
    ] {
        let error = wrapped(&*thales(), &body).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 204, "{body}");
        assert_eq!(error.retry(), Retry::No);
    }
    for body in [
        set("id", json!(null)),
        set("id", json!("a\"b")),
        set("id", json!("a".repeat(129))),
    ] {
        let error = wrapped(&*keyed(VERSION_ID), &body).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 204, "{body}");
        // By its name, nobody needs it.
        assert!(wrapped(&*thales(), &body).is_ok());
    }
    for body in [
        json!({}),
        json!({"plaintext": null}),
        json!({"plaintext": ""}),
        json!({"plaintext": b64(31)}),
        json!({"plaintext": b64(33)}),
        json!({"plaintext": "-".repeat(43) + "="}),
    ] {
        let error = unwrapped(&*thales(), &body).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 205, "{body}");
    }
}

#[test]
fn what_an_appliance_cannot_have_made_is_not_sent() {
    let sound = Blob {
        ciphertext: vec![1; 32],
        iv: vec![2; 12],
        tag: vec![3; 16],
        version: Some(4),
        id: String::new(),
    };
    let spoilt = |spoil: fn(&mut Blob)| {
        let mut blob = sound.clone();
        spoil(&mut blob);
        blob.encode_to_vec()
    };
    assert!(unwrap(&*thales(), &sound.encode_to_vec()).is_ok());
    let blobs = [
        Vec::new(),
        vec![0xff; 68],
        b"LKW1 and whatever".to_vec(),
        spoilt(|blob| blob.ciphertext.push(1)),
        spoilt(|blob| blob.iv.clear()),
        spoilt(|blob| blob.tag.truncate(12)),
        spoilt(|blob| blob.version = None),
        spoilt(|blob| blob.id = "a\",\"version\":\"1".to_owned()),
    ];
    for blob in blobs {
        let error = unwrap(&*thales(), &blob).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 205, "{blob:?}");
    }
}

#[test]
fn standard_base64_has_one_spelling() {
    let data: Value = serde_json::from_str(include_str!("../../tests/data/base64.json")).unwrap();
    for case in data["cases"].as_array().unwrap() {
        let bytes = hex::decode(case["hex"].as_str().unwrap()).unwrap();
        let body = object(&[("v", Member::Base64(&bytes))]);
        let spelt: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(spelt["v"], case["base64"]);
    }
    for text in data["invalid_base64"].as_array().unwrap() {
        let text = text.as_str().unwrap();
        // What is wrong with it stays wrong behind other digits.
        let long = "A".repeat(40) + text;
        assert!(unwrapped(&*thales(), &json!({"plaintext": long})).is_err());
        let mut body = case()["response"].clone();
        body["ciphertext"] = json!(long);
        assert!(wrapped(&*thales(), &body).is_err(), "{text}");
    }
}

#[test]
fn a_request_needs_a_bearer_token() {
    let error = thales()
        .wrap_request(&dek(), None, &mut Session::default(), now())
        .unwrap_err();
    assert_eq!(error.kind().tsp_code().number(), 206);
}

fn step(
    kms: &dyn RemoteKms,
    last: Option<&Token>,
    refused: Option<&KmsError>,
    session: &mut Session,
) -> Result<Value, KmsError> {
    match kms.token_step(last, refused, session, now())? {
        TokenStep::Call(call) => {
            assert_eq!(&call.endpoint, kms.endpoint());
            assert_eq!(call.request.path(), "/api/v1/auth/tokens");
            assert_eq!(call.request.header("accept").unwrap(), "application/json");
            assert_eq!(
                call.request.header("content-type").unwrap(),
                "application/json"
            );
            Ok(body(&call.request))
        }
        TokenStep::Sign(_) => panic!("nothing is signed"),
    }
}

/// What the appliance says when it takes neither password nor refresh token.
fn refused(kms: &dyn RemoteKms, status: u16) -> KmsError {
    let body = &vectors()["errors"][0]["body"];
    answer(status, body, |answer| kms.read_token(answer, now())).unwrap_err()
}

/// Without what bounds the refresh token, which the public clients of the vectors do not send.
fn bounded(mut body: Value) -> Value {
    let members = body.as_object_mut().unwrap();
    assert_eq!(members.remove("refresh_token_lifetime"), Some(json!(60)));
    assert_eq!(
        members.remove("refresh_token_revoke_unused_in"),
        Some(json!(15))
    );
    body
}

#[test]
fn log_ins_are_those_of_public_clients() {
    let vectors = vectors();
    let expected = |index: usize| vectors["token_requests"][index]["body"].clone();
    for domain in ["root", ""] {
        let kms = Config::with(|c| c.auth_domain = domain.to_owned())
            .build()
            .unwrap();
        let sent = step(&*kms, None, None, &mut Session::default()).unwrap();
        assert_eq!(bounded(sent), expected(0));
    }
    let kms = Config::with(|c| c.auth_domain = "tenant-1".to_owned())
        .build()
        .unwrap();
    let mut sent = bounded(step(&*kms, None, None, &mut Session::default()).unwrap());
    // The key is in that domain, too.
    assert_eq!(
        sent.as_object_mut().unwrap().remove("domain"),
        Some(json!("tenant-1"))
    );
    assert_eq!(sent, expected(1));
    let kms = thales();
    let token = some_token(&*kms);
    let sent = step(&*kms, Some(&token), None, &mut Session::default()).unwrap();
    assert_eq!(sent, expected(2));
}

#[test]
fn a_password_of_odd_characters_arrives_as_it_is() {
    let password = "p\"\\/ä\u{1f512}'&<>";
    let kms = Config::with(|c| c.password = password.to_owned())
        .build()
        .unwrap();
    let sent = step(&*kms, None, None, &mut Session::default()).unwrap();
    assert_eq!(sent["password"], password);
}

#[test]
fn a_token_is_renewed_a_minute_before_its_end() {
    let kms = thales();
    let mut body = vectors()["token_response"].clone();
    let token_ = some_token(&*kms);
    assert_eq!(token_.header(), Some("Bearer x.y.z"));
    let after = |time: SystemTime| time.duration_since(now()).unwrap().as_secs();
    assert_eq!(after(token_.renew_at()), 240);
    assert_eq!(after(token_.expires_at()), 290);
    // One that lives for less is renewed at half its life.
    body["duration"] = json!(60);
    let short = token(&*kms, &body).unwrap();
    assert_eq!(after(short.renew_at()), 30);
}

#[test]
fn what_is_no_token_is_not_taken_for_one() {
    for body in [
        json!({}),
        json!({"jwt": "x"}),
        json!({"jwt": "x", "duration": 0}),
        json!({"jwt": "x", "duration": -1}),
        json!({"jwt": "", "duration": 300}),
        json!({"jwt": "a b", "duration": 300}),
        json!({"jwt": "a".repeat(16_385), "duration": 300}),
        json!({"jwt": 7, "duration": 300}),
    ] {
        let error = token(&*thales(), &body).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 208, "{body}");
    }
    // A refresh token that is none costs the next log-in only.
    let body = json!({"jwt": "x", "duration": 300, "refresh_token": "a\nb"});
    assert!(token(&*thales(), &body).unwrap().refresh.is_none());
}

#[test]
fn the_refresh_token_goes_first_and_the_password_follows_when_it_is_refused() {
    let (kms, mut session) = (thales(), Session::default());
    let last = some_token(&*kms);
    let first = step(&*kms, Some(&last), None, &mut session).unwrap();
    assert_eq!(first["grant_type"], "refresh_token");
    let invalid = refused(&*kms, 401);
    assert_eq!(invalid.retry(), Retry::AfterNewToken);
    let second = step(&*kms, Some(&last), Some(&invalid), &mut session).unwrap();
    assert_eq!(second["grant_type"], "password");
    // Then there is no way left.
    let error = step(&*kms, Some(&last), Some(&invalid), &mut session).unwrap_err();
    assert_eq!(error.kind().tsp_code().number(), 206);
    assert_eq!(error.retry(), Retry::No);
    assert_eq!(error.sentence(), "Wrong username or password.");
    // Later it is the password again, until there is another token.
    let later = step(&*kms, Some(&last), None, &mut session).unwrap();
    assert_eq!(later["grant_type"], "password");
    let mut body = vectors()["token_response"].clone();
    body["duration"] = json!(600);
    let next = token(&*kms, &body).unwrap();
    let renewed = step(&*kms, Some(&next), None, &mut session).unwrap();
    assert_eq!(renewed["grant_type"], "refresh_token");
}

#[test]
fn a_refresh_token_that_brought_nothing_is_not_tried_twice_for_the_same_token() {
    let (kms, mut session) = (thales(), Session::default());
    let last = some_token(&*kms);
    step(&*kms, Some(&last), None, &mut session).unwrap();
    // Nobody says how it ended: it may have been lost.
    let again = step(&*kms, Some(&last), None, &mut session).unwrap();
    assert_eq!(again["grant_type"], "password");
}

#[test]
fn a_token_that_the_crypto_calls_refuse_is_refreshed() {
    let (kms, mut session) = (thales(), Session::default());
    let last = some_token(&*kms);
    let body = json!({"code": 5, "codeDesc": "NCERRUnauthorizedAccess: Bearer token malformed: Token is expired by 3s"});
    let error = answer(401, &body, |answer| kms.read_unwrap(answer)).unwrap_err();
    assert_eq!(error.retry(), Retry::AfterNewToken);
    let sent = step(&*kms, Some(&last), Some(&error), &mut session).unwrap();
    assert_eq!(sent["grant_type"], "refresh_token");
}

#[test]
fn a_domain_that_is_refused_is_left_out_until_that_is_refused_too() {
    let kms = Config::with(|c| c.auth_domain = "tenant-1".to_owned())
        .build()
        .unwrap();
    for status in [401, 403] {
        let mut session = Session::default();
        let with_domain = |sent: &Value| {
            (
                sent.get("domain").is_some(),
                sent["auth_domain"] == "tenant-1",
            )
        };
        let error = refused(&*kms, status);
        let sent = step(&*kms, None, None, &mut session).unwrap();
        assert_eq!(with_domain(&sent), (true, true));
        // A failure that says nothing about it changes nothing.
        let lost = KmsError::unreachable(
            KIND,
            KmsOperation::Token,
            Retry::Transient,
            crate::Blame::Kms,
            "timeout",
        );
        let sent = step(&*kms, None, Some(&lost), &mut session).unwrap();
        assert_eq!(with_domain(&sent), (true, true));
        let sent = step(&*kms, None, Some(&error), &mut session).unwrap();
        assert_eq!(with_domain(&sent), (false, true));
        // That worked, and it is remembered.
        let token = some_token(&*kms);
        let sent = step(&*kms, Some(&token), None, &mut session).unwrap();
        assert_eq!(sent["grant_type"], "refresh_token");
        let sent = step(&*kms, Some(&token), Some(&error), &mut session).unwrap();
        assert_eq!(with_domain(&sent), (false, true));
        // Until it does not work any more.
        let last = step(&*kms, Some(&token), Some(&error), &mut session).unwrap_err();
        assert_eq!(last.kind(), error.kind());
        assert_eq!(last.retry(), Retry::No);
        let sent = step(&*kms, Some(&token), None, &mut session).unwrap();
        assert_eq!(with_domain(&sent), (true, true));
    }
}

#[test]
fn a_session_forgets_the_log_ins_of_another_user() {
    let mut session = Session::default();
    let kms = Config::with(|c| c.auth_domain = "tenant-1".to_owned())
        .build()
        .unwrap();
    step(&*kms, None, None, &mut session).unwrap();
    step(&*kms, None, Some(&refused(&*kms, 401)), &mut session).unwrap();
    let changed = Config::with(|c| {
        c.auth_domain = "tenant-1".to_owned();
        c.password = "new".to_owned();
    });
    let sent = step(&*changed.build().unwrap(), None, None, &mut session).unwrap();
    assert!(sent.get("domain").is_some());
}

#[test]
fn the_endpoint_carries_what_the_certificate_is_checked_against() {
    let ca = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let kms = Config::with(|c| {
        c.service_url = "https://10.0.0.7:8443/".to_owned();
        c.server_name = Some("CM.internal".to_owned());
        c.spki_pin = Some(PIN.to_owned());
        c.ca_pem = Some(ca.to_owned());
    })
    .build()
    .unwrap();
    let endpoint = kms.endpoint();
    assert_eq!((endpoint.host.as_str(), endpoint.port), ("10.0.0.7", 8443));
    assert_eq!(endpoint.tls_name(), "cm.internal");
    assert_eq!(endpoint.roots, Roots::Pem(ca.into()));
    // The hash of nothing at all.
    assert_eq!(
        hex::encode(endpoint.spki_pin.unwrap()),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    assert_eq!(wrap(&*kms).header("host").unwrap(), "10.0.0.7:8443");
    let plain = thales();
    assert_eq!(plain.endpoint().tls_name(), "cm.example");
    assert_eq!(plain.endpoint().spki_pin, None);
    for (spelling, name) in [("10.0.0.8", "10.0.0.8"), ("FE80::1", "fe80::1")] {
        let kms = Config::with(|c| c.server_name = Some(spelling.to_owned()))
            .build()
            .unwrap();
        assert_eq!(kms.endpoint().tls_name(), name);
    }
    for spelling in [format!("sha256/{PIN}"), format!("sha256//{PIN}")] {
        let kms = Config::with(|c| c.spki_pin = Some(spelling)).build();
        assert_eq!(kms.unwrap().endpoint().spki_pin, endpoint.spki_pin);
    }
}

#[test]
fn what_cannot_be_right_is_named() {
    let long = || "a".repeat(257);
    let wrong: Vec<(&str, Config)> = vec![
        ("username", Config::with(|c| c.username = String::new())),
        ("username", Config::with(|c| c.username = "a\nb".to_owned())),
        ("password", Config::with(|c| c.password = String::new())),
        ("password", Config::with(|c| c.password = "p\n".to_owned())),
        ("password", Config::with(|c| c.password = "p".repeat(1025))),
        ("authDomain", Config::with(|c| c.auth_domain = long())),
        (
            "connection",
            Config::with(|c| c.connection = "a\0".to_owned()),
        ),
        ("keyId", Config::with(|c| c.key_id = String::new())),
        ("keyId", Config::with(|c| c.key_id = long())),
        (
            "serviceUrl",
            Config::with(|c| c.service_url = "http://cm.example".to_owned()),
        ),
        (
            "serviceUrl",
            Config::with(|c| c.service_url = "https://cm.example/api".to_owned()),
        ),
        (
            "serviceUrl",
            Config::with(|c| c.service_url = "https://u:p@cm.example".to_owned()),
        ),
        (
            "serviceUrl",
            Config::with(|c| c.service_url = "cm.example".to_owned()),
        ),
        (
            "serverName",
            Config::with(|c| c.server_name = Some("a b".to_owned())),
        ),
        (
            "serverName",
            Config::with(|c| c.server_name = Some(String::new())),
        ),
        (
            "spkiPin",
            Config::with(|c| c.spki_pin = Some("AAAA".to_owned())),
        ),
        (
            "spkiPin",
            Config::with(|c| c.spki_pin = Some(PIN.replace('=', ""))),
        ),
        (
            "spkiPin",
            Config::with(|c| {
                c.spki_pin = Some(PIN.to_owned());
                c.service_url = "http://cm.example".to_owned();
                c.allow_insecure = true;
            }),
        ),
        (
            "serviceUrl",
            Config::with(|c| {
                c.endpoint = Some("https://cm.internal".to_owned());
                c.service_url = "nonsense".to_owned();
            }),
        ),
    ];
    for (member, config) in wrong {
        assert_eq!(config.build().unwrap_err().member(), member);
    }
}

#[test]
fn equal_credentials_share_a_token_and_different_ones_do_not() {
    let id = |config: Config| config.build().unwrap().credential().unwrap();
    let base = id(Config::default());
    assert_eq!(base, id(Config::with(|c| c.key_id = "other".to_owned())));
    assert_eq!(base, id(Config::with(|c| c.auth_domain = String::new())));
    let others = [
        Config::with(|c| c.username = "other".to_owned()),
        Config::with(|c| c.password = "other".to_owned()),
        Config::with(|c| c.connection = "other".to_owned()),
        Config::with(|c| c.auth_domain = "other".to_owned()),
        Config::with(|c| c.service_url = "https://other.example".to_owned()),
        Config::with(|c| c.spki_pin = Some(PIN.to_owned())),
    ];
    let mut ids: Vec<_> = others.into_iter().map(id).collect();
    ids.push(base);
    for (index, one) in ids.iter().enumerate() {
        assert!(!ids[..index].contains(one), "{index}");
    }
}

#[test]
fn nothing_prints_a_secret() {
    const SECRET: &str = "CANARYpassword";
    let kms = Config::with(|config| config.password = SECRET.to_owned())
        .build()
        .unwrap();
    let body = json!({"jwt": "CANARYjwt", "refresh_token": "CANARYrefresh", "duration": 300});
    let token = token(&*kms, &body).unwrap();
    let mut session = Session::default();
    let mut texts = vec![format!("{kms:?} {kms:#?} {token:?} {token:#?}")];
    for last in [None, Some(&token)] {
        let step = kms.token_step(last, None, &mut session, now()).unwrap();
        texts.push(format!("{step:?} {session:?}"));
        let TokenStep::Call(call) = step else {
            panic!("nothing is signed")
        };
        // The canary is there to be seen.
        assert!(String::from_utf8_lossy(call.request.body()).contains("CANARY"));
        texts.push(format!("{call:?} {call:#?}"));
    }
    let request = kms
        .wrap_request(&dek(), Some(&token), &mut session, now())
        .unwrap();
    texts.push(format!("{request:?} {request:#?}"));
    for text in texts {
        let list = format!("{:?}", SECRET.as_bytes());
        for spelling in [
            "CANARY",
            "AAECAwQFBgcI",
            &list[1..20],
            &hex::encode(SECRET)[..20],
        ] {
            assert!(!text.contains(spelling), "{spelling} in {text}");
        }
    }
}

#[test]
fn a_refused_configuration_does_not_repeat_what_it_holds() {
    const CANARY: &str = "CANARYsecret";
    let line = || format!("{CANARY}\n");
    let wrong = [
        Config::with(|c| c.username = line()),
        Config::with(|c| c.password = line()),
        Config::with(|c| c.auth_domain = line()),
        Config::with(|c| c.connection = line()),
        Config::with(|c| c.key_id = line()),
        Config::with(|c| c.service_url = format!("https://u:{CANARY}@cm.example")),
        Config::with(|c| c.server_name = Some(line())),
        Config::with(|c| c.spki_pin = Some(line())),
    ];
    for config in wrong {
        let error = config.build().unwrap_err();
        assert!(!format!("{error} {error:?}").contains(CANARY), "{error}");
    }
}

proptest! {
    #[test]
    fn what_an_appliance_echoes_does_not_come_out(
        canary in prop_oneof![
            "[A-Za-z0-9+/]{30,200}[0-9]==?",
            "[A-Za-z0-9_-]{30,200}[0-9]",
            "[0-9a-f]{32,128}[0-9]",
        ],
        status in prop_oneof![Just(200_u16), Just(400), Just(401), Just(403), Just(503), 0..700_u16],
    ) {
        let bodies = [
            json!({"codeDesc": canary, "message": canary, "requestID": canary}),
            json!({"codeDesc": format!("NCERRBadRequest: {canary}"), "requestID": canary}),
            json!({"ciphertext": canary, "tag": canary, "iv": canary, "version": canary, "id": canary}),
            json!({"plaintext": canary}),
            json!({"jwt": canary, "duration": canary}),
            json!(canary),
        ];
        let kms = thales();
        for body in bodies {
            let (headers, body) = (String::new(), body.to_string());
            let answer = HttpAnswer { status, headers: headers.as_bytes(), body: body.as_bytes() };
            let errors = [
                kms.read_wrap(&answer).err(),
                kms.read_unwrap(&answer).err(),
                kms.read_token(&answer, now()).err(),
            ];
            for error in errors.into_iter().flatten() {
                let text = format!("{error} {error:?}");
                for piece in canary.as_bytes().windows(12) {
                    let piece = std::str::from_utf8(piece).unwrap();
                    prop_assert!(!text.contains(piece), "{} in {}", piece, text);
                }
            }
        }
    }

    #[test]
    fn no_edek_looks_like_a_header_of_alloy(
        ciphertext in any::<[u8; 32]>(),
        iv in prop::collection::vec(any::<u8>(), 12..=16),
        tag in any::<[u8; 16]>(),
        version in any::<u32>(),
        key_id in prop_oneof![Just("tsp-kek"), Just(VERSION_ID)],
        id in 1..i32::MAX,
    ) {
        let body = json!({
            "ciphertext": BASE64.encode(ciphertext), "iv": BASE64.encode(&iv), "tag": BASE64.encode(tag),
            "version": version, "id": VERSION_ID,
        });
        let kms = keyed(key_id);
        let blob = wrapped(&*kms, &body).unwrap();
        let id = KmsConfigId::new(id.into()).unwrap();
        prop_assert!(!looks_like_alloy_header(&encode_unleased(id, &blob)));
        prop_assert!(unwrap(&*kms, &blob).is_ok());
    }

    #[test]
    fn no_blob_and_no_answer_panics(
        blob in prop::collection::vec(any::<u8>(), 0..200),
        status in prop_oneof![Just(200_u16), 0..700_u16],
        said in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "[{}\\[\\]\":,a-z0-9\\\\]{0,80}".prop_map(String::into_bytes),
            r#"\{"(codeDesc|message|jwt|ciphertext|plaintext)":("[ -~]{0,20}"|7)\}"#.prop_map(String::into_bytes),
        ],
    ) {
        let kms = thales();
        let _ = unwrap(&*kms, &blob);
        let headers = String::new();
        let answer = HttpAnswer { status, headers: headers.as_bytes(), body: &said };
        for error in [
            kms.read_wrap(&answer).err(),
            kms.read_unwrap(&answer).err(),
            kms.read_token(&answer, now()).err(),
        ]
        .into_iter()
        .flatten()
        {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
