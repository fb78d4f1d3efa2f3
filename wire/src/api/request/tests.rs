use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use super::*;
use crate::TenantId;

const EDEK: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKQ==";

/// Parses `body` with a parser of its own and hands the result to `check`.
macro_rules! parse {
    ($operation:ident, $body:expr, |$result:ident| $check:expr) => {{
        let mut body: Vec<u8> = AsRef::<[u8]>::as_ref(&$body).to_vec();
        let mut parser = Parser::new();
        let $result = parser.$operation(&mut body);
        $check
    }};
}

/// The text for the client of a body that must not be understood.
macro_rules! refused {
    ($operation:ident, $body:expr) => {
        parse!($operation, $body, |result| result.unwrap_err().to_string())
    };
}

fn wrap_with(members: &str) -> String {
    format!(r#"{{"tenantId":"acme","iclFields":{{"requestingId":"me"}}{members}}}"#)
}

fn custom(fields: &str) -> String {
    wrap_with(&format!(r#","customFields":{fields}"#))
}

fn event_with(members: &str, icl_members: &str) -> String {
    format!(r#"{{"tenantId":"acme","iclFields":{{"requestingId":"me"{icl_members}}}{members}}}"#)
}

fn at(timestamp: &str) -> Result<Option<i64>, String> {
    let body = event_with(
        &format!(r#","event":"E","timestampMillis":{timestamp}"#),
        "",
    );
    parse!(security_event, body, |result| result
        .map(|request| request.timestamp_ms)
        .map_err(|error| error.to_string()))
}

// Metadata.

#[test]
fn a_wrap_with_every_field_is_read() {
    let body = br#"{"tenantId":"acme","iclFields":{"requestingId":"svc","dataLabel":"PII",
        "sourceIp":"f","objectId":"o/1","requestId":"r-17"},"customFields":{"table":"customers"}}"#;
    parse!(wrap, body, |result| assert_eq!(
        result.unwrap().metadata,
        Metadata {
            tenant_id: "acme",
            requesting_id: "svc",
            data_label: Some("PII"),
            source_ip: Some("f"),
            object_id: Some("o/1"),
            request_id: Some("r-17"),
            custom_fields: [("table", Cow::Borrowed("customers"))]
                .into_iter()
                .collect(),
        }
    ));
}

#[test]
fn optional_fields_may_be_absent_or_null() {
    for optionals in [
        "",
        r#","dataLabel":null,"sourceIp":null,"objectId":null,"requestId":null"#,
    ] {
        let body = event_with(r#","customFields":null"#, optionals);
        parse!(wrap, body, |result| {
            let metadata = result.unwrap().metadata;
            assert_eq!(metadata.data_label, None);
            assert_eq!(metadata.source_ip, None);
            assert_eq!(metadata.object_id, None);
            assert_eq!(metadata.request_id, None);
            assert!(metadata.custom_fields.is_empty());
        });
    }
}

#[test]
fn an_empty_requesting_id_is_accepted() {
    let body = br#"{"tenantId":"acme","iclFields":{"requestingId":""}}"#;
    parse!(wrap, body, |result| assert_eq!(
        result.unwrap().metadata.requesting_id,
        ""
    ));
}

#[test]
fn a_missing_member_is_named() {
    for (body, text) in [
        ("{}", "missing field `tenantId`"),
        (r#"{"tenantId":"acme"}"#, "missing field `iclFields`"),
        (
            r#"{"tenantId":"acme","iclFields":{}}"#,
            "missing field `iclFields.requestingId`",
        ),
    ] {
        assert_eq!(refused!(wrap, body), text);
    }
    assert_eq!(
        refused!(unwrap, wrap_with("")),
        "missing field `encryptedDocumentKey`"
    );
    assert_eq!(
        refused!(batch_wrap, wrap_with("")),
        "missing field `documentIds`"
    );
    assert_eq!(
        refused!(batch_unwrap, wrap_with("")),
        "missing field `edeks`"
    );
    assert_eq!(
        refused!(report_operations, wrap_with("")),
        "missing field `operations`"
    );
    assert_eq!(
        refused!(security_event, wrap_with("")),
        "missing field `iclFields.event`"
    );
    let rekey = wrap_with(r#","encryptedDocumentKey":"""#);
    assert_eq!(refused!(rekey, rekey), "missing field `newTenantId`");
}

#[test]
fn a_wrong_type_is_named_with_the_right_one() {
    for (body, text) in [
        (
            r#"{"tenantId":7,"iclFields":{"requestingId":""}}"#,
            "field `tenantId` must be a string, not a number",
        ),
        (
            r#"{"tenantId":"a","iclFields":[]}"#,
            "field `iclFields` must be an object, not an array",
        ),
        (
            r#"{"tenantId":"a","iclFields":null}"#,
            "field `iclFields` must be an object, not null",
        ),
        (
            r#"{"tenantId":"a","iclFields":{"requestingId":null}}"#,
            "field `iclFields.requestingId` must be a string, not null",
        ),
        (
            r#"{"tenantId":"a","iclFields":{"requestingId":"","dataLabel":1.5}}"#,
            "field `iclFields.dataLabel` must be a string or null, not a number",
        ),
        (
            r#"{"tenantId":"a","iclFields":{"requestingId":"","sourceIp":{}}}"#,
            "field `iclFields.sourceIp` must be a string or null, not an object",
        ),
        (
            r#"{"tenantId":"a","iclFields":{"requestingId":"","objectId":true}}"#,
            "field `iclFields.objectId` must be a string or null, not a boolean",
        ),
        (
            r#"{"tenantId":"a","iclFields":{"requestingId":"","requestId":[]}}"#,
            "field `iclFields.requestId` must be a string or null, not an array",
        ),
    ] {
        assert_eq!(refused!(wrap, body), text);
    }
}

#[test]
fn a_tenant_id_is_1_to_256_bytes_without_control_characters() {
    let body = |id: &str| json!({"tenantId": id, "iclFields": {"requestingId": ""}}).to_string();
    assert_eq!(
        refused!(wrap, body("")),
        "field `tenantId` must not be empty"
    );
    for control in ["a\nb", "\u{7f}", "\u{85}"] {
        assert_eq!(
            refused!(wrap, body(control)),
            "field `tenantId` must hold no control characters"
        );
    }
    let longest = "ü".repeat(128);
    assert_eq!(
        refused!(wrap, body(&(longest.clone() + "x"))),
        "field `tenantId` must have at most 256 bytes"
    );
    parse!(wrap, body(&longest), |result| assert_eq!(
        result.unwrap().metadata.tenant_id,
        longest
    ));
    parse!(wrap, body(" a B "), |result| assert_eq!(
        result.unwrap().metadata.tenant_id,
        " a B "
    ));
}

#[test]
fn scalars_in_custom_fields_become_their_json_text() {
    let body = custom(
        r#"{"s":"x","t":true,"f":false,"i":-3,"u":18446744073709551615,"d":1.50,"e":1e21,
            "big":123456789012345678901234567890,"zero":0,"gone":null}"#,
    );
    parse!(wrap, body, |result| {
        let fields = result.unwrap().metadata.custom_fields;
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_ref()))
            .collect();
        assert_eq!(
            fields,
            [
                ("s", "x"),
                ("t", "true"),
                ("f", "false"),
                ("i", "-3"),
                ("u", "18446744073709551615"),
                ("d", "1.5"),
                ("e", "1e+21"),
                ("big", "1.2345678901234568e+29"),
                ("zero", "0"),
            ]
        );
    });
}

#[test]
fn custom_fields_with_parts_are_refused() {
    for value in ["{}", "[]", r#"{"a":"b"}"#] {
        let text = refused!(wrap, custom(&format!(r#"{{"x":{value}}}"#)));
        assert!(
            text.starts_with(
                "field `customFields.*` must be a string, a number, a boolean or null, not an "
            ),
            "{text}"
        );
    }
    assert_eq!(
        refused!(wrap, custom(r#"["x"]"#)),
        "field `customFields` must be an object or null, not an array"
    );
}

#[test]
fn the_last_of_duplicate_members_counts_and_only_it_is_checked() {
    let body = br#"{"tenantId":1,"tenantId":"acme","iclFields":7,
        "iclFields":{"requestingId":null,"requestingId":"me","dataLabel":"x","dataLabel":null},
        "customFields":{"a":{},"b":"1","a":"2","b":null,"c":"3","c":"4"}}"#;
    parse!(wrap, body, |result| {
        let metadata = result.unwrap().metadata;
        assert_eq!((metadata.tenant_id, metadata.requesting_id), ("acme", "me"));
        assert_eq!(metadata.data_label, None);
        assert_eq!(
            metadata.custom_fields.as_slice(),
            [("a", "2".into()), ("c", "4".into())]
        );
    });
    let body = br#"{"tenantId":"acme","iclFields":{"requestingId":"me"},"iclFields":{}}"#;
    assert_eq!(
        refused!(wrap, body),
        "missing field `iclFields.requestingId`"
    );
}

#[test]
fn duplicates_are_found_among_many_custom_fields_too() {
    let mut fields: Vec<String> = (0..50).map(|i| format!(r#""f{}":"{i}""#, i % 20)).collect();
    fields.push(r#""f3":null"#.to_owned());
    parse!(
        wrap,
        custom(&format!("{{{}}}", fields.join(","))),
        |result| {
            let fields = result.unwrap().metadata.custom_fields;
            let by_name: HashMap<_, _> = fields.iter().cloned().collect();
            assert_eq!((fields.len(), by_name.len()), (19, 19));
            assert_eq!(
                (by_name["f0"].as_ref(), by_name["f15"].as_ref()),
                ("40", "35")
            );
        }
    );
}

#[test]
fn unknown_members_are_ignored_at_every_level() {
    let body = br#"{"x":[{"tenantId":"evil"}],"tenantId":"acme","huge":1234567890123456789012345678901234567890,
        "iclFields":{"event":5,"nested":{"requestingId":"evil"},"requestingId":"me"},"documentIds":5,"edeks":null}"#;
    parse!(wrap, body, |result| {
        let metadata = result.unwrap().metadata;
        assert_eq!((metadata.tenant_id, metadata.requesting_id), ("acme", "me"));
    });
}

#[test]
fn escapes_are_resolved_in_names_and_values() {
    let body = br#"{"tenant\u0049d":"a\/c\u006de \ud83d\ude00","iclFields":{"requestingId":"\"\\\b\f\n\r\t\u0000"}}"#;
    parse!(wrap, body, |result| {
        let metadata = result.unwrap().metadata;
        assert_eq!(metadata.tenant_id, "a/cme 😀");
        assert_eq!(metadata.requesting_id, "\"\\\u{8}\u{c}\n\r\t\0");
    });
}

#[test]
fn half_a_surrogate_pair_is_refused() {
    for half in [r"\ud83d", r"\ude00", r"\ud83dx", r"\ud83d\u0041"] {
        let text = refused!(wrap, custom(&format!(r#"{{"x":"{half}"}}"#)));
        assert!(text.starts_with("not valid "), "{text}");
    }
}

// What is no JSON, or too much of it.

#[test]
fn what_is_not_json_is_refused() {
    for empty in ["", " ", "\r\n\t "] {
        assert_eq!(
            refused!(wrap, empty),
            "it is empty; a JSON object is expected"
        );
    }
    for scalar in ["null", "[]", "7", r#""text""#, "true"] {
        assert_eq!(refused!(wrap, scalar), "a JSON object is expected");
    }
    for bad in [
        "{",
        "}",
        "{]",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":NaN}"#,
        r#"{"a":Infinity}"#,
        r#"{"a":01}"#,
        r#"{"a":1.}"#,
        r#"{"a":+1}"#,
        r#"{"a":tru}"#,
        r#"{"a":truee}"#,
        r#"{'a':1}"#,
        r#"{"a":1,}"#,
        r#"{a:1}"#,
        r#"{"a":"x"#,
        r#"{"a":"\x"}"#,
        "{\"a\":\"\n\"}",
        "{}x",
        "{}{}",
        "{},",
        "{}\0",
        "\u{feff}{}",
        "// comment\n{}",
    ] {
        let text = refused!(wrap, bad);
        assert!(text.starts_with("not valid JSON"), "{bad:?}: {text}");
    }
    assert_eq!(refused!(wrap, r#"{"a":nope}"#), "not valid JSON at byte 5");
}

#[test]
fn bytes_that_are_not_utf8_are_refused() {
    for bad in [
        &b"{\"a\":\"\xff\"}"[..],
        b"{\"a\":\"\xc3\"}",
        b"{\"a\":\"\xed\xa0\x80\"}",
        b"\xff",
    ] {
        assert_eq!(refused!(wrap, bad), "not valid UTF-8, which JSON must be");
    }
}

#[test]
fn deep_nesting_is_refused_without_recursion() {
    for (open, close) in [("[", "]"), (r#"{"x":"#, "}")] {
        for depth in [NESTING_MAX, 10_000, 200_000] {
            let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            assert_eq!(
                refused!(wrap, wrap_with(&format!(r#","x":{deep}"#))),
                "more than 128 objects or arrays inside each other"
            );
        }
        let inside = NESTING_MAX - 1;
        let deep = format!("{}1{}", open.repeat(inside), close.repeat(inside));
        parse!(
            wrap,
            wrap_with(&format!(r#","x":{deep}"#)),
            |result| assert!(result.is_ok())
        );
    }
    // Never closed.
    assert!(refused!(wrap, "[".repeat(VALUES_MAX)).starts_with("more than 128"));
}

#[test]
fn a_body_of_nothing_but_values_is_refused_before_it_is_parsed() {
    let many = wrap_with(&format!(r#","x":[0{}]"#, ",0".repeat(VALUES_MAX)));
    assert_eq!(
        refused!(wrap, many),
        "more than 1048576 values; send several smaller requests"
    );
    let most = wrap_with(&format!(r#","x":[0{}]"#, ",0".repeat(VALUES_MAX / 2)));
    parse!(wrap, most, |result| assert!(result.is_ok()));
    assert_eq!(value_marks(&b",".repeat(1_000_003)), 1_000_003);
    assert_eq!(value_marks(br#"{"a":[1,2]}"#), 4);
}

#[test]
fn no_error_repeats_a_value_or_a_name_that_the_client_chose() {
    let canary = "cAnArY";
    for body in [
        canary.to_owned(),
        format!(r#"{{"tenantId":["{canary}"]}}"#),
        format!(r#"{{"tenantId":"{canary}\n","iclFields":{{"requestingId":""}}}}"#),
        custom(&format!(r#"{{"{canary}":["{canary}"]}}"#)),
        wrap_with(&format!(r#","edeks":{{"{canary}":[]}}"#)),
        wrap_with(&format!(r#","edeks":"{canary}""#)),
    ] {
        let text = refused!(batch_unwrap, body);
        assert!(!text.contains(canary), "{text}");
    }
}

#[test]
fn a_parser_can_be_used_again_after_good_bad_and_huge_bodies() {
    let mut parser = Parser::new();
    let huge = wrap_with(&format!(r#","x":"{}""#, "y".repeat(KEPT_BODY_BYTES_MAX)));
    for body in [
        wrap_with(""),
        "{".to_owned(),
        huge,
        String::new(),
        wrap_with(""),
    ] {
        let valid = body.len() > 1;
        let mut body = body.into_bytes();
        assert_eq!(parser.wrap(&mut body).is_ok(), valid);
    }
    assert_eq!(parser.tape.0.capacity(), {
        let mut fresh = Parser::new();
        fresh.wrap(&mut wrap_with("").into_bytes()).unwrap();
        fresh.tape.0.capacity()
    });
}

// The other operations.

#[test]
fn an_unwrap_takes_the_edek_as_it_is() {
    let go = format!(
        r#"{{"encryptedDocumentKey":"{EDEK}","tenantId":"acme","iclFields":{{"requestingId":"foo"}},"customFields":null}}"#
    );
    let alloy = format!(
        r#"{{"encryptedDocumentKey":"{EDEK}","tenantId":"acme","iclFields":{{"requestingId":"IronCore Labs Alloy SDK","dataLabel":null,"sourceIp":null,"objectId":null,"requestId":null}},"customFields":{{}}}}"#
    );
    let php = go.replace('/', r"\/");
    for body in [go, alloy, php] {
        parse!(unwrap, body, |result| assert_eq!(
            result.unwrap().encrypted_document_key,
            EDEK
        ));
    }
    let bad = wrap_with(r#","encryptedDocumentKey":7"#);
    assert_eq!(
        refused!(unwrap, bad),
        "field `encryptedDocumentKey` must be a string, not a number"
    );
}

#[test]
fn document_ids_keep_their_order_and_lose_duplicates() {
    let body = wrap_with(r#","documentIds":["b","a","b",""," ","é","1","a"]"#);
    parse!(batch_wrap, body, |result| assert_eq!(
        result.unwrap().document_ids,
        ["b", "a", "", " ", "é", "1"]
    ));
    parse!(
        batch_wrap,
        wrap_with(r#","documentIds":[]"#),
        |result| assert!(result.unwrap().document_ids.is_empty())
    );
    for (ids, text) in [
        (
            "null",
            "field `documentIds` must be an array of strings, not null",
        ),
        (
            "{}",
            "field `documentIds` must be an array of strings, not an object",
        ),
        (
            r#"["a",1]"#,
            "field `documentIds[*]` must be a string, not a number",
        ),
    ] {
        assert_eq!(
            refused!(batch_wrap, wrap_with(&format!(r#","documentIds":{ids}"#))),
            text
        );
    }
}

#[test]
fn edeks_come_as_an_object_or_as_an_array() {
    let owned = |edeks: &str| {
        let body = wrap_with(&format!(r#","edeks":{edeks}"#));
        parse!(batch_unwrap, body, |result| result
            .unwrap()
            .edeks
            .into_iter()
            .map(|(id, edek)| (id.into_owned(), edek.to_owned()))
            .collect::<Vec<_>>())
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(id, edek)| ((*id).to_owned(), (*edek).to_owned()))
            .collect()
    };
    assert_eq!(
        owned(r#"{"good":"x","":"y"}"#),
        pairs(&[("good", "x"), ("", "y")])
    );
    assert_eq!(owned(r#"["x","y"]"#), pairs(&[("0", "x"), ("1", "y")]));
    assert_eq!(owned("[]"), pairs(&[]));
    assert_eq!(owned("{}"), pairs(&[]));
    assert_eq!(
        owned(r#"{"a":1,"b":"2","a":"3","b":"4"}"#),
        pairs(&[("a", "3"), ("b", "4")]),
        "the last counts"
    );
    for (edeks, text) in [
        (
            r#"{"a":null}"#,
            "field `edeks.*` must be a string, not null",
        ),
        (
            r#"["a",{}]"#,
            "field `edeks[*]` must be a string, not an object",
        ),
        (
            r#""x""#,
            "field `edeks` must be an object from ids to EDEKs in base64, or an array of them, not a string",
        ),
    ] {
        assert_eq!(
            refused!(batch_unwrap, wrap_with(&format!(r#","edeks":{edeks}"#))),
            text
        );
    }
}

#[test]
fn a_batch_of_100_000_items_is_read() {
    let ids: Vec<String> = (0..100_000).map(|i| format!("document-{i}")).collect();
    let body = json!({"tenantId": "acme", "iclFields": {"requestingId": ""}, "documentIds": ids});
    parse!(batch_wrap, body.to_string(), |result| assert_eq!(
        result.unwrap().document_ids,
        ids
    ));
    let edeks: Map<String, Json> = ids
        .iter()
        .map(|id| (id.clone(), Json::from(EDEK)))
        .collect();
    let body = json!({"tenantId": "acme", "iclFields": {"requestingId": ""}, "edeks": edeks});
    parse!(batch_unwrap, body.to_string(), |result| assert_eq!(
        result.unwrap().edeks.len(),
        100_000
    ));
}

#[test]
fn a_rekey_names_both_tenants() {
    let body = wrap_with(&format!(
        r#","encryptedDocumentKey":"{EDEK}","newTenantId":"globex""#
    ));
    parse!(rekey, body, |result| {
        let request = result.unwrap();
        assert_eq!(request.metadata.tenant_id, "acme");
        assert_eq!(
            (request.encrypted_document_key, request.new_tenant_id),
            (EDEK, "globex")
        );
    });
    let body = wrap_with(r#","encryptedDocumentKey":"","newTenantId":"""#);
    assert_eq!(
        refused!(rekey, body),
        "field `newTenantId` must not be empty"
    );
}

#[test]
fn reported_operations_are_whole_numbers_from_0() {
    let body = wrap_with(
        r#","operations":{"one":{"wraps":3,"unwraps":0},"two":{"unwraps":7,"x":[]},"one":{"wraps":4,"unwraps":null}}"#,
    );
    parse!(report_operations, body, |result| assert_eq!(
        result.unwrap().operations,
        [
            (
                "two",
                OperationCounts {
                    wraps: 0,
                    unwraps: 7
                }
            ),
            (
                "one",
                OperationCounts {
                    wraps: 4,
                    unwraps: 0
                }
            ),
        ]
    ));
    for (operations, text) in [
        ("[]", "field `operations` must be an object, not an array"),
        (
            r#"{"e":3}"#,
            "field `operations.*` must be an object, not a number",
        ),
        (
            r#"{"e":{"wraps":-1}}"#,
            "field `operations.*.wraps` must be a whole number from 0",
        ),
        (
            r#"{"e":{"unwraps":1.5}}"#,
            "field `operations.*.unwraps` must be a whole number from 0",
        ),
        (
            r#"{"e":{"unwraps":"1"}}"#,
            "field `operations.*.unwraps` must be a number, not a string",
        ),
    ] {
        let body = wrap_with(&format!(r#","operations":{operations}"#));
        assert_eq!(refused!(report_operations, body), text);
    }
}

#[test]
fn paths_may_be_empty_and_stand_there_once() {
    let kinds = r#","derivationType":"sha512","secretType":"deterministic""#;
    let body = wrap_with(&format!(
        r#"{kinds},"paths":{{"b":["2"],"":["","x","","y","x"],"b":["1","1"],"none":[]}}"#
    ));
    parse!(derive, body, |result| {
        let request = result.unwrap();
        assert_eq!(
            request.paths,
            [("", vec!["", "x", "y"]), ("b", vec!["1"]), ("none", vec![])]
        );
        assert_eq!(request.derivation, DerivationType::Sha512);
        assert_eq!(request.secret_type, SecretType::Deterministic);
    });
    let body = wrap_with(r#","derivationType":"sha256","secretType":"vector","paths":{}"#);
    parse!(derive, body, |result| {
        let request = result.unwrap();
        assert!(request.paths.is_empty());
        assert_eq!(request.derivation, DerivationType::Sha256);
        assert_eq!(request.secret_type, SecretType::Vector);
    });
}

#[test]
fn a_derivation_says_what_it_wants() {
    let long = format!(r#"{{"{}":[]}}"#, "p".repeat(SECRET_PATH_BYTES_MAX + 1));
    let longest = format!(r#"{{"{}":[]}}"#, "p".repeat(SECRET_PATH_BYTES_MAX));
    for (paths, derivation, secret_type, text) in [
        (
            "[]",
            "sha512",
            "search",
            "field `paths` must be an object, not an array",
        ),
        (
            r#"{"a":"b"}"#,
            "sha512",
            "search",
            "field `paths.*` must be an array of strings, not a string",
        ),
        (
            r#"{"a":["b",null]}"#,
            "sha512",
            "search",
            "field `paths.*[*]` must be a string, not null",
        ),
        (
            &long,
            "sha512",
            "search",
            "field `paths` must have no member whose name is longer than 1024 bytes",
        ),
        (
            "{}",
            "argon2",
            "search",
            "field `derivationType` must be `sha512` or `sha256`; this proxy has no `argon2`",
        ),
        (
            &longest,
            "sha512",
            "Deterministic",
            "field `secretType` must be `search`, `deterministic` or `vector`",
        ),
    ] {
        let body = wrap_with(&format!(
            r#","paths":{paths},"derivationType":"{derivation}","secretType":"{secret_type}""#
        ));
        assert_eq!(refused!(derive, body), text);
    }
    for missing in ["paths", "derivationType", "secretType"] {
        let members = [
            ("paths", r#""paths":{}"#),
            ("derivationType", r#""derivationType":"sha512""#),
            ("secretType", r#""secretType":"search""#),
        ];
        let members: Vec<_> = members
            .iter()
            .filter(|(name, _)| *name != missing)
            .map(|(_, text)| format!(",{text}"))
            .collect();
        assert_eq!(
            refused!(derive, wrap_with(&members.concat())),
            format!("missing field `{missing}`")
        );
    }
}

#[test]
fn an_event_is_named_in_icl_fields_or_at_top_level() {
    for (top, icl, event) in [
        ("", r#","event":"USER_LOGIN""#, "USER_LOGIN"),
        (r#","event":"DATA_EXPORT""#, "", "DATA_EXPORT"),
        (
            r#","event":"DATA_EXPORT""#,
            r#","event":null"#,
            "DATA_EXPORT",
        ),
        (
            r#","event":"DATA_EXPORT""#,
            r#","event":"USER_LOGIN""#,
            "USER_LOGIN",
        ),
        ("", r#","event":"CUSTOM_ anything é""#, "CUSTOM_ anything é"),
        ("", r#","event":"CREATE_BACKUP""#, "PERIODIC_CREATE_BACKUP"),
        (
            "",
            r#","event":"ENFORCE_RETENTION_POLICY""#,
            "PERIODIC_ENFORCE_RETENTION_POLICY",
        ),
        (
            r#","event":"PERIODIC_CREATE_BACKUP""#,
            "",
            "PERIODIC_CREATE_BACKUP",
        ),
    ] {
        parse!(security_event, event_with(top, icl), |result| assert_eq!(
            result.unwrap().event,
            event
        ));
    }
    let long = "E".repeat(EVENT_BYTES_MAX + 1);
    for (top, icl, text) in [
        (
            String::new(),
            r#","event":"""#.to_owned(),
            "field `iclFields.event` must not be empty",
        ),
        (
            r#","event":"""#.to_owned(),
            String::new(),
            "field `event` must not be empty",
        ),
        (
            r#","event":"E""#.to_owned(),
            r#","event":5"#.to_owned(),
            "field `iclFields.event` must be a string, not a number",
        ),
        (
            format!(r#","event":"{long}""#),
            String::new(),
            "field `event` must have at most 256 bytes",
        ),
    ] {
        assert_eq!(refused!(security_event, event_with(&top, &icl)), text);
    }
}

#[test]
fn any_number_is_a_timestamp() {
    assert_eq!(at("1700000000000"), Ok(Some(1_700_000_000_000)));
    assert_eq!(at("-62135596800000"), Ok(Some(-62_135_596_800_000)));
    assert_eq!(at("0"), Ok(Some(0)));
    assert_eq!(at("null"), Ok(None));
    // Fractions are cut towards zero.
    assert_eq!(at("1700000000000.9"), Ok(Some(1_700_000_000_000)));
    assert_eq!(at("-1.9"), Ok(Some(-1)));
    assert_eq!(at("1.7e12"), Ok(Some(1_700_000_000_000)));
    // What does not fit becomes the nearest that does.
    assert_eq!(at("9223372036854775807"), Ok(Some(i64::MAX)));
    assert_eq!(at("9223372036854775808"), Ok(Some(i64::MAX)));
    assert_eq!(at("-9223372036854775808"), Ok(Some(i64::MIN)));
    assert_eq!(at("-9223372036854775809"), Ok(Some(i64::MIN)));
    assert_eq!(at("1e300"), Ok(Some(i64::MAX)));
    assert_eq!(at("-123456789012345678901234567890"), Ok(Some(i64::MIN)));
    let text = "field `timestampMillis` must be a number of milliseconds since 1970, or null, not a string";
    assert_eq!(at(r#""1700000000000""#), Err(text.to_owned()));
    parse!(
        security_event,
        event_with(r#","event":"E""#, ""),
        |result| assert_eq!(result.unwrap().timestamp_ms, None)
    );
}

// Whatever comes.

/// Values that matter to the rules, and some that do not.
fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        ".{0,12}".prop_map(Json::from),
        Just(Json::from(EDEK)),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
            prop::collection::hash_map(".{0,6}", inner, 0..6)
                .prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    })
}

/// A body whose members have the right names and any values.
fn any_body() -> impl Strategy<Value = Json> {
    let icl_names = prop::sample::select(vec![
        "requestingId",
        "dataLabel",
        "sourceIp",
        "objectId",
        "requestId",
        "event",
        "other",
    ]);
    let text = prop_oneof![".{0,12}".prop_map(Json::from), any_json()];
    let icl = prop::collection::hash_map(icl_names, text.clone(), 0..7).prop_map(|members| {
        Json::Object(
            members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    });
    let customs = prop::collection::hash_map(".{0,6}", text.clone(), 0..12)
        .prop_map(|members| Json::Object(members.into_iter().collect()));
    (
        text.clone(),
        prop_oneof![4 => icl, 1 => any_json()],
        customs,
        any_json(),
        any_json(),
        text,
    )
        .prop_map(|(tenant, icl, customs, edeks, timestamp, key)| {
            json!({
                "tenantId": tenant, "iclFields": icl, "customFields": customs, "edeks": edeks,
                "documentIds": edeks, "operations": edeks, "timestampMillis": timestamp,
                "encryptedDocumentKey": key, "newTenantId": key, "event": key, "paths": edeks,
                "derivationType": "sha512", "secretType": "vector",
            })
        })
}

/// Gives `body` to every operation; none may panic. Parsing in place changes the body, hence the copies.
fn try_all(body: &[u8]) -> [bool; 8] {
    let mut parser = Parser::new();
    [
        parser.wrap(&mut body.to_vec()).is_ok(),
        parser.unwrap(&mut body.to_vec()).is_ok(),
        parser.batch_wrap(&mut body.to_vec()).is_ok(),
        parser.batch_unwrap(&mut body.to_vec()).is_ok(),
        parser.rekey(&mut body.to_vec()).is_ok(),
        parser.derive(&mut body.to_vec()).is_ok(),
        parser.report_operations(&mut body.to_vec()).is_ok(),
        parser.security_event(&mut body.to_vec()).is_ok(),
    ]
}

/// The rules once more, over another parser's tree: the metadata that `body` has, if it has any.
fn expected_metadata(body: &Json) -> Option<Json> {
    let tenant = body
        .get("tenantId")?
        .as_str()
        .filter(|id| TenantId::is_valid(id))?;
    let icl = body.get("iclFields")?.as_object()?;
    let optional = |name: &str| match icl.get(name) {
        None | Some(Json::Null) => Some(Json::Null),
        Some(Json::String(text)) => Some(Json::from(text.clone())),
        Some(_) => None,
    };
    let mut customs = Map::new();
    match body.get("customFields") {
        None | Some(Json::Null) => {}
        Some(Json::Object(members)) => {
            for (name, value) in members {
                match value {
                    Json::Null => {}
                    Json::String(text) => {
                        customs.insert(name.clone(), Json::from(text.clone()));
                    }
                    Json::Bool(_) | Json::Number(_) => {
                        customs.insert(name.clone(), Json::from(value.to_string()));
                    }
                    Json::Array(_) | Json::Object(_) => return None,
                }
            }
        }
        Some(_) => return None,
    }
    Some(json!([
        tenant,
        icl.get("requestingId")?.as_str()?,
        optional("dataLabel")?,
        optional("sourceIp")?,
        optional("objectId")?,
        optional("requestId")?,
        customs
    ]))
}

fn as_json(metadata: &Metadata<'_>) -> Json {
    let customs: Map<String, Json> = metadata
        .custom_fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Json::from(value.as_ref())))
        .collect();
    json!([
        metadata.tenant_id,
        metadata.requesting_id,
        metadata.data_label,
        metadata.source_ip,
        metadata.object_id,
        metadata.request_id,
        customs
    ])
}

proptest! {
    #[test]
    fn random_bytes_never_panic(body: Vec<u8>) {
        try_all(&body);
    }

    #[test]
    fn valid_bodies_with_a_few_bytes_changed_never_panic(
        body in any_body(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut body = body.to_string().into_bytes();
        try_all(&body[..cut.index(body.len())]);
        for (index, byte) in changes {
            let index = index.index(body.len());
            body[index] = byte;
        }
        try_all(&body);
    }

    #[test]
    fn bodies_of_nothing_but_syntax_never_panic(body in r#"[\[\]{},:"\\ 0e.\-ntu]{0,60}"#) {
        try_all(body.as_bytes());
    }

    #[test]
    fn every_body_means_what_another_parser_says(body in any_body()) {
        let text = body.to_string();
        // Through text, because numbers may change a little on the way.
        let body: Json = serde_json::from_str(&text).unwrap();
        let found = parse!(wrap, text, |result| result.ok().map(|request| as_json(&request.metadata)));
        prop_assert_eq!(found, expected_metadata(&body));
    }

    #[test]
    fn what_is_accepted_is_json_to_another_parser_too(body in r#"\{("[ab\\u0-9]{0,7}"|[\[\]{},: 0-9eE.\-]|true|null){0,20}\}"#) {
        let ours = {
            let mut bytes = body.clone().into_bytes();
            let mut parser = Parser::new();
            // Any complaint about members means that the JSON as such was fine.
            !matches!(
                parser.wrap(&mut bytes),
                Err(DecodeError::NotJson { .. } | DecodeError::NotUtf8 | DecodeError::Empty)
            )
        };
        let theirs = serde_json::from_str::<Json>(&body).is_ok();
        prop_assert_eq!(ours, theirs, "{}", body);
    }
}
