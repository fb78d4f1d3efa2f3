//! Envelopes: what admins seal and only a vendor's proxies open.
//!
//! HPKE (RFC 9180) in base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM. Configurations are sealed to
//! the public key of the vendor's **segment**; the segment's private key is itself sealed to each service account. A
//! segment has one key at a time, and each is an **epoch**: a new one follows when an account is revoked.
//!
//! What stands beside an envelope and not in it is bound to it (HPKE's `aad`): whose it is, which object, of which kind,
//! schema and revision, and the epoch. So a broker that swaps two envelopes, or gives one to another vendor, makes one that
//! does not open. An old envelope with its old revision does open: who holds envelopes remembers the highest epoch and
//! revisions that it saw, and refuses to go back.
//!
//! ```text
//! byte 0        version of this format, 1
//! bytes 1-4     epoch, big-endian
//! bytes 5-36    HPKE's encapsulated key
//! the rest      ciphertext and tag of 16 bytes
//! ```
//!
//! Base mode does not tell who sealed. That a segment's key is the vendor's own is signed ([`SegmentKey`]).

mod keys;

use std::fmt;

use hpke::{
    Deserializable as _, OpModeS, Serializable as _, aead::AesGcm256, kdf::HkdfSha256,
    kem::X25519HkdfSha256, setup_sender_with_rng,
};
use rand_core::CryptoRng;
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey},
};
use zeroize::Zeroizing;

pub(crate) use self::keys::{Claim, prove};
pub use self::keys::{
    KEY_BYTES, PrivateKey, PublicKey, SIGNATURE_BYTES, SegmentKey, SigningKey, VendorFingerprint,
    VerifyingKey,
};

/// The one version of the format.
pub const FORMAT_VERSION: u8 = 1;

/// Largest envelope, in bytes: a configuration with a chain of certificates has less than a quarter of it.
pub const ENVELOPE_BYTES_MAX: usize = 64 * 1024;

/// HPKE's `info`: keeps envelopes apart from all else that these keys may ever be used for.
const INFO: &[u8] = b"tsp envelope 1";

const EPOCH_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
const HEAD_BYTES: usize = 1 + EPOCH_BYTES + KEY_BYTES;

/// What an envelope adds to its content, in bytes.
pub const OVERHEAD_BYTES: usize = HEAD_BYTES + TAG_BYTES;

/// Counts the keys of a segment, from 1.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Whose envelopes: the vendor's segment and the vendor's own key, which no two vendors share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vendor {
    /// The segment's number (`SERVICE_SEGMENT_ID`).
    pub segment: u64,
    /// The vendor's key.
    pub fingerprint: VendorFingerprint,
}

/// What is in an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A KMS config; the object is its permanent number.
    KmsConfig,
    /// A tenant's logging configuration; the object is its number.
    LoggingConfig,
    /// The private key of the envelope's epoch, 32 bytes; the object is the service account's `SERVICE_CONFIG_ID`.
    SegmentKey,
    /// A vendor's keys for one of its admins; the object is the admin's number.
    VendorKeys,
}

impl Kind {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::KmsConfig => 1,
            Self::LoggingConfig => 2,
            Self::SegmentKey => 3,
            Self::VendorKeys => 4,
        }
    }
}

/// What an envelope is bound to, besides its epoch. Both ends know it; it does not travel inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Whose it is.
    pub vendor: Vendor,
    /// What is in it.
    pub kind: Kind,
    /// Version of the content's schema.
    pub schema: u16,
    /// The object's number.
    pub object: u64,
    /// Counts the object's contents up, from 1.
    pub revision: u64,
}

/// Size of what an envelope is bound to, in bytes.
const AAD_BYTES: usize = 1 + EPOCH_BYTES + 1 + 2 + 8 + 8 + 8 + VendorFingerprint::LEN;

impl Binding {
    /// All fields, each of a fixed size, so that no two bindings share their bytes.
    fn aad(&self, epoch: Epoch) -> Vec<u8> {
        let mut aad = Vec::with_capacity(AAD_BYTES);
        aad.push(FORMAT_VERSION);
        aad.extend(epoch.0.to_be_bytes());
        aad.push(self.kind.byte());
        aad.extend(self.schema.to_be_bytes());
        aad.extend(self.object.to_be_bytes());
        aad.extend(self.revision.to_be_bytes());
        aad.extend(self.vendor.segment.to_be_bytes());
        aad.extend(self.vendor.fingerprint.as_bytes());
        aad
    }
}

/// Why an envelope was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It is too short or too long to be one.
    Malformed,
    /// It is of a version of the format that this program does not know.
    UnknownVersion(u8),
    /// It was sealed for another epoch's key.
    WrongEpoch {
        /// The envelope's.
        found: Epoch,
        /// The key's.
        expected: Epoch,
    },
    /// It was changed, belongs to something else, or is for another key.
    NotAuthentic,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("it has not the size of an envelope"),
            Self::UnknownVersion(version) => {
                write!(f, "it is of version {version}, which is not known here")
            }
            Self::WrongEpoch { found, expected } => {
                write!(f, "it is of epoch {found}, and the key is of epoch {expected}")
            }
            Self::NotAuthentic => f.write_str(
                "it is not authentic: changed, of another object or vendor, or sealed to another key",
            ),
        }
    }
}

impl std::error::Error for OpenError {}

/// The content is too large to be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max = ENVELOPE_BYTES_MAX - OVERHEAD_BYTES;
        write!(f, "it has more than {max} bytes")
    }
}

impl std::error::Error for TooLarge {}

/// Seals `content` to `key`, which is of `epoch`, and binds it to `binding`.
///
/// # Errors
/// [`TooLarge`].
pub fn seal(
    key: &PublicKey,
    epoch: Epoch,
    binding: &Binding,
    content: &[u8],
    random: &mut impl CryptoRng,
) -> Result<Vec<u8>, TooLarge> {
    if content.len() > ENVELOPE_BYTES_MAX - OVERHEAD_BYTES {
        return Err(TooLarge);
    }
    let (encapsulated, ciphertext) =
        hpke_seal(key, INFO, &binding.aad(epoch), content, random).ok_or(TooLarge)?;
    let mut envelope = Vec::with_capacity(OVERHEAD_BYTES + content.len());
    envelope.push(FORMAT_VERSION);
    envelope.extend(epoch.0.to_be_bytes());
    envelope.extend(encapsulated);
    envelope.extend(ciphertext);
    Ok(envelope)
}

/// Opens an envelope with `key`, which is of `epoch`. What comes out is wiped on drop.
///
/// # Errors
/// [`OpenError`], which tells nothing of the content.
pub fn open(
    key: &PrivateKey,
    epoch: Epoch,
    binding: &Binding,
    envelope: &[u8],
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let found = epoch_of(envelope)?;
    if found != epoch {
        return Err(OpenError::WrongEpoch {
            found,
            expected: epoch,
        });
    }
    let parts = envelope
        .get(1 + EPOCH_BYTES..HEAD_BYTES)
        .zip(envelope.get(HEAD_BYTES..));
    let (encapsulated, ciphertext) = parts.ok_or(OpenError::Malformed)?;
    hpke_open(key, encapsulated, INFO, &binding.aad(epoch), ciphertext)
        .ok_or(OpenError::NotAuthentic)
}

/// The epoch that an envelope says it is of. Only [`open`] proves it.
///
/// # Errors
/// [`OpenError::Malformed`], [`OpenError::UnknownVersion`].
pub fn epoch_of(envelope: &[u8]) -> Result<Epoch, OpenError> {
    if !(OVERHEAD_BYTES..=ENVELOPE_BYTES_MAX).contains(&envelope.len()) {
        return Err(OpenError::Malformed);
    }
    match envelope {
        [FORMAT_VERSION, a, b, c, d, ..] => Ok(Epoch(u32::from_be_bytes([*a, *b, *c, *d]))),
        [version, ..] => Err(OpenError::UnknownVersion(*version)),
        [] => Err(OpenError::Malformed),
    }
}

type Kem = X25519HkdfSha256;

/// `None` only beyond what AES-GCM can encrypt, or for a key that is a point of small order.
fn hpke_seal(
    key: &PublicKey,
    info: &[u8],
    aad: &[u8],
    content: &[u8],
    random: &mut impl CryptoRng,
) -> Option<(Vec<u8>, Vec<u8>)> {
    let key = <Kem as hpke::Kem>::PublicKey::from_bytes(key.as_bytes()).ok()?;
    let (encapsulated, mut context) =
        setup_sender_with_rng::<AesGcm256, HkdfSha256, Kem>(&OpModeS::Base, &key, info, random)
            .ok()?;
    let ciphertext = context.seal(content, aad).ok()?;
    Some((encapsulated.to_bytes().to_vec(), ciphertext))
}

/// By another library than [`hpke_seal`]: a proxy opens tens of thousands at its start, and this one's X25519 is AWS-LC's.
fn hpke_open(
    key: &PrivateKey,
    encapsulated: &[u8],
    info: &[u8],
    aad: &[u8],
    ciphertext: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let key = HpkePrivateKey::from(key.expose().to_vec());
    let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
    DH_KEM_X25519_HKDF_SHA256_AES_256
        .open(&encapsulated, info, aad, ciphertext, &key)
        .ok()
        .map(Zeroizing::new)
}

#[cfg(test)]
mod tests;
