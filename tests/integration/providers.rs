//! The key operations on all four remote KMSs, played by `kmssim` behind TLS, which must be content with every request.

use std::thread;

use serde_json::{Map, Value, json};

use crate::support::{
    http::Request,
    kmssim::{ClientKey, LOCAL_TENANT, Provider, SampleShape, Simulator},
    metadata, on_both,
    proxy::{API_KEY, Io, Proxy},
    request, text,
};

/// Keys in one batch.
const BATCH_ITEMS: usize = 1_000;

/// Operations that all need the same token at one time.
const COLD_OPERATIONS: usize = 300;

/// Resident memory of a proxy in whose life there were two batches of 10,000 wraps, in KiB. It was some 45 MiB; a KMS call that
/// kept its buffers would add 100 MiB.
const BATCH_PEAK_KIB_MAX: u64 = 96 * 1024;

/// Every other way to prove oneself to these KMSs, and Azure's other place for keys.
fn other_ways() -> SampleShape {
    SampleShape {
        aws_roles: true,
        gcp_token_endpoint: true,
        azure_certificates: true,
        azure_hsm: true,
        ..SampleShape::default()
    }
}

#[track_caller]
fn unwrap(proxy: &Proxy, tenant: &str, edek: &str) -> Value {
    let read = request(tenant, json!({ "encryptedDocumentKey": edek }));
    proxy.call("document/unwrap", &read).ok()
}

/// Wraps and unwraps one key and a batch of them.
#[track_caller]
fn serves(io: Io, provider: Provider, shape: &SampleShape) {
    let simulator = Simulator::with(shape);
    let (proxy, tenant) = (simulator.proxy(io), simulator.tenant(provider));

    let wrapped = proxy.call("document/wrap", &metadata(tenant)).ok();
    let unwrapped = unwrap(&proxy, tenant, text(&wrapped, "edek"));
    assert_eq!(unwrapped["dek"], wrapped["dek"]);

    let ids: Vec<_> = (0..BATCH_ITEMS).map(|n| format!("document {n}")).collect();
    let ids = request(tenant, json!({ "documentIds": ids }));
    let wrapped = keys(&proxy.call("document/batch-wrap", &ids).ok());
    assert_eq!(wrapped.len(), BATCH_ITEMS);
    let edeks = wrapped
        .iter()
        .map(|(id, key)| (id.clone(), key["edek"].clone()));
    let edeks = request(tenant, json!({ "edeks": edeks.collect::<Map<_, _>>() }));
    let unwrapped = keys(&proxy.call("document/batch-unwrap", &edeks).ok());
    assert_eq!(unwrapped.len(), BATCH_ITEMS);
    for (id, key) in &wrapped {
        assert_eq!(unwrapped[id]["dek"], key["dek"], "{id}");
    }

    for operation in ["wrap", "unwrap"] {
        let asked = simulator.requests(provider, operation);
        assert!(
            asked > BATCH_ITEMS as u64,
            "{asked} requests to {operation}"
        );
    }
    simulator.assert_refused_none();
}

/// The keys of a batch in which nothing failed.
#[track_caller]
fn keys(answer: &Value) -> Map<String, Value> {
    assert_eq!(answer["failures"], json!({}));
    answer["keys"].as_object().expect("there are keys").clone()
}

on_both! {
    fn aws_with_a_users_keys(io) {
        serves(io, Provider::Aws, &SampleShape::default());
    }

    fn aws_in_a_role(io) {
        serves(io, Provider::Aws, &other_ways());
    }

    fn gcp_with_tokens_of_its_own_making(io) {
        serves(io, Provider::Gcp, &SampleShape::default());
    }

    fn gcp_with_tokens_from_the_endpoint(io) {
        serves(io, Provider::Gcp, &other_ways());
    }

    fn azure_with_a_secret_and_an_rsa_key(io) {
        serves(io, Provider::Azure, &SampleShape::default());
    }

    fn azure_with_a_certificate_and_a_key_in_an_hsm(io) {
        serves(io, Provider::Azure, &other_ways());
    }

    fn azure_with_an_aes_key_in_an_hsm(io) {
        let shape = SampleShape { azure_aes: true, ..SampleShape::default() };
        serves(io, Provider::Azure, &shape);
    }

    fn thales(io) {
        serves(io, Provider::Thales, &SampleShape::default());
    }

    fn a_key_moves_through_all_kmss_and_back_unchanged(io) {
        let simulator = Simulator::start();
        let proxy = simulator.proxy(io);
        let mut circle: Vec<_> = Provider::ALL.iter().map(|provider| simulator.tenant(*provider)).collect();
        circle.extend([LOCAL_TENANT, simulator.tenant(Provider::Aws)]);
        let back = circle.iter().rev().copied().skip(1);
        let stations: Vec<_> = circle.iter().copied().chain(back).collect();

        let first = proxy.call("document/wrap", &metadata(stations[0])).ok();
        let mut edek = text(&first, "edek").to_owned();
        for step in stations.windows(2) {
            let (old, new) = (step[0], step[1]);
            let order = request(old, json!({ "encryptedDocumentKey": edek, "newTenantId": new }));
            let moved = proxy.call("document/rekey", &order).ok();
            assert_eq!(moved["dek"], first["dek"], "{old} to {new}");
            text(&moved, "edek").clone_into(&mut edek);
            assert_eq!(unwrap(&proxy, new, &edek)["dek"], first["dek"], "{new}");
            let refused = request(old, json!({ "encryptedDocumentKey": edek }));
            proxy.call("document/unwrap", &refused).refused(422, 202);
        }
        assert_eq!(stations.len(), 11);
        simulator.assert_refused_none();
    }

    fn ten_thousand_keys_in_one_batch_under_256_open_files(io) {
        let simulator = Simulator::start();
        let proxy = simulator.setup(io).open_files_max(256).start();
        let ids: Vec<_> = (0..10_000).map(|n| n.to_string()).collect();
        for provider in [Provider::Aws, Provider::Thales] {
            let order = request(simulator.tenant(provider), json!({ "documentIds": ids }));
            assert_eq!(keys(&proxy.call("document/batch-wrap", &order).ok()).len(), ids.len());
        }
        let peak = proxy.memory_kib("VmHWM");
        eprintln!("the peak is {peak} KiB");
        assert!(peak < BATCH_PEAK_KIB_MAX, "the peak is {peak} KiB");
        simulator.assert_refused_none();
    }

    /// Every connection is closed at a moment when the next call may be on it already. No call fails of that.
    fn a_far_end_that_closes_kept_connections_fails_no_call(io) {
        let simulator = Simulator::start();
        let proxy = simulator.proxy(io);
        let order = Request::api("document/wrap", API_KEY, &metadata(simulator.tenant(Provider::Aws)));
        let mut clients: Vec<_> = (0..4).map(|_| proxy.connect()).collect();
        for _ in 0..50 {
            thread::scope(|scope| {
                scope.spawn(|| simulator.order("POST", "/connections/close", &Value::Null));
                for client in &mut clients {
                    scope.spawn(|| client.ask(&order).ok());
                }
            });
        }
        let stale = proxy.metrics();
        let stale = ["before_call", "in_call"].map(|noticed| stale.count("tsp_kms_connections_stale_total", &[("noticed", noticed)]));
        eprintln!("kept connections found closed before a call and in one: {stale:?}");
        assert!(stale.iter().sum::<f64>() >= 1.0, "{stale:?}");
        simulator.assert_refused_none();
    }

    fn cold_operations_on_all_shards_share_one_token(io) {
        for (shape, provider, tokens) in [
            (SampleShape::default(), Provider::Gcp, 0),
            (SampleShape::default(), Provider::Azure, 1),
            (SampleShape::default(), Provider::Thales, 1),
            (other_ways(), Provider::Aws, 1),
            (other_ways(), Provider::Gcp, 1),
            (other_ways(), Provider::Azure, 1),
        ] {
            let simulator = Simulator::with(&shape);
            // More shards than some machines have cores; and a token that takes its time, so that all operations wait for it.
            let proxy = simulator.setup(io).env("TSP_SHARDS", "4").start();
            simulator.order("POST", "/latency", &json!({ "target": { "operation": "token" }, "fixed_ms": 300 }));
            let order = Request::api("document/wrap", API_KEY, &metadata(simulator.tenant(provider))).bytes();
            let mut clients: Vec<_> = (0..COLD_OPERATIONS).map(|_| proxy.connect()).collect();
            for client in &mut clients {
                client.send(&order).expect("it can be sent");
            }
            for client in &mut clients {
                client.answer().ok();
            }
            assert_eq!(simulator.requests(provider, "token"), tokens, "{provider:?}: {}", simulator.metrics());
            simulator.assert_refused_none();
        }
    }

    fn what_was_wrapped_before_a_rotation_can_be_unwrapped_after_it(io) {
        let simulator = Simulator::start();
        let proxy = simulator.proxy(io);
        for provider in Provider::ALL {
            let tenant = simulator.tenant(provider);
            let before = proxy.call("document/wrap", &metadata(tenant)).ok();
            let key = match &simulator.client(provider).key {
                ClientKey::Aws { key_id, .. } | ClientKey::Thales { key_id, .. } => key_id,
                ClientKey::Gcp { crypto_key_id, .. } => crypto_key_id,
                ClientKey::Azure { key_name, .. } => key_name,
            };
            let rotate = json!({ "provider": provider.as_str(), "key": key, "action": "rotate" });
            simulator.order("POST", "/keys", &rotate);
            let after = proxy.call("document/wrap", &metadata(tenant)).ok();
            for wrapped in [before, after] {
                let edek = text(&wrapped, "edek");
                assert_eq!(unwrap(&proxy, tenant, edek)["dek"], wrapped["dek"], "{provider:?}");
            }
        }
        simulator.assert_refused_none();
    }

    /// Signatures, assertions and tokens are bound to the time. A KMS whose clock is far off refuses a first request, at most;
    /// its own `Date` tells how far.
    fn a_clock_that_is_minutes_off_is_met_with_the_kmss_own_time(io) {
        for (shape, skew_s) in [(SampleShape::default(), 400), (SampleShape::default(), -400), (other_ways(), 400), (other_ways(), -400)] {
            let simulator = Simulator::with(&shape);
            let proxy = simulator.proxy(io);
            // One connection is one shard: each learns of the clocks by itself.
            let mut client = proxy.connect();
            let mut wrap_everywhere = || {
                for known in &simulator.clients {
                    client.ask(&Request::api("document/wrap", API_KEY, &metadata(&known.tenant))).ok();
                }
            };
            simulator.order("POST", "/clock", &json!({ "skew_s": skew_s }));
            wrap_everywhere();
            let refused = simulator.order("GET", "/requests/refused", &Value::Null);
            let refused = refused.as_array().expect("it is a list");
            assert!(!refused.is_empty() && refused.len() <= Provider::ALL.len(), "{refused:?}");
            assert!(refused.iter().all(|record| record["why"] == "clock"), "{refused:?}");
            simulator.order("DELETE", "/requests", &Value::Null);
            wrap_everywhere();
            simulator.assert_refused_none();
        }
    }
}
