//! Identifiers: one type per kind, so that none can stand where another is meant.

use std::{
    borrow::Borrow,
    fmt,
    num::{NonZeroI32, NonZeroU32},
};

/// The vendor's id of a tenant: 1 to 256 bytes of UTF-8 without control characters, case-sensitive.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Box<str>);

impl TenantId {
    /// Longest tenant id, in bytes: what the API promises to accept.
    pub const BYTES_MAX: usize = 256;

    /// Whether `text` can be a tenant id.
    #[must_use]
    pub fn is_valid(text: &str) -> bool {
        !text.is_empty() && text.len() <= Self::BYTES_MAX && !text.chars().any(char::is_control)
    }

    /// Checks and takes `text`; `None` if it cannot be a tenant id.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        Self::is_valid(text).then(|| Self(text.into()))
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for TenantId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The permanent number of a KMS config, 1 to 2³¹−1. SDKs write it into customers' data, so it is never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KmsConfigId(NonZeroI32);

impl KmsConfigId {
    /// `None` unless `number` is 1 to 2³¹−1.
    #[must_use]
    pub fn new(number: i64) -> Option<Self> {
        let number = NonZeroI32::new(i32::try_from(number).ok()?)?;
        number.is_positive().then_some(Self(number))
    }

    /// The number as the EDEK carries it.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0.get()
    }
}

impl fmt::Display for KmsConfigId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for KmsConfigId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The permanent number of a tenant secret, 1 to 2³²−1. SDKs write it in front of what they encrypt, so it is unique among
/// all tenants and never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantSecretId(NonZeroU32);

impl TenantSecretId {
    /// `None` unless `number` is 1 to 2³²−1.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        Some(Self(NonZeroU32::new(u32::try_from(number).ok()?)?))
    }

    /// The number as ciphertexts carry it.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for TenantSecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TenantSecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Counts snapshots up. A shard never goes back to a lower one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotVersion(pub u64);

impl SnapshotVersion {
    /// The version that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for SnapshotVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Names one request in logs and events: 16 characters of URL-safe base64, from 12 random bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RayId([u8; Self::LEN]);

impl RayId {
    /// Length of the text, in characters.
    pub const LEN: usize = 16;

    /// Spells 12 random bytes.
    #[must_use]
    pub fn from_random(random: [u8; 12]) -> Self {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = [b'A'; Self::LEN];
        for (chars, bytes) in text.chunks_exact_mut(4).zip(random.chunks_exact(3)) {
            let word = bytes
                .iter()
                .fold(0u32, |word, byte| word << 8 | u32::from(*byte));
            for (char, shift) in chars.iter_mut().zip([18u32, 12, 6, 0]) {
                let index = (word >> shift) & 63;
                *char = ALPHABET.get(index as usize).copied().unwrap_or(b'A');
            }
        }
        Self(text)
    }

    /// The 16 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The alphabet is ASCII, so this never takes the default.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for RayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_ids_are_bounded_and_printable() {
        assert!(TenantId::new("").is_none());
        assert!(TenantId::new("a\nb").is_none());
        assert!(TenantId::new(&"x".repeat(257)).is_none());
        assert_eq!(TenantId::new(" Jürgen/7 ").unwrap().as_str(), " Jürgen/7 ");
    }

    #[test]
    fn kms_config_ids_are_positive_31_bit_numbers() {
        for bad in [0, -1, i64::from(i32::MAX) + 1, i64::MIN] {
            assert!(KmsConfigId::new(bad).is_none(), "{bad}");
        }
        assert_eq!(
            KmsConfigId::new(i64::from(i32::MAX)).unwrap().number(),
            i32::MAX
        );
    }

    #[test]
    fn tenant_secret_ids_are_32_bit_numbers_from_1() {
        for bad in [0, u64::from(u32::MAX) + 1, u64::MAX] {
            assert!(TenantSecretId::new(bad).is_none(), "{bad}");
        }
        let largest = TenantSecretId::new(u64::from(u32::MAX)).unwrap();
        assert_eq!(largest.to_string(), "4294967295");
    }

    #[test]
    fn a_ray_id_is_url_safe_base64() {
        assert_eq!(RayId::from_random([0; 12]).as_str(), "AAAAAAAAAAAAAAAA");
        assert_eq!(RayId::from_random([0xff; 12]).as_str(), "________________");
        assert_eq!(
            RayId::from_random(*b"hello, world").as_str(),
            "aGVsbG8sIHdvcmxk"
        );
    }
}
