//! Answers: from keys to bytes.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends at its first surprise")]

use std::io;

use serde_json::Value;
use tsp_bench::{BATCH_ITEMS, Case, config_id, dek};
use tsp_wire::{
    TspCode,
    api::{self, BatchAnswer, SecretBuf},
    edek,
};

fn main() -> io::Result<()> {
    let (dek, edek) = (dek(), edek::encode_unleased(config_id(), &[0x4c; 64]));
    let ids: Vec<_> = (0..BATCH_ITEMS)
        .map(|item| format!("document-{item:04}"))
        .collect();
    let batch = || {
        let mut answer = BatchAnswer::with_capacity(ids.len());
        for id in &ids {
            answer.push_wrapped(id, &dek, &edek);
        }
        answer.finish()
    };
    let error = || {
        api::error(
            TspCode::InvalidRequest,
            "Request body: missing field `iclFields`.",
        )
    };

    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let text = |buf: SecretBuf| json(buf.as_ref());
    assert_eq!(
        text(api::wrapped(Vec::new(), &dek, &edek))
            .as_object()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        text(api::unwrapped(Vec::new(), &dek))
            .as_object()
            .unwrap()
            .len(),
        1
    );
    let keys = text(batch());
    assert_eq!(
        keys.get("keys").and_then(Value::as_object).unwrap().len(),
        BATCH_ITEMS
    );
    assert_eq!(json(&error()).get("code"), Some(&Value::from(102)));

    tsp_bench::main(
        "answer",
        vec![
            Case::new("wrapped", || api::wrapped(Vec::new(), &dek, &edek)),
            Case::new("unwrapped", || api::unwrapped(Vec::new(), &dek)),
            Case::new("batch-wrap-100", batch),
            Case::new("error", error),
        ],
    )
}
