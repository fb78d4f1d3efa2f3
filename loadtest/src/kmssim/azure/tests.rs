//! Azure: MSAL's assertions are accepted once, the challenge, the vault's algorithms and what each state says.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64URL},
};
use http::Method;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::kmssim::{
    exchange::{Failure, Refusal, Request, Verdict},
    testing::{Trial, VECTORS_UNIX_S, body, data, post_form, post_json, text},
    world::{
        AzureAppDoc, AzureDoc, AzureKeyDoc, AzureKeyKind, AzureKeyState, AzureSecretDoc,
        AzureVaultDoc, AzureVaultState, AzureVersionDoc, CredentialState, SampleShape, WorldDoc,
    },
};

const TENANT: &str = "72f988bf-0000-4000-8000-2d7cd011db47";
const CLIENT: &str = "6731de76-14a6-49ae-97bc-6eba6914391e";
const SECRET: &str = "Q~test+secret/with=odd&chars";
const HOST: &str = "tsp-test.vault.azure.net";
const HSM: &str = "tsp-test.managedhsm.azure.net";
const VERSION: &str = "78deebed173b48e48f55abf87ed4cf71";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const SCOPE: &str = "https://vault.azure.net/.default";

fn vector_world() -> WorldDoc {
    let vault = |host: &str| AzureVaultDoc {
        host: host.to_owned(),
        tenant: TENANT.to_owned(),
        allows: vec![CLIENT.to_owned()],
        state: AzureVaultState::Active,
        claims: None,
    };
    let key = |vault: &str, kind, pem: Option<&str>, material: Option<&str>| AzureKeyDoc {
        vault: vault.to_owned(),
        name: "tenant-1".to_owned(),
        kind,
        versions: vec![AzureVersionDoc {
            id: VERSION.to_owned(),
            enabled: true,
            not_before_unix_s: None,
            expires_unix_s: None,
            private_key_pem: pem.map(str::to_owned),
            material_hex: material.map(str::to_owned),
        }],
        state: AzureKeyState::Active,
        operations: ["wrapKey", "unwrapKey"].map(str::to_owned).to_vec(),
    };
    let kek = "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf";
    let pem = include_str!("../data/azure-vault-a-TEST-ONLY.pem");
    WorldDoc {
        azure: AzureDoc {
            apps: vec![AzureAppDoc {
                tenant: TENANT.to_owned(),
                client_id: CLIENT.to_owned(),
                secrets: vec![
                    AzureSecretDoc {
                        value: SECRET.to_owned(),
                        expires_unix_s: None,
                    },
                    AzureSecretDoc {
                        value: "old".to_owned(),
                        expires_unix_s: Some(VECTORS_UNIX_S),
                    },
                ],
                certificates: vec![
                    include_str!("../data/azure-client-certificate-TEST-ONLY.pem").to_owned(),
                ],
                state: CredentialState::Active,
            }],
            vaults: vec![vault(HOST), vault(HSM)],
            keys: vec![
                key(HOST, AzureKeyKind::Rsa, Some(pem), None),
                key(HSM, AzureKeyKind::OctHsm, None, Some(kek)),
            ],
            refuse_replays: true,
        },
        ..WorldDoc::default()
    }
}

fn trial() -> Trial {
    Trial::of_world(&vector_world())
}

fn token_url() -> String {
    format!("https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token")
}

/// A token request with `changes`; an empty value takes a member away.
fn grant(changes: &[(&str, &str)]) -> Request {
    let mut form = vec![
        ("client_id", CLIENT),
        ("grant_type", "client_credentials"),
        ("client_info", "1"),
        ("scope", SCOPE),
        ("client_secret", SECRET),
    ];
    for (name, value) in changes {
        form.retain(|(known, _)| known != name);
        if !value.is_empty() {
            form.push((name, value));
        }
    }
    post_form(&token_url(), &form)
}

fn with_assertion(assertion: &str) -> Request {
    grant(&[
        ("client_secret", ""),
        ("client_assertion_type", ASSERTION_TYPE),
        ("client_assertion", assertion),
    ])
}

fn token(trial: &mut Trial) -> String {
    text(&trial.ask(&grant(&[])), "access_token").to_owned()
}

fn vault_url(operation: &str) -> String {
    format!("https://{HOST}/keys/tenant-1/{VERSION}/{operation}?api-version=7.4")
}

fn wrap_body() -> Value {
    json!({ "alg": "RSA-OAEP-256", "value": BASE64URL.encode([7; 32]) })
}

#[test]
fn every_assertion_that_msal_and_pyjwt_signed_is_accepted_once() {
    let file = data("azure-client-assertion.json");
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let mut trial = trial();
        let request = with_assertion(text(case, "jwt"));
        let answer = trial.ask(&request);
        assert_eq!(
            (&answer["token_type"], &answer["expires_in"]),
            (&json!("Bearer"), &json!(3599))
        );
        let (status, code, verdict) = trial.refused(&request);
        assert_eq!(
            (status, code.as_str()),
            (401, "AADSTS700027"),
            "{}",
            case["name"]
        );
        assert_eq!(verdict, Verdict::Refused(Refusal::Token));
        trial.sim.world.azure.refuse_replays = false;
        trial.ask(&request);
    }
}

#[test]
fn an_assertion_is_good_only_in_its_time_and_whole() {
    let file = data("azure-client-assertion.json");
    let jwt = text(&file["cases"][0], "jwt").to_owned();
    // Five minutes of skew, and ten of life.
    for (at, code) in [
        (VECTORS_UNIX_S + 899, None),
        (VECTORS_UNIX_S + 900, Some("AADSTS700024")),
        (VECTORS_UNIX_S - 300, None),
        (VECTORS_UNIX_S - 301, Some("AADSTS700024")),
    ] {
        let mut trial = trial();
        trial.set_time(at);
        let reply = trial.send(&with_assertion(&jwt));
        assert_eq!(reply.code, code.unwrap_or_default(), "{at}");
    }
    let (head, signature) = jwt.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let changed = format!("{head}.{flipped}{}", &signature[1..]);
    let cut = head.to_owned();
    for (jwt, code) in [
        (changed.as_str(), "AADSTS700027"),
        (cut.as_str(), "AADSTS50027"),
        ("a.b.c", "AADSTS50027"),
    ] {
        assert_eq!(trial().refused(&with_assertion(jwt)).1, code);
    }
    let mut elsewhere = with_assertion(&jwt);
    let other = TENANT.replace("72f9", "ffff");
    elsewhere.parts.uri = format!("/{other}/oauth2/v2.0/token").parse().unwrap();
    assert_eq!(trial().refused(&elsewhere).1, "AADSTS90002");
}

#[test]
fn an_assertion_with_a_certificate_that_is_not_registered_is_refused() {
    let mut world = vector_world();
    world.azure.apps[0].certificates.clear();
    let file = data("azure-client-assertion.json");
    let request = with_assertion(text(&file["cases"][0], "jwt"));
    let (_, code, verdict) = Trial::of_world(&world).refused(&request);
    assert_eq!(
        (code.as_str(), verdict),
        ("AADSTS700027", Verdict::Refused(Refusal::Credential))
    );
}

/// Signs with the test's client key; null takes a claim away.
fn signed(changes: &Value) -> String {
    let mut claims = json!({ "aud": token_url(), "iss": CLIENT, "sub": CLIENT, "jti": "one",
        "iat": VECTORS_UNIX_S, "exp": VECTORS_UNIX_S + 600 });
    let members = claims.as_object_mut().unwrap();
    members.extend(changes.as_object().unwrap().clone());
    members.retain(|_, value| !value.is_null());
    let mut header = Header::new(Algorithm::PS256);
    let thumbprint = "mol0vb1YhTUGeTYc7eMl9uObmtEM3tzLtK3IzdDXIJM";
    header.x5t_s256 = Some(thumbprint.to_owned());
    let pem = include_bytes!("../data/azure-client-key-TEST-ONLY.pem");
    encode(&header, &claims, &EncodingKey::from_rsa_pem(pem).unwrap()).unwrap()
}

#[test]
fn an_assertion_must_be_right_in_every_claim() {
    let code = |changes: Value| trial().send(&with_assertion(&signed(&changes))).code;
    assert_eq!(code(json!({})), "");
    let own = format!("https://localhost:7/{TENANT}/oauth2/v2.0/token");
    let mut elsewhere = with_assertion(&signed(&json!({ "aud": own })));
    assert_eq!(trial().refused(&elsewhere).1, "AADSTS50013");
    let host = http::HeaderValue::from_static("localhost:7");
    elsewhere.parts.headers.insert("host", host);
    trial().ask(&elsewhere);
    let now = VECTORS_UNIX_S;
    for (changes, expected) in [
        (json!({ "aud": "https://example.com/" }), "AADSTS50013"),
        (json!({ "aud": null }), "AADSTS50013"),
        (json!({ "iss": "someone" }), "AADSTS700021"),
        (json!({ "sub": null }), "AADSTS700021"),
        (json!({ "jti": null }), "AADSTS50027"),
        (json!({ "jti": "" }), "AADSTS50027"),
        (json!({ "exp": null }), "AADSTS700024"),
        (json!({ "exp": now - 300 }), "AADSTS700024"),
        (json!({ "exp": u64::MAX }), "AADSTS700024"),
        (json!({ "nbf": now + 301 }), "AADSTS700024"),
    ] {
        assert_eq!(code(changes.clone()), expected, "{changes}");
    }
}

#[test]
fn a_secret_is_decoded_from_its_form_and_each_mistake_has_its_code() {
    let mut trial = trial();
    let example = text(
        &data("azure-client-assertion.json"),
        "form_encoding_example",
    )
    .to_owned();
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    trial.ask(&Request::made(
        Method::POST,
        &token_url(),
        &headers,
        example,
    ));
    for (changes, code) in [
        (vec![("client_secret", "wrong")], "AADSTS7000215"),
        (vec![("client_secret", "old")], "AADSTS7000222"),
        (vec![("client_secret", "")], "AADSTS7000216"),
        (
            vec![("client_id", "ffffffff-14a6-49ae-97bc-6eba6914391e")],
            "AADSTS700016",
        ),
        (vec![("scope", "https://vault.azure.net")], "AADSTS70011"),
        (
            vec![("scope", "https://example.com/.default")],
            "AADSTS500011",
        ),
        (vec![("grant_type", "password")], "AADSTS70003"),
    ] {
        assert_eq!(trial.refused(&grant(&changes)).1, code, "{changes:?}");
    }
    assert!(
        trial
            .sim
            .world
            .azure
            .set_credential(CLIENT, CredentialState::Disabled)
    );
    assert_eq!(trial.refused(&grant(&[])).1, "AADSTS7000112");
}

#[test]
fn requests_of_microsofts_client_are_challenged_and_then_answered() {
    let file = data("azure-key-vault.json");
    let mut trial = trial();
    let bearer = token(&mut trial);
    for case in file["wire"].as_array().unwrap() {
        let headers: Vec<_> = case["headers"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| *name != "Authorization")
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
            .collect();
        let content = case["body_utf8"].as_str().unwrap_or_default().to_owned();
        let request = Request::made(Method::POST, text(case, "url"), &headers, content);
        if case["body_utf8"].is_null() {
            let reply = trial.send(&request);
            assert_eq!((reply.status, reply.verdict), (401, Verdict::Challenged));
            let challenge = format!(
                "Bearer authorization=\"https://login.microsoftonline.com/{TENANT}\", \
                 resource=\"https://vault.azure.net\""
            );
            assert_eq!(reply.headers["www-authenticate"], challenge.as_str());
            continue;
        }
        let authorization = format!("Bearer {bearer}");
        let mut with = headers.clone();
        with.push(("authorization", authorization.as_str()));
        let answer = trial.ask(&Request {
            ..Request::made(Method::POST, text(case, "url"), &with, request.body.clone())
        });
        assert_eq!(text(&answer, "kid"), text(&file["kid_pieces"], "kid"));
    }
}

#[test]
fn what_others_wrapped_is_unwrapped_under_every_algorithm() {
    let file = data("azure-key-vault.json");
    let dek = hex::decode(text(&file, "dek_hex")).unwrap();
    let mut trial = trial();
    let vault_token = token(&mut trial);
    let hsm_scope = [("scope", "https://managedhsm.azure.net/.default")];
    let hsm_token = text(&trial.ask(&grant(&hsm_scope)), "access_token").to_owned();
    for case in file["wrapped"].as_array().unwrap() {
        let alg = text(case, "alg");
        let (host, token) = if alg == "A256KW" {
            (HSM, &hsm_token)
        } else {
            (HOST, &vault_token)
        };
        let url = |operation: &str| {
            format!("https://{host}/keys/tenant-1/{VERSION}/{operation}?api-version=7.4")
        };
        let request = json!({ "alg": alg, "value": case["value"] });
        let answer = trial.ask(&post_json(&url("unwrapkey"), token, &request));
        assert_eq!(
            BASE64URL.decode(text(&answer, "value")).unwrap(),
            dek,
            "{alg}"
        );
        let request = json!({ "alg": alg, "value": BASE64URL.encode(&dek) });
        let wrapped = trial.ask(&post_json(&url("wrapkey"), token, &request));
        if alg == "A256KW" {
            assert_eq!(wrapped["value"], case["value"]);
        } else {
            assert_eq!(text(&wrapped, "value").len(), 342);
        }
    }
}

#[test]
fn values_are_base64url_without_padding_and_nothing_else() {
    let mut trial = trial();
    let bearer = token(&mut trial);
    for invalid in data("base64.json")["invalid_base64url"].as_array().unwrap() {
        let request = json!({ "alg": "RSA-OAEP-256", "value": invalid });
        let (status, code, verdict) =
            trial.refused(&post_json(&vault_url("wrapkey"), &bearer, &request));
        assert_eq!((status, code.as_str()), (400, "BadParameter"), "{invalid}");
        assert_eq!(verdict, Verdict::Refused(Refusal::Parameter));
    }
}

#[test]
fn an_empty_version_is_the_current_one_and_old_versions_still_unwrap() {
    let mut trial = trial();
    let bearer = token(&mut trial);
    let current = format!("https://{HOST}/keys/tenant-1//wrapkey?api-version=7.4");
    let old = trial.ask(&post_json(&current, &bearer, &wrap_body()));
    assert!(text(&old, "kid").ends_with(VERSION));
    for key in trial.sim.world.azure.keys_named("tsp-test/tenant-1") {
        if key.doc.kind == AzureKeyKind::Rsa {
            assert!(key.rotate("0123456789abcdef0123456789abcdef".to_owned()));
        }
    }
    let new = trial.ask(&post_json(&current, &bearer, &wrap_body()));
    assert!(text(&new, "kid").ends_with("/0123456789abcdef0123456789abcdef"));
    let unwrap = json!({ "alg": "RSA-OAEP-256", "value": old["value"] });
    trial.ask(&post_json(&vault_url("unwrapkey"), &bearer, &unwrap));
    let unwrap = json!({ "alg": "RSA-OAEP-256", "value": new["value"] });
    let refused = trial.refused(&post_json(&vault_url("unwrapkey"), &bearer, &unwrap));
    assert_eq!(
        (refused.0, refused.2),
        (400, Verdict::Failed(Failure::Ciphertext))
    );
    let headers = [("authorization", &*format!("Bearer {bearer}"))];
    for path in [
        "/keys/tenant-1",
        "/keys/tenant-1/",
        "/keys/TENANT-1/0123456789abcdef0123456789abcdef",
    ] {
        let url = format!("https://{HOST}{path}?api-version=7.4");
        let answer = trial.ask(&Request::made(Method::GET, &url, &headers, ""));
        assert_eq!(answer["key"]["kid"], new["kid"], "{path}");
        assert_eq!(text(&answer["key"], "e"), "AQAB");
    }
}

#[test]
fn the_version_of_the_api_must_be_given_and_known() {
    let mut trial = trial();
    let bearer = token(&mut trial);
    for query in ["", "?api-version=1.0", "?version=7.4"] {
        let url = format!("https://{HOST}/keys/tenant-1/{VERSION}/wrapkey{query}");
        assert_eq!(
            trial.refused(&post_json(&url, &bearer, &wrap_body())).1,
            "BadParameter"
        );
    }
}

#[test]
fn a_token_must_be_for_this_directory_and_this_resource() {
    let mut world = vector_world();
    let mut stranger = world.azure.apps[0].clone();
    stranger.tenant = TENANT.replace("72f9", "ffff");
    world.azure.apps.push(stranger);
    let mut trial = Trial::of_world(&world);
    let mut elsewhere = grant(&[]);
    let path = format!("/{}/oauth2/v2.0/token", TENANT.replace("72f9", "ffff"));
    elsewhere.parts.uri = path.parse().unwrap();
    let foreign = text(&trial.ask(&elsewhere), "access_token").to_owned();
    let reply = trial.send(&post_json(&vault_url("wrapkey"), &foreign, &wrap_body()));
    assert_eq!((reply.status, reply.code.as_str()), (401, "AKV10032"));
    assert!(
        reply
            .reason
            .contains(&format!("https://sts.windows.net/{TENANT}/")),
        "{}",
        reply.reason
    );
    let hsm_scope = [("scope", "https://managedhsm.azure.net/.default")];
    let hsm_token = text(&trial.ask(&grant(&hsm_scope)), "access_token").to_owned();
    assert_eq!(
        trial
            .refused(&post_json(&vault_url("wrapkey"), &hsm_token, &wrap_body()))
            .1,
        "AKV10022"
    );
    assert_eq!(
        trial
            .refused(&post_json(&vault_url("wrapkey"), "a.b.c", &wrap_body()))
            .1,
        "AKV10001"
    );
    let bearer = token(&mut trial);
    trial.set_time(VECTORS_UNIX_S + 3600);
    let refused = trial.refused(&post_json(&vault_url("wrapkey"), &bearer, &wrap_body()));
    assert_eq!((refused.0, refused.1.as_str()), (401, "AKV10011"));
    trial.set_time(VECTORS_UNIX_S);
    assert!(trial.sim.world.azure.revoke_tokens(CLIENT));
    let refused = trial.refused(&post_json(&vault_url("wrapkey"), &bearer, &wrap_body()));
    assert_eq!(refused.2, Verdict::Failed(Failure::Revoked));
}

#[test]
fn a_vault_asks_for_claims_and_takes_a_token_that_has_them() {
    let mut trial = trial();
    let bearer = token(&mut trial);
    let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"1"}}}"#;
    assert!(trial.sim.world.azure.set_claims("tsp-test", Some(claims)));
    let reply = trial.send(&post_json(&vault_url("wrapkey"), &bearer, &wrap_body()));
    assert_eq!((reply.status, reply.verdict), (401, Verdict::Challenged));
    let challenge = reply.headers["www-authenticate"].to_str().unwrap();
    assert!(
        challenge.contains("error=\"insufficient_claims\""),
        "{challenge}"
    );
    let encoded = challenge
        .split("claims=\"")
        .nth(1)
        .unwrap()
        .trim_end_matches('"');
    assert_eq!(BASE64.decode(encoded).unwrap(), claims.as_bytes());
    let better = text(&trial.ask(&grant(&[("claims", claims)])), "access_token").to_owned();
    trial.ask(&post_json(&vault_url("wrapkey"), &better, &wrap_body()));
    // MSAL asks for what it can do besides.
    let more =
        r#"{"access_token":{"nbf":{"value":"1","essential":true},"xms_cc":{"values":["CP1"]}}}"#;
    let best = text(&trial.ask(&grant(&[("claims", more)])), "access_token").to_owned();
    trial.ask(&post_json(&vault_url("wrapkey"), &best, &wrap_body()));
}

#[test]
fn each_state_of_key_version_and_vault_has_its_error() {
    let mut trial = trial();
    let bearer = token(&mut trial);
    let wrapped = trial.ask(&post_json(&vault_url("wrapkey"), &bearer, &wrap_body()));
    let unwrap = json!({ "alg": "RSA-OAEP-256", "value": wrapped["value"] });
    let codes = |trial: &mut Trial| {
        let wrapped = trial.send(&post_json(&vault_url("wrapkey"), &bearer, &wrap_body()));
        let unwrapped = trial.send(&post_json(&vault_url("unwrapkey"), &bearer, &unwrap));
        [wrapped, unwrapped].map(|reply| (reply.status, reply.code))
    };
    let both = |status, code: &str| [(status, code.to_owned()), (status, code.to_owned())];
    let only_wrap = |code: &str| [(403, code.to_owned()), (200, String::new())];
    let change = |trial: &mut Trial, change: &dyn Fn(&mut super::Key)| {
        for key in trial.sim.world.azure.keys_named(HOST) {
            change(key);
        }
    };
    change(&mut trial, &|key| key.set_enabled(None, false));
    assert_eq!(codes(&mut trial), both(403, "KeyDisabled"));
    change(&mut trial, &|key| key.set_enabled(Some(VERSION), true));
    change(&mut trial, &|key| key.set_expiry(Some(1)));
    assert_eq!(codes(&mut trial), only_wrap("KeyExpired"));
    change(&mut trial, &|key| key.set_expiry(None));
    change(&mut trial, &|key| {
        key.doc.versions[0].not_before_unix_s = Some(VECTORS_UNIX_S + 1)
    });
    assert_eq!(codes(&mut trial), only_wrap("KeyNotYetValid"));
    change(&mut trial, &|key| {
        key.doc.versions[0].not_before_unix_s = None
    });
    change(&mut trial, &|key| {
        key.doc.operations = vec!["unwrapKey".to_owned()]
    });
    assert_eq!(codes(&mut trial), only_wrap("KeyOperationForbidden"));
    change(&mut trial, &|key| {
        key.doc.operations.push("wrapKey".to_owned())
    });
    change(&mut trial, &|key| key.doc.state = AzureKeyState::Deleted);
    assert_eq!(codes(&mut trial), both(404, "KeyNotFound"));
    change(&mut trial, &|key| key.doc.state = AzureKeyState::Recovering);
    assert_eq!(codes(&mut trial), both(409, "ObjectIsBeingRecovered"));
    change(&mut trial, &|key| key.doc.state = AzureKeyState::Active);
    change(&mut trial, &|key| key.denied.set(None, true));
    assert_eq!(codes(&mut trial), both(403, "ForbiddenByPolicy"));
    change(&mut trial, &|key| key.denied.set(None, false));
    for (state, status, code) in [
        (AzureVaultState::Firewalled, 403, "ForbiddenByFirewall"),
        (
            AzureVaultState::SubscriptionDisabled,
            403,
            "ReadOnlyDisabledSubscription",
        ),
        (AzureVaultState::Deleted, 404, "VaultNotFound"),
    ] {
        assert!(trial.sim.world.azure.set_vault("tsp-test", state));
        assert_eq!(codes(&mut trial), both(status, code));
    }
}

#[test]
fn an_aes_key_wraps_by_the_algorithm_of_its_size_alone() {
    for (bytes, own, other) in [(16, "A128KW", "A256KW"), (32, "A256KW", "A128KW")] {
        let mut world = vector_world();
        let key = world.azure.keys.iter_mut().find(|key| key.vault == HSM);
        key.unwrap().versions[0].material_hex = Some("5a".repeat(bytes));
        let mut trial = Trial::of_world(&world);
        let scope = [("scope", "https://managedhsm.azure.net/.default")];
        let bearer = text(&trial.ask(&grant(&scope)), "access_token").to_owned();
        let url = |operation: &str| {
            format!("https://{HSM}/keys/tenant-1/{VERSION}/{operation}?api-version=7.4")
        };
        let dek = BASE64URL.encode([7; 32]);
        let request = json!({ "alg": own, "value": dek });
        let wrapped = trial.ask(&post_json(&url("wrapkey"), &bearer, &request));
        assert_eq!(text(&wrapped, "value").len(), 54, "40 bytes");
        let request = json!({ "alg": own, "value": wrapped["value"] });
        let unwrapped = trial.ask(&post_json(&url("unwrapkey"), &bearer, &request));
        assert_eq!(text(&unwrapped, "value"), dek);
        let request = json!({ "alg": other, "value": dek });
        let refused = trial.refused(&post_json(&url("wrapkey"), &bearer, &request));
        assert_eq!((refused.0, refused.1.as_str()), (400, "BadParameter"));
    }
}

#[test]
fn an_algorithm_that_is_not_the_keys_is_refused() {
    let mut trial = trial();
    let bearer = token(&mut trial);
    for alg in ["A256KW", "RSA-OAEP-512", ""] {
        let request = json!({ "alg": alg, "value": "AAEC" });
        let refused = trial.refused(&post_json(&vault_url("wrapkey"), &bearer, &request));
        assert_eq!((refused.0, refused.1.as_str()), (400, "BadParameter"));
    }
    let long = json!({ "alg": "RSA-OAEP-256", "value": BASE64URL.encode([0; 300]) });
    assert_eq!(
        trial
            .refused(&post_json(&vault_url("wrapkey"), &bearer, &long))
            .0,
        400
    );
}

#[test]
fn a_client_that_knows_the_simulator_by_another_name_reaches_the_vault_that_has_the_key() {
    let mut trial = Trial::of_sample(&SampleShape::default());
    let request = json!({});
    let reply = trial.send(&post_json(
        "https://localhost:1/keys/tenant-3//wrapkey?api-version=7.4",
        "x",
        &request,
    ));
    assert_eq!(reply.status, 401);
    let reply = trial.send(&post_json(
        "https://localhost:1/keys/none//wrapkey?api-version=7.4",
        "x",
        &request,
    ));
    assert_eq!(body(&reply)["error"]["code"], "VaultNotFound");
}

#[test]
fn discovery_names_the_endpoint_under_which_it_was_asked() {
    let url = format!("https://localhost:7/{TENANT}/v2.0/.well-known/openid-configuration");
    let answer = trial().ask(&Request::made(Method::GET, &url, &[], ""));
    assert_eq!(
        text(&answer, "token_endpoint"),
        format!("https://localhost:7/{TENANT}/oauth2/v2.0/token")
    );
    let url = "https://login.microsoftonline.com/common/discovery/instance?api-version=1.1";
    let answer = trial().ask(&Request::made(Method::GET, url, &[], ""));
    assert!(answer["metadata"].as_array().unwrap().len() >= 3);
}
