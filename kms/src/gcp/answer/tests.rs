use serde_json::{Value, json};

use super::{super::tests::vectors, *};
use crate::{KmsErrorKind, gcp::tests};

fn answer<T>(
    status: u16,
    body: &str,
    read: impl FnOnce(&HttpAnswer<'_>) -> Result<T, KmsError>,
) -> Result<T, KmsError> {
    let headers = String::new();
    read(&HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: body.as_bytes(),
    })
}

fn read_wrapped(body: &Value) -> Result<Vec<u8>, KmsError> {
    let gcp = tests::gcp(&tests::doc());
    answer(200, &body.to_string(), |answer| gcp.read_wrap(answer))
}

fn read_unwrapped(body: &Value) -> Result<Dek, KmsError> {
    answer(200, &body.to_string(), read_unwrap)
}

/// `body` with one member changed, or taken out if `value` is null.
fn with(body: &Value, member: &str, value: impl Into<Value>) -> Value {
    let mut body = body.clone();
    let value = value.into();
    if value.is_null() {
        body.as_object_mut().unwrap().remove(member);
    } else {
        body[member] = value;
    }
    body
}

#[test]
fn an_answer_is_read_whatever_stands_beside_what_is_needed() {
    let file = vectors();
    let sound = &file["response_without_aad"];
    let blob = read_wrapped(sound).unwrap();
    let sum = u64::from(crc32c::crc32c(&blob));
    // The checksum as a number; a protection level that is new, or in Google's other spelling of enumerations.
    for other in [
        with(sound, "ciphertextCrc32c", sum),
        with(sound, "protectionLevel", "QUANTUM"),
        with(sound, "protectionLevel", 2),
        with(sound, "protectionLevel", Value::Null),
        with(sound, "new", json!({"a": [1, {}]})),
    ] {
        assert_eq!(read_wrapped(&other).unwrap(), blob, "{other}");
    }
    let sound = &file["decrypt"]["response_body"];
    let number: u64 = sound["plaintextCrc32c"].as_str().unwrap().parse().unwrap();
    read_unwrapped(&with(sound, "plaintextCrc32c", number)).unwrap();
    read_unwrapped(&with(sound, "usedPrimary", Value::Null)).unwrap();
}

#[test]
fn what_may_have_been_altered_on_its_way_is_asked_for_once_more() {
    let file = vectors();
    let sound = &file["response_without_aad"];
    let name = sound["name"].as_str().unwrap();
    let damaged = [
        with(sound, "ciphertextCrc32c", "240022153"),
        with(sound, "ciphertextCrc32c", "-240022152"),
        with(sound, "ciphertextCrc32c", "99999999999"),
        with(sound, "ciphertextCrc32c", ""),
        with(sound, "ciphertextCrc32c", Value::Null),
        with(sound, "ciphertext", "AAAA"),
        with(sound, "verifiedPlaintextCrc32c", false),
        with(sound, "verifiedPlaintextCrc32c", "true"),
        with(sound, "verifiedPlaintextCrc32c", Value::Null),
        with(sound, "name", name.replace("tenant-1", "tenant-2")),
        with(sound, "name", ""),
        with(sound, "name", Value::Null),
    ];
    for body in damaged {
        let error = read_wrapped(&body).unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (KmsErrorKind::WrapFailed, Retry::Transient),
            "{body}"
        );
    }
    let sound = &file["decrypt"]["response_body"];
    for body in [
        with(sound, "plaintextCrc32c", "1188919631"),
        with(sound, "plaintextCrc32c", 0),
        with(sound, "plaintextCrc32c", Value::Null),
        with(
            sound,
            "plaintext",
            "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        ),
    ] {
        let error = read_unwrapped(&body).unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (KmsErrorKind::UnwrapFailed, Retry::Transient),
            "{body}"
        );
    }
}

#[test]
fn an_unusable_answer_is_a_failed_operation() {
    let file = vectors();
    let sound = &file["response_without_aad"];
    let wrapped = [
        json!(null),
        json!([]),
        json!({}),
        json!({"error": {"code": 500}}),
        with(sound, "ciphertext", Value::Null),
        with(sound, "ciphertext", ""),
        with(sound, "ciphertext", 7),
        with(sound, "ciphertext", "AAA"),
        with(sound, "ciphertext", "AA-_"),
        with(sound, "ciphertext", "A".repeat(11_000)),
    ];
    for body in wrapped {
        let error = read_wrapped(&body).unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (KmsErrorKind::WrapFailed, Retry::No),
            "{body}"
        );
    }
    let sound = &file["decrypt"]["response_body"];
    let dek = sound["plaintext"].as_str().unwrap();
    let unwrapped = [
        json!(null),
        json!({}),
        file["response_empty_plaintext"].clone(),
        with(sound, "plaintext", ""),
        with(sound, "plaintext", 7),
        with(sound, "plaintext", "AAECAw=="),
        with(sound, "plaintext", dek.replace("8=", "9=")),
        with(sound, "plaintext", dek.replace("Hh8", "H-8")),
        with(sound, "plaintext", format!("AAEC{dek}")),
    ];
    for body in unwrapped {
        let error = read_unwrapped(&body).unwrap_err();
        assert_eq!(
            (error.kind(), error.retry()),
            (KmsErrorKind::UnwrapFailed, Retry::No),
            "{body}"
        );
    }
    for status in [201, 204, 302] {
        let error = answer(status, &sound.to_string(), read_unwrap).unwrap_err();
        assert!(!error.retryable(), "{status}");
    }
}

/// What the table says about another try.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Again {
    No,
    Soon,
    Later,
    WithNewToken,
}

fn again(error: &KmsError) -> Again {
    match error.retry() {
        Retry::Later { .. } => panic!("only we say so, no KMS does"),
        Retry::No => Again::No,
        Retry::Transient => Again::Soon,
        Retry::Throttled { .. } => Again::Later,
        Retry::AfterNewToken => Again::WithNewToken,
        Retry::AfterClockRepair { .. } => panic!("KMS does not speak of our clock"),
    }
}

fn refused(operation: KmsOperation, status: u16, body: &str) -> KmsError {
    let gcp = tests::gcp(&tests::doc());
    match operation {
        KmsOperation::Wrap => answer(status, body, |answer| gcp.read_wrap(answer)).unwrap_err(),
        KmsOperation::Unwrap => answer(status, body, read_unwrap).unwrap_err(),
        KmsOperation::Token => panic!("another endpoint's"),
    }
}

fn error_json(http: u16, status: &str, reason: &str, message: &str) -> String {
    let mut error = json!({"code": http, "message": message, "status": status});
    if !reason.is_empty() {
        error["details"] = json!([
            {"@type": "type.googleapis.com/google.rpc.Help", "links": [{"url": "https://x"}]},
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": reason,
                "domain": "googleapis.com",
                "metadata": {"service": "cloudkms.googleapis.com"},
            },
        ]);
    }
    json!({ "error": error }).to_string()
}

const DENIED: &str = "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied on resource \
                      'projects/p/locations/l/keyRings/r/cryptoKeys/k' (or it may not exist).";
const DISABLED: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1 is not enabled, current \
                        state is: DISABLED.";
const INVALID: &str = "Decryption failed: the ciphertext is invalid.";
const OTHER_KEY: &str = "Decryption failed: verify that 'name' refers to the correct CryptoKey.";
const BAD_CRC: &str =
    "The checksum in field plaintext_crc32c did not match the data in field plaintext.";
const PURPOSE: &str = "The CryptoKey's purpose must be ENCRYPT_DECRYPT.";

/// HTTP, status, reason, message; TSP code on wrap and on unwrap; whether to try again.
type Row = (
    u16,
    &'static str,
    &'static str,
    &'static str,
    [u16; 2],
    Again,
);

#[test]
#[rustfmt::skip]
fn each_error_has_its_class() {
    use Again::{Later, No, Soon, WithNewToken};
    let table: &[Row] = &[
        (401, "UNAUTHENTICATED",     "ACCESS_TOKEN_EXPIRED",            "", [206, 206], WithNewToken),
        (401, "UNAUTHENTICATED",     "CREDENTIALS_MISSING",             "", [206, 206], WithNewToken),
        (401, "UNAUTHENTICATED",     "JWT_TOKEN_INVALID",               "", [206, 206], WithNewToken),
        (401, "UNAUTHENTICATED",     "ACCESS_TOKEN_TYPE_UNSUPPORTED",   "", [206, 206], WithNewToken),
        (401, "UNAUTHENTICATED",     "",                                "", [206, 206], WithNewToken),
        (401, "UNAUTHENTICATED",     "NEW_REASON",                      "", [206, 206], WithNewToken),
        (401, "UNAUTHENTICATED",     "ACCOUNT_STATE_INVALID",           "", [206, 206], No),
        (403, "PERMISSION_DENIED",   "BILLING_DISABLED",                "", [210, 210], No),
        (403, "PERMISSION_DENIED",   "CONSUMER_SUSPENDED",              "", [210, 210], No),
        (403, "PERMISSION_DENIED",   "GCP_SUSPENDED",                   "", [210, 210], No),
        (403, "PERMISSION_DENIED",   "SERVICE_DISABLED",                "", [207, 207], No),
        (403, "PERMISSION_DENIED",   "CONSUMER_INVALID",                "", [207, 207], No),
        (403, "PERMISSION_DENIED",   "USER_PROJECT_DENIED",             "", [207, 207], No),
        (403, "PERMISSION_DENIED",   "IAM_PERMISSION_DENIED",       DENIED, [207, 207], No),
        (403, "PERMISSION_DENIED",   "SECURITY_POLICY_VIOLATED",        "", [207, 207], No),
        (403, "PERMISSION_DENIED",   "LOCATION_ORG_POLICY_VIOLATED",    "", [207, 207], No),
        (403, "PERMISSION_DENIED",   "ORG_RESTRICTION_VIOLATION",       "", [207, 207], No),
        (403, "PERMISSION_DENIED",   "",                            DENIED, [207, 207], No),
        (403, "PERMISSION_DENIED",   "ACCESS_TOKEN_SCOPE_INSUFFICIENT", "", [206, 206], No),
        (403, "PERMISSION_DENIED",   "RATE_LIMIT_EXCEEDED",             "", [209, 209], Later),
        (429, "RESOURCE_EXHAUSTED",  "RATE_LIMIT_EXCEEDED",             "", [209, 209], Later),
        (429, "RESOURCE_EXHAUSTED",  "RESOURCE_QUOTA_EXCEEDED",         "", [209, 209], Later),
        (429, "RESOURCE_EXHAUSTED",  "",                                "", [209, 209], Later),
        (404, "NOT_FOUND",           "",                                "", [207, 207], No),
        (400, "FAILED_PRECONDITION", "",                          DISABLED, [207, 207], No),
        (400, "INVALID_ARGUMENT",    "",                           INVALID, [204, 205], No),
        (400, "INVALID_ARGUMENT",    "",                         OTHER_KEY, [204, 205], No),
        (400, "INVALID_ARGUMENT",    "",                           BAD_CRC, [204, 205], Soon),
        (400, "INVALID_ARGUMENT",    "",                           PURPOSE, [207, 207], No),
        (400, "INVALID_ARGUMENT",    "",          "plaintext is too large", [204, 205], No),
        (503, "UNAVAILABLE",         "",                                "", [208, 208], Soon),
        (504, "DEADLINE_EXCEEDED",   "",                                "", [208, 208], Soon),
        (500, "INTERNAL",            "",                                "", [208, 208], Soon),
        (409, "ABORTED",             "",                                "", [208, 208], Soon),
        (499, "CANCELLED",           "",                                "", [208, 208], Soon),
        (500, "UNKNOWN",             "",                                "", [208, 208], Soon),
        // Statuses that we do not expect go by HTTP's.
        (400, "OUT_OF_RANGE",        "",                                "", [204, 205], No),
        (501, "UNIMPLEMENTED",       "",                                "", [208, 208], No),
        (500, "DATA_LOSS",           "",                                "", [208, 208], Soon),
    ];
    for (http, status, reason, message, tsp, expected) in table {
        let body = error_json(*http, status, reason, message);
        for (operation, tsp) in [KmsOperation::Wrap, KmsOperation::Unwrap].into_iter().zip(tsp) {
            let error = refused(operation, *http, &body);
            assert_eq!(error.kind().tsp_code().number(), *tsp, "{operation} {body}");
            assert_eq!(again(&error), *expected, "{operation} {body}");
            let code = if reason.is_empty() { status } else { reason };
            assert_eq!(error.code(), Some(*code));
        }
    }
    let named = |name: &str| table.iter().any(|(_, status, reason, ..)| *status == name || *reason == name);
    assert!(REASONS.iter().all(|(reason, _)| named(reason)), "every reason is in the table");
    assert!(STATUSES.iter().all(|(status, _)| named(status)), "every status is in the table");
}

#[test]
fn without_an_error_of_googles_the_http_status_decides() {
    use Again::{Later, No, Soon, WithNewToken};
    let table = [
        (100, [204, 205], No),
        (201, [204, 205], No),
        (302, [207, 207], No),
        (400, [204, 205], No),
        (401, [206, 206], WithNewToken),
        (403, [207, 207], No),
        (404, [207, 207], No),
        (408, [208, 208], Soon),
        (409, [208, 208], Soon),
        (413, [204, 205], No),
        (429, [209, 209], Later),
        (499, [208, 208], Soon),
        (500, [208, 208], Soon),
        (501, [208, 208], No),
        (502, [208, 208], Soon),
        (503, [208, 208], Soon),
        (504, [208, 208], Soon),
        (600, [204, 205], No),
    ];
    let deep = format!("{{\"error\":{}", "[".repeat(60_000));
    let bodies = [
        "",
        "<!DOCTYPE html>\n<html lang=en>\n  <title>Error 404 (Not Found)!!1</title>",
        "{",
        "null",
        "[]",
        "{\"error\":\"text\"}",
        "{\"error\":{\"status\":7,\"message\":[],\"details\":{}}}",
        "{\"error\":{\"code\":400,\"details\":[7,null,{\"@type\":7},{\"@type\":\"x.ErrorInfo\",\"reason\":{}}]}}",
        "{\"error\":{},\"error\":{}}",
        deep.as_str(),
    ];
    for (status, tsp, expected) in table {
        for body in bodies {
            for (operation, tsp) in [KmsOperation::Wrap, KmsOperation::Unwrap]
                .into_iter()
                .zip(tsp)
            {
                let error = refused(operation, status, body);
                assert_eq!(error.kind().tsp_code().number(), tsp, "{status} {body:.80}");
                assert_eq!(again(&error), expected, "{status} {body:.80}");
            }
        }
    }
}

#[test]
fn details_give_the_reason_the_pause_and_the_violation() {
    let said = |details: Value| {
        let body = json!({"error": {"code": 400, "status": "FAILED_PRECONDITION", "message": "m", "details": details}});
        Said::read(body.to_string().as_bytes())
    };
    let info = |name: &str| format!("type.googleapis.com/google.rpc.{name}");
    let delay =
        |text: &str| said(json!([{"@type": info("RetryInfo"), "retryDelay": text}])).retry_delay;
    assert_eq!(delay("1.5s"), Some(Duration::from_millis(1500)));
    assert_eq!(delay("30s"), Some(Duration::from_secs(30)));
    assert_eq!(delay("9e18s"), Some(RETRY_AFTER_MAX));
    for wrong in ["", "s", "1", "-1s", "NaNs", "infs", "1.5", "1m"] {
        assert_eq!(delay(wrong), None, "{wrong}");
    }
    let disabled = said(json!([{
        "@type": info("PreconditionFailure"),
        "violations": [{"type": "KEY_DISABLED", "subject": "projects/p"}, {"type": "OTHER"}],
    }]));
    assert_eq!(disabled.violation.as_deref(), Some("KEY_DISABLED"));
    assert_eq!(disabled.code().unwrap().as_str(), "KEY_DISABLED");
    assert_eq!(
        disabled.class(KmsOperation::Wrap, 400),
        Class::Configuration
    );
    let first = said(json!([
        {"@type": info("ErrorInfo"), "reason": "ONE"},
        {"@type": info("ErrorInfo"), "reason": "TWO"},
    ]));
    assert_eq!(first.reason.as_deref(), Some("ONE"));

    let body = json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "m",
        "details": [{"@type": info("RetryInfo"), "retryDelay": "2s"}]}});
    let error = refused(KmsOperation::Wrap, 429, &body.to_string());
    let after = Some(Duration::from_secs(2));
    assert_eq!(error.retry(), Retry::Throttled { after });
}

#[test]
fn messages_say_what_a_tenant_needs_to_know_and_no_names_of_keys() {
    let body = error_json(403, "PERMISSION_DENIED", "IAM_PERMISSION_DENIED", DENIED);
    assert_eq!(
        refused(KmsOperation::Unwrap, 403, &body).to_string(),
        "Google Cloud KMS could not unwrap the key (IAM_PERMISSION_DENIED): Permission \
         'cloudkms.cryptoKeyVersions.useToDecrypt' denied on resource '[cut]' (or it may not exist). \
         Check that the KMS config names the key that made the EDEK, and the key's state and permissions at the KMS."
    );
    let body = error_json(400, "FAILED_PRECONDITION", "", DISABLED);
    assert_eq!(
        refused(KmsOperation::Wrap, 400, &body).to_string(),
        "Google Cloud KMS could not wrap the key (FAILED_PRECONDITION): [cut] is not enabled, current state is: \
         DISABLED. Check the key in the KMS config, and its state and permissions at the KMS."
    );
    assert_eq!(
        refused(KmsOperation::Wrap, 404, "<!DOCTYPE html>").to_string(),
        "Google Cloud KMS could not wrap the key: it answered encrypt with HTTP status 404: that is not how this \
         KMS refuses. Check the endpoint in the KMS config: whoever answers there does not speak as this KMS does."
    );
}
