//! CipherTrust Manager: the same ciphertexts as others computed, tokens and their life, states and errors.

use http::Method;
use serde_json::{Value, json};

use crate::kmssim::{
    exchange::{Failure, Refusal, Request, Verdict},
    testing::{Trial, VECTORS_UNIX_S, body, data, post_json, text},
    world::{
        CredentialState, ThalesDoc, ThalesKeyDoc, ThalesKeyState, ThalesUserDoc, ThalesVersionDoc,
        WorldDoc,
    },
};

const URL: &str = "https://ciphertrust.example";

fn vector_world() -> WorldDoc {
    let file = data("thales-ciphertrust.json");
    let response = &file["cases"][0]["response"];
    let user = |domain: &str| ThalesUserDoc {
        username: "tsp".to_owned(),
        password: "p".to_owned(),
        auth_domain: domain.to_owned(),
        connection: "local_account".to_owned(),
        domains: Vec::new(),
        state: CredentialState::Active,
    };
    let version = |id: &str, material: Option<&str>| ThalesVersionDoc {
        id: id.to_owned(),
        state: ThalesKeyState::Active,
        material_hex: material.map(str::to_owned),
    };
    WorldDoc {
        thales: ThalesDoc {
            users: vec![user("root"), user("tenant-1")],
            keys: vec![ThalesKeyDoc {
                name: "tsp-kek".to_owned(),
                domain: "root".to_owned(),
                versions: vec![
                    version("version-0", None),
                    version("version-1", None),
                    version(text(response, "id"), Some(text(&file, "kek_hex"))),
                ],
                usage_mask: 12,
                allows: Vec::new(),
            }],
            ..ThalesDoc::default()
        },
        ..WorldDoc::default()
    }
}

fn trial() -> Trial {
    Trial::of_world(&vector_world())
}

fn post(path: &str, token: &str, body: &Value) -> Request {
    post_json(&format!("{URL}/api/v1{path}"), token, body)
}

fn log_in(trial: &mut Trial) -> Value {
    let request = json!({ "grant_type": "password", "username": "tsp", "password": "p" });
    trial.ask(&post("/auth/tokens", "", &request))
}

fn token(trial: &mut Trial) -> String {
    text(&log_in(trial), "jwt").to_owned()
}

#[test]
fn it_computes_what_others_computed_and_opens_it() {
    let file = data("thales-ciphertrust.json");
    let mut trial = trial();
    let jwt = token(&mut trial);
    for case in file["cases"].as_array().unwrap() {
        let mut request = case["request"].clone();
        request["iv"] = case["response"]["iv"].clone();
        let answer = trial.ask(&post("/crypto/encrypt", &jwt, &request));
        assert_eq!(answer, case["response"], "{}", case["name"]);
        let opened = trial.ask(&post("/crypto/decrypt", &jwt, &case["decrypt_request"]));
        assert_eq!(opened["plaintext"], case["request"]["plaintext"]);
    }
}

#[test]
fn token_requests_of_all_kinds_are_answered_with_the_known_members() {
    let file = data("thales-ciphertrust.json");
    let mut trial = trial();
    let mut refresh = String::new();
    for case in file["token_requests"].as_array().unwrap() {
        let mut request = case["body"].clone();
        if request["grant_type"] == "refresh_token" {
            request["refresh_token"] = refresh.clone().into();
        }
        for path in ["/auth/tokens", "/auth/tokens/"] {
            let answer = trial.ask(&post(path, "", &request));
            assert_eq!(
                (&answer["duration"], &answer["token_type"]),
                (&json!(300), &json!("Bearer"))
            );
            for member in file["token_response"].as_object().unwrap().keys() {
                let optional = member == "refresh_token_expires_in";
                assert!(optional || !answer[member].is_null(), "{member}");
            }
            refresh = text(&answer, "refresh_token").to_owned();
        }
    }
}

#[test]
fn errors_say_the_words_that_clients_go_by() {
    let mut trial = trial();
    let jwt = token(&mut trial);
    let file = data("thales-ciphertrust.json");
    let mut decrypt = file["cases"][0]["decrypt_request"].clone();
    decrypt["aad"] = "AAAA".into();
    let wrong = json!({ "grant_type": "password", "username": "tsp", "password": "wrong" });
    let unknown = json!({ "id": "none", "plaintext": "AAEC" });
    for (request, index) in [
        (post("/auth/tokens", "", &wrong), 0),
        (post("/crypto/encrypt", &jwt, &unknown), 1),
        (post("/crypto/decrypt", &jwt, &decrypt), 3),
    ] {
        let expected = &file["errors"][index];
        let reply = trial.send(&request);
        let found = body(&reply);
        assert_eq!(reply.status, expected["status"]);
        assert_eq!(found["code"], expected["body"]["code"]);
        let word = |value: &Value| {
            text(value, "codeDesc")
                .split(':')
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(word(&found), word(&expected["body"]));
    }
}

#[test]
fn a_call_without_accept_is_refused() {
    let mut trial = trial();
    let headers = [("content-type", "application/json")];
    let url = format!("{URL}/api/v1/auth/tokens");
    let request = Request::made(
        Method::POST,
        &url,
        &headers,
        r#"{"username":"tsp","password":"p"}"#,
    );
    let reply = trial.send(&request);
    assert_eq!(
        text(&body(&reply), "codeDesc"),
        "NCERRBadRequest: Accept header is invalid."
    );
    assert_eq!(reply.verdict, Verdict::Refused(Refusal::Protocol));
}

#[test]
fn a_token_lives_five_minutes_and_a_refresh_token_gives_the_next() {
    let mut trial = trial();
    let first = log_in(&mut trial);
    let encrypt = |jwt: &str| {
        post(
            "/crypto/encrypt",
            jwt,
            &json!({ "id": "tsp-kek", "plaintext": "AAEC" }),
        )
    };
    let jwt = text(&first, "jwt").to_owned();
    trial.ask(&encrypt(&jwt));
    trial.set_time(VECTORS_UNIX_S + 300);
    let reply = trial.send(&encrypt(&jwt));
    assert_eq!(
        (reply.status, reply.verdict),
        (401, Verdict::Refused(Refusal::Token))
    );
    assert!(
        reply.reason.contains("Token is expired by"),
        "{}",
        reply.reason
    );
    let refresh = json!({ "grant_type": "refresh_token", "refresh_token": first["refresh_token"] });
    let next = trial.ask(&post("/auth/tokens", "", &refresh));
    assert_eq!(
        next["refresh_token"], first["refresh_token"],
        "it stays the same on use"
    );
    trial.ask(&encrypt(text(&next, "jwt")));
    assert!(trial.sim.world.thales.revoke_tokens("tsp"));
    assert_eq!(trial.refused(&post("/auth/tokens", "", &refresh)).0, 401);
    assert_eq!(
        trial.refused(&encrypt(text(&next, "jwt"))).2,
        Verdict::Failed(Failure::Revoked)
    );
    token(&mut trial);
}

#[test]
fn a_refresh_token_with_a_lifetime_ends() {
    let mut trial = trial();
    let request = json!({ "username": "tsp", "password": "p", "refresh_token_lifetime": 60 });
    let answer = trial.ask(&post("/auth/tokens", "", &request));
    assert_eq!(answer["refresh_token_expires_in"], 3599);
    let refresh =
        json!({ "grant_type": "refresh_token", "refresh_token": answer["refresh_token"] });
    trial.set_time(VECTORS_UNIX_S + 3599);
    trial.ask(&post("/auth/tokens", "", &refresh));
    trial.set_time(VECTORS_UNIX_S + 3600);
    assert_eq!(trial.refused(&post("/auth/tokens", "", &refresh)).0, 401);
}

#[test]
fn a_token_acts_in_one_domain_only() {
    let mut trial = trial();
    let request = json!({ "username": "tsp", "password": "p", "auth_domain": "tenant-1" });
    let jwt = text(&trial.ask(&post("/auth/tokens", "", &request)), "jwt").to_owned();
    let encrypt = json!({ "id": "tsp-kek", "plaintext": "AAEC" });
    assert_eq!(
        trial.refused(&post("/crypto/encrypt", &jwt, &encrypt)).0,
        404
    );
    let request =
        json!({ "username": "tsp", "password": "p", "auth_domain": "tenant-1", "domain": "root" });
    assert_eq!(
        trial.refused(&post("/auth/tokens", "", &request)).1,
        "NCERRInsufficientPermissions"
    );
}

#[test]
fn a_key_is_found_by_name_and_by_the_id_of_a_version() {
    let mut trial = trial();
    let jwt = token(&mut trial);
    let mut version = |request: Value| {
        let answer = trial.ask(&post("/crypto/encrypt", &jwt, &request));
        answer["version"].as_u64().unwrap()
    };
    let plaintext = "AAEC";
    assert_eq!(
        version(json!({ "id": "tsp-kek", "plaintext": plaintext })),
        2
    );
    assert_eq!(
        version(json!({ "id": "tsp-kek", "type": "name", "plaintext": plaintext, "version": 0 })),
        0
    );
    assert_eq!(
        version(json!({ "id": "version-1", "plaintext": plaintext })),
        1
    );
    assert_eq!(
        version(json!({ "id": "version-1", "type": "id", "plaintext": plaintext })),
        1
    );
    let wrong = json!({ "id": "tsp-kek", "type": "id", "plaintext": plaintext });
    assert_eq!(trial.refused(&post("/crypto/encrypt", &jwt, &wrong)).0, 404);
}

#[test]
fn a_rotation_between_wrap_and_unwrap_needs_the_version() {
    let mut trial = trial();
    let jwt = token(&mut trial);
    let sealed = trial.ask(&post(
        "/crypto/encrypt",
        &jwt,
        &json!({ "id": "tsp-kek", "plaintext": "AAEC" }),
    ));
    assert_eq!(
        trial
            .sim
            .world
            .thales
            .change_keys("tsp-kek", |key| key.rotate("new-version".to_owned())),
        1
    );
    let mut request = json!({ "id": "tsp-kek", "ciphertext": sealed["ciphertext"], "tag": sealed["tag"],
        "iv": sealed["iv"], "mode": "gcm" });
    assert_eq!(
        trial.refused(&post("/crypto/decrypt", &jwt, &request)).1,
        "NCERRCryptoOperationFailed"
    );
    request["version"] = sealed["version"].clone();
    let opened = trial.ask(&post("/crypto/decrypt", &jwt, &request));
    assert_eq!(text(&opened, "plaintext"), "AAEC");
}

#[test]
fn states_usage_licence_and_permission_are_enforced() {
    let mut trial = trial();
    let jwt = token(&mut trial);
    let encrypt = json!({ "id": "tsp-kek", "plaintext": "AAEC" });
    let sealed = trial.ask(&post("/crypto/encrypt", &jwt, &encrypt));
    let decrypt = json!({ "id": "tsp-kek", "ciphertext": sealed["ciphertext"], "tag": sealed["tag"], "iv": sealed["iv"] });
    let both = |trial: &mut Trial| {
        let replies = [("/crypto/encrypt", &encrypt), ("/crypto/decrypt", &decrypt)]
            .map(|(path, body)| trial.send(&post(path, &jwt, body)));
        replies.map(|reply| (reply.status, reply.code))
    };
    let same = |status, code: &str| [(status, code.to_owned()), (status, code.to_owned())];
    for state in [
        ThalesKeyState::PreActive,
        ThalesKeyState::Deactivated,
        ThalesKeyState::Destroyed,
    ] {
        trial
            .sim
            .world
            .thales
            .change_keys("tsp-kek", |key| key.set_state(None, state));
        assert_eq!(both(&mut trial), same(409, "NCERRConflict"));
    }
    trial
        .sim
        .world
        .thales
        .change_keys("tsp-kek", |key| key.set_state(None, ThalesKeyState::Active));
    trial
        .sim
        .world
        .thales
        .change_keys("tsp-kek", |key| key.doc.usage_mask = 4);
    assert_eq!(
        both(&mut trial),
        [(200, String::new()), (409, "NCERRConflict".to_owned())]
    );
    trial
        .sim
        .world
        .thales
        .change_keys("tsp-kek", |key| key.doc.usage_mask = 12);
    trial
        .sim
        .world
        .thales
        .change_keys("tsp-kek", |key| key.denied.set(None, true));
    assert_eq!(both(&mut trial), same(403, "NCERRInsufficientPermissions"));
    trial
        .sim
        .world
        .thales
        .change_keys("tsp-kek", |key| key.denied.set(None, false));
    trial.sim.world.thales.licensed = false;
    let reply = trial.send(&post("/crypto/encrypt", &jwt, &encrypt));
    assert_eq!(reply.verdict, Verdict::Failed(Failure::Account));
    assert!(
        reply.reason.starts_with("License not installed"),
        "{}",
        reply.reason
    );
    trial.sim.world.thales.licensed = true;
    assert!(
        trial
            .sim
            .world
            .thales
            .set_credential("tsp", CredentialState::Disabled)
    );
    assert_eq!(both(&mut trial), same(401, "NCERRUnauthorizedAccess"));
}

#[test]
fn an_empty_member_is_refused_rather_than_ignored() {
    let mut trial = trial();
    let jwt = token(&mut trial);
    for request in [
        json!({ "id": "tsp-kek", "plaintext": "AAEC", "aad": "" }),
        json!({ "id": "tsp-kek" }),
        json!({ "id": "tsp-kek", "plaintext": "*" }),
        json!({ "id": "tsp-kek", "plaintext": "AAEC", "iv": "AAEC" }),
        json!({ "id": "tsp-kek", "plaintext": "AAEC", "mode": "cbc" }),
        json!({ "id": "tsp-kek", "plaintext": "AAEC", "type": "colour" }),
        json!([]),
    ] {
        let (status, _, verdict) = trial.refused(&post("/crypto/encrypt", &jwt, &request));
        assert_eq!(status, 400, "{request}");
        assert!(matches!(verdict, Verdict::Refused(_)));
    }
}

#[test]
fn a_key_can_be_looked_up_and_random_bytes_are_given() {
    let mut trial = trial();
    let bearer = format!("Bearer {}", token(&mut trial));
    let headers = [
        ("authorization", bearer.as_str()),
        ("accept", "application/json"),
    ];
    let url = format!("{URL}/api/v1/vault/keys2/tsp-kek?type=name");
    let answer = trial.ask(&Request::made(Method::GET, &url, &headers, ""));
    assert_eq!(
        (
            &answer["version"],
            &answer["usageMask"],
            text(&answer, "state")
        ),
        (&json!(2), &json!(12), "Active")
    );
    let url = format!("{URL}/api/v1/vault/random?bytes=33");
    let answer = trial.ask(&Request::made(Method::GET, &url, &headers, ""));
    assert_eq!(text(&answer, "bytes").len(), 44);
}
