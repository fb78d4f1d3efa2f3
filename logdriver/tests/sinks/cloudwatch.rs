//! AWS CloudWatch Logs: moto, which checks every signature and policy, and a simulator for what moto does not answer.

use serde_json::{Value, json};
use tsp_logdriver::sink::Failure;

use crate::{
    TIME_MS, event_at, events, events_at, peers,
    peers::Moto,
    sim::{Reply, Sim},
    sink, text_of, word,
};

/// A configuration for `user`, who is in `facts`.
pub(crate) fn config(moto: &Moto, user: &str, stream: &str) -> Value {
    let (facts, user) = (&moto.facts, &moto.facts[user]);
    json!({"type": "CLOUDWATCH", "region": facts["region"], "logGroup": facts["logs"]["group"], "logStream": stream,
        "accessKeyId": user["access_key_id"], "secretAccessKey": user["secret_access_key"], "endpoint": facts["url"]})
}

#[tokio::test]
async fn moto_has_the_events_in_the_order_of_their_times() {
    let moto = peers::moto();
    let now = peers::now_ms();
    // The stream is not there yet. The later event is first.
    let events = [event_at(now + 5000, 1), event_at(now, 2)];
    sink(&config(moto, "writer", "by-keys"))
        .deliver(&events)
        .await
        .unwrap();
    let expected = json!([
        {"timestamp": events[1].timestamp_ms, "message": text_of(&events[1])},
        {"timestamp": events[0].timestamp_ms, "message": text_of(&events[0])},
    ]);
    assert_eq!(moto.events_of("by-keys"), expected);
}

#[tokio::test]
async fn moto_takes_events_by_an_assumed_role() {
    let moto = peers::moto();
    let mut config = config(moto, "assumer", "by-role");
    config["assumeRole"] = json!({"roleArn": moto.facts["logs"]["role"], "externalId": "acme-1"});
    config["stsEndpoint"] = moto.facts["url"].clone();
    let events = events_at(peers::now_ms(), 3);
    let sink = sink(&config);
    sink.deliver(&events).await.unwrap();
    let read = moto.events_of("by-role");
    let messages: Vec<_> = read
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    assert_eq!(messages, events.iter().map(text_of).collect::<Vec<_>>());
}

#[tokio::test]
async fn moto_refuses_wrong_keys_and_missing_rights() {
    let moto = peers::moto();
    let mut wrong = config(moto, "writer", "refused");
    wrong["secretAccessKey"] = json!("0123456789012345678901234567890123456789");
    for config in [wrong, config(moto, "denied", "refused")] {
        let outcome = sink(&config).deliver(&events_at(peers::now_ms(), 1)).await;
        assert_eq!(word(&outcome), "credentials", "{outcome:?}");
    }
}

fn at(url: &str) -> Value {
    json!({"type": "CLOUDWATCH", "region": "us-east-1", "logGroup": "/tsp/events", "logStream": "acme",
        "accessKeyId": "AKIA0123", "secretAccessKey": "s", "endpoint": url})
}

#[tokio::test]
async fn a_call_is_what_the_api_describes() {
    let sim = Sim::start(|_, _| Reply::json(200, &json!({}))).await;
    let events = events(2);
    sink(&at(&sim.url)).deliver(&events).await.unwrap();
    let seen = sim.only();
    assert_eq!(seen.header("x-amz-target"), "Logs_20140328.PutLogEvents");
    assert_eq!(seen.header("content-type"), "application/x-amz-json-1.1");
    assert!(
        seen.header("authorization")
            .contains("/us-east-1/logs/aws4_request")
    );
    assert_eq!(
        seen.json(),
        json!({
            "logGroupName": "/tsp/events",
            "logStreamName": "acme",
            "logEvents": [
                {"timestamp": 1_700_000_000_123_u64, "message": text_of(&events[0])},
                {"timestamp": 1_700_000_001_123_u64, "message": text_of(&events[1])},
            ],
        })
    );
}

#[tokio::test]
async fn a_batch_of_two_days_is_two_calls_whose_rejections_are_put_together() {
    let sim = Sim::start(|_, before| {
        let info = match before {
            0 => json!({"tooOldLogEventEndIndex": 1, "expiredLogEventEndIndex": 2}),
            _ => json!({"tooNewLogEventStartIndex": 1}),
        };
        Reply::json(200, &json!({"rejectedLogEventsInfo": info}))
    })
    .await;
    let day = 24 * 3600 * 1000;
    let at_times = [
        TIME_MS + day,
        TIME_MS,
        TIME_MS + 1,
        TIME_MS + 2,
        TIME_MS + day + 1,
    ];
    let events: Vec<_> = at_times.into_iter().map(|time| event_at(time, 1)).collect();
    let outcome = sink(&at(&sim.url)).deliver(&events).await;
    let refused = vec![
        (1, "more than 14 days old".to_owned()),
        (2, "older than the log group keeps events".to_owned()),
        (4, "more than 2 hours in the future".to_owned()),
    ];
    assert_eq!(outcome, Err(Failure::Some { refused }));
    let counts: Vec<_> = sim
        .seen()
        .iter()
        .map(|seen| seen.json()["logEvents"].as_array().unwrap().len())
        .collect();
    assert_eq!(counts, [3, 2]);
}

#[tokio::test]
async fn every_exception_says_what_to_do() {
    for (status, code, expected) in [
        (400, "InvalidParameterException", "refused"),
        (400, "ThrottlingException", "later"),
        (400, "AccessDeniedException", "credentials"),
        (400, "UnrecognizedClientException", "credentials"),
        (400, "InvalidSignatureException", "credentials"),
        (500, "ServiceUnavailableException", "later"),
        (503, "ServiceUnavailableException", "later"),
    ] {
        let sim =
            Sim::start(move |_, _| Reply::json(status, &json!({"__type": code, "message": "no"})))
                .await;
        let outcome = sink(&at(&sim.url)).deliver(&events(1)).await;
        assert_eq!(word(&outcome), expected, "{code}: {outcome:?}");
    }
    // A group that is not there cannot be made by us.
    let sim = Sim::start(|_, _| {
        Reply::json(
            400,
            &json!({"__type": "ResourceNotFoundException", "message": "no group"}),
        )
    })
    .await;
    let outcome = sink(&at(&sim.url)).deliver(&events(1)).await;
    assert_eq!(word(&outcome), "credentials", "{outcome:?}");
    let targets: Vec<_> = sim
        .seen()
        .iter()
        .map(|seen| seen.header("x-amz-target").to_owned())
        .collect();
    assert_eq!(
        targets,
        [
            "Logs_20140328.PutLogEvents",
            "Logs_20140328.CreateLogStream"
        ]
    );
}
