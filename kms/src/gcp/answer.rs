//! What Google Cloud KMS answers, and what its errors mean.
//!
//! Errors are of Google's common model (AIP-193): a status, and details of which `ErrorInfo` holds the reason. The reason
//! goes before the status, and the status before HTTP's.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::value::RawValue;
use tsp_wire::Dek;

use super::{BLOB_BYTES_MAX, KIND, api_name, config::KeyName};
use crate::{
    Blame, HttpAnswer, KmsError, KmsOperation, Retry,
    class::{Class, Refusal},
    http::RETRY_AFTER_MAX,
    json::{lent, text},
    text::Clean,
};

pub(super) fn read_wrap(answer: &HttpAnswer<'_>, key: &KeyName) -> Result<Vec<u8>, KmsError> {
    #[derive(Deserialize)]
    struct Encrypted<'a> {
        #[serde(borrow)]
        name: Option<&'a RawValue>,
        #[serde(borrow)]
        ciphertext: Option<&'a RawValue>,
        #[serde(borrow, rename = "ciphertextCrc32c")]
        sum: Option<&'a RawValue>,
        #[serde(borrow, rename = "verifiedPlaintextCrc32c")]
        verified: Option<&'a RawValue>,
    }

    const OPERATION: KmsOperation = KmsOperation::Wrap;
    let unusable = |why| Err(unusable(OPERATION, why));
    let damaged = |why| damaged(OPERATION, why);
    if answer.status != 200 {
        return Err(refusal(OPERATION, answer));
    }
    let Ok(encrypted) = serde_json::from_slice::<Encrypted<'_>>(answer.body) else {
        return unusable("its answer is not the JSON of an encryption");
    };
    let Some(ciphertext) = encrypted.ciphertext else {
        return unusable("its answer holds no ciphertext");
    };
    let Some(ciphertext) = lent(ciphertext) else {
        return unusable("its ciphertext is not a plain string");
    };
    if ciphertext.len() > BLOB_BYTES_MAX.div_ceil(3) * 4 {
        return unusable("its ciphertext is larger than 8192 bytes");
    }
    let Ok(blob) = BASE64.decode(ciphertext) else {
        return unusable("its ciphertext is not base64");
    };
    if blob.is_empty() {
        return unusable("its ciphertext is empty");
    }
    if checksum(encrypted.sum) != Some(crc32c::crc32c(&blob)) {
        return Err(damaged(
            "its ciphertext does not match the checksum that came with it",
        ));
    }
    if encrypted.verified.is_none_or(|flag| flag.get() != "true") {
        return Err(damaged(
            "it did not compare the key that it encrypted with the key's checksum",
        ));
    }
    if !text(encrypted.name).is_some_and(|name| key.covers(&name)) {
        return Err(
            damaged("it encrypted with another key than the configured one")
                .with_blame(Blame::Endpoint),
        );
    }
    Ok(blob)
}

pub(super) fn read_unwrap(answer: &HttpAnswer<'_>) -> Result<Dek, KmsError> {
    #[derive(Deserialize)]
    struct Decrypted<'a> {
        #[serde(borrow)]
        plaintext: Option<&'a RawValue>,
        #[serde(borrow, rename = "plaintextCrc32c")]
        sum: Option<&'a RawValue>,
    }

    const OPERATION: KmsOperation = KmsOperation::Unwrap;
    let unusable = |why| unusable(OPERATION, why);
    if answer.status != 200 {
        return Err(refusal(OPERATION, answer));
    }
    let Ok(Decrypted { plaintext, sum }) = serde_json::from_slice(answer.body) else {
        return Err(unusable("its answer is not the JSON of a decryption"));
    };
    // An empty plaintext is left out, as all that is empty.
    let Some(plaintext) = plaintext else {
        return Err(unusable(KmsError::NOT_A_KEY));
    };
    let Some(plaintext) = lent(plaintext) else {
        return Err(unusable("its plaintext is not a plain string"));
    };
    // 32 bytes are 43 digits and one padding; the decoder refuses everything else of this length.
    if plaintext.len() != 44 {
        return Err(unusable(KmsError::NOT_A_KEY));
    }
    let dek = Dek::try_fill_with(|dek| match BASE64.decode_slice(plaintext, dek) {
        Ok(Dek::LEN) => Ok(()),
        Ok(_) => Err(unusable(KmsError::NOT_A_KEY)),
        Err(_) => Err(unusable("its plaintext is not the base64 of 32 bytes")),
    })?;
    if checksum(sum) != Some(crc32c::crc32c(dek.expose())) {
        return Err(damaged(
            OPERATION,
            "the decrypted key does not match the checksum that came with it",
        ));
    }
    Ok(dek)
}

/// A checksum: a decimal string, as 64-bit integers are spelt in proto3 JSON, or a number, which is read there as well.
fn checksum(value: Option<&RawValue>) -> Option<u32> {
    value?.get().trim_matches('"').parse().ok()
}

/// The KMS said yes, but what it gave cannot be used.
fn unusable(operation: KmsOperation, why: &'static str) -> KmsError {
    KmsError::unusable(KIND, operation, why)
}

/// The same where it may have been altered on its way, so that asking again can help.
fn damaged(operation: KmsOperation, why: &'static str) -> KmsError {
    unusable(operation, why)
        .with_retry(Retry::Transient)
        .with_blame(Blame::Alteration)
}

/// The KMS, or something on the way, said no.
fn refusal(operation: KmsOperation, answer: &HttpAnswer<'_>) -> KmsError {
    let said = Said::read(answer.body);
    Refusal {
        provider: KIND,
        operation,
        class: said.class(operation, answer.status),
        api_name: api_name(operation),
        code: said.code(),
        message: &said.message,
        request_id: None,
        retry_after: said.retry_delay.or_else(|| answer.retry_after()),
    }
    .into_error(answer)
}

/// What an error answer says, before any of it is believed.
#[derive(Debug, Default)]
struct Said {
    /// The name of a code of gRPC.
    status: Option<String>,
    /// Why, if an `ErrorInfo` says so.
    reason: Option<String>,
    /// The type of the first violation that a `PreconditionFailure` names.
    violation: Option<String>,
    /// What a `RetryInfo` wishes.
    retry_delay: Option<Duration>,
    message: String,
}

impl Said {
    /// Members of unexpected types count as absent, as does all of a body that is not an error of this model.
    fn read(body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        struct Failure<'a> {
            #[serde(borrow)]
            error: Option<&'a RawValue>,
        }
        #[derive(Default, Deserialize)]
        struct Status<'a> {
            #[serde(borrow)]
            status: Option<&'a RawValue>,
            #[serde(borrow)]
            message: Option<&'a RawValue>,
            #[serde(borrow)]
            details: Option<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Detail<'a> {
            #[serde(borrow, rename = "@type")]
            kind: Option<&'a RawValue>,
            #[serde(borrow)]
            reason: Option<&'a RawValue>,
            #[serde(borrow, rename = "retryDelay")]
            retry_delay: Option<&'a RawValue>,
            #[serde(borrow)]
            violations: Option<&'a RawValue>,
        }
        #[derive(Deserialize)]
        struct Violation<'a> {
            #[serde(borrow, rename = "type")]
            kind: Option<&'a RawValue>,
        }

        fn parse<'a, T: Deserialize<'a>>(value: Option<&'a RawValue>) -> Option<T> {
            serde_json::from_str(value?.get()).ok()
        }

        let failure: Failure<'_> = serde_json::from_slice(body).unwrap_or_default();
        let status: Status<'_> = parse(failure.error).unwrap_or_default();
        let mut said = Self {
            status: text(status.status),
            message: text(status.message).unwrap_or_default(),
            ..Self::default()
        };
        let details: Vec<&RawValue> = parse(status.details).unwrap_or_default();
        for detail in details {
            let Some(detail) = parse::<Detail<'_>>(Some(detail)) else {
                continue;
            };
            let kind = text(detail.kind).unwrap_or_default();
            match kind.rsplit('.').next() {
                Some("ErrorInfo") => said.reason = said.reason.or(text(detail.reason)),
                Some("RetryInfo") => {
                    said.retry_delay = text(detail.retry_delay).and_then(|delay| seconds(&delay));
                }
                Some("PreconditionFailure") => {
                    let violations: Vec<&RawValue> = parse(detail.violations).unwrap_or_default();
                    said.violation = violations
                        .first()
                        .and_then(|first| parse::<Violation<'_>>(Some(first)))
                        .and_then(|violation| text(violation.kind));
                }
                _ => {}
            }
        }
        said
    }

    fn class(&self, operation: KmsOperation, http_status: u16) -> Class {
        let reason = self.reason.as_deref().unwrap_or_default();
        let by_reason = REASONS
            .iter()
            .find(|(known, _)| *known == reason)
            .or_else(|| {
                REASON_FAMILIES
                    .iter()
                    .find(|(family, _)| reason.starts_with(family))
            });
        if let Some((_, class)) = by_reason {
            return *class;
        }
        let status = self.status.as_deref().unwrap_or_default();
        match STATUSES.iter().find(|(known, _)| *known == status) {
            Some((_, Means::Is(class))) => *class,
            Some((_, Means::Argument)) => self.argument(operation),
            None => match http_status {
                401 => Class::Token,
                409 | 499 => Class::Trouble,
                status => Class::of_status(status),
            },
        }
    }

    /// What was wrong with what we sent. Only the text tells.
    fn argument(&self, operation: KmsOperation) -> Class {
        let says = |word| self.message.to_ascii_lowercase().contains(word);
        match operation {
            _ if says("crc32c") || says("checksum") => Class::Integrity,
            _ if says("purpose") => Class::Configuration,
            KmsOperation::Unwrap => Class::Ciphertext,
            KmsOperation::Wrap | KmsOperation::Token => Class::Defect,
        }
    }

    /// What says most about the error in one word.
    fn code(&self) -> Option<Clean> {
        let code = self
            .reason
            .as_deref()
            .or(self.violation.as_deref())
            .or(self.status.as_deref())?;
        let mut known = REASONS
            .iter()
            .map(|(known, _)| *known)
            .chain(STATUSES.iter().map(|(known, _)| *known));
        match known.find(|known| *known == code) {
            Some(known) => Some(Clean::ours(known)),
            None => Clean::code(code).non_empty(),
        }
    }
}

/// A duration in proto3 JSON: seconds, perhaps with a fraction, and `s`.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    let delay = Duration::try_from_secs_f64(seconds).ok()?;
    Some(delay.min(RETRY_AFTER_MAX))
}

/// The reasons that matter (`google.api.ErrorReason`).
const REASONS: &[(&str, Class)] = &[
    ("ACCESS_TOKEN_EXPIRED", Class::Token),
    ("CREDENTIALS_MISSING", Class::Token),
    ("JWT_TOKEN_INVALID", Class::Token),
    ("ACCESS_TOKEN_TYPE_UNSUPPORTED", Class::Token),
    ("ACCOUNT_STATE_INVALID", Class::Credentials),
    ("ACCESS_TOKEN_SCOPE_INSUFFICIENT", Class::Credentials),
    ("BILLING_DISABLED", Class::Account),
    ("CONSUMER_SUSPENDED", Class::Account),
    ("GCP_SUSPENDED", Class::Account),
    ("SERVICE_DISABLED", Class::Configuration),
    ("CONSUMER_INVALID", Class::Configuration),
    ("USER_PROJECT_DENIED", Class::Configuration),
    ("IAM_PERMISSION_DENIED", Class::Configuration),
    ("SECURITY_POLICY_VIOLATED", Class::Configuration),
    ("RATE_LIMIT_EXCEEDED", Class::Throttled),
    ("RESOURCE_QUOTA_EXCEEDED", Class::Throttled),
];

/// What reasons that begin so have in common.
const REASON_FAMILIES: &[(&str, Class)] = &[
    ("LOCATION_", Class::Configuration),
    ("ORG_RESTRICTION_", Class::Configuration),
];

/// What a status means.
#[derive(Clone, Copy, Debug)]
enum Means {
    Is(Class),
    /// Something that we sent is wrong; the operation and the text tell what.
    Argument,
}

/// The statuses (`google.rpc.Code`). What is not here goes by HTTP's.
const STATUSES: &[(&str, Means)] = &[
    ("UNAUTHENTICATED", Means::Is(Class::Token)),
    ("PERMISSION_DENIED", Means::Is(Class::Configuration)),
    ("NOT_FOUND", Means::Is(Class::Configuration)),
    ("FAILED_PRECONDITION", Means::Is(Class::Configuration)),
    ("INVALID_ARGUMENT", Means::Argument),
    ("RESOURCE_EXHAUSTED", Means::Is(Class::Throttled)),
    ("UNAVAILABLE", Means::Is(Class::Trouble)),
    ("DEADLINE_EXCEEDED", Means::Is(Class::Trouble)),
    ("INTERNAL", Means::Is(Class::Trouble)),
    ("ABORTED", Means::Is(Class::Trouble)),
    ("CANCELLED", Means::Is(Class::Trouble)),
    ("UNKNOWN", Means::Is(Class::Trouble)),
];

#[cfg(test)]
mod tests;
