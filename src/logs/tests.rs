use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use serde_json::{Value, json};

use super::*;

#[derive(Clone)]
struct Lines(Arc<mpsc::Sender<String>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .send(String::from_utf8(bytes.to_vec()).unwrap())
            .unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines(spec: Option<&str>, log: impl FnOnce()) -> Vec<Value> {
    let (sender, receiver) = mpsc::channel();
    let now = || SystemTime::UNIX_EPOCH + Duration::from_nanos(1_777_999_005_634_142_999);
    let layer = JsonLines {
        out: Lines(Arc::new(sender)),
        now,
    };
    let subscriber = Registry::default().with(filter(spec).unwrap()).with(layer);
    tracing::subscriber::with_default(subscriber, log);
    receiver
        .try_iter()
        .map(|line| {
            assert_eq!(line.matches('\n').count(), 1, "one line each: {line:?}");
            serde_json::from_str(&line).unwrap()
        })
        .collect()
}

#[test]
fn a_line_has_the_fields_of_the_existing_product() {
    let lines = lines(None, || {
        let _request = tracing::info_span!("request", ray_id = "AAAAAAAAAAAAAAAA").entered();
        tracing::info!(tenant_id = "acme", "wrapped \"a\" key\n");
    });
    assert_eq!(
        lines,
        [json!({
            "service": "proxy",
            "level": "INFO",
            "timestamp": "2026-05-05T16:36:45.634142Z",
            "target": "tsp::logs::tests",
            "message": "wrapped \"a\" key\n",
            "tenant_id": "acme",
            "ray_id": "AAAAAAAAAAAAAAAA",
            "contexts": "request",
            "name": "request",
        })]
    );
}

#[test]
fn nested_spans_are_joined_and_the_inner_value_wins() {
    let lines = lines(None, || {
        let outer = tracing::info_span!(
            "main",
            tenant_id = "outer",
            a = 1,
            late = tracing::field::Empty
        );
        let _outer = outer.enter();
        let _inner = tracing::info_span!("batch", tenant_id = "inner").entered();
        outer.record("late", true);
        tracing::warn!(a = 2.5, "text");
    });
    let line = &lines[0];
    assert_eq!(
        (&line["contexts"], &line["name"]),
        (&json!("main;batch"), &json!("batch"))
    );
    assert_eq!(
        (&line["tenant_id"], &line["a"], &line["late"]),
        (&json!("inner"), &json!(2.5), &json!(true))
    );
}

#[test]
fn lines_per_operation_show_when_asked_for() {
    let log = || tracing::info!(target: "tsp::ops", "operation");
    assert_eq!(lines(None, log).len(), 0);
    assert_eq!(lines(Some("info"), log).len(), 1);
    assert_eq!(lines(Some("info,tsp::ops=debug"), log).len(), 1);
}

#[test]
fn fields_cannot_break_a_line_or_take_its_names() {
    let long = "é".repeat(VALUE_BYTES_MAX);
    let lines = lines(None, || {
        tracing::error!(name = "mine", level = 3, long = %long, debug = ?long, inf = f64::INFINITY, "m");
    });
    let line = &lines[0];
    assert_eq!(
        (&line["level"], &line["field_level"]),
        (&json!("ERROR"), &json!(3))
    );
    assert_eq!(line["field_name"], json!("mine"));
    assert_eq!(line["inf"], Value::Null);
    for field in ["long", "debug"] {
        let text = line[field].as_str().unwrap();
        assert!(
            text.len() < VALUE_BYTES_MAX + 10 && text.ends_with('…'),
            "{field}"
        );
    }
}

#[test]
fn a_bad_filter_is_refused() {
    assert!(filter(Some("info,tsp=trace")).is_ok());
    assert!(filter(Some("a=b=c")).is_err());
    assert!(filter(Some("tsp=loud")).is_err());
}
