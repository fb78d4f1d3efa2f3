//! One proxy process under test.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tsp_rt::IoChoice;

use super::{
    child,
    http::{self, Answer, Connection, Request},
    log::Log,
    metrics::Metrics,
};

/// The API key of every proxy under test: base64 of 12 bytes, as the strictest client wants it.
pub(crate) const API_KEY: &str = "dGVzdC1hcGkta2V5";

/// Longest time a process may take to end after it was told to. Above the proxy's own drain deadline.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait for a change of `/ready`. The longest back-off of a proxy that has failed a few times is 8 s.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// The I/O back end that a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Io {
    Epoll,
    Uring,
}

impl Io {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Uring => "uring",
        }
    }

    /// Whether this machine allows it. With `TSP_TEST_REQUIRE_URING=1` a "no" fails the test.
    pub(crate) fn is_usable(self) -> bool {
        let choice = match self {
            Self::Epoll => IoChoice::Epoll,
            Self::Uring => IoChoice::Uring,
        };
        let Err(why) = tsp_rt::choose(choice) else {
            return true;
        };
        let required = std::env::var("TSP_TEST_REQUIRE_URING").is_ok_and(|value| value == "1");
        assert!(!required, "TSP_TEST_REQUIRE_URING=1, but: {why}");
        eprintln!("skipped: {why}");
        false
    }
}

/// How to start a proxy.
#[derive(Debug)]
pub(crate) struct Setup {
    io: Io,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    open_files_max: Option<u32>,
    folder: TempDir,
}

impl Setup {
    /// `tsp` on free loopback ports, with `config` as its configuration file.
    pub(crate) fn serve(io: Io, config: &str) -> Self {
        let setup = Self { io, ..Self::bare() }
            .env("TSP_IO", io.as_str())
            .env("API_KEY", API_KEY);
        setup.write_config(config);
        let path = setup.config_path();
        setup
            .env(
                "TSP_CONFIG_FILE",
                path.to_str().expect("temporary paths are UTF-8"),
            )
            .on_free_ports()
    }

    /// `tsp` on free loopback ports, with no configuration file.
    pub(crate) fn without_config(io: Io) -> Self {
        Self { io, ..Self::bare() }
            .env("TSP_IO", io.as_str())
            .env("API_KEY", API_KEY)
            .on_free_ports()
    }

    /// `tsp dev` on free loopback ports.
    pub(crate) fn dev(io: Io) -> Self {
        let setup = Self { io, ..Self::bare() }.env("TSP_IO", io.as_str());
        setup
            .argument("dev")
            .argument("--api-key")
            .argument(API_KEY)
            .on_free_ports()
    }

    /// Nothing told at all: no argument, no variable.
    pub(crate) fn bare() -> Self {
        Self {
            io: Io::Epoll,
            arguments: Vec::new(),
            // Two shards whatever the machine has, so that what crosses shards is tested everywhere.
            environment: vec![("TSP_SHARDS".into(), "2".into())],
            open_files_max: None,
            folder: TempDir::new().expect("a temporary folder can be made"),
        }
    }

    fn on_free_ports(self) -> Self {
        ["HTTP", "HEALTH", "EVENT"]
            .into_iter()
            .fold(self, |setup, name| {
                setup.env(&format!("TSP_{name}_BIND_ADDRESS"), "127.0.0.1:0")
            })
    }

    pub(crate) fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Sets a variable; the last value of a name counts.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Hard limit on open files of the process.
    pub(crate) fn open_files_max(mut self, files: u32) -> Self {
        self.open_files_max = Some(files);
        self
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.folder.path().join("tenants.toml")
    }

    fn write_config(&self, config: &str) {
        replace_file(&self.config_path(), config);
    }

    fn spawn(&self) -> (Child, Log) {
        let mut command = match self.open_files_max {
            Some(files) => {
                let mut command = child::command("prlimit");
                command
                    .arg(format!("--nofile={files}:{files}"))
                    .arg(env!("CARGO_BIN_EXE_tsp"));
                command
            }
            None => child::command(env!("CARGO_BIN_EXE_tsp")),
        };
        // Nothing of the surroundings, such as RUST_LOG or somebody's cloud credentials.
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = child::spawn(command);
        let log = Log::default();
        log.follow(child.stdout.take().expect("stdout is a pipe"));
        log.follow(child.stderr.take().expect("stderr is a pipe"));
        (child, log)
    }

    /// Starts the process and waits until it serves.
    #[track_caller]
    pub(crate) fn start(self) -> Proxy {
        let (child, log) = self.spawn();
        let mut proxy = Proxy {
            child,
            log,
            http: UNKNOWN,
            health: UNKNOWN,
            event: None,
            api_key: API_KEY.to_owned(),
            setup: self,
        };
        let started = proxy
            .log
            .wait_json(0, "line that tells the addresses", |line| {
                line["http"].is_string()
            })
            .0;
        let address = |name: &str| started[name].as_str().and_then(|text| text.parse().ok());
        proxy.http = address("http").unwrap_or_else(|| panic!("no address: {started}"));
        proxy.health = address("health").unwrap_or_else(|| panic!("no address: {started}"));
        proxy.event = address("event");
        proxy
    }

    /// Runs the process to its own end, which must come soon.
    #[track_caller]
    pub(crate) fn run_to_end(self) -> Ended {
        let (mut child, log) = self.spawn();
        let status = wait(&mut child);
        log.wait_for_end();
        Ended {
            code: status.code(),
            output: log.text(),
        }
    }
}

const UNKNOWN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// A process that has ended, and all that it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
}

/// A running proxy. Ended when dropped; its last lines are shown if the test has failed.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Child,
    pub(crate) log: Log,
    pub(crate) http: SocketAddr,
    pub(crate) health: SocketAddr,
    pub(crate) event: Option<SocketAddr>,
    /// What an SDK presents.
    pub(crate) api_key: String,
    setup: Setup,
}

impl Proxy {
    /// One API call with the right key, on a connection of its own.
    #[track_caller]
    pub(crate) fn call(&self, endpoint: &str, body: &Value) -> Answer {
        self.send(&Request::api(endpoint, API_KEY, body))
    }

    #[track_caller]
    pub(crate) fn send(&self, request: &Request) -> Answer {
        http::ask(self.http, request)
    }

    #[track_caller]
    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.http)
    }

    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::read(self.http)
    }

    pub(crate) fn io(&self) -> Io {
        self.setup.io
    }

    pub(crate) fn base_url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is there");
    }

    /// Replaces the configuration file in one step, as a careful operator does.
    pub(crate) fn replace_config(&self, config: &str) {
        self.setup.write_config(config);
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.setup.config_path()
    }

    /// What the health listener says.
    #[track_caller]
    pub(crate) fn probe(&self, path: &str) -> u16 {
        http::ask(self.health, &Request::new("GET", path)).status
    }

    /// Waits until `/ready` has this status.
    #[track_caller]
    pub(crate) fn wait_for_ready(&self, status: u16) {
        let deadline = Instant::now() + READY_TIMEOUT;
        while self.probe("/ready") != status {
            assert!(Instant::now() < deadline, "/ready does not become {status}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A line of the kernel's `status` of the process, such as `VmRSS`, in KiB.
    pub(crate) fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .expect("the process is there");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line
            .and_then(|line| line.split_whitespace().next())
            .and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("no {field} in {status}"))
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub(crate) fn wait_for_end(mut self) -> Ended {
        let status = wait(&mut self.child);
        self.log.wait_for_end();
        Ended {
            code: status.code(),
            output: self.log.text(),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("last lines of the proxy:\n{}", self.log.tail());
        }
    }
}

/// Writes beside and renames, so that a reader sees the old file or the new one.
pub(crate) fn replace_file(path: &Path, text: &str) {
    let folder = path.parent().expect("the file lies in a folder");
    let mut file = tempfile::NamedTempFile::new_in(folder).expect("a file can be made beside it");
    file.write_all(text.as_bytes())
        .expect("the file can be written");
    file.persist(path).expect("the file can be renamed");
}

#[track_caller]
fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + END_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the process did not end within {END_TIMEOUT:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
