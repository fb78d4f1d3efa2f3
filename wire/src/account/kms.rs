//! What is in the envelope of a KMS config: JSON with the members of a `[[kms]]` entry of the configuration file, less those
//! that stand beside the envelope (`id`, `leasing_allowed`) or name files (`ca_file`; here `ca_pem` has the certificates).
//!
//! ```json
//! {"type":"AWS","key_path":{"keyID":"…","region":"eu-central-1"},"credentials":{"accessKeyId":"…","secretAccessKey":"…"}}
//! ```

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use zeroize::Zeroizing;

use crate::{
    Secret,
    json::data_error,
    snapshot::{AssumeRoleDoc, GcpTokenKind, KmsConfigDoc, KmsKeyDoc},
};

/// The one schema of the content.
pub const SCHEMA: u16 = 1;

/// The kinds of KMS, as `type` spells them.
pub const TYPES: [&str; 5] = ["AWS", "GCP", "AZURE", "THALES", "LOCAL"];

/// What is wrong with the form of a KMS config. Never holds a value of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsFormError(String);

impl fmt::Display for KmsFormError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KmsFormError {}

impl From<serde_json::Error> for KmsFormError {
    fn from(why: serde_json::Error) -> Self {
        Self(data_error(&why))
    }
}

fn wrong(why: &str) -> KmsFormError {
    KmsFormError(why.to_owned())
}

/// The kind of KMS that a content is of: one of [`TYPES`].
///
/// # Errors
/// If it has none.
pub fn kind(content: &[u8]) -> Result<&'static str, KmsFormError> {
    #[derive(Deserialize)]
    struct Typed {
        r#type: String,
    }
    let Typed { r#type } = serde_json::from_slice(content)?;
    let known = TYPES.into_iter().find(|known| *known == r#type);
    known.ok_or_else(|| KmsFormError(format!("type is none of {}", TYPES.join(", "))))
}

/// Reads a content. Whether its values make sense is for the proxy's `kms` to say.
///
/// # Errors
/// The first thing that is wrong with its form.
pub fn parse(id: i64, leasing_allowed: bool, content: &[u8]) -> Result<KmsConfigDoc, KmsFormError> {
    let (key, remote) = match kind(content)? {
        "AWS" => serde_json::from_slice::<Aws>(content)?.parts()?,
        "GCP" => serde_json::from_slice::<Gcp>(content)?.parts()?,
        "AZURE" => serde_json::from_slice::<Azure>(content)?.parts()?,
        "THALES" => serde_json::from_slice::<Thales>(content)?.parts()?,
        _ => serde_json::from_slice::<Local>(content)?.parts()?,
    };
    Ok(KmsConfigDoc {
        id,
        leasing_allowed,
        key,
        endpoint: remote.endpoint,
        allow_insecure: remote.allow_insecure,
        ca_pem: remote.ca_pem,
    })
}

/// How a KMS is reached.
#[derive(Default)]
struct Remote {
    endpoint: Option<String>,
    allow_insecure: bool,
    ca_pem: Option<String>,
}

type Parts = Result<(KmsKeyDoc, Remote), KmsFormError>;

impl Remote {
    fn new(endpoint: Option<String>, allow_insecure: bool, ca_pem: Option<String>) -> Self {
        Self {
            endpoint,
            allow_insecure,
            ca_pem,
        }
    }
}

/// A secret member.
fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
    String::deserialize(from).map(Secret::new)
}

/// A secret member that may be absent.
fn optional_secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Secret::new))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Local {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    #[serde(default, rename = "key_path")]
    _key_path: Nothing,
    credentials: LocalCredentials,
}

/// A table without members.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalCredentials {
    #[serde(deserialize_with = "secret")]
    key: Secret<String>,
}

impl Local {
    fn parts(self) -> Parts {
        const BYTES: usize = 32;
        let mut buffer = Zeroizing::new([0; BYTES + 4]);
        let text = self.credentials.key.expose();
        let decoded = STANDARD.decode_slice(text, buffer.as_mut_slice());
        let key = decoded.ok().and_then(|bytes| buffer.get(..bytes));
        let key = key.and_then(|key| <[u8; BYTES]>::try_from(key).ok());
        let key = key.ok_or_else(|| wrong("credentials: key is not base64 of 32 bytes"))?;
        let key = Secret::new(key);
        Ok((KmsKeyDoc::Local { key }, Remote::default()))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Aws {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    key_path: AwsPath,
    credentials: AwsCredentials,
    #[serde(rename = "stsEndpoint")]
    sts_endpoint: Option<String>,
    endpoint: Option<String>,
    #[serde(default)]
    allow_insecure: bool,
    ca_pem: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AwsPath {
    #[serde(rename = "keyID")]
    key_id: String,
    region: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AwsCredentials {
    access_key_id: String,
    #[serde(deserialize_with = "secret")]
    secret_access_key: Secret<String>,
    #[serde(default, deserialize_with = "optional_secret")]
    session_token: Option<Secret<String>>,
    role_arn: Option<String>,
    #[serde(default, deserialize_with = "optional_secret")]
    external_id: Option<Secret<String>>,
    session_name: Option<String>,
    duration_s: Option<u32>,
}

impl Aws {
    fn parts(self) -> Parts {
        let given = self.credentials;
        let for_a_role = [
            ("stsEndpoint", self.sts_endpoint.is_some()),
            ("credentials: externalId", given.external_id.is_some()),
            ("credentials: sessionName", given.session_name.is_some()),
            ("credentials: durationS", given.duration_s.is_some()),
        ];
        if given.role_arn.is_none()
            && let Some((member, _)) = for_a_role.into_iter().find(|(_, there)| *there)
        {
            let why = format!("{member} goes with roleArn, which is missing");
            return Err(KmsFormError(why));
        }
        let assume_role = given.role_arn.map(|role_arn| AssumeRoleDoc {
            role_arn,
            external_id: given.external_id,
            session_name: given.session_name,
            duration_s: given.duration_s,
        });
        let key = KmsKeyDoc::Aws {
            key_id: self.key_path.key_id,
            region: self.key_path.region,
            access_key_id: given.access_key_id,
            secret_access_key: given.secret_access_key,
            session_token: given.session_token,
            assume_role,
            sts_endpoint: self.sts_endpoint,
        };
        let remote = Remote::new(self.endpoint, self.allow_insecure, self.ca_pem);
        Ok((key, remote))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gcp {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    key_path: GcpPath,
    credentials: GcpCredentials,
    #[serde(rename = "tokenKind")]
    token_kind: Option<String>,
    #[serde(rename = "tokenEndpoint")]
    token_endpoint: Option<String>,
    endpoint: Option<String>,
    #[serde(default)]
    allow_insecure: bool,
    ca_pem: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GcpPath {
    project_id: String,
    location_id: String,
    key_ring_id: String,
    crypto_key_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GcpCredentials {
    client_email: String,
    #[serde(deserialize_with = "secret")]
    private_key: Secret<String>,
    private_key_id: Option<String>,
}

impl Gcp {
    fn parts(self) -> Parts {
        let token = match self.token_kind.as_deref() {
            None => GcpTokenKind::default(),
            Some("self-signed") => GcpTokenKind::SelfSigned,
            Some("endpoint") => GcpTokenKind::Endpoint,
            Some(_) => return Err(wrong("tokenKind is neither self-signed nor endpoint")),
        };
        let key = KmsKeyDoc::Gcp {
            client_email: self.credentials.client_email,
            private_key: self.credentials.private_key,
            private_key_id: self.credentials.private_key_id,
            project_id: self.key_path.project_id,
            location_id: self.key_path.location_id,
            key_ring_id: self.key_path.key_ring_id,
            crypto_key_id: self.key_path.crypto_key_id,
            token,
            token_endpoint: self.token_endpoint,
        };
        let remote = Remote::new(self.endpoint, self.allow_insecure, self.ca_pem);
        Ok((key, remote))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Azure {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    key_path: AzurePath,
    credentials: AzureCredentials,
    algorithm: Option<String>,
    authority: Option<String>,
    endpoint: Option<String>,
    #[serde(default)]
    allow_insecure: bool,
    ca_pem: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AzurePath {
    vault_base_url: String,
    key_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AzureCredentials {
    client_id: String,
    #[serde(default, deserialize_with = "optional_secret")]
    client_secret: Option<Secret<String>>,
    #[serde(default, deserialize_with = "optional_secret")]
    client_certificate: Option<Secret<String>>,
    tenant_guid: String,
}

impl Azure {
    fn parts(self) -> Parts {
        let given = self.credentials;
        if given.client_secret.is_some() == given.client_certificate.is_some() {
            return Err(wrong(
                "credentials must have either clientSecret or clientCertificate",
            ));
        }
        let key = KmsKeyDoc::Azure {
            client_id: given.client_id,
            client_secret: given.client_secret,
            client_certificate: given.client_certificate,
            tenant_guid: given.tenant_guid,
            vault_base_url: self.key_path.vault_base_url,
            key_name: self.key_path.key_name,
            algorithm: self.algorithm,
            authority: self.authority,
        };
        let remote = Remote::new(self.endpoint, self.allow_insecure, self.ca_pem);
        Ok((key, remote))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Thales {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    key_path: ThalesPath,
    credentials: ThalesCredentials,
    #[serde(rename = "serverName")]
    server_name: Option<String>,
    #[serde(rename = "spkiPin")]
    spki_pin: Option<String>,
    endpoint: Option<String>,
    #[serde(default)]
    allow_insecure: bool,
    ca_pem: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ThalesPath {
    service_url: String,
    key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ThalesCredentials {
    username: String,
    #[serde(deserialize_with = "secret")]
    password: Secret<String>,
    // Where they are empty, CipherTrust's own defaults hold.
    #[serde(default)]
    auth_domain: String,
    #[serde(default)]
    connection: String,
}

impl Thales {
    fn parts(self) -> Parts {
        let key = KmsKeyDoc::Thales {
            username: self.credentials.username,
            password: self.credentials.password,
            auth_domain: self.credentials.auth_domain,
            connection: self.credentials.connection,
            service_url: self.key_path.service_url,
            key_id: self.key_path.key_id,
            server_name: self.server_name,
            spki_pin: self.spki_pin,
        };
        let remote = Remote::new(self.endpoint, self.allow_insecure, self.ca_pem);
        Ok((key, remote))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(content: &serde_json::Value) -> Result<KmsConfigDoc, String> {
        parse(41, true, content.to_string().as_bytes()).map_err(|why| why.to_string())
    }

    #[test]
    fn every_kind_is_read() {
        let remote = serde_json::json!({ "endpoint": "https://kms.example.com", "ca_pem": "pem" });
        let all = [
            serde_json::json!({
                "type": "AWS", "key_path": { "keyID": "alias/k", "region": "eu-central-1" },
                "credentials": { "accessKeyId": "AK", "secretAccessKey": "s", "roleArn": "arn", "externalId": "e" },
                "stsEndpoint": "https://sts.example.com",
            }),
            serde_json::json!({
                "type": "GCP", "tokenKind": "endpoint",
                "key_path": { "projectId": "p", "locationId": "l", "keyRingId": "r", "cryptoKeyId": "c" },
                "credentials": { "client_email": "e", "private_key": "-----\n" },
            }),
            serde_json::json!({
                "type": "AZURE", "key_path": { "vaultBaseUrl": "https://v", "keyName": "k" },
                "credentials": { "clientId": "c", "clientSecret": "s", "tenantGuid": "t" },
            }),
            serde_json::json!({
                "type": "THALES", "key_path": { "serviceUrl": "https://c", "keyId": "k" },
                "credentials": { "username": "u", "password": "p" },
            }),
        ];
        for mut content in all {
            for (name, value) in remote.as_object().unwrap() {
                content[name] = value.clone();
            }
            let doc = read(&content).unwrap();
            assert!((doc.id, doc.leasing_allowed, doc.allow_insecure) == (41, true, false));
            assert_eq!(doc.endpoint.as_deref(), Some("https://kms.example.com"));
            assert_eq!(doc.ca_pem.as_deref(), Some("pem"));
        }
        let local = serde_json::json!({
            "type": "LOCAL", "credentials": { "key": STANDARD.encode([7; 32]) },
        });
        assert!(
            matches!(read(&local).unwrap().key, KmsKeyDoc::Local { key } if *key.expose() == [7; 32])
        );
    }

    #[test]
    fn what_is_wrong_is_told_without_any_value() {
        let aws = serde_json::json!({
            "type": "AWS", "key_path": { "keyID": "CANARY", "region": "CANARY" },
            "credentials": { "accessKeyId": "CANARY", "secretAccessKey": "CANARY" },
        });
        let changed = |pointer: &str, member: &str, value: Option<serde_json::Value>| {
            let mut content = aws.clone();
            let table = content
                .pointer_mut(pointer)
                .unwrap()
                .as_object_mut()
                .unwrap();
            match value {
                Some(value) => table.insert(member.to_owned(), value),
                None => table.remove(member),
            };
            read(&content).unwrap_err()
        };
        let text = |text: &str| Some(serde_json::Value::from(text));
        for (why, expected) in [
            (changed("", "type", text("CANARY")), "type is none of AWS"),
            (changed("", "type", None), "missing member `type`"),
            (
                changed("/credentials", "secretAccessKey", None),
                "missing member `secretAccessKey`",
            ),
            (
                changed("/credentials", "CANARY", text("x")),
                "unknown member; expected one of `accessKeyId`",
            ),
            (
                changed("/credentials", "durationS", text("CANARY")),
                "has not the type",
            ),
            (
                changed("/credentials", "externalId", text("CANARY")),
                "goes with roleArn",
            ),
            (changed("", "id", Some(1.into())), "unknown member"),
        ] {
            assert!(why.contains(expected) && !why.contains("CANARY"), "{why}");
        }
        let azure = serde_json::json!({
            "type": "AZURE", "key_path": { "vaultBaseUrl": "v", "keyName": "k" },
            "credentials": { "clientId": "c", "tenantGuid": "t" },
        });
        assert!(read(&azure).unwrap_err().contains("either clientSecret or"));
        let local = serde_json::json!({ "type": "LOCAL", "credentials": { "key": "CANARY" } });
        assert!(read(&local).unwrap_err().contains("base64 of 32 bytes"));
        let why = parse(1, false, b"{\"type\":\"AWS\" CANARY")
            .unwrap_err()
            .to_string();
        assert!(why.starts_with("not JSON (line 1"), "{why}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            prop_assert!(parse(1, false, &bytes).is_err());
        }
    }
}
