//! Whole brokers, as processes on loopback, on SQLite and on PostgreSQL; admins are the command line, proxies are `support`.
//!
//! What a proxy and an admin see and do is tested here on both stores; each test has a database of its own.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests panic to fail"
)]

mod account;
mod bridge;
mod faults;
mod lifecycle;
mod mail;
mod operator;
mod rules;
mod scale;
mod support;
mod tenants;
