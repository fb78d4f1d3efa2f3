//! AWS KMS (JSON API, protocol awsJson 1.1) and STS (Query API): accounts, keys, roles; what they refuse and how they say it.
//!
//! Texts and codes are those of the KMS and STS API references and of what their front ends are seen to answer.

mod kms;
mod sigv4;
mod sts;

use std::collections::HashMap;

use http::{HeaderName, Method};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::kms::Key;
use super::{
    exchange::{Failure, Operation, Refusal, Reply, Request, Verdict},
    sim::Context,
    world::{AwsAccessKeyDoc, AwsDoc, AwsRoleDoc, CredentialState, ENTRIES_MAX, WorldError},
};
use crate::kmssim::crypto::Seed;

/// How KMS spells the code of an error; all of these are seen in the field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AwsErrorStyle {
    /// `"__type":"DisabledException"`.
    #[default]
    Plain,
    /// `"__type":"com.amazonaws.kms#DisabledException"`.
    Namespaced,
    /// Only in `x-amzn-errortype`, followed by a colon and a URL.
    Header,
}

/// What the front ends say went wrong.
#[derive(Debug)]
pub(super) struct Error {
    verdict: Verdict,
    status: u16,
    code: &'static str,
    message: String,
}

impl Error {
    fn new(verdict: Verdict, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            verdict,
            status: 400,
            code,
            message: message.into(),
        }
    }

    fn refused(why: Refusal, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Verdict::Refused(why), code, message)
    }

    fn failed(why: Failure, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Verdict::Failed(why), code, message)
    }

    fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }
}

/// Which of the two services a request is for: a signature is good for one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Kms,
    Sts,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Kms => "kms",
            Self::Sts => "sts",
        }
    }
}

/// Who signed a request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Caller {
    /// User, or `…:assumed-role/ROLE/SESSION`.
    arn: String,
    /// For a session: the role.
    role: Option<String>,
    account: String,
}

impl Caller {
    /// Whether a policy that lists `principals` (users, roles, accounts) lets this caller in.
    fn is_among(&self, principals: &[String]) -> bool {
        principals.iter().any(|principal| {
            *principal == self.arn
                || Some(principal) == self.role.as_ref()
                || *principal == self.account
                || principal
                    .strip_suffix(":root")
                    .is_some_and(|account| account_of(account) == self.account)
        })
    }
}

/// The account in an ARN, `arn:partition:service:region:ACCOUNT:…`.
fn account_of(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

/// The region in an ARN.
fn region_of(arn: &str) -> &str {
    arn.split(':').nth(3).unwrap_or_default()
}

/// All of AWS.
#[derive(Debug)]
pub(super) struct Aws {
    seed: Seed,
    access_keys: HashMap<String, AwsAccessKeyDoc>,
    roles: HashMap<String, Role>,
    /// By ARN.
    keys: HashMap<String, Key>,
    /// From alias ARN to key ARN.
    aliases: HashMap<String, String>,
    /// From what blobs name a key by to the ARNs of that key, one per region.
    handles: HashMap<[u8; 16], Vec<String>>,
    closed_accounts: Vec<String>,
    sts_disabled_regions: Vec<String>,
    pub(super) error_style: AwsErrorStyle,
}

#[derive(Debug)]
struct Role {
    doc: AwsRoleDoc,
    /// How often its sessions were revoked.
    generation: u32,
}

impl Aws {
    pub(super) fn new(doc: &AwsDoc, seed: &Seed) -> Result<Self, WorldError> {
        let entries = doc.access_keys.len() + doc.roles.len() + doc.keys.len();
        if entries > ENTRIES_MAX {
            return Err(WorldError::new("aws: too many entries"));
        }
        let mut aws = Self {
            seed: seed.clone(),
            access_keys: HashMap::new(),
            roles: HashMap::new(),
            keys: HashMap::new(),
            aliases: HashMap::new(),
            handles: HashMap::new(),
            closed_accounts: doc.closed_accounts.clone(),
            sts_disabled_regions: doc.sts_disabled_regions.clone(),
            error_style: AwsErrorStyle::default(),
        };
        for key in &doc.access_keys {
            let id = &key.access_key_id;
            if key.secret_access_key.len() != sigv4::SECRET_BYTES {
                return Err(WorldError::new(format!(
                    "aws: the secret of {id} has not {} characters",
                    sigv4::SECRET_BYTES
                )));
            }
            if aws.access_keys.insert(id.clone(), key.clone()).is_some() {
                return Err(WorldError::new(format!(
                    "aws: access key {id} is there twice"
                )));
            }
        }
        for role in &doc.roles {
            let made = Role {
                doc: role.clone(),
                generation: 0,
            };
            if aws.roles.insert(role.arn.clone(), made).is_some() {
                return Err(WorldError::new(format!(
                    "aws: role {} is there twice",
                    role.arn
                )));
            }
        }
        for key in &doc.keys {
            let made = Key::new(key, seed)?;
            for alias in &key.aliases {
                let arn = made.alias_arn(alias);
                if aws.aliases.insert(arn, key.arn.clone()).is_some() {
                    return Err(WorldError::new(format!("aws: {alias} names two keys")));
                }
            }
            aws.handles
                .entry(made.handle)
                .or_default()
                .push(key.arn.clone());
            if aws.keys.insert(key.arn.clone(), made).is_some() {
                return Err(WorldError::new(format!(
                    "aws: key {} is there twice",
                    key.arn
                )));
            }
        }
        Ok(aws)
    }

    /// Answers a request that was recognised as one for AWS.
    pub(super) fn answer(&mut self, request: &Request, cx: &mut Context<'_>) -> Reply {
        let target = request.header("x-amz-target").unwrap_or_default();
        if target.is_empty() && request.media_type() == "application/x-www-form-urlencoded" {
            cx.subject.operation = Some(Operation::Token);
            self.answer_sts(request, cx)
        } else {
            cx.subject.operation = Some(kms::operation(target));
            let answered = self.answer_kms(request, target, cx);
            let id = HeaderName::from_static("x-amzn-requestid");
            answered
                .unwrap_or_else(|error| json_error(&error, self.error_style))
                .with(id, &cx.random.uuid())
        }
    }

    fn answer_kms(
        &mut self,
        request: &Request,
        target: &str,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Error> {
        let protocol =
            |message: &str| Error::refused(Refusal::Protocol, "UnknownOperationException", message);
        if *request.method() != Method::POST || request.path() != "/" || !request.query().is_empty()
        {
            return Err(protocol("KMS takes POST to / and nothing else").with_status(404));
        }
        let (caller, region) = self.caller(request, Service::Kms, cx)?;
        if request.media_type() != "application/x-amz-json-1.1" {
            return Err(protocol(
                "the content type is not application/x-amz-json-1.1",
            ));
        }
        let Some(operation) = target.strip_prefix("TrentService.") else {
            return Err(protocol("X-Amz-Target does not begin with TrentService"));
        };
        self.operate(operation, &request.body, &caller, &region, cx)
    }

    fn answer_sts(&mut self, request: &Request, cx: &mut Context<'_>) -> Reply {
        let id = cx.random.uuid();
        let answered = self
            .caller(request, Service::Sts, cx)
            .and_then(|(caller, region)| self.assume_role(request, &caller, &region, &id, cx));
        let name = HeaderName::from_static("x-amzn-requestid");
        answered
            .unwrap_or_else(|error| sts::error(&error, &id))
            .with(name, &id)
    }

    /// Switches a credential: an access key, or all of a role's sessions.
    pub(super) fn set_credential(&mut self, name: &str, state: CredentialState) -> bool {
        if let Some(key) = self.access_keys.get_mut(name) {
            key.state = state;
            return true;
        }
        let found = self.roles.get_mut(name);
        found.map(|role| role.doc.state = state).is_some()
    }

    /// Makes the sessions of a role that were given out so far worthless.
    pub(super) fn revoke_tokens(&mut self, name: &str) -> bool {
        let found = self.roles.get_mut(name);
        found.map(|role| role.generation += 1).is_some()
    }

    pub(super) fn set_account(&mut self, account: &str, closed: bool) -> bool {
        let known = self.keys.keys().any(|arn| account_of(arn) == account);
        self.closed_accounts.retain(|other| other != account);
        if known && closed {
            self.closed_accounts.push(account.to_owned());
        }
        known
    }

    /// The keys that `name` means: an ARN, an id, an alias, an alias ARN.
    pub(super) fn keys_named(&mut self, name: &str) -> impl Iterator<Item = &mut Key> {
        let alias = self.aliases.get(name).cloned();
        self.keys.values_mut().filter(move |key| {
            key.doc.arn == name
                || alias.as_deref() == Some(key.doc.arn.as_str())
                || key.id() == name
                || key.doc.aliases.iter().any(|alias| alias == name)
        })
    }
}

/// An error of KMS.
fn json_error(error: &Error, style: AwsErrorStyle) -> Reply {
    let code = error.code;
    let mut body = match style {
        AwsErrorStyle::Plain => json!({ "__type": code }),
        AwsErrorStyle::Namespaced => json!({ "__type": format!("com.amazonaws.kms#{code}") }),
        AwsErrorStyle::Header => json!({}),
    };
    if let Some(members) = body.as_object_mut()
        && !error.message.is_empty()
    {
        let name = match style {
            AwsErrorStyle::Namespaced => "Message",
            AwsErrorStyle::Plain | AwsErrorStyle::Header => "message",
        };
        members.insert(name.to_owned(), error.message.as_str().into());
    }
    let reply = Reply::new(
        error.verdict,
        error.status,
        "application/x-amz-json-1.1",
        body.to_string(),
    );
    let reply = match style {
        AwsErrorStyle::Header => reply.with(
            HeaderName::from_static("x-amzn-errortype"),
            &format!("{code}:http://internal.amazon.com/coral/com.amazonaws.kms/"),
        ),
        AwsErrorStyle::Plain | AwsErrorStyle::Namespaced => reply,
    };
    reply.because(code, error.message.as_str())
}

/// KMS over its quota.
pub(super) fn throttled(operation: Operation, retry_after_s: Option<f64>) -> Reply {
    let verdict = Verdict::Failed(Failure::Throttled);
    let message =
        "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";
    let reply = if operation == Operation::Token {
        sts::error(
            &Error::new(verdict, "Throttling", "Rate exceeded"),
            "throttled",
        )
    } else {
        let error = Error::new(verdict, "ThrottlingException", message);
        json_error(&error, AwsErrorStyle::Plain)
    };
    match retry_after_s {
        // The newer hint is in milliseconds.
        Some(seconds) => reply.with(
            HeaderName::from_static("x-amz-retry-after"),
            &format!("{:.0}", seconds * 1000.0),
        ),
        None => reply,
    }
}

/// An error by its code, for faults. Codes outside the table become a KMS error of status 400.
pub(super) fn by_code(operation: Operation, code: &str, message: &str) -> Reply {
    let status = match code {
        "KMSInternalException" | "KeyUnavailableException" | "InternalFailure" => 500,
        "DependencyTimeoutException" | "ServiceUnavailable" => 503,
        _ => 400,
    };
    let verdict = Verdict::Answered;
    if operation == Operation::Token {
        let status = if status == 400 { 403 } else { status };
        return sts::error_of(verdict, status, code, message, "fault");
    }
    let body = json!({ "__type": code, "message": message }).to_string();
    Reply::new(verdict, status, "application/x-amz-json-1.1", body).because(code, message)
}

#[cfg(test)]
mod tests;
