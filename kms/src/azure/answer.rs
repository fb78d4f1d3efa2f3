//! What a vault answers, and what its errors mean (Azure Key Vault REST API, "Authentication, requests and responses" and
//! "REST API error codes").
//!
//! The status decides, and the codes refine it. A 401 comes with a challenge (RFC 9110, section 11.6.1) that names the
//! directory which the vault trusts: it is read to tell a wrong configuration, and is never followed.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_PAD_INDIFFERENT as BASE64, URL_SAFE_NO_PAD as BASE64URL},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tsp_wire::Dek;

use super::{AzureKms, Blob, KIND, api_name, is_version};
use crate::{
    Blame, HttpAnswer, KmsError, KmsErrorKind, KmsOperation,
    class::{Class, Refusal},
    json::{lent, text},
    text::{Clean, is_uuid},
};

/// The answer to a wrap or an unwrap.
#[derive(Deserialize)]
struct Done<'a> {
    #[serde(borrow)]
    kid: Option<&'a RawValue>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
}

impl AzureKms {
    pub(super) fn read_wrapped(&self, answer: &HttpAnswer<'_>) -> Result<Blob, KmsError> {
        let unusable = |why| unusable(KmsOperation::Wrap, answer, why);
        if answer.status != 200 {
            return Err(self.refusal(KmsOperation::Wrap, answer));
        }
        let Ok(Done { kid, value }) = serde_json::from_slice(answer.body) else {
            return Err(unusable("its answer is not the JSON of a wrapped key"));
        };
        let Some(value) = value.and_then(lent) else {
            return Err(unusable("its answer holds no value"));
        };
        // Padding, white space and the other alphabet are refused: one spelling per value.
        let wrapped = BASE64URL
            .decode(value)
            .map_err(|_| unusable("its value is not base64url without padding"))?;
        if !self.algorithm.wraps_to(wrapped.len()) {
            return Err(unusable(if self.algorithm.is_rsa() {
                "its value does not have the 256, 384 or 512 bytes of an RSA key"
            } else {
                "its value does not have the 40 bytes of a key under AES key wrap"
            }));
        }
        let kid = text(kid).ok_or_else(|| unusable("its answer names no key"))?;
        let version = self.version(&kid).map_err(unusable)?.to_owned();
        Ok(Blob { wrapped, version })
    }

    /// The version that a key's id names, if it is the id of our key.
    fn version<'a>(&self, kid: &'a str) -> Result<&'a str, &'static str> {
        const OTHER: &str = "its answer names a key that is not the configured one";
        let (host, path) = kid
            .strip_prefix("https://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or(OTHER)?;
        let host = host.strip_suffix(":443").unwrap_or(host);
        let mut parts = path.split('/');
        let (keys, name) = (parts.next(), parts.next().unwrap_or_default());
        // Names of keys may be configured in any case.
        let ours = (host.eq_ignore_ascii_case(&self.vault_host)
            || host.eq_ignore_ascii_case(&self.host))
            && keys == Some("keys")
            && name.eq_ignore_ascii_case(&self.key_name);
        if !ours {
            return Err(OTHER);
        }
        match (parts.next(), parts.next()) {
            (Some(version), None) if is_version(version) => Ok(version),
            (None | Some(""), None) => {
                Err("its answer does not say which version of the key it used")
            }
            _ => Err(OTHER),
        }
    }

    pub(super) fn read_unwrapped(&self, answer: &HttpAnswer<'_>) -> Result<Dek, KmsError> {
        let unusable = |why| unusable(KmsOperation::Unwrap, answer, why);
        if answer.status != 200 {
            return Err(self.refusal(KmsOperation::Unwrap, answer));
        }
        let Ok(Done { value, .. }) = serde_json::from_slice(answer.body) else {
            return Err(unusable("its answer is not the JSON of an unwrapped key"));
        };
        let Some(value) = value.and_then(lent) else {
            return Err(unusable("its answer holds no value"));
        };
        Dek::try_fill_with(|dek| {
            // 43 digits are 32 bytes; so many with padding or white space are not.
            match BASE64URL.decode_slice(value, dek) {
                Ok(Dek::LEN) if value.len() == 43 => Ok(()),
                Ok(_) | Err(base64::DecodeSliceError::OutputSliceTooSmall) => {
                    Err(KmsError::NOT_A_KEY)
                }
                Err(base64::DecodeSliceError::DecodeError(_)) => {
                    Err("its value is not base64url without padding")
                }
            }
        })
        .map_err(unusable)
    }

    /// The vault, or something on the way, said no.
    fn refusal(&self, operation: KmsOperation, answer: &HttpAnswer<'_>) -> KmsError {
        let said = Said::read(answer.body);
        let challenge = Challenge::read(answer).filter(|_| answer.status == 401);
        let request_id = answer.header(REQUEST_ID);
        if let Some(sentence) = challenge.as_ref().and_then(|challenge| {
            let tenant = challenge.tenant?;
            let other = !tenant.eq_ignore_ascii_case(&self.entra.tenant);
            other
                .then(|| {
                    Clean::naming(
                        "the vault belongs to tenant ",
                        tenant,
                        ", and not to the configured tenantGuid",
                    )
                })
                .flatten()
        }) {
            let kind = KmsErrorKind::Configuration;
            return KmsError::new(kind, KIND, operation, sentence)
                .with_blame(Blame::Credentials)
                .with_code(said.shown_code())
                .with_request_id(request_id.and_then(Clean::request_id));
        }
        let error = Refusal {
            provider: KIND,
            operation,
            class: said.class(operation, answer.status),
            api_name: api_name(operation),
            code: said.shown_code(),
            message: &said.message,
            request_id,
            retry_after: answer.retry_after(),
        }
        .into_error(answer);
        match challenge.and_then(|challenge| challenge.claims) {
            Some(claims) => error.with_claims(claims),
            None => error,
        }
    }
}

/// The vault said yes, but what it gave cannot be used.
fn unusable(operation: KmsOperation, answer: &HttpAnswer<'_>, why: &'static str) -> KmsError {
    KmsError::unusable(KIND, operation, why)
        .with_request_id(answer.header(REQUEST_ID).and_then(Clean::request_id))
}

const REQUEST_ID: &str = "x-ms-request-id";

/// What an error answer says, before any of it is believed.
#[derive(Debug, Default)]
struct Said {
    code: String,
    /// The code inside, which is more exact.
    inner: String,
    message: String,
}

impl Said {
    /// Members of unexpected types count as absent, and so does everything that is not JSON.
    fn read(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Failure<'a> {
            #[serde(borrow)]
            error: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Error<'a> {
            #[serde(borrow)]
            code: Option<&'a RawValue>,
            #[serde(borrow)]
            message: Option<&'a RawValue>,
            #[serde(borrow)]
            innererror: Option<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Inner<'a> {
            #[serde(borrow)]
            code: Option<&'a RawValue>,
        }

        let failure = serde_json::from_slice::<Failure<'_>>(body).ok();
        let Some(error) =
            failure.and_then(|failure| serde_json::from_str::<Error<'_>>(failure.error.get()).ok())
        else {
            return Self::default();
        };
        let inner = error
            .innererror
            .and_then(|inner| serde_json::from_str::<Inner<'_>>(inner.get()).ok());
        Self {
            code: text(error.code).unwrap_or_default(),
            inner: inner.and_then(|inner| text(inner.code)).unwrap_or_default(),
            message: text(error.message).unwrap_or_default(),
        }
    }

    /// What Azure says of a subscription that was not paid, was closed or does not exist.
    const SUBSCRIPTION: [&str; 4] = [
        "SubscriptionNotFound",
        "SubscriptionNotRegistered",
        "ReadOnlyDisabledSubscription",
        "DisabledSubscription",
    ];

    fn codes(&self) -> [&str; 2] {
        [&self.inner, &self.code]
    }

    /// Which of them is about the subscription.
    fn about_subscription(&self) -> Option<&'static str> {
        Self::SUBSCRIPTION
            .into_iter()
            .find(|known| self.codes().contains(known))
    }

    fn shown_code(&self) -> Option<Clean> {
        match self.about_subscription() {
            Some(known) => Some(Clean::ours(known)),
            None => self
                .codes()
                .into_iter()
                .find_map(|code| Clean::code(code).non_empty()),
        }
    }

    fn class(&self, operation: KmsOperation, status: u16) -> Class {
        /// "Invalid issuer": the token is of a directory that the vault does not trust.
        const OTHER_TENANT: &str = "AKV10032";

        if self.about_subscription().is_some() {
            return Class::Account;
        }
        match status {
            401 if self.inner == OTHER_TENANT || self.message.contains(OTHER_TENANT) => {
                Class::Configuration
            }
            401 => Class::Token,
            409 => Class::Configuration,
            // The key is of another type than the algorithm; or else the value does not decrypt.
            400 if self.code == "BadParameter" => match operation {
                KmsOperation::Wrap | KmsOperation::Token => Class::Configuration,
                KmsOperation::Unwrap => Class::Ciphertext,
            },
            _ => Class::of_status(status),
        }
    }
}

/// What a 401 asks for.
#[derive(Debug, Default)]
struct Challenge<'a> {
    /// The directory that the vault trusts.
    tenant: Option<&'a str>,
    /// Claims that the next token must make, as JSON.
    claims: Option<String>,
}

/// Longest claims that are passed on to the token endpoint, in bytes: real ones have about a hundred.
const CLAIMS_BYTES_MAX: usize = 4096;

impl<'a> Challenge<'a> {
    fn read(answer: &HttpAnswer<'a>) -> Option<Self> {
        let mut challenges = answer
            .header_lines("www-authenticate")
            .flatten()
            .filter_map(|text| {
                let (scheme, rest) = text.trim_start().split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then_some(rest)
            });
        let text = challenges.next()?;
        let mut challenge = Self::default();
        let (mut error, mut claims) = ("", "");
        for (name, value) in parameters(text) {
            match name {
                "authorization" | "authorization_uri" => {
                    // A URL with the directory as the first part of its path.
                    challenge.tenant = value.split('/').find(|part| is_uuid(part));
                }
                "error" => error = value,
                "claims" => claims = value,
                _ => {}
            }
        }
        if error == "insufficient_claims" {
            challenge.claims = decoded_claims(claims);
        }
        Some(challenge)
    }
}

/// The parameters of a challenge: `name=value` or `name="value"`, with commas or blanks between them.
fn parameters(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (name, after) = rest.split_once('=')?;
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once([',', ' ']).unwrap_or((after, "")),
        };
        Some((name.trim_matches([',', ' ']), value))
    })
}

/// Claims out of their base64, which comes in either alphabet; `None` unless they are an object.
fn decoded_claims(text: &str) -> Option<String> {
    if text.len() > CLAIMS_BYTES_MAX.div_ceil(3) * 4 {
        return None;
    }
    let standard = text.replace('-', "+").replace('_', "/");
    let claims = String::from_utf8(BASE64.decode(standard).ok()?).ok()?;
    let object: &RawValue = serde_json::from_str(&claims).ok()?;
    object
        .get()
        .starts_with('{')
        .then(|| object.get().to_owned())
}

#[cfg(test)]
mod tests;
