//! Any HTTPS server: a POST of a JSON array, signed.
//!
//! ```text
//! x-tsp-timestamp: 1700000000
//! x-tsp-signature: v1=<HMAC-SHA-256 over "v1:" ‖ the timestamp ‖ ":" ‖ the body, in hexadecimal digits>
//! ```
//!
//! The receiver compares the signature, refuses timestamps that are off by more than some minutes, and drops events whose
//! `iclFields.logdriverRayId` it has: what it did not answer comes again, signed anew.

use futures_util::future::BoxFuture;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tsp_wire::{Secret, logging};

use super::BuildError;
use crate::{
    clock,
    outbound::{Call, Client, Outbound},
    sink::{Event, Failure, Limits, Sink, SinkKind},
};

/// What servers and gateways take unless they are told otherwise: 1 MB.
const LIMITS: Limits = Limits {
    events_max: 1_000,
    bytes_max: 900_000,
    event_bytes_max: 900_000,
};

pub(super) struct Webhook {
    client: Client,
    url: String,
    secret: Secret<String>,
    headers: Vec<(String, Secret<String>)>,
}

impl Webhook {
    pub(super) fn new(config: &logging::Webhook, outbound: &Outbound) -> Result<Self, BuildError> {
        let copy = |secret: &Secret<String>| Secret::new(secret.expose().clone());
        let headers = config.headers.iter();
        Ok(Self {
            client: outbound.client(config.ca_pem.as_deref())?,
            url: config.url.clone(),
            secret: copy(&config.hmac_secret),
            headers: headers
                .map(|(name, value)| (name.clone(), copy(value)))
                .collect(),
        })
    }

    async fn send(&self, events: &[Event]) -> Result<(), Failure> {
        let body = array(events);
        let timestamp = (clock::now_ms() / 1000).to_string();
        let signature = signature(self.secret.expose(), &timestamp, &body);
        let mut call = Call::post(&self.url, "application/json", body)?
            .header("x-tsp-timestamp", &timestamp)?
            .header("x-tsp-signature", &signature)?;
        for (name, value) in &self.headers {
            call = call.header(name, value.expose())?;
        }
        self.client.send(call).await?.judged()
    }
}

/// The events as a JSON array, each byte for byte.
fn array(events: &[Event]) -> Vec<u8> {
    let bytes: usize = events.iter().map(|event| event.json.len() + 1).sum();
    let mut body = Vec::with_capacity(bytes + 2);
    body.push(b'[');
    for (index, event) in events.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&event.json);
    }
    body.push(b']');
    body
}

fn signature(secret: &str, timestamp: &str, body: &[u8]) -> String {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key");
    for part in [b"v1:", timestamp.as_bytes(), b":", body] {
        mac.update(part);
    }
    format!("v1={}", hex::encode(mac.finalize().into_bytes()))
}

impl Sink for Webhook {
    fn kind(&self) -> SinkKind {
        SinkKind::Webhook
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(events))
    }
}
