//! The way to a cloud's log system, which takes the same kinds of credentials as its KMS.
//!
//! What is written there, and what the answers mean, is the logdriver's business. Here is only how a tenant proves itself,
//! sans I/O like all of this crate.

use std::{fmt, time::SystemTime};

use tsp_wire::logging;

use crate::{
    ConfigError, Endpoint, HttpAnswer, HttpRequest, KmsError, KmsKind, Session, Token, TokenStep,
    aws::AwsLogs, azure::AzureLogs, gcp::GcpLogs,
};

/// A cloud's log system, and the credential to write there.
pub struct CloudLogs(Kind);

#[derive(Debug)]
enum Kind {
    Aws(AwsLogs),
    Google(GcpLogs),
    Azure(AzureLogs),
}

impl CloudLogs {
    /// AWS CloudWatch Logs.
    ///
    /// # Errors
    /// The first member that cannot be right.
    pub fn aws(config: &logging::CloudWatch) -> Result<Self, ConfigError> {
        AwsLogs::new(config).map(|logs| Self(Kind::Aws(logs)))
    }

    /// Google Cloud Logging.
    ///
    /// # Errors
    /// The first member that cannot be right.
    pub fn google(config: &logging::Gcp) -> Result<Self, ConfigError> {
        GcpLogs::new(config).map(|logs| Self(Kind::Google(logs)))
    }

    /// Azure Monitor.
    ///
    /// # Errors
    /// The first member that cannot be right.
    pub fn azure(config: &logging::Azure) -> Result<Self, ConfigError> {
        AzureLogs::new(config).map(|logs| Self(Kind::Azure(logs)))
    }

    /// Where to connect.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        match &self.0 {
            Kind::Aws(logs) => &logs.endpoint,
            Kind::Google(logs) => &logs.endpoint,
            Kind::Azure(logs) => &logs.endpoint,
        }
    }

    /// The next step towards a token, as [`RemoteKms::token_step`](crate::RemoteKms::token_step); `None` if requests are
    /// signed with what the configuration holds.
    ///
    /// # Errors
    /// [`KmsError`] if the credential can give none.
    pub fn token_step(
        &self,
        refused: Option<&KmsError>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<Option<TokenStep>, KmsError> {
        Ok(match &self.0 {
            Kind::Aws(logs) => {
                let call = logs.token_call(session, now);
                call.map(|call| TokenStep::Call(Box::new(call)))
            }
            Kind::Google(logs) => Some(logs.account().step(refused, session, now)?),
            Kind::Azure(logs) => Some(logs.entra().step(refused, &mut session.clock, now)),
        })
    }

    /// Takes the token out of the answer to a [`TokenStep::Call`].
    ///
    /// # Errors
    /// [`KmsError`], with what the token endpoint said.
    pub fn read_token(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, KmsError> {
        match &self.0 {
            Kind::Aws(logs) => logs
                .read_token(answer, now)
                .unwrap_or_else(|| Err(KmsError::without_tokens(KmsKind::Aws))),
            Kind::Google(logs) => logs.account().read(answer, now),
            Kind::Azure(logs) => logs.entra().read(answer, now),
        }
    }

    /// A signed call of awsJson 1.1 to CloudWatch Logs.
    ///
    /// # Errors
    /// [`KmsError`] if the token is missing, or if this is no log system of AWS: defects of the caller.
    pub fn aws_request(
        &self,
        target: &'static str,
        body: &[u8],
        token: Option<&Token>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<HttpRequest, KmsError> {
        match &self.0 {
            Kind::Aws(logs) => logs.request(target, body, token, session, now),
            Kind::Google(_) | Kind::Azure(_) => Err(KmsError::without_tokens(KmsKind::Aws)),
        }
    }

    /// What a refusal by AWS means; `None` if this is no log system of AWS.
    #[must_use]
    pub fn aws_refusal(&self, answer: &HttpAnswer<'_>) -> Option<KmsError> {
        match &self.0 {
            Kind::Aws(logs) => Some(logs.refusal(answer)),
            Kind::Google(_) | Kind::Azure(_) => None,
        }
    }
}

impl fmt::Debug for CloudLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
