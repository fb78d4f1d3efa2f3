//! `tsp-logdriver`: security events from the proxies onto disk, and from there to each tenant's own log system.
//!
//! | module | does |
//! | --- | --- |
//! | [`sink`] | what a tenant's log system is to the rest: takes events, or says why not |
#![forbid(unsafe_code)]

pub mod sink;
