//! What a configuration for Google Cloud KMS may hold. What comes out of here cannot make a request that is not one.

use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tsp_wire::{
    Secret, logging,
    snapshot::{GcpTokenKind, KmsConfigDoc},
};

use super::{GcpKms, token::Account};
use crate::{ConfigError, Endpoint, config::visible, http::Roots, rsa::RsaKey};

/// Where the API is.
const HOST: &str = "cloudkms.googleapis.com";
/// Where access tokens are given out.
const TOKEN_HOST: &str = "oauth2.googleapis.com";
/// The path there.
const TOKEN_PATH: &str = "/token";

/// Longest e-mail address, in bytes: 64 before the sign and 255 after it.
const EMAIL_BYTES_MAX: usize = 320;
/// Longest id of a private key, in bytes: real ones are 40 hexadecimal digits.
const KEY_ID_BYTES_MAX: usize = 128;
/// Longest id of a project, in bytes: 30, or more with the domain of an organisation before it.
const PROJECT_BYTES_MAX: usize = 128;
/// Longest id of anything else in the key's name, in bytes: the API's own limit.
const NAME_BYTES_MAX: usize = 63;
/// Longest path of a token endpoint, in bytes.
const PATH_BYTES_MAX: usize = 256;

/// The members of a configuration that only Google has.
pub(crate) struct GcpKey<'a> {
    pub(crate) client_email: &'a str,
    pub(crate) private_key: &'a Secret<String>,
    pub(crate) private_key_id: Option<&'a str>,
    pub(crate) project_id: &'a str,
    pub(crate) location_id: &'a str,
    pub(crate) key_ring_id: &'a str,
    pub(crate) crypto_key_id: &'a str,
    pub(crate) token: GcpTokenKind,
    pub(crate) token_endpoint: Option<&'a str>,
}

impl GcpKms {
    /// Checks a configuration.
    pub(crate) fn from_doc(doc: &KmsConfigDoc, key: &GcpKey<'_>) -> Result<Self, ConfigError> {
        let name = KeyName::new(key)?;
        let endpoint = Endpoint::from_doc(doc, HOST)?;
        let path = name.path();
        Ok(Self {
            account: Arc::new(account(doc, key)?),
            host: endpoint.host_header(),
            endpoint,
            wrap_path: format!("/v1/{path}:encrypt"),
            unwrap_path: format!("/v1/{path}:decrypt"),
            key: name,
        })
    }
}

fn account(doc: &KmsConfigDoc, key: &GcpKey<'_>) -> Result<Account, ConfigError> {
    let (endpoint, path) = match key.token_endpoint {
        Some(url) => token_endpoint(doc, url)?,
        None => (
            Endpoint::at(TOKEN_HOST, Roots::from_doc(doc)?),
            TOKEN_PATH.to_owned(),
        ),
    };
    Ok(account_at(key, endpoint, path)?.with_way_back(
        // Whoever has sent us to another KMS than Google's has not asked us to send anything to Google.
        key.token_endpoint.is_some() || doc.endpoint.is_none(),
    ))
}

/// The account of a logging configuration.
pub(super) fn logging_account(config: &logging::Gcp) -> Result<Account, ConfigError> {
    let roots = Roots::of(config.ca_pem.as_deref())?;
    let (endpoint, path) = match config.token_endpoint.as_deref() {
        None => (Endpoint::at(TOKEN_HOST, roots), TOKEN_PATH.to_owned()),
        Some(url) => {
            let (origin, path) = origin_and_path(url)?;
            let endpoint = Endpoint::parse(origin, roots).ok_or_else(no_token_endpoint)?;
            (endpoint, path)
        }
    };
    let members = GcpKey {
        client_email: &config.client_email,
        private_key: &config.private_key,
        private_key_id: config.private_key_id.as_deref(),
        project_id: &config.project_id,
        location_id: "",
        key_ring_id: "",
        crypto_key_id: "",
        token: GcpTokenKind::Endpoint,
        token_endpoint: None,
    };
    account_at(&members, endpoint, path)
}

fn account_at(key: &GcpKey<'_>, endpoint: Endpoint, path: String) -> Result<Account, ConfigError> {
    if !visible(key.client_email, EMAIL_BYTES_MAX) || !key.client_email.contains('@') {
        return Err(ConfigError::new(
            "client_email",
            "the e-mail address of a service account (NAME@PROJECT.iam.gserviceaccount.com)",
        ));
    }
    let private_key = RsaKey::from_pem(key.private_key.expose())
        .ok_or_else(|| ConfigError::new("private_key", RsaKey::EXPECTED))?;
    if key
        .private_key_id
        .is_some_and(|id| !visible(id, KEY_ID_BYTES_MAX))
    {
        return Err(ConfigError::new(
            "private_key_id",
            "absent, or the `private_key_id` that stands beside the key in Google's JSON file",
        ));
    }
    Ok(Account::new(key, private_key, endpoint, path))
}

fn token_endpoint(doc: &KmsConfigDoc, url: &str) -> Result<(Endpoint, String), ConfigError> {
    let (origin, path) = origin_and_path(url)?;
    Ok((Endpoint::from_url("tokenEndpoint", origin, doc)?, path))
}

/// The parts of a URL that may have a path.
fn origin_and_path(url: &str) -> Result<(&str, String), ConfigError> {
    let path_start = url
        .find("://")
        .and_then(|at| Some(at + 3 + url.get(at + 3..)?.find('/')?));
    let (origin, path) = url.split_at(path_start.unwrap_or(url.len()));
    let path = if matches!(path, "" | "/") {
        TOKEN_PATH
    } else {
        path
    };
    let sound = path.len() <= PATH_BYTES_MAX
        && path
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/-._~:@%".contains(&byte));
    if !sound {
        return Err(no_token_endpoint());
    }
    Ok((origin, path.to_owned()))
}

fn no_token_endpoint() -> ConfigError {
    ConfigError::new(
        "tokenEndpoint",
        "a URL of the form https://HOST/PATH or https://HOST:PORT/PATH, without user or query",
    )
}

/// The name of a key: `projects/P/locations/L/keyRings/R/cryptoKeys/K`.
#[derive(Debug)]
pub(super) struct KeyName {
    project: String,
    /// What follows the project, with a slash before it.
    in_project: String,
}

impl KeyName {
    pub(super) fn new(key: &GcpKey<'_>) -> Result<Self, ConfigError> {
        let sound = visible(key.project_id, PROJECT_BYTES_MAX)
            && !key.project_id.contains('/')
            && !matches!(key.project_id, "." | "..");
        if !sound {
            return Err(ConfigError::new(
                "projectId",
                "the id of a Google Cloud project, such as acme-prod-1234",
            ));
        }
        for (member, id) in [
            ("locationId", key.location_id),
            ("keyRingId", key.key_ring_id),
            ("cryptoKeyId", key.crypto_key_id),
        ] {
            let sound = (1..=NAME_BYTES_MAX).contains(&id.len())
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
            if !sound {
                return Err(ConfigError::new(
                    member,
                    "1 to 63 letters, digits, `-` or `_`: the id alone, without the names of what it is in",
                ));
            }
        }
        let (location, ring, key_id) = (key.location_id, key.key_ring_id, key.crypto_key_id);
        Ok(Self {
            project: key.project_id.to_owned(),
            in_project: format!("/locations/{location}/keyRings/{ring}/cryptoKeys/{key_id}"),
        })
    }

    /// The name as a path, without a slash before it.
    fn path(&self) -> String {
        /// What may stand in a segment of a path as it is (RFC 3986, section 3.3), as far as it occurs. The colon is in
        /// the ids of projects that belong to a domain.
        const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
            .remove(b'-')
            .remove(b'.')
            .remove(b'_')
            .remove(b'~')
            .remove(b':');

        let project = utf8_percent_encode(&self.project, ESCAPED);
        format!("projects/{project}{}", self.in_project)
    }

    /// Whether `name` is this key or one of its versions. A project has an id and a number, and an answer may hold the
    /// one where the configuration has the other.
    pub(super) fn covers(&self, name: &str) -> bool {
        let number = |project: &str| project.bytes().all(|byte| byte.is_ascii_digit());
        let rest = name
            .strip_prefix("projects/")
            .and_then(|rest| Some(rest.split_at(rest.find('/')?)));
        rest.is_some_and(|(project, rest)| {
            let version = rest.strip_prefix(&self.in_project);
            (project == self.project || number(project) || number(&self.project))
                && version.is_some_and(|version| version.is_empty() || version.starts_with('/'))
        })
    }
}
