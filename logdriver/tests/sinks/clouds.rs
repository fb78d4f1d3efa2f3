//! Google Cloud Logging and Azure Monitor: simulators of the API and of who gives the tokens.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};
use tsp_logdriver::sink::Failure;

use crate::{
    events, json_of,
    sim::{Reply, Seen, Sim},
    sink, word,
};

const KEY: &str = include_str!("../../../kms/tests/data/azure-TEST-ONLY-client-key.pem");

/// One field of a form, with what needs no escaping.
fn field<'a>(form: &'a str, name: &str) -> &'a str {
    let mut fields = form.split('&').filter_map(|field| field.split_once('='));
    fields
        .find_map(|(own, value)| (own == name).then_some(value))
        .unwrap_or_default()
}

pub(crate) fn gcp(url: &str) -> Value {
    json!({"type": "GCP", "projectId": "acme-1", "logId": "tsp/events", "client_email": "w@acme-1.iam.gserviceaccount.com",
        "private_key": KEY, "endpoint": url, "tokenEndpoint": format!("{url}/token")})
}

/// Google, where tokens are `t-0`, `t-1`, …, and `write` answers calls with one.
pub(crate) async fn google(write: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Sim {
    Sim::start(move |seen, before| {
        if seen.path != "/token" {
            return write(seen, before);
        }
        let form = seen.text();
        let jwt: Vec<&str> = field(&form, "assertion").split('.').collect();
        let claims: Value = serde_json::from_slice(&BASE64URL.decode(jwt[1]).unwrap()).unwrap();
        assert_eq!(claims["scope"], "https://www.googleapis.com/auth/logging.write");
        assert_eq!(claims["iss"], "w@acme-1.iam.gserviceaccount.com");
        assert_eq!(claims["aud"], "https://oauth2.googleapis.com/token");
        Reply::json(200, &json!({"access_token": format!("t-{before}"), "token_type": "Bearer", "expires_in": 3599}))
    })
    .await
}

#[tokio::test]
async fn google_gets_entries_that_it_can_tell_apart() {
    let sim = google(|_, _| Reply::json(200, &json!({}))).await;
    let (events, sink) = (events(2), sink(&gcp(&sim.url)));
    sink.deliver(&events).await.unwrap();
    sink.deliver(&events).await.unwrap();
    let seen = sim.seen();
    let paths: Vec<_> = seen.iter().map(|seen| seen.path.as_str()).collect();
    assert_eq!(paths, ["/token", "/v2/entries:write", "/v2/entries:write"]);
    assert_eq!(
        (seen[1].header("authorization"), seen[1].gzip),
        ("Bearer t-0", true)
    );
    let entry = |n: usize, time: &str| json!({"insertId": events[n].id, "timestamp": time, "severity": "NOTICE", "jsonPayload": json_of(&events[n])});
    assert_eq!(
        seen[1].json(),
        json!({
            "logName": "projects/acme-1/logs/tsp%2Fevents",
            "resource": {"type": "global"},
            "partialSuccess": true,
            "entries": [entry(0, "2023-11-14T22:13:20.123Z"), entry(1, "2023-11-14T22:13:21.123Z")],
        })
    );
}

#[tokio::test]
async fn google_writes_what_it_can_and_names_the_rest() {
    let with = |errors: Value| {
        json!({"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "some",
            "details": [{"@type": "type.googleapis.com/google.logging.v2.WriteLogEntriesPartialErrors", "logEntryErrors": errors}]}})
    };
    let bad = with(json!({"1": {"code": 3, "message": "timestamp is out of range"}}));
    let sim = google(move |_, _| Reply::json(400, &bad)).await;
    let outcome = sink(&gcp(&sim.url)).deliver(&events(3)).await;
    let refused = vec![(1, "timestamp is out of range".to_owned())];
    assert_eq!(outcome, Err(Failure::Some { refused }));
    for (code, expected) in [(7, "credentials"), (14, "later"), (8, "later")] {
        let mixed =
            with(json!({"0": {"code": 3, "message": "m"}, "1": {"code": code, "message": "m"}}));
        let sim = google(move |_, _| Reply::json(500, &mixed)).await;
        assert_eq!(
            word(&sink(&gcp(&sim.url)).deliver(&events(3)).await),
            expected,
            "{code}"
        );
    }
}

#[tokio::test]
async fn a_refused_token_is_fetched_anew_and_a_credential_that_was_mended_works() {
    // The first token is refused, and the second until it is the fifth call.
    let sim = google(|seen, before| {
        let good = seen.header("authorization") != "Bearer t-0" && before > 4;
        Reply::json(if good { 200 } else { 401 }, &json!({}))
    })
    .await;
    let sink = sink(&gcp(&sim.url));
    let outcome = sink.deliver(&events(1)).await;
    assert_eq!(word(&outcome), "credentials", "{outcome:?}");
    sink.deliver(&events(1)).await.unwrap();
    let paths: Vec<_> = sim.seen().into_iter().map(|seen| seen.path).collect();
    let (token, write) = ("/token", "/v2/entries:write");
    assert_eq!(paths, [token, write, token, write, token, write]);
}

#[tokio::test]
async fn a_service_account_that_is_gone_is_the_tenants_to_mend() {
    let sim = Sim::start(|_, _| {
        Reply::json(
            400,
            &json!({"error": "invalid_grant", "error_description": "no such account"}),
        )
    })
    .await;
    let outcome = sink(&gcp(&sim.url)).deliver(&events(1)).await;
    let Err(Failure::Credentials { why }) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(why, "invalid_grant: no such account");
}

const TENANT: &str = "11111111-2222-3333-4444-555555555555";
const CLIENT: &str = "66666666-7777-8888-9999-000000000000";

pub(crate) fn azure(url: &str, secret: &str) -> Value {
    json!({"type": "AZURE", "tenantGuid": TENANT, "clientId": CLIENT, "clientSecret": secret, "dceUrl": url,
        "dcrImmutableId": "dcr-0123", "streamName": "Custom-TspEvents_CL", "authority": url})
}

/// Entra and Azure Monitor.
pub(crate) async fn microsoft() -> Sim {
    Sim::start(|seen, _| {
        if seen.path == format!("/{TENANT}/oauth2/v2.0/token") {
            let form = seen.text();
            assert_eq!(field(&form, "grant_type"), "client_credentials");
            assert_eq!(field(&form, "client_id"), CLIENT);
            assert_eq!(field(&form, "scope"), "https%3A%2F%2Fmonitor.azure.com%2F.default");
            return if field(&form, "client_secret") == "right" {
                Reply::json(200, &json!({"access_token": "t", "token_type": "Bearer", "expires_in": 3599}))
            } else {
                Reply::json(401, &json!({"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret.", "error_codes": [7_000_215]}))
            };
        }
        if seen.header("authorization") != "Bearer t" {
            return Reply::new(401, "");
        }
        // One call has at most 1 MB.
        match seen.body.len() {
            0..=1_048_576 => Reply::new(204, ""),
            _ => Reply::json(413, &json!({"error": {"code": "ContentLengthLimitExceeded"}})),
        }
    })
    .await
}

#[tokio::test]
async fn azure_gets_records_of_four_columns() {
    let sim = microsoft().await;
    let events = events(2);
    sink(&azure(&sim.url, "right"))
        .deliver(&events)
        .await
        .unwrap();
    let seen = sim.seen();
    assert_eq!(
        seen[1].path,
        "/dataCollectionRules/dcr-0123/streams/Custom-TspEvents_CL?api-version=2023-01-01"
    );
    assert!(seen[1].gzip && seen[1].header("content-type") == "application/json");
    let record = |n: usize, time: &str| json!({"TimeGenerated": time, "Id": events[n].id, "Sequence": n + 1, "Event": json_of(&events[n])});
    assert_eq!(
        seen[1].json(),
        json!([
            record(0, "2023-11-14T22:13:20.123Z"),
            record(1, "2023-11-14T22:13:21.123Z")
        ])
    );
}

#[tokio::test]
async fn azure_says_no_to_a_wrong_secret_and_to_what_is_too_large() {
    let sim = microsoft().await;
    let outcome = sink(&azure(&sim.url, "wrong")).deliver(&events(1)).await;
    let Err(Failure::Credentials { why }) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(why.starts_with("AADSTS7000215"), "{why}");
    let outcome = sink(&azure(&sim.url, "right"))
        .deliver(&events(5_000))
        .await;
    assert_eq!(word(&outcome), "refused", "{outcome:?}");
}

#[tokio::test]
async fn a_throttled_token_endpoint_is_asked_later() {
    let sim = Sim::start(|_, _| {
        Reply::json(429, &json!({"error": "temporarily_unavailable"})).header("retry-after", "30")
    })
    .await;
    let outcome = sink(&azure(&sim.url, "right")).deliver(&events(1)).await;
    let Err(Failure::Later { after, .. }) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(after, Some(Duration::from_secs(30)));
}
