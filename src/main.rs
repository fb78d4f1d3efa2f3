//! `tsp`: arguments in, exit code out. Everything else is in the library.
#![forbid(unsafe_code)]

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, error::ErrorKind};
use tsp::{
    ApiKeyOptions, Checked, DevOptions, DoctorOptions, Doctored, HealthOptions, RecoverOptions,
    RunError, SecretsAction, SecretsOptions, TopOptions,
};

// Chosen for its memory, not for its speed: tuning.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Tenant Security Proxy: wraps and unwraps document keys with each tenant's own KMS.
#[derive(Debug, Parser)]
#[command(name = "tsp", version, about, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER_HELP: &str = "\
Without a command, serves the tenants of TSP_CONFIG_FILE, or of a configuration broker, to applications that present API_KEY.
All settings are environment variables; docs/operations.md lists them.

First try:  tsp dev

Signals:    SIGTERM, SIGINT drain (a second one exits at once); SIGHUP reads the configuration again
Exit codes: 0 drained, 64 bad configuration, 69 a KMS config does not work (doctor), something cannot be opened
            (recover) or the proxy is not ready (health), 70 internal failure, 71 an address cannot be listened on";

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks variables and configuration file, tells every problem, and serves nothing
    Check,
    /// Tries every KMS config with a throw-away value, and tells what is wrong, whose it is and what to do
    Doctor(Doctor),
    /// Asks a running proxy whether it is ready: exit code 0, or 69 if it is not
    Health(Health),
    /// Serves made-up tenants on loopback, with nothing to configure
    Dev(Dev),
    /// Shows what a proxy does, again and again, from its metrics
    Top(Top),
    /// Shows, rotates and backs up the secrets that keys are derived from
    #[command(subcommand, disable_help_subcommand = true)]
    Secrets(SecretsCommand),
    /// Makes keys for the file that TSP_API_KEYS_FILE names
    #[command(subcommand, disable_help_subcommand = true)]
    ApiKey(ApiKeyCommand),
    /// Opens EDEKs and tenant secrets without a proxy, and prints the keys: for disasters
    Recover(Recover),
}

#[derive(Args, Debug)]
struct Top {
    /// Where the proxy tells its metrics: the health listener
    #[arg(long, default_value = tsp::TOP_URL)]
    url: String,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    every: f64,
    /// Ends after the first frame
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Subcommand)]
enum ApiKeyCommand {
    /// Prints a new key, which is kept nowhere, and below it the line that goes under [keys] in the file
    Create(ApiKeyCreate),
}

#[derive(Args, Debug)]
struct ApiKeyCreate {
    /// What the key is called in the file, the metrics and the log: letters, digits, - and _
    #[arg(long)]
    label: String,
    /// Limits it to this tenant; may be given several times [default: all]
    #[arg(long, value_name = "ID")]
    tenant: Vec<String>,
    /// Limits it to this operation, such as document/unwrap; may be given several times [default: all]
    #[arg(long, value_name = "PATH")]
    operation: Vec<String>,
    /// When it ends, such as 2027-01-01T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
}

#[derive(Args, Debug)]
struct Recover {
    /// EDEKs, one per line or as a JSON array or object, or a backup of `tsp secrets export` [default: standard input]
    input: Option<PathBuf>,
    /// The configuration file, with the credentials of the KMS configs [default: that of TSP_CONFIG_FILE, or a broker's
    /// configurations, or the last ones that TSP_SNAPSHOT_CACHE has]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The tenant that the EDEKs belong to; a LOCAL key and --derive want it
    #[arg(long)]
    tenant: Option<String>,
    /// Prints the key derived for this path instead of the secret; may be given several times
    #[arg(long, value_name = "PATH")]
    derive: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum SecretsCommand {
    /// Shows which secrets there are
    List(SomeSecrets),
    /// Begins to replace a path's current secret: the next derivation makes a new one, and the old one's keys are still
    /// handed out
    RotateBegin(OnePath),
    /// Ends that: the old one's keys are not handed out any more
    RotateCommit(OnePath),
    /// Writes a backup to standard output, wrapped as the secrets are
    Export(SomeSecrets),
}

#[derive(Args, Debug)]
struct SomeSecrets {
    /// Only those of this tenant [default: all]
    tenant: Option<String>,
    /// Only those of this secret path [default: all]
    path: Option<String>,
    #[command(flatten)]
    more: SecretsArgs,
}

#[derive(Args, Debug)]
struct OnePath {
    /// The tenant
    tenant: String,
    /// The secret path; '' for the empty one
    path: String,
    #[command(flatten)]
    more: SecretsArgs,
}

#[derive(Args, Debug)]
struct SecretsArgs {
    /// Only those of this type: search, deterministic or vector [default: all]
    #[arg(long = "type", value_name = "TYPE")]
    secret_type: Option<String>,
    /// The configuration file [default: that of TSP_CONFIG_FILE]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Reports in JSON
    #[arg(long)]
    json: bool,
}

impl SecretsCommand {
    fn options(self) -> SecretsOptions {
        let (action, tenant, path, more) = match self {
            Self::List(some) => (SecretsAction::List, some.tenant, some.path, some.more),
            Self::Export(some) => (SecretsAction::Export, some.tenant, some.path, some.more),
            Self::RotateBegin(one) => {
                let (tenant, path) = (Some(one.tenant), Some(one.path));
                (SecretsAction::RotateBegin, tenant, path, one.more)
            }
            Self::RotateCommit(one) => {
                let (tenant, path) = (Some(one.tenant), Some(one.path));
                (SecretsAction::RotateCommit, tenant, path, one.more)
            }
        };
        let SecretsArgs {
            secret_type,
            config,
            json,
        } = more;
        SecretsOptions {
            action,
            config,
            tenant,
            path,
            secret_type,
            json,
        }
    }
}

#[derive(Args, Debug)]
struct Doctor {
    /// Only the KMS configs of this tenant [default: all]
    tenant: Option<String>,
    /// The configuration file [default: that of TSP_CONFIG_FILE, or a broker's configurations]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Reports in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Health {
    /// IP or IP:PORT of its health listener [default: that of TSP_HEALTH_BIND_ADDRESS]
    address: Option<String>,
    /// Asks whether it lives instead
    #[arg(long)]
    live: bool,
}

#[derive(Args, Debug)]
struct Dev {
    /// The key that applications present [default: a new one, printed]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// IP or IP:PORT of the client API [default: 127.0.0.1:7777]
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// IP or IP:PORT of health and metrics [default: 127.0.0.1:9000]
    #[arg(long, value_name = "ADDR")]
    health: Option<String>,
    /// IP or IP:PORT of the event socket [default: 127.0.0.1:5555]
    #[arg(long, value_name = "ADDR")]
    event: Option<String>,
    /// Keeps the tenants' keys in FILE, made if it is not there [default: in memory, lost at the end]
    #[arg(long, value_name = "FILE", conflicts_with = "broker")]
    state: Option<PathBuf>,
    /// Starts a configuration broker too, with a made-up vendor, and has the tenants from there
    #[arg(long)]
    broker: bool,
}

/// Half a backup must not pass for one.
fn print_whole(bytes: &[u8]) -> Result<(), RunError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|why| RunError::Internal(format!("standard output takes no more: {why}")))
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // If nobody reads the help, there is nobody to tell.
            let _ = error.print();
            let asked_for = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
            return if asked_for.contains(&error.kind()) {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(RunError::Configuration(Vec::new()).exit_code())
            };
        }
    };
    let result = match cli.command {
        None => tsp::serve(),
        Some(Command::Check) => {
            let Checked { summary, problems } = tsp::check();
            if let Some(summary) = summary {
                let _ = writeln!(io::stdout(), "{summary}");
            }
            if problems.is_empty() {
                Ok(())
            } else {
                Err(RunError::Configuration(problems))
            }
        }
        Some(Command::Doctor(Doctor {
            tenant,
            config,
            json,
        })) => {
            let Doctored { report, verdict } = tsp::doctor(&DoctorOptions {
                config,
                tenant,
                json,
            });
            let _ = write!(io::stdout(), "{report}");
            verdict
        }
        Some(Command::Health(Health { address, live })) => {
            tsp::health(&HealthOptions { address, live }).map(|said| {
                let _ = writeln!(io::stdout(), "{said}");
            })
        }
        Some(Command::Dev(Dev {
            api_key,
            http,
            health,
            event,
            state,
            broker,
        })) => tsp::dev(&DevOptions {
            api_key,
            http,
            health,
            event,
            state,
            broker,
        }),
        Some(Command::Recover(Recover {
            input,
            config,
            tenant,
            derive,
        })) => {
            let options = RecoverOptions {
                input,
                config,
                tenant,
                derive,
            };
            tsp::recover(&options, &mut io::stdout().lock(), &mut |line| {
                let _ = writeln!(io::stderr(), "tsp: {line}");
            })
        }
        Some(Command::Top(Top { url, every, once })) => tsp::top(&TopOptions {
            url,
            every_s: every,
            once,
        }),
        Some(Command::ApiKey(ApiKeyCommand::Create(ApiKeyCreate {
            label,
            tenant,
            operation,
            expires,
        }))) => tsp::create_api_key(&ApiKeyOptions {
            label,
            tenants: tenant,
            operations: operation,
            expires,
        })
        .and_then(|text| print_whole(text.as_bytes())),
        Some(Command::Secrets(command)) => {
            tsp::secrets(&command.options()).and_then(|text| print_whole(text.as_bytes()))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
