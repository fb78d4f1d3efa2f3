//! The keys around envelopes: X25519 pairs that open them, Ed25519 pairs that vouch for those.

use std::{collections::HashMap, fmt};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey as Point, verify_batch};
use hpke::{Deserializable as _, Kem as _, Serializable as _, kem::X25519HkdfSha256};
use rand_core::CryptoRng;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::Epoch;
use crate::Secret;

/// Size of every key here but a whole signing key, in bytes.
pub const KEY_BYTES: usize = 32;

/// Size of a signature, in bytes.
pub const SIGNATURE_BYTES: usize = 64;

/// An X25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Takes the 32 bytes of a key.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// An X25519 private key. Wiped on drop.
#[derive(Debug)]
pub struct PrivateKey(Secret<[u8; KEY_BYTES]>);

impl PrivateKey {
    /// Makes a new one.
    pub fn generate(random: &mut impl CryptoRng) -> Self {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        random.fill_bytes(&mut *bytes);
        Self(Secret::new(*bytes))
    }

    /// Copies a key out of `bytes`; `None` unless they are 32. The caller wipes `bytes`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let bytes: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(bytes.try_into().ok()?);
        Some(Self(Secret::new(*bytes)))
    }

    /// The public key that goes with it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        // Every 32 bytes are a private key once they are clamped, which `from_bytes` does.
        let key = <X25519HkdfSha256 as hpke::Kem>::PrivateKey::from_bytes(self.expose());
        let public = key.map(|key| X25519HkdfSha256::sk_to_pk(&key).to_bytes().into());
        PublicKey(public.unwrap_or_default())
    }

    /// The key's bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        self.0.expose()
    }
}

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerifyingKey([u8; KEY_BYTES]);

impl VerifyingKey {
    /// Takes the 32 bytes of a key.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Whether `signature` is this key's for `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(message, signature)
            .is_ok()
    }

    /// What names this key where there is no room for all of it.
    #[must_use]
    pub fn fingerprint(&self) -> VendorFingerprint {
        let digest: [u8; 32] = Sha256::new_with_prefix(b"tsp vendor key 1")
            .chain_update(self.0)
            .finalize()
            .into();
        let mut fingerprint = [0; VendorFingerprint::LEN];
        for (to, from) in fingerprint.iter_mut().zip(digest) {
            *to = from;
        }
        VendorFingerprint(fingerprint)
    }
}

/// That a key signed a statement, which is still to be proven.
pub(crate) struct Claim {
    pub(crate) key: VerifyingKey,
    /// Wiped, since contents are in it.
    pub(crate) statement: Zeroizing<Vec<u8>>,
    pub(crate) signature: [u8; SIGNATURE_BYTES],
}

impl Claim {
    /// Whether it is true.
    pub(crate) fn holds(&self) -> bool {
        self.key.verifies(&self.statement, &self.signature)
    }
}

/// Which of `claims` are true. All at once take less than half the time of each for itself, so they are looked at one by one
/// only if not all are.
pub(crate) fn prove(claims: &[&Claim]) -> Vec<bool> {
    if all_hold(claims) {
        return vec![true; claims.len()];
    }
    claims.iter().map(|claim| claim.holds()).collect()
}

/// Whether all are true: a random combination of their equations holds.
fn all_hold(claims: &[&Claim]) -> bool {
    // Most are of one signer, whose point is found once.
    let mut known: HashMap<VerifyingKey, Point> = HashMap::new();
    let mut keys = Vec::with_capacity(claims.len());
    for claim in claims {
        let key = match known.get(&claim.key) {
            Some(key) => *key,
            None => {
                let Ok(key) = Point::from_bytes(claim.key.as_bytes()) else {
                    return false;
                };
                known.insert(claim.key, key);
                key
            }
        };
        keys.push(key);
    }
    let statements: Vec<_> = claims
        .iter()
        .map(|claim| claim.statement.as_slice())
        .collect();
    let signatures: Vec<_> = claims
        .iter()
        .map(|claim| Signature::from_bytes(&claim.signature))
        .collect();
    verify_batch(&statements, &signatures, &keys).is_ok()
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// An Ed25519 key pair: its seed, and the public key. Wiped on drop.
pub struct SigningKey(Secret<[u8; Self::LEN]>);

impl SigningKey {
    /// Size of a key pair, in bytes: 32 of the seed, 32 of the public key.
    pub const LEN: usize = 2 * KEY_BYTES;

    /// Makes a new one. `None` never happens: every seed makes a key pair.
    #[must_use]
    pub fn generate(random: &mut impl CryptoRng) -> Option<Self> {
        let mut seed = Zeroizing::new([0; KEY_BYTES]);
        random.fill_bytes(&mut *seed);
        Self::from_seed(&seed)
    }

    /// The key pair that `seed` makes. The caller wipes `seed`.
    #[must_use]
    pub fn from_seed(seed: &[u8; KEY_BYTES]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let mut bytes = Zeroizing::new([0; Self::LEN]);
        for (to, from) in bytes
            .iter_mut()
            .zip(seed.iter().chain(pair.public_key().as_ref()))
        {
            *to = *from;
        }
        Some(Self(Secret::new(*bytes)))
    }

    /// Copies a key pair out of `bytes`; `None` unless they are 64 and the halves belong together. The caller wipes `bytes`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let (seed, public) = bytes.split_first_chunk::<KEY_BYTES>()?;
        let key = Self::from_seed(seed)?;
        (key.verifying().as_bytes().as_slice() == public).then_some(key)
    }

    /// The public half.
    #[must_use]
    pub fn verifying(&self) -> VerifyingKey {
        let public = self.expose().last_chunk::<KEY_BYTES>();
        VerifyingKey(public.copied().unwrap_or_default())
    }

    /// Signs `message`. `None` never happens: the halves were made together.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Option<[u8; SIGNATURE_BYTES]> {
        let pair = Ed25519KeyPair::from_seed_unchecked(self.seed()).ok()?;
        pair.sign(message).as_ref().try_into().ok()
    }

    /// The half that makes the other one.
    #[must_use]
    pub fn seed(&self) -> &[u8] {
        self.expose().split_at(KEY_BYTES).0
    }

    /// Seed and public key.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LEN] {
        self.0.expose()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(redacted)")
    }
}

/// Names a vendor's key: the first 24 bytes of a SHA-256 over it. Part of every id of a service account.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VendorFingerprint(pub(crate) [u8; Self::LEN]);

impl VendorFingerprint {
    /// Its size, in bytes.
    pub const LEN: usize = 24;

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The fingerprint that [`fmt::Display`] spelt.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for VendorFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for VendorFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VendorFingerprint({self})")
    }
}

/// A segment's key of one epoch, and the vendor's word that it is that.
///
/// Who seals to a segment or gets its private key has both from the broker; only this tells that the broker did not make
/// them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentKey {
    /// The segment's number.
    pub segment: u64,
    /// Which of its keys.
    pub epoch: Epoch,
    /// What configurations are sealed to.
    pub public: PublicKey,
}

impl SegmentKey {
    fn statement(&self) -> Vec<u8> {
        let mut statement = b"tsp segment key 1".to_vec();
        statement.extend(self.segment.to_be_bytes());
        statement.extend(self.epoch.0.to_be_bytes());
        statement.extend(self.public.as_bytes());
        statement
    }

    /// The vendor's signature. `None` never happens.
    #[must_use]
    pub fn sign(&self, vendor: &SigningKey) -> Option<[u8; SIGNATURE_BYTES]> {
        vendor.sign(&self.statement())
    }

    /// Whether `vendor` signed it.
    #[must_use]
    pub fn is_signed(&self, vendor: &VerifyingKey, signature: &[u8]) -> bool {
        vendor.verifies(&self.statement(), signature)
    }
}
