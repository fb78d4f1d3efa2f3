//! Where configurations come from when there is no file: the service account at a broker, and what belongs to it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tsp_rt::tls::ClientTls;
use tsp_wire::account::env::{
    CONFIG_BROKER_URL, SERVICE_ACCOUNT_ID, SERVICE_CONFIG_ID, SERVICE_ENCRYPTION_PRIVATE_KEY,
    SERVICE_SEGMENT_ID, SERVICE_SIGNING_PRIVATE_KEY, ServiceAccount,
};

use super::{Mode, NotUnicode, Reader, Strings, Why, parse_bool, parse_number};

/// The variables that make a service account.
pub(super) const ACCOUNT: [&str; 6] = [
    CONFIG_BROKER_URL,
    SERVICE_ACCOUNT_ID,
    SERVICE_CONFIG_ID,
    SERVICE_SEGMENT_ID,
    SERVICE_ENCRYPTION_PRIVATE_KEY,
    SERVICE_SIGNING_PRIVATE_KEY,
];

const CA: &str = "TSP_BROKER_CA";
const ALLOW_HTTP: &str = "TSP_BROKER_ALLOW_HTTP";
const CACHE: &str = "TSP_SNAPSHOT_CACHE";
const REFRESH: &str = "TSP_CONFIG_REFRESH_S";
const AGE_MAX: &str = "TSP_CONFIG_MAX_AGE_S";

/// `TSP_CONFIG_REFRESH_S`, default and maximum: a change must not take longer than an hour to reach a proxy.
const REFRESH_S: u64 = 600;
const REFRESH_S_MAX: u64 = 3_600;

/// How often `tsp dev --broker` looks.
const DEV_REFRESH_S: u64 = 3;

/// `TSP_CONFIG_MAX_AGE_S`, default and maximum. It can be made less, never more: vendors rely on it when they revoke.
const AGE_S_MAX: u64 = 24 * 60 * 60;

/// A broker, and how to use it.
#[derive(Debug)]
pub struct BrokerConfig {
    /// Who asks it.
    pub account: ServiceAccount,
    /// `TSP_BROKER_CA`: whom to trust instead of the public authorities.
    pub roots: Option<ClientTls>,
    /// `TSP_SNAPSHOT_CACHE`.
    pub cache: Option<PathBuf>,
    /// `TSP_CONFIG_REFRESH_S`.
    pub refresh_every: Duration,
    /// `TSP_CONFIG_MAX_AGE_S`.
    pub age_max: Duration,
}

impl BrokerConfig {
    /// For a broker that was started for one process, and whose changes a person wants to see.
    pub(crate) fn for_dev(account: ServiceAccount) -> Self {
        Self {
            account,
            roots: None,
            cache: None,
            refresh_every: Duration::from_secs(DEV_REFRESH_S),
            age_max: Duration::from_secs(AGE_S_MAX),
        }
    }
}

impl<S: Strings> Reader<'_, S> {
    /// The broker's variables, if they are what configurations come by: no file is named, and one of them is there.
    pub(super) fn broker(
        &mut self,
        mode: Mode,
        has_file: bool,
        age_max: Duration,
    ) -> Option<BrokerConfig> {
        let strings = self.strings;
        let is_set = |name| match strings.get(name) {
            Ok(value) => value.is_some_and(|value| !value.trim().is_empty()),
            Err(NotUnicode) => true,
        };
        if mode == Mode::Dev {
            return None;
        }
        if has_file {
            if is_set(CONFIG_BROKER_URL) {
                self.warning(
                    CONFIG_BROKER_URL,
                    "is not used: configurations come from TSP_CONFIG_FILE",
                );
            }
            return None;
        }
        if !ACCOUNT.into_iter().any(is_set) || self.has_problem_with("TSP_CONFIG_FILE") {
            return None;
        }
        let account = ServiceAccount::from_variables(|name| strings.get(name).ok().flatten());
        let account = match account {
            Ok(account) => Some(account),
            Err(problems) => {
                for problem in problems {
                    self.problem(problem.name, problem.why);
                }
                None
            }
        };
        let allow_http = self.parse(ALLOW_HTTP, parse_bool).unwrap_or(false);
        if let Some(account) = &account
            && let Some(authority) = account.broker_url.strip_prefix("http://")
            && !allow_http
            && !is_this_machine(authority)
        {
            self.problem(
                CONFIG_BROKER_URL,
                "is plain HTTP to another machine: whoever is on the way could change who has which KMS config. Use \
                 https://, or say TSP_BROKER_ALLOW_HTTP=true",
            );
        }
        let roots = self.parse(CA, |path| {
            crate::source::broker::roots(Path::new(path)).map_err(Why::from)
        });
        let cache = self.text(CACHE).map(PathBuf::from);
        let refresh_s = self.parse(REFRESH, |text| parse_number(text, 1, REFRESH_S_MAX));
        let refresh_every = Duration::from_secs(refresh_s.unwrap_or(REFRESH_S));
        if age_max < refresh_every * 2 && !self.has_problem_with(REFRESH) {
            let why = "is less than twice TSP_CONFIG_REFRESH_S: one refresh that fails would stop the proxy";
            self.problem(AGE_MAX, why);
        }
        Some(BrokerConfig {
            account: account?,
            roots,
            cache,
            refresh_every,
            age_max,
        })
    }

    /// `TSP_CONFIG_MAX_AGE_S`.
    pub(super) fn config_age_max(&mut self) -> Duration {
        let seconds = self.parse(AGE_MAX, |text| parse_number(text, 1, AGE_S_MAX));
        Duration::from_secs(seconds.unwrap_or(AGE_S_MAX))
    }
}

/// Whether a URL's authority leads nowhere else.
pub(super) fn is_this_machine(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}
