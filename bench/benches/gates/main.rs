//! What an operation costs a whole shard, as far as it is the same on every run: allocations and instructions.
//!
//! `cargo test --workspace --bench gates` compares with `budget.toml`; with `-- --sites "leased wrap"` it tells where one
//! operation allocates. `cargo bench -p tsp-bench --bench gates` gives the figures of the release profile.
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

use std::{env, io};

use tsp_bench::{budget::Cost, report::Report, valgrind};

use metered::Allocated;
use stand::{Operation, with_stand};

/// Requests before anything is counted: connections are made, leases taken, buffers grown.
const WARM_UP: u32 = 64;

/// Requests that are counted.
const REQUESTS: u32 = 256;

/// Tells this program, under valgrind, to perform all operations in phases.
const IN_PHASES: &str = "--in-phases";

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
    if option(IN_PHASES).is_some() {
        in_phases();
        return Ok(());
    }
    let allocated = allocations();
    let figures = |figure: fn(&Allocated) -> u64| {
        let each = allocated.iter();
        let each = each.map(|(operation, used)| (operation.name, operation.each(figure(used))));
        each.collect::<Vec<_>>()
    };
    let mut report = Report::new("shard");
    report.compare(Cost::Allocations, &figures(|used| used.count))?;
    report.compare(Cost::Bytes, &figures(|used| used.bytes))?;
    let inside = ["gates::metered::shard", "gates::metered::kernel"];
    let instructions = valgrind::instructions(&[IN_PHASES], &inside)?;
    let figures: Vec<_> = allocated
        .iter()
        .zip(instructions)
        .map(|((operation, _), all)| (operation.name, operation.each(all)))
        .collect();
    report.compare(Cost::Instructions, &figures)?;
    report.end()
}

fn named<'a>(operations: &'a [Operation], name: &str) -> &'a Operation {
    let mut found = operations.iter().filter(|operation| operation.name == name);
    found.next().unwrap_or_else(|| {
        let names: Vec<_> = operations.iter().map(|operation| operation.name).collect();
        panic!("no operation {name:?}: there are {names:?}")
    })
}

/// What each operation allocates in [`REQUESTS`].
fn allocations() -> Vec<(Operation, Allocated)> {
    with_stand(async |mut stand| {
        let mut all = Vec::new();
        for operation in stand.operations().await {
            stand.perform(&operation, WARM_UP).await;
            metered::start_counting();
            stand.perform(&operation, REQUESTS).await;
            all.push((operation, metered::stop_counting()));
        }
        all
    })
}

/// Performs the same for valgrind.
fn in_phases() {
    with_stand(async |mut stand| {
        for operation in stand.operations().await {
            stand.perform(&operation, WARM_UP).await;
            valgrind::phase();
            stand.perform(&operation, REQUESTS).await;
            valgrind::phase();
        }
    });
}

impl Operation {
    /// The share of one item in what [`REQUESTS`] cost.
    fn each(&self, all: u64) -> f64 {
        all as f64 / (f64::from(REQUESTS) * f64::from(self.items))
    }
}
