//! `AssumeRole` of AWS STS, and the sessions that it gives.

use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chrono::{DateTime, Utc};
use quick_xml::escape::escape;

use super::{Aws, Caller, Error, account_of};
use crate::kmssim::{
    crypto::Seed,
    exchange::{Failure, Form, Refusal, Reply, Request, Verdict},
    sim::Context,
    token::{Claims, Mint},
    world::CredentialState,
};

/// XML namespace of STS, from its API model.
const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
/// What a session token begins with, like real ones; the slashes see to it that clients take them.
const TOKEN_PREFIX: &str = "FwoGZXIvYXdzEA//////////wEaD";
/// The kind of our token inside a session token.
const KIND: &str = "aws-session";

/// What a session token says, and the access key that goes with it. Nothing is stored: all of it follows from the token.
pub(super) struct Session {
    pub(super) claims: Claims,
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
}

impl Session {
    /// `None` if the token is not one of ours.
    pub(super) fn read(token: &str, mint: &Mint, seed: &Seed) -> Option<Self> {
        let inner = BASE64.decode(token.strip_prefix(TOKEN_PREFIX)?).ok()?;
        let claims = mint.read(KIND, std::str::from_utf8(&inner).ok()?)?;
        Some(Self::new(claims, seed))
    }

    fn new(claims: Claims, seed: &Seed) -> Self {
        let id = hex::encode_upper(seed.derive(&[b"session-id", claims.jti.as_bytes()]));
        let secret = BASE64.encode(seed.derive(&[b"session-secret", claims.jti.as_bytes()]));
        Self {
            access_key_id: format!("ASIA{}", id.get(..16).unwrap_or_default()),
            secret_access_key: secret
                .get(..super::sigv4::SECRET_BYTES)
                .unwrap_or_default()
                .to_owned(),
            claims,
        }
    }

    fn token(&self, mint: &Mint) -> String {
        format!("{TOKEN_PREFIX}{}", BASE64.encode(mint.issue(&self.claims)))
    }

    pub(super) fn caller(&self) -> Caller {
        Caller {
            arn: session_arn(&self.claims.sub, &self.claims.domain),
            role: Some(self.claims.sub.clone()),
            account: account_of(&self.claims.sub).to_owned(),
        }
    }
}

/// `arn:aws:iam::1:role/path/NAME` becomes `arn:aws:sts::1:assumed-role/NAME/SESSION`.
fn session_arn(role: &str, session: &str) -> String {
    let partition = role.split(':').nth(1).unwrap_or("aws");
    let name = role.rsplit('/').next().unwrap_or_default();
    format!(
        "arn:{partition}:sts::{}:assumed-role/{name}/{session}",
        account_of(role)
    )
}

impl Aws {
    pub(super) fn assume_role(
        &self,
        request: &Request,
        caller: &Caller,
        region: &str,
        request_id: &str,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Error> {
        if self
            .sts_disabled_regions
            .iter()
            .any(|disabled| disabled == region)
        {
            let message = format!(
                "STS is not activated in this region for account:{}.",
                caller.account
            );
            return Err(
                Error::failed(Failure::Account, "RegionDisabledException", message)
                    .with_status(403),
            );
        }
        let form = request.form();
        if form.get("Version") != Some("2011-06-15") || form.get("Action") != Some("AssumeRole") {
            let message = "Could not find that operation for version 2011-06-15";
            return Err(Error::refused(Refusal::Protocol, "InvalidAction", message));
        }
        let asked = Asked::read(&form)?;
        cx.subject.caller = asked.role_arn.to_owned();
        let denied = || {
            let message = format!(
                "User: {} is not authorized to perform: sts:AssumeRole on resource: {}",
                caller.arn, asked.role_arn
            );
            Error::failed(Failure::Permission, "AccessDenied", message).with_status(403)
        };
        let role = self.roles.get(asked.role_arn).ok_or_else(denied)?;
        let trusted = role.doc.state == CredentialState::Active
            && caller.is_among(&role.doc.trusts)
            && (role.doc.external_id.is_none()
                || role.doc.external_id.as_deref() == asked.external_id);
        if !trusted {
            return Err(denied());
        }
        // A session that assumes another role gets an hour at most.
        let max = if caller.role.is_some() {
            role.doc.duration_s_max.min(3600)
        } else {
            role.doc.duration_s_max
        };
        if asked.duration_s > max {
            return Err(validation(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
            ));
        }
        let duration_s = cx.lifetimes.aws_session_s.unwrap_or(asked.duration_s);
        let session = Session::new(
            Claims {
                kind: KIND.to_owned(),
                sub: asked.role_arn.to_owned(),
                iat: cx.now_s,
                exp: cx.now_s + duration_s,
                generation: role.generation,
                jti: cx.random.uuid(),
                domain: asked.session_name.to_owned(),
                ..Claims::default()
            },
            &self.seed,
        );
        let body = assumed(&session, &session.token(cx.mint), request_id);
        Ok(Reply::new(Verdict::Answered, 200, "text/xml", body))
    }
}

fn assumed(session: &Session, token: &str, request_id: &str) -> String {
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(session.claims.exp);
    let end = DateTime::<Utc>::from(end).format("%Y-%m-%dT%H:%M:%SZ");
    let arn = session.caller().arn;
    let id = session.access_key_id.replacen("ASIA", "AROA", 1);
    format!(
        "<AssumeRoleResponse xmlns=\"{NAMESPACE}\">\n  <AssumeRoleResult>\n    <AssumedRoleUser>\
         <AssumedRoleId>{id}:{name}</AssumedRoleId><Arn>{arn}</Arn></AssumedRoleUser>\n    <Credentials>\
         <AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
         <SessionToken>{token}</SessionToken><Expiration>{end}</Expiration></Credentials>\n  </AssumeRoleResult>\n  \
         <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>\n</AssumeRoleResponse>\n",
        name = escape(session.claims.domain.as_str()),
        arn = escape(arn.as_str()),
        key = session.access_key_id,
        secret = escape(session.secret_access_key.as_str()),
        token = escape(token),
    )
}

/// The parameters of `AssumeRole`, within the bounds of its API model.
struct Asked<'a> {
    role_arn: &'a str,
    session_name: &'a str,
    external_id: Option<&'a str>,
    duration_s: u64,
}

impl<'a> Asked<'a> {
    fn read(form: &'a Form) -> Result<Self, Error> {
        let role_arn = form.get("RoleArn").unwrap_or_default();
        if !(20..=2048).contains(&role_arn.len()) {
            return Err(validation(
                "Value at 'roleArn' must have length from 20 to 2048",
            ));
        }
        let session_name = form.get("RoleSessionName").unwrap_or_default();
        if !(2..=64).contains(&session_name.len()) || !is_made_of(session_name, "_+=,.@-") {
            return Err(validation(
                "Value at 'roleSessionName' must match [\\w+=,.@-]{2,64}",
            ));
        }
        let external_id = form.get("ExternalId");
        if external_id
            .is_some_and(|id| !(2..=1224).contains(&id.len()) || !is_made_of(id, "_+=,.@:/-"))
        {
            return Err(validation(
                "Value at 'externalId' must match [\\w+=,.@:\\/-]{2,1224}",
            ));
        }
        let duration_s = match form.get("DurationSeconds") {
            None => 3600,
            Some(text) => match text.parse() {
                Ok(seconds @ 900..=43_200) => seconds,
                _ => {
                    return Err(validation(
                        "Value at 'durationSeconds' must be from 900 to 43200",
                    ));
                }
            },
        };
        Ok(Self {
            role_arn,
            session_name,
            external_id,
            duration_s,
        })
    }
}

fn is_made_of(text: &str, besides: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || besides.contains(c))
}

fn validation(message: &str) -> Error {
    Error::refused(
        Refusal::Parameter,
        "ValidationError",
        format!("1 validation error detected: {message}"),
    )
}

/// An error of STS.
pub(super) fn error(error: &Error, request_id: &str) -> Reply {
    error_of(
        error.verdict,
        error.status,
        error.code,
        &error.message,
        request_id,
    )
}

pub(super) fn error_of(
    verdict: Verdict,
    status: u16,
    code: &str,
    message: &str,
    request_id: &str,
) -> Reply {
    let side = if status < 500 { "Sender" } else { "Receiver" };
    let body = format!(
        "<ErrorResponse xmlns=\"{NAMESPACE}\">\n  <Error>\n    <Type>{side}</Type>\n    <Code>{}</Code>\n    \
         <Message>{}</Message>\n  </Error>\n  <RequestId>{request_id}</RequestId>\n</ErrorResponse>\n",
        escape(code),
        escape(message)
    );
    Reply::new(verdict, status, "text/xml", body).because(code, message)
}
