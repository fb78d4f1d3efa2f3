//! Thales CipherTrust Manager: `encrypt` and `decrypt` of its crypto API with an AES key in GCM mode, with a token that a
//! user logs in for (CipherTrust Manager REST API v1; there is no published OpenAPI document, the appliance shows its own).
//!
//! The appliance chooses nonce and version of the key. Both, and the tag, are kept in the blob, since each version of a key
//! opens only what it closed. No additional data is sent, so that whoever holds the key can decrypt the blob with nothing
//! but the blob.

mod answer;
mod config;
mod login;

use std::{fmt, time::SystemTime};

use prost::Message as _;
use tsp_wire::Dek;

use crate::{
    CredentialId, Endpoint, HttpAnswer, HttpRequest, KmsError, KmsErrorKind, KmsKind, KmsOperation,
    RemoteKms, Session, Token, TokenCall, TokenStep,
    json::{Member, object},
    text::Clean,
};

use self::login::User;
pub(crate) use self::{config::ThalesKey, login::Login};

/// One key at a CipherTrust Manager, with the user to use it as.
pub struct ThalesKms {
    endpoint: Endpoint,
    /// The `host` header.
    host: String,
    /// What the key is called, as a JSON string with its quotes.
    key_json: String,
    key_kind: KeyKind,
    user: User,
}

/// What a key is called by. The API can guess; it is told, so that a key's name cannot be taken for another's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyKind {
    /// A name, which all versions share.
    Name,
    /// An id of one version.
    Id,
    /// A URI of one version.
    Uri,
}

impl KeyKind {
    const fn json(self) -> &'static str {
        match self {
            Self::Name => "\"name\"",
            Self::Id => "\"id\"",
            Self::Uri => "\"uri\"",
        }
    }
}

/// What is kept of a wrap. Its first byte is 0x0a, so that no EDEK with it looks like anything else.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Blob {
    /// As long as a DEK.
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    /// The nonce; 12 bytes.
    #[prost(bytes = "vec", tag = "2")]
    iv: Vec<u8>,
    /// The tag of AES-GCM; 16 bytes.
    #[prost(bytes = "vec", tag = "3")]
    tag: Vec<u8>,
    /// The version of the key, from 0.
    #[prost(uint32, optional, tag = "4")]
    version: Option<u32>,
    /// The id of the version, where the key is not configured by its name.
    #[prost(string, tag = "5")]
    id: String,
}

impl Blob {
    /// Size of a tag of AES-GCM, in bytes.
    const TAG_BYTES: usize = 16;

    /// Longest id of a version, in bytes: real ones have 64 hexadecimal digits.
    const ID_BYTES_MAX: usize = 128;

    fn is_sound(&self) -> bool {
        self.ciphertext.len() == Dek::LEN
            // The appliance makes 12 bytes; GCM takes others, too.
            && (12..=16).contains(&self.iv.len())
            && self.tag.len() == Self::TAG_BYTES
            && (self.version.is_some() || !self.id.is_empty())
            && (self.id.is_empty() || Self::is_id(&self.id))
    }

    /// Whether `text` can be the id of a version. It becomes a part of a request.
    fn is_id(text: &str) -> bool {
        (1..=Self::ID_BYTES_MAX).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    }
}

impl ThalesKms {
    fn crypto_request(
        &self,
        operation: KmsOperation,
        path: &'static str,
        members: &[(&str, Member<'_>)],
        token: Option<&Token>,
    ) -> Result<HttpRequest, KmsError> {
        let Some(authorization) = token.and_then(Token::header) else {
            return Err(KmsError::missing_token(KIND, operation));
        };
        Ok(self.request(path, Some(authorization), &object(members)))
    }

    /// Without an `accept` the appliance refuses every call.
    fn request(&self, path: &'static str, authorization: Option<&str>, body: &[u8]) -> HttpRequest {
        const JSON: &str = "application/json";
        let headers = [
            Some(("accept", JSON)),
            Some(("content-type", JSON)),
            Some(("host", self.host.as_str())),
            authorization.map(|value| ("authorization", value)),
        ];
        HttpRequest::post(path, headers.into_iter().flatten(), body)
    }
}

impl RemoteKms for ThalesKms {
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
        let members = [
            ("id", Member::Json(&self.key_json)),
            ("type", Member::Json(self.key_kind.json())),
            ("plaintext", Member::Base64(dek.expose())),
            ("mode", Member::Json(GCM_JSON)),
        ];
        self.crypto_request(
            KmsOperation::Wrap,
            "/api/v1/crypto/encrypt",
            &members,
            token,
        )
    }

    fn unwrap_request(
        &self,
        blob: &[u8],
        token: Option<&Token>,
        _session: &mut Session,
        _now: SystemTime,
    ) -> Result<HttpRequest, KmsError> {
        let operation = KmsOperation::Unwrap;
        let Some(blob) = Blob::decode(blob).ok().filter(Blob::is_sound) else {
            return Err(KmsError::new(
                KmsErrorKind::UnwrapFailed,
                KIND,
                operation,
                Clean::ours("the blob is not one of Thales CipherTrust"),
            ));
        };
        // By its name and the version, a key of another tenant cannot be meant: its tag does not fit. An id names the
        // version already.
        let stored_id = format!("\"{}\"", blob.id);
        let version = blob.version.map(|version| version.to_string());
        let (id, kind, version) = match (self.key_kind, version) {
            (KeyKind::Name, Some(version)) => (&self.key_json, KeyKind::Name, Some(version)),
            (KeyKind::Id | KeyKind::Uri, _) if blob.id.is_empty() => {
                (&self.key_json, self.key_kind, None)
            }
            (KeyKind::Name | KeyKind::Id | KeyKind::Uri, _) => (&stored_id, KeyKind::Id, None),
        };
        let mut members = vec![
            ("id", Member::Json(id)),
            ("type", Member::Json(kind.json())),
            ("ciphertext", Member::Base64(&blob.ciphertext)),
            ("tag", Member::Base64(&blob.tag)),
            ("mode", Member::Json(GCM_JSON)),
            ("iv", Member::Base64(&blob.iv)),
        ];
        if let Some(version) = &version {
            members.push(("version", Member::Json(version)));
        }
        self.crypto_request(operation, "/api/v1/crypto/decrypt", &members, token)
    }

    fn read_wrap(&self, answer: &HttpAnswer<'_>) -> Result<Vec<u8>, KmsError> {
        answer::read_wrap(answer, self.key_kind).map(|blob| blob.encode_to_vec())
    }

    fn read_unwrap(&self, answer: &HttpAnswer<'_>) -> Result<Dek, KmsError> {
        answer::read_unwrap(answer)
    }

    fn credential(&self) -> Option<CredentialId> {
        Some(self.user.id())
    }

    fn token_step(
        &self,
        last: Option<&Token>,
        refused: Option<&KmsError>,
        session: &mut Session,
        _now: SystemTime,
    ) -> Result<TokenStep, KmsError> {
        let body = self.user.step(last, refused, &mut session.login)?;
        Ok(TokenStep::Call(Box::new(TokenCall {
            endpoint: self.endpoint.clone(),
            request: self.request("/api/v1/auth/tokens", None, &body),
        })))
    }

    fn read_token(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, KmsError> {
        self.user.read(answer, now)
    }
}

impl fmt::Debug for ThalesKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThalesKms")
            .field("endpoint", &self.endpoint)
            .field("key", &self.key_json)
            .field("key_kind", &self.key_kind)
            .field("user", &self.user)
            .finish()
    }
}

/// The mode, asked for by name: it is what AES keys do unasked, too.
const GCM_JSON: &str = "\"gcm\"";

/// The kind of every error in here.
const KIND: KmsKind = KmsKind::Thales;

#[cfg(test)]
mod tests;
