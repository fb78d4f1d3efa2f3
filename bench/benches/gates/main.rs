//! What an operation costs a whole shard, as far as it is the same on every run: allocations.
//!
//! `cargo test --workspace --bench gates` counts; with `-- --sites "leased wrap"` it tells where one operation
//! allocates.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a bench ends at its first surprise"
)]

mod metered;
mod sites;
mod stand;
mod valgrind;

use std::{
    env,
    io::{self, Write as _},
};

use stand::{Operation, with_stand};

/// Requests before anything is counted: connections are made, leases taken, buffers grown.
const WARM_UP: u32 = 64;

/// Requests that are counted.
const REQUESTS: u32 = 256;

fn main() -> io::Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).map_or("", String::as_str))
    };
    if let Some(name) = option("--perform") {
        let times = arguments.last().unwrap().parse().unwrap();
        return with_stand(async |mut stand| {
            let operations = stand.operations().await;
            stand.perform(named(&operations, name), times).await;
            Ok(())
        });
    }
    if let Some(name) = option("--sites") {
        let operations = with_stand(async |mut stand| stand.operations().await);
        let operation = named(&operations, name);
        return sites::print(operation.name, operation.items);
    }
    count()
}

fn named<'a>(operations: &'a [Operation], name: &str) -> &'a Operation {
    let mut found = operations.iter().filter(|operation| operation.name == name);
    found.next().unwrap_or_else(|| {
        let names: Vec<_> = operations.iter().map(|operation| operation.name).collect();
        panic!("no operation {name:?}: there are {names:?}")
    })
}

fn count() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{:28} allocations    bytes, per item", "")?;
    let counts = with_stand(async |mut stand| {
        let mut counts = Vec::new();
        for operation in stand.operations().await {
            stand.perform(&operation, WARM_UP).await;
            metered::start_counting();
            stand.perform(&operation, REQUESTS).await;
            counts.push((operation, metered::stop_counting()));
        }
        counts
    });
    for (operation, used) in &counts {
        let items = f64::from(REQUESTS) * f64::from(operation.items);
        let (count, bytes) = (used.count as f64 / items, used.bytes as f64 / items);
        writeln!(out, "{:28} {count:11.2} {bytes:8.0}", operation.name)?;
    }
    writeln!(
        out,
        "\ntest result: ok. {} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        counts.len()
    )
}
