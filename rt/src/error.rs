//! [`NetError`]: why a connection could not be made or used.

use std::fmt;
use std::io;

use rustls::CertificateError;

use crate::tls::{OtherKey, SpkiPin};

/// Why a name, a connection or a TLS handshake failed.
///
/// Texts from the far end (certificates, TLS alerts) are kept short and on one line, so that they may be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetError {
    /// Not ready by the deadline. The far end or the way to it is slow or gone.
    Timeout,
    /// Nobody listens at that address.
    Refused,
    /// The far end, or something on the way, cut the connection.
    Reset,
    /// There is no route to that address, or a firewall says so.
    Unreachable,
    /// The name has no address, or the name servers could not say.
    Unresolved,
    /// This process ran out of something of its own: descriptors, local ports, or places in the resolver's queue.
    Exhausted,
    /// The far end's certificate is not one that we accept. Trying again cannot help.
    Certificate(CertificateFault, String),
    /// The far end's certificate is good, but the public key in it is not the pinned one; it has this. Trying again cannot
    /// help.
    Pin(SpkiPin),
    /// TLS failed in another way: no common version or cipher, an alert, a malformed message.
    Tls(String),
    /// Anything else the kernel said.
    Io(io::ErrorKind),
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateFault {
    /// It is for other hosts than the one that was called.
    Name,
    /// It has run out, or is not good yet; or our clock is wrong.
    Time,
    /// All the rest: mostly, nobody that we trust has signed it.
    Issuer,
}

impl CertificateFault {
    fn of(error: &rustls::Error) -> Self {
        // Not an exhaustive match: the enum is not ours and marked to grow.
        if let rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) = error
        {
            Self::Name
        } else if let rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) = error
        {
            Self::Time
        } else {
            Self::Issuer
        }
    }
}

/// Longest text of a TLS or certificate error that is kept, in bytes: a certificate may name hundreds of hosts.
const TEXT_BYTES_MAX: usize = 200;

impl NetError {
    /// The name of the kind, for a metric's label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::Unresolved => "unresolved",
            Self::Exhausted => "exhausted",
            Self::Certificate(..) => "certificate",
            Self::Pin(_) => "pin",
            Self::Tls(_) => "tls",
            Self::Io(_) => "io",
        }
    }

    /// Whether the same thing may work when tried again now.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout
            | Self::Refused
            | Self::Reset
            | Self::Unreachable
            | Self::Unresolved
            | Self::Exhausted
            | Self::Io(_) => true,
            Self::Certificate(..) | Self::Pin(_) | Self::Tls(_) => false,
        }
    }

    pub(crate) fn from_tls(error: &rustls::Error) -> Self {
        if let Some(met) = OtherKey::in_rustls(error) {
            return Self::Pin(met);
        }
        let text = one_line(&error.to_string());
        // Not an exhaustive match: the enum is not ours and marked to grow. What is not about the certificate is `Tls`.
        if matches!(
            error,
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::InvalidCertRevocationList(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::UnsupportedNameType
        ) {
            Self::Certificate(CertificateFault::of(error), text)
        } else {
            Self::Tls(text)
        }
    }
}

/// The first [`TEXT_BYTES_MAX`] bytes of `text`, control characters replaced.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(TEXT_BYTES_MAX));
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() > TEXT_BYTES_MAX {
            break;
        }
        line.push(c);
    }
    line
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("timed out"),
            Self::Refused => f.write_str("connection refused"),
            Self::Reset => f.write_str("connection was cut"),
            Self::Unreachable => f.write_str("address cannot be reached"),
            Self::Unresolved => f.write_str("name could not be resolved"),
            Self::Exhausted => f.write_str("out of descriptors, local ports or resolver places"),
            Self::Certificate(_, text) => write!(f, "certificate refused: {text}"),
            Self::Pin(met) => write!(
                f,
                "the certificate is good, but the public key in it is not the pinned one: it has the pin {met}"
            ),
            Self::Tls(text) => write!(f, "TLS failed: {text}"),
            Self::Io(kind) => write!(f, "{kind}"),
        }
    }
}

impl std::error::Error for NetError {}

impl From<&io::Error> for NetError {
    fn from(error: &io::Error) -> Self {
        if let Some(tls) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            return Self::from_tls(tls);
        }
        if let Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) =
            error.raw_os_error()
        {
            return Self::Exhausted;
        }
        // Not an exhaustive match: the enum is not ours and marked to grow.
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "io::ErrorKind is not ours; the rest is kept as it is"
        )]
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof => Self::Reset,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Self::Unreachable,
            io::ErrorKind::AddrNotAvailable => Self::Exhausted,
            kind => Self::Io(kind),
        }
    }
}

impl From<io::Error> for NetError {
    fn from(error: io::Error) -> Self {
        Self::from(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_descriptors_is_told_apart_from_the_far_end_failing() {
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        assert_eq!(NetError::from(error), NetError::Exhausted);
        let error = io::Error::from_raw_os_error(libc::ECONNRESET);
        assert_eq!(NetError::from(error), NetError::Reset);
    }

    #[test]
    fn a_certificate_error_is_never_retried_and_a_reset_is() {
        let error = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let error = NetError::from(io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(error.kind(), "certificate");
        assert!(!error.is_retryable());
        for (error, fault) in [
            (CertificateError::UnknownIssuer, CertificateFault::Issuer),
            (CertificateError::NotValidForName, CertificateFault::Name),
            (CertificateError::Expired, CertificateFault::Time),
        ] {
            let error = NetError::from_tls(&error.into());
            assert!(matches!(error, NetError::Certificate(found, _) if found == fault));
        }
        assert!(NetError::Reset.is_retryable());
    }

    #[test]
    fn a_text_from_the_far_end_is_cut_to_one_short_line() {
        let line = one_line(&format!("a\nb{}", "ü".repeat(500)));
        assert!(line.starts_with("a b"));
        assert!(line.len() <= TEXT_BYTES_MAX);
    }
}
