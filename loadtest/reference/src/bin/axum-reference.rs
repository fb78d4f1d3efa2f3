//! `axum-reference`: the proxy's job done the ordinary way. See the crate.
#![forbid(unsafe_code)]

use std::{
    env,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use tsp_reference::{config::Config, service::Service};

/// The proxy's allocator, so that what differs is the way and not that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Wraps and unwraps as the proxy does, on axum. The API key is taken from the environment variable API_KEY.
///
/// Prints one JSON line with its address once it serves, and serves until it is killed.
#[derive(Debug, Parser)]
#[command(name = "axum-reference", version)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    listen: SocketAddr,
    /// The proxy's configuration file, with keys at AWS alone.
    #[arg(long)]
    config: PathBuf,
    /// Threads of the runtime.
    #[arg(long, default_value_t = 1)]
    workers: usize,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            drop(writeln!(io::stderr(), "axum-reference: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let api_key = env::var("API_KEY").map_err(|_| "the environment has no API_KEY")?;
    let service = Service::new(&Config::read(&arguments.config)?, &api_key)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.workers)
        .enable_all()
        .build()
        .map_err(|why| why.to_string())?;
    runtime.block_on(async {
        let address = service.start(arguments.listen).await;
        let address = address.map_err(|why| format!("{}: {why}", arguments.listen))?;
        drop(writeln!(io::stdout(), "{{\"http\":\"{address}\"}}"));
        std::future::pending().await
    })
}
