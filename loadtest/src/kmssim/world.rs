//! The simulated world as a document: which credentials and keys there are, and what state they are in.
//!
//! TOML or JSON; unknown members are refused. All secrets in it are made up, so it is printed and compared freely.

mod sample;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use sample::{Client, ClientKey, Sample, SampleShape};

/// Entries of one kind that a world may have: far more than tenants of any real installation, and small enough that a
/// world of nothing but them fits into memory.
pub(crate) const ENTRIES_MAX: usize = 1_000_000;

/// Everything that the four KMSs know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorldDoc {
    /// What all keys without material of their own are derived from.
    pub seed: u64,
    /// AWS KMS and STS.
    pub aws: AwsDoc,
    /// Google Cloud KMS.
    pub gcp: GcpDoc,
    /// Azure Key Vault, Managed HSM and Entra.
    pub azure: AzureDoc,
    /// Thales CipherTrust Manager.
    pub thales: ThalesDoc,
}

impl WorldDoc {
    /// Reads a world from TOML, or from JSON if the text begins with a brace.
    ///
    /// # Errors
    /// [`WorldError`] says what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, WorldError> {
        if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| WorldError(error.to_string()))
        } else {
            toml::from_str(text).map_err(|error| WorldError(error.to_string()))
        }
    }
}

/// Why a document is no world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldError(pub(crate) String);

impl WorldError {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for WorldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WorldError {}

/// Whether a credential may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialState {
    /// It may.
    #[default]
    Active,
    /// Switched off, locked, made inactive.
    Disabled,
    /// Deleted or revoked: as if it had never been.
    Revoked,
}

/// AWS: one world for all accounts, regions and partitions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AwsDoc {
    /// Access keys and whose they are.
    pub access_keys: Vec<AwsAccessKeyDoc>,
    /// Roles that can be assumed.
    pub roles: Vec<AwsRoleDoc>,
    /// KMS keys.
    pub keys: Vec<AwsKeyDoc>,
    /// Accounts (12 digits) that were closed: their keys serve nobody.
    pub closed_accounts: Vec<String>,
    /// Regions in which STS answers `RegionDisabledException`.
    pub sts_disabled_regions: Vec<String>,
}

/// An access key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsAccessKeyDoc {
    /// Such as `AKIAIOSFODNN7EXAMPLE`.
    pub access_key_id: String,
    /// Exactly 40 characters, as real ones have.
    pub secret_access_key: String,
    /// For temporary credentials: the token that must come with each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<String>,
    /// For temporary credentials: when they end, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_s: Option<u64>,
    /// ARN of the user (or session) that it belongs to.
    pub arn: String,
    /// Whether it may be used.
    #[serde(default)]
    pub state: CredentialState,
}

/// A role and its trust policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsRoleDoc {
    /// `arn:aws:iam::444455556666:role/name`.
    pub arn: String,
    /// ARNs of users, or accounts as `arn:aws:iam::111122223333:root`, that may assume it.
    pub trusts: Vec<String>,
    /// Must be given when assuming it, if set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// Longest session, in seconds.
    #[serde(default = "hour_s")]
    pub duration_s_max: u64,
    /// Whether it may be used.
    #[serde(default)]
    pub state: CredentialState,
}

fn hour_s() -> u64 {
    3600
}

/// A KMS key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsKeyDoc {
    /// `arn:aws:kms:us-east-1:111122223333:key/…`. A multi-region key (`mrk-…`) has one entry per region.
    pub arn: String,
    /// Names that begin with `alias/`, in the key's account and region.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What it may do now.
    #[serde(default)]
    pub state: AwsKeyState,
    /// `ENCRYPT_DECRYPT`, or another usage that refuses to encrypt.
    #[serde(default = "encrypt_decrypt")]
    pub usage: String,
    /// ARNs of users, roles or accounts that may use it. Empty: everyone in its own account.
    #[serde(default)]
    pub allows: Vec<String>,
    /// How often it was rotated.
    #[serde(default)]
    pub rotations: u32,
}

fn encrypt_decrypt() -> String {
    "ENCRYPT_DECRYPT".to_owned()
}

/// States of a KMS key, named as AWS KMS does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AwsKeyState {
    /// Usable.
    #[default]
    Enabled,
    /// `DisabledException`.
    Disabled,
    /// `KMSInvalidStateException`.
    PendingDeletion,
    /// `KMSInvalidStateException`.
    PendingImport,
    /// Its key store is away: `KMSInvalidStateException`.
    Unavailable,
    /// `KMSInvalidStateException`.
    Creating,
    /// Gone.
    Deleted,
}

/// Google Cloud.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GcpDoc {
    /// Who may ask for tokens.
    pub service_accounts: Vec<GcpServiceAccountDoc>,
    /// Projects that are not simply active.
    pub projects: Vec<GcpProjectDoc>,
    /// Crypto keys.
    pub keys: Vec<GcpKeyDoc>,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcpServiceAccountDoc {
    /// Its email; its project is the label after the `@`.
    pub email: String,
    /// Its public keys.
    pub keys: Vec<GcpPublicKeyDoc>,
    /// Whether it may be used.
    #[serde(default)]
    pub state: CredentialState,
    /// Whether it may act for others (`sub`), by domain-wide delegation.
    #[serde(default)]
    pub delegation: bool,
}

/// A public key of a service account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcpPublicKeyDoc {
    /// As in a token's `kid`.
    pub id: String,
    /// RSA, in PEM.
    pub public_key_pem: String,
}

/// A project that is not simply active.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcpProjectDoc {
    /// Its id.
    pub id: String,
    /// What is the matter with it.
    #[serde(default)]
    pub state: GcpProjectState,
}

/// What can be the matter with a project; each has a reason in Google's error details.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GcpProjectState {
    /// Nothing.
    #[default]
    Active,
    /// `BILLING_DISABLED`.
    BillingDisabled,
    /// `CONSUMER_SUSPENDED`.
    Suspended,
    /// `SERVICE_DISABLED`: the Cloud KMS API was not enabled.
    ServiceDisabled,
}

/// A crypto key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcpKeyDoc {
    /// `projects/P/locations/L/keyRings/R/cryptoKeys/K`.
    pub name: String,
    /// Its versions, numbered from 1 in this order.
    #[serde(default = "one_enabled")]
    pub versions: Vec<GcpVersionState>,
    /// Number of the version that encrypts; 0 for none.
    #[serde(default = "first")]
    pub primary: u32,
    /// `SOFTWARE`, `HSM`, `EXTERNAL` or `EXTERNAL_VPC`.
    #[serde(default = "software")]
    pub protection: String,
    /// `ENCRYPT_DECRYPT`, or another purpose that refuses to encrypt.
    #[serde(default = "encrypt_decrypt")]
    pub purpose: String,
    /// Emails of the service accounts that may use it.
    pub allows: Vec<String>,
}

fn one_enabled() -> Vec<GcpVersionState> {
    vec![GcpVersionState::Enabled]
}

fn first() -> u32 {
    1
}

fn software() -> String {
    "SOFTWARE".to_owned()
}

/// States of a version, named as Cloud KMS does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GcpVersionState {
    /// Usable.
    #[default]
    Enabled,
    /// Switched off.
    Disabled,
    /// Waits for its destruction.
    DestroyScheduled,
    /// Gone.
    Destroyed,
    /// Being made.
    PendingGeneration,
}

impl GcpVersionState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::DestroyScheduled => "DESTROY_SCHEDULED",
            Self::Destroyed => "DESTROYED",
            Self::PendingGeneration => "PENDING_GENERATION",
        }
    }
}

/// Azure, all clouds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AzureDoc {
    /// Entra applications; the directories are those that they name.
    pub apps: Vec<AzureAppDoc>,
    /// Vaults and managed HSMs.
    pub vaults: Vec<AzureVaultDoc>,
    /// Keys.
    pub keys: Vec<AzureKeyDoc>,
    /// Whether a client assertion is taken once only (`jti`, RFC 7523, section 3). Entra itself must be laxer: MSAL
    /// sends an assertion again for as long as it lives.
    pub refuse_replays: bool,
}

impl Default for AzureDoc {
    fn default() -> Self {
        Self {
            apps: Vec::new(),
            vaults: Vec::new(),
            keys: Vec::new(),
            refuse_replays: true,
        }
    }
}

/// An application registered in a directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureAppDoc {
    /// The directory's GUID.
    pub tenant: String,
    /// The application's GUID.
    pub client_id: String,
    /// Its secrets.
    #[serde(default)]
    pub secrets: Vec<AzureSecretDoc>,
    /// Its certificates, in PEM.
    #[serde(default)]
    pub certificates: Vec<String>,
    /// Whether it may be used.
    #[serde(default)]
    pub state: CredentialState,
}

/// A client secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureSecretDoc {
    /// The secret.
    pub value: String,
    /// When it ends, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_s: Option<u64>,
}

/// A vault or a managed HSM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureVaultDoc {
    /// Its host, such as `acme.vault.azure.net`. The suffix tells the cloud, and a vault from an HSM.
    pub host: String,
    /// GUID of the directory that it belongs to.
    pub tenant: String,
    /// Client ids that may use its keys.
    pub allows: Vec<String>,
    /// What is the matter with it.
    #[serde(default)]
    pub state: AzureVaultState,
    /// JSON of claims that a token must have been asked for with (`insufficient_claims` otherwise).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<String>,
}

/// What can be the matter with a vault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AzureVaultState {
    /// Nothing.
    #[default]
    Active,
    /// `ForbiddenByFirewall`.
    Firewalled,
    /// The subscription that pays for it was disabled.
    SubscriptionDisabled,
    /// Gone.
    Deleted,
}

/// A key in a vault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureKeyDoc {
    /// Host of the vault.
    pub vault: String,
    /// Its name.
    pub name: String,
    /// What kind of key it is.
    #[serde(default)]
    pub kind: AzureKeyKind,
    /// Its versions; the last is the current one.
    pub versions: Vec<AzureVersionDoc>,
    /// What is the matter with it.
    #[serde(default)]
    pub state: AzureKeyState,
    /// What it may do (`key_ops`).
    #[serde(default = "wrap_unwrap")]
    pub operations: Vec<String>,
}

fn wrap_unwrap() -> Vec<String> {
    ["encrypt", "decrypt", "wrapKey", "unwrapKey"]
        .map(str::to_owned)
        .to_vec()
}

/// Kinds of keys, named as Key Vault does (`kty`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AzureKeyKind {
    /// RSA in software.
    #[default]
    #[serde(rename = "RSA")]
    Rsa,
    /// RSA in an HSM.
    #[serde(rename = "RSA-HSM")]
    RsaHsm,
    /// AES in an HSM.
    #[serde(rename = "oct-HSM")]
    OctHsm,
}

impl AzureKeyKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rsa => "RSA",
            Self::RsaHsm => "RSA-HSM",
            Self::OctHsm => "oct-HSM",
        }
    }
}

/// What can be the matter with a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AzureKeyState {
    /// Nothing.
    #[default]
    Active,
    /// Between deleted and active: `Conflict`.
    Recovering,
    /// `KeyNotFound`.
    Deleted,
}

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureVersionDoc {
    /// 32 hex digits.
    pub id: String,
    /// Whether it may be used.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Not to wrap before this, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_unix_s: Option<u64>,
    /// Not to wrap after this, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_s: Option<u64>,
    /// An RSA key: PKCS #8 in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key_pem: Option<String>,
    /// An AES key in hex; derived from the seed if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub material_hex: Option<String>,
}

fn yes() -> bool {
    true
}

/// One CipherTrust Manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThalesDoc {
    /// Who may log in.
    pub users: Vec<ThalesUserDoc>,
    /// AES keys.
    pub keys: Vec<ThalesKeyDoc>,
    /// Whether the licence for the crypto API is there.
    pub licensed: bool,
    /// Whether a key in state `Deactivated` still decrypts. The documents disagree.
    pub deactivated_decrypts: bool,
}

impl Default for ThalesDoc {
    fn default() -> Self {
        Self {
            users: Vec::new(),
            keys: Vec::new(),
            licensed: true,
            deactivated_decrypts: false,
        }
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThalesUserDoc {
    /// Name.
    pub username: String,
    /// Password.
    pub password: String,
    /// The domain in which it was created.
    #[serde(default = "root")]
    pub auth_domain: String,
    /// Where it is authenticated.
    #[serde(default = "local_account")]
    pub connection: String,
    /// Domains in which it may act, besides its own.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Whether it may be used.
    #[serde(default)]
    pub state: CredentialState,
}

fn root() -> String {
    "root".to_owned()
}

fn local_account() -> String {
    "local_account".to_owned()
}

/// A key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThalesKeyDoc {
    /// Name, the same for all its versions.
    pub name: String,
    /// The domain that it is in.
    #[serde(default = "root")]
    pub domain: String,
    /// Its versions, numbered from 0; the last is the current one.
    pub versions: Vec<ThalesVersionDoc>,
    /// 4 to encrypt, 8 to decrypt, 12 for both.
    #[serde(default = "encrypt_and_decrypt")]
    pub usage_mask: u32,
    /// Users that may use it. Empty: everyone in its domain.
    #[serde(default)]
    pub allows: Vec<String>,
}

fn encrypt_and_decrypt() -> u32 {
    12
}

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThalesVersionDoc {
    /// Its own id: 64 hex digits.
    pub id: String,
    /// What it may do now.
    #[serde(default)]
    pub state: ThalesKeyState,
    /// 32 bytes in hex; derived from the seed if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub material_hex: Option<String>,
}

/// States of a version, named as CipherTrust Manager does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThalesKeyState {
    /// Neither encrypts nor decrypts.
    #[serde(rename = "Pre-Active")]
    PreActive,
    /// Does both.
    #[default]
    Active,
    /// Does not encrypt.
    Deactivated,
    /// Does not encrypt.
    Compromised,
    /// Does nothing any more.
    Destroyed,
}

impl ThalesKeyState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::PreActive => "Pre-Active",
            Self::Active => "Active",
            Self::Deactivated => "Deactivated",
            Self::Compromised => "Compromised",
            Self::Destroyed => "Destroyed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_reads_the_same_from_toml_and_from_json() {
        let world = Sample::new(&SampleShape::default()).world;
        let toml = toml::to_string(&world).unwrap();
        let json = serde_json::to_string(&world).unwrap();
        assert_eq!(WorldDoc::parse(&toml).unwrap(), world);
        assert_eq!(WorldDoc::parse(&json).unwrap(), world);
    }

    #[test]
    fn an_unknown_member_is_refused_by_name() {
        let error = WorldDoc::parse("[aws]\nkeyz = []").unwrap_err();
        assert!(error.to_string().contains("keyz"), "{error}");
    }
}
