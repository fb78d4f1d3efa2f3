//! Snapshots: all tenants and their KMS configs at one version, as the source of configurations gives them.
//!
//! Plain structs, not yet checked. Credentials are in [`Secret`]; nothing here can be cloned or serialized.

use crate::{
    Secret, SnapshotVersion,
    derive::{RotationStatus, SecretType},
};

/// The whole state of configurations at one version.
#[derive(Debug)]
pub struct SnapshotDoc {
    /// Counts up with every change.
    pub version: SnapshotVersion,
    /// All KMS configs.
    pub kms: Vec<KmsConfigDoc>,
    /// Numbers of further ones that the source has and could not make whole, so that their operations can say so.
    pub unusable: Vec<i64>,
    /// All tenants.
    pub tenants: Vec<TenantDoc>,
    /// All tenant secrets, also those of tenants that are not there.
    pub secrets: Vec<TenantSecretDoc>,
}

/// One key in one KMS, and how to reach it.
#[derive(Debug)]
pub struct KmsConfigDoc {
    /// Its permanent number; valid as [`KmsConfigId`](crate::KmsConfigId) has it.
    pub id: i64,
    /// Whether the proxy may lease keys from it, and so spare it a call per document.
    pub leasing_allowed: bool,
    /// The key and the credentials for it.
    pub key: KmsKeyDoc,
    /// URL that replaces the provider's public one: a private endpoint, a proxy, a simulator.
    pub endpoint: Option<String>,
    /// Whether `endpoint` may be plain `http`.
    pub allow_insecure: bool,
    /// Root certificates in PEM that replace the public ones for this endpoint.
    pub ca_pem: Option<String>,
}

/// A key of one kind of KMS.
#[derive(Debug)]
pub enum KmsKeyDoc {
    /// The built-in KMS: the key itself, for AES-256-GCM.
    Local {
        /// 32 random bytes.
        key: Secret<[u8; 32]>,
    },
    /// AWS KMS.
    Aws {
        /// Key id, key ARN, alias name or alias ARN.
        key_id: String,
        /// Such as `eu-central-1`.
        region: String,
        /// Names the credential; not secret.
        access_key_id: String,
        /// Signs the requests.
        secret_access_key: Secret<String>,
        /// Goes with temporary credentials.
        session_token: Option<Secret<String>>,
        /// The role to use the key in. Absent: the credentials above use it themselves.
        assume_role: Option<AssumeRoleDoc>,
        /// URL that replaces the region's public host of AWS STS, which hands out the role.
        sts_endpoint: Option<String>,
    },
    /// Google Cloud KMS.
    Gcp {
        /// The service account.
        client_email: String,
        /// Its private key (RSA) in PEM.
        private_key: Secret<String>,
        /// The id of the private key. Google finds the key without it, too.
        private_key_id: Option<String>,
        /// The project that holds the key ring.
        project_id: String,
        /// Region, multi-region or `global`.
        location_id: String,
        /// The key ring.
        key_ring_id: String,
        /// The key in it, of the purpose `ENCRYPT_DECRYPT`.
        crypto_key_id: String,
        /// How the service account proves itself.
        token: GcpTokenKind,
        /// URL, with its path, that replaces Google's public token endpoint.
        token_endpoint: Option<String>,
    },
    /// Azure Key Vault or Managed HSM.
    Azure {
        /// The application.
        client_id: String,
        /// Its secret, or else a certificate.
        client_secret: Option<Secret<String>>,
        /// Its certificate and the certificate's private key, both in one PEM text.
        client_certificate: Option<Secret<String>>,
        /// The Entra tenant that the application and the vault belong to.
        tenant_guid: String,
        /// Such as `https://acme.vault.azure.net`.
        vault_base_url: String,
        /// The key in the vault.
        key_name: String,
        /// How the key wraps, in Azure's words; `RSA-OAEP-256` if absent.
        algorithm: Option<String>,
        /// URL that replaces the cloud's public token authority.
        authority: Option<String>,
    },
    /// Thales CipherTrust Manager.
    Thales {
        /// The user.
        username: String,
        /// Its password.
        password: Secret<String>,
        /// The domain that the user was created in, often `root`.
        auth_domain: String,
        /// Where the user is known, often `local_account`.
        connection: String,
        /// The appliance's URL.
        service_url: String,
        /// Name or id of the key.
        key_id: String,
        /// The name to check the appliance's certificate for, instead of the URL's host.
        server_name: Option<String>,
        /// The SHA-256 hash of the certificate's public key (RFC 7469, section 2.4), in base64.
        spki_pin: Option<String>,
    },
}

/// An AWS role that uses the key, and whom it is assumed by (AWS STS API, `AssumeRole`).
#[derive(Debug)]
pub struct AssumeRoleDoc {
    /// Its ARN.
    pub role_arn: String,
    /// What the role's trust policy asks for, so that nobody can be tricked into assuming it for somebody else.
    pub external_id: Option<Secret<String>>,
    /// The name under which the role's account logs what was done.
    pub session_name: Option<String>,
    /// How long a session lasts, in seconds.
    pub duration_s: Option<u32>,
}

/// How a Google service account proves itself to Cloud KMS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GcpTokenKind {
    /// With a JSON Web Token that it signs itself.
    #[default]
    SelfSigned,
    /// With an access token, which the token endpoint gives for a signed JSON Web Token.
    Endpoint,
}

/// One tenant and the KMS configs that serve it.
#[derive(Debug)]
pub struct TenantDoc {
    /// The vendor's id of the tenant; valid as [`TenantId`](crate::TenantId) has it.
    pub id: String,
    /// Its KMS configs. At most one is primary.
    pub assignments: Vec<AssignmentDoc>,
}

/// Links a tenant to a KMS config.
#[derive(Debug)]
pub struct AssignmentDoc {
    /// Number of the KMS config.
    pub kms: i64,
    /// Whether it may be used at all.
    pub active: bool,
    /// Whether new data is encrypted with it. Only an active one can be primary.
    pub primary: bool,
}

/// One secret of a tenant's that keys are derived from. Wrapped, so it may be copied and printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantSecretDoc {
    /// Its permanent number; valid as [`TenantSecretId`](crate::TenantSecretId) has it.
    pub id: u64,
    /// The vendor's id of the tenant.
    pub tenant: String,
    /// What keys are derived for.
    pub secret_type: SecretType,
    /// The path that chooses it. Any text, also none.
    pub path: String,
    /// At most one of a tenant's secrets of one type and path is current, and at most one in rotation.
    pub status: RotationStatus,
    /// The secret's 32 bytes as the tenant's KMS wrapped them: an EDEK, as bytes.
    pub edek: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_prints_no_secret() {
        let canary = |name: &str| Secret::new(format!("CANARY-{name}"));
        let config = |id, key| KmsConfigDoc {
            id,
            leasing_allowed: true,
            key,
            endpoint: Some("https://kms.example.com".to_owned()),
            allow_insecure: false,
            ca_pem: None,
        };
        let aws = |session_token| KmsKeyDoc::Aws {
            key_id: "alias/customers".to_owned(),
            region: "eu-central-1".to_owned(),
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: canary("secret-access-key"),
            session_token,
            assume_role: Some(AssumeRoleDoc {
                role_arn: "arn:aws:iam::111122223333:role/tsp".to_owned(),
                external_id: Some(canary("external-id")),
                session_name: None,
                duration_s: Some(3600),
            }),
            sts_endpoint: None,
        };
        let gcp = KmsKeyDoc::Gcp {
            client_email: "tsp@acme.iam.gserviceaccount.com".to_owned(),
            private_key: canary("private-key"),
            private_key_id: None,
            project_id: "acme".to_owned(),
            location_id: "europe-west1".to_owned(),
            key_ring_id: "tsp".to_owned(),
            crypto_key_id: "documents".to_owned(),
            token: GcpTokenKind::default(),
            token_endpoint: None,
        };
        let azure = KmsKeyDoc::Azure {
            client_id: "11111111-2222-3333-4444-555555555555".to_owned(),
            client_secret: Some(canary("client-secret")),
            client_certificate: Some(canary("client-certificate")),
            tenant_guid: "66666666-7777-8888-9999-000000000000".to_owned(),
            vault_base_url: "https://acme.vault.azure.net".to_owned(),
            key_name: "documents".to_owned(),
            algorithm: None,
            authority: None,
        };
        let thales = KmsKeyDoc::Thales {
            username: "tsp".to_owned(),
            password: canary("password"),
            auth_domain: "root".to_owned(),
            connection: "local_account".to_owned(),
            service_url: "https://ciphertrust.example.com".to_owned(),
            key_id: "documents".to_owned(),
            server_name: None,
            spki_pin: None,
        };
        let doc = SnapshotDoc {
            version: SnapshotVersion(7),
            kms: vec![
                config(
                    1,
                    KmsKeyDoc::Local {
                        key: Secret::new([0xca; 32]),
                    },
                ),
                config(2, aws(Some(canary("session-token")))),
                config(3, aws(None)),
                config(4, gcp),
                config(5, azure),
                config(6, thales),
            ],
            unusable: Vec::new(),
            tenants: vec![TenantDoc {
                id: "acme".to_owned(),
                assignments: vec![AssignmentDoc {
                    kms: 1,
                    active: true,
                    primary: true,
                }],
            }],
            secrets: Vec::new(),
        };
        for printed in [format!("{doc:?}"), format!("{doc:#?}")] {
            assert!(printed.contains("acme") && printed.contains("eu-central-1"));
            assert_eq!(printed.matches("Secret(redacted)").count(), 10);
            for canary in ["CANARY", "202", "0xca", "caca"] {
                assert!(!printed.contains(canary), "{canary}: {printed}");
            }
        }
    }
}
