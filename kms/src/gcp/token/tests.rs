use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jsonwebtoken::{DecodingKey, EncodingKey, Validation};
use serde_json::Value;
use tsp_wire::snapshot::KmsConfigDoc;

use super::*;
use crate::{
    RemoteKms,
    gcp::tests::{EMAIL, PEM, doc, gcp, json, now, with},
};

fn file() -> Value {
    json(include_str!("../../../tests/data/gcp-jwt.json"))
}

fn case(name: &str) -> Value {
    let file = file();
    let cases = file["cases"].as_array().unwrap();
    let case = cases
        .iter()
        .find(|case| case["name"].as_str().unwrap().starts_with(name));
    case.unwrap().clone()
}

/// Verifies a token with the public key of the vectors: its header and its claims.
fn verified(jwt: &str) -> jsonwebtoken::errors::Result<(Value, Value)> {
    let file = file();
    let pem = file["public_key_pem"].as_str().unwrap();
    let key = DecodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
    let mut validation = Validation::new(Algorithm::RS256);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let data = jsonwebtoken::decode::<Value>(jwt, &key, &validation)?;
    let (header, _) = jwt.split_once('.').unwrap();
    let header = serde_json::from_slice(&BASE64URL.decode(header).unwrap()).unwrap();
    Ok((header, data.claims))
}

fn step(
    gcp: &dyn RemoteKms,
    refused: Option<&KmsError>,
    session: &mut Session,
    now: SystemTime,
) -> Signed {
    match gcp.token_step(None, refused, session, now).unwrap() {
        TokenStep::Sign(sign) => sign().unwrap(),
        TokenStep::Call(_) => panic!("there is something to sign first"),
    }
}

fn own_token(signed: Signed) -> Token {
    match signed {
        Signed::Token(token) => token,
        Signed::Call(call) => panic!("{call:?}"),
    }
}

fn call(signed: Signed) -> TokenCall {
    match signed {
        Signed::Call(call) => *call,
        Signed::Token(token) => panic!("{token:?}"),
    }
}

fn jwt(token: &Token) -> &str {
    token.header().unwrap().strip_prefix("Bearer ").unwrap()
}

fn form(call: &TokenCall) -> Vec<(String, String)> {
    form_urlencoded::parse(call.request.body())
        .into_owned()
        .collect()
}

/// A document without the id of the private key, which published configurations lack.
fn without_key_id() -> KmsConfigDoc {
    with(doc(), |gcp| *gcp.private_key_id = None)
}

fn by_endpoint(doc: KmsConfigDoc) -> KmsConfigDoc {
    with(doc, |gcp| *gcp.token = GcpTokenKind::Endpoint)
}

#[test]
fn the_signer_signs_as_googles_and_another_library_do() {
    let key = EncodingKey::from_rsa_pem(PEM.as_bytes()).unwrap();
    let file = file();
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let input = case["signing_input"].as_str().unwrap();
        let signature =
            jsonwebtoken::crypto::sign(input.as_bytes(), &key, Algorithm::RS256).unwrap();
        assert_eq!(signature, case["signature_b64url"].as_str().unwrap());
        let (header, claims) = verified(case["jwt"].as_str().unwrap()).unwrap();
        assert_eq!((&header, &claims), (&case["header"], &case["claims"]));
    }
}

#[test]
fn tokens_that_must_fail_do() {
    let file = file();
    let cases = file["must_fail"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        assert!(
            verified(case["jwt"].as_str().unwrap()).is_err(),
            "{}",
            case["name"]
        );
    }
}

#[test]
fn an_own_token_says_what_googles_library_says() {
    let expected = case("self-signed audience");
    let token = own_token(step(&*gcp(&doc()), None, &mut Session::default(), now()));
    let (header, claims) = verified(jwt(&token)).unwrap();
    assert_eq!(
        (&header, &claims),
        (&expected["header"], &expected["claims"])
    );

    let token = own_token(step(
        &*gcp(&without_key_id()),
        None,
        &mut Session::default(),
        now(),
    ));
    let (header, _) = verified(jwt(&token)).unwrap();
    assert_eq!(header, case("oauth-assertion without kid")["header"]);
}

#[test]
fn a_private_endpoint_does_not_change_whom_a_token_is_for() {
    let mut doc = doc();
    doc.endpoint = Some("https://kms.internal:8443".to_owned());
    let token = own_token(step(&*gcp(&doc), None, &mut Session::default(), now()));
    let (_, claims) = verified(jwt(&token)).unwrap();
    assert_eq!(claims["aud"], "https://cloudkms.googleapis.com/");
}

#[test]
fn an_assertion_goes_to_the_endpoint_as_googles_library_sends_it() {
    let expected = case("oauth-assertion google-auth cloudkms scope");
    let request = &file()["token_request"];
    let call = call(step(
        &*gcp(&by_endpoint(doc())),
        None,
        &mut Session::default(),
        now(),
    ));
    let url = format!("https://{}{}", call.endpoint.host, call.request.path());
    assert_eq!(url, request["url"].as_str().unwrap());
    assert!(call.endpoint.tls && call.endpoint.port == 443);
    assert_eq!(
        call.request.header("content-type").unwrap(),
        request["headers"]["Content-Type"].as_str().unwrap()
    );
    assert_eq!(
        call.request.header("host").unwrap(),
        "oauth2.googleapis.com"
    );
    assert_eq!(call.request.header("accept").unwrap(), "application/json");

    let theirs = request["body"].as_str().unwrap();
    let theirs: Vec<(String, String)> = form_urlencoded::parse(theirs.as_bytes())
        .into_owned()
        .collect();
    let value = |form: &[(String, String)], name: &str| {
        let field = form.iter().find(|(other, _)| other == name);
        field.unwrap().1.clone()
    };
    let ours = form(&call);
    assert_eq!(ours.len(), theirs.len());
    assert_eq!(value(&ours, "grant_type"), value(&theirs, "grant_type"));
    let (header, claims) = verified(&value(&ours, "assertion")).unwrap();
    assert_eq!(
        (&header, &claims),
        (&expected["header"], &expected["claims"])
    );
    let (header, claims) = verified(&value(&theirs, "assertion")).unwrap();
    assert_eq!(
        (&header, &claims),
        (&expected["header"], &expected["claims"])
    );
}

#[test]
fn a_token_endpoint_of_the_configuration_is_asked_instead() {
    let cases = [
        ("http://127.0.0.1:5620/token", "127.0.0.1:5620", "/token"),
        ("http://oauth.internal/a/b-c", "oauth.internal", "/a/b-c"),
        ("http://oauth.internal", "oauth.internal", "/token"),
        ("http://oauth.internal/", "oauth.internal", "/token"),
    ];
    for (url, host, path) in cases {
        let mut doc = with(by_endpoint(doc()), |gcp| {
            *gcp.token_endpoint = Some(url.to_owned());
        });
        doc.allow_insecure = true;
        let call = call(step(&*gcp(&doc), None, &mut Session::default(), now()));
        assert!(!call.endpoint.tls);
        assert_eq!(call.request.header("host").unwrap(), host);
        assert_eq!(call.request.path(), path);
        let (_, assertion) = form(&call).pop().unwrap();
        let (_, claims) = verified(&assertion).unwrap();
        assert_eq!(claims["aud"], "https://oauth2.googleapis.com/token");
    }
}

#[test]
fn a_key_is_found_in_every_spelling_of_its_pem() {
    assert!(PEM.starts_with('#'));
    let spellings = [
        PEM.replace('\n', "\\n"),
        PEM.replace('\n', "\r\n"),
        PEM.replace('\n', "\\r\\n"),
        PEM.lines()
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n"),
        // The whole of Google's file, and the member in it.
        include_str!("../../../tests/data/gcp-TEST-ONLY-service-account.json").to_owned(),
        json(include_str!(
            "../../../tests/data/gcp-TEST-ONLY-service-account.json"
        ))["private_key"]
            .as_str()
            .unwrap()
            .to_owned(),
    ];
    for pem in spellings {
        let doc = with(doc(), |gcp| *gcp.private_key = Secret::new(pem));
        let token = own_token(step(&*gcp(&doc), None, &mut Session::default(), now()));
        verified(jwt(&token)).unwrap();
    }
}

fn answer<T>(
    status: u16,
    date: Option<SystemTime>,
    body: &str,
    read: impl FnOnce(&HttpAnswer<'_>) -> Result<T, KmsError>,
) -> Result<T, KmsError> {
    let headers = date.map_or_else(String::new, |date| {
        format!("date: {}\r\n", httpdate::fmt_http_date(date))
    });
    read(&HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: body.as_bytes(),
    })
}

fn read_token(status: u16, date: Option<SystemTime>, body: &str) -> Result<Token, KmsError> {
    let gcp = gcp(&by_endpoint(doc()));
    answer(status, date, body, |answer| gcp.read_token(answer, now()))
}

#[test]
fn an_access_token_is_read_whatever_stands_beside_it() {
    for body in [
        r#"{"access_token":"ya29.c.x-_","expires_in":3599,"token_type":"Bearer"}"#,
        r#" {"token_type":"bearer","scope":"x","expires_in":"3599","access_token":"ya29.c.x-_"} "#,
    ] {
        let token = read_token(200, None, body).unwrap();
        assert_eq!(token.header(), Some("Bearer ya29.c.x-_"));
        let over = token.expires_at().duration_since(now()).unwrap();
        assert_eq!(over.as_secs(), 3589);
    }
    let long = "x".repeat(9000);
    for (token, expires_in, kind) in [
        ("null", "3599", "\"Bearer\""),
        ("\"\"", "3599", "\"Bearer\""),
        ("7", "3599", "\"Bearer\""),
        ("\"a b\"", "3599", "\"Bearer\""),
        ("\"a\\u0041\"", "3599", "\"Bearer\""),
        ("\"a\\r\\nx: y\"", "3599", "\"Bearer\""),
        (long.as_str(), "3599", "\"Bearer\""),
        ("\"t\"", "null", "\"Bearer\""),
        ("\"t\"", "0", "\"Bearer\""),
        ("\"t\"", "-1", "\"Bearer\""),
        ("\"t\"", "\"soon\"", "\"Bearer\""),
        ("\"t\"", "3599", "\"mac\""),
        ("\"t\"", "3599", "null"),
    ] {
        let body =
            format!(r#"{{"access_token":{token},"expires_in":{expires_in},"token_type":{kind}}}"#);
        let error = read_token(200, None, &body).unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (KmsErrorKind::Unreachable, Retry::No),
            "{body}"
        );
    }
    for body in ["", "<html>", "{}", r#"{"id_token":"x"}"#] {
        let error = read_token(200, None, body).unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Unreachable);
    }
}

/// What the table says about another try.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Again {
    No,
    Soon,
    Later,
    AfterClockRepair,
}

fn again(error: &KmsError) -> Again {
    match error.retry() {
        Retry::Later { .. } => panic!("only we say so, no KMS does"),
        Retry::No => Again::No,
        Retry::Transient => Again::Soon,
        Retry::Throttled { .. } => Again::Later,
        Retry::AfterClockRepair { server_time } => {
            assert_eq!(server_time, now());
            Again::AfterClockRepair
        }
        Retry::AfterNewToken => panic!("there is none yet"),
    }
}

const TIMEFRAME: &str = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check \
                         your iat and exp values in the JWT claim.";

#[test]
#[rustfmt::skip]
fn each_error_of_the_token_endpoint_has_its_class() {
    use Again::{AfterClockRepair, Later, No, Soon};
    // HTTP, word, description; TSP code; whether to try again.
    let table = [
        (400, "invalid_grant",           "Invalid JWT Signature.",           206, No),
        (400, "invalid_grant",           "Invalid grant: account not found", 206, No),
        (401, "invalid_grant",           TIMEFRAME,                          206, AfterClockRepair),
        (401, "invalid_client",          "",                                 206, No),
        (401, "unauthorized_client",     "",                                 206, No),
        (400, "disabled_client",         "",                                 206, No),
        (400, "deleted_client",          "",                                 206, No),
        (400, "invalid_scope",           "",                                 206, No),
        (403, "access_denied",           "",                                 206, No),
        (400, "invalid_request",         "",                                 206, No),
        (400, "unsupported_grant_type",  "",                                 206, No),
        (400, "brand_new",               "",                                 206, No),
        (403, "rate_limit_exceeded",     "",                                 209, Later),
        (400, "internal_failure",        "",                                 208, Soon),
        (400, "server_error",            "",                                 208, Soon),
        (503, "temporarily_unavailable", "",                                 208, Soon),
        (408, "",                        "",                                 208, Soon),
        (429, "",                        "",                                 209, Later),
        (500, "",                        "",                                 208, Soon),
        (502, "",                        "",                                 208, Soon),
        (503, "",                        "",                                 208, Soon),
        (504, "",                        "",                                 208, Soon),
        (401, "",                        "",                                 206, No),
        (403, "",                        "",                                 207, No),
        (404, "",                        "",                                 207, No),
        (302, "",                        "",                                 207, No),
    ];
    for (status, word, description, tsp, expected) in table {
        let mut bodies = vec![serde_json::json!({"error": word, "error_description": description}).to_string()];
        if word.is_empty() {
            bodies.extend(["", "<html>", "{}", "{\"error\":{\"code\":7}}", "[]"].map(str::to_owned));
        }
        for body in bodies {
            let error = read_token(status, Some(now()), &body).unwrap_err();
            assert_eq!(error.kind().tsp_code().number(), tsp, "{status} {body}");
            assert_eq!(again(&error), expected, "{status} {body}");
            assert_eq!(error.operation(), KmsOperation::Token);
        }
    }
    assert!(WORDS.iter().all(|(known, _)| table.iter().any(|(_, word, ..)| word == known)), "every word is in the table");
}

#[test]
fn a_refusal_names_what_the_endpoint_said() {
    let body = r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#;
    assert_eq!(
        read_token(400, None, body).unwrap_err().to_string(),
        "Google Cloud KMS gave no token (invalid_grant): Invalid JWT Signature. \
         Check the credentials in the KMS config."
    );
    assert_eq!(
        read_token(503, None, "<html>").unwrap_err().to_string(),
        "Google Cloud KMS gave no token: it answered a token request with HTTP status 503: the service is not available. \
         The KMS is slow or in trouble; try again later."
    );
}

/// Seconds after [`now`] at which the token was issued, by its own account.
fn issued_at(token: &Token) -> i64 {
    let (_, claims) = verified(jwt(token)).unwrap();
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        3600
    );
    claims["iat"].as_i64().unwrap() - crate::session::unix_seconds(now())
}

#[test]
fn a_token_is_renewed_at_three_quarters_of_an_hour_with_its_own_jitter() {
    let renewals: std::collections::HashSet<_> = (0..20)
        .map(|number| {
            let doc = with(doc(), |gcp| *gcp.client_email = format!("{number}@x.y"));
            let gcp = gcp(&doc);
            let renew = || {
                let token = own_token(step(&*gcp, None, &mut Session::default(), now()));
                let after = |time: SystemTime| time.duration_since(now()).unwrap().as_secs();
                assert_eq!(after(token.expires_at()), 3580);
                after(token.renew_at())
            };
            let after = renew();
            assert_eq!(after, renew(), "the same for the same credential");
            assert!((2540..=2840).contains(&after), "{after}");
            after
        })
        .collect();
    assert!(renewals.len() > 15, "{renewals:?}");
}

/// An error with which Cloud KMS refuses a token.
fn refused(date: Option<SystemTime>, reason: &str) -> KmsError {
    let body = serde_json::json!({"error": {"code": 401, "status": "UNAUTHENTICATED", "message": "m", "details": [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason},
    ]}});
    let gcp = gcp(&doc());
    answer(401, date, &body.to_string(), |answer| gcp.read_wrap(answer)).unwrap_err()
}

#[test]
fn a_wrong_clock_is_learnt_from_the_answer_that_refuses_a_token() {
    let gcp = gcp(&doc());
    for (ours, offset) in [
        (now() - Duration::from_secs(900), 0),
        (now() + Duration::from_secs(900), 0),
        // What is within the tolerance stays.
        (now() - Duration::from_secs(30), -30),
    ] {
        let mut session = Session::default();
        step(&*gcp, None, &mut session, ours);
        let error = refused(Some(now()), "JWT_TOKEN_INVALID");
        assert_eq!(error.retry(), Retry::AfterNewToken);
        let token = own_token(step(&*gcp, Some(&error), &mut session, ours));
        assert_eq!(issued_at(&token), offset - 10);
        // The token's times for us are in our time.
        let over = token.expires_at().duration_since(ours).unwrap();
        assert_eq!(over.as_secs(), 3580);
        // And so it stays for the next ones.
        let later = Duration::from_secs(2700);
        let token = own_token(step(&*gcp, None, &mut session, ours + later));
        assert_eq!(issued_at(&token), offset - 10 + 2700);
    }
    // An answer without its time teaches nothing.
    let mut session = Session::default();
    let ours = now() - Duration::from_secs(900);
    let error = refused(None, "JWT_TOKEN_INVALID");
    let token = own_token(step(&*gcp, Some(&error), &mut session, ours));
    assert_eq!(issued_at(&token), -910);
}

#[test]
fn a_clock_that_is_off_by_more_than_a_day_is_named_as_what_is_wrong() {
    let gcp = gcp(&doc());
    for ours in [
        now() - Duration::from_secs(172_800),
        now() + Duration::from_secs(172_800),
    ] {
        let mut session = Session::default();
        step(&*gcp, None, &mut session, ours);
        let error = refused(Some(now()), "JWT_TOKEN_INVALID");
        assert_eq!(error.blame(), Blame::Credentials);
        let error = gcp
            .token_step(None, Some(&error), &mut session, ours)
            .map(drop)
            .unwrap_err();
        assert_eq!(
            (error.blame(), error.retry(), error.code()),
            (Blame::Clock, Retry::No, Some("JWT_TOKEN_INVALID"))
        );
    }
}

#[test]
fn a_wrong_clock_is_learnt_from_the_token_endpoint() {
    let gcp = gcp(&by_endpoint(doc()));
    let mut session = Session::default();
    let ours = now() - Duration::from_secs(900);
    step(&*gcp, None, &mut session, ours);
    let body = serde_json::json!({"error": "invalid_grant", "error_description": TIMEFRAME});
    let error = read_token(400, Some(now()), &body.to_string()).unwrap_err();
    assert!(session.repair(&error));
    let call = call(step(&*gcp, None, &mut session, ours));
    let (_, assertion) = form(&call).pop().unwrap();
    let (_, claims) = verified(&assertion).unwrap();
    assert_eq!(claims["iat"], crate::session::unix_seconds(now()) - 10);
}

#[test]
fn without_the_keys_id_a_refused_own_token_leads_to_the_endpoint() {
    let error = refused(Some(now()), "JWT_TOKEN_INVALID");
    let gcp_without = gcp(&without_key_id());
    let mut session = Session::default();
    own_token(step(&*gcp_without, None, &mut session, now()));
    call(step(&*gcp_without, Some(&error), &mut session, now()));
    // It stays there: the next own token would be refused as well.
    call(step(&*gcp_without, None, &mut session, now()));
    // Until the configuration brings the id.
    own_token(step(&*gcp(&doc()), None, &mut session, now()));

    // Not if it was the time.
    let mut session = Session::default();
    let ours = now() - Duration::from_secs(900);
    own_token(step(&*gcp_without, None, &mut session, ours));
    own_token(step(&*gcp_without, Some(&error), &mut session, ours));

    // Not with the key's id, which is all that the endpoint could do without.
    let mut session = Session::default();
    own_token(step(&*gcp(&doc()), Some(&error), &mut session, now()));

    // Not to Google on behalf of a private endpoint, unless that has a token endpoint of its own.
    let mut private = without_key_id();
    private.endpoint = Some("https://kms.internal".to_owned());
    let mut session = Session::default();
    own_token(step(&*gcp(&private), Some(&error), &mut session, now()));
    let private = with(private, |gcp| {
        *gcp.token_endpoint = Some("https://kms.internal/token".to_owned());
    });
    let mut session = Session::default();
    let call = call(step(&*gcp(&private), Some(&error), &mut session, now()));
    assert_eq!(call.endpoint.host, "kms.internal");

    // Not after any other error.
    let mut session = Session::default();
    let error = refused(Some(now()), "ACCOUNT_STATE_INVALID");
    own_token(step(&*gcp_without, Some(&error), &mut session, now()));
}

#[test]
fn equal_credentials_share_a_token_and_others_do_not() {
    let id = |doc: KmsConfigDoc| gcp(&doc).credential().unwrap();
    let other_key = with(doc(), |gcp| *gcp.crypto_key_id = "tenant-2".to_owned());
    assert_eq!(id(doc()), id(other_key));
    let mut other_roots = doc();
    other_roots.ca_pem = Some("-----BEGIN CERTIFICATE-----".to_owned());
    let others = [
        doc(),
        by_endpoint(doc()),
        without_key_id(),
        other_roots,
        with(doc(), |gcp| gcp.client_email.push('x')),
        with(doc(), |gcp| {
            let other = include_str!("../../../tests/data/azure-TEST-ONLY-client-key.pem");
            *gcp.private_key = Secret::new(other.to_owned());
        }),
        with(doc(), |gcp| {
            *gcp.token_endpoint = Some("https://oauth.internal/token".to_owned());
        }),
        with(doc(), |gcp| {
            *gcp.token_endpoint = Some("https://oauth.internal/other".to_owned());
        }),
    ];
    let count = others.len();
    let ids: std::collections::HashSet<_> = others.into_iter().map(id).collect();
    assert_eq!(ids.len(), count);
    assert!(EMAIL.contains('@'));
}
