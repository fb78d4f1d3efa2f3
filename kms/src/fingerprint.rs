//! Tells an edited KMS config from one that only came again.

use std::fmt;

use sha2::{Digest as _, Sha256};
use tsp_wire::{
    KmsConfigId,
    snapshot::{AssumeRoleDoc, GcpTokenKind, KmsConfigDoc, KmsKeyDoc},
};

/// Names what a KMS config says: a hash over all of it, secrets included, but for its switches (`leasing_allowed`).
///
/// What is held in memory because of a config is dropped when its fingerprint changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Fingerprint({:08x})", u32::from_be_bytes([a, b, c, d]))
    }
}

impl Fingerprint {
    /// Hashes `doc`. Every member is named here, so that a new one cannot be forgotten.
    #[must_use]
    pub fn of(doc: &KmsConfigDoc) -> Self {
        let KmsConfigDoc {
            id,
            leasing_allowed: _,
            key,
            endpoint,
            allow_insecure,
            ca_pem,
        } = doc;
        let mut hash = Parts(Sha256::new_with_prefix(b"tsp kms config v1"));
        hash.part(&id.to_be_bytes());
        hash.text(endpoint.as_deref());
        hash.part(&[u8::from(*allow_insecure)]);
        hash.text(ca_pem.as_deref());
        hash.key(key);
        Self(hash.0.finalize().into())
    }
}

impl Fingerprint {
    /// Of a config that could not be made whole: that of no other, so that nothing stays in memory because of one that is
    /// no longer there.
    #[must_use]
    pub fn of_unusable(id: KmsConfigId) -> Self {
        let mut hash = Parts(Sha256::new_with_prefix(b"tsp unusable kms config v1"));
        hash.part(&id.number().to_be_bytes());
        Self(hash.0.finalize().into())
    }
}

struct Parts(Sha256);

impl Parts {
    /// Adds bytes with their length before them, so that no two lists of parts look the same.
    fn part(&mut self, bytes: &[u8]) {
        self.0.update(bytes.len().to_be_bytes());
        self.0.update(bytes);
    }

    fn text(&mut self, text: Option<&str>) {
        self.part(&[u8::from(text.is_some())]);
        self.part(text.unwrap_or_default().as_bytes());
    }

    fn texts<const N: usize>(&mut self, kind: &str, texts: [Option<&str>; N]) {
        self.text(Some(kind));
        for text in texts {
            self.text(text);
        }
    }

    fn key(&mut self, key: &KmsKeyDoc) {
        match key {
            KmsKeyDoc::Local { key } => {
                self.text(Some("LOCAL"));
                self.part(key.expose());
            }
            KmsKeyDoc::Aws {
                key_id,
                region,
                access_key_id,
                secret_access_key,
                session_token,
                assume_role,
                sts_endpoint,
            } => {
                self.texts(
                    "AWS",
                    [
                        Some(key_id),
                        Some(region),
                        Some(access_key_id),
                        Some(secret_access_key.expose()),
                        session_token.as_ref().map(|token| token.expose().as_str()),
                        sts_endpoint.as_deref(),
                    ],
                );
                if let Some(AssumeRoleDoc {
                    role_arn,
                    external_id,
                    session_name,
                    duration_s,
                }) = assume_role
                {
                    self.texts(
                        "role",
                        [
                            Some(role_arn),
                            external_id.as_ref().map(|id| id.expose().as_str()),
                            session_name.as_deref(),
                        ],
                    );
                    self.part(&duration_s.unwrap_or(0).to_be_bytes());
                }
            }
            KmsKeyDoc::Gcp {
                client_email,
                private_key,
                private_key_id,
                project_id,
                location_id,
                key_ring_id,
                crypto_key_id,
                token,
                token_endpoint,
            } => {
                let own = matches!(token, GcpTokenKind::SelfSigned);
                self.part(&[u8::from(own)]);
                self.texts(
                    "GCP",
                    [
                        Some(client_email),
                        Some(private_key.expose()),
                        private_key_id.as_deref(),
                        Some(project_id),
                        Some(location_id),
                        Some(key_ring_id),
                        Some(crypto_key_id),
                        token_endpoint.as_deref(),
                    ],
                );
            }
            KmsKeyDoc::Azure {
                client_id,
                client_secret,
                client_certificate,
                tenant_guid,
                vault_base_url,
                key_name,
                algorithm,
                authority,
            } => self.texts(
                "AZURE",
                [
                    Some(client_id),
                    client_secret
                        .as_ref()
                        .map(|secret| secret.expose().as_str()),
                    client_certificate
                        .as_ref()
                        .map(|secret| secret.expose().as_str()),
                    Some(tenant_guid),
                    Some(vault_base_url),
                    Some(key_name),
                    algorithm.as_deref(),
                    authority.as_deref(),
                ],
            ),
            KmsKeyDoc::Thales {
                username,
                password,
                auth_domain,
                connection,
                service_url,
                key_id,
                server_name,
                spki_pin,
            } => self.texts(
                "THALES",
                [
                    Some(username),
                    Some(password.expose()),
                    Some(auth_domain),
                    Some(connection),
                    Some(service_url),
                    Some(key_id),
                    server_name.as_deref(),
                    spki_pin.as_deref(),
                ],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use tsp_wire::Secret;

    use super::*;

    fn doc(password: &str, leasing_allowed: bool) -> KmsConfigDoc {
        KmsConfigDoc {
            id: 7,
            leasing_allowed,
            key: KmsKeyDoc::Thales {
                username: "tsp".to_owned(),
                password: Secret::new(password.to_owned()),
                auth_domain: "root".to_owned(),
                connection: "local_account".to_owned(),
                service_url: "https://cm.example.com".to_owned(),
                key_id: "documents".to_owned(),
                server_name: None,
                spki_pin: None,
            },
            endpoint: None,
            allow_insecure: false,
            ca_pem: None,
        }
    }

    #[test]
    fn an_edit_changes_the_fingerprint_and_a_switch_does_not() {
        let fingerprint = Fingerprint::of(&doc("one", true));
        assert_eq!(fingerprint, Fingerprint::of(&doc("one", false)));
        assert_ne!(fingerprint, Fingerprint::of(&doc("two", true)));
        let with_ca = KmsConfigDoc {
            ca_pem: Some("PEM".to_owned()),
            ..doc("one", true)
        };
        assert_ne!(fingerprint, Fingerprint::of(&with_ca));
        assert!(!format!("{fingerprint:?}").contains("one"));
    }
}
