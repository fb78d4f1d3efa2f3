//! Whole proxies on loopback: started as an operator starts them, spoken to as clients speak, on both I/O back ends.
//!
//! Nothing here looks inside the process. What it needs besides this machine (stand-ins for AWS, the published SDKs),
//! `./x setup` installs; without it the tests that need it fail and say so.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests panic to fail, run threads of their own and wait for real processes; nothing here runs on a shard"
)]

mod aws;
mod broker;
mod clients;
mod deploy;
mod dev;
mod doctor;
mod doors;
mod events;
mod faults;
mod hostile;
mod http;
mod leases;
mod loadtest;
mod logdriver;
mod losses;
mod metrics;
mod operations;
mod overload;
mod process;
mod providers;
mod recover;
mod requests;
mod rotation;
mod sdk;
mod secrets;
mod support;
mod system_calls;
mod tls;
mod top;
mod traces;
mod upstream;
