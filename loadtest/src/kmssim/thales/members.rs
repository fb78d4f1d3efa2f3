//! Members of requests: what they may be, and what is said when they are not.

use super::*;

/// Random bytes, as many as asked for.
pub(super) fn random(request: &Request, cx: &mut Context<'_>) -> Value {
    let bytes = request
        .query_value("bytes")
        .and_then(|text| text.parse().ok());
    let bytes = bytes
        .filter(|bytes| (1..=RANDOM_BYTES_MAX).contains(bytes))
        .unwrap_or(32);
    json!({ "bytes": BASE64.encode(cx.random.vec(bytes)) })
}

/// A domain; empty or absent means the root.
pub(super) fn named(domain: Option<String>) -> String {
    domain
        .filter(|domain| !domain.is_empty())
        .unwrap_or_else(|| ROOT.to_owned())
}

pub(super) fn parse<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Error> {
    json_object(body).map_err(|error| Error::refused(Refusal::Protocol, 400, BAD_REQUEST, error))
}

/// Bytes in standard base64.
pub(super) fn optional(text: Option<&str>, member: &str) -> Result<Option<Vec<u8>>, Error> {
    match text {
        None => Ok(None),
        Some("") => {
            let message = format!("{member} is empty: leave it out.");
            Err(Error::refused(
                Refusal::Parameter,
                400,
                BAD_REQUEST,
                message,
            ))
        }
        Some(text) => BASE64.decode(text).map(Some).map_err(|error| {
            let message = format!("{member} is not base64: {error}.");
            Error::refused(Refusal::Parameter, 400, BAD_REQUEST, message)
        }),
    }
}

pub(super) fn required(text: Option<&str>, member: &str) -> Result<Vec<u8>, Error> {
    optional(text, member)?.ok_or_else(|| {
        let message = format!("{member} is missing.");
        Error::refused(Refusal::Parameter, 400, BAD_REQUEST, message)
    })
}

pub(super) fn nonce(iv: &[u8]) -> Result<[u8; NONCE_BYTES], Error> {
    iv.try_into().map_err(|_| {
        Error::refused(
            Refusal::Parameter,
            400,
            INVALID_PARAM,
            "iv does not have 12 bytes.",
        )
    })
}

pub(super) fn check_mode(mode: Option<&str>) -> Result<(), Error> {
    match mode {
        // What an AES key does if nothing else is asked for.
        None | Some("gcm" | "GCM") => Ok(()),
        Some(other) => {
            let message = format!("mode {other} is not served here.");
            Err(Error::refused(
                Refusal::Parameter,
                400,
                INVALID_PARAM,
                message,
            ))
        }
    }
}

/// The version asked for, by number or by its own id. -1 means the current one.
pub(super) fn version(
    key: &Key,
    number: Option<i64>,
    by_id: Option<usize>,
) -> Result<Option<usize>, Error> {
    match number {
        None => Ok(by_id),
        Some(-1) => Ok(Some(key.current())),
        Some(number) => usize::try_from(number)
            .ok()
            .filter(|number| *number < key.doc.versions.len())
            .map(Some)
            .ok_or_else(|| Error::failed(Failure::NotFound, 404, NOT_FOUND, "Resource not found")),
    }
}

pub(super) fn at_version(key: &Key, at: usize) -> Result<(&ThalesVersionDoc, &[u8; 32]), Error> {
    let found = key.doc.versions.get(at).zip(key.materials.get(at));
    found.ok_or_else(|| Error::failed(Failure::NotFound, 404, NOT_FOUND, "Resource not found"))
}

pub(super) fn check_usage(key: &Key, bit: u32, word: &str) -> Result<(), Error> {
    if key.doc.usage_mask & bit != 0 {
        return Ok(());
    }
    let message = format!("The usage mask of the key does not allow to {word}.");
    Err(Error::failed(Failure::KeyState, 409, CONFLICT, message))
}

pub(super) fn wrong_state(state: ThalesKeyState) -> Error {
    let message = format!("The state of the key is {}.", state.as_str());
    Error::failed(Failure::KeyState, 409, CONFLICT, message)
}

/// Over a quota. The appliance documents none; this is what a proxy before it would say.
pub(in crate::kmssim) fn throttled(retry_after_s: Option<f64>) -> Reply {
    let error = Error::failed(
        Failure::Throttled,
        429,
        (429, "NCERRTooManyRequests"),
        "Too many requests.",
    );
    let reply = error.reply("throttled");
    match retry_after_s {
        Some(seconds) => reply.with(header::RETRY_AFTER, &format!("{:.0}", seconds.ceil())),
        None => reply,
    }
}

/// An error by its word, for faults.
pub(in crate::kmssim) fn by_code(code: &str, message: &str) -> Reply {
    let known = [
        (401, UNAUTHORIZED),
        (403, INSUFFICIENT),
        (400, INVALID_PARAM),
        (409, CONFLICT),
        (500, INTERNAL),
        (400, BAD_REQUEST),
        (404, NOT_FOUND),
        (400, CRYPTO_FAILED),
    ];
    let (status, pair) = known
        .into_iter()
        .find(|(_, (_, word))| *word == code)
        .unwrap_or((500, INTERNAL));
    Error::new(Verdict::Answered, status, pair, message).reply("fault")
}
