//! Whatever comes, there is an answer; and what rules do to answers, without a socket.

use bytes::Bytes;
use http::{HeaderValue, Method};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kmssim::{
    exchange::Failure,
    testing::{Trial, post_form},
    world::SampleShape,
};

/// Pieces of which requests are made that come far.
const PIECES: [&str; 44] = [
    "/",
    "//",
    "/v1/",
    "/api/v1/",
    "/keys/",
    "/token",
    "projects/tsp-tenant-2/locations/europe-west1/keyRings/tsp/cryptoKeys/",
    "tenant-1",
    "tenant-2",
    "tenant-3",
    "kek-tenant-4",
    ":encrypt",
    ":decrypt",
    "/wrapkey",
    "/unwrapkey",
    "auth/tokens",
    "crypto/encrypt",
    "crypto/decrypt",
    "vault/keys2/",
    "vault/random",
    "/oauth2/v2.0/token",
    "?api-version=7.4",
    "%ff",
    "%2f",
    "Bearer ",
    "ya29.",
    "a.b.c",
    "AWS4-HMAC-SHA256 Credential=",
    "AKIA/20260115/us-east-1/kms/aws4_request",
    ", SignedHeaders=host;x-amz-date, Signature=0",
    "{",
    "}",
    "\"id\":\"kek-tenant-4\",",
    "\"plaintext\":\"AAEC\"",
    "\"KeyId\":7",
    "[",
    "]",
    "null",
    "grant_type=client_credentials&",
    "assertion=eyJhbGciOiJSUzI1NiJ9.e30.AA&",
    "client_secret=%zz&",
    "application/json",
    "20260115T101530Z",
    "\u{0}",
];

/// Headers that somebody reads, and one that nobody does.
const HEADERS: [&str; 8] = [
    "authorization",
    "content-type",
    "accept",
    "host",
    "x-amz-target",
    "x-amz-date",
    "x-amz-security-token",
    "x-amz-garbage",
];

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(&PIECES[..]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_request_is_without_an_answer(
        path in text(),
        headers in prop::collection::vec((prop::sample::select(&HEADERS[..]), text()), 0..6),
        body in prop_oneof![text().prop_map(String::into_bytes), any::<Vec<u8>>()],
        get in any::<bool>(),
    ) {
        let method = if get { Method::GET } else { Method::POST };
        let mut request = Request::made(method, "https://localhost/", &[], Bytes::from(body));
        if let Ok(uri) = format!("/{}", path.trim_start_matches('/')).parse() {
            request.parts.uri = uri;
        }
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                request.parts.headers.append(name, value);
            }
        }
        let reply = Trial::of_sample(&SampleShape::default()).send(&request);
        prop_assert!((200..600).contains(&reply.status));
        prop_assert!(reply.headers.contains_key("date"));
        prop_assert_eq!(reply.code.is_empty(), reply.verdict == Verdict::Answered);
    }
}

fn rule(json: Value) -> FaultRule {
    serde_json::from_value(json).unwrap()
}

#[test]
fn each_provider_throttles_in_its_own_words() {
    let gcp_key = "https://localhost/v1/projects/p/locations/l/keyRings/r/cryptoKeys/k:encrypt";
    for (url, status, code, header) in [
        (
            "https://localhost/",
            400,
            "Throttling",
            Some(("x-amz-retry-after", "1500")),
        ),
        (
            "https://localhost/token",
            429,
            "rate_limit_exceeded",
            Some(("retry-after", "2")),
        ),
        (
            "https://localhost/t/oauth2/v2.0/token",
            429,
            "AADSTS90055",
            Some(("retry-after", "2")),
        ),
        (gcp_key, 429, "RESOURCE_EXHAUSTED RATE_LIMIT_EXCEEDED", None),
        (
            "https://localhost/keys/tenant-3//wrapkey",
            429,
            "Throttled",
            Some(("retry-after", "2")),
        ),
        (
            "https://localhost/api/v1/crypto/encrypt",
            429,
            "NCERRTooManyRequests",
            Some(("retry-after", "2")),
        ),
    ] {
        let mut trial = Trial::of_sample(&SampleShape::default());
        let fault = rule(json!({ "kind": "throttle", "retry_after_s": 1.5 }));
        trial.sim.knobs.add_fault(fault).unwrap();
        let reply = trial.send(&post_form(url, &[("a", "b")]));
        assert_eq!((reply.status, reply.code.as_str()), (status, code), "{url}");
        assert_eq!(reply.verdict, Verdict::Failed(Failure::Throttled));
        if let Some((name, value)) = header {
            assert_eq!(reply.headers[name], value, "{url}");
        } else {
            let body = String::from_utf8_lossy(&reply.body).into_owned();
            assert!(body.contains("\"retryDelay\":\"1.5s\""), "{body}");
        }
    }
}

#[test]
fn a_quota_refuses_only_what_would_have_been_answered() {
    let mut trial = Trial::of_sample(&SampleShape::default());
    let quota = serde_json::from_value(json!({ "per_second": 0 })).unwrap();
    trial.sim.knobs.add_quota(quota).unwrap();
    let get = |path: &str| Request::made(Method::GET, &format!("https://localhost{path}"), &[], "");
    let discovery = trial.send(&get("/common/discovery/instance"));
    assert_eq!(discovery.verdict, Verdict::Failed(Failure::Throttled));
    let stray = trial.send(&get("/stray"));
    assert_eq!(stray.verdict, Verdict::Refused(Refusal::Protocol));
}

#[test]
fn a_skewed_clock_reads_later_or_earlier() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_768_472_130);
    assert_eq!(
        Clock::Skewed(-360).read(now),
        now - Duration::from_secs(360)
    );
    assert_eq!(Clock::Skewed(7).read(now), now + Duration::from_secs(7));
    assert_eq!(
        Clock::Skewed(i64::MIN).read(now),
        now,
        "there is no such time"
    );
    for unix_s in [UNIX_S_END, u64::from(u32::MAX) << 16] {
        let frozen = Clock::Frozen(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s));
        assert_eq!(frozen.read(now), now);
    }
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(UNIX_S_END - 1);
    assert_eq!(
        httpdate::fmt_http_date(Clock::Frozen(last).read(now)),
        "Fri, 31 Dec 9999 23:59:59 GMT"
    );
}
