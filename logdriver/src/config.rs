//! What the process is told: environment variables in, one checked [`ProcessConfig`] out. All problems are told at once.
//!
//! Names of the service account, of the file and of the broker's certificate are the proxy's, so that one env file serves
//! both.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tracing_subscriber::EnvFilter;
use tsp_wire::account::env::{
    CONFIG_BROKER_URL, SERVICE_ACCOUNT_ID, SERVICE_CONFIG_ID, SERVICE_ENCRYPTION_PRIVATE_KEY,
    SERVICE_SEGMENT_ID, SERVICE_SIGNING_PRIVATE_KEY, ServiceAccount,
};
use tsp_wire::{Secret, destinations::Destinations};
use zeroize::Zeroizing;

use crate::{
    ingest::Producer,
    logs,
    pipeline::{Retention, Unknown},
};

/// One environment variable, as the documentation lists it.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its value when it is not set.
    pub default: &'static str,
    /// What it does.
    pub effect: &'static str,
}

const fn variable(name: &'static str, default: &'static str, effect: &'static str) -> Variable {
    Variable {
        name,
        default,
        effect,
    }
}

/// Every variable that the logdriver has of its own or shares with the proxy, in the order of the documentation.
pub const VARIABLES: [Variable; 26] = [
    variable(
        "LOGDRIVER_EVENT_PRODUCER_URL",
        "tcp://localhost:5555",
        "the proxies, with commas between; `tcp+ack://` for one with TSP_EVENTS_ACKNOWLEDGED",
    ),
    variable(
        "LOGDRIVER_STORE",
        "/logdriver",
        "folder for events that wait; one per logdriver, on a disk that stays",
    ),
    variable(
        "LOGDRIVER_STORE_FREE_MIN",
        "134217728",
        "bytes; with less room on that disk no more events are taken",
    ),
    variable(
        "LOGDRIVER_CHANNEL_CAPACITY",
        "1000",
        "messages held between the sockets and the store",
    ),
    variable(
        "LOGDRIVER_CHANNEL_TIMEOUT",
        "250",
        "ms after which a message that waits there counts as a stall; it is kept",
    ),
    variable(
        "LOGDRIVER_SINK_BATCH_SIZE",
        "1000",
        "most events in one call to a tenant's log system, as far as that takes so many",
    ),
    variable(
        "LOGDRIVER_BUFFER_POLL_INTERVAL",
        "2000",
        "ms; greatest age of a batch that is not full",
    ),
    variable(
        "LOGDRIVER_CONFIG_REFRESH_INTERVAL",
        "600",
        "seconds between two looks at the broker, give or take 10 %",
    ),
    variable(
        "LOGDRIVER_UNKNOWN_TENANT",
        "stdout",
        "`stdout` or `hold`: what becomes of events of tenants without a logging configuration",
    ),
    variable(
        "LOGDRIVER_RETENTION_DAYS",
        "7",
        "days that events wait for a log system that fails; then they are dead letters",
    ),
    variable(
        "LOGDRIVER_RETENTION_BYTES",
        "10737418240",
        "bytes of one tenant's events that wait for a log system that fails",
    ),
    variable(
        "LOGDRIVER_ALLOW_ADDRESSES",
        "none",
        "where log systems may be besides public addresses, such as `private,loopback`",
    ),
    variable(
        "LOGDRIVER_HEALTH_BIND_ADDRESS",
        "0.0.0.0:9001",
        "IP or IP:PORT of health and metrics",
    ),
    variable(
        "TSP_CONFIG_FILE",
        "none",
        "TOML file with the tenants' logging configurations; without it they come from a broker",
    ),
    variable(
        SERVICE_ACCOUNT_FILE,
        "none",
        "file with the next six, as the broker's command line printed it; read at the start",
    ),
    variable(
        "CONFIG_BROKER_URL",
        "none",
        "where the configuration broker is",
    ),
    variable("SERVICE_ACCOUNT_ID", "none", ACCOUNT),
    variable("SERVICE_CONFIG_ID", "none", ACCOUNT),
    variable("SERVICE_SEGMENT_ID", "none", ACCOUNT),
    variable("SERVICE_ENCRYPTION_PRIVATE_KEY", "none", ACCOUNT),
    variable("SERVICE_SIGNING_PRIVATE_KEY", "none", ACCOUNT),
    variable(
        "TSP_BROKER_CA",
        "none",
        "PEM file; the broker's certificate must come of it",
    ),
    variable(
        "TSP_BROKER_ALLOW_HTTP",
        "false",
        "true permits a broker on another machine without TLS",
    ),
    variable(
        "RUST_LOG",
        logs::DEFAULT_FILTER,
        "which log lines are written",
    ),
    variable("IRONCORE_ENV", "none", "accepted, not used"),
    variable("CB_OVERRIDE", "none", "accepted, not used"),
];

const ACCOUNT: &str = "the service account, as the broker's command line printed it";

/// Names the file of a service account.
const SERVICE_ACCOUNT_FILE: &str = "TSP_SERVICE_ACCOUNT_FILE";

/// Largest such file, in bytes. It has less than a thousand.
const ACCOUNT_FILE_BYTES_MAX: u64 = 64 * 1024;

/// What else such a file holds, for the proxy.
const PROXYS_NAMES: [&str; 2] = ["API_KEY", "API_KEY_2"];

/// The variables that make a service account.
const ACCOUNT_NAMES: [&str; 6] = [
    CONFIG_BROKER_URL,
    SERVICE_ACCOUNT_ID,
    SERVICE_CONFIG_ID,
    SERVICE_SEGMENT_ID,
    SERVICE_ENCRYPTION_PRIVATE_KEY,
    SERVICE_SIGNING_PRIVATE_KEY,
];

const HEALTH_PORT: u16 = 9001;

/// Default and most of each number, with the reason of the latter.
const CAPACITY: (u64, u64) = (1_000, 100_000);
/// A minute of waiting is not a stall any more but a state, which `/ready` tells.
const STALL_MS: (u64, u64) = (250, 60_000);
/// As many as any log system takes in a call, times ten.
const BATCH: (u64, u64) = (1_000, 100_000);
/// Half an hour is the longest that an audit trail may be behind by choice.
const AGE_MS: (u64, u64) = (2_000, 1_800_000);
/// An hour, as the proxy's.
const REFRESH_S: (u64, u64) = (600, 3_600);
/// A year.
const RETENTION_DAYS: (u64, u64) = (7, 366);
/// Bytes; the most is more than any disk has.
const RETENTION_BYTES: (u64, u64) = (10 << 30, 1 << 50);
const FREE_MIN: (u64, u64) = (128 << 20, 1 << 50);

/// How long a log system must have failed before age counts.
const RETENTION_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Largest file of certificates, in bytes.
const CA_BYTES_MAX: u64 = 1024 * 1024;

/// Longest piece of a bad value that is repeated, in characters.
const SHOWN_CHARS_MAX: usize = 60;

/// Something the operator has to put right. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The variable.
    pub place: String,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.why)
    }
}

/// Where configurations come from.
#[derive(Debug)]
pub enum Configurations {
    /// `TSP_CONFIG_FILE`.
    File(PathBuf),
    /// The service account's broker, and whom to trust instead of the public authorities.
    Broker {
        /// The account.
        account: Arc<ServiceAccount>,
        /// PEM text.
        ca_pem: Option<Vec<u8>>,
        /// How often to look.
        every: Duration,
    },
}

/// All that the process is told, checked.
#[derive(Debug)]
pub struct ProcessConfig {
    /// The proxies.
    pub producers: Vec<Producer>,
    /// The store's folder.
    pub store: PathBuf,
    /// Bytes of room on its disk below which nothing is taken.
    pub free_bytes_min: u64,
    /// Messages between sockets and store.
    pub capacity: usize,
    /// Longest wait there that is no stall.
    pub stall: Duration,
    /// Events in a batch.
    pub batch_events_max: usize,
    /// Age of a batch.
    pub batch_age_max: Duration,
    /// Events of tenants without a configuration.
    pub unknown: Unknown,
    /// How much may wait.
    pub retention: Retention,
    /// `LOGDRIVER_ALLOW_ADDRESSES`.
    pub destinations: Destinations,
    /// Health and metrics.
    pub health: SocketAddr,
    /// The tenants' configurations.
    pub configurations: Configurations,
    /// The account's key for the store, if there is an account.
    pub store_secret: Option<Zeroizing<Vec<u8>>>,
    /// Which log lines.
    pub log_filter: EnvFilter,
}

/// The environment, and the file of the service account before it.
#[derive(Debug, Default)]
pub struct Variables {
    file: BTreeMap<&'static str, Secret<String>>,
}

impl Variables {
    /// Reads the file that `TSP_SERVICE_ACCOUNT_FILE` names, if it is set.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn read() -> Result<Self, Vec<Problem>> {
        let path = std::env::var(SERVICE_ACCOUNT_FILE).unwrap_or_default();
        let path = path.trim();
        if path.is_empty() {
            return Ok(Self::default());
        }
        let problem = |place: &str, why: String| Problem {
            place: place.to_owned(),
            why,
        };
        let text = small_file(path, ACCOUNT_FILE_BYTES_MAX)
            .map_err(|why| vec![problem(SERVICE_ACCOUNT_FILE, format!("{path}: {why}"))])?;
        let text = Zeroizing::new(String::from_utf8_lossy(&text).into_owned());
        Self::parse(&text).map_err(|problems| {
            let told = problems
                .into_iter()
                .map(|(line, why)| problem(&format!("{path}:{line}"), why));
            told.collect()
        })
    }

    /// A line is empty, a remark, or `NAME=value`.
    fn parse(text: &str) -> Result<Self, Vec<(usize, String)>> {
        let (mut file, mut problems) = (BTreeMap::new(), Vec::new());
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                problems.push((number, "is not NAME=value".to_owned()));
                continue;
            };
            let name = name.trim();
            if let Some(name) = ACCOUNT_NAMES.iter().find(|known| **known == name) {
                file.insert(*name, Secret::new(value.trim().to_owned()));
            } else if !PROXYS_NAMES.contains(&name) {
                let names = ACCOUNT_NAMES.join(", ");
                let why = format!("has a name that is not read from this file: {names} are");
                problems.push((number, why));
            }
        }
        if problems.is_empty() {
            Ok(Self { file })
        } else {
            Err(problems)
        }
    }

    /// The value of one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        match self.file.get(name) {
            Some(value) => Some(value.expose().clone()),
            None => std::env::var(name).ok(),
        }
    }
}

/// A file that has to be small.
fn small_file(path: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
    let length = std::fs::metadata(path)
        .map_err(|why| why.to_string())?
        .len();
    if length > bytes_max {
        return Err(format!("has more than {bytes_max} bytes"));
    }
    std::fs::read(path).map_err(|why| why.to_string())
}

/// Reads variables and gathers what is wrong with them.
struct Reader<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<Problem>,
}

impl ProcessConfig {
    /// Reads and checks every variable; `get` gives the value of one.
    ///
    /// # Errors
    /// All problems.
    pub fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader {
            get,
            problems: Vec::new(),
        };
        let producers = reader.parse("LOGDRIVER_EVENT_PRODUCER_URL", Producer::list);
        let number = |reader: &mut Reader<'_>, name, (default, max): (u64, u64), min| {
            let parsed = reader.parse(name, |text| match text.parse::<u64>() {
                Ok(number) if (min..=max).contains(&number) => Ok(number),
                _ => Err(format!("is not a whole number from {min} to {max}")),
            });
            parsed.unwrap_or(default)
        };
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let store = store(get);
        let free_bytes_min = number(&mut reader, "LOGDRIVER_STORE_FREE_MIN", FREE_MIN, 0);
        let capacity = number(&mut reader, "LOGDRIVER_CHANNEL_CAPACITY", CAPACITY, 1);
        let stall = number(&mut reader, "LOGDRIVER_CHANNEL_TIMEOUT", STALL_MS, 1);
        let batch = number(&mut reader, "LOGDRIVER_SINK_BATCH_SIZE", BATCH, 1);
        let age = number(&mut reader, "LOGDRIVER_BUFFER_POLL_INTERVAL", AGE_MS, 1);
        let every = number(
            &mut reader,
            "LOGDRIVER_CONFIG_REFRESH_INTERVAL",
            REFRESH_S,
            1,
        );
        let unknown = reader.parse("LOGDRIVER_UNKNOWN_TENANT", |text| match text {
            "stdout" => Ok(Unknown::Stdout),
            "hold" => Ok(Unknown::Hold),
            _ => Err("is neither stdout nor hold".to_owned()),
        });
        let days = number(&mut reader, "LOGDRIVER_RETENTION_DAYS", RETENTION_DAYS, 1);
        let bytes = number(&mut reader, "LOGDRIVER_RETENTION_BYTES", RETENTION_BYTES, 1);
        let destinations = reader.parse("LOGDRIVER_ALLOW_ADDRESSES", Destinations::parse);
        let health = reader.health();
        let (configurations, store_secret) = reader.configurations(Duration::from_secs(every));
        let log_filter = reader.text("RUST_LOG");
        let log_filter = match logs::filter(log_filter.as_deref()) {
            Ok(filter) => filter,
            Err(why) => {
                reader.problem("RUST_LOG", why);
                EnvFilter::default()
            }
        };
        let problems = reader.problems;
        let Some(configurations) = configurations.filter(|_| problems.is_empty()) else {
            return Err(problems);
        };
        Ok(Self {
            producers: producers.unwrap_or_else(|| {
                vec![Producer {
                    authority: "localhost:5555".to_owned(),
                    acknowledged: false,
                }]
            }),
            store,
            free_bytes_min,
            capacity: size(capacity),
            stall: Duration::from_millis(stall),
            batch_events_max: size(batch),
            batch_age_max: Duration::from_millis(age),
            unknown: unknown.unwrap_or(Unknown::Stdout),
            retention: Retention {
                age_max: Duration::from_secs(days * 24 * 60 * 60),
                bytes_max: i64::try_from(bytes).unwrap_or(i64::MAX),
                patience: RETENTION_PATIENCE,
            },
            destinations: destinations.unwrap_or_else(Destinations::of_tenants_endpoints),
            health,
            configurations,
            store_secret,
            log_filter,
        })
    }
}

/// `LOGDRIVER_STORE`.
pub fn store(get: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let given = get("LOGDRIVER_STORE").filter(|text| !text.trim().is_empty());
    given.map_or_else(
        || PathBuf::from("/logdriver"),
        |text| PathBuf::from(text.trim()),
    )
}

/// The account's key for the store, if the variables have an account.
pub fn store_secret(get: &dyn Fn(&str) -> Option<String>) -> Option<Zeroizing<Vec<u8>>> {
    let account = ServiceAccount::from_variables(get).ok()?;
    Some(Zeroizing::new(account.encryption_key.expose().to_vec()))
}

/// `LOGDRIVER_HEALTH_BIND_ADDRESS`, for who asks there.
///
/// # Errors
/// If it is no address.
pub fn health(get: &dyn Fn(&str) -> Option<String>) -> Result<SocketAddr, Vec<Problem>> {
    let mut reader = Reader {
        get,
        problems: Vec::new(),
    };
    let address = reader.health();
    if reader.problems.is_empty() {
        Ok(address)
    } else {
        Err(reader.problems)
    }
}

impl Reader<'_> {
    fn health(&mut self) -> SocketAddr {
        let given = self.parse("LOGDRIVER_HEALTH_BIND_ADDRESS", |text| {
            text.parse::<SocketAddr>()
                .ok()
                .or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, HEALTH_PORT)))
                .ok_or_else(|| "is neither an IP address nor IP:PORT".to_owned())
        });
        given.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], HEALTH_PORT)))
    }

    fn problem(&mut self, name: &str, why: impl Into<String>) {
        self.problems.push(Problem {
            place: name.to_owned(),
            why: why.into(),
        });
    }

    /// The value without white space around it; a blank one counts as not set.
    fn text(&self, name: &str) -> Option<String> {
        let value = (self.get)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    fn parse<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(name)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
                self.problem(name, format!("{shown:?} {why}"));
                None
            }
        }
    }

    fn configurations(
        &mut self,
        every: Duration,
    ) -> (Option<Configurations>, Option<Zeroizing<Vec<u8>>>) {
        let file = self.text("TSP_CONFIG_FILE").map(PathBuf::from);
        let has_account = ACCOUNT_NAMES.iter().any(|name| self.text(name).is_some());
        if let Some(file) = file {
            let secret = store_secret(self.get);
            return (Some(Configurations::File(file)), secret);
        }
        if !has_account {
            self.problem(
                "TSP_CONFIG_FILE",
                "not set, and there is no service account either: logging configurations come from a TOML file or from a \
                 configuration broker",
            );
            return (None, None);
        }
        let account = match ServiceAccount::from_variables(|name| (self.get)(name)) {
            Ok(account) => account,
            Err(problems) => {
                for problem in problems {
                    self.problem(problem.name, problem.why);
                }
                return (None, None);
            }
        };
        let allow_http = self.parse("TSP_BROKER_ALLOW_HTTP", |text| {
            text.to_ascii_lowercase()
                .parse::<bool>()
                .map_err(|_| "is neither true nor false".to_owned())
        });
        if account.broker_url.starts_with("http://")
            && allow_http != Some(true)
            && !is_this_machine(&account.broker_url)
        {
            self.problem(
                CONFIG_BROKER_URL,
                "is plain HTTP to another machine; use https://, or say TSP_BROKER_ALLOW_HTTP=true",
            );
        }
        let ca_pem = self.parse("TSP_BROKER_CA", |path| small_file(path, CA_BYTES_MAX));
        let secret = Zeroizing::new(account.encryption_key.expose().to_vec());
        let broker = Configurations::Broker {
            account: Arc::new(account),
            ca_pem,
            every,
        };
        (Some(broker), Some(secret))
    }
}

/// Whether a URL leads nowhere else.
fn is_this_machine(url: &str) -> bool {
    let authority = url.strip_prefix("http://").unwrap_or(url);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<ProcessConfig, Vec<Problem>> {
        ProcessConfig::from_variables(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_file_of_configurations_is_enough() {
        let config = read(&[("TSP_CONFIG_FILE", "tenants.toml")]).unwrap();
        assert_eq!(config.producers[0].authority, "localhost:5555");
        assert_eq!(config.store, PathBuf::from("/logdriver"));
        assert_eq!(config.health.to_string(), "0.0.0.0:9001");
        assert_eq!((config.batch_events_max, config.capacity), (1000, 1000));
        assert_eq!(config.batch_age_max, Duration::from_secs(2));
        assert!(config.store_secret.is_none());
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let problems = read(&[
            ("LOGDRIVER_EVENT_PRODUCER_URL", "localhost"),
            ("LOGDRIVER_SINK_BATCH_SIZE", "0"),
            ("LOGDRIVER_UNKNOWN_TENANT", "drop"),
            ("LOGDRIVER_HEALTH_BIND_ADDRESS", "here"),
        ])
        .unwrap_err();
        let places: Vec<_> = problems
            .iter()
            .map(|problem| problem.place.as_str())
            .collect();
        assert_eq!(
            places,
            [
                "LOGDRIVER_EVENT_PRODUCER_URL",
                "LOGDRIVER_SINK_BATCH_SIZE",
                "LOGDRIVER_UNKNOWN_TENANT",
                "LOGDRIVER_HEALTH_BIND_ADDRESS",
                "TSP_CONFIG_FILE",
            ]
        );
        let problems = read(&[("CONFIG_BROKER_URL", "https://b.example.com")]).unwrap_err();
        assert_eq!(problems.len(), 5);
    }

    #[test]
    fn a_file_of_the_service_account_is_read_line_by_line() {
        let text = "# first\n\nCONFIG_BROKER_URL = https://b.example.com\nAPI_KEY=made-up\n";
        let variables = Variables::parse(text).unwrap();
        let url = variables.get(CONFIG_BROKER_URL);
        assert_eq!(url.as_deref(), Some("https://b.example.com"));
        assert!(!format!("{variables:?}").contains("b.example.com"));
        let problems = Variables::parse("RUST_LOG=info\nx\n").unwrap_err();
        let lines: Vec<_> = problems.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 2]);
    }
}
