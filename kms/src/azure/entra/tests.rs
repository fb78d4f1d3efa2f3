use jsonwebtoken::{DecodingKey, Validation};
use serde_json::{Value, json};

use super::*;
use crate::{Retry, Roots};

const CERTIFICATE: &str = include_str!("../../../tests/data/azure-TEST-ONLY-client-cert.pem");
const CLIENT_KEY: &str = include_str!("../../../tests/data/azure-TEST-ONLY-client-key.pem");
const TENANT: &str = "72f988bf-0000-4000-8000-2d7cd011db47";
const CLIENT: &str = "6731de76-14a6-49ae-97bc-6eba6914391e";
const SECRET: &str = "Q~test+secret/with=odd&chars";

fn vectors() -> Value {
    serde_json::from_str(include_str!(
        "../../../tests/data/azure-client-assertion.json"
    ))
    .unwrap()
}

/// 2026-01-15 10:15:30 UTC, the moment of the vectors.
const NOW_S: u64 = 1_768_472_130;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW_S)
}

fn entra(proof: Proof) -> Arc<Entra> {
    let authority = Endpoint::at("login.microsoftonline.com", Roots::Public);
    let scope = "https://vault.azure.net/.default".to_owned();
    Arc::new(Entra::new(authority, TENANT, CLIENT, scope, proof))
}

fn with_secret() -> Arc<Entra> {
    entra(Proof::Secret(Secret::new(SECRET.to_owned())))
}

fn with_certificate() -> Arc<Entra> {
    let certificate = Certificate::from_pem(&format!("{CERTIFICATE}{CLIENT_KEY}")).unwrap();
    entra(Proof::Certificate(Arc::new(certificate)))
}

/// The call that a step comes to.
fn call(entra: &Arc<Entra>, refused: Option<&KmsError>, now: SystemTime) -> Box<TokenCall> {
    match entra.step(refused, &mut Clock::default(), now) {
        TokenStep::Call(call) => call,
        TokenStep::Sign(sign) => match sign().unwrap() {
            Signed::Call(call) => call,
            Signed::Token(_) => panic!("Entra gives the token"),
        },
    }
}

fn fields(call: &TokenCall) -> Vec<(String, String)> {
    form_urlencoded::parse(call.request.body())
        .into_owned()
        .collect()
}

fn field(call: &TokenCall, name: &str) -> String {
    let fields = fields(call);
    let (_, value) = fields.iter().find(|(field, _)| field == name).unwrap();
    value.clone()
}

#[test]
fn a_request_with_a_secret_is_the_one_of_the_vectors() {
    let (vectors, call) = (vectors(), call(&with_secret(), None, now()));
    assert_eq!(
        String::from_utf8_lossy(call.request.body()),
        vectors["form_encoding_example"].as_str().unwrap()
    );
    let case = &vectors["token_requests"][0];
    let url = format!("https://{}{}", call.endpoint.host, call.request.path());
    assert_eq!(url, case["url"].as_str().unwrap());
    assert_eq!(call.request.header("accept").unwrap(), "application/json");
    assert_eq!(
        call.request.header("host").unwrap(),
        "login.microsoftonline.com"
    );
    assert_eq!(
        call.request.header("content-type").unwrap(),
        "application/x-www-form-urlencoded"
    );
    // All that their library sends, but for what it wants to know about the user, whom there is none.
    let mut expected = case["form"].as_object().unwrap().clone();
    expected.remove("client_info");
    for (name, value) in &expected {
        assert_eq!(field(&call, name), value.as_str().unwrap());
    }
    assert_eq!(fields(&call).len(), expected.len());
}

#[test]
fn a_request_with_a_certificate_is_the_one_of_the_vectors() {
    let (vectors, call) = (vectors(), call(&with_certificate(), None, now()));
    let case = &vectors["token_requests"][1];
    let mut expected = case["form"].as_object().unwrap().clone();
    expected.remove("client_info");
    expected.remove("client_assertion");
    for (name, value) in &expected {
        assert_eq!(field(&call, name), value.as_str().unwrap());
    }
    assert_eq!(fields(&call).len(), expected.len() + 1);
}

#[test]
fn an_assertion_says_what_that_of_the_vectors_says() {
    let vectors = vectors();
    let assertion = field(&call(&with_certificate(), None, now()), "client_assertion");
    let part = |index: usize| -> Value {
        let part = assertion.split('.').nth(index).unwrap();
        serde_json::from_slice(&BASE64URL.decode(part).unwrap()).unwrap()
    };
    let case = |name: &str| {
        let cases = vectors["cases"].as_array().unwrap();
        cases
            .iter()
            .find(|case| case["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(part(0), case("PS256 x5t#S256 unpadded, with nbf")["header"]);
    assert_eq!(
        part(0)["x5t#S256"],
        vectors["certificate_thumbprints"]["x5t#S256"]
    );
    let mut claims = part(1);
    let jti = claims["jti"].take();
    assert_eq!(jti.as_str().unwrap().len(), 32);
    let mut expected = case("PS256 x5t#S256 as MSAL sends it")["claims"].clone();
    expected["jti"].take();
    assert_eq!(claims, expected);
    // Others can verify it, and ours is not the only one they can.
    let key = DecodingKey::from_rsa_pem(vectors["public_key_pem"].as_str().unwrap().as_bytes());
    let key = key.unwrap();
    let verifies = |jwt: &str, algorithm| {
        let mut validation = Validation::new(algorithm);
        validation.validate_aud = false;
        validation.validate_exp = false;
        validation.validate_nbf = false;
        jsonwebtoken::decode::<Value>(jwt, &key, &validation).is_ok()
    };
    assert!(verifies(&assertion, Algorithm::PS256));
    for case in vectors["cases"].as_array().unwrap() {
        let algorithm = match case["header"]["alg"].as_str().unwrap() {
            "PS256" => Algorithm::PS256,
            "RS256" => Algorithm::RS256,
            other => panic!("{other}"),
        };
        assert!(verifies(case["jwt"].as_str().unwrap(), algorithm));
    }
}

#[test]
fn no_two_assertions_have_the_same_id() {
    let entra = with_certificate();
    let mut ids: Vec<_> = (0..100).map(|_| entra.jti(now())).collect();
    ids.push(with_certificate().jti(now()));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 101);
}

#[test]
fn an_assertion_carries_the_repaired_time() {
    let entra = with_certificate();
    let mut clock = Clock::default();
    clock.learn(now() + Duration::from_secs(900), now());
    let TokenStep::Sign(sign) = entra.step(None, &mut clock, now()) else {
        panic!("a certificate signs")
    };
    let Signed::Call(call) = sign().unwrap() else {
        panic!("Entra gives the token")
    };
    let assertion = field(&call, "client_assertion");
    let claims = BASE64URL
        .decode(assertion.split('.').nth(1).unwrap())
        .unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["iat"], NOW_S + 900);
    assert_eq!(claims["exp"], NOW_S + 1500);
}

#[test]
fn claims_that_a_vault_asked_for_go_into_the_next_request() {
    let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"1&2"}}}"#;
    let refused = KmsError::new(
        KmsErrorKind::Authorization,
        KIND,
        KmsOperation::Wrap,
        Clean::ours("why"),
    )
    .with_claims(claims.to_owned());
    for entra in [with_secret(), with_certificate()] {
        let call = call(&entra, Some(&refused), now());
        assert_eq!(field(&call, "claims"), claims);
    }
}

fn answered(entra: &Entra, status: u16, body: &Value) -> Result<Token, KmsError> {
    let headers = "date: Thu, 15 Jan 2026 10:30:30 GMT\r\nretry-after: 9\r\n";
    let body = body.to_string();
    let answer = HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: body.as_bytes(),
    };
    entra.read(&answer, now())
}

#[test]
fn a_token_is_renewed_when_entra_says_or_five_to_ten_minutes_before_its_end() {
    let entra = with_secret();
    let times = |more: Value| {
        let mut body =
            json!({"token_type": "Bearer", "ext_expires_in": 3599, "access_token": "a.b.c"});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let token = answered(&entra, 200, &body).unwrap();
        assert_eq!(token.header(), Some("Bearer a.b.c"));
        let after = |time: SystemTime| time.duration_since(now()).unwrap().as_secs();
        (after(token.renew_at()), after(token.expires_at()))
    };
    let (renew, expire) = times(json!({"expires_in": 3599}));
    assert!((3599 - 600..=3599 - 300).contains(&renew), "{renew}");
    assert_eq!(expire, 3589);
    assert_eq!(times(json!({"expires_in": "3599"})), (renew, expire));
    assert_eq!(
        times(json!({"expires_in": 86399, "refresh_in": 43199})),
        (43_199, 86_389)
    );
    // Nonsense is not followed.
    assert_eq!(
        times(json!({"expires_in": 3599, "refresh_in": 3600})),
        (renew, expire)
    );
    let (renew, expire) = times(json!({"expires_in": 60}));
    assert!(renew >= 30 && renew <= expire && expire <= 60);
    // A long life is cut, so that nobody's sum overflows.
    let (_, expire) = times(json!({"expires_in": u64::MAX}));
    assert!(expire <= Token::LIFE_MAX.as_secs());
}

#[test]
fn what_is_no_token_is_not_taken_for_one() {
    let entra = with_secret();
    for body in [
        json!({}),
        json!([]),
        json!({"token_type": "Bearer", "expires_in": 3599}),
        json!({"token_type": "Bearer", "expires_in": 3599, "access_token": ""}),
        json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "a b"}),
        json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "a\nb"}),
        json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "a".repeat(16_385)}),
        json!({"token_type": "Bearer", "expires_in": 0, "access_token": "a"}),
        json!({"token_type": "Bearer", "expires_in": -5, "access_token": "a"}),
        json!({"token_type": "Bearer", "access_token": "a"}),
        json!({"token_type": "pop", "expires_in": 3599, "access_token": "a"}),
        json!({"expires_in": 3599, "access_token": "a"}),
    ] {
        let error = answered(&entra, 200, &body).unwrap_err();
        assert_eq!(error.kind().tsp_code().number(), 208, "{body}");
    }
}

/// What the table expects to be told about retrying.
#[derive(Debug, PartialEq)]
enum Again {
    No,
    Soon,
    Later,
    WithTheServersTime,
}

fn again(error: &KmsError) -> Again {
    match error.retry() {
        Retry::Later { .. } => panic!("only we say so, no KMS does"),
        Retry::No => Again::No,
        Retry::Transient => Again::Soon,
        Retry::Throttled { after } => {
            assert_eq!(after, Some(Duration::from_secs(9)));
            Again::Later
        }
        Retry::AfterClockRepair { server_time } => {
            assert_eq!(server_time, now() + Duration::from_secs(900));
            Again::WithTheServersTime
        }
        Retry::AfterNewToken => panic!("no token was shown"),
    }
}

#[test]
fn each_aadsts_number_has_its_class() {
    use Again::{Later, No, Soon, WithTheServersTime};
    let entra = with_secret();
    let table: &[(&[u32], u16, Again)] = &[
        // Wrong secret; expired; assertion missing, or its signature or certificate unknown.
        (
            &[7_000_215, 7_000_222, 7_000_216, 700_027, 700_030],
            206,
            No,
        ),
        // Assertion out of time.
        (&[700_024], 206, WithTheServersTime),
        // Application, tenant, resource or scope unknown.
        (
            &[700_016, 90_002, 900_023, 500_011, 70_011, 7_000_229],
            207,
            No,
        ),
        // Application disabled; conditional access; not assigned.
        (&[7_000_112, 7_000_110, 53_003, 530_003, 50_105], 206, No),
        // Loop, or tenant throttled.
        (&[50_196, 90_055], 209, Later),
        // Transient.
        (&[90_033, 50_097], 208, Soon),
    ];
    for (numbers, tsp_code, expected) in table {
        for number in *numbers {
            let description = format!(
                "AADSTS{number}: What was wrong. Trace ID: 0a1b2c3d-0000-4000-8000-0123456789ab"
            );
            let trace_id = "0a1b2c3d-0000-4000-8000-0123456789ab";
            let spellings = [
                json!({"error": "invalid_request", "error_description": description, "error_codes": [number], "trace_id": trace_id}),
                json!({"error": "invalid_client", "error_description": description, "trace_id": trace_id}),
                json!({"error": "invalid_client", "error_codes": [number], "trace_id": trace_id}),
            ];
            for (body, status) in spellings.iter().zip([400, 401, 400]) {
                let error = answered(&entra, status, body).unwrap_err();
                assert_eq!(error.kind().tsp_code().number(), *tsp_code, "{number}");
                assert_eq!(&again(&error), expected, "{number}");
                assert_eq!(error.operation(), KmsOperation::Token);
                assert_eq!(error.code(), Some(format!("AADSTS{number}").as_str()));
                assert_eq!(error.request_id(), Some(trace_id));
                if body["error_description"].is_string() {
                    assert_eq!(error.sentence(), "What was wrong.");
                }
            }
        }
    }
}

#[test]
fn without_a_number_the_word_and_then_the_status_decide() {
    use Again::{Later, No, Soon};
    let entra = with_secret();
    let table = [
        (503, "temporarily_unavailable", 209, Later),
        (400, "server_error", 208, Soon),
        (401, "invalid_client", 206, No),
        (400, "unauthorized_client", 206, No),
        (400, "invalid_scope", 207, No),
        (400, "invalid_resource", 207, No),
        (400, "invalid_request", 206, No),
        (401, "", 206, No),
        (429, "", 209, Later),
        (500, "", 208, Soon),
        (502, "", 208, Soon),
        (503, "", 208, Soon),
        (504, "", 208, Soon),
        (302, "", 207, No),
        (204, "", 208, No),
    ];
    for (status, word, tsp_code, expected) in table {
        let error = answered(&entra, status, &json!({"error": word})).unwrap_err();
        assert_eq!(
            error.kind().tsp_code().number(),
            tsp_code,
            "{status} {word}"
        );
        assert_eq!(again(&error), expected, "{status} {word}");
    }
    let error = answered(&entra, 502, &json!("<html>")).unwrap_err();
    assert_eq!(error.kind().tsp_code().number(), 208);
}

#[test]
fn the_message_says_what_entra_said() {
    let body = json!({
        "error": "invalid_client",
        "error_description": "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID. Trace ID: 0a1b2c3d-0000-4000-8000-0123456789ab Correlation ID: x Timestamp: 2026-01-15 10:15:30Z",
        "error_codes": [7_000_215],
        "trace_id": "0a1b2c3d-0000-4000-8000-0123456789ab",
    });
    assert_eq!(
        answered(&with_secret(), 401, &body)
            .unwrap_err()
            .to_string(),
        "Microsoft Entra ID gave no token (AADSTS7000215, request 0a1b2c3d-0000-4000-8000-0123456789ab): \
         Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the \
         client secret ID. Check the credentials in the KMS config."
    );
}
