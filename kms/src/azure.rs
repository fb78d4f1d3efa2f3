//! Azure Key Vault and Managed HSM: `wrapKey` and `unwrapKey` with an RSA or an AES key (Azure Key Vault REST API), with
//! a token from Microsoft Entra ID.
//!
//! Unless the configuration names another algorithm, `RSA-OAEP-256` is asked for, of vaults and of managed HSMs alike:
//! every RSA key does it, in every cloud. An AES key (`oct-HSM`) needs one of its own, by its size, and neither the key's
//! name nor the vault's tells which kind a key is; where they do not fit, Azure refuses the wrap, and says so.
//!
//! A wrap leaves the version of the key to the vault, and remembers in the blob which one it took; an unwrap asks for
//! exactly that, so that a rotated key still opens what its older versions closed.

mod answer;
mod config;
mod entra;
mod logs;

use std::{sync::Arc, time::SystemTime};

use prost::Message as _;
use tsp_wire::Dek;

use crate::{
    CredentialId, Endpoint, HttpAnswer, HttpRequest, KmsError, KmsErrorKind, KmsKind, KmsOperation,
    RemoteKms, Session, Token, TokenStep,
    json::{Member, object},
    text::Clean,
};

use self::entra::Entra;
pub(crate) use self::{config::AzureKey, logs::AzureLogs};

/// One key at Azure Key Vault or in a managed HSM, with the credentials to use it.
#[derive(Debug)]
pub struct AzureKms {
    endpoint: Endpoint,
    /// The `host` header.
    host: String,
    /// The vault's own name in the world, which its keys' ids begin with, whatever the endpoint is called.
    vault_host: String,
    key_name: String,
    algorithm: Algorithm,
    entra: Arc<Entra>,
}

/// How a key wraps, as Azure calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    /// RSA-OAEP with SHA-256, by keys of type `RSA` and `RSA-HSM`.
    RsaOaep256,
    /// AES key wrap (RFC 3394), by keys of type `oct-HSM` that have 256 bits.
    A256Kw,
    /// The same with 192 bits.
    A192Kw,
    /// The same with 128 bits.
    A128Kw,
}

impl Algorithm {
    const ALL: [Self; 4] = [Self::RsaOaep256, Self::A256Kw, Self::A192Kw, Self::A128Kw];

    const fn as_str(self) -> &'static str {
        match self {
            Self::RsaOaep256 => "RSA-OAEP-256",
            Self::A256Kw => "A256KW",
            Self::A192Kw => "A192KW",
            Self::A128Kw => "A128KW",
        }
    }

    const fn is_rsa(self) -> bool {
        matches!(self, Self::RsaOaep256)
    }

    /// Whether a wrapped DEK can have so many bytes: the modulus of an RSA key of 2048, 3072 or 4096 bits, which are those
    /// that Key Vault has; AES key wrap adds 8 bytes to the DEK.
    fn wraps_to(self, bytes: usize) -> bool {
        if self.is_rsa() {
            [256, 384, 512].contains(&bytes)
        } else {
            bytes == Dek::LEN + 8
        }
    }
}

/// What is kept of a wrap. The published form of such EDEKs.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Blob {
    /// The ciphertext: 256 bytes of RSA-2048, 40 bytes of AES key wrap.
    #[prost(bytes = "vec", tag = "1")]
    wrapped: Vec<u8>,
    /// The version of the key: 32 hexadecimal digits. Empty: whatever is current.
    #[prost(string, tag = "2")]
    version: String,
}

impl Blob {
    /// Reads a blob of our own, or an older one that is nothing but the ciphertext of an RSA key.
    fn read(blob: &[u8], algorithm: Algorithm) -> Option<Self> {
        // Random bytes can be a message by accident, but not one that holds a ciphertext of their own length.
        match Self::decode(blob) {
            Ok(message) if algorithm.wraps_to(message.wrapped.len()) => Some(message),
            _ if algorithm.is_rsa() && algorithm.wraps_to(blob.len()) => Some(Self {
                wrapped: blob.to_vec(),
                version: String::new(),
            }),
            _ => None,
        }
        .filter(|blob| blob.version.is_empty() || is_version(&blob.version))
    }
}

/// Whether `text` can be the version of a key. It becomes a part of a path. Real ones have 32 digits.
fn is_version(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

impl AzureKms {
    /// A version of the API that every cloud serves.
    const API_VERSION: &str = "7.4";

    /// An empty version means the current one; Microsoft's own clients leave it empty in the same way.
    fn request(
        &self,
        operation: KmsOperation,
        version: &str,
        input: &[u8],
        token: Option<&Token>,
    ) -> Result<HttpRequest, KmsError> {
        let Some(authorization) = token.and_then(Token::header) else {
            return Err(KmsError::missing_token(KIND, operation));
        };
        let headers = [
            ("accept", JSON),
            ("content-type", JSON),
            ("host", self.host.as_str()),
            ("authorization", authorization),
        ];
        let verb = match operation {
            KmsOperation::Wrap => "wrapkey",
            KmsOperation::Unwrap | KmsOperation::Token => "unwrapkey",
        };
        // None of the names needs escaping.
        let algorithm = format!("\"{}\"", self.algorithm.as_str());
        let path = format!(
            "/keys/{}/{version}/{verb}?api-version={}",
            self.key_name,
            Self::API_VERSION
        );
        let body = object(&[
            ("alg", Member::Json(&algorithm)),
            ("value", Member::Base64Url(input)),
        ]);
        Ok(HttpRequest::post(&path, headers.into_iter(), &body))
    }
}

impl RemoteKms for AzureKms {
    fn kind(&self) -> KmsKind {
        KIND
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn wrap_request(
        &self,
        dek: &Dek,
        token: Option<&Token>,
        _session: &mut Session,
        _now: SystemTime,
    ) -> Result<HttpRequest, KmsError> {
        self.request(KmsOperation::Wrap, "", dek.expose(), token)
    }

    fn unwrap_request(
        &self,
        blob: &[u8],
        token: Option<&Token>,
        _session: &mut Session,
        _now: SystemTime,
    ) -> Result<HttpRequest, KmsError> {
        let operation = KmsOperation::Unwrap;
        let Some(Blob { wrapped, version }) = Blob::read(blob, self.algorithm) else {
            let why = if self.algorithm.is_rsa() {
                "the blob is not one of an RSA key at Azure Key Vault: those hold 256, 384 or 512 bytes of RSA"
            } else {
                "the blob is not one of an AES key in an Azure managed HSM: those hold 40 bytes of AES key wrap"
            };
            let (kind, why) = (KmsErrorKind::UnwrapFailed, Clean::ours(why));
            return Err(KmsError::new(kind, KIND, operation, why));
        };
        self.request(operation, &version, &wrapped, token)
    }

    fn read_wrap(&self, answer: &HttpAnswer<'_>) -> Result<Vec<u8>, KmsError> {
        self.read_wrapped(answer).map(|blob| blob.encode_to_vec())
    }

    fn read_unwrap(&self, answer: &HttpAnswer<'_>) -> Result<Dek, KmsError> {
        self.read_unwrapped(answer)
    }

    fn credential(&self) -> Option<CredentialId> {
        Some(self.entra.id())
    }

    fn token_step(
        &self,
        _last: Option<&Token>,
        refused: Option<&KmsError>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<TokenStep, KmsError> {
        Ok(self.entra.step(refused, &mut session.clock, now))
    }

    fn read_token(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, KmsError> {
        self.entra.read(answer, now)
    }
}

/// The media type of everything but forms.
const JSON: &str = "application/json";

/// The kind of every error in here.
const KIND: KmsKind = KmsKind::Azure;

/// What our operation is called at Azure.
const fn api_name(operation: KmsOperation) -> &'static str {
    match operation {
        KmsOperation::Wrap => "wrapKey",
        KmsOperation::Unwrap => "unwrapKey",
        KmsOperation::Token => "the request for a token",
    }
}

#[cfg(test)]
mod tests;
