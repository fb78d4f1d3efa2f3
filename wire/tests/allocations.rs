//! The path of every request allocates no more than it must. Counted per thread, so other tests do not disturb.

use allocation_counter::measure;
use tsp_wire::{
    Dek, RayId,
    api::{self, BatchAnswer, Metadata, Parser},
    event::{DATA_ENCRYPT, EventSource, SecurityEvent, Sequence},
};

const WRAP: &str = r#"{"tenantId":"acme","iclFields":{"requestingId":"billing-svc","dataLabel":"PII",
    "sourceIp":"192.0.2.7","objectId":"o-1","requestId":"r-17"},"customFields":{}}"#;

#[test]
fn a_warm_parser_reads_a_wrap_without_allocating() {
    let mut parser = Parser::new();
    parser.wrap(&mut WRAP.as_bytes().to_vec()).unwrap();
    let mut body = WRAP.as_bytes().to_vec();
    let used = measure(|| {
        parser.wrap(&mut body).unwrap();
    });
    assert_eq!(used.count_total, 0);
}

#[test]
fn custom_fields_cost_one_allocation_for_all() {
    let text = WRAP.replace(
        r#""customFields":{}"#,
        r#""customFields":{"table":"customers","row":"7","x":null,"flag":true}"#,
    );
    let mut parser = Parser::new();
    parser.wrap(&mut text.as_bytes().to_vec()).unwrap();
    let mut body = text.into_bytes();
    let used = measure(|| {
        assert_eq!(
            parser.wrap(&mut body).unwrap().metadata.custom_fields.len(),
            3
        );
    });
    assert_eq!(used.count_total, 1);
}

#[test]
fn an_answer_with_a_key_is_allocated_once_and_freed_whole() {
    let dek = Dek::fill_with(|bytes| bytes.fill(7));
    let used = measure(|| {
        drop(api::wrapped(Vec::new(), &dek, &[7; 300]));
    });
    assert_eq!((used.count_total, used.bytes_current), (1, 0));
    let used = measure(|| {
        drop(api::unwrapped(Vec::new(), &dek));
    });
    assert_eq!((used.count_total, used.bytes_current), (1, 0));
}

#[test]
fn a_usual_batch_answer_does_not_move_its_keys() {
    let dek = Dek::fill_with(|bytes| bytes.fill(7));
    let ids: Vec<String> = (0..100).map(|id| format!("{id:036}")).collect();
    let used = measure(|| {
        let mut answer = BatchAnswer::with_capacity(ids.len());
        for id in &ids {
            answer.push_wrapped(id, &dek, &[7; 193]);
        }
        drop(answer.finish());
    });
    assert_eq!(used.count_total, 1);
}

#[test]
fn an_event_is_written_into_the_callers_buffer_only() {
    let metadata = Metadata {
        tenant_id: "acme",
        requesting_id: "svc",
        data_label: Some("PII"),
        source_ip: None,
        object_id: None,
        request_id: None,
        custom_fields: [("a", "b".into())].into_iter().collect(),
    };
    let event = SecurityEvent {
        tenant_id: "acme",
        timestamp_ms: 1_700_000_000_000,
        event: DATA_ENCRYPT,
        metadata: &metadata,
        ray_id: RayId::from_random([7; 12]),
        source: EventSource::Tsp,
        count: 3,
        sequence: Sequence {
            instance: 1,
            shard: 2,
            number: 3,
        },
    };
    let mut out = Vec::with_capacity(1024);
    let used = measure(|| event.write_json(&mut out));
    assert_eq!(used.count_total, 0);
    assert!(!out.is_empty());
}
