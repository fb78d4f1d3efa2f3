//! What the process is told: environment strings in, one checked [`ProcessConfig`] out.
//!
//! All problems are found before anything is bound, and told at once. [`VARIABLES`] is the one list of names,
//! defaults and effects; tests compare it with the tables in the documentation. The limits that no variable changes
//! stand below it, each with its unit and reason.

pub(crate) mod broker;
mod doors;
mod strings;
mod traces;
mod variables;

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use tsp_rt::IoChoice;
use tsp_shards::{Destinations, UnixConfig};
use tsp_wire::ApiKey;

pub use self::broker::BrokerConfig;
pub use self::doors::{HEALTH_BIND_ADDRESS, health_address};
pub use self::strings::{Environment, NotUnicode, Overlay, Strings};
use crate::{cores::CoreWishes, logs, source::tls::TlsFiles, traces::TraceSettings};

pub use self::variables::{VARIABLES, Variable};

/// Something the operator has to put right: where, and what is wrong. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The variable, file or entry.
    pub place: String,
    /// What is wrong with it, in words for a person.
    pub why: String,
}

impl Problem {
    /// A problem at `place`.
    pub fn new(place: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            why: why.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.why)
    }
}

/// The variable that says where the KMSs' endpoints may lead to.
const KMS_ALLOW_ADDRESSES: &str = "TSP_KMS_ALLOW_ADDRESSES";

/// Ports of the three listeners when only an IP, or nothing, is given.
const HTTP_PORT: u16 = 7777;
const HEALTH_PORT: u16 = 9000;
const EVENT_PORT: u16 = 5555;

/// `TSP_SEND_LOGGING_TIMEOUT_MS`, default and maximum. More than a minute would outlive every client's patience.
const SEND_TIMEOUT_MS: u64 = 25;
const SEND_TIMEOUT_MS_MAX: u64 = 60_000;

/// `TSP_EVENT_LOG_CHANNEL_SIZE` and `TSP_SEND_HIGH_WATER_MARK`, in events, default and maximum. At about 600 bytes
/// an event, the maximum is 600 MB each: more is surely a slip of the finger.
const EVENTS_HELD: usize = 25_000;
const EVENTS_HELD_MAX: usize = 1_000_000;

/// `TSP_LEASE_REVALIDATE_S` and `TSP_LEASE_MAX_AGE_S`, in seconds, default and maximum. More than a week would make a
/// revocation a matter of faith.
const LEASE_REVALIDATE_S: u64 = 900;
const LEASE_MAX_AGE_S: u64 = 24 * 60 * 60;
const LEASE_S_MAX: u64 = 7 * 24 * 60 * 60;

/// Shortest `TSP_ADMIN_TOKEN`, in characters: what can be guessed must not be a switch.
const ADMIN_TOKEN_CHARS_MIN: usize = 16;

/// Most shards. More than the cores of the largest machines would only add memory.
const SHARDS_MAX: usize = 256;

/// Highest core number that can be named: what the kernel's CPU set holds.
const CORE_MAX: usize = 1023;

/// An API key shorter than this, in characters, draws a warning: it is what a generated key has, 96 random bits.
const API_KEY_CHARS_ADVISED: usize = 16;

/// Longest piece of a bad value that is repeated in a problem, in characters.
const SHOWN_CHARS_MAX: usize = 60;

/// How long a drain may take before the process exits anyway. Kubernetes kills after 30 s by default.
pub const DRAIN_MAX: Duration = Duration::from_secs(20);

/// How often the configuration file is looked at. Looking costs a few `stat` calls.
pub const FILE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// How soon a file that could not be used is tried again although it did not change, and its problems told again.
pub const FILE_RETRY_EVERY: Duration = Duration::from_secs(60);

/// Largest configuration file, in bytes: 100,000 tenants fit.
pub const CONFIG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Largest file of tenant secrets, in bytes: 100,000 secrets fit. It is written whole when one is added.
pub const SECRETS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Largest file that holds one credential, in bytes. The largest real ones are RSA keys of about 3 KB.
pub const CREDENTIAL_BYTES_MAX: u64 = 64 * 1024;

/// Largest file of CA certificates, in bytes: five times a distribution's whole bundle.
pub const CA_BYTES_MAX: u64 = 1024 * 1024;

/// Most problems that one look at a configuration file reports. A file of the wrong kind has thousands.
pub const PROBLEMS_MAX: usize = 50;

/// Connections to the health listener at one time: a few probes and scrapers, times a lot.
pub const HEALTH_CONNECTIONS_MAX: usize = 64;

/// How long a connection to the health listener may take to send a request head, or stay idle between two.
pub const HEALTH_HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// What differs between `tsp` and `tsp dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Tenants come from `TSP_CONFIG_FILE`; keys must be given; listeners are open to the network.
    Serve,
    /// Nothing is needed; listeners are on loopback; a full event queue drops at once instead of waiting.
    Dev,
}

/// All that the process is told, checked.
#[derive(Debug)]
pub struct ProcessConfig {
    /// `API_KEY`; `None` only in [`Mode::Dev`], or with a file of keys.
    pub api_key: Option<ApiKey>,
    /// `API_KEY_2`.
    pub api_key_2: Option<ApiKey>,
    /// `TSP_API_KEYS_FILE`.
    pub api_keys_file: Option<PathBuf>,
    /// `TSP_CONFIG_FILE`. In [`Mode::Serve`] there is this one or a broker.
    pub config_file: Option<PathBuf>,
    /// The service account's variables, where there is no file.
    pub broker: Option<BrokerConfig>,
    /// `TSP_CONFIG_MAX_AGE_S`: how long tenants are served from memory after the last good look. Fails closed: a
    /// revocation must bite.
    pub config_age_max: Duration,
    /// Listener of the client API.
    pub http: SocketAddr,
    /// `TSP_UNIX_SOCKET`, `TSP_UNIX_SOCKET_MODE`, `TSP_UNIX_SOCKET_ALLOW`.
    pub unix: Option<UnixConfig>,
    /// `TSP_TLS_CERTIFICATE` and what belongs to it.
    pub tls: Option<TlsFiles>,
    /// Listener of health and metrics.
    pub health: SocketAddr,
    /// The event socket; `None` when the logdriver integration is off.
    pub events: Option<EventSettings>,
    /// `TSP_IO`.
    pub io: IoChoice,
    /// `TSP_SHARDS`, `TSP_CORES`, `TSP_CONTROL_CORE`.
    pub cores: CoreWishes,
    /// `TSP_LEASE_REVALIDATE_S`.
    pub lease_revalidate: Duration,
    /// `TSP_LEASE_MAX_AGE_S`.
    pub lease_max_age: Duration,
    /// `TSP_ADMIN_TOKEN`; `None` switches the admin API off.
    pub admin_token: Option<ApiKey>,
    /// `TSP_TRACE_ENDPOINT`, `TSP_TRACE_SAMPLE`; `None` switches tracing off.
    pub traces: Option<TraceSettings>,
    /// `TSP_ALLOW_LOCAL_KMS`, for configurations of a broker. The file and dev sources always admit LOCAL.
    pub allow_local_kms: bool,
    /// `TSP_KMS_ALLOW_ADDRESSES`.
    pub destinations: Destinations,
    /// `RUST_LOG`, known to be a filter; `None` for the default one.
    pub log_filter: Option<String>,
    /// What deserves a warning, but starts.
    pub warnings: Vec<Problem>,
}

/// How security events leave the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSettings {
    /// Where the PUSH socket listens.
    pub listen: SocketAddr,
    /// `TSP_EVENT_LOG_CHANNEL_SIZE`, in events.
    pub channel_size: usize,
    /// `TSP_SEND_HIGH_WATER_MARK`, in events.
    pub high_water_mark: usize,
    /// `TSP_SEND_LOGGING_TIMEOUT_MS`.
    pub send_timeout: Duration,
    /// `TSP_EVENTS_REQUIRED`.
    pub required: bool,
    /// `TSP_EVENTS_ACKNOWLEDGED`.
    pub acknowledged: bool,
}

impl ProcessConfig {
    /// Reads and checks every variable.
    ///
    /// # Errors
    /// All problems, in the order of [`VARIABLES`], and the warnings.
    pub fn from_strings(strings: &impl Strings, mode: Mode) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader {
            strings,
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let api_key = reader.api_key("API_KEY");
        let api_keys_file = reader.text("TSP_API_KEYS_FILE").map(PathBuf::from);
        let needed = mode == Mode::Serve && api_keys_file.is_none();
        if api_key.is_none() && needed && !reader.has_problem_with("API_KEY") {
            reader.problem(
                "API_KEY",
                "not set; applications must present it, so there is no default. TSP_API_KEYS_FILE does as well",
            );
        }
        let api_key_2 = reader.api_key("API_KEY_2");
        if let (Some(first), Some(second)) = (&api_key, &api_key_2)
            && first.matches(second.expose().as_bytes())
        {
            reader.warning("API_KEY_2", "is the same as API_KEY");
        }
        let config_file = reader.config_file(mode);
        let config_age_max = reader.config_age_max();
        let broker = reader.broker(mode, config_file.is_some(), config_age_max);

        let any_ip = match mode {
            Mode::Serve => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Mode::Dev => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let ip = reader.parse("TSP_BIND_ADDRESS", parse_ip).unwrap_or(any_ip);
        let mut address = |name, port| {
            reader
                .parse(name, |text| parse_address(text, port))
                .unwrap_or_else(|| SocketAddr::new(ip, port))
        };
        let http = address("TSP_HTTP_BIND_ADDRESS", HTTP_PORT);
        let health = address(HEALTH_BIND_ADDRESS, HEALTH_PORT);
        let event = address("TSP_EVENT_BIND_ADDRESS", EVENT_PORT);
        let tls = reader.tls();
        let unix = reader.unix();

        let enabled = reader
            .parse("TSP_ENABLE_LOGDRIVER_INTEGRATION", parse_bool)
            .unwrap_or(true);
        let send_timeout_ms = match mode {
            Mode::Serve => SEND_TIMEOUT_MS,
            Mode::Dev => 0,
        };
        let settings = EventSettings {
            listen: event,
            send_timeout: Duration::from_millis(
                reader
                    .parse("TSP_SEND_LOGGING_TIMEOUT_MS", |text| {
                        parse_number(text, 0, SEND_TIMEOUT_MS_MAX)
                    })
                    .unwrap_or(send_timeout_ms),
            ),
            channel_size: reader.events_held("TSP_EVENT_LOG_CHANNEL_SIZE"),
            high_water_mark: reader.events_held("TSP_SEND_HIGH_WATER_MARK"),
            required: reader
                .parse("TSP_EVENTS_REQUIRED", parse_bool)
                .unwrap_or(false),
            acknowledged: reader
                .parse("TSP_EVENTS_ACKNOWLEDGED", parse_bool)
                .unwrap_or(false),
        };
        if settings.required && !enabled {
            let why =
                "is true, but TSP_ENABLE_LOGDRIVER_INTEGRATION is false: no event could leave";
            reader.problem("TSP_EVENTS_REQUIRED", why);
        }
        let events = enabled.then_some(settings);
        reader.check_overlap(http, health, enabled.then_some(event));

        let io = reader.parse("TSP_IO", parse_io).unwrap_or(IoChoice::Auto);
        let cores = CoreWishes {
            shards: reader
                .parse("TSP_SHARDS", |text| parse_number(text, 1, SHARDS_MAX))
                .and_then(NonZeroUsize::new),
            cores: reader.parse("TSP_CORES", parse_cores),
            control_core: reader.parse("TSP_CONTROL_CORE", |text| parse_number(text, 0, CORE_MAX)),
        };
        let (lease_revalidate, lease_max_age) = reader.lease_times();
        let admin_token = reader.admin_token();
        let traces = reader.traces();
        let allow_local_kms = reader
            .parse("TSP_ALLOW_LOCAL_KMS", parse_bool)
            .unwrap_or(false);
        let destinations = reader.destinations(broker.is_some());
        let log_filter = reader.parse("RUST_LOG", |text| {
            logs::filter(Some(text))
                .map(|_| text.to_owned())
                .map_err(Cow::from)
        });
        reader.warn_of_unknown_names();

        let Reader {
            mut problems,
            warnings,
            ..
        } = reader;
        if !problems.is_empty() {
            // A misspelt name is often the reason why another one is missing.
            problems.extend(warnings);
            return Err(problems);
        }
        Ok(Self {
            api_key,
            api_key_2,
            api_keys_file,
            config_file,
            broker,
            config_age_max,
            http,
            tls,
            unix,
            health,
            events,
            io,
            cores,
            lease_revalidate,
            lease_max_age,
            admin_token,
            traces,
            allow_local_kms,
            destinations,
            log_filter,
            warnings,
        })
    }
}

/// `TSP_KMS_ALLOW_ADDRESSES` alone, for who asks KMSs without serving. `tenants_write`: whether the endpoints are tenants' own, as
/// a broker's are.
///
/// # Errors
/// What is wrong with it.
pub fn destinations(
    strings: &impl Strings,
    tenants_write: bool,
) -> Result<Destinations, Vec<Problem>> {
    let mut reader = Reader {
        strings,
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let destinations = reader.destinations(tenants_write);
    if reader.problems.is_empty() {
        Ok(destinations)
    } else {
        Err(reader.problems)
    }
}

/// The broker that configurations come from, for a command that needs nothing else. `None` if no variable names one.
///
/// # Errors
/// What is wrong with the variables.
pub(crate) fn broker(strings: &impl Strings) -> Result<Option<BrokerConfig>, Vec<Problem>> {
    let mut reader = Reader {
        strings,
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let age_max = reader.config_age_max();
    let broker = reader.broker(Mode::Serve, false, age_max);
    if reader.problems.is_empty() {
        Ok(broker)
    } else {
        Err(reader.problems)
    }
}

/// Reads variables and gathers what is wrong with them.
struct Reader<'a, S> {
    strings: &'a S,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// What is wrong with a value.
type Why = Cow<'static, str>;

impl<S: Strings> Reader<'_, S> {
    fn problem(&mut self, name: &str, why: impl Into<String>) {
        self.problems
            .push(Problem::new(self.strings.label(name), why));
    }

    fn warning(&mut self, name: &str, why: impl Into<String>) {
        self.warnings
            .push(Problem::new(self.strings.label(name), why));
    }

    fn has_problem_with(&self, name: &str) -> bool {
        let label = self.strings.label(name);
        self.problems.iter().any(|problem| problem.place == label)
    }

    /// The value without surrounding white space, such as the carriage return that an env file from Windows leaves.
    /// A blank value counts as not set: env files keep names of options that are off.
    fn text(&mut self, name: &str) -> Option<String> {
        match self.strings.get(name) {
            Ok(value) => {
                let value = value?;
                let trimmed = value.trim();
                (!trimmed.is_empty()).then(|| trimmed.to_owned())
            }
            Err(NotUnicode) => {
                self.problem(name, "is not UTF-8");
                None
            }
        }
    }

    fn parse<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, Why>) -> Option<T> {
        let text = self.text(name)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
                let dots = if shown.len() < text.len() { "…" } else { "" };
                self.problem(name, format!("{shown:?}{dots} {why}"));
                None
            }
        }
    }

    fn api_key(&mut self, name: &str) -> Option<ApiKey> {
        let text = self.text(name)?;
        let chars = text.len();
        let Some(key) = ApiKey::new(text) else {
            let max = ApiKey::BYTES_MAX;
            self.problem(
                name,
                format!("must be 1 to {max} visible ASCII characters, no spaces"),
            );
            return None;
        };
        if chars < API_KEY_CHARS_ADVISED {
            let why = format!(
                "has {chars} characters; {API_KEY_CHARS_ADVISED} random ones are the least advised"
            );
            self.warning(name, why);
        }
        Some(key)
    }

    fn events_held(&mut self, name: &str) -> usize {
        self.parse(name, |text| parse_number(text, 1, EVENTS_HELD_MAX))
            .unwrap_or(EVENTS_HELD)
    }

    /// Files are the operator's own; in a broker's configurations tenants write the endpoints.
    fn destinations(&mut self, tenants_write: bool) -> Destinations {
        let parse = |text: &str| Destinations::parse(text).map_err(Why::from);
        let usual = if tenants_write {
            Destinations::of_tenants_endpoints
        } else {
            Destinations::of_the_operators_endpoints
        };
        self.parse(KMS_ALLOW_ADDRESSES, parse).unwrap_or_else(usual)
    }

    fn lease_times(&mut self) -> (Duration, Duration) {
        let mut seconds = |name, default| {
            let number = self.parse(name, |text| parse_number(text, 1, LEASE_S_MAX));
            Duration::from_secs(number.unwrap_or(default))
        };
        let revalidate = seconds("TSP_LEASE_REVALIDATE_S", LEASE_REVALIDATE_S);
        let max_age = seconds("TSP_LEASE_MAX_AGE_S", LEASE_MAX_AGE_S);
        if max_age < revalidate {
            self.problem(
                "TSP_LEASE_MAX_AGE_S",
                "is less than TSP_LEASE_REVALIDATE_S: keys would be too old before they are asked about",
            );
        }
        (revalidate, max_age)
    }

    fn admin_token(&mut self) -> Option<ApiKey> {
        let text = self.text("TSP_ADMIN_TOKEN")?;
        let long = text.len() >= ADMIN_TOKEN_CHARS_MIN;
        let token = ApiKey::new(text).filter(|_| long);
        if token.is_none() {
            let max = ApiKey::BYTES_MAX;
            let why = format!(
                "must be {ADMIN_TOKEN_CHARS_MIN} to {max} visible ASCII characters, no spaces"
            );
            self.problem("TSP_ADMIN_TOKEN", why);
        }
        token
    }

    fn config_file(&mut self, mode: Mode) -> Option<PathBuf> {
        let file = self.text("TSP_CONFIG_FILE").map(PathBuf::from);
        match (mode, &file) {
            (Mode::Serve, None) if !self.has_problem_with("TSP_CONFIG_FILE") => {
                let strings = self.strings;
                if broker::ACCOUNT
                    .iter()
                    .all(|name| strings.get(name) == Ok(None))
                {
                    let why = "not set, and no variable of a service account either: name a TOML file of KMS configs and \
                               tenants, or give the variables that a configuration broker's command line printed, or try \
                               `tsp dev`";
                    self.problem("TSP_CONFIG_FILE", why);
                }
            }
            (Mode::Dev, Some(_)) => {
                self.warning(
                    "TSP_CONFIG_FILE",
                    "is not used by `tsp dev`, which has its own tenants",
                );
                return None;
            }
            (Mode::Serve | Mode::Dev, _) => {}
        }
        file
    }

    fn check_overlap(&mut self, http: SocketAddr, health: SocketAddr, event: Option<SocketAddr>) {
        if overlap(http, health) {
            let why = format!("{health} overlaps with the client API on {http}");
            self.problem(HEALTH_BIND_ADDRESS, why);
        }
        let Some(event) = event else { return };
        for (address, what) in [(http, "the client API"), (health, "health")] {
            if overlap(event, address) {
                let why = format!("{event} overlaps with {what} on {address}");
                self.problem("TSP_EVENT_BIND_ADDRESS", why);
            }
        }
    }

    fn warn_of_unknown_names(&mut self) {
        let mut names = self.strings.names();
        names.sort_unstable();
        for name in names {
            let known = VARIABLES.iter().any(|variable| variable.name == name);
            if !name.starts_with("TSP_") || known || is_service_link(&name) {
                continue;
            }
            let nearest = VARIABLES
                .iter()
                .map(|variable| variable.name)
                .filter(|known| known.starts_with("TSP_"))
                .min_by_key(|known| strsim::damerau_levenshtein(known, &name));
            let nearest = nearest.unwrap_or_default();
            let why =
                format!("is not a variable of this proxy; the nearest known one is {nearest}");
            self.warnings.push(Problem::new(name, why));
        }
    }
}

/// Whether Kubernetes or Docker set `name` because a service is called `tsp` or `tsp-…`: `TSP_SERVICE_HOST`,
/// `TSP_HEALTH_SERVICE_PORT_HTTP`, `TSP_PORT`, `TSP_PORT_7777_TCP_ADDR` and so on.
fn is_service_link(name: &str) -> bool {
    let port_of_protocol = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        rest.split_once('_').is_some_and(|(port, protocol)| {
            port.parse::<u16>().is_ok()
                && ["TCP", "UDP", "SCTP"]
                    .iter()
                    .any(|known| protocol.starts_with(known))
        })
    });
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_PORT")
        || name.contains("_SERVICE_PORT_")
        || port_of_protocol
}

/// Whether two listeners could not both be bound.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && same_ip
}

fn parse_ip(text: &str) -> Result<IpAddr, Why> {
    if text.parse::<SocketAddr>().is_ok() {
        return Err(Why::from(
            "has a port; ports go into the variables of the single listeners",
        ));
    }
    bare_ip(text).ok_or(Why::from("is not an IP address"))
}

fn parse_address(text: &str, port: u16) -> Result<SocketAddr, Why> {
    text.parse::<SocketAddr>()
        .ok()
        .or_else(|| bare_ip(text).map(|ip| SocketAddr::new(ip, port)))
        .ok_or(Why::from(
            "is neither an IP address nor IP:PORT (names are not looked up)",
        ))
}

/// An IP alone, IPv6 with or without brackets.
fn bare_ip(text: &str) -> Option<IpAddr> {
    let bracketed = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

fn parse_bool(text: &str) -> Result<bool, Why> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Why::from("is neither true nor false")),
    }
}

fn parse_number<N>(text: &str, min: N, max: N) -> Result<N, Why>
where
    N: FromStr + PartialOrd + fmt::Display,
{
    match text.parse::<N>() {
        Ok(number) if min <= number && number <= max => Ok(number),
        Ok(_) | Err(_) => Err(Why::from(format!(
            "is not a whole number from {min} to {max}"
        ))),
    }
}

fn parse_io(text: &str) -> Result<IoChoice, Why> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Ok(IoChoice::Auto),
        "uring" => Ok(IoChoice::Uring),
        "epoll" => Ok(IoChoice::Epoll),
        _ => Err(Why::from("is none of auto, uring and epoll")),
    }
}

/// `2-7` or `0,2-3`: ascending, without duplicates.
fn parse_cores(text: &str) -> Result<Vec<usize>, Why> {
    let why = || Why::from("is not a list of cores such as 2-7 or 0,2-3");
    let number = |text: &str| match text.trim().parse::<usize>() {
        Ok(core) if core <= CORE_MAX => Ok(core),
        Ok(_) => Err(Why::from(format!("names a core above {CORE_MAX}"))),
        Err(_) => Err(why()),
    };
    let mut cores = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => cores.push(number(part)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(why());
                }
                cores.extend(first..=last);
            }
        }
    }
    cores.sort_unstable();
    cores.dedup();
    Ok(cores)
}

#[cfg(test)]
pub(crate) mod tests;
