//! The Account API: what a service account and the configuration broker say to each other.
//!
//! An account is a proxy's (or a log driver's, or a vendor bridge's) identity at the broker. It comes as environment variables ([`env`]), proves itself
//! with a signed token per request ([`token`]), fetches the whole state ([`SnapshotAnswer`]) and stores tenant secrets
//! ([`SecretsRequest`]). `docs/broker.md` tells the protocol.

pub mod env;
pub mod kms;
mod opened;
pub mod signed;
mod snapshot;
pub mod token;

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

pub use self::{
    opened::{ConfigError, Configs, Learned, LeftOut, Memory, MemoryKey, OpenSegment, Work},
    snapshot::{
        Assignment, KmsConfig, LoggingConfig, RefusedSecret, SNAPSHOT_BYTES_MAX, SNAPSHOT_FORMAT,
        SecretOffer, SecretOutcome, SecretsAnswer, SecretsRequest, Seen, Segment, SnapshotAnswer,
        SnapshotError, Tenant, TenantSecret,
    },
};
use crate::envelope::{VendorFingerprint, VerifyingKey};

/// `GET`: the whole state. Answers 200 with a [`SnapshotAnswer`], or 304 if `If-None-Match` names the current state.
pub const SNAPSHOT_PATH: &str = "/account/1/snapshot";

/// `POST` of a [`SecretsRequest`]: stores tenant secrets where there are none. Answers 200 with a [`SecretsAnswer`].
pub const SECRETS_PATH: &str = "/account/1/secrets";

/// Tenant secrets in one [`SecretsRequest`] at most: as many as a proxy has waiting at a time.
pub const SECRETS_MAX: usize = 1_024;

/// Largest body of a request, in bytes: [`SECRETS_MAX`] secrets with the longest tenants, paths and EDEKs fit.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The id of a service account: 48 characters of URL-safe base64.
///
/// Its last 32 characters are the fingerprint of the vendor's key, so whoever has the id knows which vendor to believe,
/// whatever a broker says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId([u8; Self::BYTES]);

impl AccountId {
    /// Length of the text, in characters.
    pub const LEN: usize = 48;
    const OWN: usize = 12;
    const BYTES: usize = Self::OWN + VendorFingerprint::LEN;

    /// Makes the id of a new account of `vendor`'s.
    #[must_use]
    pub fn new(random: [u8; 12], vendor: &VerifyingKey) -> Self {
        let mut bytes = [0; Self::BYTES];
        let fingerprint = vendor.fingerprint();
        let all = random.iter().chain(fingerprint.as_bytes());
        for (to, from) in bytes.iter_mut().zip(all) {
            *to = *from;
        }
        Self(bytes)
    }

    /// The id that `text` spells.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if text.len() != Self::LEN {
            return None;
        }
        let mut bytes = [0; Self::BYTES];
        let decoded = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (decoded == Self::BYTES).then_some(Self(bytes))
    }

    /// The vendor that it belongs to.
    #[must_use]
    pub fn vendor(&self) -> VendorFingerprint {
        let tail = self.0.last_chunk::<{ VendorFingerprint::LEN }>();
        VendorFingerprint(tail.copied().unwrap_or_default())
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// What kind of failure, for programs.
    pub error: ErrorCode,
    /// The same for people. Fixed per code but for [`ErrorCode::Invalid`]; never tells why a token was refused.
    pub message: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// 401: the token is refused. The `Date` header tells the broker's time, in case the clocks differ.
    Unauthorized,
    /// 400: the request cannot be read.
    Invalid,
    /// 404: no such path or object.
    NotFound,
    /// 413: the body is too large.
    TooLarge,
    /// 503: try again, after `Retry-After` if it is there.
    Unavailable,
    /// 500: the broker's fault; its log tells more.
    Internal,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;
    use crate::envelope::SigningKey;

    #[test]
    fn an_id_pins_its_vendor() {
        let vendor = SigningKey::generate(&mut ChaCha20Rng::seed_from_u64(1)).unwrap();
        let id = AccountId::new([7; 12], &vendor.verifying());
        let text = id.to_string();
        assert_eq!(text.len(), AccountId::LEN);
        assert!(text.ends_with(&vendor.verifying().fingerprint().to_string()));
        let read = AccountId::from_text(&text).unwrap();
        assert_eq!(
            (read, read.vendor()),
            (id, vendor.verifying().fingerprint())
        );
        for bad in ["", &text[1..], &format!("{text}A"), &text.replace('B', "!")] {
            assert!(AccountId::from_text(bad).is_none() || bad == text, "{bad}");
        }
    }

    #[test]
    fn an_error_of_a_later_version_can_be_read() {
        let answer: ErrorAnswer =
            serde_json::from_str(r#"{"error":"quota","message":"m","more":1}"#).unwrap();
        assert_eq!(answer.error, ErrorCode::Unknown);
        let answer: ErrorAnswer =
            serde_json::from_str(r#"{"error":"too-large","message":"m"}"#).unwrap();
        assert_eq!(answer.error, ErrorCode::TooLarge);
    }
}
