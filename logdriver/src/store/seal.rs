//! Encryption at rest: AES-256-GCM per block, with a key per run of the process.
//!
//! A run's key comes of the root key and the run's random salt, which lies in the store; nonces count within a run. So no
//! nonce is used twice, also where a transaction failed and its content was written anew. Each block is bound to what its
//! row says of it, so rows cannot be swapped.

use std::collections::HashMap;

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, Payload},
};
use hkdf::Hkdf;
use sha2::Sha256;
use tsp_wire::Secret;
use zeroize::Zeroizing;

/// Bytes of a run's salt.
pub(crate) const SALT_BYTES: usize = 32;

/// Bytes of AES-GCM's nonces.
const NONCE_BYTES: usize = 12;

/// What the root key is derived for.
const ROOT_LABEL: &[u8] = b"tsp-logdriver store 1";
const RUN_LABEL: &[u8] = b"tsp-logdriver run 1";

/// The key that all others come of.
#[derive(Debug)]
pub struct RootKey(Secret<[u8; 32]>);

impl RootKey {
    /// Out of the service account's private encryption key, or of a key that was made for this store.
    #[must_use]
    pub fn derive(secret: &[u8]) -> Self {
        Self(Secret::new(*expand(
            &Hkdf::<Sha256>::new(None, secret),
            &[ROOT_LABEL],
        )))
    }

    /// What tells one root key from another, and nothing more of either.
    pub(crate) fn print(&self) -> [u8; 32] {
        *expand(&self.hkdf(None), &[b"tsp-logdriver print 1"])
    }

    /// Seals something else that lies in the store or beside it; `label` says what.
    pub(crate) fn wrap(&self, label: &[u8], content: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).ok()?;
        let sealed = self.purpose(label).encrypt(&nonce.into(), content).ok()?;
        Some([nonce.as_slice(), &sealed].concat())
    }

    /// Opens what [`Self::wrap`] sealed under the same label.
    pub(crate) fn unwrap(&self, label: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let opened = self.purpose(label).decrypt(&(*nonce).into(), sealed);
        opened.ok().map(Zeroizing::new)
    }

    fn purpose(&self, label: &[u8]) -> Aes256Gcm {
        let key = expand(&self.hkdf(None), &[b"tsp-logdriver purpose 1", label]);
        Aes256Gcm::new(&(*key).into())
    }

    fn hkdf(&self, salt: Option<&[u8]>) -> Hkdf<Sha256> {
        Hkdf::new(salt, self.0.expose())
    }

    fn run(&self, salt: &[u8]) -> Aes256Gcm {
        let key = expand(&self.hkdf(Some(salt)), &[RUN_LABEL]);
        Aes256Gcm::new(&(*key).into())
    }
}

#[expect(
    clippy::expect_used,
    reason = "32 bytes are a length that HKDF-SHA256 has"
)]
fn expand(hkdf: &Hkdf<Sha256>, info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    hkdf.expand_multi_info(info, key.as_mut_slice())
        .expect("a valid length");
    key
}

/// What a sealed content is bound to: all that its row says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    /// Which table.
    pub(crate) kind: Kind,
    /// The tenant's number in the store.
    pub(crate) tenant: i64,
    /// Sequence of its first event.
    pub(crate) first: i64,
    /// How many events.
    pub(crate) events: i64,
}

/// Kinds of sealed contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Events that wait.
    Block,
    /// Dead letters.
    Dead,
}

impl Binding {
    fn bytes(self) -> [u8; 25] {
        let mut bytes = [0; 25];
        let kind = match self.kind {
            Kind::Block => 1,
            Kind::Dead => 2,
        };
        let numbers = [self.tenant, self.first, self.events];
        let all = std::iter::once(kind).chain(numbers.into_iter().flat_map(i64::to_be_bytes));
        for (to, from) in bytes.iter_mut().zip(all) {
            *to = from;
        }
        bytes
    }
}

/// A sealed content and what it takes to open it.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) run: i64,
    pub(crate) nonce: i64,
    pub(crate) content: Vec<u8>,
}

/// Seals with the key of this run.
pub(crate) struct Sealer {
    run: i64,
    cipher: Aes256Gcm,
    nonce: i64,
}

impl Sealer {
    pub(crate) fn new(root: &RootKey, run: i64, salt: &[u8]) -> Self {
        Self {
            run,
            cipher: root.run(salt),
            nonce: 0,
        }
    }

    /// `None` only if the content is larger than AES-GCM can take, which no block is.
    pub(crate) fn seal(&mut self, binding: Binding, content: &[u8]) -> Option<Sealed> {
        self.nonce = self.nonce.checked_add(1)?;
        let payload = Payload {
            msg: content,
            aad: &binding.bytes(),
        };
        let content = self
            .cipher
            .encrypt(&nonce(self.nonce).into(), payload)
            .ok()?;
        Some(Sealed {
            run: self.run,
            nonce: self.nonce,
            content,
        })
    }
}

/// Opens what any run sealed.
pub(crate) struct Opener {
    ciphers: HashMap<i64, Aes256Gcm>,
}

impl Opener {
    pub(crate) fn new<'a>(root: &RootKey, runs: impl Iterator<Item = (i64, &'a [u8])>) -> Self {
        let ciphers = runs.map(|(run, salt)| (run, root.run(salt))).collect();
        Self { ciphers }
    }

    /// `None` if the content was changed, or belongs elsewhere.
    pub(crate) fn open(
        &self,
        binding: Binding,
        run: i64,
        counter: i64,
        content: &[u8],
    ) -> Option<Vec<u8>> {
        let payload = Payload {
            msg: content,
            aad: &binding.bytes(),
        };
        self.ciphers
            .get(&run)?
            .decrypt(&nonce(counter).into(), payload)
            .ok()
    }
}

fn nonce(counter: i64) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    for (to, from) in nonce.iter_mut().skip(4).zip(counter.to_be_bytes()) {
        *to = from;
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINDING: Binding = Binding {
        kind: Kind::Block,
        tenant: 3,
        first: 17,
        events: 2,
    };

    #[test]
    fn a_content_opens_with_the_same_key_run_and_row_alone() {
        let root = RootKey::derive(b"a key");
        let mut sealer = Sealer::new(&root, 1, &[7; SALT_BYTES]);
        let sealed = sealer.seal(BINDING, b"events").unwrap();
        let opener = Opener::new(&root, [(1, [7; SALT_BYTES].as_slice())].into_iter());
        let open = |binding, content: &[u8]| opener.open(binding, 1, sealed.nonce, content);
        assert_eq!(open(BINDING, &sealed.content).unwrap(), b"events");
        let others = [
            Binding {
                first: 18,
                ..BINDING
            },
            Binding {
                tenant: 4,
                ..BINDING
            },
            Binding {
                events: 3,
                ..BINDING
            },
            Binding {
                kind: Kind::Dead,
                ..BINDING
            },
        ];
        for other in others {
            assert_eq!(open(other, &sealed.content), None);
        }
        let mut changed = sealed.content.clone();
        changed[2] ^= 1;
        assert_eq!(open(BINDING, &changed), None);
        assert_eq!(opener.open(BINDING, 2, sealed.nonce, &sealed.content), None);
        let stranger = RootKey::derive(b"another key");
        let stranger = Opener::new(&stranger, [(1, [7; SALT_BYTES].as_slice())].into_iter());
        assert_eq!(
            stranger.open(BINDING, 1, sealed.nonce, &sealed.content),
            None
        );
    }

    #[test]
    fn no_nonce_comes_twice() {
        let mut sealer = Sealer::new(&RootKey::derive(b"a key"), 1, &[7; SALT_BYTES]);
        let first = sealer.seal(BINDING, b"same").unwrap();
        let second = sealer.seal(BINDING, b"same").unwrap();
        assert_ne!(first.nonce, second.nonce);
        assert_ne!(first.content, second.content);
    }
}
