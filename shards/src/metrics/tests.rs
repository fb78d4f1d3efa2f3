use prometheus::Encoder as _;

use super::*;

fn text(hub: &MetricsHub) -> String {
    let mut out = Vec::new();
    prometheus::TextEncoder::new()
        .encode(
            &hub.families()
                .into_iter()
                .filter(|f| !f.get_metric().is_empty())
                .collect::<Vec<_>>(),
            &mut out,
        )
        .unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_scrape_adds_up_the_shards() {
    let shards = [
        Arc::new(ShardMetrics::new(Arc::default())),
        Arc::new(ShardMetrics::new(Arc::default())),
    ];
    let hub = MetricsHub::new(shards.clone());
    for shard in &shards {
        shard.request(
            Endpoint::Wrap,
            Some(KmsKind::Aws),
            (200, None),
            Duration::from_micros(700),
        );
        shard.key_operation(KeyOperation::Wrap);
        shard.client("java", "8.1.1");
    }
    let denied = TspCode::KmsAuthorizationFailed;
    let took = Duration::from_secs(60);
    shards[0].request(
        Endpoint::Wrap,
        Some(KmsKind::Aws),
        (422, Some(denied)),
        took,
    );
    let text = text(&hub);
    for line in [
        r#"tsp_request_duration_seconds_bucket{endpoint="document/wrap",http_code="200",kms_type="AWS",tsp_status_code="",le="0.0005"} 0"#,
        r#"tsp_request_duration_seconds_bucket{endpoint="document/wrap",http_code="200",kms_type="AWS",tsp_status_code="",le="0.001"} 2"#,
        r#"tsp_request_duration_seconds_count{endpoint="document/wrap",http_code="200",kms_type="AWS",tsp_status_code=""} 2"#,
        r#"tsp_request_duration_seconds_bucket{endpoint="document/wrap",http_code="422",kms_type="AWS",tsp_status_code="206",le="+Inf"} 1"#,
        r#"tsp_key_operations_total{operation="wrap"} 2"#,
        r#"tsp_client_requests_total{language="java",version="8.1.1"} 2"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn every_error_response_has_a_series() {
    for code in TspCode::ALL {
        assert!(
            OUTCOMES.contains(&(code.http_status(), Some(code))),
            "{code:?}"
        );
    }
    let mut seen = OUTCOMES.to_vec();
    seen.sort_by_key(|(status, code)| (*status, code.map(TspCode::number)));
    seen.dedup();
    assert_eq!(seen.len(), OUTCOMES.len());
}

#[test]
fn hostile_client_headers_cannot_add_series_without_end() {
    let shard = Arc::new(ShardMetrics::new(Arc::default()));
    for version in 0..10_000 {
        shard.client("node", &version.to_string());
    }
    shard.client("node\n", "1");
    shard.client(&"x".repeat(33), "1");
    let hub = MetricsHub::new([shard]);
    assert_eq!(hub.clients().len(), CLIENTS_MAX + 1);
    assert_eq!(
        hub.sum(|s| Some(&s.clients_other)),
        10_000 - CLIENTS_MAX as u64 + 2
    );
}
