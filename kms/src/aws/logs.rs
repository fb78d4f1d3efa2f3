//! The way to AWS CloudWatch Logs, with the keys or the role of a logging configuration.

use std::time::SystemTime;

use tsp_wire::{Secret, logging};

use super::{
    Credentials,
    answer::refusal,
    config::{check_keys, check_region, check_role},
    signed,
    sigv4::Signer,
    sts::Role,
};
use crate::{
    ConfigError, Endpoint, HttpAnswer, HttpRequest, KmsError, KmsOperation, Session, Token,
    TokenCall, http::Roots,
};

/// Name of the service in a signature's scope.
const SERVICE: &str = "logs";

/// CloudWatch Logs of one region, and who writes there.
#[derive(Debug)]
pub(crate) struct AwsLogs {
    pub(crate) endpoint: Endpoint,
    host: String,
    credentials: Credentials,
}

impl AwsLogs {
    pub(crate) fn new(config: &logging::CloudWatch) -> Result<Self, ConfigError> {
        let partition = check_region(&config.region)?;
        let token = config.session_token.as_ref();
        check_keys(&config.access_key_id, &config.secret_access_key, token)?;
        let roots = Roots::of(config.ca_pem.as_deref())?;
        let place = |service, member, url: Option<&str>| {
            let host = format!("{service}.{}.{}", config.region, partition.suffix);
            Endpoint::of_url(member, url, &host, roots.clone())
        };
        let endpoint = place(SERVICE, "endpoint", config.endpoint.as_deref())?;
        let copy = |secret: &Secret<String>| Secret::new(secret.expose().clone());
        let signer = |service| {
            Signer::new(
                config.access_key_id.clone(),
                copy(&config.secret_access_key),
                token.map(copy),
                config.region.clone(),
                service,
            )
        };
        let credentials = match &config.assume_role {
            None => Credentials::Configured(signer(SERVICE)),
            Some(role) => {
                let members = check_role(role, partition)?;
                let sts = place(Role::SERVICE, "stsEndpoint", config.sts_endpoint.as_deref())?;
                let role = Role::new(sts, signer(Role::SERVICE), &members, SERVICE);
                Credentials::Role(Box::new(role))
            }
        };
        Ok(Self {
            host: endpoint.host_header(),
            endpoint,
            credentials,
        })
    }

    /// The call that gets a token, if one is used.
    pub(crate) fn token_call(&self, session: &mut Session, now: SystemTime) -> Option<TokenCall> {
        let role = self.credentials.role()?;
        Some(role.call(session, now))
    }

    pub(crate) fn read_token(
        &self,
        answer: &HttpAnswer<'_>,
        now: SystemTime,
    ) -> Option<Result<Token, KmsError>> {
        let role = self.credentials.role()?;
        Some(role.read(answer, now))
    }

    pub(crate) fn request(
        &self,
        target: &'static str,
        body: &[u8],
        token: Option<&Token>,
        session: &mut Session,
        now: SystemTime,
    ) -> Result<HttpRequest, KmsError> {
        let signer = self.credentials.signer(token, KmsOperation::Wrap)?;
        Ok(signed(&self.host, target, body, signer, session, now))
    }

    pub(crate) fn refusal(&self, answer: &HttpAnswer<'_>) -> KmsError {
        refusal(KmsOperation::Wrap, answer, self.credentials.signed_with())
    }
}
