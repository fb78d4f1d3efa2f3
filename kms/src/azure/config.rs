//! What a configuration for Azure may hold. What comes out of here cannot make a request that is not one, nor send a
//! credential to anybody but Microsoft, unless the configuration names an endpoint of its own.

use std::sync::Arc;

use tsp_wire::{Secret, snapshot::KmsConfigDoc};

use super::{
    Algorithm, AzureKms,
    entra::{Certificate, Entra, Proof},
};
use crate::{ConfigError, Endpoint, config::visible, http::Roots, text::is_uuid};

/// Longest client secret, in bytes: real ones have about 40.
pub(super) const CLIENT_SECRET_BYTES_MAX: usize = 1024;

/// Longest name of a key, in bytes: the API's own limit.
const KEY_NAME_BYTES_MAX: usize = 127;

/// The members of a configuration that only Azure has.
pub(crate) struct AzureKey<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) client_secret: Option<&'a Secret<String>>,
    pub(crate) client_certificate: Option<&'a Secret<String>>,
    pub(crate) tenant_guid: &'a str,
    pub(crate) vault_base_url: &'a str,
    pub(crate) key_name: &'a str,
    pub(crate) algorithm: Option<&'a str>,
    pub(crate) authority: Option<&'a str>,
}

impl AzureKms {
    /// Checks a configuration.
    pub(crate) fn from_doc(doc: &KmsConfigDoc, key: &AzureKey<'_>) -> Result<Self, ConfigError> {
        if !is_uuid(key.client_id) {
            return Err(ConfigError::new(
                "clientId",
                "the application's (client) id: a GUID",
            ));
        }
        if !is_uuid(key.tenant_guid) {
            return Err(ConfigError::new(
                "tenantGuid",
                "the directory's (tenant) id: a GUID, not a domain name",
            ));
        }
        let proof = proof(key)?;
        let key_name_sound = (1..=KEY_NAME_BYTES_MAX).contains(&key.key_name.len())
            && key
                .key_name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !key_name_sound {
            return Err(ConfigError::new(
                "keyName",
                "the name of a key: 1 to 127 letters, digits and hyphens, without a version",
            ));
        }
        let algorithm = algorithm(key.algorithm)?;
        let vault_host = vault_host(key.vault_base_url)?;
        let service = match Service::of_vault(&vault_host) {
            Some(service) => service,
            // Whoever names the endpoint answers for it.
            None if doc.endpoint.is_some() => Service::FALLBACK,
            None => {
                return Err(ConfigError::new(
                    "vaultBaseUrl",
                    "https://NAME.vault.azure.net or https://NAME.managedhsm.azure.net, or their like in the clouds of \
                     the US Government and of China, unless there is an `endpoint`",
                ));
            }
        };
        let endpoint = Endpoint::from_doc(doc, &vault_host)?;
        let authority = match key.authority {
            Some(url) => Endpoint::from_url("authority", url, doc)?,
            None => Endpoint::at(service.authority, Roots::from_doc(doc)?),
        };
        let scope = format!("https://{}/.default", service.resource);
        Ok(Self {
            host: endpoint.host_header(),
            endpoint,
            vault_host,
            key_name: key.key_name.to_owned(),
            algorithm,
            entra: Arc::new(Entra::new(
                authority,
                key.tenant_guid,
                key.client_id,
                scope,
                proof,
            )),
        })
    }
}

fn algorithm(name: Option<&str>) -> Result<Algorithm, ConfigError> {
    let Some(name) = name else {
        return Ok(Algorithm::RsaOaep256);
    };
    let mut all = Algorithm::ALL.into_iter();
    all.find(|algorithm| algorithm.as_str() == name)
        .ok_or_else(|| {
            let names = Algorithm::ALL.map(Algorithm::as_str).join(", ");
            ConfigError::new("algorithm", format!("absent, or one of {names}"))
        })
}

fn proof(key: &AzureKey<'_>) -> Result<Proof, ConfigError> {
    match (key.client_secret, key.client_certificate) {
        (Some(secret), None) => {
            if visible(secret.expose(), CLIENT_SECRET_BYTES_MAX) {
                Ok(Proof::Secret(Secret::new(secret.expose().clone())))
            } else {
                Err(ConfigError::new(
                    "clientSecret",
                    "the value of a client secret, not its id: visible characters without blanks",
                ))
            }
        }
        (None, Some(pem)) => Certificate::from_pem(pem.expose())
            .map(|certificate| Proof::Certificate(Arc::new(certificate)))
            .map_err(|expected| ConfigError::new("clientCertificate", expected)),
        (Some(_), Some(_)) => Err(ConfigError::new(
            "clientCertificate",
            "absent where there is a `clientSecret`",
        )),
        (None, None) => Err(ConfigError::new(
            "clientSecret",
            "there, unless there is a `clientCertificate`",
        )),
    }
}

/// The host of a URL that is nothing but `https` and a host.
fn vault_host(url: &str) -> Result<String, ConfigError> {
    match Endpoint::parse(url, Roots::Public) {
        Some(Endpoint {
            tls: true,
            host,
            port: 443,
            ..
        }) => Ok(host),
        _ => Err(ConfigError::new(
            "vaultBaseUrl",
            "https and a host, without port, user, path or query",
        )),
    }
}

/// Vaults or managed HSMs of one cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Service {
    /// What their hosts end with, after one label of their own; also what tokens for them are asked for.
    resource: &'static str,
    /// The host that gives tokens for them.
    authority: &'static str,
}

const fn service(resource: &'static str, authority: &'static str) -> Service {
    Service {
        resource,
        authority,
    }
}

/// All of them, from the Azure SDKs. The cloud of Germany closed in 2021.
const SERVICES: [Service; 6] = [
    Service::FALLBACK,
    service("managedhsm.azure.net", "login.microsoftonline.com"),
    service("vault.usgovcloudapi.net", "login.microsoftonline.us"),
    service("managedhsm.usgovcloudapi.net", "login.microsoftonline.us"),
    service("vault.azure.cn", "login.chinacloudapi.cn"),
    service("managedhsm.azure.cn", "login.chinacloudapi.cn"),
];

impl Service {
    /// Vaults of the public cloud.
    const FALLBACK: Self = service("vault.azure.net", "login.microsoftonline.com");

    fn of_vault(host: &str) -> Option<Self> {
        let (_, suffix) = host.split_once('.')?;
        SERVICES
            .into_iter()
            .find(|service| service.resource == suffix)
    }
}
