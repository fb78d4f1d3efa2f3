//! A logdriver process with standard output as its tenants' log system, read by the test.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, Value};
use tsp_logdriver::chain::Link;

/// Longest that any test waits for anything. Far beyond what a busy machine takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `is_so`, looking every few milliseconds.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "never happened: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A folder with a store and a configuration file.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Self { folder };
        home.write(config);
        home
    }

    /// Gives the configuration file other contents, in one step.
    pub(crate) fn write(&self, config: &str) {
        let fresh = self.folder.path().join("fresh.toml");
        std::fs::write(&fresh, config).unwrap();
        std::fs::rename(fresh, self.folder.path().join("tenants.toml")).unwrap();
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The program with what every test wants; `producer` is where events come from.
    pub(crate) fn command(&self, producer: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsp-logdriver"));
        self.environment(&mut command, producer);
        command
    }

    pub(crate) fn environment(&self, command: &mut Command, producer: &str) {
        command
            .env_clear()
            .env("LOGDRIVER_EVENT_PRODUCER_URL", producer)
            .env("LOGDRIVER_STORE", self.store())
            .env("LOGDRIVER_STORE_FREE_MIN", "0")
            .env("LOGDRIVER_BUFFER_POLL_INTERVAL", "20")
            .env("LOGDRIVER_HEALTH_BIND_ADDRESS", "127.0.0.1:0")
            .env("TSP_CONFIG_FILE", self.folder.path().join("tenants.toml"));
    }

    /// The dead letters of a store.
    pub(crate) fn dead(&self) -> Vec<Value> {
        let mut command = self.command("tcp://127.0.0.1:1");
        let output = command.arg("dead").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// A line of its standard output.
pub(crate) enum Line {
    Event(Map<String, Value>),
    Log(Value),
    End,
}

/// A running process; killed when dropped.
pub(crate) struct Logdriver {
    child: Child,
    lines: mpsc::Receiver<Line>,
    pub(crate) health: SocketAddr,
    pub(crate) log: Vec<Value>,
    /// What was delivered to standard output.
    pub(crate) events: Vec<Map<String, Value>>,
}

impl Logdriver {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in out.split(b'\n') {
                let Ok(line) = line else { break };
                // The last one may be cut off by a kill.
                let Ok(Value::Object(line)) = serde_json::from_slice(&line) else {
                    continue;
                };
                let line = if line.contains_key("service") {
                    Line::Log(Value::Object(line))
                } else {
                    Line::Event(line)
                };
                if sender.send(line).is_err() {
                    return;
                }
            }
            let _ = sender.send(Line::End);
        });
        let mut logdriver = Self {
            child,
            lines,
            health: SocketAddr::from(([127, 0, 0, 1], 0)),
            log: Vec::new(),
            events: Vec::new(),
        };
        let health = logdriver.wait_for_log(|log| log["health"].as_str().map(str::to_owned));
        logdriver.health = health.parse().unwrap();
        logdriver
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes lines until one gives something.
    fn take<T>(&mut self, mut look: impl FnMut(&Self, &Line) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let Ok(line) = line else {
                panic!(
                    "nothing came; {} events, without the numbers {:?}; log: {:#?}",
                    self.events.len(),
                    missing(&self.events),
                    self.log
                );
            };
            let found = look(self, &line);
            match line {
                Line::Event(event) => self.events.push(event),
                Line::Log(log) => self.log.push(log),
                Line::End if found.is_none() => panic!("it ended; log: {:#?}", self.log),
                Line::End => {}
            }
            if let Some(found) = found {
                return found;
            }
        }
    }

    pub(crate) fn wait_for_log<T>(&mut self, look: impl Fn(&Value) -> Option<T>) -> T {
        if let Some(found) = self.log.iter().find_map(&look) {
            return found;
        }
        self.take(|_, line| match line {
            Line::Log(log) => look(log),
            Line::Event(_) | Line::End => None,
        })
    }

    /// Waits until so many events of applications were delivered, each counted once.
    pub(crate) fn wait_for_numbers(&mut self, numbers: u64) {
        let mut seen: std::collections::HashSet<u64> =
            self.events.iter().filter_map(number).collect();
        if seen.len() as u64 >= numbers {
            return;
        }
        self.take(|_, line| {
            if let Line::Event(event) = line {
                seen.extend(number(event));
            }
            (seen.len() as u64 >= numbers).then_some(())
        });
    }

    /// What is there already.
    pub(crate) fn drain(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            match line {
                Line::Event(event) => self.events.push(event),
                Line::Log(log) => self.log.push(log),
                Line::End => {}
            }
        }
    }

    /// `kill -9`; gives what had been delivered.
    pub(crate) fn kill(mut self) -> Vec<Map<String, Value>> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.take(|_, line| matches!(line, Line::End).then_some(()));
        std::mem::take(&mut self.events)
    }

    /// SIGTERM; gives the exit code and what had been delivered.
    pub(crate) fn stop(mut self) -> (i32, Vec<Map<String, Value>>) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.take(|_, line| matches!(line, Line::End).then_some(()));
        let status = self.child.wait().unwrap();
        (
            status.code().unwrap_or(-1),
            std::mem::take(&mut self.events),
        )
    }

    /// Status and body of a `GET`.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.health).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        (status, body)
    }

    /// Waits until a path answers with `status`.
    pub(crate) fn wait_for_status(&self, path: &str, status: u16) {
        let until = Instant::now() + PATIENCE;
        while self.get(path).0 != status {
            assert!(Instant::now() < until, "{path} never was {status}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Logdriver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The numbers that are left out, up to the last one.
fn missing(events: &[Map<String, Value>]) -> Vec<u64> {
    let numbers: BTreeSet<u64> = events.iter().filter_map(number).collect();
    let last = numbers.last().copied().unwrap_or_default();
    (0..last)
        .filter(|number| !numbers.contains(number))
        .collect()
}

/// The process of the proxy.
pub(crate) const INSTANCE: u64 = 0xbeef;

/// An event as a proxy writes it.
pub(crate) fn event(tenant: &str, number: u64) -> Vec<u8> {
    sized_event(tenant, number, 100)
}

pub(crate) fn sized_event(tenant: &str, number: u64, bytes: usize) -> Vec<u8> {
    let padding = "x".repeat(bytes);
    format!(
        r#"{{"tenantId":"{tenant}","timestamp":"2023-11-14T22:13:20.000Z","iclFields":{{"event":"DATA_ENCRYPT","requestingId":"svc","tspRayId":"aGVsbG8sIHdvcmxk","source":"tsp"}},"customFields":{{"n":"{number}","p":"{padding}"}},"sequence":{{"instance":"{INSTANCE:016x}","shard":0,"number":{number}}}}}"#
    )
    .into_bytes()
}

/// The number that [`event`] gave it; none of a checkpoint.
pub(crate) fn number(event: &Map<String, Value>) -> Option<u64> {
    event["customFields"]["n"].as_str()?.parse().ok()
}

/// Checks what was delivered, in whatever order and however often: every number is there, what came twice is the same to the
/// byte, and each tenant's chain is whole. Gives how many came more than once.
pub(crate) fn assert_whole(events: &[Map<String, Value>], numbers: u64) -> usize {
    let mut seen = BTreeSet::new();
    let mut chains: BTreeMap<String, BTreeMap<u64, Map<String, Value>>> = BTreeMap::new();
    let mut repeated = 0;
    for event in events {
        seen.extend(number(event));
        let tenant = event["tenantId"].as_str().unwrap().to_owned();
        let sequence = event["chain"]["sequence"].as_u64().unwrap();
        let chain = chains.entry(tenant).or_default();
        match chain.get(&sequence) {
            Some(known) => {
                assert_eq!(known, event, "one place, two events");
                repeated += 1;
            }
            None => drop(chain.insert(sequence, event.clone())),
        }
    }
    let missing: Vec<_> = (0..numbers)
        .filter(|number| !seen.contains(number))
        .collect();
    assert!(
        missing.is_empty(),
        "{} are missing: {:?}",
        missing.len(),
        missing.get(..missing.len().min(10))
    );
    for (tenant, chain) in chains {
        let mut previous = None;
        for (expected, (sequence, event)) in (1..).zip(chain) {
            assert_eq!(sequence, expected, "tenant {tenant} has a gap");
            let mut event = event;
            let link = Link::take(&mut event).unwrap();
            assert!(link.fits(&event), "tenant {tenant}, sequence {sequence}");
            assert!(previous.is_none_or(|previous| previous == link.previous));
            previous = Some(link.hash);
        }
    }
    repeated
}
