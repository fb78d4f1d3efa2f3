use serde_json::json;
use tsp_wire::envelope::SigningKey;

use super::*;

const LOGDRIVER: LogdriverId = LogdriverId(7);

fn signing(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

/// A log of `events` events with a checkpoint after every `every`, as JSON.
fn log(tenant: &str, events: u64, every: u64) -> Vec<Value> {
    let mut head = Head::start(LOGDRIVER, tenant);
    let mut lines = Vec::new();
    for number in 1..=events {
        let event = json!({"tenantId": tenant, "iclFields": {"event": "DATA_ENCRYPT", "n": number}, "customFields": {}});
        lines.push(
            head.append(LOGDRIVER, event.to_string().as_bytes())
                .unwrap(),
        );
        if number % every == 0 {
            let checkpoint = head
                .checkpoint(LOGDRIVER, tenant, 0, "ray", &signing(1))
                .unwrap();
            lines.push(head.append(LOGDRIVER, &checkpoint).unwrap());
        }
    }
    lines
        .iter()
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn lines(log: &[Value]) -> String {
    log.iter().map(|event| format!("{event}\n")).collect()
}

fn report_of(text: &str) -> Report {
    let mut examined = Examined::new(vec![signing(1).verifying()]);
    input::each(text.as_bytes(), |line, event| examined.take(line, event)).unwrap();
    examined.report(false, None)
}

/// What is wrong with a log of one chain.
fn findings(log: &[Value]) -> Vec<Finding> {
    let report = report_of(&lines(log));
    assert_eq!(report.chains.len(), 1, "{report}");
    let chain = report.chains.into_iter().next().unwrap();
    chain.findings
}

#[test]
fn a_whole_log_is_sound_in_any_order_and_with_duplicates() {
    let log = log("acme", 25, 10);
    assert_eq!(log.len(), 27);
    let report = report_of(&lines(&log));
    assert!(report.is_sound(), "{report}");
    assert_eq!(report.chains[0].proven, 22);
    assert!(report.to_string().contains("the 5 after it"), "{report}");
    let mut backwards = log.clone();
    backwards.reverse();
    backwards.push(log[3].clone());
    let report = report_of(&lines(&backwards));
    assert!(report.is_sound(), "{report}");
    assert_eq!(
        (report.chains[0].duplicates, report.chains[0].out_of_order),
        (1, true)
    );
}

#[test]
fn what_is_deleted_is_named() {
    let mut log = log("acme", 20, 10);
    log.drain(3..5);
    assert_eq!(findings(&log), [Finding::Missing { from: 4, to: 5 }]);
}

#[test]
fn a_proxy_that_died_is_named() {
    let mut log = log("acme", 9, 10);
    let mut head = Head::start(LOGDRIVER, "acme");
    let mut bare: Vec<_> = std::mem::take(&mut log);
    for event in &mut bare {
        event.as_object_mut().unwrap().remove("chain");
    }
    let notice = notice::proxy_died("acme", 0xbeef, 1_700_000_000_000, 0, "ray");
    bare.push(serde_json::from_slice(&notice).unwrap());
    for event in &bare {
        let event = head.append(LOGDRIVER, event.to_string().as_bytes());
        log.push(serde_json::from_slice(&event.unwrap()).unwrap());
    }
    let checkpoint = head.checkpoint(LOGDRIVER, "acme", 0, "ray", &signing(1));
    let checkpoint = head.append(LOGDRIVER, &checkpoint.unwrap()).unwrap();
    log.push(serde_json::from_slice(&checkpoint).unwrap());
    let died = Finding::Died {
        place: 10,
        proxy: "000000000000beef".to_owned(),
        last_event_at: "2023-11-14T22:13:20.000Z".to_owned(),
    };
    assert_eq!(findings(&log), [died]);
    let said = report_of(&lines(&log)).to_string();
    let line = "DIED       the proxy 000000000000beef ended without handing over all: what happened there after \
                2023-11-14T22:13:20.000Z may be missing, says event 10\n";
    assert!(said.contains(line), "{said}");
}

#[test]
fn what_is_edited_is_named() {
    let mut log = log("acme", 20, 10);
    log[4]["iclFields"]["n"] = json!(999);
    assert_eq!(findings(&log), [Finding::Edited { place: 5, line: 5 }]);
    log[4]["tenantId"] = json!("other");
    let report = report_of(&lines(&log));
    assert!(!report.is_sound());
}

#[test]
fn events_that_changed_places_are_named() {
    let mut log = log("acme", 20, 10);
    let (third, fourth) = (log[2]["chain"].clone(), log[3]["chain"].clone());
    log[2]["chain"] = fourth;
    log[3]["chain"] = third;
    let edited = |place, line| Finding::Edited { place, line };
    assert_eq!(findings(&log), [edited(3, 4), edited(4, 3)]);
}

#[test]
fn a_history_that_is_written_anew_needs_the_key() {
    // All hashes fit, and the checkpoints are signed by somebody else.
    let mut head = Head::start(LOGDRIVER, "acme");
    let mut forged = Vec::new();
    for number in 0..3 {
        let event = json!({"tenantId": "acme", "n": number});
        forged.push(
            head.append(LOGDRIVER, event.to_string().as_bytes())
                .unwrap(),
        );
    }
    let checkpoint = head
        .checkpoint(LOGDRIVER, "acme", 0, "ray", &signing(2))
        .unwrap();
    forged.push(head.append(LOGDRIVER, &checkpoint).unwrap());
    let forged: Vec<Value> = forged
        .iter()
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(
        findings(&forged),
        [Finding::Unsigned { place: 4 }, Finding::NoCheckpoint]
    );
    // One event replaced, and its link made anew.
    let mut log = log("acme", 20, 10);
    let mut head = Head {
        sequence: 4,
        hash: ChainHash::from_text(log[4]["chain"]["previous"].as_str().unwrap()).unwrap(),
    };
    let other = head
        .append(
            LOGDRIVER,
            br#"{"tenantId":"acme","iclFields":{"event":"USER_LOGIN"}}"#,
        )
        .unwrap();
    log[4] = serde_json::from_slice(&other).unwrap();
    assert_eq!(findings(&log), [Finding::Rewritten { place: 6 }]);
    // The same, with everything after it up to the checkpoint made anew.
    let mut from_there = Vec::new();
    for event in &log[5..10] {
        let mut event = event.clone();
        event.as_object_mut().unwrap().remove("chain");
        from_there.push(
            head.append(LOGDRIVER, event.to_string().as_bytes())
                .unwrap(),
        );
    }
    for (place, event) in (5..).zip(from_there) {
        log[place] = serde_json::from_slice(&event).unwrap();
    }
    let found = findings(&log);
    assert!(
        found.contains(&Finding::Contradicted { place: 11 }),
        "{found:?}"
    );
}

#[test]
fn what_was_cut_off_is_missing_if_the_checkpoint_or_the_operator_knows() {
    let whole = log("acme", 20, 10);
    let checkpoint = whole[21].clone();
    let mut cut = whole[..15].to_vec();
    assert!(report_of(&lines(&cut)).is_sound());
    let mut examined = Examined::new(vec![signing(1).verifying()]);
    input::each(lines(&cut).as_bytes(), |line, event| {
        examined.take(line, event)
    })
    .unwrap();
    let report = examined.report(true, Some(22));
    assert_eq!(
        report.chains[0].findings,
        [Finding::Missing { from: 16, to: 22 }]
    );
    cut.push(checkpoint);
    assert_eq!(findings(&cut), [Finding::Missing { from: 16, to: 21 }]);
}

#[test]
fn an_export_may_begin_later_unless_it_must_have_everything() {
    let log = log("acme", 20, 10);
    let report = report_of(&lines(&log[5..]));
    assert!(report.is_sound(), "{report}");
    assert!(
        report.to_string().contains("begins with event 6"),
        "{report}"
    );
    let mut examined = Examined::new(vec![signing(1).verifying()]);
    input::each(lines(&log[5..]).as_bytes(), |line, event| {
        examined.take(line, event)
    })
    .unwrap();
    let report = examined.report(true, None);
    assert_eq!(
        report.chains[0].findings,
        [Finding::Missing { from: 1, to: 5 }]
    );
}

#[test]
fn what_a_proxy_lost_is_named() {
    let mut head = Head::start(LOGDRIVER, "acme");
    let lost = br#"{"tenantId":"acme","iclFields":{"event":"TSP_EVENTS_LOST","count":12}}"#;
    let mut all = vec![head.append(LOGDRIVER, lost).unwrap()];
    let checkpoint = head
        .checkpoint(LOGDRIVER, "acme", 0, "ray", &signing(1))
        .unwrap();
    all.push(head.append(LOGDRIVER, &checkpoint).unwrap());
    let all: Vec<Value> = all
        .iter()
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(
        findings(&all),
        [Finding::Lost {
            place: 1,
            count: 12
        }]
    );
}

#[test]
fn events_are_found_in_what_log_systems_export() {
    let log = log("acme", 10, 10);
    let wrapped = |wrap: &dyn Fn(&Value) -> Value| -> String {
        log.iter()
            .map(|event| format!("{}\n", wrap(event)))
            .collect()
    };
    for text in [
        wrapped(&|event| json!({"preview": false, "offset": 1, "result": {"_raw": event.to_string(), "host": "h"}})),
        wrapped(&|event| json!({"insertId": "x", "jsonPayload": event, "logName": "l"})),
        wrapped(&|event| json!({"timestamp": 1, "message": event.to_string(), "ingestionTime": 2})),
        wrapped(&|event| json!({"TimeGenerated": "t", "Event": event})),
        wrapped(&|event| json!({"body": {"stringValue": event.to_string()}})),
        log.iter().map(|event| format!("Nov 28 12:00:00 host tsp[-]: {event}\n\n")).collect(),
        serde_json::to_string_pretty(&log).unwrap(),
        serde_json::to_string(&json!([{"events": log[0]}, log[1], log[2], log[3], log[4], log[5], log[6], log[7], log[8], log[9], log[10]])).unwrap(),
    ] {
        let report = report_of(&text);
        assert!(report.is_sound(), "{text}\n{report}");
        assert_eq!(report.chains[0].events, 11);
    }
}

#[test]
fn what_is_no_event_is_counted_and_named() {
    let mut text = lines(&log("acme", 10, 10));
    text.push_str("garbage\n{\"tenantId\":\"acme\"}\n{\"chain\":1,\"tenantId\":\"acme\"}\n");
    let report = report_of(&text);
    assert!(!report.is_sound());
    assert_eq!(
        (report.unreadable_count, &report.unreadable[..]),
        (3, &[12, 13, 14][..])
    );
    assert!(!report_of("").is_sound());
}

#[test]
fn two_tenants_are_two_chains() {
    let mut both = log("acme", 10, 10);
    both.extend(log("other", 10, 10));
    let report = report_of(&lines(&both));
    assert!(report.is_sound() && report.chains.len() == 2, "{report}");
}
