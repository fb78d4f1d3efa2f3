//! The key operations over local keys: what comes back, and which code when it cannot.

use serde_json::{Value, json};
use tsp_wire::edek::{EncryptedDeks, looks_like_alloy_header};

use crate::support::{
    base64,
    config::{self, As, local_kms, tenant},
    http::{Answer, assert_error_object},
    metadata, on_both,
    proxy::{Io, Proxy, Setup},
    request, text, to_base64,
};

/// Two local keys and every way in which they can be assigned.
fn config() -> String {
    config::file(&[
        local_kms(1, 0x11),
        local_kms(2, 0x22),
        tenant("acme", &[(1, As::Primary)]),
        tenant("globex", &[(2, As::Primary)]),
        tenant("moved", &[(1, As::Active), (2, As::Primary)]),
        tenant("left", &[(1, As::Disabled), (2, As::Primary)]),
        tenant("read-only", &[(1, As::Active)]),
        tenant("disabled", &[(1, As::Disabled)]),
        tenant("unassigned", &[]),
    ])
}

fn start(io: Io) -> Proxy {
    Setup::serve(io, &config()).start()
}

/// The DEK and EDEK of a new wrap.
#[track_caller]
fn wrap(proxy: &Proxy, tenant: &str) -> (String, String) {
    let answer = proxy.call("document/wrap", &metadata(tenant)).ok();
    (
        text(&answer, "dek").to_owned(),
        text(&answer, "edek").to_owned(),
    )
}

#[track_caller]
fn unwrap(proxy: &Proxy, tenant: &str, edek: &str) -> Answer {
    proxy.call(
        "document/unwrap",
        &request(tenant, json!({ "encryptedDocumentKey": edek })),
    )
}

#[track_caller]
fn rekey(proxy: &Proxy, from: &str, edek: &str, to: &str) -> Answer {
    proxy.call(
        "document/rekey",
        &request(
            from,
            json!({ "encryptedDocumentKey": edek, "newTenantId": to }),
        ),
    )
}

/// The config that an EDEK names, after a look at its form.
#[track_caller]
fn config_of(edek: &str) -> i32 {
    let bytes = base64(edek);
    assert!(
        !looks_like_alloy_header(&bytes),
        "one client would take this for a header of its own: {edek}"
    );
    let parsed = EncryptedDeks::from_bytes(&bytes).expect("our own EDEK");
    let [entry] = parsed.encrypted_deks.as_slice() else {
        panic!("not one entry: {parsed:?}")
    };
    assert!(
        entry.tenant_id.is_empty() && !entry.encrypted_dek_data.is_empty(),
        "{entry:?}"
    );
    assert_eq!(
        (
            entry.leased_key_id,
            entry.leased_key_iv.len(),
            entry.encrypted_leased_key_data.len()
        ),
        (0, 0, 0)
    );
    entry.kms_config_id
}

on_both! {
    fn a_wrapped_key_comes_back(io) {
        let proxy = start(io);
        let (dek, edek) = wrap(&proxy, "acme");
        assert_eq!(base64(&dek).len(), 32);
        assert_eq!(config_of(&edek), 1);
        let unwrapped = unwrap(&proxy, "acme", &edek).ok();
        assert_eq!(unwrapped, json!({ "dek": dek }));
    }

    fn every_wrap_gives_another_key(io) {
        let proxy = start(io);
        let mut keys: Vec<_> = (0..20).map(|_| wrap(&proxy, "acme").0).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 20);
    }

    /// As issued, with a stray field of one old client, with one client's tenant id, without padding; and under a leased
    /// key, which this version does not make but reads.
    fn edeks_of_other_origin_are_read(io) {
        const DEK: &str = "r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=";
        const ISSUED: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKQ==";
        const STRAY_FIELD: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKTIEYWNtZQ==";
        const LEASED: &str = "Co0BCjDbDJIiUdkh/W2RYPtBlAFdgZFcJtAeGnC/6FxqXs4WTe3vpn5J2ikftnx2Kc9n4L8QKRjZNiIM1br530s4xSCVFDPgKkYKRApATEtXMYzPUy+9CMYNDqVd6TpEdUCuRqvON204TbEC8VExy1sVTYFu3CTbEYAWn/fwhlYUOjYoGf+EJorcniZzyxAp";
        const LEASED_WITH_TENANT: &str = "CpMBCjDbDJIiUdkh/W2RYPtBlAFdgZFcJtAeGnC/6FxqXs4WTe3vpn5J2ikftnx2Kc9n4L8QKRjZNiIM1br530s4xSCVFDPgKkYKRApATEtXMYzPUy+9CMYNDqVd6TpEdUCuRqvON204TbEC8VExy1sVTYFu3CTbEYAWn/fwhlYUOjYoGf+EJorcniZzyxApMgRhY21l";
        const KEY: [u8; 32] = [
            0x80, 0xf3, 0x8b, 0xd8, 0x8b, 0x96, 0x66, 0x85, 0x1c, 0xdf, 0x73, 0xa8, 0xa0, 0x2c, 0x38, 0x78,
            0x94, 0xc0, 0x96, 0x63, 0xd2, 0xb5, 0x34, 0xa3, 0x9c, 0x3f, 0xdb, 0xf0, 0xda, 0x40, 0x4d, 0x88,
        ];
        let config = config::file(&[config::local_kms_with_key(41, &KEY), tenant("acme", &[(41, As::Primary)])]);
        let proxy = Setup::serve(io, &config).start();
        let mut with_tenant = EncryptedDeks::from_bytes(&base64(ISSUED)).expect("it is one");
        with_tenant.encrypted_deks[0].tenant_id = b"acme".to_vec();
        let with_tenant = to_base64(&prost::Message::encode_to_vec(&with_tenant));
        let without_padding = ISSUED.trim_end_matches('=');
        let with_white_space = format!(" {ISSUED}\n");
        for edek in [ISSUED, STRAY_FIELD, &with_tenant, without_padding, &with_white_space, LEASED, LEASED_WITH_TENANT] {
            assert_eq!(unwrap(&proxy, "acme", edek).ok(), json!({ "dek": DEK }), "{edek:?}");
        }
        let mut changed = EncryptedDeks::from_bytes(&base64(LEASED)).expect("it is one");
        changed.encrypted_deks[0].encrypted_dek_data[0] ^= 1;
        unwrap(&proxy, "acme", &to_base64(&prost::Message::encode_to_vec(&changed))).refused(422, 203);
    }

    fn what_is_no_edek_is_203(io) {
        let proxy = start(io);
        let (_, edek) = wrap(&proxy, "acme");
        let truncated = to_base64(&base64(&edek)[..20]);
        for bad in [truncated.as_str(), "ZWRlaw==", "", "!!!!", "AA==", "no base64 at all"] {
            unwrap(&proxy, "acme", bad).refused(422, 203);
            rekey(&proxy, "acme", bad, "globex").refused(422, 203);
        }
    }

    fn a_tampered_edek_is_refused_by_the_kms(io) {
        let proxy = start(io);
        let (_, edek) = wrap(&proxy, "acme");
        let mut parsed = EncryptedDeks::from_bytes(&base64(&edek)).expect("our own EDEK");
        *parsed.encrypted_deks[0].encrypted_dek_data.last_mut().expect("it is not empty") ^= 1;
        let tampered = to_base64(&prost::Message::encode_to_vec(&parsed));
        unwrap(&proxy, "acme", &tampered).refused(502, 205);
    }

    fn an_unknown_tenant_is_201_whatever_is_asked(io) {
        let proxy = start(io);
        let (_, edek) = wrap(&proxy, "acme");
        for tenant in ["nobody", "ACME", "acme ", "disabled", "unassigned"] {
            let calls = [
                ("document/wrap", json!({})),
                ("document/unwrap", json!({ "encryptedDocumentKey": edek })),
                ("document/batch-wrap", json!({ "documentIds": ["a"] })),
                ("document/batch-unwrap", json!({ "edeks": { "a": edek } })),
                ("document/rekey", json!({ "encryptedDocumentKey": edek, "newTenantId": "acme" })),
            ];
            for (endpoint, members) in calls {
                let message = proxy.call(endpoint, &request(tenant, members)).refused(422, 201);
                assert!(message.contains("No configurations available for the provided tenant"), "{message}");
            }
            rekey(&proxy, "acme", &edek, tenant).refused(422, 201);
        }
    }

    fn without_a_primary_config_only_reading_works(io) {
        let proxy = start(io);
        let (dek, edek) = wrap_at(&proxy, "read-only", 1);
        proxy.call("document/wrap", &metadata("read-only")).refused(422, 200);
        proxy.call("document/batch-wrap", &request("read-only", json!({ "documentIds": ["a", "b"] }))).refused(422, 200);
        assert_eq!(unwrap(&proxy, "read-only", &edek).ok()["dek"], json!(dek));
        let (_, source) = wrap(&proxy, "acme");
        rekey(&proxy, "acme", &source, "read-only").refused(422, 200);
    }

    fn a_config_that_is_active_but_not_primary_still_unwraps(io) {
        let proxy = start(io);
        let (dek, edek) = wrap_at(&proxy, "moved", 1);
        assert_eq!(config_of(&edek), 1);
        assert_eq!(unwrap(&proxy, "moved", &edek).ok()["dek"], json!(dek));
        assert_eq!(config_of(&wrap(&proxy, "moved").1), 2, "new keys go to the primary");
    }

    fn a_disabled_or_foreign_config_is_202(io) {
        let proxy = start(io);
        let (_, edek) = wrap(&proxy, "acme");
        for tenant in ["left", "globex"] {
            let message = unwrap(&proxy, tenant, &edek).refused(422, 202);
            assert!(message.contains("is not assigned to tenant"), "{message}");
            rekey(&proxy, tenant, &edek, "acme").refused(422, 202);
        }
    }

    fn a_rekeyed_key_is_the_same_key_for_the_other_tenant_alone(io) {
        let proxy = start(io);
        let (dek, edek) = wrap(&proxy, "acme");
        let moved = rekey(&proxy, "acme", &edek, "globex").ok();
        assert_eq!(text(&moved, "dek"), dek);
        let moved = text(&moved, "edek");
        assert_eq!(config_of(moved), 2);
        assert_eq!(unwrap(&proxy, "globex", moved).ok()["dek"], json!(dek));
        unwrap(&proxy, "acme", moved).refused(422, 202);
    }

    fn a_rekey_to_the_same_tenant_moves_to_its_primary_config(io) {
        let proxy = start(io);
        let (dek, edek) = wrap_at(&proxy, "moved", 1);
        let moved = rekey(&proxy, "moved", &edek, "moved").ok();
        assert_eq!(text(&moved, "dek"), dek);
        assert_eq!(config_of(text(&moved, "edek")), 2);
        assert_eq!(unwrap(&proxy, "moved", text(&moved, "edek")).ok()["dek"], json!(dek));
    }

    fn a_batch_wraps_each_id_and_echoes_it(io) {
        let proxy = start(io);
        let ids = ["", "a", "0", "two words", "ключ/🔑", "\"quoted\\", "a"];
        let answer = proxy.call("document/batch-wrap", &request("acme", json!({ "documentIds": ids }))).ok();
        assert_eq!(answer["failures"], json!({}));
        let keys = answer["keys"].as_object().expect("an object");
        assert_eq!(keys.len(), 6, "the duplicate is answered once: {keys:?}");
        let edeks: Value = keys.iter().map(|(id, key)| (id.clone(), key["edek"].clone())).collect();
        let read = proxy.call("document/batch-unwrap", &request("acme", json!({ "edeks": edeks }))).ok();
        assert_eq!(read["failures"], json!({}));
        for id in ids {
            assert_eq!(read["keys"][id], json!({ "dek": keys[id]["dek"] }), "{id:?}");
        }
    }

    fn a_bad_item_fails_alone_with_its_own_code(io) {
        let proxy = start(io);
        let (dek, good) = wrap(&proxy, "moved");
        let (_, foreign) = wrap(&proxy, "acme");
        let edeks = json!({ "good": good, "bad": "ZWRlaw==", "disabled": foreign });
        let answer = proxy.call("document/batch-unwrap", &request("left", json!({ "edeks": edeks }))).ok();
        // Local keys bind the tenant, so what `moved` wrapped does not open for `left`.
        assert_eq!(answer["keys"], json!({}));
        let message = assert_error_object(&answer["failures"]["bad"], 203);
        assert!(message.contains("Provided EDEK didn't contain IronCore EDEKs"), "{message}");
        assert_error_object(&answer["failures"]["disabled"], 202);
        assert_error_object(&answer["failures"]["good"], 205);

        let edeks = json!({ "good": good, "bad": "ZWRlaw==" });
        let answer = proxy.call("document/batch-unwrap", &request("moved", json!({ "edeks": edeks }))).ok();
        assert_eq!(answer["keys"], json!({ "good": { "dek": dek } }));
        assert_eq!(answer["failures"].as_object().map(serde_json::Map::len), Some(1));
    }

    fn a_batch_may_be_empty_or_an_array(io) {
        let proxy = start(io);
        let empty = json!({ "keys": {}, "failures": {} });
        for (endpoint, members) in [
            ("document/batch-wrap", json!({ "documentIds": [] })),
            ("document/batch-unwrap", json!({ "edeks": {} })),
            ("document/batch-unwrap", json!({ "edeks": [] })),
        ] {
            assert_eq!(proxy.call(endpoint, &request("acme", members)).ok(), empty);
        }
        let (dek, edek) = wrap(&proxy, "acme");
        let answer = proxy.call("document/batch-unwrap", &request("acme", json!({ "edeks": [edek, "ZWRlaw=="] }))).ok();
        assert_eq!(answer["keys"], json!({ "0": { "dek": dek } }));
        assert_error_object(&answer["failures"]["1"], 203);
    }

    fn ten_thousand_items_are_one_batch(io) {
        let proxy = start(io);
        let ids: Vec<_> = (0..10_000).map(|n| n.to_string()).collect();
        let answer = proxy.call("document/batch-wrap", &request("acme", json!({ "documentIds": ids }))).ok();
        let keys = answer["keys"].as_object().expect("an object");
        assert_eq!(keys.len(), ids.len());
        let edeks: Value = keys.iter().map(|(id, key)| (id.clone(), key["edek"].clone())).collect();
        let read = proxy.call("document/batch-unwrap", &request("acme", json!({ "edeks": edeks }))).ok();
        assert_eq!(read["keys"]["9999"], json!({ "dek": keys["9999"]["dek"] }));
        assert_eq!(read["keys"].as_object().map(serde_json::Map::len), Some(ids.len()));
    }

    fn a_change_of_the_file_takes_effect_without_a_restart(io) {
        let proxy = start(io);
        let (_, edek) = wrap(&proxy, "acme");
        let from = proxy.log.len();
        proxy.replace_config(&config::file(&[
            local_kms(1, 0x11),
            local_kms(2, 0x22),
            tenant("acme", &[(1, As::Disabled), (2, As::Primary)]),
        ]));
        crate::process::wait_for_snapshot(&proxy, from);
        unwrap(&proxy, "acme", &edek).refused(422, 202);
        assert_eq!(config_of(&wrap(&proxy, "acme").1), 2);
        proxy.call("document/wrap", &metadata("globex")).refused(422, 201);
    }
}

/// A wrap by a proxy where `config` is the tenant's primary, with the same keys as `proxy` has.
#[track_caller]
fn wrap_at(proxy: &Proxy, tenant: &str, config: u32) -> (String, String) {
    let keys = [local_kms(1, 0x11), local_kms(2, 0x22)];
    let file = config::file(&[
        keys.concat(),
        config::tenant(tenant, &[(config, As::Primary)]),
    ]);
    let other = Setup::serve(proxy.io(), &file).start();
    wrap(&other, tenant)
}
