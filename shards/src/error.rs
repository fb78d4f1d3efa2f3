//! What can go wrong with an operation, and its one mapping to an answer.

use std::{borrow::Cow, fmt, time::Duration};

use tsp_kms::{KmsError, Retry};
use tsp_wire::{KmsConfigId, TspCode, api::DecodeError, edek::InvalidEdek};

use crate::{events::NoRoom, metrics::RefusedBy, secrets::CreationError};

/// Why an operation failed. Each variant says who caused it.
#[derive(Debug)]
pub(crate) enum OpError {
    /// Client: API key missing or not recognized.
    Unauthorized,
    /// Client: the API key is limited to other operations or tenants.
    OutOfScope,
    /// Client: no such path.
    UnknownPath,
    /// Client: the path exists, for another method.
    WrongMethod,
    /// Client: a compressed body.
    CompressedBody,
    /// Client: the body is longer than the limit, in bytes.
    BodyTooLong(usize),
    /// Client: the body did not arrive in time.
    BodyTooSlow(Duration),
    /// Client: the connection broke in the middle of the body.
    BodyCutOff,
    /// Client: the body cannot be understood.
    Body(DecodeError),
    /// Client: more items in a batch than the limit.
    TooManyItems(usize),
    /// Client: more secret paths in one derivation than the limit.
    TooManySecretPaths(usize),
    /// Client or vendor: no such tenant, or none of its KMS configs is active.
    UnknownTenant,
    /// Vendor or tenant: nothing is primary.
    NoPrimaryKmsConfig { tenant: Box<str> },
    /// Vendor or tenant: the EDEK's config is not active for the tenant.
    KmsConfigNotActive { tenant: Box<str>, config: i32 },
    /// Client: not an EDEK.
    InvalidEdek(InvalidEdek),
    /// Client: a leased EDEK whose parts do not fit together.
    InvalidLeasedEdek(&'static str),
    /// Vendor or tenant: the KMS config does not validate, so it was left out of the snapshot.
    KmsConfigBroken(KmsConfigId),
    /// The tenant's KMS, or the way to it.
    Kms(KmsError),
    /// The tenant's KMS, or us: a new tenant secret could not be made or stored.
    SecretNotCreated(CreationError),
    /// Us, or the logdriver: the event cannot be queued.
    EventRejected,
    /// Us: more work than the shard takes on at a time.
    Overloaded,
    /// Us: more bytes of request bodies than the shard holds at a time.
    TooManyBodies,
    /// Us: more work of this tenant than the shard takes on at a time; mostly because the tenant's KMS is slow.
    TenantOverloaded,
    /// Us, or the broker: the configurations are older than they may be.
    StaleConfigurations,
    /// Us: no snapshot has arrived yet.
    NotReady,
}

/// When to come again if there was no place: a second is many operations, and what is full is full of requests that end
/// within five.
pub(crate) const LATER: Duration = Duration::from_secs(1);

/// What an [`OpError`] tells the caller.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ErrorResponse {
    pub(crate) status: u16,
    pub(crate) code: TspCode,
    pub(crate) message: Cow<'static, str>,
    pub(crate) retry_after: Option<Duration>,
    /// The limit that was met, if it was one of ours.
    pub(crate) limit: Option<RefusedBy>,
}

impl ErrorResponse {
    fn new(code: TspCode, message: impl Into<Cow<'static, str>>) -> Self {
        let (status, message) = (code.http_status(), message.into());
        Self {
            status,
            code,
            message,
            retry_after: None,
            limit: None,
        }
    }

    fn by_limit(self, limit: RefusedBy) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// Not now: this proxy has too much to do, or cannot yet. Status 503 and `Retry-After`, which load balancers and
    /// well-made clients understand.
    fn later(self) -> Self {
        self.after(LATER)
    }

    fn after(self, pause: Duration) -> Self {
        Self {
            retry_after: Some(pause),
            ..self.with_status(503)
        }
    }
}

impl OpError {
    /// Status, code and text for the caller: chosen here and nowhere else.
    pub(crate) fn response(&self) -> ErrorResponse {
        let request =
            |message: Cow<'static, str>| ErrorResponse::new(TspCode::InvalidRequest, message);
        let edek = |why: &dyn fmt::Display| {
            ErrorResponse::new(TspCode::InvalidProvidedEdek, why.to_string())
        };
        match self {
            Self::Unauthorized => {
                ErrorResponse::new(TspCode::Unauthorized, "API key missing or not recognized.")
            }
            Self::OutOfScope => ErrorResponse::new(
                TspCode::Unauthorized,
                "This API key is limited to other operations or tenants.",
            ),
            Self::UnknownPath => request("No such endpoint.".into()).with_status(404),
            Self::WrongMethod => request("This endpoint takes POST.".into()).with_status(405),
            Self::CompressedBody => request(
                "Request body: compressed bodies are not accepted; send it without Content-Encoding."
                    .into(),
            )
            .with_status(415),
            Self::BodyTooLong(max) => {
                request(format!("Request body: longer than the limit of {max} bytes.").into())
                    .with_status(413)
                    .by_limit(RefusedBy::BodyBytesMax)
            }
            Self::BodyTooSlow(max) => request(
                format!("Request body: did not arrive within {} seconds.", max.as_secs()).into(),
            )
            .by_limit(RefusedBy::BodyTimeout),
            Self::BodyCutOff => request("Request body: ended before it was complete.".into()),
            Self::Body(why) => request(format!("Request body: {why}.").into()),
            Self::TooManyItems(max) => request(
                format!("Request body: more than {max} items in one batch; split it.").into(),
            )
            .with_status(413)
            .by_limit(RefusedBy::BatchItemsMax),
            Self::TooManySecretPaths(max) => request(
                format!("Request body: more than {max} secret paths; send several requests.").into(),
            )
            .with_status(413)
            .by_limit(RefusedBy::SecretPathsMax),
            Self::UnknownTenant => ErrorResponse::new(
                TspCode::UnknownTenantOrNoActiveKmsConfigurations,
                "No configurations available for the provided tenant.",
            ),
            Self::NoPrimaryKmsConfig { tenant } => ErrorResponse::new(
                TspCode::NoPrimaryKmsConfiguration,
                format!(
                    "Tenant {tenant} has no primary KMS configuration; new data cannot be encrypted."
                ),
            ),
            Self::KmsConfigNotActive { tenant, config } => ErrorResponse::new(
                TspCode::KmsConfigurationDisabled,
                format!(
                    "KMS configuration {config} is not assigned to tenant {tenant} or is disabled."
                ),
            ),
            Self::InvalidEdek(why) => edek(why),
            Self::InvalidLeasedEdek(why) => edek(why),
            Self::KmsConfigBroken(id) => ErrorResponse::new(
                TspCode::KmsConfigurationInvalid,
                format!(
                    "KMS configuration {id} is not valid; the proxy's log says what is wrong with it."
                ),
            ),
            Self::Kms(why) => {
                let response = ErrorResponse::new(why.kind().tsp_code(), why.to_string());
                match why.retry() {
                    Retry::Throttled { after } => ErrorResponse {
                        retry_after: after,
                        ..response
                    },
                    Retry::Later { after } => response.after(after),
                    Retry::No
                    | Retry::Transient
                    | Retry::AfterClockRepair { .. }
                    | Retry::AfterNewToken => response,
                }
            }
            Self::SecretNotCreated(why) => ErrorResponse::new(
                TspCode::TenantSecretCreationFailed,
                format!("A new tenant secret could not be created: {why}"),
            ),
            Self::EventRejected => ErrorResponse::new(
                TspCode::SecurityEventRejected,
                "The event was not accepted: the queue to the log-event driver is full.",
            )
            .later(),
            Self::Overloaded => ErrorResponse::new(
                TspCode::UnknownError,
                "The proxy has more requests in flight than it takes on; try again.",
            )
            .later()
            .by_limit(RefusedBy::InflightMax),
            Self::TooManyBodies => ErrorResponse::new(
                TspCode::UnknownError,
                "The proxy holds more request bodies than it has room for; try again.",
            )
            .later()
            .by_limit(RefusedBy::BodiesBytesMax),
            Self::TenantOverloaded => ErrorResponse::new(
                TspCode::UnknownError,
                "The proxy has more requests of this tenant in flight than it takes on, mostly \
                 because the tenant's KMS is slow; try again.",
            )
            .later()
            .by_limit(RefusedBy::TenantInflightMax),
            Self::StaleConfigurations => ErrorResponse::new(
                TspCode::UnknownError,
                "The tenants' configurations could not be refreshed for 24 hours; key operations \
                 are refused until they are.",
            ),
            Self::NotReady => ErrorResponse::new(
                TspCode::UnknownError,
                "The proxy has no tenant configurations yet; try again when /ready answers 200.",
            )
            .later(),
        }
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.response().message)
    }
}

impl std::error::Error for OpError {}

impl From<KmsError> for OpError {
    fn from(why: KmsError) -> Self {
        Self::Kms(why)
    }
}

impl From<CreationError> for OpError {
    fn from(why: CreationError) -> Self {
        Self::SecretNotCreated(why)
    }
}

impl From<DecodeError> for OpError {
    fn from(why: DecodeError) -> Self {
        Self::Body(why)
    }
}

impl From<InvalidEdek> for OpError {
    fn from(why: InvalidEdek) -> Self {
        Self::InvalidEdek(why)
    }
}

impl From<NoRoom> for OpError {
    fn from(_: NoRoom) -> Self {
        Self::EventRejected
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tsp_kms::{Blame, KmsKind, KmsOperation};

    use super::*;

    fn every_error() -> Vec<OpError> {
        let tenant = || "acme".into();
        let id = KmsConfigId::new(7).unwrap();
        let (aws, wrap) = (KmsKind::Aws, KmsOperation::Wrap);
        vec![
            OpError::Unauthorized,
            OpError::OutOfScope,
            OpError::UnknownPath,
            OpError::WrongMethod,
            OpError::CompressedBody,
            OpError::BodyTooLong(16),
            OpError::BodyTooSlow(Duration::from_secs(15)),
            OpError::BodyCutOff,
            OpError::TooManyItems(5),
            OpError::TooManySecretPaths(5),
            OpError::SecretNotCreated(CreationError::NotStored),
            OpError::SecretNotCreated(CreationError::Wrap(Arc::new(OpError::NotReady))),
            OpError::UnknownTenant,
            OpError::NoPrimaryKmsConfig { tenant: tenant() },
            OpError::KmsConfigNotActive {
                tenant: tenant(),
                config: 7,
            },
            OpError::InvalidEdek(InvalidEdek::NoEntry),
            OpError::InvalidLeasedEdek("Provided EDEK is leased, but has no tag."),
            OpError::KmsConfigBroken(id),
            OpError::Kms(KmsError::unreachable(
                aws,
                wrap,
                Retry::Transient,
                Blame::Network,
                "connection refused",
            )),
            OpError::Kms(KmsError::unreachable(
                aws,
                wrap,
                Retry::Later { after: LATER },
                Blame::Kms,
                "too many wait",
            )),
            OpError::EventRejected,
            OpError::Overloaded,
            OpError::TooManyBodies,
            OpError::TenantOverloaded,
            OpError::StaleConfigurations,
            OpError::NotReady,
        ]
    }

    #[test]
    fn every_error_has_a_message_and_a_status_that_no_stack_repeats_by_itself() {
        for error in every_error() {
            let response = error.response();
            assert!(!response.message.is_empty(), "{error:?}");
            assert_eq!(
                response.status == 503,
                response.retry_after.is_some(),
                "{error:?}"
            );
            assert!(
                response.status >= 400 && response.status != 408,
                "{error:?}"
            );
            assert_eq!(
                response.status == 401,
                response.code == TspCode::Unauthorized,
                "{error:?}"
            );
        }
    }

    #[test]
    fn messages_hold_the_words_that_clients_look_for() {
        let message = |error: OpError| error.response().message.into_owned();
        let unknown = message(OpError::UnknownTenant);
        assert!(unknown.contains("No configurations available for the provided tenant"));
        let edek = message(OpError::InvalidEdek(InvalidEdek::NotProtobuf));
        assert!(edek.contains("Provided EDEK didn't contain IronCore EDEKs"));
        let other = OpError::KmsConfigNotActive {
            tenant: "acme".into(),
            config: 7,
        };
        assert!(message(other).contains("is not assigned to tenant"));
    }
}
