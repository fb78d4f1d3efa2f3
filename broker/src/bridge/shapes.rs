//! What callers of the bridge send and get. Names are those of the public product's API, so that its clients need no change.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::ToSchema;

use crate::model::SignedPath;

/// A moment: RFC 3339 outside, Unix seconds inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, format = DateTime, examples("2026-01-13T21:44:43Z"))]
pub(crate) struct Timestamp(pub(crate) i64);

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let time = OffsetDateTime::from_unix_timestamp(self.0);
        let text = time.ok().and_then(|time| time.format(&Rfc3339).ok());
        text.unwrap_or_default().serialize(to)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // A plus that was not escaped in a URL arrives as a space.
        let text = Cow::<'_, str>::deserialize(from)?.replace(' ', "+");
        let time = OffsetDateTime::parse(&text, &Rfc3339);
        let time = time.map_err(|_| D::Error::custom("not a time of RFC 3339"))?;
        Ok(Self(time.unix_timestamp()))
    }
}

/// Who made something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct CreatedBy {
    /// An admin's address, or a service account's id.
    pub(crate) id: String,
    /// The same for people.
    pub(crate) name: String,
    /// What made it.
    #[serde(rename = "type")]
    pub(crate) kind: CreatorType,
}

/// Kinds of makers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) enum CreatorType {
    /// A proxy.
    Tsp,
    /// A person.
    Admin,
    /// A vendor bridge.
    Va,
}

/// One page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page<T> {
    /// What is on it.
    pub(crate) result: Vec<T>,
    /// Its number, from 1.
    pub(crate) page: i64,
    /// How many there are.
    pub(crate) total_pages: i64,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorResponse {
    /// A sentence.
    pub(crate) message: String,
    /// The status once more.
    pub(crate) status_code: u16,
}

/// A label that tenants and service accounts share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Tag {
    /// Its number.
    #[schema(minimum = 1)]
    pub(crate) id: i64,
    /// For people.
    pub(crate) tag_text: String,
    /// Whether tenants and accounts without another one get it.
    pub(crate) default: bool,
    /// When it was made.
    pub(crate) created: Timestamp,
}

/// A tenant.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Tenant {
    /// The vendor's id of it.
    pub(crate) id: String,
    /// For people.
    pub(crate) name: String,
    /// Whether it is archived: then it reaches no proxy.
    pub(crate) archived: bool,
    /// Whether its own organization has made KMS configs.
    pub(crate) tenant_created_configs: bool,
    /// Whether it was invited and has not accepted.
    pub(crate) invited: bool,
    /// Whether all its KMS configs must allow leasing.
    pub(crate) key_leasing_required: bool,
    /// Number of the KMS config that encrypts.
    #[schema(required)]
    pub(crate) primary_kms_config_id: Option<i64>,
    /// Its tags.
    pub(crate) tags: Vec<Tag>,
    /// Who made it.
    pub(crate) created_by: CreatedBy,
    /// When.
    pub(crate) created: Timestamp,
    /// When it was changed last.
    pub(crate) updated: Timestamp,
}

/// A tenant that was just made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewTenantResponse {
    /// The tenant.
    #[serde(flatten)]
    pub(crate) tenant: Tenant,
    /// Whether an invitation went out by mail.
    pub(crate) email_sent: bool,
    /// The invitation's link, to be handed over, where no mail went out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) invitation_link: Option<String>,
}

/// What a tenant is after a change.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UpdatedTenant {
    /// The vendor's id of it.
    pub(crate) id: String,
    /// For people.
    pub(crate) name: String,
    /// Whether it is archived.
    pub(crate) archived: bool,
    /// Whether all its KMS configs must allow leasing.
    pub(crate) key_leasing_required: bool,
    /// Its tags.
    pub(crate) tags: Vec<Tag>,
}

impl From<Tenant> for UpdatedTenant {
    fn from(tenant: Tenant) -> Self {
        Self {
            id: tenant.id,
            name: tenant.name,
            archived: tenant.archived,
            key_leasing_required: tenant.key_leasing_required,
            tags: tenant.tags,
        }
    }
}

/// The tenant that is gone.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct DeletedTenant {
    /// The id that it had.
    pub(crate) id: String,
}

/// An invitation that was made again.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InvitedTenant {
    /// Whom it is for.
    pub(crate) invited_tenant_admin_email: String,
    /// Its link, to be handed over, where no mail went out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) invitation_link: Option<String>,
}

/// Kinds of KMSs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum KmsType {
    /// AWS KMS.
    Aws,
    /// Google Cloud KMS.
    Gcp,
    /// Azure Key Vault.
    Azure,
    /// CipherTrust Manager.
    Thales,
    /// A key of the proxy's own, for trials.
    Local,
}

impl KmsType {
    /// As stores and contents spell it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "AWS",
            Self::Gcp => "GCP",
            Self::Azure => "AZURE",
            Self::Thales => "THALES",
            Self::Local => "LOCAL",
        }
    }

    /// The kind with this name; a name that is none never gets into the store.
    pub(crate) fn from_text(text: &str) -> Self {
        let all = [Self::Aws, Self::Gcp, Self::Azure, Self::Thales];
        let mut all = all.into_iter();
        all.find(|kind| kind.as_str() == text)
            .unwrap_or(Self::Local)
    }
}

impl fmt::Display for KmsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A KMS config without its content.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KmsConfigMeta {
    /// Its number.
    #[schema(minimum = 1)]
    pub(crate) id: i64,
    /// The kind of KMS.
    pub(crate) kms_type: KmsType,
    /// Version of the content's schema.
    #[schema(minimum = 1)]
    pub(crate) version: i64,
    /// Who made it.
    pub(crate) created_by: CreatedBy,
    /// Whether proxies may lease keys from it.
    pub(crate) leasing_allowed: bool,
    /// How many tenants it is assigned to.
    #[schema(minimum = 0)]
    pub(crate) assignment_count: i64,
    /// How many tenant secrets only it opens.
    #[schema(minimum = 0)]
    pub(crate) secret_count: i64,
    /// When it was made.
    pub(crate) created: Timestamp,
    /// When it was changed last.
    pub(crate) updated: Timestamp,
}

/// All that the broker tells of one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StoredKmsConfig {
    #[serde(flatten)]
    pub(crate) meta: KmsConfigMeta,
    pub(crate) key_path: serde_json::Value,
    pub(crate) revision: i64,
    /// In base64.
    pub(crate) envelope: String,
    #[serde(default)]
    pub(crate) path: SignedPath,
}

/// A KMS config as it is stored: sealed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SealedKmsConfig {
    /// All but its content.
    #[serde(flatten)]
    pub(crate) meta: KmsConfigMeta,
    /// Its content, which only the vendor's proxies open: base64.
    pub(crate) encrypted_config: String,
}

impl From<StoredKmsConfig> for SealedKmsConfig {
    fn from(stored: StoredKmsConfig) -> Self {
        Self {
            meta: stored.meta,
            encrypted_config: stored.envelope,
        }
    }
}

/// A KMS config with what is not secret of its content.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KmsConfig {
    /// Its number.
    #[schema(minimum = 1)]
    pub(crate) id: i64,
    /// What is not secret of its content. Nobody but the vendor's proxies can read the rest.
    pub(crate) decrypted_config: Nonsensitive,
    /// Who made it.
    pub(crate) created_by: CreatedBy,
    /// Whether proxies may lease keys from it.
    pub(crate) leasing_allowed: bool,
    /// How many tenants it is assigned to.
    #[schema(minimum = 0)]
    pub(crate) assignment_count: i64,
    /// How many tenant secrets only it opens.
    #[schema(minimum = 0)]
    pub(crate) secret_count: i64,
    /// When it was made.
    pub(crate) created: Timestamp,
    /// When it was changed last.
    pub(crate) updated: Timestamp,
}

/// What is not secret of a KMS config's content.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Nonsensitive {
    /// Which key of that KMS: the members that the config was made with.
    #[schema(value_type = Object)]
    pub(crate) key_path: serde_json::Value,
    /// The kind of KMS.
    #[serde(rename = "type")]
    pub(crate) kind: KmsType,
    /// Version of the content's schema.
    #[schema(minimum = 1)]
    pub(crate) version: i64,
}

impl From<StoredKmsConfig> for KmsConfig {
    fn from(stored: StoredKmsConfig) -> Self {
        let meta = stored.meta;
        // A LOCAL key has none.
        let key_path = if stored.key_path.is_null() {
            serde_json::json!({})
        } else {
            stored.key_path
        };
        Self {
            id: meta.id,
            decrypted_config: Nonsensitive {
                key_path,
                kind: meta.kms_type,
                version: meta.version,
            },
            created_by: meta.created_by,
            leasing_allowed: meta.leasing_allowed,
            assignment_count: meta.assignment_count,
            secret_count: meta.secret_count,
            created: meta.created,
            updated: meta.updated,
        }
    }
}

/// The KMS config that is gone.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct DeletedKmsConfig {
    /// The number that it had, and nobody else will.
    #[schema(minimum = 1)]
    pub(crate) id: i64,
}

/// That a KMS config serves a tenant.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Assignment {
    /// The KMS config.
    #[schema(minimum = 1)]
    pub(crate) kms_config_id: i64,
    /// The tenant.
    pub(crate) tenant_id: String,
    /// Whether it may be used at all.
    pub(crate) active: bool,
    /// Whether new data is encrypted with it.
    pub(crate) primary: bool,
    /// Who made it.
    pub(crate) created_by: CreatedBy,
    /// When.
    pub(crate) created: Timestamp,
    /// When it was changed last.
    pub(crate) updated: Timestamp,
}

/// The assignment that is gone.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeletedAssignment {
    /// The KMS config.
    #[schema(minimum = 1)]
    pub(crate) kms_config_id: i64,
    /// The tenant.
    pub(crate) tenant_id: String,
}

/// What became of a tag at several tenants.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct TagModification {
    /// Where it was done.
    pub(crate) succeeded: Vec<String>,
    /// Where not.
    pub(crate) failed: Vec<TagFailure>,
}

/// Why a tag was not changed at one of them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TagFailure {
    /// The tenant.
    pub(crate) tenant_id: String,
    /// A sentence.
    pub(crate) message: String,
}

/// Whether a tenant secret is wrapped by the tenant's primary KMS config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) enum MigrationStatus {
    /// It is.
    Current,
    /// It is not, so it must be wrapped anew before that config goes.
    NeedsMigration,
}

/// Where a tenant secret is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) enum RotationStatus {
    /// New data uses it.
    Current,
    /// It has a successor, or will have one at the next derivation.
    InRotation,
    /// Its keys are not handed out any more.
    Archived,
}

impl RotationStatus {
    /// The status with the store's name; one that is none never gets into the store.
    pub(crate) fn from_text(text: &str) -> Self {
        match text {
            "current" => Self::Current,
            "in-rotation" => Self::InRotation,
            _ => Self::Archived,
        }
    }
}

/// What a tenant secret's keys are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) enum SecretType {
    /// Searchable encryption.
    Search,
    /// Deterministic encryption.
    Deterministic,
    /// Encryption of vectors.
    Vector,
}

impl SecretType {
    /// As the store spells it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::Deterministic => "deterministic",
            Self::Vector => "vector",
        }
    }

    /// The type with the store's name; one that is none never gets into the store.
    pub(crate) fn from_text(text: &str) -> Self {
        match text {
            "search" => Self::Search,
            "deterministic" => Self::Deterministic,
            _ => Self::Vector,
        }
    }
}

/// A tenant secret, wrapped.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantSecret {
    /// Its number.
    #[schema(minimum = 1)]
    pub(crate) id: i64,
    /// The EDEK: base64.
    pub(crate) encrypted_secret: String,
    /// SHA-256 of the EDEK: base64.
    pub(crate) secret_fingerprint: String,
    /// The path that chooses it.
    pub(crate) secret_path: String,
    /// The KMS config that wraps it.
    #[schema(minimum = 1)]
    pub(crate) kms_config_id: i64,
    /// Whether that is the tenant's primary one.
    pub(crate) migration_status: MigrationStatus,
    /// Where it is in its life.
    pub(crate) rotation_status: RotationStatus,
    /// What its keys are for.
    pub(crate) secret_type: SecretType,
    /// When it was made.
    pub(crate) created: Timestamp,
    /// When it was changed last.
    pub(crate) updated: Timestamp,
}

/// A tenant secret in a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListedSecret {
    /// The secret.
    #[serde(flatten)]
    pub(crate) secret: TenantSecret,
    /// Whose it is.
    pub(crate) tenant_id: String,
    /// Numbers of the tenant's tags.
    pub(crate) tenant_tags: Vec<i64>,
}
