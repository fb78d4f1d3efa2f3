//! The errors of CipherTrust Manager, as its API words them.

use super::*;

/// An error of the appliance. The number and the word are what clients go by.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) verdict: Verdict,
    pub(super) status: u16,
    pub(super) code: u32,
    pub(super) word: &'static str,
    pub(super) message: String,
}

impl Error {
    pub(super) fn new(
        verdict: Verdict,
        status: u16,
        (code, word): (u32, &'static str),
        message: impl Into<String>,
    ) -> Self {
        Self {
            verdict,
            status,
            code,
            word,
            message: message.into(),
        }
    }

    pub(super) fn refused(
        why: Refusal,
        status: u16,
        code: (u32, &'static str),
        message: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Refused(why), status, code, message)
    }

    pub(super) fn failed(
        why: Failure,
        status: u16,
        code: (u32, &'static str),
        message: impl Into<String>,
    ) -> Self {
        Self::new(Verdict::Failed(why), status, code, message)
    }

    pub(super) fn reply(self, request_id: &str) -> Reply {
        let body = json!({
            "code": self.code,
            "codeDesc": format!("{}: {}", self.word, self.message),
            "message": self.message,
            "requestID": request_id,
        });
        Reply::new(
            self.verdict,
            self.status,
            "application/json",
            body.to_string(),
        )
        .because(self.word, self.message)
    }
}

pub(super) const UNAUTHORIZED: (u32, &str) = (5, "NCERRUnauthorizedAccess");
pub(super) const INSUFFICIENT: (u32, &str) = (6, "NCERRInsufficientPermissions");
pub(super) const INVALID_PARAM: (u32, &str) = (9, "NCERRInvalidParamValue");
pub(super) const CONFLICT: (u32, &str) = (12, "NCERRConflict");
pub(super) const INTERNAL: (u32, &str) = (14, "NCERRInternalServerError");
pub(super) const BAD_REQUEST: (u32, &str) = (15, "NCERRBadRequest");
pub(super) const NOT_FOUND: (u32, &str) = (16, "NCERRResourceNotFound");
pub(super) const CRYPTO_FAILED: (u32, &str) = (106, "NCERRCryptoOperationFailed");
