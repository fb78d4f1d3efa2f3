//! The way to a KMS: from an endpoint to a connection that speaks HTTP. A shard's pools and a [`Probe`](crate::Probe) go
//! the same one.

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tsp_kms::{Endpoint, Roots};
use tsp_rt::{
    NetError, Rt,
    tls::{self, ClientTls, MaybeTls, SpkiPin},
};

use super::CallError;

/// Longest head of a KMS's answer, in bytes. Real ones are below 2 KiB.
const ANSWER_HEAD_BYTES_MAX: usize = 16 << 10;

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

/// Speaks HTTP on `stream`, in a task of its own.
pub(crate) async fn speak_http<R: Rt>(
    rt: &R,
    stream: MaybeTls<R::Stream>,
) -> Result<SendRequest<Full<Bytes>>, CallError> {
    let handshake = http1::Builder::new()
        .max_buf_size(ANSWER_HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = handshake.map_err(CallError::Http)?;
    rt.spawn(async move {
        // What breaks a connection is told to the call that was on it.
        drop(connection.await);
    });
    Ok(sender)
}
