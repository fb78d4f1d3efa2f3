//! What a request may look like: every form that published SDKs send, and the refusal of all others.

use serde_json::{Value, json};

use crate::support::{
    config::two_local_tenants,
    http::Request,
    metadata, on_both,
    proxy::{API_KEY, Io, Proxy, Setup},
    request, text,
};

fn start(io: Io) -> Proxy {
    Setup::serve(io, &two_local_tenants()).start()
}

#[track_caller]
fn raw(proxy: &Proxy, endpoint: &str, body: &str) -> crate::support::http::Answer {
    proxy.send(&Request::api(endpoint, API_KEY, &Value::Null).body(body))
}

on_both! {
    fn metadata_of_every_sdk_is_accepted(io) {
        let proxy = start(io);
        for body in [
            // Java and Node.js leave out what is not set.
            r#"{"tenantId":"acme","iclFields":{"requestingId":"u","dataLabel":"PII","requestId":"r"},"customFields":{"a":"b"}}"#,
            // Go: null custom fields, an empty requesting id.
            r#"{"tenantId":"acme","iclFields":{"requestingId":""},"customFields":null}"#,
            // PHP and alloy: explicit nulls; an address that is none.
            r#"{"tenantId":"acme","iclFields":{"requestingId":"u","dataLabel":null,"sourceIp":"f","objectId":null,"requestId":null},"customFields":{}}"#,
            // Custom fields absent; not strings; members that nobody knows, in any order and of any shape.
            r#"{"iclFields":{"requestingId":"u"},"tenantId":"acme"}"#,
            r#"{"customFields":{"n":1.5,"b":true,"z":null},"iclFields":{"requestingId":"u"},"tenantId":"acme"}"#,
            r#"{"future":[{"deep":[[[1]]]}],"tenantId":"acme","iclFields":{"new":{},"requestingId":"u"},"customFields":{}}"#,
            // White space and escapes.
            "\n\t {\"tenantId\" : \"\\u0061cme\",\"iclFields\":{\"requestingId\":\"\\ud83d\\ude00\"}}\r\n",
        ] {
            raw(&proxy, "document/wrap", body).ok();
        }
    }

    fn an_escaped_slash_in_base64_is_a_slash(io) {
        let proxy = start(io);
        // Wrap until the EDEK has a slash, which about every second one has.
        let edek = (0..100).find_map(|_| {
            let answer = proxy.call("document/wrap", &metadata("acme")).ok();
            let edek = text(&answer, "edek").to_owned();
            edek.contains('/').then_some(edek)
        });
        let body = request("acme", json!({ "encryptedDocumentKey": edek.expect("one of a hundred has it") }));
        raw(&proxy, "document/unwrap", &body.to_string().replace('/', "\\/")).ok();
    }

    fn what_cannot_be_understood_is_102(io) {
        let proxy = start(io);
        let edek = r#""encryptedDocumentKey":"AA==""#;
        let who = r#""tenantId":"acme","iclFields":{"requestingId":"u"}"#;
        for (endpoint, body) in [
            ("document/wrap", String::new()),
            ("document/wrap", "{".into()),
            ("document/wrap", "null".into()),
            ("document/wrap", "[]".into()),
            ("document/wrap", "{}".into()),
            ("document/wrap", format!("{{{who}}} x")),
            ("document/wrap", r#"{"tenantId":"","iclFields":{"requestingId":"u"}}"#.into()),
            ("document/wrap", r#"{"tenantId":7,"iclFields":{"requestingId":"u"}}"#.into()),
            ("document/wrap", r#"{"tenantId":"acme"}"#.into()),
            ("document/wrap", r#"{"tenantId":"acme","iclFields":{}}"#.into()),
            ("document/wrap", r#"{"tenantId":"acme","iclFields":{"requestingId":null}}"#.into()),
            ("document/wrap", r#"{"tenantId":"acme","iclFields":{"requestingId":"u","dataLabel":1}}"#.into()),
            ("document/wrap", format!(r#"{{{who},"customFields":{{"a":{{}}}}}}"#)),
            ("document/wrap", format!(r#"{{{who},"customFields":[]}}"#)),
            ("document/wrap", "{\"tenantId\":\"a\u{1}\",\"iclFields\":{\"requestingId\":\"u\"}}".into()),
            // The flat metadata of the first generation of SDKs.
            ("document/wrap", r#"{"tenantID":"acme","requestingID":"u","dataLabel":"l"}"#.into()),
            ("document/unwrap", format!("{{{who}}}")),
            ("document/unwrap", format!(r#"{{{who},"encryptedDocumentKey":null}}"#)),
            ("document/batch-wrap", format!("{{{who}}}")),
            ("document/batch-wrap", format!(r#"{{{who},"documentIds":{{}}}}"#)),
            ("document/batch-wrap", format!(r#"{{{who},"documentIds":[1]}}"#)),
            ("document/batch-unwrap", format!(r#"{{{who},"edeks":"x"}}"#)),
            ("document/batch-unwrap", format!(r#"{{{who},"edeks":{{"a":1}}}}"#)),
            ("document/rekey", format!("{{{who},{edek}}}")),
            ("document/rekey", format!(r#"{{{who},{edek},"newTenantId":""}}"#)),
            ("event/security-event", format!("{{{who}}}")),
            ("event/security-event", format!(r#"{{{who},"event":""}}"#)),
            ("document/report-operations", format!("{{{who}}}")),
        ] {
            let message = raw(&proxy, endpoint, &body).refused(400, 102);
            assert!(!message.contains("acme"), "a message repeats nothing of the request: {message}");
        }
    }

    fn bytes_that_are_not_utf_8_are_102(io) {
        let proxy = start(io);
        let mut body = br#"{"tenantId":"acme","iclFields":{"requestingId":"?"}}"#.to_vec();
        let at = body.iter().position(|byte| *byte == b'?').expect("it is there");
        body[at] = 0xff;
        proxy.send(&Request::api("document/wrap", API_KEY, &Value::Null).body(body)).refused(400, 102);
    }

    fn the_answer_to_an_event_is_four_bytes(io) {
        let proxy = start(io);
        let node = r#"{"tenantId":"acme","timestampMillis":1700000000000,"iclFields":{"requestingId":"u","event":"USER_LOGIN"},"customFields":{}}"#;
        let alloy = r#"{"event":"DATA_EXPORT","tenantId":"acme","iclFields":{"requestingId":"u","dataLabel":null,"sourceIp":null,"objectId":null,"requestId":null},"customFields":{},"timestampMillis":1700000000000}"#;
        let go = r#"{"timestampMillis":-62135596800000,"tenantId":"nobody","iclFields":{"event":"CREATE_BACKUP","requestingId":""},"customFields":null}"#;
        let fraction = r#"{"timestampMillis":1700000000000.75,"tenantId":"acme","iclFields":{"event":"CUSTOM_x y","requestingId":"u"}}"#;
        let bare = r#"{"tenantId":"acme","iclFields":{"event":"ADMIN_ADD","requestingId":"u"}}"#;
        for body in [node, alloy, go, fraction, bare] {
            let answer = raw(&proxy, "event/security-event", body);
            assert_eq!((answer.status, answer.body.as_slice()), (200, b"null".as_slice()), "{body}");
            assert_eq!(answer.header("content-length"), Some("4"));
            assert_eq!(answer.header("content-type"), Some("application/json"));
        }
    }

    fn a_report_is_taken_whatever_it_is_about(io) {
        let proxy = start(io);
        let edek = text(&proxy.call("document/wrap", &metadata("acme")).ok(), "edek").to_owned();
        for (tenant, key) in [("acme", edek.as_str()), ("acme", "no EDEK"), ("nobody", &edek)] {
            let operations = json!({ key: { "wraps": 3, "unwraps": 0 } });
            let answer = proxy.call("document/report-operations", &request(tenant, json!({ "operations": operations })));
            assert_eq!((answer.status, answer.body.as_slice()), (200, b"null".as_slice()));
        }
    }

    fn java_gets_nothing_to_leave_unread(io) {
        let proxy = start(io);
        let event = request("acme", json!({ "event": "USER_LOGIN" }));
        let report = request("acme", json!({ "operations": { "x": { "wraps": 1, "unwraps": 1 } } }));
        for (name, value) in [("x-icl-tsc-language", "java"), ("User-Agent", "Google-HTTP-Java-Client/1.42.3 (gzip)")] {
            for (endpoint, body) in [("event/security-event", &event), ("document/report-operations", &report)] {
                let answer = proxy.send(&Request::api(endpoint, API_KEY, body).header(name, value));
                assert_eq!((answer.status, answer.body.len(), answer.header("content-length")), (204, 0, None), "{name} {endpoint}");
            }
            let refused = proxy.send(&Request::api("document/wrap", "wrong", &metadata("acme")).header(name, value));
            assert_eq!((refused.status, refused.header("content-length")), (401, Some("0")));
            proxy.send(&Request::api("document/wrap", API_KEY, &metadata("acme")).header(name, value)).ok();
            proxy.send(&Request::api("document/wrap", API_KEY, &metadata("nobody")).header(name, value)).refused(422, 201);
        }
        let node = Request::api("event/security-event", API_KEY, &event).header("x-icl-tsc-language", "node");
        assert_eq!(proxy.send(&node).body, b"null");
    }

    fn both_api_keys_open_and_nothing_else(io) {
        let proxy = Setup::serve(io, &two_local_tenants()).env("API_KEY_2", "c2Vjb25kLWtleS0y").start();
        let body = metadata("acme");
        proxy.send(&Request::api("document/wrap", API_KEY, &body)).ok();
        proxy.send(&Request::api("document/wrap", "c2Vjb25kLWtleS0y", &body)).ok();
        let call = Request::api("document/wrap", API_KEY, &body).without("Authorization");
        for authorization in [
            None,
            Some(String::new()),
            Some("cmk ".into()),
            Some("cmk wrong".into()),
            Some(format!("cmk {API_KEY}x")),
            Some(format!("cmk {}", &API_KEY[1..])),
            Some(format!("Bearer {API_KEY}")),
            Some(API_KEY.into()),
        ] {
            let call = match &authorization {
                Some(value) => call.clone().header("Authorization", value),
                None => call.clone(),
            };
            proxy.send(&call).refused(401, 101);
        }
        // The key comes before the route and before the body.
        proxy.send(&call.clone().path("/nowhere")).refused(401, 101);
        proxy.send(&call.body("{")).refused(401, 101);
    }
}
