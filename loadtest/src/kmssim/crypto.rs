//! The cryptography of real KMSs: AES-256-GCM, RSA key wrapping, AES key wrapping, and keys derived from a seed.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    key_wrap::{AES_128, AES_256, AesKek, KeyWrap as _},
    rsa::{
        KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm,
        OaepPrivateDecryptingKey, OaepPublicEncryptingKey, Pkcs1PrivateDecryptingKey,
        Pkcs1PublicEncryptingKey, PrivateDecryptingKey, PublicKey,
    },
};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};

/// Bytes of a GCM nonce.
pub(crate) const NONCE_BYTES: usize = 12;
/// Bytes of a GCM tag.
pub(crate) const TAG_BYTES: usize = 16;

/// What all keys of one simulated world are derived from, so that it decrypts its blobs again after a restart.
#[derive(Clone)]
pub(crate) struct Seed(hmac::Key);

impl Seed {
    pub(crate) fn new(seed: u64) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &seed.to_be_bytes()))
    }

    /// 32 bytes that only this seed and these names give.
    pub(crate) fn derive(&self, names: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        for name in names {
            context.update(&u64::try_from(name.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(name);
        }
        let mut out = [0; 32];
        let tag = context.sign();
        for (to, from) in out.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        out
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed")
    }
}

/// A seeded source of random bytes: a simulator with the same seed does the same.
#[derive(Debug)]
pub(crate) struct Random(ChaCha20Rng);

impl Random {
    pub(crate) fn new(seed: &Seed, purpose: &str) -> Self {
        Self(ChaCha20Rng::from_seed(
            seed.derive(&[b"random", purpose.as_bytes()]),
        ))
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }

    pub(crate) fn vec(&mut self, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.0.fill_bytes(&mut out);
        out
    }

    /// Evenly from 0 up to but without 1.
    pub(crate) fn unit(&mut self) -> f64 {
        /// Bits that a double's fraction holds, with the hidden one.
        const BITS: u32 = 53;
        #[expect(
            clippy::cast_precision_loss,
            reason = "53 bits are what a double holds exactly"
        )]
        let number = (self.0.next_u64() >> (64 - BITS)) as f64;
        number / (1_u64 << BITS) as f64
    }

    /// A version 4 UUID.
    pub(crate) fn uuid(&mut self) -> String {
        uuid(self.bytes())
    }
}

/// 16 bytes in the shape of a version 4 UUID.
pub(crate) fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32)
    )
}

/// An AES-256-GCM key.
pub(crate) struct Gcm(LessSafeKey);

impl Gcm {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        #[expect(clippy::expect_used, reason = "32 bytes are a key of AES-256")]
        let unbound = UnboundKey::new(&AES_256_GCM, key).expect("the right size");
        Self(LessSafeKey::new(unbound))
    }

    /// Ciphertext and tag.
    pub(crate) fn seal(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        plaintext: &[u8],
    ) -> (Vec<u8>, [u8; TAG_BYTES]) {
        let mut text = plaintext.to_vec();
        #[expect(clippy::expect_used, reason = "GCM seals up to 64 GiB")]
        let sealed = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                &mut text,
            )
            .expect("within GCM's bounds");
        let mut tag = [0; TAG_BYTES];
        for (to, from) in tag.iter_mut().zip(sealed.as_ref()) {
            *to = *from;
        }
        (text, tag)
    }

    /// The plaintext, if all of it is what was sealed.
    pub(crate) fn open(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8],
    ) -> Option<Vec<u8>> {
        let mut text = [ciphertext, tag].concat();
        if tag.len() != TAG_BYTES {
            return None;
        }
        let plain = self
            .0
            .open_in_place(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                &mut text,
            )
            .ok()?
            .len();
        text.truncate(plain);
        Some(text)
    }
}

impl fmt::Debug for Gcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gcm")
    }
}

/// AES key wrap (RFC 3394). `None` if key or plaintext have a size it does not take.
pub(crate) fn key_wrap(kek: &[u8], plaintext: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; plaintext.len() + 8];
    let written = kek_of(kek)?.wrap(plaintext, &mut out).ok()?.len();
    out.truncate(written);
    Some(out)
}

/// The reverse. `None` also if `wrapped` was not made with this key.
pub(crate) fn key_unwrap(kek: &[u8], wrapped: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; wrapped.len().checked_sub(8)?];
    let written = kek_of(kek)?.unwrap(wrapped, &mut out).ok()?.len();
    out.truncate(written);
    Some(out)
}

fn kek_of(kek: &[u8]) -> Option<AesKek> {
    let cipher = match kek.len() {
        16 => &AES_128,
        32 => &AES_256,
        _ => return None,
    };
    AesKek::new(cipher, kek).ok()
}

/// Paddings under which an RSA key wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Padding {
    /// OAEP with SHA-256.
    OaepSha256,
    /// OAEP with SHA-1.
    OaepSha1,
    /// PKCS #1 version 1.5.
    Pkcs1,
}

/// An RSA key pair, ready to wrap and unwrap.
pub(crate) struct Rsa {
    private: OaepPrivateDecryptingKey,
    public: OaepPublicEncryptingKey,
    private_pkcs1: Pkcs1PrivateDecryptingKey,
    public_pkcs1: Pkcs1PublicEncryptingKey,
    /// Big endian, without leading zeros.
    pub(crate) modulus: Vec<u8>,
    pub(crate) exponent: Vec<u8>,
}

impl Rsa {
    /// From PKCS #8 in PEM; text before it is skipped.
    pub(crate) fn from_pem(pem: &str) -> Option<Self> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).ok()?;
        Self::from_private(PrivateDecryptingKey::from_pkcs8(der.secret_pkcs8_der()).ok()?)
    }

    /// A new one of 2048 bits. Takes a core for about a tenth of a second.
    pub(crate) fn generate() -> Option<Self> {
        Self::from_private(PrivateDecryptingKey::generate(KeySize::Rsa2048).ok()?)
    }

    fn from_private(private: PrivateDecryptingKey) -> Option<Self> {
        let public = private.public_key();
        let der: PublicKeyX509Der<'_> = public.as_der().ok()?;
        let numbers = PublicKey::from_der(der.as_ref()).ok()?;
        Some(Self {
            modulus: numbers.modulus().big_endian_without_leading_zero().to_vec(),
            exponent: numbers
                .exponent()
                .big_endian_without_leading_zero()
                .to_vec(),
            private_pkcs1: Pkcs1PrivateDecryptingKey::new(private.clone()).ok()?,
            public_pkcs1: Pkcs1PublicEncryptingKey::new(private.public_key()).ok()?,
            private: OaepPrivateDecryptingKey::new(private).ok()?,
            public: OaepPublicEncryptingKey::new(public).ok()?,
        })
    }

    /// `None` if the plaintext is too long.
    pub(crate) fn wrap(&self, padding: Padding, plaintext: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; self.public.ciphertext_size()];
        let written = match oaep(padding) {
            Some(algorithm) => self.public.encrypt(algorithm, plaintext, &mut out, None),
            None => self.public_pkcs1.encrypt(plaintext, &mut out),
        };
        let length = written.ok()?.len();
        out.truncate(length);
        Some(out)
    }

    /// `None` if it does not decrypt.
    pub(crate) fn unwrap(&self, padding: Padding, wrapped: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; self.private.min_output_size()];
        let written = match oaep(padding) {
            Some(algorithm) => self.private.decrypt(algorithm, wrapped, &mut out, None),
            None => self.private_pkcs1.decrypt(wrapped, &mut out),
        };
        let length = written.ok()?.len();
        out.truncate(length);
        Some(out)
    }
}

impl fmt::Debug for Rsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rsa")
    }
}

fn oaep(padding: Padding) -> Option<&'static OaepAlgorithm> {
    match padding {
        Padding::OaepSha256 => Some(&OAEP_SHA256_MGF1SHA256),
        Padding::OaepSha1 => Some(&OAEP_SHA1_MGF1SHA1),
        Padding::Pkcs1 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_keys_again_and_other_names_give_others() {
        let (one, other) = (Seed::new(1), Seed::new(2));
        assert_eq!(
            one.derive(&[b"a", b"b"]),
            Seed::new(1).derive(&[b"a", b"b"])
        );
        assert_ne!(one.derive(&[b"a", b"b"]), one.derive(&[b"ab"]));
        assert_ne!(one.derive(&[b"a", b"b"]), other.derive(&[b"a", b"b"]));
    }

    #[test]
    fn random_numbers_lie_between_zero_and_one_and_repeat_with_the_seed() {
        let draw = || {
            let mut random = Random::new(&Seed::new(7), "test");
            (0..1000).map(|_| random.unit()).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
        assert!(draw().iter().all(|number| (0.0..1.0).contains(number)));
        let mean = draw().iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }

    #[test]
    fn gcm_opens_only_what_it_sealed() {
        let key = Gcm::new(&[7; 32]);
        let (text, tag) = key.seal([1; NONCE_BYTES], b"aad", b"plain");
        let open = |aad: &[u8], text: &[u8]| key.open([1; NONCE_BYTES], aad, text, &tag);
        assert_eq!(open(b"aad", &text).as_deref(), Some(&b"plain"[..]));
        assert_eq!(open(b"other", &text), None);
        assert_eq!(key.open([1; NONCE_BYTES], b"aad", &text, &tag[..15]), None);
    }

    #[test]
    fn rsa_unwraps_what_it_wrapped_under_each_padding() {
        let key = Rsa::from_pem(include_str!("data/azure-vault-a-TEST-ONLY.pem")).unwrap();
        assert_eq!(key.modulus.len(), 256);
        assert_eq!(key.exponent, [1, 0, 1]);
        for padding in [Padding::OaepSha256, Padding::OaepSha1, Padding::Pkcs1] {
            let wrapped = key.wrap(padding, &[9; 32]).unwrap();
            assert_eq!(wrapped.len(), 256);
            assert_eq!(key.unwrap(padding, &wrapped), Some(vec![9; 32]));
            assert_ne!(key.unwrap(padding, &[1; 256]), Some(vec![9; 32]));
        }
        assert_eq!(key.wrap(Padding::OaepSha256, &[0; 191]), None);
    }

    #[test]
    fn a_key_that_was_wrapped_with_aes_unwraps_only_with_the_same_key() {
        let wrapped = key_wrap(&[1; 32], &[2; 32]).unwrap();
        assert_eq!(wrapped.len(), 40);
        assert_eq!(key_unwrap(&[1; 32], &wrapped), Some(vec![2; 32]));
        assert_eq!(key_unwrap(&[3; 32], &wrapped), None);
        assert_eq!(key_unwrap(&[1; 32], &[]), None);
        assert_eq!(key_wrap(&[1; 31], &[2; 32]), None);
    }
}
