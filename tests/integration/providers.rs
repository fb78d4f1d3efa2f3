//! The key operations on all four remote KMSs, played by `kmssim` behind TLS, which must be content with every request.

use serde_json::{Map, Value, json};

use crate::support::{
    kmssim::{LOCAL_TENANT, Provider, SampleShape, Simulator},
    metadata, on_both,
    proxy::{Io, Proxy},
    request, text,
};

/// Keys in one batch.
const BATCH_ITEMS: usize = 1_000;

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
    let edeks = wrapped
        .iter()
        .map(|(id, key)| (id.clone(), key["edek"].clone()));
    let edeks = request(tenant, json!({ "edeks": edeks.collect::<Map<_, _>>() }));
    let unwrapped = keys(&proxy.call("document/batch-unwrap", &edeks).ok());
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
    let keys = answer["keys"].as_object().expect("there are keys").clone();
    assert_eq!(keys.len(), BATCH_ITEMS);
    keys
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
}
