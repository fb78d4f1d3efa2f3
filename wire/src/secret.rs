//! Secrets: what they are, how they are filled, and the one way to read them.
//!
//! Every secret lives in a box, so that moving it leaves no copy behind, and is wiped when dropped. None of these
//! types can be cloned, serialized or printed. The one reader is `expose()`, so that a review can find every use.

use std::fmt;

use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, Zeroizing};

/// A document encryption key: 32 bytes.
pub struct Dek(Box<Zeroizing<[u8; Self::LEN]>>);

impl Dek {
    /// Size of every DEK, in bytes. The published SDKs accept no other.
    pub const LEN: usize = 32;

    /// Makes a DEK in place: `fill` writes all of its bytes.
    pub fn fill_with(fill: impl FnOnce(&mut [u8; Self::LEN])) -> Self {
        let mut bytes = Box::new(Zeroizing::new([0u8; Self::LEN]));
        fill(&mut bytes);
        Self(bytes)
    }

    /// Like [`Dek::fill_with`], for a source that can fail; the half-filled box is wiped then.
    ///
    /// # Errors
    /// Whatever `fill` returns.
    pub fn try_fill_with<E>(
        fill: impl FnOnce(&mut [u8; Self::LEN]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = Box::new(Zeroizing::new([0u8; Self::LEN]));
        fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Copies a DEK out of `bytes`; `None` unless they are exactly 32. The caller wipes `bytes`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        Some(Self::fill_with(|dek| dek.copy_from_slice(bytes)))
    }

    /// The key's bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for Dek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dek(redacted)")
    }
}

/// Any other secret: a credential, a private key, a token.
pub struct Secret<T: Zeroize>(Box<Zeroizing<T>>);

impl<T: Zeroize> Secret<T> {
    /// Takes `value` over. It should not have been copied on its way here.
    pub fn new(value: T) -> Self {
        Self(Box::new(Zeroizing::new(value)))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl Secret<String> {
    /// Whether both hold the same text. Takes the same time wherever they differ.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.expose()
            .as_bytes()
            .ct_eq(other.expose().as_bytes())
            .into()
    }
}

/// An API key that applications present to the proxy: 1 to 512 bytes of visible ASCII.
pub struct ApiKey(Secret<String>);

impl ApiKey {
    /// Longest API key, in bytes: far above any real one, and it bounds what is compared per request.
    pub const BYTES_MAX: usize = 512;

    /// Takes the key over; `None` when it is empty, too long, or could not stand in a header.
    #[must_use]
    pub fn new(key: String) -> Option<Self> {
        let secret = Secret::new(key);
        let bytes = secret.expose().as_bytes();
        let sound = !bytes.is_empty()
            && bytes.len() <= Self::BYTES_MAX
            && bytes.iter().all(u8::is_ascii_graphic);
        sound.then_some(Self(secret))
    }

    /// The key's text, for the one place that prints it: `tsp dev`.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// Whether `presented` is this key, in time that depends on `presented`'s length only.
    #[must_use]
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.0.expose().as_bytes().ct_eq(presented).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_prints_itself() {
        let dek = Dek::fill_with(|bytes| bytes.fill(b'D'));
        let key = ApiKey::new("canary-key".to_owned()).unwrap();
        let text = Secret::new("canary-text".to_owned());
        let printed = format!("{dek:?} {key:?} {text:?}");
        assert_eq!(printed, "Dek(redacted) ApiKey(redacted) Secret(redacted)");
    }

    #[test]
    fn a_dek_has_exactly_32_bytes() {
        assert!(Dek::from_slice(&[1; 31]).is_none());
        assert!(Dek::from_slice(&[1; 33]).is_none());
        assert_eq!(Dek::from_slice(&[7; 32]).unwrap().expose(), &[7; 32]);
    }

    #[test]
    fn an_api_key_matches_only_itself() {
        let key = ApiKey::new("0123456789abcdef".to_owned()).unwrap();
        assert!(key.matches(b"0123456789abcdef"));
        assert!(!key.matches(b"0123456789abcdeF"));
        assert!(!key.matches(b"0123456789abcde"));
        assert!(!key.matches(b""));
        assert!(ApiKey::new(String::new()).is_none());
        assert!(ApiKey::new("with space".to_owned()).is_none());
        assert!(ApiKey::new("x".repeat(513)).is_none());
    }
}
