//! The way to Azure Monitor's Logs Ingestion API, for an application that may publish there.

use std::sync::Arc;

use tsp_wire::{Secret, logging};

use super::{
    config::CLIENT_SECRET_BYTES_MAX,
    entra::{Entra, Proof},
};
use crate::{ConfigError, Endpoint, config::visible, http::Roots, text::is_uuid};

/// An endpoint that takes logs, and who publishes there.
#[derive(Debug)]
pub(crate) struct AzureLogs {
    pub(crate) endpoint: Endpoint,
    entra: Arc<Entra>,
}

/// What the endpoints of a cloud end with, whose tokens they take, and who gives them.
const CLOUDS: [(&str, &str, &str); 3] = [
    (
        ".ingest.monitor.azure.us",
        "monitor.azure.us",
        "login.microsoftonline.us",
    ),
    (
        ".ingest.monitor.azure.cn",
        "monitor.azure.cn",
        "login.chinacloudapi.cn",
    ),
    // The public cloud, whatever its endpoints end with.
    ("", "monitor.azure.com", "login.microsoftonline.com"),
];

impl AzureLogs {
    pub(crate) fn new(config: &logging::Azure) -> Result<Self, ConfigError> {
        for (member, text) in [
            ("tenantGuid", &config.tenant_guid),
            ("clientId", &config.client_id),
        ] {
            if !is_uuid(text) {
                return Err(ConfigError::new(member, "a GUID, not a name"));
            }
        }
        if !visible(config.client_secret.expose(), CLIENT_SECRET_BYTES_MAX) {
            return Err(ConfigError::new(
                "clientSecret",
                "the value of a client secret, not its id: visible characters without blanks",
            ));
        }
        let roots = Roots::of(config.ca_pem.as_deref())?;
        let url = Some(config.dce_url.as_str());
        let endpoint = Endpoint::of_url("dceUrl", url, "", roots.clone())?;
        let cloud = |(suffix, ..): &(&str, &str, &str)| endpoint.host.ends_with(suffix);
        let (_, resource, authority) = CLOUDS.into_iter().find(cloud).unwrap_or_default();
        let authority = config.authority.as_deref().map_or_else(
            || Ok(Endpoint::at(authority, roots.clone())),
            |url| Endpoint::of_url("authority", Some(url), "", roots.clone()),
        )?;
        let entra = Entra::new(
            authority,
            &config.tenant_guid,
            &config.client_id,
            format!("https://{resource}/.default"),
            Proof::Secret(Secret::new(config.client_secret.expose().clone())),
        );
        Ok(Self {
            endpoint,
            entra: Arc::new(entra),
        })
    }

    pub(crate) fn entra(&self) -> &Arc<Entra> {
        &self.entra
    }
}
