//! `tsp-logdriver`: security events from the proxies onto disk, and from there to each tenant's own log system.
//!
//! | module | does |
//! | --- | --- |
//! | [`serve`] | the process: its parts, signals, the drain |
//! | [`config`] | environment variables |
//! | [`ingest`] | takes events from the proxies |
//! | [`store`] | keeps them on disk: order, chain, settlement, dead letters |
//! | [`pipeline`] | batches, retries, bisection: a lane per tenant |
//! | [`routes`], [`source`] | which tenant's events go where, and where that is known from |
//! | [`sink`] | what a tenant's log system is to the rest: takes events, or says why not |
//! | [`sinks`] | each kind of log system, and the one guarded way out to them, [`outbound`] |
//! | [`chain`], [`verify`] | the proof that a tenant has of its events, and its verification offline |
//! | [`notice`] | what the logdriver itself tells tenants |
//! | [`health`], [`metrics`], [`logs`] | what an operator sees |
#![forbid(unsafe_code)]

pub mod chain;
mod clock;
pub mod config;
pub mod health;
pub mod ingest;
pub mod logs;
pub mod metrics;
pub mod notice;
pub mod outbound;
pub mod pipeline;
pub mod routes;
pub mod serve;
pub mod sink;
pub mod sinks;
pub mod source;
pub mod store;
pub mod verify;
