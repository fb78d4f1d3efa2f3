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
        if now.saturating_duration_since(reseeded_at) >= RESEED_AGE {
            self.reseed(now);
        }
        while !out.is_empty() {
            if self.used == BLOCK_BYTES {
                if self.since_reseed >= RESEED_BYTES {
                    self.reseed(now);
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        Instant::now()
    }

    fn bytes(random: &CoreRandom, count: usize, now: Instant) -> Vec<u8> {
        let mut out = vec![0; count];
        random.fill(&mut out, now);
        out
    }

    #[test]
    fn the_stream_is_chacha20_under_a_key_that_is_replaced_with_each_block() {
        let key = [7; KEY_BYTES];
        let now = now();
        let out = bytes(
            &CoreRandom::from_key(key),
            2 * (BLOCK_BYTES - KEY_BYTES),
            now,
        );
        let mut expected = Vec::new();
        let mut key = key;
        for _ in 0..2 {
            let mut block = [0; BLOCK_BYTES];
            ChaCha20Rng::from_seed(key).fill_bytes(&mut block);
            key.copy_from_slice(&block[..KEY_BYTES]);
            expected.extend_from_slice(&block[KEY_BYTES..]);
        }
        assert_eq!(out, expected);
    }

    #[test]
    fn rand_chachas_first_block_is_that_of_rfc_8439() {
        // RFC 8439, appendix A.1, test vector 1: key and nonce zero, block 0.
        let mut out = [0; 16];
        ChaCha20Rng::from_seed([0; 32]).fill_bytes(&mut out);
        let expected = [
            0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90, 0x40, 0x5d, 0x6a, 0xe5, 0x53, 0x86,
            0xbd, 0x28,
        ];
        assert_eq!(out, expected);
    }

    #[test]
    fn pieces_make_the_same_stream_as_the_whole() {
        let now = now();
        let whole = bytes(&CoreRandom::from_key([9; 32]), 5000, now);
        let random = CoreRandom::from_key([9; 32]);
        let mut pieces = Vec::new();
        for count in [0, 1, 31, 32, 999, 1937, 2000] {
            pieces.extend(bytes(&random, count, now));
        }
        assert_eq!(pieces, whole);
    }

    #[test]
    fn what_was_given_out_is_not_kept() {
        let random = CoreRandom::from_key([3; 32]);
        let out = bytes(&random, 100, now());
        let drbg = random.0.borrow();
        assert!(drbg.block[..KEY_BYTES + 100].iter().all(|byte| *byte == 0));
        assert_ne!(drbg.key, [3; 32]);
        assert!(!drbg.block.windows(16).any(|window| window == &out[..16]));
    }

    #[test]
    fn it_reseeds_after_so_many_bytes_and_after_a_time() {
        let begin = now();
        let (one, two) = (CoreRandom::from_key([5; 32]), CoreRandom::from_key([5; 32]));
        let half = RESEED_BYTES / 2;
        assert!(bytes(&one, half, begin) == bytes(&two, half, begin));
        assert!(bytes(&one, 2 * RESEED_BYTES, begin) != bytes(&two, 2 * RESEED_BYTES, begin));

        let (one, two) = (CoreRandom::from_key([5; 32]), CoreRandom::from_key([5; 32]));
        assert_eq!(bytes(&one, 32, begin), bytes(&two, 32, begin));
        let later = begin + RESEED_AGE;
        assert_ne!(bytes(&one, 32, later), bytes(&two, 32, later));
        assert_eq!(one.0.borrow().reseeded_at, Some(later));
    }

    #[test]
    fn two_cores_differ() {
        let (one, two) = (CoreRandom::new().unwrap(), CoreRandom::new().unwrap());
        assert_ne!(bytes(&one, 32, now()), bytes(&two, 32, now()));
    }
}
