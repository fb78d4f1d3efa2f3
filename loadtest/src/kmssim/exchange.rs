//! What comes in and what goes out: requests, replies, and the words in which they are counted and matched.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The four kinds of KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// AWS KMS and STS.
    Aws,
    /// Google Cloud KMS and its token endpoint.
    Gcp,
    /// Azure Key Vault, Managed HSM and Entra.
    Azure,
    /// Thales CipherTrust Manager.
    Thales,
}

impl Provider {
    /// All of them, in a fixed order.
    pub const ALL: [Self; 4] = [Self::Aws, Self::Gcp, Self::Azure, Self::Thales];

    /// `aws`, `gcp`, `azure` or `thales`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
            Self::Thales => "thales",
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Aws => 0,
            Self::Gcp => 1,
            Self::Azure => 2,
            Self::Thales => 3,
        }
    }
}

/// What a request asks for, in the same words for every provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Encrypt, wrapkey.
    Wrap,
    /// Decrypt, unwrapkey.
    Unwrap,
    /// AWS `GenerateDataKey`.
    DataKey,
    /// AWS `ReEncrypt`.
    ReEncrypt,
    /// Reading about a key.
    Lookup,
    /// Random bytes.
    Random,
    /// AssumeRole, the OAuth grants, a login.
    Token,
    /// Where the token endpoint is.
    Discovery,
    /// Anything that was not recognised.
    Other,
}

impl Operation {
    /// All of them, in a fixed order.
    pub(crate) const ALL: [Self; 9] = [
        Self::Wrap,
        Self::Unwrap,
        Self::DataKey,
        Self::ReEncrypt,
        Self::Lookup,
        Self::Random,
        Self::Token,
        Self::Discovery,
        Self::Other,
    ];

    /// As in the control API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::DataKey => "data_key",
            Self::ReEncrypt => "re_encrypt",
            Self::Lookup => "lookup",
            Self::Random => "random",
            Self::Token => "token",
            Self::Discovery => "discovery",
            Self::Other => "other",
        }
    }

    pub(crate) fn index(self) -> usize {
        Self::ALL
            .iter()
            .position(|known| *known == self)
            .unwrap_or_default()
    }
}

/// Which operations on a key are refused to everybody, whatever its policy says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Denied {
    wrap: bool,
    unwrap: bool,
}

impl Denied {
    /// For one operation, or for all.
    pub(crate) fn set(&mut self, operation: Option<Operation>, denied: bool) {
        if operation != Some(Operation::Unwrap) {
            self.wrap = denied;
        }
        if operation != Some(Operation::Wrap) {
            self.unwrap = denied;
        }
    }

    pub(crate) fn denies(self, operation: Operation) -> bool {
        match operation {
            Operation::Wrap | Operation::DataKey => self.wrap,
            Operation::Unwrap | Operation::ReEncrypt => self.unwrap,
            Operation::Lookup
            | Operation::Random
            | Operation::Token
            | Operation::Discovery
            | Operation::Other => self.wrap && self.unwrap,
        }
    }
}

/// Why a request was refused: the client's doing, which a correct client never sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
    /// Path, method, headers, media type, shape of the body.
    Protocol,
    /// A value that the API does not allow.
    Parameter,
    /// An unknown or wrong credential, or a signature that does not match.
    Credential,
    /// A signature or an assertion out of its time.
    Clock,
    /// A bearer token that is missing, forged, expired, or meant for something else.
    Token,
}

/// Why a well-made request was not served: the state of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Failure {
    /// The caller may not do this.
    Permission,
    /// The key is disabled, deleted, of another kind.
    KeyState,
    /// There is no such key.
    NotFound,
    /// The ciphertext does not decrypt.
    Ciphertext,
    /// Billing, suspension, licence.
    Account,
    /// A credential or token that the control API revoked or expired.
    Revoked,
    /// Over the quota.
    Throttled,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Answered,
    /// Asked for a token, or for a better one, as part of the protocol.
    Challenged,
    Refused(Refusal),
    Failed(Failure),
}

/// One request, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) parts: Parts,
    pub(crate) body: Bytes,
}

impl Request {
    pub(crate) fn method(&self) -> &Method {
        &self.parts.method
    }

    /// The path as it was sent, not decoded.
    pub(crate) fn path(&self) -> &str {
        self.parts.uri.path()
    }

    pub(crate) fn query(&self) -> &str {
        self.parts.uri.query().unwrap_or_default()
    }

    /// The first value of a query parameter, decoded.
    pub(crate) fn query_value(&self, name: &str) -> Option<String> {
        form_urlencoded::parse(self.query().as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    /// A header's value, if it is visible ASCII.
    pub(crate) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// Host and port as the client names us; empty if it does not.
    pub(crate) fn authority(&self) -> &str {
        self.header(header::HOST)
            .or_else(|| self.parts.uri.authority().map(|a| a.as_str()))
            .unwrap_or_default()
    }

    /// The host without its port, as the client names us.
    pub(crate) fn host(&self) -> &str {
        let authority = self.authority();
        match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        }
    }

    /// The media type of the body in lower case, without parameters.
    pub(crate) fn media_type(&self) -> String {
        let value = self.header(header::CONTENT_TYPE).unwrap_or_default();
        let essence = value.split(';').next().unwrap_or_default();
        essence.trim().to_ascii_lowercase()
    }

    /// The token of `Authorization: Bearer`.
    pub(crate) fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header(header::AUTHORIZATION)?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// The members of a form body, decoded.
    pub(crate) fn form(&self) -> Form {
        Form(
            form_urlencoded::parse(&self.body)
                .take(FORM_MEMBERS_MAX)
                .map(|(key, value)| (key.into_owned(), value.into_owned()))
                .collect(),
        )
    }

    /// For tests and for the benches of single checks.
    #[cfg(test)]
    pub(crate) fn made(
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Self {
        let url: http::Uri = url.parse().expect("a URL");
        let mut builder = http::Request::builder().method(method);
        if let Some(authority) = url.authority()
            && !headers
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            builder = builder.header(header::HOST, authority.as_str());
        }
        for (name, value) in headers {
            builder = builder.header(
                *name,
                HeaderValue::from_bytes(value.as_bytes()).expect("a value"),
            );
        }
        let target = url.path_and_query().map_or("/", |target| target.as_str());
        let (parts, ()) = builder
            .uri(target)
            .body(())
            .expect("a request")
            .into_parts();
        Self {
            parts,
            body: body.into(),
        }
    }
}

/// Members that a form may have; real ones have fewer than ten.
const FORM_MEMBERS_MAX: usize = 100;

/// A decoded `application/x-www-form-urlencoded` body.
#[derive(Debug)]
pub(crate) struct Form(Vec<(String, String)>);

impl Form {
    /// The first member of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) verdict: Verdict,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// The API's own code for what went wrong; empty if nothing did.
    pub(crate) code: String,
    /// What went wrong, in a sentence for whoever reads the journal.
    pub(crate) reason: String,
}

impl Reply {
    pub(crate) fn new(
        verdict: Verdict,
        status: u16,
        media_type: &'static str,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        Self {
            verdict,
            status,
            headers,
            body: body.into(),
            code: String::new(),
            reason: String::new(),
        }
    }

    pub(crate) fn because(mut self, code: impl Into<String>, reason: impl Into<String>) -> Self {
        self.code = code.into();
        self.reason = reason.into();
        self
    }

    /// Adds a header; a value that cannot be one is left out.
    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

/// What a request is about, for the journal and for matching rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) operation: Option<Operation>,
    /// Names of the key: as the client gave it, and in full.
    pub(crate) keys: Vec<String>,
    /// Who called, or whose token was asked for.
    pub(crate) caller: String,
}

impl Subject {
    /// Whether `pattern` is one of the names of the key or the caller, or a segment of one.
    pub(crate) fn is_about(&self, pattern: &str) -> bool {
        let names = self.keys.iter().chain(std::iter::once(&self.caller));
        names
            .filter(|name| !name.is_empty())
            .any(|name| name == pattern || name.split(['/', ':']).any(|part| part == pattern))
    }

    /// The fullest name of the key.
    pub(crate) fn key(&self) -> &str {
        self.keys.last().map_or("", String::as_str)
    }
}

/// Reads a JSON object. serde would take an array for a struct as well.
pub(crate) fn json_object<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    match body.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(body).map_err(|error| error.to_string()),
        _ => Err("the body is no JSON object".to_owned()),
    }
}

/// Decodes percent-encoded text; `None` if that is no UTF-8.
pub(crate) fn percent_decoded(text: &str) -> Option<String> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .ok()
        .map(std::borrow::Cow::into_owned)
}
