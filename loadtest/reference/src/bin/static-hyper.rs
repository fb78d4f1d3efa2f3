//! `static-hyper`: fixed answers to the proxy's requests and to a KMS's. See the crate's module `fixed`.
#![forbid(unsafe_code)]

use std::{
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use tsp_reference::fixed::Fixed;

/// The proxy's allocator, so that what differs is the way and not that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Gives fixed answers, on one thread.
///
/// Prints one JSON line with its address once it serves, and serves until it is killed.
#[derive(Debug, Parser)]
#[command(name = "static-hyper", version)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    listen: SocketAddr,
    /// Serves TLS, and writes the certificate of the authority to this file.
    #[arg(long)]
    tls_ca_out: Option<PathBuf>,
    /// Answers wraps with an EDEK that is not leased, as a proxy does that asks the KMS each time.
    #[arg(long)]
    unleased: bool,
    /// Waits so long before each answer.
    #[arg(long)]
    delay_ms: Option<u64>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            drop(writeln!(io::stderr(), "static-hyper: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let delay = arguments.delay_ms.map(Duration::from_millis);
    let mut server = Fixed::new(!arguments.unleased, delay);
    if let Some(path) = &arguments.tls_ca_out {
        let authority;
        (server, authority) = server.with_tls()?;
        fs::write(path, authority).map_err(|why| format!("{}: {why}", path.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| why.to_string())?;
    runtime.block_on(async {
        let address = server.start(arguments.listen).await;
        let address = address.map_err(|why| format!("{}: {why}", arguments.listen))?;
        drop(writeln!(io::stdout(), "{{\"http\":\"{address}\"}}"));
        std::future::pending().await
    })
}
