//! The metrics that existing dashboards and autoscalers read: names, types, labels, and that they count.

use std::thread;

use serde_json::json;

use crate::support::{
    config::{self, As, AwsKms, leased, local_kms, tenant},
    fake_kms::FakeKms,
    http::Request,
    metadata, on_both,
    peers::source_folder,
    proxy::{API_KEY, Io, Proxy, Setup},
    request, text,
};

/// Series of a scrape after one kind of request, on two shards, however many tenants there are.
const SERIES_MAX: usize = 1_500;

/// `acme` at a KMS in the test's hands, `globex` on a local key.
fn start(io: Io) -> (Proxy, FakeKms) {
    let kms = FakeKms::asking();
    let file = config::file(&[
        AwsKms::unchecked(1, &kms.url()).toml(),
        local_kms(2, 0x22),
        tenant("acme", &[(1, As::Primary)]),
        tenant("globex", &[(2, As::Primary)]),
    ]);
    (Setup::serve(io, &file).start(), kms)
}

on_both! {
    fn families_have_their_types_and_labels(io) {
        let (proxy, kms) = start(io);
        thread::scope(|scope| {
            let client = scope.spawn(|| proxy.call("document/wrap", &metadata("acme")));
            kms.next_call().succeed();
            client.join().expect("the client is answered").ok();
        });
        let metrics = proxy.metrics();
        for (family, kind, labels) in [
            ("tsp_request_duration_seconds", "histogram", &["endpoint", "http_code", "kms_type", "tsp_status_code"][..]),
            ("tsp_kms_request_duration_seconds", "histogram", &["http_code", "kms_operation", "kms_type"]),
            ("tsp_requests_in_flight", "gauge", &["endpoint"]),
            ("tsp_key_operations_total", "counter", &["operation"]),
            ("tsp_kms_last_config_refresh_timestamp_seconds", "gauge", &[]),
            ("tsp_real_time_security_event_failures_total", "counter", &[]),
            ("tsp_config_refresh_failures_total", "counter", &[]),
        ] {
            assert_eq!(metrics.kind(family), Some(kind), "{family}:\n{}", metrics.text());
            let series = if kind == "histogram" { format!("{family}_count") } else { family.to_owned() };
            assert_eq!(metrics.label_names(&series), labels, "{family}");
            assert!(metrics.sum(&series, &[]).is_some(), "{family} has no series:\n{}", metrics.text());
        }
    }

    fn requests_are_counted_by_endpoint_kms_and_both_codes(io) {
        let (proxy, _kms) = start(io);
        let edek = text(&proxy.call("document/wrap", &metadata("globex")).ok(), "edek").to_owned();
        proxy.call("document/unwrap", &request("globex", json!({ "encryptedDocumentKey": edek }))).ok();
        proxy.call("document/batch-wrap", &request("globex", json!({ "documentIds": ["a", "b", "c"] }))).ok();
        proxy.call("document/wrap", &metadata("nobody")).refused(422, 201);
        proxy.send(&Request::api("document/wrap", "wrong", &metadata("globex"))).refused(401, 101);
        proxy.send(&Request::api("no/such/path", API_KEY, &json!({}))).refused(404, 102);
        let metrics = proxy.metrics();
        let requests = |labels| metrics.count("tsp_request_duration_seconds_count", labels);
        let local_wrap = [("endpoint", "document/wrap"), ("kms_type", "LOCAL"), ("http_code", "200"), ("tsp_status_code", "")];
        assert_eq!(requests(&local_wrap), 1.0, "{}", metrics.text());
        assert_eq!(requests(&[("endpoint", "document/unwrap"), ("http_code", "200")]), 1.0);
        assert_eq!(requests(&[("endpoint", "document/batch-wrap"), ("kms_type", "LOCAL")]), 1.0);
        assert_eq!(requests(&[("http_code", "422"), ("tsp_status_code", "201"), ("kms_type", "NONE")]), 1.0);
        assert_eq!(requests(&[("http_code", "401"), ("tsp_status_code", "101")]), 1.0);
        assert_eq!(requests(&[("http_code", "404")]), 1.0);
        let buckets = metrics.count("tsp_request_duration_seconds_bucket", &[("endpoint", "document/wrap"), ("http_code", "200"), ("le", "+Inf")]);
        assert_eq!(buckets, 1.0);
        let operations = |operation| metrics.count("tsp_key_operations_total", &[("operation", operation)]);
        assert_eq!((operations("wrap"), operations("unwrap")), (4.0, 1.0));
    }

    fn requests_in_flight_rise_and_fall(io) {
        let (proxy, kms) = start(io);
        let in_flight = || proxy.metrics().count("tsp_requests_in_flight", &[("endpoint", "document/wrap")]);
        assert_eq!(in_flight(), 0.0);
        thread::scope(|scope| {
            let clients: Vec<_> = (0..3).map(|_| scope.spawn(|| proxy.call("document/wrap", &metadata("acme")))).collect();
            let held: Vec<_> = clients.iter().map(|_| kms.next_call()).collect();
            assert_eq!(in_flight(), 3.0);
            held.into_iter().for_each(crate::support::fake_kms::Call::succeed);
            for client in clients {
                client.join().expect("the client is answered").ok();
            }
        });
        assert_eq!(in_flight(), 0.0);
    }

    fn kms_calls_are_counted_one_by_one_with_their_status(io) {
        let (proxy, kms) = start(io);
        thread::scope(|scope| {
            let client = scope.spawn(|| proxy.call("document/wrap", &metadata("acme")));
            kms.next_call().answer(500, &json!({ "__type": "KMSInternalException" }));
            kms.next_call().succeed();
            client.join().expect("the client is answered").ok();
        });
        let metrics = proxy.metrics();
        let calls = |status| {
            metrics.count("tsp_kms_request_duration_seconds_count", &[("kms_operation", "wrap"), ("kms_type", "AWS"), ("http_code", status)])
        };
        assert_eq!((calls("200"), calls("500")), (1.0, 1.0), "{}", metrics.text());
    }

    fn a_refresh_has_a_time_and_the_clients_have_names(io) {
        let (proxy, _kms) = start(io);
        let call = Request::api("document/wrap", API_KEY, &metadata("globex"));
        proxy.send(&call.clone().header("x-icl-tsc-language", "node").header("x-icl-tsc-version", "4.1.2")).ok();
        // A hostile header cannot grow the metrics without end.
        for n in 0..500 {
            proxy.send(&call.clone().header("x-icl-tsc-language", &format!("l{n}")).header("x-icl-tsc-version", &"9".repeat(500))).ok();
        }
        let metrics = proxy.metrics();
        let refreshed = metrics.count("tsp_kms_last_config_refresh_timestamp_seconds", &[]);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is after 1970").as_secs_f64();
        assert!((now - 3600.0..now + 60.0).contains(&refreshed), "{refreshed} is not within the last hour");
        let node = [("language", "node"), ("version", "4.1.2")];
        assert_eq!(metrics.count("tsp_client_requests_total", &node), 1.0, "{}", metrics.text());
        assert_eq!(metrics.count("tsp_client_requests_total", &[]), 501.0);
        let series = metrics.text().lines().filter(|line| line.starts_with("tsp_client_requests_total{")).count();
        assert!(series <= 100, "{series} series");
    }

    fn ten_thousand_tenants_make_a_scrape_no_longer_than_a_hundred_do(io) {
        const TENANTS: usize = 10_000;
        let name = |number: usize| format!("tenant-{number}");
        let mut pieces = vec![leased(&local_kms(1, 0x11))];
        pieces.extend((0..TENANTS).map(|number| tenant(&name(number), &[(1, As::Primary)])));
        let proxy = Setup::serve(io, &config::file(&pieces)).start();
        let mut connection = proxy.connect();
        let mut use_all = |numbers: std::ops::Range<usize>| {
            for number in numbers {
                let body = metadata(&name(number));
                // The second one finds its leased key in memory, which is counted by tenant.
                for _ in 0..2 {
                    connection.ask(&Request::api("document/wrap", API_KEY, &body)).ok();
                }
            }
        };
        let scrape = || {
            let began = std::time::Instant::now();
            let text = proxy.metrics().text().to_owned();
            let series = text.lines().filter(|line| !line.starts_with('#')).count();
            eprintln!("a scrape: {series} series, {} bytes, {:?}", text.len(), began.elapsed());
            (series, text)
        };
        use_all(0..100);
        let (few, _) = scrape();
        use_all(100..TENANTS);
        let (many, text) = scrape();
        assert_eq!(many, few, "{text}");
        assert!(many <= SERIES_MAX, "{many} series:\n{text}");
    }

    fn the_page_for_operators_names_every_family(io) {
        let (proxy, _kms) = start(io);
        let page = std::fs::read_to_string(source_folder().join("docs/operations.md")).expect("it is there");
        let metrics = proxy.metrics();
        let families = metrics.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let missing: Vec<_> = families.filter(|family| !page.contains(&format!("`{family}`"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    fn the_back_end_is_told(io) {
        let (proxy, _kms) = start(io);
        assert_eq!(proxy.metrics().count("tsp_info", &[("io", io.as_str())]), 1.0, "{}", proxy.metrics().text());
    }

    fn both_ports_give_the_same_families(io) {
        let (proxy, _kms) = start(io);
        let families = |address| {
            let metrics = crate::support::metrics::Metrics::read(address);
            metrics.text().lines().filter(|line| line.starts_with("# TYPE")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(families(proxy.http), families(proxy.health));
    }
}
