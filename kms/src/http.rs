//! Requests and answers as values. Who sends them, and over what, is the caller's business.

use std::{
    fmt,
    net::Ipv6Addr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, Uri, uri::Scheme};
use tsp_wire::snapshot::KmsConfigDoc;
use zeroize::Zeroizing;

use crate::ConfigError;

/// Where a KMS listens, and how it proves itself. Two configurations with equal endpoints share connections; what a
/// connection is trusted for belongs to it, so that none is shared by those who ask for different proofs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Whether to speak TLS. Only a configuration that explicitly allows insecure connections can be without.
    pub tls: bool,
    /// A DNS name in lower case, or an IP address (IPv6 without brackets).
    pub host: String,
    /// The TCP port, never 0.
    pub port: u16,
    /// Whose certificates to trust.
    pub roots: Roots,
    /// The name to check the certificate for, if that is not `host`: a DNS name or an IP address, like `host`.
    pub server_name: Option<String>,
    /// What the certificate's `SubjectPublicKeyInfo` must hash to with SHA-256 (RFC 7469, section 2.4), besides all that
    /// is checked without it.
    pub spki_pin: Option<[u8; 32]>,
}

/// Longest endpoint URL, in bytes: a host name has at most 253.
const URL_BYTES_MAX: usize = 512;

/// Largest PEM text, in bytes: the whole public set of authorities has about 200 KiB.
const CA_PEM_BYTES_MAX: usize = 256 * 1024;

impl Endpoint {
    /// The endpoint that a configuration names, or `default_host` with TLS.
    pub(crate) fn from_doc(doc: &KmsConfigDoc, default_host: &str) -> Result<Self, ConfigError> {
        match doc.endpoint.as_deref() {
            Some(url) => Self::from_url("endpoint", url, doc),
            None => Ok(Self::at(default_host, Roots::from_doc(doc)?)),
        }
    }

    /// The endpoint that the URL in `member` names, with the trust and the leniency of the rest of the configuration.
    pub(crate) fn from_url(
        member: &'static str,
        url: &str,
        doc: &KmsConfigDoc,
    ) -> Result<Self, ConfigError> {
        let endpoint = Self::parse(url, Roots::from_doc(doc)?).ok_or_else(|| {
            ConfigError::new(
                member,
                "a URL of the form https://HOST or https://HOST:PORT, without user, path or query",
            )
        })?;
        if !endpoint.tls && !doc.allow_insecure {
            return Err(ConfigError::new(
                member,
                "https, unless `allow_insecure` is set",
            ));
        }
        Ok(endpoint)
    }

    /// `host`, with TLS on its usual port.
    pub(crate) fn at(host: &str, roots: Roots) -> Self {
        Self {
            tls: true,
            host: host.to_owned(),
            port: 443,
            roots,
            server_name: None,
            spki_pin: None,
        }
    }

    /// The name to check the certificate for, and to ask for in the handshake.
    #[must_use]
    pub fn tls_name(&self) -> &str {
        self.server_name.as_deref().unwrap_or(&self.host)
    }

    /// What `url` names, if it is nothing but `http` or `https`, a host and perhaps a port.
    pub(crate) fn parse(url: &str, roots: Roots) -> Option<Self> {
        // The parser drops fragments silently, and keeps a user in the authority.
        if url.len() > URL_BYTES_MAX || url.contains(['#', '@']) {
            return None;
        }
        let uri: Uri = url.parse().ok()?;
        let tls = match uri.scheme()? {
            scheme if *scheme == Scheme::HTTPS => true,
            scheme if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        let host = authority.host();
        let host = match host.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')?
                .parse::<Ipv6Addr>()
                .ok()?
                .to_string(),
            None => host_name(host)?,
        };
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            // No number, or one that is no port.
            None if authority.as_str() != authority.host() => return None,
            None if tls => 443,
            None => 80,
        };
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        (bare && port != 0).then_some(Self {
            tls,
            host,
            port,
            roots,
            server_name: None,
            spki_pin: None,
        })
    }

    /// All of it in one text, for the identity of a credential that is shown there.
    pub(crate) fn identity(&self) -> String {
        let pem = match &self.roots {
            Roots::Public => "",
            Roots::Pem(pem) => pem,
        };
        let (tls, name, pin) = (self.tls, self.tls_name(), self.spki_pin);
        // Only the last part may hold line ends.
        format!("{tls}\n{}\n{name}\n{pin:?}\n{pem}", self.host_header())
    }

    /// The `host` header: with the port unless it is the scheme's own (RFC 9110, sections 4.2 and 7.2).
    pub(crate) fn host_header(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let own_port = if self.tls { 443 } else { 80 };
        if self.port == own_port {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

/// `text` in lower case if it can be a host name or an IPv4 address. Underscores occur in names of containers.
pub(crate) fn host_name(text: &str) -> Option<String> {
    let sound = text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
    sound.then(|| text.to_ascii_lowercase())
}

/// Whose certificates to trust.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Roots {
    /// The public authorities.
    Public,
    /// Only the authorities in this PEM text. It replaces the public ones.
    Pem(Arc<str>),
}

impl Roots {
    /// Those that a configuration asks for.
    pub(crate) fn from_doc(doc: &KmsConfigDoc) -> Result<Self, ConfigError> {
        match doc.ca_pem.as_deref() {
            None => Ok(Self::Public),
            Some(pem) => Self::from_pem(pem),
        }
    }

    /// Takes PEM text that can hold certificates. Whether they are any is for the TLS library to say.
    fn from_pem(pem: &str) -> Result<Self, ConfigError> {
        if pem.len() <= CA_PEM_BYTES_MAX && pem.contains("-----BEGIN CERTIFICATE-----") {
            Ok(Self::Pem(pem.into()))
        } else {
            Err(ConfigError::new(
                "ca_file",
                "one or more certificates in PEM, at most 256 KiB",
            ))
        }
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("Public"),
            Self::Pem(pem) => write!(f, "Pem({} bytes)", pem.len()),
        }
    }
}

/// A request, always a POST, complete but for `content-length`, which the transport adds.
///
/// The body of a wrap holds the DEK in base64: it is wiped when dropped, was allocated once at its full size, and should
/// be lent to the transport rather than copied. Headers that carry credentials are marked sensitive.
pub struct HttpRequest {
    /// Path and query, beginning with `/`.
    pub path: String,
    /// All headers, `host` among them.
    pub headers: HeaderMap,
    /// The body.
    pub body: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRequest")
            .field("path", &self.path)
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// What came back.
///
/// The caller bounds it before it gets here: 16 KiB of headers and 64 KiB of body are far above any real answer. The
/// body of an unwrap holds the DEK in base64; nothing here copies it, and the caller wipes it when the answer has been
/// read.
#[derive(Clone, Copy)]
pub struct HttpAnswer<'a> {
    /// The HTTP status.
    pub status: u16,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The whole body.
    pub body: &'a [u8],
}

impl HttpAnswer<'_> {
    /// A header's text; `None` if it is absent or not visible ASCII.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The time at the server, if its `Date` header says so (RFC 9110, section 6.6.1).
    #[must_use]
    pub fn server_time(&self) -> Option<SystemTime> {
        httpdate::parse_http_date(self.header("date")?).ok()
    }

    /// How long the server wants us to wait (RFC 9110, section 10.2.3): in seconds, or as a date, which counts from the
    /// answer's own date.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let text = self.header("retry-after")?.trim();
        let pause = match text.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                let until = httpdate::parse_http_date(text).ok()?;
                until
                    .duration_since(self.server_time()?)
                    .unwrap_or(Duration::ZERO)
            }
        };
        Some(pause.min(RETRY_AFTER_MAX))
    }
}

/// Longest pause that is passed on: a day says "not now" as well as a year does, and cannot overflow anybody's sum.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// A header's value, from text that was checked when it came in.
pub(crate) fn value<T: TryInto<HeaderValue>>(text: T) -> HeaderValue {
    #[expect(
        clippy::expect_used,
        reason = "configurations and tokens are checked for the same characters"
    )]
    text.try_into().ok().expect("visible ASCII")
}

/// Marks a value that nobody is to print.
pub(crate) fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

impl fmt::Debug for HttpAnswer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpAnswer")
            .field("status", &self.status)
            .field("header_count", &self.headers.len())
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn endpoints_that_differ_in_their_proofs_are_not_the_same() {
        let plain = || Endpoint::at("kms.example", Roots::Public);
        let pem = |text: &str| Roots::Pem(text.into());
        let all = [
            plain(),
            Endpoint {
                tls: false,
                ..plain()
            },
            Endpoint {
                roots: pem("a"),
                ..plain()
            },
            Endpoint {
                roots: pem("b"),
                ..plain()
            },
            Endpoint {
                server_name: Some("other.example".to_owned()),
                ..plain()
            },
            Endpoint {
                spki_pin: Some([1; 32]),
                ..plain()
            },
            Endpoint {
                spki_pin: Some([2; 32]),
                ..plain()
            },
        ];
        let identities: HashSet<_> = all.iter().map(Endpoint::identity).collect();
        assert_eq!(identities.len(), all.len());
        let mut known = HashSet::new();
        assert!(all.into_iter().all(|endpoint| known.insert(endpoint)));
        assert!(known.contains(&plain()));
        let again = Endpoint {
            roots: pem("b"),
            ..plain()
        };
        assert!(known.contains(&again), "the same text of another config");
    }
}
