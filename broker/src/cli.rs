//! The command line: what an admin does, sealed and opened on the admin's machine.

mod accounts;
mod admins;
mod commands;
mod configs;
mod health;
mod organization;
mod profile;
mod try_out;

use std::{
    env,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use tsp_wire::Secret;

use crate::{bridge::Config, mail::MailConfig, serve};

/// Exit code for a command line or a configuration that cannot be used (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;

#[derive(Parser)]
#[command(
    name = "tsp-broker",
    version,
    about = "Configuration broker for tenant security proxies"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service
    Serve(Serve),
    /// Ask a running service, or a bridge, whether it is well
    Health(health::Health),
    /// Run a vendor bridge, with the variables of its service account
    Bridge(Bridge),
    /// Make a vendor, its segment key and its first admin
    Init(Init),
    /// Make a made-up vendor with tenants, LOCAL keys and service accounts, for trying out
    TryOut(try_out::TryOut),
    /// What holds for the whole vendor
    #[command(subcommand)]
    Vendor(Vendor),
    /// Service accounts of proxies and of bridges
    #[command(subcommand)]
    ServiceAccount(ServiceAccount),
    /// Service accounts: revoke one
    #[command(subcommand)]
    Account(Account),
    /// The organization's admins and auditors
    #[command(subcommand)]
    Admin(Admins),
    /// Tenants
    #[command(subcommand)]
    Tenant(Tenant),
    /// KMS configs, and which tenants they serve
    #[command(subcommand)]
    Kms(Kms),
    /// Tenants' logging configurations
    #[command(subcommand)]
    Logging(Logging),
    /// Tenant secrets, wrapped
    #[command(subcommand)]
    Secrets(Secrets),
    /// The segment's key
    #[command(subcommand)]
    Segment(Segment),
    /// The audit trail
    #[command(subcommand)]
    Audit(Audit),
}

#[derive(Args)]
struct Serve {
    /// sqlite://PATH or postgres://…
    #[arg(
        long,
        env = "BROKER_DATABASE_URL",
        default_value = "sqlite://broker.db",
        hide_env_values = true
    )]
    database_url: String,
    /// Where to listen
    #[arg(long, env = "BROKER_LISTEN", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Who presents it may make a new vendor; without it nobody may
    #[arg(long, env = "BROKER_SETUP_TOKEN", hide_env_values = true)]
    setup_token: Option<String>,
    /// smtps://user:password@host, or smtp://…?tls=required; without it no mail is sent
    #[arg(long, env = "BROKER_SMTP_URL", hide_env_values = true, requires_all = ["mail_from", "public_url"])]
    smtp_url: Option<String>,
    /// File in PEM; the mail server's certificate must come of it, instead of the public authorities
    #[arg(long, env = "BROKER_SMTP_CA", requires = "smtp_url")]
    smtp_ca: Option<PathBuf>,
    /// Whom mails are from
    #[arg(long, env = "BROKER_MAIL_FROM")]
    mail_from: Option<String>,
    /// The broker's own URL, for the links in mails
    #[arg(long, env = "BROKER_PUBLIC_URL")]
    public_url: Option<String>,
    /// End with the process that started this one
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

#[derive(Args)]
struct Bridge {
    /// Where to listen
    #[arg(long, env = "BRIDGE_LISTEN", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Longest time for a request, in milliseconds
    #[arg(long, env = "VAB_REQUEST_TIMEOUT", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    request_timeout: u64,
    /// Speak plain HTTP to a broker on another machine
    #[arg(long, env = "BROKER_ALLOW_HTTP")]
    allow_http: bool,
}

/// Where an admin's profile is. The passphrase comes from `BROKER_PASSPHRASE`, or is asked for.
#[derive(Args)]
struct Who {
    /// The admin's profile
    #[arg(long, env = "BROKER_PROFILE", default_value = "broker-admin.json")]
    profile: PathBuf,
    /// Speak plain HTTP to another machine
    #[arg(long, env = "BROKER_ALLOW_HTTP")]
    allow_http: bool,
}

#[derive(Args)]
struct Init {
    #[command(flatten)]
    who: Who,
    /// The broker's URL
    #[arg(long, env = "CONFIG_BROKER_URL")]
    broker: String,
    /// The vendor's name
    #[arg(long)]
    name: String,
    /// The first admin's e-mail address
    #[arg(long)]
    email: String,
    /// The service's setup token
    #[arg(long, env = "BROKER_SETUP_TOKEN", hide_env_values = true)]
    setup_token: String,
}

#[derive(Subcommand)]
enum Vendor {
    /// Change what tenants begin with that are made from now on
    Set {
        #[command(flatten)]
        who: Who,
        /// Whether all their KMS configs must allow leasing
        #[arg(long, action = clap::ArgAction::Set)]
        leasing_required: bool,
    },
}

#[derive(Subcommand)]
enum ServiceAccount {
    /// Make one, and print its file of variables
    Create {
        #[command(flatten)]
        who: Who,
        /// For people
        #[arg(long)]
        name: String,
        /// What it is for
        #[arg(long = "type", value_enum, default_value_t = Kind::Tsp)]
        kind: Kind,
        /// A tag; tenants with one of them reach the account. Without any: the default tag
        #[arg(long = "tag")]
        tags: Vec<String>,
        /// What applications present to the proxy; made up if absent
        #[arg(long, env = "API_KEY", hide_env_values = true)]
        api_key: Option<String>,
    },
    /// List them
    List {
        #[command(flatten)]
        who: Who,
    },
}

/// What a service account is for.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// A proxy, or a log driver: opens configurations
    Tsp,
    /// A vendor bridge: manages tenants and configurations, and opens nothing
    Bridge,
}

#[derive(Subcommand)]
enum Account {
    /// Revoke a service account
    Revoke {
        #[command(flatten)]
        who: Who,
        /// Its SERVICE_CONFIG_ID
        config: i64,
    },
}

#[derive(Subcommand)]
enum Admins {
    /// List them
    List {
        #[command(flatten)]
        who: Who,
    },
    /// Make a link with which somebody becomes one
    Invite {
        #[command(flatten)]
        who: Who,
        /// The e-mail address
        email: String,
        /// To look only
        #[arg(long)]
        auditor: bool,
    },
    /// Answer such a link: makes a profile
    Accept {
        #[command(flatten)]
        who: Who,
        /// The link
        link: String,
        /// The profile of an account that they have already: the new one has the same keys and passphrase
        #[arg(long = "as")]
        account: Option<PathBuf>,
    },
    /// Give a new admin the organization's keys
    Grant {
        #[command(flatten)]
        who: Who,
        /// The e-mail address
        email: String,
        /// What `accept` printed, as the new admin told it: not as the broker tells it
        key: String,
    },
    /// Remove one
    Remove {
        #[command(flatten)]
        who: Who,
        /// The e-mail address
        email: String,
    },
    /// Say whether you want to hear by mail what is done in the organization
    Notify {
        #[command(flatten)]
        who: Who,
        /// true or false
        #[arg(action = clap::ArgAction::Set)]
        notify: bool,
    },
}

#[derive(Subcommand)]
enum Tenant {
    /// Make one
    Create {
        #[command(flatten)]
        who: Who,
        /// The vendor's id of it
        id: String,
        /// For people; the id if absent
        #[arg(long)]
        name: Option<String>,
        /// A tag; without any: the default tag
        #[arg(long = "tag")]
        tags: Vec<String>,
    },
    /// List them
    List {
        #[command(flatten)]
        who: Who,
    },
    /// Make a link with which the tenant's admin accepts
    Invite {
        #[command(flatten)]
        who: Who,
        /// The tenant
        id: String,
        /// The admin's e-mail address
        email: String,
    },
    /// Answer such a link, as the tenant's admin: makes the tenant's organization and a profile, or links the one of the profile
    Accept {
        #[command(flatten)]
        who: Who,
        /// The link
        link: String,
        /// The organization's name; the tenant's if absent
        #[arg(long)]
        name: Option<String>,
    },
    /// Vouch for the organization that answered a mailed link
    Confirm {
        #[command(flatten)]
        who: Who,
        /// The tenant
        id: String,
        /// What `accept` printed, as the tenant's admin told it: not as the broker tells it
        code: String,
    },
    /// As a tenant's admin: list the vendors that the organization is a tenant of, and what serves it there
    Links {
        #[command(flatten)]
        who: Who,
    },
    /// Change one; what is not given stays
    Set {
        #[command(flatten)]
        who: Who,
        /// The tenant
        id: String,
        /// For people
        #[arg(long)]
        name: Option<String>,
        /// Whether all its KMS configs must allow leasing
        #[arg(long)]
        leasing_required: Option<bool>,
        /// A tag to add
        #[arg(long = "add-tag")]
        add_tags: Vec<String>,
        /// A tag to take away
        #[arg(long = "remove-tag")]
        remove_tags: Vec<String>,
    },
    /// Archive one: it reaches no proxy any more, and there is no way back
    Archive {
        #[command(flatten)]
        who: Who,
        /// The tenant
        id: String,
    },
    /// Delete one that was never claimed and has no KMS configs
    Delete {
        #[command(flatten)]
        who: Who,
        /// The tenant
        id: String,
    },
}

#[derive(Subcommand)]
enum Kms {
    /// Seal one and store it; prints its number
    Create {
        #[command(flatten)]
        who: Who,
        /// JSON: type, key_path, credentials; `-` is standard input
        #[arg(long)]
        file: PathBuf,
        /// Proxies may lease keys from it
        #[arg(long)]
        leasing: bool,
    },
    /// Give one other credentials
    Update {
        #[command(flatten)]
        who: Who,
        /// Its number
        id: i64,
        /// As for create; type and key_path stay
        #[arg(long)]
        file: PathBuf,
        /// Proxies may lease keys from it
        #[arg(long)]
        leasing: bool,
    },
    /// Say whether proxies may lease keys from one
    Leasing {
        #[command(flatten)]
        who: Who,
        /// Its number
        id: i64,
        /// true or false
        #[arg(action = clap::ArgAction::Set)]
        allowed: bool,
    },
    /// List them
    List {
        #[command(flatten)]
        who: Who,
    },
    /// Assign one to a tenant
    Assign {
        #[command(flatten)]
        who: Who,
        /// Its number
        id: i64,
        /// The tenant
        tenant: String,
        /// As a tenant's admin: the vendor's number, if several have a tenant of this name
        #[arg(long)]
        vendor: Option<i64>,
        /// And make it the primary one
        #[arg(long)]
        primary: bool,
    },
    /// Make one a tenant's primary
    Primary {
        #[command(flatten)]
        who: Who,
        /// Its number
        id: i64,
        /// The tenant
        tenant: String,
        /// As a tenant's admin: the vendor's number, if several have a tenant of this name
        #[arg(long)]
        vendor: Option<i64>,
    },
    /// Keep a tenant from using one
    Disable {
        #[command(flatten)]
        who: Who,
        /// Its number
        id: i64,
        /// The tenant
        tenant: String,
        /// As a tenant's admin: the vendor's number, if several have a tenant of this name
        #[arg(long)]
        vendor: Option<i64>,
    },
    /// Take one away from a tenant
    Unassign {
        #[command(flatten)]
        who: Who,
        /// Its number
        id: i64,
        /// The tenant
        tenant: String,
        /// As a tenant's admin: the vendor's number, if several have a tenant of this name
        #[arg(long)]
        vendor: Option<i64>,
    },
    /// Delete one that is assigned to nobody, and the tenant secrets that only it opens
    Delete {
        #[command(flatten)]
        who: Who,
        /// Its number
        id: i64,
    },
}

#[derive(Subcommand)]
enum Logging {
    /// Seal a tenant's logging configuration and store it
    Set {
        #[command(flatten)]
        who: Who,
        /// The tenant
        tenant: String,
        /// As a tenant's admin: the vendor's number, if several have a tenant of this name
        #[arg(long)]
        vendor: Option<i64>,
        /// JSON; `-` is standard input
        #[arg(long)]
        file: PathBuf,
    },
    /// Take a tenant's logging configuration away
    Remove {
        #[command(flatten)]
        who: Who,
        /// The tenant
        tenant: String,
        /// As a tenant's admin: the vendor's number, if several have a tenant of this name
        #[arg(long)]
        vendor: Option<i64>,
    },
}

#[derive(Subcommand)]
enum Secrets {
    /// Print all tenant secrets, in the format that `tsp recover` reads
    Export {
        #[command(flatten)]
        who: Who,
    },
    /// Rotate one
    Rotate {
        #[command(flatten)]
        who: Who,
        /// What to do
        step: Step,
        /// The tenant
        tenant: String,
        /// search, deterministic or vector
        secret_type: String,
        /// The path
        #[arg(default_value = "")]
        path: String,
    },
}

/// A step of a rotation.
#[derive(Clone, Copy, ValueEnum)]
enum Step {
    /// The current secret gives way to the one that the next derivation makes
    Begin,
    /// The old secret's keys are not handed out any more
    Commit,
}

#[derive(Subcommand)]
enum Segment {
    /// Make a new key and seal everything for it: after an account was revoked
    Rotate {
        #[command(flatten)]
        who: Who,
    },
}

#[derive(Subcommand)]
enum Audit {
    /// Print it, a line of JSON each
    List {
        #[command(flatten)]
        who: Who,
        /// Only what came after the line with this number
        #[arg(long, default_value_t = 0)]
        after: i64,
    },
    /// Check that the trail is whole, and goes on from where it was when last checked
    Verify {
        #[command(flatten)]
        who: Who,
    },
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(why) => {
            let _ = why.print();
            return ExitCode::from(if why.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let mut bridge = None;
    if let Command::Bridge(options) = &cli.command {
        let timeout = Duration::from_millis(options.request_timeout);
        let get = |name| env::var(name).ok();
        match Config::from_variables(options.listen, timeout, options.allow_http, get) {
            Ok(config) => bridge = Some(config),
            Err(problems) => {
                let _ = writeln!(
                    io::stderr(),
                    "tsp-broker: {}",
                    problems.join("\ntsp-broker: ")
                );
                return ExitCode::from(EXIT_USAGE);
            }
        }
    }
    let mut runtime = if matches!(cli.command, Command::Serve(_) | Command::Bridge(_)) {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = runtime.enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(Box::pin(run(cli.command, bridge))),
        Err(why) => Err(format!("no runtime: {why}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(io::stderr(), "tsp-broker: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command, bridge: Option<Config>) -> Result<(), String> {
    match command {
        Command::Serve(options) => {
            if options.die_with_parent {
                let signal = Some(rustix::process::Signal::TERM);
                rustix::process::set_parent_process_death_signal(signal)
                    .map_err(|why| format!("cannot be bound to the parent: {why}"))?;
            }
            log_to_stderr();
            let config = serve::Config {
                database_url: options.database_url,
                listen: options.listen,
                setup_token: options.setup_token,
                mail: options.smtp_url.map(|smtp_url| MailConfig {
                    smtp_ca: options.smtp_ca,
                    smtp_url: Secret::new(smtp_url),
                    from: options.mail_from.unwrap_or_default(),
                    public_url: options.public_url.unwrap_or_default(),
                }),
            };
            serve::run(config, listening)
                .await
                .map_err(|why| why.to_string())
        }
        Command::Bridge(_) => {
            log_to_stderr();
            let config = bridge.ok_or("a bridge has no configuration")?;
            crate::bridge::run(config, listening)
                .await
                .map_err(|why| why.to_string())
        }
        Command::Health(asked) => health::health(asked).await,
        Command::Init(init) => commands::init(init).await,
        Command::TryOut(wanted) => try_out::try_out(&wanted),
        Command::Vendor(command) => accounts::vendor(command).await,
        Command::ServiceAccount(command) => accounts::service_account(command).await,
        Command::Account(command) => accounts::account(command).await,
        Command::Admin(command) => admins::run(command).await,
        Command::Tenant(command) => commands::tenant(command).await,
        Command::Kms(command) => configs::kms(command).await,
        Command::Logging(command) => configs::logging(command).await,
        Command::Secrets(command) => commands::secrets(command).await,
        Command::Segment(command) => commands::segment(command).await,
        Command::Audit(command) => commands::audit(command).await,
    }
}

fn listening(address: SocketAddr) {
    let _ = writeln!(io::stdout(), "listening at http://{address}");
    tracing::info!(%address, "listening");
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
}
