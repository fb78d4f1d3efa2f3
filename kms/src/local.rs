//! The built-in KMS: AES-256-GCM under a key from the configuration.
//!
//! A blob is `LKW1`, a nonce of 12 bytes, the encrypted DEK and a tag of 16 bytes: 64 bytes in all. The tenant's id is
//! authenticated with it, so that one tenant's blob does not open for another although both share the key. The printable
//! tag also keeps readers of EDEKs from taking the blob for a header of theirs.

use std::fmt;

use aes_gcm::{AeadInOut as _, Aes256Gcm, KeyInit as _, aead::inout::InOutBuf};
use tsp_wire::{Dek, Secret};

use crate::{KmsError, KmsErrorKind, KmsKind, KmsOperation, text::Clean};

/// The built-in KMS, with its key schedule.
pub struct LocalKms {
    /// Boxed, so that moving it leaves no copy behind; wiped on drop.
    cipher: Box<Aes256Gcm>,
}

impl LocalKms {
    const TAG: &[u8; 4] = b"LKW1";
    const NONCE_BYTES: usize = 12;
    const BLOB_BYTES: usize = Self::TAG.len() + Self::NONCE_BYTES + Dek::LEN + 16;

    /// Expands the key.
    #[must_use]
    pub fn new(key: &Secret<[u8; 32]>) -> Self {
        Self {
            cipher: Box::new(Aes256Gcm::new(key.expose().into())),
        }
    }

    /// Wraps `dek` for `tenant`. Gives 64 bytes.
    ///
    /// `nonce` must never have been used with this key before: random ones are good for 2³² wraps
    /// (NIST SP 800-38D, section 8.3).
    #[must_use]
    pub fn wrap(&self, tenant: &str, dek: &Dek, nonce: [u8; 12]) -> Vec<u8> {
        let mut blob = Vec::with_capacity(Self::BLOB_BYTES);
        blob.extend_from_slice(Self::TAG);
        blob.extend_from_slice(&nonce);
        let mut encrypted = [0; Dek::LEN];
        #[expect(
            clippy::expect_used,
            reason = "both slices are 32 bytes by their types"
        )]
        let buffer = InOutBuf::new(dek.expose(), &mut encrypted).expect("equal lengths");
        #[expect(
            clippy::expect_used,
            reason = "only inputs beyond 2^36 bytes are refused"
        )]
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce.into(), tenant.as_bytes(), buffer)
            .expect("short input");
        blob.extend_from_slice(&encrypted);
        blob.extend_from_slice(&tag);
        blob
    }

    /// Unwraps what [`LocalKms::wrap`] made for the same tenant, or a blob that names no tenant.
    ///
    /// # Errors
    /// [`KmsErrorKind::UnwrapFailed`] if `blob` has another form, was altered, or belongs to another tenant or key.
    pub fn unwrap(&self, tenant: &str, blob: &[u8]) -> Result<Dek, KmsError> {
        let parts = blob.strip_prefix(Self::TAG).and_then(|rest| {
            let (nonce, rest) = rest.split_first_chunk::<{ Self::NONCE_BYTES }>()?;
            let (encrypted, tag) = rest.split_first_chunk::<{ Dek::LEN }>()?;
            Some((nonce, encrypted, <&[u8; 16]>::try_from(tag).ok()?))
        });
        let Some((nonce, encrypted, tag)) = parts else {
            return Err(Self::refused(
                "the blob is not one of the local KMS, so another KMS made it or it was cut",
            ));
        };
        let open = |bound_to: &[u8]| {
            Dek::try_fill_with(|dek| {
                InOutBuf::new(encrypted, dek)
                    .map_err(|_| ())
                    .and_then(|buffer| {
                        self.cipher
                            .decrypt_inout_detached(nonce.into(), bound_to, buffer, tag.into())
                            .map_err(|_| ())
                    })
            })
        };
        open(tenant.as_bytes()).or_else(|()| open(b"")).map_err(|()| {
            Self::refused(
                "the blob does not open, so it was altered, or made for another tenant or with another local key",
            )
        })
    }

    fn refused(sentence: &'static str) -> KmsError {
        KmsError::new(
            KmsErrorKind::UnwrapFailed,
            KmsKind::Local,
            KmsOperation::Unwrap,
            Clean::ours(sentence),
        )
    }
}

impl fmt::Debug for LocalKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalKms(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The local key of config 41 in the API's examples, and the DEK that they wrap.
    const KEY: &str = "80f38bd88b9666851cdf73a8a02c387894c09663d2b534a39c3fdbf0da404d88";
    const DEK: &str = "af44200efcc6f9b56db31d27df010f98efde51445701d5b99c04ac6da21d981f";

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        hex::decode(hex).unwrap().try_into().unwrap()
    }

    fn kms() -> LocalKms {
        LocalKms::new(&Secret::new(bytes(KEY)))
    }

    fn dek() -> Dek {
        Dek::fill_with(|dek| *dek = bytes(DEK))
    }

    /// A blob for `acme`, field by field. All but the tag stands in the API's examples, which were made without
    /// additional data; the tag is from Python's `cryptography`.
    fn example() -> Vec<u8> {
        let fields = [
            "4c4b5731",                                                         // LKW1
            "42d461dc4ec694bb9c530a8e",                                         // nonce
            "b88176cf7e7cad724e641d58007372d57a7f622d19c1946f5716068bf27b70af", // encrypted DEK
            "b7e5592bb340b277ecb71aeb6fe5874f",                                 // tag
        ];
        hex::decode(fields.concat()).unwrap()
    }

    #[test]
    fn another_implementation_makes_the_same_blob() {
        let nonce = bytes("42d461dc4ec694bb9c530a8e");
        assert_eq!(kms().wrap("acme", &dek(), nonce), example());
        assert_eq!(
            kms().unwrap("acme", &example()).unwrap().expose(),
            dek().expose()
        );
        let blob = kms().wrap("Jürgen/7", &dek(), nonce);
        assert_eq!(blob[48..], bytes::<16>("119ba4799835680fa1c1577be0d04ffc"));
    }

    #[test]
    fn a_blob_that_names_no_tenant_is_read_for_any() {
        let cases = [
            (
                "4c4b573142d461dc4ec694bb9c530a8eb88176cf7e7cad724e641d58007372d5\
                 7a7f622d19c1946f5716068bf27b70afc83558c67450eac3d6a3f7c9dfb83579",
                DEK,
            ),
            (
                "4c4b57318ccf532fbd08c60d0ea55de93a447540ae46abce376d384db102f151\
                 31cb5b154d816edc24db1180169ff7f08656143a362819ff84268adc9e2673cb",
                "b91ab4021e8bd25fd9f8749eff5140f464f2480ca96c5967f9a5e79e74180776",
            ),
        ];
        for (blob, key) in cases {
            let blob = hex::decode(blob).unwrap();
            // The API's own examples.
            assert_eq!(
                kms().unwrap("acme", &blob).unwrap().expose(),
                &bytes::<32>(key)
            );
        }
    }

    fn assert_refused(error: &KmsError, why: &str) {
        assert_eq!(error.kind(), KmsErrorKind::UnwrapFailed);
        assert_eq!(error.provider(), KmsKind::Local);
        assert!(!error.retryable());
        assert!(error.to_string().contains(why), "{error}");
    }

    #[test]
    fn a_blob_opens_only_for_its_tenant_and_key() {
        for tenant in ["", "Acme", "acme ", "globex"] {
            assert_refused(
                &kms().unwrap(tenant, &example()).unwrap_err(),
                "another tenant",
            );
        }
        let other = LocalKms::new(&Secret::new([7; 32]));
        assert_refused(
            &other.unwrap("acme", &example()).unwrap_err(),
            "another local key",
        );
    }

    #[test]
    fn no_altered_byte_goes_unnoticed() {
        for index in 0..LocalKms::BLOB_BYTES {
            let mut blob = example();
            blob[index] ^= 1;
            let why = if index < LocalKms::TAG.len() {
                "not one of the local KMS"
            } else {
                "altered"
            };
            assert_refused(&kms().unwrap("acme", &blob).unwrap_err(), why);
        }
    }

    #[test]
    fn a_blob_of_another_length_or_kind_is_refused() {
        for length in 0..LocalKms::BLOB_BYTES {
            let error = kms().unwrap("acme", &example()[..length]).unwrap_err();
            assert_refused(&error, "not one of the local KMS");
        }
        let longer = [example(), vec![0]].concat();
        assert_refused(
            &kms().unwrap("acme", &longer).unwrap_err(),
            "not one of the local KMS",
        );
        let aws = [b"AQICAHh".as_slice(), &[1; 150]].concat();
        assert_refused(
            &kms().unwrap("acme", &aws).unwrap_err(),
            "another KMS made it",
        );
    }

    proptest! {
        #[test]
        fn what_is_wrapped_unwraps(tenant in ".{0,256}", key: [u8; 32], dek: [u8; 32], nonce: [u8; 12]) {
            let kms = LocalKms::new(&Secret::new(key));
            let blob = kms.wrap(&tenant, &Dek::fill_with(|bytes| *bytes = dek), nonce);
            prop_assert_eq!((blob.len(), blob.capacity()), (64, 64));
            let unwrapped = kms.unwrap(&tenant, &blob).unwrap();
            prop_assert_eq!(unwrapped.expose(), &dek);
        }

        #[test]
        fn no_blob_makes_it_panic(blob in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(kms().unwrap("acme", &blob).is_err());
            prop_assert!(kms().unwrap("acme", &[b"LKW1".as_slice(), &blob].concat()).is_err());
        }
    }
}
