//! What the proxy is measured against on one machine, in one run: see `run.py` beside this crate.
//!
//! [`service`] does the proxy's job the ordinary way: axum on tokio's multi-threaded runtime, a pooled hyper client,
//! `serde_json`. It speaks the proxy's HTTP API on the routes that are measured and reads the proxy's configuration file (its AWS
//! configs), so that the load generator and the proxies beside it cannot tell the two apart. [`fixed`] answers the same
//! requests with bytes made beforehand: the ceiling for everything that speaks HTTP through hyper, and the KMS behind
//! all contestants.
//!
//! The reference is honest: it does what the proxy does for each request (API key, tenant, limits, deadline, age of keys,
//! metrics) and is written by somebody who knows the libraries: requests are borrowed from the body, keys are expanded once,
//! the day's signing key is kept, random bytes come from a generator per thread. What it leaves out makes it faster, not
//! slower: it wipes no keys, sends no events, writes no log, retries nothing. Nothing of the proxy's is built into it but the
//! formats, and it is built into nothing.

pub mod config;
pub mod fixed;
pub mod kms;
pub mod service;
mod shared;
mod text;
