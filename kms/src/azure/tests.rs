use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use proptest::prelude::*;
use serde_json::{Value, json};
use tsp_wire::{
    KmsConfigId, Secret,
    edek::{encode_unleased, looks_like_alloy_header},
    snapshot::{KmsConfigDoc, KmsKeyDoc},
};

use super::*;
use crate::{ConfigError, Kms, Retry, Roots, Signed, TokenCall, rsa::pem_section};

const TENANT: &str = "72f988bf-0000-4000-8000-2d7cd011db47";
const CLIENT: &str = "6731de76-14a6-49ae-97bc-6eba6914391e";
const VERSION: &str = "78deebed173b48e48f55abf87ed4cf71";
const CERTIFICATE: &str = include_str!("../../tests/data/azure-TEST-ONLY-client-cert.pem");
const CLIENT_KEY: &str = include_str!("../../tests/data/azure-TEST-ONLY-client-key.pem");
const VAULT_KEY: &str = include_str!("../../tests/data/azure-TEST-ONLY-vault-rsa-key.pem");

/// Sizes of what RSA keys wrap to.
const RSA_BYTES: [usize; 3] = [256, 384, 512];

/// A configuration for Azure; what is changed is changed in place.
struct Config {
    client_id: String,
    client_secret: Option<String>,
    client_certificate: Option<String>,
    tenant_guid: String,
    vault_base_url: String,
    key_name: String,
    algorithm: Option<String>,
    authority: Option<String>,
    endpoint: Option<String>,
    allow_insecure: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            client_id: CLIENT.to_owned(),
            client_secret: Some("Q~test+secret/with=odd&chars".to_owned()),
            client_certificate: None,
            tenant_guid: TENANT.to_owned(),
            vault_base_url: "https://tsp-test.vault.azure.net".to_owned(),
            key_name: "tenant-1".to_owned(),
            algorithm: None,
            authority: None,
            endpoint: None,
            allow_insecure: false,
        }
    }
}

impl Config {
    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut config = Self::default();
        change(&mut config);
        config
    }

    fn with_certificate(pem: String) -> Self {
        Self::with(|config| {
            config.client_secret = None;
            config.client_certificate = Some(pem);
        })
    }

    fn build(self) -> Result<Box<dyn RemoteKms>, ConfigError> {
        let doc = KmsConfigDoc {
            id: 1,
            leasing_allowed: true,
            key: KmsKeyDoc::Azure {
                client_id: self.client_id,
                client_secret: self.client_secret.map(Secret::new),
                client_certificate: self.client_certificate.map(Secret::new),
                tenant_guid: self.tenant_guid,
                vault_base_url: self.vault_base_url,
                key_name: self.key_name,
                algorithm: self.algorithm,
                authority: self.authority,
            },
            endpoint: self.endpoint,
            allow_insecure: self.allow_insecure,
            ca_pem: None,
        };
        match Kms::from_doc(&doc)? {
            Kms::Remote(azure) => Ok(azure),
            Kms::Local(_) => panic!("the document is of Azure"),
        }
    }
}

fn azure() -> Box<dyn RemoteKms> {
    Config::default().build().unwrap()
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

fn answered(status: u16, body: &Value) -> (String, u16, Vec<u8>) {
    (String::new(), status, body.to_string().into_bytes())
}

fn wrapped(kms: &dyn RemoteKms, body: &Value) -> Result<Vec<u8>, KmsError> {
    let (headers, status, body) = answered(200, body);
    kms.read_wrap(&HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: &body,
    })
}

fn unwrapped(kms: &dyn RemoteKms, body: &Value) -> Result<Dek, KmsError> {
    let (headers, status, body) = answered(200, body);
    kms.read_unwrap(&HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: &body,
    })
}

fn token(kms: &dyn RemoteKms) -> Token {
    let body = json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "TEST-TOKEN"});
    let (headers, status, body) = answered(200, &body);
    let answer = HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: &body,
    };
    kms.read_token(&answer, now()).unwrap()
}

fn wrap(kms: &dyn RemoteKms) -> HttpRequest {
    kms.wrap_request(&dek(), Some(&token(kms)), &mut Session::default(), now())
        .unwrap()
}

fn unwrap(kms: &dyn RemoteKms, blob: &[u8]) -> Result<HttpRequest, KmsError> {
    kms.unwrap_request(blob, Some(&token(kms)), &mut Session::default(), now())
}

fn header<'a>(request: &'a HttpRequest, name: &str) -> &'a str {
    request.header(name).unwrap()
}

fn body(request: &HttpRequest) -> Value {
    serde_json::from_slice(request.body()).unwrap()
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../tests/data/azure-key-vault.json")).unwrap()
}

fn kid(version: &str) -> String {
    format!("https://tsp-test.vault.azure.net/keys/tenant-1/{version}")
}

#[test]
fn requests_are_those_of_microsofts_own_client_but_for_the_api_version() {
    let (kms, vectors) = (azure(), vectors());
    let sent = |verb: &str| {
        let wire = vectors["wire"].as_array().unwrap();
        wire.iter()
            .find(|call| {
                call["url"].as_str().unwrap().contains(verb) && !call["body_utf8"].is_null()
            })
            .unwrap()
            .clone()
    };
    let path = |call: &Value| {
        let url = call["url"].as_str().unwrap();
        let path = url
            .strip_prefix("https://tsp-test.vault.azure.net")
            .unwrap();
        path.replace("2025-07-01", "7.4")
    };
    let check = |request: &HttpRequest, call: &Value| {
        for (name, value) in call["headers"].as_object().unwrap() {
            if name != "Content-Length" {
                assert_eq!(header(request, name), value.as_str().unwrap());
            }
        }
        assert_eq!(header(request, "host"), "tsp-test.vault.azure.net");
        let shown = format!("{request:?}");
        assert!(!shown.contains(header(request, "authorization")), "{shown}");
        let sent: Value = serde_json::from_str(call["body_utf8"].as_str().unwrap()).unwrap();
        assert_eq!(body(request), sent);
    };

    let call = sent("/wrapkey");
    let request = wrap(&*kms);
    assert_eq!(request.path(), path(&call).replace(VERSION, ""));
    assert_eq!(request.path(), "/keys/tenant-1//wrapkey?api-version=7.4");
    check(&request, &call);

    let call = sent("/unwrapkey");
    let sent: Value = serde_json::from_str(call["body_utf8"].as_str().unwrap()).unwrap();
    let blob = wrapped(&*kms, &json!({"kid": kid(VERSION), "value": sent["value"]})).unwrap();
    let request = unwrap(&*kms, &blob).unwrap();
    assert_eq!(request.path(), path(&call));
    check(&request, &call);
}

/// A vault with the vectors' key: what it would answer to an unwrap.
fn vault_unwraps(request: &HttpRequest) -> Value {
    let pem = pem_section(VAULT_KEY, "PRIVATE KEY").unwrap();
    let key = PrivateDecryptingKey::from_pkcs8(&pem).unwrap();
    let key = OaepPrivateDecryptingKey::new(key).unwrap();
    let request = body(request);
    assert_eq!(request["alg"], "RSA-OAEP-256");
    let value = BASE64URL
        .decode(request["value"].as_str().unwrap())
        .unwrap();
    let mut plain = vec![0; key.min_output_size()];
    let plain = key
        .decrypt(&OAEP_SHA256_MGF1SHA256, &value, &mut plain, None)
        .unwrap();
    json!({"kid": kid(VERSION), "value": BASE64URL.encode(plain)})
}

#[test]
fn what_other_peoples_code_wrapped_comes_back() {
    let (kms, vectors) = (azure(), vectors());
    let expected = hex::decode(vectors["dek_hex"].as_str().unwrap()).unwrap();
    let mut count = 0;
    for case in vectors["wrapped"].as_array().unwrap() {
        if case["alg"] != "RSA-OAEP-256" {
            continue;
        }
        let blob = wrapped(&*kms, &json!({"kid": kid(VERSION), "value": case["value"]})).unwrap();
        let answer = vault_unwraps(&unwrap(&*kms, &blob).unwrap());
        assert_eq!(
            unwrapped(&*kms, &answer).unwrap().expose(),
            expected.as_slice()
        );
        count += 1;
    }
    assert_eq!(count, 2);
}

#[test]
fn the_blob_is_the_published_message() {
    let kms = azure();
    let value = BASE64URL.encode([0x5a; 256]);
    let blob = wrapped(&*kms, &json!({"kid": kid(VERSION), "value": value})).unwrap();
    let mut expected = vec![
        0x0a, 0x80, 0x02, // field 1, bytes, 256 of them
    ];
    expected.extend([0x5a; 256]);
    expected.extend([0x12, 0x20]); // field 2, string, 32 characters
    expected.extend(VERSION.as_bytes());
    assert_eq!(blob, expected);
    // As long as the ones that were published.
    assert_eq!(blob.len(), 293);
}

#[test]
fn an_older_blob_without_a_version_is_unwrapped_with_the_current_one() {
    let kms = azure();
    // An empty message by accident: fields that we do not know, to the end.
    let mut accident = vec![0x7a, 0xfd, 0x01];
    accident.extend([9; 253]);
    // A message by accident whose first field is too short to be a ciphertext.
    let mut short = vec![0x0a, 0x04, 1, 2, 3, 4, 0x7a, 0xf7, 0x01];
    short.extend([9; 247]);
    let no_version = Blob {
        wrapped: vec![7; 384],
        version: String::new(),
    };
    for (blob, value) in [
        (vec![0xff; 256], vec![0xff; 256]),
        (vec![8; 512], vec![8; 512]),
        (accident.clone(), accident),
        (short.clone(), short),
        (no_version.encode_to_vec(), vec![7; 384]),
    ] {
        let request = unwrap(&*kms, &blob).unwrap();
        assert_eq!(request.path(), "/keys/tenant-1//unwrapkey?api-version=7.4");
        assert_eq!(body(&request)["value"], BASE64URL.encode(value));
    }
}

#[test]
fn what_azure_cannot_have_made_is_not_sent() {
    let kms = azure();
    let with = |bytes: usize, version: &str| {
        let (wrapped, version) = (vec![7; bytes], version.to_owned());
        Blob { wrapped, version }.encode_to_vec()
    };
    let blobs = [
        Vec::new(),
        vec![7; 255],
        vec![7; 257],
        b"LKW1 and whatever".to_vec(),
        with(40, VERSION),
        with(255, VERSION),
        with(256, "../../secrets/s"),
        with(256, "a?b"),
        with(256, &"a".repeat(65)),
    ];
    for blob in blobs {
        let error = unwrap(&*kms, &blob).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 205, "{blob:?}");
        assert_eq!(error.retry(), Retry::No);
    }
}

#[test]
fn the_key_that_wrapped_must_be_ours_and_say_its_version() {
    let value = BASE64URL.encode([1; 256]);
    let kms = azure();
    let version_of = |kid: &str| {
        let blob = wrapped(&*kms, &json!({"kid": kid, "value": value}))?;
        Ok::<_, KmsError>(Blob::decode(blob.as_slice()).unwrap().version)
    };
    let vectors = vectors();
    let pieces = &vectors["kid_pieces"];
    assert_eq!(
        version_of(pieces["kid"].as_str().unwrap()).unwrap(),
        pieces["version"].as_str().unwrap()
    );
    for kid in [
        "https://TSP-TEST.vault.azure.net/keys/Tenant-1/abc",
        "https://tsp-test.vault.azure.net:443/keys/tenant-1/abc",
    ] {
        assert_eq!(version_of(kid).unwrap(), "abc");
    }
    let without_version = [
        "https://tsp-test.vault.azure.net/keys/tenant-1",
        "https://tsp-test.vault.azure.net/keys/tenant-1/",
    ];
    for kid in without_version {
        let error = version_of(kid).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 204);
        assert!(error.to_string().contains("which version"), "{error}");
    }
    let others = [
        "https://other.vault.azure.net/keys/tenant-1/abc",
        "https://tsp-test.vault.azure.net/keys/tenant-2/abc",
        "https://tsp-test.vault.azure.net/secrets/tenant-1/abc",
        "https://tsp-test.vault.azure.net:8443/keys/tenant-1/abc",
        "http://tsp-test.vault.azure.net/keys/tenant-1/abc",
        "https://tsp-test.vault.azure.net.evil.example/keys/tenant-1/abc",
        "https://tsp-test.vault.azure.net/keys/tenant-1/abc/def",
        "https://tsp-test.vault.azure.net/keys/tenant-1/a%2Fb",
        "tenant-1",
        "",
    ];
    for kid in others {
        let error = version_of(kid).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 204, "{kid}");
        assert_eq!(error.retry(), Retry::No);
    }
}

#[test]
fn unusable_answers_are_204_or_205() {
    let kms = azure();
    let value = |bytes: usize| BASE64URL.encode(vec![1; bytes]);
    let kid = kid(VERSION);
    for body in [
        json!({}),
        json!([]),
        json!({"kid": kid}),
        json!({"kid": kid, "value": 7}),
        json!({"kid": kid, "value": ""}),
        json!({"kid": kid, "value": value(40)}),
        json!({"kid": kid, "value": value(255)}),
        json!({"kid": kid, "value": value(1024)}),
        json!({"kid": 7, "value": value(256)}),
        json!({"value": value(256)}),
        // Stray padding.
        json!({"kid": kid, "value": format!("{}==", value(256))}),
    ] {
        let error = wrapped(&*kms, &body).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 204, "{body}");
    }
    for body in [
        json!({}),
        json!({"value": null}),
        json!({"value": ""}),
        json!({"value": value(31)}),
        json!({"value": value(33)}),
        json!({"value": value(3000)}),
        json!({"value": format!("{}=", value(32))}),
        json!({"value": format!("{} ", value(32))}),
        json!({"value": "+".repeat(43)}),
        // Bits that no encoder leaves.
        json!({"value": format!("{}B", "A".repeat(42))}),
    ] {
        let error = unwrapped(&*kms, &body).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 205, "{body}");
    }
    // Escaped, it would have to be decoded into memory that nobody wipes.
    let headers = String::new();
    let escaped = format!(r#"{{"value":"\u0041{}"}}"#, "A".repeat(42));
    for body in [escaped.as_bytes(), b"", b"<html>", b"{\"value\":\"AAA"] {
        let answer = HttpAnswer {
            status: 200,
            headers: headers.as_bytes(),
            body,
        };
        assert!(kms.read_unwrap(&answer).is_err());
        assert!(kms.read_wrap(&answer).is_err());
    }
}

#[test]
fn base64url_has_one_spelling() {
    let data: Value = serde_json::from_str(include_str!("../../tests/data/base64.json")).unwrap();
    for case in data["cases"].as_array().unwrap() {
        let text = |name: &str| case[name].as_str().unwrap().to_owned();
        let bytes = hex::decode(text("hex")).unwrap();
        let body = object(&[("v", Member::Base64Url(&bytes))]);
        let spelt: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(spelt["v"], text("base64url_unpadded"));
    }
    let kms = azure();
    let invalid = data["invalid_base64url"].as_array().unwrap();
    assert!(!invalid.is_empty());
    for text in invalid.iter().map(|text| text.as_str().unwrap()) {
        // What is wrong with it stays wrong when the size is right.
        for digits in [43_usize, 342] {
            let long = "A".repeat((digits / 4 - text.len() / 4) * 4) + text;
            let body = json!({"kid": kid(VERSION), "value": long});
            assert!(wrapped(&*kms, &body).is_err(), "{text}");
            assert!(unwrapped(&*kms, &body).is_err(), "{text}");
        }
    }
}

#[test]
fn a_request_needs_a_bearer_token() {
    let kms = azure();
    let error = kms
        .wrap_request(&dek(), None, &mut Session::default(), now())
        .unwrap_err();
    assert_eq!(error.kind().tsp_code().number(), 206);
}

fn token_call(kms: &dyn RemoteKms) -> Box<TokenCall> {
    match kms
        .token_step(None, None, &mut Session::default(), now())
        .unwrap()
    {
        TokenStep::Call(call) => call,
        TokenStep::Sign(_) => panic!("a secret needs no signature"),
    }
}

#[test]
fn each_cloud_has_its_hosts_and_scopes() {
    let table = [
        (
            "acme.vault.azure.net",
            "login.microsoftonline.com",
            "https://vault.azure.net/.default",
        ),
        (
            "acme.managedhsm.azure.net",
            "login.microsoftonline.com",
            "https://managedhsm.azure.net/.default",
        ),
        (
            "acme.vault.usgovcloudapi.net",
            "login.microsoftonline.us",
            "https://vault.usgovcloudapi.net/.default",
        ),
        (
            "acme.managedhsm.usgovcloudapi.net",
            "login.microsoftonline.us",
            "https://managedhsm.usgovcloudapi.net/.default",
        ),
        (
            "acme.vault.azure.cn",
            "login.chinacloudapi.cn",
            "https://vault.azure.cn/.default",
        ),
        (
            "acme.managedhsm.azure.cn",
            "login.chinacloudapi.cn",
            "https://managedhsm.azure.cn/.default",
        ),
    ];
    for (host, authority, scope) in table {
        let kms = Config::with(|config| config.vault_base_url = format!("https://{host}/"))
            .build()
            .unwrap();
        assert_eq!(kms.endpoint(), &Endpoint::at(host, Roots::Public));
        let call = token_call(&*kms);
        assert_eq!(call.endpoint, Endpoint::at(authority, Roots::Public));
        let form: Vec<_> = form_urlencoded::parse(call.request.body())
            .into_owned()
            .collect();
        assert!(form.contains(&("scope".to_owned(), scope.to_owned())));
    }
}

#[test]
fn only_vaults_of_azure_get_the_token() {
    let urls = [
        "http://tsp-test.vault.azure.net",
        "https://tsp-test.vault.azure.net:8443",
        "https://user@tsp-test.vault.azure.net",
        "https://tsp-test.vault.azure.net/keys",
        "https://tsp-test.vault.azure.net/?a=b",
        "https://tsp-test.vault.azure.net/#a",
        "https://a.b.vault.azure.net",
        "https://vault.azure.net",
        "https://.vault.azure.net",
        "https://tsp-test.vault.azure.net.evil.example",
        "https://evilvault.azure.net",
        "https://127.0.0.1",
        "tsp-test.vault.azure.net",
        "",
    ];
    for url in urls {
        for allow_insecure in [false, true] {
            let built = Config::with(|config| {
                config.vault_base_url = url.to_owned();
                config.allow_insecure = allow_insecure;
            })
            .build();
            assert_eq!(built.unwrap_err().member(), "vaultBaseUrl", "{url}");
        }
    }
}

#[test]
fn an_endpoint_of_ones_own_takes_the_vaults_place() {
    let kms = Config::with(|config| {
        config.vault_base_url = "https://hsm.example".to_owned();
        config.endpoint = Some("http://127.0.0.1:5000".to_owned());
        config.authority = Some("http://127.0.0.1:5001".to_owned());
        config.allow_insecure = true;
    })
    .build()
    .unwrap();
    assert_eq!(header(&wrap(&*kms), "host"), "127.0.0.1:5000");
    let call = token_call(&*kms);
    assert_eq!(call.endpoint.port, 5001);
    assert_eq!(header(&call.request, "host"), "127.0.0.1:5001");
    let value = BASE64URL.encode([1; 256]);
    for host in ["hsm.example", "127.0.0.1:5000"] {
        let kid = format!("https://{host}/keys/tenant-1/abc");
        assert!(wrapped(&*kms, &json!({"kid": kid, "value": value})).is_ok());
    }
}

#[test]
fn what_cannot_be_right_is_named() {
    let pair = || format!("{CERTIFICATE}{CLIENT_KEY}");
    let wrong: Vec<(&str, Config)> = vec![
        ("clientId", Config::with(|c| c.client_id = "app".to_owned())),
        (
            "tenantGuid",
            Config::with(|c| c.tenant_guid = "contoso.onmicrosoft.com".to_owned()),
        ),
        ("keyName", Config::with(|c| c.key_name = String::new())),
        (
            "keyName",
            Config::with(|c| c.key_name = format!("tenant-1/{VERSION}")),
        ),
        ("keyName", Config::with(|c| c.key_name = "k".repeat(128))),
        ("clientSecret", Config::with(|c| c.client_secret = None)),
        (
            "clientSecret",
            Config::with(|c| c.client_secret = Some("secret\n".to_owned())),
        ),
        (
            "clientCertificate",
            Config::with(|c| c.client_certificate = Some(pair())),
        ),
        (
            "clientCertificate",
            Config::with_certificate(CERTIFICATE.to_owned()),
        ),
        (
            "clientCertificate",
            Config::with_certificate(CLIENT_KEY.to_owned()),
        ),
        (
            "clientCertificate",
            Config::with_certificate(format!("{CERTIFICATE}{VAULT_KEY}")),
        ),
        ("algorithm", with_algorithm("RSA-OAEP")),
        ("algorithm", with_algorithm("a256kw")),
        ("algorithm", with_algorithm("")),
        (
            "authority",
            Config::with(|c| c.authority = Some("http://login.example".to_owned())),
        ),
        (
            "authority",
            Config::with(|c| c.authority = Some("https://login.example/tenant".to_owned())),
        ),
    ];
    for (member, config) in wrong {
        assert_eq!(config.build().unwrap_err().member(), member);
    }
    for pem in [pair(), format!("{CLIENT_KEY}{CERTIFICATE}{CERTIFICATE}")] {
        assert!(Config::with_certificate(pem).build().is_ok());
    }
}

#[test]
fn equal_credentials_share_a_token_and_different_ones_do_not() {
    let id = |config: Config| config.build().unwrap().credential().unwrap();
    let base = id(Config::default());
    assert_eq!(base, id(Config::with(|c| c.key_name = "other".to_owned())));
    assert_eq!(
        base,
        id(Config::with(|c| {
            c.vault_base_url = "https://other.vault.azure.net".to_owned();
        }))
    );
    let others = [
        Config::with(|c| c.client_secret = Some("other".to_owned())),
        Config::with(|c| c.client_id = TENANT.to_owned()),
        Config::with(|c| c.tenant_guid = CLIENT.to_owned()),
        Config::with(|c| c.vault_base_url = "https://a.managedhsm.azure.net".to_owned()),
        Config::with(|c| c.authority = Some("https://login.example".to_owned())),
        Config::with_certificate(format!("{CERTIFICATE}{CLIENT_KEY}")),
    ];
    let mut ids: Vec<_> = others.into_iter().map(id).collect();
    ids.push(base);
    for (index, one) in ids.iter().enumerate() {
        assert!(!ids[..index].contains(one), "{index}");
    }
}

/// Every spelling in which what is secret could show up, by a piece of its beginning.
fn spellings(config_secret: &str) -> Vec<String> {
    let key: String = CLIENT_KEY
        .lines()
        .filter(|line| !line.starts_with(['-', '#']))
        .collect();
    let list = format!("{:?}", config_secret.as_bytes());
    [
        config_secret,
        &list[1..30],
        &hex::encode(config_secret)[..20],
        "AAECAwQFBgcI",
        "TEST-TOKEN",
        // Of any JSON Web Token.
        "eyJ0eXAiOi",
        &key[..24],
        &key[200..224],
    ]
    .map(str::to_owned)
    .to_vec()
}

#[test]
fn nothing_prints_a_secret() {
    const SECRET: &str = "CANARYsecretCANARYsecret";
    let with_secret = Config::with(|config| config.client_secret = Some(SECRET.to_owned()));
    let with_certificate = Config::with_certificate(format!("{CERTIFICATE}{CLIENT_KEY}"));
    let mut texts = Vec::new();
    for config in [with_secret, with_certificate] {
        let kms = config.build().unwrap();
        let mut session = Session::default();
        let step = kms.token_step(None, None, &mut session, now()).unwrap();
        texts.push(format!("{kms:?} {kms:#?} {step:?} {session:?}"));
        let call = match step {
            TokenStep::Call(call) => call,
            TokenStep::Sign(sign) => match sign().unwrap() {
                Signed::Call(call) => call,
                Signed::Token(_) => panic!("Entra gives the token"),
            },
        };
        // The canary is there to be seen.
        let body = String::from_utf8_lossy(call.request.body()).into_owned();
        assert!(body.contains(SECRET) || body.contains("eyJ0eXAiOi"));
        let (request, token) = (wrap(&*kms), token(&*kms));
        assert!(String::from_utf8_lossy(request.body()).contains("AAECAwQFBgcI"));
        texts.push(format!(
            "{call:?} {call:#?} {request:?} {request:#?} {token:?}"
        ));
    }
    for text in texts {
        assert!(text.contains("azure.net") || text.contains("HttpRequest"));
        for spelling in spellings(SECRET) {
            assert!(!text.contains(&spelling), "{spelling} in {text}");
        }
    }
}

#[test]
fn a_refused_configuration_does_not_repeat_what_it_holds() {
    const CANARY: &str = "CANARYsecret";
    let wrong = [
        Config::with(|c| c.client_id = CANARY.to_owned()),
        Config::with(|c| c.client_secret = Some(format!("{CANARY} and a blank"))),
        Config::with(|c| c.tenant_guid = CANARY.to_owned()),
        Config::with(|c| c.vault_base_url = format!("https://u:{CANARY}@a.vault.azure.net")),
        Config::with(|c| c.key_name = format!("{CANARY}/")),
        Config::with(|c| c.authority = Some(format!("https://{CANARY}/x"))),
        Config::with_certificate(CANARY.to_owned()),
    ];
    for config in wrong {
        let error = config.build().unwrap_err();
        assert!(!format!("{error} {error:?}").contains(CANARY), "{error}");
    }
}

/// Where Azure, or who plays it, may echo something.
fn echoes(canary: &str) -> Vec<(String, String)> {
    let bodies = [
        json!({"error": {"code": canary, "message": canary, "innererror": {"code": canary}}}),
        json!({"error": {"code": "BadParameter", "message": format!("Value '{canary}' failed")}}),
        json!({"kid": format!("https://tsp-test.vault.azure.net/keys/tenant-1/{canary}"), "value": canary}),
        json!({"kid": canary, "value": BASE64URL.encode([1; 256])}),
        json!({"error": canary, "error_description": format!("AADSTS7000215: {canary}"), "trace_id": canary}),
        json!({"access_token": canary, "token_type": canary, "expires_in": canary}),
        json!(canary),
    ];
    let challenge = format!("Bearer authorization=\"https://x/{canary}\", error=\"{canary}\"");
    bodies
        .into_iter()
        .map(|body| {
            let mut headers = String::new();
            for name in ["x-ms-request-id", "date", "retry-after"] {
                headers.push_str(&format!("{name}: {canary}\r\n"));
            }
            headers.push_str(&format!("www-authenticate: {challenge}\r\n"));
            (headers, body.to_string())
        })
        .collect()
}

proptest! {
    #[test]
    fn what_azure_echoes_does_not_come_out(
        canary in prop_oneof![
            "[A-Za-z0-9+/]{30,200}[0-9]==?",
            "[A-Za-z0-9_-]{30,200}[0-9]",
            "[0-9a-f]{32,128}[0-9]",
        ],
        status in prop_oneof![Just(200_u16), Just(400), Just(401), Just(403), Just(503), 0..700_u16],
    ) {
        let kms = azure();
        for (headers, body) in echoes(&canary) {
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
        first in any::<[u8; 16]>(),
        size in prop::sample::select([&RSA_BYTES[..], &[40]].concat()),
        version in "[0-9a-f]{32}",
        id in 1..i32::MAX,
    ) {
        let mut ciphertext = vec![0; size];
        ciphertext[..16].copy_from_slice(&first);
        let algorithm = if size == 40 { Algorithm::A256Kw } else { Algorithm::RsaOaep256 };
        let kms = with_algorithm(algorithm.as_str()).build().unwrap();
        let body = json!({"kid": kid(&version), "value": BASE64URL.encode(&ciphertext)});
        let blob = wrapped(&*kms, &body).unwrap();
        let id = KmsConfigId::new(id.into()).unwrap();
        prop_assert!(!looks_like_alloy_header(&encode_unleased(id, &blob)));
        // And it comes back as it was.
        let read = Blob::read(&blob, algorithm).unwrap();
        prop_assert_eq!(read, Blob { wrapped: ciphertext, version });
    }

    #[test]
    fn no_blob_and_no_answer_panics(
        blob in prop::collection::vec(any::<u8>(), 0..600),
        status in prop_oneof![Just(200_u16), 0..700_u16],
        answer in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "[{}\\[\\]\":,a-z0-9\\\\]{0,80}".prop_map(String::into_bytes),
            r#"\{"(error|kid|value)":("[ -~]{0,20}"|\{"(code|message|innererror)":"?[ -~]{0,20}"?\}|7)\}"#
                .prop_map(String::into_bytes),
        ],
        challenge in "[Bb]earer [ -~]{0,80}",
    ) {
        let kms = azure();
        if let Ok(request) = unwrap(&*kms, &blob) {
            prop_assert!(request.path().starts_with("/keys/tenant-1/"));
        }
        let headers = format!("www-authenticate: {challenge}\r\n");
        let answer = HttpAnswer { status, headers: headers.as_bytes(), body: &answer };
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

    #[test]
    fn the_size_of_a_ciphertext_tells_an_older_blob_from_a_message(
        size in prop::sample::select(RSA_BYTES.to_vec()),
        seed in prop::collection::vec(any::<u8>(), 512),
    ) {
        // No older blob of 256 bytes holds one of 256 and more inside.
        let bare = &seed[..size];
        let read = Blob::read(bare, Algorithm::RsaOaep256).unwrap();
        prop_assert!(read.wrapped == bare || size > 256);
    }
}

fn with_algorithm(name: &str) -> Config {
    Config::with(|config| config.algorithm = Some(name.to_owned()))
}

#[test]
fn a_key_of_a_managed_hsm_wraps_by_the_algorithm_of_its_size() {
    let kid = format!("https://tsp-test.vault.azure.net/keys/tenant-1/{VERSION}");
    let answer = |bytes| json!({"kid": kid, "value": BASE64URL.encode(vec![7; bytes])});
    for name in ["A256KW", "A192KW", "A128KW"] {
        let kms = with_algorithm(name).build().unwrap();
        let token = token(&*kms);
        let body: Value = serde_json::from_slice(wrap(&*kms).body()).unwrap();
        assert_eq!(body["alg"], name);
        // The DEK, and eight bytes by which AES key wrap tells that nothing was changed.
        let blob = wrapped(&*kms, &answer(40)).unwrap();
        let mut session = Session::default();
        let request = kms
            .unwrap_request(&blob, Some(&token), &mut session, now())
            .unwrap();
        assert!(
            request
                .path()
                .starts_with(&format!("/keys/tenant-1/{VERSION}/unwrapkey?"))
        );
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        assert_eq!(body["alg"], name);
        assert_eq!(body["value"], BASE64URL.encode([7; 40]));
        for bytes in [0, 32, 39, 41, 256] {
            let error = wrapped(&*kms, &answer(bytes)).unwrap_err();
            assert_eq!(error.kind(), KmsErrorKind::WrapFailed, "{bytes}");
        }
    }
}

#[test]
fn a_blob_of_another_kind_of_key_is_told_before_azure_is_asked() {
    let kid = format!("https://tsp-test.vault.azure.net/keys/tenant-1/{VERSION}");
    let answer = |bytes| json!({"kid": kid, "value": BASE64URL.encode(vec![7; bytes])});
    let (rsa, aes) = (azure(), with_algorithm("A256KW").build().unwrap());
    let of_rsa = wrapped(&*rsa, &answer(256)).unwrap();
    let of_aes = wrapped(&*aes, &answer(40)).unwrap();
    for (kms, blobs) in [
        (&rsa, [of_aes, vec![7; 40]]),
        // Older blobs that are nothing but the ciphertext are of RSA keys.
        (&aes, [of_rsa, vec![7; 40]]),
    ] {
        for blob in blobs {
            let token = token(&**kms);
            let asked = kms.unwrap_request(&blob, Some(&token), &mut Session::default(), now());
            let error = asked.unwrap_err();
            assert_eq!(error.kind(), KmsErrorKind::UnwrapFailed);
            assert!(error.sentence().starts_with("the blob is not one of an"));
        }
    }
}
