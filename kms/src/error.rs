//! Why a KMS did not do what it was asked, and what to do about it.

use std::{
    borrow::Cow,
    fmt,
    time::{Duration, SystemTime},
};

use tsp_wire::TspCode;

use crate::{Blame, KmsKind, KmsOperation, text::Clean};

/// A failed operation at a tenant's KMS.
///
/// `Display` is the message for whoever called the proxy: provider, operation, the KMS's own code and request id, its
/// sentence, and who can mend it. Everything that came from the KMS has been cleaned: one line, printable, bounded, and
/// without anything that could be a key, a token or a ciphertext.
#[derive(Clone, Debug)]
pub struct KmsError {
    kind: KmsErrorKind,
    provider: KmsKind,
    operation: KmsOperation,
    retry: Retry,
    blame: Blame,
    code: Option<Clean>,
    request_id: Option<Clean>,
    sentence: Clean,
    /// What is seldom there.
    hint: Option<Box<Hint>>,
}

/// What the KMS said for the sake of the next token.
#[derive(Clone, Debug, Default)]
struct Hint {
    /// The time at the KMS.
    server_time: Option<SystemTime>,
    /// Claims that the next token must make, as the KMS wrote them.
    claims: Option<Claims>,
}

/// Claims that a token must make: text of a KMS, for its token endpoint only.
#[derive(Clone)]
struct Claims(String);

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claims({} bytes)", self.0.len())
    }
}

impl KmsError {
    pub(crate) fn new(
        kind: KmsErrorKind,
        provider: KmsKind,
        operation: KmsOperation,
        sentence: Clean,
    ) -> Self {
        Self {
            kind,
            provider,
            operation,
            retry: Retry::No,
            blame: kind.usual_blame(operation),
            code: None,
            request_id: None,
            sentence,
            hint: None,
        }
    }

    pub(crate) fn with_retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    pub(crate) fn with_blame(self, blame: Blame) -> Self {
        Self { blame, ..self }
    }

    pub(crate) fn with_code(self, code: Option<Clean>) -> Self {
        Self { code, ..self }
    }

    pub(crate) fn with_request_id(self, request_id: Option<Clean>) -> Self {
        Self { request_id, ..self }
    }

    /// Remembers the time at the KMS, for a token whose own times must fit it.
    pub(crate) fn with_server_time(mut self, server_time: Option<SystemTime>) -> Self {
        if server_time.is_some() {
            self.hint.get_or_insert_default().server_time = server_time;
        }
        self
    }

    /// Remembers claims that the next token must make, for [`RemoteKms::token_step`](crate::RemoteKms::token_step).
    pub(crate) fn with_claims(mut self, claims: String) -> Self {
        self.hint.get_or_insert_default().claims = Some(Claims(claims));
        self
    }

    /// The time at the KMS, if the refusal of a token came with it.
    pub(crate) fn server_time(&self) -> Option<SystemTime> {
        self.hint.as_ref()?.server_time
    }

    /// The claims that the next token must make.
    pub(crate) fn claims(&self) -> Option<&str> {
        Some(&self.hint.as_ref()?.claims.as_ref()?.0)
    }

    /// The KMS could not be asked: name resolution, connection, TLS, timeout, an open breaker. `why` is cleaned and says
    /// which; `retry` and `blame` are the transport's word on whether another attempt may succeed, and on what is at fault.
    #[must_use]
    pub fn unreachable(
        provider: KmsKind,
        operation: KmsOperation,
        retry: Retry,
        blame: Blame,
        why: impl Into<Cow<'static, str>>,
    ) -> Self {
        let why = why.into();
        Self::new(
            KmsErrorKind::Unreachable,
            provider,
            operation,
            Clean::sentence(&why),
        )
        .with_retry(retry)
        .with_blame(blame)
    }

    /// Why an unwrap is refused that gave something else than a key.
    pub(crate) const NOT_A_KEY: &str = "the blob does not hold a key of 32 bytes";

    /// There was an answer, of which nothing can be used. `why` says so in the caller's own words.
    #[must_use]
    pub fn unusable(provider: KmsKind, operation: KmsOperation, why: &'static str) -> Self {
        let kind = match operation {
            KmsOperation::Wrap | KmsOperation::Unwrap => operation.failed(),
            // Without a token, the key's own service could not be asked.
            KmsOperation::Token => KmsErrorKind::Unreachable,
        };
        let blame = match why {
            // Whoever answered did what it was asked.
            Self::NOT_A_KEY => Blame::Edek,
            _ => Blame::Endpoint,
        };
        Self::new(kind, provider, operation, Clean::ours(why)).with_blame(blame)
    }

    /// Whoever answers there has a certificate that checks, but not with the pinned public key. `why` says so in the
    /// caller's own words, to which the pin that was met belongs: it is not cleaned, since that would cut the pin out.
    #[must_use]
    pub fn not_the_pinned_key(
        provider: KmsKind,
        operation: KmsOperation,
        why: impl Into<Cow<'static, str>>,
    ) -> Self {
        let why = Clean::ours_made(why.into());
        Self::new(KmsErrorKind::Unreachable, provider, operation, why).with_blame(Blame::Pin)
    }

    /// The endpoint in the configuration leads to where the caller may not connect. `why` says so in the caller's own
    /// words; it is not cleaned.
    #[must_use]
    pub fn forbidden_endpoint(
        provider: KmsKind,
        operation: KmsOperation,
        why: impl Into<Cow<'static, str>>,
    ) -> Self {
        let why = Clean::ours_made(why.into());
        Self::new(KmsErrorKind::Configuration, provider, operation, why).with_blame(Blame::Address)
    }

    /// A token was asked for where none is used: a defect of ours.
    pub(crate) fn without_tokens(provider: KmsKind) -> Self {
        Self::new(
            KmsErrorKind::Authorization,
            provider,
            KmsOperation::Token,
            Clean::ours("this KMS config uses no tokens"),
        )
        .with_blame(Blame::Proxy)
    }

    /// A request was to be made without its token, or with another KMS's: a defect of ours.
    pub(crate) fn missing_token(provider: KmsKind, operation: KmsOperation) -> Self {
        Self::new(
            KmsErrorKind::Authorization,
            provider,
            operation,
            Clean::ours("there is no token to ask it with"),
        )
        .with_blame(Blame::Proxy)
    }

    /// The class of the error; also the label in metrics.
    #[must_use]
    pub fn kind(&self) -> KmsErrorKind {
        self.kind
    }

    /// The KMS that was asked.
    #[must_use]
    pub fn provider(&self) -> KmsKind {
        self.provider
    }

    /// What it was asked to do.
    #[must_use]
    pub fn operation(&self) -> KmsOperation {
        self.operation
    }

    /// Whether, and after what, another attempt makes sense.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.retry
    }

    /// What is most likely at fault.
    #[must_use]
    pub fn blame(&self) -> Blame {
        self.blame
    }

    /// Whether another attempt can succeed at all.
    #[must_use]
    pub fn retryable(&self) -> bool {
        self.retry != Retry::No
    }

    /// The KMS's own code, cleaned.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.code.as_ref().map(Clean::as_str)
    }

    /// The KMS's id of the request, cleaned: what its support asks for.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_ref().map(Clean::as_str)
    }

    /// The KMS's sentence, cleaned, or ours where it gave none.
    #[must_use]
    pub fn sentence(&self) -> &str {
        self.sentence.as_str()
    }
}

impl fmt::Display for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.operation {
            KmsOperation::Wrap | KmsOperation::Unwrap => {
                let title = self.provider.title();
                write!(f, "{title} could not {} the key", self.operation)?;
            }
            KmsOperation::Token => write!(f, "{} gave no token", self.provider.token_giver())?,
        }
        match (self.code(), self.request_id()) {
            (Some(code), Some(id)) => write!(f, " ({code}, request {id})")?,
            (Some(code), None) => write!(f, " ({code})")?,
            (None, Some(id)) => write!(f, " (request {id})")?,
            (None, None) => {}
        }
        write!(f, ": {}", self.sentence())?;
        if !self.sentence().ends_with(['.', '!', '?']) {
            f.write_str(".")?;
        }
        write!(f, " {}", self.blame.advice(self.provider, self.operation))
    }
}

impl std::error::Error for KmsError {}

/// The classes of errors, one per TSP code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KmsErrorKind {
    /// The KMS answered a wrap with nothing usable, or refused input that was well-formed.
    WrapFailed,
    /// The same for an unwrap; also: this blob does not decrypt, or not to 32 bytes. Often the caller's: the blob was
    /// altered, or is another tenant's.
    UnwrapFailed,
    /// The credentials in the configuration are wrong, expired or revoked. The configuration's owner's.
    Authorization,
    /// The key is missing, disabled or of the wrong type, or a permission is missing. The configuration's owner's.
    Configuration,
    /// The KMS cannot be reached, or cannot serve. The network's or the KMS's.
    Unreachable,
    /// The KMS limits the account's rate. The account's.
    Throttled,
    /// The account at the KMS is suspended, unpaid or not subscribed. The account's.
    Account,
}

impl KmsErrorKind {
    /// Every class, in the order of their TSP codes.
    pub const ALL: [Self; 7] = [
        Self::WrapFailed,
        Self::UnwrapFailed,
        Self::Authorization,
        Self::Configuration,
        Self::Unreachable,
        Self::Throttled,
        Self::Account,
    ];

    /// The code of the public API.
    #[must_use]
    pub const fn tsp_code(self) -> TspCode {
        match self {
            Self::WrapFailed => TspCode::KmsWrapFailed,
            Self::UnwrapFailed => TspCode::KmsUnwrapFailed,
            Self::Authorization => TspCode::KmsAuthorizationFailed,
            Self::Configuration => TspCode::KmsConfigurationInvalid,
            Self::Unreachable => TspCode::KmsUnreachable,
            Self::Throttled => TspCode::KmsThrottled,
            Self::Account => TspCode::KmsAccountIssue,
        }
    }

    /// The label in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WrapFailed => "wrap_failed",
            Self::UnwrapFailed => "unwrap_failed",
            Self::Authorization => "authorization",
            Self::Configuration => "configuration",
            Self::Unreachable => "unreachable",
            Self::Throttled => "throttled",
            Self::Account => "account",
        }
    }

    /// What is at fault unless more is known.
    const fn usual_blame(self, operation: KmsOperation) -> Blame {
        match self {
            Self::Configuration if matches!(operation, KmsOperation::Token) => Blame::Grant,
            Self::Configuration => Blame::Key,
            Self::WrapFailed => Blame::Endpoint,
            Self::UnwrapFailed => Blame::Edek,
            Self::Authorization => Blame::Credentials,
            Self::Unreachable => Blame::Kms,
            Self::Throttled => Blame::Rate,
            Self::Account => Blame::Account,
        }
    }
}

/// Whether another attempt makes sense. The error knows; the caller adds the deadline and the number of attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It would fail again.
    No,
    /// Soon: the network or the KMS hiccuped.
    Transient,
    /// After a pause: `after` is the KMS's own wish, if it named one.
    Throttled {
        /// How long the KMS wants us to wait; at most a day.
        after: Option<Duration>,
    },
    /// After [`Session::repair`](crate::Session::repair), if that says so: the KMS finds our clock wrong.
    AfterClockRepair {
        /// The time at the KMS.
        server_time: SystemTime,
    },
    /// Not now, and nobody was asked: we have no room. Who asked us may come again.
    Later {
        /// When to come again.
        after: Duration,
    },
    /// With a fresh token: the KMS does not take this one. A second refusal means the credential itself.
    AfterNewToken,
}
