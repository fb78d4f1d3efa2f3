//! Syslog over TLS: messages of RFC 5424 with counted octets, one connection per batch (RFC 5425).
//!
//! The protocol has no answer. So a batch ends with TLS's own end, and counts as delivered when the collector has closed its
//! side in turn: until then nobody knows whether it read all. A collector that does not close within some seconds is believed to
//! have read what its kernel took.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tsp_wire::logging;

use super::{BuildError, event_name, rfc3339, text};
use crate::{
    outbound::{Outbound, client_config, quote},
    sink::{Event, Failure, Limits, Sink, SinkKind},
};

/// Events of one connection.
const EVENTS_MAX: usize = 1_000;
/// Bytes of one connection's events.
const BYTES_MAX: usize = 1_000_000;

/// The most that stands before an event in its message, in bytes: with the longest application name and event name.
const HEADER_BYTES_MAX: usize = 256;

/// How long a batch may take to be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the collector's end of the connection is waited for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Notice: normal but significant (RFC 5424, section 6.2.1).
const SEVERITY: u8 = 5;

pub(super) struct Syslog {
    outbound: Outbound,
    tls: Arc<ClientConfig>,
    host: String,
    port: u16,
    priority: u8,
    app_name: String,
    message_bytes_max: usize,
}

impl Syslog {
    pub(super) fn new(config: &logging::Syslog, outbound: &Outbound) -> Result<Self, BuildError> {
        let own = config.client_certificate.as_ref();
        Ok(Self {
            outbound: outbound.clone(),
            tls: client_config(
                config.ca_pem.as_deref(),
                own.map(|pem| pem.expose().as_str()),
            )?,
            host: config.host.clone(),
            port: config.port,
            priority: config.facility.saturating_mul(8) | SEVERITY,
            app_name: config.app_name.clone(),
            message_bytes_max: config.message_bytes_max,
        })
    }

    /// An event's message (RFC 5424, section 6). The enterprise number is the one for examples (RFC 5612).
    fn message(&self, event: &Event) -> Result<String, Failure> {
        let (time, id, sequence) = (rfc3339(event), &event.id, event.sequence);
        Ok(format!(
            "<{}>1 {time} - {} - {} [tsp@32473 id=\"{id}\" sequence=\"{sequence}\"] {}",
            self.priority,
            self.app_name,
            message_id(event),
            text(event)?,
        ))
    }

    async fn send(&self, events: &[Event]) -> Result<(), Failure> {
        let mut bytes = String::new();
        for event in events {
            let message = self.message(event)?;
            // A String takes all that is written.
            let _ = write!(bytes, "{} {message}", message.len());
        }
        let later = |why: String| Failure::Later { after: None, why };
        let mut stream = self
            .outbound
            .connect_tls(&self.host, self.port, &self.tls)
            .await?;
        let written = timeout(WRITE_TIMEOUT, async {
            stream.write_all(bytes.as_bytes()).await?;
            stream.flush().await?;
            stream.shutdown().await
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(later(quote(&why.to_string()))),
            Err(_) => return Err(later("the collector reads too slowly".to_owned())),
        }
        let mut rest = [0; 64];
        let closed = timeout(CLOSE_TIMEOUT, async {
            while stream.read(&mut rest).await? > 0 {}
            Ok::<_, std::io::Error>(())
        });
        match closed.await {
            // An end without TLS's own is one all the same: it was not before ours.
            Ok(Ok(())) | Err(_) => Ok(()),
            Ok(Err(why)) if why.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
            Ok(Err(why)) => Err(later(quote(&why.to_string()))),
        }
    }
}

/// The event's name, as far as it can be a `MSGID`: 32 visible ASCII characters.
fn message_id(event: &Event) -> String {
    let name = event_name(event);
    let name: String = name
        .chars()
        .filter(char::is_ascii_graphic)
        .take(32)
        .collect();
    if name.is_empty() {
        "-".to_owned()
    } else {
        name
    }
}

impl Sink for Syslog {
    fn kind(&self) -> SinkKind {
        SinkKind::Syslog
    }

    fn limits(&self) -> Limits {
        Limits {
            events_max: EVENTS_MAX,
            bytes_max: BYTES_MAX,
            event_bytes_max: self.message_bytes_max - HEADER_BYTES_MAX,
        }
    }

    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(events))
    }
}
