use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::*;
use crate::{account::AccountId, envelope::SigningKey};

/// A vendor, its segment at epoch 2, an account of it, and a snapshot for that.
struct World {
    vendor_key: SigningKey,
    account: ServiceAccount,
    snapshot: SnapshotAnswer,
    random: ChaCha20Rng,
}

const LOCAL: &str =
    r#"{"type":"LOCAL","credentials":{"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}"#;

fn world(seed: u64) -> World {
    let mut random = ChaCha20Rng::seed_from_u64(seed);
    let vendor_key = SigningKey::generate(&mut random).unwrap();
    let account = ServiceAccount {
        broker_url: "https://broker.example.com".to_owned(),
        id: AccountId::new([1; 12], &vendor_key.verifying()),
        config: 12,
        segment: 7,
        encryption_key: PrivateKey::generate(&mut random),
        signing_key: SigningKey::generate(&mut random).unwrap(),
    };
    let (vendor, epoch) = (account.vendor(), Epoch(2));
    let private = PrivateKey::generate(&mut random);
    let key = SegmentKey {
        segment: 7,
        epoch,
        public: private.public(),
    };
    let sealed_key = envelope::seal(
        &account.encryption_key.public(),
        epoch,
        &Segment::binding(vendor, 12),
        private.expose(),
        &mut random,
    )
    .unwrap();
    let mut config = KmsConfig {
        id: 41,
        schema: kms::SCHEMA,
        revision: 3,
        leasing_allowed: true,
        envelope: Vec::new(),
    };
    config.envelope = envelope::seal(
        &key.public,
        epoch,
        &config.binding(vendor),
        LOCAL.as_bytes(),
        &mut random,
    )
    .unwrap();
    let mut logging = LoggingConfig {
        id: 5,
        schema: 1,
        revision: 1,
        envelope: Vec::new(),
    };
    logging.envelope = envelope::seal(
        &key.public,
        epoch,
        &logging.binding(vendor),
        b"{}",
        &mut random,
    )
    .unwrap();
    let snapshot = SnapshotAnswer {
        format: SNAPSHOT_FORMAT,
        version: 9,
        vendor_key: vendor_key.verifying().as_bytes().to_vec(),
        segment: Segment {
            id: 7,
            epoch,
            public_key: key.public.as_bytes().to_vec(),
            signature: key.sign(&vendor_key).unwrap().to_vec(),
            sealed_key,
        },
        kms_configs: vec![config],
        logging_configs: vec![logging],
        tenants: vec![Tenant {
            id: "acme".to_owned(),
            tags: vec!["eu".to_owned()],
            leasing_required: false,
            assignments: vec![Assignment {
                kms: 41,
                active: true,
                primary: true,
            }],
            logging: Some(5),
        }],
        secrets: vec![TenantSecret {
            id: 9001,
            tenant: "acme".to_owned(),
            secret_type: SecretType::Deterministic,
            path: "p".to_owned(),
            status: RotationStatus::InRotation,
            edek: vec![1, 2, 3],
        }],
    };
    World {
        vendor_key,
        account,
        snapshot,
        random,
    }
}

#[test]
fn a_snapshot_is_read_as_it_was_written_and_opens() {
    let World {
        account, snapshot, ..
    } = world(1);
    let json = serde_json::to_vec(&snapshot).unwrap();
    let read = SnapshotAnswer::from_json(&json).unwrap();
    assert_eq!(read, snapshot);
    let segment = read.open(&account).unwrap();
    let config = segment.kms_config(&read.kms_configs[0]).unwrap();
    assert_eq!((config.id, config.leasing_allowed), (41, true));
    let logging = segment.logging_config(&read.logging_configs[0]);
    assert_eq!(*logging.unwrap(), b"{}");
}

#[test]
fn the_words_of_the_document_are_these() {
    let json = serde_json::to_value(world(1).snapshot).unwrap();
    assert_eq!(json["format"], 1);
    assert_eq!(json["segment"]["epoch"], 2);
    assert_eq!(
        json["tenants"][0],
        serde_json::json!({
            "id": "acme", "tags": ["eu"], "leasingRequired": false, "logging": 5,
            "assignments": [{ "kms": 41, "active": true, "primary": true }],
        })
    );
    assert_eq!(
        json["secrets"][0],
        serde_json::json!({
            "id": 9001, "tenant": "acme", "type": "deterministic", "path": "p", "status": "in-rotation", "edek": "AQID",
        })
    );
    let outcome = SecretOutcome::Refused(RefusedSecret::UnknownTenant);
    assert_eq!(
        serde_json::to_value(outcome).unwrap(),
        serde_json::json!({ "refused": "unknown-tenant" })
    );
}

#[test]
fn what_a_later_version_adds_is_ignored_and_another_format_is_refused() {
    let mut json = serde_json::to_value(world(1).snapshot).unwrap();
    json["more"] = 1.into();
    json["tenants"][0]["more"] = 1.into();
    assert!(SnapshotAnswer::from_json(json.to_string().as_bytes()).is_ok());
    let other = SnapshotAnswer::from_json(br#"{"format":2}"#);
    assert_eq!(other, Err(SnapshotError::UnknownFormat(2)));
    for garbage in ["", "[]", "{}", r#"{"format":1}"#, "<html>"] {
        let read = SnapshotAnswer::from_json(garbage.as_bytes());
        assert!(
            matches!(read, Err(SnapshotError::Malformed(_))),
            "{garbage}"
        );
    }
}

#[test]
fn nothing_of_another_vendor_is_believed() {
    let World { account, .. } = world(1);
    let stranger = world(2).snapshot;
    assert_eq!(
        stranger.open(&account).unwrap_err(),
        SnapshotError::OtherVendor
    );

    // The right vendor's key, and a segment key that it did not sign.
    let mut forged = stranger;
    forged.vendor_key = world(1).snapshot.vendor_key;
    assert_eq!(forged.open(&account).unwrap_err(), SnapshotError::NotSigned);

    // Another segment of the same vendor.
    let World {
        vendor_key,
        account,
        mut snapshot,
        ..
    } = world(1);
    snapshot.segment.id = 8;
    snapshot.segment.signature = snapshot
        .segment
        .key()
        .unwrap()
        .sign(&vendor_key)
        .unwrap()
        .to_vec();
    assert_eq!(
        snapshot.open(&account).unwrap_err(),
        SnapshotError::OtherVendor
    );
}

#[test]
fn the_segments_key_is_the_one_that_the_vendor_signed() {
    let World {
        account,
        mut snapshot,
        mut random,
        ..
    } = world(1);
    // Whoever stores the account's public key can seal to it.
    let own = PrivateKey::generate(&mut random);
    snapshot.segment.sealed_key = envelope::seal(
        &account.encryption_key.public(),
        Epoch(2),
        &Segment::binding(account.vendor(), 12),
        own.expose(),
        &mut random,
    )
    .unwrap();
    assert_eq!(
        snapshot.open(&account).unwrap_err(),
        SnapshotError::OtherSegmentKey
    );
    let other_account = ServiceAccount {
        encryption_key: PrivateKey::generate(&mut random),
        ..account
    };
    assert_eq!(
        snapshot.open(&other_account).unwrap_err(),
        SnapshotError::SegmentKey(OpenError::NotAuthentic)
    );
}

#[test]
fn swapped_changed_and_unknown_configs_do_not_open() {
    let World {
        account, snapshot, ..
    } = world(1);
    let segment = snapshot.open(&account).unwrap();
    let good = &snapshot.kms_configs[0];
    let other_id = KmsConfig {
        id: 42,
        ..good.clone()
    };
    let other_revision = KmsConfig {
        revision: 4,
        ..good.clone()
    };
    for config in [other_id, other_revision] {
        assert_eq!(
            segment.kms_config(&config).unwrap_err(),
            ConfigError::Envelope(OpenError::NotAuthentic)
        );
    }
    let other_schema = KmsConfig {
        schema: 2,
        ..good.clone()
    };
    assert_eq!(
        segment.kms_config(&other_schema).unwrap_err(),
        ConfigError::UnknownSchema(2)
    );
}

#[test]
fn a_snapshot_does_not_go_back() {
    let snapshot = world(1).snapshot;
    let mut seen = Seen::default();
    seen.advance(&snapshot).unwrap();
    seen.advance(&snapshot).unwrap();

    let older = |change: fn(&mut SnapshotAnswer), seen: &mut Seen| {
        let mut older = snapshot.clone();
        older.version += 1;
        change(&mut older);
        let before = seen.clone();
        let why = seen.advance(&older).unwrap_err().to_string();
        assert_eq!(*seen, before, "what is refused is not remembered");
        why
    };
    let why = older(|older| older.version = 8, &mut seen);
    assert!(why.contains("version 8 after 9"), "{why}");
    let why = older(|older| older.segment.epoch = Epoch(1), &mut seen);
    assert!(why.contains("epoch 1 after 2"), "{why}");
    let why = older(|older| older.kms_configs[0].revision = 2, &mut seen);
    assert!(why.contains("KMS config 41: revision 2 after 3"), "{why}");

    // A config that was gone for a while comes back no older than it was.
    let mut without = snapshot.clone();
    without.version = 10;
    without.kms_configs.clear();
    seen.advance(&without).unwrap();
    older(
        |older| {
            older.version = 11;
            older.kms_configs[0].revision = 2;
        },
        &mut seen,
    );
}
