//! `tsp health`: asks a running proxy whether it serves. It is what an image without a shell has its `HEALTHCHECK` from.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    RunError,
    config::{self, Environment, Overlay},
};

/// Longest wait for each step of the one request. Image builders' default for a whole health check is 30 s.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Largest answer, in bytes. It has a few hundred.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// What `tsp health` asks.
#[derive(Debug, Default)]
pub struct HealthOptions {
    /// IP or IP:PORT of the health listener; what the variables say otherwise.
    pub address: Option<String>,
    /// Whether it lives, rather than whether it is ready.
    pub live: bool,
}

/// Asks, and returns what the proxy said.
///
/// # Errors
/// [`RunError::Configuration`] if no address can be had; [`RunError::NotReady`] if the answer is no, or there is none.
pub fn health(options: &HealthOptions) -> Result<String, RunError> {
    let given = options.address.clone();
    let option = |value| (config::HEALTH_BIND_ADDRESS, "ADDRESS", value);
    let strings = Overlay {
        options: given.map(option).into_iter().collect(),
        below: &Environment,
    };
    let listener = config::health_address(&strings).map_err(RunError::Configuration)?;
    let address = reachable(listener);
    let path = if options.live { "/live" } else { "/ready" };
    let answer = ask(address, path)
        .map_err(|why| RunError::NotReady(format!("no answer from {address}: {why}")))?;
    match answer {
        (200, body) => Ok(body),
        (status, body) => Err(RunError::NotReady(format!("{path} says {status}: {body}"))),
    }
}

/// Where a listener on every address is met from its own machine.
pub(crate) fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, listener.port())
}

/// One request: status and body.
fn ask(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    // "HTTP/1.1 200 OK"
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    match (status, body) {
        (Some(status), Some(body)) => Ok((status, body.to_owned())),
        _ => Err(std::io::Error::other("it is no HTTP")),
    }
}
