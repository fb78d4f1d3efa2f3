//! The configuration file with which the proxy uses a sample world through this simulator.

use std::path::Path;

use toml::{Table, Value};

use super::world::{Client, ClientKey};

/// What the file says besides the clients.
#[derive(Clone, Debug)]
pub struct TspConfig<'a> {
    /// Where the simulator is: `https://localhost:PORT` or `http://…`.
    pub url: &'a str,
    /// The authority to trust, if `url` is https.
    pub ca_file: Option<&'a Path>,
    /// Whether the proxy may lease keys.
    pub leasing_allowed: bool,
}

/// What one kind of KMS has in its entry.
struct Key {
    kind: &'static str,
    path: Value,
    credentials: Value,
    /// Members of the entry itself that only this kind has.
    beside: Vec<(&'static str, Value)>,
}

impl Key {
    fn new(
        kind: &'static str,
        path: impl IntoIterator<Item = (&'static str, Value)>,
        credentials: impl IntoIterator<Item = (&'static str, Value)>,
        beside: Vec<(&'static str, Value)>,
    ) -> Self {
        Self {
            kind,
            path: table(path),
            credentials: table(credentials),
            beside,
        }
    }
}

impl TspConfig<'_> {
    /// The file's text: one `[[kms]]` and one `[[tenant]]` per client.
    #[must_use]
    pub fn text(&self, clients: &[Client]) -> String {
        let mut file = Table::new();
        file.insert("version".to_owned(), Value::Integer(1));
        let kms = clients.iter().map(|client| Value::Table(self.kms(client)));
        file.insert("kms".to_owned(), Value::Array(kms.collect()));
        let tenants = clients.iter().map(|client| {
            table([
                ("id", client.tenant.as_str().into()),
                (
                    "assignments",
                    Value::Array(vec![table([
                        ("kms", number(client.kms)),
                        ("primary", true.into()),
                    ])]),
                ),
            ])
        });
        file.insert("tenant".to_owned(), Value::Array(tenants.collect()));
        // A table of plain values cannot fail to be written.
        toml::to_string(&file).unwrap_or_default()
    }

    fn kms(&self, client: &Client) -> Table {
        let mut kms = Table::new();
        let Key {
            kind,
            path,
            credentials,
            beside,
        } = self.key(&client.key);
        kms.insert("id".to_owned(), number(client.kms));
        kms.insert("type".to_owned(), kind.into());
        kms.insert("leasing_allowed".to_owned(), self.leasing_allowed.into());
        kms.insert("endpoint".to_owned(), self.url.into());
        if self.url.starts_with("http:") {
            kms.insert("allow_insecure".to_owned(), true.into());
        } else if let Some(path) = self.ca_file {
            kms.insert("ca_file".to_owned(), path.display().to_string().into());
        }
        for (name, value) in beside {
            kms.insert(name.to_owned(), value);
        }
        kms.insert("key_path".to_owned(), path);
        kms.insert("credentials".to_owned(), credentials);
        kms
    }

    fn key(&self, key: &ClientKey) -> Key {
        match key {
            ClientKey::Aws {
                key_id,
                region,
                access_key_id,
                secret_access_key,
                role_arn,
                external_id,
            } => {
                let mut credentials = vec![
                    ("accessKeyId", access_key_id.as_str().into()),
                    ("secretAccessKey", secret_access_key.as_str().into()),
                ];
                let mut beside = Vec::new();
                if let Some(role) = role_arn {
                    credentials.push(("roleArn", role.as_str().into()));
                    beside.push(("stsEndpoint", self.url.into()));
                }
                if let Some(id) = external_id {
                    credentials.push(("externalId", id.as_str().into()));
                }
                let path = [
                    ("keyID", key_id.as_str().into()),
                    ("region", region.as_str().into()),
                ];
                Key::new("AWS", path, credentials, beside)
            }
            ClientKey::Gcp {
                client_email,
                private_key,
                private_key_id,
                project_id,
                location_id,
                key_ring_id,
                crypto_key_id,
                token_endpoint,
            } => {
                let credentials = [
                    ("client_email", client_email.as_str().into()),
                    ("private_key", private_key.as_str().into()),
                    ("private_key_id", private_key_id.as_str().into()),
                ];
                let mut beside = Vec::new();
                if *token_endpoint {
                    beside.push(("tokenKind", "endpoint".into()));
                    beside.push(("tokenEndpoint", format!("{}/token", self.url).into()));
                }
                let path = [
                    ("projectId", project_id.as_str().into()),
                    ("locationId", location_id.as_str().into()),
                    ("keyRingId", key_ring_id.as_str().into()),
                    ("cryptoKeyId", crypto_key_id.as_str().into()),
                ];
                Key::new("GCP", path, credentials, beside)
            }
            ClientKey::Azure {
                client_id,
                client_secret,
                client_certificate,
                tenant_guid,
                vault_base_url,
                key_name,
                algorithm,
            } => {
                let mut credentials = vec![
                    ("clientId", client_id.as_str().into()),
                    ("tenantGuid", tenant_guid.as_str().into()),
                ];
                if let Some(secret) = client_secret {
                    credentials.push(("clientSecret", secret.as_str().into()));
                }
                if let Some(certificate) = client_certificate {
                    credentials.push(("clientCertificate", certificate.as_str().into()));
                }
                let path = [
                    ("vaultBaseUrl", vault_base_url.as_str().into()),
                    ("keyName", key_name.as_str().into()),
                ];
                let mut beside = vec![("authority", self.url.into())];
                if let Some(name) = algorithm {
                    beside.push(("algorithm", name.as_str().into()));
                }
                Key::new("AZURE", path, credentials, beside)
            }
            ClientKey::Thales {
                username,
                password,
                auth_domain,
                connection,
                key_id,
            } => {
                let credentials = [
                    ("username", username.as_str().into()),
                    ("password", password.as_str().into()),
                    ("authDomain", auth_domain.as_str().into()),
                    ("connection", connection.as_str().into()),
                ];
                let path = [
                    ("serviceUrl", self.url.into()),
                    ("keyId", key_id.as_str().into()),
                ];
                Key::new("THALES", path, credentials, Vec::new())
            }
        }
    }
}

fn number(number: usize) -> Value {
    Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn table(members: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let members = members.into_iter();
    Value::Table(
        members
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmssim::world::{Sample, SampleShape};

    #[test]
    fn the_file_names_each_tenant_its_key_and_where_the_simulator_is() {
        let sample = Sample::new(&SampleShape {
            aws_roles: true,
            ..SampleShape::default()
        });
        let config = TspConfig {
            url: "https://localhost:1234",
            ca_file: Some(Path::new("ca.pem")),
            leasing_allowed: true,
        };
        let file: Table = config.text(&sample.clients).parse().unwrap();
        let kms = file["kms"].as_array().unwrap();
        let types: Vec<_> = kms
            .iter()
            .map(|kms| kms["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["AWS", "GCP", "AZURE", "THALES"]);
        assert!(
            kms.iter()
                .all(|kms| kms["endpoint"].as_str() == Some("https://localhost:1234"))
        );
        assert_eq!(
            kms[0]["credentials"]["externalId"].as_str(),
            Some("external-tenant-1")
        );
        assert_eq!(
            file["tenant"][3]["assignments"][0]["kms"].as_integer(),
            Some(4)
        );
    }
}
