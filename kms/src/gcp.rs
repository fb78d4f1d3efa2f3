//! Google Cloud KMS: `encrypt` and `decrypt` of a key with the purpose `ENCRYPT_DECRYPT` (Cloud KMS API v1, REST).
//!
//! Every value that goes out is accompanied by its CRC32C, and every one that comes in is compared with the one that came
//! with it (Cloud KMS, "Data integrity guidelines"): TLS protects a value between two machines, but not in their memory.
//! A value that does not match is thrown away and asked for once more. No additional authenticated data is sent, so that
//! whoever may use the key can decrypt the blob with nothing but the blob.

mod answer;
mod config;
mod logs;
mod token;

use std::{fmt, sync::Arc, time::SystemTime};

use tsp_wire::Dek;
use zeroize::Zeroizing;

use crate::{
    CredentialId, Endpoint, HttpAnswer, HttpRequest, KmsError, KmsErrorKind, KmsKind, KmsOperation,
    RemoteKms, Session, Token, TokenStep,
    json::{Member, object},
    text::Clean,
};

pub(crate) use self::{config::GcpKey, logs::GcpLogs};
use self::{config::KeyName, token::Account};

/// One key at Google Cloud KMS, and the service account that uses it.
pub struct GcpKms {
    endpoint: Endpoint,
    /// The `host` header.
    host: String,
    key: KeyName,
    /// Paths of the two operations, escaped.
    wrap_path: String,
    unwrap_path: String,
    account: Arc<Account>,
}

impl GcpKms {
    fn request(&self, path: &str, token: &str, body: &[u8]) -> HttpRequest {
        let headers = [
            ("accept", JSON),
            ("content-type", JSON),
            ("host", self.host.as_str()),
            ("authorization", token),
        ];
        HttpRequest::post(path, headers.into_iter(), body)
    }
}

impl RemoteKms for GcpKms {
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
        let token = authorization(token, KmsOperation::Wrap)?;
        let sum = checksum_json(dek.expose());
        let body = object(&[
            ("plaintext", Member::Base64(dek.expose())),
            ("plaintextCrc32c", Member::Json(&sum)),
        ]);
        Ok(self.request(&self.wrap_path, token, &body))
    }

    fn read_wrap(&self, answer: &HttpAnswer<'_>) -> Result<Vec<u8>, KmsError> {
        answer::read_wrap(answer, &self.key)
    }

    fn unwrap_request(
        &self,
        blob: &[u8],
        token: Option<&Token>,
        _session: &mut Session,
        _now: SystemTime,
    ) -> Result<HttpRequest, KmsError> {
        let token = authorization(token, KmsOperation::Unwrap)?;
        if blob.is_empty() || blob.len() > BLOB_BYTES_MAX {
            return Err(KmsError::new(
                KmsErrorKind::UnwrapFailed,
                KIND,
                KmsOperation::Unwrap,
                Clean::ours("the blob is not one of Google Cloud KMS: those have 1 to 8192 bytes"),
            ));
        }
        let sum = checksum_json(blob);
        let body = object(&[
            ("ciphertext", Member::Base64(blob)),
            ("ciphertextCrc32c", Member::Json(&sum)),
        ]);
        Ok(self.request(&self.unwrap_path, token, &body))
    }

    fn read_unwrap(&self, answer: &HttpAnswer<'_>) -> Result<Dek, KmsError> {
        answer::read_unwrap(answer)
    }

    fn credential(&self) -> Option<CredentialId> {
        Some(self.account.id())
    }

    fn token_step(
        &self,
        _last: Option<&Token>,
        refused: Option<&KmsError>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<TokenStep, KmsError> {
        self.account.step(refused, session, now)
    }

    fn read_token(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, KmsError> {
        self.account.read(answer, now)
    }
}

impl fmt::Debug for GcpKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GcpKms")
            .field("endpoint", &self.endpoint)
            .field("key", &self.key)
            .field("account", &self.account)
            .finish()
    }
}

fn authorization(token: Option<&Token>, operation: KmsOperation) -> Result<&str, KmsError> {
    token
        .and_then(Token::header)
        .ok_or_else(|| KmsError::missing_token(KIND, operation))
}

/// The CRC32C of `bytes` (RFC 3720, appendix B.4) as JSON: 64-bit integers are decimal strings there.
fn checksum_json(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(format!("\"{}\"", crc32c::crc32c(bytes)))
}

/// Media type of requests and answers.
const JSON: &str = "application/json";

/// Largest blob that is taken, in bytes. The API names no limit; a wrapped DEK has about 115, and an external key manager
/// may add to them.
const BLOB_BYTES_MAX: usize = 8192;

/// The kind of every error in here.
const KIND: KmsKind = KmsKind::Gcp;

/// The name of our operation in the API.
const fn api_name(operation: KmsOperation) -> &'static str {
    match operation {
        KmsOperation::Wrap => "encrypt",
        KmsOperation::Unwrap => "decrypt",
        KmsOperation::Token => "a token request",
    }
}

#[cfg(test)]
mod tests;
