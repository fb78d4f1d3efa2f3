//! A logdriver that delivers to its own standard output.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use super::{PATIENCE, broker::Account, child, metrics::Metrics, proxy::Proxy, text};

/// The running process.
pub(crate) struct Logdriver {
    child: Child,
    lines: Receiver<Value>,
    health: SocketAddr,
    /// The key that its checkpoints are signed with.
    public_key: String,
    /// Log lines, for the curious.
    log: Vec<Value>,
}

impl Logdriver {
    /// One that takes `proxy`'s events, which come as `scheme` says, and has its configurations.
    /// One that has the proxy's configuration file.
    #[track_caller]
    pub(crate) fn start(proxy: &Proxy, scheme: &str, store: &TempDir) -> Self {
        let mut command = Self::command(proxy, scheme, store);
        command.env("TSP_CONFIG_FILE", proxy.config_path());
        Self::spawn(command)
    }

    /// One that has a service account, and may speak to loopback.
    #[track_caller]
    pub(crate) fn of(account: &Account, proxy: &Proxy, store: &TempDir) -> Self {
        let mut command = Self::command(proxy, "tcp", store);
        command
            .envs(account.0.iter().filter(|(name, _)| *name != "API_KEY"))
            .env("LOGDRIVER_ALLOW_ADDRESSES", "loopback");
        Self::spawn(command)
    }

    fn command(proxy: &Proxy, scheme: &str, store: &TempDir) -> Command {
        let producer = proxy.event.expect("the event socket's address is told");
        let mut command = child::command(child::beside_tsp("tsp-logdriver"));
        command
            .env(
                "LOGDRIVER_EVENT_PRODUCER_URL",
                format!("{scheme}://{producer}"),
            )
            .env("LOGDRIVER_STORE", store.path())
            .env("LOGDRIVER_STORE_FREE_MIN", "0")
            .env("LOGDRIVER_BUFFER_POLL_INTERVAL", "20")
            .env("LOGDRIVER_HEALTH_BIND_ADDRESS", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }

    #[track_caller]
    fn spawn(command: Command) -> Self {
        let mut child = child::spawn(command);
        let out = child.stdout.take().expect("its output is piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            // A kill may cut the last line off.
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            for line in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut logdriver = Self {
            child,
            lines,
            health: SocketAddr::from(([0, 0, 0, 0], 0)),
            public_key: String::new(),
            log: Vec::new(),
        };
        let told = |log: &[Value], name: &str| {
            let told = log.iter().find_map(|line| line[name].as_str());
            told.map(str::to_owned)
        };
        while told(&logdriver.log, "health").is_none() {
            let event = logdriver.next();
            assert_eq!(event, None, "it delivers before it serves");
        }
        let health = told(&logdriver.log, "health").expect("it was found");
        logdriver.health = health.parse().expect("an address");
        logdriver.public_key = told(&logdriver.log, "public_key").expect("it comes before");
        logdriver
    }

    /// The next line of its output: an event, or `None` for one of its log.
    #[track_caller]
    fn next(&mut self) -> Option<Value> {
        let line = self.lines.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|_| panic!("nothing came: {:#?}", self.log));
        if line.get("service").is_none() {
            return Some(line);
        }
        self.log.push(line);
        None
    }

    /// The next event.
    #[track_caller]
    pub(crate) fn event(&mut self) -> Value {
        loop {
            if let Some(event) = self.next() {
                return event;
            }
        }
    }

    /// Takes events until those with these request ids were there.
    #[track_caller]
    pub(crate) fn take_until(&mut self, wanted: &[&str]) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        let is_there = |events: &[Value], id: &&str| {
            let mut ids = events.iter().map(|event| &event["iclFields"]["requestId"]);
            ids.any(|known| known == *id)
        };
        while !wanted.iter().all(|id| is_there(&events, id)) {
            events.push(self.event());
        }
        events
    }

    /// Waits until a metric of its own has this value.
    #[track_caller]
    pub(crate) fn wait_for_metric(&self, name: &str, value: f64) {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.metrics().count(name, &[]);
            if now.total_cmp(&value).is_eq() {
                return;
            }
            assert!(Instant::now() < until, "{name} is {now}, not {value}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::read(self.health)
    }

    /// The log line with this text, which must have come or come soon.
    #[track_caller]
    pub(crate) fn log_line(&mut self, part: &str) -> Value {
        let is_it = |line: &&Value| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.contains(part))
        };
        loop {
            if let Some(line) = self.log.iter().find(is_it) {
                return line.clone();
            }
            self.next();
        }
    }

    /// What `tsp-logdriver verify` says of an export of these events.
    #[track_caller]
    pub(crate) fn verify(&self, events: &[Value]) -> String {
        let mut export = NamedTempFile::new().expect("a temporary file can be made");
        for event in events {
            writeln!(export, "{event}").expect("it can be written");
        }
        let mut command = child::command(child::beside_tsp("tsp-logdriver"));
        command
            .arg("verify")
            .arg(export.path())
            .args(["--public-key", &self.public_key]);
        let output = command.output().expect("it runs");
        String::from_utf8(output.stdout).expect("it speaks UTF-8")
    }

    /// Where its health and metrics are.
    pub(crate) fn health(&self) -> SocketAddr {
        self.health
    }

    /// Has it look at its configurations.
    pub(crate) fn hang_up(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it runs");
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

/// The name of an event.
pub(crate) fn name(event: &Value) -> &str {
    text(&event["iclFields"], "event")
}

impl Drop for Logdriver {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
