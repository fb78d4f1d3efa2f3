//! What a scenario runs on: the simulated KMSs on a thread of this process, and the proxy as a process of its own.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde::Deserialize;
use tempfile::TempDir;
use tsp_rt::Rt as _;

use crate::{
    client::Target,
    front::Front,
    kmssim::{Kmssim, Options, Sample, StartError, TspConfig},
    scenario::{LoadDoc, Scenario},
    server::{API_KEY, Server},
};

/// The CPUs of the parts; `None` leaves the scheduler free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpus {
    /// Those of the shards.
    pub(crate) proxy: Option<Vec<usize>>,
    /// That of each load; they go round.
    pub(crate) loads: Vec<Option<usize>>,
    /// That of the KMSs.
    pub(crate) kms: Option<usize>,
}

impl Cpus {
    /// Nothing is pinned.
    pub(crate) fn free() -> Self {
        Self {
            proxy: None,
            loads: vec![None],
            kms: None,
        }
    }

    /// The shards have the first CPUs; the loads share the rest with the KMSs, or all if there is no rest. The KMSs have
    /// one for themselves where there are two or more.
    pub(crate) fn pinned(allowed: &[usize], shards: usize) -> Self {
        let (proxy, rest) = allowed.split_at(shards.min(allowed.len()));
        let rest = if rest.is_empty() { allowed } else { rest };
        let (kms, loads) = match rest {
            [] => (None, rest),
            [only] => (Some(*only), rest),
            [loads @ .., last] => (Some(*last), loads),
        };
        Self {
            proxy: Some(proxy.to_vec()),
            loads: loads.iter().copied().map(Some).collect(),
            kms,
        }
    }

    /// The CPU of load number `index`.
    pub(crate) fn load(&self, index: usize) -> Option<usize> {
        *self.loads.get(index % self.loads.len().max(1))?
    }
}

/// KMSs, and a proxy that serves their tenants. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Stand {
    server: Server,
    kmssim: Kmssim,
    /// Where the API's port is.
    http: SocketAddr,
    front: Front,
    /// The I/O back end that the proxy took.
    pub(crate) io: String,
    /// From the start of the process until it said that it serves.
    pub(crate) start_time: Duration,
    binary: PathBuf,
    environment: Vec<(String, String)>,
    /// Holds configuration, certificate and tenant secrets.
    _folder: TempDir,
}

impl Stand {
    /// Starts both on free ports of the loopback. `binary` is the proxy's.
    pub(crate) fn start(scenario: &Scenario, binary: &Path, cpus: &Cpus) -> io::Result<Self> {
        let doc = &scenario.doc;
        let folder = TempDir::new()?;
        let sample = Sample::new(&doc.shape());
        let clients = sample.clients.clone();
        let options = Options {
            rules: doc.rules(),
            cpu: cpus.kms,
            ..Options::on_loopback(sample)
        };
        let kmssim = Kmssim::start(options).map_err(|why| match why {
            StartError::Io(why) => why,
            why @ (StartError::World(_) | StartError::Rule(_) | StartError::Certificate(_)) => {
                io::Error::new(io::ErrorKind::InvalidInput, why)
            }
        })?;
        let ca_file = folder.path().join("ca.pem");
        fs::write(&ca_file, &kmssim.authority().certificate_pem)?;
        let url = match kmssim.plain_url() {
            Some(plain) if doc.kms.plain => plain,
            _ => kmssim.url(),
        };
        let config = TspConfig {
            url: &url,
            ca_file: Some(&ca_file),
            leasing_allowed: doc.kms.leased,
        };
        let config_file = folder.path().join("tenants.toml");
        fs::write(&config_file, config.text(&clients))?;
        let transports: Vec<_> = doc.load.iter().map(|load| load.transport).collect();
        let front = Front::new(folder.path(), &transports)?;
        let environment = environment(scenario, &config_file, cpus, &front)?;
        let (server, serving) = serve(binary, &environment)?;
        Ok(Self {
            http: serving.address,
            front,
            server,
            kmssim,
            io: serving.io,
            start_time: serving.after,
            binary: binary.to_owned(),
            environment,
            _folder: folder,
        })
    }

    /// Ends the proxy and starts another on the same files.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        self.server.stop();
        let (server, serving) = serve(&self.binary, &self.environment)?;
        self.server = server;
        self.http = serving.address;
        self.io = serving.io;
        self.start_time = serving.after;
        Ok(())
    }

    /// The proxy, for one of the loads.
    pub(crate) fn target(&self, load: &LoadDoc) -> io::Result<Target> {
        self.front.target(self.http, load.transport)
    }

    /// The proxy's process.
    pub(crate) fn proxy_id(&self) -> u32 {
        self.server.id()
    }

    /// Requests that the KMSs have had, by provider and operation, such as `aws wrap`.
    pub(crate) fn kms_calls(&self) -> io::Result<BTreeMap<String, u64>> {
        #[derive(Deserialize)]
        struct Metrics {
            providers: BTreeMap<String, BTreeMap<String, Counts>>,
        }
        #[derive(Deserialize)]
        struct Counts {
            requests: u64,
        }
        let metrics: Metrics = serde_json::from_value(self.kmssim.metrics()?)?;
        let mut calls = BTreeMap::new();
        for (provider, operations) in metrics.providers {
            for (operation, counts) in operations {
                calls.insert(format!("{provider} {operation}"), counts.requests);
            }
        }
        Ok(calls)
    }
}

fn environment(
    scenario: &Scenario,
    config_file: &Path,
    cpus: &Cpus,
    front: &Front,
) -> io::Result<Vec<(String, String)>> {
    let proxy = &scenario.doc.proxy;
    let mut variables = vec![
        ("API_KEY", API_KEY.to_owned()),
        ("TSP_CONFIG_FILE", config_file.display().to_string()),
        ("TSP_SHARDS", proxy.shards.unwrap_or(1).to_string()),
        // Nothing takes them here, and a queue that nobody empties costs more until it is full.
        ("TSP_ENABLE_LOGDRIVER_INTEGRATION", false.to_string()),
    ];
    variables.extend(front.environment());
    for name in [
        "TSP_HTTP_BIND_ADDRESS",
        "TSP_HEALTH_BIND_ADDRESS",
        "TSP_EVENT_BIND_ADDRESS",
    ] {
        variables.push((name, "127.0.0.1:0".to_owned()));
    }
    if let Some(list) = &cpus.proxy {
        let list: Vec<_> = list.iter().map(usize::to_string).collect();
        // Beside the generator the control plane's wake-ups would disturb that.
        let first = list.first().cloned().unwrap_or_default();
        variables.push(("TSP_CONTROL_CORE", first));
        variables.push(("TSP_CORES", list.join(",")));
    }
    let more = proxy.environment().map_err(io::Error::other)?;
    let known = variables.into_iter().map(|(name, v)| (name.to_owned(), v));
    Ok(known.chain(more).collect())
}

struct Started {
    address: SocketAddr,
    io: String,
    after: Duration,
}

fn serve(binary: &Path, environment: &[(String, String)]) -> io::Result<(Server, Started)> {
    // The kernel ends it with the thread that started it, however that ends.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .arg(binary)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let named = |why: io::Error| io::Error::new(why.kind(), format!("{}: {why}", binary.display()));
    let began = now()?;
    let mut server = Server::start(&mut command).map_err(named)?;
    let serving = server.wait_until_serving().map_err(named)?;
    let started = Started {
        address: serving.http,
        io: serving.io,
        after: now()?.saturating_duration_since(began),
    };
    Ok((server, started))
}

/// The clock, for a thread that is no core.
pub(crate) fn now() -> io::Result<Instant> {
    tsp_rt::run_here(async |rt| rt.now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_have_the_first_cpus_and_the_kms_the_last() {
        let pinned = |allowed: &[usize], shards| {
            let cpus = Cpus::pinned(allowed, shards);
            let loads = [cpus.load(0), cpus.load(1)];
            (cpus.proxy.unwrap(), loads, cpus.kms)
        };
        assert_eq!(pinned(&[0, 1], 1), (vec![0], [Some(1), Some(1)], Some(1)));
        assert_eq!(
            pinned(&[0, 1], 2),
            (vec![0, 1], [Some(0), Some(0)], Some(1))
        );
        assert_eq!(
            pinned(&[2, 3, 4, 5], 1),
            (vec![2], [Some(3), Some(4)], Some(5))
        );
        assert_eq!(Cpus::free().load(3), None);
    }
}
