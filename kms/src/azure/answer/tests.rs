use std::time::{Duration, UNIX_EPOCH};

use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::*;
use crate::{
    Endpoint, RemoteKms as _, Retry, Roots,
    azure::{
        Algorithm,
        entra::{Entra, Proof},
    },
};

const TENANT: &str = "72f988bf-0000-4000-8000-2d7cd011db47";
const OTHER: &str = "11111111-2222-4333-8444-555555555555";

fn azure() -> AzureKms {
    let proof = Proof::Secret(tsp_wire::Secret::new("secret".to_owned()));
    let authority = Endpoint::at("login.microsoftonline.com", Roots::Public);
    let scope = "https://vault.azure.net/.default".to_owned();
    AzureKms {
        endpoint: Endpoint::at("acme.vault.azure.net", Roots::Public),
        host: "acme.vault.azure.net".to_owned(),
        vault_host: "acme.vault.azure.net".to_owned(),
        key_name: "key".to_owned(),
        algorithm: Algorithm::RsaOaep256,
        entra: Entra::new(authority, TENANT, OTHER, scope, proof).into(),
    }
}

/// Headers: names and values.
type Pairs<'a> = &'a [(&'a str, &'a str)];

fn refused(operation: KmsOperation, status: u16, pairs: Pairs<'_>, body: &str) -> KmsError {
    let lines = pairs
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    let headers: String = lines.collect();
    let answer = HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: body.as_bytes(),
    };
    match operation {
        KmsOperation::Wrap => azure().read_wrap(&answer).unwrap_err(),
        KmsOperation::Unwrap => azure().read_unwrap(&answer).unwrap_err(),
        KmsOperation::Token => panic!("a vault gives no tokens"),
    }
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
        Retry::AfterClockRepair { .. } => panic!("a vault says nothing about clocks"),
    }
}

#[test]
fn each_status_and_code_has_its_class() {
    use Again::{Later, No, Soon, WithNewToken};
    // Status, code, code inside, message; TSP code on wrap, on unwrap; whether to try again.
    type Row<'a> = (u16, &'a str, &'a str, &'a str, u16, u16, Again);
    let table: &[Row<'_>] = &[
        (
            401,
            "Unauthorized",
            "AKV10000",
            "Request is missing a Bearer or PoP token.",
            206,
            206,
            WithNewToken,
        ),
        (
            401,
            "Unauthorized",
            "AKV10022",
            "Invalid audience.",
            206,
            206,
            WithNewToken,
        ),
        (
            401,
            "Unauthorized",
            "",
            "The token is expired.",
            206,
            206,
            WithNewToken,
        ),
        (
            401,
            "Unauthorized",
            "AKV10032",
            "Invalid issuer.",
            207,
            207,
            No,
        ),
        (
            401,
            "Unauthorized",
            "",
            "AKV10032: Invalid issuer. Expected one of https://sts.windows.net/x/",
            207,
            207,
            No,
        ),
        (
            403,
            "Forbidden",
            "ForbiddenByRbac",
            "Caller is not authorized to perform action on resource.",
            207,
            207,
            No,
        ),
        (403, "Forbidden", "AccessDenied", "", 207, 207, No),
        (
            403,
            "Forbidden",
            "ForbiddenByPolicy",
            "The user does not have keys unwrapKey permission",
            207,
            207,
            No,
        ),
        (
            403,
            "Forbidden",
            "ForbiddenByFirewall",
            "Client address is not authorized",
            207,
            207,
            No,
        ),
        (
            403,
            "Forbidden",
            "ForbiddenByConnection",
            "Connection is not an approved private link",
            207,
            207,
            No,
        ),
        (
            403,
            "Forbidden",
            "KeyDisabled",
            "Operation unwrapKey is not allowed on a disabled key.",
            207,
            207,
            No,
        ),
        (
            403,
            "Forbidden",
            "",
            "Operation wrapKey is not allowed on an expired key.",
            207,
            207,
            No,
        ),
        (
            404,
            "KeyNotFound",
            "",
            "A key with (name/id) key was not found in this key vault.",
            207,
            207,
            No,
        ),
        (404, "VaultNotFound", "", "", 207, 207, No),
        (
            400,
            "BadParameter",
            "",
            "Key and signing algorithm are incompatible.",
            207,
            205,
            No,
        ),
        (400, "SomethingNew", "", "", 204, 205, No),
        (
            409,
            "Conflict",
            "",
            "The key is being deleted.",
            207,
            207,
            No,
        ),
        (
            429,
            "Throttled",
            "",
            "Reason: VaultRequestTypeLimitReached",
            209,
            209,
            Later,
        ),
        (500, "InternalServerError", "", "", 208, 208, Soon),
        (502, "", "", "", 208, 208, Soon),
        (503, "ServiceUnavailable", "", "", 208, 208, Soon),
        (504, "", "", "", 208, 208, Soon),
        (408, "", "", "", 208, 208, Soon),
        (404, "SubscriptionNotFound", "", "", 210, 210, No),
        (
            403,
            "Forbidden",
            "ReadOnlyDisabledSubscription",
            "",
            210,
            210,
            No,
        ),
        (403, "ReadOnlyDisabledSubscription", "", "", 210, 210, No),
        // What is in no table of theirs.
        (302, "", "", "", 207, 207, No),
        (418, "", "", "", 204, 205, No),
        (501, "", "", "", 208, 208, No),
        (204, "", "", "", 204, 205, No),
    ];
    for (status, code, inner, message, on_wrap, on_unwrap, expected) in table {
        let mut error = json!({"code": code, "message": message});
        if !inner.is_empty() {
            error["innererror"] = json!({"code": inner});
        }
        let body = json!({"error": error}).to_string();
        for (operation, tsp_code) in [
            (KmsOperation::Wrap, on_wrap),
            (KmsOperation::Unwrap, on_unwrap),
        ] {
            let error = refused(operation, *status, &[], &body);
            let row = format!("{status} {code} {inner} {message}");
            assert_eq!(error.kind().tsp_code().number(), *tsp_code, "{row}");
            assert_eq!(&again(&error), expected, "{row}");
            let shown = if inner.is_empty() { code } else { inner };
            assert_eq!(error.code().unwrap_or_default(), *shown, "{row}");
            assert!(error.sentence().len() > 10 || !message.is_empty(), "{row}");
        }
    }
}

#[test]
fn the_message_says_what_azure_said() {
    let body = r#"{"error":{"code":"Forbidden","message":"Operation unwrapKey is not allowed on a disabled key.","innererror":{"code":"KeyDisabled"}}}"#;
    let headers: Pairs<'_> = &[("x-ms-request-id", "0a1b2c3d-0000-4000-8000-0123456789ab")];
    let error = refused(KmsOperation::Unwrap, 403, headers, body);
    assert_eq!(
        error.to_string(),
        "Azure Key Vault could not unwrap the key (KeyDisabled, request 0a1b2c3d-0000-4000-8000-0123456789ab): \
         Operation unwrapKey is not allowed on a disabled key. Check that the KMS config names the key that made the EDEK, and the key's state and permissions at the KMS."
    );
}

#[test]
fn what_is_not_json_goes_by_its_status() {
    for body in [
        "",
        "<html>Bad Gateway</html>",
        "{",
        "[]",
        r#"{"error":"x"}"#,
        r#"{"error":{"code":7}}"#,
    ] {
        let error = refused(KmsOperation::Wrap, 502, &[], body);
        assert_eq!(error.kind(), KmsErrorKind::Unreachable);
        assert_eq!(
            error.sentence(),
            "it answered wrapKey with HTTP status 502: the service is not available"
        );
    }
}

#[test]
fn the_pause_that_a_vault_wishes_for_is_passed_on() {
    let date = "Thu, 15 Jan 2026 10:15:30 GMT";
    let cases: &[(Pairs<'_>, Option<u64>)] = &[
        (&[], None),
        (&[("retry-after", "7")], Some(7)),
        (&[("retry-after", "3600")], Some(3600)),
        (&[("retry-after", "99999999999")], Some(86_400)),
        (
            &[
                ("retry-after", "Thu, 15 Jan 2026 10:15:42 GMT"),
                ("date", date),
            ],
            Some(12),
        ),
        (
            &[
                ("retry-after", "Thu, 15 Jan 2026 10:00:00 GMT"),
                ("date", date),
            ],
            Some(0),
        ),
        (&[("retry-after", "Thu, 15 Jan 2026 10:15:42 GMT")], None),
        (&[("retry-after", "soon"), ("date", date)], None),
    ];
    for (headers, seconds) in cases {
        let error = refused(KmsOperation::Wrap, 429, headers, "");
        let after = seconds.map(Duration::from_secs);
        assert_eq!(error.retry(), Retry::Throttled { after }, "{headers:?}");
    }
}

fn challenged(challenge: &str) -> KmsError {
    let headers: Pairs<'_> = &[
        ("www-authenticate", challenge),
        ("x-ms-request-id", "0a1b2c3d-0000-4000-8000-0123456789ab"),
    ];
    let body = r#"{"error":{"code":"Unauthorized","message":"AKV10032: Invalid issuer."}}"#;
    refused(KmsOperation::Unwrap, 401, headers, body)
}

#[test]
fn a_vault_of_another_tenant_says_whose_it_is() {
    for challenge in [
        format!(
            r#"Bearer authorization="https://login.microsoftonline.com/{OTHER}", resource="https://vault.azure.net""#
        ),
        format!(
            r#"Bearer authorization_uri="https://login.windows.net/{OTHER}/oauth2/authorize",scope="https://vault.azure.net/.default""#
        ),
        format!(
            "bearer resource=https://vault.azure.net, authorization=https://login.microsoftonline.us/{OTHER}"
        ),
    ] {
        let error = challenged(&challenge);
        assert_eq!(error.kind().tsp_code().number(), 207, "{challenge}");
        assert_eq!(error.retry(), Retry::No);
        assert_eq!(
            error.to_string(),
            format!(
                "Azure Key Vault could not unwrap the key (Unauthorized, request 0a1b2c3d-0000-4000-8000-0123456789ab): \
                 the vault belongs to tenant {OTHER}, and not to the configured tenantGuid. \
                 Check the credentials in the KMS config."
            )
        );
    }
}

#[test]
fn a_challenge_of_our_own_tenant_asks_for_another_token() {
    let tenant = TENANT.to_uppercase();
    for challenge in [
        format!(
            r#"Bearer authorization="https://login.microsoftonline.com/{tenant}", resource="https://vault.azure.net""#
        ),
        r#"Bearer authorization="https://login.microsoftonline.com/common", resource="x""#
            .to_owned(),
        "Bearer".to_owned(),
        format!(r#"Basic realm="https://x/{OTHER}""#),
        format!(r#"Bearer authorization="https://x/{OTHER}"#),
    ] {
        let headers: Pairs<'_> = &[("www-authenticate", &challenge)];
        let error = refused(KmsOperation::Wrap, 401, headers, "");
        assert_eq!(error.kind().tsp_code().number(), 206, "{challenge}");
        assert_eq!(error.retry(), Retry::AfterNewToken);
        assert_eq!(error.claims(), None);
    }
    // It is about a 401 only.
    let other = format!(r#"Bearer authorization="https://x/{OTHER}""#);
    let headers: Pairs<'_> = &[("www-authenticate", &other)];
    let error = refused(KmsOperation::Wrap, 403, headers, "");
    assert!(!error.to_string().contains(OTHER));
}

#[test]
fn claims_that_a_vault_asks_for_travel_with_the_error() {
    let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"1768472130"},"x":"??>>"}}"#;
    let standard = STANDARD.encode(claims);
    assert!(standard.contains(['/', '+']));
    let url = standard.replace('+', "-").replace('/', "_");
    for text in [standard.trim_end_matches('=').to_owned(), standard, url] {
        let error = challenged(&format!(
            r#"Bearer realm="", authorization_uri="https://login.microsoftonline.com/{TENANT}", error="insufficient_claims", claims="{text}""#
        ));
        // The code in the body is of another matter; here the challenge is what counts.
        assert_eq!(error.claims(), Some(claims));
        assert!(!format!("{error:?} {error}").contains("essential"));
    }
}

#[test]
fn claims_that_are_none_are_left_out() {
    let long = STANDARD.encode(format!(r#"{{"a":"{}"}}"#, "b".repeat(5000)));
    for text in ["", "%", "bm90IGpzb24=", "WzFd", "/////w==", long.as_str()] {
        let headers = format!(r#"Bearer error="insufficient_claims", claims="{text}""#);
        let error = refused(
            KmsOperation::Wrap,
            401,
            &[("www-authenticate", &headers)],
            "",
        );
        assert_eq!(error.retry(), Retry::AfterNewToken);
        assert_eq!(error.claims(), None, "{text}");
    }
    let unasked = r#"Bearer error="invalid_token", claims="eyJhIjoxfQ==""#;
    let error = refused(
        KmsOperation::Wrap,
        401,
        &[("www-authenticate", unasked)],
        "",
    );
    assert_eq!(error.claims(), None);
}

#[test]
fn the_clock_is_no_matter_of_a_vault() {
    // A token says nothing about our clock, so its refusal repairs nothing.
    let headers: Pairs<'_> = &[("date", "Thu, 15 Jan 2026 10:15:30 GMT")];
    let error = refused(KmsOperation::Wrap, 401, headers, "");
    assert_eq!(error.retry(), Retry::AfterNewToken);
    assert_eq!(
        error.server_time(),
        Some(UNIX_EPOCH + Duration::from_secs(1_768_472_130))
    );
}
