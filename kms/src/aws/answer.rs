//! What AWS KMS answers, and what its errors mean.
//!
//! The code decides, not the status: AWS answers most errors with 400, and newer stacks give other statuses for the same
//! codes. Members that are not asked for are passed over without recursion, whatever their nesting; the caller bounds the
//! body's size.

use std::{borrow::Cow, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use quick_xml::{Reader, events::Event};
use serde::Deserialize;
use serde_json::value::RawValue;
use tsp_wire::Dek;

use super::{BLOB_BYTES_MAX, KIND, api_name};
use crate::{HttpAnswer, KmsError, KmsErrorKind, KmsOperation, Retry, text::Clean};

pub(super) fn read_wrap(answer: &HttpAnswer<'_>) -> Result<Vec<u8>, KmsError> {
    #[derive(Deserialize)]
    struct Encrypted<'a> {
        #[serde(borrow, rename = "CiphertextBlob")]
        blob: Option<&'a RawValue>,
    }

    let unusable = |why| Err(unusable(KmsOperation::Wrap, answer, why));
    if answer.status != 200 {
        return Err(refusal(KmsOperation::Wrap, answer));
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

pub(super) fn read_unwrap(answer: &HttpAnswer<'_>) -> Result<Dek, KmsError> {
    #[derive(Deserialize)]
    struct Decrypted<'a> {
        #[serde(borrow, rename = "Plaintext")]
        plaintext: Option<&'a RawValue>,
    }

    let unusable = |why| Err(unusable(KmsOperation::Unwrap, answer, why));
    if answer.status != 200 {
        return Err(refusal(KmsOperation::Unwrap, answer));
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
        return unusable("the blob does not hold a key of 32 bytes");
    }
    Dek::try_fill_with(|dek| match BASE64.decode_slice(plaintext, dek) {
        Ok(Dek::LEN) => Ok(()),
        Ok(_) => Err("the blob does not hold a key of 32 bytes"),
        Err(_) => Err("its Plaintext is not the base64 of 32 bytes"),
    })
    .or_else(unusable)
}

/// The text of a JSON string that needs no decoding, as it stands in the body; `None` for any other value.
///
/// Base64 needs no escapes, and decoding one would leave a copy of the key in memory that nobody wipes.
fn lent(value: &RawValue) -> Option<&str> {
    let text = value.get().strip_prefix('"')?.strip_suffix('"')?;
    (!text.contains('\\')).then_some(text)
}

/// KMS said yes, but what it gave cannot be used.
fn unusable(operation: KmsOperation, answer: &HttpAnswer<'_>, why: &'static str) -> KmsError {
    KmsError::new(operation.failed(), KIND, operation, Clean::ours(why))
        .with_request_id(answer.header(REQUEST_ID).and_then(Clean::request_id))
}

const REQUEST_ID: &str = "x-amzn-requestid";

/// KMS, or something on the way, said no.
fn refusal(operation: KmsOperation, answer: &HttpAnswer<'_>) -> KmsError {
    let said = Said::read(answer);
    let code = said.code.as_deref().map(bare_code);
    let known = code.and_then(|code| CODES.iter().find(|(known, _)| *known == code));
    let message = said.message.as_deref().unwrap_or_default();
    let class = match known {
        Some((_, Class::Signature)) if is_about_time(message) => Class::Clock,
        Some((_, class)) => *class,
        None => Class::of_status(answer.status),
    };
    let code = match known {
        Some((known, _)) => Some(Clean::ours(known)),
        None => code.map(Clean::code).and_then(Clean::non_empty),
    };
    let sentence = Clean::sentence(message).non_empty().unwrap_or_else(|| {
        let (name, status, why) = (api_name(operation), answer.status, class.sentence());
        Clean::sentence(&format!(
            "it answered {name} with HTTP status {status}: {why}"
        ))
    });
    let request_id = answer.header(REQUEST_ID).or(said.request_id.as_deref());
    KmsError::new(class.kind(operation), KIND, operation, sentence)
        .with_code(code)
        .with_request_id(request_id.and_then(Clean::request_id))
        .with_retry(class.retry(answer))
}

/// What a code means, or a status where there is no code that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Something about the key, its permissions, or the endpoint.
    Configuration,
    /// The credentials.
    Credentials,
    /// The signature: wrong secret, or wrong time if the message says so.
    Signature,
    /// Our clock, or the server's.
    Clock,
    /// The blob.
    Ciphertext,
    /// The rate.
    Throttled,
    /// KMS is in trouble; it may pass.
    Trouble,
    /// KMS is in trouble that does not pass by itself.
    LastingTrouble,
    /// The account.
    Account,
    /// A request that KMS does not understand: our defect, or not KMS at all.
    Defect,
    /// Neither an answer nor an error.
    NoAnswer,
    /// A redirection.
    Redirect,
}

/// All codes that KMS and the front ends before it are known to use for what we ask (AWS KMS API Reference, "Common
/// Errors" and the errors of `Encrypt` and `Decrypt`; the throttling and transient codes of the AWS SDKs' retry rules).
const CODES: &[(&str, Class)] = &[
    ("NotFoundException", Class::Configuration),
    ("InvalidArnException", Class::Configuration),
    ("DisabledException", Class::Configuration),
    ("KMSInvalidStateException", Class::Configuration),
    ("InvalidKeyUsageException", Class::Configuration),
    ("UnsupportedOperationException", Class::Configuration),
    ("ValidationException", Class::Configuration),
    ("InvalidGrantTokenException", Class::Configuration),
    ("AccessDeniedException", Class::Configuration),
    ("AccessDenied", Class::Configuration),
    ("NotAuthorized", Class::Configuration),
    ("RegionDisabledException", Class::Configuration),
    ("UnrecognizedClientException", Class::Credentials),
    ("InvalidClientTokenId", Class::Credentials),
    ("MissingAuthenticationToken", Class::Credentials),
    ("MissingAuthenticationTokenException", Class::Credentials),
    ("IncompleteSignature", Class::Credentials),
    ("IncompleteSignatureException", Class::Credentials),
    ("InvalidAccessKeyId", Class::Credentials),
    ("ExpiredToken", Class::Credentials),
    ("ExpiredTokenException", Class::Credentials),
    ("TokenRefreshRequired", Class::Credentials),
    ("RequestExpired", Class::Credentials),
    ("InvalidSignatureException", Class::Signature),
    ("SignatureDoesNotMatch", Class::Signature),
    ("RequestTimeTooSkewed", Class::Clock),
    ("InvalidCiphertextException", Class::Ciphertext),
    ("IncorrectKeyException", Class::Ciphertext),
    ("Throttling", Class::Throttled),
    ("ThrottlingException", Class::Throttled),
    ("ThrottledException", Class::Throttled),
    ("RequestThrottled", Class::Throttled),
    ("RequestThrottledException", Class::Throttled),
    ("TooManyRequestsException", Class::Throttled),
    ("RequestLimitExceeded", Class::Throttled),
    ("LimitExceededException", Class::Throttled),
    ("SlowDown", Class::Throttled),
    ("ProvisionedThroughputExceededException", Class::Throttled),
    ("KMSInternalException", Class::Trouble),
    ("KeyUnavailableException", Class::Trouble),
    ("DependencyTimeoutException", Class::Trouble),
    ("InternalFailure", Class::Trouble),
    ("InternalError", Class::Trouble),
    ("InternalServerError", Class::Trouble),
    ("ServiceUnavailable", Class::Trouble),
    ("ServiceUnavailableException", Class::Trouble),
    ("RequestTimeout", Class::Trouble),
    ("RequestTimeoutException", Class::Trouble),
    ("RequestAbortedException", Class::Trouble),
    ("OptInRequired", Class::Account),
    ("SubscriptionRequiredException", Class::Account),
    ("SerializationException", Class::Defect),
    ("UnknownOperationException", Class::Defect),
    ("MalformedHttpRequestException", Class::Defect),
    ("DryRunOperationException", Class::Defect),
];

impl Class {
    /// Without a known code only the status is left, and it says little: AWS uses 400 for most errors.
    ///
    /// 403 is taken for a missing permission rather than for wrong credentials: wrong credentials come with a code, so
    /// this is something on the way, such as a firewall, that must be told to let us pass.
    const fn of_status(status: u16) -> Self {
        match status {
            300..=399 => Self::Redirect,
            401 => Self::Credentials,
            403 | 404 => Self::Configuration,
            429 | 509 => Self::Throttled,
            408 | 500 | 502 | 503 | 504 => Self::Trouble,
            501..=599 => Self::LastingTrouble,
            400..=499 => Self::Defect,
            _ => Self::NoAnswer,
        }
    }

    const fn kind(self, operation: KmsOperation) -> KmsErrorKind {
        match self {
            Self::Configuration | Self::Redirect => KmsErrorKind::Configuration,
            Self::Credentials | Self::Signature | Self::Clock => KmsErrorKind::Authorization,
            Self::Throttled => KmsErrorKind::Throttled,
            Self::Trouble | Self::LastingTrouble => KmsErrorKind::Unreachable,
            Self::Account => KmsErrorKind::Account,
            Self::Ciphertext | Self::Defect | Self::NoAnswer => operation.failed(),
        }
    }

    fn retry(self, answer: &HttpAnswer<'_>) -> Retry {
        match self {
            Self::Throttled => Retry::Throttled {
                after: retry_after(answer),
            },
            Self::Trouble => Retry::Transient,
            // Without the server's time there is nothing to repair by.
            Self::Clock => server_time(answer).map_or(Retry::No, |server_time| {
                Retry::AfterClockRepair { server_time }
            }),
            Self::Configuration
            | Self::Credentials
            | Self::Signature
            | Self::Ciphertext
            | Self::LastingTrouble
            | Self::Account
            | Self::Defect
            | Self::NoAnswer
            | Self::Redirect => Retry::No,
        }
    }

    /// What to say where KMS says nothing.
    const fn sentence(self) -> &'static str {
        match self {
            Self::Configuration => "the key cannot be used, or a permission is missing",
            Self::Credentials => "the credentials are not accepted",
            Self::Signature => "the signature is not accepted",
            Self::Clock => "the time of the request is too far from the server's",
            Self::Ciphertext => "the blob is not this key's, or was altered",
            Self::Throttled => "the rate is limited",
            Self::Trouble | Self::LastingTrouble => "the service is not available",
            Self::Account => "the account is not subscribed",
            Self::Defect => "the request was not understood",
            Self::NoAnswer => "that is no answer",
            Self::Redirect => {
                "redirections are not followed, so the endpoint must be the KMS itself"
            }
        }
    }
}

/// Whether a refused signature was refused for its time. AWS uses one code for both; only the text differs.
fn is_about_time(message: &str) -> bool {
    ["Signature expired", "Signature not yet current"]
        .iter()
        .any(|text| message.contains(text))
}

fn server_time(answer: &HttpAnswer<'_>) -> Option<std::time::SystemTime> {
    httpdate::parse_http_date(answer.header("date")?).ok()
}

/// Longest pause that is passed on: a day says "not now" as well as a year does, and cannot overflow anybody's sum.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// How long the server wants us to wait: its own header in milliseconds, or the standard one (RFC 9110, section 10.2.3) in
/// seconds or as a date, which counts from the answer's own date.
fn retry_after(answer: &HttpAnswer<'_>) -> Option<Duration> {
    let milliseconds = answer
        .header("x-amz-retry-after")
        .and_then(|text| text.trim().parse().ok());
    let pause = milliseconds.map(Duration::from_millis).or_else(|| {
        let text = answer.header("retry-after")?.trim();
        match text.parse() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => {
                let until = httpdate::parse_http_date(text).ok()?;
                Some(
                    until
                        .duration_since(server_time(answer)?)
                        .unwrap_or(Duration::ZERO),
                )
            }
        }
    });
    pause.map(|pause| pause.min(RETRY_AFTER_MAX))
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
            said.code = answer
                .headers
                .get("x-amzn-errortype")
                .and_then(|value| value.to_str().ok())
                .map(Cow::Borrowed);
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
        const DEPTH_MAX: usize = 16;
        const ROOTS: [&str; 3] = ["ErrorResponse", "Response", "Error"];

        let mut reader = Reader::from_str(std::str::from_utf8(body).ok()?);
        let mut path: Vec<String> = Vec::new();
        let mut said = Self::default();
        loop {
            let mut text = None;
            match reader.read_event().ok()? {
                Event::Start(tag) => {
                    path.push(tag.local_name().as_ref().to_owned());
                    let root = path.first().map_or("", String::as_str);
                    if path.len() > DEPTH_MAX || !ROOTS.contains(&root) {
                        return None;
                    }
                }
                Event::End(_) => {
                    path.pop();
                }
                Event::Text(content) => text = Some(content.xml10_content()),
                Event::CData(content) => text = Some(content.xml10_content()),
                Event::GeneralRef(entity) => {
                    let char = entity.resolve_char_ref().ok()?;
                    text = Some(match char {
                        Some(char) => Cow::Owned(char.to_string()),
                        None => Cow::Borrowed(quick_xml::escape::resolve_xml_entity(
                            &entity.xml10_content(),
                        )?),
                    });
                }
                // Entities of its own making, or a file of ours: nothing that a KMS sends.
                Event::DocType(_) => return None,
                Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof => return path.is_empty().then_some(said),
            }
            if let Some(text) = text {
                let place = match path.as_slice() {
                    [.., parent, name] if parent == "Error" && name == "Code" => &mut said.code,
                    [.., parent, name] if parent == "Error" && name == "Message" => {
                        &mut said.message
                    }
                    [.., name] if name.eq_ignore_ascii_case("RequestId") => &mut said.request_id,
                    _ => continue,
                };
                place.get_or_insert_default().to_mut().push_str(&text);
            }
        }
    }
}

/// A code without what surrounds it: the namespace before `#`, and the URL after `:`.
fn bare_code(code: &str) -> &str {
    let code = code.split_once(':').map_or(code, |(code, _)| code);
    code.rsplit_once('#').map_or(code, |(_, code)| code).trim()
}

#[cfg(test)]
mod tests;
