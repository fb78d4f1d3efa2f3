//! Derived keys: which kinds of tenant secret there are, and how a key is made from one.
//!
//! A key is derived anew whenever it is asked for and must be the same for ever: it decrypts, and finds, what it once
//! encrypted. So the formula below never changes.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::{Sha256, Sha512};
use zeroize::Zeroizing;

use crate::Dek;

/// What keys are derived for. A tenant has secrets of its own for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretType {
    /// Search over encrypted text.
    Search,
    /// Fields that always encrypt to the same bytes.
    Deterministic,
    /// Vectors.
    Vector,
}

impl SecretType {
    /// Every type, in the order of their numbers in the original product's exports.
    pub const ALL: [Self; 3] = [Self::Search, Self::Deterministic, Self::Vector];

    /// The word in requests and files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::Deterministic => "deterministic",
            Self::Vector => "vector",
        }
    }

    /// The type that `text` spells.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }
}

impl fmt::Display for SecretType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a tenant secret is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RotationStatus {
    /// New data is encrypted with its keys.
    Current,
    /// What its keys encrypted is being encrypted anew; they are still handed out.
    InRotation,
    /// Nothing is encrypted with its keys any more; they are not handed out. It is kept, and its number with it.
    Archived,
}

impl RotationStatus {
    /// Every status, in the order in which a secret goes through them.
    pub const ALL: [Self; 3] = [Self::Current, Self::InRotation, Self::Archived];

    /// The word in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::InRotation => "in-rotation",
            Self::Archived => "archived",
        }
    }

    /// The status that `text` spells.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }
}

impl fmt::Display for RotationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a key is derived. All published SDKs ask for [`DerivationType::Sha512`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DerivationType {
    /// HMAC-SHA256: 32 bytes.
    Sha256,
    /// HMAC-SHA512: 64 bytes.
    Sha512,
}

impl DerivationType {
    /// Size of a derived key, in bytes.
    #[must_use]
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A key derived from a tenant secret. Wiped on drop.
pub struct DerivedKey {
    bytes: Zeroizing<[u8; 64]>,
    len: usize,
}

impl DerivedKey {
    /// The key's bytes: 32 or 64.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Debug for DerivedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DerivedKey(redacted)")
    }
}

/// Derives keys from one secret for one tenant. Wiped on drop.
///
/// `HMAC(key = the secret's 32 bytes, message = tenant id ‖ "-" ‖ derivation path)` (RFC 2104), as published in the
/// original product's disaster-recovery walk-through. The secret path only chooses the secret.
#[derive(Clone)]
pub struct Deriver(Keyed);

/// The state after the secret and the part of the message that all paths share.
#[derive(Clone)]
enum Keyed {
    Sha256(Hmac<Sha256>),
    Sha512(Hmac<Sha512>),
}

impl Deriver {
    /// Takes in `secret` and the tenant's id, so that a path costs only the rest.
    #[must_use]
    pub fn new(secret: &Dek, tenant_id: &str, derivation: DerivationType) -> Self {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        fn keyed<M: Mac + hmac::KeyInit>(secret: &Dek, tenant_id: &str) -> M {
            let mut mac = M::new_from_slice(secret.expose()).expect("any length");
            mac.update(tenant_id.as_bytes());
            mac.update(b"-");
            mac
        }
        Self(match derivation {
            DerivationType::Sha256 => Keyed::Sha256(keyed(secret, tenant_id)),
            DerivationType::Sha512 => Keyed::Sha512(keyed(secret, tenant_id)),
        })
    }

    /// The key for one derivation path, which may be empty.
    #[must_use]
    pub fn derive(&self, derivation_path: &str) -> DerivedKey {
        fn finished<M: Mac + Clone>(mac: &M, path: &str) -> DerivedKey {
            let mac = mac.clone().chain_update(path);
            let mac = mac.finalize();
            let tag = mac.as_bytes();
            let mut bytes = Zeroizing::new([0; 64]);
            let len = tag.len();
            if let Some(start) = bytes.get_mut(..len) {
                start.copy_from_slice(tag);
            }
            DerivedKey { bytes, len }
        }
        match &self.0 {
            Keyed::Sha256(mac) => finished(mac, derivation_path),
            Keyed::Sha512(mac) => finished(mac, derivation_path),
        }
    }
}

impl fmt::Debug for Deriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deriver(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back() {
        for secret_type in SecretType::ALL {
            assert_eq!(
                SecretType::from_text(secret_type.as_str()),
                Some(secret_type)
            );
        }
        for status in RotationStatus::ALL {
            assert_eq!(RotationStatus::from_text(status.as_str()), Some(status));
        }
        assert_eq!(SecretType::from_text("Vector"), None);
        assert_eq!(RotationStatus::from_text(""), None);
    }

    #[test]
    fn a_key_depends_on_its_path_and_has_the_size_of_its_kind() {
        let secret = Dek::fill_with(|bytes| bytes.fill(0x0b));
        for derivation in [DerivationType::Sha256, DerivationType::Sha512] {
            let deriver = Deriver::new(&secret, "acme", derivation);
            let (one, same, other) = (
                deriver.derive("a"),
                deriver.derive("a"),
                deriver.derive("b"),
            );
            assert_eq!(one.expose().len(), derivation.key_bytes());
            assert_eq!(one.expose(), same.expose());
            assert_ne!(one.expose(), other.expose());
        }
    }

    #[test]
    fn nothing_prints_a_key() {
        let secret = Dek::fill_with(|bytes| bytes.fill(0xca));
        let deriver = Deriver::new(&secret, "acme", DerivationType::Sha512);
        let printed = format!("{deriver:?} {:?}", deriver.derive(""));
        assert_eq!(printed, "Deriver(redacted) DerivedKey(redacted)");
    }
}
