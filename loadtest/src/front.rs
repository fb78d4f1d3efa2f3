//! How load reaches the proxy, and what a proxy that is started here needs for it.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde::{Deserialize, Serialize};
use tsp_rt::tls::ClientTls;

use crate::{client::Target, server::API_KEY};

/// How load reaches the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP on loopback, in the clear.
    #[default]
    Tcp,
    /// TLS over that.
    Tls,
    /// A Unix socket.
    Unix,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Tls, Self::Unix];

    /// Its name, as scenario files and reports have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Unix => "unix",
        }
    }

    /// The one of that name.
    ///
    /// # Errors
    /// If there is none.
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == name);
        found.ok_or_else(|| format!("{name:?} is none of tcp, tls and unix"))
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name in the proxy's certificate.
const SERVER_NAME: &str = "localhost";

/// The files in a folder that a proxy's front needs.
#[derive(Debug)]
pub(crate) struct Front {
    folder: PathBuf,
    /// The authority of its certificate, if it speaks TLS.
    authority_pem: Option<String>,
    unix: bool,
}

impl Front {
    /// What is needed for all of `transports`, in `folder`, which must outlive the proxy.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(crate) fn new(folder: &Path, transports: &[Transport]) -> io::Result<Self> {
        let mut front = Self {
            folder: folder.to_owned(),
            authority_pem: None,
            unix: transports.contains(&Transport::Unix),
        };
        if transports.contains(&Transport::Tls) {
            let made = certificate().map_err(io::Error::other)?;
            fs::write(front.certificate_file(), made.certificate_pem)?;
            fs::write(front.key_file(), made.key_pem)?;
            front.authority_pem = Some(made.authority_pem);
        }
        Ok(front)
    }

    fn certificate_file(&self) -> PathBuf {
        self.folder.join("front.pem")
    }

    fn key_file(&self) -> PathBuf {
        self.folder.join("front.key")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("tsp.sock")
    }

    /// The proxy's variables.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let mut variables = Vec::new();
        let shown = |path: PathBuf| path.display().to_string();
        if self.authority_pem.is_some() {
            variables.push(("TSP_TLS_CERTIFICATE", shown(self.certificate_file())));
            variables.push(("TSP_TLS_KEY", shown(self.key_file())));
        }
        if self.unix {
            variables.push(("TSP_UNIX_SOCKET", shown(self.socket())));
        }
        variables
    }

    /// The proxy whose port is at `http`, by one of the transports.
    ///
    /// # Errors
    /// If it does not serve that one.
    pub(crate) fn target(&self, http: SocketAddr, transport: Transport) -> io::Result<Target> {
        let no_header = || io::Error::other("an address is a header");
        match (transport, &self.authority_pem) {
            (Transport::Unix, _) => {
                Target::unix(self.socket(), SERVER_NAME, API_KEY).ok_or_else(no_header)
            }
            (Transport::Tcp, None) => {
                Target::new(http, &http.to_string(), API_KEY).ok_or_else(no_header)
            }
            (Transport::Tls, Some(pem)) => {
                let client = ClientTls::with_roots_pem(pem).map_err(io::Error::other)?;
                let target = Target::new(http, SERVER_NAME, API_KEY).ok_or_else(no_header)?;
                Ok(target.with_tls(client, SERVER_NAME))
            }
            (Transport::Tcp, Some(_)) | (Transport::Tls, None) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the proxy's port speaks either TLS or plain TCP",
            )),
        }
    }
}

struct Made {
    authority_pem: String,
    certificate_pem: String,
    key_pem: String,
}

/// A certificate for the proxy, of an authority that is made for it alone.
fn certificate() -> Result<Made, rcgen::Error> {
    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::new(Vec::new())?;
    let name = &mut authority.distinguished_name;
    name.push(DnType::CommonName, "loadgen");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate()?;
    let params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
    Ok(Made {
        authority_pem,
        certificate_pem: params.signed_by(&key, &issuer)?.pem(),
        key_pem: key.serialize_pem(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_speaks_tls_or_not_and_a_socket_may_be_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let http = "127.0.0.1:7777".parse().unwrap();
        let targets = |transports: &[Transport]| {
            let front = Front::new(folder.path(), transports).unwrap();
            let target = |transport| front.target(http, transport).is_ok();
            (front.environment().len(), Transport::ALL.map(target))
        };
        assert_eq!(targets(&[Transport::Tcp]), (0, [true, false, true]));
        assert_eq!(targets(&[Transport::Unix]), (1, [true, false, true]));
        let both = [Transport::Tls, Transport::Unix];
        assert_eq!(targets(&both), (3, [false, true, true]));
    }

    #[test]
    fn transports_have_names() {
        for transport in Transport::ALL {
            assert_eq!(Transport::parse(transport.as_str()), Ok(transport));
        }
        assert!(Transport::parse("udp").is_err());
    }
}
