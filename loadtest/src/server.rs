//! Servers that are started here, and the machine that they run on.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use serde::Deserialize;

/// The API key of the servers that are started here. It is no secret: they listen on loopback and hold nothing.
pub(crate) const API_KEY: &str = "bG9hZGdlbi1rZXkh";

/// How long a server may take until it says that it serves.
const START_MAX: Duration = Duration::from_secs(30);

/// Bytes of a server's last words that are kept of each of its two streams.
const WORDS_BYTES_MAX: usize = 64 << 10;

/// A server that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    /// Collect what it writes.
    readers: Vec<JoinHandle<String>>,
    serving: mpsc::Receiver<Serving>,
}

/// What the proxy's log says once it serves.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Serving {
    /// Where its API is.
    pub(crate) http: SocketAddr,
    /// The I/O back end.
    pub(crate) io: String,
}

impl Server {
    /// Starts it, and reads what it writes to those of its streams that are pipes.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut process = command.spawn()?;
        let (tell, serving) = mpsc::channel();
        let mut readers = Vec::new();
        if let Some(pipe) = process.stdout.take() {
            readers.push(read(pipe, tell.clone()));
        }
        if let Some(pipe) = process.stderr.take() {
            readers.push(read(pipe, tell));
        }
        Ok(Self {
            process,
            readers,
            serving,
        })
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits for the log line that says where it serves; its standard output must be a pipe.
    ///
    /// # Errors
    /// With its last words, if it ends before, or does not come up in time.
    pub(crate) fn wait_until_serving(&mut self) -> io::Result<Serving> {
        self.serving
            .recv_timeout(START_MAX)
            .map_err(|_| io::Error::other(format!("does not serve:\n{}", self.last_words())))
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }

    /// Stops it and tells what it wrote last.
    pub(crate) fn last_words(&mut self) -> String {
        self.stop();
        let readers = self.readers.drain(..);
        readers.filter_map(|reader| reader.join().ok()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads lines until the stream ends, keeps the last of them, and tells when one says that the server serves.
fn read(pipe: impl Read + Send + 'static, tell: mpsc::Sender<Serving>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = String::new();
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            if let Ok(serving) = serde_json::from_slice(&line) {
                // Whoever waited may have given up.
                drop(tell.send(serving));
            }
            if kept.len() + line.len() > WORDS_BYTES_MAX {
                kept.clear();
            }
            kept.push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
        kept
    })
}

/// The CPUs that this process may use, ascending, from `/proc/self/status`.
///
/// # Errors
/// If the kernel does not tell.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let list = list.ok_or(io::ErrorKind::InvalidData)?;
    parse_cpus(list.trim()).map_err(io::Error::other)
}

/// Reads a list of CPUs such as `0,2-3`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_cpus(list: &str) -> Result<Vec<usize>, String> {
    let number = |text: &str| {
        text.parse::<usize>()
            .map_err(|_| format!("{text:?} is not the number of a CPU"))
    };
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(number(first)?..=number(last)?);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// One line on the machine: CPU, kernel, load.
#[must_use]
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let models: Vec<_> = cpuinfo
        .lines()
        .filter(|line| line.starts_with("model name"))
        .collect();
    let model = models
        .first()
        .and_then(|line| line.split_once(": "))
        .map_or("unknown CPU", |m| m.1);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load: Vec<_> = load.split(' ').take(3).collect();
    let (count, kernel, load) = (models.len(), kernel.trim(), load.join(" "));
    format!("{count} × {model}, Linux {kernel}, load {load}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cpus("0-2,5"), Ok(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpus("7"), Ok(vec![7]));
        assert!(parse_cpus("a").is_err());
        assert!(parse_cpus("").is_err());
        assert!(!allowed_cpus().unwrap().is_empty());
    }

    #[test]
    fn a_server_that_ends_tells_its_last_words() {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo first; echo last >&2; exit 3"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let why = Server::start(&mut command)
            .unwrap()
            .wait_until_serving()
            .unwrap_err();
        assert!(why.to_string().ends_with("first\nlast\n"), "{why}");
    }
}
