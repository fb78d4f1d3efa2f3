use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::*;
use crate::{
    account::snapshot::tests::{World, world},
    envelope::KEY_BYTES,
};

/// What `memory` knows is all that is needed.
fn knows_all(segment: &OpenSegment, snapshot: &SnapshotAnswer, memory: &Memory) -> bool {
    segment.work(snapshot, memory).is_empty()
}

#[test]
fn what_was_opened_once_is_not_opened_again() {
    let World {
        account, snapshot, ..
    } = world(1);
    let segment = snapshot.open(&account).unwrap();
    let mut memory = Memory::default();
    assert_eq!(segment.work(&snapshot, &memory).len(), 2);
    let first = segment.configs(&snapshot, &mut memory);
    assert!(knows_all(&segment, &snapshot, &memory));
    let second = segment.configs(&snapshot, &mut memory);
    assert_eq!((first.left_out, second.left_out), (vec![], vec![]));
    assert_eq!((first.kms.len(), second.kms.len()), (1, 1));

    // What stands beside the envelope, and is not bound to it, is that of now.
    let mut changed = snapshot.clone();
    changed.kms_configs[0].leasing_allowed = false;
    changed.tenants[0].assignments[0].primary = false;
    assert!(knows_all(&segment, &changed, &memory));
    let configs = segment.configs(&changed, &mut memory);
    let assignment = &configs.tenants[0].assignments[0];
    assert!(!configs.kms[0].leasing_allowed && !assignment.primary);

    // Nothing is kept of what is gone.
    let mut empty = snapshot.clone();
    empty.kms_configs.clear();
    empty.tenants.clear();
    drop(segment.configs(&empty, &mut memory));
    assert_eq!(format!("{memory:?}"), "Memory(0 contents, 0 assignments)");
}

#[test]
fn whatever_is_changed_is_not_taken_for_what_is_known() {
    let World {
        account, snapshot, ..
    } = world(1);
    let segment = snapshot.open(&account).unwrap();
    let changes: [&dyn Fn(&mut SnapshotAnswer); 8] = [
        &|changed| changed.kms_configs[0].id = 42,
        &|changed| changed.kms_configs[0].revision = 4,
        &|changed| changed.kms_configs[0].envelope[60] ^= 1,
        &|changed| changed.kms_configs[0].envelope.push(0),
        &|changed| changed.tenants[0].id = "globex".to_owned(),
        &|changed| changed.tenants[0].assignments[0].kms = 43,
        &|changed| changed.tenants[0].assignments[0].signer[0] ^= 1,
        &|changed| changed.tenants[0].assignments[0].signature[63] ^= 1,
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut memory = Memory::default();
        drop(segment.configs(&snapshot, &mut memory));
        let mut changed = snapshot.clone();
        change(&mut changed);
        assert!(!knows_all(&segment, &changed, &memory), "change {index}");
        let with_memory = segment.configs(&changed, &mut memory).left_out;
        let without = segment.configs(&changed, &mut Memory::default()).left_out;
        assert_eq!(with_memory, without, "change {index}");
        // What is bad is remembered as bad.
        assert_eq!(segment.configs(&changed, &mut memory).left_out, without);
    }
    // Another vendor's segment, whatever the bytes.
    let other = world(2);
    let foreign = other.snapshot.open(&other.account).unwrap();
    let mut memory = Memory::default();
    drop(segment.configs(&snapshot, &mut memory));
    assert!(!knows_all(&foreign, &snapshot, &memory));
}

#[test]
fn a_signer_that_is_no_longer_vouched_for_is_not_remembered() {
    let World {
        account, snapshot, ..
    } = world(1);
    let mut memory = Memory::default();
    let mut segment = snapshot.open(&account).unwrap();
    assert_eq!(segment.configs(&snapshot, &mut memory).left_out, []);
    let nobody = VerifyingKey::from_bytes([9; KEY_BYTES]);
    segment.signers = Signers::new(segment.vendor, nobody, &[]);
    let left_out = segment.configs(&snapshot, &mut memory).left_out;
    assert_eq!(left_out[0].why, ConfigError::NotSigned);
}

#[test]
fn pieces_of_work_come_to_the_same_in_any_order() {
    let World {
        account,
        mut snapshot,
        ..
    } = world(1);
    // Enough for several pieces; all but one of them bad.
    for id in 100..100 + 2 * WORK_ITEMS as u64 {
        let config = KmsConfig {
            id,
            ..snapshot.kms_configs[0].clone()
        };
        snapshot.kms_configs.push(config);
    }
    let segment = snapshot.open(&account).unwrap();
    let mut memory = Memory::default();
    let mut work = segment.work(&snapshot, &memory);
    assert_eq!(work.len(), 4);
    work.reverse();
    for work in work {
        memory.learn(work.run());
    }
    assert!(knows_all(&segment, &snapshot, &memory));
    let configs = segment.configs(&snapshot, &mut memory);
    assert_eq!(
        (configs.kms.len(), configs.left_out.len()),
        (1, 2 * WORK_ITEMS)
    );
}

#[test]
fn a_sealed_memory_is_that_accounts_alone_and_shows_nothing() {
    let World {
        account, snapshot, ..
    } = world(1);
    let segment = snapshot.open(&account).unwrap();
    let mut memory = Memory::default();
    drop(segment.configs(&snapshot, &mut memory));
    let own = &MemoryKey::of(&account.encryption_key).unwrap();
    let sealed = memory.seal(own).unwrap();
    let read = Memory::unseal(own, &sealed).unwrap();
    assert!(knows_all(&segment, &snapshot, &read));
    let mut read = read;
    assert_eq!(segment.configs(&snapshot, &mut read).kms.len(), 1);

    let other = PrivateKey::generate(&mut ChaCha20Rng::seed_from_u64(7));
    let other = MemoryKey::of(&other).unwrap();
    assert!(Memory::unseal(&other, &sealed).is_none());
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert!(Memory::unseal(own, &changed).is_none(), "byte {at}");
        assert!(Memory::unseal(own, &sealed[..at]).is_none(), "{at} bytes");
    }
    for (shown, secret) in [(&sealed[..], &b"LOCAL"[..]), (&sealed[..], b"AAAAAAAA")] {
        assert!(!shown.windows(secret.len()).any(|window| window == secret));
    }
    assert!(
        !format!(
            "{memory:?} {:?}",
            segment.work(&snapshot, &Memory::default())
        )
        .contains("AAAAAAAA")
    );
}
