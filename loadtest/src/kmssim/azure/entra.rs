//! Entra: client credentials for tokens, by secret or by signed assertion.

use std::collections::{HashMap, HashSet, VecDeque};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use chrono::{DateTime, Utc};
use http::Method;
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::{Azure, CLOUDS};
use crate::kmssim::{
    exchange::{Failure, Operation, Refusal, Reply, Request, Verdict},
    sim::Context,
    token::{self, Claims},
    world::{AzureAppDoc, CredentialState, WorldError},
};

/// The kind of our access tokens.
pub(super) const KIND: &str = "azure";
/// The only type of assertion (RFC 7523, section 2.2).
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// How far an assertion's times may be off, in seconds.
const CLOCK_SKEW_S: u64 = 300;
/// Longest life of an assertion, in seconds: a day, as Entra documents.
const ASSERTION_LIFE_S_MAX: u64 = 86_400;
/// `jti`s that are remembered; the oldest go first.
const REPLAYS_MAX: usize = 100_000;

/// An application, with what its assertions are checked with.
#[derive(Debug)]
pub(super) struct App {
    pub(super) doc: AzureAppDoc,
    certificates: Vec<Certificate>,
    /// How often its tokens were revoked.
    pub(super) generation: u32,
}

/// A certificate: how assertions name it, and its public key.
#[derive(Clone)]
struct Certificate {
    x5t: String,
    x5t_s256: String,
    key: DecodingKey,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("x5t", &self.x5t)
            .finish_non_exhaustive()
    }
}

/// Certificates that were read already: worlds repeat one many times.
#[derive(Debug, Default)]
pub(super) struct Certificates(HashMap<String, Certificate>);

impl Certificates {
    fn read(&mut self, pem: &str) -> Result<Certificate, String> {
        if let Some(known) = self.0.get(pem) {
            return Ok(known.clone());
        }
        let der =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
        let parsed = webpki::EndEntityCert::try_from(&der).map_err(|error| error.to_string())?;
        let sha1 = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &der);
        let sha256 = digest::digest(&digest::SHA256, &der);
        let made = Certificate {
            x5t: BASE64URL.encode(sha1),
            x5t_s256: BASE64URL.encode(sha256),
            key: DecodingKey::from_rsa_der(&parsed.subject_public_key_info()),
        };
        self.0.insert(pem.to_owned(), made.clone());
        Ok(made)
    }
}

impl App {
    pub(super) fn new(
        doc: &AzureAppDoc,
        certificates: &mut Certificates,
    ) -> Result<Self, WorldError> {
        let read = |pem: &String| {
            certificates.read(pem).map_err(|why| {
                WorldError::new(format!("azure: certificate of {}: {why}", doc.client_id))
            })
        };
        Ok(Self {
            doc: doc.clone(),
            certificates: doc
                .certificates
                .iter()
                .map(read)
                .collect::<Result<_, _>>()?,
            generation: 0,
        })
    }
}

/// `jti`s that were used already.
#[derive(Debug, Default)]
pub(super) struct Replays {
    seen: HashSet<String>,
    order: VecDeque<String>,
}

impl Replays {
    /// Remembers an id; `false` if it was known.
    fn is_new(&mut self, id: String) -> bool {
        if !self.seen.insert(id.clone()) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > REPLAYS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}

/// A path of Entra's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Path<'a> {
    Token { tenant: &'a str },
    OpenIdConfiguration { tenant: &'a str },
    InstanceDiscovery,
}

impl<'a> Path<'a> {
    pub(in crate::kmssim) fn parse(path: &'a str) -> Option<Self> {
        if path == "/common/discovery/instance" {
            return Some(Self::InstanceDiscovery);
        }
        let (tenant, rest) = path.strip_prefix('/')?.split_once('/')?;
        match rest {
            "oauth2/v2.0/token" => Some(Self::Token { tenant }),
            "v2.0/.well-known/openid-configuration" => Some(Self::OpenIdConfiguration { tenant }),
            _ => None,
        }
    }
}

/// An error of the token endpoint: OAuth's members, and Entra's own.
pub(super) fn error(
    verdict: Verdict,
    status: u16,
    error: &str,
    aadsts: u32,
    description: &str,
) -> Reply {
    let description = format!("AADSTS{aadsts}: {description}");
    let body = json!({
        "error": error,
        "error_description": description,
        "error_codes": [aadsts],
        "timestamp": "2026-01-15 10:15:30Z",
        "trace_id": "11111111-2222-4333-8444-555555555555",
        "correlation_id": "66666666-7777-4888-9999-000000000000",
        "error_uri": format!("https://login.microsoftonline.com/error?code={aadsts}"),
    });
    Reply::new(
        verdict,
        status,
        "application/json; charset=utf-8",
        body.to_string(),
    )
    .because(format!("AADSTS{aadsts}"), description)
}

fn refused(why: Refusal, status: u16, code: &str, aadsts: u32, description: &str) -> Box<Reply> {
    Box::new(error(
        Verdict::Refused(why),
        status,
        code,
        aadsts,
        description,
    ))
}

fn failed(status: u16, code: &str, aadsts: u32, description: &str) -> Box<Reply> {
    Box::new(error(
        Verdict::Failed(Failure::Revoked),
        status,
        code,
        aadsts,
        description,
    ))
}

impl Azure {
    pub(super) fn answer_entra(
        &mut self,
        path: &Path<'_>,
        request: &Request,
        cx: &mut Context<'_>,
    ) -> Reply {
        match path {
            Path::Token { tenant } => {
                cx.subject.operation = Some(Operation::Token);
                self.grant(tenant, request, cx)
                    .unwrap_or_else(|reply| *reply)
            }
            Path::OpenIdConfiguration { tenant } => {
                cx.subject.operation = Some(Operation::Discovery);
                let base = format!("https://{}/{tenant}", request.authority());
                found(&json!({
                    "token_endpoint": format!("{base}/oauth2/v2.0/token"),
                    "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
                    "device_authorization_endpoint": format!("{base}/oauth2/v2.0/devicecode"),
                    "jwks_uri": format!("{base}/discovery/v2.0/keys"),
                    "issuer": format!("{base}/v2.0"),
                    "token_endpoint_auth_methods_supported":
                        ["client_secret_post", "private_key_jwt", "client_secret_basic"],
                    "response_types_supported": ["code", "id_token"],
                    "subject_types_supported": ["pairwise"],
                    "scopes_supported": ["openid", "profile", "email", "offline_access"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                    "tenant_region_scope": "EU",
                    "cloud_instance_name": "microsoftonline.com",
                }))
            }
            Path::InstanceDiscovery => {
                cx.subject.operation = Some(Operation::Discovery);
                let host = request.authority();
                let authorities: Vec<_> = CLOUDS.iter().map(|cloud| cloud.authority).collect();
                let metadata: Vec<_> = authorities
                    .iter()
                    .copied()
                    .chain(std::iter::once(host))
                    .map(|name| json!({ "preferred_network": name, "preferred_cache": name, "aliases": [name] }))
                    .collect();
                found(&json!({
                    "tenant_discovery_endpoint":
                        format!("https://{host}/common/v2.0/.well-known/openid-configuration"),
                    "api-version": "1.1",
                    "metadata": metadata,
                }))
            }
        }
    }

    fn grant(
        &mut self,
        tenant: &str,
        request: &Request,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Box<Reply>> {
        if *request.method() != Method::POST
            || request.media_type() != "application/x-www-form-urlencoded"
        {
            let text = "The endpoint only accepts POST requests with a form.";
            return Err(refused(
                Refusal::Protocol,
                400,
                "invalid_request",
                900_561,
                text,
            ));
        }
        let form = request.form();
        let client_id = form.get("client_id").unwrap_or_default();
        cx.subject.caller = client_id.to_owned();
        if form.get("grant_type") != Some("client_credentials") {
            let text = "The app requested an unsupported grant type.";
            return Err(refused(
                Refusal::Protocol,
                400,
                "unsupported_grant_type",
                70_003,
                text,
            ));
        }
        let tenant = tenant.to_lowercase();
        if !self.apps.keys().any(|(known, _)| *known == tenant) {
            let text = format!(
                "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID."
            );
            return Err(refused(
                Refusal::Credential,
                400,
                "invalid_request",
                90_002,
                &text,
            ));
        }
        let id = (tenant, client_id.to_lowercase());
        let Some(app) = self.apps.get(&id) else {
            let text = format!(
                "Application with identifier '{client_id}' was not found in the directory."
            );
            return Err(refused(
                Refusal::Credential,
                400,
                "unauthorized_client",
                700_016,
                &text,
            ));
        };
        match app.doc.state {
            CredentialState::Active => {}
            CredentialState::Disabled => {
                let text = format!("Application '{client_id}' is disabled.");
                return Err(failed(401, "unauthorized_client", 7_000_112, &text));
            }
            CredentialState::Revoked => {
                let text = format!(
                    "Application with identifier '{client_id}' was not found in the directory."
                );
                return Err(failed(400, "unauthorized_client", 700_016, &text));
            }
        }
        match (form.get("client_secret"), form.get("client_assertion")) {
            (Some(secret), None) => check_secret(app, secret, cx.now_s)?,
            (None, Some(assertion)) => {
                if form.get("client_assertion_type") != Some(ASSERTION_TYPE) {
                    let text = "The client_assertion_type is not supported.";
                    return Err(refused(
                        Refusal::Protocol,
                        400,
                        "invalid_request",
                        900_144,
                        text,
                    ));
                }
                let jti = check_assertion(app, assertion, request, cx.now_s)?;
                if !self.replays.is_new(jti) && self.refuse_replays {
                    let text = "The client assertion was used before (jti).";
                    return Err(refused(
                        Refusal::Token,
                        401,
                        "invalid_client",
                        700_027,
                        text,
                    ));
                }
            }
            _ => {
                let text =
                    "The request body must contain either client_assertion or client_secret.";
                return Err(refused(
                    Refusal::Protocol,
                    401,
                    "invalid_client",
                    7_000_216,
                    text,
                ));
            }
        }
        let resource = check_scope(form.get("scope").unwrap_or_default())?;
        let Some(app) = self.apps.get(&id) else {
            return Err(failed(400, "unauthorized_client", 700_016, "gone"));
        };
        let life_s = cx.lifetimes.azure_token_s;
        let access_token = cx.mint.issue(&Claims {
            kind: KIND.to_owned(),
            sub: app.doc.client_id.clone(),
            iat: cx.now_s,
            exp: cx.now_s + life_s,
            generation: app.generation,
            jti: cx.random.uuid(),
            aud: format!("https://{resource}"),
            tid: id.0,
            claims: form.get("claims").unwrap_or_default().to_owned(),
            ..Claims::default()
        });
        let mut body = json!({
            "token_type": "Bearer",
            "expires_in": life_s.saturating_sub(1),
            "ext_expires_in": life_s.saturating_sub(1),
            "access_token": access_token,
        });
        if let (Some(members), Some(refresh_in)) =
            (body.as_object_mut(), cx.lifetimes.azure_refresh_in_s)
        {
            members.insert("refresh_in".to_owned(), refresh_in.into());
        }
        Ok(found(&body))
    }
}

fn found(body: &Value) -> Reply {
    Reply::new(
        Verdict::Answered,
        200,
        "application/json; charset=utf-8",
        body.to_string(),
    )
}

/// Scopes are a resource and `/.default`.
fn check_scope(scope: &str) -> Result<&'static str, Box<Reply>> {
    let Some(resource) = scope.strip_suffix("/.default") else {
        let text = format!(
            "The provided request must include a 'scope' that ends in /.default, not {scope:?}."
        );
        return Err(refused(
            Refusal::Parameter,
            400,
            "invalid_scope",
            70_011,
            &text,
        ));
    };
    CLOUDS
        .iter()
        .flat_map(|cloud| [cloud.vault, cloud.hsm])
        .find(|known| resource.strip_prefix("https://") == Some(*known))
        .ok_or_else(|| {
            let text =
                format!("The resource principal named {resource} was not found in the tenant.");
            refused(Refusal::Parameter, 400, "invalid_resource", 500_011, &text)
        })
}

fn check_secret(app: &App, secret: &str, now_s: u64) -> Result<(), Box<Reply>> {
    let Some(known) = app.doc.secrets.iter().find(|known| known.value == secret) else {
        let text = format!(
            "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, \
             not the client secret ID, for a secret added to app '{}'.",
            app.doc.client_id
        );
        return Err(refused(
            Refusal::Credential,
            401,
            "invalid_client",
            7_000_215,
            &text,
        ));
    };
    if known.expires_unix_s.is_some_and(|end| end <= now_s) {
        let text = format!(
            "The provided client secret keys for app '{}' are expired.",
            app.doc.client_id
        );
        return Err(failed(401, "invalid_client", 7_000_222, &text));
    }
    Ok(())
}

/// The assertion is signed with a certificate of the application, is meant for this endpoint, and in its time.
/// Gives its `jti`.
fn check_assertion(
    app: &App,
    assertion: &str,
    request: &Request,
    now_s: u64,
) -> Result<String, Box<Reply>> {
    let invalid = |why, aadsts, text: &str| refused(why, 401, "invalid_client", aadsts, text);
    let Some(found) = token::look_into(assertion) else {
        return Err(invalid(
            Refusal::Token,
            50_027,
            "JWT token is invalid or malformed.",
        ));
    };
    // MSAL pads them, against RFC 7515; both are taken.
    let names = |thumbprint: &Option<String>, known: &str| {
        thumbprint
            .as_deref()
            .is_some_and(|given| given.trim_end_matches('=') == known)
    };
    let certificate = app.certificates.iter().find(|known| {
        names(&found.header.x5t_s256, &known.x5t_s256) || names(&found.header.x5t, &known.x5t)
    });
    let Some(certificate) = certificate else {
        let text = "The certificate with identifier used to sign the client assertion is not registered on application.";
        return Err(invalid(Refusal::Credential, 700_027, text));
    };
    if !token::is_signed(
        assertion,
        &certificate.key,
        &[Algorithm::RS256, Algorithm::PS256],
    ) {
        let text = "Client assertion failed signature validation.";
        return Err(invalid(Refusal::Credential, 700_027, text));
    }
    let claims = found.claims;
    let client_id = app.doc.client_id.as_str();
    if claims.iss.as_deref() != Some(client_id) || claims.sub.as_deref() != Some(client_id) {
        let text = "Client assertion's issuer and subject must be the client id.";
        return Err(invalid(Refusal::Token, 700_021, text));
    }
    let tenant = &app.doc.tenant;
    let audiences: Vec<_> = CLOUDS
        .iter()
        .map(|cloud| format!("https://{}/{tenant}/oauth2/v2.0/token", cloud.authority))
        .chain(std::iter::once(format!(
            "https://{}{}",
            request.authority(),
            request.path()
        )))
        .collect();
    let accepted: Vec<_> = audiences.iter().map(String::as_str).collect();
    if !claims.aud.is_some_and(|aud| aud.is_one_of(&accepted)) {
        let text = "Client assertion audience claim does not match the token endpoint.";
        return Err(invalid(Refusal::Token, 50_013, text));
    }
    let begins = claims.nbf.or(claims.iat);
    let in_time = claims.exp.is_some_and(|exp| {
        exp.saturating_add(CLOCK_SKEW_S) > now_s
            && exp <= now_s.saturating_add(ASSERTION_LIFE_S_MAX)
            && begins.is_none_or(|begins| begins <= now_s + CLOCK_SKEW_S)
    });
    if !in_time {
        let now = DateTime::<Utc>::from_timestamp(i64::try_from(now_s).unwrap_or_default(), 0)
            .unwrap_or_default();
        let text = format!(
            "Client assertion is not within its valid time range. Current time: {}.",
            now.format("%Y-%m-%dT%H:%M:%SZ")
        );
        return Err(invalid(Refusal::Clock, 700_024, &text));
    }
    match claims.jti {
        Some(jti) if !jti.is_empty() => Ok(format!("{client_id} {jti}")),
        _ => Err(invalid(
            Refusal::Token,
            50_027,
            "Client assertion lacks a jti.",
        )),
    }
}
