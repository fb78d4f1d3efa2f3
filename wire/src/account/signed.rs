//! Who said it: the signatures under configurations and assignments.
//!
//! An envelope is sealed to a public key, so it does not tell who sealed it. Therefore what is sealed begins with a signature,
//! and an assignment carries one. They count if the vendor's key made them, or a key that it vouches for:
//!
//! - that of a **vendor bridge**, which speaks for the vendor;
//! - that of a **tenant's organization**, which speaks for that tenant alone. The vendor either vouches for the organization's
//!   key, or for the key of an invitation, whose holder names the organization's key.
//!
//! ```text
//! bytes 0-31    Ed25519 key of the signer
//! bytes 32-95   signature
//! the rest      content
//! ```

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::snapshot::{Assignment, bytes};
use crate::envelope::{
    Binding, Claim, KEY_BYTES, SIGNATURE_BYTES, SigningKey, Vendor, VerifyingKey,
};

/// A key that the vendor vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signer {
    /// Ed25519 key, 32 bytes.
    #[serde(with = "bytes")]
    pub key: Vec<u8>,
    /// The tenant that it speaks for. Absent: it speaks for the vendor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Who vouches for the key; the vendor itself, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invitation: Option<InvitationKey>,
    /// The signature for the key.
    #[serde(with = "bytes")]
    pub signature: Vec<u8>,
}

/// The key of an invitation: its holder names the key of one tenant's organization.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InvitationKey {
    /// Ed25519 key, 32 bytes.
    #[serde(with = "bytes")]
    pub key: Vec<u8>,
    /// The vendor's signature for it.
    #[serde(with = "bytes")]
    pub signature: Vec<u8>,
}

/// What a key may be vouched for as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voucher<'a> {
    /// A vendor bridge.
    Bridge,
    /// An invitation to this tenant.
    Invitation(&'a str),
    /// The organization of this tenant.
    Organization(&'a str),
}

impl Voucher<'_> {
    /// What is signed for `key`.
    fn statement(self, vendor: Vendor, key: &VerifyingKey) -> Vec<u8> {
        let (prefix, tenant): (&[u8], &str) = match self {
            Self::Bridge => (b"tsp bridge 1", ""),
            Self::Invitation(tenant) => (b"tsp invitation 1", tenant),
            Self::Organization(tenant) => (b"tsp organization 1", tenant),
        };
        let mut statement = begun(prefix, vendor);
        statement.extend(key.as_bytes());
        statement.extend(tenant.as_bytes());
        statement
    }

    /// Vouches for `key`. `None` never happens.
    #[must_use]
    pub fn sign(
        self,
        by: &SigningKey,
        vendor: Vendor,
        key: &VerifyingKey,
    ) -> Option<[u8; SIGNATURE_BYTES]> {
        by.sign(&self.statement(vendor, key))
    }

    /// Whether `by` vouches for `key`.
    #[must_use]
    pub fn is_signed(
        self,
        by: &VerifyingKey,
        vendor: Vendor,
        key: &VerifyingKey,
        signature: &[u8],
    ) -> bool {
        by.verifies(&self.statement(vendor, key), signature)
    }
}

/// Signs `content`, which will be sealed with `binding`; `tenant` is the tenant of a logging configuration, and else empty.
/// `None` never happens.
#[must_use]
pub fn sign_content(
    key: &SigningKey,
    binding: &Binding,
    tenant: &str,
    content: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let signature = key.sign(&content_statement(binding, tenant, content))?;
    let mut signed = Zeroizing::new(Vec::with_capacity(
        KEY_BYTES + SIGNATURE_BYTES + content.len(),
    ));
    signed.extend(key.verifying().as_bytes());
    signed.extend(signature);
    signed.extend(content);
    Some(signed)
}

/// Takes what was signed apart. Whether the signer counts is for the caller to say.
#[must_use]
pub fn verified<'a>(
    binding: &Binding,
    tenant: &str,
    signed: &'a [u8],
) -> Option<(VerifyingKey, &'a [u8])> {
    let (claim, content) = content_claim(binding, tenant, signed)?;
    claim.holds().then_some((claim.key, content))
}

/// What has been signed under a content, and the content; nothing of it is proven yet.
pub(super) fn content_claim<'a>(
    binding: &Binding,
    tenant: &str,
    signed: &'a [u8],
) -> Option<(Claim, &'a [u8])> {
    let (key, rest) = signed.split_first_chunk::<KEY_BYTES>()?;
    let (signature, content) = rest.split_first_chunk::<SIGNATURE_BYTES>()?;
    let claim = Claim {
        key: VerifyingKey::from_bytes(*key),
        statement: content_statement(binding, tenant, content),
        signature: *signature,
    };
    Some((claim, content))
}

/// What has been signed under an assignment; nothing of it is proven yet.
pub(super) fn assignment_claim(
    vendor: Vendor,
    tenant: &str,
    assignment: &Assignment,
) -> Option<Claim> {
    Some(Claim {
        key: verifying(&assignment.signer)?,
        statement: Zeroizing::new(assignment_statement(vendor, assignment.kms, tenant)),
        signature: assignment.signature.as_slice().try_into().ok()?,
    })
}

/// Signs that the KMS config with this number serves `tenant`. Which of its configs is active or primary is not signed: a
/// broker can withhold that it changed in any case. `None` never happens.
#[must_use]
pub fn sign_assignment(
    key: &SigningKey,
    vendor: Vendor,
    kms: u64,
    tenant: &str,
) -> Option<[u8; SIGNATURE_BYTES]> {
    key.sign(&assignment_statement(vendor, kms, tenant))
}

/// Signs that the KMS config with this number is of this kind and has this key path. Proxies have that from the content; this is
/// for a bridge, which seals other credentials for a key path that it cannot read there. `None` never happens.
#[must_use]
pub fn sign_path(
    key: &SigningKey,
    vendor: Vendor,
    kms: u64,
    kind: &str,
    key_path: &serde_json::Value,
) -> Option<[u8; SIGNATURE_BYTES]> {
    key.sign(&path_statement(vendor, kms, kind, key_path))
}

/// Whether `signer` signed that with [`sign_path`].
#[must_use]
pub fn path_is_signed(
    signer: &VerifyingKey,
    vendor: Vendor,
    kms: u64,
    kind: &str,
    key_path: &serde_json::Value,
    signature: &[u8],
) -> bool {
    signer.verifies(&path_statement(vendor, kms, kind, key_path), signature)
}

fn path_statement(vendor: Vendor, kms: u64, kind: &str, key_path: &serde_json::Value) -> Vec<u8> {
    let mut statement = begun(b"tsp key path 1", vendor);
    statement.extend(kms.to_be_bytes());
    // Sorted by name, whatever order JSON has them in. Values are texts.
    let members: BTreeMap<_, _> = key_path.as_object().into_iter().flatten().collect();
    let members = members
        .into_iter()
        .flat_map(|(name, value)| [name.clone(), value.to_string()]);
    for part in [kind.to_owned()].into_iter().chain(members) {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        statement.extend(length.to_be_bytes());
        statement.extend(part.as_bytes());
    }
    statement
}

fn begun(prefix: &[u8], vendor: Vendor) -> Vec<u8> {
    let mut statement = prefix.to_vec();
    statement.extend(vendor.segment.to_be_bytes());
    statement.extend(vendor.fingerprint.as_bytes());
    statement
}

fn content_statement(binding: &Binding, tenant: &str, content: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut statement = begun(b"tsp content 1", binding.vendor);
    statement.push(binding.kind.byte());
    statement.extend(binding.schema.to_be_bytes());
    statement.extend(binding.object.to_be_bytes());
    statement.extend(binding.revision.to_be_bytes());
    let length = u64::try_from(tenant.len()).unwrap_or(u64::MAX);
    statement.extend(length.to_be_bytes());
    statement.extend(tenant.as_bytes());
    // Room for the content, so that nothing of it is left behind by a reallocation.
    statement.reserve_exact(content.len());
    statement.extend(content);
    Zeroizing::new(statement)
}

fn assignment_statement(vendor: Vendor, kms: u64, tenant: &str) -> Vec<u8> {
    let mut statement = begun(b"tsp assignment 1", vendor);
    statement.extend(kms.to_be_bytes());
    statement.extend(tenant.as_bytes());
    statement
}

/// For whom a key speaks.
#[derive(Debug, Default)]
struct Authority {
    vendor: bool,
    tenants: Vec<String>,
}

/// The keys whose signatures count, each proven.
#[derive(Debug)]
pub struct Signers {
    keys: HashMap<VerifyingKey, Authority>,
}

impl Signers {
    /// Keeps those of `signers` that `vendor_key` vouches for. The others are as if they were not there. That `vendor_key` is the
    /// vendor's is for the caller to know.
    #[must_use]
    pub fn new(vendor: Vendor, vendor_key: VerifyingKey, signers: &[Signer]) -> Self {
        let mut keys: HashMap<VerifyingKey, Authority> = HashMap::new();
        keys.entry(vendor_key).or_default().vendor = true;
        for signer in signers {
            let Some(key) = verifying(&signer.key) else {
                continue;
            };
            if !signer.is_vouched_for(vendor, &vendor_key, &key) {
                continue;
            }
            let authority = keys.entry(key).or_default();
            match &signer.tenant {
                None => authority.vendor = true,
                Some(tenant) => authority.tenants.push(tenant.clone()),
            }
        }
        Self { keys }
    }

    pub(super) fn knows(&self, key: &VerifyingKey) -> bool {
        self.keys.contains_key(key)
    }

    pub(super) fn speaks_for(&self, key: &VerifyingKey, tenant: &str) -> bool {
        self.keys.get(key).is_some_and(|authority| {
            authority.vendor || authority.tenants.iter().any(|own| own == tenant)
        })
    }

    /// Whether `key` speaks for the vendor: it is the vendor's own, or a bridge's.
    #[must_use]
    pub fn speaks_for_vendor(&self, key: &VerifyingKey) -> bool {
        self.keys.get(key).is_some_and(|authority| authority.vendor)
    }

    /// Whether `assignment` of a config that `maker` signed may serve `tenant`, if its signature is good.
    pub(super) fn may_assign(
        &self,
        maker: &VerifyingKey,
        tenant: &str,
        assignment: &Assignment,
    ) -> bool {
        let Some(signer) = verifying(&assignment.signer) else {
            return false;
        };
        if self.speaks_for_vendor(maker) {
            self.speaks_for_vendor(&signer)
        } else {
            // Only who made it assigns it: a tenant's config serves no other tenant.
            signer == *maker && self.speaks_for(maker, tenant)
        }
    }
}

impl Signer {
    fn is_vouched_for(
        &self,
        vendor: Vendor,
        vendor_key: &VerifyingKey,
        key: &VerifyingKey,
    ) -> bool {
        let Some(tenant) = &self.tenant else {
            return Voucher::Bridge.is_signed(vendor_key, vendor, key, &self.signature);
        };
        let by = match &self.invitation {
            None => Some(*vendor_key),
            Some(invitation) => verifying(&invitation.key).filter(|by| {
                let voucher = Voucher::Invitation(tenant);
                voucher.is_signed(vendor_key, vendor, by, &invitation.signature)
            }),
        };
        by.is_some_and(|by| {
            Voucher::Organization(tenant).is_signed(&by, vendor, key, &self.signature)
        })
    }
}

fn verifying(bytes: &[u8]) -> Option<VerifyingKey> {
    Some(VerifyingKey::from_bytes(bytes.try_into().ok()?))
}
