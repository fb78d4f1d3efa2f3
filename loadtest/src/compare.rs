//! Servers side by side: the same load on each, in interleaved rounds, so that what the machine does meanwhile hits all.
//!
//! A cell is one variant (environment variables for the server) with one number of shards. Each round measures every cell
//! once, with a fresh server; every other round goes backwards. Cells are compared within a round, so a drift of the machine
//! cancels out; the table shows the median of those ratios and their quartiles.

use std::{
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use serde::Serialize;
use tempfile::TempDir;

use crate::{
    arrivals::Arrivals,
    cpu::CpuTime,
    front::{Front, Transport},
    generator::{self, Generator, Length, Phase},
    mix::Demand,
    report::{Report, Setup, Spread},
    server::{API_KEY, Server},
};

/// How long a server may take to its first answer.
const START_MAX: Duration = Duration::from_secs(20);

/// The variable that switches the servers' security events on.
const EVENTS_SWITCH: &str = "TSP_ENABLE_LOGDRIVER_INTEGRATION";

/// Environment variables for the server under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Its name in the table.
    pub name: String,
    /// Variables and values. `SERVER` names another binary than the common one; `TRANSPORT` is how it is reached: `tcp`
    /// (if not said), `tls` or `unix`.
    pub variables: Vec<(String, String)>,
}

impl Variant {
    /// Reads `NAME: VARIABLE=VALUE VARIABLE=VALUE`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, rest) = text
            .split_once(": ")
            .ok_or("has no `NAME: ` at its start")?;
        let variables = rest.split_whitespace().map(|pair| {
            let (variable, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair:?} is not VARIABLE=VALUE"))?;
            Ok((variable.to_owned(), value.to_owned()))
        });
        Ok(Self {
            name: name.to_owned(),
            variables: variables.collect::<Result<_, String>>()?,
        })
    }

    /// The two back ends, epoll first: it is the measure of the other.
    #[must_use]
    pub fn back_ends() -> Vec<Self> {
        let of = |name: &str| Self {
            name: name.to_owned(),
            variables: vec![("TSP_IO".to_owned(), name.to_owned())],
        };
        vec![of("epoll"), of("uring")]
    }
}

/// What to compare, and how.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The `tsp` binary.
    pub server: PathBuf,
    /// What is compared; the first is what the others are measured against.
    pub variants: Vec<Variant>,
    /// Numbers of shards.
    pub shards: Vec<usize>,
    /// What is asked.
    pub demand: Demand,
    /// Connections, over all shards.
    pub connections: usize,
    /// Requests per cell and round.
    pub requests: u64,
    /// Requests before those, not counted.
    pub warm_up: u64,
    /// Requests per second of an open loop; `None` is a closed one, which keeps the shards busy.
    pub rate: Option<f64>,
    /// How an open loop's requests are spread.
    pub arrivals: Arrivals,
    /// How often every cell is measured.
    pub rounds: usize,
    /// Tenants of the server.
    pub tenants: Vec<String>,
    /// Whether the servers send security events, and something takes them. If not, they are switched off: a queue that
    /// nobody empties costs more until it is full and less afterwards.
    pub events: bool,
    /// CPUs to use: shards take the first ones. The generator takes the rest, or all if the shards leave none.
    pub cpus: Vec<usize>,
}

/// All figures of one cell, by round.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The variant's name.
    pub variant: String,
    /// The number of shards.
    pub shards: usize,
    /// One report per round.
    pub reports: Vec<Report>,
}

impl Cell {
    fn figures(&self, figure: impl Fn(&Report) -> f64) -> Vec<f64> {
        self.reports.iter().map(figure).collect()
    }

    fn cpu_us(&self) -> Vec<f64> {
        self.figures(|report| {
            report
                .server_cpu
                .as_ref()
                .map_or(0.0, |cpu| cpu.us_per_request)
        })
    }
}

impl Comparison {
    /// Does all rounds. `progress` is told what each measurement gave.
    ///
    /// # Errors
    /// If a server does not start, or answers anything wrongly: figures of a faulty server are worth nothing.
    pub fn run(&self, mut progress: impl FnMut(&str)) -> io::Result<Vec<Cell>> {
        let shards = self.shards.iter();
        let mut cells: Vec<_> = shards
            .flat_map(|shards| self.variants.iter().map(move |variant| (*shards, variant)))
            .map(|(shards, variant)| {
                (
                    variant,
                    Cell {
                        variant: variant.name.clone(),
                        shards,
                        reports: Vec::new(),
                    },
                )
            })
            .collect();
        for round in 0..self.rounds {
            for (variant, cell) in &mut cells {
                let report = self.measure(variant, cell.shards)?;
                let (round, rounds) = (round + 1, self.rounds);
                let Cell {
                    variant, shards, ..
                } = cell;
                progress(&format!("{round}/{rounds} {shards} × {variant}: {report}"));
                if let Some(first) = report.first_failure {
                    return Err(io::Error::other(format!(
                        "{variant} does not work: {first}"
                    )));
                }
                cell.reports.push(report);
            }
            cells.reverse();
        }
        if self.rounds % 2 == 1 {
            cells.reverse();
        }
        Ok(cells.into_iter().map(|(_, cell)| cell).collect())
    }

    fn measure(&self, variant: &Variant, shards: usize) -> io::Result<Report> {
        let (server_cpus, generator_cpus) = self.split(shards);
        let [http, health, events] = free_addresses()?;
        let (ours, variables): (Vec<_>, Vec<_>) = variant
            .variables
            .iter()
            .cloned()
            .partition(|(name, _)| ["SERVER", "TRANSPORT"].contains(&name.as_str()));
        let last = |wanted: &str| ours.iter().rfind(|(name, _)| name == wanted);
        let transport = last("TRANSPORT").map_or(Ok(Transport::Tcp), |(_, name)| {
            Transport::parse(name).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))
        })?;
        let folder = TempDir::new()?;
        let front = Front::new(folder.path(), &[transport])?;
        let events_on = variables
            .iter()
            .rfind(|(name, _)| name == EVENTS_SWITCH)
            .map_or(self.events, |(_, value)| value != "false");
        let binary = last("SERVER").map_or(self.server.as_path(), |(_, path)| path.as_ref());
        let list: Vec<_> = server_cpus.iter().map(usize::to_string).collect();
        let mut command = Command::new(binary);
        command
            .arg("dev")
            .env("API_KEY", API_KEY)
            .env("TSP_HTTP_BIND_ADDRESS", http.to_string())
            .env("TSP_HEALTH_BIND_ADDRESS", health.to_string())
            .env("TSP_EVENT_BIND_ADDRESS", events.to_string())
            .env("TSP_SHARDS", shards.to_string())
            .env("TSP_CORES", list.join(","))
            // The control plane has nearly nothing to do; beside the generator its wake-ups would disturb that.
            .env(
                "TSP_CONTROL_CORE",
                list.first().cloned().unwrap_or_default(),
            )
            .env(EVENTS_SWITCH, self.events.to_string())
            .envs(front.environment())
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut server = Server::start(&mut command).map_err(|why| {
            io::Error::new(
                why.kind(),
                format!("{} does not start: {why}", binary.display()),
            )
        })?;
        let target = front.target(http, transport)?;
        let first = self.tenants.first().ok_or(io::ErrorKind::InvalidInput)?;
        if let Err(failure) = generator::wait_until_ready(&target, first, START_MAX)? {
            let said = server.last_words();
            return Err(io::Error::other(format!(
                "{}: {failure}\n{said}",
                variant.name
            )));
        }
        let plan = generator::prepare(&target, &self.demand, &self.tenants)?
            .map_err(|failure| io::Error::other(format!("{}: {failure}", variant.name)))?;
        if events_on {
            drain_events(events)?;
        }

        let lanes: Vec<_> = generator_cpus.iter().copied().map(Some).collect();
        let generator = Generator::start(&target, &Arc::new(plan), self.connections, &lanes)?;
        let (mix, connections) = (&self.demand.mix, self.connections);
        let setup = Setup::new(
            mix,
            transport,
            connections,
            lanes.len(),
            self.rate,
            self.arrivals,
        );
        generator.run(Phase::closed(Length::Requests(self.warm_up)))?;
        let phase = Phase {
            rate: self.rate,
            arrivals: self.arrivals,
            seed: self.demand.seed,
            ..Phase::closed(Length::Requests(self.requests))
        };
        run_watched(&generator, phase, Some(server.id()), setup)
    }

    /// The CPUs of the shards and those of the generator.
    fn split(&self, shards: usize) -> (&[usize], &[usize]) {
        let (server, rest) = self.cpus.split_at(shards.min(self.cpus.len()));
        (server, if rest.is_empty() { &self.cpus } else { rest })
    }
}

/// Does one phase and puts the report together, with the CPU time of the process `server`.
///
/// # Errors
/// If a lane died, or the process is not there.
pub fn run_watched(
    generator: &Generator,
    phase: Phase,
    server: Option<u32>,
    setup: Setup,
) -> io::Result<Report> {
    let here = std::process::id();
    let server_time = || server.map(CpuTime::of).transpose();
    let (server_before, here_before) = (server_time()?, CpuTime::of(here)?);
    let outcome = generator.run(phase)?;
    let (server_after, here_after) = (server_time()?, CpuTime::of(here)?);
    let server = server_after
        .zip(server_before)
        .map(|(after, before)| after.since(&before));
    let generator_time = here_after.since(&here_before).total();
    Ok(Report::new(
        setup,
        &outcome,
        server.as_ref(),
        Some(generator_time),
    ))
}

/// Takes everything that comes out of a server's event socket, on a thread that ends with the server.
///
/// Speaks just enough of the protocol: nng's TCP mapping begins with a header of 8 bytes that names the protocol, PULL
/// here; what follows is not looked at.
fn drain_events(address: SocketAddr) -> io::Result<()> {
    const PULL_HEADER: &[u8; 8] = b"\0SP\0\0\x51\0\0";
    let mut socket = TcpStream::connect(address)?;
    socket.write_all(PULL_HEADER)?;
    thread::Builder::new()
        .name("event-drain".to_owned())
        .spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while matches!(socket.read(&mut buffer), Ok(1..)) {}
        })?;
    Ok(())
}

/// Addresses on loopback that nobody listens on. Held all at one time, so that they differ.
fn free_addresses<const N: usize>() -> io::Result<[SocketAddr; N]> {
    let mut held = Vec::with_capacity(N);
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for address in &mut addresses {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(addresses)
}

/// The comparison as a table in Markdown; every figure as its median over the rounds, with the quartiles in brackets.
#[must_use]
pub fn table(cells: &[Cell]) -> String {
    let mut out = String::from(
        "| shards | variant | CPU per request, µs | ratio to the first | shards busy | requests/s | p99, ms |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let spread = |figures: &[f64], digits: usize| {
        Spread::of(figures).map_or_else(String::new, |spread| format!("{spread:.digits$}"))
    };
    for cell in cells {
        let baseline = cells
            .iter()
            .find(|first| first.shards == cell.shards)
            .unwrap_or(cell);
        let pairs = cell.cpu_us().into_iter().zip(baseline.cpu_us());
        let ratios: Vec<_> = pairs.map(|(own, first)| own / first).collect();
        let busy = cell.figures(|report| {
            report
                .server_cpu
                .as_ref()
                .map_or(0.0, |cpu| cpu.busy_cpus / cell.shards as f64)
        });
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} |",
            cell.shards,
            cell.variant,
            spread(&cell.cpu_us(), 2),
            spread(&ratios, 2),
            spread(&busy, 2),
            spread(&cell.figures(|report| report.requests_per_second), 0),
            spread(
                &cell.figures(|report| report.latency_us.p99 as f64 / 1e3),
                2
            ),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_a_name_and_variables() {
        let variant = Variant::parse("no log: RUST_LOG=off TSP_IO=epoll").unwrap();
        assert_eq!(variant.name, "no log");
        let pairs = [("RUST_LOG", "off"), ("TSP_IO", "epoll")];
        assert_eq!(
            variant.variables,
            pairs.map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
        assert!(Variant::parse("RUST_LOG=off").is_err());
        assert!(Variant::parse("x: RUST_LOG").is_err());
        assert!(Variant::parse("as it is: ").unwrap().variables.is_empty());
    }

    #[test]
    fn free_addresses_differ() {
        let [a, b, c] = free_addresses().unwrap();
        assert!(a != b && b != c && a != c);
    }

    #[test]
    fn the_generator_gets_the_cpus_that_shards_leave_or_all() {
        let comparison = Comparison {
            server: PathBuf::new(),
            variants: Variant::back_ends(),
            shards: vec![1, 2],
            demand: Demand::of("wrap".parse().unwrap()),
            connections: 1,
            requests: 1,
            warm_up: 0,
            rate: None,
            arrivals: Arrivals::Constant,
            rounds: 1,
            tenants: Vec::new(),
            events: false,
            cpus: vec![4, 6],
        };
        assert_eq!(comparison.split(1), (&[4][..], &[6][..]));
        assert_eq!(comparison.split(2), (&[4, 6][..], &[4, 6][..]));
        assert_eq!(comparison.split(3), (&[4, 6][..], &[4, 6][..]));
    }
}
