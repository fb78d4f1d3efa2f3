//! One worked example of every exchange, as published clients send it and as it must be answered, byte by byte.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tsp_wire::{
    Dek, TspCode,
    api::{self, BatchAnswer, DecodeError, OperationCounts, Parser},
    edek,
};

const DEK: &str = "r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=";
const EDEK: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKQ==";
const REKEYED: &str = "CkQKQExLVzHJrQJ4LJSxCW+Qu5YY3P46se52WYMFOyFQqeffQePsrN9zXejDJBZPzG9DLA5I2VYg9Ve52IJuZ8Xgk5YQTQ==";

fn dek() -> Dek {
    Dek::from_slice(&decoded(DEK)).unwrap()
}

fn decoded(base64: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(base64).unwrap()
}

fn text(answer: impl AsRef<[u8]>) -> String {
    String::from_utf8(answer.as_ref().to_vec()).unwrap()
}

#[test]
fn a_wrap_from_java() {
    let mut body = br#"{"tenantId":"acme","iclFields":{"requestingId":"billing-svc","dataLabel":"PII","requestId":"r-17"},"customFields":{"table":"customers"}}"#.to_vec();
    let mut parser = Parser::new();
    let metadata = parser.wrap(&mut body).unwrap().metadata;
    assert_eq!(
        (metadata.tenant_id, metadata.requesting_id),
        ("acme", "billing-svc")
    );
    assert_eq!(
        (metadata.data_label, metadata.request_id),
        (Some("PII"), Some("r-17"))
    );
    assert_eq!((metadata.source_ip, metadata.object_id), (None, None));
    assert_eq!(
        metadata.custom_fields.as_slice(),
        [("table", "customers".into())]
    );
    assert_eq!(
        text(api::wrapped(Vec::new(), &dek(), &decoded(EDEK))),
        format!(r#"{{"dek":"{DEK}","edek":"{EDEK}"}}"#)
    );
}

#[test]
fn an_unwrap_from_go() {
    let mut body = format!(
        r#"{{"encryptedDocumentKey":"{EDEK}","tenantId":"acme","iclFields":{{"requestingId":"foo"}},"customFields":null}}"#
    )
    .into_bytes();
    let mut parser = Parser::new();
    let request = parser.unwrap(&mut body).unwrap();
    assert_eq!(request.encrypted_document_key, EDEK);
    assert!(request.metadata.custom_fields.is_empty());
    assert_eq!(
        text(api::unwrapped(Vec::new(), &dek())),
        format!(r#"{{"dek":"{DEK}"}}"#)
    );
}

#[test]
fn an_unwrap_from_alloy() {
    let mut body = format!(
        r#"{{"encryptedDocumentKey":"{EDEK}","tenantId":"acme","iclFields":{{"requestingId":"IronCore Labs Alloy SDK","dataLabel":null,"sourceIp":null,"objectId":null,"requestId":null}},"customFields":{{}}}}"#
    )
    .into_bytes();
    let mut parser = Parser::new();
    let request = parser.unwrap(&mut body).unwrap();
    assert_eq!(request.encrypted_document_key, EDEK);
    assert_eq!(request.metadata.requesting_id, "IronCore Labs Alloy SDK");
}

#[test]
fn a_batch_unwrap_with_a_partial_failure() {
    let mut body = format!(
        r#"{{"tenantId":"acme","iclFields":{{"requestingId":"foo"}},"customFields":{{}},"edeks":{{"good":"{EDEK}","bad":"ZWRlaw=="}}}}"#
    )
    .into_bytes();
    let mut parser = Parser::new();
    let request = parser.batch_unwrap(&mut body).unwrap();
    let mut answer = BatchAnswer::with_capacity(request.edeks.len());
    for (id, base64) in &request.edeks {
        match edek::parse(base64) {
            Ok(_) => answer.push_unwrapped(id, &dek()),
            Err(error) => {
                answer.push_failure(id, TspCode::InvalidProvidedEdek, &error.to_string());
            }
        }
    }
    assert_eq!(
        text(answer.finish()),
        format!(
            r#"{{"keys":{{"good":{{"dek":"{DEK}"}}}},"failures":{{"bad":{{"code":203,"message":"Provided EDEK didn't contain IronCore EDEKs (it could not be decoded)."}}}}}}"#
        )
    );
}

#[test]
fn a_batch_unwrap_from_php_with_an_array_of_edeks() {
    let edek = EDEK.replace('/', r"\/");
    let mut body = format!(
        r#"{{"tenantId":"acme","iclFields":{{"requestingId":"foo","dataLabel":null,"sourceIp":null,"objectId":null,"requestId":null}},"customFields":{{}},"edeks":["{edek}"]}}"#
    )
    .into_bytes();
    let mut parser = Parser::new();
    let request = parser.batch_unwrap(&mut body).unwrap();
    assert_eq!(request.edeks, [("0".into(), EDEK)]);
    let mut answer = BatchAnswer::with_capacity(1);
    answer.push_unwrapped("0", &dek());
    assert_eq!(
        text(answer.finish()),
        format!(r#"{{"keys":{{"0":{{"dek":"{DEK}"}}}},"failures":{{}}}}"#)
    );
}

#[test]
fn a_batch_wrap() {
    let mut body = br#"{"tenantId":"acme","iclFields":{"requestingId":"foo"},"customFields":{},"documentIds":["a","b"]}"#.to_vec();
    let mut parser = Parser::new();
    let request = parser.batch_wrap(&mut body).unwrap();
    let mut answer = BatchAnswer::with_capacity(2);
    for id in &request.document_ids {
        answer.push_wrapped(id, &dek(), &decoded(EDEK));
    }
    let item = format!(r#"{{"dek":"{DEK}","edek":"{EDEK}"}}"#);
    assert_eq!(
        text(answer.finish()),
        format!(r#"{{"keys":{{"a":{item},"b":{item}}},"failures":{{}}}}"#)
    );
}

#[test]
fn a_rekey() {
    let mut body = format!(
        r#"{{"tenantId":"acme","iclFields":{{"requestingId":"ops"}},"customFields":{{}},"encryptedDocumentKey":"{EDEK}","newTenantId":"globex"}}"#
    )
    .into_bytes();
    let mut parser = Parser::new();
    let request = parser.rekey(&mut body).unwrap();
    assert_eq!(
        (request.metadata.tenant_id, request.new_tenant_id),
        ("acme", "globex")
    );
    assert_eq!(
        text(api::wrapped(Vec::new(), &dek(), &decoded(REKEYED))),
        format!(r#"{{"dek":"{DEK}","edek":"{REKEYED}"}}"#)
    );
}

#[test]
fn a_security_event_with_the_name_in_icl_fields() {
    let mut body = br#"{"tenantId":"acme","timestampMillis":1700000000000,"iclFields":{"requestingId":"u1","event":"USER_LOGIN","sourceIp":"192.0.2.7"},"customFields":{}}"#.to_vec();
    let mut parser = Parser::new();
    let request = parser.security_event(&mut body).unwrap();
    assert_eq!(
        (request.event, request.timestamp_ms),
        ("USER_LOGIN", Some(1_700_000_000_000))
    );
    assert_eq!(request.metadata.source_ip, Some("192.0.2.7"));
}

#[test]
fn a_security_event_from_alloy_with_the_name_at_top_level() {
    let mut body = br#"{"event":"DATA_CHANGE_PERMISSIONS","tenantId":"acme","iclFields":{"requestingId":"IronCore Labs Alloy SDK","dataLabel":null,"sourceIp":null,"objectId":null,"requestId":null},"customFields":{},"timestampMillis":1700000000000}"#.to_vec();
    let mut parser = Parser::new();
    let request = parser.security_event(&mut body).unwrap();
    assert_eq!(request.event, "DATA_CHANGE_PERMISSIONS");
}

#[test]
fn a_security_event_from_go_without_time_and_prefix() {
    let mut body = br#"{"timestampMillis":-62135596800000,"tenantId":"no-such-tenant","iclFields":{"event":"CREATE_BACKUP","requestingId":""},"customFields":null}"#.to_vec();
    let mut parser = Parser::new();
    let request = parser.security_event(&mut body).unwrap();
    assert_eq!(request.event, "PERIODIC_CREATE_BACKUP");
    assert_eq!(request.timestamp_ms, Some(-62_135_596_800_000));
}

#[test]
fn a_report_of_operations() {
    let mut body = format!(
        r#"{{"tenantId":"acme","iclFields":{{"requestingId":"billing-svc"}},"customFields":{{}},"operations":{{"{EDEK}":{{"wraps":3,"unwraps":0}}}}}}"#
    )
    .into_bytes();
    let mut parser = Parser::new();
    let request = parser.report_operations(&mut body).unwrap();
    assert_eq!(
        request.operations,
        [(
            EDEK,
            OperationCounts {
                wraps: 3,
                unwraps: 0
            }
        )]
    );
}

#[test]
fn an_error_that_names_the_missing_field() {
    let why = DecodeError::Missing { field: "iclFields" };
    assert_eq!(
        text(api::error(
            TspCode::InvalidRequest,
            &format!("Request body: {why}.")
        )),
        r#"{"code":102,"message":"Request body: missing field `iclFields`."}"#
    );
}
