//! What a refusal comes down to, whoever refuses, and the error that is made of it.

use std::time::Duration;

use crate::{Blame, HttpAnswer, KmsError, KmsErrorKind, KmsKind, KmsOperation, Retry, text::Clean};

/// What an error of a KMS means. Each provider has a table from its own codes to these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Something about the key, its permissions, or the endpoint.
    Configuration,
    /// The credentials.
    Credentials,
    /// The token, for which another can be fetched.
    Token,
    /// Our clock, or the server's.
    Clock,
    /// The blob.
    Ciphertext,
    /// Something got lost or altered on the way.
    Integrity,
    /// The rate.
    Throttled,
    /// The KMS is in trouble; it may pass.
    Trouble,
    /// The KMS is in trouble that does not pass by itself.
    LastingTrouble,
    /// The account.
    Account,
    /// A request that the KMS does not understand: our defect, or not the KMS at all.
    Defect,
    /// Neither an answer nor an error.
    NoAnswer,
    /// A redirection.
    Redirect,
}

impl Class {
    /// Without a known code only the status is left, and it says little.
    ///
    /// 403 is taken for a missing permission rather than for wrong credentials: wrong credentials come with a code, so
    /// this is something on the way, such as a firewall, that must be told to let us pass.
    pub(crate) const fn of_status(status: u16) -> Self {
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
            Self::Credentials | Self::Token | Self::Clock => KmsErrorKind::Authorization,
            Self::Throttled => KmsErrorKind::Throttled,
            Self::Trouble | Self::LastingTrouble => KmsErrorKind::Unreachable,
            Self::Account => KmsErrorKind::Account,
            Self::NoAnswer if matches!(operation, KmsOperation::Token) => KmsErrorKind::Unreachable,
            Self::Ciphertext | Self::Integrity | Self::Defect | Self::NoAnswer => {
                operation.failed()
            }
        }
    }

    /// What is at fault. An answer without a word of the KMS's own is hardly the KMS's.
    const fn blame(self, operation: KmsOperation, has_words: bool) -> Blame {
        match self {
            Self::Configuration | Self::Defect if !has_words => Blame::Endpoint,
            Self::Configuration if matches!(operation, KmsOperation::Token) => Blame::Grant,
            Self::Configuration => Blame::Key,
            Self::Credentials | Self::Token => Blame::Credentials,
            Self::Clock => Blame::Clock,
            Self::Ciphertext => Blame::Edek,
            Self::Integrity => Blame::Alteration,
            Self::Throttled => Blame::Rate,
            Self::Trouble | Self::LastingTrouble => Blame::Kms,
            Self::Account => Blame::Account,
            Self::Defect => Blame::Request,
            Self::NoAnswer | Self::Redirect => Blame::Endpoint,
        }
    }

    /// What to say where the KMS says nothing.
    const fn sentence(self) -> &'static str {
        match self {
            Self::Configuration => "the key cannot be used, or a permission is missing",
            Self::Credentials => "the credentials are not accepted",
            Self::Token => "the token is not accepted",
            Self::Clock => "the time of the request is too far from the server's",
            Self::Ciphertext => "the ciphertext does not decrypt",
            Self::Integrity => "the request was altered on its way",
            Self::Throttled => "the rate is limited",
            Self::Trouble | Self::LastingTrouble => "the service is not available",
            Self::Account => "the account is suspended, unpaid or not subscribed",
            Self::Defect => "the request was not understood",
            Self::NoAnswer => "that is no answer",
            Self::Redirect => {
                "redirections are not followed, so the endpoint must be the KMS itself"
            }
        }
    }
}

/// What somebody refused, and how.
#[derive(Debug)]
pub(crate) struct Refusal<'a> {
    pub(crate) provider: KmsKind,
    pub(crate) operation: KmsOperation,
    pub(crate) class: Class,
    /// What the operation is called there.
    pub(crate) api_name: &'static str,
    pub(crate) code: Option<Clean>,
    /// Not yet cleaned; empty if nothing was said.
    pub(crate) message: &'a str,
    /// Not yet cleaned.
    pub(crate) request_id: Option<&'a str>,
    /// The pause that the server wishes for.
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal<'_> {
    pub(crate) fn into_error(self, answer: &HttpAnswer<'_>) -> KmsError {
        let class = self.class;
        let server_time = answer.server_time();
        let retry = match class {
            Class::Throttled => Retry::Throttled {
                after: self.retry_after,
            },
            Class::Trouble | Class::Integrity => Retry::Transient,
            Class::Token => Retry::AfterNewToken,
            // Without the server's time there is nothing to repair by.
            Class::Clock => server_time.map_or(Retry::No, |server_time| Retry::AfterClockRepair {
                server_time,
            }),
            Class::Configuration
            | Class::Credentials
            | Class::Ciphertext
            | Class::LastingTrouble
            | Class::Account
            | Class::Defect
            | Class::NoAnswer
            | Class::Redirect => Retry::No,
        };
        let blame = class.blame(
            self.operation,
            self.code.is_some() || !self.message.is_empty(),
        );
        let sentence = Clean::sentence(self.message)
            .non_empty()
            .unwrap_or_else(|| {
                let (name, status) = (self.api_name, answer.status);
                let why = match (class, blame) {
                    (Class::Configuration | Class::Defect, Blame::Endpoint) => {
                        "that is not how this KMS refuses"
                    }
                    _ => class.sentence(),
                };
                Clean::sentence(&format!(
                    "it answered {name} with HTTP status {status}: {why}"
                ))
            });
        let kind = class.kind(self.operation);
        KmsError::new(kind, self.provider, self.operation, sentence)
            .with_code(self.code)
            .with_request_id(self.request_id.and_then(Clean::request_id))
            .with_retry(retry)
            .with_blame(blame)
            // A token's times are in the server's time, so the next one must know it.
            .with_server_time(server_time.filter(|_| class == Class::Token))
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn refused(class: Class, operation: KmsOperation, message: &str) -> KmsError {
        let refusal = Refusal {
            provider: KmsKind::Gcp,
            operation,
            class,
            api_name: "it",
            code: None,
            message,
            request_id: None,
            retry_after: None,
        };
        refusal.into_error(&HttpAnswer {
            status: 403,
            headers: b"",
            body: b"",
        })
    }

    #[test]
    fn a_refusal_without_a_word_is_hardly_the_kmss() {
        let (wrap, token) = (KmsOperation::Wrap, KmsOperation::Token);
        for (class, operation, message, blame) in [
            (Class::Configuration, wrap, "", Blame::Endpoint),
            (Class::Configuration, token, "", Blame::Endpoint),
            (Class::Defect, wrap, "", Blame::Endpoint),
            (Class::Configuration, wrap, "no such key", Blame::Key),
            (Class::Configuration, token, "not for you", Blame::Grant),
            (Class::Defect, wrap, "what?", Blame::Request),
            (Class::Trouble, wrap, "", Blame::Kms),
            (Class::Redirect, wrap, "moved", Blame::Endpoint),
        ] {
            let error = refused(class, operation, message);
            assert_eq!(error.blame(), blame, "{class:?} {message:?}");
        }
        let error = refused(Class::Configuration, wrap, "");
        assert_eq!(
            error.sentence(),
            "it answered it with HTTP status 403: that is not how this KMS refuses"
        );
    }
}
