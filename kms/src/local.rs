//! The built-in KMS: AES-256-GCM under a key from the configuration.
//!
//! A blob is `LKW1`, a nonce of 12 bytes, the encrypted DEK, a tag of 16 bytes: 64 bytes. The tenant's id is authenticated
//! with it, so that one tenant's blob does not open for another although both share the key. The printable tag also keeps
//! readers of EDEKs from taking the blob for a header of theirs.

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

    /// Unwraps what [`LocalKms::wrap`] made for the same tenant.
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
        Dek::try_fill_with(|dek| {
            InOutBuf::new(encrypted, dek).map_err(|_| ()).and_then(|buffer| {
                self.cipher
                    .decrypt_inout_detached(nonce.into(), tenant.as_bytes(), buffer, tag.into())
                    .map_err(|_| ())
            })
        })
        .map_err(|()| {
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
