//! Google Cloud KMS (REST, v1) and the OAuth token endpoint: projects, service accounts, crypto keys.
//!
//! Shapes are those of the Cloud KMS v1 discovery document; errors are `google.rpc.Status` in JSON, their reasons those of
//! `google/api/error_reason.proto`.

mod kms;
mod token;

use std::collections::HashMap;

use http::{HeaderName, header};
use jsonwebtoken::DecodingKey;
use serde_json::{Value, json};

use self::kms::Key;
use super::{
    crypto::Seed,
    exchange::{Failure, Operation, Refusal, Reply, Request, Verdict},
    sim::Context,
    world::{
        CredentialState, ENTRIES_MAX, GcpDoc, GcpProjectState, GcpServiceAccountDoc, WorldError,
    },
};

/// Host of the API, as in the audience of self-signed tokens and in error details.
const SERVICE: &str = "cloudkms.googleapis.com";

/// Canonical codes (`google/rpc/code.proto`) that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    InvalidArgument,
    FailedPrecondition,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    ResourceExhausted,
}

impl Status {
    fn name_and_http(self) -> (&'static str, u16) {
        match self {
            Self::InvalidArgument => ("INVALID_ARGUMENT", 400),
            Self::FailedPrecondition => ("FAILED_PRECONDITION", 400),
            Self::Unauthenticated => ("UNAUTHENTICATED", 401),
            Self::PermissionDenied => ("PERMISSION_DENIED", 403),
            Self::NotFound => ("NOT_FOUND", 404),
            Self::ResourceExhausted => ("RESOURCE_EXHAUSTED", 429),
        }
    }
}

/// An error of the API.
#[derive(Debug)]
struct Error {
    verdict: Verdict,
    status: Status,
    message: String,
    details: Vec<Value>,
}

impl Error {
    fn new(verdict: Verdict, status: Status, message: impl Into<String>) -> Self {
        Self {
            verdict,
            status,
            message: message.into(),
            details: Vec::new(),
        }
    }

    fn refused(why: Refusal, status: Status, message: impl Into<String>) -> Self {
        Self::new(Verdict::Refused(why), status, message)
    }

    fn failed(why: Failure, status: Status, message: impl Into<String>) -> Self {
        Self::new(Verdict::Failed(why), status, message)
    }

    /// Adds `google.rpc.ErrorInfo`.
    fn because(mut self, reason: &str) -> Self {
        self.details.push(json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": "googleapis.com",
            "metadata": { "service": SERVICE },
        }));
        self
    }

    fn with_detail(mut self, detail: Value) -> Self {
        self.details.push(detail);
        self
    }

    fn reply(self) -> Reply {
        let (name, http) = self.status.name_and_http();
        let reason = self
            .details
            .iter()
            .find_map(|detail| detail.get("reason")?.as_str());
        let code = reason.map_or_else(|| name.to_owned(), |reason| format!("{name} {reason}"));
        let mut error = json!({ "code": http, "message": self.message, "status": name });
        if let Some(members) = error.as_object_mut()
            && !self.details.is_empty()
        {
            members.insert("details".to_owned(), self.details.into());
        }
        let body = json!({ "error": error }).to_string();
        let reply = Reply::new(self.verdict, http, "application/json; charset=UTF-8", body);
        let reply = if self.status == Status::Unauthenticated {
            reply.with(
                header::WWW_AUTHENTICATE,
                "Bearer realm=\"https://accounts.google.com/\"",
            )
        } else {
            reply
        };
        reply.because(code, self.message)
    }
}

/// A service account and its keys.
#[derive(Debug)]
struct Account {
    doc: GcpServiceAccountDoc,
    keys: Vec<PublicKey>,
    /// How often its tokens were revoked.
    generation: u32,
}

/// A public key. Its `Debug` is left out with care: the library prints nothing of use.
struct PublicKey {
    id: String,
    key: DecodingKey,
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublicKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// All of Google Cloud.
#[derive(Debug)]
pub(super) struct Gcp {
    accounts: HashMap<String, Account>,
    projects: HashMap<String, GcpProjectState>,
    /// By resource name.
    keys: HashMap<String, Key>,
}

impl Gcp {
    pub(super) fn new(doc: &GcpDoc, seed: &Seed) -> Result<Self, WorldError> {
        if doc.service_accounts.len() + doc.projects.len() + doc.keys.len() > ENTRIES_MAX {
            return Err(WorldError::new("gcp: too many entries"));
        }
        let mut gcp = Self {
            accounts: HashMap::new(),
            projects: doc
                .projects
                .iter()
                .map(|p| (p.id.clone(), p.state))
                .collect(),
            keys: HashMap::new(),
        };
        // Worlds repeat a key many times, and reading one costs more than all the rest.
        let mut read = HashMap::<&str, DecodingKey>::new();
        for account in &doc.service_accounts {
            let mut keys = Vec::new();
            for key in &account.keys {
                let pem = key.public_key_pem.as_str();
                let known = match read.get(pem) {
                    Some(known) => known.clone(),
                    None => {
                        let made = DecodingKey::from_rsa_pem(pem.as_bytes()).map_err(|error| {
                            WorldError::new(format!(
                                "gcp: key {} of {}: {error}",
                                key.id, account.email
                            ))
                        })?;
                        read.insert(pem, made.clone());
                        made
                    }
                };
                keys.push(PublicKey {
                    id: key.id.clone(),
                    key: known,
                });
            }
            let made = Account {
                doc: account.clone(),
                keys,
                generation: 0,
            };
            if gcp.accounts.insert(account.email.clone(), made).is_some() {
                return Err(WorldError::new(format!(
                    "gcp: {} is there twice",
                    account.email
                )));
            }
        }
        for key in &doc.keys {
            if gcp
                .keys
                .insert(key.name.clone(), Key::new(key, seed)?)
                .is_some()
            {
                return Err(WorldError::new(format!("gcp: {} is there twice", key.name)));
            }
        }
        Ok(gcp)
    }

    /// Answers a request that was recognised as one for Google.
    pub(super) fn answer(&mut self, request: &Request, cx: &mut Context<'_>) -> Reply {
        if is_token_path(request.path()) {
            cx.subject.operation = Some(Operation::Token);
            return self.token(request, cx);
        }
        self.answer_kms(request, cx).unwrap_or_else(|error| *error)
    }

    pub(super) fn set_credential(&mut self, email: &str, state: CredentialState) -> bool {
        let found = self.accounts.get_mut(email);
        found.map(|account| account.doc.state = state).is_some()
    }

    pub(super) fn revoke_tokens(&mut self, email: &str) -> bool {
        let found = self.accounts.get_mut(email);
        found.map(|account| account.generation += 1).is_some()
    }

    pub(super) fn set_project(&mut self, id: &str, state: GcpProjectState) -> bool {
        let known = self.keys.keys().any(|name| project_of(name) == id);
        if known {
            self.projects.insert(id.to_owned(), state);
        }
        known
    }

    /// The keys that `name` means: a resource name, or the last segment of one.
    pub(super) fn keys_named(&mut self, name: &str) -> impl Iterator<Item = &mut Key> {
        self.keys.values_mut().filter(move |key| {
            key.doc.name == name || key.doc.name.rsplit('/').next() == Some(name)
        })
    }
}

/// Whether a path is the token endpoint's, the older one included.
pub(super) fn is_token_path(path: &str) -> bool {
    matches!(path, "/token" | "/oauth2/v4/token")
}

/// The project in a resource name.
fn project_of(name: &str) -> &str {
    name.split('/').nth(1).unwrap_or_default()
}

/// Over the quota, of the API or of the token endpoint.
pub(super) fn throttled(operation: Operation, retry_after_s: Option<f64>) -> Reply {
    let verdict = Verdict::Failed(Failure::Throttled);
    if operation == Operation::Token {
        let reply = token::error(
            verdict,
            429,
            "rate_limit_exceeded",
            "Too many token requests.",
        );
        return match retry_after_s {
            Some(seconds) => reply.with(
                HeaderName::from_static("retry-after"),
                &format!("{:.0}", seconds.ceil()),
            ),
            None => reply,
        };
    }
    let error = Error::new(
        verdict,
        Status::ResourceExhausted,
        "Quota exceeded for quota metric 'Cryptographic requests' and limit 'Cryptographic requests per minute' \
         of service 'cloudkms.googleapis.com'.",
    )
    .because("RATE_LIMIT_EXCEEDED");
    let error = match retry_after_s {
        Some(seconds) => error.with_detail(json!({
            "@type": "type.googleapis.com/google.rpc.RetryInfo",
            "retryDelay": format!("{seconds}s"),
        })),
        None => error,
    };
    error.reply()
}

/// An error by its canonical code or its reason, for faults.
pub(super) fn by_code(operation: Operation, code: &str, message: &str) -> Reply {
    let verdict = Verdict::Answered;
    if operation == Operation::Token {
        return token::error(verdict, 400, code, message);
    }
    let (name, http, reason) = match code {
        "UNAVAILABLE" => ("UNAVAILABLE", 503, None),
        "INTERNAL" => ("INTERNAL", 500, None),
        "DEADLINE_EXCEEDED" => ("DEADLINE_EXCEEDED", 504, None),
        "ABORTED" => ("ABORTED", 409, None),
        "CANCELLED" => ("CANCELLED", 499, None),
        "UNKNOWN" => ("UNKNOWN", 500, None),
        "NOT_FOUND" => ("NOT_FOUND", 404, None),
        "FAILED_PRECONDITION" => ("FAILED_PRECONDITION", 400, None),
        "INVALID_ARGUMENT" => ("INVALID_ARGUMENT", 400, None),
        "RESOURCE_EXHAUSTED" => ("RESOURCE_EXHAUSTED", 429, None),
        "UNAUTHENTICATED" => ("UNAUTHENTICATED", 401, None),
        "PERMISSION_DENIED" => ("PERMISSION_DENIED", 403, None),
        "ACCESS_TOKEN_EXPIRED"
        | "CREDENTIALS_MISSING"
        | "JWT_TOKEN_INVALID"
        | "ACCESS_TOKEN_TYPE_UNSUPPORTED"
        | "ACCOUNT_STATE_INVALID" => ("UNAUTHENTICATED", 401, Some(code)),
        reason => ("PERMISSION_DENIED", 403, Some(reason)),
    };
    let mut error = json!({ "code": http, "message": message, "status": name });
    if let (Some(members), Some(reason)) = (error.as_object_mut(), reason) {
        let info = json!([{
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": "googleapis.com",
            "metadata": { "service": SERVICE },
        }]);
        members.insert("details".to_owned(), info);
    }
    let body = json!({ "error": error }).to_string();
    Reply::new(verdict, http, "application/json; charset=UTF-8", body).because(code, message)
}

#[cfg(test)]
mod tests;
