//! The ten rules of the HTTP API that break a published client when missed, as far as they are bytes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value as Json, json};
use tsp_wire::{
    Dek, KmsConfigId, TspCode,
    api::{self, BatchAnswer, Parser},
    edek,
};

fn dek() -> Dek {
    // 0xfb makes `+` and `/` in base64.
    Dek::fill_with(|bytes| bytes.fill(0xfb))
}

fn parsed(bytes: impl AsRef<[u8]>) -> Json {
    serde_json::from_slice(bytes.as_ref()).unwrap()
}

fn batch() -> BatchAnswer {
    let mut batch = BatchAnswer::with_capacity(2);
    batch.push_wrapped("done", &dek(), b"edek");
    batch.push_failure("failed", TspCode::KmsThrottled, "later");
    batch
}

#[test]
fn rule_1_no_failure_has_the_status_of_a_success() {
    for code in TspCode::ALL {
        assert!((400..600).contains(&code.http_status()), "{code:?}");
    }
}

#[test]
fn rule_2_the_answer_to_a_security_event_is_exactly_null() {
    assert_eq!(api::VOID, b"null");
}

#[test]
fn rule_3_no_error_looks_like_a_success() {
    for code in TspCode::ALL {
        let error = parsed(api::error(code, "{\"dek\":\"\",\"edek\":\"\",\"keys\":{}}"));
        for member in ["dek", "edek", "keys", "failures", "derivedKeys"] {
            assert_eq!(error.get(member), None, "{code:?}");
        }
        assert!(!error.is_null());
    }
}

#[test]
fn rule_4_an_error_has_a_code_of_16_bits_and_a_message_that_is_not_empty() {
    for code in TspCode::ALL {
        for message in ["", "text", "\"\u{0}\n"] {
            let error = parsed(api::error(code, message));
            assert!(u16::try_from(error["code"].as_u64().unwrap()).is_ok());
            assert!(!error["message"].as_str().unwrap().is_empty());
        }
    }
}

#[test]
fn rule_5_a_rekey_returns_both_dek_and_edek() {
    let answer = parsed(api::wrapped(Vec::new(), &dek(), b"edek"));
    assert!(answer["dek"].is_string() && answer["edek"].is_string());
}

#[test]
fn rule_6_a_batch_answer_has_two_objects_and_each_id_in_one() {
    for (answer, keys, failures) in [
        (BatchAnswer::with_capacity(0), vec![], vec![]),
        (batch(), vec!["done"], vec!["failed"]),
    ] {
        let answer = parsed(answer.finish());
        let names = |member: &str| -> Vec<String> {
            answer[member]
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect()
        };
        assert_eq!(
            (names("keys"), names("failures")),
            (
                keys.into_iter().map(str::to_owned).collect(),
                failures.into_iter().map(str::to_owned).collect()
            )
        );
    }
}

#[test]
fn rule_7_an_edek_is_protobuf_with_a_config_id_from_1() {
    assert!(KmsConfigId::new(0).is_none());
    let encoded = edek::encode_unleased(KmsConfigId::new(1).unwrap(), b"blob");
    let decoded = edek::parse(&BASE64_STANDARD.encode(encoded)).unwrap();
    assert!(
        decoded
            .encrypted_deks
            .iter()
            .all(|entry| entry.kms_config_id >= 1)
    );
    assert_eq!(decoded.encrypted_deks.len(), 1);
}

#[test]
fn rule_8_base64_has_the_standard_alphabet_with_padding_and_no_line_breaks() {
    let long = [0xfb; 999];
    let answer = parsed(api::wrapped(Vec::new(), &dek(), &long));
    for (member, bytes) in [("dek", &dek().expose()[..]), ("edek", &long)] {
        let text = answer[member].as_str().unwrap();
        assert_eq!(text.len() % 4, 0);
        assert!(text.contains('+') && text.contains('/') && !text.contains(['-', '_', '\n']));
        assert_eq!(BASE64_STANDARD.decode(text).unwrap(), bytes);
    }
}

#[test]
fn rule_9_status_401_is_only_for_a_bad_api_key() {
    for code in TspCode::ALL {
        assert_eq!(
            code.http_status() == 401,
            code == TspCode::Unauthorized,
            "{code:?}"
        );
    }
    assert_eq!(TspCode::Unauthorized.number(), 101);
}

#[test]
fn rule_10_icl_fields_may_be_null_custom_fields_may_be_null_and_edeks_an_array() {
    let body = json!({
        "tenantId": "acme",
        "iclFields": {
            "requestingId": "", "dataLabel": null, "sourceIp": null, "objectId": null,
            "requestId": null,
        },
        "customFields": null,
        "edeks": ["x", "y"],
    });
    let mut body = body.to_string().into_bytes();
    let mut parser = Parser::new();
    let request = parser.batch_unwrap(&mut body).unwrap();
    assert_eq!(request.metadata.data_label, None);
    assert!(request.metadata.custom_fields.is_empty());
    assert_eq!(request.edeks, [("0".into(), "x"), ("1".into(), "y")]);
}
