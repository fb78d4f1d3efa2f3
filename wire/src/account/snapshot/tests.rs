use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::*;
use crate::{
    account::{
        AccountId, ConfigError, LeftOut, Memory, kms,
        signed::{InvitationKey, Voucher, sign_assignment, sign_content},
    },
    envelope::SigningKey,
};

/// A vendor, its segment at epoch 2, an account of it, and a snapshot for that.
pub(in crate::account) struct World {
    pub(in crate::account) vendor_key: SigningKey,
    pub(in crate::account) account: ServiceAccount,
    pub(in crate::account) snapshot: SnapshotAnswer,
    pub(in crate::account) random: ChaCha20Rng,
}

const LOCAL: &str =
    r#"{"type":"LOCAL","credentials":{"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}"#;

fn sealed(
    key: &SegmentKey,
    signer: &SigningKey,
    binding: &Binding,
    tenant: &str,
    content: &str,
    random: &mut ChaCha20Rng,
) -> Vec<u8> {
    let signed = sign_content(signer, binding, tenant, content.as_bytes()).unwrap();
    envelope::seal(&key.public, key.epoch, binding, &signed, random).unwrap()
}

fn assigned(signer: &SigningKey, vendor: Vendor, kms: u64, tenant: &str) -> Assignment {
    Assignment {
        kms,
        active: true,
        primary: true,
        signer: signer.verifying().as_bytes().to_vec(),
        signature: sign_assignment(signer, vendor, kms, tenant)
            .unwrap()
            .to_vec(),
    }
}

pub(in crate::account) fn world(seed: u64) -> World {
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
    let binding = config.binding(vendor);
    config.envelope = sealed(&key, &vendor_key, &binding, "", LOCAL, &mut random);
    let mut logging = LoggingConfig {
        id: 5,
        schema: 1,
        revision: 1,
        envelope: Vec::new(),
    };
    let binding = logging.binding(vendor);
    logging.envelope = sealed(&key, &vendor_key, &binding, "acme", "{}", &mut random);
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
            assignments: vec![assigned(&vendor_key, vendor, 41, "acme")],
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
        signers: Vec::new(),
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
    let configs = segment.configs(&read, &mut Memory::default());
    assert_eq!(configs.left_out, []);
    let config = &configs.kms[0];
    assert_eq!((config.id, config.leasing_allowed), (41, true));
    let assignment = &configs.tenants[0].assignments[0];
    assert_eq!(
        (assignment.kms, assignment.active, assignment.primary),
        (41, true, true)
    );
    let logging = segment.logging_config("acme", &read.logging_configs[0]);
    assert_eq!(*logging.unwrap(), b"{}");
}

#[test]
fn the_words_of_the_document_are_these() {
    let mut json = serde_json::to_value(world(1).snapshot).unwrap();
    let assignment = &mut json["tenants"][0]["assignments"][0];
    assert_eq!(assignment["signer"].as_str().unwrap().len(), 44);
    assert_eq!(assignment["signature"].as_str().unwrap().len(), 88);
    assignment["signer"] = "S".into();
    assignment["signature"] = "s".into();
    assert_eq!(json["format"], 1);
    assert_eq!(json["segment"]["epoch"], 2);
    assert_eq!(
        json["tenants"][0],
        serde_json::json!({
            "id": "acme", "tags": ["eu"], "leasingRequired": false, "logging": 5,
            "assignments": [{ "kms": 41, "active": true, "primary": true, "signer": "S", "signature": "s" }],
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
    let opened = |config: &KmsConfig| {
        let mut changed = snapshot.clone();
        changed.kms_configs = vec![config.clone()];
        let configs = segment.configs(&changed, &mut Memory::default());
        configs
            .left_out
            .into_iter()
            .next()
            .map(|left_out| left_out.why)
    };
    assert_eq!(opened(good), None);
    for config in [other_id, other_revision] {
        assert_eq!(
            opened(&config),
            Some(ConfigError::Envelope(OpenError::NotAuthentic))
        );
    }
    let other_schema = KmsConfig {
        schema: 2,
        ..good.clone()
    };
    assert_eq!(opened(&other_schema), Some(ConfigError::UnknownSchema(2)));
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

/// The world, with a signer that it may know, and a KMS config that this one made, assigned to `tenant`.
fn with_config_of(
    signer: &SigningKey,
    tenant: &str,
    known: impl FnOnce(&World) -> Vec<Signer>,
) -> Result<(), ConfigError> {
    let mut world = world(1);
    world.snapshot.signers = known(&world);
    let vendor = world.account.vendor();
    let mut config = KmsConfig {
        id: 42,
        ..world.snapshot.kms_configs[0].clone()
    };
    let key = world.snapshot.segment.key().unwrap();
    let binding = config.binding(vendor);
    config.envelope = sealed(&key, signer, &binding, "", LOCAL, &mut world.random);
    world.snapshot.kms_configs = vec![config];
    world.snapshot.tenants[0].id = tenant.to_owned();
    world.snapshot.tenants[0].assignments = vec![assigned(signer, vendor, 42, tenant)];
    let segment = world.snapshot.open(&world.account).unwrap();
    let mut left_out = segment
        .configs(&world.snapshot, &mut Memory::default())
        .left_out
        .into_iter();
    left_out.next().map_or(Ok(()), |left_out| Err(left_out.why))
}

fn vouched(world: &World, by: &SigningKey, voucher: Voucher<'_>, key: &SigningKey) -> Vec<u8> {
    let signature = voucher.sign(by, world.account.vendor(), &key.verifying());
    signature.unwrap().to_vec()
}

#[test]
fn only_who_the_vendor_vouches_for_makes_configs_and_assignments() {
    let key = |seed| SigningKey::from_seed(&[seed; 32]).unwrap();
    let (signer, invitation, stranger) = (key(1), key(2), key(3));
    let public = |key: &SigningKey| key.verifying().as_bytes().to_vec();

    // A broker that seals to the public key.
    let alone = with_config_of(&signer, "acme", |_| Vec::new());
    assert_eq!(alone, Err(ConfigError::NotSigned));
    // And vouches for itself.
    let own = with_config_of(&signer, "acme", |world| {
        vec![Signer {
            key: public(&signer),
            tenant: None,
            invitation: None,
            signature: vouched(world, &stranger, Voucher::Bridge, &signer),
        }]
    });
    assert_eq!(own, Err(ConfigError::NotSigned));

    let bridge = |world: &World| {
        vec![Signer {
            key: public(&signer),
            tenant: None,
            invitation: None,
            signature: vouched(world, &world.vendor_key, Voucher::Bridge, &signer),
        }]
    };
    assert_eq!(with_config_of(&signer, "acme", bridge), Ok(()));
    assert_eq!(with_config_of(&signer, "globex", bridge), Ok(()));

    let organization = |world: &World| {
        let voucher = Voucher::Organization("acme");
        vec![Signer {
            key: public(&signer),
            tenant: Some("acme".to_owned()),
            invitation: None,
            signature: vouched(world, &world.vendor_key, voucher, &signer),
        }]
    };
    assert_eq!(with_config_of(&signer, "acme", organization), Ok(()));
    assert_eq!(
        with_config_of(&signer, "globex", organization),
        Err(ConfigError::NotSigned)
    );

    // What one tenant's invitation is for does not help another's.
    let invited = |invited_to: &'static str, organization_of: &'static str| {
        let (signer, invitation) = (key(1), key(2));
        move |world: &World| {
            let voucher = Voucher::Invitation(invited_to);
            let organization = Voucher::Organization(organization_of);
            vec![Signer {
                key: public(&signer),
                tenant: Some(organization_of.to_owned()),
                invitation: Some(InvitationKey {
                    key: public(&invitation),
                    signature: vouched(world, &world.vendor_key, voucher, &invitation),
                }),
                signature: vouched(world, &invitation, organization, &signer),
            }]
        }
    };
    let good = with_config_of(&signer, "acme", invited("acme", "acme"));
    assert_eq!(good, Ok(()));
    let other = with_config_of(&signer, "globex", invited("acme", "globex"));
    assert_eq!(other, Err(ConfigError::NotSigned));
    // The key of an invitation makes nothing itself.
    let itself = with_config_of(&invitation, "acme", invited("acme", "acme"));
    assert_eq!(itself, Err(ConfigError::NotSigned));
}

#[test]
fn a_config_serves_whom_its_maker_assigned_it_to() {
    let World {
        vendor_key,
        account,
        snapshot,
        mut random,
    } = world(1);
    let vendor = account.vendor();
    let left_out = |change: &dyn Fn(&mut SnapshotAnswer)| {
        let mut snapshot = snapshot.clone();
        change(&mut snapshot);
        let configs = snapshot
            .open(&account)
            .unwrap()
            .configs(&snapshot, &mut Memory::default());
        let assignments = configs
            .tenants
            .iter()
            .map(|tenant| tenant.assignments.len());
        (assignments.sum::<usize>(), configs.left_out)
    };
    let of = |tenant: &str| {
        let left_out = LeftOut {
            kms: 41,
            tenant: Some(tenant.to_owned()),
            why: ConfigError::NotSigned,
        };
        (0, vec![left_out])
    };
    assert_eq!(left_out(&|_| {}), (1, Vec::new()));
    // Moved to another tenant, made up, taken from another config, not signed.
    let moved = left_out(&|snapshot| snapshot.tenants[0].id = "globex".to_owned());
    assert_eq!(moved, of("globex"));
    let stranger = SigningKey::from_seed(&[3; 32]).unwrap();
    let forgeries = [
        assigned(&stranger, vendor, 41, "acme"),
        Assignment {
            kms: 41,
            ..assigned(&vendor_key, vendor, 42, "acme")
        },
        Assignment {
            signer: Vec::new(),
            signature: Vec::new(),
            ..snapshot.tenants[0].assignments[0].clone()
        },
    ];
    for forged in forgeries {
        let found = left_out(&|snapshot| snapshot.tenants[0].assignments = vec![forged.clone()]);
        assert_eq!(found, of("acme"));
    }
    // A tenant's organization does not help itself to a config of the vendor's.
    let organization = SigningKey::from_seed(&[4; 32]).unwrap();
    let voucher = Voucher::Organization("acme");
    let signature = voucher.sign(&vendor_key, vendor, &organization.verifying());
    let signer = Signer {
        key: organization.verifying().as_bytes().to_vec(),
        tenant: Some("acme".to_owned()),
        invitation: None,
        signature: signature.unwrap().to_vec(),
    };
    let helped = left_out(&|snapshot| {
        snapshot.signers = vec![signer.clone()];
        snapshot.tenants[0].assignments = vec![assigned(&organization, vendor, 41, "acme")];
    });
    assert_eq!(helped, of("acme"));
    // Nor does it take the number of one, whichever comes first.
    let key = snapshot.segment.key().unwrap();
    let mut same_number = snapshot.kms_configs[0].clone();
    let binding = same_number.binding(vendor);
    same_number.envelope = sealed(&key, &organization, &binding, "", LOCAL, &mut random);
    for (at, expected) in [(0, 0), (1, 1)] {
        let (assignments, left_out) = left_out(&|snapshot| {
            snapshot.signers = vec![signer.clone()];
            snapshot.kms_configs.insert(at, same_number.clone());
        });
        assert_eq!(assignments, expected);
        assert!(
            left_out
                .iter()
                .any(|left_out| left_out.why == ConfigError::Twice)
        );
    }
    // Another tenant's logging configuration.
    let segment = snapshot.open(&account).unwrap();
    let logging = segment.logging_config("globex", &snapshot.logging_configs[0]);
    assert_eq!(logging.unwrap_err(), ConfigError::NotSigned);
}
