//! Derived keys as the original product made them, and as the API's examples have them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use aes_siv::{KeyInit as _, siv::Aes256Siv};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value as Json;
use tsp_wire::{
    Dek, TenantSecretId,
    api::{DeriveAnswer, Derived, DerivedPath, Parser},
    derive::{DerivationType, DerivedKey, Deriver, SecretType},
};

/// The secrets of the API's examples: one current, one in rotation.
const CURRENT: &str = "haHIvS5nKAQYxxOMpXIrEc9BDWt6xmJOKbcISnTcKrY=";
const IN_ROTATION: &str = "0qXiBfeE0KNf33uQreJXn9SBBiAroYCiGfsdS0BwNR4=";

fn base64(text: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text).unwrap()
}

fn secret(base64_text: &str) -> Dek {
    Dek::from_slice(&base64(base64_text)).unwrap()
}

fn derive(secret_text: &str, tenant: &str, path: &str) -> DerivedKey {
    Deriver::new(&secret(secret_text), tenant, DerivationType::Sha512).derive(path)
}

/// What every published SDK makes of a field: the secret's number, two zero bytes, AES-256-SIV (RFC 5297) under the
/// derived key, whose first half is for S2V and second for CTR.
fn opened(ciphertext: &[u8], key: &DerivedKey) -> (u32, Vec<u8>) {
    let (number, rest) = ciphertext.split_first_chunk::<4>().unwrap();
    let sealed = rest.strip_prefix(&[0, 0]).unwrap();
    let mut cipher = Aes256Siv::new_from_slice(key.expose()).unwrap();
    let plaintext = cipher.decrypt::<[&[u8]; 0], &[u8]>([], sealed).unwrap();
    (u32::from_be_bytes(*number), plaintext)
}

#[test]
fn what_the_original_product_encrypted_opens_with_its_secret() {
    let file = include_str!("data/published-vectors.json");
    let file: Json = serde_json::from_str(file).unwrap();
    let vector = &file["derivation"];
    let text = |name: &str| vector[name].as_str().unwrap();
    let key = derive(
        text("secret_base64"),
        text("tenantId"),
        text("derivationPath"),
    );
    assert_eq!(key.expose(), base64(text("derivedKey_sha512_base64")));
    let ciphertext = base64(text("deterministic_ciphertext_base64"));
    let (number, plaintext) = opened(&ciphertext, &key);
    assert_eq!(
        u64::from(number),
        vector["tenantSecretId"].as_u64().unwrap()
    );
    assert_eq!(plaintext, text("plaintext").as_bytes());
}

#[test]
fn the_example_of_the_api() {
    let ciphertext =
        hex::decode("000023290000e30e4c741284140d2d64d602276ca000e8b1148763e148281467d1").unwrap();
    let key = derive(CURRENT, "acme", "customers.ssn");
    assert_eq!(opened(&ciphertext, &key), (9001, b"123-45-6789".to_vec()));
}

#[test]
fn an_empty_derivation_path() {
    let key = derive(CURRENT, "acme", "");
    assert_eq!(
        key.expose(),
        base64(
            "wkDKVNuv4BU6SroIIKwaP4q5hG2pSTlTixvnDqj7ZeW1rGRhy5xrW6aqFhzJfz57Z+S6tYRD/jcyxZJsBIkDIw=="
        )
    );
}

/// Computed with Python's `hmac`.
#[test]
fn sha256_has_the_same_message() {
    let deriver = Deriver::new(&secret(CURRENT), "acme", DerivationType::Sha256);
    assert_eq!(
        hex::encode(deriver.derive("customers.ssn").expose()),
        "6b005aa05212e452a31d35d672375b042f52621eab34f466550d6defeb02b0be"
    );
}

#[test]
fn a_derivation_as_it_is_asked_for_and_answered() {
    let mut body = br#"{"tenantId":"acme","iclFields":{"requestingId":"crm"},"customFields":{},"paths":{"customers":["customers.ssn"]},"derivationType":"sha512","secretType":"deterministic"}"#.to_vec();
    let mut parser = Parser::new();
    let request = parser.derive(&mut body).unwrap();
    assert_eq!(request.secret_type, SecretType::Deterministic);
    assert_eq!(request.paths, [("customers", vec!["customers.ssn"])]);

    let derived = |number, current| Derived {
        secret: TenantSecretId::new(number).unwrap(),
        current,
    };
    let secrets = [derived(9001, true), derived(8044, false)];
    let keys = [CURRENT, IN_ROTATION];
    let path = |(secret_path, derivation_paths)| DerivedPath {
        secret_path,
        derivation_paths,
        secrets: &secrets,
    };
    let paths = request
        .paths
        .iter()
        .map(|(name, paths)| (*name, paths.as_slice()));
    let mut answer = DeriveAnswer::new(true, request.derivation, paths.clone().map(path));
    for (name, derivation_paths) in paths {
        answer.begin_path(name);
        for path in derivation_paths {
            answer.push_pair(path, &secrets, |position| {
                Some(derive(keys[position], request.metadata.tenant_id, path))
            });
        }
    }
    assert_eq!(
        String::from_utf8(answer.finish().as_ref().to_vec()).unwrap(),
        concat!(
            r#"{"hasPrimaryConfig":true,"derivedKeys":{"customers":{"customers.ssn":["#,
            r#"{"derivedKey":"wvTHXWjFPUYN0bbjmhMnoIy/ezUhV9Sr+ntCSMlrbV9PNXYpFqcAly/h21Cnh55hnRd6dW4aFMVX0Aq2DNHRiA==","tenantSecretId":9001,"current":true},"#,
            r#"{"derivedKey":"QuRWvZtIjfd6lTF1K8MBVCaZNJk7dgrtYIFRf/f3jGk4sKCYU4mpqzzW906i9FEoxuxxnEOxb6mbvJd5O+PaXA==","tenantSecretId":8044,"current":false}"#,
            "]}}}"
        )
    );
}
