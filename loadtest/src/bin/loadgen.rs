//! `loadgen`: load on the proxy, and what it costs.
#![forbid(unsafe_code)]

use std::{
    env, fs,
    io::{self, IsTerminal as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use tsp_loadtest::{
    arrivals::{Arrivals, Bursts},
    client::Target,
    compare::{self, Comparison, Variant},
    generator::{self, Generator, Length, Phase},
    mix::{self, Demand, Mix},
    page,
    report::Setup,
    runner,
    scenario::Scenario,
    server,
};
use tsp_rt::tls::ClientTls;

/// Puts load on a Tenant Security Proxy and says what it costs.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Puts load on a proxy that runs already. Its API key is taken from the environment variable API_KEY.
    Run(Run),
    /// Starts proxies (`tsp dev`), one after another, and compares what a request costs them.
    Compare(Compare),
    /// Starts simulated KMSs and a proxy, runs a scenario on them, and writes its figures as JSON and as a page with plots.
    Scenario(RunScenario),
}

#[derive(Debug, Args)]
struct Load {
    /// What to ask: wrap, unwrap, batch-wrap, batch-unwrap, rekey, derive, security-event, mixed, or some by weight,
    /// such as unwrap=90,wrap=10.
    mix: Mix,
    /// Items of each batch.
    #[arg(long, default_value_t = mix::BATCH_ITEMS)]
    batch_items: usize,
    /// Prefers the first tenants: the one at place N is asked for in proportion to 1/N^ZIPF. Otherwise they take turns.
    #[arg(long)]
    zipf: Option<f64>,
    /// How an open loop's requests are spread.
    #[arg(long, value_enum, default_value_t)]
    arrivals: Arrivals,
    /// Decides about everything that is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Connections, over all of the generator's threads.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Tenants, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "tenant-a,tenant-b")]
    tenants: Vec<String>,
    /// Requests before the measurement, not counted.
    #[arg(long, default_value_t = 5_000)]
    warm_up: u64,
    /// Writes everything that was measured to this file, as JSON.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    load: Load,
    /// HOST:PORT of the proxy, or unix:PATH of its socket.
    #[arg(long, default_value = "127.0.0.1:7777")]
    target: String,
    /// Ends after so many requests.
    #[arg(long, default_value_t = 100_000, conflicts_with = "seconds")]
    requests: u64,
    /// Ends after so many seconds.
    #[arg(long)]
    seconds: Option<f64>,
    /// Open loop: requests per second, at their times whether or not the last were answered. Latency counts from those
    /// times. Without it every connection waits for its answer.
    #[arg(long)]
    rate: Option<f64>,
    /// Leaves the CPU to others between two requests of an open loop, and is up to a millisecond late for that.
    #[arg(long, requires = "rate")]
    share_cpu: bool,
    /// Pauses after so many requests of an open loop, each time for as long as --pause-ms says.
    #[arg(long, requires_all = ["rate", "pause_ms"])]
    burst: Option<u64>,
    /// Length of the pauses: from MIN to MAX ms, evenly spread, as MIN-MAX.
    #[arg(long, requires = "burst")]
    pause_ms: Option<String>,
    /// Asks nothing before the measurement, so that the proxy meets the load cold: no warm-up, and no check that it unwraps
    /// what it wrapped.
    #[arg(long, conflicts_with = "warm_up")]
    cold: bool,
    /// CPUs for the generator, one thread each, such as 1 or 2-3. One thread on any CPU if not given.
    #[arg(long)]
    cores: Option<String>,
    /// Measures the CPU time of this process, the proxy's.
    #[arg(long)]
    server_pid: Option<u32>,
    /// Speaks TLS, and trusts the authority whose certificate is in this file.
    #[arg(long, value_name = "PEM")]
    tls_ca: Option<PathBuf>,
    /// Allows a target that is not on loopback; the same host again, so that it is no slip of the finger.
    #[arg(long)]
    allow_host: Option<String>,
}

#[derive(Debug, Args)]
struct RunScenario {
    /// The file; `loadtest/scenarios` has some.
    file: PathBuf,
    /// The `tsp` binary. The one beside this program if not given.
    #[arg(long)]
    server: Option<PathBuf>,
    /// The folder for NAME.json and NAME.html, made if it is not there.
    #[arg(long, default_value = "target/loadtest")]
    out: PathBuf,
    /// Pins the shards to the first CPUs, and KMSs and generator to the others, or to all if there are no others.
    #[arg(long)]
    pin: bool,
}

#[derive(Debug, Args)]
struct Compare {
    #[command(flatten)]
    load: Load,
    /// The `tsp` binary, of a release build.
    #[arg(long, default_value = "target/release/tsp")]
    server: PathBuf,
    /// A variant as `NAME: VARIABLE=VALUE …`: environment for the server; SERVER=PATH is another binary, TRANSPORT=tls or
    /// unix another way to it than TCP. Give it twice or more; the first is the measure. Without it the two I/O back ends are compared.
    #[arg(long)]
    vary: Vec<String>,
    /// Numbers of shards, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    shards: Vec<usize>,
    /// Requests per server and round.
    #[arg(long, default_value_t = 100_000)]
    requests: u64,
    /// How often each server is measured.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Open loop: requests per second. Without it the shards are kept busy.
    #[arg(long)]
    rate: Option<f64>,
    /// Lets the servers send security events, which are then taken and thrown away; otherwise they are switched off.
    #[arg(long)]
    events: bool,
}

impl Load {
    fn demand(&self) -> Demand {
        Demand {
            mix: self.mix.clone(),
            batch_items: self.batch_items,
            zipf: self.zipf,
            seed: self.seed,
        }
    }
}

/// Exit code for a wrong command line (`EX_USAGE` of sysexits).
const EXIT_USAGE: u8 = 64;

/// Most connections: one process cannot have more to one address and port.
const CONNECTIONS_MAX: usize = 28_000;

#[derive(Debug)]
enum Error {
    Usage(String),
    Failed(String),
}

impl From<io::Error> for Error {
    fn from(why: io::Error) -> Self {
        Self::Failed(why.to_string())
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(why) => {
            drop(why.print());
            return ExitCode::from(if why.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    // Every connection takes a descriptor; a soft limit of 1024 is common.
    drop(tsp_rt::raise_limits());
    let result = match cli.command {
        Command::Run(run) => run_load(&run),
        Command::Compare(compare) => run_comparison(&compare),
        Command::Scenario(run) => run_scenario(&run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Usage(why)) => {
            complain(&why);
            ExitCode::from(EXIT_USAGE)
        }
        Err(Error::Failed(why)) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

fn complain(why: &str) {
    // If standard error is gone, nobody is left to tell.
    drop(writeln!(io::stderr(), "loadgen: {why}"));
}

fn run_load(run: &Run) -> Result<(), Error> {
    check(&run.load)?;
    let lanes = match &run.cores {
        Some(list) => cpus(list)?.into_iter().map(Some).collect(),
        None => vec![None],
    };
    let length = match run.seconds {
        Some(seconds) => Length::Time(positive("--seconds", seconds)?),
        None => Length::Requests(run.requests),
    };
    if let Some(rate) = run.rate {
        // A rate whose period is not a duration is no rate.
        positive("--rate", rate)?;
    }
    let bursts = run
        .burst
        .map(|requests| bursts(run, requests))
        .transpose()?;
    let api_key = env::var("API_KEY")
        .map_err(|_| Error::Usage("the environment has no API_KEY of the proxy".to_owned()))?;
    let unix = run.target.strip_prefix("unix:");
    let target = match unix {
        Some(path) => Target::unix(PathBuf::from(path), "localhost", &api_key),
        None => Target::new(
            address(&run.target, run.allow_host.as_deref())?,
            &run.target,
            &api_key,
        ),
    };
    let mut target =
        target.ok_or_else(|| Error::Usage("API_KEY could not stand in a header".to_owned()))?;
    if unix.is_some() && run.tls_ca.is_some() {
        let why = "--tls-ca is for a port: nobody speaks TLS on a Unix socket";
        return Err(Error::Usage(why.to_owned()));
    }
    if let Some(path) = &run.tls_ca {
        let wrong = |why: String| Error::Usage(format!("{}: {why}", path.display()));
        let pem = fs::read_to_string(path).map_err(|why| wrong(why.to_string()))?;
        let client = ClientTls::with_roots_pem(&pem).map_err(|why| wrong(why.to_string()))?;
        let host = run.target.rsplit_once(':').map_or("", |(host, _)| host);
        target = target.with_tls(client, host.trim_matches(['[', ']']));
    }

    let load = &run.load;
    let demand = load.demand();
    let plan = if run.cold {
        if demand.edeks_per_tenant(load.tenants.len()) > 0 {
            let why = "--cold is for mixes that need no EDEKs from before";
            return Err(Error::Usage(why.to_owned()));
        }
        demand.plan(&load.tenants, &[]).map_err(Error::Usage)?
    } else {
        generator::prepare(&target, &demand, &load.tenants)?
            .map_err(|why| Error::Failed(format!("the proxy does not work: {why}")))?
    };
    let generator = Generator::start(&target, &Arc::new(plan), load.connections, &lanes)?;
    if !run.cold {
        generator.run(Phase::closed(Length::Requests(load.warm_up)))?;
    }
    let phase = Phase {
        rate: run.rate,
        arrivals: load.arrivals,
        seed: load.seed,
        shares_cpu: run.share_cpu,
        bursts,
        ..Phase::closed(length)
    };
    let (connections, arrivals) = (load.connections, load.arrivals);
    let setup = Setup::new(
        &demand.mix,
        target.transport(),
        connections,
        lanes.len(),
        run.rate,
        arrivals,
    );
    let report = compare::run_watched(&generator, phase, run.server_pid, setup)?;
    write_out(load, &report)?;
    writeln!(io::stdout(), "{report}")?;
    match report.failed {
        0 => Ok(()),
        failed => Err(Error::Failed(format!("{failed} requests failed"))),
    }
}

fn run_scenario(run: &RunScenario) -> Result<(), Error> {
    let scenario = Scenario::read(&run.file).map_err(|why| Error::Usage(why.to_string()))?;
    let server = match &run.server {
        Some(path) => path.clone(),
        None => env::current_exe()?.with_file_name("tsp"),
    };
    let mut stderr = io::stderr();
    let on_terminal = stderr.is_terminal();
    let mut progress = |line: &str| {
        if on_terminal {
            // Over the last line; nobody is left to tell if standard error is gone.
            drop(write!(stderr, "\r\x1b[K{}: {line}", scenario.name));
            drop(stderr.flush());
        }
    };
    let results = runner::run(&scenario, &server, run.pin, &mut progress);
    if on_terminal {
        drop(write!(stderr, "\r\x1b[K"));
    }
    let results = results?;
    let page = page::page(&results).map_err(|why| Error::Failed(why.to_string()))?;
    let json = serde_json::to_vec_pretty(&results).map_err(io::Error::from)?;
    fs::create_dir_all(&run.out)
        .map_err(|why| Error::Failed(format!("{}: {why}", run.out.display())))?;
    let file = |ending: &str| run.out.join(format!("{}.{ending}", scenario.name));
    write_file(&file("json"), &json)?;
    write_file(&file("html"), page.as_bytes())?;
    writeln!(io::stdout(), "{results}page: {}", file("html").display())?;
    Ok(())
}

fn run_comparison(compare: &Compare) -> Result<(), Error> {
    check(&compare.load)?;
    let variants = match compare.vary.as_slice() {
        [] => Variant::back_ends(),
        texts => texts
            .iter()
            .map(|text| Variant::parse(text).map_err(|why| format!("--vary {text:?}: {why}")))
            .collect::<Result<_, _>>()
            .map_err(Error::Usage)?,
    };
    if compare.rounds == 0 || compare.shards.contains(&0) {
        return Err(Error::Usage("--rounds and --shards begin at 1".to_owned()));
    }
    if let Some(rate) = compare.rate {
        positive("--rate", rate)?;
    }
    let load = &compare.load;
    let comparison = Comparison {
        server: compare.server.clone(),
        variants,
        shards: compare.shards.clone(),
        demand: load.demand(),
        connections: load.connections,
        requests: compare.requests,
        rate: compare.rate,
        arrivals: load.arrivals,
        warm_up: load.warm_up,
        rounds: compare.rounds,
        tenants: load.tenants.clone(),
        events: compare.events,
        cpus: server::allowed_cpus()?,
    };
    let before = server::machine();
    let cells = comparison.run(complain)?;
    write_out(load, &cells)?;
    let (mix, connections, requests) = (&load.mix, load.connections, compare.requests);
    let rate = compare
        .rate
        .map_or_else(String::new, |rate| format!(" at {rate}/s"));
    writeln!(
        io::stdout(),
        "{mix}, {connections} connections, {} rounds of {requests} requests{rate}\n\
         before: {before}\nafter: {}\n\n{}",
        compare.rounds,
        server::machine(),
        compare::table(&cells)
    )?;
    Ok(())
}

fn check(load: &Load) -> Result<(), Error> {
    let connections = load.connections;
    if connections == 0 || connections > CONNECTIONS_MAX {
        return Err(Error::Usage(format!(
            "--connections is 1 to {CONNECTIONS_MAX}"
        )));
    }
    if load.tenants.iter().any(String::is_empty) {
        return Err(Error::Usage("--tenants has an empty name".to_owned()));
    }
    load.demand().check().map_err(Error::Usage)
}

fn cpus(list: &str) -> Result<Vec<usize>, Error> {
    server::parse_cpus(list).map_err(|why| Error::Usage(format!("--cores: {why}")))
}

/// A number of seconds, or of events per second, as a duration: more than zero, and finite.
fn positive(option: &str, number: f64) -> Result<Duration, Error> {
    match Duration::try_from_secs_f64(number) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(Error::Usage(format!("{option} is a number above 0"))),
    }
}

/// Bursts of so many requests, with the pauses that `run` asks for.
fn bursts(run: &Run, requests: u64) -> Result<Bursts, Error> {
    let pauses = run.pause_ms.as_deref().and_then(|text| {
        let (min, max) = text.split_once('-')?;
        let ms = |number: &str| number.parse().ok().map(Duration::from_millis);
        Some((ms(min)?, ms(max)?))
    });
    match pauses {
        Some((pause_min, pause_max)) if requests > 0 && pause_min <= pause_max => Ok(Bursts {
            requests,
            pause_min,
            pause_max,
        }),
        _ => Err(Error::Usage(
            "--burst begins at 1, and --pause-ms is MIN-MAX".to_owned(),
        )),
    }
}

/// The proxy's address. Load goes to loopback only, unless the host was named twice.
fn address(target: &str, allowed: Option<&str>) -> Result<SocketAddr, Error> {
    let split = target
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = split.ok_or_else(|| Error::Usage("--target is HOST:PORT".to_owned()))?;
    let address = generator::resolve(host, port)?;
    if !address.ip().is_loopback() && allowed != Some(host) {
        return Err(Error::Usage(format!(
            "{host} is not this machine; if it is yours to load, add --allow-host {host}"
        )));
    }
    Ok(address)
}

fn write_out(load: &Load, figures: &impl Serialize) -> Result<(), Error> {
    if let Some(path) = &load.out {
        let json = serde_json::to_vec_pretty(figures).map_err(io::Error::from)?;
        write_file(path, &json)?;
    }
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(|why| Error::Failed(format!("{}: {why}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn load_stays_on_this_machine_unless_the_host_is_named_twice() {
        assert!(address("127.0.0.1:7777", None).is_ok());
        assert!(address("[::1]:7777", None).is_ok());
        assert!(matches!(
            address("192.0.2.1:7777", None),
            Err(Error::Usage(_))
        ));
        assert!(matches!(
            address("192.0.2.1:7777", Some("192.0.2.2")),
            Err(Error::Usage(_))
        ));
        assert!(address("192.0.2.1:7777", Some("192.0.2.1")).is_ok());
        assert!(matches!(address("127.0.0.1", None), Err(Error::Usage(_))));
    }

    #[test]
    fn rates_and_times_are_above_zero_and_finite() {
        assert!(positive("--rate", 0.5).is_ok());
        for number in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(
                matches!(positive("--rate", number), Err(Error::Usage(_))),
                "{number}"
            );
        }
    }

    #[test]
    fn pauses_have_two_bounds_and_need_a_rate() {
        let run = |arguments: &[&str]| {
            let all = ["loadgen", "run", "wrap"].iter().chain(arguments);
            let command = Cli::try_parse_from(all).ok()?.command;
            let Command::Run(run) = command else {
                return None;
            };
            bursts(&run, run.burst?).ok()
        };
        let good = run(&["--rate", "9", "--burst", "3", "--pause-ms", "10-20"]).unwrap();
        assert_eq!((good.requests, good.pause_min.as_millis()), (3, 10));
        for bad in ["10", "20-10", "a-b", ""] {
            assert!(run(&["--rate", "9", "--burst", "3", "--pause-ms", bad]).is_none());
        }
        assert!(run(&["--rate", "9", "--burst", "0", "--pause-ms", "1-2"]).is_none());
        assert!(run(&["--burst", "3", "--pause-ms", "1-2"]).is_none());
    }
}
