//! Requests and answers as values. Who sends them, and over what, is the caller's business.

use std::{
    fmt,
    io::Write as _,
    net::Ipv6Addr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Uri, uri::Scheme};
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

    /// The endpoint of a URL that a logging configuration has, or else `default_host`. Without TLS too: whoever connects
    /// sees to it that events stay in the operator's own networks then.
    pub(crate) fn of_url(
        member: &'static str,
        url: Option<&str>,
        default_host: &str,
        roots: Roots,
    ) -> Result<Self, ConfigError> {
        let Some(url) = url else {
            return Ok(Self::at(default_host, roots));
        };
        Self::parse(url, roots).ok_or_else(|| {
            ConfigError::new(
                member,
                "a URL of the form https://HOST or https://HOST:PORT, without user, path or query",
            )
        })
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
        Self::of(doc.ca_pem.as_deref())
    }

    /// Those in `ca_pem`, if there is one.
    pub(crate) fn of(ca_pem: Option<&str>) -> Result<Self, ConfigError> {
        ca_pem.map_or(Ok(Self::Public), Self::from_pem)
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

/// A request, always a POST, as it goes out: head and body in one piece, to be lent to the transport rather than copied.
///
/// The body of a wrap holds the DEK in base64, the head may hold a credential: all of it is wiped when dropped, and was
/// allocated once at its full size.
pub struct HttpRequest {
    bytes: Zeroizing<Vec<u8>>,
    /// Where the body begins.
    body_at: usize,
}

/// Room for the digits of a body's size.
const LENGTH_DIGITS_MAX: usize = 20;

impl HttpRequest {
    /// A request for `path`, with `headers`, `host` among them, and `content-length`.
    ///
    /// Configurations and tokens are checked for what a head may hold before they come here. Whatever else comes would
    /// make one request into two.
    ///
    /// # Panics
    /// Rather than send such a head.
    pub(crate) fn post<'h>(
        path: &str,
        headers: impl Iterator<Item = (&'h str, &'h str)> + Clone,
        body: &[u8],
    ) -> Self {
        const METHOD: &str = "POST ";
        const VERSION: &str = " HTTP/1.1\r\n";
        const LENGTH: &str = "content-length: ";
        let lines: usize = headers
            .clone()
            .map(|(name, value)| name.len() + value.len() + 4)
            .sum();
        let size = METHOD.len() + path.len() + VERSION.len() + lines + LENGTH.len();
        let size = size + LENGTH_DIGITS_MAX + 4 + body.len();
        let mut bytes = Zeroizing::new(Vec::with_capacity(size));
        let mut put = |text: &str| bytes.extend_from_slice(text.as_bytes());
        put(METHOD);
        assert!(
            path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()),
            "a path without blanks and line ends"
        );
        put(path);
        put(VERSION);
        for (name, value) in headers {
            assert!(is_field_value(value), "a {name} of visible ASCII");
            put(name);
            put(": ");
            put(value);
            put("\r\n");
        }
        put(LENGTH);
        // A vector takes all that is written.
        let _ = write!(bytes, "{}\r\n\r\n", body.len());
        let body_at = bytes.len();
        bytes.extend_from_slice(body);
        assert!(bytes.len() <= size, "the buffer did not grow");
        Self { bytes, body_at }
    }

    /// The same request with one more line at the end of its head, which no signature covers.
    ///
    /// # Panics
    /// As `post` does.
    #[must_use]
    pub fn with_unsigned(self, name: &str, value: &str) -> Self {
        assert!(is_field_value(value), "a {name} of visible ASCII");
        let line = [name, ": ", value, "\r\n"];
        let more: usize = line.iter().map(|piece| piece.len()).sum();
        let (head, rest) = self.bytes.split_at(self.body_at.saturating_sub(2));
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.bytes.len() + more));
        bytes.extend_from_slice(head);
        for piece in line {
            bytes.extend_from_slice(piece.as_bytes());
        }
        bytes.extend_from_slice(rest);
        Self {
            bytes,
            body_at: self.body_at + more,
        }
    }

    /// All of it, as it goes over the wire.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.bytes.get(self.body_at..).unwrap_or_default()
    }

    /// Path and query, beginning with `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        let mut words = self.head().split(' ');
        words.nth(1).unwrap_or_default()
    }

    /// The headers in the order in which they are sent, `content-length` last of those that are signed; names are in lower case.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.head().split("\r\n").skip(1);
        lines.filter_map(|line| line.split_once(": "))
    }

    /// The value of the header that is called `name`, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers()
            .find_map(|(own, value)| own.eq_ignore_ascii_case(name).then_some(value))
    }

    fn head(&self) -> &str {
        let head = self.bytes.get(..self.body_at).unwrap_or_default();
        // It was written from text.
        std::str::from_utf8(head).unwrap_or_default()
    }
}

impl fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRequest")
            .field("path", &self.path())
            .field("body_bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}

/// Visible ASCII and blanks.
fn is_field_value(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
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
    /// The header section as it came: lines of `name: value`, each with its line end. Few answers have it looked at.
    pub headers: &'a [u8],
    /// The whole body.
    pub body: &'a [u8],
}

impl<'a> HttpAnswer<'a> {
    /// A header's text; `None` if it is absent or not visible ASCII.
    pub(crate) fn header(&self, name: &'a str) -> Option<&'a str> {
        self.header_lines(name).next()?
    }

    /// The texts of all headers that are called `name`, in any case; `None` for what is not visible ASCII.
    pub(crate) fn header_lines(&self, name: &'a str) -> impl Iterator<Item = Option<&'a str>> {
        let lines = self.headers.split(|byte| *byte == b'\n');
        lines.filter_map(move |line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (own, value) = line.split_at_checked(colon)?;
            if !own.eq_ignore_ascii_case(name.as_bytes()) {
                return None;
            }
            let text = std::str::from_utf8(value.get(1..)?.trim_ascii()).ok();
            Some(text.filter(|text| is_field_value(text)))
        })
    }

    /// The time at the server, if its `Date` header says so (RFC 9110, section 6.6.1).
    #[must_use]
    pub fn server_time(&self) -> Option<SystemTime> {
        httpdate::parse_http_date(self.header("date")?).ok()
    }

    /// How long the server wants us to wait (RFC 9110, section 10.2.3): in seconds, or as a date, which counts from the
    /// answer's own date.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
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

impl fmt::Debug for HttpAnswer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpAnswer")
            .field("status", &self.status)
            .field("header_bytes", &self.headers.len())
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_request_is_one_piece_of_http() {
        let headers = [("host", "kms.example"), ("x-a", "b c")];
        let request = HttpRequest::post("/p?q=1", headers.into_iter(), b"{}");
        let expected =
            "POST /p?q=1 HTTP/1.1\r\nhost: kms.example\r\nx-a: b c\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(String::from_utf8_lossy(request.bytes()), expected);
        assert_eq!((request.path(), request.body()), ("/p?q=1", &b"{}"[..]));
        assert_eq!(request.header("X-A"), Some("b c"));
        assert_eq!(request.header("x-b"), None);
        assert_eq!(request.headers().count(), 3);
    }

    #[test]
    fn a_line_that_no_signature_covers_comes_last() {
        let headers = [("host", "kms.example")];
        let request = HttpRequest::post("/", headers.into_iter(), b"{}").with_unsigned("x-a", "b");
        let expected =
            "POST / HTTP/1.1\r\nhost: kms.example\r\ncontent-length: 2\r\nx-a: b\r\n\r\n{}";
        assert_eq!(String::from_utf8_lossy(request.bytes()), expected);
        assert_eq!(
            (request.header("x-a"), request.body()),
            (Some("b"), &b"{}"[..])
        );
    }

    #[test]
    fn nothing_makes_two_requests_of_one() {
        let post = |path: &str, value: &str| {
            let headers = [("host", value)];
            std::panic::catch_unwind(|| HttpRequest::post(path, headers.into_iter(), b"")).is_ok()
        };
        assert!(post("/", "kms.example"));
        for bad in ["a\r\nb: c", "a\nb", "a\0", "\u{e4}", "a\u{7f}"] {
            assert!(!post("/", bad), "{bad:?}");
            assert!(!post(&format!("/{bad}"), "kms.example"), "{bad:?}");
        }
        for bad in ["", "p", "/a b", "/ HTTP/1.1"] {
            assert!(!post(bad, "kms.example"), "{bad:?}");
        }
    }

    #[test]
    fn a_header_is_found_in_any_case_if_it_is_text() {
        let answer = HttpAnswer {
            status: 200,
            headers: b"Date:  today \r\nx-a:\r\nDATE: tomorrow\r\nx-b: \xff\r\nno colon\r\nx-c: a\x01b\r\n\r\n",
            body: b"",
        };
        assert_eq!(answer.header("date"), Some("today"));
        assert_eq!(answer.header("x-a"), Some(""));
        let dates: Vec<_> = answer.header_lines("date").flatten().collect();
        assert_eq!(dates, ["today", "tomorrow"]);
        for absent in ["x-b", "x-c", "x-d", "no colon"] {
            assert_eq!(answer.header(absent), None, "{absent}");
        }
    }

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
