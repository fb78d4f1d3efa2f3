//! Who calls Google: access tokens from the token endpoint (RFC 7523), and tokens that service accounts sign themselves.

use http::Method;
use jsonwebtoken::Algorithm;
use serde_json::json;

use super::{Account, Error, Gcp, SERVICE, Status};
use crate::kmssim::{
    exchange::{Failure, Refusal, Reply, Request, Verdict},
    sim::Context,
    token::{self, AssertionClaims, Claims, Unverified},
    world::CredentialState,
};

/// The kind of our access tokens.
const KIND: &str = "gcp";
/// What access tokens begin with.
const TOKEN_PREFIX: &str = "ya29.";
/// Longest life of an assertion, in seconds.
const ASSERTION_LIFE_S_MAX: u64 = 3600;
/// How far ahead of ours an issuer's clock may be, in seconds. Google allows more; a client on this machine needs none.
const CLOCK_LEAD_S_MAX: u64 = 5;
/// Audiences of the token endpoint.
const TOKEN_AUDIENCES: [&str; 2] = [
    "https://oauth2.googleapis.com/token",
    "https://www.googleapis.com/oauth2/v4/token",
];
/// Scopes that are good for Cloud KMS.
const SCOPES: [&str; 2] = [
    "https://www.googleapis.com/auth/cloudkms",
    "https://www.googleapis.com/auth/cloud-platform",
];

/// An error of the token endpoint (RFC 6749, section 5.2).
pub(super) fn error(verdict: Verdict, status: u16, code: &str, description: &str) -> Reply {
    let body = json!({ "error": code, "error_description": description }).to_string();
    Reply::new(verdict, status, "application/json; charset=utf-8", body).because(code, description)
}

fn refused(why: Refusal, code: &str, description: &str) -> Box<Reply> {
    Box::new(error(Verdict::Refused(why), 400, code, description))
}

fn failed(why: Failure, code: &str, description: &str) -> Box<Reply> {
    Box::new(error(Verdict::Failed(why), 400, code, description))
}

/// What is wrong with an assertion, whatever it is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Malformed,
    UnknownAccount,
    Signature,
    Time,
}

impl Gcp {
    /// Finds the account that signed an assertion, and checks signature and times.
    fn issuer(
        &self,
        assertion: &str,
        now_s: u64,
    ) -> Result<(&Account, AssertionClaims), (Trouble, String)> {
        let Some(Unverified { header, claims }) = token::look_into(assertion) else {
            return Err((Trouble::Malformed, String::new()));
        };
        let issuer = claims.iss.clone().unwrap_or_default();
        let Some(account) = self.accounts.get(&issuer) else {
            return Err((Trouble::UnknownAccount, issuer));
        };
        let mut candidates = account
            .keys
            .iter()
            // Without `kid` all keys of the account are tried.
            .filter(|key| header.kid.as_ref().is_none_or(|kid| *kid == key.id));
        if !candidates.any(|key| token::is_signed(assertion, &key.key, &[Algorithm::RS256])) {
            return Err((Trouble::Signature, issuer));
        }
        let times_are_good = matches!((claims.iat, claims.exp), (Some(iat), Some(exp))
            if iat <= now_s + CLOCK_LEAD_S_MAX && exp > now_s && exp > iat && exp - iat <= ASSERTION_LIFE_S_MAX);
        if !times_are_good {
            return Err((Trouble::Time, issuer));
        }
        Ok((account, claims))
    }

    /// The token endpoint.
    pub(super) fn token(&self, request: &Request, cx: &mut Context<'_>) -> Reply {
        self.grant(request, cx).unwrap_or_else(|reply| *reply)
    }

    fn grant(&self, request: &Request, cx: &mut Context<'_>) -> Result<Reply, Box<Reply>> {
        if *request.method() != Method::POST
            || request.media_type() != "application/x-www-form-urlencoded"
        {
            let text = "The token endpoint takes a POST with a form.";
            return Err(refused(Refusal::Protocol, "invalid_request", text));
        }
        let form = request.form();
        if form.get("grant_type") != Some("urn:ietf:params:oauth:grant-type:jwt-bearer") {
            let text = "Invalid grant_type";
            return Err(refused(Refusal::Protocol, "unsupported_grant_type", text));
        }
        let assertion = form.get("assertion").unwrap_or_default();
        let (account, claims) = self.issuer(assertion, cx.now_s).map_err(|(trouble, issuer)| {
            cx.subject.caller = issuer;
            match trouble {
                Trouble::Malformed => {
                    refused(Refusal::Token, "invalid_grant", "Invalid JWT: Failed to parse the token.")
                }
                Trouble::UnknownAccount => {
                    refused(Refusal::Credential, "invalid_grant", "Invalid grant: account not found")
                }
                Trouble::Signature => {
                    refused(Refusal::Credential, "invalid_grant", "Invalid JWT Signature.")
                }
                Trouble::Time => refused(
                    Refusal::Clock,
                    "invalid_grant",
                    "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. \
                     Check your iat and exp values in the JWT claim.",
                ),
            }
        })?;
        cx.subject.caller.clone_from(&account.doc.email);
        let own = format!("https://{}{}", request.authority(), request.path());
        let accepted = [TOKEN_AUDIENCES[0], TOKEN_AUDIENCES[1], own.as_str()];
        if !claims
            .aud
            .as_ref()
            .is_some_and(|aud| aud.is_one_of(&accepted))
        {
            let text = "Invalid JWT: The aud claim does not name this endpoint.";
            return Err(refused(Refusal::Token, "invalid_grant", text));
        }
        match account.doc.state {
            CredentialState::Active => {}
            CredentialState::Disabled => {
                return Err(failed(
                    Failure::Revoked,
                    "disabled_client",
                    "The OAuth client was disabled.",
                ));
            }
            CredentialState::Revoked => {
                let text = "Invalid grant: account not found";
                return Err(failed(Failure::Revoked, "invalid_grant", text));
            }
        }
        if claims.sub.is_some_and(|sub| sub != account.doc.email) && !account.doc.delegation {
            let text = "Client is unauthorized to retrieve access tokens using this method, \
                        or client not authorized for any of the scopes requested.";
            return Err(refused(Refusal::Credential, "unauthorized_client", text));
        }
        let scope = claims.scope.unwrap_or_default();
        if scope.is_empty() {
            let text = "Missing required parameter: scope";
            return Err(refused(Refusal::Parameter, "invalid_scope", text));
        }
        let life_s = cx.lifetimes.gcp_token_s;
        let token = cx.mint.issue(&Claims {
            kind: KIND.to_owned(),
            sub: account.doc.email.clone(),
            iat: cx.now_s,
            exp: cx.now_s + life_s,
            generation: account.generation,
            jti: cx.random.uuid(),
            scope,
            ..Claims::default()
        });
        let body = json!({
            "access_token": format!("{TOKEN_PREFIX}{token}"),
            "expires_in": life_s.saturating_sub(1),
            "token_type": "Bearer",
        });
        Ok(Reply::new(
            Verdict::Answered,
            200,
            "application/json; charset=utf-8",
            body.to_string(),
        ))
    }

    /// The service account that a bearer token stands for.
    pub(super) fn caller(
        &self,
        request: &Request,
        cx: &mut Context<'_>,
    ) -> Result<&Account, Error> {
        let Some(bearer) = request.bearer() else {
            let message = "Request is missing required authentication credential. Expected OAuth 2 access token, \
                           login cookie or other valid authentication credential.";
            return Err(unauthenticated(
                Refusal::Token,
                "CREDENTIALS_MISSING",
                message,
            ));
        };
        match bearer.strip_prefix(TOKEN_PREFIX) {
            Some(token) => self.caller_by_access_token(token, cx),
            None => self.caller_by_own_token(bearer, cx),
        }
    }

    fn caller_by_access_token(&self, token: &str, cx: &mut Context<'_>) -> Result<&Account, Error> {
        let Some(claims) = cx.mint.read(KIND, token) else {
            return Err(unauthenticated(
                Refusal::Token,
                "ACCESS_TOKEN_TYPE_UNSUPPORTED",
                INVALID,
            ));
        };
        cx.subject.caller.clone_from(&claims.sub);
        if claims.exp <= cx.now_s {
            return Err(unauthenticated(
                Refusal::Token,
                "ACCESS_TOKEN_EXPIRED",
                INVALID,
            ));
        }
        let account = self.accounts.get(&claims.sub);
        match account {
            Some(account) if account.generation == claims.generation => {
                check_scope(&claims.scope)?;
                check_state(account)?;
                Ok(account)
            }
            _ => Err(revoked("ACCESS_TOKEN_EXPIRED")),
        }
    }

    fn caller_by_own_token(&self, token: &str, cx: &mut Context<'_>) -> Result<&Account, Error> {
        let (account, claims) = self.issuer(token, cx.now_s).map_err(|(trouble, issuer)| {
            cx.subject.caller = issuer;
            let (why, reason) = match trouble {
                Trouble::Malformed => (Refusal::Token, "ACCESS_TOKEN_TYPE_UNSUPPORTED"),
                Trouble::UnknownAccount | Trouble::Signature => {
                    (Refusal::Credential, "JWT_TOKEN_INVALID")
                }
                Trouble::Time => (Refusal::Clock, "JWT_TOKEN_INVALID"),
            };
            unauthenticated(why, reason, INVALID)
        })?;
        cx.subject.caller.clone_from(&account.doc.email);
        if claims.sub.as_ref() != Some(&account.doc.email) {
            return Err(unauthenticated(
                Refusal::Token,
                "JWT_TOKEN_INVALID",
                INVALID,
            ));
        }
        let audience = format!("https://{SERVICE}/");
        match (&claims.aud, &claims.scope) {
            (Some(aud), None) if aud.is_one_of(&[&audience]) => {}
            (None, Some(scope)) => check_scope(scope)?,
            _ => {
                return Err(unauthenticated(
                    Refusal::Token,
                    "JWT_TOKEN_INVALID",
                    INVALID,
                ));
            }
        }
        check_state(account)?;
        Ok(account)
    }
}

const INVALID: &str = "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or \
                       other valid authentication credential.";

fn unauthenticated(why: Refusal, reason: &str, message: &str) -> Error {
    Error::refused(why, Status::Unauthenticated, message).because(reason)
}

fn revoked(reason: &str) -> Error {
    Error::failed(Failure::Revoked, Status::Unauthenticated, INVALID).because(reason)
}

fn check_scope(scope: &str) -> Result<(), Error> {
    if scope.split(' ').any(|one| SCOPES.contains(&one)) {
        return Ok(());
    }
    let message = "Request had insufficient authentication scopes.";
    Err(
        Error::refused(Refusal::Token, Status::PermissionDenied, message)
            .because("ACCESS_TOKEN_SCOPE_INSUFFICIENT"),
    )
}

fn check_state(account: &Account) -> Result<(), Error> {
    match account.doc.state {
        CredentialState::Active => Ok(()),
        CredentialState::Disabled | CredentialState::Revoked => {
            Err(revoked("ACCOUNT_STATE_INVALID"))
        }
    }
}
