//! Who signed a request: AWS Signature Version 4, checked by `scratchstack-aws-signature`, a verifier that shares no code
//! with the proxy's signer.

use std::{future::ready, str::FromStr as _, time::SystemTime};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use futures_util::FutureExt as _;
use http::{HeaderName, header};
use scratchstack_aws_signature::{
    GetSigningKeyRequest, GetSigningKeyResponse, KSecretKey, SignatureError, SignatureOptions,
    VecSignedHeaderRequirements, sigv4_validate_request,
};
use tower::{BoxError, service_fn};

use super::{Aws, Caller, Error, Service, account_of, sts};
use crate::kmssim::{
    exchange::{Failure, Refusal, Request, Verdict},
    sim::Context,
    world::CredentialState,
};

/// Characters of a secret access key; the verifier takes no others, and AWS makes no others.
pub(super) const SECRET_BYTES: usize = 40;

/// How far a signature's time may be from KMS's, either way.
const KMS_SKEW: TimeDelta = TimeDelta::minutes(5);

/// How AWS writes times.
const STAMP: &str = "%Y%m%dT%H%M%SZ";

/// What a signature's secret was found to be.
struct Credential {
    secret: String,
    caller: Caller,
    /// The session token that must come with it.
    token: Option<String>,
    expires_s: Option<u64>,
}

impl Aws {
    /// Who signed the request, and for which region.
    pub(super) fn caller(
        &self,
        request: &Request,
        service: Service,
        cx: &mut Context<'_>,
    ) -> Result<(Caller, String), Error> {
        let error = |why, code, message: &str| Err(coded(service, why, code, message));
        let Some(authorization) = request.header(header::AUTHORIZATION) else {
            return error(
                Refusal::Credential,
                Code::Missing,
                "Missing Authentication Token",
            );
        };
        let scope = Scope::find_in(authorization);
        cx.subject.caller = scope.access_key_id.to_owned();
        let region = match region_of_host(request.host()) {
            Some(region) => region.to_owned(),
            // We go by another name here, so the client decides which region we are.
            None => scope.region.to_owned(),
        };
        if service == Service::Kms {
            check_time(request, cx.now)?;
        }
        let credential = self.credential(scope.access_key_id, request, service, cx)?;
        verify(
            request,
            &region,
            service,
            cx.now,
            scope.access_key_id,
            credential.as_ref(),
        )?;
        let Some(credential) = credential else {
            // The verifier has refused it before; this is what it says.
            return error(Refusal::Credential, Code::Unknown, UNKNOWN);
        };
        self.check_token(request, service, &credential, cx.now_s)?;
        if self.closed_accounts.contains(&credential.caller.account) {
            let why = "The account of these credentials was closed.";
            return Err(match service {
                Service::Kms => {
                    Error::failed(Failure::Account, "SubscriptionRequiredException", why)
                }
                Service::Sts => {
                    Error::failed(Failure::Account, "OptInRequired", why).with_status(403)
                }
            });
        }
        cx.subject.caller.clone_from(&credential.caller.arn);
        Ok((credential.caller, region))
    }

    /// The secret behind an access key id: a user's, or a session's that STS gave out. `None` if there is none.
    fn credential(
        &self,
        access_key_id: &str,
        request: &Request,
        service: Service,
        cx: &Context<'_>,
    ) -> Result<Option<Credential>, Error> {
        if let Some(key) = self.access_keys.get(access_key_id) {
            if key.state != CredentialState::Active {
                return Err(revoked(service, Code::Unknown, UNKNOWN));
            }
            let caller = Caller {
                arn: key.arn.clone(),
                role: None,
                account: account_of(&key.arn).to_owned(),
            };
            return Ok(Some(Credential {
                secret: key.secret_access_key.clone(),
                caller,
                token: key.session_token.clone(),
                expires_s: key.expires_unix_s,
            }));
        }
        let Some(token) = request.header(TOKEN) else {
            return Ok(None);
        };
        let Some(session) = sts::Session::read(token, cx.mint, &self.seed) else {
            return Ok(None);
        };
        if session.access_key_id != access_key_id {
            return Ok(None);
        }
        let role = self.roles.get(&session.claims.sub);
        let is_good = role.is_some_and(|role| {
            role.generation == session.claims.generation
                && role.doc.state == CredentialState::Active
        });
        if !is_good {
            return Err(revoked(service, Code::Expired, EXPIRED));
        }
        Ok(Some(Credential {
            caller: session.caller(),
            secret: session.secret_access_key,
            token: Some(token.to_owned()),
            expires_s: Some(session.claims.exp),
        }))
    }

    /// The token that goes with temporary credentials is there, and no other.
    fn check_token(
        &self,
        request: &Request,
        service: Service,
        credential: &Credential,
        now_s: u64,
    ) -> Result<(), Error> {
        if request.header(TOKEN) != credential.token.as_deref() {
            return Err(coded(service, Refusal::Credential, Code::Unknown, UNKNOWN));
        }
        if credential.expires_s.is_some_and(|end| end <= now_s) {
            return Err(coded(service, Refusal::Token, Code::Expired, EXPIRED));
        }
        Ok(())
    }
}

const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const UNKNOWN: &str = "The security token included in the request is invalid.";
const EXPIRED: &str = "The security token included in the request is expired";

/// Codes that both services have, under different names.
#[derive(Clone, Copy, Debug)]
enum Code {
    Missing,
    Unknown,
    Expired,
    Incomplete,
    Signature,
    Internal,
}

fn coded(service: Service, why: Refusal, code: Code, message: &str) -> Error {
    let (name, status) = match (service, code) {
        (Service::Kms, Code::Missing) => ("MissingAuthenticationTokenException", 400),
        (Service::Kms, Code::Unknown) => ("UnrecognizedClientException", 400),
        (Service::Kms, Code::Expired) => ("ExpiredTokenException", 400),
        (Service::Kms, Code::Incomplete) => ("IncompleteSignatureException", 400),
        (Service::Kms, Code::Signature) => ("InvalidSignatureException", 400),
        (Service::Kms, Code::Internal) => ("KMSInternalException", 500),
        (Service::Sts, Code::Missing) => ("MissingAuthenticationToken", 403),
        (Service::Sts, Code::Unknown) => ("InvalidClientTokenId", 403),
        (Service::Sts, Code::Expired) => ("ExpiredToken", 403),
        (Service::Sts, Code::Incomplete) => ("IncompleteSignature", 400),
        (Service::Sts, Code::Signature) => ("SignatureDoesNotMatch", 403),
        (Service::Sts, Code::Internal) => ("InternalFailure", 500),
    };
    Error::refused(why, name, message).with_status(status)
}

/// As [`coded`], for what the control API did to the credential.
fn revoked(service: Service, code: Code, message: &str) -> Error {
    let mut error = coded(service, Refusal::Credential, code, message);
    error.verdict = Verdict::Failed(Failure::Revoked);
    error
}

/// The parts of a credential scope that say whom to ask for the key. The verifier reads it again, strictly.
struct Scope<'a> {
    access_key_id: &'a str,
    region: &'a str,
}

impl<'a> Scope<'a> {
    fn find_in(authorization: &'a str) -> Self {
        let scope = authorization
            .split_once("Credential=")
            .map_or("", |(_, rest)| rest)
            .split([',', ' '])
            .next()
            .unwrap_or_default();
        let mut parts = scope.split('/');
        Self {
            access_key_id: parts.next().unwrap_or_default(),
            region: parts.nth(1).unwrap_or_default(),
        }
    }
}

/// The region that a host of KMS or STS serves, from the endpoint rules of the AWS SDKs; `None` for other hosts.
fn region_of_host(host: &str) -> Option<&str> {
    let mut labels = host.split('.');
    labels.find(|label| matches!(*label, "kms" | "kms-fips" | "sts"))?;
    let region = labels.next()?;
    if region == "amazonaws" {
        // The old global endpoint.
        return Some("us-east-1");
    }
    region.contains('-').then_some(region)
}

/// KMS compares the signature's time with its own before anything else.
fn check_time(request: &Request, now: SystemTime) -> Result<(), Error> {
    let stamp = request.header("x-amz-date").unwrap_or_default();
    let Ok(time) = NaiveDateTime::parse_from_str(stamp, STAMP) else {
        // What is wrong with it, the verifier says.
        return Ok(());
    };
    let (time, now) = (time.and_utc(), DateTime::<Utc>::from(now));
    let message = if time < now - KMS_SKEW {
        let bound = now - KMS_SKEW;
        format!(
            "Signature expired: {stamp} is now earlier than {} ({} - 5 min.)",
            bound.format(STAMP),
            now.format(STAMP)
        )
    } else if time > now + KMS_SKEW {
        let bound = now + KMS_SKEW;
        format!(
            "Signature not yet current: {stamp} is still later than {} ({} + 5 min.)",
            bound.format(STAMP),
            now.format(STAMP)
        )
    } else {
        return Ok(());
    };
    Err(coded(
        Service::Kms,
        Refusal::Clock,
        Code::Signature,
        &message,
    ))
}

/// Computes the signature again.
fn verify(
    request: &Request,
    region: &str,
    service: Service,
    now: SystemTime,
    access_key_id: &str,
    credential: Option<&Credential>,
) -> Result<(), Error> {
    let secret = credential.and_then(|known| KSecretKey::from_str(&known.secret).ok());
    let expected = access_key_id.to_owned();
    // A service, because the helper of the crate for this takes a function that can be called once only.
    let mut keys = service_fn(move |asked: GetSigningKeyRequest| {
        ready(match secret {
            Some(secret) if asked.access_key() == expected => {
                let key = secret.to_ksigning(asked.request_date(), asked.region(), asked.service());
                GetSigningKeyResponse::builder()
                    .signing_key(key)
                    .build()
                    .map_err(BoxError::from)
            }
            _ => Err(BoxError::from(SignatureError::InvalidClientTokenId(
                UNKNOWN.to_owned(),
            ))),
        })
    });
    let mut signed = http::Request::new(request.body.clone());
    *signed.method_mut() = request.parts.method.clone();
    *signed.uri_mut() = request.parts.uri.clone();
    *signed.headers_mut() = request.parts.headers.clone();
    let required = VecSignedHeaderRequirements::new::<str, str, str>(
        &["host"],
        &["content-type"],
        &["x-amz-"],
    );
    let checked = sigv4_validate_request(
        signed,
        region,
        service.name(),
        &mut keys,
        DateTime::<Utc>::from(now),
        &required,
        SignatureOptions::default(),
    )
    .now_or_never();
    match checked {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(translated(service, SignatureError::from(error))),
        None => Err(coded(
            service,
            Refusal::Protocol,
            Code::Internal,
            "the check did not end",
        )),
    }
}

fn translated(service: Service, error: SignatureError) -> Error {
    let message = error.to_string();
    let (why, code) = match error {
        SignatureError::ExpiredToken(_) => (Refusal::Token, Code::Expired),
        SignatureError::InvalidClientTokenId(_) => (Refusal::Credential, Code::Unknown),
        SignatureError::MissingAuthenticationToken(_) => (Refusal::Credential, Code::Missing),
        SignatureError::SignatureDoesNotMatch(_) if message.starts_with("Signature ") => {
            (Refusal::Clock, Code::Signature)
        }
        SignatureError::SignatureDoesNotMatch(_) => (Refusal::Credential, Code::Signature),
        SignatureError::IO(_) | SignatureError::InternalServiceError(_) => {
            (Refusal::Protocol, Code::Internal)
        }
        // All the rest that it knows is about the request's form; the enum may grow.
        SignatureError::InvalidBodyEncoding(_)
        | SignatureError::InvalidContentType(_)
        | SignatureError::InvalidRequestMethod(_)
        | SignatureError::IncompleteSignature(_)
        | SignatureError::InvalidURIPath(_)
        | SignatureError::MalformedQueryString(_)
        | _ => (Refusal::Protocol, Code::Incomplete),
    };
    coded(service, why, code, &message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_tells_its_region_in_every_partition() {
        for (host, region) in [
            ("kms.us-east-1.amazonaws.com", Some("us-east-1")),
            (
                "kms-fips.us-gov-west-1.amazonaws.com",
                Some("us-gov-west-1"),
            ),
            ("kms.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("kms.eu-central-1.api.aws", Some("eu-central-1")),
            (
                "vpce-1a-b.kms.ap-southeast-2.vpce.amazonaws.com",
                Some("ap-southeast-2"),
            ),
            ("sts.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("sts.amazonaws.com", Some("us-east-1")),
            ("127.0.0.1", None),
            ("localhost", None),
            ("", None),
        ] {
            assert_eq!(region_of_host(host), region, "{host}");
        }
    }
}
