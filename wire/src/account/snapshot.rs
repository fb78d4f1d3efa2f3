//! The documents of the Account API, and how a proxy makes sure of the one that it gets.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Serialize};

use super::{
    env::ServiceAccount,
    opened::OpenSegment,
    signed::{Signer, Signers},
};
use crate::{
    derive::{RotationStatus, SecretType},
    envelope::{
        self, Binding, Epoch, Kind, OpenError, PrivateKey, PublicKey, SegmentKey, Vendor,
        VerifyingKey,
    },
    snapshot::TenantSecretDoc,
};

/// Largest snapshot, in bytes, after decompression: 10,000 tenants with three KMS configs each have less than a tenth of it.
pub const SNAPSHOT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The one format of snapshots.
pub const SNAPSHOT_FORMAT: u32 = 1;

/// Revision of the one sealed copy of a segment's key that an account has per epoch.
const SEGMENT_KEY_REVISION: u64 = 1;
/// Schema of a sealed segment key: its 32 bytes.
const SEGMENT_KEY_SCHEMA: u16 = 1;

/// All that an account may know, at one version. Nothing in it is secret without the account's private key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotAnswer {
    /// [`SNAPSHOT_FORMAT`].
    pub format: u32,
    /// Counts up with every change of the vendor's, and never goes back.
    pub version: u64,
    /// The vendor's Ed25519 key, 32 bytes. Its fingerprint is part of the account's id.
    #[serde(with = "bytes")]
    pub vendor_key: Vec<u8>,
    /// The segment's key of the current epoch. All envelopes below are of that epoch.
    pub segment: Segment,
    /// The KMS configs of the tenants below, each once.
    pub kms_configs: Vec<KmsConfig>,
    /// Their logging configurations.
    pub logging_configs: Vec<LoggingConfig>,
    /// The tenants that share a tag with the account.
    pub tenants: Vec<Tenant>,
    /// Their secrets, in every status.
    pub secrets: Vec<TenantSecret>,
    /// Whose signatures count besides the vendor's own.
    #[serde(default)]
    pub signers: Vec<Signer>,
}

/// The segment's key of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Segment {
    /// `SERVICE_SEGMENT_ID`.
    pub id: u64,
    /// Which of its keys.
    pub epoch: Epoch,
    /// The X25519 public key, 32 bytes.
    #[serde(with = "bytes")]
    pub public_key: Vec<u8>,
    /// The vendor's signature over all three, 64 bytes: [`SegmentKey::sign`].
    #[serde(with = "bytes")]
    pub signature: Vec<u8>,
    /// The private key, sealed to the account: [`Segment::binding`].
    #[serde(with = "bytes")]
    pub sealed_key: Vec<u8>,
}

impl Segment {
    /// What the sealed copy of a segment's key for one account is bound to.
    #[must_use]
    pub fn binding(vendor: Vendor, account_config: u64) -> Binding {
        Binding {
            vendor,
            kind: Kind::SegmentKey,
            schema: SEGMENT_KEY_SCHEMA,
            object: account_config,
            revision: SEGMENT_KEY_REVISION,
        }
    }

    /// The key that is signed.
    #[must_use]
    pub fn key(&self) -> Option<SegmentKey> {
        let public: [u8; envelope::KEY_BYTES] = self.public_key.as_slice().try_into().ok()?;
        Some(SegmentKey {
            segment: self.id,
            epoch: self.epoch,
            public: PublicKey::from_bytes(public),
        })
    }
}

/// A KMS config. What is in the envelope is described at [`kms`](super::kms).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KmsConfig {
    /// Its permanent number.
    pub id: u64,
    /// Version of the content's schema, 1.
    pub schema: u16,
    /// Counts its contents up.
    pub revision: u64,
    /// Whether the proxy may lease keys from it.
    pub leasing_allowed: bool,
    /// The sealed content: [`KmsConfig::binding`].
    #[serde(with = "bytes")]
    pub envelope: Vec<u8>,
}

impl KmsConfig {
    /// What its envelope is bound to.
    #[must_use]
    pub fn binding(&self, vendor: Vendor) -> Binding {
        Binding {
            vendor,
            kind: Kind::KmsConfig,
            schema: self.schema,
            object: self.id,
            revision: self.revision,
        }
    }
}

/// A tenant's logging configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoggingConfig {
    /// Its permanent number.
    pub id: u64,
    /// Version of the content's schema, 1.
    pub schema: u16,
    /// Counts its contents up.
    pub revision: u64,
    /// The sealed content: [`LoggingConfig::binding`].
    #[serde(with = "bytes")]
    pub envelope: Vec<u8>,
}

impl LoggingConfig {
    /// What its envelope is bound to.
    #[must_use]
    pub fn binding(&self, vendor: Vendor) -> Binding {
        Binding {
            vendor,
            kind: Kind::LoggingConfig,
            schema: self.schema,
            object: self.id,
            revision: self.revision,
        }
    }
}

/// One tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// The vendor's id of it; valid as [`TenantId`](crate::TenantId) has it.
    pub id: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether all its KMS configs must allow leasing.
    pub leasing_required: bool,
    /// Its KMS configs. At most one is primary, and only an active one is.
    pub assignments: Vec<Assignment>,
    /// Number of its logging configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logging: Option<u64>,
}

/// Links a tenant to a KMS config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// Number of the KMS config.
    pub kms: u64,
    /// Whether it may be used at all.
    pub active: bool,
    /// Whether new data is encrypted with it.
    pub primary: bool,
    /// Ed25519 key of who made the assignment, 32 bytes.
    #[serde(default, with = "bytes")]
    pub signer: Vec<u8>,
    /// The signature: [`signed::sign_assignment`](super::signed::sign_assignment).
    #[serde(default, with = "bytes")]
    pub signature: Vec<u8>,
}

/// A tenant secret, wrapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantSecret {
    /// Its permanent number, 1 to 2³²−1.
    pub id: u64,
    /// The tenant's id.
    pub tenant: String,
    /// What keys are derived for.
    #[serde(rename = "type", with = "secret_type")]
    pub secret_type: SecretType,
    /// The path that chooses it.
    pub path: String,
    /// Where it is in its life.
    #[serde(with = "rotation_status")]
    pub status: RotationStatus,
    /// The secret as the tenant's KMS wrapped it: an EDEK.
    #[serde(with = "bytes")]
    pub edek: Vec<u8>,
}

impl From<TenantSecret> for TenantSecretDoc {
    fn from(secret: TenantSecret) -> Self {
        Self {
            id: secret.id,
            tenant: secret.tenant,
            secret_type: secret.secret_type,
            path: secret.path,
            status: secret.status,
            edek: secret.edek,
        }
    }
}

/// Tenant secrets to be stored where there are none: up to [`SECRETS_MAX`](super::SECRETS_MAX).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretsRequest {
    /// They are taken in this order.
    pub secrets: Vec<SecretOffer>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretOffer {
    /// The tenant's id.
    pub tenant: String,
    /// What keys are derived for.
    #[serde(rename = "type", with = "secret_type")]
    pub secret_type: SecretType,
    /// The path that chooses it.
    pub path: String,
    /// The new secret as the tenant's KMS wrapped it: an EDEK.
    #[serde(with = "bytes")]
    pub edek: Vec<u8>,
}

/// What became of each, in the order of the request. What is told here is stored for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretsAnswer {
    /// As many as were offered.
    pub secrets: Vec<SecretOutcome>,
}

/// What became of one offer. Either way there is one current secret, and this is it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SecretOutcome {
    /// The one that was offered is the current one.
    Created(TenantSecret),
    /// There was one already.
    Existing(TenantSecret),
    /// Not stored.
    Refused(RefusedSecret),
}

/// Why an offer was not stored, while others were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusedSecret {
    /// The account knows no such tenant.
    UnknownTenant,
    /// The EDEK is none, or names a KMS config that is not assigned to the tenant.
    InvalidEdek,
    /// The path is too long.
    InvalidPath,
    /// A reason that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Why a snapshot is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// It is no snapshot: a sentence without any of its values.
    Malformed(String),
    /// It is of a format that this program does not know.
    UnknownFormat(u32),
    /// Its vendor is not the account's, so a broker or a proxy has been moved, or somebody else made it.
    OtherVendor,
    /// The vendor did not sign this segment key.
    NotSigned,
    /// The account's copy of the segment's key does not open.
    SegmentKey(OpenError),
    /// What opened is another key than the vendor signed.
    OtherSegmentKey,
    /// It is older than what was there before: the version, the epoch, or the revision of the named KMS config.
    Older(String),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => write!(f, "the answer is no snapshot: {why}"),
            Self::UnknownFormat(format) => write!(f, "format {format} is not known here"),
            Self::OtherVendor => {
                f.write_str("it is of another vendor or segment than the service account")
            }
            Self::NotSigned => f.write_str("the vendor has not signed the segment's key"),
            Self::SegmentKey(why) => write!(
                f,
                "the segment's key does not open with SERVICE_ENCRYPTION_PRIVATE_KEY: {why}"
            ),
            Self::OtherSegmentKey => {
                f.write_str("the segment's key is another one than the vendor signed")
            }
            Self::Older(what) => write!(f, "it is older than the last one: {what}"),
        }
    }
}

impl std::error::Error for SnapshotError {}

impl SnapshotAnswer {
    /// Reads an answer's body, decompressed.
    ///
    /// # Errors
    /// [`SnapshotError::Malformed`], [`SnapshotError::UnknownFormat`].
    pub fn from_json(body: &[u8]) -> Result<Self, SnapshotError> {
        let place = |why: &serde_json::Error| {
            SnapshotError::Malformed(format!("line {}, column {}", why.line(), why.column()))
        };
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let format = match serde_json::from_slice::<Self>(body) {
            Ok(snapshot) if snapshot.format == SNAPSHOT_FORMAT => return Ok(snapshot),
            Ok(snapshot) => snapshot.format,
            // Another format may differ in all the rest.
            Err(why) => match serde_json::from_slice::<Head>(body) {
                Ok(head) if head.format != SNAPSHOT_FORMAT => head.format,
                Ok(_) | Err(_) => return Err(place(&why)),
            },
        };
        Err(SnapshotError::UnknownFormat(format))
    }

    /// Makes sure that the snapshot is of the account's vendor, and opens the segment's key.
    ///
    /// # Errors
    /// [`SnapshotError`]: then nothing in it is to be believed.
    pub fn open(&self, account: &ServiceAccount) -> Result<OpenSegment, SnapshotError> {
        let vendor_key: [u8; envelope::KEY_BYTES] = self
            .vendor_key
            .as_slice()
            .try_into()
            .map_err(|_| SnapshotError::OtherVendor)?;
        let vendor_key = VerifyingKey::from_bytes(vendor_key);
        let vendor = account.vendor();
        if vendor_key.fingerprint() != vendor.fingerprint || self.segment.id != vendor.segment {
            return Err(SnapshotError::OtherVendor);
        }
        let key = self.segment.key().ok_or(SnapshotError::NotSigned)?;
        if !key.is_signed(&vendor_key, &self.segment.signature) {
            return Err(SnapshotError::NotSigned);
        }
        let opened = envelope::open(
            &account.encryption_key,
            key.epoch,
            &Segment::binding(vendor, account.config),
            &self.segment.sealed_key,
        )
        .map_err(SnapshotError::SegmentKey)?;
        let private = PrivateKey::from_slice(&opened).ok_or(SnapshotError::OtherSegmentKey)?;
        if private.public() != key.public {
            return Err(SnapshotError::OtherSegmentKey);
        }
        let signers = Signers::new(vendor, vendor_key, &self.signers);
        Ok(OpenSegment::new(vendor, key, private, signers))
    }
}

/// What was seen, so that a broker cannot go back to it: it may be dishonest, or restored from a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    version: u64,
    epoch: Epoch,
    /// By the number of a KMS config. Also of those that are gone: their numbers are never used again.
    revisions: HashMap<u64, u64>,
}

impl Seen {
    /// Refuses what is older than anything seen before; else remembers it.
    ///
    /// To be asked once [`SnapshotAnswer::open`] made sure of the snapshot, so that a stranger's numbers are not remembered.
    ///
    /// # Errors
    /// [`SnapshotError::Older`].
    pub fn advance(&mut self, snapshot: &SnapshotAnswer) -> Result<(), SnapshotError> {
        let older = |what: String, new: u64, seen: u64| {
            Err(SnapshotError::Older(format!("{what} {new} after {seen}")))
        };
        if snapshot.version < self.version {
            return older("version".to_owned(), snapshot.version, self.version);
        }
        let epoch = snapshot.segment.epoch;
        if epoch < self.epoch {
            return older("epoch".to_owned(), epoch.0.into(), self.epoch.0.into());
        }
        for config in &snapshot.kms_configs {
            if let Some(seen) = self.revisions.get(&config.id)
                && config.revision < *seen
            {
                let what = format!("KMS config {}: revision", config.id);
                return older(what, config.revision, *seen);
            }
        }
        (self.version, self.epoch) = (snapshot.version, epoch);
        let revisions = snapshot.kms_configs.iter();
        self.revisions
            .extend(revisions.map(|config| (config.id, config.revision)));
        Ok(())
    }
}

/// Bytes as base64.
pub(super) mod bytes {
    use std::borrow::Cow;

    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(in super::super) fn serialize<S: Serializer>(
        bytes: &[u8],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(&base64::display::Base64Display::new(bytes, &STANDARD))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<u8>, D::Error> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
        let Text(text) = Text::deserialize(from)?;
        STANDARD
            .decode(&*text)
            .map_err(|_| D::Error::custom("not base64"))
    }
}

/// An enum by its word.
macro_rules! by_word {
    ($name:ident, $type:ty) => {
        mod $name {
            use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

            use super::*;

            pub(super) fn serialize<S: Serializer>(
                value: &$type,
                to: S,
            ) -> Result<S::Ok, S::Error> {
                to.serialize_str(value.as_str())
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<$type, D::Error> {
                let word = String::deserialize(from)?;
                <$type>::from_text(&word).ok_or_else(|| D::Error::custom("not a known word"))
            }
        }
    };
}

by_word!(secret_type, SecretType);
by_word!(rotation_status, RotationStatus);

#[cfg(test)]
pub(super) mod tests;
