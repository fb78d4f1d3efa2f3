use serde_json::Value;

use super::*;
use crate::{KmsErrorKind, Retry};

/// Headers: names and values.
type Pairs<'a> = &'a [(&'a str, &'a str)];

fn headers(pairs: Pairs<'_>) -> String {
    let lines = pairs
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    lines.collect()
}

fn refused(operation: KmsOperation, status: u16, pairs: Pairs<'_>, body: &str) -> KmsError {
    refused_by(operation, SignedWith::Configured, status, pairs, body)
}

fn refused_by(
    operation: KmsOperation,
    signed_with: SignedWith,
    status: u16,
    pairs: Pairs<'_>,
    body: &str,
) -> KmsError {
    let headers = headers(pairs);
    let answer = HttpAnswer {
        status,
        headers: headers.as_bytes(),
        body: body.as_bytes(),
    };
    match operation {
        KmsOperation::Wrap => read_wrap(&answer, signed_with).unwrap_err(),
        KmsOperation::Unwrap => read_unwrap(&answer, signed_with).unwrap_err(),
        KmsOperation::Token => refusal(operation, &answer, signed_with),
    }
}

fn with_code(
    operation: KmsOperation,
    signed_with: SignedWith,
    status: u16,
    code: &str,
) -> KmsError {
    refused_by(
        operation,
        signed_with,
        status,
        &[],
        &format!(r#"{{"__type":"{code}","message":"why"}}"#),
    )
}

/// What a test of a table expects to be told about retrying.
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
        Retry::AfterClockRepair { .. } => panic!("needs a date to repair by"),
        Retry::AfterNewToken => Again::WithNewToken,
    }
}

/// Codes; TSP code on wrap, unwrap and token; whether to try again, and whether if a role's session signed.
type Row = (&'static [&'static str], [u16; 3], Again, Again);

#[rustfmt::skip]
const TABLE: &[Row] = {
    use Again::{Later, No, Soon, WithNewToken};
    &[
        (&["NotFoundException", "InvalidArnException", "DisabledException"],                     [207, 207, 207], No, No),
        (&["KMSInvalidStateException", "InvalidKeyUsageException"],                              [207, 207, 207], No, No),
        (&["UnsupportedOperationException", "ValidationException", "ValidationError"],           [207, 207, 207], No, No),
        (&["InvalidGrantTokenException", "RegionDisabledException"],                             [207, 207, 207], No, No),
        (&["AccessDeniedException", "AccessDenied", "NotAuthorized"],                            [207, 207, 207], No, No),
        (&["InvalidSignatureException", "SignatureDoesNotMatch"],                                [206, 206, 206], No, No),
        (&["MissingAuthenticationToken", "MissingAuthenticationTokenException"],                 [206, 206, 206], No, No),
        (&["IncompleteSignature", "IncompleteSignatureException", "InvalidAccessKeyId"],         [206, 206, 206], No, No),
        (&["UnrecognizedClientException", "InvalidClientTokenId"],                               [206, 206, 206], No, WithNewToken),
        (&["ExpiredTokenException", "ExpiredToken", "TokenRefreshRequired", "RequestExpired"],   [206, 206, 206], No, WithNewToken),
        // Without a date in the answer there is nothing to set the clock by.
        (&["RequestTimeTooSkewed"],                                                              [206, 206, 206], No, No),
        (&["InvalidCiphertextException", "IncorrectKeyException"],                               [204, 205, 206], No, No),
        (&["ThrottlingException", "Throttling", "ThrottledException"],                           [209, 209, 209], Later, Later),
        (&["RequestThrottled", "RequestThrottledException", "TooManyRequestsException"],         [209, 209, 209], Later, Later),
        (&["RequestLimitExceeded", "LimitExceededException", "SlowDown"],                        [209, 209, 209], Later, Later),
        (&["ProvisionedThroughputExceededException"],                                            [209, 209, 209], Later, Later),
        (&["KMSInternalException", "KeyUnavailableException", "DependencyTimeoutException"],     [208, 208, 208], Soon, Soon),
        (&["InternalFailure", "InternalError", "InternalServerError"],                           [208, 208, 208], Soon, Soon),
        (&["ServiceUnavailable", "ServiceUnavailableException", "RequestAbortedException"],      [208, 208, 208], Soon, Soon),
        (&["RequestTimeout", "RequestTimeoutException"],                                         [208, 208, 208], Soon, Soon),
        (&["OptInRequired", "SubscriptionRequiredException"],                                    [210, 210, 210], No, No),
        (&["SerializationException", "UnknownOperationException", "DryRunOperationException"],   [204, 205, 206], No, No),
        (&["MalformedHttpRequestException", "MalformedPolicyDocument", "PackedPolicyTooLarge"],  [204, 205, 206], No, No),
    ]
};

#[test]
fn each_code_has_its_class_whatever_the_status() {
    use KmsOperation::{Token, Unwrap, Wrap};
    for (codes, tsp, configured, role) in TABLE {
        for code in *codes {
            for status in [400, 403, 404, 409, 412, 500, 503] {
                for (operation, tsp) in [Wrap, Unwrap, Token].into_iter().zip(tsp) {
                    for (signed_with, expected) in [
                        (SignedWith::Configured, configured),
                        (SignedWith::Role, role),
                    ] {
                        let error = with_code(operation, signed_with, status, code);
                        let why = format!("{code} {status} {operation} {signed_with:?}");
                        assert_eq!(error.kind().tsp_code().number(), *tsp, "{why}");
                        assert_eq!(again(&error), *expected, "{why}");
                        assert_eq!(error.code(), Some(*code));
                        assert_eq!(error.retryable(), *expected != Again::No);
                    }
                }
            }
        }
    }
    let tested: usize = TABLE.iter().map(|(codes, ..)| codes.len()).sum();
    assert_eq!(tested, CODES.len(), "every code we know is in the table");
}

#[test]
fn without_a_known_code_the_status_decides() {
    use Again::{Later, No, Soon};
    use KmsOperation::{Token, Unwrap, Wrap};
    // Status; TSP code on wrap, on unwrap, for a token; whether to try again.
    let table = [
        (100, [204, 205, 208], No),
        (201, [204, 205, 208], No),
        (204, [204, 205, 208], No),
        (301, [207, 207, 207], No),
        (307, [207, 207, 207], No),
        (400, [204, 205, 206], No),
        (401, [206, 206, 206], No),
        (403, [207, 207, 207], No),
        (404, [207, 207, 207], No),
        (408, [208, 208, 208], Soon),
        (413, [204, 205, 206], No),
        (429, [209, 209, 209], Later),
        (500, [208, 208, 208], Soon),
        (501, [208, 208, 208], No),
        (502, [208, 208, 208], Soon),
        (503, [208, 208, 208], Soon),
        (504, [208, 208, 208], Soon),
        (509, [209, 209, 209], Later),
        (599, [208, 208, 208], No),
        (600, [204, 205, 208], No),
        (0, [204, 205, 208], No),
    ];
    let bodies = [
        "",
        "<html><body><h1>Bad Gateway</h1></body></html>",
        "<!DOCTYPE html><html><body>Sign in</body></html>",
        "{",
        "null",
        "[]",
        "\"text\"",
        "{\"message\":\"no code at all\"}",
        "{\"__type\":\"BrandNewException\",\"message\":\"unknown\"}",
        "{\"__type\":7,\"code\":{\"a\":1},\"message\":[]}",
        "\u{fffd}\u{0}",
    ];
    for (status, tsp, expected) in table {
        for body in bodies {
            for (operation, tsp) in [Wrap, Unwrap, Token].into_iter().zip(tsp) {
                let error = refused(operation, status, &[], body);
                assert_eq!(error.kind().tsp_code().number(), tsp, "{status} {body}");
                assert_eq!(again(&error), expected, "{status} {body}");
            }
        }
    }
}

#[test]
fn codes_and_messages_are_those_that_botocore_finds() {
    let file: Value =
        serde_json::from_str(include_str!("../../../tests/data/aws-error-bodies.json")).unwrap();
    let cases = ["kms", "sts"]
        .into_iter()
        .flat_map(|api| file[api].as_array().unwrap());
    let mut count = 0;
    for case in cases {
        let pairs: Vec<_> = case["headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
            .collect();
        let headers = headers(&pairs);
        let status = u16::try_from(case["status"].as_u64().unwrap()).unwrap();
        let answer = HttpAnswer {
            status,
            headers: headers.as_bytes(),
            body: case["body_utf8"].as_str().unwrap().as_bytes(),
        };
        let said = Said::read(&answer);
        let code = said.code.as_deref().map(bare_code);
        let expected = case["expect"]["code"].as_str().unwrap();
        if expected == status.to_string() {
            // botocore makes one up from the status, and a message with it.
            assert_eq!((code, said.message), (None, None), "{case}");
        } else {
            assert_eq!(code, Some(expected), "{case}");
            assert_eq!(
                said.message.unwrap_or_default(),
                case["expect"]["message"].as_str().unwrap()
            );
            assert!(
                CODES.iter().any(|(known, _)| *known == expected),
                "{expected} has a class"
            );
        }
        count += 1;
    }
    assert_eq!(count, 27);
}

#[test]
fn a_code_is_found_wherever_it_stands() {
    let type_header = (
        "x-amzn-errortype",
        "DisabledException:http://internal.amazon.com/x#y",
    );
    let cases: &[(Pairs<'_>, &str, &str)] = &[
        (
            &[],
            r#"{"__type":"DisabledException"}"#,
            "DisabledException",
        ),
        (
            &[],
            r#"{"__type":"com.amazonaws.kms#DisabledException"}"#,
            "DisabledException",
        ),
        (
            &[],
            r#"{"__type":"a#b#DisabledException:http://x/#y"}"#,
            "DisabledException",
        ),
        (
            &[],
            r#"{"code":"DisabledException","message":"m"}"#,
            "DisabledException",
        ),
        (
            &[],
            r#"{"__type":"","code":"DisabledException"}"#,
            "DisabledException",
        ),
        (
            &[],
            r#"  {"code":16,"__type":"Disabled\u0045xception"}"#,
            "DisabledException",
        ),
        (
            &[type_header],
            r#"{"__type":"NotFoundException"}"#,
            "NotFoundException",
        ),
        (&[type_header], r#"{"message":"m"}"#, "DisabledException"),
        (&[type_header], "", "DisabledException"),
        (&[type_header], "<html></html>", "DisabledException"),
    ];
    for (pairs, body, code) in cases {
        let error = refused(KmsOperation::Wrap, 400, pairs, body);
        assert_eq!(error.code(), Some(*code), "{body}");
        assert_eq!(error.kind(), KmsErrorKind::Configuration);
    }
    for body in [
        r#"{"__type":"X","message":"said"}"#,
        r#"{"__type":"X","Message":"said"}"#,
    ] {
        assert_eq!(
            refused(KmsOperation::Wrap, 400, &[], body).sentence(),
            "said"
        );
    }
}

#[test]
fn xml_errors_of_front_ends_are_read() {
    let body = "<?xml version=\"1.0\"?>\n<ErrorResponse xmlns=\"https://x/\">\n <Error>\n  <Type>Sender</Type>\
        <Code>SignatureDoesNotMatch</Code><Message>It &lt;does&#x20;not&gt; <![CDATA[match]]> &amp; so on</Message>\
        </Error><RequestId>7a62c49f-347e-4fc4-9331-6e8eEXAMPLE</RequestId></ErrorResponse>";
    let error = refused(
        KmsOperation::Unwrap,
        403,
        &[("content-type", "text/xml")],
        body,
    );
    assert_eq!(error.kind(), KmsErrorKind::Authorization);
    assert_eq!(error.code(), Some("SignatureDoesNotMatch"));
    assert_eq!(error.sentence(), "It <does not> match & so on");
}

#[test]
fn an_xml_error_is_found_in_each_of_its_wrappings() {
    let error = "<Error><Code>InvalidClientTokenId</Code><Message>m</Message></Error>";
    let bodies = [
        error.to_owned(),
        format!("<ErrorResponse>{error}<RequestId>r</RequestId></ErrorResponse>"),
        // moto
        format!("<?xml version=\"1.0\"?>\n<ErrorResponse><Errors>{error}</Errors></ErrorResponse>"),
        format!("<Response><Errors>{error}</Errors><RequestID>r</RequestID></Response>"),
    ];
    for body in bodies {
        let error = refused(
            KmsOperation::Wrap,
            403,
            &[("content-type", "text/html")],
            &body,
        );
        assert_eq!(
            (error.kind(), error.sentence()),
            (KmsErrorKind::Authorization, "m"),
            "{body}"
        );
    }
}

#[test]
fn xml_that_is_no_error_of_aws_counts_as_nothing() {
    let deep = format!("<ErrorResponse>{}", "<a>".repeat(1000));
    let bodies = [
        "<Other><Error><Code>AccessDenied</Code></Error></Other>",
        "<!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><ErrorResponse><Error><Code>&e;</Code></Error></ErrorResponse>",
        "<ErrorResponse><Error><Code>Access&e;Denied</Code></Error></ErrorResponse>",
        "<ErrorResponse><Error><Code>AccessDenied</Error></ErrorResponse>",
        "<ErrorResponse><Code>AccessDenied</Code></ErrorResponse>",
        "<ErrorResponse><Error><Code>AccessDenied</Code>",
        "<",
        deep.as_str(),
    ];
    for body in bodies {
        let error = refused(KmsOperation::Unwrap, 400, &[], body);
        assert_eq!(
            (error.kind(), error.code()),
            (KmsErrorKind::UnwrapFailed, None),
            "{body}"
        );
    }
}

#[test]
fn a_refused_time_asks_for_a_repair_and_a_refused_secret_does_not() {
    let date = [("date", "Thu, 15 Jan 2026 10:50:00 GMT")];
    let server_time = httpdate::parse_http_date(date[0].1).unwrap();
    let skewed = [
        r#"{"__type":"InvalidSignatureException","message":"Signature expired: 20260115T101530Z is now earlier than 20260115T104500Z (20260115T105000Z - 5 min.)"}"#,
        r#"{"__type":"InvalidSignatureException","Message":"Signature not yet current: 20260115T111530Z is still later than 20260115T105500Z (20260115T105000Z + 5 min.)"}"#,
        r#"{"__type":"RequestTimeTooSkewed"}"#,
        "<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code><Message>Signature expired: m</Message></Error></ErrorResponse>",
    ];
    for body in skewed {
        let error = refused(KmsOperation::Wrap, 403, &date, body);
        assert_eq!(error.kind(), KmsErrorKind::Authorization);
        assert_eq!(
            error.retry(),
            Retry::AfterClockRepair { server_time },
            "{body}"
        );
        assert!(
            error.to_string().ends_with(
                "The proxy's clock and the KMS's disagree: set the proxy's by a time server."
            ),
            "{error}"
        );
        // Without the server's time, or with nonsense for it, there is nothing to repair by.
        assert_eq!(
            refused(KmsOperation::Wrap, 403, &[], body).retry(),
            Retry::No
        );
        assert_eq!(
            refused(KmsOperation::Wrap, 403, &[("date", "soon")], body).retry(),
            Retry::No
        );
    }
    let wrong = r#"{"__type":"InvalidSignatureException","message":"The request signature we calculated does not match the signature you provided."}"#;
    let error = refused(KmsOperation::Wrap, 400, &date, wrong);
    assert_eq!(
        (error.kind(), error.retry()),
        (KmsErrorKind::Authorization, Retry::No)
    );
}

#[test]
fn the_servers_wish_for_a_pause_is_passed_on() {
    let date = ("date", "Thu, 15 Jan 2026 10:50:00 GMT");
    let cases: &[(Pairs<'_>, Option<Duration>)] = &[
        (&[], None),
        (
            &[("x-amz-retry-after", "1500")],
            Some(Duration::from_millis(1500)),
        ),
        (
            &[("x-amz-retry-after", "250"), ("retry-after", "9")],
            Some(Duration::from_millis(250)),
        ),
        (
            &[("x-amz-retry-after", "nonsense"), ("retry-after", "9")],
            Some(Duration::from_secs(9)),
        ),
        (&[("retry-after", "3600")], Some(Duration::from_secs(3600))),
        (
            &[("retry-after", "18446744073709551615")],
            Some(RETRY_AFTER_MAX),
        ),
        (&[("retry-after", "18446744073709551616")], None),
        (&[("retry-after", "-1")], None),
        (
            &[date, ("retry-after", "Thu, 15 Jan 2026 10:50:30 GMT")],
            Some(Duration::from_secs(30)),
        ),
        (
            &[date, ("retry-after", "Thu, 15 Jan 2026 10:49:00 GMT")],
            Some(Duration::ZERO),
        ),
        (&[("retry-after", "Thu, 15 Jan 2026 10:50:30 GMT")], None),
    ];
    for (pairs, after) in cases {
        for status in [400, 429] {
            let error = refused(
                KmsOperation::Wrap,
                status,
                pairs,
                r#"{"__type":"ThrottlingException"}"#,
            );
            assert_eq!(
                error.retry(),
                Retry::Throttled { after: *after },
                "{pairs:?}"
            );
        }
    }
}

#[test]
fn a_message_names_provider_operation_code_request_and_remedy() {
    let id = ("x-amzn-requestid", "0a1b2c3d-0000-4000-8000-0123456789ab");
    let error = refused(
        KmsOperation::Wrap,
        400,
        &[id],
        r#"{"__type":"AccessDeniedException","Message":"User: arn:aws:iam::111122223333:user/u is not authorized to perform: kms:Encrypt"}"#,
    );
    assert_eq!(
        error.to_string(),
        "AWS KMS could not wrap the key (AccessDeniedException, request 0a1b2c3d-0000-4000-8000-0123456789ab): \
         User: arn:aws:iam::111122223333:user/u is not authorized to perform: kms:Encrypt. \
         Check key and region in the KMS config, and the key's state and permissions at the KMS."
    );
    assert_eq!(
        refused(
            KmsOperation::Unwrap,
            400,
            &[],
            r#"{"__type":"InvalidCiphertextException"}"#
        )
        .to_string(),
        "AWS KMS could not unwrap the key (InvalidCiphertextException): it answered Decrypt with HTTP status 400: \
         the ciphertext does not decrypt. The EDEK was altered, or was made with another key."
    );
    assert_eq!(
        refused(KmsOperation::Unwrap, 503, &[], "<html>").to_string(),
        "AWS KMS could not unwrap the key: it answered Decrypt with HTTP status 503: the service is not available. \
         The KMS is slow or in trouble; try again later."
    );
}
