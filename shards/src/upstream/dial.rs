//! The way to a KMS: from an endpoint to a connection. A shard's pools and a [`Probe`](crate::Probe) go
//! the same one, so that every connection passes [`Dialer::connect`].

use std::{net::SocketAddr, sync::Arc, time::Instant};

use tsp_kms::{Endpoint, Roots};
use tsp_rt::{
    NetError, Rt,
    tls::{self, ClientTls, MaybeTls, SpkiPin},
};
use tsp_wire::destinations::Destinations;

use super::CallError;

/// Connects one core to where endpoints lead, if they may lead there.
#[derive(Clone, Debug)]
pub(crate) struct Dialer<R> {
    rt: R,
    destinations: Arc<Destinations>,
}

impl<R: Rt> Dialer<R> {
    pub(crate) fn new(rt: R, destinations: Arc<Destinations>) -> Self {
        Self { rt, destinations }
    }

    /// Looks `endpoint`'s name up. The addresses are not judged yet.
    pub(crate) async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<SocketAddr>, NetError> {
        self.rt.resolve(&endpoint.host, endpoint.port).await
    }

    /// Opens a TCP connection to the first of `addresses` that takes one, beginning with number `first`, by `deadline`.
    /// An address that endpoints may not lead to is passed over.
    pub(crate) async fn connect(
        &self,
        addresses: &[SocketAddr],
        first: usize,
        deadline: Instant,
    ) -> Result<R::Stream, CallError> {
        let (mut allowed, mut forbidden) = (Vec::with_capacity(addresses.len()), None);
        for address in addresses {
            match self.destinations.check(address.ip()) {
                Ok(()) => allowed.push(*address),
                Err(why) => forbidden = Some(why),
            }
        }
        let mut failed = match forbidden {
            Some(why) => CallError::Forbidden(why),
            None => CallError::Connect(NetError::Unresolved),
        };
        for index in 0..allowed.len() {
            let Some(address) = allowed.get(first.wrapping_add(index) % allowed.len()) else {
                break;
            };
            let left = deadline.saturating_duration_since(self.rt.now());
            // Leave time for the next address, if there is one.
            let share = if index + 1 < allowed.len() {
                left / 2
            } else {
                left
            };
            match self.rt.connect(*address, share).await {
                Ok(stream) => return Ok(stream),
                Err(why) => failed = why.into(),
            }
        }
        Err(failed)
    }
}

/// Whom to trust at `endpoint`, and no sessions yet; `None` where there is no TLS.
pub(crate) fn client_tls(endpoint: &Endpoint) -> Result<Option<ClientTls>, CallError> {
    if !endpoint.tls {
        return Ok(None);
    }
    let tls = match &endpoint.roots {
        Roots::Public => ClientTls::public(),
        Roots::Pem(pem) => ClientTls::with_roots_pem(pem).map_err(|_| CallError::Roots)?,
    };
    Ok(Some(match endpoint.spki_pin {
        None => tls,
        Some(pin) => tls.pinned(SpkiPin(pin)),
    }))
}

/// Does the handshake that `endpoint` asks for.
pub(crate) async fn secure<S: tsp_rt::Stream>(
    stream: S,
    tls: Option<&ClientTls>,
    endpoint: &Endpoint,
) -> Result<MaybeTls<S>, NetError> {
    Ok(match tls {
        None => MaybeTls::Plain(stream),
        Some(tls) => tls::connect(stream, tls, endpoint.tls_name()).await?.into(),
    })
}
