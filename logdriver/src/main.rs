//! `tsp-logdriver`: arguments and exit codes, nothing else.
#![forbid(unsafe_code)]

use std::{
    alloc::System,
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
};

use clap::{Parser, Subcommand, error::ErrorKind};
use tsp_logdriver::{
    config::{self, ProcessConfig, Variables},
    health,
    outbound::Outbound,
    routes::Maker,
    serve::{self, RunError, Sinks},
    sinks,
    store::{DeadLetters, Letter},
    verify::{self, Verify},
};
use tsp_wire::logging::SinkConfig;
use zeroizing_alloc::ZeroAlloc;

/// Wipes what is freed: copies of credentials that parsers and buffers leave.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// Takes security events from Tenant Security Proxies, keeps them on disk, and delivers each tenant's to its own log system.
#[derive(Debug, Parser)]
#[command(name = "tsp-logdriver", version, about, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// End with the process that started this one
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

const AFTER_HELP: &str = "\
Without a command, serves. All settings are environment variables; docs/logdriver.md lists them.

Signals:    SIGTERM, SIGINT drain (a second one exits at once); SIGHUP looks at the configurations
Exit codes: 0 drained, 64 bad configuration, 69 a log is not whole (verify) or the answer is no (health),
            70 internal failure, 71 an address cannot be listened on";

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks the variables, tells every problem, and serves nothing
    Check,
    /// Asks a running logdriver whether it is ready
    Health {
        /// Whether it lives, rather than whether it is ready
        #[arg(long)]
        live: bool,
    },
    /// Looks an exported log through: whether anything was changed, taken out or added
    Verify(Verify),
    /// Prints the dead letters of the store, one JSON a line, oldest first
    Dead {
        /// Only this tenant's
        tenant: Option<String>,
    },
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
    if cli.die_with_parent {
        let signal = Some(rustix::process::Signal::TERM);
        if let Err(why) = rustix::process::set_parent_process_death_signal(signal) {
            let why = format!("cannot be bound to the parent: {why}");
            return ended(&Err(RunError::Internal(why)));
        }
    }
    let variables = match Variables::read().map_err(RunError::Configuration) {
        Ok(variables) => variables,
        Err(error) => return ended(&Err(error)),
    };
    let get = |name: &str| variables.get(name);
    let read = || ProcessConfig::from_variables(&get).map_err(RunError::Configuration);
    let result = match cli.command {
        None => read().and_then(|config| {
            let log_systems = log_systems(&config);
            serve::serve(config, log_systems)
        }),
        Some(Command::Check) => read().map(drop),
        Some(Command::Health { live }) => health::ask(&get, live).map(|said| {
            // If nobody reads it, the exit code says it.
            let _ = write!(io::stdout(), "{said}");
        }),
        Some(Command::Verify(verify)) => return ExitCode::from(verify::run(&verify)),
        Some(Command::Dead { tenant }) => dead(&get, tenant.as_deref()),
    };
    ended(&result)
}

fn ended(result: &Result<(), RunError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn dead(get: &dyn Fn(&str) -> Option<String>, tenant: Option<&str>) -> Result<(), RunError> {
    let secret = config::store_secret(get);
    let internal = |why: &dyn std::fmt::Display| RunError::Internal(why.to_string());
    let letters = DeadLetters::open(&config::store(get), secret.as_ref());
    let letters = letters.map_err(|why| internal(&why))?;
    let mut out = io::stdout().lock();
    let mut written = Ok(());
    letters
        .each(|letter| {
            if written.is_ok() && tenant.is_none_or(|tenant| tenant == letter.tenant) {
                written = writeln!(out, "{}", line(&letter));
            }
        })
        .map_err(|why| internal(&why))?;
    written.map_err(|why| internal(&why))
}

fn line(letter: &Letter) -> serde_json::Value {
    let event = letter.event.as_ref().map(|event| {
        let text = String::from_utf8_lossy(&event.json).into_owned();
        serde_json::from_slice(&event.json).unwrap_or(serde_json::Value::from(text))
    });
    serde_json::json!({
        "tenantId": letter.tenant,
        "reason": letter.reason,
        "atMillis": letter.at_ms,
        "sequence": letter.first,
        "events": letter.count,
        "event": event,
    })
}

fn log_systems(config: &ProcessConfig) -> Sinks {
    let outbound = Outbound::new(config.destinations.clone());
    let make: Maker = Arc::new(move |json| {
        let config = SinkConfig::parse(json).map_err(|why| why.to_string())?;
        sinks::build(&config, &outbound).map_err(|why| why.to_string())
    });
    Sinks {
        make,
        stdout: sinks::stdout(),
    }
}
