//! AWS KMS: `Encrypt` and `Decrypt` of its JSON API (AWS KMS API Reference; protocol awsJson 1.1), signed with AWS
//! Signature Version 4.
//!
//! The DEK is made by us and encrypted, rather than taken from `GenerateDataKey`: the same number of calls, and the same
//! path as with every other KMS. No encryption context is sent, so that whoever holds the key can decrypt the blob with
//! nothing but the blob. Only symmetric keys are asked for: no `EncryptionAlgorithm` is sent.

mod answer;
mod config;
mod logs;
mod sigv4;
mod sts;
mod xml;

use std::{fmt, time::SystemTime};

use tsp_wire::Dek;

use crate::{
    CredentialId, Endpoint, HttpAnswer, HttpRequest, KmsError, KmsErrorKind, KmsKind, KmsOperation,
    RemoteKms, Session, Token, TokenStep,
    json::{Member, object},
    text::Clean,
    token::Proof,
};

use self::{answer::SignedWith, sigv4::Stamp, sts::Role};
pub(crate) use self::{
    config::AwsKey,
    logs::AwsLogs,
    sigv4::{Signer, SigningKey},
};

/// One key at AWS KMS, with the credentials to use it.
pub struct AwsKms {
    endpoint: Endpoint,
    /// The `host` header: as it is sent, so as it is signed.
    host: String,
    credentials: Credentials,
    /// The key's id as a JSON string, with its quotes.
    key_id_json: String,
    /// Whether an unwrap names the key. An alias may have moved on to another key since the wrap, and KMS refuses a
    /// blob of any but the named key; the blob itself tells KMS which key it needs.
    unwrap_names_key: bool,
}

/// What signs the requests to KMS.
#[derive(Debug)]
enum Credentials {
    /// The keys in the configuration.
    Configured(Signer),
    /// The keys of a session of this role.
    Role(Box<Role>),
}

impl Credentials {
    fn signer<'a>(
        &'a self,
        token: Option<&'a Token>,
        operation: KmsOperation,
    ) -> Result<&'a Signer, KmsError> {
        match (self, token.map(|token| &token.proof)) {
            (Self::Configured(signer), _) => Ok(signer),
            (Self::Role(_), Some(Proof::Aws(signer))) => Ok(signer),
            (Self::Role(_), Some(Proof::Header(_)) | None) => {
                Err(KmsError::missing_token(KIND, operation))
            }
        }
    }

    fn signed_with(&self) -> SignedWith {
        match self {
            Self::Configured(_) => SignedWith::Configured,
            Self::Role(_) => SignedWith::Role,
        }
    }

    fn role(&self) -> Option<&Role> {
        match self {
            Self::Configured(_) => None,
            Self::Role(role) => Some(role),
        }
    }
}

/// Media type of awsJson 1.1.
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";

/// A signed request of awsJson 1.1.
fn signed(
    host: &str,
    target: &'static str,
    body: &[u8],
    signer: &Signer,
    session: &mut Session,
    now: SystemTime,
) -> HttpRequest {
    let stamp = Stamp::new(session.clock.correct(now));
    let signed = [
        Some(("content-type", CONTENT_TYPE)),
        Some(("host", host)),
        Some(("x-amz-date", stamp.time())),
        signer
            .session_token()
            .map(|token| ("x-amz-security-token", token)),
        Some(("x-amz-target", target)),
    ];
    let authorization = signer.sign(&signed, body, &stamp, &mut session.signing_key);
    let unsigned = [
        ("accept", "application/json"),
        ("authorization", &authorization),
    ];
    HttpRequest::post("/", signed.into_iter().flatten().chain(unsigned), body)
}

impl AwsKms {
    /// Name of the service in a signature's scope, whatever the host is called.
    const SERVICE: &str = "kms";

    fn request(
        &self,
        target: &'static str,
        body: &[u8],
        signer: &Signer,
        session: &mut Session,
        now: SystemTime,
    ) -> HttpRequest {
        signed(&self.host, target, body, signer, session, now)
    }
}

impl RemoteKms for AwsKms {
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
        session: &mut Session,
        now: SystemTime,
    ) -> Result<HttpRequest, KmsError> {
        let signer = self.credentials.signer(token, KmsOperation::Wrap)?;
        let body = object(&[
            ("KeyId", Member::Json(&self.key_id_json)),
            ("Plaintext", Member::Base64(dek.expose())),
        ]);
        Ok(self.request("TrentService.Encrypt", &body, signer, session, now))
    }

    fn unwrap_request(
        &self,
        blob: &[u8],
        token: Option<&Token>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<HttpRequest, KmsError> {
        if blob.is_empty() || blob.len() > BLOB_BYTES_MAX {
            return Err(KmsError::new(
                KmsErrorKind::UnwrapFailed,
                KIND,
                KmsOperation::Unwrap,
                Clean::ours("the blob is not one of AWS KMS: those have 1 to 6144 bytes"),
            ));
        }
        let signer = self.credentials.signer(token, KmsOperation::Unwrap)?;
        let blob = ("CiphertextBlob", Member::Base64(blob));
        let body = if self.unwrap_names_key {
            object(&[blob, ("KeyId", Member::Json(&self.key_id_json))])
        } else {
            object(&[blob])
        };
        Ok(self.request("TrentService.Decrypt", &body, signer, session, now))
    }

    fn read_wrap(&self, answer: &HttpAnswer<'_>) -> Result<Vec<u8>, KmsError> {
        answer::read_wrap(answer, self.credentials.signed_with())
    }

    fn read_unwrap(&self, answer: &HttpAnswer<'_>) -> Result<Dek, KmsError> {
        answer::read_unwrap(answer, self.credentials.signed_with())
    }

    fn credential(&self) -> Option<CredentialId> {
        self.credentials.role().map(Role::credential)
    }

    fn token_step(
        &self,
        _last: Option<&Token>,
        _refused: Option<&KmsError>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<TokenStep, KmsError> {
        let role = self.credentials.role();
        role.map(|role| TokenStep::Call(Box::new(role.call(session, now))))
            .ok_or_else(|| KmsError::without_tokens(KIND))
    }

    fn read_token(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, KmsError> {
        let role = self.credentials.role();
        role.ok_or_else(|| KmsError::without_tokens(KIND))?
            .read(answer, now)
    }
}

impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsKms")
            .field("endpoint", &self.endpoint)
            .field("key_id", &self.key_id_json)
            .field("credentials", &self.credentials)
            .finish()
    }
}

/// Largest blob that KMS makes or takes, in bytes: the API's own limit.
const BLOB_BYTES_MAX: usize = 6144;

/// The kind of every error in here.
const KIND: KmsKind = KmsKind::Aws;

/// The name of our operation in the API.
const fn api_name(operation: KmsOperation) -> &'static str {
    match operation {
        KmsOperation::Wrap => "Encrypt",
        KmsOperation::Unwrap => "Decrypt",
        KmsOperation::Token => "AssumeRole",
    }
}

#[cfg(test)]
mod tests;
