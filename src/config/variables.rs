//! The one list of environment variables.

use crate::logs;

/// One environment variable, as the documentation lists it.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its value when it is not set, with the unit in the name or here; `required`, or `none`.
    pub default: &'static str,
    /// What it does, and why it has that default.
    pub effect: &'static str,
}

const fn variable(name: &'static str, default: &'static str, effect: &'static str) -> Variable {
    Variable {
        name,
        default,
        effect,
    }
}

/// Every variable that the proxy knows, in the order of the documentation.
pub const VARIABLES: [Variable; 49] = [
    variable("API_KEY", "required", "what applications present"),
    variable("API_KEY_2", "none", "a second accepted key, for rotation"),
    variable(
        "TSP_API_KEYS_FILE",
        "none",
        "TOML file of further keys, as digests; with it API_KEY may be left out",
    ),
    variable(
        "TSP_CONFIG_FILE",
        "none",
        "TOML file of KMS configs and tenants; without it they come from a broker",
    ),
    variable(
        "CONFIG_BROKER_URL",
        "none",
        "where the configuration broker is, such as https://broker.example.com",
    ),
    variable("SERVICE_ACCOUNT_ID", "none", ACCOUNT),
    variable("SERVICE_CONFIG_ID", "none", ACCOUNT),
    variable("SERVICE_SEGMENT_ID", "none", ACCOUNT),
    variable("SERVICE_ENCRYPTION_PRIVATE_KEY", "none", ACCOUNT),
    variable("SERVICE_SIGNING_PRIVATE_KEY", "none", ACCOUNT),
    variable(
        "TSP_SERVICE_ACCOUNT_FILE",
        "none",
        "env file with these and the API keys, read again when it changes",
    ),
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
        "TSP_SNAPSHOT_CACHE",
        "none",
        "sealed copy on disk, for a start while the broker is away",
    ),
    variable(
        "TSP_CONFIG_REFRESH_S",
        "600",
        "seconds between two looks at the broker, give or take 10 %",
    ),
    variable(
        "TSP_CONFIG_MAX_AGE_S",
        "86400",
        "seconds that tenants are served after the last good look",
    ),
    variable("TSP_BIND_ADDRESS", "0.0.0.0", "IP of all listeners"),
    variable(
        "TSP_HTTP_BIND_ADDRESS",
        "TSP_BIND_ADDRESS:7777",
        "IP or IP:PORT of the client API",
    ),
    variable(
        "TSP_HEALTH_BIND_ADDRESS",
        "TSP_BIND_ADDRESS:9000",
        "IP or IP:PORT of health",
    ),
    variable(
        "TSP_EVENT_BIND_ADDRESS",
        "TSP_BIND_ADDRESS:5555",
        "IP or IP:PORT of the event socket",
    ),
    variable(
        "TSP_TLS_CERTIFICATE",
        "none",
        "PEM file; with it the client API speaks TLS 1.3",
    ),
    variable("TSP_TLS_KEY", "none", "PEM file of the certificate's key"),
    variable(
        "TSP_TLS_CLIENT_CA",
        "none",
        "PEM file; clients must show a certificate of it",
    ),
    variable(
        "TSP_TLS_CLIENT_NAMES",
        "none",
        "names of which that certificate must have one",
    ),
    variable(
        "TSP_UNIX_SOCKET",
        "none",
        "path of a Unix socket that serves the client API, too",
    ),
    variable(
        "TSP_UNIX_SOCKET_MODE",
        "660",
        "permissions of its file, in octal",
    ),
    variable(
        "TSP_UNIX_SOCKET_ALLOW",
        "none",
        "who may connect, such as uid:1000,gid:2000",
    ),
    variable(
        "TSP_ENABLE_LOGDRIVER_INTEGRATION",
        "true",
        "false when no logdriver will connect",
    ),
    variable(
        "TSP_SEND_LOGGING_TIMEOUT_MS",
        "25",
        "longest wait, in ms, to hand over an event",
    ),
    variable(
        "TSP_EVENT_LOG_CHANNEL_SIZE",
        "25000",
        "events held between shards and event thread",
    ),
    variable(
        "TSP_SEND_HIGH_WATER_MARK",
        "25000",
        "events held for the socket",
    ),
    variable(
        "TSP_EVENTS_REQUIRED",
        "false",
        "true fails a request whose event is lost",
    ),
    variable(
        "TSP_EVENTS_ACKNOWLEDGED",
        "false",
        "true keeps events until a logdriver has them on disk; it asks at `tcp+ack://` then",
    ),
    variable("TSP_IO", "auto", "auto, uring or epoll"),
    variable("TSP_SHARDS", "one per core", "number of shards"),
    variable(
        "TSP_CORES",
        "all allowed",
        "cores of the shards, such as 2-7 or 0,2-3",
    ),
    variable("TSP_CONTROL_CORE", "chosen", "core of the control plane"),
    variable(
        "TSP_LEASE_REVALIDATE_S",
        "900",
        "a revocation at the KMS bites after so many seconds",
    ),
    variable(
        "TSP_LEASE_MAX_AGE_S",
        "86400",
        "seconds that keys serve while their KMS is away",
    ),
    variable(
        "TSP_ADMIN_TOKEN",
        "none",
        "switches the admin API on; 16 characters or more",
    ),
    variable(
        "TSP_TRACE_ENDPOINT",
        "none",
        "OTLP collector that takes traces by HTTP, such as http://127.0.0.1:4318",
    ),
    variable(
        "TSP_TRACE_CA",
        "none",
        "PEM file; authorities to trust for it instead of the public ones",
    ),
    variable(
        "TSP_TRACE_HEADERS",
        "none",
        "headers for it, such as api-key=VALUE,x-team=keys",
    ),
    variable(
        "TSP_TRACE_SAMPLE",
        "0.01",
        "share of requests recorded whose caller did not decide",
    ),
    variable(
        "TSP_ALLOW_LOCAL_KMS",
        "false",
        "true admits LOCAL configs from a broker",
    ),
    variable(
        "TSP_KMS_ALLOW_ADDRESSES",
        "private,loopback",
        "where endpoints of KMSs may lead to; with a broker the default is public addresses alone",
    ),
    variable(
        "RUST_LOG",
        logs::DEFAULT_FILTER,
        "which log lines are written",
    ),
    variable("IRONCORE_ENV", "none", UNUSED),
    variable("CB_OVERRIDE", "none", UNUSED),
];

/// Effect of the variables that make a service account.
const ACCOUNT: &str = "the service account, as the broker's command line printed it";

/// Effect of variables of existing env files that mean nothing here.
const UNUSED: &str = "accepted, not used";
