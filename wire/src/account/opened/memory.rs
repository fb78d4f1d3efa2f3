//! What was opened and proven, remembered: in memory, and sealed on disk.

use std::{collections::HashMap, fmt};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Inputs, Learned, Opened, Signed, length};
use crate::envelope::{KEY_BYTES, PrivateKey, VerifyingKey};

/// What the key is derived for that seals a memory.
const KEY_LABEL: &[u8] = b"tsp snapshot memory 1";

/// Before a content: inputs, signer and length.
const CONTENT_HEAD_BYTES: usize = size_of::<Inputs>() + KEY_BYTES + size_of::<u32>();

/// What was opened and proven before, so that it need not be again. It has the credentials of the KMS configs, in the clear.
#[derive(Default)]
pub struct Memory {
    pub(super) contents: HashMap<Inputs, Opened>,
    /// Whether the signature of an assignment is good.
    pub(super) assignments: HashMap<Inputs, bool>,
}

/// The key that seals an account's memory.
pub struct MemoryKey(RandomizedNonceKey);

impl fmt::Debug for MemoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryKey(redacted)")
    }
}

impl MemoryKey {
    /// Derives it from an account's private key. `None` never happens: the sizes are right.
    #[must_use]
    pub fn of(account: &PrivateKey) -> Option<Self> {
        let mut mac = Hmac::<Sha256>::new_from_slice(account.expose()).ok()?;
        mac.update(KEY_LABEL);
        let key: Zeroizing<[u8; 32]> = Zeroizing::new(mac.finalize().into_bytes().into());
        RandomizedNonceKey::new(&AES_256_GCM, key.as_slice())
            .ok()
            .map(Self)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (contents, assignments) = (self.contents.len(), self.assignments.len());
        write!(f, "Memory({contents} contents, {assignments} assignments)")
    }
}

impl Memory {
    /// Takes what a piece of work came to.
    pub fn learn(&mut self, learned: Learned) {
        self.contents.extend(learned.contents);
        self.assignments.extend(learned.assignments);
    }

    /// What is good of it, sealed. `None` if there are no random numbers.
    ///
    /// | bytes | content |
    /// | --- | --- |
    /// | 12 | nonce |
    /// | the rest | AES-256-GCM of what follows, and its tag |
    /// | 4 | number of contents, big-endian |
    /// | for each: 32, 32, 4 | hash of the inputs, signer, length of the content |
    /// | | the content |
    /// | 32 for each | hash of the inputs of an assignment whose signature is good |
    #[must_use]
    pub fn seal(&self, key: &MemoryKey) -> Option<Vec<u8>> {
        let good = |(inputs, opened): (&Inputs, &'_ Opened)| -> Option<_> {
            let Signed { signer, content } = opened.as_ref().ok()?;
            Some((*inputs, *signer, Zeroizing::new(content.to_vec())))
        };
        let contents: Vec<_> = self.contents.iter().filter_map(good).collect();
        let content_bytes = contents
            .iter()
            .map(|(_, _, content)| CONTENT_HEAD_BYTES + content.len());
        let size = size_of::<u32>()
            + content_bytes.sum::<usize>()
            + self.assignments.len() * size_of::<Inputs>()
            + AES_256_GCM.tag_len();
        // Whole from the start, so that nothing is left behind by a reallocation.
        let mut bytes = Zeroizing::new(Vec::with_capacity(size));
        bytes.extend(length(contents.len()));
        for (inputs, signer, content) in &contents {
            bytes.extend(inputs);
            bytes.extend(signer.as_bytes());
            bytes.extend(length(content.len()));
            bytes.extend(content.as_slice());
        }
        for (inputs, _) in self.assignments.iter().filter(|(_, good)| **good) {
            bytes.extend(inputs);
        }
        let nonce = key
            .0
            .seal_in_place_append_tag(Aad::empty(), &mut *bytes)
            .ok()?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + bytes.len());
        sealed.extend(nonce.as_ref());
        sealed.extend(bytes.as_slice());
        Some(sealed)
    }

    /// What [`Self::seal`] sealed with this key; `None` if it is something else.
    #[must_use]
    pub fn unseal(key: &MemoryKey, sealed: &[u8]) -> Option<Self> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key
            .0
            .open_in_place(nonce, Aad::empty(), bytes.as_mut_slice())
            .ok()?;
        Self::from_bytes(opened)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut memory = Self::default();
        let (count, mut rest) = bytes.split_first_chunk::<{ size_of::<u32>() }>()?;
        for _ in 0..u32::from_be_bytes(*count) {
            let (inputs, after) = rest.split_first_chunk::<{ size_of::<Inputs>() }>()?;
            let (signer, after) = after.split_first_chunk::<KEY_BYTES>()?;
            let (length, after) = after.split_first_chunk::<{ size_of::<u32>() }>()?;
            let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
            let (content, after) = after.split_at_checked(length)?;
            let signed = Signed {
                signer: VerifyingKey::from_bytes(*signer),
                content: Zeroizing::new(content.to_vec()),
            };
            memory.contents.insert(*inputs, Ok(signed));
            rest = after;
        }
        let (proven, rest) = rest.as_chunks::<{ size_of::<Inputs>() }>();
        memory.assignments = proven.iter().map(|inputs| (*inputs, true)).collect();
        rest.is_empty().then_some(memory)
    }
}
