//! What a request costs in system calls, counted by strace and compared with `bench/budget.toml`.
//!
//! One shard, 32 kept connections. They send at once and then take their answers, round by round, so that the shard finds
//! several requests each time it looks, however the machine's cores are shared.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    ops::Range,
    process::{Child, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tsp_bench::budget::{self, Cost};
use tsp_loadtest::kmssim::{SampleShape, TspConfig};

use crate::support::{
    child,
    config::{As, leased, local_kms, tenant},
    http::{Connection, Request},
    kmssim::{Provider, Simulator},
    metadata, on_both,
    proxy::{API_KEY, Io, Proxy, Setup},
    request, text,
};

const CONNECTIONS: usize = 32;

/// Rounds before calls are counted: connections to the KMS are made, leases taken.
const WARM_UP_ROUNDS: usize = 4;

/// Rounds whose calls are counted, so many that what the process does now and then does not show.
const ROUNDS: usize = 40;

const LEASED: &str = "tenant-leased";

/// strace, attached to a process.
struct Strace(Child);

impl Strace {
    /// `None` if this machine does not let us trace.
    #[track_caller]
    fn attach(process: u32) -> Option<Self> {
        let mut command = child::command("strace");
        command
            .args(["-f", "-c", "-U", "calls,name", "-p", &process.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut strace = child::spawn(command);
        let mut said = String::new();
        let mut errors = BufReader::new(strace.stderr.take().expect("stderr is a pipe"));
        errors.read_line(&mut said).expect("strace says something");
        strace.stderr = Some(errors.into_inner());
        if !said.contains("attached") {
            strace.wait().expect("strace is our child");
            let refused = said.contains("Operation not permitted");
            assert!(refused, "strace, which `./x setup` installs, says: {said}");
            eprintln!("skipped: {said}");
            return None;
        }
        Some(Self(strace))
    }

    /// Detaches it: the calls since then, by name.
    fn detach(mut self) -> BTreeMap<String, u32> {
        kill_process(Pid::from_child(&self.0), Signal::INT).expect("strace is there");
        let mut table = String::new();
        let mut errors = self.0.stderr.take().expect("stderr is a pipe");
        errors.read_to_string(&mut table).expect("it is text");
        self.0.wait().expect("strace is our child");
        let lines = table.lines().filter_map(|line| {
            let (calls, name) = line.trim().split_once(' ')?;
            let name = name.trim();
            (name != "total").then_some((name.to_owned(), calls.parse().ok()?))
        });
        lines.collect()
    }
}

/// Does `rounds` of the request on all connections.
#[track_caller]
fn load(connections: &mut [Connection], request: &[u8], rounds: usize) {
    for _ in 0..rounds {
        for connection in &mut *connections {
            connection.send(request).expect("the proxy reads");
        }
        for connection in &mut *connections {
            connection.answer().ok();
        }
    }
}

/// What calls are for.
const KINDS: [&str; 4] = ["reads", "writes", "others", "waits"];

/// Calls per request, by [`KINDS`]. `None` where there is no tracing.
#[track_caller]
fn count(proxy: &Proxy, request: &Request) -> Option<[f64; KINDS.len()]> {
    let request = request.bytes();
    let mut connections: Vec<_> = (0..CONNECTIONS).map(|_| proxy.connect()).collect();
    load(&mut connections, &request, WARM_UP_ROUNDS);
    let strace = Strace::attach(proxy.id())?;
    load(&mut connections, &request, ROUNDS);
    let calls = strace.detach();
    eprintln!("{calls:?}");
    let of = |names: &[&str]| -> u32 { names.iter().filter_map(|name| calls.get(*name)).sum() };
    let reads = of(&["read", "readv", "recvfrom", "recvmsg"]);
    let writes = of(&["write", "writev", "sendto", "sendmsg"]);
    let waits = of(&[
        "epoll_wait",
        "epoll_pwait",
        "futex",
        "io_uring_enter",
        "membarrier",
    ]);
    let others = calls.values().sum::<u32>() - reads - writes - waits;
    let requests = (CONNECTIONS * ROUNDS) as f64;
    Some([reads, writes, others, waits].map(|calls| f64::from(calls) / requests))
}

/// A proxy with one shard, without events.
#[track_caller]
fn start(setup: Setup) -> Proxy {
    setup
        .env("TSP_SHARDS", "1")
        .env("TSP_ENABLE_LOGDRIVER_INTEGRATION", "false")
        .start()
}

/// All that is counted on a back end; `None` where there is no tracing.
fn figures(io: Io) -> Option<Vec<(&'static str, [f64; KINDS.len()])>> {
    let shape = SampleShape {
        tenants: 1,
        providers: vec![Provider::Aws],
        ..SampleShape::default()
    };
    let simulator = Simulator::with(&shape);
    let config = |url: &str| {
        let config = TspConfig {
            url,
            ca_file: Some(&simulator.ca_file()),
            leasing_allowed: false,
        };
        let mut text = config.text(&simulator.clients);
        text.push_str(&leased(&local_kms(900, 0x31)));
        text.push_str(&tenant(LEASED, &[(900, As::Primary)]));
        text
    };
    let wrap = |tenant| Request::api("document/wrap", API_KEY, &metadata(tenant));
    let mut figures = Vec::new();
    let over_tls = start(Setup::serve(io, &config(&simulator.url())));
    figures.push(("leased wrap", count(&over_tls, &wrap(LEASED))?));
    let wrapped = over_tls.call("document/wrap", &metadata(LEASED)).ok();
    let edek = serde_json::json!({ "encryptedDocumentKey": text(&wrapped, "edek") });
    let unwrap = Request::api("document/unwrap", API_KEY, &request(LEASED, edek));
    figures.push(("leased unwrap", count(&over_tls, &unwrap)?));
    let kms = simulator.tenant(Provider::Aws);
    figures.push(("KMS wrap, TLS", count(&over_tls, &wrap(kms))?));
    drop(over_tls);
    let plain = start(Setup::serve(io, &config(&simulator.plain_url())));
    figures.push(("KMS wrap, plain", count(&plain, &wrap(kms))?));
    simulator.assert_refused_none();
    Some(figures)
}

on_both! {
    fn system_calls_keep_their_budget(io) {
        let Some(figures) = figures(io) else { return };
        let check = |cost, kinds: Range<usize>| {
            let named = figures.iter().flat_map(|(name, calls)| {
                let named = move |kind| (format!("{name}, {}", KINDS[kind]), calls[kind]);
                kinds.clone().map(named)
            });
            let named: Vec<_> = named.collect();
            let named: Vec<_> = named.iter().map(|(name, calls)| (name.as_str(), *calls)).collect();
            budget::check(cost, io.as_str(), &named).expect("the budget can be read")
        };
        let mut findings = check(Cost::SystemCalls, 0..3);
        findings.extend(check(Cost::Waits, 3..4));
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }
}
