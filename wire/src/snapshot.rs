//! Snapshots: all tenants and their KMS configs at one version, as the source of configurations gives them.
//!
//! Plain structs, not yet checked. Credentials are in [`Secret`]; nothing here can be cloned or serialized.

use crate::{Secret, SnapshotVersion};

/// The whole state of configurations at one version.
#[derive(Debug)]
pub struct SnapshotDoc {
    /// Counts up with every change.
    pub version: SnapshotVersion,
    /// All KMS configs.
    pub kms: Vec<KmsConfigDoc>,
    /// All tenants.
    pub tenants: Vec<TenantDoc>,
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
    },
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
            ],
            tenants: vec![TenantDoc {
                id: "acme".to_owned(),
                assignments: vec![AssignmentDoc {
                    kms: 1,
                    active: true,
                    primary: true,
                }],
            }],
        };
        for printed in [format!("{doc:?}"), format!("{doc:#?}")] {
            assert!(printed.contains("acme") && printed.contains("eu-central-1"));
            for canary in ["CANARY", "202", "0xca", "caca"] {
                assert!(!printed.contains(canary), "{canary}: {printed}");
            }
        }
    }
}
