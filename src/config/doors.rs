//! What clients come in by, other than TCP in the clear: TLS, and a Unix socket. And where probes come in.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use tsp_rt::{UNIX_PATH_BYTES_MAX, tls::CLIENT_NAMES_MAX};
use tsp_shards::{UnixConfig, UnixPeers};

use super::{HEALTH_PORT, Problem, Reader, Strings, Why, parse_address, parse_ip};
use crate::source::tls::TlsFiles;

const CERTIFICATE: &str = "TSP_TLS_CERTIFICATE";
const KEY: &str = "TSP_TLS_KEY";
const CLIENT_CA: &str = "TSP_TLS_CLIENT_CA";
const CLIENT_NAMES: &str = "TSP_TLS_CLIENT_NAMES";

/// Names the listener of health and metrics.
pub const HEALTH_BIND_ADDRESS: &str = "TSP_HEALTH_BIND_ADDRESS";

const UNIX_SOCKET: &str = "TSP_UNIX_SOCKET";
const UNIX_SOCKET_MODE: &str = "TSP_UNIX_SOCKET_MODE";
const UNIX_SOCKET_ALLOW: &str = "TSP_UNIX_SOCKET_ALLOW";

/// `TSP_UNIX_SOCKET_MODE` by default: the proxy's own user and group.
const UNIX_MODE: u32 = 0o660;

/// Most users and groups that `TSP_UNIX_SOCKET_ALLOW` may name: they are looked through at each connection.
const UNIX_PEERS_MAX: usize = 64;

/// `TSP_HEALTH_BIND_ADDRESS` and `TSP_BIND_ADDRESS` alone, for who asks a running proxy.
///
/// # Errors
/// What is wrong with them.
pub fn health_address(strings: &impl Strings) -> Result<SocketAddr, Vec<Problem>> {
    let mut reader = Reader {
        strings,
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let ip = reader.parse("TSP_BIND_ADDRESS", parse_ip);
    let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let address = reader.parse(HEALTH_BIND_ADDRESS, |text| parse_address(text, HEALTH_PORT));
    if reader.problems.is_empty() {
        Ok(address.unwrap_or_else(|| SocketAddr::new(ip, HEALTH_PORT)))
    } else {
        Err(reader.problems)
    }
}

impl<S: Strings> Reader<'_, S> {
    /// The files' names; what is in them is looked at later.
    pub(super) fn tls(&mut self) -> Option<TlsFiles> {
        let certificate = self.text(CERTIFICATE).map(PathBuf::from);
        let key = self.text(KEY).map(PathBuf::from);
        let client_ca = self.text(CLIENT_CA).map(PathBuf::from);
        let client_names = self.parse(CLIENT_NAMES, parse_names);
        let given = [
            (CERTIFICATE, certificate.is_some()),
            (KEY, key.is_some()),
            (CLIENT_CA, client_ca.is_some()),
            (CLIENT_NAMES, client_names.is_some()),
        ];
        let mut needs = |name: &str, needed: &str| {
            let is_given = |wanted| given.contains(&(wanted, true));
            if is_given(name) && !is_given(needed) && !self.has_problem_with(needed) {
                self.problem(name, format!("is of no use without {needed}"));
            }
        };
        needs(CERTIFICATE, KEY);
        needs(KEY, CERTIFICATE);
        needs(CLIENT_CA, CERTIFICATE);
        needs(CLIENT_NAMES, CLIENT_CA);
        Some(TlsFiles {
            certificate: certificate?,
            key: key?,
            client_ca,
            client_names: client_names.unwrap_or_default(),
        })
    }

    pub(super) fn unix(&mut self) -> Option<UnixConfig> {
        let path = self.parse(UNIX_SOCKET, parse_path);
        let mode = self.parse(UNIX_SOCKET_MODE, parse_mode);
        let peers = self.parse(UNIX_SOCKET_ALLOW, parse_peers);
        if path.is_none() && !self.has_problem_with(UNIX_SOCKET) {
            let given = [
                (UNIX_SOCKET_MODE, mode.is_some()),
                (UNIX_SOCKET_ALLOW, peers.is_some()),
            ];
            for (name, _) in given.into_iter().filter(|(_, given)| *given) {
                self.warning(name, "does nothing, since TSP_UNIX_SOCKET is not set");
            }
        }
        Some(UnixConfig {
            path: path?,
            mode: mode.unwrap_or(UNIX_MODE),
            peers,
        })
    }
}

fn parse_path(text: &str) -> Result<PathBuf, Why> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err(Why::from("is not an absolute path"));
    }
    if path.as_os_str().as_bytes().len() > UNIX_PATH_BYTES_MAX {
        return Err(Cow::Owned(format!(
            "is longer than the {UNIX_PATH_BYTES_MAX} bytes that the kernel allows"
        )));
    }
    Ok(path)
}

fn parse_names(text: &str) -> Result<Vec<String>, Why> {
    let names: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
    if names
        .iter()
        .any(|name| name.is_empty() || name.contains('*'))
    {
        return Err(Why::from(
            "is not a list of names such as orders.example,spiffe://example/orders, without wildcards",
        ));
    }
    if names.len() > CLIENT_NAMES_MAX {
        return Err(Cow::Owned(format!(
            "has more than {CLIENT_NAMES_MAX} names"
        )));
    }
    Ok(names)
}

fn parse_mode(text: &str) -> Result<u32, Why> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && mode & 0o600 == 0o600 => Ok(mode),
        Ok(_) | Err(_) => Err(Why::from(
            "is no mode such as 600, 660 or 666: octal, with reading and writing for the owner",
        )),
    }
}

fn parse_peers(text: &str) -> Result<UnixPeers, Why> {
    let mut peers = UnixPeers::default();
    for part in text.split(',') {
        let number = |text: &str| text.parse::<u32>().ok();
        match part.trim().split_once(':') {
            Some(("uid", uid)) => peers.uids.extend(number(uid)),
            Some(("gid", gid)) => peers.gids.extend(number(gid)),
            Some(_) | None => {}
        }
    }
    let understood = peers.uids.len() + peers.gids.len();
    if understood != text.split(',').count() {
        return Err(Why::from(
            "is not a list such as uid:1000,gid:2000 (numbers, since names are not looked up)",
        ));
    }
    if understood > UNIX_PEERS_MAX {
        return Err(Cow::Owned(format!(
            "names more than {UNIX_PEERS_MAX} users and groups"
        )));
    }
    Ok(peers)
}
