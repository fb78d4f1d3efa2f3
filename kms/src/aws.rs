//! AWS KMS: `Encrypt` and `Decrypt` of its JSON API (AWS KMS API Reference; protocol awsJson 1.1), signed with AWS
//! Signature Version 4.
//!
//! The DEK is made by us and encrypted, rather than taken from `GenerateDataKey`: the same number of calls, and the same
//! path as with every other KMS. No encryption context is sent, so that whoever holds the key can decrypt the blob with
//! nothing but the blob. Only symmetric keys are asked for: no `EncryptionAlgorithm` is sent.

mod answer;
mod config;
mod sigv4;

use std::{fmt, time::SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderMap, HeaderValue, header};
use tsp_wire::Dek;
use zeroize::Zeroizing;

use crate::{
    Endpoint, HttpAnswer, HttpRequest, KmsError, KmsErrorKind, KmsKind, KmsOperation, RemoteKms,
    Session, Token, text::Clean,
};

use self::sigv4::{Signer, Stamp};
pub(crate) use self::{config::AwsKey, sigv4::SigningKey};

/// One key at AWS KMS, with the credentials to use it.
pub struct AwsKms {
    endpoint: Endpoint,
    /// The `host` header: as it is sent, so as it is signed.
    host: String,
    signer: Signer,
    /// The key's id as a JSON string, with its quotes.
    key_id_json: String,
    /// Whether an unwrap names the key. An alias may have moved on to another key since the wrap, and KMS refuses a
    /// blob of any but the named key; the blob itself tells KMS which key it needs.
    unwrap_names_key: bool,
}

impl AwsKms {
    /// Media type of awsJson 1.1.
    const CONTENT_TYPE: &str = "application/x-amz-json-1.1";

    /// Name of the service in a signature's scope, whatever the host is called.
    const SERVICE: &str = "kms";

    fn request(
        &self,
        target: &'static str,
        body: Zeroizing<Vec<u8>>,
        session: &mut Session,
        now: SystemTime,
    ) -> HttpRequest {
        let stamp = Stamp::new(session.clock.correct(now));
        let token = self.signer.session_token();
        let signed = [
            Some((header::CONTENT_TYPE.as_str(), Self::CONTENT_TYPE)),
            Some((header::HOST.as_str(), self.host.as_str())),
            Some(("x-amz-date", stamp.time())),
            token.map(|token| ("x-amz-security-token", token)),
            Some(("x-amz-target", target)),
        ];
        let authorization = self
            .signer
            .sign(&signed, &body, &stamp, &mut session.signing_key);

        // Values are copied rather than shared with the configuration: all cores read that, and a shared value is
        // counted by an atomic that they would all write.
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(Self::CONTENT_TYPE),
        );
        headers.insert(header::HOST, value(self.host.as_str()));
        headers.insert("x-amz-date", value(stamp.time()));
        headers.insert("x-amz-target", HeaderValue::from_static(target));
        headers.insert(header::AUTHORIZATION, sensitive(value(authorization)));
        if let Some(token) = token {
            headers.insert("x-amz-security-token", sensitive(value(token)));
        }
        HttpRequest {
            path: "/".to_owned(),
            headers,
            body,
        }
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
        _token: Option<&Token>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<HttpRequest, KmsError> {
        let body = object(&[
            ("KeyId", Member::Json(&self.key_id_json)),
            ("Plaintext", Member::Bytes(dek.expose())),
        ]);
        Ok(self.request("TrentService.Encrypt", body, session, now))
    }

    fn unwrap_request(
        &self,
        blob: &[u8],
        _token: Option<&Token>,
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
        let blob = ("CiphertextBlob", Member::Bytes(blob));
        let body = if self.unwrap_names_key {
            object(&[blob, ("KeyId", Member::Json(&self.key_id_json))])
        } else {
            object(&[blob])
        };
        Ok(self.request("TrentService.Decrypt", body, session, now))
    }

    fn read_wrap(&self, answer: &HttpAnswer<'_>) -> Result<Vec<u8>, KmsError> {
        answer::read_wrap(answer)
    }

    fn read_unwrap(&self, answer: &HttpAnswer<'_>) -> Result<Dek, KmsError> {
        answer::read_unwrap(answer)
    }
}

impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsKms")
            .field("endpoint", &self.endpoint)
            .field("key_id", &self.key_id_json)
            .field("signer", &self.signer)
            .finish()
    }
}

fn value<T: TryInto<HeaderValue>>(text: T) -> HeaderValue {
    #[expect(
        clippy::expect_used,
        reason = "the configuration was checked for the same characters"
    )]
    text.try_into().ok().expect("visible ASCII")
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// A member's value in a request body.
enum Member<'a> {
    /// JSON as it is.
    Json(&'a str),
    /// Bytes, to be spelt in standard base64 with padding.
    Bytes(&'a [u8]),
}

impl Member<'_> {
    fn json_bytes(&self) -> usize {
        match self {
            Self::Json(json) => json.len(),
            Self::Bytes(bytes) => bytes.len().div_ceil(3) * 4 + 2,
        }
    }
}

/// A JSON object in a buffer that is allocated once, at its full size: what grows leaves its old self behind unwiped.
fn object(members: &[(&str, Member<'_>)]) -> Zeroizing<Vec<u8>> {
    // Per member two quotes, a colon, and the comma or brace before it; then the last brace.
    let size = members
        .iter()
        .map(|(name, value)| name.len() + value.json_bytes() + 4)
        .sum::<usize>()
        + 1;
    let mut body = Zeroizing::new(Vec::with_capacity(size));
    for (index, (name, value)) in members.iter().enumerate() {
        body.push(if index == 0 { b'{' } else { b',' });
        body.push(b'"');
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(b"\":");
        match value {
            Member::Json(json) => body.extend_from_slice(json.as_bytes()),
            Member::Bytes(bytes) => {
                body.push(b'"');
                let start = body.len();
                body.resize(size.min(start + bytes.len().div_ceil(3) * 4), 0);
                if let Some(place) = body.get_mut(start..) {
                    let written = BASE64.encode_slice(bytes, place);
                    debug_assert_eq!(written, Ok(place.len()), "the size was computed for it");
                }
                body.push(b'"');
            }
        }
    }
    body.push(b'}');
    assert_eq!(
        body.len(),
        size,
        "the buffer neither grew nor was too large"
    );
    body
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
