//! How a service account proves itself to Google: with a JSON Web Token that it signs, either sent to Cloud KMS as it is
//! (Google Cloud, "Service account authorization without OAuth") or exchanged for an access token ("Using OAuth 2.0 for
//! Server to Server Applications"; RFC 7523).
//!
//! Its own token is the default: one far end less that can fail. Signing takes about a millisecond, so it is left to
//! whoever has one to spare.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jsonwebtoken::{Algorithm, Header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tsp_wire::{Secret, snapshot::GcpTokenKind};

use super::{KIND, api_name, config::GcpKey};
use crate::{
    Blame, CredentialId, Endpoint, HttpAnswer, KmsError, KmsErrorKind, KmsOperation, Retry,
    Session, Signed, Token, TokenCall, TokenStep,
    class::{Class, Refusal},
    config::visible,
    form,
    json::{lent, text},
    rsa::RsaKey,
    session::Clock,
    text::Clean,
    token::{Proof, Renewal},
};

/// A service account.
pub(crate) struct Account {
    email: String,
    key: RsaKey,
    key_id: Option<String>,
    kind: GcpTokenKind,
    /// Where access tokens are given out.
    endpoint: Endpoint,
    path: String,
    /// What an access token is to be good for.
    scope: &'static str,
    /// Whether the endpoint may be asked although the account's own tokens were chosen.
    way_back: bool,
    id: CredentialId,
}

impl Account {
    pub(super) fn new(members: &GcpKey<'_>, key: RsaKey, endpoint: Endpoint, path: String) -> Self {
        let id = CredentialId::of(&[
            b"GCP",
            members.client_email.as_bytes(),
            members.private_key.expose().as_bytes(),
            members.private_key_id.unwrap_or_default().as_bytes(),
            match members.token {
                GcpTokenKind::SelfSigned => b"self-signed",
                GcpTokenKind::Endpoint => b"endpoint",
            },
            endpoint.identity().as_bytes(),
            path.as_bytes(),
        ]);
        Self {
            email: members.client_email.to_owned(),
            key,
            key_id: members.private_key_id.map(str::to_owned),
            kind: members.token,
            endpoint,
            path,
            scope: SCOPE,
            way_back: false,
            id,
        }
    }

    /// Whether the endpoint may be asked if Cloud KMS takes none of the account's own tokens for want of the key's id.
    pub(super) fn with_way_back(self, open: bool) -> Self {
        Self {
            way_back: open && self.key_id.is_none(),
            ..self
        }
    }

    /// With access tokens for another service of Google's.
    pub(super) fn with_scope(self, scope: &'static str) -> Self {
        Self { scope, ..self }
    }

    pub(super) fn id(&self) -> CredentialId {
        self.id
    }

    pub(crate) fn step(
        self: &Arc<Self>,
        refused: Option<&KmsError>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<TokenStep, KmsError> {
        let before_s = session.clock.correct(now);
        if let Some(error) = refused
            && let Some(server_time) = error.server_time()
        {
            if Clock::is_beyond_repair(server_time, now) {
                // No token of ours can be good, and Cloud KMS does not say so.
                return Err(error.clone().with_retry(Retry::No).with_blame(Blame::Clock));
            }
            session.clock.learn(server_time, now);
        }
        let now_s = session.clock.correct(now);
        // Google documents the key's id as a part of such tokens, and published configurations do not have it. So the
        // first refusal that is not for the time shows the other way, which works without.
        let refused = refused.is_some_and(|error| error.retry() == Retry::AfterNewToken);
        if refused && before_s == now_s && self.way_back {
            session.own_tokens_refused = true;
        }
        let by_endpoint = match self.kind {
            GcpTokenKind::Endpoint => true,
            GcpTokenKind::SelfSigned => self.way_back && session.own_tokens_refused,
        };
        let account = Arc::clone(self);
        Ok(TokenStep::Sign(Box::new(move || {
            if by_endpoint {
                account.signed_call(now_s)
            } else {
                account.own_token(now_s, now)
            }
        })))
    }

    /// A token of the account's own.
    fn own_token(&self, now_s: i64, now: SystemTime) -> Result<Signed, KmsError> {
        let iat = now_s - ISSUED_BEFORE_S;
        let jwt = self.sign(&Claims {
            iss: &self.email,
            sub: Some(&self.email),
            scope: None,
            aud: KMS_AUDIENCE,
            iat,
            exp: iat + LIFE_S,
        })?;
        let life = Duration::from_secs((LIFE_S - ISSUED_BEFORE_S).unsigned_abs());
        let proof = Proof::bearer(jwt.expose());
        Ok(Signed::Token(Token::new(
            proof, self.id, now, life, &RENEWAL,
        )))
    }

    /// The call that gives an access token.
    fn signed_call(&self, now_s: i64) -> Result<Signed, KmsError> {
        let iat = now_s - ISSUED_BEFORE_S;
        let assertion = self.sign(&Claims {
            iss: &self.email,
            sub: None,
            scope: Some(self.scope),
            aud: TOKEN_AUDIENCE,
            iat,
            exp: iat + LIFE_S,
        })?;
        let fields = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", assertion.expose()),
        ];
        Ok(Signed::Call(Box::new(TokenCall {
            endpoint: self.endpoint.clone(),
            request: form::post(&self.endpoint, &self.path, &fields),
        })))
    }

    fn sign(&self, claims: &Claims<'_>) -> Result<Secret<String>, KmsError> {
        let mut header = Header::new(Algorithm::RS256);
        header.kid.clone_from(&self.key_id);
        self.key.sign(&header, claims).ok_or_else(|| {
            KmsError::new(
                KmsErrorKind::Authorization,
                KIND,
                KmsOperation::Token,
                Clean::ours("the service account's private key cannot sign"),
            )
        })
    }

    /// Takes the access token out of the endpoint's answer.
    pub(crate) fn read(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, KmsError> {
        #[derive(Deserialize)]
        struct Granted<'a> {
            #[serde(borrow)]
            access_token: Option<&'a RawValue>,
            #[serde(borrow)]
            token_type: Option<&'a RawValue>,
            #[serde(borrow)]
            expires_in: Option<&'a RawValue>,
        }

        if answer.status != 200 {
            return Err(refusal(answer));
        }
        let Ok(granted) = serde_json::from_slice::<Granted<'_>>(answer.body) else {
            return Err(unusable("its answer is not the JSON of a token"));
        };
        let bearer =
            text(granted.token_type).is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"));
        if !bearer {
            return Err(unusable("its token is not a bearer token"));
        }
        let token = granted
            .access_token
            .and_then(lent)
            .filter(|token| visible(token, TOKEN_BYTES_MAX))
            .ok_or_else(|| unusable("its answer holds no token"))?;
        let life = granted
            .expires_in
            .and_then(|value| value.get().trim_matches('"').parse().ok())
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs)
            .ok_or_else(|| unusable("its token does not say how long it lives"))?;
        Ok(Token::new(
            Proof::bearer(token),
            self.id,
            now,
            life,
            &RENEWAL,
        ))
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("email", &self.email)
            .field("kind", &self.kind)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// What a token says.
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

/// Whom the account's own tokens are for: the API by its public name, whatever host it is reached by.
const KMS_AUDIENCE: &str = "https://cloudkms.googleapis.com/";

/// Whom assertions are for, likewise.
const TOKEN_AUDIENCE: &str = "https://oauth2.googleapis.com/token";

/// All that an access token is to be good for, unless it is for another service.
const SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";

/// How long a token is good, in seconds: the longest that Google takes.
const LIFE_S: i64 = 3600;

/// By how much a token claims to be older than it is, in seconds: a clock that is a little ahead does no harm then.
const ISSUED_BEFORE_S: i64 = 10;

/// Tokens are renewed at three quarters of an hour, give or take two and a half minutes. (The endpoint gives the same
/// token again before that.)
const RENEWAL: Renewal = Renewal {
    first: Duration::from_secs(1050),
    last: Duration::from_secs(750),
};

/// Longest access token that is taken, in bytes: Google promises at most 2048, and it travels in a header.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Google said yes, or somebody did in its place, but what came cannot be used.
fn unusable(why: &'static str) -> KmsError {
    KmsError::unusable(KIND, KmsOperation::Token, why)
}

/// The token endpoint, or something on the way, said no.
fn refusal(answer: &HttpAnswer<'_>) -> KmsError {
    #[derive(Default, Deserialize)]
    struct Failure<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
        #[serde(borrow)]
        error_description: Option<&'a RawValue>,
    }

    let failure: Failure<'_> = serde_json::from_slice(answer.body).unwrap_or_default();
    let word = text(failure.error).unwrap_or_default();
    let description = text(failure.error_description).unwrap_or_default();
    let known = WORDS.iter().find(|(known, _)| *known == word);
    let class = match known {
        Some((_, Class::Credentials)) if is_about_time(&description) => Class::Clock,
        Some((_, class)) => *class,
        None => Class::of_status(answer.status),
    };
    Refusal {
        provider: KIND,
        operation: KmsOperation::Token,
        class,
        api_name: api_name(KmsOperation::Token),
        code: match known {
            Some((known, _)) => Some(Clean::ours(known)),
            None => Clean::code(&word).non_empty(),
        },
        message: &description,
        request_id: None,
        retry_after: answer.retry_after(),
    }
    .into_error(answer)
}

/// What the words of the token endpoint mean, whatever the status (RFC 6749, section 5.2, and Google's own). What is not
/// here goes by the status.
const WORDS: &[(&str, Class)] = &[
    ("invalid_grant", Class::Credentials),
    ("invalid_client", Class::Credentials),
    ("unauthorized_client", Class::Credentials),
    ("disabled_client", Class::Credentials),
    ("deleted_client", Class::Credentials),
    ("invalid_scope", Class::Credentials),
    ("access_denied", Class::Credentials),
    ("invalid_request", Class::Defect),
    ("unsupported_grant_type", Class::Defect),
    ("rate_limit_exceeded", Class::Throttled),
    ("internal_failure", Class::Trouble),
    ("server_error", Class::Trouble),
    ("temporarily_unavailable", Class::Trouble),
];

/// Whether an assertion was refused for its time. Only the text tells.
fn is_about_time(description: &str) -> bool {
    ["short-lived token", "reasonable timeframe"]
        .iter()
        .any(|text| description.contains(text))
}

#[cfg(test)]
mod tests;
