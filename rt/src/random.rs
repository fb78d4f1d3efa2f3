//! A core's source of random bytes: ChaCha20 with fast key erasure, reseeded from the kernel.
//!
//! Each refill runs ChaCha20 under the current key and takes the first 32 bytes of the output as the next key; bytes are
//! wiped as they are handed out. So what is in memory at any time tells nothing about bytes given before (fast key
//! erasure, D. J. Bernstein, 2017). ChaCha20 is RFC 8439's.

use std::cell::RefCell;
use std::io;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use zeroize::Zeroize;

/// Length of a ChaCha20 key, in bytes.
const KEY_BYTES: usize = 32;

/// Output per refill, in bytes, the next key included: 31 document keys for one set-up of the cipher.
const BLOCK_BYTES: usize = 1024;

/// Output after which the kernel's randomness is mixed in again. ChaCha20 would allow far more; this bounds how long a
/// key that leaked (a core dump, a cold-boot copy) predicts what follows, at a cost of one system call per 32,768 keys.
const RESEED_BYTES: usize = 1 << 20;

/// Age after which the same happens on a core that needs few keys, and so that a resumed VM snapshot, which starts twice
/// from one state, parts from its twin soon.
const RESEED_AGE: Duration = Duration::from_secs(60);

/// One core's generator. Not shared: each core has its own.
pub(crate) struct CoreRandom(RefCell<Drbg>);

struct Drbg {
    key: [u8; KEY_BYTES],
    block: [u8; BLOCK_BYTES],
    /// Bytes of `block` that were handed out, and wiped.
    used: usize,
    /// Bytes generated since the last reseed.
    since_reseed: usize,
    reseeded_at: Option<Instant>,
}

impl CoreRandom {
    /// Seeds from the kernel.
    pub(crate) fn new() -> io::Result<Self> {
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(io::Error::from)?;
        Ok(Self::from_key(key))
    }

    fn from_key(key: [u8; KEY_BYTES]) -> Self {
        Self(RefCell::new(Drbg {
            key,
            block: [0; BLOCK_BYTES],
            used: BLOCK_BYTES,
            since_reseed: 0,
            reseeded_at: None,
        }))
    }

    /// Fills `out`; `now` decides whether it is time to reseed.
    pub(crate) fn fill(&self, out: &mut [u8], now: Instant) {
        self.0.borrow_mut().fill(out, now);
    }
}

impl Drbg {
    fn fill(&mut self, mut out: &mut [u8], now: Instant) {
        let reseeded_at = *self.reseeded_at.get_or_insert(now);
        if self.since_reseed >= RESEED_BYTES
            || now.saturating_duration_since(reseeded_at) >= RESEED_AGE
        {
            self.reseed(now);
        }
        while !out.is_empty() {
            if self.used == BLOCK_BYTES {
                self.refill();
            }
            let Some(unused) = self.block.get_mut(self.used..) else {
                return;
            };
            let length = unused.len().min(out.len());
            let (now_out, later) = out.split_at_mut(length);
            let (fresh, _) = unused.split_at_mut(length);
            now_out.copy_from_slice(fresh);
            fresh.zeroize();
            self.used += length;
            out = later;
        }
    }

    fn refill(&mut self) {
        let mut cipher = ChaCha20Rng::from_seed(self.key);
        cipher.fill_bytes(&mut self.block);
        let (key, _) = self.block.split_at_mut(KEY_BYTES);
        self.key.copy_from_slice(key);
        key.zeroize();
        self.used = KEY_BYTES;
        self.since_reseed += BLOCK_BYTES;
        // The cipher's own state has no wiping destructor; overwrite it with one made of a public key.
        cipher = ChaCha20Rng::from_seed([0; KEY_BYTES]);
        std::hint::black_box(&cipher);
    }

    /// Mixes fresh bytes of the kernel into the key. Xor: the result is as good as the better of the two.
    fn reseed(&mut self, now: Instant) {
        let mut fresh = [0; KEY_BYTES];
        // It cannot fail once it worked at start; if it does, the old key is still good.
        if let Err(error) = getrandom::fill(&mut fresh) {
            tracing::error!("no fresh randomness from the kernel, the old seed stays: {error}");
        }
        for (key, fresh) in self.key.iter_mut().zip(&fresh) {
            *key ^= fresh;
        }
        fresh.zeroize();
        // What is left of the old block was made from the old key.
        self.block.zeroize();
        self.used = BLOCK_BYTES;
        self.since_reseed = 0;
        self.reseeded_at = Some(now);
    }
}

impl Drop for Drbg {
    fn drop(&mut self) {
        self.key.zeroize();
        self.block.zeroize();
    }
}
