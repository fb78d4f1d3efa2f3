//! The proxy's configuration file, as far as the reference needs it: AWS configs and tenants.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The file.
#[derive(Debug, Deserialize)]
pub struct Config {
    /// Keys at AWS KMS. Those of another kind are an error.
    #[serde(default)]
    pub kms: Vec<KmsConfig>,
    /// Who uses them.
    #[serde(default)]
    pub tenant: Vec<TenantConfig>,
}

/// One key at AWS KMS.
#[derive(Debug, Deserialize)]
pub struct KmsConfig {
    /// The number in EDEKs.
    pub id: i64,
    /// `AWS`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether DEKs are wrapped under a leased key.
    #[serde(default)]
    pub leasing_allowed: bool,
    /// `https://HOST:PORT`, or `http://…`.
    pub endpoint: String,
    /// Whom to trust at an `https` endpoint. There are no other roots.
    pub ca_file: Option<PathBuf>,
    /// Which key.
    pub key_path: KeyPath,
    /// Who asks.
    pub credentials: Credentials,
}

/// Which key it is.
#[derive(Debug, Deserialize)]
pub struct KeyPath {
    /// Id, ARN or alias.
    #[serde(rename = "keyID")]
    pub key_id: String,
    /// The region that the signature names.
    pub region: String,
}

/// Static credentials.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// The name.
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(redacted)")
    }
}

/// A tenant.
#[derive(Debug, Deserialize)]
pub struct TenantConfig {
    /// Its id.
    pub id: String,
    /// Its keys.
    pub assignments: Vec<Assignment>,
}

/// A key of a tenant's.
#[derive(Debug, Deserialize)]
pub struct Assignment {
    /// The number of the KMS config.
    pub kms: i64,
    /// Whether new DEKs are wrapped with it.
    #[serde(default)]
    pub primary: bool,
}

impl Config {
    /// Reads the file. Paths in it are relative to it.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn read(path: &Path) -> Result<Self, String> {
        let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let text = std::fs::read_to_string(path).map_err(|why| failed(&why))?;
        let mut config: Self = toml::from_str(&text).map_err(|why| failed(&why))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for kms in &mut config.kms {
            if kms.kind != "AWS" {
                return Err(failed(&format_args!(
                    "config {} is at {}, and the reference knows AWS alone",
                    kms.id, kms.kind
                )));
            }
            kms.ca_file = kms.ca_file.take().map(|file| folder.join(file));
        }
        Ok(config)
    }
}
