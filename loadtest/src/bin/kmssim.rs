//! `kmssim`: four simulated KMSs in one process. See the crate's module of the same name.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use tsp_loadtest::kmssim::{
    Authority, Kmssim, Options, Provider, Rule, Sample, SampleShape, TspConfig, WorldDoc,
};

/// Plays AWS KMS, Google Cloud KMS, Azure Key Vault and Thales CipherTrust Manager, and checks every request.
///
/// Prints one JSON line with its addresses once it serves.
#[derive(Debug, Parser)]
#[command(name = "kmssim", version)]
struct Arguments {
    /// Where to serve TLS; port 0 takes a free one.
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    listen: SocketAddr,
    /// Where to serve without TLS.
    #[arg(long)]
    plain: Option<SocketAddr>,
    /// Where the control API is.
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    control: SocketAddr,
    /// The world, in TOML or JSON, instead of a sample.
    #[arg(long, conflicts_with_all = ["tenants", "providers", "tsp_config"])]
    world: Option<PathBuf>,
    /// Uses a sample world; this is the default, and the options below shape it.
    #[arg(long, conflicts_with = "world")]
    default_world: bool,
    /// Tenants of the sample.
    #[arg(long, default_value_t = 4)]
    tenants: usize,
    /// Providers of the sample's tenants, by turns.
    #[arg(long, value_delimiter = ',', default_values_t = [ProviderName(Provider::Aws), ProviderName(Provider::Gcp),
        ProviderName(Provider::Azure), ProviderName(Provider::Thales)])]
    providers: Vec<ProviderName>,
    /// AWS tenants of the sample let the proxy assume a role.
    #[arg(long)]
    aws_roles: bool,
    /// GCP tenants of the sample get their tokens from the token endpoint.
    #[arg(long)]
    gcp_token_endpoint: bool,
    /// Azure tenants of the sample prove themselves with a certificate.
    #[arg(long)]
    azure_certificates: bool,
    /// Azure tenants of the sample have their keys in managed HSMs, and an AES key beside the RSA key.
    #[arg(long)]
    azure_hsm: bool,
    /// Azure tenants of the sample use those AES keys.
    #[arg(long)]
    azure_aes: bool,
    /// Decides about the sample's keys, and about faults, latencies and nonces.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the certificate of the authority that clients must trust.
    #[arg(long)]
    ca_out: Option<PathBuf>,
    /// Keeps the authority from run to run: its certificate (with its key beside it, in FILE.key) is read from here, or
    /// written if it is not there.
    #[arg(long, conflicts_with = "ca_out")]
    ca: Option<PathBuf>,
    /// More names for the server's certificate.
    #[arg(long = "name")]
    names: Vec<String>,
    /// Where to write the configuration file with which `tsp` uses the sample world.
    #[arg(long)]
    tsp_config: Option<PathBuf>,
    /// In that file, points the proxy at the port without TLS.
    #[arg(long, requires = "plain")]
    tsp_config_plain: bool,
    /// In that file, allows to lease keys.
    #[arg(long)]
    leasing: bool,
    /// A latency from the start, as the control API takes it, such as '{"p50_ms":8,"p99_ms":60}'.
    #[arg(long, value_name = "JSON")]
    latency: Vec<String>,
    /// A quota from the start, such as '{"target":{"provider":"azure"},"per_second":400}'.
    #[arg(long, value_name = "JSON")]
    quota: Vec<String>,
    /// A fault from the start, such as '{"kind":"hang","percent":1}'.
    #[arg(long, value_name = "JSON")]
    fault: Vec<String>,
    /// Ends when standard input does, so that it dies with the test that started it.
    #[arg(long)]
    until_stdin_ends: bool,
}

/// A provider's name on the command line.
#[derive(Clone, Copy, Debug)]
struct ProviderName(Provider);

impl std::str::FromStr for ProviderName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Provider::ALL.into_iter();
        all.find(|provider| provider.as_str() == text)
            .map(Self)
            .ok_or_else(|| "none of aws, gcp, azure, thales".to_owned())
    }
}

impl std::fmt::Display for ProviderName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_str())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            drop(writeln!(std::io::stderr(), "kmssim: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let sample = match &arguments.world {
        Some(path) => Sample {
            world: WorldDoc::parse(&read(path)?)
                .map_err(|error| format!("{}: {error}", path.display()))?,
            clients: Vec::new(),
        },
        None => Sample::new(&SampleShape {
            tenants: arguments.tenants,
            providers: arguments.providers.iter().map(|name| name.0).collect(),
            seed: arguments.seed,
            aws_roles: arguments.aws_roles,
            gcp_token_endpoint: arguments.gcp_token_endpoint,
            azure_certificates: arguments.azure_certificates,
            azure_hsm: arguments.azure_hsm,
            azure_aes: arguments.azure_aes,
        }),
    };
    let clients = sample.clients.clone();
    let options = Options {
        listen: arguments.listen,
        plain: arguments.plain,
        control: arguments.control,
        seed: arguments.seed,
        authority: kept_authority(arguments.ca.as_deref())?,
        names: arguments.names.clone(),
        rules: rules(arguments),
        ..Options::on_loopback(sample)
    };
    let kmssim = Kmssim::start(options).map_err(|error| error.to_string())?;
    let ca_file = arguments.ca_out.as_ref().or(arguments.ca.as_ref());
    if let Some(path) = ca_file {
        write(path, &kmssim.authority().certificate_pem)?;
    }
    if let Some(path) = &arguments.ca {
        write(&key_beside(path), &kmssim.authority().key_pem)?;
    }
    if let Some(path) = &arguments.tsp_config {
        let url = if arguments.tsp_config_plain {
            kmssim.plain_url().unwrap_or_default()
        } else {
            kmssim.url()
        };
        let absolute = ca_file
            .map(std::path::absolute)
            .transpose()
            .map_err(|error| error.to_string())?;
        let config = TspConfig {
            url: &url,
            ca_file: absolute.as_deref(),
            leasing_allowed: arguments.leasing,
        };
        write(path, &config.text(&clients))?;
    }
    let ready = serde_json::json!({
        "url": kmssim.url(),
        "plain_url": kmssim.plain_url(),
        "control_url": kmssim.control_url(),
        "ca_file": ca_file,
        "spki_pin": kmssim.spki_pin(),
        "tsp_config": arguments.tsp_config,
    });
    // Whoever waits for this line may be gone already, which is no reason to end.
    drop(writeln!(std::io::stdout(), "{ready}"));
    if arguments.until_stdin_ends {
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        return Ok(());
    }
    kmssim.join()
}

fn rules(arguments: &Arguments) -> Vec<Rule> {
    let latencies = arguments.latency.iter().cloned().map(Rule::Latency);
    let quotas = arguments.quota.iter().cloned().map(Rule::Quota);
    let faults = arguments.fault.iter().cloned().map(Rule::Fault);
    latencies.chain(quotas).chain(faults).collect()
}

fn kept_authority(path: Option<&Path>) -> Result<Option<Authority>, String> {
    let Some(path) = path.filter(|path| path.exists()) else {
        return Ok(None);
    };
    Ok(Some(Authority {
        certificate_pem: read(path)?,
        key_pem: read(&key_beside(path))?,
    }))
}

fn key_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".key");
    name.into()
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
