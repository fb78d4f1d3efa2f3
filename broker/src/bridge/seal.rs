//! KMS configs as callers hand them over: read, checked, and sealed before anything of them leaves the process.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use tsp_wire::{
    Secret,
    account::{
        env::ServiceAccount,
        kms,
        signed::{self, Signers},
    },
    envelope::{Epoch, Kind, SegmentKey, VerifyingKey},
};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};
use zeroize::Zeroizing;

use super::{
    call::Sealing,
    shapes::{KmsType, StoredKmsConfig},
};
use crate::{
    keys::{Object, Sealer, key_bytes, public_key, verifying_key},
    model::{Assign, AssignmentState, KmsDoc, SignedPath},
};

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
    String::deserialize(from).map(Secret::new)
}

/// What AWS KMS asks for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AwsCredentials {
    access_key_id: String,
    #[serde(deserialize_with = "secret")]
    #[schema(value_type = String)]
    secret_access_key: Secret<String>,
}

/// Which key of AWS KMS.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct AwsKeyPath {
    #[serde(rename = "keyID")]
    key_id: String,
    region: String,
}

/// What Google Cloud KMS asks for.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct GcpCredentials {
    client_email: String,
    #[serde(deserialize_with = "secret")]
    #[schema(value_type = String)]
    private_key: Secret<String>,
}

/// Which key of Google Cloud KMS.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GcpKeyPath {
    project_id: String,
    location_id: String,
    key_ring_id: String,
    crypto_key_id: String,
}

/// What Azure Key Vault asks for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AzureCredentials {
    client_id: String,
    #[serde(deserialize_with = "secret")]
    #[schema(value_type = String)]
    client_secret: Secret<String>,
    tenant_guid: String,
}

/// Which key of Azure Key Vault.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AzureKeyPath {
    vault_base_url: String,
    key_name: String,
}

/// What CipherTrust Manager asks for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ThalesCredentials {
    auth_domain: String,
    connection: String,
    username: String,
    #[serde(deserialize_with = "secret")]
    #[schema(value_type = String)]
    password: Secret<String>,
}

/// Which key of CipherTrust Manager.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ThalesKeyPath {
    service_url: String,
    key_id: String,
}

/// The one version of the schema of contents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version;

impl PartialSchema for Version {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(kms::SCHEMA))
            .maximum(Some(kms::SCHEMA));
        number.into()
    }
}

impl ToSchema for Version {}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if u16::deserialize(from)? == kms::SCHEMA {
            Ok(Self)
        } else {
            Err(serde::de::Error::custom("no version that is known here"))
        }
    }
}

/// A KMS config, whole.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
pub(crate) enum KmsConfiguration {
    /// AWS KMS.
    Aws {
        credentials: AwsCredentials,
        #[serde(rename = "keyPath")]
        key_path: AwsKeyPath,
        #[serde(rename = "version")]
        _version: Version,
    },
    /// Google Cloud KMS.
    Gcp {
        credentials: GcpCredentials,
        #[serde(rename = "keyPath")]
        key_path: GcpKeyPath,
        #[serde(rename = "version")]
        _version: Version,
    },
    /// Azure Key Vault.
    Azure {
        credentials: AzureCredentials,
        #[serde(rename = "keyPath")]
        key_path: AzureKeyPath,
        #[serde(rename = "version")]
        _version: Version,
    },
    /// CipherTrust Manager.
    Thales {
        credentials: ThalesCredentials,
        #[serde(rename = "keyPath")]
        key_path: ThalesKeyPath,
        #[serde(rename = "version")]
        _version: Version,
    },
}

/// Other credentials for the key of a KMS config.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
pub(crate) enum KmsConfigurationUpdate {
    /// AWS KMS.
    Aws {
        credentials: AwsCredentials,
        /// Ours: if it is there, it must be the one that the config was made with.
        #[serde(rename = "keyPath")]
        key_path: Option<AwsKeyPath>,
        #[serde(rename = "version")]
        _version: Version,
    },
    /// Google Cloud KMS.
    Gcp {
        credentials: GcpCredentials,
        /// Ours: if it is there, it must be the one that the config was made with.
        #[serde(rename = "keyPath")]
        key_path: Option<GcpKeyPath>,
        #[serde(rename = "version")]
        _version: Version,
    },
    /// Azure Key Vault.
    Azure {
        credentials: AzureCredentials,
        /// Ours: if it is there, it must be the one that the config was made with.
        #[serde(rename = "keyPath")]
        key_path: Option<AzureKeyPath>,
        #[serde(rename = "version")]
        _version: Version,
    },
    /// CipherTrust Manager.
    Thales {
        credentials: ThalesCredentials,
        /// Ours: if it is there, it must be the one that the config was made with.
        #[serde(rename = "keyPath")]
        key_path: Option<ThalesKeyPath>,
        #[serde(rename = "version")]
        _version: Version,
    },
}

/// A content's parts, before they are one text.
struct Parts {
    kind: KmsType,
    key_path: Option<serde_json::Value>,
    /// Goes with the allocator's help: see `main.rs`.
    credentials: serde_json::Value,
}

impl AwsCredentials {
    fn json(&self) -> serde_json::Value {
        json!({ "accessKeyId": self.access_key_id, "secretAccessKey": self.secret_access_key.expose() })
    }
}

impl AwsKeyPath {
    fn json(&self) -> serde_json::Value {
        json!({ "keyID": self.key_id, "region": self.region })
    }
}

impl GcpCredentials {
    fn json(&self) -> serde_json::Value {
        json!({ "client_email": self.client_email, "private_key": self.private_key.expose() })
    }
}

impl GcpKeyPath {
    fn json(&self) -> serde_json::Value {
        json!({
            "projectId": self.project_id, "locationId": self.location_id, "keyRingId": self.key_ring_id,
            "cryptoKeyId": self.crypto_key_id,
        })
    }
}

impl AzureCredentials {
    fn json(&self) -> serde_json::Value {
        json!({
            "clientId": self.client_id, "clientSecret": self.client_secret.expose(), "tenantGuid": self.tenant_guid,
        })
    }
}

impl AzureKeyPath {
    fn json(&self) -> serde_json::Value {
        json!({ "vaultBaseUrl": self.vault_base_url, "keyName": self.key_name })
    }
}

impl ThalesCredentials {
    fn json(&self) -> serde_json::Value {
        json!({
            "authDomain": self.auth_domain, "connection": self.connection, "username": self.username,
            "password": self.password.expose(),
        })
    }
}

impl ThalesKeyPath {
    fn json(&self) -> serde_json::Value {
        json!({ "serviceUrl": self.service_url, "keyId": self.key_id })
    }
}

impl KmsConfiguration {
    fn parts(&self) -> Parts {
        let (kind, key_path, credentials) = match self {
            Self::Aws {
                credentials,
                key_path,
                ..
            } => (KmsType::Aws, key_path.json(), credentials.json()),
            Self::Gcp {
                credentials,
                key_path,
                ..
            } => (KmsType::Gcp, key_path.json(), credentials.json()),
            Self::Azure {
                credentials,
                key_path,
                ..
            } => (KmsType::Azure, key_path.json(), credentials.json()),
            Self::Thales {
                credentials,
                key_path,
                ..
            } => (KmsType::Thales, key_path.json(), credentials.json()),
        };
        Parts {
            kind,
            key_path: Some(key_path),
            credentials,
        }
    }
}

impl KmsConfigurationUpdate {
    fn parts(&self) -> Parts {
        let (kind, key_path, credentials) = match self {
            Self::Aws {
                credentials,
                key_path,
                ..
            } => (
                KmsType::Aws,
                key_path.as_ref().map(AwsKeyPath::json),
                credentials.json(),
            ),
            Self::Gcp {
                credentials,
                key_path,
                ..
            } => (
                KmsType::Gcp,
                key_path.as_ref().map(GcpKeyPath::json),
                credentials.json(),
            ),
            Self::Azure {
                credentials,
                key_path,
                ..
            } => (
                KmsType::Azure,
                key_path.as_ref().map(AzureKeyPath::json),
                credentials.json(),
            ),
            Self::Thales {
                credentials,
                key_path,
                ..
            } => (
                KmsType::Thales,
                key_path.as_ref().map(ThalesKeyPath::json),
                credentials.json(),
            ),
        };
        Parts {
            kind,
            key_path,
            credentials,
        }
    }
}

/// Why nothing was sealed.
#[derive(Debug)]
pub(crate) enum SealError {
    /// The caller's fault: a sentence without any value.
    Refused(String),
    /// The broker answers with keys that are not the vendor's.
    NotTheVendors,
}

fn refused(why: &str) -> SealError {
    SealError::Refused(why.to_owned())
}

/// Seals and signs for the bridge's vendor.
pub(crate) struct Bench<'a> {
    sealer: Sealer<'a>,
    /// Who speaks for the vendor.
    signers: Signers,
}

impl<'a> Bench<'a> {
    /// Believes what the broker tells only if the vendor has signed it, whose fingerprint is in the account's id.
    pub(crate) fn new(account: &'a ServiceAccount, sealing: &Sealing) -> Result<Self, SealError> {
        let made = || {
            let vendor = account.vendor();
            let vendor_key = VerifyingKey::from_bytes(key_bytes(&sealing.vendor_key)?);
            let key = SegmentKey {
                segment: account.segment,
                epoch: Epoch(sealing.segment.epoch),
                public: public_key(&sealing.segment.public_key)?,
            };
            let signature = STANDARD.decode(&sealing.segment.signature).ok()?;
            let good = vendor_key.fingerprint() == vendor.fingerprint
                && key.is_signed(&vendor_key, &signature);
            let signers = Signers::new(vendor, vendor_key, &sealing.signers);
            let sealer = Sealer {
                vendor,
                key,
                signing: &account.signing_key,
            };
            good.then_some(Self { sealer, signers })
        };
        made().ok_or(SealError::NotTheVendors)
    }

    /// A new KMS config.
    pub(crate) fn create(
        &self,
        id: i64,
        leasing_allowed: bool,
        config: &KmsConfiguration,
    ) -> Result<KmsDoc, SealError> {
        self.seal(
            id,
            1,
            leasing_allowed,
            config.parts(),
            serde_json::Value::Null,
        )
    }

    /// Other credentials for a KMS config that is there.
    pub(crate) fn update(
        &self,
        there: &StoredKmsConfig,
        leasing_allowed: bool,
        config: &KmsConfigurationUpdate,
    ) -> Result<KmsDoc, SealError> {
        let parts = config.parts();
        if parts.kind != there.meta.kms_type {
            return Err(refused("the type of a KMS config never changes"));
        }
        if parts
            .key_path
            .as_ref()
            .is_some_and(|wanted| *wanted != there.key_path)
        {
            return Err(refused("the key path of a KMS config never changes"));
        }
        // The new credentials go where the key path leads, and the broker could lead them to itself.
        if parts.key_path.is_none() && !self.is_signed(there) {
            return Err(refused(
                "nobody who speaks for the vendor has signed this KMS config's key path: say keyPath, too",
            ));
        }
        let revision = there.revision + 1;
        self.seal(
            there.meta.id,
            revision,
            leasing_allowed,
            parts,
            there.key_path.clone(),
        )
    }

    /// Whether who speaks for the vendor says that this is the config's key path.
    fn is_signed(&self, there: &StoredKmsConfig) -> bool {
        let signed = || {
            let SignedPath { signer, signature } = &there.path;
            let signer = verifying_key(signer)?;
            let signature = STANDARD.decode(signature).ok()?;
            let kms = u64::try_from(there.meta.id).ok()?;
            let kind = there.meta.kms_type.as_str();
            let vendor = self.sealer.vendor;
            let good =
                signed::path_is_signed(&signer, vendor, kms, kind, &there.key_path, &signature);
            Some(good && self.signers.speaks_for_vendor(&signer))
        };
        signed().unwrap_or_default()
    }

    fn seal(
        &self,
        id: i64,
        revision: i64,
        leasing_allowed: bool,
        parts: Parts,
        key_path: serde_json::Value,
    ) -> Result<KmsDoc, SealError> {
        let key_path = parts.key_path.unwrap_or(key_path);
        let content = json!({
            "type": parts.kind.as_str(), "key_path": key_path, "credentials": parts.credentials,
        });
        let content = Zeroizing::new(content.to_string());
        kms::parse(id, leasing_allowed, content.as_bytes())
            .map_err(|why| SealError::Refused(why.to_string()))?;
        let object = Object {
            kind: Kind::KmsConfig,
            id,
            schema: kms::SCHEMA,
            revision,
        };
        let sealer = &self.sealer;
        let envelope = sealer.seal(&object, "", content.as_bytes());
        let path = sealer.path(id, parts.kind.as_str(), &key_path);
        Ok(KmsDoc {
            id,
            kind: parts.kind.to_string(),
            key_path,
            schema: kms::SCHEMA,
            revision,
            epoch: sealer.key.epoch.0,
            leasing_allowed,
            envelope: envelope.ok_or_else(|| refused("the KMS config is too large"))?,
            path: path.ok_or_else(|| refused("the number of a KMS config is from 1 on"))?,
            share: None,
        })
    }

    /// A new assignment: active, and not primary.
    pub(crate) fn assign(&self, kms: i64, tenant: &str) -> Result<Assign, SealError> {
        let state = AssignmentState {
            active: true,
            primary: false,
        };
        let assign = self.sealer.assign(kms, tenant, state);
        assign.ok_or_else(|| refused("the number of a KMS config is from 1 on"))
    }
}
