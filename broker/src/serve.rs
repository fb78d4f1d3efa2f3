//! The service: listens, answers, and ends when it is told to.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
};
use tsp_wire::Secret;

use crate::{
    api, clock,
    mail::{self, Mail, MailConfig},
    metrics::Metrics,
    store::Store,
};

/// Connections at a time: far more than a fleet of proxies that ask every ten minutes needs. What is beyond waits to be accepted.
const CONNECTIONS_MAX: usize = 4_096;

/// Longest time for a request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long running requests may take to end after SIGTERM.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// How often what is over gets deleted.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// How the service runs.
#[derive(Debug)]
pub struct Config {
    /// `sqlite://PATH` or `postgres://…`.
    pub database_url: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Who presents it may make a new vendor; nobody may if it is absent.
    pub setup_token: Option<String>,
    /// How to send mail; nobody gets any if it is absent.
    pub mail: Option<MailConfig>,
}

/// Why the service ended.
#[derive(Debug)]
pub struct ServeError(pub(crate) String);

impl std::fmt::Display for ServeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServeError {}

/// Runs the service until SIGTERM or SIGINT. `ready` hears where it listens.
///
/// # Errors
/// If the database cannot be opened, or the address cannot be listened at.
pub async fn run(config: Config, ready: impl FnOnce(SocketAddr)) -> Result<(), ServeError> {
    let failed = |what: &str, why: &dyn std::fmt::Display| ServeError(format!("{what}: {why}"));
    let store = Store::open(&config.database_url)
        .await
        .map_err(|why| failed("the database cannot be used", &why))?;
    let mail = config.mail.as_ref().map(Mail::start).transpose();
    let mail = mail.map_err(|why| failed("mail cannot be sent", &why))?;
    let metrics = Metrics::new().map_err(|why| failed("metrics cannot be counted", &why))?;
    let shared = api::Shared {
        store: store.clone(),
        mail: mail.clone(),
        setup_token: config
            .setup_token
            .filter(|token| !token.is_empty())
            .map(|token| Arc::new(Secret::new(token))),
    };
    if let Some(mail) = mail {
        tokio::spawn(mail::notify(store.clone(), mail));
    }
    tokio::spawn(forget(store));
    serve(config.listen, api::router(shared, metrics), ready).await
}

/// Answers at `address` until SIGTERM or SIGINT, then drains.
pub(crate) async fn serve(
    address: SocketAddr,
    router: Router,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let failed = |what: &str, why: &dyn std::fmt::Display| ServeError(format!("{what}: {why}"));
    let listener = TcpListener::bind(address)
        .await
        .map_err(|why| failed(&format!("cannot listen at {}", address), &why))?;
    let address = listener
        .local_addr()
        .map_err(|why| failed("the listener has no address", &why))?;
    let signals = signal(SignalKind::terminate()).and_then(|terminate| {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok((terminate, interrupt))
    });
    let (mut terminate, mut interrupt) =
        signals.map_err(|why| failed("signals cannot be received", &why))?;

    let service = TowerToHyperService::new(router);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let drain = hyper_util::server::graceful::GracefulShutdown::new();
    ready(address);
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        let (Ok((stream, _)), Ok(place)) = accepted else {
            // Out of descriptors, say: a moment later there may be one.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service.clone());
        let connection = drain.watch(connection);
        tokio::spawn(async move {
            let _ = connection.await;
            drop(place);
        });
    }
    tracing::info!("draining");
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain.shutdown()).await;
    Ok(())
}

async fn forget(store: Store) {
    loop {
        if let Err(why) = store.forget(clock::now_s()).await {
            tracing::warn!(error = %why, "what is over cannot be deleted");
        }
        tokio::time::sleep(FORGET_EVERY).await;
    }
}
