//! Keys at AWS, played by two strangers that check every signature: moto, whose refusals are XML, and ministack, whose
//! refusals are AWS's own JSON. Then what happens when the KMS is slow, gone or talks nonsense.

use std::{
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{
    config::{self, As, AwsKms, tenant},
    fake_kms::FakeKms,
    http::assert_error_object,
    metadata, on_both,
    peers::Peer,
    proxy::{Io, Proxy, Setup},
    request, text,
};

/// What a client may be made to wait by a KMS that does not answer: the longest time for one operation, and a margin
/// for a busy machine.
const KMS_WAIT_MAX: Duration = Duration::from_secs(10);

/// A proxy with one tenant, `acme`, whose one key is `kms`.
#[track_caller]
fn start(io: Io, kms: &AwsKms) -> Proxy {
    let file = config::file(&[kms.toml(), tenant("acme", &[(kms.id, As::Primary)])]);
    Setup::serve(io, &file).start()
}

/// Wraps and unwraps once.
#[track_caller]
fn assert_works(proxy: &Proxy, tenant: &str) {
    let wrapped = proxy.call("document/wrap", &metadata(tenant)).ok();
    let edek = text(&wrapped, "edek");
    let unwrapped = proxy
        .call(
            "document/unwrap",
            &request(tenant, json!({ "encryptedDocumentKey": edek })),
        )
        .ok();
    assert_eq!(unwrapped["dek"], wrapped["dek"]);
}

#[track_caller]
fn assert_names_aws(message: &str, secrets: &AwsKms) {
    assert!(
        message.contains("AWS"),
        "the message says whose fault it is: {message}"
    );
    for secret in [&secrets.user.secret_access_key, &secrets.user.access_key_id] {
        assert!(!message.contains(secret.as_str()), "{message}");
    }
}

on_both! {
    fn two_tenants_at_moto_with_every_signature_checked(io) {
        let moto = Peer::moto();
        let file = config::file(&[
            AwsKms::at(moto, 1, 0).toml(),
            AwsKms::at(moto, 2, 1).toml(),
            tenant("acme", &[(1, As::Primary)]),
            tenant("globex", &[(2, As::Primary)]),
        ]);
        let proxy = Setup::serve(io, &file).start();
        for _ in 0..3 {
            assert_works(&proxy, "acme");
            assert_works(&proxy, "globex");
        }
        let wrapped = proxy.call("document/wrap", &metadata("acme")).ok();
        let edek = text(&wrapped, "edek");
        let moved = request("acme", json!({ "encryptedDocumentKey": edek, "newTenantId": "globex" }));
        let moved = proxy.call("document/rekey", &moved).ok();
        assert_eq!(moved["dek"], wrapped["dek"]);
        let read = request("globex", json!({ "encryptedDocumentKey": moved["edek"] }));
        assert_eq!(proxy.call("document/unwrap", &read).ok()["dek"], wrapped["dek"]);
    }

    fn a_batch_at_moto_fails_and_succeeds_item_by_item(io) {
        let proxy = start(io, &AwsKms::at(Peer::moto(), 1, 0));
        let ids: Vec<_> = (0..50).map(|n| format!("document {n}")).collect();
        let wrapped = proxy.call("document/batch-wrap", &request("acme", json!({ "documentIds": ids }))).ok();
        assert_eq!(wrapped["failures"], json!({}));
        let mut edeks: serde_json::Map<_, _> =
            ids.iter().map(|id| (id.clone(), wrapped["keys"][id]["edek"].clone())).collect();
        edeks.insert("bad".into(), json!("ZWRlaw=="));
        let read = proxy.call("document/batch-unwrap", &request("acme", json!({ "edeks": edeks }))).ok();
        assert_eq!(read["keys"].as_object().map(serde_json::Map::len), Some(50));
        assert_eq!(read["keys"]["document 7"]["dek"], wrapped["keys"]["document 7"]["dek"]);
        assert_error_object(&read["failures"]["bad"], 203);
    }

    fn moto_behind_tls_is_trusted_by_its_ca_alone(io) {
        let kms = AwsKms::at(Peer::moto_tls(), 1, 0);
        assert!(kms.endpoint.starts_with("https:"));
        assert_works(&start(io, &kms), "acme");
        let untrusted = AwsKms { ca_file: None, ..kms };
        let message = start(io, &untrusted).call("document/wrap", &metadata("acme")).refused(502, 208);
        assert!(message.contains("certificate"), "{message}");
    }

    fn a_wrong_secret_is_206_from_both(io) {
        for peer in [Peer::moto(), Peer::ministack()] {
            let good = AwsKms::at(peer, 1, 0);
            let edek = text(&start(io, &good).call("document/wrap", &metadata("acme")).ok(), "edek").to_owned();
            let kms = good.with_secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
            let proxy = start(io, &kms);
            assert_names_aws(&proxy.call("document/wrap", &metadata("acme")).refused(422, 206), &kms);
            let read = request("acme", json!({ "encryptedDocumentKey": edek }));
            assert_names_aws(&proxy.call("document/unwrap", &read).refused(422, 206), &kms);
            let batch = proxy.call("document/batch-wrap", &request("acme", json!({ "documentIds": ["a", "b"] }))).ok();
            assert_eq!(batch["keys"], json!({}));
            assert_error_object(&batch["failures"]["a"], 206);
        }
    }

    fn an_unknown_access_key_is_206_from_both(io) {
        for peer in [Peer::moto(), Peer::ministack()] {
            let good = AwsKms::at(peer, 1, 0);
            let mut user = good.user.clone();
            user.access_key_id = "AKIAIOSFODNN7EXAMPLE".into();
            let kms = good.with_user(user);
            assert_names_aws(&start(io, &kms).call("document/wrap", &metadata("acme")).refused(422, 206), &kms);
        }
    }

    fn a_missing_key_is_207_from_both(io) {
        for peer in [Peer::moto(), Peer::ministack()] {
            let kms = AwsKms::at(peer, 1, 0).with_key_id("00000000-0000-4000-8000-000000000000");
            assert_names_aws(&start(io, &kms).call("document/wrap", &metadata("acme")).refused(422, 207), &kms);
        }
    }

    fn a_user_without_permission_is_207(io) {
        let moto = Peer::moto();
        let kms = AwsKms::at(moto, 1, 0).with_user(moto.user_called("denied"));
        start(io, &kms).call("document/wrap", &metadata("acme")).refused(422, 207);
    }

    fn a_disabled_key_is_207(io) {
        let ministack = Peer::ministack();
        let kms = AwsKms::at(ministack, 1, 0).with_key_id(ministack.fact("disabled_key"));
        let message = start(io, &kms).call("document/wrap", &metadata("acme")).refused(422, 207);
        assert!(message.contains("DisabledException"), "the KMS's own code is passed on: {message}");
    }

    fn a_ciphertext_that_moto_cannot_open_is_205(io) {
        let moto = Peer::moto();
        let proxy = start(io, &AwsKms::at(moto, 1, 0));
        let edek = text(&proxy.call("document/wrap", &metadata("acme")).ok(), "edek").to_owned();
        let mut parsed = tsp_wire::edek::EncryptedDeks::from_bytes(&crate::support::base64(&edek)).expect("our own EDEK");
        *parsed.encrypted_deks[0].encrypted_dek_data.last_mut().expect("it is not empty") ^= 1;
        let tampered = crate::support::to_base64(&prost::Message::encode_to_vec(&parsed));
        proxy.call("document/unwrap", &request("acme", json!({ "encryptedDocumentKey": tampered }))).refused(502, 205);
    }

    fn a_stopped_moto_is_208_and_a_local_neighbour_does_not_notice(io) {
        let moto = Peer::start_moto();
        let file = config::file(&[
            AwsKms::at(&moto, 1, 0).toml(),
            config::local_kms(2, 0x22),
            tenant("acme", &[(1, As::Primary)]),
            tenant("globex", &[(2, As::Primary)]),
        ]);
        let proxy = Setup::serve(io, &file).start();
        assert_works(&proxy, "acme");
        let edek = text(&proxy.call("document/wrap", &metadata("acme")).ok(), "edek").to_owned();
        moto.stop();
        for _ in 0..3 {
            proxy.call("document/wrap", &metadata("acme")).refused(502, 208);
            proxy.call("document/unwrap", &request("acme", json!({ "encryptedDocumentKey": edek }))).refused(502, 208);
            assert_works(&proxy, "globex");
        }
        let batch = proxy.call("document/batch-wrap", &request("acme", json!({ "documentIds": ["a", "b"] }))).ok();
        assert_error_object(&batch["failures"]["a"], 208);
    }

    fn a_kms_that_never_answers_is_208_in_time(io) {
        let kms = FakeKms::silent();
        let proxy = start(io, &AwsKms::unchecked(1, &kms.url()));
        let began = Instant::now();
        proxy.call("document/wrap", &metadata("acme")).refused(502, 208);
        assert!(began.elapsed() < KMS_WAIT_MAX, "it took {:?}", began.elapsed());
    }

    fn a_kms_that_takes_no_connection_is_208_in_time(io) {
        // A full backlog: connects hang, as they do behind a firewall that drops.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let proxy = start(io, &AwsKms::unchecked(1, &format!("http://{address}")));
        let began = Instant::now();
        proxy.call("document/wrap", &metadata("acme")).refused(502, 208);
        assert!(began.elapsed() < KMS_WAIT_MAX, "it took {:?}", began.elapsed());
    }

    fn an_unreachable_kms_is_tried_twice(io) {
        let kms = FakeKms::asking();
        let proxy = start(io, &AwsKms::unchecked(1, &kms.url()));
        thread::scope(|scope| {
            let client = scope.spawn(|| proxy.call("document/wrap", &metadata("acme")));
            kms.next_call().answer(503, &json!({ "__type": "ServiceUnavailableException", "message": "busy" }));
            kms.next_call().succeed();
            client.join().expect("the client is answered").ok();

            let client = scope.spawn(|| proxy.call("document/wrap", &metadata("acme")));
            kms.next_call().hang_up();
            kms.next_call().answer(500, &json!({ "__type": "KMSInternalException" }));
            client.join().expect("the client is answered").refused(502, 208);
        });
    }

    fn nonsense_from_the_kms_is_204_and_throttling_is_429(io) {
        let kms = FakeKms::asking();
        let proxy = start(io, &AwsKms::unchecked(1, &kms.url()));
        thread::scope(|scope| {
            let client = scope.spawn(|| proxy.call("document/wrap", &metadata("acme")));
            kms.next_call().answer(200, &json!({ "CiphertextBlob": 7 }));
            client.join().expect("the client is answered").refused(502, 204);

            let client = scope.spawn(|| proxy.call("document/wrap", &metadata("acme")));
            let throttled = json!({ "__type": "ThrottlingException", "message": "Rate exceeded" });
            kms.next_call().answer(400, &throttled);
            kms.next_call().answer(400, &throttled);
            client.join().expect("the client is answered").refused(429, 209);
        });
    }

    /// A tenant whose KMS hangs must not take the others' turns.
    fn a_hanging_kms_does_not_slow_another_tenant(io) {
        let hanging = FakeKms::asking();
        let file = config::file(&[
            AwsKms::unchecked(1, &hanging.url()).toml(),
            config::local_kms(2, 0x22),
            tenant("acme", &[(1, As::Primary)]),
            tenant("globex", &[(2, As::Primary)]),
        ]);
        let proxy = Setup::serve(io, &file).start();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..20).map(|_| scope.spawn(|| proxy.call("document/wrap", &metadata("acme")))).collect();
            let held: Vec<_> = clients.iter().map(|_| hanging.next_call()).collect();
            // All twenty are inside the KMS now.
            for _ in 0..20 {
                proxy.call("document/wrap", &metadata("globex")).ok();
            }
            held.into_iter().for_each(crate::support::fake_kms::Call::succeed);
            for client in clients {
                client.join().expect("the client is answered").ok();
            }
        });
    }
}
