use serde_json::{Value, json};

use super::*;

fn refused(operation: KmsOperation, status: u16, body: &str) -> KmsError {
    let headers = "retry-after: 3\r\n";
    let answer = HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: body.as_bytes(),
    };
    refusal(operation, &answer)
}

/// What the table expects to be told about retrying.
#[derive(Debug, PartialEq)]
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
        Retry::AfterClockRepair { .. } => panic!("an appliance says nothing about clocks"),
    }
}

#[test]
fn each_status_and_word_has_its_class() {
    use Again::{Later, No, Soon, WithNewToken};
    // Status, word, text; TSP code on wrap, on unwrap; whether to try again.
    type Row<'a> = (u16, &'a str, &'a str, u16, u16, Again);
    let table: &[Row<'_>] = &[
        (
            401,
            "NCERRUnauthorizedAccess",
            "Bearer token malformed: Token is expired by 1m",
            206,
            206,
            WithNewToken,
        ),
        (
            401,
            "NCERRUnauthorizedAccess",
            "The token was revoked",
            206,
            206,
            WithNewToken,
        ),
        (
            403,
            "NCERRInsufficientPermissions",
            "Insufficient permissions",
            207,
            207,
            No,
        ),
        (
            403,
            "NCERRInsufficientPermissions",
            "License not installed for this feature",
            210,
            210,
            No,
        ),
        (
            404,
            "NCERRResourceNotFound",
            "Resource not found",
            207,
            207,
            No,
        ),
        (
            400,
            "NCERRCryptoOperationFailed",
            "Cryptographic operation failed in cipher operation",
            204,
            205,
            No,
        ),
        (
            400,
            "NCERRBadRequest",
            "Accept header is invalid.",
            204,
            205,
            No,
        ),
        (
            400,
            "NCERRInvalidParamValue",
            "Mode cbc is not supported",
            207,
            207,
            No,
        ),
        (
            400,
            "NCERRInvalidParamValue",
            "Invalid key type",
            207,
            207,
            No,
        ),
        (
            400,
            "NCERRInvalidParamValue",
            "plaintext is empty",
            204,
            205,
            No,
        ),
        (
            409,
            "NCERRConflict",
            "The state of the key is Deactivated.",
            207,
            207,
            No,
        ),
        (422, "", "Validation failed", 207, 207, No),
        (429, "NCERRTooManyRequests", "", 209, 209, Later),
        (
            500,
            "NCERRInternalServerError",
            "unexpected error",
            208,
            208,
            Soon,
        ),
        (502, "", "", 208, 208, Soon),
        (503, "", "Services are starting", 208, 208, Soon),
        (504, "", "", 208, 208, Soon),
        (301, "", "", 207, 207, No),
        (418, "", "", 204, 205, No),
    ];
    for (status, word, message, on_wrap, on_unwrap, expected) in table {
        let spellings = [
            json!({"code": 1, "codeDesc": format!("{word}: {message}"), "requestID": "r-1"}),
            json!({"code": 1, "codeDesc": word, "message": message, "requestID": "r-1"}),
        ];
        for body in &spellings {
            for (operation, tsp_code) in [
                (KmsOperation::Wrap, on_wrap),
                (KmsOperation::Unwrap, on_unwrap),
            ] {
                let error = refused(operation, *status, &body.to_string());
                let row = format!("{status} {body}");
                assert_eq!(error.kind().tsp_code().number(), *tsp_code, "{row}");
                assert_eq!(&again(&error), expected, "{row}");
                assert_eq!(error.code().unwrap_or_default(), *word, "{row}");
                assert_eq!(error.request_id(), Some("r-1"), "{row}");
                if !message.is_empty() {
                    assert_eq!(error.sentence(), *message, "{row}");
                }
            }
        }
    }
}

#[test]
fn each_status_of_a_log_in_has_its_class() {
    use Again::{Later, No, Soon, WithNewToken};
    let table = [
        // Password or refresh token: there may be another way, and the caller knows it.
        (401, "Wrong username or password.", 206, WithNewToken),
        (401, "Invalid token", 206, WithNewToken),
        (401, "User account is locked.", 206, WithNewToken),
        (403, "The user may not act in domain x.", 207, WithNewToken),
        (403, "License not installed.", 210, No),
        (404, "Domain not found", 207, No),
        (400, "grant_type is invalid", 206, No),
        (429, "", 209, Later),
        (500, "", 208, Soon),
        (503, "", 208, Soon),
        (204, "", 208, No),
    ];
    for (status, message, tsp_code, expected) in table {
        let body = json!({"code": 5, "codeDesc": "NCERRUnauthorizedAccess", "message": message});
        let error = refused(KmsOperation::Token, status, &body.to_string());
        assert_eq!(
            error.kind().tsp_code().number(),
            tsp_code,
            "{status} {message}"
        );
        assert_eq!(again(&error), expected, "{status} {message}");
        assert_eq!(error.operation(), KmsOperation::Token);
    }
}

#[test]
fn the_errors_of_the_vectors_are_understood() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../../tests/data/thales-ciphertrust.json")).unwrap();
    let expected = [206, 207, 205, 205, 207, 208];
    let errors = vectors["errors"].as_array().unwrap();
    assert_eq!(errors.len(), expected.len());
    for (case, tsp_code) in errors.iter().zip(expected) {
        let status = case["status"].as_u64().unwrap().try_into().unwrap();
        let error = refused(KmsOperation::Unwrap, status, &case["body"].to_string());
        assert_eq!(error.kind().tsp_code().number(), tsp_code, "{case}");
        let word = case["body"]["codeDesc"].as_str().unwrap();
        assert_eq!(error.code(), word.split(':').next(), "{case}");
    }
}

#[test]
fn the_message_says_what_the_appliance_said() {
    let body = r#"{"code":16,"codeDesc":"NCERRResourceNotFound: Resource not found","requestID":"0a1b2c3d-0000-4000-8000-0123456789ab"}"#;
    assert_eq!(
        refused(KmsOperation::Wrap, 404, body).to_string(),
        "Thales CipherTrust could not wrap the key \
         (NCERRResourceNotFound, request 0a1b2c3d-0000-4000-8000-0123456789ab): Resource not found. \
         Check the key in the KMS config, and its state and permissions at the KMS."
    );
}

#[test]
fn what_is_not_json_goes_by_its_status() {
    for body in [
        "",
        "<html>Bad Gateway</html>",
        "{",
        "[]",
        r#"{"codeDesc":7}"#,
    ] {
        let error = refused(KmsOperation::Unwrap, 502, body);
        assert_eq!(
            error.sentence(),
            "it answered decrypt with HTTP status 502: the service is not available"
        );
    }
}
