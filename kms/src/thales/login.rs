//! Tokens of CipherTrust Manager: a user logs in with a password, and goes on with a refresh token.
//!
//! A log-in leaves a refresh token behind at the appliance. So each is made to end by itself, and is used as long as it
//! serves: the password is sent again only when it does not.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use serde_json::value::RawValue;
use tsp_wire::Secret;
use zeroize::Zeroizing;

use super::{KIND, answer};
use crate::{
    CredentialId, Endpoint, HttpAnswer, KmsError, KmsOperation, Retry, Token,
    config::visible,
    json::{Member, lent, object, secret_string},
    token::{Proof, Renewal},
};

/// A user of an appliance.
pub(super) struct User {
    /// All of these are JSON strings with their quotes.
    username_json: String,
    password_json: Secret<String>,
    connection_json: String,
    /// `None` for the root.
    domain_json: Option<String>,
    id: CredentialId,
}

/// What a session remembers of a user's log-ins: how it is being done since the last token.
#[derive(Debug, Default)]
pub(crate) struct Login {
    /// Whose log-ins these are. A session may outlive its configuration.
    user: Option<CredentialId>,
    /// When the token ends that is to be replaced.
    replaces: Option<SystemTime>,
    /// What was tried for that.
    tried: Option<Grant>,
    /// Whether the appliance did not let the user act in its own domain by name.
    without_domain: bool,
}

/// The ways to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    Refresh,
    Password,
}

/// How long a refresh token lives, in minutes, in use and out of use. Each log-in makes one, and by itself it would stay
/// for ever.
const REFRESH_LIFETIME_MIN_JSON: &str = "60";
const REFRESH_REVOKE_UNUSED_MIN_JSON: &str = "15";

/// Tokens are renewed a minute before their end: they live for five.
const RENEWAL: Renewal = Renewal {
    first: Duration::from_secs(60),
    last: Duration::from_secs(60),
};

/// Longest token that is taken, in bytes: real ones stay below 4 KiB, and it travels in a header.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

impl User {
    pub(super) fn new(
        endpoint: &Endpoint,
        username: &str,
        password: &Secret<String>,
        auth_domain: &str,
        connection: &str,
    ) -> Self {
        let json = |text: &str| serde_json::Value::from(text).to_string();
        let domain = Some(auth_domain).filter(|domain| !matches!(*domain, "" | "root"));
        let connection = match connection {
            "" => "local_account",
            named => named,
        };
        let id = CredentialId::of(&[
            b"thales",
            endpoint.identity().as_bytes(),
            username.as_bytes(),
            password.expose().as_bytes(),
            connection.as_bytes(),
            domain.unwrap_or_default().as_bytes(),
        ]);
        Self {
            username_json: json(username),
            password_json: secret_string(password.expose()),
            connection_json: json(connection),
            domain_json: domain.map(json),
            id,
        }
    }

    pub(super) fn id(&self) -> CredentialId {
        self.id
    }

    /// The body of the next request for a token.
    ///
    /// # Errors
    /// `refused`, if that was the last way there was.
    pub(super) fn step(
        &self,
        last: Option<&Token>,
        refused: Option<&KmsError>,
        login: &mut Login,
    ) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        let refresh = last.and_then(|token| token.refresh.as_ref());
        let replaces = last.map(Token::expires_at);
        if login.user != Some(self.id) {
            *login = Login {
                user: Some(self.id),
                ..Login::default()
            };
        }
        if login.replaces != replaces {
            login.replaces = replaces;
            login.tried = None;
        }
        // The word of the endpoint for tokens, not of the one that took or did not take the token.
        let refused = refused.filter(|error| {
            error.operation() == KmsOperation::Token && error.retry() == Retry::AfterNewToken
        });
        let grant = match (login.tried, refused) {
            (None, _) if refresh.is_some() => Grant::Refresh,
            (None | Some(Grant::Refresh), _) | (Some(Grant::Password), None) => Grant::Password,
            (Some(Grant::Password), Some(error)) => {
                // Whether a user is to act in its own domain by name, appliances see in two ways.
                login.without_domain = !login.without_domain && self.domain_json.is_some();
                if !login.without_domain {
                    return Err(error.clone().with_retry(Retry::No));
                }
                Grant::Password
            }
        };
        login.tried = Some(grant);
        Ok(match (grant, refresh) {
            (Grant::Refresh, Some(refresh)) => refresh_body(refresh),
            (Grant::Refresh | Grant::Password, _) => self.password_body(login.without_domain),
        })
    }

    fn password_body(&self, without_domain: bool) -> Zeroizing<Vec<u8>> {
        let mut members = vec![
            ("grant_type", Member::Json("\"password\"")),
            ("username", Member::Json(&self.username_json)),
            ("password", Member::Json(self.password_json.expose())),
            ("connection", Member::Json(&self.connection_json)),
            (
                "refresh_token_lifetime",
                Member::Json(REFRESH_LIFETIME_MIN_JSON),
            ),
            (
                "refresh_token_revoke_unused_in",
                Member::Json(REFRESH_REVOKE_UNUSED_MIN_JSON),
            ),
        ];
        if let Some(domain) = &self.domain_json {
            members.push(("auth_domain", Member::Json(domain)));
            if !without_domain {
                members.push(("domain", Member::Json(domain)));
            }
        }
        object(&members)
    }

    pub(super) fn read(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, KmsError> {
        #[derive(Deserialize)]
        struct Granted<'a> {
            #[serde(borrow)]
            jwt: Option<&'a RawValue>,
            duration: Option<u64>,
            #[serde(borrow)]
            refresh_token: Option<&'a RawValue>,
        }

        let unusable = |why| KmsError::unusable(KIND, KmsOperation::Token, why);
        if answer.status != 200 {
            return Err(answer::refusal(KmsOperation::Token, answer));
        }
        let Ok(granted) = serde_json::from_slice::<Granted<'_>>(answer.body) else {
            return Err(unusable("its answer is not the JSON of a token"));
        };
        let sound = |token: &&str| visible(token, TOKEN_BYTES_MAX);
        let token = granted
            .jwt
            .and_then(lent)
            .filter(sound)
            .ok_or_else(|| unusable("its answer holds no token"))?;
        let life = granted
            .duration
            .filter(|duration| *duration > 0)
            .map(Duration::from_secs)
            .ok_or_else(|| unusable("its token does not say how long it lives"))?;
        let refresh = granted.refresh_token.and_then(lent).filter(sound);
        let token = Token::new(Proof::bearer(token), self.id, now, life, &RENEWAL);
        Ok(token.with_refresh(refresh.map(|refresh| Secret::new(refresh.to_owned()))))
    }
}

fn refresh_body(refresh: &Secret<String>) -> Zeroizing<Vec<u8>> {
    let refresh = secret_string(refresh.expose());
    object(&[
        ("grant_type", Member::Json("\"refresh_token\"")),
        ("refresh_token", Member::Json(refresh.expose())),
    ])
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("username", &self.username_json)
            .field("connection", &self.connection_json)
            .field("domain", &self.domain_json)
            .finish_non_exhaustive()
    }
}
