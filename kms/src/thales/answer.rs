//! What CipherTrust Manager answers, and what its errors mean.
//!
//! The status decides, and the first word of `codeDesc` refines it: that word is the stable part of an error.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::value::RawValue;
use tsp_wire::Dek;

use super::{Blob, KIND, KeyKind};
use crate::{
    Blame, HttpAnswer, KmsError, KmsOperation, Retry,
    class::{Class, Refusal},
    json::{lent, text},
    text::Clean,
};

pub(super) fn read_wrap(answer: &HttpAnswer<'_>, kind: KeyKind) -> Result<Blob, KmsError> {
    #[derive(Deserialize)]
    struct Encrypted<'a> {
        #[serde(borrow)]
        ciphertext: Option<&'a RawValue>,
        #[serde(borrow)]
        tag: Option<&'a RawValue>,
        #[serde(borrow)]
        iv: Option<&'a RawValue>,
        #[serde(borrow)]
        version: Option<&'a RawValue>,
        #[serde(borrow)]
        id: Option<&'a RawValue>,
    }

    let unusable = |why| unusable(KmsOperation::Wrap, why);
    if answer.status != 200 {
        return Err(refusal(KmsOperation::Wrap, answer));
    }
    let Ok(encrypted) = serde_json::from_slice::<Encrypted<'_>>(answer.body) else {
        return Err(unusable("its answer is not the JSON of an encryption"));
    };
    if encrypted.ciphertext.is_none() {
        return Err(unusable("its answer holds no ciphertext"));
    }
    let bytes = |value: Option<&RawValue>, bytes_max: usize| {
        let digits = lent(value?)?;
        let short = digits.len() <= bytes_max.div_ceil(3) * 4;
        short.then(|| BASE64.decode(digits).ok())?
    };
    let (Some(ciphertext), Some(tag), Some(iv)) = (
        bytes(encrypted.ciphertext, Dek::LEN),
        bytes(encrypted.tag, Blob::TAG_BYTES),
        bytes(encrypted.iv, 16),
    ) else {
        return Err(unusable(
            "its answer does not hold ciphertext, tag and iv of AES-GCM, so the key may be of another type",
        )
        .with_blame(Blame::Key));
    };
    let version = encrypted
        .version
        .and_then(|version| version.get().parse().ok());
    let id = text(encrypted.id).filter(|id| Blob::is_id(id));
    let blob = match (kind, version, id) {
        (KeyKind::Name, Some(_), _) => Blob {
            ciphertext,
            iv,
            tag,
            version,
            id: String::new(),
        },
        (KeyKind::Name, None, _) => {
            return Err(unusable(
                "its answer does not say which version of the key it used",
            ));
        }
        (KeyKind::Id | KeyKind::Uri, _, Some(id)) => Blob {
            ciphertext,
            iv,
            tag,
            version,
            id,
        },
        (KeyKind::Id | KeyKind::Uri, _, None) => {
            return Err(unusable("its answer does not say which key it used"));
        }
    };
    if blob.is_sound() {
        Ok(blob)
    } else {
        Err(unusable(
            "its answer does not have the sizes of AES-GCM: 32 bytes of ciphertext, 16 of tag, 12 to 16 of iv",
        ))
    }
}

pub(super) fn read_unwrap(answer: &HttpAnswer<'_>) -> Result<Dek, KmsError> {
    #[derive(Deserialize)]
    struct Decrypted<'a> {
        #[serde(borrow)]
        plaintext: Option<&'a RawValue>,
    }

    let unusable = |why| unusable(KmsOperation::Unwrap, why);
    if answer.status != 200 {
        return Err(refusal(KmsOperation::Unwrap, answer));
    }
    let Ok(Decrypted { plaintext }) = serde_json::from_slice(answer.body) else {
        return Err(unusable("its answer is not the JSON of a decryption"));
    };
    let Some(plaintext) = plaintext.and_then(lent) else {
        return Err(unusable("its answer holds no plaintext"));
    };
    // 32 bytes are 43 digits and one padding; the decoder refuses everything else of this length.
    if plaintext.len() != 44 {
        return Err(unusable(KmsError::NOT_A_KEY));
    }
    Dek::try_fill_with(|dek| match BASE64.decode_slice(plaintext, dek) {
        Ok(Dek::LEN) => Ok(()),
        Ok(_) => Err(KmsError::NOT_A_KEY),
        Err(_) => Err("its plaintext is not the base64 of 32 bytes"),
    })
    .map_err(unusable)
}

/// The appliance said yes, but what it gave cannot be used.
fn unusable(operation: KmsOperation, why: &'static str) -> KmsError {
    KmsError::unusable(KIND, operation, why)
}

/// The appliance, or something on the way, said no.
pub(super) fn refusal(operation: KmsOperation, answer: &HttpAnswer<'_>) -> KmsError {
    let said = Said::read(answer.body);
    let class = said.class(operation, answer.status);
    let error = Refusal {
        provider: KIND,
        operation,
        class,
        api_name: match operation {
            KmsOperation::Wrap => "encrypt",
            KmsOperation::Unwrap => "decrypt",
            KmsOperation::Token => "the log-in",
        },
        code: said.shown_code(),
        message: &said.message,
        request_id: said.request_id.as_deref(),
        retry_after: answer.retry_after(),
    }
    .into_error(answer);
    // A domain in which the user may not act: there may be another way to ask.
    if operation == KmsOperation::Token && answer.status == 403 && class == Class::Configuration {
        error.with_retry(Retry::AfterNewToken)
    } else {
        error
    }
}

/// The first words of `codeDesc` that are known.
const WORDS: [&str; 9] = [
    "NCERRUnauthorizedAccess",
    "NCERRInsufficientPermissions",
    "NCERRInvalidParamValue",
    "NCERRConflict",
    "NCERRInternalServerError",
    "NCERRBadRequest",
    "NCERRResourceNotFound",
    "NCERRCryptoOperationFailed",
    "NCERRTooManyRequests",
];

/// What an error answer says, before any of it is believed.
#[derive(Debug, Default)]
struct Said {
    /// The first word of `codeDesc`.
    word: String,
    message: String,
    request_id: Option<String>,
}

impl Said {
    /// Members of unexpected types count as absent, and so does everything that is not JSON.
    fn read(body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        struct Failure<'a> {
            #[serde(borrow, rename = "codeDesc")]
            code_desc: Option<&'a RawValue>,
            #[serde(borrow)]
            message: Option<&'a RawValue>,
            #[serde(borrow, rename = "requestID")]
            request_id: Option<&'a RawValue>,
        }

        let failure: Failure<'_> = serde_json::from_slice(body).unwrap_or_default();
        let described = text(failure.code_desc).unwrap_or_default();
        let (word, sentence) = described.split_once(':').unwrap_or((&described, ""));
        Self {
            message: text(failure.message).unwrap_or_else(|| sentence.to_owned()),
            word: word.trim().to_owned(),
            request_id: text(failure.request_id),
        }
    }

    fn shown_code(&self) -> Option<Clean> {
        match WORDS.into_iter().find(|known| *known == self.word) {
            Some(known) => Some(Clean::ours(known)),
            None => Clean::code(&self.word).non_empty(),
        }
    }

    fn class(&self, operation: KmsOperation, status: u16) -> Class {
        match status {
            // The user or the refresh token; or the token that came of it.
            401 => Class::Token,
            // One code for a missing permission and a missing licence; only the text differs.
            403 if self.speaks_of(&["license", "licence"]) => Class::Account,
            403 | 404 | 409 | 422 => Class::Configuration,
            400 if operation == KmsOperation::Token => Class::Defect,
            400 if self.word == "NCERRCryptoOperationFailed" => Class::Ciphertext,
            // About the key, and not about what it was to do.
            400 if self.speaks_of(&["mode", "algorithm", "key type", "usage", "state"]) => {
                Class::Configuration
            }
            _ => Class::of_status(status),
        }
    }

    fn speaks_of(&self, words: &[&str]) -> bool {
        let message = self.message.to_lowercase();
        words.iter().any(|word| message.contains(word))
    }
}

#[cfg(test)]
mod tests;
