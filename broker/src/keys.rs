//! An admin's keys, and what they open. All of it happens on the admin's machine.
//!
//! Passphrase and secret key together make, by Argon2id (RFC 9106), the key of the vault and the key that signs logins. The
//! secret key has 256 random bits, stays in the admin's profile and is never sent: whoever steals the broker's database has
//! nothing to try passphrases against. Who steals the profile has to try them against the broker, which counts.

use std::fmt;

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, Payload},
};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use sha2::{Digest as _, Sha256};
use tsp_wire::{
    Secret,
    account::signed,
    envelope::{
        self, Binding, Epoch, KEY_BYTES, Kind, PrivateKey, PublicKey, SegmentKey, SigningKey,
        Vendor, VendorFingerprint, VerifyingKey,
    },
};
use zeroize::Zeroizing;

use crate::model::{AdminKeys, Assign, AssignmentState, Member, SegmentDoc, Session, SignedPath};

/// Memory that Argon2id takes, in KiB: RFC 9106's second recommendation, as its passes below.
const ARGON2_KIB: u32 = 64 * 1024;
const ARGON2_PASSES: u32 = 3;

/// Shortest passphrase, in characters.
pub(crate) const PASSPHRASE_CHARS_MIN: usize = 10;

const NONCE_BYTES: usize = 12;
const VAULT_AAD: &[u8] = b"tsp admin vault 1";

/// Random bytes from the kernel. A kernel that gives none ends the command.
pub(crate) fn random() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

/// Why keys do not open or fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeysError {
    /// The passphrase or the secret key is another one, or what the broker sent was changed.
    Vault,
    /// The vendor's keys do not open with the admin's, or are not the vendor's that the profile names.
    VendorKeys,
    /// What came from the broker is not of the right form.
    Malformed,
}

impl fmt::Display for KeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vault => {
                "the admin's vault does not open: another passphrase, or the broker changed it"
            }
            Self::VendorKeys => {
                "the organization's keys are not those that this profile knows: the broker changed them"
            }
            Self::Malformed => "the broker's answer is not of the right form",
        })
    }
}

/// What a passphrase and a secret key make.
pub(crate) struct AdminSecret {
    vault_key: Zeroizing<[u8; KEY_BYTES]>,
    login: SigningKey,
}

impl AdminSecret {
    /// Takes a moment and 64 MiB, on purpose.
    pub(crate) fn derive(
        passphrase: &Secret<String>,
        secret_key: &Secret<[u8; KEY_BYTES]>,
    ) -> Option<Self> {
        let salt: [u8; 32] = Sha256::new_with_prefix(b"tsp admin salt 1")
            .chain_update(secret_key.expose())
            .finalize()
            .into();
        let params = Params::new(ARGON2_KIB, ARGON2_PASSES, 1, Some(2 * KEY_BYTES)).ok()?;
        let argon2 = Argon2::new_with_secret(
            secret_key.expose(),
            Algorithm::Argon2id,
            Version::V0x13,
            params,
        )
        .ok()?;
        let mut made = Zeroizing::new([0; 2 * KEY_BYTES]);
        argon2
            .hash_password_into(passphrase.expose().as_bytes(), &salt, made.as_mut_slice())
            .ok()?;
        let (vault_key, seed) = made.split_first_chunk::<KEY_BYTES>()?;
        Some(Self {
            vault_key: Zeroizing::new(*vault_key),
            login: SigningKey::from_seed(seed.first_chunk()?)?,
        })
    }

    pub(crate) fn login(&self) -> &SigningKey {
        &self.login
    }

    /// The keys of a new admin, as the broker stores them, and the public one.
    pub(crate) fn new_admin(&self) -> Option<(AdminKeys, PublicKey)> {
        let private = PrivateKey::generate(&mut random());
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).ok()?;
        let payload = Payload {
            msg: private.expose(),
            aad: VAULT_AAD,
        };
        let sealed = self.cipher().encrypt(&nonce.into(), payload).ok()?;
        let keys = AdminKeys {
            login_key: STANDARD.encode(self.login.verifying().as_bytes()),
            public_key: STANDARD.encode(private.public().as_bytes()),
            vault: STANDARD.encode([nonce.as_slice(), &sealed].concat()),
        };
        Some((keys, private.public()))
    }

    /// The keys of an admin who has this vault, as the broker stores them.
    pub(crate) fn keys_of(&self, vault: &str) -> Result<AdminKeys, KeysError> {
        let private = self.open_vault(vault)?;
        Ok(AdminKeys {
            login_key: STANDARD.encode(self.login.verifying().as_bytes()),
            public_key: STANDARD.encode(private.public().as_bytes()),
            vault: vault.to_owned(),
        })
    }

    fn open_vault(&self, vault: &str) -> Result<PrivateKey, KeysError> {
        let vault = STANDARD.decode(vault).map_err(|_| KeysError::Malformed)?;
        let (nonce, sealed) = vault
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(KeysError::Malformed)?;
        let payload = Payload {
            msg: sealed,
            aad: VAULT_AAD,
        };
        let opened = self.cipher().decrypt(&(*nonce).into(), payload);
        let opened = Zeroizing::new(opened.map_err(|_| KeysError::Vault)?);
        PrivateKey::from_slice(&opened).ok_or(KeysError::Malformed)
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&(*self.vault_key).into())
    }
}

/// A vendor's keys, open; or those of a tenant's organization, which has the same.
pub(crate) struct VendorKeys {
    pub(crate) vendor: Vendor,
    pub(crate) epoch: Epoch,
    pub(crate) signing: SigningKey,
    pub(crate) segment: PrivateKey,
}

impl VendorKeys {
    /// Those of a new vendor.
    pub(crate) fn generate(segment: u64) -> Option<Self> {
        let signing = SigningKey::generate(&mut random())?;
        Some(Self {
            vendor: Vendor {
                segment,
                fingerprint: signing.verifying().fingerprint(),
            },
            epoch: Epoch(1),
            signing,
            segment: PrivateKey::generate(&mut random()),
        })
    }

    /// Those of the next epoch.
    pub(crate) fn next(&self) -> Option<Self> {
        Some(Self {
            vendor: self.vendor,
            epoch: Epoch(self.epoch.0.checked_add(1)?),
            signing: SigningKey::from_slice(self.signing.expose())?,
            segment: PrivateKey::generate(&mut random()),
        })
    }

    /// Opens what a session brought, and makes sure that it is of the vendor that the profile names.
    pub(crate) fn open(
        secret: &AdminSecret,
        session: &Session,
        expected: VendorFingerprint,
    ) -> Result<Self, KeysError> {
        let private = secret.open_vault(&session.vault)?;
        let vendor = Vendor {
            segment: u64::try_from(session.vendor).map_err(|_| KeysError::Malformed)?,
            fingerprint: expected,
        };
        let epoch = Epoch(session.segment.epoch);
        let sealed = STANDARD
            .decode(&session.sealed_keys)
            .map_err(|_| KeysError::Malformed)?;
        let binding = admin_binding(vendor, session.admin);
        let opened = envelope::open(&private, epoch, &binding, &sealed)
            .map_err(|_| KeysError::VendorKeys)?;
        let (seed, segment) = opened
            .split_first_chunk::<KEY_BYTES>()
            .ok_or(KeysError::VendorKeys)?;
        let signing = SigningKey::from_seed(seed).ok_or(KeysError::VendorKeys)?;
        let segment = PrivateKey::from_slice(segment).ok_or(KeysError::VendorKeys)?;
        // Anybody can seal to the admin's public key; only the vendor has the key with this fingerprint.
        let public = STANDARD.encode(segment.public().as_bytes());
        if signing.verifying().fingerprint() != expected || public != session.segment.public_key {
            return Err(KeysError::VendorKeys);
        }
        let keys = Self {
            vendor,
            epoch,
            signing,
            segment,
        };
        let signature = STANDARD
            .decode(&session.segment.signature)
            .map_err(|_| KeysError::Malformed)?;
        if keys
            .segment_key()
            .is_signed(&keys.signing.verifying(), &signature)
        {
            Ok(keys)
        } else {
            Err(KeysError::VendorKeys)
        }
    }

    /// The public key that configurations are sealed to.
    pub(crate) fn segment_key(&self) -> SegmentKey {
        SegmentKey {
            segment: self.vendor.segment,
            epoch: self.epoch,
            public: self.segment.public(),
        }
    }

    /// The segment's key as the broker stores it.
    pub(crate) fn segment_doc(&self) -> Option<SegmentDoc> {
        let key = self.segment_key();
        Some(SegmentDoc {
            epoch: self.epoch.0,
            public_key: STANDARD.encode(key.public.as_bytes()),
            signature: STANDARD.encode(key.sign(&self.signing)?),
        })
    }

    /// These keys, sealed to an admin.
    pub(crate) fn sealed_to_admin(&self, admin: i64, key: &PublicKey) -> Option<String> {
        let mut content = Zeroizing::new([0; 2 * KEY_BYTES]);
        let all = self.signing.seed().iter().chain(self.segment.expose());
        for (to, from) in content.iter_mut().zip(all) {
            *to = *from;
        }
        let binding = admin_binding(self.vendor, admin);
        self.seal_to(key, &binding, content.as_slice())
    }

    /// The segment's private key, sealed to a service account.
    pub(crate) fn sealed_to_account(&self, config: i64, key: &PublicKey) -> Option<String> {
        let config = u64::try_from(config).ok()?;
        let binding = tsp_wire::account::Segment::binding(self.vendor, config);
        self.seal_to(key, &binding, self.segment.expose())
    }

    /// The vendor's word that `key` is that of the admin or account with this number.
    pub(crate) fn certify(&self, number: i64, key: &PublicKey) -> Option<String> {
        let signature = self.signing.sign(&membership(number, key))?;
        Some(STANDARD.encode(signature))
    }

    /// The key of a member, if the vendor has certified it.
    pub(crate) fn certified(&self, number: i64, member: &Member) -> Option<PublicKey> {
        let key = public_key(&member.key)?;
        let signature = STANDARD.decode(&member.certificate).ok()?;
        let vendor = self.signing.verifying();
        vendor
            .verifies(&membership(number, &key), &signature)
            .then_some(key)
    }

    /// The organization's word that `tenant` of `vendor` is itself, and that this is the vendor's key.
    pub(crate) fn sign_link(&self, vendor: Vendor, tenant: &str) -> Option<String> {
        let signature = self.signing.sign(&self.link(vendor, tenant))?;
        Some(STANDARD.encode(signature))
    }

    /// Whether the organization gave that word.
    pub(crate) fn knows_link(&self, vendor: Vendor, tenant: &str, signature: &str) -> bool {
        let signature = STANDARD.decode(signature).unwrap_or_default();
        let own = self.signing.verifying();
        own.verifies(&self.link(vendor, tenant), &signature)
    }

    fn link(&self, vendor: Vendor, tenant: &str) -> Vec<u8> {
        let mut statement = b"tsp link 1".to_vec();
        for end in [self.vendor, vendor] {
            statement.extend(end.segment.to_be_bytes());
            statement.extend(end.fingerprint.as_bytes());
        }
        statement.extend(tenant.as_bytes());
        statement
    }

    /// What seals for this vendor, in its own name.
    pub(crate) fn sealer(&self) -> Sealer<'_> {
        Sealer {
            vendor: self.vendor,
            key: self.segment_key(),
            signing: &self.signing,
        }
    }

    /// Opens what was sealed to the segment; the signature is still before its content.
    fn unseal(&self, object: &Object, sealed: &str) -> Option<Zeroizing<Vec<u8>>> {
        let binding = object.binding(self.vendor)?;
        let sealed = STANDARD.decode(sealed).ok()?;
        envelope::open(&self.segment, self.epoch, &binding, &sealed).ok()
    }

    /// What an admin of this organization sealed, without the signature.
    pub(crate) fn content(&self, object: &Object, sealed: &str) -> Option<Zeroizing<Vec<u8>>> {
        let signed = self.unseal(object, sealed)?;
        let (signer, content) = signed::verified(&object.binding(self.vendor)?, "", &signed)?;
        (signer == self.signing.verifying()).then(|| Zeroizing::new(content.to_vec()))
    }

    /// What was sealed to the segment, sealed to the key of another epoch. Whose signature it has does not change.
    pub(crate) fn sealed_anew(&self, new: &Self, object: &Object, sealed: &str) -> Option<String> {
        let signed = self.unseal(object, sealed)?;
        let binding = object.binding(new.vendor)?;
        new.seal_to(&new.segment.public(), &binding, &signed)
    }

    fn seal_to(&self, key: &PublicKey, binding: &Binding, content: &[u8]) -> Option<String> {
        sealed(key, self.epoch, binding, content)
    }
}

fn sealed(key: &PublicKey, epoch: Epoch, binding: &Binding, content: &[u8]) -> Option<String> {
    let sealed = envelope::seal(key, epoch, binding, content, &mut random()).ok()?;
    Some(STANDARD.encode(sealed))
}

/// What is in an envelope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    pub(crate) id: i64,
    pub(crate) schema: u16,
    pub(crate) revision: i64,
}

impl Object {
    fn binding(&self, vendor: Vendor) -> Option<Binding> {
        Some(Binding {
            vendor,
            kind: self.kind,
            schema: self.schema,
            object: u64::try_from(self.id).ok()?,
            revision: u64::try_from(self.revision).ok()?,
        })
    }
}

/// Signs and seals for a vendor's proxies: the one way to make a configuration or an assignment, for a vendor's admin, a
/// tenant's, and a bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealer<'a> {
    pub(crate) vendor: Vendor,
    /// The vendor's segment key, whose signature the caller has checked.
    pub(crate) key: SegmentKey,
    /// A key that the vendor vouches for, or the vendor's own.
    pub(crate) signing: &'a SigningKey,
}

impl Sealer<'_> {
    /// A content, signed and sealed to the segment. `tenant` is a logging configuration's, and else empty. `None` if the
    /// content is too large.
    pub(crate) fn seal(&self, object: &Object, tenant: &str, content: &[u8]) -> Option<String> {
        let binding = object.binding(self.vendor)?;
        let signed = signed::sign_content(self.signing, &binding, tenant, content)?;
        sealed(&self.key.public, self.key.epoch, &binding, &signed)
    }

    /// A KMS config's kind and key path, signed.
    pub(crate) fn path(
        &self,
        kms: i64,
        kind: &str,
        key_path: &serde_json::Value,
    ) -> Option<SignedPath> {
        let kms = u64::try_from(kms).ok()?;
        let signature = signed::sign_path(self.signing, self.vendor, kms, kind, key_path)?;
        Some(SignedPath {
            signer: STANDARD.encode(self.signing.verifying().as_bytes()),
            signature: STANDARD.encode(signature),
        })
    }

    /// The assignment of a KMS config to a tenant, signed.
    pub(crate) fn assign(&self, kms: i64, tenant: &str, state: AssignmentState) -> Option<Assign> {
        let kms = u64::try_from(kms).ok()?;
        let signature = signed::sign_assignment(self.signing, self.vendor, kms, tenant)?;
        Some(Assign {
            state,
            signer: STANDARD.encode(self.signing.verifying().as_bytes()),
            signature: STANDARD.encode(signature),
        })
    }
}

fn admin_binding(vendor: Vendor, admin: i64) -> Binding {
    Binding {
        vendor,
        kind: Kind::VendorKeys,
        schema: 1,
        object: u64::try_from(admin).unwrap_or_default(),
        revision: 1,
    }
}

fn membership(number: i64, key: &PublicKey) -> Vec<u8> {
    let mut statement = b"tsp segment member 1".to_vec();
    statement.extend(number.to_be_bytes());
    statement.extend(key.as_bytes());
    statement
}

/// The segment's key, if the vendor signed it.
pub(crate) fn signed_segment(
    vendor: Vendor,
    vendor_key: &VerifyingKey,
    doc: &SegmentDoc,
) -> Option<SegmentKey> {
    let key = SegmentKey {
        segment: vendor.segment,
        epoch: Epoch(doc.epoch),
        public: public_key(&doc.public_key)?,
    };
    let signature = STANDARD.decode(&doc.signature).ok()?;
    key.is_signed(vendor_key, &signature).then_some(key)
}

/// The Ed25519 key in `text`.
pub(crate) fn verifying_key(text: &str) -> Option<VerifyingKey> {
    let bytes = STANDARD.decode(text).ok()?;
    Some(VerifyingKey::from_bytes(bytes.try_into().ok()?))
}

/// The X25519 key in `text`.
pub(crate) fn public_key(text: &str) -> Option<PublicKey> {
    Some(PublicKey::from_bytes(key_bytes(text)?))
}

/// The bytes of a public key in `text`.
pub(crate) fn key_bytes(text: &str) -> Option<[u8; KEY_BYTES]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(passphrase: &str) -> AdminSecret {
        let key = Secret::new([7; KEY_BYTES]);
        AdminSecret::derive(&Secret::new(passphrase.to_owned()), &key).unwrap()
    }

    fn session(keys: &VendorKeys, admin: &AdminKeys, sealed_keys: String) -> Session {
        Session {
            token: String::new(),
            admin: 2,
            role: crate::model::Role::Admin,
            kind: crate::model::OrganizationKind::Vendor,
            vendor: 1,
            vendor_key: STANDARD.encode(keys.signing.verifying().as_bytes()),
            segment: keys.segment_doc().unwrap(),
            vault: admin.vault.clone(),
            sealed_keys,
        }
    }

    #[test]
    fn an_admin_opens_the_vendors_keys_and_nobody_elses() {
        let secret = secret("correct horse battery");
        let (admin, public) = secret.new_admin().unwrap();
        let keys = VendorKeys::generate(1).unwrap();
        let sealed = keys.sealed_to_admin(2, &public).unwrap();
        let good = session(&keys, &admin, sealed);
        let expected = keys.vendor.fingerprint;
        let opened = VendorKeys::open(&secret, &good, expected).unwrap();
        assert_eq!(opened.segment.expose(), keys.segment.expose());
        assert_eq!(opened.signing.expose(), keys.signing.expose());

        // A broker that makes up a vendor of its own and seals it to the admin.
        let forged = VendorKeys::generate(1).unwrap();
        let sealed = forged.sealed_to_admin(2, &public).unwrap();
        let refused = VendorKeys::open(&secret, &session(&forged, &admin, sealed), expected);
        assert_eq!(refused.err(), Some(KeysError::VendorKeys));

        // A segment key of the broker's beside the right keys.
        let mut mixed = good.clone();
        mixed.segment = forged.segment_doc().unwrap();
        let refused = VendorKeys::open(&secret, &mixed, expected);
        assert_eq!(refused.err(), Some(KeysError::VendorKeys));
    }

    #[test]
    fn only_who_the_vendor_certified_gets_its_keys() {
        let keys = VendorKeys::generate(1).unwrap();
        let own = PrivateKey::generate(&mut random()).public();
        let member = |key: &PublicKey, certificate| Member {
            key: STANDARD.encode(key.as_bytes()),
            certificate,
        };
        let certificate = keys.certify(5, &own).unwrap();
        let good = member(&own, certificate.clone());
        assert_eq!(keys.certified(5, &good), Some(own));
        assert_eq!(keys.certified(6, &good), None);
        let other = PrivateKey::generate(&mut random()).public();
        assert_eq!(keys.certified(5, &member(&other, certificate)), None);
        let stranger = VendorKeys::generate(1).unwrap();
        let forged = member(&other, stranger.certify(5, &other).unwrap());
        assert_eq!(keys.certified(5, &forged), None);
        assert_eq!(keys.certified(5, &member(&own, String::new())), None);
    }

    #[test]
    fn another_passphrase_makes_other_keys() {
        let (right, wrong) = (
            secret("correct horse battery"),
            secret("correct horse batterz"),
        );
        assert_ne!(right.login().verifying(), wrong.login().verifying());
        let (admin, _) = right.new_admin().unwrap();
        assert!(right.open_vault(&admin.vault).is_ok());
        assert_eq!(wrong.open_vault(&admin.vault).err(), Some(KeysError::Vault));
        assert_eq!(right.open_vault("AAAA").err(), Some(KeysError::Malformed));
    }
}
