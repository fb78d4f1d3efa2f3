//! What a configuration for Thales CipherTrust may hold.

use std::net::Ipv6Addr;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use tsp_wire::{Secret, snapshot::KmsConfigDoc};

use super::{KeyKind, ThalesKms, login::User};
use crate::{ConfigError, Endpoint, http::host_name};

/// Longest name of a user, domain, connection or key, in bytes: all real ones are far below.
const NAME_BYTES_MAX: usize = 256;

/// Longest password, in bytes.
const PASSWORD_BYTES_MAX: usize = 1024;

/// The members of a configuration that only Thales CipherTrust has.
pub(crate) struct ThalesKey<'a> {
    pub(crate) username: &'a str,
    pub(crate) password: &'a Secret<String>,
    pub(crate) auth_domain: &'a str,
    pub(crate) connection: &'a str,
    pub(crate) service_url: &'a str,
    pub(crate) key_id: &'a str,
    pub(crate) server_name: Option<&'a str>,
    pub(crate) spki_pin: Option<&'a str>,
}

impl ThalesKms {
    /// Checks a configuration.
    pub(crate) fn from_doc(doc: &KmsConfigDoc, key: &ThalesKey<'_>) -> Result<Self, ConfigError> {
        let endpoint = endpoint(doc, key)?;
        if key.username.is_empty() || !is_line(key.username, NAME_BYTES_MAX) {
            return Err(ConfigError::new(
                "username",
                "the name of a user: at most 256 bytes in one line",
            ));
        }
        let password = key.password.expose();
        if password.is_empty() || !is_line(password, PASSWORD_BYTES_MAX) {
            return Err(ConfigError::new(
                "password",
                "the user's password: at most 1024 bytes in one line",
            ));
        }
        if !is_line(key.auth_domain, NAME_BYTES_MAX) {
            return Err(ConfigError::new(
                "authDomain",
                "the domain that the user was created in, such as `root`",
            ));
        }
        if !is_line(key.connection, NAME_BYTES_MAX) {
            return Err(ConfigError::new(
                "connection",
                "where the user is known, such as `local_account`",
            ));
        }
        if key.key_id.is_empty() || !is_line(key.key_id, NAME_BYTES_MAX) {
            return Err(ConfigError::new(
                "keyId",
                "the name, the id or the URI of a key: at most 256 bytes in one line",
            ));
        }
        let user = User::new(
            &endpoint,
            key.username,
            key.password,
            key.auth_domain,
            key.connection,
        );
        Ok(Self {
            host: endpoint.host_header(),
            endpoint,
            key_json: serde_json::Value::from(key.key_id).to_string(),
            key_kind: KeyKind::of(key.key_id),
            user,
        })
    }
}

impl KeyKind {
    /// What a key is called by, from how that is spelt. Names are free, but nobody calls a key so.
    fn of(key_id: &str) -> Self {
        let is_digits = key_id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if key_id.len() == 64 && is_digits {
            Self::Id
        } else if key_id.starts_with("kylo:") {
            Self::Uri
        } else {
            Self::Name
        }
    }
}

fn endpoint(doc: &KmsConfigDoc, key: &ThalesKey<'_>) -> Result<Endpoint, ConfigError> {
    let (member, url) = match doc.endpoint.as_deref() {
        Some(url) => ("endpoint", url),
        None => ("serviceUrl", key.service_url),
    };
    let endpoint = Endpoint::from_url(member, url, doc)?;
    // Where the other one is not used, it must still be one.
    Endpoint::from_url("serviceUrl", key.service_url, doc)?;
    let server_name = match key.server_name {
        None => None,
        Some(_) if !endpoint.tls => return Err(only_with_tls("serverName")),
        Some(name) => Some(server_name(name).ok_or_else(|| {
            ConfigError::new(
                "serverName",
                "a DNS name or an IP address from the appliance's certificate",
            )
        })?),
    };
    let spki_pin = match key.spki_pin {
        None => None,
        Some(_) if !endpoint.tls => return Err(only_with_tls("spkiPin")),
        Some(pin) => Some(spki_pin(pin).ok_or_else(|| {
            ConfigError::new(
                "spkiPin",
                "the SHA-256 hash of the public key in the appliance's certificate: 44 characters of base64",
            )
        })?),
    };
    Ok(Endpoint {
        server_name,
        spki_pin,
        ..endpoint
    })
}

fn only_with_tls(member: &'static str) -> ConfigError {
    ConfigError::new(member, "absent where there is no TLS")
}

fn server_name(name: &str) -> Option<String> {
    match name.parse::<Ipv6Addr>() {
        Ok(address) => Some(address.to_string()),
        Err(_) => host_name(name),
    }
}

/// A hash in base64, perhaps with the algorithm before it as `curl` has it.
fn spki_pin(pin: &str) -> Option<[u8; 32]> {
    let pin = pin.strip_prefix("sha256/").unwrap_or(pin);
    let pin = pin
        .strip_prefix('/')
        .filter(|pin| pin.len() == 44)
        .unwrap_or(pin);
    BASE64.decode(pin).ok()?.try_into().ok()
}

/// Whether `text` has no control characters and is not longer.
fn is_line(text: &str, bytes_max: usize) -> bool {
    text.len() <= bytes_max && !text.chars().any(char::is_control)
}
