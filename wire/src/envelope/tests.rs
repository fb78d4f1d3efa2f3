use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::{SeedableRng as _, TryCryptoRng, TryRng};

use super::*;

/// Gives the bytes it was made of, once.
struct Canned(Vec<u8>);

impl TryRng for Canned {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        unreachable!("keys are made of bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        unreachable!("keys are made of bytes")
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        let rest = self.0.split_off(bytes.len());
        bytes.copy_from_slice(&std::mem::replace(&mut self.0, rest));
        Ok(())
    }
}

impl TryCryptoRng for Canned {}

fn hex(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

/// From `test-vectors.json` of cfrg/draft-irtf-cfrg-hpke at 5f503c5, which RFC 9180, appendix A, names as its source:
/// mode 0, kem_id 0x0020, kdf_id 0x0001, aead_id 0x0002, the first encryption.
#[test]
fn the_suite_is_that_of_rfc_9180() {
    let info = hex("4f6465206f6e2061204772656369616e2055726e");
    let ephemeral = hex("2cd7c601cefb3d42a62b04b7a9041494c06c7843818e0ce28a8f704ae7ab20f9");
    let private = hex("497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d");
    let public = hex("430f4b9859665145a6b1ba274024487bd66f03a2dd577d7753c68d7d7d00c00c");
    let encapsulated = hex("6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256");
    let (aad, content) = (
        hex("436f756e742d30"),
        hex("4265617574792069732074727574682c20747275746820626561757479"),
    );
    let ciphertext = hex(
        "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de125a925cdad859d5b7a",
    );

    let private = PrivateKey::from_slice(&private).unwrap();
    assert_eq!(private.public().as_bytes().as_slice(), public);
    let opened = hpke_open(&private, &encapsulated, &info, &aad, &ciphertext).unwrap();
    assert_eq!(*opened, content);
    let sealed = hpke_seal(
        &private.public(),
        &info,
        &aad,
        &content,
        &mut Canned(ephemeral),
    );
    assert_eq!(sealed, Some((encapsulated, ciphertext)));
}

fn random(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn vendor(seed: u64) -> Vendor {
    let key = SigningKey::generate(&mut random(seed)).unwrap();
    Vendor {
        segment: 7,
        fingerprint: key.verifying().fingerprint(),
    }
}

fn binding() -> Binding {
    Binding {
        vendor: vendor(1),
        kind: Kind::KmsConfig,
        schema: 1,
        object: 41,
        revision: 3,
    }
}

const EPOCH: Epoch = Epoch(2);

fn sealed(content: &[u8]) -> (PrivateKey, Vec<u8>) {
    let key = PrivateKey::generate(&mut random(2));
    let envelope = seal(&key.public(), EPOCH, &binding(), content, &mut random(3)).unwrap();
    (key, envelope)
}

#[test]
fn what_it_is_bound_to_cannot_be_changed() {
    let (key, envelope) = sealed(b"content");
    let good = binding();
    let all = [
        Binding {
            vendor: vendor(9),
            ..good
        },
        Binding {
            vendor: Vendor {
                segment: 8,
                ..good.vendor
            },
            ..good
        },
        Binding {
            kind: Kind::LoggingConfig,
            ..good
        },
        Binding { schema: 2, ..good },
        Binding { object: 42, ..good },
        Binding {
            revision: 2,
            ..good
        },
        Binding {
            revision: 4,
            ..good
        },
    ];
    assert_eq!(*open(&key, EPOCH, &good, &envelope).unwrap(), b"content");
    for other in all {
        let refused = open(&key, EPOCH, &other, &envelope);
        assert_eq!(refused, Err(OpenError::NotAuthentic), "{other:?}");
    }
}

#[test]
fn another_epoch_is_refused_whether_it_says_so_or_not() {
    let (key, mut envelope) = sealed(b"content");
    let (found, expected) = (EPOCH, Epoch(3));
    let refused = open(&key, expected, &binding(), &envelope);
    assert_eq!(refused, Err(OpenError::WrongEpoch { found, expected }));
    envelope[4] = 3;
    let refused = open(&key, expected, &binding(), &envelope);
    assert_eq!(refused, Err(OpenError::NotAuthentic));
}

#[test]
fn what_is_too_short_too_long_or_of_another_version_is_refused() {
    let (key, mut envelope) = sealed(b"");
    assert_eq!(envelope.len(), OVERHEAD_BYTES);
    assert!(open(&key, EPOCH, &binding(), &envelope).unwrap().is_empty());
    let short = open(&key, EPOCH, &binding(), &envelope[..OVERHEAD_BYTES - 1]);
    assert_eq!(short, Err(OpenError::Malformed));
    let long = open(&key, EPOCH, &binding(), &[1; ENVELOPE_BYTES_MAX + 1]);
    assert_eq!(long, Err(OpenError::Malformed));
    envelope[0] = 2;
    let newer = open(&key, EPOCH, &binding(), &envelope);
    assert_eq!(newer, Err(OpenError::UnknownVersion(2)));

    let largest = vec![0; ENVELOPE_BYTES_MAX - OVERHEAD_BYTES + 1];
    let refused = seal(&key.public(), EPOCH, &binding(), &largest, &mut random(4));
    assert_eq!(refused, Err(TooLarge));
    assert!(
        seal(
            &key.public(),
            EPOCH,
            &binding(),
            &largest[1..],
            &mut random(4)
        )
        .is_ok()
    );
}

#[test]
fn a_point_of_small_order_is_no_key() {
    for point in [[0; KEY_BYTES], {
        let mut one = [0; KEY_BYTES];
        one[0] = 1;
        one
    }] {
        let key = PublicKey::from_bytes(point);
        assert!(seal(&key, EPOCH, &binding(), b"content", &mut random(5)).is_err());
    }
}

#[test]
fn a_vendor_vouches_for_one_key_of_one_epoch() {
    let key = SigningKey::generate(&mut random(6)).unwrap();
    let segment = SegmentKey {
        segment: 7,
        epoch: EPOCH,
        public: PrivateKey::generate(&mut random(7)).public(),
    };
    let signature = segment.sign(&key).unwrap();
    assert!(segment.is_signed(&key.verifying(), &signature));
    let others = [
        SegmentKey {
            segment: 8,
            ..segment
        },
        SegmentKey {
            epoch: Epoch(3),
            ..segment
        },
        SegmentKey {
            public: PrivateKey::generate(&mut random(8)).public(),
            ..segment
        },
    ];
    for other in others {
        assert!(!other.is_signed(&key.verifying(), &signature), "{other:?}");
    }
    let stranger = SigningKey::generate(&mut random(9)).unwrap();
    assert!(!segment.is_signed(&stranger.verifying(), &signature));
    assert!(!segment.is_signed(&key.verifying(), &signature[1..]));
}

#[test]
fn halves_of_different_key_pairs_are_no_pair() {
    let key = SigningKey::generate(&mut random(10)).unwrap();
    let mut bytes = *key.expose();
    assert_eq!(
        SigningKey::from_slice(&bytes).unwrap().verifying(),
        key.verifying()
    );
    assert!(SigningKey::from_slice(&bytes[..63]).is_none());
    bytes[40] ^= 1;
    assert!(SigningKey::from_slice(&bytes).is_none());
    let printed = format!("{key:?} {:?}", PrivateKey::generate(&mut random(11)));
    assert_eq!(printed, "SigningKey(redacted) PrivateKey(Secret(redacted))");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_changed_byte_is_refused(content: Vec<u8>, at: proptest::sample::Index, flip in 1u8..) {
        let (key, mut envelope) = sealed(&content);
        prop_assert_eq!(&*open(&key, EPOCH, &binding(), &envelope).unwrap(), &content);
        let at = at.index(envelope.len());
        // HPKE hashes the encapsulated key as it came, so not even a bit that X25519 ignores can change.
        envelope[at] ^= flip;
        prop_assert!(open(&key, EPOCH, &binding(), &envelope).is_err());
    }

    #[test]
    fn another_key_does_not_open_it(content: Vec<u8>, seed in 100u64..) {
        let (_, envelope) = sealed(&content);
        let other = PrivateKey::generate(&mut random(seed));
        prop_assert_eq!(open(&other, EPOCH, &binding(), &envelope), Err(OpenError::NotAuthentic));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let (key, _) = sealed(b"");
        prop_assert!(open(&key, EPOCH, &binding(), &bytes).is_err());
    }
}
