//! `tsp-broker health`: asks a running service whether it serves. It is what an image without a shell has its
//! `HEALTHCHECK` from.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

/// Longest wait for the answer.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct Health {
    /// Where it listens
    #[arg(env = "BROKER_LISTEN", default_value = "127.0.0.1:3000")]
    address: SocketAddr,
}

/// Nothing if it is well.
pub(super) async fn health(asked: Health) -> Result<(), String> {
    let Health { mut address } = asked;
    // A listener on every address is met from its own machine.
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let uri = format!("http://{address}/health")
        .parse()
        .map_err(|why| format!("{address}: {why}"))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let answer = tokio::time::timeout(TIMEOUT, client.get(uri))
        .await
        .map_err(|_| format!("{address} does not answer within {TIMEOUT:?}"))?
        .map_err(|why| format!("{address} does not answer: {why}"))?;
    let status = answer.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("{address} says {status}"))
    }
}
