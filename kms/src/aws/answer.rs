//! What AWS KMS answers, and what its errors mean.
//!
//! The code decides, not the status: AWS answers most errors with 400, and newer stacks give other statuses for the same
//! codes. Members that are not asked for are passed over without recursion, whatever their nesting; the caller bounds the
//! body's size.

use std::{borrow::Cow, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::value::RawValue;
use tsp_wire::Dek;

use super::{BLOB_BYTES_MAX, KIND, api_name, xml};
use crate::{
    HttpAnswer, KmsError, KmsOperation,
    class::{Class, Refusal},
    http::RETRY_AFTER_MAX,
    json::lent,
    text::Clean,
};

pub(super) fn read_wrap(
    answer: &HttpAnswer<'_>,
    signed_with: SignedWith,
) -> Result<Vec<u8>, KmsError> {
    #[derive(Deserialize)]
    struct Encrypted<'a> {
        #[serde(borrow, rename = "CiphertextBlob")]
        blob: Option<&'a RawValue>,
    }

    let unusable = |why| Err(unusable(KmsOperation::Wrap, answer, why));
    if answer.status != 200 {
        return Err(refusal(KmsOperation::Wrap, answer, signed_with));
    }
    let Ok(Encrypted { blob }) = serde_json::from_slice(answer.body) else {
        return unusable("its answer is not the JSON of an encryption");
    };
    let Some(blob) = blob else {
        return unusable("its answer holds no CiphertextBlob");
    };
    let Some(blob) = lent(blob) else {
        return unusable("its CiphertextBlob is not a plain string");
    };
    if blob.len() > BLOB_BYTES_MAX.div_ceil(3) * 4 {
        return unusable("its CiphertextBlob is larger than 6144 bytes");
    }
    match BASE64.decode(blob) {
        Ok(blob) if !blob.is_empty() => Ok(blob),
        Ok(_) => unusable("its CiphertextBlob is empty"),
        Err(_) => unusable("its CiphertextBlob is not base64"),
    }
}

pub(super) fn read_unwrap(
    answer: &HttpAnswer<'_>,
    signed_with: SignedWith,
) -> Result<Dek, KmsError> {
    #[derive(Deserialize)]
    struct Decrypted<'a> {
        #[serde(borrow, rename = "Plaintext")]
        plaintext: Option<&'a RawValue>,
    }

    let unusable = |why| Err(unusable(KmsOperation::Unwrap, answer, why));
    if answer.status != 200 {
        return Err(refusal(KmsOperation::Unwrap, answer, signed_with));
    }
    let Ok(Decrypted { plaintext }) = serde_json::from_slice(answer.body) else {
        return unusable("its answer is not the JSON of a decryption");
    };
    let Some(plaintext) = plaintext else {
        return unusable("its answer holds no Plaintext");
    };
    let Some(plaintext) = lent(plaintext) else {
        return unusable("its Plaintext is not a plain string");
    };
    // 32 bytes are 43 digits and one padding; the decoder refuses everything else of this length.
    if plaintext.len() != 44 {
        return unusable(KmsError::NOT_A_KEY);
    }
    Dek::try_fill_with(|dek| match BASE64.decode_slice(plaintext, dek) {
        Ok(Dek::LEN) => Ok(()),
        Ok(_) => Err(KmsError::NOT_A_KEY),
        Err(_) => Err("its Plaintext is not the base64 of 32 bytes"),
    })
    .or_else(unusable)
}

/// KMS said yes, but what it gave cannot be used.
fn unusable(operation: KmsOperation, answer: &HttpAnswer<'_>, why: &'static str) -> KmsError {
    KmsError::unusable(KIND, operation, why)
        .with_request_id(answer.header(REQUEST_ID).and_then(Clean::request_id))
}

pub(super) const REQUEST_ID: &str = "x-amzn-requestid";

/// KMS, STS, or something on the way said no.
pub(super) fn refusal(
    operation: KmsOperation,
    answer: &HttpAnswer<'_>,
    signed_with: SignedWith,
) -> KmsError {
    let said = Said::read(answer);
    let code = said.code.as_deref().map(bare_code);
    let known = code.and_then(|code| CODES.iter().find(|(known, _)| *known == code));
    let message = said.message.as_deref().unwrap_or_default();
    let class = match known {
        Some((_, Means::Is(class))) => *class,
        Some((_, Means::Signature)) if is_about_time(message) => Class::Clock,
        Some((_, Means::Session)) if signed_with == SignedWith::Role => Class::Token,
        Some((_, Means::Signature | Means::Session)) => Class::Credentials,
        None => Class::of_status(answer.status),
    };
    let code = match known {
        Some((known, _)) => Some(Clean::ours(known)),
        None => code.map(Clean::code).and_then(Clean::non_empty),
    };
    let refusal = Refusal {
        provider: KIND,
        operation,
        class,
        api_name: api_name(operation),
        code,
        message,
        request_id: answer.header(REQUEST_ID).or(said.request_id.as_deref()),
        retry_after: retry_after(answer),
    };
    refusal.into_error(answer)
}

/// What a refused request was signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignedWith {
    /// What the configuration holds.
    Configured,
    /// The session of an assumed role, of which there can be another.
    Role,
}

/// What a code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Is(Class),
    /// The signature is not accepted: for a wrong secret, or for a wrong time if the message says so.
    Signature,
    /// The credentials are not accepted, and if they are a session's, others may be.
    Session,
}

/// All codes that KMS and the front ends before it are known to use for what we ask (AWS KMS API Reference, "Common
/// Errors" and the errors of `Encrypt` and `Decrypt`; the throttling and transient codes of the AWS SDKs' retry rules).
const CODES: &[(&str, Means)] = &[
    ("NotFoundException", Means::Is(Class::Configuration)),
    ("InvalidArnException", Means::Is(Class::Configuration)),
    ("DisabledException", Means::Is(Class::Configuration)),
    ("KMSInvalidStateException", Means::Is(Class::Configuration)),
    ("InvalidKeyUsageException", Means::Is(Class::Configuration)),
    (
        "UnsupportedOperationException",
        Means::Is(Class::Configuration),
    ),
    ("ValidationException", Means::Is(Class::Configuration)),
    ("ValidationError", Means::Is(Class::Configuration)),
    (
        "InvalidGrantTokenException",
        Means::Is(Class::Configuration),
    ),
    ("AccessDeniedException", Means::Is(Class::Configuration)),
    ("AccessDenied", Means::Is(Class::Configuration)),
    ("NotAuthorized", Means::Is(Class::Configuration)),
    ("RegionDisabledException", Means::Is(Class::Configuration)),
    ("UnrecognizedClientException", Means::Session),
    ("InvalidClientTokenId", Means::Session),
    ("MissingAuthenticationToken", Means::Is(Class::Credentials)),
    (
        "MissingAuthenticationTokenException",
        Means::Is(Class::Credentials),
    ),
    ("IncompleteSignature", Means::Is(Class::Credentials)),
    (
        "IncompleteSignatureException",
        Means::Is(Class::Credentials),
    ),
    ("InvalidAccessKeyId", Means::Is(Class::Credentials)),
    ("ExpiredToken", Means::Session),
    ("ExpiredTokenException", Means::Session),
    ("TokenRefreshRequired", Means::Session),
    ("RequestExpired", Means::Session),
    ("InvalidSignatureException", Means::Signature),
    ("SignatureDoesNotMatch", Means::Signature),
    ("RequestTimeTooSkewed", Means::Is(Class::Clock)),
    ("InvalidCiphertextException", Means::Is(Class::Ciphertext)),
    ("IncorrectKeyException", Means::Is(Class::Ciphertext)),
    ("Throttling", Means::Is(Class::Throttled)),
    ("ThrottlingException", Means::Is(Class::Throttled)),
    ("ThrottledException", Means::Is(Class::Throttled)),
    ("RequestThrottled", Means::Is(Class::Throttled)),
    ("RequestThrottledException", Means::Is(Class::Throttled)),
    ("TooManyRequestsException", Means::Is(Class::Throttled)),
    ("RequestLimitExceeded", Means::Is(Class::Throttled)),
    ("LimitExceededException", Means::Is(Class::Throttled)),
    ("SlowDown", Means::Is(Class::Throttled)),
    (
        "ProvisionedThroughputExceededException",
        Means::Is(Class::Throttled),
    ),
    ("KMSInternalException", Means::Is(Class::Trouble)),
    ("KeyUnavailableException", Means::Is(Class::Trouble)),
    ("DependencyTimeoutException", Means::Is(Class::Trouble)),
    ("InternalFailure", Means::Is(Class::Trouble)),
    ("InternalError", Means::Is(Class::Trouble)),
    ("InternalServerError", Means::Is(Class::Trouble)),
    ("ServiceUnavailable", Means::Is(Class::Trouble)),
    ("ServiceUnavailableException", Means::Is(Class::Trouble)),
    ("RequestTimeout", Means::Is(Class::Trouble)),
    ("RequestTimeoutException", Means::Is(Class::Trouble)),
    ("RequestAbortedException", Means::Is(Class::Trouble)),
    ("OptInRequired", Means::Is(Class::Account)),
    ("SubscriptionRequiredException", Means::Is(Class::Account)),
    ("SerializationException", Means::Is(Class::Defect)),
    ("UnknownOperationException", Means::Is(Class::Defect)),
    ("MalformedHttpRequestException", Means::Is(Class::Defect)),
    ("MalformedPolicyDocument", Means::Is(Class::Defect)),
    ("PackedPolicyTooLarge", Means::Is(Class::Defect)),
    ("DryRunOperationException", Means::Is(Class::Defect)),
];

/// Whether a refused signature was refused for its time. AWS uses one code for both; only the text differs.
fn is_about_time(message: &str) -> bool {
    ["Signature expired", "Signature not yet current"]
        .iter()
        .any(|text| message.contains(text))
}

/// How long the server wants us to wait: its own header in milliseconds, or the standard one.
fn retry_after(answer: &HttpAnswer<'_>) -> Option<Duration> {
    let milliseconds = answer.header("x-amz-retry-after");
    match milliseconds.and_then(|text| text.trim().parse().ok()) {
        Some(pause) => Some(Duration::from_millis(pause).min(RETRY_AFTER_MAX)),
        None => answer.retry_after(),
    }
}

/// What an error answer says, before any of it is believed.
#[derive(Debug, Default)]
struct Said<'a> {
    code: Option<Cow<'a, str>>,
    message: Option<Cow<'a, str>>,
    request_id: Option<Cow<'a, str>>,
}

impl<'a> Said<'a> {
    fn read(answer: &HttpAnswer<'a>) -> Self {
        let mut said = match answer.body.trim_ascii_start().first() {
            Some(b'{') => Self::from_json(answer.body),
            Some(b'<') => Self::from_xml(answer.body),
            _ => None,
        }
        .unwrap_or_default();
        if said.code.is_none() {
            said.code = answer.header("x-amzn-errortype").map(Cow::Borrowed);
        }
        said
    }

    /// The JSON of KMS. Members of unexpected types count as absent.
    fn from_json(body: &'a [u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Failure<'a> {
            #[serde(borrow, rename = "__type")]
            typ: Option<&'a RawValue>,
            #[serde(borrow)]
            code: Option<&'a RawValue>,
            #[serde(borrow)]
            message: Option<&'a RawValue>,
            #[serde(borrow, rename = "Message")]
            capital_message: Option<&'a RawValue>,
        }

        fn text(value: Option<&RawValue>) -> Option<Cow<'_, str>> {
            let text: String = serde_json::from_str(value?.get()).ok()?;
            (!text.is_empty()).then_some(Cow::Owned(text))
        }

        let failure: Failure<'a> = serde_json::from_slice(body).ok()?;
        Some(Self {
            code: text(failure.typ).or_else(|| text(failure.code)),
            message: text(failure.message).or_else(|| text(failure.capital_message)),
            request_id: None,
        })
    }

    /// The XML of AWS's query protocol, which STS speaks and which front ends and emulators may use for refused
    /// signatures: a `Code` and a `Message` in an `Error`, wrapped in one of several ways. Anything else, HTML above all,
    /// counts as nothing.
    fn from_xml(body: &'a [u8]) -> Option<Self> {
        let mut said = Self::default();
        xml::walk(
            body,
            &["ErrorResponse", "Response", "Error"],
            |path, text| {
                let place = match path {
                    [.., parent, name] if parent == "Error" && name == "Code" => &mut said.code,
                    [.., parent, name] if parent == "Error" && name == "Message" => {
                        &mut said.message
                    }
                    [.., name] if name.eq_ignore_ascii_case("RequestId") => &mut said.request_id,
                    _ => return,
                };
                place.get_or_insert_default().to_mut().push_str(&text);
            },
        )?;
        Some(said)
    }
}

/// A code without what surrounds it: the namespace before `#`, and the URL after `:`.
fn bare_code(code: &str) -> &str {
    let code = code.split_once(':').map_or(code, |(code, _)| code);
    code.rsplit_once('#').map_or(code, |(_, code)| code).trim()
}

#[cfg(test)]
mod tests;
