//! The security event of one wrap: from what is known to the bytes for the log-event driver.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends at its first surprise")]

use std::io;

use serde_json::Value;
use tsp_bench::{Case, TENANT, WRAP_BODY};
use tsp_wire::{
    RayId,
    api::Parser,
    event::{DATA_ENCRYPT, EventSource, SecurityEvent, Sequence},
};

fn main() -> io::Result<()> {
    let mut body = WRAP_BODY.as_bytes().to_vec();
    let request = Parser::new().wrap(&mut body).unwrap();
    let event = SecurityEvent {
        tenant_id: TENANT,
        timestamp_ms: 1_768_472_130_000,
        event: DATA_ENCRYPT,
        metadata: &request.metadata,
        ray_id: RayId::from_random([3; 12]),
        source: EventSource::Tsp,
        count: 1,
        sequence: Sequence {
            instance: 77,
            shard: 1,
            number: 4711,
        },
    };
    let write = || {
        let mut frame = Vec::with_capacity(512);
        event.write_json(&mut frame);
        frame
    };
    let json: Value = serde_json::from_slice(&write()).unwrap();
    assert_eq!(json.get("tenantId").and_then(Value::as_str), Some(TENANT));

    tsp_bench::main(
        "event",
        vec![
            Case::new("write", write),
            Case::new("ray id", || RayId::from_random([3; 12])),
        ],
    )
}
