//! Leased keys: AES-256-GCM with the schedule expanded once, as the proxy's EDEKs have it (no additional data).

use std::{
    cell::RefCell,
    fmt,
    time::{Duration, Instant},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use tsp_wire::{KmsConfigId, edek::LeasedForm};

use crate::kms::KEY_BYTES;

/// How long a key serves until the KMS is asked again: the proxy's own default.
const KEY_AGE_MAX: Duration = Duration::from_secs(900);

/// A key in memory.
pub(crate) struct LeasedKey {
    key: LessSafeKey,
    until: Instant,
}

impl fmt::Debug for LeasedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeasedKey(redacted)")
    }
}

/// A key to wrap with.
#[derive(Debug)]
pub(crate) struct Lease {
    key: LeasedKey,
    form: LeasedForm,
}

impl LeasedKey {
    /// `None` never comes of 32 bytes.
    pub(crate) fn new(key: &[u8; KEY_BYTES], now: Instant) -> Option<Self> {
        let key = UnboundKey::new(&AES_256_GCM, key).ok()?;
        Some(Self {
            key: LessSafeKey::new(key),
            until: now + KEY_AGE_MAX,
        })
    }

    pub(crate) fn serves(&self, now: Instant) -> bool {
        now < self.until
    }

    /// Opens a DEK; `None` if it does not fit.
    pub(crate) fn open(&self, iv: &[u8], sealed: &[u8]) -> Option<[u8; KEY_BYTES]> {
        let iv: [u8; LeasedForm::IV_BYTES] = iv.try_into().ok()?;
        let mut sealed: [u8; LeasedForm::DATA_BYTES] = sealed.try_into().ok()?;
        let nonce = Nonce::assume_unique_for_key(iv);
        let opened = self
            .key
            .open_in_place(nonce, Aad::empty(), &mut sealed)
            .ok()?;
        (&*opened).try_into().ok()
    }
}

impl Lease {
    pub(crate) fn new(
        key: &[u8; KEY_BYTES],
        wrapped: &[u8],
        config: KmsConfigId,
        now: Instant,
    ) -> Option<Self> {
        Some(Self {
            key: LeasedKey::new(key, now)?,
            form: LeasedForm::new(config, 1, wrapped),
        })
    }

    pub(crate) fn serves(&self, now: Instant) -> bool {
        self.key.serves(now)
    }

    /// Wraps a DEK and gives the EDEK; `None` never comes of 32 bytes.
    pub(crate) fn wrap(&self, dek: &[u8; KEY_BYTES]) -> Option<Vec<u8>> {
        let mut iv = [0; LeasedForm::IV_BYTES];
        random(&mut iv);
        let mut sealed = [0; LeasedForm::DATA_BYTES];
        let (encrypted, tag) = sealed.split_at_mut(KEY_BYTES);
        encrypted.copy_from_slice(dek);
        let nonce = Nonce::assume_unique_for_key(iv);
        let made = self
            .key
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), encrypted)
            .ok()?;
        tag.copy_from_slice(made.as_ref());
        let mut edek = Vec::new();
        self.form.write(&mut edek, &iv, &sealed);
        Some(edek)
    }
}

/// Random bytes from this thread's generator, which the kernel seeded once.
pub(crate) fn random(bytes: &mut [u8]) {
    thread_local! {
        static GENERATOR: RefCell<ChaCha20Rng> = RefCell::new(seeded());
    }
    GENERATOR.with_borrow_mut(|generator| generator.fill_bytes(bytes));
}

fn seeded() -> ChaCha20Rng {
    let mut seed = [0; 32];
    #[expect(
        clippy::expect_used,
        reason = "without randomness there is nothing that a stand could measure"
    )]
    getrandom::fill(&mut seed).expect("the kernel gives random bytes");
    ChaCha20Rng::from_seed(seed)
}
