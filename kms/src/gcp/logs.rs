//! The way to Google Cloud Logging, for a service account that may write there.

use std::sync::Arc;

use tsp_wire::logging;

use super::{config::logging_account, token::Account};
use crate::{ConfigError, Endpoint, http::Roots};

/// Where the API is.
const HOST: &str = "logging.googleapis.com";

/// All that a token is to be good for.
const SCOPE: &str = "https://www.googleapis.com/auth/logging.write";

/// Google Cloud Logging, and who writes there.
#[derive(Debug)]
pub(crate) struct GcpLogs {
    pub(crate) endpoint: Endpoint,
    account: Arc<Account>,
}

impl GcpLogs {
    pub(crate) fn new(config: &logging::Gcp) -> Result<Self, ConfigError> {
        let roots = Roots::of(config.ca_pem.as_deref())?;
        Ok(Self {
            endpoint: Endpoint::of_url("endpoint", config.endpoint.as_deref(), HOST, roots)?,
            account: Arc::new(logging_account(config)?.with_scope(SCOPE)),
        })
    }

    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }
}
