//! Google: tokens that google-auth and PyJWT signed are accepted and forged ones are not; values, checksums and errors.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::Method;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::kmssim::{
    exchange::{Failure, Refusal, Reply, Request, Verdict},
    testing::{Trial, VECTORS_UNIX_S, body, data, post_form, post_json, text},
    world::{
        CredentialState, GcpDoc, GcpKeyDoc, GcpProjectState, GcpPublicKeyDoc, GcpServiceAccountDoc,
        GcpVersionState, WorldDoc,
    },
};

const EMAIL: &str = "tsp-test@tsp-test-project.iam.gserviceaccount.com";
const KEY: &str =
    "projects/tsp-test-project/locations/europe-west1/keyRings/tsp/cryptoKeys/tenant-1";
const BASE: &str = "https://cloudkms.googleapis.com/v1";
const TOKEN_URL: &str = "https://oauth2.googleapis.com/token";
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";

fn vector_world() -> WorldDoc {
    let file = data("gcp-jwt.json");
    WorldDoc {
        gcp: GcpDoc {
            service_accounts: vec![GcpServiceAccountDoc {
                email: EMAIL.to_owned(),
                keys: vec![GcpPublicKeyDoc {
                    id: "0123456789abcdef0123456789abcdef01234567".to_owned(),
                    public_key_pem: text(&file, "public_key_pem").to_owned(),
                }],
                state: CredentialState::Active,
                delegation: false,
            }],
            projects: Vec::new(),
            keys: vec![GcpKeyDoc {
                name: KEY.to_owned(),
                versions: vec![GcpVersionState::Enabled; 3],
                primary: 3,
                protection: "HSM".to_owned(),
                purpose: "ENCRYPT_DECRYPT".to_owned(),
                allows: vec![EMAIL.to_owned()],
            }],
        },
        ..WorldDoc::default()
    }
}

fn trial() -> Trial {
    Trial::of_world(&vector_world())
}

fn grant(assertion: &str) -> Request {
    post_form(
        TOKEN_URL,
        &[("grant_type", JWT_BEARER), ("assertion", assertion)],
    )
}

/// Signs with the test's service account key.
fn signed(claims: &Value, kid: Option<&str>) -> String {
    let pem = include_bytes!("../data/gcp-service-account-TEST-ONLY.pem");
    let mut header = Header::new(Algorithm::RS256);
    header.kid = kid.map(str::to_owned);
    encode(&header, claims, &EncodingKey::from_rsa_pem(pem).unwrap()).unwrap()
}

/// Claims of a self-signed token, with `changes` made; null takes a member away.
fn own_claims(changes: Value) -> Value {
    changed(
        json!({ "iss": EMAIL, "sub": EMAIL, "aud": "https://cloudkms.googleapis.com/",
            "iat": VECTORS_UNIX_S, "exp": VECTORS_UNIX_S + 3600 }),
        changes,
    )
}

fn changed(mut claims: Value, changes: Value) -> Value {
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        members.insert(name.clone(), value.clone());
    }
    members.retain(|_, value| !value.is_null());
    claims
}

fn token() -> String {
    signed(&own_claims(json!({})), None)
}

fn crypto(method: &str, body: &Value) -> Request {
    post_json(&format!("{BASE}/{KEY}:{method}"), &token(), body)
}

/// `status` and `reason` of an error.
fn error(reply: &Reply) -> (u16, String, String) {
    let body = body(reply);
    let error = &body["error"];
    assert_eq!(error["code"], reply.status);
    let reason = error["details"][0]["reason"].as_str().unwrap_or_default();
    (
        reply.status,
        text(error, "status").to_owned(),
        reason.to_owned(),
    )
}

#[test]
fn all_tokens_that_others_signed_are_accepted_but_for_the_delegated_one() {
    let file = data("gcp-jwt.json");
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() >= 8);
    for case in cases {
        let mut trial = trial();
        let jwt = text(case, "jwt");
        if text(case, "use").starts_with("bearer") {
            let request = post_json(
                &format!("{BASE}/{KEY}:encrypt"),
                jwt,
                &json!({ "plaintext": "AAEC" }),
            );
            trial.ask(&request);
        } else if text(case, "name").contains("delegation") {
            assert_eq!(trial.refused(&grant(jwt)).1, "unauthorized_client");
        } else {
            let answer = trial.ask(&grant(jwt));
            assert_eq!(answer["expires_in"], 3599);
            let bearer = text(&answer, "access_token");
            let request = post_json(
                &format!("{BASE}/{KEY}:encrypt"),
                bearer,
                &json!({ "plaintext": "AAEC" }),
            );
            trial.ask(&request);
        }
    }
}

#[test]
fn the_whole_token_request_of_google_auth_is_accepted() {
    let file = data("gcp-jwt.json");
    let made = &file["token_request"];
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let request = Request::made(
        Method::POST,
        text(made, "url"),
        &headers,
        text(made, "body").to_owned(),
    );
    trial().ask(&request);
}

#[test]
fn forged_tokens_are_refused_as_assertion_and_as_bearer() {
    let file = data("gcp-jwt.json");
    let cases = file["must_fail"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let jwt = text(case, "jwt");
        let (status, code, verdict) = trial().refused(&grant(jwt));
        assert_eq!(
            (status, code.as_str()),
            (400, "invalid_grant"),
            "{}",
            case["name"]
        );
        assert!(matches!(
            verdict,
            Verdict::Refused(Refusal::Credential | Refusal::Token)
        ));
        let request = post_json(
            &format!("{BASE}/{KEY}:encrypt"),
            jwt,
            &json!({ "plaintext": "AAEC" }),
        );
        assert_eq!(trial().refused(&request).0, 401, "{}", case["name"]);
    }
}

#[test]
fn a_self_signed_token_must_be_right_in_every_claim() {
    let try_with = |changes: Value| {
        let token = signed(&own_claims(changes), None);
        let request = post_json(
            &format!("{BASE}/{KEY}:encrypt"),
            &token,
            &json!({ "plaintext": "AAEC" }),
        );
        trial().send(&request)
    };
    assert_eq!(try_with(json!({})).status, 200);
    assert_eq!(try_with(json!({ "aud": null, "scope": SCOPE })).status, 200);
    assert_eq!(
        try_with(json!({ "aud": ["https://cloudkms.googleapis.com/"] })).status,
        200
    );
    let now = VECTORS_UNIX_S;
    for changes in [
        json!({ "aud": "https://cloudkms.googleapis.com" }),
        json!({ "aud": "https://kms.googleapis.com/" }),
        json!({ "aud": null }),
        json!({ "scope": SCOPE }),
        json!({ "sub": null }),
        json!({ "sub": "someone@else.iam.gserviceaccount.com" }),
        json!({ "iss": "someone@else.iam.gserviceaccount.com" }),
        json!({ "exp": now + 3601 }),
        json!({ "exp": now }),
        json!({ "exp": null }),
        json!({ "iat": null }),
        json!({ "iat": now + 60, "exp": now + 600 }),
        json!({ "iat": now - 7200, "exp": now - 3600 }),
    ] {
        let reply = try_with(changes.clone());
        assert_eq!(
            error(&reply),
            (
                401,
                "UNAUTHENTICATED".to_owned(),
                "JWT_TOKEN_INVALID".to_owned()
            ),
            "{changes}"
        );
    }
    let reply = try_with(json!({ "aud": null, "scope": "https://www.googleapis.com/auth/drive" }));
    assert_eq!(error(&reply).2, "ACCESS_TOKEN_SCOPE_INSUFFICIENT");
}

#[test]
fn a_key_id_must_be_the_accounts_if_it_is_there() {
    let mut trial = trial();
    for (kid, status) in [
        (None, 200),
        (Some("0123456789abcdef0123456789abcdef01234567"), 200),
        (Some("other"), 401),
    ] {
        let token = signed(&own_claims(json!({})), kid);
        let request = post_json(
            &format!("{BASE}/{KEY}:encrypt"),
            &token,
            &json!({ "plaintext": "AAEC" }),
        );
        assert_eq!(trial.send(&request).status, status, "{kid:?}");
    }
}

#[test]
fn an_assertion_must_be_right_in_every_claim() {
    let now = VECTORS_UNIX_S;
    let claims =
        json!({ "iss": EMAIL, "scope": SCOPE, "aud": TOKEN_URL, "iat": now, "exp": now + 3600 });
    let code = |changes: Value| {
        let assertion = signed(&changed(claims.clone(), changes), None);
        trial().send(&grant(&assertion)).code
    };
    assert_eq!(code(json!({})), "");
    assert_eq!(code(json!({ "sub": EMAIL })), "");
    for (changes, expected) in [
        (
            json!({ "aud": "https://example.com/token" }),
            "invalid_grant",
        ),
        (json!({ "aud": null }), "invalid_grant"),
        (json!({ "scope": null }), "invalid_scope"),
        (json!({ "exp": now + 3601 }), "invalid_grant"),
        (
            json!({ "iat": now + 60, "exp": now + 120 }),
            "invalid_grant",
        ),
        (json!({ "sub": "admin@example.com" }), "unauthorized_client"),
        (
            json!({ "iss": "nobody@nowhere.iam.gserviceaccount.com" }),
            "invalid_grant",
        ),
    ] {
        assert_eq!(code(changes.clone()), expected, "{changes}");
    }
    let mut late = trial();
    late.set_time(now + 3600);
    let (_, _, verdict) = late.refused(&grant(&signed(&claims, None)));
    assert_eq!(verdict, Verdict::Refused(Refusal::Clock));
}

#[test]
fn access_tokens_end_and_can_be_revoked() {
    let mut trial = trial();
    let now = VECTORS_UNIX_S;
    let claims =
        json!({ "iss": EMAIL, "scope": SCOPE, "aud": TOKEN_URL, "iat": now, "exp": now + 3600 });
    let answer = trial.ask(&grant(&signed(&claims, None)));
    let bearer = text(&answer, "access_token").to_owned();
    let request = post_json(
        &format!("{BASE}/{KEY}:encrypt"),
        &bearer,
        &json!({ "plaintext": "AAEC" }),
    );
    trial.ask(&request);
    trial.set_time(now + 3600);
    let reply = trial.send(&request);
    assert_eq!(error(&reply).2, "ACCESS_TOKEN_EXPIRED");
    assert_eq!(reply.verdict, Verdict::Refused(Refusal::Token));
    trial.set_time(now);
    assert!(trial.sim.world.gcp.revoke_tokens(EMAIL));
    let reply = trial.send(&request);
    assert_eq!(reply.verdict, Verdict::Failed(Failure::Revoked));
    assert!(
        trial
            .sim
            .world
            .gcp
            .set_credential(EMAIL, CredentialState::Disabled)
    );
    assert_eq!(
        error(&trial.send(&crypto("encrypt", &json!({})))).2,
        "ACCOUNT_STATE_INVALID"
    );
    assert_eq!(
        trial.refused(&grant(&signed(&claims, None))).1,
        "disabled_client"
    );
}

#[test]
fn requests_of_googles_client_are_answered_with_the_members_it_expects() {
    let file = data("gcp-kms-json.json");
    let mut trial = trial();
    let encrypt = &file["encrypt"];
    let url = format!("https://cloudkms.googleapis.com{}", text(encrypt, "path"));
    let answer = trial.ask(&post_json(&url, &token(), &encrypt["request_body"]));
    let expected = &encrypt["response_body"];
    for member in [
        "name",
        "verifiedPlaintextCrc32c",
        "verifiedAdditionalAuthenticatedDataCrc32c",
        "protectionLevel",
    ] {
        assert_eq!(answer[member], expected[member], "{member}");
    }
    let members = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(members(&answer), members(expected));
    let ciphertext = text(&answer, "ciphertext");
    let checksum = crc32c::crc32c(&BASE64.decode(ciphertext).unwrap()).to_string();
    assert_eq!(text(&answer, "ciphertextCrc32c"), checksum);

    let decrypt = &file["decrypt"];
    let mut request = decrypt["request_body"].clone();
    request["ciphertext"] = ciphertext.into();
    request["ciphertextCrc32c"] = checksum.into();
    let url = format!("https://cloudkms.googleapis.com{}", text(decrypt, "path"));
    let answer = trial.ask(&post_json(&url, &token(), &request));
    assert_eq!(answer, decrypt["response_body"]);
}

#[test]
fn checksums_are_those_that_others_found_and_a_wrong_one_is_refused() {
    let file = data("gcp-crc32c.json");
    let mut trial = trial();
    for case in file["cases"].as_array().unwrap() {
        let plaintext = text(case, "data_b64");
        for checksum in [case["json_field"].clone(), case["crc32c_u32"].clone()] {
            let request = json!({ "plaintext": plaintext, "plaintextCrc32c": checksum });
            let reply = trial.send(&crypto("encrypt", &request));
            // Too long for an HSM key, some of them are.
            if reply.status == 200 {
                assert_eq!(body(&reply)["verifiedPlaintextCrc32c"], true);
            } else {
                assert!(reply.reason.contains("too large"), "{}", reply.reason);
            }
        }
        let request = json!({ "plaintext": plaintext, "plaintextCrc32c": "1" });
        let reply = trial.send(&crypto("encrypt", &request));
        assert!(
            reply.reason.contains("plaintext_crc32c"),
            "{}",
            reply.reason
        );
        assert_eq!(error(&reply).1, "INVALID_ARGUMENT");
    }
}

#[test]
fn members_that_are_false_or_empty_are_left_out() {
    let mut trial = trial();
    let sealed = trial.ask(&crypto("encrypt", &json!({})));
    assert_eq!(sealed.as_object().unwrap().len(), 4, "{sealed}");
    let opened = trial.ask(&crypto(
        "decrypt",
        &json!({ "ciphertext": sealed["ciphertext"] }),
    ));
    assert_eq!(
        opened,
        json!({ "plaintextCrc32c": "0", "usedPrimary": true, "protectionLevel": "HSM" })
    );
}

#[test]
fn enums_are_numbers_if_the_client_asks_for_them() {
    let mut trial = trial();
    let url = format!("{BASE}/{KEY}:encrypt?$alt=json;enum-encoding=int");
    let answer = trial.ask(&post_json(&url, &token(), &json!({ "plaintext": "AAEC" })));
    assert_eq!(answer["protectionLevel"], 2);
    let url = format!("{BASE}/{KEY}:encrypt?fields=x");
    assert_eq!(trial.refused(&post_json(&url, &token(), &json!({}))).0, 400);
}

#[test]
fn a_ciphertext_opens_only_with_its_data_its_key_and_all_its_bits() {
    let mut world = vector_world();
    let mut other = world.gcp.keys[0].clone();
    other.name = KEY.replace("tenant-1", "tenant-2");
    world.gcp.keys.push(other);
    let mut trial = Trial::of_world(&world);
    let aad = BASE64.encode("tenant-1");
    let sealed = trial.ask(&crypto(
        "encrypt",
        &json!({ "plaintext": "AAEC", "additionalAuthenticatedData": aad }),
    ));
    let ciphertext = BASE64.decode(text(&sealed, "ciphertext")).unwrap();
    let decrypt = |bytes: &[u8], aad: &str| {
        crypto(
            "decrypt",
            &json!({ "ciphertext": BASE64.encode(bytes), "additionalAuthenticatedData": aad }),
        )
    };
    trial.ask(&decrypt(&ciphertext, &aad));
    let (status, _, verdict) = trial.refused(&decrypt(&ciphertext, ""));
    assert_eq!(
        (status, verdict),
        (400, Verdict::Failed(Failure::Ciphertext))
    );
    for at in 0..ciphertext.len() {
        let mut bytes = ciphertext.clone();
        bytes[at] ^= 0x80;
        assert_eq!(trial.refused(&decrypt(&bytes, &aad)).0, 400, "byte {at}");
        assert_eq!(trial.refused(&decrypt(&ciphertext[..at], &aad)).0, 400);
    }
    let url = format!("{BASE}/{}:decrypt", KEY.replace("tenant-1", "tenant-2"));
    let request =
        json!({ "ciphertext": BASE64.encode(&ciphertext), "additionalAuthenticatedData": aad });
    let reply = trial.send(&post_json(&url, &token(), &request));
    assert_eq!(
        reply.reason,
        "Decryption failed: verify that 'name' refers to the correct CryptoKey."
    );
}

#[test]
fn a_rotated_key_opens_the_old_and_says_that_it_was_not_the_primary() {
    let mut trial = trial();
    let sealed = trial.ask(&crypto("encrypt", &json!({ "plaintext": "AAEC" })));
    for key in trial.sim.world.gcp.keys_named("tenant-1") {
        key.rotate();
    }
    let again = trial.ask(&crypto("encrypt", &json!({ "plaintext": "AAEC" })));
    assert!(text(&again, "name").ends_with("/cryptoKeyVersions/4"));
    let opened = trial.ask(&crypto(
        "decrypt",
        &json!({ "ciphertext": sealed["ciphertext"] }),
    ));
    assert_eq!(
        (text(&opened, "plaintext"), &opened["usedPrimary"]),
        ("AAEC", &Value::Null)
    );
}

#[test]
fn each_state_of_a_version_has_its_precondition() {
    let mut trial = trial();
    let sealed = trial.ask(&crypto("encrypt", &json!({ "plaintext": "AAEC" })));
    for (state, word) in [
        (GcpVersionState::Disabled, "DISABLED"),
        (GcpVersionState::Destroyed, "DESTROYED"),
        (GcpVersionState::DestroyScheduled, "DESTROY_SCHEDULED"),
        (GcpVersionState::PendingGeneration, "PENDING_GENERATION"),
    ] {
        for key in trial.sim.world.gcp.keys_named(KEY) {
            key.set_state(None, state);
        }
        for request in [
            crypto("encrypt", &json!({ "plaintext": "AAEC" })),
            crypto("decrypt", &json!({ "ciphertext": sealed["ciphertext"] })),
        ] {
            let reply = trial.send(&request);
            assert_eq!(error(&reply).1, "FAILED_PRECONDITION");
            assert!(
                reply
                    .reason
                    .ends_with(&format!("current state is: {word}.")),
                "{}",
                reply.reason
            );
            let violation = &body(&reply)["error"]["details"][0]["violations"][0];
            assert_eq!(text(violation, "type"), format!("KEY_{word}"));
        }
    }
}

#[test]
fn projects_without_billing_and_strangers_are_told_so() {
    let mut trial = trial();
    for (state, reason) in [
        (GcpProjectState::BillingDisabled, "BILLING_DISABLED"),
        (GcpProjectState::Suspended, "CONSUMER_SUSPENDED"),
        (GcpProjectState::ServiceDisabled, "SERVICE_DISABLED"),
    ] {
        assert!(trial.sim.world.gcp.set_project("tsp-test-project", state));
        let reply = trial.send(&crypto("encrypt", &json!({})));
        assert_eq!(
            error(&reply),
            (403, "PERMISSION_DENIED".to_owned(), reason.to_owned())
        );
        assert_eq!(reply.verdict, Verdict::Failed(Failure::Account));
    }
    assert!(
        trial
            .sim
            .world
            .gcp
            .set_project("tsp-test-project", GcpProjectState::Active)
    );
    for key in trial.sim.world.gcp.keys_named(KEY) {
        key.denied.set(None, true);
    }
    let reply = trial.send(&crypto("encrypt", &json!({})));
    assert_eq!(error(&reply).2, "IAM_PERMISSION_DENIED");
    assert!(
        reply
            .reason
            .contains("cloudkms.cryptoKeyVersions.useToEncrypt"),
        "{}",
        reply.reason
    );
}

#[test]
fn what_is_not_there_is_a_404_and_a_wrong_path_is_a_page() {
    let mut trial = trial();
    let url = format!("{BASE}/{}:encrypt", KEY.replace("tenant-1", "none"));
    assert_eq!(
        error(&trial.send(&post_json(&url, &token(), &json!({})))).1,
        "NOT_FOUND"
    );
    for path in [
        "/v1/projects/p:encrypt",
        "/v1/x",
        &format!("/v1/{KEY}:shred"),
        &format!("/v1//{KEY}:encrypt"),
    ] {
        let url = format!("https://cloudkms.googleapis.com{path}");
        let reply = trial.send(&post_json(&url, &token(), &json!({})));
        assert_eq!(
            (reply.status, &reply.headers["content-type"]),
            (404, &"text/html; charset=UTF-8".parse().unwrap())
        );
    }
}

#[test]
fn a_token_that_is_missing_or_garbage_is_refused_with_a_reason() {
    let mut trial = trial();
    let url = format!("{BASE}/{KEY}:encrypt");
    let headers = [("content-type", "application/json")];
    let without = Request::made(Method::POST, &url, &headers, "{}");
    assert_eq!(error(&trial.send(&without)).2, "CREDENTIALS_MISSING");
    for garbage in ["x", "a.b.c", "ya29.", "ya29.a.b.c", "...."] {
        let reply = trial.send(&post_json(&url, garbage, &json!({})));
        assert_eq!(
            error(&reply).2,
            "ACCESS_TOKEN_TYPE_UNSUPPORTED",
            "{garbage}"
        );
    }
}

#[test]
fn bodies_that_are_none_are_refused() {
    let mut trial = trial();
    for request in [
        json!([]),
        json!({ "plaintext": 7 }),
        json!({ "plaintext": "*" }),
        json!({ "plaintextCrc32c": "x" }),
        json!({ "unknown": 1 }),
        json!({ "plaintext": BASE64.encode(vec![0; 70_000]) }),
    ] {
        let reply = trial.send(&crypto("encrypt", &request));
        assert_eq!(error(&reply).1, "INVALID_ARGUMENT", "{request}");
        assert!(matches!(reply.verdict, Verdict::Refused(_)));
    }
    // Base64 of either alphabet, with padding or without, is taken.
    for plaintext in ["+/8=", "-_8=", "-_8", "+/8"] {
        trial.ask(&crypto("encrypt", &json!({ "plaintext": plaintext })));
    }
}

#[test]
fn a_key_can_be_looked_up() {
    let bearer = format!("Bearer {}", token());
    let url = format!("{BASE}/{KEY}");
    let request = Request::made(Method::GET, &url, &[("authorization", bearer.as_str())], "");
    let answer = trial().ask(&request);
    assert_eq!(text(&answer, "purpose"), "ENCRYPT_DECRYPT");
    assert_eq!(text(&answer["primary"], "state"), "ENABLED");
}
