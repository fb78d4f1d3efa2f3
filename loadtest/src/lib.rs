//! Both far ends of the proxy: the applications that ask it, as a load generator.
//!
//! `loadgen run` puts load on a proxy that runs already, `loadgen compare` starts proxies of its own and compares them, `loadgen
//! scenario` starts simulated KMSs and a proxy, runs a scenario file on them and writes a page with plots. Costs are measured as CPU time of the server process per request, because that is nearly the same on a busy and on an idle
//! machine, and as ratios of figures from one run.
//!
//! To read: [`calls`] and [`mix`] (what is asked), [`arrivals`] (when), [`generator`] (how), [`cpu`] (what it costs),
//! [`compare`], [`report`]; of scenarios [`scenario`] (the files), [`runner`], [`results`], [`page`].
#![forbid(unsafe_code)]

pub mod arrivals;
pub mod calls;
pub mod client;
pub mod compare;
pub mod cpu;
pub mod front;
pub mod generator;
pub mod kmssim;
mod knee;
pub mod mix;
pub mod page;
mod plot;
pub mod report;
pub mod results;
pub mod runner;
pub mod scenario;
pub mod server;
mod stand;
pub mod timeline;
