//! Whole logdriver processes: real sockets, a real disk, real signals.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests panic to fail, and wait for other processes"
)]

mod disk;
mod kill;
mod peer;
mod proxy;
mod support;
mod trouble;
