//! The tenants' KMSs: how to ask each one to wrap or unwrap a document key, and what its answers mean.
//!
//! Nothing in here opens a socket or reads a clock. A provider turns a key into request bytes and answer bytes into a
//! key or an error; the caller carries the bytes and passes the time in. So all of it can be tested with plain values.
//!
//! # The shape of a provider
//!
//! One file per KMS, each with one type that is made from a [`KmsConfigDoc`] and cannot be wrong afterwards: what is
//! mistyped in a configuration becomes a [`ConfigError`] that names the member, before any call. The type implements
//! [`RemoteKms`]: where to connect, a signed POST for a wrap and for an unwrap, byte for byte as it goes out, and what the
//! answers mean.
//!
//! All that changes between calls lives in a [`Session`], one per shard and configuration, so that the provider itself
//! is immutable and cores share nothing: keys derived from credentials, and what is known about the clock.
//!
//! A [`KmsError`] decides for itself whether another attempt makes sense ([`KmsError::retry`]); the caller decides only
//! whether the deadline allows it. [`Retry::AfterClockRepair`] asks for [`Session::repair`] first.
//!
//! [`LocalKms`] is the exception: it answers at once, without a request.
//!
//! [`CloudLogs`] is the way to a cloud's log system with the same kinds of credentials, for the logdriver.
//!
//! # Credentials that take a call of their own
//!
//! An assumed role, an OAuth grant or a login is one more request before the first. Such a provider names its credential
//! ([`RemoteKms::credential`]), says how to get a [`Token`] for it ([`RemoteKms::token_step`]) and reads the answer
//! ([`RemoteKms::read_token`]). When to fetch, who waits for whom, and how long a refusal is remembered stay with the
//! caller, as connections do.
#![forbid(unsafe_code)]

mod aws;
mod azure;
mod blame;
mod class;
mod config;
mod error;
mod fingerprint;
mod form;
mod gcp;
mod http;
mod json;
mod local;
mod logs;
mod remote;
mod rsa;
mod session;
mod text;
mod thales;
mod token;

use std::fmt;

use aws::AwsKey;
use azure::AzureKey;
use gcp::GcpKey;
use thales::ThalesKey;
use tsp_wire::snapshot::{KmsConfigDoc, KmsKeyDoc};

pub use self::{
    aws::AwsKms,
    azure::AzureKms,
    blame::Blame,
    config::ConfigError,
    error::{KmsError, KmsErrorKind, Retry},
    fingerprint::Fingerprint,
    gcp::GcpKms,
    http::{Endpoint, HttpAnswer, HttpRequest, Roots},
    local::LocalKms,
    logs::CloudLogs,
    remote::RemoteKms,
    session::Session,
    thales::ThalesKms,
    token::{CredentialId, Signed, Token, TokenCall, TokenStep},
};

/// One KMS config, ready for use.
#[derive(Debug)]
pub enum Kms {
    /// The built-in KMS, which needs no network.
    Local(LocalKms),
    /// A KMS that is asked over the network.
    Remote(Box<dyn RemoteKms>),
}

impl Kms {
    /// Checks a configuration and makes it ready for use. Copies its secrets; the document can be dropped.
    ///
    /// # Errors
    /// [`ConfigError`] names the first member that cannot be right, and what is expected there.
    pub fn from_doc(doc: &KmsConfigDoc) -> Result<Self, ConfigError> {
        match &doc.key {
            KmsKeyDoc::Local { key } => Ok(Self::Local(LocalKms::new(key))),
            KmsKeyDoc::Aws {
                key_id,
                region,
                access_key_id,
                secret_access_key,
                session_token,
                assume_role,
                sts_endpoint,
            } => {
                let key = AwsKey {
                    key_id,
                    region,
                    access_key_id,
                    secret_access_key,
                    session_token: session_token.as_ref(),
                    assume_role: assume_role.as_ref(),
                    sts_endpoint: sts_endpoint.as_deref(),
                };
                Ok(Self::Remote(Box::new(AwsKms::from_doc(doc, &key)?)))
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
            } => {
                let key = AzureKey {
                    client_id,
                    client_secret: client_secret.as_ref(),
                    client_certificate: client_certificate.as_ref(),
                    tenant_guid,
                    vault_base_url,
                    key_name,
                    algorithm: algorithm.as_deref(),
                    authority: authority.as_deref(),
                };
                Ok(Self::Remote(Box::new(AzureKms::from_doc(doc, &key)?)))
            }
            KmsKeyDoc::Thales {
                username,
                password,
                auth_domain,
                connection,
                service_url,
                key_id,
                server_name,
                spki_pin,
            } => {
                let key = ThalesKey {
                    username,
                    password,
                    auth_domain,
                    connection,
                    service_url,
                    key_id,
                    server_name: server_name.as_deref(),
                    spki_pin: spki_pin.as_deref(),
                };
                Ok(Self::Remote(Box::new(ThalesKms::from_doc(doc, &key)?)))
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
                let key = GcpKey {
                    client_email,
                    private_key,
                    private_key_id: private_key_id.as_deref(),
                    project_id,
                    location_id,
                    key_ring_id,
                    crypto_key_id,
                    token: *token,
                    token_endpoint: token_endpoint.as_deref(),
                };
                Ok(Self::Remote(Box::new(GcpKms::from_doc(doc, &key)?)))
            }
        }
    }

    /// Which KMS this is.
    #[must_use]
    pub fn kind(&self) -> KmsKind {
        match self {
            Self::Local(_) => KmsKind::Local,
            Self::Remote(kms) => kms.kind(),
        }
    }
}

/// The kinds of KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KmsKind {
    /// AWS Key Management Service.
    Aws,
    /// Google Cloud Key Management Service.
    Gcp,
    /// Azure Key Vault and Managed HSM.
    Azure,
    /// Thales CipherTrust Manager.
    Thales,
    /// The built-in KMS.
    Local,
}

impl KmsKind {
    /// The name in configurations and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "AWS",
            Self::Gcp => "GCP",
            Self::Azure => "AZURE",
            Self::Thales => "THALES",
            Self::Local => "LOCAL",
        }
    }

    /// The name in sentences.
    const fn title(self) -> &'static str {
        match self {
            Self::Aws => "AWS KMS",
            Self::Gcp => "Google Cloud KMS",
            Self::Azure => "Azure Key Vault",
            Self::Thales => "Thales CipherTrust",
            Self::Local => "local KMS",
        }
    }

    /// Who gives the tokens, in sentences.
    const fn token_giver(self) -> &'static str {
        match self {
            Self::Aws => "AWS STS",
            Self::Azure => "Microsoft Entra ID",
            Self::Gcp | Self::Thales | Self::Local => self.title(),
        }
    }
}

impl fmt::Display for KmsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a KMS is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KmsOperation {
    /// Encrypt a DEK.
    Wrap,
    /// Decrypt a DEK.
    Unwrap,
    /// Give a token for a credential, which the other two need first.
    Token,
}

impl KmsOperation {
    /// The label in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Token => "token",
        }
    }

    /// What failed when the KMS refused what we sent, and neither the key nor the credential is known to be at fault.
    const fn failed(self) -> KmsErrorKind {
        match self {
            Self::Wrap => KmsErrorKind::WrapFailed,
            Self::Unwrap => KmsErrorKind::UnwrapFailed,
            // Without a token the credential remains unproven, whatever the reason.
            Self::Token => KmsErrorKind::Authorization,
        }
    }
}

impl fmt::Display for KmsOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// A snapshot of configurations is built on one thread and read on all the others.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Kms>();
};
