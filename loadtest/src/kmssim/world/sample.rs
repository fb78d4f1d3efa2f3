//! A world made to measure: so many tenants over these providers, and what each tenant's client needs to know.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Serialize;

use super::{
    AwsAccessKeyDoc, AwsDoc, AwsKeyDoc, AwsKeyState, AwsRoleDoc, AzureAppDoc, AzureDoc,
    AzureKeyDoc, AzureKeyKind, AzureKeyState, AzureSecretDoc, AzureVaultDoc, AzureVaultState,
    AzureVersionDoc, CredentialState, GcpDoc, GcpKeyDoc, GcpPublicKeyDoc, GcpServiceAccountDoc,
    GcpVersionState, ThalesDoc, ThalesKeyDoc, ThalesKeyState, ThalesUserDoc, ThalesVersionDoc,
    WorldDoc,
};
use crate::kmssim::{
    crypto::{Seed, uuid},
    exchange::Provider,
};

/// Private key of all service accounts of the sample. TEST-ONLY.
const GCP_PRIVATE_KEY: &str = include_str!("../data/gcp-service-account-TEST-ONLY.pem");
const GCP_PUBLIC_KEY: &str = include_str!("../data/gcp-service-account-public-TEST-ONLY.pem");
/// As its `kid`.
const GCP_KEY_ID: &str = "0123456789abcdef0123456789abcdef01234567";
/// Key and certificate of all Entra applications of the sample. TEST-ONLY.
const AZURE_CLIENT_KEY: &str = include_str!("../data/azure-client-key-TEST-ONLY.pem");
const AZURE_CLIENT_CERTIFICATE: &str =
    include_str!("../data/azure-client-certificate-TEST-ONLY.pem");
/// RSA keys of the sample's vaults, by turns. TEST-ONLY.
pub(crate) const AZURE_VAULT_KEYS: [&str; 2] = [
    include_str!("../data/azure-vault-a-TEST-ONLY.pem"),
    include_str!("../data/azure-vault-b-TEST-ONLY.pem"),
];
/// Where all of the sample's AWS keys are.
const REGION: &str = "us-east-1";
/// The account of whoever assumes the tenants' roles.
const VENDOR_ACCOUNT: &str = "111122223333";

/// What a sample is to hold.
#[derive(Clone, Debug)]
pub struct SampleShape {
    /// How many tenants, called `tenant-1` and so on.
    pub tenants: usize,
    /// Their providers, by turns.
    pub providers: Vec<Provider>,
    /// What keys and credentials are derived from.
    pub seed: u64,
    /// AWS: a role in each tenant's account, assumed by one user of the vendor, instead of a user per tenant.
    pub aws_roles: bool,
    /// GCP: tokens from the token endpoint, instead of self-signed ones.
    pub gcp_token_endpoint: bool,
    /// Azure: client certificates instead of client secrets.
    pub azure_certificates: bool,
    /// Azure: keys in managed HSMs instead of vaults, and beside each tenant's RSA key an AES key, with `-aes` behind its
    /// name.
    pub azure_hsm: bool,
    /// Azure: in managed HSMs, tenants use that AES key instead of the RSA key.
    pub azure_aes: bool,
}

impl Default for SampleShape {
    fn default() -> Self {
        Self {
            tenants: Provider::ALL.len(),
            providers: Provider::ALL.to_vec(),
            seed: 1,
            aws_roles: false,
            gcp_token_endpoint: false,
            azure_certificates: false,
            azure_hsm: false,
            azure_aes: false,
        }
    }
}

/// A world and its clients.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What the KMSs know.
    pub world: WorldDoc,
    /// What the tenants' clients know.
    pub clients: Vec<Client>,
}

/// One tenant's key and the credentials for it.
#[derive(Clone, Debug, Serialize)]
pub struct Client {
    /// `tenant-1` and so on.
    pub tenant: String,
    /// Number of its KMS config: 1 and so on.
    pub kms: usize,
    /// The key.
    pub key: ClientKey,
}

/// A key as its client names it, with credentials; members as in the proxy's configuration.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum ClientKey {
    /// AWS KMS.
    #[serde(rename = "AWS")]
    Aws {
        /// ARN of the key.
        #[serde(rename = "keyID")]
        key_id: String,
        /// Its region.
        region: String,
        /// Access key.
        access_key_id: String,
        /// Its secret.
        secret_access_key: String,
        /// Role to assume with it.
        #[serde(skip_serializing_if = "Option::is_none")]
        role_arn: Option<String>,
        /// What the role's owner asks for.
        #[serde(skip_serializing_if = "Option::is_none")]
        external_id: Option<String>,
    },
    /// Google Cloud KMS.
    #[serde(rename = "GCP")]
    Gcp {
        /// Email of the service account.
        #[serde(rename = "client_email")]
        client_email: String,
        /// PKCS #8 in PEM.
        #[serde(rename = "private_key")]
        private_key: String,
        /// Id of that key.
        #[serde(rename = "private_key_id")]
        private_key_id: String,
        /// Where the key is.
        project_id: String,
        /// Where the key is.
        location_id: String,
        /// Where the key is.
        key_ring_id: String,
        /// Its name.
        crypto_key_id: String,
        /// Whether to ask the token endpoint, rather than to sign tokens oneself.
        token_endpoint: bool,
    },
    /// Azure Key Vault or Managed HSM.
    #[serde(rename = "AZURE")]
    Azure {
        /// Application.
        client_id: String,
        /// Its secret,
        #[serde(skip_serializing_if = "Option::is_none")]
        client_secret: Option<String>,
        /// or its certificate, followed by its key, in PEM.
        #[serde(skip_serializing_if = "Option::is_none")]
        client_certificate: Option<String>,
        /// Directory.
        tenant_guid: String,
        /// URL of the vault, as the rest of the world knows it.
        vault_base_url: String,
        /// Name of the key.
        key_name: String,
        /// How it wraps, if that is not by RSA-OAEP-256.
        #[serde(skip_serializing_if = "Option::is_none")]
        algorithm: Option<String>,
    },
    /// Thales CipherTrust Manager.
    #[serde(rename = "THALES")]
    Thales {
        /// User.
        username: String,
        /// Password.
        password: String,
        /// Where the user was created.
        auth_domain: String,
        /// Where it is authenticated.
        connection: String,
        /// Name of the key.
        key_id: String,
    },
}

impl ClientKey {
    /// Which kind of KMS it is in.
    #[must_use]
    pub fn provider(&self) -> Provider {
        match self {
            Self::Aws { .. } => Provider::Aws,
            Self::Gcp { .. } => Provider::Gcp,
            Self::Azure { .. } => Provider::Azure,
            Self::Thales { .. } => Provider::Thales,
        }
    }
}

impl Sample {
    /// Makes it. The same shape gives the same sample.
    #[must_use]
    pub fn new(shape: &SampleShape) -> Self {
        let mut maker = Maker {
            seed: Seed::new(shape.seed),
            shape,
            aws: AwsDoc::default(),
            gcp: GcpDoc::default(),
            azure: AzureDoc::default(),
            thales: ThalesDoc::default(),
        };
        if shape.aws_roles {
            let arn = format!("arn:aws:iam::{VENDOR_ACCOUNT}:user/proxy");
            let key = maker.aws_access_key("vendor", arn);
            maker.aws.access_keys.push(key);
        }
        let clients = (1..=shape.tenants)
            .zip(shape.providers.iter().cycle())
            .map(|(number, provider)| Client {
                tenant: format!("tenant-{number}"),
                kms: number,
                key: match provider {
                    Provider::Aws => maker.aws(number),
                    Provider::Gcp => maker.gcp(number),
                    Provider::Azure => maker.azure(number),
                    Provider::Thales => maker.thales(number),
                },
            })
            .collect();
        Self {
            world: WorldDoc {
                seed: shape.seed,
                aws: maker.aws,
                gcp: maker.gcp,
                azure: maker.azure,
                thales: maker.thales,
            },
            clients,
        }
    }
}

struct Maker<'a> {
    seed: Seed,
    shape: &'a SampleShape,
    aws: AwsDoc,
    gcp: GcpDoc,
    azure: AzureDoc,
    thales: ThalesDoc,
}

impl Maker<'_> {
    fn derive(&self, what: &str, whose: &str) -> [u8; 32] {
        self.seed
            .derive(&[b"sample", what.as_bytes(), whose.as_bytes()])
    }

    fn guid(&self, what: &str, whose: &str) -> String {
        let bytes = self.derive(what, whose);
        uuid(std::array::from_fn(|index| {
            bytes.get(index).copied().unwrap_or_default()
        }))
    }

    fn text(&self, what: &str, whose: &str, bytes: usize) -> String {
        let derived = self.derive(what, whose);
        BASE64.encode(derived.get(..bytes).unwrap_or(&derived))
    }

    fn aws_access_key(&self, whose: &str, arn: String) -> AwsAccessKeyDoc {
        let id = hex::encode_upper(self.derive("access-key-id", whose));
        AwsAccessKeyDoc {
            access_key_id: format!("AKIA{}", id.get(..16).unwrap_or_default()),
            // 30 bytes become 40 characters.
            secret_access_key: self.text("secret-access-key", whose, 30),
            session_token: None,
            expires_unix_s: None,
            arn,
            state: CredentialState::Active,
        }
    }

    fn aws(&mut self, number: usize) -> ClientKey {
        let tenant = format!("tenant-{number}");
        let account = format!("4444{number:08}");
        let key_arn = format!(
            "arn:aws:kms:{REGION}:{account}:key/{}",
            self.guid("aws-key", &tenant)
        );
        let mut allows = Vec::new();
        let (access_key, role) = if self.shape.aws_roles {
            let role = AwsRoleDoc {
                arn: format!("arn:aws:iam::{account}:role/tsp"),
                trusts: vec![format!("arn:aws:iam::{VENDOR_ACCOUNT}:root")],
                external_id: Some(format!("external-{tenant}")),
                duration_s_max: 3600,
                state: CredentialState::Active,
            };
            allows.push(role.arn.clone());
            self.aws.roles.push(role.clone());
            (self.aws.access_keys.first().cloned(), Some(role))
        } else {
            let arn = format!("arn:aws:iam::{account}:user/proxy");
            let key = self.aws_access_key(&tenant, arn);
            self.aws.access_keys.push(key.clone());
            (Some(key), None)
        };
        self.aws.keys.push(AwsKeyDoc {
            arn: key_arn.clone(),
            aliases: vec![format!("alias/{tenant}")],
            state: AwsKeyState::Enabled,
            usage: super::encrypt_decrypt(),
            allows,
            rotations: 0,
        });
        let (access_key_id, secret_access_key) = access_key.map_or_else(Default::default, |key| {
            (key.access_key_id, key.secret_access_key)
        });
        ClientKey::Aws {
            key_id: key_arn,
            region: REGION.to_owned(),
            access_key_id,
            secret_access_key,
            external_id: role.as_ref().and_then(|role| role.external_id.clone()),
            role_arn: role.map(|role| role.arn),
        }
    }

    fn gcp(&mut self, number: usize) -> ClientKey {
        let project = format!("tsp-tenant-{number}");
        let email = format!("proxy@{project}.iam.gserviceaccount.com");
        let (location, ring, key) = ("europe-west1", "tsp", format!("tenant-{number}"));
        self.gcp.service_accounts.push(GcpServiceAccountDoc {
            email: email.clone(),
            keys: vec![GcpPublicKeyDoc {
                id: GCP_KEY_ID.to_owned(),
                public_key_pem: GCP_PUBLIC_KEY.to_owned(),
            }],
            state: CredentialState::Active,
            delegation: false,
        });
        self.gcp.keys.push(GcpKeyDoc {
            name: format!(
                "projects/{project}/locations/{location}/keyRings/{ring}/cryptoKeys/{key}"
            ),
            versions: vec![GcpVersionState::Enabled],
            primary: 1,
            protection: super::software(),
            purpose: super::encrypt_decrypt(),
            allows: vec![email.clone()],
        });
        ClientKey::Gcp {
            client_email: email,
            private_key: GCP_PRIVATE_KEY.to_owned(),
            private_key_id: GCP_KEY_ID.to_owned(),
            project_id: project,
            location_id: location.to_owned(),
            key_ring_id: ring.to_owned(),
            crypto_key_id: key,
            token_endpoint: self.shape.gcp_token_endpoint,
        }
    }

    fn azure(&mut self, number: usize) -> ClientKey {
        let name = format!("tenant-{number}");
        let (hsm, aes) = (self.shape.azure_hsm, self.shape.azure_aes);
        let hsm = hsm || aes;
        let suffix = if hsm {
            "managedhsm.azure.net"
        } else {
            "vault.azure.net"
        };
        let host = format!("tsp-{name}.{suffix}");
        let tenant = self.guid("azure-tenant", &name);
        let client_id = self.guid("azure-client", &name);
        // All characters that a form must encode.
        let secret = format!("Q~{}+/=&", self.text("azure-secret", &name, 24));
        let version = hex::encode(self.derive("azure-version", &name));
        self.azure.apps.push(AzureAppDoc {
            tenant: tenant.clone(),
            client_id: client_id.clone(),
            secrets: vec![AzureSecretDoc {
                value: secret.clone(),
                expires_unix_s: None,
            }],
            certificates: vec![AZURE_CLIENT_CERTIFICATE.to_owned()],
            state: CredentialState::Active,
        });
        self.azure.vaults.push(AzureVaultDoc {
            host: host.clone(),
            tenant: tenant.clone(),
            allows: vec![client_id.clone()],
            state: AzureVaultState::Active,
            claims: None,
        });
        let pem = AZURE_VAULT_KEYS
            .get(number % AZURE_VAULT_KEYS.len())
            .copied();
        let mut key = |name: &str, kind, private_key_pem: Option<&str>| {
            self.azure.keys.push(AzureKeyDoc {
                vault: host.clone(),
                name: name.to_owned(),
                kind,
                versions: vec![AzureVersionDoc {
                    id: version.get(..32).unwrap_or_default().to_owned(),
                    enabled: true,
                    not_before_unix_s: None,
                    expires_unix_s: None,
                    private_key_pem: private_key_pem.map(str::to_owned),
                    material_hex: None,
                }],
                state: AzureKeyState::Active,
                operations: super::wrap_unwrap(),
            });
        };
        let aes_name = format!("{name}-aes");
        if hsm {
            key(&name, AzureKeyKind::RsaHsm, pem);
            key(&aes_name, AzureKeyKind::OctHsm, None);
        } else {
            key(&name, AzureKeyKind::Rsa, pem);
        }
        let certificate = format!("{AZURE_CLIENT_CERTIFICATE}{AZURE_CLIENT_KEY}");
        ClientKey::Azure {
            client_id,
            client_secret: (!self.shape.azure_certificates).then_some(secret),
            client_certificate: self.shape.azure_certificates.then_some(certificate),
            tenant_guid: tenant,
            vault_base_url: format!("https://{host}"),
            key_name: if aes { aes_name } else { name },
            algorithm: aes.then(|| "A256KW".to_owned()),
        }
    }

    fn thales(&mut self, number: usize) -> ClientKey {
        let tenant = format!("tenant-{number}");
        let password = format!("P{}!", self.text("thales-password", &tenant, 15));
        self.thales.users.push(ThalesUserDoc {
            username: tenant.clone(),
            password: password.clone(),
            auth_domain: super::root(),
            connection: super::local_account(),
            domains: Vec::new(),
            state: CredentialState::Active,
        });
        let key = format!("kek-{tenant}");
        self.thales.keys.push(ThalesKeyDoc {
            name: key.clone(),
            domain: super::root(),
            versions: vec![ThalesVersionDoc {
                id: hex::encode(self.derive("thales-version", &tenant)),
                state: ThalesKeyState::Active,
                material_hex: None,
            }],
            usage_mask: 12,
            allows: vec![tenant.clone()],
        });
        ClientKey::Thales {
            username: tenant,
            password,
            auth_domain: super::root(),
            connection: super::local_account(),
            key_id: key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_get_the_providers_by_turns_and_secrets_of_the_right_length() {
        let sample = Sample::new(&SampleShape {
            tenants: 9,
            ..SampleShape::default()
        });
        let providers: Vec<_> = sample.clients.iter().map(|c| c.key.provider()).collect();
        assert_eq!(providers[..4], Provider::ALL);
        assert_eq!(providers[8], Provider::Aws);
        let keys = &sample.world.aws.access_keys;
        assert!(keys.iter().all(|key| key.secret_access_key.len() == 40));
        assert_ne!(keys[0].secret_access_key, keys[1].secret_access_key);
    }
}
