//! [`CallError`]: why a call to a KMS brought no answer.

use std::fmt;

use tsp_kms::{Blame, KmsError, KmsKind, KmsOperation, Retry};
use tsp_rt::{CertificateFault, NetError};

use super::{CONNECTING, WAITING_FOR_ANSWER};
use crate::error::LATER;
use tsp_wire::destinations::Forbidden;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// Us: too many operations wait for a connection to this endpoint.
    TooManyWaiters,
    /// The tenant's KMS or the network: out of time, while doing what is named.
    Late(&'static str),
    /// The tenant's KMS or the network: no connection.
    Connect(NetError),
    /// Whoever wrote the endpoint, or rules over its name: it leads to where this proxy may not connect.
    Forbidden(Forbidden),
    /// The tenant's KMS or the network: the connection broke off before the answer was complete.
    CutOff,
    /// The tenant's KMS: what came is not HTTP.
    NotHttp,
    /// The tenant's KMS: the answer is longer than any real one.
    AnswerTooLong,
    /// The tenant's KMS or the network: it was down just now, and it is not yet time to ask again.
    Down,
    /// Us: the call's task ended early.
    Broken,
    /// Vendor: the configured certificates are none. A snapshot that has been validated has no such config.
    Roots,
}

impl CallError {
    /// What the operation makes of it.
    pub(super) fn to_kms_error(&self, provider: KmsKind, operation: KmsOperation) -> KmsError {
        let why = self.to_string();
        match self {
            // Our own words, and a hash that anybody may compute from the certificate.
            Self::Connect(NetError::Pin(_)) => {
                KmsError::not_the_pinned_key(provider, operation, why)
            }
            Self::Forbidden(_) => KmsError::forbidden_endpoint(provider, operation, why),
            Self::AnswerTooLong => {
                KmsError::unusable(provider, operation, "the answer is too long")
            }
            Self::TooManyWaiters
            | Self::Late(_)
            | Self::Connect(_)
            | Self::CutOff
            | Self::NotHttp
            | Self::Down
            | Self::Broken
            | Self::Roots => {
                KmsError::unreachable(provider, operation, self.retry(), self.blame(), why)
            }
        }
    }

    /// What is at fault.
    fn blame(&self) -> Blame {
        match self {
            Self::Late(what) if *what == CONNECTING => Blame::Network,
            // Otherwise places and answers do not come because the KMS is slow.
            Self::TooManyWaiters | Self::Late(_) | Self::Down => Blame::Kms,
            Self::Connect(NetError::Certificate(CertificateFault::Name, _)) => {
                Blame::CertificateName
            }
            Self::Connect(NetError::Certificate(CertificateFault::Time, _)) => {
                Blame::CertificateTime
            }
            Self::Connect(NetError::Certificate(CertificateFault::Issuer, _)) | Self::Roots => {
                Blame::CertificateIssuer
            }
            Self::Connect(NetError::Pin(_)) => Blame::Pin,
            Self::Connect(NetError::Exhausted) | Self::Broken => Blame::Proxy,
            Self::Connect(
                NetError::Timeout
                | NetError::Refused
                | NetError::Reset
                | NetError::Unreachable
                | NetError::Unresolved
                | NetError::Tls(_)
                | NetError::Io(_),
            ) => Blame::Network,
            Self::Forbidden(_) => Blame::Address,
            Self::CutOff => Blame::Network,
            Self::NotHttp | Self::AnswerTooLong => Blame::Endpoint,
        }
    }

    /// Whether a second try may help.
    pub(super) fn retry(&self) -> Retry {
        match self {
            // For the caller; what fills the queue ends within seconds.
            Self::TooManyWaiters => Retry::Later { after: LATER },
            Self::Forbidden(_) | Self::AnswerTooLong | Self::Down | Self::Roots => Retry::No,
            Self::Connect(why) if !why.is_retryable() => Retry::No,
            Self::Late(_) | Self::Connect(_) | Self::CutOff | Self::NotHttp | Self::Broken => {
                Retry::Transient
            }
        }
    }

    /// Whether this says something about the key's own service, and not just about the way to the endpoint (which has a
    /// breaker of its own) or about us.
    pub(super) fn is_the_keys_own(&self) -> bool {
        match self {
            Self::Late(what) => *what == WAITING_FOR_ANSWER,
            Self::CutOff | Self::NotHttp | Self::AnswerTooLong => true,
            Self::TooManyWaiters
            | Self::Connect(_)
            | Self::Forbidden(_)
            | Self::Down
            | Self::Broken
            | Self::Roots => false,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyWaiters => f.write_str("too many operations wait for a connection"),
            Self::Late(what) => write!(f, "no answer in time while {what}"),
            Self::Connect(why) => write!(f, "{why}"),
            Self::Forbidden(why) => write!(f, "{why}"),
            Self::NotHttp => f.write_str("the answer is not HTTP"),
            Self::CutOff => f.write_str("the connection broke off before the answer was complete"),
            Self::AnswerTooLong => f.write_str("the answer is too long"),
            Self::Down => {
                f.write_str("it did not answer several times in a row, and is asked again soon")
            }
            Self::Broken => f.write_str("the call was broken off inside the proxy"),
            Self::Roots => f.write_str("the configured certificates cannot be read"),
        }
    }
}

impl From<NetError> for CallError {
    fn from(why: NetError) -> Self {
        Self::Connect(why)
    }
}
